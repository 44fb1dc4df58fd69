"""The ComfyUI nodes, loaded as ComfyUI loads a folder of custom_nodes, on stub modules."""

import asyncio
import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from fastdiff import k_diffusion
from fastdiff.registry import SOLVERS
from fastdiff.schedules import NoiseSchedule
from fastdiff.schedules.spacing import SPACINGS

FOLDER = Path(__file__).parents[1] / "comfyui_fastdiff"
X = torch.linspace(-2.0, 2.0, 8).reshape(1, 2, 2, 2)


class KSampler:
    """comfy.samplers.KSAMPLER, as far as a sampler's function sees it."""

    def __init__(self, sampler_function, extra_options=None):
        self.sampler_function, self.extra_options = sampler_function, extra_options

    def sample(self, model, sigmas, extra_args, callback, noise, disable_pbar=True):
        told = None if callback is None else lambda t: callback(t["i"], t["denoised"], t["x"])
        return self.sampler_function(
            model, noise, sigmas, extra_args=extra_args, callback=told, disable=disable_pbar,
            **self.extra_options,
        )  # fmt: skip


class Const:
    """comfy.model_sampling.CONST"""


class Eps:
    """comfy.model_sampling.EPS"""


class FlowLevels(Const):
    sigmas = 3 * torch.arange(1, 1001) / 1000 / (1 + 2 * torch.arange(1, 1001) / 1000)


class Levels(Eps):
    sigmas = torch.from_numpy(NoiseSchedule.vp().ratios).float()


class Model:
    """What ComfyUI gives a sampler's function, and a MODEL."""

    def __init__(self, levels):
        self.levels = levels
        self.inner_model = SimpleNamespace(model_patcher=self)
        self.seen = []

    def get_model_object(self, name):
        assert name == "model_sampling"
        return self.levels

    def __call__(self, x, sigma, seed=None, model_options=None):
        self.seen.append((seed, model_options))
        return torch.tanh(x / (1 + sigma))


class Widget:
    """io.Float and its like: Input and Output with a name and what was said of them."""

    @staticmethod
    def Input(name, **said):
        return SimpleNamespace(name=name, **said)

    @staticmethod
    def Output(**said):
        return SimpleNamespace(**said)


def stubs(v3):
    """sys.modules of a ComfyUI, with or without comfy_api."""
    comfy, samplers, sampling = map(ModuleType, ("comfy", "comfy.samplers", "comfy.model_sampling"))
    samplers.KSAMPLER, sampling.CONST = KSampler, Const
    comfy.samplers, comfy.model_sampling = samplers, sampling
    modules = {m.__name__: m for m in (comfy, samplers, sampling)}
    if not v3:
        return {**modules, "comfy_api": None, "comfy_api.latest": None}
    api, latest = ModuleType("comfy_api"), ModuleType("comfy_api.latest")
    latest.ComfyExtension = object
    latest.io = SimpleNamespace(
        ComfyNode=object,
        Schema=SimpleNamespace,
        NodeOutput=lambda *values: values,
        **dict.fromkeys(("Combo", "Float", "Int", "Model", "Sampler", "Sigmas"), Widget),
    )
    api.latest = latest
    return {**modules, "comfy_api": api, "comfy_api.latest": latest}


@pytest.fixture(params=["v1", "v3"])
def nodes(request, tmp_path, monkeypatch):
    """{name: execute(**inputs) -> outputs} of the folder, copied into custom_nodes."""
    place = tmp_path / "custom_nodes" / FOLDER.name
    shutil.copytree(FOLDER, place, ignore=shutil.ignore_patterns("__pycache__"))
    for name, module in stubs(request.param == "v3").items():
        monkeypatch.setitem(sys.modules, name, module)
    name = str(place).replace(".", "_x_")  # ComfyUI's own name for it
    spec = importlib.util.spec_from_file_location(name, place / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    before = set(sys.modules)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    if request.param == "v1":
        assert not hasattr(module, "comfy_entrypoint")
        assert set(module.NODE_CLASS_MAPPINGS) == set(module.NODE_DISPLAY_NAME_MAPPINGS)
        yield {k: v1_node(v) for k, v in module.NODE_CLASS_MAPPINGS.items()}
    else:
        assert not hasattr(module, "NODE_CLASS_MAPPINGS")
        extension = asyncio.run(module.comfy_entrypoint())
        found = asyncio.run(extension.get_node_list())
        yield {node.define_schema().node_id: v3_node(node) for node in found}
    for added in set(sys.modules) - before:
        del sys.modules[added]


def v1_node(node):
    """Called with the inputs that are not at their defaults; .menu are the choices of an input."""
    inputs = node.INPUT_TYPES()["required"]
    said = {k: v[1] if len(v) > 1 else {} for k, v in inputs.items()}
    menu = {k: v[0] for k, v in inputs.items() if isinstance(v[0], list)}
    defaults = {k: v["default"] for k, v in said.items() if "default" in v}
    call = getattr(node(), node.FUNCTION)
    return SimpleNamespace(run=lambda **given: call(**{**defaults, **given}), menu=menu)


def v3_node(node):
    inputs = node.define_schema().inputs
    menu = {i.name: i.options for i in inputs if hasattr(i, "options")}
    defaults = {i.name: i.default for i in inputs if hasattr(i, "default")}
    return SimpleNamespace(run=lambda **given: node.execute(**{**defaults, **given}), menu=menu)


def test_the_menus_are_the_registry_and_the_spacings(nodes):
    assert set(nodes) == {"FastdiffSampler", "FastdiffSigmas"}
    assert set(nodes["FastdiffSampler"].menu["sampler"]) == {
        n for n, s in SOLVERS.items() if s.inner is None
    }
    assert nodes["FastdiffSigmas"].menu["spacing"] == list(SPACINGS)


@pytest.mark.parametrize("levels", [Levels, FlowLevels])
@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_2m_sde", "euler_a", "unipc_2"])
def test_a_run_is_that_of_k_diffusion(nodes, name, levels):
    model, told = Model(levels()), []
    (sigmas,) = nodes["FastdiffSigmas"].run(model=model, spacing="trailing", steps=6)
    assert sigmas.shape == (7,)
    (sampler,) = nodes["FastdiffSampler"].run(sampler=name)
    args = {"seed": 5, "model_options": {"a": 1}}
    with torch.inference_mode():  # as ComfyUI
        got = sampler.sample(model, sigmas, args, lambda *t: told.append(t), X * sigmas[0])
        again = sampler.sample(model, sigmas, args, None, X * sigmas[0])
    assert model.seen[:6] == [(5, {"a": 1})] * 6
    assert [t[0] for t in told] == list(range(6))
    assert torch.equal(got, again)  # the noise has the seed
    draws = name in ("dpmpp_2m_sde", "euler_a")
    noise = torch.Generator().manual_seed(6)
    extra = {"noise_sampler": lambda *_: torch.randn(X.shape, generator=noise)} if draws else {}
    want = getattr(k_diffusion, f"sample_{name}")(
        model, X * sigmas[0], sigmas, disable=True, flow=levels is FlowLevels, **extra
    )
    assert torch.equal(got, want)
    if draws:
        (other,) = nodes["FastdiffSampler"].run(sampler=name, eta=0.3, s_noise=1.1)
        assert not torch.equal(other.sample(model, sigmas, args, None, X * sigmas[0]), got)


def test_an_option_that_a_sampler_has_not_is_refused(nodes):
    with pytest.raises(ValueError, match=r"^eta must be -1 for dpmpp_2m, which has none; got"):
        nodes["FastdiffSampler"].run(sampler="dpmpp_2m", eta=0.5)
    with pytest.raises(ValueError, match=r"^s_noise must be -1 for ddim, which has none; got"):
        nodes["FastdiffSampler"].run(sampler="ddim", eta=0.5, s_noise=1.0)


def test_sigmas_of_a_part_of_a_run(nodes):
    model = Model(Levels())
    (whole,) = nodes["FastdiffSigmas"].run(model=model, spacing="karras", steps=20)
    (part,) = nodes["FastdiffSigmas"].run(model=model, spacing="karras", steps=10, denoise=0.5)
    assert torch.equal(part, whole[-11:])
    (more,) = nodes["FastdiffSigmas"].run(model=model, spacing="karras", steps=16)
    (part,) = nodes["FastdiffSigmas"].run(model=model, spacing="karras", steps=10, denoise=0.6)
    assert torch.equal(part, more[-11:])  # 10 / 0.6 = 16.7, cut as ComfyUI's own nodes do
    np.testing.assert_allclose(whole[[0, -1]].tolist(), [float(Levels.sigmas[-1]), 0.0], rtol=1e-6)
    (none,) = nodes["FastdiffSigmas"].run(model=model, spacing="karras", steps=10, denoise=0.0)
    assert none.shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sigmas_of_a_model_in_half_precision_are_those_of_its_levels(nodes, dtype):
    """Here powers of two, which both hold, and distinct."""
    model, trained = Model(Levels()), 2.0 ** torch.arange(-5, 5)
    model.levels.sigmas = trained.to(dtype)
    (got,) = nodes["FastdiffSigmas"].run(model=model, spacing="karras", steps=6)
    assert got.dtype == torch.float32
    assert torch.equal(got, k_diffusion.get_sigmas("karras", 6, trained))
