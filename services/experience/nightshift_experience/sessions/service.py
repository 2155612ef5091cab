"""Puts runs into sessions, says what they were after, and tells each day in words."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, tzinfo

import sqlalchemy as sa

from nightshift_experience.audit import Audit, FencedEffect
from nightshift_experience.errors import SessionUnknown
from nightshift_experience.runs import Outcome
from nightshift_experience.sessions.cutting import Cut, SessionRun, cut, neighbours
from nightshift_experience.sessions.days import tell_days
from nightshift_experience.sessions.modes import distribution
from nightshift_experience.sessions.signals import measure
from nightshift_experience.store import session_tables as tables
from nightshift_experience.store.forgetting import device_digest, forgotten_devices
from nightshift_experience.store.session_tables import StoredDay, StoredSession
from nightshift_kit.clock import Clock
from nightshift_kit.storage import Database

# Of changed runs a step, and of days.
_STEP_RUNS = 500
_STEP_DAYS = 20
_TOP = 5


@dataclass(frozen=True, slots=True)
class Summarized:
    """What one pass did: runs looked at, sessions stored, days summarized."""

    run_count: int
    session_count: int
    day_count: int


class SessionService:
    """Sessions and days of production runs.

    Args:
        db: Of experience.
        clock: Times of the passes.
        gap_s: A longer pause between two runs' starts begins a new session.
        zone: In which days are counted.
    """

    def __init__(self, db: Database, clock: Clock, *, gap_s: float, zone: tzinfo) -> None:
        self._db = db
        self._clock = clock
        self._gap_s = gap_s
        self._zone = zone
        self._audit = Audit(clock)

    async def summarize(self, effect: FencedEffect, project: str) -> Summarized:
        """One pass from the watermark on.

        Each step is a transaction of its own that checks the fence. Raises Preempted; what was done until
        then stays, and the next pass goes on from there.
        """
        seen = told = 0
        made: set[str] = set()
        while True:
            after = await self._db.read(tables.summarized_seq, project)
            step = await self._db.read(self._gather, project, after)
            if step is None:
                break
            seq, count, stale, runs, keys = step
            stored = await asyncio.to_thread(self._understood, runs, keys)
            await self._db.write(self._replace, effect, project, seq, stale, stored)
            seen += count
            made.update(one.session_id for one in stored)
        while days := await self._db.read(tables.stale_days, project, _STEP_DAYS):
            await self._db.write(self._tell, effect, project, days)
            told += len(days)
        await self._db.write(self._finish, effect, project, len(made), told)
        return Summarized(seen, len(made), told)

    async def waiting(self, project: str) -> tuple[int, int | None]:
        """Runs that wait for a pass, and when the last one ended (µs since 1970 UTC; None: never)."""
        return await self._db.read(tables.waiting, project)

    async def page(
        self,
        project: str,
        window_us: tuple[int | None, int | None],
        mode: int | None,
        before: tuple[int, str] | None,
        limit: int,
    ) -> list[StoredSession]:
        """Sessions that began in [start, end), newest first, after the position (start_us, session id)."""
        return await self._db.read(tables.list_sessions, project, window_us, mode, before, limit)

    async def get(self, project: str, session_id: str) -> StoredSession:
        """One session. Raises SessionUnknown."""
        found = await self._db.read(tables.get_session, project, session_id)
        if found is None:
            raise SessionUnknown("There is no such session.", metadata={"session": session_id})
        return found

    async def days(self, project: str, before: str | None, limit: int) -> list[StoredDay]:
        """Summarized days, newest first, before a day ("YYYY-MM-DD")."""
        return await self._db.read(tables.list_days, project, before, limit)

    def _gather(
        self, connection: sa.Connection, project: str, after_seq: int
    ) -> tuple[int, int, list[StoredSession], list[SessionRun], frozenset[str]] | None:
        """Next changed runs: watermark, how many, their stored sessions, all runs near them, their keys."""
        step = tables.changed_keys(connection, project, after_seq, _STEP_RUNS)
        if step is None:
            return None
        seq, count, changed = step
        stale = tables.with_keys(connection, project, changed)
        # A stored session that loses a run is made anew out of what is left, under whatever key that stands.
        keys = changed.union(*(session.keys for session in stale))
        near = {one for key in keys for one in neighbours(key)}
        stale = tables.with_keys(connection, project, keys)
        return seq, count, stale, tables.session_runs(connection, project, near), keys

    def _understood(self, runs: Sequence[SessionRun], keys: Collection[str]) -> list[StoredSession]:
        return [self._stored(found) for found in cut(runs, self._gap_s) if not found.keys.isdisjoint(keys)]

    def _stored(self, found: Cut) -> StoredSession:
        signals = measure(found.runs)
        modes = distribution(signals)
        outcomes = Counter(run.outcome for run in found.runs)
        start_us = found.runs[0].start_us
        return StoredSession(
            session_id=found.id,
            browser=found.browser,
            keys=tuple(sorted(found.keys)),
            start_us=start_us,
            end_us=found.runs[-1].start_us,
            day=datetime.fromtimestamp(start_us / 1e6, UTC).astimezone(self._zone).date().isoformat(),
            runs=len(found.runs),
            mode=modes[0].mode,
            probability=modes[0].probability,
            payload={
                "languages": _counted(run.language for run in found.runs),
                "configs": _counted(run.interception_config for run in found.runs),
                "counts": {
                    "favorites": sum(run.favorite for run in found.runs),
                    "regenerations": sum(run.repeats for run in found.runs),
                    "blocked": outcomes[Outcome.BLOCKED],
                    "failed": outcomes[Outcome.FAILED],
                    "distinct_prompts": signals.distinct_prompts,
                },
                "median_gap_s": signals.median_gap_s,
                "modes": [asdict(one) for one in modes],
            },
        )

    def _replace(
        self,
        connection: sa.Connection,
        effect: FencedEffect,
        project: str,
        seq: int,
        stale: Sequence[StoredSession],
        made: Sequence[StoredSession],
    ) -> None:
        effect.begin(connection)
        # A device may have been forgotten since its runs were read: what was made of them must not come back.
        forgotten = forgotten_devices(connection, project)
        made = [one for one in made if one.start_us > forgotten.get(device_digest(one.browser), -1)]
        tables.replace_sessions(connection, project, [one.session_id for one in stale], made)
        tables.mark_stale(connection, project, [one.day for one in (*stale, *made)])
        tables.put_state(connection, project, summarized_seq=seq)
        tables.forget_moves(connection, project, seq)

    def _tell(
        self, connection: sa.Connection, effect: FencedEffect, project: str, days: Sequence[str]
    ) -> None:
        effect.begin(connection)
        tell_days(connection, project, days, self._now_us())

    def _finish(
        self, connection: sa.Connection, effect: FencedEffect, project: str, made: int, told: int
    ) -> None:
        effect.begin(connection)
        tables.put_state(connection, project, summarize_us=self._now_us())
        self._audit.effect(connection, effect, "sessions.summarized", project, sessions=made, days=told)

    def _now_us(self) -> int:
        return int(self._clock.now().timestamp() * 1_000_000)


def _counted(values: Iterable[str]) -> list[tuple[str, int]]:
    counted = Counter(value for value in values if value)
    return sorted(counted.items(), key=lambda pair: (-pair[1], pair[0]))[:_TOP]
