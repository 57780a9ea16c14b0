"""A GAN in a run's file: its architecture, its training recipe, and their demands on other sections."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fewshot_ray.methods import METHODS
from fewshot_ray.methods.fastgan import FastGanRecipe
from fewshot_ray.methods.recipe import RecipeConfig
from fewshot_ray.methods.registry import MethodConfig
from fewshot_ray.methods.stylegan2 import StyleGan2Recipe
from fewshot_ray.metrics.suite import METRICS
from fewshot_ray.models.gan_source import GANS, GanConfig, StyleGan2Config
from fewshot_ray.spec.document import Document
from fewshot_ray.spec.problems import Problem
from fewshot_ray.spec.sections import FileSpec
from fewshot_ray.spec.validate import load
from fewshot_ray.spec.wording import show

RECIPES: Mapping[str, type[RecipeConfig]] = {"stylegan2": StyleGan2Recipe, "fastgan": FastGanRecipe}
TRAIN: Mapping[str, Mapping[str, Any]] = {
    # An average whose half-life is 10,000 images, at batches of 4.
    "stylegan2": {"lr": 2e-3, "betas": [0.0, 0.99], "batch_size": 4, "gradient_clip": None, "ema": {"decay": 0.99972, "warmup": True}},
    "fastgan": {"lr": 2e-4, "betas": [0.5, 0.999], "batch_size": 8, "gradient_clip": None, "ema": {"decay": 0.999, "warmup": True}},
}
"""Defaults of the `train` section for a GAN, by architecture."""
METRIC = "kid"


def architecture_of(file: FileSpec) -> str:
    """The architecture's name, the key below `source.gan`."""
    assert file.source.gan is not None
    return next(iter(file.source.gan))


def gan_misplaced(file: FileSpec) -> Iterator[Problem]:
    """Settings that no GAN can be built from."""
    gan = file.source.gan
    if gan is None:
        if file.train.gan:
            yield Problem("train.gan", "given, but the source is no GAN; leave it out")
        return
    if len(gan) != 1:
        yield Problem("source.gan", f"{len(gan)} architectures are given; one of {', '.join(GANS)} would be right")
        return
    name, settings = next(iter(gan.items()))
    settings = settings or {}
    if not isinstance(settings, Mapping):
        yield Problem(f"source.gan.{name}", f"{show(settings)} is given; a mapping of its settings, or nothing (its defaults), is right")
    elif settings.get("weights") is not None and len(settings) > 1:
        other = next(key for key in settings if key != "weights")
        yield Problem(f"source.gan.{name}.{other}", "given beside weights, which say how the networks are built; leave it out")
    if file.train.gan.get("ada") is not None and file.train.gan.get("diffaugment") is not None:
        yield Problem("train.gan", "ada and diffaugment are both given; one of them would be right")


def gan_configs(file: FileSpec, document: Document) -> tuple[GanConfig | None, RecipeConfig | None]:
    """Architecture and recipe, typed; None for both where the source is no GAN. Raises UserError."""
    if file.source.gan is None:
        return None, None
    name, settings = next(iter(file.source.gan.items()))
    config = load(GANS[name], settings or {}, document=document, path=f"source.gan.{name}")
    recipe = load(RECIPES[name], file.train.gan, document=document, path="train.gan")
    if recipe.ada is not None and recipe.diffaugment is not None:
        recipe = recipe.model_copy(update={"diffaugment": None})
    return config, recipe


def family_problems(file: FileSpec, methods: Mapping[str, MethodConfig], gan: GanConfig | None) -> Iterator[Problem]:
    """Methods, metrics and settings that the source's family doesn't have, and a GAN's batch that workers can't share."""
    family = "diffusion" if gan is None else "gan"
    for name in methods:
        if family not in METHODS[name].families:
            what = "a diffusion model" if gan is None else "a GAN"
            fitting = ", ".join(other for other, method in METHODS.items() if family in method.families)
            yield Problem(f"method.{name}", f"it isn't for {what}; {fitting} would be right")
    for index, name in enumerate(file.evaluate.metrics):
        metric = METRICS.get(name)
        if metric is not None and metric.family not in (None, family):
            fitting = ", ".join(other for other, one in METRICS.items() if one.family in (None, family))
            what = "diffusion models" if gan is None else "GANs"
            yield Problem(f"evaluate.metrics.{index}", f"{name} isn't measured of {what}; {fitting} are")
    if gan is not None:
        yield from _gan_problems(file, methods, gan)


def _gan_problems(file: FileSpec, methods: Mapping[str, MethodConfig], gan: GanConfig) -> Iterator[Problem]:
    for name, config in methods.items():
        if config.needs_source and gan.weights is None:
            yield Problem(
                f"method.{name}", f"keeps what a source model has learned; source.gan.{architecture_of(file)}.weights would be right"
            )
    refused = {"params": "full", "micro_batch": "auto", "compile": False, "label_dropout": 0.1, "weight_decay": 0.0}
    for key, right in refused.items():
        if getattr(file.train, key) != right:
            yield Problem(f"train.{key}", f"{show(getattr(file.train, key))} given; a GAN's is {show(right)}, so leave it out")
    if file.target.labels is not None:
        yield Problem("target.labels", f"'{file.target.labels}' given, but a GAN has no classes here; leave it out")
    groups = {f"method.{name}": config.group_size for name, config in methods.items()}
    if isinstance(gan, StyleGan2Config):
        groups["the discriminator's stddev_group"] = min(gan.stddev_group, file.train.batch_size)
    yield from _group_problems(file, groups)


def _group_problems(file: FileSpec, groups: Mapping[str, int]) -> Iterator[Problem]:
    """Checks that batch and workers' shares are multiples of the group size, so that a step is the same for any number of workers."""
    batch, workers = file.train.batch_size, range(min(file.resources.min_workers, file.resources.workers), file.resources.workers + 1)
    for what, group in groups.items():
        if batch % group:
            fewer, more = batch // group * group, (batch // group + 1) * group
            right = f"{fewer} or {more}" if fewer else str(more)
            yield Problem("train.batch_size", f"{batch} images are no whole groups of {group} ({what}); {right} is right")
            continue
        odd = [count for count in workers if (batch // group) % count]
        if odd and group > 1:
            right = ", ".join(str(count) for count in range(1, batch // group + 1) if batch // group % count == 0)
            where = "resources.workers" if odd[-1] == file.resources.workers else "resources.min_workers"
            yield Problem(
                where,
                f"{odd[-1]} workers can't share {batch // group} groups of {group} images ({what}); of {right} any, or a larger "
                "train.batch_size, is right (min_workers included)",
            )
