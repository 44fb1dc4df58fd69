"""A bundle to what takes the U-Net's place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from fastdiff.engine import bundle as bundles
from fastdiff.engine.errors import Incompatible
from fastdiff.engine.unet import EngineUNet


def load_engine(
    bundle: str | Path,
    device: str | torch.device = "cpu",
    *,
    trust_engine: bool = False,
    providers: Sequence[str] | None = None,
    threads: int | None = None,
    reuse_outputs: bool = False,
) -> EngineUNet:
    """The U-Net of a bundle, to be put into a pipeline: `pipe.unet = fastdiff.load_engine(..)`.

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
    if "unet" not in found.manifest.graphs:
        raise Incompatible(
            f"the bundle must hold a U-Net; {found.path} holds "
            f"{', '.join(sorted(found.manifest.graphs))}"
        )
    if found.manifest.target.name != "onnxruntime":
        from fastdiff.engine import tensorrt_bundle

        plans = tensorrt_bundle.runner(
            found, device, trust_engine=trust_engine, reuse_outputs=reuse_outputs
        )
        return EngineUNet(plans, found)
    found.check_here()
    from fastdiff.engine.session import Session

    session = Session(
        found.manifest.graphs["unet"],
        found.graph("unet"),
        device,
        providers=providers,
        threads=threads,
        reuse_outputs=reuse_outputs,
    )
    return EngineUNet(session, found)


__all__ = ["load_engine"]
