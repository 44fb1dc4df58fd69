"""One step of any solver as one ONNX graph: network, guidance and affine_step, joined as ONNX.

The plan's table and the number of its row are inputs, and so are P and R, as sizes: one graph runs
every plan.  A host needs a session, the plan's JSON (plan_file.py) and a loop:

    x = noise_scale * noise;  history = zeros
    for row = 0 .. steps - 1:  x, _, history = step(x, history, noise, row, .. what never changes)

    x                      float32 [batch, C, height, width]         the sample
    history                float32 [slots, batch, C, height, width]  kept; slots = sum(depths)
    noise                  float32 like x; not read where the plan's draw says false
    row                    int64 []                                  which row of the table
    table                  float32 [steps, 1 or batch, K]            "inf" in the JSON is infinity
    timesteps              float32 [steps, 1 or batch]
    c_in                   float32 [1 or batch]                      the plan's; a row has the next
    encoder_hidden_states  [rows, tokens, D]                         rows = batch; with guidance
                                                                     2 batch: all uncond, all cond
    and the network's other inputs, as they are, each with that many rows

    x_next, x0             float32 like x                            x0 is the row's m
    history_next           float32 like history

What the columns of a row mean is in fastdiff/ops/affine_step.py.  A weight that is 0 means here,
too, that the operand is not read: a NaN does not spread from it.  A plan reads no slot before it is
written, so history may begin as any numbers; zeros are some.  With one row of text for a sample the
network's output is e, and g is not used.  The step is float32; a network of another dtype is cast
to and from at its boundary.  All operators are ONNX's own, without sub-graphs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastdiff.engine.errors import Incompatible
from fastdiff.engine.step_nodes import RAW, SAMPLE, TEXT, TIMESTEP, nodes_of_step, renamed

if TYPE_CHECKING:
    import onnx

FLOATS = {1: "float32", 10: "float16", 16: "bfloat16"}  # of onnx.TensorProto
OLDEST_OPSET = 18  # from here on every reduction takes its axes as an input


def step_model(unet: onnx.ModelProto) -> onnx.ModelProto:
    """The graph above from a U-Net's, whose weights and their places are taken over as they are.

    unet  inputs sample [.., C, height, width], timestep [..], encoder_hidden_states [.., tokens, D]
          and any others; output out_sample like sample; of floats, opset 18 or later

    Raises Incompatible for a graph that is no such network.
    """
    from onnx import ModelProto

    ports = _checked(unet)
    model = ModelProto()
    model.CopyFrom(unet)
    graph = model.graph
    sizes = [axis.dim_value or axis.dim_param for axis in _dims(ports[SAMPLE])]
    inputs, outputs = _ports(["batch", *sizes[1:]])
    others = [port for port in graph.input if port.name not in (SAMPLE, TIMESTEP)]
    inputs += [_with_rows(port) for port in others]
    own = {port.name for port in (*inputs, *outputs)} - {port.name for port in others}
    if clash := own & {one.name for one in (*others, *graph.initializer)}:
        raise Incompatible(
            f"unet must have no input or weight of the name {min(clash)}, which the step has. "
            "Export it under other names"
        )
    renamed(graph.node, {name: f"network.{name}" for name in own})
    kinds = (ports[name].type.tensor_type.elem_type for name in (SAMPLE, TIMESTEP))
    nodes = nodes_of_step(len(sizes), *kinds)
    place = next(i for i, node in enumerate(nodes) if node.op_type == "Network")
    nodes[place : place + 1] = graph.node
    for field in ("node", "input", "output", "value_info"):  # value_info: of another batch
        graph.ClearField(field)
    graph.name = "step"
    graph.node.extend(nodes)
    graph.input.extend(inputs)
    graph.output.extend(outputs)
    return model


def _checked(unet: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    """The network's ports by name."""
    weights = {tensor.name for tensor in unet.graph.initializer}
    inputs = {port.name: port for port in unet.graph.input if port.name not in weights}
    outputs = {port.name: port for port in unet.graph.output}
    missing = [name for name in (SAMPLE, TIMESTEP, TEXT) if name not in inputs]
    if missing or RAW not in outputs:
        raise Incompatible(
            f"unet must have the inputs {SAMPLE}, {TIMESTEP} and {TEXT} and the output {RAW}; got "
            f"{', '.join(inputs)} and {', '.join(outputs)}. Export a UNet2DConditionModel"
        )
    ports = {**inputs, RAW: outputs[RAW]}
    for name in (SAMPLE, TIMESTEP, RAW):
        if ports[name].type.tensor_type.elem_type not in FLOATS:
            raise Incompatible(
                f"{name} of unet must be of {', '.join(FLOATS.values())}; got ONNX's type "
                f"{ports[name].type.tensor_type.elem_type}"
            )
    given, made = ([axis.dim_value for axis in _dims(ports[name])[1:2]] for name in (SAMPLE, RAW))
    if given != made:
        raise Incompatible(
            f"{RAW} of unet must have as many channels as {SAMPLE}, for the step adds them; got "
            f"{made} and {given}. Of an inpainting network take the U-Net's own graph"
        )
    opset = next((one.version for one in unet.opset_import if one.domain == ""), 0)
    if opset < OLDEST_OPSET:
        raise Incompatible(
            f"unet must be of opset {OLDEST_OPSET} or later; got {opset}. Export it again"
        )
    return ports


def _ports(shape: list[int | str]) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    """Inputs and outputs of the step itself; shape is that of a sample."""
    from onnx import TensorProto, helper

    def port(name: str, *sizes: int | str, dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, dtype, sizes)

    inputs = [
        port("x", *shape),
        port("history", "slots", *shape),
        port("noise", *shape),
        port("row", dtype=TensorProto.INT64),
        port("table", "steps", "samples", "columns"),
        port("timesteps", "steps", "times"),
        port("c_in", "scales"),
    ]
    return inputs, [
        port("x_next", *shape),
        port("x0", *shape),
        port("history_next", "slots", *shape),
    ]


def _with_rows(port: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    """An input of the network, as it is but for its first axis, which is not the batch."""
    from onnx import ValueInfoProto

    copy = ValueInfoProto()
    copy.CopyFrom(port)
    axes = _dims(copy)
    if axes and axes[0].dim_param:
        axes[0].dim_param = "rows"
    return copy


def _dims(port: onnx.ValueInfoProto) -> list[onnx.TensorShapeProto.Dimension]:
    return list(port.type.tensor_type.shape.dim)


__all__ = ["step_model"]
