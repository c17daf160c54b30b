"""The Storage and Verification SCP: one port, its gate, one thread a connection."""

import functools
import logging
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from socketserver import BaseServer
from typing import Any, Protocol

from pynetdicom import AE, evt
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from pynetdicom.transport import AssociationServer

from inference.release import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from node.dicom.admission import Admission, AssociationRequest, Refused
from node.dicom.association_log import AssociationLog, AssociationWriter, Entry
from node.dicom.commitment import PUSH_MODEL, CommitmentDialogue, CommitmentService
from node.dicom.connection import tune
from node.dicom.contexts import (
    MAX_PDU_BYTES,
    NOT_STORED,
    accepted_contexts,
    context_name,
)
from node.dicom.handlers import Answer, Keep, answer_store, handle_store
from node.dicom.incoming import Incoming
from node.dicom.messages import StoreRequest
from node.dicom.negotiation import titles
from node.dicom.status import (
    REJECT_CONGESTION,
    REJECT_LIMIT,
    REJECT_NO_REASON,
    Rejection,
    abort_text,
)
from node.dicom.tls import Identity, ServerTls, TlsFailed, identity_of, sentence_of
from node.dicom.upper_layer import TLS_HERE, AcceptedAssociation, ConnectionHandler
from storage.records import Peer, Received

logger = logging.getLogger(__name__)


class InstanceArchive(AssociationLog, Protocol):
    """The archive that instances are handed to."""

    def keep(self, received: Received, peer: Peer, incoming: Path, digest: str) -> object:
        """Take the file over; on disk and indexed when it returns, else an error."""


@dataclass
class Place:
    """An open association and its entry in the log."""

    request: AssociationRequest
    is_for_echo: bool  # beyond a limit, and only for a moment
    entry: Entry


class AssociationGate:
    """Decides on associations and counts them; called from the thread of each.

    A connection counts only once it has asked for an association: health checks and port scans
    take no places. How many may wait to ask has a limit of its own. One calling AE title, and one
    address, gets a share of the places; one address gets a share of those to wait in, and one place
    to wait in whoever holds the others. Beyond the limits a C-ECHO is still answered, one at a time
    of an AE title and of an address.
    """

    def __init__(
        self,
        admission: Admission,
        log: AssociationWriter,
        *,
        most: int,
        waiting: int,
        most_per_peer: int = 0,
    ) -> None:
        self.admission = admission
        self._log = log
        self._most = most
        self._most_per_peer = most_per_peer or max(1, most // 2)
        self._most_waiting = waiting
        self._waiting: dict[int, str] = {}  # address by connection
        self._open: dict[int, Place] = {}
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

    def has_room_to_wait(self, address: str) -> bool:
        """True where one more connection of this address may wait to ask."""
        with self._changed:
            of_address = sum(other == address for other in self._waiting.values())
            most = self._most_waiting * (1 if of_address else 2)
            share = max(1, self._most_waiting // WAITING_SHARES)
            return len(self._waiting) < most and of_address < share

    def connected(self, key: int, address: str) -> None:
        """Note an accepted connection; it has not asked for anything yet."""
        with self._changed:
            self._waiting[key] = address

    def disconnected(self, key: int) -> None:
        """Note that it is closed; it may have asked for an association."""
        with self._changed:
            self._waiting.pop(key, None)

    def enter(self, key: int, request: AssociationRequest) -> Refused | Entry:
        """Decide on its request for an association: its entry in the log, or the rejection."""
        with self._changed:
            self._waiting.pop(key, None)
            refused = self._refused(request)
            is_for_echo = False
            if refused is not None and refused.answer == REJECT_LIMIT and request.is_echo:
                is_for_echo = self._has_place_for_echo(request)
            if refused is None or is_for_echo:
                names = (request.calling_ae, request.called_ae, request.address)
                place = Place(request, is_for_echo, self._log.opened(*names))
                self._open[key] = place
                return place.entry
        self.reject(request, refused)
        return refused

    def is_for_echo(self, key: int) -> bool:
        """True where it has a place beyond the limits."""
        with self._changed:
            return key in self._open and self._open[key].is_for_echo

    def leave(self, key: int, how: str) -> None:
        """Note that its connection is closed, however far it came."""
        with self._changed:
            self._waiting.pop(key, None)
            place = self._open.pop(key, None)
            if place is not None:
                self._log.ended(place.entry, how)
            self._changed.notify_all()

    def _refused(self, request: AssociationRequest) -> Refused | None:
        if request.calling_ae in self.admission.guests:
            return None
        return self.admission.refused(request) or self._too_many(request)

    def _too_many(self, request: AssociationRequest) -> Refused | None:
        taken = [place.request for place in self._open.values() if not place.is_for_echo]
        of_title = sum(other.calling_ae == request.calling_ae for other in taken)
        of_address = sum(other.address == request.address for other in taken)
        if len(taken) >= self._most:
            return Refused(REJECT_LIMIT, "too many associations")
        if of_title >= self._most_per_peer:
            return Refused(REJECT_LIMIT, "too many associations of this AE title")
        if of_address >= self._most_per_peer:
            return Refused(REJECT_LIMIT, "too many associations of this address")
        return None

    def _has_place_for_echo(self, request: AssociationRequest) -> bool:
        beyond = [place.request for place in self._open.values() if place.is_for_echo]
        is_second = any(
            other.calling_ae == request.calling_ae or other.address == request.address
            for other in beyond
        )
        return not is_second and len(beyond) < ECHO_PLACES

    def reject(self, request: AssociationRequest, refused: Refused) -> None:
        """Log that this request was not accepted, and remember it for the page of the peers."""
        extra = {"calling_ae": request.calling_ae, "called_ae": request.called_ae}
        extra |= {"address": request.address, "reason": refused.reason}
        logger.warning("association rejected", extra=extra | {"port": request.port})
        self._log.rejected(request.calling_ae, request.called_ae, request.address, refused.reason)


MOST_NAMED = 8  # of the contexts that were refused, in one line of the log
ECHO_PLACES = 4  # beyond the limits, each for a few seconds
WAITING_SHARES = 4  # an address may hold one of so many shares of the places to wait in
TURNED_AWAY_SECONDS = 10.0  # between two lines of the log on connections that were closed at once
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
    max_associations_per_peer: int = 0  # of one calling AE title, of one address; 0: half
    idle_seconds: float = 900.0  # between two PDUs
    incoming: Path | None = None  # empty: Python's folder for temporary files
    min_free_bytes: int = 0  # below it a data set is not written but refused, A700
    is_direct: bool = True  # C-STORE requests do not pass the library's queues
    request_seconds: float = 5.0  # from the connection to the A-ASSOCIATE-RQ
    pdu_seconds: float = 60.0  # for one PDU, from its first byte to its last
    message_seconds: float = 30.0  # without a word in the middle of a message
    max_waiting: int = 200  # connections that have not asked for an association yet
    tls: ServerTls | None = None  # a second port, for TLS


class Scp:
    """Accepts associations and has each instance kept; Success is answered after it."""

    def __init__(
        self,
        settings: ScpSettings,
        admission: Admission,
        archive: InstanceArchive,
        commitment: CommitmentService | None = None,
    ) -> None:
        self._settings = settings
        self._keep = archive.keep
        self._commitment = commitment
        self._log = AssociationWriter(archive)
        self._gate = AssociationGate(
            admission,
            self._log,
            most=settings.max_associations,
            waiting=settings.max_waiting,
            most_per_peer=settings.max_associations_per_peer,
        )
        self._servers: list[_StorageServer] = []
        self._threads: list[threading.Thread] = []

    def start(self) -> int:
        """Listen; returns the real port. OSError where it is taken, TlsFailed for that of TLS."""
        make = functools.partial(
            _StorageServer, self._settings, self._gate, self._log, self._keep, self._commitment
        )
        self._servers.append(make())
        if self._settings.tls is not None:
            self._servers.append(self._tls_server(make, self._settings.tls))
        self._log.start()
        for server in self._servers:
            target = functools.partial(server.serve_forever, POLL_SECONDS)
            self._threads.append(threading.Thread(target=target, name="storage-scp", daemon=True))
            self._threads[-1].start()
        return int(self._servers[0].server_address[1])

    def _tls_server(
        self, make: "Callable[[ServerTls], _StorageServer]", tls: ServerTls
    ) -> "_StorageServer":
        try:
            return make(tls)
        except OSError as error:
            self._servers[0].server_close()
            raise TlsFailed(sentence_of(error)) from error

    @property
    def tls_port(self) -> int | None:
        """The real port for TLS, once it listens."""
        return int(self._servers[1].server_address[1]) if len(self._servers) > 1 else None

    def admit(self, admission: Admission) -> None:
        """Replace the rules of admission; open associations stay."""
        self._gate.admission = admission

    def stop_listening(self) -> None:
        """Take no further connection; open associations go on."""
        for server, thread in zip(self._servers, self._threads, strict=True):
            if thread.is_alive():
                BaseServer.shutdown(server)  # the library's own also strikes it off a list
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
        if not self._threads:
            return
        accepted = [assoc for server in self._servers for assoc in server.accepted()]
        established = [association for association in accepted if association.is_established]
        for association in accepted:
            association.end_now()
        deadline = time.monotonic() + ABORT_SECONDS
        for association in accepted:
            if association.dul.is_alive():  # not before the handshake of TLS
                association.dul.join(max(0.0, deadline - time.monotonic()))
            association.hang_up()  # a peer that takes nothing any more, not even the abort
        for association in established:
            association.join(max(POLL_SECONDS, deadline - time.monotonic()))
        self._log.close()


class _Accepted(AcceptedAssociation):
    """An association that this node accepts; it tidies up after itself, however it ends."""

    server: "_StorageServer"

    def __init__(
        self, server: "_StorageServer", connection: socket.socket, address: str, port: int
    ) -> None:
        self._gate = server.gate
        self.address, self.port = address, port
        self.entry: Entry | None = None
        self.instances = 0
        settings = server.settings
        super().__init__(
            server,
            connection,
            seconds=settings.request_seconds,
            folder=settings.incoming or Path(tempfile.gettempdir()),
            min_free_bytes=settings.min_free_bytes,
            answer=self.answer if settings.is_direct else None,
            message_seconds=settings.message_seconds,
        )
        self.acse_timeout = settings.request_seconds
        self.network_timeout = settings.idle_seconds
        self.identity: Identity | None = None
        self._gate.connected(id(self), address)

    def run_reactor(self) -> None:
        """Serve the association to its end."""
        try:
            if self._is_secured():
                super().run_reactor()
            else:
                self.provider.close()  # its own thread, which never ran, would do so
        finally:
            self.hang_up()
            self.kill()
            self.receiver.close()
            self._note_unread_request()
            self._note_end()
            self._gate.leave(id(self), self._ending())

    def _is_secured(self) -> bool:
        """Agree on TLS where it is asked for; False where the peer does not, which is noted."""
        if self.server.contexts_of_tls is None:
            return True
        seconds = self.server.settings.request_seconds
        try:
            context = self.server.contexts_of_tls.get()
            self.identity = identity_of(self.connection.accept_tls(context, seconds))
        except TlsFailed as error:
            self.provider.problem = str(error)
            return False
        return True

    def handle_request(self, event: evt.Event) -> None:
        """Accept or reject: PS3.8 7.1. Whatever fails here must not let anybody in."""
        answer: Rejection | None = REJECT_CONGESTION
        try:
            entered = self._gate.enter(id(self), self._request())
            answer = entered.answer if isinstance(entered, Refused) else None
            self.entry = None if isinstance(entered, Refused) else entered
        finally:
            if answer is not None:
                self.acse.send_reject(*answer)
                self.kill()
        pdu_seconds = self.server.settings.pdu_seconds
        self.connection.seconds = self.acse_timeout = pdu_seconds
        if self._gate.is_for_echo(id(self)):
            self.network_timeout = self.server.settings.request_seconds
        if answer is None and self.server.commitment is not None:
            CommitmentDialogue.offer(self, self.server.commitment)

    def answer(self, request: StoreRequest, incoming: Incoming) -> Answer:
        """Answer a C-STORE request whose data set has come."""
        self.instances += 1
        return answer_store(request, incoming, self.keep, self.peer)

    def keep(self, received: Received, peer: Peer, incoming: Path, digest: str) -> object:
        """Keep an instance; its row names the association, which is in the log by then."""
        return self.server.keep(received, self._peer_of_row, incoming, digest)

    def handle_close(self, event: evt.Event) -> None:
        """The connection is gone: one that never asked for anything makes room for the next."""
        self._gate.disconnected(id(self))

    @functools.cached_property
    def peer(self) -> Peer:
        """The peer that brings what arrives here, once it is let in."""
        request = self._request()
        return Peer(request.calling_ae, request.called_ae)

    @functools.cached_property
    def _peer_of_row(self) -> Peer:
        """The same with the row of its association; Busy where that cannot be written."""
        assert self.entry is not None
        return replace(self.peer, association=self.server.log.number(self.entry))

    def contexts_refused(self) -> list[str]:
        """The presentation contexts that were not accepted, by SOP Class and transfer syntaxes."""
        request = self.requestor.primitive
        assert request is not None
        refused = {context.context_id for context in self.rejected_contexts}
        asked = request.presentation_context_definition_list
        return [context_name(context) for context in asked if context.context_id in refused]

    def end_now(self) -> None:
        """Abort it, or close the connection that never became one."""
        if self.is_established:
            self.abort(block=False)
        else:
            self.hang_up()

    def _request(self) -> AssociationRequest:
        calling_ae, called_ae = titles(self.provider.request)
        request = self.requestor.primitive
        contexts = request.presentation_context_definition_list if request is not None else []
        syntaxes = {str(context.abstract_syntax) for context in contexts}
        is_report = PUSH_MODEL in syntaxes and syntaxes <= NOT_STORED
        place = (calling_ae, called_ae, self.address, self.port)
        return AssociationRequest(
            *place,
            is_echo=syntaxes == {Verification},
            is_tls=self.connection.secured is not None,
            identity=self.identity,
            is_report=is_report,
        )

    def _note_unread_request(self) -> None:
        problem = self.provider.problem
        if problem:
            is_of_tls = self.server.contexts_of_tls is not None and not self.provider.request
            what = "no TLS connection" if is_of_tls else "request not understood"
            reason = problem if problem == TLS_HERE else f"{what}: {problem}"
            refused = Refused(REJECT_NO_REASON, reason)
            self._gate.reject(self._request(), refused)

    def _note_end(self) -> None:
        if self.entry is None:
            return
        how, (by, reason) = self._ending(), self._end()
        request = self._request()
        extra: dict[str, object] = {"calling_ae": request.calling_ae}
        extra |= {"called_ae": request.called_ae, "address": self.address}
        extra |= {"how": how, "by": by, "reason": reason}
        extra |= {"port": self.port, "instances": self.instances}
        if how == "released":
            logger.info("association ended", extra=extra)
        else:
            logger.warning("association ended", extra=extra)

    def _ending(self) -> str:
        if self.is_released:
            return "released"
        return "dropped" if self.connection.is_lost else "aborted"

    def _end(self) -> tuple[str, str]:
        """The side that ended the association, and its reason."""
        abort = self.provider.abort
        message_seconds = self.server.settings.message_seconds
        if self.is_released:
            return "peer", ""
        if self.connection.was_silent or self.provider.is_silent:
            return "node", f"nothing came for {message_seconds:g} s in the middle of a message"
        if abort is None:
            return "peer", "the connection broke"
        if abort.is_idle:
            return abort.by, f"nothing came for {self.network_timeout:g} s"
        if abort.by == "node" and abort.source == 0:
            return "node", "the node stops"
        if abort.by == "node":
            return "node", "the peer sent something that is not a DICOM message"
        return abort.by, abort_text(abort.source, abort.reason)


class _Handler(ConnectionHandler):
    """Turns a connection into an association that has not been asked for yet."""

    server: "_StorageServer"

    def associated(self) -> _Accepted:
        """Make the association of this connection, with its contexts and handlers."""
        server = self.server
        assert isinstance(self.request, socket.socket)
        assoc = _Accepted(server, self.request, str(self.client_address[0]), self.client_address[1])
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
        assoc.bind(evt.EVT_C_STORE, _store, [assoc])
        return assoc


class _StorageServer(AssociationServer):
    """The listening socket; the time that a connection takes here is the next one's wait."""

    request_queue_size = BACKLOG

    def __init__(
        self,
        settings: ScpSettings,
        gate: AssociationGate,
        log: AssociationWriter,
        keep: Keep,
        commitment: CommitmentService | None,
        tls: ServerTls | None = None,
    ) -> None:
        self.contexts_of_tls = None if tls is None else tls.contexts()
        self.settings = settings
        self.gate = gate
        self.log = log
        self.keep = keep
        self.commitment = commitment
        self._turned_away, self._told_at = 0, -TURNED_AWAY_SECONDS
        super().__init__(
            _application_entity(settings),
            (settings.host, settings.port if tls is None else tls.port),
            settings.ae_title,
            accepted_contexts(),
            request_handler=_Handler,
        )

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        """Take a connection; where there is no descriptor for it, breathe before the next try."""
        try:
            connection, address = super().get_request()
        except OSError:
            time.sleep(POLL_SECONDS)
            raise
        tune(connection)
        return connection, address

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Close a connection at once where too many wait already; say so now and then."""
        address = str(client_address[0])
        if self.gate.has_room_to_wait(address):
            return True
        self._turned_away += 1
        now = time.monotonic()
        if now - self._told_at >= TURNED_AWAY_SECONDS:
            extra = {"address": address, "count": self._turned_away}
            logger.warning("connections turned away", extra=extra)
            self._turned_away, self._told_at = 0, now
        return False

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


def _store(event: evt.Event, assoc: _Accepted) -> object:
    assoc.instances += 1
    return handle_store(event, assoc.keep, assoc.peer)


def _log_accepted(event: evt.Event, assoc: _Accepted) -> None:
    peer = assoc.peer
    extra: dict[str, object] = {"calling_ae": peer.calling_ae, "called_ae": peer.called_ae}
    extra |= {"address": assoc.address, "contexts": len(assoc.accepted_contexts)}
    extra |= {"contexts_refused": len(assoc.rejected_contexts), "port": assoc.port}
    secured = assoc.connection.secured
    extra |= {"tls": secured.version() if secured is not None else ""}
    extra |= {"certificate": str(assoc.identity or "")}
    refused = assoc.contexts_refused()[:MOST_NAMED]
    logger.info("association accepted", extra=extra | {"refused": refused})
