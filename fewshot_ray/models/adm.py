"""Original checkpoints of ADM networks (guided-diffusion and P2 weighting): a state dict and the flags it was trained with."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple

import torch
from diffusers import DDPMScheduler, UNet2DModel
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from torch import Tensor

from fewshot_ray.errors import UserError
from fewshot_ray.models.adm_unet import AdmUNet2DModel
from fewshot_ray.models.weights import read_weights
from fewshot_ray.spec.wording import show

DEFAULT_CHANNEL_MULT = {512: "0.5,1,1,2,2,4,4", 256: "1,1,2,2,4,4", 128: "1,1,2,3,4", 64: "1,2,3,4"}
MOST_FLAGS = {"image_size": 16_384, "num_channels": 65_536, "num_res_blocks": 64, "diffusion_steps": 100_000}
MOST_LEVELS, MOST_MULTIPLE, MOST_WIDTH = 16, 1024, 2**20
"""Larger values are taken for mistyped: building the network would take all memory, or days."""
GROUPS = 32
"""Groups of every group norm."""
IMAGE_CHANNELS = 3
CLASS_CONDITIONAL = "class-conditional ADM models aren't supported"

# Module names here and in the original, in a residual block and in an attention block.
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ATTENTION = {"group_norm": "norm", "to_q": "qkv", "to_k": "qkv", "to_v": "qkv", "to_out.0": "proj_out"}
QKV = ("to_q", "to_k", "to_v")

# YAML reads a single number as a number, not as text.
NumberList = Annotated[str, BeforeValidator(lambda given: str(given) if type(given) in (int, float) else given)]


class AdmConfig(BaseModel):
    """An ADM network's file and its flags, by guided-diffusion's names and with its defaults.

    The weights can't show whether `num_heads`, `num_head_channels`, `use_new_attention_order` and the flags of the diffusion are right.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True)

    weights: str = Field(min_length=1)
    """State dict, .pt or .safetensors: a file, or a URL."""
    image_size: int = Field(default=64, ge=1)
    """Pixels along a side."""
    num_channels: int = Field(default=128, ge=1)
    """Channels that `channel_mult` multiplies."""
    num_res_blocks: int = Field(default=2, ge=1)
    """Residual blocks per level."""
    channel_mult: NumberList = ""
    """Multiples of `num_channels`, level by level, as '1,2,3,4'; '' is the default for `image_size`."""
    attention_resolutions: NumberList = "16,8"
    """Resolutions, in pixels, of the levels with attention."""
    num_heads: int = Field(default=4, ge=1)
    """Attention heads at every width, where `num_head_channels` is -1."""
    num_head_channels: int = Field(default=-1, ge=-1)
    """Channels of an attention head; -1 leaves it to `num_heads`."""
    num_heads_upsample: int = -1
    """Attention heads of the upsampling half; only -1, as many as in the downsampling half, is supported."""
    use_scale_shift_norm: bool = True
    """Whether the time embedding scales and shifts the norms' outputs, or is added before them."""
    resblock_updown: bool = False
    """Whether residual blocks, not convolutions, change the resolution."""
    use_new_attention_order: bool = False
    """Whether channels are split into queries, keys and values first and into heads second, or the other way round."""
    learn_sigma: bool = False
    """Whether the network predicts a variance too: 6 channels out, not 3."""
    class_cond: bool = False
    """Class-conditional; only False is supported."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout in residual blocks, while training."""
    diffusion_steps: int = Field(default=1000, ge=1)
    """T."""
    noise_schedule: Literal["linear", "cosine"] = "linear"
    """Schedule of beta: linear (Ho et al. 2020, scaled by 1000 / T) or cosine (Nichol & Dhariwal 2021)."""
    predict_xstart: bool = False
    """Whether the network predicts x_0, not the noise."""
    rescale_timesteps: bool = False
    """Whether the network was given t * 1000 / T; with T other than 1000 only False is supported."""
    use_fp16: bool = False
    """Changes nothing here: weights are read into float32."""
    use_checkpoint: bool = False
    """Changes nothing here: it saves memory in the original's training."""
    use_kl: bool = False
    """Changes nothing here: the loss of the original's training."""
    rescale_learned_sigmas: bool = False
    """Changes nothing here: the loss of the original's training."""
    p2_gamma: float = 0.0
    """Changes nothing here: the loss of the original's training (P2 weighting)."""
    p2_k: float = 1.0
    """Changes nothing here: the loss of the original's training (P2 weighting)."""
    timestep_respacing: NumberList = ""
    """Changes nothing here: the steps of the original's sampler."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, the finest first. Raises UserError."""
        text = self.channel_mult or DEFAULT_CHANNEL_MULT.get(self.image_size, "")
        if not text:
            sizes = ", ".join(str(size) for size in sorted(DEFAULT_CHANNEL_MULT))
            raise _refusal("image_size", f"{self.image_size} has no default channel_mult; one of {sizes}, or a channel_mult,")
        numbers = text.split(",")
        if not all(re.fullmatch(r"\s*[0-9]+(\.[0-9]+)?\s*", number) and 0 < float(number) <= MOST_MULTIPLE for number in numbers):
            raise _refusal("channel_mult", f"{show(text)} is no list of multiples; '1,2,3,4', for one,")
        return tuple(int(float(number) * self.num_channels) for number in numbers)

    @property
    def attention_levels(self) -> frozenset[int]:
        """Levels with attention, 0 the finest. As in guided-diffusion, a resolution that no level has is passed over. Raises UserError."""
        numbers = self.attention_resolutions.split(",")
        if not all(re.fullmatch(r"\s*0*[1-9][0-9]{0,8}\s*", number) for number in numbers):
            raise _refusal("attention_resolutions", f"{show(self.attention_resolutions)} is no list of resolutions; '16,8', for one,")
        factors = {self.image_size // int(number) for number in numbers}
        return frozenset(level for level in range(len(self.widths)) if 2**level in factors)

    @property
    def attention_widths(self) -> list[int]:
        """Channels of the attention blocks, ascending; the middle block has one at any setting."""
        return sorted({self.widths[-1], *(self.widths[level] for level in self.attention_levels)})

    def heads(self, width: int) -> int:
        """Attention heads at `width` channels."""
        return self.num_heads if self.num_head_channels == -1 else width // self.num_head_channels


def _refusal(field: str, problem_and_right: str) -> UserError:
    return UserError(f"source.adm.{field}: {problem_and_right} would be right")


def check_flags(config: AdmConfig) -> None:
    """Raise UserError for flags that no network has, or only one that isn't supported; the weights aren't read."""
    for field, most in MOST_FLAGS.items():
        if getattr(config, field) > most:
            raise _refusal(field, f"{show(getattr(config, field))} is beyond any network; at most {most}")
    if len(config.widths) > MOST_LEVELS or max(config.widths) > MOST_WIDTH:
        given = show(config.channel_mult)
        raise _refusal("channel_mult", f"{given} makes {len(config.widths)} levels of up to {show(max(config.widths))} channels; fewer")
    if config.class_cond:
        raise _refusal("class_cond", f"{CLASS_CONDITIONAL}; an unconditional model, with class_cond: false,")
    if config.rescale_timesteps and config.diffusion_steps != 1000:
        raise _refusal("rescale_timesteps", f"true isn't supported with {config.diffusion_steps} steps; a model trained without it")
    if config.num_heads_upsample not in (-1, config.num_heads):
        raise _refusal("num_heads_upsample", f"{config.num_heads_upsample} isn't supported; -1 (as many as num_heads)")
    if config.noise_schedule == "linear" and config.diffusion_steps <= 20:
        raise _refusal("diffusion_steps", f"{config.diffusion_steps} makes a linear schedule's beta reach 1; more than 20")
    factor = 2 ** (len(config.widths) - 1)
    if config.image_size % factor:
        raise _refusal("image_size", f"{config.image_size} can't be halved {len(config.widths) - 1} times; a multiple of {factor}")
    for width in config.widths:
        if width % GROUPS or not width:
            raise _refusal("num_channels", f"{config.num_channels} makes a level of {width} channels; multiples of {GROUPS}")
    for width in config.attention_widths:
        by_heads = config.num_head_channels == -1
        field, value = ("num_heads", config.num_heads) if by_heads else ("num_head_channels", config.num_head_channels)
        if not value or width % value:
            raise _refusal(field, f"{value} doesn't divide the {width} channels of an attention block; a divisor")


def load_adm(config: AdmConfig) -> tuple[UNet2DModel, DDPMScheduler]:
    """The network, on the CPU in float32 and eval mode, and its schedule. Raises UserError.

    The network is a plain `UNet2DModel` where that can express it, else an `AdmUNet2DModel`. It takes `[B, 3, H, W]` and gives as much,
    or with `learn_sigma` `[B, 6, H, W]`: the prediction, then where the log variance lies in [-1, 1] between its bounds.
    """
    check_flags(config)
    try:
        tensors = read_weights(config.weights).tensors
    except UserError as error:
        raise UserError(f"source.adm.weights: {error}") from error
    _check_layout(tensors, config.weights)
    with torch.device("meta"):
        unet = adm_network(config)
    _check_fit(config, tensors, _expected_shapes(config, unet))
    unet.load_state_dict(_converted(config, unet, tensors), assign=True)
    return unet.eval(), _scheduler(config)


def _scheduler(config: AdmConfig) -> DDPMScheduler:
    scale = 1000 / config.diffusion_steps
    schedule: dict[str, Any] = {"beta_schedule": "linear", "beta_start": scale * 0.0001, "beta_end": scale * 0.02}
    if config.noise_schedule == "cosine":
        schedule = {"beta_schedule": "squaredcos_cap_v2"}
    return DDPMScheduler(
        num_train_timesteps=config.diffusion_steps,
        # guided-diffusion's own sampler takes fixed_large, beta itself, where no variance is learned
        variance_type="learned_range" if config.learn_sigma else "fixed_small",
        prediction_type="sample" if config.predict_xstart else "epsilon",
        **schedule,
    )


def adm_network(config: AdmConfig) -> UNet2DModel:
    """The network that the flags describe, with random weights."""
    plain_down, plain_up = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if config.resblock_updown else ("DownBlock2D", "UpBlock2D")
    levels = range(len(config.widths))
    head_widths = {width // config.heads(width) for width in config.attention_widths}
    settings: dict[str, Any] = {
        "sample_size": config.image_size,
        "in_channels": IMAGE_CHANNELS,
        "out_channels": 2 * IMAGE_CHANNELS if config.learn_sigma else IMAGE_CHANNELS,
        "down_block_types": tuple("AttnDownBlock2D" if level in config.attention_levels else plain_down for level in levels),
        "up_block_types": tuple("AttnUpBlock2D" if level in config.attention_levels else plain_up for level in reversed(levels)),
        "block_out_channels": config.widths,
        "layers_per_block": config.num_res_blocks,
        "downsample_type": "resnet" if config.resblock_updown else "conv",
        "upsample_type": "resnet" if config.resblock_updown else "conv",
        "dropout": config.dropout,
        "attention_head_dim": head_widths.pop() if len(head_widths) == 1 else None,
        "norm_num_groups": GROUPS,
        "attn_norm_num_groups": GROUPS,  # with None and scale_shift the middle attention would have no norm
        "norm_eps": 1e-5,
        "resnet_time_scale_shift": "scale_shift" if config.use_scale_shift_norm else "default",
    }
    own: dict[str, Any] = {}
    if settings["attention_head_dim"] is None:
        own["attention_heads"] = config.num_heads
    if config.widths[0] != config.num_channels:
        own |= {"time_channels": config.num_channels, "time_embedding_dim": 4 * config.num_channels}
    return AdmUNet2DModel(**own, **settings) if own else UNet2DModel(**settings)


def _original_modules(config: AdmConfig) -> dict[str, str]:
    """The original's module name by ours, for every module that may have parameters."""
    names = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}
    names |= {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
    blocks: list[tuple[str, str]] = [(f"mid_block.resnets.{i}", f"middle_block.{2 * i}") for i in range(2)]
    attentions = [("mid_block.attentions.0", "middle_block.1")]
    levels, layers = len(config.widths), config.num_res_blocks
    for level in range(levels):
        first, down, up = 1 + level * (layers + 1), f"down_blocks.{level}", f"up_blocks.{level}"
        has_attention = levels - 1 - level in config.attention_levels
        blocks += [(f"{down}.resnets.{i}", f"input_blocks.{first + i}.0") for i in range(layers)]
        attentions += [(f"{down}.attentions.{i}", f"input_blocks.{first + i}.1") for i in range(layers)]
        blocks.append((f"{down}.downsamplers.0", f"input_blocks.{first + layers}.0"))
        names[f"{down}.downsamplers.0.conv"] = f"input_blocks.{first + layers}.0.op"
        blocks += [(f"{up}.resnets.{i}", f"output_blocks.{first - 1 + i}.0") for i in range(layers + 1)]
        attentions += [(f"{up}.attentions.{i}", f"output_blocks.{first - 1 + i}.1") for i in range(layers + 1)]
        upsampler = f"output_blocks.{first - 1 + layers}.{2 if has_attention else 1}"
        blocks.append((f"{up}.upsamplers.0", upsampler))
        names[f"{up}.upsamplers.0.conv"] = f"{upsampler}.conv"
    names |= {f"{ours}.{part}": f"{theirs}.{original}" for ours, theirs in blocks for part, original in RESNET.items()}
    return names | {f"{ours}.{part}": f"{theirs}.{original}" for ours, theirs in attentions for part, original in ATTENTION.items()}


def _pairs(config: AdmConfig, unet: UNet2DModel) -> Iterator[tuple[str, str, Tensor]]:
    """For every parameter our name, the original's, and our (empty) tensor."""
    modules = _original_modules(config)
    for name, tensor in unet.state_dict().items():
        module, _, kind = name.rpartition(".")
        yield name, f"{modules[module]}.{kind}", tensor


def _expected_shapes(config: AdmConfig, unet: UNet2DModel) -> dict[str, tuple[int, ...]]:
    """The original's names and shapes: its attention has 1-wide convolutions in place of linear layers, with q, k and v in one."""
    shapes = {}
    for _, original, tensor in _pairs(config, unet):
        shape = tuple(tensor.shape)
        if ".qkv." in original:
            shape = (3 * shape[0], *shape[1:])
        if original.endswith((".qkv.weight", ".proj_out.weight")):
            shape = (*shape, 1)
        shapes[original] = shape
    return shapes


def _converted(config: AdmConfig, unet: UNet2DModel, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights by our names, in float32, each with separate memory (safetensors writes no views)."""
    converted = {}
    for name, original, ours in _pairs(config, unet):
        theirs = tensors[original]
        if ".qkv." in original:
            theirs = _part_qkv(theirs, config)[QKV.index(name.split(".")[-2])]
        converted[name] = theirs.reshape(ours.shape).to(torch.float32, copy=True)
    return converted


def _part_qkv(qkv: Tensor, config: AdmConfig) -> Tensor:
    """`[3C, ...]` to `[3, C, ...]`: the new order is q, k, v; the legacy one q, k, v within each head. Ours is by head within each."""
    channels = len(qkv) // 3
    if config.use_new_attention_order:
        return qkv.reshape(3, channels, *qkv.shape[1:])
    heads = config.heads(channels)
    by_head = qkv.reshape(heads, 3, channels // heads, *qkv.shape[1:])
    return by_head.transpose(0, 1).reshape(3, channels, *qkv.shape[1:])


def _rows(tensors: Mapping[str, Tensor], name: str) -> int:
    """Output channels of a layer; 0 where there is no such layer."""
    return tensors[name].shape[:1].numel() if name in tensors else 0


def _check_layout(tensors: Mapping[str, Tensor], place: str) -> None:
    """Raise UserError for weights that are no unconditional ADM network of colour images, whatever the flags."""
    right = "an unconditional guided-diffusion or P2 network's state dict (ema_0.9999_*.pt)"
    needed = ("time_embed.0.weight", "input_blocks.0.0.weight", "middle_block.1.qkv.weight", "output_blocks.0.0.in_layers.0.weight")
    if "time_embedding.linear_1.weight" in tensors:
        raise _refusal("weights", f"{place} is a diffusers network; its pipeline's folder as source.model")
    for name in (*needed, "out.2.weight"):
        if name not in tensors:
            raise _refusal("weights", f"{place} is of another layout: no {name}, but {show(min(tensors, default=None))}; {right}")
    if "label_emb.weight" in tensors:
        raise _refusal("weights", f"{place} has label_emb.weight: {CLASS_CONDITIONAL}; {right}")
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise _refusal("weights", f"{place} has {name} in {str(tensor.dtype).removeprefix('torch.')}; {right}")
    channels_in, channels_out = tensors["input_blocks.0.0.weight"].shape[1:2].numel(), _rows(tensors, "out.2.weight")
    if channels_in != IMAGE_CHANNELS or channels_out not in (IMAGE_CHANNELS, 2 * IMAGE_CHANNELS):
        raise _refusal("weights", f"{place} takes {channels_in} channels and gives {channels_out}; 3, and 3 or 6,")


def _check_fit(config: AdmConfig, tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise UserError where names or shapes aren't those the flags stand for; the message names the flag that the weights contradict."""
    missing = sorted(expected.keys() - tensors.keys())
    unexpected = sorted(tensors.keys() - expected.keys())
    reshaped = sorted(name for name in expected.keys() & tensors.keys() if expected[name] != tuple(tensors[name].shape))
    wrong = [*missing, *unexpected, *reshaped]
    if not wrong:
        return
    counts = f"{len(missing)} names missing, {len(unexpected)} unexpected, {len(reshaped)} of another shape, first {wrong[0]}"
    for flag in (*_flags_of_blocks(config, tensors), *_flags_of_levels(config, tensors)):
        if not flag.fits:
            given = show(getattr(config, flag.field))
            raise _refusal(flag.field, f"{given} doesn't fit the weights, {flag.evidence} ({counts}); {show(flag.right)}")
    raise _refusal("weights", f"{config.weights} doesn't fit the flags ({counts}); the file these flags were used for")


class _Flag(NamedTuple):
    """A flag whose value can be read from the weights, and the evidence."""

    field: str
    fits: bool
    evidence: str
    right: object


def _flags_of_blocks(config: AdmConfig, tensors: Mapping[str, Tensor]) -> Iterator[_Flag]:
    channels_out, channels = _rows(tensors, "out.2.weight"), tensors["time_embed.0.weight"].shape[-1:].numel()
    learned = channels_out == 2 * IMAGE_CHANNELS
    yield _Flag("learn_sigma", config.learn_sigma == learned, f"whose out.2 has {channels_out} channels", learned)
    yield _Flag("num_channels", config.num_channels == channels, f"whose time_embed.0 takes {channels} channels", channels)
    block = "middle_block.0"
    rows, width = _rows(tensors, f"{block}.emb_layers.1.weight"), _rows(tensors, f"{block}.out_layers.0.weight")
    scales = rows == 2 * width
    evidence = f"whose {block}.emb_layers.1 has {rows} channels in a block of {width}"
    yield _Flag("use_scale_shift_norm", config.use_scale_shift_norm == scales, evidence, scales)


def _flags_of_levels(config: AdmConfig, tensors: Mapping[str, Tensor]) -> Iterator[_Flag]:
    sampler = re.compile(r"output_blocks\.(\d+)\.[12]\.(conv|in_layers)\.")
    samplers = {match[1]: match[2] for match in map(sampler.match, tensors) if match}
    levels, by_blocks = len(samplers) + 1, "in_layers" in samplers.values()
    evidence = f"which change resolution by {'residual blocks' if by_blocks else 'convolutions'}"
    yield _Flag("resblock_updown", levels == 1 or config.resblock_updown == by_blocks, evidence, by_blocks)

    blocks = len({name.split(".")[1] for name in tensors if name.startswith("output_blocks.")})
    layers = blocks // levels - 1
    yield _Flag("num_res_blocks", config.num_res_blocks == layers, f"whose {levels} levels have {blocks} output_blocks", layers)

    first = [f"input_blocks.{1 + level * (layers + 1)}" for level in range(levels)]
    widths = tuple(_rows(tensors, f"{block}.0.out_layers.3.weight") for block in first)
    multiples = ",".join(f"{width / config.num_channels:g}" for width in widths)
    evidence = f"whose levels have {', '.join(map(str, widths))} channels"
    size = next((size for size, default in DEFAULT_CHANNEL_MULT.items() if default == multiples), None)
    if not config.channel_mult and size is not None:
        yield _Flag("image_size", config.widths == widths, evidence, size)
    yield _Flag("channel_mult", config.widths == widths, evidence, multiples)

    attended = {level for level in range(levels) if f"{first[level]}.1.qkv.weight" in tensors}
    resolutions = ",".join(str(config.image_size // 2**level) for level in sorted(attended)) or "1"
    evidence = f"which have attention at {resolutions} pixels" if attended else "which have attention in the middle only"
    yield _Flag("attention_resolutions", config.attention_levels == attended, evidence, resolutions)
