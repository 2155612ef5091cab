"""The spool: bounded, private, exact, and whole after every kind of death."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nightshift_client.spool import MAX_REFUSED_FILES, Spool, SpoolFailed


def contents(spool: Spool) -> list[bytes]:
    return [payload for entry in spool.oldest_first() if (payload := spool.read(entry)) is not None]


def test_records_come_back_in_order_by_another_process_and_privately(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "spool"
    spool = Spool(folder)
    payloads = [b"one", b"", b"\n\x00three", os.urandom(5_000)]
    for payload in payloads:
        spool.append("run", payload)
    spool.append("feedback", b"signal")
    spool.sync()
    assert contents(Spool(folder)) == [*payloads, b"signal"]
    assert [entry.kind for entry in Spool(folder).oldest_first()] == ["run"] * 4 + ["feedback"]
    assert {stat.S_IMODE(each.stat().st_mode) for each in (folder, folder.parent)} == {0o700}
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_the_oldest_go_when_it_is_full_and_are_counted(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_bytes=1_000)
    for number in range(20):
        spool.append("run", b"%03d" % number + b"x" * 97)
        assert spool.size_bytes <= 1_000
    kept = [payload[:3] for payload in contents(spool)]
    assert kept == [b"%03d" % number for number in range(20 - len(kept), 20)]
    assert spool.dropped_count == 20 - len(kept)
    with pytest.raises(SpoolFailed):
        spool.append("run", b"x" * 2_000)
    assert [payload[:3] for payload in contents(spool)] == kept


def test_what_a_power_failure_left_torn_is_set_aside(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    entries = [spool.append("run", b"payload %d" % number) for number in range(3)]
    (tmp_path / entries[0].name).write_bytes(b"")
    torn = (tmp_path / entries[1].name).read_bytes()[:-1]
    (tmp_path / entries[1].name).write_bytes(torn)
    again = Spool(tmp_path)
    assert contents(again) == [b"payload 2"]
    assert again.refused_count == 2
    assert sorted(path.suffix for path in (tmp_path / "refused").iterdir()) == [".TORN", ".TORN"]
    assert len(Spool(tmp_path)) == 1


def test_refused_records_are_kept_apart_and_bounded(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for number in range(MAX_REFUSED_FILES + 5):
        spool.set_aside(spool.append("run", b"%d" % number), "NON_FINITE/../x")
    kept = sorted((tmp_path / "refused").iterdir())
    assert len(kept) == MAX_REFUSED_FILES
    assert all(path.name.endswith(".NON_FINITE____X") for path in kept)
    assert len(spool) == 0


def test_a_folder_that_takes_nothing_is_an_error_and_counts(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    spool = Spool(tmp_path / "file" / "spool")
    with pytest.raises(SpoolFailed):
        spool.append("run", b"x")
    assert spool.dropped_count == 1
    assert len(spool) == 0


def test_strange_files_are_left_alone_and_links_not_followed(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    spool = Spool(folder)
    name = spool.append("run", b"x").name
    (folder / "notes.txt").write_text("mine")
    (folder / "00000000000000000001-1-1.run").symlink_to(folder / name)
    (folder / f".{'0' * 19}1-1-1.run.part").write_text("left by a dead process")
    again = Spool(folder)
    assert contents(again) == [b"x"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "00000000000000000001-1-1.run",
        name,
        "notes.txt",
    ]


def test_killed_at_any_moment_nothing_appended_is_lost_and_nothing_is_half(tmp_path: Path) -> None:
    """Children append and tell of each record on a pipe; SIGKILL hits somewhere in the middle."""
    program = """
import sys
from pathlib import Path
from nightshift_client.spool import Spool
spool = Spool(Path(sys.argv[1]))
number = 0
while True:
    payload = b"%s-%d-" % (sys.argv[2].encode(), number) + b"x" * (number * 37 % 3000)
    spool.append("run", payload)
    sys.stdout.buffer.write(b"%d\\n" % number)
    sys.stdout.buffer.flush()
    number += 1
"""
    folder = tmp_path / "spool"
    told: dict[str, int] = {}
    for round_number in range(8):
        child = subprocess.Popen(
            [sys.executable, "-c", program, str(folder), str(round_number)], stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(0.01 + 0.013 * round_number)
        child.send_signal(signal.SIGKILL)
        rest = child.stdout.read().splitlines()
        child.communicate()
        # The last line may itself be cut.
        told[str(round_number)] = max(len(rest) - 1, 0)
    spool = Spool(folder)
    found: dict[str, set[int]] = {}
    for payload in contents(spool):
        who, index, _ = payload.split(b"-", 2)
        assert payload == b"%s-%s-" % (who, index) + b"x" * (int(index) * 37 % 3000)
        found.setdefault(who.decode(), set()).add(int(index))
    assert spool.refused_count == 0
    for child_name, count in told.items():
        assert set(range(count)) <= found[child_name]
    assert sum(told.values()) > 50


class SpoolMachine(RuleBasedStateMachine):
    """Against a list: append, deliver, refuse, die and start anew, in any order."""

    @initialize(max_bytes=st.integers(150, 2_000))
    def begin(self, max_bytes: int) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.max_bytes = max_bytes
        self.time_ns = 1_000
        self.spool = self.open()
        self.model: list[tuple[str, bytes, int]] = []

    def open(self) -> Spool:
        def clock_ns() -> int:
            self.time_ns += 1
            return self.time_ns

        return Spool(self.folder, max_bytes=self.max_bytes, clock_ns=clock_ns)

    @rule(kind=st.sampled_from(["run", "feedback"]), payload=st.binary(max_size=300))
    def append(self, kind: str, payload: bytes) -> None:
        dropped = self.spool.dropped_count
        try:
            entry = self.spool.append(kind, payload)
        except SpoolFailed:
            assert len(payload) + 100 > self.max_bytes
            assert self.spool.dropped_count == dropped + 1
            return
        gone = self.spool.dropped_count - dropped
        self.model = [*self.model[gone:], (kind, payload, entry.size_bytes)]

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.model) - 1))
        self.spool.remove(self.spool.oldest_first()[index])
        self.model.pop(index)

    @precondition(lambda self: self.model)
    @rule()
    def refuse(self) -> None:
        self.spool.set_aside(self.spool.oldest_first()[0], "REASON")
        self.model.pop(0)

    @rule()
    def die_and_start_anew(self) -> None:
        self.spool = self.open()

    @rule()
    def sync_and_look_again(self) -> None:
        self.spool.sync()
        self.spool.rescan()

    @invariant()
    def holds_exactly_what_it_should(self) -> None:
        entries = self.spool.oldest_first()
        assert [(entry.kind, self.spool.read(entry)) for entry in entries] == [m[:2] for m in self.model]
        assert self.spool.size_bytes == sum(m[2] for m in self.model) <= self.max_bytes

    def teardown(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


TestSpoolMachine = SpoolMachine.TestCase
TestSpoolMachine.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
