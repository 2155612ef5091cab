"""Whatever is done in the store to a chain of 10,000 events, the check names the first that it concerns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from nightshift_kit.audit.chain import ChainHead, SealedRow, Verification, merge, seal, verify
from nightshift_kit.audit.checkpoints import Checkpoint
from nightshift_kit.errors import AuditBroken
from nightshift_kit.storage import Database
from nightshift_skills.store import chain
from tests.kit.test_audit_chain import bits_of, checkpoints_of, outbox

COUNT = 10_000
COLUMNS = SealedRow._fields


class Kept(NamedTuple):
    """A store with the chain, its rows, and checkpoints that sign its end."""

    db: Database
    rows: list[SealedRow]
    marks: list[Checkpoint]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    folder = tmp_path_factory.mktemp("store")
    rows, _ = seal(ChainHead(), merge(outbox("lab", 6_000), outbox("trainer", 4_000)))
    with Database(f"sqlite:///{folder}/skills.db", migrations="nightshift_skills", name="skills") as db:
        db.migrate()
        db.write_sync(chain.append_rows, rows)
        yield Kept(db, rows, checkpoints_of(folder, rows, [4_000, COUNT]))


class _TakeBack(Exception):  # noqa: N818 - no error: undoes what a test did to the store
    def __init__(self, found: Any) -> None:
        super().__init__()
        self.found = found


def found_after(kept: Kept, *statements: tuple[str, tuple[object, ...]]) -> Verification:
    """What the check says after some statements, which are taken back."""

    def tamper(connection: sa.Connection) -> None:
        for statement, values in statements:
            connection.exec_driver_sql(statement, values)
        raise _TakeBack(verify(chain.all_rows(connection), kept.marks))

    with pytest.raises(_TakeBack) as taken_back:
        kept.db.write_sync(tamper)
    found: Verification = taken_back.value.found
    return found


def test_untouched_it_is_whole(kept: Kept) -> None:
    found = kept.db.read_sync(lambda connection: verify(chain.all_rows(connection), kept.marks))
    assert (found.valid, found.event_count, found.checkpoint_count) == (True, COUNT, 2)


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_any_bit_in_the_store_counts(kept: Kept, data: st.DataObject) -> None:
    """Bits that leave no valid text among them: the driver refuses such a row, the check names it."""
    seq = data.draw(st.integers(1, COUNT), label="seq")
    column = data.draw(st.integers(1, 9), label="column")
    value = kept.rows[seq - 1][column]
    # The store itself refuses a position of an outbox that another row has.
    lowest = COUNT.bit_length() if isinstance(value, int) else 0
    bit = data.draw(st.integers(lowest, bits_of(value) - 1), label="bit")
    if isinstance(value, int):
        changed: object = value ^ (1 << bit) if bit < 63 else value - (1 << 63)
        term = "?"
    else:
        raw = bytearray(value.encode())
        raw[bit // 8] ^= 1 << (bit % 8)
        changed, term = bytes(raw), "CAST(? AS TEXT)"
    statement = f"UPDATE sealed_events SET {COLUMNS[column]} = {term} WHERE seq = ?"
    assert found_after(kept, (statement, (changed, seq))).first_bad_seq == seq


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_any_deletion_swap_and_cut_in_the_store_counts(kept: Kept, data: st.DataObject) -> None:
    one = data.draw(st.integers(1, COUNT), label="one")
    other = data.draw(st.integers(1, COUNT).filter(lambda chosen: chosen != one), label="other")
    kinds: dict[str, list[tuple[str, tuple[object, ...]]]] = {
        "deletion": [("DELETE FROM sealed_events WHERE seq = ?", (one,))],
        "cut": [("DELETE FROM sealed_events WHERE seq >= ?", (one,))],
        "swap": [
            ("UPDATE sealed_events SET seq = -1 WHERE seq = ?", (one,)),
            ("UPDATE sealed_events SET seq = ? WHERE seq = ?", (one, other)),
            ("UPDATE sealed_events SET seq = ? WHERE seq = -1", (other,)),
        ],
        # A deletion behind which the gap is closed.
        "closed": [
            ("DELETE FROM sealed_events WHERE seq = ?", (one,)),
            ("UPDATE sealed_events SET seq = -seq WHERE seq > ?", (one,)),
            ("UPDATE sealed_events SET seq = -seq - 1 WHERE seq < ?", (0,)),
        ],
    }
    kind = data.draw(st.sampled_from(sorted(kinds)), label="kind")
    first_bad = min(one, other) if kind == "swap" else one
    assert found_after(kept, *kinds[kind]).first_bad_seq == first_bad


def test_a_page_that_cannot_be_shown_names_the_event(kept: Kept) -> None:
    def tamper(connection: sa.Connection) -> None:
        statement = "UPDATE sealed_events SET subject = CAST(? AS TEXT) WHERE seq = ?"
        connection.exec_driver_sql(statement, (b"\xc3promotions", 42))
        assert len(chain.list_rows(connection, 42, "", 100)) == 100
        with pytest.raises(AuditBroken, match="event 42") as refused:
            chain.list_rows(connection, 0, "", 100)
        raise _TakeBack(refused.value.metadata)

    with pytest.raises(_TakeBack) as taken_back:
        kept.db.write_sync(tamper)
    assert taken_back.value.found == {"seq": "42"}
