"""affine_step inside PyTorch: opcheck, derivatives, compile, export, transforms, errors."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from fastdiff import backends
from fastdiff.ops.affine_step import affine_step, affine_step_out, affine_step_ref, row_size
from tests.affine_step_cases import make_operands, make_rows

OP = torch.ops.fastdiff.affine_step


def case(dtype=torch.float32, samples=1, shape=(2, 3, 4), keeps=2, depth=2):
    draw = torch.Generator().manual_seed(0)
    operands = make_operands(draw, shape, depth, dtype)
    return operands | {"rows": make_rows(draw, 2, samples, keeps, depth), "keeps": keeps}


def positional(case, step=None):
    names = ("x", "uncond", "cond", "history", "noise", "rows")
    dtype = case["x"].dtype
    seeded = (case.get("seeds"), case.get("noise_step", 0))
    return (*(case[name] for name in names), step, case["keeps"], dtype, dtype, *seeded)


def for_out(case):
    arguments = positional(case)
    return (*arguments[:8], *arguments[10:])


def flat(results):
    x_next, x0, kept = results
    return (x_next, x0, *kept)


def results_for(case):
    like = case["x"].detach()
    x_next, x0, entry, *kept = (torch.zeros_like(like) for _ in range(3 + case["keeps"]))
    return {"x_next": x_next, "x0": x0, "model_input": entry, "kept": kept}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("wants_grad", [False, True])
def test_opcheck(dtype, wants_grad):
    values = case(dtype, samples=2)
    step = torch.tensor(1, dtype=torch.int32)
    for tensor in (values["x"], values["cond"], *values["history"]):
        tensor.requires_grad_(wants_grad)
    torch.library.opcheck(OP.default, positional(values, step))
    bare = (*positional(values)[:1], None, values["cond"].detach(), [], None)
    bare = (*bare, torch.zeros(1, 1, 12), None, 0, dtype, dtype, None, 0)
    torch.library.opcheck(OP.default, bare)


def test_opcheck_of_the_out_form():
    values = case()
    torch.library.opcheck(OP.out, for_out(values), results_for(values))
    bare = {"x_next": torch.zeros(2, 3, 4), "kept": []}
    torch.library.opcheck(OP.out, for_out(values), bare)


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("guided", [False, True])
def test_gradcheck(samples, guided):
    values = case(torch.float64, samples, shape=(2, 3))
    values["rows"][..., 4:7] = torch.tensor([-1.0, 1.0, 0.7])  # some of m is clamped

    def step(x, cond, noise, *rest):
        uncond, *history = rest if guided else (None, *rest)
        return flat(
            affine_step(
                x, cond, values["rows"], uncond=uncond, noise=noise, history=history, keeps=2
            )
        )

    rest = [values["uncond"]] * guided + values["history"]
    inputs = [t.requires_grad_() for t in (values["x"], values["cond"], values["noise"], *rest)]
    assert torch.autograd.gradcheck(step, inputs)
    assert torch.autograd.gradgradcheck(step, inputs)


def test_the_formula_of_the_derivative_is_autograds():
    """The registered backward against autograd through the reference, float32."""
    values = case(samples=2)
    inputs = [values["x"], values["uncond"], values["cond"], values["noise"], *values["history"]]
    for tensor in inputs:
        tensor.requires_grad_()
    gradients = []
    for step in (lambda *a: OP.default(*a), affine_step_ref):
        total = sum((t.sin().sum() for t in flat(step(*positional(values)))), torch.tensor(0.0))
        gradients.append(torch.autograd.grad(total, inputs))
    for ours, autograds in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, autograds, rtol=1e-5, atol=1e-6)


def test_no_gradient_wanted_records_none():
    values = case()
    values["x"].requires_grad_()
    with torch.no_grad():
        assert not affine_step(**values)[0].requires_grad
    assert affine_step(**values)[0].requires_grad
    with torch.inference_mode():
        assert affine_step(**case())[0].is_inference()


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_without_graph_breaks(backend):
    """The op in the middle of a graph; the out form with rings and x updated in place."""
    torch._dynamo.reset()
    values = case()

    def functional(x, **rest):
        x_next, x0, kept = affine_step(x.sin(), **rest)
        return x_next.cos(), x0, *kept

    compiled = torch.compile(functional, fullgraph=True, backend=backend)
    for got, expected in zip(compiled(**values), functional(**values), strict=True):
        torch.testing.assert_close(got, expected)

    def in_place(x, ring, entry):
        rest = {k: v for k, v in values.items() if k not in ("x", "history")}
        rest["rows"] = rest["rows"] + 0.0
        affine_step_out(x, **rest, x_next=x, history=ring, model_input=entry)
        return entry * 2

    values["rows"][..., -2:] = torch.tensor([1.0, 0.0])
    outcomes = []
    for run in (in_place, torch.compile(in_place, fullgraph=True, backend=backend)):
        x, ring = values["x"].clone(), [h.clone() for h in values["history"]]
        outcomes.append([run(x, ring, torch.empty_like(x)), x, *ring])
    for got, expected in zip(*outcomes, strict=True):
        torch.testing.assert_close(got, expected)


def test_export():
    values = case()

    class Step(torch.nn.Module):
        def forward(self, x, cond, history, rows):
            return affine_step(x, cond, rows, history=history, noise=x, keeps=2)[0]

    names = ("x", "cond", "history", "rows")
    arguments = tuple(values[name] for name in names)
    batch = {0: torch.export.Dim("batch")}
    shapes = {"x": batch, "cond": batch, "history": [batch, batch], "rows": None}
    program = torch.export.export(Step(), arguments, dynamic_shapes=shapes)
    assert "fastdiff.affine_step" in str(program.graph)
    larger = case(shape=(5, 3, 4))
    arguments = tuple(larger[name] for name in names)
    assert torch.equal(program.module()(*arguments), Step()(*arguments))


def test_fake_and_meta_tensors():
    values = case(shape=(2, 4, 8, 8))
    values["x"] = values["x"].contiguous(memory_format=torch.channels_last)
    with FakeTensorMode() as mode:
        fake = {
            k: [mode.from_tensor(t) for t in v] if k == "history" else v for k, v in values.items()
        }
        fake |= {k: mode.from_tensor(v) for k, v in values.items() if torch.is_tensor(v)}
        x_next, x0, kept = affine_step(**fake, out_dtype=torch.float16)
        into = mode.from_tensor(torch.empty(2, 4, 8, 8))
        assert affine_step_out(**fake, x_next=into) is None
    assert x_next.dtype == torch.float16
    assert x0.stride() == kept[0].stride() == values["x"].stride()
    meta = case()
    meta |= {k: v.to("meta") for k, v in meta.items() if torch.is_tensor(v)}
    meta["history"] = [h.to("meta") for h in meta["history"]]
    assert affine_step(**meta)[0].device.type == "meta"


def test_transforms_of_torch_func():
    values = case(torch.float64, shape=(5, 2, 3))
    expected = flat(affine_step(**values))

    def one(x, cond, uncond, noise, *history):
        return flat(
            affine_step(
                x, cond, values["rows"], uncond=uncond, noise=noise, history=history, keeps=2
            )
        )

    operands = [values[k] for k in ("x", "cond", "uncond", "noise")] + values["history"]
    for got, all_at_once in zip(torch.func.vmap(one)(*operands), expected, strict=True):
        torch.testing.assert_close(got, all_at_once, rtol=0, atol=1e-15)
    tangents = tuple(torch.ones_like(t) for t in operands)
    _, pushed = torch.func.jvp(lambda *a: one(*a)[0], tuple(operands), tangents)
    _, pull = torch.func.vjp(lambda *a: one(*a)[0], *operands)
    pulled = sum(g.sum() for g in pull(torch.ones_like(expected[0])))
    torch.testing.assert_close(pushed.sum(), pulled)


def test_subclasses_and_modes_see_plain_operators_or_the_op():
    class Named(torch.Tensor):
        pass

    values = case()
    expected = affine_step(**values)[0]
    values["x"] = values["x"].as_subclass(Named)
    got = affine_step(**values)[0]
    assert type(got) is Named
    assert torch.equal(got.as_subclass(torch.Tensor), expected)

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    seen = []
    with Record():
        assert torch.equal(affine_step(**case())[0], expected)
    assert "fastdiff.affine_step.default" in seen


WRONG = {
    "a cond of another shape": (
        {"cond": torch.zeros(3)},
        r"cond must have the shape and device of x, \(2, 3, 4\) on cpu; got \(3,\) on cpu",
    ),
    "integer noise": (
        {"noise": torch.zeros(2, 3, 4, dtype=torch.int64)},
        r"noise must be of a floating dtype .* got torch.int64. Try noise.float\(\)",
    ),
    "a row too short": (
        {"rows": torch.zeros(1, 1, row_size(2, 1))},
        r"rows must be \(steps, 1 or 2, 28\) for keeps=2 and 2 history tensors; got \(1, 1, 25\)",
    ),
    "rows for another batch": (
        {"rows": torch.zeros(1, 3, row_size(2, 2))},
        r"rows must be \(steps, 1 or 2, 28\)",
    ),
    "rows in half": (
        {"rows": torch.zeros(1, 1, row_size(2, 2)).half()},
        r"rows must be contiguous float32 .*Try rows.float\(\).contiguous\(\)",
    ),
    "a step that is a Python-sized integer": (
        {"step": torch.tensor(0)},
        r"step must be a 0-d int32 tensor .* got \(\) torch.int64",
    ),
    "a step that is a number": ({"step": 0}, "step must be a 0-d int32 tensor, got 0. Try torch.t"),
    "half a step": ({"noise_step": 1.5}, "noise_step must be an integer, such as 1; got 1.5"),
    "half a vector": ({"keeps": 1.5}, "keeps must be an integer, such as 1; got 1.5"),
    "fewer than no vectors": ({"keeps": -1}, "keeps must be at least 0, got -1"),
    "a list": ({"cond": [0.0]}, r"cond must be a tensor, got \[0.0\]"),
    "8 bits": (
        {"uncond": torch.zeros(2, 3, 4).to(torch.float8_e4m3fn)},
        r"uncond must be .* 16 bits or more, got torch.float8_e4m3fn. Try uncond.float\(\)",
    ),
    "integers as results": (
        {"out_dtype": torch.int32},
        "out_dtype must be a floating dtype of 16 bits or more, got torch.int32. Try torch.float32",
    ),
    "8 bits as results": (
        {"x0_dtype": torch.float8_e4m3fn},
        "x0_dtype must be a floating dtype .* got torch.float8_e4m3fn",
    ),
    "a dtype as text": ({"x0_dtype": "float32"}, "x0_dtype must be a floating .* got 'float32'"),
    "too many history tensors": (
        {"history": [torch.zeros(2, 3, 4)] * 26},
        "at most 64 columns, for at most 25 kept vectors and history tensors",
    ),
    "noise that is needed": ({"noise": None}, "noise is None, but the row weighs it"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_errors_name_the_argument_and_what_would_do(wrong):
    changes, message = WRONG[wrong]
    values = case() | changes
    values["rows"] = changes.get("rows", torch.ones(1, 1, row_size(2, len(values["history"]))))
    with pytest.raises((ValueError, TypeError), match=message):
        affine_step(**values)


@pytest.mark.parametrize("name", ["out_dtype", "x0_dtype"])
def test_float64_results_are_those_of_the_reference(name):
    """Of the same float32 sums; no kernel writes them."""
    values = case() | {name: torch.float64}
    for given in (values, values | {"x": values["x"].clone().requires_grad_()}):
        x_next, *others = flat(affine_step(**given))
        expected = flat(affine_step(**case()))
        assert x_next.dtype == (torch.float64 if name == "out_dtype" else torch.float32)
        assert all(t.dtype == torch.float64 for t in others)
        for got, same in zip([x_next, *others], expected, strict=True):
            assert torch.equal(got.float(), same)
    if backends.why_no_native() is None:
        with backends.use_backend("cpu"), pytest.raises(backends.BackendError, match="float64"):
            affine_step(**values)


@pytest.mark.parametrize("name", ["x_next", "x0", "model_input", "kept"])
def test_what_dtypes_can_be_written_to(name):
    x, values = torch.zeros(2, 3, 4), case()
    for dtype, refused in ((torch.float64, False), (torch.int64, True), (torch.float8_e5m2, True)):
        one = torch.zeros_like(x, dtype=dtype)
        out = {"x_next": x, name: [one, one.clone()] if name == "kept" else one}
        if refused:
            with pytest.raises(TypeError, match=rf"{name}.* must be .* 16 bits .*got {dtype}"):
                affine_step_out(**values, **out)
        else:
            affine_step_out(**values, **out)
            assert one.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("at", [-1, 1])
def test_a_step_outside_the_table(at, dtype):
    """float64: by the reference."""
    values = case(dtype) | {"step": torch.tensor(at, dtype=torch.int32)}
    values["rows"] = values["rows"][:1].contiguous()
    with pytest.raises(IndexError, match=rf"step is .*{at}\b.*, but rows has 1 rows"):
        affine_step(**values)


def test_missing_noise_is_noticed_in_float64_too():
    values = case(torch.float64) | {"noise": None}
    values["rows"].fill_(1.0)
    with pytest.raises(ValueError, match="noise is None, but the row weighs it"):
        affine_step(**values)


def test_the_op_itself_is_checked_too():
    arguments = list(positional(case()))
    arguments[5] = torch.zeros(1, 1, 5)
    with pytest.raises(ValueError, match="rows must be"):
        OP.default(*arguments)
    with pytest.raises(ValueError, match="rows must be"):
        OP.out(*arguments[:8], None, 0, x_next=torch.zeros(2, 3, 4), kept=[])


def test_errors_of_the_out_form():
    values = case()
    memory = torch.zeros(2, 3, 5)
    with pytest.raises(ValueError, match="x_next must be dense"):
        affine_step_out(**values | {"history": []} | {"rows": torch.zeros(1, 1, 22)},
                        x_next=memory[..., :4])  # fmt: skip
    with pytest.raises(ValueError, match=r"x0 must have the shape .* layout of x_next"):
        affine_step_out(**values, x_next=torch.zeros(2, 3, 4), x0=torch.zeros(2, 4, 3).mT)
    with pytest.raises(ValueError, match=r"kept must be empty or 2 tensors \(keeps\), got 1"):
        affine_step_out(**values, x_next=torch.zeros(2, 3, 4), kept=[torch.zeros(2, 3, 4)])
    with pytest.raises(ValueError, match=r"x0 requires grad.*Use affine_step"):
        affine_step_out(
            **values, x_next=torch.zeros(2, 3, 4), x0=torch.zeros(2, 3, 4, requires_grad=True)
        )
    shared = torch.zeros(2, 3, 4)
    with pytest.raises(ValueError, match="must not overlap"):
        affine_step_out(**values, x_next=shared, x0=shared)
    line = torch.zeros(25)
    values["cond"] = line[:24].view(2, 3, 4)
    with pytest.raises(ValueError, match="x_next must not overlap cond"):
        affine_step_out(**values, x_next=line[1:].view(2, 3, 4))
    affine_step_out(**values, x_next=values["cond"])  # in place of an operand is fine
