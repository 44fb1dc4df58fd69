"""Build the native extension fastdiff._C: one binary for every torch, in seconds.

csrc includes no torch header, so pip's isolated build environment is enough.  `build_ext` writes
build.ninja and runs it.  Every file in csrc that holds a CPU kernel (all but *bindings.cpp) is
compiled once per instruction set into a namespace of its own; csrc/isa.h chooses among them when
the extension is loaded.  Without a C++ compiler the package installs as pure Python, and
fastdiff/_build_info.json, which `fastdiff info` prints, says so.  What ptxas says of each CUDA
kernel stays beside its object file, in <name>.cu.o.log: tests/test_nvcc.py judges it.

Environment: CXX (compiler; a wrapper and arguments may stand with it: "ccache g++ -m64"),
FASTDIFF_CUDA = 0 (never), 1 (must) or unset (when nvcc is there),
FASTDIFF_CUDA_ARCHS (default 80;86;89;90a;100a;120a), CUDA_HOME.
"""

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import SetupError

ROOT = Path(__file__).parent.resolve()
CUDA_ARCHS = "80;86;89;90a;100a;120a"
# Products are fused into sums only where the source says so.
NVCC_FLAGS = "-O3 -std=c++17 -fmad=false"
ISAS = {"baseline": ["-march=x86-64-v2"], "v3": ["-march=x86-64-v3"], "v4": ["-march=x86-64-v4"]}
if platform.machine() not in ("x86_64", "AMD64"):
    ISAS = {"baseline": []}
# The same bits on every instruction set: no fused multiply-add, no licence to reorder.  Not caring
# for traps (which nobody catches) and errno changes no value, but lets selections vectorise.
FLAGS = "-O3 -std=c++17 -fPIC -fvisibility=hidden -Wall -Wextra -ffp-contract=off"
FLAGS += " -fno-trapping-math -fno-math-errno"
OPENMP = [] if sys.platform == "darwin" else ["-fopenmp"]


def find_compiler() -> list[str] | None:
    """The C++ compiler with its arguments: $CXX if set, else the first of g++, clang++, c++."""
    value = os.environ.get("CXX", "")
    try:
        words = shlex.split(value)
    except ValueError as error:
        raise SetupError(f"CXX must be one shell command, got {value!r}: {error}") from None
    for name, *arguments in [words] if words else [["g++"], ["clang++"], ["c++"]]:
        if path := shutil.which(name):
            return [path, *arguments]
    return None


def find_nvcc() -> str | None:
    """nvcc if CUDA kernels are to be built; SetupError if they are asked for and cannot be."""
    wish = os.environ.get("FASTDIFF_CUDA", "")
    if wish not in ("", "0", "1"):
        raise SetupError(f"FASTDIFF_CUDA must be 0, 1 or unset, got {wish!r}")
    homes = [Path(os.environ["CUDA_HOME"]) / "bin"] if os.environ.get("CUDA_HOME") else []
    path = os.pathsep.join([*map(str, homes), os.environ.get("PATH", "")])
    nvcc = shutil.which("nvcc", path=path)
    if wish == "1" and nvcc is None:
        raise SetupError(
            "FASTDIFF_CUDA=1 asks for CUDA kernels, but nvcc is neither in $CUDA_HOME/bin nor on "
            "the PATH. Install the CUDA toolkit, or unset FASTDIFF_CUDA to build without CUDA"
        )
    return None if wish == "0" else nvcc


def why_no_cuda() -> str:
    """Why find_nvcc found none, for fastdiff/_build_info.json."""
    if os.environ.get("FASTDIFF_CUDA") == "0":
        return "FASTDIFF_CUDA=0 was set when fastdiff was installed"
    return "nvcc was neither in $CUDA_HOME/bin nor on the PATH when fastdiff was installed"


def cuda_archs() -> list[str]:
    return os.environ.get("FASTDIFF_CUDA_ARCHS", CUDA_ARCHS).split(";")


def gencodes(archs: list[str]) -> list[str]:
    """nvcc's options for these targets.

    80, 86 and 89 are compiled once, as what the oldest of them can do, and assembled for each (the
    kernels use nothing newer); that is also kept for devices that are not named.  90a and the like
    stand for themselves alone.
    """
    codes = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs if not a.isdigit()]
    if plain := sorted((a for a in archs if a.isdigit()), key=int):
        names = ",".join([*(f"sm_{a}" for a in plain), f"compute_{plain[0]}"])
        codes.insert(0, f"-gencode=arch=compute_{plain[0]},code=[{names}]")
    return codes


def write_ninja(build: Path, target: Path, compiler: list[str], nvcc: str | None) -> None:
    """Write build.ninja: one object per (kernel file, instruction set), one link."""
    import pybind11
    from ninja import ninja_syntax

    include = [f"-I{sysconfig.get_path('include')}", f"-I{pybind11.get_include()}"]
    objects: list[str] = []
    cxx = ninja_syntax.escape(shlex.join(compiler))
    with (build / "build.ninja").open("w") as file:
        ninja = ninja_syntax.Writer(file)
        ninja.variable("flags", FLAGS.split() + OPENMP)
        ninja.rule(
            "cxx",
            f"{cxx} $flags $extra -MMD -MF $out.d -c $in -o $out",
            "CXX $out",
            "$out.d",
            deps="gcc",
        )
        for source in sorted((ROOT / "csrc").glob("*.cpp")):
            if source.stem == "cuda_bindings" and not nvcc:
                continue
            if source.stem.endswith("bindings"):
                extra = {"baseline": [*ISAS["baseline"], *include]}
                extra["baseline"] += [f"-DFASTDIFF_HAS_{isa.upper()}" for isa in ISAS]
                extra["baseline"] += ["-DFASTDIFF_WITH_CUDA"] if nvcc else []
            else:
                extra = {isa: [*march, f"-DFASTDIFF_ISA={isa}"] for isa, march in ISAS.items()}
            for isa, options in extra.items():
                objects.append(f"{source.stem}.{isa}.o")
                ninja.build(objects[-1], "cxx", str(source), variables={"extra": options})
        link = f"{cxx} -shared {' '.join(OPENMP)} $in -o $out"
        if sys.platform == "darwin":
            link += " -undefined dynamic_lookup"
        if nvcc:
            *_, host = filter(shutil.which, compiler)  # of "ccache g++ -m64", g++
            codes = shlex.join(gencodes(cuda_archs()))
            base = ninja_syntax.escape(shlex.join([nvcc, "-ccbin", host, *NVCC_FLAGS.split()]))
            ninja.rule(
                "nvcc",
                f"{base} --threads 2 -Xptxas=-v -Xcompiler=-fPIC,-fvisibility=hidden {codes} "
                "-MD -MF $out.d -c $in -o $out > $out.log 2>&1 || { cat $out.log; false; }",
                "NVCC $out",
                "$out.d",
                deps="gcc",
            )
            for source in sorted((ROOT / "csrc").glob("*.cu")):
                objects.append(f"{source.stem}.cu.o")
                ninja.build(objects[-1], "nvcc", str(source))
            options = ",".join(OPENMP)  # nvcc knows where its libraries are, so it links
            link = f"{base} -shared -Xcompiler={options} $in -o $out"
        ninja.rule("link", link, "LINK $out")
        ninja.build(str(target), "link", objects)
        ninja.default(str(target))


def obstacle() -> str | None:
    """Why no native code can be built here; None if it can."""
    if find_compiler() is None:
        wish = os.environ.get("CXX", "").strip()
        which = f"the C++ compiler of CXX={wish!r} was not" if wish else "no C++ compiler was"
        return f"{which} found when fastdiff was installed"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "Python.h (package python3-dev) was not found when fastdiff was installed"
    return None


class NinjaBuild(build_ext):
    """Build fastdiff._C with ninja, or record in plain words why there is none."""

    def run(self) -> None:
        package = ROOT / "fastdiff" if self.inplace else Path(self.build_lib, "fastdiff").resolve()
        target = package / Path(self.get_ext_filename("_C")).name
        build = Path(self.build_temp).resolve()
        if self.editable_mode:  # setuptools' is deleted afterwards: the next build would start anew
            name = f"temp.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
            build = ROOT / "build" / name  # that of `setup.py build_ext`
        build.mkdir(parents=True, exist_ok=True)
        package.mkdir(parents=True, exist_ok=True)
        nvcc = find_nvcc()
        info: dict[str, object] = {"native": False, "reason": obstacle()}
        if info["reason"] and os.environ.get("FASTDIFF_CUDA") == "1":
            raise SetupError(f"FASTDIFF_CUDA=1 asks for CUDA kernels, but {info['reason']}")
        if info["reason"]:
            self.warn(f"{info['reason']}: fastdiff will run on PyTorch's own operators, slower")
        else:
            from ninja import BIN_DIR

            cxx = find_compiler()
            write_ninja(build, target, cxx, nvcc)
            subprocess.run([str(Path(BIN_DIR) / "ninja"), "-C", str(build)], check=True)
            version = subprocess.check_output([*cxx, "--version"], text=True)
            info |= {"native": True, "compiler": version.splitlines()[0], "flags": FLAGS}
            info |= {"isas": list(ISAS), "nvcc": nvcc}
            info |= {"cuda_archs": cuda_archs()} if nvcc else {"why_no_cuda": why_no_cuda()}
        (package / "_build_info.json").write_text(json.dumps(info, indent=2) + "\n")

    def get_outputs(self) -> list[str]:
        return [path for path in super().get_outputs() if Path(path).exists()]

    def get_output_mapping(self) -> dict[str, str]:
        return {} if obstacle() else super().get_output_mapping()


setup(
    packages=[*find_packages(include=["fastdiff", "fastdiff.*"]), "fastdiff.kernels"],
    package_dir={"fastdiff.kernels": "kernels"},
    package_data={"fastdiff": ["py.typed", "ops/*.json", "shapes/weights/**/*"]},
    ext_modules=[Extension("fastdiff._C", ["csrc/bindings.cpp"])],
    cmdclass={"build_ext": NinjaBuild},
)
