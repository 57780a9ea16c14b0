"""Pipelines whose schedulers are of another theory, or say what can't be."""

from __future__ import annotations

import copy
import json
import random
import shutil
from pathlib import Path
from typing import Any, Literal

import diffusers

from bench.faults.fuzz.bases import Bases
from bench.faults.fuzz.case import Case, changed, check_case
from bench.faults.fuzz.models import SAMPLE
from bench.faults.fuzz.mutations import OTHER_VALUES, spoil_json

OTHER_THEORIES = (
    *("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler", "EDMEulerScheduler"),
    *("EDMDPMSolverMultistepScheduler", "KarrasVeScheduler", "ScoreSdeVeScheduler", "CMStochasticIterativeScheduler"),
    *("VQDiffusionScheduler", "AmusedScheduler", "ConsistencyDecoderScheduler"),
)
"""Their networks are not trained by DDPM's noising at integer t."""
SETTINGS: dict[str, tuple[Any, ...]] = {
    "prediction_type": ("epsilon", "v_prediction", "sample", "flow_prediction", "trigflow", None),
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace", "exp", "trained", None),
    "beta_start": (0, -0.1, 1e-4, 0.9, 1.0, 2, "0.1", float("nan")),
    "beta_end": (0, 0.02, 0.999, 1.0, 5, None),
    "num_train_timesteps": (0, 1, 2, 10, 1000, 1001, 10**7, -1, 10.0, "1000"),
    "trained_betas": ([], [0.1], [0.1] * 1000, [0.5, 2.0], [0] * 10, [float("nan")] * 10, "betas", [[0.1]], [1.0] * 10),
    "variance_type": ("fixed_small", "fixed_large", "learned", "learned_range", "fixed_small_log", "other", None),
    "timestep_spacing": ("leading", "trailing", "linspace", "other"),
    "timestep_type": ("discrete", "continuous"),
    "rescale_betas_zero_snr": (True, False, "yes"),
    "use_flow_sigmas": (True, False),
    "use_karras_sigmas": (True, False),
    "final_sigmas_type": ("zero", "sigma_min"),
    "clip_sample": (True, False, None, 3),
    "clip_sample_range": (0, 1.0, -1, None),
    "thresholding": (True, False),
    "steps_offset": (0, 1, 999, 10**6, -1),
    "set_alpha_to_one": (True, False),
    "sigma_data": (0.5,),
    "shift": (3.0,),
    "_class_name": (None, "DDPMScheduler", "ddpm", "", 3, ["DDPMScheduler"], "UNet2DModel", "os.system"),
    "_diffusers_version": ("0.0.0", None, 3),
}


def scheduler(rng: random.Random, bases: Bases, folder: Path) -> Case:
    """A pipeline, or a network that is built, with another scheduler, other settings, or two that disagree."""
    if rng.random() < 0.15:
        return _built(rng, bases, folder)
    name = rng.choice(("pixel", "flat", "learned", "ldm", "dit"))
    model = folder / "model"
    shutil.copytree(bases.folder / name, model)
    path = next(model.rglob("scheduler_config.json"))
    kind = rng.choice(_kinds())
    must: Literal["refuse"] | None = None
    own = json.loads(path.read_text())
    way = rng.choice(("other theory", "other", "other", "settings", "settings", "settings", "index", "tree", "own defaults"))
    said = f"{name}: {way}"
    if way == "other theory":
        own = _defaults(rng.choice([other for other in OTHER_THEORIES if hasattr(diffusers, other)])) if rng.random() < 0.6 else own
        own["_class_name"] = own["_class_name"] if own["_class_name"] in OTHER_THEORIES else rng.choice(OTHER_THEORIES)
        said, must = f"{said} {own['_class_name']}", "refuse"
    elif way in ("other", "own defaults"):
        own = _defaults(kind) if way == "own defaults" else {**own, "_class_name": kind}
        said += f" {kind}"
    elif way == "index":
        index = json.loads((model / "model_index.json").read_text())
        index["scheduler"] = rng.choice(
            (["diffusers", kind], ["diffusers", kind, 1], [None, None], kind, None, ["transformers", kind], [], {})
        )
        said += f" {index['scheduler']!r}"
        (model / "model_index.json").write_text(json.dumps(index))
    content = json.dumps(own).encode()
    if way in ("settings", "other"):
        changes = {key: rng.choice(SETTINGS[key]) for key in rng.sample(list(SETTINGS), rng.randint(1, 3))}
        said += f" {changes!r:.200}"
        content = json.dumps({**own, **changes}).encode()
    elif way == "tree":
        content, said = spoil_json(rng, content)
    path.write_bytes(content)
    base = "dit" if name == "dit" else "short"
    if rng.random() < 0.4:
        case = Case(folder, ["sample", "model", "out", *SAMPLE], said, ("model", path.name), owned=("out", "out/*"))
    else:
        case = check_case(folder, changed(bases, base, source={"model": "./model"}), said, "model", path.name)
    case.must = must
    return case


def _kinds() -> list[str]:
    return sorted(name for name in dir(diffusers) if name.endswith("Scheduler") and "Flax" not in name)


def _defaults(kind: str) -> dict[str, Any]:
    """What the class writes of itself; the name alone where a program is missing that it needs."""
    try:
        written: dict[str, Any] = json.loads(getattr(diffusers, kind)().to_json_string())
    except (ImportError, TypeError, ValueError, AttributeError):
        return {"_class_name": kind}
    return written


def _built(rng: random.Random, bases: Bases, folder: Path) -> Case:
    """`source.build.scheduler` of a run file."""
    tree = copy.deepcopy(bases.trees["build"])
    settings = tree["source"]["build"]["scheduler"]
    for key in rng.sample(list(SETTINGS), rng.randint(1, 3)):
        settings[key] = rng.choice((*SETTINGS[key], rng.choice(OTHER_VALUES)))
    try:
        return check_case(folder, tree, f"build: {settings!r:.200}", "mine.yaml")
    except (TypeError, ValueError, AttributeError):  # what ruamel.yaml can't write
        (folder / "mine.yaml").write_text(json.dumps(tree))
        return Case(folder, ["check", "mine.yaml"], f"build: {settings!r:.200}", ("mine.yaml",))
