"""python -m benchmarks.campaign.launch_once [--planted] [OP ..]: every kernel once, small and odd.

What compute-sanitizer watches (sanitizer.py).  --planted writes one element beyond the end of a
tensor, in Triton: a tool that does not see that sees nothing.
"""

from __future__ import annotations

import argparse
import sys

import torch

import fastdiff
from benchmarks.campaign.checks import op_names
from fastdiff import backends
from tests.on_device import CHECKS
from tests.on_device.cases import DTYPES


def launch(op: str) -> list[str]:
    """Launch the op's kernels, by each backend that can; "backend dtype" of each."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kernels = [b for b in backends.PREFERENCE if b != "reference"]
    done = []
    for name, dtype in DTYPES.items():
        for backend in kernels if op in CHECKS else []:
            if backends.why_not(op, backend, backends.Key(device, dtype)) is None:
                with fastdiff.use_backend(backend):
                    CHECKS[op]["launch"](device, dtype)
                done.append(f"{backend} {name}")
    if device == "cuda":
        torch.cuda.synchronize()
    return done


def plant() -> None:
    """One element too many."""
    import triton
    import triton.language as tl

    @triton.jit
    def beyond(x, n):  # type: ignore[no-untyped-def]
        tl.store(x + n, 1.0)

    size = 1 << 20  # an allocation of its own, which ends where the tensor ends
    beyond[(1,)](torch.zeros(size, device="cuda"), size)
    torch.cuda.synchronize()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.campaign.launch_once")
    parser.add_argument("--planted", action="store_true", help="write beyond the end of a tensor")
    parser.add_argument("ops", nargs="*", metavar="OP", help="default: all")
    options = parser.parse_args(argv)
    if options.planted:
        plant()
        return 0
    for op in options.ops or op_names():
        done = launch(op)
        print(f"{op}: {', '.join(done)}" if done else f"{op}: launched nothing, no kernel can run")
    return 0


if __name__ == "__main__":
    sys.exit(main())
