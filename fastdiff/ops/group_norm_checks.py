"""What group_norm asks of its arguments; errors name the argument, what it got, what would do."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastdiff.ops._arguments import check_floating, check_integer, check_number, check_tensor


def fits(x: Tensor, last: bool) -> bool:
    """Whether x (N, C, *spatial) lies contiguous, or `last`, with its channels innermost."""
    if not last:
        return x.is_contiguous()
    if x.dim() == 4:
        return x.is_contiguous(memory_format=torch.channels_last)
    return x.movedim(1, -1).is_contiguous()


def channels_last(x: Tensor) -> bool:
    """Whether the channels of x (N, C, *spatial) are innermost; False where both layouts agree."""
    return not x.is_contiguous() and fits(x, True)


def dense(x: Tensor) -> Tensor:
    """x if it is contiguous or channels last, else a contiguous copy."""
    return x if x.is_contiguous() or fits(x, True) else x.contiguous()


def check_arguments(
    x: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    addend: Tensor | None,
    residual: Tensor | None,
    x2: Tensor | None,
) -> None:
    check_floating("x", x)
    if x.dim() < 2:
        raise ValueError(f"x must be (N, C, *spatial), got {tuple(x.shape)}. Try x[None]")
    if 0 in x.shape[1:]:
        raise ValueError(
            f"x must have at least one channel and one place, for its mean; got {tuple(x.shape)}"
        )
    if x2 is not None:
        check_second(x, x2)
    channels = x.shape[1] + (0 if x2 is None else x2.shape[1])
    check_integer("groups", groups)
    if groups < 1 or channels % groups:
        raise ValueError(
            f"groups must be at least 1 and divide the {channels} channels"
            f"{'' if x2 is None else ' of x and x2'}; got {groups}"
        )
    check_number("eps", eps)
    if not eps >= 0:
        raise ValueError(f"eps must not be negative, got {eps}. Try 1e-5")
    if residual is not None:
        check_like_x("residual", residual, x, (x.shape[0], channels, *x.shape[2:]))
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None:
            check_vector(name, tensor, x, ((channels,),))
            if tensor.dtype not in (x.dtype, torch.float32):
                raise TypeError(
                    f"{name} must be float32 or of the dtype of x, {x.dtype}; got {tensor.dtype}. "
                    f"Try {name}.to(x.dtype)"
                )
    if addend is not None:
        check_vector("addend", addend, x, ((x.shape[0], channels), (channels,)))
        check_floating("addend", addend)


def check_second(x: Tensor, x2: Tensor) -> None:
    check_tensor("x2", x2)
    if x2.dim() != x.dim() or x2.dim() < 2 or x2.shape[1] == 0:
        fits = False
    else:
        fits = x2.shape[0] == x.shape[0] and x2.shape[2:] == x.shape[2:]
    if not fits:
        wanted = ", ".join(str(n) for n in (x.shape[0], "any", *x.shape[2:]))
        raise ValueError(
            f"x2 must have the shape of x but for its channels, ({wanted}); got {tuple(x2.shape)}. "
            "For no second source pass None"
        )
    check_like_x("x2", x2, x, tuple(x2.shape))


def check_like_x(name: str, tensor: Tensor, x: Tensor, shape: tuple[int, ...]) -> None:
    check_tensor(name, tensor)
    if tuple(tensor.shape) != shape or tensor.device != x.device:
        raise ValueError(
            f"{name} must be {shape} on the device of x, {x.device}; got {tuple(tensor.shape)} on "
            f"{tensor.device}. Try {name}.expand(..) or .to(x.device)"
        )
    if tensor.dtype != x.dtype:
        raise TypeError(
            f"{name} must be of the dtype of x, {x.dtype}; got {tensor.dtype}. "
            f"Try {name}.to(x.dtype)"
        )


def check_vector(name: str, tensor: Tensor, x: Tensor, shapes: Sequence[tuple[int, ...]]) -> None:
    check_tensor(name, tensor)
    if tuple(tensor.shape) not in shapes or tensor.device != x.device:
        wanted = " or ".join(map(str, shapes))
        raise ValueError(
            f"{name} must be {wanted} on the device of x, {x.device}; got {tuple(tensor.shape)} on "
            f"{tensor.device}. Try {name}.flatten() or .to(x.device)"
        )


def check_outputs(
    x: Tensor,
    residual: Tensor | None,
    x2: Tensor | None,
    tokens: bool,
    out: Tensor,
    total: Tensor | None,
) -> None:
    """What the out form writes: shape, dtype, device, and the one layout that x decides."""
    channels = x.shape[1] + (0 if x2 is None else x2.shape[1])
    shape = (x.shape[0], channels, *x.shape[2:])
    if (total is None) != (residual is None):
        which = "residual without total" if total is None else "total without residual"
        raise ValueError(
            f"total must be given with residual, and only then; got {which}. "
            f"Try {'total=torch.empty_like(residual)' if total is None else 'total=None'}"
        )
    last = channels_last(x)
    wanted = (x.shape[0], x.shape[2:].numel(), channels) if tokens else shape
    check_like_x("out", out, x, wanted)
    check_layout("out", out, last and not tokens)
    if total is not None:
        check_like_x("total", total, x, shape)
        check_layout("total", total, last)
    for name, written in (("out", out), ("total", total)):
        if written is not None and torch.is_grad_enabled() and written.requires_grad:
            raise ValueError(f"{name} requires grad, and the out form records none. Use group_norm")


def check_layout(name: str, tensor: Tensor, last: bool) -> None:
    if fits(tensor, last):
        return
    raise ValueError(
        f"{name} must be {'channels last, as x is' if last else 'contiguous'}; got strides "
        f"{tensor.stride()} for {tuple(tensor.shape)}. Try torch.empty(..)"
        f"{'.movedim(-1, 1)' if last else ''}"
    )


OPERANDS = ("x", "weight", "bias", "addend", "residual", "x2")


def check_overlap(read: Sequence[Tensor | None], written: Sequence[Tensor | None]) -> None:
    """out and total share no memory with OPERANDS, nor with each other; all are dense."""
    spans = [
        (t.data_ptr(), t.data_ptr() + t.numel() * t.element_size(), name)
        for name, t in zip(("out", "total"), written, strict=True)
        if t is not None
    ]
    for begin, end, name in spans:
        for other, tensor in zip((*OPERANDS, "out"), (*read, written[0]), strict=True):
            if tensor is None or tensor.data_ptr() >= end or other == name:
                continue
            if tensor.data_ptr() + tensor.numel() * tensor.element_size() > begin:
                raise ValueError(
                    f"{name} must not overlap {other} in memory. Give it memory of its own"
                )
