"""Which sizes an engine takes: ranges from the command line, sizes of a graph's dimensions, choice.

A profile is the range of every axis (manifest.Range).  Several narrow profiles are faster than one
wide one, which is tuned for a single size; the smallest that contains a size is the one to use.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from fastdiff.engine.errors import Incompatible
from fastdiff.engine.manifest import Profile, Range

LARGEST = 1 << 20  # manifest.Size
MOST = 64  # profiles of a bundle
PICTURE = ("height", "width")  # axes that a user names in pixels
_DIMENSION = re.compile(r"(?:([1-9][0-9]{0,5})\*)?([a-z_]+)(?://?([1-9][0-9]{0,5}))?")


def parse(text: str, name: str, *, unit: int = 1, multiple: int = 1) -> list[Range]:
    """The ranges of one axis: "512", "256:512:1024" (min:opt:max) or several with commas.

    unit        what the user's numbers are divided by: pixels per pixel of the latent
    multiple    of which every size of the latent must be a multiple, as the network demands
    """
    ranges = []
    for part in text.split(","):
        numbers = [int(n) for n in part.strip().split(":") if re.fullmatch(r"[0-9]{1,7}", n)]
        if len(numbers) not in (1, 3) or len(numbers) != part.count(":") + 1:
            raise ValueError(
                f"{name} must be sizes like 512 or ranges like 256:512:1024 (min:opt:max), "
                f"with commas between several; got {text!r}"
            )
        low, opt, high = numbers if len(numbers) == 3 else numbers * 3
        step = unit * multiple
        if not 0 < low <= opt <= high <= LARGEST or any(n % step for n in (low, opt, high)):
            raise ValueError(
                f"{name} must have 0 < min <= opt <= max <= {LARGEST}"
                + (f", multiples of {step}" if step > 1 else "")
                + f"; got {part.strip()!r}"
            )
        latent = [n // unit for n in (low, opt, high)]
        ranges.append(Range(min=latent[0], opt=latent[1], max=latent[2], multiple=multiple))
    return ranges


def expand(axes: Mapping[str, Sequence[Range]]) -> list[Profile]:
    """A profile for every alternative: the first ranges of all axes together, the second, …

    An axis with one range has it in every profile.  `--height 512,768 --width 512,768` is two
    profiles, 512x512 and 768x768, and not four: each costs minutes to build and a plan on disk.
    """
    counts = {name: len(ranges) for name, ranges in axes.items()}
    number = max(counts.values(), default=0)
    if not 1 <= number <= MOST or any(count not in (1, number) for count in counts.values()):
        several = [name for name, count in counts.items() if count != 1]
        raise ValueError(
            f"{' and '.join(several) or 'axes'} must have one range each, or as many as one "
            f"another (at most {MOST}); got "
            + ", ".join(f"{name} {count}" for name, count in counts.items())
        )
    return [
        {name: ranges[i if len(ranges) > 1 else 0] for name, ranges in axes.items()}
        for i in range(number)
    ]


def contains(profile: Profile, sizes: Mapping[str, int]) -> bool:
    """Whether every axis of the profile has its size in range; sizes of no axis are ignored."""
    return all(
        axis.min <= sizes[name] <= axis.max and sizes[name] % axis.multiple == 0
        for name, axis in profile.items()
    )


def volume(profile: Profile) -> int:
    """The product of the largest sizes: what memory and tuning of a profile go by."""
    return math.prod(axis.max for axis in profile.values())


def choose(profiles: Sequence[Profile], sizes: Mapping[str, int], *, pixels: int = 8) -> int:
    """The index of the smallest profile, by `volume`, that contains the sizes; the first of equals.

    sizes     of every axis that the profiles have, height and width in pixels of the latent
    pixels    of the picture per pixel of the latent: what the error speaks in
    """
    missing = sorted({name for profile in profiles for name in profile} - sizes.keys())
    if missing:
        raise ValueError(f"sizes must name every axis of the profiles; {missing[0]!r} is missing")
    fitting = [i for i, profile in enumerate(profiles) if contains(profile, sizes)]
    if not fitting:
        raise Incompatible(_no_profile(profiles, sizes, pixels))
    return min(fitting, key=lambda i: volume(profiles[i]))


def size(dimension: str, sizes: Mapping[str, int]) -> int:
    """The size of a graph's dimension: an axis, "8*axis", or "axis/8" rounded up.

    Half of an odd size rounded up is what a convolution of stride 2 leaves.
    """
    match = _DIMENSION.fullmatch(dimension.replace(" ", ""))
    if match is None or match[2] not in sizes:
        raise Incompatible(
            f"dimension {dimension!r} of the graph must be an axis of the profiles "
            f"({', '.join(sizes)}), or a multiple or part of one. Export the model again"
        )
    return -(-int(match[1] or 1) * sizes[match[2]] // int(match[3] or 1))


def show(profile: Profile) -> str:
    """ "batch 1..8, height 32..128, width 64": in pixels of the latent."""
    return ", ".join(f"{name} {_show(axis)}" for name, axis in profile.items())


def _show(axis: Range) -> str:
    text = f"{axis.min}..{axis.max}" if axis.min < axis.max else str(axis.min)
    return text + (f" in steps of {axis.multiple}" if axis.multiple > 1 else "")


def _misfit(profile: Profile, sizes: Mapping[str, int]) -> float:
    clamped = {n: min(max(sizes[n], axis.min), axis.max) for n, axis in profile.items()}
    return sum(abs(math.log(max(sizes[n], 1) / value)) for n, value in clamped.items())


def _no_profile(profiles: Sequence[Profile], sizes: Mapping[str, int], pixels: int) -> str:
    if not profiles:
        return "profiles must hold one at least; got none. Export the model again"
    best = min(range(len(profiles)), key=lambda i: _misfit(profiles[i], sizes))
    options, odd = [], []
    for name, axis in profiles[best].items():
        if not contains({name: axis}, sizes):
            odd.append(f"{name} must be {_show(axis)}, got {sizes[name]}")
            unit = pixels if name in PICTURE else 1
            wanted = max(-(-sizes[name] // axis.multiple), 1) * axis.multiple
            low, high = min(axis.min, wanted), max(axis.max, wanted)
            options.append(f"--{name} {low * unit}:{axis.opt * unit}:{high * unit}")
    listed = "; ".join(f"[{i}] {show(profile)}" for i, profile in enumerate(profiles))
    return (
        f"sizes must be in one of the engine's profiles, {listed}. Nearest is [{best}]: "
        f"{', '.join(odd)} (sizes of the latent). Choose a size in it, or export again with "
        + " ".join(options)
    )


__all__ = ["choose", "contains", "expand", "parse", "show", "size", "volume"]
