"""Finished adapters move from a job's folder to where they stay, in one step.

Blocking: call it in a thread.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from nightshift_kit.errors import Code, NightshiftError
from nightshift_trainer.weights import WeightsBroken, weights_digest

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"


class AdapterBroken(NightshiftError):
    """What the worker left is not what it said."""

    code = Code.DATA_LOSS
    reason = "ADAPTER_BROKEN"


def publish(staging: Path, target: Path, expected_digest: str) -> None:
    """Moves an adapter's folder into place; a repetition after a crash finds its work done.

    The weights are read back first: what is registered is what lies on the disk.
    Raises AdapterBroken, OSError.
    """
    if not staging.is_dir():
        _check(target, expected_digest)
        return
    _check(staging, expected_digest)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        # Only this very job can have put it there: its name is reserved while the job is open.
        shutil.rmtree(target)
    staging.rename(target)
    for folder in (target.parent, staging.parent):
        _sync_folder(folder)


def _check(folder: Path, expected_digest: str) -> None:
    try:
        found = weights_digest(folder / WEIGHTS_FILE)
    except (OSError, WeightsBroken) as error:
        raise AdapterBroken(f"The trained adapter cannot be read back ({type(error).__name__}).") from error
    if found != expected_digest or not (folder / CONFIG_FILE).is_file():
        raise AdapterBroken("The trained adapter on disk differs from the one in memory.")


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
