import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, ModelMixin, UNet2DModel
from pydantic import ValidationError
from torch import nn

from fewshot_ray.errors import UserError
from fewshot_ray.methods.registry import declared_ranges
from fewshot_ray.models.adaptor import Adaptor, AdaptorUNet2DModel
from fewshot_ray.models.class_table import with_class_table
from fewshot_ray.models.parameters import PARAMS, AdaptorConfig, LoraParamsConfig, TunedNetwork, tune
from tests.models.test_class_table import SOURCE_CLASSES, tiny_dit
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


class WiderUNet(UNet2DModel):
    """A user's own subclass."""


def adapted_unet() -> AdaptorUNet2DModel:
    """One whose adaptors have been trained: at zero they would hide what stands before them."""
    unet = AdaptorUNet2DModel.from_config(dict(tiny_unet().config)).eval()
    for adaptor in (module for module in unet.modules() if isinstance(module, Adaptor)):
        nn.init.normal_(adaptor.up.weight, std=0.1)
    return unet


NETWORKS: dict[str, Callable[[], ModelMixin]] = {
    "pixel": tiny_unet,
    "latent": lambda: tiny_unet(in_channels=4, out_channels=4),
    "subclass": lambda: WiderUNet.from_config(dict(tiny_unet().config)).eval(),
    "adapted": adapted_unet,
    "classes": lambda: tiny_unet(num_class_embeds=SOURCE_CLASSES),
    "dit": tiny_dit,
    "dit-new-table": lambda: with_class_table(tiny_dit(), 3),
}
REFUSED = [("adaptor", "subclass"), ("adaptor", "dit"), ("adaptor", "dit-new-table")]
CASES = [(name, kind) for name in PARAMS for kind in NETWORKS if (name, kind) not in REFUSED]
every_case = pytest.mark.parametrize(("name", "kind"), CASES)


def built(kind: str) -> ModelMixin:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return NETWORKS[kind]()


def tuned(name: str, kind: str = "pixel", seed: int = 0, **settings: object) -> TunedNetwork:
    return tune(built(kind), name, PARAMS[name][0](**settings), seed=seed)


def stir(network: TunedNetwork) -> None:
    """Move every trained parameter, as training would."""
    generator = torch.Generator().manual_seed(5)
    for parameter in network.trained.values():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)


def forward(network: nn.Module, kind: str = "pixel") -> torch.Tensor:
    channels = 4 if kind in ("latent", "dit", "dit-new-table") else 1
    labels = torch.tensor([0, 2]) if kind in ("classes", "dit", "dit-new-table") else None
    return network(normal(2, channels=channels), T, class_labels=labels).sample


@torch.no_grad()
def output(network: nn.Module, kind: str = "pixel") -> torch.Tensor:
    return forward(network.eval(), kind)


@every_case
def test_nothing_changes_before_training(name: str, kind: str) -> None:
    """Oracle: the source network itself: every way of choosing parameters begins at its output.

    Not bit for bit: PyTorch's CPU kernels choose an order of summation by `requires_grad`.
    """
    torch.testing.assert_close(output(tuned(name, kind).network, kind), output(built(kind), kind), atol=1e-5, rtol=1e-5)


@every_case
def test_what_is_trained(name: str, kind: str) -> None:
    """Oracle: requires_grad, by a second walk; names are unique, stable across runs and drawn from the seed."""
    first, again, other = tuned(name, kind), tuned(name, kind), tuned(name, kind, seed=1)
    assert first.trained
    assert set(map(id, first.trained.values())) == {id(p) for p in first.network.parameters() if p.requires_grad}
    assert list(first.trained) == list(again.trained)
    assert all(torch.equal(a, b) for a, b in zip(first.trained.values(), again.trained.values(), strict=True))
    if name == "lora" or (name == "adaptor" and kind != "adapted"):
        assert not all(torch.equal(a, b) for a, b in zip(first.trained.values(), other.trained.values(), strict=True))
    total = sum(p.numel() for p in first.network.parameters())
    assert first.share == sum(p.numel() for p in first.trained.values()) / total
    assert (first.share == 1) == (name == "full")


@pytest.mark.parametrize("kind", NETWORKS)
def test_bitfit_trains_all_biases_and_nothing_else(kind: str) -> None:
    """Oracle: the modules' own `bias` attributes, and a new class table's two weights."""
    network = tuned("bitfit", kind)
    biases = {id(m.bias) for m in network.network.modules() if isinstance(getattr(m, "bias", None), nn.Parameter)}
    tables = {id(p) for name, p in network.network.named_parameters() if "class_embedder" in name and kind == "dit-new-table"}
    assert len(tables) == (2 if kind == "dit-new-table" else 0)
    assert {id(p) for p in network.trained.values()} == biases | tables


@every_case
def test_gradients_reach_every_trained_parameter(name: str, kind: str) -> None:
    """Oracle: theory: after the zero-initialised parts have moved, only a softmax key's bias (which cancels) has no gradient."""
    network = tuned(name, kind)
    stir(network)
    forward(network.network, kind).square().sum().backward()
    for key, parameter in network.trained.items():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().max() > 1e-7 or key.endswith("to_k.bias"), key
    trained = {id(p) for p in network.trained.values()}
    assert all(p.grad is None for p in network.network.parameters() if id(p) not in trained)


@every_case
def test_merging_is_exact(name: str, kind: str) -> None:
    """Oracle: the tuned network's own output before merging, to 1e-5."""
    network = tuned(name, kind)
    stir(network)
    before = output(network.network, kind)
    assert (before - output(built(kind), kind)).abs().max() > 1e-3
    torch.testing.assert_close(output(network.merge(), kind), before, atol=1e-5, rtol=1e-5)


@every_case
def test_merging_leaves_an_ordinary_network(name: str, kind: str) -> None:
    """Oracle: a network of the source's class (or with adaptors), built from the merged one's configuration: parameters and modules."""
    network = tuned(name, kind)
    stir(network)
    merged, source = network.merge(), built(kind)
    assert type(merged) is (AdaptorUNet2DModel if name == "adaptor" else type(source))
    plain = type(merged).from_config(dict(merged.config))
    assert {key: value.shape for key, value in merged.state_dict().items()} == {k: v.shape for k, v in plain.state_dict().items()}
    assert [type(module) for module in merged.modules()] == [type(module) for module in plain.modules()]
    assert [len(module._forward_hooks) for module in merged.modules()] == [len(module._forward_hooks) for module in plain.modules()]


@every_case
def test_half_precision_changes_no_more_than_rounding(name: str, kind: str) -> None:
    """Oracle: the same network in float32; bfloat16 keeps 8 bits, and its gradients arrive in float32."""
    network = tuned(name, kind)
    stir(network)
    expected = forward(network.network, kind).detach()
    with torch.autocast("cpu", torch.bfloat16):
        half = forward(network.network, kind)
    assert (half - expected).norm() < 0.03 * expected.norm()
    half.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in network.trained.values())


@pytest.mark.parametrize("name", [name for name in PARAMS if name != "adaptor"])
def test_a_new_class_table_is_trained_and_kept(name: str) -> None:
    """Oracle: the rows as they were stirred: two tables of 3 classes and the null class are trained, and leave with the merged network."""
    network = tuned(name, "dit-new-table")
    stir(network)
    tables = [(key, p.detach().clone()) for key, p in network.trained.items() if "class_embedder" in key]
    assert [tuple(table.shape) for _, table in tables] == [(4, 8), (4, 8)]
    assert all(key.endswith("norm1.emb.class_embedder.embedding_table.weight") for key, _ in tables)
    merged = network.merge()
    assert merged.config.num_embeds_ada_norm == 3
    for block, (_, table) in zip(merged.transformer_blocks, tables, strict=True):
        assert torch.equal(block.norm1.emb.class_embedder.embedding_table.weight, table)


@pytest.mark.parametrize("name", ["bitfit", "lora", "oft", "boft"])
def test_a_sources_own_class_table_stays(name: str) -> None:
    """Oracle: only a new table must be learned; bitfit and peft's settings leave another as it is."""
    assert not any("class_embed" in key for kind in ("dit", "classes") for key in tuned(name, kind).trained)


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


def test_loras_switches() -> None:
    """Oracle: counted by hand: 4 projections an attention; 2 convolutions a residual block, 2 layers a feed-forward."""
    unet, dit = tuned("lora").trained, tuned("lora", "dit").trained
    attention = tuned("lora", "pixel", convolutions=False).trained
    assert len([key for key in unet if ".conv" in key]) == 2 * 2 * 8
    assert set(attention) == {key for key in unet if ".conv" not in key}
    assert set(tuned("lora", "pixel", feed_forward=False).trained) == set(unet)
    assert len(dit) == 2 * (4 + 2) * 2
    assert set(tuned("lora", "dit", feed_forward=False).trained) == {key for key in dit if ".ff." not in key}


@pytest.mark.parametrize(
    ("name", "kind", "settings", "message"),
    [
        ("oft", "dit", {"block_size": 7}, "block_size 7 doesn't divide transformer_blocks.0.attn1.to_q's width of 8; 2, 4 or 8"),
        ("oft", "pixel", {"block_size": 16}, "block_size 16 doesn't divide down_blocks.1.attentions.0.to_q's width of 8; 2, 4 or 8"),
        (
            "boft",
            "dit",
            {"block_size": 4, "butterfly_factors": 3},
            "block_size 4 times 4 (butterfly_factors 3) doesn't divide transformer_blocks.0.attn1.to_q's width of 8; 2",
        ),
        (
            "boft",
            "pixel",
            {"butterfly_factors": 4},
            "block_size 4 times 8 (butterfly_factors 4) doesn't divide down_blocks.1.attentions.0.to_q's width of 8; "
            "fewer butterfly_factors",
        ),
        ("adaptor", "dit", {}, "DiTTransformer2DModel has no residual convolution blocks to put adaptors beside; lora, difffit or full"),
        (
            "adaptor",
            "subclass",
            {},
            "WiderUNet is no plain UNet2DModel, so a model with adaptors would compute something else; lora, difffit or full",
        ),
    ],
)
def test_refusals(name: str, kind: str, settings: dict[str, int], message: str) -> None:
    """Oracle: the rule for messages: one line, the field, the value, what would be right."""
    with pytest.raises(UserError) as refusal:
        tuned(name, kind, **settings)
    assert str(refusal.value) == f"train.params.{name}: {message} would be right"


@pytest.mark.parametrize(
    ("name", "settings", "right"),
    [
        ("lora", {"convolutions": False}, "convolutions: true"),
        ("oft", {}, "lora, or boft with convolutions: true,"),
        ("boft", {}, "convolutions: true"),
    ],
)
def test_a_unet_without_attention(name: str, settings: dict[str, bool], right: str) -> None:
    """Oracle: the rule for messages: one line, the field, what would be right."""
    unet = tiny_unet(down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"), add_attention=False)
    with pytest.raises(UserError) as refusal:
        tune(unet, name, PARAMS[name][0](**settings), seed=0)
    assert str(refusal.value) == f"train.params.{name}: the model has no attention; {right} would be right"


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
