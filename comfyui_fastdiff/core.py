"""What both kinds of nodes do, and what they show."""

import inspect

import comfy.model_sampling
import comfy.samplers
import torch

from fastdiff import k_diffusion
from fastdiff.schedules.spacing import SPACINGS

CATEGORY = "fastdiff"
PREFIX = "sample_"
SAMPLERS = sorted({getattr(k_diffusion, n).__name__ for n in k_diffusion.__all__ if PREFIX in n})
SAMPLERS = [name.removeprefix(PREFIX) for name in SAMPLERS]
DEFAULT = "dpmpp_2m"
OWN = -1.0  # of eta and s_noise: what the sampler has by itself
TOOLTIPS = {
    "eta": "Share of fresh noise in a step; -1: the sampler's own. Refused where there is none.",
    "s_noise": "Factor of the fresh noise; -1: the sampler's own. Refused where there is none.",
    "denoise": "Below 1, the last steps of a longer run: image to image.",
}
SPACINGS = list(SPACINGS)


def sampler(name, eta, s_noise):
    """A SAMPLER."""
    options = {k: v for k, v in (("eta", eta), ("s_noise", s_noise)) if v >= 0}
    takes = inspect.signature(getattr(k_diffusion, PREFIX + name)).parameters
    for option in options:
        if option not in takes:
            raise ValueError(f"{option} must be -1 for {name}, which has none; got {options}")
    return comfy.samplers.KSAMPLER(run, {"name": name, **options})


def run(model, x, sigmas, extra_args=None, callback=None, disable=None, *, name, **options):
    """The function that ComfyUI calls; noise is seeded with the seed of the node that samples."""
    function = getattr(k_diffusion, PREFIX + name)
    seed = (extra_args or {}).get("seed")
    if seed is not None and "noise_sampler" in inspect.signature(function).parameters:
        options["noise_sampler"] = seeded(x, seed)
    levels = model.inner_model.model_patcher.get_model_object("model_sampling")
    options["flow"] = is_flow(levels)
    return function(model, x, sigmas, extra_args, callback, disable, **options)


def seeded(x, seed):
    """Unit normal noise of a seed, other than what the same seed starts a run with on a CPU."""
    generator = torch.Generator(x.device).manual_seed(seed + (x.device.type == "cpu"))
    like = {"dtype": x.dtype, "device": x.device, "generator": generator}
    return lambda sigma, sigma_next: torch.randn(x.shape, **like)


def sigmas(model, spacing, steps, denoise):
    """SIGMAS, (steps + 1,)."""
    if denoise <= 0:
        return torch.zeros(0)
    levels = model.get_model_object("model_sampling")
    every = int(steps / min(denoise, 1.0))
    return k_diffusion.get_sigmas(spacing, every, levels.sigmas, flow=is_flow(levels))[
        -(steps + 1) :
    ]


def is_flow(model_sampling):
    """x = (1 - sigma) x_0 + sigma n, as SD3 and Flux have it."""
    return isinstance(model_sampling, comfy.model_sampling.CONST)
