"""Auto-tune of projects: what may be tuned, and the settings that a run should take."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import orjson
import sqlalchemy as sa

from nightshift_experience.audit import SERVICE
from nightshift_experience.profiles.advice import Confidence, CurrentSettings
from nightshift_experience.profiles.service import ProfileService
from nightshift_experience.profiles.tuning import Outcome, Tuned, TuningSettings, outcomes, tune
from nightshift_experience.store.tuning_table import EVERYWHERE, get_both, get_tuning, put_tuning
from nightshift_kit.audit import Outbox
from nightshift_kit.clock import Clock
from nightshift_kit.errors import EtagMismatch
from nightshift_kit.grants import Effect
from nightshift_kit.storage import Database


class TuningService:
    """Reads and changes. Belongs to one event loop."""

    def __init__(self, db: Database, clock: Clock, profiles: ProfileService) -> None:
        self._db = db
        self._clock = clock
        self._profiles = profiles
        self._outbox = Outbox(SERVICE, clock)

    async def tuned(
        self, project: str, current: CurrentSettings, *, explicit: Collection[str], skip: bool
    ) -> Tuned:
        """Settings that a run should take."""
        own, everywhere = await self._db.read(get_both, project)
        known = await self._profiles.profile(project)
        advised = None
        if own.enabled and everywhere.enabled and not skip:
            # Kept in memory as long as nothing changes.
            advised = (await self._profiles.recommendations(project, current)).recommendations
        return tune(known.profile, current, own, everywhere, explicit=explicit, skip=skip, advised=advised)

    async def outcomes(self, project: str) -> list[Outcome]:
        """What became of the values that runs took over."""
        return outcomes((await self._profiles.profile(project)).profile)

    async def get(self, project: str) -> TuningSettings:
        """What a project lets be tuned; "" for the global switch."""
        return await self._db.read(get_tuning, project)

    async def update(
        self, effect: Effect, project: str, version: int, changes: dict[str, Any]
    ) -> TuningSettings:
        """Change some of it. Raises EtagMismatch where it is not the version that was looked at."""
        return await self._db.write(self._update, effect, project, version, changes)

    def _update(
        self, connection: sa.Connection, effect: Effect, project: str, version: int, changes: dict[str, Any]
    ) -> TuningSettings:
        stored = effect.begin(connection)
        if stored is not None:
            return _settings_of(stored)
        before = get_tuning(connection, project)
        if before.version != version:
            raise EtagMismatch(
                "It has been changed since it was looked at.", metadata={"etag": str(before.version)}
            )
        now_us = int(self._clock.now().timestamp() * 1_000_000)
        after = replace(before, **changes, version=version + 1, update_us=now_us)
        put_tuning(connection, project, after)
        self._outbox.append(
            connection,
            kind="tuning.updated",
            actor=effect.actor,
            subject="tuning" if project == EVERYWHERE else f"projects/{project}/tuning",
            payload={
                "skill_run": effect.grant.skill_run,
                "enabled": after.enabled,
                "apply_safely": after.apply_safely,
                "min_runs": after.min_runs,
                "confidence_threshold": after.threshold.name,
            },
        )
        effect.finish(connection, _bytes_of(after))
        return after


def _bytes_of(settings: TuningSettings) -> bytes:
    return orjson.dumps(settings)


def _settings_of(stored: bytes) -> TuningSettings:
    fields = orjson.loads(stored)
    return TuningSettings(**fields | {"threshold": Confidence(fields["threshold"])})
