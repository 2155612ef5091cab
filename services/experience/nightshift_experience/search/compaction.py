"""Compacts the search index in a process of its own: ``python -m … FOLDER FINGERPRINT DIMENSION``."""

from __future__ import annotations

import sys
from pathlib import Path

from .index import SearchIndex


def main(arguments: list[str]) -> int:
    """Merges files and brings the indices up to date; what a kill leaves behind is unreferenced files."""
    folder, fingerprint, dimension = arguments
    index = SearchIndex(Path(folder), model_fingerprint=fingerprint, dimension=int(dimension))
    index.open()
    index.compact()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
