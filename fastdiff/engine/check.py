"""An exported graph against PyTorch, in numbers, before it goes into a bundle.

The reference is PyTorch in the next wider dtype: float64 for float32, float32 for 16 bits.  The
error of a run is RMS, relative to the RMS of the reference.  Over three times at corners of the
ranges its RMS may be at most twice that of PyTorch in the graph's own dtype, in the farther of its
two memory layouts, plus a quarter of the dtype's rounding step.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
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


class Reference:
    """A network in PyTorch: what is exact, and how far from it PyTorch itself is."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.dtype = TORCH[network.outputs[0].dtype]
        self.wide = torch.float64 if self.dtype == torch.float32 else torch.float32
        self._exact = copy.deepcopy(network.module).to(self.wide)
        channels_last = copy.deepcopy(network.module)
        for part in channels_last.modules():
            if isinstance(part, nn.Conv2d):
                part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._layouts = (network.module, channels_last)

    def exact(self, inputs: Sequence[Tensor]) -> Tensor:
        """Its first output in the wider dtype."""
        with torch.no_grad():
            return _first(self._exact(*(_widened(v, self.dtype, self.wide) for v in inputs)))

    def layouts(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Its first output in its own dtype, in each of two memory layouts."""
        with torch.no_grad():
            return [_first(module(*inputs)) for module in self._layouts]


def measure(reference: Reference, graph: Graph, path: Path, profile: Profile, extent: str) -> Error:
    """Run all of it; EngineError, and so no bundle, where the graph is farther than it may be."""
    network, session, found = reference.network, Session(graph, path), Distances(graph.file)
    for inputs in runs(network, profile, extent):
        exact = reference.exact(inputs)
        named = dict(zip((port.name for port in network.inputs), inputs, strict=True))
        answer = session.run(named)[network.outputs[0].name]
        sizes = {name: tuple(value.shape) for name, value in named.items()}
        found.add(answer, reference.layouts(inputs), exact, f"at {sizes}")
    session.close()
    return found.judged(reference)


class Distances:
    """Relative RMS errors of a graph and of PyTorch, run by run."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.graph: list[float] = []
        self.torch: list[float] = []
        self.places: list[str] = []

    def add(self, got: Tensor, layouts: Sequence[Tensor], exact: Tensor, place: str) -> None:
        """One run: of PyTorch's layouts the farther one counts."""
        self.graph.append(_distance(got, exact))
        self.torch.append(max(_distance(answer, exact) for answer in layouts))
        self.places.append(place)

    def judged(self, reference: Reference) -> Error:
        """All runs together; EngineError where the graph is farther than it may be."""
        found = Error(_rms(self.graph), _rms(self.torch), len(self.graph))
        limit = 2 * found.torch + torch.finfo(reference.dtype).eps / 4
        if not found.graph <= limit:
            ours = self.graph
            worst = max(range(len(ours)), key=lambda i: (ours[i] != ours[i], ours[i]))
            raise EngineError(
                f"{self.file} must be as near to PyTorch in {reference.wide} as PyTorch in "
                f"{reference.dtype} is, relative RMS error {limit:.1e} over {found.runs} runs; got "
                f"{found.graph:.1e}, the worst {ours[worst]:.1e} {self.places[worst]}. No bundle "
                "was written"
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


__all__ = ["EXTENTS", "Distances", "Error", "Reference", "corners", "measure"]
