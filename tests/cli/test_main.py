"""The entry point: help, and exit codes of a real process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.cli.conftest import Command, Desk
from tests.cli.test_bad_input import one_line

COMMANDS = ("run", "resume", "check", "leaderboard", "export", "evaluate", "sample")
HEAVY = "('torch', 'ray', 'diffusers', 'optuna')"
ENTRY = "from fewshot_ray.cli import main; main()"
SLOW = "('peft', 'transformers')"
"""What diffusers imports where it may, half of the time that a command would take to begin."""


def process(*arguments: str, code: str = ENTRY) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, fewshot: Command) -> None:
    answer = fewshot(command, "--help")
    assert answer.code == 0
    assert answer.err == ""
    assert "Usage:" in answer.out


def test_help_imports_nothing_heavy() -> None:
    """What keeps it under half a second: none of the libraries that take longer than that to import."""
    heavy = "('torch', 'ray', 'diffusers', 'optuna', 'pydantic', 'fsspec', 'numpy')"
    code = f"import atexit, sys\natexit.register(lambda: print('heavy:', *[name for name in {heavy} if name in sys.modules]))\n{ENTRY}"
    done = process("--help", code=code)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "heavy:"
    assert all(command in done.stdout for command in COMMANDS)


@pytest.mark.parametrize(
    "arguments", [["check", "nothere.yaml"], ["run", "nothere.yaml"], ["resume", "nothere"], ["leaderboard", "nothere"]]
)
def test_a_process_says_one_line_and_ends_with_2(arguments: list[str]) -> None:
    """And says it before it imports what takes seconds."""
    code = f"import atexit, sys\natexit.register(lambda: print('heavy:', *[name for name in {HEAVY} if name in sys.modules]))\n{ENTRY}"
    done = process(*arguments, code=code)
    assert done.returncode == 2
    assert done.stdout == "heavy:\n"
    assert done.stderr.startswith("error: nothere") or done.stderr.startswith("error: /")
    assert done.stderr.count("\n") == 1


def test_a_usage_error_ends_with_2_too(fewshot: Command) -> None:
    """These are typer's own: a box with the command's usage."""
    for arguments in (["chekc"], ["check"], ["sample", "model", "out", "-n", "0"], ["export", "sweep"]):
        answer = fewshot(*arguments)
        assert answer.code == 2
        assert "Traceback" not in answer.err


@pytest.mark.parametrize("command", ["check", "run"])
def test_a_truncated_photograph_in_a_process(command: str, desk: Desk) -> None:
    """Also that no library writes to standard error on the way, and that none is imported that nothing is asked of."""
    path = desk.folder / "photos" / "IMG_1.JPG"
    path.write_bytes(path.read_bytes()[:-300])
    imported = f"import atexit, sys; atexit.register(lambda: print('imported', *[name for name in {SLOW} if name in sys.modules])); "
    done = process(command, str(desk.write()), code=imported + ENTRY)
    assert done.stdout.count("IMG_1.JPG: cannot be read") == (command == "check")
    assert "IMG_1.JPG" in done.stderr
    assert done.stdout.splitlines()[-1] == "imported"
    assert done.returncode == 2
    one_line_of = done.stderr
    assert one_line_of.startswith("error: images ")
    assert one_line_of.count("\n") == 1


def test_nothing_that_is_the_programs_own_fault_is_hidden(desk: Desk, fewshot: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only UserError becomes a line: anything else is a bug and keeps its traceback."""
    import fewshot_ray.cli.check

    def broken(*arguments: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(fewshot_ray.cli.check, "check_file", broken)
    with pytest.raises(ZeroDivisionError):
        fewshot("check", desk.write())


def test_one_line_helper_sees_two(fewshot: Command) -> None:
    """The oracle of the tests beside this one is no rubber stamp."""
    answer = fewshot("check", "nothere.yaml")
    one_line(answer)
    with pytest.raises(AssertionError):
        one_line(answer._replace(err=answer.err * 2))
