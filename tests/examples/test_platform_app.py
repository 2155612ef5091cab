"""The example platform as a process: with a plane, without one, and as the importer will read its records."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.client.plane import Plane

APP = Path(__file__).resolve().parents[2] / "examples" / "platform" / "app.py"


@dataclass
class Platform:
    port: int
    exports: Path
    process: subprocess.Popen[bytes]

    def ask(self, path: str, body: object = None, **headers: str) -> tuple[int, str, bytes]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            data=data,
            headers={"content-type": "application/json", **headers},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.headers.get_content_type(), answer.read()

    def generate(self, prompt: str, **more: Any) -> dict[str, Any]:
        _, _, body = self.ask("/api/generate", {"prompt": prompt, **more})
        answer: dict[str, Any] = json.loads(body)
        return answer


@pytest.fixture(scope="module")
def template_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    plane = Plane(tmp_path_factory.mktemp("home") / "home")
    plane.close()
    return plane.home


@pytest.fixture
def home(template_home: Path, tmp_path: Path) -> Path:
    path = tmp_path / "home"
    shutil.copytree(template_home, path)
    return path


@pytest.fixture
def platform(home: Path, tmp_path: Path) -> Iterator[Platform]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    exports = tmp_path / "exports"
    process = subprocess.Popen(
        [sys.executable, APP, "--port", str(port), "--exports", exports],
        env={**os.environ, "NIGHTSHIFT_HOME": str(home)},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    running = Platform(port, exports, process)
    deadline = time.monotonic() + 30
    while True:
        try:
            running.ask("/health", **{"X-Nightshift-Probe": "1"})
            break
        except OSError:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    yield running
    process.send_signal(signal.SIGTERM)
    process.wait(20)


def eventually(condition: Any) -> None:
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_four_moments_reach_the_plane(home: Path, platform: Platform) -> None:
    plane = Plane(home)
    plane.start()
    try:
        first = platform.generate(
            "eine Stadt aus Papier", config="kartenhaus", seed=7, device_id="dev_0123456789ab"
        )
        eventually(lambda: plane.experience.runs)
        run = plane.experience.runs[f"projects/default/runs/{first['run_id']}"]
        assert (run.prompt, run.interception_config, run.seed) == ("eine Stadt aus Papier", "kartenhaus", 7)
        assert run.end_time.ToNanoseconds() >= run.start_time.ToNanoseconds()
        eventually(lambda: len([r for r in plane.control.reports if r.kind.startswith("generation")]) == 2)
        kinds = [(r.kind, r.run_id) for r in plane.control.reports if r.kind.startswith("generation")]
        assert kinds == [("generation_started", first["run_id"]), ("generation_finished", first["run_id"])]
        assert any(report.kind == "request" for report in plane.control.reports)
        platform.ask(f"/api/favorites/{first['run_id']}", {})
        eventually(lambda: plane.experience.feedback)
    finally:
        plane.close()


def test_probes_of_the_plane_are_no_activity(home: Path, platform: Platform) -> None:
    plane = Plane(home)
    plane.start()
    try:
        for _ in range(5):
            status, kind, body = platform.ask("/api/settings/safety-level", **{"X-Nightshift-Probe": "1"})
            assert (status, kind) == (200, "application/json")
            assert json.loads(body)["safety_level"]
        time.sleep(1.5)
        assert plane.control.reports == []
        platform.ask("/api/settings/safety-level")
        eventually(lambda: plane.control.reports)
    finally:
        plane.close()


def test_health_is_the_catch_all_page(platform: Platform) -> None:
    for path in ("/health", "/", "/some/where"):
        status, kind, body = platform.ask(path, **{"X-Nightshift-Probe": "1"})
        assert (status, kind) == (200, "text/html")
        assert body.startswith(b"<!doctype html>")


def test_without_a_plane_it_works_and_what_happened_arrives_later(home: Path, platform: Platform) -> None:
    began = time.monotonic()
    runs = [platform.generate(f"Bild {number}")["run_id"] for number in range(20)]
    print(f"20 generations without a plane: {(time.monotonic() - began) * 1e3:.0f} ms")
    plane = Plane(home)
    plane.start()
    try:
        eventually(lambda: len(plane.experience.runs) == 20)
        assert {name.rpartition("/")[2] for name in plane.experience.runs} == set(runs)
    finally:
        plane.close()


def test_records_are_those_that_the_platform_keeps(platform: Platform) -> None:
    answer = platform.generate("ein Boot", device_id="../../escape")
    picture = Path(answer["picture"])
    assert ElementTree.parse(picture).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    folder = picture.parent.parent
    assert folder.parent.parent.parent == platform.exports / "json"
    record = json.loads((folder / "metadata.json").read_text())
    assert record["run_id"] == answer["run_id"] == folder.name
    assert [entity["type"] for entity in record["entities"]] == ["input", "output_image"]
    assert (folder / "final" / "00_input.txt").read_text() == "ein Boot"


def test_it_stays_small_enough_to_be_read() -> None:
    lines = [
        line
        for line in APP.read_text().splitlines()
        if line.strip() and not line.strip().startswith(("#", '"""'))
    ]
    print(f"{len(lines)} lines of code")
    assert len(lines) <= 75
