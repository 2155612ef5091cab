"""Every "Monitor" row of docs/bad-input.md, over the wire."""

from __future__ import annotations

import base64
from collections.abc import Callable
from functools import partial
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from nightshift.monitor.v1 import monitor_service_pb2 as messages
from nightshift.monitor.v1 import resources_pb2 as resources
from nightshift_kit.audit import Outbox
from nightshift_kit.pages import _tag, query_digest
from nightshift_kit.rpc.channels import RichError, decode_error
from tests.monitor.conftest import MakeMonitor, PlatformStandIn
from tests.monitor.test_monitor_incidents import FAST, opened

NOBODY = "incidents/00000000-0000-7000-8000-000000000000"
NAMES = ("", "incidents", "incidents/", "incidents/1", NOBODY.upper(), f"{NOBODY}/x", f"x/{NOBODY}", "\0")
FAR = Timestamp(seconds=10**17)


async def refused(call: Any) -> RichError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return decode_error(caught.value)


async def first(stream: Any) -> Any:
    try:
        return await stream.read()
    finally:
        stream.cancel()


def forged(body: bytes, **query: object) -> str:
    """A token of this very query, whose position no row has."""
    return base64.urlsafe_b64encode(_tag(body, query_digest(**query)) + body).decode().rstrip("=")


async def test_names_fields_and_pages(make_monitor: MakeMonitor) -> None:
    async with make_monitor() as monitor:
        skills, ada = monitor.stub(), monitor.stub("person/ada")

        def activity(**fields: Any) -> Any:
            return skills.RecordActivity(messages.RecordActivityRequest(**fields), timeout=5)

        def acknowledge(name: str = NOBODY, comment: str = "") -> Any:
            request = messages.AcknowledgeIncidentRequest(name=name, comment=comment)
            return ada.AcknowledgeIncident(request, timeout=5)

        def resolve(name: str = NOBODY, comment: str = "") -> Any:
            return ada.ResolveIncident(messages.ResolveIncidentRequest(name=name, comment=comment), timeout=5)

        def get(name: str) -> Any:
            return ada.GetIncident(messages.GetIncidentRequest(name=name))

        def listed(**fields: Any) -> Any:
            return ada.ListIncidents(messages.ListIncidentsRequest(**fields))

        def hours(**fields: Any) -> Any:
            return ada.ListActivity(messages.ListActivityRequest(**fields))

        def results(**fields: Any) -> Any:
            return ada.ListProbeResults(messages.ListProbeResultsRequest(parent="probes/gpu", **fields))

        table: list[tuple[Callable[[], Any], str, str]] = []
        for ask in (get, acknowledge, resolve):
            table += [(partial(ask, name), "ID_INVALID", "name") for name in NAMES]
            table.append((partial(ask, NOBODY), "INCIDENT_UNKNOWN", ""))
        for say in (acknowledge, resolve):
            for words in ("x" * 1001, "nul\0"):
                table.append((partial(say, comment=words), "FIELD_INVALID", "comment"))
        for page in (listed, hours, results):
            table += [
                (partial(page, page_size=-1), "PAGE_SIZE_INVALID", "page_size"),
                (partial(page, page_token="nonsense"), "PAGE_TOKEN_INVALID", "page_token"),
                (partial(page, page_token="é" * 9), "PAGE_TOKEN_INVALID", "page_token"),
                (partial(page, page_token="A" * 5000), "PAGE_TOKEN_INVALID", "page_token"),
            ]
        here: dict[str, Any] = {"method": "ListIncidents", "states": []}
        for position in (b'["\\ud800"]', b'["\\u0000"]', b"[1]", b'["a","b"]', b"{}", b"null"):
            token = forged(position, **here)
            table.append((partial(listed, page_token=token), "PAGE_TOKEN_INVALID", "page_token"))
        hour = forged(b"[92233720368547758080]", method="ListActivity")
        table += [
            (partial(hours, page_token=hour), "PAGE_TOKEN_INVALID", "page_token"),
            # A token of one query does not fit another.
            (
                partial(listed, page_token=forged(b"[1]", method="ListActivity")),
                "PAGE_TOKEN_INVALID",
                "page_token",
            ),
            (partial(listed, states=[resources.INCIDENT_STATE_UNSPECIFIED]), "ENUM_REQUIRED", "states"),
            (partial(activity, kind="Not A Word"), "FIELD_INVALID", "kind"),
            (partial(activity, kind="a" * 33), "FIELD_INVALID", "kind"),
            (partial(activity, count=-1), "FIELD_INVALID", "count"),
            (partial(activity, count=10**9 + 1), "FIELD_INVALID", "count"),
            (partial(activity, count=2**63 - 1), "FIELD_INVALID", "count"),
            (partial(activity, run_id="x" * 257), "FIELD_INVALID", "run_id"),
            (partial(activity, run_id="a\nb"), "FIELD_INVALID", "run_id"),
            (partial(activity, activity_time=FAR), "FIELD_INVALID", "activity_time"),
            (partial(activity, quiet_until_time=FAR), "FIELD_INVALID", "quiet_until_time"),
            (
                lambda: first(ada.WatchStatus(messages.WatchStatusRequest(after_seq=-1))),
                "FIELD_INVALID",
                "after_seq",
            ),
            (
                lambda: first(ada.WatchGpus(messages.WatchGpusRequest(after_seq=-1))),
                "FIELD_INVALID",
                "after_seq",
            ),
            (lambda: ada.RunProbe(messages.RunProbeRequest(name="probes/../x")), "ID_INVALID", "name"),
            (lambda: ada.RunProbe(messages.RunProbeRequest(name="probes/none")), "PROBE_UNKNOWN", ""),
        ]
        for call, reason, field in table:
            error = await refused(call())
            assert error.reason == reason, (reason, field, error)
            expected = (
                grpc.StatusCode.NOT_FOUND if reason.endswith("UNKNOWN") else grpc.StatusCode.INVALID_ARGUMENT
            )
            assert error.code == expected, error
            assert not field or [violation.field for violation in error.violations] == [field], error
        unknown_state = messages.ListIncidentsRequest.FromString(b"\x1a\x01\x63")
        assert (await refused(ada.ListIncidents(unknown_state))).reason == "ENUM_UNKNOWN"
        # Nothing of all that was taken for a user, or for a word of a person.
        assert not list((await hours()).activity_hours)
        assert monitor.database.read_sync(Outbox("monitor").events, 0, 10) == []


async def test_what_looks_bad_and_is_not(make_monitor: MakeMonitor) -> None:
    async with make_monitor() as monitor:
        stub = monitor.stub()
        # A number of another life of the service: the state comes at once.
        for after_seq in (10**6, 2**63 - 1):
            status = await first(stub.WatchStatus(messages.WatchStatusRequest(after_seq=after_seq)))
            assert not status.keep_alive
            gpus = await first(stub.WatchGpus(messages.WatchGpusRequest(after_seq=after_seq)))
            assert gpus.detail
        assert not (await stub.ListGpus(messages.ListGpusRequest())).gpus
        profile = await stub.GetActivityProfile(messages.GetActivityProfileRequest())
        assert len(profile.slots) == 168
        assert not profile.HasField("predicted_busy_time")
        # The most that a report stands for, again and again: the hour's sum fits its column.
        for _ in range(20):
            await stub.RecordActivity(messages.RecordActivityRequest(count=10**9), timeout=5)
        await monitor.core._save()
        page = await stub.ListActivity(messages.ListActivityRequest(page_size=10**6))
        assert sum(hour.activity_count for hour in page.activity_hours) == 20 * 10**9


async def test_who_may_say_a_word_on_incidents(make_monitor: MakeMonitor, platform: PlatformStandIn) -> None:
    platform.answers.pop("/api/settings/safety-level")
    async with make_monitor(platform_url=platform.url, **FAST) as monitor:
        incident = await opened(monitor)
        request = messages.AcknowledgeIncidentRequest(name=incident.name)
        end = messages.ResolveIncidentRequest(name=incident.name)
        for identity, reason in (
            ("person/vera", "ROLE_INSUFFICIENT"),
            ("platform/default", "CALLER_NOT_ALLOWED"),
            ("service/skills", "CALLER_NOT_ALLOWED"),
        ):
            stub = monitor.stub(identity)
            assert (await refused(stub.AcknowledgeIncident(request, timeout=5))).reason == reason
            assert (await refused(stub.ResolveIncident(end, timeout=5))).reason == reason
        ada, bo = monitor.stub("person/ada"), monitor.stub("person/bo")
        await ada.AcknowledgeIncident(request, timeout=5)
        assert (await refused(bo.AcknowledgeIncident(request, timeout=5))).reason == "INCIDENT_ACKNOWLEDGED"
        await bo.ResolveIncident(end, timeout=5)
        for call in (ada.ResolveIncident(end, timeout=5), ada.AcknowledgeIncident(request, timeout=5)):
            error = await refused(call)
            assert (error.code.name, error.reason) == ("FAILED_PRECONDITION", "INCIDENT_RESOLVED")
