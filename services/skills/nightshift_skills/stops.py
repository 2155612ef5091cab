"""STOP and leases: what skills tells the control ports of the acting services. Lives on the control loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import structlog

from nightshift.skills.v1 import control_service_pb2 as control_pb
from nightshift_kit.clock import Clock
from nightshift_kit.errors import NightshiftError
from nightshift_skills.ports import StopPort

_log = structlog.get_logger("nightshift.skills.stops")

# The acting services kill what has not exited 600 ms after STOP; a service that needs longer counts as
# silent.
STOP_TIMEOUT_S = 5.0
# A grant that a silent leader had in hand when its term ended can begin a call for so long: 30 s, and 5 s for
# clocks that differ.
GRANTS_LAPSE_S = 35.0
# A stop that goes well is done within a second; after this it is sent again.
ATTEMPT_S = 1.5
RESEND_S = 0.25
LEASE_INTERVAL_S = 1.0
# While no run is at work there is nothing to renew; a service that started anew hears the fence this late.
IDLE_INTERVAL_S = 5.0
LEASE_TIMEOUT_S = 0.9
# What is not renewed is gone 3 s later; a renewal may have been on its way when the gate was closed.
LAPSE_S = 3.0 + LEASE_TIMEOUT_S


@dataclass(slots=True)
class ServiceStop:
    """How one service took a STOP. Times in nanoseconds of CLOCK_BOOTTIME.

    `lapsed` says that it never confirmed, and that the leases of what ran there have run out since.
    """

    service: str
    delivered_ns: int | None = None
    cooperative_ns: int | None = None
    done_ns: int | None = None
    released_ns: int | None = None
    release_detail: str = ""
    running_count: int = 0
    killed_count: int = 0
    lapsed: bool = False

    @property
    def done(self) -> bool:
        """Whether the service said that nothing runs any more."""
        return self.done_ns is not None


@dataclass(slots=True)
class StopResult:
    """How all services took it."""

    services: list[ServiceStop] = field(default_factory=list)

    @property
    def confirmed(self) -> bool:
        """Whether each said that nothing runs any more, or its leases have lapsed."""
        return all(service.done or service.lapsed for service in self.services)

    @property
    def lapsed(self) -> tuple[str, ...]:
        """Services of which the lapsed leases alone tell that nothing runs any more."""
        return tuple(service.service for service in self.services if service.lapsed)

    @property
    def released_ns(self) -> int | None:
        """When the last service that holds GPU memory had it back; None where that cannot be told."""
        telling = [service for service in self.services if service.release_detail]
        if any(service.released_ns is None for service in telling):
            return None
        return max((s.released_ns for s in telling if s.released_ns is not None), default=None)

    @property
    def release_detail(self) -> str:
        """What that rests on."""
        silent = [service.service for service in self.services if not service.done]
        told = [service.release_detail for service in self.services if service.release_detail]
        return " ".join(told) or (f"Not told: {', '.join(silent)} did not confirm." if silent else "")

    @property
    def delivered_ns(self) -> int | None:
        """When the last service that answered had delivered STOP to its work."""
        return max((s.delivered_ns for s in self.services if s.delivered_ns is not None), default=None)

    @property
    def cooperative_ns(self) -> int | None:
        """The last exit that needed no killing."""
        return max((s.cooperative_ns for s in self.services if s.cooperative_ns is not None), default=None)

    @property
    def done_ns(self) -> int | None:
        """When nothing ran any more anywhere; None unless all said so."""
        if not all(service.done for service in self.services):
            return None
        return max((s.done_ns for s in self.services if s.done_ns is not None), default=None)

    @property
    def running_count(self) -> int:
        """Works that ran when STOP arrived."""
        return sum(service.running_count for service in self.services)

    @property
    def killed_count(self) -> int:
        """Works that had to be killed."""
        return sum(service.killed_count for service in self.services)


class Stops:
    """Sends STOP to all acting services at once."""

    def __init__(self, port: StopPort, services: tuple[str, ...], clock: Clock) -> None:
        self._port = port
        self._services = services
        self._clock = clock

    async def insist(self, request: control_pb.StopRequest, span_s: float) -> None:
        """Sends a STOP again to whoever has not confirmed it, for so long."""
        until_ns = self._clock.boottime_ns() + round(span_s * 1e9)

        async def send(state: ServiceStop) -> None:
            while not state.done and self._clock.boottime_ns() < until_ns:
                await self._attempt(state, request, ATTEMPT_S)
                await asyncio.sleep(RESEND_S)

        await asyncio.gather(*(send(ServiceStop(service)) for service in self._services))

    async def deliver(self, request: control_pb.StopRequest, *, persist: bool = False) -> StopResult:
        """Stops; returns when each service is done or silent. Never raises for a service that is down.

        Args:
            request: The STOP.
            persist: Whether it is sent again, under the same fence, to services that do not confirm it, until
                they do or the leases of what ran there have lapsed. Only for stops after which no lease of
                what is to be stopped is renewed.
        """
        states = [ServiceStop(service) for service in self._services]
        send = self._until_confirmed if persist else self._once
        await asyncio.gather(*(send(state, request) for state in states))
        return StopResult(states)

    async def _until_confirmed(self, state: ServiceStop, request: control_pb.StopRequest) -> None:
        lapse_ns = self._clock.boottime_ns() + round(LAPSE_S * 1e9)
        while True:
            await self._attempt(state, request, ATTEMPT_S)
            if state.done or self._clock.boottime_ns() >= lapse_ns:
                break
            await asyncio.sleep(RESEND_S)
        # A person's own work has no lease: what is not told of it is not known.
        state.lapsed = not state.done and not request.on_purpose_too

    async def _once(self, state: ServiceStop, request: control_pb.StopRequest) -> None:
        await self._attempt(state, request, STOP_TIMEOUT_S)

    async def _attempt(self, state: ServiceStop, request: control_pb.StopRequest, patience_s: float) -> None:
        loop = asyncio.get_running_loop()
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s) as patience:
                # Told here: what is waited for after DONE, GPU memory, has a time of its own.
                await self._hear(state, request, lambda: patience.reschedule(loop.time() + STOP_TIMEOUT_S))

    async def _hear(
        self, state: ServiceStop, request: control_pb.StopRequest, on_done: Callable[[], None]
    ) -> None:
        earliest_ns = self._clock.boottime_ns()
        try:
            async for message in self._port.stop(state.service, request, timeout_s=2 * STOP_TIMEOUT_S):
                at_ns = self._instant(message, earliest_ns)
                if message.phase == control_pb.STOP_PHASE_DELIVERED and state.delivered_ns is None:
                    state.delivered_ns = at_ns
                    state.running_count = message.running_count
                elif message.phase == control_pb.STOP_PHASE_EXITED and message.killed:
                    state.killed_count += 1
                elif message.phase == control_pb.STOP_PHASE_EXITED:
                    state.cooperative_ns = at_ns
                elif message.phase == control_pb.STOP_PHASE_DONE:
                    state.done_ns = at_ns
                    on_done()
                elif message.phase == control_pb.STOP_PHASE_RELEASED:
                    state.released_ns = at_ns if message.HasField("boottime") else None
                    state.release_detail = message.detail or "Told by the service."
        except NightshiftError as error:
            # What runs there stops by itself when its lease runs out.
            _log.warning("STOP not confirmed", to=state.service, reason=error.reason)

    def _instant(self, message: control_pb.StopResponse, earliest_ns: int) -> int:
        # The service's own reading, if it shares our boot clock; otherwise the arrival here, which is later.
        now_ns = self._clock.boottime_ns()
        told_ns = message.boottime.ToNanoseconds()
        return told_ns if earliest_ns <= told_ns <= now_ns else now_ns


class Leases:
    """Renews leases each second while runs are at work, and tells the fence to whoever does not know it."""

    def __init__(
        self,
        port: StopPort,
        services: tuple[str, ...],
        leases: Callable[[], tuple[int, frozenset[str]]],
        raise_above: Callable[[int], object],
        leads: Callable[[], bool] = lambda: True,
    ) -> None:
        """Args: `leads` says whether this replica may keep work going."""
        self._leads = leads
        self._port = port
        self._services = services
        self._leases = leases
        self._raise_above = raise_above
        self._known: dict[str, bool] = dict.fromkeys(services, False)
        self._begun = {service: asyncio.Event() for service in services}

    def hurry(self, loop: asyncio.AbstractEventLoop) -> None:
        """Renews now, because a run begins. From any thread; `loop` is the one that renews."""
        loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        for event in self._begun.values():
            event.set()

    async def run(self) -> None:
        """Renews until cancelled."""
        await asyncio.gather(*(self._keep(service) for service in self._services))

    async def _keep(self, service: str) -> None:
        loop = asyncio.get_running_loop()
        begun = self._begun[service]
        while True:
            begun.clear()
            began_s = loop.time()
            taken = await self.renew(service)
            idle = taken and not self._leases()[1]
            interval_s = IDLE_INTERVAL_S if idle else LEASE_INTERVAL_S
            with suppress(TimeoutError):
                async with asyncio.timeout_at(max(began_s + interval_s, loop.time() + 0.05)):
                    await begun.wait()

    async def renew(self, service: str) -> bool:
        """One renewal; whether the service took it."""
        if not self._leads():
            return False
        fence, runs = self._leases()
        request = control_pb.RenewLeaseRequest(
            fence=fence, skill_runs=[f"skillRuns/{run}" for run in sorted(runs)]
        )
        try:
            response = await self._port.renew_lease(service, request, timeout_s=LEASE_TIMEOUT_S)
        except NightshiftError as error:
            if error.reason == "PREEMPTED":
                # The service has seen a higher fence than ours: our store came from a backup, or another
                # replica leads, and then the store refuses.
                seen = error.metadata.get("highest", "")
                if await self._go_above(int(seen) if seen.isdigit() else fence + 1_000):
                    _log.error("fence behind a service's; raised", to=service, seen=seen)
            elif self._known[service]:
                _log.warning("lease not renewed", to=service, reason=error.reason)
            self._known[service] = False
            return False
        if response.fence > fence and response.fence > self._leases()[0]:
            await self._go_above(response.fence)
        self._known[service] = True
        return True

    async def _go_above(self, seen: int) -> bool:
        """Raises our fence above one that a service has seen; whether that was possible."""
        try:
            await asyncio.to_thread(self._raise_above, seen)
        except NightshiftError as error:
            _log.error("fence behind a service's, and not raised", seen=seen, reason=error.reason)
            return False
        return True
