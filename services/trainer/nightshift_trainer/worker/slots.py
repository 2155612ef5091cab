"""Two alternating checkpoint slots with an atomic LATEST.

    checkpoints/
        LATEST            {"slot": "a", "step": 12, "checkpoint_digest": …}
        a/tensors.safetensors   adapter, optimiser and random number generators
        a/state.json            {"state": {…}, "digests": {…}, "checkpoint_digest": …}
        b/…

A slot is overwritten only while the other one is good and current, and LATEST moves by rename after
everything in the new slot is on the disk; so at any moment, whatever is killed, one good checkpoint can be
found. Every file is verified against its digest before a byte of it is used; nothing is ever unpickled.

A slot's files are overwritten where they lie: giving their blocks back and taking others for every step
costs more than writing them, and what a kill leaves half old and half new fails its digest.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

SLOT_NAMES = ("a", "b")
TENSORS_FILE = "tensors.safetensors"
STATE_FILE = "state.json"
LATEST_FILE = "LATEST"

# state.json is filled up to a multiple of this, so that its length, which is metadata, changes rarely.
_STATE_GRAIN_BYTES = 512

# What Python's pickle hides behind; opening one runs whatever its author liked.
UNSAFE_SUFFIXES = frozenset({".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"})


class CheckpointsCorrupt(Exception):
    """There were checkpoints, and none of them is good."""


class UnsafeCheckpoint(Exception):
    """A pickle lies among the checkpoints."""


@dataclass(frozen=True)
class StoredCheckpoint:
    """A verified checkpoint: `tensors` are the bytes of a safetensors file, `state` what JSON can say."""

    slot: str
    step: int
    digest: str
    state: Mapping[str, Any]
    tensors: bytes
    fell_back: bool


def checkpoint_digest(tensors_digest: str, state_digest: str) -> str:
    """Digest over adapter, optimiser, random number generators and data order, as hex."""
    return hashlib.sha256(_text({"state": state_digest, "tensors": tensors_digest, "version": 1})).hexdigest()


class Slots:
    """Checkpoints of one job; one process writes them at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # The slot that must stay while the next one is written; "" until something was read or written.
        self._kept = ""

    def write(self, *, step: int, tensors: bytes | memoryview, state: Mapping[str, Any]) -> str:
        """Makes a checkpoint durable and current; answers its digest. Raises OSError.

        A training waits for the interpreter whenever this thread has it, so there are few calls here.
        """
        slot = self._next_slot()
        tensors_digest = hashlib.sha256(tensors).hexdigest()
        text = _text(state)
        state_digest = hashlib.sha256(text).hexdigest()
        whole = checkpoint_digest(tensors_digest, state_digest)
        # Around a state that is text already: it is the largest part by far.
        manifest = b'{"checkpoint_digest":%s,"digests":%s,"state":%s}' % (
            _text(whole),
            _text({TENSORS_FILE: tensors_digest, "state": state_digest}),
            text,
        )
        manifest += b" " * (-len(manifest) % _STATE_GRAIN_BYTES)
        folder = f"{self._folder}/{slot}"
        fresh = _overwrite_durably(f"{folder}/{TENSORS_FILE}", tensors)
        fresh |= _overwrite_durably(f"{folder}/{STATE_FILE}", manifest)
        if fresh:
            _sync_folder(folder)
            _sync_folder(str(self._folder))
        latest = f"{self._folder}/{LATEST_FILE}"
        _write_durably(
            f"{latest}.new",
            _text({"slot": slot, "step": step, "checkpoint_digest": whole}),
            os.O_CREAT,
        )
        os.replace(f"{latest}.new", latest)  # noqa: PTH105 - once a step, and a Path costs more than the call
        _sync_folder(str(self._folder))
        self._kept = slot
        return whole

    def load(self) -> StoredCheckpoint | None:
        """The newest good checkpoint, or None where none was ever written.

        Raises CheckpointsCorrupt where there were some and none is good, UnsafeCheckpoint, OSError.
        """
        if not self._folder.is_dir():
            return None
        self._refuse_pickles()
        found = [slot for slot in SLOT_NAMES if (self._folder / slot).is_dir()]
        good = self._good()
        if not good:
            if len(found) < 2 and not (self._folder / LATEST_FILE).exists():
                # Killed during the very first write: nothing was ever current, so nothing is lost.
                return None
            raise CheckpointsCorrupt(f"none of {len(found)} checkpoints in {self._folder.name} is good")
        latest = self._latest()
        chosen = max(good, key=lambda checkpoint: checkpoint.step)
        fell_back = True
        if latest is not None:
            for checkpoint in good:
                if checkpoint.slot == latest["slot"] and checkpoint.digest == latest["checkpoint_digest"]:
                    chosen, fell_back = checkpoint, False
        self._kept = chosen.slot
        return replace(chosen, fell_back=fell_back)

    def _refuse_pickles(self) -> None:
        for path in sorted(self._folder.rglob("*")):
            if path.suffix.lower() in UNSAFE_SUFFIXES:
                raise UnsafeCheckpoint(f"{path.name} is a pickle; checkpoints are safetensors and JSON")

    def _latest(self) -> dict[str, Any] | None:
        try:
            latest = json.loads((self._folder / LATEST_FILE).read_bytes())
            if latest["slot"] in SLOT_NAMES and isinstance(latest["checkpoint_digest"], str):
                return dict(latest)
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return None

    def _next_slot(self) -> str:
        # Never the one that is good, whatever LATEST says: it may name one that was damaged later.
        if not self._kept:
            good = self._good()
            if not good:
                return SLOT_NAMES[0]
            self._kept = max(good, key=lambda checkpoint: checkpoint.step).slot
        return SLOT_NAMES[1 - SLOT_NAMES.index(self._kept)]

    def _good(self) -> list[StoredCheckpoint]:
        return [checkpoint for slot in SLOT_NAMES if (checkpoint := self._verified(slot)) is not None]

    def _verified(self, slot: str) -> StoredCheckpoint | None:
        folder = self._folder / slot
        try:
            manifest = json.loads((folder / STATE_FILE).read_bytes())
            tensors = (folder / TENSORS_FILE).read_bytes()
            state = manifest["state"]
            whole = checkpoint_digest(
                hashlib.sha256(tensors).hexdigest(), hashlib.sha256(_text(state)).hexdigest()
            )
            if whole != manifest["checkpoint_digest"]:
                return None
            return StoredCheckpoint(slot, int(state["step"]), whole, state, tensors, fell_back=False)
        except (OSError, ValueError, KeyError, TypeError):
            return None


def _text(value: Any) -> bytes:
    """One text for one value; what was read from it gives the same. Raises ValueError for NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _overwrite_durably(path: str, content: bytes | memoryview) -> bool:
    """Answers whether file, and perhaps folder, had to be made; their entries may not be durable then."""
    try:
        _write_durably(path, content, 0)
    except FileNotFoundError:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        _write_durably(path, content, os.O_CREAT)
        return True
    return False


def _write_durably(path: str, content: bytes | memoryview, flags: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | flags, 0o600)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
        if os.fstat(descriptor).st_size != len(content):
            os.ftruncate(descriptor, len(content))
        # Of a file that has its length already, the content alone has to reach the disk.
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
