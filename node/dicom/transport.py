"""The connection of an association: every wait has an end, and every byte comes or goes at once."""

import contextlib
import select
import socket
import ssl
import time
from collections.abc import Callable

from pynetdicom.association import Association
from pynetdicom.transport import T_CONNECT, AddressInformation, AssociationSocket

from node.dicom.connection import Blocks, hurry, tune
from node.dicom.tls import ClientTls, TlsSocket, accept, offered

POLL_SECONDS = 0.2  # how soon `abandon` is heard

CLOSED = "Evt17"  # PS3.8 Table 9-3: the connection is closed
ESTABLISHED = "Sta6"  # PS3.8 Table 9-4: association established and ready for data transfer
CLOSING = "Sta13"  # awaiting that the connection is closed; what still comes is dropped
CLOSING_SECONDS = 1.0

# The most that one PDU may announce: 128 contexts with all transfer syntaxes take about 250 KiB.
LONGEST_PDU_BYTES = 1 << 20


class PromptSocket(AssociationSocket):
    """The connection of an association; each PDU has to come and go whole within `seconds`.

    A peer that says nothing for `silent_seconds` in the middle of one is dropped before.
    """

    def __init__(
        self,
        assoc: Association,
        seconds: float,
        *,
        connection: socket.socket | None = None,
        bind_to: AddressInformation | None = None,
        silent_seconds: float | None = None,
    ) -> None:
        self.seconds = seconds
        self.silent_seconds = seconds if silent_seconds is None else silent_seconds
        self.is_lost = self.was_silent = False
        self.opened_at = time.monotonic() if connection is not None else None
        self.secured: TlsSocket | None = None
        self.blocks = Blocks()
        super().__init__(assoc, client_socket=connection, address=bind_to)

    def connect(self, primitive: T_CONNECT) -> None:
        """Connect to the peer; the library is told of success and failure."""
        super().connect(primitive)
        if self.socket is not None:
            tune(self.socket)
            self.opened_at = time.monotonic()

    def accept_tls(self, context: ssl.SSLContext, seconds: float) -> TlsSocket:
        """Go on over TLS, before anything was read; TlsFailed where the peer does not."""
        assert self.socket is not None
        self.socket = self.secured = accept(self.socket, context, seconds)
        return self.secured

    def offer_tls(self, tls: ClientTls, host: str) -> None:
        """Speak TLS from the connection on, which is not made yet."""
        assert self.socket is not None
        self.socket = self.secured = offered(tls, self.socket, host)

    @property
    def ready(self) -> bool:
        """True where something was received, or can be without waiting."""
        if self.is_holding:
            return True
        if self.socket is None or self.opened_at is None:
            return False
        try:
            return bool(poll_of(self.socket).poll(0))
        except (OSError, ValueError):
            self.event_queue.put(CLOSED)
            return False

    @property
    def is_holding(self) -> bool:
        """True where something was received and not read yet."""
        return self.blocks.is_holding or (self.secured is not None and self.secured.pending() > 0)

    def has_data(self, seconds: float) -> bool:
        """Wait so long for the peer; True also where it has closed the connection."""
        if self.blocks.is_holding or self.socket is None:
            return True
        try:
            return self.blocks.receive(self.socket, seconds) >= 0
        except TimeoutError:
            return False
        except OSError:
            return True

    def whole_pdu(self) -> memoryview | None:
        """The next PDU; OSError where it is cut short.

        None where it is for `recv`: the peer has closed, or the PDU is longer than any should be.
        """
        if self.socket is None:
            return None
        try:
            return self.blocks.whole_pdu(self.socket, self.seconds, self.silent_seconds)
        except OSError as error:
            self._note_loss(error)
            raise

    def recv(self, nr_bytes: int) -> bytearray:
        """Read so many bytes, fewer where the peer is gone; OSError past the deadline."""
        if nr_bytes > LONGEST_PDU_BYTES:
            raise OSError(f"a PDU of {nr_bytes} bytes; allowed are {LONGEST_PDU_BYTES}")
        buffer = bytearray(nr_bytes)
        is_closing = self.assoc.dul.state_machine.current_state == CLOSING
        seconds = min(self.seconds, CLOSING_SECONDS) if is_closing else self.seconds
        try:
            filled = self._fill(memoryview(buffer), time.monotonic() + seconds)
        except OSError as error:
            self._note_loss(error)
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
            self.break_off()

    def offer(self, data: memoryview, is_given_up: Callable[[], bool]) -> bool:
        """Write all bytes; False where the peer has gone, or has taken none for too long."""
        if self.socket is None:
            return False
        deadline = time.monotonic() + self.seconds
        try:
            self.socket.settimeout(POLL_SECONDS)
            while data:
                try:
                    data = data[self.socket.send(data) :]
                except TimeoutError:
                    if is_given_up() or time.monotonic() >= deadline:
                        raise
            hurry(self.socket)
        except OSError:
            self.break_off()
            return False
        return True

    def break_off(self) -> None:
        """End the connection, which the library notices by itself."""
        if self.socket is not None:
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)

    def hang_up(self) -> None:
        """Close the connection, whatever the state of the association."""
        if self.socket is not None:
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)
            self.socket.close()

    def _fill(self, view: memoryview, deadline: float) -> int:
        assert self.socket is not None
        filled = self.blocks.fill(view)
        while filled < len(view):
            left = self._left(deadline)
            if left <= 0:
                raise TimeoutError("the PDU did not arrive in time")
            self.socket.settimeout(left)
            count = self.socket.recv_into(view[filled:])
            if count == 0:
                break
            hurry(self.socket)
            filled += count
        return filled

    def _left(self, deadline: float) -> float:
        return min(self.silent_seconds, deadline - time.monotonic())

    def _note_loss(self, error: OSError | None = None) -> None:
        if self.assoc.dul.state_machine.current_state == ESTABLISHED:
            self.is_lost, self.was_silent = True, isinstance(error, TimeoutError)


def poll_of(sock: socket.socket) -> select.poll:
    """Waits for something to read; unlike `select.select`, on any descriptor."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return poll
