"""Parses a cluster file's text: the tree that Ray would read, and the line of each value."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]  # as Ray itself, so that `no` or `010` is read as by `ray up`

from fewshot_ray.errors import UserError
from fewshot_ray.spec.wording import nearest, show

_MAX_BYTES = 256 * 1024
_MAX_VALUES = 5_000
_MAX_DEPTH = 40
_PLACEHOLDER = re.compile(r"<[a-z][a-z -]*[a-z]>(?!\w)|\bYOUR_[A-Z_]+\b")
"""Placeholders: `<bucket>` in this project's cluster files, `YOUR_HEAD_NODE_HOSTNAME` in Ray's."""


_TYPES = {
    "object": "a mapping",
    "array": "a list",
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "null": "null",
}

Place = tuple[str | int, ...]


@dataclass(frozen=True)
class Source:
    """A cluster file's tree, and the line (from 1) of each value."""

    name: str
    tree: dict[str, Any]
    lines: Mapping[Place, int]

    @classmethod
    def read(cls, path: Path) -> Source:
        """Read the file at `path`. Raises UserError where it isn't a YAML mapping, or has values that no cluster file may have."""
        text = _text(path)
        root = _parsed(path, text)
        if not isinstance(root, yaml.MappingNode):
            raise UserError(
                f"{path}: holds no mapping of names to values; a cluster file of Ray's (cluster_name, provider, ...) would be right"
            )
        lines = dict(_lines(path, root))  # first, since constructing the tree replaces merge keys (<<)
        source = cls(str(path), _constructed(path, root), lines)
        source.check_values(source.tree)
        return source

    @property
    def is_manifest(self) -> bool:
        """Whether the file is a Kubernetes manifest, not for `ray up`."""
        return "apiVersion" in self.tree

    def error(self, place: Place, message: str) -> UserError:
        """A UserError with file and line; the line is that of the nearest path above where `place` isn't in the file."""
        above = place
        while above and above not in self.lines:
            above = above[:-1]
        where = f"{self.name}, line {self.lines[above]}" if above else self.name
        return UserError(f"{where}: {_dotted(place)}: {message}" if place else f"{where}: {message}")

    def check_schema(self, schema: Mapping[str, Any], tree: Mapping[str, Any] | None = None) -> None:
        """Raise UserError for the first violation of a JSON schema by the file's tree, or by `tree` where given."""
        import jsonschema  # type: ignore[import-untyped]

        found = jsonschema.Draft7Validator(schema).iter_errors(self.tree if tree is None else tree)
        errors = sorted(found, key=lambda error: [str(key) for key in error.absolute_path])
        if errors:
            raise self.schema_error(errors[0])

    def schema_error(self, error: Any) -> UserError:
        """A violation of a JSON schema as a UserError."""
        place = tuple(error.absolute_path)
        if error.validator == "additionalProperties":
            known = list(error.schema.get("properties", {}))
            key = next(key for key in error.instance if key not in known)
            guess = nearest(key, known)
            return self.error(
                (*place, key), f"is no field of Ray's; {repr(guess) if guess else 'one of ' + ', '.join(known)} would be right"
            )
        if error.validator == "required":
            missing = next(key for key in error.validator_value if key not in error.instance)
            return self.error((*place, missing), "is missing; Ray needs it")
        if error.validator == "type":
            types = error.validator_value if isinstance(error.validator_value, list) else [error.validator_value]
            return self.error(place, f"is {show(error.instance)}; {' or '.join(_TYPES[str(name)] for name in types)} would be right")
        if error.validator == "minimum":
            return self.error(place, f"is {show(error.instance)}; at least {error.validator_value} would be right")
        return self.error(place, " ".join(str(error.message).split()))

    def check_values(self, value: Any, place: Place = ()) -> None:
        """Raise UserError for values that JSON doesn't have (Ray sends the file to the head as JSON), and for placeholders."""
        if isinstance(value, dict):
            for key, item in value.items():
                if not isinstance(key, str):
                    raise self.error(place, f"the key {show(key)} is no text; quotes around it would be right")
                self.check_values(key, (*place, key))
                self.check_values(item, (*place, key))
        elif isinstance(value, list):
            for index, item in enumerate(value):
                self.check_values(item, (*place, index))
        elif isinstance(value, str):
            if found := _PLACEHOLDER.search(value):
                raise self.error(place, f"{found[0]} is still to be filled in: a value of yours in its place would be right")
        elif isinstance(value, float) and not math.isfinite(value):
            raise self.error(place, f"{value} is not a finite number")
        elif not isinstance(value, (bool, int, float, type(None))):
            raise self.error(place, f"is read as a {type(value).__name__} ({value}); quotes around it would be right")


def _lines(path: Path, root: yaml.Node) -> Iterator[tuple[Place, int]]:
    """The line of every path. Raises UserError for a key that is given twice."""
    count = itertools.count(1)

    def below(node: yaml.Node, place: Place) -> Iterator[tuple[Place, int]]:
        line = node.start_mark.line + 1
        if next(count) > _MAX_VALUES or len(place) > _MAX_DEPTH:
            raise UserError(f"{path}, line {line}: more than {_MAX_VALUES} values or {_MAX_DEPTH} levels; a cluster file has some hundred")
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                yield (*place, index), item.start_mark.line + 1
                yield from below(item, (*place, index))
        if isinstance(node, yaml.MappingNode):
            first: dict[str, int] = {}
            for key, value in node.value:
                name, line = str(key.value), key.start_mark.line + 1
                if name in first:
                    raise UserError(
                        f"{path}, line {line}: {_dotted((*place, name))}: is given twice (first in line {first[name]}); once is right"
                    )
                first[name] = line
                yield (*place, name), line
                yield from below(value, (*place, name))

    return below(root, ())


def _dotted(place: Place) -> str:
    return ".".join(str(key) for key in place)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file; the path of a cluster file is right (cluster.yaml is an example)") from error
    except IsADirectoryError as error:
        raise UserError(f"{path}: is a folder; the path of a cluster file is right") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}); a readable YAML file is right") from error
    if len(content) > _MAX_BYTES:
        raise UserError(f"{path}: is larger than {_MAX_BYTES // 1024} KiB; a cluster file is right")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text (byte {error.start}); a YAML file is right") from error


def _parsed(path: Path, text: str) -> yaml.Node | None:
    """The root of the YAML node graph; for a Kubernetes manifest that of its only RayCluster, among other objects."""
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if getattr(event, "tag", None) is not None:
                line = event.start_mark.line + 1
                raise UserError(f"{path}, line {line}: the tag {show(event.tag)} is not known; a value without a tag is right")
        documents = list(yaml.compose_all(text, Loader=yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(f"{error.context or ''} {error.problem or ''}".split())
        raise UserError(f"{path}{f', line {mark.line + 1}' if mark else ''}: not valid YAML: {problem}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise UserError(f"{path}: more than {_MAX_DEPTH} levels deep; a cluster file has fewer than ten") from error
    manifests = [keys for keys in map(_scalars, documents) if "apiVersion" in keys]
    if not manifests:
        if len(documents) > 1:
            raise UserError(f"{path}: holds {len(documents)} documents; a cluster file is one")
        return documents[0] if documents else None
    clusters = [document for document in documents if _scalars(document).get("kind") == "RayCluster"]
    if len(clusters) != 1:
        raise UserError(
            f"{path}: is a Kubernetes manifest with {len(clusters)} objects of kind RayCluster; one of KubeRay's would be right "
            "(cluster/kuberay.yaml is an example)"
        )
    return clusters[0]


def _scalars(document: yaml.Node | None) -> dict[str, str]:
    """The scalar values at the top level of a document."""
    pairs = document.value if isinstance(document, yaml.MappingNode) else ()
    return {str(key.value): str(value.value) for key, value in pairs if isinstance(value, yaml.ScalarNode)}


def _constructed(path: Path, root: yaml.Node) -> dict[str, Any]:
    loader = yaml.SafeLoader("")
    try:
        tree: dict[str, Any] = loader.construct_document(root)
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    except ValueError as error:  # the 30th of February
        raise UserError(f"{path}: a value can't be read ({error}); quotes around it would be right") from error
    finally:
        loader.dispose()
    return tree
