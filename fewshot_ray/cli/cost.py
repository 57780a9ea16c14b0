"""Estimates a run's trials, steps, time and disk space from a few measured steps."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from fewshot_ray.cluster.needs import CHECKPOINT_COPIES, checkpoints, reruns
from fewshot_ray.errors import UserError
from fewshot_ray.metrics.suite import needed
from fewshot_ray.search.budget import Used, in_words, limits
from fewshot_ray.search.plain_search import plain_trials
from fewshot_ray.spec.document import Document
from fewshot_ray.spec.sections import CrossFit, FileSpec
from fewshot_ray.spec.space import Space
from fewshot_ray.storage import Folder
from fewshot_ray.training.loop import NonFiniteLossError
from fewshot_ray.trial.compiling import compiling
from fewshot_ray.trial.compose import TrialSpec, search_trials
from fewshot_ray.trial.materials import Materials, pick_device
from fewshot_ray.trial.trial import Trial

BRISK_SEC = 2.0
"""Approximate limit of a measurement; a longer one is made on one image and scaled."""
SAMPLED_TOGETHER = 32


@dataclass(frozen=True)
class Cost:
    """Measured costs of one training (one fold) on this machine."""

    step_sec: float
    trained_share: float
    forward_sec: float
    """One forward pass of the network, per image."""
    checkpoint_bytes: int
    device: str


@dataclass(frozen=True)
class Work:
    """Estimated work of a whole sweep without early stopping, on workers like this machine's."""

    file: FileSpec
    cost: Cost
    evaluation_sec: float
    trial_sec: float
    """Time of a trial with one worker."""
    folds: int
    reruns: int
    refit: bool
    plain_trials: int = 0
    """Trials of plain fine-tuning's own search."""

    @property
    def worker_sec(self) -> float:
        """Total time with one worker at a time."""
        return self.file.search.trials * self.trial_sec + self.after_sec

    @property
    def after_sec(self) -> float:
        """The part of it after the search: plain fine-tuning's own search, reruns and refit."""
        return (self.reruns + self.plain_trials) * self.trial_sec + (self.file.train.steps * self.cost.step_sec if self.refit else 0)

    @property
    def speed(self) -> str:
        """The measured speed in words."""
        return f"this machine's {self.cost.device} ({self.cost.step_sec * 1000:.0f} ms a step, {self.evaluation_sec:.1f} s an evaluation)"


def work(document: Document, materials: Materials) -> Work:
    """The work of a sweep, estimated from a few steps that are trained here."""
    spec, file = materials.spec, materials.spec.file
    folds, confirming, tuning = len(materials.folds), reruns(file), plain_trials(document, file)
    refit = isinstance(file.target.holdout, CrossFit)
    cost, steps = measure(spec), file.train.steps
    evaluation_sec = _forward_images(spec, materials) * cost.forward_sec
    trial_sec = folds * (steps * cost.step_sec + _evaluations(file) * evaluation_sec)
    return Work(file, cost, evaluation_sec, trial_sec, folds, confirming, refit, tuning)


def plan_lines(document: Document, materials: Materials, work: Work) -> Iterator[tuple[str, str]]:
    """The plan's lines (topic, text), which don't depend on where the run is."""
    spec, file, steps = materials.spec, work.file, work.file.train.steps
    space = Space(document.tree)
    for name, parameter in {parameter.name: parameter for parameter in space.parameters}.items():
        yield "range", f"{parameter.path}: {parameter.range.describe()}{space.where(name)}"
    yield (
        "plan",
        f"{_count(search_trials(document, file), 'trial')}{f' and {work.reruns} reruns' if work.reruns else ''}"
        f"{f' and {work.plain_trials} of plain fine-tuning by itself' if work.plain_trials else ''}"
        f"{', then a refit on all images' if work.refit else ''}; each {steps} steps"
        f"{f' in {work.folds} folds' if work.folds > 1 else ''} with {_evaluations(file)} evaluations, "
        f"on {_count(file.resources.workers, 'worker')}",
    )
    yield "trained", f"{spec.params}: {100 * work.cost.trained_share:.3g} % of the network's parameters, at the preset"


def budget_lines(work: Work, trials_at_once: int, used: Used = Used()) -> Iterator[tuple[str, str]]:
    """The line (topic, text) on what is left of the search's budget, where it has one, and on what comes after it."""
    if not (found := limits(work.file.search.budget, used)):
        return
    text = f"{in_words(found)}; then no trial of the search begins, and those that run go on to their end"
    if work.after_sec:
        rest = [f"{work.plain_trials} trials of plain fine-tuning"] if work.plain_trials else []
        rest += [*([f"{work.reruns} reruns"] if work.reruns else []), *(["a refit"] if work.refit else [])]
        sec = work.after_sec / (trials_at_once * work.file.resources.workers)
        text += f"; {', '.join(rest)} after it come in addition: at most about {duration(sec)} with workers like this machine's"
    yield "budget", text


def here_lines(work: Work, fits: int, used: Used = Used()) -> Iterator[tuple[str, str]]:
    """Lines (topic, text) on time, budget and disk where `fits` trials fit at the same time."""
    search = work.file.search
    trials = min(fits, search.trials, search.concurrent or search.trials)
    at_once = trials * work.file.resources.workers
    yield (
        "time",
        f"at most about {duration(work.worker_sec / at_once)} with {_count(at_once, 'worker')} at a time like {work.speed}, at the preset; "
        "early stopping makes it less",
    )
    yield from budget_lines(work, trials, used)
    yield "disk", disk_line(work, trials)


def disk_line(work: Work, trials_at_once: int) -> str:
    """The disk space of a sweep's checkpoints, in words."""
    search = work.file.search
    disk = checkpoints(work.file, trials_at_once) * work.folds * work.cost.checkpoint_bytes
    front = ", and those of the rest of the Pareto front" if len(search.objectives) > 1 else ""
    return f"at most {disk / 1e6:.0f} MB of checkpoints (search.keep_checkpoints: {search.keep_checkpoints}){front}"


def _evaluations(file: FileSpec) -> int:
    return -(-file.train.steps // file.evaluate.every)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number != 1 else ''}"


def _forward_images(spec: TrialSpec, materials: Materials) -> int:
    """Forward passes of one fold's evaluation, counted per image."""
    config, passes = spec.file.evaluate, 0
    if needed(config.metrics) - {"loss"} or config.grid_images > 0:
        passes += max(config.samples, config.grid_images) * config.sampler_steps
    held_out = len(materials.folds[0].holdout)
    if "loss" in needed(config.metrics):
        passes += held_out * math.ceil(config.loss_draws / held_out)
    return passes


def measure(spec: TrialSpec) -> Cost:
    """Time a step and a forward pass of one training on all shots, with the methods' stages as small as possible."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, int(spec.file.resources.cpus)))
    device = pick_device(spec.file.resources.gpus if torch.cuda.is_available() else 0)
    batch = spec.file.train.batch_size
    try:
        with tempfile.TemporaryDirectory() as scratch, compiling():
            groups = math.lcm(*(config.group_size for config in spec.methods.values()))
            least = max(groups, *(config.least_batch for config in spec.methods.values()))
            trial = _small_trial(spec, least, Folder(scratch), device)
            trial.materials.candidate(trial.trainings[0]).check_finite()
            step_sec = batch / least * _quickest(lambda: _step(trial), 2, device)
            if step_sec < BRISK_SEC and batch > least:
                whole = _small_trial(spec, batch, Folder(scratch), device)
                step_sec = _quickest(lambda: _step(whole), 3, device)
            forward_sec = _forward_sec(trial, device)
            method = trial.trainings[0].method
            trained = sum(parameter.numel() for parameter in method.trained().values())
    except NonFiniteLossError as error:
        raise UserError(f"train: already the first steps fail ({error}); whole weights, or a smaller train.lr, would be right") from error
    finally:
        torch.set_num_threads(threads)
    return Cost(step_sec, method.trained_share, forward_sec, trained * 4 * CHECKPOINT_COPIES, "GPU" if device.type == "cuda" else "CPU")


def _small_trial(spec: TrialSpec, batch_size: int, scratch: Folder, device: torch.device) -> Trial:
    """A trial with one model on all shots. The target's images replace the source's, which may be many or not generated yet."""
    file = spec.file
    source = file.source.model_copy(update={"images": file.target.images})
    train = file.train.model_copy(update={"batch_size": batch_size})
    evaluate = file.evaluate.model_copy(update={"metrics": []})
    small = replace(
        spec,
        file=file.model_copy(update={"source": source, "train": train, "evaluate": evaluate}),
        methods={name: config.model_copy(update=dict(config.cheap_stages)) for name, config in spec.methods.items()},
        refit_steps=1,
    )
    return Trial(small, scratch / f"trial-{batch_size}", scratch / "cache", device=device)


def _step(trial: Trial) -> None:
    training = trial.trainings[0]
    training.advance(training.step + 1)


def _forward_sec(trial: Trial, device: torch.device) -> float:
    candidate = trial.materials.candidate(trial.trainings[0])
    alone = _quickest(lambda: candidate.forward(1), 2, device)
    if alone * SAMPLED_TOGETHER > BRISK_SEC:
        return alone
    return _quickest(lambda: candidate.forward(SAMPLED_TOGETHER), 2, device) / SAMPLED_TOGETHER


def _quickest(work: Callable[[], None], times: int, device: torch.device) -> float:
    """The shortest time in seconds of several calls; the first one warms up."""
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def duration(seconds: float) -> str:
    """A duration as text, e.g. `12 min`."""
    if seconds < 1:
        return "1 s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
