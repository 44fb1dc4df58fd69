"""The registry of class swaps: which class of diffusers becomes which of ours, and back.

Accelerating an object sets its `__class__` to a subclass of exactly the class it has.  There is no
second copy of its state and no closure: deepcopy, `__dict__` edits and saving work as in stock, and
going back is one assignment.  Swapped classes bear the module of the class they replace, so that a
pipeline which holds one is saved as a plain diffusers pipeline.
"""

from __future__ import annotations

import functools
from typing import Any

import diffusers
from packaging.specifiers import SpecifierSet

from fastdiff.schedulers import CLASSES
from fastdiff.schedulers.quirks import CHECKED

OURS = ("_fused", "_by_stride", "_warned", "numerics", "strict")  # attributes that we may leave


@functools.cache
def swaps() -> dict[type, type]:
    """{stock class: its accelerated class}."""
    return {stock: _portable(stock, fast) for fast in CLASSES for stock in (_stock(fast),)}


def why_not(cls: type) -> str | None:
    """Why objects of a class are left alone, or None if they can be accelerated."""
    if cls not in swaps():
        known = ", ".join(stock.__name__ for stock in swaps())
        return f"no accelerated class for {cls.__name__} (there is one for {known})"
    if diffusers.__version__ not in SpecifierSet(CHECKED, prereleases=True):
        return f"diffusers {diffusers.__version__} was not checked, only {CHECKED}"
    return None


def is_swapped(obj: object) -> bool:
    """True if `accelerate` has changed the object's class."""
    return type(obj) in swaps().values()


def swap(obj: Any) -> None:
    """Give the object its accelerated class."""
    obj.__class__ = swaps()[type(obj)]


def unswap(obj: Any) -> None:
    """Give the object its stock class back, and take what is ours from it."""
    for name in OURS:
        obj.__dict__.pop(name, None)
    obj.__class__ = next(stock for stock, fast in swaps().items() if fast is type(obj))


def _stock(fast: type) -> type:
    return next(base for base in fast.__mro__ if base.__module__.startswith("diffusers."))


def _portable(stock: type, fast: type) -> type:
    """A subclass that calls itself by the stock class's name, for savers that look at names."""

    def __reduce_ex__(self: Any, protocol: Any) -> tuple[Any, ...]:
        return _rebuild, (stock,), self.__dict__  # a pickle finds classes by name: the stock one

    body = {"__module__": stock.__module__, "__doc__": fast.__doc__, "__reduce_ex__": __reduce_ex__}
    return type(stock.__name__, (fast,), body)


def _rebuild(stock: type) -> Any:
    return object.__new__(swaps()[stock])
