"""The platform's folder, as the lab holds it."""

from __future__ import annotations

from pathlib import Path

from nightshift_kit.safe_files import Root

from .catalog import Catalog, load
from .errors import PlatformMissing


def open_root(path: Path | None) -> Root:
    """Hold the platform's folder open.

    Raises:
        PlatformMissing: no folder is set, or it is not there.
        StorageUnsupported, StorageIo: as Root.
    """
    if path is None or not path.is_dir():
        raise PlatformMissing(
            "Set NIGHTSHIFT_PLATFORM_ROOT to the platform's folder and start the plane again."
        )
    return Root(path)


class NoProduction:
    """Stands in for production where the platform's folder is not there: whatever needs it is refused.

    The lab serves all the same, so that its proposals can be read and the plane comes up; it looks for the
    folder at its next start.

    Args:
        problem: What open_root said.
    """

    def __init__(self, problem: PlatformMissing) -> None:
        self._message = problem.message

    def __call__(self) -> Catalog:
        """Raises PlatformMissing."""
        raise PlatformMissing(self._message)


class Production:
    """Reads production's configs anew each time: they are few, and people edit them by hand."""

    def __init__(self, root: Root) -> None:
        self._root = root

    def __call__(self) -> Catalog:
        """The catalog now. Blocks. Raises PlatformMissing."""
        return load(self._root)
