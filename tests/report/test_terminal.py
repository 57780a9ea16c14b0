"""What is printed: the text as it is, whatever stands in it."""

from __future__ import annotations

import ast
import io
from pathlib import Path

import pytest
from rich.table import Table

from fewshot_ray.report.terminal import plain_console

PACKAGE = Path(__file__).parents[2] / "fewshot_ray"


@pytest.mark.parametrize("text", ["runs/[wip]/a", "runs/[/wip]/a", "[red]a[/red]", ":cat:/a", r"\[a]", "[link=x]a"])
def test_text_is_printed_as_it_is(text: str) -> None:
    """Oracle: the text itself, alone and in all places of a table; rich takes brackets for styles and fails where they don't match."""
    file = io.StringIO()
    console = plain_console(file, width=120)
    console.print(text, soft_wrap=True)
    assert file.getvalue() == f"{text}\n"
    table = Table(f"1{text}", title=f"2{text}", caption=f"4{text}")
    table.add_row(f"3{text}")
    console.print(table)
    for place in "1234":
        assert f"{place}{text}" in file.getvalue()


def test_everything_is_printed_on_it() -> None:
    """Oracle: all calls in the package's text: no console of other settings is made, and a status line, which has none, gets a Text."""
    made, statuses = [], []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id if isinstance(node.func, ast.Name) else ""
            if name in ("Console", "from_markup"):
                made.append(path.name)
            if name == "status" and node.args and isinstance(node.args[0], ast.JoinedStr):
                statuses.append(path.name)
    assert made == ["terminal.py"]
    assert not statuses
