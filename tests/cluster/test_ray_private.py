"""Ray's private names: in one module, of the one minor version that has them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import ray
from packaging.requirements import Requirement
from packaging.version import Version

from fewshot_ray.cluster import ray_private

ROOT = Path(__file__).parents[2]
PRIVATE = re.compile(
    r"\bray(\.\w+)*\._[a-z]|\bfrom ray(\.\w+)* import _|\bray\.(train\.v2|dashboard|core|autoscaler(?!\.sdk))\b"
    r"|\._server_ray_version|ray-schema"
)


def test_private_names_are_in_one_module() -> None:
    """Oracle: the text of all modules."""
    used = [path for folder in ("fewshot_ray", "bench") for path in (ROOT / folder).rglob("*.py") if PRIVATE.search(path.read_text())]
    assert [path.name for path in used] == ["ray_private.py"]


def test_ray_stays_below_its_next_minor_version() -> None:
    """Oracle: the version that these tests run with."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (required,) = [found for text in project["dependencies"] if (found := Requirement(text)).name == "ray"]
    here = Version(ray.__version__)
    assert here in required.specifier
    assert Version(f"{here.major}.{here.minor}.99") in required.specifier
    assert Version(f"{here.major}.{here.minor + 1}.0") not in required.specifier


@pytest.mark.parametrize("name", sorted(ray_private._MODULES))
def test_every_name_is_there(name: str) -> None:
    """Oracle: Ray's wheel."""
    assert callable(getattr(ray_private, name))


def test_a_name_that_is_none() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = ray_private.no_such_name
