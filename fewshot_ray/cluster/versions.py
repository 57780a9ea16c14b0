"""What a laptop and a cluster must have the same of: a sweep checked here should be the sweep that runs there."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import fewshot_ray

LIBRARIES = ("ray", "torch", "diffusers", "transformers", "peft", "optuna", "numpy")
CODE = "fewshot-ray's code"


@cache
def versions() -> Mapping[str, str]:
    """Of this machine: Python, the libraries that results depend on (without a build's suffix), and a hash of fewshot-ray's own code."""
    found = {"python": ".".join(platform.python_version_tuple()[:2]), "fewshot-ray": fewshot_ray.__version__}
    for name in LIBRARIES:
        try:
            found[name] = version(name).split("+")[0]  # 2.15.0+cpu trains as 2.15.0 does
        except PackageNotFoundError:
            found[name] = "none"
    return {**found, CODE: _code_hash()}


def _code_hash() -> str:
    digest, folder = hashlib.sha256(), Path(fewshot_ray.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def different(laptops: Mapping[str, str]) -> list[str]:
    """What differs between the laptop's and this machine's, the cluster's, in words."""
    own = versions()
    return [
        f"{name} {laptops.get(name, 'none')} on the laptop, {own.get(name, 'none')} on the cluster"
        for name in {**own, **laptops}
        if laptops.get(name) != own.get(name)
    ]
