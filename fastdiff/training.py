"""What training a diffusion model needs besides a network: four small things.

    process = ForwardProcess("scaled_linear", "v_prediction")
    t = process.times(len(x0), generator)
    out = network(process.noisy(x0, n, t), t, drop(text, empty, 0.1, generator))
    error = (out - process.target(x0, n, t)).square().flatten(1).mean(1)
    (process.weight("min_snr", t) * error).mean().backward()
    optimizer.step()
    average.update()

`ForwardProcess` is the noise, the target and the loss weight; `drop` leaves out conditions, for
classifier-free guidance; `Average` is the exponential moving average (EMA) of the weights;
`boundary` and `pseudo_huber` are what consistency models add.  `fastdiff.shapes` is trained with
them, examples/train_on_a_folder.py is a whole run.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fastdiff.predictions import PREDICTIONS
from fastdiff.schedules import NoiseSchedule

WEIGHTS = ("uniform", "sample", "epsilon", "min_snr", "truncated_snr", "snr_plus_one")


class ForwardProcess:
    """From data x_0 to noise n, as a network is trained on it.

        x_t = alpha_t x_0 + sigma_t n

    noise       a fastdiff.NoiseSchedule, or the name of one, as in fastdiff.plan: linear,
                scaled_linear, squaredcos_cap_v2, flow
    prediction  what the network returns: epsilon, sample, v_prediction, flow_prediction

    Times t are a tensor (B,).  Of a variance preserving schedule they are whole, 0 .. T - 1; of a
    flow any numbers in 0 .. T, as sigma = t / T.  Data and noise are (B, ...), of any floating
    dtype, in which the results are; levels are computed in float64 and rounded once.

    Raises ValueError for names that are not known, for flow_prediction on a schedule that is not
    a flow and v_prediction on one that is, and for times of another dtype or shape.
    """

    def __init__(
        self, noise: str | NoiseSchedule = "scaled_linear", prediction: str = "epsilon"
    ) -> None:
        schedule = noise if isinstance(noise, NoiseSchedule) else NoiseSchedule.named(noise)
        if prediction not in PREDICTIONS:
            raise ValueError(
                f"prediction must be one of {', '.join(PREDICTIONS)}; got {prediction!r}"
            )
        refused = "v_prediction" if schedule.kind == "flow" else "flow_prediction"
        if prediction == refused:
            others = ", ".join(p for p in PREDICTIONS if p != refused)
            raise ValueError(
                f"prediction {prediction!r} is not defined on a {schedule.kind} schedule; "
                f"there {others} would do"
            )
        self.schedule, self.prediction = schedule, prediction
        bar = torch.from_numpy(schedule.alphas_cumprod.copy())
        self._alpha, self._sigma = bar.sqrt(), (1 - bar).sqrt()

    def times(
        self, count: int, generator: torch.Generator | None = None, low: int | Tensor = 0
    ) -> Tensor:
        """`count` times drawn evenly from low .. T - 1 (int64), of a flow from low .. T (float32),
        on the CPU.  `low` may differ from sample to sample, (count,)."""
        steps = self.schedule.train_steps
        share = torch.rand(count, generator=generator)
        t = low + (steps - low) * share
        return t if self.schedule.kind == "flow" else t.long().clamp(max=steps - 1)

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha_t, sigma_t), float64, shaped as t and on its device."""
        if t.ndim != 1:
            raise ValueError(f"t must be one time a sample, of shape (B,); got {tuple(t.shape)}")
        if self.schedule.kind == "flow":
            sigma = t.double() / self.schedule.train_steps
            return 1 - sigma, sigma
        if t.is_floating_point() or t.is_complex() or t.dtype == torch.bool:
            raise ValueError(
                f"t must be whole numbers 0 .. {self.schedule.train_steps - 1} (int64) on a "
                f"variance preserving schedule; got {t.dtype}"
            )
        if self._alpha.device != t.device:
            self._alpha, self._sigma = self._alpha.to(t.device), self._sigma.to(t.device)
        return self._alpha[t], self._sigma[t]

    def noisy(self, x0: Tensor, n: Tensor, t: Tensor) -> Tensor:
        """x_t = alpha_t x_0 + sigma_t n."""
        alpha, sigma = (_against(v, x0) for v in self.levels(t))
        return alpha * x0 + sigma * n

    def target(self, x0: Tensor, n: Tensor, t: Tensor) -> Tensor:
        """What a network without error returns.

            epsilon n      sample x_0      v_prediction alpha n - sigma x_0
            flow_prediction n - x_0

        Salimans & Ho 2022, arXiv:2202.00512 (v); Lipman et al. 2022, arXiv:2210.02747 (flow).
        """
        if self.prediction == "epsilon":
            return n
        if self.prediction == "sample":
            return x0
        if self.prediction == "flow_prediction":
            return n - x0
        alpha, sigma = (_against(v, x0) for v in self.levels(t))
        return alpha * n - sigma * x0

    def denoised(self, x: Tensor, out: Tensor, t: Tensor) -> Tensor:
        """The estimate of x_0 from x_t and the network's output: `target` solved for x_0.

            epsilon (x - sigma out) / alpha      v_prediction alpha x - sigma out
            sample  out                          flow_prediction x - sigma out

        Not finite for epsilon where alpha is 0.
        """
        if self.prediction == "sample":
            return out
        alpha, sigma = (_against(v, x) for v in self.levels(t))
        if self.prediction == "epsilon":
            return (x - sigma * out) / alpha
        return (x if self.prediction == "flow_prediction" else alpha * x) - sigma * out

    def noise_in(self, x: Tensor, out: Tensor, t: Tensor) -> Tensor:
        """The estimate of n from x_t and the network's output: `target` solved for n.

            epsilon out                          v_prediction sigma x + alpha out
            sample  (x - alpha out) / sigma      flow_prediction x + alpha out

        Not finite for sample where sigma is 0.
        """
        if self.prediction == "epsilon":
            return out
        alpha, sigma = (_against(v, x) for v in self.levels(t))
        if self.prediction == "sample":
            return (x - alpha * out) / sigma
        return (x if self.prediction == "flow_prediction" else sigma * x) + alpha * out

    def weight(self, kind: str, t: Tensor, gamma: float = 5.0) -> Tensor:
        """Weights (B,), float32, of the mean squared error of the network's output.

        An error of the output times |ke| is one of x_0 (x_0 = kx x + ke out), so a weight w of
        the error of x_0 is w ke^2 of that of the output.  With snr = (alpha / sigma)^2 they are

            uniform        1, on the output as it is
            sample         w = 1
            epsilon        w = snr, even in the noise
            min_snr        w = min(snr, gamma)      Hang et al. 2023, arXiv:2303.09556, eq. 8
            truncated_snr  w = max(snr, 1)          Salimans & Ho 2022, arXiv:2202.00512, sec. 4
            snr_plus_one   w = snr + 1, even in v   ibidem

        Infinite only where the output says nothing of x_0 (epsilon at alpha = 0) or of the noise
        (sample at sigma = 0).
        """
        if kind not in WEIGHTS:
            raise ValueError(f"kind must be one of {', '.join(WEIGHTS)}; got {kind!r}")
        if not gamma > 0:
            raise ValueError(f"gamma must be above 0; got {gamma!r}")
        alpha, sigma = self.levels(t)
        if kind == "uniform":
            return torch.ones_like(alpha).float()
        a2, s2, one = alpha**2, sigma**2, torch.ones_like(alpha)
        # snr ke^2 and ke^2, as the network's prediction has them: no 0 times infinity
        signal, noise = {"epsilon": (one, s2 / a2), "sample": (a2 / s2, one)}.get(
            self.prediction, (a2, s2)
        )
        weights = {
            "sample": noise,
            "epsilon": signal,
            "min_snr": torch.minimum(signal, gamma * noise),
            "truncated_snr": torch.maximum(signal, noise),
            "snr_plus_one": signal + noise,
        }
        return weights[kind].float()


def _against(values: Tensor, x: Tensor) -> Tensor:
    """(B,) in x's dtype, so that it multiplies x (B, ...)."""
    if len(values) != len(x):
        raise ValueError(f"t must hold one time a sample: {len(x)} of them; got {len(values)}")
    return values.to(x.dtype).view(-1, *(1,) * (x.ndim - 1))


def drop(
    condition: Tensor, empty: Tensor, share: float, generator: torch.Generator | None = None
) -> Tensor:
    """The conditions (B, ...) with about `share` of them replaced by the empty one.

    Each sample is decided on its own, by one number of the generator (on the CPU).  `empty` is
    (...) or (1, ...): the tokens of the empty prompt, or the number of its class.  Ho & Salimans
    2022, arXiv:2207.12598, algorithm 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie in 0 .. 1; got {share!r}")
    gone = torch.rand(len(condition), generator=generator) < share
    mask = gone.to(condition.device).view(-1, *(1,) * (condition.ndim - 1))
    return torch.where(mask, empty.to(condition), condition)


class Average:
    """The exponential moving average of parameters, beside them.

        a <- a + (1 - d_i) (p - a),   d_i = min(decay, (1 + i) / (10 + i)),   i = 0, 1, ..

    so that early weights are soon forgotten.  It holds tensors of its own, shaped, typed and
    strided as the parameters; i is `step`, which state_dict carries.
    """

    def __init__(self, parameters: Iterable[Tensor], decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in 0 .. 1, and below 1; got {decay!r}")
        self.decay, self.step = decay, 0
        self._parameters = list(parameters)
        self.values = [p.detach().clone() for p in self._parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the parameters as they are now."""
        share = 1 - min(self.decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.values, self._parameters, share)
        self.step += 1

    @torch.no_grad()
    def copy_to(self, parameters: Iterable[Tensor]) -> None:
        """Write the averages into parameters in the same order, such as those of a copy."""
        for p, value in zip(parameters, self.values, strict=True):
            p.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {"step": self.step, "values": self.values}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        for mine, value in zip(self.values, state["values"], strict=True):
            mine.copy_(value)
        self.step = int(state["step"])


def boundary(
    t: Tensor, *, timestep_scaling: float = 10.0, sigma_data: float = 0.5
) -> tuple[Tensor, Tensor]:
    """(c_skip, c_out), float64, shaped as t: a consistency model is c_skip x + c_out x_0(x, t).

        c_skip = d^2 / ((k t)^2 + d^2),  c_out = k t / ((k t)^2 + d^2)^(1/2)

    with k = timestep_scaling and d = sigma_data, so that at t = 0 it is x itself.  Luo et al.
    2023, arXiv:2310.04378, sec. 4.1; the defaults are LCMScheduler's.
    """
    scaled = t.double() * timestep_scaling
    total = scaled**2 + sigma_data**2
    return sigma_data**2 / total, scaled / total.sqrt()


def pseudo_huber(error: Tensor, c: float) -> Tensor:
    """(B, ...) to (B,): (mean error^2 + c^2)^(1/2) - c, square near 0 and linear far from it.

    Song & Dhariwal 2023, arXiv:2310.14189, eq. 7, on the root mean square in place of the norm.
    """
    if not c > 0:
        raise ValueError(f"c must be above 0; got {c!r}")
    return (error.square().flatten(1).mean(1) + c * c).sqrt() - c


__all__ = ["Average", "ForwardProcess", "boundary", "drop", "pseudo_huber"]
