"""Malformed sweeps' folders and checkpoints."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from bench.faults.fuzz.bases import INTERRUPTED_AT, Bases
from bench.faults.fuzz.case import Case
from bench.faults.fuzz.mutations import spoil_bytes, spoil_json, spoil_safetensors


def _copied_sweep(bases: Bases, name: str, folder: Path) -> Path:
    """Small files are copied; checkpoints' tensors, which nothing writes into, are linked."""

    def copied(source: str, target: str) -> None:
        if source.endswith(".safetensors"):
            os.link(source, target)
        else:
            shutil.copyfile(source, target)

    ignored = shutil.ignore_patterns("report.html", "events.*")
    shutil.copytree(bases.folder / "sweeps" / name, folder / name, copy_function=copied, ignore=ignored)
    return folder / name


def _rewrite(path: Path, content: bytes) -> None:
    path.unlink()  # it may be a link to the base
    path.write_bytes(content)


def _reseal(checkpoint: Path) -> None:
    """A manifest that says the files are whole."""
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in checkpoint.iterdir() if path.name != "manifest.json"}
    (checkpoint / "manifest.json").write_text(json.dumps({"step": int(checkpoint.name[5:]), "sha256": sums}))


def checkpoint(rng: random.Random, bases: Bases, folder: Path) -> Case:
    """A trial's checkpoint, its manifest perhaps in accord with the damage: exported, evaluated, or resumed from."""
    command = rng.choice(("export", "export", "evaluate", "resume", "resume"))
    sweep = _copied_sweep(bases, "interrupted" if command == "resume" else "finished", folder)
    trial = INTERRUPTED_AT[0] if command == "resume" else rng.choice(("refit-t0000", "refit-t0001", "t0000", "t0001"))
    if not (sweep / "trials" / trial).exists():
        trial = "t0001"
    target = sorted((sweep / "trials" / trial / "checkpoints").iterdir())[-1]
    path = target / rng.choice(("manifest.json", "state.json", "state.json", "state.safetensors", "state.safetensors"))
    way = rng.random()
    if way < 0.08:
        other = target / rng.choice(("manifest.json", "state.json", "state.safetensors"))
        here, there = path.read_bytes(), other.read_bytes()
        _rewrite(path, there)
        _rewrite(other, here)
        said = f"swapped with {other.name}"
    elif way < 0.14:
        path.unlink()
        said = "removed"
        if rng.random() < 0.5:
            path.mkdir()
            said = "a folder"
    elif path.suffix == ".json":
        content, said = spoil_json(rng, path.read_bytes())
        _rewrite(path, content)
    else:
        content, said = spoil_safetensors(rng, path.read_bytes())
        _rewrite(path, content)
    if path.name != "manifest.json" and path.is_file() and rng.random() < 0.7:
        _reseal(target)
        said += ", the manifest in accord"
    said = f"{command} {path.relative_to(sweep)}: {said}"
    names = (f"{trial}/checkpoints/{target.name}", target.name, path.name)
    return _sweep_case(rng, command, folder, sweep, said, names, trial)


def sweep_folder(rng: random.Random, bases: Bases, folder: Path) -> Case:
    """A sweep's folder: its spec, records, evaluations, journal; files swapped, missing, of another trial, or folders."""
    command = rng.choice(("leaderboard", "leaderboard", "export", "evaluate", "resume", "resume", "resume"))
    sweep = _copied_sweep(bases, rng.choice(("interrupted", "finished")) if command in ("leaderboard", "resume") else "finished", folder)
    files = [
        path for path in sweep.rglob("*") if path.is_file() and path.name in ("trial.json", "metrics.jsonl", "spec.yaml", "study.journal")
    ]
    files = [*sorted(files), sweep / "study.journal", sweep / "study.journal", sweep / "spec.yaml"]
    path = rng.choice(files)
    way, names = rng.random(), [path.name]
    if way < 0.08:
        other = rng.choice([file for file in files if file != path])
        here, there = path.read_bytes(), other.read_bytes()
        path.write_bytes(there), other.write_bytes(here)
        said = f"swapped with {other.relative_to(sweep)}"
        names.append(other.name)
    elif way < 0.2:
        said = rng.choice(("removed", "a folder", "a link to itself", "a dangling link"))
        path.unlink()
        if said == "a folder":
            path.mkdir()
        elif said != "removed":
            path.symlink_to(path.name if said == "a link to itself" else "nowhere")
        names += [path.parent.name, sweep.name]
    elif way < 0.25:
        said = _odd_trial(rng, sweep / "trials")
        names += ["trials", "t000"]
    elif path.suffix == ".json":
        content, said = spoil_json(rng, path.read_bytes())
        path.write_bytes(content)
    elif path.suffix == ".yaml":
        content, said = spoil_bytes(rng, path.read_bytes())
        if rng.random() < 0.5:
            content, said = spoil_json(rng, json.dumps(_plain_yaml(path)).encode())
            if content.startswith(b"{"):  # the folder's format, without which nothing is trained there
                content = path.read_bytes().splitlines(keepends=True)[0] + content
        path.write_bytes(content)
    else:
        content, said = _spoil_lines(rng, path.read_bytes())
        path.write_bytes(content)
    if "spec.yaml" in names:  # the folder's format stands there
        names.append(sweep.name)
    said = f"{command} {sweep.name}/{path.relative_to(sweep)}: {said}"
    case = _sweep_case(rng, command, folder, sweep, said, tuple(names), None)
    if command == "resume" and path.parent != sweep:  # the trial whose own files are wrong may be run again
        case.owned += (f"{path.parent.relative_to(folder)}/*",)
    return case


def _plain_yaml(path: Path) -> Any:
    return YAML(typ="safe", pure=True).load(path.read_text())


def _odd_trial(rng: random.Random, trials: Path) -> str:
    said = rng.choice(("an empty trial", "an odd name", "a file among trials", "a trial twice", "a trial too many"))
    if said == "an empty trial":
        (trials / "t0009").mkdir()
    elif said == "an odd name":
        shutil.copytree(trials / "t0000", trials / rng.choice(("a\nb", "ü [1]*", os.fsdecode(b"\xff"), "t0000 (copy)", "\x1b[31m")))
    elif said == "a file among trials":
        (trials / "notes.txt").write_text("dear diary")
    else:
        shutil.copytree(trials / "t0000", trials / "t0003")
        record = trials / "t0003" / "trial.json"
        if said == "a trial too many":
            record.write_text(record.read_text().replace('"t0000"', '"t0003"').replace('"number": 0', '"number": 3'))
    return said


def _spoil_lines(rng: random.Random, content: bytes) -> tuple[bytes, str]:
    """One line changed as JSON, doubled, dropped or cut; or any bytes."""
    if rng.random() < 0.25:
        return spoil_bytes(rng, content)
    lines = content.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    way = rng.random()
    if way < 0.65:
        line, said = spoil_json(rng, lines[at])
        lines[at] = line.replace(b"\n", b" ") + b"\n"
    elif way < 0.75:
        said = "dropped"
        del lines[at]
    elif way < 0.85:
        said = "twice"
        lines.insert(at, lines[at])
    else:
        said = "and after it cut"
        lines = [*lines[:at], lines[at][: rng.randrange(len(lines[at]))]]
    return b"".join(lines), f"line {at + 1} {said}"


def _sweep_case(rng: random.Random, command: str, folder: Path, sweep: Path, said: str, names: tuple[str, ...], trial: str | None) -> Case:
    arguments = [command, sweep.name]
    asked = ["--trial", trial or rng.choice(("t0000", "t0001"))] if rng.random() < 0.6 or trial is not None else []
    owned: tuple[str, ...] = ()
    if command == "export":
        arguments += ["out", *asked]
        owned = ("out", "out/**")
    elif command == "evaluate":
        arguments += asked
        owned = (f"{sweep.name}/test.json", f"{sweep.name}/cache", f"{sweep.name}/cache/**")
    appended: tuple[str, ...] = ()
    if command == "resume":
        begun = [f"{sweep.name}/trials/{trial}" for trial in (INTERRUPTED_AT[0], "t0003", "t0004")]
        kept = ("lease.json", "cache", "cache/**", "trials/confirm-*", "trials/control-*", "trials/refit-*")
        owned = (*(f"{sweep.name}/{name}" for name in kept), *begun, *(f"{trial}/**" for trial in begun))
        appended = (f"{sweep.name}/study.journal",)
    return Case(folder, arguments, said, names, owned, appended)
