"""Pictures to write to disk, zips, Parquet and memory://."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from uuid import uuid4

import fsspec
import numpy as np
import pytest
from PIL import Image

from fewshot_ray.data.images import ImageSet, content_hash, to_tensor

Paint = Callable[..., Image.Image]


@pytest.fixture
def paint() -> Paint:
    """A smooth RGB picture of its own per seed (blurred noise: stands in for a photograph)."""

    def paint(seed: int, width: int = 64, height: int = 48) -> Image.Image:
        noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)

    return paint


@pytest.fixture
def memory() -> Iterator[str]:
    """A memory:// folder of the test's own."""
    url = f"memory://{uuid4().hex}"
    yield url
    filesystem, path = fsspec.core.url_to_fs(url)
    if filesystem.exists(path):
        filesystem.rm(path, recursive=True)


@pytest.fixture
def image_set(paint: Paint) -> Callable[..., ImageSet]:
    """An `ImageSet` of 8x8 pictures, one per seed."""

    def image_set(*seeds: int) -> ImageSet:
        import torch

        painted = [paint(seed, 8, 8) for seed in seeds]
        images = torch.stack([to_tensor(image, 3) for image in painted])
        return ImageSet(images, tuple(f"{seed}.png" for seed in seeds), tuple(content_hash(image) for image in painted))

    return image_set


def encode(image: Image.Image, kind: str = "PNG", exif: Image.Exif | None = None) -> bytes:
    """The picture as a file."""
    file = io.BytesIO()
    if exif is not None:
        image.save(file, kind, exif=exif)
    else:
        image.save(file, kind, **({"quality": 95} if kind == "JPEG" else {}), **({"lossless": True} if kind == "WEBP" else {}))
    return file.getvalue()
