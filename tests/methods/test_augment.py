from __future__ import annotations

import math
import zlib
from collections.abc import Callable

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from fewshot_ray.methods.augment import Ada, AdaConfig, DiffAugment, DiffAugmentConfig, hue_turn, rotation, shifted, warped
from tests.tiny_diffusion import images

AUGMENTATIONS: dict[str, Callable[[], object]] = {
    "color": lambda: DiffAugment(DiffAugmentConfig(policy=["color"])),
    "translation": lambda: DiffAugment(DiffAugmentConfig(policy=["translation"])),
    "cutout": lambda: DiffAugment(DiffAugmentConfig(policy=["cutout"])),
    "ada": lambda: Ada(AdaConfig(initial_probability=1.0)),
}


def drawn(count: int, seed: int = 0) -> Callable[[str], Tensor]:
    """Numbers of a purpose, the same when asked again."""

    def uniform(purpose: str) -> Tensor:
        return torch.rand(count, generator=torch.Generator().manual_seed(zlib.crc32(f"{purpose}/{seed}".encode())))

    return uniform


def given(**numbers: float) -> Callable[[str], Tensor]:
    return lambda purpose: torch.tensor([numbers[purpose.replace("-", "_")]])


def test_colour_by_hand() -> None:
    """Oracle: brightness .75 adds .25, saturation .5 leaves the colours, contrast .75 scales by 1.25 about the mean."""
    x = images(1, channels=3)
    out = DiffAugment(DiffAugmentConfig(policy=["color"]))(x, given(brightness=0.75, saturation=0.5, contrast=0.75))
    bright = x + 0.25
    torch.testing.assert_close(out, (bright - bright.mean()) * 1.25 + bright.mean())


def test_translation_by_hand() -> None:
    """Oracle: an eighth of 8 pixels is one: 0 shifts by -1, nearly 1 by +1, with zeros coming in."""
    x = images(1)
    out = DiffAugment(DiffAugmentConfig(policy=["translation"]))(x, given(shift_y=0.0, shift_x=0.99))
    expected = torch.zeros_like(x)
    expected[:, :, :-1, 1:] = x[:, :, 1:, :-1]
    assert torch.equal(out, expected)


def test_each_image_is_shifted_by_its_own_number() -> None:
    """Oracle: `torch.roll` with what came around set to zero."""
    x = images(3)
    out = shifted(x, torch.tensor([-2, 0, 3]), 3)
    assert torch.equal(out[1], x[1])
    assert torch.equal(out[0, :, :, :6], x[0, :, :, 2:])
    assert not out[0, :, :, 6:].any()
    assert torch.equal(out[2, :, :, 3:], x[2, :, :, :5])
    assert not out[2, :, :, :3].any()


def test_cutout_takes_a_square_of_half_the_side() -> None:
    """Oracle: the hole's shape: a rectangle of at most 4x4 of 8x8 pixels, 4x4 where it lies within, the rest untouched."""
    x = torch.ones(64, 1, 8, 8)
    out = DiffAugment(DiffAugmentConfig(policy=["cutout"]))(x, drawn(64))
    holes = [(1 - image[0]).nonzero() for image in out]
    sizes = {tuple((hole.amax(0) - hole.amin(0) + 1).tolist()) for hole in holes}
    assert (4, 4) in sizes
    assert all(height <= 4 and width <= 4 for height, width in sizes)
    assert all(len(hole) == (hole.amax(0) - hole.amin(0) + 1).prod() for hole in holes)


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_differentiable_twice(name: str, channels: int) -> None:
    """Oracle: finite differences, by PyTorch's gradcheck and gradgradcheck in float64: R1 passes through augmented images."""
    x = images(2, channels=channels, size=4).double().requires_grad_()
    augment = AUGMENTATIONS[name]()

    def run(y: Tensor) -> Tensor:
        out: Tensor = augment(y, lambda purpose: drawn(2)(purpose).double())  # type: ignore[operator]
        return out

    assert torch.autograd.gradcheck(run, (x,))
    assert torch.autograd.gradgradcheck(run, (x,))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_an_image_is_changed_by_its_own_numbers_alone(name: str) -> None:
    """Oracle: each image by itself, with its numbers: a worker's part of a batch is augmented as in the whole."""
    x, numbers = images(6, channels=3), drawn(6)
    augment = AUGMENTATIONS[name]()
    whole = augment(x, numbers)  # type: ignore[operator]
    assert not torch.equal(whole, x)
    for rank in (0, 1):
        part = augment(x[rank::2], lambda purpose, rank=rank: numbers(purpose)[rank::2])  # type: ignore[operator]
        torch.testing.assert_close(part, whole[rank::2])


def test_warping_by_whole_turns_and_mirrors_is_exact() -> None:
    """Oracle: `torch.rot90` and `flip`."""
    x = images(2)
    for quarter in range(4):
        source = rotation(torch.full((2,), quarter * math.pi / 2))[:, :2]
        torch.testing.assert_close(warped(x, source), torch.rot90(x, quarter, dims=(2, 3)), atol=1e-5, rtol=0)
    mirror = torch.tensor([[[-1.0, 0, 0], [0, 1, 0]]]).expand(2, -1, -1)
    torch.testing.assert_close(warped(x, mirror), x.flip(-1), atol=1e-5, rtol=0)


def test_warping_against_grid_sample() -> None:
    """Oracle: PyTorch's `grid_sample`, bilinear, reflecting, for a general map."""
    x = images(2, channels=3)
    source = torch.tensor([[[0.8, 0.3, 0.2], [-0.4, 1.1, -0.3]], [[1.3, -0.2, 0.9], [0.1, 0.7, 0.4]]])
    grid = torch.nn.functional.affine_grid(source, [2, 1, 8, 8], align_corners=False)
    expected = torch.nn.functional.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    torch.testing.assert_close(warped(x, source), expected, atol=1e-5, rtol=0)


def test_hue_turns_about_grey() -> None:
    """Oracle: grey stays; a third of a turn permutes the primaries."""
    turn = hue_turn(torch.tensor([2 * math.pi / 3]))[0]
    torch.testing.assert_close(turn @ torch.ones(3), torch.ones(3))
    torch.testing.assert_close(turn @ torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 1, 0]), atol=1e-6, rtol=0)


def test_ada_at_probability_zero_changes_nothing() -> None:
    """Oracle: the limiting case, bit for bit."""
    x = images(4)
    assert torch.equal(Ada(AdaConfig())(x, drawn(4)), x)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ada_computes_in_float32_under_autocast(channels: int, dtype: torch.dtype) -> None:
    """Oracle: the same without autocast, of real images (float32) and of generated ones (bfloat16)."""
    ada, x = Ada(AdaConfig(initial_probability=0.8)), images(4, channels=channels, size=32).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        out = ada(x, drawn(4))
    torch.testing.assert_close(out, ada(x.float(), drawn(4)))


def test_adas_statistic_stays_within_its_bounds_and_steers() -> None:
    """Oracle: by hand: of logits all positive the statistic is 1 however many patches are judged; p rises by batch x every / length."""
    ada = Ada(AdaConfig(target=0.6, length_images=1000, every_steps=4))
    for step in range(4):
        ada.observe(torch.tensor(8.0), torch.tensor(8.0))
        assert -1 <= float(ada.state["sign_sum"] / ada.state["count"]) <= 1
        assert ada.probability == 0
        ada.adjust(step, 8)
    ada.adjust(7, 8)
    assert ada.probability == pytest.approx(8 * 4 / 1000)  # also where no image was judged since
    assert float(ada.state["count"]) == 0
    for step in range(4, 12):
        ada.observe(torch.tensor(-8.0), torch.tensor(8.0))
        ada.adjust(step, 8)
    assert ada.probability == 0  # and not below


def test_settings_out_of_range_are_refused() -> None:
    """Oracle: the stated ranges."""
    for settings in ({"policy": []}, {"policy": ["color", "color"]}, {"policy": ["blur"]}, {"cutout": 0.0}):
        with pytest.raises(ValidationError):
            DiffAugmentConfig(**settings)
    for settings in ({"target": 1.0}, {"length_images": 0}, {"initial_probability": 1.5}):
        with pytest.raises(ValidationError):
            AdaConfig(**settings)
