"""What affine_step asks of its arguments; errors name the argument, what it got, what would do."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from fastdiff.ops._arguments import check_floating, check_integer, check_tensor
from fastdiff.ops.philox_normal import check_counter, check_seeds

MAX_COLUMNS, MAX_VECTORS = 64, 25  # K; P + R


def row_size(keeps: int, depth: int) -> int:
    """K, the columns of a row for P = keeps kept vectors and R = depth history tensors."""
    return 7 + (1 + keeps) * (4 + depth) + 1 + keeps


def check_arguments(
    x: Tensor,
    uncond: Tensor | None,
    cond: Tensor,
    history: list[Tensor],
    noise: Tensor | None,
    rows: Tensor,
    step: Tensor | None,
    keeps: int,
    seeds: Tensor | None = None,
    noise_step: int = 0,
) -> None:
    check_tensor("x", x)
    check_integer("keeps", keeps)
    check_counter("noise_step", noise_step)  # with seeds or without
    if keeps < 0:
        raise ValueError(f"keeps must be at least 0, got {keeps}")
    named = {"x": x, "uncond": uncond, "cond": cond, "noise": noise}
    named |= {f"history[{r}]": h for r, h in enumerate(history)}
    for name, tensor in named.items():
        if tensor is None:
            continue
        check_tensor(name, tensor)
        if tensor.shape != x.shape or tensor.device != x.device:
            raise ValueError(
                f"{name} must have the shape and device of x, {tuple(x.shape)} on {x.device}; got "
                f"{tuple(tensor.shape)} on {tensor.device}. Try {name}.expand(..) or .to(x.device)"
            )
        check_floating(name, tensor)
    columns, depth = row_size(keeps, len(history)), len(history)
    if columns > MAX_COLUMNS or keeps + depth > MAX_VECTORS:
        raise ValueError(
            f"a row has at most {MAX_COLUMNS} columns, for at most {MAX_VECTORS} kept vectors and "
            f"history tensors; got keeps={keeps} and {depth} history tensors ({columns} columns)"
        )
    check_tensor("rows", rows)
    samples = rows.shape[1] if rows.dim() == 3 else 0
    batch = x.shape[0] if x.dim() else 1
    if rows.dim() != 3 or rows.shape[2] != columns or samples not in (1, batch):
        raise ValueError(
            f"rows must be (steps, 1 or {batch}, {columns}) for keeps={keeps} and {depth} history "
            f"tensors; got {tuple(rows.shape)}. One row of a table is table[i, None, :][None]"
        )
    if rows.dtype not in (torch.float32, torch.float64) or not rows.is_contiguous():
        raise ValueError(
            "rows must be contiguous float32 (float64 runs the reference), got strides "
            f"{rows.stride()} of {rows.dtype}. Try rows.float().contiguous()"
        )
    if rows.device != x.device:
        raise ValueError(f"rows must be on the device of x, {x.device}; got {rows.device}")
    if seeds is not None:
        if noise is not None:
            raise ValueError(
                "noise and seeds were both given: pass noise, or seeds to draw it from"
            )
        check_tensor("seeds", seeds)
        if tuple(seeds.shape) != tuple(x.shape[:1]) or seeds.device != x.device:
            raise ValueError(
                f"seeds must be ({batch},), one for each sample of x, on {x.device}; got "
                f"{tuple(seeds.shape)} on {seeds.device}"
            )
        check_seeds(seeds, None, noise_step)
    if step is None:
        return
    if not isinstance(step, Tensor):
        raise TypeError(
            f"step must be a 0-d int32 tensor, got {step!r}. Try torch.tensor({step!r}, "
            "dtype=torch.int32, device=rows.device)"
        )
    if step.dim() != 0 or step.dtype != torch.int32 or step.device != rows.device:
        raise ValueError(
            f"step must be a 0-d int32 tensor on the device of rows, {rows.device}; got "
            f"{tuple(step.shape)} {step.dtype} on {step.device}. Try torch.tensor(i, "
            "dtype=torch.int32, device=rows.device)"
        )


def check_outputs(
    x: Tensor,
    rows: Tensor,
    keeps: int,
    history: Sequence[Tensor],
    x_next: Tensor,
    x0: Tensor | None,
    model_input: Tensor | None,
    kept: Sequence[Tensor],
) -> None:
    """Everything that the out form writes has the shape of x and the dense layout of x_next."""
    if len(kept) not in (0, keeps):
        raise ValueError(f"kept must be empty or {keeps} tensors (keeps), got {len(kept)}")
    check_tensor("x_next", x_next)
    written = {"x_next": x_next, "x0": x0, "model_input": model_input}
    written |= {f"kept[{p}]": t for p, t in enumerate(kept)}
    written |= {f"history[{r}]": t for r, t in enumerate(history)}
    for name, out in written.items():
        if out is None:
            continue
        check_floating(name, out)
        if out.shape != x.shape or out.device != x.device or not same_layout(out, x_next):
            raise ValueError(
                f"{name} must have the shape and device of x and the layout of x_next, "
                f"{tuple(x.shape)} on {x.device} with strides {x_next.stride()}; got "
                f"{tuple(out.shape)} on {out.device} with {out.stride()}. "
                "Try torch.empty_like(x_next)"
            )
        if torch.is_grad_enabled() and out.requires_grad:
            raise ValueError(
                f"{name} requires grad, and the out form records none. Use affine_step"
            )
    if dense(x_next, rows.shape[1]) is not x_next:
        raise ValueError(
            "x_next must be dense, with the batch outermost if rows are per sample; got strides "
            f"{x_next.stride()} for {tuple(x_next.shape)}. Try torch.empty(x.shape)"
        )


def check_overlap(
    x: Tensor,
    uncond: Tensor | None,
    cond: Tensor,
    history: Sequence[Tensor],
    noise: Tensor | None,
    x_next: Tensor,
    x0: Tensor | None,
    kept: Sequence[Tensor],
    model_input: Tensor | None,
) -> None:
    """What is written may be an operand, element for element, but not overlap it otherwise."""
    read = {"x": x, "uncond": uncond, "cond": cond, "noise": noise}
    written = {"x_next": x_next, "x0": x0, "model_input": model_input}
    written |= {f"kept[{p}]": t for p, t in enumerate(kept)}
    written |= {f"history[{r}]": t for r, t in enumerate(history)}
    spans = sorted(_spans(written))
    clashes = [(a, b) for a, b in pairwise(spans) if b[0] < a[1]]
    clashes += [
        (a, b)
        for a in _spans(read)
        for b in spans
        if a[0] < b[1] and b[0] < a[1] and a[:2] != b[:2]
    ]
    for a, b in clashes:
        raise ValueError(
            f"{b[2]} must not overlap {a[2]} in memory, unless it is written in place of an "
            "operand (x_next may be x). Give each result memory of its own"
        )


def _spans(named: dict[str, Tensor | None]) -> list[tuple[int, int, str]]:
    return [
        (t.data_ptr(), t.data_ptr() + t.numel() * t.element_size(), name)
        for name, t in named.items()
        if t is not None and t.numel()
    ]


def same_layout(a: Tensor, b: Tensor) -> bool:
    """Whether equal offsets mean equal elements; strides of dimensions of size 1 do not count."""
    strides = a.stride(), b.stride()
    if strides[0] == strides[1]:
        return True
    return all(n == 1 or s == t for n, s, t in zip(a.shape, *strides, strict=True))


def dense(x: Tensor, samples: int) -> Tensor:
    """x if it fills its memory without gaps (batch outermost if samples > 1), else a copy."""
    if x.is_contiguous():
        return x
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size != 1 and stride != expected:
            return x.contiguous()
        expected *= size
    if samples > 1 and x.stride(0) * samples != x.numel():
        return x.contiguous()
    return x
