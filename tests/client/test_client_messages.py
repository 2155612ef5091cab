"""Records from plain dictionaries."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightshift.experience.v1 import resources_pb2
from nightshift_client.errors import RecordRefused
from nightshift_client.messages import feedback_request, run_request


def test_a_dictionary_becomes_a_run() -> None:
    request = run_request(
        {
            "run_id": "run_1767600000000_a1b2c3",
            "start_time": datetime(2026, 1, 5, 9, 0, tzinfo=timezone(timedelta(hours=1))),
            "end_time": "2026-01-05T08:00:30Z",
            "duration": timedelta(seconds=1.5),
            "prompt": "ein Haus aus שלום",
            "outcome": "succeeded",
            "seed": 7,
            "cost_usd": 0.25,
            "media_types": ["image"],
            "models": {"stage2_interception": "local/m"},
            "device": None,
        },
        project="workshop",
    )
    run = request.run
    assert request.parent == "projects/workshop"
    assert run.name == "projects/workshop/runs/run_1767600000000_a1b2c3"
    assert run.source == "live"
    assert run.start_time.ToDatetime(tzinfo=UTC) == datetime(2026, 1, 5, 8, 0, tzinfo=UTC)
    assert run.end_time.seconds - run.start_time.seconds == 30
    assert run.duration.ToTimedelta() == timedelta(seconds=1.5)
    assert run.outcome == resources_pb2.RUN_OUTCOME_SUCCEEDED
    assert (run.seed, run.cost_usd, list(run.media_types)) == (7, 0.25, ["image"])
    assert dict(run.models) == {"stage2_interception": "local/m"}


def test_a_proto_is_copied_and_its_own_project_counts() -> None:
    run = resources_pb2.Run(name="projects/other/runs/run_1", outcome=resources_pb2.RUN_OUTCOME_FAILED)
    request = run_request(run, project="workshop")
    assert request.parent == "projects/other"
    assert request.run.HasField("start_time")
    assert not run.HasField("start_time")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"run_id": "a", "colour": "red"},
        {"run_id": "a", "outcome": "splendid"},
        {"run_id": "a", "seed": "seven"},
        {"run_id": "a", "seed": 2**70},
        {"run_id": "a", "prompt": b"\xff"},
        {"run_id": "a", "prompt": "lone \ud800"},
        {"run_id": "a", "start_time": "yesterday"},
        {"run_id": "a", "start_time": math.nan},
        {"run_id": "a", "start_time": 1e30},
        {"run_id": "a", "duration": "long"},
        {"run_id": "a", "media_types": "image"},
        {"run_id": "a", "media_types": 3},
        {"run_id": "a", "prompt": ["x"]},
        {"run_id": "a", "prompt": {"en": "x"}},
    ],
)
def test_what_does_not_fit_is_refused_without_telling_the_value(fields: dict[str, Any]) -> None:
    with pytest.raises(RecordRefused) as caught:
        run_request(fields, project="p")
    assert caught.value.reason == "RECORD_INVALID"
    for value in fields.values():
        assert len(str(value)) < 5 or str(value) not in str(caught.value)


def test_a_record_that_no_message_can_carry_is_refused_here() -> None:
    with pytest.raises(RecordRefused) as caught:
        run_request({"run_id": "a", "prompt": "x" * 5_000_000}, project="p")
    assert caught.value.reason == "RECORD_TOO_LARGE"


def test_feedback() -> None:
    request = feedback_request("run_1", "rating", 0.5, None, project="workshop")
    assert request.feedback.run == "projects/workshop/runs/run_1"
    assert request.feedback.kind == resources_pb2.FEEDBACK_KIND_RATING
    assert request.feedback.value == 0.5
    assert request.feedback.HasField("feedback_time")
    with pytest.raises(RecordRefused):
        feedback_request("run_1", "applause", None, None, project="workshop")


SCALARS = [
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.binary(),
    st.datetimes(),
    st.timedeltas(),
]
VALUES = st.recursive(
    st.one_of(*SCALARS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from([field.name for field in resources_pb2.Run.DESCRIPTOR.fields])


@given(st.dictionaries(NAMES, VALUES, max_size=6))
def test_no_dictionary_brings_about_anything_but_a_record_or_a_refusal(fields: dict[str, Any]) -> None:
    try:
        run_request(fields, project="p").SerializeToString()
    except RecordRefused as refusal:
        assert refusal.reason in ("RECORD_INVALID", "RECORD_TOO_LARGE")
