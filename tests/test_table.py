"""The table of a run: columns, rings, and a check that no wrong number passes."""

import numpy as np
import pytest

import fastdiff
from fastdiff.predictions import Conversion, convert, perfect
from fastdiff.registry import SOLVERS
from fastdiff.schedules import NoiseSchedule, levels
from fastdiff.solvers.row import DATA, NOISE, Grid, Row, Weights
from fastdiff.solvers.singlestep import singlestep
from fastdiff.table import (
    COLUMNS,
    GAIN,
    HEAD,
    HI,
    KE,
    KX,
    KZ,
    LO,
    MAX_COLUMNS,
    Clip,
    check,
    check_rings,
    encode,
    noise_from_data,
    to_slots,
    trimmed,
    width,
)
from tests.loop import run

STEPS = 6
DETERMINISTIC = [name for name, row in SOLVERS.items() if not row.noise]
PREDICTIONS = ["epsilon", "sample", "v_prediction"]


def parts(solver, prediction="epsilon", begin=0, **options):
    """(rows by slot, rows by age, grid, begin, depths, outputs) as `plan` makes them."""
    chosen = SOLVERS[solver]
    family = NoiseSchedule.vp()
    ratios = np.append(levels(family, "exponential", chosen.steps(STEPS)), 0.01)
    if chosen.points is not None:
        ratios = chosen.points(ratios, STEPS, **chosen.options)
    alpha, sigma = family.alpha_sigma(ratios)
    scale = np.ones(STEPS + 1)
    if chosen.state == "ve":
        alpha, sigma, scale = np.ones(STEPS + 1), ratios, alpha
    grid = Grid(alpha, sigma)
    if chosen.inner is not None:
        grid = Grid(alpha, sigma, chosen.inner(family, ratios, **chosen.options))
    known = {**chosen.preset, **chosen.options}
    if "lower_order_final" in known:
        known["lower_order_final"] = False
    ages, outputs = [], []
    for i in range(begin, STEPS):
        args = prediction, float(alpha[i]), float(sigma[i]), float(scale[i])
        row = chosen.row(grid, i, i - begin, **{**known, **options})
        ages.append(encode(row, convert(*args), c_in=scale[i + 1]))
        outputs.append(perfect(*args))
    ages = np.array(ages)
    return to_slots(ages, chosen.depths), ages, grid, begin, chosen.depths, outputs


def checked(rows, ages, grid, begin, depths, outputs):
    check(rows, grid, begin, depths, outputs)
    check_rings(rows, depths, ages)


@pytest.mark.parametrize("begin", [0, 2])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_right_tables_pass(solver, prediction, begin):
    checked(*parts(solver, prediction, begin))


def coefficients(depths, j):
    """The columns of row j that carry numbers; what the last row keeps is never read."""
    lines = 1 + len(depths) if j < STEPS - 1 else 1
    return [KX, KE, *range(HEAD, HEAD + lines * (COLUMNS + sum(depths)))]


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("solver", DETERMINISTIC)
def test_no_turned_sign_passes(solver, prediction):
    """Every nonzero number of every row of every deterministic solver, one at a time."""
    rows, *rest = parts(solver, prediction)
    turned = 0
    for j in range(STEPS):
        for column in coefficients(rest[3], j):
            if rows[j, column] == 0:
                continue
            wrong = rows.copy()
            wrong[j, column] *= -1
            turned += 1
            with pytest.raises(ValueError, match="of the table does not"):
                checked(wrong, *rest)
    assert turned >= 3 * STEPS


@pytest.mark.parametrize("solver", DETERMINISTIC)
def test_no_number_off_by_a_millionth_passes(solver):
    rows, *rest = parts(solver)
    for j in range(STEPS):
        for column in coefficients(rest[3], j):
            if abs(rows[j, column]) > 1e-2:
                wrong = rows.copy()
                wrong[j, column] *= 1 + 1e-6
                with pytest.raises(ValueError, match="of the table does not"):
                    checked(wrong, *rest)


@pytest.mark.parametrize("solver", [name for name in SOLVERS if SOLVERS[name].noise])
def test_rows_with_noise_must_carry_the_signal(solver):
    """There the noise part is free (its amount is the option eta), the part of x_0 is not."""
    rows, *rest = parts(solver)
    for j in range(STEPS):
        wrong = rows.copy()
        wrong[j, HEAD] += 0.01  # x
        with pytest.raises(ValueError, match=f"row {j} of the table does not carry signal"):
            checked(wrong, *rest)


@pytest.mark.parametrize("solver", [name for name in SOLVERS if SOLVERS[name].depths])
def test_no_wrong_slot_passes(solver):
    rows, *rest = parts(solver)
    depths = rest[3]
    history, wide = sum(depths), COLUMNS + sum(depths)
    for j in range(STEPS - depths[0]):
        cycles = SOLVERS[solver].points is not None or SOLVERS[solver].row is singlestep
        if cycles and rows[j, -1] < 0:
            continue  # the last row of a step keeps nothing
        for slot in range(-1, history):
            if slot == rows[j, -1]:
                continue
            wrong = rows.copy()
            wrong[j, -1] = slot
            with pytest.raises(ValueError, match="of the table"):
                checked(wrong, *rest)
    for j in range(STEPS):  # the columns of two slots exchanged
        first = HEAD + COLUMNS
        columns = np.arange(first, first + history)
        if history > 1 and np.ptp(rows[j, columns]) > 0:
            wrong = rows.copy()
            wrong[j, columns] = rows[j, columns[::-1]]
            with pytest.raises(ValueError, match="of the table"):
                checked(wrong, *rest)
    keeps = len(depths)
    assert rows.shape[1] == HEAD + (1 + keeps) * wide + 1 + keeps


@pytest.mark.parametrize("slot", [0.5, 7.0, -2.0])
def test_slots_that_do_not_exist_are_refused(slot):
    rows, _, _, _, depths, _ = parts("dpmpp_3m")
    wrong = rows.copy()
    wrong[1, -1] = slot
    with pytest.raises(ValueError, match=rf"row 1 of the table writes to slot {slot:g}; slots are"):
        check_rings(wrong, depths)


def test_a_slot_is_not_read_before_it_is_written():
    rows, _, _, _, depths, _ = parts("dpmpp_2m")
    wrong = rows.copy()
    wrong[0, HEAD + COLUMNS] = 1e-300
    with pytest.raises(ValueError, match="row 0 of the table reads slot 0, which no row before"):
        check_rings(wrong, depths)


def test_a_table_of_unknown_prediction_is_checked_too():
    rows, _, grid, begin, depths, _ = parts("dpmsolver_3m")
    check(rows, grid, begin, depths)
    wrong = rows.copy()
    wrong[3, HEAD] *= -1
    with pytest.raises(ValueError, match="row 3 of the table does not carry"):
        check(wrong, grid, begin, depths)


@pytest.mark.parametrize("steps", [1, 2, 3, 20])
@pytest.mark.parametrize("solver", SOLVERS)
def test_rings_of_exactly_their_depth_never_leak(solver, steps):
    """Rings start as NaN (tests/loop.py): whatever is read was written."""
    for begin in {0, steps // 2}:
        plan = fastdiff.plan(solver, steps=steps, begin=begin)
        assert plan.history == sum(plan.depths)
        rng = np.random.default_rng(0)
        noises = rng.standard_normal((plan.steps, 3))
        path = run(plan, lambda x, t, j: np.sin(x), rng.standard_normal(3), noises)
        assert np.isfinite(path).all()


@pytest.mark.parametrize("depths", [(1,), (2,), (3, 1), (1, 2, 1), (2, 0, 1)])
def test_slots_hold_the_ages_that_were_asked_for(depths):
    """Against a list of everything that was kept, for several rings at once."""
    rng = np.random.default_rng(1)
    keeps, history, count = len(depths), sum(depths), 9
    wide = COLUMNS + history
    ages = np.zeros((count, width(keeps, history)))
    lines = rng.standard_normal((count, 1 + keeps, wide))
    for j in range(count):  # ages that do not exist yet have weight 0
        first = COLUMNS
        for depth in depths:
            lines[j, :, first + min(j, depth) : first + depth] = 0
            first += depth
    ages[:, HEAD : HEAD + (1 + keeps) * wide] = lines.reshape(count, -1)
    ages[:, -keeps:] = -1
    rows = to_slots(ages, depths)
    check_rings(rows, depths, ages)
    ring, kept = [np.nan] * history, [[] for _ in depths]
    for j in range(count):
        operands = rng.standard_normal(COLUMNS)
        past = []
        for p, depth in enumerate(depths):
            newest = kept[p][::-1][:depth]
            past += newest + [0.0] * (depth - len(newest))
        want = lines[j] @ np.array([*operands, *past])
        c = rows[j, HEAD : HEAD + (1 + keeps) * wide].reshape(1 + keeps, wide)
        values = [*operands, *ring]
        got = [sum(w * v for w, v in zip(line, values, strict=True) if w) for line in c]
        np.testing.assert_allclose(got, want, rtol=1e-12)
        for p in range(keeps):
            kept[p].append(want[1 + p])
            if (slot := int(rows[j, len(rows[j]) - keeps + p])) >= 0:
                ring[slot] = got[1 + p]


def test_columns_of_a_row():
    row = Row(Weights(x=2.0, d=3.0, n=5.0, z=7.0, h=(11.0, 13.0)), (Weights(d=1.0, n=0.5),))
    numbers = Conversion(kx=0.1, ke=0.2, qx=0.3, qe=0.4)
    made = encode(row, numbers, guidance=4.0, clip=Clip(-1.0, 1.0, 2.0), c_in=0.5)
    head = [4.0, 0.1, 0.2, 0.0, -1.0, 1.0, 2.0]  # g, kx, ke, kz, lo, hi, gain
    moved = [2 + 5 * 0.3, 3.0, 5 * 0.4, 7.0, 11.0, 13.0]
    kept = [0.5 * 0.3, 1.0, 0.5 * 0.4, 0.0, 0.0, 0.0]
    np.testing.assert_allclose(made, [*head, *moved, *kept, 0.5, -1.0])  # then c_in, slot
    assert len(made) == width(1, 2)


def test_churn_moves_x_in_the_estimate_too():
    row = Row(Weights(x=0.5, d=0.5, z=0.1), churn=(0.2, 3.0))
    made = encode(row, Conversion(2.0, -1.0, 0.0, 1.0))
    assert made[KZ] == 2.0 * 0.2
    quiet = encode(row, Conversion(2.0, -1.0, 0.0, 1.0), draws=False)
    assert quiet[KZ] == 0
    assert quiet[HEAD + 3] == 0


def test_defaults_are_off():
    made = encode(Row(Weights(x=1.0)), Conversion(1.0, 1.0, 0.0, 1.0))
    assert (made[LO], made[HI], made[GAIN], made[KZ], made[0]) == (-np.inf, np.inf, 1.0, 0.0, 1.0)


def test_noise_from_a_clipped_estimate():
    """n = (x - alpha d) / sigma in every line of the row."""
    row = Row(Weights(x=1.0, d=2.0, n=3.0), (NOISE, DATA))
    made = noise_from_data(row, alpha=0.6, sigma=0.8)
    assert made.next == Weights(x=1 + 3 / 0.8, d=2 - 3 * 0.6 / 0.8)
    assert made.keep == (Weights(x=1 / 0.8, d=-0.6 / 0.8), DATA)


def test_trimmed_rows_end_with_a_vector_that_is_read():
    assert trimmed(Weights(h=(1.0, 0.0, 2.0, 0.0, 0.0))).h == (1.0, 0.0, 2.0)
    assert trimmed(Weights(h=(0.0, 0.0))).h == ()


@pytest.mark.parametrize("solver", SOLVERS)
def test_rows_are_narrow_enough_for_the_kernels(solver):
    plan = fastdiff.plan(solver, steps=2)
    assert plan.rows.shape[2] == width(plan.keeps, plan.history) <= MAX_COLUMNS


def test_rows_are_rounded_to_float32_once():
    torch = pytest.importorskip("torch")
    plan = fastdiff.plan("dpmpp_3m", steps=20)
    made = plan.to("cpu").numpy()
    assert made.dtype == np.float32
    np.testing.assert_array_equal(made, plan.rows.astype(np.float32))
    np.testing.assert_array_equal(plan.to("cpu", torch.float64).numpy(), plan.rows)


def test_grid_refuses_levels_of_two_lengths():
    with pytest.raises(ValueError, match=r"alpha and sigma must be .* got \(2,\) and \(3,\)"):
        Grid(np.ones(2), np.ones(3))
    with pytest.raises(ValueError, match=r"steps \+ 1 noise levels"):
        Grid(np.ones(1), np.ones(1))
