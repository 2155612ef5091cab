"""A worker with a fault in it: `python -m tests.trainer.faulty_worker CHANNEL PARENT`, the fault in FAULT.

oom:N        out of memory in the first N micro-steps
hang         micro-steps that never end, as on a GPU that does not answer
hang_hard    the same while holding the interpreter, so that no other thread runs either
crash        dies of a segmentation fault
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time

from nightshift_trainer.worker.process import main

_calls = 0


def _fault(step: int) -> None:
    global _calls
    _calls += 1
    fault, _, count = os.environ["FAULT"].partition(":")
    if fault == "oom" and _calls <= int(count):
        import torch

        raise torch.OutOfMemoryError("injected")
    if step < 1:
        return
    if fault == "hang":
        time.sleep(300)
    elif fault == "hang_hard":
        # So that the first step is told before nothing is told any more.
        time.sleep(0.2)
        ctypes.PyDLL(None).sleep(300)
    elif fault == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), _fault)
