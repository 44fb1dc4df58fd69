"""Every option of the classes with the values that tests draw from, and seeded draws of them.

`TABLE[name]` must name each parameter of the installed class's constructor and each numeric
argument of its `step` (test_agreement checks it), so a new option of diffusers cannot pass unseen.
"""

import random
from dataclasses import replace
from typing import Any

import numpy as np

from .runs import Case

_BETAS = np.linspace(0.0009**0.5, 0.011**0.5, 1000) ** 2
_SCHEDULE = {
    "num_train_timesteps": [1000, 1000, 400],
    "beta_start": [0.00085, 0.0001],
    "beta_end": [0.012, 0.02],
    "beta_schedule": ["linear", "scaled_linear", "scaled_linear", "squaredcos_cap_v2"],
    "trained_betas": [None, None, None, None, _BETAS],
    "timestep_spacing": ["linspace", "leading", "trailing"],
    "steps_offset": [0, 1],
    "rescale_betas_zero_snr": [False, False, False, True],
}
_LIMITS = {
    "thresholding": [False, False, True],
    "dynamic_thresholding_ratio": [0.995, 0.8],
    "sample_max_value": [1.0, 1.6],
}
_CLIP = {"clip_sample": [True, False], "clip_sample_range": [1.0, 1.7]}


def none(timestep: Any) -> float:
    """tau of the ODE."""
    return 0.0


def ramp(timestep: Any) -> Any:
    """A tau that is another number at every timestep; in diffusers a tensor."""
    return 0.2 + timestep / 1000


TABLE: dict[str, dict[str, list[Any]]] = {
    "DPMSolverMultistepScheduler": _SCHEDULE
    | _LIMITS
    | {
        "solver_order": [1, 2, 3],
        "prediction_type": ["epsilon", "sample", "v_prediction", "flow_prediction"],
        "algorithm_type": ["dpmsolver++", "sde-dpmsolver++", "dpmsolver", "sde-dpmsolver"],
        "solver_type": ["midpoint", "heun"],
        "lower_order_final": [True, False],
        "euler_at_final": [False, True],
        "use_karras_sigmas": [False, True],
        "use_exponential_sigmas": [False, False, True],
        "use_beta_sigmas": [False, False, True],
        "use_lu_lambdas": [False, False, True],
        "use_flow_sigmas": [False, False, True],
        "flow_shift": [1.0, 3.0],
        "final_sigmas_type": ["zero", "sigma_min"],
        "lambda_min_clipped": [-float("inf"), -5.1],
        "variance_type": [None, None, None, "learned", "learned_range"],
        "use_dynamic_shifting": [False, True],
        "time_shift_type": ["exponential"],
    },
    "DDIMScheduler": _SCHEDULE
    | _LIMITS
    | _CLIP
    | {
        "set_alpha_to_one": [True, False],
        "prediction_type": ["epsilon", "sample", "v_prediction"],
        "step.eta": [0.0, 0.0, 0.4, 1.0],
        "step.use_clipped_model_output": [False, True],
        "step.variance_noise": [False, False, True],
    },
    "EulerDiscreteScheduler": _SCHEDULE
    | {
        "prediction_type": ["epsilon", "sample", "v_prediction", "original_sample"],
        "interpolation_type": ["linear", "log_linear"],
        "use_karras_sigmas": [False, True],
        "use_exponential_sigmas": [False, False, True],
        "use_beta_sigmas": [False, False, True],
        "sigma_min": [None, 0.05],
        "sigma_max": [None, 11.0],
        "timestep_type": ["discrete", "continuous"],
        "final_sigmas_type": ["zero", "sigma_min"],
        "step.s_churn": [0.0, 0.0, 5.0, 40.0],
        "step.s_tmin": [0.0, 0.3],
        "step.s_tmax": [float("inf"), 9.0],
        "step.s_noise": [1.0, 1.007],
    },
    "EulerAncestralDiscreteScheduler": _SCHEDULE
    | {"prediction_type": ["epsilon", "v_prediction"]},  # "sample" is not implemented there
    "DDPMScheduler": _SCHEDULE
    | _LIMITS
    | _CLIP
    | {
        "beta_schedule": ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace"],
        "variance_type": 2
        * ["fixed_small", "fixed_small_log", "fixed_large", "learned", "learned_range"]
        + ["fixed_large_log"],  # the root of a logarithm, in diffusers never a number
        "prediction_type": ["epsilon", "sample", "v_prediction"],
    },
}
TABLE["DPMSolverSinglestepScheduler"] = {
    key: values
    for key, values in TABLE["DPMSolverMultistepScheduler"].items()
    if key
    not in (
        "timestep_spacing",
        "steps_offset",
        "rescale_betas_zero_snr",
        "euler_at_final",
        "use_lu_lambdas",
    )
} | {"algorithm_type": ["dpmsolver++", "sde-dpmsolver++", "dpmsolver"]}
TABLE["UniPCMultistepScheduler"] = {
    key: TABLE["DPMSolverMultistepScheduler"][key]
    for key in (
        *_SCHEDULE,
        *_LIMITS,
        "solver_order",
        "prediction_type",
        "lower_order_final",
        "use_karras_sigmas",
        "use_exponential_sigmas",
        "use_beta_sigmas",
        "use_flow_sigmas",
        "flow_shift",
        "final_sigmas_type",
        "use_dynamic_shifting",
        "time_shift_type",
    )
} | {
    "solver_type": ["bh1", "bh2"],
    "predict_x0": [True, True, False],
    "disable_corrector": [[], [], [0], [1, 3]],
    "solver_p": [None],
    "sigma_min": [None],
    "sigma_max": [None],
    "shift_terminal": [None, 0.1],
    "time_shift_type": ["exponential", "linear"],
}
TABLE["DEISMultistepScheduler"] = {
    key: values
    for key, values in TABLE["DPMSolverMultistepScheduler"].items()
    if key
    not in (
        "rescale_betas_zero_snr",
        "euler_at_final",
        "use_lu_lambdas",
        "final_sigmas_type",
        "lambda_min_clipped",
        "variance_type",
    )
} | {"algorithm_type": ["deis"], "solver_type": ["logrho"]}
TABLE["LCMScheduler"] = (
    {key: values for key, values in _SCHEDULE.items() if key != "num_train_timesteps"}
    | _LIMITS
    | _CLIP
    | {
        "num_train_timesteps": [1000],
        "original_inference_steps": [50, 100],
        "set_alpha_to_one": [True, False],
        "prediction_type": ["epsilon", "sample", "v_prediction"],
        "timestep_scaling": [10.0, 1.5],
    }
)
TABLE["TCDScheduler"] = TABLE["LCMScheduler"] | {"step.eta": [0.3, 0.0, 1.0]}
TABLE["FlowMatchEulerDiscreteScheduler"] = {
    "num_train_timesteps": [1000, 1000, 400],
    "shift": [1.0, 3.0],
    "use_dynamic_shifting": [False, True],
    "time_shift_type": ["exponential", "linear"],
    "base_shift": [0.5, 0.7],  # this one and the next three are for pipelines
    "max_shift": [1.15, 1.3],
    "base_image_seq_len": [256, 64],
    "max_image_seq_len": [4096, 1024],
    "invert_sigmas": [False, False, True],
    "shift_terminal": [None, 0.1],
    "use_karras_sigmas": [False, False, True],
    "use_exponential_sigmas": [False, False, True],
    "use_beta_sigmas": [False, False, True],
    "stochastic_sampling": [False, True],
    "step.s_churn": [0.0, 5.0],  # and these have no effect
    "step.s_tmin": [0.0, 0.3],
    "step.s_tmax": [float("inf"), 9.0],
    "step.s_noise": [1.0, 1.007],
}
TABLE["FlowMatchLCMScheduler"] = {
    key: values
    for key, values in TABLE["FlowMatchEulerDiscreteScheduler"].items()
    if key != "stochastic_sampling" and not key.startswith("step.")
} | {"scale_factors": [None], "upscale_mode": ["bicubic", "nearest"]}
TABLE["FlowMatchHeunDiscreteScheduler"] = {
    "num_train_timesteps": [1000, 1000, 400],
    "shift": [1.0, 3.0],
    "step.s_churn": [0.0, 0.0, 1.0, 40.0],
    "step.s_tmin": [0.0, 0.3],
    "step.s_tmax": [float("inf"), 0.9],
    "step.s_noise": [1.0, 1.007],
}
TABLE["HeunDiscreteScheduler"] = (
    {key: values for key, values in _SCHEDULE.items() if key != "rescale_betas_zero_snr"}
    | _CLIP
    | {
        "beta_schedule": ["linear", "scaled_linear", "squaredcos_cap_v2", "exp"],
        "prediction_type": ["epsilon", "sample", "v_prediction"],
        "use_karras_sigmas": [False, True],
        "use_exponential_sigmas": [False, False, True],
        "use_beta_sigmas": [False, False, True],
    }
)
TABLE["KDPM2DiscreteScheduler"] = TABLE["KDPM2AncestralDiscreteScheduler"] = {
    key: values for key, values in TABLE["HeunDiscreteScheduler"].items() if key not in _CLIP
} | {
    "beta_schedule": _SCHEDULE["beta_schedule"],
    "prediction_type": ["epsilon", "v_prediction"],  # "sample" is not implemented there
}
TABLE["LMSDiscreteScheduler"] = TABLE["KDPM2DiscreteScheduler"] | {
    "prediction_type": ["epsilon", "sample", "v_prediction"],
    "step.order": [4, 4, 1, 3],
}
TABLE["EDMEulerScheduler"] = {
    "sigma_min": [0.002, 0.02],
    "sigma_max": [80.0, 20.0],
    "sigma_data": [0.5, 1.2],
    "sigma_schedule": ["karras", "exponential"],
    "num_train_timesteps": [1000, 400],
    "prediction_type": ["epsilon", "v_prediction"],
    "rho": [7.0, 5.0],
    "final_sigmas_type": ["zero", "sigma_min"],
    "step.s_churn": [0.0, 0.0, 5.0, 40.0],
    "step.s_tmin": [0.0, 0.3],
    "step.s_tmax": [float("inf"), 9.0],
    "step.s_noise": [1.0, 1.007],
}
TABLE["EDMDPMSolverMultistepScheduler"] = {
    **{k: v for k, v in TABLE["EDMEulerScheduler"].items() if not k.startswith("step.")},
    **_LIMITS,
    "solver_order": [1, 2, 3],
    "algorithm_type": ["dpmsolver++", "sde-dpmsolver++"],
    "solver_type": ["midpoint", "heun"],
    "lower_order_final": [True, False],
    "euler_at_final": [False, True],
}
TABLE["PNDMScheduler"] = {
    key: values for key, values in _SCHEDULE.items() if key != "rescale_betas_zero_snr"
} | {
    "skip_prk_steps": [True, False],
    "set_alpha_to_one": [True, False],
    "prediction_type": ["epsilon", "v_prediction"],
}
TABLE["SASolverScheduler"] = {
    key: values
    for key, values in TABLE["DEISMultistepScheduler"].items()
    if key not in ("solver_order", "solver_type", "use_dynamic_shifting", "time_shift_type")
} | {
    "predictor_order": [1, 2, 3],
    "corrector_order": [1, 2, 3],
    "tau_func": [None, none, ramp],
    "algorithm_type": ["data_prediction", "data_prediction", "noise_prediction"],
    "lambda_min_clipped": [-float("inf"), -5.1],
    "variance_type": [None],  # "learned" draws noise of another shape than the sample's there
}
SPACINGS = (
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "use_lu_lambdas",
    "use_flow_sigmas",
)


def accepted(name: str, c: dict[str, Any], steps: int) -> bool:
    """Does diffusers 0.42 run this configuration at all?"""
    if sum(bool(c.get(flag)) for flag in SPACINGS) > 1:
        return False
    betas = c.get("trained_betas") is not None
    if betas and c["num_train_timesteps"] != len(_BETAS):
        return False
    if c.get("rescale_betas_zero_snr") and betas:
        return False
    if c["num_train_timesteps"] < 8 * steps:  # no level twice
        return False
    if name in ("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"):
        if not c["algorithm_type"].endswith("++"):
            if c["final_sigmas_type"] == "zero" or c["prediction_type"] == "flow_prediction":
                return False
            if c["algorithm_type"] == "sde-dpmsolver" and c["solver_order"] == 3:
                return False  # UnboundLocalError in diffusers
            if c["thresholding"] and name == "DPMSolverSinglestepScheduler":
                return False  # takes alpha of all timesteps at once
        if c["use_flow_sigmas"] and c.get("rescale_betas_zero_snr"):
            return False  # one meaning for "the last level" is enough
    if name == "EDMDPMSolverMultistepScheduler" and c["solver_order"] == 3:
        return c["algorithm_type"] == "dpmsolver++"  # else UnboundLocalError in diffusers
    if name == "UniPCMultistepScheduler":
        if c["final_sigmas_type"] == "zero" and (
            c["solver_type"] == "bh1" or not c["lower_order_final"] or not c["predict_x0"]
        ):
            return False  # NaN in diffusers
        if c["prediction_type"] == "flow_prediction" and not c["predict_x0"]:
            return False
        if c["use_flow_sigmas"] and c["rescale_betas_zero_snr"]:
            return False
        if c["use_flow_sigmas"] and c["thresholding"] and c["prediction_type"] == "epsilon":
            return False  # alpha = 1e-6: (x - s e) / a is rounding, and its quantile, too
        if c["shift_terminal"] is not None and not c["use_flow_sigmas"]:
            return False
    if name == "SASolverScheduler" and c["algorithm_type"] == "noise_prediction":
        if c["beta_schedule"] == "squaredcos_cap_v2" and not betas:
            return False  # x / alpha of 1e-3 and less: what is left of float32 is rounding
        return not c["thresholding"] and c["prediction_type"] != "flow_prediction"
    if name == "EulerDiscreteScheduler" and not any(c[f] for f in SPACINGS[:3]):
        return c["sigma_min"] is None and c["sigma_max"] is None  # they have no effect
    return True


def draw(name: str, steps: int, seed: int) -> Case:
    """Case number `seed`: each option at random, until diffusers accepts them together."""
    rng = random.Random(f"{name} {steps} {seed}")
    while True:
        picked = {key: rng.choice(values) for key, values in TABLE[name].items()}
        if not accepted(name, picked, steps):
            continue
        call = {k.removeprefix("step."): v for k, v in picked.items() if k.startswith("step.")}
        config = {k: v for k, v in picked.items() if not k.startswith("step.")}
        grid = {"mu": rng.choice([0.4, 1.1])} if config.get("use_dynamic_shifting") else {}
        if name == "UniPCMultistepScheduler" and config["use_flow_sigmas"] and rng.random() < 0.5:
            # of the classes with betas the one whose sigmas of a flow diffusers takes, too
            grid["sigmas"] = np.linspace(rng.choice([1.0, 0.9]), 1 / steps, steps)
        told = rng.random() < 0.5
        begin = rng.choice([0, 0, 0, steps // 3])
        kind = "one" if call.get("variance_noise") else rng.choice(["one", "list", "global"])
        case = Case(name, config, steps, call, grid, (begin, told), kind, seed)
        s = case.levels
        if hasattr(s, "sigmas") and len(s.sigmas) <= len(s.timesteps):
            continue  # diffusers makes more timesteps than noise levels and runs over the end
        times = s.timesteps[:: s.order].tolist()  # of whole steps
        if len(set(times)) == len(times) or not hasattr(s, "set_begin_index"):
            return case
        # Without set_begin_index diffusers takes the second of two equal timesteps, a wrong level.
        return replace(case, begin=(begin, True))
