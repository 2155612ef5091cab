"""Search, embedding and opportunities over the wire, with real grants and a real Stop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from nightshift.experience.v1 import experience_service_pb2 as pb
from nightshift.experience.v1 import resources_pb2 as resources
from nightshift.experience.v1.experience_service_pb2_grpc import ExperienceServiceStub
from nightshift_experience.embedding import EmbeddingProcess
from nightshift_experience.opportunities import OpportunityService
from nightshift_kit.grants import Tier
from nightshift_kit.rpc.statuses import decode_error
from tests.experience.experience_support import PARENT, PLATFORM, Experience, experience, simulate

BROWSER = "11111111-2222-4333-8444-555555555555_2026-02-02"
MS = 1_770_000_000_000


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Experience]:
    async with experience(tmp_path / "home") as running:
        yield running


async def record(service: Experience, prompts: list[str], **fields: Any) -> None:
    runs = [
        resources.Run(
            name=f"{PARENT}/runs/run_{MS + number * 1000}_{number:06x}",
            outcome=resources.RUN_OUTCOME_SUCCEEDED,
            prompt=prompt,
            language="en",
            **({"device": BROWSER} | fields),
        )
        for number, prompt in enumerate(prompts)
    ]

    async def batches() -> AsyncIterator[pb.RecordRunsRequest]:
        yield pb.RecordRunsRequest(parent=PARENT, runs=runs)

    answer = await service.stub.RecordRuns(batches(), timeout=30)
    assert not answer.rejected


async def embed(service: Experience, limit: int = 0, **claims: Any) -> Any:
    return await service.serving.act(
        ExperienceServiceStub,
        "EmbedPending",
        pb.EmbedPendingRequest(parent=PARENT, limit=limit),
        skill="build_embeddings",
        tier=Tier.AUTO,
        timeout_s=120,
        **claims,
    )


async def detect(service: Experience, **claims: Any) -> Any:
    return await service.serving.act(
        ExperienceServiceStub,
        "DetectOpportunities",
        pb.DetectOpportunitiesRequest(parent=PARENT),
        skill="detect_opportunities",
        tier=Tier.AUTO,
        timeout_s=120,
        **claims,
    )


async def find(service: Experience, query: str, **fields: Any) -> Any:
    return await service.stub.SearchRuns(
        pb.SearchRunsRequest(parent=PARENT, query=query, **fields), timeout=60
    )


async def refusal(call: Any) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code().name, decode_error(caught.value).reason


async def test_embed_and_search(service: Experience) -> None:
    await record(service, ["a boy repairs a kite", "the moon as a cheese", "traffic at dawn"])
    state = await service.stub.GetExperienceState(pb.GetExperienceStateRequest(parent=PARENT), timeout=10)
    assert (state.embedded_count, state.pending_embedding_count) == (0, 3)
    done = await embed(service, limit=2)
    assert (done.embedded_count, done.remaining_count) == (2, 1)
    assert (await find(service, "kite", mode=pb.SEARCH_MODE_TEXT)).pending_count == 1
    assert (await embed(service)).remaining_count == 0
    state = await service.stub.GetExperienceState(pb.GetExperienceStateRequest(parent=PARENT), timeout=10)
    assert (state.embedded_count, state.pending_embedding_count) == (3, 0)
    for mode in (pb.SEARCH_MODE_UNSPECIFIED, pb.SEARCH_MODE_SEMANTIC, pb.SEARCH_MODE_HYBRID):
        answer = await find(service, "a child mends a flying toy", mode=mode)
        assert answer.hits[0].run.prompt == "a boy repairs a kite"
        assert answer.hits[0].score > answer.hits[-1].score
    assert len((await find(service, "moon", page_size=1)).hits) == 1
    assert not (await find(service, "moon", language="de")).hits


async def test_bad_input(service: Experience) -> None:
    assert await refusal(find(service, "  ")) == ("INVALID_ARGUMENT", "QUERY_EMPTY")
    assert await refusal(find(service, "x" * 8193)) == ("INVALID_ARGUMENT", "QUERY_TOO_LARGE")
    assert await refusal(find(service, "x", page_size=-1)) == ("INVALID_ARGUMENT", "PAGE_SIZE_INVALID")
    assert await refusal(find(service, "x", mode=77)) == ("INVALID_ARGUMENT", "ENUM_UNKNOWN")
    assert await refusal(embed(service, limit=-1)) == ("INVALID_ARGUMENT", "PAGE_SIZE_INVALID")
    name = f"{PARENT}/opportunities/theme-none"
    call = service.stub.GetOpportunity(pb.GetOpportunityRequest(name=name), timeout=5)
    assert await refusal(call) == ("NOT_FOUND", "OPPORTUNITY_UNKNOWN")
    call = service.stub.GetOpportunity(pb.GetOpportunityRequest(name="nonsense"), timeout=5)
    assert await refusal(call) == ("INVALID_ARGUMENT", "ID_INVALID")
    request = pb.ListOpportunitiesRequest(parent=PARENT, page_token="forged")
    call = service.stub.ListOpportunities(request, timeout=5)
    assert await refusal(call) == ("INVALID_ARGUMENT", "PAGE_TOKEN_INVALID")


async def test_acting_needs_its_grant(service: Experience) -> None:
    for method, request in (
        ("EmbedPending", pb.EmbedPendingRequest(parent=PARENT)),
        ("DetectOpportunities", pb.DetectOpportunitiesRequest(parent=PARENT)),
    ):
        call = getattr(service.stub, method)(request, timeout=5)
        assert await refusal(call) == ("UNAUTHENTICATED", "GRANT_MISSING")
    await service.serving.hub.gate.raise_to(5)  # type: ignore[union-attr]
    assert await refusal(embed(service, fence=4)) == ("FAILED_PRECONDITION", "PREEMPTED")
    assert await refusal(detect(service, fence=4)) == ("FAILED_PRECONDITION", "PREEMPTED")


async def test_a_stop_ends_embedding_at_once(service: Experience) -> None:
    await record(service, [f"a long tale, chapter {number}, with many words in it" for number in range(900)])
    work = asyncio.create_task(embed(service, limit=900))
    while not service.serving.hub or not service.serving.hub.works():
        await asyncio.sleep(0.01)
    pid = None
    while pid is None:
        await asyncio.sleep(0.05)
        pid = embedder_of(service).pid
    async for event in service.serving.hub.stop(9, cause="user"):
        last = event
    assert last.running_count == 0
    assert await refusal(work) == ("FAILED_PRECONDITION", "PREEMPTED")
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists() or embedder_of(service).pid is None:
            break
        await asyncio.sleep(0.01)
    assert embedder_of(service).pid is None
    service.serving.fence = 9
    while (await embed(service, limit=900, fence=9)).remaining_count:
        pass
    assert len((await find(service, "tale")).hits) == 10


def embedder_of(service: Experience) -> EmbeddingProcess:
    servicer: Any = service.serving.services[0][1]
    embedder: EmbeddingProcess = servicer.search._embedder
    return embedder


@pytest.mark.slow
async def test_opportunities_of_an_imported_workshop(service: Experience, tmp_path: Path) -> None:
    truth = simulate(tmp_path / "shop", "--runs", "5000", "--seed", "34", "--layout", "flat-fast")
    job = await service.import_all(tmp_path / "shop", PLATFORM)
    assert job.state == resources.IMPORT_JOB_STATE_SUCCEEDED
    servicer: Any = service.serving.services[0][1]
    opportunities: OpportunityService = servicer.opportunities
    opportunities._platform_root = PLATFORM
    found = (await detect(service)).opportunities
    weak = {item.label for item in found if item.kind == resources.OPPORTUNITY_KIND_WEAK_CONFIG}
    planted = {item["config"] for item in truth["opportunities"] if item["type"] == "low_favorite_config"}
    assert weak == planted
    theme_of = {" ".join(run["prompt"].split()): run["theme"] for run in truth["runs"] if run["prompt"]}
    uncovered = {item["theme"] for item in truth["opportunities"] if item["type"] == "uncovered_theme"}
    themes = []
    for item in found:
        if item.kind == resources.OPPORTUNITY_KIND_UNCOVERED_THEME:
            votes = [theme_of.get(text) for text in item.example_prompts]
            themes.append(max(set(votes), key=votes.count))
    assert len(set(themes) & uncovered) >= 2, themes
    assert len([theme for theme in themes if theme not in uncovered]) <= 1, themes
    shown = " ".join(text for item in found for text in (*item.example_prompts, *item.keywords, item.label))
    assert not any(name in shown for name in (*truth["canary_names"], *truth["canary_addresses"]))
    # Listed, got, paged; found again under the same names and times.
    first = await service.stub.ListOpportunities(
        pb.ListOpportunitiesRequest(parent=PARENT, page_size=2), timeout=10
    )
    rest = await service.stub.ListOpportunities(
        pb.ListOpportunitiesRequest(parent=PARENT, page_token=first.next_page_token), timeout=10
    )
    assert [*first.opportunities, *rest.opportunities] == list(found)
    one = await service.stub.GetOpportunity(pb.GetOpportunityRequest(name=found[0].name), timeout=10)
    assert one == found[0]
    assert one.explanation
    assert one.favorite_rate.total == one.runs
    assert list((await detect(service)).opportunities) == list(found)
    state = await service.stub.GetExperienceState(pb.GetExperienceStateRequest(parent=PARENT), timeout=10)
    assert state.HasField("detect_time")
    assert state.pending_detection_count == 0
