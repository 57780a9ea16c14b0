"""Rebuild fewshot_ray/data/embedded/digits.npz from scikit-learn's digits, byte for byte.

    python bench/data/make_digits.py [OUT.npz]

scikit-learn's 1,797 handwritten digits (UCI "Optical Recognition of Handwritten Digits", 8x8, 17 grey levels) are scaled
so that 16 becomes 255. The first 1,000 stay as they are (the source domain); the other 797 are slanted and thickened
at 64x64 and averaged back to 8x8 (the target domain). The two domains share no picture.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

EMBEDDED = Path(__file__).resolve().parents[2] / "fewshot_ray" / "data" / "embedded" / "digits.npz"
SOURCE_IMAGES = 1000
SHEAR = 0.4
THICKENING_PIXELS = 2
ENLARGEMENT = 8

Floats = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]


def restyle(images: Floats, shear: float = SHEAR, thickening_pixels: int = THICKENING_PIXELS) -> Floats:
    """Slant and thicken digits [N, 8, 8] in [0, 1]: enlarge to 64x64, shear, dilate with a disc, average back to 8x8.

    Positive `shear` leans the tops to the right: a row `y` pixels above the middle moves by `shear * y`.
    `thickening_pixels` is the disc's radius at 64x64.
    """
    large = slant(enlarge(images), shear)
    return box_down(thicken(large, thickening_pixels))


def enlarge(images: Floats) -> Floats:
    """Each pixel becomes a block of 8x8, [N, 8, 8] -> [N, 64, 64]."""
    return images.repeat(ENLARGEMENT, axis=1).repeat(ENLARGEMENT, axis=2)


def slant(images: Floats, shear: float) -> Floats:
    """Shift each row of [N, H, W] sideways (linear interpolation) in proportion to its height over the middle; black comes in."""
    height, width = images.shape[1:]
    slanted = np.empty_like(images)
    padded = np.pad(images, ((0, 0), (0, 0), (width, width)))
    for y in range(height):
        shift = shear * ((height - 1) / 2 - y)
        columns = np.arange(width) + width - shift
        left = np.floor(columns).astype(np.int64)
        weight = columns - left
        slanted[:, y] = padded[:, y, left] * (1 - weight) + padded[:, y, left + 1] * weight
    return slanted


def thicken(images: Floats, radius_pixels: int) -> Floats:
    """Grey dilation of [N, H, W]: the maximum over a disc of the given radius."""
    height, width = images.shape[1:]
    padded = np.pad(images, ((0, 0), (radius_pixels, radius_pixels), (radius_pixels, radius_pixels)))
    thick = images.copy()
    for dy in range(-radius_pixels, radius_pixels + 1):
        for dx in range(-radius_pixels, radius_pixels + 1):
            if dy * dy + dx * dx <= radius_pixels * radius_pixels:
                y, x = dy + radius_pixels, dx + radius_pixels
                np.maximum(thick, padded[:, y : y + height, x : x + width], out=thick)
    return thick


def box_down(images: Floats) -> Floats:
    """Mean over blocks of 8x8, [N, 64, 64] -> [N, 8, 8]."""
    count, height, width = images.shape
    blocks = images.reshape(count, height // ENLARGEMENT, ENLARGEMENT, width // ENLARGEMENT, ENLARGEMENT)
    return np.asarray(blocks.mean(axis=(2, 4)))


def make_arrays() -> dict[str, npt.NDArray[np.uint8]]:
    """`source` [1000, 8, 8], `target` [797, 8, 8] and their labels, all uint8."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = digits.images / 16.0
    labels = digits.target.astype(np.uint8)
    return {
        "source": _to_bytes(images[:SOURCE_IMAGES]),
        "source_labels": labels[:SOURCE_IMAGES],
        "target": _to_bytes(restyle(images[SOURCE_IMAGES:])),
        "target_labels": labels[SOURCE_IMAGES:],
    }


def _to_bytes(images: Floats) -> Bytes:
    # Six decimals first: a sum that differs in its last bit must not tip a rounding.
    return np.floor(np.round(images * 255, 6) + 0.5).astype(np.uint8)


def main(out: Path = EMBEDDED) -> None:
    """Write the archive. `savez_compressed` stamps its entries 1980-01-01, so the bytes depend on the arrays alone."""
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out, allow_pickle=False, **make_arrays())
    print(f"{out}: {out.stat().st_size} bytes")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
