"""One real plane, started by the command as its user types it, for all tests of the command line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.demo.stage import Stage
from tests.support.plane import SHORT

RUNS = 60


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A workshop of 60 runs, the example platform, and `nightshift up --detach --insecure-loopback`."""
    folder: Path = tmp_path_factory.mktemp("end_to_end") / "stage"
    made = Stage(folder, dict(SHORT))
    made.prepare(RUNS, seed=5)
    try:
        made.start_platform()
        made.nightshift("up", "--detach", "--port-base", "0", "--insecure-loopback")
        yield made
    finally:
        made.close()
