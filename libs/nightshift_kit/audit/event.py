"""One audit event and the one text that is hashed for it."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from json.encoder import encode_basestring
from typing import Any, Self, cast

from nightshift_kit.canonical import canonical_json
from nightshift_kit.errors import AuditBroken

# 2026-03-04T05:06:07.000089Z: fixed width, so that text sorts as time does.
_TIME = "%Y-%m-%dT%H:%M:%S.%fZ"
_KIND = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*", re.ASCII)
_LONGEST_NAME = 1024
_LARGEST_PAYLOAD = 256 * 1024


@dataclass(frozen=True, slots=True)
class Event:
    """An event of a service's outbox.

    Attributes:
        seq: Position in that outbox, from 1, without gaps.
        time: RFC 3339, UTC, microseconds.
        service: Whose outbox.
        kind: What happened ("config.promoted").
        actor: Who caused it (a SPIFFE id, a skill run's name).
        subject: What it is about (a resource name).
        payload: Canonical JSON of an object with further fields.
        previous_hash: Hash of the event before, hex; "" for the first.
        hash: SHA-256 over the previous hash's bytes and ``canonical``, hex.
    """

    seq: int
    time: str
    service: str
    kind: str
    actor: str
    subject: str
    payload: str
    previous_hash: str
    hash: str

    @property
    def canonical(self) -> str:
        """The text that is hashed: canonical JSON of all fields but the hashes."""
        return canonical_text(
            self.actor, self.kind, self.payload, self.seq, self.service, self.subject, self.time
        )

    @property
    def fields(self) -> dict[str, Any]:
        """The payload, read."""
        return cast("dict[str, Any]", json.loads(self.payload))

    @property
    def at(self) -> dt.datetime:
        """When it happened, UTC."""
        return dt.datetime.strptime(self.time, _TIME).replace(tzinfo=dt.UTC)

    @classmethod
    def from_canonical(cls, canonical: str, previous_hash: str, event_hash: str) -> Self:
        """Event as another service sent it.

        Args:
            canonical: The text that was hashed.
            previous_hash: As sent; hex.
            event_hash: As sent; hex. Whether it fits is for ``chain`` to check.

        Raises:
            AuditBroken: The text is not the canonical encoding of an event.
        """
        try:
            raw = json.loads(canonical)
            event = cls(
                seq=raw["seq"],
                time=raw["time"],
                service=raw["service"],
                kind=raw["kind"],
                actor=raw["actor"],
                subject=raw["subject"],
                payload=canonical_json(raw["payload"]).decode(),
                previous_hash=previous_hash,
                hash=event_hash,
            )
            same = type(event.seq) is int and event.canonical == canonical
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise AuditBroken("an outbox event is not in its canonical form") from error
        if not same:
            raise AuditBroken("an outbox event is not in its canonical form")
        return event


def canonical_text(
    actor: str, kind: str, payload: str, seq: int, service: str, subject: str, time: str
) -> str:
    """Canonical JSON of an event, put together from its columns.

    The columns are thereby all that there is to check: no stored copy could say something else. The text
    can be taken apart in one way only (names are JSON strings, seq a number, and around the payload, which
    goes in as it is, everything is fixed from both ends), so different columns give different texts.
    """
    return (
        f'{{"actor":{encode_basestring(actor)},"kind":{encode_basestring(kind)},"payload":{payload},'
        f'"seq":{seq},"service":{encode_basestring(service)},"subject":{encode_basestring(subject)},'
        f'"time":{encode_basestring(time)}}}'
    )


def event_hash(previous_hash: str, canonical: str) -> str:
    """SHA-256 over the previous hash's 32 bytes (none before the first event) and the text; hex."""
    return hashlib.sha256(bytes.fromhex(previous_hash) + canonical.encode("utf-8")).hexdigest()


def make_event(
    *,
    seq: int,
    at: dt.datetime,
    service: str,
    kind: str,
    actor: str,
    subject: str,
    payload: Mapping[str, object],
    previous_hash: str,
) -> Event:
    """A new event, hashed.

    Raises:
        ValueError: A name is empty, too long or holds control characters; ``kind`` is not lower-case words
            joined by dots; the payload is too large or has no canonical form.
    """
    if not _KIND.fullmatch(kind):
        raise ValueError(f"kind {kind!r} is not of the form 'thing.happened'")
    for name, value in (("service", service), ("actor", actor), ("subject", subject)):
        if not value or len(value) > _LONGEST_NAME or not value.isprintable():
            raise ValueError(f"{name} must be 1 to {_LONGEST_NAME} printable characters")
    text = canonical_json(dict(payload)).decode()
    if len(text) > _LARGEST_PAYLOAD:
        raise ValueError(f"the payload has {len(text)} characters; at most {_LARGEST_PAYLOAD} fit an event")
    time = at.astimezone(dt.UTC).strftime(_TIME)
    canonical = canonical_text(actor, kind, text, seq, service, subject, time)
    return Event(
        seq=seq,
        time=time,
        service=service,
        kind=kind,
        actor=actor,
        subject=subject,
        payload=text,
        previous_hash=previous_hash,
        hash=event_hash(previous_hash, canonical),
    )
