"""Augmentations of the discriminator's input, real and generated: DiffAugment and ADA, twice differentiable in the images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

import torch
import torch.nn.functional as F
from pydantic import AfterValidator, Field
from torch import Tensor

from fewshot_ray.methods.precision import without_autocast
from fewshot_ray.spec.ranges import FloatRange
from fewshot_ray.spec.sections import Section

Uniform = Callable[[str], Tensor]
"""Numbers in [0, 1) `[b]`, one per image, drawn for a named purpose; another name gives other numbers."""


class Augmentation(Protocol):
    """Maps images `[b, C, H, W]` in about [-1, 1] to images of the same shape."""

    def __call__(self, images: Tensor, uniform: Uniform) -> Tensor:
        """The augmented images; each image is changed by its own random numbers."""
        ...


Policy = Literal["color", "translation", "cutout"]


def _distinct(names: list[Policy]) -> list[Policy]:
    if len(set(names)) != len(names):
        raise ValueError("a name is given twice; once is right")
    return names


class DiffAugmentConfig(Section):
    """DiffAugment (Zhao et al. 2020): every image is changed a little."""

    policy: Annotated[list[Policy], AfterValidator(_distinct)] = Field(default=["color", "translation"], min_length=1)
    """Which of color, translation and cutout are applied, in this order."""
    translation: float = Field(default=0.125, ge=0, le=1)
    """Largest shift, as a share of the image's side."""
    cutout: float = Field(default=0.5, gt=0, le=1)
    """Side of the square that is cut out, as a share of the image's side."""


class AdaConfig(Section):
    """ADA (Karras et al. 2020): the probability of every transformation follows the discriminator's confidence on real images."""

    target: Annotated[float, Field(gt=-1, lt=1), FloatRange(0.4, 0.8)] = 0.6
    """`E[sign(D(real))]` that the probability is steered to."""
    length_images: int = Field(default=500_000, ge=1)
    """Number of images over which the probability can go from 0 to 1."""
    every_steps: int = Field(default=4, ge=1)
    """Steps between changes of the probability."""
    initial_probability: float = Field(default=0.0, ge=0, le=1)
    """Probability at the first step."""


@dataclass(frozen=True)
class DiffAugment:
    """The policy's transformations, one after the other."""

    config: DiffAugmentConfig

    def __call__(self, images: Tensor, uniform: Uniform) -> Tensor:
        """The images `[b, C, H, W]` after the transformations of the policy."""
        for name in self.config.policy:
            images = getattr(self, f"_{name}")(images, uniform)
        return images

    def _color(self, x: Tensor, uniform: Uniform) -> Tensor:
        """Adds U(-.5, .5) to the brightness; scales saturation by U(0, 2) and contrast by U(.5, 1.5)."""
        x = x + (column(uniform("brightness")) - 0.5)
        grey = x.mean(dim=1, keepdim=True)
        x = (x - grey) * (2 * column(uniform("saturation"))) + grey
        mean = x.mean(dim=(1, 2, 3), keepdim=True)
        return (x - mean) * (column(uniform("contrast")) + 0.5) + mean

    def _translation(self, x: Tensor, uniform: Uniform) -> Tensor:
        """Shifts by whole pixels, padding with zeros."""
        height, width = x.shape[-2:]
        down = whole(uniform("shift-y"), round(height * self.config.translation))
        right = whole(uniform("shift-x"), round(width * self.config.translation))
        return shifted(shifted(x, down, 2), right, 3)

    def _cutout(self, x: Tensor, uniform: Uniform) -> Tensor:
        """Sets a square around a random pixel to zero."""
        keep = ~(self._cut(x, uniform("cut-y"), 2)[:, :, None] & self._cut(x, uniform("cut-x"), 3)[:, None, :])
        return x * keep[:, None]

    def _cut(self, x: Tensor, uniform: Tensor, dim: int) -> Tensor:
        side = x.shape[dim]
        length = max(1, round(side * self.config.cutout))
        first = (uniform * (side + 1 - length % 2)).long()[:, None] - length // 2
        place = torch.arange(side, device=x.device)[None]
        return (place >= first) & (place < first + length)


def column(numbers: Tensor) -> Tensor:
    """`[b]` reshaped to `[b, 1, 1, 1]`."""
    return numbers[:, None, None, None]


def whole(uniform: Tensor, most: int) -> Tensor:
    """Whole numbers in [-most, most] from numbers in [0, 1)."""
    return (uniform * (2 * most + 1)).long() - most


def shifted(x: Tensor, by: Tensor, dim: int) -> Tensor:
    """Each image of `x` shifted by its own number of pixels `[b]` along dimension `dim`, padded with zeros."""
    side = x.shape[dim]
    source = torch.arange(side, device=x.device)[None] - by[:, None]
    shape = [len(x), 1, 1, 1]
    shape[dim] = side
    there = ((source >= 0) & (source < side)).view(shape)
    return x.gather(dim, source.clamp(0, side - 1).view(shape).expand(x.shape)) * there


class Ada:
    """The published pipeline of blits, geometric and colour transformations, each with probability p.

    The geometric ones are one affine map, sampled bilinearly with reflection at the borders (the paper filters with wavelets first).
    `state` is saved in checkpoints: p, and the sum of signs and the number of images since p was last changed.
    """

    def __init__(self, config: AdaConfig, *, device: torch.device | str = "cpu") -> None:
        self.config = config
        self.state = {
            "probability": torch.tensor(config.initial_probability, device=device),
            "sign_sum": torch.zeros((), device=device),
            "count": torch.zeros((), device=device),
        }

    @property
    def probability(self) -> Tensor:
        """p, the probability of each transformation, `[]` on the device."""
        return self.state["probability"]

    def observe(self, sign_sum: Tensor, count: Tensor) -> None:
        """Add the signs of D's logits on `count` real images, summed over all workers (for several logits per image their mean sign).

        So the statistic is a mean of numbers in [-1, 1] for any number of logits per image.
        """
        self.state["sign_sum"] += sign_sum
        self.state["count"] += count

    def adjust(self, step: int, batch_images: int) -> None:
        """After each `step`, counted from 0: every `every_steps` p moves towards the target by these steps' images / `length_images`."""
        if (step + 1) % self.config.every_steps:
            return
        mean_sign = self.state["sign_sum"] / self.state["count"].clamp(min=1)
        change = torch.sign(mean_sign - self.config.target) * batch_images * self.config.every_steps / self.config.length_images
        self.state["probability"].add_(change * (self.state["count"] > 0)).clamp_(0.0, 1.0)
        self.state["sign_sum"].zero_()
        self.state["count"].zero_()

    def __call__(self, images: Tensor, uniform: Uniform) -> Tensor:
        """The images `[b, C, H, W]` after the geometric and the colour transformations; unchanged to the last bit where p is 0.

        In float32 under autocast too: coordinates in bfloat16 are off by a quarter of a pixel at 256, and a GPU inverts no such matrix.
        """
        with without_autocast(images.device):
            images = images.to(torch.promote_types(images.dtype, torch.float32))
            changed = self._colored(warped(images, self._geometry(images, uniform)), uniform)
            return torch.where(self.probability > 0, changed, images)

    def _where(self, uniform: Uniform, name: str, value: Tensor, *, probability: Tensor | None = None) -> Tensor:
        """`value` for the images the transformation is applied to, 0 for the others."""
        happens = uniform(f"{name}?") < (self.probability if probability is None else probability)
        return torch.where(happens, value, torch.zeros_like(value))

    def _geometry(self, images: Tensor, uniform: Uniform) -> Tensor:
        """`[b, 2, 3]`: where each pixel comes from, in coordinates from -1 to 1."""
        height, width = images.shape[-2:]
        # Each of the two rotations, before and after the stretching, has the probability with which at least one happens with p.
        either = 1 - (1 - self.probability).sqrt()
        flip = 1 - 2 * self._where(uniform, "flip", (uniform("flip") < 0.5).to(uniform("flip").dtype))
        quarters = self._where(uniform, "quarter", (uniform("quarter") * 4).floor())
        right = self._where(uniform, "blit", 2 * whole(uniform("blit-x"), round(width * 0.125)) / width)
        down = self._where(uniform, "blit", 2 * whole(uniform("blit-y"), round(height * 0.125)) / height)
        scale = torch.exp2(0.2 * self._where(uniform, "scale", normal(uniform("scale"))))
        before, after = (self._where(uniform, name, angle(uniform(name)), probability=either) for name in ("turn-before", "turn-after"))
        stretch = torch.exp2(0.2 * self._where(uniform, "stretch", normal(uniform("stretch"))))
        across, along = (self._where(uniform, "fraction", 0.25 * normal(uniform(f"fraction-{axis}"))) for axis in "xy")
        total = scaling(flip, torch.ones_like(flip))
        for transformation in (
            rotation(quarters * math.pi / 2),
            shift(right, down),
            scaling(scale, scale),
            rotation(before),
            scaling(stretch, 1 / stretch),
            rotation(after),
            shift(across, along),
        ):
            total = transformation.to(images.dtype) @ total.to(images.dtype)
        source: Tensor = torch.linalg.inv_ex(total).inverse[:, :2]  # `inv` asks the GPU whether there is one; here there always is
        return source

    def _colored(self, x: Tensor, uniform: Uniform) -> Tensor:
        """Brightness, contrast, inversion of the luma, and for colour images rotation of the hue and saturation."""
        x = x + column(0.2 * self._where(uniform, "ada-brightness", normal(uniform("ada-brightness"))))
        x = x * column(torch.exp2(0.5 * self._where(uniform, "ada-contrast", normal(uniform("ada-contrast")))))
        inverted = self._where(uniform, "luma", (uniform("luma") < 0.5).to(x.dtype))
        luma = x.mean(dim=1, keepdim=True)
        x = x - 2 * luma * column(inverted)
        if x.shape[1] != 3:
            return x
        x = torch.einsum("bij,bjhw->bihw", hue_turn(self._where(uniform, "hue", angle(uniform("hue")))).to(x.dtype), x)
        luma = x.mean(dim=1, keepdim=True)
        return luma + (x - luma) * column(torch.exp2(self._where(uniform, "ada-saturation", normal(uniform("ada-saturation")))))


def normal(uniform: Tensor) -> Tensor:
    """Standard normal numbers from numbers in [0, 1)."""
    return torch.erfinv((2 * uniform - 1).clamp(-0.999999, 0.999999)) * math.sqrt(2)


def angle(uniform: Tensor) -> Tensor:
    """Angles in [-pi, pi) from numbers in [0, 1)."""
    return (2 * uniform - 1) * math.pi


def matrix(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    """Matrices `[b, n, n]` from entries `[b]`."""
    return torch.stack([torch.stack(list(row), dim=-1) for row in rows], dim=-2)


def scaling(x: Tensor, y: Tensor) -> Tensor:
    """Scaling by x and y `[b]`, as homogeneous matrices `[b, 3, 3]`."""
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    return matrix([[x, zero, zero], [zero, y, zero], [zero, zero, one]])


def rotation(turn: Tensor) -> Tensor:
    """Rotation by the angle `turn` `[b]`, as homogeneous matrices `[b, 3, 3]`."""
    zero, one, cos, sin = torch.zeros_like(turn), torch.ones_like(turn), turn.cos(), turn.sin()
    return matrix([[cos, -sin, zero], [sin, cos, zero], [zero, zero, one]])


def shift(x: Tensor, y: Tensor) -> Tensor:
    """Translation by x and y `[b]`, as homogeneous matrices `[b, 3, 3]`."""
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    return matrix([[one, zero, x], [zero, one, y], [zero, zero, one]])


def hue_turn(turn: Tensor) -> Tensor:
    """Rotation of colours by the angle `turn` `[b]` about the grey axis (1, 1, 1), `[b, 3, 3]`."""
    cos, sin = turn.cos()[:, None, None], turn.sin()[:, None, None]
    grey, same = torch.full((3, 3), 1 / 3, device=turn.device), torch.eye(3, device=turn.device)
    cross = (same.roll(1, dims=0) - same.roll(1, dims=1)) / math.sqrt(3)  # the cross product with (1, 1, 1) / sqrt(3)
    return cos * same + (1 - cos) * grey + sin * cross


def warped(images: Tensor, source: Tensor) -> Tensor:
    """Images `[b, C, H, W]` sampled at `source` `[b, 2, 3]` (from -1 to 1), bilinearly, reflected at the borders.

    Written with gathers, since PyTorch's `grid_sample` can't be differentiated twice, as R1 does.
    """
    height, width = images.shape[-2:]
    grid = F.affine_grid(source, [len(images), 1, height, width], align_corners=False)
    x = reflected((grid[..., 0] + 1) * width / 2 - 0.5, width)
    y = reflected((grid[..., 1] + 1) * height / 2 - 0.5, height)
    left, top = x.floor(), y.floor()
    flat = images.flatten(2)
    result = torch.zeros_like(images)
    for across, weight_x in ((left, left + 1 - x), (left + 1, x - left)):
        for along, weight_y in ((top, top + 1 - y), (top + 1, y - top)):
            index = along.clamp(0, height - 1) * width + across.clamp(0, width - 1)
            corner = flat.gather(2, index.long().flatten(1)[:, None].expand(-1, images.shape[1], -1))
            result = result + corner.view_as(images) * (weight_x * weight_y)[:, None]
    return result


def reflected(place: Tensor, side: int) -> Tensor:
    """Pixel coordinates folded back into [-.5, side - .5], and held within the centres of the border's pixels."""
    folded = (place + 0.5) % (2 * side)
    return (torch.minimum(folded, 2 * side - folded) - 0.5).clamp(0, side - 1)
