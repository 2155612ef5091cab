"""Any bytes either parse or are refused with a reason; errors survive the way to the caller and back."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf.struct_pb2 import Struct
from grpc.aio import Metadata
from hypothesis import given
from hypothesis import strategies as st

from nightshift.experience.v1 import experience_service_pb2 as experience_pb
from nightshift.skills.v1 import skills_service_pb2 as skills_pb
from nightshift_kit.errors import Code, EnumUnknown, FieldInvalid, FieldViolation, NightshiftError
from nightshift_kit.rpc.decoding import decode
from nightshift_kit.rpc.statuses import DETAILS_KEY, RichError, decode_error, render
from nightshift_kit.telemetry import begin_trace

REASONS = {"MALFORMED_REQUEST", "NESTING_TOO_DEEP", "ENUM_UNKNOWN"}


@given(st.binary(max_size=200))
@pytest.mark.parametrize("message_class", [skills_pb.PlanSkillRequest, experience_pb.RecordRunRequest])
def test_any_bytes(message_class: Any, data: bytes) -> None:
    try:
        message = decode(message_class, data)
    except NightshiftError as error:
        assert error.code is Code.INVALID_ARGUMENT
        assert error.reason in REASONS
    else:
        assert isinstance(message, message_class)


def test_enum_numbers_are_checked_wherever_they_stand() -> None:
    request = skills_pb.ListApprovalsRequest()
    data = request.SerializeToString() + b"\x18\x07\x18\x63"
    with pytest.raises(EnumUnknown) as caught:
        decode(skills_pb.ListApprovalsRequest, data)
    assert [violation.field for violation in caught.value.violations] == ["state"]
    values = Struct()
    values.update({"a": [None, 1, {"b": None}]})
    plain = skills_pb.PlanSkillRequest(name="skills/x", parameters=values)
    assert decode(skills_pb.PlanSkillRequest, plain.SerializeToString()) == plain


class Failed(grpc.aio.AioRpcError):
    def __init__(self, error: NightshiftError) -> None:
        code, message, details = render(error)
        self.size_bytes = len(details)
        super().__init__(code, Metadata(), Metadata((DETAILS_KEY, details)), message)


class Sample(FieldInvalid):
    reason = "SAMPLE"


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)


@given(
    TEXT,
    st.dictionaries(TEXT, TEXT, max_size=4),
    st.lists(st.builds(FieldViolation, TEXT, TEXT), max_size=4),
    st.none() | st.integers(0, 100_000).map(lambda value: value / 1000),
)
def test_errors_come_back(
    message: str, metadata: dict[str, str], violations: list[FieldViolation], retry_after_s: float | None
) -> None:
    error = Sample(message, metadata=metadata, violations=violations, retry_after_s=retry_after_s)
    assert decode_error(Failed(error)) == RichError(
        grpc.StatusCode.INVALID_ARGUMENT, "SAMPLE", message, metadata, tuple(violations), retry_after_s
    )


def test_endless_errors_fit_a_trailer() -> None:
    violations = [FieldViolation(f"runs[{index}].prompt", "too long " * 100) for index in range(1000)]
    failed = Failed(Sample("x" * 100_000, violations=violations, metadata={"value": "y" * 100_000}))
    assert failed.size_bytes < 6000
    back = decode_error(failed)
    assert len(back.message) == 1000
    assert back.violations[0].field == "runs[0].prompt"
    assert back.violations[-1].description.endswith("more")


def test_an_error_of_the_transport_has_no_reason() -> None:
    error = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, Metadata(), Metadata(), "gone")
    assert decode_error(error) == RichError(grpc.StatusCode.UNAVAILABLE, "", "gone")


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "00-xyz",
        "00-" + "0" * 32 + "-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
    ],
)
def test_a_bad_traceparent_begins_a_new_trace(header: str | None) -> None:
    trace = begin_trace(header, "bad id\nwith a line")
    assert len(trace.trace_id) == 32
    assert trace.trace_id not in (header or "")
    assert "\n" not in trace.request_id


def test_a_good_traceparent_is_continued() -> None:
    trace = begin_trace("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00", "id-1")
    assert trace.traceparent.startswith("00-0af7651916cd43dd8448eb211c80319c-")
    assert trace.traceparent.endswith("-00")
    assert trace.span_id != "b7ad6b7169203331"
    assert trace.request_id == "id-1"
