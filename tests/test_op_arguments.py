"""What every op makes of its arguments that are no tensors, and of tensors that are not dense."""

import numpy as np
import pytest
import torch

from fastdiff import backends
from fastdiff.ops import attention, cross_attention
from fastdiff.ops._attention_table import Choice
from fastdiff.ops.abs_quantile import abs_quantile, threshold_rows
from fastdiff.ops.add_layer_norm import add_layer_norm
from fastdiff.ops.affine_step import affine_step, affine_step_out, row_size
from fastdiff.ops.bias_residual import bias_residual
from fastdiff.ops.geglu import geglu
from fastdiff.ops.group_norm import group_norm, group_norm_out
from fastdiff.ops.philox_normal import philox_normal
from fastdiff.ops.upsample_conv import upsample_conv

X = torch.ones(2, 8, 4, 4)
Q = torch.ones(2, 3, 2, 8)
ROW = torch.zeros(1, 1, row_size(0, 0))
SEEDS = torch.tensor([1, 2])
WEIGHT = torch.ones(4, 8, 3, 3)

NUMBERS = {  # op -> a call; the argument; what it is to be
    "group_norm groups": (lambda n: group_norm(X, n), "groups", 2),
    "group_norm eps": (lambda n: group_norm(X, 2, eps=n), "eps", 0.5),
    "group_norm_out groups": (
        lambda n: group_norm_out(X, n, out=torch.empty_like(X)), "groups", 2,
    ),
    "group_norm_out eps": (lambda n: group_norm_out(X, 2, eps=n, out=X.clone()), "eps", 0.5),
    "add_layer_norm": (lambda n: add_layer_norm(X, X, eps=n), "eps", 0.5),
    "bias_residual": (lambda n: bias_residual(X, scale=n), "scale", 0.5),
    "abs_quantile": (lambda n: abs_quantile(X, n), "p", 0.5),
    "threshold_rows p": (lambda n: threshold_rows(X, n, 2.0, ROW), "p", 0.5),
    "threshold_rows maximum": (lambda n: threshold_rows(X, 0.5, n, ROW), "maximum", 2.5),
    "attention": (lambda n: attention.attention(Q, Q, Q, scale=n), "scale", 0.5),
    "cross_attention": (lambda n: cross_attention.cross_attention(Q, Q, Q, scale=n), "scale", 0.5),
    "affine_step noise_step": (
        lambda n: affine_step(X, X, ROW, seeds=SEEDS, noise_step=n), "noise_step", 3,
    ),
    "affine_step keeps": (
        lambda n: affine_step(X, X, torch.zeros(1, 1, row_size(1, 0)), keeps=n), "keeps", 1,
    ),
    "affine_step_out": (
        lambda n: affine_step_out(X, X, ROW, x_next=X.clone(), seeds=SEEDS, noise_step=n),
        "noise_step", 3,
    ),
    "philox_normal noise_step": (
        lambda n: philox_normal(SEEDS, (3,), noise_step=n), "noise_step", 3,
    ),
    "philox_normal stream": (lambda n: philox_normal(SEEDS, (3,), stream=n), "stream", 3),
    "philox_normal shape": (lambda n: philox_normal(SEEDS, (n,)), r"shape\[0\]", 3),
}  # fmt: skip


@pytest.fixture
def launched(monkeypatch):
    """What launchers were given: [argument, ..], none of which runs."""
    given = []

    def resolve(op, key):
        return lambda *args: given.extend(args)

    monkeypatch.setattr(backends, "resolve", resolve)
    monkeypatch.setattr(attention, "_choice", lambda *args: Choice("triton", "for the test"))
    monkeypatch.setattr(cross_attention, "_too_large", lambda *args: None)
    monkeypatch.setattr(backends, "chosen", lambda *args: "triton")
    return given


@pytest.mark.parametrize("name", NUMBERS)
def test_launchers_get_pythons_numbers(launched, name):
    """Triton specialises no others, and takes a tensor for an address."""
    run, _, value = NUMBERS[name]
    kinds = (np.int64, np.int32, np.array) if isinstance(value, int) else (np.float32, np.array)
    for kind in (*kinds, type(value)):
        del launched[:]
        run(kind(value))
        assert launched
        for argument in launched:
            if not isinstance(argument, (torch.Tensor, list)):
                assert type(argument) in (int, float, bool, type(None)), argument
        if name not in ("abs_quantile", "threshold_rows p", "philox_normal shape"):
            assert value in [a for a in launched if type(a) in (int, float)]


@pytest.mark.parametrize("name", NUMBERS)
def test_a_tensor_is_no_number(name):
    """To read it would wait for its device.  A meta tensor cannot be read at all."""
    run, argument, value = NUMBERS[name]
    kind = "an integer" if isinstance(value, int) else "a number"
    for tensor in (torch.tensor(value), torch.tensor([value]), torch.tensor(value, device="meta")):
        words = rf"{argument} must be {kind}, such as .* got a tensor \(.* on .*item\(\)"
        with pytest.raises(TypeError, match=words):
            run(tensor)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("wrong", ["2", [2], np.ones(2), 1j], ids=str)
def test_what_is_no_number(name, wrong):
    run, argument, value = NUMBERS[name]
    kind = "an integer" if isinstance(value, int) else "a number"
    with pytest.raises(TypeError, match=f"{argument} must be {kind}, such as .*; got"):
        run(wrong)


@pytest.mark.parametrize("name", ["silu", "tokens"])
def test_flags(launched, name):
    for wrong in ("no", None, 1.0, torch.tensor(True)):
        with pytest.raises(TypeError, match=f"{name} must be True or False; got"):
            group_norm(X, 2, **{name: wrong})
        with pytest.raises(TypeError, match=f"{name} must be True or False; got"):
            group_norm_out(X, 2, out=X.clone(), **{name: wrong})
    for right in (True, np.bool_(True), 1):
        del launched[:]
        group_norm(X, 2, **{name: right})
        assert launched[9 if name == "tokens" else 5] is True


MESSAGES = {
    "a weight that is none": (
        lambda: upsample_conv(X, None), "weight must be a tensor, got None. Try torch.as_tensor",
    ),
    "a list as bias": (
        lambda: upsample_conv(X, WEIGHT, [1.0]), r"bias must be a tensor, got \[1\.0\]",
    ),
    "no history": (
        lambda: affine_step(X, X, ROW, history=None),
        r"history must be a list of tensors, got None\. Try \[\]",
    ),
    "one tensor as history": (
        lambda: affine_step(X, X, ROW, history=X),
        r"history must be a list of tensors, got a tensor\. Try \[history\]",
    ),
    "no list of kept": (
        lambda: affine_step_out(X, X, ROW, x_next=X.clone(), kept=None),
        "kept must be a list of tensors, got None",
    ),
    "no result": (
        lambda: affine_step_out(X, X, ROW, x_next=None), "x_next must be a tensor, got None",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MESSAGES)
def test_messages(name):
    run, words = MESSAGES[name]
    with pytest.raises(TypeError, match=words):
        run()


def test_a_negative_noise_step_is_refused_without_seeds_too():
    for seeds in (None, SEEDS):
        with pytest.raises(ValueError, match=r"noise_step must be an integer from 0 .*, got -5"):
            affine_step(X, X, ROW, noise_step=-5, seeds=seeds)


OPS = {
    "group_norm": lambda x: group_norm(x, 2),
    "add_layer_norm": lambda x: add_layer_norm(x, None),
    "bias_residual": bias_residual,
    "geglu": geglu,
    "abs_quantile": lambda x: abs_quantile(x, 0.5),
    "upsample_conv": lambda x: upsample_conv(x, WEIGHT),
    "affine_step": lambda x: affine_step(x, X, ROW),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("op", OPS)
def test_x_must_be_dense(op):
    with pytest.raises(TypeError, match=r"^x must be .*got layout torch\.sparse.*Try x\.to_dense"):
        OPS[op](X.to_sparse())
    if torch.backends.mkldnn.is_available():
        with pytest.raises(
            TypeError, match=r"^x must be .*got layout torch\._mkldnn\. Try x\.to_d"
        ):
            OPS[op](X.to_mkldnn())
    for layout in (torch.strided, torch.jagged):
        nested = torch.nested.nested_tensor([torch.ones(8, 4), torch.ones(8, 4)], layout=layout)
        with pytest.raises(TypeError, match=r"^x must be .*got a nested one\. Try torch\.nested"):
            OPS[op](nested)


def test_others_must_be_dense_too():
    sparse = Q.to_sparse()
    for name in "qkv":
        args = {"q": Q, "k": Q, "v": Q} | {name: sparse}
        for run in (attention.attention, cross_attention.cross_attention):
            with pytest.raises(TypeError, match=rf"^{name} must be .*got layout torch\.sparse_coo"):
                run(**args)
    with pytest.raises(TypeError, match=r"^weight must be .*got layout"):
        group_norm(X, 2, torch.ones(8).to_sparse())
    with pytest.raises(TypeError, match=r"^seeds must be .*got layout"):
        philox_normal(SEEDS.to_sparse(), (3,))


def test_a_number_of_another_kind_gives_the_same_bits():
    for kind in (np.float32, np.float64, int):
        eps = kind(2)
        assert torch.equal(group_norm(X, np.int64(2), eps=eps), group_norm(X, 2, eps=2.0))
