"""Settings: environment over ``settings.toml`` over defaults, read once, frozen, unknown keys refused."""

from __future__ import annotations

import os
import tomllib
import zoneinfo
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import ValidationError, field_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from nightshift_kit.errors import SettingsInvalid

# Port of each service, counted from the base; control ports come 10 later, metrics 20, tokens 40 later.
PORT_OFFSETS: Mapping[str, int] = {"monitor": 1, "experience": 2, "skills": 3, "lab": 4, "trainer": 5}
CONTROL_OFFSET = 10
METRICS_OFFSET = 20
TOKEN_OFFSET = 40

_SECTIONS = ("plane", "telemetry", *PORT_OFFSETS, "console", "client")
_HIDDEN = "**********"


def default_home(environ: Mapping[str, str]) -> Path:
    """Where state lies unless NIGHTSHIFT_HOME says otherwise: the XDG state folder."""
    state = environ.get("XDG_STATE_HOME", "")
    # The XDG specification says that a relative path is to be ignored.
    base = Path(state) if state.startswith("/") else Path.home() / ".local" / "state"
    return base / "nightshift"


class _Settings(BaseSettings):
    """What plane and services share: frozen, strict about keys, silent about secrets."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    def __repr_args__(self) -> Any:
        for name, value in super().__repr_args__():
            yield name, _without_secret(name or "", value)

    def __str__(self) -> str:
        return repr(self)


class SectionSettings(_Settings):
    """Base of what one section of settings.toml holds; loaded by `section_settings`."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what `section_settings` merged: variables without our prefix (SEED, DEVICE) are not for us."""
        return (init_settings,)


class ServiceSettings(SectionSettings):
    """Base of a service's settings.

    Attributes:
        database_url: SQLAlchemy URL; "" means the SQLite file under NIGHTSHIFT_HOME (filled in on loading).
    """

    database_url: str = ""


class PlaneSettings(_Settings):
    """What all processes of one plane agree on. Environment: NIGHTSHIFT_<NAME>; file: section [plane].

    Attributes:
        home: Folder of all state (NIGHTSHIFT_HOME).
        platform_root: The platform's folder, where there is one on this machine.
        port_base: Ports are counted from here.
        insecure_loopback: Also serve without TLS on loopback, for viewers.
        time_zone: IANA name of the platform's time zone.
    """

    model_config = SettingsConfigDict(env_prefix="NIGHTSHIFT_")

    home: Path = Path()
    platform_root: Path | None = None
    port_base: int = 7700
    insecure_loopback: bool = False
    time_zone: str = "UTC"
    log_level: str = "INFO"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments win over the environment, the environment over [plane] in settings.toml."""
        return init_settings, env_settings, _PlaneFile(settings_cls)

    @field_validator("home")
    @classmethod
    def _absolute_home(cls, home: Path) -> Path:
        home = home.expanduser()
        if not home.is_absolute():
            raise ValueError("must be an absolute path")
        return home

    @field_validator("platform_root")
    @classmethod
    def _absolute_root(cls, root: Path | None) -> Path | None:
        if root is None:
            return None
        root = root.expanduser()
        if not root.is_absolute():
            raise ValueError("must be an absolute path")
        return root

    @field_validator("port_base")
    @classmethod
    def _port_range(cls, port: int) -> int:
        highest = 65535 - TOKEN_OFFSET - max(PORT_OFFSETS.values())
        if not 1024 <= port <= highest:
            raise ValueError(f"must be from 1024 to {highest}")
        return port

    @field_validator("time_zone")
    @classmethod
    def _known_zone(cls, name: str) -> str:
        try:
            zoneinfo.ZoneInfo(name)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ValueError(f"{name!r} is no IANA time zone") from error
        return name

    @property
    def settings_file(self) -> Path:
        """The optional ``settings.toml``."""
        return self.home / "settings.toml"

    def service_home(self, service: str) -> Path:
        """Folder of one service's state."""
        return self.home / service

    def port(self, service: str) -> int:
        """Main port of a service."""
        return self.port_base + PORT_OFFSETS[service]

    def control_port(self, service: str) -> int:
        """Control port of a service."""
        return self.port(service) + CONTROL_OFFSET

    def metrics_port(self, service: str) -> int:
        """Port of a service's metrics over HTTP."""
        return self.port(service) + METRICS_OFFSET

    def token_port(self, service: str) -> int:
        """Port of a service where callers show a local token instead of a certificate."""
        return self.port(service) + TOKEN_OFFSET


class _PlaneFile(PydanticBaseSettingsSource):
    """[plane] of settings.toml; where that file lies is known from the sources before this one."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        home = Path(self.current_state.get("home") or default_home(os.environ)).expanduser()
        section = _section(home / "settings.toml", "plane")
        if "home" in section:
            raise SettingsInvalid(f"{home / 'settings.toml'}: [plane] home: set NIGHTSHIFT_HOME instead")
        return {**section, "home": home}


SettingsT = TypeVar("SettingsT", bound=ServiceSettings)
SectionT = TypeVar("SectionT", bound=SectionSettings)


def plane_settings(**overrides: Any) -> PlaneSettings:
    """The plane's settings, with errors that name file and key.

    Args:
        **overrides: Fields that win over environment and file.

    Raises:
        SettingsInvalid: A key is unknown or a value not allowed.
    """
    try:
        return PlaneSettings(**overrides)
    except ValidationError as error:
        home = Path(overrides.get("home") or os.environ.get("NIGHTSHIFT_HOME") or default_home(os.environ))
        raise _explained(error, home / "settings.toml", "plane", "NIGHTSHIFT_") from error


def service_settings(cls: type[SettingsT], section: str, plane: PlaneSettings | None = None) -> SettingsT:
    """A service's settings: NIGHTSHIFT_<SECTION>_<KEY> over [section] of settings.toml over defaults.

    A ``database_url`` that is left empty becomes ``sqlite:///HOME/<section>/<section>.db``.

    Args:
        cls: The service's subclass of ``ServiceSettings``.
        section: The service's name.
        plane: The plane's settings; loaded where not given.

    Raises:
        SettingsInvalid: A key is unknown or a value not allowed; names file or variable, and the key.
    """
    plane = plane or plane_settings()
    file = f"sqlite:///{plane.service_home(section) / section}.db"
    return section_settings(cls, section, plane, where_empty={"database_url": file})


def section_settings(
    cls: type[SectionT],
    section: str,
    plane: PlaneSettings,
    *,
    beneath_environment: Mapping[str, Any] | None = None,
    where_empty: Mapping[str, Any] | None = None,
) -> SectionT:
    """One section: NIGHTSHIFT_<SECTION>_<KEY> over [section] of settings.toml over defaults.

    Args:
        cls: Its class.
        section: Its name.
        plane: Tells where settings.toml lies.
        beneath_environment: Values from elsewhere that win over the file, not over our own variables.
        where_empty: Values for keys that are empty or absent.

    Raises:
        SettingsInvalid: A key is unknown or a value not allowed; names file or variable, and the key.
    """
    prefix = f"NIGHTSHIFT_{section.upper()}_"
    _refuse_unknown_names(cls, prefix)
    path = plane.settings_file
    values = _merged(_section(path, section), beneath_environment or {})
    values = _merged(values, EnvSettingsSource(cls, env_prefix=prefix)())
    for key, value in (where_empty or {}).items():
        values[key] = values.get(key) or value
    try:
        return cls(**values)
    except ValidationError as error:
        raise _explained(error, path, section, prefix) from error


def _section(path: Path, name: str) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = tomllib.load(file)
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise SettingsInvalid(f"{path}: {error}", metadata={"file": str(path)}) from error
    for key, value in content.items():
        if key not in _SECTIONS or not isinstance(value, dict):
            raise SettingsInvalid(
                f"{path}: {key!r} is no section; the sections are {', '.join(_SECTIONS)}",
                metadata={"file": str(path), "key": key},
            )
    return cast("dict[str, Any]", content.get(name, {}))


def _merged(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(low)
    for key, value in high.items():
        below = merged.get(key)
        merged[key] = (
            _merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
        )
    return merged


def _refuse_unknown_names(cls: type[BaseSettings], prefix: str) -> None:
    nested = cls.model_config.get("env_nested_delimiter")
    for name in os.environ:
        if not name.startswith(prefix):
            continue
        key = name.removeprefix(prefix)
        top = key.lower().split(nested)[0] if nested else key.lower()
        if top not in cls.model_fields:
            raise SettingsInvalid(
                f"environment variable {name}: there is no setting {key.lower()!r}; "
                f"the settings are {', '.join(sorted(cls.model_fields))}",
                metadata={"variable": name, "key": key.lower()},
            )


def _explained(error: ValidationError, path: Path, section: str, prefix: str) -> SettingsInvalid:
    lines = []
    first = ""
    for problem in error.errors(include_url=False, include_input=False):
        key = ".".join(str(part) for part in problem["loc"])
        first = first or key
        variable = prefix + key.upper()
        named = f"environment variable {variable}"
        source = named if variable in os.environ else f"{path}: [{section}] {key}"
        what = "unknown key" if problem["type"] == "extra_forbidden" else problem["msg"]
        lines.append(f"{source}: {what}")
    return SettingsInvalid("; ".join(lines), metadata={"file": str(path), "section": section, "key": first})


def _without_secret(name: str, value: object) -> object:
    if not isinstance(value, str) or not value:
        return value
    if name.endswith("_url") or name == "url":
        try:
            return make_url(value).render_as_string(hide_password=True)
        except ArgumentError:
            return _HIDDEN
    if name.endswith(("_key", "_token", "_secret", "password")):
        return _HIDDEN
    return value
