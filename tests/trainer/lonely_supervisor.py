"""A supervisor in a process of its own.

`python -m tests.trainer.lonely_supervisor FOLDER JOB`, for tests that stop or kill it. Prints a line once
its worker has taken a step.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from nightshift_trainer.worker.order import Order
from tests.trainer.training_support import Bench

if __name__ == "__main__":
    bench = Bench(Path(sys.argv[1]))
    bench.start(Order.from_dict(json.loads(sys.argv[2])))
    bench.follow(lambda message: message["kind"] == "step")
    print("stepping", flush=True)
    time.sleep(300)
