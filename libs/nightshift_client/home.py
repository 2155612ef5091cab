"""Where the plane's state lies and where it listens. Standard library only, so that it loads at once."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nightshift_client.errors import PlaneNotFound


def default_home(environ: Mapping[str, str] | None = None) -> Path:
    """The home of the plane: NIGHTSHIFT_HOME, else the XDG state folder."""
    environ = os.environ if environ is None else environ
    home = environ.get("NIGHTSHIFT_HOME", "")
    if home:
        return Path(home).expanduser()
    state = environ.get("XDG_STATE_HOME", "")
    # The XDG specification says that a relative path is to be ignored.
    base = Path(state) if state.startswith("/") else Path.home() / ".local" / "state"
    return base / "nightshift"


@dataclass(frozen=True, slots=True)
class ServiceEndpoint:
    """Addresses of one service, each ``host:port``; ``token_address`` takes callers without a certificate."""

    address: str
    control_address: str
    metrics_address: str = ""
    pid: int = 0
    token_address: str = ""


@dataclass(frozen=True, slots=True)
class Endpoints:
    """What endpoints.json says; ``stamp`` changes whenever the file does."""

    services: Mapping[str, ServiceEndpoint] = field(default_factory=dict)
    insecure_loopback: bool = False
    stamp: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Home:
    """The folder of the plane's state, as a client sees it."""

    path: Path

    @property
    def endpoints_file(self) -> Path:
        """Where a running plane says where it listens."""
        return self.path / "endpoints.json"

    @property
    def ca_file(self) -> Path:
        """Certificate of the plane's authority."""
        return self.path / "ca" / "ca.pem"

    def credential(self, kind: str, name: str) -> Credential:
        """The key pair of an identity: ``platform/default``, ``person/1000``."""
        folder = self.path / "credentials" / kind
        return Credential(folder / f"{name}.pem", folder / f"{name}.key", self.ca_file)

    def stamp(self) -> tuple[int, ...]:
        """Changes whenever endpoints.json is replaced; empty where it is not there."""
        return _stamp(self.endpoints_file)

    def endpoints(self) -> Endpoints:
        """Reads endpoints.json.

        Raises:
            PlaneNotFound: if it is not there or makes no sense.
        """
        stamp = self.stamp()
        try:
            document = json.loads(self.endpoints_file.read_bytes())
            services = {
                str(name): ServiceEndpoint(
                    address=str(entry["address"]),
                    control_address=str(entry.get("control_address") or ""),
                    metrics_address=str(entry.get("metrics_address") or ""),
                    pid=int(entry.get("pid") or 0),
                    token_address=str(entry.get("token_address") or ""),
                )
                for name, entry in document["services"].items()
            }
            insecure_loopback = bool(document.get("insecure_loopback", False))
        except FileNotFoundError:
            raise PlaneNotFound(f"no plane runs: {self.endpoints_file} does not exist") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise PlaneNotFound(f"{self.endpoints_file} cannot be read: {error}") from error
        return Endpoints(services, insecure_loopback, stamp)


@dataclass(frozen=True, slots=True)
class Credential:
    """Files of a certificate, its key and the authority's certificate (PEM)."""

    certificate_file: Path
    key_file: Path
    ca_file: Path

    def stamp(self) -> tuple[int, ...]:
        """Changes whenever one of the files is replaced (leaf certificates are short-lived)."""
        return (*_stamp(self.certificate_file), *_stamp(self.key_file), *_stamp(self.ca_file))

    def read(self) -> tuple[bytes, bytes, bytes]:
        """Certificate, key, authority.

        Raises:
            PlaneNotFound: if one of them cannot be read.
        """
        try:
            return self.certificate_file.read_bytes(), self.key_file.read_bytes(), self.ca_file.read_bytes()
        except OSError as error:
            raise PlaneNotFound(f"no credential: {error}") from error


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_ino, status.st_mtime_ns, status.st_size
