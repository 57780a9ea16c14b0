from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DiffusionPipeline, UNet2DModel
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from fewshot_ray.errors import UserError
from fewshot_ray.models.adm import AdmConfig, check_flags, load_adm
from fewshot_ray.models.adm_unet import AdmUNet2DModel
from fewshot_ray.models.schedule import alphas_cumprod
from tests.models.adm_reference import AdmReference, seeded

SIZE = 32


@dataclass(frozen=True)
class Layout:
    """A reference network and the original flags that stand for it."""

    reference: dict[str, Any]
    flags: dict[str, Any]
    network: type[UNet2DModel] = UNet2DModel


P2 = Layout(
    {
        "width": 32,
        "multiples": (1, 1, 2),
        "layers": 1,
        "attention_levels": (1,),
        "head_channels": 16,
        "residual_resampling": True,
        "channels_out": 6,
    },
    {
        "num_channels": 32,
        "channel_mult": "1,1,2",
        "num_res_blocks": 1,
        "attention_resolutions": "16",
        "num_head_channels": 16,
        "resblock_updown": True,
        "learn_sigma": True,
    },
)
SEVERAL_WIDTHS = Layout(
    {"width": 32, "multiples": (1, 2, 3), "layers": 1, "attention_levels": (0, 1, 2), "heads": 4},
    {"num_channels": 32, "channel_mult": "1,2,3", "num_res_blocks": 1, "attention_resolutions": "32,16,8"},
    AdmUNet2DModel,
)
HALF_FIRST = Layout(
    {
        "width": 64,
        "multiples": (0.5, 1, 1),
        "layers": 2,
        "attention_levels": (1, 2),
        "head_channels": 32,
        "residual_resampling": True,
        "channels_out": 6,
    },
    {
        "num_channels": 64,
        "channel_mult": "0.5,1,1",
        "attention_resolutions": "16,8",
        "num_head_channels": 32,
        "resblock_updown": True,
        "learn_sigma": True,
    },
    AdmUNet2DModel,
)
HALF_FIRST_HEADS = Layout(
    {**HALF_FIRST.reference, "head_channels": None, "heads": 2, "multiples": (0.5, 1, 2)},
    {**HALF_FIRST.flags, "channel_mult": "0.5,1,2", "num_head_channels": -1, "num_heads": 2},
    AdmUNet2DModel,
)
LAYOUTS = {
    "p2": P2,
    "original_256": Layout(
        {**P2.reference, "multiples": (1, 1, 2, 2, 4, 4), "layers": 2, "attention_levels": (3, 4, 5)},
        {**P2.flags, "image_size": 256, "channel_mult": "", "num_res_blocks": 2, "attention_resolutions": "32,16,8"},
    ),
    "default_64": Layout(
        {**P2.reference, "multiples": (1, 2, 3, 4), "attention_levels": (2, 3)},
        {**P2.flags, "image_size": 64, "channel_mult": "", "attention_resolutions": "16,8"},
    ),
    "new_attention_order": Layout({**P2.reference, "new_order": True}, {**P2.flags, "use_new_attention_order": True}),
    "convolutions_resample": Layout({**P2.reference, "residual_resampling": False}, {**P2.flags, "resblock_updown": False}),
    "no_scale_shift": Layout({**P2.reference, "scale_shift": False}, {**P2.flags, "use_scale_shift_norm": False}),
    "attention_in_the_middle_only": Layout({**P2.reference, "attention_levels": ()}, {**P2.flags, "attention_resolutions": "5"}),
    "one_level": Layout(
        {**P2.reference, "multiples": (1,), "attention_levels": (0,)}, {**P2.flags, "channel_mult": 1, "attention_resolutions": 32}
    ),
    "heads_at_one_width": Layout(
        {**P2.reference, "multiples": (1, 2, 2), "head_channels": None, "heads": 4},
        {**P2.flags, "channel_mult": "1,2,2", "num_head_channels": -1, "num_heads": 4},
    ),
    "heads_at_several_widths": SEVERAL_WIDTHS,
    "heads_at_several_widths_new_order": Layout(
        {**SEVERAL_WIDTHS.reference, "new_order": True}, {**SEVERAL_WIDTHS.flags, "use_new_attention_order": True}, AdmUNet2DModel
    ),
    "half_first": HALF_FIRST,
    "half_first_heads": HALF_FIRST_HEADS,
    "half_first_convolutions": Layout(
        {**HALF_FIRST.reference, "residual_resampling": False, "scale_shift": False},
        {**HALF_FIRST.flags, "resblock_updown": False, "use_scale_shift_norm": False},
        AdmUNet2DModel,
    ),
}
Save = Callable[..., AdmConfig]


def reference(layout: Layout) -> AdmReference:
    network = seeded(AdmReference(**layout.reference), seed=len(layout.reference["multiples"]))
    assert isinstance(network, AdmReference)
    return network


def inputs() -> tuple[Tensor, Tensor]:
    """Of 32x32 at every `image_size`, which only says where the attention is: the networks are convolutional."""
    return torch.randn((2, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(5)), torch.tensor([3, 871])


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """The layout's reference, saved as the original saves it, and its flags; `edit` changes the state dict, `flags` the flags."""

    def save(layout: Layout = P2, *, edit: Callable[[dict[str, Tensor]], object] = lambda state: None, **flags: object) -> AdmConfig:
        state = reference(layout).state_dict()
        edit(state)
        torch.save(state, tmp_path / "ema.pt")
        return AdmConfig(weights=str(tmp_path / "ema.pt"), **{"image_size": SIZE, **layout.flags, **flags})

    return save


def refused(config: AdmConfig, field: str) -> str:
    with pytest.raises(UserError) as caught:
        load_adm(config)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"source.adm.{field}: ")
    assert message.endswith("would be right")
    return message


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@torch.no_grad()
def test_outputs(save: Save, layout: Layout) -> None:
    """Oracle: the second version of the original network, same random weights; float64 tells error from rounding."""
    unet, _ = load_adm(save(layout))
    x, t = inputs()
    expected = reference(layout)(x, t)
    assert 0.2 < float(expected.std()) < 5
    assert type(unet) is layout.network
    assert not unet.training
    assert unet.dtype == torch.float32
    assert {parameter.device.type for parameter in unet.parameters()} == {"cpu"}
    assert all(parameter.requires_grad for parameter in unet.parameters())
    torch.testing.assert_close(unet(x, t).sample, expected, atol=1e-5, rtol=0)
    x, t = x[1:].double(), t[1:]
    torch.testing.assert_close(unet.double()(x, t).sample, reference(layout).double()(x, t), atol=1e-11, rtol=0)


@pytest.mark.parametrize(
    ("layout", "wrong"),
    [
        (P2, {"use_new_attention_order": True}),
        (P2, {"num_head_channels": 32}),
        (SEVERAL_WIDTHS, {"num_heads": 2}),
        (SEVERAL_WIDTHS, {"num_head_channels": 8}),
    ],
)
@torch.no_grad()
def test_flags_the_weights_can_not_show(save: Save, layout: Layout, wrong: dict[str, object]) -> None:
    """Limiting case: with one of them wrong, the weights still fit and the output is another."""
    x, t = inputs()
    assert float((load_adm(save(layout, **wrong))[0](x, t).sample - reference(layout)(x, t)).abs().max()) > 0.05


@pytest.mark.parametrize("layout", [SEVERAL_WIDTHS, HALF_FIRST, HALF_FIRST_HEADS])
@torch.no_grad()
def test_own_network_round_trip(save: Save, tmp_path: Path, layout: Layout) -> None:
    """Oracle: the outputs before saving, to the bit; both of diffusers' ways to load."""
    unet, _ = load_adm(save(layout))
    unet.save_pretrained(tmp_path / "unet")
    x, t = inputs()
    for low_memory in (False, True):
        again = AdmUNet2DModel.from_pretrained(tmp_path / "unet", low_cpu_mem_usage=low_memory)
        assert torch.equal(again(x, t).sample, unet(x, t).sample)
    assert dict(again.config)["attention_heads"] == unet.config.attention_heads


@torch.no_grad()
def test_pipelines(save: Save, tmp_path: Path) -> None:
    """Oracle: the outputs before saving: a plain network in a pipeline, and our own, loaded by the one file shipped beside its weights."""
    x, t = inputs()
    unet, scheduler = load_adm(save())
    DDPMPipeline(unet, scheduler).save_pretrained(tmp_path / "plain")
    plain = DDPMPipeline.from_pretrained(tmp_path / "plain")
    assert torch.equal(plain.unet(x, t).sample, unet(x, t).sample)
    plain.set_progress_bar_config(disable=True)
    assert plain(num_inference_steps=2, output_type="np").images.shape == (1, SIZE, SIZE, 3)

    unet, scheduler = load_adm(save(HALF_FIRST))
    DDPMPipeline(unet, scheduler).save_pretrained(tmp_path / "own")
    (tmp_path / "own/unet/adm_unet.py").write_text((files("fewshot_ray.models") / "adm_unet.py").read_text())
    index = json.loads((tmp_path / "own/model_index.json").read_text())
    (tmp_path / "own/model_index.json").write_text(json.dumps({**index, "unet": ["adm_unet", "AdmUNet2DModel"]}))
    own = DiffusionPipeline.from_pretrained(tmp_path / "own", trust_remote_code=True)
    assert type(own.unet) is not AdmUNet2DModel
    assert torch.equal(own.unet(x, t).sample, unet(x, t).sample)


def test_own_network_refuses_heads_that_do_not_divide() -> None:
    """Oracle: 32 channels have no 5 heads."""
    with pytest.raises(ValueError, match="5 attention heads don't divide"):
        AdmUNet2DModel(attention_heads=5, block_out_channels=(32,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))


@torch.no_grad()
def test_files(save: Save, tmp_path: Path) -> None:
    """Oracle: the weights rounded to float16 by hand; the same in safetensors; the caller's random state stays."""
    config = save(edit=lambda state: state.update({name: tensor.half() for name, tensor in state.items()}))
    before = torch.random.get_rng_state()
    unet, _ = load_adm(config)
    assert torch.equal(before, torch.random.get_rng_state())
    rounded = reference(P2).half().float()
    x, t = inputs()
    torch.testing.assert_close(unet(x, t).sample, rounded(x, t), atol=1e-5, rtol=0)
    save_file(rounded.half().state_dict(), tmp_path / "ema.safetensors")
    again, _ = load_adm(config.model_copy(update={"weights": str(tmp_path / "ema.safetensors")}))
    assert torch.equal(again(x, t).sample, unet(x, t).sample)


@pytest.mark.parametrize("steps", [1000, 250])
@pytest.mark.parametrize("noise_schedule", ["linear", "cosine"])
def test_schedules(save: Save, noise_schedule: str, steps: int) -> None:
    """Oracle: alpha_bar in NumPy float64: Ho et al. 2020's betas times 1000 / T; Nichol & Dhariwal 2021, eq. 17, beta at most .999."""
    _, scheduler = load_adm(save(noise_schedule=noise_schedule, diffusion_steps=steps))
    if noise_schedule == "linear":
        betas = np.linspace(1e-4, 0.02, steps) * 1000 / steps
    else:
        f = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - f[1:] / f[:-1], 0.999)
    np.testing.assert_allclose(scheduler.betas.double().numpy(), betas, rtol=1e-5)
    np.testing.assert_allclose(alphas_cumprod(scheduler.config), np.cumprod(1 - betas), rtol=1e-6)
    assert scheduler.config.num_train_timesteps == steps


def test_prediction_and_variance(save: Save) -> None:
    """Oracle: the flags' meaning."""
    _, scheduler = load_adm(save())
    assert (scheduler.config.prediction_type, scheduler.config.variance_type) == ("epsilon", "learned_range")
    _, scheduler = load_adm(save(SEVERAL_WIDTHS, predict_xstart=True))
    assert (scheduler.config.prediction_type, scheduler.config.variance_type) == ("sample", "fixed_small")


def test_pasted_flags() -> None:
    """Oracle: the flags the P2 and guided-diffusion READMEs sample with; the defaults are guided-diffusion's."""
    pasted = AdmConfig(
        weights="ffhq_p2.pt",
        attention_resolutions=16,  # what YAML makes of it
        class_cond=False,
        diffusion_steps=1000,
        dropout=0,
        image_size=256,
        learn_sigma=True,
        noise_schedule="linear",
        num_channels=128,
        num_res_blocks=1,
        num_head_channels=64,
        resblock_updown=True,
        use_fp16=False,
        use_scale_shift_norm=True,
        timestep_respacing=250,
        rescale_learned_sigmas=True,
        rescale_timesteps=True,  # by 1000 / 1000
        p2_gamma=1,
        p2_k=1,
    )
    check_flags(pasted)
    assert (pasted.widths, pasted.attention_levels) == ((128, 128, 256, 256, 512, 512), {4})
    defaults = AdmConfig(weights="model.pt")
    check_flags(defaults)
    assert (defaults.widths, defaults.attention_levels) == ((128, 256, 384, 512), {2, 3})
    large = AdmConfig(weights="model.pt", image_size=512, num_channels=256, attention_resolutions="32,16,8")
    assert (large.widths, large.attention_levels) == ((128, 256, 256, 512, 512, 1024, 1024), {4, 5, 6})


@pytest.mark.parametrize(
    ("flags", "field", "message"),
    [
        ({"class_cond": True}, "class_cond", "class-conditional ADM models aren't supported"),
        ({"rescale_timesteps": True, "diffusion_steps": 4000}, "rescale_timesteps", "isn't supported with 4000 steps"),
        ({"num_heads_upsample": 2}, "num_heads_upsample", "2 isn't supported; -1"),
        ({"diffusion_steps": 20}, "diffusion_steps", "more than 20"),
        ({"image_size": 96}, "image_size", "96 has no default channel_mult; one of 64, 128, 256, 512, or a channel_mult,"),
        ({"image_size": 100, "channel_mult": "1,1,1,1"}, "image_size", "100 can't be halved 3 times; a multiple of 8"),
        ({"channel_mult": "(1, 2)"}, "channel_mult", "'1,2,3,4', for one"),
        ({"channel_mult": "1,0"}, "channel_mult", "'1,0' is no list of multiples"),
        ({"attention_resolutions": "16;8"}, "attention_resolutions", "'16,8', for one"),
        ({"attention_resolutions": "0"}, "attention_resolutions", "'0' is no list of resolutions"),
        ({"num_channels": 48}, "num_channels", "48 makes a level of 48 channels; multiples of 32"),
        ({"num_heads": 5}, "num_heads", "5 doesn't divide the 384 channels"),
        ({"num_head_channels": 96}, "num_head_channels", "96 doesn't divide the 512 channels"),
        ({"num_head_channels": 0}, "num_head_channels", "0 doesn't divide"),
        ({"num_res_blocks": 1000}, "num_res_blocks", "1000 is beyond any network; at most 64"),
        ({"diffusion_steps": 10**9}, "diffusion_steps", "beyond any network"),
        ({"channel_mult": "9" * 400}, "channel_mult", "is no list of multiples"),
        ({"channel_mult": ",".join("1" * 30), "image_size": 2**12}, "channel_mult", "makes 30 levels"),
        ({"attention_resolutions": "9" * 5000}, "attention_resolutions", "is no list of resolutions"),
    ],
)
def test_flags_refused(flags: dict[str, object], field: str, message: str) -> None:
    """Oracle: the rule for messages; no file is needed to tell."""
    assert message in refused(AdmConfig(weights="/nowhere/model.pt", **flags), field)


@pytest.mark.parametrize("flags", [{"chanels": 1}, {"image_size": "64"}, {"noise_schedule": "sigmoid"}, {"channel_mult": [1, 2]}])
def test_unknown_flags_and_kinds(flags: dict[str, object]) -> None:
    """Oracle: pydantic, as for all settings."""
    with pytest.raises(ValidationError):
        AdmConfig(weights="model.pt", **flags)


@pytest.mark.parametrize(
    ("layout", "wrong", "field", "message"),
    [
        (P2, {"learn_sigma": False}, "learn_sigma", "whose out.2 has 6 channels (0 names missing, 0 unexpected, 2 of another shape, first"),
        (SEVERAL_WIDTHS, {"learn_sigma": True}, "learn_sigma", "whose out.2 has 3 channels"),
        (P2, {"num_channels": 64}, "num_channels", "; 32 would be right"),
        (P2, {"use_scale_shift_norm": False}, "use_scale_shift_norm", "has 128 channels in a block of 64"),
        (LAYOUTS["no_scale_shift"], {"use_scale_shift_norm": True}, "use_scale_shift_norm", "; false would be right"),
        (P2, {"resblock_updown": False}, "resblock_updown", "which change resolution by residual blocks"),
        (LAYOUTS["convolutions_resample"], {"resblock_updown": True}, "resblock_updown", "by convolutions"),
        (P2, {"num_res_blocks": 2}, "num_res_blocks", "whose 3 levels have 6 output_blocks"),
        (P2, {"channel_mult": "1,2"}, "channel_mult", "; '1,1,2' would be right"),
        (HALF_FIRST, {"channel_mult": "1,1,1"}, "channel_mult", "; '0.5,1,1' would be right"),
        (LAYOUTS["default_64"], {"image_size": 128}, "image_size", "; 64 would be right"),
        (P2, {"image_size": 64, "channel_mult": ""}, "channel_mult", "; '1,1,2' would be right"),
        (P2, {"attention_resolutions": "32,16"}, "attention_resolutions", "; '16' would be right"),
        (
            HALF_FIRST,
            {"attention_resolutions": "8"},
            "attention_resolutions",
            "(10 names missing, 40 unexpected, 0 of another shape, first output_blocks.5.1.emb_layers.1.bias); '16,8' would",
        ),
        (LAYOUTS["attention_in_the_middle_only"], {"attention_resolutions": "8"}, "attention_resolutions", "in the middle only"),
    ],
)
def test_flags_that_do_not_fit_the_weights(save: Save, layout: Layout, wrong: dict[str, object], field: str, message: str) -> None:
    """Oracle: the one flag that was changed; its right value is the one the weights were saved with."""
    assert message in refused(save(layout, **wrong), field)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda state: state.pop("out.0.bias"), "(1 names missing, 0 unexpected, 0 of another shape, first out.0.bias)"),
        (
            lambda state: state.update({"extra.weight": torch.zeros(2)}),
            "0 names missing, 1 unexpected, 0 of another shape, first extra.weight",
        ),
        (lambda state: state.update({"out.0.bias": torch.zeros(2)}), "1 of another shape, first out.0.bias"),
        (lambda state: state.update({"out.0.bias": torch.tensor(0.0)}), "1 of another shape, first out.0.bias"),
        (lambda state: state.update({"label_emb.weight": torch.zeros(10, 128)}), "has label_emb.weight: class-conditional"),
        (lambda state: state.update({"input_blocks.0.0.weight": torch.zeros(32, 6, 3, 3)}), "takes 6 channels and gives 6"),
        (lambda state: state.update({"out.2.weight": torch.zeros(9, 32, 3, 3)}), "takes 3 channels and gives 9"),
        (lambda state: state.update({"out.0.bias": torch.zeros(32, dtype=torch.int8)}), "has out.0.bias in int8"),
        (lambda state: state.update({"out.0.bias": torch.zeros(32, dtype=torch.complex64)}), "has out.0.bias in complex64"),
        (lambda state: state.pop("output_blocks.0.0.in_layers.0.weight"), "another layout: no output_blocks.0.0.in_layers.0.weight"),
    ],
)
def test_weights_that_fit_no_flags(save: Save, edit: Callable[[dict[str, Tensor]], object], message: str) -> None:
    """Oracle: the name that was taken away, added or reshaped by hand."""
    assert message in refused(save(edit=edit), "weights")


def test_other_files(save: Save, tmp_path: Path) -> None:
    """Oracle: the rule for messages: files of other networks, wrapped state dicts, damaged and missing files."""
    config = save()

    def message(content: object) -> str:
        torch.save(content, tmp_path / "ema.pt")
        return refused_file()

    def refused_file() -> str:
        with pytest.raises(UserError, match=r"^source\.adm\.weights: [^\n]*right$") as caught:
            load_adm(config)
        return str(caught.value)

    state = reference(P2).state_dict()
    assert "its pipeline's folder as source.model" in message(load_adm(config)[0].state_dict())
    assert "another layout: no time_embed.0.weight, but 'conv1.weight'" in message({"conv1.weight": torch.zeros(3)})
    assert "not a file of weights" in message({"model": state, "step": 3})
    for odd in (torch.zeros(32).to_sparse(), torch.zeros(32, device="meta"), None):
        assert "not a file of weights" in message({**state, "out.0.bias": odd})
    assert "not a file of weights" in message({**state, 3: torch.zeros(32)})
    (tmp_path / "ema.pt").write_bytes((tmp_path / "ema.pt").read_bytes()[:500])
    assert "not a file of weights" in refused_file()
    (tmp_path / "ema.pt").unlink()
    assert "cannot be read" in refused_file()
    save_file({}, tmp_path / "ema.safetensors")
    config = config.model_copy(update={"weights": str(tmp_path / "ema.safetensors")})
    assert "but nothing" in refused_file()
