"""System calls that Python does not bring: openat2 and renameat2."""

from __future__ import annotations

import ctypes
import errno
import os
import platform

from nightshift_kit.errors import StorageUnsupported

# include/uapi/linux/openat2.h
_NO_MAGICLINKS = 0x02
_NO_SYMLINKS = 0x04
_BENEATH = 0x08
RESOLVE_INSIDE = _BENEATH | _NO_SYMLINKS | _NO_MAGICLINKS

# include/uapi/linux/fs.h
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2

# The same number on every architecture, as for all calls since 2019.
_SYS_OPENAT2 = 437
_SYS_RENAMEAT2 = {"x86_64": 316, "aarch64": 276, "riscv64": 276}

# The kernel answers EAGAIN when a rename elsewhere kept it from being sure; then asking again helps.
_TRIES = 64


class _How(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


_libc = ctypes.CDLL(None, use_errno=True)


def openat2(folder: int, relative: str, flags: int, mode: int = 0) -> int:
    """Open a path that stays beneath ``folder`` and passes no link.

    Args:
        folder: Handle of a directory.
        relative: Path.
        flags: As for open(2); O_CLOEXEC is added.
        mode: Permissions of a new file.

    Returns:
        The handle.

    Raises:
        OSError: EXDEV where the path leaves the folder, ELOOP where a link is in it, and as open(2).
    """
    how = _How(flags | os.O_CLOEXEC, mode, RESOLVE_INSIDE)
    name = os.fsencode(relative)
    for _ in range(_TRIES):
        handle = _libc.syscall(_SYS_OPENAT2, folder, name, ctypes.byref(how), ctypes.sizeof(how))
        if handle >= 0:
            return int(handle)
        code = ctypes.get_errno()
        if code not in (errno.EAGAIN, errno.EINTR):
            break
    raise OSError(code, os.strerror(code), relative)


def require_openat2(folder: int) -> None:
    """Check that the kernel has openat2.

    Raises:
        StorageUnsupported: It has not, or a sandbox forbids it.
    """
    try:
        os.close(openat2(folder, ".", os.O_PATH | os.O_DIRECTORY))
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EPERM):
            raise StorageUnsupported(
                "files cannot be opened safely here: openat2 needs Linux 5.6, and a sandbox that allows it"
            ) from error
        raise


def rename_with(folder: int, source: str, target: str, flag: int) -> bool:
    """Rename within a folder with RENAME_NOREPLACE or RENAME_EXCHANGE.

    Returns:
        False where this file system or machine does not have the flag; nothing happened then.

    Raises:
        OSError: As renameat2(2).
    """
    number = _SYS_RENAMEAT2.get(platform.machine())
    if number is None:
        return False
    if _libc.syscall(number, folder, os.fsencode(source), folder, os.fsencode(target), flag) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS):
        return False
    raise OSError(code, os.strerror(code), source, None, target)
