"""From rows and core objects to messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import orjson
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from nightshift.experience.v1 import resources_pb2 as pb
from nightshift_experience.aggregation.performance import ConfigPerformance
from nightshift_experience.resources import ImportJobName, RunName
from nightshift_experience.store.import_state import ImportJob
from nightshift_experience.store.run_reads import Row
from nightshift_kit.proportions import wilson


def timestamp(instant_us: int) -> Timestamp:
    """An instant given in microseconds since 1970 UTC."""
    seconds, micros = divmod(instant_us, 1_000_000)
    return Timestamp(seconds=seconds, nanos=micros * 1000)


def run(row: Row) -> pb.Run:
    """A run out of its row of `runs`."""
    message = pb.Run(
        name=RunName(row.project, row.run_id).name,
        source=row.source,
        revision=row.revision,
        device=row.device,
        session_key=row.session_key,
        start_time=timestamp(row.start_us),
        language=row.language,
        prompt=row.prompt or "",
        transformed_prompt=row.transformed_prompt or "",
        interception_config=row.interception_config,
        output_config=row.output_config,
        outcome=row.outcome,
        production=bool(row.production),
        favorite=bool(row.favorite),
        source_path=row.source_path,
        safety_level=row.safety_level,
        create_time=timestamp(row.create_us),
        seed=row.seed,
        cost_usd=row.cost_usd,
    )
    if row.end_us is not None:
        message.end_time.CopyFrom(timestamp(row.end_us))
    if row.duration_us is not None:
        seconds, micros = divmod(row.duration_us, 1_000_000)
        message.duration.CopyFrom(Duration(seconds=seconds, nanos=micros * 1000))
    if row.regeneration_of is not None:
        message.regeneration_of = RunName(row.project, row.regeneration_of).name
    if row.profiled:
        _add_orchestration(message, row)
    if row.media_types != "[]":
        message.media_types.extend(orjson.loads(row.media_types))
    if row.models != "{}":
        message.models.update(orjson.loads(row.models))
    if row.flags != "[]":
        message.flags.extend(orjson.loads(row.flags))
    return message


def _add_orchestration(message: pb.Run, row: Row) -> None:
    message.qa_status = row.qa_status
    if row.tuned != "[]":
        for field, before, taken, why in orjson.loads(row.tuned):
            message.tuned_fields.add(field=field, original_value=before, tuned_value=taken, explanation=why)
    if row.rounds is not None:
        message.rounds = row.rounds
    if row.mode or row.strategy or row.max_rounds is not None or row.max_cost_usd is not None:
        message.settings.CopyFrom(
            pb.RunSettings(
                mode=row.mode,
                strategy=row.strategy,
                max_rounds=row.max_rounds,
                max_cost_usd=row.max_cost_usd,
            )
        )


def fitting(messages: Iterable[pb.Run], size_bytes: int) -> list[pb.Run]:
    """As many of the messages, at least one, as fit into an answer of that size."""
    kept: list[pb.Run] = []
    total = 0
    for message in messages:
        # Tag and length of the field come on top.
        total += message.ByteSize() + 8
        if kept and total > size_bytes:
            break
        kept.append(message)
    return kept


def rate(count: int, total: int) -> pb.Rate:
    """A proportion with its interval."""
    lower, upper = wilson(count, total)
    return pb.Rate(count=count, total=total, value=count / total if total else 0.0, lower=lower, upper=upper)


def counts(pairs: Sequence[tuple[str, int]]) -> list[pb.Count]:
    """Counted values in their order."""
    return [pb.Count(key=key, count=count) for key, count in pairs]


def performance(item: ConfigPerformance) -> pb.ConfigPerformance:
    """Statistics of a config."""
    return pb.ConfigPerformance(
        config=item.config,
        total_runs=item.total_runs,
        production_runs=item.production_runs,
        succeeded_runs=item.succeeded_runs,
        blocked_runs=item.blocked_runs,
        failed_runs=item.failed_runs,
        incomplete_runs=item.incomplete_runs,
        favorite_rate=rate(item.favorites, item.production_runs),
        error_rate=rate(item.failed_runs, item.production_runs),
        block_rate=rate(item.blocked_runs, item.production_runs),
        regenerations=item.regenerations,
        groups=item.groups,
        avg_regenerations=item.avg_regenerations,
        top_output_configs=counts(item.output_configs),
        top_languages=counts(item.languages),
    )


def import_job(job: ImportJob) -> pb.ImportJob:
    """An import."""
    message = pb.ImportJob(
        name=ImportJobName(job.project, job.job_id).name,
        directory=job.directory,
        state=pb.ImportJobState.ValueType(int(job.state)),
        found_count=job.found_count,
        scanned_count=job.scanned_count,
        created_count=job.created_count,
        updated_count=job.updated_count,
        unchanged_count=job.unchanged_count,
        skipped_count=job.skipped_count,
        favorite_count=job.favorite_count,
        dangling_favorite_count=job.dangling_favorite_count,
        skipped_reasons=counts(sorted(job.skipped_reasons.items(), key=lambda pair: (-pair[1], pair[0]))),
        start_time=timestamp(job.start_us),
    )
    if job.end_us is not None:
        message.end_time.CopyFrom(timestamp(job.end_us))
    if job.failure_reason:
        message.failure.reason = job.failure_reason
        message.failure.message = job.failure_message
    return message
