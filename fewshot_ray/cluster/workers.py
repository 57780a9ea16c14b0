"""A trial of several workers, through Ray Train.

Three processes of Ray's own read this module besides each worker, every time a trial starts: what trains is imported by those that do.
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
from fewshot_ray.cluster.losses import nodes_watched
from fewshot_ray.cluster.ray_private import WorkerCallback
from fewshot_ray.errors import SavedAndEndedError
from fewshot_ray.spec.sections import ResourcesSpec

LAST_REPORTS_SEC = 120.0


class PreparedWorker(WorkerCallback):
    """What a worker's process needs before its process group is made and its training begins, on a thread that isn't the main one."""

    def after_init_train_context(self) -> None:
        """Called on the worker's main thread, the only one that may set handlers."""
        signal.signal(signal.SIGTERM, lambda number, frame: NOTICE.give("SIGTERM"))
        reduce_over(ray.util.get_node_ip_address())


def reduce_over(node_ip: str) -> None:
    """NCCL and Gloo use the interface with this address, the one by which Ray's nodes know each other.

    Without it Gloo takes where the machine's name leads (on Debian 127.0.1.1, which no other node reaches), NCCL the first interface it
    likes. Names that are set already stay: `NCCL_SOCKET_IFNAME`, `GLOO_SOCKET_IFNAME`.
    """
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address.partition("%")[0] == node_ip for address in addresses):
            os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")  # with "=" this one alone, and not every name that begins so
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            return


def _worker(config: dict[str, Any]) -> None:
    from fewshot_ray.cluster.actors import trial_results
    from fewshot_ray.training.group import Group

    NOTICE.listen(config["messenger"], config["id"])
    take_own_gpu(config["resources"]["gpus_per_worker"])
    try:
        for result in trial_results(config, group=Group()):
            # Without `done`: Tune would take the driver function away before Train has ended.
            ray.train.report({key: value for key, value in result.items() if key != "done"})
    except SavedAndEndedError as ended:
        if ended.reason != STOPPED:
            raise


def take_own_gpu(gpus_per_worker: float) -> None:
    """Ray Train shows a node's workers all their GPUs: this process's own becomes its current one, or all would crowd onto the first."""
    if gpus_per_worker > 0:
        import torch
        from ray.train.torch import get_device

        torch.cuda.set_device(get_device())


def backend(gpus_per_worker: float) -> str:
    """What the workers reduce with: NCCL refuses two of them on one GPU, which a fraction of one leads to."""
    return "nccl" if gpus_per_worker >= 1 else "gloo"


def run_with_workers(config: dict[str, Any]) -> None:
    """A trial of several workers: Tune's driver function, which starts Ray Train's workers and waits for them.

    There are `resources.workers` of them, or as many as the cluster's nodes hold just now and `resources.min_workers` at least: a trial
    that lost a node goes on with the others, and Ray Train starts its workers anew when more would fit. Whatever else fails is raised:
    the sweep counts it, and Tune calls this again.
    """
    resources = ResourcesSpec(**config["resources"])
    per_worker = {"CPU": resources.cpus_per_worker}
    if resources.gpus_per_worker > 0:
        per_worker["GPU"] = resources.gpus_per_worker
    reports = TuneReportCallback()
    elastic = (resources.min_workers, resources.workers)
    trainer = TorchTrainer(
        _worker,
        train_loop_config=config,
        scaling_config=ScalingConfig(
            num_workers=elastic if elastic[0] < elastic[1] else resources.workers,
            use_gpu=resources.gpus_per_worker > 0,
            resources_per_worker=per_worker,
            placement_strategy="PACK",  # on one node where they fit: gradients then stay off the network
        ),
        torch_config=TorchConfig(backend=backend(resources.gpus_per_worker)),
        run_config=RunConfig(
            name=f"{config['id']}-{os.getpid()}",
            storage_path=config["scratch"],
            failure_config=FailureConfig(max_failures=0, max_preemption_failures=0),
            callbacks=[reports, PreparedWorker()],
        ),
    )
    with nodes_watched():
        trainer.fit()
    # What has been reported is on its way to Tune, which looks for it only as long as this function runs. What Tune doesn't come for is
    # lost with this attempt, and told again by the next one.
    given_up_sec = time.monotonic() + LAST_REPORTS_SEC
    while not reports._training_actor_item_queue.empty() and time.monotonic() < given_up_sec:
        time.sleep(0.05)
