"""What stands between a plug-in and the machine: what the kernel gives, what the operator waives."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nightshift_skills.errors import PluginRefused

# What an operator may go without by name. The others are the sandbox itself: there is none without them.
WAIVABLE: Final = frozenset({"cgroup", "ipc", "landlock", "net", "seccomp"})
LAYERS: Final = ("user", "mount", "pid", "net", "ipc", "no_new_privs", "seccomp", "landlock", "cgroup")
CGROUP_ROOTS: Final = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer. `problem` is "" where it is there; `waived` where the operator goes without it."""

    name: str
    problem: str
    waived: bool


@dataclass(frozen=True, slots=True)
class Layers:
    """All of them, as tried on this machine."""

    all: tuple[Layer, ...]

    @property
    def in_force(self) -> tuple[str, ...]:
        """Layers that are put up; one that is there is never left out."""
        return tuple(layer.name for layer in self.all if not layer.problem)

    def check(self) -> None:
        """Raises PluginRefused naming each layer that is missing and not waived."""
        missing = [layer for layer in self.all if layer.problem and not layer.waived]
        if missing:
            words = "; ".join(f"{layer.name} ({layer.problem})" for layer in missing)
            raise PluginRefused(
                f"This machine lacks what keeps a plug-in in: {words}. [skills] plugins_without accepts by "
                f"name what may be missing ({', '.join(sorted(WAIVABLE))}).",
                metadata={"missing": ",".join(layer.name for layer in missing)},
            )


def judged(problems: Mapping[str, str], waived: Iterable[str]) -> Layers:
    """From what the probe and the look at cgroups said."""
    accepted = frozenset(waived)
    return Layers(
        tuple(Layer(name, problems.get(name, "it was not tried"), name in accepted) for name in LAYERS)
    )


@dataclass(frozen=True, slots=True)
class Cgroups:
    """A delegated folder of cgroup v2 under which each plug-in gets a group of its own."""

    parent: Path

    def problem(self) -> str:
        """Why it cannot be used; "" if it can."""
        try:
            enabled = (self.parent / "cgroup.subtree_control").read_text().split()
        except OSError as error:
            return f"no cgroup v2 folder at {self.parent}: {error.strerror}"
        lacking = [name for name in ("memory", "pids") if name not in enabled]
        if lacking:
            return f"{self.parent} does not hand on {' and '.join(lacking)}"
        if not os.access(self.parent, os.W_OK):
            return f"{self.parent} is not delegated to us"
        return ""

    def make(self, name: str, *, memory_bytes: int, processes: int) -> Path:
        """A group with its limits. Raises OSError."""
        group = self.parent / name
        group.mkdir()
        try:
            (group / "memory.max").write_text(str(memory_bytes))
            (group / "pids.max").write_text(str(processes))
        except OSError:
            group.rmdir()
            raise
        swap = group / "memory.swap.max"
        if swap.exists():
            swap.write_text("0")
        return group


def kill_cgroup(group: Path) -> None:
    """Kills all of a group at once; quiet where it is gone, or older than cgroup.kill."""
    try:
        (group / "cgroup.kill").write_text("1")
    except OSError:
        return


def own_cgroup() -> Path:
    """The cgroup v2 folder of this process, or the root of the hierarchy where it cannot be told."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    inner = next((line[3:] for line in lines if line.startswith("0::")), "/")
    for root in CGROUP_ROOTS:
        if (root / "cgroup.controllers").exists():
            return root / inner.lstrip("/")
    return CGROUP_ROOTS[0]
