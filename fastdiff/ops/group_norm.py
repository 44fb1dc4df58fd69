"""group_norm: GroupNorm of all that a U-Net adds up before it, with the SiLU after it.

    v = [x, x2] (channels) + addend[n, c] + residual
    y = (v - mean) * rstd * weight[c] + bias[c]        mean, rstd = 1 / sqrt(var + eps) of each
    y = y * sigmoid(y)           with silu             (sample, group); the variance is the biased

x         (N, C1, *spatial)   floating, C1 > 0; L = the product of spatial, at least 1; N may be 0
x2        (N, C2, *spatial)   second source, never concatenated; C = C1 + C2, groups divides C, and
                              a group may straddle x and x2
addend    (N, C) or (C,)      any floating dtype: the bias of a convolution, a time embedding
residual  (N, C, *spatial)
weight    (C,), bias (C,)     float32 or of the dtype of x
y         (N, C, *spatial)    tokens=True: (N, L, C) contiguous
total     (N, C, *spatial)    only with residual

x, x2, residual, y and total share one dtype and device.  All is computed in float32 (by the
reference in float64, if x is float64), and y is rounded to the dtype of x once.  Without residual
v is not rounded.  With residual, total = v = ((x + addend) + residual), each sum rounded to float32
and the last one to the dtype of x: the same bits from every kernel; the norm is that of total.

Kernels differ in the order of sums, so that y is the same but for rounding.  Each must be sound at
|mean| / std up to 1000 and with 8 M elements a group: sums are of differences to a value nearby.
In float32, y comes from v - mean, not from v * A + B.  The bits of a sample depend neither on N,
nor on the other samples, nor on threads or blocks that run, and no float is added atomically.

One dense layout, contiguous (N, C, L) or channels last (N, L, C), is that of x, and of all others:
operands in another one are copied first, and an x that is neither becomes contiguous.  Where both
agree (C1 = 1 or L = 1) it counts as contiguous.  The out form writes where the caller says, in that
layout; what it writes overlaps nothing else.

Every backend has `launch(x, groups, weight, bias, eps, silu, addend, residual, x2, tokens, out,
total) -> None`, called with N > 0 on tensors of the one layout (channels_last(x) tells which);
weight and bias contiguous; addend (N, C) contiguous float32 (float64 with x) or None; out and total
allocated, total None without residual.
"""

import math
from typing import Any

import torch
from torch import Tensor

from fastdiff import backends
from fastdiff.ops import group_norm_reference
from fastdiff.ops._arguments import flag, foreign, integer, number
from fastdiff.ops.group_norm_checks import (
    channels_last,
    check_arguments,
    check_outputs,
    check_overlap,
    dense,
    fits,
)
from fastdiff.ops.group_norm_reference import group_norm_ref

__all__ = ["channels_last", "group_norm", "group_norm_out", "group_norm_ref"]

DTYPE_CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}

torch.library.define(
    "fastdiff::group_norm",
    "(Tensor x, int groups, Tensor? weight, Tensor? bias, float eps, bool silu, Tensor? addend, "
    "Tensor? residual, Tensor? x2, bool tokens) -> (Tensor y, Tensor total)",
)
# What is called out must be contiguous for torch.compile; hence y, which may be channels last.
torch.library.define(
    "fastdiff::group_norm.out",
    "(Tensor x, int groups, Tensor? weight, Tensor? bias, float eps, bool silu, Tensor? addend, "
    "Tensor? residual, Tensor? x2, bool tokens, *, Tensor(a!) y, Tensor(b!)? total=None) -> ()",
)


def group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    silu: bool = False,
    addend: Tensor | None = None,
    residual: Tensor | None = None,
    x2: Tensor | None = None,
    tokens: bool = False,
) -> Any:
    """Return y, or (y, total) with a residual, as new tensors; differentiable in all tensors."""
    groups, eps = integer("groups", groups), number("eps", eps)
    silu, tokens = flag("silu", silu), flag("tokens", tokens)
    args = (x, groups, weight, bias, eps, silu, addend, residual, x2, tokens)
    tensors = (x, weight, bias, addend, residual, x2)
    check_arguments(x, groups, weight, bias, eps, addend, residual, x2)
    y: Tensor
    total: Tensor | None
    if torch.compiler.is_compiling():
        y, total = _through_dispatcher(*args)
    elif backends.why_reference(*tensors) is None:
        y, total = _functional(*args)
    elif backends.why_recorded() or any(map(foreign, tensors)):
        y, total = group_norm_ref(*args)  # plain operators, which everything can record or wrap
    else:
        y, total = _through_dispatcher(*args)
    return y if residual is None else (y, total)


def group_norm_out(
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    out: Tensor,
    total: Tensor | None = None,
    eps: float = 1e-5,
    silu: bool = False,
    addend: Tensor | None = None,
    residual: Tensor | None = None,
    x2: Tensor | None = None,
    tokens: bool = False,
) -> None:
    """Write y into out, and with a residual the sum into total.  Not differentiable."""
    groups, eps = integer("groups", groups), number("eps", eps)
    silu, tokens = flag("silu", silu), flag("tokens", tokens)
    args = (x, groups, weight, bias, eps, silu, addend, residual, x2, tokens)
    tensors = (x, weight, bias, addend, residual, x2, out, total)
    check_arguments(x, groups, weight, bias, eps, addend, residual, x2)
    check_outputs(dense(x), residual, x2, tokens, out, total)
    direct = not torch.compiler.is_compiling() and backends.why_reference(*tensors) is None
    run = _out if direct else torch.ops.fastdiff.group_norm.out
    run(*args, y=out, total=total)


def launch_cpu(
    x: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    silu: bool,
    addend: Tensor | None,
    residual: Tensor | None,
    x2: Tensor | None,
    tokens: bool,
    out: Tensor,
    total: Tensor | None,
) -> None:
    """csrc/group_norm.cpp on tensors of one dense layout."""
    from fastdiff import _C

    args = _native(x, groups, weight, bias, eps, silu, addend, residual, x2, tokens, out, total)
    _C.group_norm(*args, torch.get_num_threads())


def launch_cuda(
    x: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    silu: bool,
    addend: Tensor | None,
    residual: Tensor | None,
    x2: Tensor | None,
    tokens: bool,
    out: Tensor,
    total: Tensor | None,
) -> None:
    """csrc/group_norm.cu on tensors of one dense layout, on the current stream of their device."""
    from fastdiff import _C

    args = _native(x, groups, weight, bias, eps, silu, addend, residual, x2, tokens, out, total)
    _, dtypes, sizes, *_, last = args
    with torch.cuda.device(x.device):
        size = _C.group_norm_cuda_workspace(sizes, groups, dtypes[0], last)
        # From torch, so that under capture it lies in the pool of the graph.
        workspace = torch.empty(size, dtype=torch.uint8, device=x.device)
        _C.group_norm_cuda(*args, workspace.data_ptr(), torch.cuda.current_stream().cuda_stream)


def _native(
    x: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    silu: bool,
    addend: Tensor | None,
    residual: Tensor | None,
    x2: Tensor | None,
    tokens: bool,
    out: Tensor,
    total: Tensor | None,
) -> tuple[Any, ...]:
    """(addresses, dtypes, (N, L, C1, C2), groups, eps, silu, tokens, last): what _C.group_norm and
    _C.group_norm_cuda take before the number of threads, or the stream.

    addresses: (x, x2, residual, addend, weight, bias, out, total), 0 = None; dtypes: the codes of
    x, weight and bias; last: channels last, else contiguous.
    """
    tensors = (x, x2, residual, addend, weight, bias, out, total)
    addresses = [0 if t is None else t.data_ptr() for t in tensors]
    dtypes = [0 if t is None else DTYPE_CODES[t.dtype] for t in (x, weight, bias)]
    samples, first, *spatial = x.shape
    sizes = (samples, math.prod(spatial), first, 0 if x2 is None else x2.shape[1])
    return addresses, dtypes, sizes, groups, eps, silu, tokens, channels_last(x)


def _empty(like: Tensor, channels: int) -> Tensor:
    """(N, channels, *spatial) uninitialised, in the layout of `like`, which is dense."""
    samples, own, *spatial = like.shape
    if channels == own:
        return torch.empty_like(like)
    if channels_last(like):
        return like.new_empty((samples, *spatial, channels)).movedim(-1, 1)
    return like.new_empty((samples, channels, *spatial))


def _results(
    x: Tensor, residual: Tensor | None, x2: Tensor | None, tokens: bool
) -> tuple[Tensor, Tensor | None]:
    """y, and with a residual total, uninitialised; x is dense."""
    channels = x.shape[1] + (0 if x2 is None else x2.shape[1])
    total = None if residual is None else _empty(x, channels)
    if tokens:
        return x.new_empty((x.shape[0], x.shape[2:].numel(), channels)), total
    return _empty(x, channels), total


def _laid_out(tensor: Tensor | None, like: Tensor) -> Tensor | None:
    """tensor (N, any, *spatial) in the layout of `like`, which is dense."""
    if tensor is None:
        return None
    last = channels_last(like)
    if fits(tensor, last):
        return tensor
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1) if last else tensor.contiguous()


def _launch(
    x: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    silu: bool,
    addend: Tensor | None,
    residual: Tensor | None,
    x2: Tensor | None,
    tokens: bool,
    out: Tensor,
    total: Tensor | None,
    fresh: bool,
) -> None:
    """Bring the operands to the layout of x, which is dense, and run the kernel; fresh: out and
    total are new memory."""
    launch = backends.resolve("group_norm", backends.Key(x.device.type, x.dtype))
    if x.shape[0] == 0:
        return
    x2, residual = _laid_out(x2, x), _laid_out(residual, x)
    weight, bias = (None if p is None else p.contiguous() for p in (weight, bias))
    if addend is not None:
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        addend = addend.to(wide).expand(x.shape[0], -1).contiguous()
    if not fresh:
        check_overlap((x, weight, bias, addend, residual, x2), (out, total))
    launch(x, groups, weight, bias, eps, silu, addend, residual, x2, tokens, out, total)


def _functional(
    x: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    silu: bool,
    addend: Tensor | None,
    residual: Tensor | None,
    x2: Tensor | None,
    tokens: bool,
) -> tuple[Tensor, Tensor | None]:
    x = dense(x)
    y, total = _results(x, residual, x2, tokens)
    _launch(x, groups, weight, bias, eps, silu, addend, residual, x2, tokens, y, total, True)
    return y, total


def _out(
    x: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    silu: bool,
    addend: Tensor | None,
    residual: Tensor | None,
    x2: Tensor | None,
    tokens: bool,
    *,
    y: Tensor,
    total: Tensor | None = None,
) -> None:
    args = (groups, weight, bias, eps, silu, addend, residual, x2, tokens)
    _launch(dense(x), *args, y, total, False)


def _fake(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    _check(x, *rest)
    residual, x2, tokens = rest[6:]
    return _total_or_empty(x, *_results(dense(x), residual, x2, tokens))


def _total_or_empty(x: Tensor, y: Tensor, total: Tensor | None) -> tuple[Tensor, Tensor]:
    """What the op returns, whose schema has no optional result."""
    return y, x.new_empty(0) if total is None else total


def _through_dispatcher(*args: Any) -> tuple[Tensor, Tensor]:
    return torch.ops.fastdiff.group_norm.default(*args)  # type: ignore[no-any-return]


def _check(*args: Any) -> None:
    x, groups, weight, bias, eps, _, addend, residual, x2, _ = args
    check_arguments(x, groups, weight, bias, eps, addend, residual, x2)


def _functional_op(*args: Any) -> tuple[Tensor, Tensor]:
    _check(*args)  # whoever calls torch.ops directly reaches raw addresses, too
    return _total_or_empty(args[0], *_functional(*args))


def _out_op(*args: Any, y: Tensor, total: Tensor | None = None) -> None:
    _check_out(*args, y=y, total=total)
    _out(*args, y=y, total=total)


def _check_out(*args: Any, y: Tensor, total: Tensor | None = None) -> None:
    """What the fake of the out form does, too: it writes nothing."""
    _check(*args)
    residual, x2, tokens = args[7:]
    check_outputs(dense(args[0]), residual, x2, tokens, y, total)


torch.library.impl("fastdiff::group_norm", "CompositeExplicitAutograd")(_functional_op)
torch.library.impl("fastdiff::group_norm.out", "CompositeExplicitAutograd")(_out_op)
torch.library.register_fake("fastdiff::group_norm")(_fake)
torch.library.register_fake("fastdiff::group_norm.out")(_check_out)
torch.library.register_autograd(
    "fastdiff::group_norm",
    group_norm_reference.backward,
    setup_context=group_norm_reference.save_for_backward,
)
backends.register(
    "group_norm",
    reference="fastdiff.ops.group_norm_reference:launch",
    cpu="fastdiff.ops.group_norm:launch_cpu",
    triton="fastdiff.kernels.group_norm:launch",
    cuda="fastdiff.ops.group_norm:launch_cuda",
)
