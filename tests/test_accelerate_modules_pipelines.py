"""Whole pipelines: pictures, saving, what the report says, what strict=True refuses."""

import copy
import json
import os
import subprocess
import sys
import textwrap

import diffusers
import numpy as np
import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn

import fastdiff
from fastdiff.accelerate import choice
from fastdiff.accelerate.inventory import considered
from fastdiff.accelerate.swap import GUIDED, swaps

from .accelerate_checks import every_kernel, wrap
from .tiny_pipelines import pictures, pipeline, run, sd15, sdxl, unconditional, vae

KINDS = ("sd15", "sdxl", "controlnet")


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    every_kernel(monkeypatch)


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_and_back(kind):
    pipe = pipeline(kind)
    before = pictures(pipe)
    assert fastdiff.accelerate(pipe) is pipe
    after = pictures(pipe)
    assert np.abs(after - before).max() < 1e-4  # float32, through two guided steps and a decoder
    assert not np.array_equal(after, before)
    assert pipe.scheduler._state.fused == 2
    text = str(fastdiff.report(pipe))
    for component in ("unet", "vae", "scheduler") + (
        ("controlnet",) if kind == "controlnet" else ()
    ):
        assert component in text
    lines = [line for line in text.splitlines() if not line.startswith(" ")]  # without counts
    assert 2 * len(lines) < len(fastdiff.report(pipe))  # alike modules share a line
    fastdiff.restore(pipe)
    assert np.array_equal(pictures(pipe), before)


LOAD = """
import sys
sys.modules["fastdiff"] = None  # importing it raises
import diffusers, torch
diffusers.utils.logging.set_verbosity_error()
for kind in sys.argv[2:]:
    nothing = dict(text_encoder=None, tokenizer=None)
    if kind == "sdxl":
        nothing |= dict(text_encoder_2=None, tokenizer_2=None)
    pipe = diffusers.DiffusionPipeline.from_pretrained(
        sys.argv[1] + "/" + kind, low_cpu_mem_usage=False, **nothing
    )
    assert type(pipe.unet) is diffusers.UNet2DConditionModel
    assert type(pipe.vae) is diffusers.AutoencoderKL
    torch.save([p.double().sum() for p in pipe.unet.parameters()], sys.argv[1] + "/" + kind + ".pt")
"""


def test_saved_pipelines_are_plain(tmp_path):
    sums = {}
    for kind in KINDS:
        pipe = pipeline(kind)
        pipe.save_pretrained(tmp_path / "stock" / kind)
        sums[kind] = [p.double().sum() for p in pipe.unet.parameters()]
        fastdiff.accelerate(pipe)
        pictures(pipe)
        pipe.save_pretrained(tmp_path / kind)
        stock, ours = (
            {path.relative_to(top): json.loads(path.read_text()) for path in top.rglob("*.json")}
            for top in (tmp_path / "stock" / kind, tmp_path / kind)
        )
        assert ours == stock
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(LOAD), str(tmp_path), *KINDS],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for kind in KINDS:
        assert torch.load(tmp_path / f"{kind}.pt") == sums[kind]


def kinds_in(network):
    return {row.name: row for row in fastdiff.report(network)}


def test_every_module_that_could_be_accelerated_has_a_row():
    pipe = fastdiff.accelerate(pipeline("controlnet"))
    named = {row.name for row in fastdiff.report(pipe)}
    kinds = ("ResnetBlock2D", "Attention", "Transformer2DModel", "BasicTransformerBlock", "GEGLU")
    for component in ("unet", "vae", "controlnet"):
        network = getattr(pipe, component)
        assert component in named
        for name, module in network.named_modules():
            holds_a_norm = any(isinstance(m, nn.GroupNorm) for m in module.children())
            if type(module).__name__ in kinds or (
                holds_a_norm and "conv_norm_out" not in vars(module)["_modules"]
            ):
                assert f"{component}.{name}" in named
    json.dumps(fastdiff.report(pipe).to_dict())


def test_a_kernel_that_does_not_exist_here_is_said():
    network = fastdiff.accelerate(sd15())
    with torch.no_grad():
        run(network)
    for row in fastdiff.report(network):
        if row.backend == "torch":
            assert "no kernel of" in row.why
            attended = {"fused": 1, "attention by torch": 1}
            assert row.calls == (attended if "Attention" in row.kind else {"torch: no kernel": 1})


class OwnBlock(ResnetBlock2D):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


def test_strict_refuses_what_is_left_alone_and_changes_nothing():
    pipe = pipeline("sd15")
    pipe.unet.mid_block.resnets[0].__class__ = OwnBlock
    with pytest.raises(ValueError, match=r"unet.mid_block.resnets.0 cannot be .*OwnBlock is a sub"):
        fastdiff.accelerate(pipe, strict=True)
    assert type(pipe.unet) is diffusers.UNet2DConditionModel
    assert type(pipe.scheduler) is diffusers.DDIMScheduler
    fastdiff.accelerate(pipe)
    assert type(pipe.unet.mid_block.resnets[0]) is OwnBlock
    assert kinds_in(pipe)["unet.mid_block.resnets.0"].backend == "stock"


def test_strict_refuses_networks_without_an_accelerated_class():
    """By themselves, and as a pipeline's; a text encoder in a pipeline is nobody's business."""
    words = r"cannot be accelerated: there is no accelerated class"
    with pytest.raises(TypeError, match="strict must be True or False; got 'yes'"):
        fastdiff.accelerate(pipeline("sd15"), strict="yes")
    with pytest.raises(ValueError, match=f"module {words}"):
        fastdiff.accelerate(nn.Sequential(nn.GroupNorm(1, 3)), strict=True)
    pipe = pipeline("sd15")
    pipe.text_encoder = nn.Linear(1, 1)  # of no class of diffusers
    fastdiff.restore(fastdiff.accelerate(pipe, strict=True))
    small = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 4}
    pipe.unet = diffusers.DiTTransformer2DModel(**small, sample_size=8, norm_num_groups=4)
    with pytest.raises(ValueError, match=f"unet {words}"):
        fastdiff.accelerate(pipe, strict=True)
    assert type(pipe.scheduler) is diffusers.DDIMScheduler


@torch.no_grad()
def test_strict_refuses_a_run_that_leaves_the_fast_paths():
    network = fastdiff.accelerate(sd15(), strict=True)
    run(network)
    with (
        torch.enable_grad(),
        pytest.raises(RuntimeError, match=r"a gradient is wanted.*strict=False"),
    ):
        run(network)
    fastdiff.accelerate(network)
    with torch.enable_grad():
        run(network)
    fastdiff.accelerate(network, strict=True)
    with pytest.raises(RuntimeError, match="float64"):
        run(network.double())


@torch.no_grad()
def test_strict_and_an_upsampler_with_lora():
    network = fastdiff.accelerate(sd15(), strict=True)
    wrap(network, ["conv"])
    with pytest.raises(RuntimeError, match=r"Upsample2D .* its convolution is hooked or replaced"):
        run(network)
    with pytest.raises(ValueError, match=r"upsamplers.0 cannot be .* hooked or replaced"):
        fastdiff.accelerate(network, strict=True)


@torch.no_grad()
def test_upsampling_without_a_convolution_is_nothing_to_refuse():
    """As blocks hold it that upsample before their first convolution."""
    network = unconditional(upsample_type="resnet")
    run(fastdiff.accelerate(network, strict=True))
    assert any(isinstance(m, Upsample2D) for m in network.modules())
    assert not [row for row in fastdiff.report(network) if "Upsample2D" in row.kind]


@torch.no_grad()
def test_other_versions_of_diffusers_are_refused_and_reported(monkeypatch):
    module = sys.modules["fastdiff.accelerate.swap"]  # by its name it is a function
    monkeypatch.setattr(module, "MODULES_CHECKED", ">=0.1,<0.2")
    network = sd15()
    before = {name: type(m) for name, m in network.named_modules()}
    fastdiff.accelerate(network)
    assert {name: type(m) for name, m in network.named_modules()} == before
    for row in fastdiff.report(network):
        assert row.backend == "stock"
        assert f"diffusers {diffusers.__version__} was not checked, only >=0.1,<0.2" in row.why
    with pytest.raises(ValueError, match="was not checked"):
        fastdiff.accelerate(network, strict=True)


def test_the_registry_is_what_the_networks_hold():
    """Each swapped class extends exactly the class it replaces, and bears its name."""
    for stock, fast in swaps().items():
        assert fast.__name__ == stock.__name__
        assert fast.__module__ == stock.__module__
        assert issubclass(fast, stock)
    fast = {type(m) for make in (sd15, sdxl, vae) for m in fastdiff.accelerate(make()).modules()}
    used = {stock.__name__ for stock, cls in swaps().items() if cls in fast}
    modules = {s.__name__ for s in swaps() if issubclass(s, nn.Module)}
    modules -= {cls.__bases__[1].__name__ for cls in GUIDED}  # of these only the call is ours
    assert used == modules - {"UNet2DModel", "ControlNetModel"}


def test_networks_inside_a_component_are_found():
    from diffusers import MultiControlNetModel

    from .tiny_pipelines import controlnet

    both = MultiControlNetModel([controlnet(), controlnet()])
    fastdiff.accelerate(both)
    names = {row.name for row in fastdiff.report(both)}
    assert {"module.nets.0", "module.nets.1", "module.nets.1.mid_block.resnets.0"} <= names
    fastdiff.restore(both)
    assert not any(choice.tally(m) for m in both.modules())


def test_other_networks_are_left_alone():
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.GroupNorm(1, 3))
    before = copy.deepcopy(vars(network[0]))
    assert fastdiff.accelerate(network) is network
    (row,) = fastdiff.report(network)
    assert row.backend == "stock"
    assert "no accelerated class" in row.why
    assert vars(network[0]).keys() == before.keys()


def test_a_module_that_hangs_in_two_places_is_considered_once():
    network = sd15()
    network.mid_block.resnets[1] = network.mid_block.resnets[0]
    names = [item.name for item in considered(network)]
    assert len(names) == len(set(names))
    fastdiff.restore(fastdiff.accelerate(network))
