"""UniPCMultistepScheduler of diffusers; predictor and corrector are one fused step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
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
from fastdiff.schedulers.flow_levels import (
    FlowLevels,
    check_mu,
    flow_levels,
    in_a_flow,
    shift_of,
    upright,
)
from fastdiff.schedulers.fused import Entry, FusedStep, Place, within
from fastdiff.schedulers.native import native
from fastdiff.schedulers.operands import promote
from fastdiff.solvers.row import Grid, Row, Weights
from fastdiff.solvers.unipc import order_of, unipc
from fastdiff.table import OFF, Clip, conversion, encode, noise_from_data


class UniPCMultistepScheduler(FlowLevels, FusedStep, diffusers.UniPCMultistepScheduler):  # type: ignore[misc]
    """Drop-in for diffusers.UniPCMultistepScheduler; arXiv:2302.04867.

    Configuration, attributes and dtypes as there.  With solver_p, which is another scheduler,
    diffusers' own step runs.
    """

    _reads = (
        "solver_order",
        "solver_type",
        "prediction_type",
        "lower_order_final",
        "use_flow_sigmas",
        "thresholding",
        "dynamic_thresholding_ratio",
        "sample_max_value",
    )
    disable_corrector: list[int]
    last_sample: Tensor | None
    lower_order_nums: int
    model_outputs: list[Any]
    timestep_list: list[Any]
    predict_x0: bool
    this_order: int
    solver_p: Any

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: ArrayLike | Tensor | None = None,
        mu: float | None = None,
        *,
        timesteps: ArrayLike | Tensor | None = None,
    ) -> None:
        """Set the timesteps of a run; as diffusers, plus custom timesteps and sigmas.

        sigmas     (N,) or (N + 1,) descending noise levels: sigma / alpha, or sigma itself with
                   use_flow_sigmas, then shifted by flow_shift or mu if they are N
        mu         the shift, with use_dynamic_shifting; else without effect on a flow, as in
                   diffusers
        timesteps  (N,) descending whole numbers
        """
        one_run(num_inference_steps, timesteps, sigmas)
        config = self.config
        mu = check_mu(config, mu)
        if config.use_flow_sigmas:
            upright(config)
        if sigmas is None and timesteps is None:
            assert num_inference_steps is not None
            if config.use_dynamic_shifting and mu is None:
                shift_of(config, mu)  # which raises, as diffusers does: in words
            if self._respaced(given=False):
                least = 1 / config.num_train_timesteps
                ramp = np.linspace(1, least, num_inference_steps + 1)[:-1]
                self._set_own(None, ramp, mu, None)
            else:
                super().set_timesteps(num_inference_steps, None, None, mu)
        else:
            self._set_own(num_inference_steps, sigmas, mu, timesteps)
        if self.numerics == "exact" and timesteps is None:
            self.timesteps = exact_timesteps(self)
        self._place_timesteps(device)

    def _set_own(self, steps: int | None, sigmas: Any, mu: float | None, timesteps: Any) -> None:
        """Custom sigmas or timesteps: through diffusers where it knows them."""
        name, given = ("sigmas", sigmas) if timesteps is None else ("timesteps", timesteps)
        values, config = vector(name, given), self.config
        descending(name, values)
        ends = name == "sigmas" and run_ends(values, steps)
        if name == "timesteps":
            as_many(steps, name, len(values))
        trained, flow = config.num_train_timesteps, config.use_flow_sigmas
        if flow and name == "sigmas" and not ends:
            flow_levels(config, values, mu)  # errors in words, where diffusers has none
            if not self._respaced(given=True):
                super().set_timesteps(len(values), None, values, mu)
                return
        if name == "timesteps" and values[0] > trained - (not flow):
            most = "at most" if flow else "below"
            raise ValueError(
                f"timesteps must be {most} num_train_timesteps, {trained}; got {values[0]:g}"
            )
        levels = np.asarray(((1 - self.alphas_cumprod) / self.alphas_cumprod) ** 0.5)
        last = 0.0 if config.final_sigmas_type == "zero" else float(levels[0])
        if name == "timesteps":
            times = values
            body = values / trained if flow else np.interp(values, np.arange(len(levels)), levels)
        elif flow:
            body = in_a_flow(name, values, values)[:-1] if ends else flow_levels(config, values, mu)
            times = body * trained
        else:
            body = values[:-1] if ends else values
            times = self._sigma_to_t(body, np.log(levels))
        if ends:
            last = float(values[-1])
        elif flow and last:
            last = float(body[-1])  # as diffusers: the last step is none
        super().set_timesteps(len(body), None, None, mu if mu is not None else self._any_mu())
        self.sigmas = torch.from_numpy(np.append(body, last).astype(np.float32))
        self.timesteps = torch.from_numpy(times.round().astype(np.int64))

    def _respaced(self, given: bool) -> bool:
        """Whether a flow has a spacing that diffusers has not: it takes the levels of the betas,
        which gives NaN, or those given from clean to noisy."""
        config = self.config
        flags = config.use_exponential_sigmas or config.use_beta_sigmas
        return bool(config.use_flow_sigmas and (flags or (given and config.use_karras_sigmas)))

    def _any_mu(self) -> float | None:
        """With use_dynamic_shifting diffusers wants one even where nothing is shifted."""
        return 1.0 if self.config.use_dynamic_shifting else None

    def _builder(self) -> Callable[[Place], Entry]:
        config, sigmas = self._config, self._levels()
        if config["use_flow_sigmas"]:
            grid = Grid(1 - sigmas, sigmas)
        else:
            alpha = 1 / np.sqrt(1 + sigmas**2)
            grid = Grid(alpha, sigmas * alpha)
        order, prediction = config["solver_order"], config["prediction_type"]
        options = {"order": order, "solver_type": config["solver_type"]}

        def build(place: Any) -> Entry:
            i, use, corrected, data = place
            within(i, sigmas)
            predict = "data" if data else "noise"  # and the order is `use`, whatever the place
            rules = {"predict": predict, "lower_order_final": False, "corrected": corrected}
            row = unipc(grid, i, use - 1, **options, **rules)
            # the data prediction is x_0, which the op returns anyway; without a correction the
            # step begins with the sample itself
            keep = (() if data else row.keep[:1]) + (row.keep[1:] if corrected else ())
            row = _read(Row(row.next, keep), max(corrected, use - 1), bool(corrected))
            if config["thresholding"] and data:
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
            return Entry(encode(row, numbers, clip=clip), draw=False, reads=len(row.next.h))

        return build

    def _facts(self, config: dict[str, Any]) -> Any:
        bounds = (config["dynamic_thresholding_ratio"], config["sample_max_value"])
        return (
            config["solver_order"],
            config["prediction_type"],
            bounds if config["thresholding"] else None,
            config["lower_order_final"],
        )

    def _ahead(self, place: Any) -> Iterable[Place]:
        i, use, _, data = place
        order, *_, final = self._state.facts
        places = [place]
        for j in range(i + 1, len(self.sigmas) - 1):
            corrected = 0 if j - 1 in self.disable_corrector else use
            use = order_of(j, len(self.timesteps), self.lower_order_nums + j - i, order, final)
            places.append((j, use, corrected, data))
        return places

    def _unknown_timestep(self, timestep: Any) -> int:
        return len(self.timesteps) - 1  # as diffusers

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """One step, (B, *shape) -> (B, *shape): corrected and predicted in one pass over memory."""
        own = self.__dict__  # with order_of written out, 7 % of a step of a 1x4x64x64 latent
        if own["num_inference_steps"] is None:
            raise ValueError("step needs timesteps; call set_timesteps first")
        if own["solver_p"]:
            self._reference("solver_p is another scheduler", draws=True)
            stock: Any = super().step(model_output, timestep, sample, return_dict)
            return stock
        if own["_step_index"] is None:
            self._init_step_index(timestep)
        state, rows = self._ready()
        order, prediction, threshold, final = state.facts
        i: int = own["_step_index"]
        last: Tensor | None = own["last_sample"]
        past: list[Any] = own["model_outputs"]
        k: int = own["lower_order_nums"]
        data: bool = own["predict_x0"]
        corrects = i > 0 and last is not None and i - 1 not in own["disable_corrector"]
        corrected: int = own["this_order"] if corrects else 0
        known = state.timesteps is self.timesteps  # the length of a list is found faster
        n = len(state.values) if known else len(self.timesteps)
        use = k + 1 if k < order else order  # order_of, without the call
        if final and use > n - i:
            use = max(1, n - i)
        place = (i, use, corrected, data)
        entry = rows[place]
        wide = promote(sample, model_output)
        keeps, reads = 0 if data else 1, entry.reads
        if corrected:
            keeps += 1
            history = [*past[:-reads:-1], last]
        else:
            history = past[: -1 - reads : -1] if reads else []
        out = sample.dtype
        done = None
        if threshold is None:  # at once, without the call of _apply
            done = native(entry.pointer, sample, model_output, history, None, out, wide, keeps)
        if done is None:
            done = self._apply(
                rows, place, entry, sample, model_output, history, None, out, wide, keeps,
                threshold if data else None,
            )  # fmt: skip
        else:
            state.fused += 1
        prev, x0, kept = done
        made = x0 if data else kept[0]
        if wide is not model_output.dtype and prediction == ("sample" if data else "epsilon"):
            made = made.to(model_output.dtype)  # diffusers keeps the output itself
        times: list[Any] = own["timestep_list"]
        for j in range(1, order):
            past[j - 1], times[j - 1] = past[j], times[j]
        past[-1], times[-1] = made, timestep
        begun = kept[-1] if corrected else sample
        own["last_sample"] = begun if begun.dtype is out else begun.to(out)
        own["this_order"], own["_step_index"] = use, i + 1
        if k < order:
            own["lower_order_nums"] = k + 1
        return SchedulerOutput(prev_sample=prev) if return_dict else (prev,)


def _read(row: Row, depth: int, start: bool) -> Row:
    """The row with what it reads alone: the newest `depth` predictions, and where the last step
    began."""

    def cut(w: Weights) -> Weights:
        return replace(w, h=(*w.h[:depth], *(w.h[-1:] if start else ())))

    return Row(cut(row.next), tuple(map(cut, row.keep)), row.churn)


__all__ = ["UniPCMultistepScheduler"]
