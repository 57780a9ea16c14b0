"""From a laptop to a cluster and back, as its user types it. The laptop sees the head by SSH, and never the store."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fewshot_ray.data.digits import digits
from tests.roundtrip.conftest import CLUSTER, Cluster, nodes
from tests.roundtrip.hosts import Host, until
from tests.roundtrip.machines import NODES

TRIALS = 8
STEPS = 210
SWEEP = f"""
name: roundtrip
source: {{model: "embedded://digits-ddpm"}}
target: {{images: ./shots, holdout: "embedded://digits/validation"}}
method: {{sdft: {{lambda_distill: {{log: [0.01, 1]}}, gamma_distill: 0.5, lambda_aux: 0}}}}
train: {{steps: {STEPS}, batch_size: 20, lr: {{log: [1.0e-4, 1.0e-3]}}, flip: false}}
evaluate: {{every: 30, samples: 8, metrics: [holdout_loss], loss_draws: 100, sampler: dpm++, sampler_steps: 4}}
search: {{trials: {TRIALS}, concurrent: 3, objectives: {{holdout_loss: min}}}}
storage: s3://bucket/sweeps
"""
STORED = Path("/tmp/s3/bucket/sweeps/roundtrip")
BOARD_PORT = 6006
DRAW = """
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained("model", trust_remote_code=True)
pipeline(batch_size=1, num_inference_steps=10).images[0].save("drawn.png")
"""
BROWSER = ("chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1400,1000")

pytestmark = pytest.mark.roundtrip


def typed(cluster: Cluster, *words: str, timeout_sec: float = 180, code: int | None = 0) -> str:
    """A command of ours on the laptop; what it printed. Its time is kept."""
    begun = time.monotonic()
    said = cluster.laptop.run("fewshot-ray", *words, timeout_sec=timeout_sec, code=code)
    cluster.seconds[f"fewshot-ray {' '.join(words)}"] = time.monotonic() - begun
    return said


def there() -> tuple[str, str]:
    """The option that names the cluster."""
    return ("--cluster", CLUSTER)


def trials(cluster: Cluster) -> dict[str, dict[str, Any]]:
    """Trial -> its record and the last step it was evaluated at, as the store has them."""
    stored = cluster.hosts["storage"].path(STORED / "trials")
    found = {}
    for folder in stored.iterdir() if stored.exists() else ():
        rows, record = folder / "metrics.jsonl", folder / "trial.json"
        lines = rows.read_text().splitlines() if rows.exists() else []
        if record.exists():
            found[folder.name] = {**json.loads(record.read_text()), "step": json.loads(lines[-1])["step"] if lines else 0}
    return found


def finished(cluster: Cluster) -> int:
    """Trials that went to their end."""
    return sum(trial["state"] == "COMPLETE" for trial in trials(cluster).values())


def write_shots(laptop: Host) -> None:
    """The ten digits as PNG files in a folder of the laptop."""
    folder = laptop.path(laptop.folder / "shots")
    folder.mkdir()
    for label, image in enumerate(digits("shots").images):
        Image.fromarray(image[0].numpy()).save(folder / f"{label}.png")


@contextmanager
def board(cluster: Cluster) -> Iterator[str]:
    """TensorBoard's address on the laptop, while it runs."""
    laptop = cluster.laptop
    output = laptop.path("/tmp/board.txt")
    serving = laptop.start("fewshot-ray", "board", "roundtrip", *there(), "--port", str(BOARD_PORT), output=output)
    try:
        until("TensorBoard answers", lambda: "TensorBoard of" in output.read_text() or serving.poll() is not None, 90)
        assert serving.poll() is None, output.read_text()
        yield f"http://127.0.0.1:{BOARD_PORT}/#timeseries"
    finally:
        laptop.interrupt(serving)


def test_round_trip(cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracles: the store's own files, diffusers, a browser, the hosts' lists of processes."""
    laptop, begun = cluster.laptop, time.monotonic()
    laptop.path(laptop.folder / "sweep.yaml").write_text(SWEEP)
    write_shots(laptop)
    check(cluster)
    launch(cluster)
    lose_a_worker(cluster)
    stop_and_resume(cluster)
    look(cluster, tmp_path)
    bring_home(cluster, tmp_path)
    take_down(cluster)
    up = cluster.seconds["ray up"] + cluster.seconds["all nodes there"]
    cluster.seconds["the whole round trip"] = up + time.monotonic() - begun
    with capsys.disabled():
        print("\n" + "\n".join(f"{seconds:7.1f} s  {what}" for what, seconds in cluster.seconds.items()))
    assert cluster.seconds["the whole round trip"] < 1800


def check(cluster: Cluster) -> None:
    """The model and the images, and no sweep begun."""
    said = typed(cluster, "check", "sweep.yaml", *there())
    assert "UNet2DModel, 1 x 8 x 8" in said
    assert "images  10 d" in said
    assert not cluster.hosts["storage"].path(STORED / "spec.yaml").exists()


def launch(cluster: Cluster) -> None:
    """Trials begin on several hosts; the laptop's command may end before."""
    output = cluster.laptop.path("/tmp/launch.txt")
    begun = time.monotonic()
    following = cluster.laptop.start("fewshot-ray", "launch", "sweep.yaml", *there(), output=output)

    def gone_on(condition: bool) -> bool:
        assert following.poll() is None, output.read_text()
        return condition

    until("launch has submitted", lambda: gone_on("submitted as" in output.read_text()), 60, 0.05)
    submitted = time.monotonic()
    until("the job's program runs", lambda: gone_on(bool(cluster.head.processes("fewshot-ray launched"))), 60, 0.05)
    cluster.seconds["launch typed -> submitted"] = submitted - begun
    cluster.seconds["submitted -> the job's program runs"] = time.monotonic() - submitted
    until("a trial is evaluated", lambda: gone_on(any(trial["step"] for trial in trials(cluster).values())), 300)
    cluster.seconds["launch typed -> first evaluation (after 30 steps)"] = time.monotonic() - begun
    cluster.laptop.interrupt(following)
    until("launch says how to follow it", lambda: "it goes on there" in output.read_text(), 20)
    assert "running" in typed(cluster, "status", *there())
    assert "roundtrip" in typed(cluster, "logs", "roundtrip", *there())
    assert "t0000" in typed(cluster, "leaderboard", "roundtrip", *there())


def lose_a_worker(cluster: Cluster) -> None:
    """Its trials go on elsewhere."""
    lost = cluster.hosts["worker2"]
    until("a trial runs on worker2", lambda: lost.processes("ray::"), 120)
    before = finished(cluster)
    lost.crash()
    begun = time.monotonic()
    until("two more trials have finished", lambda: finished(cluster) >= min(before + 2, TRIALS), 400, 1)
    cluster.seconds["a host lost -> two more trials finished"] = time.monotonic() - begun


def stop_and_resume(cluster: Cluster) -> None:
    """A stopped sweep ends at once, saves, and is finished by `resume`, whoever asks."""
    done = finished(cluster)
    assert done < TRIALS, "nothing is left to stop"
    assert "stopped" in typed(cluster, "stop", "roundtrip", *there())
    assert not cluster.head.processes("fewshot-ray launched")
    lease = cluster.hosts["storage"].path(STORED / "lease.json")
    until("the sweep is free", lambda: not lease.exists(), 10)
    assert finished(cluster) < TRIALS
    output = cluster.laptop.path("/tmp/resume.txt")
    resuming = cluster.laptop.start("fewshot-ray", "resume", "roundtrip", *there(), output=output)
    until("resume has submitted", lambda: "submitted as" in output.read_text() or resuming.poll() is not None)
    said = typed(cluster, "logs", "roundtrip", "-f", *there(), timeout_sec=600)
    assert resuming.wait(30) == 0, output.read_text()
    assert said.strip() in output.read_text()
    assert finished(cluster) >= TRIALS
    assert "succeeded" in typed(cluster, "status", "roundtrip", *there())


def look(cluster: Cluster, pictures: Path) -> None:
    """The leaderboard in the terminal, the curves in a browser."""
    complete = [trial for trial in trials(cluster).values() if trial["state"] == "COMPLETE"]
    best = min(complete, key=lambda trial: trial["values"]["holdout_loss"])
    assert best["id"] in typed(cluster, "leaderboard", "roundtrip", *there())
    laptop = cluster.laptop
    with board(cluster) as address:
        page = laptop.run(*BROWSER, "--virtual-time-budget=30000", "--dump-dom", address)
        laptop.run(*BROWSER, "--virtual-time-budget=30000", "--screenshot=/tmp/board.png", address)
    picture = laptop.path("/tmp/board.png").read_bytes()
    (pictures / "board.png").write_bytes(picture)
    text = re.sub(r"<[^>]*>", " ", page)
    assert best["id"] in text
    assert "holdout_loss" in text
    ends = (laptop, cluster.head)
    until("TensorBoard has ended at both ends", lambda: not any(host.processes("fewshot-ray board") for host in ends), 30)


def bring_home(cluster: Cluster, pictures: Path) -> None:
    """The pipeline draws on the laptop."""
    said = typed(cluster, "fetch", "roundtrip", "model", *there())
    assert "model" in said
    laptop = cluster.laptop
    assert laptop.path(laptop.folder / "model/README.md").exists()
    laptop.run("python", "-c", DRAW)
    drawn = Image.open(laptop.path(laptop.folder / "drawn.png"))
    drawn.save(pictures / "drawn.png")
    assert drawn.size == (8, 8)
    assert np.asarray(drawn).std() > 1


def take_down(cluster: Cluster) -> None:
    """`ray down`, after which no node listens or computes."""
    begun = time.monotonic()
    cluster.laptop.run("ray", "down", "--yes", CLUSTER, timeout_sec=120)
    cluster.seconds["ray down"] = time.monotonic() - begun
    left = [cluster.hosts[name] for name in NODES if name != "worker2"]
    until("nothing of Ray's is left", lambda: not any(rays(host) for host in left), 180, 1)
    cluster.seconds["ray down typed -> nothing of it runs"] = time.monotonic() - begun
    assert nodes(cluster) == 0


def rays(host: Host) -> list[str]:
    """Its processes. The workers' log monitors stay: `ray down` stops Ray on the head, and all others end when they miss it."""
    return [line for line in host.processes("/ray/") + host.processes("ray::") if "log_monitor.py" not in line]
