"""manifest.json: every text that is not a good manifest is one clean EngineError of one line."""

import copy
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastdiff.engine import manifest
from fastdiff.engine.errors import Corrupt, EngineError, Incompatible
from tests import tiny_bundle

VALID = {
    "schema": 1,
    **tiny_bundle.fields("unet.onnx.data"),
    "engines": [{"file": "unet.plan", "graph": "unet", "profile": 0}],
    "samplers": {"ddim": "ddim.json"},
    "golden": "golden.safetensors",
    "files": {
        name: {"bytes": 3, "sha256": "a" * 64}
        for name in (
            *("unet.onnx", "unet.onnx.data", "unet.plan"),
            *("ddim.json", "golden.safetensors"),
        )
    },
}


def paths(value, path=()):
    """Every place in it."""
    yield path
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from paths(item, (*path, key))


PLACES = [path for path in paths(VALID) if path]


def changed(path, value, delete=False):
    found = copy.deepcopy(VALID)
    part = found
    for step in path[:-1]:
        part = part[step]
    if delete:
        del part[path[-1]]
    else:
        part[path[-1]] = value
    return found


def parse(value):
    return manifest.parse(value if isinstance(value, bytes) else json.dumps(value).encode())


def refused(value):
    """The text of the one error, or None for a good manifest; anything else fails the test."""
    try:
        found = parse(value)
    except (Corrupt, Incompatible) as error:
        assert str(error).isprintable(), repr(str(error))  # noqa: PT017
        assert len(str(error)) < 1000  # noqa: PT017
        chained = error.__context__ is not None and not error.__suppress_context__
        assert not chained and error.__cause__ is None  # noqa: PT017, PT018
        return str(error)
    assert manifest.parse(found.text().encode()) == found
    return None


def test_the_valid_one_is_valid():
    assert refused(VALID) is None
    assert parse(VALID).graphs["unet"].data == "unet.onnx.data"


HUGE = "@huge@"  # stands for a number of more digits than Python's repr gives
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from([HUGE, "\x1b[2J\n", "../x", "/etc/passwd", "a" * 10_000, "\0", -0.0, 1.0]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=4,
)


@settings(max_examples=150)
@given(st.sampled_from(PLACES), JSON)
def test_one_field_is_something_else(path, value):
    refused(dump(changed(path, value)))


def dump(value):
    text = json.dumps(value).replace(json.dumps(HUGE), "1" + "0" * 5000)
    return text.encode("utf-8", "surrogatepass")


@settings(max_examples=100)
@given(st.sampled_from(PLACES), st.text(max_size=300))
@example(("model",), "\x1b]0;title\x07\n")
@example(("graphs", "unet"), "k" * 100_000)
def test_a_key_too_many(path, key):
    found = copy.deepcopy(VALID)
    part = found
    for step in path[:-1]:
        part = part[step]
    if isinstance(part, dict):
        part[key] = part[path[-1]]
    refused(json.dumps(found).encode())


@pytest.mark.parametrize("path", PLACES, ids=lambda path: ".".join(map(str, path)))
def test_a_field_is_missing_or_null(path):
    """What has a default may be missing; nothing that is there may be of another kind."""
    optional = {
        *("data", "engines", "samplers", "golden", "prediction_type"),
        *("in_channels", "center_input_sample"),  # of the model's config
    }
    gone = refused(changed(path, None, delete=True))
    within = [step for step in path if isinstance(step, str)]
    free = optional & set(within) or isinstance(path[-1], int) or path[0] == "profiles"
    assert gone is not None or free, path
    assert refused(changed(path, {"x": [1]})) is not None or "config" in path


@settings(max_examples=100)
@given(st.binary(max_size=200))
@example(b"")
@example(b"null")
@example(b"[" * 100_000)
@example(b'{"a":' * 100_000)
@example(b"\xff\xfe{}")
@example(b'{"schema": 1e400}')
@example(b'{"schema": "\\ud800"}')
@example(b'{"schema": ' + b"9" * 10_000 + b"}")
def test_bytes_that_are_no_manifest(text):
    assert refused(text) is not None


def test_it_is_cut_anywhere_or_a_bit_is_wrong():
    text = json.dumps(VALID).encode()
    assert all(refused(text[:end]) for end in range(0, len(text), 7))
    for at in range(0, len(text) * 8, 37):
        flipped = bytearray(text)
        flipped[at // 8] ^= 1 << at % 8
        refused(bytes(flipped))


def test_too_long():
    with pytest.raises(Corrupt, match="at most 4194304 bytes; got 4194305"):
        manifest.parse(b" " * ((4 << 20) + 1))


@pytest.mark.parametrize("schema", [0, 2, True, 1.0, "1", None, [1], 10**30])
def test_another_schema_is_not_called_corrupt(schema):
    with pytest.raises(Incompatible, match=r"schema 1, which this fastdiff reads.*Export"):
        parse(dump(changed(("schema",), schema)))


def test_the_schema_must_be_said():
    for found in (changed(("schema",), 0, delete=True), {**VALID, "schema_": 1}):
        with pytest.raises(Corrupt):
            parse(found)
    bare = changed(("schema",), 0, delete=True)
    with pytest.raises(Corrupt):
        parse({**bare, "schema_": 1})


BAD_NAMES = [
    *("", ".", "..", "../x", "a/b", "/x", "\\x", "a\\b", ".x", "-x", "x.", "a..b", "a b"),
    *("manifest.json", "MANIFEST.json", "x\n", "x\0", "é", "a" * 101, "con", "NUL.onnx", "com1.x"),
    *("C:x", "x:y", "~", "$HOME", "%TEMP%", "x*", "file:x", "\u202ex", "Ａ"),
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_is_not_plain(name):
    found = json.loads(json.dumps(VALID))
    found["files"][name] = found["files"].pop("unet.onnx")
    found["graphs"]["unet"]["file"] = name
    assert "wrong" in refused(found)


@pytest.mark.parametrize(
    ("found", "what"),
    [
        (changed(("graphs", "unet", "data"), "unet.onnx"), "files of their own"),
        (changed(("golden",), "gone.safetensors"), "'gone.safetensors' is not there"),
        (changed(("golden",), None), "'golden.safetensors' is not"),
        (changed(("engines", 0, "graph"), "vae"), "name a graph and a profile"),
        (changed(("engines", 0, "profile"), 1), "name a graph and a profile"),
        (changed(("profiles", 0, "batch", "min"), 3), "min <= opt <= max"),
        (changed(("profiles", 0, "batch", "multiple"), 2), "multiples of 2"),
        (changed(("model", "config", "x"), float("nan")), "finite"),
        (changed(("model", "config", "x"), [{"y": float("inf")}]), "finite"),
        (changed(("model", "config", "x"), 2**70), "64 bits"),
        (changed(("model", "scaling_factor"), float("inf")), "finite"),
        (changed(("fastdiff",), "1\n2"), "fastdiff is wrong"),
        (changed(("files", "unet.onnx", "bytes"), -1), "files.unet.onnx.bytes is wrong"),
        (changed(("files", "unet.onnx", "sha256"), "A" * 64), "files.unet.onnx.sha256 is wrong"),
        (changed(("files", "unet.onnx", "bytes"), True), "files.unet.onnx.bytes is wrong"),
    ],
)
def test_what_does_not_fit_is_said(found, what):
    assert what in refused(found)


def test_names_that_differ_in_case_only():
    found = changed(("golden",), "UNET.onnx")
    found["files"]["UNET.onnx"] = found["files"].pop("golden.safetensors")
    assert "upper and lower case" in refused(found)


def test_the_error_is_one_of_three():
    assert {Corrupt, Incompatible} <= set(EngineError.__subclasses__())
