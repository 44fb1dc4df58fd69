"""An engine's face where it is used otherwise than meant: each is one clear error."""

import copy
import json
import pickle
import threading

import pytest
import torch

import fastdiff
from fastdiff.engine import parts
from fastdiff.engine.errors import Corrupt, EngineError, Incompatible
from tests import tiny_bundle, tiny_pipelines
from tests.test_generate import PROMPT, generate, pixels


@pytest.fixture
def small(tmp_path):
    """A bundle of a graph written by hand, at tmp_path/b."""
    tiny_bundle.write(tmp_path / "b")
    return tmp_path / "b"


@pytest.fixture
def engine(small):
    with fastdiff.load_engine(small) as engine:
        yield engine


def edited(folder, change):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize(
    "name", ["__class__", "get", "items", "setdefault", "__dict__", "_FrozenDict__frozen", "a b"]
)
def test_a_config_that_would_hide_a_method_is_corrupt(small, name):
    edited(small, lambda manifest: manifest["model"]["config"].update({name: 5}))
    with pytest.raises(Corrupt, match=r"model\.config must have names of a network's options"):
        fastdiff.load_engine(small)


@pytest.mark.parametrize(
    "change", [lambda p: p.pop("height"), lambda p: p.update(depth=p["width"])]
)
def test_profiles_of_other_axes_are_corrupt(small, change):
    edited(small, lambda manifest: change(manifest["profiles"][0]))
    with pytest.raises(Corrupt, match=r"profiles\[0\] must have the axes of unet, batch, height"):
        fastdiff.load_engine(small)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"threads": 0}, ValueError, "threads must be a number from 1 to 1024"),
        ({"threads": "2"}, ValueError, "from 1 to 1024, or None; got '2'"),
        ({"threads": True}, ValueError, "from 1 to 1024, or None; got True"),
        ({"threads": 2**40}, ValueError, "from 1 to 1024, or None; got 1099511627776"),
        ({"providers": 5}, TypeError, "providers must be a list of names, or None; got 5"),
        ({"providers": "CPUExecutionProvider"}, TypeError, "providers must be a list of names"),
        ({"device": "banana"}, ValueError, "device must be cpu, cuda, .* got 'banana'"),
        ({"device": None}, ValueError, "device must be cpu, cuda, .* got None"),
    ],
)
def test_options_are_named(small, options, error, message):
    with pytest.raises(error, match=message):
        fastdiff.load_engine(small, **options)


def test_what_is_no_bundle_is_said(tiny, tmp_path):
    with pytest.raises(TypeError, match="bundle must be the path of a folder; got None"):
        fastdiff.load_engine(None)
    with pytest.raises(Corrupt, match=r"must be a bundle; it has no manifest\.json"):
        fastdiff.load_engine(tiny)
    packed = tmp_path / "bundle.zip"
    packed.write_bytes(b"PK")
    with pytest.raises(Corrupt, match=r"must be the folder of a bundle; .*Unpack it first"):
        fastdiff.load_engine(packed)


def test_it_is_not_copied_or_pickled(engine):
    for how in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(EngineError, match=r"load it again: fastdiff\.load_engine\("):
            how(engine)


def test_what_it_has_not_says_what_would_do(engine):
    with pytest.raises(AttributeError, match="LoRAs are set with set_loras"):
        engine.load_lora_adapter({})
    with pytest.raises(AttributeError, match="has no 'mid_block', for it has no modules"):
        _ = engine.mid_block
    assert engine.eval() is engine
    assert engine.requires_grad_(False) is engine
    with pytest.raises(ValueError, match="an engine has no gradients"):
        engine.requires_grad_()
    assert "UNet2DConditionModel" in repr(engine)
    assert "onnxruntime, fp32, cpu" in repr(engine)


@pytest.mark.parametrize(
    ("loras", "error", "message"),
    [
        (["style.safetensors"], TypeError, r"loras must be a list of \(LoRA, strength\)"),
        ([("style.safetensors", "x")], TypeError, "the strength a finite number"),
        ([("style.safetensors", float("nan"))], TypeError, "the strength a finite number"),
        ([("none.safetensors", 1.0)], Incompatible, "files that can be read; 'none.safetensors'"),
        ([({}, 1.0)], Incompatible, "loras must change the unet; got {}"),
        ([(torch.nn.Linear(1, 1), 1.0)], Incompatible, "which has nothing for it"),
    ],
)
def test_loras_are_checked(engine, loras, error, message):
    with pytest.raises(error, match=message):
        engine.set_loras(loras)


def call(engine, **changes):
    given = {"sample": torch.zeros(2, tiny_bundle.CHANNELS, 4, 4), "timestep": 1}
    given["encoder_hidden_states"] = torch.zeros(2, 3, _width(engine))
    return engine(**given | changes)


def _width(engine):
    return engine.manifest.graphs["unet"].inputs[2].shape[2]


@pytest.mark.parametrize("timestep", [torch.zeros(3), None, "now"])
def test_times_are_one_or_one_each(engine, timestep):
    with pytest.raises(Incompatible, match="timestep must be"):
        call(engine, timestep=timestep)


def test_an_empty_batch_is_refused(engine):
    none = {"sample": torch.zeros(0, tiny_bundle.CHANNELS, 4, 4)}
    with pytest.raises(Incompatible, match=r"sample must be .*none of them empty; got \(0, 4"):
        call(engine, **none)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample": None}, "sample must be a tensor of 4 axes, .* got NoneType"),
        ({"sample": [1.0]}, "sample must be a tensor of 4 axes, .* got list"),
        ({"sample": torch.zeros(4)}, r"sample must be a tensor of 4 axes, .* got \(4,\)"),
        ({"sample": torch.zeros(2, 4, 0, 4)}, r"none of them empty; got \(2, 4, 0, 4\)"),
        (
            {"encoder_hidden_states": torch.zeros(2, 0, 8)},
            r"encoder_hidden_states must have no empty axis; got the shape \(2, 0, 8\)",
        ),
        (
            {"encoder_hidden_states": torch.zeros(2, 3, 8).to_sparse()},
            "encoder_hidden_states must be a dense tensor; got torch.sparse_coo",
        ),
        ({"added_cond_kwargs": [1]}, r"added_cond_kwargs must be a dict of tensors; got \[1\]"),
        ({"added_cond_kwargs": {"a": 1}}, "added_cond_kwargs must be a dict of tensors"),
        ({"down_block_additional_residuals": 5}, "must be a tuple of tensors; got int"),
    ],
)
def test_what_is_no_such_tensor_is_named(engine, changes, message):
    with pytest.raises(Incompatible, match=message):
        call(engine, **changes)


def test_conditions_without_an_input_are_refused(engine):
    with pytest.raises(Incompatible, match=r"added_cond_kwargs must have .* got 'image_embeds'"):
        call(engine, added_cond_kwargs={"image_embeds": torch.zeros(2, 8)})


def test_reused_outputs_are_of_a_thread(small):
    x = [torch.full((1, tiny_bundle.CHANNELS, 4, 4), float(i)) for i in range(2)]
    found, both = {}, threading.Barrier(2)
    with fastdiff.load_engine(small, reuse_outputs=True, threads=1) as engine:
        text = torch.zeros(1, 3, _width(engine))

        def run(i):
            first = engine(x[i], 1, text).sample
            both.wait()
            found[i] = first.data_ptr(), engine(x[i], 1, text).sample.data_ptr()

        threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found[0][0] == found[0][1] != found[1][0] == found[1][1]


def test_the_refiner_of_sdxl_has_the_states_that_sdxl_takes():
    """One encoder, the second, and the last but one of its states."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=99,
        hidden_size=16,
        intermediate_size=16,
        projection_dim=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=7,
    )
    found = parts.Parts(
        tiny_pipelines.sdxl(), encoders=(("text_encoder_2", CLIPTextModelWithProjection(config)),)
    )
    options = {"controlnet": False, "vae": False, "text_encoder": True}
    _, text = parts.of_parts(found, torch.float32, **options)
    ids = torch.arange(7)[None]
    states = found.encoders[0][1](ids, output_hidden_states=True)
    assert torch.equal(text.module(ids)[0], states.hidden_states[-2])
    assert torch.equal(text.module(ids)[1], states.text_embeds)


def test_a_scheduler_without_betas_has_no_tables():
    from diffusers import FlowMatchEulerDiscreteScheduler

    found = parts.Parts(tiny_pipelines.sd15(), scheduler=FlowMatchEulerDiscreteScheduler())
    assert not parts.has_tables(found)
    with pytest.raises(ValueError, match=r"samplers must be empty for FlowMatchEuler.* beta_sch"):
        parts.tables(found, ["ddim:4"], None)
    with pytest.raises(TypeError, match=r"samplers must be a list like \['dpmpp_2m:20'\]"):
        parts.tables(found, "ddim:4", None)


def test_repeat_warns_of_another_engine(exported, tmp_path):
    options = ["--engine", exported / "bundle", "--steps", 1]
    generate(PROMPT, *options, "--out", tmp_path / "one")
    record = tmp_path / "one/generate.json"
    assert "warning" not in generate("--repeat", record, "--out", tmp_path / "two").stderr
    body = json.loads(record.read_text())
    assert body["engine"]["target"] == "onnxruntime"
    body["engine"]["manifest"] = "0" * 64
    record.write_text(json.dumps(body))
    said = generate("--repeat", record, "--out", tmp_path / "three").stderr
    assert "warning: this engine is not the one of the run to repeat" in said
    one, three = (pixels(tmp_path / n / "0-0.png") for n in ("one", "three"))
    assert (one == three).all()


def test_generate_feeds_an_engine_its_dtype(tiny, tmp_path, monkeypatch):
    """float16, the default of TensorRT; here a U-Net in PyTorch stands for the engine."""
    seen = []

    def take(pipe, request):
        pipe.unet = pipe.unet.half()
        pipe.unet.register_forward_pre_hook(lambda _, given: seen.extend(given[:3]))
        return {}

    monkeypatch.setattr("fastdiff.cli.engines.take", take)
    options = ["--model", tiny, "--engine", tmp_path / "e", "--steps", 2, "--out", tmp_path / "o"]
    generate(PROMPT, *options)
    assert [v.dtype for v in seen if v.dim() > 2] == [torch.float16] * 4
