"""Triton's interpreter without the work that it throws away.

`quicken` changes no number that a kernel computes and no error that it raises.  It saves more than
half of the time, for the kernels of these tests are small and the interpreter is slow Python:

    overflow   each sum and product of integers is made again in int64 and compared with the
               limits of its type; the comparison then goes to an assertion that exists in debug
               mode only, which the interpreter's options exclude: two fifths of the time
    patches    tl's functions are replaced at each call of a device function by the very same
               that the launch has put there: a seventh
    dtypes     a table of all dtypes is made for each number: a fourteenth

Shares were measured with Triton 3.9 on the kernels of group_norm.  That results and errors are
those of the interpreter as it came is tested in tests/test_group_norm_triton.py.
"""

import contextlib
import dataclasses
import functools
import types
from collections.abc import Callable, Iterator
from typing import Any

ORIGINALS: dict[str, Callable[..., Any]] = {}


def quicken() -> None:
    """Call once in a process with TRITON_INTERPRET=1."""
    from triton.runtime import interpreter

    for change in (without_overflow, patch_once, one_table):
        change(interpreter)


@contextlib.contextmanager
def as_it_came() -> Iterator[None]:
    """Triton's own interpreter for a while."""
    from triton.runtime import interpreter

    builder, quick = (
        interpreter.interpreter_builder,
        {n: getattr(interpreter, n) for n in ORIGINALS},
    )
    options = builder.options
    builder.options = type(options)()
    for name, original in ORIGINALS.items():
        setattr(interpreter, name, original)
    try:
        yield
    finally:
        builder.options = options
        for name, function in quick.items():
            setattr(interpreter, name, function)


def without_overflow(interpreter: types.ModuleType) -> None:
    """Leave out the comparison, whose result goes nowhere unless `debug` is set."""
    builder = interpreter.interpreter_builder
    if not builder.options.debug:
        builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)


def patch_once(interpreter: types.ModuleType) -> None:
    """A launch puts the interpreter's functions into tl and takes them out again at its end; the
    device functions that it calls, which put them there once more, no longer do."""
    patch = ORIGINALS.setdefault("_patch_lang", interpreter._patch_lang)
    there: set[int] = set()

    def patch_lang(fn: Any) -> Any:
        seen = {id(v) for v in fn.__globals__.values() if isinstance(v, types.ModuleType)}
        languages = seen & {id(interpreter.tl), id(interpreter.tl.core)}
        if languages and languages <= there:
            return interpreter._LangPatchScope()
        outermost, scope = not there, patch(fn)
        there.update(languages)
        if outermost:
            take_out = scope.restore

            def restore() -> None:
                there.clear()
                take_out()

            scope.restore = restore
        return scope

    interpreter._patch_lang = patch_lang


def one_table(interpreter: types.ModuleType) -> None:
    """The NumPy dtype of a scalar is looked up once; those of blocks and pointers are asked for."""
    made = ORIGINALS.setdefault("_get_np_dtype", interpreter._get_np_dtype)
    of_scalar, plain = functools.cache(made), interpreter.tl.dtype

    def get_np_dtype(dtype: Any) -> Any:
        scalar = dtype.scalar
        return of_scalar(scalar) if type(scalar) is plain else made(dtype)

    interpreter._get_np_dtype = get_np_dtype
