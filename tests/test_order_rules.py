"""Where a solver's rules change: 15 steps, a level that comes twice, the last one, churn's ends."""

import numpy as np
import pytest

import fastdiff
from fastdiff.solvers.dpmpp import order_at
from fastdiff.solvers.euler import euler
from fastdiff.solvers.row import Grid
from fastdiff.table import HEAD


def orders(n):
    return [order_at(i, n, i, 3, True, False) for i in range(n)]


def test_the_end_is_lowered_below_15_steps():
    assert orders(13) == [1, 2, *[3] * 9, 2, 1]
    assert orders(14) == [1, 2, *[3] * 10, 2, 1]
    assert orders(15) == [1, 2, *[3] * 13]


@pytest.mark.parametrize(("steps", "end"), [(14, [1, 0]), (15, [2, 2])])
def test_the_end_is_lowered_below_15_steps_in_a_plan(steps, end):
    plan = fastdiff.plan("dpmpp_3m", steps=steps, spacing="trailing", final_sigma="sigma_min")
    read = (plan.rows[:, 0, HEAD + 4 : HEAD + 6] != 0).sum(axis=1)
    assert read.tolist()[-2:] == end


@pytest.mark.parametrize("pair", [("dpmpp_3m", "dpmpp_2m"), ("dpmsolver_3m", "dpmsolver_2m")])
def test_third_order_after_a_level_that_came_twice_is_second_order(pair):
    """The prediction of the first row adds nothing: its level is that of the second."""
    sigmas = [3.0, 3.0, 2.0, 1.0, 0.5]
    options = {"steps": 4, "spacing": sigmas, "lower_order_final": False}
    third = fastdiff.plan(pair[0], **options)
    second = fastdiff.plan(pair[1], solver_type="heun", **options)
    # row 2 of order 3: x, m, e, z, and by slot the predictions of rows 0 and 1
    c = third.rows[2, 0, HEAD : HEAD + 6]
    np.testing.assert_array_equal(c[:4], second.rows[2, 0, HEAD : HEAD + 4])
    np.testing.assert_array_equal(c[4:], [0.0, second.rows[2, 0, HEAD + 4]])
    assert (third.rows[3, 0, HEAD + 4 : HEAD + 6] != 0).all()
    fastdiff.plan(pair[0], **{**options, "steps": 5})  # and on to level 0


@pytest.mark.parametrize("train_steps", [1000, 50])
def test_the_cleanest_level_of_a_flow_is_that_of_its_first_time(train_steps):
    family = fastdiff.NoiseSchedule.flow(train_steps=train_steps)
    options = {"noise": family, "prediction": "flow_prediction", "final_sigma": "sigma_min"}
    plan = fastdiff.plan("euler", steps=3, spacing=[0.9, 0.5, 0.1], **options)
    assert plan.sigma[-1] == 1 / train_steps
    below = fastdiff.plan("euler", steps=3, spacing=[0.9, 0.5, 1e-4], **options)
    assert below.sigma[-1] == 1e-4  # never back towards the noise


def test_churn_acts_at_both_of_its_limits():
    grid = Grid(np.ones(4), np.array([8.0, 4.0, 2.0, 1.0]))
    for limits, want in (
        ((4.0, 4.0), [False, True, False]),
        ((4.0, 8.0), [True, True, False]),
        ((np.nextafter(4.0, 5), 8.0), [True, False, False]),
        ((2.0, np.nextafter(4.0, 3)), [False, False, True]),
    ):
        rows = [
            euler(grid, i, 0, s_churn=1.0, s_tmin=limits[0], s_tmax=limits[1]) for i in range(3)
        ]
        assert [row.churn is not None for row in rows] == want
