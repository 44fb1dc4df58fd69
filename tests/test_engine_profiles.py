"""Profiles: what the command line's ranges mean, and which profile a size is run by."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastdiff.engine import profiles
from fastdiff.engine.errors import Incompatible
from fastdiff.engine.manifest import Range


def fixed(**sizes):
    return {name: Range(min=n, opt=n, max=n) for name, n in sizes.items()}


def numbers(axis):
    return axis.min, axis.opt, axis.max, axis.multiple


@pytest.mark.parametrize(
    ("text", "unit", "multiple", "expected"),
    [
        ("512", 1, 1, [(512, 512, 512, 1)]),
        ("256:512:1024", 1, 1, [(256, 512, 1024, 1)]),
        ("256:512:1024", 8, 8, [(32, 64, 128, 8)]),  # pixels in, the latent's out
        ("512, 768,256:512:1024", 8, 1, [(64, 64, 64, 1), (96, 96, 96, 1), (32, 64, 128, 1)]),
    ],
)
def test_ranges_of_the_command_line(text, unit, multiple, expected):
    parsed = profiles.parse(text, "height", unit=unit, multiple=multiple)
    assert [numbers(axis) for axis in parsed] == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"height must be sizes like 512 .*got ''"),
        ("512,", r"height must be sizes like 512"),
        ("256:512", r"must be sizes like 512"),
        ("1:2:3:4", r"must be sizes like 512"),
        ("a:b:c", r"must be sizes like 512"),
        ("-8:512:512", r"must be sizes like 512"),
        ("\u0665\u0661\u0662", r"must be sizes like 512"),  # digits, but not ours
        ("0", r"0 < min <= opt <= max <= 1048576, multiples of 64; got '0'"),
        ("512:256:1024", r"0 < min <= opt <= max"),
        ("512:1024:768", r"0 < min <= opt <= max"),
        ("500", r"multiples of 64; got '500'"),
        ("512,500", r"multiples of 64; got '500'"),
        ("2097152", r"<= 1048576"),
    ],
)
def test_a_wrong_range_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        profiles.parse(text, "height", unit=8, multiple=8)


def test_alternatives_go_together():
    axes = {"batch": "1:2:8", "height": "512,768", "width": "512,1024"}
    expanded = profiles.expand({name: profiles.parse(text, name) for name, text in axes.items()})
    sizes = [{name: axis.opt for name, axis in profile.items()} for profile in expanded]
    assert sizes == [
        {"batch": 2, "height": 512, "width": 512},
        {"batch": 2, "height": 768, "width": 1024},
    ]


def test_alternatives_of_other_numbers_are_refused():
    axes = {"height": profiles.parse("1,2", "height"), "width": profiles.parse("1,2,3", "width")}
    with pytest.raises(ValueError, match=r"^height and width must .*height 2, width 3"):
        profiles.expand(axes)
    with pytest.raises(ValueError, match="one range each"):
        profiles.expand({})


@pytest.mark.parametrize(
    ("dimension", "expected"),
    [
        ("height", 9),
        ("8*height", 72),
        ("8 * height", 72),
        ("height/2", 5),
        ("height//2", 5),
        ("height/8", 2),
        ("batch", 3),
    ],
)
def test_a_dimension_follows_its_axis(dimension, expected):
    assert profiles.size(dimension, {"batch": 3, "height": 9}) == expected


@pytest.mark.parametrize("dimension", ["", "s53", "height+1", "height*8", "0*height", "depth"])
def test_a_dimension_of_no_axis_is_refused(dimension):
    with pytest.raises(Incompatible, match=r"must be an axis of the profiles \(batch, height\)"):
        profiles.size(dimension, {"batch": 3, "height": 9})


WIDE = {
    "batch": Range(min=1, opt=1, max=8),
    "height": Range(min=32, opt=64, max=128, multiple=8),
    "width": Range(min=32, opt=64, max=128, multiple=8),
}
NARROW = fixed(batch=2, height=64, width=64)
TALL = fixed(batch=1, height=96, width=64)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((2, 64, 64), 1),  # in the wide one too
        ((1, 64, 64), 0),
        ((1, 96, 64), 2),
        ((8, 128, 128), 0),
        ((1, 32, 40), 0),
    ],
)
def test_the_smallest_that_contains_the_size_is_chosen(sizes, expected):
    named = dict(zip(("batch", "height", "width"), sizes, strict=True))
    assert profiles.choose([WIDE, NARROW, TALL], named) == expected


def test_the_first_of_equals_is_chosen():
    assert profiles.choose([NARROW, NARROW], {"batch": 2, "height": 64, "width": 64}) == 0


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((1, 136, 64), r"height must be 32..128 in steps of 8, got 136.*--height 256:512:1088$"),
        ((9, 24, 64), r"batch must be 1..8, got 9.*--batch 1:1:9 --height 192:512:1024$"),
        ((1, 60, 64), r"height must be 32..128 in steps of 8, got 60.*--height 256:512:1024$"),
    ],
)
def test_a_size_in_none_names_the_nearest_and_what_would_do(sizes, message):
    named = dict(zip(("batch", "height", "width"), sizes, strict=True))
    with pytest.raises(Incompatible, match=message) as caught:
        profiles.choose([NARROW, WIDE], named)
    assert "[0] batch 2, height 64, width 64; [1] batch 1..8" in str(caught.value)
    assert "Nearest is [1]" in str(caught.value)


def test_sizes_must_name_every_axis():
    with pytest.raises(ValueError, match="'height' is missing"):
        profiles.choose([WIDE], {"batch": 1, "width": 64})
    with pytest.raises(Incompatible, match="got none"):
        profiles.choose([], {"batch": 1})


@st.composite
def ranges(draw):
    step = draw(st.sampled_from([1, 2, 8]))
    low, opt, high = sorted(draw(st.tuples(*[st.integers(1, 40)] * 3)))
    return Range(min=low * step, opt=opt * step, max=high * step, multiple=step)


AXES = ("batch", "height", "width")
PROFILES = st.lists(st.fixed_dictionaries({a: ranges() for a in AXES}), min_size=1, max_size=6)
SIZES = st.fixed_dictionaries({axis: st.integers(1, 330) for axis in AXES})


@given(PROFILES, SIZES, st.booleans(), st.data())
def test_no_smaller_profile_would_have_done(options, sizes, inside, data):
    if inside:  # a size that some profile has
        of = data.draw(st.sampled_from(options))
        sizes = {
            name: axis.multiple
            * data.draw(st.integers(axis.min // axis.multiple, axis.max // axis.multiple))
            for name, axis in of.items()
        }
    fits = [
        math.prod(axis.max for axis in profile.values())
        for profile in options
        if all(sizes[n] in range(a.min, a.max + 1, a.multiple) for n, a in profile.items())
    ]
    if fits:
        chosen = options[profiles.choose(options, sizes)]
        assert profiles.contains(chosen, sizes)
        assert profiles.volume(chosen) == min(fits)
    else:
        with pytest.raises(Incompatible) as caught:
            profiles.choose(options, sizes, pixels=1)
        # The advice is true: with the ranges that it names, the nearest profile has the size.
        text = str(caught.value)
        nearest = int(text.split("Nearest is [")[1].split("]")[0])
        words = text.split("export again with ")[1].split()
        advice = dict(zip([w[2:] for w in words[::2]], words[1::2], strict=True))
        for name, axis in options[nearest].items():
            low, _, high = map(int, advice.get(name, f"{axis.min}:0:{axis.max}").split(":"))
            rounded = -(-sizes[name] // axis.multiple) * axis.multiple
            assert low <= rounded <= high
            assert name not in advice or not profiles.contains({name: axis}, sizes)
