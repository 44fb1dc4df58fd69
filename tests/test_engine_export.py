"""fastdiff.export: what is in a bundle of the built-in model, what is refused."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from diffusers import UNet2DConditionModel
from typer.testing import CliRunner

import fastdiff
from fastdiff.accelerate.swap import is_swapped
from fastdiff.cli import UserError, model
from fastdiff.cli.commands import app
from fastdiff.engine import bundle as bundles
from fastdiff.engine import parts
from fastdiff.engine.errors import EngineError
from tests import tiny_pipelines


@pytest.fixture(scope="module")
def pipe():
    return model.load(model.built_in(), "cpu")


@pytest.fixture
def traced(exported, monkeypatch):
    """Exports of the built-in model take their graphs from disk; the rest is as it is."""
    monkeypatch.setattr(
        "fastdiff.engine.export.convert", lambda n: onnx.load(exported / f"{n.name}.onnx")
    )


def export(*arguments):
    result = CliRunner().invoke(app, ["export", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_the_manifest_says_what_is_there(exported):
    bundle = bundles.open(exported / "bundle")
    found = bundle.manifest
    assert (found.dtype, found.target.name, found.model.vae_scale) == ("fp32", "onnxruntime", 4)
    assert set(found.graphs) == {"unet", "step", "vae_decoder", "vae_encoder", "text_encoder"}
    assert [p.name for p in found.graphs["unet"].inputs] == [
        *("sample", "timestep", "encoder_hidden_states"),
    ]
    assert found.graphs["unet"].inputs[0].shape == ["batch", 4, "height", "width"]
    assert found.graphs["vae_decoder"].outputs[0].shape == ["batch", 3, "4*height", "4*width"]
    assert found.graphs["step"].data == found.graphs["unet"].data == "unet.onnx.data"
    (profile,) = found.profiles
    assert {n: (r.min, r.opt, r.max, r.multiple) for n, r in profile.items()} == {
        "batch": (1, 2, 3, 1),
        "height": (8, 16, 32, 4),
        "width": (8, 16, 32, 4),
        "tokens": (1, 16, 48, 1),
    }
    assert found.model.prediction_type == "v_prediction"
    assert set(found.samplers) == {"dpmpp_2m-8", "unipc_2-5", "euler_a-6"}
    table = fastdiff.Plan.load(bundle.file(found.samplers["unipc_2-5"]))
    assert (table.steps, table.rows[0, 0, 0]) == (5, 3.0)  # guidance is column 0


def test_no_file_of_it_tells_where_it_was_made(exported):
    root = Path(fastdiff.__file__).parents[1]
    for path in (exported / "bundle").iterdir():
        content = path.read_bytes()
        assert b"site-packages" not in content, path.name
        assert str(root).encode() not in content, path.name


def test_group_norms_are_whole_for_tensorrt_and_written_out_for_onnxruntime(exported):
    def operators(path):
        return [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]

    whole, written = operators(exported / "unet.onnx"), operators(exported / "bundle/unet.onnx")
    assert whole.count("GroupNormalization") == written.count("InstanceNormalization") == 30
    assert "GroupNormalization" not in written
    assert "InstanceNormalization" not in whole


def test_the_golden_answer_is_the_engines(exported):
    from safetensors.torch import load_file

    with fastdiff.load_engine(exported / "bundle") as engine:
        golden = load_file(engine.bundle.file(engine.manifest.golden))
        want = golden.pop("out_sample")
        got = engine(**golden).sample
    # both are within two of float32's rounding errors of the U-Net, 5e-7 (measured at export)
    assert (got - want).square().mean().sqrt() < 2e-6 * want.square().mean().sqrt()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"target": "openvino"}, ValueError, "target must be one of .*'openvino'"),
        ({"dtype": "bf16"}, ValueError, "dtype must be one of .*fp32.*; got 'bf16'"),
        ({"dtype": "int8"}, ValueError, "dtype must be one of"),
        ({"height": "60:64:128"}, ValueError, "height.* multiples of 16; got '60:64:128'"),
        ({"height": (128, 64, 32)}, ValueError, "min <= opt <= max"),
        ({"width": (64, 128)}, ValueError, r"width must be a number, \(min, opt, max\)"),
        ({"batch": 0}, ValueError, "batch"),
        ({"samplers": ("dpmpp_2m",)}, ValueError, "samplers must be like 'dpmpp_2m:20'"),
        ({"samplers": ("dpmpp_9m:20",)}, ValueError, "samplers must be"),
        ({"verify": "none"}, ValueError, "verify must be one of"),
        ({"refittable": True}, ValueError, "refittable goes with TensorRT"),
        (
            {"target": "tensorrt", "memory_limit": -1},
            ValueError,
            "memory_limit must be a number of bytes above 0.*got -1",
        ),
        (
            {"target": "tensorrt", "capabilities": ("12.0",)},
            ValueError,
            "capabilities goes with tensorrt-rtx",
        ),
        (
            {"target": "tensorrt", "memory_limit": 1 << 50},
            ValueError,
            r"memory_limit must be a number of bytes .*at most 2\*\*44 .*got 1125899906842624$",
        ),
        (
            {"target": "tensorrt", "memory_limit": True},
            ValueError,
            "memory_limit must be .*got True$",
        ),
        (
            {"target": "tensorrt", "refittable": "yes"},
            ValueError,
            "^refittable must be True or False; got 'yes'$",
        ),
        (
            {"target": "tensorrt-rtx", "capabilities": ("9.0",), "plans": False},
            ValueError,
            "^capabilities goes with plans that are built now",
        ),
        (
            {"target": "tensorrt-rtx", "capabilities": "12.0"},
            TypeError,
            r"^capabilities must be a tuple like \('12.0',\); got '12.0'",
        ),
        ({"guidance": float("nan")}, ValueError, "guidance must be a finite number.*got nan"),
        ({"guidance": float("inf"), "samplers": ()}, ValueError, "guidance must be a finite"),
        ({"guidance": 10**400}, ValueError, "guidance must be a finite number"),
        ({"guidance": [3]}, TypeError, r"guidance must be a number, like 7.5; got \[3\]"),
        ({"samplers": 5}, TypeError, "samplers must be a list .*; got 5"),
        ({"samplers": iter(["ddim:5"])}, TypeError, "samplers must be a list"),
        ({"speed": 2}, TypeError, "unexpected keyword argument 'speed'"),
    ],
)
def test_bad_arguments_are_named_before_the_work(pipe, tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        fastdiff.export(pipe, tmp_path / "bundle", **arguments)
    assert not list(tmp_path.iterdir())


def test_what_is_no_unet_is_refused(pipe, tmp_path):
    with pytest.raises(TypeError, match=r"must have a network of UNet2DCond.*; got AutoencoderKL"):
        fastdiff.export(pipe.vae, tmp_path / "b")
    with pytest.raises(TypeError, match=r"must be a diffusers pipeline with a U-Net.*got str"):
        fastdiff.export("model", tmp_path / "b")
    with pytest.raises(TypeError, match="out must be the path of a folder; got None"):
        fastdiff.export(pipe, None)
    with pytest.raises(ValueError, match="vae must be False for a U-Net alone"):
        fastdiff.export(pipe.unet, tmp_path / "b", vae=True)
    with pytest.raises(ValueError, match="samplers must be empty for a network alone"):
        fastdiff.export(pipe.unet, tmp_path / "b", samplers=["ddim:5"])
    kandinsky = UNet2DConditionModel(
        **tiny_pipelines.UNET | {"encoder_hid_dim_type": "image_proj", "encoder_hid_dim": 8}
    )
    with pytest.raises(ValueError, match=r"encoder_hid_dim_type .* unload the IP-Adapter"):
        fastdiff.export(kandinsky, tmp_path / "b")


def test_a_graph_that_is_too_far_from_pytorch_is_not_written(exported, monkeypatch, tmp_path):
    def spoiled(network):
        graph = onnx.load(exported / f"{network.name}.onnx")
        weight = next(t for t in graph.graph.initializer if t.name.endswith("conv_in.weight"))
        value = onnx.numpy_helper.to_array(weight) * np.float32(1 + 1e-5)
        weight.CopyFrom(onnx.numpy_helper.from_array(value, weight.name))
        return graph

    monkeypatch.setattr("fastdiff.engine.export.convert", spoiled)
    pipe = model.load(model.built_in(), "cpu")
    with pytest.raises(EngineError, match=r"relative RMS error .* No bundle was written"):
        fastdiff.export(pipe, tmp_path / "bundle", verify="smallest")
    assert not list(tmp_path.iterdir())


def test_the_command_says_seconds_and_sizes(traced, tmp_path):
    out = tmp_path / "bundle"
    options = ["--verify", "smallest", "--batch", "1", "--sampler", "ddim:4", "--out", out]
    result = export("shapes", *options, "--with-step")
    said = result.stdout + result.stderr
    assert "unet: traced in" in said
    assert "relative RMS error" in said
    assert "step: checked in" in said
    assert "unet: :" not in said  # of the bar
    assert f"{out}: 6 files, 27." in said
    assert set(bundles.open(out).manifest.samplers) == {"ddim-4"}
    with pytest.raises(UserError, match="bundle"):
        export("shapes", *options)
    export("shapes", *options, "--replace")


def test_the_command_takes_the_folder_of_a_unet(traced, exported, tmp_path):
    folder = model.built_in() / "unet"
    export(folder, "--verify", "smallest", "--batch", "1", "--out", tmp_path / "bundle")
    found = bundles.open(tmp_path / "bundle").manifest
    own = bundles.open(exported / "bundle").manifest
    assert found.model.config_sha256 == own.model.config_sha256
    assert found.model.weights_sha256 == own.model.weights_sha256
    assert (found.model.scheduler, found.samplers) == (None, {})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "MODEL must be 'shapes', a diffusers folder"),
        ("{", "MODEL must hold a JSON object"),
        ('{"_class_name": "UNet1DModel"}', "MODEL must be a UNet2DConditionModel"),
    ],
)
def test_a_folder_of_something_else_is_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=message):
        export(tmp_path, "--out", tmp_path / "bundle")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--height", "60"], "--height must .*multiples of 16"),
        (["--sampler", "ddim"], "--sampler must be like"),
        (["--dtype", "bf16"], "--dtype must be one of fp32, fp16; got 'bf16'"),
        (["--height", "64,96", "--width", "64,96,128"], "--height and --width must have one range"),
        (["--target", "tensorrt", "--memory-limit", 0], "--memory-limit must be .*above 0.*got 0"),
        (
            ["--target", "tensorrt-rtx", "--capability", "9.0", "--no-plans"],
            "--capability goes with plans that are built now",
        ),
        (
            ["--target", "tensorrt-rtx", "--capability", "banana"],
            "--capability must be compute capabilities like 12.0; got .'banana'",
        ),
        (["--guidance", "nan"], "--guidance must be a finite number"),
    ],
)
def test_the_command_names_its_options(tmp_path, options, message):
    with pytest.raises(UserError, match=f"^{message}"):
        export("shapes", *options, "--out", tmp_path / "bundle")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sampler", "ddim:5"], r"--sampler must not be given for .*pipeline, or leave it out$"),
        (["--with-vae"], "--with-vae must not be given for a U-Net alone"),
        (["--guidance", "nan"], "--guidance must be a finite number"),
    ],
)
def test_what_a_unet_alone_has_not(pipe, tmp_path, monkeypatch, options, message):
    pipe.unet.save_config(tmp_path / "unet")
    monkeypatch.setattr("fastdiff.cli.export._loaded", lambda *_: pipe.unet)
    with pytest.raises(UserError, match=f"^{message}"):
        export(tmp_path / "unet", *options, "--out", tmp_path / "bundle")


@pytest.mark.parametrize(
    ("python", "words"),
    [
        ("step must be False for a U-Net that", "--with-step must not be given for a U-Net that"),
        ("controlnet must be False for a Flux", "--controlnet must not be given for a Flux"),
    ],
)
def test_what_is_said_of_other_networks(tmp_path, monkeypatch, python, words):
    def refused(*_, **__):
        raise ValueError(python)

    monkeypatch.setattr(fastdiff, "export", refused)
    with pytest.raises(UserError, match=words):
        export("shapes", "--out", tmp_path / "bundle")


def test_a_bundle_that_is_there_is_replaced_by_an_option(exported):
    with pytest.raises(UserError, match=r"replace it \(--replace\)"):
        export("shapes", "--out", exported / "bundle")


def test_an_accelerated_unet_is_exported_as_diffusers_has_it(tmp_path):
    """Our own ops have no ONNX form; the caller's network stays as fast as it was."""
    unet = fastdiff.accelerate(tiny_pipelines.sd15())
    found = parts.of(unet).network
    assert found is not unet
    assert not any(is_swapped(part) for part in found.modules())
    assert is_swapped(unet.mid_block.resnets[0])
    assert parts.of(torch.compile(tiny_pipelines.sd15())).kind == "UNet2DConditionModel"
    pipe = fastdiff.accelerate(tiny_pipelines.pipeline("sd15"))
    options = {"controlnet": False, "vae": True, "text_encoder": False}
    for network in parts.of_parts(parts.of(pipe), torch.float32, **options):
        assert not any(is_swapped(part) for part in network.module.modules()), network.name


def test_weights_lie_beside_a_graph_that_is_too_large(traced, tmp_path, monkeypatch):
    """A protobuf ends at 2^31 bytes; here at a thousand."""
    from fastdiff.engine import weight_map

    monkeypatch.setattr("fastdiff.engine.export.MOST_INSIDE", 1000)
    pipe = model.load(model.built_in(), "cpu")
    bundle = fastdiff.export(pipe, tmp_path / "b", verify="smallest", batch=1, samplers=())
    graph = bundle.manifest.graphs["unet"]
    assert graph.data == "unet.onnx.data"
    whole = onnx.load(bundle.graph("unet"))
    held = sum(w.numel() * w.element_size() for w in pipe.unet.parameters())
    # as many bytes as parameters, or a few more: some are there transposed, too
    assert held <= weight_map.size(whole) < 1.2 * held
    assert weight_map.size(onnx.load(bundle.graph("unet"), load_external_data=False)) < held / 100
