"""Whether anything may be delegated: facts, each with its own words."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from nightshift.monitor.v1 import resources_pb2 as monitor_types
from nightshift_kit.errors import NightshiftError
from nightshift_skills.books import Books
from nightshift_skills.gate import Gate
from nightshift_skills.ports import MonitorPort
from nightshift_skills.sealer import AuditReport
from nightshift_skills.store import decisions


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact of readiness; the contract's ReadinessFact."""

    fact: str
    met: bool
    detail: str


class Readiness:
    """Looks at all facts each time it is asked; nothing is remembered."""

    def __init__(
        self,
        *,
        books: Books,
        gate: Gate,
        monitor: MonitorPort,
        verify: Callable[[], Awaitable[AuditReport]],
        min_runs: int,
    ) -> None:
        """Args: `min_runs` are the successful runs of a skill, each approved by a person, that prove it."""
        self._books = books
        self._gate = gate
        self._monitor = monitor
        self._verify = verify
        self._min_runs = min_runs

    async def facts(self, skill: str) -> list[Fact]:
        """All facts for one skill (its id), met or not."""
        return [
            Fact(
                "no_lock",
                not self._gate.locked,
                f"The global lock is {'on' if self._gate.locked else 'off'}.",
            ),
            await self._audit(),
            *await self._health(),
            await self._proven(skill),
        ]

    async def _audit(self) -> Fact:
        report = await self._verify()
        if not report.valid:
            return Fact("audit_verifies", False, f"The audit is broken: {report.detail}")
        if report.unreachable:
            return Fact(
                "audit_verifies", False, f"Not asked for their outbox: {', '.join(report.unreachable)}."
            )
        return Fact("audit_verifies", True, f"{report.event_count} events verify.")

    async def _health(self) -> list[Fact]:
        try:
            status = await self._monitor.get_status()
        except NightshiftError as error:
            detail = f"The monitor cannot be asked ({error.reason})."
            return [Fact("probes_up", False, detail), Fact("no_incident", False, detail)]
        down = [probe.name for probe in status.probes if probe.latest.state != monitor_types.PROBE_STATE_UP]
        incidents = [incident.name for incident in status.incidents]
        return [
            Fact(
                "probes_up",
                bool(status.probes) and not down,
                f"Not up: {', '.join(down)}." if down else f"{len(status.probes)} probes are up.",
            ),
            Fact(
                "no_incident",
                not incidents,
                f"Not resolved: {', '.join(incidents)}." if incidents else "No incident is open.",
            ),
        ]

    async def _proven(self, skill: str) -> Fact:
        count = await self._books.read(decisions.proven_runs, skill)
        return Fact(
            "proven_runs",
            count >= self._min_runs,
            f"{count} runs that a person approved succeeded; {self._min_runs} are needed.",
        )
