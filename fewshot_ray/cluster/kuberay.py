"""A manifest of KubeRay's in a cluster file's place: the groups of pods it may grow to, as Ray's own autoscaler reads them."""

from __future__ import annotations

import copy
import logging
from typing import Any

from fewshot_ray.cluster.cluster_yaml import Source
from fewshot_ray.errors import UserError
from fewshot_ray.spec.wording import show

__all__ = ["KUBERAY", "raycluster_config"]

KUBERAY = "kuberay"
"""The provider, in Ray's words."""
_AMOUNTS = {"type": "object", "additionalProperties": {"type": ["string", "number"]}}
_CONTAINER = {"type": "object", "properties": {"resources": {"type": "object", "properties": {"limits": _AMOUNTS, "requests": _AMOUNTS}}}}
_POD = {"type": "object", "required": ["containers"], "properties": {"containers": {"type": "array", "minItems": 1, "items": _CONTAINER}}}
_GROUP = {
    "rayStartParams": {"type": "object", "additionalProperties": {"type": "string"}},
    "resources": _AMOUNTS,
    "labels": {"type": "object", "additionalProperties": {"type": "string"}},
    "template": {"type": "object", "required": ["spec"], "properties": {"spec": _POD}},
}
_COUNT = {"type": "integer", "minimum": 0}
_COUNTS = {"replicas": _COUNT, "minReplicas": _COUNT, "maxReplicas": _COUNT, "numOfHosts": {"type": "integer", "minimum": 1}}
_WORKERS = {
    "type": "object",
    "required": ["groupName", "template"],
    "properties": {"groupName": {"type": "string"}, **_COUNTS, **_GROUP},
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
"""What of a RayCluster is read here; the rest is between KubeRay and Kubernetes."""


def raycluster_config(source: Source) -> dict[str, Any]:
    """A RayCluster as the tree of the cluster file that Ray's autoscaler makes of it. Raises UserError for what it would stumble over."""
    import jsonschema  # type: ignore[import-untyped]

    errors = sorted(
        jsonschema.Draft7Validator(_SCHEMA).iter_errors(source.tree), key=lambda error: [str(key) for key in error.absolute_path]
    )
    if errors:
        raise source.schema_error(errors[0])
    cluster = copy.deepcopy(source.tree)
    cluster["metadata"].setdefault("namespace", "default")
    grows = cluster["spec"].get("enableInTreeAutoscaling", False)
    for index, group in enumerate(cluster["spec"]["workerGroupSpecs"]):
        _bound(source, index, group, grows=grows)
    return _derived(source, cluster)


def _bound(source: Source, index: int, group: dict[str, Any], *, grows: bool) -> None:
    """A group's least and most pods: without the autoscaler it keeps those it begins with."""
    place = ("spec", "workerGroupSpecs", index)
    if not grows:
        group["minReplicas"] = group["maxReplicas"] = group.get("replicas", 0)
        return
    group.setdefault("minReplicas", 0)
    if "maxReplicas" not in group:
        raise source.error((*place, "maxReplicas"), "is missing; the most pods of this group would be right, or it grows without an end")
    if group["minReplicas"] > group["maxReplicas"]:
        least, most = group["minReplicas"], group["maxReplicas"]
        raise source.error((*place, "minReplicas"), f"is {show(least)}, maxReplicas is {show(most)}; at most {most} would be right")


def _derived(source: Source, cluster: dict[str, Any]) -> dict[str, Any]:
    import jsonschema
    from ray.autoscaler._private.kuberay import autoscaling_config

    # What Ray says of it is for the autoscaler's log.
    logging.getLogger(autoscaling_config.__name__).setLevel(logging.CRITICAL)
    try:
        config: dict[str, Any] = autoscaling_config._derive_autoscaling_config_from_ray_cr(cluster)
    except jsonschema.ValidationError as error:
        raise UserError(f"{source.name}: Ray's autoscaler refuses it: {' '.join(str(error.message).split())}") from error
    except (ValueError, TypeError, KeyError, AssertionError, ArithmeticError) as error:
        raise UserError(f"{source.name}: Ray's autoscaler can't read it: {' '.join(str(error).split()) or type(error).__name__}") from error
    return config
