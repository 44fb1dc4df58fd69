"""The built-in U-Net in an engine: ONNX Runtime by fastdiff.load_engine, against its peers.

    network   one call: eager, torch.compile, and OpenVINO with the bundle's own unet.onnx, as it
              lies there (any shape) and with the shape of the case fixed
    picture   noise and prompt to pictures: "fastdiff generate" with --engine, without, and by
              diffusers' StableDiffusionPipeline of the folder with its stock scheduler
    process   processes of their own: seconds to the first answer, the most memory
    export    fastdiff.export of the built-in model, step by step; what the bundle weighs

Two threads, float32.  Before a network is timed its root mean square error against float64 must be
at most twice that of eager plus eps / 4 of the result, whoever's it is.  Pictures must differ by
one of 255 levels at most: roundings of float32 are far below half a level, so a level may round the
other way, no more.

The bundle is exported here, once, or is that of --bundle.  Without one nothing runs that is not
timed for its own sake, for an export takes a minute.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from benchmarks import bench_modules, engine_process, openvino_peer
from benchmarks.provenance import ROOT
from benchmarks.results import EAGER_NETWORK, OPENVINO, OPENVINO_FIXED, TORCH_COMPILE, WITHOUT
from benchmarks.side_by_side import OURS, measure, summary

THREADS = 2
PROMPT = "a red circle above a blue square"
SAMPLER, STEPS, PICTURE_LEVELS = "dpmpp_2m", 20, 1
FEW = 4  # divides 1000, as STEPS does: diffusers rounds times to integers, our plans do not
ROUNDS = {1: 40, 8: 20}
PROCESSES = 3  # of each
TIMES = {EAGER_NETWORK: 1}  # eager's error, at most; of the others 2, as everywhere
LARGEST = 16  # samples of a call: eight pictures with guidance


class Made(NamedTuple):
    """A bundle; what was told on the way, and the seconds, where it was made here."""

    path: Path
    steps: list[Any]
    seconds: float


@pytest.fixture
def bundle(request: Any, benchmark: Any, tmp_path_factory: Any) -> Made:
    if (given := request.config.getoption("--bundle", None)) is not None:
        return Made(Path(given), [], 0.0)
    if quick(benchmark):
        pytest.skip("an export takes a minute, and no --bundle was given")
    return exported(tmp_path_factory.getbasetemp() / "engine")


@functools.cache
def exported(folder: Path) -> Made:
    folder.mkdir()
    return export(folder / "bundle")


def export(out: Path) -> Made:
    import fastdiff
    from fastdiff.cli import model

    torch.set_num_threads(THREADS)
    pipe, steps = model.load(model.built_in(), "cpu"), list[Any]()
    start = time.perf_counter()
    fastdiff.export(pipe, out, batch=(1, 2, LARGEST), guidance=guidance(), tell=steps.append)
    return Made(out, steps, time.perf_counter() - start)


def guidance() -> float:
    from fastdiff.cli import model

    return model.default_guidance(model.built_in())


def quick(benchmark: Any) -> bool:
    """Whether nothing is timed for its own sake."""
    return bool(benchmark.disabled or getattr(benchmark, "dry", False))


def once(small: bool, number: int) -> None:
    """Leave all but the first case out where nothing is timed: the others take the same path."""
    if small and number > 1:
        pytest.skip("the same as with 1, where nothing is timed")


def described(benchmark: Any, name: str, **case: str) -> None:
    case["threads"] = f"{THREADS} threads"
    benchmark.group = "/".join([name, *case.values()])
    benchmark.extra_info |= {"case": case}


# --- one call of the network


def networks(made: Made, given: tuple[Tensor, ...], compiles: bool) -> dict[str, Any]:
    """{who: call}; each takes and returns tensors."""
    import fastdiff

    eager = bench_modules.trained("unet", False)
    found: dict[str, Any] = {
        OURS: fastdiff.load_engine(made.path, threads=torch.get_num_threads()),
        EAGER_NETWORK: eager,
    }
    if compiles:
        torch._dynamo.reset()
        found[TORCH_COMPILE] = torch.compile(eager, fullgraph=True, dynamic=False)
    calls = {who: functools.partial(bench_modules.run, net) for who, net in found.items()}
    return calls | openvino(made, given)


def openvino(made: Made, given: tuple[Tensor, ...]) -> dict[str, Any]:
    """Two calls, or none where it is not installed, which the record then says."""
    if not openvino_peer.installed():
        return {}
    latent, text = given
    shapes = (latent.shape, latent.shape[:1], text.shape)
    fixed = {name: tuple(shape) for name, shape in zip(openvino_peer.NAMES, shapes, strict=True)}
    calls = {}
    for who, sizes in {OPENVINO: None, OPENVINO_FIXED: fixed}.items():
        run = openvino_peer.Network(made.path / "unet.onnx", torch.get_num_threads(), sizes)

        def call(latent: Tensor, text: Tensor, run: Any = run) -> Tensor:
            times = torch.full(latent.shape[:1], 500.0)
            return torch.from_numpy(run(latent.numpy(), times.numpy(), text.numpy()))

        calls[who] = call
    return calls


def missing(calls: dict[str, Any]) -> dict[str, str]:
    """{peer: why it takes no part}"""
    without = "openvino is not installed: pip install 'fastdiff-engine[peers]'"
    return {} if OPENVINO in calls else {OPENVINO: without}


def check(calls: dict[str, Any], given: tuple[Tensor, ...]) -> dict[str, Any]:
    """Errors against float64; AssertionError where one of them is too large."""
    wide = bench_modules.trained("unet", False).double()
    truth = bench_modules.run(wide, *(x.double() for x in given))
    errors = {n: bench_modules.rms(run(*given).double() - truth) for n, run in calls.items()}
    size = bench_modules.rms(truth)
    least = torch.finfo(torch.float32).eps / 4 * size
    bounds = {who: TIMES.get(who, 2) * errors[EAGER_NETWORK] + least for who in calls}
    for who, error in errors.items():
        assert error <= bounds[who], f"{who} is wrong by {error:.3g}, allowed {bounds[who]:.3g}"
    return {"rms error": errors, "bound": bounds, "rms": size}


@pytest.mark.parametrize("samples", [1, 8])
def test_engine(benchmark: Any, compiles: bool, bundle: Made, samples: int):
    small = quick(benchmark)
    once(small, samples)
    torch.set_num_threads(1 if small else THREADS)
    side, (tokens, width) = engine_process.SIDE, bench_modules.TEXT
    generator = torch.Generator().manual_seed(0)
    shapes = ((samples, 4, side, side), (samples, tokens, width))
    given = tuple(torch.randn(shape, generator=generator) for shape in shapes)
    calls = networks(bundle, given, compiles)
    found = {"check": check(calls, given), "not run": missing(calls)}
    latent = "x".join(map(str, shapes[0]))
    described(benchmark, "engine", network="built-in U-Net", latent=latent, dtype="float32")
    benchmark.extra_info |= found
    laps = {n: functools.partial(list, [functools.partial(c, *given)]) for n, c in calls.items()}
    # threads of the one before may still spin, waiting for more of it; these 20 ms they may have
    pause = functools.partial(time.sleep, 0.02)
    measure(benchmark, laps, skip=0, rounds=ROUNDS[samples], between=pause)


# --- a picture


def painters(made: Made, pictures: int, steps: int) -> dict[str, Callable[[], list[Any]]]:
    """{who: pictures from their seeds}, networks loaded before."""
    from fastdiff.cli import engines, generate, model

    prompts, seeds = [PROMPT] * pictures, range(pictures)
    request = generate.Request(
        [PROMPT], SAMPLER, steps, count=pictures, batch=pictures, engine=made.path
    )
    plan = generate._plan(request, model.built_in())
    eager, ours = (model.load(model.built_in(), "cpu") for _ in range(2))
    engines.take(ours, request)
    jobs, silent = list(zip(prompts, seeds, strict=True)), SimpleNamespace(update=lambda: None)
    assert type(eager.scheduler).__module__.startswith("diffusers.")

    def stock() -> list[Any]:
        draws = [torch.Generator().manual_seed(seed) for seed in seeds]
        options = {"num_inference_steps": steps, "guidance_scale": guidance(), "generator": draws}
        found: list[Any] = eager(prompts, **options).images
        return found

    def generated(pipe: Any) -> Callable[[], list[Any]]:
        return functools.partial(generate._batch, pipe, request, plan, jobs, silent)

    return {OURS: generated(ours), WITHOUT: generated(eager), EAGER_NETWORK: stock}


def levels(made: list[Any], theirs: list[Any]) -> int:
    """The largest difference of two lists of pictures, of 255."""
    import numpy as np

    pairs = [(np.asarray(a, int), np.asarray(b, int)) for a, b in zip(made, theirs, strict=True)]
    return max(int(abs(a - b).max()) for a, b in pairs)


def check_pictures(calls: dict[str, Callable[[], list[Any]]]) -> dict[str, int]:
    """Levels from those of diffusers; AssertionError above one."""
    found = {who: call() for who, call in calls.items()}
    theirs = found.pop(EAGER_NETWORK)
    differ = {who: levels(mine, theirs) for who, mine in found.items()}
    for who, most in differ.items():
        assert most <= PICTURE_LEVELS, f"{who} differs by {most} of 255 levels, allowed 1"
    return differ


@pytest.mark.parametrize("pictures", [1, 8])
def test_engine_picture(benchmark: Any, bundle: Made, pictures: int):
    small = quick(benchmark)
    once(small, pictures)
    torch.set_num_threads(1 if small else THREADS)
    steps = FEW if small else STEPS
    calls = painters(bundle, pictures, steps)
    benchmark.extra_info |= {"check": {"levels of 255": check_pictures(calls)}}
    what = {"sampler": SAMPLER, "steps": f"{steps}", "guidance": f"{guidance():g}"}
    described(benchmark, "engine_picture", pictures=f"{pictures}", size="64x64", **what)
    laps = {n: functools.partial(list, [call]) for n, call in calls.items()}
    measure(benchmark, laps, skip=0, rounds=10 if pictures == 1 else 6)


# --- processes, and the export


def process(who: str, made: Made, threads: int) -> dict[str, Any]:
    """What engine_process.py says of one."""
    line = [sys.executable, "-m", "benchmarks.engine_process", who, str(made.path), str(threads)]
    done = subprocess.run(
        line, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode == 0, f"{who}: {done.stderr[-600:]}"
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_engine_process(benchmark: Any, bundle: Made):
    small = quick(benchmark)
    there = [w for w in engine_process.WHO if openvino_peer.installed() or w != OPENVINO]
    order = [engine_process.ALONE] if small else there  # the quickest to begin
    found: dict[str, list[dict[str, Any]]] = {who: [] for who in order}

    def one_round() -> None:
        order.append(order.pop(0))
        for who in order:
            found[who].append(process(who, bundle, 1 if small else THREADS))

    described(benchmark, "engine_process", network="built-in U-Net", dtype="float32")
    if small:
        one_round()
        benchmark.extra_info |= {"check": found}
        return
    benchmark.pedantic(one_round, rounds=PROCESSES)
    benchmark.extra_info |= {"not run": missing(found)}
    benchmark.extra_info |= condensed(found)


def condensed(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians over processes; "times" are those to the first answer."""
    kinds: dict[str, Any] = {"seconds": {}, "peak_bytes": {}}
    for kind, who in ((kind, who) for kind in kinds for who in found):
        each = [one[kind] for one in found[who]]
        kinds[kind][who] = {n: sorted(e[n] for e in each)[len(each) // 2] for n in each[0]}
    ready = {w: [sum(o["seconds"].values()) for o in each] for w, each in found.items()}
    return kinds | {"times": {who: summary(seconds) for who, seconds in ready.items()}}


def test_engine_export(benchmark: Any, bundle: Made):
    described(benchmark, "engine_export", network="built-in U-Net", dtype="float32")
    files = {path.name: path.stat().st_size for path in sorted(bundle.path.iterdir())}
    benchmark.extra_info |= {"files": files}
    benchmark.pedantic(lambda: None, rounds=1)
    if not bundle.steps:
        return
    microseconds = round(bundle.seconds * 1e6, 3)
    one = {"median": microseconds, "fastest_quartile": microseconds, "calls": 1}
    seconds = {f"{step.network}, {step.what}": round(step.seconds, 3) for step in bundle.steps}
    benchmark.extra_info |= {"seconds": seconds, "times": {OURS: one}}
