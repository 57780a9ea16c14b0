"""Names with brackets, colons and the like, which printing as markup, globbing or splitting would take for its own."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

from bench.faults.fuzz.bases import Bases
from bench.faults.fuzz.case import Case, changed, check_case
from bench.faults.fuzz.models import SAMPLE

NAMES = (
    *("[wip]", "[/red]", "[bold]x[/bold]", "[[a]]", "[/]", "a[link=x]b", "[red", "]", "[1]", "[@click=app.bell]", "\\[x]", "a\\", "[!x]"),
    *(
        "*",
        "?",
        "{a,b}",
        ":cat:",
        "a::b",
        "zip::c",
        "%s",
        "{}",
        "{0}",
        "$HOME",
        "$$",
        "a;b",
        "a|b",
        "a'b",
        'a"b',
        "a&b",
        "#a",
        "a,b",
        "(x)",
    ),
)


def brackets(rng: random.Random, bases: Bases, folder: Path) -> Case:
    """Whole files under odd names, or one that is wrong: the names stand in what is said as they are."""
    name = rng.choice(NAMES)
    return rng.choice((_checked, _checked, _refused, _sampled, _swept, _swept, _swept))(rng, bases, folder, name)


def _checked(rng: random.Random, bases: Bases, folder: Path, name: str) -> Case:
    """A place of a run file that is right."""
    place = name.replace("$", "S")  # a variable's mark stands for itself nowhere
    way = rng.choice(("images", "file name", "model", "storage", "caption"))
    where = {"images": (bases.folder / "photos", "images"), "model": (bases.folder / "pixel", "model")}
    tree = changed(bases, "short")
    shown: tuple[str, ...] = ()
    if way in where:
        shutil.copytree(where[way][0], folder / place)
        tree = changed(bases, "short", **{"target" if way == "images" else "source": {where[way][1]: f"./{place}"}})
        shown = (place,) if way == "model" else ()
    elif way == "storage":
        tree["storage"] = f"./{place}"
        shown = (f"{place}/mine can be written",)
    else:
        shutil.copytree(bases.folder / "photos", folder / "photos")
        tree = changed(bases, "short", target={"images": "photos"})
        first = sorted((folder / "photos").iterdir())[0]
        if way == "caption":
            (folder / "photos" / f"{place}.txt").write_text("words")
            shown = (f"1 text ({place}.txt)",)
        else:
            shutil.copy(first, folder / "photos" / f"{place}.png")
            shown = (f"{place}.png",)  # as a copy of the other
    case = check_case(folder, tree, f"{way} {place}", place)
    case.must, case.shown = "accept", shown
    return case


def _refused(rng: random.Random, bases: Bases, folder: Path, name: str) -> Case:
    """A run file of that name, or with that value."""
    tree = changed(bases, "short")
    if rng.random() < 0.4:
        (folder / f"{name}.yaml").write_text("name: [")
        return Case(folder, ["check", f"./{name}.yaml"], f"file {name}", (f"{name}.yaml",), must="refuse", shown=(f"{name}.yaml",))
    section, key = rng.choice((("source", "model"), ("target", "images"), ("target", "holdout"), ("train", "lr"), ("train", "params")))
    tree[section][key] = f"./nowhere/{name}"
    return check_case(folder, tree, f"{section}.{key} {name}", name)


def _sampled(rng: random.Random, bases: Bases, folder: Path, name: str) -> Case:
    place = name.replace("$", "S")
    shutil.copytree(bases.folder / "pixel", folder / place)
    out = rng.choice(NAMES).replace("$", "S") + " out"
    case = Case(folder, ["sample", f"./{place}", f"./{out}", *SAMPLE], f"sample {place} {out}", (place,), must="accept", shown=(out,))
    case.owned = ("**",)
    return case


def _swept(rng: random.Random, bases: Bases, folder: Path, name: str) -> Case:
    """A whole sweep at such a place, perhaps with a trial that ended with such words."""
    place = name.replace("$", "S")
    sweep = folder / place / "finished"
    shutil.copytree(bases.folder / "sweeps" / "finished", sweep)
    command = rng.choice(("leaderboard", "leaderboard", "export", "evaluate"))
    shown: tuple[str, ...] = ()
    if command == "leaderboard":
        record = sweep / "trials" / "t0000" / "trial.json"
        failed = {"state": "FAIL", "error": f"OSError: {name}", "best_step": None, "values": None}
        record.write_text(json.dumps({**json.loads(record.read_text()), **failed}))
        journal = sweep / "study.journal"
        shown = (name,) if "t0000" in journal.read_text() else ()
    arguments = [command, f"./{place}/finished"]
    if command == "export":
        arguments.append(f"./{place} out")
        shown = (f"{place} out",)
    return Case(folder, arguments, f"{command} {place}", (place,), ("**",), must="accept", shown=shown)
