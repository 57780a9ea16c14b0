"""A search that begins with the trials of earlier sweeps, driven without Ray."""

from __future__ import annotations

import io
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from optuna.trial import TrialState
from rich.console import Console

from fewshot_ray.errors import UserError
from fewshot_ray.report.progress import Progress
from fewshot_ray.search.frozen_trials import EARLIER, ENTERED, SWEEP, TRIAL
from fewshot_ray.search.job import Job
from fewshot_ray.search.journal import Journal
from fewshot_ray.search.opened import Opened, existing_sweep, planned_sweep, put_on_record
from fewshot_ray.search.study import Study
from fewshot_ray.search.sweep import Sweep
from fewshot_ray.search.warm_start import WarmStart, earlier_sweeps, warm_start
from fewshot_ray.search.winner import exported_trial
from fewshot_ray.spec.alternatives import choice_of_methods
from fewshot_ray.spec.ranges import Choice, FloatRange, IntRange
from fewshot_ray.trial.ranking import Ranking
from tests.cli.conftest import write_pictures
from tests.search import synthetic
from tests.search.synthetic import ASHA, Curve, NoBoards, curve, evaluations, file, finish, outcome, run_job

pytestmark = pytest.mark.usefixtures("light")


def planned(place: Path | str, name: str, **sections: Any) -> Opened:
    return put_on_record(planned_sweep(file(name=name, storage=str(place), **sections)))


def opened(found: Opened, out: io.StringIO | None = None) -> Sweep:
    progress = Progress(8, ranking=Ranking.of(found.file.search), console=Console(file=out or io.StringIO(), width=400))
    return Sweep(found.document, found.file, found.folder, Journal(found.folder.folder), progress, NoBoards(), concurrent=1)  # type: ignore[arg-type]


def earlier(place: Path | str, name: str = "a", how: Curve = curve, **sections: Any) -> Sweep:
    """A sweep that has ended."""
    sweep = opened(planned(place, name, **sections))
    finish(sweep, how)
    return sweep


def start(found: Opened) -> WarmStart:
    return warm_start(found.document, found.file, earlier_sweeps(found.document, found.file, found.folder.folder))


def entered(sweep: Sweep) -> list[Any]:
    return [trial for trial in sweep.study.study.get_trials() if trial.user_attrs["origin"] == ENTERED]


def test_results_enter_and_are_not_trained_again(tmp_path: Path) -> None:
    """Oracle: the earlier study's own trials; this sweep has as many trials of its own as it asks for, none of them known but the
    preset and the best one, which must be here to be exported."""
    before = earlier(tmp_path, search={"trials": 8, "scheduler": ASHA})
    out = io.StringIO()
    found = planned(tmp_path, "b", search={"trials": 6, "scheduler": ASHA, "from": [str(tmp_path / "a")]})
    sweep = opened(found, out)
    theirs = {f"t{trial.number:04d}": trial for trial in before.study.study.get_trials() if trial.user_attrs["origin"] != "plain"}
    assert {trial.user_attrs[TRIAL] for trial in entered(sweep)} == set(theirs)
    for trial in entered(sweep):
        same = theirs[trial.user_attrs[TRIAL]]
        assert trial.user_attrs[SWEEP] == str(tmp_path / "a")
        for part in ("state", "values", "params", "intermediate_values", "constraints"):
            assert getattr(trial, part) == getattr(same, part), part
        assert trial.user_attrs.get("best") == same.user_attrs.get("best")
    assert "7 trials enter with their results; the values of 1 are tried first; 1 give nothing (1 method.ant.noise_steps" in out.getvalue()
    shutil.rmtree(tmp_path / "a")  # it isn't needed any more
    assert len(finish(sweep)) == 6
    records = sweep.folder.trials()
    assert [record.origin for record in records] == ["preset", "plain", EARLIER, "sampler", "sampler", "sampler"]
    assert [record.number for record in records] == list(range(7, 13))
    known = [trial.params for trial in entered(sweep)]
    trained = [sweep.study.study.get_trials()[record.number or 0].params for record in records]
    assert [params in known for params in trained] == [True, False, True, False, False, False]
    best = min((trial for trial in entered(sweep) if trial.state is TrialState.COMPLETE), key=lambda trial: trial.value)
    assert (records[2].label, trained[2]) == (f"as {tmp_path / 'a'}/{best.user_attrs[TRIAL]}", best.params)
    assert exported_trial(sweep.folder, found.file).id in {record.id for record in records}
    assert existing_sweep(found.folder.folder).file == found.file
    assert put_on_record(planned_sweep(file(name="b", storage=str(tmp_path), search=found.document.tree["search"]))).file == found.file


def test_an_earlier_sweep_in_an_object_store(tmp_path: Path) -> None:
    """Oracle: the same sweep on a disk gives the same."""
    taken = []
    for place in (str(tmp_path), f"memory://{uuid4().hex}"):
        earlier(place, search={"trials": 6})
        sweep = opened(planned(place, "b", search={"trials": 4, "from": [f"{place}/a"]}))
        finish(sweep)
        assert {trial.user_attrs[SWEEP] for trial in entered(sweep)} == {f"{place}/a"}
        taken.append([(trial.user_attrs.get(TRIAL), trial.params, trial.values) for trial in sweep.study.study.get_trials()])
    assert taken[0] == taken[1]
    assert any(trial_id is not None for trial_id, *_ in taken[0])


def test_a_resumed_search_proposes_the_same(tmp_path: Path) -> None:
    """Oracle: the undisturbed sweep; the other one is opened anew before each trial, and the earlier sweep is gone after the first."""
    earlier(tmp_path, search={"trials": 6})
    search = {"trials": 7, "from": [str(tmp_path / "a")]}
    calm = opened(planned(tmp_path, "calm", search=search))
    finish(calm)
    found = planned(tmp_path, "torn", search=search)
    for number in range(7):
        sweep = opened(found)
        job = sweep.next_job()
        assert isinstance(job, Job)
        run_job(sweep, job)
        if number == 0:
            shutil.rmtree(tmp_path / "a")
    results = [{key: value for key, value in outcome(one).items() if not key.endswith(" spec")} for one in (calm, sweep)]
    assert results[0] == results[1]


def test_a_kill_while_they_enter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: each enters once."""
    earlier(tmp_path, search={"trials": 6})
    found = planned(tmp_path, "b", search={"trials": 6, "from": [str(tmp_path / "a")]})
    add = Study._add

    def killed(self: Study, trial: Any) -> Any:
        if len(self.proposals()) == 3:
            raise KeyboardInterrupt
        return add(self, trial)

    monkeypatch.setattr(Study, "_add", killed)
    with pytest.raises(KeyboardInterrupt):
        opened(found)
    monkeypatch.setattr(Study, "_add", add)
    names = [trial.user_attrs[TRIAL] for trial in entered(opened(found))]
    assert len(names) == len(set(names)) == 5


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"train": {"batch_size": 8}}, "train.batch_size"),
        ({"seed": 5}, "seed"),
        ({"evaluate": {"loss_draws": 16}}, "evaluate.loss_draws"),
        ({"target": {"images": "embedded://digits/shots", "shots": 5, "holdout": 2}}, "target.shots"),
        ({"method": {"ant": {**synthetic.ANT, "guidance": 2.0}}}, "method.ant.guidance"),
    ],
)
def test_where_something_differs_the_best_values_are_tried_first(sections: dict[str, Any], said: str, tmp_path: Path) -> None:
    """Oracle: the earlier leaderboard's best, in their order, at most a third of the trials; nothing enters."""
    before = earlier(tmp_path, search={"trials": 8})
    found = planned(tmp_path, "b", **{"search": {"trials": 9, "from": [str(tmp_path / "a")]}, **sections})
    begun = start(found)
    assert begun.known == []
    ranked = sorted(
        (record for record in before.folder.trials() if record.origin == "sampler"),
        key=lambda record: (record.values or {})["holdout_loss"],
    )
    assert [trial.id for trial in begun.to_try] == [record.id for record in ranked[:3]]
    assert [trial.values for trial in begun.to_try] == [record.params for record in ranked[:3]]
    assert f"no result enters, since this sweep differs in {said}; the values of 3 are tried first" in begun.lines[0]
    sweep = opened(found)
    finish(sweep)
    assert [record.origin for record in sweep.folder.trials()] == ["preset", "plain", *[EARLIER] * 3, *["sampler"] * 4]


@pytest.mark.parametrize(
    "sections",
    [
        {"resources": {"workers": 2}},
        {"train": {"checkpoint_sec": 5.0, "micro_batch": 2}},
        {"evaluate": {"final_samples": 7, "metrics": ["holdout_loss", "memorisation"]}},
        {"search": {"scheduler": ASHA, "constraints": {"memorisation": "<= 0.2"}}},
        {"train": {"params": "full"}},  # searched there, given here: those with this value enter
    ],
)
def test_what_no_value_depends_on_may_differ(sections: dict[str, Any], tmp_path: Path) -> None:
    before = earlier(tmp_path, search={"trials": 8})
    search = {"trials": 9, "from": [str(tmp_path / "a")], **sections.get("search", {})}
    known = start(planned(tmp_path, "b", **{**sections, "search": search})).known
    same = [record for record in before.folder.trials() if record.origin != "plain"]
    if "params" in sections.get("train", {}):
        same = [record for record in same if record.params["train.params"] == "full"]
        assert 0 < len(same) < 7
    assert [trial.id for trial, _ in known] == [record.id for record in same]


def test_images_are_compared_by_their_content(tmp_path: Path) -> None:
    """Oracle: a copy elsewhere is the same; a changed picture isn't, and is named."""
    write_pictures(tmp_path / "photos", 5)
    target = {"images": str(tmp_path / "photos"), "shots": 4, "holdout": 2}
    earlier(tmp_path, target=target, search={"trials": 4})
    shutil.copytree(tmp_path / "photos", tmp_path / "copy")
    target = {**target, "images": str(tmp_path / "copy")}
    search = {"trials": 6, "from": [str(tmp_path / "a")]}
    assert len(start(planned(tmp_path, "b", target=target, search=search)).known) == 3
    changed = sorted((tmp_path / "copy").iterdir())[0]
    changed.write_bytes(changed.read_bytes() + b"\0")
    begun = start(planned(tmp_path, "c", target=target, search=search))
    assert begun.known == []
    assert f"{changed.name} changed" in begun.lines[0]
    (tmp_path / "a" / "inputs.json").unlink()
    assert "images and models, perhaps (it has no inputs.json)" in start(planned(tmp_path, "d", target=target, search=search)).lines[0]


def test_failures_enter_as_they_were(tmp_path: Path) -> None:
    """Oracle: by hand: failed by its values, crashed, running, and without a finite objective of this sweep."""
    sweep = opened(planned(tmp_path, "a", search={"trials": 8, "include_plain": False, "retries": 0}))
    sweep.concurrent = 2
    for number in range(4):
        job = sweep.next_job()
        assert isinstance(job, Job)
        for row in evaluations(job):
            row.metrics["kid"] = math.nan if number == 3 else row.metrics["kid"]  # type: ignore[index]
            sweep.evaluated(job.id, row)
            if number in (0, 1):
                break
        if number == 0:
            sweep.failed(job.id, "the loss is nan", by_values=True)
        if number == 1:
            sweep.lost(job.id, "it crashed")
        if number != 2:
            sweep.ended(job.id)
    search = {"trials": 8, "objectives": {"kid": "min"}, "from": [str(tmp_path / "a")]}
    begun = start(planned(tmp_path, "b", search=search))
    found = [(trial.id, result.state.name, result.failed_by) for trial, result in begun.known]
    assert found == [("t0000", "FAIL", "values"), ("t0001", "FAIL", "worker"), ("t0003", "FAIL", "values")]
    assert "1 give nothing (1 not ended)" in begun.lines[0]


def test_the_best_evaluation_is_that_of_this_sweeps_objective(tmp_path: Path) -> None:
    """Oracle: the least KID of the rows on record, where the earlier sweep's own objective was the held-out loss."""
    before = earlier(tmp_path, search={"trials": 5})
    known = start(planned(tmp_path, "b", search={"trials": 5, "objectives": {"kid": "min"}, "from": [str(tmp_path / "a")]})).known
    assert len(known) == 4
    for trial, result in known:
        assert result.values is not None
        assert result.values["kid"] == min(row.metrics["kid"] for row in before.folder.rows(trial.id))


def test_where_all_configurations_are_known(tmp_path: Path) -> None:
    """Oracle: three learning rates, all trained before: the preset and the best are trained here again, and plain fine-tuning; no more."""
    few = {"method": {"ant": {"noise_norm": "moments"}}, "train": {"params": "full", "lr": Choice((1e-4, 1e-3, 1e-2))}}
    before = earlier(tmp_path, search={"trials": 9}, **few)
    assert len(before.folder.trials()) == 4
    sweep = opened(planned(tmp_path, "b", search={"trials": 9, "from": [str(tmp_path / "a")]}, **few))
    finish(sweep)
    best = min((one for one in before.folder.trials() if one.origin != "plain"), key=lambda one: (one.values or {})["holdout_loss"])
    assert len(sweep.folder.trials()) == (2 if best.origin == "preset" else 3)
    assert sweep.done


def test_a_sweep_gives_what_it_trained_itself(tmp_path: Path) -> None:
    """Oracle: the second sweep's own trials, those at the first one's values among them; what it took over comes from there alone."""
    earlier(tmp_path, search={"trials": 5})
    second = earlier(tmp_path, "b", search={"trials": 6, "from": [str(tmp_path / "a")]})
    known = start(planned(tmp_path, "c", search={"trials": 6, "from": [str(tmp_path / "b")]})).known
    own = [record for record in second.folder.trials() if record.origin != "plain"]
    assert EARLIER in {record.origin for record in own}
    assert [trial.id for trial, _ in known] == [record.id for record in own]


def test_methods_that_are_searched(tmp_path: Path) -> None:
    """Oracle: the trials that have what is searched: of an earlier sweep of alternatives all, of one of a single method its own, and where
    that one method is all that is left of the alternatives, those that had chosen it."""
    ant = {**synthetic.ANT, "noise_steps": IntRange(1, 9)}
    methods = {"method": choice_of_methods(["sdft", {"ant": ant}, {"ant": ant, "sdft": {"lambda_aux": FloatRange(0.0, 1.0)}}])}
    both = earlier(tmp_path, "both", search={"trials": 12}, **methods)
    chose = [record for record in both.folder.trials() if record.origin != "plain"]
    assert len({record.params["method"] for record in chose}) == 3
    sweep = opened(planned(tmp_path, "again", search={"trials": 6, "from": [str(tmp_path / "both")]}, **methods))
    assert [trial.user_attrs[TRIAL] for trial in entered(sweep)] == [record.id for record in chose]
    finish(sweep)
    one = earlier(tmp_path, "one", search={"trials": 5}, method={"ant": ant})
    known = start(planned(tmp_path, "to", search={"trials": 6, "from": [str(tmp_path / "one")]}, **methods)).known
    assert [trial.id for trial, _ in known] == [record.id for record in one.folder.trials() if record.origin != "plain"]
    assert {trial.values["method"] for trial, _ in known} == {"ant"}
    known = start(planned(tmp_path, "of", search={"trials": 6, "from": [str(tmp_path / "both")]}, method={"ant": ant})).known
    assert [trial.id for trial, _ in known] == [record.id for record in chose if record.params["method"] == "ant"]


def test_a_record_with_others_values_gives_nothing(tmp_path: Path) -> None:
    before = earlier(tmp_path, search={"trials": 3})
    record = before.folder.trials()[2]
    before.folder.write_trial(replace(record, params={**record.params, "train.speed": 3}))
    assert "1 with values that its sweep doesn't search" in start(planned(tmp_path, "b", search={"from": [str(tmp_path / "a")]})).lines[0]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("nothing", r"search\.from\.0: .*nothing: no sweep there \(spec\.yaml is missing\); a folder that `fewshot-ray run` made is right"),
        ("b", r"search\.from\.0: .*/b is this sweep itself; an earlier one is right"),
        ("old", r"search\.from\.0: nothing can be taken over \(.*an older fewshot-ray began this sweep \(format 1"),
        ("new", r"search\.from\.0: nothing can be taken over \(.*a newer fewshot-ray wrote this sweep \(format 9"),
        ("broken", r"search\.from\.0: nothing can be taken over \(.*train"),
        ("other", r"search\.from\.0: .*other measured none of this sweep's objectives \(holdout_loss\); a sweep that did is right"),
    ],
)
def test_sweeps_that_are_refused(place: str, message: str, tmp_path: Path) -> None:
    planned(tmp_path, "a")
    text = (tmp_path / "a" / "spec.yaml").read_text()
    texts = {
        "old": text.replace("format 2", "format 1"),
        "new": text.replace("format 2", "format 9"),
        "broken": text.replace("train:", "train:\n  speed: 3"),
    }
    if place in texts:
        shutil.copytree(tmp_path / "a", tmp_path / place)
        (tmp_path / place / "spec.yaml").write_text(texts[place])
    planned(tmp_path, "other", evaluate={"metrics": ["kid"]}, search={"trials": 5, "objectives": {"kid": "min"}})
    sweeps = [str(tmp_path / place)]
    found = planned_sweep(file(name="b", storage=str(tmp_path), search={"trials": 5, "from": sweeps}))
    put_on_record(found)
    with pytest.raises(UserError, match=message):
        start(found)


def test_one_that_is_named_twice_in_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"search\.from: 'a' is given twice; once is right"):
        planned_sweep(file(name="b", storage=str(tmp_path), search={"from": ["a", "a"]}))
    planned(tmp_path, "a")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with pytest.raises(UserError, match=r"search\.from: .* is given twice; once is right"):
        planned_sweep(file(name="b", storage=str(tmp_path), search={"from": [str(tmp_path / "a"), str(tmp_path / "link")]}))
