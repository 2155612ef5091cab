"""Auto-tune: what a run takes over and what not, whatever goes wrong, and what becomes of it."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from nightshift.experience.v1 import experience_service_pb2 as pb
from nightshift.experience.v1 import profiles_pb2, tuning_pb2
from nightshift.experience.v1 import resources_pb2 as resources
from nightshift.experience.v1.experience_service_pb2_grpc import ExperienceServiceStub
from nightshift_experience.profiles.advice import Confidence, CurrentSettings
from nightshift_experience.profiles.sketch import costs_of
from nightshift_experience.profiles.statistics import GroupStatistics, Profile
from nightshift_experience.profiles.tuning import GLOBAL, TuningSettings, TuningState, outcomes, tune
from nightshift_experience.store import tables
from nightshift_kit.audit import Outbox
from nightshift_kit.grants import Tier
from nightshift_kit.rpc.statuses import decode_error
from tests.experience.experience_support import PARENT, Experience, experience
from tests.experience.test_profiles_wire import message_of, record

ON = TuningSettings(enabled=True)
NOW = CurrentSettings("2loop", "baseline", 6, 2.0)


def group(key: str, runs: int, quality: float, cost: float, **more: Any) -> GroupStatistics:
    passed = runs * quality
    costs = costs_of([(cost * scatter, runs / 4) for scatter in (0.8, 0.9, 1.1, 1.25)])
    return GroupStatistics(key=key, runs=runs, passed=passed, failed=runs - passed, costs=costs, **more)


# 3loop is better for sure; fewer rounds are with medium, less cost with high confidence.
HISTORY = Profile(
    group("", 120, 0.9, 1.0, rounds={(2, True): 115.0, (4, True): 5.0}),
    (group("3loop", 80, 0.95, 0.8), group("2loop", 40, 0.8, 1.2)),
)


def changed(tuned: Any) -> dict[str, str]:
    return {field: taken for field, _, taken, _ in tuned.changes}


def test_recommendations_are_taken_over_where_they_may_be() -> None:
    before = copy.copy(NOW)
    found = tune(HISTORY, NOW, ON, GLOBAL)
    assert changed(found) == {"mode": "3loop", "max_rounds": "2", "max_cost_usd": "1.5"}
    assert found.settings == CurrentSettings("3loop", "baseline", 2, 1.5)
    assert before == NOW
    for _, _, _, why in found.changes:
        assert "%" in why
    for own, everywhere, skip, reason in (
        (ON, GLOBAL, True, "SKIPPED"),
        (ON, TuningSettings(enabled=False), False, "GLOBALLY_OFF"),
        (TuningSettings(), GLOBAL, False, "OFF"),
        (TuningSettings(enabled=True, min_runs=121), GLOBAL, False, "TOO_FEW_RUNS"),
    ):
        kept = tune(HISTORY, NOW, own, everywhere, skip=skip)
        assert (kept.settings, kept.changes, kept.reason) == (NOW, (), reason)
    explicit = tune(HISTORY, NOW, ON, GLOBAL, explicit={"mode", "max_rounds"})
    assert changed(explicit) == {"max_cost_usd": "1.5"}
    assert {(field, why) for field, _, why in explicit.declined} == {
        ("mode", "EXPLICIT"),
        ("max_rounds", "EXPLICIT"),
    }


def test_the_threshold_is_honoured() -> None:
    confidences = {
        "mode": Confidence.HIGH,
        "max_rounds": Confidence.HIGH,
        "max_cost_usd": Confidence.HIGH,
    }
    few = Profile(HISTORY.total, (group("3loop", 6, 0.95, 1.2), group("2loop", 6, 0.8, 1.2)))
    for threshold in Confidence:
        own = TuningSettings(enabled=True, threshold=threshold)
        assert set(changed(tune(HISTORY, NOW, own, GLOBAL))) == {
            field for field, confidence in confidences.items() if confidence >= threshold
        }
        unsafe = TuningSettings(enabled=True, threshold=threshold, apply_safely=False)
        # Low confidence is taken over at the threshold low alone, and not while it is to be safe.
        assert ("mode" in changed(tune(few, NOW, unsafe, GLOBAL))) is (threshold == Confidence.LOW)
        assert "mode" not in changed(tune(few, NOW, own, GLOBAL))


@given(
    st.builds(
        CurrentSettings,
        st.sampled_from(["", "2loop", "3loop", "?"]),
        st.sampled_from(["", "baseline"]),
        st.none() | st.integers(1, 9),
        st.none() | st.floats(0.01, 50),
    ),
    st.builds(TuningSettings, st.booleans(), st.booleans(), st.integers(1, 200), st.sampled_from(Confidence)),
    st.booleans(),
    st.sets(st.sampled_from(["mode", "strategy", "max_rounds", "max_cost_usd"])),
    st.booleans(),
)
def test_nothing_else_is_changed(
    current: CurrentSettings, own: TuningSettings, everywhere: bool, explicit: set[str], skip: bool
) -> None:
    found = tune(HISTORY, current, own, TuningSettings(enabled=everywhere), explicit=explicit, skip=skip)
    fields = changed(found)
    assert not (explicit & set(fields))
    assert not fields or (own.enabled and everywhere and not skip)
    for name in current.__dataclass_fields__:
        before, after = getattr(current, name), getattr(found.settings, name)
        assert (before != after) is (name in fields)
        # What is not known is not guessed.
        assert before not in ("", None) or after == before


def test_what_made_things_worse_is_not_taken_over_again() -> None:
    change = ("mode", "2loop", "3loop")
    worse = Profile(
        HISTORY.total, HISTORY.modes, tuned=((change, group("", 12, 0.2, 0.8), group("", 40, 0.8, 1.2)),)
    )
    (outcome,) = outcomes(worse)
    assert outcome.state == TuningState.REVERTED and outcome.evidence.worse > 0.8
    found = tune(worse, NOW, ON, GLOBAL)
    assert "mode" not in changed(found) and ("mode", "3loop", "REVERTED") in found.declined
    few = Profile(tuned=((change, group("", 4, 0.2, 0.8), group("", 40, 0.8, 1.2)),))
    assert outcomes(few)[0].state == TuningState.WATCHED
    better = Profile(tuned=((change, group("", 60, 0.95, 0.8), group("", 60, 0.7, 1.2)),))
    assert outcomes(better)[0].state == TuningState.CONFIRMED


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Experience]:
    async with experience(tmp_path / "home") as running:
        yield running


async def update(service: Experience, name: str, etag: str, **fields: Any) -> Any:
    request = tuning_pb2.UpdateTuningRequest(name=name, etag=etag, **fields)
    return await service.serving.act(
        ExperienceServiceStub, "UpdateTuning", request, skill="set_tuning", tier=Tier.MANUAL
    )


async def tuned(service: Experience, **fields: Any) -> Any:
    request = tuning_pb2.GetTunedSettingsRequest(parent=fields.pop("parent", PARENT), **fields)
    return await service.stub.GetTunedSettings(request, timeout=10)


SETTINGS = resources.RunSettings(mode="2LOOP", strategy="baseline", max_rounds=6, max_cost_usd=2.0)


async def test_a_project_is_tuned_through_a_grant_and_its_runs_say_so(service: Experience) -> None:
    await record(service, *(message_of(number) for number in range(1, 121)))
    off = await tuned(service, settings=SETTINGS)
    assert (off.settings, off.auto_tuned, off.reason) == (SETTINGS, False, "OFF")
    name = f"{PARENT}/tuning"
    begin = await service.stub.GetTuning(tuning_pb2.GetTuningRequest(name=name), timeout=10)
    assert (begin.enabled, begin.apply_safely, begin.min_runs_for_recommendations, begin.etag) == (
        False,
        True,
        5,
        "0",
    )
    assert begin.confidence_threshold == profiles_pb2.CONFIDENCE_MEDIUM
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await service.stub.UpdateTuning(
            tuning_pb2.UpdateTuningRequest(name=name, etag="0", enabled=True), timeout=10
        )
    assert decode_error(refused.value).reason == "GRANT_MISSING"
    after = await update(service, name, "0", enabled=True)
    assert (after.enabled, after.etag) == (True, "1") and after.HasField("update_time")
    on = await tuned(service, settings=SETTINGS)
    assert on.auto_tuned and not on.reason and on.original_settings == SETTINGS
    assert on.settings == resources.RunSettings(
        mode="3loop", strategy="baseline", max_rounds=2, max_cost_usd=1.44
    )
    assert [one.field for one in on.tuned_fields] == ["mode", "max_rounds", "max_cost_usd"]
    assert (await tuned(service, settings=SETTINGS, skip_auto_tune=True)).reason == "SKIPPED"
    mine = await tuned(service, settings=SETTINGS, explicit_fields=["mode", "max_rounds", "max_cost_usd"])
    assert (mine.settings, mine.auto_tuned) == (SETTINGS, False)
    assert {one.reason for one in mine.untuned_fields} == {"EXPLICIT"}
    # The global switch stands above.
    await update(service, "tuning", "0", enabled=False)
    assert (await tuned(service, settings=SETTINGS)).reason == "GLOBALLY_OFF"
    await update(service, "tuning", "1", enabled=True)
    # Runs with it show which fields and why, and fail: then it is not taken over any more.
    run = message_of(200, settings={"mode": "3loop"}, qa_status="failed")
    run.tuned_fields.append(on.tuned_fields[0])
    stored = await service.stub.RecordRun(pb.RecordRunRequest(parent=PARENT, run=run), timeout=10)
    assert list(stored.tuned_fields) == [on.tuned_fields[0]]
    runs = [message_of(number, settings={"mode": "3loop"}, qa_status="failed") for number in range(201, 212)]
    for each in runs:
        each.tuned_fields.append(on.tuned_fields[0])
    await record(service, *runs)
    request = tuning_pb2.ListTuningOutcomesRequest(parent=PARENT)
    (outcome,) = (await service.stub.ListTuningOutcomes(request, timeout=10)).tuning_outcomes
    assert (outcome.field, outcome.original_value, outcome.tuned_value) == ("mode", "2loop", "3loop")
    assert outcome.state == tuning_pb2.TUNING_STATE_REVERTED
    assert (outcome.tuned.runs, outcome.baseline.runs) == (12, 40)
    again = await tuned(service, settings=SETTINGS)
    assert again.settings.mode == "2LOOP"
    assert [one.field for one in again.tuned_fields] == ["max_rounds", "max_cost_usd"]
    assert ("mode", "REVERTED") in [(one.field, one.reason) for one in again.untuned_fields]
    kinds = [event.kind for event in await service.db.read(Outbox("experience").events)]
    assert kinds.count("tuning.updated") == 3


async def test_whatever_is_wrong_the_originals_come_back(service: Experience) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"parent": "nonsense"}, "ID_INVALID"),
        ({"settings": resources.RunSettings(mode="m", max_rounds=-3)}, "FIELD_INVALID"),
        ({"settings": resources.RunSettings(max_cost_usd=float("nan"), mode="x")}, "NON_FINITE"),
        ({"explicit_fields": ["temperature"]}, "FIELD_INVALID"),
    ]
    for fields, reason in cases:
        asked = fields.get("settings", SETTINGS)
        found = await tuned(service, **{"settings": asked, **fields})
        assert found.settings.SerializeToString() == asked.SerializeToString()
        assert (found.auto_tuned, found.reason) == (False, reason)
    await service.db.write(lambda connection: connection.execute(sa.text("DROP TABLE tuning")))
    broken = await tuned(service, settings=SETTINGS)
    assert (broken.settings, broken.auto_tuned) == (SETTINGS, False)
    assert broken.reason and tables.tuning.name not in broken.reason


async def test_bad_updates(service: Experience) -> None:
    name = f"{PARENT}/tuning"
    for target, etag, fields, reason in (
        (name, "7", {"enabled": True}, "ETAG_MISMATCH"),
        (name, "x", {"enabled": True}, "FIELD_INVALID"),
        (name, "0", {}, "FIELD_INVALID"),
        (name, "0", {"min_runs_for_recommendations": 0}, "FIELD_INVALID"),
        (name, "0", {"confidence_threshold": 9}, "ENUM_UNKNOWN"),
        ("tuning", "0", {"apply_safely": False}, "FIELD_INVALID"),
        (PARENT, "0", {"enabled": True}, "ID_INVALID"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await update(service, target, etag, **fields)
        assert decode_error(refused.value).reason == reason, fields
    run = message_of(1)
    run.tuned_fields.add(field="temperature", tuned_value="1")
    with pytest.raises(grpc.aio.AioRpcError) as bad:
        await service.stub.RecordRun(pb.RecordRunRequest(parent=PARENT, run=run), timeout=10)
    assert decode_error(bad.value).reason == "FIELD_INVALID"
