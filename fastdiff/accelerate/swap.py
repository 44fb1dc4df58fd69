"""The registry of class swaps: which class of diffusers becomes which of ours, and back.

Accelerating an object sets its `__class__` to a subclass of exactly the class it has.  There is no
second copy of its state and no closure: deepcopy, `__dict__` edits and saving work as in stock, and
going back is one assignment.  Swapped classes bear the module of the class they replace, so that a
pipeline which holds one is saved as a plain diffusers pipeline.
"""

from __future__ import annotations

import functools
from types import MethodType
from typing import Any

import diffusers
from packaging.specifiers import SpecifierSet
from torch import nn

from fastdiff.accelerate import (
    attention,
    choice,
    feed_forward,
    guidance,
    layout,
    networks,
    norms,
    resnet,
    transformer,
    upsampling,
)
from fastdiff.schedulers import CLASSES
from fastdiff.schedulers.quirks import CHECKED

# attributes that we may leave
OURS = ("_fused", "_by_stride", "_draw", "_warned", "numerics", "spacing", "strict")

MODULES_CHECKED = ">=0.42,<0.43"  # versions of diffusers whose forward the modules were made from
NETWORKS: tuple[type, ...] = (
    networks.FastUNet2DConditionModel,
    networks.FastUNet2DModel,
    networks.FastAutoencoderKL,
    networks.FastControlNetModel,
)
GUIDED: tuple[type, ...] = (  # networks of which nothing else is ours, and no module in them
    guidance.GuidedSD3Transformer2DModel,
    guidance.GuidedFluxTransformer2DModel,
)
PAIR: tuple[type, ...] = (norms.NormAndSiLU, norms.SiLUInNorm)  # only conv_norm_out and conv_act
INNER: tuple[type, ...] = (
    networks.FastEncoder,
    networks.FastDecoder,
    resnet.FastResnetBlock2D,
    attention.FastAttention,
    transformer.FastTransformer2DModel,
    transformer.FastBasicTransformerBlock,
    feed_forward.FastGEGLU,
    upsampling.FastUpsample2D,
)


@functools.cache
def swaps() -> dict[type, type]:
    """{stock class: its accelerated class}."""
    fast = (*CLASSES, *NETWORKS, *GUIDED, *PAIR, *INNER)
    return {stock: _portable(stock, cls) for cls in fast for stock in (_stock(cls),)}


def stock_of(obj: object) -> type:
    """The class that an object has, or had before it was swapped."""
    return next((stock for stock, fast in swaps().items() if fast is type(obj)), type(obj))


def why_not(cls: type) -> str | None:
    """Why objects of a class are left alone, or None if they can be accelerated."""
    if cls not in swaps():
        known = ", ".join(stock.__name__ for stock in swaps() if not issubclass(stock, nn.Module))
        return f"no accelerated class for {cls.__name__} (there is one for {known})"
    checked = MODULES_CHECKED if issubclass(cls, nn.Module) else CHECKED
    if diffusers.__version__ not in SpecifierSet(checked, prereleases=True):
        return f"diffusers {diffusers.__version__} was not checked, only {checked}"
    return None


def is_swapped(obj: object) -> bool:
    """True if `accelerate` has changed the object's class."""
    return type(obj) in swaps().values()


def swap(obj: Any) -> None:
    """Give the object its accelerated class."""
    stock = type(obj)
    obj.__class__ = swaps()[stock]
    if isinstance(obj, nn.Module):
        obj.__dict__[choice.NAME] = choice.Tally()
        _rebind(obj, stock, type(obj))
    if isinstance(obj, attention.FastAttention):
        attention.listen(obj)
    if isinstance(obj, networks.Network):
        layout.lay_out(obj)


def unswap(obj: Any) -> None:
    """Give the object its stock class back, and take what is ours from it."""
    fast, stock = type(obj), stock_of(obj)
    if isinstance(obj, networks.Network):
        layout.put_back(obj)
    if isinstance(obj, attention.FastAttention):
        attention.stop_listening(obj)
    ours = (choice.NAME,) if isinstance(obj, nn.Module) else OURS
    for name in ours:
        obj.__dict__.pop(name, None)
    obj.__class__ = stock
    _rebind(obj, fast, stock)


def _rebind(obj: Any, old: type, new: type) -> None:
    """Methods of the old class that hooks keep in the object (the forward that they call) become
    those of the new."""
    for name, value in list(vars(obj).items()):
        if isinstance(value, MethodType) and value.__self__ is obj:
            method = value.__func__.__name__
            if value.__func__ is getattr(old, method, None):
                obj.__dict__[name] = MethodType(getattr(new, method), obj)


def _stock(fast: type) -> type:
    homes = ("diffusers.", "torch.")
    return next(base for base in fast.__mro__ if base.__module__.startswith(homes))


def _portable(stock: type, fast: type) -> type:
    """A subclass that calls itself by the stock class's name, for savers that look at names."""

    def __reduce_ex__(self: Any, protocol: Any) -> tuple[Any, ...]:
        # a pickle finds classes by name: the stock one
        return _rebuild, (stock,), self.__getstate__()

    body = {"__module__": stock.__module__, "__doc__": fast.__doc__, "__reduce_ex__": __reduce_ex__}
    return type(stock.__name__, (fast,), body)


def _rebuild(stock: type) -> Any:
    return object.__new__(swaps()[stock])
