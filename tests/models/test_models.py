"""The protocol holds in every reachable state of its models, and each wrong variant is found out."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import sqlalchemy as sa

from models import approvals, real
from models.catalogue import LONG, SHORT, WRONG, Counterexample, Make
from models.effects import Effects, Left
from models.explorer import StateSpaceTooLarge, Step, explore
from nightshift_kit.grants import Effect
from nightshift_skills.gate import Closed, Gate


class Ring(NamedTuple):
    """Goes round; `wall` is an edge that only a fault crosses."""

    size: int
    bad: int = -1
    goal_at: int = 0
    wall: int = -1
    name: str = "ring"

    def starts(self) -> list[int]:
        return [0]

    def steps(self, state: int) -> Iterator[Step]:
        yield Step(f"to {(state + 1) % self.size}", (state + 1) % self.size, fault=state == self.wall)

    def broken(self, state: int) -> str:
        return "BAD" if state == self.bad else ""

    def goal(self, state: int) -> bool:
        return state == self.goal_at


def test_the_explorer() -> None:
    whole: Any = Ring(5)
    found = explore(whole)
    assert (found.states, found.transitions, found.depth, found.complete) == (5, 5, 4, True)
    assert not found.broken
    bad: Any = Ring(5, bad=3)
    found = explore(bad)
    assert (found.broken, found.trace) == ("BAD", ("to 1", "to 2", "to 3"))
    walled: Any = Ring(5, wall=2)
    found = explore(walled)
    # From 0 a fault may be needed to come round again, but 0 is the goal; 1 and 2 are stuck.
    assert (found.broken, found.trace) == ("LIVENESS", ("to 1",))
    assert not explore(walled, liveness=False).broken
    assert not explore(whole, most_steps=2).complete
    with pytest.raises(StateSpaceTooLarge):
        explore(whole, most_states=3)


@pytest.mark.parametrize("make", SHORT, ids=lambda make: make().name)
def test_the_protocol_holds(make: Make) -> None:
    found = explore(make())
    print(found)
    assert (found.broken, found.trace) == ("", ())
    assert found.complete


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not os.environ.get("MODEL_LONG"), reason="make model explores it")
@pytest.mark.parametrize("make", LONG[len(SHORT) :], ids=lambda make: make().name)
def test_the_protocol_holds_with_more_of_everything(make: Make) -> None:
    found = explore(make())
    print(found)
    assert (found.broken, found.complete) == ("", True)


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: str(wrong.wrong))
def test_what_is_wrong_is_found_out(wrong: Counterexample) -> None:
    found = explore(wrong.make())
    print(found, *found.trace, sep="\n    ")
    assert (found.broken, len(found.trace)) == (wrong.broken, wrong.steps)


def test_every_wrong_variant_is_explored() -> None:
    kinds = {type(one.wrong) for one in WRONG}
    assert sum(len(kind) for kind in kinds) == len(WRONG) == len({one.wrong for one in WRONG})


class ComparingOffice(approvals.Office):
    """Asks of the whole store, too, of some steps; keeps what both said the same of."""

    def __init__(self) -> None:
        super().__init__(None, two_person=True)
        self.compared: set[object] = set()

    def step(
        self, entries: tuple[approvals.Entry, ...], operation: str, *arguments: Any
    ) -> tuple[tuple[approvals.Entry, ...], str]:
        answer = super().step(entries, operation, *arguments)
        question = (entries, operation, arguments)
        alone = len(entries) > 1 and operation in approvals.OF_ONE | approvals.OF_EACH
        # One of forty, and the same ones each time.
        if alone and question not in self.compared and zlib.crc32(repr(question).encode()) % 40 == 0:
            assert answer == self.ask(*question[:2], *arguments)
            self.compared.add(question)
        return answer


def test_what_concerns_one_run_touches_no_other() -> None:
    """The models of two runs ask of a store with one run alone; the store of both says the same."""
    model = approvals.Approvals(two_person=True, entries=2)
    office = ComparingOffice()
    model._office = office
    assert not explore(model, most_steps=5, liveness=False).broken
    print(f"{len(office.compared)} questions compared")
    assert len(office.compared) > 100


@pytest.fixture
def fresh_answers() -> Iterator[None]:
    """What the real code answered is kept; a test that changes the code begins and ends without."""
    kept: list[Any] = [real.control, real.restarted, real.told, real.stored, real.checked, real.transaction]
    for one in kept:
        one.cache_clear()
    yield
    for one in kept:
        one.cache_clear()


@pytest.mark.usefixtures("fresh_answers")
def test_the_models_drive_the_code_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake in the product, none in the model: the explorer finds it."""

    def unfenced(self: Effect, connection: sa.Connection) -> None:
        pass

    monkeypatch.setattr(Effect, "_check_fence", unfenced)
    found = explore(Effects(left=Left(1, 0, 0, 0)))
    assert found.broken == "EFFECT_UNDER_A_LOWER_FENCE_THAN_TOLD"


@pytest.mark.usefixtures("fresh_answers")
def test_a_gate_that_stays_open_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def close(self: Gate, *, sign: bool = True) -> Closed:
        self._signs += sign
        return Closed(True, self._raise_fence(), ())

    monkeypatch.setattr(Gate, "close", close)
    found = explore(Effects(left=Left(1, 0, 0, 0)))
    assert found.broken == "BACKGROUND_WORK_BEGAN_WITH_A_USER_HERE"
