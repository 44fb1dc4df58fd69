"""The recursions of five schedulers in float64, written from the papers' integrals.

Each function yields (next sample, prediction of x_0) for every step, for the same noise levels,
model and random numbers as a scheduler's own run.  Nothing here is shared with fastdiff: weights of
multistep methods are Gauss-Legendre sums of the defining integrals.  What diffusers does otherwise
than the papers is a keyword (`second`, `sde_sign`, `stride`), so the same code is the reference of
both numerics: the defaults are diffusers'.

    model(x, i)  output of the network for the sample x of step i          float64
    draw(dtype)  unit normal numbers, as the scheduler would have drawn    float64
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

Model = Callable[[Tensor, int], Tensor]
Draw = Callable[[], Tensor]
Steps = Iterator[tuple[Tensor, Tensor | None]]

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)
_U, _W = (_NODES + 1) / 2, _WEIGHTS / 2


def moment(k: int, z: float) -> float:
    """int_0^1 e^{(1 - u) z} u^k du: the weight of u^k on a step of length z."""
    return float(_W @ (np.exp((1 - _U) * z) * _U**k))


def root(value: float) -> float:
    """Square root: 0 of what is 0 but for rounding, NaN below (as tensors have it)."""
    return math.sqrt(max(value, 0.0)) if value >= -1e-6 else math.nan


def threshold(x0: Tensor, config: Any) -> Tensor:
    """Dynamic thresholding, arXiv:2205.11487 section 2.3, with diffusers' upper limit."""
    flat = x0.reshape(len(x0), -1).abs()
    s = torch.quantile(flat, config.dynamic_thresholding_ratio, dim=1)
    s = s.clamp(1, config.sample_max_value).reshape(-1, *[1] * (x0.dim() - 1))
    return torch.minimum(torch.maximum(x0, -s), s) / s


def _as_data(c: Any, x: Tensor, out: Tensor, a: float, b: float, ratio: float) -> Tensor:
    if c.prediction_type == "epsilon":
        x0 = (x - b * out) / a
    elif c.prediction_type == "sample":
        x0 = out
    elif c.prediction_type == "v_prediction":
        x0 = a * x - b * out
    else:
        x0 = x - ratio * out
    return threshold(x0, c) if c.thresholding else x0


def _as_noise(c: Any, x: Tensor, out: Tensor, a: float, b: float) -> Tensor:
    noise = out
    if c.prediction_type == "sample":
        noise = (x - a * out) / b
    elif c.prediction_type == "v_prediction":
        noise = a * out + b * x
    if c.thresholding:
        noise = (x - a * threshold((x - b * noise) / a, c)) / b
    return noise


def dpm_solver(
    s: Any, model: Model, x: Tensor, draw: Draw, *, begin: int = 0, second=1.0, sde_sign=-1.0
) -> Steps:
    """DPM-Solver(++) 1-3, arXiv:2206.00927, 2211.01095.  second: 2 is third order, diffusers has 1;
    sde_sign: of the 1/2 in the weight of the second difference with noise, +1 is right."""
    c, n = s.config, len(s.timesteps)
    sh = s.sigmas.double().tolist()
    data, sde = c.algorithm_type.endswith("++"), c.algorithm_type.startswith("sde")
    eta = 1.0 if sde else 0.0

    def level(i: int) -> tuple[float, float, float]:
        a = 1 - sh[i] if c.use_flow_sigmas else 1 / math.sqrt(1 + sh[i] ** 2)
        b = sh[i] if c.use_flow_sigmas else sh[i] * a
        return a, b, math.inf if b == 0 else math.log(a / b)

    past: list[Tensor] = []
    for done, i in enumerate(range(begin, n)):
        (a, b, lam), (a1, b1, lam1) = level(i), level(i + 1)
        out = model(x, i)
        if c.variance_type in ("learned", "learned_range") and c.prediction_type == "epsilon":
            out = out[:, :3]
        keep = _as_data(c, x, out, a, b, sh[i]) if data else _as_noise(c, x, out, a, b)
        past = [keep, *past][: c.solver_order]
        z = draw() if sde else None

        few, last = c.lower_order_final and n < 15, i == n - 1
        order = min(c.solver_order, done + 1)
        if last and (c.euler_at_final or few or c.final_sigmas_type == "zero"):
            order = 1
        elif few and i == n - 2:
            order = min(order, 2)

        h = lam1 - lam
        if b1 == 0:
            x = a1 * keep
        elif h != 0:
            sign, scale = (-1.0, a1) if data else (1.0, -b1)
            length = (1 + eta) * h  # of the exponent's integral
            m = [h * moment(k, sign * (length if data else h)) for k in range(3)]
            value, slope = (1 + eta) * scale * m[0], (1 + eta) * scale * m[1]
            bend = (1 + eta) * scale * m[2] * second / 2
            if data and sde:  # 1/2 with the wrong sign is one whole a' less
                bend += a1 * (sde_sign - 1) / 2
            if order == 2 and c.solver_type == "midpoint":
                slope = value / 2
            change = value * past[0]
            if order > 1:
                h0 = lam - level(i - 1)[2]
                d1 = (past[0] - past[1]) * (h / h0) if h0 else 0 * past[0]
                if order > 2:
                    h1 = level(i - 1)[2] - level(i - 2)[2]
                    d1_old = (past[1] - past[2]) * (h / h1)
                    bend_by = (d1 - d1_old) * (h / (h0 + h1))
                    change = change + bend * bend_by
                    d1 = d1 + (h0 / h) * bend_by
                change = change + slope * d1
            keepx = b1 / b * math.exp(-eta * h) if data else a1 / a
            x = keepx * x + change
            if sde:
                x = x + b1 * root(-math.expm1(-2 * h) if data else math.expm1(2 * h)) * z
        yield x, keep


def _x0_and_noise(kind: str, x: Tensor, out: Tensor, a: float, b: float) -> tuple[Tensor, Tensor]:
    """Prediction of x_0 and of the noise at x = a x_0 + b n, for the DDPM family."""
    if kind == "epsilon":
        return (x - b * out) / torch.tensor(a, dtype=x.dtype), out
    if kind == "sample":
        return out, (x - a * out) / b
    return a * x - b * out, a * out + b * x


def _limit(x0: Tensor, c: Any) -> Tensor:
    if c.thresholding:
        return threshold(x0, c)
    return x0.clamp(-c.clip_sample_range, c.clip_sample_range) if c.clip_sample else x0


def ddim(
    s: Any,
    model: Model,
    x: Tensor,
    draw: Draw,
    *,
    begin: int = 0,
    eta: float = 0.0,
    use_clipped_model_output: bool = False,
    stride: bool = True,
) -> Steps:
    """arXiv:2010.02502, eq. 12 and 16.  stride: the level after t is that of t - T // n, as in
    diffusers, else that of the next timestep of the grid."""
    c, abar = s.config, s.alphas_cumprod.double().tolist()
    grid = [*s.timesteps.tolist(), -1]
    for i in range(begin, len(s.timesteps)):
        t = grid[i]
        then = t - c.num_train_timesteps // s.num_inference_steps if stride else grid[i + 1]
        p, p1 = abar[t], abar[then] if then >= 0 else float(s.final_alpha_cumprod)
        a, b = math.sqrt(p), math.sqrt(1 - p)
        x0, noise = _x0_and_noise(c.prediction_type, x, model(x, i), a, b)
        x0 = _limit(x0, c)
        if use_clipped_model_output:
            noise = (x - a * x0) / b
        variance = eta**2 * (1 - p1) / (1 - p) * (1 - p / p1)
        x = math.sqrt(p1) * x0 + root(1 - p1 - variance) * noise
        if eta > 0:
            x = x + root(variance) * draw()
        yield x, x0


def ddpm(s: Any, model: Model, x: Tensor, draw: Draw, *, begin: int = 0) -> Steps:
    """arXiv:2006.11239, eq. 7; learned variances: arXiv:2102.09672, eq. 15."""
    c, abar = s.config, s.alphas_cumprod.double().tolist()
    grid = [*s.timesteps.tolist(), -1]
    for i in range(begin, len(s.timesteps)):
        t, then = grid[i], grid[i + 1]
        p, p1 = abar[t], abar[then] if then >= 0 else 1.0
        out, extra = model(x, i), None
        if out.shape[1] == 2 * x.shape[1] and c.variance_type in ("learned", "learned_range"):
            out, extra = out.chunk(2, dim=1)
        x0, _ = _x0_and_noise(c.prediction_type, x, out, math.sqrt(p), math.sqrt(1 - p))
        x0 = _limit(x0, c)
        beta = 1 - p / p1
        x = (
            math.sqrt(p1) * beta / (1 - p) * x0
            + root(p / p1) * (1 - p1) / (1 - p) * x
        )  # fmt: skip
        if t > 0:
            small = max((1 - p1) / (1 - p) * beta, 1e-20)
            if c.variance_type in ("fixed_small", "fixed_small_log"):
                spread = math.sqrt(small)
            elif c.variance_type == "fixed_large":
                spread = math.sqrt(beta)
            elif c.variance_type == "fixed_large_log":
                spread = root(math.log(beta))  # diffusers': never a number
            elif c.variance_type == "learned":
                spread = extra.sqrt()
            else:
                between = (extra + 1) / 2
                spread = torch.exp((between * math.log(beta) + (1 - between) * math.log(small)) / 2)
            x = x + spread * draw()
        yield x, x0


def euler(
    s: Any,
    model: Model,
    x: Tensor,
    draw: Draw,
    *,
    begin: int = 0,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Steps:
    """arXiv:2206.00364, algorithm 2 without its second half; the churn comes after the network."""
    kind, sh = s.config.prediction_type, s.sigmas.double().tolist()
    for i in range(begin, len(s.timesteps)):
        now, to = sh[i], sh[i + 1]
        out = model(x, i)
        gamma = min(s_churn / (len(sh) - 1), math.sqrt(2) - 1) if s_tmin <= now <= s_tmax else 0
        hat = now * (1 + gamma)
        if gamma > 0:
            x = x + s_noise * math.sqrt(hat**2 - now**2) * draw()
        if kind == "epsilon":
            x0 = x - hat * out
        elif kind == "v_prediction":
            x0 = x / (now**2 + 1) - now / math.sqrt(now**2 + 1) * out
        else:
            x0 = out
        x = x + (to - hat) / hat * (x - x0)
        yield x, x0


def euler_ancestral(s: Any, model: Model, x: Tensor, draw: Draw, *, begin: int = 0) -> Steps:
    """Euler to sigma_down, then noise of sigma_up; their squares add up to the next level's."""
    sh = s.sigmas.double().tolist()
    for i in range(begin, len(s.timesteps)):
        now, to = sh[i], sh[i + 1]
        out = model(x, i)
        if s.config.prediction_type == "epsilon":
            x0 = x - now * out
        else:
            x0 = x / (now**2 + 1) - now / math.sqrt(now**2 + 1) * out
        up = to / now * root(now**2 - to**2)
        down = to**2 / now  # sqrt(to^2 - up^2)
        x = x + (down - now) / now * (x - x0) + up * draw()
        yield x, x0


RECURSION = {
    "DPMSolverMultistepScheduler": dpm_solver,
    "DDIMScheduler": ddim,
    "EulerDiscreteScheduler": euler,
    "EulerAncestralDiscreteScheduler": euler_ancestral,
    "DDPMScheduler": ddpm,
}
