"""Which services there are, what each needs, and where each listens."""

from __future__ import annotations

import errno
import random
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from nightshift_kit.rpc.serve import PLAINTEXT_OFFSET
from nightshift_kit.settings import CONTROL_OFFSET, METRICS_OFFSET, PORT_OFFSETS, TOKEN_OFFSET


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """One service of the plane.

    Attributes:
        name: As in settings, credentials and ports.
        module: Run as `python -m module`; its `__main__` calls `nightshift_kit.rpc.serve.run`.
        needs: Services that must be healthy before it serves.
    """

    name: str
    module: str
    needs: tuple[str, ...] = ()


SERVICES: Final = (
    ServiceSpec("monitor", "nightshift_monitor"),
    ServiceSpec("experience", "nightshift_experience"),
    ServiceSpec("lab", "nightshift_lab", ("experience",)),
    ServiceSpec("trainer", "nightshift_trainer", ("experience", "lab")),
    ServiceSpec("skills", "nightshift_skills", ("monitor", "experience", "lab", "trainer")),
)

# Below the range from which the kernel takes ports for outgoing connections.
_FREE_BLOCKS: Final = range(10_000, 32_000, 50)


class TableInvalid(ValueError):
    """The services' needs contain a circle, or a name that is not in the table."""


class NoFreePorts(RuntimeError):
    """No block of ports is free."""


def levels(specs: Sequence[ServiceSpec]) -> list[list[ServiceSpec]]:
    """The services in order: each level needs only what stands in levels before it. Raises TableInvalid."""
    placed: set[str] = set()
    rest = list(specs)
    unknown = {need for spec in specs for need in spec.needs} - {spec.name for spec in specs}
    if unknown:
        raise TableInvalid(f"needed, but not in the table: {', '.join(sorted(unknown))}")
    result = []
    while rest:
        level = [spec for spec in rest if placed.issuperset(spec.needs)]
        if not level:
            raise TableInvalid(f"these need each other in a circle: {', '.join(spec.name for spec in rest)}")
        result.append(level)
        placed.update(spec.name for spec in level)
        rest = [spec for spec in rest if spec not in level]
    return result


def ports_of(base: int) -> list[int]:
    """All ports that a plane with this base listens on."""
    offsets = (0, CONTROL_OFFSET, METRICS_OFFSET, PLAINTEXT_OFFSET, TOKEN_OFFSET)
    return [base + service + offset for service in PORT_OFFSETS.values() for offset in offsets]


def find_free_base(bases: Iterable[int] | None = None) -> int:
    """A base whose whole block is free at this moment. Raises NoFreePorts."""
    candidates = list(bases if bases is not None else _FREE_BLOCKS)
    # Several planes (tests) look at the same time; at random they seldom meet.
    random.shuffle(candidates)
    for base in candidates:
        if all(_is_free(port) for port in ports_of(base)):
            return base
    raise NoFreePorts("no block of free ports was found")


def taken_ports(base: int) -> list[int]:
    """Ports of the block that something listens on."""
    return [port for port in ports_of(base) if not _is_free(port)]


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As gRPC does: ports in TIME_WAIT are usable.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            if error.errno in {errno.EADDRINUSE, errno.EACCES}:
                return False
            raise
    return True
