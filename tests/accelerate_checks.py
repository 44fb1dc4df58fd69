"""What the tests of accelerated networks share: kernels at any size, nearness, rows of the report,
LoRA-like layers."""

import torch
from torch import nn

import fastdiff
from fastdiff.accelerate import choice, norms, upsampling


def every_kernel(monkeypatch):
    """Every kernel there is runs, whatever the size of a tensor."""
    monkeypatch.setattr(choice, "CPU_LEAST", {})
    monkeypatch.setattr(norms, "CPU_LEAST", 1)
    monkeypatch.setattr(norms, "CPU_LEAST_NARROW", 1)
    monkeypatch.setattr(upsampling, "pays", lambda x, weight: None)


def close(a, b):
    """Two orders of sums in float32 through a few dozen layers: about 1e-6 of the size."""
    return (a - b).norm() <= 2e-5 * b.norm()


def rows(network, kind):
    found = [row for row in fastdiff.report(network) if row.kind == f"module {kind}"]
    assert found
    return found


def calls(network, kind):
    """The calls of all modules of a kind, summed."""
    total = {}
    for row in rows(network, kind):
        for what, count in row.calls.items():
            total[what] = total.get(what, 0) + count
    return total


def shape_of(network):
    """All that restoring must give back: classes, attributes, strides."""
    modules = {n: (type(m), set(vars(m))) for n, m in network.named_modules()}
    processors = {n: vars(p) for n, p in getattr(network, "attn_processors", {}).items()}
    strides = {n: w.stride() for n, w in network.named_parameters()}
    return modules, processors, strides


class LoRA(nn.Module):
    """A wrapper as peft makes them: the layer it replaced, and what is added to it."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer
        rank = torch.Generator().manual_seed(0)
        shape = base_layer.weight.shape
        self.delta = nn.Parameter(0.05 * torch.randn(shape, generator=rank))

    @property
    def weight(self):
        return self.base_layer.weight

    @property
    def bias(self):
        return self.base_layer.bias

    def forward(self, x):
        base = self.base_layer
        if isinstance(base, nn.Conv2d):
            return base(x) + base._conv_forward(x, self.delta, None)
        return base(x) + nn.functional.linear(x, self.delta)


ENDS = (
    "conv1",
    "conv2",
    "conv_shortcut",
    "conv",
    "to_q",
    "to_v",
    "0",
    "proj_in",
    "proj_out",
    "proj",
)


def wrap(network, ends=ENDS):
    found = []
    for name, module in list(network.named_modules()):
        for child, layer in list(module.named_children()):
            if child in ends and type(layer) in (nn.Conv2d, nn.Linear):
                setattr(module, child, LoRA(layer))
                found.append(f"{name}.{child}")
    assert found
    return found
