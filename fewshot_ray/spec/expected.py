"""Describes in words what a pydantic model expects at a path."""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fewshot_ray.spec.wording import show


class Expected(NamedTuple):
    """A type and its bounds, as pydantic stores them."""

    annotation: Any
    metadata: tuple[Any, ...] = ()

    def members(self) -> list[Expected]:
        """The alternatives of a union, each with its bounds; `[self]` for any other type."""
        if get_origin(self.annotation) is Annotated:
            inner, *metadata = get_args(self.annotation)
            return Expected(inner, (*self.metadata, *_flat(metadata))).members()
        if get_origin(self.annotation) in (Union, types.UnionType):
            return [member for part in get_args(self.annotation) for member in Expected(part, self.metadata).members()]
        return [self]

    @property
    def is_list(self) -> bool:
        """Whether values of this type are lists; the type may be no union."""
        return (get_origin(self.annotation) or self.annotation) in (list, tuple)

    def below(self, key: str | int) -> list[Expected]:
        """What is expected at `key` of a value of this type; empty where that isn't known."""
        found: list[Expected] = []
        for member in self.members():
            arguments = get_args(member.annotation)
            if model := _model(member.annotation):
                if key in (named := fields_of(model)):
                    found.append(_of_field(named[str(key)]))
            elif get_origin(member.annotation) in (dict, list) and arguments:
                found.append(Expected(arguments[-1]))
        return found


def fields_of(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of a model by the names that they have in a file."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def expected_at(model: type[BaseModel], keys: Sequence[str | int]) -> list[Expected]:
    """What `model` expects at the end of `keys`, as alternatives; empty where the model doesn't define it."""
    found = [Expected(model)]
    for key in keys:
        found = [below for expected in found for below in expected.below(key)]
    return found


def whole_numbers(alternatives: Iterable[Expected]) -> bool | None:
    """Whether only whole numbers are expected, not any number; None where no number is expected."""
    numbers = {member.annotation for expected in alternatives for member in expected.members()} & {int, float}
    return numbers == {int} if numbers else None


def takes_whole_numbers(model: type[BaseModel], keys: Sequence[str | int]) -> bool | None:
    """Whether the field at the end of `keys` takes only whole numbers; None where it takes no numbers, or isn't known."""
    return whole_numbers(expected_at(model, keys))


def known_keys(alternatives: Iterable[Expected]) -> list[str]:
    """The keys that models among the alternatives have."""
    members = [member for expected in alternatives for member in expected.members()]
    return [name for member in members if (model := _model(member.annotation)) for name in fields_of(model)]


def paths_of_key(model: type[BaseModel], key: str, path: tuple[str, ...] = ()) -> Iterator[str]:
    """Dotted paths at which `model` and the models in it have a field named `key`."""
    for name, field in fields_of(model).items():
        if name == key:
            yield ".".join((*path, name))
        for member in _of_field(field).members():
            if inner := _model(member.annotation):
                yield from paths_of_key(inner, key, (*path, name))


def describe(alternatives: Iterable[Expected], *, bounds: bool = True) -> str:
    """The alternatives in words, e.g. `'auto' or a whole number of at least 1`; without `bounds` the types alone."""
    members = [member for expected in alternatives for member in expected.members()]
    phrases = [_phrase(member.annotation, member.metadata if bounds else ()) for member in members]
    ordered = sorted(dict.fromkeys(phrases), key=lambda phrase: phrase == "null")
    return " or ".join(part for part in (", ".join(ordered[:-1]), *ordered[-1:]) if part)


def _phrase(annotation: Any, metadata: tuple[Any, ...]) -> str:
    if annotation in (None, types.NoneType):
        return "null"
    if get_origin(annotation) is Literal:
        return " or ".join(show(value) for value in get_args(annotation))
    if annotation is bool:
        return "true or false"
    if annotation in (int, float):
        return ("a whole number" if annotation is int else "a number") + _bounds(metadata)
    if annotation is str:
        pattern = _first(metadata, "pattern")
        return f"text of the form {pattern}" if pattern else "text"
    if model := _model(annotation):
        named = fields_of(model)
        names = [name for name, field in named.items() if field.is_required()] or list(named)
        return f"a mapping with {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
    origin, arguments = get_origin(annotation) or annotation, get_args(annotation)
    if origin in (list, tuple):
        each = f", each {describe([Expected(arguments[0])])}" if arguments and arguments[0] is not Any else ""
        return f"a list{_length(metadata)}{each}"
    if origin is dict:
        inner = describe([Expected(arguments[-1])]) if arguments else "any value"
        return "a mapping" + ("" if inner == "any value" else f" of names to {inner}")
    return "any value" if annotation is Any else f"a value of type {getattr(annotation, '__name__', annotation)}"


def _length(metadata: tuple[Any, ...]) -> str:
    least, most = _first(metadata, "min_length"), _first(metadata, "max_length")
    return f" of {'' if least == most else 'at least '}{least}" if least else ""


def _bounds(metadata: tuple[Any, ...]) -> str:
    words = {"gt": "above", "ge": "of at least", "lt": "below", "le": "of at most"}
    parts = [f"{word} {show(_first(metadata, name))}" for name, word in words.items() if _first(metadata, name) is not None]
    return f" {' and '.join(parts)}".replace("and of at", "and at") if parts else ""


def _first(metadata: tuple[Any, ...], name: str) -> Any:
    return next((value for item in metadata if (value := getattr(item, name, None)) is not None), None)


def _flat(metadata: Iterable[Any]) -> list[Any]:
    return [part for item in metadata for part in (item.metadata if isinstance(item, FieldInfo) else [item])]


def _of_field(field: FieldInfo) -> Expected:
    return Expected(field.annotation, tuple(_flat(field.metadata)))


def _model(annotation: Any) -> type[BaseModel] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
