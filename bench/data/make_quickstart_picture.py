"""Draw docs/quickstart.png: the quickstart's ten shots and sixteen samples of its exported model, after `make quickstart`.

python bench/data/make_quickstart_picture.py
"""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from fewshot_ray.data.digits import digits
from fewshot_ray.trial.grid import grid_png

ROOT = Path(__file__).resolve().parents[2]
GAP_PIXELS = 24


def main() -> None:
    """Put the two grids side by side."""
    shots = Image.open(io.BytesIO(grid_png(digits("shots").images)))
    samples = Image.open(ROOT / "runs" / "quickstart" / "samples" / "grid.png")
    picture = Image.new("RGB", (shots.width + GAP_PIXELS + samples.width, max(shots.height, samples.height)), "white")
    picture.paste(shots, (0, 0))
    picture.paste(samples, (shots.width + GAP_PIXELS, 0))
    picture.save(ROOT / "docs" / "quickstart.png")


if __name__ == "__main__":
    main()
