"""10,000 events: each changed bit, deletion, swap, doubling and cut is found, at the first such event.

What the whole check does at an event depends on nothing but the head before it and the row that comes, and it
ends at the first bad one. So a log is bad at position n exactly if its first n - 1 rows are good and row n
does not go on from their head; and `verify` itself says both, given that head (`after`). The exhaustive test
asks it so for each of some 25 million changes; that going on from a head is the same as coming from the
beginning is tested beside it. The property test checks the whole log from its beginning each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nightshift_kit.audit.chain import ChainHead, SealedRow, merge, seal, verify
from nightshift_kit.audit.checkpoints import Checkpoint
from nightshift_kit.audit.export import export_line, verify_export
from tests.kit.test_audit_chain import bits_of, checkpoints_of, flipped, outbox

COUNT = 10_000
KINDS = ("bit", "deletion", "renumbered", "swap", "doubling", "cut")
# How far apart the rows are of which each is swapped with each.
_STRIDE = 97


@dataclass(frozen=True)
class Log:
    """The rows, the head before each (and after the last), and checkpoints, the last one at the end."""

    rows: list[SealedRow]
    heads: list[ChainHead]
    marks: list[Checkpoint]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    rows, _ = seal(ChainHead(), merge(outbox("lab", 6_000), outbox("trainer", 4_000)))
    heads = [ChainHead()]
    for row in rows:
        found = verify([row], after=heads[-1])
        assert (found.valid, found.event_count) == (True, 1)
        heads.append(found.head)
    marks = checkpoints_of(tmp_path_factory.mktemp("marks"), rows, [2_500, 7_777, COUNT])
    return Log(rows, heads, marks)


def renumbered(row: SealedRow, seq: int) -> SealedRow:
    return row._replace(seq=seq)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_is_done_anywhere_is_found(log: Log, data: st.DataObject) -> None:
    rows = list(log.rows)
    index = data.draw(st.integers(0, COUNT - 1), label="index")
    kind = data.draw(
        st.sampled_from(["bit", "deletion", "renumbered", "swap", "doubling", "cut"]), label="kind"
    )
    first_bad = index + 1
    match kind:
        case "bit":
            column = data.draw(st.integers(0, 9), label="column")
            bit = data.draw(st.integers(0, bits_of(rows[index][column]) - 1), label="bit")
            changed = flipped(rows[index], column, bit)
            assert changed is not None
            rows[index] = changed
        case "deletion":
            del rows[index]
        case "renumbered":
            rows = [*rows[:index], *(renumbered(row, row.seq - 1) for row in rows[index + 1 :])]
        case "swap":
            other = data.draw(st.integers(0, COUNT - 1).filter(lambda chosen: chosen != index), label="other")
            rows[index], rows[other] = rows[other], rows[index]
            first_bad = min(index, other) + 1
        case "doubling":
            rows.insert(index, rows[index])
            first_bad = index + 2
        case _:
            del rows[index:]
    found = verify(rows, log.marks)
    assert (found.valid, found.first_bad_seq) == (False, first_bad)


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_any_byte_of_an_export_counts(log: Log, data: st.DataObject) -> None:
    lines = [export_line(row).encode() for row in log.rows]
    index = data.draw(st.integers(0, COUNT - 1), label="index")
    raw = bytearray(lines[index])
    bit = data.draw(st.integers(0, len(raw) * 8 - 1), label="bit")
    raw[bit // 8] ^= 1 << (bit % 8)
    lines[index] = bytes(raw)
    assert verify_export(lines, log.marks).first_bad_seq == index + 1


@pytest.mark.slow
def test_going_on_from_a_head_is_coming_from_the_beginning(log: Log) -> None:
    whole = verify(log.rows, log.marks)
    assert (whole.valid, whole.event_count, whole.checkpoint_count) == (True, COUNT, 3)
    assert whole.head == log.heads[-1]
    for index in range(0, COUNT + 1, 200):
        assert verify(log.rows[:index]).head == log.heads[index]
        rest = verify(log.rows[index:], log.marks, after=log.heads[index])
        assert (rest.valid, rest.head) == (True, whole.head)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_change_is_found(log: Log) -> None:
    tried = 0

    def bad(rows: Sequence[SealedRow], index: int) -> None:
        nonlocal tried
        tried += 1
        found = verify(rows, log.marks, after=log.heads[index])
        assert found.first_bad_seq == index + 1, (rows[:1], index, found)

    for index, row in enumerate(log.rows):
        for column in range(len(row)):
            for bit in range(bits_of(row[column])):
                changed = flipped(row, column, bit)
                assert changed is not None
                bad([changed], index)
        # Cut off here: the last checkpoint signs more.
        bad([], index)
        # Doubled: it comes again where the next one is due.
        assert index == COUNT - 1 or not verify([row], after=log.heads[index + 1]).valid
        for other in {*range(index % _STRIDE, COUNT, _STRIDE), index - 1, index + 1} - {index}:
            if 0 <= other < COUNT:
                # What stands in its place: the next one (a deletion), or any other (another order), under its
                # own number or under this one's.
                bad([log.rows[other]], index)
                bad([renumbered(log.rows[other], row.seq)], index)
    print(f"{tried:,} changes of {COUNT:,} events, each found at its place")
    assert tried > 20_000_000
