"""What an argument means that a shell has left as it is (`--cluster=~/x`, `"$DATA/run.yaml"`)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

Given = TypeVar("Given", str, Path, None)


def expanded_argument(value: Given) -> Given:
    """With `~` and `$VAR` replaced, where nothing of that very name is there; for typer's `callback`."""
    if value is None or os.path.exists(value):
        return value
    from fewshot_ray.spec.places import expanded

    return type(value)(expanded(os.fspath(value)))
