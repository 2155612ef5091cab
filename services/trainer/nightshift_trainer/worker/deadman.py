"""A dead man's switch kept by the kernel.

The supervisor renews it through heartbeats, each of which tells when the work's lease is over. If it cannot -
killed, stopped by SIGSTOP, swapped out - or is cut off from skills, the kernel kills this process with no
Python code having to run: some time after the last beat, and never later than the lease. The timer counts on
CLOCK_BOOTTIME, which goes on while the machine sleeps.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time

_CLOCK_BOOTTIME = 7
_TIMER_ABSTIME = 1
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
    """Kills this process with SIGKILL some time after the last renewal, or when its lease is over.

    Raises OSError where there is no timer.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timer = ctypes.c_void_p()
        event = _SigEvent(None, signal.SIGKILL, _SIGEV_SIGNAL, b"")
        if _libc.timer_create(_CLOCK_BOOTTIME, ctypes.byref(event), ctypes.byref(self._timer)) != 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
        self.renew(timeout_s)

    def renew(self, timeout_s: float, over_ns: int = 0) -> None:
        """Starts the time anew.

        Args:
            timeout_s: How long this renewal lasts at most.
            over_ns: When the lease is over, on CLOCK_BOOTTIME; 0 where there is none. What is past kills now.
        """
        at_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + round(timeout_s * 1e9)
        if over_ns:
            at_ns = min(at_ns, over_ns)
        spec = _TimerSpec(_TimeSpec(0, 0), _TimeSpec(*divmod(at_ns, 1_000_000_000)))
        if _libc.timer_settime(self._timer, _TIMER_ABSTIME, ctypes.byref(spec), None) != 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))


def die_with_parent(expected_parent: int) -> None:
    """Has the kernel kill this process when its parent dies; exits at once if that is already so."""
    if _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    if os.getppid() != expected_parent:
        os._exit(1)
