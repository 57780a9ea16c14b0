"""The reference of a run's file, made from the models that read it: `python -m fewshot_ray.cli.reference > docs/file-format.md`."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fewshot_ray.methods import METHODS
from fewshot_ray.methods.augment import AdaConfig, DiffAugmentConfig
from fewshot_ray.methods.registry import declared_ranges
from fewshot_ray.metrics.extractors import EXTRACTORS
from fewshot_ray.metrics.suite import METRICS
from fewshot_ray.models.gan_source import GANS
from fewshot_ray.models.parameters import PARAMS
from fewshot_ray.spec.expected import Expected, describe, fields_of
from fewshot_ray.spec.sections import FileSpec
from fewshot_ray.trial.gan_settings import RECIPES, TRAIN

INTRODUCTION = """\
# The run file

One YAML file describes a run. It is read by `fewshot-ray run FILE` and, without training, by `fewshot-ray check FILE`.
This page is made from the code that reads the file: `python -m fewshot_ray.cli.reference > docs/file-format.md`.

## Rules

- YAML 1.2: `1e-5` is a number, `no` is text, `010` is ten. A key that is given twice is refused, and so is an unknown key.
- Nothing is converted: where a whole number is expected, `40.0` and `"40"` are refused. NaN and infinity are refused.
- A section that is left out has its defaults. `name`, `source`, `target` and `method` must be given.
- `name` is made of up to 100 letters, digits, `.`, `_` and `-`, the first a letter or digit.
- Each error is one line: file, line, field, what was given and what would be right. All errors of the fields are said at once, those
  between fields once each by itself is right. The exit code is 2.

## Ranges

Any value below `method` and `train` may be a range. With ranges the run is a search of `search.trials` trials, which must then be given.

| written as | values |
|---|---|
| `{float: [low, high]}` | every number from low to high |
| `{log: [low, high]}` | the same, drawn uniformly in the logarithm; low is above 0 |
| `{int: [low, high]}` | every whole number from low to high |
| `{choice: [a, b, ...]}` | one of the values, which may be of any kind |

Both ends belong to the range, and low is below high. The file must be valid at every end of every range.
Elsewhere ranges are refused, since the trials would not be comparable. Ranges as Optuna, Weights & Biases or Ray Tune spell them, and
other trainers' names (`learning_rate`, `epochs`), are refused with the line that is right.
`method: {sdft: search}` is short for a method's own ranges, the last column of its table below; `train: {params: {lora: search}}` likewise.
Values that Python takes for equal (`1`, `1.0`, `true`) are different values of a choice.

### Alternatives with settings of their own

The values of a choice may hold ranges. What is below an alternative exists only in the trials that chose it. `method` may be a choice
too: of names, of lists of names (a combination) and of mappings with settings.

```yaml
method: {choice: [ant, [ant, sdft], {ant: {noise_steps: {int: [1, 10]}}, sdft: search}, finetune]}
train:
  params: {choice: [full, {lora: {rank: {choice: [4, 16]}}}]}
  lr: {by: train.params, full: {log: [1e-5, 1e-4]}, lora: {log: [1e-4, 1e-3]}}
```

`by` names a choice (or a fixed value) of the file by its dotted path; the other keys give the value, the range or the settings for each
of its alternatives. So what depends on a choice need not be one of its settings: a learning rate is none of LoRA's. Where `method` is the
choice and plain fine-tuning isn't an alternative, there must be a value for `finetune` too, the second trial's.

An alternative's name is the text itself or its keys joined (`ant+sdft`); where several would have the same, their numbers in the list are
added (`ant (3)`). These names are the trials' values in tables and in Optuna. There a parameter's name is its dotted path; where the
path has different ranges in different alternatives, the alternative's name is added (`train.lr[lora]`). Alternatives that share a
setting with the same range share the parameter, so that the sampler learns from both.

Each combination of alternatives, 500 at most, must be valid as a file of its own; an error names the alternative. The preset takes the
first alternative (of `train.params` the default, `full`, where it is one). Where `finetune` is an alternative, the trial of plain
fine-tuning is one of the space, and the sampler learns from it.

## Places

`source.model` is a folder that diffusers' `save_pretrained` wrote, a hub id (`owner/name`), an fsspec URL (`s3://bucket/model`), or
`embedded://digits-ddpm`.

Images are read from a folder (with those below it, linked ones too), a zip, a Parquet file or a folder of its shards with a column of
encoded images, each on disk or at an fsspec URL, or from the embedded digits: `embedded://digits/PART` with the parts `source`, `target`,
`shots`, `validation` and `test` (`?seed=N` chooses another split of the target), and `biased-shots`, `biased-validation` and `biased-test`,
where shots and validation lack the classes 5 to 9 that the test images have. Where several columns of a Parquet place hold images,
`PLACE?column=NAME` says which one; without it the one called `image`, or otherwise as usual, is read.

What a file holds decides whether it is an image, not its ending. Not read are hidden files, those of operating systems and network disks
(`Thumbs.db`, `@eaDir`, `__MACOSX`), and trainers' `a-masklabel.png` and `a-condlabel.png`. Masks and conditioning images of other names
(`a_mask.png`, `a.mask`, `a-depth.png`, `masks/a.png`, `conditioning/a.png`, kohya_ss's `masked_loss/a.png` beside `img/10_name/`) and
thumbnails (`a_thumb.jpg`, `a-150x150.jpg`, `thumbnails/a.jpg`) aren't read where the image `a` stands beside them, or beside their
folder. `check` and `run` count and name by kind all that is passed over; `launch` sends what `run` would read, and says what it doesn't
send. An image that can't be read is refused by name.

Images are brought to sRGB by what they say of their colours (ICC profile, PNG's cICP,
gAMA and cHRM, a camera's Adobe RGB, 16 bits; `check` and `run` name those that can't be), turned as their EXIF data says, laid on white
where they are transparent, resized with antialiasing so that the shorter side fits the model, and cropped at the centre. Nothing at these
places is ever changed.

Relative places of images, models and weights are relative to the file (a model's `owner/name` is a hub id where no such folder lies
beside it). `storage` is a folder or an fsspec URL; where it is relative it is relative to the working directory, as places on the command
line are. Earlier sweeps (`search.from`) are relative to the file too. `~` and `$VAR` (`${VAR}`) stand for their values in all of them, on
the machine where the command is given, also of `launch`."""

NOTES = {
    "target": """\
`holdout` takes one of three forms. What is held out is never trained on.

- a place: its images, without the shots (the same content, also re-encoded as another file);
- a number: so many of the shots are kept back;
- `{crossfit: K}`: every shot is held out once. A trial trains K models side by side, its metrics are their means, and after the
  search the winner is trained on all shots for its best number of steps. That model is the sweep's result.""",
    "method": "Methods are combined by giving several. `finetune`, the control, stands alone.",
    "search": """\
A trial's value is its best evaluation by the first objective among those within the constraints; where none is within them, the one
least past them. The same first objective picks the checkpoint that is kept and exported.

The first trial is the preset: every searched value at what its range names (`{log: [1e-6, 1e-4], preset: 1e-5}`), else at its
default where the range holds it; else a method's value is at the nearer
end of its range, and a value below `train` in the middle (a choice's is its first). The second is plain fine-tuning with the same
values below `train`. Both count among `trials`. A file without ranges begins with a trial at its own values instead.

`sampler` says how values are proposed:

| sampler | how | values that only some trials have |
|---|---|---|
| `tpe` | Optuna's multivariate TPE, with the chance of not failing as a factor | values that occur together are modelled together |
| `gp` | Optuna's Gaussian process; a proposal takes longer with each trial | an unused value counts as the middle of its range |
| `nsga2` | NSGA-II; its parents are the best of all that have ended, a quarter of `trials`, 50 at most | refused: drawn at random |
| `qmc` | quasi-random: the n-th proposal is the n-th scrambled Sobol point | yes |
| `random` | random | yes |

Each takes several objectives and constraints, which `qmc` and `random` don't look at.
All but `qmc` and `random` learn from stopped trials (by their best evaluation) and from those that failed by their values. A resumed search
proposes what the uninterrupted one would. No configuration is trained twice: where a sampler proposes one again, it is entered with the
first one's result; after ten in a row values are drawn at random.

With a `budget`, `trials` is the largest number. Where a limit is reached no further trial of the search begins; those that run go on to
their end (if one of them is an improvement, `patience` counts anew). Time is counted while trials of the search run, GPUs while they hold
them (a trial counts from the moment it is handed out, but all together no more GPUs than there are), machines while any of them runs, all
that belong to the Ray cluster. An improvement is a complete trial that no earlier one is as good as; with several objectives one on
a better front. The budget is the search's: reruns and the refit come after it and aren't counted; `check` says how long they take.
A limit may be raised later (`fewshot-ray resume FOLDER --extend hours=5`), and the search goes on.

`from` names earlier sweeps, each for its own trials alone (not for what it took over itself). Where source model, images (by their
content), seed, `evaluate` and all values that aren't searched here are the same, their trials enter with their results: the sampler knows
them, as complete, stopped or failed, and they are not trained again, counted in `trials` or shown in the leaderboard, which lists what this
sweep trained. Only the best of them is trained here once more, so that it can be confirmed and exported. Where something differs, the
values of the best complete trials are tried first instead, as far as they lie in the ranges. Both together are at most a third of `trials`,
after preset and plain fine-tuning. `check`, and `run` at its start, say how many of each sweep enter and why others don't.

`objectives` and `constraints` name metrics of `evaluate.metrics`; an objective's direction is the metric's own. Where the file has no
`objectives`, they are the first of `evaluate.metrics` if these are given, and otherwise, by what [metrics.md](metrics.md) says of
ordering trials:

| held out | objective | constraint |
|---|---|---|
| a place, or 5 or more shots, of a pre-trained diffusion model | `relative_error` | `memorisation: <= 0.05` |
| by cross-fitting, fewer than 5 shots, or with `evaluate.samples: 0` | `relative_loss` | |
| anything, of a diffusion model from scratch | `holdout_loss` | |
| anything, of a GAN | `kid` | |

Where the file has no `evaluate.metrics`, they are the objectives and the constraints' metrics. `grace_steps` and
`evaluate.every` are at most `train.steps`.""",
}


def main() -> None:
    """Print the page."""
    print(page(), end="")


def page() -> str:
    """The reference as Markdown."""
    return "\n\n".join([INTRODUCTION, *_sections(), _metrics()]) + "\n"


def _sections() -> Iterator[str]:
    yield f"## The file\n\n{_table(FileSpec)}"
    for name, field in FileSpec.model_fields.items():
        if name == "method":
            yield f"## `method`\n\n{NOTES[name]}"
            yield from (_one_of("method", method, entry.config) for method, entry in METHODS.items())
        elif model := _section(field):
            yield from _section_parts(name, model, level=2)
        if name == "source":
            yield from (_one_of("source.gan", gan, config) for gan, config in GANS.items())
        if name == "train":
            yield from (_one_of("train.params", params, config) for params, (config, _) in PARAMS.items())
            yield from _recipes()


def _recipes() -> Iterator[str]:
    """The fields of `train.gan` by architecture, and of the augmentations."""
    for architecture, recipe in RECIPES.items():
        defaults = _as_yaml(dict(TRAIN[architecture]))
        note = f"Besides, where the file gives none, `train` begins as `{defaults}`, and `evaluate.metrics` is `[kid]`."
        yield f"### `train.gan` of `{architecture}`\n\n{_summary(recipe)} {note}\n\n{_table(recipe, declared=True)}"
    for name, config in (("diffaugment", DiffAugmentConfig), ("ada", AdaConfig)):
        yield f"### `train.gan.{name}`\n\n{_summary(config)}\n\n{_table(config, declared=True)}"


def _section_parts(path: str, model: type[BaseModel], level: int) -> Iterator[str]:
    heading = f"{'#' * level} `{path}`"
    parts = [heading, _summary(model), _table(model), NOTES.get(path, "")]
    yield "\n\n".join(part for part in parts if part)
    for name, field in model.model_fields.items():
        if inner := _section(field):
            yield from _section_parts(f"{path}.{name}", inner, level=3)


def _one_of(path: str, name: str, config: type[BaseModel]) -> str:
    table = _table(config, declared=True) if config.model_fields else ""
    return "\n\n".join(part for part in (f"### `{path}.{name}`", _summary(config), table) if part)


def _summary(model: type[BaseModel]) -> str:
    return " ".join((model.__doc__ or "").split())


def _section(field: FieldInfo) -> type[BaseModel] | None:
    """The model of a section that is a field's type, or one of its alternatives; None without one."""
    found = [member.annotation for member in _expected(field).members()]
    models = [annotation for annotation in found if isinstance(annotation, type) and issubclass(annotation, BaseModel)]
    return models[0] if models else None


def _expected(field: FieldInfo) -> Expected:
    return Expected(field.annotation, tuple(field.metadata))


def _table(model: type[BaseModel], *, declared: bool = False) -> str:
    """A table of fields: value, default and meaning; with `declared` also the ranges of `search`."""
    own = declared_ranges(model)
    headings = ["field", "value", "default", "meaning", *(["`search`"] if declared and own else [])]
    rows = [headings, ["---"] * len(headings)]
    for name, field in fields_of(model).items():
        row = [f"`{name}`", describe([_expected(field)]), _default(field), " ".join((field.description or "").split())]
        if declared and own:
            row.append(own[name].describe() if name in own else "")
        rows.append(row)
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "must be given"
    by_case = isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("by_case")
    return "by case" if by_case else f"`{_as_yaml(field.default)}`"


def _as_yaml(value: object) -> str:
    """A default value as YAML; for a section only the fields that were given."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, BaseModel):
        return _as_yaml({name: getattr(value, name) for name in value.model_fields_set})
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_as_yaml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_as_yaml(item) for item in value) + "]"
    return str(value)


def _metrics() -> str:
    rows = ["| metric | better | made from | least number of held-out images | of |", "|---|---|---|---|---|"]
    sources = {"loss": "held-out images, no samples", "features": "the extractor's features", "perceptual": "LPIPS"}
    sources |= {"inception": "Inception's outputs", "dinov2": "DINOv2's features", "clip": "CLIP's features"}
    for name, metric in METRICS.items():
        better = "lower" if metric.direction == "min" else "higher"
        of = {None: "all models", "diffusion": "diffusion models", "gan": "GANs"}[metric.family]
        made_of = "`" + "` times `".join(metric.made_of) + "`" if metric.made_of else sources[metric.needs]
        rows.append(f"| `{name}` | {better} | {made_of} | {max(1, metric.real_images)} | {of} |")
    extractors = ", ".join(f"`{name}`" for name in EXTRACTORS)
    auto = f"Extractors are {extractors}, and one's own `package.module:callable`. "
    auto += "`auto` is `digits` for grey 8x8 models and `inception` for all others."
    return "\n".join(["## Metrics\n", *rows, "", auto + " What each metric computes is in [metrics.md](metrics.md)."])


if __name__ == "__main__":
    main()
