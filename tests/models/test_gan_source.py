from __future__ import annotations

import argparse
import pickle
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fewshot_ray.errors import UserError
from fewshot_ray.models.gan import StyleGan2
from fewshot_ray.models.gan_source import FastGanConfig, GanConfig, StyleGan2Config, build_gan, kind_of, load_gan, save_gan
from fewshot_ray.models.source import load_backbone
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


def test_a_checkpoint_from_before_noise_was_kept(tmp_path: Path) -> None:
    """As published (550000.pt, FFHQ at 256x256). Oracle: the published formulation with the noise that was drawn; the same each time."""
    gan = tiny_stylegan2(64, channels=3)
    for network in (gan.generator, gan.discriminator):
        livened(network).float()
    states = common_layout(gan)
    without = {name: tensor for name, tensor in states["g_ema"].items() if not name.startswith("noises.")}
    assert len(states["g_ema"]) - len(without) == 9
    loaded, again = (load_gan(saved(tmp_path / name, gan, g_ema=without, g=without)) for name in ("550000.pt", "again.pt"))
    own = loaded.generator.state_dict()
    assert all(torch.equal(tensor, again.generator.state_dict()[name]) for name, tensor in own.items())
    noises = {name: tensor for name, tensor in own.items() if name.startswith("noises.")}
    assert all(0.5 < float(tensor.std()) < 1.5 for tensor in noises.values())
    z = torch.randn((4, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        image = loaded.make(loaded.codes(z)).image
        torch.testing.assert_close(image, reference.generate({**without, **noises}, z), rtol=0, atol=1e-4)


def without(part: str, name: str) -> dict[str, object]:
    return {part: {key: tensor for key, tensor in common_layout(tiny_stylegan2())[part].items() if key != name}}


COMMON = "a StyleGAN2's checkpoint of the common PyTorch re-implementation"
OTHERS = {"g": None, "d": None}
NVIDIA = {"mapping.fc0.weight": torch.zeros(8, 8), "synthesis.b4.const": torch.zeros(8, 4, 4)}
FASTGAN = {"module.init.init.0.weight_orig": torch.zeros(8, 8, 4, 4), "module.feat_8.1.weight_orig": torch.zeros(8, 8, 3, 3)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d": {}}, f"is {COMMON} without d (it has g, g_ema); one with g_ema and d would be right"),
        ({"d": {3: torch.zeros(8)}}, "without d (it has g, g_ema)"),
        ({"g_ema": None}, "without g_ema (it has d, g)"),
        ({**OTHERS, "g_ema": NVIDIA}, "is a StyleGAN's checkpoint with the names of NVIDIA's code; a StyleGAN2's weights in the common"),
        (
            {"g_ema": [1.0], "g": FASTGAN, "d": NVIDIA | {"mapping.fc0.weight": None}},
            "is a FastGAN's checkpoint by its authors' code; this",
        ),
        (
            {**OTHERS, "g_ema": {"G.conv.weight": torch.zeros(8)}},
            "of a layout that isn't known (its tensors begin with g_ema/G.conv.weight)",
        ),
        ({**OTHERS, "g_ema": None}, "of a layout that isn't known (it has no state dict)"),
        ({"d": {"b8.conv0.weight": torch.zeros(8, 8, 3, 3)}}, "in d, convs.0.0.weight is missing"),
        (without("g_ema", "convs.0.noise.weight"), "in g_ema, convs.0.noise.weight is missing"),
        (without("g_ema", "noises.noise_1"), "in g_ema, noises.noise_1 is missing"),
        ({"d": {**common_layout(tiny_stylegan2())["d"], "mapping.0": torch.zeros(1)}}, "in d, mapping.0 belongs to none of its layers"),
        (
            {"d": {**common_layout(tiny_stylegan2())["d"], "final_conv.1.bias": torch.zeros(3)}},
            "in d, final_conv.1.bias is 3 where 16 would",
        ),
        (
            {"d": {n: t.to(torch.complex64) for n, t in common_layout(tiny_stylegan2())["d"].items()}},
            "no floating-point numbers (complex64)",
        ),
    ],
)
def test_what_doesnt_fit_is_named(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    """Oracle: one line that says what it is, what doesn't fit and what would."""
    with pytest.raises(UserError, match=re.escape(message)) as refused:
        load_gan(saved(tmp_path / "model.pt", tiny_stylegan2(), **changes))
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith("source.gan: ")
    assert "would be right" in str(refused.value)


def test_one_networks_weights_alone_are_named(tmp_path: Path) -> None:
    """Oracle: that it is one network's."""
    torch.save(common_layout(tiny_stylegan2())["g_ema"], tmp_path / "generator.bin")
    with pytest.raises(UserError, match=r"without g_ema \(it is one network's alone\)"):
        load_gan(str(tmp_path / "generator.bin"))


def test_a_gan_of_another_kind_is_named(tmp_path: Path) -> None:
    """Oracle: what it is, and the field that takes it; asked for as what it is, it is read, whatever its file's ending."""
    file = saved(tmp_path / "550000.weights", tiny_stylegan2())
    for gan, name in ((tiny_stylegan2(), "one"), (tiny_fastgan(), "other")):
        save_gan(gan, tmp_path / name)
    for place, kind, other, message in (
        (file, "stylegan2", "fastgan", "is a checkpoint of a StyleGan2; source.gan.stylegan2.weights for it, or here a FastGAN's export"),
        (str(tmp_path / "one"), "stylegan2", "fastgan", "is an exported StyleGan2; source.gan.stylegan2.weights for it"),
        (
            str(tmp_path / "other"),
            "fastgan",
            "stylegan2",
            "is an exported FastGan; source.gan.fastgan.weights for it, or here a StyleGAN2's",
        ),
    ):
        assert kind_of(load_gan(place, kind)) == kind
        with pytest.raises(UserError, match=re.escape(message)) as refused:
            load_gan(place, other)
        assert str(refused.value).startswith(f"source.gan.{other}.weights: {place} ")
    with pytest.raises(UserError, match=r"source.model: .*one is an exported GAN; as `weights` of its architecture under source.gan"):
        load_backbone(str(tmp_path / "one"))


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    """Oracle: one line each for a text, a missing file, a folder that is no pipeline and one of another kind."""
    (tmp_path / "text.pt").write_text("not weights")
    (tmp_path / "folder").mkdir()
    (tmp_path / "ddpm").mkdir()
    (tmp_path / "ddpm" / "model_index.json").write_text('{"_class_name": "DDPMPipeline"}')
    (tmp_path / "ffhq.pkl").write_bytes(pickle.dumps({"G_ema": argparse.Namespace()}))
    for place, message in (
        ("text.pt", "not a checkpoint"),
        ("missing.pt", "cannot be read"),
        ("missing", "no folder"),
        ("folder", "has no model_index.json"),
        ("ddpm", "is a DDPMPipeline, no GAN"),
        ("ffhq.pkl", "is a pickle of whole networks, as NVIDIA's code saves them"),
    ):
        with pytest.raises(UserError, match=message) as refused:
            load_gan(str(tmp_path / place), "stylegan2")
        assert re.fullmatch(r"source\.gan\.stylegan2\.weights: [^\n]+", str(refused.value))


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
