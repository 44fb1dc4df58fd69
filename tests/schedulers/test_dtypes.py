"""dtypes of everything a step returns or keeps: as the installed diffusers has them, row by row.

The table (class x kind of step x dtype of the model output x dtype of the sample -> dtype of the
next sample, of the prediction of x_0, of the history) is made from diffusers when the test runs:
casts there depend on type promotion, and differ from class to class.
"""

import itertools

import pytest
import torch

from .classes import FLOW_HEUN, NAMES, SD, UNIPC, base, both, stock
from .loops import same, scaled
from .options import ramp

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
KINDS = {
    "DPMSolverMultistepScheduler": {
        "epsilon": {},
        "sample": {"prediction_type": "sample"},
        "v": {"prediction_type": "v_prediction"},
        "noise": {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
        "sde": {"algorithm_type": "sde-dpmsolver++", "solver_order": 3},
        "threshold": {"thresholding": True},
    },
    "DPMSolverSinglestepScheduler": {
        "epsilon": {},
        "sample": {"prediction_type": "sample"},
        "v": {"prediction_type": "v_prediction"},
        "noise": {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
        "sde": {"algorithm_type": "sde-dpmsolver++", "solver_order": 3},
        "sde of sample": {"algorithm_type": "sde-dpmsolver++", "prediction_type": "sample"},
        "threshold": {"thresholding": True},
    },
    "EDMEulerScheduler": {
        "epsilon": {},
        "v": {"prediction_type": "v_prediction"},
        "churn": {"call": {"s_churn": 30.0}},
    },
    "EDMDPMSolverMultistepScheduler": {
        "epsilon": {},
        "v": {"prediction_type": "v_prediction"},
        "third": {"solver_order": 3},
        "sde": {"algorithm_type": "sde-dpmsolver++"},
        "threshold": {"thresholding": True},
    },
    "UniPCMultistepScheduler": {
        "epsilon": {},
        "third": {"solver_order": 3},
        "sample": {"prediction_type": "sample"},
        "v": {"prediction_type": "v_prediction"},
        "noise": {"predict_x0": False, "final_sigmas_type": "sigma_min"},
        "noise of v": {
            "predict_x0": False,
            "final_sigmas_type": "sigma_min",
            "prediction_type": "v_prediction",
        },
        "uncorrected": {"disable_corrector": [0]},
        "threshold": {"thresholding": True},
    },
    "DEISMultistepScheduler": {
        "epsilon": {},
        "third": {"solver_order": 3},
        "sample": {"prediction_type": "sample"},
        "v": {"prediction_type": "v_prediction"},
        "threshold": {"thresholding": True},
    },
    "LCMScheduler": {
        "epsilon": {},
        "clip": {"clip_sample": True},
        "sample": {"prediction_type": "sample"},
        "v": {"prediction_type": "v_prediction"},
        "threshold": {"thresholding": True},
    },
    "TCDScheduler": {
        "epsilon": {},
        "sample": {"prediction_type": "sample"},
        "v": {"prediction_type": "v_prediction"},
        "plain": {"call": {"eta": 0.0}},
    },
    "FlowMatchEulerDiscreteScheduler": {
        "velocity": {},
        "noise": {"stochastic_sampling": True},
    },
    "FlowMatchHeunDiscreteScheduler": {"velocity": {}, "churn": {"call": {"s_churn": 2.0}}},
    "FlowMatchLCMScheduler": {"velocity": {}},
    "HeunDiscreteScheduler": {
        "epsilon": {},
        "clip": {"clip_sample": True},
        "sample": {"prediction_type": "sample"},
        "v": {"prediction_type": "v_prediction"},
    },
    "KDPM2DiscreteScheduler": {
        "epsilon": {},
        "v": {"prediction_type": "v_prediction"},
    },
    "KDPM2AncestralDiscreteScheduler": {
        "epsilon": {},
        "v": {"prediction_type": "v_prediction"},
    },
    "LMSDiscreteScheduler": {
        "epsilon": {},
        "sample": {"prediction_type": "sample"},
        "v": {"prediction_type": "v_prediction"},
    },
    "SASolverScheduler": {
        "epsilon": {},
        "third": {"predictor_order": 3, "corrector_order": 3, "tau_func": ramp},
        "sample": {"prediction_type": "sample", "tau_func": ramp},
        "v": {"prediction_type": "v_prediction"},
        "noise": {"algorithm_type": "noise_prediction", "tau_func": ramp},
        "noise of v": {"algorithm_type": "noise_prediction", "prediction_type": "v_prediction"},
        "threshold": {"thresholding": True},
    },
    "PNDMScheduler": {
        "epsilon": {},
        "v": {"prediction_type": "v_prediction"},
        "start": {"skip_prk_steps": False},
        "start of v": {"skip_prk_steps": False, "prediction_type": "v_prediction"},
    },
    "DDIMScheduler": {
        "epsilon": {"clip_sample": False},
        "clip": {},
        "sample": {"prediction_type": "sample"},
        "v": {"prediction_type": "v_prediction"},
        "threshold": {"thresholding": True},
        "noise": {"call": {"eta": 1.0}},
        "clipped": {"call": {"use_clipped_model_output": True}},
    },
    "EulerDiscreteScheduler": {
        "epsilon": {},
        "sample": {"prediction_type": "sample"},
        "v": {"prediction_type": "v_prediction"},
        "churn": {"call": {"s_churn": 30.0}},
    },
    "EulerAncestralDiscreteScheduler": {
        "epsilon": {},
        "v": {"prediction_type": "v_prediction"},
    },
    "DDPMScheduler": {
        "epsilon": {"clip_sample": False},
        "clip": {"variance_type": "fixed_large"},
        "v": {"prediction_type": "v_prediction"},
        "sample": {"prediction_type": "sample"},
        "threshold": {"thresholding": True},
        "learned": {"variance_type": "learned_range"},
    },
}


def two_steps(scheduler, output, sample, call):
    """The row of the table, and the last sample; an exception's class where there is none."""
    scheduler.set_timesteps(10)
    g = torch.Generator().manual_seed(0)
    width = 6 if scheduler.config.get("variance_type") == "learned_range" else 3
    x = torch.randn(1, 3, 4, 4, generator=g).to(sample)
    generator, row = torch.Generator().manual_seed(1), []
    try:
        for t in scheduler.timesteps[:2]:
            seen = scaled(scheduler, x, t)
            e = torch.randn(1, width, 4, 4, generator=g).to(output)
            if "generator" in scheduler.step.__code__.co_varnames:
                call = call | {"generator": generator}
            out = scheduler.step(e, t, x, **call)
            prev, x0 = out.prev_sample, getattr(out, "pred_original_sample", None)
            kept = [*getattr(scheduler, "model_outputs", [])]
            kept += getattr(scheduler, "derivatives", [])
            kept += getattr(scheduler, "ets", [])
            keys = ["prev_derivative", "cur_sample", "last_noise"]
            if not isinstance(getattr(scheduler, "cur_model_output", 0), int):
                keys.append("cur_model_output")
            if not isinstance(scheduler, stock(FLOW_HEUN)):  # diffusers' cuts a sample to float32
                keys.append("sample")
            kept += [getattr(scheduler, key, None) for key in keys]
            kept = [m.dtype for m in kept if m is not None]
            row.append((seen.dtype, prev.dtype, None if x0 is None else x0.dtype, tuple(kept)))
            x = prev.to(sample)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        return type(error), None
    return row, prev


@pytest.mark.parametrize("config", [{"prediction_type": "sample"}, {"predict_x0": False}], ids=str)
def test_unipc_keeps_where_a_step_began_with_the_digits_of_the_sample(config):
    """Not with those of a coarser network, whose answer is kept in its own dtype beside it."""
    seen = []
    for s in both(UNIPC, **SD | config | {"final_sigmas_type": "sigma_min"}):
        s.set_timesteps(10)
        g = torch.Generator().manual_seed(0)
        x = torch.randn(1, 3, 4, 4, generator=g)
        for t in s.timesteps[:4]:
            x = s.step(torch.randn(1, 3, 4, 4, generator=g).bfloat16(), t, x).prev_sample
        assert s.model_outputs[-1].dtype == torch.bfloat16
        assert s.last_sample.dtype == torch.float32
        assert (s.last_sample != s.last_sample.bfloat16()).any()
        seen.append(s.last_sample)
    same(*seen, torch.finfo(torch.bfloat16).eps)  # diffusers rounds differences of predictions


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name in NAMES for kind in KINDS[name]], ids=str
)
def test_dtypes_are_those_of_diffusers(name, kind):
    config = base(name) | KINDS[name][kind]
    call = config.pop("call", {})
    wrong, seen = {}, set()
    for output, sample in itertools.product(DTYPES, repeat=2):
        mine, theirs = both(name, **config)
        expected, reference = two_steps(theirs, output, sample, call)
        row, prev = two_steps(mine, output, sample, call)
        seen.add(str(expected))
        if reference is None:
            continue  # diffusers cannot
        if row != expected:
            wrong[output, sample] = f"{row}, diffusers has {expected}"
        else:  # and no cast on the way lost more than one in the coarsest dtype would (diffusers'
            # coefficients are float32)
            eps = max(torch.finfo(d).eps for d in (output, sample, prev.dtype, torch.float32))
            gap = (prev.double() - reference.double()).abs().max() / reference.abs().max()
            if not gap <= 8 * eps:
                wrong[output, sample] = f"differs by {gap:.1e}"
    assert not wrong, "\n".join(f"output {o}, sample {x}: {w}" for (o, x), w in wrong.items())
    assert len(seen) >= 3  # the table says something
