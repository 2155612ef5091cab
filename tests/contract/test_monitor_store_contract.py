"""What the monitor's store promises, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nightshift_kit.audit import Outbox
from nightshift_kit.ids import new_id
from nightshift_kit.storage import Database, schema_differences
from nightshift_monitor.activity import ActivityRecord
from nightshift_monitor.errors import IncidentResolved, IncidentUnknown
from nightshift_monitor.hours import HourCount
from nightshift_monitor.incidents import Change, Incident, IncidentState
from nightshift_monitor.observations import ProbeResult, ProbeState
from nightshift_monitor.store.incidents import SqlIncidents
from nightshift_monitor.store.records import SqlRecords
from nightshift_monitor.store.tables import metadata

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
AT = datetime(2026, 3, 4, 5, 6, 7, 89, tzinfo=UTC)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    with Database(database_url, migrations="nightshift_monitor", name="monitor") as database:
        database.migrate()
        yield database


@pytest.fixture
def records(database: Database) -> SqlRecords:
    return SqlRecords(database)


def result(probe: str, minutes: float, detail: str = "HTTP 200") -> ProbeResult:
    return ProbeResult(probe, ProbeState.UP, AT + timedelta(minutes=minutes), 0.012345, detail)


def test_migrations_make_what_the_metadata_says(database: Database) -> None:
    assert database.read_sync(schema_differences, metadata) == []


async def test_answers_come_back_newest_first_and_in_pages(records: SqlRecords) -> None:
    stored = [result("a", minute) for minute in range(5)]
    for each in stored:
        await records.append_result(each)
    await records.append_result(result("b", 9, "é\u202e 😀"))
    first = await records.list_results("a", before_id="", limit=3)
    rest = await records.list_results("a", before_id=first[-1][0], limit=3)
    assert [each for _, each in first + rest] == stored[::-1]
    assert await records.list_results("c", before_id="", limit=3) == []
    latest = await records.latest_results(["a", "b", "c"])
    assert [(each.probe, each.probe_time) for each in latest] == [
        ("a", stored[-1].probe_time),
        ("b", AT + timedelta(minutes=9)),
    ]
    assert latest[1].detail == "é\u202e 😀"


async def test_old_and_surplus_answers_are_removed(records: SqlRecords) -> None:
    for minute in range(10):
        await records.append_result(result("a", minute))
        await records.append_result(result("b", minute))
    assert await records.prune(before=AT + timedelta(minutes=4), rows_per_probe=100) == 8
    assert await records.prune(before=AT, rows_per_probe=2) == 8
    kept = [each.probe_time for _, each in await records.list_results("a", before_id="", limit=99)]
    assert kept == [AT + timedelta(minutes=9), AT + timedelta(minutes=8)]
    assert await records.prune(before=AT, rows_per_probe=2) == 0


async def test_an_empty_store_knows_no_activity(records: SqlRecords) -> None:
    assert await records.load_activity() == ActivityRecord()


INSTANTS = st.integers(0, 200 * 365 * 86_400 * 10**6).map(
    lambda micros: EPOCH + timedelta(microseconds=micros)
)
RECORDS = st.builds(
    ActivityRecord,
    last_activity=st.none() | INSTANTS,
    quiet_until=st.none() | INSTANTS,
    in_flight=st.dictionaries(
        st.sampled_from(["", "run_1", "run_ü", "r" * 256]),
        st.lists(st.sampled_from([AT, AT + timedelta(microseconds=1)]), min_size=1, max_size=4).map(
            lambda s: tuple(sorted(s))
        ),
    ),
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(RECORDS)
async def test_activity_comes_back_as_it_was_saved(records: SqlRecords, record: ActivityRecord) -> None:
    await records.save_activity(record, {})
    assert await records.load_activity() == record


async def test_hours_are_added_up_and_come_back_in_pages(records: SqlRecords) -> None:
    hours = [AT.replace(minute=0, second=0, microsecond=0) + timedelta(hours=number) for number in range(5)]
    assert await records.load_hours(EPOCH) == (None, {})
    for _ in range(2):
        await records.save_activity(ActivityRecord(), {hour: HourCount(2**40, 1) for hour in hours})
    first, known = await records.load_hours(hours[3])
    assert first == hours[0]
    assert known == {hour: HourCount(2**41, 2) for hour in hours[3:]}
    page = await records.list_hours(before_us=0, limit=3)
    rest = await records.list_hours(before_us=page[-1][0], limit=3)
    assert [start for _, start, _ in page + rest] == hours[::-1]
    assert await records.prune_hours(before=hours[2]) == 2
    assert (await records.load_hours(EPOCH))[0] == hours[2]


def incident(minutes: float, **fields: object) -> Incident:
    start = AT + timedelta(minutes=minutes)
    made = Incident(
        new_id(), "platform", IncidentState.OPEN, ProbeState.DOWN, "é\u202e 😀", start, start, start, 3
    )
    return made if not fields else made.resolved_by("", "well", start + timedelta(minutes=1))


async def test_incidents_come_back_as_they_were_stored(database: Database) -> None:
    store = SqlIncidents(database, Outbox("monitor"))
    stored = [incident(number) for number in range(4)] + [incident(9, resolved=True)]
    for each in stored:
        await store.add_incident(each)
    await store.add_incident(stored[0])
    first = await store.list_incidents(states=(), before_id="", limit=3)
    rest = await store.list_incidents(states=(), before_id=first[-1].id, limit=3)
    assert first + rest == stored[::-1]
    over = await store.list_incidents(states=[IncidentState.RESOLVED], before_id="", limit=9)
    assert over == stored[4:]
    assert await store.get_incident(stored[2].id) == stored[2]
    with pytest.raises(IncidentUnknown):
        await store.get_incident(new_id())
    assert await store.prune_incidents(before=AT + timedelta(days=1)) == 1
    assert await store.list_incidents(states=(), before_id="", limit=9) == stored[3::-1]


async def test_a_word_changes_an_incident_once_and_is_audited_with_it(database: Database) -> None:
    outbox = Outbox("monitor")
    store = SqlIncidents(database, outbox)
    one = incident(0)
    await store.add_incident(one)

    def seen(comment: str) -> Change:
        return lambda stored: stored.acknowledged_by("person/approver/ada", comment, AT)

    for comment in ("first", "second"):
        changed = await store.change_incident(
            one.id, seen(comment), actor="person/approver/ada", kind="incident.acknowledged"
        )
        assert changed.acknowledge_comment == "first"
    await store.change_incident(one.id, lambda stored: stored.resolved_by("", "well", AT))
    with pytest.raises(IncidentResolved):
        await store.change_incident(
            one.id, seen(""), actor="person/approver/ada", kind="incident.acknowledged"
        )
    kept = await store.get_incident(one.id)
    assert (kept.state, kept.resolved, kept.acknowledged) == (IncidentState.RESOLVED, AT, AT)
    events = database.read_sync(outbox.events, 0, 10)
    assert [(event.kind, event.subject) for event in events] == [("incident.acknowledged", one.name)]
