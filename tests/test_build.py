"""The wheel: what is in it with and without a C++ compiler, and that it imports where it lies.

Without CUDA, but for what nvcc is asked to do; that it can is seen in test_nvcc.py.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def environment(**changes):
    ours = ("CXX", "FASTDIFF_CUDA", "FASTDIFF_CUDA_ARCHS", "CUDA_HOME")
    kept = {k: v for k, v in os.environ.items() if k not in ours}
    return kept | changes


def build(folder, **changes):
    """pip's build of a copy of the sources, with the setuptools, pybind11 and ninja installed."""
    source = folder / "source"
    for name in ("fastdiff", "csrc", "kernels"):
        ignored = shutil.ignore_patterns("__pycache__", "*.so", "_build_info.json")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-build-isolation",
        "--no-deps",
        "--no-index",
    ]
    return subprocess.run(
        [*command, "--wheel-dir", str(folder), str(source)],
        env=environment(**changes),
        capture_output=True,
        text=True,
    )


def hurried(path, compiler):
    """The compiler, which leaves -O3 out: the installation that is tested was built with it from
    the same sources, and what a wheel holds does not depend on it (80 seconds, or 20)."""
    path.write_text(
        "#!/bin/sh\nfor word; do shift\n"
        'test "$word" = -O3 || set -- "$@" "$word"\n'
        f"done; exec '{compiler}' \"$@\"\n"
    )
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module", params=["with a compiler", "without a compiler"])
def wheel(request, tmp_path_factory):
    compiler = next(filter(None, map(shutil.which, ("g++", "clang++", "c++"))), None)
    if request.param == "with a compiler" and not compiler:
        pytest.skip("there is no C++ compiler here")
    folder = tmp_path_factory.mktemp("wheel")
    changes = {"CXX": "no-such-compiler"}
    if request.param == "with a compiler":
        changes = {"CXX": str(hurried(folder / "hurried", compiler))}
    run = build(folder, FASTDIFF_CUDA="0", **changes)  # with CUDA: test_nvcc.py
    assert run.returncode == 0, run.stderr[-3000:]
    unpacked = folder / "unpacked"
    zipfile.ZipFile(next(folder.glob("*.whl"))).extractall(unpacked)
    return unpacked, request.param == "with a compiler"


def test_what_is_in_it(wheel):
    unpacked, native = wheel
    files = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    sources = {path for path in (ROOT / "fastdiff").rglob("*") if path.is_file()}
    sources = {path for path in sources if path.suffix in (".py", ".typed", ".json")}
    sources.discard(ROOT / "fastdiff/_build_info.json")  # of this checkout, not of the wheel
    weights = ROOT / "fastdiff/shapes/weights"
    sources |= {path for path in weights.rglob("*") if path.is_file()}
    expected = {str(path.relative_to(ROOT)) for path in sources}
    expected |= {f"fastdiff/kernels/{path.name}" for path in (ROOT / "kernels").glob("*.py")}
    assert expected <= files
    metadata = {path for path in files if ".dist-info/" in path}
    built = {path for path in files if path.startswith("fastdiff/_C")}
    assert files - expected - metadata - built == {"fastdiff/_build_info.json"}
    assert len(built) == (1 if native else 0)


def test_the_metadata(wheel):
    folder = next(wheel[0].glob("*.dist-info"))
    metadata = (folder / "METADATA").read_text()
    assert "Name: fastdiff-engine\n" in metadata
    assert "License-Expression: Apache-2.0\n" in metadata
    assert "fastdiff = fastdiff.cli:main" in (folder / "entry_points.txt").read_text()
    assert (folder / "top_level.txt").read_text().split() == ["fastdiff"]


def test_the_record_of_the_build(wheel):
    unpacked, native = wheel
    info = json.loads((unpacked / "fastdiff/_build_info.json").read_text())
    assert info["native"] == native
    if native:
        assert info["compiler"]
        assert "-ffp-contract=off" in info["flags"]
        assert info["isas"][0] == "baseline"
    else:
        assert info["reason"] == (
            "the C++ compiler of CXX='no-such-compiler' was not found when fastdiff was installed"
        )


def test_it_imports_where_it_lies(wheel):
    unpacked, native = wheel
    program = (  # an editable install of the checkout must not help out
        "import sys; editable = lambda f: '__editable__' in getattr(f, '__module__', '')\n"
        "sys.meta_path = [f for f in sys.meta_path if not editable(f)]\n"
        "import fastdiff.kernels, importlib.util as u, torch\n"
        "from fastdiff import backends\nimport fastdiff.ops.affine_step\n"
        "print(fastdiff.__file__)\nprint(u.find_spec('fastdiff.kernels.affine_step').origin)\n"
        "print(backends.chosen('affine_step', backends.Key('cpu', torch.float32)))\n"
    )
    run = subprocess.run(
        [sys.executable, "-P", "-c", program],
        env=environment(PYTHONPATH=str(unpacked)),
        capture_output=True,
        text=True,
        cwd=unpacked,
    )
    assert run.returncode == 0, run.stderr
    package, kernel, chosen = run.stdout.split()
    assert Path(package) == unpacked / "fastdiff/__init__.py"
    assert Path(kernel) == unpacked / "fastdiff/kernels/affine_step.py"
    assert chosen == ("cpu" if native else "reference")


def build_ext(folder, **changes):
    """`setup.py build_ext` of the checkout into a folder: (process, the record of the build)."""
    places = ["--build-lib", str(folder / "lib"), "--build-temp", str(folder / "temp")]
    run = subprocess.run(
        [sys.executable, "setup.py", "build_ext", *places],
        env=environment(**{"FASTDIFF_CUDA": "0"} | changes),
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    record = folder / "lib/fastdiff/_build_info.json"
    return run, json.loads(record.read_text()) if record.exists() else None


def stand_in(path, arguments):
    """A compiler that writes down its arguments, one a line, and makes what -o and -MF name."""
    path.parent.mkdir(parents=True)
    path.write_text(
        "#!/bin/sh\n"
        f"printf '%s\\n' \"$@\" >> '{arguments}'\n"
        'for word; do test "$word" = --version && echo a compiler, version 1; done\n'
        'while test $# -gt 1; do case "$1" in -o|-MF) : > "$2";; esac; shift; done; exit 0\n'
    )
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("wrapper", ["", "env "])
def test_cxx_may_have_arguments_and_a_wrapper(wrapper, tmp_path):
    compiler = stand_in(tmp_path / "a folder" / "g++", tmp_path / "arguments")
    run, info = build_ext(tmp_path, CXX=f"{wrapper}'{compiler}' -O2 '-DNAME=$a b'")
    assert run.returncode == 0, run.stderr[-3000:]
    assert info["native"]
    assert info["compiler"] == "a compiler, version 1"
    lines = (tmp_path / "arguments").read_text().splitlines()
    calls = [lines[i : i + 3] for i, line in enumerate(lines) if line == "-O2"]
    assert {tuple(call[:2]) for call in calls} == {("-O2", "-DNAME=$a b")}
    assert lines.count("-c") >= 2  # bindings, and a kernel once per instruction set
    assert lines.count("-shared") == lines.count("--version") == 1
    assert len(calls) == lines.count("-c") + 2


def test_cuda_is_built_for_the_targets_that_are_named(tmp_path):
    compiler = stand_in(tmp_path / "c" / "g++", tmp_path / "arguments")
    nvcc = stand_in(tmp_path / "my cuda" / "bin/nvcc", tmp_path / "nvcc arguments")
    changes = {"CXX": str(compiler), "CUDA_HOME": str(tmp_path / "my cuda")}
    run, info = build_ext(tmp_path, FASTDIFF_CUDA="1", **changes)
    assert run.returncode == 0, run.stderr[-3000:]
    assert info["nvcc"] == str(nvcc)
    assert info["cuda_archs"] == ["80", "86", "89", "90a", "100a", "120a"]
    assert "-DFASTDIFF_WITH_CUDA" in (tmp_path / "arguments").read_text().splitlines()
    words = (tmp_path / "nvcc arguments").read_text().splitlines()
    files = list((ROOT / "csrc").glob("*.cu"))
    for word in (
        "-gencode=arch=compute_80,code=[sm_80,sm_86,sm_89,compute_80]",
        *(f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ("90a", "100a", "120a")),
        "-Xptxas=-v",
    ):
        assert words.count(word) == len(files), word
    assert all(words.count(str(path)) == 1 for path in files)
    assert words.count("-fmad=false") == len(files) + 1
    assert words.count("-shared") == 1, "nvcc links"
    assert words[words.index("-ccbin") + 1] == str(compiler)
    assert all((tmp_path / f"temp/{path.name}.o.log").exists() for path in files)
    run, info = build_ext(tmp_path / "2", FASTDIFF_CUDA_ARCHS="90a", FASTDIFF_CUDA="", **changes)
    assert run.returncode == 0, run.stderr[-3000:]
    assert info["cuda_archs"] == ["90a"]
    words = (tmp_path / "nvcc arguments").read_text().splitlines()[len(words) :]
    codes = {word for word in words if word.startswith("-gencode")}
    assert codes == {"-gencode=arch=compute_90a,code=sm_90a"}


def test_what_nvcc_says_is_shown_where_it_fails(tmp_path):
    nvcc = tmp_path / "bin/nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\necho 'line 7: no such thing'; exit 2\n")
    nvcc.chmod(0o755)
    compiler = stand_in(tmp_path / "c" / "g++", tmp_path / "arguments")
    run, info = build_ext(tmp_path, CXX=str(compiler), CUDA_HOME=str(tmp_path), FASTDIFF_CUDA="1")
    assert run.returncode != 0
    assert info is None
    assert "line 7: no such thing" in run.stdout + run.stderr


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ("1", "FASTDIFF_CUDA=1 asks for CUDA kernels, but nvcc is neither in $CUDA_HOME/bin nor"),
        ("yes", "FASTDIFF_CUDA must be 0, 1 or unset, got 'yes'"),
    ],
)
def test_cuda_asked_for_and_impossible_is_an_error(wish, message, tmp_path):
    run, info = build_ext(tmp_path, FASTDIFF_CUDA=wish, PATH=str(tmp_path), CUDA_HOME="")
    assert run.returncode != 0
    assert info is None
    assert message in run.stdout + run.stderr


def test_a_compiler_that_is_not_there_is_named(tmp_path):
    run, info = build_ext(tmp_path, CXX="no-such-compiler -O2")
    assert run.returncode == 0, run.stderr[-3000:]
    assert not info["native"]
    assert info["reason"].startswith("the C++ compiler of CXX='no-such-compiler -O2' was not found")
    run, info = build_ext(tmp_path / "second", CXX="g++ '-O2")
    assert run.returncode != 0
    assert info is None
    assert 'CXX must be one shell command, got "g++ \'-O2"' in run.stderr + run.stdout


def test_what_is_imported_is_declared():
    """Every library that the package imports is a dependency; what is asked for when it is used
    is SciPy, what an extra brings, and peft, whose networks alone come with it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.match(r"[\w-]+", line)[0] for line in project["dependencies"]}
    found = set()
    for path in [*(ROOT / "fastdiff").rglob("*.py"), *(ROOT / "kernels").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(node.module.split(".")[0])
    libraries = {"pillow" if name == "PIL" else name for name in found - sys.stdlib_module_names}
    extra = {re.match(r"[\w-]+", line)[0] for line in project["optional-dependencies"]["onnx"]}
    assert libraries - {"fastdiff"} - declared == {"scipy", "peft"} | extra


def test_without_scipy_beta_says_what_to_install(tmp_path):
    """`pip install .` brings no SciPy: the library and the command name it, others do without."""
    program = (
        "import sys; sys.modules['scipy'] = sys.modules['scipy.special'] = None\n"
        "import fastdiff; fastdiff.plan('dpmpp_2m', steps=3)\n"
        "try: fastdiff.plan('dpmpp_2m', steps=3, spacing='beta')\n"
        "except ImportError as error: print(error)\n"
        "from fastdiff.cli import main\n"
        "sys.argv = ['fastdiff', 'generate', 'a red circle', '--spacing', 'beta', '--steps', '3']\n"
        "main()\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path
    )
    sentence = "spacing 'beta' needs SciPy: pip install scipy"
    assert run.stdout.strip() == sentence, run.stderr
    assert run.returncode != 0
    assert sentence in run.stderr
    assert "Traceback" not in run.stderr
    assert not list(tmp_path.rglob("*.png"))
