"""The campaign's command, its dry run from end to end, its table, what it says of the targets."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import results, table
from benchmarks.campaign import __main__ as command
from benchmarks.campaign import (
    ceilings,
    checks,
    files,
    norms,
    pages,
    record,
    sanitizer,
    show,
    targets,
)
from benchmarks.campaign.stages import stages
from benchmarks.campaign.task import Task
from benchmarks.results import COMPILED
from benchmarks.side_by_side import OURS

ROOT = Path(__file__).parents[1]
FACTS = {"gpus": ["NVIDIA H200"], "cpu": "a CPU", "torch": "2.11", "triton": "3.6"}
FACTS |= {"date": "2026-11-21T00:00:00", "commit": "abc", "driver": "580"}


def run(*args):
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "benchmarks.campaign", *map(str, args)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, env=one_thread)


def test_dry_run(tmp_path, capsys, monkeypatch):
    """Everything but torch.compile: each stage comes to its end, its rows are sound, nothing of it
    gets among the results, and a second run has nothing left to do."""
    before = sorted(results.RESULTS.iterdir())
    path = tmp_path / "dry.json"
    done = run("--dry-run", "--no-compile", "--out", path)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    report = record.load(path)  # which checks it
    assert report["dry_run"] is True
    assert list(report["stages"]) == list(stages())
    for name, stage in report["stages"].items():
        assert stage["status"] == "finished", (name, stage)
        assert stage["rows"], name
        assert not [row for row in stage["rows"] if row["status"] == "failed"]
        assert stage["commit"]
    measured = [row for row in record.rows_of(report) if row["status"] == "measured"]
    for row in measured:  # a fraction of the copy bandwidth or matrix rate can be stated
        host = row["benchmark"] == "modules"  # times a CPU only
        assert host or show.fraction(report, row, 1.0), row["id"]
    assert {v.verdict for v in targets.verdicts(report)} == {targets.NOT_MEASURED}
    for name in ("geglu", "group_norm", "group_norm_sets", "model_sd15"):
        row = next(row for row in report["stages"][name]["rows"] if row["status"] == "measured")
        assert row["times"][OURS if name != "model_sd15" else "eager"]["median"] > 0
    text = path.with_suffix(".txt").read_text()
    assert text.startswith("DRY RUN: tiny sizes, no numbers")
    assert "geglu" in text
    assert f"written: {path}, {path.with_suffix('.txt')}" in done.stdout
    assert done.stdout.rstrip().endswith("\n".join(show.target_lines(report)).rstrip())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # a dry run sets it; put back afterwards
    assert command.main(["--dry-run", "--no-compile", "--out", str(path)]) == 0
    assert capsys.readouterr().out.count("finished before") == len(stages())
    assert sorted(results.RESULTS.iterdir()) == before


def test_the_command_refuses_in_words(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # --dry-run sets it; put back afterwards
    for args, words in (
        (["--stage", "nothing"], "must name some of device, ceilings"),
        (["--minutes", "9"], "at most 8; got 9"),
        (["--dry-run", "--out", str(results.RESULTS / "x.json")], "must not lie in"),
    ):
        with pytest.raises(SystemExit):
            command.main(args)
        assert words in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert command.main(["--stage", "ceilings"]) == 2
        assert "--dry-run tries the path" in capsys.readouterr().out
    record.save(record.new(FACTS, False), tmp_path / "h200.json")
    assert command.main(["--dry-run", "--out", str(tmp_path / "h200.json")]) == 2
    assert "another run" in capsys.readouterr().out


def test_stages_are_those_of_the_benchmarks_and_help_lists_them(capsys):
    names = list(stages())
    for path in (ROOT / "benchmarks").glob("bench_*.py"):
        assert path.stem.removeprefix("bench_") in names
    assert names.index("correctness") < names.index("geglu") < names.index("model_sd15")
    assert command.chosen(["model_*", "device"]) == [
        n for n in names if n.startswith("model_") or n == "device"
    ]
    with pytest.raises(SystemExit):
        command.main(["--help"])
    said = capsys.readouterr().out
    assert all(re.search(rf"^  {name} ", said, re.MULTILINE) for name in names)


def row(benchmark, case, *, status="measured", **rest):
    times = {name: {"median": t, "fastest_quartile": t, "calls": 9} for name, t in rest.items()}
    made = {"id": f"{benchmark} {case}", "benchmark": benchmark, "case": case, "status": status}
    return made | ({"times": times} if status == "measured" else {"why": "red"})


def report_of(*rows, dry=False):
    """A report: copies at 4 TB/s from memory, 5 TB/s in the L2; products at 800 TFLOP/s."""
    copies = [
        row("copy", {"bytes": size}, copy_=2 * size / rate * 1e6) | {"bytes": 2 * size}
        for size, rate in ((10_000_000, 5e12), (1_000_000_000, 4e12))
    ]
    products = [row("matrix", {"where": "x"}, mm=1e6) | {"flops": 800 * 10**12, "bytes": 1}]
    report = record.new(FACTS, dry)
    stage = {"status": "finished", "commit": "abc", "started": "now", "seconds": 1.0}
    report["stages"]["ceilings"] = stage | {"rows": copies + products}
    report["stages"]["all"] = stage | {"rows": list(rows)}
    record.check(report)
    return report


def large(ours, eager, compiled, name="1", **rest):
    """A GroupNorm of 3 GB of traffic: 750 µs at 4 TB/s."""
    found = row("group_norm_large", {"where": name}, **rest)
    if "times" in found:
        each = {OURS: ours, "eager": eager, COMPILED: compiled}
        found["times"] = {n: {"median": t, "fastest_quartile": t} for n, t in each.items()}
    return found | {"bytes": 3_000_000_000}


def verdicts_of(*rows, **options):
    found = targets.verdicts(report_of(*rows, **options))
    return {(v.what, v.wanted): (v.verdict, v.measured) for v in found}


COPY, EAGER, COMPILE = ((targets.LARGE, w) for w in ("≥ 85 % of copy", "≥ 8x eager",
                                                     "≥ 1.3x torch.compile"))  # fmt: skip


def test_targets_are_judged_by_the_worst_case():
    found = verdicts_of(large(800.0, 6400.0, 1040.0))
    assert found[COPY] == ("reached", "93.8 %")
    assert found[EAGER] == ("reached", "8x")
    assert found[COMPILE] == ("reached", "1.3x")
    found = verdicts_of(large(800.0, 6400.0, 1040.0), large(900.0, 7100.0, 1200.0, "2"))
    assert found[COPY] == ("missed", "83.3 to 93.8 %")
    assert found[EAGER] == ("missed", "7.89 to 8x")
    assert found[COMPILE][0] == "reached"


def test_a_red_case_leaves_a_target_not_measured():
    red = large(0, 0, 0, "2", status="failed")
    assert verdicts_of(red)[COPY] == (targets.NOT_MEASURED, "-")
    verdict, words = verdicts_of(large(800.0, 6400.0, 1040.0), red)[COPY]
    assert verdict == targets.NOT_MEASURED
    assert words == "93.8 % in 1 of 2 cases"
    assert verdicts_of(large(999.0, 1.0, 1.0), red)[COPY][0] == "missed"
    assert verdicts_of(large(1.0, 100.0, 100.0), dry=True)[COPY][0] == targets.NOT_MEASURED


def test_every_target_can_be_reached_and_missed():
    """The rows are named as the stages name them."""

    def rows_with(good):
        fast, slow = (1.0, 1e5) if good else (1e4, 1.0)
        sets = [{"set": name, "inputs": "own", "dtype": "bfloat16"} for name in norms.SETS]
        made = [row("group_norm_set", case, fastdiff=fast, eager=slow) for case in sets]
        made += [large(100.0, 1e5, 1e5) if good else large(1e5, 1.0, 1.0)]
        case = {"shape": "2x4x128x128", "dtype": "float32"}
        graphs = [row("affine_step_graph", case | {"noise": n}, fastdiff=fast) for n in "ab"]
        made += [one | {"kernels": 1 if good else 2} for one in graphs]
        made += [row("affine_step_scheduler", case, fastdiff=fast, diffusers=slow)]
        for op in ("cross_attention", "geglu", "add_layer_norm", "bias_residual"):
            case = {"where": "sdxl", "dtype": "bfloat16"}
            made += [row(op, case, fastdiff=fast, sdpa=slow) | {"bytes": 10**7}]
        for where in ("sd15 self 4096", "vae 128x128, one sample"):
            case = {"where": where, "dtype": "bfloat16"}
            made += [row("attention", case, fastdiff=fast, sdpa=slow)]
        return made

    assert {v[0] for v in verdicts_of(*rows_with(True)).values()} == {"reached"}
    assert {v[0] for v in verdicts_of(*rows_with(False)).values()} == {"missed"}


def test_what_loses_is_listed():
    case = {"where": "sdxl", "dtype": "bfloat16"}
    slow = row("geglu", case, fastdiff=100.0, eager=300.0, **{COMPILED: 90.0})
    draw = row("geglu", case | {"where": "sd15"}, fastdiff=100.0, eager=99.0)
    report = report_of(slow, draw)
    assert targets.losses(report) == ["geglu sdxl bfloat16: 0.90x"]
    assert "  geglu sdxl bfloat16: 0.90x" in show.text(report).splitlines()
    assert pages.slower(report).endswith("geglu sdxl bfloat16: 0.90x.")
    assert pages.slower(report_of(draw)).endswith("none.")
    # of attention the best of ours counts: a table chooses, and may have chosen PyTorch's
    case = {"where": "sd15 self 4096", "dtype": "bfloat16"}
    one = row("attention", case, **{OURS: 100.0, "fastdiff triton": 50.0, "sdpa": 100.0})
    verdict = verdicts_of(one)["head dim 40 self-attention, 4096 tokens", "≥ 1.15x the best SDPA"]
    assert verdict == ("reached", "2x")


def test_the_largest_sets_have_as_many_norms_as_the_models():
    counts = {name: sum(norm.number for norm in each) for name, each in norms.SETS.items()}
    assert counts == {"sd15": 61, "sdxl": 46, "vae": 30}
    bare = {name: sum(norm.bare for norm in each) for name, each in norms.SETS.items()}
    assert bare == {"sd15": 16, "sdxl": 11, "vae": 1}


def test_fractions_are_of_the_ceiling_that_binds():
    report = report_of()
    assert ceilings.bandwidth(report) == pytest.approx(4e12)
    assert ceilings.bandwidth(report, 2e7) == pytest.approx(5e12)  # a copy of that size
    assert ceilings.matrix_rate(report) == pytest.approx(800e12)
    of_copy = {"bytes": 20 * 20_000_000, "repeats": 20}  # 4 µs each at 5 TB/s
    assert show.fraction(report, of_copy, 20 * 8.0) == (pytest.approx(0.5), "copy")
    of_matrix = {"bytes": 1, "flops": 8e9}  # 10 µs
    assert show.fraction(report, of_matrix, 40.0) == (pytest.approx(0.25), "matrix")
    assert show.fraction(record.new(FACTS, False), of_copy, 1.0) is None


def test_the_text_shows_every_row_and_no_number_of_a_red_one():
    case = {"where": "sdxl", "dtype": "bfloat16"}
    good = row("geglu", case, fastdiff=100.0, eager=300.0) | {"bytes": 2 * 10**8, "repeats": 20}
    red = row("geglu", case | {"dtype": "float32"}, status="failed")
    text = show.text(report_of(good, red))
    line = next(line for line in text.splitlines() if "fastdiff  " in line)
    assert re.search(r"5\.000 µs\s+1\.00x\s+40\.0 % of copy", line)
    assert re.search(r"eager\s+15\.000 µs\s+3\.00x", text)
    assert "geglu sdxl float32: FAILED: red" in text
    assert text.rstrip().splitlines()[-1].split()[-1] in ("measured", "reached", "missed")


def test_pages_of_a_gpu(monkeypatch, tmp_path):
    """The tables of the pages, with a file and without one."""
    case = {"where": "sdxl 64x64", "dtype": "bfloat16", "backend": "triton"}
    op = row("geglu", case, **{OURS: 100.0, "eager formula": 300.0, COMPILED: 200.0})
    op |= {"bytes": 2 * 10**8, "repeats": 20}
    case = {"model": "sd15", "batch": 2, "dtype": "bfloat16", "contestant": "fastdiff"}
    model = row("model", case, fastdiff=8000.0)
    model |= {"floor_ms": 1.6, "cold_start_s": 2.0, "peak_bytes": 3 * 10**9}
    report = report_of(op, model, large(800.0, 6400.0, 1040.0))
    record.save(report, tmp_path / "nvidia-h200-2026-11-21.json")
    (tmp_path / "cpu-2026-11-22.json").write_text("{}")
    (tmp_path / "nvidia-h100-2026-11-20.json").write_text("{}")
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    found = results.newest_campaign()
    assert found is not None
    assert found.name == "nvidia-h200-2026-11-21.json"
    assert files.fresh(FACTS).name == "nvidia-h200-2026-11-21-2.json"
    line = "| geglu | sdxl 64×64 | triton | 5.00 | 10.0 | compile | 2.00x | 40 % copy |"
    assert line in pages.ops(report).splitlines()
    line = "| sd15 | 2 | bfloat16 | fastdiff | 8.00 | 20 % | 3.00 | 2.00 |"
    assert line in pages.models(report).splitlines()
    cpu = ROOT / "benchmarks" / "results"
    monkeypatch.setattr(table, "newest", lambda kind: max(cpu.glob(f"{kind}-*.json")))
    page, readme = table.generated("docs/performance.md"), table.generated("README.md")
    for text in (page, readme):
        assert "| ≥ 8x eager | 8x | reached |" in text
        assert "copies at 4.00 TB/s, bf16 products at 800 TFLOP/s" in text
    assert "nvidia-h200-2026-11-21.json](../benchmarks" in page
    found.unlink()
    (tmp_path / "nvidia-h100-2026-11-20.json").unlink()
    assert results.newest_campaign() is None
    assert table.generated("docs/performance.md").count(pages.NOTHING) == 3
    assert "On a GPU: not yet measured." in table.generated("README.md")


def test_red_ops_are_counted():
    def check(op, dtype, status):
        return row("check", {"op": op, "backend": "cuda", "dtype": dtype}, status=status)

    rows = [check("geglu", d, s) for d, s in (("float32", "failed"), ("float16", "skipped"))]
    report = report_of()
    report["stages"]["correctness"] = report["stages"]["all"] | {"rows": rows}
    assert checks.red(report) == {"geglu": f"1 of 2 fail, first {rows[0]['id']}"}
    assert checks.counts(rows)["geglu", "cuda", "float32"] == {"failed": 1}
    assert "FAILED" in "\n".join(show.stage_lines(report, "correctness"))


@pytest.mark.parametrize(
    ("said", "status", "words"),
    [
        ("========= ERROR SUMMARY: 0 errors", "passed", ""),
        ("========= Invalid write\n========= ERROR SUMMARY: 2 errors", "failed", "2 findings"),
        ("========= RACECHECK SUMMARY: 1 hazard displayed (1 error)", "failed", "1 findings"),
        ("========= Error: Device not supported", "skipped", "does not work here: Error: Device"),
        ("geglu: launched nothing, no\n========= ERROR SUMMARY: 0 errors", "skipped", "launched"),
    ],
)
def test_what_the_sanitizer_says(tmp_path, said, status, words):
    tool, rows = tmp_path / "tool", []
    tool.write_text(f"#!/bin/sh\ncat <<'END'\n{said}\nEND\n")
    tool.chmod(0o755)
    task = Task(emit=rows.append)
    task.measure("x", lambda: sanitizer.examine(str(tool), 60, "memcheck", "geglu"))
    assert rows[0]["status"] == status
    assert words in rows[0].get("why", "")


def test_a_sanitizer_that_misses_the_planted_write_is_red(tmp_path):
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\necho '========= ERROR SUMMARY: 0 errors'\n")
    tool.chmod(0o755)
    with pytest.raises(AssertionError, match="does not see a planted write"):
        sanitizer.planted(str(tool), 60)


def test_results_are_one_line_a_row(tmp_path):
    report = report_of(large(1.0, 2.0, 3.0))
    record.save(report, tmp_path / "x.json")
    assert record.load(tmp_path / "x.json") == json.loads(json.dumps(report))
    lines = (tmp_path / "x.json").read_text().splitlines()
    assert sum('"group_norm_large"' in line for line in lines) == 1
