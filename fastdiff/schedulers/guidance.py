"""Guidance that is not computed yet: what a network answers in an accelerated pipeline.

    u, c = answer.chunk(2);   e = u + g * (c - u)   or   e = c + g * (c - u)

A pipeline writes this between the network and `scheduler.step`.  Done on a Deferred, it is only
recorded, and the step's kernel does it: the same operations, each rounded to float32, in this
order, so that the sample has the same bits.  The second form is the first one with c and u in each
other's place and -g for g: u - c is -(c - u) and (-g) * -(c - u) is g * (c - u), exactly.  Only
where c and u are equal may the sign of a zero differ, and the sums of a step begin at +0, to which
either zero adds nothing.

Anything else that is done with a Deferred is done with the tensor that PyTorch would have had, made
then and there by PyTorch's own operators.  Once the network's own tensor was given away, somebody
may write to it: what was recorded is computed before, and nothing more is recorded.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

LARGEST = float(torch.finfo(torch.float32).max)
WHOLE = 2**24  # whole numbers up to here are the same in float32
ABOUT = {  # attributes that the result has in common with the network's tensor
    *("device", "dim", "dtype", "element_size", "is_complex", "is_cpu", "is_cuda", "is_leaf"),
    *("is_floating_point", "is_inference", "is_meta", "is_mps", "is_sparse", "itemsize", "layout"),
    *("nbytes", "ndim", "numel", "requires_grad", "shape", "size"),
}
DONE_AT_ONCE = (  # operators that Python looks up in the class
    *(f"__{r}{name}__" for name in ("add", "sub", "mul") for r in ("", "r")),
    *(f"__{r}{name}__" for name in ("truediv", "floordiv", "mod", "pow") for r in ("", "r", "i")),
    *(f"__{r}{name}__" for name in ("matmul", "and", "or", "xor") for r in ("", "r", "i")),
    *("__iadd__", "__isub__", "__imul__", "__lshift__", "__rshift__"),
    *("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__contains__"),
    *("__neg__", "__pos__", "__abs__", "__invert__", "__bool__", "__float__", "__int__"),
    *("__index__", "__complex__", "__len__", "__iter__", "__reversed__", "__getitem__"),
    *("__setitem__", "__repr__", "__format__", "__array__", "__dlpack__", "__dlpack_device__"),
    *("__array_wrap__", "__reduce_ex__"),
)
SET = ("data", "grad", "requires_grad")  # attributes that one may set


class Answer:
    """One call of a network: who counts it, and what was made of it and is not computed."""

    __slots__ = ("calls", "given", "told", "waiting")

    def __init__(self, calls: Counter[str]) -> None:
        self.calls = calls
        self.given = self.told = False
        self.waiting: list[weakref.ref[Deferred]] = []

    def tell(self, why: str) -> None:
        """Count that something is computed before the step, by the first cause."""
        if not self.told:
            self.told = True
            self.calls[f"guidance before the step: {why}"] += 1

    def give(self) -> None:
        """Before the tensor goes to somebody who may write to it."""
        self.given = True
        waiting, self.waiting = self.waiting, []
        for one in waiting:
            if (deferred := one()) is not None:
                deferred.made()


class Operands(NamedTuple):
    """e = uncond + g (cond - uncond); without uncond e = cond."""

    uncond: Tensor | None
    cond: Tensor
    g: float


class Deferred:
    """Of tensors u, c that a network returned: one of them, c - u, g (c - u), or base + g (c - u).

    base   of the first and the last: the tensor, a sum's first term
    c u g  None where there is none
    """

    # __dict__: TorchDynamo guards on it
    __slots__ = ("__dict__", "__weakref__", "_answers", "_base", "_c", "_g", "_made", "_u")
    __array_priority__ = Tensor.__array_priority__  # NumPy's numbers leave the operator to us
    __hash__ = object.__hash__

    def __init__(
        self,
        answers: tuple[Answer, ...],
        base: Tensor | None,
        c: Tensor | None = None,
        u: Tensor | None = None,
        g: float | None = None,
    ) -> None:
        self._answers = answers
        self._base, self._c, self._u, self._g = base, c, u, g
        self._made: Tensor | None = None
        if c is not None:
            for answer in answers:
                answer.waiting.append(weakref.ref(self))

    # ---- what is recorded -----------------------------------------------------------------------

    def chunk(self, chunks: int, dim: int = 0) -> Any:
        """Halves of the network's tensor, as Deferred; any other division at once."""
        if self._open() and chunks == 2 and dim == 0:
            assert self._base is not None
            return tuple([Deferred(self._answers, part) for part in self._base.chunk(2)])
        return self.tensor("chunk").chunk(chunks, dim)

    def __sub__(self, other: Any) -> Any:
        if type(other) is Deferred and self._open() and other._open():
            c, u = self._base, other._base
            assert c is not None
            assert u is not None
            answers = self._answers
            of_one = answers is other._answers
            if c.shape == u.shape and (of_one or (c.dtype is u.dtype and c.device == u.device)):
                return Deferred(answers if of_one else answers + other._answers, None, c, u)
        return self.tensor("-") - value(other, "-")

    def __mul__(self, other: Any) -> Any:
        number = isinstance(other, float) or (type(other) is int and abs(other) <= WHOLE)
        difference = self._base is None and self._g is None and self._made is None
        if number and difference and abs(other) <= LARGEST:  # not NaN, which is said by torch
            return Deferred(self._answers, None, self._c, self._u, float(other))
        return self.tensor("*") * value(other, "*")

    __rmul__ = __mul__

    def __add__(self, other: Any) -> Any:
        if type(other) is Deferred and self._open() and other._base is None:
            base, c, u, g = self._base, other._c, other._u, other._g
            if g is not None and other._made is None and (base is u or base is c):
                return Deferred(other._answers, base, c, u, g)
        return self.tensor("+") + value(other, "+")

    def _open(self) -> bool:
        """Whether it is a network's tensor that nobody but us has."""
        return self._c is None and not self._answers[0].given  # it has one answer

    # ---- what becomes of it ---------------------------------------------------------------------

    def operands(self, why_not: str) -> Operands:
        """For a step, which reads them only.  why_not: why it cannot do guidance; "" if it can."""
        if self._c is None:
            assert self._base is not None
            return Operands(None, self._base, 1.0)
        if why_not or self._made is not None or self._base is None or self._g is None:
            return Operands(None, self.tensor(why_not or "no guidance"), 1.0)
        assert self._u is not None
        if self._base is self._u:
            return Operands(self._u, self._c, self._g)
        return Operands(self._c, self._u, -self._g)

    def tensor(self, why: str) -> Tensor:
        """The tensor, for anybody; `why` is counted."""
        self._answers[0].tell(why)
        if self._c is None:
            for answer in self._answers:
                answer.give()
        return self.made()

    def made(self) -> Tensor:
        """As PyTorch computes it."""
        if self._made is None:
            if self._c is None:
                assert self._base is not None
                return self._base
            assert self._u is not None
            made = self._c - self._u
            if self._g is not None:
                made = self._g * made
            self._made = made if self._base is None else self._base + made
        return self._made

    def __getattr__(self, name: str) -> Any:
        if name not in ABOUT:
            return getattr(self.tensor(name), name)
        known = self._made  # somebody has it, and may have changed it
        if known is None:
            known = self._c if self._base is None else self._base
        return getattr(known, name)

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        why = getattr(function, "__name__", "a function of torch")
        args, kwargs = tree_map(lambda a: value(a, why), (args, kwargs or {}))
        return function(*args, **kwargs)


def value(thing: Any, why: str) -> Any:
    """A Deferred's tensor; anything else as it is."""
    return thing.tensor(why) if type(thing) is Deferred else thing


def _at_once(name: str) -> Callable[..., Any]:
    why = name.strip("_")

    def operator(self: Deferred, *others: Any, **options: Any) -> Any:
        operands = [value(other, why) for other in others]
        return getattr(self.tensor(why), name)(*operands, **options)

    return operator


def _set(name: str) -> property:
    def put(self: Deferred, what: Any) -> None:
        setattr(self.tensor(name), name, value(what, name))

    return property(lambda self: self.__getattr__(name), put)


for _name in DONE_AT_ONCE:
    if _name not in vars(Deferred) or _name in ("__repr__", "__reduce_ex__"):
        setattr(Deferred, _name, _at_once(_name))
for _name in SET:
    setattr(Deferred, _name, _set(_name))
