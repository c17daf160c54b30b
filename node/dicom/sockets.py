"""TCP under an association: no waiting for acknowledgements, a deadline on every PDU.

DIMSE is stop-and-wait. With Nagle's algorithm on one side and delayed acknowledgements on the
other, 40 ms are lost per instance. TCP_NODELAY frees our own writes; TCP_QUICKACK, armed again
after each read and write, frees those of a peer that has Nagle's algorithm on.
"""

import contextlib
import socket
import time
from typing import TYPE_CHECKING

from pynetdicom import _config
from pynetdicom.transport import T_CONNECT, AddressInformation, AssociationSocket

if TYPE_CHECKING:
    from pynetdicom.association import Association

# The library's own handlers for each PDU and message only write debug lines; they cost time.
_config.LOG_HANDLER_LEVEL = "none"

# The most that one PDU may announce: 128 contexts with all transfer syntaxes take about 250 KiB.
LONGEST_PDU_BYTES = 1 << 20
ESTABLISHED = "Sta6"  # PS3.8 Table 9-4: association established and ready for data transfer


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
        assoc: "Association",
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
        try:
            filled = self._fill(memoryview(buffer), time.monotonic() + self.seconds)
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
