"""Turns torch.compile's failures into a UserError."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch._dynamo.exc import BackendCompilerFailed

from fewshot_ray.errors import UserError

__all__ = ["check_compiler", "compiling"]


@contextmanager
def compiling() -> Iterator[None]:
    """Context that turns a failure of torch.compile's compilers into a UserError of one line."""
    try:
        yield
    except BackendCompilerFailed as error:
        lines = [line.strip() for line in str(error).splitlines()]
        said = next((line for line in lines if line and not line.endswith("raised:")), type(error).__name__)
        raise UserError(
            f"train.compile: torch.compile can't compile here ({said[:200]}); a C++ compiler and Python's headers (Debian's packages "
            "g++ and python3-dev), or train.compile: false, would be right"
        ) from error


def check_compiler(device: torch.device) -> None:
    """Compile and run a trivial function. Raises UserError where this machine can't."""
    function = torch.compile(torch.sin)
    with compiling():
        function(torch.ones(2, device=device))
