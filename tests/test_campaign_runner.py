"""Stages of the campaign: what is lost when a process dies, hangs or runs out of time; red rows."""

import json
import sys
import time

import pytest

from benchmarks.campaign import bench, record, runner, under_pytest
from benchmarks.campaign.task import DeviceLost, OutOfTime, Task

FACTS = {"gpus": ["NVIDIA H200"], "torch": "2", "triton": "3", "date": "2026-11-21T00:00:00"}
TIMES = {"fastdiff": {"median": 1.0, "fastest_quartile": 1.0, "calls": 2}}

# Stands for a stage's process: three rows; what it does at the second one is put in its place.
STAGE = """
import json, os, signal, sys, time
order = json.load(open(sys.argv[1]))
journal = open(order["journal"], "a", buffering=1)
print("started", len(order["done"]), file=open({log!r}, "a"))
for name in ("a", "b", "c"):
    if name in order["done"]:
        continue
    print(json.dumps({{"begin": name}}), file=journal)
    if name == "b":
        {deed}
    times = {{"fastdiff": {{"median": 1.0, "fastest_quartile": 1.0, "calls": 2}}}}
    print(json.dumps({{"row": {{"id": name, "status": "measured", "times": times}}}}), file=journal)
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "h200.json"


def run_apart(path, deed, *, minutes=1.0, grace=0.0, report=None, again=False):
    script, log = path.with_name("stage.py"), path.with_name("log")
    script.write_text(STAGE.format(log=str(log), deed=deed))
    report = report or record.new(FACTS, False)
    stage = runner.Open(report, "s", path, again)
    options = runner.Options(minutes=minutes)
    runner.apart(stage, "s", options, {}, (sys.executable, str(script)), grace)
    return record.load(path)["stages"]["s"], log.read_text().split("\n")[:-1]


def ids(stage, status="measured"):
    return [row["id"] for row in stage["rows"] if row["status"] == status]


def test_a_stage_that_ends_well(path):
    stage, started = run_apart(path, "pass")
    assert stage["status"] == "finished"
    assert ids(stage) == ["a", "b", "c"]
    assert started == ["started 0"]


def test_a_process_that_dies_loses_one_row_and_another_goes_on(path):
    stage, started = run_apart(path, "os.kill(os.getpid(), signal.SIGKILL)")
    assert stage["status"] == "finished"
    assert ids(stage) == ["a", "c"]
    (red,) = [row for row in stage["rows"] if row["status"] == "failed"]
    assert red["id"] == "b"
    assert "-9" in red["why"]
    assert "times" not in red
    assert started == ["started 0", "started 2"]


def test_processes_share_the_rows_of_a_stage(path):
    """A row that two of them make is there once; one that dies takes its own row only."""
    script = path.with_name("stage.py")
    script.write_text(STAGE.format(log=str(path.with_name("log")), deed="os._exit(3)").replace(
        '("a", "b", "c")', '(["a", "b", "c", "d", "e"] + ["z"])[order["shard"][0]::2] + ["z"]'
    ))  # fmt: skip
    stage = runner.Open(record.new(FACTS, False), "s", path)
    runner.apart(stage, "s", runner.Options(), {}, (sys.executable, str(script)), 0.0, 2)
    found = record.load(path)["stages"]["s"]
    assert found["status"] == "finished"
    assert sorted(ids(found)) == ["a", "c", "d", "e", "z"]
    assert ids(found, "failed") == ["b"]
    assert Task(shard=(1, 3)).share(list(range(8))) == [1, 4, 7]


def test_a_process_that_hangs_is_stopped(path):
    start = time.monotonic()
    stage, _ = run_apart(path, "time.sleep(600)", minutes=0.08)
    assert time.monotonic() - start < 60
    assert stage["status"] == "cut short"
    assert ids(stage) == ["a"]
    assert ids(stage, "failed") == ["b"]  # it alone took the time, and would again


def test_a_process_that_cannot_start_says_why(path):
    path.with_name("x.py").write_text("raise ImportError('no such package')")
    report = record.new(FACTS, False)
    command = (sys.executable, str(path.with_name("x.py")))
    runner.apart(runner.Open(report, "s", path), "s", runner.Options(), {}, command)
    stage = record.load(path)["stages"]["s"]
    assert stage["status"] == "not run"
    assert "no such package" in stage["why"]


def test_after_the_whole_run_was_killed_the_next_goes_on(path):
    """The file is that of a run which was killed after its first row."""
    report = record.new(FACTS, False)
    stage = runner.Open(report, "s", path)
    stage.add({"id": "a", "status": "measured", "times": TIMES})
    there = record.resumed(path, FACTS, False)
    assert there["stages"]["s"]["status"] == "cut short"
    assert there["stages"]["s"]["why"] == "the run was cut off"
    after, started = run_apart(path, "pass", report=there)
    assert started == ["started 1"]
    assert ids(after) == ["a", "b", "c"]
    assert after["status"] == "finished"
    after, started = run_apart(path, "pass", report=there, again=True)
    assert started[-1] == "started 0"


def test_the_real_process_of_a_stage(path):
    """Its first line is the same that the command runs; here for a stage which is quick."""
    report = record.new(FACTS, False)
    runner.apart(runner.Open(report, "device", path), "device", runner.Options(dry=True), {})
    stage = record.load(path)["stages"]["device"]
    assert stage["status"] == "finished", stage
    assert ids(stage, "passed") == ["provenance", "backends"]
    facts = stage["rows"][1]["facts"]
    assert facts["geglu"]["triton"].startswith("torch sees no CUDA device") or facts["geglu"]


def here(work, path, **options):
    report = record.new(FACTS, True)
    runner.here(runner.Open(report, "s", path), work, runner.Options(dry=True, **options), {})
    return record.load(path)["stages"]["s"]


def test_red_rows_have_no_numbers(path):
    def work(task):
        def wrong():
            assert 1 == 2, "wrong by 1"

        task.measure("right", lambda: {"times": TIMES})
        task.measure("wrong", wrong)
        task.measure("broken", lambda: {}[0])

    stage = here(work, path)
    assert ids(stage) == ["right"]
    red = {row["id"]: row for row in stage["rows"] if row["status"] == "failed"}
    assert "wrong by 1" in red["wrong"]["why"]
    assert "KeyError" in red["broken"]["why"]
    assert not [row for row in red.values() if "times" in row]


def test_time_is_looked_at_between_rows(path):
    def work(task):
        task.measure("a", lambda: {"times": TIMES})
        task.deadline = time.monotonic() - 1
        task.measure("b", lambda: {"times": TIMES})

    stage = here(work, path)
    assert stage["status"] == "cut short"
    assert ids(stage) == ["a"]


def test_a_lost_device_ends_the_process(path):
    def work(task):
        def fault():
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

        task.measure("a", fault)
        raise AssertionError("the next row would fail for nothing")

    stage = here(work, path)
    assert stage["status"] == "cut short"
    assert "illegal memory access" in stage["why"]
    assert ids(stage, "failed") == ["a"]
    task = Task(emit=lambda row: None)
    task.measure("b", lambda: (_ for _ in ()).throw(RuntimeError("CUDA out of memory")))  # goes on
    with pytest.raises(DeviceLost):
        task.hand_over({"id": "c", "status": "failed", "why": "Triton Error [CUDA]: misaligned"})


BENCH = """
import pytest

@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_it(benchmark, dtype):
    benchmark.extra_info["case"] = {"dtype": dtype}
    ran = []
    benchmark.extra_info["times"] = {"fastdiff": {"median": 1.0, "calls": 1}}
    benchmark.pedantic(lambda: ran.append(1), rounds=100)
    assert len(ran) == 2  # a dry run
    assert dtype != "float16", "the check is red"
    if dtype == "bfloat16":
        pytest.skip("not here")
"""


def of_pytest(tmp_path, source, **task):
    path, rows = tmp_path / f"bench_{tmp_path.name}.py", []  # a name of its own
    path.write_text(source)
    task = Task(dry=True, emit=rows.append, **task)
    args = [str(path), "-o", "python_files=bench_*.py"]
    try:
        under_pytest.run(task, args, lambda item: {"benchmark": "it"})
    finally:
        for row in rows:
            record.check_row(row)
    return {row["id"].rpartition("[")[2].strip("]"): row for row in rows}


def test_benchmarks_of_pytest_are_rows(tmp_path):
    rows = of_pytest(tmp_path, BENCH)
    assert rows["float32"]["status"] == "measured"
    assert rows["float32"]["case"] == {"dtype": "float32"}
    assert rows["float32"]["benchmark"] == "it"
    assert rows["float16"]["status"] == "failed"
    assert "the check is red" in rows["float16"]["why"]
    assert "times" not in rows["float16"]
    assert rows["bfloat16"]["why"] == "not here"
    done = frozenset(row["id"] for row in rows.values() if row["status"] != "failed")
    assert list(of_pytest(tmp_path, BENCH, done=done)) == ["float16"]


def test_pytest_stops_when_the_time_is_up(tmp_path):
    rows = []
    with pytest.raises(OutOfTime):
        rows = of_pytest(tmp_path, BENCH, deadline=time.monotonic() - 1)
    assert not rows


def test_what_cannot_be_collected_is_red(tmp_path):
    (row,) = of_pytest(tmp_path, "import no_such_package_at_all").values()
    assert row["status"] == "failed"
    assert "no_such_package_at_all" in row["why"]


def test_an_op_that_is_red_on_the_device_is_not_timed():
    rows = []
    task = Task(dry=True, emit=rows.append, context={"red": {"geglu": "1 of 9 fail"}})
    bench.run("geglu", task)
    assert [row["status"] for row in rows] == ["skipped"]
    assert "1 of 9 fail" in rows[0]["why"]


def test_the_host_benchmarks_are_left_to_the_host():
    rows = []
    bench.run("scheduler_step", Task(device="cuda", emit=rows.append))
    assert "times the CPU only" in rows[0]["why"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"status": "passed"}, "id"),
        ({"id": "a", "status": "done"}, "status"),
        ({"id": "a", "status": "failed", "why": "x", "times": TIMES}, "has times"),
        ({"id": "a", "status": "measured"}, "has times"),
        ({"id": "a", "status": "failed"}, "say why"),
    ],
)
def test_rows_that_say_too_much_or_too_little_are_refused(row, words):
    with pytest.raises(ValueError, match=words):
        record.check_row(row)


def test_the_file_is_whole_or_the_old_one(path, monkeypatch):
    report = record.new(FACTS, False)
    record.save(report, path)
    before = path.read_text()
    runner.Open(report, "s", path).end("finished")
    assert json.loads(path.read_text()) == report
    path.write_text(before)

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(record.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        record.save(report, path)
    assert path.read_text() == before


@pytest.mark.parametrize("change", [{"gpus": ["NVIDIA A100"]}, {"torch": "3"}])
def test_runs_on_different_things_do_not_mix(path, change):
    record.save(record.new(FACTS, False), path)
    with pytest.raises(ValueError, match="another run"):
        record.resumed(path, FACTS | change, False)
    with pytest.raises(ValueError, match="another run"):
        record.resumed(path, FACTS, True)
