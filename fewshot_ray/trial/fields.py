"""Checks all fields of a run's file, also those of methods, without importing torch, so that errors are reported at once."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from pydantic import BaseModel

from fewshot_ray.spec.declared import NeedsImportError, declared, source, table
from fewshot_ray.spec.document import Document, located, parse_with_problems, ranges, read_text
from fewshot_ray.spec.expected import takes_whole_numbers
from fewshot_ray.spec.problems import Problem, apart_from, raise_any
from fewshot_ray.spec.sections import FileSpec
from fewshot_ray.spec.unknown_keys import written
from fewshot_ray.spec.validate import case_problems, checked_in_cases, endpoint_trees, problems_of
from fewshot_ray.spec.wording import nearest, show

Config = type[BaseModel] | None
"""A configuration's class; None where it can only be had by importing its module."""


@dataclass(frozen=True)
class Vocabulary:
    """The names that a file may use, with the class of their settings."""

    methods: Mapping[str, Config]
    params: Mapping[str, Config]
    gans: Mapping[str, Config]
    recipes: Mapping[str, Config]
    adm: Config
    metrics: tuple[str, ...]


@cache
def vocabulary() -> Vocabulary:
    """The vocabulary that the modules declare."""
    return Vocabulary(
        methods=dict(_methods()),
        params=_table("fewshot_ray.models.parameters", "PARAMS"),
        gans=_table("fewshot_ray.models.gan_source", "GANS"),
        recipes=_table("fewshot_ray.trial.gan_settings", "RECIPES"),
        adm=_config("fewshot_ray.models.adm", "AdmConfig"),
        metrics=tuple(table("fewshot_ray.metrics.suite", "METRICS")),
    )


def read_run_file(path: str | os.PathLike[str]) -> Document:
    """A run's file with its places resolved and its fields checked; checks between fields, which need torch, are left to `compose`.

    Raises UserError with a line per error.
    """
    document, problems = parse_with_problems(read_text(path), os.fspath(path))
    return _checked(located(document, path), problems)


def checked_document(text: str, name: str) -> Document:
    """`text` as a run's file; `name` is the file's name in messages. Raises UserError with a line per error."""
    return _checked(*parse_with_problems(text, name))


def _checked(document: Document, problems: list[Problem]) -> Document:
    said = {problem.path for problem in problems}
    raise_any(document, [*problems, *apart_from(said, [*field_problems(document), *_budget_problems(document)])])
    return document


def _budget_problems(document: Document) -> Iterator[Problem]:
    """A problem where the file has ranges but no `search.trials`, whose default of one trial would only run the preset."""
    if "trials" in _mapping(document.tree, "search"):
        return
    searched = [f"method.{name}" for name, settings in _mapping(document.tree, "method").items() if settings == "search"]
    params = _mapping(_mapping(document.tree, "train"), "params")
    searched += [f"train.params.{name}" for name, settings in params.items() if settings == "search"]
    if paths := [*ranges(document.tree), *searched]:
        right = "`trials: 24` below `search`" if "search" in document.tree else "`search: {trials: 24}`"
        yield Problem(paths[0], f"is to be searched, and nothing says with how many trials; {right}, say, is right")


def field_problems(document: Document) -> list[Problem]:
    """Errors of single fields, in all sections and in the settings of methods, parameters, GANs and ADM."""
    return checked_in_cases(document, _case_problems)


def _case_problems(document: Document) -> list[Problem]:
    document = replace(document, tree=_without_search(document.tree))
    found = case_problems(document, _is_whole)
    said = {problem.path for problem in found}
    for tree in endpoint_trees(document.tree):
        found += apart_from(said, _named_problems(tree, document))
    return [_as_method(problem, document) for problem in found]


def _named_problems(tree: Mapping[str, Any], document: Document) -> Iterator[Problem]:
    """Errors in the settings of what the file names; values that aren't mappings have been reported already."""
    words = vocabulary()
    for name, settings in _mapping(tree, "method").items():
        if name not in words.methods:
            yield Problem(f"method.{name}", f"there is no such method; {_known(name, words.methods)}")
        elif isinstance(settings, Mapping):
            yield from _settings_problems(words.methods[name], settings, f"method.{name}", document)
    yield from _params_problems(_mapping(tree, "train").get("params"), document)
    gan, adm = (_mapping(tree, "source").get(key) for key in ("gan", "adm"))
    if isinstance(gan, Mapping) and len(gan) == 1:
        yield from _gan_problems(*next(iter(gan.items())), _mapping(tree, "train").get("gan"), document)
    if isinstance(adm, Mapping):
        yield from _settings_problems(words.adm, adm, "source.adm", document)
    metrics = _mapping(tree, "evaluate").get("metrics")
    for index, metric in enumerate(metrics if isinstance(metrics, list) else ()):
        if isinstance(metric, str) and metric and metric not in words.metrics:
            yield Problem(f"evaluate.metrics.{index}", f"there is no {show(metric)}; {_known(metric, dict.fromkeys(words.metrics))}")


def _params_problems(params: Any, document: Document) -> Iterator[Problem]:
    ways = vocabulary().params
    for name, settings in ({params: {}} if isinstance(params, str) else params if isinstance(params, Mapping) else {}).items():
        if name and name not in ways:
            yield Problem("train.params", f"{show(name)} isn't known; {_known(name, ways)}")
        elif isinstance(settings, Mapping):
            yield from _settings_problems(ways[name], settings, f"train.params.{name}", document)


def _gan_problems(name: str, settings: Any, recipe: Any, document: Document) -> Iterator[Problem]:
    words = vocabulary()
    if name not in words.gans:
        yield Problem("source.gan", f"{show(name)} isn't known; {_known(name, words.gans)}")
        return
    if isinstance(settings, Mapping):
        yield from _settings_problems(words.gans[name], settings, f"source.gan.{name}", document)
    if isinstance(recipe, Mapping):
        yield from _settings_problems(words.recipes.get(name), recipe, "train.gan", document)


def _settings_problems(config: Config, settings: Mapping[str, Any], path: str, document: Document) -> list[Problem]:
    return [] if config is None else problems_of(config, settings, document=document, path=path)


def _as_method(problem: Problem, document: Document) -> Problem:
    """The problem, reworded where the unknown key is a method's name, which belongs below `method`."""
    section, _, name = problem.path.rpartition(".")
    if section not in ("", "train") or name not in vocabulary().methods:
        return problem
    settings = (document.tree if not section else _mapping(document.tree, section)).get(name)
    return Problem(problem.path, f"is a method; `{written(f'method.{name}', {} if settings is None else settings)}` is right", problem.line)


def _without_search(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The tree without `search` in `train.params`, since the declared ranges are valid."""
    params = _mapping(_mapping(tree, "train"), "params")
    if "search" not in [item for item in params.values() if isinstance(item, str)]:
        return dict(tree)
    without = {name: {} if settings == "search" else settings for name, settings in params.items()}
    return {**tree, "train": {**tree["train"], "params": without}}


def _is_whole(path: str) -> bool | None:
    """Whether a field takes only whole numbers, also below `method` or `train.params`; None where that isn't known."""
    keys, words = path.split("."), vocabulary()
    tables = {("method",): words.methods, ("train", "params"): words.params}
    for start, configs in tables.items():
        config = configs.get(keys[len(start)]) if tuple(keys[: len(start)]) == start and len(keys) > len(start) + 1 else None
        if config is not None:
            return takes_whole_numbers(config, keys[len(start) + 1 :])
    return takes_whole_numbers(FileSpec, keys)


def _known(name: str, names: Mapping[str, object]) -> str:
    near = nearest(name, names)
    return f"{', '.join(names)} would be right" + (f" (did you mean {near}?)" if near else "")


def _mapping(tree: Mapping[str, Any], section: str) -> Mapping[str, Any]:
    found = tree.get(section)
    return found if isinstance(found, Mapping) else {}


def _methods() -> Iterator[tuple[str, Config]]:
    """Every `@register("name", Config)` in the modules that the package of methods imports."""
    for statement in source("fewshot_ray.methods").tree.body:
        if isinstance(statement, ast.ImportFrom) and statement.module == "fewshot_ray.methods":
            for alias in statement.names:
                yield from _registered(f"fewshot_ray.methods.{alias.name}")


def _registered(module: str) -> Iterator[tuple[str, Config]]:
    for function in source(module).tree.body:
        for call in function.decorator_list if isinstance(function, ast.FunctionDef) else ():
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in ("register", "register_gan"):
                name, config = call.args[:2]
                assert isinstance(name, ast.Constant)
                yield str(name.value), _config(module, config.id) if isinstance(config, ast.Name) else None


def _table(module: str, name: str) -> dict[str, Config]:
    """The configurations of a dict in a module by name: each value is one, or a tuple that starts with one."""
    found: dict[str, Config] = {}
    for key, value in table(module, name).items():
        first = value.elts[0] if isinstance(value, ast.Tuple) else value
        found[key] = _config(module, first.id) if isinstance(first, ast.Name) else None
    return found


def _config(module: str, name: str) -> Config:
    try:
        found = declared(module, name)
    except NeedsImportError:
        return None
    return found if isinstance(found, type) and issubclass(found, BaseModel) else None
