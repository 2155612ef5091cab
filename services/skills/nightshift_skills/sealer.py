"""Sealing the outboxes of all services into one signed chain, and checking it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from nightshift_kit.audit import Event
from nightshift_kit.audit.chain import (
    ChainHead,
    SealedRow,
    SourceHead,
    merge,
    outbox_problem,
    seal,
    verify,
)
from nightshift_kit.audit.checkpoint_copy import CheckpointCopy, compare
from nightshift_kit.audit.checkpoints import Checkpoint, Checkpoints
from nightshift_kit.errors import AuditBroken, NightshiftError
from nightshift_skills.books import Books
from nightshift_skills.ports import OutboxPort
from nightshift_skills.store import chain, tables

_log = structlog.get_logger("nightshift.skills.sealer")

OWN = "skills"
PULL_INTERVAL_S = 1.0
_QUIET_TURNS = 5
_PAGE = 1_000


@dataclass(slots=True)
class AuditReport:
    """What a check of the whole audit found; the fields of VerifyAuditResponse."""

    event_count: int = 0
    checkpoint_count: int = 0
    first_bad_seq: int = 0
    detail: str = ""
    unsealed_count: int = 0
    unreachable: list[str] = field(default_factory=list)
    copied_checkpoint_count: int = 0
    copy_problem: str = ""

    @property
    def valid(self) -> bool:
        """Whether everything that could be asked fits."""
        return not self.detail


class Sealer:
    """Pulls, seals, signs, checks."""

    def __init__(
        self,
        *,
        books: Books,
        outboxes: OutboxPort,
        services: Sequence[str],
        checkpoints: Checkpoints,
        private_key: Ed25519PrivateKey,
        checkpoint_interval_s: float,
        copy: CheckpointCopy | None = None,
        on_copy_failed: Callable[[], None] = lambda: None,
        on_sealed: Callable[[Iterable[str]], None] = lambda _kinds: None,
    ) -> None:
        """Makes a sealer.

        Args: `copy` is the second place of the checkpoints, `on_copy_failed` hears of each failure of it,
        `on_sealed` of the kinds of events that were sealed.
        """
        self._books = books
        self._outboxes = outboxes
        self._services = tuple(services)
        self._checkpoints = checkpoints
        self._private_key = private_key
        self._checkpoint_interval_s = checkpoint_interval_s
        self._copy = copy
        self._on_copy_failed = on_copy_failed
        self._copy_problem = ""
        self._on_sealed = on_sealed
        self._head: ChainHead | None = None
        self._signed_seq = 0
        self._signed_s = float("-inf")
        self._broken: dict[str, str] = {}
        self._turn = asyncio.Lock()

    @property
    def broken(self) -> dict[str, str]:
        """Outboxes that do not go on from what is sealed, with what is wrong."""
        return dict(self._broken)

    async def run(self) -> None:
        """Seals each second until cancelled; the last events are signed by `close`.

        The other outboxes are asked each second while skills itself has something to tell, which it has at
        the beginning and the end of whatever a service does, and each fifth second otherwise.
        """
        quiet_turns = 0
        while True:
            try:
                sealed = await self.pull(own_only=quiet_turns % _QUIET_TURNS != 0)
                quiet_turns = 0 if sealed else quiet_turns + 1
                await self._sign(force=False)
            except NightshiftError as error:
                _log.warning("not sealed", reason=error.reason, error=error.message)
            await asyncio.sleep(PULL_INTERVAL_S)

    async def close(self) -> None:
        """Seals and signs what is there."""
        try:
            await self.pull()
            await self._sign(force=True)
        except NightshiftError as error:
            _log.warning("not sealed at the end", reason=error.reason, error=error.message)

    async def pull(self, *, own_only: bool = False) -> int:
        """Seals all events that the outboxes (or skills' own alone) have now; how many."""
        services = (OWN,) if own_only else (OWN, *self._services)
        async with self._turn:
            sealed = 0
            while True:
                if self._head is None:
                    self._head = await self._books.read(chain.get_head)
                batches = await asyncio.gather(*(self._batch(service, self._head) for service in services))
                rows, head = self._seal(self._head, batches)
                if not rows:
                    return sealed
                await self._books.write(chain.append_rows, rows)
                self._head = head
                sealed += len(rows)
                self._on_sealed({row.kind for row in rows})
                if all(len(batch) < _PAGE for batch in batches):
                    return sealed

    async def verify(self) -> AuditReport:
        """Checks chain, checkpoints and outboxes; names the first bad event of the sealed chain."""
        report = AuditReport()
        # What this process has sealed and signed must be there: a chain and checkpoints that were cut
        # together fit each other, and only memory tells that there was more.
        sealed_seq, signed_seq = (self._head.seq if self._head is not None else 0), self._signed_seq
        # The copy comes first: then it cannot be ahead of the file that it follows.
        copied = await self._read_copy(report)
        try:
            marks: list[Checkpoint] = await asyncio.to_thread(self._checkpoints.read)
        except AuditBroken as error:
            marks = []
            report.detail = error.message
            report.first_bad_seq = 1
        if copied is not None:
            marks = self._compare(marks, copied, report)
        result = await self._books.read(lambda connection: verify(chain.all_rows(connection), marks))
        report.event_count = result.event_count
        report.checkpoint_count = result.checkpoint_count
        if not result.valid:
            report.first_bad_seq, report.detail = result.first_bad_seq, result.detail
            return report
        if result.head.seq < sealed_seq:
            report.first_bad_seq = result.head.seq + 1
            report.detail = f"the chain ends at {result.head.seq}, but {sealed_seq} events were sealed"
            return report
        if not report.detail and (marks[-1].seq if marks else 0) < signed_seq:
            report.first_bad_seq = (marks[-1].seq if marks else 0) + 1
            report.detail = f"the checkpoints end before event {signed_seq}, which was signed"
            return report
        for service in (OWN, *self._services):
            try:
                await self._check_outbox(service, result.head, report)
            except NightshiftError as error:
                if error.reason == AuditBroken.reason:
                    source_seq = int(error.metadata.get("source_seq", "1"))
                    await self._found_bad(service, source_seq, error.message, result.head, report)
                    continue
                _log.warning("outbox not asked", of=service, reason=error.reason)
                report.unreachable.append(service)
        return report

    async def _read_copy(self, report: AuditReport) -> list[Checkpoint] | None:
        """Checkpoints of the second place; None where there is none, or none that can be read."""
        if self._copy is None:
            return None
        try:
            copied = await asyncio.to_thread(self._copy.read)
        except AuditBroken as error:
            report.detail, report.first_bad_seq = f"the copy of the checkpoints: {error.message}", 1
            return None
        except NightshiftError as error:
            report.copy_problem = error.message
            return None
        report.copied_checkpoint_count = len(copied)
        return copied

    def _compare(
        self, marks: list[Checkpoint], copied: list[Checkpoint], report: AuditReport
    ) -> list[Checkpoint]:
        """The checkpoints that the chain must fit: the longer list of both places."""
        found = compare(marks, copied)
        if found.detail and not report.detail:
            report.detail, report.first_bad_seq = found.detail, found.first_bad_seq
        elif len(copied) < len(marks):
            lacks = f"the copy lacks the last {len(marks) - len(copied)} checkpoints"
            report.copy_problem = self._copy_problem or lacks
        return found.marks

    async def _check_outbox(self, service: str, head: ChainHead, report: AuditReport) -> None:
        sealed = head.sources.get(service, SourceHead())
        last = SourceHead()
        problem = ""
        async for event in self._events(service):
            problem = outbox_problem(last, event)
            if problem:
                break
            last = SourceHead(event.seq, event.hash)
            if event.seq == sealed.seq and event.hash != sealed.hash:
                last = await self._first_difference(service)
                problem = "it is not the event that was sealed"
                break
        if not problem and last.seq < sealed.seq:
            problem = f"the outbox ends at {last.seq}, but {sealed.seq} of its events are sealed"
        if problem:
            told = f"outbox {service}, event {last.seq + 1}: {problem}"
            await self._found_bad(service, last.seq + 1, told, head, report)
            return
        report.unsealed_count += last.seq - sealed.seq

    async def _found_bad(
        self, service: str, source_seq: int, problem: str, head: ChainHead, report: AuditReport
    ) -> None:
        bad = await self._books.read(_sealed_position, service, source_seq) or head.seq + 1
        if not report.first_bad_seq or bad < report.first_bad_seq:
            report.first_bad_seq, report.detail = bad, problem

    async def _first_difference(self, service: str) -> SourceHead:
        """The last event of an outbox that is still what was sealed."""
        last = SourceHead()
        async for event in self._events(service):
            sealed_hash = await self._books.read(_sealed_hash, service, event.seq)
            if sealed_hash != event.hash:
                break
            last = SourceHead(event.seq, event.hash)
        return last

    async def _events(self, service: str) -> AsyncIterator[Event]:
        after_seq = 0
        while page := await self._page(service, after_seq):
            for event in page:
                yield event
            after_seq = page[-1].seq

    async def _batch(self, service: str, head: ChainHead) -> list[Event]:
        after_seq = head.sources.get(service, SourceHead()).seq
        try:
            return await self._page(service, after_seq)
        except NightshiftError as error:
            if error.reason == AuditBroken.reason:
                self._note_broken(service, error.message)
            else:
                _log.debug("outbox not pulled", of=service, reason=error.reason)
        return []

    async def _page(self, service: str, after_seq: int) -> list[Event]:
        if service == OWN:
            return await self._books.read(self._books.outbox.events, after_seq, _PAGE)
        response = await self._outboxes.list_events(service, after_seq, _PAGE)
        events: list[Event] = []
        for sent in response.outbox_events:
            try:
                events.append(Event.from_canonical(sent.canonical, sent.previous_hash, sent.hash))
            except AuditBroken as error:
                raise AuditBroken(
                    f"outbox {service}, event {sent.seq}: {error.message}",
                    metadata={"source": service, "source_seq": str(sent.seq)},
                ) from error
        return events

    def _seal(self, head: ChainHead, batches: Iterable[list[Event]]) -> tuple[list[SealedRow], ChainHead]:
        """Seals batches together; one outbox that is broken does not keep the others from being sealed."""
        good: list[list[Event]] = []
        for batch in batches:
            if not batch:
                continue
            try:
                seal(head, batch)
            except AuditBroken as error:
                self._note_broken(batch[0].service, error.message)
            else:
                self._broken.pop(batch[0].service, None)
                good.append(batch)
        return seal(head, merge(*good))

    def _note_broken(self, service: str, problem: str) -> None:
        if self._broken.get(service) != problem:
            _log.error("an outbox does not go on from what is sealed", of=service, problem=problem)
        self._broken[service] = problem

    async def _sign(self, *, force: bool) -> None:
        loop = asyncio.get_running_loop()
        head = self._head
        if head is None or head.seq == self._signed_seq:
            return
        if not force and loop.time() - self._signed_s < self._checkpoint_interval_s:
            return
        await asyncio.to_thread(
            self._checkpoints.append, head.seq, head.hash, self._private_key, self._books.clock
        )
        self._signed_seq, self._signed_s = head.seq, loop.time()
        await self._follow()

    async def _follow(self) -> None:
        """Brings the second place up to date. Its failure is loud, and stops neither sealing nor signing."""
        if self._copy is None:
            return
        try:
            await asyncio.to_thread(self._copy.follow)
        except NightshiftError as error:
            self._copy_problem = error.message
            self._on_copy_failed()
            _log.error(
                "the checkpoints are not in their second place", reason=error.reason, error=error.message
            )
        else:
            self._copy_problem = ""


def _sealed_position(connection: sa.Connection, source: str, source_seq: int) -> int:
    table = tables.sealed_events
    query = sa.select(table.c.seq).where(table.c.source == source, table.c.source_seq == source_seq)
    return connection.execute(query).scalar_one_or_none() or 0


def _sealed_hash(connection: sa.Connection, source: str, source_seq: int) -> str:
    table = tables.sealed_events
    query = sa.select(table.c.source_hash).where(table.c.source == source, table.c.source_seq == source_seq)
    return connection.execute(query).scalar_one_or_none() or ""
