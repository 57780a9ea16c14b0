"""A trial from spec to checkpoints: lockstep folds, resuming, two workers, what is kept."""

from __future__ import annotations

import importlib.metadata
import io
import itertools
import logging
import math
import re
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load

from fewshot_ray.errors import SavedAndEndedError, UserError
from fewshot_ray.methods.draw import Draw
from fewshot_ray.methods.phase import Objective
from fewshot_ray.storage import Folder
from fewshot_ray.training.checkpoint import Checkpoint, latest_checkpoint, read_checkpoint, saved_steps
from fewshot_ray.training.group import Group
from fewshot_ray.training.loop import NonFiniteLossError
from fewshot_ray.trial import diffusion as diffusion_module
from fewshot_ray.trial import trial as trial_module
from fewshot_ray.trial.activity import Activity
from fewshot_ray.trial.candidate import HoldoutLosses
from fewshot_ray.trial.trial import Evaluation, Trial
from tests.conftest import Workers
from tests.trial.tiny import ANT, CPU, UNET, spec, trial

METHODS: dict[str, dict[str, Any]] = {
    "finetune": {},
    "ant+sdft": {"method": {"ant": ANT, "sdft": {}}},
    "lora": {"train": {"params": {"lora": {"rank": 2}}}},
    "adaptor": {"train": {"params": "adaptor"}},
    "crossfit": {"target": {"holdout": {"crossfit": 2}}, "train": {"lr_schedule": "cosine", "lr_warmup_steps": 1}},
}
DROPOUT = {"source": {"build": {**UNET, "dropout": 0.3}}}


def rows(history: list[Evaluation]) -> list[tuple[object, ...]]:
    """Everything but the speed."""
    return [(one.step, one.metrics, one.train_loss, one.lr, one.image_losses) for one in history]


def latest(run: Trial) -> Checkpoint:
    checkpoint = latest_checkpoint(run.checkpoints)
    assert checkpoint is not None
    return checkpoint


def assert_same(a: Checkpoint, b: Checkpoint) -> None:
    assert a.step == b.step
    assert a.info["training"] == b.info["training"]
    assert a.tensors.keys() == b.tensors.keys()
    different = [name for name, tensor in a.tensors.items() if not torch.equal(tensor, b.tensors[name])]
    assert not different


@pytest.mark.parametrize("method", METHODS)
def test_resuming_is_the_uninterrupted_run_bit_for_bit(method: str, tmp_path: Path) -> None:
    """Oracle: the run in one go, with dropout, to the last bit of weights, averages, optimiser and metrics."""
    sections = {**DROPOUT, **METHODS[method]}
    whole = trial(tmp_path / "whole", **sections)
    expected = list(whole.evaluations())
    stopped = trial(tmp_path / "stopped", **sections)
    assert next(stopped.evaluations()).step == 2
    torch.randn(3)
    resumed = trial(tmp_path / "stopped", **sections)
    got = list(resumed.evaluations())
    assert rows(got) == rows(expected)
    assert [one.step for one in got] == [2, 4]
    assert_same(latest(resumed), latest(whole))
    assert any("/optimizer/" in name and name.endswith("exp_avg") for name in latest(resumed).tensors)
    names = {name.split("/")[0] for name in latest(resumed).tensors}
    assert names == ({"fold0", "fold1"} if method == "crossfit" else {"fold0"})


def test_a_trial_that_ends_early_is_the_whole_ones_beginning(tmp_path: Path) -> None:
    """Oracle: the run to its end, whose learning rate falls along a cosine over all its steps."""
    sections = {"train": {"steps": 8, "lr_schedule": "cosine"}}
    whole = list(trial(tmp_path / "whole", **sections).evaluations())
    short = Trial(spec(**sections), Folder(tmp_path / "short"), Folder(tmp_path / "cache"), device=CPU, last_step=4)
    assert rows(list(short.evaluations())) == rows(whole[:2])


@pytest.mark.parametrize("method", ["ant+sdft", "crossfit"])
def test_resuming_between_evaluations(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the run in one go: a kill in step 7 of 8 costs the step it fell in, where checkpoints are due at once."""
    sections = {**DROPOUT, **METHODS[method]}
    sections["train"] = {**sections.get("train", {}), "steps": 8, "checkpoint_sec": 0.0}
    sections["evaluate"] = {"every": 4}
    whole = trial(tmp_path / "whole", **sections)
    expected = list(whole.evaluations())
    killed = trial(tmp_path / "killed", **sections)
    monkeypatch.setattr(trial_module, "PART_SEC", 0.0)
    last = killed.trainings[-1]
    train_step = last.take_step

    def dying() -> None:
        if last.step == 6:
            raise KeyboardInterrupt
        killed.writer.wait()  # a step isn't saved while the one before is being written
        train_step()

    monkeypatch.setattr(last, "take_step", dying)
    with pytest.raises(KeyboardInterrupt):
        list(killed.evaluations())
    resumed = trial(tmp_path / "killed", **sections)
    seen: list[int] = []
    first = resumed.trainings[0]
    own_step = first.take_step
    monkeypatch.setattr(first, "take_step", lambda: (seen.append(first.step), own_step())[1])
    assert rows(list(resumed.evaluations())) == rows(expected)
    assert seen == [6, 7]
    assert_same(latest(resumed), latest(whole))


def test_a_finished_trial_trains_no_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the same evaluations, with a training that would fail."""
    expected = list(trial(tmp_path).evaluations())
    again = trial(tmp_path)
    monkeypatch.setattr(again.trainings[0], "take_step", None)
    assert list(again.evaluations()) == expected


def test_what_it_is_at_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: by hand. With parts of a step each, every step, then that it measures; a resumed trial goes on counting."""
    monkeypatch.setattr(trial_module, "PART_SEC", 0.0)
    told: list[Activity] = []
    for ends_at in (3, None):
        run = Trial(spec(), Folder(tmp_path / "trial"), Folder(tmp_path / "cache"), device=CPU, tell=told.append)
        run.told_to_end = lambda run=run, ends_at=ends_at: "SIGTERM" if run.trainings[0].step == ends_at else None  # type: ignore[misc]
        with suppress(SavedAndEndedError):
            list(run.evaluations())
    training = [(step, "training") for step in (1, 2, 3)]
    before = [(None, "preparing the training"), *training[:2], (2, "measuring"), training[2]]
    assert [(one.step, one.doing) for one in told] == [*before, before[0], (4, "training"), (4, "measuring")]
    assert all((one.steps_per_sec or 0) > 0 for one in told if one.doing == "training")


def test_damage_to_the_latest_costs_one_interval(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Oracle: the uninterrupted run; the damaged checkpoint is named, and written anew."""
    whole = trial(tmp_path)
    expected = list(whole.evaluations())
    before = latest(whole)
    state = whole.checkpoints / "step_000004"
    state.write_bytes("state.safetensors", state.read_bytes("state.safetensors")[:-1])
    again = trial(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert rows(list(again.evaluations())) == rows(expected)
    assert any("step_000004/state.safetensors" in line for line in caplog.messages)
    assert_same(latest(again), before)


def test_other_versions_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: a line with what differs; and none where nothing does."""
    results = trial(tmp_path).evaluations()
    next(results)
    results.close()
    next(trial(tmp_path).evaluations())
    assert not caplog.records
    monkeypatch.setattr(trial_module, "versions", lambda: {"torch": "99.0", "diffusers": importlib.metadata.version("diffusers")})
    next(trial(tmp_path).evaluations())
    assert len(caplog.records) == 1
    assert f"written with torch {torch.__version__.split('+')[0]}" in caplog.text


def test_the_trial_is_that_of_its_seed(tmp_path: Path) -> None:
    """Oracle: the same twice, another seed another; dropout is at work."""

    def losses(name: str, **options: Any) -> list[float]:
        return [one.train_loss for one in trial(tmp_path / name, train={"steps": 2}, **options).evaluations()]

    first = losses("a", **DROPOUT)
    assert losses("b", **DROPOUT) == first
    assert losses("c", seed=4, **DROPOUT) != first
    assert losses("d") != first


def _run(place: str, sections: dict[str, Any]) -> tuple[list[Evaluation], dict[str, torch.Tensor]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diffusion_module, "make_optimizer", lambda weights, config: torch.optim.AdamW(weights, lr=config.lr, eps=1e-3))
        run = trial(Folder(place), **sections)
    history = list(run.evaluations())
    state = {name: parameter.detach() for name, parameter in run.trainings[-1].method.trained().items()}
    return history, state


def kept_samples(place: Path) -> torch.Tensor:
    return load((Folder(place) / "trial" / "samples").read_bytes("step_000004.safetensors"))["images"].int()


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("finetune", {"batch_size": 5, "micro_batch": 2}),
        ("ant+sdft", {"batch_size": 5}),
        ("crossfit", {"batch_size": 4}),
    ],
)
def test_two_workers_do_as_one(workers: Workers, method: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """Oracle: the run of one worker; 5 over 2 is uneven; held-out losses, training losses, weights and samples.

    Adam's eps is larger than usual: the attention's key biases have no gradient but a rounding, and its sign would be a whole step.
    """
    sections = {
        **METHODS[method],
        "train": {**METHODS[method].get("train", {}), **settings},
        "evaluate": {"samples": 5, "grid_images": 5, "keep_samples": True, "loss_draws": 9},
    }
    expected, weights = _run(str(tmp_path / "one"), sections)
    (history, first), (other_history, second) = workers.run(_run, str(tmp_path / "two"), sections)
    assert [(one.step, one.metrics, one.train_loss) for one in history] == [
        (one.step, one.metrics, one.train_loss) for one in other_history
    ]
    for one, two in zip(expected, history, strict=True):
        assert two.train_loss == pytest.approx(one.train_loss, rel=1e-5)
        assert two.metrics == pytest.approx(one.metrics, rel=1e-5)
    for name, weight in weights.items():
        assert torch.equal(first[name], second[name]), "the workers have drifted apart"
        torch.testing.assert_close(first[name], weight, rtol=1e-5, atol=1e-6)
    # A rounding may fall to the other side, no more.
    assert (kept_samples(tmp_path / "two") - kept_samples(tmp_path / "one")).abs().max() <= 1
    # One worker goes on from what two have written.
    assert rows(list(trial(tmp_path / "two", **sections).evaluations())) == rows(history)


def _resume_elsewhere(places: list[str]) -> str:
    import torch.distributed as dist

    try:
        list(trial(Folder(places[dist.get_rank()])).evaluations())
    except UserError as error:
        return str(error)
    return ""


def test_workers_that_see_different_checkpoints_stop(workers: Workers, tmp_path: Path) -> None:
    """Oracle: both refuse, where one would wait for the other for ever."""
    next(trial(tmp_path / "a").evaluations())
    messages = workers.run(_resume_elsewhere, [str(tmp_path / "a"), str(tmp_path / "b")])
    assert all("see different checkpoints" in message for message in messages)


def test_crossfit_reports_the_means_of_its_folds(tmp_path: Path) -> None:
    """Oracle: each fold's own measurement of its averages; the folds are trained on different pictures, in step."""
    run = trial(
        tmp_path, target={"holdout": {"crossfit": 3}}, train={"steps": 3}, evaluate={"metrics": ["holdout_loss", "pairwise_distance"]}
    )
    history = list(run.evaluations())
    assert [one.step for one in history] == [2, 3]
    assert [training.step for training in run.trainings] == [3, 3, 3]
    measured = []
    for training, evaluator in zip(run.trainings, run.evaluators, strict=True):
        with training.ema.applied():
            measured.append(evaluator.measure(run.materials.candidate(training), samples=4).metrics)
    for name in ("holdout_loss", "pairwise_distance"):
        values = [one[name] for one in measured]
        assert len(set(values)) == 3
        assert history[-1].metrics[name] == pytest.approx(sum(values) / 3, rel=1e-9)
    assert [len(training.batches) for training in run.trainings] == [2, 3, 3]


def test_the_losses_of_every_noising_are_written_in_pairs(tmp_path: Path) -> None:
    """Oracle: the metric is their mean; the noisings are the same at every step and in a trial of another rate and seed."""
    sections: dict[str, Any] = {"target": {"holdout": {"crossfit": 2}}, "evaluate": {"metrics": ["holdout_loss"], "loss_draws": 6}}
    runs = [trial(tmp_path / "a", **sections), trial(tmp_path / "b", seed=1, train={"lr": 1e-2}, **sections)]
    histories = [list(run.evaluations()) for run in runs]
    found = [
        load((run.folder / "losses").read_bytes(f"step_{one.step:06d}.safetensors"))
        for run, history in zip(runs, histories, strict=True)
        for one in history
    ]
    assert len(found) == 4
    for one, evaluation in zip(found, [*histories[0], *histories[1]], strict=True):
        assert torch.equal(one["image"], found[0]["image"])
        assert torch.equal(one["t"], found[0]["t"])
        assert float(one["loss"].double().mean()) == pytest.approx(evaluation.metrics["holdout_loss"], rel=1e-6)
        by_image = [float(one["loss"][one["image"] == image].double().mean()) for image in range(4)]
        assert evaluation.image_losses == pytest.approx(by_image, rel=1e-6)
    assert found[0]["image"].bincount().tolist() == [3, 3, 3, 3]
    assert not torch.equal(found[0]["loss"], found[1]["loss"])


def test_what_is_measured_is_the_average_and_training_goes_on_from_the_weights(tmp_path: Path) -> None:
    """Oracle: a run that is evaluated once has the weights of one that is evaluated at every step."""
    often, once = trial(tmp_path / "often", evaluate={"every": 1}), trial(tmp_path / "once", evaluate={"every": 4})
    many, [last] = list(often.evaluations()), list(once.evaluations())
    assert many[-1].metrics == last.metrics
    assert_same(latest(often), latest(once))
    assert last.train_loss == pytest.approx(sum(one.train_loss for one in many) / 4)


@pytest.mark.parametrize(("values", "kept"), [([3, 1, 2, 4, 5], [2, 4, 5]), ([1, 2, 3, 4, 5], [1, 4, 5]), ([5, 4, 3, 2, 1], [4, 5])])
def test_the_last_two_and_the_best_are_kept(values: list[float], kept: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the steps' given values; the pictures of all steps stay."""
    run = trial(tmp_path, train={"steps": 5}, evaluate={"every": 1})
    measured = iter(values)
    one = torch.zeros(1, dtype=torch.int32)
    monkeypatch.setattr(
        run.evaluators[0].own, "losses", lambda *args, **known: HoldoutLosses(torch.tensor([next(measured)]), one, one, one)
    )
    assert [one.metrics["holdout_loss"] for one in run.evaluations()] == values
    assert saved_steps(run.checkpoints) == kept
    assert run.best_step() == 1 + values.index(1)
    assert (run.folder / "samples").names() == [f"step_00000{step}.png" for step in range(1, 6)]


def test_a_refit_trains_on_all_shots_for_its_steps(tmp_path: Path) -> None:
    """Oracle: four pictures in one fold, three steps, nothing measured, the last step its best."""
    run = trial(tmp_path, refit_steps=3, target={"holdout": {"crossfit": 2}}, evaluate={"metrics": ["holdout_loss", "kid"]})
    history = list(run.evaluations())
    assert [(one.step, one.metrics) for one in history] == [(2, {}), (3, {})]
    assert [len(training.batches) for training in run.trainings] == [4]
    assert run.best_step() == latest(run).step == 3
    assert run.trainings[0].learning_rate(0) == 1e-3
    assert (run.folder / "samples").names() == ["step_000002.png", "step_000003.png"]


def test_the_picture_shows_the_samples(tmp_path: Path) -> None:
    """Oracle: the kept samples; a grid of four, eightfold."""
    run = trial(tmp_path, train={"steps": 2}, evaluate={"keep_samples": True})
    list(run.evaluations())
    folder = run.folder / "samples"
    images = load(folder.read_bytes("step_000002.safetensors"))["images"]
    picture = np.asarray(Image.open(io.BytesIO(folder.read_bytes("step_000002.png"))))
    assert picture.shape == (134, 134, 3)
    assert picture[2 + 32, 2 + 32, 0] == images[0, 0, 4, 4]


def test_a_trial_that_cannot_be_measured_is_refused_at_once(tmp_path: Path) -> None:
    """Oracle: one held-out picture a fold has no KID."""
    with pytest.raises(UserError, match="kid needs 2 held-out images"):
        trial(tmp_path, target={"holdout": {"crossfit": 4}}, evaluate={"metrics": ["holdout_loss", "kid"]})


def test_a_loss_that_is_no_number_ends_the_trial(tmp_path: Path) -> None:
    """Oracle: a learning rate that no network stands; what was saved before stays whole."""
    run = trial(tmp_path, train={"lr": 1e-3, "gradient_clip": None})
    stream = run.evaluations()
    next(stream)
    for parameter in run.trainings[0].method.trained().values():
        parameter.data.fill_(float("inf"))
    with pytest.raises(NonFiniteLossError, match="at step 3"):
        next(stream)
    assert latest(run).step == 2


@pytest.mark.parametrize("breaks_at", [2, 5, 8])
def test_no_checkpoint_holds_what_came_of_a_loss_that_is_no_number(breaks_at: int, tmp_path: Path) -> None:
    """Oracle: the saved tensors: a loss within a part of many steps is read at the part's end, before anything is saved."""
    run = trial(tmp_path, train={"steps": 12, "checkpoint_sec": 0.0}, evaluate={"every": 4})
    method, loss = run.trainings[0].method, run.trainings[0].method.loss

    def broken(draw: Draw) -> Objective:
        objective = loss(draw)
        factor = math.nan if draw.batch.step + 1 == breaks_at else 1.0
        return Objective({name: value * factor for name, value in objective.per_sample.items()}, objective.weight)

    method._phases = [replace(phase, loss=broken) for phase in method.phases()]
    with pytest.raises(NonFiniteLossError, match=f"denoiser loss is nan at step {breaks_at}; the last finite value was"):
        list(run.evaluations())
    steps = saved_steps(run.checkpoints)
    assert steps
    assert max(steps) < breaks_at
    for step in steps:
        assert all(tensor.isfinite().all() for tensor in read_checkpoint(run.checkpoints, step).tensors.values())


def test_remote_storage_does_as_a_disk(tmp_path: Path) -> None:
    """Oracle: the run on disk; resumed from memory://."""
    expected = list(trial(tmp_path).evaluations())
    place = Folder(f"memory://{tmp_path.name}")
    place.remove()
    next(trial(place).evaluations())
    assert rows(list(trial(place).evaluations())) == rows(expected)
    place.remove()


def test_a_lost_folder_is_a_new_start(tmp_path: Path) -> None:
    """Oracle: the same run from its beginning."""
    expected = rows(list(trial(tmp_path).evaluations()))
    shutil.rmtree(tmp_path / "trial")
    assert rows(list(Trial(spec(), Folder(tmp_path / "trial"), Folder(tmp_path / "cache"), device=CPU).evaluations())) == expected


def _uneven_pace(place: str, sections: dict[str, Any], ended_at: str) -> tuple[list[float], str]:
    """A run whose parts would differ between the workers: each thinks that it is as fast as its rank says; rank 1 is told to end."""
    rank = Group().rank
    now = itertools.count()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial_module.time, "perf_counter", lambda: next(now) * (1.0 + rank))
        patch.setattr(trial_module, "PART_SEC", 4.0)
        patch.setattr(diffusion_module, "make_optimizer", lambda weights, config: torch.optim.AdamW(weights, lr=config.lr, eps=1e-3))
        run = trial(place, **sections)
        asked = itertools.count()
        run.told_to_end = lambda: "SIGTERM" if ended_at and rank == 1 and next(asked) == int(ended_at) else None
        try:
            history = [evaluation.train_loss for evaluation in run.evaluations()]
        except SavedAndEndedError as ended:
            return [], str(ended)
    return history, ""


def test_two_workers_keep_in_step(workers: Workers, tmp_path: Path) -> None:
    """Oracle: one worker. Folds in parts whose length each would choose otherwise, and an end that only one of them hears of."""
    sections = {"target": {"holdout": {"crossfit": 2}}, "train": {"steps": 12}, "evaluate": {"every": 12}}
    alone, _ = _uneven_pace(str(tmp_path / "one"), sections, "")
    place = str(tmp_path / "two")
    (first, said), (second, also_said) = workers.run(_uneven_pace, place, sections, "2")
    assert first == second == []
    assert said == also_said
    assert re.fullmatch(r"SIGTERM; saved at step [1-9]\d*", said)
    for history, nothing in workers.run(_uneven_pace, place, sections, ""):
        assert nothing == ""
        assert history == pytest.approx(alone, rel=1e-5)
