"""Leases in discrete time: a trainer that is cut off, paused, killed or asleep leaves the GPU in time.

What it mirrors, with the very constants of the code:

- `nightshift_skills.stops.Leases`: a renewal each LEASE_INTERVAL_S, given up after LEASE_TIMEOUT_S;
- `nightshift_kit.rpc.stop.StopHub.renew`, `.watch_leases`, `._kill_rest`: the lease counts from the arrival
  of a renewal, on CLOCK_BOOTTIME; after LEASE_S the work is asked to stop, and killed KILL_AFTER_S later;
  `Registration.over_ns` says when that is at the latest;
- `nightshift_trainer.supervisor.Supervisor._beat` and `nightshift_trainer.worker.deadman`: a beat tells the
  worker when its lease is over; it dies by itself then, or HEARTBEAT_TIMEOUT_S after the last beat, and with
  its parent;
- `nightshift_trainer.engine.Engine.recover` and `.running`: a new supervisor kills what an earlier one left
  before it serves, and holds one worker at a time.

All spans are rounded against the plane: what protects may come a tick late, what harms a tick early. The
supervisor's clock may lose one tick during a lease (bounded drift, two hosts).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from models.explorer import Step
from nightshift_kit.rpc import stop as hub
from nightshift_skills import stops
from nightshift_trainer import supervisor
from nightshift_trainer.worker import process

TICK_S = 0.2
# governance.md: skills promises 3 s.
PROMISE_S = 3.0


def _ticks(seconds: float) -> int:
    return math.ceil(round(seconds / TICK_S, 6))


LEASE = _ticks(hub.LEASE_S)
KILL_AFTER = _ticks(hub.KILL_AFTER_S)
LOOK = _ticks(hub._LOOK_EACH_S)
INTERVAL = _ticks(stops.LEASE_INTERVAL_S)
GIVEN_UP = _ticks(stops.LEASE_TIMEOUT_S)
BEAT = _ticks(supervisor.BEAT_S)
DEADMAN = _ticks(process.HEARTBEAT_TIMEOUT_S)
# From a renewal to the end of what was not renewed again.
OVER = LEASE + LOOK + KILL_AFTER
# So long a work may be on the GPU after the last renewal, whatever becomes of skills and of its supervisor.
PROMISE = _ticks(PROMISE_S)
_CAP = LEASE + LOOK + DEADMAN + INTERVAL


class Wrong(StrEnum):
    """How the protocol would be wrong."""

    NO_WATCHDOG = "the worker has no watchdog of its own"
    WALL_CLOCK = "the lease counts on the supervisor's wall clock"
    MONOTONIC = "the lease counts on CLOCK_MONOTONIC, which stands still while the machine sleeps"
    NO_KILL = "what does not exit by itself is not killed, and its watchdog knows no lease"
    FROM_THE_BEAT = "the worker's watchdog counts from the last beat and knows no lease"
    LEFT_BEHIND = "a worker outlives its supervisor, and the next one does not look for it first"


@dataclass(frozen=True, slots=True)
class State:
    """One skills, one supervisor, its worker and the one that an earlier supervisor left.

    Spans in ticks. `held` counts the ticks awake in which the worker was on the GPU since the last renewal
    (those asleep count up to the lease's end), `deaf` those since the last beat, `due` those until the lease
    that the worker was told of is over.
    """

    link: bool = True
    renew_in: int = 0
    flying: int = -1
    supervisor: str = "up"
    working: bool = True
    left_behind: bool = False
    lease_own: int = 0
    held: int = 0
    drift: int = 1
    beat_in: int = 0
    deaf: int = 0
    due: int = OVER
    stopping: int = -1
    faults: int = 1


class Leases:
    """See the module."""

    def __init__(self, wrong: Wrong | None = None, *, faults: int = 1) -> None:
        """Args: the variant, and how many faults there may be (1 or 2)."""
        self.wrong = wrong
        # A wall clock that is set back does harm once the renewals cease, too.
        faults = 2 if wrong is Wrong.WALL_CLOCK else faults
        self._faults = faults

    @property
    def name(self) -> str:
        """Of the variant."""
        return f"leases, faults: {self._faults}" if self.wrong is None else f"leases: {self.wrong}"

    def starts(self) -> Iterable[State]:
        """A worker has just begun."""
        return [State(faults=self._faults)]

    def broken(self, state: State) -> str:
        """Two holders, or one beyond its lease."""
        if state.working and state.left_behind:
            return "TWO_GPU_HOLDERS"
        if state.held > PROMISE:
            return "ON_THE_GPU_BEYOND_ITS_LEASE"
        if state.deaf > DEADMAN:
            return "ON_THE_GPU_BEYOND_ITS_WATCHDOG"
        return ""

    def goal(self, state: State) -> bool:
        """A worker works with a lease that is renewed, or none does."""
        return not state.working or (state.link and state.supervisor == "up" and state.stopping < 0)

    def steps(self, state: State) -> Iterator[Step]:
        """Time, messages, the worker's own end, and faults."""
        if state.flying < GIVEN_UP or state.supervisor != "up":
            yield Step("time passes", self._tick(state))
        if state.flying >= 0 and state.supervisor == "up":
            yield Step("the renewal arrives", self._renewed(state))
        if state.working and state.stopping >= 0:
            yield Step("the worker leaves as asked", _ended(state))
        if state.supervisor == "up" and not state.working and not self._holds_up(state):
            yield Step("the next training begins", replace(state, working=True))
        if state.left_behind:
            yield Step("its watchdog ends what was left behind", replace(state, left_behind=False))
        if state.supervisor == "dead":
            # Engine.recover kills what is left before it serves.
            left = state.left_behind and self.wrong is Wrong.LEFT_BEHIND
            yield Step("the supervisor is started again", replace(state, supervisor="up", left_behind=left))
        if state.supervisor == "paused":
            yield Step("SIGCONT to the supervisor", replace(state, supervisor="up"))
        if not state.link:
            yield Step("skills is back", replace(state, link=True, renew_in=0))
        yield from self._faulty(state)

    def _faulty(self, state: State) -> Iterator[Step]:
        if not state.faults:
            return
        paid = replace(state, faults=state.faults - 1)
        if state.flying >= 0:
            yield Step("the renewal is lost", replace(paid, flying=-1), fault=True)
        if state.link:
            yield Step("skills is cut off, paused or killed", replace(paid, link=False), fault=True)
        if state.supervisor == "up":
            yield Step("SIGSTOP to the supervisor", replace(paid, supervisor="paused"), fault=True)
        if state.supervisor != "dead":
            yield Step("kill -9 of the supervisor", self._supervisor_killed(paid), fault=True)
        yield Step("the wall clock is set back", self._set_back(paid), fault=True)
        yield Step("the machine sleeps for a minute", self._slept(paid), fault=True)

    def _tick(self, state: State) -> State:
        renew_in, flying = state.renew_in, state.flying
        if flying >= 0:
            # What a paused process has in its socket stays there, and counts as fresh when it goes on.
            flying = min(flying + 1, GIVEN_UP)
        if state.link and state.supervisor != "dead":
            renew_in -= 1
            if renew_in <= 0:
                renew_in, flying = INTERVAL, 0 if flying < 0 else flying
        # Nobody but the worker's own bookkeeping counts while there is none.
        if not state.working:
            return replace(state, renew_in=max(renew_in, 0), flying=flying)
        # The clock that loses a tick does so at the worst moment: just before the lease would be over.
        slips = bool(state.drift) and state.lease_own == LEASE
        state = replace(
            state,
            renew_in=max(renew_in, 0),
            flying=flying,
            lease_own=min(state.lease_own + (not slips), _CAP),
            held=min(state.held + 1, _CAP),
            drift=state.drift - slips,
            deaf=min(state.deaf + 1, _CAP),
            due=max(state.due - 1, 0),
        )
        if state.supervisor == "up":
            state = self._supervised(state)
        lapsed = state.due <= 0 and self.wrong not in (Wrong.FROM_THE_BEAT, Wrong.NO_KILL)
        if self.wrong is not Wrong.NO_WATCHDOG and (lapsed or state.deaf >= DEADMAN):
            return _ended(state)
        return state

    def _supervised(self, state: State) -> State:
        """One tick of a supervisor that runs: kill, or look at the lease and beat."""
        if state.stopping >= 0:
            stopping = state.stopping + 1
            if stopping >= KILL_AFTER and self.wrong is not Wrong.NO_KILL:
                return _ended(state)
            return replace(state, stopping=min(stopping, KILL_AFTER))
        if state.lease_own >= LEASE + LOOK:
            return replace(state, stopping=0)
        if state.beat_in <= 1:
            return replace(state, beat_in=BEAT, deaf=0, due=OVER - state.lease_own)
        return replace(state, beat_in=state.beat_in - 1)

    def _renewed(self, state: State) -> State:
        return replace(state, flying=-1, lease_own=0, held=0, drift=1)

    def _set_back(self, state: State) -> State:
        if self.wrong is Wrong.WALL_CLOCK:
            return replace(state, lease_own=-_CAP)
        return state

    def _slept(self, state: State) -> State:
        """Nothing runs meanwhile; the kernel's timers on CLOCK_BOOTTIME fire at the end."""
        slept = replace(state, held=max(state.held, LEASE)) if state.working else state
        if self.wrong is Wrong.MONOTONIC:
            return slept
        if state.working and self.wrong is not Wrong.NO_WATCHDOG:
            return _ended(slept)
        return replace(slept, lease_own=_CAP) if slept.working else slept

    def _supervisor_killed(self, state: State) -> State:
        if self.wrong is Wrong.LEFT_BEHIND:
            return replace(_ended(state), supervisor="dead", flying=-1, left_behind=state.working)
        # PR_SET_PDEATHSIG: the kernel kills the worker with its parent.
        return replace(_ended(state), supervisor="dead", flying=-1)

    @staticmethod
    def _holds_up(state: State) -> bool:
        # Engine.running: one worker at a time; a background training begins under a lease alone.
        return not state.link


def _ended(state: State) -> State:
    return replace(
        state,
        working=False,
        lease_own=0,
        held=0,
        drift=1,
        beat_in=0,
        deaf=0,
        due=OVER,
        stopping=-1,
    )
