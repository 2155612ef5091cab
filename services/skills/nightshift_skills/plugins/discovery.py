"""Installed plug-ins: entry points of the group `nightshift.skills`, found without running any of them."""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Final

from nightshift_kit.canonical import digest_json, sha256_hex
from nightshift_skills.errors import PluginRefused, SkillModified
from nightshift_skills.plugins.manifest import MANIFEST_NAME, Manifest, parse

GROUP: Final = "nightshift.skills"
_NAME = re.compile(r"[a-z][a-z0-9_]{1,40}")
_VALUE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_MOST_BYTES: Final = 32 << 20
_MOST_FILES: Final = 2_000
# Written by whoever installs, so that they differ between machines; none is code.
_LEFT_OUT = frozenset({"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"})


# Path, inode, size, times of change of content and of anything, for each file.
Signature = tuple[tuple[str, int, int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Package:
    """All of a distribution that counts, in memory: what is digested is what runs."""

    digest: str
    files: dict[str, bytes] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Found:
    """One installed entry point."""

    name: str
    module: str
    attribute: str
    distribution: str
    version: str
    entry: metadata.EntryPoint = field(repr=False)
    twice: bool = False

    @property
    def id(self) -> str:
        """Id of its skill. The prefix keeps it apart from ours, in grants too."""
        return f"plugin_{self.name}"

    def package(self) -> Package:
        """Reads the distribution as it is installed now.

        Raises:
            PluginRefused: it cannot be pinned: no list of files, links out of it, too big, code elsewhere.
        """
        if self.twice:
            raise PluginRefused(f"Two distributions bring a plug-in {self.name}; uninstall one.")
        if not _NAME.fullmatch(self.name) or not _VALUE.fullmatch(self.entry.value):
            raise PluginRefused("The entry point is not of the form name = package.module:function.")
        files = _read(self.entry)
        stem = self.module.replace(".", "/")
        if f"{stem}.py" not in files and f"{stem}/__init__.py" not in files:
            raise PluginRefused(
                f"{self.distribution} does not itself contain {self.module}: an editable installation "
                "cannot be pinned; install the built wheel."
            )
        return Package(
            digest_json(
                {
                    "distribution": self.distribution,
                    "version": self.version,
                    "files": {path: sha256_hex(content) for path, content in files.items()},
                }
            ),
            files,
        )

    def signature(self) -> Signature:
        """How the files look from outside; it changes with any of them.

        Raises:
            PluginRefused: one of them is gone, or the list.
        """
        seen = []
        for path in _counting(self.entry):
            place = Path(str(path.locate()))
            try:
                told = place.stat()
            except OSError as error:
                raise PluginRefused(
                    f"{path} of the distribution cannot be read: {error.strerror}."
                ) from error
            seen.append((str(place), told.st_ino, told.st_size, told.st_mtime_ns, told.st_ctime_ns))
        return tuple(seen)

    def manifest(self, package: Package) -> Manifest:
        """Its declaration. Raises PluginRefused."""
        content = package.files.get(f"{self.module.partition('.')[0]}/{MANIFEST_NAME}")
        if content is None:
            raise PluginRefused(f"{self.module.partition('.')[0]}/{MANIFEST_NAME} is missing.")
        return parse(content, self.name)

    def pinned(self, digest: str) -> Package:
        """The distribution, if it is the one that the operator pinned.

        Raises:
            SkillModified: it is another one by now.
            PluginRefused: see `package`.
        """
        package = self.package()
        if package.digest != digest:
            raise SkillModified(
                f"The distribution {self.distribution} {self.version} is not the one that is pinned for "
                f"{self.name}; its digest is {package.digest}.",
                metadata={"skill": f"skills/{self.id}", "digest": package.digest},
            )
        return package


def discover() -> list[Found]:
    """All installed plug-ins by name, whatever their state."""
    entries = [entry for entry in metadata.entry_points(group=GROUP) if entry.dist is not None]
    # The same distribution may lie twice on the path; its first place counts, as on import.
    first = {(entry.name, entry.dist.name if entry.dist else ""): entry for entry in reversed(entries)}
    counts = Counter(name for name, _ in first)
    found = []
    for (name, distribution), entry in sorted(first.items()):
        module, _, attribute = entry.value.partition(":")
        version = entry.dist.version if entry.dist else ""
        found.append(Found(name, module, attribute, distribution, version, entry, counts[name] > 1))
    return found


def _counting(entry: metadata.EntryPoint) -> list[metadata.PackagePath]:
    """The files that the digest covers, as the distribution lists them."""
    assert entry.dist is not None
    listed = entry.dist.files
    if not listed:
        raise PluginRefused("The distribution has no list of its files (RECORD).")
    if len(listed) > _MOST_FILES:
        raise PluginRefused(f"The distribution has more than {_MOST_FILES} files.")
    # Scripts that the installer put elsewhere ("../../bin") are not part of what runs here.
    counting = [
        path
        for path in listed
        if path.name not in _LEFT_OUT and "__pycache__" not in path.parts and path.parts[0] != ".."
    ]
    root = Path(os.path.realpath(str(entry.dist.locate_file(""))))
    for path in counting:
        # The list is the author's, too. It must not name files of ours, which would be read and handed in.
        if path.is_absolute() or ".." in path.parts or _real(path) != str(root.joinpath(*path.parts)):
            raise PluginRefused(f"The distribution's list of files leads out of it: {path}.")
    return counting


def _real(path: metadata.PackagePath) -> str:
    return os.path.realpath(str(path.locate()))


def _read(entry: metadata.EntryPoint) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    total = 0
    for path in _counting(entry):
        place = path.locate()
        try:
            if not place.is_file():  # type: ignore[attr-defined]
                raise PluginRefused(f"{path} of the distribution is no file.")
            content = path.read_binary()
        except OSError as error:
            raise PluginRefused(f"{path} of the distribution cannot be read: {error.strerror}.") from error
        total += len(content)
        if total > _MOST_BYTES:
            raise PluginRefused(f"The distribution is larger than {_MOST_BYTES >> 20} MiB.")
        files[PurePosixPath(path).as_posix()] = content
    return dict(sorted(files.items()))
