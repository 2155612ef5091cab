"""The sealed chain as JSON Lines, and how such a file is checked without a plane.

One line an event: ``{"event":…,"hash":…,"seq":…,"source_hash":…}``, canonical JSON throughout; ``event`` is
the outbox event exactly as its outbox hashed it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from nightshift_kit.audit.chain import SealedRow, Verification, verify
from nightshift_kit.audit.checkpoints import Checkpoint
from nightshift_kit.audit.event import Event, canonical_text
from nightshift_kit.canonical import canonical_json
from nightshift_kit.errors import AuditBroken

_KEYS = {"event", "hash", "seq", "source_hash"}


def export_line(row: SealedRow) -> str:
    """A sealed row as a line, without its end."""
    event = canonical_text(
        row.actor, row.kind, row.payload, row.source_seq, row.source, row.subject, row.time
    )
    return f'{{"event":{event},"hash":"{row.hash}","seq":{row.seq},"source_hash":"{row.source_hash}"}}'


def verify_export(lines: Iterable[bytes], checkpoints: Sequence[Checkpoint] = ()) -> Verification:
    """Checks an exported chain from its beginning; streaming.

    Args:
        lines: Of the file, with or without their ends.
        checkpoints: That the chain must reach and fit. Without any, a cut-off tail does not show.
    """
    return verify(_rows(lines), checkpoints)


def _rows(lines: Iterable[bytes]) -> Iterator[Sequence[Any]]:
    for line in lines:
        # A row of no columns is what `verify` calls the first bad event.
        yield _row(line.removesuffix(b"\n")) or ()


def _row(line: bytes) -> SealedRow | None:
    try:
        raw = json.loads(line)
        # Only one spelling is ever written.
        if not isinstance(raw, dict) or set(raw) != _KEYS or canonical_json(raw) != line:
            return None
        event = Event.from_canonical(canonical_json(raw["event"]).decode(), "", raw["source_hash"])
    except (ValueError, TypeError, RecursionError, AuditBroken):
        return None
    return SealedRow.of(raw["seq"], event, raw["hash"])
