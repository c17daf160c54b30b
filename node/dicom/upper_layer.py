"""The upper layer of pynetdicom: deadlines, woken threads, data sets streamed from and to disk.

All that the node uses of pynetdicom beyond its public interface stands in this file.
"""

import contextlib
import errno
import os
import queue
import re
import select
import socket
import ssl
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple, cast

from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian
from pynetdicom import AE, _config
from pynetdicom._globals import MODE_ACCEPTOR
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE, DimsePrimitiveType
from pynetdicom.dsutils import encode
from pynetdicom.dul import DULServiceProvider
from pynetdicom.pdu import A_ABORT_RQ
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.sop_class import CTImageStorage  # type: ignore[attr-defined]
from pynetdicom.transport import (
    T_CONNECT,
    AddressInformation,
    AssociationServer,
    AssociationSocket,
    RequestHandler,
)

from inference.release import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from node.dicom.negotiation import ACCEPTED, DATA, REQUEST, readable, with_ids
from node.dicom.status import SOP_CLASS_NOT_SUPPORTED, UID_INVALID
from storage.records import UID_CHARACTERS

if TYPE_CHECKING:
    from pynetdicom.dimse import _QueueItem
    from pynetdicom.pdu import _PDUType
    from pynetdicom.pdu_primitives import _PDUPrimitiveType

# What another release of pynetdicom may change without notice: where it stands, its name, and
# the parameters where this file overrides or calls it. A test compares this with the library.
INTERNALS = (
    ("pynetdicom._config", "LOG_HANDLER_LEVEL", None),
    ("pynetdicom._config", "STORE_SEND_CHUNKED_DATASET", None),
    ("pynetdicom._globals", "MODE_ACCEPTOR", None),
    ("pynetdicom.ae.ApplicationEntity", "_create_socket", "assoc, address, tls_args"),
    ("pynetdicom.association.Association", "_accepted_cx", None),
    ("pynetdicom.association.Association", "_server", None),
    ("pynetdicom.association.Association", "dimse", None),
    ("pynetdicom.association.Association", "dul", None),
    ("pynetdicom.association.Association", "run_reactor", ""),
    ("pynetdicom.dimse", "_QueueItem", None),
    ("pynetdicom.dimse.DIMSEServiceProvider", "get_msg", "block"),
    ("pynetdicom.dimse.DIMSEServiceProvider", "message", None),
    ("pynetdicom.dimse.DIMSEServiceProvider", "msg_queue", None),
    ("pynetdicom.dimse.DIMSEServiceProvider", "receive_primitive", "primitive"),
    ("pynetdicom.dimse.DIMSEServiceProvider", "send_msg", "primitive, context_id"),
    ("pynetdicom.dimse_primitives.DIMSEPrimitive", "_dataset_path", None),
    ("pynetdicom.pdu", "_PDUType", None),
    ("pynetdicom.dul.DULServiceProvider", "_decode_pdu", "bytestream"),
    ("pynetdicom.dul.DULServiceProvider", "_run_loop_delay", None),
    ("pynetdicom.dul.DULServiceProvider", "_send", "pdu"),
    ("pynetdicom.dul.DULServiceProvider", "event_queue", None),
    ("pynetdicom.dul.DULServiceProvider", "run_reactor", ""),
    ("pynetdicom.dul.DULServiceProvider", "send_pdu", "primitive"),
    ("pynetdicom.dul.DULServiceProvider", "state_machine", None),
    ("pynetdicom.dul.DULServiceProvider", "to_user_queue", None),
    ("pynetdicom.pdu_primitives", "_PDUPrimitiveType", None),
    ("pynetdicom.transport.AssociationSocket", "_shutdown_socket", ""),
    ("pynetdicom.transport.AssociationSocket", "connect", "primitive"),
    ("pynetdicom.transport.AssociationSocket", "recv", "nr_bytes"),
    ("pynetdicom.transport.AssociationSocket", "send", "bytestream"),
    ("pynetdicom.transport.RequestHandler", "_create_association", ""),
)

# The library's own handlers for each PDU and message only write debug lines; they cost time.
_config.LOG_HANDLER_LEVEL = "none"
# A file is read in pieces and sent as it is, not decoded and encoded again.
_config.STORE_SEND_CHUNKED_DATASET = True

NAP_SECONDS = 0.05  # timers are looked at this often; everything else wakes by itself
POLL_SECONDS = 0.2  # how soon `abandon` is heard
NO_TIMEOUT_SECONDS = 3600.0  # where none was set: every wait has an end
WAKE = (None, None)  # in the queue of DIMSE messages: there is none, but look around

INVALID_PDU = "Evt19"  # PS3.8 Table 9-3: the state machine answers it with an abort
ESTABLISHED = "Sta6"  # PS3.8 Table 9-4: association established and ready for data transfer
CLOSING = "Sta13"  # awaiting that the connection is closed; what still comes is dropped
CLOSING_SECONDS = 1.0
ABORT, ABORT_BYTES = 0x07, 10  # type and length of an A-ABORT: PS3.8 9.3.8
COMMAND, LAST = 1, 2  # bits of the message control header: PS3.8 E.2
PDV_HEAD_BYTES = 6  # length, context id, message control header: PS3.8 9.3.5.1

# The most that one PDU may announce: 128 contexts with all transfer syntaxes take about 250 KiB.
LONGEST_PDU_BYTES = 1 << 20
LONGEST_COMMAND_BYTES = 1 << 16
LONGEST_OTHER_DATA_SET_BYTES = 1 << 20  # of a message that is no C-STORE
ROOM_EVERY_BYTES = 32 << 20
WRITE_BYTES = 1 << 18
LARGEST_PDU_BYTES = 1 << 17  # also for a peer that takes any length, which it says with a 0

AFFECTED_SOP_CLASS, AFFECTED_SOP_INSTANCE, PRIORITY = 0x00000002, 0x00001000, 0x00000700
MEDIUM = 0
KEPT_UID = re.compile(f"[{UID_CHARACTERS}]{{1,64}}".encode())
NO_UID = "0.0"  # stands in for a UID that the library could not carry; never kept or answered

# What the library and pydicom raise on bytes that are no DIMSE message.
MALFORMED = (
    ArithmeticError,
    AttributeError,
    EOFError,
    InvalidDicomError,
    LookupError,
    NotImplementedError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
)

# DIMSE is stop-and-wait. With Nagle's algorithm on one side and delayed acknowledgements on the
# other, 40 ms are lost per instance. TCP_NODELAY frees our own writes; TCP_QUICKACK, armed again
# after each read and write, frees those of a peer that has Nagle's algorithm on.


def hurry(sock: socket.socket) -> None:
    """Acknowledge at once what arrives next; the kernel forgets this with each exchange."""
    if hasattr(socket, "TCP_QUICKACK"):  # Linux
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


def tune(sock: socket.socket) -> None:
    """Set up a socket of either side of an association."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    hurry(sock)


class PromptSocket(AssociationSocket):
    """The connection of an association; each PDU has to come and go whole within `seconds`."""

    def __init__(
        self,
        assoc: Association,
        seconds: float,
        *,
        connection: socket.socket | None = None,
        bind_to: AddressInformation | None = None,
    ) -> None:
        self.seconds = seconds
        self.is_lost = False
        self.opened_at: float | None = None
        super().__init__(assoc, client_socket=connection, address=bind_to)

    def connect(self, primitive: T_CONNECT) -> None:
        """Connect to the peer; the library is told of success and failure."""
        super().connect(primitive)
        if self.socket is not None:
            tune(self.socket)
            self.opened_at = time.monotonic()

    def recv(self, nr_bytes: int) -> bytearray:
        """Read so many bytes, fewer where the peer is gone; OSError past the deadline."""
        if nr_bytes > LONGEST_PDU_BYTES:
            raise OSError(f"a PDU of {nr_bytes} bytes; allowed are {LONGEST_PDU_BYTES}")
        buffer = bytearray(nr_bytes)
        is_closing = self.assoc.dul.state_machine.current_state == CLOSING
        seconds = min(self.seconds, CLOSING_SECONDS) if is_closing else self.seconds
        try:
            filled = self._fill(memoryview(buffer), time.monotonic() + seconds)
        except OSError:
            self._note_loss()
            raise
        if filled < nr_bytes:
            self._note_loss()
        return buffer[:filled]

    def send(self, bytestream: bytes) -> None:
        """Write all bytes; a peer that takes none of them for too long is dropped."""
        if self.socket is None:
            return
        with contextlib.suppress(OSError):  # closed meanwhile: the library notices by itself
            self.socket.settimeout(self.seconds)
        super().send(bytestream)
        with contextlib.suppress(OSError):
            hurry(self.socket)

    def write(self, data: bytes | bytearray) -> None:
        """Write past the library; where that fails the connection ends, which it notices."""
        if self.socket is None:
            return
        try:
            self.socket.settimeout(self.seconds)
            self.socket.sendall(data)
            hurry(self.socket)
        except OSError:
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)

    def hang_up(self) -> None:
        """Close the connection, whatever the state of the association."""
        self._shutdown_socket()

    def _fill(self, view: memoryview, deadline: float) -> int:
        assert self.socket is not None
        filled = 0
        while filled < len(view):
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("the PDU did not arrive in time")
            self.socket.settimeout(left)
            count = self.socket.recv_into(view[filled:])
            if count == 0:
                break
            hurry(self.socket)
            filled += count
        return filled

    def _note_loss(self) -> None:
        if self.assoc.dul.state_machine.current_state == ESTABLISHED:
            self.is_lost = True

    def _shutdown_socket(self) -> None:
        # The library's own leaves the socket open where the peer has reset the connection.
        if self.socket is not None:
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)
            self.socket.close()


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
        if bytestream[0] == ABORT and self.abort is None and len(bytestream) >= ABORT_BYTES:
            self.abort = Abort("peer", bytestream[8], bytestream[9])
        if bytestream[0] == DATA and self._ids_of_library:
            bytestream = bytearray(with_ids(bytes(bytestream), self._ids_of_library))
        if bytestream[0] not in (REQUEST, ACCEPTED):
            return super()._decode_pdu(bytestream)
        self.request = pdu = bytes(bytestream)
        try:
            negotiation = readable(pdu)
            self._ids_of_peer = negotiation.ids
            self._ids_of_library = {theirs: own for own, theirs in negotiation.ids.items()}
            decoded, event = super()._decode_pdu(bytearray(negotiation.pdu))
            decoded.to_primitive()  # which the state machine does where no error is expected
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
            self.socket.send(with_ids(pdu.encode(), self._ids_of_peer))


class Provider(NegotiatingProvider):
    """The upper layer service provider, asleep until it has something to do."""

    def __init__(self, assoc: Association) -> None:
        self._ring, self._rung = socket.socketpair()
        self._ring.setblocking(False)
        self._rung.setblocking(False)
        super().__init__(assoc)
        self.daemon = True  # the association's own thread sees to a clean end
        self.to_user_queue = _Bell(assoc)

    def run_reactor(self) -> None:
        """Run the state machine to its end."""
        try:
            super().run_reactor()
        finally:
            self._ring.close()
            self._rung.close()

    def send_pdu(self, primitive: "_PDUPrimitiveType") -> None:
        """Queue a primitive for the peer and wake the thread that sends it."""
        super().send_pdu(primitive)
        with contextlib.suppress(OSError):  # full: it is awake; closed: it has ended
            self._ring.send(b"!")

    @property
    def _run_loop_delay(self) -> float:
        """The library sleeps as long as this says where it found nothing to do."""
        if threading.current_thread() is not self:
            return 0.001
        self._wait()
        return 0.0

    @_run_loop_delay.setter
    def _run_loop_delay(self, seconds: float) -> None:
        pass  # the library's own is of no interest

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self._rung, select.POLLIN)
        transport = self.socket.socket if self.socket is not None else None
        if transport is not None and transport.fileno() >= 0:
            poll.register(transport, select.POLLIN)
        poll.poll(NAP_SECONDS * 1000)
        with contextlib.suppress(OSError):  # nobody has rung
            self._rung.recv(4096)


class Refusal(Exception):
    """A C-STORE request is answered with a failure; the comment names no patient."""

    def __init__(self, status: int, comment: str, *elements: int) -> None:
        super().__init__(comment)
        self.status = status
        self.comment = comment
        self.elements = elements


def uid_of(value: bytes) -> str:
    """A UID without its padding, if it is one that the node stores, else an empty string."""
    stripped = value.strip(b"\0 ")
    return stripped.decode("ascii") if KEPT_UID.fullmatch(stripped) else ""


# Their data sets do not begin with a little endian element.
HIDDEN_ELEMENTS = (DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian)
META_GROUP = b"\x02\0"
LONGEST_ELEMENT_HEAD = 12
LONGEST_META_ELEMENT = 1 << 16


def _length_of_element(data: bytearray) -> int:
    """The length of the little endian element that begins here, its head included."""
    vr = bytes(data[4:6])
    if vr in (b"OB", b"OW", b"UN", b"UT"):  # of those that group 0002 may hold: PS3.5 7.1.2
        return 12 + int.from_bytes(data[8:12], "little")
    if vr.isalpha() and vr.isupper():
        return 8 + int.from_bytes(data[6:8], "little")
    return 8 + int.from_bytes(data[4:8], "little")


class Incoming(BytesIO):
    """The data set of one C-STORE request on its way to disk, in the library's place for it.

    While it arrives its name ends in `.part`, whole in `.dcm`. A full disk ends the writing, not
    the association: the rest is read and dropped, and the request is answered with a failure.
    Elements of group 0002 at its start are left out: they belong to files, not to data sets (PS3.5
    7.1), and in the file a reader would believe them instead of the presentation context.
    """

    def __init__(
        self, folder: Path, head: bytes, *, min_free_bytes: int = 0, has_elements: bool = True
    ) -> None:
        super().__init__()
        self.size = 0
        # What has come, until the first element that is kept; a deflated data set shows none.
        self._start: bytearray | None = bytearray() if has_elements else None
        self._min_free_bytes = min_free_bytes
        self._path = folder / f"{uuid.uuid4().hex}.part"
        self._problem: Refusal | OSError | None = None
        self._file: BinaryIO | None = None
        self._data_at = len(head)
        try:
            self._check_room()
            self._file = self._path.open("xb")
            self._file.write(head)
        except OSError as error:
            self.spoil(error)

    def write(self, data: bytes, /) -> int:  # type: ignore[override]
        """Take the next fragment."""
        if self._file is not None:
            try:
                if self.size // ROOM_EVERY_BYTES != (self.size + len(data)) // ROOM_EVERY_BYTES:
                    self._check_room()
                self._file.write(data if self._start is None else self._kept_start(data))
            except OSError as error:
                self.spoil(error)
        self.size += len(data)
        return len(data)

    def _kept_start(self, data: bytes) -> bytes:
        """The part of the start of the data set that can be written by now."""
        assert self._start is not None
        self._start += data
        while self._start.startswith(META_GROUP) and len(self._start) >= LONGEST_ELEMENT_HEAD:
            length = _length_of_element(self._start)
            if length > LONGEST_META_ELEMENT:
                break
            if length > len(self._start):
                return b""
            del self._start[:length]
        if META_GROUP.startswith(self._start[:2]) and len(self._start) < LONGEST_ELEMENT_HEAD:
            return b""
        kept, self._start = bytes(self._start), None
        return kept

    def spoil(self, problem: Refusal | OSError) -> None:
        """Keep nothing of it, for this reason."""
        self._problem = problem
        self.discard()

    def finish(self) -> tuple[Path, int]:
        """The whole Part 10 file and where its data set begins; raises what went wrong before."""
        if self._problem is not None:
            raise self._problem
        assert self._file is not None
        self._file.write(self._start or b"")
        self._file.close()
        self._file = None
        self._path = self._path.rename(self._path.with_suffix(".dcm"))
        return self._path, self._data_at

    def discard(self) -> None:
        """Leave nothing behind; nothing happens where the file was moved away."""
        if self._file is not None:
            file, self._file = self._file, None
            with contextlib.suppress(OSError):  # a full disk once more; the file goes in any case
                file.close()
        self._path.unlink(missing_ok=True)

    def _check_room(self) -> None:
        disk = os.statvfs(self._path.parent)
        if disk.f_bavail * disk.f_frsize < self._min_free_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Receiver(DIMSEServiceProvider):
    """The library's DIMSE provider, with C-STORE data sets streamed to a folder."""

    def __init__(self, assoc: Association, folder: Path, *, min_free_bytes: int = 0) -> None:
        super().__init__(assoc)
        self._folder = folder
        self._min_free_bytes = min_free_bytes

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Take the fragments of a P-DATA indication; what is no DIMSE message ends in an abort."""
        try:
            for context_id, fragment in primitive.presentation_data_value_list:
                self._receive(context_id, fragment)
        except MALFORMED:
            self._abort()

    def get_msg(self, block: bool = False) -> Any:
        """The next message; the association's thread, which asks all the time, waits for it."""
        if block:
            return super().get_msg(block)
        try:
            return self.msg_queue.get(timeout=NAP_SECONDS)
        except queue.Empty:
            return WAKE

    def discard(self) -> None:
        """Leave no file of a request that will not be answered any more."""
        if self.message is not None and isinstance(self.message.data_set, Incoming):
            self.message.data_set.discard()
        while not self.msg_queue.empty():
            _, request = self.msg_queue.get_nowait()
            if isinstance(request, C_STORE) and isinstance(request.DataSet, Incoming):
                request.DataSet.discard()

    def _receive(self, context_id: int, fragment: bytes) -> None:
        single = P_DATA()
        single.presentation_data_value_list.append((context_id, fragment))
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
        head = part10_head(
            sop_class_uid=str(context.abstract_syntax),
            instance_uid=uid_of(_raw(message.command_set, AFFECTED_SOP_INSTANCE)),
            transfer_syntax=str(context.transfer_syntax[0]),
        )
        incoming = Incoming(
            self._folder,
            head,
            min_free_bytes=self._min_free_bytes,
            has_elements=context.transfer_syntax[0] not in HIDDEN_ELEMENTS,
        )
        if problem is not None:
            incoming.spoil(problem)
        return incoming


def mend(command: Dataset, abstract_syntax: str) -> Refusal | None:
    """Make a C-STORE command one that the library answers; say why it will be a failure.

    The library leaves a request without an answer, or aborts, where a UID or Priority is missing
    or malformed; the peer would wait in vain, or send it again for ever.
    """
    if PRIORITY not in command:
        command.Priority = MEDIUM
    sop_class = uid_of(_raw(command, AFFECTED_SOP_CLASS))
    problem = None
    if sop_class != abstract_syntax:
        comment = "the SOP Class is not that of the presentation context"
        problem = Refusal(SOP_CLASS_NOT_SUPPORTED, comment, AFFECTED_SOP_CLASS)
        command.add_new(AFFECTED_SOP_CLASS, "UI", CTImageStorage)
    if not uid_of(_raw(command, AFFECTED_SOP_INSTANCE)):
        comment = "Affected SOP Instance UID: 1-64 letters, digits and . - _"
        problem = Refusal(UID_INVALID, comment, AFFECTED_SOP_INSTANCE)
        command.add_new(AFFECTED_SOP_INSTANCE, "UI", NO_UID)
    return problem


def part10_head(*, sop_class_uid: str, instance_uid: str, transfer_syntax: str) -> bytes:
    """The bytes before the data set in a Part 10 file: PS3.10 7.1."""
    elements = [
        _element(0x0001, b"OB", b"\0\1"),
        _element(0x0002, b"UI", sop_class_uid.encode("ascii")),
        _element(0x0003, b"UI", instance_uid.encode("ascii")),
        _element(0x0010, b"UI", transfer_syntax.encode("ascii")),
        _element(0x0012, b"UI", IMPLEMENTATION_CLASS_UID.encode("ascii")),
        _element(0x0013, b"SH", IMPLEMENTATION_VERSION_NAME.encode("ascii")),
    ]
    group = b"".join(elements)
    length = _element(0x0000, b"UL", struct.pack("<I", len(group)))
    return b"\0" * 128 + b"DICM" + length + group


def _element(number: int, vr: bytes, value: bytes) -> bytes:
    if len(value) % 2:
        value += b"\0" if vr == b"UI" else b" "
    head = struct.pack("<HH", 0x0002, number) + vr
    if vr == b"OB":
        return head + struct.pack("<HI", 0, len(value)) + value
    return head + struct.pack("<H", len(value)) + value


def _raw(command: Dataset, tag: int) -> bytes:
    """A value of the command set as it was sent: decoding would already judge it."""
    if tag not in command:
        return b""
    element = cast(RawDataElement | DataElement, command.get_item(tag))
    return (element.value or b"") if isinstance(element, RawDataElement) else b""


# The library passes each PDU through two queues and its state machine, which matters with peers
# that take 16 KiB at a time. Answers, release and abort stay with the library.


class RequestSender(DIMSEServiceProvider):
    """The library's DIMSE provider, with C-STORE requests written past its queues."""

    def __init__(self, assoc: Association, abandon: Callable[[], bool]) -> None:
        super().__init__(assoc)
        self._abandon = abandon

    def send_msg(self, primitive: DimsePrimitiveType, context_id: int) -> None:
        """Send a message; where the connection breaks, the answer that is waited for is none."""
        if not isinstance(primitive, C_STORE):
            super().send_msg(primitive, context_id)
            return
        message = C_STORE_RQ()
        message.primitive_to_message(primitive)
        command = encode(message.command_set, True, True)  # Implicit VR: PS3.7 6.3.1
        assert command is not None
        largest = min(self.maximum_pdu_size or LARGEST_PDU_BYTES, LARGEST_PDU_BYTES)
        most = largest - PDV_HEAD_BYTES  # even, and at least 2: the answer was read so
        with _data_set(primitive) as data:
            self._write(pdus(command, data, context_id=context_id, most=most))

    def get_msg(self, block: bool = False) -> "_QueueItem":
        """The answer that `send_c_store` waits for; none for the association's own thread.

        That thread is paused while a request is under way, but the library lets it run for a moment
        between two requests: it then took the next answer off the queue, once in about 1,000
        instances on a busy machine, and the sender waited for it until its time was over.
        """
        if not block:
            return None, None
        waited_until = time.monotonic() + (self.dimse_timeout or NO_TIMEOUT_SECONDS)
        while time.monotonic() < waited_until and not self._abandon():
            with contextlib.suppress(queue.Empty):
                return self.msg_queue.get(timeout=POLL_SECONDS)
        return None, None

    def _write(self, pieces: Iterator[bytes]) -> None:
        transport = self.dul.socket
        assert isinstance(transport, PromptSocket)
        waiting = bytearray()
        for piece in pieces:
            waiting += piece
            if len(waiting) >= WRITE_BYTES:
                transport.write(waiting)
                waiting = bytearray()
        transport.write(waiting)


def pdus(command: bytes, data: BinaryIO, *, context_id: int, most: int) -> Iterator[bytes]:
    """A C-STORE request as P-DATA-TF PDUs, each with one fragment of at most so many bytes."""
    for start in range(0, len(command), most):
        fragment = command[start : start + most]
        yield _pdu(fragment, context_id, COMMAND, is_last=start + most >= len(command))
    fragment, is_last = data.read(most), False
    while not is_last:
        following = data.read(most)
        is_last = not following
        yield _pdu(fragment, context_id, 0, is_last=is_last)
        fragment = following


@contextlib.contextmanager
def _data_set(request: C_STORE) -> Iterator[BinaryIO]:
    """The encoded data set of a request: in a file, after its meta information, or in memory."""
    if isinstance(request._dataset_path, tuple):
        path, offset = request._dataset_path
        with path.open("rb") as file:
            file.seek(offset)
            yield file
    else:
        assert request.DataSet is not None
        request.DataSet.seek(0)
        yield request.DataSet


def _pdu(fragment: bytes, context_id: int, kind: int, *, is_last: bool) -> bytes:
    control = kind | (LAST if is_last else 0)
    length = len(fragment) + PDV_HEAD_BYTES
    head = struct.pack(">BBIIBB", 0x04, 0, length, length - 4, context_id, control)
    return head + fragment


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
    ) -> None:
        super().__init__(server.ae, MODE_ACCEPTOR)
        self._server = server
        self.dul = self.provider = Provider(
            self
        )  # before the socket, which tells it that there is a connection
        self.connection = PromptSocket(self, seconds, connection=connection)
        self.dimse = self.receiver = Receiver(self, folder, min_free_bytes=min_free_bytes)
        self.set_socket(self.connection)

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

    def __init__(self, ae_title: str, seconds: float) -> None:
        super().__init__(ae_title)
        self._seconds = seconds

    def _create_socket(
        self,
        assoc: Association,
        address: AddressInformation,
        tls_args: tuple[ssl.SSLContext, str] | None,
    ) -> PromptSocket:
        # A peer that is silent must not keep the node from ending: its threads are not waited for.
        assoc.dul = NegotiatingProvider(assoc)
        assoc.acse_timeout, assoc.network_timeout = self.acse_timeout, self.network_timeout
        assoc.daemon = assoc.dul.daemon = True
        transport = PromptSocket(assoc, self._seconds, bind_to=address)
        transport.tls_args = tls_args
        return transport
