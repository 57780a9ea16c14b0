"""The picture of an evaluation's samples."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from fewshot_ray.trial.grid import grid_png


@pytest.mark.parametrize(("count", "rows", "columns"), [(1, 1, 1), (3, 2, 2), (4, 2, 2), (5, 2, 3)])
def test_small_images_are_enlarged_and_kept_exact(count: int, rows: int, columns: int) -> None:
    """Oracle: 8x8 pixels eightfold, two pixels of white between; each tile's centre is its image's grey."""
    greys = 40 * torch.arange(1, count + 1)
    images = greys.to(torch.uint8).view(-1, 1, 1, 1).expand(count, 1, 8, 8)
    picture = np.asarray(Image.open(io.BytesIO(grid_png(images))))
    assert picture.shape == (rows * 66 + 2, columns * 66 + 2, 3) if count > 1 else (64, 64, 3)
    offset = 2 if count > 1 else 0
    for index, grey in enumerate(greys.tolist()):
        y, x = divmod(index, columns)
        assert (picture[offset + 66 * y + 32, offset + 66 * x + 32] == grey).all()


def test_large_images_stay_as_they_are() -> None:
    """Oracle: the pixels of an RGB image of 100x70."""
    image = torch.randint(0, 256, (1, 3, 70, 100), dtype=torch.uint8)
    picture = np.asarray(Image.open(io.BytesIO(grid_png(image))))
    assert np.array_equal(picture, image[0].permute(1, 2, 0).numpy())
