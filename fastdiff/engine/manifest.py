"""manifest.json: what a bundle holds, for whom it was made, and the SHA-256 of every file.

Axes have names: batch; height and width of the latent (sample); tokens of the text.  A port's
shape is a list of numbers and of these names; a profile is the range of every axis.
"""

from __future__ import annotations

from math import isfinite
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from fastdiff.engine.errors import Corrupt, Incompatible

SCHEMA = 1
NAME = "manifest.json"
MOST_BYTES = 4 << 20  # of a manifest; SDXL's has 20 kB
AXES = ("batch", "height", "width", "tokens")
TARGETS = ("onnxruntime", "tensorrt", "tensorrt-rtx")


# Devices on Windows, with any ending: a host in C# or JavaScript may open the files there.
DEVICES = {
    "con",
    "prn",
    "aux",
    "nul",
    *(f"{port}{n}" for port in ("com", "lpt") for n in range(10)),
}


def _plain(name: str) -> str:
    stem = name.lower().split(".")[0]
    if name.endswith(".") or ".." in name or name.lower() == NAME or stem in DEVICES:
        raise ValueError("must be a plain file name, and not that of the manifest")
    return name


def _finite(value: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN and no infinity; Python's and pydantic's readers take them."""
    rest: list[Any] = [value]
    while rest:
        item = rest.pop()
        if isinstance(item, float) and not isfinite(item):
            raise ValueError("must hold finite numbers")
        if isinstance(item, int) and not -(1 << 63) <= item < 1 << 64:
            raise ValueError("must hold whole numbers of 64 bits")
        rest += item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
    return value


# "$" of pydantic's regular expressions is the end of the text, not of a line.
FileName = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", strict=True),
    AfterValidator(_plain),
]
Word = Annotated[str, StringConstraints(pattern=r"^[ -~]{1,200}$", strict=True)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$", strict=True)]
Size = Annotated[int, Field(gt=0, le=1 << 20)]
Config = Annotated[dict[str, Any], AfterValidator(_finite)]


Kind = Literal["float32", "float16", "bfloat16", "int64", "int32"]  # as NumPy says it


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class File(_Part):
    """One file of the bundle: its length in bytes and its SHA-256."""

    bytes: Annotated[int, Field(ge=0, le=1 << 44)]
    sha256: Sha256


class Port(_Part):
    """An input or output of a graph: dtype as NumPy says it, shape of numbers and axis names."""

    name: Word
    dtype: Kind
    shape: Annotated[list[Annotated[int, Field(ge=0, le=1 << 31)] | Word], Field(max_length=8)]


class Graph(_Part):
    """An ONNX file, its ports in order, and the file of its weights where they lie beside it."""

    file: FileName
    data: FileName | None = None
    opset: Annotated[int, Field(ge=17, le=30)]
    inputs: Annotated[list[Port], Field(min_length=1, max_length=200)]
    outputs: Annotated[list[Port], Field(min_length=1, max_length=200)]


class Range(_Part):
    """What an axis may be: min <= opt <= max, each a multiple of `multiple`."""

    min: Size
    opt: Size
    max: Size
    multiple: Size = 1

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if not self.min <= self.opt <= self.max:
            raise ValueError(f"must have min <= opt <= max; got {self.min}:{self.opt}:{self.max}")
        if any(value % self.multiple for value in (self.min, self.opt, self.max)):
            raise ValueError(f"must be multiples of {self.multiple}")
        return self


Profile = Annotated[dict[Word, Range], Field(min_length=1, max_length=8)]


class Target(_Part):
    """What the bundle was made for and on; None where it does not matter to the target."""

    name: Literal["onnxruntime", "tensorrt", "tensorrt-rtx"]
    version: Word
    cuda: Word | None = None
    driver: Word | None = None
    compute_capability: Word | None = None  # "9.0"; "8.0,8.6,8.9,12.0" for a plan of several
    os: Word
    machine: Word


class Engine(_Part):
    """A plan built from a graph for one profile, by the target of the bundle."""

    file: FileName
    graph: Word
    profile: Annotated[int, Field(ge=0, lt=64)]
    refittable: bool = False


class Build(_Part):
    """How the plans of a bundle are built, there and where it is loaded."""

    refittable: bool = False
    strip: bool = False  # without weights, which each plan gets from the graph when it is read
    weight_streaming: bool = False
    memory_limit: Annotated[int, Field(gt=0, le=1 << 44)] | None = None  # bytes


class Model(_Part):
    """The network that the U-Net's graph was made from."""

    kind: Word  # its class in diffusers
    config: Config
    config_sha256: Sha256  # of what differs from the class's defaults
    weights_sha256: Sha256
    prediction_type: Word | None = None
    scheduler: Config | None = None
    vae_scale: Annotated[int, Field(gt=0, le=64)] = 8  # pixels of a picture per pixel of a latent
    scaling_factor: float = 1.0
    shift_factor: float = 0.0


class Manifest(_Part):
    """The whole of it."""

    schema_: Annotated[int, Field(alias="schema", ge=SCHEMA, le=SCHEMA)] = SCHEMA
    fastdiff: Word
    target: Target
    dtype: Literal["fp32", "fp16", "bf16"]
    model: Model
    profiles: Annotated[list[Profile], Field(min_length=1, max_length=64)]
    graphs: Annotated[dict[Word, Graph], Field(min_length=1, max_length=16)]
    build: Build = Build()
    engines: Annotated[list[Engine], Field(max_length=256)] = []
    samplers: Annotated[dict[Word, FileName], Field(max_length=200)] = {}
    golden: FileName | None = None  # safetensors: the U-Net's inputs and output, by port
    files: Annotated[dict[FileName, File], Field(min_length=1, max_length=1000)]

    @model_validator(mode="after")
    def _complete(self) -> Manifest:
        named = [graph.file for graph in self.graphs.values()]
        # the graph of a step has the U-Net's weights, and they need not be there twice
        named += sorted({graph.data for graph in self.graphs.values() if graph.data})
        named += [engine.file for engine in self.engines] + list(self.samplers.values())
        named += [self.golden] if self.golden else []
        if len(set(named)) != len(named):
            raise ValueError(
                "graphs, engines, samplers and golden must each have files of their own"
            )
        if missing := sorted(set(named) - set(self.files)):
            raise ValueError(
                f"files must have every file that is named; {missing[0]!r} is not there"
            )
        if unnamed := sorted(set(self.files) - set(named)):
            raise ValueError(
                f"files must be named by a graph or another field; {unnamed[0]!r} is not"
            )
        if len({name.lower() for name in self.files}) != len(self.files):
            raise ValueError("files must have names that differ in more than upper and lower case")
        for engine in self.engines:
            if engine.graph not in self.graphs or engine.profile >= len(self.profiles):
                raise ValueError(
                    f"engine {engine.file!r} must name a graph and a profile that exist"
                )
        return self

    def text(self) -> str:
        """The JSON that `parse` reads."""
        return self.model_dump_json(by_alias=True, indent=1) + "\n"


def parse(text: bytes) -> Manifest:
    """A manifest from JSON; Incompatible for another schema, Corrupt for anything that is wrong."""
    if len(text) > MOST_BYTES:
        raise Corrupt(f"{NAME} must have at most {MOST_BYTES} bytes; got {len(text)}")
    try:
        found = Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=True)[0]
        got = _short(first["input"])
        if first["loc"] == ("schema",):
            raise Incompatible(
                f"{NAME} must be of schema {SCHEMA}, which this fastdiff reads; got {got}. "
                "Export the model again, or use the fastdiff that wrote it"
            ) from None
        where = _printable(".".join(map(str, first["loc"]))) or "it"
        raise Corrupt(
            f"{NAME}: {where} is wrong ({_printable(first['msg'])}); got {got}. "
            "Fetch or export the bundle again"
        ) from None
    if "schema_" not in found.model_fields_set:
        raise Corrupt(f"{NAME} must say its schema; it does not. Fetch or export the bundle again")
    return found


def _short(value: object) -> str:
    """What was got, in one short line; a value may be a whole file or a number of 10 000 digits."""
    if isinstance(value, bytes | str):
        return repr(value[:60])
    if isinstance(value, bool | float | None):
        return repr(value)
    if isinstance(value, int):
        return repr(value) if value.bit_length() < 128 else f"a number of {value.bit_length()} bits"
    return f"a {type(value).__name__}"


def _printable(text: str) -> str:
    """A line of a file from elsewhere may hold line ends and what a terminal obeys."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:300])


__all__ = [
    "Build",
    "Engine",
    "File",
    "Graph",
    "Manifest",
    "Model",
    "Port",
    "Range",
    "Target",
    "parse",
]
