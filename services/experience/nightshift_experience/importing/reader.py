"""The reading process of an import: walks a tree that nobody vouches for, away from the event loop.

    in    {"directory", "zone", "content_checks"}, then lists of known folders, then an empty list
    out   {"kind": "batch", …} with what changed, {"kind": "progress", …}, and at the end
          {"kind": "favorites", …}, {"kind": "end", …}; or {"kind": "failed", "reason", "detail"}

Known folders are [path, run id, signature, names, content digest, skip reason], digests in hex. It prints and
logs nothing: a traceback might quote what it read.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from typing import Any, BinaryIO
from zoneinfo import ZoneInfo

import orjson

from nightshift_experience.importing.framing import pack, read_message
from nightshift_experience.languages import LanguageDetector
from nightshift_experience.sources.devserver.favorites import read_favorites
from nightshift_experience.sources.devserver.layout import (
    ExportRootMissing,
    FoundProblem,
    FoundRun,
    open_export_root,
    walk,
)
from nightshift_experience.sources.devserver.reading import RunFolder, Unreadable
from nightshift_experience.sources.devserver.record import ReadingRules, ReadRun, is_unchanged, read_run

_BATCH_RUNS = 250
# A batch that holds this much text goes at once, so that huge prompts do not pile up.
_BATCH_CHARACTERS = 2_000_000
_PROGRESS_S = 0.2


class _Known:
    """What the store knows of a folder."""

    __slots__ = ("content_digest", "names", "run_id", "signature", "skip_reason")

    def __init__(
        self, run_id: str, signature: str, names: str, content_digest: str, skip_reason: str
    ) -> None:
        self.run_id = run_id
        self.signature = bytes.fromhex(signature)
        self.names: list[str] = orjson.loads(names)
        self.content_digest = content_digest
        self.skip_reason = skip_reason


class Reader:
    """Reads one tree and tells about it."""

    def __init__(self, out: BinaryIO, known: dict[str, _Known], rules: ReadingRules) -> None:
        self._out = out
        self._known = known
        self._rules = rules
        self._paths_by_run: dict[str, str] = {}
        self._changed: list[dict[str, Any]] = []
        self._characters = 0
        self._told_s = time.monotonic()
        self._counts = {"found": 0, "scanned": 0, "unchanged": 0}
        self._skipped: Counter[str] = Counter()

    def run(self, root_fd: int) -> None:
        """Read everything below the root."""
        seen: set[str] = set()
        for found in walk(root_fd):
            seen.add(found.path)
            if isinstance(found, FoundProblem):
                self._skip(ReadRun(found.path, None, found.reason, found.detail))
            else:
                self._counts["found"] += 1
                self._read(found)
                self._counts["scanned"] += 1
            if len(self._changed) >= _BATCH_RUNS or self._characters >= _BATCH_CHARACTERS:
                self._flush("batch")
            elif time.monotonic() - self._told_s > _PROGRESS_S:
                self._flush("batch" if self._changed else "progress")
        self._flush("batch")
        self._tell_favorites(root_fd)
        gone = [path for path in self._known if path not in seen]
        self._tell({"kind": "end", "gone": gone})

    def _read(self, found: FoundRun) -> None:
        known = self._known.get(found.path)
        try:
            folder = RunFolder(found.parent_fd, found.name)
        except OSError as error:
            self._skip(ReadRun(found.path, None, "FOLDER_UNREADABLE", os.strerror(error.errno or 0)))
            return
        with folder:
            if known is not None and is_unchanged(folder, known.signature, known.names):
                self._stays(found.path, known)
                return
            read = read_run(found, folder, self._rules)
        if read.record is not None:
            first = self._paths_by_run.setdefault(read.record.run_id, found.path)
            if first != found.path:
                read.record = None
                # Read it again next time: the other folder may be gone by then.
                read.signature = b""
                read.skip_reason = "DUPLICATE_RUN_ID"
                read.skip_detail = f"the same run id as {first}"
        if read.record is None:
            self._skip(read)
        elif known is not None and known.content_digest == read.content_digest and not known.skip_reason:
            self._counts["unchanged"] += 1
            if read.signature != known.signature:
                self._add(read, None)
        else:
            self._add(read, read.record)

    def _stays(self, path: str, known: _Known) -> None:
        if known.skip_reason:
            self._skipped[known.skip_reason] += 1
        else:
            self._paths_by_run.setdefault(known.run_id, path)
            self._counts["unchanged"] += 1

    def _skip(self, read: ReadRun) -> None:
        self._skipped[read.skip_reason] += 1
        self._add(read, None)

    def _add(self, read: ReadRun, record: Any) -> None:
        known = self._known.get(read.path)
        told = read.record.run_id if read.record is not None else ""
        self._changed.append(
            {
                "path": read.path,
                "run_id": told or (known.run_id if known is not None and not read.skip_reason else ""),
                "signature": read.signature.hex(),
                "names": orjson.dumps(read.names).decode(),
                "content_digest": read.content_digest,
                "skip_reason": read.skip_reason,
                "skip_detail": read.skip_detail,
                "record": record,
            }
        )
        if record is not None:
            self._characters += len(record.prompt or "") + len(record.transformed_prompt or "")

    def _tell_favorites(self, root_fd: int) -> None:
        try:
            favorites = read_favorites(root_fd, self._rules.zone)
        except Unreadable as error:
            self._tell({"kind": "favorites_unreadable", "reason": error.reason, "detail": error.detail})
            return
        if favorites is not None:
            self._tell(
                {"kind": "favorites", "added_us": {entry.run_id: entry.added_us for entry in favorites}}
            )

    def _flush(self, kind: str) -> None:
        message: dict[str, Any] = {"kind": kind, **self._counts, "skipped": dict(self._skipped)}
        if self._changed:
            message["changed"] = self._changed
        self._tell(message)
        self._changed = []
        self._characters = 0
        self._told_s = time.monotonic()

    def _tell(self, message: dict[str, Any]) -> None:
        self._out.write(pack(message))
        self._out.flush()


def main(source: BinaryIO, out: BinaryIO) -> int:
    """Serve one import; 0 also where it told of a failure."""
    order = read_message(source)
    known: dict[str, _Known] = {}
    while rows := read_message(source):
        for path, run_id, signature, names, digest, reason in rows:
            known[path] = _Known(run_id, signature, names, digest, reason)
    try:
        root_fd = open_export_root(order["directory"])
    except ExportRootMissing:
        out.write(
            pack({"kind": "failed", "reason": "DIRECTORY_NOT_FOUND", "detail": "there is no such folder"})
        )
        return 0
    rules = ReadingRules(ZoneInfo(order["zone"]), LanguageDetector(), frozenset(order["content_checks"]))
    try:
        Reader(out, known, rules).run(root_fd)
    except BrokenPipeError:
        # The service has gone or has cancelled the import.
        return 1
    except OSError as error:
        out.write(
            pack({"kind": "failed", "reason": "TREE_UNREADABLE", "detail": os.strerror(error.errno or 0)})
        )
    except Exception as error:  # noqa: BLE001 - only its type may leave: the message may quote what was read
        out.write(pack({"kind": "failed", "reason": "IMPORTER_FAILED", "detail": type(error).__name__}))
    finally:
        os.close(root_fd)
    out.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.stdin.buffer, sys.stdout.buffer))
