"""Reads YAML 1.2 text to a plain tree and writes it.

The scanner, parser and composer are ruamel.yaml's. Values are made from the composed nodes here, because a file
written by people needs what no constructor gives: the line of every key, the 1.2 core schema and nothing beyond it
(`no`, `1_000` and `2024-01-01` are text), ranges, and one-line errors.
"""

from __future__ import annotations

import io
import math
import re
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError
from ruamel.yaml.representer import SafeRepresenter

from fewshot_ray.errors import UserError
from fewshot_ray.spec.alternatives import BY, By, alternatives, choice_of_methods, holds_range, is_searched
from fewshot_ray.spec.problems import Problem
from fewshot_ray.spec.ranges import RANGE_KINDS, Range, range_of
from fewshot_ray.spec.space import METHOD
from fewshot_ray.spec.wording import join, show

# A run's file has some hundred values; the bounds keep a file of aliases to aliases from filling the memory.
MAX_VALUES = 2_000
MAX_DEPTH = 40

# YAML 1.2.2, section 10.3.2 (core schema)
_NULL = re.compile(r"null|Null|NULL|~|")
_TRUE = re.compile(r"true|True|TRUE")
_FALSE = re.compile(r"false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+")
_OCTAL_OR_HEX = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")

PRESET = "preset"
"""Optional second key of a numeric range."""

SEARCHED = ("method.", "train.")
"""Beginnings of the paths below which values may depend on others."""

_TAG = "tag:yaml.org,2002:"


def from_yaml(text: str, name: str) -> tuple[Any, dict[str, int], list[Problem]]:
    """The tree in `text`, the line (from 1) of every dotted path in it, and what is wrong; `name` is the file's name in messages.

    Mappings become dicts, lists lists, `{float|log|int|choice: [...]}` (with a `preset:`) a Range, and `{by: PATH, ...}` a By. The tree
    has WRONG in place of an invalid range, and of a number that is not finite or doesn't fit into 64 bits; of a key that is given twice
    the first counts.
    Raises UserError for text that isn't valid YAML.
    """
    builder = _Builder(name)
    root = builder.compose(text)
    tree = None if root is None else builder.build(root, "")
    return tree, builder.lines, builder.problems


def to_yaml(tree: Any) -> str:
    """`tree` as block-style YAML that `from_yaml` reads back to an equal tree: floats exactly, ranges as ranges."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = _Representer
    yaml.default_flow_style = False
    yaml.allow_unicode = True
    yaml.width = 100_000  # a folded line could be read back, but makes diffs harder to read
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    stream = io.StringIO()
    yaml.dump(_plain(tree), stream)
    return stream.getvalue()


class _Representer(SafeRepresenter):
    """Quotes every text that the core schema would read as something else; the resolver of ruamel.yaml misses `.5e3`."""

    def represent_text(self, text: str) -> ScalarNode:
        looks_otherwise = any(pattern.fullmatch(text) for pattern in (_NULL, _TRUE, _FALSE, _INT, _OCTAL_OR_HEX, _FLOAT, _NOT_FINITE))
        node: ScalarNode = self.represent_scalar(_TAG + "str", text, style="'" if looks_otherwise else None)
        return node


_Representer.add_representer(str, _Representer.represent_text)


def _plain(tree: Any) -> Any:
    """A copy of `tree` of fresh dicts and lists only (an object used twice would be dumped as an alias)."""
    if is_searched(tree):
        return _plain(tree.to_yaml())
    if isinstance(tree, dict):
        return {key: _plain(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_plain(value) for value in tree]
    return tree


class WrongValue:
    """Placeholder in a tree for an invalid value."""

    def __repr__(self) -> str:
        return "(no value)"


WRONG = WrongValue()


class _Builder:
    """Builds a tree from one text, with the line of each value and the errors."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.yaml = YAML(typ="safe", pure=True)
        self.yaml.max_depth = MAX_DEPTH
        self.lines: dict[str, int] = {}
        self.problems: list[Problem] = []
        self.count = 0

    def error(self, line: int, path: str, message: str) -> UserError:
        return UserError(f"{self.name}, line {line}: {path}{': ' if path else ''}{message}")

    def wrong(self, line: int, path: str, message: str) -> WrongValue:
        """Record the error; returns the placeholder for the value."""
        self.problems.append(Problem(path, message, line))
        return WRONG

    def compose(self, text: str) -> Node | None:
        """The root of the node graph; None for a text without any value."""
        directive = re.search(r"^%.*", text, re.MULTILINE)
        if directive:
            line = text.count("\n", 0, directive.start()) + 1
            raise self.error(line, "", f"{show(directive.group())} is a directive; YAML 1.2 without directives is right")
        try:
            self.yaml.composer.warn_double_anchors = False
            root: Node | None = self.yaml.compose(text)
        except MarkedYAMLError as error:
            raise self._syntax_error(error) from error
        except ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            raise self.error(line, "", f"the character U+{ord(text[error.position]):04X} is not allowed in YAML") from error
        except YAMLError as error:
            raise UserError(f"{self.name}: not valid YAML: {' '.join(str(error).split())}") from error
        return root

    def _syntax_error(self, error: MarkedYAMLError) -> UserError:
        mark = error.problem_mark or error.context_mark
        message = " ".join(f"{error.context or ''} {error.problem or ''}".split())
        if "\\t" in message:
            message += "; indent with spaces, not tabs"
        elif "another document" in message:
            message = "a second document begins here; one document a file is right"
        elif "maximum depth" in message:
            message = f"more than {MAX_DEPTH} levels deep; a run's file needs fewer than ten"
        else:
            message = f"not valid YAML: {message}"
        return self.error(mark.line + 1 if mark else 1, "", message)

    def build(self, node: Node, path: str, depth: int = 0) -> Any:
        line = self.lines.setdefault(path, node.start_mark.line + 1)
        self.count += 1
        if self.count > MAX_VALUES or depth > MAX_DEPTH:
            raise UserError(f"{self.name}, line {line}: more than {MAX_VALUES} values or {MAX_DEPTH} levels once aliases are followed")
        if node.tag != self._implicit_tag(node):
            return self.wrong(line, path, f"the tag {show(str(node.tag).replace(_TAG, '!!'))} is not known; a value without a tag is right")
        if isinstance(node, ScalarNode):
            return self._scalar(node, path, line)
        if isinstance(node, SequenceNode):
            return [self.build(item, join(path, index), depth + 1) for index, item in enumerate(node.value)]
        assert isinstance(node, MappingNode)
        return self._mapping(node, path, line, depth)

    def _implicit_tag(self, node: Node) -> str:
        """The tag that ruamel.yaml assigns to the node where the text has none."""
        if isinstance(node, ScalarNode):
            return _TAG + "str" if node.style else str(self.yaml.resolver.resolve(ScalarNode, node.value, (True, False)))
        return _TAG + ("seq" if isinstance(node, SequenceNode) else "map")

    def _mapping(self, node: MappingNode, path: str, line: int, depth: int) -> dict[str, Any] | Range | By | WrongValue:
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self._key(key_node, path)
            if key is None:
                continue
            key_path, key_line = join(path, key), key_node.start_mark.line + 1
            if key in mapping:
                self.wrong(key_line, key_path, f"is given twice (first in line {self.lines[key_path]}); once is right")
                continue
            self.lines[key_path] = key_line
            mapping[key] = self.build(value_node, key_path, depth + 1)
        kinds = [key for key in mapping if key != PRESET]
        if len(kinds) == 1 and kinds[0] in RANGE_KINDS and isinstance(mapping[kinds[0]], list):
            return self._range(kinds[0], mapping[kinds[0]], mapping.get(PRESET), path, line)
        if isinstance(mapping.get(BY), str) and len(mapping) > 1 and path.startswith(SEARCHED):
            return By(mapping.pop(BY), mapping)
        return mapping

    def _range(self, kind: str, values: list[Any], preset: Any, path: str, line: int) -> Range | WrongValue:
        if _holds_wrong(values) or preset is WRONG:
            return WRONG
        try:
            if kind == "choice" and preset is None and path == METHOD:
                return choice_of_methods(range_of(kind, values).endpoints())
            if kind == "choice" and preset is None and (holds_range(values) or any(map(_is_searched_by_name, values))):
                return alternatives(values)
            if holds_range(values):
                return self.wrong(line, path, f"a range is inside {kind}; plain values are right there")
            return range_of(kind, values, preset)
        except ValueError as error:
            return self.wrong(line, path, str(error))

    def _key(self, node: Node, path: str) -> str | None:
        """The key's name; None where it isn't a name, which is recorded as an error."""
        line = node.start_mark.line + 1
        key = self._scalar(node, path, line) if isinstance(node, ScalarNode) else node.value
        if key is WRONG:
            return None
        if not isinstance(key, str):
            self.wrong(line, path, "a list, mapping, number, true, false or null is used as a key; a name is right")
            return None
        if node.tag == _TAG + "merge":
            self.wrong(line, path, "'<<' (merging) is not part of YAML 1.2; write the keys out")
            return None
        if not key or "." in key or not key.isprintable():
            self.wrong(line, path, f"the key {show(key)} is no name; a name without dots is right (one level of the file a name)")
            return None
        return key

    def _scalar(self, node: ScalarNode, path: str, line: int) -> Any:
        text: str = node.value
        if isinstance(text, str) and (half := re.search(r"[\ud800-\udfff]", text)):
            return self.wrong(line, path, f"\\u{ord(half[0]):04x} is half a character; text that UTF-8 can encode is right")
        if node.style or not isinstance(text, str):
            return text
        if _NULL.fullmatch(text):
            return None
        if _TRUE.fullmatch(text) or _FALSE.fullmatch(text):
            return text.lower() == "true"
        if _INT.fullmatch(text) or _OCTAL_OR_HEX.fullmatch(text):
            # 310 digits are past any float; int() of more than 4,300 would raise
            number = int(text[:310], 0 if _OCTAL_OR_HEX.fullmatch(text) else 10)
            if not -(2**63) <= number < 2**63:
                return self.wrong(line, path, f"{show(number)} does not fit into 64 bits")
            return number
        if _NOT_FINITE.fullmatch(text) or (_FLOAT.fullmatch(text) and not math.isfinite(float(text))):
            return self.wrong(line, path, f"{text} is not a finite number")
        return float(text) if _FLOAT.fullmatch(text) else text


def _holds_wrong(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_holds_wrong(item) for item in value.values())
    return any(map(_holds_wrong, value)) if isinstance(value, list) else value is WRONG


def _is_searched_by_name(value: Any) -> bool:
    """Whether it is like `{lora: search}`, which stands for the declared ranges."""
    return isinstance(value, dict) and "search" in [item for item in value.values() if isinstance(item, str)]
