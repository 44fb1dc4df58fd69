"""Run diffusers' tests/schedulers from a checkout, with our classes in place of diffusers'.

    python -m tests.upstream SUITE [FILE ...] [-- arguments for pytest]

SUITE is a checkout of huggingface/diffusers, its tests/schedulers, or a folder with these parts:

    git archive HEAD tests/__init__.py tests/conftest.py tests/testing_utils.py \\
        tests/schedulers tests/others | tar x -C SUITE

FILE ... are names in tests/schedulers; without any, the files of our classes.  Exit status:
pytest's, or 1 if one of the classes that were tested never took the fused path.

The installed diffusers stays as it is: classes.py, a plugin, replaces names in the collected test
modules.  pytest runs in a process of its own, in SUITE, because both projects call their tests
`tests`; the checkout's `src`, which its conftest puts on the path, is shadowed by the installed
diffusers, loaded first.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

NEEDED = ("tests/__init__.py", "tests/conftest.py", "tests/testing_utils.py", "tests/others")
FILES = {
    "DPMSolverMultistepScheduler": "test_scheduler_dpm_multi.py",
    "DDIMScheduler": "test_scheduler_ddim.py",
    "EulerDiscreteScheduler": "test_scheduler_euler.py",
    "EulerAncestralDiscreteScheduler": "test_scheduler_euler_ancestral.py",
    "DDPMScheduler": "test_scheduler_ddpm.py",
    "UniPCMultistepScheduler": "test_scheduler_unipc.py",
    "DEISMultistepScheduler": "test_scheduler_deis.py",
    "LCMScheduler": "test_scheduler_lcm.py",
    "TCDScheduler": "test_scheduler_tcd.py",
    "HeunDiscreteScheduler": "test_scheduler_heun.py",
    "KDPM2DiscreteScheduler": "test_scheduler_kdpm2_discrete.py",
    "KDPM2AncestralDiscreteScheduler": "test_scheduler_kdpm2_ancestral.py",
    "LMSDiscreteScheduler": "test_scheduler_lms.py",
    "IPNDMScheduler": "test_scheduler_ipndm.py",
    "DPMSolverSinglestepScheduler": "test_scheduler_dpm_single.py",
    "EDMEulerScheduler": "test_scheduler_edm_euler.py",
    "EDMDPMSolverMultistepScheduler": "test_scheduler_edm_dpmsolver_multistep.py",
    "PNDMScheduler": "test_scheduler_pndm.py",
    "SASolverScheduler": "test_scheduler_sasolver.py",
}


def command(suite: Path, files: list[str], rest: list[str]) -> tuple[list[str], dict[str, str]]:
    """The pytest command and its environment."""
    args = [sys.executable, "-m", "pytest", "-q", "-p", "classes", "-p", "no:cacheprovider"]
    args += ["--rootdir", str(suite), "-c", os.devnull, "-W", "ignore", "--tb=short"]
    if importlib.util.find_spec("torchsde") is None:
        args += ["-k", "not test_compatibles"]
    args += [str(Path("tests/schedulers") / name) for name in files or FILES.values()]
    found = importlib.util.find_spec("fastdiff")
    if found is None or found.origin is None:
        raise SystemExit("fastdiff cannot be imported; install it, or run from the checkout's root")
    here, package = Path(__file__).parent, Path(found.origin).parents[1]
    path = [str(suite), str(here), str(package), os.environ.get("PYTHONPATH", "")]
    return args + rest, os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.upstream", description="diffusers' scheduler tests on our classes"
    )
    parser.add_argument("suite", type=Path, help="a checkout of huggingface/diffusers")
    parser.add_argument(
        "files", nargs="*", help="files in tests/schedulers (default: our classes')"
    )
    argv = sys.argv[1:] if argv is None else argv
    cut = argv.index("--") if "--" in argv else len(argv)
    options, rest = parser.parse_args(argv[:cut]), argv[cut + 1 :]
    given = options.suite.resolve()
    tops = (given, *given.parents[:2])  # tests/schedulers itself may be named
    suite = next((top for top in tops if (top / "tests" / "schedulers").is_dir()), given)
    missing = [name for name in (*NEEDED, "tests/schedulers") if not (suite / name).exists()]
    if missing:
        parser.error(
            f"suite must be a checkout of huggingface/diffusers; {suite} has no "
            f"{', '.join(missing)}. See the head of tests/upstream/__main__.py"
        )
    args, environment = command(suite, options.files, rest)
    if "not test_compatibles" in args:
        print("test_compatibles left out: it needs torchsde, with any class (pip install torchsde)")
    return subprocess.run(args, cwd=suite, env=environment, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
