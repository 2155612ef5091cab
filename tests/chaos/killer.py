"""Kills services of the real plane with SIGKILL, mostly when an effect is seen to be under way."""

from __future__ import annotations

import asyncio
import random
import re
import shutil
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.chaos.flights import Flights
from tests.chaos.signs import IN_CREATE, IN_MODIFY, IN_MOVED_TO, Assassin
from tests.support.plane import RealPlane

SERVICES = ("monitor", "experience", "lab", "trainer", "skills")
WORKER = "worker"

# Victim, sign that it waits for, weight.
_PLANS: tuple[tuple[str, str, int], ...] = (
    ("lab", "file", 10),
    ("lab", "wal:lab", 6),
    ("lab", "flight:run promote_config|run rollback", 5),
    ("skills", "file", 6),
    ("skills", "wal:skills", 6),
    ("skills", "wal:lab", 6),
    ("skills", "wal:trainer", 3),
    ("skills", "flight:run .*|decide", 5),
    ("experience", "wal:experience", 8),
    ("experience", "flight:RecordRuns", 5),
    ("experience", "flight:import", 5),
    ("experience", "flight:RecordRun|RecordFeedback", 4),
    ("experience", "vectors", 3),
    ("trainer", "wal:trainer", 5),
    ("trainer", "checkpoint", 6),
    (WORKER, "checkpoint", 5),
    (WORKER, "random", 2),
    ("monitor", "wal:monitor", 2),
    ("monitor", "random", 2),
    ("experience", "random", 2),
    ("lab", "random", 2),
    ("skills", "random", 3),
    ("trainer", "random", 2),
)
_SIGN_TIMEOUT_S = 4.0


@dataclass(frozen=True)
class Kill:
    """One kill.

    Attributes:
        victim: Service, or "worker" (the trainer's).
        sign: What was waited for; "none" where it did not come in time.
        phase: What the victim was in the middle of, as its store and the callers say.
        inside: Whether an effect, or a call that has one, was under way.
        flights: Operations of the drivers that were under way.
    """

    victim: str
    sign: str
    phase: str
    inside: bool
    flights: frozenset[str]


class Killer:
    """Chooses victims and moments.

    Attributes:
        kills: Those done, in order.
    """

    def __init__(self, plane: RealPlane, flights: Flights, source: random.Random) -> None:
        self._plane = plane
        self._flights = flights
        self._source = source
        self.kills: list[Kill] = []
        self._assassin = Assassin()

    def close(self) -> None:
        """Ends the assassin."""
        self._assassin.close()

    async def run(self, count: int, *, gap_s: tuple[float, float]) -> None:
        """Kills `count` times; a service is killed again only after it has come back."""
        while len(self.kills) < count:
            victim, sign = self._choose(missing=self._missing(count))
            service = "trainer" if victim == WORKER else victim
            await self._plane.until_ready(service)
            delay_s = self._source.choice(
                (0.0, self._source.uniform(0, 0.003), self._source.uniform(0, 0.03))
            )
            kill = await asyncio.to_thread(self._wait_and_kill, victim, sign, delay_s)
            if kill is not None:
                self.kills.append(kill)
                print(f"kill {len(self.kills):3} {kill.victim:<10} at {kill.sign:<24} {kill.phase}")
            await asyncio.sleep(self._source.uniform(*gap_s))
        await self._plane.until_ready()

    def histogram(self) -> str:
        """Kills by victim and phase."""
        counted = Counter((kill.victim, kill.phase) for kill in self.kills)
        lines = [f"{'victim':<11} {'kills':>5}  phase"]
        lines += [f"{victim:<11} {count:>5}  {phase}" for (victim, phase), count in sorted(counted.items())]
        inside = sum(kill.inside for kill in self.kills)
        lines.append(f"{inside} of {len(self.kills)} landed inside effects or calls that have one")
        under_way = Counter(operation for kill in self.kills for operation in kill.flights)
        lines.append(
            "calls under way at kills: " + ", ".join(f"{n} x{c}" for n, c in under_way.most_common())
        )
        lines.append(f"made again after an error: {dict(self._flights.retried)}")
        lines.append(f"found done though the answer was lost: {dict(self._flights.found_done)}")
        return "\n".join(lines)

    def _missing(self, count: int) -> str:
        """A service that is still to be killed while few kills are left."""
        left = [one for one in SERVICES if all(kill.victim != one for kill in self.kills)]
        return left[0] if left and count - len(self.kills) <= len(left) else ""

    def _choose(self, missing: str) -> tuple[str, str]:
        plans = [plan for plan in _PLANS if not missing or plan[0] == missing]
        victim, sign, _ = self._source.choices(plans, [plan[2] for plan in plans])[0]
        return victim, sign

    def _wait_and_kill(self, victim: str, sign: str, delay_s: float) -> Kill | None:
        kind, _, what = sign.partition(":")
        seen = True
        if kind == "flight":
            seen = self._in_flight(what)
        elif kind == "random":
            time.sleep(self._source.uniform(0, 0.5))
        pid = self._worker() if victim == WORKER else self._plane.pid(victim)
        if not pid:
            return None
        folders, names, mask = self._watched(kind, what)
        came, killed = self._assassin.kill(
            pid, folders, names, mask, timeout_s=_SIGN_TIMEOUT_S, delay_s=delay_s
        )
        flights = frozenset(self._flights.now())
        if not killed:
            return None
        self._await_death(pid)
        phase, inside = self._phase(victim, flights)
        return Kill(victim, sign if seen and came else "none", phase, inside, flights)

    def _await_death(self, pid: int) -> None:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            while process.status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.001)
        # The plane's table notices within a turn of its loop; then the service counts as ready no more.
        time.sleep(0.05)

    def _watched(self, kind: str, what: str) -> tuple[list[Path], str, int]:
        """Folders, names and changes that are a sign; no folders where none is waited for."""
        home = self._plane.home
        match kind:
            case "file":
                return [self._plane.production], r"\.nightshift-.*", IN_CREATE
            case "wal":
                return [home / what], r".*\.db-wal", IN_MODIFY
            case "checkpoint":
                folders = _below(home / "trainer" / "jobs", "*/checkpoints/**")
                return folders, ".*", IN_CREATE | IN_MODIFY | IN_MOVED_TO
            case "vectors":
                return _below(home / "experience" / "lance", "**"), ".*", IN_CREATE | IN_MODIFY
        return [], "", 0

    def _in_flight(self, pattern: str) -> bool:
        wanted = re.compile(pattern)
        ends_s = time.monotonic() + _SIGN_TIMEOUT_S
        while time.monotonic() < ends_s:
            if any(wanted.fullmatch(operation) for operation in self._flights.now()):
                return True
            time.sleep(0.0005)
        return False

    def _worker(self) -> int:
        with suppress(psutil.Error):
            below = psutil.Process(self._plane.pid("trainer")).children(recursive=True)
            # Workers are forked from a warm parent, which has the same command line.
            workers = [process.pid for process in below if process.ppid() != self._plane.pid("trainer")]
            if workers:
                return workers[-1]
        return 0

    # What the victim's store says right after its death.

    def _phase(self, victim: str, flights: frozenset[str]) -> tuple[str, bool]:
        look: dict[str, Callable[[frozenset[str]], tuple[str, bool]]] = {
            "lab": self._phase_of_lab,
            "skills": self._phase_of_skills,
            "experience": _phase_of_experience,
            "trainer": self._phase_of_trainer,
            WORKER: lambda _: ("at work", True),
        }
        return look[victim](flights) if victim in look else ("watching", False)

    def _phase_of_lab(self, flights: frozenset[str]) -> tuple[str, bool]:
        with _copy_of(self._plane.database("lab")) as store:
            planned = store.execute("SELECT count(*) FROM kit_intents WHERE state = 'planned'").fetchone()[0]
        half = any(name.name.startswith(".nightshift-") for name in self._plane.production.iterdir())
        if planned:
            return ("change promised" + (", new file half there" if half else ", file not confirmed")), True
        if flights & {"run promote_config", "run rollback"}:
            return "called or about to be, nothing promised", True
        return "no effect under way", False

    def _phase_of_skills(self, flights: frozenset[str]) -> tuple[str, bool]:
        with _copy_of(self._plane.database("skills")) as store:
            calls = store.execute("SELECT jti FROM calls WHERE answer IS NULL AND refusal IS NULL").fetchall()
            running = store.execute("SELECT count(*) FROM skill_runs WHERE state = 'RUNNING'").fetchone()[0]
            approved = store.execute("SELECT count(*) FROM skill_runs WHERE state = 'QUEUED'").fetchone()[0]
        if calls:
            done = any(self._redeemed(jti) for (jti,) in calls)
            return (
                "effect done, its answer not stored" if done else "call stored, effect not done yet"
            ), True
        if approved:
            return "approved, not begun", True
        if flights & {"decide", "run promote_config", "run rollback", "run propose_config"}:
            return "a person's command under way", True
        return ("a run at work, no single-use call open", True) if running else ("no run at work", False)

    def _redeemed(self, jti: str) -> bool:
        for service in ("lab", "trainer"):
            uri = f"file:{self._plane.database(service)}?mode=ro"
            with suppress(sqlite3.Error), closing(sqlite3.connect(uri, uri=True, timeout=1)) as store:
                found = store.execute("SELECT 1 FROM kit_redeemed WHERE jti = ?", (jti,)).fetchone()
                if found is not None:
                    return True
        return False

    def _phase_of_trainer(self, flights: frozenset[str]) -> tuple[str, bool]:
        with _copy_of(self._plane.database("trainer")) as store:
            states = [state for (state,) in store.execute("SELECT state FROM training_jobs")]
        active = [state for state in states if state.upper() in {"STARTING", "RUNNING"}]
        return (f"job {active[0].lower()}", True) if active else ("no job at work", False)


def _phase_of_experience(flights: frozenset[str]) -> tuple[str, bool]:
    writes = sorted(flights & {"RecordRun", "RecordRuns", "RecordFeedback", "import", "ImportRuns"})
    return (f"taking {' + '.join(writes)}", True) if writes else ("nothing told", False)


def _below(folder: Path, pattern: str) -> list[Path]:
    try:
        return [folder, *(path for path in folder.glob(pattern) if path.is_dir())]
    except OSError:
        return [folder]


@contextmanager
def _copy_of(path: Path) -> Iterator[sqlite3.Connection]:
    """A dead service's store, looked at without touching it."""
    with tempfile.TemporaryDirectory() as folder:
        for suffix in ("", "-wal"):
            source = path.with_name(path.name + suffix)
            if source.exists():
                shutil.copy(source, Path(folder) / source.name)
        with closing(sqlite3.connect(Path(folder) / path.name)) as store:
            yield store
