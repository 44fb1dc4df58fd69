"""Inputs for attention and cross_attention, their formula in float64, and what PyTorch says.

The tolerance is that of tests/pointwise_cases.py: over 8 seeds, the RMS of our error is at most
twice PyTorch's own in that dtype (the worse of its two layouts and its two ways on the CPU) plus
eps / 4 of the RMS of the result; the largest error four times, plus eps / 4 of the largest result.
"""

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.pointwise_cases import DEVICE, random

LAYOUTS = ["dense", "merged", "heads first", "wide"]


def lay(tensor, layout, inside=None):
    """The same numbers (B, N, H, D), laid out as a model may have left them."""
    batch, places, heads, width = tensor.shape
    if layout == "dense":
        return tensor.contiguous()
    if layout == "heads first":  # (B, H, N, D) in memory
        return tensor.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "merged":  # the middle of a projection to q, k and v at once
        memory = tensor.new_full((batch, places, 3, heads, width), float("nan"))
        memory[:, :, 1] = tensor
        return memory[:, :, 1]
    assert layout == "wide"  # between other columns, NaN
    memory = tensor.new_full((batch, places + 1, heads, width + 16), float("nan"))
    memory[:, 1:, :, 8:-8] = tensor
    return memory[:, 1:, :, 8:-8]


def draw(
    seed, batch=2, n=33, m=77, heads=2, width=40, dtype=torch.float32, *, layout="dense", size=1.0
):
    """q, k, v; `size` is the standard deviation of the elements of q."""
    generator = random(seed)
    shapes = [(batch, n, heads, width), (batch, m, heads, width), (batch, m, heads, width)]
    q, k, v = (torch.randn(s, generator=generator) for s in shapes)
    return [lay(t.to(dtype), layout).to(DEVICE) for t in (q * size, k, v)]


def exact(q, k, v, mask=None, scale=None):
    """The formula in float64, on the CPU; a row with no key is 0."""
    q, k, v = (t.cpu().double() for t in (q, k, v))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    s = torch.einsum("bnhd,bmhd->bhnm", q, k) * scale
    if mask is not None:
        mask = mask.cpu()
        s = s.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else s + mask.double()
    top = s.amax(-1, keepdim=True).nan_to_num(neginf=0.0) if s.shape[-1] else 0.0
    p = torch.exp(s - top)
    total = p.sum(-1, keepdim=True)
    p = p / torch.where(total == 0, 1.0, total)
    return torch.einsum("bhnm,bmhd->bnhd", p, v)


def torch_says(q, k, v, mask=None, scale=None):
    """PyTorch's attention, in both of its layouts, as it chooses and by plain operators."""
    said = []
    for dense in (False, True):
        args = [t.transpose(1, 2).contiguous() if dense else t.transpose(1, 2) for t in (q, k, v)]
        said.append(F.scaled_dot_product_attention(*args, attn_mask=mask, scale=scale))
        with sdpa_kernel(SDPBackend.MATH):
            said.append(F.scaled_dot_product_attention(*args, attn_mask=mask, scale=scale))
    return [o.transpose(1, 2) for o in said]


def against_torch(run, scale=None, mask=None, **spec):
    """What pointwise_cases.assert_as_good_as_torch asks for, from a seed; mask(seed) makes one."""

    def case(seed):
        q, k, v = draw(seed, **spec)
        m = None if mask is None else mask(seed).to(DEVICE)
        rest = {} if mask is None else {"mask": m}
        ours = run(q, k, v, scale=scale, **rest)
        return ours, torch_says(q, k, v, m, scale), exact(q, k, v, m, scale)

    return case
