"""A loop of your own: a plan, a function that denoises, no pipeline and no network.

    python examples/own_loop.py [--solver dpmpp_2m] [--steps 20] [--points 2000]

The data are eight points on a circle.  The perfect network for them is known: with x = a x_0 + s n,

    E[x_0 | x] = sum_j p_j c_j,   p = softmax(-|x - a c_j|^2 / (2 s^2)),   noise = (x - a x_0) / s

so what the solver does is all that can go wrong, and few steps put every sample on a point.
"""

import argparse
import math

import torch
from torch import Tensor

import fastdiff

ANGLES = torch.arange(8) * (2 * math.pi / 8)
CENTRES = torch.stack([ANGLES.cos(), ANGLES.sin()], dim=1)


def perfect_network(schedule: fastdiff.NoiseSchedule):
    """epsilon(x, t) for x (B, 2) and a model time t, as a trained network would return it."""

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (float(v) for v in schedule.alpha_sigma(schedule.ratio_at(float(t))))
        x = x.double()  # near the data, sigma is small and the exponent large
        distance = (x[:, None] - alpha * CENTRES.double()).square().sum(-1)
        x0 = torch.softmax(-distance / (2 * sigma**2), dim=1) @ CENTRES.double()
        return ((x - alpha * x0) / sigma).float()

    return denoise


def main(argv: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--solver", default="dpmpp_2m", help="a name of the registry")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--points", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)

    schedule = fastdiff.NoiseSchedule.named("scaled_linear")
    plan = fastdiff.plan(options.solver, steps=options.steps, noise=schedule, spacing="karras")
    generator = torch.Generator().manual_seed(options.seed)
    noise = torch.randn(options.points, 2, generator=generator)
    x = fastdiff.sample(perfect_network(schedule), noise, plan, generator=generator)

    nearest = (x[:, None] - CENTRES).norm(dim=-1).min(dim=1)
    error = nearest.values.mean().item()
    shares = torch.bincount(nearest.indices, minlength=len(CENTRES)) / len(x)
    print(f"{options.solver}, {options.steps} steps, {options.points} points")
    print(f"mean distance to the nearest data point: {error:.2e}")
    print(f"share of each point (0.125 each in the data): {[round(v, 3) for v in shares.tolist()]}")
    return error


if __name__ == "__main__":
    main()
