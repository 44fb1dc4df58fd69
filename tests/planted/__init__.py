"""Plant bugs in a copy of the repository, one at a time, and see that the tests catch each.

    python -m tests.planted triton|cpu [WORD..]

WORD: only bugs with it in their names.  Minutes, so it is no part of the tests: run it after a
change of the kernels or of their tests.  The CUDA kernels have tests/cuda_on_host/planted.py.

Each kernel has at least a bug of each kind that applies: a wrong mask (or what stands for one), a
missing tail, an element that is not written, a wrong scale.  A bug's name says its KINDS.
tests/test_planted.py sees to that, and that what is to be replaced stands in the kernels.

Every run of tests is a fork of this process, which has imported the large libraries but neither
fastdiff nor tests: those are the copy's.
"""

import importlib
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COPIED = (
    "csrc",
    "fastdiff",
    "kernels",
    "tests",
    "setup.py",
    "pyproject.toml",
    "README.md",
    "LICENSE",
)
LIBRARIES = ("hypothesis", "mpmath", "torch", "torch._dynamo", "torch.testing", "triton.language")
QUICKER = "-O1 -std=c++17 -fPIC"  # a fifth of the time, and the same bits

KINDS = {
    "mask": r"past |behind|masked|fills up|bounded|clamped|0 \* inf|weight 0|run on into|NaN",
    "tail": r"left out|after the last|do(es)? not count|not read",
    "unwritten": "not written|not computed",
    "scale": "scale|gain|eps|half|twice|digit|weight|variance|2 for e|a mean|rounded",
}


class Failures:
    """The first test that ran and failed; an error before it is not one."""

    def __init__(self):
        self.first = None

    def pytest_runtest_logreport(self, report):
        if report.failed and report.when == "call" and self.first is None:
            message = str(report.longrepr.reprcrash.message).partition("\n")[0]
            self.first = f"{report.nodeid.removeprefix('tests/')} - {message[:60]}"


def run_tests(folder, files, words, report):
    """In a fork: pytest; the report says which test failed first."""
    os.dup2(os.open(folder / "output", os.O_CREAT | os.O_TRUNC | os.O_WRONLY), 1)
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    failures = Failures()
    options = ["-q", "-x", "--tb=short", "-p", "no:cacheprovider", "-k", words]
    files = [f"tests/{file}" for file in files.split()]
    status = pytest.main([*options, *files], plugins=[failures])
    assert sys.modules["fastdiff"].__file__.startswith(str(folder)), "not the copy was tested"
    report.send((int(status), failures.first))


class NotBuilt(Exception):
    """The copy does not compile; the message is what the compiler said."""


class Copy:
    """The repository in another folder, where what is planted harms nobody."""

    def __init__(self, folder, natively):
        self.folder, self.natively = folder, natively
        for name in COPIED:
            if (ROOT / name).is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "_C*.so" if natively else "")
                shutil.copytree(ROOT / name, folder / name, ignore=ignored)
            else:
                shutil.copy2(ROOT / name, folder / name)
        setup = (folder / "setup.py").read_text()
        assert setup.count("-O3 -std=c++17 -fPIC") == 1
        (folder / "setup.py").write_text(setup.replace("-O3 -std=c++17 -fPIC", QUICKER))
        self.build()

    def build(self):
        if self.natively:
            command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
            environment = os.environ | {"FASTDIFF_CUDA": "0"}
            done = subprocess.run(
                command, cwd=self.folder, env=environment, capture_output=True, text=True
            )
            if done.returncode:
                errors = [line for line in done.stdout.splitlines() if "error" in line]
                raise NotBuilt("\n".join(errors) or done.stderr)

    def failure(self, tests):
        """The first test that fails and how, or None; tests: (files, -k)."""
        fork = multiprocessing.get_context("fork")
        receiver, report = fork.Pipe(duplex=False)
        child = fork.Process(target=run_tests, args=(self.folder, *tests, report))
        child.start()
        report.close()
        try:
            status, first = receiver.recv()
        except EOFError:
            status, first = -1, None
        child.join()
        if child.exitcode < 0:
            return f"signal {-child.exitcode}"
        assert status == (1 if first else 0), (self.folder / "output").read_text()
        return first

    def failure_with(self, tests, file, there, planted):
        path = self.folder / ("csrc" if self.natively else "kernels") / file
        text = path.read_text()
        path.write_text(text.replace(there, planted))
        try:
            self.build()
            return self.failure(tests)
        finally:
            path.write_text(text)


def check(bugs, natively):
    """Every text is there once, in the kernels as they are now."""
    for name, (_, file, there, planted) in bugs.items():
        text = (ROOT / ("csrc" if natively else "kernels") / file).read_text()
        assert text.count(there) == 1, f"{name}: {file} has this {text.count(there)} times"
        assert there != planted, name


def run(bugs, folder, natively):
    """Are all caught?  Each selection of tests must pass as long as nothing is planted."""
    check(bugs, natively)
    if not natively:
        os.environ["TRITON_INTERPRET"] = "1"
    for name in LIBRARIES:
        importlib.import_module(name)
    copy, sound, missed = Copy(folder, natively), set(), 0
    for name, bug in bugs.items():
        failure = None if bug[0] in sound else copy.failure(bug[0])
        assert failure is None, f"with no bug planted: {failure}"
        sound.add(bug[0])
        try:
            failure = copy.failure_with(*bug) or "NOT CAUGHT"
        except NotBuilt as error:  # what is planted is at fault, not the tests
            failure = f"NOT BUILT: {error}"
        missed += failure.startswith("NOT ")
        print(f"{name}: {failure}", flush=True)
    print(f"{len(bugs) - missed} of {len(bugs)} caught")
    return missed == 0
