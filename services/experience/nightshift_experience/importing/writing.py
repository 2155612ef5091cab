"""What an import writes: each batch of the reading process in one transaction, with the job's progress."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from nightshift_experience.errors import DeviceForgotten
from nightshift_experience.store.import_state import (
    ImportJob,
    PathState,
    add_known_outputs,
    apply_known_outputs,
    forget_paths,
    put_job,
    put_paths,
)
from nightshift_experience.store.merging import record_of
from nightshift_experience.store.run_writes import (
    CREATED,
    FORGOTTEN,
    UPDATED,
    Incoming,
    WritingRules,
    store_batch,
)
from nightshift_experience.store.signals import apply_favorite_list


@dataclass(frozen=True)
class ImportRules:
    """What writing depends on besides what was read."""

    writing: WritingRules
    record_source: str
    # Ids that the platform lists as interceptions are never taken for outputs.
    interceptions: frozenset[str]


def with_progress(job: ImportJob, message: dict[str, Any], *, forgotten: int = 0) -> ImportJob:
    """The job after what the reading process told; the counts of the message are totals.

    `forgotten` are further runs of forgotten devices, which the reading process knows nothing of.
    """
    skipped = Counter(message["skipped"])
    if forgotten := forgotten + job.skipped_reasons.get(DeviceForgotten.reason, 0):
        skipped[DeviceForgotten.reason] = forgotten
    return replace(
        job,
        seq=job.seq + 1,
        found_count=message["found"],
        scanned_count=message["scanned"],
        unchanged_count=message["unchanged"],
        skipped_count=skipped.total(),
        skipped_reasons=dict(sorted(skipped.items())),
    )


def write_batch(
    connection: sa.Connection, job: ImportJob, message: dict[str, Any], rules: ImportRules, now_us: int
) -> ImportJob:
    """Store a batch; the job after it."""
    changed = message.get("changed", [])
    incoming = [
        Incoming(record_of(item["record"]), bytes.fromhex(item["content_digest"]), replaces=True)
        for item in changed
        if item["record"] is not None
    ]
    outputs = {item.record.output_config for item in incoming} - rules.interceptions - {""}
    add_known_outputs(connection, job.project, outputs)
    told = store_batch(connection, job.project, incoming, rules.writing, now_us)
    verdicts = Counter(told)
    refused = {
        item.record.run_id for item, verdict in zip(incoming, told, strict=True) if verdict == FORGOTTEN
    }
    # The path of a forgotten device's run names the device: it is not kept, and read again each time.
    kept = [item for item in changed if item["record"] is None or item["record"]["run_id"] not in refused]
    put_paths(connection, job.project, rules.record_source, _path_states(kept))
    after = with_progress(job, message, forgotten=len(refused))
    after.created_count += verdicts[CREATED]
    after.updated_count += verdicts[UPDATED]
    put_job(connection, after)
    return after


def write_favorites(
    connection: sa.Connection, job: ImportJob, added_us: dict[str, int], rules: ImportRules, now_us: int
) -> ImportJob:
    """Follow the list of favourites; the job after it."""
    stored, dangling = apply_favorite_list(connection, job.project, rules.record_source, added_us, now_us)
    after = replace(job, seq=job.seq + 1, favorite_count=stored, dangling_favorite_count=dangling)
    put_job(connection, after)
    return after


def write_end(
    connection: sa.Connection, job: ImportJob, gone: Sequence[str], rules: ImportRules, now_us: int
) -> None:
    """Settle what only the whole tree tells: folders that are gone, and which names are output configs."""
    forget_paths(connection, job.project, rules.record_source, gone)
    apply_known_outputs(connection, job.project, rules.writing, now_us)


def _path_states(changed: Sequence[dict[str, Any]]) -> list[PathState]:
    return [
        PathState(
            path=item["path"],
            run_id=item["run_id"],
            signature=bytes.fromhex(item["signature"]),
            names=item["names"],
            content_digest=bytes.fromhex(item["content_digest"]),
            skip_reason=item["skip_reason"],
            skip_detail=item["skip_detail"],
        )
        for item in changed
    ]
