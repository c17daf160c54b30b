"""DICOM over TLS: PS3.15 B.12 (BCP 195, RFC 8996 and 9325); contexts, sockets, who a peer is.

TLS 1.3 where the peer has it, else TLS 1.2 with the cipher suites that BCP 195 recommends, never
less, and never a connection in clear in its place.
"""

import contextlib
import hashlib
import logging
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from node import revocation
from node.revocation import RevocationList

logger = logging.getLogger(__name__)

PORT = 2762  # registered as dicom-tls
# RFC 9325, 4.2: forward secrecy and authenticated encryption. Those of TLS 1.3 all have both.
CIPHER_SUITES = (
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
)
HANDSHAKE = 0x16  # the first byte of a connection with TLS
A_ASSOCIATE_RQ = 0x01  # and of one without

TURNED_AWAY = "it ended the connection after the handshake; does it accept the node's certificate?"

LOCKED = "the key has a password; say in key_password where it stands"
NOT_OPENED = "the key does not open with the password of key_password ({place})"

T = TypeVar("T")
Signature = tuple[tuple[int, int, int], ...]


class TlsFailed(OSError):
    """There is no TLS connection with this peer; the text says why, for people."""


class TlsSettings(Protocol):
    """The keys of a table of the configuration that name the files of one side."""

    @property
    def certificate(self) -> Path | None:
        """The node's own, where the other side wants one; `key` may be in the same file."""

    @property
    def key(self) -> Path | None: ...

    @property
    def key_password(self) -> str:
        """The place of the key's password: "file:PATH" or "env:NAME"; empty: it has none."""

    @property
    def authorities(self) -> Path | None:
        """Those that the certificate of the other side comes from."""

    @property
    def crl(self) -> Path | None:
        """Their revocation lists; None: no certificate is looked up."""


@dataclass(frozen=True)
class TlsFiles:
    """The files of one side: PEM, a certificate with those between it and its authority."""

    certificate: Path | None
    key: Path | None  # None: in the file of the certificate
    authorities: Path | None  # that the certificates of peers come from
    crl: Path | None = None  # revocation lists of these
    key_password: str = ""  # the place of the password

    @classmethod
    def of(cls, own: TlsSettings) -> "TlsFiles":
        return cls(own.certificate, own.key, own.authorities, own.crl, own.key_password)

    def signature(self) -> Signature:
        """Changes where one of the files was replaced."""
        kind, _, place = self.key_password.partition(":")
        password = Path(place) if kind == "file" else None
        paths = (self.certificate, self.key, self.authorities, self.crl, password)
        facts = (path.stat() for path in paths if path is not None)
        return tuple((fact.st_ino, fact.st_mtime_ns, fact.st_size) for fact in facts)


class Contexts:
    """The context for new connections, made anew when its files were replaced."""

    def __init__(self, files: TlsFiles, make: Callable[[TlsFiles], ssl.SSLContext]) -> None:
        self._files = files
        self._make = make
        self._turn = threading.Lock()
        self._signature = files.signature()
        self._context = make(files)
        self._refused: Signature = ()

    def get(self) -> ssl.SSLContext:
        """The context; where the new files are of no use it is still that of the old ones."""
        with self._turn:
            try:
                signature = self._files.signature()
                if signature not in (self._signature, self._refused):
                    self._refused = signature
                    self._context, self._signature = self._make(self._files), signature
                    logger.info(
                        "certificate replaced", extra={"file": str(self._files.certificate)}
                    )
            except OSError as error:
                extra = {"file": str(self._files.certificate), "why": sentence_of(error)}
                logger.error("certificate not replaced", extra=extra)  # noqa: TRY400 - said in words
            return self._context


def server_context(files: TlsFiles, *, verifies: bool) -> ssl.SSLContext:
    """The context of a port; OSError where a file is of no use."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, files)
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE | ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0  # associations are long: nothing is gained by resuming
    context.options |= ssl.OP_NO_TICKET
    context.verify_mode = ssl.CERT_REQUIRED if verifies else ssl.CERT_NONE
    if files.crl is not None and verifies:
        context.revocations = revocation.lists_of(files.crl)
    return context


def client_context(files: TlsFiles) -> ssl.SSLContext:
    """The context of a connection to a destination; without authorities nobody is verified."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT, files)
    if files.crl is not None:
        revocation.look_up(context, files.crl)
    if files.authorities is None:  # the certificate itself is expected then
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


class _Context(ssl.SSLContext):
    """A context that names the certificate that it finds revoked, as OpenSSL's own do not."""

    revocations: tuple[RevocationList, ...] | None = None  # None: nobody is looked up


def _context(protocol: int, files: TlsFiles) -> _Context:
    for path in (files.certificate, files.key, files.authorities):
        if path is not None:
            path.open("rb").close()  # its error names the file; those of OpenSSL do not
    context = _Context(protocol)
    context.sslsocket_class = TlsSocket
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(":".join(CIPHER_SUITES))
    if files.authorities is not None:
        context.load_verify_locations(files.authorities)
    if files.certificate is not None:
        load_key(context, files.certificate, files.key, files.key_password)
    return context


def password_of(place: str) -> str:
    """The password that stands at a place of `key_password`; OSError where there is none."""
    kind, _, where = place.partition(":")
    if kind == "env":
        if password := os.environ.get(where):
            return password
        raise TlsFailed(f"the variable {where} of key_password is not set in the environment")
    try:
        return Path(where).read_text(encoding="utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise TlsFailed(f"{where}: the key's password is no text in UTF-8") from error


def load_key(context: ssl.SSLContext, certificate: Path, key: Path | None, place: str) -> None:
    """Load a certificate with its key, whose password stands at that place; or OSError."""
    was_asked = False

    def password() -> str:
        nonlocal was_asked
        was_asked = True
        if not place:
            raise TlsFailed(LOCKED)
        return password_of(place)

    try:
        context.load_cert_chain(certificate, key, password)
    except (ssl.SSLError, ValueError) as error:  # ValueError: it is longer than any password
        if was_asked and getattr(error, "reason", None) != "KEY_VALUES_MISMATCH":
            raise TlsFailed(NOT_OPENED.format(place=place)) from error
        raise


@dataclass(frozen=True)
class Identity:
    """The certificate of a peer: the names in it, and its SHA-256 fingerprint."""

    names: tuple[str, ...]
    fingerprint: str

    def __str__(self) -> str:
        return self.names[0] if self.names else f"SHA-256 {self.fingerprint[:16]}..."

    @property
    def marks(self) -> frozenset[str]:
        """All by which a configuration may name it."""
        return frozenset({self.fingerprint, *(name.lower() for name in self.names)})


def identity_of(peer: ssl.SSLSocket) -> Identity | None:
    """The certificate that a peer has shown; its names only where it was verified."""
    encoded = peer.getpeercert(binary_form=True)
    if not encoded:
        return None
    facts: Mapping[str, Any] = peer.getpeercert() or {}
    common = [
        value for part in facts.get("subject", ()) for key, value in part if key == "commonName"
    ]
    alternative = [value for kind, value in facts.get("subjectAltName", ()) if kind == "DNS"]
    names = tuple(dict.fromkeys([*common, *alternative]))
    return Identity(names, hashlib.sha256(encoded).hexdigest())


def mark(text: str) -> str:
    """A name or a fingerprint of a configuration as `Identity.marks` has it."""
    digits = text.lower().removeprefix("sha256:").replace(":", "").replace(" ", "")
    is_fingerprint = len(digits) == 64 and set(digits) <= set("0123456789abcdef")
    return digits if is_fingerprint else text.lower()


@dataclass(frozen=True)
class ServerTls:
    """A port for TLS."""

    port: int  # 0: any free one
    files: TlsFiles
    verifies: bool = True

    def contexts(self) -> Contexts:
        return Contexts(self.files, lambda files: server_context(files, verifies=self.verifies))


class ClientTls(TlsSettings, Protocol):
    """TLS towards a destination: by its authority and host name, or by its very certificate."""

    @property
    def server_name(self) -> str:
        """The name in the certificate; empty: the host that is connected to."""

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of the certificate that is expected, and no other; empty: any."""


def offered(tls: ClientTls, connection: socket.socket, host: str) -> "TlsSocket":
    """The socket of a client, not connected yet; its handshake comes with the connection."""
    try:
        context = client_context(TlsFiles.of(tls))
    except OSError as error:
        connection.close()
        raise TlsFailed(sentence_of(error)) from error
    wrapped = context.wrap_socket(connection, server_hostname=tls.server_name or host)
    assert isinstance(wrapped, TlsSocket)
    wrapped.expected = mark(tls.fingerprint)
    return wrapped


class TlsSocket(ssl.SSLSocket):
    """A TLS connection that one thread reads while another writes.

    OpenSSL allows one thread at a time: none may wait for the peer while it holds the connection.
    """

    _turn: threading.Lock
    problem = ""  # that ended it
    expected = ""  # fingerprint
    _seconds: float | None = None
    _is_open = False  # since the handshake: it waits by itself then
    _is_ended = False
    _has_heard = False

    def __new__(cls, *args: Any, **keywords: Any) -> "TlsSocket":
        made = super().__new__(cls, *args, **keywords)
        made._turn = threading.Lock()
        return made

    def do_handshake(self, block: bool = False) -> None:
        """Agree with the peer; TlsFailed says why not."""
        try:
            super().do_handshake(block)
            self._verify()
        except OSError as error:
            self.problem = sentence_of(error)
            raise TlsFailed(self.problem) from error
        super().settimeout(0.0)
        self._is_open = True

    def settimeout(self, value: float | None) -> None:
        """How long to wait for the peer."""
        self._seconds = value
        if not self._is_open:
            super().settimeout(value)

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        """Receive what there is, at most a record; 0 where the peer has ended."""
        count = self._wait_for(lambda: super(TlsSocket, self).recv_into(buffer, nbytes, flags))
        self._note(TURNED_AWAY if count == 0 else "")
        self._has_heard = True
        return count

    def send(self, data: Any, flags: int = 0) -> int:
        return self._wait_for(lambda: super(TlsSocket, self).send(data, flags))

    def pending(self) -> int:
        """Bytes that were decrypted and not read yet, of which `poll` knows nothing."""
        with self._turn:
            return 0 if self._is_ended else super().pending()

    def shutdown(self, how: int) -> None:
        """End it; nothing is sent on it any more, least of all in clear as the base would."""
        with self._turn:
            if not self._is_ended and self._is_open:
                self._is_ended = True
                with contextlib.suppress(OSError, ValueError):
                    self.unwrap()  # tells the peer; its own word is not waited for
            socket.socket.shutdown(self, how)

    def _verify(self) -> None:
        lists = self.context.revocations if isinstance(self.context, _Context) else None
        if lists is not None:
            chain = revocation.verified_chain(self)
            if objection := revocation.objection(lists, chain, time.time()):
                raise TlsFailed(f"its certificate {identity_of(self)} is not accepted: {objection}")
        if not self.expected:
            return
        shown = identity_of(self)
        if shown is None or shown.fingerprint != self.expected:
            raise TlsFailed("its certificate is not the expected one (fingerprint)")

    def _wait_for(self, attempt: Callable[[], T]) -> T:
        if not self._is_open:
            return attempt()
        deadline = None if self._seconds is None else time.monotonic() + self._seconds
        while True:
            with self._turn:
                if self._is_ended:
                    raise TlsFailed("the connection is closed")
                try:
                    return attempt()
                except ssl.SSLWantReadError:
                    event = select.POLLIN
                except ssl.SSLWantWriteError:
                    event = select.POLLOUT
                except OSError as error:
                    gone = isinstance(error, ssl.SSLEOFError | ConnectionError)
                    self._note(TURNED_AWAY if gone else sentence_of(error))
                    raise
            self._poll(event, deadline)

    def _note(self, problem: str) -> None:
        """Keep what is wrong before the first word: in TLS 1.3 a refusal comes after all."""
        is_vague = self.problem in ("", TURNED_AWAY)  # a writer may see the end before the reason
        if is_vague and not self._has_heard and self._is_open:
            self.problem = problem or self.problem

    def _poll(self, event: int, deadline: float | None) -> None:
        poll = select.poll()
        poll.register(self, event)
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not poll.poll(None if left is None else left * 1000):
            raise TimeoutError("the peer is silent")


def accept(connection: socket.socket, context: ssl.SSLContext, seconds: float) -> TlsSocket:
    """The handshake with a peer that has connected; TlsFailed says why there is none.

    Its text is empty where the peer has gone without a word: health checks do so.
    """
    first = _first_byte(connection, seconds)
    if first == A_ASSOCIATE_RQ:
        raise TlsFailed("the request came without TLS to the port for TLS")
    wrapped = context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
    assert isinstance(wrapped, TlsSocket)
    try:
        wrapped.settimeout(seconds)
        wrapped.do_handshake()
    except OSError:
        wrapped.close()
        raise
    return wrapped


def _first_byte(connection: socket.socket, seconds: float) -> int:
    connection.settimeout(seconds)
    try:
        begin = connection.recv(1, socket.MSG_PEEK)
    except TimeoutError:
        raise TlsFailed(f"silent for {seconds:g} s") from None
    except OSError:
        raise TlsFailed("") from None
    if not begin:
        raise TlsFailed("")
    return begin[0]


def speaks_tls(connection: socket.socket) -> bool:
    """True where a peer has begun a TLS handshake on a connection without it."""
    if isinstance(connection, ssl.SSLSocket):
        return False
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == bytes([HANDSHAKE])
    except OSError:
        return False


# What OpenSSL calls it -> what it means, said of the peer.
SENTENCES = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it shows no certificate",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "it wants a certificate, and the node shows none",
    "TLSV1_ALERT_UNKNOWN_CA": "it does not know the authority of the node's certificate",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "it does not accept the node's certificate",
    "SSLV3_ALERT_BAD_CERTIFICATE": "it does not accept the node's certificate",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "it does not accept the node's certificate",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "it says that the node's certificate has expired",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "it says that the node's certificate is revoked",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": "it has no cipher suite in common, or wants a certificate",
    "TLSV1_ALERT_DECRYPT_ERROR": "it could not verify the node's signature",
    "TLSV1_ALERT_ACCESS_DENIED": "it does not let the node in",
    "TLSV1_ALERT_PROTOCOL_VERSION": "it does not have TLS 1.2 or 1.3",
    "UNSUPPORTED_PROTOCOL": "it does not have TLS 1.2 or 1.3",
    "NO_SHARED_CIPHER": "it has no cipher suite of BCP 195",
    "WRONG_VERSION_NUMBER": "it does not speak TLS",
    "KEY_VALUES_MISMATCH": "the key is not that of the certificate",
    "NO_CERTIFICATE_OR_CRL_FOUND": "the file of authorities holds no certificate",
    "NO_START_LINE": "the file is not PEM",
    "PEM_LIB": "the file is not PEM, or the key is missing",
}


OF_LISTS = {
    "certificate revoked": "it was revoked",
    "CRL has expired": "the revocation list of its authority has expired",
    "unable to get certificate CRL": "there is no revocation list of its authority",
}


def sentence_of(error: OSError) -> str:
    """The end of a sentence about the peer, or about a file."""
    if isinstance(error, TlsFailed | revocation.Unreadable):
        return str(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        why = OF_LISTS.get(error.verify_message, error.verify_message)
        return f"its certificate is not accepted: {why}"
    if isinstance(error, ssl.SSLEOFError | ConnectionError):
        return "it ended the connection in the handshake"
    if isinstance(error, TimeoutError):
        return "it did not finish the handshake in time"
    if isinstance(error, ssl.SSLError):
        reason = error.reason or ""
        return SENTENCES.get(reason, reason.replace("_", " ").lower() or "TLS failed")
    return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
