"""What the registry says of a solver, and the menus elsewhere that its names come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastdiff.solvers.row import Floats, Row


@dataclass(frozen=True)
class Solver:
    """One row of the registry.

    row          (grid, i, k, **options) -> Row
    preset       options that make this name out of the function
    options      what a caller may set, with defaults
    depths       history depth of each kept vector
    order        order of convergence of the deterministic form, from a cold start
    noise        True if a run draws random numbers with the default options
    evaluations  calls of the network a step
    first        calls of the network in the first of several steps
    points       (levels, rows, **options) -> the rows' grid, where a step has two rows
    inner        (family, levels, **options) -> Grid.inner, where rows go by the model's time
    state        "vp": alpha^2 + sigma^2 = 1; "ve": x / alpha, as the diffusers class works
    faithful     parameters that reproduce what diffusers computes (see schedulers/quirks.py)
    scheduler    class of diffusers that it replaces, and that class's config for this name
    also         further classes that its rows run, as `scheduler`
    aliases      names elsewhere: ComfyUI and k-diffusion, A1111, or plain usage
    """

    name: str
    row: Callable[..., Row]
    order: int
    noise: bool = False
    depths: tuple[int, ...] = ()
    evaluations: int = 1
    first: int = 0
    points: Callable[..., Floats] | None = None
    inner: Callable[..., Floats] | None = None
    state: str = "vp"
    preset: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    faithful: Mapping[str, Any] = field(default_factory=dict)
    scheduler: tuple[str, Mapping[str, Any]] = ("", {})
    also: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    aliases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.first:
            object.__setattr__(self, "first", self.evaluations)

    def rows(self, steps: int) -> int:
        """Calls of the network, a row each, for that many steps to level 0; the last is one."""
        return 1 if steps == 1 else self.first + self.evaluations * (steps - 2) + 1

    def steps(self, rows: int) -> int:
        """Steps of that many rows, the last of two calls perhaps left out."""
        return 1 if rows == 1 else 2 - min(self.first + 1 - rows, 0) // self.evaluations

    def call(self, row: int) -> tuple[int, int]:
        """(step, which of its calls) of a row."""
        if row < self.first:
            return 0, row
        step, half = divmod(row - self.first, self.evaluations)
        return step + 1, half

    @property
    def at_zero(self) -> bool:
        """Whether the spacing "leading" has a call at time 0, as in the class of diffusers."""
        return self.scheduler[0] not in ABOVE_ZERO

    @property
    def comfyui(self) -> tuple[str, ...]:
        """Names in ComfyUI's menu, which are those of k-diffusion's functions, too."""
        return tuple(n for n in (self.name, *self.aliases) if n in COMFYUI)

    @property
    def a1111(self) -> tuple[str, ...]:
        """Names in A1111's menu, and its short ones."""
        return tuple(n for n in self.aliases if n in A1111 or n.startswith("k_"))

    @property
    def others(self) -> tuple[str, ...]:
        """Names that are in neither menu."""
        return tuple(n for n in self.aliases if n not in (*self.comfyui, *self.a1111))

    @property
    def draws(self) -> str:
        """When a run draws random numbers: "always", "never", or "eta > 0" and the like."""
        if self.noise:
            return "always"
        return next((f"{name} > 0" for name in ("eta", "s_churn") if name in self.options), "never")


# The menus, to tell whose name an alias is. Of ComfyUI without those that are another method there
# (.._cfg_pp; sa_solver of orders 3 and 4 with noise in the middle alone) or another source of noise
# (.._gpu).
COMFYUI = frozenset(
    (
        *("euler", "euler_ancestral", "heun", "heunpp2", "dpm_2", "dpm_2_ancestral", "lms"),
        *("dpm_fast", "dpm_adaptive", "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m"),
        *("dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde", "ddpm", "lcm", "ipndm", "ipndm_v"),
        *("deis", "res_multistep", "gradient_estimation", "er_sde", "seeds_2", "seeds_3"),
        *("sa_solver_pece", "ddim", "uni_pc", "uni_pc_bh2"),
    )
)
A1111 = frozenset(
    (
        *("DPM++ 2M", "DPM++ SDE", "DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 2S a"),
        *("DPM++ 3M SDE", "Euler a", "Euler", "LMS", "Heun", "DPM2", "DPM2 a", "DPM fast"),
        *("DPM adaptive", "Restart", "DDIM", "DDIM CFG++", "PLMS", "UniPC", "LCM"),
    )
)
ABOVE_ZERO = frozenset(  # classes whose timestep_spacing="leading" has no call at time 0
    (
        *("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "SASolverScheduler"),
        *("UniPCMultistepScheduler", "DEISMultistepScheduler"),
    )
)
