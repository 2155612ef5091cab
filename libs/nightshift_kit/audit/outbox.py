"""A service's audit outbox: events that commit with the change they tell of."""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa

from nightshift_kit.audit.event import Event, make_event
from nightshift_kit.clock import Clock, SystemClock
from nightshift_kit.errors import AuditUnavailable
from nightshift_kit.storage.kit_schema import KIT
from nightshift_kit.storage.problems import detail, storage_error
from nightshift_kit.storage.texts import read_rows

_head = KIT.outbox_head
_events = KIT.outbox

_lock_head = (
    sa.select(_head.c.seq, _head.c.hash).where(_head.c.service == sa.bindparam("name")).with_for_update()
)
_first_head = _head.insert()
_move_head = (
    _head.update()
    .where(_head.c.service == sa.bindparam("name"))
    .values(seq=sa.bindparam("to_seq"), hash=sa.bindparam("to_hash"))
)
_add = _events.insert()
_page = (
    sa.select(_events)
    .where(_events.c.seq >= sa.bindparam("from_seq"))
    .order_by(_events.c.seq)
    .limit(sa.bindparam("rows"))
)


class Outbox:
    """Appends to, and reads, the outbox of one service.

    Args:
        service: Its name; stands in each event.
        clock: Gives the events' time.
    """

    def __init__(self, service: str, clock: Clock | None = None) -> None:
        self._service = service
        self._clock = clock or SystemClock()

    def append(
        self,
        connection: sa.Connection,
        *,
        kind: str,
        actor: str,
        subject: str,
        payload: Mapping[str, object] | None = None,
    ) -> Event:
        """Write one event in the caller's transaction.

        Appenders queue at the head's row lock, so seq has no gaps and the hashes form one chain, whatever
        else runs at the same time. If the transaction is rolled back, the event never was.

        Args:
            connection: Within ``db.write``.
            kind: What happened: lower-case words joined by dots ("config.promoted").
            actor: Who caused it: a SPIFFE id or a resource name.
            subject: Resource name of what it is about.
            payload: Further fields as JSON values. No users' texts, no secrets: ids and digests.

        Raises:
            AuditUnavailable: The event could not be written; let it pass, so that nothing is done.
            ValueError: The event is not well-formed, a bug of the caller.
        """
        try:
            head = connection.execute(_lock_head, {"name": self._service}).one_or_none()
            seq, previous_hash = (head.seq, head.hash) if head else (0, "")
            event = make_event(
                seq=seq + 1,
                at=self._clock.now(),
                service=self._service,
                kind=kind,
                actor=actor,
                subject=subject,
                payload=payload or {},
                previous_hash=previous_hash,
            )
            connection.execute(
                _add,
                {
                    "seq": event.seq,
                    "time": event.time,
                    "service": event.service,
                    "kind": event.kind,
                    "actor": event.actor,
                    "subject": event.subject,
                    "payload": event.payload,
                    "hash": event.hash,
                },
            )
            if head is None:
                connection.execute(_first_head, {"service": self._service, "seq": 1, "hash": event.hash})
            else:
                connection.execute(
                    _move_head, {"name": self._service, "to_seq": event.seq, "to_hash": event.hash}
                )
        except sa.exc.DBAPIError as error:
            # Full disks and the like keep their own reason; the writer names it.
            if storage_error(error, self._service) is not None:
                raise
            raise AuditUnavailable(
                f"{self._service}: the audit event {kind} could not be written, so nothing was done "
                f"({detail(error.orig)})"
            ) from error
        return event

    def events(self, connection: sa.Connection, after_seq: int = 0, limit: int = 500) -> list[Event]:
        """Events after a position, oldest first; as they are stored, whatever was done to them.

        Args:
            connection: Within ``db.read`` or ``db.write``.
            after_seq: Only events with a greater seq; 0 means from the beginning.
            limit: At most so many.
        """
        # One row more at the front, for the hash that the first event goes on from.
        rows, _ = read_rows(connection, _page, {"from_seq": after_seq, "rows": limit + 1})
        previous_hash = ""
        events = []
        for row in rows:
            if row.seq > after_seq:
                events.append(
                    Event(
                        seq=row.seq,
                        time=row.time,
                        service=row.service,
                        kind=row.kind,
                        actor=row.actor,
                        subject=row.subject,
                        payload=row.payload,
                        previous_hash=previous_hash,
                        hash=row.hash,
                    )
                )
            previous_hash = row.hash
        return events[:limit]

    def last_seq(self, connection: sa.Connection) -> int:
        """Position of the last event; 0 where there is none."""
        head = connection.execute(sa.select(_head.c.seq).where(_head.c.service == self._service)).scalar()
        return head or 0
