"""A network to ONNX: one trace, opset 21 with GroupNormalization whole, and the ports' names.

TensorRT takes the graph as it is; for_onnxruntime (group_norm.py) writes what its CPU runs better.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from fastdiff.engine.networks import Network

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = (
    21  # the first with GroupNormalization on channels; TensorRT-RTX 1.7 fails on 23's Attention
)
# Sizes of the trace: none is 0 or 1, which the exporter takes for constants, and no two are equal.
TRACED = {"batch": 3, "height": 4, "width": 6, "tokens": 7, "patches": 10}


def convert(network: Network) -> ModelProto:
    """The graph of a network, weights inside, with free batch, height, width and tokens.

    Takes a minute of one core for a U-Net of 15 million weights; most of it is tracing, so larger
    ones of the same blocks take little more.
    """
    sizes = dict(TRACED)
    for axis in ("height", "width"):
        sizes[axis] *= network.multiple
    example = tuple(network.example(sizes))
    free = tuple(
        {i: torch.export.Dim.AUTO for i, dim in enumerate(port.shape) if isinstance(dim, str)}
        for port in network.inputs
    )
    with torch.no_grad(), _quiet():
        shapes: Any = {_varargs(network): free} if _is_varargs(network) else free
        program = torch.export.export(network.module, example, dynamic_shapes=shapes, strict=False)
        made = torch.onnx.export(
            program,
            (),
            opset_version=OPSET,
            dynamo=True,
            optimize=False,
            verbose=False,
            input_names=[port.name for port in network.inputs],
            output_names=[port.name for port in network.outputs],
        )
        assert made is not None
        made.optimize()
        model = made.model_proto
    _clean(model)
    _name_axes(model, network)
    return model


def _is_varargs(network: Network) -> bool:
    code = type(network.module).forward.__code__
    return bool(code.co_flags & 0x04)


def _varargs(network: Network) -> str:
    code = type(network.module).forward.__code__
    return code.co_varnames[code.co_argcount + code.co_kwonlyargcount]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's own warnings: of torchvision, and of its internals."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _clean(model: ModelProto) -> None:
    """Take out what tells of the machine that exported: files, lines and stacks of the source."""
    model.ClearField("metadata_props")
    model.ClearField("doc_string")
    graph = model.graph
    graph.ClearField("metadata_props")
    graph.ClearField("value_info")  # of a trace; ONNX Runtime and TensorRT infer their own
    graph.name = "fastdiff"
    for part in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    model.producer_name, model.producer_version = "fastdiff", ""


def _name_axes(model: ModelProto, network: Network) -> None:
    """Give inputs and outputs the shapes of their ports; a fixed axis that differs is an error."""
    given = (*model.graph.input, *model.graph.output)
    for value, port in zip(given, (*network.inputs, *network.outputs), strict=True):
        assert value.name == port.name, (value.name, port.name)
        dims = value.type.tensor_type.shape.dim
        if len(dims) != len(port.shape):
            raise ValueError(
                f"{port.name} must have the axes {port.shape}; the trace has {len(dims)}"
            )
        for dim, axis in zip(dims, port.shape, strict=True):
            traced = dim.dim_value if dim.HasField("dim_value") else None
            if isinstance(axis, int) and traced not in (axis, None):
                raise ValueError(f"{port.name} must have an axis of {axis}; the trace has {traced}")
            if isinstance(axis, str) and traced is not None:
                raise ValueError(
                    f"{port.name} must have a free axis {axis}; the trace made it {traced}"
                )
            if isinstance(axis, int):
                dim.dim_value = axis
            else:
                dim.dim_param = axis


__all__ = ["OPSET", "convert"]
