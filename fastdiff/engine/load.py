"""A bundle to what takes the U-Net's place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from fastdiff.engine import bundle as bundles
from fastdiff.engine.bundle import Bundle
from fastdiff.engine.errors import Corrupt, Incompatible
from fastdiff.engine.face import Engine
from fastdiff.engine.transformer import EngineTransformer
from fastdiff.engine.unet import EngineUNet

FACES: dict[str, type[Engine]] = {"unet": EngineUNet, "transformer": EngineTransformer}
MOST_THREADS = 1024  # with a million ONNX Runtime did not return within three minutes


def load_engine(
    bundle: str | Path,
    device: str | torch.device = "cpu",
    *,
    trust_engine: bool = False,
    providers: Sequence[str] | None = None,
    threads: int | None = None,
    reuse_outputs: bool = False,
) -> Engine:
    """The network of a bundle, for a pipeline: `pipe.unet = fastdiff.load_engine(..)`.

    An EngineUNet, or an EngineTransformer, which is put into `pipe.transformer`.

    device          where it runs: cpu or cuda with ONNX Runtime, cuda with TensorRT
    trust_engine    take TensorRT plans from the bundle: they are code, so only from who is trusted.
                    Without it they are built here from the bundle's ONNX graph, and kept
    providers       ONNX Runtime's execution providers, best first.  None: that of the device
    threads         of a call on the CPU.  None: torch.get_num_threads()
    reuse_outputs   answers of a shape and thread share their memory.  Not where an answer is kept
                    as it is until the next call, as many of diffusers' schedulers do without
                    guidance; with guidance pipelines make a new tensor of it

    Raises Untrusted, Incompatible or Corrupt, all of them EngineError.
    """
    device = _device(device)
    if not isinstance(bundle, (str, Path)):
        raise TypeError(f"bundle must be the path of a folder; got {bundle!r:.80}")
    if threads is not None and not (type(threads) is int and 1 <= threads <= MOST_THREADS):
        raise ValueError(
            f"threads must be a number from 1 to {MOST_THREADS}, or None; got {threads!r:.80}"
        )
    if providers is not None and not (
        isinstance(providers, (list, tuple)) and all(isinstance(p, str) for p in providers)
    ):
        raise TypeError(f"providers must be a list of names, or None; got {providers!r:.80}")
    found = bundles.open(bundle)
    graphs = found.manifest.graphs
    names = [name for name in FACES if name in graphs]
    if not names:
        raise Incompatible(
            f"the bundle must hold one of {', '.join(FACES)}; {found.path} holds "
            f"{', '.join(sorted(graphs))}"
        )
    name = names[0]
    _check_ports(found, name)
    if found.manifest.target.name != "onnxruntime":
        from fastdiff.engine import tensorrt_bundle

        plans = tensorrt_bundle.runner(
            found, name, device, trust_engine=trust_engine, reuse_outputs=reuse_outputs
        )
        return FACES[name](plans, found)
    found.check_here()
    from fastdiff.engine.session import Session

    session = Session(
        graphs[name],
        found.graph(name),
        device,
        providers=providers,
        threads=threads,
        reuse_outputs=reuse_outputs,
    )
    return FACES[name](session, found)


def _device(device: str | torch.device) -> torch.device:
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be cpu, cuda, cuda:1, ..; got {device!r:.40}") from error


def _check_ports(bundle: Bundle, name: str) -> None:
    """Corrupt where ports are missing, or the profiles are not of the axes of the inputs."""
    graph = bundle.manifest.graphs[name]
    ports = graph.inputs
    given = {port.name: port for port in (*ports, *graph.outputs)}
    if lacking := [need for need in (*FACES[name].needs, "out_sample") if need not in given]:
        raise Corrupt(
            f"graphs.{name} must have the port {lacking[0]}; got {', '.join(given)}. Fetch or "
            "export the bundle again"
        )
    for axis in ("height", "width") if name == "unet" else ():
        if axis not in given["sample"].shape:
            raise Corrupt(
                f"graphs.{name}: sample must have a free {axis}; got {given['sample'].shape}. "
                "Fetch or export the bundle again"
            )
    axes = {dim.partition("/")[0] for p in ports for dim in p.shape if isinstance(dim, str)}
    for i, profile in enumerate(bundle.manifest.profiles):
        if set(profile) != axes:
            raise Corrupt(
                f"profiles[{i}] must have the axes of {name}, {', '.join(sorted(axes))}; got "
                f"{', '.join(sorted(profile))}. Fetch or export the bundle again"
            )


__all__ = ["load_engine"]
