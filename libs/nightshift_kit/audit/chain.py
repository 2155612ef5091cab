"""The sealed chain: the events of all outboxes in one order, each hashed with the one before.

A sealed row's hash is SHA-256 over the previous row's hash bytes and the canonical JSON of ``{event, seq,
source_hash}``: the outbox event as its outbox hashed it, the position, the hash it has there. So changing,
dropping or swapping rows breaks the chain at the first such row, and an outbox that was rewritten after
sealing no longer goes on from the sealed hash. Cutting off the tail leaves a shorter chain that is whole;
that shows against the signed checkpoints (``audit.checkpoints``).
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import sqlalchemy as sa

from nightshift_kit.audit.checkpoints import Checkpoint
from nightshift_kit.audit.event import Event, canonical_text, event_hash
from nightshift_kit.errors import AuditBroken


class SealedRow(NamedTuple):
    """One row of the sealed chain; the order of ``sealed_columns``."""

    seq: int
    source: str
    source_seq: int
    time: str
    kind: str
    actor: str
    subject: str
    payload: str
    source_hash: str
    hash: str

    @classmethod
    def of(cls, seq: int, event: Event, sealed_hash: str) -> SealedRow:
        """The row of an event at a position of the chain; `sealed_hash` is the chain's there."""
        return cls(
            seq=seq,
            source=event.service,
            source_seq=event.seq,
            time=event.time,
            kind=event.kind,
            actor=event.actor,
            subject=event.subject,
            payload=event.payload,
            source_hash=event.hash,
            hash=sealed_hash,
        )


@dataclass(frozen=True, slots=True)
class SourceHead:
    """Where an outbox stands: its last event's position and hash."""

    seq: int = 0
    hash: str = ""


@dataclass(frozen=True, slots=True)
class ChainHead:
    """Where the sealed chain stands.

    Attributes:
        seq: Position of the last row; 0 for an empty chain.
        hash: Its hash, hex; "" for an empty chain.
        sources: For each outbox what of it is sealed.
    """

    seq: int = 0
    hash: str = ""
    sources: Mapping[str, SourceHead] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verification:
    """What a check found.

    Attributes:
        head: Where the checked chain ends, as far as it is good.
        event_count: Good events.
        checkpoint_count: Checkpoints that fit.
        first_bad_seq: Position of the first bad event; 0 if all is well.
        detail: What is wrong with it; "" if all is well.
    """

    head: ChainHead
    event_count: int
    checkpoint_count: int = 0
    first_bad_seq: int = 0
    detail: str = ""

    @property
    def valid(self) -> bool:
        """Whether everything fits."""
        return self.first_bad_seq == 0


def sealed_columns() -> list[sa.Column[Any]]:
    """Columns of a table that keeps the sealed chain, in the order of ``SealedRow``."""
    text = ("time", "kind", "actor", "subject", "payload", "source_hash", "hash")
    return [
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("source_seq", sa.BigInteger, nullable=False),
        *(sa.Column(name, sa.Text, nullable=False) for name in text),
    ]


def merge(*outboxes: Sequence[Event]) -> list[Event]:
    """Events of several outboxes in order of time; each outbox keeps its own order."""
    return list(heapq.merge(*outboxes, key=lambda event: event.time))


def seal(head: ChainHead, events: Iterable[Event]) -> tuple[list[SealedRow], ChainHead]:
    """Rows that continue the chain.

    Args:
        head: Where the chain stands.
        events: Of any outboxes, each from where the chain stands with it; events that are sealed already are
            passed over, so that a batch may come twice.

    Returns:
        The new rows and the new head; both belong into one transaction.

    Raises:
        AuditBroken: An event does not go on from its outbox' sealed part, or its hash is wrong; nothing of
            the batch may be sealed then. Names the outbox and the position.
    """
    rows: list[SealedRow] = []
    sources = dict(head.sources)
    seq, previous = head.seq, head.hash
    for event in events:
        source = sources.get(event.service, SourceHead())
        if event.seq <= source.seq:
            continue
        problem = outbox_problem(source, event)
        if problem:
            raise AuditBroken(
                f"outbox {event.service}, event {source.seq + 1}: {problem}",
                metadata={"source": event.service, "source_seq": str(source.seq + 1)},
            )
        sources[event.service] = SourceHead(event.seq, event.hash)
        seq += 1
        previous = _sealed_hash(previous, event.canonical, seq, event.hash)
        rows.append(SealedRow.of(seq, event, previous))
    return rows, ChainHead(seq, previous, sources)


def verify(
    rows: Iterable[Sequence[Any]], checkpoints: Sequence[Checkpoint] = (), after: ChainHead | None = None
) -> Verification:
    """Check a sealed chain from one end to the other, streaming.

    Every column of every row is hashed, so there is nothing in a row that could be changed unseen; each
    outbox' own chain within it is checked too, so that the sealer cannot have invented or left out events.

    Args:
        rows: In the order of the columns of ``SealedRow`` and of seq: tuples or database rows.
        checkpoints: Read and with their signatures checked (``Checkpoints.read``).
        after: Where the rows go on from; the chain's beginning if None. Checkpoints before it do not count.
    """
    start = after or ChainHead()
    seq, previous = start.seq, bytes.fromhex(start.hash)
    sources = {name: (head.seq, bytes.fromhex(head.hash)) for name, head in start.sources.items()}
    marks = {mark.seq: mark for mark in checkpoints if mark.seq >= start.seq}
    problem = _checkpoint_problem(marks.get(seq), start.hash)
    sha256 = hashlib.sha256
    for row in () if problem else rows:
        try:
            row_seq, source, source_seq, time, kind, actor, subject, payload, source_hash, row_hash = row
            known_seq, known_hash = sources.get(source, _NOTHING)
            if row_seq != seq + 1:
                problem = f"position {row_seq} follows {seq}"
                break
            if source_seq != known_seq + 1:
                problem = f"event {source_seq} of {source} follows its event {known_seq}"
                break
            text = canonical_text(actor, kind, payload, source_seq, source, subject, time)
            outbox = sha256(known_hash + text.encode())
            if outbox.hexdigest() != source_hash:
                problem = "its content is not what its outbox hashed"
                break
            sealed = sha256(previous + _sealed_text(text, row_seq, source_hash).encode())
            if sealed.hexdigest() != row_hash:
                problem = "its hash does not go on from the one before"
                break
        except (TypeError, ValueError) as error:
            # A column of another type, or text that is no Unicode: nothing of ours wrote that.
            problem = f"a column holds what is never written there ({type(error).__name__})"
            break
        problem = _checkpoint_problem(marks.get(seq + 1), row_hash)
        if problem:
            break
        sources[source] = (source_seq, outbox.digest())
        seq, previous = seq + 1, sealed.digest()
    cut = min((position for position in marks if position > seq), default=0)
    if cut and not problem:
        problem = (
            f"the chain ends at {seq}, but checkpoint {marks[cut].number} signs {cut}: its tail is cut off"
        )
    return Verification(
        head=ChainHead(
            seq, previous.hex(), {name: SourceHead(n, h.hex()) for name, (n, h) in sources.items()}
        ),
        event_count=seq - start.seq,
        checkpoint_count=sum(start.seq <= mark.seq <= seq for mark in checkpoints),
        first_bad_seq=seq + 1 if problem else 0,
        detail=problem,
    )


def verify_outbox(events: Iterable[Event], after: SourceHead | None = None) -> Verification:
    """Check an outbox, or its part that is not sealed yet.

    Args:
        events: In order.
        after: What they must go on from: the sealed chain's ``head.sources[service]``; None means from the
            beginning.

    Returns:
        Positions in it are those of the outbox.
    """
    head = start = after or SourceHead()
    service = ""
    for event in events:
        service = event.service
        problem = outbox_problem(head, event)
        if problem:
            return Verification(
                ChainHead(head.seq, head.hash), head.seq - start.seq, 0, head.seq + 1, f"{service}: {problem}"
            )
        head = SourceHead(event.seq, event.hash)
    return Verification(
        ChainHead(head.seq, head.hash, {service: head} if service else {}), head.seq - start.seq
    )


def outbox_problem(head: SourceHead, event: Event) -> str:
    """Why an event does not go on from its outbox' head; "" where it does."""
    if event.seq != head.seq + 1:
        return f"event {event.seq} follows event {head.seq}"
    if event.previous_hash != head.hash:
        return "it does not go on from the event before"
    try:
        right = event_hash(head.hash, event.canonical)
    except (TypeError, ValueError) as error:
        return f"a column holds what is never written there ({type(error).__name__})"
    return "" if event.hash == right else "its content is not what was hashed"


def _checkpoint_problem(mark: Checkpoint | None, row_hash: str) -> str:
    if mark is None or mark.hash == row_hash:
        return ""
    return f"checkpoint {mark.number} has another hash for it"


def _sealed_text(canonical: str, seq: int, source_hash: str) -> str:
    return f'{{"event":{canonical},"seq":{seq},"source_hash":"{source_hash}"}}'


def _sealed_hash(previous_hash: str, canonical: str, seq: int, source_hash: str) -> str:
    text = _sealed_text(canonical, seq, source_hash)
    return hashlib.sha256(bytes.fromhex(previous_hash) + text.encode()).hexdigest()


_NOTHING = (0, b"")
