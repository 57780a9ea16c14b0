from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fewshot_ray.errors import UserError
from fewshot_ray.models.gan import StyleGan2
from fewshot_ray.models.gan_source import FastGanConfig, GanConfig, StyleGan2Config, build_gan, load_gan, save_gan
from tests.models import stylegan2_reference as reference
from tests.models.test_stylegan2 import livened
from tests.tiny_gan import tiny_fastgan, tiny_stylegan2


def common_layout(gan: StyleGan2) -> dict[str, dict[str, Tensor]]:
    """As the re-implementation's training script saves it: weights, filters, noise images."""
    states = {"g_ema": gan.generator.state_dict(), "d": gan.discriminator.state_dict()}
    return {name: {**state, **{key: value.float() for key, value in reference.filters(state).items()}} for name, state in states.items()}


def saved(path: Path, gan: StyleGan2, **changes: object) -> str:
    """With what such checkpoints have besides: the training's generator, optimisers, and the command line."""
    content = {
        **common_layout(gan),
        "g": gan.generator.state_dict(),
        "g_optim": {"state": {}},
        "args": argparse.Namespace(size=64),
        **changes,
    }
    torch.save(content, path)
    return str(path)


@pytest.mark.parametrize("resolution", [8, 64])
def test_a_checkpoint_of_the_common_layout_gives_its_output(resolution: int, tmp_path: Path) -> None:
    """Oracle: the published formulation on the file's own state dicts, float32, to 1e-4."""
    gan = tiny_stylegan2(resolution, channels=3)
    for network in (gan.generator, gan.discriminator):
        livened(network).float()
    place = saved(tmp_path / "model.pt", gan)
    loaded = load_gan(place)
    states = common_layout(gan)
    z = torch.randn((4, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        image = loaded.make(loaded.codes(z)).image
        torch.testing.assert_close(image, reference.generate(states["g_ema"], z), rtol=0, atol=1e-4)
        torch.testing.assert_close(loaded.view(image).logits, reference.judge(states["d"], image), rtol=1e-4, atol=1e-4)


def test_the_architecture_is_read_off_the_shapes(tmp_path: Path) -> None:
    """Oracle: the configuration that the networks were made with; where widths are capped, any base that gives the same."""
    config = StyleGan2Config(resolution=32, channels=1, latent_dim=24, mapping_layers=3, channel_base=256, channel_max=16)
    gan = build_gan(config, seed=0)
    assert isinstance(gan, StyleGan2)
    loaded = load_gan(saved(tmp_path / "model.pt", gan))
    for one, other in ((loaded.generator, gan.generator), (loaded.discriminator, gan.discriminator)):
        assert {name: tensor.shape for name, tensor in one.state_dict().items()} == {n: t.shape for n, t in other.state_dict().items()}
        assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d": {}}, "has no d, it has g, g_ema; a checkpoint with g_ema and d would be right"),
        (
            {"g_ema": {"synthesis.b4.const": torch.zeros(8, 4, 4)}},
            "another layout than the common PyTorch re-implementation's .input.input doesn't fit",
        ),
        ({"d": {"b8.conv0.weight": torch.zeros(8, 8, 3, 3)}}, "another layout"),
        ({"d": {3: torch.zeros(8)}}, "has no d, it has g, g_ema"),
        (
            {"d": {n: t.to(torch.complex64) for n, t in common_layout(tiny_stylegan2())["d"].items()}},
            "another layout than the common PyTorch re-implementation's",
        ),
    ],
)
def test_another_layout_is_refused(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    """Oracle: one line that says what doesn't fit and what would."""
    with pytest.raises(UserError, match=message) as refused:
        load_gan(saved(tmp_path / "model.pt", tiny_stylegan2(), **changes))
    assert "\n" not in str(refused.value)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    """Oracle: one line each for a text, a missing file, a folder that is no pipeline and one of another kind."""
    (tmp_path / "text.pt").write_text("not weights")
    (tmp_path / "folder").mkdir()
    (tmp_path / "ddpm").mkdir()
    (tmp_path / "ddpm" / "model_index.json").write_text('{"_class_name": "DDPMPipeline"}')
    for place, message in (
        ("text.pt", "not a checkpoint"),
        ("missing.pt", "cannot be read"),
        ("folder", "has no model_index.json"),
        ("ddpm", "is a DDPMPipeline, no GAN"),
    ):
        with pytest.raises(UserError, match=message) as refused:
            load_gan(str(tmp_path / place))
        assert "\n" not in str(refused.value)


def test_weights_that_arent_finite_are_refused(tmp_path: Path) -> None:
    """Oracle: the first name."""
    gan = tiny_stylegan2()
    gan.generator.conv1.conv.weight.data[0, 0, 0, 0, 0] = float("nan")
    with pytest.raises(UserError, match=r"aren't all finite numbers, first conv1.conv.weight"):
        load_gan(saved(tmp_path / "model.pt", gan))


@pytest.mark.parametrize("gan", [tiny_stylegan2(), tiny_fastgan()], ids=["stylegan2", "fastgan"])
def test_a_pipeline_comes_back(gan: StyleGan2, tmp_path: Path) -> None:
    """Oracle: the weights, bit for bit; mixed parts of two pipelines are refused."""
    save_gan(gan, tmp_path)
    loaded = load_gan(str(tmp_path))
    assert type(loaded) is type(gan)
    for one, other in ((loaded.generator, gan.generator), (loaded.discriminator, gan.discriminator)):
        assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


@pytest.mark.parametrize("config", [StyleGan2Config(resolution=8, channel_base=64, channel_max=8), FastGanConfig(resolution=64, width=8)])
def test_a_seed_makes_the_network(config: GanConfig) -> None:
    """Oracle: the same weights from the same seed, others from another, and PyTorch's own state as it was."""
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one, same, other = (build_gan(config, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    weights = [next(gan.generator.parameters()) for gan in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
