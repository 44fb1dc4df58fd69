"""The oracle: right on rendered scenes, and not to be talked into wrong prompts."""

import numpy as np
import pytest
import torch

from fastdiff.shapes.oracle import judge, read
from fastdiff.shapes.scenes import (
    COLOURS,
    RELATIONS,
    SHAPES,
    Scene,
    Thing,
    one_object_scenes,
    place,
    render,
    two_object_scenes,
)


@pytest.fixture(scope="module")
def rendered():
    """250 two-object and 50 one-object scenes over the whole range of the definition."""
    rng = np.random.default_rng(11)
    two, one = two_object_scenes(), one_object_scenes()
    scenes = [two[i] for i in rng.integers(0, len(two), 250)]
    scenes += [one[i] for i in rng.integers(0, len(one), 50)]
    return scenes, render(place(scenes, rng))


def wrong_tellings(scene: Scene) -> list[Scene]:
    """Prompts that are wrong in one attribute, in the order of objects, or in their number."""
    first, second = scene.first, scene.second
    other_colour = next(c for c in COLOURS if c not in (t.colour for t in scene.things))
    other_shape = SHAPES[(SHAPES.index(first.shape) + 1) % 4]
    if second is None:
        return [
            Scene(Thing(other_colour, first.shape)),
            Scene(Thing(first.colour, other_shape)),
            Scene(first, "above", Thing(other_colour, first.shape)),
        ]
    return [
        Scene(second, scene.relation, first),
        Scene(Thing(second.colour, first.shape), scene.relation, Thing(first.colour, second.shape)),
        Scene(Thing(other_colour, first.shape), scene.relation, second),
        Scene(Thing(first.colour, other_shape), scene.relation, second),
        Scene(first),
        *(Scene(first, r, second) for r in RELATIONS if r != scene.relation),
    ]


def test_right_on_rendered_scenes(rendered):
    scenes, pictures = rendered
    verdicts = [judge(x, s.prompt) for x, s in zip(pictures, scenes, strict=True)]
    wrong = [(s.prompt, v.reasons) for s, v in zip(scenes, verdicts, strict=True) if not v.right]
    assert len(wrong) <= 0.01 * len(scenes), wrong


def test_wrong_prompts_are_turned_down(rendered):
    scenes, pictures = rendered
    asked = [(x, w) for x, s in zip(pictures, scenes, strict=True) for w in wrong_tellings(s)]
    asked = asked[:: 1 + len(asked) // 600]
    accepted = [w.prompt for x, w in asked if judge(x, w.prompt).right]
    assert len(accepted) <= 0.01 * len(asked), accepted


def test_survives_what_a_decoder_does_to_a_picture(rendered):
    scenes, pictures = rendered
    generator = torch.Generator().manual_seed(0)
    noisy = pictures + 0.03 * torch.randn(pictures.shape, generator=generator)
    right = [judge(x, s.prompt).right for x, s in zip(noisy, scenes, strict=True)]
    assert np.mean(right) >= 0.99


def test_reasons_name_what_is_wrong():
    rng = np.random.default_rng(3)
    scene = Scene(Thing("red", "circle"), "left of", Thing("blue", "square"))
    picture = render(place([scene], rng))[0]
    for prompt, word in (
        ("a red circle right of a blue square", "relation"),
        ("a red circle left of a blue cross", "shape"),
        ("a red circle left of a green square", "colours"),
        ("a red circle", "colours"),
    ):
        verdict = judge(picture, prompt)
        assert not verdict.right
        assert any(reason.startswith(word) for reason in verdict.reasons)


def test_reads_words_centre_and_radius():
    rng = np.random.default_rng(4)
    for scene in one_object_scenes():
        layout = place([scene], rng)
        (found,), dirt = read(render(layout)[0])
        assert (found.colour, found.shape, dirt) == (scene.first.colour, scene.first.shape, 0)
        assert np.hypot(*(layout.centre[0, 0] - (found.x, found.y))) < 0.3
        assert found.radius == pytest.approx(layout.radius[0, 0], rel=0.02)


@pytest.mark.parametrize("fault", ["blob", "foreign colour", "half colours", "overlap", "empty"])
def test_spoiled_pictures_are_turned_down(fault):
    rng = np.random.default_rng(5)
    scene = Scene(Thing("red", "circle"), "above", Thing("green", "square"))
    layout = place([scene], rng, radii=(10, 11), margin=2)
    picture = render(layout)[0]
    (x, y), r = layout.centre[0, 0].round().astype(int), 7
    if fault == "blob":  # a third object
        corner = [(c, d) for c in (0, 58) for d in (0, 58)]
        c, d = max(corner, key=lambda p: float(picture[:, p[0] : p[0] + 6, p[1] : p[1] + 6].sum()))
        picture[:, c : c + 6, d : d + 6] = torch.tensor([25, 50, 230])[:, None, None] / 255
    elif fault == "foreign colour":
        picture[:, y - r : y + r, x - r : x + r] = torch.tensor([0.2, 0.9, 0.9])[:, None, None]
    elif fault == "half colours":  # the circle is half blue
        half = picture[:, y - 12 : y, x - 12 : x + 12]
        ink = half[2] < 0.5
        half[:, ink] = torch.tensor([25, 50, 230])[:, None] / 255
    elif fault == "overlap":
        picture = render(place([Scene(scene.first)], rng))[0]
    else:
        picture = torch.ones_like(picture)
    assert not judge(picture, scene.prompt).right


def test_a_batch_is_an_error_that_says_so():
    with pytest.raises(ValueError, match=r"picture must be \(3, 64, 64\)"):
        read(torch.ones(2, 3, 64, 64))
