"""What geglu, add_layer_norm and bias_residual share: the way to a kernel, the way back, checks.

call        one call of an op, by whichever of three paths is right
implement   what PyTorch asks of an op: dispatcher, shapes without data, derivative
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastdiff import backends
from fastdiff.ops._arguments import foreign

Function = Callable[..., Any]


def call(op: Function, run: Function, reference: Function, *args: Any) -> Any:
    """run(*args) at once where nothing records; else the same through the dispatcher, as op, or,
    where no custom op can be followed, by plain operators."""
    if torch.compiler.is_compiling():
        return op(*args)
    tensors = [a for a in args if isinstance(a, Tensor)]
    if backends.why_reference(*tensors) is None:
        return run(*args)
    if backends.why_recorded() or any(map(foreign, tensors)):
        return reference(*args)
    return op(*args)


def implement(name: str, check: Function, run: Function, fake: Function, ref: Function) -> None:
    """Register run (on checked arguments), fake, and the derivative of ref, all with the arguments
    of the schema, for fastdiff::name."""

    def checked(*args: Any) -> Any:  # whoever calls torch.ops directly reaches raw addresses, too
        check(*args)
        return run(*args)

    def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.is_tensor = [isinstance(value, Tensor) for value in inputs]
        ctx.numbers = [None if isinstance(value, Tensor) else value for value in inputs]
        ctx.save_for_backward(*(value for value in inputs if isinstance(value, Tensor)))

    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """ref is computed once more, recorded, from views: x may have been passed twice."""
        again = torch.is_grad_enabled()  # a derivative of the derivative is wanted
        with torch.enable_grad():
            tensors = iter([t.view_as(t) for t in ctx.saved_tensors])
            each = zip(ctx.is_tensor, ctx.numbers, strict=True)
            inputs = [next(tensors) if is_tensor else number for is_tensor, number in each]
            results = ref(*inputs)
        results = (results,) if isinstance(results, Tensor) else results
        used = [(r, g) for r, g in zip(results, grads, strict=True) if r.requires_grad]
        used = [(r, g) for r, g in used if g is not None]
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad) if needed]
        found = torch.autograd.grad(
            [r for r, _ in used],
            [inputs[i] for i in wanted],
            [g for _, g in used],
            create_graph=again,
            allow_unused=True,
        )
        by_input = dict(zip(wanted, found, strict=True))
        return tuple(by_input.get(i) for i in range(len(inputs)))

    qualified = f"fastdiff::{name}"
    torch.library.impl(qualified, "CompositeExplicitAutograd")(checked)
    torch.library.register_fake(qualified)(fake)
    torch.library.register_autograd(qualified, backward, setup_context=save)


def kernel(name: str, x: Tensor) -> Function:
    """The launcher of the op for tensors like x."""
    return backends.resolve(name, backends.Key(x.device.type, x.dtype))


def wide(x: Tensor) -> torch.dtype:
    """The dtype of the arithmetic."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def check_parameter_dtype(name: str, parameter: Tensor, x: Tensor) -> None:
    if parameter.dtype not in (x.dtype, torch.float32):
        raise TypeError(
            f"{name} must be float32 or of the dtype of x, {x.dtype}; got {parameter.dtype}. "
            f"Try {name}.to(x.dtype)"
        )
