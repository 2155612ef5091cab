"""Where run folders lie below exports/json.

    {YYYY-MM-DD}/{device}/{run}     current
    {YYYY-MM-DD}/run_…              older
    run_…                           oldest

Links are reported and never followed. Folders are visited in the order of their names, so that of two
folders with one run id always the same one counts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nightshift_experience.sources.devserver.reading import open_folder

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


@dataclass(slots=True)
class FoundRun:
    """A run folder: its parent's handle is open until the next one is asked for."""

    path: str
    name: str
    device: str
    parent_fd: int


@dataclass(slots=True)
class FoundProblem:
    """Something in the tree that is not read."""

    path: str
    reason: str
    detail: str


Visit = Callable[[int, str], Iterator["FoundRun | FoundProblem"]]


class ExportRootMissing(Exception):
    """There is no exports/json in this folder."""


def open_export_root(directory: str) -> int:
    """Handle of the folder that holds the date folders: `directory`/exports/json, or `directory` itself.

    Raises ExportRootMissing.
    """
    try:
        base = os.open(Path(directory), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise ExportRootMissing(directory) from error
    try:
        exports = open_folder("exports", base)
    except OSError:
        return base
    try:
        return open_folder("json", exports)
    except OSError as error:
        raise ExportRootMissing(directory) from error
    finally:
        os.close(exports)
        os.close(base)


def walk(root_fd: int) -> Iterator[FoundRun | FoundProblem]:
    """Every run folder below the root, by path; and links and unreadable folders on the way."""
    for name, problem in _entries(root_fd):
        if problem:
            yield FoundProblem(_printable(name), *problem)
        elif name.startswith("run_"):
            yield FoundRun(name, name, "", root_fd)
        elif _DATE.fullmatch(name):
            yield from _below(root_fd, name, name, _date_folder)


def _date_folder(fd: int, path: str) -> Iterator[FoundRun | FoundProblem]:
    for name, problem in _entries(fd):
        below = f"{path}/{name}"
        if problem:
            yield FoundProblem(_printable(below), *problem)
        elif name.startswith("run_"):
            yield FoundRun(below, name, "", fd)
        else:
            yield from _below(fd, name, below, _device_folder)


def _device_folder(fd: int, path: str) -> Iterator[FoundRun | FoundProblem]:
    device = path.rpartition("/")[2]
    for name, problem in _entries(fd):
        below = f"{path}/{name}"
        if problem:
            yield FoundProblem(_printable(below), *problem)
        else:
            yield FoundRun(below, name, device, fd)


def _below(parent_fd: int, name: str, path: str, visit: Visit) -> Iterator[FoundRun | FoundProblem]:
    try:
        fd = open_folder(name, parent_fd)
    except OSError as error:
        yield FoundProblem(path, "FOLDER_UNREADABLE", os.strerror(error.errno or 0))
        return
    try:
        yield from visit(fd, path)
    finally:
        os.close(fd)


def _entries(fd: int) -> list[tuple[str, tuple[str, str] | None]]:
    """Folders by name, and what is wrong with those that are not entered; files are left out."""
    found: list[tuple[str, tuple[str, str] | None]] = []
    with os.scandir(fd) as entries:
        for entry in entries:
            if entry.is_symlink():
                found.append((entry.name, ("SYMLINK", "a symbolic link; links are not followed")))
            elif entry.is_dir(follow_symlinks=False):
                broken = not entry.name.isascii() and _printable(entry.name) != entry.name
                found.append((entry.name, ("NAME_INVALID", "a name that is not UTF-8") if broken else None))
    found.sort()
    return found


def _printable(name: str) -> str:
    # Bytes of a name that are no UTF-8 come as lone surrogates, which nothing downstream can store.
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
