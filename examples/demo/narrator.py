"""Prints what happens, how long it took, and fails loudly."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console


class DemoFailedError(Exception):
    """A step was not what it should be."""


class Narrator:
    """Numbered steps with their times; `check` is how a step says what it should be."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started = time.monotonic()
        self.times: list[tuple[str, float]] = []

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Announce a step, run it, print its time."""
        self._console.print(f"\n[bold]{len(self.times) + 1}  {title}[/bold]")
        began = time.monotonic()
        yield
        took = time.monotonic() - began
        self.times.append((title, took))
        self._console.print(f"   [dim]{took:.1f} s[/dim]")

    def say(self, text: str) -> None:
        """One line of what was done."""
        self._console.print(f"   {text}", highlight=False, markup=False, soft_wrap=True)

    def check(self, holds: bool, claim: str, seen: object = "") -> None:
        """Print a claim that holds; raise DemoFailedError for one that does not."""
        if not holds:
            raise DemoFailedError(f"{claim}: does not hold. Seen: {seen!r}")
        self._console.print("   [green]✓[/green] ", end="")
        self._console.print(claim, highlight=False, markup=False, soft_wrap=True)

    def summary(self) -> None:
        """All steps with their times."""
        self._console.print("\n[bold]What took how long[/bold]")
        for index, (title, took) in enumerate(self.times, 1):
            self._console.print(f"   {index}  {title:<74} {took:6.1f} s", highlight=False, soft_wrap=True)
        self._console.print(
            f"      {'in all':<74} {time.monotonic() - self._started:6.1f} s", highlight=False
        )
