"""The upper layer of pynetdicom: deadlines, woken threads, data sets streamed from and to disk.

All that the node uses of pynetdicom beyond its public interface stands in this file.

Of an open association the thread of the upper layer takes C-STORE requests itself and answers
them (`Receiver.take`): whole PDUs from one block of memory, fragments straight to disk. All else,
and any request that is not a usual one, goes the library's own way.
"""

import contextlib
import logging
import queue
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pynetdicom import AE, _config
from pynetdicom._globals import MODE_ACCEPTOR
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE, DimsePrimitiveType
from pynetdicom.dul import DULServiceProvider
from pynetdicom.fsm import InvalidEventError
from pynetdicom.pdu import A_ABORT_RQ
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.transport import (
    AddressInformation,
    AssociationServer,
    RequestHandler,
)

from node.dicom.connection import LARGEST_PDU_BYTES
from node.dicom.contexts import NOT_STORED
from node.dicom.direct import AnswerStore, DirectRequests, IncomingFiles
from node.dicom.incoming import Incoming, affected_instance, mend
from node.dicom.messages import (
    COMMAND,
    LONGEST_COMMAND_BYTES,
    PDV_HEAD_BYTES,
    StoreRequest,
    command_pdus,
    fragments,
    store_response,
)
from node.dicom.negotiation import ACCEPTED, DATA, REQUEST, readable, titles, with_ids
from node.dicom.tls import ClientTls, speaks_tls
from node.dicom.transport import CLOSED, CLOSING, ESTABLISHED, POLL_SECONDS, PromptSocket, poll_of

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from pynetdicom.dimse import _QueueItem
    from pynetdicom.pdu import _PDUType
    from pynetdicom.pdu_primitives import _PDUPrimitiveType

# What another release of pynetdicom may change without notice: where it stands, its name, and
# the parameters where this file overrides or calls it. A test compares this with the library.
INTERNALS = (
    ("pynetdicom._config", "LOG_HANDLER_LEVEL", None),
    ("pynetdicom._config", "VALIDATORS", None),
    ("pynetdicom._globals", "MODE_ACCEPTOR", None),
    ("pynetdicom.ae.ApplicationEntity", "_create_socket", "assoc, address, tls_args"),
    ("pynetdicom.association.Association", "_accepted_cx", None),
    ("pynetdicom.association.Association", "_reactor_checkpoint", None),
    ("pynetdicom.association.Association", "_run_reactor", ""),
    ("pynetdicom.association.Association", "_serve_request", "msg, context_id"),
    ("pynetdicom.association.Association", "_server", None),
    ("pynetdicom.association.Association", "dimse", None),
    ("pynetdicom.association.Association", "dul", None),
    ("pynetdicom.association.Association", "run_reactor", ""),
    ("pynetdicom.dimse", "_QueueItem", None),
    ("pynetdicom.dimse.DIMSEServiceProvider", "get_msg", "block"),
    ("pynetdicom.dimse.DIMSEServiceProvider", "message", None),
    ("pynetdicom.dimse.DIMSEServiceProvider", "msg_queue", None),
    ("pynetdicom.dimse.DIMSEServiceProvider", "receive_primitive", "primitive"),
    ("pynetdicom.pdu", "_PDUType", None),
    ("pynetdicom.dul.DULServiceProvider", "_decode_pdu", "bytestream"),
    ("pynetdicom.dul.DULServiceProvider", "_is_transport_event", ""),
    ("pynetdicom.dul.DULServiceProvider", "_read_pdu_data", ""),
    ("pynetdicom.dul.DULServiceProvider", "_run_loop_delay", None),
    ("pynetdicom.dul.DULServiceProvider", "_send", "pdu"),
    ("pynetdicom.dul.DULServiceProvider", "event_queue", None),
    ("pynetdicom.dul.DULServiceProvider", "idle_timer_expired", ""),
    ("pynetdicom.dul.DULServiceProvider", "run_reactor", ""),
    ("pynetdicom.dul.DULServiceProvider", "send_pdu", "primitive"),
    ("pynetdicom.dul.DULServiceProvider", "state_machine", None),
    ("pynetdicom.dul.DULServiceProvider", "to_provider_queue", None),
    ("pynetdicom.dul.DULServiceProvider", "to_user_queue", None),
    ("pynetdicom.fsm", "InvalidEventError", None),
    ("pynetdicom.pdu_primitives", "_PDUPrimitiveType", None),
    ("pynetdicom.transport.AssociationSocket", "_shutdown_socket", ""),
    ("pynetdicom.transport.AssociationSocket", "connect", "primitive"),
    ("pynetdicom.transport.AssociationSocket", "ready", None),
    ("pynetdicom.transport.AssociationSocket", "recv", "nr_bytes"),
    ("pynetdicom.transport.AssociationSocket", "send", "bytestream"),
    ("pynetdicom.transport.RequestHandler", "_create_association", ""),
)

# The library's own handlers for each PDU and message only write debug lines; they cost time.
_config.LOG_HANDLER_LEVEL = "none"
# A request with 128 contexts has 2,000 UIDs to look at; the library makes two more of each.
_config.VALIDATORS["UI"] = lambda uid: (0 < len(uid) <= LONGEST_UID, f"1-{LONGEST_UID} characters")

LONGEST_UID = 64
NAP_SECONDS = 0.05  # timers are looked at this often; everything else wakes by itself
ENDING_SECONDS = 0.01  # for a thread that most often is just ending
NO_TIMEOUT_SECONDS = 3600.0  # where none was set: every wait has an end
WAKE = (None, None)  # in the queue of DIMSE messages: there is none, but look around

TLS_HERE = "TLS at the port without it"

INVALID_PDU = "Evt19"  # PS3.8 Table 9-3: the state machine answers it with an abort
ABORT, ABORT_BYTES = 0x07, 10  # type and length of an A-ABORT: PS3.8 9.3.8
ABORTS = (b"\0\0", *(bytes([2, reason]) for reason in (0, 1, 2, 4, 5, 6)))  # source and reason

# Of a message that is no C-STORE: storage commitment names 30,000 instances in it.
LONGEST_OTHER_DATA_SET_BYTES = 4 << 20

# What the library and pydicom raise on bytes that are no DIMSE message.
MALFORMED = (
    ArithmeticError,
    AttributeError,
    BytesLengthException,
    EOFError,
    InvalidDicomError,
    LookupError,
    NotImplementedError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
)


class Transport(PromptSocket):
    """A prompt socket that the library closes as we do."""

    def _shutdown_socket(self) -> None:
        # The library's own leaves the socket open where the peer has reset the connection.
        self.hang_up()


# Both of the library's loops take a nap of a millisecond and look again: 40 idle associations then
# take a whole core. Here the nap of the upper layer's thread ends with what it waits for, and the
# association's thread waits on its queue of messages.


class _Bell(queue.Queue[Any]):
    """The queue to the association's thread, which also rings where that thread waits."""

    def __init__(self, assoc: Association) -> None:
        super().__init__()
        self._assoc = assoc

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        super().put(item, block, timeout)
        self._assoc.dimse.msg_queue.put(WAKE)


class Abort(NamedTuple):
    """An A-ABORT, and which side sent it."""

    by: Literal["peer", "node"]
    source: int
    reason: int
    is_idle: bool = False  # for want of anything that the peer sent


class NegotiatingProvider(DULServiceProvider):
    """The library's upper layer service provider, for requests and answers as peers write them."""

    def __init__(self, assoc: Association) -> None:
        super().__init__(assoc)
        self.request = b""  # of the peer, as it came
        self.problem = ""  # of a request or an answer that cannot be read
        self.abort: Abort | None = None  # the first one on this connection
        self._ids_of_peer: Mapping[int, int] = {}
        self._ids_of_library: Mapping[int, int] = {}

    def _decode_pdu(self, bytestream: bytearray) -> "tuple[_PDUType, str]":
        if bytestream[0] == ABORT and len(bytestream) >= ABORT_BYTES:
            self.abort = self.abort or Abort("peer", bytestream[8], bytestream[9])
            if bytestream[8:10] not in ABORTS:  # the library's thread ends of any other
                bytestream = bytestream[:8] + bytes(2)
        if bytestream[0] == DATA and self._ids_of_library:
            bytestream = bytearray(with_ids(bytes(bytestream), self._ids_of_library))
        if bytestream[0] == DATA:
            fragments(memoryview(bytestream))  # the library takes what is cut short for whole
        if bytestream[0] not in (REQUEST, ACCEPTED):
            return super()._decode_pdu(bytestream)
        self.request = pdu = bytes(bytestream)
        try:
            negotiation = readable(pdu)
            self._ids_of_peer = negotiation.ids
            self._ids_of_library = {theirs: own for own, theirs in negotiation.ids.items()}
            decoded, event = super()._decode_pdu(bytearray(negotiation.pdu))
            # Which the state machine does where no error is expected.
            _check_contexts(decoded.to_primitive())
        except MALFORMED as error:
            self.problem = str(error) or type(error).__name__
            raise
        if negotiation.version != 1:  # the library rejects it without a word to us
            self.problem = f"protocol version {negotiation.version}"
        return decoded, event

    def _send(self, pdu: "_PDUType") -> None:
        if isinstance(pdu, A_ABORT_RQ) and self.abort is None:
            is_idle = self.idle_timer_expired()
            self.abort = Abort("node", pdu.source or 0, pdu.reason_diagnostic or 0, is_idle)
        if not self._ids_of_peer or self.socket is None:
            super()._send(pdu)
        else:
            self.socket.send(self.with_ids_of_peer(pdu.encode()))

    def with_ids_of_peer(self, pdu: bytes) -> bytes:
        """A PDU of ours with the context ids that the peer has chosen."""
        return with_ids(pdu, self._ids_of_peer) if self._ids_of_peer else pdu


def _check_contexts(negotiation: object) -> None:
    """ValueError for a context without abstract syntax: the library raises where nobody answers."""
    for context in getattr(negotiation, "presentation_context_definition_list", None) or ():
        if context.abstract_syntax is None:
            raise ValueError("a presentation context has no abstract syntax")


class WakingProvider(NegotiatingProvider):
    """The upper layer service provider, asleep until it has something to do."""

    def __init__(self, assoc: Association) -> None:
        self._ring, self._rung = socket.socketpair()
        self._ring.setblocking(False)
        self._rung.setblocking(False)
        super().__init__(assoc)

    def run_reactor(self) -> None:
        """Run the state machine to its end."""
        try:
            super().run_reactor()
        except InvalidEventError:
            # The association's own thread may answer a release in the moment in which this one
            # aborts for what lies behind it: PS3.8 has no transition for that. That thread ends
            # the connection as soon as this one has ended.
            if self.state_machine.current_state != CLOSING:
                raise
        finally:
            self.close()

    def close(self) -> None:
        """Give its descriptors back, also where its thread never ran."""
        self._ring.close()
        self._rung.close()

    def send_pdu(self, primitive: "_PDUPrimitiveType") -> None:
        """Queue a primitive for the peer and wake the thread that sends it."""
        super().send_pdu(primitive)
        self.wake()

    def stop_dul(self) -> bool:
        """Stop the thread where it has ended the association; True where it has."""
        if threading.current_thread() is not self:
            self.join(ENDING_SECONDS)  # the library looks again after 10 ms
        return super().stop_dul()

    def wake(self) -> None:
        """End the nap of the thread."""
        with contextlib.suppress(OSError):  # full: it is awake; closed: it has ended
            self._ring.send(b"!")

    @property
    def _run_loop_delay(self) -> float:
        """The library sleeps as long as this says where it found nothing to do."""
        if threading.current_thread() is not self:
            return 0.001
        self.rest()
        return 0.0

    @_run_loop_delay.setter
    def _run_loop_delay(self, seconds: float) -> None:
        pass  # the library's own is of no interest

    @property
    def _is_busy(self) -> bool:
        """True while what the peer sends is to wait in the socket."""
        return False

    def rest(self) -> None:
        """Sleep until the peer has sent something, or somebody has rung, or timers are due."""
        poll = poll_of(self._rung)
        is_busy = self._is_busy
        is_holding = isinstance(self.socket, PromptSocket) and self.socket.is_holding
        if is_holding and not is_busy:
            return
        is_open = isinstance(self.socket, PromptSocket) and self.socket.opened_at is not None
        transport = self.socket.socket if self.socket is not None and is_open else None
        if transport is not None and transport.fileno() >= 0 and not is_busy:
            poll.register(transport, select.POLLIN)
        poll.poll(NAP_SECONDS * 1000)
        with contextlib.suppress(OSError):  # nobody has rung
            self._rung.recv(4096)


class Provider(WakingProvider):
    """The upper layer service provider of an association that this node accepts."""

    def __init__(self, assoc: Association, message_seconds: float = NO_TIMEOUT_SECONDS) -> None:
        self._message_seconds = message_seconds
        super().__init__(assoc)
        self.daemon = True  # the association's own thread sees to a clean end
        self.to_user_queue = _Bell(assoc)

    def _read_pdu_data(self) -> None:
        """Read a PDU, or while an association is open all C-STORE requests that come."""
        receiver, transport = self.assoc.dimse, self.socket
        if not self.request and not self.problem and self._meets_tls():
            self.problem = TLS_HERE
        is_open = self.state_machine.current_state == ESTABLISHED and not self._ids_of_peer
        if not (is_open and isinstance(receiver, Receiver) and receiver.is_direct):
            super()._read_pdu_data()
            return
        assert isinstance(transport, PromptSocket)
        until = time.monotonic() + NAP_SECONDS  # then the timers are looked at
        while self._is_undisturbed() and transport.has_data(NAP_SECONDS):
            try:
                pdu = transport.whole_pdu()
            except OSError:
                self.event_queue.put(CLOSED)
                return
            if pdu is None or pdu[0] != DATA:
                super()._read_pdu_data()
                return
            transport.blocks.skip(len(pdu))
            receiver.take(pdu)
            if time.monotonic() > until:
                return

    def _meets_tls(self) -> bool:
        transport = self.socket.socket if self.socket is not None else None
        return transport is not None and speaks_tls(transport)

    @property
    def is_silent(self) -> bool:
        """True where the peer has begun a message and says no more."""
        receiver = self.assoc.dimse
        return isinstance(receiver, Receiver) and receiver.waits() > self._message_seconds

    def idle_timer_expired(self) -> bool:
        """True where the association is to end because nothing comes."""
        return super().idle_timer_expired() or self.is_silent

    @property
    def _is_busy(self) -> bool:
        """True while a request waits for its answer: what comes after it waits in the socket."""
        receiver = self.assoc.dimse
        is_open = self.state_machine.current_state == ESTABLISHED
        return is_open and isinstance(receiver, Receiver) and receiver.is_busy

    def _is_transport_event(self) -> bool:
        return not self._is_busy and super()._is_transport_event()

    def _is_undisturbed(self) -> bool:
        """True while the association is open and the state machine has nothing to do."""
        is_open = self.state_machine.current_state == ESTABLISHED
        return is_open and not self.event_queue.queue and not self.to_provider_queue.queue


class _Requests(queue.Queue[Any]):
    """The queue of messages to the association's thread, which counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        self.count += item is not WAKE
        super().put(item, block, timeout)


class Receiver(DIMSEServiceProvider):
    """The library's DIMSE provider, with C-STORE data sets streamed to a folder.

    With `answer` the usual C-STORE requests are answered in the thread that reads them, as long as
    the association's own thread has no request before them.
    """

    def __init__(
        self,
        assoc: Association,
        folder: Path,
        *,
        min_free_bytes: int = 0,
        answer: AnswerStore | None = None,
    ) -> None:
        super().__init__(assoc)
        self._files = IncomingFiles(folder, min_free_bytes)
        self._syntaxes: dict[int, tuple[str, str]] = {}  # of presentation contexts, once used
        self._direct: DirectRequests | None = None
        if answer is not None:
            self._direct = DirectRequests(
                self._incoming_of, self._syntaxes_of, answer, self._respond
            )
        self.msg_queue = self._requests = _Requests()
        self._served = 0  # messages, by the association's own thread
        self._is_serving = self._is_asking = False
        self._heard_at = 0.0  # when the last part of a message came
        # Called in the association's own thread whenever nothing came for a moment.
        self.when_idle: Callable[[], None] | None = None

    @property
    def is_busy(self) -> bool:
        """True while the association's own thread has a request, and waits for no answer."""
        return self._requests.count > self._served and not self._is_asking

    def waits(self) -> float:
        """How long the rest of a message has not come, in seconds; 0 where none has begun."""
        has_begun = self._has_begun or self.message is not None
        return time.monotonic() - self._heard_at if has_begun else 0.0

    def silence(self) -> float:
        """How long no part of any message has come, in seconds."""
        return time.monotonic() - self._heard_at

    @property
    def is_direct(self) -> bool:
        """True where it answers C-STORE requests itself."""
        return self._direct is not None

    @property
    def _has_begun(self) -> bool:
        """True in the middle of a request that it answers itself."""
        return self._direct is not None and self._direct.has_begun

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Take the fragments of a P-DATA indication; what is no DIMSE message ends in an abort."""
        self._heard_at = time.monotonic()
        try:
            for context_id, fragment in primitive.presentation_data_value_list:
                self._take(context_id, fragment[0], memoryview(fragment)[1:])
        except MALFORMED:
            self._abort()

    def take(self, pdu: memoryview) -> None:
        """Take a P-DATA-TF PDU as `receive_primitive` does, without the library's objects."""
        self._heard_at = time.monotonic()
        if self._direct is not None and self._direct.takes(pdu):
            return
        try:
            for context_id, control, value in fragments(pdu):
                self._take(context_id, control, value)
        except MALFORMED:
            self._abort()

    def get_msg(self, block: bool = False) -> Any:
        """The next message; the association's thread, which asks all the time, waits for it."""
        if block:
            return self._answer_of_peer(self.dimse_timeout)
        if self._is_serving:
            self._served, self._is_serving = self._served + 1, False
            self._wake()
        try:
            item = self.msg_queue.get(timeout=NAP_SECONDS)
        except queue.Empty:
            if self.when_idle is not None and not self._has_begun:
                self.when_idle()
            return WAKE
        self._is_serving = item is not WAKE
        return item

    def converse(self, request: DimsePrimitiveType, context_id: int) -> Any:
        """Send a request of ours, in the association's own thread; the answer, or None.

        What the peer asks meanwhile is served after it.
        """
        asked_meanwhile = []
        answer = None
        self._requests.count += 1  # no answer to a C-STORE request gets between its fragments
        self.send_msg(request, context_id)
        waited_until = time.monotonic() + (self.dimse_timeout or NO_TIMEOUT_SECONDS)
        while answer is None and time.monotonic() < waited_until:
            item = self._answer_of_peer(POLL_SECONDS)
            if item != WAKE and is_answer(item[1]):
                answer = item[1]
            elif item != WAKE:
                asked_meanwhile.append(item)
            elif not self.dul.to_user_queue.empty():
                break  # the association is at its end
        self._served += 1
        for item in asked_meanwhile:
            self.msg_queue.put(item)
        return answer

    def _wake(self) -> None:
        if isinstance(self.dul, Provider):
            self.dul.wake()

    def _answer_of_peer(self, seconds: float | None) -> Any:
        """The answer to a request of ours; it is read although one of the peer is not answered."""
        self._is_asking = True
        self._wake()
        try:
            item = self.msg_queue.get(timeout=seconds)
        except queue.Empty:
            item = WAKE
        finally:
            self._is_asking = False
        self._served += item != WAKE
        return item

    def close(self) -> None:
        """Leave no file behind, also of requests that the library drops without asking anybody."""
        self._files.close()

    def discard(self) -> None:
        """Leave no file of a request that will not be answered any more."""
        if self._direct is not None:
            self._direct.discard()
        if self.message is not None and isinstance(self.message.data_set, Incoming):
            self.message.data_set.discard()
        while not self.msg_queue.empty():
            _, request = self.msg_queue.get_nowait()
            if isinstance(request, C_STORE) and isinstance(request.DataSet, Incoming):
                request.DataSet.discard()

    def _take(self, context_id: int, control: int, value: memoryview) -> None:
        if self.dul.event_queue.queue:
            return  # the association is being aborted
        fragment: bytes | memoryview | None = value
        if self._direct is not None and (self._has_begun or self._may_be_store(control)):
            fragment = self._direct.take(context_id, control, value)
        if fragment is not None:
            self._receive(context_id, bytes([control]) + fragment)

    def _may_be_store(self, control: int) -> bool:
        """True where a message begins that need not wait for the association's own thread.

        A peer may send before that thread has noted that it accepted the association.
        """
        is_idle = self.message is None and self._requests.count == self._served
        is_ready = is_idle and self.assoc.is_established
        return is_ready and bool(control & COMMAND)

    def _syntaxes_of(self, context_id: int) -> tuple[str, str] | None:
        """Abstract and transfer syntax of an accepted context for instances."""
        if context_id not in self._syntaxes:
            context = self.assoc._accepted_cx.get(context_id)
            if context is None or context.abstract_syntax in NOT_STORED:
                return None
            syntaxes = str(context.abstract_syntax), str(context.transfer_syntax[0])
            self._syntaxes[context_id] = syntaxes
        return self._syntaxes[context_id]

    def _respond(self, request: StoreRequest, context_id: int, status: int | Dataset) -> None:
        provider, transport = self.dul, self.dul.socket
        if not self.assoc.is_established or not isinstance(transport, PromptSocket):
            return
        assert isinstance(provider, NegotiatingProvider)
        largest = min(self.maximum_pdu_size or LARGEST_PDU_BYTES, LARGEST_PDU_BYTES)
        response = store_response(request, status)
        pdus = command_pdus(response, context_id=context_id, most=largest - PDV_HEAD_BYTES)
        transport.write(b"".join(map(provider.with_ids_of_peer, pdus)))

    def _receive(self, context_id: int, fragment: bytes) -> None:
        single = P_DATA()
        single.presentation_data_value_list.append((context_id, fragment))
        begun = self.message.context_id if self.message is not None else None
        if begun is not None and (fragment[0] & COMMAND or context_id != begun):
            # The library would take it for the rest of the data set.
            raise ValueError("another message in the middle of a data set")
        super().receive_primitive(single)
        message = self.message
        if message is None:
            return
        ends_command = fragment[0] & 3 == 3  # PS3.8 E.2: command, last fragment
        if ends_command and isinstance(message, C_STORE_RQ):
            message.data_set = self._incoming(message)
        elif message.encoded_command_set.tell() > LONGEST_COMMAND_BYTES or (
            not isinstance(message.data_set, Incoming)
            and message.data_set is not None
            and message.data_set.tell() > LONGEST_OTHER_DATA_SET_BYTES
        ):
            self._abort()

    def _abort(self) -> None:
        self.discard()
        self.message = None
        self.dul.event_queue.put(INVALID_PDU)

    def _incoming(self, message: C_STORE_RQ) -> Incoming:
        context = self.assoc._accepted_cx.get(message.context_id or 0)
        if context is None:
            raise LookupError("a C-STORE request in a presentation context that was not accepted")
        problem = mend(message.command_set, str(context.abstract_syntax))
        incoming = self._incoming_of(
            StoreRequest(
                0,
                str(context.abstract_syntax),
                affected_instance(message.command_set),
                str(context.transfer_syntax[0]),
            )
        )
        if problem is not None:
            incoming.spoil(problem)
        return incoming

    def _incoming_of(self, request: StoreRequest) -> Incoming:
        return self._files.begin(request, self._titles)

    @cached_property
    def _titles(self) -> tuple[str, str]:
        return titles(getattr(self.dul, "request", b""))


# The library passes each PDU through two queues and its state machine, and both of its threads take
# naps meanwhile. While they rest, the thread that has something to send uses the connection alone.


class LendingProvider(WakingProvider):
    """The upper layer service provider of a requestor, which lends its connection to a sender."""

    def __init__(self, assoc: Association) -> None:
        super().__init__(assoc)
        self._turn = threading.Condition()
        self._is_lent = self._is_resting = False

    def run_reactor(self) -> None:
        """Run the state machine to its end, after which it rests for good."""
        try:
            super().run_reactor()
        finally:
            with self._turn:
                self._is_resting = True
                self._turn.notify_all()

    def lend(self) -> PromptSocket:
        """Give the connection to the caller alone; both threads of the association rest."""
        self.assoc._reactor_checkpoint.clear()  # it looks at queues alone, which nobody fills now
        with self._turn:
            self._is_lent = True
            self.wake()
            self._turn.wait_for(lambda: self._is_resting)
        assert isinstance(self.socket, PromptSocket)
        return self.socket

    def take_back(self) -> None:
        """Use the connection again; the association's own thread goes on resting."""
        with self._turn:
            self._is_lent = False
            self._turn.notify_all()

    def go_on(self) -> None:
        """Let the association's own thread see to what the peer has sent."""
        self.assoc._reactor_checkpoint.set()

    def rest(self) -> None:
        """Sleep, and as long as the connection is lent."""
        with self._turn:
            while self._is_lent:
                self._is_resting = True
                self._turn.notify_all()
                self._turn.wait()
            self._is_resting = False
        super().rest()


class Conversation(DIMSEServiceProvider):
    """The library's DIMSE provider of an association on which the peer asks as well.

    Its N-EVENT-REPORT may come before the answer that is waited for, and is answered at once.
    """

    def __init__(self, assoc: Association, abandon: Callable[[], bool]) -> None:
        super().__init__(assoc)
        self._abandon = abandon

    def get_msg(self, block: bool = False) -> "_QueueItem":
        """The answer that is waited for; none for the association's own thread."""
        if not block:
            return None, None
        waited_until = time.monotonic() + (self.dimse_timeout or NO_TIMEOUT_SECONDS)
        while time.monotonic() < waited_until and not self._abandon():
            item = self._next()
            if item is not None and not self._is_served(item):
                return item
        return None, None

    def serve(self, until: Callable[[], bool]) -> None:
        """Answer what the peer asks, as long as the association is open."""
        while not until() and not self._abandon() and self.assoc.is_established:
            item = self._next()
            if item is not None:
                self._is_served(item)

    def _is_served(self, item: "_QueueItem") -> bool:
        """Serve a request of the peer; False for an answer, and where there is nothing any more."""
        context_id, message = item
        if message is None or context_id is None or is_answer(message):
            return False
        self.assoc._serve_request(message, context_id)
        return True

    def _next(self) -> "_QueueItem | None":
        with contextlib.suppress(queue.Empty):
            return self.msg_queue.get(timeout=POLL_SECONDS)
        return None


class Retrieval(Receiver):
    """The DIMSE provider of an association of ours on which instances come back by C-GET.

    Their data sets are streamed to disk like those of a peer that sends by itself.
    """

    def __init__(
        self,
        assoc: Association,
        folder: Path,
        ae_titles: tuple[str, str],
        *,
        min_free_bytes: int,
        abandon: Callable[[], bool],
    ) -> None:
        super().__init__(assoc, folder, min_free_bytes=min_free_bytes)
        self._ae_titles = ae_titles  # of the sender, and of the node
        self._abandon = abandon

    def get_msg(self, block: bool = False) -> Any:
        """The next message of the peer; none for the association's own thread."""
        waited_until = time.monotonic() + (self.dimse_timeout or NO_TIMEOUT_SECONDS)
        while block and time.monotonic() < waited_until and not self._abandon():
            with contextlib.suppress(queue.Empty):
                return self.msg_queue.get(timeout=POLL_SECONDS)
        return WAKE

    @property
    def _titles(self) -> tuple[str, str]:
        return self._ae_titles


def is_answer(message: DimsePrimitiveType) -> bool:
    """True for a response: it names the request that it answers."""
    return getattr(message, "MessageIDBeingRespondedTo", None) is not None


class AcceptedAssociation(Association):
    """An association that this node accepts, made before anybody has asked for it."""

    def __init__(
        self,
        server: AssociationServer,
        connection: socket.socket,
        *,
        seconds: float,
        folder: Path,
        min_free_bytes: int = 0,
        answer: AnswerStore | None = None,
        message_seconds: float = NO_TIMEOUT_SECONDS,
    ) -> None:
        super().__init__(server.ae, MODE_ACCEPTOR)
        self._server = server
        # Before the socket, which tells it that there is a connection.
        self.dul = self.provider = Provider(self, message_seconds)
        self.connection = Transport(
            self, seconds, connection=connection, silent_seconds=message_seconds
        )
        self.dimse = self.receiver = Receiver(
            self, folder, min_free_bytes=min_free_bytes, answer=answer
        )
        self.set_socket(self.connection)

    def _run_reactor(self) -> None:
        # The library's own takes a nap before it looks at its queues: a millisecond of each
        # association, as a release most often comes within it.
        is_over = False
        while not is_over:
            context_id, message = self.dimse.get_msg()
            if message is not None and context_id is not None:
                self._serve_request(message, context_id)
            is_over = self._is_over()

    def _is_over(self) -> bool:
        """True where nothing comes any more; an abort of ours has left by then."""
        if self.is_established and self.acse.is_release_requested():
            self.acse.send_release(is_response=True)
            self.is_released = True
        elif self.acse.is_aborted():
            self.is_aborted = True
        elif self.dul.idle_timer_expired():
            self.abort()
        elif self.dul.is_alive():
            return False
        self.kill()
        return True

    @property
    def server(self) -> AssociationServer:
        """The listening server that took the connection."""
        assert self._server is not None
        return self._server

    def hang_up(self) -> None:
        """Close the connection, whatever the state of the association."""
        self.connection.hang_up()


class ConnectionHandler(RequestHandler):
    """Turns a connection into an association; the server says into which one."""

    def associated(self) -> AcceptedAssociation:
        """Make the association of this connection, with its contexts and handlers."""
        raise NotImplementedError

    def _create_association(self) -> Association:
        # The library's own copies all contexts for each association, half of the time it takes.
        return self.associated()


class RequestorAE(AE):
    """An application entity whose associations have our sockets."""

    def __init__(
        self, ae_title: str, seconds: float, tls: ClientTls | None = None, host: str = ""
    ) -> None:
        super().__init__(ae_title)
        self._seconds = seconds
        self._tls = tls
        self._host = host  # whose certificate is expected

    def _create_socket(
        self,
        assoc: Association,
        address: AddressInformation,
        tls_args: tuple[ssl.SSLContext, str] | None,
    ) -> PromptSocket:
        # A peer that is silent must not keep the node from ending: its threads are not waited for.
        provider = assoc.dul = LendingProvider(assoc)
        assoc.acse_timeout, assoc.network_timeout = self.acse_timeout, self.network_timeout
        assoc.daemon = provider.daemon = True
        transport = Transport(assoc, self._seconds, bind_to=address)
        if self._tls is not None:
            try:
                transport.offer_tls(self._tls, self._host)
            except BaseException:  # a file that cannot be read: the association never runs
                provider.close()
                raise
        return transport
