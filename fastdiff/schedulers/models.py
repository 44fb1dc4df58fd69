"""Which kind of model a scheduler's config is of, and which solvers run it.

flow      a velocity along x = (1 - s) x_0 + s n (SD3, Flux, Wan, ..)
edm       EDM's preconditioning on x = x_0 + sigma n (Playground v2.5, ..)
trigflow  a velocity on a circle (Sana-Sprint)
betas     any other that has betas (SD, SDXL, ..)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastdiff.schedulers.flow_levels import is_flow

OTHER = ("FlowMatch", "EDM", "SCM", "IPNDM")  # IPNDM has levels of its own, in times 1 .. 0
OF_BETAS = ("epsilon", "sample", "v_prediction")


def kind_of(config: Mapping[str, Any]) -> str:
    """flow, edm, trigflow or betas; "" where a config says nothing of it."""
    prediction = config.get("prediction_type")
    if prediction == "trigflow":
        return "trigflow"
    if prediction == "flow_prediction" or config.get("use_flow_sigmas"):
        return "flow"
    if is_flow(config) and config.get("use_flow_sigmas", True):
        return "flow"
    if "beta_start" in config:
        return "betas"
    return "edm" if "sigma_data" in config else ""


def runs(kind: str, name: str, known: set[str], levels: bool) -> bool:
    """Whether a class has the levels of a kind of model.

    name    of the class, known its options
    levels  whether it has what flow matching pipelines ask for (scale_noise, mu), or the config has
            flow_shift, so that its pipeline does without
    """
    if kind == "flow":
        return levels and ("use_flow_sigmas" in known or name.startswith("FlowMatch"))
    if kind == "edm":
        return name.startswith("EDM")
    if kind == "trigflow":
        return name == "SCMScheduler"
    return kind != "betas" or not name.startswith(OTHER)


def of_betas(prediction: str) -> str:
    """The prediction type for a class with the levels of betas; ValueError if it knows none such.

    "original_sample" is Euler's other word for "sample".
    """
    known = "sample" if prediction == "original_sample" else prediction
    if known not in OF_BETAS:
        raise ValueError(
            f"prediction_type must be one of {', '.join(OF_BETAS)} here, on levels of betas; got "
            f"{prediction!r}. For a flow take FlowMatchEulerDiscreteScheduler, or one that has "
            "use_flow_sigmas (DPMSolverMultistepScheduler, UniPCMultistepScheduler, ..)"
        )
    return known


__all__ = ["kind_of", "of_betas", "runs"]
