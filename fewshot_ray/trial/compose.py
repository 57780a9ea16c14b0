"""Composes typed trials from a run's file: its sections and the methods' own configurations."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pydantic import BaseModel

from fewshot_ray.methods import METHODS
from fewshot_ray.methods.recipe import RecipeConfig
from fewshot_ray.methods.registry import MethodConfig, declared_ranges
from fewshot_ray.metrics.extractors import EXTRACTORS
from fewshot_ray.metrics.extractors.own import is_own
from fewshot_ray.metrics.suite import METRICS, needed
from fewshot_ray.models.adm import AdmConfig
from fewshot_ray.models.gan_source import GanConfig
from fewshot_ray.models.parameters import PARAMS, ParamsConfig
from fewshot_ray.spec.alternatives import mapped
from fewshot_ray.spec.cases import over_cases
from fewshot_ray.spec.cross_checks import cross_checks
from fewshot_ray.spec.document import Document, substitute
from fewshot_ray.spec.places import places
from fewshot_ray.spec.problems import Problem, raise_any
from fewshot_ray.spec.ranges import Choice, Range
from fewshot_ray.spec.sections import FileSpec, TrainSpec
from fewshot_ray.spec.space import METHOD, Space, flat_trees
from fewshot_ray.spec.space import PLAIN as PLAIN
from fewshot_ray.spec.validate import endpoint_trees, load
from fewshot_ray.spec.wording import nearest
from fewshot_ray.trial.defaults import with_defaults
from fewshot_ray.trial.fields import field_problems
from fewshot_ray.trial.gan_settings import RECIPES, architecture_of, family_problems, gan_configs, gan_misplaced

Value = TypeVar("Value")


@dataclass(frozen=True)
class TrialSpec:
    """One trial's settings, every range replaced by a value."""

    file: FileSpec
    tree: dict[str, Any]
    """The tree that `file` was read from; written beside the trial's results."""
    methods: Mapping[str, MethodConfig]
    adm: AdmConfig | None
    gan: GanConfig | None
    """The GAN's architecture, where the source is one."""
    recipe: RecipeConfig | None
    """The GAN's training recipe."""
    params: str
    params_config: ParamsConfig
    seed: int
    """Seed of training; data split and evaluation noise use the file's own seed, the same in all trials."""
    refit_steps: int | None = None
    """Number of steps of a refit, which trains on all shots with nothing held out; None for an ordinary trial."""

    @property
    def weights(self) -> str | None:
        """The place of the weights that training starts from; None for a model from scratch."""
        return self.file.source.model or next((part.weights for part in (self.adm, self.gan) if part is not None), None)


def effective_tree(spec: TrialSpec) -> dict[str, Any]:
    """All values of the trial, including defaults."""
    tree = spec.file.model_dump(mode="json")
    tree["method"] = {name: config.model_dump(mode="json") for name, config in spec.methods.items()}
    tree["train"]["params"] = {spec.params: spec.params_config.model_dump(mode="json")}
    if spec.gan is not None and spec.recipe is not None:
        tree["source"]["gan"] = {architecture_of(spec.file): spec.gan.model_dump(mode="json")}
        tree["train"]["gan"] = spec.recipe.model_dump(mode="json")
    return tree


def expand(document: Document) -> Document:
    """`method: {sdft: search}` and `train.params: {lora: search}` replaced by the ranges declared beside their fields.

    What the file leaves open and depends on other fields is filled in (`defaults.with_defaults`). Raises UserError.
    """
    tree = with_defaults(document.tree)
    if "method" in tree:
        configs = {name: method.config for name, method in METHODS.items()}
        tree["method"] = mapped(tree["method"], lambda methods: _searched(_given(methods), configs))
    train = tree.get("train")
    if isinstance(train, dict) and "params" in train:
        ways = {name: way for name, (way, _) in PARAMS.items()}
        tree["train"] = {**train, "params": mapped(train["params"], lambda params: _searched(params, ways))}
    return replace(document, tree=tree)


def _searched(settings: Any, configs: Mapping[str, type[BaseModel]]) -> Any:
    """Settings by name, with the declared ranges in place of `search`; anything but a mapping is unchanged."""
    if not isinstance(settings, dict):
        return settings
    return {name: dict(declared_ranges(configs[name])) if one == "search" and name in configs else one for name, one in settings.items()}


def _given(methods: Any) -> Any:
    """Methods' settings by name, with none in place of nothing."""
    return {name: {} if one is None else one for name, one in methods.items()} if isinstance(methods, dict) else methods


def compose(document: Document, *, seed: int | None = None, refit_steps: int | None = None) -> TrialSpec:
    """The trial that a tree without ranges describes. Raises UserError."""
    raise_any(document, field_problems(document))
    spec = _typed(document, seed=seed, refit_steps=refit_steps)
    raise_any(document, _problems_between(spec))
    return spec


def _typed(document: Document, *, seed: int | None = None, refit_steps: int | None = None) -> TrialSpec:
    """The trial with every field valid by itself; checks between fields are left to the caller."""
    file = load(FileSpec, document.tree, document=document)
    raise_any(document, _misplaced(file))
    methods = {
        name: load(METHODS[name].config, settings or {}, document=document, path=f"method.{name}") for name, settings in file.method.items()
    }
    adm = None if file.source.adm is None else load(AdmConfig, file.source.adm, document=document, path="source.adm")
    gan, recipe = gan_configs(file, document)
    params, params_config = _params_config(file.train, document)
    return TrialSpec(
        file, document.tree, methods, adm, gan, recipe, params, params_config, file.seed if seed is None else seed, refit_steps
    )


def check_document(document: Document) -> tuple[Document, FileSpec]:
    """The expanded document and its sections, valid at both ends of every range. Raises UserError with a line per error."""
    expanded = expand(document)
    raise_any(expanded, field_problems(expanded))
    raise_any(expanded, over_cases(expanded, _case_problems))
    files = [_typed(replace(expanded, tree=next(endpoint_trees(tree)))).file for tree in flat_trees(expanded.tree)]
    return expanded, next((file for file in files if PLAIN not in file.method), files[0])


def _case_problems(case: Document) -> list[Problem]:
    """What is wrong between the fields of a document in which every trial has every range."""
    specs = [_typed(replace(case, tree=tree)) for tree in endpoint_trees(case.tree)]
    pointless = [problem for name in specs[0].methods for problem in _pointless(name, case.tree["method"][name] or {})]
    return [*pointless, *(problem for spec in specs for problem in _problems_between(spec))]


def preset_specs(document: Document) -> list[TrialSpec]:
    """The trials at the presets of each combination of alternatives: one where there are none. The document's `search` is expanded."""
    flat = [replace(document, tree=tree) for tree in flat_trees(document.tree)]
    return [_typed(with_values(one, preset_values(one))) for one in flat]


def _pointless(name: str, settings: Mapping[str, Any]) -> Iterator[Problem]:
    found = METHODS[name].config.misfit(settings)
    if found is not None:
        yield Problem(f"method.{name}.{found[0]}", found[1])


def _misplaced(file: FileSpec) -> Iterator[Problem]:
    """Settings that no single trial can have."""
    for name, settings in file.method.items():
        if settings == "search":
            yield Problem(f"method.{name}", "'search' stands for ranges, which a single trial can't have; values would be right")
    if isinstance(file.train.params, dict) and len(file.train.params) != 1:
        yield Problem("train.params", f"{len(file.train.params)} ways are given; one of {', '.join(PARAMS)} would be right")
    yield from gan_misplaced(file)


def _params_config(train: TrainSpec, document: Document) -> tuple[str, ParamsConfig]:
    name = train.params if isinstance(train.params, str) else next(iter(train.params))
    settings = {} if isinstance(train.params, str) else train.params[name]
    return name, load(PARAMS[name][0], settings, document=document, path=f"train.params.{name}")


def _problems_between(spec: TrialSpec) -> Iterator[Problem]:
    """Combinations of settings that are wrong although each setting by itself is right."""
    yield from _combination_problems(spec.methods)
    yield from _batch_problems(spec.methods, spec.file)
    yield from family_problems(spec.file, spec.methods, spec.gan)
    yield from _metric_problems(spec.file)
    yield from (Problem(*problem) for problem in cross_checks(spec.file))


def _combination_problems(methods: Mapping[str, MethodConfig]) -> Iterator[Problem]:
    if not methods:
        yield Problem("method", f"none is given; one or several of {', '.join(METHODS)} would be right")
    if PLAIN in methods and len(methods) > 1:
        yield Problem(f"method.{PLAIN}", "it is the control and can't be combined; leave it out (it is a sweep's second trial anyway)")


def _batch_problems(methods: Mapping[str, MethodConfig], file: FileSpec) -> Iterator[Problem]:
    for name, config in methods.items():
        if file.train.batch_size < config.least_batch:
            yield Problem(
                "train.batch_size",
                f"{file.train.batch_size} given, but {name} compares the images of a batch; {config.least_batch} or more would be right",
            )
        if config.least_batch > 1 and file.resources.workers > file.train.batch_size:
            yield Problem(
                "resources.workers",
                f"{file.resources.workers} workers for batches of {file.train.batch_size}, but {name} needs an image of every worker; "
                f"at most {file.train.batch_size} would be right",
            )


UNTRAINED = {
    "relative_loss": "holdout_loss",
    "relative_distance": "kid",
    "relative_error": "kid",
    "alignment": "pairwise_distance",
    "alignment_lpips": "pairwise_lpips",
}
"""What measures the like without a source model, for metrics that are relative to it."""


def _metric_problems(file: FileSpec) -> Iterator[Problem]:
    extractors = ("auto", *EXTRACTORS)
    if file.evaluate.extractor not in extractors and not is_own(file.evaluate.extractor):
        near = nearest(file.evaluate.extractor, extractors)
        hint = f" (did you mean {near}?)" if near else ""
        known = f"{', '.join(extractors)} or a package.module:callable"
        yield Problem("evaluate.extractor", f"'{file.evaluate.extractor}' isn't known; {known} would be right{hint}")
    if needed(file.evaluate.metrics) - {"loss"} and file.evaluate.samples < 2:
        yield Problem("evaluate.samples", f"{file.evaluate.samples} given; metrics of samples need at least 2")
    for index, name in enumerate(file.evaluate.metrics):
        if name in METRICS and METRICS[name].relative and not file.source.pretrained:
            right = UNTRAINED.get(name, name.replace("relative", "loss"))
            yield Problem(
                f"evaluate.metrics.{index}", f"{name} is relative to a pre-trained source, and there is none; {right} would be right"
            )
    for name, direction in file.search.objectives.items():
        if name in METRICS and METRICS[name].direction != direction:
            yield Problem(f"search.objectives.{name}", f"'{direction}' given; better is '{METRICS[name].direction}' for {name}")


def search_trials(document: Document, file: FileSpec, *, known: int = 0) -> int:
    """Trials of the search: `search.trials`, but at most the number of configurations, since none is trained twice.

    `known`: number of configurations that earlier sweeps have trained and this one doesn't.
    Plain fine-tuning beside methods is a configuration in addition to those of the ranges.
    """
    beside = file.search.include_plain and not has_plain(document)
    return int(min(file.search.trials, Space(document.tree).count + beside - known))


def has_plain(document: Document) -> bool:
    """Whether plain fine-tuning is what the document trains, or one of its alternatives."""
    methods = document.tree["method"]
    return PLAIN in (methods.values if isinstance(methods, Choice) else methods)


def preset_values(document: Document) -> dict[str, Any]:
    """The values of trial 0 by path: a range's own preset; else the field's default if in the range; else the range's middle.

    For a field of a method whose default is outside, the nearer end; for a choice, its first value.
    """
    return Space(document.tree).choose(lambda parameter: _preset(parameter.path, parameter.range))


def plain_preset(document: Document) -> dict[str, Any]:
    """The values of plain fine-tuning's trial by path: the presets of what it has, and `method` where that is searched and has it."""
    if not has_plain(document):
        return preset_values(plain(document))
    return Space(document.tree).choose(lambda one: PLAIN if one.path == METHOD else _preset(one.path, one.range))


def _preset(path: str, range_: Range) -> Any:
    if not isinstance(range_, Choice) and range_.preset is not None:
        return range_.preset
    default = _default_of(path)
    if range_.contains(default):
        return default
    if isinstance(range_, Choice):
        return range_.values[0]
    if path.startswith("method.") and isinstance(default, (int, float)):
        return min(range_.endpoints(), key=lambda end: abs(end - default))
    return middle(range_)


def middle(range_: Range) -> Any:
    """The middle of a range (geometric for a log range); for a choice its first value."""
    if isinstance(range_, Choice):
        return range_.values[0]
    low, high = range_.endpoints()
    if getattr(range_, "log", False):
        return math.sqrt(low * high)
    return (low + high) // 2 if isinstance(low, int) else (low + high) / 2


def _default_of(path: str) -> Any:
    section, *keys = path.split(".")
    if path == METHOD:
        return None
    if path.startswith("train.gan."):
        return next((d for r in RECIPES.values() if (d := _field_default(r, keys[1:])) is not None), None)
    if section == "method":
        return _field_default(METHODS[keys[0]].config, keys[1:])
    if keys[0] == "params" and len(keys) > 1:
        return _field_default(PARAMS[keys[1]][0], keys[2:])
    return _field_default(TrainSpec, keys)


def _field_default(model: type[BaseModel], keys: list[str]) -> Any:
    value: Any = model.model_fields[keys[0]].default if keys and keys[0] in model.model_fields else None
    for key in keys[1:]:
        value = getattr(value, key, None)
    return value


def with_values(document: Document, values: Mapping[str, Any]) -> Document:
    """The document with a value in place of every range."""
    return replace(document, tree=substitute(document.tree, values))


def absolute_places(document: Document, own: str) -> Document:
    """Local paths made absolute, links followed: a sweep resumes from anywhere. Raises UserError where nothing is at one.

    Those below `own`, the URL of the sweep's folder, stay: what `launch` sent is stored there once the file is found to be right.
    """
    tree: dict[str, Any] = copy.deepcopy(document.tree)
    for place in places(tree):
        if place.bare.startswith(f"{own}/"):
            continue
        if place.is_missing and not place.is_sweep:  # a sweep that has begun doesn't need the earlier ones
            raise document.missing(place)
        if (here := place.here) is not None:
            place.put(str(here))
    return replace(document, tree=tree)


def plain(document: Document) -> Document:
    """The same run with plain fine-tuning instead of its methods."""
    return replace(document, tree={**document.tree, "method": {PLAIN: {}}})


def plain_values(values: Mapping[str, Value]) -> dict[str, Value]:
    """Those of some values by dotted path that plain fine-tuning has too: all but the methods, and what is theirs."""
    return {path: value for path, value in values.items() if path != METHOD and not path.startswith(f"{METHOD}.")}
