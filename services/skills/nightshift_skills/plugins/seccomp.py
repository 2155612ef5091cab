"""The system call filter of a plug-in, as classic BPF (linux/seccomp.h, linux/bpf_common.h).

What a computing Python needs is allowed; what reaches out of the sandbox is handed to skills as a
notification (SECCOMP_RET_USER_NOTIF), so that each attempt is known from the kernel, not from the plug-in;
the rest is ENOSYS. Calls that name a path are notified, too, and go on once skills has looked at it. That
look is for the audit alone (another thread may change the path after it): what holds is the sandbox's root.
"""

from __future__ import annotations

import fcntl
import struct
from dataclasses import dataclass
from typing import Final

from nightshift_skills.plugins.syscalls import SystemCalls

# Descriptor of the broker's socket in the child.
BROKER_FD: Final = 3

_LD_W_ABS, _JEQ, _JGE, _JSET, _RET = 0x20, 0x15, 0x35, 0x45, 0x06
_KILL, _ALLOW, _NOTIFY, _ERRNO = 0x80000000, 0x7FFF0000, 0x7FC00000, 0x00050000
_EPERM, _ENOSYS = 1, 38
_NR, _ARCH, _ARGS = 0, 4, 16
_X32_BIT = 0x40000000

_CLONE_THREAD = 0x00010000
# Every CLONE_NEW* of sched.h, and a signal on exit, which threads do not ask for.
_CLONE_OTHER = 0x7E020000 | 0xFF
# TCGETS, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX.
_IOCTLS = (0x5401, 0x541B, 0x5421, 0x5450, 0x5451)
# PR_SET_NAME, PR_GET_NAME, PR_SET_VMA.
_PRCTLS = (15, 16, 0x53564D41)

_NOTIF = struct.Struct("=QIIiIQ6Q")
# _IOWR('!', 0, struct seccomp_notif), _IOWR('!', 1, struct seccomp_notif_resp), _IOW('!', 2, __u64).
_IOCTL_RECEIVE, _IOCTL_SEND, _IOCTL_ID_VALID = 0xC0502100, 0xC0182101, 0x40082102
_FLAG_CONTINUE = 1
_LONGEST_PATH = 4096

_Instruction = tuple[int, int, int, int]


def _load(offset: int) -> _Instruction:
    return (_LD_W_ABS, 0, 0, offset)


def _argument(index: int) -> _Instruction:
    return _load(_ARGS + 8 * index)


def _return(action: int) -> _Instruction:
    return (_RET, 0, 0, action)


def _one_of(values: tuple[int, ...], otherwise: int) -> list[_Instruction]:
    """Allowed where the loaded word is one of the values."""
    block: list[_Instruction] = []
    for value in values:
        block += [(_JEQ, 0, 1, value), _return(_ALLOW)]
    return [*block, _return(otherwise)]


def _blocks() -> dict[str, list[_Instruction]]:
    return {
        "clone": [
            _argument(0),
            (_JSET, 0, 1, _CLONE_OTHER),
            _return(_NOTIFY),
            (_JSET, 0, 1, _CLONE_THREAD),
            _return(_ALLOW),
            _return(_NOTIFY),
        ],
        # Its flags lie in memory, out of a filter's sight; glibc falls back to clone.
        "clone3": [_return(_ERRNO | _ENOSYS)],
        "ioctl": [_argument(1), *_one_of(_IOCTLS, _ERRNO | _EPERM)],
        "prctl": [_argument(0), *_one_of(_PRCTLS, _NOTIFY)],
        # Reading limits of its own (no new limits are given) is fine. Both halves of the pointer count.
        "prlimit64": [
            _argument(2),
            (_JEQ, 1, 0, 0),
            _return(_NOTIFY),
            _load(_ARGS + 20),
            (_JEQ, 1, 0, 0),
            _return(_NOTIFY),
            _argument(0),
            *_one_of((0, 1), _NOTIFY),
        ],
        # abort() and raise() signal the process itself, which is the first of its namespace.
        "tgkill": [_argument(0), *_one_of((1,), _NOTIFY)],
        "sendmsg": [_argument(0), *_one_of((BROKER_FD,), _NOTIFY)],
    }


def program(calls: SystemCalls) -> bytes:
    """The filter as an array of struct sock_filter."""
    code: list[_Instruction] = [_load(_ARCH), (_JEQ, 1, 0, calls.audit_arch), _return(_KILL), _load(_NR)]
    code += [(_JGE, 0, 1, _X32_BIT), _return(_KILL)]
    for number in calls.allowed.values():
        code += [(_JEQ, 0, 1, number), _return(_ALLOW)]
    for name, block in _blocks().items():
        code += [(_JEQ, 0, len(block), calls.conditional[name]), *block]
    for number in (*calls.forbidden.values(), *calls.watched.values()):
        code += [(_JEQ, 0, 1, number), _return(_NOTIFY)]
    code.append(_return(_ERRNO | _ENOSYS))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


@dataclass(frozen=True, slots=True)
class Attempt:
    """A call that the kernel holds. `paths` are those that it names, as its process wrote them."""

    id: int
    number: int
    name: str
    paths: tuple[str, ...] = ()


def receive(listener: int, calls: SystemCalls) -> Attempt:
    """Takes one waiting notification; the call stays held until it is let go on or its process is killed.

    Raises:
        OSError: the caller is gone already.
    """
    buffer = bytearray(_NOTIF.size)
    fcntl.ioctl(listener, _IOCTL_RECEIVE, buffer)
    notice, pid, _, number, _, _, *arguments = _NOTIF.unpack(buffer)
    name = calls.names.get(number, f"syscall {number}")
    paths: tuple[str, ...] = ()
    if name in calls.watched:
        paths = tuple(_text(pid, arguments[position]) for position in calls.paths[name])
        # Whether it was still that process whose memory was read.
        fcntl.ioctl(listener, _IOCTL_ID_VALID, struct.pack("=Q", notice))
    return Attempt(notice, number, name, paths)


def go_on(listener: int, attempt: Attempt) -> None:
    """Lets the kernel carry a call out, as if nobody had asked. Raises OSError: its process is gone."""
    fcntl.ioctl(listener, _IOCTL_SEND, struct.pack("=QqiI", attempt.id, 0, 0, _FLAG_CONTINUE))


def _text(pid: int, address: int) -> str:
    """Text at an address of another process; "" where it cannot be read."""
    page = 4096
    try:
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:  # noqa: PTH123 - an address space
            memory.seek(address)
            found = memory.read(page - address % page)
            if b"\0" not in found:
                found += memory.read(_LONGEST_PATH)
    except (OSError, ValueError, OverflowError):
        return ""
    return found.partition(b"\0")[0][:_LONGEST_PATH].decode(errors="replace")
