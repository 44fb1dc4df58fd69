"""SCMScheduler of diffusers: continuous-time consistency on a circle, step and noise fused.

x_t = cos(t) x_0 + sin(t) sigma_d z,     t from pi / 2 to 0

d  = cos(t) x - sin(t) F                 what the network's output F says of x_0
x' = cos(t') d + sin(t') sigma_d z

A run of N steps has N + 1 timesteps: the last one, 0, is where it ends, not a call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.schedulers.scheduling_scm import SCMSchedulerOutput
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from fastdiff.predictions import convert
from fastdiff.schedulers.custom import descending, one_run, vector, without_shift
from fastdiff.schedulers.fused import Entry, FusedStep, Place, within
from fastdiff.schedulers.operands import promote
from fastdiff.solvers.consistency import consistency
from fastdiff.solvers.row import Grid
from fastdiff.table import encode

TOP = 1.571  # pi / 2, rounded up: diffusers begins at 1.5708


class SCMScheduler(FusedStep, diffusers.SCMScheduler):  # type: ignore[misc]
    """Drop-in for diffusers.SCMScheduler; arXiv:2410.11081 (sCM), as Sana-Sprint runs it.

    Configuration, attributes, random numbers and dtypes as there: noise is drawn on every step, in
    PyTorch's default dtype, also on the last one, where its weight is 0.
    """

    _source = "timesteps"
    _reads = ("prediction_type", "sigma_data")
    config: Any

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """The sample as it is; diffusers has none, pipelines that take any scheduler ask for it."""
        return sample

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        timesteps: ArrayLike | Tensor | None = None,
        device: str | torch.device | None = None,
        max_timesteps: float | None = 1.57080,
        intermediate_timesteps: float | None = 1.3,
        *,
        sigmas: ArrayLike | Tensor | None = None,
        mu: float | None = None,
    ) -> None:
        """Set the timesteps of a run; as diffusers, plus custom sigmas and other containers.

        timesteps               (N + 1,) descending angles up to pi / 2, with max_timesteps=None;
                                the last one, where the run ends, need not be 0
        max_timesteps           the first angle; the others are evenly spaced down to 0
        intermediate_timesteps  the second of two steps, at most max_timesteps; None for any
                                other number of steps
        sigmas                  (N,) descending sigma / alpha = tan(t); the run then ends at 0, and
                                max_timesteps and intermediate_timesteps have no effect
        mu                      refused: there is no flow schedule to shift
        """
        without_shift(self, mu)
        one_run(num_inference_steps, timesteps, sigmas)
        given = None
        if sigmas is not None:
            levels = vector("sigmas", sigmas)
            descending("sigmas", levels)
            if levels[0] == 0:
                raise ValueError(f"sigmas must begin above 0; got {levels.tolist()}")
            given = np.append(np.arctan(levels if levels[-1] > 0 else levels[:-1]), 0.0)
            max_timesteps = intermediate_timesteps = None
        elif timesteps is not None:
            given = vector("timesteps", timesteps)
            descending("timesteps", given)
            if given[0] > TOP:
                raise ValueError(
                    f"timesteps must be angles of at most {TOP}, pi / 2; got {given.tolist()}"
                )
            if max_timesteps is not None:
                raise ValueError(
                    "max_timesteps must be None where timesteps say where a run begins; got "
                    f"{max_timesteps!r}. Pass max_timesteps=None"
                )
        for name, angle in (
            ("max_timesteps", max_timesteps),
            ("intermediate_timesteps", intermediate_timesteps),
        ):
            _angle(name, angle)
        if given is not None:
            steps = len(given) - 1
            if steps < 1 or num_inference_steps not in (None, steps):
                raise ValueError(
                    f"{'timesteps' if sigmas is None else 'sigmas'} must be "
                    f"{'num_inference_steps + 1 long' if sigmas is None else 'one a step'}, "
                    f"at least one step; got {len(given)} angles with the last one, and "
                    f"num_inference_steps={num_inference_steps}"
                )
            num_inference_steps = steps
        elif max_timesteps is None:
            raise ValueError(
                "max_timesteps must be an angle where neither timesteps nor sigmas say where a run "
                "begins; got None"
            )
        assert num_inference_steps is not None
        self._fits(num_inference_steps, max_timesteps, intermediate_timesteps)
        own = None if given is None else torch.from_numpy(given)
        super().set_timesteps(num_inference_steps, own, None, max_timesteps, intermediate_timesteps)
        state, levels = self._state, self._levels()
        self._place_timesteps(device)
        moved = self.timesteps
        state.levels, state.levels_of = levels, moved
        state.version = None if moved.is_inference() else moved._version

    def _fits(self, steps: int, first: float | None, second: float | None) -> None:
        """Raise unless diffusers would make a run of these."""
        trained = self.config.num_train_timesteps
        if steps > trained:
            raise ValueError(
                f"num_inference_steps must be at most num_train_timesteps, {trained}; got {steps}"
            )
        if second is not None and steps != 2:
            raise ValueError(
                "intermediate_timesteps must be None unless num_inference_steps is 2; got "
                f"{second!r} and {steps} steps. Pass intermediate_timesteps=None"
            )
        if first is not None and second is not None and second > first:
            raise ValueError(
                f"intermediate_timesteps must be at most max_timesteps, {first!r}; got {second!r}"
            )

    def _facts(self, config: dict[str, Any]) -> Any:
        return None

    def _builder(self) -> Callable[[Place], Entry]:
        config, angles = self._config, self._levels()
        spread = float(config["sigma_data"])
        if config["prediction_type"] != "trigflow":
            raise ValueError(
                f"prediction_type must be 'trigflow'; got {config['prediction_type']!r}"
            )
        grid = _circle(angles)

        def build(place: Any) -> Entry:
            i = place
            within(i, angles)
            # of a circle F is what others call v: the derivative of x in t
            numbers = convert("v_prediction", float(grid.alpha[i]), float(grid.sigma[i]))
            row = consistency(grid, i, 0, s_noise=spread)
            return Entry(encode(row, numbers), draw=True, reads=0)

        return build

    def _ahead(self, place: Any) -> Iterable[Place]:
        return range(place, len(self.timesteps) - 1)

    def _index_of(self, timestep: Any) -> int | None:
        """Also of one timestep expanded over the batch, as Sana-Sprint's pipeline passes it."""
        if isinstance(timestep, Tensor) and timestep.dim() and not any(timestep.stride()):
            timestep = timestep[(0,) * timestep.dim()]
        return super()._index_of(timestep)

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> SCMSchedulerOutput | tuple[Tensor, Tensor]:
        """One step, (B, *shape) -> (B, *shape); as diffusers, in one pass over memory."""
        if self.num_inference_steps is None:
            raise ValueError("step needs timesteps; call set_timesteps first")
        dtype = promote(sample, model_output)  # both are tensors
        if self._step_index is None:
            self._init_step_index(timestep)
        _, rows = self._ready()
        i: int = self._step_index  # type: ignore[assignment]
        entry = rows[i]
        drawn = torch.get_default_dtype()  # what diffusers' call draws, whatever the network's is
        noise = self._draw(model_output, generator, drawn, i)
        prev, denoised, _ = self._apply(
            rows, i, entry, sample, model_output, (), noise,
            torch.promote_types(dtype, drawn), dtype,
        )  # fmt: skip
        self._step_index = i + 1
        if not return_dict:
            return prev, denoised
        return SCMSchedulerOutput(prev_sample=prev, pred_original_sample=denoised)


def _circle(angles: NDArray[np.float64]) -> Grid:
    """The levels of these angles; 1.5708, where diffusers begins, is 4e-6 beyond pi / 2."""
    return Grid(np.cos(angles), np.sin(angles))


def _angle(name: str, value: Any) -> None:
    """Raise unless an angle is None or a finite number above 0, up to pi / 2."""
    if value is None:
        return
    fine = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not fine or not 0 < value < math.inf:
        raise ValueError(f"{name} must be a finite number above 0, or None; got {value!r}")
    if value > TOP:
        raise ValueError(f"{name} must be an angle of at most {TOP}, pi / 2; got {value!r}")


__all__ = ["SCMScheduler"]
