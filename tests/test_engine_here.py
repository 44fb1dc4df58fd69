"""Whether a bundle can run here, by a table: what differs is said first, with what would do."""

import dataclasses

import pytest

from fastdiff.engine import bundle, here
from fastdiff.engine.errors import Incompatible
from fastdiff.engine.here import Here
from fastdiff.engine.manifest import Target
from tests import tiny_bundle

HERE = Here("11.4.0.106", "13.0", "595.71.05", "9.0", "linux", "x86_64")
TARGET = {
    "name": "tensorrt",
    "version": "11.4.0.106",
    "cuda": "13.0",
    "driver": "595.71.05",
    "compute_capability": "9.0",
    "os": "linux",
    "machine": "x86_64",
}
RTX = {"name": "tensorrt-rtx", "version": "1.7.1", "driver": None, "compute_capability": "8.6,8.9"}
RTX_HERE = {"version": "1.7.1", "compute_capability": "8.9"}
ORT = {"name": "onnxruntime", "version": "1.31.1", "os": "windows", "machine": "arm64"}

RUNS = [
    ({}, {}, 21),
    ({}, {"cuda": "13.2"}, 21),  # of the same major version
    ({}, {"driver": "600.0"}, 21),
    ({}, {"driver": "595.100.1"}, 21),  # newer: numbers, not text
    ({}, {"driver": None}, 21),  # not known outside Linux
    ({"cuda": None, "driver": None, "compute_capability": None}, {}, 21),
    (RTX, RTX_HERE, 21),
    ({**RTX, "compute_capability": "8.6, 8.9"}, RTX_HERE, 21),
    (ORT, {"version": "1.22.0", "compute_capability": None}, 21),  # any machine, any system
    (ORT, {"version": "1.31.1"}, 23),
    (ORT, {"version": "1.32.0"}, 23),
]
DOES_NOT = [
    ({}, {"version": None}, 21, r"not installed.*'fastdiff-engine\[tensorrt\]'"),
    (RTX, {"version": None}, 21, r"not installed.*'fastdiff-engine\[tensorrt-rtx\]'"),
    (ORT, {"version": None}, 21, r"not installed.*'fastdiff-engine\[onnx\]'"),
    ({}, {"version": "11.4.0.107"}, 21, r"11\.4\.0\.106 exactly; here is 11\.4\.0\.107\. Install"),
    ({}, {"version": "10.9.0"}, 21, "exactly.*ebuild.*--target onnxruntime"),
    ({}, {"os": "windows"}, 21, "no plan runs on another system.*Rebuild"),
    ({}, {"machine": "aarch64"}, 21, "here is linux on aarch64"),
    ({}, {"compute_capability": None}, 21, "need an NVIDIA GPU"),
    ({}, {"compute_capability": "8.0"}, 21, r"capability 9\.0; here is 8\.0"),
    ({}, {"compute_capability": "9.01"}, 21, "capability"),
    (RTX, {**RTX_HERE, "compute_capability": "9.0"}, 21, r"8\.6, 8\.9; here is 9\.0"),
    ({}, {"cuda": "12.9"}, 21, r"CUDA 13\.0, of another major version"),
    ({}, {"driver": "595.8.1"}, 21, "older.*Update the driver"),
    (ORT, {"version": "1.22.0"}, 23, "opset 23.*Install that version or a later one"),
    (ORT, {"version": "1.9.0"}, 23, "opset 23"),  # 9 < 31
]


@pytest.mark.parametrize(("target", "there", "opset"), RUNS)
def test_it_runs_here(target, there, opset):
    here.check(Target(**{**TARGET, **target}), dataclasses.replace(HERE, **there), opset)


@pytest.mark.parametrize(("target", "there", "opset", "what"), DOES_NOT)
def test_it_does_not_run_here(target, there, opset, what):
    with pytest.raises(Incompatible, match=what) as caught:
        here.check(Target(**{**TARGET, **target}), dataclasses.replace(HERE, **there), opset)
    assert "\n" not in str(caught.value)


def test_what_is_here():
    """onnxruntime's record needs no GPU and no torch."""
    from importlib.metadata import version

    found = here.look("onnxruntime")
    assert found.version == version("onnxruntime")
    assert (found.cuda, found.driver, found.compute_capability) == (None, None, None)
    assert found.os == found.os.lower() != ""


def test_a_target_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(here, "PACKAGES", {"onnxruntime": ("not-a-package",)})
    assert here.look("onnxruntime").version is None


@pytest.mark.parametrize(
    ("text", "driver"),
    [
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  595.71.05  Release Build\n"
            "GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n",
            "595.71.05",
        ),
        ("nothing of it", None),
    ],
)
def test_the_driver_is_read(monkeypatch, text, driver):
    monkeypatch.setattr(here.Path, "read_text", lambda *_, **__: text)
    assert here._driver() == driver


def test_a_bundle_is_asked(tmp_path):
    found = bundle.open(tiny_bundle.write(tmp_path / "out"))
    found.check_here()
    with pytest.raises(Incompatible, match="not installed"):
        found.check_here(dataclasses.replace(HERE, version=None))
