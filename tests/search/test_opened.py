"""What may change in a sweep's file after the sweep has begun."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fewshot_ray.cli.show import read_sweep
from fewshot_ray.errors import UserError
from fewshot_ray.search.frozen_trials import SAMPLER
from fewshot_ray.search.lease import LEASE, Lease
from fewshot_ray.search.opened import Opened, changed, existing_sweep, planned_sweep, put_on_record
from fewshot_ray.search.study import Study
from fewshot_ray.search.sweep_folder import FORMAT, TrialRecord
from fewshot_ray.spec.document import Document, ranges
from fewshot_ray.storage import Folder
from tests.cluster.conftest import sweep_file


def begun(tmp_path: Path) -> Document:
    """A sweep with a trial on record."""
    document = sweep_file("begun", tmp_path)
    opened = put_on_record(planned_sweep(document))
    opened.folder.folder.write_text("study.journal", "")
    return document


def edited(document: Document, section: str, **changes: Any) -> Document:
    return replace(document, tree={**document.tree, section: {**document.tree.get(section, {}), **changes}})


@pytest.mark.parametrize(
    ("section", "changes"),
    [
        ("resources", {"workers": 2, "cpus_per_worker": 0.5}),
        ("search", {"trials": 9}),
        ("search", {"concurrent": 2, "retries": 7, "keep_checkpoints": 3}),
        ("train", {"checkpoint_sec": 5.0}),
    ],
)
def test_what_no_result_depends_on_may_change(section: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """Oracle: the file as it is now is the sweep's, and is on record."""
    document = begun(tmp_path)
    opened = put_on_record(planned_sweep(edited(document, section, **changes)))
    found = existing_sweep(opened.folder.folder)
    assert {key: found.document.tree[section][key] for key in changes} == changes


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("train", {"batch_size": 5}, r"differs in train\.batch_size\); another name"),
        ("train", {"batch_size": 5, "steps": 48, "flip": False, "weight_decay": 0.1}, r"and 1 more\)"),
        ("search", {"trials": 2}, r"search\.trials: 2 given, .* was started with 4; as many or more"),
        ("target", {"shots": 3}, r"differs in target\.shots"),
    ],
)
def test_what_results_depend_on_may_not(section: str, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    """Oracle: the messages by hand; the spec on record stays."""
    document = begun(tmp_path)
    before = (tmp_path / "begun" / "spec.yaml").read_text()
    with pytest.raises(UserError, match=message):
        planned_sweep(edited(document, section, **changes))
    assert (tmp_path / "begun" / "spec.yaml").read_text() == before


def test_a_larger_budget_or_other_workers_at_a_resume(tmp_path: Path) -> None:
    """Oracle: by hand; fewer trials than there are are refused."""
    begun(tmp_path)
    opened: Opened = existing_sweep(Folder(tmp_path / "begun"))
    more = changed(opened, limits={"trials": 12}, workers=3)
    assert (more.file.search.trials, more.file.resources.workers) == (12, 3)
    assert more.document.tree["search"]["concurrent"] == 1
    assert changed(opened) == opened
    with pytest.raises(UserError, match="--extend trials=3: the sweep has 4 already"):
        changed(opened, limits={"trials": 3})


@pytest.mark.parametrize("damage", ["emptied", "removed", "cut", "another name"])
def test_trials_that_the_journal_does_not_know_are_not_begun_anew(damage: str, tmp_path: Path) -> None:
    """Oracle: the records as they were; a search that began with an empty journal would write over them."""
    opened = put_on_record(planned_sweep(sweep_file("begun", tmp_path)))
    study = Study(tmp_path / "begun" / "study.journal", "begun", opened.file.search, ranges(opened.document.tree), seed=0, outside=())
    record = TrialRecord("t0000", 0, "search", SAMPLER, SAMPLER, 0, "RUNNING")
    for number in range(2):
        study.propose()
        opened.folder.write_trial(replace(record, id=f"t{number:04d}", number=number))
    assert existing_sweep(opened.folder.folder).file == opened.file
    journal, spec = tmp_path / "begun" / "study.journal", tmp_path / "begun" / "spec.yaml"
    whole = journal.read_bytes()
    if damage == "removed":
        journal.unlink()
    elif damage == "another name":
        spec.write_text(spec.read_text().replace("name: begun", "name: began"))
    else:
        journal.write_bytes(b"" if damage == "emptied" else b"".join(whole.splitlines(keepends=True)[:-1]))
    with pytest.raises(UserError, match=r"^[^\n]*begun/study\.journal: [^\n]*the file as the sweep left it[^\n]*$"):
        existing_sweep(opened.folder.folder)


def test_places_are_refused_as_they_stand_in_the_file(tmp_path: Path) -> None:
    """Oracle: an empty place is empty, and not the working directory."""
    with pytest.raises(UserError, match=r"target\.test: '' is empty"):
        planned_sweep(edited(sweep_file("begun", tmp_path), "target", test=""))


def test_a_refused_driver_changes_nothing(tmp_path: Path) -> None:
    """Oracle: the spec on record, while another driver has the sweep; a lease alone, of a driver that died at once, is no sweep."""
    from fewshot_ray.cluster.driver import run_sweep

    document = begun(tmp_path)
    before = (tmp_path / "begun" / "spec.yaml").read_text()
    with Lease(Folder(tmp_path / "begun")), pytest.raises(UserError, match="runs this sweep"):
        run_sweep(changed(planned_sweep(document), limits={"trials": 12}))
    assert (tmp_path / "begun" / "spec.yaml").read_text() == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / LEASE).write_text("{}")
    assert planned_sweep(sweep_file("other", tmp_path)).file.name == "other"


@pytest.mark.parametrize(
    ("number", "message"),
    [
        ("2", None),
        ("1", r"begun: an older fewshot-ray began this sweep \(format 1, this one trains format 2\)[^\n]*another name would be right$"),
        ("", r"begun: an older fewshot-ray began this sweep \(format 1, "),
        ("3", r"begun/spec\.yaml: a newer fewshot-ray wrote this sweep \(format 3, "),
        ("17", r"begun/spec\.yaml: a newer fewshot-ray wrote this sweep \(format 17, "),
    ],
)
def test_a_folder_of_another_release(number: str, message: str | None, tmp_path: Path) -> None:
    """Oracle: a newer one is refused by all who read it, an older one by those who would train it; none named is the first."""
    document = sweep_file("begun", tmp_path)
    opened = put_on_record(planned_sweep(document))
    place = tmp_path / "begun" / "spec.yaml"
    text = place.read_text()
    assert text.startswith("# fewshot-ray sweep, format 2\n")
    newer = number.isdecimal() and int(number) > FORMAT
    place.write_text(text.replace("format 2", f"format {number}", 1) + ("\nfrom_the_future: 1\n" if newer else ""))
    before = place.read_bytes()
    for trials in (False, True):  # also where no trial has begun: what the trials share may have been computed
        if trials:
            (tmp_path / "begun" / "trials").mkdir()
        for read in (lambda: existing_sweep(opened.folder.folder), lambda: planned_sweep(document)):
            if message is not None:
                with pytest.raises(UserError, match=message):
                    read()
            else:
                assert read().file == opened.file
    assert place.read_bytes() == before
    if not newer:
        assert read_sweep(str(tmp_path / "begun"))[1] == opened.file
