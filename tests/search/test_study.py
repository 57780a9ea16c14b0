"""The Optuna study: what is stored, what is told, and that a re-opened one proposes what the open one would have."""

from __future__ import annotations

import math
import os
import random
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from fewshot_ray.errors import UserError
from fewshot_ray.search.distributions import at_quantile, distribution, from_optuna, to_optuna
from fewshot_ray.search.frozen_trials import Proposal, Result
from fewshot_ray.search.read_journal import read_journal
from fewshot_ray.search.study import Study
from fewshot_ray.search.sweep_folder import EvaluationRow
from fewshot_ray.spec.ranges import Choice, FloatRange, IntRange, Range
from fewshot_ray.spec.sections import SearchSpec

PARAMS = Choice(("full", {"lora": {"rank": 2}}, {"lora": {"rank": 4}}))
RANGES: dict[str, Range] = {"train.lr": FloatRange(1e-5, 1e-2, log=True), "method.ant.noise_steps": IntRange(1, 20), "train.params": PARAMS}
ONE: dict[str, Any] = {"objectives": {"holdout_loss": "min"}}
TWO: dict[str, Any] = {"objectives": {"kid": "min", "pairwise_distance": "max"}}


def study(folder: Path, *, sampler: str = "random", trials: int = 12, ranges: dict[str, Range] = RANGES, **search: Any) -> Study:
    return Study(folder / "study.journal", "s", SearchSpec(sampler=sampler, trials=trials, **(search or ONE)), ranges, seed=3)


def row(step: int, **metrics: float) -> EvaluationRow:
    return EvaluationRow(step, 0.0, metrics, 0.0, 0.0, 0.0, 1.0)


def loaded(folder: Path) -> optuna.Study:
    """As any Optuna tool reads it."""
    return optuna.load_study(study_name="s", storage=JournalStorage(JournalFileBackend(str(folder / "study.journal"))))


@pytest.mark.parametrize(
    ("range_", "expected", "values"),
    [
        (FloatRange(0.0, 1.0), FloatDistribution(0.0, 1.0), [0.0, 0.1 + 0.2, 1.0]),
        (FloatRange(1e-5, 1e-2, log=True), FloatDistribution(1e-5, 1e-2, log=True), [1e-5, 3.3e-4]),
        (IntRange(1, 20), IntDistribution(1, 20), [1, 20]),
        (Choice(("a", 1, 2.5, None, False)), CategoricalDistribution(("a", 1, 2.5, None, False)), ["a", 1, 2.5, None, False]),
        (PARAMS, CategoricalDistribution(("index 0", "index 1", "index 2")), list(PARAMS.values)),
        (Choice((1, True, 1.0, "1")), CategoricalDistribution(("index 0", "index 1", "index 2", "index 3")), [1, True, 1.0, "1"]),
        (Choice(([0.9, 0.999], [0.5, 0.9])), CategoricalDistribution(("index 0", "index 1")), [[0.9, 0.999], [0.5, 0.9]]),
    ],
)
def test_distributions_round_trip(range_: Range, expected: object, values: list[object]) -> None:
    """Oracle: Optuna's own distributions; every value comes back."""
    assert distribution(range_) == expected
    for value in values:
        stored = to_optuna(range_, value)
        assert distribution(range_)._contains(distribution(range_).to_internal_repr(stored))
        assert repr(from_optuna(range_, stored)) == repr(value)


def test_adding_is_one_line_of_the_journal(tmp_path: Path) -> None:
    """Oracle: the file's newlines, and the study that another reader loads."""
    s = study(tmp_path)
    journal = tmp_path / "study.journal"
    values = {"train.lr": 1e-3, "method.ant.noise_steps": 7, "train.params": {"lora": {"rank": 4}}}
    before = journal.read_bytes().count(b"\n")
    added = s.add(values, "preset")
    assert journal.read_bytes().count(b"\n") == before + 1
    proposed = s.propose()
    assert journal.read_bytes().count(b"\n") == before + 2
    assert (added.number, added.values, added.origin, added.state) == (0, values, "preset", TrialState.RUNNING)
    assert s.proposals() == [added, proposed]
    assert study(tmp_path).proposals() == [added, proposed]
    assert [trial.state for trial in loaded(tmp_path).trials] == [TrialState.RUNNING] * 2


def test_an_integer_in_a_float_range_is_the_same_after_opening_anew(tmp_path: Path) -> None:
    """Oracle: the type as well, for the trial's spec is written from it."""
    ranges: dict[str, Range] = {"method.ant.guidance": FloatRange(0.0, 10.0)}
    added = study(tmp_path, ranges=ranges).add({"method.ant.guidance": 3}, "preset")
    again = study(tmp_path, ranges=ranges).proposals()[0]
    assert repr(added) == repr(again)


@pytest.mark.parametrize("kept", [0, 1, 40])
def test_a_torn_last_line_is_healed(tmp_path: Path, kept: int) -> None:
    """Oracle: the trials before it, and new ones after it."""
    s = study(tmp_path)
    first = s.propose()
    journal = tmp_path / "study.journal"
    whole = journal.read_bytes()
    second = s.propose()
    journal.write_bytes(whole + journal.read_bytes()[len(whole) :][:kept])
    again = study(tmp_path)
    assert again.proposals() == [first]
    assert again.propose() == second
    assert study(tmp_path).proposals() == [first, second]
    assert len(loaded(tmp_path).trials) == 2


def test_a_lock_left_by_a_killed_driver_costs_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: Optuna sleeps while it waits for a lock, 30 s for one that nobody opens."""
    study(tmp_path)
    journal = tmp_path / "study.journal"
    os.symlink(journal, f"{journal}.lock")
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("waits for the lock"))
    study(tmp_path).propose()
    assert [path.name for path in tmp_path.iterdir()] == ["study.journal"]


def test_the_truth_about_how_trials_ended(tmp_path: Path) -> None:
    """Oracle: what Optuna reads back. The pruned one has the least value of all and is not the best."""
    s = study(tmp_path)
    for _ in range(3):
        s.propose()
    pruned = [row(2, holdout_loss=0.01), row(4, holdout_loss=math.nan), row(6, holdout_loss=0.02)]
    s.finish(0, Result(TrialState.PRUNED, {"holdout_loss": 0.01}, pruned, {}))
    s.finish(1, Result(TrialState.COMPLETE, {"holdout_loss": 0.5, "kid": 3.0}, [row(2, holdout_loss=0.5), row(4, holdout_loss=0.6)], {}))
    s.finish(2, Result(TrialState.FAIL, {"holdout_loss": 0.001}, [row(2, holdout_loss=0.001)], {}))
    read = loaded(tmp_path)
    assert [trial.state for trial in read.trials] == [TrialState.PRUNED, TrialState.COMPLETE, TrialState.FAIL]
    assert read.trials[0].intermediate_values == {2: 0.01, 6: 0.02}
    assert read.trials[1].intermediate_values == {2: 0.5, 4: 0.6}
    assert read.trials[1].values == [0.5]
    assert read.trials[2].values is None
    assert read.best_value == 0.5
    assert read.metric_names == ["holdout_loss"]


def test_a_failed_trial_has_no_value(tmp_path: Path) -> None:
    """Oracle: nothing that a sampler could take for a result."""
    s = study(tmp_path)
    s.propose()
    s.finish(0, Result(TrialState.FAIL, None, [], {}))
    trial = loaded(tmp_path).trials[0]
    assert (trial.state, trial.values, trial.intermediate_values) == (TrialState.FAIL, None, {})


def test_telling_twice_changes_nothing(tmp_path: Path) -> None:
    """Oracle: the journal's bytes."""
    s = study(tmp_path)
    s.propose()
    s.finish(0, Result(TrialState.COMPLETE, {"holdout_loss": 0.5}, [], {}))
    before = (tmp_path / "study.journal").read_bytes()
    s.finish(0, Result(TrialState.FAIL, {"holdout_loss": 0.1}, [row(2, holdout_loss=1.0)], {"kid": 1.0}))
    assert (tmp_path / "study.journal").read_bytes() == before


def test_constraints_are_told(tmp_path: Path) -> None:
    """Oracle: Optuna's best is the best of those that keep them."""
    s = study(tmp_path, objectives={"holdout_loss": "min"}, constraints={"memorisation": "<= 0.2"})
    for number, (value, excess) in enumerate([(0.1, 0.3), (0.2, -0.1), (0.3, -0.2), (0.05, math.inf)]):
        s.propose()
        s.finish(number, Result(TrialState.COMPLETE, {"holdout_loss": value}, [], {"memorisation": excess}))
    read = loaded(tmp_path)
    assert [trial.constraints for trial in read.trials] == [{"memorisation": excess} for excess in (0.3, -0.1, -0.2, math.inf)]
    assert read.best_trial.number == 1


def test_several_objectives(tmp_path: Path) -> None:
    """Oracle: in their order, with their directions; Optuna takes no intermediate values then."""
    s = study(tmp_path, **TWO)
    for _ in range(3):
        s.propose()
    rows = [row(2, kid=1.0, pairwise_distance=2.0)]
    s.finish(0, Result(TrialState.COMPLETE, {"pairwise_distance": 2.0, "kid": 1.0}, rows, {}))
    s.finish(1, Result(TrialState.COMPLETE, {"pairwise_distance": 1.0, "kid": 2.0}, rows, {}))
    s.finish(2, Result(TrialState.PRUNED, {"pairwise_distance": 9.0, "kid": 0.1}, rows, {}))
    read = loaded(tmp_path)
    assert read.trials[0].values == [1.0, 2.0]
    assert [trial.number for trial in read.best_trials] == [0]
    assert read.trials[2].intermediate_values == {}


def settle(s: Study, number: int) -> None:
    """A course by number: complete, pruned, failed, and some that stay running."""
    draw = random.Random(number)
    metrics = {name: draw.random() for name in s.search.objectives}
    state = {0: TrialState.PRUNED, 1: TrialState.FAIL}.get(number % 5, TrialState.COMPLETE)
    if number % 7 != 3:
        excess = dict.fromkeys(s.search.constraints, draw.gauss(0, 1))
        failed_by: Any = ("values", "worker")[number % 2] if state is TrialState.FAIL else None
        s.finish(number, Result(state, metrics, [row(2, **metrics), row(4, **metrics)], excess, failed_by=failed_by))


@pytest.mark.parametrize("constraints", [{}, {"memorisation": "<= 0.2"}], ids=["free", "bounded"])
@pytest.mark.parametrize("objectives", [ONE, TWO], ids=["one", "two"])
@pytest.mark.parametrize("sampler", ["tpe", "random", "gp", "nsga2", "qmc"])
def test_a_reopened_study_proposes_the_same(sampler: str, objectives: dict[str, Any], constraints: dict[str, str], tmp_path: Path) -> None:
    """Oracle: the study that was never closed, bit for bit; with pruned, failed and running trials, and plain ones without all values."""
    options = {"sampler": sampler, "trials": 10, **objectives, "constraints": constraints}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    uninterrupted = study(whole, **options)
    plain = {"train.lr": 1e-3, "train.params": "full"}
    uninterrupted.add(plain, "plain")
    study(stopped, **options).add(plain, "plain")
    for _ in range(1, 8 if sampler == "gp" else 10):  # a second's work each for a Gaussian process; 7 are of every course
        expected = uninterrupted.propose()
        settle(uninterrupted, expected.number)
        assert study(stopped, **options).propose() == expected
        settle(study(stopped, **options), expected.number)
    values = [str(proposal.values) for proposal in uninterrupted.proposals() if proposal.repeats is None]
    assert len(set(values)) == len(values)


def test_another_seed_proposes_something_else(tmp_path: Path) -> None:
    """Oracle: the seed is the only difference."""
    search = SearchSpec(trials=3, sampler="random")
    values = [Study(tmp_path / str(seed) / "j", "s", search, RANGES, seed=seed).propose().values for seed in (1, 2)]
    assert values[0] != values[1]


def journal_of(folder: Path) -> list[bytes]:
    """Of a trial that is complete, one that was stopped, and one that runs."""
    made = study(folder)
    made.finish(made.propose().number, Result(TrialState.COMPLETE, {"holdout_loss": 1.0}, [row(5, holdout_loss=1.0)], {"kid": 0.5}))
    made.finish(made.propose().number, Result(TrialState.PRUNED, None, [row(5, holdout_loss=2.0)], {}))
    made.propose()
    return (folder / "study.journal").read_bytes().splitlines(keepends=True)


def proposals(lines: list[bytes], name: str = "s", ranges: dict[str, Range] = RANGES, **search: Any) -> list[Proposal]:
    return read_journal(b"".join(lines), "x/study.journal", name, SearchSpec(**(search or ONE)), ranges)


def test_a_journal_is_read_without_touching_it(tmp_path: Path) -> None:
    """Oracle: what the study itself says."""
    lines = journal_of(tmp_path)
    assert proposals(lines) == study(tmp_path).proposals()
    assert proposals([*lines, b'{"op_co']) == study(tmp_path).proposals()
    assert proposals([]) == []
    assert (tmp_path / "study.journal").read_bytes().startswith(b"".join(lines))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "other"}, "it has no study 'other', the name in spec.yaml"),
        (TWO, "its objectives are others"),
        ({"objectives": {"holdout_loss": "max"}}, "its objectives are others"),
        ({"ranges": {**RANGES, "train.lr": FloatRange(1.0, 2.0)}}, "trial 0's train.lr is of another range"),
        ({"ranges": {**RANGES, "train.params": Choice(("full", "bitfit"))}}, "trial 0's train.params is of another range"),
        ({"ranges": {**RANGES, "train.steps": IntRange(1, 2)}}, "trial 0 lacks a value"),
        ({"ranges": {"train.lr": RANGES["train.lr"]}}, "method.ant.noise_steps"),
    ],
)
def test_another_specs_journal_is_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    """Oracle: the rule for messages."""
    with pytest.raises(UserError, match=rf"^x/study\.journal: is not this sweep's journal \([^\n]*{message}[^\n]*$"):
        proposals(journal_of(tmp_path), **settings)


@pytest.mark.parametrize("entry", [b"[]", b"{", b"\xff", b"[" * 100_000, b"{}", b'{"op_code": 99}', b'{"op_code": 4}', b"null", b""])
@pytest.mark.parametrize("at", [0, 3, -1])
def test_a_damaged_entry_is_refused(entry: bytes, at: int, tmp_path: Path) -> None:
    """Oracle: the rule for messages, wherever it stands; Optuna itself passes over a last line that is no JSON, once."""
    lines = journal_of(tmp_path)
    lines[at] = entry + b"\n"
    with pytest.raises(UserError, match=r"^x/study\.journal[^\n]*the file as the sweep left it[^\n]*$"):
        proposals(lines)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'"state":1', b'"state":0.5'),
        (b'"values":[1.0]', b'"values":["x"]'),
        (b'"values":[1.0]', b'"values":null'),
        (b'"intermediate_value":1.0', b'"intermediate_value":"x"'),
        (b'"origin":"sampler"', b'"origin":"nobody"'),
        (b'"origin":', b'"orogin":'),
        (b'"user_attrs":{', b'"user_attrs":3,"x":{'),
        (b'"constraints:kid":0.5', b'"constraints:kid":[]'),
    ],
)
def test_a_trial_with_an_impossible_field_is_refused(before: bytes, after: bytes, tmp_path: Path) -> None:
    """Oracle: the rule for messages."""
    content = b"".join(journal_of(tmp_path))
    assert before in content
    with pytest.raises(UserError, match=r"^x/study\.journal[^\n]*the file as the sweep left it[^\n]*$"):
        proposals([content.replace(before, after, 1)])


def test_the_journal_says_why_a_trial_failed_and_how_good_a_stopped_one_was(tmp_path: Path) -> None:
    """Oracle: what Optuna reads back."""
    s = study(tmp_path, **TWO)
    for _ in range(2):
        s.propose()
    s.finish(0, Result(TrialState.FAIL, None, error="the loss is nan at step 3", failed_by="values"))
    s.finish(1, Result(TrialState.PRUNED, {"kid": 0.5, "pairwise_distance": 2.0, "fd": 1.0}))
    failed, stopped = loaded(tmp_path).trials
    assert (failed.user_attrs["error"], failed.user_attrs["failed_by"]) == ("the loss is nan at step 3", "values")
    assert stopped.user_attrs["best"] == [0.5, 2.0]


CLIFF: dict[str, Range] = {"train.lr": FloatRange(1e-5, 1e-1, log=True), "method.ant.noise_step_size": FloatRange(0.0, 1.0)}
DIVERGES_ABOVE = 1e-3
"""Half of the space, just above the best learning rate."""


@pytest.mark.parametrize("constraints", [{}, {"memorisation": "<= 0.2"}], ids=["free", "bounded"])
@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_what_fails_by_its_values_is_avoided(sampler: str, constraints: dict[str, str], tmp_path: Path) -> None:
    """Oracle: half of the space fails, of the later trials at most 15 % (of GP's twelve 25 %), and more by crashes, which say nothing."""
    failures = {}
    for failed_by in ("values", "worker"):
        s = study(tmp_path / failed_by, sampler=sampler, trials=60, ranges=CLIFF, **ONE, constraints=constraints)
        failed = []
        for _ in range(60 if sampler == "tpe" else 24):
            proposal = s.propose()
            lr = float(proposal.values["train.lr"])
            failed.append(lr > DIVERGES_ABOVE)
            loss = abs(math.log10(lr / DIVERGES_ABOVE)) + float(proposal.values["method.ant.noise_step_size"]) / 10
            if failed[-1]:
                s.finish(proposal.number, Result(TrialState.FAIL, None, error="nan", failed_by=failed_by))  # type: ignore[arg-type]
            else:
                s.finish(proposal.number, Result(TrialState.COMPLETE, {"holdout_loss": loss}, excess=dict.fromkeys(constraints, -0.1)))
        later = failed[len(failed) // 2 :]
        failures[failed_by] = sum(later) / len(later)
    assert failures["values"] <= (0.15 if sampler == "tpe" else 0.25) < failures["worker"]


SMALL: dict[str, Range] = {"train.lr": Choice((1e-3, 1e-2)), "method.ant.noise_steps": IntRange(1, 3)}


def loss_of(proposal: Proposal) -> float:
    return 10 * float(proposal.values["train.lr"]) + int(proposal.values["method.ant.noise_steps"])


@pytest.mark.parametrize("sampler", ["tpe", "random", "nsga2", "qmc"])
def test_no_configuration_is_proposed_twice(sampler: str, tmp_path: Path) -> None:
    """Oracle: six values in all, each once to train; Optuna is told the first one's result for each repeat."""
    s = study(tmp_path, sampler=sampler, trials=6, ranges=SMALL)
    for number in range(6):
        proposal = s.propose()
        state = TrialState.PRUNED if number == 2 else TrialState.COMPLETE
        loss = loss_of(proposal)
        s.finish(proposal.number, Result(state, {"holdout_loss": loss}, [row(2, holdout_loss=loss)], {"kid": 0.5}))
    trained = [proposal for proposal in s.proposals() if proposal.repeats is None]
    assert len({str(proposal.values) for proposal in trained}) == 6
    read = loaded(tmp_path).trials
    repeats = [proposal for proposal in s.proposals() if proposal.repeats is not None]
    assert repeats
    for repeat in repeats:
        original = read[repeat.repeats or 0]
        told = read[repeat.number]
        assert (told.params, told.state, told.values) == (original.params, original.state, original.values)
        assert (told.intermediate_values, told.constraints) == (original.intermediate_values, original.constraints)
    assert study(tmp_path, sampler=sampler, trials=6, ranges=SMALL).proposals() == s.proposals()
    content = (tmp_path / "study.journal").read_bytes()
    assert read_journal(content, "j", "s", SearchSpec(sampler=sampler, trials=6, **ONE), SMALL) == s.proposals()  # type: ignore[arg-type]


def test_a_repeat_of_what_still_runs_is_told_when_that_has_ended(tmp_path: Path) -> None:
    """Oracle: running as long as the first one does, then as that one ended, also where a kill came between."""
    s = study(tmp_path, trials=6, ranges=SMALL)
    while not (waiting := [proposal for proposal in s.proposals() if proposal.repeats is not None]):
        s.propose()
    repeat = waiting[0]
    assert repeat.repeats is not None
    assert repeat.state is TrialState.RUNNING
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Study, "_settle_repeats", lambda self, number: None)  # killed here
        s.finish(repeat.repeats, Result(TrialState.PRUNED, {"holdout_loss": 0.5}, [row(2, holdout_loss=0.5)], {"kid": 0.5}))
    assert study(tmp_path, trials=6, ranges=SMALL).proposals()[repeat.number].state is TrialState.PRUNED
    told = loaded(tmp_path).trials[repeat.number]
    assert (told.intermediate_values, told.constraints) == ({2: 0.5}, {"kid": 0.5})


def test_plain_fine_tuning_beside_methods_is_repeated_by_nothing(tmp_path: Path) -> None:
    """Oracle: without the methods it is another configuration than the search's, though it has the same values below `train`."""
    ranges: dict[str, Range] = {"train.lr": Choice((1e-3, 1e-2))}

    def second(name: str, plain: float) -> Proposal:
        s = Study(tmp_path / name, "s", SearchSpec(sampler="random", **ONE), ranges, seed=3, outside=("plain",))
        s.add({"train.lr": plain}, "plain")
        return s.propose()

    asked = {plain: second(str(plain), plain) for plain in (1e-3, 1e-2)}
    assert asked[1e-3] == asked[1e-2]  # the sampler doesn't see the plain trial
    assert asked[1e-3].number == 1


@pytest.mark.parametrize("repeats", ["true", '"x"', "2", "-1", "9"])
def test_a_repeat_of_nothing_is_refused(repeats: str, tmp_path: Path) -> None:
    """Oracle: the rule for messages."""
    content = b"".join(journal_of(tmp_path)).replace(b'"user_attrs":{', b'"user_attrs":{"repeats":' + repeats.encode() + b",")
    with pytest.raises(UserError, match=r"^x/study\.journal[^\n]*trial 0 repeats[^\n]*$"):
        proposals([content])


def test_chance_stays_in_the_range() -> None:
    """Oracle: the ranges' own ends, and in a log range as many below the geometric mean as above."""
    draw = random.Random(0)
    for range_ in (*RANGES.values(), FloatRange(-1.0, 2.0)):
        assert all(range_.contains(at_quantile(range_, share)) for share in (0.0, 1 - 2**-53, *(draw.random() for _ in range(500))))
    assert [at_quantile(IntRange(1, 4), share) for share in (0.0, 0.24, 0.25, 0.99)] == [1, 1, 2, 4]
    below = sum(at_quantile(FloatRange(1e-5, 1e-1, log=True), draw.random()) < 1e-3 for _ in range(1000))
    assert 440 < below < 560
