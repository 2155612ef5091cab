"""Two replicas of skills as processes on one PostgreSQL database, among stand-ins of the others."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import sqlalchemy as sa
from grpc_health.v1 import health_pb2, health_pb2_grpc

from nightshift.experience.v1 import resources_pb2 as experience_types
from nightshift.skills.v1 import resources_pb2 as types
from nightshift_kit.processes.table import find_free_base
from nightshift_kit.rpc.tls import ensure_home
from nightshift_kit.settings import PlaneSettings
from nightshift_kit.storage import Database
from nightshift_skills.store import leadership
from nightshift_skills.store.leadership import Tick
from tests.skills.skills_support import FAST, Plane, eventually
from tests.skills.stand_ins import PROJECT, Surroundings, surroundings

LEASE_S = 2.0


class Replica:
    """One process of skills; `plane` speaks with it."""

    def __init__(self, plane: Plane) -> None:
        self.plane = plane
        self.child: asyncio.subprocess.Process | None = None

    async def spawn(self) -> None:
        """Starts the process, and waits for nothing."""
        self.child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "nightshift_skills",
            env={
                **os.environ,
                "NIGHTSHIFT_HOME": str(self.plane.home),
                "NIGHTSHIFT_PORT_BASE": str(self.plane.port_base),
            },
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )

    async def state(self) -> str:
        """ "ready", "standby" or "": what its health says."""
        health = health_pb2_grpc.HealthStub(self.plane.channel())
        for name, state in (("", "ready"), ("standby", "standby")):
            with contextlib.suppress(grpc.aio.AioRpcError):
                answer = await health.Check(health_pb2.HealthCheckRequest(service=name), timeout=1)
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    return state
        return ""

    async def until(self, *states: str, timeout_s: float = 60) -> str:
        """Waits for one of these states."""
        found: str = await eventually(self.state, lambda state: state in states, timeout_s)
        return found

    def signal(self, number: signal.Signals) -> None:
        assert self.child is not None
        self.child.send_signal(number)

    async def ended(self, timeout_s: float = 60) -> int:
        """Its exit status."""
        assert self.child is not None
        return await asyncio.wait_for(self.child.wait(), timeout_s)

    async def close(self) -> None:
        await self.plane.stop()
        if self.child is not None:
            with contextlib.suppress(ProcessLookupError):
                self.child.kill()
            await self.child.wait()


class Replicas:
    """Both of them, their database, and what surrounds them."""

    def __init__(self, around: Surroundings, db: Database, both: tuple[Replica, Replica]) -> None:
        self.around = around
        self.db = db
        self.both = both
        self._themes = 0

    def other(self, replica: Replica) -> Replica:
        return next(one for one in self.both if one is not replica)

    async def leader(self, timeout_s: float = 60) -> Replica:
        """Waits until one leads."""

        async def find() -> Replica | None:
            for one in self.both:
                if await one.state() == "ready":
                    return one
            return None

        found: Replica = await eventually(find, lambda one: one is not None, timeout_s)
        return found

    def add_theme(self) -> str:
        """One more opportunity, the next that propose_config takes up."""
        self._themes += 1
        name = f"{PROJECT}/opportunities/theme{self._themes}"
        self.around.experience.opportunities.insert(
            0,
            experience_types.Opportunity(
                name=name,
                kind=experience_types.OPPORTUNITY_KIND_UNCOVERED_THEME,
                label=f"theme {self._themes}",
                keywords=["a", "b", "c"],
                runs=60,
            ),
        )
        return name

    async def propose(self, replica: Replica) -> types.SkillRun:
        """A run that waits for a person, about a theme of its own."""
        self.add_theme()
        run = await replica.plane.run("propose_config")
        assert run.state == types.SKILL_RUN_STATE_AWAITING_APPROVAL, run
        return run

    def ticks(self) -> list[Tick]:
        return self.db.read_sync(leadership.list_ticks)

    def everything(self) -> dict[str, list[tuple[Any, ...]]]:
        """All rows of all tables."""

        def read(connection: sa.Connection) -> dict[str, list[tuple[Any, ...]]]:
            metadata = sa.MetaData()
            metadata.reflect(connection)
            return {
                name: sorted((tuple(row) for row in connection.execute(sa.select(table))), key=repr)
                for name, table in metadata.tables.items()
            }

        return self.db.read_sync(read)


@asynccontextmanager
async def replicas_in(home: Path, url: str, **settings: Any) -> AsyncIterator[Replicas]:
    """Two replicas, not started yet."""
    bases: list[int] = []
    while len(bases) < 2:
        base = find_free_base()
        if base not in bases:
            bases.append(base)
    ensure_home(PlaneSettings(home=home, port_base=bases[0]))
    told = {**FAST, "database_url": url, "leader_lease_s": LEASE_S, "denied_rest_s": 0, **settings}
    async with surroundings(home) as around:
        both = tuple(Replica(Plane(home, around, base, told)) for base in bases)
        both[0].plane.write_settings()
        with Database(url, migrations="nightshift_skills", name="skills", readers=1) as db:
            db.migrate()
            try:
                yield Replicas(around, db, both)  # type: ignore[arg-type]
            finally:
                for one in both:
                    await one.close()


async def counted(ask: Callable[[], int], at_least: int, timeout_s: float = 60) -> int:
    """Waits until a number is large enough."""

    async def look() -> int:
        return ask()

    found: int = await eventually(look, lambda number: number >= at_least, timeout_s)
    return found
