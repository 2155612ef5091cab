"""Compacts the search index in a process of its own: ``python -m … FOLDER FINGERPRINT DIMENSION [purge]``."""

from __future__ import annotations

import sys
from pathlib import Path

from .index import SearchIndex


def main(arguments: list[str]) -> int:
    """Merges files and brings the indices up to date; what a kill leaves behind is unreferenced files.

    With "purge" everything is written anew instead, so that no file holds what was deleted.
    """
    folder, fingerprint, dimension, *how = arguments
    index = SearchIndex(Path(folder), model_fingerprint=fingerprint, dimension=int(dimension))
    index.open()
    if how:
        index.purge()
    else:
        index.compact()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
