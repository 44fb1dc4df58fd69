"""`fastdiff generate --model FOLDER`: a broken folder is one sentence, and nothing is written."""

import inspect
import json
import logging
import shutil

import diffusers
import pytest
from safetensors.torch import load_file, save_file

from fastdiff.cli import UserError, model
from fastdiff.schedules.config import default_spacing
from tests.test_generate import PROMPT, generate

SCHEDULER, INDEX = "scheduler/scheduler_config.json", "model_index.json"


@pytest.fixture
def folder(tiny, tmp_path):
    """A copy to break."""
    return shutil.copytree(tiny, tmp_path / "model")


def edit(folder, name, **changes):
    """Change entries of a JSON file of a model; None removes one."""
    values = json.loads((folder / name).read_text()) | changes
    text = json.dumps({k: v for k, v in values.items() if v is not None})
    (folder / name).write_text(text)


def refused(folder):
    """The message, of a run that leaves no folder behind."""
    out = folder.parent / "out"
    with pytest.raises(UserError) as caught:
        generate(PROMPT, "--model", folder, "--steps", 1, "--out", out)
    assert not out.exists()
    message = str(caught.value)
    assert message.startswith("--model")
    assert str(folder) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", [SCHEDULER, INDEX])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"{", "Expecting property name"),
        (b"", "Expecting value"),
        (b"[1]", "a JSON object"),
        (b'"\xff"', "utf-8"),
        (None, "with a "),
    ],
)
def test_json_that_is_none(folder, name, text, words):
    if text is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(text)
    message = refused(folder)
    assert words in message
    assert name in message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"beta_schedule": 5}, "a beta_schedule of kind str"),
        ({"beta_start": "0.1"}, "a beta_start of kind int or float"),
        ({"num_train_timesteps": True}, "a num_train_timesteps of kind int"),
        ({"prediction_type": ["epsilon"]}, "a prediction_type of kind str"),
        ({"trained_betas": 0.5}, "a trained_betas of kind list or null"),
        ({"trained_betas": [{}, {}]}, "a noise schedule"),
        ({"beta_schedule": "cubic"}, "'cubic'"),
        ({"beta_end": 2}, "(0, 1)"),
    ],
)
def test_a_config_that_makes_no_noise_schedule(folder, changes, words):
    edit(folder, SCHEDULER, **changes)
    assert words in refused(folder)


@pytest.mark.parametrize(
    "scheduler",
    [None, "DDIMScheduler", ["diffusers", "NoScheduler"], ["diffusers", "ConfigMixin"], [3]],
)
def test_betas_left_out_and_no_class_that_has_them(folder, scheduler):
    edit(folder, INDEX, scheduler=scheduler)
    (folder / SCHEDULER).write_text("{}")
    refused(folder)


def test_a_scheduler_without_betas(folder):
    edit(folder, INDEX, scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"])
    (folder / SCHEDULER).write_text("{}")
    assert "beta_start" in refused(folder)


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "PNDMScheduler"])
@pytest.mark.parametrize("spacing", [{}, {"timestep_spacing": "trailing"}])
def test_what_a_config_leaves_out_is_what_diffusers_would_take(folder, name, spacing):
    edit(folder, INDEX, scheduler=["diffusers", name])
    (folder / SCHEDULER).write_text(json.dumps({"_class_name": name, "beta_end": 0.03} | spacing))
    config = model.scheduler_config(folder)
    stock = getattr(diffusers, name).from_pretrained(folder, subfolder="scheduler")
    assert model.family(folder, config).alphas_cumprod == pytest.approx(stock.alphas_cumprod)
    assert default_spacing(config) == stock.config.timestep_spacing
    assert config["prediction_type"] == stock.config.prediction_type
    generate(PROMPT, "--model", folder, "--steps", 1, "--out", folder.parent / "out")
    assert (folder.parent / "out" / "0-0.png").exists()


def test_a_class_default_is_read_from_its_signature():
    """Were a default renamed in diffusers, the test above would compare two absent things."""
    arguments = inspect.signature(diffusers.DDIMScheduler).parameters
    assert {*model.NEEDED, "timestep_spacing"} <= arguments.keys()


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer"])
def test_a_part_that_is_missing(folder, part):
    """Without its folder, a tokenizer would be made that knows no word."""
    shutil.rmtree(folder / part)
    message = refused(folder)
    assert "cannot be loaded" in message or "tokenizer whose model_max_length" in message


@pytest.mark.parametrize("accelerate", [False, True])
def test_weights_that_a_file_lacks_are_told(folder, caplog, monkeypatch, accelerate):
    """diffusers makes them random, and says so; we do not make it silent.  With accelerate it
    leaves them without memory, which is refused."""
    if accelerate:
        pytest.importorskip("accelerate")
    monkeypatch.setattr(diffusers.utils, "is_accelerate_available", lambda: accelerate)
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    del weights["conv_in.bias"]
    save_file(weights, path)
    if accelerate:
        assert "must hold all weights; it lacks unet.conv_in.bias" in refused(folder)
        return
    model.load(folder, "cpu")
    assert "newly initialized: ['conv_in.bias']" in caplog.text


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_weights_that_are_cut_off(folder, part):
    (path,) = (folder / part).glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    assert "cannot be loaded" in refused(folder)


def test_a_part_that_is_null(folder):
    edit(folder, INDEX, unet=[None, None])
    refused(folder)


def test_a_part_whose_config_is_broken(folder):
    (folder / "unet" / "config.json").write_text("{")
    assert "cannot be loaded" in refused(folder)


def test_a_picture_that_is_not_square(folder):
    edit(folder, "unet/config.json", sample_size=[16, 8])
    assert "sample_size" in refused(folder)
