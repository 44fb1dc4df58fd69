"""docs/deployment.md: its Python runs as it stands, and what it names is there and is so.

Its commands and links are checked with those of the other pages, in tests/test_docs.py.
"""

import ast
import dataclasses
import inspect
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from safetensors.torch import save_file

import fastdiff
from fastdiff.cli import model
from fastdiff.cli.commands import app
from fastdiff.engine import bundle as bundles
from fastdiff.engine import cache, here, tensorrt
from fastdiff.engine.errors import EngineError, Incompatible
from fastdiff.engine.export import SAMPLERS as USUAL
from fastdiff.engine.here import Here
from fastdiff.engine.manifest import Build, Engine, File, Graph, Manifest, Model, Range, Target
from tests.exported import SAMPLERS
from tests.test_docs import fences

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "deployment.md"
TEXT = PAGE.read_text()
VERSIONS = {"onnxruntime": "1.31.1", "tensorrt": "11.4.0.106", "tensorrt-rtx": "1.7.1.116"}
MADE = {"os": "linux", "machine": "x86_64", "cuda": "13.0", "driver": "595.71.05"}


@pytest.fixture(scope="module")
def manifest(exported):
    return bundles.open(exported / "bundle").manifest


def table(heading):
    """The rows of the first table after a heading or a line, cells without backticks' spaces."""
    lines = TEXT[TEXT.index(heading) :].splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("|"))
    last = next(i for i, line in enumerate(lines[first:], first) if not line.startswith("|"))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[first:last]]
    return rows[0], rows[2:]


def levels(picture):
    """A picture, or the decoder's tensor in -1..1, as numbers from 0 to 255."""
    if isinstance(picture, torch.Tensor):
        return 127.5 * (picture[0].permute(1, 2, 0).numpy() + 1)
    return np.asarray(picture, dtype=np.float32)


def quoted(text):
    return re.findall(r"`([^`]+)`", text)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_its_python_runs(exported, tmp_path, monkeypatch, capsys):
    """On the built-in model and its bundle; each way to a picture gives one of something."""
    shutil.copytree(exported / "bundle", tmp_path / "bundle")
    monkeypatch.chdir(tmp_path)
    pipe = model.load(model.built_in(), "cpu")
    pipe.set_progress_bar_config(disable=True)
    stock, pictures = pipe.unet, []
    namespace = {"__name__": "snippet", "pipe": pipe}
    snippets = fences(PAGE, "python")
    assert len(snippets) == 5
    torch.manual_seed(1)
    layer = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q"
    lora = {f"{layer}.lora_{side}.weight": torch.randn(128, 128) / 8 for side in "AB"}
    save_file(lora, "style.safetensors")
    for _, code, line in snippets:
        exec(compile("\n" * (line - 1) + code, str(PAGE), "exec"), namespace)
        if "picture" in code:
            pictures.append(levels(namespace["picture"]))
    assert pipe.unet is stock
    assert float(capsys.readouterr().out.split()[-1]) < 2e-6
    assert len(pictures) == 3
    assert all(picture.std() > 20 for picture in pictures)
    plain, _, changed = pictures
    assert abs(plain - changed).max() > 1  # of the same noise, with a LoRA
    with pytest.raises(EngineError, match="closed"):
        namespace["denoise"](torch.zeros(1, 4, 16, 16), 1.0)


def test_what_is_shown_and_not_run_has_these_arguments():
    for _, code, line in fences(PAGE, "python no-run"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("fastdiff."):
                called = getattr(fastdiff, ast.unparse(node.func).removeprefix("fastdiff."))
                arguments = {keyword.arg: None for keyword in node.keywords}
                inspect.signature(called).bind(*node.args, **arguments)
                assert set(arguments) <= set(inspect.signature(called).parameters), line


def test_inline_python_has_these_arguments():
    found = re.findall(r"`((?:fastdiff\.)?(?:export|load_engine)\([^`]*\))`", TEXT)
    assert len(found) >= 3
    for code in found:
        call = ast.parse(code, mode="eval").body
        called = getattr(fastdiff, ast.unparse(call.func).removeprefix("fastdiff."))
        assert {k.arg for k in call.keywords} <= set(inspect.signature(called).parameters), code


def test_the_files_are_those_of_a_bundle(manifest):
    """Of the manifest, or of parts that the built-in model has not."""
    _, rows = table("## What is in a bundle")
    named = {name for row in rows for name in quoted(row[0])}
    others = {"manifest.json", "unet.0.plan", "text_encoder_2.onnx"}
    assert others <= named
    assert set(manifest.files) - named <= {f"sampler-{s.replace(':', '-')}.json" for s in SAMPLERS}
    assert named - others <= set(manifest.files)
    assert '{name}.{i}.plan"' in code("tensorrt_bundle")
    assert '"text_encoder_2"' in code("parts")


def test_the_fields_are_those_of_a_manifest():
    _, rows = table("`manifest.json` has these fields")
    fields = {field.alias or name for name, field in Manifest.model_fields.items()}
    assert {name for row in rows for name in quoted(row[0])} == fields
    (target,) = (row for row in rows if quoted(row[0]) == ["target"])
    assert set(quoted(target[1])) == set(Target.model_fields)
    parts = (Manifest, Target, Model, Range, Graph, Engine, File, Build)
    known = {name for part in parts for name in part.model_fields}
    assert {name for row in rows for name in quoted(row[1])} <= known


def test_the_ports_are_those_of_the_graphs(manifest):
    """Each with its dtype and shape, in the order of the graph; the bundle's dtype is fp32."""

    def plain(shape):
        return [re.sub(r"\d+", "s", d) if isinstance(d, str) else "N" for d in shape]

    _, rows = table("### Inputs and outputs")
    said = {}
    for graph, port, dtype, shape, _ in rows:
        dims = [d for d in shape.strip("[]").split(", ") if d]
        dims = ["N" if re.fullmatch("[A-Z3]", d) else d for d in dims]
        said.setdefault(*quoted(graph), []).append(
            (*quoted(port), dtype.replace("dtype", "float32"), dims)
        )
    assert said == {
        name: [(p.name, p.dtype, plain(p.shape)) for p in (*graph.inputs, *graph.outputs)]
        for name, graph in manifest.graphs.items()
    }


def test_the_other_ports_are_in_the_code():
    part = TEXT[TEXT.index("Where the model has them") : TEXT.index("`step.onnx` serves")]
    known = code("networks") + code("transformer_ports") + code("step")
    names = [n for n in quoted(part) if not n.startswith("--")]
    assert len(names) >= 14
    for name in names:
        stem = re.sub(r"_\d$", "_", name)
        assert f'"{stem}"' in known or f'"{stem}{{' in known, name


def code(module):
    return (ROOT / "fastdiff" / "engine" / f"{module}.py").read_text()


def test_all_options_are_there_and_no_others():
    command = typer.main.get_command(app).commands["export"]
    known = {name for param in command.params for name in (*param.opts, *param.secondary_opts)}
    known = {name for name in known if name.startswith("--")}
    _, rows = table("## Options of fastdiff export")
    assert {name for row in rows for name in quoted(row[0])} == known - {"--help"}
    (row,) = (row for row in rows if "`--sampler`" in row[0])
    assert tuple(quoted(row[1])) == USUAL
    others = typer.main.get_command(app).commands
    more = {n for c in others.values() for param in c.params for n in param.opts}
    script = (ROOT / "examples/javascript/generate.mjs").read_text()
    for name in set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", TEXT)) - known - more:
        assert name in ("--older-than", "--ignore-scripts") or (
            f'"{name[2:]}": {{ type' in script or f" {name[2:]}: {{ type" in script
        ), name


def test_the_bundle_of_the_page_has_the_samplers_of_the_tests():
    (command,) = (c for _, c, _ in fences(PAGE, "sh") if "export shapes --out bundle --with" in c)
    assert tuple(re.findall(r"--sampler (\S+)", command)) == SAMPLERS


def test_the_loop_in_javascript_is_that_of_the_example():
    ((_, loop, _),) = fences(PAGE, "javascript")
    script = (ROOT / "examples/javascript/generate.mjs").read_text()
    kept = [line for line in script.splitlines() if "process.stderr.write" not in line]
    assert loop in "\n".join(kept)


def test_the_names_in_cpp_are_those_of_the_step(manifest):
    """Names in the order of the inputs, fields of a plan; nobody compiles it here."""
    ((_, program, _),) = fences(PAGE, "cpp")
    lists = re.findall(r"\[\] = \{(.*?)\}", program, re.DOTALL)
    names, results = (re.findall(r'"(\w+)"', found) for found in lists)
    graph = manifest.graphs["step"]
    order = ["x", "history", "noise", "row", "table", "timesteps", "c_in", "encoder_hidden_states"]
    assert names == order
    assert sorted(names) == sorted(port.name for port in graph.inputs)
    assert set(results) <= {port.name for port in graph.outputs}
    assert program.count("inputs.push_back") == len(names)
    plan = fastdiff.plan("dpmpp_2m", steps=3)
    assert all(hasattr(plan, field) for field in re.findall(r'plan\["(\w+)"\]', program))


CELLS = {"yes": True, "no": False}


def target(text, built_on="9.0"):
    """The record of what a row is about, as a bundle made on Linux on x86_64 has it."""
    name = quoted(text)[0]
    capability = {"tensorrt": built_on, "tensorrt-rtx": ",".join(tensorrt.RTX_CAPABILITIES)}
    more = {} if name == "onnxruntime" else {"compute_capability": capability[name]}
    facts = dict(MADE)
    if name != "tensorrt":
        facts["driver"] = None
    if name == "onnxruntime":
        facts["cuda"] = None
    return Target(name=name, version=VERSIONS[name], **facts, **more)


def runs(wanted, there):
    try:
        here.check(wanted, there)
    except Incompatible:
        return False
    return True


def test_each_cell_of_what_is_portable_is_what_is_checked(manifest):
    assert {graph.opset for graph in manifest.graphs.values()} == {here.OPSET_OF_ALL}
    head, rows = table("## What is portable")
    assert head[:3] == ["what", "where", "no GPU"]
    assert len(rows) == 10
    for what, where, *cells in rows:
        wanted = target(what, *re.findall(r"built on (\S+)", what))
        system, machine = where.split()
        there = Here(wanted.version, "13.0", MADE["driver"], None, system, machine)
        for capability, cell in zip(head[2:], cells, strict=True):
            gpu = None if capability == "no GPU" else capability
            if cell == "-":  # no such machine
                assert system == "darwin"
                assert gpu is not None
                continue
            found = dataclasses.replace(there, compute_capability=gpu)
            assert runs(wanted, found) == CELLS[cell], (what, where, capability)


SAME = {  # row -> what differs from where it was made, and which cells allow that
    "version of the runtime": [({"version": "99.0"}, {"any"}), ({"version": "1.22.0"}, {"any"})],
    "GPU": [
        ({"compute_capability": "8.6"}, {"any or none", "one of those in the manifest"}),
        ({"compute_capability": None}, {"any or none"}),
        ({"compute_capability": "10.0"}, {"any or none"}),
    ],
    "driver": [
        ({"driver": "600.0"}, {"any", "that one or newer"}),
        ({"driver": "580.0"}, {"any"}),
    ],
    "CUDA that PyTorch has": [
        ({"cuda": "13.9"}, {"any", "the same major version"}),
        ({"cuda": "12.9"}, {"any"}),
    ],
    "system and machine": [({"os": "windows"}, {"any"}), ({"machine": "aarch64"}, {"any"})],
}


def test_each_cell_of_what_must_be_the_same_is_what_is_checked():
    head, rows = table("What must be the same as where it was made")
    assert [row[0] for row in rows] == list(SAME)
    for what, *cells in rows:
        for column, cell in zip(head[1:], cells, strict=True):
            wanted = target(column, "8.9")
            there = Here(wanted.version, "13.0", MADE["driver"], "8.9", "linux", "x86_64")
            assert runs(wanted, there)
            for change, allowing in SAME[what]:
                found = dataclasses.replace(there, **change)
                word = re.sub(r" that knows.*", "", cell)
                assert runs(wanted, found) == (word in allowing), (what, column, change)


def test_the_cache_is_where_and_as_large_as_it_says():
    assert f"{cache.DEFAULT_BYTES // 10**9} GB" in TEXT
    for name in ("FASTDIFF_CACHE", "FASTDIFF_CACHE_BYTES"):
        assert f"`{name}`" in TEXT
        assert f'"{name}"' in inspect.getsource(cache)
