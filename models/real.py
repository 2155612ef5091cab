"""The product's own code as steps of a model: filled with a state's values, asked once, read out again.

A step is a pure function of what it is filled with, so that each distinct question is put to the real code
once and its answer kept. What is asked here: `nightshift_skills.gate.Gate`,
`nightshift_skills.fences.Fences`, `nightshift_kit.grants.FenceGate` and `nightshift_kit.grants.Effect`, the
last two on an SQLite store in memory.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.pool import StaticPool

from nightshift_kit.clock import FakeClock
from nightshift_kit.errors import NightshiftError
from nightshift_kit.grants import Effect, FenceGate, Grant, Tier, read_fence, store_fence
from nightshift_kit.storage import KIT
from nightshift_skills.fences import Fences
from nightshift_skills.gate import Gate, LiveRun

RUN = "r"
METHOD = "nightshift.model.v1.ModelService/Act"
_NOW = dt.datetime(2026, 1, 5, tzinfo=dt.UTC)
_EVERYTHING = "everything"


class Control(NamedTuple):
    """What skills holds in memory, and what of its fences is durable.

    `live_fence` is 0 where the run is not at work; `cause` is why it was stopped.
    """

    is_open: bool
    locked: bool
    signs: int
    fence: int
    reserved: int
    live_fence: int = 0
    cause: str = ""


class Verifier(NamedTuple):
    """What a service's FenceGate holds: in memory, and in its store."""

    highest: int
    everything: int
    is_open: bool
    stored: int
    stored_everything: int


def started(reserved: int) -> Control:
    """Skills after a start: the real Fences begin the next block; the gate is closed."""
    kept: list[int] = []
    fences = Fences(kept.append, reserved)
    return Control(False, False, 0, fences.current, kept[-1])


@cache
def control(
    state: Control, operation: str, argument: int = 0, *, background: bool = True
) -> tuple[Control, str]:
    """One operation of the real gate, by its method's name; `argument` is what `try_open` is given.

    Returns:
        The state afterwards, and the reason of a refusal; "" where there was none.
    """
    fences = Fences(lambda _to: None, 0)
    fences._current, fences._reserved_to = state.fence, state.reserved
    gate = Gate(lambda: fences.current, fences.raise_one)
    gate._open, gate._locked, gate._signs = state.is_open, state.locked, state.signs
    if state.live_fence:
        live = LiveRun(RUN, background, lambda: None, state.live_fence, state.cause)
        gate._runs[RUN] = live
    operations: dict[str, Callable[[], Any]] = {
        "close": gate.close,
        "shut": gate.shut,
        "engage": gate.engage,
        "release": gate.release,
        "restore_lock": gate.restore_lock,
        "try_open": lambda: gate.try_open(argument),
        "enter": lambda: gate.enter(LiveRun(RUN, background, lambda: None)),
        "leave": lambda: gate.leave(gate._runs[RUN]),
    }
    refused = ""
    try:
        operations[operation]()
    except NightshiftError as error:
        refused = error.reason
    at_work = gate.get(RUN)
    after = Control(
        gate._open,
        gate.locked,
        gate.signs,
        fences.current,
        state.reserved,
        at_work.fence if at_work else 0,
        at_work.cause if at_work else "",
    )
    return after, refused


class _MemoryStore:
    """As much of Database as a FenceGate asks for, on one connection in memory."""

    def __init__(self) -> None:
        self.engine = sa.create_engine("sqlite://", poolclass=StaticPool)
        KIT.fence.metadata.create_all(self.engine)

    def read_sync(self, fn: Callable[..., Any], *args: Any) -> Any:
        with self.engine.begin() as connection:
            return fn(connection, *args)

    def fill(self, verifier: Verifier, redeemed: tuple[str, ...] = ()) -> None:
        with self.engine.begin() as connection:
            connection.execute(KIT.fence.delete())
            connection.execute(KIT.redeemed.delete())
            store_fence(connection, verifier.stored, _NOW)
            store_fence(connection, verifier.stored_everything, _NOW, _EVERYTHING)
            for jti in redeemed:
                connection.execute(
                    KIT.redeemed.insert().values(
                        jti=jti, arguments_digest=f"{METHOD} {'0' * 64}", answer=b"done", at=_NOW
                    )
                )


_STORE = _MemoryStore()


def _gate(verifier: Verifier) -> FenceGate:
    store: Any = _STORE
    gate = FenceGate(store, FakeClock())
    gate._highest, gate._everything, gate._open = verifier.highest, verifier.everything, verifier.is_open
    return gate


def _grant(fence: int, jti: str, on_purpose: bool) -> Grant:
    return Grant(
        skill="skills/model",
        skill_digest="model",
        skill_run=f"skillRuns/{RUN}",
        tier=Tier.MANUAL if on_purpose else Tier.CONFIRM,
        methods=frozenset({METHOD}),
        fence=fence,
        jti=jti,
        expires_at=dt.datetime.max.replace(tzinfo=dt.UTC),
        audience="model",
        thumbprint="model",
        approval="approvals/model",
        arguments_digest="0" * 64,
        on_purpose=on_purpose,
        initiator="person/admin/model",
    )


def _read(gate: FenceGate, verifier: Verifier) -> Verifier:
    return Verifier(gate.highest, gate._everything, gate.is_open, verifier.stored, verifier.stored_everything)


@cache
def restarted(verifier: Verifier) -> Verifier:
    """A service's gate after a start: the real FenceGate reads its store."""
    _STORE.fill(verifier)
    store: Any = _STORE
    return _read(FenceGate(store, FakeClock()), verifier)


@cache
def told(verifier: Verifier, fence: int, everything: bool) -> tuple[Verifier, bool]:
    """FenceGate.raise_in_memory: the verifier afterwards, and whether it took the fence."""
    _STORE.fill(verifier)
    gate = _gate(verifier)
    taken = gate.raise_in_memory(fence, everything=everything)
    return _read(gate, verifier), taken


@cache
def stored(verifier: Verifier, fence: int, everything: bool) -> Verifier:
    """The durable half of FenceGate.raise_to, by the real store_fence."""
    _STORE.fill(verifier)
    with _STORE.engine.begin() as connection:
        store_fence(connection, fence, _NOW)
        if everything:
            store_fence(connection, fence, _NOW, _EVERYTHING)
        return verifier._replace(
            stored=read_fence(connection), stored_everything=read_fence(connection, _EVERYTHING)
        )


@cache
def checked(verifier: Verifier, fence: int, on_purpose: bool) -> tuple[Verifier, str]:
    """FenceGate.check, as the guard asks it: the verifier afterwards, and the refusal's reason."""
    _STORE.fill(verifier)
    gate = _gate(verifier)
    try:
        gate.check(_grant(fence, "x", on_purpose))
    except NightshiftError as error:
        return _read(gate, verifier), error.reason
    return _read(gate, verifier), ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an effect's transaction went: "done", "stored" (an earlier answer) or the reason of a refusal."""

    what: str
    redeemed: tuple[str, ...]
    verifier: Verifier


class _Unfenced(Effect):
    """The wrong one: looks at no fence in its transaction."""

    def _check_fence(self, connection: sa.Connection) -> None:
        pass


@cache
def transaction(
    verifier: Verifier,
    redeemed: tuple[str, ...],
    fence: int,
    jti: str,
    on_purpose: bool,
    *,
    fenced: bool = True,
) -> Outcome:
    """The real Effect.begin and Effect.finish in one transaction.

    Args:
        verifier: The service's gate.
        redeemed: The jtis that stand in the store already.
        fence: Of the grant.
        jti: Of the grant.
        on_purpose: Of the grant.
        fenced: False for the wrong variant.
    """
    _STORE.fill(verifier, redeemed)
    gate = _gate(verifier)
    kind = Effect if fenced else _Unfenced
    effect = kind(
        _grant(fence, jti, on_purpose), METHOD, "0" * 64, True, "person/admin/model", lambda: _NOW, gate
    )
    try:
        with _STORE.engine.begin() as connection:
            if effect.begin(connection) is not None:
                return Outcome("stored", redeemed, _read(gate, verifier))
            effect.finish(connection, b"done")
    except NightshiftError as error:
        return Outcome(error.reason, redeemed, _read(gate, verifier))
    return Outcome("done", tuple(sorted({*redeemed, jti})), _read(gate, verifier))
