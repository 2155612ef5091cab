"""Whatever is damaged or cut short, one good checkpoint is found, and nothing else is."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nightshift_trainer.worker.slots import CheckpointsCorrupt, Slots, UnsafeCheckpoint


def write(slots: Slots, step: int) -> str:
    return slots.write(step=step, tensors=b"head" + b"t" * step, state={"step": step, "rng": [step]})


def test_the_newest_is_found(tmp_path: Path) -> None:
    slots = Slots(tmp_path / "checkpoints")
    assert slots.load() is None
    digests = [write(slots, step) for step in range(5)]
    assert len(set(digests)) == 5
    found = slots.load()
    assert found is not None
    assert (found.step, found.digest, found.fell_back) == (4, digests[4], False)
    assert found.tensors == b"head" + b"t" * 4
    assert found.state == {"step": 4, "rng": [4]}


FILES = ["tensors.safetensors", "state.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "empty"])
def test_a_damaged_newest_falls_back(tmp_path: Path, name: str, damage: str) -> None:
    slots = Slots(tmp_path)
    for step in (1, 2, 3):
        write(slots, step)
    newest = json.loads((tmp_path / "LATEST").read_text())["slot"]
    hurt(tmp_path / newest / name, damage)
    found = slots.load()
    assert found is not None
    assert (found.step, found.fell_back) == (2, True)
    # The next one overwrites the damaged slot, not the good one.
    write(slots, 3)
    found = slots.load()
    assert found is not None
    assert (found.step, found.fell_back) == (3, False)


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "empty"])
def test_a_damaged_latest_hides_nothing(tmp_path: Path, damage: str) -> None:
    slots = Slots(tmp_path)
    for step in (1, 2, 3):
        write(slots, step)
    hurt(tmp_path / "LATEST", damage)
    found = slots.load()
    assert found is not None
    assert found.step == 3
    write(slots, 4)
    found = slots.load()
    assert found is not None
    assert found.step == 4


def test_a_first_write_that_was_cut_short_is_no_loss(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "tensors.safetensors").write_bytes(b"half")
    assert slots.load() is None
    write(slots, 0)
    found = slots.load()
    assert found is not None
    assert found.step == 0


def test_two_damaged_ones_are_said_to_be_so(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    write(slots, 1)
    write(slots, 2)
    for slot in "ab":
        hurt(tmp_path / slot / "state.json", "flipped")
    with pytest.raises(CheckpointsCorrupt):
        slots.load()


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth", "adapter_model.bin", "scaler.PKL"])
def test_pickles_are_refused(tmp_path: Path, name: str) -> None:
    slots = Slots(tmp_path)
    write(slots, 1)
    (tmp_path / "a" / name).write_bytes(b"")
    with pytest.raises(UnsafeCheckpoint):
        slots.load()


def test_a_state_that_was_changed_does_not_count(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    write(slots, 1)
    path = tmp_path / "a" / "state.json"
    manifest = json.loads(path.read_text())
    manifest["state"]["rng"] = [7]
    path.write_text(json.dumps(manifest))
    with pytest.raises(CheckpointsCorrupt):
        slots.load()


class Killed(BaseException):
    """The process is gone."""


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 6), st.integers(0, 40))
def test_a_kill_between_any_two_calls_loses_at_most_the_write(steps: int, survived: int) -> None:
    """Every open, write, fsync and rename of the last write may be the last one of the process."""
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        slots = Slots(folder)
        for step in range(1, steps):
            write(slots, step)
        counter = itertools.count()

        def dying(real: Any) -> Any:
            def call(*given: Any, **named: Any) -> Any:
                if next(counter) >= survived:
                    raise Killed
                return real(*given, **named)

            return call

        with pytest.MonkeyPatch.context() as patch:
            for call in ("open", "write", "fsync"):
                patch.setattr(os, call, dying(getattr(os, call)))
            patch.setattr(Path, "replace", dying(Path.replace))
            try:
                write(slots, steps)
                complete = True
            except Killed:
                complete = False
        found = Slots(folder).load()
        assert found is not None
        assert found.step in ((steps,) if complete else (steps - 1, steps))


def hurt(path: Path, damage: str) -> None:
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    else:
        path.write_bytes(bytes([data[0] ^ 0x80]) + data[1:])
