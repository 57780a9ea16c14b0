"""Plain fine-tuning's own search: what follows the search of the methods, what it is compared with, and resuming."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from fewshot_ray.errors import UserError
from fewshot_ray.search.confirmation import compare_with_control
from fewshot_ray.search.job import Job
from fewshot_ray.search.leaderboard import leaderboard, winner
from fewshot_ray.search.opened import existing_sweep
from fewshot_ray.search.plain_search import plain_document, plain_trials
from fewshot_ray.search.sweep import Sweep
from fewshot_ray.search.sweep_folder import TrialRecord, read_spec, sweep_text
from fewshot_ray.spec.document import Document, ranges
from fewshot_ray.spec.ranges import FloatRange
from fewshot_ray.storage import Folder
from fewshot_ray.training.checkpoint import checkpoint_name
from fewshot_ray.trial.compose import check_document
from tests.search.killing import Killer, killed
from tests.search.synthetic import curve, evaluations, file, finish, open_sweep, outcome

pytestmark = pytest.mark.usefixtures("light")
CONFIRM = {"seeds": [7, 8, 9], "plain": "tuned"}
PLAIN_IDS = [f"p000{number}" for number in range(4)]


def tuned(trials: int = 4, **sections: Any) -> Document:
    return file(search={"trials": trials, "sampler": "random", "include_plain": False, "confirm": CONFIRM}, **sections)


def record(sweep: Sweep, trial_id: str) -> TrialRecord:
    found = sweep.folder.record(trial_id)
    assert found is not None
    return found


def loss(trial: TrialRecord) -> float:
    assert trial.values is not None
    return trial.values["holdout_loss"]


def everything(sweep: Sweep) -> dict[str, Any]:
    assert sweep.plain is not None
    trials = sweep.plain.study.study.get_trials()
    return outcome(sweep) | {"plain": [(one.state, one.values, one.params, one.user_attrs, one.intermediate_values) for one in trials]}


def test_plain_fine_tuning_is_given_the_same_care(tmp_path: Path) -> None:
    """Oracle: by hand: reruns of the winner, as many plain trials as the search had, then the best of these on the same seeds."""
    sweep = open_sweep(Folder(tmp_path / "a"), tuned())
    ids = finish(sweep)
    best = winner(leaderboard(sweep.folder, sweep.file.search))
    assert best is not None
    name = best.trial.id
    plain = [record(sweep, one) for one in PLAIN_IDS]
    own = min(plain, key=loss)
    reruns = [f"confirm-{name}-seed{seed}" for seed in (7, 8, 9)]
    controls = [f"control-{name}-{own.id}-seed{seed}" for seed in (7, 8, 9)]
    assert ids[4:] == [*reruns, *PLAIN_IDS, *controls]
    for trial in plain:
        tree = read_spec(sweep.folder.trial(trial.id)).tree
        assert tree["method"] == {"finetune": {}}
        assert (trial.kind, trial.seed, set(trial.params)) == ("plain", 0, {"train.lr", "train.params"})
    assert len({trial.params["train.lr"] for trial in plain}) == 4
    assert read_spec(sweep.folder.trial(controls[0])).tree == read_spec(sweep.folder.trial(own.id)).tree
    (comparison,) = compare_with_control(leaderboard(sweep.folder, sweep.file.search), sweep.file.search)
    assert comparison.seeds == (7, 8, 9)
    assert f"with its own best values ({own.id})" in comparison.describe()
    assert sweep.done


def test_its_study_is_beside_the_searchs(tmp_path: Path) -> None:
    """Oracle: the study of a sweep without it; Optuna reads both from the one journal, with what the records say."""
    sweep, without = open_sweep(Folder(tmp_path / "a"), tuned()), file(search={"trials": 4, "sampler": "random", "include_plain": False})
    finish(sweep)
    alone = open_sweep(Folder(tmp_path / "b"), without)
    finish(alone)
    assert outcome(sweep)["study"] == outcome(alone)["study"]
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "a" / "study.journal")))
    study = optuna.load_study(study_name="s: plain fine-tuning", storage=storage)
    assert [trial.value for trial in study.get_trials()] == [loss(record(sweep, one)) for one in PLAIN_IDS]
    sweep.folder.folder.write_text("spec.yaml", sweep_text(sweep.document))
    assert existing_sweep(sweep.folder.folder).file == sweep.file


@pytest.mark.parametrize(
    ("lr", "expected"),
    [(2e-3, FloatRange(2e-4, 2e-2, log=True, preset=2e-3)), (FloatRange(1e-4, 1e-2, log=True), None)],
    ids=["fixed", "range"],
)
def test_the_range_of_its_learning_rate(lr: Any, expected: FloatRange | None) -> None:
    """Oracle: the file's range, or a factor of ten either way around what the file fixes."""
    document, spec = check_document(tuned(train={"lr": lr}))
    assert ranges(plain_document(document).tree)["train.lr"] == (expected or lr)
    assert plain_trials(document, spec) == 4
    assert plain_trials(*check_document(file(search={"trials": 4, "confirm": {}}))) == 0


def test_nothing_is_searched_where_plain_fine_tuning_wins(tmp_path: Path) -> None:
    """Oracle: it is its own control."""
    search = {"trials": 3, "sampler": "random", "confirm": CONFIRM}
    sweep = open_sweep(Folder(tmp_path), file(search=search))
    ids = finish(sweep, lambda job, step: {"holdout_loss": float("ant" in job.tree["method"]), "kid": 0.0, "memorisation": 0.0})
    assert ids[3:] == [f"confirm-t0001-seed{seed}" for seed in (7, 8, 9)]


def test_it_grows_with_the_search(tmp_path: Path) -> None:
    """Oracle: as many trials as the search has; controls of a trial that has been beaten since don't count."""

    def better_later(job: Any, step: int) -> dict[str, float]:
        own = {"p0003": -1.0}.get(job.id, 0.0) if job.kind == "plain" else 0.0
        return {**curve(job, step), "holdout_loss": curve(job, step)["holdout_loss"] + own}

    finish(open_sweep(Folder(tmp_path), tuned(3)), better_later)
    sweep = open_sweep(Folder(tmp_path), tuned(4))
    ids = finish(sweep, better_later)
    assert {"t0003", "p0003"} <= set(ids)
    assert sum("-p0003-" in one for one in ids) == 3
    (comparison,) = compare_with_control(leaderboard(sweep.folder, sweep.file.search), sweep.file.search)
    assert (comparison.tuned, comparison.seeds) == ("p0003", (7, 8, 9))


def test_the_best_plain_trial_keeps_its_checkpoint(tmp_path: Path) -> None:
    """Oracle: the best one's best step; `evaluate` measures it beside the winner."""
    sweep = open_sweep(Folder(tmp_path), tuned())
    while isinstance(job := sweep.next_job(), Job):
        for row in evaluations(job):
            (sweep.folder.trial(job.id) / "checkpoints" / checkpoint_name(row.step)).write_text("manifest.json", "{}")
            sweep.evaluated(job.id, row)
        sweep.ended(job.id)
    plain = [record(sweep, one) for one in PLAIN_IDS]
    own = min(plain, key=loss)
    kept = {trial.id: (sweep.folder.trial(trial.id) / "checkpoints").names() for trial in plain}
    assert {name for name, found in kept.items() if found} == {own.id}


def test_plain_fine_tuning_has_no_search_beside_itself() -> None:
    """Oracle: the error names the field."""
    with pytest.raises(UserError, match=r"search\.confirm\.plain: 'tuned' searches plain fine-tuning, which is the method itself"):
        check_document(tuned(method={"finetune": {}}))


@pytest.mark.parametrize("when", ["torn", "after"])
def test_killed_in_its_midst(when: str, tmp_path: Path) -> None:
    """Oracle: the undisturbed sweep, both studies included; what had ended doesn't run again."""
    counter = Killer(None, when)
    with pytest.MonkeyPatch.context() as patch:
        counter.install(patch)
        undisturbed = open_sweep(Folder(tmp_path / "whole"), tuned(3))
        finish(undisturbed)
    expected = everything(undisturbed)
    for at in range(counter.count // 2, counter.count, 9):
        folder = Folder(tmp_path / str(at))
        killed(folder, tuned(3), Killer(at, when), curve)
        resumed = open_sweep(folder, tuned(3))
        ended = {trial.id for trial in resumed.folder.trials() if trial.state != "RUNNING"}
        assert not ended & set(finish(resumed)), at
        assert everything(resumed) == expected, at
        shutil.rmtree(tmp_path / str(at))
