"""The bytes of a connection: received in blocks, taken off as whole PDUs, without delays.

DIMSE is stop-and-wait. With Nagle's algorithm on one side and delayed acknowledgements on the
other, 40 ms are lost per instance. TCP_NODELAY frees our own writes; TCP_QUICKACK, armed again
after each read and write, frees those of a peer that has Nagle's algorithm on.
"""

import socket
import time

from node.dicom.messages import PDU_HEAD_BYTES

LARGEST_PDU_BYTES = 1 << 17  # that we announce, and send to a peer that takes any length
# Two PDUs of that length, and the command before them.
BLOCK_BYTES = 2 * (LARGEST_PDU_BYTES + PDU_HEAD_BYTES) + (1 << 12)


def hurry(sock: socket.socket) -> None:
    """Acknowledge at once what arrives next; the kernel forgets this with each exchange."""
    if hasattr(socket, "TCP_QUICKACK"):  # Linux
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


def tune(sock: socket.socket) -> None:
    """Set up a socket of either side of an association."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    hurry(sock)


class Blocks:
    """What has come and was not read yet; a PDU stays as it is until more is received."""

    def __init__(self) -> None:
        self._block = memoryview(b"")
        self._start = self._end = 0

    @property
    def is_holding(self) -> bool:
        """True where something was received and not read yet."""
        return self._end > self._start

    def receive(self, sock: socket.socket, seconds: float) -> int:
        """Receive what there is, at least a byte; 0 where the peer has closed."""
        if seconds <= 0:
            raise TimeoutError("the PDU did not arrive in time")
        if self._end == self._start and len(self._block) - self._end < LARGEST_PDU_BYTES:
            self._make_room()
        if sock.gettimeout() != seconds:  # which is cheaper than to set it
            sock.settimeout(seconds)
        count = sock.recv_into(self._block[self._end :])
        hurry(sock)
        self._end += count
        return count

    def whole_pdu(
        self, sock: socket.socket, seconds: float, silent_seconds: float
    ) -> memoryview | None:
        """The next PDU; OSError where it does not come whole in time, or nothing comes for long.

        None where there is none, or where it is longer than any of ours.
        """
        deadline = 0.0
        while self.is_holding:
            needed, held = PDU_HEAD_BYTES, self._end - self._start
            if held >= PDU_HEAD_BYTES:
                at = self._start + 2
                needed += int.from_bytes(self._block[at : at + 4], "big")
                if needed > len(self._block):
                    return None
                if held >= needed:
                    return self._block[self._start : self._start + needed]
            if self._start + needed > len(self._block):
                self._make_room()
            deadline = deadline or time.monotonic() + seconds
            left = min(silent_seconds, deadline - time.monotonic())
            if self.receive(sock, left) == 0:
                raise ConnectionError("the connection ended in the middle of a PDU")
        return None

    def skip(self, count: int) -> None:
        """Leave so many bytes behind."""
        self._start += count

    def fill(self, view: memoryview) -> int:
        """Move as many bytes there as fit; how many."""
        count = min(len(view), self._end - self._start)
        view[:count] = self._block[self._start : self._start + count]
        self._start += count
        return count

    def _make_room(self) -> None:
        held = self._end - self._start
        if not self._block:
            self._block = memoryview(bytearray(BLOCK_BYTES))
        self._block[:held] = self._block[self._start : self._end]
        self._start, self._end = 0, held
