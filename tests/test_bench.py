"""The bench's scripts are where the commands say, and find their neighbours however they are started."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(path for path in (ROOT / "bench").rglob("*.py") if '__name__ == "__main__"' in path.read_text())
TEXTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "NOTICE", "Makefile")),
    *(path for folder in ("bench", "docs", "fewshot_ray", "sweeps") for path in (ROOT / folder).rglob("*")),
]
NAMED = re.compile(r"bench/[\w/]+\.py")


def test_every_script_that_is_named_is_there() -> None:
    """Oracle: the files; those of the results' commands too."""
    texts = {path: path.read_text() for path in TEXTS if path.suffix in {"", ".json", ".md", ".py", ".yaml"} and path.is_file()}
    named = {name: path for path, text in texts.items() for name in NAMED.findall(text)}
    assert {str(script.relative_to(ROOT)) for script in SCRIPTS} <= set(named)
    assert [f"{path.relative_to(ROOT)}: {name}" for name, path in named.items() if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT / "bench")))
def test_a_script_says_its_command_and_finds_its_neighbours(script: Path) -> None:
    """Oracle: its place; `python PATH` puts no more than the script's own folder into `sys.path`."""
    text = script.read_text()
    assert f"python {script.relative_to(ROOT)}" in (ast.get_docstring(ast.parse(text)) or "")
    above = re.search(r"^sys\.path\.insert\(0, str\(Path\(__file__\)\.resolve\(\)\.parents\[(\d)\]\)\)$", text, re.MULTILINE)
    first = re.search(r"^from (bench|tests)[. ]", text, re.MULTILINE)
    if first is not None:
        assert above is not None
        assert script.parents[int(above[1])] == ROOT
        assert above.start() < first.start()
