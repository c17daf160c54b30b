"""Certificates for tests: an authority, what it has signed, and files of both."""

import datetime as dt
import ipaddress
import subprocess
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
DAY = dt.timedelta(days=1)


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, as files; None for the options that name neither."""

    certificate: Path
    key: Path

    @property
    def fingerprint(self) -> str:
        """SHA-256, with colons, as OpenSSL prints it."""
        return (
            x509.load_pem_x509_certificate(self.certificate.read_bytes())
            .fingerprint(hashes.SHA256())
            .hex(":")
        )


@dataclass
class Authority:
    """An authority that signs what a test asks for, into a folder."""

    folder: Path
    name: str = "Test CA"
    _key: PrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    @cached_property
    def certificate(self) -> Path:
        """The file of its own certificate."""
        self.folder.mkdir(parents=True, exist_ok=True)
        subject = _subject(self.name)
        built = (
            _builder(subject, self._key.public_key(), days=3650)
            .issuer_name(subject)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        path = self.folder / "ca.pem"
        path.write_bytes(built.public_bytes(serialization.Encoding.PEM))
        return path

    def authority(self, name: str) -> "Authority":
        """An authority that this one vouches for."""
        below = Authority(self.folder / name.replace(" ", "-"), name)
        below.folder.mkdir(parents=True)
        built = (
            _builder(_subject(name), below._key.public_key(), days=3650)
            .issuer_name(_subject(self.name))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        below.certificate = below.folder / "ca.pem"
        below.certificate.write_bytes(built.public_bytes(serialization.Encoding.PEM))
        return below

    def sign(
        self, name: str, *, days: float = 365, hosts: tuple[str, ...] = (), password: str = ""
    ) -> Pair:
        """A certificate of this name for these hosts; one of fewer than 0 days has expired."""
        self.folder.mkdir(parents=True, exist_ok=True)
        key = rsa.generate_private_key(65537, 2048)
        alternative = [_host(host) for host in hosts or ("localhost", "127.0.0.1")]
        built = (
            _builder(_subject(name), key.public_key(), days=days)
            .issuer_name(_subject(self.name))
            .add_extension(x509.SubjectAlternativeName(alternative), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        pair = Pair(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        pair.certificate.write_bytes(built.public_bytes(serialization.Encoding.PEM))
        pair.key.touch(0o600)
        pair.key.write_bytes(_encoded(key, password))
        return pair

    def revoke(self, *pairs: Pair, days: float = 30.0) -> Path:
        """The list of what is revoked, as `openssl ca` makes it; one of fewer than 0 is over."""
        folder = self.certificate.parent / "openssl"
        folder.mkdir(exist_ok=True)
        (folder / "ca.key").write_bytes(_encoded(self._key))
        now = dt.datetime.now(dt.UTC)
        (folder / "index.txt").write_text("".join(_revoked(pair, now) for pair in pairs))
        settings = folder / "openssl.cnf"
        settings.write_text(
            f"[ca]\ndefault_ca = own\n[own]\ndatabase = {folder}/index.txt\n"
            f"certificate = {self.certificate}\nprivate_key = {folder}/ca.key\n"
            "default_md = sha256\n"
        )
        list_ = self.folder / "crl.pem"
        ends = now + days * DAY
        between = [f"{it:%y%m%d%H%M%SZ}" for it in (ends - 30 * DAY, ends)]
        times = ["-crl_lastupdate", between[0], "-crl_nextupdate", between[1]]
        command = ["openssl", "ca", "-config", settings, "-gencrl", "-out", list_, *times]
        subprocess.run(command, check=True, capture_output=True, timeout=30.0)
        return list_


def _encoded(key: PrivateKey, password: str = "") -> bytes:
    """A key in PEM, with a password where there is one."""
    how: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password:
        how = serialization.BestAvailableEncryption(password.encode())
    pem = serialization.Encoding.PEM
    return key.private_bytes(pem, serialization.PrivateFormat.PKCS8, how)


def _revoked(pair: Pair, now: dt.datetime) -> str:
    """A line of the database of `openssl ca`."""
    certificate = x509.load_pem_x509_certificate(pair.certificate.read_bytes())
    until = f"{certificate.not_valid_after_utc:%y%m%d%H%M%SZ}"
    serial = f"{certificate.serial_number:X}"
    serial = serial if len(serial) % 2 == 0 else f"0{serial}"
    return f"R\t{until}\t{now:%y%m%d%H%M%SZ}\t{serial}\tunknown\t/CN={pair.certificate.stem}\n"


def _builder(
    subject: x509.Name, key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey, *, days: float
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 400 * DAY)
        .not_valid_after(now + days * DAY)
    )


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
