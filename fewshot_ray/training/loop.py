"""The training loop: phases over micro-batches, the global reduction, optimisers, EMA."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from fewshot_ray.methods.phase import LR_FACTOR, Batch, Method, Phase
from fewshot_ray.methods.randomness import Randomness
from fewshot_ray.models.memory import is_out_of_gpu_memory, release_gpu_memory
from fewshot_ray.spec.sections import TrainSpec
from fewshot_ray.training.batches import Batches
from fewshot_ray.training.ema import Ema
from fewshot_ray.training.group import Group
from fewshot_ray.training.memory import REMEDIES, GpuMemoryError, attempt, with_room
from fewshot_ray.training.relations import Related, Rows, gathered, related_terms, rows_of


@dataclass(frozen=True)
class Share:
    """This worker's part of a step's global batch."""

    micro_batches: Sequence[Batch]
    contexts: list[Any]
    """The values that the step's phases share, one a micro-batch; None where not yet made, or freed."""


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
        self.remarks: list[str] = []
        """What the user is to be told since `take_remarks`, a line each."""

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
        share = self._share()
        phases = [phase for phase in self.method.phases() if phase.active(self.step)]
        for phase in phases:
            share = self._run_phase(phase, share, last=phase is phases[-1])
        if share.contexts and share.contexts[-1] is not None:
            self.method.after_step(share.contexts[-1])
        with_room(self.ema.update, lambda: self._free_gradients(share))
        self.step += 1

    def _share(self) -> Share:
        micro_batches = self.batches.micro_batches(self.step, self.group, self.micro_batch)
        return Share(micro_batches, [None] * len(micro_batches))

    def _run_phase(self, phase: Phase, share: Share, *, last: bool) -> Share:
        """One update of the phase's parameters; returns the share in the micro-batches that its gradient was possible with."""
        while (losses := self._gradient(phase, share, last=last)) is None:
            share = self._smaller(share)
        self._unread.append(Unread(self.step, phase.name, losses))
        clip = self.config.gradient_clip if phase.gradient_clip is None else phase.gradient_clip
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(phase.parameters, clip)
        optimizer = self.method.optimizers()[phase.optimizer]
        for settings in optimizer.param_groups:
            settings["lr"] = self.learning_rate(self.step) * settings.get(LR_FACTOR, 1.0)
        # In its first step the optimiser allocates its moments. It needs no worker but this one, as the gradient is reduced already.
        begun = set(optimizer.state)
        with_room(optimizer.step, lambda: self._undo_allocation(optimizer, begun, share))
        return share

    def _gradient(self, phase: Phase, share: Share, *, last: bool) -> list[Tensor] | None:
        """Compute the gradient over the global batch; returns the parts of the phase's loss.

        None, on every worker, where the GPU memory of any ran out. Nothing but gradients and contexts has changed by then.
        """
        self.method.optimizers()[phase.optimizer].zero_grad(set_to_none=True)
        parts: Sequence[Rows] = ()
        everyone: Rows = {}
        if phase.relations:
            if (rows := attempt(self.group, lambda: self._rows(phase, share))) is None:
                return None
            parts, everyone = rows, gathered(phase, share.micro_batches[0].global_size, rows, self.group)
        found = attempt(self.group, lambda: self._backward_all(phase, share, parts, everyone, last=last))
        if found is None:
            return None
        total, related = found
        self.group.sum_([parameter.grad for parameter in phase.parameters if parameter.grad is not None])
        self.group.sum_([total])
        return [total] if related is None else [total, related]

    def _smaller(self, share: Share) -> Share:
        """The step's share in micro-batches of half the size, which the training goes on with. Raises GpuMemoryError at one image."""
        if self.method.whole_batch:  # of a GAN
            raise GpuMemoryError(
                f"the GPU's memory ran out at step {self.step + 1}: this model takes a worker's images together; a smaller "
                "train.batch_size, or a GPU with more memory, is right"
            )
        if self.micro_batch == 1:
            raise GpuMemoryError(f"the GPU's memory ran out at step {self.step + 1}, with one image at a time; {REMEDIES}")
        before, self.micro_batch = self.micro_batch, math.ceil(self.micro_batch / 2)
        self.remarks.append(
            f"the GPU's memory ran out at step {self.step + 1}: from there {self.micro_batch} images per pass instead of {before}, "
            "at the same global batch"
        )
        share.contexts.clear()
        self._free_gradients(share)
        release_gpu_memory()
        return self._share()

    def _free_gradients(self, share: Share) -> None:
        """Free gradients and the networks' outputs."""
        self._forget(share)
        for optimizer in self.method.optimizers().values():
            optimizer.zero_grad(set_to_none=True)

    def _undo_allocation(self, optimizer: Optimizer, begun: Collection[Any], share: Share) -> None:
        """Remove the state that a failed step of the optimiser began with, and free the networks' outputs."""
        for parameter in [parameter for parameter in optimizer.state if parameter not in begun]:
            del optimizer.state[parameter]
        self._forget(share)

    def _forget(self, share: Share) -> None:
        for context in share.contexts:
            if context is not None:
                self.method.forget(context)

    def take_remarks(self) -> list[str]:
        """The remarks since the last call."""
        remarks, self.remarks = self.remarks, []
        return remarks

    def _rows(self, phase: Phase, share: Share) -> Sequence[Rows]:
        """The rows of each micro-batch for the phase's relations.

        With one micro-batch they keep their graph; with several they are computed without, and again in each backward pass.
        """
        live = len(share.micro_batches) == 1
        parts: list[Rows] = []
        for part, batch in enumerate(share.micro_batches):
            with torch.set_grad_enabled(live), self._autocast():
                parts.append(rows_of(phase, self._context(batch, share.contexts, part)))
            if not live:
                self.method.forget(share.contexts[part])
        return parts

    def _backward_all(
        self, phase: Phase, share: Share, parts: Sequence[Rows], everyone: Rows, *, last: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Add the gradients of all micro-batches; returns this worker's loss, and the relations' terms where there are any."""
        related = related_terms(phase, parts, everyone, self.group)
        shared_graph = len(share.micro_batches) == 1 and not last  # with several micro-batches only one graph is kept at a time
        total = torch.zeros((), device=self.device)
        for part, batch in enumerate(share.micro_batches):
            total += self._backward(phase, batch, share.contexts, part, related, retain_graph=shared_graph)
            if last and part + 1 < len(share.micro_batches):
                share.contexts[part] = None
            elif not last and not shared_graph:
                self.method.forget(share.contexts[part])
        for parameter in phase.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return total, related.value

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
        share = Share(self.batches.micro_batches(0, self.group, micro_batch)[:1], [None])
        moments: list[Tensor] = []
        parameters = [*self.method.trained().values(), *self.method.auxiliary().values()]
        try:
            moments += [torch.empty_like(parameter) for parameter in parameters for _ in range(2)]
            for phase in self.method.phases():
                parts = self._rows(phase, share) if phase.relations else ()
                everyone = gathered(phase, share.micro_batches[0].global_size, parts, Group.alone()) if phase.relations else {}
                related = related_terms(phase, parts, everyone, Group.alone())
                self._backward(phase, share.micro_batches[0], share.contexts, 0, related, retain_graph=True)
        except RuntimeError as error:
            if not is_out_of_gpu_memory(error):
                raise
            return False
        finally:
            share.contexts.clear()
            moments.clear()
            for parameter in parameters:
                parameter.grad = None
            torch.cuda.empty_cache()
        return True
