"""Frames survive any cutting of the stream; anything else is refused."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightshift_trainer import frames

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
MESSAGES = st.lists(st.dictionaries(st.text(max_size=9), JSON, max_size=4), max_size=6)


@given(MESSAGES, st.lists(st.integers(1, 50), max_size=30))
def test_messages_come_out_as_they_went_in(messages: list[dict[str, object]], cuts: list[int]) -> None:
    stream = b"".join(frames.encode(message) for message in messages)
    decoder = frames.FrameDecoder()
    decoded: list[dict[str, object]] = []
    for cut in cuts:
        decoded += decoder.feed(stream[:cut])
        stream = stream[cut:]
    decoded += decoder.feed(stream)
    assert decoded == messages


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_waits_for_more(data: bytes) -> None:
    try:
        messages = frames.FrameDecoder().feed(data)
    except frames.FrameBroken:
        return
    assert all(isinstance(message, dict) for message in messages)


@pytest.mark.parametrize("body", [b"[1]", b"5", b"{", b"\xff\xfe", b'"text"'])
def test_what_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(frames.FrameBroken):
        frames.FrameDecoder().feed(struct.pack(">I", len(body)) + body)


def test_sizes_and_numbers_are_bounded() -> None:
    with pytest.raises(frames.FrameBroken):
        frames.FrameDecoder().feed(struct.pack(">I", frames.MAXIMUM_BYTES + 1))
    with pytest.raises(frames.FrameBroken):
        frames.encode({"loss": float("nan")})
    with pytest.raises(frames.FrameBroken):
        frames.encode({"text": "x" * frames.MAXIMUM_BYTES})
