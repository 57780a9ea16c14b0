"""Everything used of Ray beyond its public interface.

Any of it may change with Ray's next minor version, so pyproject.toml excludes that.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

AUTHENTICATION_LOGGER = "ray._private.authentication"
"""Logger of Ray's remarks on tokens."""
AUTOSCALER_LOGGER = "ray.autoscaler"
JOB_LOGGERS = (
    *("ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk"),
    *("ray._private.runtime_env.packaging", AUTHENTICATION_LOGGER),
)
"""Loggers of the job client."""
_MODULES = {
    "WorkerCallback": "ray.train.v2._internal.execution.callback",
    "maybe_enable_token_auth_if_token_available": "ray._private.authentication.authentication_token_setup",
    "prepare_config": "ray.autoscaler._private.util",
    "validate_config": "ray.autoscaler._private.util",
}


def __getattr__(name: str) -> Any:
    """Ray's object of that name, imported when first used, since some imports take seconds (`WorkerCallback`)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


@contextmanager
def all_ports_on_loopback(on: bool) -> Iterator[None]:
    """Context in which, with `on`, a local Ray uses the loopback interface for all ports, as on macOS and Windows."""
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = before and not on
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def temporary_folder() -> Path:
    """The folder of a local Ray's sessions."""
    from ray._common.utils import get_default_ray_temp_dir

    return Path(get_default_ray_temp_dir())


def longest_socket(folder: Path) -> str:
    """The longest socket path of a Ray with sessions in `folder` (from `ray._private.node`)."""
    return f"{folder}/session_2000-01-01_00-00-00_000000_4194304/sockets/plasma_store"


def machine_resources() -> dict[str, float]:
    """The CPUs and GPUs of a local Ray: limited by the container and by CUDA_VISIBLE_DEVICES."""
    from ray._private.resource_and_label_spec import ResourceAndLabelSpec

    logging.getLogger("ray._private.utils").setLevel(logging.ERROR)  # it warns of a container's fraction of a CPU, which is rounded down
    found = ResourceAndLabelSpec()
    found._resolve_resources(is_head=True, node_ip_address="127.0.0.1")
    found._resolve_accelerator_resources(*found._get_current_node_accelerator(found.num_gpus, found.resources))
    return {"CPU": float(found.num_cpus or 0), "GPU": float(found.num_gpus or 0)}


def server_version(client: Any) -> str:
    """The version of the Ray that a JobSubmissionClient talks to; its public `get_version` is that of the job interface."""
    return str(client._server_ray_version)


def providers() -> dict[str, Path]:
    """The providers that a cluster file may name, and the file of each one's defaults, which not all have."""
    from ray.autoscaler._private.providers import _DEFAULT_CONFIGS

    return {str(name): Path(defaults()) for name, defaults in _DEFAULT_CONFIGS.items()}


def cluster_file_schema() -> Path:
    """The JSON schema of cluster files."""
    import ray.autoscaler

    return Path(ray.autoscaler.__file__).parent / "ray-schema.json"


def autoscaling_config(raycluster: Mapping[str, Any]) -> dict[str, Any]:
    """The tree of the cluster file that Ray's autoscaler makes of a RayCluster; errors are those of its code."""
    from ray.autoscaler._private.kuberay import autoscaling_config as module

    # Ray's log lines are meant for the autoscaler's log.
    logging.getLogger(module.__name__).setLevel(logging.CRITICAL)
    config: dict[str, Any] = module._derive_autoscaling_config_from_ray_cr(raycluster)
    return config
