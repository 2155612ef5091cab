"""Reports on production's configs: validated once a version, kept by digest, looked up without production."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from nightshift_kit.audit import Outbox
from nightshift_kit.canonical import digest_json
from nightshift_kit.clock import Clock
from nightshift_kit.grants import Effect
from nightshift_kit.storage import Database

from .catalog import Catalog, ConfigFile
from .errors import ConfigUnknown
from .records import ConfigReport
from .store import reports as rows
from .translation.gaps import gaps
from .translation.insertion import duplicate_keys
from .validation.production import production_findings
from .validation.report import sort_findings

#: One more with each change of the rules, so that everything is looked at again.
RULES = 1


@dataclass(frozen=True)
class Validated:
    """What a validation of everything did; counts of configs."""

    configs: int
    validated: int
    dropped: int
    invalid: int
    with_gaps: int


@dataclass(frozen=True)
class LabState:
    """Production in numbers."""

    configs: int
    pending_validation: int
    validated_at: dt.datetime | None
    with_gaps: int
    missing_texts: int


class Reports:
    """Validates production's configs and keeps what it found.

    Args:
        db: The lab's database.
        catalog: Reads production; blocks.
        outbox: The lab's audit outbox.
        clock: Times of the records.
    """

    def __init__(self, db: Database, catalog: Callable[[], Catalog], outbox: Outbox, clock: Clock) -> None:
        self._db = db
        self._catalog = catalog
        self._outbox = outbox
        self._clock = clock

    async def validate(self, effect: Effect) -> Validated:
        """Validate what is new or changed; forget what is gone.

        Raises:
            PlatformMissing: there is no production.
            Preempted: a user came in the meantime; nothing was stored.
        """
        (catalog, bases), known = await self._both()
        fresh = []
        for file in catalog.interception:
            basis = bases[file.config_id]
            if known.get(file.config_id) != basis:
                # One config at a time: between two of them a stop gets through.
                fresh.append(await asyncio.to_thread(self._report, file, catalog, basis))
        gone = sorted(set(known) - {file.config_id for file in catalog.interception})
        return await self._db.write(self._store, effect, len(catalog.interception), fresh, gone)

    def _report(self, file: ConfigFile, catalog: Catalog, basis: str) -> ConfigReport:
        twice = duplicate_keys(file.data) if file.content is not None else []
        findings = production_findings(
            file.content, file.problem, twice, catalog.rivals(file), catalog.safety_words
        )
        return ConfigReport(
            config_id=file.config_id,
            path=file.path.encode(errors="surrogateescape").decode(errors="replace"),
            digest=file.digest,
            basis=basis,
            findings=sort_findings(findings),
            missing=missing(file),
            validated_at=self._clock.now(),
        )

    def _store(
        self,
        connection: sa.Connection,
        effect: Effect,
        configs: int,
        fresh: list[ConfigReport],
        gone: list[str],
    ) -> Validated:
        effect.begin(connection)
        for report in fresh:
            rows.put(connection, report)
        for config_id in gone:
            rows.drop(connection, config_id)
        rows.note_validation(connection, self._clock.now())
        found = rows.everything(connection)
        done = Validated(
            configs=configs,
            validated=len(fresh),
            dropped=len(gone),
            invalid=sum(not report.valid for report in found),
            with_gaps=sum(bool(report.missing) for report in found),
        )
        self._outbox.append(
            connection,
            kind="configs.validated",
            actor=effect.actor,
            subject="configs",
            payload={
                "validated": done.validated,
                "dropped": done.dropped,
                "invalid": done.invalid,
                "skill_run": effect.grant.skill_run,
            },
        )
        effect.finish(connection, b"")
        return done

    async def state(self) -> LabState:
        """Production as it is now, against the kept reports. Raises PlatformMissing."""
        (catalog, now), known = await self._both()
        lacking = [missing(file) for file in catalog.interception]
        return LabState(
            configs=len(catalog.interception),
            pending_validation=sum(
                now.get(config_id) != known.get(config_id) for config_id in {*now, *known}
            ),
            validated_at=await self._db.read(rows.last_validation),
            with_gaps=sum(bool(one) for one in lacking),
            missing_texts=sum(len(languages) for one in lacking for _, languages in one),
        )

    async def _both(self) -> tuple[tuple[Catalog, Mapping[str, str]], Mapping[str, str]]:
        return await asyncio.to_thread(self._read), await self._db.read(rows.bases)

    def _read(self) -> tuple[Catalog, Mapping[str, str]]:
        """Production as it is, and what each report on it would rest on, by config id. Blocks."""
        catalog = self._catalog()
        safety = _safety_digest(catalog)
        return catalog, {file.config_id: _basis(file, catalog, safety) for file in catalog.interception}

    async def get(self, config_id: str) -> ConfigReport:
        """One report. Raises ConfigUnknown: the config was never validated."""
        found = await self._db.read(rows.get, config_id)
        if found is None:
            raise ConfigUnknown(f"There is no report on a config {config_id!r}; validate_configs makes them.")
        return found

    async def all(self) -> list[ConfigReport]:
        """All reports, by config id."""
        return await self._db.read(rows.everything)


def missing(file: ConfigFile) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """(field, languages) that a config lacks; none where it cannot be read."""
    if file.content is None:
        return ()
    return tuple((gap.field, gap.missing) for gap in gaps(file.content))


def _safety_digest(catalog: Catalog) -> str:
    return digest_json({audience: sorted(listed) for audience, listed in catalog.safety_words.items()})


def _basis(file: ConfigFile, catalog: Catalog, safety: str) -> str:
    rivals = [path.encode(errors="surrogateescape").hex() for path in catalog.rivals(file)]
    return digest_json([RULES, file.digest, file.problem, rivals, safety])
