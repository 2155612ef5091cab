"""The development CA, leaf certificates and keys under NIGHTSHIFT_HOME.

Everything is made once and renewed at a start, race-safe between processes (flock on the home). Private files
are 0600 in folders of 0700. Keys are EC P-256; grants, audit checkpoints and the register of tokens are
signed with Ed25519.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import ipaddress
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from nightshift_kit.rpc.identity import (
    ROLES,
    TRUST_DOMAIN,
    Identity,
    SpiffeInvalid,
    format_spiffe,
    identity_of_certificate,
    parse_spiffe,
)
from nightshift_kit.settings import PlaneSettings

SERVICES: Final = ("monitor", "experience", "lab", "trainer", "skills")

_CA_LIFETIME: Final = dt.timedelta(days=3650)
_LEAF_LIFETIME: Final = dt.timedelta(days=30)
# Leaves are renewed when a process starts; one that runs for longer starts again (see rpc.serve).
_RENEW_BELOW: Final = dt.timedelta(days=20)
# Clocks of hosts differ a little; a certificate from the future is refused.
_BACKDATE: Final = dt.timedelta(minutes=5)


class HomeUnsafe(RuntimeError):
    """The home folder belongs to somebody else or is open to others."""


@dataclass(frozen=True, slots=True)
class Credential:
    """A leaf certificate with its key and the CA that peers are checked against; all PEM."""

    identity: Identity
    certificate_pem: bytes
    key_pem: bytes
    ca_pem: bytes

    @property
    def thumbprint(self) -> str:
        """SHA-256 of the certificate, as grants carry it (x5t#S256)."""
        return self.identity.thumbprint

    @property
    def not_after(self) -> dt.datetime:
        """When the certificate runs out (UTC)."""
        return x509.load_pem_x509_certificate(self.certificate_pem).not_valid_after_utc

    def __repr__(self) -> str:
        return f"Credential({self.identity.actor})"


def ensure_home(settings: PlaneSettings) -> None:
    """Makes the home folder, the CA, the signing keys and the first credentials; renews what runs out.

    The first start makes `person/<uid>` as admin for whoever starts it, and `platform/default`. Calling it
    again, from any number of processes at once, changes nothing that is still good.

    Raises:
        HomeUnsafe: the folder is not ours.
        OSError: it cannot be written.
    """
    home = settings.home
    _private_folder(home)
    with _locked(home):
        authority = _Authority.ensure(home / "ca")
        _ensure_signing_key(home / "keys", "grant")
        _ensure_signing_key(home / "keys", "audit")
        _ensure_signing_key(home / "keys", "token")
        for service in SERVICES:
            authority.ensure_leaf(home, "service", service, "")
        authority.ensure_leaf(home, "platform", "default", "")
        authority.ensure_leaf(home, "person", str(os.getuid()), "admin")
        authority.renew_all(home)
        _private_folder(home / "logs")


def create_credential(settings: PlaneSettings, kind: str, name: str, role: str = "viewer") -> Path:
    """Makes (or replaces) the credential of a platform or a person; for `nightshift credentials create`.

    Returns:
        The certificate's path; the key lies beside it as `.key`.

    Raises:
        SpiffeInvalid: a kind other than platform and person, or a bad name or role.
    """
    if kind not in {"platform", "person"}:
        raise SpiffeInvalid(f"credentials are made for 'platform' or 'person', not {kind!r}")
    if kind == "person" and role not in ROLES:
        raise SpiffeInvalid(f"a role is one of {', '.join(ROLES)}, not {role!r}")
    format_spiffe(kind, name, role if kind == "person" else "")
    _private_folder(settings.home)
    with _locked(settings.home):
        authority = _Authority.ensure(settings.home / "ca")
        return authority.issue(settings.home, kind, name, role if kind == "person" else "")


def load_credential(settings: PlaneSettings, identity: str) -> Credential:
    """Reads a credential.

    Args:
        settings: Names the home folder.
        identity: Its place under `credentials/` ("service/skills", "person/1000").

    Raises:
        FileNotFoundError: there is none.
        SpiffeInvalid: the certificate says something else than its place.
    """
    base = settings.home / "credentials" / identity
    certificate_pem = base.with_name(base.name + ".pem").read_bytes()
    key_pem = base.with_name(base.name + ".key").read_bytes()
    ca_pem = (settings.home / "ca" / "ca.pem").read_bytes()
    found = identity_of_certificate(certificate_pem)
    if f"{found.kind}/{found.name}" != identity:
        raise SpiffeInvalid(f"credentials/{identity}.pem belongs to {found.spiffe}")
    return Credential(found, certificate_pem, key_pem, ca_pem)


def load_private_key(settings: PlaneSettings, name: str) -> ed25519.Ed25519PrivateKey:
    """Private half of `keys/<name>.key`; only skills reads these."""
    key = load_pem_private_key((settings.home / "keys" / f"{name}.key").read_bytes(), password=None)
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise TypeError(f"keys/{name}.key is no Ed25519 key")
    return key


def load_public_key(settings: PlaneSettings, name: str) -> ed25519.Ed25519PublicKey:
    """Public half, `keys/<name>.pub`."""
    key = load_pem_public_key((settings.home / "keys" / f"{name}.pub").read_bytes())
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise TypeError(f"keys/{name}.pub is no Ed25519 key")
    return key


def dns_name(service: str) -> str:
    """Name that a service's certificate carries and its clients check."""
    return f"{service}.{TRUST_DOMAIN}"


def write_private(path: Path, content: bytes) -> None:
    """Replaces a file atomically and durably, readable by its owner alone."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@dataclass(frozen=True, slots=True)
class _Authority:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def ensure(cls, folder: Path) -> _Authority:
        _private_folder(folder)
        certificate_path, key_path = folder / "ca.pem", folder / "ca.key"
        if not certificate_path.exists() or not key_path.exists():
            key = ec.generate_private_key(ec.SECP256R1())
            certificate = _self_signed(key)
            # The key first: a certificate without its key would be taken for a complete CA.
            write_private(key_path, _private_pem(key))
            write_private(certificate_path, certificate.public_bytes(Encoding.PEM))
            return cls(certificate, key)
        loaded = load_pem_private_key(key_path.read_bytes(), password=None)
        if not isinstance(loaded, ec.EllipticCurvePrivateKey):
            raise TypeError(f"{key_path} is no EC key")
        return cls(x509.load_pem_x509_certificate(certificate_path.read_bytes()), loaded)

    def ensure_leaf(self, home: Path, kind: str, name: str, role: str) -> None:
        path = home / "credentials" / kind / f"{name}.pem"
        if not path.exists() or not path.with_suffix(".key").exists():
            self.issue(home, kind, name, role)

    def renew_all(self, home: Path) -> None:
        now = dt.datetime.now(dt.UTC)
        for path in sorted((home / "credentials").glob("*/*.pem")):
            certificate = x509.load_pem_x509_certificate(path.read_bytes())
            ours = certificate.issuer == self.certificate.subject and self._signed(certificate)
            if ours and certificate.not_valid_after_utc - now > _RENEW_BELOW:
                continue
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            identity = parse_spiffe(names.get_values_for_type(x509.UniformResourceIdentifier)[0])
            self.issue(home, identity.kind, identity.name, identity.role)

    def _signed(self, certificate: x509.Certificate) -> bool:
        try:
            certificate.verify_directly_issued_by(self.certificate)
        except Exception:  # noqa: BLE001 - whatever is wrong with it, it gets replaced
            return False
        return True

    def issue(self, home: Path, kind: str, name: str, role: str) -> Path:
        folder = home / "credentials" / kind
        _private_folder(folder.parent)
        _private_folder(folder)
        key = ec.generate_private_key(ec.SECP256R1())
        path = folder / f"{name}.pem"
        # A reader between the two replacements sees a pair that does not fit and fails to connect; that can
        # only hit a process that starts while another renews, and the lock of ensure_home keeps those apart.
        write_private(folder / f"{name}.key", _private_pem(key))
        write_private(path, self._leaf(key, kind, name, role).public_bytes(Encoding.PEM))
        return path

    def _leaf(self, key: ec.EllipticCurvePrivateKey, kind: str, name: str, role: str) -> x509.Certificate:
        now = dt.datetime.now(dt.UTC)
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(format_spiffe(kind, name, role))]
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if kind == "service":
            names += [
                x509.DNSName(dns_name(name)),
                x509.DNSName("localhost"),
                x509.IPAddress(ipaddress.IPv4Address("127.0.0.1")),
            ]
            usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{kind}/{name}"[:64])]))
            .issuer_name(self.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _BACKDATE)
            .not_valid_after(now + _LEAF_LIFETIME)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False
            )
            .sign(self.key, hashes.SHA256())
        )


def _self_signed(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    now = dt.datetime.now(dt.UTC)
    # The serial number in the name keeps two homes' authorities apart in logs and trust stores.
    serial = x509.random_serial_number()
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Nightshift"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"Nightshift development CA {serial & 0xFFFFFFFF:08x}"),
        ]
    )
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + _CA_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _private_pem(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _ensure_signing_key(folder: Path, name: str) -> None:
    _private_folder(folder)
    private_path, public_path = folder / f"{name}.key", folder / f"{name}.pub"
    if private_path.exists():
        key = load_pem_private_key(private_path.read_bytes(), password=None)
        if not isinstance(key, ed25519.Ed25519PrivateKey):
            raise TypeError(f"{private_path} is no Ed25519 key")
        if public_path.exists():
            return
    else:
        key = ed25519.Ed25519PrivateKey.generate()
        write_private(private_path, _private_pem(key))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    write_private(public_path, public)


def _private_folder(path: Path) -> None:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = path.stat()
    if status.st_uid != os.getuid():
        raise HomeUnsafe(f"{path} belongs to uid {status.st_uid}, not to uid {os.getuid()} that runs this")
    if stat.S_IMODE(status.st_mode) & 0o077:
        path.chmod(0o700)


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    descriptor = os.open(home / ".credentials.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
