"""Writing runs: records in, merged rows, marks and counters out, all in the caller's transaction."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson
import sqlalchemy as sa

from nightshift_experience.aggregation.chains import Member, add_chain, marks
from nightshift_experience.aggregation.contributions import (
    CounterName,
    Facts,
    add_contribution,
    add_contributions,
)
from nightshift_experience.profiles.counting import MEASURE_COLUMNS, UNMEASURED, stored_measures
from nightshift_experience.runs import RunRecord
from nightshift_experience.sources.devserver.devices import ProductionRule
from nightshift_experience.store import tables
from nightshift_experience.store.bulk import add_counts, delete_in, select_in, upsert
from nightshift_experience.store.favorite_state import favorites_among
from nightshift_experience.store.forgetting import device_digest, forgotten_devices
from nightshift_experience.store.merging import (
    MergedRun,
    StoredRecord,
    content_digest,
    decode,
    derive,
    encode,
    is_withheld_by_export,
    merge,
    withhold_texts,
)

CREATED = "created"
UPDATED = "updated"
UNCHANGED = "unchanged"
REUSED = "reused"
FORGOTTEN = "forgotten"

_FACTS = (
    "run_id",
    "order_ms",
    "production",
    "favorite",
    "outcome",
    "language",
    "interception_config",
    "output_config",
    "seed",
    "chain_key",
    "regeneration_of",
    *MEASURE_COLUMNS,
)
_MEMBER = ("run_id", "chain_key", "order_ms", "seed", "production", "interception_config", "regeneration_of")


@dataclass(slots=True)
class Incoming:
    """A record on its way in."""

    record: RunRecord
    # Digest of the content as it came.
    digest: bytes
    # Whether other content under the same (run id, source, revision) replaces what is stored: an importer
    # reads a mutable record; a caller that says two things has made a mistake.
    replaces: bool
    # JSON of `record` where it is known already.
    payload: bytes | None = None


@dataclass(frozen=True)
class WritingRules:
    """What rows depend on besides the records."""

    production: ProductionRule


def store_batch(
    connection: sa.Connection, project: str, batch: Sequence[Incoming], rules: WritingRules, now_us: int
) -> list[str]:
    """Store records; CREATED, UPDATED, UNCHANGED, or REUSED or FORGOTTEN (refused) for each.

    FORGOTTEN: its device was to be forgotten, and the run began before that. CREATED means that the run was
    not known by any record. Within a batch the records count in order.
    """
    ids = list({item.record.run_id for item in batch})
    known = _known_records(connection, project, ids)
    stored_before = list(known)
    forgotten = forgotten_devices(connection, project)
    verdicts: list[str] = []
    accepted: dict[tuple[str, str, str], Incoming] = {}
    for item in batch:
        record = item.record
        if forgotten and record.start_us <= forgotten.get(device_digest(record.device), -1):
            verdicts.append(FORGOTTEN)
            continue
        key = (record.source, record.revision)
        records = known.setdefault(record.run_id, {})
        if key not in records:
            verdicts.append(UPDATED if records else CREATED)
        elif records[key] == item.digest:
            verdicts.append(UNCHANGED)
            continue
        elif item.replaces:
            verdicts.append(UPDATED)
        else:
            verdicts.append(REUSED)
            continue
        records[key] = item.digest
        accepted[record.run_id, *key] = item
    if not accepted:
        return verdicts
    first_seq = take_change_seqs(connection, project, len(accepted))
    records_by_run: dict[str, list[StoredRecord]] = defaultdict(list)
    for seq, item in enumerate(accepted.values(), first_seq):
        records_by_run[item.record.run_id].append(StoredRecord(item.record, seq))
    shared = [run for run, records in records_by_run.items() if len(known[run]) > len(records)]
    _add_stored_records(connection, project, shared, records_by_run, accepted)
    withheld: dict[tuple[str, str, str], RunRecord] = {}
    # What was told before may be withheld for what is told now, and the other way round.
    private = {item.record.run_id for item in accepted.values() if is_withheld_by_export(item.record)}
    for run in shared:
        if any(is_withheld_by_export(stored.record) for stored in records_by_run[run]):
            private.add(run)
    for run in private:
        told = records_by_run[run]
        withheld |= _withhold(connection, project, run, told, accepted.keys())
    upsert(
        connection,
        tables.run_records,
        [
            (project, *key, item.digest, seq, _payload(item, withheld.get(key)))
            for seq, (key, item) in enumerate(accepted.items(), first_seq)
        ],
    )
    outputs = known_outputs(connection, project) if any(i.record.config_name for i in batch) or shared else ()
    merged = {run: derive(merge(rs), rules.production, outputs) for run, rs in records_by_run.items()}
    known_runs = [run for run in stored_before if run in merged]
    put_runs(connection, project, merged, now_us, first_seq, known_runs)
    return verdicts


def remerge(
    connection: sa.Connection, project: str, run_ids: Sequence[str], rules: WritingRules, now_us: int
) -> None:
    """Derive runs anew from their stored records."""
    if not run_ids:
        return
    records_by_run: dict[str, list[StoredRecord]] = defaultdict(list)
    _add_stored_records(connection, project, run_ids, records_by_run, {})
    outputs = known_outputs(connection, project)
    merged = {run: derive(merge(rs), rules.production, outputs) for run, rs in records_by_run.items()}
    first_seq = take_change_seqs(connection, project, len(merged))
    put_runs(connection, project, merged, now_us, first_seq, list(merged))


def refresh_favorites(connection: sa.Connection, project: str, run_ids: Sequence[str]) -> int:
    """Bring the favourite mark of stored runs in line with the signals; how many changed."""
    facts = load_facts(connection, project, run_ids)
    marked = favorites_among(connection, project, list(facts))
    changed = [fact for run, fact in facts.items() if fact.favorite != (run in marked)]
    if not changed:
        return 0
    seq = take_change_seqs(connection, project, len(changed))
    totals: Counter[CounterName] = Counter()
    for fact in changed:
        add_contribution(totals, fact, -1)
        add_contribution(totals, replace(fact, favorite=not fact.favorite), 1)
    statement = (
        tables.runs.update()
        .where(tables.runs.c.project == project, tables.runs.c.run_id == sa.bindparam("key"))
        .values(favorite=sa.bindparam("mark"), change_seq=sa.bindparam("seq"))
    )
    connection.execute(
        statement,
        [
            {"key": fact.run_id, "mark": not fact.favorite, "seq": number}
            for number, fact in enumerate(changed, seq)
        ],
    )
    apply_counters(connection, project, totals)
    return len(changed)


def refresh_chains(connection: sa.Connection, project: str, keys: Collection[bytes]) -> int:
    """Mark the regenerations of these chains anew; how many runs changed."""
    totals: Counter[CounterName] = Counter()
    changed: list[tuple[str, str | None]] = []
    for members in _chain_members(connection, project, keys).values():
        changed += _remark(totals, members, members)
    _store_marks(connection, project, changed)
    apply_counters(connection, project, totals)
    return len(changed)


def put_runs(
    connection: sa.Connection,
    project: str,
    merged: dict[str, MergedRun],
    now_us: int,
    first_seq: int,
    known: Sequence[str],
) -> None:
    """Insert or replace rows and move counters and chains with them; `known` are those that may be there."""
    old = load_facts(connection, project, known)
    origins = load_origins(connection, project, list(old))
    favorites = favorites_among(connection, project, list(merged))
    for run, item in merged.items():
        item.facts.favorite = run in favorites
    totals: Counter[CounterName] = Counter()
    add_contributions(totals, old.values(), -1)
    add_contributions(totals, [item.facts for item in merged.values()], 1)
    keys = {fact.chain_key for fact in old.values()} | {item.facts.chain_key for item in merged.values()}
    chains = _chain_members(connection, project, [key for key in keys if key is not None])
    after: dict[bytes, list[Member]] = {
        key: [member for member in members if member.run_id not in merged] for key, members in chains.items()
    }
    for item in merged.values():
        fact = item.facts
        if fact.chain_key is not None and fact.seed is not None:
            after.setdefault(fact.chain_key, []).append(_member_of(fact))
    others: list[tuple[str, str | None]] = []
    for key, members in after.items():
        for run, mark in _remark(totals, chains.get(key, []), members):
            if run in merged:
                merged[run].facts.regeneration_of = mark
            else:
                others.append((run, mark))
    rows = [
        _row(project, item, seq, origins[run][0] if run in origins else now_us)
        for seq, (run, item) in enumerate(merged.items(), first_seq)
    ]
    upsert(connection, tables.runs, rows)
    moves = [
        (project, seq, origins[run][1])
        for seq, (run, item) in enumerate(merged.items(), first_seq)
        if run in origins and origins[run][1] not in ("", item.session_key)
    ]
    if moves:
        upsert(connection, tables.session_moves, moves)
    _store_marks(connection, project, others)
    apply_counters(connection, project, totals)


def remove_runs(connection: sa.Connection, project: str, run_ids: Sequence[str]) -> int:
    """Drop runs with their records and signals, and take them out of the counters and chains; how many."""
    facts = load_facts(connection, project, run_ids)
    totals: Counter[CounterName] = Counter()
    add_contributions(totals, facts.values(), -1)
    keys = {fact.chain_key for fact in facts.values() if fact.chain_key is not None}
    marked: list[tuple[str, str | None]] = []
    for members in _chain_members(connection, project, keys).values():
        left = [member for member in members if member.run_id not in facts]
        marked += _remark(totals, members, left)
    for table in (tables.runs, tables.run_records, tables.feedback, tables.favorites):
        delete_in(connection, table, project, "run_id", run_ids)
    _store_marks(connection, project, marked)
    apply_counters(connection, project, totals)
    return len(facts)


def apply_counters(connection: sa.Connection, project: str, totals: Counter[CounterName]) -> None:
    """Add to the counters."""
    add_counts(
        connection,
        tables.counters,
        [(project, *name, count) for name, count in sorted(totals.items()) if count],
    )


def take_change_seqs(connection: sa.Connection, project: str, count: int) -> int:
    """Draw `count` numbers of the project's sequence; the first of them."""
    mark = "?" if connection.dialect.name == "sqlite" else "%s"
    row = connection.exec_driver_sql(
        f"INSERT INTO projects (project, change_seq, aggregated_seq, detected_seq)"  # noqa: S608 - placeholders
        f" VALUES ({mark}, {mark}, 0, 0)"
        " ON CONFLICT (project) DO UPDATE SET change_seq = projects.change_seq + excluded.change_seq"
        " RETURNING change_seq",
        (project, count),
    ).one()
    return int(row[0]) - count + 1


def known_outputs(connection: sa.Connection, project: str) -> frozenset[str]:
    """Config ids that are known to be output configs."""
    column = tables.known_outputs.c
    return frozenset(connection.execute(sa.select(column.config).where(column.project == project)).scalars())


def load_facts(connection: sa.Connection, project: str, run_ids: Sequence[str]) -> dict[str, Facts]:
    """Facts of the stored ones of these runs."""
    rows = select_in(connection, tables.runs, _FACTS, project, "run_id", run_ids)
    return {row[0]: facts_of(row) for row in rows}


def facts_of(row: Sequence[Any]) -> Facts:
    """Facts out of a row with the columns `_FACTS`."""
    run_id, order_ms, production, favorite, outcome, language, config, output, seed, key, of = row[:11]
    chain = bytes(key) if key is not None else None
    return Facts(
        run_id,
        order_ms,
        bool(production),
        bool(favorite),
        outcome,
        language,
        config,
        output,
        seed,
        chain,
        of,
        stored_measures(*row[11:]),
    )


FACTS_COLUMNS = _FACTS


def load_origins(
    connection: sa.Connection, project: str, run_ids: Sequence[str]
) -> dict[str, tuple[int, str]]:
    """When these runs were first stored (µs), and the session key that they bear now."""
    columns = ("run_id", "create_us", "session_key")
    rows = select_in(connection, tables.runs, columns, project, "run_id", run_ids)
    return {row[0]: (row[1], row[2]) for row in rows}


def _known_records(
    connection: sa.Connection, project: str, run_ids: Sequence[str]
) -> dict[str, dict[tuple[str, str], bytes]]:
    columns = ("run_id", "source", "revision", "digest")
    known: dict[str, dict[tuple[str, str], bytes]] = {}
    for run, source, revision, digest in select_in(
        connection, tables.run_records, columns, project, "run_id", run_ids
    ):
        known.setdefault(run, {})[source, revision] = bytes(digest)
    return known


def _add_stored_records(
    connection: sa.Connection,
    project: str,
    run_ids: Sequence[str],
    records_by_run: dict[str, list[StoredRecord]],
    accepted: dict[tuple[str, str, str], Incoming],
) -> None:
    columns = ("run_id", "source", "revision", "arrival_seq", "payload")
    for run, source, revision, seq, payload in select_in(
        connection, tables.run_records, columns, project, "run_id", run_ids
    ):
        if (run, source, revision) not in accepted:
            records_by_run[run].append(StoredRecord(decode(bytes(payload)), seq))


def _withhold(
    connection: sa.Connection,
    project: str,
    run: str,
    records: list[StoredRecord],
    incoming: Collection[tuple[str, str, str]],
) -> dict[tuple[str, str, str], RunRecord]:
    """Take the texts out of everything that was ever told about a run that turns out to be private.

    Returns those of the incoming records that had texts, without them; the stored ones are rewritten.
    """
    column = tables.run_records.c
    withheld: dict[tuple[str, str, str], RunRecord] = {}
    for stored in records:
        record = stored.record
        if record.prompt is None and record.transformed_prompt is None:
            continue
        stored.record = withhold_texts(record)
        key = (run, record.source, record.revision)
        if key in incoming:
            withheld[key] = stored.record
            continue
        connection.execute(
            tables.run_records.update()
            .where(column.project == project, column.run_id == run)
            .where(column.source == record.source, column.revision == record.revision)
            .values(payload=encode(stored.record))
        )
    return withheld


def _payload(item: Incoming, withheld: RunRecord | None) -> bytes:
    if withheld is not None:
        return encode(withheld)
    return item.payload if item.payload is not None else encode(item.record)


def _chain_members(
    connection: sa.Connection, project: str, keys: Collection[bytes]
) -> dict[bytes, list[Member]]:
    chains: dict[bytes, list[Member]] = {bytes(key): [] for key in keys}
    for run, key, order, seed, production, config, of in select_in(
        connection, tables.runs, _MEMBER, project, "chain_key", list(keys)
    ):
        chains[bytes(key)].append(Member(run, order, seed, bool(production), config, of))
    return chains


def _member_of(fact: Facts) -> Member:
    seed = fact.seed if fact.seed is not None else 0
    return Member(
        fact.run_id, fact.order_ms, seed, fact.production, fact.interception_config, fact.regeneration_of
    )


def _remark(
    totals: Counter[CounterName], before: Iterable[Member], after: list[Member]
) -> list[tuple[str, str | None]]:
    """Count a chain out as it was and in as it is; the marks that changed."""
    add_chain(totals, before, -1)
    new = marks(after)
    changed = []
    for member in after:
        if member.regeneration_of != new[member.run_id]:
            member.regeneration_of = new[member.run_id]
            changed.append((member.run_id, member.regeneration_of))
    add_chain(totals, after, 1)
    return changed


def _store_marks(connection: sa.Connection, project: str, changed: Sequence[tuple[str, str | None]]) -> None:
    if not changed:
        return
    statement = (
        tables.runs.update()
        .where(tables.runs.c.project == project, tables.runs.c.run_id == sa.bindparam("key"))
        .values(regeneration_of=sa.bindparam("mark"))
    )
    connection.execute(statement, [{"key": run, "mark": mark} for run, mark in changed])


def _row(project: str, item: MergedRun, seq: int, create_us: int) -> tuple[Any, ...]:
    record, facts = item.record, item.facts
    measures = facts.measures or UNMEASURED
    return (
        project,
        record.run_id,
        seq,
        facts.order_ms,
        record.start_us,
        record.end_us,
        record.duration_us,
        record.device,
        item.session_key,
        facts.production,
        facts.favorite,
        facts.outcome,
        record.language,
        facts.interception_config,
        record.output_config,
        record.config_name,
        record.seed,
        facts.chain_key,
        facts.regeneration_of,
        record.prompt,
        bytes.fromhex(record.prompt_digest) if record.prompt_digest else None,
        record.transformed_prompt,
        record.cost_usd,
        _json(record.media_types) if record.media_types else "[]",
        _json(record.models) if record.models else "{}",
        _json(record.flags) if record.flags else "[]",
        record.safety_level,
        record.source,
        record.revision,
        record.source_path,
        create_us,
        measures.mode,
        measures.strategy,
        measures.max_rounds,
        record.orchestration.max_cost_usd if record.orchestration is not None else None,
        measures.rounds,
        measures.qa_status,
        measures.state,
        _json_tuned(record),
    )


def _json_tuned(record: RunRecord) -> str:
    told = record.orchestration
    return orjson.dumps(told.tuned).decode() if told is not None and told.tuned else "[]"


def _json(value: list[str] | dict[str, str]) -> str:
    return orjson.dumps(value).decode()


__all__ = [
    "CREATED",
    "REUSED",
    "UNCHANGED",
    "UPDATED",
    "Incoming",
    "WritingRules",
    "content_digest",
    "store_batch",
]
