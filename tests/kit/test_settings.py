"""Settings: what wins, what is refused, what is kept silent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import Field, SecretStr, ValidationError

from nightshift_kit.errors import SettingsInvalid
from nightshift_kit.settings import (
    PlaneSettings,
    ServiceSettings,
    default_home,
    plane_settings,
    service_settings,
)


class LabSettings(ServiceSettings):
    """Settings of a service, in small."""

    quiet_s: float = 120.0
    names: list[str] = Field(default_factory=list)
    api_key: str = ""
    token: SecretStr = SecretStr("")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in list(os.environ):
        if name.startswith("NIGHTSHIFT_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NIGHTSHIFT_HOME", str(tmp_path))
    return tmp_path


def test_defaults(home: Path) -> None:
    plane = plane_settings()
    assert plane.home == home
    assert (plane.port_base, plane.insecure_loopback, plane.platform_root) == (7700, False, None)
    assert (plane.port("monitor"), plane.control_port("lab"), plane.metrics_port("trainer")) == (
        7701,
        7714,
        7725,
    )
    assert service_settings(LabSettings, "lab").database_url == f"sqlite:///{home}/lab/lab.db"


def test_where_state_lies_by_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NIGHTSHIFT_HOME")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert PlaneSettings().home == tmp_path / "state" / "nightshift"
    assert default_home({"XDG_STATE_HOME": "relative"}) == Path.home() / ".local/state/nightshift"


def test_environment_over_file_over_default(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "settings.toml").write_text(
        '[plane]\nport_base = 8800\ntime_zone = "Europe/Berlin"\n[lab]\nquiet_s = 5\nnames = ["a"]\n'
    )
    monkeypatch.setenv("NIGHTSHIFT_PORT_BASE", "9900")
    monkeypatch.setenv("NIGHTSHIFT_INSECURE_LOOPBACK", "true")
    monkeypatch.setenv("NIGHTSHIFT_LAB_QUIET_S", "7.5")
    plane = plane_settings()
    assert (plane.port_base, plane.time_zone, plane.insecure_loopback) == (9900, "Europe/Berlin", True)
    lab = service_settings(LabSettings, "lab", plane)
    assert (lab.quiet_s, lab.names) == (7.5, ["a"])
    assert plane_settings(port_base=5000).port_base == 5000


def test_a_home_given_in_code_finds_its_file(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "settings.toml").write_text("[plane]\nport_base = 6000\n")
    assert PlaneSettings(home=other).port_base == 6000


def test_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        plane_settings().port_base = 1


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("[lab]\nquite_s = 5\n", ["settings.toml", "[lab] quite_s", "unknown key"]),
        ("[lab]\nquiet_s = 'long'\n", ["settings.toml", "[lab] quiet_s"]),
        ("[labs]\nquiet_s = 5\n", ["settings.toml", "'labs'", "lab"]),
        ("quiet_s = 5\n", ["settings.toml", "'quiet_s'"]),
        ("[lab\n", ["settings.toml", "line 1"]),
    ],
)
def test_errors_name_file_and_key(home: Path, text: str, names: list[str]) -> None:
    (home / "settings.toml").write_text(text)
    with pytest.raises(SettingsInvalid) as refused:
        service_settings(LabSettings, "lab", PlaneSettings.model_construct(home=home))
    for name in names:
        assert name in str(refused.value)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("[plane]\nport_bas = 1\n", "port_bas"),
        ("[plane]\nport_base = 80\n", "port_base"),
        ("[plane]\ntime_zone = 'Mars/Olympus'\n", "time_zone"),
        ("[plane]\nhome = '/tmp'\n", "NIGHTSHIFT_HOME"),
        ("[plane]\nplatform_root = 'relative'\n", "platform_root"),
    ],
)
def test_the_planes_own_errors(home: Path, text: str, name: str) -> None:
    (home / "settings.toml").write_text(text)
    with pytest.raises(SettingsInvalid, match=name):
        plane_settings()


def test_variables_are_named_when_they_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTSHIFT_LAB_QUIET_S", "long")
    with pytest.raises(SettingsInvalid, match="variable NIGHTSHIFT_LAB_QUIET_S"):
        service_settings(LabSettings, "lab")
    monkeypatch.delenv("NIGHTSHIFT_LAB_QUIET_S")
    monkeypatch.setenv("NIGHTSHIFT_LAB_QUITE_S", "1")
    with pytest.raises(SettingsInvalid, match="NIGHTSHIFT_LAB_QUITE_S"):
        service_settings(LabSettings, "lab")
    monkeypatch.setenv("NIGHTSHIFT_HOME", "relative/path")
    with pytest.raises(SettingsInvalid, match="absolute"):
        plane_settings()


def test_variables_without_our_prefix_are_not_for_us(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUIET_S", "1")
    monkeypatch.setenv("NIGHTSHIFT_TRAINER_QUIET_S", "2")
    assert service_settings(LabSettings, "lab").quiet_s == 120.0


def test_secrets_are_not_shown(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTSHIFT_LAB_DATABASE_URL", "postgresql+psycopg://user:hunter2@host/lab")
    monkeypatch.setenv("NIGHTSHIFT_LAB_API_KEY", "hunter2")
    monkeypatch.setenv("NIGHTSHIFT_LAB_TOKEN", "hunter2")
    lab = service_settings(LabSettings, "lab")
    assert lab.database_url.count("hunter2") == 1
    assert "hunter2" not in str(lab) + repr(lab)
    assert "user:***@host/lab" in str(lab)
    monkeypatch.setenv("NIGHTSHIFT_LAB_QUIET_S", "hunter3")
    with pytest.raises(SettingsInvalid) as refused:
        service_settings(LabSettings, "lab")
    assert "hunter" not in str(refused.value)
