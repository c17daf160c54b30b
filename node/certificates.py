"""The certificates of a configuration: which there are, until when they are valid, who reads keys.

The package that reads them is loaded only where there are some.
"""

import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

from sqlalchemy.engine import make_url

from node.config import Config

DAY = 86400.0
WARN_DAYS = 30.0  # before a certificate expires people are told
STAGES = (0.0, 7.0, WARN_DAYS)  # days before, each told once


@dataclass(frozen=True)
class Certificate:
    """A certificate of a file: whose it is, its name, its last second, its fingerprint."""

    role: str
    path: Path
    name: str
    expires_at: float
    fingerprint: str

    def days_left(self, now: float) -> float:
        """Days until it expires; fewer than 0 afterwards."""
        return (self.expires_at - now) / DAY

    def stage(self, now: float) -> str:
        """The last of the stages that it has reached; empty while it is long valid."""
        reached = [stage for stage in STAGES if self.days_left(now) <= stage]
        return f"{reached[0]:g}" if reached else ""

    def sentence(self, now: float) -> str:
        """Whose it is and until when it is valid, for people."""
        day = f"{datetime.fromtimestamp(self.expires_at, UTC):%Y-%m-%d}"
        left = self.days_left(now)
        until = f"expires on {day}, in {left:.0f} days" if left >= 0 else f"expired on {day}"
        return f"The certificate {self.name} of {self.role} ({self.path}) {until}."


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
    named += [(f"the database ({key})", path) for key, path in _of_database(config).items()]
    for role, path in named:
        if path is not None and path not in seen:
            seen.add(path)
            yield role, path


def keys(config: Config) -> tuple[Path, ...]:
    """The files with private keys, and with the secret that the log-in provider knows."""
    pairs = [(config.tls.certificate, config.tls.key), (config.web.certificate, config.web.key)]
    pairs += [(config.audit.certificate, config.audit.key)]
    pairs += [(own.certificate, own.key) for own in config.tls_of_peers.values()]
    own = [key or certificate for certificate, key in pairs]
    own += [config.web.oidc.client_secret_file] if config.web.oidc is not None else []
    return tuple(dict.fromkeys(path for path in own if path is not None))


def all_of(config: Config) -> tuple[Certificate, ...]:
    """Every certificate; what cannot be read is left out, and `check` says why."""
    read: list[Certificate] = []
    for role, path in files(config):
        try:
            read += of_file(role, path)
        except (OSError, ValueError):
            continue
    return tuple(read)


def of_file(role: str, path: Path) -> tuple[Certificate, ...]:
    """The certificates of a file; OSError or ValueError where there are none to read."""
    facts = path.stat()
    return _read(role, path, (facts.st_ino, facts.st_mtime_ns, facts.st_size))


def is_private(path: Path) -> bool:
    """True where only the account that owns it can read it."""
    return not stat.S_IMODE(path.stat().st_mode) & 0o077


@lru_cache(maxsize=64)
def _read(role: str, path: Path, _signature: tuple[int, int, int]) -> tuple[Certificate, ...]:
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
    named = {key: query.get(key) for key in ("sslrootcert", "sslcert")}
    return {
        key: Path(path) for key, path in named.items() if isinstance(path, str) and path[:1] == "/"
    }
