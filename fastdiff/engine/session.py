"""A graph in ONNX Runtime: tensors in, tensors out, where they lie.

Inputs and outputs are bound by address: on CUDA nothing is copied to the host, and nothing waits
for the device but what the caller's stream waits for.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastdiff.engine import profiles, weight_map
from fastdiff.engine.errors import EngineError, Incompatible
from fastdiff.engine.manifest import Graph, Port
from fastdiff.engine.networks import TORCH, shape_of
from fastdiff.engine.refit import Weights, for_onnxruntime

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

LOG = logging.getLogger("fastdiff.engine.onnxruntime")
DTYPE = ". Cast what you pass (pipe.to(..)), or export with another dtype"
CLOSED = "the engine is closed; load it again with fastdiff.load_engine"
MOST_BYTES = 1_800_000_000  # of a model that is handed over in memory: a protobuf ends at 2^31
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
CODES = {torch.float32: 1, torch.float16: 10, torch.bfloat16: 16, torch.int64: 7, torch.int32: 6}
SOMEWHERE = torch.empty(1)  # ONNX Runtime refuses an empty tensor whose address is 0


class Session:
    """One graph, ready to run on one device; calls from several threads run side by side.

    graph           the ports of the manifest, which shapes of outputs are worked out from
    path            the ONNX file; weights beside it are read from there, too
    providers       ONNX Runtime's execution providers, best first.  None: that of the device
    threads         of a call on the CPU.  None: as many as PyTorch uses
    reuse_outputs   write every answer of a shape and thread to the same memory
    """

    def __init__(
        self,
        graph: Graph,
        path: Path,
        device: str | torch.device = "cpu",
        *,
        providers: Sequence[str] | None = None,
        threads: int | None = None,
        reuse_outputs: bool = False,
    ) -> None:
        self.graph, self.device = graph, torch.device(device)
        self._how = (path, self.device, providers, threads)
        self._reuse = reuse_outputs
        self._local = threading.local()  # what a thread reuses is its own
        self._session: InferenceSession | None
        self._session, self._held = _open(*self._how)

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs by name for inputs by name, each of its port's dtype and shape.

        Raises Incompatible that names the input, what it got and what the graph takes.
        """
        session = self._session
        if session is None:
            raise EngineError(CLOSED)
        sizes = check_inputs(self.graph.inputs, inputs, self.device)
        outputs = self._outputs(sizes)
        binding = session.io_binding()
        held = []  # contiguous copies live until the call is over
        for port in self.graph.inputs:
            value = inputs[port.name].detach().contiguous()
            held.append(value)
            binding.bind_input(port.name, *_where(value))
        for name, value in outputs.items():
            binding.bind_output(name, *_where(value))
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()  # its inputs, made on our stream
        try:
            session.run_with_iobinding(binding)
        except Exception as error:  # ONNX Runtime has a class for each status
            raise EngineError(
                f"ONNX Runtime failed in {self.graph.file}: {_line(error)}"
            ) from error
        return outputs

    def refit(self, weights: Weights) -> None:
        """Run the graph with these weights from the next call on; calls under way end as begun."""
        if self._session is None:
            raise EngineError(CLOSED)
        self._session, self._held = _open(*self._how, weights)

    def close(self) -> None:
        """Give weights and memory back; a call after it is an EngineError."""
        self._session, self._held = None, []
        self._local = threading.local()

    def _outputs(self, sizes: dict[str, int]) -> dict[str, Tensor]:
        shapes = [tuple(shape_of(port, sizes)) for port in self.graph.outputs]
        key = tuple(shapes)
        kept: dict[Any, dict[str, Tensor]] = self._local.__dict__.setdefault("kept", {})
        if self._reuse and key in kept:
            return kept[key]
        try:
            made = {
                port.name: torch.empty(shape, dtype=TORCH[port.dtype], device=self.device)
                for port, shape in zip(self.graph.outputs, shapes, strict=True)
            }
        except RuntimeError as error:  # of sizes past 64 bits, too
            raise EngineError(
                f"outputs of {self.graph.file} must fit into memory; got the shapes "
                f"{', '.join(map(str, shapes))}: {_line(error)}. Try a smaller batch or size"
            ) from error
        if self._reuse:
            kept[key] = made
        return made


def check_inputs(
    ports: Sequence[Port], inputs: Mapping[str, Tensor], device: torch.device
) -> dict[str, int]:
    """The sizes of the axes; Incompatible where an input is not of its port."""
    if extra := sorted(set(inputs) - {port.name for port in ports}):
        raise Incompatible(
            f"the engine takes {', '.join(port.name for port in ports)}; got {extra[0]}, too"
        )
    sizes: dict[str, int] = {}
    shares = []
    for port in ports:
        value = inputs.get(port.name)
        if not isinstance(value, Tensor):
            raise Incompatible(
                f"{port.name} must be a tensor {port.dtype} {port.shape}, for the engine was "
                f"exported with it; got {type(value).__name__}"
            )
        if value.dtype != TORCH[port.dtype] or value.dim() != len(port.shape):
            raise Incompatible(
                f"{port.name} must be {port.dtype} with the axes {port.shape}; got "
                f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
                + (DTYPE if value.dim() == len(port.shape) else "")
            )
        if value.layout != torch.strided:
            raise Incompatible(f"{port.name} must be a dense tensor; got {value.layout}")
        if 0 in value.shape and "slots" not in port.shape:  # a step without history has none
            raise Incompatible(
                f"{port.name} must have no empty axis; got the shape {tuple(value.shape)}"
            )
        if value.device.type != device.type:
            raise Incompatible(
                f"{port.name} must be on {device}, as the engine; got {value.device}"
            )
        for dim, got in zip(port.shape, value.shape, strict=True):
            if isinstance(dim, str) and "/" in dim:
                shares.append((port, dim, got, value))
                continue
            known = dim if isinstance(dim, int) else sizes.setdefault(dim, got)
            if got != known:
                raise Incompatible(
                    f"{port.name} must have the shape {port.shape}"
                    + (f" with {dim} {known} as in the inputs before it" if dim != known else "")
                    + f"; got {tuple(value.shape)}"
                )
    for port, dim, got, value in shares:
        if got != profiles.size(dim, sizes):
            raise Incompatible(
                f"{port.name} must have {dim} {profiles.size(dim, sizes)}; got {tuple(value.shape)}"
            )
    return sizes


def _where(value: Tensor) -> tuple[str, int, int, tuple[int, ...], int]:
    device, place = value.device, value.data_ptr() or SOMEWHERE.data_ptr()
    return device.type, device.index or 0, CODES[value.dtype], tuple(value.shape), place


def _open(
    path: Path,
    device: torch.device,
    providers: Sequence[str] | None,
    threads: int | None,
    weights: Weights | None = None,
) -> tuple[InferenceSession, list[Any]]:
    """A session, and what must live as long as it."""
    try:
        import onnxruntime
    except ImportError as error:
        raise Incompatible(
            "this bundle runs in ONNX Runtime, which is not installed: "
            "pip install 'fastdiff-engine[onnx]', or onnxruntime-gpu for CUDA"
        ) from error
    if device.type not in PROVIDERS:
        raise Incompatible(f"device must be cpu or cuda for ONNX Runtime; got {device}")
    wanted = list(providers or [PROVIDERS[device.type]])
    have = onnxruntime.get_available_providers()
    if lacking := [name for name in wanted if name not in have]:
        raise Incompatible(
            f"device {device} needs ONNX Runtime's {lacking[0]}; installed are {', '.join(have)}. "
            "pip install onnxruntime-gpu, or load it on the cpu"
        )
    options: Any = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads() if threads is None else threads
    options.log_severity_level = 4  # what matters comes as an exception
    # Or its threads go on spinning after a call, on the cores that PyTorch needs next: its U-Net
    # took 101 ms right after a call instead of 42, on two cores; the engine itself is as fast.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    configured: list[Any] = [
        (name, {"device_id": device.index or 0}) if device.type == "cuda" else name
        for name in wanted
    ]
    source: str | bytes = str(path)
    held: list[Any] = []
    if weights is not None:
        large = weight_map.size(weights.model) > MOST_BYTES
        source, held = for_onnxruntime(weights, options, path if large else None)
    try:
        session = onnxruntime.InferenceSession(source, options, providers=configured)
    except Exception as error:
        raise Incompatible(
            f"ONNX Runtime {onnxruntime.__version__} cannot run {path.name}: {_line(error)}"
        ) from error
    if (got := session.get_providers())[0] != wanted[0]:
        raise Incompatible(
            f"device {device} needs {wanted[0]}, which did not start here; ONNX Runtime offers "
            f"{got[0]}. Mend its CUDA libraries, or load the engine on the cpu"
        )
    LOG.debug("%s runs with %s", path.name, got)
    return session, held


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


__all__ = ["Session", "check_inputs"]
