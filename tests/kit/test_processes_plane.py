"""The process table with tiny services: order, health, restart, reverse stop, death of the parent."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightshift_kit.processes import Plane, PlaneRunning, ServiceSpec, StartFailed, levels
from nightshift_kit.processes.table import TableInvalid, find_free_base, ports_of
from nightshift_kit.settings import PlaneSettings

ROOT = Path(__file__).parents[2]
SPECS = (
    ServiceSpec("lab", "tests.kit.fake_services.lab", ("experience", "monitor")),
    ServiceSpec("monitor", "tests.kit.fake_services.monitor"),
    ServiceSpec("experience", "tests.kit.fake_services.experience", ("monitor",)),
)


def make(home: Path, **options: Any) -> Plane:
    home.mkdir(mode=0o700, exist_ok=True)
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return Plane(PlaneSettings(home=home), SPECS, port_base=0, environment={"PYTHONPATH": path}, **options)


@asynccontextmanager
async def running(home: Path, **options: Any) -> AsyncIterator[Plane]:
    plane = make(home, **options)
    await plane.start()
    try:
        yield plane
    finally:
        await plane.stop()


def journal(home: Path) -> list[str]:
    return [line.split()[1] + " " + line.split()[2] for line in (home / "journal").read_text().splitlines()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    ends_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < ends_s, "it did not happen in time"
        await asyncio.sleep(0.05)


async def test_starts_in_order_and_stops_in_reverse(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "monitor.slow").touch()
    async with running(home) as plane:
        assert journal(home) == ["monitor wires", "experience wires", "lab wires"]
        endpoints = orjson.loads((home / "endpoints.json").read_bytes())
        assert endpoints["ready"]
        assert list(endpoints["services"]) == ["monitor", "experience", "lab"]
        pids = [one.pid for one in plane.status()]
        assert [entry["pid"] for entry in endpoints["services"].values()] == pids
        assert endpoints["services"]["lab"]["address"] == plane.address("lab")
        assert {one.state for one in plane.status()} == {"ready"}
        assert (home / "plane.pid").read_text() == f"{os.getpid()}\n"
    assert journal(home)[3:] == ["lab stops", "experience stops", "monitor stops"]
    assert not any(map(alive, pids))
    assert not (home / "endpoints.json").exists()
    assert [one.last_exit for one in plane.status()] == [None] * 3


async def test_a_killed_service_comes_back(tmp_path: Path) -> None:
    home = tmp_path / "home"
    async with running(home) as plane:
        before = {one.name: one.pid for one in plane.status()}
        for count in (1, 2):
            os.kill(plane.status()[1].pid, signal.SIGKILL)
            await until(lambda count=count: plane.status()[1].restarts == count)  # type: ignore[misc]
            await until(lambda: plane.status()[1].state == "ready")
        experience = plane.status()[1]
        assert experience.last_exit == -signal.SIGKILL
        entry = orjson.loads((home / "endpoints.json").read_bytes())["services"]["experience"]
        assert (entry["pid"], entry["restarts"], entry["state"]) == (experience.pid, 2, "ready")
        after = {one.name: one.pid for one in plane.status()}
        assert after["experience"] != before["experience"]
        assert after["lab"] == before["lab"]


async def test_a_service_that_fails_takes_the_start_with_it(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "experience.fails").touch()
    plane = make(home)
    with pytest.raises(StartFailed, match="experience ended with status 1"):
        await plane.start()
    assert not any(alive(one.pid) for one in plane.status())
    assert not (home / "endpoints.json").exists()
    # Nothing is left that would keep the next start away.
    (home / "experience.fails").unlink()
    async with running(home):
        pass


async def test_a_service_that_stands_by_is_well_until_it_leads(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "lab.standby").touch()

    def told() -> str:
        return str(orjson.loads((home / "endpoints.json").read_bytes())["services"]["lab"]["state"])

    async with running(home, ready_timeout_s=30) as plane:
        lab = plane.status()[2]
        assert (lab.state, told()) == ("standby", "standby")
        (home / "lab.standby").unlink()
        await until(lambda: plane.status()[2].state == "ready")
        assert told() == "ready"
        assert journal(home)[-1] == "lab leads"
        assert (plane.status()[2].pid, plane.status()[2].restarts) == (lab.pid, 0)
        # It stands by again after a death, and can be stopped while it does.
        (home / "lab.standby").touch()
        os.kill(lab.pid, signal.SIGKILL)
        await until(lambda: plane.status()[2].restarts == 1 and plane.status()[2].state == "standby")
    assert journal(home)[-3:] == ["lab stops", "experience stops", "monitor stops"]


async def test_what_does_not_hear_sigterm_is_killed(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "lab.deaf").touch()
    async with running(home, grace_s=0.5) as plane:
        pids = [one.pid for one in plane.status()]
        await asyncio.sleep(0.2)
    assert not any(map(alive, pids))
    assert "lab stops" not in journal(home)
    assert "monitor stops" in journal(home)


async def test_one_plane_a_home(tmp_path: Path) -> None:
    home = tmp_path / "home"
    async with running(home) as first:
        with pytest.raises(PlaneRunning, match="already"):
            await make(home).start()
        assert {one.state for one in first.status()} == {"ready"}
        assert (home / "endpoints.json").exists()


async def test_taken_ports_are_named(tmp_path: Path) -> None:
    async with running(tmp_path / "one") as first:
        second = Plane(PlaneSettings(home=tmp_path / "two"), SPECS, port_base=first.settings.port_base)
        with pytest.raises(StartFailed, match=str(first.settings.port("monitor"))):
            await second.start()


PLANE_PROGRAM = """
import asyncio, sys
from pathlib import Path
from nightshift_kit.processes.plane import run_plane
from tests.kit.test_processes_plane import make
plane = make(Path(sys.argv[1]))
asyncio.run(run_plane(plane, lambda: print("pids", *(one.pid for one in plane.status()), flush=True)))
"""


def start_program(home: Path) -> tuple[subprocess.Popen[str], list[int]]:
    process = subprocess.Popen(
        [sys.executable, "-c", PLANE_PROGRAM, str(home)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    line = next(line for line in process.stdout if line.startswith("pids"))
    return process, list(map(int, line.split()[1:]))


async def test_services_die_with_a_killed_plane(tmp_path: Path) -> None:
    process, pids = start_program(tmp_path / "home")
    with process:
        assert len(pids) == 3
        process.kill()
    await until(lambda: not any(map(alive, pids)), 5)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_stops_the_plane_in_order(number: signal.Signals, tmp_path: Path) -> None:
    home = tmp_path / "home"
    process, pids = start_program(home)
    with process:
        process.send_signal(number)
        assert await asyncio.to_thread(process.wait, 15) == 0
    assert not any(map(alive, pids))
    assert journal(home)[3:] == ["lab stops", "experience stops", "monitor stops"]


def test_the_order_respects_every_need() -> None:
    names = [[spec.name for spec in level] for level in levels(SPECS)]
    assert names == [["monitor"], ["experience"], ["lab"]]


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.sets(st.sampled_from("abcdefgh"), max_size=3)))
def test_levels_for_any_table(needs: dict[str, set[str]]) -> None:
    specs = [ServiceSpec(name, "module", tuple(sorted(wanted))) for name, wanted in needs.items()]
    try:
        result = levels(specs)
    except TableInvalid:
        # Then there is a name that is missing or a circle: nothing can be peeled off what is left.
        left = dict(needs)
        while free := [name for name, wanted in left.items() if not wanted & left.keys()]:
            for name in free:
                del left[name]
        assert left or {one for wanted in needs.values() for one in wanted} - needs.keys()
        return
    seen: set[str] = set()
    for level in result:
        assert all(seen.issuperset(spec.needs) for spec in level)
        seen |= {spec.name for spec in level}
    assert seen == needs.keys()


def test_free_blocks_do_not_overlap() -> None:
    base = find_free_base()
    ports = ports_of(base)
    assert len(ports) == len(set(ports)) == 25
    assert max(ports) < base + 50
