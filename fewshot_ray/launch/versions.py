"""Compares the versions of a laptop and a cluster, so that a sweep checked here is the sweep that runs there."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import fewshot_ray

LIBRARIES = ("ray", "torch", "diffusers", "transformers", "peft", "optuna", "numpy")
FOLDER = Path(fewshot_ray.__file__).parent


@cache
def versions() -> Mapping[str, str]:
    """Versions of Python and of the libraries that results depend on, without build suffixes."""
    found = {"python": ".".join(platform.python_version_tuple()[:2]), "fewshot-ray": fewshot_ray.__version__}
    for name in LIBRARIES:
        try:
            found[name] = version(name).split("+")[0]  # 2.15.0+cpu trains as 2.15.0 does
        except PackageNotFoundError:
            found[name] = "none"
    return found


def code() -> dict[str, str]:
    """Hashes of this machine's modules of fewshot-ray, by their path in the package."""
    return {path.relative_to(FOLDER).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()[:12] for path in FOLDER.rglob("*.py")}


def different(laptops: Mapping[str, str], modules: Mapping[str, str]) -> list[str]:
    """Differences between the laptop's versions and modules and this machine's (the cluster's), one text each.

    Modules that only the cluster has (removed since) don't count, since none of the laptop's imports them, except where a folder hides a
    module of that name.
    """
    own, own_code = versions(), code()
    found = [
        f"{name} {laptops.get(name, 'none')} on the laptop, {own.get(name, 'none')} on the cluster"
        for name in {**own, **laptops}
        if laptops.get(name) != own.get(name)
    ]
    changed = sorted(name for name, content in modules.items() if own_code.get(name) != content)
    hidden = [name for name in own_code.keys() - modules.keys() if name.endswith("/__init__.py") and f"{name[:-12]}.py" in modules]
    found += [f"fewshot-ray's {name[:-12]}.py, which an older folder {name[:-12]}/ hides there" for name in hidden]
    if changed:
        found.append(f"fewshot-ray's {changed[0]}{f' and {len(changed) - 1} more' if changed[1:] else ''}")
    return found
