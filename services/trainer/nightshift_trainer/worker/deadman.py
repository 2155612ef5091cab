"""A dead man's switch kept by the kernel.

The supervisor renews it through heartbeats. If it cannot - killed, stopped by SIGSTOP, swapped out, cut off
from its lease - the kernel kills this process with no Python code having to run. The timer counts on
CLOCK_BOOTTIME, which goes on while the machine sleeps.
"""

from __future__ import annotations

import ctypes
import os
import signal

_CLOCK_BOOTTIME = 7
_SIGEV_SIGNAL = 0
_PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None, use_errno=True)


class _SigEvent(ctypes.Structure):
    _fields_ = (
        ("sigev_value", ctypes.c_void_p),
        ("sigev_signo", ctypes.c_int),
        ("sigev_notify", ctypes.c_int),
        # The kernel's struct sigevent is 64 bytes on every Linux.
        ("padding", ctypes.c_char * 48),
    )


class _TimeSpec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


class _TimerSpec(ctypes.Structure):
    _fields_ = (("it_interval", _TimeSpec), ("it_value", _TimeSpec))


class DeadMansSwitch:
    """Kills this process with SIGKILL `timeout_s` after the last renewal.

    Raises OSError where there is no timer.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._timer = ctypes.c_void_p()
        event = _SigEvent(None, signal.SIGKILL, _SIGEV_SIGNAL, b"")
        if _libc.timer_create(_CLOCK_BOOTTIME, ctypes.byref(event), ctypes.byref(self._timer)) != 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
        self.renew()

    def renew(self) -> None:
        """Starts the time anew."""
        whole = int(self._timeout_s)
        spec = _TimerSpec(_TimeSpec(0, 0), _TimeSpec(whole, int((self._timeout_s - whole) * 1e9)))
        if _libc.timer_settime(self._timer, 0, ctypes.byref(spec), None) != 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))


def die_with_parent(expected_parent: int) -> None:
    """Has the kernel kill this process when its parent dies; exits at once if that is already so."""
    if _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    if os.getppid() != expected_parent:
        os._exit(1)
