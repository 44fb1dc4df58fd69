"""Default options of diffusers' classes, read from its source: nothing of it is imported, for that
takes seconds and a config is a file."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any


@cache
def defaults(name: str) -> Mapping[str, Any]:
    """{option: default} of the scheduler or network of that name; empty if diffusers has none.

    A default that is no literal (-float("inf")) is None here.
    """
    spec = find_spec("diffusers")
    if spec is None or spec.origin is None or not name.isidentifier():
        return MappingProxyType({})
    root = Path(spec.origin).parent
    for folder in ("schedulers", "models"):
        for path in sorted((root / folder).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            if f"class {name}(" in text:
                return MappingProxyType(_arguments(ast.parse(text), name))
    return MappingProxyType({})


def _arguments(tree: ast.Module, name: str) -> dict[str, Any]:
    """The arguments of a class's __init__ that have a default."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                    given = method.args
                    last = given.args[len(given.args) - len(given.defaults) :]
                    pairs = [*zip(last, given.defaults, strict=True)]
                    pairs += [
                        (a, d)
                        for a, d in zip(given.kwonlyargs, given.kw_defaults, strict=True)
                        if d is not None
                    ]
                    return {argument.arg: _value(node) for argument, node in pairs}
    return {}


def _value(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


__all__ = ["defaults"]
