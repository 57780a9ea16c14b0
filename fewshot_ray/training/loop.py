"""The training loop: phases over micro-batches, the global reduction, optimisers, EMA."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from fewshot_ray.methods.phase import LR_FACTOR, Batch, Method, Phase, Weighted
from fewshot_ray.methods.randomness import Randomness
from fewshot_ray.spec.sections import TrainSpec
from fewshot_ray.training.batches import Batches
from fewshot_ray.training.ema import Ema
from fewshot_ray.training.group import Group


class RowKey(NamedTuple):
    """Identifies the rows of one relation of a phase."""

    relation: int
    """Index of the relation among the phase's."""
    name: str


Rows: TypeAlias = Mapping[RowKey, Tensor]
"""The rows of a phase's relations; relations may compare different numbers of images."""


@dataclass(frozen=True)
class Related:
    """The terms of a phase's relations over the global batch."""

    value: Tensor | None = None
    """Their weighted sum `[]`, the same on every worker; None where there is none."""
    pulls: Sequence[Rows] = ()
    """Its gradient with respect to the rows of each micro-batch."""
    rows: Rows | None = None
    """The rows with their graph, where there is one micro-batch."""


class Unread(NamedTuple):
    """A phase's loss in a step, still on the device."""

    step: int
    """Counted from 0."""
    phase: str
    parts: Sequence[Tensor]
    """`[]` each; the loss is their sum."""


class NonFiniteLossError(Exception):
    """A loss that is NaN or infinite; the trial ends as failed."""


class Training:
    """One model in training. `step` counts the finished steps; `advance` goes on from there.

    It depends on no particular method. A step reads nothing from the device, so that a GPU never waits for the host: losses are read,
    and checked, at the end of `advance`. All random numbers are functions of (seed, step), so training resumed from a saved state equals
    the uninterrupted run: bit for bit on CPU with as many workers, to 1e-5 with another number.
    """

    def __init__(self, method: Method, batches: Batches, config: TrainSpec, *, seed: int, device: torch.device, group: Group) -> None:
        self.method = method
        self.batches = batches
        self.config = config
        self.device = device
        self.group = group
        self.randomness = Randomness(seed, device)
        averaged = {name: method.buffers()[name] for name in method.averaged_buffers}
        self.ema = Ema(method.trained(), decay=config.ema.decay, warmup=config.ema.warmup, buffers=averaged)
        self.step = 0
        self._unread: list[Unread] = []
        self.micro_batch = self._micro_batch()
        self.recent_losses: list[float] = []
        """The losses of the steps since `take_loss`."""
        self.last_finite: dict[str, float] = {}
        """The latest loss of each phase."""

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0: linear warm-up, then constant or a cosine that reaches 0 at step `steps`."""
        config = self.config
        rate = config.lr * min(1.0, (step + 1) / (config.lr_warmup_steps + 1))
        if config.lr_schedule == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * min(1.0, step / config.steps)))
        return rate

    def advance(self, until: int) -> float:
        """Train up to step `until`; returns the mean of the total loss over these steps.

        Raises NonFiniteLossError where a loss of these steps isn't finite; the steps after that one have then trained on.
        """
        for module in self.method.modules().values():
            module.train()
        while self.step < until:
            self.take_step()
        for module in self.method.modules().values():
            module.eval()
        losses = self.read_losses()
        self.recent_losses += losses
        return sum(losses) / len(losses) if losses else math.nan

    def take_loss(self) -> float:
        """The mean loss of the steps since the last call."""
        losses, self.recent_losses = self.recent_losses, []
        return sum(losses) / len(losses) if losses else math.nan

    def take_step(self) -> None:
        """One step of every phase that is active in it, on networks in training mode; its losses stay on the device, unread."""
        micro_batches = self.batches.micro_batches(self.step, self.group, self.micro_batch)
        phases = [phase for phase in self.method.phases() if phase.active(self.step)]
        contexts: list[Any] = [None] * len(micro_batches)
        for phase in phases:
            self._run_phase(phase, micro_batches, contexts, last=phase is phases[-1])
        if contexts and contexts[-1] is not None:
            self.method.after_step(contexts[-1])
        self.ema.update()
        self.step += 1

    def _run_phase(self, phase: Phase, micro_batches: Sequence[Batch], contexts: list[Any], *, last: bool) -> None:
        optimizer = self.method.optimizers()[phase.optimizer]
        optimizer.zero_grad(set_to_none=True)
        related = self._related(phase, micro_batches, contexts, self.group)
        shared_graph = len(micro_batches) == 1 and not last  # with several micro-batches only one graph is kept at a time
        total = torch.zeros((), device=self.device)
        for part, batch in enumerate(micro_batches):
            total += self._backward(phase, batch, contexts, part, related, retain_graph=shared_graph)
            if last and part + 1 < len(micro_batches):
                contexts[part] = None
            elif not last and not shared_graph:
                self.method.forget(contexts[part])
        self._reduce(phase, total)
        self._unread.append(Unread(self.step, phase.name, [total] if related.value is None else [total, related.value]))
        clip = self.config.gradient_clip if phase.gradient_clip is None else phase.gradient_clip
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(phase.parameters, clip)
        for settings in optimizer.param_groups:
            settings["lr"] = self.learning_rate(self.step) * settings.get(LR_FACTOR, 1.0)
        optimizer.step()

    def _related(self, phase: Phase, micro_batches: Sequence[Batch], contexts: list[Any], group: Group) -> Related:
        """The relations' terms over the global batch, and their gradient with respect to this worker's rows, by micro-batch.

        With one micro-batch the rows keep their graph; with several they are computed without, and again in each backward pass.
        """
        if not phase.relations:
            return Related()
        live = len(micro_batches) == 1
        parts: list[Rows] = []
        for part, batch in enumerate(micro_batches):
            with torch.set_grad_enabled(live), self._autocast():
                parts.append(rows_of(phase, self._context(batch, contexts, part)))
            if not live:
                self.method.forget(contexts[part])
        everyone, images = {}, micro_batches[0].global_size
        for key in parts[0]:
            own, compared = torch.cat([rows[key].detach().float() for rows in parts]), phase.relations[key.relation].compared(images)
            everyone[key] = group.gather_rows(own, compared).clone().requires_grad_()
        value = value_of(phase, everyone)
        gradients = torch.autograd.grad(value, list(everyone.values()), allow_unused=True, materialize_grads=True)
        pulls: list[dict[RowKey, Tensor]] = [{} for _ in parts]
        for key, gradient in zip(everyone, gradients, strict=True):
            own_parts = group.own(gradient).split([len(rows[key]) for rows in parts])
            for pull, own_part in zip(pulls, own_parts, strict=True):
                pull[key] = own_part
        return Related(value.detach(), pulls, parts[0] if live else None)

    def _context(self, batch: Batch, contexts: list[Any], part: int) -> Any:
        """The micro-batch's context, made when first used; layers' noise is seeded anew, so that a second forward pass equals the first."""
        if contexts[part] is None:
            self.randomness.reseed_layers(self.step, self.group.rank, part)
            contexts[part] = self.method.context(batch, self.randomness)
        self.randomness.reseed_layers(self.step, self.group.rank, part)
        return contexts[part]

    def _backward(self, phase: Phase, batch: Batch, contexts: list[Any], part: int, related: Related, *, retain_graph: bool) -> Tensor:
        """Add this micro-batch's gradient; returns its share of the global mean `sum_terms lambda sum_i loss_i / global count`."""
        with self._autocast():
            context = self._context(batch, contexts, part)
            objective = phase.loss(context)
            rows = rows_of(phase, context) if related.rows is None else related.rows
        loss = torch.zeros((), device=self.device)
        for term, per_sample in objective.per_sample.items():
            loss = loss + objective.weight[term] * per_sample.float().sum() / batch.global_size
        pulled = loss
        for key, row in rows.items():
            if row.requires_grad:
                pulled = pulled + (related.pulls[part][key] * row.float()).sum()
        torch.autograd.backward(pulled * phase.gradient_scale, inputs=list(phase.parameters), retain_graph=retain_graph)
        return loss.detach()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    def _reduce(self, phase: Phase, total: Tensor) -> None:
        for parameter in phase.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.group.sum_([parameter.grad for parameter in phase.parameters if parameter.grad is not None])
        self.group.sum_([total])

    def read_losses(self) -> list[float]:
        """The total loss of each step since the last reading, in one copy from the device. Raises NonFiniteLossError."""
        unread, self._unread = self._unread, []
        if not unread:
            return []
        values = iter(torch.stack([part for loss in unread for part in loss.parts]).tolist())
        total: dict[int, float] = {}
        for loss in unread:
            value = self._checked(loss, sum(itertools.islice(values, len(loss.parts))))
            total[loss.step] = total.get(loss.step, 0.0) + value
        return list(total.values())

    def _checked(self, loss: Unread, value: float) -> float:
        if not math.isfinite(value):
            last = self.last_finite.get(loss.phase)
            before = "there was no finite value before it" if last is None else f"the last finite value was {last:.6g}"
            raise NonFiniteLossError(
                f"the {loss.phase} loss is {value} at step {loss.step + 1}; {before} (a lower train.lr, or precision fp32, may help)"
            )
        self.last_finite[loss.phase] = value
        return value

    def _micro_batch(self) -> int:
        """The micro-batch size; for `auto` the worker's whole batch on a CPU, and on a GPU what fits."""
        own = math.ceil(self.config.batch_size / self.group.size)
        if self.method.whole_batch:
            return max(own, 1)
        if self.config.micro_batch != "auto":
            return min(own, self.config.micro_batch)
        fits = own
        while self.device.type == "cuda" and fits > 1 and not self._fits(fits):
            fits = math.ceil(fits / 2)
        return self.group.smallest(fits, self.device)

    def _fits(self, micro_batch: int) -> bool:
        """Whether one forward and backward pass of every phase fits into the device's memory, beside Adam's two moments."""
        batch = self.batches.micro_batches(0, self.group, micro_batch)[0]
        contexts: list[Any] = [None]
        moments: list[Tensor] = []
        parameters = [*self.method.trained().values(), *self.method.auxiliary().values()]
        try:
            moments += [torch.empty_like(parameter) for parameter in parameters for _ in range(2)]
            for phase in self.method.phases():
                related = self._related(phase, [batch], contexts, Group.alone())
                self._backward(phase, batch, contexts, 0, related, retain_graph=True)
        except torch.OutOfMemoryError:
            return False
        finally:
            contexts.clear()
            moments.clear()
            for parameter in parameters:
                parameter.grad = None
            torch.cuda.empty_cache()
        return True


def rows_of(phase: Phase, context: Any) -> Rows:
    """The rows of a micro-batch for the phase's relations."""
    return {RowKey(number, name): row for number, one in enumerate(phase.relations) for name, row in one.rows(context).items()}


def value_of(phase: Phase, rows: Rows) -> Tensor:
    """The weighted sum of the relations' terms, each averaged over the rows of the global batch."""
    terms = Weighted()
    for number, relation in enumerate(phase.relations):
        terms.add(relation.terms({key.name: row for key, row in rows.items() if key.relation == number}))
    return torch.stack([terms.weight[name] * loss.mean() for name, loss in terms.per_sample.items()]).sum()
