"""What a worker tells reaches the kernel in order; who waits for it waits neither for company nor in vain."""

from __future__ import annotations

import socket
from typing import Any

from nightshift_trainer.frames import FrameDecoder
from nightshift_trainer.worker.reporter import Reporter


def told(channel: socket.socket) -> list[Any]:
    channel.setblocking(False)
    decoder = FrameDecoder()
    found: list[Any] = []
    while True:
        try:
            data = channel.recv(65536)
        except BlockingIOError:
            return found
        for frame in decoder.feed(data):
            found.extend(frame["messages"])


def test_what_was_waited_for_is_in_the_kernels_hands() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        reporter = Reporter(theirs)
        for step in range(200):
            reporter.put({"kind": "step", "step": step})
            if step % 7 == 0:
                assert reporter.wait_sent(10)
                assert told(ours)[-1]["step"] == step
        assert reporter.close(10)


def test_a_reader_who_does_not_read_is_not_waited_for() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        reporter = Reporter(theirs)
        reporter.put({"kind": "event", "message": "x" * 4_000_000})
        assert not reporter.wait_sent(0.05)
        ours.settimeout(10)
        decoder = FrameDecoder()
        frames: list[Any] = []
        while not frames:
            frames = list(decoder.feed(ours.recv(1 << 20)))
        assert reporter.wait_sent(10)
        assert reporter.close(10)
