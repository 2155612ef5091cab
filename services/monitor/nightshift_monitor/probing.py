"""Runs the declared probes: each at its interval and on demand, one look of a probe at a time."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence

from nightshift_kit.clock import Clock
from nightshift_monitor.activity import NANOSECONDS
from nightshift_monitor.declarations import ProbeDeclaration
from nightshift_monitor.errors import ProbeUnknown
from nightshift_monitor.idleness import PlatformFact, PlatformState
from nightshift_monitor.looks import Look
from nightshift_monitor.observations import ProbeResult, ProbeState, Seen
from nightshift_monitor.resources import ProbeName

# An answer may be this many intervals old before it no longer counts: two looks may be lost, three may not.
STALE_INTERVALS = 3

OnResult = Callable[[ProbeResult], Awaitable[None]]


class Prober:
    """Looks, remembers the last answer of each probe, and tells of each new one."""

    def __init__(
        self,
        probes: Sequence[ProbeDeclaration],
        looks: Mapping[str, Look],
        *,
        clock: Clock,
        default_interval_s: float,
        recheck_interval_s: float,
        on_result: OnResult,
    ) -> None:
        """``looks`` holds one way of looking for each kind; ``on_result`` is awaited after each look."""
        self._probes = {probe.name: probe for probe in probes}
        self._looks = looks
        self._clock = clock
        self._default_interval_s = default_interval_s
        self._recheck_interval_s = recheck_interval_s
        self._on_result = on_result
        self._latest: dict[str, ProbeResult] = {}
        self._looked_ns: dict[str, int] = {}
        self._running: dict[str, asyncio.Task[ProbeResult]] = {}
        self._loops: list[asyncio.Task[None]] = []

    @property
    def probes(self) -> tuple[ProbeDeclaration, ...]:
        """Declared probes, by name."""
        return tuple(self._probes[name] for name in sorted(self._probes))

    def probe(self, name: ProbeName) -> ProbeDeclaration:
        """One probe.

        Raises:
            ProbeUnknown: if none of that name is declared.
        """
        try:
            return self._probes[name.probe]
        except KeyError:
            known = ", ".join(sorted(self._probes))
            raise ProbeUnknown(
                f"There is no {name.name}; declared are: {known}.", metadata={"probe": name.name}
            ) from None

    def latest(self, probe: str) -> ProbeResult | None:
        """Last answer of a probe, of this or an earlier process; None before the first."""
        return self._latest.get(probe)

    def interval_s(self, probe: ProbeDeclaration) -> float:
        """Time between looks at a probe that answers."""
        return self._default_interval_s if probe.interval_s is None else probe.interval_s

    def recall(self, results: Sequence[ProbeResult]) -> None:
        """Shows answers of an earlier process until there are new ones; they never count for the platform."""
        for result in results:
            if result.probe in self._probes:
                self._latest.setdefault(result.probe, result)

    def start(self) -> None:
        """Begins to look, at once and then at the intervals."""
        self._loops = [
            asyncio.create_task(self._look_for_ever(probe), name=f"probe {probe.name}")
            for probe in self.probes
        ]

    async def stop(self) -> None:
        """Ends all looking."""
        tasks = [*self._loops, *self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._loops = []
        self._running = {}

    async def look_now(self, name: ProbeName) -> ProbeResult:
        """Looks now, or joins the look that is under way; the answer is stored before this returns.

        Raises:
            ProbeUnknown: if none of that name is declared.
        """
        probe = self.probe(name)
        task = self._running.get(probe.name)
        if task is None:
            task = asyncio.create_task(self._look(probe), name=f"look {probe.name}")
            self._running[probe.name] = task
            task.add_done_callback(lambda _: self._running.pop(probe.name, None))
        # A caller that leaves must not take the look from the others.
        return await asyncio.shield(task)

    def platform(self) -> PlatformFact:
        """What the probes marked ``platform`` say together: one that is down means gone.

        Only looks of this process count; one that is older than three intervals counts as unknown.
        """
        marked = [probe for probe in self.probes if probe.platform]
        if not marked:
            return PlatformFact(
                PlatformState.UNKNOWN,
                "no address of it is set (NIGHTSHIFT_MONITOR_PLATFORM_URL, or platform_url in"
                " section [monitor] of settings.toml).",
            )
        valid_until: list[int] = []
        worst = PlatformFact(PlatformState.UP, "")
        order = (PlatformState.UP, PlatformState.STARTING, PlatformState.UNKNOWN, PlatformState.DOWN)
        for probe in marked:
            looked_ns = self._looked_ns.get(probe.name)
            result = self._latest.get(probe.name)
            if looked_ns is None or result is None:
                fact = PlatformFact(PlatformState.STARTING, f"probes/{probe.name} has no answer yet.")
            else:
                age_ns = round((STALE_INTERVALS * self.interval_s(probe) + probe.timeout_s) * NANOSECONDS)
                valid_until.append(looked_ns + age_ns)
                states = {ProbeState.DOWN: PlatformState.DOWN, ProbeState.UNKNOWN: PlatformState.UNKNOWN}
                state = states.get(result.state, PlatformState.UP)
                fact = PlatformFact(state, f"probes/{probe.name}: {result.detail}.")
            if order.index(fact.state) > order.index(worst.state) or not worst.detail:
                worst = fact
        return PlatformFact(worst.state, worst.detail, min(valid_until, default=None))

    async def _look_for_ever(self, probe: ProbeDeclaration) -> None:
        while True:
            result = await self.look_now(ProbeName(probe.name))
            interval_s = self.interval_s(probe)
            if result.state is ProbeState.DOWN:
                interval_s = min(interval_s, self._recheck_interval_s)
            # A little spread keeps the probes from all waking the machine in the same instant.
            await asyncio.sleep(interval_s * random.uniform(0.95, 1.0))  # noqa: S311 - no secret hangs on it

    async def _look(self, probe: ProbeDeclaration) -> ProbeResult:
        probe_time = self._clock.now()
        begin_ns = self._clock.boottime_ns()
        seen = await self._seen(probe)
        end_ns = self._clock.boottime_ns()
        latency_s = (end_ns - begin_ns) / NANOSECONDS
        if seen.state is ProbeState.UP and latency_s > probe.degraded_latency_s:
            seen = Seen(ProbeState.DEGRADED, f"{seen.detail}, but slow ({latency_s:.1f} s)")
        # Somebody else's words, perhaps: one printable line, which every store takes.
        detail = "".join(character if character.isprintable() else " " for character in seen.detail)[:500]
        result = ProbeResult(probe.name, seen.state, probe_time, latency_s, detail)
        self._latest[probe.name] = result
        self._looked_ns[probe.name] = begin_ns
        await self._on_result(result)
        return result

    async def _seen(self, probe: ProbeDeclaration) -> Seen:
        look = self._looks[probe.kind]
        with contextlib.suppress(TimeoutError):
            # The look bounds itself; this bound is for the one that drips on for ever.
            async with asyncio.timeout(probe.timeout_s + 0.5):
                return await look.look(probe)
        return Seen(ProbeState.DOWN, f"no answer within {probe.timeout_s:g} s")
