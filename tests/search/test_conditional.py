"""Searches in which some values exist in some trials only: what is proposed, stored and read again, without Ray."""

from __future__ import annotations

import csv
import io
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from fewshot_ray.errors import UserError
from fewshot_ray.report.tables import to_csv
from fewshot_ray.search.frozen_trials import Proposal, Result
from fewshot_ray.search.hyperparameters import Hyperparameters
from fewshot_ray.search.job import Job
from fewshot_ray.search.jobs import first_trials, search_job
from fewshot_ray.search.leaderboard import leaderboard
from fewshot_ray.search.read_journal import read_journal
from fewshot_ray.search.study import Study
from fewshot_ray.spec.alternatives import By, alternatives, choice_of_methods
from fewshot_ray.spec.document import Document, parse_document
from fewshot_ray.spec.ranges import Choice, FloatRange, IntRange
from fewshot_ray.spec.sections import FileSpec, SearchSpec
from fewshot_ray.spec.space import Space
from fewshot_ray.storage import Folder
from fewshot_ray.trial.compose import check_document, compose, search_trials
from tests.search import synthetic
from tests.search.synthetic import NoBoards, file, finish, open_sweep, outcome, run_job
from tests.search.test_study import RANGES, loaded, row, settle

STEPS = {"noise_steps": IntRange(1, 9)}
METHODS = choice_of_methods(["sdft", {"ant": STEPS}, {"ant": STEPS, "sdft": {"lambda_aux": FloatRange(0.0, 1.0)}}, "finetune"])
PARAMS = alternatives(["full", {"lora": {"rank": Choice((2, 4))}}])
RATES = By("train.params", {"full": FloatRange(1e-5, 1e-4, log=True), "lora": FloatRange(1e-4, 1e-3, log=True)})
TREE: dict[str, Any] = {"method": METHODS, "train": {"lr": RATES, "params": PARAMS}}
LOSS: dict[str, Any] = {"objectives": {"holdout_loss": "min"}}


def study(folder: Path, *, tree: dict[str, Any] = TREE, sampler: str = "tpe", trials: int = 30, **search: Any) -> Study:
    return Study(folder / "study.journal", "s", SearchSpec(sampler=sampler, trials=trials, **(search or LOSS)), tree, seed=3)


@pytest.mark.parametrize("sampler", ["tpe", "qmc", "random"])
def test_a_reopened_study_proposes_the_same(sampler: str, tmp_path: Path) -> None:
    """Oracle: the study that was never closed, bit for bit, with stopped, failed and running trials; each trial has what it chose alone."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    uninterrupted = study(whole, sampler=sampler)
    for number in range(25):
        expected = uninterrupted.propose()
        assert Space(TREE).is_complete(expected.values)
        settle(uninterrupted, number)
        assert study(stopped, sampler=sampler).propose() == expected
        settle(study(stopped, sampler=sampler), number)
    values = [proposal.values for proposal in uninterrupted.proposals()]
    assert len(set(map(str, values))) == len(values)
    assert {one["method"] for one in values} == set(METHODS.values)
    rates = {(one["train.params"], one["train.lr"] > 1e-4) for one in values}
    assert rates == {("full", False), ("lora", True)}
    content = (whole / "study.journal").read_bytes()
    assert read_journal(content, "j", "s", SearchSpec(sampler=sampler, trials=30, **LOSS), TREE) == uninterrupted.proposals()  # type: ignore[arg-type]


def test_other_tools_read_the_alternatives_by_name(tmp_path: Path) -> None:
    """Oracle: Optuna's own trials: labels, and a name for each range of a value that depends on a choice."""
    s = study(tmp_path)
    s.add({"method": "ant+sdft", "method.ant.noise_steps": 3, "method.sdft.lambda_aux": 0.5, "train.params": "lora",
           "train.params.lora.rank": 4, "train.lr": 5e-4}, "preset")  # fmt: skip
    s.add({"method": "finetune", "train.params": "full", "train.lr": 5e-5}, "plain")
    assert [trial.params for trial in loaded(tmp_path).trials] == [
        {"method": "ant+sdft", "method.ant.noise_steps": 3, "method.sdft.lambda_aux": 0.5, "train.params": "lora",
         "train.params.lora.rank": 4, "train.lr[lora]": 5e-4},
        {"method": "finetune", "train.params": "full", "train.lr[full]": 5e-5},
    ]  # fmt: skip


def loss_of(proposal: Proposal) -> float:
    """Least for ANT in four steps, at a rate of 3e-5."""
    values = proposal.values
    steps = values.get("method.ant.noise_steps", 9)
    return (0 if values["method"] == "ant" else 2) + abs(steps - 4) / 4 + abs(math.log10(values["train.lr"] / 3e-5)) / 10


def test_tpe_learns_in_each_alternative(tmp_path: Path) -> None:
    """Oracle: the best method, and its best setting, are proposed far more often than at random (a quarter, a ninth)."""
    s = study(tmp_path, trials=80)
    for _ in range(80):
        proposal = s.propose()
        s.finish(proposal.number, Result(TrialState.COMPLETE, {"holdout_loss": loss_of(proposal)}))
    later = [proposal.values for proposal in s.proposals()[40:]]
    good = [one for one in later if one["method"] == "ant"]
    assert len(good) > 0.6 * len(later)
    assert sum(one["method.ant.noise_steps"] in (3, 4, 5) for one in good) > 0.6 * len(good)


def test_the_gaussian_process_learns_in_each_alternative(tmp_path: Path) -> None:
    """Oracle: after eight quasi-random trials the best method alone, and soon its best setting (at random a quarter, a thirty-sixth).

    And the study that was never closed, bit for bit.
    """
    s = study(tmp_path / "whole", sampler="gp", trials=24)
    found = []
    for number in range(12):
        if number == 11:
            shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
        proposal = s.propose()
        if number == 11:
            assert study(tmp_path / "stopped", sampler="gp", trials=24).propose() == proposal
        assert Space(TREE).is_complete(proposal.values)
        found.append(loss_of(proposal))
        s.finish(proposal.number, Result(TrialState.COMPLETE, {"holdout_loss": found[-1]}))
    assert {proposal.values["method"] for proposal in s.proposals()[8:]} == {"ant"}
    assert min(found[8:]) < 0.1


def test_an_alternative_that_fails_is_avoided(tmp_path: Path) -> None:
    """Oracle: LoRA's trials fail at once, which is known of no other alternative; at random half of the trials would."""
    s = study(tmp_path, trials=60)
    failed = []
    for _ in range(60):
        proposal = s.propose()
        failed.append(proposal.values["train.params"] == "lora")
        if failed[-1]:
            s.finish(proposal.number, Result(TrialState.FAIL, None, error="nan", failed_by="values"))
        else:
            s.finish(proposal.number, Result(TrialState.COMPLETE, {"holdout_loss": -math.log(proposal.values["train.lr"])}))
    assert sum(failed[30:]) <= 0.15 * 30


FEW: dict[str, Any] = {"method": choice_of_methods(["sdft", {"ant": {"noise_steps": Choice((1, 2))}}]), "train": {"params": PARAMS}}


@pytest.mark.parametrize("sampler", ["tpe", "qmc", "random"])
def test_no_configuration_is_proposed_twice(sampler: str, tmp_path: Path) -> None:
    """Oracle: sdft, and ant with two settings, each full or with one of two ranks: nine in all, each once to train."""
    assert Space(FEW).count == 9
    s = study(tmp_path, tree=FEW, sampler=sampler, trials=9)
    for number in range(9):
        s.finish(s.propose().number, Result(TrialState.COMPLETE, {"holdout_loss": float(number)}, [row(2, holdout_loss=float(number))]))
    trained = [proposal for proposal in s.proposals() if proposal.repeats is None]
    assert len({str(sorted(proposal.values.items())) for proposal in trained}) == 9
    assert study(tmp_path, tree=FEW, sampler=sampler, trials=9).proposals() == s.proposals()


def test_what_python_takes_for_equal_stays_apart_through_the_journal(tmp_path: Path) -> None:
    """Oracle: a trial of each of five values, with the type that the file has."""
    values = (1, True, 1.0, "1", None, [1], [True], {"a": 1}, {"a": 1.0})
    tree = {"train.x": Choice(values)}
    s = study(tmp_path, tree=tree, sampler="qmc", trials=9)
    proposed = [s.propose() for _ in values]
    assert sorted(repr(proposal.values["train.x"]) for proposal in proposed if proposal.repeats is None) == sorted(
        {repr(proposal.values["train.x"]) for proposal in proposed}
    )
    assert {repr(proposal.values["train.x"]) for proposal in proposed} == set(map(repr, values))
    again = study(tmp_path, tree=tree, sampler="qmc", trials=9).proposals()
    assert [repr(proposal.values) for proposal in again if proposal.repeats is None] == [repr(proposal.values) for proposal in proposed]


def test_quasi_random_points_are_evenly_spread(tmp_path: Path) -> None:
    """Oracle: of 16 scrambled Sobol points one is in each sixteenth of a range, whatever else was asked for at the same time."""
    tree = {"train.lr": FloatRange(0.0, 1.0), "method.ant.guidance": FloatRange(0.0, 16.0)}
    s = study(tmp_path, tree=tree, sampler="qmc", trials=18)
    s.add({"train.lr": 0.5, "method.ant.guidance": 1.0}, "preset")
    points = [s.propose().values for _ in range(16)]
    assert sorted(int(16 * point["train.lr"]) for point in points) == list(range(16))
    assert sorted(int(point["method.ant.guidance"]) for point in points) == list(range(16))


@pytest.mark.parametrize("objectives", [LOSS, {"objectives": {"kid": "min", "pairwise_distance": "max"}}], ids=["one", "two"])
def test_nsga2_breeds_from_the_best(objectives: dict[str, Any], tmp_path: Path) -> None:
    """Oracle: after the first population, drawn at random, values are lower than at random, where their mean is a half."""
    s = study(tmp_path, tree=dict(RANGES), sampler="nsga2", trials=80, **objectives)
    for _ in range(80):
        proposal = s.propose()
        lr = math.log10(proposal.values["train.lr"] / 1e-5) / 3
        metrics = {"holdout_loss": lr, "kid": lr, "pairwise_distance": -lr - proposal.values["method.ant.noise_steps"]}
        s.finish(proposal.number, Result(TrialState.COMPLETE, metrics, excess={"memorisation": -0.1}))
    shares = [math.log10(proposal.values["train.lr"] / 1e-5) / 3 for proposal in s.proposals() if proposal.repeats is None]
    assert sum(shares[20:]) / len(shares[20:]) < 0.42
    assert len({proposal.values["method.ant.noise_steps"] for proposal in s.proposals()[:15]}) > 3


def checked(**sections: Any) -> tuple[Document, FileSpec]:
    return check_document(file(**sections))


def test_the_first_trials() -> None:
    """Oracle: the first alternative at its presets, then plain fine-tuning, whether it is one of the alternatives or beside them."""
    document, spec = checked(**TREE)
    assert first_trials(document, spec) == [
        ({"method": "sdft", "train.params": "full", "train.lr": 5e-5}, "preset"),
        ({"method": "finetune", "train.params": "full", "train.lr": 5e-5}, "plain"),
    ]
    beside = {**TREE, "method": choice_of_methods([{"ant": STEPS}, "sdft"])}
    document, spec = checked(**beside)
    assert first_trials(document, spec) == [
        ({"method": "ant", "method.ant.noise_steps": 9, "train.params": "full", "train.lr": 5e-5}, "preset"),
        ({"train.params": "full", "train.lr": 5e-5}, "plain"),
    ]
    jobs = [
        search_job(document, spec, Proposal(index, *first, TrialState.RUNNING)) for index, first in enumerate(first_trials(document, spec))
    ]
    assert [job.tree["method"] for job in jobs] == [{"ant": {"noise_steps": 9}}, {"finetune": {}}]
    assert [compose(Document(job.tree, job.id)).file.train.lr for job in jobs] == [5e-5, 5e-5]
    first = {**TREE, "method": choice_of_methods(["finetune", "sdft"])}
    assert [origin for _, origin in first_trials(*checked(**first))] == ["plain"]


def test_a_rate_by_method_has_one_for_plain_fine_tuning() -> None:
    """Oracle: by hand; the sampler's trials never have it."""
    rates = By("method", {"ant": FloatRange(1e-5, 1e-4), "sdft": FloatRange(1e-4, 1e-3), "finetune": FloatRange(2e-5, 3e-5)})
    document, spec = checked(method=choice_of_methods(["ant", "sdft"]), train={"lr": rates, "params": "full"})
    preset, plain = first_trials(document, spec)
    assert (preset[0], plain[0]) == ({"method": "ant", "train.lr": 5e-5}, {"train.lr": pytest.approx(2.5e-5)})
    assert Space(document.tree).at("train.lr", plain[0]).range == FloatRange(2e-5, 3e-5)


def test_the_number_of_trials_is_that_of_configurations() -> None:
    """Oracle: three of methods, and plain fine-tuning beside them; it is one of them where it is an alternative."""
    methods = ["sdft", {"ant": {"noise_steps": Choice((1, 2))}}]
    for given, expected in ((methods, 4), ([*methods, "finetune"], 4)):
        document, spec = checked(method=choice_of_methods(given), train={"lr": 1e-4, "params": "full"}, search={"trials": 50})
        assert search_trials(document, spec) == expected


def test_hyperparameters_of_alternatives() -> None:
    """Oracle: by hand; a rank is a number, and no value of a trial that has none."""
    document, _ = checked(**TREE)
    shown = Hyperparameters(document)
    assert shown.of({"method": {"sdft": {}}, "train": {"lr": 0.1, "params": {"lora": {"rank": 2}}}}, 0) == {
        "method.sdft": "", "train.lr": 0.1, "train.params.lora.rank": 2, "seed": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (
            ["ant", ["sdft", "finetune"]],
            r"method\.finetune: it is the control and can't be combined[^\n]*\(alternative 'sdft\+finetune' of method\)$",
        ),
        (["ant", "mixdl"], r"method\.mixdl: it isn't for a diffusion model[^\n]*\(alternative 'mixdl' of method\)$"),
        (
            ["ant", {"sdft": {"lambda_aux": FloatRange(-1.0, 1.0)}}],
            r"method\.sdft\.lambda_aux: -1\.0[^\n]*\(alternative 'sdft' of method\)$",
        ),
        (["ant", "ddpm_pa"], r"train\.batch_size: 1 given, but ddpm_pa compares[^\n]*\(alternative 'ddpm_pa' of method\)$"),
    ],
)
def test_each_alternative_is_checked_as_a_file_would_be(methods: list[Any], message: str) -> None:
    """Oracle: the message of the file with that method alone, and which alternative it is of."""
    with pytest.raises(UserError, match=message) as refused:
        checked(method=choice_of_methods(methods), train={"batch_size": 1, "params": "full"} if "ddpm_pa" in methods else {})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'"train.lr[lora]"', b'"train.lr[full]"'),
        (b'"method.sdft.lambda_aux"', b'"method.sdft.gamma_aux"'),
        (b'"train.params.lora.rank"', b'"x"'),
        (b'"method.ant.noise_steps":3', b'"method.ant.noise_steps":30'),
    ],
)
def test_a_journal_with_values_of_another_alternative_is_refused(before: bytes, after: bytes, tmp_path: Path) -> None:
    """Oracle: the rule for messages."""
    s = study(tmp_path)
    s.add({"method": "ant+sdft", "method.ant.noise_steps": 3, "method.sdft.lambda_aux": 0.5, "train.params": "lora",
           "train.params.lora.rank": 4, "train.lr": 5e-4}, "preset")  # fmt: skip
    content = (tmp_path / "study.journal").read_bytes()
    assert before in content
    with pytest.raises(UserError, match=r"^j: is not this sweep's journal[^\n]*$"):
        read_journal(content.replace(before, after), "j", "s", SearchSpec(**LOSS), TREE)


def test_random_values_are_in_the_alternative(tmp_path: Path) -> None:
    """Oracle: values drawn where the sampler only repeats itself are complete too."""
    s = study(tmp_path)
    for _ in range(50):
        assert Space(TREE).is_complete(s._drawn())
        s.propose()


def test_a_sweep_of_alternatives_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the sweep that was never closed; every trial's spec is that of its alternative, and a control has no method's values."""
    monkeypatch.setattr(synthetic, "Boards", NoBoards)
    document = file(**TREE, search={"trials": 8, "confirm": {"seeds": [1]}})
    whole = open_sweep(Folder(tmp_path / "whole"), document)
    finish(whole)
    while isinstance(job := (sweep := open_sweep(Folder(tmp_path / "stopped"), document)).next_job(), Job):
        run_job(sweep, job)
    assert outcome(open_sweep(Folder(tmp_path / "stopped"), document)) == outcome(whole)
    for record in whole.folder.trials():
        tree = parse_document(whole.folder.trial(record.id).read_text("spec.yaml"), record.id).tree
        assert "+".join(tree["method"]) == (record.params.get("method") or "finetune")
        assert tree["train"]["lr"] == record.params["train.lr"]
        assert isinstance(tree["train"]["params"], dict) == ("train.params.lora.rank" in record.params)
        if record.kind == "control":
            assert not any(path.startswith("method") for path in record.params)
    assert [record.origin for record in whole.folder.trials() if record.kind == "search"][:2] == ["preset", "plain"]
    text = to_csv(leaderboard(whole.folder, whole.file.search), LOSS["objectives"])
    shown = {row["id"]: row["train.params.lora.rank"] for row in csv.DictReader(io.StringIO(text))}
    assert shown == {record.id: str(record.params.get("train.params.lora.rank", "")) for record in whole.folder.trials()}
