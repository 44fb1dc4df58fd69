"""python docs/api.py [--check]: write docs/api.md from fastdiff.__all__.

Every public name with its signature and its docstring, in the order of fastdiff.__all__; of a class
also the methods and properties that it adds to the class of diffusers that it replaces.
"""

from __future__ import annotations

import inspect
import sys
from typing import Any

from generated import DOCS, Files, main

import fastdiff

HEAD = """# API

Everything in `fastdiff.__all__`, from the docstrings. Made by `python docs/api.py`; do not edit.
"""


def signature(name: str, obj: Any) -> str:
    """name(arguments) -> result, one argument a line where it is long."""
    try:
        found = inspect.signature(obj)
    except (TypeError, ValueError):
        return name
    whole = f"{name}{found}".replace("'", "")
    if len(whole) <= 96:
        return whole
    lines, star = [], False
    for parameter in found.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            lines.append("    *,")
            star = True
        lines.append(f"    {parameter!s},".replace("'", ""))
    result = found.return_annotation
    arrow = "" if result is found.empty else f" -> {result}".replace("'", "")
    return "\n".join([f"{name}(", *lines, f"){arrow}"])


def block(code: str) -> str:
    """A fenced block that is shown, not run."""
    return f"```text\n{code}\n```"


def entry(name: str, obj: Any) -> str:
    """One public name."""
    parts = [f"## {name}\n"]
    if inspect.ismodule(obj):
        parts += [block(f"fastdiff.{name}"), "", block(doc(obj))]
        for member in (getattr(obj, member) for member in obj.__all__):
            if not member.__name__.startswith("sample_"):  # one shape, in the module's docstring
                called = signature(f"{name}.{member.__name__}", member)
                parts += ["", f"### {name}.{member.__name__}\n", block(f"fastdiff.{called}")]
                parts += ["", block(doc(member))]
        return "\n".join(parts)
    if not inspect.isclass(obj):
        parts += [block(f"fastdiff.{signature(name, obj)}"), "", block(doc(obj))]
        return "\n".join(parts)
    bases = [base for base in obj.__mro__[1:] if base.__module__.startswith("diffusers.")]
    if bases:
        parts.append(block(f"class fastdiff.{name}({bases[0].__name__} of diffusers)"))
    else:
        parts.append(block(f"class fastdiff.{signature(name, obj)}"))
    parts += ["", block(doc(obj))]
    for method, value in members(obj, bases[0] if bases else object):
        kind = value.__func__ if isinstance(value, (staticmethod, classmethod)) else value
        if isinstance(kind, property):
            parts += ["", f"### {name}.{method}\n", block(doc(kind))]
        else:
            parts += ["", f"### {name}.{method}\n", block(signature(method, kind))]
            parts += ["", block(doc(kind))]
    return "\n".join(parts)


def doc(obj: Any) -> str:
    """Its own docstring."""
    text = inspect.cleandoc(obj.__doc__ or "")
    if not text:
        raise ValueError(f"{obj} must have a docstring: it is public")
    return text


def members(cls: type, base: type) -> list[tuple[str, Any]]:
    """Public methods and properties that the class defines itself, with a docstring."""
    own: dict[str, Any] = {}
    for part in cls.__mro__:
        if part is base or part is object:
            break
        if part is cls:
            own |= {k: v for k, v in vars(part).items() if not k.startswith("_")}
    kinds = (property, staticmethod, classmethod)
    return [(k, v) for k, v in own.items() if inspect.isfunction(v) or isinstance(v, kinds)]


def generated() -> Files:
    """The whole page."""
    names = {name: getattr(fastdiff, name) for name in fastdiff.__all__}
    parts = [HEAD.rstrip(), *(entry(*item) for item in names.items())]
    return {DOCS / "api.md": "\n\n".join(parts) + "\n"}


if __name__ == "__main__":
    sys.exit(main(__file__, __doc__, "the docstrings say", generated))
