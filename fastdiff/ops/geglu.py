"""geglu: the gate of a transformer's feed-forward block (Shazeer 2020, arXiv:2002.05202).

    y = value * gelu(gate),   value = x[.., :D],  gate = x[.., D:],   gelu(g) = g * Phi(g)

x  (.., 2D)   floating; as diffusers' GEGLU splits it, `hidden, gate = x.chunk(2, dim=-1)`
y  (.., D)    contiguous, of x's dtype and device

Phi is the normal distribution function, (1 + erf(g / sqrt(2))) / 2, not its tanh approximation.
All is computed in float32 (by the reference in float64, if x is float64) and rounded to the dtype
of x once.  Kernels approximate Phi each in its own way: for float32 to a few roundings of float32,
for 16 bits to a fraction of their rounding.  Where gelu is below 1e-11 they may be off by as much.
The bits of an element depend on value and gate alone.  D and any leading dimension may be 0; an x
that is not contiguous is copied first.

Every backend has `launch(x, out) -> None`, called on contiguous tensors.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff import backends
from fastdiff.ops._arguments import check_floating
from fastdiff.ops._pointwise import call, implement, kernel, wide

__all__ = ["geglu", "geglu_ref"]

DTYPE_CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}

torch.library.define("fastdiff::geglu", "(Tensor x) -> Tensor")


def geglu(x: Tensor) -> Tensor:
    """Return value * gelu(gate), (.., D), as a new tensor; differentiable."""
    check_arguments(x)
    y: Tensor = call(torch.ops.fastdiff.geglu.default, _run, geglu_ref, x)
    return y


def geglu_ref(x: Tensor) -> Tensor:
    """The definition in PyTorch operators: on any device, through any transform."""
    width = x.shape[-1] // 2
    value, gate = x[..., :width].to(wide(x)), x[..., width:].to(wide(x))
    return (value * F.gelu(gate)).to(x.dtype)


def launch_reference(x: Tensor, out: Tensor) -> None:
    """Write the result where a kernel would write it."""
    out.copy_(geglu_ref(x))


def launch_cpu(x: Tensor, out: Tensor) -> None:
    """csrc/geglu.cpp."""
    if out.numel() == 0:
        return
    from fastdiff import _C

    code, width = DTYPE_CODES[x.dtype], out.shape[-1]
    rows = out.numel() // width
    _C.geglu(x.data_ptr(), out.data_ptr(), code, rows, width, torch.get_num_threads())


def check_arguments(x: Tensor) -> None:
    check_floating("x", x)
    if x.dim() == 0 or x.shape[-1] % 2:
        raise ValueError(
            "x must be (.., 2D), value and gate side by side in the last dimension; got "
            f"{tuple(x.shape)}. Try torch.cat([value, gate], dim=-1)"
        )


def _empty(x: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], x.shape[-1] // 2))


def _run(x: Tensor) -> Tensor:
    y, launch = _empty(x), kernel("geglu", x)
    launch(x.contiguous(), y)
    return y


implement("geglu", check_arguments, _run, _empty, geglu_ref)
backends.register(
    "geglu",
    reference="fastdiff.ops.geglu:launch_reference",
    cpu="fastdiff.ops.geglu:launch_cpu",
    triton="fastdiff.kernels.geglu:launch",
)
