"""bench/faults/fuzz/fuzz.py on few cases of every kind, and its own eyes on answers that are wrong."""

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from fewshot_ray.errors import UserError

CASES = 40
SEED = 4


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    """The script, which sets variables when it is imported."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_PROGRESS_BARS", "COLUMNS"):
            patch.setenv(name, "")  # to be put back
        # other tests run beside these: what counts here is that there is an answer
        patch.setattr("bench.faults.fuzz.run.LIMIT_SEC", 60)
        yield importlib.import_module("bench.faults.fuzz.fuzz")


@pytest.fixture(scope="module")
def fuzz(bench: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with bench.prepared(tmp_path_factory.mktemp("fuzz"), SEED, memory_bytes=None) as fuzz:
        yield fuzz


def test_no_case_fails(bench: ModuleType, fuzz: Any) -> None:
    """Oracle: the bench's own rules for an answer."""
    outcomes = [fuzz.case(kind, number) for kind, number in bench.plan(CASES, None)]
    assert [outcome for outcome in outcomes if outcome.problems] == []
    assert {outcome.kind for outcome in outcomes} == set(bench.KINDS)
    assert sum(outcome.code == 2 for outcome in outcomes) > len(outcomes) // 3


def test_a_case_is_the_same_every_time(bench: ModuleType, fuzz: Any) -> None:
    one, other = fuzz.case("run file", 3), fuzz.case("run file", 3)
    assert (one.said, one.arguments, one.code, one.line) == (other.said, other.arguments, other.code, other.line)


def crash(case: Any) -> None:
    raise KeyError("op_code")


def another_line(case: Any) -> None:
    print("once upon a time", file=sys.stderr)
    raise UserError(f"{case.folder / 'mine.yaml'}: is wrong")


def nothing_named(case: Any) -> None:
    raise UserError("something is wrong")


def change(case: Any) -> None:
    (case.folder / "mine.yaml").write_text("another")
    raise UserError("mine.yaml: is wrong")


def remove(case: Any) -> None:
    (case.folder / "mine.yaml").unlink()


def make(case: Any) -> None:
    (case.folder / "new").mkdir()


def be_touched(case: Any) -> None:
    case.marker.touch()


def be_slow(case: Any) -> None:
    while True:
        pass


def give_up(case: Any) -> None:
    sys.exit(1)


@pytest.mark.parametrize(
    ("misbehave", "problem"),
    [
        (crash, "an exception came out"),
        (another_line, "not a line an error on standard error"),
        (nothing_named, "neither file nor field is named"),
        (change, "mine.yaml was changed"),
        (remove, "mine.yaml was removed"),
        (make, "new was made"),
        (be_touched, "a pickle ran"),
        (be_slow, "too long"),
        (give_up, "exit code 1"),
    ],
)
def test_what_is_wrong_is_seen(misbehave: Any, problem: str, bench: ModuleType, fuzz: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: a command line that does one thing wrong."""
    cases = []

    def run(case: Any) -> Any:
        cases.append(case)
        return own_run(case)

    own_run = bench.run
    monkeypatch.setattr(bench, "run", run)
    monkeypatch.setattr("bench.faults.fuzz.run.LIMIT_SEC", 0.2)
    monkeypatch.setattr(importlib.import_module("fewshot_ray.cli.main"), "app", lambda: misbehave(cases[-1]) or sys.exit(0))
    assert problem in fuzz.case("run file", 1).problems
