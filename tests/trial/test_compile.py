"""`train.compile`; with a compiler of the machine's it is tried in `tests/roundtrip/test_compile.py`."""

from __future__ import annotations

from functools import partialmethod
from pathlib import Path

import pytest
from torch import nn

from fewshot_ray.errors import UserError
from fewshot_ray.trial.compiling import check_compiler
from tests.trial.tiny import CPU, as_eager


def test_a_compiled_trial_is_the_eager_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the eager run. The graphs are those of torch.compile, its own backend for tests runs them without a compiler."""
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    as_eager(tmp_path)


def test_a_machine_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the rule for messages, with the line that torch.compile says itself and the remedy."""
    import torch._inductor.config

    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    monkeypatch.setattr(torch._inductor.config, "force_disable_caches", True)
    torch.compiler.reset()
    with pytest.raises(
        UserError, match=r"^train\.compile: torch\.compile can't compile here \(.*no-such-compiler.*\); a C\+\+ compiler"
    ) as said:
        check_compiler(CPU)
    assert "\n" not in str(said.value)
