"""group_norm inside PyTorch: opcheck, derivatives, compile, export, transforms, errors."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from fastdiff.ops.group_norm import group_norm, group_norm_out, group_norm_ref
from tests.group_norm_cases import LAYOUTS, in_layout, make_case

OP = torch.ops.fastdiff.group_norm
NAMES = ("x", "groups", "weight", "bias", "eps", "silu", "addend", "residual", "x2", "tokens")
TENSORS = ("x", "weight", "bias", "addend", "residual", "x2")
SPECS = {
    "plain": {},
    "bare": {"affine": False, "silu": False},
    "addend": {"addend": "nc", "tokens": True},
    "all": {"addend": "c", "residual": True, "second": 3},
}


@pytest.fixture(params=SPECS)
def spec(request):
    return SPECS[request.param]


def small(**spec):
    return make_case(**{"shape": (2, 8, 3, 5), "groups": 2} | spec)


def positional(case):
    return tuple(case.get(name) for name in NAMES)


def flat(result):
    return result if isinstance(result, tuple) else (result,)


def wanting(case):
    """The tensors of a case, gradients wanted."""
    return {k: case[k].requires_grad_() for k in TENSORS if case.get(k) is not None}


@pytest.mark.parametrize(
    ("dtype", "layout", "wants_grad"),
    [
        (torch.float32, "contiguous", True),
        (torch.bfloat16, "channels_last", False),
        (torch.float64, "channels_last", False),
    ],
    ids=str,
)
def test_opcheck(spec, wants_grad, dtype, layout):
    case = small(dtype=dtype, layout=layout, **spec)
    if wants_grad:
        wanting(case)
    torch.library.opcheck(OP.default, positional(case))


def test_opcheck_of_the_out_form(spec):
    case = small(**spec)
    y, *total = (torch.empty_like(t) for t in flat(group_norm(**case)))
    out = {"y": y} | ({"total": total[0]} if total else {})
    torch.library.opcheck(OP.out, positional(case), out)


@pytest.mark.parametrize("silu", [False, True])
def test_gradcheck(spec, silu):
    shape = {"shape": (2, 6, 3), "second": 2} if spec.get("second") else {"shape": (2, 6, 3)}
    case = small(**spec | shape | {"dtype": torch.float64, "silu": silu})
    if case.get("addend") is not None:
        case["addend"] = case["addend"].double()
    tensors = wanting(case)

    def run(*values):
        return group_norm(**case | dict(zip(tensors, values, strict=True)))

    assert torch.autograd.gradcheck(run, tuple(tensors.values()))
    assert torch.autograd.gradgradcheck(run, tuple(tensors.values()))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_formula_of_the_derivative_is_autograds(spec, layout):
    """The registered backward against autograd through the reference, in float32."""
    case = small(layout=layout, **spec)
    tensors = wanting(case)
    gradients = []
    for run in (OP.default, group_norm_ref):
        total = sum((t.sin().sum() for t in run(*positional(case))), torch.tensor(0.0))
        gradients.append(torch.autograd.grad(total, list(tensors.values())))
    for ours, autograds in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, autograds, rtol=1e-5, atol=1e-5)


def test_gradients_keep_the_dtypes():
    case = small(**SPECS["all"], dtype=torch.bfloat16, parameters=torch.float32)
    tensors = wanting(case)
    sum(t.float().sum() for t in group_norm(**case)).backward()
    assert all(t.grad.dtype == t.dtype for t in tensors.values())


def test_no_gradient_wanted_records_none():
    case = small()
    case["x"].requires_grad_()
    with torch.no_grad():
        assert not group_norm(**case).requires_grad
    assert group_norm(**case).requires_grad
    with torch.inference_mode():
        assert group_norm(**small()).is_inference()


COMPILED = [(name, "aot_eager", layout) for name in SPECS for layout in LAYOUTS]
COMPILED += [("addend", "inductor", "contiguous"), ("all", "inductor", "channels_last")]


@pytest.mark.parametrize(("name", "backend", "layout"), COMPILED)
def test_compile_without_graph_breaks(name, backend, layout):
    """The op in the middle of a graph, and the out form."""
    torch._dynamo.reset()
    case = small(layout=layout, **SPECS[name])

    def functional(x):
        return tuple(t.cos() for t in flat(group_norm(**case | {"x": x.sin()})))

    compiled = torch.compile(functional, fullgraph=True, backend=backend)
    for got, expected in zip(compiled(case["x"]), functional(case["x"]), strict=True):
        torch.testing.assert_close(got, expected)
        assert got.stride() == expected.stride()

    def out(x, into):
        total = into[1] if len(into) > 1 else None
        group_norm_out(**case | {"x": x.sin()}, out=into[0], total=total)
        return into[0] * 2

    like = flat(group_norm(**case))
    runs = (out, torch.compile(out, fullgraph=True, backend=backend))
    intos = [[torch.empty_like(t) for t in like] for _ in runs]
    doubled = [run(case["x"], into) for run, into in zip(runs, intos, strict=True)]
    torch.testing.assert_close(*doubled)
    torch.testing.assert_close(*intos)


def test_a_compiled_step_of_training():
    torch._dynamo.reset()
    case = small(**SPECS["all"])
    tensors = wanting(case)
    gradients = []
    for run in (group_norm, torch.compile(group_norm, fullgraph=True, backend="aot_eager")):
        total = sum(t.square().sum() for t in run(**case))
        gradients.append(torch.autograd.grad(total, list(tensors.values())))
    torch.testing.assert_close(*gradients)


def test_export():
    class Norm(torch.nn.Module):
        def forward(self, x, x2, residual, addend):
            return group_norm(x, 2, addend=addend, residual=residual, x2=x2, silu=True)[0]

    names = ("x", "x2", "residual", "addend")
    case = small(addend="nc", residual=True, second=3)
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(
        Norm(), tuple(case[n] for n in names), dynamic_shapes=dict.fromkeys(names, batch)
    )
    assert "fastdiff.group_norm" in str(program.graph)
    larger = small(addend="nc", residual=True, second=3, shape=(5, 8, 3, 5))
    arguments = tuple(larger[n] for n in names)
    assert torch.equal(program.module()(*arguments), Norm()(*arguments))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("tokens", [False, True])
def test_fake_and_meta_tensors(spec, layout, tokens):
    case = small(layout=layout, **spec) | {"tokens": tokens}
    real = flat(group_norm(**case))
    for mode in (FakeTensorMode(), None):
        move = mode.from_tensor if mode else lambda t: t.to("meta")
        moved = {k: move(v) if torch.is_tensor(v) else v for k, v in case.items()}
        for a, b in zip(flat(group_norm(**moved)), real, strict=True):
            assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)


def test_transforms_of_torch_func():
    case = small(dtype=torch.float64, silu=True)
    many = torch.randn(4, *case["x"].shape, dtype=torch.float64)
    rest = {k: v for k, v in case.items() if k != "x"}
    mapped = torch.func.vmap(lambda x: group_norm(x, **rest))(many)
    torch.testing.assert_close(mapped, torch.stack([group_norm(x, **rest) for x in many]))
    tangent = torch.ones_like(many[0]).cumsum(-1)
    _, pushed = torch.func.jvp(lambda x: group_norm(x, **rest), (many[0],), (tangent,))
    _, pull = torch.func.vjp(lambda x: group_norm(x, **rest), many[0])
    torch.testing.assert_close(pushed.sum(), (pull(torch.ones_like(pushed))[0] * tangent).sum())


def test_subclasses_and_modes_see_plain_operators_or_the_op():
    class Named(torch.Tensor):
        pass

    case = small()
    got = group_norm(**case | {"x": case["x"].as_subclass(Named)})
    assert type(got) is Named
    torch.testing.assert_close(got.as_subclass(torch.Tensor), group_norm(**case))

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    seen = []
    with Record():
        assert torch.equal(group_norm(**case), OP.default(*positional(case))[0])
    assert "fastdiff.group_norm.default" in seen


X = torch.zeros(2, 8, 3, 5)
WRONG = {
    "one dimension": (
        {"x": torch.zeros(3)},
        r"x must be \(N, C, \*spatial\), got \(3,\). Try x\[None\]",
    ),
    "an integer x": (
        {"x": X.int()},
        r"x must be of a floating dtype of 16 bits or more, got torch.int32. Try x.float\(\)",
    ),
    "an x of 8 bits": (
        {"x": X.to(torch.float8_e5m2)},
        r"x must be of a floating dtype of 16 bits or more, got torch.float8_e5m2. Try x.float\(\)",
    ),
    "no places": (
        {"x": torch.zeros(2, 8, 0)},
        r"at least one channel and one place.*got \(2, 8, 0\)",
    ),
    "no channels": (
        {"x": torch.zeros(2, 0, 3)},
        r"at least one channel and one place.*\(2, 0, 3\)",
    ),
    "no groups": ({"groups": 0}, r"groups must be at least 1 and divide the 8 channels; got 0"),
    "groups that do not divide": ({"groups": 3}, r"divide the 8 channels; got 3"),
    "groups that do not divide both": (
        {"x2": torch.zeros(2, 1, 3, 5)},
        r"divide the 9 channels of x and x2; got 2",
    ),
    "a negative eps": ({"eps": -1e-5}, r"eps must not be negative, got -1e-05. Try 1e-5"),
    "an eps that is none": ({"eps": float("nan")}, r"eps must not be negative, got nan"),
    "x2 of other places": (
        {"x2": torch.zeros(2, 8, 3, 4)},
        r"x2 must have the shape of x but for its channels, \(2, any, 3, 5\); got \(2, 8, 3, 4\)",
    ),
    "x2 of another batch": (
        {"x2": torch.zeros(1, 8, 3, 5)},
        r"\(2, any, 3, 5\); got \(1, 8, 3, 5\)",
    ),
    "x2 without channels": ({"x2": torch.zeros(2, 0, 3, 5)}, r"For no second source pass None"),
    "x2 of another rank": ({"x2": torch.zeros(2, 8)}, r"x2 must have the shape of x"),
    "x2 of another dtype": (
        {"x2": X.half()},
        r"x2 must be of the dtype of x, torch.float32; got torch.float16. Try x2.to\(x.dtype\)",
    ),
    "x2 elsewhere": (
        {"x2": X.to("meta")},
        r"x2 must be \(2, 8, 3, 5\) on the device of x, cpu; got .* on meta",
    ),
    "a residual without the second source": (
        {"residual": X, "x2": X},
        r"residual must be \(2, 16, 3, 5\) on the device of x, cpu; got \(2, 8, 3, 5\) on cpu",
    ),
    "a residual of another dtype": (
        {"residual": X.double()},
        r"residual must be of the dtype of x, torch.float32; got torch.float64",
    ),
    "a weight too short": (
        {"weight": torch.ones(7)},
        r"weight must be \(8,\) on the device of x, cpu; got \(7,\) on cpu. Try weight.flatten\(\)",
    ),
    "a bias of another dtype": (
        {"bias": torch.ones(8).half()},
        r"bias must be float32 or of the dtype of x, torch.float32; got torch.float16. Try bias.to",
    ),
    "an addend with places": (
        {"addend": torch.ones(2, 8, 1, 1)},
        r"addend must be \(2, 8\) or \(8,\) on the device of x, cpu; got \(2, 8, 1, 1\).*flatten",
    ),
    "an integer addend": (
        {"addend": torch.ones(8, dtype=torch.int64)},
        r"addend must be of a floating dtype .* got torch.int64. Try addend.float\(\)",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_errors_name_the_argument_and_what_would_do(wrong):
    changes, message = WRONG[wrong]
    case = {"x": X, "groups": 2} | changes
    kind = TypeError if "dtype" in message else ValueError
    with pytest.raises(kind, match=message):
        group_norm(**case)
    with pytest.raises(kind, match=message):  # whoever calls the op itself is checked, too
        OP.default(*positional({"eps": 1e-5, "silu": False, "tokens": False} | case))
    with pytest.raises(kind, match=message):
        group_norm_out(**case, out=torch.empty_like(X))


OTHER_KINDS = {
    "half a group": ({"groups": 2.0}, "groups must be an integer, such as 1; got 2.0"),
    "no eps": ({"eps": None}, "eps must be a number, such as 1.0; got None"),
    "an eps as text": ({"eps": "1e-5"}, "eps must be a number, such as 1.0; got '1e-5'"),
    "a list": ({"x": [0.0]}, r"x must be a tensor, got \[0.0\]. Try torch.as_tensor\(x\)"),
    "a second list": ({"x2": [0.0]}, "x2 must be a tensor"),
    "a number as weight": ({"weight": 1.0}, "weight must be a tensor, got 1.0"),
    "a number as residual": ({"residual": 0.0}, "residual must be a tensor, got 0.0"),
}


@pytest.mark.parametrize("wrong", OTHER_KINDS)
def test_what_is_of_another_kind(wrong):
    changes, message = OTHER_KINDS[wrong]
    case = {"x": X, "groups": 2} | changes
    with pytest.raises(TypeError, match=message):
        group_norm(**case)
    with pytest.raises(TypeError, match=message):
        group_norm_out(**case, out=torch.empty_like(X))


LAST = in_layout(X, "channels_last")
WRONG_OUT = {
    "total without residual": (
        {"out": X.clone(), "total": X.clone()},
        "got total without residual. Try total=None",
    ),
    "residual without total": (
        {"residual": X, "out": X.clone()},
        r"got residual without total. Try total=torch.empty_like\(residual\)",
    ),
    "out of another shape": (
        {"out": torch.zeros(2, 8, 3)},
        r"out must be \(2, 8, 3, 5\) on the device of x, cpu; got \(2, 8, 3\)",
    ),
    "out of tokens": (
        {"out": X.clone(), "tokens": True},
        r"out must be \(2, 15, 8\) on the device",
    ),
    "out of another dtype": (
        {"out": X.half()},
        r"out must be of the dtype of x, torch.float32; got torch.float16",
    ),
    "out in another layout": (
        {"out": LAST.clone()},
        r"out must be contiguous; got strides \(120, 1, 40, 8\) for",
    ),
    "total in another layout": (
        {"x": LAST, "residual": X, "out": LAST.clone(), "total": X.clone()},
        r"total must be channels last, as x is; got strides \(120, 15, 5, 1\).*movedim\(-1, 1\)",
    ),
    "tokens with gaps": (
        {"out": torch.zeros(2, 15, 16)[..., :8], "tokens": True},
        r"out must be contiguous; got strides \(240, 16, 1\) for \(2, 15, 8\)",
    ),
    "out that wants a gradient": (
        {"out": X.clone().requires_grad_()},
        "out requires grad, and the out form records none. Use group_norm",
    ),
    "out that is x": ({"out": X}, "out must not overlap x in memory. Give it memory of its own"),
    "out over the residual": (
        {"residual": X[:], "x": X + 1, "out": X, "total": X + 1},
        "out must not overlap residual",
    ),
    "total that is x": ({"residual": X + 1, "out": X + 1, "total": X}, "total must not overlap x"),
}


@pytest.mark.parametrize("wrong", WRONG_OUT)
def test_errors_of_the_out_form(wrong):
    changes, message = WRONG_OUT[wrong]
    with pytest.raises((ValueError, TypeError), match=message):
        group_norm_out(**{"x": X, "groups": 2} | changes)


def test_outputs_that_overlap():
    line = torch.zeros(300)
    x, weight = torch.zeros(2, 8, 3, 5), torch.ones(8)
    out, total = line[:240].view(2, 8, 3, 5), line[60:].view(2, 8, 3, 5)
    with pytest.raises(ValueError, match="total must not overlap out"):
        group_norm_out(x, 2, residual=x, out=out, total=total)
    with pytest.raises(ValueError, match="out must not overlap weight"):
        group_norm_out(x, 2, line[232:240], out=out)
    group_norm_out(x, 2, line[240:248], weight, out=out)  # side by side is fine
    # A view with gaps is copied before anything is written.
    wide = torch.randn(2, 8, 3, 10)
    expected = group_norm(wide[..., ::2], 2)
    group_norm_out(wide[..., ::2], 2, out=wide.flatten()[:240].view(2, 8, 3, 5))
    assert torch.equal(wide.flatten()[:240].view(2, 8, 3, 5), expected)
