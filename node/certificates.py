"""The certificates of a configuration: which there are, until when they are valid, who reads keys.

Revocation lists end like certificates, and are told of in the same way.

The package that reads them is loaded only where there are some.
"""

import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

from sqlalchemy.engine import make_url

from node import revocation
from node.config import Config

DAY = 86400.0
WARN_DAYS = 30.0  # before a certificate expires people are told
STAGES = (0.0, 7.0, WARN_DAYS)  # days before, each told once
LAST_PART = 0.25  # of the time from a revocation list to the next: people are told then


@dataclass(frozen=True)
class Certificate:
    """A certificate, or a revocation list, of a file: whose, its name, its last second."""

    role: str
    path: Path
    name: str
    expires_at: float
    fingerprint: str
    stages: tuple[float, ...] = STAGES
    is_list: bool = False

    def days_left(self, now: float) -> float:
        """Days until it expires; fewer than 0 afterwards."""
        return (self.expires_at - now) / DAY

    def stage(self, now: float) -> str:
        """The last of the stages that it has reached; empty while it is long valid."""
        reached = [stage for stage in self.stages if self.days_left(now) <= stage]
        return f"{reached[0]:g}" if reached else ""

    @property
    def title(self) -> str:
        """Its kind and its name."""
        kind = "revocation list of" if self.is_list else "certificate"
        return f"The {kind} {self.name}"

    @property
    def due_at(self) -> float:
        """When people are told first that it expires."""
        return self.expires_at - max(self.stages) * DAY

    def sentence(self, now: float) -> str:
        """Whose it is and until when it is valid, for people."""
        day = f"{datetime.fromtimestamp(self.expires_at, UTC):%Y-%m-%d}"
        left = self.days_left(now)
        until = f"expires on {day}, in {left:.0f} days" if left >= 0 else f"expired on {day}"
        if self.is_list and left < 0:
            until += ": nobody with a certificate of this authority is let in or called"
        return f"{self.title} of {self.role} ({self.path}) {until}."


def files(config: Config) -> Iterator[tuple[str, Path]]:
    """Whose certificates are in which file, each file once."""
    tls, seen = config.tls, set()
    named = [("this node", tls.certificate), ("the authorities of peers", tls.authorities)]
    named += [("the pages", config.web.certificate)]
    named += [("this node towards the audit repository", config.audit.certificate)]
    named += [("the authorities of the audit repository", config.audit.authorities)]
    if config.web.oidc is not None:
        named += [("the authorities of the log-in provider", config.web.oidc.authorities)]
    for entry in config.destinations:
        if entry.tls is not None:
            named.append((f"this node towards {entry.name}", entry.tls.certificate))
            named.append((f"the authorities of {entry.name}", entry.tls.authorities))
    for sender in config.senders:
        if sender.commitment is not None and sender.commitment.tls is not None:
            own = sender.commitment.tls
            named.append((f"this node towards {sender.ae_title}", own.certificate))
            named.append((f"the authorities of {sender.ae_title}", own.authorities))
    of_database = _of_database(config).items()
    named += [(f"the database ({key})", path) for key, path in of_database if key != "sslcrl"]
    for role, path in named:
        if path is not None and path not in seen:
            seen.add(path)
            yield role, path


def lists(config: Config) -> Iterator[tuple[str, Path]]:
    """Whose revocation lists are in which file, each file once."""
    named: dict[Path, str] = {}
    for role, (_, path) in trust_stores(config).items():
        if path is not None:
            named.setdefault(path, role)
    if path := _of_database(config).get("sslcrl"):
        named.setdefault(path, "the database (sslcrl)")
    yield from ((role, path) for path, role in named.items())


def trust_stores(config: Config) -> dict[str, tuple[Path | None, Path | None]]:
    """The files of authorities and of their revocation lists, by whose certificates they are."""
    stores = {"peers": (config.tls.authorities, config.tls.crl)}
    for place, own in config.tls_of_peers.items():
        stores[place] = own.authorities, own.crl
    stores["the audit repository"] = config.audit.authorities, config.audit.crl
    if config.web.oidc is not None:
        stores["the log-in provider"] = config.web.oidc.authorities, config.web.oidc.crl
    return stores


def keys(config: Config) -> tuple[Path, ...]:
    """The files with private keys, their passwords, and the secret for the log-in provider."""
    pairs = [(config.tls.certificate, config.tls.key), (config.web.certificate, config.web.key)]
    pairs += [(config.audit.certificate, config.audit.key)]
    pairs += [(own.certificate, own.key) for own in config.tls_of_peers.values()]
    own = [key or certificate for certificate, key in pairs]
    passwords = [config.tls.key_password, config.web.key_password, config.audit.key_password]
    passwords += [of_peer.key_password for of_peer in config.tls_of_peers.values()]
    places = [password.partition(":") for password in passwords]
    own += [Path(place) for kind, _, place in places if kind == "file"]
    own += [config.web.oidc.client_secret_file] if config.web.oidc is not None else []
    return tuple(dict.fromkeys(path for path in own if path is not None))


def all_of(config: Config) -> tuple[Certificate, ...]:
    """Every certificate and list; what cannot be read is left out, and `check` says why."""
    read: list[Certificate] = []
    for named, of in ((files(config), of_file), (lists(config), of_crl)):
        for role, path in named:
            with suppress(OSError, ValueError):
                read += of(role, path)
    return tuple(read)


def of_file(role: str, path: Path) -> tuple[Certificate, ...]:
    """The certificates of a file; OSError or ValueError where there are none to read."""
    return _read(role, path, _signature(path))


def of_crl(role: str, path: Path) -> tuple[Certificate, ...]:
    """The revocation lists of a file that end some day; OSError where there are none to read."""
    return _read_lists(role, path, _signature(path))


def is_private(path: Path) -> bool:
    """True where only the account that owns it can read it."""
    return not stat.S_IMODE(path.stat().st_mode) & 0o077


def _signature(path: Path) -> tuple[int, int, int]:
    facts = path.stat()
    return (facts.st_ino, facts.st_mtime_ns, facts.st_size)


@lru_cache(maxsize=64)
def _read_lists(role: str, path: Path, _of: tuple[int, int, int]) -> tuple[Certificate, ...]:
    return tuple(
        Certificate(
            role,
            path,
            read.name,
            read.expires_at,
            read.fingerprint,
            (0.0, LAST_PART * (read.expires_at - read.begins_at) / DAY),
            is_list=True,
        )
        for read in revocation.lists_of(path)
        if read.expires_at is not None
    )


@lru_cache(maxsize=64)
def _read(role: str, path: Path, _of: tuple[int, int, int]) -> tuple[Certificate, ...]:
    from cryptography import x509
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.x509.oid import NameOID

    certificates = []
    for one in x509.load_pem_x509_certificates(path.read_bytes()):
        names = one.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        name = str(names[0].value) if names else one.subject.rfc4514_string()
        expires_at = one.not_valid_after_utc.timestamp()
        fingerprint = one.fingerprint(SHA256()).hex()
        certificates.append(Certificate(role, path, name, expires_at, fingerprint))
    return tuple(certificates)


def _of_database(config: Config) -> dict[str, Path]:
    """What a URL of PostgreSQL names: it passes them to the server's client."""
    url = config.storage.database
    query = make_url(url).query if url.startswith("postgresql") else {}
    named = {key: query.get(key) for key in ("sslrootcert", "sslcert", "sslcrl")}
    return {
        key: Path(path) for key, path in named.items() if isinstance(path, str) and path[:1] == "/"
    }
