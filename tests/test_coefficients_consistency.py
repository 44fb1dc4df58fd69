"""Weights of TCD and of straight Heun from their papers' formulas, with 50 digits."""

import mpmath as mp
import numpy as np
import pytest

import fastdiff
from fastdiff.registry import SOLVERS
from fastdiff.solvers.row import Grid
from fastdiff.table import HEAD, E, M, X, Z

TIMES = [999, 799, 599, 399, 199]


@pytest.fixture(autouse=True)
def _digits():
    with mp.workdps(50):
        yield


def alphas_cumprod():
    """Of Stable Diffusion: beta is the square of a ramp."""
    low, high = mp.sqrt(mp.mpf("0.00085")), mp.sqrt(mp.mpf("0.012"))
    made, product = [], mp.mpf(1)
    for t in range(1000):
        product *= 1 - (low + (high - low) * t / 999) ** 2
        made.append(product)
    return made


def between(cumulative, t):
    """sigma / alpha at a model time: its logarithm is linear between two trained ones."""
    low = int(mp.floor(t))
    logs = [mp.log((1 - cumulative[j]) / cumulative[j]) / 2 for j in (low, min(low + 1, 999))]
    return mp.exp(logs[0] + (t - low) * (logs[1] - logs[0]))


@pytest.mark.parametrize("eta", ["0.3", "0.75", "1"])
def test_tcd_is_algorithm_4(eta):
    """x_s = a_s x_0 + s_s n, s = (1 - gamma) t'; x' = (a' / a_s) x_s + sqrt(1 - a'^2 / a_s^2) z."""
    bar, gamma = alphas_cumprod(), mp.mpf(eta)
    plan = fastdiff.plan("tcd", steps=5, spacing=TIMES, eta=float(eta))
    for row, then in zip(plan.rows[:-1, 0], TIMES[1:], strict=True):
        ratio = between(bar, (1 - gamma) * then)
        a = mp.sqrt(bar[then])
        share = a * mp.sqrt(1 + ratio**2)  # a' / a_s
        want = {X: 0, M: a, E: a * ratio, Z: mp.sqrt(1 - share**2)}
        for column, value in want.items():
            assert row[HEAD + column] == pytest.approx(float(value), rel=1e-12, abs=1e-14)
    assert plan.rows[-1, 0, HEAD + M] == 1  # and the last one is the prediction
    assert not plan.rows[-1, 0, [HEAD + X, HEAD + E, HEAD + Z]].any()


def test_tcd_of_a_flow():
    """The same with a + s = 1 and t = T s."""
    plan = fastdiff.plan(
        "tcd", steps=3, noise="flow", prediction="flow_prediction", spacing=[1.0, 0.6, 0.2]
    )
    for row, level in zip(plan.rows[:-1, 0], (0.6, 0.2), strict=True):
        s = (1 - mp.mpf("0.3")) * mp.mpf(str(level))
        share = (1 - mp.mpf(str(level))) / (1 - s)
        d, n = share * (1 - s), share * s
        assert row[HEAD + X] == pytest.approx(float(n), rel=1e-12)  # n = x + alpha e
        assert row[HEAD + M] == pytest.approx(float(d), rel=1e-12)
        z = mp.sqrt(mp.mpf(str(level)) ** 2 - n**2)
        assert row[HEAD + Z] == pytest.approx(float(z), rel=1e-12)


def test_tcd_without_the_models_time_says_where_it_is():
    grid = Grid(np.array([0.6, 0.8]), np.array([0.8, 0.6]))
    with pytest.raises(ValueError, match=r"tcd goes by the model's time.*fastdiff\.plan"):
        SOLVERS["tcd"].row(grid, 0, 0, eta=0.3)
    with pytest.raises(
        ValueError, match=r"eta \(gamma of the paper\) must be .* from 0 to 1; got 1"
    ):
        fastdiff.plan("tcd", steps=4, eta=1.5)
    with pytest.raises(ValueError, match="tcd goes by the model's time, of which this interface"):
        fastdiff.k_diffusion.function("tcd")
    with pytest.raises(AttributeError, match="tcd goes by the model's time"):
        fastdiff.k_diffusion.sample_tcd  # noqa: B018


def test_heun_along_straight_lines_is_exact_for_predictions_linear_on_them():
    """d and n that change linearly along the line: the mean of both ends is the integral."""
    grid = Grid(np.array([0.1, 0.5, 0.5, 0.8]), np.array([0.95, 0.7, 0.7, 0.3]))
    solver = SOLVERS["flow_heun"]
    first, second = (solver.row(grid, i, i) for i in (0, 1))
    d, n, x = (0.3, -0.7), (1.1, 0.4), 0.9  # predictions at both ends, the start
    moved = first.next.x * x + first.next.d * d[0] + first.next.n * n[0]
    slope, start = (w.x * x + w.d * d[0] + w.n * n[0] for w in first.keep)
    w = second.next
    end = w.x * moved + w.d * d[1] + w.n * n[1] + w.h[0] * slope + w.h[1] * start
    da, ds = mp.mpf("0.4"), mp.mpf("-0.25")
    want = mp.quad(
        lambda u: da * (d[0] + u * (d[1] - d[0])) + ds * (n[0] + u * (n[1] - n[0])), [0, 1]
    )
    assert end == pytest.approx(float(x + want), rel=1e-13)
