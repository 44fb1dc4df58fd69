"""docs/mathematics.md: its numbers about diffusers are measured here, its list is the code's."""

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

import fastdiff
import fastdiff.schedulers
from fastdiff import registry
from fastdiff.schedulers.quirks import QUIRKS
from fastdiff.solvers.phi import phi
from tests.loop import run
from tests.mixture import Mixture
from tests.test_gaussian import propagate

TEXT = (Path(__file__).parents[1] / "docs/mathematics.md").read_text()
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
DATA = Mixture()
X = np.random.default_rng(1).standard_normal(2048)


def relative(got, want):
    return np.linalg.norm(got - want) / np.linalg.norm(want)


def stock(name, **config):
    return getattr(diffusers, name)(**{**SD, **config})


# the list


def shown():
    """The generated table: what is between the two marks."""
    lines = ["| deviation of diffusers | classes | faithful sets | size | issue | versions |"]
    lines.append("|---|---|---|---|---|---|")
    for q in QUIRKS:
        classes = ", ".join(f"`{c.removesuffix('Scheduler')}`" for c in q.classes)
        if not q.classes:
            classes = "all"
        parameter = f"`{q.parameter}`" if q.parameter else "cannot be set"
        issue = f"[{q.issue}](https://github.com/huggingface/diffusers/issues/{q.issue[1:]})"
        lines.append(
            f"| {q.name} | {classes} | {parameter} | {q.size} | {issue if q.issue else ''} "
            f"| {q.versions} |"
        )
    return "\n".join(lines)


def test_the_documents_list_is_the_codes():
    """If this fails: python -m tests.test_mathematics writes the list again."""
    inside = TEXT.split("<!-- quirks: begin -->\n")[1].split("\n<!-- quirks: end -->")[0]
    assert inside == shown()


# the measured table


def sde_3m(**parameters):
    """3M SDE over 16 Karras steps with the same noise, for given parameters of the third order."""
    solver = replace(registry.SOLVERS["dpmpp_3m_sde"], faithful=parameters)
    plan = fastdiff.plan(solver, steps=16, numerics="faithful")
    noises = np.random.default_rng(0).standard_normal((16, len(X)))
    return run(plan, DATA.network(plan, "epsilon"), X * plan.noise_scale, noises)[-1]


def third_order_sign():
    right = {"d2_scale": 1.0, "sde3_offset": 0.0}
    return relative(sde_3m(d2_scale=1.0, sde3_offset=-1.0), sde_3m(**right))


def third_order_factor():
    exact = {"d2_scale": 2.0, "sde3_offset": 0.0}
    return relative(sde_3m(d2_scale=1.0, sde3_offset=0.0), sde_3m(**exact))


def third_order_factor_ode():
    ends = []
    for numerics in ("faithful", "exact"):
        plan = fastdiff.plan("dpmpp_3m", steps=16, numerics=numerics)
        ends.append(run(plan, DATA.network(plan, "epsilon"), X * plan.noise_scale)[-1])
    return relative(*ends)


def ddim_previous(spacing, n):
    """Stock's run against the same timesteps with each jump to the next of them."""
    scheduler = stock("DDIMScheduler", timestep_spacing=spacing, clip_sample=False)
    scheduler.set_timesteps(n)
    bar = scheduler.alphas_cumprod.double().numpy()
    times = scheduler.timesteps.tolist()
    theirs = right = X
    for t, after in zip(times, [*times[1:], None], strict=True):
        a, s = np.sqrt(bar[t]), np.sqrt(1 - bar[t])
        e = torch.from_numpy(DATA.noise(theirs, a, s))
        theirs = scheduler.step(e, t, torch.from_numpy(theirs), return_dict=False)[0].numpy()
        a1, s1 = (1.0, 0.0) if after is None else (np.sqrt(bar[after]), np.sqrt(1 - bar[after]))
        n_right = DATA.noise(right, a, s)
        right = a1 * (right - s * n_right) / a + s1 * n_right
    return relative(theirs, right)


def cut_times(**config):
    """Distance between the times the network is given and those of its levels, in timesteps."""
    scheduler = stock("DPMSolverMultistepScheduler", **config)
    scheduler.set_timesteps(20)
    flow = config.get("use_flow_sigmas", False)
    family = fastdiff.NoiseSchedule.named("flow" if flow else "scaled_linear")
    right = family.time_of(scheduler.sigmas[:-1].double().numpy())
    return np.abs(right - scheduler.timesteps.numpy()).max()


def large_variance_left(n):
    """Standard deviation of the noise that DDPM's last step leaves in the picture."""
    scheduler = stock(
        "DDPMScheduler", variance_type="fixed_large", timestep_spacing="trailing", clip_sample=False
    )
    scheduler.set_timesteps(n)
    zero = torch.zeros(1, 4, 128, 128)
    out = scheduler.step(
        zero, scheduler.timesteps[-1], zero, generator=torch.Generator().manual_seed(0)
    ).prev_sample
    return float(out.std())


def churned_noise():
    """Largest ratio of a level's noise to what it should be, for epsilon."""
    plan = fastdiff.plan("euler", steps=20, s_churn=2.0, final_sigma="sigma_min")
    return np.sqrt((propagate(plan)[1] / plan.sigma**2).max())


def euler_start():
    scheduler = stock("EulerDiscreteScheduler", timestep_spacing="trailing")
    scheduler.set_timesteps(20)
    top = float(scheduler.sigmas[0])
    return 1 - float(scheduler.init_noise_sigma) / np.hypot(1, top)


def float32_weight(order, n):
    """Largest relative error of diffusers' weight of the highest derivative on a Karras grid."""
    scheduler = stock("DPMSolverMultistepScheduler", use_karras_sigmas=True)
    scheduler.set_timesteps(n)
    sigmas = scheduler.sigmas[:-1]
    alpha, sigma = scheduler._sigma_to_alpha_sigma_t(sigmas)
    lam = torch.log(alpha) - torch.log(sigma)
    h = lam[1:] - lam[:-1]
    right = np.diff(-np.log(sigmas.double().numpy()))
    p1 = torch.exp(-h) - 1.0
    if order == 2:
        got, want = p1 / h + 1.0, np.array([v * phi(2, -v) for v in right])
    else:
        got, want = (p1 + h) / h**2 - 0.5, np.array([-v * phi(3, -v) for v in right])
    return np.abs(got.numpy() / want - 1).max()


MEASURED = {  # name in the document -> how to measure it
    "third order, factor 2, ODE": third_order_factor_ode,
    "third order, factor 2, SDE": third_order_factor,
    "third order, sign, SDE": third_order_sign,
    "DDIM's previous timestep, trailing": lambda: ddim_previous("trailing", 6),
    "DDIM's previous timestep, linspace": lambda: ddim_previous("linspace", 10),
    "whole model times, exponential": lambda: cut_times(use_exponential_sigmas=True),
    "whole model times, beta": lambda: cut_times(use_beta_sigmas=True),
    "whole model times, Karras": lambda: cut_times(use_karras_sigmas=True),
    "whole model times, flow": lambda: cut_times(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
    ),
    "DDPM, large variance, 10 steps": lambda: large_variance_left(10),
    "DDPM, large variance, 50 steps": lambda: large_variance_left(50),
    "Euler, churn": churned_noise,
    "Euler, start": euler_start,
    "float32, second order, 50 steps": lambda: float32_weight(2, 50),
    "float32, second order, 1000 steps": lambda: float32_weight(2, 1000),
    "float32, third order, 50 steps": lambda: float32_weight(3, 50),
    "float32, third order, 1000 steps": lambda: float32_weight(3, 1000),
}
ROWS = dict(re.findall(r"^\| ([^|]+) \| ([-\d.e]+) \| [^|]+ \|$", TEXT, re.MULTILINE))


@pytest.mark.parametrize("name", MEASURED)
def test_measured(name):
    got = MEASURED[name]()
    # float32 errors depend on the last bit of the machine's exp and log
    spread = 4 if name.startswith("float32") else 1.1
    assert float(ROWS[name]) / spread <= got <= float(ROWS[name]) * spread


def test_every_number_of_the_table_is_measured():
    assert set(ROWS) == set(MEASURED)


# what has no number


def walk(scheduler, n, shape=(1, 4, 4, 4)):
    scheduler.set_timesteps(n)
    x = torch.ones(shape)
    for t in scheduler.timesteps:
        x = scheduler.step(torch.sin(x), t, x, return_dict=False)[0]
    return x


def test_stock_makes_nan_of_equal_levels():
    config = {"solver_order": 3, "use_karras_sigmas": True, "final_sigmas_type": "sigma_min"}
    assert torch.isfinite(walk(stock("DPMSolverMultistepScheduler", **config), 14)).all()
    assert not torch.isfinite(walk(stock("DPMSolverMultistepScheduler", **config), 15)).all()


UNIPC = "UniPCMultistepScheduler"
KARRAS_TWICE = {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min"}


@pytest.mark.parametrize(
    ("config", "fine"),
    [
        ({}, True),
        ({"solver_type": "bh1"}, False),
        ({"lower_order_final": False}, False),
        ({"predict_x0": False}, False),
        ({"solver_type": "bh1", "final_sigmas_type": "sigma_min"}, True),
        ({"lower_order_final": False, "final_sigmas_type": "sigma_min"}, True),
        ({"predict_x0": False, "final_sigmas_type": "sigma_min"}, True),
        (KARRAS_TWICE, True),
        (KARRAS_TWICE | {"solver_order": 3}, True),
        (KARRAS_TWICE | {"solver_order": 3, "lower_order_final": False}, False),
    ],
    ids=str,
)
def test_stock_unipc_makes_nan_of_level_0_and_of_equal_levels(config, fine):
    assert torch.isfinite(walk(stock(UNIPC, **config), 6)).all() == fine
    ours = getattr(fastdiff.schedulers, UNIPC)(**SD, **config)
    assert torch.isfinite(walk(ours, 6)).all()


def test_stock_unipc_of_third_order_solves_a_singular_system():
    config = {"solver_order": 3, "lower_order_final": False}
    with pytest.raises(torch.linalg.LinAlgError):
        walk(stock(UNIPC, **config), 6)
    ours = getattr(fastdiff.schedulers, UNIPC)(**SD, **config)
    assert torch.isfinite(walk(ours, 6)).all()


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_stock_has_no_third_order_of_sde_dpmsolver():
    config = {"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min"}
    with pytest.raises(UnboundLocalError):
        walk(stock("DPMSolverMultistepScheduler", solver_order=3, **config), 20)


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", UNIPC])
def test_stock_loses_count_of_duplicate_timesteps(name):
    config = {"beta_schedule": "squaredcos_cap_v2", "use_karras_sigmas": True}
    scheduler = stock(name, **config)
    with pytest.raises(AssertionError if name == UNIPC else IndexError):
        walk(scheduler, 20)
    assert len(set(scheduler.timesteps.tolist())) == 12


def test_stock_takes_the_root_of_a_logarithm():
    assert torch.isnan(walk(stock("DDPMScheduler", variance_type="fixed_large_log"), 5)).all()
    zero_snr = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    first = []
    for cls in (diffusers.DDPMScheduler, fastdiff.schedulers.DDPMScheduler):
        config = {"variance_type": "fixed_large_log", "prediction_type": "sample"}
        scheduler = cls(**SD, **config, **zero_snr)
        scheduler.set_timesteps(5)
        zero, t = torch.zeros(1, 4, 8, 8), scheduler.timesteps[0]
        first.append(scheduler.step(zero, t, zero).prev_sample)
    assert (first[0] == 0).all()  # log 1: no noise
    assert 0.5 < first[1].std() < 2


@pytest.mark.parametrize("spacing", ["linspace", "trailing"])
@pytest.mark.parametrize("name", [f"{n}Scheduler" for n in ("DDIM", "DDPM", "LCM", "TCD")])
def test_stock_divides_by_zero_where_there_is_no_signal(name, spacing):
    config = {"rescale_betas_zero_snr": True, "timestep_spacing": spacing, "clip_sample": False}
    assert not torch.isfinite(walk(stock(name, **config), 5)).any()
    with pytest.raises(ValueError, match="no signal"):
        walk(getattr(fastdiff.schedulers, name)(**SD, **config), 5)


def test_stock_takes_an_eta_below_zero():
    scheduler = stock("DDIMScheduler", clip_sample=False)
    scheduler.set_timesteps(5)
    noise, zero = torch.ones(1, 4, 4, 4), torch.zeros(1, 4, 4, 4)
    t = scheduler.timesteps[2]
    steps = [scheduler.step(noise, t, zero, eta=eta).prev_sample for eta in (-1.0, 0.0)]
    assert (steps[0] < steps[1]).all()  # the noise part is smaller, and nothing was added
    assert steps[0].min() == steps[0].max()


def test_stock_keeps_mu():
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    scheduler = stock("DPMSolverMultistepScheduler", use_dynamic_shifting=True, **flow)
    scheduler.set_timesteps(4)
    before = scheduler.sigmas.clone()
    scheduler.set_timesteps(4, mu=1.0)
    scheduler.set_timesteps(4)
    assert not torch.equal(scheduler.sigmas, before)


def test_stock_overwrites_custom_timesteps_of_a_flow():
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    with pytest.raises(TypeError):
        stock("DPMSolverMultistepScheduler", **flow).set_timesteps(timesteps=[900, 500, 100])
    scheduler = stock("DPMSolverSinglestepScheduler", **flow)
    scheduler.set_timesteps(timesteps=[900, 500, 100])
    assert scheduler.timesteps.tolist() == [999, 666, 332]


def test_stock_takes_learned_variance_for_three_channels():
    scheduler = stock("DPMSolverMultistepScheduler", variance_type="learned_range")
    scheduler.set_timesteps(5)
    with pytest.raises(RuntimeError, match="must match"):
        scheduler.step(torch.ones(1, 8, 4, 4), scheduler.timesteps[0], torch.ones(1, 4, 4, 4))


def test_previous_timesteps_that_miss():
    for spacing, n, missed in (("trailing", 6, 3), ("linspace", 10, 9), ("leading", 10, 0)):
        scheduler = stock("DDIMScheduler", timestep_spacing=spacing)
        scheduler.set_timesteps(n)
        times = scheduler.timesteps.tolist()
        pairs = pairwise(times)
        assert sum(t - 1000 // n != after for t, after in pairs) == missed


if __name__ == "__main__":
    before, rest = TEXT.split("<!-- quirks: begin -->\n")
    after = rest[rest.index("<!-- quirks: end -->") :]
    path = Path(__file__).parents[1] / "docs/mathematics.md"
    path.write_text(f"{before}<!-- quirks: begin -->\n{shown()}\n{after}")
    for name, measure in MEASURED.items():
        print(f"{name}: {measure():.3g}")
