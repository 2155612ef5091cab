"""A small explicit-state explorer: breadth first, so that the first counterexample is a shortest one.

    model ── starts, steps ──▶ explore ──▶ Result: counts, and the trace to what broke
 A model gives its first states, the steps out of a state, and what is wrong with a state. Steps that are
faults (a crash, a lost message, a clock that jumps) are marked: liveness asks whether from every reachable
state, once faults cease, the goal can be reached. In a finite graph that means that every fair continuation
reaches it.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

S = TypeVar("S", bound=Hashable)


class StateSpaceTooLarge(RuntimeError):
    """More states than the caller allowed; nothing was proved."""


class Step(NamedTuple):
    """One step out of a state.

    Attributes:
        label: What happens, in words.
        state: Afterwards.
        fault: Whether it is something that need not happen.
    """

    label: str
    state: Hashable
    fault: bool = False


class Model(Protocol[S]):
    """What is explored. States are frozen and hashable."""

    @property
    def name(self) -> str:
        """Of the model and its variant."""
        ...

    def starts(self) -> Iterable[S]:
        """First states."""
        ...

    def steps(self, state: S) -> Iterator[Step]:
        """All that may happen next."""
        ...

    def broken(self, state: S) -> str:
        """Name of the invariant that does not hold; "" where all do."""
        ...

    def goal(self, state: S) -> bool:
        """Whether everything that was owed is done, or waits for a reason that can be told."""
        ...


@dataclass(frozen=True, slots=True)
class Result:
    """What an exploration found.

    Attributes:
        broken: Name of the invariant that broke, "" where none did. "LIVENESS" where the goal is out of
            reach.
        trace: Labels from a first state to the broken one; the shortest there is.
        depth: Steps to the state farthest from the start (of those that were looked at).
        complete: Whether every reachable state was looked at.
    """

    name: str
    states: int
    transitions: int
    depth: int
    seconds: float
    complete: bool
    broken: str = ""
    trace: tuple[str, ...] = ()

    def __str__(self) -> str:
        verdict = f"{self.broken} after {len(self.trace)} steps" if self.broken else "holds"
        extent = "" if self.complete else f", to depth {self.depth}"
        return (
            f"{self.name}: {verdict} ({self.states:,} states, {self.transitions:,} transitions, "
            f"depth {self.depth}, {self.seconds:.1f} s{extent})"
        )


def explore(
    model: Model[S], *, most_states: int = 2_000_000, most_steps: int | None = None, liveness: bool = True
) -> Result:
    """Looks at every reachable state.

    Args:
        model: What is explored.
        most_states: Give up beyond so many.
        most_steps: Look no deeper than so many steps; None means everything. Liveness is not judged then.
        liveness: Whether to ask for the goal, too.

    Raises:
        StateSpaceTooLarge: there are more than `most_states`.
    """
    began_s = time.perf_counter()
    index: dict[S, int] = {}
    order: list[S] = []
    came_from: list[tuple[int, str]] = []
    depth_of: list[int] = []
    before: list[list[int]] = []
    transitions = 0
    cut = False

    def add(state: S, parent: int, label: str) -> int:
        index[state] = len(order)
        order.append(state)
        came_from.append((parent, label))
        depth_of.append(depth_of[parent] + 1 if parent >= 0 else 0)
        before.append([])
        return len(order) - 1

    def result(broken: str, at: int, *, complete: bool) -> Result:
        return Result(
            model.name,
            len(order),
            transitions,
            depth_of[-1],
            time.perf_counter() - began_s,
            complete,
            broken,
            _trace(came_from, at) if broken else (),
        )

    for start in model.starts():
        if start not in index:
            add(start, -1, "")
    at = 0
    while at < len(order):
        state = order[at]
        if problem := model.broken(state):
            return result(problem, at, complete=False)
        if most_steps is not None and depth_of[at] >= most_steps:
            cut = True
            at += 1
            continue
        for step in model.steps(state):
            transitions += 1
            after: S = step.state  # type: ignore[assignment]
            number = index.get(after)
            if number is None:
                if len(order) >= most_states:
                    raise StateSpaceTooLarge(f"{model.name}: more than {most_states:,} states")
                number = add(after, at, step.label)
            if liveness and not step.fault:
                before[number].append(at)
        at += 1
    if liveness and not cut:
        stuck = _out_of_reach(model, order, before)
        if stuck is not None:
            return result("LIVENESS", stuck, complete=True)
    return result("", -1, complete=not cut)


def _out_of_reach(model: Model[S], order: list[S], before: list[list[int]]) -> int | None:
    """First state from which no steps but faults lead to the goal."""
    reaches = [model.goal(state) for state in order]
    waiting = [number for number, reached in enumerate(reaches) if reached]
    while waiting:
        for earlier in before[waiting.pop()]:
            if not reaches[earlier]:
                reaches[earlier] = True
                waiting.append(earlier)
    return next((number for number, reached in enumerate(reaches) if not reached), None)


def _trace(came_from: list[tuple[int, str]], at: int) -> tuple[str, ...]:
    labels = []
    while at >= 0:
        at, label = came_from[at]
        labels.append(label)
    return tuple(reversed(labels[:-1]))
