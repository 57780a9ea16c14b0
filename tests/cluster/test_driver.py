"""Sweeps on a real Ray: the folder they leave, several workers, failures, crossfit, S3."""

from __future__ import annotations

import contextlib
import csv
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from fewshot_ray.cluster.driver import run_sweep
from fewshot_ray.errors import UserError
from fewshot_ray.search.opened import Opened, existing_sweep, planned_sweep
from fewshot_ray.search.winner import exported_trial
from fewshot_ray.spec.document import ranges, read_document
from fewshot_ray.spec.ranges import Choice
from fewshot_ray.storage import Folder
from tests.cluster.conftest import listening, results, run, sweep_file

pytestmark = pytest.mark.ray


def local(opened: Opened) -> Path:
    path = opened.folder.folder.local
    assert path is not None
    return path


def test_the_folder(undisturbed: Opened) -> None:
    """Oracle: docs/sweep-folder.md."""
    place = local(undisturbed)
    assert {path.name for path in place.iterdir()} >= {"spec.yaml", "study.journal", "leaderboard.csv", "report.html", "trials"}
    assert not (place / "lease.json").exists()
    assert [path for path in place.rglob("*") if path.name.startswith(".")] == [place / ".lease.json.lock"]
    records = undisturbed.folder.trials()
    assert [record.id for record in records] == ["t0000", "t0001", "t0002", "t0003"]
    assert [record.origin for record in records] == ["plain", "sampler", "sampler", "sampler"]
    assert {record.state for record in records} == {"COMPLETE", "PRUNED"}
    for record in records:
        trial = place / "trials" / record.id
        names = {path.name for path in trial.iterdir()}
        assert names >= {"spec.yaml", "trial.json", "metrics.jsonl", "samples"}
        steps = [row.step for row in undisturbed.folder.rows(record.id)]
        assert steps == [6, 12, 18, 24][: len(steps)]
        assert (steps[-1] == 24) == (record.state == "COMPLETE")
        assert {path.name for path in (trial / "samples").iterdir()} == {f"step_{step:06d}.png" for step in steps}
        if record.state == "PRUNED":
            assert not (trial / "checkpoints").exists()
        else:
            best = trial / "checkpoints" / f"step_{record.best_step:06d}"
            assert list((trial / "checkpoints").iterdir()) == [best]
            assert {path.name for path in best.iterdir()} == {"manifest.json", "state.json", "state.safetensors"}
        document = read_document(str(trial / "spec.yaml"))
        assert not ranges(document.tree)
        assert document.tree["train"]["lr"] == record.params["train.lr"]
        assert record.train_sec > 0
        assert record.ended is not None
    with open(place / "leaderboard.csv", newline="") as file:
        board = list(csv.DictReader(file))
    assert [row["rank"] for row in board if row["rank"]] == [
        str(rank) for rank in range(1, 1 + sum(r.state == "COMPLETE" for r in records))
    ]
    assert len(board) == 4
    assert "<html" in (place / "report.html").read_text()[:1000]


def test_tensorboard_reads_it(undisturbed: Opened) -> None:
    """Oracle: TensorBoard's own reader: scalars at the trial's steps, hyperparameters of the trial, grids."""
    for record in undisturbed.folder.trials():
        events = EventAccumulator(str(local(undisturbed) / "trials" / record.id))
        events.Reload()
        rows = undisturbed.folder.rows(record.id)
        assert [(event.step, event.value) for event in events.Scalars("holdout_loss")] == [
            (row.step, pytest.approx(row.metrics["holdout_loss"], rel=1e-6)) for row in rows
        ]
        assert [event.step for event in events.Images("samples")] == [row.step for row in rows]
        content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
        params = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
        assert params["train.lr"].number_value == record.params["train.lr"]


def test_a_finished_sweep_is_left_as_it_is(undisturbed: Opened) -> None:
    """Oracle: nothing runs again, whether resumed or run."""
    before = {path: path.read_bytes() for path in local(undisturbed).rglob("trial.json")}
    run_sweep(existing_sweep(undisturbed.folder.folder))
    assert {path: path.read_bytes() for path in local(undisturbed).rglob("trial.json")} == before


def actors() -> list[int]:
    """The pids of Tune's actors below this process."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            title = "".join(process.cmdline())
            if process.status() != psutil.STATUS_ZOMBIE and ("TrialActor" in title or "ResourceTrainable" in title):
                found.append(process.pid)
    return found


def test_a_killed_worker(undisturbed: Opened, tmp_path: Path) -> None:
    """Oracle: the undisturbed sweep, to the last bit; the actor is killed once, in the middle of its first trial."""
    document = sweep_file("tiny", tmp_path)
    rows = tmp_path / "tiny" / "trials" / "t0000" / "metrics.jsonl"
    killed: list[int] = []

    def kill() -> None:
        while not rows.exists():
            time.sleep(0.002)
        while not killed:
            killed.extend(actors())
        for pid in killed:
            os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    opened = run(document)
    thread.join(10)
    assert len(killed) == 1
    assert results(opened.folder) == results(undisturbed.folder)


def test_two_workers(undisturbed: Opened, tmp_path: Path) -> None:
    """Oracle: the same sweep on one worker, with its stopped trials; Ray Train shares the global batch of 4 between two processes."""
    done = threading.Event()

    def open_ports() -> int:
        most = 0
        while not done.wait(1.0):
            most = max(most, sum(not address.is_loopback for _, address in listening()))
        return most

    with ThreadPoolExecutor(1) as pool:
        most = pool.submit(open_ports)
        try:
            opened = run(sweep_file("tiny", tmp_path, resources={"workers": 2}, search={"trials": 3}))
        finally:
            done.set()
        assert most.result() == 1, "of all that a trial's workers listen on, PyTorch's rendezvous alone is open to the network"
    assert undisturbed.folder.trials()[1].state == "PRUNED", "one that is stopped with another after it"
    states = [record.state for record in undisturbed.folder.trials()]
    assert [record.state for record in opened.folder.trials()] == states[:3]
    for record in opened.folder.trials():
        two, one = opened.folder.rows(record.id), undisturbed.folder.rows(record.id)
        assert [row.step for row in two] == [row.step for row in one]
        for a, b in zip(two, one, strict=True):
            assert a.train_loss == pytest.approx(b.train_loss, rel=1e-4)
            assert a.metrics["holdout_loss"] == pytest.approx(b.metrics["holdout_loss"], rel=1e-4)


@pytest.fixture(scope="module")
def crossfit(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """Its first trial's learning rate is absurd."""
    search = {"trials": 3, "sampler": "random", "scheduler": None, "confirm": {"seeds": [7, 8]}, "concurrent": 2}
    train = {"steps": 4, "lr": Choice((1e30, 1e-3, 3e-3))}
    target = {"holdout": {"crossfit": 2}}
    return run(sweep_file("crossfit", tmp_path_factory.mktemp("c"), search=search, train=train, target=target, evaluate={"every": 2}))


def test_a_loss_that_is_not_a_number(crossfit: Opened) -> None:
    """Oracle: it fails without a retry, with its step and the last finite loss; the others run."""
    records = [record for record in crossfit.folder.trials() if record.kind == "search"]
    failed = [record for record in records if record.params["train.lr"] == 1e30]
    assert failed[0].id == "t0000"
    for record in failed:
        assert record.state == "FAIL"
        assert record.error is not None
        assert "at step " in record.error
        assert "the last finite value was " in record.error
    assert {record.state for record in records if record not in failed} == {"COMPLETE"}
    assert len(records) == 3


def test_confirm_and_refit(crossfit: Opened) -> None:
    """Oracle: the winner again on both seeds (it is plain fine-tuning, so it is its own control), then one training on all shots."""
    refit = exported_trial(crossfit.folder, crossfit.file)
    winner = refit.origin
    others = [record.id for record in crossfit.folder.trials() if record.kind != "search"]
    assert others == [f"confirm-{winner}-seed7", f"confirm-{winner}-seed8", f"refit-{winner}"]
    search = crossfit.folder.record(winner)
    assert search is not None
    assert refit.best_step == search.best_step
    checkpoint = local(crossfit) / "trials" / refit.id / "checkpoints" / f"step_{refit.best_step:06d}" / "manifest.json"
    assert checkpoint.exists()
    losses = {record.values["holdout_loss"] for record in crossfit.folder.trials() if record.kind == "confirm" and record.values}
    assert len(losses) == 2


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"gpus_per_worker": 1}, r"resources: .*asks for 1 GPUs \(1 workers\), the cluster has 0"),
        ({"workers": 3}, r"resources: .*asks for 3 CPUs \(3 workers\), the cluster has 2"),
        ({"workers": 2, "cpus_per_worker": 1.5}, r"resources: .*asks for 3 CPUs"),
    ],
)
def test_more_than_there_is(resources: dict[str, float], message: str, local_ray: None, tmp_path: Path) -> None:
    """Oracle: one line at once, and nothing is lost: the file put right takes the folder."""
    opened = planned_sweep(sweep_file("greedy", tmp_path, resources=resources))
    with pytest.raises(UserError, match=message) as caught:
        run_sweep(opened)
    assert "\n" not in str(caught.value)
    assert not opened.folder.trials()


def test_a_storage_that_fails_underway(local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: one line instead of Tune's traceback, and the trial stays one to go on with."""
    opened = planned_sweep(sweep_file("full", tmp_path, search={"trials": 1}, train={"steps": 12}))

    def full(folder: object, trial_id: str, row: object) -> None:
        raise UserError("storage: no space left")

    monkeypatch.setattr(type(opened.folder), "append_row", full)
    with pytest.raises(UserError, match="storage: no space left"):
        run_sweep(opened)
    assert [record.state for record in opened.folder.trials()] == ["RUNNING"]


def test_s3(undisturbed: Opened, s3: str) -> None:
    """Oracle: the same sweep on disk, to the last bit; the journal is uploaded whole, and the finished sweep is read from there."""
    opened = run(sweep_file("tiny", f"{s3}/sweeps"))
    assert results(opened.folder) == results(undisturbed.folder)
    assert set(Folder(f"{s3}/sweeps/tiny").names()) >= {"spec.yaml", "study.journal", "leaderboard.csv", "report.html", "trials"}
    assert opened.folder.folder.read_bytes("study.journal").endswith(b"\n")
    assert existing_sweep(opened.folder.folder).document.tree == opened.document.tree


def test_a_worker_killed_for_good(local_ray: None, tmp_path: Path) -> None:
    """Oracle: FAIL with the reason after `retries` retries, and the sweep ends as it should."""
    search = {"trials": 1, "retries": 0, "scheduler": None}
    document = sweep_file("doomed", tmp_path, search=search, train={"steps": 100_000}, evaluate={"every": 50_000})
    done = threading.Event()

    def kill() -> None:
        while not done.wait(1.0):
            for pid in actors():
                os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    try:
        opened = run(document)
    finally:
        done.set()
        thread.join(10)
    record = opened.folder.trials()[0]
    assert (record.state, record.values) == ("FAIL", None)
    assert record.error is not None
    assert record.error.startswith("its worker failed (attempt 1, the last): ActorDiedError: ")
    assert "\n" not in record.error
