"""Profiles over the wire: kept as runs arrive, advice that names what it rests on, strict questions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from threading import Event
from typing import Any

import grpc
import pytest
import pytest_asyncio
import sqlalchemy as sa
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from nightshift.experience.v1 import experience_service_pb2 as pb
from nightshift.experience.v1 import profiles_pb2
from nightshift.experience.v1 import resources_pb2 as resources
from nightshift_client.messages import run_request
from nightshift_experience.aggregation.recount import recount
from nightshift_experience.store import tables
from nightshift_kit.rpc.statuses import decode_error
from tests.experience.experience_support import PARENT, Experience, experience

MS = 1_770_000_000_000
PROFILE = f"{PARENT}/profile"


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Experience]:
    async with experience(tmp_path / "home") as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Experience]:
    async with experience(tmp_path_factory.mktemp("shared") / "home") as running:
        yield running


def run_of(number: int, **fields: Any) -> dict[str, Any]:
    """A run of an orchestrator, as a platform tells it; every third is of 2loop."""
    mode = "2loop" if number % 3 == 0 else "3loop"
    base: dict[str, Any] = {
        "run_id": f"r{number}",
        "start_time": (MS + number * 60_000) / 1000,
        "outcome": "succeeded",
        "settings": {"mode": mode, "strategy": "baseline", "max_rounds": 5, "max_cost_usd": 2.0},
        "rounds": 2,
        "qa_status": "passed" if number % 9 else "warning",
        "cost_usd": 1.2 if mode == "2loop" else 0.8,
        "duration": 300,
        "models": {"manager": "m1", "employee": "m2"},
    }
    return base | fields


def message_of(number: int, **fields: Any) -> resources.Run:
    return run_request(run_of(number, **fields), project="workshop").run


async def record(service: Experience, *runs: resources.Run) -> pb.RecordRunsResponse:
    async def batches() -> AsyncIterator[pb.RecordRunsRequest]:
        yield pb.RecordRunsRequest(parent=PARENT, runs=runs)

    answer: pb.RecordRunsResponse = await service.stub.RecordRuns(batches(), timeout=30)
    assert not answer.rejected
    return answer


async def profile(service: Experience) -> profiles_pb2.Profile:
    found: profiles_pb2.Profile = await service.stub.GetProfile(
        profiles_pb2.GetProfileRequest(name=PROFILE), timeout=10
    )
    return found


async def advice(service: Experience, **fields: Any) -> Any:
    request = profiles_pb2.ListRecommendationsRequest(parent=PARENT, **fields)
    return await service.stub.ListRecommendations(request, timeout=10)


async def test_a_profile_follows_what_is_recorded(service: Experience) -> None:
    empty = await profile(service)
    assert (empty.name, empty.runs, empty.sufficient_data) == (PROFILE, 0, False)
    assert not empty.HasField("last_run_time")
    first = await service.stub.RecordRun(
        run_request(run_of(1, settings={"mode": "3LOOP", "max_rounds": 5}), project="workshop"), timeout=10
    )
    assert (first.settings.mode, first.settings.max_rounds, first.rounds) == ("3loop", 5, 2)
    assert not first.settings.HasField("max_cost_usd")
    assert first.qa_status == resources.QA_STATUS_PASSED
    assert await service.stub.GetRun(pb.GetRunRequest(name=first.name), timeout=10) == first
    await record(service, *(message_of(number) for number in range(2, 31)))
    found = await profile(service)
    assert (found.runs, found.sufficient_data) == (30, True)
    assert found.last_run_time.ToMilliseconds() == MS + 30 * 60_000
    assert [(mode.key, mode.runs) for mode in found.modes] == [("3loop", 20), ("2loop", 10)]
    three, two = found.modes
    assert (three.qa_passed, three.qa_warning, two.qa_passed, two.qa_warning) == (20, 0, 7, 3)
    assert (two.qa_pass_rate.count, two.qa_pass_rate.total) == (7, 10)
    assert two.qa_pass_rate.lower < 0.7 < two.qa_pass_rate.upper
    for mode, cost in ((three, 0.8), (two, 1.2)):
        assert (mode.cost.min_usd, mode.cost.median_usd, mode.cost.max_usd) == (cost, cost, cost)
        assert mode.cost.mean_usd == pytest.approx(cost)
        assert mode.mean_duration == Duration(seconds=300)
    assert three.score == pytest.approx(1.0)
    assert two.score == pytest.approx(0.7 * 0.7 + 0.3 * 0.8 / 1.2)
    assert (found.preferred_mode, found.preferred_strategy) == ("3loop", "baseline")
    # The first one told no strategy.
    assert [(strategy.key, strategy.runs) for strategy in found.strategies] == [("baseline", 29)]
    assert (found.total.cost.min_usd, found.total.cost.max_usd) == (0.8, 1.2)
    assert [(entry.rounds, entry.runs) for entry in found.rounds_distribution] == [(2, 30)]
    assert [(model.key, model.count) for model in found.models] == [("m1", 30), ("m2", 30)]
    assert found.trend.runs == 15
    assert found.trend.better_probability + found.trend.worse_probability < 1
    # A run told anew takes back what it counted.
    await record(service, message_of(30, revision="2", qa_status="failed", cost_usd=0.4))
    changed = await profile(service)
    assert (changed.runs, changed.total.cost.min_usd, changed.total.qa_failed) == (30, 0.4, 1)


async def test_counters_are_put_right_and_the_answer_follows(service: Experience) -> None:
    await record(service, *(message_of(number) for number in range(1, 7)))
    assert (await profile(service)).runs == 6

    def spoil(connection: sa.Connection) -> None:
        counter = tables.counters.c
        connection.execute(
            tables.counters.update()
            .where(counter.scope == "profile", counter.metric == "runs")
            .values(count=99)
        )

    await service.db.write(spoil)
    assert (await service.aggregate()).corrected_count == 1
    assert (await profile(service)).runs == 6
    assert not (await service.db.read(recount, "workshop", Event())).differences


async def test_what_is_left_out_is_told(service: Experience) -> None:
    device = {"device": "dev_0123456789ab"}
    await record(
        service,
        message_of(1),
        message_of(2, cost_usd=1e300),
        message_of(3, rounds=10_001),
        message_of(4, duration=31 * 86_400),
        message_of(5, **device),
        # Neither settings nor a cost: no business of a profile.
        resources.Run(name=f"{PARENT}/runs/run_{MS}_000001", outcome=resources.RUN_OUTCOME_SUCCEEDED),
    )
    found = await profile(service)
    assert (found.runs, found.total.cost.max_usd) == (1, 0.8)
    assert {count.key: count.count for count in found.left_out} == {
        "COST_IMPLAUSIBLE": 1,
        "ROUNDS_IMPLAUSIBLE": 1,
        "DURATION_IMPLAUSIBLE": 1,
        "NOT_PRODUCTION": 1,
    }
    assert [(run.run, run.reason) for run in found.left_out_runs] == [
        (f"{PARENT}/runs/r2", "COST_IMPLAUSIBLE"),
        (f"{PARENT}/runs/r3", "ROUNDS_IMPLAUSIBLE"),
        (f"{PARENT}/runs/r4", "DURATION_IMPLAUSIBLE"),
    ]
    assert (
        await service.stub.GetRun(pb.GetRunRequest(name=f"{PARENT}/runs/r2"), timeout=10)
    ).cost_usd == 1e300


async def test_advice_with_what_if(service: Experience) -> None:
    assert not (await advice(service, use_latest_run=True)).recommendations
    await record(service, *(message_of(number) for number in range(1, 121)))
    # Nothing is known of what is set now.
    assert not (await advice(service)).recommendations
    found = await advice(
        service, settings=resources.RunSettings(mode="2loop", max_rounds=6, max_cost_usd=2.0)
    )
    assert found.runs == 120
    mode, rounds, cost = found.recommendations
    assert [one.category for one in (mode, rounds, cost)] == [
        profiles_pb2.RECOMMENDATION_CATEGORY_MODE,
        profiles_pb2.RECOMMENDATION_CATEGORY_ROUNDS,
        profiles_pb2.RECOMMENDATION_CATEGORY_COST,
    ]
    assert (mode.current_value, mode.recommended_value) == ("2loop", "3loop")
    assert mode.confidence == profiles_pb2.CONFIDENCE_HIGH
    assert mode.estimated_impact.cost_usd == pytest.approx(-0.4)
    assert mode.estimated_impact.cost_percent == pytest.approx(-100 / 3)
    assert mode.estimated_impact.quality_points == pytest.approx(100 * 13 / 40, abs=1)
    assert (mode.evidence.current_runs, mode.evidence.recommended_runs) == (40, 80)
    assert mode.evidence.better_probability > 0.95 and mode.evidence.expected_loss < 0.01
    assert (rounds.recommended_value, cost.recommended_value) == ("2", "1.44")
    # Followed, nothing is left to say; the newest run tells what is not given.
    done = await advice(
        service, settings=resources.RunSettings(mode="3loop", max_rounds=2, max_cost_usd=1.44)
    )
    assert not done.recommendations
    latest = await advice(service, settings=resources.RunSettings(max_cost_usd=1.44), use_latest_run=True)
    assert (latest.settings.mode, latest.settings.max_rounds, latest.settings.max_cost_usd) == (
        "2loop",
        5,
        1.44,
    )
    assert [one.recommended_value for one in latest.recommendations] == ["3loop", "2"]
    # What if: other thresholds and weights change what is said.
    rules = profiles_pb2.RecommendationRules(min_saving=0.5, min_quality_gain=0.5)
    now = resources.RunSettings(mode="2loop")
    assert not (await advice(service, settings=now, rules=rules)).recommendations
    rules = profiles_pb2.RecommendationRules(high_probability=1.0, medium_probability=1.0)
    (careful,) = (await advice(service, settings=now, rules=rules)).recommendations
    assert careful.confidence == profiles_pb2.CONFIDENCE_LOW
    assert careful.evidence.uncapped_confidence == profiles_pb2.CONFIDENCE_HIGH
    # Pages are of the same answer.
    many = {"settings": resources.RunSettings(mode="2loop", max_rounds=6, max_cost_usd=2.0), "page_size": 2}
    first = await advice(service, **many)
    rest = await advice(service, **many, page_token=first.next_page_token)
    assert [*first.recommendations, *rest.recommendations] == [mode, rounds, cost]
    assert not rest.next_page_token


async def test_recent_runs_count_for_more_with_a_half_life(service: Experience) -> None:
    """3loop was better for a year; for a month it has been worse."""
    day_s = 86_400

    def at(number: int, day: int, mode: str, passed: bool) -> resources.Run:
        return message_of(
            number,
            start_time=MS / 1000 + (day - 430) * day_s,
            settings={"mode": mode},
            qa_status="passed" if passed else "failed",
            cost_usd=1.0,
        )

    old = [at(n, n % 300, "3loop" if n % 2 else "2loop", bool(n % 2) or n % 4 == 0) for n in range(200)]
    new = [at(200 + n, 400 + n % 30, "3loop" if n % 2 else "2loop", not n % 2) for n in range(60)]
    await record(service, *old, *new)
    now = resources.RunSettings(mode="2loop")
    (all_time,) = (await advice(service, settings=now)).recommendations
    assert (all_time.recommended_value, all_time.current_value) == ("3loop", "2loop")
    lately = await advice(service, settings=now, half_life=Duration(seconds=20 * day_s))
    assert not lately.recommendations
    assert 20 < lately.runs < 60
    back = resources.RunSettings(mode="3loop")
    (turned,) = (await advice(service, settings=back, half_life=Duration(seconds=20 * day_s))).recommendations
    assert turned.recommended_value == "2loop"


async def test_costs_are_predicted(service: Experience) -> None:
    request = profiles_pb2.PredictRunCostRequest(parent=PARENT, settings=resources.RunSettings(mode="3LOOP"))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await service.stub.PredictRunCost(request, timeout=10)
    assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert decode_error(refused.value).reason == "COST_UNKNOWN"
    await record(service, *(message_of(number, cost_usd=1 + number / 100) for number in range(1, 61)))
    found = await service.stub.PredictRunCost(request, timeout=10)
    assert (found.basis, found.runs) == ("mode 3loop", 40)
    assert found.level == pytest.approx(0.9, abs=0.03)
    assert 1.01 <= found.lower_usd < found.median_usd < found.upper_usd <= 1.6
    request.settings.mode, request.level = "unheard of", 0.5
    assert (await service.stub.PredictRunCost(request, timeout=10)).basis == "all runs"


def _request(**fields: Any) -> Any:
    return profiles_pb2.ListRecommendationsRequest(parent=PARENT, **fields)


Rules = profiles_pb2.RecommendationRules


@pytest.mark.parametrize(
    ("method", "request_", "reason"),
    [
        ("GetProfile", profiles_pb2.GetProfileRequest(name=PARENT), "ID_INVALID"),
        ("GetProfile", profiles_pb2.GetProfileRequest(name="projects/Bad Name/profile"), "ID_INVALID"),
        ("ListRecommendations", _request(page_size=-1), "PAGE_SIZE_INVALID"),
        ("ListRecommendations", _request(page_token="nonsense"), "PAGE_TOKEN_INVALID"),
        ("ListRecommendations", _request(rules=Rules(min_saving=1.5)), "RULES_INVALID"),
        ("ListRecommendations", _request(rules=Rules(quality_weight=float("nan"))), "RULES_INVALID"),
        ("ListRecommendations", _request(rules=Rules(min_runs=0)), "RULES_INVALID"),
        ("ListRecommendations", _request(rules=Rules(medium_probability=0.99)), "RULES_INVALID"),
        ("ListRecommendations", _request(half_life=Duration()), "FIELD_INVALID"),
        ("ListRecommendations", _request(half_life=Duration(seconds=-1)), "FIELD_INVALID"),
        ("ListRecommendations", _request(settings=resources.RunSettings(max_rounds=0)), "FIELD_INVALID"),
        (
            "ListRecommendations",
            _request(settings=resources.RunSettings(max_cost_usd=float("inf"))),
            "NON_FINITE",
        ),
        ("ListRecommendations", _request(settings=resources.RunSettings(max_cost_usd=-1)), "VALUE_NEGATIVE"),
        ("ListRecommendations", _request(settings=resources.RunSettings(mode="a\nb")), "ID_INVALID"),
        ("PredictRunCost", profiles_pb2.PredictRunCostRequest(parent=PARENT, level=1.0), "FIELD_INVALID"),
        ("PredictRunCost", profiles_pb2.PredictRunCostRequest(parent=PARENT, level=-1), "FIELD_INVALID"),
    ],
)
@pytest.mark.asyncio(loop_scope="module")
async def test_bad_questions(shared: Experience, method: str, request_: Any, reason: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await getattr(shared.stub, method)(request_, timeout=10)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert decode_error(refused.value).reason == reason


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda run: setattr(run, "rounds", -1), "VALUE_NEGATIVE"),
        (lambda run: setattr(run, "qa_status", 9), "ENUM_UNKNOWN"),
        (lambda run: setattr(run.settings, "max_rounds", 0), "FIELD_INVALID"),
        (lambda run: setattr(run.settings, "max_cost_usd", 0.0), "VALUE_NEGATIVE"),
        (lambda run: setattr(run.settings, "strategy", "x" * 201), "ID_INVALID"),
    ],
)
@pytest.mark.asyncio(loop_scope="module")
async def test_bad_settings_of_a_run(
    shared: Experience, spoil: Callable[[resources.Run], None], reason: str
) -> None:
    run = message_of(1)
    spoil(run)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await shared.stub.RecordRun(pb.RecordRunRequest(parent=PARENT, run=run), timeout=10)
    assert decode_error(refused.value).reason == reason


def test_what_a_client_says_in_dictionaries() -> None:
    run = run_request(run_of(3), project="p").run
    assert run.settings == resources.RunSettings(
        mode="2loop", strategy="baseline", max_rounds=5, max_cost_usd=2.0
    )
    assert run.qa_status == resources.QA_STATUS_PASSED
    assert run.start_time == Timestamp(seconds=MS // 1000 + 180)
