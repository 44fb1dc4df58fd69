"""What a network predicts, as numbers: the four kinds against their definitions."""

import numpy as np
import pytest

from fastdiff.predictions import PREDICTIONS, convert, edm, perfect

LEVELS = {  # prediction -> (alpha, sigma, c)
    "epsilon": [(0.6, 0.8, 1.0), (1.0, 14.6, 1 / np.hypot(1, 14.6)), (0.3, 0.7, 1.0)],
    "sample": [(0.6, 0.8, 1.0), (1.0, 14.6, 1 / np.hypot(1, 14.6)), (0.3, 0.7, 1.0)],
    "v_prediction": [(0.6, 0.8, 1.0), (1.0, 14.6, 1 / np.hypot(1, 14.6)), (0.0, 1.0, 1.0)],
    "flow_prediction": [(0.3, 0.7, 1.0), (0.0, 1.0, 1.0)],
}
CASES = [(name, *level) for name in PREDICTIONS for level in LEVELS[name]]


@pytest.mark.parametrize(("prediction", "alpha", "sigma", "scale"), CASES)
def test_both_unknowns_come_back(prediction, alpha, sigma, scale):
    data, noise = 0.37, -1.9
    x = alpha * data + sigma * noise
    weights = perfect(prediction, alpha, sigma, scale)
    e = weights[0] * data + weights[1] * noise
    k = convert(prediction, alpha, sigma, scale)
    assert k.kx * x + k.ke * e == pytest.approx(data, abs=1e-13 * (1 + abs(k.ke)))
    assert k.qx * x + k.qe * e == pytest.approx(noise, abs=1e-13 * (1 + abs(k.qe)))


def test_v_is_the_papers():
    """Salimans & Ho 2022: v = alpha n - sigma x_0, for the sample of unit variance."""
    assert perfect("v_prediction", 0.6, 0.8) == (-0.8, 0.6)
    c = 1 / np.hypot(1, 3.0)  # the same level written as x_0 + 3 n
    assert perfect("v_prediction", 1.0, 3.0, c) == pytest.approx((-3 * c, c))


def test_flow_is_the_velocity():
    """dx/dsigma of x = (1 - sigma) x_0 + sigma n."""
    assert perfect("flow_prediction", 0.3, 0.7) == (-1.0, 1.0)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_v_in_x_over_alpha_coordinates_is_edms(kind):
    """c_skip = 1 / (s^2 + 1), c_out = -s / sqrt(s^2 + 1), as diffusers' Euler class has it."""
    s = 2.5
    k = convert(kind, 1.0, s, 1 / np.hypot(1, s))
    want = {
        "epsilon": (1.0, -s),
        "sample": (0.0, 1.0),
        "v_prediction": (1 / (s**2 + 1), -s / np.hypot(1, s)),
    }
    assert (k.kx, k.ke) == pytest.approx(want[kind], rel=1e-14)


def test_level_without_noise():
    assert convert("sample", 1.0, 0.0) == (0.0, 1.0, 0.0, 0.0)
    assert convert("epsilon", 1.0, 0.0)[:2] == (1.0, 0.0)


@pytest.mark.parametrize("function", [convert, perfect])
def test_unknown_prediction_lists_the_known(function):
    with pytest.raises(ValueError, match=r"prediction must be one of epsilon, sample, .* 'eps'"):
        function("eps", 0.6, 0.8)


@pytest.mark.parametrize("data", [0.5, 1.3])
@pytest.mark.parametrize("sigma", [0.002, 0.7, 80.0])
def test_edm_is_its_table(sigma, data):
    """Karras et al. 2022, table 1: c_skip, c_out; F of unit variance for data of that deviation."""
    k = edm("epsilon", sigma, data)
    assert k.kx == pytest.approx(data**2 / (sigma**2 + data**2), rel=1e-14)
    assert k.ke == pytest.approx(sigma * data / np.hypot(sigma, data), rel=1e-14)
    x, out = 1.7, -0.4
    x0 = k.kx * x + k.ke * out
    assert k.qx * x + k.qe * out == pytest.approx((x - x0) / sigma, rel=1e-9, abs=1e-12)
    turned = edm("v_prediction", sigma, data)
    assert (turned.kx, turned.ke, turned.qx, turned.qe) == (k.kx, -k.ke, k.qx, -k.qe)
    variance = (1 - k.kx) ** 2 * data**2 + k.kx**2 * sigma**2  # of x_0 - c_skip x
    assert variance / k.ke**2 == pytest.approx(1.0, rel=1e-9)
    with pytest.raises(ValueError, match="one of epsilon, v_prediction; got 'x'"):
        edm("x", sigma, data)
