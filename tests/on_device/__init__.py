"""What every op must do on a device, whichever backend runs it: CHECKS[op][name](device, dtype).

The caller has chosen the backend (fastdiff.use_backend).  tests/test_on_device.py runs all of it on
a GPU; benchmarks/campaign counts what passes, and launches CHECKS[op]["launch"] under the
sanitizer: every kernel once, at an odd size.

Each op has "launch", "replayed" (a CUDA graph gives the same bits), "written" (nothing beside the
results, no hole), "edges" (no sample, scattered operands), and its numbers or its bits.

A file in this folder has such checks of one op or several: ON_DEVICE = {op: {name: check}}.
"""

from importlib import import_module
from pathlib import Path

CHECKS = {}
for _path in sorted(Path(__file__).parent.glob("[!_]*.py")):
    CHECKS |= getattr(import_module(f"{__name__}.{_path.stem}"), "ON_DEVICE", {})
