"""What a run's file leaves open and depends on other fields: a GAN's recipe, the metrics, and what trials are ordered by."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from fewshot_ray.metrics.suite import METRICS
from fewshot_ray.trial.gan_settings import METRIC, TRAIN

ERROR, LOSS, UNTRAINED_LOSS = "relative_error", "relative_loss", "holdout_loss"
FEWEST_HELD_OUT = 5
"""Held-out images with fewer of which distances of samples order models worse than the losses alone (bench/judging)."""
COPIES = {"memorisation": "<= 0.05"}
"""The constraint beside ERROR: of models that copy, the ones that copy most come nearest to ten images."""


def with_defaults(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a tree with metrics, objectives and constraints, and with a GAN's values of `train`, where the file has none of its own.

    The objective is the first of `evaluate.metrics` where only these are given, and otherwise what bench/judging found to order models
    best: with images held out of a pre-trained diffusion model `relative_error`, under a bound on copies; with cross-fitting, few images
    or no samples `relative_loss`; of a model from scratch the held-out loss; of a GAN KID. `evaluate.metrics` are those that `search`
    names, where they aren't given.
    """
    filled: dict[str, Any] = copy.deepcopy(dict(tree))
    sections = {name: filled.get(name) for name in ("source", "target", "train", "evaluate", "search")}
    if not all(section is None or isinstance(section, dict) for section in sections.values()):
        return filled  # an error that is reported later
    source, target, train, evaluate, search = ({} if section is None else section for section in sections.values())
    gan = source.get("gan")
    if isinstance(gan, dict) and gan:
        filled["train"] = {**copy.deepcopy(dict(TRAIN.get(next(iter(gan)), {}))), **train}
    objectives, constraints = _ordered_by(source, target, evaluate, search)
    if objectives:
        filled["search"] = {"objectives": objectives, **({"constraints": constraints} if constraints else {}), **search}
    if "metrics" not in evaluate and isinstance(named := filled.get("search"), dict):
        names = [*_keys(named.get("objectives")), *_keys(named.get("constraints"))]
        filled["evaluate"] = {"metrics": list(dict.fromkeys(names)), **evaluate} if names else evaluate
    return filled


def _ordered_by(
    source: Mapping[str, Any], target: Mapping[str, Any], evaluate: Mapping[str, Any], search: Mapping[str, Any]
) -> tuple[dict[str, str], dict[str, str]]:
    """Objectives and constraints; none where the file has objectives, or they can't be told from metrics that aren't known."""
    if "objectives" in search:
        return {}, {}
    objective, constraints = _by_case(source, target, evaluate)
    metrics = evaluate.get("metrics")
    if metrics is not None:
        if not (isinstance(metrics, list) and metrics and all(isinstance(name, str) and name in METRICS for name in metrics)):
            return {}, {}
        if objective not in metrics:
            objective, constraints = metrics[0], {}
        constraints = {name: bound for name, bound in constraints.items() if name in metrics}
    return {objective: METRICS[objective].direction}, {} if "constraints" in search else constraints


def _by_case(source: Mapping[str, Any], target: Mapping[str, Any], evaluate: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    if source.get("gan") is not None:
        return METRIC, {}
    if source.get("build") is not None:
        return UNTRAINED_LOSS, {}
    holdout = target.get("holdout", {})  # cross-fitting, where the file doesn't say
    few = isinstance(holdout, dict) or (isinstance(holdout, int) and holdout < FEWEST_HELD_OUT)
    if few or evaluate.get("samples") == 0:
        return LOSS, {}
    return ERROR, dict(COPIES)


def _keys(node: Any) -> list[str]:
    return list(node) if isinstance(node, dict) else []
