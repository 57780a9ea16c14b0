"""The terms over pairs of images of the global batch, which workers and micro-batches share: their rows, and the gradient in these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from fewshot_ray.methods.phase import Phase, Weighted
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


def rows_of(phase: Phase, context: Any) -> Rows:
    """The rows of a micro-batch for the phase's relations."""
    return {RowKey(number, name): row for number, one in enumerate(phase.relations) for name, row in one.rows(context).items()}


def value_of(phase: Phase, rows: Rows) -> Tensor:
    """The weighted sum of the relations' terms, each averaged over the rows of the global batch."""
    terms = Weighted()
    for number, relation in enumerate(phase.relations):
        terms.add(relation.terms({key.name: row for key, row in rows.items() if key.relation == number}))
    return torch.stack([terms.weight[name] * loss.mean() for name, loss in terms.per_sample.items()]).sum()


def gathered(phase: Phase, images: int, parts: Sequence[Rows], group: Group) -> Rows:
    """The rows of a global batch of so many images, from those of every worker's micro-batches; to be differentiated in."""
    everyone = {}
    for key in parts[0]:
        own, compared = torch.cat([rows[key].detach().float() for rows in parts]), phase.relations[key.relation].compared(images)
        everyone[key] = group.gather_rows(own, compared).clone().requires_grad_()
    return everyone


def related_terms(phase: Phase, parts: Sequence[Rows], everyone: Rows, group: Group) -> Related:
    """The relations' terms over the global batch, and their gradient with respect to this worker's rows, by micro-batch."""
    if not phase.relations:
        return Related()
    value = value_of(phase, everyone)
    gradients = torch.autograd.grad(value, list(everyone.values()), allow_unused=True, materialize_grads=True)
    pulls: list[dict[RowKey, Tensor]] = [{} for _ in parts]
    for key, gradient in zip(everyone, gradients, strict=True):
        own_parts = group.own(gradient).split([len(rows[key]) for rows in parts])
        for pull, own_part in zip(pulls, own_parts, strict=True):
            pull[key] = own_part
    return Related(value.detach(), pulls, parts[0] if len(parts) == 1 else None)
