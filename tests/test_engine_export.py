"""fastdiff.export, and the engine back in a pipeline, on the built-in model and a tiny SDXL."""

import json
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from diffusers import (
    StableDiffusionImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from typer.testing import CliRunner

import fastdiff
from fastdiff.cli import UserError, model
from fastdiff.cli.commands import app
from fastdiff.engine import bundle as bundles
from fastdiff.engine.errors import EngineError, Incompatible
from fastdiff.shapes.oracle import judge
from tests import tiny_pipelines
from tests.test_generate import PROMPT, generate, pixels

ONE_LEVEL = 1 / 255


@pytest.fixture(scope="module")
def pipe():
    return model.load(model.built_in(), "cpu")


@pytest.fixture(scope="module")
def engine(exported):
    with fastdiff.load_engine(exported / "bundle") as engine:
        yield engine


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


def difference(one, two):
    return np.abs(np.asarray(one, np.float64) - np.asarray(two, np.float64)).max()


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


def test_the_golden_answer_is_the_engines(exported, engine):
    from safetensors.torch import load_file

    golden = load_file(engine.bundle.file(engine.manifest.golden))
    want = golden.pop("out_sample")
    got = engine._runner.run(golden)["out_sample"]
    # both are within two of float32's rounding errors of the U-Net, 5e-7 (measured at export)
    assert (got - want).square().mean().sqrt() < 2e-6 * want.square().mean().sqrt()


@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 48), (32, 128)])
def test_a_pipeline_runs_unchanged(pipe, engine, height, width, no_gradients):
    """txt2img, then img2img from its picture: as with the U-Net in PyTorch."""
    options = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "np"}

    def pictures(unet):
        own = type(pipe)(**pipe.components | {"unet": unet})
        own.set_progress_bar_config(disable=True)
        seed = torch.Generator().manual_seed
        first = own(PROMPT, height=height, width=width, generator=seed(1), **options).images
        other = StableDiffusionImg2ImgPipeline(**own.components)
        other.set_progress_bar_config(disable=True)
        second = other(PROMPT, image=first, strength=0.5, generator=seed(2), **options).images
        return np.concatenate([first, second])

    stock, ours = pictures(pipe.unet), pictures(engine)
    assert stock.shape == (2, height, width, 3)
    assert difference(stock, ours) < ONE_LEVEL / 8


def test_an_accelerated_pipeline_takes_it(pipe, engine, no_gradients):
    own = type(pipe)(**pipe.components | {"unet": engine})
    own.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "np"}
    stock = own(PROMPT, generator=torch.Generator().manual_seed(1), **options).images
    fastdiff.accelerate(own)
    ours = own(PROMPT, generator=torch.Generator().manual_seed(1), **options).images
    assert "fused" in str(fastdiff.report(own))
    assert own.unet is engine
    assert difference(stock, ours) < ONE_LEVEL / 8


def test_sample_takes_it_with_times_of_each_sample(engine, no_gradients):
    plans = [fastdiff.plan("ddim", steps=n, prediction="v_prediction") for n in (3, 2)]
    noise, text = torch.randn(2, 4, 16, 16), torch.randn(2, 16, 128)
    both = fastdiff.sample(lambda x, t: engine(x, t, text).sample, noise, fastdiff.batch(plans))
    for i, plan in enumerate(plans):
        alone = fastdiff.sample(
            lambda x, t, i=i: engine(x, t, text[i : i + 1]).sample, noise[i : i + 1], plan
        )
        assert difference(both[i], alone[0]) < 1e-4  # of values to 4: 1e-5 of a network in float32


def test_generate_takes_it(exported, tmp_path):
    options = ["--steps", 8, "--seed", 5, "--sampler", "dpmpp_2m"]
    generate(PROMPT, *options, "--out", tmp_path / "stock")
    result = generate(PROMPT, *options, "--engine", exported / "bundle", "--out", tmp_path / "ours")
    assert "warning" not in result.stderr
    stock, ours = (pixels(tmp_path / name / "0-5.png") for name in ("stock", "ours"))
    assert difference(stock, ours) <= 1
    assert judge(torch.from_numpy(ours / 255).permute(2, 0, 1), prompts_for([PROMPT])[0])
    record = tmp_path / "ours/generate.json"
    assert json.loads(record.read_text())["request"]["engine"] == str(exported / "bundle")
    generate("--repeat", record, "--out", tmp_path / "again")
    assert difference(ours, pixels(tmp_path / "again/0-5.png")) == 0


def test_generate_refuses_a_bundle_of_another_model(exported, tiny, tmp_path):
    with pytest.raises(UserError, match="--engine must be of a U-Net with the config of --model"):
        generate(PROMPT, "--model", tiny, "--engine", exported / "bundle", "--out", tmp_path / "o")
    with pytest.raises(UserError, match="--engine: .* must be the folder of a bundle"):
        generate(PROMPT, "--engine", tmp_path / "none", "--out", tmp_path / "o")
    with pytest.raises(UserError, match="--engine does not go with --few-step"):
        generate(PROMPT, "--few-step", 2, "--engine", exported / "bundle", "--out", tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_generate_warns_of_other_weights(exported, tmp_path):
    folder = tmp_path / "model"
    pipe = model.load(model.built_in(), "cpu")
    with torch.no_grad():
        pipe.unet.conv_out.bias += 0.01
    pipe.save_pretrained(folder)
    options = ["--engine", exported / "bundle", "--steps", 1, "--out", tmp_path / "o"]
    result = generate(PROMPT, "--model", folder, *options)
    assert "warning: the engine's weights are not those of the U-Net" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sample": torch.zeros(1, 4, 18, 16)}, "height that is a multiple of 4, .* got 18"),
        ({"sample": torch.zeros(1, 5, 16, 16)}, "sample must have the shape .*'batch', 4"),
        ({"sample": torch.zeros(1, 4, 16, 16).half()}, "sample must be float32 .* got float16"),
        ({"encoder_hidden_states": torch.zeros(2, 16, 128)}, "batch 1 as in the inputs before"),
        ({"encoder_hidden_states": None}, "encoder_hidden_states must be a tensor float32"),
        ({"attention_mask": torch.ones(1, 16)}, "attention_mask must be None"),
        ({"cross_attention_kwargs": {"scale": 0.5}}, "cross_attention_kwargs must be None"),
        ({"timestep_cond": torch.zeros(1, 8)}, "got timestep_cond, too"),
        ({"down_block_additional_residuals": (torch.zeros(1),)}, "controlnet=True"),
    ],
)
def test_what_it_does_not_take_is_named(engine, arguments, message):
    given = {
        "sample": torch.zeros(1, 4, 16, 16),
        "timestep": 5,
        "encoder_hidden_states": torch.zeros(1, 16, 128),
    }
    with pytest.raises(Incompatible, match=message):
        engine(**given | arguments)


def test_it_stays_where_it_was_loaded(engine):
    assert engine.to("cpu", torch.float32) is engine
    with pytest.raises(Incompatible, match=r"dtype must be torch.float32"):
        engine.to(torch.float16)
    with pytest.raises(Incompatible, match=r"device='cuda'"):
        engine.to("cuda")


def test_threads_run_side_by_side(engine):
    """Each gets its own answer: the buffers of a call are that call's."""
    text = torch.randn(1, 16, 128)
    xs = [torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(i)) for i in range(8)]
    want = [engine(x, 100 * i, text).sample for i, x in enumerate(xs)]
    got = [None] * len(xs)

    def call(i):
        for _ in range(3):
            got[i] = engine(xs[i], 100 * i, text).sample

    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(xs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(want, got, strict=True):
        assert torch.equal(one, other)


def test_reused_outputs_and_a_closed_engine(exported):
    x, text = torch.randn(1, 4, 8, 8), torch.randn(1, 16, 128)
    with fastdiff.load_engine(exported / "bundle", reuse_outputs=True, threads=1) as own:
        first = own(x, 1, text, return_dict=False)[0]
        kept = first.clone()
        second = own(x, 999, text).sample
        assert second.data_ptr() == first.data_ptr()
        assert not torch.equal(kept, second)
    with pytest.raises(EngineError, match="closed; load it again"):
        own(x, 1, text)


def test_devices_and_providers_that_are_not_here(exported):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(Incompatible, match=r"CUDAExecutionProvider; installed are .*CPU"):
        fastdiff.load_engine(exported / "bundle", "cuda")
    with pytest.raises(Incompatible, match="device must be cpu or cuda"):
        fastdiff.load_engine(exported / "bundle", "mps")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"target": "openvino"}, ValueError, "target must be one of .*'openvino'"),
        ({"dtype": "bf16"}, ValueError, "dtype must be fp32 or fp16 for onnxruntime"),
        ({"dtype": "int8"}, ValueError, "dtype must be one of"),
        ({"height": "60:64:128"}, ValueError, "height.* multiples of 16; got '60:64:128'"),
        ({"height": (128, 64, 32)}, ValueError, "min <= opt <= max"),
        ({"width": (64, 128)}, ValueError, r"width must be a number, \(min, opt, max\)"),
        ({"batch": 0}, ValueError, "batch"),
        ({"samplers": ("dpmpp_2m",)}, ValueError, "samplers must be like 'dpmpp_2m:20'"),
        ({"samplers": ("dpmpp_9m:20",)}, ValueError, "samplers must be"),
        ({"verify": "none"}, ValueError, "verify must be one of"),
        ({"refittable": True}, ValueError, "refittable goes with TensorRT"),
        ({"speed": 2}, TypeError, "unexpected keyword argument 'speed'"),
    ],
)
def test_bad_arguments_are_named_before_the_work(pipe, tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        fastdiff.export(pipe, tmp_path / "bundle", **arguments)
    assert not list(tmp_path.iterdir())


def test_what_is_no_unet_is_refused(pipe, tmp_path):
    with pytest.raises(TypeError, match="must be a UNet2DConditionModel; got AutoencoderKL"):
        fastdiff.export(pipe.vae, tmp_path / "b")
    with pytest.raises(TypeError, match="must be a diffusers pipeline with a U-Net.*got str"):
        fastdiff.export("model", tmp_path / "b")
    with pytest.raises(ValueError, match="vae must be False for a U-Net alone"):
        fastdiff.export(pipe.unet, tmp_path / "b", vae=True)
    with pytest.raises(ValueError, match="samplers must be empty for a U-Net alone"):
        fastdiff.export(pipe.unet, tmp_path / "b", samplers=["ddim:5"])
    kandinsky = UNet2DConditionModel(
        **tiny_pipelines.UNET | {"encoder_hid_dim_type": "image_proj", "encoder_hid_dim": 8}
    )
    with pytest.raises(ValueError, match="encoder_hid_dim_type .* unload the IP-Adapter"):
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
    result = export("shapes", *options)
    said = result.stdout + result.stderr
    assert "unet: traced in" in said
    assert "relative RMS error" in said
    assert f"{out}: 4 files, 27." in said
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
        (["--dtype", "bf16"], "--dtype must be fp32 or fp16"),
    ],
)
def test_the_command_names_its_options(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        export("shapes", *options, "--out", tmp_path / "bundle")


class TestSDXL:
    """Added conditions, residuals of a ControlNet and fp16, in one tiny network."""

    @pytest.fixture(scope="class")
    def unet(self):
        return tiny_pipelines.sdxl()

    @pytest.fixture(scope="class")
    def bundle(self, unet, tmp_path_factory):
        return fastdiff.export(
            unet,
            tmp_path_factory.mktemp("sdxl") / "bundle",
            dtype="fp16",
            controlnet=True,
            batch="1:2:3",
            tokens="1:7:14",
        )

    def test_ports(self, bundle):
        names = [port.name for port in bundle.manifest.graphs["unet"].inputs]
        assert names[3:5] == ["text_embeds", "time_ids"]
        assert names[-1] == "mid_block_additional_residual"
        assert bundle.manifest.graphs["unet"].inputs[0].dtype == "float16"

    def test_it_is_the_unet_with_a_controlnet(self, unet, bundle, no_gradients):
        generator = torch.Generator().manual_seed(3)

        def drawn(*shape):
            return torch.randn(*shape, generator=generator).half()

        given = {
            "sample": drawn(2, 4, 8, 12),
            "timestep": torch.tensor(321.5),
            "encoder_hidden_states": drawn(2, 5, tiny_pipelines.WIDTH),
            "added_cond_kwargs": {
                "text_embeds": drawn(2, tiny_pipelines.POOLED),
                "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2),
            },
        }
        sizes = {"batch": 2, "height": 8, "width": 12, "tokens": 5}
        from fastdiff.engine.networks import shape_of

        ports = bundle.manifest.graphs["unet"].inputs[5:]
        *down, mid = [drawn(*shape_of(port, sizes)) for port in ports]
        residuals = {
            "down_block_additional_residuals": tuple(down),
            "mid_block_additional_residual": mid,
        }
        want = unet.float()(**_wide(given), **{k: _wide(v) for k, v in residuals.items()}).sample
        with fastdiff.load_engine(bundle.path) as engine:
            got = engine(**given, **residuals).sample
            with pytest.raises(Incompatible, match="down_block_additional_residual_0 must be a"):
                engine(**given)
        # float16 keeps 11 bits: 5e-4 a rounding, and some ten of them one after the other
        assert got.dtype == torch.float16
        assert (got.float() - want).square().mean().sqrt() < 5e-3 * want.square().mean().sqrt()

    def test_pipelines_of_sdxl_find_what_they_ask_of_a_unet(self, bundle):
        with fastdiff.load_engine(bundle.path) as engine:
            assert engine.add_embedding.linear_1.in_features == 6 * 4 + tiny_pipelines.POOLED
            assert engine.config.addition_time_embed_dim == 4
            assert hasattr(StableDiffusionXLPipeline, "_get_add_time_ids")


def _wide(value):
    if isinstance(value, dict):
        return {name: _wide(one) for name, one in value.items()}
    if isinstance(value, tuple):
        return tuple(map(_wide, value))
    return value.float()
