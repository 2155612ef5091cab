"""Errors, clocks, ids, pages and proportions."""

from __future__ import annotations

import base64
import datetime as dt
import inspect
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightshift_kit import errors
from nightshift_kit.clock import Clock, FakeClock, SystemClock
from nightshift_kit.errors import (
    Code,
    FieldViolation,
    IdInvalid,
    NightshiftError,
    PageSizeInvalid,
    PageTokenInvalid,
)
from nightshift_kit.ids import check_id, new_id
from nightshift_kit.pages import Scalar, decode_token, encode_token, page_size, query_digest
from nightshift_kit.proportions import wilson

CLASSES = [
    cls
    for _, cls in inspect.getmembers(errors, inspect.isclass)
    if issubclass(cls, NightshiftError) and cls not in (NightshiftError, errors.FieldError)
]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_error_has_its_place_in_the_tree(cls: type[NightshiftError]) -> None:
    assert isinstance(cls.code, Code)
    assert cls.reason.isupper()
    assert cls.__name__ in (errors.__doc__ or "")
    assert str(cls("what is wrong")) == "what is wrong"


def test_reasons_are_told_apart() -> None:
    reasons = [cls.reason for cls in CLASSES]
    assert len(set(reasons)) == len(reasons)


def test_an_error_carries_what_a_caller_needs() -> None:
    error = errors.DbBusy("busy", metadata={"a": "b"})
    assert (error.retry_after_s, error.metadata) == (0.25, {"a": "b"})
    assert errors.DbBusy("busy", retry_after_s=3).retry_after_s == 3
    assert errors.NotFound("gone").retry_after_s is None
    about_field = errors.FieldInvalid.at("run.prompt", "too long")
    assert about_field.violations == (FieldViolation("run.prompt", "too long"),)
    assert type(about_field) is errors.FieldInvalid


def test_the_machines_clocks() -> None:
    clock: Clock = SystemClock()
    assert clock.now().tzinfo == dt.UTC
    before = clock.boottime_ns()
    time.sleep(0.002)
    assert clock.boottime_ns() - before >= 2_000_000


def test_a_clock_turned_by_hand() -> None:
    start = dt.datetime(2026, 6, 1, 12, tzinfo=dt.timezone(dt.timedelta(hours=2)))
    clock = FakeClock(start)
    assert clock.now() == start
    assert clock.now().tzinfo == dt.UTC
    before = clock.boottime_ns()
    clock.advance(1.5)
    assert clock.now() - start == dt.timedelta(seconds=1.5)
    assert clock.boottime_ns() - before == 1_500_000_000
    clock.jump(-3600)
    assert clock.boottime_ns() - before == 1_500_000_000
    assert clock.now() < start
    with pytest.raises(ValueError, match="forwards"):
        clock.advance(-1)
    with pytest.raises(ValueError, match="aware"):
        FakeClock(start.replace(tzinfo=None))


def test_ids_sort_as_they_were_made() -> None:
    made = [new_id() for _ in range(2000)]
    assert len(set(made)) == 2000
    assert made == sorted(made)
    assert all(check_id(one, "id") == one and one[14] == "7" for one in made)


@pytest.mark.parametrize(
    "value", ["", "x", new_id().upper(), new_id() + "\n", "{" + new_id() + "}", new_id()[:-1]]
)
def test_what_is_no_id(value: str) -> None:
    with pytest.raises(IdInvalid) as refused:
        check_id(value, "run.id")
    assert refused.value.violations[0].field == "run.id"


POSITIONS = st.lists(
    # No row's key holds a NUL, so that a token with one is refused.
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.booleans()
    | st.none(),
    min_size=1,
    max_size=4,
)
QUERY = query_digest(parent="projects/a", filter="x > 1")


@given(POSITIONS)
def test_a_token_leads_back_to_its_position(position: list[Scalar]) -> None:
    kinds = [type(element) for element in position]
    assert decode_token(encode_token(position, QUERY), QUERY, kinds) == tuple(position)


def test_no_token_is_the_first_page() -> None:
    assert decode_token("", QUERY, [str]) is None


def test_tokens_of_other_queries_are_refused() -> None:
    token = encode_token(["a", 1], QUERY)
    with pytest.raises(PageTokenInvalid):
        decode_token(token, query_digest(parent="projects/b", filter="x > 1"), [str, int])


@pytest.mark.parametrize("kinds", [[str], [int, str], [str, str], [str, float, int], [str, bool]])
def test_tokens_of_another_shape_are_refused(kinds: list[type]) -> None:
    with pytest.raises(PageTokenInvalid):
        decode_token(encode_token(["a", 1], QUERY), QUERY, kinds)


def test_numbers_that_no_database_takes_are_refused() -> None:
    with pytest.raises(PageTokenInvalid):
        decode_token(encode_token([2**63], QUERY), QUERY, [int])


@given(st.text(max_size=60) | st.binary(max_size=60).map(lambda raw: base64.urlsafe_b64encode(raw).decode()))
def test_garbage_is_refused(token: str) -> None:
    if token:
        with pytest.raises(PageTokenInvalid):
            decode_token(token, QUERY, [str])


@given(st.data())
def test_every_changed_sign_is_refused(data: st.DataObject) -> None:
    token = encode_token(["2026-01-05T09:00:00Z", "run_1"], QUERY)
    place = data.draw(st.integers(0, len(token) - 1))
    sign = data.draw(st.sampled_from("ABCxyz019-_=+/ ").filter(lambda s: s != token[place]))
    changed = token[:place] + sign + token[place + 1 :]
    try:
        found = decode_token(changed, QUERY, [str, str])
    except PageTokenInvalid:
        return
    # The last sign of base64 has bits that mean nothing.
    assert place == len(token) - 1
    assert found == ("2026-01-05T09:00:00Z", "run_1")


def test_endless_tokens_are_refused() -> None:
    with pytest.raises(PageTokenInvalid):
        decode_token("A" * 5000, QUERY, [str])


@pytest.mark.parametrize(
    ("requested", "size"), [(0, 50), (1, 1), (1000, 1000), (1001, 1000), (2**31 - 1, 1000)]
)
def test_page_sizes(requested: int, size: int) -> None:
    assert page_size(requested) == size


def test_a_page_size_below_zero() -> None:
    with pytest.raises(PageSizeInvalid) as refused:
        page_size(-1)
    assert refused.value.violations[0].field == "page_size"
    assert page_size(0, default=5, maximum=3) == 3


# R. G. Newcombe, "Two-sided confidence intervals for the single proportion: comparison of
# seven methods", Statistics in Medicine 17 (1998), 857-872; four digits as printed there.
@pytest.mark.parametrize(
    ("count", "total", "lower", "upper"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_against_published_values(count: int, total: int, lower: float, upper: float) -> None:
    assert wilson(count, total) == pytest.approx((lower, upper), abs=5e-5)


@given(st.integers(0, 5000), st.integers(0, 5000))
def test_wilson_holds_the_share(one: int, other: int) -> None:
    count, total = min(one, other), max(one, other)
    lower, upper = wilson(count, total)
    assert 0.0 <= lower <= upper <= 1.0
    if total:
        assert lower <= count / total <= upper


@pytest.mark.parametrize(("count", "total"), [(-1, 5), (6, 5), (0, -1)])
def test_wilson_of_impossible_counts(count: int, total: int) -> None:
    with pytest.raises(ValueError, match="0 <= count"):
        wilson(count, total)


def test_wilson_without_trials() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
