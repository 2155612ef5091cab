"""Two alternating checkpoint slots with an atomic LATEST.

    checkpoints/
        LATEST            {"slot": "a", "step": 12, "checkpoint_digest": …}
        a/tensors.safetensors   adapter, optimiser and random number generators
        a/state.json            {"state": {…}, "digests": {…}, "checkpoint_digest": …}
        b/…

A slot is overwritten only while LATEST names the other one, and LATEST moves by rename after everything in
the new slot is on the disk; so at any moment, whatever is killed, one good checkpoint can be found. Every
file is verified against its digest before a byte of it is used; nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nightshift_kit.canonical import canonical_json

SLOT_NAMES = ("a", "b")
TENSORS_FILE = "tensors.safetensors"
STATE_FILE = "state.json"
LATEST_FILE = "LATEST"

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
    return hashlib.sha256(
        canonical_json({"state": state_digest, "tensors": tensors_digest, "version": 1})
    ).hexdigest()


class Slots:
    """Checkpoints of one job; one process writes them at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, *, step: int, tensors: Sequence[bytes | memoryview], state: Mapping[str, Any]) -> str:
        """Makes a checkpoint durable and current; answers its digest. Raises OSError."""
        slot = self._next_slot()
        folder = self._folder / slot
        if not folder.is_dir():
            folder.mkdir(parents=True)
            _sync_folder(self._folder)
        digest = hashlib.sha256()
        for piece in tensors:
            digest.update(piece)
        tensors_digest = digest.hexdigest()
        state_digest = hashlib.sha256(canonical_json(state)).hexdigest()
        whole = checkpoint_digest(tensors_digest, state_digest)
        fresh = not (folder / STATE_FILE).exists()
        _write_durably(folder / TENSORS_FILE, tensors)
        manifest = {
            "state": state,
            "digests": {TENSORS_FILE: tensors_digest, "state": state_digest},
            "checkpoint_digest": whole,
        }
        _write_durably(folder / STATE_FILE, [json.dumps(manifest).encode()])
        if fresh:
            _sync_folder(folder)
        temporary = self._folder / f"{LATEST_FILE}.new"
        _write_durably(
            temporary, [json.dumps({"slot": slot, "step": step, "checkpoint_digest": whole}).encode()]
        )
        temporary.replace(self._folder / LATEST_FILE)
        _sync_folder(self._folder)
        return whole

    def load(self) -> StoredCheckpoint | None:
        """The newest good checkpoint, or None where none was ever written.

        Raises CheckpointsCorrupt where there were some and none is good, UnsafeCheckpoint, OSError.
        """
        if not self._folder.is_dir():
            return None
        self._refuse_pickles()
        latest = self._latest()
        found = [slot for slot in SLOT_NAMES if (self._folder / slot).is_dir()]
        good = [checkpoint for slot in found if (checkpoint := self._verified(slot)) is not None]
        if not good:
            if len(found) < 2 and not (self._folder / LATEST_FILE).exists():
                # Killed during the very first write: nothing was ever current, so nothing is lost.
                return None
            raise CheckpointsCorrupt(f"none of {len(found)} checkpoints in {self._folder.name} is good")
        if latest is not None:
            for checkpoint in good:
                if checkpoint.slot == latest["slot"] and checkpoint.digest == latest["checkpoint_digest"]:
                    return checkpoint
        newest = max(good, key=lambda checkpoint: checkpoint.step)
        return StoredCheckpoint(
            newest.slot, newest.step, newest.digest, newest.state, newest.tensors, fell_back=True
        )

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
        latest = self._latest()
        if latest is not None:
            return SLOT_NAMES[1 - SLOT_NAMES.index(latest["slot"])]
        # LATEST is unreadable or not there: keep whichever slot is good and newest.
        good = [checkpoint for slot in SLOT_NAMES if (checkpoint := self._verified(slot)) is not None]
        if not good:
            return SLOT_NAMES[0]
        newest = max(good, key=lambda checkpoint: checkpoint.step)
        return SLOT_NAMES[1 - SLOT_NAMES.index(newest.slot)]

    def _verified(self, slot: str) -> StoredCheckpoint | None:
        folder = self._folder / slot
        try:
            manifest = json.loads((folder / STATE_FILE).read_bytes())
            tensors = (folder / TENSORS_FILE).read_bytes()
            state = manifest["state"]
            whole = checkpoint_digest(
                hashlib.sha256(tensors).hexdigest(), hashlib.sha256(canonical_json(state)).hexdigest()
            )
            if whole != manifest["checkpoint_digest"]:
                return None
            return StoredCheckpoint(slot, int(state["step"]), whole, state, tensors, fell_back=False)
        except (OSError, ValueError, KeyError, TypeError):
            return None


def _write_durably(path: Path, pieces: Sequence[bytes | memoryview]) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        for piece in pieces:
            view = memoryview(piece).cast("B")
            while view:
                view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
