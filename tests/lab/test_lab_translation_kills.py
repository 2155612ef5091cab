"""A translation killed at each step on the way to the file: found done, once, or not begun."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nightshift_kit.audit import Outbox
from nightshift_kit.canonical import sha256_hex
from nightshift_kit.clock import SystemClock
from nightshift_kit.grants import Effect
from nightshift_kit.ids import new_id
from nightshift_kit.safe_files import FileEffects
from nightshift_kit.safe_files.change import Change
from nightshift_kit.storage import Database
from nightshift_lab.changes import Changes
from nightshift_lab.platform import Production, open_root
from nightshift_lab.promotions import Promotions
from nightshift_lab.records import Kind, promotion_to_bytes
from nightshift_lab.translation.gaps import Translation
from nightshift_lab.translation.insertion import inserted
from nightshift_lab.translation.revisions import Revision, Revisions
from tests.lab.conftest import INTERCEPTION, copy_platform, tree_digest

TEXTS = (Translation("name", "tr", "Güzel bir ad"), Translation("category", "he", "שם יפה"))


class Workplace:
    """The lab's core on one folder, as `__main__` wires it, without a server."""

    def __init__(self, folder: Path) -> None:
        clock = SystemClock()
        self.db = Database(f"sqlite:///{folder}/lab.db", migrations="nightshift_lab", name="lab")
        self.db.migrate()
        self.root = open_root(folder / "platform")
        self.outbox = Outbox("lab", clock)
        effects = FileEffects(self.root, self.db, clock=clock)
        self.changes = Changes(self.db, effects, Production(self.root), self.outbox, clock)
        self.promotions = Promotions(self.db, self.changes, clock, new_id)
        self.revisions = Revisions(self.changes, clock, new_id)

    def close(self) -> None:
        self.changes.close()
        self.db.close()
        self.root.close()


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def before_the_commit(_place: Workplace) -> None:
    Effect.finish = die  # type: ignore[method-assign]


def after_the_commit(_place: Workplace) -> None:
    FileEffects.apply_sync = die  # type: ignore[method-assign]


def with_a_file_half_written(_place: Workplace) -> None:
    os.fchmod = die


def after_the_swap(_place: Workplace) -> None:
    Change._judge_swapped_out = die  # type: ignore[method-assign]


def before_it_is_noted(_place: Workplace) -> None:
    FileEffects._end = die  # type: ignore[method-assign]


@pytest.mark.parametrize(
    "moment",
    [before_the_commit, after_the_commit, with_a_file_half_written, after_the_swap, before_it_is_noted],
)
def test_a_kill_between_intent_and_rename_is_recovered(
    tmp_path: Path, moment: Callable[[Workplace], None]
) -> None:
    platform = copy_platform(tmp_path / "platform")
    path = platform / INTERCEPTION / "bauanleitung.json"
    before, old = tree_digest(platform), path.read_bytes()
    new = inserted(old, TEXTS)
    revision = Revision("bauanleitung", sha256_hex(old), TEXTS, sha256_hex(new), "llm:tiny")
    jti = new_id()

    def translate(place: Workplace) -> Any:
        effect = Effect.for_tests(jti=jti, arguments_digest="1" * 64)
        return asyncio.run(place.revisions.translate(effect, revision))

    child = os.fork()
    if child == 0:
        place = Workplace(tmp_path)
        moment(place)
        translate(place)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    place = Workplace(tmp_path)
    found = place.changes.recover()
    assert found == (0 if moment is before_the_commit else 1)
    assert path.read_bytes() == (old if moment is before_the_commit else new)
    done = translate(place)
    assert promotion_to_bytes(translate(place)) == promotion_to_bytes(done)
    assert path.read_bytes() == new
    assert [entry.name for entry in path.parent.iterdir() if entry.name.startswith(".")] == []
    stored = asyncio.run(place.promotions.page(10, None))
    assert [(one.promotion_id, one.kind) for one in stored] == [(done.promotion_id, Kind.TRANSLATE)]
    events = place.db.read_sync(lambda connection: place.outbox.events(connection, 0, 100))
    assert [event.kind for event in events] == ["config.translated"]
    asyncio.run(place.promotions.roll_back(Effect.for_tests(), done.promotion_id, done.digest))
    assert path.read_bytes() == old
    assert tree_digest(platform) == before
    place.close()


def test_a_file_that_was_edited_after_the_crash_is_left_to_its_editor(tmp_path: Path) -> None:
    platform = copy_platform(tmp_path / "platform")
    path = platform / INTERCEPTION / "bauanleitung.json"
    old = path.read_bytes()
    revision = Revision("bauanleitung", sha256_hex(old), TEXTS, sha256_hex(inserted(old, TEXTS)))
    child = os.fork()
    if child == 0:
        place = Workplace(tmp_path)
        after_the_commit(place)
        asyncio.run(place.revisions.translate(Effect.for_tests(), revision))
        os._exit(0)
    os.waitpid(child, 0)
    path.write_bytes(old + b"\n")
    place = Workplace(tmp_path)
    assert place.changes.recover() == 1
    assert path.read_bytes() == old + b"\n"
    assert asyncio.run(place.promotions.page(10, None)) == []
    events = place.db.read_sync(lambda connection: place.outbox.events(connection, 0, 100))
    assert [event.kind for event in events] == ["config.translated", "config.promotion_failed"]
    place.close()
