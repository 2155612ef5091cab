"""One approved call between skills and an acting service: gate, fences, STOP, grants and single use.

Untimed: everybody may be as slow as one likes (a paused process is one that takes no step), both sides
crash, users come, the lock is set. What was sent stays on the wire: it may arrive at any time, in any
order, any number of times or never, until the process that it was sent to is killed and its connections
with it; with `late_calls`, a call that was still waiting in skills then reaches the next process. Gate,
fences, the service's gate and the effect's transaction are the product's own code (`models.real`).
Mirrored by hand, step by step:

- `nightshift_skills.preemption.Preemptor.report`, `.lock`, `.announce`; `lockdown.Lockdown.engage`;
- `nightshift_skills.scheduler.Scheduler.reconsider`: signs are read, then the monitor is asked, then the
  gate opens;
- `nightshift_skills.executor.Executor.start`, `._call_once`, `._persist`, and `progress.Progress`: a call
  is stored with its jti before it is made; `runs.Run.moved` for the ways between a run's states;
- `nightshift_kit.rpc.guard.Guard._admit_acting`, `rpc.stop.StopHub.stop` and `.renew`: a call is let in,
  and its transaction comes later. An interrupted call is let go on to its transaction: cancelling stops no
  thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

from models import real
from models.explorer import Step
from models.real import Control, Verifier
from nightshift_skills import runs
from nightshift_skills.runs import ENDED, WAITING, RunState


class Wrong(StrEnum):
    """How the protocol would be wrong."""

    FENCE_NOT_RECHECKED = "the fence is not checked again in the effect's transaction"
    JTI_AFTER_EFFECT = "the jti is inserted after the effect, in a transaction of its own"
    CALL_NOT_STORED = "a call is made before its jti is stored"
    CLOSED_AFTER_STOP = "the gate is closed after STOP instead of before"
    OPENS_BLINDLY = "the gate opens without comparing the signs read before the monitor was asked"
    SERVICE_STARTS_OPEN = "a service that starts anew lets background work in before it was told the fence"
    FENCES_BEGIN_ANEW = "a restart begins with the fences of the last life instead of the next block"
    OUTLIVES_CONNECTION = "what was sent to a killed service reaches the one that is started after it"
    NOT_FENCED_AT_START = "a service that starts anew lets in what a person was granted before"
    LOCK_NOT_STORED = "the lock is acknowledged before it is durable"
    LOCK_STOPS_WHAT_RUNS = "the lock stops what runs, but voids no grant that is on its way"


class Message(NamedTuple):
    """On the wire: "call", "answer", "stop" or "renew". `text` is a call's jti, an answer's reason."""

    kind: str
    fence: int
    text: str = ""
    everything: bool = False
    life: int = 1


_WORDS = {"call": "the call", "stop": "STOP", "renew": "the renewal"}


class Left(NamedTuple):
    """How often what need not happen may still happen."""

    signs: int
    skills_crashes: int
    service_crashes: int
    locks: int


@dataclass(frozen=True, slots=True)
class State:
    """Skills, wire, service, and what only the model knows.

    `told` and `told_all` are the highest fences that a Stop or a renewal has told the service, for background
    work and for everything; `told_life` the last life of skills that it has heard of, `informed` whether it
    was told anything since its start. `wrong` names what broke.
    """

    control: Control | None
    verifier: Verifier
    left: Left
    run: RunState = RunState.QUEUED
    call: str = ""
    jtis: int = 0
    lock_stored: bool = False
    lock_said: bool = False
    reserved: int = 0
    looked: int = -1
    present: bool = True
    closing: bool = False
    life: int = 1
    wire: frozenset[Message] = frozenset()
    service_up: bool = True
    storing: tuple[int, bool] | None = None
    admitted: frozenset[Message] = frozenset()
    unredeemed: str = ""
    redeemed: tuple[str, ...] = ()
    effects: int = 0
    told: int = 0
    told_all: int = 0
    told_life: int = 0
    informed: bool = False
    wrong: str = ""

    def sent(self, *messages: Message) -> State:
        """With messages on the wire."""
        return replace(self, wire=self.wire | frozenset(messages))


class Effects:
    """See the module."""

    def __init__(
        self, wrong: Wrong | None = None, *, on_purpose: bool = False, late_calls: bool = False, left: Left
    ) -> None:
        """Makes a model.

        Args: the variant, whose work it is, whether a call that has not left skills when the service is
        killed may reach the next process, and how often what need not happen may happen.
        """
        self.wrong = wrong
        self._on_purpose = on_purpose
        self._late_calls = late_calls or wrong is Wrong.NOT_FENCED_AT_START
        self._left = left

    @property
    def name(self) -> str:
        """Of the variant."""
        whose = "a person's own work" if self._on_purpose else "background work"
        late = ", late calls" if self._late_calls else ""
        return f"effects: {self.wrong or f'{whose}{late}, {tuple(self._left)}'}"

    def starts(self) -> Iterable[State]:
        """An approved run waits; nobody has told the service anything."""
        control = real.started(0)
        verifier = real.restarted(Verifier(0, 0, False, 0, 0))
        return [State(control=control, verifier=verifier, left=self._left, reserved=control.reserved)]

    def broken(self, state: State) -> str:
        """What must never be."""
        if state.wrong:
            return state.wrong
        if state.effects > 1:
            return "EFFECT_TWICE"
        if state.run is RunState.SUCCEEDED and not state.effects:
            return "EFFECT_LOST"
        return ""

    def goal(self, state: State) -> bool:
        """The effect has happened and is known, or the run waits for a person."""
        if state.run is RunState.SUCCEEDED:
            return True
        waits = state.present and not self._on_purpose
        return state.control is not None and (waits or state.control.locked)

    def steps(self, state: State) -> Iterator[Step]:
        """All of skills, the wire, and the service."""
        if state.run is RunState.SUCCEEDED:
            return
        if state.control is not None:
            yield from self._of_skills(state, state.control)
        else:
            yield Step("skills starts again", self._skills_started(state))
        if state.service_up:
            yield from self._of_service(state)
        else:
            yield Step("the service starts again", self._service_started(state))
        yield from self._crashes(state)

    # Skills.

    def _of_skills(self, state: State, control: Control) -> Iterator[Step]:
        if state.present:
            yield Step("the user leaves", replace(state, present=False))
        if state.left.signs:
            yield Step("a user comes", self._user_came(state, control), fault=True)
        if state.closing:
            closed, _ = self._asked(control, "close")
            yield Step("the gate is closed at last", replace(state, control=closed, closing=False))
        if not state.present and state.looked < 0 and not control.is_open:
            yield Step("the monitor finds the machine idle", replace(state, looked=control.signs))
        if state.looked >= 0:
            signs = control.signs if self.wrong is Wrong.OPENS_BLINDLY else state.looked
            opened, _ = self._asked(control, "try_open", signs)
            yield Step("the gate opens if it may", replace(state, control=opened, looked=-1))
        renewal = Message("renew", control.fence, life=state.life)
        if renewal not in state.wire:
            yield Step("a renewal is sent", state.sent(renewal))
        yield from self._of_lock(state, control)
        yield from self._of_run(state, control)

    def _user_came(self, state: State, control: Control) -> State:
        state = replace(state, present=True, left=state.left._replace(signs=state.left.signs - 1))
        if self.wrong is Wrong.CLOSED_AFTER_STOP and control.is_open:
            raised = control._replace(fence=control.fence + 1, signs=control.signs + 1)
            state = replace(state, control=raised, closing=True)
            return state.sent(Message("stop", raised.fence, life=state.life))
        closed, _ = self._asked(control, "close")
        state = replace(state, control=closed)
        if closed.fence == control.fence:
            return state
        return state.sent(Message("stop", closed.fence, life=state.life))

    def _of_lock(self, state: State, control: Control) -> Iterator[Step]:
        if state.left.locks and not control.locked:
            locked, _ = self._asked(control, "engage")
            said = self.wrong is Wrong.LOCK_NOT_STORED
            left = state.left._replace(locks=state.left.locks - 1)
            after = replace(state, control=locked, left=left, lock_said=said)
            stop = Message("stop", locked.fence, everything=True, life=state.life)
            yield Step("the lock is set", after.sent(stop), fault=True)
        if control.locked and not state.lock_stored:
            yield Step("the lock is stored and said", replace(state, lock_stored=True, lock_said=True))
        if control.locked and state.lock_stored:
            released, _ = self._asked(control, "release")
            after = replace(state, control=released, lock_stored=False, lock_said=False)
            yield Step("an admin lifts the lock", after, fault=True)

    def _of_run(self, state: State, control: Control) -> Iterator[Step]:
        if not control.live_fence:
            if state.run in WAITING:
                entered, refused = self._asked(control, "enter")
                if not refused:
                    yield Step("the run begins", self._entered(state, entered))
            return
        if control.cause:
            yield Step("the run gives way", self._left_off(state, control))
            return
        if not state.call:
            begun = replace(state, call="begun", jtis=state.jtis + 1)
            if self.wrong is Wrong.CALL_NOT_STORED:
                begun = replace(begun, call="")
                yield Step("the call is made", begun.sent(self._call(begun, control)))
            else:
                yield Step("the call is stored", begun)
        elif state.call == "begun":
            if self._call(state, control) not in state.wire:
                yield Step("the call is made", state.sent(self._call(state, control)))
        else:
            after = replace(state, run=_moved(state.run, RunState.SUCCEEDED))
            yield Step("the run ends", after)
        for message in state.wire:
            if message.kind == "answer":
                if message.text == "ok":
                    yield Step("the answer arrives", replace(state, call="answered"))
                else:
                    # Or it is not heard, and the same call arrives once more: a retry.
                    yield Step("a refusal arrives and the run waits", self._left_off(state, control))

    def _call(self, state: State, control: Control) -> Message:
        return Message("call", control.live_fence, f"j{state.jtis}", life=state.life)

    def _entered(self, state: State, control: Control) -> State:
        wrong = state.wrong
        if not self._on_purpose and state.present:
            wrong = "BACKGROUND_WORK_BEGAN_WITH_A_USER_HERE"
        if state.lock_said:
            wrong = "WORK_BEGAN_UNDER_THE_LOCK"
        return replace(state, control=control, run=_moved(state.run, RunState.RUNNING), wrong=wrong)

    def _left_off(self, state: State, control: Control) -> State:
        """The run stops working; whatever its call answers finds nobody."""
        left, _ = self._asked(control, "leave")
        wire = frozenset(message for message in state.wire if message.kind != "answer")
        return replace(state, control=left, wire=wire, run=_moved(state.run, RunState.PREEMPTED))

    def _asked(self, control: Control, operation: str, argument: int = 0) -> tuple[Control, str]:
        return real.control(control, operation, argument, background=not self._on_purpose)

    # The service.

    def _of_service(self, state: State) -> Iterator[Step]:
        for message in state.wire:
            if message.kind == "answer":
                continue
            took = self._call_came if message.kind == "call" else self._fence_came
            yield Step(f"{_WORDS[message.kind]} arrives", took(state, message))
        if state.storing is not None:
            after = real.stored(state.verifier, *state.storing)
            yield Step("the fence is durable there", replace(state, verifier=after, storing=None))
        for call in state.admitted:
            rest = replace(state, admitted=state.admitted - {call})
            yield Step("the effect's transaction", self._transaction(rest, call))
        if state.unredeemed:
            after_jti = tuple(sorted({*state.redeemed, state.unredeemed}))
            redeemed = replace(state, redeemed=after_jti, unredeemed="")
            yield Step("the jti is inserted", redeemed.sent(Message("answer", 0, "ok")))

    def _fence_came(self, state: State, message: Message) -> State:
        everything = message.everything and self.wrong is not Wrong.LOCK_STOPS_WHAT_RUNS
        verifier, taken = real.told(state.verifier, message.fence, everything)
        if not taken:
            return state
        if self.wrong is Wrong.NOT_FENCED_AT_START and not everything:
            verifier = verifier._replace(everything=state.verifier.everything)
        state = replace(
            state,
            verifier=verifier,
            told=max(state.told, message.fence),
            told_all=max(state.told_all, message.fence) if message.everything else state.told_all,
            told_life=max(state.told_life, message.life),
            informed=True,
        )
        if message.kind == "renew":
            # StopHub.renew raises in memory alone; the gate is closed again after a start.
            return state
        fence, all_too = state.storing or (0, False)
        return replace(state, storing=(max(fence, message.fence), everything or all_too))

    def _call_came(self, state: State, message: Message) -> State:
        verifier, refused = real.checked(state.verifier, message.fence, self._on_purpose)
        state = replace(state, verifier=verifier)
        if refused:
            return self._answered(state, refused)
        return replace(state, admitted=state.admitted | {message})

    def _transaction(self, state: State, call: Message) -> State:
        outcome = real.transaction(
            state.verifier,
            state.redeemed,
            call.fence,
            call.text,
            self._on_purpose,
            fenced=self.wrong is not Wrong.FENCE_NOT_RECHECKED,
        )
        state = replace(state, verifier=outcome.verifier)
        if outcome.what == "stored":
            return self._answered(state, "ok")
        if outcome.what != "done":
            return self._answered(state, outcome.what)
        wrong = state.wrong
        if call.fence < (state.told_all if self._on_purpose else state.told):
            wrong = "EFFECT_UNDER_A_LOWER_FENCE_THAN_TOLD"
        elif not self._on_purpose and call.life < state.told_life:
            wrong = "EFFECT_OF_AN_EARLIER_LIFE"
        elif not self._on_purpose and not state.informed:
            wrong = "BACKGROUND_EFFECT_BEFORE_THE_FENCE_WAS_TOLD"
        state = replace(state, effects=state.effects + 1, wrong=wrong)
        if self.wrong is Wrong.JTI_AFTER_EFFECT:
            return replace(state, unredeemed=call.text)
        return self._answered(replace(state, redeemed=outcome.redeemed), "ok")

    @staticmethod
    def _answered(state: State, text: str) -> State:
        if state.control is None or not state.control.live_fence:
            return state
        return state.sent(Message("answer", 0, text))

    # Crashes.

    def _crashes(self, state: State) -> Iterator[Step]:
        left = state.left
        if state.control is not None and left.skills_crashes:
            after = replace(
                state,
                control=None,
                looked=-1,
                closing=False,
                reserved=state.control.reserved,
                wire=frozenset(message for message in state.wire if message.kind != "answer"),
                left=left._replace(skills_crashes=left.skills_crashes - 1),
            )
            yield Step("kill -9 of skills", after, fault=True)
        if state.service_up and left.service_crashes:
            kept = self.wrong is Wrong.OUTLIVES_CONNECTION
            late = frozenset(one for one in state.wire if self._late_calls and one.kind == "call")
            after = replace(
                state,
                service_up=False,
                informed=False,
                wire=state.wire if kept else late,
                storing=None,
                admitted=frozenset(),
                unredeemed="",
                left=left._replace(service_crashes=left.service_crashes - 1),
            )
            yield Step("kill -9 of the service", after, fault=True)

    def _skills_started(self, state: State) -> State:
        control = real.started(0 if self.wrong is Wrong.FENCES_BEGIN_ANEW else state.reserved)
        if state.lock_stored:
            control, _ = self._asked(control, "restore_lock")
        run = _moved(state.run, RunState.INTERRUPTED) if state.run is RunState.RUNNING else state.run
        state = replace(state, control=control, run=run, life=state.life + 1)
        stop = Message("stop", control.fence, everything=control.locked, life=state.life)
        # Whoever was there may still be: quiet counts from the start (the relay's "restart").
        return replace(state, present=True).sent(stop)

    def _service_started(self, state: State) -> State:
        verifier = real.restarted(state.verifier)
        if self.wrong is Wrong.SERVICE_STARTS_OPEN:
            verifier = verifier._replace(is_open=True)
        return replace(state, service_up=True, verifier=verifier)


def _moved(state: RunState, to: RunState) -> RunState:
    """By the ways that the product's runs have."""
    if state in ENDED or to not in runs._ALLOWED[state]:
        raise AssertionError(f"no way leads from {state} to {to}")
    return to
