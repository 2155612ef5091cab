"""File changes by intent, with the intents in SQLite and in PostgreSQL."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from nightshift_kit.clock import FakeClock
from nightshift_kit.errors import DriftDetected, NotFound, NotRegularFile, PathEscape, StorageIo
from nightshift_kit.safe_files import EffectPending, FileEffects, Intent, Outcome, Recovery, Root
from nightshift_kit.storage import KIT, Database

MIGRATIONS = "tests.kit.sample_store"
OLD, NEW, OTHER = b'{"old": true}', b'{"new": "w\xc3\xa4rme"}', b"somebody else's"


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Place:
    """A root with one file, a database, and effects over both."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        (folder / "cfg").mkdir(parents=True)
        self.file = folder / "cfg" / "a.json"
        self.file.write_bytes(OLD)
        self.db = Database(url, migrations=MIGRATIONS, name="sample")
        self.db.migrate()
        self.root = Root(folder)
        self.effects = FileEffects(self.root, self.db, clock=FakeClock())

    def close(self) -> None:
        self.root.close()
        self.db.close()

    def write(self, content: bytes, expected: bytes | None = OLD, path: str = "cfg/a.json") -> str:
        wanted = None if expected is None else digest(expected)
        return self.db.write_sync(self.effects.plan_write, path, content, wanted)

    def remove(self, expected: bytes = OLD, path: str = "cfg/a.json") -> str:
        return self.db.write_sync(self.effects.plan_remove, path, digest(expected))

    def intent(self, intent_id: str) -> Intent:
        return self.db.read_sync(self.effects.intent, intent_id)

    def names(self) -> list[str]:
        return sorted(p.name for p in (self.folder / "cfg").iterdir())

    def restarted(self) -> list[Recovery]:
        """What recovery finds after a restart of the service."""
        self.effects = FileEffects(self.root, self.db, clock=FakeClock())
        return self.effects.recover_sync()


@pytest.fixture
def place(tmp_path: Path, database_url: str) -> Iterator[Place]:
    made = Place(tmp_path / "platform", database_url)
    yield made
    made.close()


async def test_a_write_is_promised_then_made(place: Place) -> None:
    intent_id = await place.db.write(place.effects.plan_write, "cfg/a.json", NEW, digest(OLD))
    assert place.file.read_bytes() == OLD
    await place.effects.apply(intent_id)
    assert place.file.read_bytes() == NEW
    assert place.names() == ["a.json"]
    done = place.intent(intent_id)
    assert (done.state, done.old_content, done.new_content) == ("done", OLD, NEW)
    assert done.finished_at is not None


def test_applying_again_does_nothing(place: Place) -> None:
    intent_id = place.write(NEW)
    place.effects.apply_sync(intent_id)
    place.file.write_bytes(OTHER)
    place.effects.apply_sync(intent_id)
    assert place.file.read_bytes() == OTHER


def test_a_new_file_with_new_folders(place: Place) -> None:
    place.effects.apply_sync(place.write(NEW, None, "cfg/deep/er/b.json"))
    made = place.folder / "cfg" / "deep" / "er" / "b.json"
    assert made.read_bytes() == NEW
    assert made.stat().st_mode & 0o777 == 0o644


def test_removing_and_putting_back_leaves_the_tree_as_it_was(place: Place) -> None:
    place.file.chmod(0o640)
    before = place.file.stat()
    intent_id = place.remove()
    place.effects.apply_sync(intent_id)
    assert place.names() == []
    gone = place.intent(intent_id)
    again = place.db.write_sync(
        lambda c: place.effects.plan_write(c, gone.path, gone.old_content or b"", None, mode=gone.old_mode)
    )
    place.effects.apply_sync(again)
    assert place.file.read_bytes() == OLD
    after = place.file.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o664, 0o755])
def test_permissions_are_kept(place: Place, mode: int) -> None:
    place.file.chmod(mode)
    place.effects.apply_sync(place.write(NEW))
    assert place.file.stat().st_mode & 0o777 == mode


def test_the_owner_is_kept(place: Place) -> None:
    owner = (65534, 65534) if os.geteuid() == 0 else (os.getuid(), os.getgroups()[-1])
    os.chown(place.file, *owner)
    place.effects.apply_sync(place.write(NEW))
    assert (place.file.stat().st_uid, place.file.stat().st_gid) == owner


@pytest.mark.parametrize(
    ("plan", "path"),
    [
        (lambda place, path: place.write(NEW, OTHER, path), "cfg/a.json"),
        (lambda place, path: place.write(NEW, None, path), "cfg/a.json"),
        (lambda place, path: place.write(NEW, OLD, path), "cfg/b.json"),
        (lambda place, path: place.remove(OTHER, path), "cfg/a.json"),
        (lambda place, path: place.remove(OLD, path), "cfg/b.json"),
    ],
)
def test_what_is_not_as_known_is_not_planned(
    place: Place, plan: Callable[[Place, str], str], path: str
) -> None:
    with pytest.raises(DriftDetected):
        plan(place, path)
    assert place.db.read_sync(lambda c: c.execute(sa.select(KIT.intents)).all()) == []


def test_a_promise_that_is_rolled_back_was_never_made(place: Place) -> None:
    def plan_then_fail(connection: sa.Connection) -> None:
        place.effects.plan_write(connection, "cfg/a.json", NEW, digest(OLD))
        raise LookupError

    with pytest.raises(LookupError):
        place.db.write_sync(plan_then_fail)
    assert place.restarted() == []
    assert place.file.read_bytes() == OLD


def test_one_change_of_a_file_at_a_time(place: Place) -> None:
    first = place.write(NEW)
    with pytest.raises(EffectPending):
        place.write(OTHER)
    place.effects.apply_sync(first)
    place.effects.apply_sync(place.write(OTHER, NEW))
    assert place.file.read_bytes() == OTHER


def test_drift_between_promise_and_change_is_left_as_found(place: Place) -> None:
    for intent_id in (place.write(NEW), None, None):
        wanted = intent_id or place.remove(OTHER)
        place.file.write_bytes(OTHER + b"!" if intent_id is None else OTHER)
        found = place.file.read_bytes()
        with pytest.raises(DriftDetected):
            place.effects.apply_sync(wanted)
        with pytest.raises(DriftDetected):
            place.effects.apply_sync(wanted)
        assert place.file.read_bytes() == found
        assert place.intent(wanted).state == "drifted"
        assert place.names() == ["a.json"]
        place.file.write_bytes(OTHER)


def test_a_name_that_was_taken_meanwhile_is_left_to_its_owner(place: Place) -> None:
    intent_id = place.write(NEW, None, "cfg/b.json")
    (place.folder / "cfg" / "b.json").write_bytes(OTHER)
    with pytest.raises(DriftDetected):
        place.effects.apply_sync(intent_id)
    assert (place.folder / "cfg" / "b.json").read_bytes() == OTHER


@pytest.mark.parametrize("kind", ["symlink", "hard link", "fifo", "folder"])
def test_what_is_put_in_the_files_place_is_not_touched(place: Place, tmp_path: Path, kind: str) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(OLD)
    intent_id = place.write(NEW)
    place.file.unlink()
    if kind == "symlink":
        place.file.symlink_to(secret)
    elif kind == "hard link":
        os.link(secret, place.file)
    elif kind == "fifo":
        os.mkfifo(place.file)
    else:
        place.file.mkdir()
    with pytest.raises((PathEscape, NotRegularFile)):
        place.effects.apply_sync(intent_id)
    assert secret.read_bytes() == OLD
    assert place.names() == ["a.json"]
    assert place.intent(intent_id).state == "planned"


def test_a_folder_swapped_for_a_link_is_refused(place: Place, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a.json").write_bytes(OLD)
    intent_id = place.write(NEW)
    (place.folder / "cfg").rename(place.folder / "was")
    (place.folder / "cfg").symlink_to(outside)
    with pytest.raises(PathEscape):
        place.effects.apply_sync(intent_id)
    assert (outside / "a.json").read_bytes() == OLD


def test_withdrawing(place: Place) -> None:
    intent_id = place.write(NEW)
    place.db.write_sync(place.effects.withdraw, intent_id)
    assert place.intent(intent_id).state == "withdrawn"
    with pytest.raises(NotFound):
        place.effects.apply_sync(intent_id)
    with pytest.raises(NotFound):
        place.db.write_sync(place.effects.withdraw, intent_id)
    assert place.restarted() == []
    assert place.file.read_bytes() == OLD


def test_what_was_changed_already_cannot_be_withdrawn(place: Place) -> None:
    intent_id = place.write(NEW)
    place.file.write_bytes(NEW)
    with pytest.raises(DriftDetected):
        place.db.write_sync(place.effects.withdraw, intent_id)
    place.effects.apply_sync(intent_id)
    assert place.intent(intent_id).state == "done"


def test_an_unknown_intent(place: Place) -> None:
    with pytest.raises(NotFound):
        place.effects.apply_sync("nothing")


def test_a_replaced_root_takes_no_changes(place: Place, tmp_path: Path) -> None:
    intent_id = place.write(NEW)
    place.folder.rename(tmp_path / "elsewhere")
    place.folder.mkdir()
    with pytest.raises(StorageIo, match="replaced"):
        place.effects.apply_sync(intent_id)
    assert place.effects.healthy
    assert place.intent(intent_id).state == "planned"


def test_temporary_names_match_no_glob_of_the_platform(place: Place) -> None:
    intent_id = place.write(NEW)
    for name in (f".nightshift-{intent_id}.tmp", f".nightshift-{intent_id}.again.tmp"):
        (place.folder / "cfg" / name).write_bytes(b"")
    assert [p.name for p in place.folder.glob("**/*.json")] == ["a.json"]
    assert [p.name for p in place.folder.rglob("*.json*")] == ["a.json"]
    assert place.restarted()[0].outcome is Outcome.REDONE
    assert place.names() == ["a.json"]


# States that a crash can leave: (file, aside, again) → (outcome, file afterwards). None: not there.
HALF = NEW[:5]
WRITE_CRASHES = [
    (OLD, None, None, Outcome.REDONE, NEW),
    (OLD, HALF, None, Outcome.REDONE, NEW),
    (OLD, NEW, None, Outcome.REDONE, NEW),
    (NEW, OLD, None, Outcome.CONFIRMED, NEW),
    (NEW, None, None, Outcome.CONFIRMED, NEW),
    (NEW, None, HALF, Outcome.CONFIRMED, NEW),
    (NEW, HALF, None, Outcome.CONFIRMED, NEW),
    (NEW, OTHER, None, Outcome.DRIFTED, OTHER),
    (OTHER, None, None, Outcome.DRIFTED, OTHER),
    (OTHER, HALF, None, Outcome.DRIFTED, OTHER),
    (OTHER, NEW, HALF, Outcome.DRIFTED, OTHER),
    (None, None, None, Outcome.DRIFTED, None),
]
REMOVE_CRASHES = [
    (OLD, None, None, Outcome.REDONE, None),
    (None, OLD, None, Outcome.CONFIRMED, None),
    (None, None, None, Outcome.CONFIRMED, None),
    (OTHER, None, None, Outcome.DRIFTED, OTHER),
    (None, OTHER, None, Outcome.DRIFTED, OTHER),
    (OLD, OLD, None, Outcome.REDONE, None),
]
CREATE_CRASHES = [
    (None, None, None, Outcome.REDONE, NEW),
    (None, HALF, None, Outcome.REDONE, NEW),
    (None, NEW, None, Outcome.REDONE, NEW),
    (NEW, None, None, Outcome.CONFIRMED, NEW),
    (OTHER, None, None, Outcome.DRIFTED, OTHER),
    (OTHER, NEW, None, Outcome.DRIFTED, OTHER),
]
CRASHES = [
    (kind, *state)
    for kind, states in (("write", WRITE_CRASHES), ("remove", REMOVE_CRASHES), ("create", CREATE_CRASHES))
    for state in states
]


@pytest.mark.parametrize(("kind", "file", "aside", "again", "outcome", "after"), CRASHES)
def test_recovery_decides_by_content(
    place: Place,
    kind: str,
    file: bytes | None,
    aside: bytes | None,
    again: bytes | None,
    outcome: Outcome,
    after: bytes | None,
) -> None:
    if kind == "create":
        place.file.unlink()
    intent_id = place.remove() if kind == "remove" else place.write(NEW, None if kind == "create" else OLD)
    found = {
        "a.json": file,
        f".nightshift-{intent_id}.tmp": aside,
        f".nightshift-{intent_id}.again.tmp": again,
    }
    place.file.unlink(missing_ok=True)
    for name, content in found.items():
        if content is not None:
            (place.folder / "cfg" / name).write_bytes(content)
    (recovered,) = place.restarted()
    assert (recovered.intent_id, recovered.path, recovered.outcome) == (intent_id, "cfg/a.json", outcome)
    assert (place.file.read_bytes() if place.file.exists() else None) == after
    assert place.names() == (["a.json"] if after is not None else [])
    assert place.intent(intent_id).state == ("drifted" if outcome is Outcome.DRIFTED else "done")
    assert place.restarted() == []


def test_a_removal_whose_folder_is_gone_is_done(place: Place) -> None:
    intent_id = place.remove()
    place.file.unlink()
    place.file.parent.rmdir()
    assert [r.outcome for r in place.restarted()] == [Outcome.CONFIRMED]
    assert not place.file.parent.exists()
    assert place.intent(intent_id).state == "done"


def test_a_change_to_the_same_content_is_no_change(place: Place) -> None:
    before = place.file.stat().st_ino
    place.effects.apply_sync(place.write(OLD))
    assert place.file.stat().st_ino == before


def test_recovery_goes_on_past_what_it_cannot_do(place: Place) -> None:
    place.write(NEW)
    second = place.write(NEW, None, "cfg/b.json")
    place.file.unlink()
    place.file.mkdir()
    first_found, second_found = place.restarted()
    assert first_found.outcome is Outcome.FAILED
    assert isinstance(first_found.error, NotRegularFile)
    assert second_found == Recovery(second, "cfg/b.json", Outcome.REDONE)
