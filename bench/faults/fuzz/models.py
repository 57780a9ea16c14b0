"""Malformed run files, pipelines and weights."""

from __future__ import annotations

import copy
import io
import json
import random
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_safetensors

from bench.faults.fuzz.bases import Bases
from bench.faults.fuzz.case import MARKER, Case, changed, check_case
from bench.faults.fuzz.mutations import malicious, spoil_bytes, spoil_json, spoil_safetensors, spoil_state_dict, spoil_tree
from fewshot_ray.spec.document import to_yaml

WEIGHTS = "diffusion_pytorch_model.safetensors"
SAMPLE = ("-n", "1", "--steps", "2")
SCHEDULERS = (
    *("DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "HeunDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"),
    *("FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler", "KarrasVeScheduler", "LCMScheduler", "ScoreSdeVeScheduler", "TCDScheduler"),
)
SCHEDULER_SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {},
    {"use_flow_sigmas": True},
    {"timestep_type": "continuous"},
    {"predict_epsilon": False},
)
YAML_TEXTS = (
    *(b"", b"\n", b"---\n", b"null", b"[]", b"- a\n- b\n", b"a: b: c", b"{", b"a: &a [*a]", b"&a {a: *a}", b"%YAML 1.1\n---\na: 1\n"),
    *(
        b"name: mine\n---\nname: other\n",
        b"name: !!python/object/apply:os.system ['true']\n",
        b"a: *b",
        b"\t- a",
        b"a:\n\t b: 1",
        b"? [a]\n: b",
    ),
    *(
        b"[" * 5000,
        b"{a: " * 5000,
        b"- " * 5000,
        b"name: \xff\xfe",
        b"\xff\xfen\0a\0",
        b"name: mine\0",
        b"<<: {a: 1}",
        b"? ? ? a",
        b"a: |\n  b\n c",
    ),
    *(
        b"\x89PNG\r\n\x1a\n",
        b"name: \xed\xa0\x80",
        b"!<tag:yaml.org,2002:int> a: 1",
        b"name: 'a\n\n  b",
        b'name: "\\ud800"',
        b"a: " + b"9" * 6000,
    ),
    b"a: &a [x, x, x, x, x, x, x, x]\n"
    + b"".join(b"%c: &%c [%s]\n" % (98 + i, 98 + i, b", ".join([b"*%c" % (97 + i)] * 8)) for i in range(9)),
)


def run_file(rng: random.Random, bases: Bases, folder: Path) -> Case:
    """A run's YAML file: a value, a key, a text, an encoding."""
    name = rng.choice(list(bases.trees))
    tree, said = copy.deepcopy(bases.trees[name]), ""
    way = rng.random()
    if way < 0.75:
        tree, said = spoil_tree(rng, tree)
    try:
        text = json.dumps(tree) if way < 0.4 else to_yaml(tree)
        content = text.encode("utf-8", "surrogatepass")
    except (TypeError, ValueError, AttributeError):  # what ruamel.yaml can't write
        content = json.dumps(tree).encode()
    if 0.75 <= way < 0.88:
        content, said = spoil_bytes(rng, content)
    elif 0.88 <= way < 0.96:
        content = rng.choice(YAML_TEXTS) if rng.random() < 0.7 else content + rng.choice(YAML_TEXTS)
        said = f"text ...{content[-20:]!r}"
    elif way >= 0.96:
        encoding = rng.choice(("utf-16", "utf-32", "latin-1", "utf-8-sig"))
        content, said = (content + "# ä".encode()).decode().encode(encoding), encoding
    (folder / "mine.yaml").write_bytes(content)
    return Case(folder, ["check", "mine.yaml"], f"{name}: {said}", ("mine.yaml",))


def pipeline(rng: random.Random, bases: Bases, folder: Path) -> Case:
    """A pipeline: its JSON files or its weights, or two files swapped."""
    name = rng.choice(("pixel", "flat", "learned", "ldm", "dit"))
    path, said = _spoil_folder(rng, bases.folder / name, folder / "model")
    said = f"{name}/{path.relative_to(folder / 'model')}: {said}"
    names = (path.name, str(path.parent), "model")
    if rng.random() < 0.5:
        return Case(folder, ["sample", "model", "out", *SAMPLE], said, names, owned=("out", "out/*"))
    base = "dit" if name == "dit" else "short"
    return check_case(folder, changed(bases, base, source={"model": "./model"}), said, *names)


def _spoil_folder(rng: random.Random, original: Path, model: Path) -> tuple[Path, str]:
    """A copy at `model` with one file spoilt: which, and how."""
    shutil.copytree(original, model)
    files = sorted(path for path in model.rglob("*") if path.is_file() and path.suffix != ".py")
    path = rng.choice(files)
    way = rng.random()
    if way < 0.06:
        other = rng.choice([file for file in files if file != path])
        here, there = path.read_bytes(), other.read_bytes()
        path.write_bytes(there), other.write_bytes(here)
        return path, f"swapped with {other.name}"
    if way < 0.1:
        path.unlink()
        if rng.random() < 0.4:
            path.mkdir()
            return path, "a folder"
        return path, "removed"
    if way < 0.18:
        path = rng.choice([file for file in files if file.name == WEIGHTS])
        content, said = malicious(rng, model.parents[1] / MARKER, {"conv_in.weight": torch.zeros(2)})
        path.unlink()
        path.with_suffix(rng.choice((".bin", ".safetensors", ".bin"))).write_bytes(content)
        return path, said
    schedulers = [file for file in files if file.name == "scheduler_config.json"]
    if way < 0.26 and schedulers:
        return schedulers[0], _other_scheduler(rng, schedulers[0])
    content, said = (spoil_json if path.suffix == ".json" else spoil_safetensors)(rng, path.read_bytes())
    path.write_bytes(content)
    return path, said


def _other_scheduler(rng: random.Random, path: Path) -> str:
    """Another class of scheduler, of the same theory or not, with all its settings left out or some of another theory's put in."""
    config: dict[str, Any] = {"_class_name": rng.choice(SCHEDULERS)}
    if rng.random() < 0.5:
        config = json.loads(path.read_text()) | config
    config |= rng.choice(SCHEDULER_SETTINGS)
    path.write_text(json.dumps(config))
    return f"{config}"


def gan(rng: random.Random, bases: Bases, folder: Path) -> Case:
    """A GAN: a checkpoint of the common layout, or the folder of a StyleGAN2 or a FastGAN."""
    if rng.random() < 0.5:
        name = rng.choice(("stylegan2", "fastgan"))
        path, said = _spoil_folder(rng, bases.folder / name, folder / "model")
        said, names = f"{name}/{path.relative_to(folder / 'model')}: {said}", (path.name, str(path.parent), "model")
        if rng.random() < 0.5:
            return Case(folder, ["sample", "model", "out", "-n", "1"], said, names, owned=("out", "out/*"))
        tree = changed(bases, "gan", source={"gan": {name: {"weights": "./model"}}}, train={"gan": {}})
        return check_case(folder, {**tree, "method": {"finetune": {}}}, said, *names)
    tensors, path, way = bases.gan_tensors(), folder / "gan.pt", rng.random()
    if way < 0.6:
        part = rng.choice(("g_ema", "d"))
        content, said = spoil_state_dict(rng, tensors[part], lambda state: {**tensors, part: state})
        said = f"{part}: {said}"
    elif way < 0.7:
        content, said = malicious(rng, folder.parent / MARKER, tensors["g_ema"])
    elif way < 0.8:
        content, said = spoil_state_dict(rng, tensors["g_ema"])
    else:
        content, said = spoil_bytes(rng, (bases.folder / "gan.pt").read_bytes())
    path.write_bytes(content)
    return check_case(folder, changed(bases, "gan", source={"gan": {"stylegan2": {"weights": path.name}}}), said, path.name, "mine.yaml")


def adm_weights(rng: random.Random, bases: Bases, folder: Path) -> Case:
    """An ADM checkpoint, or its flags."""
    tensors = bases.adm_tensors()
    way = rng.random()
    path, said = folder / "adm.pt", ""
    flags = dict(bases.trees["adm"]["source"]["adm"])
    content = (bases.folder / "adm.pt").read_bytes()
    if way < 0.4:
        content, said = spoil_state_dict(rng, tensors)
    elif way < 0.6:
        content, said = malicious(rng, folder.parent / MARKER, tensors)
    elif way < 0.75:
        content, said = spoil_bytes(rng, content)
    elif way < 0.88:
        path = folder / "adm.safetensors"
        content, said = spoil_safetensors(rng, save_safetensors(tensors))
    else:
        flags, said = spoil_tree(rng, {key: value for key, value in flags.items() if key != "weights"})
    path.write_bytes(content)
    tree = changed(bases, "adm", source={"adm": {**flags, "weights": path.name}})
    return check_case(folder, tree, said, path.name, "mine.yaml")


def extractor(rng: random.Random, bases: Bases, folder: Path) -> Case:
    """The weights that metrics see images through."""
    tensors = {"features.0.weight": torch.zeros(64, 3, 3, 3), "features.0.bias": torch.zeros(64), "fc.bias": torch.zeros(1008)}
    suffix = rng.choice((".pth", ".pt", ".safetensors"))
    path = folder / f"weights{suffix}"
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    way = rng.random()
    if way < 0.25:
        content, said = malicious(rng, folder.parent / MARKER, tensors)
    elif suffix == ".safetensors":
        content, said = spoil_safetensors(rng, save_safetensors(tensors))
    else:
        content, said = spoil_state_dict(rng, tensors) if way < 0.5 else spoil_bytes(rng, buffer.getvalue())
    path.write_bytes(content)
    which = rng.choice((("fd", "extractor_weights"), ("kid", "extractor_weights"), ("pairwise_lpips", "lpips_weights")))
    evaluate = {"metrics": ["holdout_loss", which[0]], "samples": 8, "sampler_steps": 2, which[1]: path.name}
    return check_case(folder, changed(bases, "short", evaluate=evaluate), f"{path.name}: {said}", path.name)
