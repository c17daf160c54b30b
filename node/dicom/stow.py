"""STOW-RS as client (PS3.18 10.5): a DICOMweb destination gets instances by HTTP, one a request.

The files go as they are, streamed from disk. An answer becomes the status that C-STORE would have:
the Failure Reasons of STOW-RS are the same codes (PS3.18 Annex I).
"""

import base64
import hashlib
import http.client
import json
import select
import socket
import ssl
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Unpack
from urllib.parse import urlsplit

from inference.release import IMPLEMENTATION_VERSION_NAME
from node.dicom import scu
from node.dicom.scu import (
    TIMEOUTS,
    EchoResult,
    Outgoing,
    PeerAddress,
    SendOptions,
    SendResult,
    Timeouts,
)
from node.dicom.status import SUCCESS, Outcome
from node.dicom.tls import ClientTls, TlsFailed, TlsFiles, client_context, mark, sentence_of

JSON = "application/dicom+json"
DICOM = "application/dicom"
REFERENCED, FAILED = "00081199", "00081198"  # Referenced and Failed SOP Sequence
INSTANCE_UID, FAILURE_REASON, WARNING_REASON = "00081155", "00081197", "00081196"
PROCESSING_FAILURE, NOT_SUPPORTED, CANNOT_UNDERSTAND = 0x0110, 0x0122, 0xC000

POLL_SECONDS = 0.2  # how soon `abandon` is heard
CHUNK_BYTES = 1 << 20
MOST_ANSWER_BYTES = 4 << 20
# HTTP statuses that are an answer about the instance: PS3.18 Table 10.5.3-1.
OF_INSTANCE = frozenset({200, 202, 400, 409, 413, 415, 422})
# Those that say the destination, or what is configured of it, is wrong: it needs a person.
REFUSALS = {
    401: "does not accept the log-in (HTTP 401): correct its token, or user and password",
    403: "does not allow it (HTTP 403): give this log-in the right to store there",
    404: "has no DICOMweb service at this URL (HTTP 404): correct url",
    405: "takes no STOW-RS at this URL (HTTP 405): correct url",
    501: "does not implement STOW-RS (HTTP 501)",
}
# Where a body does not name the instance.
STATUSES = {200: SUCCESS, 413: CANNOT_UNDERSTAND, 415: NOT_SUPPORTED, 400: CANNOT_UNDERSTAND}
ERRORS = (OSError, http.client.HTTPException)


class Destination(Protocol):
    """A destination of the configuration."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> Literal["dimse", "dicomweb"]: ...

    @property
    def host(self) -> str: ...

    @property
    def port(self) -> int: ...

    @property
    def url(self) -> str: ...

    @property
    def token_file(self) -> Path | None: ...

    @property
    def user(self) -> str: ...

    @property
    def password_file(self) -> Path | None: ...

    @property
    def tls(self) -> ClientTls | None: ...

    def address(self, ae_title: str) -> tuple[str, str, int, str, ClientTls | None]:
        """AE title, host, port, what the node calls itself there, and TLS."""


class _Abandoned(Exception):
    """Nobody waits for the answer any more."""


@dataclass(frozen=True)
class _Response:
    status: int
    body: bytes


class StowSender:
    """Sends to one DICOMweb destination, in the place of `scu.send`."""

    def __init__(self, destination: Destination) -> None:
        self._destination = destination

    def __call__(
        self, peer: PeerAddress, files: Iterable[Outgoing], **options: Unpack[SendOptions]
    ) -> SendResult:
        """Offer each file, as `scu.send` does; of the peer only its URL counts."""
        answered, stop = options["answered"], options["stop"]
        timeouts, abandon = options["timeouts"], options["abandon"]
        with _Connection(self._destination, timeouts, abandon) as connection:
            for number, file in enumerate(files):
                if stop():
                    return SendResult(Outcome.RETRY, "The sending was stopped.")
                try:
                    response = connection.store(file)
                except _Abandoned:
                    return SendResult(Outcome.RETRY, "The sending was stopped.")
                except ERRORS as error:
                    answered(file, None, "")
                    done = f" after {number} instances" if number else ""
                    sentence = f"{connection.named}: {_why(error)}{done}."
                    return SendResult(Outcome.RETRY, sentence)
                if response.status not in OF_INSTANCE:
                    answered(file, None, "")
                    return _refused(connection.named, response.status)
                answered(file, *answer_of(response.status, response.body, file.instance_uid))
        return SendResult(Outcome.STORED)


def sender(destination: Destination) -> scu.Send:
    """The function that sends to this destination, by its kind."""
    return scu.send if destination.kind == "dimse" else StowSender(destination)


def echo(destination: Destination, ae_title: str, *, timeouts: Timeouts = TIMEOUTS) -> EchoResult:
    """Ask a destination whether it is there: by C-ECHO, or by QIDO-RS for one study."""
    if destination.kind == "dimse":
        return scu.echo(PeerAddress(*destination.address(ae_title)), timeouts=timeouts)
    began = time.monotonic()
    with _Connection(destination, timeouts, lambda: False) as connection:
        try:
            status = connection.ask("/studies?limit=1").status
        except ERRORS as error:
            sentence = f"{connection.named}: {_why(error)}."
            return EchoResult(False, time.monotonic() - began, sentence)
        seconds = time.monotonic() - began
        # One that only stores may know no search: then it has answered, and is there.
        if status < 400 or status in (400, 404, 405, 406, 501):
            return EchoResult(True, seconds, f"{connection.named} answers.")
        return EchoResult(False, seconds, _refused(connection.named, status).sentence)


def answer_of(http_status: int, body: bytes, instance_uid: str) -> tuple[int, str]:
    """The DIMSE status and the comment of an answer about one instance."""
    try:
        document: Any = json.loads(body)
    except ValueError:
        document = None
    if isinstance(document, list) and document:  # some wrap the one data set in a list
        document = document[0]
    if isinstance(document, dict):
        failed = _item(document, FAILED, instance_uid)
        if failed is not None:
            reason = _number(failed, FAILURE_REASON) or PROCESSING_FAILURE
            return reason, f"HTTP {http_status}"
        stored = _item(document, REFERENCED, instance_uid)
        if stored is not None:
            return _number(stored, WARNING_REASON) or SUCCESS, ""
        if REFERENCED in document or FAILED in document:
            return PROCESSING_FAILURE, f"HTTP {http_status}, and the answer does not name it"
    status = STATUSES.get(http_status, PROCESSING_FAILURE)
    return status, "" if status == SUCCESS else f"HTTP {http_status}"


def _item(
    document: Mapping[str, Any], sequence: str, instance_uid: str
) -> Mapping[str, Any] | None:
    """The item of a sequence in DICOM JSON that names the instance."""
    items = document.get(sequence)
    values = items.get("Value") if isinstance(items, dict) else None
    for item in values if isinstance(values, list) else ():
        if isinstance(item, dict) and _first(item, INSTANCE_UID) == instance_uid:
            return item
    return None


def _first(item: Mapping[str, Any], tag: str) -> object:
    element = item.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return values[0] if isinstance(values, list) and values else None


def _number(item: Mapping[str, Any], tag: str) -> int | None:
    value = _first(item, tag)
    is_status = isinstance(value, int) and 0 <= value <= 0xFFFF
    return value if is_status and isinstance(value, int) else None


def _refused(named: str, status: int) -> SendResult:
    """An answer about the destination; what may pass by itself is tried again."""
    if status in REFUSALS:
        return SendResult(Outcome.REFUSED, f"{named} {REFUSALS[status]}.")
    reason = http.client.responses.get(status, "unknown")
    return SendResult(Outcome.RETRY, f"{named} answers HTTP {status} ({reason}).")


def _why(error: Exception) -> str:
    """The end of a sentence about a connection that failed."""
    match error:
        case ConnectionRefusedError():
            return "it refuses the connection; it may not be running"
        case socket.gaierror():
            return "the host is unknown"
        case TimeoutError():
            return "it does not answer in time"
        case ssl.SSLError() | TlsFailed():
            return f"no TLS connection: {sentence_of(error)}"
        case http.client.HTTPException() | ConnectionError():
            return "it ended the connection without an answer"
        case OSError():
            where = f"{error.filename}: " if error.filename else ""
            return f"{where}{error.strerror or type(error).__name__}"
    return type(error).__name__


class _Connection:
    """A connection that is kept between requests, and made anew where the server has closed it."""

    def __init__(
        self, destination: Destination, timeouts: Timeouts, abandon: Callable[[], bool]
    ) -> None:
        self._destination = destination
        self._timeouts = timeouts
        self._abandon = abandon
        self._url = urlsplit(destination.url)
        self.named = f"{destination.name} at {self._url.scheme}://{self._url.netloc}"
        self._http: http.client.HTTPConnection | None = None

    def __enter__(self) -> "_Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def store(self, file: Outgoing) -> _Response:
        """POST one instance."""
        boundary = uuid.uuid4().hex
        head = f"--{boundary}\r\nContent-Type: {DICOM}\r\n\r\n".encode()
        tail = f"\r\n--{boundary}--\r\n".encode()
        length = len(head) + Path(file.path).stat().st_size + len(tail)
        headers = {
            "Content-Type": f'multipart/related; type="{DICOM}"; boundary={boundary}',
            "Content-Length": str(length),
        }
        return self._request(
            "POST", "/studies", headers, lambda: _body(head, Path(file.path), tail)
        )

    def ask(self, path: str) -> _Response:
        """GET something small."""
        return self._request("GET", path, {}, lambda: iter(()))

    def _request(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: Callable[[], Iterator[bytes]],
    ) -> _Response:
        is_new = self._http is None
        try:
            return self._exchange(method, path, headers, body())
        except ERRORS as error:
            self._close()
            # A server may close what was idle; the request was not begun there.
            if is_new or not isinstance(error, ConnectionError | http.client.RemoteDisconnected):
                raise
        return self._exchange(method, path, headers, body())

    def _exchange(
        self, method: str, path: str, headers: Mapping[str, str], body: Iterator[bytes]
    ) -> _Response:
        connection = self._http = self._http or self._connected()
        connection.putrequest(method, f"{self._url.path.rstrip('/')}{path}")
        for name, value in {**self._common_headers(), **headers}.items():
            connection.putheader(name, value)
        connection.endheaders()
        is_whole = self._send(connection, body)
        self._wait(connection)
        response = connection.getresponse()
        content = response.read(MOST_ANSWER_BYTES)
        if response.will_close or not response.isclosed() or not is_whole:
            self._close()
        return _Response(response.status, content)

    def _send(self, connection: http.client.HTTPConnection, body: Iterator[bytes]) -> bool:
        """False where the server has answered before it had all, and closed the connection."""
        for part in body:
            if self._abandon():
                self._close()
                raise _Abandoned
            try:
                connection.send(part)
            except ConnectionError:
                return False
        return True

    def _connected(self) -> http.client.HTTPConnection:
        host, port = self._destination.host, self._destination.port
        connection = http.client.HTTPConnection(host, port, timeout=self._timeouts.connect)
        connection.connect()
        connection.sock.settimeout(self._timeouts.answer)
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._url.scheme == "https":
            connection.sock = self._secured(connection.sock, host)
        return connection

    def _secured(self, sock: socket.socket, host: str) -> ssl.SSLSocket:
        tls = self._destination.tls
        if tls is None:
            return ssl.create_default_context().wrap_socket(sock, server_hostname=host)
        context = client_context(TlsFiles.of(tls))
        context.sslsocket_class = ssl.SSLSocket
        secured = context.wrap_socket(sock, server_hostname=tls.server_name or host)
        certificate = secured.getpeercert(binary_form=True) or b""
        if tls.fingerprint and hashlib.sha256(certificate).hexdigest() != mark(tls.fingerprint):
            secured.close()
            raise TlsFailed("its certificate is not the one that is expected")
        return secured

    def _common_headers(self) -> dict[str, str]:
        headers = {"Accept": JSON, "User-Agent": IMPLEMENTATION_VERSION_NAME}
        destination = self._destination
        if destination.token_file is not None:
            token = destination.token_file.read_text(encoding="utf-8").strip()
            headers["Authorization"] = f"Bearer {token}"
        elif destination.user and destination.password_file is not None:
            password = destination.password_file.read_text(encoding="utf-8").rstrip("\r\n")
            pair = base64.b64encode(f"{destination.user}:{password}".encode()).decode()
            headers["Authorization"] = f"Basic {pair}"
        return headers

    def _wait(self, connection: http.client.HTTPConnection) -> None:
        """Wait for the answer; TimeoutError, or _Abandoned where nobody waits any more."""
        until = time.monotonic() + self._timeouts.answer
        while not select.select([connection.sock], [], [], POLL_SECONDS)[0]:
            if self._abandon():
                self._close()
                raise _Abandoned
            if time.monotonic() >= until:
                raise TimeoutError

    def _close(self) -> None:
        if self._http is not None:
            with suppress(OSError):
                self._http.close()
        self._http = None


def _body(head: bytes, path: Path, tail: bytes) -> Iterator[bytes]:
    yield head
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
    yield tail
