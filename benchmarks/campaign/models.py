"""A whole network with random weights: eager, channels last, torch.compile, fastdiff.

    eager                   as diffusers loads it
    eager, channels last    the same, weights and input channels last
    .., graph               the same in a CUDA graph: what is left when the host costs nothing
    fastdiff                fastdiff.accelerate(model), channels last; and in a graph
    torch.compile           max-autotune, CUDA graphs, channels last; one compile; last, for it is
                            slow to begin

Each contestant is a row: ms of a step, cold start (the first call, compiling included), peak
memory.  What it returns is compared with float32 first: an error of at most twice that of the
worse of eager's two layouts, plus eps / 4 of the result, root mean squares.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.campaign.clock import Timer, captured, compare, on_the_device, on_the_host
from benchmarks.campaign.model_configs import MODELS, PEAK, TINY, Model
from benchmarks.campaign.record import Row
from benchmarks.campaign.task import RED, Task
from benchmarks.side_by_side import OURS

KERNELS = ("cuda", "triton", "cpu")
EAGER, LAST, COMPILED = "eager", "eager, channels last", "torch.compile"
Step = Callable[[], Tensor]


def run(name: str, task: Task) -> None:
    import diffusers  # a stage without diffusers is one that is not run, with these words

    assert diffusers is not None
    model = (TINY if task.dry else MODELS)[name]
    dtypes = ["float32"] if task.dry else ["bfloat16", *["float16"] * task.full]
    for dtype in dtypes:
        for times in [1, *[8] * task.full]:
            sized = model._replace(batch=times * model.batch, flops=times * model.flops)
            one_size(task, name, sized, dtype)


def one_size(task: Task, name: str, model: Model, dtype: str) -> None:
    case = {"model": name, "batch": model.batch, "dtype": dtype}
    wanted = contestants(task)
    names = {who: f"{name} {model.batch} {dtype} {who}" for who in wanted}
    if all(row in task.done for row in names.values()):
        return
    bench = Bench(task, model, getattr(torch, dtype))
    for who in wanted:
        what = {"benchmark": "model", "case": {**case, "contestant": who}}
        if who == COMPILED and (task.dry or not task.compiles):
            without = {} if task.compiles else {"left out": COMPILED}
            task.skip(names[who], "torch.compile was left out", **what, **without)
        elif who.startswith(OURS) and (red := task.context.get("red")):
            words = "; ".join(f"{op}: {why}" for op, why in red.items())
            task.skip(names[who], RED.format(words), **what)
        else:
            task.measure(names[who], functools.partial(bench.measure, who), **what)


def contestants(task: Task) -> list[str]:
    """In the order in which they are measured: the slow to start last."""
    graph = [f"{who}, graph" for who in (LAST, OURS)] if task.device == "cuda" else []
    return [EAGER, LAST, OURS, *graph, COMPILED]


class Bench:
    """One network, one input, and how wrong eager is."""

    def __init__(self, task: Task, model: Model, dtype: torch.dtype):
        self.task, self.model, self.dtype = task, model, dtype
        self.network: Any = None
        self.own = 0.0  # root mean square error of eager, the worse of two layouts
        self.truth: Tensor | None = None

    def measure(self, who: str) -> Row:
        self._prepare()
        assert self.truth is not None
        if self.task.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        with torch.no_grad(), self._as(who) as (step, timer, cold, facts):
            error, size = rms(step().float() - self.truth), rms(self.truth)
            bound = 2 * self.own + torch.finfo(self.dtype).eps / 4 * size
            assert error <= bound, f"wrong by {error:.3g}, allowed {bound:.3g}, of {size:.3g}"
            times = compare(self.task, {who: timer}, seconds=4.0, least=10)
        found = {"rms error": error, "bound": bound, "rms": size}
        row: Row = {"flops": self.model.flops, "floor_ms": self.model.flops / PEAK * 1e3}
        row |= {"cold_start_s": round(cold, 3), "check": found, **facts}
        if self.task.device == "cuda":
            row["peak_bytes"] = torch.cuda.max_memory_allocated()
        return row | {"times": times}

    def _prepare(self) -> None:
        """The network and its result in float32, and the errors of eager."""
        if self.truth is not None:
            return
        torch.backends.cudnn.allow_tf32 = False  # the truth is float32
        with torch.no_grad():
            self.network = build(self.model, self.task.device)
            inputs = make_inputs(self.model, self.task.device)
            state = {k: v.to(self.dtype) for k, v in self.network.state_dict().items()}
            self.network.load_state_dict(state)  # rounded weights, in float32
            inputs = {
                k: v.to(self.dtype) if v.is_floating_point() else v for k, v in inputs.items()
            }
            wide = {k: v.float() if v.is_floating_point() else v for k, v in inputs.items()}
            truth = call(self.model, self.network, wide)
            self.network, self.inputs = self.network.to(self.dtype), inputs
            for layout in (torch.contiguous_format, torch.channels_last):
                self.network.to(memory_format=layout)
                got = call(self.model, self.network, laid_out(inputs, layout)).float()
                self.own = max(self.own, rms(got - truth))
            self.truth = truth

    @contextlib.contextmanager
    def _as(self, who: str) -> Iterator[tuple[Step, Timer, float, Row]]:
        """step, timer, seconds of the first call, what else is to be said."""
        import fastdiff

        layout = torch.contiguous_format if who == EAGER else torch.channels_last
        network = self.network.to(memory_format=layout)
        inputs, facts = laid_out(self.inputs, layout), dict[str, Any]()
        ours = who.startswith(OURS)
        start = time.perf_counter()
        if ours:
            fastdiff.accelerate(network)
        try:
            if ours:
                facts["report"] = taken(fastdiff.report(network))
            run = compiled(network, self.model) if who == COMPILED else network
            step = functools.partial(call, self.model, run, inputs)
            step()
            if self.task.device == "cuda":
                torch.cuda.synchronize()
            cold = time.perf_counter() - start
            if who.endswith("graph"):
                held: list[Tensor] = []
                graph = captured(lambda: held.append(step()), warm=2)
                result = held[-1]
                del held[:]

                def replay() -> Tensor:
                    graph.replay()
                    return result

                yield replay, on_the_device(graph.replay, 1), cold, facts
            elif self.task.device == "cuda":
                yield step, on_the_device(step, 1), cold, facts
            else:
                yield step, on_the_host(step), cold, facts
        finally:
            if ours:
                fastdiff.restore(network)


def taken(report: Any) -> dict[str, int]:
    """{backend: how many modules}; refuses to call a model without a kernel of ours fastdiff."""
    found: dict[str, int] = {}
    for row in report:
        found[row.backend] = found.get(row.backend, 0) + 1
    if not set(found) & set(KERNELS):
        why = next((row.why for row in report), "no module was listed")
        raise NotImplementedError(f"no module of it runs on a kernel of fastdiff: {why}")
    return found


def compiled(network: Any, model: Model) -> Any:
    """max-autotune has CUDA graphs."""
    torch._dynamo.reset()
    if model.kind == "vae":
        decode = torch.compile(network.decode, mode="max-autotune", fullgraph=False, dynamic=False)
        return Decoder(decode)
    return torch.compile(network, mode="max-autotune", fullgraph=True, dynamic=False)


class Decoder:
    """Something that decodes."""

    def __init__(self, decode: Any):
        self.decode = decode


def build(model: Model, device: str) -> Any:
    """float32, in evaluation mode, weights as their modules draw them."""
    import diffusers

    torch.manual_seed(0)
    classes = {"unet": diffusers.UNet2DConditionModel, "vae": diffusers.AutoencoderKL}
    with torch.device(device):
        return classes[model.kind](**model.config).eval()


def make_inputs(model: Model, device: str) -> dict[str, Tensor]:
    draw = torch.Generator(device).manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, device=device)

    inputs = {"sample": normal(model.batch, 4, model.side, model.side)}
    if model.kind == "unet":
        inputs["timestep"] = torch.tensor(501, device=device)
        inputs["encoder_hidden_states"] = normal(model.batch, model.tokens, model.width)
    if model.pooled:
        inputs["text_embeds"] = normal(model.batch, model.pooled)
        inputs["time_ids"] = torch.tensor([[1024.0, 1024, 0, 0, 1024, 1024]], device=device).repeat(
            model.batch, 1
        )
    return inputs


def laid_out(inputs: dict[str, Tensor], layout: torch.memory_format) -> dict[str, Tensor]:
    return {k: v.contiguous(memory_format=layout) if v.dim() == 4 else v for k, v in inputs.items()}


def call(model: Model, network: Any, inputs: dict[str, Tensor]) -> Tensor:
    if model.kind == "vae":
        decoded: Tensor = network.decode(inputs["sample"], return_dict=False)[0]
        return decoded
    given: dict[str, Any] = dict(inputs)
    added = {k: given.pop(k) for k in ("text_embeds", "time_ids") if k in given}
    given |= {"added_cond_kwargs": added} if added else {}
    result: Tensor = network(**given, return_dict=False)[0]
    return result


def rms(error: Tensor) -> float:
    return float(error.float().square().mean().sqrt())
