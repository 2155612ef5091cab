"""What a plug-in's interpreter needs of this machine: itself, its library, shared libraries."""

from __future__ import annotations

import os
import struct
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

# Folders of shared libraries alone, where distributions keep them.
_LIBRARIES = ("/lib64", "/usr/lib64", "/lib/{machine}-linux-gnu", "/usr/lib/{machine}-linux-gnu")


@dataclass(frozen=True, slots=True)
class Interpreter:
    """Paths, all real ones.

    Attributes:
        python: The interpreter.
        binds: Files and folders that the sandbox sees, read-only, at their own places.
        links: Symbolic links that lead to them.
        hidden: Folders inside `binds` that it must not see (other people's packages).
    """

    python: str
    binds: tuple[str, ...]
    links: tuple[tuple[str, str], ...]
    hidden: tuple[str, ...]


def interpreter() -> Interpreter:
    """Of this very process."""
    python = Path(os.path.realpath(sys.executable))
    library = Path(os.path.realpath(sysconfig.get_path("stdlib")))
    binds = {str(python), str(library)}
    links: dict[str, str] = {}
    machine = os.uname().machine
    for pattern in _LIBRARIES:
        folder = Path(pattern.format(machine=machine))
        if not folder.is_dir():
            continue
        binds.add(os.path.realpath(folder))
        # "/lib64" is a link to "usr/lib64" on most systems: programs name it by the link.
        for part in (*reversed(folder.parents), folder):
            if part.is_symlink():
                links[str(part)] = str(part.readlink())
    loader = _loader(python)
    if loader is not None:
        binds.add(os.path.realpath(loader))
        named = f"{os.path.realpath(loader.parent)}/{loader.name}"
        if named != os.path.realpath(loader):
            links[named] = os.path.realpath(loader)
    name = sysconfig.get_config_var("LDLIBRARY") or ""
    for shared in (library.parent / name, *library.parent.glob("libpython3*.so*")):
        if ".so" in shared.name and shared.is_file():
            binds.add(os.path.realpath(shared))
            if shared.is_symlink():
                links[str(shared)] = str(shared.readlink())
    if Path("/etc/ld.so.cache").is_file():
        binds.add("/etc/ld.so.cache")
    # A folder that holds others comes first, and brings them along.
    kept: list[str] = []
    for path in sorted(binds):
        if not any(path.startswith(above + "/") for above in kept):
            kept.append(path)
    hidden = [
        str(library / inner) for inner in ("site-packages", "dist-packages") if (library / inner).is_dir()
    ]
    inside = [link for link in links.items() if not any(link[0].startswith(path + "/") for path in kept)]
    return Interpreter(str(python), tuple(kept), tuple(inside), tuple(hidden))


def _loader(python: Path) -> Path | None:
    """PT_INTERP of an ELF program of 64 bits; None where there is none."""
    with python.open("rb") as file:
        head = file.read(64)
        if head[:5] != b"\x7fELF\x02":
            return None
        (offset,) = struct.unpack_from("<Q", head, 32)
        size, count = struct.unpack_from("<HH", head, 54)
        for index in range(count):
            file.seek(offset + index * size)
            kind, _, place, _, _, length = struct.unpack("<IIQQQQ", file.read(40))
            if kind == 3:
                file.seek(place)
                return Path(file.read(length).rstrip(b"\0").decode())
    return None
