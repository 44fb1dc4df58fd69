"""geglu, add_layer_norm, bias_residual."""

import torch
import torch.nn.functional as F

from fastdiff.ops.add_layer_norm import add_layer_norm
from fastdiff.ops.bias_residual import bias_residual, bias_residual_ref
from fastdiff.ops.geglu import geglu
from tests import group_norm_cases, pointwise_cases
from tests.on_device.cases import (
    assert_empty_and_scattered,
    assert_same_when_replayed,
    kernel,
    normal,
    seeds,
)
from tests.pointwise_cases import Guarded


def gate(x):
    """diffusers' GEGLU, in the dtype of x."""
    value, gate = x.chunk(2, dim=-1)
    return value * F.gelu(gate)


def geglu_numbers(device, dtype):
    for shape in ((17, 130), (5, 4098), (3, 2, 10), (256, 2560)):
        for scale in (0.05, 1.0, 4.0, 20.0 if dtype == torch.float16 else 100.0):  # no overflow

            def case(seed, shape=shape, scale=scale):
                (x,) = normal(seed, shape, dtype=dtype, device=device, scale=scale)
                return geglu(x), [gate(x)], gate(x.double().cpu())

            pointwise_cases.assert_as_good_as_torch(case, dtype, seeds(device))


def geglu_written(device, dtype):
    for width in (1, 33, 320):
        (x,) = normal(0, (5, 2 * width), dtype=dtype, device=device)
        out = Guarded(x[:, :width].contiguous())
        kernel("geglu", x)(x, out.tensor)
        out.check()
        assert torch.equal(out.tensor, geglu(x))


def geglu_edges(device, dtype):
    (x,) = normal(0, (5, 66), dtype=dtype, device=device)
    assert_empty_and_scattered(geglu, [x], [x[:0]])


def geglu_replayed(device, dtype):
    (x,) = normal(0, (64, 1280), dtype=dtype, device=device)
    assert_same_when_replayed(lambda: [geglu(x)], device)


def geglu_launch(device, dtype):
    for width in (33, 320):
        geglu(*normal(0, (5, 2 * width), dtype=dtype, device=device))


def _layer_norm(seed, shape, dtype, device, mean=0.0):
    x, residual, weight, bias = normal(
        seed, shape, shape, shape[-1:], shape[-1:], dtype=dtype, device=device
    )
    return x + mean, residual, weight, bias


def layer_norm_numbers(device, dtype):
    for shape in ((17, 320), (5, 33), (3, 1280), (2, 7, 640)):
        for mean, eps in ((0.0, 1e-5), (30.0, 1e-5), (0.0, 1e-3), (0.0, 3.0)):

            def case(seed, shape=shape, mean=mean, eps=eps):
                x, residual, *affine = _layer_norm(seed, shape, dtype, device, mean)
                y, total = add_layer_norm(x, residual, *affine, eps=eps)
                assert torch.equal(total, x + residual), "total is not the rounded sum"
                theirs = F.layer_norm(x + residual, shape[-1:], *affine, eps)
                wide = [t.double().cpu() for t in (total, *affine)]
                return y, [theirs], F.layer_norm(wide[0], shape[-1:], *wide[1:], eps)

            pointwise_cases.assert_as_good_as_torch(case, dtype, seeds(device))


def layer_norm_written(device, dtype):
    for width in (1, 33, 320):
        operands = _layer_norm(0, (5, width), dtype, device)
        y, total = Guarded(operands[0]), Guarded(operands[0])
        kernel("add_layer_norm", operands[0])(*operands, 1e-5, y.tensor, total.tensor)
        y.check()
        total.check()
        assert torch.equal(y.tensor, add_layer_norm(*operands)[0])


def layer_norm_edges(device, dtype):
    x, residual, *affine = _layer_norm(0, (5, 33), dtype, device)
    none = (x[:0], residual[:0], *affine)
    assert_empty_and_scattered(add_layer_norm, [x, residual, *affine], none)


def layer_norm_replayed(device, dtype):
    operands = _layer_norm(0, (64, 640), dtype, device)
    assert_same_when_replayed(lambda: add_layer_norm(*operands), device)


def layer_norm_launch(device, dtype):
    for width in (33, 320):
        add_layer_norm(*_layer_norm(0, (5, width), dtype, device))


def _biased(seed, shape, dtype, device, layout):
    x, residual, bias = normal(seed, shape, shape, shape[:2], dtype=dtype, device=device)
    x, residual = (group_norm_cases.in_layout(t, layout) for t in (x, residual))
    return x, bias, residual


def bias_residual_bits(device, dtype):
    """Each operation is rounded once, so there is one answer."""
    for shape in ((2, 320, 8, 8), (3, 4, 32, 32), (2, 5, 17), (2, 3, 1031), (1, 640, 7)):
        for layout in group_norm_cases.LAYOUTS:
            operands = _biased(0, shape, dtype, device, layout)
            want = bias_residual_ref(*(t.cpu() for t in operands), 0.7)
            assert torch.equal(bias_residual(*operands, scale=0.7).cpu(), want), (shape, layout)
            x, bias, _ = operands
            want = bias_residual_ref(x.cpu(), bias[0].cpu(), None, 1.0)
            assert torch.equal(bias_residual(x, bias[0]).cpu(), want), (shape, layout)


def bias_residual_written(device, dtype):
    for layout in group_norm_cases.LAYOUTS:
        for shape in ((2, 16, 48), (2, 5, 17)):
            x, bias, residual = _biased(0, shape, dtype, device, layout)
            out = Guarded(x)
            kernel("bias_residual", x)(x, bias, residual, 0.7, out.tensor)
            out.check()
            assert torch.equal(out.tensor, bias_residual(x, bias, residual, scale=0.7))


def bias_residual_edges(device, dtype):
    for layout in group_norm_cases.LAYOUTS:
        operands = _biased(0, (3, 5, 9, 7), dtype, device, layout)
        assert_empty_and_scattered(bias_residual, operands, [t[:0] for t in operands])


def bias_residual_replayed(device, dtype):
    operands = _biased(0, (2, 64, 16, 16), dtype, device, "channels_last")
    assert_same_when_replayed(lambda: [bias_residual(*operands)], device)


def bias_residual_launch(device, dtype):
    for layout in group_norm_cases.LAYOUTS:
        bias_residual(*_biased(0, (2, 5, 9, 7), dtype, device, layout))


ON_DEVICE = {
    "geglu": {
        "numbers": geglu_numbers,
        "written": geglu_written,
        "edges": geglu_edges,
        "replayed": geglu_replayed,
        "launch": geglu_launch,
    },
    "add_layer_norm": {
        "numbers": layer_norm_numbers,
        "written": layer_norm_written,
        "edges": layer_norm_edges,
        "replayed": layer_norm_replayed,
        "launch": layer_norm_launch,
    },
    "bias_residual": {
        "bits": bias_residual_bits,
        "written": bias_residual_written,
        "edges": bias_residual_edges,
        "replayed": bias_residual_replayed,
        "launch": bias_residual_launch,
    },
}
