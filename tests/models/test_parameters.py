import copy
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from pydantic import ValidationError
from torch import nn

from fewshot_ray.errors import UserError
from fewshot_ray.methods.registry import declared_ranges
from fewshot_ray.models.adaptor import Adaptor, AdaptorUNet2DModel
from fewshot_ray.models.parameters import PARAMS, AdaptorConfig, LoraParamsConfig, TunedNetwork, tune
from tests.tiny_diffusion import normal, tiny_unet

T = torch.tensor([3, 700])
CELEBA_HQ_256 = {  # google/ddpm-celebahq-256's configuration
    "sample_size": 256,
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 2,
    "block_out_channels": (128, 128, 256, 256, 512, 512),
    "attention_head_dim": None,
    "down_block_types": ("DownBlock2D", "DownBlock2D", "DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D"),
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}


def tuned(name: str, seed: int = 0) -> TunedNetwork:
    return tune(tiny_unet(), name, PARAMS[name][0](), seed=seed)


def stir(network: TunedNetwork) -> None:
    """Move every trained parameter, as training would."""
    generator = torch.Generator().manual_seed(5)
    for parameter in network.trained.values():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)


@torch.no_grad()
def output(network: nn.Module) -> torch.Tensor:
    return network.eval()(normal(2), T).sample


@pytest.mark.parametrize("name", PARAMS)
def test_nothing_changes_before_training(name: str) -> None:
    """Oracle: the source network itself: every way of choosing parameters begins at its output.

    Not bit for bit: PyTorch's CPU kernels choose an order of summation by `requires_grad`.
    """
    torch.testing.assert_close(output(tuned(name).network), output(tiny_unet()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", PARAMS)
def test_what_is_trained(name: str) -> None:
    """Oracle: requires_grad, by a second walk; names are unique, stable across runs and drawn from the seed."""
    first, again, other = tuned(name), tuned(name), tuned(name, seed=1)
    assert set(map(id, first.trained.values())) == {id(p) for p in first.network.parameters() if p.requires_grad}
    assert list(first.trained) == list(again.trained)
    assert all(torch.equal(a, b) for a, b in zip(first.trained.values(), again.trained.values(), strict=True))
    if name in ("adaptor", "lora"):
        assert not all(torch.equal(a, b) for a, b in zip(first.trained.values(), other.trained.values(), strict=True))
    total = sum(p.numel() for p in first.network.parameters())
    assert first.share == sum(p.numel() for p in first.trained.values()) / total
    assert (first.share == 1) == (name == "full")


def test_bitfit_trains_all_biases_and_nothing_else() -> None:
    """Oracle: the modules' own `bias` attributes."""
    network = tuned("bitfit")
    biases = {id(m.bias) for m in network.network.modules() if isinstance(getattr(m, "bias", None), nn.Parameter)}
    assert {id(p) for p in network.trained.values()} == biases


@pytest.mark.parametrize("name", PARAMS)
def test_gradients_reach_every_trained_parameter(name: str) -> None:
    """Oracle: theory: after the zero-initialised parts have moved, only a softmax key's bias (which cancels) has no gradient."""
    network = tuned(name)
    stir(network)
    network.network(normal(2), T).sample.square().sum().backward()
    for key, parameter in network.trained.items():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().max() > 1e-7 or key.endswith("to_k.bias"), key
    trained = {id(p) for p in network.trained.values()}
    assert all(p.grad is None for p in network.network.parameters() if id(p) not in trained)


@pytest.mark.parametrize("name", PARAMS)
def test_merging_is_exact(name: str) -> None:
    """Oracle: the tuned network's own output before merging, to 1e-5."""
    network = tuned(name)
    stir(network)
    before = output(network.network)
    assert (before - output(tiny_unet())).abs().max() > 1e-3
    merged = network.merge()
    assert isinstance(merged, UNet2DModel)
    torch.testing.assert_close(output(merged), before, atol=1e-5, rtol=1e-5)


def test_lora_merges_into_an_ordinary_network() -> None:
    """Oracle: the source's parameter names, and W + (alpha / r) B A by hand for one projection."""
    source = tiny_unet()
    network = tune(copy.deepcopy(source), "lora", LoraParamsConfig(rank=2, alpha=6.0), seed=0)
    stir(network)
    key = "mid_block.attentions.0.to_q"
    a, b = (next(p for n, p in network.trained.items() if key in n and f"lora_{part}" in n).detach().clone() for part in "AB")
    merged = network.merge()
    assert list(merged.state_dict()) == list(source.state_dict())
    torch.testing.assert_close(merged.state_dict()[f"{key}.weight"], source.state_dict()[f"{key}.weight"] + 3.0 * b @ a)


def test_lora_without_attention_and_convolutions_is_refused() -> None:
    """Oracle: the rule for messages: one line, the field, what would be right."""
    unet = tiny_unet(down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"), add_attention=False)
    with pytest.raises(UserError, match=r"^train\.params\.lora: .*would be right$"):
        tune(unet, "lora", LoraParamsConfig(convolutions=False), seed=0)


def test_adaptor_by_hand() -> None:
    """Oracle: the bottleneck written out: mean of 2x2 blocks, convolution, norm, silu, 1x1, each value repeated 2x2; zero at first."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        adaptor = Adaptor(3, 5, pool=2, width=4)
    x = normal(2, channels=3)
    assert torch.equal(adaptor(x), torch.zeros(2, 5, 8, 8))
    nn.init.normal_(adaptor.up.weight)
    pooled = x.reshape(2, 3, 4, 2, 4, 2).mean(dim=(3, 5))
    hidden = adaptor.down(pooled)
    hidden = (hidden - hidden.mean(dim=(1, 2, 3), keepdim=True)) / (hidden.var(dim=(1, 2, 3), keepdim=True, correction=0) + 1e-5).sqrt()
    hidden = hidden * torch.sigmoid(hidden)
    expected = torch.einsum("oc,bchw->bohw", adaptor.up.weight[:, :, 0, 0], hidden).repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(adaptor(x), expected, atol=1e-5, rtol=1e-5)
    assert adaptor(normal(1, channels=3, size=1)).shape == (1, 5, 1, 1)


def test_at_zero_the_adaptors_last_layer_alone_has_a_gradient() -> None:
    """Oracle: theory: with psi's last layer at zero nothing before it can move the output, and it must not be stuck itself."""
    network = tuned("adaptor")
    network.network(normal(2), T).sample.square().sum().backward()
    for key, parameter in network.trained.items():
        moved = parameter.grad is not None and bool(parameter.grad.abs().max() > 0)
        assert moved == (".up." in key), key


def test_adaptors_share_of_the_papers_network() -> None:
    """Oracle: counted by hand: 1.02 % of the parameters at (c, d) = (4, 8), where ANT's text has about 1.3 %."""
    with torch.device("meta"):
        network = tune(UNet2DModel(**CELEBA_HQ_256), "adaptor", AdaptorConfig(pool=4, width=8), seed=0)
    adaptors = [m for m in network.network.modules() if isinstance(m, Adaptor)]
    assert len(adaptors) == 6 * 2 + 2 + 6 * 3
    by_hand = sum(9 * 8 * m.down.in_channels + 8 + 16 + 9 * m.up.out_channels for m in adaptors)
    assert sum(p.numel() for p in network.trained.values()) == by_hand
    assert network.share == pytest.approx(0.01018, abs=1e-5)


def test_an_adapted_network_goes_through_diffusers_own_files(tmp_path: Path) -> None:
    """Oracle: diffusers: `DDPMPipeline.save_pretrained` and `from_pretrained` give back the class, the settings and the output."""
    network = tune(tiny_unet(), "adaptor", AdaptorConfig(pool=2, width=5), seed=0)
    stir(network)
    DDPMPipeline(network.merge(), DDPMScheduler(num_train_timesteps=77)).save_pretrained(tmp_path)
    pipeline = DDPMPipeline.from_pretrained(tmp_path)
    assert isinstance(pipeline.unet, AdaptorUNet2DModel)
    assert (pipeline.unet.config.adaptor_pool, pipeline.unet.config.adaptor_width) == (2, 5)
    assert pipeline.scheduler.config.num_train_timesteps == 77
    torch.testing.assert_close(output(pipeline.unet), output(network.network), atol=1e-5, rtol=1e-5)
    saved, loaded = network.network.state_dict(), pipeline.unet.state_dict()
    assert list(saved) == list(loaded)
    assert all(torch.equal(saved[key], loaded[key]) for key in saved)


def test_an_adapted_source_is_tuned_further() -> None:
    """Oracle: its own adaptors are trained on, not doubled; other sizes are refused in one line."""
    network = tune(tiny_unet(), "adaptor", AdaptorConfig(pool=2, width=5), seed=0)
    stir(network)
    before = output(network.network)
    again = tune(network.merge(), "adaptor", AdaptorConfig(pool=2, width=5), seed=0)
    assert list(again.trained) == list(network.trained)
    assert torch.equal(output(again.network), before)
    with pytest.raises(UserError, match=r"^train\.params\.adaptor: .* adaptors already .*would be right$"):
        tune(network.merge(), "adaptor", AdaptorConfig(), seed=0)


@pytest.mark.parametrize("name", PARAMS)
def test_settings(name: str) -> None:
    """Oracle: the declared ranges: the default lies inside, both ends are valid; unknown keys and infinities are refused."""
    config = PARAMS[name][0]
    for key, declared in declared_ranges(config).items():
        assert declared.contains(getattr(config(), key))
        for end in declared.endpoints():
            assert getattr(config(**{key: end}), key) == end
    with pytest.raises(ValidationError):
        config(wrong=1)
    with pytest.raises(ValidationError):
        LoraParamsConfig(alpha=float("inf"))
