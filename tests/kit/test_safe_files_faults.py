"""File changes under failing disks and kill -9: nothing half done, nothing promised and lost."""

from __future__ import annotations

import collections
import errno
import hashlib
import json
import multiprocessing as mp
import os
import random
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import sqlalchemy as sa

from nightshift_kit.errors import NightshiftError
from nightshift_kit.safe_files import FileEffects, Outcome, Root
from nightshift_kit.storage import KIT, Database
from tests.support.syscall_faults import fail_calls, in_child

MIGRATIONS = "tests.kit.sample_store"
NAMES = ("a.json", "b.json", "c.json")


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def opened(folder: Path) -> tuple[Database, Root, FileEffects]:
    database = Database(
        f"sqlite:///{folder / 'state' / 'a.db'}", migrations=MIGRATIONS, name="sample", readers=1
    )
    (folder / "platform").mkdir(exist_ok=True)
    root = Root(folder / "platform")
    return database, root, FileEffects(root, database)


def _failing(folder: str, calls: tuple[str, ...], error_number: int) -> list[object]:
    database, root, effects = opened(Path(folder))
    with database, root:
        database.migrate()
        (root.path / "a.json").write_bytes(b"old")
        # The intent is safe in the database before the disk of the platform fails.
        promised = database.write_sync(effects.plan_write, "a.json", b"new", digest(b"old"))
        fail_calls(calls, error_number)
        reasons = []
        for _ in range(2):
            try:
                effects.apply_sync(promised)
            except NightshiftError as error:
                reasons.append(error.reason)
        names = sorted(p.name for p in root.path.iterdir())
        return [reasons, names, (root.path / "a.json").read_bytes(), effects.healthy]


@pytest.mark.parametrize(
    ("calls", "error_number", "reasons", "healthy"),
    [
        (("fsync",), errno.EIO, ["STORAGE_IO", "STORAGE_READ_ONLY"], False),
        (("fsync",), errno.ENOSPC, ["DISK_FULL", "DISK_FULL"], True),
        (("fsync",), errno.EROFS, ["STORAGE_READ_ONLY", "STORAGE_READ_ONLY"], True),
    ],
)
def test_a_failing_disk_leaves_the_old_file_whole(
    tmp_path: Path, calls: tuple[str, ...], error_number: int, reasons: list[str], healthy: bool
) -> None:
    found = in_child(_failing, str(tmp_path), calls, error_number)
    assert found == [reasons, ["a.json"], b"old", healthy]
    database, root, effects = opened(tmp_path)
    with database, root:
        assert [r.outcome for r in effects.recover_sync()] == [Outcome.REDONE]
        assert (tmp_path / "platform" / "a.json").read_bytes() == b"new"


def _no_swap(folder: str) -> list[object]:
    fail_calls(("renameat2",), errno.EINVAL)
    database, root, effects = opened(Path(folder))
    with database, root:
        database.migrate()
        (root.path / "a.json").write_bytes(b"old")
        steps: list[object] = []
        for relative, content, expected in (
            ("a.json", b"new", digest(b"old")),
            ("b.json", b"made", None),
        ):
            effects.apply_sync(database.write_sync(effects.plan_write, relative, content, expected))
            steps.append((root.path / relative).read_bytes())
        effects.apply_sync(database.write_sync(effects.plan_remove, "a.json", digest(b"new")))
        taken = database.write_sync(effects.plan_write, "c.json", b"mine", None)
        (root.path / "c.json").write_bytes(b"theirs")
        try:
            effects.apply_sync(taken)
        except NightshiftError as error:
            steps.append(error.reason)
        return [*steps, sorted(p.name for p in root.path.iterdir()), (root.path / "c.json").read_bytes()]


def test_file_systems_without_renameat2_flags_are_served_too(tmp_path: Path) -> None:
    found = in_child(_no_swap, str(tmp_path))
    assert found == [b"new", b"made", "DRIFT_DETECTED", ["b.json", "c.json"], b"theirs"]


# kill -9. A helper without threads forks workers, so that a round costs no start of Python.


def _change_files(folder: Path, seed: int) -> None:
    """Recover, check what recovery promises, then change files until killed."""
    dice = random.Random(seed)
    database, root, effects = opened(folder)
    outcomes = [recovery.outcome.value for recovery in effects.recover_sync()]
    wrong = check(folder, database, root)
    # Whole or not at all: its being there is the sign to kill.
    report = folder / f"round-{seed}.tmp"
    report.write_text(json.dumps({"outcomes": outcomes, "wrong": wrong}))
    report.rename(folder / f"round-{seed}.json")
    if wrong:
        os._exit(3)
    while True:
        name = dice.choice(NAMES)
        known = root.read(name) if root.exists(name) else None
        if known is not None and dice.random() < 0.3:
            intent_id = database.write_sync(effects.plan_remove, name, digest(known))
        else:
            content = dice.randbytes(dice.choice((10, 5_000, 200_000)))
            wanted = None if known is None else digest(known)
            intent_id = database.write_sync(effects.plan_write, name, content, wanted)
        effects.apply_sync(intent_id)


def check(folder: Path, database: Database, root: Root) -> str:
    """What is wrong after recovery; "" if nothing: the last promise of each file is kept, byte by byte."""
    table = KIT.intents
    rows = database.read_sync(
        lambda c: c.execute(
            sa.select(table.c.path, table.c.state, table.c.new_digest).order_by(table.c.id)
        ).all()
    )
    states = {row.state for row in rows}
    if states - {"done"}:
        return f"states {states}"
    wanted = {row.path: row.new_digest for row in rows if row.path in NAMES}
    for name, promised in wanted.items():
        found = digest(root.read(name)) if root.exists(name) else None
        if found != promised:
            return f"{name} holds {found}, promised is {promised}"
    left_over = set(root.listdir()) - set(NAMES)
    return f"left over: {left_over}" if left_over else ""


def _rounds(pipe: Connection, folder: str, rounds: int) -> None:
    dice = random.Random(11)
    for seed in range(rounds):
        child = os.fork()
        if child == 0:
            _change_files(Path(folder), seed)
            os._exit(4)
        reported = Path(folder) / f"round-{seed}.json"
        while not reported.exists() and os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(0.001)
        time.sleep(dice.uniform(0.0, 0.03))
        os.kill(child, signal.SIGKILL)
        try:
            _, status = os.waitpid(child, 0)
        except ChildProcessError:
            pipe.send(f"round {seed} ended by itself")
            return
        if os.WIFEXITED(status):
            pipe.send(f"round {seed} ended by itself with {os.WEXITSTATUS(status)}: {reported.read_text()}")
            return
    pipe.send("")


def kill_rounds(folder: Path, rounds: int) -> collections.Counter[str]:
    database, root, _ = opened(folder)
    with database, root:
        database.migrate()
    spawn = mp.get_context("spawn")
    ours, theirs = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_rounds, args=(theirs, str(folder), rounds))
    process.start()
    theirs.close()
    problem = ours.recv()
    process.join(30)
    assert problem == ""
    seen: collections.Counter[str] = collections.Counter()
    for seed in range(rounds):
        report = json.loads((folder / f"round-{seed}.json").read_text())
        assert report["wrong"] == ""
        seen.update(report["outcomes"] or ["nothing open"])
    database, root, effects = opened(folder)
    with database, root:
        effects.recover_sync()
        assert check(folder, database, root) == ""
    return seen


def test_kill_9_leaves_nothing_half_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen = kill_rounds(tmp_path, 60)
    assert seen["redone"] + seen["confirmed"] > 0, "no kill landed inside a change"
    assert not seen["drifted"]
    assert not seen["failed"]
    with capsys.disabled():
        print(f"\n60 kills: {dict(seen)}")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kill_9_in_the_long_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen = kill_rounds(tmp_path, 1500)
    assert not seen["drifted"]
    assert not seen["failed"]
    with capsys.disabled():
        print(f"\n1,500 kills: {dict(seen)}")
