"""What the lab's store promises, on SQLite and on PostgreSQL."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from nightshift_kit.canonical import sha256_hex
from nightshift_kit.errors import EtagMismatch, NightshiftError
from nightshift_kit.grants import Effect
from nightshift_kit.ids import new_id
from nightshift_kit.storage import Database, schema_differences
from nightshift_lab.content import file_bytes
from nightshift_lab.errors import AlreadyRolledBack, PromotionUnknown, ProposalOpen, ProposalUnknown
from nightshift_lab.records import (
    TRANSITIONS,
    Kind,
    Promotion,
    Proposal,
    State,
    promotion_from_bytes,
    promotion_to_bytes,
    proposal_from_bytes,
    proposal_to_bytes,
)
from nightshift_lab.store import promotions, proposals
from nightshift_lab.store.tables import kit, metadata
from nightshift_lab.validation.report import Report, error, warning

AT = dt.datetime(2026, 3, 1, 12, 30, 15, 123456, tzinfo=dt.UTC)
REPORT = Report(
    (error("id", "config_id", "CONFIG_ID_INVALID", "words"), warning("language", "tags", "PARITY_TAGS", "ü")),
    "nearest",
    0.25,
)


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    with Database(database_url, migrations="nightshift_lab", name="lab") as made:
        made.migrate()
        yield made


def proposal(config_id: str = "abc", **changes: Any) -> Proposal:
    content: dict[str, Any] = {
        "name": {"en": "Ä “x”", "de": "\U0001f319"},
        "n": 1,
        "f": 0.7,
        "none": None,
        "l": [],
    }
    data = file_bytes(content)
    made = Proposal(
        proposal_id=new_id(),
        config_id=config_id,
        state=State.VALIDATED,
        content=content,
        file_content=data,
        content_digest=sha256_hex(data),
        opportunity="projects/p/opportunities/o",
        templates=("a", "klischee_ü"),
        drafted_by="composer",
        report=REPORT,
        revision=1,
        created_at=AT,
        updated_at=AT,
    )
    return replace(made, **changes)


def promotion(of: Proposal, **changes: Any) -> Promotion:
    made = Promotion(
        promotion_id=new_id(),
        kind=Kind.PROMOTE,
        proposal_id=of.proposal_id,
        config_id=of.config_id,
        path=f"schemas/configs/interception/{of.config_id}.json",
        previous_digest="",
        previous_content=None,
        digest=of.content_digest,
        content=of.file_content,
        rolls_back="",
        rolled_back_by="",
        created_at=AT,
        actor="person/admin/1",
        intent_id=new_id(),
        jti=new_id(),
    )
    return replace(made, **changes)


def test_the_migrations_make_the_declared_tables(db: Database) -> None:
    assert db.read_sync(schema_differences, metadata) == []


def test_a_proposal_comes_back_as_it_was(db: Database) -> None:
    stored = proposal()
    db.write_sync(proposals.insert, stored)
    assert db.read_sync(proposals.get, stored.proposal_id) == stored
    assert proposal_from_bytes(proposal_to_bytes(stored)) == stored
    with pytest.raises(ProposalUnknown):
        db.read_sync(proposals.get, new_id())


def test_one_open_proposal_an_id(db: Database) -> None:
    first = proposal()
    db.write_sync(proposals.insert, first)
    for state in (State.VALIDATED, State.DRAFT):
        with pytest.raises(ProposalOpen):
            db.write_sync(proposals.insert, proposal(state=state))
    db.write_sync(proposals.insert, proposal("abd"))
    rejected = first.moved(State.REJECTED, AT)
    db.write_sync(proposals.update, rejected)
    second = proposal()
    db.write_sync(proposals.insert, second)
    # Back from production, while another one is open.
    promoted = proposal("abd2", state=State.PROMOTED)
    db.write_sync(proposals.insert, promoted)
    db.write_sync(proposals.insert, proposal("abd2"))
    with pytest.raises(ProposalOpen):
        db.write_sync(proposals.update, promoted.moved(State.VALIDATED, AT))
    assert db.read_sync(proposals.get, promoted.proposal_id) == promoted


def test_updates_by_revision(db: Database) -> None:
    stored = proposal()
    db.write_sync(proposals.insert, stored)
    moved = stored.moved(State.PROMOTED, AT + dt.timedelta(hours=1), comment="yes", promoted_etag=stored.etag)
    db.write_sync(proposals.update, moved)
    assert db.read_sync(proposals.get, stored.proposal_id) == moved
    assert moved.etag != stored.etag
    with pytest.raises(EtagMismatch):
        db.write_sync(proposals.update, stored.moved(State.REJECTED, AT))
    db.write_sync(lambda connection: proposals.restore(connection, stored, instead_of=moved))
    assert db.read_sync(proposals.get, stored.proposal_id) == stored
    with pytest.raises(EtagMismatch):
        db.write_sync(lambda connection: proposals.restore(connection, stored, instead_of=moved))


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("to", State)
def test_transitions(state: State, to: State) -> None:
    one = proposal(state=state)
    if to in TRANSITIONS[state]:
        assert one.moved(to, AT).revision == 2
    else:
        with pytest.raises(ValueError, match="transition"):
            one.moved(to, AT)


def test_pages_newest_first(db: Database) -> None:
    stored = [proposal(f"config_{index}") for index in range(7)]
    for one in stored:
        db.write_sync(proposals.insert, one)
    newest = [one.proposal_id for one in reversed(stored)]
    pages, before = [], None
    while page := db.read_sync(lambda c, before=before: proposals.page(c, 3, before=before)):
        pages += [one.proposal_id for one in page]
        before = pages[-1]
    assert pages == newest
    rejected = stored[3].moved(State.REJECTED, AT)
    db.write_sync(proposals.update, rejected)
    found = db.read_sync(lambda c: proposals.page(c, 10, state=State.REJECTED))
    assert found == [rejected]


def test_promotions(db: Database) -> None:
    stored = proposal()
    db.write_sync(proposals.insert, stored)
    first = promotion(stored)
    db.write_sync(promotions.insert, first)
    assert db.read_sync(promotions.get, first.promotion_id) == first
    assert db.read_sync(promotions.by_intent, first.intent_id) == first
    assert db.read_sync(promotions.by_intent, "none") is None
    assert db.read_sync(promotions.standing) == {first.path: first.digest}
    bare = promotion_from_bytes(promotion_to_bytes(first))
    assert bare == replace(first, content=None, intent_id="", jti="")
    with pytest.raises(PromotionUnknown):
        db.read_sync(promotions.get, new_id())

    undone = promotion(
        stored,
        kind=Kind.ROLLBACK,
        previous_digest=first.digest,
        previous_content=first.content,
        digest="",
        content=None,
        rolls_back=first.promotion_id,
    )
    db.write_sync(promotions.insert, undone)
    db.write_sync(promotions.mark_rolled_back, first.promotion_id, undone.promotion_id)
    with pytest.raises(AlreadyRolledBack):
        db.write_sync(promotions.mark_rolled_back, first.promotion_id, new_id())
    assert db.read_sync(promotions.standing) == {}
    assert [p.promotion_id for p in db.read_sync(promotions.page, 10)] == [
        undone.promotion_id,
        first.promotion_id,
    ]

    def redeem(connection: sa.Connection) -> None:
        connection.execute(
            kit.redeemed.insert().values(jti=undone.jti, arguments_digest="x", answer=b"y", at=AT)
        )

    db.write_sync(redeem)
    db.write_sync(promotions.withdraw, undone)
    assert db.read_sync(promotions.get, first.promotion_id) == first
    assert db.read_sync(promotions.standing) == {first.path: first.digest}
    count = sa.select(sa.func.count()).select_from(kit.redeemed)
    assert db.read_sync(lambda c: c.execute(count).scalar_one()) == 0


def test_many_at_once_and_one_open_proposal(db: Database) -> None:
    outcomes: list[str] = []

    def one() -> None:
        effect = Effect.for_tests()

        def transaction(connection: sa.Connection) -> None:
            effect.begin(connection)
            proposals.insert(connection, proposal("wanted"))
            effect.finish(connection, b"done")

        try:
            db.write_sync(transaction)
            outcomes.append("done")
        except NightshiftError as refusal:
            outcomes.append(refusal.reason)

    threads = [threading.Thread(target=one) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["PROPOSAL_OPEN"] * 11 + ["done"]
