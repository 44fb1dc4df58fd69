"""Inputs for group_norm, its formula in float64, what PyTorch says, and the tolerance between them.

The rule: over 8 seeds, the RMS of our error is at most twice PyTorch's own in that dtype (the worse
of its two layouts) plus eps / 4 of the RMS of the result; the largest error at most four times
PyTorch's largest plus eps / 4 of the largest result.  Both errors are those to float64, from the
operands as they were rounded.  PyTorch is given v, rounded to the dtype, not what v is made of.

PyTorch folds GroupNorm to v * A + B and is wrong by a twelfth of the result at mean / std = 1000.
So there is a second limit, which holds for any mean: the RMS of our error is at most eps / 2 of the
RMS of the result, for its rounding, plus 4 eps(float32) (1 + |mean| / std) of it, for the roundings
of v - mean, of the mean itself, and of what follows.
"""

import torch
import torch.nn.functional as F

from fastdiff.ops.group_norm import group_norm

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LAYOUTS = ["contiguous", "channels_last"]
SEEDS = 8

# (N, C, *spatial), groups: 4 to 80 channels a group, and places of 1, 7, 63, 64, 4097.
SHAPES = [
    ((2, 8, 1), 2),
    ((1, 320, 7), 32),
    ((3, 40, 9, 7), 2),
    ((2, 160, 8, 8), 2),
    ((1, 60, 3, 3, 7), 2),
    ((1, 20, 4097), 1),
    ((2, 3, 5, 11), 3),
]


def in_layout(tensor, layout):
    """The same numbers, contiguous or channels last."""
    if layout == "contiguous":
        return tensor.contiguous()
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1)


def make_case(
    seed=0,
    shape=(2, 40, 9, 7),
    groups=4,
    dtype=torch.float32,
    *,
    layout="contiguous",
    second=0,
    mean=0.0,
    std=1.0,
    affine=True,
    parameters=None,
    addend=None,
    residual=False,
    silu=True,
    tokens=False,
    eps=1e-5,
    device="cpu",
):
    """Arguments of group_norm by name.  The last `second` channels of `shape` are x2; addend is
    None, "c" for (C,) or "nc" for (N, C); parameters: the dtype of weight and bias, default dtype.
    """
    draw = torch.Generator().manual_seed(seed)

    def normal(*size, scale=1.0, offset=0.0):
        return torch.randn(size, generator=draw).mul_(scale).add_(offset)

    samples, channels = shape[:2]
    x = normal(*shape, scale=std, offset=mean).to(dtype)
    case = {"x": x, "groups": groups, "eps": eps, "silu": silu, "tokens": tokens}
    if second:
        case["x"], case["x2"] = x[:, : channels - second], x[:, channels - second :]
    if affine:
        # Numbers of the dtype of x: that of the parameters changes no value.
        scale, shift = normal(channels, offset=1.0, scale=0.5), normal(channels, scale=0.5)
        case["weight"], case["bias"] = (p.to(dtype).to(parameters or dtype) for p in (scale, shift))
    if addend:
        case["addend"] = normal(*((samples, channels) if addend == "nc" else (channels,)))
    if residual:
        case["residual"] = normal(*shape, scale=std).to(dtype)
    for name in ("x", "x2", "residual"):
        if name in case:
            case[name] = in_layout(case[name], layout)
    return {k: v.to(device) if torch.is_tensor(v) else v for k, v in case.items()}


def total_of(case):
    """v in float64; with a residual, total, by the sums that the contract prescribes."""
    x = case["x"] if case.get("x2") is None else torch.cat([case["x"], case["x2"]], dim=1)
    ones = (1,) * (x.dim() - 2)
    addend, residual = case.get("addend"), case.get("residual")
    wide = torch.float64 if residual is None or x.dtype == torch.float64 else torch.float32
    v = x.to(wide)
    if addend is not None:
        v = v + addend.to(wide).reshape(-1, x.shape[1], *ones)
    if residual is not None:
        return (v + residual.to(wide)).to(x.dtype)
    return v


def norm(v, case):
    """GroupNorm and SiLU of v by PyTorch's operators, in the dtype of v."""
    weight, bias = (
        None if case.get(k) is None else case[k].to(v.dtype) for k in ("weight", "bias")
    )
    y = F.group_norm(v, case["groups"], weight, bias, case["eps"])
    y = F.silu(y) if case["silu"] else y
    return y.flatten(2).transpose(1, 2) if case["tokens"] else y


def exact(case):
    """y in float64."""
    return norm(total_of(case).double(), case)


def largest_and_square(error):
    error = error.double()
    return error.abs().max().item(), error.square().mean().item()


def errors(run, seeds=SEEDS, **spec):
    """{"ours" | "torch" | "result": (largest, RMS)} over the seeds; `run` makes y, or (y, total),
    from a case.  With a residual, total must be right to the bit."""
    found = {"ours": [], "torch": [], "result": []}
    for seed in range(seeds):
        case = make_case(seed, **spec)
        truth, total = exact(case), total_of(case)
        got = run(case)
        if case.get("residual") is not None:
            got, kept = got
            assert torch.equal(kept, total), "total is not the rounded sum"
        assert got.shape == truth.shape
        assert got.dtype == case["x"].dtype
        found["ours"].append(largest_and_square(got.double() - truth))
        found["result"].append(largest_and_square(truth))
        rounded = total.to(got.dtype)
        truth_of_rounded = norm(rounded.double(), case)
        per_layout = [
            largest_and_square(norm(in_layout(rounded, layout), case).double() - truth_of_rounded)
            for layout in LAYOUTS
        ]
        found["torch"].append(tuple(map(max, zip(*per_layout, strict=True))))
    return {
        name: (max(m for m, _ in pairs), (sum(s for _, s in pairs) / len(pairs)) ** 0.5)
        for name, pairs in found.items()
    }


def assert_as_good_as_torch(run=None, seeds=SEEDS, **spec):
    """The rule at the head of this file, for make_case(seed, **spec)."""
    found = errors(run or (lambda case: group_norm(**case)), seeds, **spec)
    quarter = torch.finfo(spec.get("dtype", torch.float32)).eps / 4
    largest, rms = (
        ours / (factor * own + quarter * result)
        for ours, own, result, factor in zip(
            found["ours"], found["torch"], found["result"], (4, 2), strict=True
        )
    )
    assert rms <= 1, f"RMS is {rms:.2f} of what is allowed: {found}"
    ratio = abs(spec.get("mean", 0.0)) / spec.get("std", 1.0)
    sound = 2 * quarter + 4 * torch.finfo(torch.float32).eps * (1 + ratio)
    assert found["ours"][1] <= sound * found["result"][1], f"more than {sound:.1e}: {found}"
    assert largest <= 1, f"the largest error is {largest:.2f} of what is allowed: {found}"
