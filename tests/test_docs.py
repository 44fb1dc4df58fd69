"""Snippets run, links lead somewhere, commands exist: README.md, CONTRIBUTING.md, docs/*.md.

Commands that docstrings and messages of the code name between backticks exist too.
The Python snippets of a page run in order in one namespace, where `pipe` (a Stable Diffusion
pipeline, tiny, random weights) and `denoise` (a network that finds no noise) exist.  A fence tagged
`python no-run` is left out; it must say that it needs a GPU or a download.
"""

import ast
import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import torch
import typer

from fastdiff.cli.commands import app
from tests import tiny_model

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RUN = [path for path in PAGES if path.name != "deployment.md"]  # test_deployment.py has a bundle
NAMES = [path.relative_to(ROOT).as_posix() for path in PAGES]


def fences(path, *tags):
    """(tag, code, line) of the fenced blocks with these tags."""
    text = path.read_text()
    return [
        (found[1].strip(), found[2], text[: found.start()].count("\n") + 2)
        for found in FENCE.finditer(text)
        if found[1].strip() in tags
    ]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("path", RUN, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_python_snippets_run(path, tmp_path, monkeypatch):
    snippets = fences(path, "python")
    if not snippets:
        pytest.skip("no Python on this page")
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "snippet", "denoise": lambda x, t: torch.zeros_like(x)}
    if any("pipe" in code for _, code, _ in snippets):
        namespace["pipe"] = tiny_model.pipeline()
    for _, code, line in snippets:
        exec(compile("\n" * (line - 1) + code, str(path), "exec"), namespace)


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_snippets_that_do_not_run_say_why(path):
    tags = {found[1].strip() for found in FENCE.finditer(path.read_text())}
    assert tags <= {"python", "python no-run", "javascript", "cpp", "sh", "text", "json", ""}
    for _, code, line in fences(path, "python no-run"):
        assert re.search(r"#.*(GPU|download)", code), f"line {line}"


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_links_lead_to_files(path):
    text = FENCE.sub("", path.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http://", "https://", "#", "mailto:")):
            assert (path.parent / target.split("#")[0]).exists(), target


def named(text):
    """The command lines between backticks."""
    return re.findall(r"`((?:fastdiff|make|python) [^`]+)`", text)


def commands(path):
    """Every command line of a page: in `sh` fences; between backticks, `text` fences included."""
    text = path.read_text()
    shell = [code.replace("\\\n", " ") for _, code, _ in fences(path, "sh")]
    lines = [line for code in shell for line in code.splitlines()]
    lines += named(FENCE.sub("", text))
    lines += [line for _, code, _ in fences(path, "text") for line in named(code)]
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


def strings(path):
    """Every string of a source file: docstrings, messages, help."""
    tree = ast.walk(ast.parse(path.read_text()))
    return [n.value for n in tree if isinstance(n, ast.Constant) and isinstance(n.value, str)]


def must_exist(words):
    """Fail if the command line names a command, an option, a target or a file that is not there."""
    group = typer.main.get_command(app)
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    if words[:1] == ["fastdiff"] and words[1:]:
        assert words[1] in group.commands, words
        command, name, rest = group.commands[words[1]], words[1], words[2:]
        if hasattr(command, "commands"):  # bench: its own commands
            assert rest, words
            assert rest[0] in command.commands, words
            command, name, rest = command.commands[rest[0]], rest[0], rest[1:]
        # parsed, not run: an unknown option or a missing argument raises
        command.make_context(name, rest)
    elif words[:1] == ["make"]:
        assert words[1] in targets, words
    elif words[0].endswith("python") and words[1:2] == ["-m"]:
        assert importlib.util.find_spec(words[2]), words
    elif words[0].endswith("python") and words[1:2]:
        assert (ROOT / words[1]).exists(), words


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_commands_exist(path):
    for words in commands(path):
        must_exist(words)


def test_commands_named_in_the_code_exist():
    found = [
        line
        for folder in ("fastdiff", "kernels", "benchmarks", "examples", "docs")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for text in strings(path)
        for line in named(text)
    ]
    assert any(line.startswith("fastdiff ") for line in found)
    for line in found:
        must_exist(shlex.split(line, comments=True))
