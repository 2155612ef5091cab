"""The warm parent: has imported everything that a training needs and forks workers from itself.

Imports take most of a worker's start. This process has them done, holds no GPU (a process that has touched
CUDA cannot be forked) and runs no Python thread besides its own. It lives only while a job is open, since
it holds memory.

It reads frames {"command": "start"} with the worker's channel and log as attached descriptors, and answers
with {"kind": "ready"}, {"kind": "started", "pid"} and {"kind": "exited", "pid", "status"}.
"""

from __future__ import annotations

import gc
import importlib
import os
import select
import signal
import socket
import sys

from nightshift_trainer import frames
from nightshift_trainer.worker.deadman import die_with_parent

# What a training on a CPU ends up importing, the lazily loaded parts included.
PRELOADED = (
    "torch",
    "torch._dynamo",
    "transformers",
    "transformers.models.qwen3.modeling_qwen3",
    "transformers.models.llama.modeling_llama",
    "transformers.integrations.bitsandbytes",
    "transformers.quantizers.quantizer_bnb_4bit",
    "bitsandbytes",
    "peft",
    "peft.tuners.lora.bnb",
    "datasets",
    "accelerate",
    "trl",
    "trl.trainer.sft_trainer",
    "nightshift_trainer.worker.training",
    "nightshift_trainer.worker.process",
    "nightshift_trainer.worker.backends.trl_peft",
)


def main() -> None:
    """Serves until the other end closes."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    die_with_parent(int(sys.argv[2]))
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in PRELOADED:
        importlib.import_module(name)
    # What is there now is never freed; keeping the collector off it keeps its pages shared with the children.
    gc.collect()
    gc.freeze()
    waker, wakened = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wakened)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    channel.sendall(frames.encode({"kind": "ready"}))
    while True:
        readable, _, _ = select.select([channel.fileno(), waker], [], [])
        if waker in readable:
            os.read(waker, 4096)
            _reap(channel)
        if channel.fileno() in readable:
            data, descriptors, _, _ = socket.recv_fds(channel, 65536, 2)
            if not data:
                os._exit(0)
            _fork(channel, descriptors)


def _fork(channel: socket.socket, descriptors: list[int]) -> None:
    worker_channel, log = descriptors
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            channel.close()
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.close(log)
            from nightshift_trainer.worker import process

            process.main(worker_channel, parent)
        finally:
            os._exit(70)
    os.close(worker_channel)
    os.close(log)
    channel.sendall(frames.encode({"kind": "started", "pid": pid}))


def _reap(channel: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        channel.sendall(
            frames.encode({"kind": "exited", "pid": pid, "status": os.waitstatus_to_exitcode(status)})
        )


if __name__ == "__main__":
    main()
