"""Rules of the layout: a newcomer finds everything about an op by its name, arrows between folders
point one way, files stay readable, importing costs nothing, and the public names do not move.
"""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import fastdiff

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fastdiff"
PARTS = ("_reference", "_checks")  # an op's contract may be spread over <op>.py and these
OP_FILES = {path.stem for path in (PACKAGE / "ops").glob("[!_]*.py")}
OPS = sorted(stem for stem in OP_FILES if not stem.endswith(PARTS))
CODE = [
    path
    for folder in (
        *("fastdiff", "kernels", "csrc", "tests", "benchmarks", "examples", "comfyui_fastdiff"),
    )
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in (".py", ".h", ".cpp", ".cu", ".cuh") and "__pycache__" not in path.parts
]

# What a folder or module of fastdiff may import from fastdiff, besides itself.
MATHEMATICS = {
    *("schedules", "predictions", "solvers", "table", "registry"),
    *("plan", "plan_file", "plan_fields"),
}
KERNELS = {"ops", "backends", "kernels", "_C"}
ARROWS = {
    "backends": {"_C"},
    "ops": {"backends", "_C"},
    "schedules": set(),
    "predictions": set(),
    "solvers": {"schedules", "predictions"},
    "table": {"solvers", "predictions", "schedules"},
    "registry": {"solvers", "schedules", "predictions"},
    "plan": MATHEMATICS,
    "plan_file": MATHEMATICS,
    "plan_batch": MATHEMATICS,
    "plan_fields": {"solvers", "plan"},  # plan for its type alone
    "rings": MATHEMATICS | KERNELS,
    "sample_seeds": KERNELS,
    "sampling": MATHEMATICS | KERNELS | {"rings", "sample_seeds"},
    "k_diffusion": MATHEMATICS | KERNELS | {"sampling", "rings"},
    "chart": set(),
    "record_file": {"__version__"},
    "accuracy": MATHEMATICS | KERNELS | {"sampling", "record_file", "chart"},
    "schedulers": MATHEMATICS | KERNELS | {"sample_seeds"},
    "accelerate": MATHEMATICS | KERNELS | {"schedulers"},
    "recipes": set(),
    "few_step": {"recipes", "schedulers"},
    "doctor": {"recipes"},
    "engine": MATHEMATICS
    | KERNELS
    | {"schedulers", "sampling", "accelerate", "sample_seeds", "plan_batch", "__version__"},
    "training": {"schedules", "predictions"},
    "shapes": MATHEMATICS | {"sampling", "schedulers", "accelerate", "training"},
    "tune": MATHEMATICS | KERNELS | {"sampling", "accuracy", "shapes", "record_file"},
    "quality": MATHEMATICS
    | {"sampling", "schedulers", "accuracy", "shapes", "tune"}
    | {"record_file", "chart"},
}
NO_TORCH = MATHEMATICS | {"recipes", "doctor"}


def imports(path, top_level_only=False):
    """Names of all modules that a file imports; `from fastdiff import x` counts as fastdiff.x."""
    tree = ast.parse(path.read_text())
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            if node.module == "fastdiff":
                yield from (f"fastdiff.{alias.name}" for alias in node.names)
            else:
                yield node.module


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("place", ["tests/test_{}.py", "benchmarks/bench_{}.py"])
def test_every_op_is_tested_and_benchmarked(op, place):
    assert (ROOT / place.format(op)).exists()


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_a_kernel_of_its_name(op):
    assert (ROOT / f"csrc/{op}.cpp").exists() or (ROOT / f"kernels/{op}.py").exists()


def test_every_kernel_implements_an_op():
    kernels = {path.stem for path in (ROOT / "kernels").glob("[!_]*.py")}
    native = {path.stem for path in (ROOT / "csrc").iterdir()} - {"isa", "cuda"}
    native = {stem for stem in native if not stem.endswith("bindings")}
    assert kernels | native <= set(OPS)
    assert {stem.removesuffix("_reference").removesuffix("_checks") for stem in OP_FILES} == set(
        OPS
    )


def test_kernels_is_not_a_top_level_package():
    """kernels/__init__.py would shadow the package `kernels` that diffusers imports."""
    assert not (ROOT / "kernels/__init__.py").exists()
    assert not [path for path in (ROOT / "kernels").iterdir() if path.is_dir() and
                path.name != "__pycache__"]  # fmt: skip


def test_csrc_includes_no_torch():
    for path in (ROOT / "csrc").iterdir():
        includes = [line for line in path.read_text().splitlines() if line.startswith("#include")]
        assert not [line for line in includes if "torch" in line or "ATen" in line or "c10" in line]


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_readable(path):
    assert len(path.read_text().splitlines()) <= 400
    assert path.stem not in ("utils", "common", "helpers", "types"), "a name that hides"


@pytest.mark.parametrize("unit", sorted(ARROWS))
def test_arrows_point_one_way(unit):
    home = PACKAGE / unit
    files = sorted(home.rglob("*.py")) if home.is_dir() else [home.with_suffix(".py")]
    for path in files:
        for name in imports(path):
            package, _, rest = name.partition(".")
            assert package not in ("tests", "benchmarks", "setup"), f"{path} imports {name}"
            if package == "fastdiff" and rest:
                target = rest.split(".")[0]
                assert target in ARROWS[unit] | {unit}, f"{path} imports {name}"


def test_every_part_of_the_package_has_its_arrows():
    parts = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    outside = {"__init__", "__pycache__", "cli", "kernels"}  # cli stands above all
    assert {part for part in parts if not part.startswith("_C")} - outside <= set(ARROWS)


@pytest.mark.parametrize("unit", sorted(NO_TORCH))
def test_the_mathematics_imports_no_torch(unit):
    program = f"import sys, fastdiff.{unit}; print([m for m in ('torch', 'diffusers', 'scipy') "
    program += "if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout.strip() == "[]", run.stderr


def test_importing_costs_nothing():
    """fastdiff, its names by dir(), and the command's entry point load no library."""
    program = "import sys, fastdiff, fastdiff.cli, fastdiff.kernels; dir(fastdiff); "
    program += "print(sorted({m.split('.')[0] for m in sys.modules}))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    loaded = set(ast.literal_eval(run.stdout))
    heavy = {"torch", "numpy", "scipy", "triton", "diffusers", "transformers", "onnx", "tensorrt"}
    assert not loaded & (heavy | {"typer", "rich", "PIL", "setuptools"})


def test_an_op_imports_no_triton():
    program = "import sys\nfrom importlib import import_module\nfor op in sys.argv[1:]:\n"
    program += "    import_module(f'fastdiff.ops.{op}'); print(op, 'triton' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", program, *OPS], capture_output=True, text=True)
    assert run.stdout.splitlines() == [f"{op} False" for op in OPS], run.stderr


@pytest.mark.parametrize("names", ["plan", "accelerate", "few_step", "plan accelerate few_step"])
def test_a_function_and_a_module_share_a_name(names):
    """fastdiff.plan is the function, whoever imported the module fastdiff.plan, and when: before
    the function is used, for each in a process of its own, and after, for all in one."""
    program = "import fastdiff, sys, types\n"
    used = "assert type(fastdiff.{0}) is types.FunctionType\n"
    checks = "import fastdiff.{0}\nfrom fastdiff.{0} import {0} as function\n" + used
    checks += "assert fastdiff.{0} is function\nfrom fastdiff import {0} as third\n"
    checks += "assert third is function and sys.modules['fastdiff.{0}'].{0} is function\n"
    names = names.split()
    for part in (used, checks) if len(names) > 1 else (checks,):
        program += "".join(part.format(name) for name in names)
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(AttributeError, match=r"no attribute 'sampel'.*'sample'"):
        fastdiff.sampel  # noqa: B018
    assert not hasattr(fastdiff, "setup")


PROMISE = {
    "DDIMScheduler": None,  # constructors are diffusers'
    "DDPMScheduler": None,
    "DEISMultistepScheduler": None,
    "DPMSolverMultistepScheduler": None,
    "DPMSolverSinglestepScheduler": None,
    "EDMDPMSolverMultistepScheduler": None,
    "EDMEulerScheduler": None,
    "EulerAncestralDiscreteScheduler": None,
    "EulerDiscreteScheduler": None,
    "FlowMatchEulerDiscreteScheduler": None,
    "FlowMatchHeunDiscreteScheduler": None,
    "FlowMatchLCMScheduler": None,
    "HeunDiscreteScheduler": None,
    "IPNDMScheduler": None,
    "KDPM2AncestralDiscreteScheduler": None,
    "KDPM2DiscreteScheduler": None,
    "LCMScheduler": None,
    "LMSDiscreteScheduler": None,
    "PNDMScheduler": None,
    "SASolverScheduler": None,
    "NoiseSchedule": None,  # made by its class methods
    "Plan": None,  # made by plan and Plan.load
    "SCMScheduler": None,
    "TCDScheduler": None,
    "TableScheduler": "table=None, use_flow_sigmas=None",
    "UniPCMultistepScheduler": None,
    "accelerate": "obj, *, strict=False, guidance='exact'",
    "batch": "plans",
    "export": "pipe_or_unet, out, *, target='onnxruntime', dtype=None, batch=None, height=None, "
    "width=None, tokens=None, controlnet=False, vae=False, text_encoder=False, step=False, "
    "samplers=None, guidance=None, verify='corners', plans=True, replace=False, tell=None, **build",
    "few_step": "pipe, recipe, steps, *, guidance=None, eta=None, checkpoint_steps=None",
    "k_diffusion": None,  # a module
    "load_engine": "bundle, device='cpu', *, trust_engine=False, providers=None, threads=None, "
    "reuse_outputs=False",
    "plan": "solver, *, steps, noise='scaled_linear', spacing='karras', prediction='epsilon', "
    "guidance=None, begin=0, numerics='exact', final_sigma='zero', **solver_options",
    "report": "obj",
    "restore": "obj",
    "sample": "denoise, noise, plan, *, generator=None, seeds=None, shape=None, dtype=None, "
    "start=None, callback=None",
    "sampler": "name, *, spacing=None, **config",
    "training": None,  # a module
    "use_backend": "backend",
}


def test_the_public_names_are_these():
    assert sorted(fastdiff.__all__) == sorted(PROMISE)
    assert set(dir(fastdiff)) == {*PROMISE, "SchedulerMixin", "__version__"}
    assert {*fastdiff._HOME, *fastdiff._MODULES} == {*PROMISE, "SchedulerMixin"}


@pytest.mark.parametrize("name", sorted(PROMISE))
def test_the_signatures_are_these(name):
    value = getattr(fastdiff, name)
    assert value.__doc__, f"{name} has no docstring"
    if PROMISE[name] is not None:
        signature = inspect.signature(value)
        bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
        text = str(signature.replace(parameters=bare, return_annotation=signature.empty))
        assert text == f"({PROMISE[name]})"


def test_scheduler_classes_live_in_fastdiff():
    from diffusers import SchedulerMixin

    assert fastdiff.SchedulerMixin is SchedulerMixin
    for name in PROMISE:
        if name.endswith("Scheduler"):
            assert getattr(fastdiff, name).__module__ == "fastdiff"
