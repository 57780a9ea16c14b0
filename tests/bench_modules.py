"""The bench's scripts as modules: they are no package."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).parents[1] / "bench"


@contextmanager
def bench_module(name: str) -> Iterator[ModuleType]:
    """`bench/<name>.py`, which may import its neighbours, within the block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCH)
        specification = importlib.util.spec_from_file_location(name, BENCH / f"{name}.py")
        assert specification is not None
        assert specification.loader is not None
        module = importlib.util.module_from_spec(specification)
        patch.setitem(sys.modules, name, module)  # dataclasses look their module up
        specification.loader.exec_module(module)
        yield module
