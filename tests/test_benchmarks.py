"""The benchmarks run, once each and untimed; how they take turns; no number without a check."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import bench_affine_step, bench_modules, bench_scheduler_step, results, table
from benchmarks.provenance import provenance
from benchmarks.side_by_side import OURS, lap, measure, summary

ROOT = Path(__file__).parents[1]


def test_every_benchmark_runs():
    args = ["-m", "pytest", "benchmarks", "-q", "-o", "python_files=bench_*.py"]
    args += ["--benchmark-disable", "-p", "no:cacheprovider", "-W", "ignore"]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *args], cwd=ROOT, capture_output=True, text=True, env=one_thread
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "failed" not in done.stdout


class Recorder:
    """Stands for pytest-benchmark's fixture."""

    def __init__(self, disabled=False):
        self.extra_info, self.disabled, self.rounds = {}, disabled, None

    def pedantic(self, target, rounds=1):
        self.rounds = rounds
        for _ in range(rounds):
            target()


def test_contestants_take_turns_and_the_first_calls_are_not_recorded():
    log, benchmark = [], Recorder()
    laps = {n: lambda n=n: [lambda i=i: log.append((n, i)) for i in range(3)] for n in (OURS, "b")}
    measure(benchmark, laps, skip=1, rounds=4)
    names = [n for n, i in log if i == 0]
    assert len(names) == 2 * 5  # one round more, to warm up
    assert all(a != b for a, b in zip(names[::2], names[1::2], strict=True))
    assert set(names[2::2]) == {OURS, "b"}  # who goes first changes
    times = benchmark.extra_info["times"]
    assert {name: t["calls"] for name, t in times.items()} == {OURS: 4 * 2, "b": 4 * 2}


def test_nothing_is_timed_where_benchmarks_are_disabled():
    log, benchmark = [], Recorder(disabled=True)
    measure(benchmark, {OURS: lambda: [lambda: log.append(1)] * 5}, skip=1, rounds=100)
    assert len(log) == 1
    assert "times" not in benchmark.extra_info


def test_work_between_the_calls_comes_before_each():
    log = []
    seconds = lap([lambda: log.append("call")] * 2, lambda: log.append("work"))
    assert log == ["work", "call"] * 2
    assert len(seconds) == 2


def test_a_call_may_have_a_clock_of_its_own():
    """Replays of CUDA graphs are timed by the device."""

    class Replay:
        def __call__(self):
            raise AssertionError("the host's clock was taken")

        def seconds(self):
            return 0.25

    assert lap([Replay()] * 2, None) == [0.25, 0.25]


def test_summary_in_microseconds():
    found = summary([x * 1e-6 for x in (1, 2, 3, 4, 5, 6, 7)])
    assert found == {"median": 4.0, "fastest_quartile": 2.0, "calls": 7}


@pytest.mark.parametrize("dtype", bench_scheduler_step.DTYPES)
@pytest.mark.parametrize("result", [0, 1])
def test_a_wrong_step_has_no_number(monkeypatch, result, dtype):
    """Wrong in the sample, or in x_0, which DDIM returns beside it."""
    right = bench_scheduler_step.chained

    def wrong(scheduler, outputs, sample):
        found = right(scheduler, outputs, sample)
        if type(scheduler).__module__ == "fastdiff":
            found[result] = found[result] * (1 + 40 * torch.finfo(sample.dtype).eps)
        return found

    monkeypatch.setattr(bench_scheduler_step, "chained", wrong)
    with pytest.raises(AssertionError, match=f"result {result} differs"):
        bench_scheduler_step.checked_contestants(Recorder(), False, "ddim", "1x4x64x64", dtype)


@pytest.mark.skipif(torch.cuda.is_available(), reason="these are the cases of a CPU")
def test_an_op_that_loses_its_row_or_its_seed_has_no_number(monkeypatch):
    module = importlib.import_module("benchmarks.bench_abs_quantile")
    right = module.threshold_rows

    def blank(x, p, maximum, row):
        return right(x, p, maximum, torch.zeros_like(row))

    monkeypatch.setattr(module, "threshold_rows", blank)
    with pytest.raises(AssertionError, match="the bits are not those"):
        module.test_abs_quantile(Recorder(True), False, *OF_OPS["abs_quantile"])
    module = importlib.import_module("benchmarks.bench_philox_normal")
    draws = module.philox_normal
    for lost in (lambda seeds: seeds & 0xFFFFFFFF, lambda seeds: seeds >> 32 << 32):
        monkeypatch.setattr(
            module, "philox_normal", lambda seeds, shape, lost=lost: draws(lost(seeds), shape)
        )
        with pytest.raises(AssertionError, match="the bits are not those"):
            module.test_philox_normal(Recorder(True), False, *OF_OPS["philox_normal"])


def off_by_one_row(rows, x, e, h):
    return bench_affine_step.op(rows.roll(1, 0), x, e, h)


def without_history(rows, x, e, h):
    return bench_affine_step.op(rows, x, e, torch.zeros_like(h))


def without_m(rows, x, e, h):
    calls = bench_affine_step.op(rows, x, e, h)
    return [lambda c=c: (c()[0], torch.full_like(x, 123)) for c in calls]


def without_results(rows, x, e, h):
    calls = bench_affine_step.op(rows, x, e, h)
    return [lambda c=c: [torch.full_like(t, float("nan")) for t in c()[:2]] for c in calls]


def right_at_first(rows, x, e, h):
    """The last row that is timed is that of the one before."""
    calls = bench_affine_step.op(rows, x, e, h)
    return [*calls[:-1], calls[-2]]


WRONG = (off_by_one_row, without_history, without_m, without_results, right_at_first)


@pytest.mark.parametrize("who", [OURS, "fastdiff kernel"])
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_kernel_has_no_number(monkeypatch, wrong, who):
    monkeypatch.setattr(bench_affine_step, "ENTRIES", {OURS: bench_affine_step.op, who: wrong})
    monkeypatch.setattr(bench_affine_step.backends, "build_info", lambda: {"native": True})
    with pytest.raises(AssertionError, match=f"^{who}, row "):
        bench_affine_step.test_affine_step(Recorder(True), False, "1x4x64x64", "float32")


@pytest.mark.parametrize("part", [0, 1])
def test_a_wrong_peer_of_the_step_has_no_number(monkeypatch, part):
    """In x' or in m."""

    def wrong(f, **options):
        return lambda *args: tuple(t * (1 + (i == part) / 100) for i, t in enumerate(f(*args)))

    monkeypatch.setattr(torch, "compile", wrong)
    for dtype in bench_affine_step.DTYPES:
        with pytest.raises(AssertionError, match=f"^{results.COMPILED}, row 0"):
            bench_affine_step.test_affine_step(Recorder(True), True, "1x4x64x64", dtype)
    output, sample = torch.randn(2, 1, 4, 64, 64)
    with pytest.raises(AssertionError, match=f"result {part} differs"):
        bench_scheduler_step.compiled_steps(output, sample)
    monkeypatch.setattr(torch, "compile", lambda f, **options: f)
    assert len(bench_scheduler_step.compiled_steps(output, sample)) == 16


class Few(Recorder):
    """Two rounds of what is asked for."""

    def pedantic(self, target, rounds=1):
        super().pedantic(target, min(rounds, 2))


OF_OPS = {  # benchmark: its first case, by the backend that is given or chosen
    "abs_quantile": ("latent 2x4x64x64", "float32"),
    "philox_normal": ("sd15 1x4x64x64",),
    "geglu": ("sd15 64x64, 256 rows", "float32"),
    "add_layer_norm": ("sd15 64x64, 1024 rows", "float32"),
    "bias_residual": ("sd15 32x32, 320", "channels last", "float32"),
    "upsample_conv": ("32x32, 128 channels", "channels last", "float32"),
    "group_norm": (1, "float32", "channels last", (1, 320, 64, 64)),
    "attention": ("sd15 self 64, a head", "float32"),
    "cross_attention": ("sd15 cross 64, a head", "float32"),
}


def run_bench(op, benchmark):
    module = importlib.import_module(f"benchmarks.bench_{op}")
    with torch.no_grad():
        getattr(module, f"test_{op}")(benchmark, True, *OF_OPS[op])


@pytest.mark.skipif(torch.cuda.is_available(), reason="these are the cases of a CPU")
@pytest.mark.parametrize("op", OF_OPS)
def test_every_op_is_timed_against_eager_and_compiled_pytorch(op, monkeypatch):
    """And says what it moves or computes; torch.compile, which is slow, is stood for."""
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda f, **options: compiled.append(options) or f)
    benchmark = Few()
    run_bench(op, benchmark)
    times, eager = benchmark.extra_info["times"], "sdpa" if "attention" in op else "eager formula"
    assert {OURS, eager, results.COMPILED} <= set(times)
    assert compiled == [{"fullgraph": True, "dynamic": False}]
    assert benchmark.extra_info["bytes"] > 0
    assert benchmark.extra_info["check"]
    if op == "upsample_conv":
        assert benchmark.extra_info["flops"] == 2 * 4 * 128 * 128 * 64 * 64


@pytest.mark.skipif(torch.cuda.is_available(), reason="these are the cases of a CPU")
@pytest.mark.parametrize("op", OF_OPS)
def test_a_wrong_peer_has_no_number(op, monkeypatch):
    """A peer that computes something else makes the case red, as a wrong kernel does."""

    def wrong(f, **options):
        def run(*args):
            found = f(*args)
            pair = isinstance(found, tuple)  # of which the second is compared, too
            return (found[0], found[1] * 1.001) if pair else found * 1.001

        return run

    monkeypatch.setattr(torch, "compile", wrong)
    benchmark = Few()
    with pytest.raises(AssertionError):
        run_bench(op, benchmark)
    assert "times" not in benchmark.extra_info


def test_provenance_says_what_a_number_depends_on():
    facts = provenance()
    wanted = "date cpu cores gpus isa threads load_average torch diffusers fastdiff commit python"
    wanted += " driver cuda cudnn triton"
    assert set(wanted.split()) <= set(facts)
    assert json.loads(json.dumps(facts)) == facts


def test_provenance_needs_neither_git_nor_diffusers(monkeypatch):
    from benchmarks import provenance as module

    assert module.version("no-such-package-at-all") is None
    monkeypatch.setattr(module, "ROOT", Path("/"))
    monkeypatch.setenv("FASTDIFF_COMMIT", "0123456789ab")
    assert module.commit() == "0123456789ab"


def report(ours=10.0, theirs=120.0):
    times = {OURS: {"median": ours, "fastest_quartile": ours, "calls": 1}}
    times["diffusers"] = {"median": theirs, "fastest_quartile": theirs, "calls": 1}
    case = {"sampler": "dpmpp_2m", "shape": "1x4x64x64", "dtype": "float32"}
    entry = {"benchmark": "scheduler_step", "case": case, "bytes": 1, "times": times}
    facts = provenance() | {"isa": "v3", "compiler": "c++"}
    return {"schema": 1, "provenance": facts, "cases": [entry]}


def test_ratios_and_targets_are_printed(capsys):
    command.print_ratios(report())
    assert "wanted 12: reached" in capsys.readouterr().out
    command.print_ratios(report(theirs=119.0))
    assert "wanted 12: MISSED" in capsys.readouterr().out


def test_results_are_read_as_they_were_written(tmp_path):
    results.save(report(), tmp_path / "cpu.json")
    assert results.load(tmp_path / "cpu.json") == report() | {
        "provenance": results.load(tmp_path / "cpu.json")["provenance"]
    }
    (tmp_path / "old.json").write_text('{"schema": 0}')
    with pytest.raises(ValueError, match="schema"):
        results.load(tmp_path / "old.json")


def test_raw_reports_are_condensed():
    extra = {key: value for key, value in report()["cases"][0].items() if key != "benchmark"}
    raw = {"machine_info": {"fastdiff": {"cpu": "x"}}}
    raw["benchmarks"] = [{"group": "scheduler_step/1x4x64x64/float32", "extra_info": extra}]
    assert command.condense(raw)["cases"] == report()["cases"]


def test_a_table_is_made_of_the_numbers():
    assert table.readme(report()).splitlines()[2:] == [
        "| DPM++ 2M | 1×4×64×64 | 120 | - | 10.0 | 12x |"
    ]


def entry(benchmark, ours, theirs, target=None, **case):
    times = {OURS: {"median": ours}, **{name: {"median": value} for name, value in theirs.items()}}
    found = {"benchmark": benchmark, "case": case, "times": times}
    return found if target is None else found | {"target": target}


def test_the_table_of_ops_has_ratios_and_targets():
    eager, where = table.EAGER, {"dtype": "float32", "layout": "channels last", "backend": "cpu"}
    shape = {"shape": "1x320x64x64", **where, "threads": "2 threads"}
    cases = [
        entry("group_norm", 10.0, {eager: 13.0}, {eager: 1.3}, **shape),
        entry("group_norm", 10.0, {eager: 12.9}, {eager: 1.3}, **shape),
        entry("geglu", 10.0, {eager: 25.0}, where="256 rows", dtype="bfloat16", backend="cpu"),
        entry("bias_residual", 1.0, {eager: 1.0}, **where | {"where": "a", "backend": "reference"}),
        entry("upsample_conv", 1.0, {eager: 2.0}, **where | {"where": "a", "backend": "reference"}),
    ]
    assert table.ops({"cases": cases}).splitlines()[2:] == [
        f"| group_norm | 1×320×64×64 | fp32 | channels last | {eager} | 2 | 1.3x | 1.3x: reached |",
        f"| group_norm | 1×320×64×64 | fp32 | channels last | {eager} | 2 | 1.3x | 1.3x: missed |",
        f"| geglu | 256 rows | bf16 | - | {eager} | 1 | 2.5x | - |",
        f"| upsample_conv | a | fp32 | channels last | {eager} | 1 | 2.0x | - |",
    ]


def test_the_table_of_whole_networks():
    peers = {"diffusers": 3e4, "diffusers, channels last": 1.5e4}
    what = {"network": "a", "latent": "1x4x8x8", "dtype": "float32", "threads": "2 threads"}
    found = table.modules({"cases": [entry("modules", 2e4, peers, **what)]})
    assert found.splitlines()[2:] == [
        "| a | 1×4×8×8 | fp32 | 2 | 30.0 | 15.0 | 20.0 | 1.5x | 0.75x |"
    ]


def test_what_the_results_lack_is_not_yet_measured():
    for make in (table.ops, table.modules):
        assert make(report()) == "Not yet measured."


def test_an_accelerated_network_that_is_wrong_has_no_number():
    small = bench_modules.NETWORKS[-1]
    found = bench_modules.contestants(small.make(True))
    given = bench_modules.inputs(small, 1, True)
    with torch.no_grad():
        bench_modules.check(found, given)
        found[OURS].decoder.conv_out.weight.mul_(1 + 1e-4)
        with pytest.raises(AssertionError, match="wrong by"):
            bench_modules.check(found, given)


def test_a_table_needs_its_markers():
    text = f"a\n<!-- t: {table.COMMAND} -->\nold\n<!-- t: end -->\nb"
    assert table.filled(text, "t", "new") == text.replace("old", "\nnew\n")
    with pytest.raises(ValueError, match="markers"):
        table.filled("a", "t", "new")


def test_only_a_whole_run_touches_the_pages(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith(command.OPENMP)]:
        monkeypatch.delenv(name)  # which make test sets
    made = []
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    monkeypatch.setattr(command, "condense", lambda raw: report())
    monkeypatch.setattr(command.table, "main", lambda argv: made.append(argv) or 0)

    def run_tests(args):
        raw = next(a.partition("=")[2] for a in args if a.startswith("--benchmark-json"))
        Path(raw).write_text("{}")
        return 0

    monkeypatch.setattr(command.pytest, "main", run_tests)
    assert command.main(["-k", "ddim"]) == 0
    assert command.main(["--out", str(tmp_path / "elsewhere" / "a.json")]) == 0
    assert made == []
    assert not list(tmp_path.glob("*.json"))
    assert (tmp_path / "elsewhere" / "a.json").exists()
    assert command.main([]) == 0
    assert made == [[]]
    assert len(list(tmp_path.glob("cpu-*.json"))) == 1
    on_gpu = report()
    on_gpu["provenance"]["gpus"] = ["NVIDIA H200"]
    monkeypatch.setattr(command, "condense", lambda raw: on_gpu)
    assert command.main([]) == 0  # numbers of a GPU come from the campaign
    assert made == [[]]
    assert len(list(tmp_path.glob("*.json"))) == 1


def test_a_red_check_leaves_no_numbers(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(command.pytest, "main", lambda args: 1)
    assert command.main(["--out", str(tmp_path / "a.json")]) == 1
    assert "no numbers" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
