"""What was asked and what was acknowledged, written down outside the plane."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Journal:
    """One JSON line an intent or acknowledgement; an acknowledgement is on disk when `acknowledged` returns.

    The final checks read the file, not what the drivers remember.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("ab", buffering=0)

    def intends(self, operation: str, **fields: Any) -> None:
        """Before a call is made for the first time."""
        self._file.write(_line({"kind": "intent", "operation": operation, **fields}))

    def acknowledged(self, operation: str, **fields: Any) -> None:
        """After its answer came."""
        self._file.write(_line({"kind": "ack", "operation": operation, **fields}))
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def entries(self, kind: str, *operations: str) -> Iterator[dict[str, Any]]:
        """What the file holds, in order; all operations where none is named."""
        with self._path.open("rb") as lines:
            for line in lines:
                entry = json.loads(line)
                if entry["kind"] == kind and (not operations or entry["operation"] in operations):
                    yield entry


def _line(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry, ensure_ascii=False).encode() + b"\n"
