"""affine_step: one step of any solver, for one batch, in one pass over memory.

    e = u + g*(c - u)                                  each operation rounded; without uncond: e = c
    m = gain * clamp(kx*x + ke*e + kz*z, lo, hi)
    [x'; r_1 .. r_P] = C . [x, m, e, z, h_1 .. h_R]
    model_input = c_in * x'

x, uncond (u), cond (c), noise (z), history (h_r)   (*shape), floating, on one device; B = shape[0]
rows   (N, 1 or B, K) contiguous, float32: a table of N steps, one row for all samples or one each,
       [g, kx, ke, kz, lo, hi, gain, C row-major (1+P)x(4+R), c_in, slot_1 .. slot_P]
step   () int32 on the device of rows: the index of the step; None: 0
seeds  (B,) int64, contiguous, on that device: in place of noise, z of element i (in C order) of
       sample b is normal(seeds[b], i, step + noise_step, STEP_STREAM) of philox_normal.py, float32:
       each sample's own, whatever the batch; drawn inside the step, never in memory
x_next (x'), x0 (m), kept (r_p), model_input        (*shape), floating dtypes as asked for

P = keeps, R = len(history), K = row_size(P, R) <= 64.  Sums are made in float32 (in float64, by the
reference, if x or rows is float64), from +0, in the order above, products rounded before they are
added: the same bits from every kernel.  A weight that is exactly 0 means that the operand is not
read there: it may be uninitialised, and 0 * NaN does not spread.  lo = -inf, hi = inf, gain = 1
leave m as it is.

The functional form ignores the slots.  The out form keeps rings: r_p goes to kept[p], if given,
and to history[slot_p], unless slot_p is -1; all of an element is read before any of it is written.
A layout is any dense one (contiguous, channels_last, ..) shared by all; operands in another layout
than x are copied first, an x that is not dense becomes contiguous.  Noise from seeds is written to
memory first, in one more launch, if that layout is not contiguous.  Per-sample rows need the batch
outermost in memory.

Schedulers, whose whole step takes microseconds, may call the CPU kernel without any check:

    fastdiff._C.affine_step(rows, row_count, step, samples, numel, keeps, ring, threads, dtypes,
                            (x, uncond, cond, noise, x_next, x0, model_input, h_1 .., kept_1 ..)
                            [, seeds, B, noise_step])

All are ints; tensors are given by data_ptr(), 0 = None; kept has exactly P entries.  row_count and
samples = rows.shape[:2]; numel = x.numel(); ring = 1: obey the slots; threads =
torch.get_num_threads() (serial below 65,536 elements anyway); dtypes: bits 2i, 2i+1 hold
DTYPE_CODES[dtype] of entry i, so that 0 means float32 throughout.  The caller answers for shapes,
one dense layout, CPU, lifetimes, and for why_reference(..) being None.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastdiff import backends
from fastdiff.ops import affine_step_reference
from fastdiff.ops._arguments import check_dtype, foreign, integer, tensors
from fastdiff.ops.affine_step_checks import (
    check_arguments,
    check_outputs,
    check_overlap,
    dense,
    row_size,
    same_layout,
)
from fastdiff.ops.affine_step_reference import affine_step_ref
from fastdiff.ops.philox_normal import STEP_STREAM, philox_normal

__all__ = ["DTYPE_CODES", "affine_step", "affine_step_out", "affine_step_ref", "row_size"]

DTYPE_CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
SERIAL_BELOW = 65_536  # elements; the CPU kernel's own limit: callers save asking for threads

torch.library.define(
    "fastdiff::affine_step",
    "(Tensor x, Tensor? uncond, Tensor cond, Tensor[] history, Tensor? noise, Tensor rows, "
    "Tensor? step, int keeps, ScalarType out_dtype, ScalarType x0_dtype, Tensor? seeds, "
    "int noise_step) "
    "-> (Tensor x_next, Tensor x0, Tensor[] kept)",
)
torch.library.define(
    "fastdiff::affine_step.out",
    "(Tensor x, Tensor? uncond, Tensor cond, Tensor(a!)[] history, Tensor? noise, Tensor rows, "
    "Tensor? step, int keeps, Tensor? seeds, int noise_step, *, Tensor(b!) x_next, "
    "Tensor(c!)? x0=None, Tensor(d!)[] kept, Tensor(e!)? model_input=None) -> ()",
)


def affine_step(
    x: Tensor,
    cond: Tensor,
    rows: Tensor,
    *,
    uncond: Tensor | None = None,
    history: Sequence[Tensor] = (),
    noise: Tensor | None = None,
    seeds: Tensor | None = None,
    noise_step: int = 0,
    step: Tensor | None = None,
    keeps: int = 0,
    out_dtype: torch.dtype | None = None,
    x0_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return x_next (dtype out_dtype, default x's), x0 and the kept vectors (x0_dtype, default
    out_dtype) as new tensors; differentiable in x, uncond, cond, history and noise."""
    history = tensors("history", history)
    keeps, noise_step = integer("keeps", keeps), integer("noise_step", noise_step)
    check_arguments(x, uncond, cond, history, noise, rows, step, keeps, seeds, noise_step)
    out_dtype = out_dtype or x.dtype
    dtypes = (out_dtype, x0_dtype or out_dtype)
    _check_dtypes(*dtypes)
    args = (x, uncond, cond, history, noise, rows, step, keeps, *dtypes, seeds, noise_step)
    operands = (x, uncond, cond, noise, *history)
    if torch.compiler.is_compiling():
        return _through_dispatcher(*args)
    if backends.why_reference(*operands) is None:
        return _functional(*args)
    if backends.why_recorded() or any(map(foreign, (*operands, seeds))):
        return affine_step_ref(*args)  # plain operators, which everything can record or wrap
    return _through_dispatcher(*args)


def affine_step_out(
    x: Tensor,
    cond: Tensor,
    rows: Tensor,
    *,
    x_next: Tensor,
    x0: Tensor | None = None,
    kept: Sequence[Tensor] = (),
    model_input: Tensor | None = None,
    uncond: Tensor | None = None,
    history: Sequence[Tensor] = (),
    noise: Tensor | None = None,
    seeds: Tensor | None = None,
    noise_step: int = 0,
    step: Tensor | None = None,
    keeps: int = 0,
) -> None:
    """Write the results where the caller says; x_next may be x, history is a set of rings.

    kept is empty or holds `keeps` tensors.  Everything that is written lies in the layout of
    x_next, which is dense.  Not differentiable.
    """
    history, kept = tensors("history", history), tensors("kept", kept)
    keeps, noise_step = integer("keeps", keeps), integer("noise_step", noise_step)
    check_arguments(x, uncond, cond, history, noise, rows, step, keeps, seeds, noise_step)
    check_outputs(x, rows, keeps, history, x_next, x0, model_input, kept)
    args = (x, uncond, cond, history, noise, rows, step, keeps, seeds, noise_step)
    direct = not torch.compiler.is_compiling()
    direct = direct and backends.why_reference(x, x_next, uncond, cond, noise, *history) is None
    run = _out if direct else torch.ops.fastdiff.affine_step.out
    run(*args, x_next=x_next, x0=x0, kept=kept, model_input=model_input)


def launch_cpu(
    x: Tensor,
    uncond: Tensor | None,
    cond: Tensor,
    history: Sequence[Tensor],
    noise: Tensor | None,
    rows: Tensor,
    step: Tensor | None,
    keeps: int,
    x_next: Tensor,
    x0: Tensor | None,
    kept: Sequence[Tensor],
    model_input: Tensor | None,
    ring: bool,
    seeds: Tensor | None = None,
    noise_step: int = 0,
) -> None:
    """csrc/affine_step.cpp on tensors of one dense layout."""
    from fastdiff import _C

    outputs = (x_next, x0, kept, model_input)
    operands = _addresses(x, uncond, cond, history, noise, keeps, *outputs)
    table = _table(rows, step)
    run = (x.numel(), keeps, int(ring), torch.get_num_threads())
    _C.affine_step(*table, *run, *operands, *_drawn(seeds, noise_step))


def launch_cuda(
    x: Tensor,
    uncond: Tensor | None,
    cond: Tensor,
    history: Sequence[Tensor],
    noise: Tensor | None,
    rows: Tensor,
    step: Tensor | None,
    keeps: int,
    x_next: Tensor,
    x0: Tensor | None,
    kept: Sequence[Tensor],
    model_input: Tensor | None,
    ring: bool,
    seeds: Tensor | None = None,
    noise_step: int = 0,
) -> None:
    """csrc/affine_step.cu on tensors of one dense layout, on the current stream of their device.

    A device cannot raise: a step outside the table makes every result NaN.
    """
    from fastdiff import _C

    outputs = (x_next, x0, kept, model_input)
    operands = _addresses(x, uncond, cond, history, noise, keeps, *outputs)
    table = _table(rows, step)
    with torch.cuda.device(x.device):
        stream = torch.cuda.current_stream().cuda_stream
        run = (x.numel(), keeps, int(ring), stream)
        _C.affine_step_cuda(*table, *run, *operands, *_drawn(seeds, noise_step))


def _table(rows: Tensor, step: Tensor | None) -> tuple[int, int, int, int]:
    return rows.data_ptr(), rows.shape[0], 0 if step is None else step.data_ptr(), rows.shape[1]


def _drawn(seeds: Tensor | None, noise_step: int) -> tuple[int, int, int]:
    return (0, 1, 0) if seeds is None else (seeds.data_ptr(), seeds.numel(), noise_step)


def _addresses(
    x: Tensor,
    uncond: Tensor | None,
    cond: Tensor,
    history: Sequence[Tensor],
    noise: Tensor | None,
    keeps: int,
    x_next: Tensor,
    x0: Tensor | None,
    kept: Sequence[Tensor],
    model_input: Tensor | None,
) -> tuple[int, tuple[int, ...]]:
    """dtypes and addresses, as the module's docstring has them."""
    operands = [x, uncond, cond, noise, x_next, x0, model_input, *history]
    operands += kept or [None] * keeps
    dtypes = sum(DTYPE_CODES[t.dtype] << 2 * i for i, t in enumerate(operands) if t is not None)
    return dtypes, tuple(0 if t is None else t.data_ptr() for t in operands)


def _laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    if same_layout(tensor, like):
        return tensor
    return torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)


def _laid_out_if(tensor: Tensor | None, like: Tensor) -> Tensor | None:
    return None if tensor is None else _laid_out(tensor, like)


def _noise(
    noise: Tensor | None, seeds: Tensor | None, noise_step: int, step: Tensor | None, like: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """(noise, seeds), one of them None: kernels count elements in the order of memory."""
    if seeds is None or like.is_contiguous():
        return _laid_out_if(noise, like), seeds
    options: dict[str, Any] = {"step": step, "noise_step": noise_step, "stream": STEP_STREAM}
    return _laid_out(philox_normal(seeds, like.shape[1:], **options), like), None


def _launch(
    x: Tensor,
    uncond: Tensor | None,
    cond: Tensor,
    history: Sequence[Tensor],
    noise: Tensor | None,
    rows: Tensor,
    *rest: Any,
) -> None:
    """By the backend for x, or for what no kernel takes: a float64 operand or result."""
    _, _, x_next, x0, kept, model_input, *_ = rest
    every = (x, uncond, cond, noise, rows, *history, x_next, x0, *kept, model_input)
    dtypes = [t.dtype for t in every if t is not None]
    dtype = next((d for d in dtypes if d not in DTYPE_CODES), x.dtype)
    launch = backends.resolve("affine_step", backends.Key(x.device.type, dtype))
    launch(x, uncond, cond, history, noise, rows, *rest)


def _empty(
    x: Tensor, keeps: int, out_dtype: torch.dtype, x0_dtype: torch.dtype
) -> tuple[Tensor, Tensor, list[Tensor]]:
    kept = [torch.empty_like(x, dtype=x0_dtype) for _ in range(keeps)]
    return torch.empty_like(x, dtype=out_dtype), torch.empty_like(x, dtype=x0_dtype), kept


def _functional(
    x: Tensor,
    uncond: Tensor | None,
    cond: Tensor,
    history: Sequence[Tensor],
    noise: Tensor | None,
    rows: Tensor,
    step: Tensor | None,
    keeps: int,
    out_dtype: torch.dtype,
    x0_dtype: torch.dtype,
    seeds: Tensor | None = None,
    noise_step: int = 0,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    x = dense(x, rows.shape[1])
    cond, history = _laid_out(cond, x), [_laid_out(h, x) for h in history]
    uncond = _laid_out_if(uncond, x)
    noise, seeds = _noise(noise, seeds, noise_step, step, x)
    x_next, x0, kept = _empty(x, keeps, out_dtype, x0_dtype)
    args = (x, uncond, cond, history, noise, rows, step, keeps)
    _launch(*args, x_next, x0, kept, None, False, seeds, noise_step)
    return x_next, x0, kept


def _out(
    x: Tensor,
    uncond: Tensor | None,
    cond: Tensor,
    history: Sequence[Tensor],
    noise: Tensor | None,
    rows: Tensor,
    step: Tensor | None,
    keeps: int,
    seeds: Tensor | None = None,
    noise_step: int = 0,
    *,
    x_next: Tensor,
    x0: Tensor | None = None,
    kept: Sequence[Tensor],
    model_input: Tensor | None = None,
) -> None:
    check_overlap(x, uncond, cond, history, noise, x_next, x0, kept, model_input)
    x, cond = _laid_out(x, x_next), _laid_out(cond, x_next)
    uncond = _laid_out_if(uncond, x_next)
    noise, seeds = _noise(noise, seeds, noise_step, step, x_next)
    args = (x, uncond, cond, history, noise, rows, step, keeps)
    _launch(*args, x_next, x0, kept, model_input, True, seeds, noise_step)


def _fake(
    x: Tensor,
    uncond: Tensor | None,
    cond: Tensor,
    history: Sequence[Tensor],
    noise: Tensor | None,
    rows: Tensor,
    step: Tensor | None,
    keeps: int,
    out_dtype: torch.dtype,
    x0_dtype: torch.dtype,
    seeds: Tensor | None = None,
    noise_step: int = 0,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    return _empty(dense(x, rows.shape[1]), keeps, out_dtype, x0_dtype)


def _through_dispatcher(*args: Any) -> tuple[Tensor, Tensor, list[Tensor]]:
    return torch.ops.fastdiff.affine_step.default(*args)  # type: ignore[no-any-return]


def _check_dtypes(out_dtype: torch.dtype, x0_dtype: torch.dtype) -> None:
    check_dtype("out_dtype", out_dtype)
    check_dtype("x0_dtype", x0_dtype)


def _functional_op(*args: Any) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Checked again: whoever calls torch.ops directly reaches raw addresses, too."""
    check_arguments(*args[:8], *args[10:])
    _check_dtypes(*args[8:10])
    return _functional(*args)


def _out_op(
    *args: Any,
    x_next: Tensor,
    x0: Tensor | None = None,
    kept: Sequence[Tensor],
    model_input: Tensor | None = None,
) -> None:
    check_arguments(*args)
    check_outputs(args[0], args[5], args[7], args[3], x_next, x0, model_input, kept)
    _out(*args, x_next=x_next, x0=x0, kept=kept, model_input=model_input)


torch.library.impl("fastdiff::affine_step", "CompositeExplicitAutograd")(_functional_op)
torch.library.impl("fastdiff::affine_step.out", "CompositeExplicitAutograd")(_out_op)
torch.library.register_fake("fastdiff::affine_step")(_fake)
torch.library.register_fake("fastdiff::affine_step.out")(lambda *args, **outputs: None)
torch.library.register_autograd(
    "fastdiff::affine_step",
    affine_step_reference.backward,
    setup_context=affine_step_reference.save_for_backward,
)
backends.register(
    "affine_step",
    reference="fastdiff.ops.affine_step_reference:launch",
    cpu="fastdiff.ops.affine_step:launch_cpu",
    cuda="fastdiff.ops.affine_step:launch_cuda",
    triton="fastdiff.kernels.affine_step:launch",
)
