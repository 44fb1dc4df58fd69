"""New weights for a TensorRT engine that was built refittable, from a graph with these weights."""

from __future__ import annotations

from pathlib import Path

from fastdiff.engine.errors import EngineError, Incompatible
from fastdiff.engine.tensorrt_run import Plan


def refit(plan: Plan, graph: bytes | Path) -> None:
    """Give the engine the weights of an ONNX graph: all that can be replaced, not the changed ones.

    graph     the graph that the plan was built from, its weights changed or restored; a path where
              they lie beside it
    Waits for the GPU.  Incompatible, and nothing changed, where the engine cannot be refitted or
    the graph lacks weights; where TensorRT fails half-way the engine is closed.
    """
    if plan.engine is None:
        raise EngineError("the engine is closed; load it again")
    if not plan.refittable:
        raise Incompatible(
            "the engine cannot be refitted: it was built without that. Export the model again with "
            "--refittable, or fuse the LoRA (pipe.fuse_lora()) and export again"
        )
    import torch

    trt, flavour = plan.flavour.trt, plan.flavour
    torch.cuda.synchronize()  # nothing may run while weights are replaced
    with flavour.listening() as problems:
        refitter = trt.Refitter(plan.engine, flavour.logger)
        parser = trt.OnnxParserRefitter(refitter, flavour.logger)
        if isinstance(graph, Path):
            taken = parser.refit_from_file(str(graph))
        else:
            taken = parser.refit_from_bytes(graph)
        missing = list(refitter.get_missing_weights())
        if not taken or missing:
            said = (
                f"it lacks {missing[0]!r}" if missing else "; ".join(problems) or "no reason given"
            )
            raise Incompatible(
                f"the graph must hold the weights of the engine: {said}. Build the engine again "
                "from this graph"
            )
        if not refitter.refit_cuda_engine():
            plan.close()
            raise EngineError(
                f"{flavour.target} could not replace the weights: "
                f"{'; '.join(problems) or 'no reason given'}. Load the engine again"
            )


__all__ = ["refit"]
