"""Runs a trial with several workers through Ray Train.

Besides the workers, three processes of Ray import this module at the start of every trial; so training libraries are imported inside the
functions that use them.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import psutil
import ray
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

from fewshot_ray.cluster.ending import NOTICE, STOPPED
from fewshot_ray.cluster.lost_workers import nodes_watched
from fewshot_ray.cluster.ray_private import WorkerCallback
from fewshot_ray.errors import SavedAndEndedError
from fewshot_ray.spec.sections import ResourcesSpec

LAST_REPORTS_SEC = 120.0


class PreparedWorker(WorkerCallback):
    """Sets signal handlers and network interface in a worker before its process group is made; training itself runs in another thread."""

    def after_init_train_context(self) -> None:
        """Called by Ray Train in the worker's main thread, which alone may set signal handlers."""
        signal.signal(signal.SIGTERM, lambda number, frame: NOTICE.give("SIGTERM"))
        reduce_over(ray.util.get_node_ip_address())


def reduce_over(node_ip: str) -> None:
    """Let NCCL and Gloo use the network interface with this address, which Ray's nodes reach each other by.

    Otherwise Gloo uses the address of the host's name (on Debian 127.0.1.1, which no other node reaches) and NCCL the first interface it
    finds. Variables that are set already stay: `NCCL_SOCKET_IFNAME`, `GLOO_SOCKET_IFNAME`.
    """
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address.partition("%")[0] == node_ip for address in addresses):
            os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")  # "=": exactly this name, not every name with this prefix
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            return


def _worker(config: dict[str, Any]) -> None:
    from fewshot_ray.cluster.actors import trial_results
    from fewshot_ray.training.group import Group

    NOTICE.listen(config["messenger"], config["id"])
    take_own_gpu(config["part"]["gpus"])
    try:
        for result in trial_results(config, group=Group()):
            # Without `done`: Tune would end the driver function before Train has ended.
            ray.train.report({key: value for key, value in result.items() if key != "done"})
    except SavedAndEndedError as ended:
        if ended.reason != STOPPED:
            raise


def take_own_gpu(gpus_per_worker: float) -> None:
    """Make this worker's own GPU the current device: Ray Train shows all GPUs of a node to its workers, and all would use the first."""
    if gpus_per_worker > 0:
        import torch
        from ray.train.torch import get_device

        torch.cuda.set_device(get_device())


def backend(gpus_per_worker: float) -> str:
    """The backend of collective operations: NCCL, or Gloo for workers that share a GPU, which NCCL doesn't support."""
    return "nccl" if gpus_per_worker >= 1 else "gloo"


def run_with_workers(config: dict[str, Any]) -> None:
    """Tune's function for a trial of several workers: starts Ray Train's workers and waits for them.

    Their number is `resources.workers`, or what the nodes have room for, `resources.min_workers` at least: a trial that lost a node
    continues with the others, and Ray Train restarts the workers when more fit. Any other failure is raised; the sweep counts it, and Tune
    calls this again.
    """
    resources = ResourcesSpec(**config["resources"])
    per_worker = {"CPU": resources.cpus}
    if resources.gpus > 0:
        per_worker["GPU"] = resources.gpus
    reports = TuneReportCallback()
    elastic = (resources.min_workers, resources.workers)
    trainer = TorchTrainer(
        _worker,
        train_loop_config=config,
        scaling_config=ScalingConfig(
            num_workers=elastic if elastic[0] < elastic[1] else resources.workers,
            use_gpu=resources.gpus > 0,
            resources_per_worker=per_worker,
            placement_strategy="PACK",  # on one node where they fit, so that gradients don't use the network
        ),
        torch_config=TorchConfig(backend=backend(resources.gpus)),
        run_config=RunConfig(
            name=f"{config['id']}-{os.getpid()}",
            storage_path=config["scratch"],
            failure_config=FailureConfig(max_failures=0, max_preemption_failures=0),
            callbacks=[reports, PreparedWorker()],
        ),
    )
    with nodes_watched():
        trainer.fit()
    # Reports wait in a queue that Tune reads only while this function runs. Those not read in time are lost, and repeated by the next
    # attempt.
    given_up_sec = time.monotonic() + LAST_REPORTS_SEC
    while not reports._training_actor_item_queue.empty() and time.monotonic() < given_up_sec:
        time.sleep(0.05)
