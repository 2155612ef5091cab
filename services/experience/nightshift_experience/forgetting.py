"""Forgetting a device: out of the store, the index, the days, and the bytes of their files."""

from __future__ import annotations

from dataclasses import dataclass

import orjson
import sqlalchemy as sa
import structlog

from nightshift_experience.audit import Audit
from nightshift_experience.errors import DeviceRequired
from nightshift_experience.runs import is_valid_id
from nightshift_experience.search import SearchService
from nightshift_experience.sessions.days import tell_days
from nightshift_experience.store import forgetting
from nightshift_experience.store.forgetting import Footprint
from nightshift_experience.store.run_writes import remove_runs
from nightshift_experience.store.search_tables import forget_examples
from nightshift_kit.clock import Clock
from nightshift_kit.errors import IdInvalid, NightshiftError
from nightshift_kit.grants import Effect
from nightshift_kit.storage import Database

_log = structlog.get_logger("nightshift.experience.forgetting")


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What was forgotten of a device."""

    run_count: int
    session_count: int


class Forgetter:
    """Forgets devices.

    Args:
        db: Of experience.
        clock: Until when a device is forgotten.
        search: Whose index loses the runs.
    """

    def __init__(self, db: Database, clock: Clock, search: SearchService) -> None:
        self._db = db
        self._clock = clock
        self._search = search
        self._audit = Audit(clock)

    async def footprint(self, project: str, device: str) -> Footprint:
        """What is stored of a device, under all its names. Raises DeviceRequired, IdInvalid."""
        return await self._db.read(forgetting.footprint, project, _required(device))

    async def forget(self, effect: Effect, project: str, device: str) -> Forgotten:
        """Forget a device and refuse from now on what it did until now.

        The rows and the refusal are one transaction, which says in the same breath what the index has to
        lose; index and files follow before this answers, and after a crash at the next start.

        Raises:
            DeviceRequired, IdInvalid: No device is named.
            DbBusy, DiskFull, StorageIo: The rows are gone, their bytes may still be in a file; the next start
                or the next ForgetDevice takes them out.
        """
        told = await self._db.write(self._forget, effect, project, _required(device))
        await self.finish()
        return told

    async def finish(self) -> None:
        """Take out of the index and of the files what is gone from the store."""
        waiting = await self._db.read(forgetting.index_removals)
        for project, run_ids in waiting.items():
            await self._search.forget(project, run_ids)
            await self._db.write(forgetting.removed_from_index, project, run_ids)
        await self._db.scrub()

    async def recover(self) -> None:
        """What a crash or a full disk left undone; for the background of the service."""
        try:
            if await self._db.read(forgetting.index_removals):
                await self.finish()
        except NightshiftError as error:
            _log.error("forgetting_unfinished", reason=error.reason)

    def _forget(self, connection: sa.Connection, effect: Effect, project: str, device: str) -> Forgotten:
        stored = effect.begin(connection)
        if stored is not None:
            return Forgotten(**orjson.loads(stored))
        now_us = int(self._clock.now().timestamp() * 1_000_000)
        known = forgetting.footprint(connection, project, device)
        remove_runs(connection, project, known.run_ids)
        tell_days(
            connection, project, forgetting.drop_traces(connection, project, device, known.run_ids), now_us
        )
        # Which of the masked examples came from the device is not known.
        forget_examples(connection, project)
        forgetting.remember_forgotten(connection, project, device, now_us)
        self._audit.effect(
            connection,
            effect,
            "device.forgotten",
            project,
            runs=len(known.run_ids),
            sessions=known.session_count,
        )
        answer = Forgotten(len(known.run_ids), known.session_count)
        effect.finish(connection, orjson.dumps(answer))
        return answer


def _required(device: str) -> str:
    if not device:
        raise DeviceRequired.at("device", "name the device")
    if not is_valid_id(device):
        raise IdInvalid.at("device", "has up to 200 characters, no controls and no slash")
    return device
