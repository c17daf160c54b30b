"""The Storage and Verification SCP: one port, its gate, one thread a connection."""

import functools
import ipaddress
import logging
import socket
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from socketserver import BaseServer
from typing import Any, Protocol

from pynetdicom import AE, evt
from pynetdicom.transport import AssociationServer

from node.dicom.contexts import (
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
    MAX_PDU_BYTES,
    accepted_contexts,
)
from node.dicom.handlers import Keep, handle_store
from node.dicom.status import (
    REJECT_CALLED,
    REJECT_CALLING,
    REJECT_CONGESTION,
    REJECT_LIMIT,
    REJECT_NO_REASON,
    Rejection,
)
from node.dicom.upper_layer import AcceptedAssociation, ConnectionHandler, tune
from storage.records import Peer, Received

logger = logging.getLogger(__name__)


class AssociationLog(Protocol):
    """The log of associations."""

    def associated(self, calling_ae: str, called_ae: str, address: str) -> int:
        """Note an association that was accepted; returns the number that ends it."""

    def dissociated(self, association_id: int, how: str) -> None:
        """Note how it ended: released, aborted or dropped."""

    def rejected(self, calling_ae: str, called_ae: str, address: str, reason: str) -> None:
        """Note an association that was rejected."""


class InstanceArchive(AssociationLog, Protocol):
    """The archive that instances are handed to."""

    def keep(self, received: Received, peer: Peer, incoming: Path) -> object:
        """Take the file over; on disk and indexed when it returns, else an error."""


@dataclass(frozen=True)
class Admission:
    """The rules by which associations are accepted; an empty one lets all in."""

    called_ae_titles: frozenset[str] = frozenset()
    calling_ae_titles: frozenset[str] = frozenset()
    networks: tuple[str, ...] = ()
    guests: frozenset[str] = frozenset()  # calling AE titles that are let in whatever else holds

    def __post_init__(self) -> None:
        self.parsed_networks()  # a wrong one is found where it is given, not at the first peer

    def parsed_networks(self) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
        """The networks; ValueError names one that is none."""
        return tuple(ipaddress.ip_network(network, strict=False) for network in self.networks)


@dataclass(frozen=True)
class AssociationRequest:
    """The names and the address in a request for an association."""

    calling_ae: str
    called_ae: str
    address: str


@dataclass(frozen=True)
class Refused:
    """The rejection of an association: the answer to the peer and the reason in the log."""

    answer: Rejection
    reason: str


class AssociationGate:
    """Decides on associations and counts them; called from the thread of each.

    A connection counts only once it has asked for an association: health checks and port scans
    take no places. How many may wait to ask has a limit of its own.
    """

    def __init__(self, admission: Admission, log: AssociationLog, *, most: int, waiting: int):
        self.admission = admission
        self._log = log
        self._most = most
        self._most_waiting = waiting
        self._waiting: set[int] = set()
        self._open: dict[int, int | None] = {}
        self._changed = threading.Condition()

    @property
    def open(self) -> int:
        """The number of open associations."""
        with self._changed:
            return len(self._open)

    def wait_until_empty(self, seconds: float) -> bool:
        """True as soon as no association is open, False after so many seconds."""
        deadline = time.monotonic() + seconds
        with self._changed:
            return self._changed.wait_for(lambda: not self._open, deadline - time.monotonic())

    def has_room_to_wait(self) -> bool:
        """True where one more connection may wait to ask."""
        with self._changed:
            return len(self._waiting) < self._most_waiting

    def connected(self, key: int) -> None:
        """Note an accepted connection; it has not asked for anything yet."""
        with self._changed:
            self._waiting.add(key)

    def disconnected(self, key: int) -> None:
        """Note that it is closed; it may have asked for an association."""
        with self._changed:
            self._waiting.discard(key)

    def enter(self, key: int, request: AssociationRequest) -> Refused | int:
        """Decide on its request for an association: its number, or the rejection."""
        with self._changed:
            self._waiting.discard(key)
            refused = self._refused(request)
            if refused is None:
                self._open[key] = None
        if refused is not None:
            self._rejected(request, refused)
            return refused
        number = self._log.associated(request.calling_ae, request.called_ae, request.address)
        with self._changed:
            self._open[key] = number
        return number

    def leave(self, key: int, how: str) -> None:
        """Note that its connection is closed, however far it came."""
        with self._changed:
            self._waiting.discard(key)
            number = self._open.get(key)
        try:
            if number is not None:
                self._log.dissociated(number, how)
        finally:
            with self._changed:
                self._open.pop(key, None)
                self._changed.notify_all()

    def _refused(self, request: AssociationRequest) -> Refused | None:
        admission = self.admission
        if request.calling_ae in admission.guests:
            return None
        if not _is_within(request.address, admission):
            return Refused(REJECT_NO_REASON, "network not allowed")
        if admission.called_ae_titles and request.called_ae not in admission.called_ae_titles:
            return Refused(REJECT_CALLED, "called AE title not recognised")
        if admission.calling_ae_titles and request.calling_ae not in admission.calling_ae_titles:
            return Refused(REJECT_CALLING, "calling AE title not recognised")
        if len(self._open) >= self._most:
            return Refused(REJECT_LIMIT, "too many associations")
        return None

    def _rejected(self, request: AssociationRequest, refused: Refused) -> None:
        extra = {"calling_ae": request.calling_ae, "called_ae": request.called_ae}
        logger.warning(
            "association rejected",
            extra=extra | {"address": request.address, "reason": refused.reason},
        )
        self._log.rejected(request.calling_ae, request.called_ae, request.address, refused.reason)


def _is_within(address: str, admission: Admission) -> bool:
    if not admission.networks:
        return True
    peer = ipaddress.ip_address(address)
    mapped = peer.ipv4_mapped if isinstance(peer, ipaddress.IPv6Address) else None
    return any((mapped or peer) in network for network in admission.parsed_networks())


POLL_SECONDS = 0.1
BACKLOG = 128
ABORT_SECONDS = 5.0


@dataclass(frozen=True)
class ScpSettings:
    """The settings of the SCP."""

    ae_title: str
    host: str
    port: int  # 0: any free one
    max_associations: int = 50
    idle_seconds: float = 900.0  # between two PDUs
    incoming: Path | None = None  # empty: Python's folder for temporary files
    min_free_bytes: int = 0  # below it a data set is not written but refused, A700
    request_seconds: float = 5.0  # from the connection to the A-ASSOCIATE-RQ
    pdu_seconds: float = 60.0  # for one PDU, from its first byte to its last
    max_waiting: int = 200  # connections that have not asked for an association yet


class Scp:
    """Accepts associations and has each instance kept; Success is answered after it."""

    def __init__(
        self, settings: ScpSettings, admission: Admission, archive: InstanceArchive
    ) -> None:
        self._settings = settings
        self._keep = archive.keep
        self._gate = AssociationGate(
            admission, archive, most=settings.max_associations, waiting=settings.max_waiting
        )
        self._server: _StorageServer | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> int:
        """Listen; returns the real port. OSError where it is taken."""
        self._server = _StorageServer(self._settings, self._gate, self._keep)
        self._thread = threading.Thread(
            target=functools.partial(self._server.serve_forever, POLL_SECONDS),
            name="storage-scp",
            daemon=True,
        )
        self._thread.start()
        return int(self._server.server_address[1])

    def admit(self, admission: Admission) -> None:
        """Replace the rules of admission; open associations stay."""
        self._gate.admission = admission

    def stop_listening(self) -> None:
        """Take no further connection; open associations go on."""
        server, thread = self._server, self._thread
        if server is None or thread is None or not thread.is_alive():
            return
        BaseServer.shutdown(server)  # the library's own also strikes it off a list of its own
        server.server_close()
        thread.join()

    def open_associations(self) -> int:
        """The number of open associations."""
        return self._gate.open

    def wait(self, seconds: float) -> bool:
        """True as soon as no association is open, False after so many seconds."""
        return self._gate.wait_until_empty(seconds)

    def abort(self) -> None:
        """Listen no more and abort every association; none of their threads is left.

        A connection that has not asked for an association is closed; its thread, which holds
        nothing, ends by itself within `request_seconds`.
        """
        self.stop_listening()
        if self._server is None:
            return
        accepted = self._server.accepted()
        established = [association for association in accepted if association.is_established]
        for association in accepted:
            association.end_now()
        deadline = time.monotonic() + ABORT_SECONDS
        for association in accepted:
            association.dul.join(max(0.0, deadline - time.monotonic()))
            association.hang_up()  # a peer that takes nothing any more, not even the abort
        for association in established:
            association.join(max(POLL_SECONDS, deadline - time.monotonic()))


class _Accepted(AcceptedAssociation):
    """An association that this node accepts; it tidies up after itself, however it ends."""

    server: "_StorageServer"

    def __init__(self, server: "_StorageServer", connection: socket.socket, address: str) -> None:
        self._gate = server.gate
        self.address = address
        self.number: int | None = None
        settings = server.settings
        super().__init__(
            server,
            connection,
            seconds=settings.request_seconds,
            folder=settings.incoming or Path(tempfile.gettempdir()),
            min_free_bytes=settings.min_free_bytes,
        )
        self.acse_timeout = settings.request_seconds
        self.network_timeout = settings.idle_seconds
        self._gate.connected(id(self))

    def run_reactor(self) -> None:
        """Serve the association to its end."""
        try:
            super().run_reactor()
        finally:
            self.hang_up()
            self.kill()
            self.receiver.discard()
            self._gate.leave(id(self), self._ending())

    def handle_request(self, event: evt.Event) -> None:
        """Accept or reject: PS3.8 7.1. Whatever fails here must not let anybody in."""
        answer: Rejection | None = REJECT_CONGESTION
        try:
            entered = self._gate.enter(id(self), self._request())
            answer = entered.answer if isinstance(entered, Refused) else None
            self.number = None if isinstance(entered, Refused) else entered
        finally:
            if answer is not None:
                self.acse.send_reject(*answer)
                self.kill()
        pdu_seconds = self.server.settings.pdu_seconds
        self.connection.seconds = self.acse_timeout = pdu_seconds

    def handle_close(self, event: evt.Event) -> None:
        """The connection is gone: one that never asked for anything makes room for the next."""
        self._gate.disconnected(id(self))

    def peer(self) -> Peer:
        """The peer that brings what arrives here."""
        request = self._request()
        return Peer(request.calling_ae, request.called_ae, self.number)

    def end_now(self) -> None:
        """Abort it, or close the connection that never became one."""
        if self.is_established:
            self.abort(block=False)
        else:
            self.hang_up()

    def _request(self) -> AssociationRequest:
        request = self.requestor.primitive
        assert request is not None
        return AssociationRequest(
            str(request.calling_ae_title).strip(),
            str(request.called_ae_title).strip(),
            self.address,
        )

    def _ending(self) -> str:
        if self.is_released:
            return "released"
        return "dropped" if self.connection.is_lost else "aborted"


class _Handler(ConnectionHandler):
    """Turns a connection into an association that has not been asked for yet."""

    server: "_StorageServer"

    def associated(self) -> _Accepted:
        """Make the association of this connection, with its contexts and handlers."""
        server = self.server
        assert isinstance(self.request, socket.socket)
        assoc = _Accepted(server, self.request, str(self.client_address[0]))
        assoc.name = f"association-{self.client_address[1]}"
        assoc.acceptor.maximum_length = MAX_PDU_BYTES
        assoc.acceptor.ae_title = server.ae_title
        assoc.acceptor.address_info = self.local
        assoc.acceptor.implementation_class_uid = server.ae.implementation_class_uid
        assoc.acceptor.implementation_version_name = server.ae.implementation_version_name
        assoc.acceptor.supported_contexts = server.contexts
        assoc.requestor.address_info = self.remote
        assoc.bind(evt.EVT_REQUESTED, assoc.handle_request)
        assoc.bind(evt.EVT_CONN_CLOSE, assoc.handle_close)
        assoc.bind(evt.EVT_ESTABLISHED, _log_accepted, [assoc])
        assoc.bind(evt.EVT_C_STORE, _store, [server.keep, assoc])
        return assoc


class _StorageServer(AssociationServer):
    """The listening socket; the time that a connection takes here is the next one's wait."""

    request_queue_size = BACKLOG

    def __init__(self, settings: ScpSettings, gate: AssociationGate, keep: Keep) -> None:
        self.settings = settings
        self.gate = gate
        self.keep = keep
        super().__init__(
            _application_entity(settings),
            (settings.host, settings.port),
            settings.ae_title,
            accepted_contexts(),
            request_handler=_Handler,
        )

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        """Take a connection."""
        connection, address = super().get_request()
        tune(connection)
        return connection, address

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Close a connection at once where too many wait already."""
        return self.gate.has_room_to_wait()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what the library would print; the connection is closed."""
        error = sys.exc_info()[1]
        extra = {"address": str(client_address[0]), "error": type(error).__name__}
        logger.error("connection failed", extra=extra, exc_info=error)

    def accepted(self) -> list[_Accepted]:
        """The associations of this server whose threads run."""
        return [
            thread
            for thread in threading.enumerate()
            if isinstance(thread, _Accepted) and thread.server is self
        ]


def _application_entity(settings: ScpSettings) -> AE:
    entity = AE(settings.ae_title)
    entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    entity.maximum_pdu_size = MAX_PDU_BYTES
    # The gate counts: the library would count connections that never ask for an association.
    entity.maximum_associations = settings.max_associations + settings.max_waiting + BACKLOG
    entity.network_timeout = settings.idle_seconds
    entity.dimse_timeout = settings.pdu_seconds
    return entity


def _store(event: evt.Event, keep: Keep, assoc: _Accepted) -> object:
    return handle_store(event, keep, assoc.peer())


def _log_accepted(event: evt.Event, assoc: _Accepted) -> None:
    peer = assoc.peer()
    extra: dict[str, object] = {"calling_ae": peer.calling_ae, "called_ae": peer.called_ae}
    extra |= {"address": assoc.address, "contexts": len(assoc.accepted_contexts)}
    extra |= {"contexts_refused": len(assoc.rejected_contexts)}
    logger.info("association accepted", extra=extra)
