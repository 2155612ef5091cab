"""Sessions: cut as the platform's page says, understood, kept in step with the runs, told in words."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import grpc
import pytest
import sqlalchemy as sa
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nightshift.experience.v1 import experience_service_pb2 as pb
from nightshift.experience.v1 import sessions_pb2
from nightshift.experience.v1.experience_service_pb2_grpc import ExperienceServiceStub
from nightshift_experience.runs import Outcome, RunRecord, prompt_digest
from nightshift_experience.sessions.cutting import SessionRun, cut
from nightshift_experience.sessions.first_person import speaks_of_itself
from nightshift_experience.sessions.modes import EngagementMode, distribution
from nightshift_experience.sessions.service import SessionService
from nightshift_experience.sessions.signals import Signals, measure
from nightshift_experience.sources.devserver.devices import ProductionRule
from nightshift_experience.store import session_tables
from nightshift_experience.store.merging import content_digest, encode
from nightshift_experience.store.run_writes import Incoming, WritingRules, store_batch
from nightshift_kit.clock import SystemClock
from nightshift_kit.grants import Effect, FenceGate, Tier
from nightshift_kit.ids import new_id
from nightshift_kit.rpc.channels import decode_error
from nightshift_kit.storage import Database
from tests.experience.experience_support import PARENT, Experience, experience, simulate
from tests.experience.workshops import confusion, macro_f1, simulate_sessions

BROWSER = "11111111-2222-4333-8444-555555555555"
MINUTE_MS = 60_000
# 2026-02-02 23:40 UTC.
EVENING_MS = 1_770_075_600_000


def run_at(minute: float, key: str = f"{BROWSER}_2026-02-02", **fields: Any) -> SessionRun:
    at_ms = EVENING_MS + round(minute * MINUTE_MS)
    made: dict[str, Any] = {
        "run_id": f"run_{at_ms}_000000",
        "key": key,
        "order_ms": at_ms,
        "start_us": at_ms * 1000,
        "outcome": Outcome.SUCCEEDED,
        "favorite": False,
        "language": "en",
        "interception_config": "a",
        "output_config": "o",
        "seed": round(minute * 10),
        "repeats": False,
        "prompt": f"prompt {minute}",
        "prompt_digest": prompt_digest(f"prompt {minute}"),
    }
    return SessionRun(**(made | fields))


def minutes(found: Sequence[Any]) -> list[list[float]]:
    return [[(run.order_ms - EVENING_MS) / MINUTE_MS for run in one.runs] for one in found]


def test_a_pause_cuts_midnight_and_a_new_name_do_not() -> None:
    next_day = f"{BROWSER}_2026-02-03"
    runs = [run_at(0), run_at(10), run_at(25, next_day), run_at(55, next_day), run_at(85.1, next_day)]
    assert minutes(cut(reversed(runs), 1800)) == [[0, 10, 25, 55], [85.1]]
    assert minutes(cut(runs, 600)) == [[0, 10], [25], [55], [85.1]]


def test_each_browser_has_its_own_and_unknown_devices_have_none() -> None:
    runs = [run_at(0), run_at(1, "other"), run_at(2), run_at(3, "")]
    assert sorted(minutes(cut(runs, 1800))) == [[0, 2], [1]]


def test_a_sessions_id_tells_nothing_of_the_device_and_follows_its_first_run() -> None:
    (found,) = cut([run_at(0), run_at(1)], 1800)
    (longer,) = cut([run_at(0), run_at(1), run_at(2)], 1800)
    assert found.id == longer.id
    assert BROWSER[:8] not in found.id
    assert found.id.endswith(str(EVENING_MS))


@pytest.mark.parametrize(
    ("text", "language", "told"),
    [
        ("me and a boat", "en", True),
        ("a boat I've built", "en", True),
        ("a meadow", "en", False),
        ("ein Boot und mein Hut", "de", True),
        ("ein einsames Boot", "de", False),
        ("j\u2019ai un bateau", "fr", True),
        ("un jardin", "fr", False),
        ("mi barco", "es", True),
        ("benim teknem", "tr", True),
        ("мій човен", "uk", True),
        ("моята лодка", "bg", True),
        ("قارب في البحر", "ar", False),
        ("أنا والقارب", "ar", True),
        ("אני וסירה", "he", True),
        ("나는 배", "ko", True),
        ("me and a boat", "", True),
    ],
)
def test_the_first_person_is_heard_in_every_language_of_the_platform(
    text: str, language: str, told: bool
) -> None:
    assert speaks_of_itself(text, language) is told


def test_what_is_measured_of_a_session() -> None:
    again = {"prompt": "me by the sea", "prompt_digest": prompt_digest("me by the sea")}
    runs = [
        run_at(0, **again, seed=1),
        run_at(1, **again, seed=2, repeats=True, favorite=True),
        run_at(2, **again, seed=2),
        run_at(5, prompt="a far longer prompt about the sea", interception_config="b", language="en"),
        run_at(6, prompt=None, prompt_digest="", outcome=Outcome.BLOCKED, interception_config=""),
    ]
    found = measure(runs)
    assert (found.runs, found.distinct_prompts, found.configs) == (5, 2, 2)
    assert (found.repeated, found.same_seed, found.favorites, found.blocked) == (0.2, 0.2, 0.2, 0.2)
    # a a a b: one of three steps.
    assert found.config_changes == pytest.approx(1 / 3)
    assert found.median_gap_s == 60
    assert found.personal == 0.5
    assert 0 < found.cohesion < 1


shares = st.floats(0, 1)
signals = st.builds(
    Signals,
    runs=st.integers(1, 60),
    distinct_prompts=st.integers(0, 60),
    repeated=shares,
    same_seed=shares,
    blocked=shares,
    unfinished=shares,
    favorites=shares,
    config_changes=shares,
    configs=st.integers(0, 20),
    median_gap_s=st.floats(0, 1800),
    cohesion=shares,
    personal=shares,
    growth=st.floats(-1, 1),
)


@given(signals)
def test_every_session_has_a_distribution_with_evidence(told: Signals) -> None:
    found = distribution(told)
    assert {one.mode for one in found} == set(EngagementMode)
    assert sum(one.probability for one in found) == pytest.approx(1)
    assert [one.probability for one in found] == sorted((one.probability for one in found), reverse=True)
    for one in found:
        assert sum(evidence.weight for evidence in one.evidence) == pytest.approx(1)
        assert all(0 <= evidence.strength <= 1 and evidence.text for evidence in one.evidence)


@given(signals)
def test_a_short_session_is_less_sure(told: Signals) -> None:
    short, long = (distribution(replace(told, runs=count, distinct_prompts=0)) for count in (1, 50))
    assert short[0].probability <= long[0].probability + 1e-9


def test_modes_are_found_on_workshops_that_nothing_was_tuned_on() -> None:
    """The published figure, with the whole table, is bench_sessions' on seeds 31 to 36."""
    counted = confusion(simulate_sessions(41, 700)) + confusion(simulate_sessions(42, 700))
    assert sum(counted.values()) > 90
    assert macro_f1(counted) >= 0.80


# Kept in step with the runs, whatever comes when.

RULES = WritingRules(ProductionRule())
KEYS = [f"{BROWSER}_2026-02-02", f"{BROWSER}_2026-02-03", f"{BROWSER}_2026-02-02_cmp1", "dev_0123456789ab"]

stored = st.builds(
    lambda minute, device, outcome, config, seed: RunRecord(
        run_id=f"run_{EVENING_MS + minute * MINUTE_MS}_000000",
        source="devserver-export",
        start_us=(EVENING_MS + minute * MINUTE_MS) * 1000,
        outcome=outcome,
        device=device,
        language="en",
        prompt=f"prompt {minute % 3}",
        prompt_digest=prompt_digest(f"prompt {minute % 3}"),
        interception_config=config,
        seed=seed,
    ),
    minute=st.sampled_from(range(0, 150, 12)),
    device=st.sampled_from(KEYS),
    outcome=st.sampled_from([1, 1, 2, 4]),
    config=st.sampled_from(["alpha", "beta"]),
    seed=st.sampled_from([1, 2]),
)


@pytest.fixture(scope="module")
def databases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Database, Database]]:
    folder = tmp_path_factory.mktemp("sessions")
    with ExitStack() as stack:
        pair = [
            stack.enter_context(
                Database(
                    f"sqlite:///{folder}/{name}.db", migrations="nightshift_experience", name="experience"
                )
            )
            for name in ("often", "once")
        ]
        for db in pair:
            db.migrate()
        yield pair[0], pair[1]


def service_over(db: Database) -> SessionService:
    return SessionService(db, SystemClock(), gap_s=1800, zone=ZoneInfo("Europe/Berlin"))


def effect_over(db: Database) -> Effect:
    gate = FenceGate(db, SystemClock())
    asyncio.run(gate.raise_to(1))
    return Effect.for_tests(gate=gate, single_use=False, tier=Tier.AUTO, fence=1)


def everything(db: Database, project: str) -> tuple[Any, Any]:
    def read(connection: sa.Connection) -> tuple[Any, Any]:
        table, days = session_tables.sessions, session_tables.days
        kept = connection.execute(
            sa.select(*(column for column in table.c if column.name != "project"))
            .where(table.c.project == project)
            .order_by(table.c.session_id)
        ).all()
        told = connection.execute(
            sa.select(days.c.day, days.c.stale, days.c.payload)
            .where(days.c.project == project)
            .order_by(days.c.day)
        ).all()
        return [tuple(row) for row in kept], [tuple(row) for row in told]

    return db.read_sync(read)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.lists(stored, min_size=1, max_size=6), min_size=1, max_size=5))
def test_passes_between_arrivals_and_one_pass_at_the_end_agree(
    databases: tuple[Database, Database], batches: list[list[RunRecord]]
) -> None:
    often, once = databases
    project = new_id()
    for now, batch in enumerate(batches):
        incoming = [Incoming(record, content_digest(encode(record)), replaces=True) for record in batch]
        for db in databases:
            db.write_sync(store_batch, project, [replace_record(one) for one in incoming], RULES, now)
        asyncio.run(service_over(often).summarize(effect_over(often), project))
    asyncio.run(service_over(once).summarize(effect_over(once), project))
    assert asyncio.run(service_over(often).waiting(project))[0] == 0
    assert everything(often, project) == everything(once, project)


def replace_record(incoming: Incoming) -> Incoming:
    return replace(incoming, record=replace(incoming.record))


# Over the wire.


async def summarize(service: Experience) -> sessions_pb2.SummarizeSessionsResponse:
    answer: sessions_pb2.SummarizeSessionsResponse = await service.serving.act(
        ExperienceServiceStub,
        "SummarizeSessions",
        sessions_pb2.SummarizeSessionsRequest(parent=PARENT),
        skill="summarize_sessions",
        tier=Tier.AUTO,
        timeout_s=60,
    )
    return answer


async def listed(service: Experience, **fields: Any) -> list[sessions_pb2.Session]:
    found: list[sessions_pb2.Session] = []
    token = ""
    while True:
        request = sessions_pb2.ListSessionsRequest(parent=PARENT, page_size=7, page_token=token, **fields)
        answer = await service.stub.ListSessions(request, timeout=10)
        found += answer.sessions
        token = answer.next_page_token
        if not token:
            return found


async def state(service: Experience) -> pb.ExperienceState:
    answer: pb.ExperienceState = await service.stub.GetExperienceState(
        pb.GetExperienceStateRequest(parent=PARENT), timeout=10
    )
    return answer


async def test_an_imported_workshop_is_understood(tmp_path: Path) -> None:
    truth = simulate(tmp_path / "workshop", "--runs", "600", "--seed", "7", "--layout", "flat-fast")
    async with experience(tmp_path / "home") as service:
        await service.import_all(tmp_path / "workshop")
        assert (await state(service)).pending_session_count > 0
        done = await summarize(service)
        assert (await state(service)).pending_session_count == 0
        assert (await state(service)).HasField("summarize_time")
        found = await listed(service)
        assert done.session_count == len(found)
        assert [one.start_time.ToNanoseconds() for one in found] == sorted(
            (one.start_time.ToNanoseconds() for one in found), reverse=True
        )
        # Every production run is in one session, and its keys are those of one planted session.
        assert sum(one.run_count for one in found) == truth["totals"]["production_runs"]
        planted = {key: session["session_id"] for session in truth["sessions"] for key in session["keys"]}
        for one in found:
            assert len({planted[key] for key in one.session_keys if key in planted}) <= 1
        assert (
            await service.stub.GetSession(sessions_pb2.GetSessionRequest(name=found[0].name), timeout=5)
            == (found[0])
        )
        exploring = await listed(service, mode=sessions_pb2.ENGAGEMENT_MODE_EXPLORATION)
        assert 0 < len(exploring) < len(found)
        assert {one.modes[0].mode for one in exploring} == {sessions_pb2.ENGAGEMENT_MODE_EXPLORATION}
        later = await listed(service, start_time=found[3].start_time)
        assert later == found[:4]
        # Days sum up to the sessions.
        days = (
            await service.stub.ListDailySummaries(
                sessions_pb2.ListDailySummariesRequest(parent=PARENT), timeout=5
            )
        ).daily_summaries
        assert sum(day.session_count for day in days) == len(found)
        assert sum(day.run_count for day in days) == sum(one.run_count for one in found)
        assert all(str(day.session_count) in day.text for day in days)
        assert sum(mode.sessions for mode in days[0].modes) == pytest.approx(days[0].session_count, abs=0.1)
        # A second pass finds nothing to do and changes nothing.
        again = await summarize(service)
        assert (again.run_count, again.session_count, again.day_count) == (0, 0, 0)
        assert await listed(service) == found
        # None of the users' words is kept.
        kept = json.dumps(everything(service.db, "workshop"), ensure_ascii=False, default=str)
        for run in truth["runs"]:
            if run["prompt"]:
                assert run["prompt"][:40] not in kept
        for name in truth["canary_names"]:
            assert name not in kept


@pytest.mark.parametrize(
    ("method", "request_", "code", "reason"),
    [
        (
            "GetSession",
            sessions_pb2.GetSessionRequest(name=f"{PARENT}/sessions/none"),
            "NOT_FOUND",
            "SESSION_UNKNOWN",
        ),
        (
            "GetSession",
            sessions_pb2.GetSessionRequest(name="sessions/none"),
            "INVALID_ARGUMENT",
            "ID_INVALID",
        ),
        ("ListSessions", sessions_pb2.ListSessionsRequest(parent="x"), "INVALID_ARGUMENT", "ID_INVALID"),
        (
            "ListSessions",
            sessions_pb2.ListSessionsRequest(parent=PARENT, page_size=-1),
            "INVALID_ARGUMENT",
            "PAGE_SIZE_INVALID",
        ),
        (
            "ListSessions",
            sessions_pb2.ListSessionsRequest(parent=PARENT, page_token="x"),
            "INVALID_ARGUMENT",
            "PAGE_TOKEN_INVALID",
        ),
        (
            "ListSessions",
            sessions_pb2.ListSessionsRequest(
                parent=PARENT, start_time=Timestamp(seconds=9), end_time=Timestamp(seconds=8)
            ),
            "INVALID_ARGUMENT",
            "TIME_ORDER",
        ),
        (
            "ListSessions",
            sessions_pb2.ListSessionsRequest(parent=PARENT, mode=99),  # type: ignore[arg-type]
            "INVALID_ARGUMENT",
            "ENUM_UNKNOWN",
        ),
        (
            "ListDailySummaries",
            sessions_pb2.ListDailySummariesRequest(parent=PARENT, page_token="x"),
            "INVALID_ARGUMENT",
            "PAGE_TOKEN_INVALID",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_bad_requests_have_their_reason(
    quiet: Experience, method: str, request_: Any, code: str, reason: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await getattr(quiet.stub, method)(request_, timeout=5)
    error = decode_error(caught.value)
    assert (error.code.name, error.reason) == (code, reason)


@pytest.fixture
async def quiet(tmp_path: Path) -> Any:
    async with experience(tmp_path / "home") as service:
        yield service


def test_counts_of_outcomes_are_the_platforms() -> None:
    """The proto's modes and the core's have the same numbers."""
    told = {
        name.removeprefix("ENGAGEMENT_MODE_"): number
        for name, number in sessions_pb2.EngagementMode.items()
        if number
    }
    assert told == {mode.name: mode.value for mode in EngagementMode}
    assert Counter(told.values()) == Counter(range(1, 8))
