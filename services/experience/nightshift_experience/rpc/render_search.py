"""From what search and detection found to messages."""

from __future__ import annotations

from collections.abc import Mapping

from nightshift.experience.v1 import experience_service_pb2 as pb
from nightshift.experience.v1 import resources_pb2 as resources
from nightshift_experience.resources import OpportunityName
from nightshift_experience.rpc import render
from nightshift_experience.search import SearchResult
from nightshift_experience.store.run_reads import Row
from nightshift_experience.store.search_tables import StoredOpportunity

# Well below the 4 MiB of a message: gigantic prompts shorten the answer.
_ANSWER_BYTES = 3 * 1024 * 1024


def hits(result: SearchResult, rows: Mapping[str, Row]) -> pb.SearchRunsResponse:
    """The answer; a run that has gone meanwhile is left out."""
    known = [(run_id, score) for run_id, score in result.hits if run_id in rows]
    runs = render.fitting((render.run(rows[run_id]) for run_id, _ in known), _ANSWER_BYTES)
    return pb.SearchRunsResponse(
        hits=[pb.SearchHit(run=run, score=score) for run, (_, score) in zip(runs, known, strict=False)],
        pending_count=result.pending_count,
    )


def opportunity(project: str, item: StoredOpportunity) -> resources.Opportunity:
    """One opportunity."""
    evidence = item.payload
    return resources.Opportunity(
        name=OpportunityName(project, item.opportunity_id).name,
        kind=resources.OpportunityKind.ValueType(item.kind),
        label=evidence["label"],
        score=item.score,
        runs=evidence["runs"],
        favorite_rate=render.rate(evidence["favorites"], evidence["runs"]),
        keywords=evidence["keywords"],
        example_prompts=evidence["example_prompts"],
        languages=[
            resources.Count(key=language, count=count) for language, count in evidence["languages"].items()
        ],
        nearest_configs=evidence["nearest_configs"],
        best_fit=evidence["best_fit"],
        explanation=evidence["explanation"],
        create_time=render.timestamp(item.create_us),
    )
