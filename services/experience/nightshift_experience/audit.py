"""Audit events of experience: in the transaction of what they tell of, with counts and names alone."""

from __future__ import annotations

from typing import Protocol

import sqlalchemy as sa

from nightshift_kit.audit import Outbox
from nightshift_kit.clock import Clock
from nightshift_kit.grants import Grant

SERVICE = "experience"


class FencedEffect(Protocol):
    """The part of the kit's Effect that work in several transactions uses."""

    @property
    def actor(self) -> str:
        """Who stands behind it."""
        ...

    @property
    def grant(self) -> Grant:
        """Whose run it is."""
        ...

    def begin(self, connection: sa.Connection) -> bytes | None:
        """Raises Preempted once the fence has been raised."""
        ...


class Audit:
    """Writes into the service's outbox."""

    def __init__(self, clock: Clock) -> None:
        self._outbox = Outbox(SERVICE, clock)

    def effect(
        self, connection: sa.Connection, effect: FencedEffect, kind: str, project: str, **counts: int
    ) -> None:
        """What a skill's run did. Raises AuditUnavailable: then it is not done."""
        self._outbox.append(
            connection,
            kind=kind,
            actor=effect.actor,
            subject=f"projects/{project}",
            payload={"skill_run": effect.grant.skill_run, **counts},
        )

    def import_job(
        self, connection: sa.Connection, kind: str, actor: str, project: str, job_id: str, **counts: int
    ) -> None:
        """Begin or end of an import. Raises AuditUnavailable: then it does not begin."""
        self._outbox.append(
            connection,
            kind=kind,
            actor=actor,
            subject=f"projects/{project}/importJobs/{job_id}",
            payload=dict(counts),
        )
