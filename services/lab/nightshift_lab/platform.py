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
            "Set NIGHTSHIFT_PLATFORM_ROOT to the platform's folder; the lab cannot do without."
        )
    return Root(path)


class Production:
    """Reads production's configs anew each time: they are few, and people edit them by hand."""

    def __init__(self, root: Root) -> None:
        self._root = root

    def __call__(self) -> Catalog:
        """The catalog now. Blocks. Raises PlatformMissing."""
        return load(self._root)
