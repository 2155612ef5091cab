"""One run out of what several sources tell about it.

An export is written by the machine that made the media, a live record by a caller that may not have waited
for the end: so imported records come before live ones, later records of a source before earlier ones, and
each field is taken from the first that knows it. A privacy block in any record withholds the texts of all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import orjson

from nightshift_experience.aggregation.chains import chain_key
from nightshift_experience.aggregation.contributions import Facts
from nightshift_experience.profiles.counting import measure
from nightshift_experience.runs import (
    DIGEST_BYTES,
    PRIVACY_WITHHELD,
    Orchestration,
    Outcome,
    RunRecord,
    run_id_ms,
)
from nightshift_experience.sources.devserver.configs import interception_config
from nightshift_experience.sources.devserver.devices import ProductionRule, session_key

# Source of an importer; every other source is a live one.
IMPORT_SOURCES = frozenset({"devserver-export"})


@dataclass(slots=True)
class StoredRecord:
    """A record with its place in the order of arrival."""

    record: RunRecord
    arrival_seq: int


@dataclass(slots=True)
class MergedRun:
    """A run as it stands in the table, but for what other rows decide (favourite, regeneration, numbers)."""

    record: RunRecord
    facts: Facts
    session_key: str


# Left out where untold: a run told again has the digest that it had before the field existed.
_UNTOLD = b',"orchestration":null}'


def encode(record: RunRecord) -> bytes:
    """JSON of a record."""
    payload = orjson.dumps(record)
    return payload.removesuffix(_UNTOLD) + b"}" if payload.endswith(_UNTOLD) else payload


def decode(payload: bytes) -> RunRecord:
    """The record that `encode` wrote."""
    return record_of(orjson.loads(payload))


def record_of(fields: dict[str, Any]) -> RunRecord:
    """The record with these fields, as JSON has them."""
    told = fields.get("orchestration")
    if told is not None:
        fields = {**fields, "orchestration": Orchestration(**told)}
    return RunRecord(**fields)


def content_digest(payload: bytes) -> bytes:
    """Digest by which a record is recognised as the same."""
    return hashlib.sha256(payload).digest()[:DIGEST_BYTES]


def withhold_texts(record: RunRecord) -> RunRecord:
    """The record without its texts and what could tell them."""
    flags = sorted({*record.flags, PRIVACY_WITHHELD})
    return replace(record, prompt=None, prompt_digest="", transformed_prompt=None, flags=flags)


def is_withheld_by_export(record: RunRecord) -> bool:
    """Whether an importer found a privacy block (a live record never knows)."""
    return record.source in IMPORT_SOURCES and PRIVACY_WITHHELD in record.flags


def merge(records: Sequence[StoredRecord]) -> RunRecord:
    """The run that `records` (at least one) tell of."""
    if len(records) == 1:
        return records[0].record
    ordered = sorted(records, key=lambda r: (r.record.source not in IMPORT_SOURCES, -r.arrival_seq))
    first = ordered[0].record
    merged = replace(first, models=dict(first.models))
    for other in (stored.record for stored in ordered[1:]):
        if merged.outcome == Outcome.INCOMPLETE:
            merged.outcome = other.outcome
        if not merged.interception_config and other.interception_config:
            merged.interception_config = other.interception_config
        for name in ("device", "language", "output_config", "config_name", "safety_level", "source_path"):
            if not getattr(merged, name):
                setattr(merged, name, getattr(other, name))
        for name in ("end_us", "duration_us", "seed", "cost_usd", "transformed_prompt"):
            if getattr(merged, name) is None:
                setattr(merged, name, getattr(other, name))
        if not merged.prompt_digest:
            merged.prompt, merged.prompt_digest = other.prompt, other.prompt_digest
        if not merged.media_types:
            merged.media_types = other.media_types
        merged.models = {**other.models, **merged.models}
        merged.orchestration = _both(merged.orchestration, other.orchestration)
    flags = {flag for stored in ordered for flag in stored.record.flags}
    if any(is_withheld_by_export(stored.record) for stored in ordered):
        return withhold_texts(replace(merged, flags=sorted(flags)))
    if merged.prompt is not None:
        # A blocked live record is withheld because it cannot say why it was blocked; the export could.
        flags.discard(PRIVACY_WITHHELD)
    merged.flags = sorted(flags)
    return merged


def _both(first: Orchestration | None, other: Orchestration | None) -> Orchestration | None:
    """What either tells; the first where both do."""
    if first is None or other is None:
        return first or other
    told = {field.name: getattr(first, field.name) for field in fields(first)}
    return Orchestration(
        **{name: getattr(other, name) if value in ("", None, []) else value for name, value in told.items()}
        | {"qa_status": first.qa_status or other.qa_status}
    )


def derive(record: RunRecord, rule: ProductionRule, known_outputs: Collection[str]) -> MergedRun:
    """What follows from a merged record: session key, production, interception config, chain."""
    key = session_key(record.device)
    config = interception_config(
        record.interception_config,
        record.config_name,
        record.output_config,
        record.config_name in known_outputs,
    )
    ms = run_id_ms(record.run_id)
    has_chain = (
        record.outcome == Outcome.SUCCEEDED and record.prompt_digest and record.seed is not None and key
    )
    production = rule.is_production(key)
    facts = Facts(
        record.run_id,
        ms if ms is not None else record.start_us // 1000,
        production,
        False,  # favorite
        int(record.outcome),
        record.language,
        config,
        record.output_config,
        record.seed,
        chain_key(key, record.prompt_digest, config, record.output_config) if has_chain else None,
        None,  # regeneration_of
        measure(
            record.orchestration,
            record.cost_usd,
            record.duration_us,
            record.models,
            is_user=production or not key,
        ),
    )
    return MergedRun(record, facts, key)
