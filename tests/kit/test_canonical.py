"""Equal values have equal digests, others others; nothing unknown slips past a digest."""

from __future__ import annotations

import json
import math

import pytest
from google.protobuf import any_pb2, struct_pb2, timestamp_pb2, wrappers_pb2
from google.protobuf.internal import encoder
from google.protobuf.json_format import ParseDict
from hypothesis import given
from hypothesis import strategies as st

from nightshift.skills.v1 import skills_service_pb2
from nightshift_kit.canonical import (
    canonical_json,
    digest_json,
    digest_message,
    message_to_dict,
    refuse_unknown_fields,
    sha256_hex,
)
from nightshift_kit.errors import FieldUnknown

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
NUMBERS = st.integers(1 - 2**53, 2**53 - 1) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
def test_reading_and_writing_again_is_the_same_text(value: object) -> None:
    text = canonical_json(value)
    assert canonical_json(json.loads(text)) == text


@given(st.dictionaries(TEXT, JSON, max_size=6), st.randoms())
def test_the_order_of_keys_does_not_matter(value: dict[str, object], dice: object) -> None:
    keys = list(value)
    dice.shuffle(keys)  # type: ignore[attr-defined]
    assert canonical_json({key: value[key] for key in keys}) == canonical_json(value)


@given(JSON, JSON)
def test_other_values_have_other_texts(one: object, other: object) -> None:
    assert (canonical_json(one) == canonical_json(other)) == same(one, other)


def same(one: object, other: object) -> bool:
    """Equality of JSON values: true is not 1, and keys have no order."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@given(st.dictionaries(TEXT, JSON, max_size=5))
def test_a_journey_through_struct_changes_no_digest(value: dict[str, object]) -> None:
    travelled = struct_pb2.Struct()
    ParseDict(value, travelled)
    again = struct_pb2.Struct.FromString(travelled.SerializeToString())
    assert digest_json(message_to_dict(again)) == digest_json(value)
    assert digest_message(again) == digest_json(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"b": 1, "a": [True, None, "ü\n"]}, '{"a":[true,null,"ü\\n"],"b":1}'),
        (1.0, "1"),
        (-0.0, "0"),
        (0.1, "0.1"),
        (1e300, "1e+300"),
        (float(2**53), "9007199254740992.0"),
        (2**80, str(2**80)),
        ((1, 2), "[1,2]"),
        ({"é": 1, "z": 2}, '{"z":2,"é":1}'),
        ("\x7f\u2028", '"\x7f\u2028"'),
    ],
)
def test_examples(value: object, text: str) -> None:
    assert canonical_json(value).decode() == text


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, [math.nan], {"a": math.inf}, "\ud800"])
def test_values_without_a_canonical_form(value: object) -> None:
    with pytest.raises(ValueError, match=r"NaN|surrogates"):
        canonical_json(value)


@pytest.mark.parametrize("value", [b"x", {1: 2}, object(), {"a": {1, 2}}, [timestamp_pb2.Timestamp()]])
def test_types_without_a_canonical_form(value: object) -> None:
    with pytest.raises(TypeError):
        canonical_json(value)


def test_sha256_is_known() -> None:
    assert sha256_hex(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def request() -> skills_service_pb2.RunSkillRequest:
    message = skills_service_pb2.RunSkillRequest()
    descriptor = message.DESCRIPTOR
    for field in descriptor.fields:
        if field.message_type is not None and field.message_type.full_name == "google.protobuf.Struct":
            getattr(message, field.name).update({"deep": {"count": 3.0}})
    return message


def unknown_bytes(number: int = 4321) -> bytes:
    return bytes(encoder.TagBytes(number, 0)) + b"\x07"


def test_fields_that_are_unknown_are_refused_at_any_depth() -> None:
    plain = request()
    refuse_unknown_fields(plain)
    top = type(plain).FromString(plain.SerializeToString() + unknown_bytes())
    with pytest.raises(FieldUnknown, match="4321"):
        digest_message(top)

    in_map = struct_pb2.Struct()
    in_map.fields["a"].MergeFromString(unknown_bytes())
    with pytest.raises(FieldUnknown, match=r"fields\['a'\]\.4321"):
        digest_message(in_map)

    in_list = struct_pb2.ListValue()
    in_list.values.add().number_value = 1
    in_list.values.add().MergeFromString(unknown_bytes())
    with pytest.raises(FieldUnknown, match=r"values\[1\]\.4321"):
        digest_message(in_list)

    deep = struct_pb2.Value()
    deep.struct_value.fields["x"].list_value.values.add().MergeFromString(unknown_bytes(99))
    with pytest.raises(FieldUnknown, match=r"99"):
        digest_message(deep)


def test_what_is_packed_is_looked_into() -> None:
    packed = any_pb2.Any()
    packed.Pack(wrappers_pb2.Int64Value(value=5))
    refuse_unknown_fields(packed)
    packed.value += unknown_bytes()
    with pytest.raises(FieldUnknown):
        digest_message(packed)
    packed.type_url = "type.googleapis.com/nowhere.Nothing"
    with pytest.raises(FieldUnknown, match="nowhere"):
        digest_message(packed)
    with pytest.raises(FieldUnknown):
        refuse_unknown_fields(
            any_pb2.Any(type_url="type.googleapis.com/google.protobuf.Struct", value=b"\xff")
        )


def test_large_integers_are_told_apart() -> None:
    one, other = (wrappers_pb2.Int64Value(value=2**53 + i) for i in (0, 1))
    assert digest_message(one) != digest_message(other)
    stamp = timestamp_pb2.Timestamp(seconds=253402300799, nanos=1)
    assert digest_message(stamp) != digest_message(timestamp_pb2.Timestamp(seconds=253402300799))


def test_numbers_that_are_none_are_refused_within_struct() -> None:
    message = struct_pb2.Struct()
    message.fields["x"].number_value = math.nan
    with pytest.raises(ValueError, match="NaN"):
        digest_message(message)


def test_messages_as_dicts_have_the_protos_names() -> None:
    message = skills_service_pb2.ListAuditEventsRequest(page_size=5)
    assert message_to_dict(message) == {"page_size": 5}
    assert message_to_dict(message, with_defaults=True)["page_token"] == ""
