"""What a second run of the campaign does: what the first left out, in which file, and what not."""

import json

import pytest

from benchmarks import provenance, results
from benchmarks.campaign import __main__ as command
from benchmarks.campaign import files, models, norms, record, runner
from benchmarks.campaign.stages import Stage, stages
from benchmarks.campaign.task import Task
from benchmarks.results import COMPILED
from benchmarks.side_by_side import OURS
from tests.test_campaign_runner import of_pytest

FACTS = {"gpus": ["NVIDIA H200"], "driver": "580", "torch": "2", "triton": "3", "commit": "abc"}
FACTS |= {"date": "2026-11-21T23:50:00", "sources": "123", "cpu": "a CPU"}
TOMORROW = FACTS | {"date": "2026-11-22T00:10:00"}
MODEL, PEER = ("full", "compiles"), ("compiles",)


def times(*names):
    return {name: {"median": 1.0, "fastest_quartile": 1.0, "calls": 2} for name in names}


class Campaign:
    """The command with two stages that say what they made: a benchmark and a model."""

    def __init__(self, monkeypatch, path):
        self.made, self.path = [], path
        made = {
            "device": Stage("", self.device),
            "op": Stage("", self.op, depends=PEER),
            "model": Stage("", self.model, depends=MODEL),
        }
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # --dry-run sets it; put back afterwards
        monkeypatch.setattr(command, "stages", lambda: made)

    def device(self, task):
        self.measure(task, "facts")

    def op(self, task):
        peers = [COMPILED] if task.compiles else []
        without = {} if task.compiles else {"left out": COMPILED}
        self.measure(task, "op", peers, **without)

    def model(self, task):
        for size in ("1", *["8"] * task.full):
            self.measure(task, f"eager {size}")
            if task.compiles:
                self.measure(task, f"compile {size}", [COMPILED])
            else:
                task.skip(f"compile {size}", "left out", **{"left out": COMPILED})

    def measure(self, task, name, peers=(), **what):
        def make():
            self.made.append(name)
            return {"times": times(OURS, *peers)}

        task.measure(name, make, **what)

    def run(self, *options):
        del self.made[:]
        assert command.main(["--dry-run", "--out", str(self.path), *options]) == 0
        return list(self.made)

    def rows(self):
        report = record.load(self.path)
        return {row["id"]: row for row in record.rows_of(report)}


@pytest.fixture
def campaign(monkeypatch, tmp_path):
    return Campaign(monkeypatch, tmp_path / "x.json")


def test_full_adds_what_is_long_and_nothing_twice(campaign, capsys):
    assert campaign.run() == ["facts", "op", "eager 1", "compile 1"]
    assert campaign.run() == []
    capsys.readouterr()
    assert campaign.run("--full") == ["eager 8", "compile 8"]
    said = capsys.readouterr().out
    assert "device: finished before" in said
    assert "model: finished before" not in said
    assert campaign.run("--full") == []
    assert campaign.run() == [], "what is full is also what is not"
    assert capsys.readouterr().out.count("finished before") == 6


def test_what_no_compile_left_out_is_made_later(campaign):
    assert campaign.run("--no-compile") == ["facts", "op", "eager 1"]
    assert campaign.run("--no-compile") == []
    before = campaign.rows()
    assert before["compile 1"]["status"] == "skipped"
    assert campaign.run() == ["op", "compile 1"]
    after = campaign.rows()
    assert list(after) == list(before), "in their places"
    assert set(after["op"]["times"]) == {OURS, COMPILED}
    assert after["compile 1"]["status"] == "measured"
    assert not [row for row in after.values() if "left out" in row]
    assert campaign.run("--no-compile") == [], "which would say less"
    assert campaign.run("--full", "--no-compile") == ["eager 8"]
    assert set(campaign.rows()["op"]["times"]) == {OURS, COMPILED}
    assert campaign.run("--full") == ["compile 8"]


def test_a_stage_that_lacks_what_was_asked_for_is_not_success(campaign):
    campaign.run()
    report = record.load(campaign.path)
    wanted = {"full": True, "compiles": True}
    assert command.status(report, {"model": wanted}) == 1
    assert command.status(report, {"model": wanted | {"full": False}}) == 0


def test_an_old_row_stays_until_the_new_one_is_made(tmp_path):
    """And a red one then takes its place: no number where the check is red."""
    report, path = record.new(FACTS, False), tmp_path / "x.json"
    old = {"id": "a", "status": "measured", "times": times(OURS), "left out": COMPILED}
    runner.Open(report, "s", path, asked={"compiles": False}).add(old)
    assert runner.Open(report, "s", path, asked={"compiles": False}).done() == {"a"}
    stage = runner.Open(report, "s", path, asked={"compiles": True})
    assert stage.done() == frozenset()
    assert record.load(path)["stages"]["s"]["rows"] == [old]
    red = {"id": "a", "status": "failed", "why": "wrong"}
    stage.add(red)
    stage.add(old)  # too late
    assert record.load(path)["stages"]["s"]["rows"] == [red]


def test_rows_without_torch_compile_say_so(tmp_path):
    source = "def test_it(benchmark, compiles): assert not compiles\ndef test_other(benchmark): 0"
    fixture = "import pytest\n@pytest.fixture\ndef compiles(): return False\n"
    for compiles in (True, False):
        folder = tmp_path / str(compiles)
        folder.mkdir()
        path = folder / f"bench_{compiles}.py"
        found = of_pytest(folder, fixture + source, compiles=compiles)
        rows = {name.rpartition(":")[2]: row.get("left out") for name, row in found.items()}
        assert rows == {"test_it": None if compiles else COMPILED, "test_other": None}, path
    rows = []
    for compiles in (True, False):
        task = Task(dry=True, compiles=compiles, emit=rows.append)
        task.measure("x", lambda task=task: norms.measure(task, norms.TINY, True))
    assert [row.get("left out") for row in rows] == [None, COMPILED]
    task = Task(dry=True, compiles=False, emit=rows.append)
    task.done = frozenset(f"sd15 2 float32 {who}" for who in models.contestants(task)[:-1])
    models.run("sd15", task)
    assert rows[-1]["left out"] == models.COMPILED


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    return tmp_path


def asked(full=False):
    wanted = {"full": full, "compiles": True}
    return {n: {k: wanted[k] for k in stage.depends} for n, stage in stages().items()}


def written(path, facts, finished=0, dry=False):
    """A file in which the first stages are finished."""
    report = record.new(facts, dry)
    for name, wanted in list(asked().items())[:finished]:
        runner.Open(report, name, path, asked=wanted).end("finished")
    record.save(report, path)
    return path


def test_a_run_goes_on_after_midnight(folder):
    path, words = files.choose(FACTS, asked())
    assert path == folder / "nvidia-h200-2026-11-21.json"
    assert words == f"a new file, {path}"
    written(path, FACTS, finished=3)
    written(folder / "nvidia-h100-2026-11-22.json", TOMORROW | {"gpus": ["NVIDIA H100"]})
    written(folder / "cpu-2026-11-22.json", TOMORROW)
    for facts in (FACTS, TOMORROW):
        found, words = files.choose(facts, asked())
        assert found == path
        assert f"going on with {path}, begun 2026-11-21" in words
        assert f"to do: {', '.join(list(stages())[3:])}" in words


def test_a_finished_file_is_left_and_full_goes_on_with_it(folder):
    path = written(folder / "nvidia-h200-2026-11-21.json", FACTS, finished=99)
    found, words = files.choose(FACTS, asked())
    assert (found, words.startswith("nothing is left to do in")) == (path, True)
    assert files.choose(FACTS, asked(), again=True)[0] == path
    found, words = files.choose(TOMORROW, asked())
    assert found.name == "nvidia-h200-2026-11-22.json"
    assert "nvidia-h200-2026-11-21.json is finished" in words
    found, words = files.choose(TOMORROW, asked(full=True))
    assert found == path
    assert words.endswith("to do: model_sd15, model_vae, model_sdxl")


@pytest.mark.parametrize("change", ["commit", "sources", "driver", "torch", "triton", "cudnn"])
def test_another_commit_or_version_begins_a_new_file_in_words(folder, change):
    first = written(folder / "nvidia-h200-2026-11-21.json", FACTS, finished=3)
    before = first.read_text()
    other = FACTS | {change: "new"}
    path, words = files.choose(other, asked())
    assert path.name == "nvidia-h200-2026-11-21-2.json"
    assert "a new file" in words
    assert f"{first.name} is of another run ({change} {FACTS.get(change)!r}, here 'new')" in words
    with pytest.raises(ValueError, match=f"another run .{change}"):
        record.resumed(first, other, False)
    written(path, other)
    assert files.choose(other, asked())[0] == path
    assert files.choose(FACTS, asked())[0] == first, "each goes on with its own"
    assert results.newest_campaign() == path
    assert first.read_text() == before
    (folder / "nvidia-h200-2026-11-23.json").write_text("{}")
    found, words = files.choose(FACTS | {"commit": "third"}, asked())
    assert found.name == "nvidia-h200-2026-11-21-3.json"
    assert "nvidia-h200-2026-11-23.json cannot be read" in words


def test_the_newest_file_of_a_gpu(folder):
    names = ["nvidia-h200-2026-11-21", "nvidia-h200-2026-11-21-2", "nvidia-h200-2026-11-21-10"]
    assert results.newest_campaign() is None
    for name in names:
        (folder / f"{name}.json").write_text("{}")
        (folder / "cpu-2026-11-30.json").write_text("{}")
        assert results.newest_campaign().stem == name
    (folder / "nvidia-h100-2026-11-22.json").write_text("{}")
    assert results.newest_campaign().stem == "nvidia-h100-2026-11-22"


def test_the_command_says_which_file_it_takes(folder, monkeypatch, capsys):
    """On a device there is no need for --out; the stages are not run here."""
    facts = provenance.provenance() | FACTS
    monkeypatch.setattr(provenance, "provenance", lambda: facts)
    monkeypatch.setattr(command, "run", lambda report, path, options, device: None)
    path = written(folder / "nvidia-h200-2026-11-20.json", facts, finished=1)
    assert command.main([]) == 1
    assert f"going on with {path}" in capsys.readouterr().out
    facts["commit"] = "new"
    assert command.main([]) == 1
    said = capsys.readouterr().out
    assert f"a new file, {folder / 'nvidia-h200-2026-11-21.json'}" in said
    assert "is of another run (commit 'abc', here 'new')" in said
    assert command.main(["--out", str(path)]) == 2
    assert "choose another --out" in capsys.readouterr().out


def test_the_hash_of_the_sources_follows_the_code_and_not_the_results(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    for name in ("kernels/a.py", "csrc/a.cu", "benchmarks/bench_a.py", "fastdiff/ops/table.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    seen = {provenance.sources()}
    (tmp_path / "benchmarks/results").mkdir()
    (tmp_path / "benchmarks/results/x.json").write_text(json.dumps({}))
    assert {provenance.sources()} == seen
    for name in ("kernels/a.py", "csrc/a.cu", "benchmarks/bench_a.py", "fastdiff/ops/table.json"):
        (tmp_path / name).write_text("2")
        seen.add(provenance.sources())
    assert len(seen) == 5
    monkeypatch.setenv("FASTDIFF_COMMIT", "said")
    assert provenance.commit() == "said", "not in a repository"
