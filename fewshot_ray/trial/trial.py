"""One trial: trains its folds, evaluates them on their held-out images, saves checkpoints and resumes from the latest."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib.metadata import version
from typing import Any

import torch

from fewshot_ray.data.target import Fold
from fewshot_ray.errors import SavedAndEndedError, UserError
from fewshot_ray.metrics.stamp import stamp
from fewshot_ray.storage import Folder
from fewshot_ray.training.checkpoint import latest_checkpoint, restore_training, training_state
from fewshot_ray.training.group import Group
from fewshot_ray.training.writer import CheckpointWriter
from fewshot_ray.trial.activity import Activity
from fewshot_ray.trial.compose import TrialSpec
from fewshot_ray.trial.evaluation import Evaluator, Instruments, check_evaluation
from fewshot_ray.trial.families import materials_of
from fewshot_ray.trial.memory import measure_from_now
from fewshot_ray.trial.over_folds import OverFolds, write_samples
from fewshot_ray.trial.ranking import Ranking
from fewshot_ray.trial.source import drawn_by_source

logger = logging.getLogger(__name__)

STAMPS = "stamps.json"
PART_SEC = 5.0
"""Approximate time that a fold trains before the next one does, and between checks whether a checkpoint is due."""


@dataclass(frozen=True)
class Evaluation:
    """The metrics of a trial at one step, and the state of its training."""

    step: int
    metrics: dict[str, float]
    """Means over the folds."""
    train_loss: float
    """Mean over the steps since the last evaluation, and over the folds."""
    lr: float
    images_per_sec: float
    trained_share: float
    """Trained parameters over all parameters of the network, in (0, 1]."""
    image_losses: list[float] = field(default_factory=list)
    """The held-out loss of each held-out image, fold by fold; empty where it isn't measured."""
    by_image: dict[str, list[float]] = field(default_factory=dict)
    """Further objectives that are computed from held-out losses, by image (`HoldoutLosses.by_image`)."""
    micro_batch: int | None = None
    """Images per forward and backward pass of a worker in the last step, the least of the folds; None in checkpoints of older releases."""
    memory: Mapping[str, int] = field(default_factory=dict)
    """Bytes that the first worker has taken at its peak (`memory.peak_memory`)."""


class Trial:
    """Iterate `evaluations()` to run it. Everything it writes is below `folder`; stages come from `cache`.

    Raises UserError where the spec doesn't fit the model, the images or the machine.
    """

    def __init__(
        self,
        spec: TrialSpec,
        folder: Folder,
        cache: Folder,
        *,
        device: torch.device,
        group: Group | None = None,
        last_step: int | None = None,
        told_to_end: Callable[[], str | None] = lambda: None,
        tell: Callable[[Activity], None] = lambda activity: None,
        read_memory: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        self.spec = spec
        self.folder = folder
        self.last_step = last_step or spec.refit_steps or spec.file.train.steps
        """The step it ends at; the learning rate's schedule is that of all `train.steps`."""
        self.told_to_end = told_to_end
        """Called about every `PART_SEC`; returns why the process is to end soon, or None. Workers of a group may differ."""
        self.tell = tell
        """Called with the current activity, about every `PART_SEC` while training and whenever the activity changes."""
        self.read_memory = read_memory
        """Called at each evaluation, for its record."""
        self.device = device
        self.group = group or Group()
        self.materials = materials_of(spec, cache, device)
        self.config = spec.file.evaluate
        folds = self.materials.folds
        self.tell(Activity("preparing the training"))
        if spec.refit_steps is None:
            check_evaluation(self.config, folds)
        size, channels = self.materials.size, self.materials.channels
        self.instruments = Instruments(self.config, channels=channels, size=size, device=device, cache=cache)
        self.trainings = [self.materials.training(fold, self.group) for fold in folds]
        self.evaluators = [self._evaluator(fold) for fold in folds]
        measure_from_now(device)
        self.history: list[Evaluation] = []
        self.writer = CheckpointWriter(self.checkpoints)
        self._saved_at_sec = time.monotonic()
        self._saved_step = 0
        self._part_steps = 1
        self._is_stamped = False
        self.busy = False
        """Whether it is training or evaluating, rather than waiting for the next evaluation to be requested."""

    @property
    def checkpoints(self) -> Folder:
        """The folder of the checkpoints."""
        return self.folder / "checkpoints"

    def evaluations(self) -> Iterator[Evaluation]:
        """All evaluations of the trial in order: those in its latest intact checkpoint, then those trained from there.

        Raises SavedAndEndedError, after saving, where it is told to end.
        """
        self._resume()
        yield from list(self.history)
        steps, every = self.last_step, self.config.every
        try:
            for step in [*range(every, steps, every), steps]:
                if step > (self.history[-1].step if self.history else 0):
                    self.busy = True
                    evaluation = self._advance(step)
                    self.writer.wait()  # the caller may stop this trial, and nothing may be written after that
                    self.busy = False
                    yield evaluation
        finally:
            self.busy = False
            self.writer.close()

    def _advance(self, step: int) -> Evaluation:
        """Train all folds to `step`, saving checkpoints that fall due, and evaluate them."""
        seconds, first = 0.0, self.trainings[0].step
        while self.trainings[0].step < step:
            self._end_if_told()
            seconds += self._train_part(step)
            due = time.monotonic() - self._saved_at_sec >= self.spec.file.train.checkpoint_sec
            if due and self.trainings[0].step < step and self.writer.idle:  # training doesn't wait for unreachable storage
                self._save()
        self._end_if_told()
        self.tell(Activity("measuring", step))
        losses = [training.take_loss() for training in self.trainings]
        images = (step - first) * self.spec.file.train.batch_size * len(self.trainings)
        found = self._measure(step) if self.spec.refit_steps is None else None
        if found is None:
            self._picture(step)
        evaluation = Evaluation(
            step=step,
            metrics={} if found is None else found.metrics,
            train_loss=sum(losses) / len(losses),
            lr=self.trainings[0].learning_rate(step - 1),
            images_per_sec=images / seconds if seconds > 0 else 0.0,
            trained_share=self.trainings[0].method.trained_share,
            image_losses=[] if found is None else found.image_losses,
            by_image={} if found is None else found.by_image(self.spec.file.search.objectives),
            micro_batch=min(training.micro_batch for training in self.trainings),
            memory=dict(self.read_memory()),
        )
        self.history.append(evaluation)
        self._save()
        return evaluation

    def take_remarks(self) -> list[str]:
        """What the user is to be told since the last call, a line each."""
        return list(dict.fromkeys(remark for training in self.trainings for remark in training.take_remarks()))

    def _end_if_told(self) -> None:
        """Save and raise SavedAndEndedError where any worker of the group is told to end; all end at the same step."""
        reason = self.group.first_of(self.told_to_end())
        if reason is None:
            return
        if self.trainings[0].step != self._saved_step:
            self._save()
        self.writer.wait()
        self.group.wait_for_all(self.device)  # the end of the first process may end the others
        raise SavedAndEndedError(reason, self.trainings[0].step)

    def _train_part(self, step: int) -> float:
        """Train every fold for as many steps as take about `PART_SEC`, up to `step`; returns the time in seconds."""
        started, first = time.perf_counter(), self.trainings[0].step
        until = min(step, first + self._part_steps)
        for training in self.trainings:
            training.advance(until)
        seconds = time.perf_counter() - started
        self.tell(Activity("training", until, (until - first) / max(seconds, 1e-6)))
        # The same on every worker: all must go to the next fold at the same step.
        self._part_steps = self.group.smallest(max(1, int(PART_SEC * (until - first) / max(seconds, 1e-6))), self.device)
        return seconds

    def _measure(self, step: int) -> OverFolds:
        """Measure the averaged weights, and write samples and losses."""
        measured = []
        for training, evaluator in zip(self.trainings, self.evaluators, strict=True):
            first = evaluator is self.evaluators[0]
            with training.ema.applied():
                measured.append(evaluator.measure(self.materials.candidate(training), samples=self.config.samples, grid=first))
        grid = None if self._source_images is None else self._source_images[: self.config.grid_images]
        found = OverFolds(measured, grid)
        self._write_stamps()
        if self.group.rank == 0:
            found.write(self.folder, step, self.config)
        return found

    def _write_stamps(self) -> None:
        """Write what each metric is measured with, which is the same at every step; the numbers of images are the first fold's."""
        if self.group.rank == 0 and not self._is_stamped:
            measured = self.evaluators[0].protocol(self.config.samples)
            measured |= {"folds": len(self.evaluators)} if len(self.evaluators) > 1 else {}
            stamps = {name: stamp(name, measured) for name in self.config.metrics}
            self.folder.write_text(STAMPS, json.dumps(stamps, indent=2) + "\n")
            self._is_stamped = True

    @cached_property
    def _source_images(self) -> torch.Tensor | None:
        return drawn_by_source(self.materials)

    def _source_samples(self, count: int) -> torch.Tensor:
        assert self._source_images is not None
        return self._source_images[:count]

    def _picture(self, step: int) -> None:
        """Write a refit's sample grid; without held-out images it has no metrics."""
        if self.config.grid_images > 0:
            with self.trainings[0].ema.applied():
                candidate = self.materials.candidate(self.trainings[0])
                samples = self.evaluators[0].draw_samples(candidate, self.config.grid_images)
                if self.group.rank == 0:
                    write_samples(self.folder, step, self.config, samples, candidate.strip(self.spec.file.seed))

    def _evaluator(self, fold: Fold) -> Evaluator:
        own = self.materials.own_metrics(self.config, fold, self.instruments, self.group)
        source = self._source_samples if self.spec.file.source.pretrained else None
        return Evaluator(
            self.config, fold, self.instruments, own, seed=self.spec.file.seed, device=self.device, group=self.group, source=source
        )

    def best_step(self) -> int | None:
        """The step of the best evaluation so far; a refit's last."""
        if self.spec.refit_steps is not None:
            return self.history[-1].step if self.history else None
        index = Ranking.of(self.spec.file.search).best_index([evaluation.metrics for evaluation in self.history])
        return None if index is None else self.history[index].step

    def _save(self) -> None:
        """Write a checkpoint at the current step; it, the one before and the best are kept."""
        step = self.trainings[0].step
        self._saved_at_sec, self._saved_step = time.monotonic(), step
        if self.group.rank != 0:
            return
        tensors: dict[str, torch.Tensor] = {}
        training: dict[str, Any] = {}
        for index, one in enumerate(self.trainings):
            prefix = f"fold{index}/"
            state, training[prefix] = training_state(one, prefix)
            tensors |= state
        info = {
            "training": training,
            "history": [asdict(evaluation) for evaluation in self.history],
            "versions": versions(),
            "shots": [list(fold.train.hashes) for fold in self.materials.folds],
            "source": {**self.spec.tree["source"], "weights_hash": self.materials.source_hash},
        }
        best = {best} if (best := self.best_step()) is not None else set()
        self.writer.submit(step, tensors, info, lambda saved: best | set(saved[-2:]))

    def _resume(self) -> None:
        checkpoint = latest_checkpoint(self.checkpoints)
        step = checkpoint.step if checkpoint else 0
        # Also prevents the first worker from deleting a checkpoint that another still reads.
        if self.group.smallest(step, self.device) != -self.group.smallest(-step, self.device):
            raise UserError(f"storage {self.folder.url}: the trial's workers see different checkpoints there; a place they share is right")
        if checkpoint is None:
            return
        before, now = checkpoint.info.get("versions"), versions()
        if isinstance(before, dict) and (others := [f"{name} {before.get(name)}" for name in now if before.get(name) != now[name]]):
            logger.warning("%s: written with %s; what follows may differ in the last digits", checkpoint.place, ", ".join(others))
        for index, training in enumerate(self.trainings):
            restore_training(training, checkpoint, f"fold{index}/")
        self.history = [Evaluation(**evaluation) for evaluation in checkpoint.info["history"]]
        self._saved_step = step


def versions() -> Mapping[str, str]:
    """Versions of the libraries whose numerics a result depends on."""
    return {name: version(name) for name in ("fewshot-ray", "torch", "diffusers", "peft", "numpy")}
