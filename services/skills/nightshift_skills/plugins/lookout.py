"""What the kernel tells of a child: forbidden calls, and the paths that it names."""

from __future__ import annotations

import asyncio
import posixpath
import re
import select
from collections.abc import Callable, Sequence
from contextlib import suppress

from nightshift_skills.errors import PluginViolation
from nightshift_skills.plugins import seccomp
from nightshift_skills.plugins.seccomp import Attempt
from nightshift_skills.plugins.syscalls import SystemCalls

# Far more than any plug-in of 2,000 files needs; few enough to cost us no second.
MOST_CALLS = 5_000
_OTHERS = re.compile(r"/proc/[0-9]+(/|$)")


class Lookout:
    """Watches the listener of one child, on the loop of whoever enters it; kills at the first violation."""

    def __init__(
        self,
        listener: int | None,
        calls: SystemCalls | None,
        *,
        guarded: Sequence[str],
        readable: Sequence[str],
        kill: Callable[[], None],
    ) -> None:
        """Args: folders that no plug-in has to name, unless they are among those that it may read."""
        self._listener = listener
        self._calls = calls
        self._guarded = tuple(guarded)
        self._readable = tuple(readable)
        self._kill = kill
        self._count = 0
        self.violation: PluginViolation | None = None

    def __enter__(self) -> Lookout:
        if self._listener is not None:
            asyncio.get_running_loop().add_reader(self._listener, self._noticed)
        return self

    def __exit__(self, *error: object) -> None:
        self._leave()

    def _leave(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)

    def _noticed(self) -> None:
        listener, calls = self._listener, self._calls
        assert listener is not None
        assert calls is not None
        try:
            attempt = seccomp.receive(listener, calls)
        except OSError:
            # The call was given up; or the child is gone, and the listener will never say more.
            poll = select.poll()
            poll.register(listener, select.POLLIN)
            if any(told & select.POLLHUP for _, told in poll.poll(0)):
                self._leave()
            return
        self._count += 1
        self.violation = self._judge(attempt, calls)
        if self.violation is not None:
            # The call stays held until its process is dead.
            self._leave()
            self._kill()
            return
        with suppress(OSError):
            seccomp.go_on(listener, attempt)

    def _judge(self, attempt: Attempt, calls: SystemCalls) -> PluginViolation | None:
        if attempt.name not in calls.watched:
            return PluginViolation(
                f"The plug-in called {attempt.name}; it was killed.",
                metadata={"violation": "syscall", "what": attempt.name},
            )
        for path in attempt.paths:
            # Folders that are held open count as the root: what would lead out of them is named in full.
            for start in ("/", "/scratch"):
                # Two slashes at the beginning stay two in normpath.
                place = "/" + posixpath.normpath(posixpath.join(start, path)).lstrip("/")
                if self._minds(place):
                    shown = "".join(sign if sign.isprintable() else "?" for sign in place)[:200]
                    return PluginViolation(
                        f"The plug-in tried {attempt.name} on {shown}; it was killed.",
                        metadata={"violation": "path", "what": attempt.name, "detail": shown},
                    )
        if self._count > MOST_CALLS:
            return PluginViolation(
                f"The plug-in named more than {MOST_CALLS} paths.", metadata={"violation": "flood"}
            )
        return None

    def _minds(self, path: str) -> bool:
        if any(_within(path, folder) for folder in self._readable):
            return False
        return bool(_OTHERS.match(path)) or any(_within(path, folder) for folder in self._guarded)


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder.rstrip('/')}/")
