"""Which replica acts: what its lease, its term and its ticks promise on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from nightshift_kit.audit import Outbox
from nightshift_kit.clock import FakeClock
from nightshift_kit.errors import DbBusy
from nightshift_kit.storage import Database
from nightshift_skills.errors import LeadershipLost, Standby
from nightshift_skills.leader import Leadership, LeaseRule
from nightshift_skills.replica import Replica
from nightshift_skills.store import leadership, plane
from nightshift_skills.store.leadership import Lease, Tick

RULE = LeaseRule(10.0)
Opened = Callable[..., Database]


def opener(stack: ExitStack, url: str) -> Opened:
    """Opens a store once more, as another process would."""

    def open_one(**options: Any) -> Database:
        db = stack.enter_context(
            Database(url, migrations="nightshift_skills", name="skills", **{"readers": 1, **options})
        )
        db.migrate()
        return db

    return open_one


@pytest.fixture
def opened(database_url: str) -> Iterator[Opened]:
    """Opens a store of either kind."""
    with ExitStack() as stack:
        yield opener(stack, database_url)


@pytest.fixture
def shared(postgres_url: str) -> Iterator[Opened]:
    """Opens a store that replicas can share."""
    with ExitStack() as stack:
        yield opener(stack, postgres_url)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Opened]:
    """Opens one that they cannot."""
    with ExitStack() as stack:
        yield opener(stack, f"sqlite:///{tmp_path / 'alone.db'}")


def replica(name: str) -> Replica:
    return Replica(name, f"process-of-{name}", f"{name}:7703", f"{name}:7713")


def place(db: Database, clock: FakeClock, name: str, gone: set[str] | None = None) -> Leadership:
    return Leadership(db, clock, replica(name), RULE, gone=lambda process: process in (gone or set()))


async def watched(standby: Leadership, clock: FakeClock, span_s: float) -> bool:
    """Lets a standby look on for so long; whether it leads by then."""
    for _ in range(round(span_s / RULE.look_s)):
        clock.advance(RULE.look_s)
        if await standby.look():
            return True
    return False


def kinds(db: Database) -> list[dict[str, object]]:
    events = db.read_sync(Outbox("skills", FakeClock()).events, 0, 1000)
    return [dict(event.fields) for event in events if event.kind == "leader.began"]


def test_a_lease_is_taken_renewed_and_given_back(opened: Opened) -> None:
    db = opened()
    assert db.read_sync(leadership.get_lease) == Lease()
    assert db.read_sync(leadership.get_term) == 0
    first = db.write_sync(leadership.take, replica("a"), Lease())
    assert first == Lease(1, replica("a"), 0)
    assert db.write_sync(leadership.beat, 1)
    seen = db.read_sync(leadership.get_lease)
    assert seen == Lease(1, replica("a"), 1)
    # Whoever saw an older state is too late.
    assert db.write_sync(leadership.take, replica("b"), first) is None
    assert db.write_sync(leadership.take, replica("b"), seen) == Lease(2, replica("b"), 0)
    assert not db.write_sync(leadership.beat, 1)
    db.write_sync(leadership.give_back, 1)
    assert db.read_sync(leadership.get_lease).holder == replica("b")
    db.write_sync(leadership.give_back, 2)
    assert db.read_sync(leadership.get_lease) == Lease(2, None, 0)


def test_one_of_many_takes_the_lease(opened: Opened) -> None:
    db = opened()
    others = [opened() for _ in range(4)]
    start = threading.Barrier(len(others))
    taken: list[Lease | None] = []

    def take(other: Database, name: str) -> None:
        start.wait(30)
        taken.append(other.write_sync(leadership.take, replica(name), Lease()))

    threads = [
        threading.Thread(target=take, args=(other, f"r{number}")) for number, other in enumerate(others)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    (lease,) = [one for one in taken if one is not None]
    assert db.read_sync(leadership.get_lease) == lease


async def test_a_transaction_of_an_older_term_writes_nothing(opened: Opened) -> None:
    clock = FakeClock()
    leader = place(opened(), clock, "a")
    guarded = opened(guard=leader.guard)
    with pytest.raises(Standby):
        guarded.write_sync(plane.save_reserved_fence, 1000)
    leader = place(opened(), clock, "a")
    assert await leader.begin()
    guarded = opened(guard=leader.guard)
    guarded.write_sync(plane.save_reserved_fence, 1000)
    # Behind its back, while its clock still says that it leads.
    opened().write_sync(leadership.take, replica("b"), None)
    believes = leader.leading
    assert believes
    outcomes = await asyncio.gather(
        *(guarded.write(plane.save_reserved_fence, 2000 + number) for number in range(20)),
        return_exceptions=True,
    )
    assert all(isinstance(outcome, Standby) for outcome in outcomes), outcomes
    assert guarded.read_sync(plane.get_reserved_fence) == 1000
    assert leader.lost
    assert not leader.leading
    refusal = leader.refusal()
    assert refusal.metadata["leader_address"] == "b:7703"
    assert "b:7703" in refusal.message


async def test_on_sqlite_the_next_process_leads_at_once(alone: Opened) -> None:
    db = alone()
    clock = FakeClock()
    first, second = place(db, clock, "a"), place(alone(), clock, "b")
    assert await first.begin()
    clock.advance(3600)
    assert first.leading
    assert await second.begin()
    with pytest.raises(Standby):
        alone(guard=first.guard).write_sync(plane.save_reserved_fence, 1)
    assert kinds(db) == []


@pytest.mark.postgres
async def test_a_standby_waits_for_as_long_as_the_leader_beats(shared: Opened) -> None:
    clock = FakeClock()
    leader, standby = place(shared(), clock, "a"), place(shared(), clock, "b")
    assert await leader.begin()
    assert not await standby.begin()
    for _ in range(10):
        assert not await watched(standby, clock, RULE.beat_s)
        assert await leader.beat()
        assert leader.leading
    assert not standby.leading
    refusal = standby.refusal()
    assert refusal.metadata == {
        "leader": "a",
        "leader_address": "a:7703",
        "leader_control_address": "a:7713",
    }
    with pytest.raises(Standby):
        standby.check()


@pytest.mark.postgres
async def test_a_silent_leader_has_stopped_before_it_is_replaced(shared: Opened) -> None:
    clock = FakeClock()
    leader, standby = place(shared(), clock, "a"), place(shared(), clock, "b")
    assert await leader.begin()
    assert not await standby.look()
    until_s = 0.0
    while leader.leading:
        assert not await watched(standby, clock, RULE.look_s)
        until_s += RULE.look_s
    assert until_s <= RULE.valid_s + RULE.look_s
    with pytest.raises(Standby, match="store does not answer"):
        leader.check()
    assert await watched(standby, clock, RULE.length_s)
    assert standby.leading
    assert standby.after_silence
    lost: list[LeadershipLost] = []
    # It wakes up: the next beat tells.
    await leader.keep(lost.append)
    assert leader.lost
    assert [error.reason for error in lost] == ["LEADERSHIP_LOST"]
    assert leader.refusal().metadata["leader"] == "b"
    assert [event["cause"] for event in kinds(shared())] == ["first", "silent"]


@pytest.mark.postgres
async def test_a_leader_that_was_asleep_goes_on_where_nobody_took_over(shared: Opened) -> None:
    clock = FakeClock()
    leader = place(shared(), clock, "a")
    assert await leader.begin()
    clock.advance(1000)
    assert not leader.leading
    assert await leader.beat()
    assert leader.leading


@pytest.mark.postgres
async def test_a_standby_that_was_asleep_itself_takes_nothing(shared: Opened) -> None:
    """Both were suspended, the machine with them: the leader gets its time to beat."""
    clock = FakeClock()
    leader, standby = place(shared(), clock, "a"), place(shared(), clock, "b")
    assert await leader.begin()
    assert not await standby.look()
    clock.advance(1000)
    assert not await standby.look()
    assert await leader.beat()
    assert not await watched(standby, clock, RULE.length_s - RULE.look_s)


@pytest.mark.postgres
async def test_who_is_gone_for_sure_is_replaced_at_once(shared: Opened) -> None:
    clock = FakeClock()
    gone: set[str] = set()
    leader, standby = place(shared(), clock, "a"), place(shared(), clock, "b", gone)
    assert await leader.begin()
    assert not await standby.look()
    gone.add("process-of-a")
    assert await standby.look()
    assert not standby.after_silence


@pytest.mark.postgres
async def test_a_lease_that_was_given_back_is_taken_at_once(shared: Opened) -> None:
    clock = FakeClock()
    leader, standby = place(shared(), clock, "a"), place(shared(), clock, "b")
    assert await leader.begin()
    assert not await standby.look()
    await leader.leave()
    assert not leader.leading
    assert await standby.look()
    assert [event["cause"] for event in kinds(shared())] == ["first", "given_back"]
    # Whoever left late takes nothing from its successor.
    await leader.leave()
    assert await standby.beat()


@pytest.mark.postgres
async def test_a_process_that_hangs_in_a_transaction_is_cut_off(shared: Opened) -> None:
    """A leader may be stopped while it holds the write lock; the standby needs it for taking over."""
    hanging, db = shared(busy_timeout_s=1.0), shared()
    entered, go_on = threading.Event(), threading.Event()
    problems: list[BaseException] = []

    def hang(connection: sa.Connection) -> None:
        plane.save_reserved_fence(connection, 7)
        entered.set()
        go_on.wait(60)
        plane.save_reserved_fence(connection, 9)

    def work() -> None:
        try:
            hanging.write_sync(hang)
        except Exception as error:  # noqa: BLE001 - whatever it is, the test looks at it
            problems.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert entered.wait(30)
        lease: Lease | None = None
        for _ in range(20):
            try:
                lease = db.write_sync(leadership.take, replica("b"), None)
                break
            except DbBusy:
                continue
        assert lease is not None
    finally:
        go_on.set()
        thread.join(60)
    (problem,) = problems
    assert isinstance(problem, DbBusy)
    assert db.read_sync(plane.get_reserved_fence) == 0
    # The next transaction has a connection of its own.
    hanging.write_sync(plane.save_reserved_fence, 3)
    assert db.read_sync(plane.get_reserved_fence) == 3


def test_ticks_have_numbers_and_keep_their_distance_over_a_change_of_leaders(opened: Opened) -> None:
    db = opened()
    at = FakeClock().now()
    claim = leadership.claim_tick
    assert db.write_sync(claim, 1, at, 30.0) == 0
    # Within a term its leader keeps the time.
    assert db.write_sync(claim, 1, at + timedelta(seconds=29), 30.0) == 0
    assert db.write_sync(claim, 2, at + timedelta(seconds=40), 30.0) == pytest.approx(19)
    assert db.write_sync(claim, 2, at + timedelta(seconds=59), 30.0) == 0
    # A clock that was set back keeps none from coming.
    assert db.write_sync(claim, 3, at - timedelta(days=1), 30.0) == 0
    assert [(tick.number, tick.term) for tick in db.read_sync(leadership.list_ticks)] == [
        (1, 1),
        (2, 1),
        (3, 2),
        (4, 3),
    ]
    assert db.read_sync(leadership.list_ticks)[2] == Tick(3, 2, at + timedelta(seconds=59))


def test_no_tick_is_claimed_twice(opened: Opened) -> None:
    """Whatever two replicas believe: numbers are unique, and those of another term keep their distance."""
    db = opened()
    at = FakeClock().now()
    others = [opened() for _ in range(2)]
    claimed: list[int] = []

    def claim(other: Database, term: int) -> None:
        for _ in range(20):
            if other.write_sync(leadership.claim_tick, term, at, 3600.0) == 0:
                claimed.append(term)

    threads = [threading.Thread(target=claim, args=(other, number)) for number, other in enumerate(others, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    ticks = db.read_sync(leadership.list_ticks)
    assert [tick.number for tick in ticks] == list(range(1, 21))
    assert {tick.term for tick in ticks} == set(claimed)
    assert len(set(claimed)) == 1


def test_old_ticks_are_forgotten(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leadership, "TICKS_KEPT", 3)
    db = opened()
    for _ in range(5):
        db.write_sync(leadership.claim_tick, 1, FakeClock().now(), 1.0)
    assert [tick.number for tick in db.read_sync(leadership.list_ticks)] == [3, 4, 5]


def test_the_database_tells_the_time_where_replicas_share_it(opened: Opened) -> None:
    db = opened()
    otherwise = FakeClock().now()
    told = db.read_sync(leadership.database_time, otherwise)
    assert told.tzinfo is not None
    assert (told == otherwise) is (db.backend == "sqlite")
