"""The second place of the checkpoints, and exported files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightshift_kit.audit.chain import SealedRow
from nightshift_kit.audit.checkpoint_copy import CheckpointCopy, compare
from nightshift_kit.audit.checkpoints import Checkpoints
from nightshift_kit.audit.export import export_line, verify_export
from nightshift_kit.clock import FakeClock
from nightshift_kit.errors import AuditBroken, StorageIo
from tests.kit.test_audit_chain import KEY, checkpoints_of, small_log, touched


class Places:
    """The first file, and its copy in another folder."""

    def __init__(self, tmp_path: Path, *, folder: bool = True) -> None:
        self.rows = small_log()
        self.first_path = tmp_path / "audit" / "checkpoints.jsonl"
        self.first = Checkpoints(self.first_path, KEY.public_key())
        other = tmp_path / "elsewhere"
        other.mkdir()
        self.copy = CheckpointCopy(other if folder else other / "plane-7.jsonl", self.first, self.open)

    @staticmethod
    def open(path: Path) -> Checkpoints:
        return Checkpoints(path, KEY.public_key())

    def sign(self, seq: int) -> None:
        self.first.append(seq, self.rows[seq - 1].hash, KEY, FakeClock())


@pytest.mark.parametrize("folder", [True, False])
def test_the_copy_has_the_same_lines(tmp_path: Path, folder: bool) -> None:
    places = Places(tmp_path, folder=folder)
    assert places.copy.follow() == 0
    for seq in (2, 4):
        places.sign(seq)
    assert places.copy.follow() == 2
    assert places.copy.follow() == 0
    assert places.copy.path.read_bytes() == places.first_path.read_bytes()
    assert places.copy.path.stat().st_mode & 0o777 == 0o600
    found = compare(places.first.read(), places.copy.read())
    assert (found.detail, len(found.marks)) == ("", 2)


def test_a_copy_that_was_out_of_reach_catches_up(tmp_path: Path) -> None:
    places = Places(tmp_path)
    places.sign(2)
    places.copy.follow()
    away = places.copy.path.parent
    away.rename(tmp_path / "unmounted")
    places.sign(4)
    with pytest.raises(StorageIo):
        places.copy.follow()
    assert not away.exists(), "no folder is made where a disk should be"
    (tmp_path / "unmounted").rename(away)
    assert compare(places.first.read(), places.copy.read()).detail == ""
    assert places.copy.follow() == 1


def test_a_line_that_a_crash_cut_short_is_written_anew(tmp_path: Path) -> None:
    places = Places(tmp_path)
    places.sign(2)
    places.sign(4)
    places.copy.follow()
    whole = places.copy.path.read_bytes()
    for cut in (1, 30, len(whole) - 1):
        places.copy.path.write_bytes(whole[:cut])
        places.copy.follow()
        assert places.copy.path.read_bytes() == whole


def test_a_copy_never_follows_a_file_that_lost_or_changed_lines(tmp_path: Path) -> None:
    places = Places(tmp_path)
    places.sign(2)
    places.sign(4)
    places.copy.follow()
    kept = places.copy.path.read_bytes()
    # Who holds the key and the first file can write another history; the copy tells.
    places.first_path.unlink()
    places.sign(2)
    found = compare(places.first.read(), places.copy.read())
    assert (found.first_bad_seq, len(found.marks)) == (4, 2)
    assert "which the copy has" in found.detail
    places.sign(3)
    found = compare(places.first.read(), places.copy.read())
    assert found.first_bad_seq == 3
    assert "another one in the copy" in found.detail
    with pytest.raises(AuditBroken, match="not the beginning"):
        places.copy.follow()
    assert places.copy.path.read_bytes() == kept


def test_a_changed_copy_is_found(tmp_path: Path) -> None:
    places = Places(tmp_path)
    places.sign(2)
    places.copy.follow()
    raw = bytearray(places.copy.path.read_bytes())
    raw[40] ^= 1
    places.copy.path.write_bytes(raw)
    with pytest.raises(AuditBroken):
        places.copy.read()
    with pytest.raises(AuditBroken):
        places.copy.follow()


def test_a_copy_that_was_not_synced_is_no_copy(tmp_path: Path) -> None:
    def fails(_: int) -> None:
        raise OSError(5, "Input/output error")

    places = Places(tmp_path)
    places.sign(2)
    copy = CheckpointCopy(tmp_path / "elsewhere" / "x.jsonl", places.first, places.open, fsync=fails)
    with pytest.raises(StorageIo, match="EIO"):
        copy.follow()


def test_following_reads_only_what_is_new_until_somebody_touches_a_file(tmp_path: Path) -> None:
    places = Places(tmp_path)
    for seq in (1, 2):
        places.sign(seq)
        places.copy.follow()
    whole: list[int] = []

    def read_all(handle: int) -> bytes:
        whole.append(handle)
        return b""

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nightshift_kit.audit.checkpoint_copy.read_all", read_all)
        for seq in (3, 4, 5):
            places.sign(seq)
            assert places.copy.follow() == 1
        assert places.copy.follow() == 0
    assert whole == []
    assert places.copy.path.read_bytes() == places.first_path.read_bytes()
    # A bit of the copy, and a history that somebody began anew: either is looked at as on the first day.
    raw = bytearray(places.copy.path.read_bytes())
    raw[50] ^= 1
    touched(places.copy.path, bytes(raw))
    places.sign(6)
    with pytest.raises(AuditBroken, match="not the beginning"):
        places.copy.follow()
    raw[50] ^= 1
    places.copy.path.write_bytes(raw)
    assert places.copy.follow() == 1
    places.first_path.unlink()
    places.sign(7)
    with pytest.raises(AuditBroken, match="not the beginning"):
        places.copy.follow()


# Exported files.


def exported(rows: list[SealedRow]) -> list[bytes]:
    return [export_line(row).encode() + b"\n" for row in rows]


def test_an_export_verifies_and_is_plain_json(tmp_path: Path) -> None:
    rows = small_log()
    found = verify_export(exported(rows), checkpoints_of(tmp_path, rows, [3, 7]))
    assert (found.valid, found.event_count, found.checkpoint_count) == (True, 7, 2)
    line = json.loads(exported(rows)[2])
    assert line["seq"] == 3
    assert line["event"]["payload"]["config"].startswith("wärme_")
    assert verify_export([]).valid


def test_a_cut_export_shows_against_checkpoints_alone(tmp_path: Path) -> None:
    rows = small_log()
    marks = checkpoints_of(tmp_path, rows, [7])
    assert verify_export(exported(rows)[:5]).valid
    found = verify_export(exported(rows)[:5], marks)
    assert (found.valid, found.first_bad_seq) == (False, 6)
    assert "cut off" in found.detail


@given(data=st.data())
def test_any_bit_of_an_export_counts(data: st.DataObject) -> None:
    lines = exported(small_log())
    index = data.draw(st.integers(0, len(lines) - 1))
    raw = bytearray(lines[index])
    bit = data.draw(st.integers(0, (len(raw) - 1) * 8 - 1))
    raw[bit // 8] ^= 1 << (bit % 8)
    # A bit may make a line's end of a character: the file is read by lines.
    changed = b"".join([*lines[:index], bytes(raw), *lines[index + 1 :]])
    found = verify_export(changed.splitlines(keepends=True))
    assert (found.valid, found.first_bad_seq) == (False, index + 1)


@pytest.mark.parametrize("line", [b"", b"{}", b"null", b"[" * 5000, b"\xff", b'{"event":{}}'])
def test_garbage_lines_are_findings(line: bytes) -> None:
    lines = exported(small_log())
    assert verify_export([*lines[:3], line + b"\n", *lines[3:]]).first_bad_seq == 4
