"""Points keep their numbers across restarts, torn writes and dropped segments."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from nightshift_trainer.errors import SeqGone
from nightshift_trainer.progress import Follower, PointLog


def steps(first: int, count: int) -> list[dict[str, object]]:
    return [{"time_s": 1.5, "kind": "step", "step": number} for number in range(first, first + count)]


def test_points_are_numbered_and_read_back(tmp_path: Path) -> None:
    log = PointLog(tmp_path)
    log.append(steps(1, 3))
    log.append(steps(4, 2))
    assert [point.seq for point in log.read(0, 99)] == [1, 2, 3, 4, 5]
    assert [point.step for point in log.read(2, 2)] == [3, 4]
    assert log.read(5, 9) == []
    log.close()
    again = PointLog(tmp_path)
    assert again.last_seq == 5
    assert [point.step for point in again.read(3, 9)] == [4, 5]
    again.append(steps(6, 1))
    assert [point.seq for point in again.read(3, 9)] == [4, 5, 6]
    again.close()


def test_a_torn_last_line_is_cut_off(tmp_path: Path) -> None:
    log = PointLog(tmp_path)
    log.append(steps(1, 3))
    log.close()
    path = next(tmp_path.glob("*.jsonl"))
    path.write_bytes(path.read_bytes()[:-7])
    log = PointLog(tmp_path)
    assert log.last_seq == 2
    log.append(steps(9, 1))
    assert [(point.seq, point.step) for point in log.read(0, 9)] == [(1, 1), (2, 2), (3, 9)]
    log.close()


def test_old_points_are_dropped_and_missed(tmp_path: Path) -> None:
    log = PointLog(tmp_path, kept_points=20, segment_points=10)
    for number in range(100):
        log.append(steps(number, 1))
    assert len(list(tmp_path.glob("*.jsonl"))) <= 4
    with pytest.raises(SeqGone) as caught:
        log.read(0, 10)
    oldest = int(caught.value.metadata["oldest_seq"])
    assert 61 <= oldest <= 81
    log.close()
    for opened in (log, PointLog(tmp_path, kept_points=20, segment_points=10)):
        assert [point.seq for point in opened.read(oldest - 1, 99)] == list(range(oldest, 101))
        opened.close()


async def test_who_waits_is_woken(tmp_path: Path) -> None:
    log = PointLog(tmp_path)
    follower = Follower(log)
    assert not await follower.wait(0.01)
    waiting = asyncio.create_task(follower.wait(30))
    await asyncio.to_thread(log.append, steps(1, 1))
    assert await waiting
    follower.close()
    log.append(steps(2, 1))
    assert not await follower.wait(0.01)
    log.close()
