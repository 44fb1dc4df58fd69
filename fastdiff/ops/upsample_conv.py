"""upsample_conv: nearest-neighbour upsampling by 2 and the 3x3 convolution after it, as four 2x2.

    y = conv2d(u, weight, bias, padding=1)        u[n, c, r, s] = x[n, c, r // 2, s // 2]

x       (N, C, H, W)     floating; N may be 0, the other sizes at least 1
weight  (O, C, 3, 3)     dtype and device of x
bias    (O,) or None     dtype and device of x
y       (N, O, 2H, 2W)   of the dtype of x, in its layout (channels last or contiguous)

Two neighbouring rows of u are one row of x, so of the three rows under the filter two are equal,
and so for columns.  For the four parities (a, b) of the place of an output,

    y[n, o, 2i+a, 2j+b] = bias[o] + sum_{c,d,e} V[a, b, o, c, d, e] x[n, c, i+a-1+d, j+b-1+e]
    V[a, b, o, c, d, e] = sum_{k,l} P[a, d, k] P[b, e, l] weight[o, c, k, l]        d, e in (0, 1)
    P[0] = [[1, 0, 0], [0, 1, 1]]        P[1] = [[1, 1, 0], [0, 0, 1]]

with x = 0 outside: 4 x 4 products an input pixel and pair of channels, not 4 x 9.  One convolution
of x with all of V gives z (N, (a, b, o), H+1, W+1), whose row i is centred between the rows i-1 and
i of x; a pass over memory brings z[a, b, o, i+a, j+b] to its place.

V is summed in float32 (in float64, if x is float64) and rounded to the dtype of x once.  It is made
anew in each call (9 reads and 16 writes a pair of channels): weights may change in ways that leave
no trace (`weight.data += delta`, as merging a LoRA does).  `pays` says where all this was measured
to be faster.

Every backend has `launch(z, out) -> None`: the pass over memory, both tensors of one dense layout.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff import backends
from fastdiff.ops._arguments import check_floating, check_tensor
from fastdiff.ops._pointwise import call, implement, kernel, wide
from fastdiff.ops.group_norm_checks import channels_last, dense

__all__ = ["pays", "phase_weights", "upsample_conv", "upsample_conv_ref"]

P = torch.tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])  # [parity, place, row of weight]

torch.library.define("fastdiff::upsample_conv", "(Tensor x, Tensor weight, Tensor? bias) -> Tensor")


def upsample_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return y as a new tensor; differentiable in x, weight and bias."""
    args = (x, weight, bias)
    check_arguments(*args)
    y: Tensor = call(torch.ops.fastdiff.upsample_conv.default, _run, upsample_conv_ref, *args)
    return y


def upsample_conv_ref(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The definition in PyTorch operators: on any device, through any transform."""
    return F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), weight, bias, padding=1)


def phase_weights(weight: Tensor, last: bool) -> Tensor:
    """V as the filters of one convolution, ((a, b, o), C, 2, 2); last: in channels-last memory.

    By matrix products with the zeros and ones of P: 8 times faster on a CPU than 16 sums of slices
    of a contiguous weight, and as exact (where products are allowed to be made in TF32, so is the
    convolution that follows, which rounds V alike).
    """
    outputs, inputs = weight.shape[:2]
    kind = wide(weight)
    p = P.to(weight.device, kind)
    sums = torch.einsum("adk,bel->abdekl", p, p).reshape(4, 4, 9)
    if last:
        taps = weight.to(kind).permute(0, 2, 3, 1).reshape(outputs, 9, inputs)
        v = taps.new_empty((4, outputs, 4, inputs))
        for parity in range(4):
            torch.matmul(sums[parity], taps, out=v[parity])
        v = v.view(4 * outputs, 2, 2, inputs).permute(0, 3, 1, 2)
    else:
        taps = weight.to(kind).reshape(outputs * inputs, 9)
        v = taps.new_empty((4, outputs * inputs, 4))
        for parity in range(4):
            torch.mm(taps, sums[parity].t(), out=v[parity])
        v = v.view(4 * outputs, inputs, 2, 2)
    return v.to(weight.dtype)


def pays(x: Tensor, weight: Tensor) -> str | None:
    """None where upsample_conv was measured to be faster than PyTorch's two operators, else why it
    is not to be taken."""
    if not x.is_cpu:
        return f"not yet measured on {x.device.type} devices"
    if x.dtype != torch.float32:
        return f"measured in float32 only, this is {x.dtype}"
    if (pixels := x.shape[2] * x.shape[3]) < 1024:
        return f"making the weights costs what it saves below 1024 pixels, here are {pixels}"
    if (channels := x.shape[1]) < 128:
        return f"no gain was measured in channels last below 128 channels, here are {channels}"
    return None


def launch_reference(z: Tensor, out: Tensor) -> None:
    """Four strided copies."""
    samples, _, height, width = z.shape
    phases = z.view(samples, 2, 2, -1, height, width)
    for a in (0, 1):
        for b in (0, 1):
            rows, columns = slice(a, a + height - 1), slice(b, b + width - 1)
            out[:, :, a::2, b::2] = phases[:, a, b, :, rows, columns]


def check_arguments(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    check_floating("x", x)
    if x.dim() != 4 or 0 in x.shape[1:]:
        raise ValueError(
            f"x must be (N, C, H, W) with C, H and W at least 1, got {tuple(x.shape)}. Try x[None]"
        )
    check_tensor("weight", weight)
    if weight.dim() != 4 or weight.shape[1:] != (x.shape[1], 3, 3) or not len(weight):
        raise ValueError(
            f"weight must be (O, {x.shape[1]}, 3, 3), as x has {x.shape[1]} channels; got "
            f"{tuple(weight.shape)}. Other convolutions: F.conv2d after F.interpolate"
        )
    if bias is not None:
        check_tensor("bias", bias)
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"bias must be {tuple(weight.shape[:1])}, one number an output channel; got "
            f"{tuple(bias.shape)}. Try bias.flatten()"
        )
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and (tensor.dtype, tensor.device) != (x.dtype, x.device):
            raise TypeError(
                f"{name} must be of the dtype and on the device of x, {x.dtype} on {x.device}; got "
                f"{tensor.dtype} on {tensor.device}. Try {name}.to(x)"
            )


def _empty(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    samples, _, height, width = x.shape
    last = channels_last(dense(x))
    layout = torch.channels_last if last else torch.contiguous_format
    shape = (samples, weight.shape[0], 2 * height, 2 * width)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)


def _run(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    x = dense(x)
    y, launch = _empty(x, weight, bias), kernel("upsample_conv", x)
    if x.shape[0] == 0:
        return y
    last = channels_last(x)
    filters = phase_weights(weight, last)
    z = F.conv2d(x, filters, None if bias is None else bias.repeat(4), padding=1)
    layout = torch.channels_last if last else torch.contiguous_format
    launch(z.contiguous(memory_format=layout), y)
    return y


implement("upsample_conv", check_arguments, _run, _empty, upsample_conv_ref)
backends.register(
    "upsample_conv",
    reference="fastdiff.ops.upsample_conv:launch_reference",
    triton="fastdiff.kernels.upsample_conv:launch",
)
