"""The operators that a graph of a bundle may have, and the numbers in them that may not be too big.

The list is of what pure functions of tensors need: no control flow, no sequences, no strings, no
random numbers, no recurrent or image-decoding operators, nothing of another domain.  It has two
reasons besides: onnx 1.23.2's checker dies of an LSTM without inputs, and the fewer kernels a
file from elsewhere can call, the less there is to be wrong in them.  What a U-Net, VAE, text
encoder or transformer of diffusers is exported to at opset 20 to 23 is in it, and the sampler's
step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastdiff.engine.errors import Corrupt, Untrusted

Array = NDArray[Any]

_NAMES = """
    Abs Add And ArgMax ArgMin Attention AveragePool Cast CastLike Ceil Clip Concat Constant
    ConstantOfShape Conv ConvTranspose Cos CumSum DepthToSpace Div Einsum Elu Equal Erf Exp Expand
    Flatten Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool Greater GreaterOrEqual
    GroupNormalization HardSigmoid HardSwish Identity InstanceNormalization IsInf IsNaN
    LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax MatMul Max MaxPool Mean Min Mish
    Mod Mul Neg Not OneHot Or PRelu Pad Pow RMSNormalization Range Reciprocal ReduceL1 ReduceL2
    ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize
    RotaryEmbedding Round ScatterElements ScatterND Selu Shape Sigmoid Sign Sin Size Slice Softmax
    Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Swish Tan Tanh Tile TopK Transpose
    Trilu Unsqueeze Where Xor
"""
PERMITTED = frozenset(_NAMES.split())

MOST_MADE = 1 << 28  # elements that a constant may ask for: 1 GB of float32
MOST_REPEATS = 1 << 16
MOST_SCALE = 64
MOST_SIDE = 1 << 16  # padding, stride, kernel

# Attributes that are numbers of something: lowest and highest. 0 divides by zero in a kernel.
ATTRIBUTES: Mapping[str, tuple[int, int]] = {
    "blocksize": (1, 256),
    "dilations": (1, MOST_SIDE),
    "group": (1, 1 << 20),
    "kernel_shape": (1, MOST_SIDE),
    "kv_num_heads": (1, MOST_SIDE),
    "num_groups": (1, 1 << 20),
    "num_heads": (0, MOST_SIDE),
    "num_outputs": (1, MOST_SIDE),
    "output_padding": (0, MOST_SIDE),
    "output_shape": (1, MOST_SIDE),
    "pads": (0, MOST_SIDE),
    "q_num_heads": (1, MOST_SIDE),
    "strides": (1, MOST_SIDE),
}


def check_attributes(op: str, numbers: Mapping[str, list[int]]) -> None:
    """Whole numbers of a node by attribute; Untrusted where one is out of range."""
    for name, values in numbers.items():
        low, high = ATTRIBUTES.get(name, (None, None))
        if low is None or high is None:
            continue
        if bad := [value for value in values if not low <= value <= high]:
            raise Untrusted(f"{name} of {op} must be {low} .. {high}; got {bad[0]}")


def check_constants(op: str, operands: list[Array | None]) -> None:
    """Operands of a node that are constants, None for the others: what they ask for is bounded.

    What is computed from the shape of an input cannot be seen here.
    """
    if rule := _RULES.get(op):
        rule(op, [*operands, None, None, None, None])


def _made(op: str, shape: Array | None) -> None:
    """Elements of a shape: -1 and 0 stand for what is there, where they may."""
    if shape is None:
        return
    total = 1
    for side in shape.ravel().tolist():
        total *= max(int(side), 1)
    if total > MOST_MADE:
        raise Untrusted(f"{op} must make at most {MOST_MADE} elements of a constant; got {total}")


def _of_shape(op: str, operands: list[Array | None]) -> None:
    shape = operands[0]
    if shape is not None and (shape < 0).any():
        raise Corrupt(f"{op} must get a shape of numbers >= 0; got {shape.min()}")
    _made(op, shape)


def _expand(op: str, operands: list[Array | None]) -> None:
    _made(op, operands[1])


def _tile(op: str, operands: list[Array | None]) -> None:
    repeats = operands[1]
    total = 1
    for times in [] if repeats is None else repeats.ravel().tolist():
        if times < 0:
            raise Corrupt(f"{op} must repeat 0 times or more; got {times}")
        total *= max(int(times), 1)
    if total > MOST_REPEATS:
        raise Untrusted(f"{op} must repeat at most {MOST_REPEATS} times; got {total}")


def _pad(op: str, operands: list[Array | None]) -> None:
    pads = operands[1]
    sides = [] if pads is None else pads.ravel().tolist()
    if bad := [side for side in sides if not -MOST_SIDE <= side <= MOST_SIDE]:
        raise Untrusted(f"{op} must pad by at most {MOST_SIDE}; got {bad[0]}")


def _range(op: str, operands: list[Array | None]) -> None:
    start, limit, delta = operands[:3]
    if delta is not None and (delta.size != 1 or not np.isfinite(delta).all() or not delta.all()):
        raise Corrupt(f"{op} must have one finite delta other than 0; got {_few(delta)}")
    if start is None or limit is None or delta is None:
        return
    if start.size != 1 or limit.size != 1:
        raise Corrupt(f"{op} must have one start and one limit")
    steps = (float(limit.item()) - float(start.item())) / float(delta.item())
    if not steps <= MOST_MADE:
        raise Untrusted(f"{op} must count at most {MOST_MADE} numbers; got {steps:.4g}")


def _resize(op: str, operands: list[Array | None]) -> None:
    scales, sizes = operands[2], operands[3]
    if scales is not None and not ((scales > 0) & (scales <= MOST_SCALE)).all():
        raise Untrusted(f"{op} must scale by numbers in (0, {MOST_SCALE}]; got {_few(scales)}")
    if sizes is not None and (sizes < 0).any():
        raise Corrupt(f"{op} must get sizes >= 0; got {_few(sizes)}")
    _made(op, sizes)


def _one_hot(op: str, operands: list[Array | None]) -> None:
    depth = operands[1]
    if depth is not None and not ((depth >= 0) & (depth <= MOST_MADE)).all():
        raise Untrusted(f"depth of {op} must be 0 .. {MOST_MADE}; got {_few(depth)}")


def _divide(op: str, operands: list[Array | None]) -> None:
    """An integer divided by 0, and the lowest one by -1, end the process (SIGFPE)."""
    by = operands[1]
    if by is not None and by.dtype.kind in "iu" and ((by == 0) | (by == -1)).any():
        raise Untrusted(f"{op} must not divide whole numbers by 0 or -1, which ends the process")


def _few(values: Array) -> str:
    return str(values.ravel()[:4].tolist())


_RULES: Mapping[str, Callable[[str, list[Array | None]], None]] = {
    "ConstantOfShape": _of_shape,
    "Div": _divide,
    "Expand": _expand,
    "Mod": _divide,
    "OneHot": _one_hot,
    "Pad": _pad,
    "Range": _range,
    "Resize": _resize,
    "Tile": _tile,
}

__all__ = ["PERMITTED", "check_attributes", "check_constants"]
