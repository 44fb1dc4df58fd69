"""What the exponential multistep drop-ins share: DPM-Solver, DPM-Solver++ and DEIS.

History lives in stock's `model_outputs` (newest last) and `lower_order_nums`, read back every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from fastdiff.predictions import Conversion
from fastdiff.schedulers.custom import (
    as_many,
    descending,
    exact_timesteps,
    one_run,
    run_ends,
    vector,
)
from fastdiff.schedulers.flow_levels import (
    check_mu,
    flow_levels,
    in_a_flow,
    respaced,
    upright,
)
from fastdiff.schedulers.fused import Entry, FusedStep, Place, within
from fastdiff.schedulers.operands import promote
from fastdiff.solvers.dpmpp import dpmpp
from fastdiff.solvers.row import NOISE, Grid, Row, Weights
from fastdiff.table import conversion, encode, noise_from_data, trimmed


def latest(grid: Grid, i: int, k: int, **options: Any) -> Weights:
    """What a row of `dpmpp` makes the next sample of."""
    return trimmed(dpmpp(grid, i, k, **options).next)


class Multistep(FusedStep):
    """Mixed into a diffusers scheduler class whose steps are rows of `dpmpp`."""

    sigmas: Tensor
    alphas_cumprod: Tensor
    config: Any
    model_outputs: list[Any]
    lower_order_nums: int
    _sigma_to_t: Callable[..., Any]
    _noise_by_data = False  # the noise is what is left of x without the prediction of x_0
    # of a row: (grid, i, second half of the place, **options)
    _weights: Callable[..., Weights] = staticmethod(latest)

    def _options(self, config: dict[str, Any]) -> dict[str, Any]:
        """Options of `_weights` for a config."""
        raise NotImplementedError

    def _stock_timesteps(self, steps: int | None, mu: float | None, timesteps: Any) -> None:
        """diffusers' own set_timesteps, on the host."""
        raise NotImplementedError

    def _set_run(
        self,
        num_inference_steps: int | None,
        device: str | torch.device | None,
        mu: float | None,
        timesteps: ArrayLike | Tensor | None,
        sigmas: ArrayLike | Tensor | None,
    ) -> None:
        one_run(num_inference_steps, timesteps, sigmas)
        config, steps = self.config, num_inference_steps
        shift, flow = config.flow_shift, config.use_flow_sigmas
        mu = check_mu(config, mu)
        if flow:
            upright(config)
        if sigmas is not None:
            self._set_sigmas(vector("sigmas", sigmas), steps, mu)
        elif timesteps is not None:
            self._set_times(vector("timesteps", timesteps), steps)
        elif flow and respaced(config):  # diffusers takes the levels of the betas there: NaN
            assert steps is not None
            trained = 1 / config.num_train_timesteps
            self._set_sigmas(np.linspace(1 - trained, 0, steps + 1)[:-1], None, mu)
        else:
            assert steps is not None
            self._shifted_timesteps(steps, mu)
            if self.numerics == "exact":
                if flow:  # in diffusers that of the betas, of DEIS the last level again
                    body = self.sigmas[:-1].double().numpy()
                    self.sigmas[-1] = self._last_of_flow(body)
                self.timesteps = exact_timesteps(self)
        if self.numerics == "exact":
            config.flow_shift = shift  # mu is for this run only
        self._place_timesteps(device)

    def _shifted_timesteps(self, steps: int, mu: float | None) -> None:
        """diffusers' own, which knows mu if it dynamically shifts a flow, and exponentially."""
        config = self.config
        if mu is None or not config.use_dynamic_shifting:
            self._stock_timesteps(steps, None, None)
        elif config.time_shift_type == "exponential":
            self._stock_timesteps(steps, mu, None)
        else:
            shift, config.flow_shift = config.flow_shift, mu
            try:
                self._stock_timesteps(steps, None, None)
            finally:
                config.flow_shift = shift

    def _set_times(self, times: NDArray[np.float64], steps: int | None) -> None:
        """Custom timesteps: diffusers' own where it has a way from them to the levels."""
        descending("timesteps", times)
        trained, flow = self.config.num_train_timesteps, self.config.use_flow_sigmas
        as_many(steps, "timesteps", len(times))
        if flow:
            levels = in_a_flow("timesteps", times / trained, times)
            self._set_levels(levels, self._last_of_flow(levels))
        elif times[0] >= trained:  # fractions are cut off, as diffusers does
            raise ValueError(
                f"timesteps must be below num_train_timesteps, {trained}; got {times.tolist()}"
            )
        else:
            self._stock_timesteps(None, None, times)

    def _set_sigmas(self, sigmas: NDArray[np.float64], steps: int | None, mu: float | None) -> None:
        descending("sigmas", sigmas)
        flow = self.config.use_flow_sigmas
        if run_ends(sigmas, steps):
            if flow:
                in_a_flow("sigmas", sigmas, sigmas)
            self._set_levels(sigmas[:-1], float(sigmas[-1]))
        elif flow:
            levels = flow_levels(self.config, sigmas, mu)
            self._set_levels(levels, self._last_of_flow(levels))
        else:
            least = self.alphas_cumprod[0]
            last = float(((1 - least) / least) ** 0.5)  # or where sigmas already are below
            last = 0.0 if self._ends_at_zero() else min(last, float(sigmas[-1]))
            self._set_levels(sigmas, last)

    def _set_levels(self, body: NDArray[np.float64], last: float) -> None:
        """A run over these levels (N,), then to the last one."""
        config = self.config
        self.sigmas = torch.from_numpy(np.append(body, last).astype(np.float32))
        if config.use_flow_sigmas:  # as diffusers' flow classes, which tell the network fractions
            times = torch.from_numpy((body * config.num_train_timesteps).astype(np.float32))
        else:
            levels = np.asarray(((1 - self.alphas_cumprod) / self.alphas_cumprod) ** 0.5)
            whole = self._sigma_to_t(body, np.log(levels)).round()
            times = torch.from_numpy(whole.astype(np.int64))
        self.timesteps = times
        self._restart(len(body))

    def _restart(self, steps: int) -> None:
        """Before a run on custom sigmas, as set_timesteps of diffusers leaves it."""
        self.num_inference_steps = steps
        self.model_outputs = [None] * self.config.solver_order
        self.lower_order_nums = 0
        self._step_index = self._begin_index = None

    def _last_of_flow(self, levels: NDArray[np.float64]) -> float:
        """The level that a flow ends at."""
        if self._ends_at_zero():
            return 0.0
        return min(1.0 / int(self.config.num_train_timesteps), float(levels[-1]))

    def _ends_at_zero(self) -> bool:
        """Whether a run ends without noise; a flow does where the class has no option for it."""
        final = self.config.get("final_sigmas_type")
        return bool(self.config.use_flow_sigmas) if final is None else bool(final == "zero")

    def _builder(self) -> Callable[[Place], Entry]:
        config, sigmas = self._config, self._levels()
        if config["use_flow_sigmas"]:
            grid = Grid(1 - sigmas, sigmas)
        else:
            alpha = 1 / np.sqrt(1 + sigmas**2)
            grid = Grid(alpha, sigmas * alpha)
        options, by_data, weights = self._options(config), self._noise_by_data, self._weights
        data, sde = options["predict"] == "data", options.get("eta", 0.0) > 0
        prediction, thresholding = config["prediction_type"], config["thresholding"]

        def build(place: Any) -> Entry:
            i, k = place
            within(i, sigmas)
            move = weights(grid, i, k, **options)
            # "++" keeps x_0, which the op returns anyway
            row = Row(move, () if data else (NOISE,))
            a, s = float(grid.alpha[i]), float(grid.sigma[i])
            # with flow_prediction diffusers takes the entry of sigmas as it is, for DEIS here, too
            left = float(sigmas[i]) if by_data and prediction == "flow_prediction" else s
            if thresholding:  # the noise follows from the thresholded x_0
                row = noise_from_data(row, a, left)
            if prediction == "flow_prediction":  # diffusers takes the entry of sigmas as it is
                numbers = Conversion(1.0, -float(sigmas[i]), 1.0, 1.0 - float(sigmas[i]))
            else:
                numbers = conversion(prediction, grid, i, 1.0, None)
            if by_data:
                qx, qe = (1 - a * numbers.kx) / left, -a * numbers.ke / left
                numbers = numbers._replace(qx=qx, qe=qe)
            elif not data and prediction != "flow_prediction":
                # x_0, for its threshold, comes from the noise
                kx, ke = (1 - s * numbers.qx) / a, -s * numbers.qe / a
                numbers = numbers._replace(kx=kx, ke=ke)
            return Entry(encode(row, numbers), draw=sde, reads=len(row.next.h))

        return build

    def _ahead(self, place: Any) -> Iterable[Place]:
        i, k = place
        top = self.config.solver_order - 1
        return [(j, min(k + j - i, top)) for j in range(i, len(self.sigmas) - 1)]

    def _unknown_timestep(self, timestep: Any) -> int:
        return len(self.timesteps) - 1  # as diffusers

    def _drawn(
        self, model_output: Tensor, sample: Tensor, generator: torch.Generator | None, i: int
    ) -> Any:
        """Fresh noise of step i."""
        return self._draw(model_output, generator, torch.float32, i)

    def _multistep(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | None,
        variance_noise: Tensor | None,
    ) -> Tensor:
        if self.num_inference_steps is None:
            raise ValueError("step needs timesteps; call set_timesteps first")
        if self._step_index is None:
            self._init_step_index(timestep)
        state, rows = self._ready()
        learned, data, from_output, order, threshold = state.facts
        if learned and model_output.shape[1] == 2 * sample.shape[1]:
            model_output = model_output[:, : sample.shape[1]]  # the rest is the learned variance
        i: int = self._step_index  # type: ignore[assignment]
        done = self.lower_order_nums
        past: list[Any] = self.model_outputs
        place = (i, done if done < order else order - 1)
        entry = rows[place]
        noise = None
        if entry.draw:
            if variance_noise is None:
                noise = self._drawn(model_output, sample, generator, i)
            else:
                noise = variance_noise.to(model_output.device, torch.float32)
        # diffusers converts first: x' has the dtype of what it keeps
        dtype = promote(sample, model_output)
        if from_output:
            dtype = model_output.dtype
        reads = entry.reads
        history = past[: -1 - reads : -1] if reads else ()
        # before the update, so that the memory of the oldest is there for the new one: 3 large
        # buffers in turn instead of 2 cost 20 % of a step at 8x4x128x128
        for j in range(1, order):
            past[j - 1] = past[j]
        keeps = 0 if data else 1
        try:
            prev, x0, kept = self._apply(
                rows,
                place,
                entry,
                sample,
                model_output,
                history,
                noise,
                dtype,
                dtype,
                keeps,
                threshold,
            )
        except Exception:
            # a refused step must change nothing; the oldest, which no step reads any more, is gone
            past[1:order] = past[: order - 1]
            raise
        past[-1] = x0 if data else kept[0]
        if done < order:
            self.lower_order_nums = done + 1
        self._step_index = i + 1
        return prev


__all__ = ["Multistep"]
