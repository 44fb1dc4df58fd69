"""SASolverScheduler of diffusers; predictor, corrector and noise are one fused step.

tau is asked for where diffusers asks, at the timestep of a step and, for its correction, at that of
the step before; a row depends on the two values.  On a device all that are left of a run are asked
for at its first step, for one upload: tau_func must give the same number whenever it is asked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from numpy.typing import ArrayLike
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
from fastdiff.schedulers.flow_levels import in_a_flow, respaced
from fastdiff.schedulers.fused import Entry, FusedStep, Place, within
from fastdiff.schedulers.operands import promote
from fastdiff.schedulers.timestep import host_value, view_index
from fastdiff.solvers.row import Grid, Row, Weights
from fastdiff.solvers.sa import orders_of, sa_solver
from fastdiff.table import OFF, Clip, conversion, encode, noise_from_data

LEARNED = ("learned", "learned_range")


class SASolverScheduler(FusedStep, diffusers.SASolverScheduler):  # type: ignore[misc]
    """Drop-in for diffusers.SASolverScheduler; arXiv:2309.05019.

    Configuration, attributes and dtypes as there.  `tau_func` gets a timestep on the host.
    """

    _reads = (
        "predictor_order",
        "corrector_order",
        "prediction_type",
        "lower_order_final",
        "use_flow_sigmas",
        "thresholding",
        "dynamic_thresholding_ratio",
        "sample_max_value",
        "variance_type",
    )
    sigmas: Tensor
    alphas_cumprod: Tensor
    config: Any
    last_noise: Tensor
    last_sample: Tensor | None
    lower_order_nums: int
    model_outputs: list[Any]
    timestep_list: list[Any]
    predict_x0: bool
    tau_func: Callable[[Any], Any]
    this_corrector_order: int
    this_predictor_order: int
    _noise_in_memory = True  # last_noise

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: a lambda of diffusers' constructor cannot be pickled."""
        state = dict(self.__dict__)
        if getattr(state.get("tau_func"), "__qualname__", "").startswith(_CONSTRUCTOR):
            state["tau_func"] = usual_tau
        return state

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        *,
        timesteps: ArrayLike | Tensor | None = None,
        sigmas: ArrayLike | Tensor | None = None,
        mu: float | None = None,
    ) -> None:
        """Set the timesteps of a run; as diffusers, plus custom ones.

        timesteps  (N,) descending whole numbers
        sigmas     (N,) or (N + 1,) descending sigma / alpha, the last one final (the least trained
                   one if left out); with use_flow_sigmas sigma itself, N of them shifted by
                   flow_shift, then 0
        mu         refused: the shift of a flow is config.flow_shift
        """
        one_run(num_inference_steps, timesteps, sigmas)
        if mu is not None:
            raise ValueError(
                f"mu must be None: SASolverScheduler shifts by config.flow_shift alone; got {mu}"
            )
        if sigmas is not None or timesteps is not None:
            self._set_own(num_inference_steps, sigmas, timesteps)
        else:
            if self.config.use_flow_sigmas and (name := respaced(self.config)):
                raise ValueError(
                    f"use_{name}_sigmas of the config must be False with use_flow_sigmas=True: "
                    "SASolverScheduler knows those levels of a beta schedule alone; got True. "
                    "DPMSolverMultistepScheduler has them of a flow"
                )
            super().set_timesteps(num_inference_steps)
            if self.numerics == "exact":
                if self.config.use_flow_sigmas:
                    self.sigmas[-1] = 0.0  # in diffusers the last level again
                self.timesteps = exact_timesteps(self)
        self._place_timesteps(device)

    def _set_own(self, steps: int | None, sigmas: Any, timesteps: Any) -> None:
        """Custom sigmas or timesteps."""
        name, given = ("sigmas", sigmas) if timesteps is None else ("timesteps", timesteps)
        values, config = vector(name, given), self.config
        descending(name, values)
        ends = name == "sigmas" and run_ends(values, steps)
        if name == "timesteps":
            as_many(steps, name, len(values))
        trained, flow = config.num_train_timesteps, config.use_flow_sigmas
        if name == "timesteps" and (values[0] > trained or (values[0] == trained and not flow)):
            raise ValueError(
                f"timesteps must be {'at most' if flow else 'below'} num_train_timesteps, "
                f"{trained}; got {values[0]:g}"
            )
        if name == "sigmas" and flow:
            in_a_flow(name, values, values)
        levels = np.asarray(((1 - self.alphas_cumprod) / self.alphas_cumprod) ** 0.5)
        if name == "timesteps":
            body = values / trained if flow else np.interp(values, np.arange(len(levels)), levels)
        else:
            body = values[:-1] if ends else values
            if flow and not ends:
                body = config.flow_shift * body / (1 + (config.flow_shift - 1) * body)
        least = 0.0 if flow else min(float(levels[0]), float(body[-1]))
        times = values
        if name == "sigmas":
            times = body * trained if flow else self._sigma_to_t(body, np.log(levels))
        super().set_timesteps(len(body))
        run = np.append(body, values[-1] if ends else least)
        self.sigmas = torch.from_numpy(run.astype(np.float32))
        whole = self.numerics == "faithful" or not flow
        exact = times.astype(np.float32)
        self.timesteps = torch.from_numpy(times.round().astype(np.int64) if whole else exact)
        self.num_inference_steps = len(body)

    def _builder(self) -> Callable[[Place], Entry]:
        config, sigmas = self._config, self._levels()
        if config["use_flow_sigmas"]:
            grid = Grid(1 - sigmas, sigmas)
        else:
            alpha = 1 / np.sqrt(1 + sigmas**2)
            grid = Grid(alpha, sigmas * alpha)
        prediction = config["prediction_type"]

        def build(place: Any) -> Entry:
            i, use, corrected, tau, before, data = place
            within(i, sigmas)
            row = sa_solver(
                grid,
                i,
                use - 1,
                predictor_order=use,
                corrector_order=max(corrected, 1),
                tau=tau,
                tau_before=before,
                predict="data" if data else "noise",
                use=use,
                corrected=corrected,
            )
            # the data prediction is x_0, which the op returns anyway; without a correction the
            # step begins with the sample itself; the noise is kept as it was drawn
            keep = (() if data else row.keep[:1]) + (row.keep[1:2] if corrected else ())
            reads = max(use, corrected) - 1 + (1 + int(before != 0) if corrected else 0)
            row = Row(_cut(row.next, reads), tuple(_cut(w, reads) for w in keep))
            if config["thresholding"]:
                row = noise_from_data(row, float(grid.alpha[i]), float(grid.sigma[i]))
            if prediction == "flow_prediction":  # diffusers takes the entry of sigmas as it is
                numbers = Conversion(1.0, -float(sigmas[i]), 1.0, 1.0 - float(sigmas[i]))
            else:
                numbers = conversion(prediction, grid, i, 1.0, None)
            clip = OFF
            if prediction == "epsilon" and not config["thresholding"]:
                # (x - s e) / a, in this order: kx and ke, each rounded, would lose 6e-8 / a
                clip = Clip(gain=numbers.kx)
                numbers = numbers._replace(kx=1.0, ke=numbers.ke / numbers.kx)
            return Entry(encode(row, numbers, clip=clip), draw=True, reads=reads)

        return build

    def _facts(self, config: dict[str, Any]) -> Any:
        bounds = (config["dynamic_thresholding_ratio"], config["sample_max_value"])
        return (
            (config["predictor_order"], config["corrector_order"]),
            config["prediction_type"],
            bounds if config["thresholding"] else None,
            config["lower_order_final"],
            config["variance_type"] in LEARNED and config["prediction_type"] == "epsilon",
        )

    def _ahead(self, place: Any) -> Iterable[Place]:
        i, use, _, tau, _, data = place
        orders, *_, final, _ = self._state.facts
        times, n = self._timestep_values(), len(self.timesteps)
        places = [place]
        corrected = orders_of(i, n, self.lower_order_nums, orders, final)[1]
        for j in range(i + 1, min(len(self.sigmas) - 1, n)):
            before, tau = tau, self._tau(torch.tensor(times[j], dtype=self.timesteps.dtype))
            use, after = orders_of(j, n, self.lower_order_nums + j - i, orders, final)
            places.append((j, use, corrected, tau, before, data))
            corrected = after
        return places

    def _unknown_timestep(self, timestep: Any) -> int:
        return len(self.timesteps) - 1  # as diffusers

    def _tau(self, timestep: Any) -> float:
        """tau_func at a timestep, which it gets on the host: nothing waits for a device."""
        if isinstance(timestep, Tensor) and timestep.device.type != "cpu":
            index = view_index(self.timesteps, timestep)
            if index is None:
                self._state.counts["timesteps looked up by value"] += 1
            values = self._timestep_values()
            value = host_value(timestep) if index is None else values[index]
            timestep = torch.tensor(value, dtype=timestep.dtype)
        tau = self.tau_func(timestep)
        try:
            value = float(tau)
        except (TypeError, ValueError) as error:
            raise ValueError(f"tau_func must return a number; got {tau!r}") from error
        if not math.isfinite(value):
            raise ValueError(f"tau_func must return a finite number; got {value}")
        return value

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """One step, (B, *shape) -> (B, *shape): corrected and predicted in one pass over memory."""
        if self.num_inference_steps is None:
            raise ValueError("step needs timesteps; call set_timesteps first")
        if self._step_index is None:
            self._init_step_index(timestep)
        state, rows = self._ready()
        orders, prediction, threshold, final, learned = state.facts
        wide = promote(sample, model_output)
        if learned and model_output.shape[1] == 2 * sample.shape[1]:
            model_output = model_output[:, : sample.shape[1]]  # the rest is the learned variance
        i: int = self._step_index  # type: ignore[assignment]
        last, past, k, data = (
            self.last_sample,
            self.model_outputs,
            self.lower_order_nums,
            self.predict_x0,
        )
        corrects = i > 0 and last is not None
        corrected = self.this_corrector_order if corrects else 0
        before = self._tau(self.timestep_list[-1]) if corrects else 0.0
        known = state.timesteps is self.timesteps  # the length of a list is found faster
        use, after = orders_of(
            i, len(state.values) if known else len(self.timesteps), k, orders, final
        )
        tau = self._tau(timestep)
        place = (i, use, corrected, tau, before, data)
        entry = rows[place]
        noise = self._draw(model_output, generator, None, i)
        reads = max(use, corrected) - 1
        history = [*past[: -1 - reads : -1]] if reads else []
        if corrects:
            history += [last, self.last_noise][: 1 + (before != 0)]
        keeps = (0 if data else 1) + (1 if corrects else 0)
        out = last.dtype if isinstance(last, Tensor) and corrects else sample.dtype
        prev, x0, kept = self._apply(
            rows, place, entry, sample, model_output, history, noise if tau else None, out, wide,
            keeps, threshold,
        )  # fmt: skip
        made = x0 if data else kept[0]
        if wide is not model_output.dtype and prediction == ("sample" if data else "epsilon"):
            made = made.to(model_output.dtype)  # diffusers keeps the output itself
        for j in range(max(orders[0], orders[1] - 1) - 1):
            past[j] = past[j + 1]
            self.timestep_list[j] = self.timestep_list[j + 1]
        past[-1], self.timestep_list[-1] = made, timestep
        begun = kept[-1] if corrects else sample
        self.last_sample = begun if begun.dtype is out else begun.to(out)
        self.last_noise = noise
        self.this_predictor_order, self.this_corrector_order = use, after
        if k < max(orders[0], orders[1] - 1):
            self.lower_order_nums = k + 1
        self._step_index = i + 1
        return SchedulerOutput(prev_sample=prev) if return_dict else (prev,)


def usual_tau(timestep: Any) -> int:
    """diffusers' default: noise in the middle of the trained times, none at their ends."""
    return 1 if 200 <= timestep <= 800 else 0


def _cut(w: Weights, reads: int) -> Weights:
    return Weights(w.x, w.d, w.n, w.z, w.h[:reads])


_CONSTRUCTOR = f"{diffusers.SASolverScheduler.__init__.__qualname__}.<locals>"

__all__ = ["SASolverScheduler"]
