"""Expands arguments that a shell leaves unexpanded (`--cluster=~/x`, `"$DATA/run.yaml"`)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

Given = TypeVar("Given", str, Path, None)


def expanded_argument(value: Given) -> Given:
    """The argument with `~` and `$VAR` expanded, unless a file of that very name exists; for typer's `callback`."""
    if value is None or os.path.exists(value):
        return value
    from fewshot_ray.spec.places import expanded

    return type(value)(expanded(os.fspath(value)))
