"""One local Ray for the tests of this package that need it, an S3 server it can reach, and an undisturbed sweep to compare with."""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from fewshot_ray.search.opened import Opened, planned_sweep
from fewshot_ray.search.sweep_folder import SweepFolder
from fewshot_ray.spec.document import Document
from fewshot_ray.spec.ranges import FloatRange
from tests.faulty_proxy import KEYS, s3_server
from tests.trial.tiny import document


def sweep_file(name: str, storage: str | Path, **sections: Any) -> Document:
    """Four trials of plain fine-tuning with early stopping, a fraction of a second each; sections as in `tiny.document`."""
    train = {"steps": 24, "batch_size": 4, "lr": FloatRange(1e-4, 1e-1, log=True)}
    search: dict[str, Any] = {
        "trials": 4,
        "concurrent": 1,
        "scheduler": {"asha": {"metric": "holdout_loss", "grace_steps": 6, "reduction_factor": 2}},
    }
    evaluate = {"every": 6, "metrics": ["holdout_loss"], "samples": 0, "loss_draws": 64, "grid_images": 4}
    tree = document(train=train, evaluate=evaluate, search=search).tree
    for section, value in sections.items():
        merge = isinstance(value, dict) and isinstance(tree.get(section), dict) and section != "method"
        tree[section] = {**tree[section], **value} if merge else value
    return Document({**tree, "name": name, "storage": str(storage)}, f"{name}.yaml")


def run(document: Document) -> Opened:
    """The sweep, run to its end on the Ray there is."""
    from fewshot_ray.cluster.driver import run_sweep

    opened = planned_sweep(document)
    run_sweep(opened, console=Console(file=io.StringIO()))
    return opened


def results(folder: SweepFolder) -> dict[str, Any]:
    """What must come out the same to the last bit: everything but times."""
    return {
        record.id: (
            record.state,
            record.origin,
            dict(record.params),
            record.best_step,
            record.values,
            [(row.step, dict(row.metrics), row.train_loss, row.lr) for row in folder.rows(record.id)],
        )
        for record in folder.trials()
    }


def listening() -> list[tuple[str, IPv4Address | IPv6Address]]:
    """What this process and those that it started listen on, by the system's own list: command and address."""
    heard = []
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            for connection in process.net_connections():
                if connection.status == psutil.CONN_LISTEN:
                    heard.append((process.name(), ip_address(str(connection.laddr.ip).removeprefix("::ffff:"))))
    return heard


@pytest.fixture(scope="package")
def short_folder() -> Iterator[Path]:
    """Ray's sockets lie below it, and their paths must be short."""
    path = Path(tempfile.mkdtemp(prefix="fr-", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="package")
def s3(short_folder: Path) -> Iterator[str]:
    """A real S3 server on the loopback interface; the URL of its bucket."""
    with s3_server(short_folder) as port, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", KEYS[0])
        patch.setenv("AWS_SECRET_ACCESS_KEY", KEYS[1])
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield "s3://bucket"


@pytest.fixture(scope="package")
def local_ray(short_folder: Path, s3: str) -> Iterator[None]:
    """Two CPUs. After `s3`, whose settings its workers inherit."""
    import ray

    from fewshot_ray.cluster.session import ray_session

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", str(short_folder))
        patch.setenv("OMP_NUM_THREADS", "1")
        initialise = ray.init
        patch.setattr(ray, "init", lambda **options: initialise(num_cpus=2, **options))
        with ray_session(None):
            yield


@pytest.fixture(scope="package")
def undisturbed(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """A sweep that nothing happens to."""
    return run(sweep_file("tiny", tmp_path_factory.mktemp("undisturbed")))
