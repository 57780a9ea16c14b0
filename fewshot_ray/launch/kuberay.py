"""Reads a KubeRay manifest as a cluster file: groups of pods and their limits, as Ray's autoscaler reads them."""

from __future__ import annotations

import copy
import sys
from typing import Any

from fewshot_ray.cluster.ray_private import autoscaling_config
from fewshot_ray.errors import UserError
from fewshot_ray.launch.cluster_yaml import Source
from fewshot_ray.spec.wording import show

__all__ = ["KUBERAY", "raycluster_config"]

KUBERAY = "kuberay"
"""Ray's name of the provider."""
_HEADS = "headgroup"
"""Ray's name of the head's group."""
_AMOUNTS = {"type": "object", "additionalProperties": {"type": ["string", "number"]}}
_CONTAINER = {"type": "object", "properties": {"resources": {"type": "object", "properties": {"limits": _AMOUNTS, "requests": _AMOUNTS}}}}
_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
_POD = {
    "type": "object",
    "required": ["containers"],
    "properties": {"containers": {"type": "array", "minItems": 1, "items": _CONTAINER}, "nodeSelector": _TEXTS},
}
_GROUP = {
    "rayStartParams": _TEXTS,
    "resources": _AMOUNTS,
    "labels": _TEXTS,
    "template": {"type": "object", "required": ["spec"], "properties": {"spec": _POD}},
}
_COUNT = {"type": "integer", "minimum": 0}
_COUNTS = {"replicas": _COUNT, "minReplicas": _COUNT, "maxReplicas": _COUNT, "numOfHosts": {"type": "integer", "minimum": 1}}
_WORKERS = {
    "type": "object",
    "required": ["groupName", "template"],
    "properties": {"groupName": {"type": "string"}, "suspend": {"type": "boolean"}, **_COUNTS, **_GROUP},
}
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["metadata", "spec"],
    "properties": {
        "metadata": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}, "namespace": {"type": "string"}}},
        "spec": {
            "type": "object",
            "required": ["headGroupSpec", "workerGroupSpecs"],
            "properties": {
                "enableInTreeAutoscaling": {"type": "boolean"},
                "autoscalerOptions": {"type": "object", "properties": {"idleTimeoutSeconds": _COUNT}},
                "headGroupSpec": {"type": "object", "required": ["template"], "properties": _GROUP},
                "workerGroupSpecs": {"type": "array", "items": _WORKERS},
            },
        },
    },
}
"""Schema of the parts of a RayCluster that are read here; KubeRay and Kubernetes check the rest."""


def raycluster_config(source: Source) -> dict[str, Any]:
    """A RayCluster as the cluster file's tree that Ray's autoscaler makes of it. Raises UserError for what it can't read."""
    source.check_schema(_SCHEMA)
    cluster = copy.deepcopy(source.tree)
    cluster["metadata"].setdefault("namespace", "default")
    grows = cluster["spec"].get("enableInTreeAutoscaling", False)
    taken = {_HEADS}
    for index, group in enumerate(cluster["spec"]["workerGroupSpecs"]):
        place = ("spec", "workerGroupSpecs", index)
        if group["groupName"] in taken:
            raise source.error(
                (*place, "groupName"), f"is {show(group['groupName'])}, the name of another group; one of its own would be right"
            )
        taken.add(group["groupName"])
        _bound(source, place, group, grows=grows)
    return _derived(source, cluster)


def _bound(source: Source, place: tuple[str | int, ...], group: dict[str, Any], *, grows: bool) -> None:
    """A group's minimum and maximum of pods: without the autoscaler its `replicas` within the bounds; 0 for a suspended group."""
    least = group.setdefault("minReplicas", 0)
    if grows and "maxReplicas" not in group:
        raise source.error((*place, "maxReplicas"), "is missing; the most pods of this group would be right, or it grows without an end")
    most = group.setdefault("maxReplicas", sys.maxsize)
    if least > most:
        raise source.error((*place, "minReplicas"), f"is {show(least)}, maxReplicas is {show(most)}; at most {most} would be right")
    if group.get("suspend"):
        group["minReplicas"] = group["maxReplicas"] = 0
    elif not grows:
        group["minReplicas"] = group["maxReplicas"] = min(max(group.get("replicas", least), least), most)


def _derived(source: Source, cluster: dict[str, Any]) -> dict[str, Any]:
    import jsonschema  # type: ignore[import-untyped]

    try:
        return autoscaling_config(cluster)
    except jsonschema.ValidationError as error:
        raise UserError(f"{source.name}: Ray's autoscaler refuses it: {' '.join(str(error.message).split())}") from error
    except (ValueError, TypeError, KeyError, AttributeError, AssertionError, ArithmeticError) as error:
        raise UserError(f"{source.name}: Ray's autoscaler can't read it: {' '.join(str(error).split()) or type(error).__name__}") from error
