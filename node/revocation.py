"""Certificate revocation lists: RFC 5280, 5 and 6.3, as far as authorities of a site use them.

The package that reads them is loaded only where there are some.
"""

import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPublicKeyTypes

BEGIN = b"-----BEGIN X509 CRL-----"
NO_LIST = "it holds no revocation list in PEM"
PARTIAL = "the list of {name} is for a part of the certificates, which is not read"


class Unreadable(OSError):
    """A file holds no revocation lists that can be used; the text says which, and why."""


@dataclass(frozen=True)
class RevocationList:
    """A list of an authority; one that has expired says of nobody any more that he is trusted."""

    name: str  # of the authority
    begins_at: float
    expires_at: float | None  # None: it never does
    _list: "x509.CertificateRevocationList"

    def is_of(self, issuer: "x509.Certificate") -> bool:
        """True where this authority has made it."""
        key = issuer.public_key()
        return self._list.issuer == issuer.subject and self._list.is_signature_valid(
            cast("CertificateIssuerPublicKeyTypes", key)
        )

    def revoked_at(self, certificate: "x509.Certificate") -> datetime | None:
        """When a certificate of the authority was revoked; None where it was not."""
        entry = self._list.get_revoked_certificate_by_serial_number(certificate.serial_number)
        return entry.revocation_date_utc if entry is not None else None

    @property
    def fingerprint(self) -> str:
        from cryptography.hazmat.primitives.hashes import SHA256

        return self._list.fingerprint(SHA256()).hex()

    def is_expired(self, now: float) -> bool:
        return self.expires_at is not None and self.expires_at < now


def lists_of(path: Path) -> tuple[RevocationList, ...]:
    """The lists of a file; OSError or Unreadable where there are none."""
    from cryptography import x509

    parts = path.read_bytes().split(BEGIN)[1:]
    try:
        lists = [x509.load_pem_x509_crl(BEGIN + part) for part in parts]
    except ValueError as error:
        raise Unreadable(f"{path}: {NO_LIST}") from error
    if not lists:
        raise Unreadable(f"{path}: {NO_LIST}")
    for encoded in lists:
        if any(_is_partial(encoded)):
            raise Unreadable(f"{path}: {PARTIAL.format(name=name_of(encoded.issuer))}")
    return tuple(map(_read, lists))


def look_up(context: ssl.SSLContext, crl: Path) -> None:
    """Have a client refuse servers whose certificate is revoked, or in no list that is valid."""
    lists_of(crl)  # OpenSSL reads what it knows, and tells of nothing else
    context.load_verify_locations(crl)
    context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_CHAIN


def unlisted(authorities: Path, crl: Path) -> Iterator[str]:
    """The names of authorities of a file that no list of the other is of: they let nobody in."""
    from cryptography import x509

    lists = lists_of(crl)
    for authority in x509.load_pem_x509_certificates(authorities.read_bytes()):
        if not any(it.is_of(authority) for it in lists):
            yield name_of(authority.subject)


def objection(lists: Sequence[RevocationList], chain: Sequence[bytes], now: float) -> str:
    """Why the verified certificates of a peer, its own first, do not count; empty where they do.

    The last one is the authority that is trusted whatever any list says.
    """
    from cryptography import x509

    certificates = [x509.load_der_x509_certificate(encoded) for encoded in chain]
    shown = ["it", *(name_of(authority.subject) for authority in certificates[1:])]
    pairs = zip(shown, pairwise(certificates), strict=False)
    objections = (_of(lists, which, *pair, now) for which, pair in pairs)
    return next(filter(None, objections), "")


def verified_chain(peer: ssl.SSLSocket) -> Sequence[bytes]:
    """The certificates of a peer as they were verified, from its own to the trusted authority."""
    if hasattr(peer, "get_verified_chain"):  # since Python 3.13
        return cast(Sequence[bytes], peer.get_verified_chain())
    import _ssl

    verified = peer._sslobj.get_verified_chain()  # type: ignore[attr-defined]
    return [it.public_bytes(_ssl.ENCODING_DER) for it in verified]


def name_of(name: "x509.Name") -> str:
    """The common name, or all of it."""
    from cryptography.x509.oid import NameOID

    common = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(common[0].value) if common else name.rfc4514_string()


def day(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d}"


def _of(
    lists: Sequence[RevocationList],
    which: str,
    own: "x509.Certificate",
    issuer: "x509.Certificate",
    now: float,
) -> str:
    responsible = [it for it in lists if it.is_of(issuer)]
    if not responsible:
        return f"there is no revocation list of {name_of(issuer.subject)}"
    for revoked_at in filter(None, (it.revoked_at(own) for it in responsible)):
        return f"{which} was revoked on {revoked_at:%Y-%m-%d}"
    if all(it.is_expired(now) for it in responsible):
        last = max(it.expires_at or 0.0 for it in responsible)
        return f"the revocation list of {name_of(issuer.subject)} expired on {day(last)}"
    return ""


def _read(encoded: "x509.CertificateRevocationList") -> RevocationList:
    ends, begins_at = encoded.next_update_utc, encoded.last_update_utc.timestamp()
    expires_at = ends.timestamp() if ends is not None else None
    return RevocationList(name_of(encoded.issuer), begins_at, expires_at, encoded)


def _is_partial(encoded: "x509.CertificateRevocationList") -> Iterator[bool]:
    """Delta lists, and those for some reasons, kinds of certificates, or other authorities."""
    from cryptography import x509

    for extension in encoded.extensions:
        value = extension.value
        if isinstance(value, x509.IssuingDistributionPoint):
            yield value.indirect_crl or value.only_contains_attribute_certs
            yield value.only_contains_user_certs or value.only_contains_ca_certs
            yield bool(value.only_some_reasons)
        else:
            yield extension.critical
