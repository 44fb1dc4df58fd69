"""fastdiff.export: a pipeline's networks as a bundle that needs no Python.

Each network is traced once, written, and compared with PyTorch in numbers; only then does the
folder get its name.
"""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError

from fastdiff import __version__
from fastdiff.engine import bundle as bundles
from fastdiff.engine import parts as pieces
from fastdiff.engine import weight_map
from fastdiff.engine.check import EXTENTS, Error, Reference, corners, measure
from fastdiff.engine.errors import Incompatible
from fastdiff.engine.group_norm import for_onnxruntime
from fastdiff.engine.manifest import TARGETS, Build, Graph, Port, Profile, Range, Target
from fastdiff.engine.networks import Network
from fastdiff.engine.parts import Sizes
from fastdiff.engine.to_onnx import convert

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

    from fastdiff.engine.bundle import Bundle
    from fastdiff.plan import Plan

# ONNX Runtime's CPU, in which every graph is compared with PyTorch, has no bf16
TORCH = {"fp32": torch.float32, "fp16": torch.float16}
SAMPLERS = ("dpmpp_2m:20", "unipc_2:10", "euler_a:20", "ddim:50")
MOST_INSIDE = 1_800_000_000  # bytes of weights in the .onnx itself: a protobuf ends at 2^31
BUILD = {
    "memory_limit": "a number of bytes above 0 and at most 2**44 (leave it out for no limit)",
    "refittable": "True or False",
    "strip": "True or False",
    "weight_streaming": "True or False",
    "capabilities": "a tuple of compute capabilities",
}
NO_PLANS = "built where it is loaded"
GOLDEN = "golden.safetensors"
INLINE = 1024  # bytes of a tensor that stays in the .onnx where the others lie beside it


@dataclass(frozen=True)
class Step:
    """What is reported on the way: a network, what was done, seconds, and what came of it."""

    network: str
    what: str
    seconds: float
    bytes: int = 0
    error: Error | None = None


def export(
    pipe_or_unet: Any,
    out: str | Path,
    *,
    target: str = "onnxruntime",
    dtype: str | None = None,
    batch: Sizes = None,
    height: Sizes = None,
    width: Sizes = None,
    tokens: Sizes = None,
    controlnet: bool = False,
    vae: bool = False,
    text_encoder: bool = False,
    step: bool = False,
    samplers: Sequence[str] | None = None,
    guidance: float | None = None,
    verify: str = "corners",
    plans: bool = True,
    replace: bool = False,
    tell: Callable[[Step], None] | None = None,
    **build: Any,
) -> Bundle:
    """Write a bundle of a diffusers pipeline, or of its U-Net or transformer alone, into `out`.

    target              onnxruntime, tensorrt or tensorrt-rtx
    dtype               fp32 or fp16.  None: fp32 for onnxruntime, fp16 for TensorRT
    batch               a number, (min, opt, max), or text like "1:2:8".  None: 1:2:8
    height, width       the same in pixels.  None: from half to twice what the model was made for
    tokens              of the text.  None: 1 : the text encoder's : three times as many
    controlnet          inputs for the residuals of a ControlNet, which are then needed
    vae, text_encoder   these, too
    step                a graph of one sampler step: network, guidance and affine_step
    samplers            tables for it, "name:steps".  None: four of them for a pipeline
    guidance            of these tables.  None: 7.5;  1: none
    verify              where numbers are compared: "corners" of the ranges, or only the "smallest"
    plans               build TensorRT's plans now; otherwise where the bundle is first loaded
    replace             a bundle that is already there
    tell                called with a Step after each part of the work
    build               of TensorRT: memory_limit (bytes), refittable, strip (plans without weights,
                        which they get from the graph where they are loaded), weight_streaming; and
                        of tensorrt-rtx capabilities, a tuple of compute capabilities like "12.0"

    Raises TypeError or ValueError that names the argument, and EngineError where the graph is not
    as near to PyTorch as it must be, or where the target is not installed; nothing is written then.
    """
    kept = _check(out, target, dtype, verify, guidance, plans, build)
    name = dtype or ("fp32" if target == "onnxruntime" else "fp16")
    found = pieces.of(pipe_or_unet)
    profiles = pieces.ranges(found, batch, height, width, tokens)
    networks = pieces.of_parts(
        found, TORCH[name], controlnet=controlnet, vae=vae, text_encoder=text_encoder
    )
    main = networks[0].name
    if (
        step
        and main == "unet"
        and found.network.config.in_channels != networks[0].outputs[0].shape[1]
    ):
        raise ValueError(
            f"step must be False for a U-Net that answers {networks[0].outputs[0].shape[1]} of "
            f"{found.network.config.in_channels} channels, as for inpainting"
        )
    if step and main != "unet":
        raise ValueError(f"step must be False for a {found.kind}; it is for U-Nets")
    usual = SAMPLERS if main == "unet" and pieces.has_tables(found) else ()
    wanted = usual if samplers is None else samplers
    tables, model = pieces.tables(found, wanted, guidance), pieces.model(found)
    _need_onnxruntime()
    where = _target(target, version("onnxruntime") if target == "onnxruntime" else NO_PLANS)
    planned = target != "onnxruntime" and plans
    if planned:
        from fastdiff.engine.tensorrt_build import Settings, possible

        settings = Settings(**build)
        possible(target, settings)  # before minutes are spent on the graph
    with bundles.writing(out, replace=replace) as folder:
        graphs: dict[str, Graph] = {}
        for network in networks:
            steps = list(tables.values()) if step and network.name == main else None
            graphs |= _graphs(network, folder, target, profiles, verify, steps, tell)
        samples = {}
        for key, table in tables.items():
            samples[key] = f"sampler-{key}.json"
            table.save(folder / samples[key])
        golden = _golden(networks[0], graphs[main], folder, profiles[0])
        engines: list[Any] = []
        if planned:
            from fastdiff.engine import tensorrt_bundle

            def built(seconds: float, size: int) -> None:
                if tell is not None:
                    tell(Step(main, "built", seconds, size))

            where, engines = tensorrt_bundle.engines(
                target, folder, main, graphs[main], profiles, built, settings
            )
        bundles.finish(
            folder,
            fastdiff=__version__,
            target=where,
            dtype=name,
            model=model,
            profiles=profiles,
            graphs=graphs,
            build=kept,
            engines=engines,
            samplers=samples,
            golden=golden,
        )
    return bundles.open(out)


def _check(
    out: Any,
    target: str,
    dtype: str | None,
    verify: str,
    guidance: Any,
    plans: bool,
    build: dict[str, Any],
) -> Build:
    """What can be said before the model is looked at; how its plans are built, for the manifest.

    Makes a tuple of the capabilities in `build`.
    """
    if not isinstance(out, (str, os.PathLike)):
        raise TypeError(f"out must be the path of a folder; got {out!r:.60}")
    for name, got, known in (
        ("target", target, TARGETS),
        ("dtype", dtype, tuple(TORCH)),
        ("verify", verify, EXTENTS),
    ):
        if got not in known and not (got is None and name == "dtype"):
            raise ValueError(f"{name} must be one of {', '.join(known)}; got {got!r}")
    _check_guidance(guidance)
    if unknown := sorted(set(build) - BUILD.keys()):
        raise TypeError(f"export() got an unexpected keyword argument {unknown[0]!r}")
    try:
        kept = Build(**{name: build[name] for name in build if name != "capabilities"})
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        raise ValueError(f"{name} must be {BUILD[name]}; got {build[name]!r:.60}") from error
    if target == "onnxruntime" and build:
        raise ValueError(f"{next(iter(build))} goes with TensorRT, not with target onnxruntime")
    if "capabilities" in build:
        _check_capabilities(target, plans, build)
    return kept


def _check_guidance(guidance: Any) -> None:
    if guidance is None:
        return
    if not isinstance(guidance, Real) or isinstance(guidance, bool):
        raise TypeError(f"guidance must be a number, like 7.5; got {guidance!r:.60}")
    try:
        finite = math.isfinite(guidance)
    except OverflowError:  # an int that no float holds
        finite = False
    if not finite:
        raise ValueError(f"guidance must be a finite number, like 7.5; got {guidance!r:.60}")


def _check_capabilities(target: str, plans: bool, build: dict[str, Any]) -> None:
    from fastdiff.engine.tensorrt_build import listed

    if target == "tensorrt":
        raise ValueError("capabilities goes with tensorrt-rtx; tensorrt builds for the GPU here")
    build["capabilities"] = listed(build["capabilities"])
    if not plans:
        raise ValueError(
            "capabilities goes with plans that are built now; where the bundle is loaded they are "
            "built for the GPU there. Leave it out, or have the plans built now"
        )


def _need_onnxruntime() -> None:
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise Incompatible(
            f"export needs the package {error.name}: pip install 'fastdiff-engine[onnx]'"
        ) from error


def _target(name: str, exact: str) -> Target:
    return Target(
        name=name,  # type: ignore[arg-type]
        version=exact,
        os=platform.system().lower(),
        machine=platform.machine().lower(),
    )


def _graphs(
    network: Network,
    folder: Path,
    target: str,
    profiles: list[Profile],
    verify: str,
    tables: list[Plan] | None,
    tell: Callable[[Step], None] | None,
) -> dict[str, Graph]:
    """Export, write and check one network; tables: with its step, which they are to run in."""
    tell = tell or (lambda _: None)
    began = time.perf_counter()
    model = convert(network)
    if target == "onnxruntime":
        model = for_onnxruntime(model)
    if own := getattr(network.module, network.name, None):
        weight_map.write(model, weight_map.weight_map(own, model))  # for LoRAs
    tell(Step(network.name, "traced", time.perf_counter() - began))
    began = time.perf_counter()
    graphs = {network.name: _write(network.name, model, folder, beside=tables is not None)}
    graph = graphs[network.name]
    if tables is not None:
        from fastdiff.engine.step import step_model

        # the weights lie in one file now, which the step reads, too
        graphs["step"] = _write("step", step_model(model), folder, data=graph.data)
    names = {name for made in graphs.values() for name in (made.file, made.data) if name}
    size = sum((folder / name).stat().st_size for name in names)
    tell(Step(network.name, "written", time.perf_counter() - began, size))
    began, worst = time.perf_counter(), Error(0.0, 0.0, 0)
    reference, ranges = Reference(network), _profiles(network, profiles)
    for profile in ranges:
        found = measure(reference, graph, folder / graph.file, profile, verify)
        worst = found if found.graph >= worst.graph else worst
    tell(Step(network.name, "checked", time.perf_counter() - began, error=worst))
    if tables is not None:
        from fastdiff.engine.check_step import measure_step

        began = time.perf_counter()
        found = measure_step(reference, graphs["step"], folder / "step.onnx", ranges[0], tables)
        tell(Step("step", "checked", time.perf_counter() - began, error=found))
    return graphs


def _write(
    name: str, model: ModelProto, folder: Path, *, beside: bool = False, data: str | None = None
) -> Graph:
    """Save a graph, weights inside or in one file beside it; in data they lie there already."""
    import onnx

    file = f"{name}.onnx"
    if data is None and (beside or weight_map.size(model) > MOST_INSIDE):
        data = f"{file}.data"
        onnx.save_model(
            model,
            folder / file,
            save_as_external_data=True,
            location=data,
            size_threshold=INLINE,
        )
    else:
        onnx.save_model(model, folder / file)
    (opset,) = {one.version for one in model.opset_import if one.domain in ("", "ai.onnx")}
    inside = {tensor.name for tensor in model.graph.initializer}
    return Graph(
        file=file,
        data=data,
        opset=opset,
        inputs=[_port(value) for value in model.graph.input if value.name not in inside],
        outputs=[_port(value) for value in model.graph.output],
    )


def _port(value: ValueInfoProto) -> Port:
    from onnx import helper

    kind = value.type.tensor_type
    word: Any = helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    shape: list[int | str] = [dim.dim_param or dim.dim_value for dim in kind.shape.dim]
    return Port(name=value.name, dtype=word, shape=shape)


def _profiles(network: Network, profiles: list[Profile]) -> list[Profile]:
    """The ranges of a network's own axes; the VAE's encoder has pixels, in multiples of its own."""
    own = []
    for profile in profiles:
        kept = {axis: profile[axis] for axis in network.axes()}
        if network.name == "vae_encoder":
            for axis in ("height", "width"):
                a = profile[axis]
                sides = {n: getattr(a, n) * network.multiple for n in ("min", "opt", "max")}
                kept[axis] = Range(**sides, multiple=network.multiple)
        own.append(kept)
    return own


def _golden(network: Network, graph: Graph, folder: Path, profile: Profile) -> str:
    """Inputs and output of the U-Net at the smallest size, PyTorch's, as safetensors."""
    from safetensors.torch import save_file

    (sizes,) = corners(profile, "smallest")
    inputs = network.example(sizes)
    with torch.no_grad():
        answer = network.module(*inputs)
    tensors = dict(zip((port.name for port in network.inputs), inputs, strict=True))
    tensors[graph.outputs[0].name] = answer
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / GOLDEN)
    return GOLDEN


__all__ = ["SAMPLERS", "Step", "export"]
