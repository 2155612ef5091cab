"""The trainer's warm parent, whose workers enter native code and stay there while a file is there.

The file is named by BENCH_STUCK. A worker that is stuck holds the interpreter, so that none of its threads
runs and it hears nothing; it writes its process id into a file beside it first.
"""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path

from nightshift_trainer.worker import process, warm


def before_micro_step(step: int) -> None:
    """Enters native code and does not come back, where that is wanted."""
    wanted = os.environ["BENCH_STUCK"]
    if Path(wanted).exists():
        Path(f"{wanted}.pid").write_text(str(os.getpid()))
        ctypes.PyDLL(None).sleep(3600)


if __name__ == "__main__":
    process.main = functools.partial(process.main, before_micro_step=before_micro_step)
    warm.main()
