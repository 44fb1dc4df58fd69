"""An exported graph against PyTorch, in numbers, before it goes into a bundle.

The reference is PyTorch in the next wider dtype: float64 for float32, float32 for 16 bits.  The
error of a run is RMS, relative to the RMS of the reference.  Over three times at corners of the
ranges its RMS may be at most twice that of PyTorch in the graph's own dtype, in the farther of its
two memory layouts, plus a quarter of the dtype's rounding step.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fastdiff.engine.errors import EngineError
from fastdiff.engine.manifest import Graph, Profile
from fastdiff.engine.networks import TORCH, Network
from fastdiff.engine.session import Session

TIMES = (999.0, 500.5, 1.0)
EXTENTS = ("corners", "smallest")


@dataclass(frozen=True)
class Error:
    """Over what was tried: relative RMS error of the graph, and of PyTorch."""

    graph: float
    torch: float
    runs: int


def corners(profile: Profile, extent: str) -> list[dict[str, int]]:
    """Sizes of the axes to try: all smallest; all largest, and tall and wide in between."""
    least = {name: axis.min for name, axis in profile.items()}
    if extent == "smallest":
        return [least]
    most = {name: axis.max for name, axis in profile.items()}
    found = [least, most]
    for one, other in (("height", "width"), ("width", "height")):
        if one in profile and other in profile:
            found.append(least | {one: most[one]})
    return [sizes for i, sizes in enumerate(found) if sizes not in found[:i]]


def runs(network: Network, profile: Profile, extent: str) -> Iterator[list[Tensor]]:
    """The inputs of every run: each corner at three times, spread over the batch where it is 3."""
    timed = any(port.name == "timestep" for port in network.inputs)
    for n, sizes in enumerate(corners(profile, extent)):
        times = TIMES if timed else TIMES[:1]
        starts = times if sizes["batch"] < len(times) else times[:1]
        for i, _ in enumerate(starts):
            turned = times[i:] + times[:i]
            yield network.example(sizes, seed=10 * n + i, times=turned)


def measure(network: Network, graph: Graph, path: Path, profile: Profile, extent: str) -> Error:
    """Run all of it; EngineError, and so no bundle, where the graph is farther than it may be."""
    dtype = TORCH[network.outputs[0].dtype]
    wide = torch.float64 if dtype == torch.float32 else torch.float32
    reference = copy.deepcopy(network.module).to(wide)
    channels_last = copy.deepcopy(network.module)
    for part in channels_last.modules():
        if isinstance(part, nn.Conv2d):
            part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    session = Session(graph, path)
    ours: list[float] = []
    theirs: list[float] = []
    shapes: list[dict[str, tuple[int, ...]]] = []
    for inputs in runs(network, profile, extent):
        with torch.no_grad():
            exact = _first(reference(*(_widened(v, dtype, wide) for v in inputs)))
            layouts = [module(*inputs) for module in (network.module, channels_last)]
        named = dict(zip((port.name for port in network.inputs), inputs, strict=True))
        ours.append(_distance(session.run(named)[network.outputs[0].name], exact))
        theirs.append(max(_distance(_first(answer), exact) for answer in layouts))
        shapes.append({name: tuple(value.shape) for name, value in named.items()})
    session.close()
    found = Error(_rms(ours), _rms(theirs), len(ours))
    limit = 2 * found.torch + torch.finfo(dtype).eps / 4
    if not found.graph <= limit:
        worst = max(range(len(ours)), key=lambda i: (ours[i] != ours[i], ours[i]))
        raise EngineError(
            f"{graph.file} must be as near to PyTorch in {wide} as PyTorch in {dtype} is, relative "
            f"RMS error {limit:.1e} over {found.runs} runs; got {found.graph:.1e}, the worst "
            f"{ours[worst]:.1e} at {shapes[worst]}. No bundle was written"
        )
    return found


def _rms(errors: list[float]) -> float:
    return math.sqrt(sum(error * error for error in errors) / len(errors))


def _first(out: Tensor | tuple[Tensor, ...]) -> Tensor:
    return out if isinstance(out, Tensor) else out[0]


def _widened(value: Tensor, dtype: torch.dtype, wide: torch.dtype) -> Tensor:
    """Inputs in the network's dtype in the wider one; times stay float32, as in diffusers."""
    return value.to(wide) if value.dtype == dtype and value.dim() > 1 else value


def _distance(got: Tensor, exact: Tensor) -> float:
    got, exact = got.double(), exact.double()
    return float((got - exact).square().mean().sqrt() / exact.square().mean().sqrt())


__all__ = ["EXTENTS", "Error", "corners", "measure"]
