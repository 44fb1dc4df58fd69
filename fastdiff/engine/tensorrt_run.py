"""A TensorRT plan on torch's CUDA tensors: no copies, torch's current stream, nothing else.

A plan is code: TensorRT executes what it finds in it.  So a plan is deserialised only from our own
cache, or where the caller says trust_engine=True, and host code in a plan stays forbidden.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdiff.engine import tensorrt
from fastdiff.engine.errors import EngineError, Incompatible, Untrusted
from fastdiff.engine.tensorrt import Flavour

if TYPE_CHECKING:
    import torch
    from torch import Tensor

DTYPES = {  # TensorRT's names to torch's
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT64": "int64",
    "INT32": "int32",
    "BOOL": "bool",
}


def read(
    path: Path, target: str, *, cache: Path, trust_engine: bool = False, **options: Any
) -> Plan:
    """The plan of a file that lies in our cache folder, or that the caller trusts.

    cache      fastdiff.engine.cache.folder(), which has made sure that it is ours
    options    of Plan
    Untrusted for any other file; Incompatible where this flavour, version or GPU cannot run it.
    """
    if not trust_engine and not path.resolve().is_relative_to(cache.resolve()):
        raise Untrusted(
            f"a plan is code, and {path} is not in our cache ({cache}). Build it here from the "
            "ONNX file of the bundle, or say trust_engine=True if you know who made it"
        )
    flavour = tensorrt.load(target)
    tensorrt.check_device(flavour)
    return Plan(path.read_bytes(), flavour, **options)


class _Context:
    """An execution context: of one thread and one stream."""

    def __init__(self, context: Any, profile: int) -> None:
        self.context = context
        self.profile = profile
        self.outputs: dict[str, Tensor] = {}


class Plan:
    """A deserialised plan.  Threads and streams have contexts of their own, and may run at once.

    reuse_outputs    the tensors that `run` returns are overwritten by the next `run` of the same
                     thread and stream, where their shapes are the same
    weights_budget   bytes of weights on the GPU, for a plan built with weight streaming; None:
                     TensorRT's own choice
    """

    def __init__(
        self,
        plan: bytes,
        flavour: Flavour,
        *,
        reuse_outputs: bool = False,
        weights_budget: int | None = None,
        runtime_cache: bytes = b"",
    ) -> None:
        self.flavour = flavour
        self.reuse_outputs = reuse_outputs
        with flavour.listening() as problems:
            self._runtime = flavour.trt.Runtime(flavour.logger)
            self._runtime.engine_host_code_allowed = False  # the default, said
            self.engine = self._runtime.deserialize_cuda_engine(plan)
            if self.engine is None:
                raise Incompatible(
                    f"{flavour.target} {flavour.version} cannot read the plan: "
                    f"{'; '.join(problems) or 'no reason given'}. Build it again from the ONNX file"
                )
        self._ports()
        if self.engine.streamable_weights_size > 0:
            automatic = self.engine.get_weight_streaming_automatic_budget
            self.engine.weight_streaming_budget_v2 = weights_budget or automatic()
        self._config, self._kernels = self._runtime_config(runtime_cache)
        self._lock = threading.Lock()
        self._local = threading.local()

    @property
    def refittable(self) -> bool:
        """Whether its weights can be replaced."""
        return bool(self.engine.refittable)

    def _ports(self) -> None:
        import torch

        trt, engine = self.flavour.trt, self.engine
        self.inputs: dict[str, torch.dtype] = {}
        self.outputs: dict[str, torch.dtype] = {}
        for i in range(engine.num_io_tensors):
            name = engine.get_tensor_name(i)
            kind = DTYPES.get(engine.get_tensor_dtype(name).name)
            if kind is None:
                raise Incompatible(
                    f"tensors of a plan must be of {', '.join(DTYPES.values())}; {name} is of "
                    f"{engine.get_tensor_dtype(name).name}. Export the model in fp16 or fp32"
                )
            is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            (self.inputs if is_input else self.outputs)[name] = getattr(torch, kind)

    def _runtime_config(self, data: bytes) -> tuple[Any, Any]:
        """Of tensorrt-rtx: what it compiles when it runs goes into a cache; else (None, None)."""
        if not self.flavour.portable:
            return None, None
        config = self.engine.create_runtime_config()
        kernels = config.create_runtime_cache()
        if data:  # of another version or GPU it is refused, and begun anew
            kernels.deserialize(data)
        config.set_runtime_cache(kernels)
        return config, kernels

    def runtime_cache(self) -> bytes:
        """What tensorrt-rtx compiled up to now, for `runtime_cache` next time; else empty."""
        return bytes(self._kernels.serialize()) if self._kernels is not None else b""

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs for inputs on the GPU, enqueued on torch's current stream.

        inputs      every input of the plan, by name, in its dtype; contiguous ones are read where
                    they lie, others are copied
        Returns tensors that are ready for what is enqueued on the same stream.  Incompatible for
        names, dtypes and shapes that the plan does not take, EngineError where TensorRT fails.
        """
        import torch

        held = self._checked(inputs)
        device = next(iter(held.values())).device
        stream = torch.cuda.current_stream(device).cuda_stream
        with self.flavour.listening() as problems, torch.cuda.device(device):
            profile = self.profile({name: tuple(t.shape) for name, t in held.items()})
            own = self._context(stream, profile)
            for name, tensor in held.items():
                own.context.set_input_shape(name, tuple(tensor.shape))
                own.context.set_tensor_address(name, tensor.data_ptr())
            outputs = self._outputs(own, device)
            for name, tensor in outputs.items():
                own.context.set_tensor_address(name, tensor.data_ptr())
            if not own.context.execute_async_v3(stream):
                raise EngineError(
                    f"{self.flavour.target} failed: {'; '.join(problems) or 'no reason given'}. "
                    "Try a smaller batch or picture, or target onnxruntime"
                )
        return outputs

    def profile(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """The index of the engine's smallest profile that contains the shapes of the inputs."""
        fitting, ranges = [], []
        for i in range(self.engine.num_optimization_profiles):
            volume, fits = 1, True
            for name, shape in shapes.items():
                low, _, high = map(tuple, self.engine.get_tensor_profile_shape(name, i))
                ranges.append(f"[{i}] {name} {_shape(low)}..{_shape(high)}")
                inside = len(shape) == len(low) and all(
                    a <= n <= b for a, n, b in zip(low, shape, high, strict=True)
                )
                fits = fits and inside
                for n in high:
                    volume *= n
            if fits:
                fitting.append((volume, i))
        if not fitting:
            got = ", ".join(f"{name} {_shape(shape)}" for name, shape in shapes.items())
            raise Incompatible(
                f"shapes must be in a profile of the engine, {'; '.join(ranges)}; got {got}. "
                "Export the model again with a profile that has this size"
            )
        return min(fitting)[1]

    def _checked(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self.engine is None:
            raise EngineError("the engine is closed; load it again")
        if inputs.keys() != self.inputs.keys():
            raise Incompatible(
                f"inputs must be {', '.join(self.inputs)}; got {', '.join(inputs) or 'none'}"
            )
        for name, tensor in inputs.items():
            if tensor.dtype != self.inputs[name] or tensor.device.type != "cuda":
                raise Incompatible(
                    f"input {name} must be {self.inputs[name]} on cuda; got {tensor.dtype} on "
                    f"{tensor.device}. Try .to('cuda', {self.inputs[name]})"
                )
        return {name: tensor.contiguous() for name, tensor in inputs.items()}

    def _context(self, stream: int, profile: int) -> _Context:
        contexts: dict[int, _Context] | None = getattr(self._local, "contexts", None)
        if contexts is None:
            contexts = self._local.contexts = {}
        own = contexts.get(stream)
        if own is None:
            with self._lock:  # an engine makes one context at a time
                arguments = () if self._config is None else (self._config,)
                made = self.engine.create_execution_context(*arguments)
            if made is None:
                raise EngineError(
                    f"{self.flavour.target} could not make an execution context, which needs "
                    f"{self.engine.device_memory_size_v2} bytes of GPU memory. Free some, or "
                    "export a narrower profile"
                )
            own = contexts[stream] = _Context(made, 0)  # a new context has profile 0
        if own.profile != profile:
            own.context.set_optimization_profile_async(profile, stream)
            own.profile = profile
        return own

    def _outputs(self, own: _Context, device: torch.device) -> dict[str, Tensor]:
        import torch

        outputs = {}
        for name, dtype in self.outputs.items():
            shape = tuple(own.context.get_tensor_shape(name))
            kept = own.outputs.get(name) if self.reuse_outputs else None
            if kept is None or tuple(kept.shape) != shape:
                kept = torch.empty(shape, dtype=dtype, device=device)
            outputs[name] = kept
        own.outputs = dict(outputs) if self.reuse_outputs else {}
        return outputs

    def close(self) -> None:
        """Free the engine and its contexts, once the GPU is done with them."""
        if self.engine is None:
            return
        import torch

        torch.cuda.synchronize()
        self._local = threading.local()
        self._config = self._kernels = self.engine = self._runtime = None

    def __enter__(self) -> Plan:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


__all__ = ["Plan", "read"]
