"""philox_normal in PyTorch operators: the definition, to the bit, of what every kernel computes.

Integers are int64 with masks, floats are float32; every operation below is rounded on its own.
Formula and arguments: fastdiff/ops/philox_normal.py.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

STEP_STREAM = 1  # the stream that affine_step draws from

MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
ROOT_HALF = 0x3F3504F3  # the bits of sqrt(1/2) in float32
# Fitted by reweighted least squares to the smallest largest error, then rounded to float32:
LOG1P = (  # (ln(1 + t) - t) / t^2 for sqrt(1/2) <= 1 + t < sqrt(2): 3.0e-8 of ln(1 + t)
    0.087347515,
    -0.14307484,
    0.14917989,
    -0.16570514,
    0.19962071,
    -0.25001755,
    0.3333395,
    -0.4999999,
)
SINE = (-3.595451e-05, 0.002490007, -0.080745436, 0.7853982)  # sin(pi/4 y) / y by y^2: 3.1e-9
COSINE = (3.5313344e-06, -0.000325942, 0.015854327, -0.30842513, 1.0)  # cos(pi/4 y): 5.4e-11
LN_2 = 0.6931472


def philox_normal_ref(
    seeds: Tensor,
    shape: Sequence[int],
    step: Tensor | None,
    noise_step: int,
    stream: int,
    dtype: torch.dtype,
) -> Tensor:
    """z, (B, *shape): by operators that everything can record or wrap."""
    numel = 1
    for size in shape:
        numel *= size
    block = torch.arange(-(-numel // 4), device=seeds.device)
    number = noise_step if step is None else step.long() + noise_step
    zeros = torch.zeros_like(block)
    counter = (block, zeros + number & MASK, zeros + stream, zeros)
    key = seeds[:, None] & MASK, seeds[:, None] >> 32 & MASK
    w = words(key, counter)
    z = torch.stack([*normals(w[0], w[1]), *normals(w[2], w[3])], dim=-1)
    return z.flatten(1)[:, :numel].reshape(len(seeds), *shape).to(dtype)


def words(key: tuple[Tensor, Tensor], counter: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Philox4x32-10: four random words from four words, all int64 below 2^32."""
    (k0, k1), (c0, c1, c2, c3) = key, counter
    for _ in range(10):
        high0, low0 = _product(MULTIPLIERS[0], c0)
        high1, low1 = _product(MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + KEY_STEPS[0] & MASK, k1 + KEY_STEPS[1] & MASK
    return c0, c1, c2, c3


def _product(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """The high and the low word of a * b; no intermediate result reaches 2^63."""
    upper = b * (a >> 16) + (b * (a & 0xFFFF) >> 16)  # floor(a * b / 2^16)
    low = (b * (a & 0xFFFF) & 0xFFFF) | (upper << 16 & MASK)
    return upper >> 16, low


def normals(word0: Tensor, word1: Tensor) -> tuple[Tensor, Tensor]:
    """radius(word0) * (cos, sin)(2 pi word1 / 2^32), float32."""
    r = radius(word0)
    quadrant = word1 + 2**29 >> 30 & 3  # the nearest quarter turn; y * pi/4 is the angle from there
    turned = word1 - (quadrant << 30)
    turned = torch.where(turned >= 2**31, turned - 2**32, turned)
    y = turned.to(torch.float32) * 2.0**-29
    square = y * y
    sine, cosine = _polynomial(SINE, square) * y, _polynomial(COSINE, square)
    odd = (quadrant & 1) != 0
    r0 = torch.where((quadrant == 1) | (quadrant == 2), r * -1.0, r)
    r1 = torch.where(quadrant >= 2, r * -1.0, r)
    return r0 * torch.where(odd, sine, cosine), r1 * torch.where(odd, cosine, sine)


def radius(word: Tensor) -> Tensor:
    """sqrt(-2 ln u), u = (word + 1/2) / 2^32 = 2^(k - 32) (1 + t), float32."""
    scaled = word.to(torch.float32) + 0.5
    above = scaled.view(torch.int32) - ROOT_HALF
    k = above >> 23
    m = ((above & 0x7FFFFF) + ROOT_HALF).view(torch.float32)
    # Next to u = 1, where ln u vanishes, t = u - 1 comes from the word, with all of its digits.
    near_one = ((MASK - word).to(torch.float32) + 0.5) * -(2.0**-32)
    t = torch.where(k == 32, near_one, m - 1.0)
    log1p = t * t * _polynomial(LOG1P, t) + t
    minus_log = (32 - k).to(torch.float32) * LN_2 - log1p
    # PyTorch's square root of float32 is not always the nearest one; that of float64, rounded, is.
    return (minus_log + minus_log).double().sqrt().to(torch.float32)


def _polynomial(coefficients: Sequence[float], t: Tensor) -> Tensor:
    """By Horner's rule, a product and a sum at a time."""
    value = t * coefficients[0] + coefficients[1]
    for c in coefficients[2:]:
        value = value * t + c
    return value


def launch(seeds: Tensor, step: Tensor | None, noise_step: int, stream: int, out: Tensor) -> None:
    """Write the result where a kernel would write it."""
    shape = out.shape[1:]
    out.copy_(philox_normal_ref(seeds, shape, step, noise_step, stream, out.dtype))
