"""What users do to a network that is accelerated: change weights, load LoRA, hook, patch, copy,
restore.  Kernels run, however small the tensors (`kernels`)."""

import copy
import functools
import pickle

import pytest
import torch
from torch import nn

import fastdiff
from fastdiff.accelerate import choice

from .accelerate_checks import ENDS, LoRA, calls, close, every_kernel, rows, shape_of, wrap
from .tiny_pipelines import NETWORKS, drawn, run, sd15, sdxl, vae


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    every_kernel(monkeypatch)


pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.mark.parametrize("name", NETWORKS)
def test_restore_gives_back_everything(name):
    network = NETWORKS[name]()
    before, first = shape_of(network), run(network)
    names = list(network.state_dict())
    fast = run(fastdiff.accelerate(network))
    assert list(network.state_dict()) == names
    assert shape_of(network)[2] != before[2]  # laid out channels_last
    assert fastdiff.accelerate(network) is network  # twice is once
    assert close(fast, first)
    assert not torch.equal(fast, first)  # other sums: it did run something else
    assert fastdiff.restore(network) is network
    assert shape_of(network) == before
    assert torch.equal(run(network), first)
    fastdiff.restore(network)
    assert shape_of(network) == before


def test_a_stock_network_is_not_touched_by_restore_or_report():
    network = sd15()
    before = shape_of(network)
    report = fastdiff.report(fastdiff.restore(network))
    assert shape_of(network) == before
    assert {row.backend for row in report} == {"stock"}
    assert all("fastdiff.accelerate" in row.why for row in report)


@pytest.mark.parametrize(
    "twin", [copy.deepcopy, lambda n: pickle.loads(pickle.dumps(n))], ids=["deepcopy", "pickle"]
)
def test_copies_are_accelerated_and_their_own(twin):
    network = fastdiff.accelerate(sd15())
    first = run(network)
    other = twin(network)
    assert torch.equal(run(other), first)
    assert calls(other, "ResnetBlock2D")["fused"] == 2 * calls(network, "ResnetBlock2D")["fused"]
    fastdiff.restore(other)
    assert type(network) is not type(other)
    assert torch.equal(run(network), first)


@pytest.mark.parametrize("make", [sd15, vae])
@pytest.mark.parametrize("change", ["load_state_dict", "in place", "assigned", "to"])
def test_weights_that_change_are_followed(make, change):
    """Nothing of a weight is kept: not the bias that a norm adds, not the 1x1 products."""
    network, other = fastdiff.accelerate(make()), drawn(make(), seed=7)
    before = run(network)
    if change == "load_state_dict":
        network.load_state_dict(other.state_dict())
    elif change == "assigned":
        network.load_state_dict(other.state_dict(), assign=True)
    elif change == "in place":
        for mine, theirs in zip(network.parameters(), other.parameters(), strict=True):
            mine.mul_(0).add_(theirs)
    else:
        other = make()
        network.to(torch.bfloat16).to(torch.float32)
        other.to(torch.bfloat16).to(torch.float32)
    assert close(run(network), run(other))
    assert not close(run(network), before)
    fastdiff.restore(network)
    assert torch.equal(run(network), run(other))


def unwrap(network):
    for module in list(network.modules()):
        for child, layer in list(module.named_children()):
            if isinstance(layer, LoRA):
                setattr(module, child, layer.base_layer)


@pytest.mark.parametrize(
    ("make", "ends"),
    [(sd15, ENDS), (sdxl, ENDS), (vae, ENDS), *[(sd15, (end,)) for end in ENDS]],
    ids=lambda value: getattr(value, "__name__", None) or "-".join(value),
)
def test_lora_loaded_and_unloaded_after_accelerate(make, ends):
    network, stock = fastdiff.accelerate(make()), make()
    first = run(network)
    wrap(network, ends)
    wrap(stock, ends)
    assert close(run(network), run(stock))
    assert not close(run(network), first)
    restored = fastdiff.restore(copy.deepcopy(network))
    assert torch.equal(run(restored), run(stock))
    unwrap(network)
    assert torch.equal(run(network), first)


def test_lora_loaded_before_accelerate():
    network = sd15()
    wrap(network)
    first = run(network)
    assert close(run(fastdiff.accelerate(network)), first)
    assert torch.equal(run(fastdiff.restore(network)), first)


LEAVES = (nn.Conv2d, nn.Linear, nn.GroupNorm, nn.LayerNorm, nn.SiLU, nn.Dropout)


@pytest.mark.parametrize("make", [sd15, sdxl, vae])
@pytest.mark.parametrize("when", ["before", "after"])
def test_hooks_on_every_layer_are_called(make, when):
    """And what they return is used: here every output, doubled and halved again."""
    network, stock = make(), make()
    seen = {id(network): [], id(stock): []}
    if when == "before":
        fastdiff.accelerate(network)
    for one in (network, stock):
        for name, module in one.named_modules():
            if isinstance(module, LEAVES):
                module.register_forward_hook(
                    lambda m, i, o, name=name, one=one: (
                        seen[id(one)].append((name, 2 * o)) or 2 * o / 2
                    )
                )
    if when == "after":
        fastdiff.accelerate(network)
    assert close(run(network), run(stock))
    a, b = seen[id(network)], seen[id(stock)]
    assert [name for name, _ in a] == [name for name, _ in b]
    for (name, x), (_, y) in zip(a, b, strict=True):
        assert close(x, y), name


def offload(module):
    """What offloading does to a layer: weights are elsewhere until its forward is called."""
    module._old_forward = module.forward
    here = {n: w.data for n, w in module.named_parameters(recurse=False)}

    def forward(module, *args, **kwargs):
        for n, w in here.items():
            getattr(module, n).data = w
        out = module._old_forward(*args, **kwargs)
        for n, w in here.items():
            getattr(module, n).data = torch.full_like(w, float("nan"))
        return out

    module.forward = functools.partial(forward, module)
    for n, w in here.items():
        getattr(module, n).data = torch.full_like(w, float("nan"))


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("make", [sd15, sdxl, vae])
def test_weights_that_are_elsewhere_until_a_layer_is_called(make, when):
    network, first = make(), run(make())
    if when == "after":
        fastdiff.accelerate(network)
    for module in list(network.modules()):
        if isinstance(module, LEAVES) and list(module.parameters()):
            offload(module)
    if when == "before":
        fastdiff.accelerate(network)
    assert close(run(network), first)


def test_a_hook_on_the_network_keeps_calling_the_fast_forward():
    """As enable_model_cpu_offload sets it: the old forward, bound, in the object itself."""
    network, first = sd15(), run(sd15())
    network._old_forward = network.forward
    network.forward = lambda *args, **kwargs: network._old_forward(*args, **kwargs)
    assert close(run(fastdiff.accelerate(network)), first)
    assert rows(network, "GroupNorm")[0].calls == {"fused": 1}
    assert choice.tally(network.conv_norm_out).paired
    assert torch.equal(run(fastdiff.restore(network)), first)


def test_a_forward_that_was_patched_is_left_alone_and_reported():
    network = sd15()
    block, count = network.mid_block.resnets[0], []
    stock = block.forward
    block.forward = lambda *args, **kwargs: count.append(1) or stock(*args, **kwargs)
    run(fastdiff.accelerate(network))
    assert count
    (row,) = [r for r in fastdiff.report(network) if r.name == "module.mid_block.resnets.0"]
    assert row.backend == "stock"
    assert "forward is replaced" in row.why


def test_a_forward_that_is_patched_later_and_restored_in_any_order():
    """As DeepCache does: the bound method is kept, wrapped, and put back."""
    network = sd15()
    first = run(network)
    fastdiff.accelerate(network)
    block = network.up_blocks[0].resnets[0]
    kept = block.forward
    block.forward = lambda *args, **kwargs: kept(*args, **kwargs)
    assert close(run(network), first)
    fastdiff.restore(network)
    assert torch.equal(run(network), first)  # the kept method sees that it was restored
    del block.forward
    assert torch.equal(run(network), first)
