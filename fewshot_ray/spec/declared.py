"""Builds configuration classes that are defined in modules which import torch, without importing torch.

A method's module contains its settings and its loss. To know the settings within a second, only those statements of the module are run
that the class's fields and validators need: its imports of pydantic, its literals and the class itself. (setuptools reads
`version = {attr = ...}` of a package that it can't import in the same manner.) What can't be built so raises
NeedsImportError, and is checked after the imports.
"""

from __future__ import annotations

import ast
import builtins
import copy
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

PACKAGE = "fewshot_ray"
ROOT = Path(__file__).parents[1]
AT_ONCE = ("fewshot_ray.spec", "fewshot_ray.errors", "collections", "dataclasses", "enum", "math", "pydantic", "re", "typing")
"""Modules that are really imported: they load quickly, and `Section` and the ranges must be the real classes."""


class NeedsImportError(Exception):
    """The value can only be had by importing the module."""


def declared(module: str, name: str) -> Any:
    """The value of `name` in one of the package's modules, given by its dotted name. Raises NeedsImportError."""
    return source(module).value(name)


def table(module: str, name: str) -> dict[str, ast.expr]:
    """The keys and the expressions of the values of a dict in a module. Raises NeedsImportError where there is no such dict."""
    value = getattr(source(module).statements.get(name), "value", None)
    if not isinstance(value, ast.Dict):
        raise NeedsImportError(f"{module}.{name}")
    return {str(key.value): item for key, item in zip(value.keys, value.values, strict=True) if isinstance(key, ast.Constant)}


@cache
def source(module: str) -> Source:
    """The parsed text of one of the package's modules, given by its dotted name."""
    path = ROOT.joinpath(*module.split(".")[1:])
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return Source(module, path)


class Source:
    """A module's statements by the names they bind, and the values computed so far."""

    def __init__(self, module: str, path: Path) -> None:
        self.path = path
        self.tree = ast.parse(path.read_text("utf-8"), str(path))
        self.statements = {name: statement for statement in self.tree.body for name in _bound(statement)}
        self.values: dict[str, Any] = {"__name__": module}

    def value(self, name: str) -> Any:
        """The value that `name` is bound to. Raises NeedsImportError."""
        if name not in self.values:
            statement = self.statements.get(name)
            if isinstance(statement, ast.Import | ast.ImportFrom):
                self.values[name] = _imported(statement, name)
            elif isinstance(statement, ast.Assign | ast.AnnAssign | ast.ClassDef | ast.FunctionDef):
                self._run(_reduced(statement))
            else:
                raise NeedsImportError(f"{self.path.name}: {name}")
        return self.values[name]

    def _run(self, statement: ast.stmt) -> None:
        names = [node for node in ast.walk(statement) if isinstance(node, ast.Name | ast.arg)]
        local = {node.arg if isinstance(node, ast.arg) else node.id for node in names if not _is_read(node)}
        for needed in {node.id for node in names if isinstance(node, ast.Name)} - set(_bound(statement)):
            if needed in self.statements:
                self.value(needed)
            elif not hasattr(builtins, needed) and needed not in local:
                raise NeedsImportError(f"{self.path.name}: {needed}")
        module = ast.fix_missing_locations(ast.Module([statement], []))
        exec(compile(module, str(self.path), "exec", dont_inherit=True), self.values)


def _imported(statement: ast.Import | ast.ImportFrom, name: str) -> Any:
    alias = next(alias for alias in statement.names if (alias.asname or alias.name) == name)
    module = alias.name if isinstance(statement, ast.Import) else str(statement.module)
    if not any(module == known or module.startswith(f"{known}.") for known in AT_ONCE):
        if isinstance(statement, ast.ImportFrom) and module.startswith(f"{PACKAGE}."):
            return declared(module, alias.name)
        raise NeedsImportError(f"{module}: {name}")
    return import_module(module) if isinstance(statement, ast.Import) else getattr(import_module(module), alias.name)


def _bound(statement: ast.stmt) -> Iterator[str]:
    """The names that a statement of a module binds."""
    if isinstance(statement, ast.Import | ast.ImportFrom):
        yield from (alias.asname or alias.name for alias in statement.names)
    elif isinstance(statement, ast.ClassDef | ast.FunctionDef):
        yield statement.name
    elif isinstance(statement, ast.Assign):
        yield from (target.id for target in statement.targets if isinstance(target, ast.Name))
    elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
        yield statement.target.id


def _is_read(node: ast.Name | ast.arg) -> bool:
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)


def _reduced(statement: ast.Assign | ast.AnnAssign | ast.ClassDef | ast.FunctionDef) -> ast.stmt:
    """The statement without annotations that only type checkers use, and a class reduced to its fields and validators."""
    if isinstance(statement, ast.AnnAssign) and statement.value is not None:
        return ast.copy_location(ast.Assign([statement.target], statement.value), statement)
    if isinstance(statement, ast.ClassDef):
        body = [part for part in statement.body if not isinstance(part, ast.FunctionDef) or _validates(part)]
        # Otherwise pydantic would look for the class's source, for its fields' docstrings, in a module that isn't loaded.
        plain = ast.keyword("use_attribute_docstrings", ast.Constant(False))
        statement = copy.copy(statement)
        statement.body, statement.keywords = body or [ast.Pass()], [*statement.keywords, plain]
    for function in ast.walk(statement):
        if isinstance(function, ast.FunctionDef):
            function.returns = None
            for argument in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs):
                argument.annotation = None
    return statement


def _validates(function: ast.FunctionDef) -> bool:
    names = {node.id for decorator in function.decorator_list for node in ast.walk(decorator) if isinstance(node, ast.Name)}
    return bool(names & {"field_validator", "model_validator"})
