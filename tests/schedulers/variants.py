"""Configurations whose loops test_state.py edits: (class, options)."""

from .classes import (
    DDIM,
    DDPM,
    DEIS,
    DPM,
    EULER,
    EULER_A,
    FLOW_EULER,
    FLOW_HEUN,
    FLOW_LCM,
    HEUN,
    KDPM2,
    KDPM2_A,
    LCM,
    LMS,
    PNDM,
    SA,
    TCD,
    UNIPC,
    WITH_HISTORY,
    WITH_SIGMAS,
)

VARIANTS = [
    (DPM, {"solver_order": 3}),
    (DPM, {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}),
    (DPM, {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}),
    (EULER, {"prediction_type": "v_prediction"}),
    (EULER_A, {}),
    (DEIS, {"solver_order": 3}),
    (HEUN, {"prediction_type": "v_prediction"}),
    (HEUN, {"use_karras_sigmas": True, "clip_sample": True}),
    (KDPM2, {"prediction_type": "v_prediction"}),
    (LMS, {}),
    (LMS, {"use_karras_sigmas": True, "prediction_type": "v_prediction"}),
    (KDPM2_A, {"use_karras_sigmas": True}),
    (SA, {"predictor_order": 3, "corrector_order": 3}),
    (SA, {"algorithm_type": "noise_prediction", "use_karras_sigmas": True}),
    (LCM, {"prediction_type": "v_prediction"}),
    (TCD, {}),
    (FLOW_EULER, {"shift": 3.0}),
    (FLOW_LCM, {}),
    (FLOW_HEUN, {"shift": 3.0}),
    (FLOW_EULER, {"stochastic_sampling": True}),
    (UNIPC, {"solver_order": 3}),
    (UNIPC, {"predict_x0": False, "final_sigmas_type": "sigma_min"}),
    (UNIPC, {"use_karras_sigmas": True, "disable_corrector": [2], "lower_order_final": True}),
]
SCALED = [one for one in VARIANTS if one[0] in WITH_SIGMAS]
KEEPING = [one for one in VARIANTS if one[0] in WITH_HISTORY]
BY_TIMESTEP = [(DDIM, {"clip_sample": False}), (DDPM, {})]
BY_TIMESTEP += [(PNDM, {}), (PNDM, {"skip_prk_steps": False, "prediction_type": "v_prediction"})]
