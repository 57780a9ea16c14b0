"""Keys that a run's file doesn't have: what a user of other trainers meant by them, and the line that is right."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from fewshot_ray.spec.wording import nearest, show


class Meant(NamedTuple):
    """The field of a run's file that corresponds to another tool's key."""

    path: str
    """Dotted path of the field; '' where the key has no counterpart."""
    note: str = ""
    """A further explanation."""
    value: Any = None
    """Shown in place of the given value, which has another meaning there."""


_STEPS = Meant("train.steps", "training is counted in steps: epochs x images / batch_size", 300)
_GLOBAL_BATCH = "of all workers together; `micro_batch` is the number of images per forward pass"
_RANGES = "ranges are written in place of the values, e.g. `train: {lr: {log: [1e-5, 3e-4]}}`"
_FIELDS: list[tuple[Meant, tuple[str, ...]]] = [
    (Meant("train.lr"), ("learning_rate", "base_lr", "max_lr", "init_lr", "unet_lr", "lr_rate")),
    (_STEPS, ("epochs", "epoch", "num_epochs", "max_epochs", "num_train_epochs", "n_epochs", "max_train_epochs")),
    (
        Meant("train.steps"),
        (
            *("num_train_steps", "max_train_steps", "train_steps", "num_steps", "max_steps", "total_steps", "n_steps"),
            *("iterations", "iters", "max_iters", "num_iterations", "total_iterations", "training_steps"),
        ),
    ),
    (Meant("train.steps", "steps are counted: thousands of images x 1000 / batch_size", 300), ("kimg", "total_kimg")),
    (
        Meant("train.batch_size", _GLOBAL_BATCH),
        (*("batch", "bs", "train_batch_size", "batchsize", "global_batch_size", "per_device_train_batch_size", "batch_gpu"),),
    ),
    (
        Meant("train.micro_batch", "batch_size / micro_batch is how often gradients are accumulated", "auto"),
        (*("gradient_accumulation_steps", "accumulate_grad_batches", "grad_accum", "gradient_accumulation", "accumulation_steps"),),
    ),
    (Meant("train.params.lora.rank"), ("lora_rank", "lora_r", "network_dim")),
    (Meant("train.params.lora.alpha"), ("lora_alpha", "network_alpha")),
    (Meant("train.params.lora"), ("lora",)),
    (Meant("train.params.adaptor"), ("adaptor", "adapter", "adapters")),
    (Meant("train.params.bitfit"), ("bitfit",)),
    (Meant("train.params.difffit"), ("difffit",)),
    (Meant("train.params.oft"), ("oft",)),
    (Meant("train.params.boft"), ("boft",)),
    (Meant("train.precision", "", "bf16"), ("mixed_precision", "fp16", "bf16", "amp", "use_amp", "dtype", "half_precision", "torch_dtype")),
    (Meant("train.lr_schedule", "", "cosine"), ("lr_scheduler", "lr_scheduler_type", "lr_sched", "scheduler")),
    (Meant("train.lr_warmup_steps"), ("warmup_steps", "num_warmup_steps", "lr_warmup", "warmup")),
    (Meant("train.gradient_clip"), ("max_grad_norm", "grad_clip", "clip_grad_norm", "gradient_clip_val", "clip_grad", "gradient_clipping")),
    (Meant("train.betas", "", [0.9, 0.999]), ("adam_beta1", "adam_beta2", "beta1", "beta2")),
    (Meant("train.weight_decay"), ("adam_weight_decay", "wd")),
    (Meant("train.ema.decay", "the average is always computed", 0.999), ("use_ema", "ema_decay", "ema_rate", "ema_kimg", "ema_beta")),
    (Meant("train.flip"), ("random_flip", "hflip", "horizontal_flip", "mirror", "flip_aug")),
    (Meant("train.compile"), ("torch_compile", "use_compile")),
    (
        Meant("train.checkpoint_sec", "seconds between checkpoints; each evaluation also writes one", 60),
        (*("save_steps", "checkpointing_steps", "save_every", "checkpoint_every", "save_interval", "save_and_sample_every", "snap"),),
    ),
    (
        Meant("", "AdamW is used, its settings are `lr`, `betas` and `weight_decay` below `train`"),
        (*("optimizer", "optim", "optimiser", "use_8bit_adam", "adam_epsilon"),),
    ),
    (Meant("", "the source model's own resolution is used"), ("resolution", "image_size", "size", "img_size", "crop", "center_crop")),
    (Meant("", "layers are chosen by `convolutions` and `feed_forward`"), ("target_modules",)),
    (Meant("", "the kind of model is read from its files, and there are no prompts"), ("instance_prompt", "prompt", "class_prompt")),
    (
        Meant("source.model"),
        (
            *("pretrained_model_name_or_path", "base_model", "model_name", "model_name_or_path", "pretrained", "pretrained_model"),
            *("model", "checkpoint", "model_path", "ckpt"),
        ),
    ),
    (Meant("source.images"), ("class_data_dir", "source_images")),
    (
        Meant("target.images"),
        (
            *("instance_data_dir", "train_data_dir", "dataset", "data", "data_dir", "images", "train_data", "dataset_name"),
            *("dataroot", "data_path", "image_dir", "images_dir", "train_dir"),
        ),
    ),
    (Meant("target.shots"), ("num_shots", "n_shots", "shots")),
    (Meant("target.holdout"), ("holdout", "validation", "val_data", "validation_dir", "val_dir", "val_split", "folds", "cv", "k_folds")),
    (Meant("evaluate.every"), ("validation_steps", "eval_steps", "eval_every", "eval_interval", "val_check_interval", "evaluate_every")),
    (Meant("evaluate.samples"), ("num_validation_images", "num_eval_samples", "num_fid_samples", "n_samples")),
    (Meant("evaluate.sampler_steps"), ("num_inference_steps", "sampling_steps", "ddim_steps")),
    (Meant("search.trials"), ("n_trials", "num_trials", "run_cap", "max_trials")),
    (Meant("search.trials", "the number of configurations; the number of images is evaluate.samples"), ("num_samples",)),
    (Meant("search.concurrent"), ("max_concurrent_trials", "max_concurrent", "n_jobs", "max_parallel", "parallelism")),
    (Meant("search.objectives", "", {"holdout_loss": "min"}), ("metric", "objective", "monitor", "direction", "directions", "goal")),
    (
        Meant("search.scheduler.asha", "", {"metric": "holdout_loss", "grace_steps": 100}),
        ("pruner", "early_terminate", "asha", "hyperband"),
    ),
    (Meant("train.early_stopping", "", True), ("early_stop", "early_stopping_patience", "stop_early")),
    (Meant("", _RANGES), ("parameters", "search_space", "param_space", "space", "sweep")),
    (Meant("resources.workers"), ("num_workers", "n_workers", "nproc_per_node", "world_size", "num_processes")),
    (Meant("resources.gpus_per_worker"), ("num_gpus", "gpus", "n_gpus", "use_gpu", "gpu", "devices")),
    (Meant("resources.cpus_per_worker"), ("num_cpus", "cpus", "cpu")),
    (Meant("storage"), ("output_dir", "out_dir", "outdir", "storage_path", "save_dir", "logdir", "log_dir", "output", "results_dir")),
    (Meant("name"), ("experiment_name", "run_name", "project", "project_name", "exp_name", "study_name", "experiment")),
    (Meant("seed"), ("random_seed", "manual_seed", "global_seed", "rng_seed")),
]
ELSEWHERE: dict[str, Meant] = {name: meant for meant, names in _FIELDS for name in names}
BELOW: dict[str, dict[str, str]] = {
    "train.params.lora": {"r": "rank", "lora_rank": "rank", "dim": "rank", "network_dim": "rank", "lora_alpha": "alpha"},
    "train.params.adaptor": {"rank": "width", "dim": "width", "channels": "width"},
    "train.params.oft": {"r": "block_size", "rank": "block_size", "oft_block_size": "block_size"},
    "train.params.boft": {"boft_block_size": "block_size", "boft_n_butterfly_factor": "butterfly_factors"},
    "method.ant": {"omega": "noise_step_size", "J": "noise_steps", "gamma": "guidance"},
}
"""Other tools' keys that are known in one section only."""


def unknown_key(section: str, key: str, value: Any, known: Iterable[str], elsewhere: Iterable[str]) -> tuple[str, str | None]:
    """The message for a key below the dotted `section` that isn't among the `known`, and the dotted field that is meant, if any.

    `elsewhere`: dotted fields of that name in other sections.
    """
    known, elsewhere = list(known), list(elsewhere)
    renamed = BELOW.get(section, {}).get(key)
    meant = ELSEWHERE.get(key) if renamed is None else None
    near = renamed or (nearest(key, known) if meant is None or not meant.path.startswith(section) else None)
    if near is not None and (meant is None or near == key.rstrip("s") or near.rstrip("s") == key):
        return f"the key is not known; did you mean `{near}: {_shown(value)}`?", _join(section, near)
    if len(elsewhere) == 1:
        return f"the key is not known here; did you mean `{written(elsewhere[0], value)}`?", elsewhere[0]
    if meant is not None and not meant.path:
        return f"the key is not known; leave it out: {meant.note}", None
    if meant is not None:
        right = written(_relative(meant.path, section), _settings(meant.path, value) if meant.value is None else meant.value)
        return f"the key is not known; `{right}` is right{f' ({meant.note})' if meant.note else ''}", meant.path
    if near is not None:
        return f"the key is not known; did you mean `{near}: {_shown(value)}`?", _join(section, near)
    if not known:
        return "the key is not known, and there are no settings here; leave it out", None
    return f"the key is not known; known here: {', '.join(known)}", None


def written(path: str, value: Any) -> str:
    """A value at a dotted path as one line of a file: `train: {lr: 0.0001}`."""
    first, *rest = path.split(".")
    text = _shown(value)
    for key in reversed(rest):
        text = f"{{{key}: {text}}}"
    return f"{first}: {text}"


def _shown(value: Any) -> str:
    return show(value) if value is not None else "..."


def _relative(path: str, section: str) -> str:
    """The field's path relative to `section` where it is below that section too."""
    return path.removeprefix(f"{section}.") if section else path


def _settings(path: str, value: Any) -> Any:
    """A mapping with its keys renamed to the fields below `path`; `{}` for a plain `true`."""
    if isinstance(value, Mapping):
        names = BELOW.get(path, {})
        return {names.get(key, key): item for key, item in value.items()}
    return {} if value in (True, None) and path.startswith("train.params.") else value


def _join(section: str, key: str) -> str:
    return f"{section}.{key}" if section else key
