"""A bundle to what takes the U-Net's place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from fastdiff.engine import bundle as bundles
from fastdiff.engine.errors import Incompatible
from fastdiff.engine.face import Engine
from fastdiff.engine.transformer import EngineTransformer
from fastdiff.engine.unet import EngineUNet

FACES: dict[str, type[Engine]] = {"unet": EngineUNet, "transformer": EngineTransformer}


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
    reuse_outputs   answers of a shape share their memory: faster, but not for samplers that keep
                    answers of the network (PNDM, DEIS, iPNDM of diffusers)

    Raises Untrusted, Incompatible or Corrupt, all of them EngineError.
    """
    found = bundles.open(bundle)
    graphs = found.manifest.graphs
    names = [name for name in FACES if name in graphs]
    if not names:
        raise Incompatible(
            f"the bundle must hold one of {', '.join(FACES)}; {found.path} holds "
            f"{', '.join(sorted(graphs))}"
        )
    name = names[0]
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


__all__ = ["load_engine"]
