"""A monkey kills parts of running sweeps at random moments: what is finished stays, what goes on is what it would have been.

python bench/faults/chaos.py [--kills 200] [--seed 0] [--kinds disk s3 workers]

Targets: a trial's actor, one of several training workers, the raylet, the driver, and the connections to S3 (an outage of seconds, before
a real server). Kinds of sweep: on disk, on S3, and with two workers a trial. Of each kind one sweep runs undisturbed; the others are
run again and again under fire, resumed where their driver ended, and must come out equal: every metric at every step, bit for bit.
The kinds run side by side, until there are so many kills in all; `--kinds` with one of them gives the times that a machine of its own
would.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import psutil

from bench.machine import write_result
from fewshot_ray.spec.document import read_document, to_yaml
from fewshot_ray.storage import Folder
from fewshot_ray.training.checkpoint import MANIFEST, read_checkpoint, saved_steps
from tests.faulty_proxy import KEYS, FaultyProxy, s3_server

ROOT = Path(__file__).resolve().parents[2]

CLI = str(Path(sys.executable).parent / "fewshot-ray")
VOLATILE = {"time", "images_per_sec", "memory"}
HANG_SEC = 240.0
"""Nothing new on record for so long, while nobody kills: a hang."""
WRITE_BACK_SEC = 2.0
"""The S3 server may keep an object for a moment before it is a file."""
STEPS = 80
TRIALS = {"disk": 6, "s3": 6, "workers": 3}
PAUSE_SEC = 4.0
"""A kill comes up to so long after something new is on record."""
GRACE_SEC = 90.0
"""Ray's own agents give up on a raylet that was killed after a minute."""
TARGETS = {"disk": ("actor", "raylet", "driver"), "s3": ("actor", "driver", "s3"), "workers": ("worker", "raylet", "driver")}
NAMES = {"actor": ("TrialActor", "ResourceTrainable"), "worker": ("RayTrainWorker",), "raylet": ("raylet",)}
"""How Ray calls the processes; an actor's changes with what it does."""


@dataclass
class Sweep:
    """One sweep's file and folder, and the process that runs it."""

    kind: str
    name: str
    home: Path
    proxy: FaultyProxy | None
    process: psutil.Popen | None = None
    finished: dict[str, str] = field(default_factory=dict)
    """Trials that were once on record as ended, with their records."""

    @property
    def folder(self) -> Path:
        """On this machine's disk, also where it is reached through S3."""
        return self.home / "s3" / "bucket" / self.name if self.proxy else self.home / self.name

    @property
    def url(self) -> str:
        return f"s3://bucket/{self.name}" if self.proxy else str(self.folder)

    def write(self) -> Path:
        """The quickstart's sweep, shorter, with checkpoints every second."""
        tree = read_document(ROOT / "sweeps" / "quickstart.yaml").tree
        short: dict[str, Any] = {
            **tree,
            "name": self.name,
            "storage": "s3://bucket" if self.proxy else str(self.home),
            "train": {**tree["train"], "steps": STEPS, "checkpoint_sec": 1.0},
            "evaluate": {**tree["evaluate"], "every": STEPS // 4, "samples": 32, "final_samples": 32, "loss_draws": 200},
            "search": {
                **tree["search"],
                "trials": TRIALS[self.kind],
                "concurrent": 1,
                "retries": 1000,
                "scheduler": {"asha": {"metric": "holdout_loss", "grace_steps": STEPS // 4, "reduction_factor": 2}},
                "confirm": {"top": 1, "seeds": [1]},
            },
            # Fewer workers would be equal to 1e-5, not to the bit.
            "resources": {"workers": 2, "min_workers": 2} if self.kind == "workers" else {"workers": 1},
        }
        path = self.home / f"{self.name}.yaml"
        path.write_text(to_yaml(short))
        return path

    def start(self) -> None:
        """`run` the first time, `resume` after that."""
        begun = (self.folder / "spec.yaml").exists()
        arguments = ["resume", self.url] if begun else ["run", str(self.write())]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if self.proxy:
            environment |= {"AWS_ACCESS_KEY_ID": KEYS[0], "AWS_SECRET_ACCESS_KEY": KEYS[1], "AWS_ENDPOINT_URL": self.proxy.url}
        with (self.home / f"{self.name}.txt").open("a") as output:
            self.process = psutil.Popen([CLI, *arguments], stdout=output, stderr=output, start_new_session=True, env=environment)

    def members(self, target: str) -> list[psutil.Process]:
        """The living processes of a target."""
        assert self.process is not None
        if target == "driver":
            return [self.process]
        return [one for one in below(self.process) if is_called(one, NAMES[target])]

    def workers(self) -> set[int]:
        """The processes that train."""
        return {one.pid for target in ("actor", "worker") for one in self.members(target)}

    def state(self) -> str:
        """Changes whenever something new is on record."""
        return repr(sorted((str(path), path.stat().st_mtime_ns) for path in self.folder.glob("trials/*/*.json*"))) + str(
            sorted(str(path) for path in self.folder.glob("trials/*/checkpoints/*"))
        )

    def note_finished(self) -> list[str]:
        """Take in what is on record as ended; the trials among those of before that are not what they were."""
        changed = []
        for path in self.folder.glob("trials/*/trial.json"):
            text = path.read_text()
            before = self.finished.get(path.parent.name)
            if before is not None and before != text:
                changed.append(path.parent.name)
            if json.loads(text)["state"] != "RUNNING":
                self.finished[path.parent.name] = text
        return changed + [name for name in self.finished if not (self.folder / "trials" / name / "trial.json").exists()]

    def outcome(self) -> dict[str, Any]:
        """What must come out the same."""
        if self.proxy:
            time.sleep(WRITE_BACK_SEC)
        result = {}
        for trial in sorted((self.folder / "trials").iterdir()):
            record = json.loads((trial / "trial.json").read_text())
            lines = (trial / "metrics.jsonl").read_text().splitlines() if (trial / "metrics.jsonl").exists() else []
            rows = [{key: value for key, value in json.loads(line).items() if key not in VOLATILE} for line in lines]
            result[trial.name] = {key: record[key] for key in ("state", "params", "best_step", "values", "error")} | {"rows": rows}
        return result


def below(process: psutil.Popen) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def session_of(leader: int) -> list[psutil.Process]:
    """The living processes of a driver's session, which none of them leaves."""
    found = []
    for one in psutil.process_iter(["status"]):
        with suppress(ProcessLookupError):
            if os.getsid(one.pid) == leader != one.pid and one.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(one)
    return found


def is_called(process: psutil.Process, names: tuple[str, ...]) -> bool:
    try:
        title = "".join(process.cmdline()[:1])
        return process.status() != psutil.STATUS_ZOMBIE and any(name in title.rsplit("/", 1)[-1] for name in names)
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False


def kill_tree(processes: list[psutil.Process]) -> None:
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, timeout=30)


def broken_checkpoints(folder: Path) -> list[str]:
    """Those that claim to be whole and don't load: twice, for one may be removed or written anew underway."""
    first = dict(unreadable(folder))
    if first:
        time.sleep(2)
    return [reason for place, reason in unreadable(folder) if place in first] if first else []


def unreadable(folder: Path) -> Iterator[tuple[str, str]]:
    for trial in (folder / "trials").glob("*"):
        place = Folder(trial / "checkpoints")
        for step in saved_steps(place):
            if not (trial / "checkpoints" / f"step_{step:06d}" / MANIFEST).exists():
                continue
            try:
                read_checkpoint(place, step)
            except ValueError as error:
                if (trial / "checkpoints" / f"step_{step:06d}" / MANIFEST).exists():
                    yield f"{trial} {step}", str(error)


@dataclass
class Tally:
    """What the bench found."""

    quota: dict[str, int]
    lock: threading.Lock = field(default_factory=threading.Lock)
    kills: Counter[str] = field(default_factory=Counter)
    redone: list[str] = field(default_factory=list)
    hangs: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    differ: list[str] = field(default_factory=list)
    leaked: list[str] = field(default_factory=list)
    back_sec: dict[str, list[float]] = field(default_factory=dict)
    """From a kill, or of the driver from its resume, to something new on record: an evaluation, or a checkpoint."""
    ended: list[tuple[str, int, float]] = field(default_factory=list)
    """Drivers that ended a while ago: the sweep, the process and when; not yet looked at for what they left running."""
    gave_up: list[str] = field(default_factory=list)
    """Drivers that ended by themselves, and were resumed: no loss, but a person would have to come."""

    def open(self, kind: str) -> list[str]:
        """The targets of a kind of sweep that are still to be struck."""
        return [target for target in TARGETS[kind] if self.kills[target] < self.quota[target]]

    def note_ended(self, sweep: Sweep) -> None:
        """Its driver has just ended."""
        assert sweep.process is not None
        with self.lock:
            self.ended.append((f"{sweep.kind} {sweep.name}", sweep.process.pid, time.monotonic()))

    def take_ended(self, age_sec: float) -> list[tuple[str, int, float]]:
        """Those of `ended` that ended so long ago, for one thread to look at."""
        with self.lock:
            old = [one for one in self.ended if time.monotonic() - one[2] >= age_sec]
            self.ended = [one for one in self.ended if one not in old]
        return old

    @property
    def clean(self) -> bool:
        return not (self.redone or self.hangs or self.broken or self.differ or self.leaked)


def quotas(kinds: Iterable[str], kills: int) -> dict[str, int]:
    """How many kills each target gets: the same of each, but that those on S3, which cost nobody a start, are twice as many."""
    targets = {target for kind in kinds for target in TARGETS[kind]}
    each, rest = divmod(kills, len(targets) + ("s3" in targets))
    return {
        target: 2 * each + rest if target == "s3" else each + (rest if "s3" not in targets and target == min(targets) else 0)
        for target in targets
    }


def disturb(sweep: Sweep, tally: Tally, draw: random.Random) -> None:
    """Run a sweep to its end under fire, as long as its targets' quotas last."""
    sweep.start()
    while True:
        assert sweep.process is not None
        if not wait_for_news(sweep, tally):
            return
        tally.redone += sweep.note_finished()
        if sweep.process.poll() is not None:
            tally.note_ended(sweep)
            if sweep.process.returncode == 0:
                return
            tally.gave_up.append(f"{sweep.name}: exit code {sweep.process.returncode}, see {sweep.name}.txt")
            sweep.start()
            continue
        if not tally.open(sweep.kind):
            continue
        time.sleep(draw.uniform(0, PAUSE_SEC))
        targets = [target for target in tally.open(sweep.kind) if target == "s3" or sweep.members(target)]
        if sweep.process.poll() is None and targets:
            strike(sweep, min(targets, key=lambda target: (tally.kills[target], draw.random())), tally, draw)


def note_left_over(tally: Tally, *, wait: bool = False) -> None:
    """What drivers that have ended left running for longer than `GRACE_SEC`, which is then ended; or wait until that can be said of all."""
    for name, leader, ended_sec in tally.take_ended(0.0 if wait else GRACE_SEC):
        while session_of(leader) and time.monotonic() - ended_sec < GRACE_SEC:
            time.sleep(0.5)
        left = session_of(leader)
        for one in left:
            with suppress(psutil.Error):
                tally.leaked.append(f"{name}: {' '.join(one.cmdline())[:120]}")
                print("left running:", tally.leaked[-1], flush=True)
        kill_tree(left)


def wait_for_news(sweep: Sweep, tally: Tally) -> bool:
    """Until something new is on record, or the driver has ended; False where neither comes."""
    assert sweep.process is not None
    before, began = sweep.state(), time.monotonic()
    while sweep.process.poll() is None and sweep.state() == before:
        if time.monotonic() - began > HANG_SEC:
            tally.hangs.append(f"{sweep.name} after {dict(tally.kills)}")
            kill_tree([*below(sweep.process), sweep.process])
            return False
        time.sleep(0.1)
    return True


def wait_for_another(sweep: Sweep, target: str, before: set[int], tally: Tally) -> bool:
    """Until a process trains that didn't; what the others still put on record doesn't say that the sweep is back. False for a hang."""
    assert sweep.process is not None
    began = time.monotonic()
    while target != "s3" and sweep.process.poll() is None and sweep.workers() <= before:
        if time.monotonic() - began > HANG_SEC:
            tally.hangs.append(f"{sweep.name}: no new worker after {dict(tally.kills)}")
            kill_tree([*below(sweep.process), sweep.process])
            return False
        time.sleep(0.1)
    return True


def strike(sweep: Sweep, target: str, tally: Tally, draw: random.Random) -> None:
    """One kill, and how long it took to be back."""
    assert sweep.process is not None
    before = sweep.workers()
    if target == "s3":
        assert sweep.proxy is not None
        seconds = draw.uniform(1, 6)
        with sweep.proxy.outage(seconds):
            time.sleep(seconds)
    else:
        kill_tree([draw.choice(sweep.members(target))])
    tally.kills[target] += 1
    if target == "driver":
        tally.note_ended(sweep)
        sweep.start()
    note_left_over(tally)
    struck = time.monotonic()
    if wait_for_another(sweep, target, before, tally) and wait_for_news(sweep, tally):
        tally.back_sec.setdefault(f"{sweep.kind} {target}", []).append(round(time.monotonic() - struck, 1))
    tally.broken += broken_checkpoints(sweep.folder)
    print(dict(tally.kills), f"back after {tally.back_sec.get(f'{sweep.kind} {target}', ['?'])[-1]} s", flush=True)


@contextmanager
def ended(sweep: Sweep) -> Iterator[None]:
    """Whatever happens, the sweep's driver doesn't outlive the block."""
    try:
        yield
    finally:
        if sweep.process is not None and sweep.process.poll() is None:
            kill_tree([*below(sweep.process), sweep.process])


@contextmanager
def store(home: Path, kind: str) -> Iterator[FaultyProxy | None]:
    """A real S3 server behind the proxy, for the kind that needs one."""
    if kind != "s3":
        yield None
        return
    with s3_server(home) as port, FaultyProxy(port, seed=0) as proxy:
        yield proxy


def run_kind(kind: str, home: Path, tally: Tally, draw: random.Random) -> None:
    """Undisturbed once, then under fire until the kills of this kind are spent."""
    home.mkdir(parents=True)
    with store(home, kind) as proxy:
        calm = Sweep(kind, "calm", home, proxy)
        with ended(calm):
            calm.start()
            assert calm.process is not None
            if calm.process.wait() != 0:
                raise SystemExit((home / "calm.txt").read_text())
        expected, number = calm.outcome(), 0
        while tally.open(kind) and not tally.hangs:
            number += 1
            sweep = Sweep(kind, f"fire{number}", home, proxy)
            with ended(sweep):
                disturb(sweep, tally, draw)
            if tally.hangs:
                return
            got = sweep.outcome()
            tally.differ += [f"{kind} {sweep.name} {name}" for name in expected.keys() | got.keys() if expected.get(name) != got.get(name)]
            tally.broken += broken_checkpoints(sweep.folder)


def main() -> int:
    """Exits with 1 where anything was redone, lost, hung, broken, different or left running."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "chaos")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    shutil.rmtree(given.folder, ignore_errors=True)
    tally, began = Tally(quotas(given.kinds, given.kills)), time.monotonic()
    with ThreadPoolExecutor(len(given.kinds)) as pool:
        runs = [pool.submit(run_kind, kind, given.folder / kind, tally, random.Random(f"{given.seed} {kind}")) for kind in given.kinds]
    for run in runs:
        run.result()
    note_left_over(tally, wait=True)
    figures = {
        "kills": dict(tally.kills),
        "finished_trials_redone_or_lost": tally.redone,
        "hangs": tally.hangs,
        "trials_that_differ": tally.differ,
        "broken_checkpoints": tally.broken,
        "processes_left": tally.leaked,
        "drivers_that_gave_up": tally.gave_up,
        "back_after_sec": {name: {"median": sorted(s)[len(s) // 2], "most": max(s)} for name, s in tally.back_sec.items()},
        "minutes": round((time.monotonic() - began) / 60, 1),
    }
    print(json.dumps(figures, indent=2))
    kinds = "" if given.kinds == list(TARGETS) else f" --kinds {' '.join(given.kinds)}"
    name = "chaos" if not kinds else f"chaos_{'_'.join(given.kinds)}"
    print(write_result(name, f"python bench/faults/chaos.py --kills {given.kills} --seed {given.seed}{kinds}", figures))
    return 0 if tally.clean else 1


if __name__ == "__main__":
    sys.exit(main())
