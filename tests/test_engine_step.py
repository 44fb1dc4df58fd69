"""The step as one ONNX graph: every solver's run, any row, and what is taken over as it is."""

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import fastdiff
from fastdiff.engine.errors import Incompatible
from fastdiff.engine.step import step_model
from fastdiff.ops.affine_step import affine_step_ref
from fastdiff.registry import SOLVERS
from fastdiff.table import COLUMNS, HI, LO, width
from tests import step_host as host

OPERATORS = {
    *("Add", "Cast", "Concat", "Constant", "Div", "Equal", "Expand", "Gather", "Greater", "Max"),
    *("Min", "Mul", "Range", "ReduceMax", "ReduceSum", "Reshape", "Shape", "Slice", "Squeeze"),
    *("Sub", "Tile", "Transpose", "Unsqueeze", "Where"),
}
BATCH, SHAPE = 3, (2, 12, 10)
UNIT = 2.0**-24  # rounding of float32


@pytest.fixture(scope="module")
def step():
    return host.session(step_model(host.network()))


def rms(error):
    return float(np.sqrt(np.mean(np.square(error, dtype=np.float64))))


def texts(plan, batch=BATCH):
    rows = 2 * batch if plan.guided else batch
    return np.random.default_rng(1).normal(0, 1, (rows, 3, 4)).astype(np.float32)


def errors(step, plan, dtype=torch.float32):
    """RMS errors, against float64, of the host's run and of fastdiff.sample in PyTorch."""
    text, seeds = texts(plan), [7 + b for b in range(BATCH)]
    noise = host.philox_normal(torch.tensor(seeds), SHAPE)
    with torch.no_grad():
        exact = fastdiff.sample(
            host.denoiser(text, plan.guided), noise.double(), plan, seeds=seeds
        ).numpy()
        ours = fastdiff.sample(
            host.denoiser(text, plan.guided, dtype), noise, plan, seeds=seeds, dtype=dtype
        ).numpy()
    kind = step.get_inputs()[-1].type
    text = text.astype(np.float16) if kind == "tensor(float16)" else text
    got = host.sample(step, plan.to_json(), text, seeds, SHAPE, dirty=True)
    return rms(got - exact), rms(ours - exact)


def made(name, **options):
    flow = name.startswith("flow") or name == "scm"
    kind = {"noise": "flow", "prediction": "flow_prediction"} if flow else {}
    return fastdiff.plan(name, steps=6, **kind, **options)


@pytest.mark.parametrize("guidance", [None, 3.0])
def test_one_graph_runs_every_solver(step, guidance):
    """Sums in another order than PyTorch's: an error of the same size, at most twice (1.3 seen)."""
    for name in SOLVERS:
        graph, ours = errors(step, made(name, guidance=guidance))
        assert graph <= 2 * ours, name


def test_a_batch_of_plans(step):
    """Rows, times, scales and lengths of each sample's own."""
    plans = [made("unipc_2", guidance=2.0), made("euler_a", guidance=5.0)]
    plans.append(fastdiff.plan("dpmpp_3m", steps=4, guidance=3.0, prediction="v_prediction"))
    graph, ours = errors(step, fastdiff.batch(plans))
    assert graph <= 2 * ours


def test_guidance_of_each_sample(step):
    plan = made("dpmpp_2m", guidance=np.random.default_rng(0).normal(4, 1, (6, BATCH)))
    graph, ours = errors(step, plan)
    assert graph <= 2 * ours


def test_a_network_in_float16(step):
    """The step stays float32: what is lost is the network's own rounding, as in PyTorch."""
    narrow = host.session(step_model(host.network("float16")))
    plan = made("dpmpp_2m", guidance=3.0)
    graph, ours = errors(narrow, plan, torch.float16)
    assert errors(step, plan)[0] < graph / 10
    assert graph <= 2 * ours


@pytest.fixture(scope="module")
def spied():
    """The step, which also says what the network was given and what it returned."""
    model = step_model(host.network())
    for name in ("sample", "timestep", "step.raw"):
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, 1, None))
    return host.session(model)


@pytest.mark.parametrize(
    ("keeps", "history", "samples"),
    [(0, 0, 1), (1, 0, 1), (0, 2, 2), (1, 1, 2), (2, 3, 1), (3, 5, 2)],
)
def test_any_row(spied, keeps, history, samples):
    """Weights, slots and clamps drawn at random, against the definition in float64.

    A sum of n rounded products is at most n + 1 roundings of the sum of magnitudes away; e has four
    roundings more, m six.  A clamp around 0 makes nothing larger.
    """
    rng, batch = np.random.default_rng(10 * keeps + history), 2
    columns = width(keeps, history)
    end = columns - 1 - keeps  # where c_in is
    rows = rng.normal(0, 1, (3, samples, columns)).astype(np.float32)
    rows[rng.random(rows.shape) < 0.2] = 0
    rows[:, :, LO], rows[:, :, HI] = -np.inf, 0.3
    rows[2, :, LO], rows[2, :, HI] = -0.5, np.inf
    rows[:, :, end + 1 :] = rng.integers(-1, history, (3, samples, keeps)) if history else -1
    x, z = rng.normal(0, 1, (2, batch, *host.SHAPE)).astype(np.float32)
    h = rng.normal(0, 1, (history, batch, *host.SHAPE)).astype(np.float32)
    first, times = np.float32([0.7]), rng.uniform(0, 999, (3, 1)).astype(np.float32)
    feeds = {"x": x, "noise": z, "history": h, "table": rows, "timesteps": times, "c_in": first}
    feeds["encoder_hidden_states"] = rng.normal(0, 1, (2 * batch, 3, 4)).astype(np.float32)
    names = ["x_next", "x0", "history_next", "sample", "timestep", "step.raw"]
    for row in range(3):
        feeds["row"] = np.array(row)
        *got, after, sample, timestep, raw = spied.run(names, feeds)
        c_in = first if row == 0 else rows[row - 1, :, end]
        assert np.array_equal(sample, np.tile(x * c_in.reshape(-1, 1, 1, 1), (2, 1, 1, 1)))
        assert np.array_equal(timestep, np.tile(times[row], 2 * batch))
        table, exact = torch.from_numpy(rows[row : row + 1]).double(), torch.float64
        low, high, *others = (
            torch.from_numpy(v).double() for v in (*raw.reshape(2, *x.shape), x, z)
        )
        kept = [torch.from_numpy(v).double() for v in h]
        x_next, x0, results = affine_step_ref(
            others[0], low, high, kept, others[1], table, None, keeps, exact, exact
        )
        others, kept = [v.abs() for v in others], [v.abs() for v in kept]
        e = low.abs() + table[0, :, :1, None, None].abs() * (low.abs() + high.abs())
        x_size, x0_size, sizes = affine_step_ref(
            others[0], None, e, kept, others[1], absolute(table), None, keeps, exact, exact
        )
        allowed = (COLUMNS + history + 1 + 4 + 6) * UNIT
        want, size = h.astype(np.float64), np.zeros(h.shape)
        for p in range(keeps):
            for b in range(batch):
                slot = int(rows[row, b % samples, end + 1 + p])
                if slot >= 0:
                    want[slot, b], size[slot, b] = results[p][b], sizes[p][b]
        assert (np.abs(got[0] - x_next.numpy()) <= allowed * x_size.numpy()).all()
        assert (np.abs(got[1] - x0.numpy()) <= allowed * x0_size.numpy()).all()
        assert after.shape == h.shape
        assert (np.abs(after - want) <= allowed * size).all()


def absolute(rows):
    """The row whose results bound those of every sum of magnitudes: no clamp, no sign."""
    out = rows.abs()
    out[:, :, LO], out[:, :, HI] = -np.inf, np.inf
    return out


def test_weights_and_their_places_are_taken_over(tmp_path):
    unet = host.network()
    step = step_model(unet)
    assert step.graph.initializer == unet.graph.initializer
    onnx.checker.check_model(step, full_check=True)
    onnx.save(unet, tmp_path / "unet.onnx", save_as_external_data=True, location="weights",
              size_threshold=0)  # fmt: skip
    beside = onnx.load(tmp_path / "unet.onnx", load_external_data=False)
    assert step_model(beside).graph.initializer == beside.graph.initializer
    assert beside.graph.initializer[0].data_location == onnx.TensorProto.EXTERNAL


def test_the_network_is_left_as_it_was():
    unet = host.network()
    before = unet.SerializeToString(deterministic=True)
    step_model(unet)
    assert unet.SerializeToString(deterministic=True) == before


def test_only_these_operators_of_onnx_itself():
    unet = host.network()
    step = step_model(unet)
    own = [node for node in step.graph.node if node.name.startswith("step/")]
    assert {node.op_type for node in own} == OPERATORS
    assert {node.domain for node in own} == {""}
    assert len(step.graph.node) == len(own) + len(unet.graph.node)


def test_other_inputs_of_the_network_are_inputs_of_the_step(step):
    unet = host.network()
    extra = onnx.helper.make_tensor_value_info("text_embeds", 1, ["batch", 5])
    unet.graph.input.append(extra)
    ports = {port.name: port for port in step_model(unet).graph.input}
    assert [*ports][-2:] == ["encoder_hidden_states", "text_embeds"]
    axes = ports["text_embeds"].type.tensor_type.shape.dim
    assert (axes[0].dim_param, axes[1].dim_value) == ("rows", 5)
    assert [one.name for one in step.get_inputs()] == [*ports][:-1]


def without(field, name):
    model = host.network()
    ports = getattr(model.graph, field)
    ports.remove(next(port for port in ports if port.name == name))
    return model


def inpainting():
    model = host.network()
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 9
    return model


def clashing():
    model = host.network()
    model.graph.initializer.append(numpy_helper.from_array(host.WEIGHTS, "table"))
    return model


@pytest.mark.parametrize(
    ("unet", "words"),
    [
        (
            without("input", "encoder_hidden_states"),
            "unet must have the inputs .*; got sample",
        ),
        (without("output", "out_sample"), "the output out_sample"),
        (inpainting(), r"as many channels as sample.*; got \[2\] and \[9\]"),
        (host.network(opset=17), "opset 18 or later; got 17"),
        (host.network(time="int64"), "timestep of unet must be of float32.*; got ONNX's type 7"),
        (clashing(), "no input or weight of the name table"),
    ],
)
def test_what_is_no_such_network_is_refused(unet, words):
    with pytest.raises(Incompatible, match=words):
        step_model(unet)


def test_a_plan_is_json_that_any_host_reads():
    """No NaN or Infinity, words that JSON has not."""

    def refuse(word):
        raise AssertionError(word)

    plan = json.loads(made("unipc_2", guidance=3.0).to_json(), parse_constant=refuse)
    assert plan["rows"][0][0][LO : HI + 1] == ["-inf", "inf"]
    assert plan["guided"] is True
    assert len(plan["rows"][0][0]) == width(len(plan["depths"]), sum(plan["depths"]))
