"""A module that looks like TensorRT as far as fastdiff uses it, for what cannot be run here.

It writes down what is asked of it; a "plan" is the JSON of its profiles.  tensorrt_rtx, which
builds with no GPU, is tested for real beside it.
"""

import enum
import json
import types
from importlib.machinery import ModuleSpec

import torch

INPUT = "sample"
OUTPUT = "out_sample"


class Severity(enum.IntEnum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class ILogger:
    Severity = Severity


class Listed:
    """Any call is written down in `calls`, by name and arguments."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *args, **kwargs: self.calls.append((name, *args, *kwargs.values()))

    def called(self, name):
        return [call[1:] for call in self.calls if call[0] == name]


class Tensor:
    def __init__(self, name, dimensions):
        self.name = name
        self.dimensions = dimensions
        self.shape = tuple(d if isinstance(d, int) else -1 for d in dimensions)

    def get_dimension_name(self, i):
        return self.dimensions[i] if isinstance(self.dimensions[i], str) else None


class Profile:
    def __init__(self):
        self.shapes = {}

    def set_shape(self, name, *shapes):
        self.shapes[name] = [list(shape) for shape in shapes]


class Config(Listed):
    num_compute_capabilities = 0
    progress_monitor = None

    def __init__(self):
        super().__init__()
        self.profiles = []

    def add_optimization_profile(self, profile):
        self.profiles.append(profile.shapes)
        return len(self.profiles) - 1

    def create_timing_cache(self, data):
        self.calls.append(("create_timing_cache", data))
        return data

    def get_timing_cache(self):
        return types.SimpleNamespace(serialize=lambda: b"timings")


class Context(Listed):
    def __init__(self, profiles):
        super().__init__()
        self.shapes = {}
        self.profiles = profiles

    def set_input_shape(self, name, shape):
        self.shapes[name] = shape

    def get_tensor_shape(self, name):
        return self.shapes[INPUT]

    def execute_async_v3(self, stream):
        self.calls.append(("execute_async_v3", stream))
        return True


class Engine:
    refittable = False
    streamable_weights_size = 0
    device_memory_size_v2 = 1 << 20
    num_io_tensors = 2

    def __init__(self, profiles):
        self.profiles = profiles
        self.num_optimization_profiles = len(profiles)
        self.contexts = []

    def get_tensor_name(self, i):
        return (INPUT, OUTPUT)[i]

    def get_tensor_dtype(self, name):
        return types.SimpleNamespace(name="HALF")

    def get_tensor_mode(self, name):
        return {INPUT: "in", OUTPUT: "out"}[name]

    def get_tensor_profile_shape(self, name, i):
        return self.profiles[i][name]

    def create_execution_context(self, *config):
        self.contexts.append(Context(self.profiles))
        self.contexts[-1].config = config
        return self.contexts[-1]

    def create_runtime_config(self):
        config = Listed()
        config.create_runtime_cache = lambda: types.SimpleNamespace(
            deserialize=lambda data: config.calls.append(("deserialize", data)),
            serialize=lambda: b"kernels",
        )
        return config


def module(version="11.4.0", *, strongly_typed=False, phases=()):
    """The module; `phases` are reported by a build: (phase, parent, steps)."""
    trt = types.ModuleType("tensorrt")
    trt.__version__ = version
    trt.__spec__ = ModuleSpec("tensorrt", None)  # torch.compile looks for it
    trt.ILogger, trt.IProgressMonitor = ILogger, type("IProgressMonitor", (), {})
    flags = ["REFIT", "TF32", "STRIP_PLAN", "WEIGHT_STREAMING"]
    trt.BuilderFlag = enum.Enum("BuilderFlag", flags)
    trt.NetworkDefinitionCreationFlag = types.SimpleNamespace()
    if strongly_typed:
        trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED = 1
    trt.MemoryPoolType = enum.Enum("MemoryPoolType", ["WORKSPACE"])
    trt.ComputeCapability = enum.Enum("ComputeCapability", "CURRENT SM75 SM80 SM86 SM89 SM120")
    trt.TensorIOMode = types.SimpleNamespace(INPUT="in")
    trt.built = []  # (flags of the network, its config)
    trt.fails = False

    class Builder:
        def __init__(self, logger):
            self.logger = logger

        def create_network(self, flags):
            self.flags = flags
            port = Tensor(INPUT, ("batch", 4, "height", "width"))
            return types.SimpleNamespace(num_inputs=1, get_input=lambda i: port)

        def create_builder_config(self):
            return Config()

        def create_optimization_profile(self):
            return Profile()

        def build_serialized_network(self, network, config):
            trt.built.append((self.flags, config))
            watch = config.progress_monitor
            for phase, parent, steps in phases:
                watch.phase_start(phase, parent, steps)
                if not all(watch.step_complete(phase, i) for i in range(steps)):
                    return None
                watch.phase_finish(phase)
            if trt.fails:
                self.logger.log(Severity.ERROR, "could not find any\n implementation")
                return None
            return json.dumps(config.profiles).encode()

    class OnnxParser:
        def __init__(self, network, logger):
            pass

        def parse_from_file(self, path):
            return True

    class Runtime:
        engine_host_code_allowed = None

        def __init__(self, logger):
            self.logger = logger
            trt.runtime = self

        def deserialize_cuda_engine(self, plan):
            assert self.engine_host_code_allowed is False
            try:
                trt.engine = Engine(json.loads(plan))
            except ValueError:
                self.logger.log(Severity.ERROR, "magic tag does not match")
                return None
            return trt.engine

    trt.Builder, trt.OnnxParser, trt.Runtime = Builder, OnnxParser, Runtime
    return trt


class CudaTensor:
    """What `run` asks of a torch tensor on the GPU."""

    device = torch.device("cuda", 0)

    def __init__(self, shape, address, dtype=torch.float16):
        self.shape, self.address, self.dtype = shape, address, dtype

    def data_ptr(self):
        return self.address

    def contiguous(self):
        return self


def refitting(trt, *, missing=(), taken=True, done=True):
    """Give the module a Refitter and a parser for it; what they are given is in `trt.refits`."""
    trt.refits = []

    class Refitter:
        def __init__(self, engine, logger):
            trt.refits.append(("engine", engine))

        def get_missing_weights(self):
            return list(missing)

        def refit_cuda_engine(self):
            trt.refits.append(("done",))
            return done

    class OnnxParserRefitter:
        def __init__(self, refitter, logger):
            pass

        def refit_from_file(self, path):
            trt.refits.append(("file", path))
            return taken

        def refit_from_bytes(self, graph):
            trt.refits.append(("bytes", graph))
            return taken

    trt.Refitter, trt.OnnxParserRefitter = Refitter, OnnxParserRefitter
