"""python -m nightshift_trainer.worker CHANNEL PARENT: a worker started from nothing, as CUDA needs it."""

import sys

from nightshift_trainer.worker.process import main

main(int(sys.argv[1]), int(sys.argv[2]))
