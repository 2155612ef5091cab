"""Cutting runs into sessions.

A session is one browser's runs without a long pause, in time order. Browsers name themselves anew each UTC
day and with a suffix for parallel requests; neither begins a session, and midnight does not either.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, timedelta

_DATED = re.compile(r"(?P<browser>.+)_(?P<day>\d{4}-\d{2}-\d{2})")


@dataclass(frozen=True, slots=True)
class SessionRun:
    """What sessions know of a run.

    Attributes:
        key: Device without the suffixes of parallel requests.
        order_ms: Milliseconds of the run id, else of the start.
        outcome: `runs.Outcome`.
        repeats: Same device, prompt and configs as an earlier run, with a new seed.
        prompt: None: none, or withheld.
    """

    run_id: str
    key: str
    order_ms: int
    start_us: int
    outcome: int
    favorite: bool
    language: str
    interception_config: str
    output_config: str
    seed: int | None
    repeats: bool
    prompt: str | None
    prompt_digest: str


@dataclass(frozen=True, slots=True)
class Cut:
    """The runs of one session, in order."""

    browser: str
    runs: tuple[SessionRun, ...]

    @property
    def id(self) -> str:
        """Stable while the session's first run stays the first. Tells nothing of the device."""
        digest = hashlib.sha256(self.browser.encode("utf-8", "surrogatepass")).hexdigest()
        return f"{digest[:12]}-{self.runs[0].start_us // 1000}"

    @property
    def keys(self) -> frozenset[str]:
        """Names that the browser gave itself in it."""
        return frozenset(run.key for run in self.runs)


def browser_of(key: str) -> str:
    """The session key without the UTC date that a browser puts behind it."""
    match = _DATED.fullmatch(key)
    return match["browser"] if match else key


def neighbours(key: str) -> tuple[str, ...]:
    """Session keys of the same browser that a sitting with this one may also bear: a day earlier or later."""
    match = _DATED.fullmatch(key)
    if match is None:
        return (key,)
    try:
        day = date.fromisoformat(match["day"])
        days = [day + timedelta(days=step) for step in (-1, 0, 1)]
    except (ValueError, OverflowError):
        return (key,)
    return tuple(f"{match['browser']}_{one.isoformat()}" for one in days)


def cut(runs: Iterable[SessionRun], gap_s: float) -> list[Cut]:
    """Sessions by browser and time. `gap_s`: a longer pause between two starts begins a new one."""
    by_browser: dict[str, list[SessionRun]] = {}
    for run in runs:
        if run.key:
            by_browser.setdefault(browser_of(run.key), []).append(run)
    found: list[Cut] = []
    for browser, own in by_browser.items():
        own.sort(key=lambda run: (run.start_us, run.order_ms, run.run_id))
        begin = 0
        for at in range(1, len(own) + 1):
            if at == len(own) or own[at].start_us - own[at - 1].start_us > gap_s * 1_000_000:
                found.append(Cut(browser, tuple(own[begin:at])))
                begin = at
    return found
