"""Scenes of one or two coloured shapes on white, their prompts, and how they are drawn.

A picture is 64x64 RGB, values 0..1, (B, 3, 64, 64); x grows to the right, y downwards; pixel (i,
j) has its centre at (j + 1/2, i + 1/2).  `radius` is the nominal size r of a shape around its
centre (cx, cy):

    circle    |p| <= r
    square    side 1.76 r, edges parallel to the picture's
    triangle  equilateral, pointing up, circumradius 1.1 r; the centre is its centroid
    cross     a plus sign: arms reach r, their width is 0.68 r

so every shape covers about 2r x 2r.  Coverage of a pixel is clamp(1/2 - distance to the edge, 0,
1).

Two objects differ in colour, keep a gap of at least 4 px, and are displaced along the axis that
the prompt names by at least 12 px and at least twice as much as along the other axis.  All objects
lie fully inside.
"""

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

SIZE = 64
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (230, 25, 25),
    "green": (25, 165, 40),
    "blue": (25, 50, 230),
    "yellow": (240, 215, 25),
    "purple": (155, 40, 190),
    "black": (13, 13, 13),
}
SHAPES = ("circle", "square", "triangle", "cross")
RELATIONS = ("left of", "right of", "above", "below")
RADII = (8.0, 14.0)
GAP, SHIFT, RATIO = 4.0, 12.0, 2.0
HELD_BACK = 10  # one two-object combination in so many is kept out of the training data

_COLOUR_NAMES = tuple(COLOURS)
_TRI = 1.1  # circumradius of the triangle in units of r
# How far each shape reaches from its centre, in units of r: left, right, up, down.
REACH = np.array(
    [
        [1.0, 1.0, 1.0, 1.0],
        [0.88, 0.88, 0.88, 0.88],
        [_TRI * math.sqrt(0.75), _TRI * math.sqrt(0.75), _TRI, _TRI / 2],
        [1.0, 1.0, 1.0, 1.0],
    ]
)
_OBJECT = rf"(?:an? )?({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
_PROMPT = re.compile(rf"{_OBJECT}(?: ({'|'.join(RELATIONS)}) {_OBJECT})?")


@dataclass(frozen=True)
class Thing:
    """One object as words."""

    colour: str
    shape: str

    def __str__(self) -> str:
        return f"a {self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """What a prompt asks for: one object, or `first` `relation` `second`."""

    first: Thing
    relation: str | None = None
    second: Thing | None = None

    @property
    def prompt(self) -> str:
        """The scene in the words of the training data."""
        if self.second is None:
            return str(self.first)
        return f"{self.first} {self.relation} {self.second}"

    @property
    def things(self) -> tuple[Thing, ...]:
        """The objects in the order of the prompt."""
        return (self.first,) if self.second is None else (self.first, self.second)

    def mirrored(self) -> "Scene":
        """The same layout told from the other object: 'a above b' is 'b below a'."""
        if self.second is None or self.relation is None:
            return self
        opposite = RELATIONS[RELATIONS.index(self.relation) ^ 1]
        return Scene(self.second, opposite, self.first)


def parse(prompt: str) -> Scene:
    """Read a prompt; raises ValueError for anything that is not one of the scenes."""
    words = " ".join(prompt.lower().replace(",", " ").replace(".", " ").split())
    found = _PROMPT.fullmatch(words)
    if found is None:
        raise ValueError(
            f"prompt must name one object, or two and where the first stands; got {prompt!r}. "
            "Try 'a red circle' or 'a red circle above a blue square'"
        )
    colour, shape, relation, colour2, shape2 = found.groups()
    if relation is None:
        return Scene(Thing(colour, shape))
    return Scene(Thing(colour, shape), relation, Thing(colour2, shape2))


def one_object_scenes() -> list[Scene]:
    """All 24 scenes of one object."""
    return [Scene(Thing(c, s)) for c in COLOURS for s in SHAPES]


def two_object_scenes() -> list[Scene]:
    """All 1,920 scenes of two objects (colours differ)."""
    things = [Thing(c, s) for c in COLOURS for s in SHAPES]
    return [
        Scene(a, relation, b)
        for a in things
        for relation in RELATIONS
        for b in things
        if a.colour != b.colour
    ]


def held_out(scene: Scene) -> bool:
    """Whether a two-object scene is kept out of training: a hash of the words decides.

    A scene and the same layout told from the other object ('a above b', 'b below a') are decided
    together.
    """
    if scene.second is None:
        return False
    key = scene if scene.relation in ("left of", "above") else scene.mirrored()
    digest = hashlib.sha256(key.prompt.encode()).digest()
    return int.from_bytes(digest[:8], "big") % HELD_BACK == 0


@dataclass(frozen=True)
class Layout:
    """Numbers of B scenes. Second objects exist where `two`; elsewhere their entries are ignored.

    two (B,) bool; colour, shape (B, 2) indices into COLOURS and SHAPES; relation (B,) index into
    RELATIONS; centre (B, 2, 2) x and y in px; radius (B, 2) in px.
    """

    two: np.ndarray
    colour: np.ndarray
    shape: np.ndarray
    relation: np.ndarray
    centre: np.ndarray
    radius: np.ndarray

    def __len__(self) -> int:
        return len(self.two)


def place(
    scenes: Sequence[Scene],
    rng: np.random.Generator,
    *,
    radii: tuple[float, float] = RADII,
    margin: float = 0.0,
    jitter: float | None = None,
) -> Layout:
    """Draw sizes and places for scenes, evenly over everything the definition allows.

    With `jitter` (px) the places are typical ones: two objects 15 px to either side of the middle,
    each moved by up to `jitter` along the named axis and 1.5 `jitter` across it; a single object in
    the middle, moved by up to 2.5 `jitter`.

    `margin` asks for that many px more than the least gap, shift and distance from the picture's
    edge, and for a ratio of the two shifts of 2 + margin / 4: a model that learns from such scenes
    and misses by a pixel still draws what the definition allows.
    """
    count = len(scenes)
    two = np.array([s.second is not None for s in scenes])
    colour, shape = np.zeros((count, 2), np.int64), np.zeros((count, 2), np.int64)
    relation = np.zeros(count, np.int64)
    for i, scene in enumerate(scenes):
        relation[i] = RELATIONS.index(scene.relation) if scene.relation else 0
        for k, thing in enumerate(scene.things):
            colour[i, k] = _COLOUR_NAMES.index(thing.colour)
            shape[i, k] = SHAPES.index(thing.shape)
    centre, radius = np.zeros((count, 2, 2)), np.zeros((count, 2))
    todo = np.arange(count)
    while len(todo):
        r = rng.uniform(*radii, (len(todo), 2))
        reach = REACH[shape[todo]] * r[..., None]  # (n, 2, 4)
        low, high = reach[..., (0, 2)] + margin, SIZE - reach[..., (1, 3)] - margin
        if jitter is None:
            c = rng.uniform(low, high)  # (n, 2, 2): object, axis
        else:
            c = _typical(two[todo], relation[todo], jitter, rng)
        fits = np.asarray((c >= low) & (c <= high))
        inside = fits[:, :, 0] & fits[:, :, 1]
        pair = inside[:, 1] & _allowed(c, reach, relation[todo], margin)
        ok = inside[:, 0] & (~two[todo] | pair)
        centre[todo[ok]], radius[todo[ok]] = c[ok], r[ok]
        todo = todo[~ok]
    return Layout(two, colour, shape, relation, centre, radius)


def _typical(
    two: np.ndarray, relation: np.ndarray, jitter: float, rng: np.random.Generator
) -> np.ndarray:
    """Centres (n, 2, 2) of typical layouts: object, axis."""
    count, rows = len(two), np.arange(len(two))
    move = rng.uniform(-jitter, jitter, (count, 2, 2))
    axis = relation // 2
    along = np.where(relation % 2 == 0, -15.0, 15.0)  # of the first object
    move[rows, :, 1 - axis] *= 1.5
    move[~two] *= 2.5 / np.where(np.arange(2) == 0, 1.0, 1.5)  # relation 0: axis 1 had 1.5
    move[rows, 0, axis] += np.where(two, along, 0.0)
    move[rows, 1, axis] -= np.where(two, along, 0.0)
    return SIZE / 2 + move


def _allowed(c: np.ndarray, reach: np.ndarray, relation: np.ndarray, margin: float) -> np.ndarray:
    """Whether two-object layouts obey gap, shift and ratio; the gap is taken along the named
    axis."""
    axis, rows = relation // 2, np.arange(len(c))
    before = np.where(relation % 2 == 0, 0, 1)  # the object with the smaller coordinate
    along = c[rows, 1 - before, axis] - c[rows, before, axis]
    across = np.abs(c[:, 0, :] - c[:, 1, :])[rows, 1 - axis]
    gap = along - reach[rows, before, 2 * axis + 1] - reach[rows, 1 - before, 2 * axis]
    enough = (along >= SHIFT + margin) & (along >= (RATIO + margin / 4) * across)
    return np.asarray(enough & (gap >= GAP + margin))


def distance(shape: int, dx: Tensor, dy: Tensor, r: Tensor) -> Tensor:
    """Signed distance to the edge of a shape, negative inside; too small near outer corners."""
    if SHAPES[shape] == "circle":
        return torch.hypot(dx, dy) - r
    ax, ay = dx.abs(), dy.abs()
    if SHAPES[shape] == "square":
        return torch.maximum(ax, ay) - 0.88 * r
    if SHAPES[shape] == "triangle":
        side = ax * math.sqrt(0.75) - (dy + _TRI * r) * 0.5
        return torch.maximum(side, dy - 0.5 * _TRI * r)
    arm = 0.34 * r
    flat, tall = torch.maximum(ax - r, ay - arm), torch.maximum(ax - arm, ay - r)
    return torch.minimum(flat, tall)


def render(layout: Layout) -> Tensor:
    """Draw a layout: (B, 3, 64, 64) float32 in 0..1."""
    pictures = torch.ones(len(layout), 3, SIZE, SIZE)
    palette = torch.tensor(list(COLOURS.values()), dtype=torch.float32) / 255
    grid = torch.arange(SIZE) + 0.5
    for k in (0, 1):
        exists = layout.two if k else np.ones(len(layout), bool)
        for shape in range(len(SHAPES)):
            rows = np.flatnonzero(exists & (layout.shape[:, k] == shape))
            if not len(rows):
                continue
            centre = torch.from_numpy(layout.centre[rows, k]).float()[:, :, None, None]
            radius = torch.from_numpy(layout.radius[rows, k]).float()[:, None, None]
            dx, dy = grid[None, None, :] - centre[:, 0], grid[None, :, None] - centre[:, 1]
            cover = (0.5 - distance(shape, dx, dy, radius)).clamp(0, 1)[:, None]
            paint = palette[torch.from_numpy(layout.colour[rows, k])][:, :, None, None]
            at = torch.from_numpy(rows)
            pictures[at] = torch.lerp(pictures[at], paint.expand(-1, -1, SIZE, SIZE), cover)
    return pictures
