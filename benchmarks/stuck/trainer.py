"""The trainer as a service, with an NVML that tells of its worker and a worker that can get stuck.

python -m benchmarks.stuck.trainer

BENCH_NVML names a library built from tests/monitor/fake_nvml.c; the warm parent is benchmarks.stuck.warm.
"""

from __future__ import annotations

import ctypes
import os

from nightshift_kit.rpc.serve import run
from nightshift_trainer import launcher
from nightshift_trainer.__main__ import wire

if __name__ == "__main__":
    # The binding asks for it by its soname later, and the linker gives what is loaded already.
    ctypes.CDLL(os.environ["BENCH_NVML"], ctypes.RTLD_GLOBAL)
    launcher.WARM_MODULE = "benchmarks.stuck.warm"
    raise SystemExit(run("trainer", wire))
