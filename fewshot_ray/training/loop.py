"""The training loop: phases over micro-batches, the global reduction, optimisers, EMA."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fewshot_ray.methods.phase import Batch, Method, Objective, Phase
from fewshot_ray.methods.randomness import Randomness
from fewshot_ray.spec.sections import TrainSpec
from fewshot_ray.training.batches import Batches
from fewshot_ray.training.ema import Ema
from fewshot_ray.training.group import Group


class NonFiniteLossError(Exception):
    """A loss that is NaN or infinite; the trial ends as failed."""


class Training:
    """One model in training. `step` counts the finished steps; `advance` goes on from there.

    Knows phases, and no method's name. Everything it draws is a function of (seed, step), so a state at a step continues as the
    uninterrupted run would: bit for bit on CPU with as many workers, to 1e-5 with another number.
    """

    def __init__(self, method: Method, batches: Batches, config: TrainSpec, *, seed: int, device: torch.device, group: Group) -> None:
        self.method = method
        self.batches = batches
        self.config = config
        self.device = device
        self.group = group
        self.randomness = Randomness(seed, device)
        self.ema = Ema(method.trained(), decay=config.ema.decay, warmup=config.ema.warmup)
        self.step = 0
        self.micro_batch = self._micro_batch()
        self._last_finite: dict[str, float] = {}

    def learning_rate(self, step: int) -> float:
        """Of a step counted from 0: linear warm-up, then constant or a cosine that would be 0 at step `steps`."""
        config = self.config
        rate = config.lr * min(1.0, (step + 1) / (config.lr_warmup_steps + 1))
        if config.lr_schedule == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * min(1.0, step / config.steps)))
        return rate

    def advance(self, until: int) -> float:
        """Train up to step `until`; the mean over these steps of the whole loss. Raises NonFiniteLossError."""
        losses = []
        for module in self.method.modules().values():
            module.train()
        while self.step < until:
            losses.append(self._train_step())
        for module in self.method.modules().values():
            module.eval()
        return sum(losses) / len(losses) if losses else math.nan

    def _train_step(self) -> float:
        step = self.step
        micro_batches = self.batches.micro_batches(step, self.group, self.micro_batch)
        phases = [phase for phase in self.method.phases() if phase.active(step)]
        contexts: list[Any] = [None] * len(micro_batches)
        total = 0.0
        for phase in phases:
            total += self._run_phase(phase, micro_batches, contexts, last=phase is phases[-1])
        if contexts and contexts[-1] is not None:
            self.method.after_step(contexts[-1])
        self.ema.update()
        self.step += 1
        return total

    def _run_phase(self, phase: Phase, micro_batches: Sequence[Batch], contexts: list[Any], *, last: bool) -> float:
        optimizer = self.method.optimizers()[phase.optimizer]
        optimizer.zero_grad(set_to_none=True)
        totals: list[Tensor] = []
        for part, batch in enumerate(micro_batches):
            self.randomness.reseed_layers(self.step, self.group.rank, part)
            loss = self._loss(phase, batch, contexts, part)
            torch.autograd.backward(loss * phase.gradient_scale, inputs=list(phase.parameters), retain_graph=not last)
            totals.append(loss.detach())
            if last and part + 1 < len(micro_batches):
                contexts[part] = None
        total = torch.stack(totals).sum() if totals else torch.zeros((), device=self.device)
        self._reduce(phase, total)
        value = self._checked(phase, float(total))
        if self.config.gradient_clip is not None:
            torch.nn.utils.clip_grad_norm_(phase.parameters, self.config.gradient_clip)
        for settings in optimizer.param_groups:
            settings["lr"] = self.learning_rate(self.step)
        optimizer.step()
        return value

    def _loss(self, phase: Phase, batch: Batch, contexts: list[Any], part: int) -> Tensor:
        """This micro-batch's share of the global mean: `sum_terms lambda sum_i loss_i / global count`."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            if contexts[part] is None:
                contexts[part] = self.method.context(batch, self.randomness)
            objective: Objective = phase.loss(contexts[part])
        terms = [
            objective.weight[term] * loss.float().sum() / objective.global_count.get(term, batch.global_size)
            for term, loss in objective.per_sample.items()
        ]
        return torch.stack(terms).sum()

    def _reduce(self, phase: Phase, total: Tensor) -> None:
        for parameter in phase.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.group.sum_([parameter.grad for parameter in phase.parameters if parameter.grad is not None])
        self.group.sum_([total])

    def _checked(self, phase: Phase, loss: float) -> float:
        if not math.isfinite(loss):
            last = self._last_finite.get(phase.name)
            before = "there was no finite value before it" if last is None else f"the last finite value was {last:.6g}"
            raise NonFiniteLossError(
                f"the {phase.name} loss is {loss} at step {self.step + 1}; {before} (a lower train.lr, or precision fp32, may help)"
            )
        self._last_finite[phase.name] = loss
        return loss

    def _micro_batch(self) -> int:
        """What `micro_batch: auto` comes to: everything on a CPU, what fits on a GPU."""
        own = math.ceil(self.config.batch_size / self.group.size)
        if self.config.micro_batch != "auto":
            return min(own, self.config.micro_batch)
        fits = own
        while self.device.type == "cuda" and fits > 1 and not self._fits(fits):
            fits = math.ceil(fits / 2)
        return self.group.smallest(fits, self.device)

    def _fits(self, micro_batch: int) -> bool:
        """Whether one forward and backward pass of every phase runs in the device's memory, beside Adam's two moments."""
        batch = self.batches.micro_batches(0, self.group, micro_batch)[0]
        contexts: list[Any] = [None]
        moments: list[Tensor] = []
        try:
            moments += [torch.empty_like(parameter) for parameter in self.method.trained().values() for _ in range(2)]
            for phase in self.method.phases():
                torch.autograd.backward(self._loss(phase, batch, contexts, 0), inputs=list(phase.parameters), retain_graph=True)
        except torch.OutOfMemoryError:
            return False
        finally:
            contexts.clear()
            moments.clear()
            for parameter in self.method.trained().values():
                parameter.grad = None
            torch.cuda.empty_cache()
        return True
