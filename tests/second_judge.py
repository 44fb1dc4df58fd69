"""A second reader of pictures, that shares nothing with fastdiff/shapes/oracle.py but the words.

The oracle mixes colours, grows components and fits ideal shapes.  This one takes each pixel for the
nearest of seven colours, leaves out pixels at edges, and knows a shape by how it fills its box:

    square    nearly all of it
    circle    about pi / 4, as much above as below
    triangle  about a half, most of it below
    cross     about 0.56, as much above as below, nothing in the corners

It is less strict: sizes, gaps and borders are not asked for.
"""

import re

import numpy as np

COLOURS = {  # as a person would write them down from the pictures
    "white": (255, 255, 255),
    "red": (230, 25, 25),
    "green": (25, 165, 40),
    "blue": (25, 50, 230),
    "yellow": (240, 215, 25),
    "purple": (155, 40, 190),
    "black": (13, 13, 13),
}
STRAY = 12  # pixels inside something that has a colour nobody asked for


def inner_pixels(picture):
    """(3, H, W) in 0..1 to {colour: (n, 2) places y, x}, without pixels at an edge."""
    pixels = np.moveaxis(np.asarray(picture, dtype=float), 0, -1) * 255
    away = ((pixels[:, :, None] - np.array(list(COLOURS.values()))) ** 2).sum(-1)
    label = np.pad(away.argmin(-1), 1, mode="edge")
    middle = label[1:-1, 1:-1]
    same = np.ones_like(middle, dtype=bool)
    for dy, dx in ((0, 1), (2, 1), (1, 0), (1, 2)):
        same &= label[dy : dy + middle.shape[0], dx : dx + middle.shape[1]] == middle
    return {name: np.argwhere(same & (middle == k)) for k, name in enumerate(COLOURS)}


def shape_of(places):
    """The shape that fills its box so."""
    low = places.min(0)
    box = np.zeros(places.max(0) - low + 1, dtype=bool)
    box[tuple((places - low).T)] = True
    height, width = box.shape
    if min(height, width) < 5 or max(height, width) > 1.35 * min(height, width):
        return "nothing known"
    rows = box.sum(1) / width
    third = height // 3
    above, below = rows[:third].mean(), rows[-third:].mean()
    if below > 1.8 * above:
        return "triangle"
    fill = box.mean()
    corner = box[: height // 5 + 1, : width // 5 + 1].mean()
    if fill > 0.9:
        return "square"
    if corner < 0.05 and fill < 0.68:
        return "cross"
    return "circle" if fill > 0.68 and corner < 0.75 else "nothing known"


def agrees(picture, prompt):
    """Whether the picture shows the things of the prompt, where it says, and no other colour."""
    found = inner_pixels(picture)
    found.pop("white")
    things = re.findall(rf"({'|'.join(COLOURS)}) (circle|square|triangle|cross)", prompt)
    asked = [colour for colour, _ in things]
    if any(len(places) > STRAY for name, places in found.items() if name not in asked):
        return False
    for colour, shape in things:
        places = found[colour]
        if len(places) < 30 or shape_of(places) != shape:
            return False
    if len(things) == 1:
        return True
    (y, x), (y2, x2) = (found[colour].mean(0) for colour in asked)
    right, down = x - x2, y - y2
    along = {"left of": -right, "right of": right, "above": -down, "below": down}
    relation = next(name for name in along if f" {name} " in prompt)
    return along[relation] > 10 and along[relation] == max(along.values())
