"""docs/file-format.md against the models that read a run's file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from fewshot_ray.cli.reference import page
from fewshot_ray.methods import METHODS
from fewshot_ray.metrics import METRICS
from fewshot_ray.models.parameters import PARAMS
from fewshot_ray.spec import sections
from fewshot_ray.spec.document import parse_document
from fewshot_ray.spec.expected import fields_of

COMMITTED = Path(__file__).parents[2] / "docs" / "file-format.md"
ROW = re.compile(r"\| `(\w+)` \| .+? \| (?:`(.+?)`|must be given|by case) \| (.+?) \|")


def _models() -> dict[str, type[BaseModel]]:
    """Every model a file's values end up in, by what its part of the page is called; found without the page's own walk."""
    found = {f"method.{name}": entry.config for name, entry in METHODS.items()}
    found |= {f"train.params.{name}": config for name, (config, _) in PARAMS.items()}
    in_sections = (item for item in vars(sections).values() if isinstance(item, type) and issubclass(item, sections.Section))
    paths = {
        "FileSpec": "The file",
        "CrossFit": "target.holdout",
        "EmaSpec": "train.ema",
        "SchedulerSpec": "search.scheduler",
        "AshaSpec": "search.scheduler.asha",
        "RaceSpec": "search.scheduler.race",
        "ConfirmSpec": "search.confirm",
        "BudgetSpec": "search.budget",
        "CostSpec": "search.budget.cost",
    }
    found |= {paths.get(s.__name__, s.__name__.removesuffix("Spec").lower()): s for s in in_sections if s is not sections.Section}
    return found


def _rows(heading: str) -> Iterator[re.Match[str]]:
    part = re.split(r"^##+ ", page(), flags=re.MULTILINE)
    text = next(text for text in part if text.split("\n", 1)[0].strip("`") == heading)
    return ROW.finditer(text)


def test_the_committed_page_is_up_to_date() -> None:
    """Oracle: the page made now. To mend it: python -m fewshot_ray.cli.reference > docs/file-format.md."""
    assert COMMITTED.read_text() == page()


@pytest.mark.parametrize("heading", _models())
def test_every_field_stands_in_its_part_with_a_meaning(heading: str) -> None:
    """Oracle: the fields pydantic knows."""
    rows = {row[1]: row[3] for row in _rows(heading)}
    assert list(rows) == list(fields_of(_models()[heading]))
    assert all(meaning.endswith(".") for meaning in rows.values())


@pytest.mark.parametrize("heading", _models())
def test_a_default_can_be_copied_into_a_file(heading: str) -> None:
    """Oracle: the file's own reader over the default as it is printed, and the model over what it read."""
    fields = fields_of(_models()[heading])
    for row in _rows(heading):
        field = fields[row[1]]
        by_case = isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("by_case", False)
        assert (field.is_required() or by_case) == (row[2] is None)
        if row[2] is not None:
            value = parse_document(f"value: {row[2]}", "page").tree["value"]
            default = field.default
            printed = type(default).model_validate(value) if isinstance(default, BaseModel) else value
            assert printed == default


def test_every_metric_is_listed() -> None:
    """Oracle: the registry of metrics."""
    table = page().split("## Metrics", 1)[1]
    assert re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE) == list(METRICS)
