"""A bundle from elsewhere: whatever is wrong with it is one clean EngineError, before any runtime.

No test here may reach onnxruntime, unpickle, or change a file: the fixture `watched` looks.
"""

import json
import os
import pickle
import re
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest

from fastdiff.engine import bundle, graphs, manifest
from fastdiff.engine.errors import Corrupt, EngineError, Incompatible, Untrusted
from tests import tiny_bundle

PLAN = b"not a plan"


def state(folder):
    return {
        path.name: (os.lstat(path).st_mtime_ns, path.is_file() and path.stat().st_size)
        for path in folder.iterdir()
    }


def reached(*_, **__):
    raise AssertionError("what is not verified was executed")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return tiny_bundle.write(tmp_path_factory.mktemp("bundle") / "good", plan=PLAN)


@pytest.fixture
def watched(tmp_path, good, monkeypatch):
    """A copy to spoil; runtimes and pickle are out of reach."""
    monkeypatch.setattr(onnxruntime, "InferenceSession", reached)
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, reached)
    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", reached)
    return shutil.copytree(good, tmp_path / "bundle")


def refuse(folder, error, what):
    """open raises that, in one short line, and leaves the folder as it was."""
    before = state(folder)
    with pytest.raises(error, match=what) as caught:
        bundle.open(folder)
    said = str(caught.value)
    assert said.isprintable()
    assert len(said) < 1000
    assert state(folder) == before


@pytest.fixture
def unparsed(monkeypatch):
    """Graphs are not looked at: hashes come first."""
    monkeypatch.setattr(graphs, "check", reached)


@pytest.fixture
def unread(monkeypatch, unparsed):
    """Nothing is hashed: links, names and lengths come first."""
    monkeypatch.setattr(bundle, "_digest", reached)


def test_a_good_bundle_opens(watched):
    found = bundle.open(watched)
    assert found.path == watched
    assert found.file("unet.onnx.data") == watched / "unet.onnx.data"
    assert found.graph("unet").name == "unet.onnx"
    assert bundle.open(str(watched)).manifest == found.manifest


def link(path):
    path.rename(path.parents[1] / "elsewhere")
    path.symlink_to("../elsewhere")


def dangling(path):
    path.unlink()
    path.symlink_to("nowhere")


def device(path):
    path.unlink()
    path.symlink_to("/dev/zero")


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def folder(path):
    path.unlink()
    path.mkdir()


NAMES = ("unet.onnx", "unet.onnx.data", "unet.plan", "manifest.json")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spoil", [link, dangling, device, pipe, folder])
def test_a_file_that_is_not_a_plain_file(watched, unread, spoil, name):
    spoil(watched / name)
    refuse(watched, Untrusted, f"'{name}' in the bundle must be a plain file")


@pytest.mark.parametrize("name", ["extra.txt", "weights.bin", "x.pkl", ".hidden", "é\n\x1b[2J"])
def test_a_file_that_the_manifest_does_not_name(watched, unread, name):
    (watched / name).write_bytes(b"x")
    refuse(watched, Untrusted, "manifest does not name it")


def test_an_extra_link_or_folder(watched, unread):
    (watched / "x").symlink_to("unet.onnx")
    refuse(watched, Untrusted, "got a link.*cp -rL")
    (watched / "x").unlink()
    (watched / "x").mkdir()
    refuse(watched, Untrusted, "got a folder")


def test_very_many_files(watched, unread, monkeypatch):
    monkeypatch.setattr(bundle, "MOST_FILES", 4)
    (watched / "x").write_bytes(b"")
    refuse(watched, Untrusted, "at most 4 files")


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_is_missing(watched, unread, name):
    (watched / name).unlink()
    refuse(watched, Corrupt, name.replace(".", r"\."))


@pytest.mark.parametrize("name", NAMES[:3])
@pytest.mark.parametrize("length", ["0", "half", "1 less", "1 more", "1 TB"])
def test_a_file_of_another_length(watched, unread, name, length):
    whole = (watched / name).stat().st_size
    sizes = {"0": 0, "half": whole // 2, "1 less": whole - 1, "1 more": whole + 1, "1 TB": 10**12}
    os.truncate(watched / name, sizes[length])  # a hole: it takes no room
    refuse(watched, Corrupt, rf"{name} must have {whole} bytes; got {sizes[length]}")


def test_a_manifest_that_is_a_tera_byte(watched, unread):
    os.truncate(watched / "manifest.json", 10**12)
    refuse(watched, Corrupt, "at most 4194304 bytes")


@pytest.mark.parametrize("name", NAMES[:3])
def test_a_bit_of_a_file(watched, unparsed, name):
    """The SHA-256 is checked before the graph is parsed."""
    content = bytearray((watched / name).read_bytes())
    content[len(content) // 2] ^= 1
    (watched / name).write_bytes(content)
    refuse(watched, Corrupt, f"{name} must have the SHA-256")


def test_files_that_are_swapped(watched, unparsed):
    for first, second in (("unet.onnx", "unet.onnx.data"), ("unet.onnx", "unet.plan")):
        (watched / first).rename(watched / "x")
        (watched / second).rename(watched / first)
        (watched / "x").rename(watched / second)
        refuse(watched, Corrupt, "must have")


def test_swapped_with_a_manifest_that_fits(watched):
    """Weights in the place of the graph, all hashes right: the protobuf is read with care."""
    graph, data = ((watched / name).read_bytes() for name in NAMES[:2])
    tiny_bundle.rewrite(watched, "unet.onnx", data)
    tiny_bundle.rewrite(watched, "unet.onnx.data", graph)
    refuse(watched, EngineError, r"^unet\.onnx")


def test_weights_cut_with_a_manifest_that_fits(watched):
    tiny_bundle.rewrite(watched, "unet.onnx.data", b"short")
    refuse(watched, Corrupt, r"must end within unet\.onnx\.data, 5 bytes")


@pytest.mark.parametrize("location", ["/etc/passwd", "../secret", "manifest.json", "unet.plan"])
def test_weights_elsewhere_with_a_manifest_that_fits(watched, location):
    made = onnx.load(watched / "unet.onnx", load_external_data=False)
    made.graph.initializer[0].external_data[0].value = location
    tiny_bundle.rewrite(watched, "unet.onnx", made.SerializeToString())
    refuse(watched, Untrusted, "must lie in the file that the manifest names, unet.onnx.data")


def test_ports_that_are_not_those_of_the_manifest(watched):
    made = onnx.load(watched / "unet.onnx", load_external_data=False)
    made.graph.input[0].name = made.graph.node[0].input[0] = "latent"
    tiny_bundle.rewrite(watched, "unet.onnx", made.SerializeToString())
    refuse(watched, Corrupt, r"inputs of unet\.onnx must be as in the manifest")


def test_an_operator_of_elsewhere(watched):
    made = onnx.load(watched / "unet.onnx", load_external_data=False)
    made.graph.node[-1].domain = "com.microsoft"
    made.opset_import.add(domain="com.microsoft", version=1)
    tiny_bundle.rewrite(watched, "unet.onnx", made.SerializeToString())
    refuse(watched, Untrusted, "operator of ONNX itself")


def outcome(folder):
    """The class of the error, None for a bundle that opens; anything else fails the test."""
    try:
        bundle.open(folder)
    except EngineError as error:
        assert str(error).isprintable()  # noqa: PT017
        assert len(str(error)) < 1000  # noqa: PT017
        return type(error)
    return None


def flips(content, count, seed):
    for at in np.random.default_rng(seed).integers(0, len(content) * 8, count).tolist():
        changed = bytearray(content)
        changed[at // 8] ^= 1 << at % 8
        yield bytes(changed)


def test_bits_of_the_graph_with_hashes_that_fit(watched):
    """200 places: the graph is refused, or what it says is permitted (a bit of a name, say)."""
    content = (watched / "unet.onnx").read_bytes()
    found = []
    for changed in flips(content, 200, 1):
        tiny_bundle.rewrite(watched, "unet.onnx", changed)
        found.append(outcome(watched))
    assert {Untrusted, Corrupt} <= set(found)
    assert EngineError not in found
    assert found.count(None) < 100


def test_cuts_of_the_graph_with_hashes_that_fit(watched):
    content = (watched / "unet.onnx").read_bytes()
    for end in range(0, len(content), len(content) // 60):
        tiny_bundle.rewrite(watched, "unet.onnx", content[:end])
        assert outcome(watched) in (Untrusted, Corrupt, Incompatible)


def test_bits_and_cuts_of_the_manifest(watched):
    """What changes a length, a hash or a port is found; words may change."""
    content = (watched / "manifest.json").read_bytes()
    found = []
    for changed in flips(content, 200, 2):
        (watched / "manifest.json").write_bytes(changed)
        found.append(outcome(watched))
    assert found.count(None) < 100
    assert Corrupt in found
    for end in range(0, len(content) - 2, len(content) // 60):
        (watched / "manifest.json").write_bytes(content[:end])
        assert outcome(watched) is Corrupt


@pytest.mark.parametrize("key", ["sha256", "bytes"])
def test_the_manifest_of_another_bundle(watched, unparsed, key):
    path = watched / "manifest.json"
    found = json.loads(path.read_text())
    found["files"]["unet.onnx"][key] = found["files"]["unet.onnx.data"][key]
    path.write_text(json.dumps(found))
    refuse(watched, Corrupt, r"unet\.onnx must have")


def test_a_folder_that_is_none(watched, tmp_path):
    (tmp_path / "link").symlink_to(watched)
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for name, what in (
        ("link", "not a link to it"),
        ("file", "must be the folder of a bundle"),
        ("gone", "must be the folder of a bundle"),
        ("empty", "has no manifest.json"),
        ("nul\0", "must be the folder of a bundle"),
    ):
        with pytest.raises(Corrupt, match=what):
            bundle.open(tmp_path / name)
    (tmp_path / "above").symlink_to(tmp_path)  # a link on the way is the reader's own
    bundle.open(tmp_path / "above" / "bundle")


def test_a_file_that_is_changed_afterwards(watched):
    found = bundle.open(watched)
    path, content = watched / "unet.onnx", (watched / "unet.onnx").read_bytes()
    path.write_bytes(content[:-1] + b"x")
    with pytest.raises(Corrupt, match="was changed since"):
        found.file("unet.onnx")
    found = bundle_of(watched, content)
    path.unlink()
    path.write_bytes(content)  # the same bytes, another file
    with pytest.raises(Corrupt, match="was changed since"):
        found.graph("unet")
    found = bundle_of(watched, content)
    link(watched / "unet.onnx.data")
    with pytest.raises(Corrupt, match="was changed since"):
        found.graph("unet")
    (watched / "unet.onnx.data").unlink()
    with pytest.raises(Corrupt, match="must be there"):
        found.graph("unet")


def bundle_of(folder, content):
    tiny_bundle.rewrite(folder, "unet.onnx", content)
    return bundle.open(folder)


def test_a_file_that_becomes_a_pipe_while_it_is_read(watched, monkeypatch):
    """It is opened without waiting and without following, then looked at."""
    lengths = bundle._lengths
    assert bundle._READ & os.O_NONBLOCK  # or it would wait for a writer for ever

    def then_swapped(handle):
        found = lengths(handle)
        pipe(watched / "unet.onnx")
        return found

    monkeypatch.setattr(bundle, "_lengths", then_swapped)
    with pytest.raises(Corrupt, match="was changed while"):
        bundle.open(watched)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_becomes_a_link_while_it_is_read(watched, monkeypatch, name):
    lengths = bundle._lengths

    def then_swapped(handle):
        found = lengths(handle)
        link(watched / name)
        return found

    monkeypatch.setattr(bundle, "_lengths", then_swapped)
    with pytest.raises(Corrupt, match=f"symbolic links: {name}"):
        bundle.open(watched)


def test_a_plan_needs_trust(watched):
    found = bundle.open(watched)
    (engine,) = found.manifest.engines
    for call in (
        lambda: found.plan(engine),
        lambda: found.plan(engine, trust_engine=False),
        lambda: found.file("unet.plan") and found.plan(engine),
    ):
        with pytest.raises(Untrusted, match=r"machine code.*trust_engine=True; otherwise build"):
            call()
    assert found.plan(engine, trust_engine=True).read_bytes() == PLAN


def test_names_that_the_bundle_does_not_have(watched):
    found = bundle.open(watched)
    for name in ("x", "../good/unet.onnx", "/etc/passwd", "manifest.json", ""):
        with pytest.raises(Corrupt, match="must have the file"):
            found.file(name)
    with pytest.raises(Incompatible, match=r"must have the graph 'vae_decoder'.* has unet"):
        found.graph("vae_decoder")


def test_a_folder_that_cannot_be_read(watched, monkeypatch):
    """Root may read everything, so the system's answer is put in its place."""

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied", "unet.onnx")

    monkeypatch.setattr(bundle, "_digest", denied)
    with pytest.raises(Corrupt, match=r"must be readable; Permission denied: unet\.onnx"):
        bundle.open(watched)


def test_the_engine_never_unpickles():
    """No module of it names what would."""
    sources = [path.read_text() for path in graphs.Path(graphs.__file__).parent.glob("*.py")]
    assert len(sources) > 5
    calls = (r"torch\.load", r"(?<!def )(?<!\.)\beval\(", r"\bexec\(", "allow_pickle")
    for word in (r"\bpickle\b", r"\bjoblib\b", r"\bmarshal\b", *calls):
        assert not [source for source in sources if re.search(word, source)], word
    assert manifest.NAME == "manifest.json"
