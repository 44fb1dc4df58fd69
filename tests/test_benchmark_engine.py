"""The benchmark of engines: it runs, wrong answers have no number, its tables say who was there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks import __main__ as command
from benchmarks import bench_engine, engine_process, engine_table, openvino_peer, results, table
from benchmarks.side_by_side import OURS
from tests.test_benchmarks import Recorder

ROOT = Path(__file__).parents[1]
EAGER = results.EAGER_NETWORK
CASES = {
    "test_engine": {"compiles": False, "samples": 1},
    "test_engine_picture": {"pictures": 1},
    "test_engine_process": {},
    "test_engine_export": {},
}


def test_it_runs_with_a_bundle(exported):
    """Every path but the export, untimed; with OpenVINO where that is installed."""
    made = bench_engine.Made(exported / "bundle", [], 0.0)
    threads, found = torch.get_num_threads(), {}
    try:
        with torch.no_grad():
            for name, args in CASES.items():
                benchmark = Recorder(disabled=True)
                getattr(bench_engine, name)(benchmark, bundle=made, **args)
                found[name] = benchmark.extra_info
    finally:
        torch.set_num_threads(threads)
    there = openvino_peer.installed()
    errors = found["test_engine"]["check"]["rms error"]
    assert set(errors) >= {OURS, EAGER} | ({results.OPENVINO} if there else set())
    assert set(found["test_engine"]["not run"]) == (set() if there else {results.OPENVINO})
    assert found["test_engine_picture"]["check"]["levels of 255"][OURS] <= 1
    (alone,) = found["test_engine_process"]["check"][engine_process.ALONE]
    assert 0 < alone["peak_bytes"]["loaded"] <= alone["peak_bytes"]["8 samples"]
    assert found["test_engine_export"]["files"]["unet.onnx.data"] > 1e6


def calls(**wrong):
    """Networks of one output, the sum of their inputs, times what a name is wrong by."""
    factors = {OURS: 1, EAGER: 1, results.OPENVINO: 1} | wrong
    return {who: lambda a, b, f=f: (a + b) * f for who, f in factors.items()}


class Wide:
    """Stands for the U-Net in float64."""

    def double(self):
        return self


@pytest.mark.parametrize(
    ("who", "error", "red"),
    [
        (OURS, 3, True),
        (OURS, 1.5, False),
        (results.OPENVINO, 3, True),
        (results.OPENVINO, 1.5, False),
    ],
)
def test_a_network_that_is_wrong_has_no_number(monkeypatch, who, error, red):
    """Errors in units of eager's, which the bounds are made of."""
    monkeypatch.setattr(bench_engine.bench_modules, "trained", lambda part, small: Wide())
    monkeypatch.setattr(bench_engine.bench_modules, "run", lambda net, a, b: a + b)
    given = (torch.full((4,), 1.0, dtype=torch.float64), torch.zeros(4, dtype=torch.float64))
    unit = 1e-3  # above eps, which counts a quarter
    found = calls(**{EAGER: 1 + unit, OURS: 1 + unit, who: 1 + error * unit})
    if red:
        with pytest.raises(AssertionError, match=f"{who} is wrong by"):
            bench_engine.check(found, given)
    else:
        assert bench_engine.check(found, given)["rms error"][who] == pytest.approx(error * unit)


def test_pictures_may_differ_by_one_level():
    def paint(level):
        return lambda: [Image.new("RGB", (2, 2), (9, 9, level))]

    found = bench_engine.check_pictures({OURS: paint(10), EAGER: paint(9)})
    assert found == {OURS: 1}
    with pytest.raises(AssertionError, match="fastdiff differs by 2 of 255 levels"):
        bench_engine.check_pictures({OURS: paint(9), EAGER: paint(11)})


def test_a_peer_that_is_not_installed_is_named(monkeypatch, exported):
    monkeypatch.setattr(openvino_peer, "installed", lambda: False)
    made = bench_engine.Made(exported / "bundle", [], 0.0)
    given = (torch.zeros(1, 4, 16, 16), torch.zeros(1, 16, 128))
    found = bench_engine.networks(made, given, compiles=False)
    assert sorted(found) == sorted([OURS, EAGER])
    assert "openvino is not installed" in bench_engine.missing(found)[results.OPENVINO]
    assert bench_engine.missing({results.OPENVINO: None}) == {}


def test_openvino_is_imported_without_its_telemetry(tmp_path):
    """With a package openvino that asks for it, as the real one does."""
    (tmp_path / "openvino_telemetry.py").write_text("print('sent')")
    (tmp_path / "openvino.py").write_text(
        "try:\n    import openvino_telemetry\nexcept ImportError:\n    print('not sent')\n"
    )
    program = "from benchmarks.openvino_peer import package; package()"
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert done.stdout == "not sent\n", done.stderr
    assert openvino_peer.NAMES == engine_process.NAMES


def test_memory_is_that_of_the_process_and_not_of_its_parent():
    """getrusage's begins at the parent's, which is what this one is chosen for."""
    held = bytearray(300_000_000)
    held[::4096] = bytes(len(held[::4096]))
    program = "from benchmarks.engine_process import peak; print(peak())"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert 1e6 < int(done.stdout) < 2e8


def test_processes_are_condensed_to_medians():
    one = [
        {"seconds": {"import": i, "load": 2 * i}, "peak_bytes": {"loaded": 100 * i}}
        for i in (3.0, 1.0, 2.0)
    ]
    found = bench_engine.condensed({OURS: one})
    assert found["seconds"] == {OURS: {"import": 2.0, "load": 4.0}}
    assert found["peak_bytes"] == {OURS: {"loaded": 200.0}}
    assert found["times"][OURS]["median"] == 6e6


def test_what_is_not_timed_exports_nothing():
    """A dry run of the campaign, and --benchmark-disable, without a --bundle."""
    dry = Recorder()
    dry.dry = True
    assert bench_engine.quick(dry)
    assert bench_engine.quick(Recorder(disabled=True))
    assert not bench_engine.quick(Recorder())


FACTS = {"cpu": "a CPU", "cores": 2, "load_average": [0.5], "python": "3.11", "commit": "abc"}
FACTS |= {"onnxruntime": "1.2", "openvino": None, "torch": "2.1", "diffusers": "0.4"}
FACTS |= {"date": "2026-11-22T00:00:00"}
WHAT = {"threads": "2 threads"}


def times(**milliseconds):
    return {
        name: {"median": ms * 1e3, "fastest_quartile": ms * 1e3, "calls": 1}
        for name, ms in milliseconds.items()
    }


def report():
    parts = {"import": 1.0, "load": 0.5, "first answer": 0.25}
    most = {"loaded": 2e8, "1 sample": 3e8, "8 samples": 4e8}
    alone = {engine_process.TORCH: {**parts}, OURS: parts}
    cases = [
        {
            "benchmark": "engine",
            "case": {"latent": "1x4x16x16", **WHAT},
            "times": times(fastdiff=10, diffusers=25, OpenVINO=8),
            "not run": {"torch.compile": "left out"},
        },
        {
            "benchmark": "engine_picture",
            "case": {"pictures": "1", **WHAT},
            "times": times(**{OURS: 500, EAGER: 1000, results.WITHOUT: 900}),
        },
        {
            "benchmark": "engine_process",
            "case": WHAT,
            "times": times(fastdiff=1750),
            "seconds": alone,
            "peak_bytes": dict.fromkeys(alone, most),
        },
        {
            "benchmark": "engine_export",
            "case": WHAT,
            "times": times(fastdiff=41000),
            "seconds": {"unet, traced": 40.0},
            "files": {"unet.onnx": 27_000_000, "manifest.json": 1_000_000},
        },
    ]
    return {"schema": 1, "provenance": FACTS, "cases": cases}


def test_the_tables_of_engines():
    networks, pictures, processes, export = (
        make(report()) for make in engine_table.TABLES.values()
    )
    assert networks.splitlines()[2:] == [
        "| 1×4×16×16 | 25.0 | - | 8.00 | - | 10.0 | 2.50x | - | 0.80x | - |"
    ]
    assert pictures.splitlines()[2:] == ["| 1 | 1000 | 900 | 500 | 2.00x | 1.80x |"]
    assert processes.splitlines()[2:] == [
        "| import torch | 1.00 | - | - | 1.00 | 200 | - | - |",
        "| fastdiff | 1.00 | 0.50 | 0.25 | 1.75 | 200 | 300 | 400 |",
    ]
    assert export.splitlines()[2:4] == ["| unet, traced | 40.0 |", "| all of it | 41.0 |"]
    assert export.endswith("2 files of 28.0 MB in all, 27.0 MB of them `unet.onnx`.")
    words = engine_table.conditions(report(), "[x](y)")
    assert "openvino not installed" in words
    assert "Not measured: torch.compile: left out." in words
    both = report()
    seconds = both["cases"][2]["seconds"]
    seconds[engine_table.EAGER_NETWORK] = {"import": 9.0, "load": 0.5}
    short = engine_table.short(both)
    assert short.startswith(networks)
    assert short.endswith(
        "takes 2.0 times as long for 1 as `fastdiff generate` with `--engine`, both loaded. "
        "Loading is not in it: 9.5 seconds to the U-Net's first answer, 1.8 with the engine."
    )
    for make in (*engine_table.TABLES.values(), *engine_table.README.values()):
        assert make({"cases": []}) == engine_table.NOTHING


def test_the_page_is_made_of_the_newest_run_of_engines(tmp_path, monkeypatch):
    """Which is no run of a GPU, and no run of the CPU's other benchmarks."""
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    assert results.newest_engine() is None
    page = (ROOT / "docs/performance.md").read_text()
    tables = engine_table.TABLES
    assert table.with_engines(page, None, "../", tables).count(engine_table.NOTHING) == 4
    for day in ("21", "22"):
        results.save(report(), tmp_path / f"engine-2026-11-{day}.json")
    newest = results.newest_engine()
    assert newest is not None
    assert newest.name == "engine-2026-11-22.json"
    assert results.newest_campaign() is None
    made = table.with_engines(page, newest, "../", tables)
    assert engine_table.NOTHING not in made
    assert "[engine-2026-11-22.json](../benchmarks/results/engine-2026-11-22.json)" in made
    page = (ROOT / "README.md").read_text()
    made = table.with_engines(page, newest, "", engine_table.README)
    assert "[engine-2026-11-22.json](benchmarks/results/engine-2026-11-22.json)" in made


@pytest.fixture
def plain(monkeypatch):
    """The environment without variables of OpenMP, which make test sets."""
    for name in [name for name in os.environ if name.startswith(command.OPENMP)]:
        monkeypatch.delenv(name)


def test_numbers_with_other_threads_than_usual_are_not_kept(monkeypatch, plain, capsys):
    monkeypatch.setattr(command, "run", lambda *_: 0)
    assert command.main(["--engine"]) == 0
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    with pytest.raises(SystemExit):
        command.main(["--engine"])
    said = " ".join(capsys.readouterr().err.split())
    assert "OMP_WAIT_POLICY must not be set" in said
    assert said.endswith("Try env -u OMP_WAIT_POLICY python -m benchmarks --engine")
    with pytest.raises(SystemExit):
        command.main([])
    assert capsys.readouterr().err.endswith("python -m benchmarks\n")
    assert command.main(["-k", "network"]) == 0
    assert command.main(["--out", "a.json"]) == 0


@pytest.mark.usefixtures("plain")
def test_a_run_of_engines_has_a_file_of_its_own(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    monkeypatch.setattr(command, "condense", lambda raw: report() | {"provenance": facts})
    monkeypatch.setattr(command.table, "main", lambda argv: 0)
    facts = FACTS | {"threads": 1, "gpus": []}

    def run_tests(args):
        names = [Path(a).name for a in args if a.endswith(".py")]
        asked.append([name for name in names if name.startswith("bench_")])
        raw = next(a.partition("=")[2] for a in args if a.startswith("--benchmark-json"))
        Path(raw).write_text(json.dumps({}))
        return 0

    monkeypatch.setattr(command.pytest, "main", run_tests)
    assert command.main(["--engine"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["engine-2026-11-22.json"]
    assert command.main([]) == 0
    assert asked[0] == ["bench_engine.py"]
    assert "bench_engine.py" not in asked[1]
    assert "bench_geglu.py" in asked[1]


def test_a_run_is_headed_by_the_threads_of_its_cases(capsys):
    made = report()
    made["provenance"] |= {"threads": 1}
    command.print_ratios(made)
    assert "\na CPU, 2 threads, load" in capsys.readouterr().out
    del made["cases"][0]["case"]["threads"]
    command.print_ratios(made)
    assert "\na CPU, 1 thread or 2 threads, load" in capsys.readouterr().out


def test_a_run_exports_once(tmp_path, monkeypatch):
    """The bundle of every case, made when the first asks for it."""
    made = []
    monkeypatch.setattr(bench_engine, "export", lambda out: made.append(out) or len(made))
    bench_engine.exported.cache_clear()
    assert bench_engine.exported(tmp_path / "e") == bench_engine.exported(tmp_path / "e") == 1
    assert made == [tmp_path / "e/bundle"]
    bench_engine.exported.cache_clear()
