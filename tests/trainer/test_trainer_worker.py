"""Workers that fail, hang or lose their supervisor; and one that learns."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nightshift_trainer.orphans import kill_orphan, record_worker
from nightshift_trainer.worker.order import EXIT_FAILED, Order
from tests.trainer.training_support import PATIENCE_S, Bench, Fixture, make_fixture, worker_log

FAULTY = "tests.trainer.faulty_worker"
LONELY = "tests.trainer.lonely_supervisor"


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "bench")
    yield bench
    bench.close()


@pytest.fixture
def faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Bench]]:
    made: list[Bench] = []

    def make(fault: str) -> Bench:
        monkeypatch.setenv("FAULT", fault)
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        made.append(Bench(tmp_path / "bench", worker_module=FAULTY))
        return made[-1]

    yield make
    for bench in made:
        bench.close()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition: Callable[[], bool], timeout_s: float = PATIENCE_S) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


def is_step(message: Any) -> bool:
    return bool(message["kind"] == "step")


def test_it_learns(bench: Bench, tmp_path: Path) -> None:
    """The tiny preset, NF4, on a model of hidden size 256: from guessing towards the rows' pattern."""
    fixture = make_fixture(tmp_path / "fixture", hidden=256, rows=200)
    told = bench.run(Order(fixture.spec(preset="tiny", max_steps=40), tmp_path / "job"))
    losses = told.losses()
    assert told.last()["kind"] == "succeeded"
    assert losses[0] > 6.5
    assert sum(losses[-5:]) / 5 < 0.7 * losses[0], losses


@pytest.mark.slow
def test_it_learns_the_pattern(bench: Bench, tmp_path: Path) -> None:
    fixture = make_fixture(tmp_path / "fixture", hidden=256, rows=200)
    losses = bench.run(Order(fixture.spec(preset="tiny", max_steps=100), tmp_path / "job")).losses()
    assert losses[0] > 6.5
    assert sum(losses[-5:]) / 5 < 3.5, losses


def test_out_of_memory_makes_micro_batches_smaller(
    faulty: Callable[[str], Bench], tiny: Fixture, tmp_path: Path
) -> None:
    bench = faulty("oom:1")
    order = Order(tiny.spec(max_steps=3, batch_size=4, gradient_accumulation=2), tmp_path / "job")
    told = bench.run(order, fork=False)
    assert told.last()["kind"] == "succeeded", worker_log(order)
    assert "oom_split" in told.events()
    assert sorted(told.steps()) == [1, 2, 3]
    state = json.loads(
        max((order.job_folder / "checkpoints").glob("*/state.json"), key=os.path.getmtime).read_text()
    )
    assert state["state"]["split"] == {"batch_size": 2, "gradient_accumulation": 4}


def test_out_of_memory_at_one_sample_fails_with_advice(
    faulty: Callable[[str], Bench], tiny: Fixture, tmp_path: Path
) -> None:
    bench = faulty("oom:1000")
    told = bench.run(Order(tiny.spec(max_steps=3, batch_size=2), tmp_path / "job"), fork=False)
    assert told.last()["reason"] == "TRAINER_OOM"
    assert "max_length" in told.last()["message"]
    assert told.events().count("oom_split") == 1
    assert told.end is not None
    assert told.end.exit_status == EXIT_FAILED


def test_a_micro_step_that_never_ends_does_not_keep_the_worker(
    faulty: Callable[[str], Bench], tiny: Fixture, tmp_path: Path
) -> None:
    bench = faulty("hang")
    bench.start(Order(tiny.spec(max_steps=9), tmp_path / "job"), fork=False)
    told = bench.follow(is_step)
    bench.supervisor.stop("user")
    bench.follow(told=told)
    assert told.end is not None
    assert not told.end.killed
    assert told.last()["how"] == "abandoned"
    assert told.last()["step"] == 1


def test_a_worker_that_does_not_answer_is_killed(
    faulty: Callable[[str], Bench], tiny: Fixture, tmp_path: Path
) -> None:
    bench = faulty("hang_hard")
    bench.start(Order(tiny.spec(max_steps=9), tmp_path / "job"), fork=False)
    told = bench.follow(is_step)
    time.sleep(0.4)
    bench.supervisor.stop("user")
    bench.follow(told=told)
    assert told.end is not None
    assert told.end.killed
    assert told.end.last is None
    assert told.end.exit_status == -signal.SIGKILL
    # Less than that and it would not have been given its time.
    assert told.end.exited_ns - told.end.asked_ns >= 0.6e9


def test_a_crash_is_told_by_its_status(faulty: Callable[[str], Bench], tiny: Fixture, tmp_path: Path) -> None:
    bench = faulty("crash")
    told = bench.run(Order(tiny.spec(max_steps=9), tmp_path / "job"), fork=False)
    assert told.end is not None
    assert (told.end.last, told.end.cause, told.end.exit_status) == (None, "", -signal.SIGSEGV)


def test_a_stop_while_it_is_still_importing(bench: Bench, tiny: Fixture, tmp_path: Path) -> None:
    bench.start(Order(tiny.spec(max_steps=9), tmp_path / "job"), fork=False)
    told = bench.follow(lambda message: message["kind"] == "hello")
    bench.supervisor.stop("user")
    bench.follow(told=told)
    assert told.last()["how"] == "not_training"
    assert told.steps() == {}
    # Nothing was begun, so it begins at the beginning.
    assert bench.run(Order(tiny.spec(max_steps=2), tmp_path / "job")).steps().keys() == {1, 2}


@contextmanager
def lonely(tiny: Fixture, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A supervisor in its own process, and its worker's pid."""
    job = tmp_path / "job"
    order = Order(tiny.spec(max_steps=100_000), job)
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tests.trainer.lonely_supervisor",
            str(tmp_path / "b"),
            json.dumps(order.as_dict()),
        ],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "stepping\n"
        yield process, int(json.loads((job / "worker.json").read_text())["pid"])
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_a_stopped_supervisor_does_not_keep_its_worker(tiny: Fixture, tmp_path: Path) -> None:
    with lonely(tiny, tmp_path) as (supervisor, worker):
        assert alive(worker)
        supervisor.send_signal(signal.SIGSTOP)
        begin = time.monotonic()
        assert wait_until(lambda: not alive(worker))
        assert time.monotonic() - begin > 1.0, "it died for another reason than silence"
        supervisor.send_signal(signal.SIGCONT)


@pytest.mark.parametrize(("over_s", "least_s"), [(0.4, 0.4), (-5.0, 0.0), (60.0, 0.8), (0.0, 0.8)])
def test_the_watchdog_ends_a_process_when_its_lease_is_over(over_s: float, least_s: float) -> None:
    """The earlier of the lease's end and the silence counts; what is past counts at once; 0 is no lease."""
    program = (
        "import time\n"
        "from nightshift_trainer.worker.deadman import DeadMansSwitch\n"
        "switch = DeadMansSwitch(60)\n"
        "now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)\n"
        "print(now_ns, flush=True)\n"
        f"switch.renew(0.8, {over_s} and now_ns + round({over_s} * 1e9))\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert process.wait(PATIENCE_S) == -signal.SIGKILL
        lasted_s = (time.clock_gettime_ns(time.CLOCK_BOOTTIME) - int(line)) / 1e9
        assert lasted_s >= least_s


def test_a_worker_dies_while_its_supervisor_is_busy(bench: Bench, tiny: Fixture, tmp_path: Path) -> None:
    """Its exit and the warm parent's word of it are there at once; the supervisor waits for nothing."""
    bench.start(Order(tiny.spec(max_steps=100_000), tmp_path / "job"))
    told = bench.follow(lambda message: message["kind"] == "step")
    pid = bench.supervisor.recent_pids[-1]

    def busy() -> None:
        os.kill(pid, signal.SIGKILL)
        time.sleep(0.5)

    bench.supervisor._submit(busy)
    bench.follow(told=told)
    assert told.end is not None
    assert (told.end.exit_status, told.end.cause) == (-signal.SIGKILL, "")
    assert bench.run(Order(tiny.spec(max_steps=2), tmp_path / "next")).steps().keys() == {1, 2}


@pytest.mark.slow
def test_a_warm_parent_that_does_not_answer_keeps_no_stop_waiting(
    bench: Bench, tiny: Fixture, tmp_path: Path
) -> None:
    bench.run(Order(tiny.spec(max_steps=1), tmp_path / "first"))
    warm = bench.supervisor._warm
    assert warm is not None
    os.kill(warm.pid, signal.SIGSTOP)
    bench.start(Order(tiny.spec(max_steps=2), tmp_path / "job"))
    bench.supervisor.stop("user")
    told = bench.follow()
    assert told.end is not None
    assert (told.end.cause, told.end.killed, told.end.last) == ("user", True, None)
    assert not alive(warm.pid)
    assert bench.run(Order(tiny.spec(max_steps=2), tmp_path / "job")).steps().keys() == {1, 2}


def test_a_killed_supervisor_does_not_leave_its_worker(tiny: Fixture, tmp_path: Path) -> None:
    with lonely(tiny, tmp_path) as (supervisor, worker):
        supervisor.kill()
        assert wait_until(lambda: not alive(worker))


def test_orphans_are_known_by_more_than_their_number(tmp_path: Path) -> None:
    sleeper = subprocess.Popen(["sleep", "300"], start_new_session=True)
    try:
        record_worker(tmp_path, sleeper.pid)
        record = json.loads((tmp_path / "worker.json").read_text())
        # Another process with the same number started at another moment.
        (tmp_path / "worker.json").write_text(
            json.dumps({**record, "start_ticks": record["start_ticks"] + 1})
        )
        assert kill_orphan(tmp_path) is None
        assert sleeper.poll() is None
        record_worker(tmp_path, sleeper.pid)
        assert kill_orphan(tmp_path) == sleeper.pid
        assert sleeper.wait(10) == -signal.SIGKILL
        assert not (tmp_path / "worker.json").exists()
        assert kill_orphan(tmp_path) is None
    finally:
        sleeper.kill()
        sleeper.wait()
