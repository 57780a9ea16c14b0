"""Checkpoints: safetensors and JSON, valid once a manifest with checksums is there, which is written last."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from fewshot_ray.errors import UserError
from fewshot_ray.storage import Folder
from fewshot_ray.training.loop import Training

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
TENSORS, INFO = "state.safetensors", "state.json"
NUMBER = (int, float)
Types: TypeAlias = Mapping[str, type | tuple[type, ...]]
CONTINUATION: Types = {"ema_updates": int, "micro_batch": int, "recent_losses": list, "last_finite": dict}
"""Keys of `state.json` for each fold, as `training_state` writes them."""
EVALUATION: Types = {
    **{"step": int, "metrics": dict, "train_loss": NUMBER, "lr": NUMBER, "images_per_sec": NUMBER},
    **{"trained_share": NUMBER, "image_losses": list},
}
"""Keys of `state.json` for each evaluation in a trial's history."""
OF_LATER_RELEASES: Types = {"micro_batch": (int, type(None)), "memory": dict, "by_image": dict}
"""Further keys of an evaluation, which checkpoints of older releases lack."""


class Checkpoint(NamedTuple):
    """A checkpoint's contents."""

    step: int
    tensors: dict[str, Tensor]
    info: dict[str, Any]
    place: str
    """URL of its folder, for messages."""


def checkpoint_name(step: int) -> str:
    """Folder name of a step, e.g. `step_000080`; names sort in the order of steps."""
    return f"step_{step:06d}"


def write_checkpoint(folder: Folder, step: int, files: Mapping[str, bytes]) -> None:
    """Write `files` below `folder/step_.../`; only the manifest, written last, makes them a checkpoint."""
    target = folder / checkpoint_name(step)
    target.remove(MANIFEST)
    for name, content in files.items():
        target.write_bytes(name, content)
    checksums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    target.write_text(MANIFEST, json.dumps({"step": step, "sha256": checksums}, indent=2))


def pack(tensors: Mapping[str, Tensor], info: Mapping[str, Any]) -> dict[str, bytes]:
    """The two files of a training checkpoint."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return {TENSORS: save(contiguous), INFO: json.dumps(info).encode()}


def read_checkpoint(folder: Folder, step: int) -> Checkpoint:
    """The checkpoint of a step. Raises ValueError where it is missing, incomplete or damaged, UserError where it can't be reached."""
    target = folder / checkpoint_name(step)
    if not target.exists(MANIFEST):
        raise ValueError(f"{target.url} has no {MANIFEST}: it was never finished")
    try:
        manifest = json.loads(target.read_text(MANIFEST))
        checksums = {name: manifest["sha256"][name] for name in {TENSORS, INFO, *manifest["sha256"]}}
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{target.url}/{MANIFEST} is damaged: {error!r}") from error
    files = {name: _checked_bytes(target, name, checksum) for name, checksum in checksums.items()}
    try:
        tensors = dict(load(files[TENSORS]))
    except (SafetensorError, ValueError, TypeError, RuntimeError, LookupError) as error:
        raise ValueError(f"{target.url}/{TENSORS} is damaged: {error}") from error
    try:
        info = json.loads(files[INFO])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{target.url}/{INFO} is damaged: {error}") from error
    if not isinstance(info, dict):
        raise ValueError(f"{target.url}/{INFO} is damaged: it holds no JSON object")
    return Checkpoint(step, tensors, info, target.url)


def _checked_bytes(target: Folder, name: str, checksum: str) -> bytes:
    try:
        content = target.read_bytes(name)
    except FileNotFoundError as error:
        raise ValueError(f"{target.url}/{name} is missing") from error
    if hashlib.sha256(content).hexdigest() != checksum:
        raise ValueError(f"{target.url}/{name} is damaged: its checksum differs from the manifest's")
    return content


def saved_steps(folder: Folder) -> list[int]:
    """The steps with a checkpoint's folder, complete or not, ascending."""
    names = [name.removeprefix("step_") for name in folder.names() if name.startswith("step_")]
    return sorted(int(name) for name in names if name.isdigit())


def latest_checkpoint(folder: Folder) -> Checkpoint | None:
    """The latest complete checkpoint; damaged ones are named in the log and skipped. None where there is none."""
    for step in reversed(saved_steps(folder)):
        try:
            checkpoint = read_checkpoint(folder, step)
            _check_continuation(checkpoint)
            return checkpoint
        except ValueError as error:
            logger.warning("%s; going back to the checkpoint before", error)
    return None


def _check_continuation(checkpoint: Checkpoint) -> None:
    """Raise ValueError where the JSON part of the training state is incomplete."""
    training, history = checkpoint.info.get("training"), checkpoint.info.get("history")
    parts = list(training.values()) if isinstance(training, dict) else []
    whole = bool(parts) and all(_is_of(part, CONTINUATION) for part in parts)
    if not whole or not isinstance(history, list) or not all(_is_of(evaluation, EVALUATION, OF_LATER_RELEASES) for evaluation in history):
        raise ValueError(f"{checkpoint.place}/{INFO} is damaged: entries that training needs are missing or of another type")


def _is_of(tree: object, types: Types, optional: Types = MappingProxyType({})) -> bool:
    """Whether `tree` is an object with these keys and no others, values of these types, and numbers in its mappings and lists."""
    if not isinstance(tree, dict) or not types.keys() <= tree.keys() <= {**types, **optional}.keys():
        return False
    inner = [item for value in tree.values() for item in _items(value)]
    fits = all(isinstance(value, {**types, **optional}[key]) for key, value in tree.items())
    return fits and all(isinstance(item, (int, float)) for item in inner)


def _items(value: object) -> list[object]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []


def training_state(training: Training, prefix: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Everything that resuming needs: trained parameters, EMA, optimisers; batches and noise are functions of the step."""
    saved = _saved_parameters(training)
    names = {id(parameter): name for name, parameter in saved.items()}
    tensors: dict[str, Tensor] = {f"{prefix}trained/{name}": parameter for name, parameter in saved.items()}
    tensors |= {f"{prefix}ema/{name}": tensor for name, tensor in training.ema.state().items()}
    tensors |= {f"{prefix}buffer/{name}": buffer for name, buffer in training.method.buffers().items()}
    for optimizer_name, optimizer in training.method.optimizers().items():
        for parameter, state in optimizer.state.items():
            tensors |= {f"{prefix}optimizer/{optimizer_name}/{names[id(parameter)]}/{key}": value for key, value in state.items()}
    info = {
        "ema_updates": training.ema.updates,
        "micro_batch": training.micro_batch,
        "recent_losses": list(training.recent_losses),
        "last_finite": dict(training.last_finite),
    }
    return tensors, info


def _saved_parameters(training: Training) -> dict[str, nn.Parameter]:
    return {**training.method.trained(), **training.method.auxiliary()}


def restore_training(training: Training, checkpoint: Checkpoint, prefix: str) -> None:
    """The inverse of `training_state`. Raises UserError where the checkpoint is of another model."""
    try:
        _restore(training, checkpoint, prefix)
    except (KeyError, RuntimeError, ValueError) as error:  # a name, a shape
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{checkpoint.place}: the checkpoint is of another model ({reason} doesn't fit); source.model as it was would be right"
        ) from error


def _restore(training: Training, checkpoint: Checkpoint, prefix: str) -> None:
    tensors, info = checkpoint.tensors, checkpoint.info["training"][prefix]
    saved = _saved_parameters(training)
    names = {id(parameter): name for name, parameter in saved.items()}
    for name, parameter in saved.items():
        parameter.data.copy_(tensors[f"{prefix}trained/{name}"])
    for name, buffer in training.method.buffers().items():
        buffer.copy_(tensors[f"{prefix}buffer/{name}"])
    training.ema.load({name: tensors[f"{prefix}ema/{name}"] for name in training.ema.state()}, info["ema_updates"])
    for optimizer_name, optimizer in training.method.optimizers().items():
        parameters = [parameter for settings in optimizer.param_groups for parameter in settings["params"]]
        start = f"{prefix}optimizer/{optimizer_name}/"
        indices = {names[id(parameter)]: index for index, parameter in enumerate(parameters)}
        states: dict[int, dict[str, Tensor]] = {index: {} for index in indices.values()}
        for path, value in tensors.items():
            if path.startswith(start):
                name, key = path.removeprefix(start).rsplit("/", 1)
                states[indices[name]][key] = value
        # An adversary that hasn't trained yet has no state; loading an empty one would keep its optimiser from initialising it.
        begun = {index: state for index, state in states.items() if state}
        optimizer.load_state_dict({**optimizer.state_dict(), "state": begun})
    training.step = checkpoint.step
    training.micro_batch = info["micro_batch"]
    training.recent_losses = list(info["recent_losses"])
    training.last_finite = dict(info["last_finite"])


def saved_buffers(checkpoint: Checkpoint, prefix: str) -> dict[str, Tensor]:
    """Tensors that training changed in place besides parameters (running statistics), by name."""
    start = f"{prefix}buffer/"
    return {name.removeprefix(start): tensor for name, tensor in checkpoint.tensors.items() if name.startswith(start)}


def trained_weights(checkpoint: Checkpoint, prefix: str) -> dict[str, Tensor]:
    """The averaged weights by parameter name: what is exported."""
    start = f"{prefix}ema/"
    return {name.removeprefix(start): tensor for name, tensor in checkpoint.tensors.items() if name.startswith(start)}
