"""Read a picture back into objects, and judge whether it shows what a prompt says.

Every pixel is taken as a mixture (1 - a) white + a colour; for each colour the best a has a closed
form, and the colour whose line from white passes nearest wins.  Pixels with a >= 1/2 form
components; a component of 25 px or more is an object.  Its centre is the centroid of a, and its
shape is the drawn shape of equal area around that centre that overlaps it best (intersection over
union, at least 0.8).

The verdict is strict: colours, shapes and relation must be right, nothing else may be in the
picture, and sizes, gap and distance from the border must be those of the definition (to half a
pixel, the gap and the radius to one pixel).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastdiff.shapes.scenes import (
    COLOURS,
    GAP,
    RADII,
    RATIO,
    REACH,
    RELATIONS,
    SHAPES,
    SHIFT,
    SIZE,
    distance,
    parse,
)

LEAST_AREA = 25  # px: smaller components are dirt
MOST_DIRT = 40  # px of dirt, all together
FOREIGN = 0.2  # a pixel this far (RGB distance, 0..1) from every mixture has none of the colours
LEAST_OVERLAP = 0.8
AREA = {"circle": np.pi, "square": 1.76**2, "triangle": 1.1**2 * 0.75 * 3**0.5, "cross": 2.2576}

_PALETTE = np.array(list(COLOURS.values())) / 255.0


@dataclass(frozen=True)
class Object:
    """One object as found: words, centre in px, radius in px, overlap with the ideal shape."""

    colour: str
    shape: str
    x: float
    y: float
    radius: float
    overlap: float
    mask: np.ndarray


@dataclass(frozen=True)
class Verdict:
    """What is right; `layout` = nothing else, sizes, gap and border as defined."""

    colour: bool
    shape: bool
    relation: bool
    layout: bool
    reasons: tuple[str, ...]

    @property
    def right(self) -> bool:
        """Everything is right."""
        return self.colour and self.shape and self.relation and self.layout


def _components(mask: np.ndarray) -> list[np.ndarray]:
    """The 4-connected components of a mask, each as a mask."""
    left, found = mask.copy(), []
    height, width = mask.shape
    while left.any():
        part = np.zeros_like(mask)
        stack = [tuple(int(v) for v in np.argwhere(left)[0])]
        while stack:
            i, j = stack.pop()
            if 0 <= i < height and 0 <= j < width and left[i, j]:
                left[i, j], part[i, j] = False, True
                stack += [(i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)]
        found.append(part)
    return found


def _grown(mask: np.ndarray) -> np.ndarray:
    """The mask and its eight neighbours."""
    wide = np.pad(mask, 1)
    rows = wide[:-2] | wide[1:-1] | wide[2:]
    return np.asarray(rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:])


def _shape_of(cover: np.ndarray) -> tuple[str, float, float, float, float]:
    """Best shape, centre, radius and overlap of an object's coverage."""
    area = cover.sum()
    grid = np.arange(SIZE) + 0.5
    x, y = float((cover.sum(0) * grid).sum() / area), float((cover.sum(1) * grid).sum() / area)
    dx = torch.from_numpy(grid - x)[None, :].expand(SIZE, SIZE)
    dy = torch.from_numpy(grid - y)[:, None].expand(SIZE, SIZE)
    best = ("", 0.0, -1.0)
    for k, shape in enumerate(SHAPES):
        r = float((area / AREA[shape]) ** 0.5)
        ideal = (0.5 - distance(k, dx, dy, torch.tensor(r))).clamp(0, 1).numpy()
        overlap = float(np.minimum(ideal, cover).sum() / np.maximum(ideal, cover).sum())
        if overlap > best[2]:
            best = (shape, r, overlap)
    return best[0], x, y, best[1], best[2]


def read(picture: Tensor) -> tuple[list[Object], int]:
    """Objects of a (3, 64, 64) picture in 0..1, largest first, and the number of dirty pixels."""
    if picture.shape != (3, SIZE, SIZE):
        raise ValueError(
            f"picture must be (3, {SIZE}, {SIZE}) in 0..1; got {tuple(picture.shape)}. "
            "Pass one picture of the batch, channels first"
        )
    pixels = picture.detach().double().clamp(0, 1).permute(1, 2, 0).numpy()
    ink = 1 - _PALETTE  # from white to each colour
    share = ((1 - pixels) @ ink.T / (ink**2).sum(1)).clip(0, 1)  # (64, 64, 6)
    away = np.linalg.norm(1 - share[..., None] * ink - pixels[..., None, :], axis=-1)
    colour = away.argmin(-1)
    foreign = away.min(-1) > FOREIGN
    solid = (np.take_along_axis(share, colour[..., None], -1)[..., 0] >= 0.5) & ~foreign
    objects, dirt = [], int(foreign.sum())
    for k, name in enumerate(COLOURS):
        for part in _components(solid & (colour == k)):
            if part.sum() < LEAST_AREA:
                dirt += int(part.sum())
                continue
            shape, x, y, r, overlap = _shape_of(share[..., k] * _grown(part))
            objects.append(Object(name, shape, x, y, r, overlap, part))
    return sorted(objects, key=lambda o: -int(o.mask.sum())), dirt


def _gap(a: np.ndarray, b: np.ndarray) -> float:
    """Least free distance in px between the pixels of two masks."""
    p, q = np.argwhere(a), np.argwhere(b)
    return float(np.sqrt(((p[:, None] - q[None]) ** 2).sum(-1).min())) - 1


def judge(picture: Tensor, prompt: str) -> Verdict:
    """Whether a (3, 64, 64) picture in 0..1 shows what the prompt says."""
    scene = parse(prompt)
    objects, dirt = read(picture)
    reasons = []
    wanted = [thing.colour for thing in scene.things]
    seen = [o.colour for o in objects]
    colour = sorted(wanted) == sorted(seen)
    if not colour:
        reasons.append(f"colours: wanted {wanted}, found {seen}")
    by_colour = {o.colour: o for o in reversed(objects)}
    pairs = [(thing, by_colour.get(thing.colour)) for thing in scene.things]
    shape = True
    for thing, o in pairs:
        if o is None:
            shape = False
        elif o.shape != thing.shape or o.overlap < LEAST_OVERLAP:
            shape = False
            reasons.append(f"shape: wanted {thing}, found {o.shape} (overlap {o.overlap:.2f})")
    relation = all(o is not None for _, o in pairs)
    if relation and scene.relation is not None:
        first, second = (o for _, o in pairs if o is not None)
        k = RELATIONS.index(scene.relation)
        shift = np.array([first.x - second.x, first.y - second.y]) * (1 if k % 2 else -1)
        along, across = shift[k // 2], abs(shift[1 - k // 2])
        relation = bool(along >= SHIFT - 0.5 and along >= RATIO * across - 0.5)
        if not relation:
            reasons.append(
                f"relation: {along:.1f} px along '{scene.relation}', {across:.1f} across"
            )
    faults = _layout_faults(objects, dirt)
    return Verdict(colour, shape, relation, not faults, (*reasons, *faults))


def _layout_faults(objects: list[Object], dirt: int) -> list[str]:
    faults = []
    if dirt > MOST_DIRT:
        faults.append(f"dirt: {dirt} px belong to no object")
    for o in objects:
        left, right, up, down = REACH[SHAPES.index(o.shape)] * o.radius
        if min(o.x - left, SIZE - o.x - right, o.y - up, SIZE - o.y - down) < -1:
            faults.append(f"border: the {o.colour} object is cut off")
        if not RADII[0] - 1 <= o.radius <= RADII[1] + 1:
            faults.append(f"size: the {o.colour} object has radius {o.radius:.1f}")
    if len(objects) == 2 and _gap(objects[0].mask, objects[1].mask) < GAP - 1:
        faults.append("gap: the objects are too close")
    return faults
