"""Incidents: what counts as one, what people may say to it, and that no flapping makes many of one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightshift.monitor.v1 import monitor_service_pb2 as messages
from nightshift.monitor.v1 import resources_pb2 as resources
from nightshift_kit.audit import Outbox
from nightshift_kit.audit.chain import verify_outbox
from nightshift_kit.clock import FakeClock
from nightshift_kit.errors import DbBusy, NightshiftError
from nightshift_kit.rpc.channels import decode_error
from nightshift_kit.storage import Database
from nightshift_monitor.damping import Damper, Turn
from nightshift_monitor.errors import IncidentNameInvalid, IncidentResolved
from nightshift_monitor.incidents import Incident, Incidents, IncidentState
from nightshift_monitor.observations import ProbeResult, ProbeState
from nightshift_monitor.resources import IncidentName
from nightshift_monitor.store.incidents import SqlIncidents
from tests.monitor.conftest import MakeMonitor, PlatformStandIn, RunningMonitor

SECOND = 1_000_000_000
UP, DEGRADED, DOWN, UNKNOWN = ProbeState.UP, ProbeState.DEGRADED, ProbeState.DOWN, ProbeState.UNKNOWN
AT = datetime(2026, 3, 4, 9, tzinfo=UTC)


def turns(looks: list[tuple[float, ProbeState]], **limits: Any) -> list[Turn]:
    damper = Damper(**{"after_looks": 3, "after_s": 60.0, "stable_s": 120.0, **limits})
    return [damper.look(state, round(at_s * SECOND)) for at_s, state in looks]


def test_a_glitch_is_no_incident_and_three_bad_looks_are_one() -> None:
    assert turns([(0, DOWN), (5, UP), (30, UP)]) == [Turn.NOTHING] * 3
    assert turns([(0, DOWN), (5, DEGRADED), (10, DOWN), (15, DOWN)]) == [
        Turn.NOTHING,
        Turn.NOTHING,
        Turn.OPEN,
        Turn.BAD,
    ]


def test_trouble_that_lasts_is_one_however_seldom_somebody_looks() -> None:
    assert turns([(0, DOWN), (300, DOWN)])[-1] is Turn.OPEN


def test_what_was_well_for_the_stable_time_begins_anew() -> None:
    assert turns([(0, DOWN), (30, UP), (160, DOWN), (190, UP)]) == [Turn.NOTHING] * 4


def test_an_incident_ends_after_the_stable_time_and_not_before() -> None:
    bad = [(0, DOWN), (5, DOWN), (10, DOWN)]
    assert turns([*bad, (20, UP), (139, UP)])[-1] is Turn.NOTHING
    assert turns([*bad, (20, UP), (140, UP)])[-1] is Turn.CLOSE
    assert turns([*bad, (20, UP), (100, DOWN), (110, UP), (140, UP)])[-1] is Turn.NOTHING


def test_the_unknown_neither_opens_nor_closes() -> None:
    assert turns([(at, UNKNOWN) for at in range(0, 900, 30)]) == [Turn.NOTHING] * 30
    opened = [(0, DOWN), (5, DOWN), (10, DOWN)]
    assert turns([*opened, *((at, UNKNOWN) for at in range(20, 900, 30))])[3:] == [Turn.NOTHING] * 30


@given(
    st.lists(
        st.tuples(st.floats(0.5, 119), st.sampled_from([UP, DEGRADED, DOWN, UNKNOWN])),
        min_size=1,
        max_size=200,
    )
)
def test_openings_and_closings_alternate_and_each_has_its_cause(
    steps: list[tuple[float, ProbeState]],
) -> None:
    damper = Damper(after_looks=3, after_s=60.0, stable_s=120.0)
    now_s, is_open = 0.0, False
    history: list[tuple[float, ProbeState]] = []
    for gap_s, state in steps:
        now_s += gap_s
        turn = damper.look(state, round(now_s * SECOND))
        history.append((now_s, state))
        known = [(at, seen) for at, seen in history if seen is not UNKNOWN]
        if turn is Turn.OPEN:
            assert not is_open
            assert state in (DEGRADED, DOWN)
            is_open = True
        elif turn is Turn.CLOSE:
            assert is_open
            # Nothing but UP for the stable time before.
            well_from = next(
                (at for at, seen in reversed(known) if seen is not UP and at <= now_s), float("-inf")
            )
            assert all(seen is UP for at, seen in known if at > well_from)
            first_well = min(at for at, _ in known if at > well_from)
            assert now_s - first_well >= 120 - 1e-6
            is_open = False
        elif turn in (Turn.BAD, Turn.FLAP):
            assert is_open
        last = [seen for _, seen in known[-3:]]
        if len(last) == 3 and UP not in last:
            assert is_open


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path / 'incidents.db'}"
    with Database(url, migrations="nightshift_monitor", name="monitor") as opened:
        opened.migrate()
        yield opened


class Desk:
    """Incidents on a clock that tests turn."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.clock = FakeClock(AT)
        self.outbox = Outbox("monitor", self.clock)
        self.told: list[Incident] = []
        self.incidents = self.again()

    def again(self) -> Incidents:
        """As after a restart."""
        self.incidents = Incidents(
            SqlIncidents(self.database, self.outbox),
            clock=self.clock,
            after_looks=3,
            after_s=60,
            stable_s=120,
        )
        self.incidents.listen(self.told.append)
        return self.incidents

    async def look(self, state: ProbeState, *, after_s: float = 5, probe: str = "platform") -> None:
        self.clock.advance(after_s)
        await self.incidents.observe(ProbeResult(probe, state, self.clock.now(), 0.01, f"is {state.name}"))

    async def all(self) -> list[Incident]:
        return await self.incidents.page(states=(), before_id="", limit=100)


async def test_a_probe_that_flaps_for_an_hour_has_one_incident_with_its_flaps(database: Database) -> None:
    desk = Desk(database)
    for _ in range(60):
        await desk.look(DOWN, after_s=30)
        await desk.look(UP, after_s=30)
    (incident,) = await desk.all()
    assert incident.state is IncidentState.OPEN
    assert incident.flap_count >= 57
    assert incident.start == AT + timedelta(seconds=30)
    assert incident.last_bad == desk.clock.now() - timedelta(seconds=30)
    for _ in range(5):
        await desk.look(UP, after_s=30)
    (ended,) = await desk.all()
    assert (ended.state, ended.resolver) == (IncidentState.RESOLVED, "")
    assert desk.incidents.unresolved == ()
    assert [one.state for one in desk.told[:1] + desk.told[-1:]] == [
        IncidentState.OPEN,
        IncidentState.RESOLVED,
    ]


async def test_a_restart_goes_on_with_what_is_open(database: Database) -> None:
    desk = Desk(database)
    for probe in ("platform", "gone"):
        for _ in range(3):
            await desk.look(DEGRADED, probe=probe)
    again = desk.again()
    await again.start(["platform"])
    assert [incident.probe for incident in again.unresolved] == ["platform"]
    gone = next(incident for incident in await desk.all() if incident.probe == "gone")
    assert gone.state is IncidentState.RESOLVED
    await desk.look(DOWN)
    (known,) = again.unresolved
    assert known.worst is DOWN
    await desk.look(UP)
    await desk.look(UP, after_s=120)
    assert again.unresolved == ()
    assert len(await desk.all()) == 2


async def test_a_resolved_probe_that_stays_bad_has_another_incident(database: Database) -> None:
    desk = Desk(database)
    for _ in range(3):
        await desk.look(DOWN)
    (first,) = desk.incidents.unresolved
    name = IncidentName(first.id)
    resolved = await desk.incidents.resolve(name, actor="person/approver/ada", comment="cable")
    assert resolved.resolver == "person/approver/ada"
    assert desk.incidents.unresolved == ()
    await desk.look(DOWN)
    assert desk.incidents.unresolved == ()
    for _ in range(2):
        await desk.look(DOWN)
    assert [one.state for one in await desk.all()] == [IncidentState.OPEN, IncidentState.RESOLVED]
    with pytest.raises(IncidentResolved):
        await desk.incidents.acknowledge(name, actor="person/approver/ada", comment="")


async def test_a_store_that_fails_hides_no_incident_and_gets_it_later(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(database)

    async def busy(*_: Any, **__: Any) -> None:
        raise DbBusy("busy")

    with monkeypatch.context() as patch:
        patch.setattr(SqlIncidents, "add_incident", busy)
        for _ in range(4):
            await desk.look(DOWN)
        assert len(desk.incidents.unresolved) == 1
        assert await desk.all() == []
    await desk.look(DOWN)
    assert [one.id for one in await desk.all()] == [desk.incidents.unresolved[0].id]


async def test_a_word_without_audit_is_not_taken(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(database)
    for _ in range(3):
        await desk.look(DOWN)
    (incident,) = desk.incidents.unresolved
    database.write_sync(
        lambda connection: connection.exec_driver_sql("ALTER TABLE kit_outbox RENAME TO away")
    )
    with pytest.raises(NightshiftError) as caught:
        await desk.incidents.acknowledge(
            IncidentName(incident.id), actor="person/approver/ada", comment="seen"
        )
    assert caught.value.reason == "AUDIT_UNAVAILABLE"
    assert (await desk.all())[0].state is IncidentState.OPEN
    assert desk.incidents.unresolved[0].state is IncidentState.OPEN


@given(st.text(max_size=60))
def test_names_of_other_shapes_are_refused(name: str) -> None:
    with pytest.raises(IncidentNameInvalid):
        IncidentName.parse(name)


async def opened(monitor: RunningMonitor) -> resources.Incident:
    """The open incident, once it is stored: it stands in memory before."""
    stub = monitor.stub()
    request = messages.ListIncidentsRequest(states=[resources.INCIDENT_STATE_OPEN])
    async with asyncio.timeout(20):
        while not (page := await stub.ListIncidents(request)).incidents:
            await asyncio.sleep(0.02)
    incident: resources.Incident = page.incidents[0]
    return incident


async def refused(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), decode_error(caught.value).reason


FAST = {
    "probe_interval_s": 0.1,
    "recheck_interval_s": 0.1,
    "incident_after_looks": 2,
    "incident_stable_s": 0.4,
}


async def test_an_incident_over_the_wire_from_its_beginning_to_its_end(
    make_monitor: MakeMonitor, platform: PlatformStandIn
) -> None:
    answer = platform.answers.pop("/api/settings/safety-level")
    async with make_monitor(platform_url=platform.url, **FAST) as monitor:
        incident = await opened(monitor)
        assert incident.probe == "probes/platform"
        assert incident.state == resources.INCIDENT_STATE_OPEN
        assert incident.worst_state == resources.PROBE_STATE_DOWN
        assert "catch-all" in incident.detail
        status = await monitor.stub().GetStatus(messages.GetStatusRequest())
        assert [one.name for one in status.incidents] == [incident.name]
        ada, bo, vera = (monitor.stub(f"person/{name}") for name in ("ada", "bo", "vera"))
        seen = messages.AcknowledgeIncidentRequest(name=incident.name, comment="on my way")
        for stub in (vera, monitor.stub("platform/default"), monitor.stub("service/skills")):
            code, _ = await refused(stub.AcknowledgeIncident(seen, timeout=5))
            assert code == grpc.StatusCode.PERMISSION_DENIED
        first = await ada.AcknowledgeIncident(seen, timeout=5)
        assert first.acknowledger == "person/approver/ada"
        assert first.acknowledge_comment == "on my way"
        again = await ada.AcknowledgeIncident(
            messages.AcknowledgeIncidentRequest(name=incident.name, comment="another"), timeout=5
        )
        assert again.acknowledge_comment == "on my way"
        assert again.acknowledge_time == first.acknowledge_time
        assert await refused(bo.AcknowledgeIncident(seen, timeout=5)) == (
            grpc.StatusCode.FAILED_PRECONDITION,
            "INCIDENT_ACKNOWLEDGED",
        )
        platform.answers["/api/settings/safety-level"] = answer
        async with asyncio.timeout(10):
            while True:
                over = await vera.GetIncident(messages.GetIncidentRequest(name=incident.name))
                if over.state == resources.INCIDENT_STATE_RESOLVED:
                    break
                await asyncio.sleep(0.05)
        assert over.resolver == ""
        assert over.HasField("resolve_time")
        assert over.acknowledger == "person/approver/ada"
        for call in (
            ada.AcknowledgeIncident(seen, timeout=5),
            ada.ResolveIncident(messages.ResolveIncidentRequest(name=incident.name), timeout=5),
        ):
            assert await refused(call) == (grpc.StatusCode.FAILED_PRECONDITION, "INCIDENT_RESOLVED")


async def test_a_persons_words_are_audited_once_each_and_their_comments_not_at_all(
    make_monitor: MakeMonitor, platform: PlatformStandIn
) -> None:
    platform.answers.pop("/api/settings/safety-level")
    async with make_monitor(platform_url=platform.url, **FAST) as monitor:
        incident = await opened(monitor)
        ada = monitor.stub("person/ada")
        for _ in range(2):
            await ada.AcknowledgeIncident(
                messages.AcknowledgeIncidentRequest(name=incident.name, comment="private words"), timeout=5
            )
        for _ in range(2):
            answer = await ada.ResolveIncident(
                messages.ResolveIncidentRequest(name=incident.name, comment="private words"), timeout=5
            )
            assert answer.resolver == "person/approver/ada"
        events = monitor.database.read_sync(Outbox("monitor").events, 0, 100)
        assert verify_outbox(events).valid
        assert [(event.kind, event.actor, event.subject) for event in events] == [
            ("incident.acknowledged", "person/approver/ada", incident.name),
            ("incident.resolved", "person/approver/ada", incident.name),
        ]
        assert not any("private" in event.canonical for event in events)


def _unknown_state() -> messages.ListIncidentsRequest:
    # States are packed: field 3, length 1, the number.
    return messages.ListIncidentsRequest.FromString(b"\x1a\x01\x63")


async def test_pages_filters_and_bad_requests(make_monitor: MakeMonitor, platform: PlatformStandIn) -> None:
    platform.answers.pop("/api/settings/safety-level")
    async with make_monitor(platform_url=platform.url, **FAST) as monitor:
        stub = monitor.stub("person/ada")
        names = []
        for _ in range(3):
            incident = await opened(monitor)
            names.append(incident.name)
            await stub.ResolveIncident(messages.ResolveIncidentRequest(name=incident.name), timeout=5)
        resolved = [resources.INCIDENT_STATE_RESOLVED]
        found, token = [], ""
        while True:
            page = await stub.ListIncidents(
                messages.ListIncidentsRequest(page_size=1, page_token=token, states=resolved)
            )
            found += [one.name for one in page.incidents]
            token = page.next_page_token
            if not token:
                break
        assert found == names[::-1]
        first = await stub.ListIncidents(messages.ListIncidentsRequest(page_size=1, states=resolved))
        nobody = "incidents/00000000-0000-7000-8000-000000000000"
        table = [
            (stub.GetIncident(messages.GetIncidentRequest(name=nobody)), "NOT_FOUND", "INCIDENT_UNKNOWN"),
            (
                stub.ResolveIncident(messages.ResolveIncidentRequest(name=nobody), timeout=5),
                "NOT_FOUND",
                "INCIDENT_UNKNOWN",
            ),
            (stub.GetIncident(messages.GetIncidentRequest(name="x")), "INVALID_ARGUMENT", "ID_INVALID"),
            (
                stub.AcknowledgeIncident(
                    messages.AcknowledgeIncidentRequest(name=names[0], comment="x" * 1001), timeout=5
                ),
                "INVALID_ARGUMENT",
                "FIELD_INVALID",
            ),
            (
                stub.ListIncidents(
                    messages.ListIncidentsRequest(states=[resources.INCIDENT_STATE_UNSPECIFIED])
                ),
                "INVALID_ARGUMENT",
                "ENUM_REQUIRED",
            ),
            (
                stub.ListIncidents(_unknown_state()),
                "INVALID_ARGUMENT",
                "ENUM_UNKNOWN",
            ),
            # The token of one filter does not fit another.
            (
                stub.ListIncidents(messages.ListIncidentsRequest(page_token=first.next_page_token)),
                "INVALID_ARGUMENT",
                "PAGE_TOKEN_INVALID",
            ),
            (
                stub.ListIncidents(messages.ListIncidentsRequest(page_size=-1)),
                "INVALID_ARGUMENT",
                "PAGE_SIZE_INVALID",
            ),
        ]
        for call, code, reason in table:
            assert await refused(call) == (grpc.StatusCode[code], reason)
