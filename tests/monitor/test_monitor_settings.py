"""Settings: what must never be polled is refused, and which probes come by themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from nightshift_kit.settings import PlaneSettings, service_settings
from nightshift_monitor.config import MonitorSettings
from nightshift_monitor.declarations import ProbeDeclaration
from nightshift_monitor.errors import ProbeNameInvalid
from nightshift_monitor.forbidden import forbidden_path
from nightshift_monitor.resources import ProbeName

FORBIDDEN = [
    "http://h:17802/api/active-users",
    "http://h:17802/api/queue-status",
    "http://h/api/queue-status/",
    "http://h//api///queue-status",
    "http://h/API/Active-Users?x=1",
    "http://h/api/%61ctive-users",
    "http://h/api/%2561ctive-users",
    "http://h/x/../api/active-users#f",
    "http://h/prefix/api/active-users",
    "http://h/api/active-users/details",
    "http://h/api/active-users;v=1",
    "http://h/api\\active-users",
]


@pytest.mark.parametrize("url", FORBIDDEN)
def test_urls_that_would_register_us_as_a_user_are_refused(url: str) -> None:
    assert forbidden_path(url)
    with pytest.raises(ValidationError, match="never be polled"):
        ProbeDeclaration(name="x", kind="http", target=url)
    for key in ("platform_url", "gpu_service_url", "comfyui_url"):
        with pytest.raises(ValidationError, match="never be polled"):
            MonitorSettings(**{key: url})  # type: ignore[arg-type]


def test_the_check_path_of_the_platform_is_held_to_the_same() -> None:
    with pytest.raises(ValidationError, match="never be polled"):
        MonitorSettings(platform_url="http://h:1", platform_check_path="/api/queue-status")


@pytest.mark.parametrize(
    "url",
    [
        "http://h/api/settings/safety-level",
        "http://h/queue",
        "http://h/api/active",
        "http://h/api/health/vram",
    ],
)
def test_other_urls_pass(url: str) -> None:
    assert forbidden_path(url) is None


@given(st.text(max_size=40))
def test_any_text_behind_a_host_is_judged_without_error(path: str) -> None:
    forbidden_path("http://h/" + path)


def test_the_platform_url_makes_the_platform_probe() -> None:
    settings = MonitorSettings(platform_url="http://h:17802/", plane_probes=False)
    probes = {probe.name: probe for probe in settings.all_probes("/srv")}
    assert set(probes) == {"disk-home", "gpu", "platform"}
    assert probes["platform"].target == "http://h:17802/api/settings/safety-level"
    assert probes["platform"].platform
    assert probes["platform"].expect_json


def test_a_declared_platform_probe_replaces_it() -> None:
    declared = ProbeDeclaration(name="stage", kind="tcp", target="h:1", platform=True)
    settings = MonitorSettings(platform_url="http://h:17802", probes=(declared,))
    assert [probe.name for probe in settings.all_probes("/srv") if probe.platform] == ["stage"]


def test_without_any_platform_probe_none_is_invented() -> None:
    assert not [probe for probe in MonitorSettings().all_probes("/srv") if probe.platform]


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "http", "target": "ftp://h"},
        {"kind": "tcp", "target": "h"},
        {"kind": "tcp", "target": "h:0"},
        {"kind": "tcp", "target": "h:70000"},
        {"kind": "tcp", "target": "h:²"},
        {"kind": "disk", "target": "relative"},
        {"kind": "gpu", "target": "0"},
        {"kind": "smoke", "target": ""},
        {"kind": "gpu", "name": "Bad Name"},
        {"kind": "gpu", "interval_s": 0},
        {"kind": "gpu", "colour": "red"},
        {"kind": "disk", "target": "/", "degraded_free_ratio": 0.01, "down_free_ratio": 0.5},
    ],
)
def test_declarations_that_make_no_sense_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ProbeDeclaration(**{"name": "x", **fields})  # type: ignore[arg-type]


def test_two_probes_of_one_name_are_refused() -> None:
    with pytest.raises(ValidationError, match="twice"):
        MonitorSettings(probes=(ProbeDeclaration(name="gpu", kind="disk", target="/"),))


def test_names_are_read_in_one_shape_only() -> None:
    assert ProbeName.parse("probes/gpu-0") == ProbeName("gpu-0")
    for name in ("", "probes/", "probes/A", "probes/a/b", "probe/a", "probes/a\n", "probes/" + "a" * 64):
        with pytest.raises(ProbeNameInvalid):
            ProbeName.parse(name)


@given(st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True))
def test_names_survive_a_round_trip(probe: str) -> None:
    assert ProbeName.parse(ProbeName(probe).name).probe == probe


def test_variables_without_our_prefix_are_not_for_us(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QUIET_S", "3")
    monkeypatch.setenv("NIGHTSHIFT_MONITOR_HISTORY_DAYS", "5")
    probes = '[{"name": "disk", "kind": "disk", "target": "/"}]'
    monkeypatch.setenv("NIGHTSHIFT_MONITOR_PROBES", probes)
    settings = service_settings(MonitorSettings, "monitor", PlaneSettings(home=tmp_path))
    assert (settings.quiet_s, settings.history_days) == (120, 5)
    assert [probe.name for probe in settings.probes] == ["disk"]
