"""Connects to a Ray cluster, or starts a local Ray, and checks that a trial fits on it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import ray
from ray.exceptions import AuthenticationError, RayError

from fewshot_ray.cluster.own_ray import bring_token, check_folder
from fewshot_ray.cluster.placement import Growth, nodes_of, trials_on
from fewshot_ray.cluster.ray_private import AUTHENTICATION_LOGGER, all_ports_on_loopback, temporary_folder
from fewshot_ray.errors import UserError
from fewshot_ray.search.packing import Part
from fewshot_ray.spec.sections import ResourcesSpec

__all__ = ["check_resources", "largest_memory", "machines", "ray_session", "trials_on_nodes"]

SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.05",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""Among them: Tune would write the state of all its trials every ten seconds, but a sweep is resumed from its own folder."""
OWN_SETTINGS = {"RAY_health_check_initial_delay_ms": "1000", "RAY_health_check_period_ms": "1000"}
"""On one machine a silent process is dead after seconds; by default it takes half a minute."""


@contextmanager
def ray_session(address: str | None, *, dashboard: bool = False) -> Iterator[bool]:
    """Context with a connection to the Ray at `address`, or with a local Ray; yields whether it is a local one.

    A local Ray has a `dashboard` on the loopback interface where asked, which Ray Train needs to clean up after crashed workers. Raises
    UserError where no Ray answers at `address`, or none can be started here.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    for logger in ("ray.tune", AUTHENTICATION_LOGGER):
        logging.getLogger(logger).setLevel(logging.ERROR)
    if ray.is_initialized():
        yield False
        return
    if address is None:
        check_folder()
        bring_token()
        for name, value in OWN_SETTINGS.items():
            os.environ.setdefault(name, value)
    try:
        with all_ports_on_loopback(address is None):  # a cluster uses the machine's own address
            ray.init(
                address=address or "local",
                include_dashboard=None if address else dashboard,
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=False,
            )
    except AuthenticationError as error:
        where = f"--address {address}" if address else "Ray"
        raise UserError(
            f"{where}: Ray's token is missing or another one; ~/.ray/auth_token as the cluster's nodes have it is right"
        ) from error
    except (OSError, ValueError, RuntimeError, RayError) as error:
        raise _not_there(address, error) from error
    except Exception as error:
        if type(error) is not Exception:  # that class itself is Ray's where its processes take more than 30 s to start
            raise
        raise _not_there(address, error) from error
    try:
        yield address is None
    finally:
        ray.shutdown()


def _not_there(address: str | None, error: Exception) -> UserError:
    said = " ".join(str(error).split())[:300]
    if address is None:
        return UserError(f"Ray can't be started here ({said}); its folder is {temporary_folder()}, RAY_TMPDIR names another")
    if "Version mismatch" in said:
        return UserError(f"--address {address}: that Ray can't be joined ({said}); the same versions of Ray and Python on both are right")
    return UserError(f"--address {address}: no Ray answers there ({said}); `ray status` shows a cluster's")


def check_resources(
    resources: ResourcesSpec, *, begun: bool = False, most: Growth | None = None, join_sec: float = 0.0, say: Callable[[str], None] = print
) -> int:
    """Number of trials that fit at the same time. Raises UserError where none ever does.

    `most`: limits that the cluster may grow to; without it, nodes that are still joining are waited for, up to `join_sec`. For a sweep that
    has `begun` a trial fits with `min_workers`, since a node may have been lost.
    """
    if most is not None:
        return trials_on_nodes(resources, begun=begun, most=most)
    until_sec, waited = time.monotonic() + join_sec, False
    while True:
        try:
            return trials_on_nodes(resources, begun=begun)
        except UserError:
            if time.monotonic() >= until_sec:
                raise
        if not waited:
            say("waiting for nodes to join")
        waited = True
        time.sleep(1)


def trials_on_nodes(resources: ResourcesSpec, *, begun: bool = False, most: Growth | None = None, part: Part | None = None) -> int:
    """Number of trials that fit at the same time on the nodes that are up, or on `most`. Raises UserError where none does."""
    nodes = [(resources, 1) for resources in _alive()] if most is None else nodes_of(most, resources)
    return trials_on(nodes, resources, begun=begun, part=part)


def largest_memory() -> int | None:
    """The bytes of memory that Ray has to reserve on the largest of the nodes that are up; None where a node has none."""
    memories = [node.get("memory", 0) for node in _alive() if node.get("CPU")]
    return int(max(memories)) if memories and min(memories) > 0 else None


def _alive() -> list[Mapping[str, float]]:
    """The resources of the nodes that are up."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def machines() -> tuple[int, float]:
    """Number of nodes that are up, and of their GPUs."""
    alive = _alive()
    return len(alive), sum(resources.get("GPU", 0.0) for resources in alive)
