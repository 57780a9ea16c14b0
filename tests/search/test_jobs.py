"""Jobs: what a worker is handed, and which follow the search."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from fewshot_ray.errors import UserError
from fewshot_ray.search.frozen_trials import Proposal
from fewshot_ray.search.job import Job
from fewshot_ray.search.jobs import after_search, rerun_steps, search_job
from fewshot_ray.search.sweep_folder import Kind, State, SweepFolder, TrialRecord
from fewshot_ray.search.winner import exported_trial
from fewshot_ray.spec.document import Document, parse_document, to_yaml
from fewshot_ray.spec.sections import FileSpec
from fewshot_ray.storage import Folder
from fewshot_ray.trial.compose import check_document, compose, with_values
from tests.search.synthetic import file

VALUES = {"method.ant.noise_steps": 3, "method.ant.noise_step_size": 0.02, "train.lr": 2e-3, "train.params": {"lora": {"rank": 2}}}
CROSSFIT = {"images": "embedded://digits/shots", "shots": 4, "holdout": {"crossfit": 2}}


def checked(**sections: Any) -> tuple[Document, FileSpec]:
    return check_document(file(**sections))


def test_a_proposals_job() -> None:
    """Oracle: the file with the values in their places; it comes back from JSON, and composes."""
    document, spec = checked(target=CROSSFIT)
    job = search_job(document, spec, Proposal(12, VALUES, "sampler", TrialState.RUNNING))
    assert (job.id, job.number, job.kind, job.last_step, job.folds, job.seed) == ("t0012", 12, "search", 8, 2, 0)
    assert job.tree == with_values(document, VALUES).tree
    assert Job.from_json(job.to_json()) == job
    assert json.loads(job.to_json())["tree"]["train"]["params"] == {"lora": {"rank": 2}}
    composed = compose(Document(job.tree, job.id), seed=job.seed)
    assert (composed.file.train.lr, composed.params) == (2e-3, "lora")


def test_plain_fine_tunings_job() -> None:
    """Oracle: no method's settings, the same `train`."""
    document, spec = checked()
    values = {path: value for path, value in VALUES.items() if path.startswith("train.")}
    job = search_job(document, spec, Proposal(1, values, "plain", TrialState.RUNNING))
    assert job.tree["method"] == {"finetune": {}}
    assert job.tree["train"]["lr"] == 2e-3


class Ended:
    """A sweep's folder after its search, from (id, state, loss, memorisation, method)."""

    def __init__(self, place: Path, **sections: Any) -> None:
        self.document, self.file = checked(**sections)
        self.folder = SweepFolder(Folder(place))

    def trial(self, number: int, loss: float, state: State = "COMPLETE", origin: str = "sampler", memorisation: float = 0.0) -> None:
        values = {path: value for path, value in VALUES.items() if origin != "plain" or path.startswith("train.")}
        job = search_job(self.document, self.file, Proposal(number, values, origin, TrialState.RUNNING))
        self.write(job, loss, state, memorisation)

    def write(self, job: Job, loss: float, state: State = "COMPLETE", memorisation: float = 0.0) -> None:
        metrics = {"holdout_loss": loss, "kid": loss, "memorisation": memorisation}
        self.folder.write_trial(TrialRecord(job.id, job.number, job.kind, job.origin, job.label, job.seed, state, job.params, 6, metrics))
        self.folder.trial(job.id).write_text("spec.yaml", to_yaml(job.tree))

    def jobs(self) -> list[Job]:
        return after_search(self.folder, self.file)

    def run(self, losses: dict[str, float], *, failed: tuple[str, ...] = (), memorisation: dict[str, float] | None = None) -> None:
        for job in self.jobs():
            loss = losses.get(job.origin, 1.0)
            self.write(job, loss, "FAIL" if job.id in failed else "COMPLETE", (memorisation or {}).get(job.origin, 0.0))


def kinds(jobs: list[Job]) -> list[tuple[Kind, str, int]]:
    return [(job.kind, job.origin, job.seed) for job in jobs]


def test_nothing_follows_where_nothing_ran_to_its_end(tmp_path: Path) -> None:
    """Oracle: a pruned and a failed trial are no winners, whatever their values."""
    ended = Ended(tmp_path, target=CROSSFIT, search={"confirm": {"seeds": [1]}})
    ended.trial(0, 0.1, "PRUNED")
    ended.trial(1, 0.1, "FAIL")
    assert ended.jobs() == []
    with pytest.raises(UserError, match="no trial has run to its end"):
        exported_trial(ended.folder, ended.file)


def test_confirmation_and_controls(tmp_path: Path) -> None:
    """Oracle: the winner's spec on each seed, and plain fine-tuning with the winner's `train` on the same."""
    ended = Ended(tmp_path, search={"confirm": {"seeds": [5, 6]}})
    ended.trial(0, 0.3)
    ended.trial(1, 0.2)
    jobs = ended.jobs()
    assert kinds(jobs) == [(kind, "t0001", seed) for seed in (5, 6) for kind in ("confirm", "control")]
    confirm, control = jobs[:2]
    winner = parse_document(ended.folder.trial("t0001").read_text("spec.yaml"), "spec").tree
    assert confirm.tree == winner
    assert control.tree == {**winner, "method": {"finetune": {}}}
    assert control.tree["train"]["lr"] == 2e-3
    ended.run({})
    assert exported_trial(ended.folder, ended.file).id == "t0001"


@pytest.mark.parametrize("sections", [{}, {"method": {"finetune": {}}}])
def test_plain_fine_tuning_is_its_own_control(sections: dict[str, Any], tmp_path: Path) -> None:
    """Oracle: the control would be the same run twice, also where the sampler proposed it."""
    ended = Ended(tmp_path, search={"confirm": {"seeds": [5]}}, **sections)
    if sections:
        values = {path: value for path, value in VALUES.items() if path.startswith("train.")}
        ended.write(search_job(ended.document, ended.file, Proposal(0, values, "sampler", TrialState.RUNNING)), 0.1)
    else:
        ended.trial(0, 0.1, origin="plain")
        ended.trial(1, 0.2)
    assert kinds(ended.jobs()) == [("confirm", "t0000", 5)]


@pytest.mark.parametrize(
    ("best_step", "expected"), [(80, 120), (40, 80), (120, 200), (160, 240), (320, 480), (360, 500), (480, 500), (500, 500)]
)
def test_a_rerun_goes_half_as_far_again_as_the_best_step(best_step: int, expected: int) -> None:
    """Oracle: by hand: 1.5 x, up to the next multiple of 40, at most 500."""
    assert rerun_steps(best_step, steps=500, every=40) == expected


def test_a_rerun_ends_where_it_may_and_its_control_goes_on(tmp_path: Path) -> None:
    """Oracle: the best step on record is 6 of 24, so reruns end at 10, the evaluation after 9; nothing tells when a control is best."""
    ended = Ended(tmp_path, search={"confirm": {"seeds": [5]}}, train={"steps": 24})
    ended.trial(0, 0.3)
    assert [(job.kind, job.last_step) for job in ended.jobs()] == [("confirm", 10), ("control", 24)]
    assert all(job.tree["train"]["steps"] == 24 for job in ended.jobs())


def confirmed(place: Path, seeds: list[int], *, top: int = 2, losses: tuple[float, ...] = (0.3, 0.1, 0.2), **sections: Any) -> Ended:
    ended = Ended(place, search={"confirm": {"top": top, "seeds": seeds}}, **sections)
    for number, loss in enumerate(losses):
        ended.trial(number, loss)
    return ended


def test_half_of_the_seeds_choose_and_the_others_report(tmp_path: Path) -> None:
    """Oracle: both are rerun on the first half of the seeds; the better of them there is reported on the others, and refitted."""
    ended = confirmed(tmp_path, [5, 6, 7, 8, 9], target=CROSSFIT)
    choosing = [("confirm", origin, seed) for origin in ("t0001", "t0002") for seed in (5, 6)]
    assert kinds(ended.jobs()) == choosing
    with pytest.raises(UserError, match="t0001 isn't refitted"):
        exported_trial(ended.folder, ended.file)
    ended.run({"t0001": 0.9, "t0002": 0.8})
    reporting = [(kind, "t0002", seed) for seed in (7, 8, 9) for kind in ("confirm", "control")]
    assert kinds(ended.jobs()) == [*choosing, *reporting, ("refit", "t0002", 0)]
    refit = ended.jobs()[-1]
    assert (refit.id, refit.refit_steps, refit.last_step, refit.folds) == ("refit-t0002", 6, 6, 1)
    for job in ended.jobs()[4:]:
        ended.write(job, 2.0)  # what they report chooses nothing any more
    assert exported_trial(ended.folder, ended.file).id == "refit-t0002"


@pytest.mark.parametrize(
    ("seeds", "choosing", "reporting"),
    [
        ([5], [5], []),
        ([5, 6], [5], [6]),
        ([5, 6, 7], [5], [6, 7]),
        ([5, 6, 7, 8], [5, 6], [7, 8]),
        ([9, 1, 4, 2, 3, 7], [9, 1, 4], [2, 3, 7]),
    ],
)
def test_every_seed_has_one_purpose(seeds: list[int], choosing: list[int], reporting: list[int], tmp_path: Path) -> None:
    """Oracle: by hand. A single seed chooses; what it chose isn't reported on it."""
    ended = confirmed(tmp_path / "two", seeds)
    ended.run({"t0001": 0.5, "t0002": 0.4})
    assert [job.seed for job in ended.jobs() if job.kind == "confirm" and job.origin == "t0001"] == choosing
    assert [job.seed for job in ended.jobs() if job.kind == "control"] == reporting
    alone = confirmed(tmp_path / "one", seeds, top=1)
    assert [job.seed for job in alone.jobs() if job.kind == "confirm"] == seeds
    single = confirmed(tmp_path / "single", seeds, losses=(0.3,))
    assert [(job.kind, job.seed) for job in single.jobs()] == [(kind, seed) for seed in reporting for kind in ("confirm", "control")]


@pytest.mark.parametrize("top", [1, 2])
def test_a_trials_spec_is_read_once_for_all_its_jobs(top: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: one reading for each trial that jobs come from, of however many seeds; parsing one takes longer than all else."""
    ended = confirmed(tmp_path, [5, 6, 7, 8, 9], top=top, target=CROSSFIT)
    ended.run({})
    read, read_text = [], Folder.read_text

    def counted(folder: Folder, name: str) -> str:
        read.append(folder.url.rsplit("/", 1)[-1])
        return read_text(folder, name)

    monkeypatch.setattr(Folder, "read_text", counted)
    jobs = ended.jobs()
    assert len(jobs) == 11
    assert sorted(read) == ["t0001", "t0002"][:top]


def test_a_failed_refit_says_so(tmp_path: Path) -> None:
    """Oracle: resuming would not help."""
    ended = Ended(tmp_path, target=CROSSFIT)
    ended.trial(0, 0.3)
    ended.write(ended.jobs()[-1], 0.0, "FAIL")
    with pytest.raises(UserError, match="refit-t0000 failed"):
        exported_trial(ended.folder, ended.file)


def test_a_rerun_that_failed_confirms_nothing(tmp_path: Path) -> None:
    """Oracle: the other of the two wins, though the failed rerun had better values before it failed; without any, the search's order."""
    cases = [("a", ("confirm-t0000-seed5",), "t0001"), ("b", ("confirm-t0000-seed5", "confirm-t0001-seed6"), "t0000")]
    for place, failed, expected in cases:
        ended = Ended(tmp_path / place, search={"confirm": {"top": 2, "seeds": [5, 6, 7, 8]}})
        ended.trial(0, 0.1)
        ended.trial(1, 0.2)
        ended.run({"t0000": 0.1, "t0001": 0.3}, failed=failed)
        assert exported_trial(ended.folder, ended.file).id == expected


def test_a_winner_keeps_the_bounds(tmp_path: Path) -> None:
    """Oracle: one within the bounds wins over a better one past them, be it past them in the search or on the fresh seeds."""
    search = {"constraints": {"memorisation": "<= 0.2"}, "confirm": {"top": 2, "seeds": [5]}}
    ended = Ended(tmp_path, search=search)
    ended.trial(0, 0.2)
    ended.trial(1, 0.1, memorisation=0.5)
    ended.run({"t0000": 0.2, "t0001": 0.1}, memorisation={"t0001": 0.5})
    assert exported_trial(ended.folder, ended.file).id == "t0000"
