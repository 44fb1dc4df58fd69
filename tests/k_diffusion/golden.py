"""What the k-diffusion package computes, so that the tests need no k-diffusion.

    pip install k-diffusion==0.1.1.post1 --no-deps --target FOLDER
    python -m tests.k_diffusion.golden FOLDER        writes tests/k_diffusion/golden.json again

Only its sampling.py is loaded; what that imports and these samplers do not use (torchdiffeq,
torchsde, torchvision) is replaced by empty modules.  Everything runs in float64, on the mixture of
tests/mixture.py, with the noise that the file holds.
"""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import numpy as np
import torch

from tests.mixture import Mixture

FILE = Path(__file__).with_suffix(".json")
SHAPE = (2, 3)
SIGMAS = {
    "to zero": [14.6, 9.0, 5.3, 2.9, 1.4, 0.65, 0.27, 0.09, 0.03, 0.0],
    "to a level": [11.0, 6.1, 3.3, 1.7, 0.8, 0.3],
    "one step": [5.0, 0.0],
    "two steps": [7.0, 1.1, 0.0],
}
CASES = {  # file's name -> (function, sigmas, options)
    "euler": ("euler", "to zero", {}),
    "euler to a level": ("euler", "to a level", {}),
    "euler, churned": ("euler", "to zero", {"s_churn": 3.0, "s_noise": 1.003}),
    "euler, churned between": (
        "euler",
        "to a level",
        {"s_churn": 9.0, "s_tmin": 1.0, "s_tmax": 4.0, "s_noise": 0.9},
    ),
    "euler_ancestral": ("euler_ancestral", "to zero", {}),
    "euler_ancestral, eta": ("euler_ancestral", "to a level", {"eta": 0.6, "s_noise": 1.1}),
    "heun": ("heun", "to zero", {}),
    "heun to a level": ("heun", "to a level", {}),
    "heun, churned": ("heun", "to zero", {"s_churn": 3.0, "s_noise": 1.003}),
    "heun, churned between": (
        "heun",
        "to a level",
        {"s_churn": 9.0, "s_tmin": 1.0, "s_tmax": 4.0, "s_noise": 0.9},
    ),
    "heun, one step": ("heun", "one step", {}),
    "dpm_2": ("dpm_2", "to zero", {}),
    "dpm_2 to a level": ("dpm_2", "to a level", {}),
    "dpm_2, churned": ("dpm_2", "to zero", {"s_churn": 3.0, "s_noise": 1.003}),
    "dpm_2, churned between": (
        "dpm_2",
        "to a level",
        {"s_churn": 9.0, "s_tmin": 1.0, "s_tmax": 4.0, "s_noise": 0.9},
    ),
    "dpm_2_ancestral": ("dpm_2_ancestral", "to zero", {}),
    "dpm_2_ancestral, eta": ("dpm_2_ancestral", "to a level", {"eta": 0.6, "s_noise": 1.1}),
    "dpm_2_ancestral, two steps": ("dpm_2_ancestral", "two steps", {}),
    "dpmpp_2m": ("dpmpp_2m", "to zero", {}),
    "dpmpp_2m to a level": ("dpmpp_2m", "to a level", {}),
    "dpmpp_2m, one step": ("dpmpp_2m", "one step", {}),
    "dpmpp_2m_sde": ("dpmpp_2m_sde", "to zero", {}),
    "dpmpp_2m_sde, heun": (
        "dpmpp_2m_sde",
        "to a level",
        {"solver_type": "heun", "eta": 0.7, "s_noise": 0.95},
    ),
    "dpmpp_2m_sde, eta 0": ("dpmpp_2m_sde", "to zero", {"eta": 0.0}),
    "dpmpp_3m_sde": ("dpmpp_3m_sde", "to zero", {}),
    "dpmpp_3m_sde, eta": ("dpmpp_3m_sde", "to a level", {"eta": 0.4, "s_noise": 1.05}),
    "dpmpp_3m_sde, two steps": ("dpmpp_3m_sde", "two steps", {}),
}
DATA = Mixture()


def denoiser(x, sigma):
    """The exact prediction of x_0 for x = x_0 + sigma n, in float64."""
    level = float(sigma[0])
    values = x.double().numpy()
    return torch.from_numpy(values - level * DATA.noise(values, 1.0, level)).to(x.dtype)


class Noise:
    """Noise that is read from a table, in the order of the calls."""

    def __init__(self, table):
        self.table = iter(np.asarray(table))
        self.calls = []

    def sampler(self, sigma, sigma_next):
        self.calls.append((float(sigma), float(sigma_next)))
        return torch.from_numpy(next(self.table))

    def randn_like(self, x):
        return self.sampler(0.0, 0.0).to(x.dtype)


def run(function, case, noise):
    """The result, the calls of the callback ([x, sigma, sigma_hat, denoised]), and of the noise."""
    _, sigmas, options = CASES[case]
    levels = torch.tensor(SIGMAS[sigmas], dtype=torch.float64)
    x = torch.linspace(-1.0, 1.0, 6, dtype=torch.float64).reshape(SHAPE) * levels[0]
    told = []
    drawn = Noise(noise)
    if "ancestral" in case or "sde" in case:
        options = {**options, "noise_sampler": drawn.sampler}
    with patch("torch.randn_like", drawn.randn_like):
        out = function(denoiser, x, levels, callback=told.append, disable=True, **options)
    rows = [[t["x"], t["sigma"], t["sigma_hat"], t["denoised"]] for t in told]
    return out.tolist(), [[value.tolist() for value in row] for row in rows], drawn.calls


def load(folder):
    """k_diffusion.sampling of an installation, without what the rest of the package needs."""
    for name in ("torchdiffeq", "torchsde", "torchvision", "torchvision.transforms"):
        sys.modules.setdefault(name, ModuleType(name))
    sys.modules["torchdiffeq"].odeint = None
    sys.modules["torchvision.transforms"].functional = None
    package = sys.modules["k_diffusion"] = ModuleType("k_diffusion")
    package.__path__ = [str(Path(folder) / "k_diffusion")]
    return importlib.import_module("k_diffusion.sampling")


def main():
    sampling = load(sys.argv[1])
    noise = np.random.default_rng(0).standard_normal((12, *SHAPE))
    results = {}
    for case, (name, _, _) in CASES.items():
        out, told, calls = run(getattr(sampling, f"sample_{name}"), case, noise)
        results[case] = {"result": out, "callback": told, "noise": calls}
    body = {"package": "k-diffusion 0.1.1.post1", "noise": noise.tolist(), "cases": results}
    FILE.write_text(json.dumps(body))
    print(f"wrote {FILE}")


if __name__ == "__main__":
    main()
