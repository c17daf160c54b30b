"""Tells an audit record repository what was done here: DICOM audit messages over syslog.

The rows of the database are what is told, each once and in order; after a repository that did not
take them, from the first that it lacks on. PS3.15 A.6: syslog of RFC 5424, by TLS (RFC 5425) or,
where nobody else can listen or write, by UDP (RFC 5426), which loses what is lost.
"""

import logging
import os
import socket
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from node.audit_message import Message, Messages
from node.config.sections import Audit as Settings
from node.dicom.tls import load_key
from node.revocation import look_up
from storage.database import Database
from storage.records import AuditEvent
from storage.site import notices
from storage.site.trail import Position, Trail, last_of

logger = logging.getLogger(__name__)

SECONDS = 10.0  # for the repository to take what it is sent
TOLD_SECONDS = 900.0  # a repository that takes nothing for so long is told of
PORTS = {"udp": 514, "tls": 6514}
NOTICE_OF_SECURITY = 10 * 8 + 5  # PRI: facility security and authorization, severity notice
MESSAGE_ID = "DICOM+RFC3881"  # PS3.15 A.6
BOM = b"\xef\xbb\xbf"  # RFC 5424 6.4: what follows is UTF-8


class Kind(NamedTuple):
    """A kind of acts: its reader and its message."""

    name: str
    read: Callable[[Position, float], Sequence[Any]]
    message: Callable[[Any], Message]


@dataclass
class AuditTrail:
    """The sweep that tells what is new."""

    database: Database
    settings: Settings
    ae_title: str
    now: Callable[[], float]
    _started: Message | None = field(default=None, init=False)  # not told yet
    _failing_since: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._host = socket.getfqdn()
        self._messages = Messages(self.ae_title, self._host)
        self._trail = Trail(self.database)
        trail, messages = self._trail, self._messages
        self._kinds = (
            Kind("events", trail.events, self._act),
            Kind("rejected", trail.rejected, messages.rejected),
            Kind("received", trail.received, messages.received),
            Kind("sent", trail.sent, messages.sent),
        )

    def _act(self, event: AuditEvent) -> Message:
        return self._messages.act(event, self._trail.viewed(event))

    def start(self) -> None:
        """Begin: what was done before the first start of all is not told."""
        if self.settings.syslog:
            for kind in self._kinds:
                self._trail.position(kind.name, self.now())
            self._started = self._messages.application(self.now(), starts=True)

    def stop(self) -> None:
        """Tell what is left, and that the node stops."""
        if self.settings.syslog:
            self.sweep()
            self._tell([self._messages.application(self.now(), starts=False)])

    def sweep(self) -> None:
        """Tell what was done since the last time."""
        if not self.settings.syslog:
            return
        if self._started is not None:
            if not self._tell([self._started]):
                return
            self._started = None
        with self.database.alone("audit trail") as is_ours:  # each act is told by one node
            if is_ours:
                all(map(self._tell_acts, self._kinds))

    def _tell_acts(self, kind: Kind) -> bool:
        """Tell what is new of a kind; False where the repository does not take it."""
        now = self.now()
        while acts := kind.read(self._trail.position(kind.name, now), now):
            if not self._tell([kind.message(act) for act in acts]):
                return False
            self._trail.remember(kind.name, last_of(acts))
        return True

    def _tell(self, messages: Sequence[Message]) -> bool:
        try:
            send(self.settings, [self._line(message) for message in messages])
        except OSError as error:
            self._failed(type(error).__name__)
            return False
        self._failing_since = None
        return True

    def _line(self, message: Message) -> bytes:
        at = datetime.fromtimestamp(message.at, UTC).isoformat(timespec="milliseconds")
        head = f"<{NOTICE_OF_SECURITY}>1 {at} {self._host} midslice {os.getpid()} {MESSAGE_ID} - "
        return head.encode("ascii", "replace") + BOM + self._messages.xml(message)

    def _failed(self, reason: str) -> None:
        now = self.now()
        if self._failing_since is None:
            self._failing_since = now
            logger.warning("audit repository not reached", extra={"reason": reason})
        if now - self._failing_since < TOLD_SECONDS:
            return
        place = urlsplit(self.settings.syslog).hostname
        sentence = (
            f"The audit record repository {place} takes no messages ({reason}). They are kept and "
            "sent once it does."
        )
        with self.database.writing() as db:
            key = f"audit {self._failing_since:.0f}"  # once an outage
            notices.post(self.database, db, now, "attention", key, {"sentence": sentence})


def send(settings: Settings, lines: Sequence[bytes]) -> None:
    """Send syslog messages; OSError where the repository cannot be reached or trusted."""
    url = urlsplit(settings.syslog)
    assert url.hostname is not None
    place = (url.hostname, url.port or PORTS[url.scheme])
    if url.scheme == "udp":
        family, kind, protocol, _, address = socket.getaddrinfo(*place, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as datagrams:
            for line in lines:
                datagrams.sendto(line, address)
        return
    context = ssl.create_default_context(cafile=settings.authorities)
    if settings.crl is not None:
        look_up(context, settings.crl)
    if settings.certificate is not None:
        load_key(context, settings.certificate, settings.key, settings.key_password)
    with (
        socket.create_connection(place, timeout=SECONDS) as plain,
        context.wrap_socket(plain, server_hostname=url.hostname) as stream,
    ):
        for line in lines:
            stream.sendall(b"%d %s" % (len(line), line))
        with suppress(OSError):  # who closes without a word has taken it all the same
            stream.unwrap()
