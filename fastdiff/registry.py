"""The one list of solvers: names, what they cost, what they keep, and what else they are called.

Command line, error messages, documentation and `fastdiff.sampler` are printed from it.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from fastdiff.schedules.spacing import SPACINGS
from fastdiff.solvers.adams import adams
from fastdiff.solvers.consistency import consistency
from fastdiff.solvers.ddim import ddim
from fastdiff.solvers.ddpm import ddpm
from fastdiff.solvers.dpmpp import dpmpp
from fastdiff.solvers.euler import euler, euler_ancestral
from fastdiff.solvers.heun import heun, repeated, straight
from fastdiff.solvers.kdpm2 import kdpm2, middles
from fastdiff.solvers.plms import plms, second_twice
from fastdiff.solvers.sa import sa_solver
from fastdiff.solvers.singlestep import singlestep
from fastdiff.solvers.solver import Solver
from fastdiff.solvers.tcd import inner, tcd
from fastdiff.solvers.unipc import unipc

_DPM = "DPMSolverMultistepScheduler"
_EDM = "EDMDPMSolverMultistepScheduler"
_FINAL = {"lower_order_final": True, "euler_at_final": False}
_TYPE = {"solver_type": "midpoint", **_FINAL}
_SDE = {"eta": 1.0, "s_noise": 1.0}
_DATA = {"algorithm_type": "dpmsolver++"}
_NOISE = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}
_SDEPP = {"algorithm_type": "sde-dpmsolver++"}


def _dpm(name: str, order: int, config: Mapping[str, Any], *aliases: str, **more: Any) -> Solver:
    """A member of the DPM family; order 3 as shipped converges at order 2 (quirks)."""
    sde, predict = "sde" in name, "noise" if "dpmsolver" in name else "data"
    options = {**(_TYPE if order == 2 else _FINAL), **(_SDE if sde else {})}
    faithful: dict[str, Any] = {"d2_scale": 1.0} if order == 3 else {}
    if order == 3 and sde and predict == "data":
        faithful["sde3_offset"] = -1.0
    return Solver(
        name,
        dpmpp,
        # a cold first step of order 1 caps what the later ones can reach
        order=min(order, 2),
        noise=sde,
        depths=(order - 1,) if order > 1 else (),
        preset={"order": order, "predict": predict, **more},
        options=options,
        faithful=faithful,
        scheduler=(_DPM, {"solver_order": order, **config}),
        also=((_EDM, {"solver_order": order, **config}),) if predict == "data" else (),
        aliases=aliases,
    )


def _single(order: int, config: Mapping[str, Any], *aliases: str) -> Solver:
    """DPM-Solver in cycles of `order` rows, each a call of the network."""
    sde, noise = config is _SDEPP, config is _NOISE
    name = f"{'dpmsolver' if noise else 'dpmpp'}_{order}s{'_sde' if sde else ''}"
    return Solver(
        name,
        singlestep,
        order=order,
        noise=sde,
        depths=(order - 1, 1),
        preset={"order": order, "predict": "noise" if noise else "data"},
        options={"solver_type": "midpoint", "lower_order_final": True, **(_SDE if sde else {})},
        faithful={"sde3_offset": -1.0} if sde and order == 3 else {},
        scheduler=("DPMSolverSinglestepScheduler", {"solver_order": order, **config}),
        aliases=aliases,
    )


def _deis(order: int, *aliases: str) -> Solver:
    """DEIS in log(rho): DPM-Solver with the integrals of its polynomial taken whole."""
    return Solver(
        f"deis_{order}",
        dpmpp,
        order=min(order, 2),
        depths=(order - 1,) if order > 1 else (),
        preset={"order": order, "predict": "noise", "solver_type": "heun"},
        options={"lower_order_final": True},
        scheduler=("DEISMultistepScheduler", {"solver_order": order}),
        aliases=aliases,
    )


def _unipc(order: int, *aliases: str) -> Solver:
    """UniPC-p, corrected: of order p + 1, but a cold start leaves h^3 of its first step."""
    return Solver(
        f"unipc_{order}",
        unipc,
        order=min(order + 1, 3),
        depths=(order, 1),
        preset={"order": order},
        options={"solver_type": "bh2", "lower_order_final": True},
        scheduler=("UniPCMultistepScheduler", {"solver_order": order}),
        aliases=aliases,
    )


def _sa(name: str, order: int, claimed: int, *aliases: str) -> Solver:
    """SA-Solver, predictor and corrector of one order."""
    return Solver(
        name,
        sa_solver,
        order=claimed,
        noise=True,
        depths=(order - 1, 1, 1),
        preset={"predictor_order": order, "corrector_order": order},
        options={"tau": 1.0, "s_noise": 1.0, "lower_order_final": True},
        scheduler=(
            "SASolverScheduler",
            {
                "algorithm_type": "data_prediction",
                "predictor_order": order,
                "corrector_order": order,
            },
        ),
        aliases=aliases,
    )


_ROWS = (
    Solver(
        "ddim", ddim, 1, options={"eta": 0.0}, scheduler=("DDIMScheduler", {}), aliases=("DDIM",)
    ),
    Solver(
        "ddpm",
        ddpm,
        1,
        noise=True,
        preset={"final_noise": False},
        options={"variance": "small"},
        scheduler=("DDPMScheduler", {}),
        aliases=("DDPM",),
    ),
    Solver(
        "euler",
        euler,
        1,
        state="ve",
        options={"s_churn": 0.0, "s_tmin": 0.0, "s_tmax": float("inf"), "s_noise": 1.0},
        scheduler=("EulerDiscreteScheduler", {}),
        also=(("EDMEulerScheduler", {}),),
        aliases=("Euler", "k_euler"),
    ),
    Solver(
        "euler_a",
        euler_ancestral,
        1,
        noise=True,
        state="ve",
        options={"eta": 1.0, "s_noise": 1.0},
        scheduler=("EulerAncestralDiscreteScheduler", {}),
        aliases=("euler_ancestral", "Euler a", "k_euler_a"),
    ),
    Solver(
        "heun",
        heun,
        2,
        depths=(1, 1),
        evaluations=2,
        points=repeated,
        state="ve",
        scheduler=("HeunDiscreteScheduler", {}),
        aliases=("Heun", "k_heun"),
    ),
    Solver(
        "kdpm2",
        kdpm2,
        2,
        depths=(1,),
        evaluations=2,
        points=middles,
        state="ve",
        scheduler=("KDPM2DiscreteScheduler", {}),
        aliases=("dpm_2", "DPM2", "k_dpm_2"),
    ),
    Solver(
        "kdpm2_a",
        kdpm2,
        2,
        noise=True,
        depths=(1,),
        evaluations=2,
        points=middles,
        state="ve",
        options={"eta": 1.0, "s_noise": 1.0},
        scheduler=("KDPM2AncestralDiscreteScheduler", {}),
        aliases=("dpm_2_ancestral", "DPM2 a", "k_dpm_2_a"),
    ),
    _dpm("dpmpp_1", 1, _DATA),
    _dpm("dpmpp_2m", 2, _DATA, "DPM++ 2M", "k_dpmpp_2m"),
    _dpm("dpmpp_3m", 3, _DATA, "DPM++ 3M"),
    _dpm("dpmpp_sde_1", 1, _SDEPP),
    _dpm("dpmpp_2m_sde", 2, _SDEPP, "DPM++ 2M SDE", "k_dpmpp_2m_sde"),
    _dpm("dpmpp_3m_sde", 3, _SDEPP, "DPM++ 3M SDE", "k_dpmpp_3m_sde"),
    _dpm("dpmsolver_1", 1, _NOISE),
    _dpm("dpmsolver_2m", 2, _NOISE, "DPM-Solver 2M"),
    _dpm("dpmsolver_3m", 3, _NOISE, "DPM-Solver 3M"),
    _dpm("dpmsolver_sde_1", 1, {**_NOISE, "algorithm_type": "sde-dpmsolver"}),
    _dpm("dpmsolver_2m_sde", 2, {**_NOISE, "algorithm_type": "sde-dpmsolver"}),
    _single(2, _DATA, "DPM++ 2S"),
    _single(3, _DATA, "DPM++ 3S"),
    _single(2, _SDEPP, "DPM++ 2S SDE"),
    _single(3, _SDEPP, "DPM++ 3S SDE"),
    _single(2, _NOISE, "DPM-Solver 2S"),
    _single(3, _NOISE, "DPM-Solver 3S"),
    _unipc(1),
    _unipc(2, "unipc", "UniPC", "uni_pc_bh2"),
    _unipc(3),
    _sa("sa_solver", 2, 2, "SA-Solver", "SA-Solver 2"),
    _sa("sa_solver_3", 3, 3, "SA-Solver 3"),
    _deis(1),
    _deis(2, "DEIS", "deis"),
    _deis(3),
    Solver(
        "lms",
        adams,
        2,
        depths=(3,),
        state="ve",
        preset={"order": 4, "steps": "exact"},
        scheduler=("LMSDiscreteScheduler", {}),
        aliases=("LMS", "k_lms"),
    ),
    Solver(
        "ipndm",
        adams,
        2,
        depths=(3,),
        state="ve",
        preset={"order": 4, "steps": "equal"},
        scheduler=("IPNDMScheduler", {}),
        aliases=("iPNDM",),
    ),
    # on the levels as they are it is LMS, whose class runs it
    Solver(
        "ipndm_v",
        adams,
        2,
        depths=(3,),
        state="ve",
        preset={"order": 4, "steps": "exact"},
        scheduler=("LMSDiscreteScheduler", {}),
        aliases=("iPNDM-v",),
    ),
    Solver(
        "plms",
        plms,
        2,
        depths=(3, 1),
        first=2,
        points=second_twice,
        scheduler=("PNDMScheduler", {"skip_prk_steps": True}),
        aliases=("PLMS", "PNDM"),
    ),
    Solver(
        "lcm",
        consistency,
        1,
        noise=True,
        options={"s_noise": 1.0},
        scheduler=("LCMScheduler", {}),
        aliases=("LCM",),
    ),
    Solver(
        "tcd",
        tcd,
        1,
        noise=True,
        inner=inner,
        options={"eta": 0.3},
        scheduler=("TCDScheduler", {}),
        aliases=("TCD",),
    ),
    # on a circle of angles, whose network predicts v: consistency sampling, as lcm
    Solver(
        "scm",
        consistency,
        1,
        noise=True,
        scheduler=("SCMScheduler", {}),
        aliases=("SCM", "sCM", "trigflow"),
    ),
    # Euler in sigma along the velocity of a flow is DDIM's row there
    Solver(
        "flow_euler",
        ddim,
        1,
        preset={"eta": 0.0},
        scheduler=("FlowMatchEulerDiscreteScheduler", {}),
        aliases=("FlowMatchEuler",),
    ),
    Solver(
        "flow_heun",
        straight,
        2,
        depths=(1, 1),
        evaluations=2,
        points=repeated,
        scheduler=("FlowMatchHeunDiscreteScheduler", {}),
        aliases=("FlowMatchHeun",),
    ),
    Solver(
        "flow_lcm",
        consistency,
        1,
        noise=True,
        scheduler=("FlowMatchLCMScheduler", {}),
        aliases=("FlowMatchLCM",),
    ),
)
SOLVERS: Mapping[str, Solver] = {row.name: row for row in _ROWS}


def _folded(name: str) -> str:
    return name.lower().replace("-", "_").replace(" ", "_")


_BY_NAME = {_folded(n): row for row in _ROWS for n in (row.name, *row.aliases)}
_USUAL = {"solver_order": 2, "algorithm_type": "dpmsolver++", "predictor_order": 2}


def _usual(solver: Solver) -> bool:
    """Whether it is what its class in diffusers does by default."""
    config = {"algorithm_type": None} if solver.name.startswith("sa_") else {}
    config = {**solver.scheduler[1], **config}
    return all(config.get(option) in (None, value) for option, value in _USUAL.items())


# a class of diffusers stands for what it does by default; the first row that is so
for _row in reversed(_ROWS):
    if _usual(_row):
        _BY_NAME |= {_folded(name): _row for name, _ in (_row.scheduler, *_row.also)}


def near(name: str) -> tuple[str, ...]:
    """Up to three names of solvers that look like this one, the nearest first."""
    wanted = _folded(name)
    close = difflib.get_close_matches(wanted, _BY_NAME, n=9)
    holds = [known for known in _BY_NAME if len(wanted) > 1 and wanted in known]
    return tuple(dict.fromkeys(_BY_NAME[known].name for known in (*close, *holds)))[:3]


def find(name: str, *, argument: str = "solver") -> Solver:
    """The solver of that name or alias, in any case, with blanks, dashes or underscores; the class
    of diffusers that it replaces will do, for what that does by default.

    argument: what the caller's user knows the name as, for the ValueError.
    """
    solver = _BY_NAME.get(_folded(name)) if isinstance(name, str) else None
    if solver is None:
        *first, last = [f"'{close}'" for close in near(str(name))] or [""]
        guess = f"{', '.join(first)} or {last}" if first else last
        hint = f" Did you mean {guess}?" if guess else ""
        head, _, spacing = _folded(str(name)).rpartition("_")
        if head in _BY_NAME and spacing in SPACINGS:  # as A1111 once named them
            hint = f" Did you mean {_BY_NAME[head].name!r} with spacing={spacing!r}?"
        raise ValueError(f"{argument} must be one of {', '.join(SOLVERS)}; got {name!r}.{hint}")
    return solver


__all__ = ["SOLVERS", "Solver", "find", "near"]
