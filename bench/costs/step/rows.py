"""Trainings beside the sum of their steps' parts: a row a case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch

from bench.costs.step.cases import Case
from bench.costs.step.parts import Parts
from bench.costs.step.passes import Passes, passes
from bench.costs.step.space import Space
from bench.costs.step.time_and_memory import MIB, added_bytes, live_bytes, timed
from fewshot_ray.training.loop import Training


@dataclass
class Row:
    """A case's figures at one way to choose the trained parameters."""

    case: Case
    training: Training
    passes: Passes
    held: int = 0
    """Bytes between steps."""
    steps: list[float] = field(default_factory=list)
    """Seconds, a repetition each."""
    bounds: list[float] = field(default_factory=list)
    peak: int = 0
    """Bytes, those held among them."""

    @property
    def ratio(self) -> float:
        """Step over bound."""
        return median(step / bound for step, bound in zip(self.steps, self.bounds, strict=True))

    def measure_peak(self, device: torch.device) -> None:
        """Of a step; where phases take turns of the second, beside what the first leaves."""

        def work() -> None:
            for _ in self.training.method.phases():
                self.training.take_step()

        self.peak = self.held + added_bytes(work, device).most
        self.forget_gradients()

    def forget_gradients(self) -> None:
        """They are no part of what is held between steps."""
        for optimizer in self.training.method.optimizers().values():
            optimizer.zero_grad(set_to_none=True)


def measure(space: Space, params: str, cases: Sequence[Case], repetitions: int, encoder: tuple[str, str | None]) -> dict[str, Any]:
    """One way to choose the trained parameters: the parts' times and a row a case; the first is the plain one."""
    prepared(space, params, cases[0], encoder[1])  # what libraries take at their first use is nobody's
    rows = [prepared(space, params, case, encoder[1]) for case in cases]
    plain = rows[0]
    parts = Parts(plain.training, space, *encoder)
    parts.time()
    teacher, second = parts.teacher_bytes(), parts.second_graph_bytes()
    for row in rows:
        row.measure_peak(space.device)
    timings: list[dict[str, float]] = []
    for _ in range(repetitions):
        timings.append(parts.time())
        for row in rows:
            row.steps.append(timed(row.training.take_step, space.device)[0])
            row.bounds.append(sum(count * timings[-1][part] for part, count in row.passes.items()))
            row.forget_gradients()
    return {
        "space": space.name,
        "params": params,
        "network_parameters": sum(parameter.numel() for parameter in parts.teacher.parameters()),
        "parts_ms": {part: round(1e3 * median(timing[part] for timing in timings), 2) for part in timings[0]},
        "rows": [figures(row, plain, plain.peak + teacher + second) for row in rows],
    }


def prepared(space: Space, params: str, case: Case, encoder_weights: str | None) -> Row:
    """A training after its first step, which makes the optimisers' state."""
    configs = case.configs(space.size, encoder_weights)
    before = live_bytes(space.device)
    training = space.training(configs, params)
    training.take_step()
    row = Row(case, training, passes(configs, latent=space.autoencoder is not None))
    row.forget_gradients()
    row.held = live_bytes(space.device) - before
    return row


def figures(row: Row, plain: Row, sdft_bytes: int) -> dict[str, Any]:
    """For people and the result's file."""
    found = {
        "case": row.case.name,
        "step_ms": round(1e3 * median(row.steps), 2),
        "bound_ms": round(1e3 * median(row.bounds), 2),
        "ratio": round(row.ratio, 4),
        "ratio_to_plain": round(median(row.steps) / median(plain.steps), 3),
        "peak_mib": round(row.peak / MIB, 1),
        "peak_to_plain": round(row.peak / plain.peak, 4),
        "passes": dict(row.passes),
    }
    if row.case.name == "sdft":
        found["peak_to_bound"] = round(row.peak / sdft_bytes, 4)
    return found
