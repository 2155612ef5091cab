"""One real plane, started by the command as its user types it, for all tests of the command line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.demo.stage import Stage
from tests.support.collector import Collector
from tests.support.plane import SHORT

RUNS = 60


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    """Where the plane's traces and metrics go."""
    with Collector() as made:
        yield made


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Stage]:
    """A workshop of 60 runs, the example platform, and `nightshift up --detach --insecure-loopback`."""
    folder: Path = tmp_path_factory.mktemp("end_to_end") / "stage"
    exporting = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
        "NIGHTSHIFT_TELEMETRY_SPANS_INTERVAL_S": "0.5",
        "NIGHTSHIFT_TELEMETRY_METRICS_INTERVAL_S": "1",
    }
    made = Stage(folder, dict(SHORT) | exporting)
    made.prepare(RUNS, seed=5)
    try:
        made.start_platform()
        made.nightshift("up", "--detach", "--port-base", "0", "--insecure-loopback")
        yield made
    finally:
        made.close()
