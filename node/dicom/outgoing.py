"""Writes C-STORE requests straight to the socket, in as few and as large pieces as the peer takes.

The library passes each PDU through two queues and its state machine, which matters with peers
that take 16 KiB at a time. Answers, release and abort stay with the library.
"""

import contextlib
import queue
import struct
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, BinaryIO

from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE, DimsePrimitiveType
from pynetdicom.dsutils import encode

from node.dicom.sockets import PromptSocket

if TYPE_CHECKING:
    from pynetdicom.association import Association
    from pynetdicom.dimse import _QueueItem

WRITE_BYTES = 1 << 18
LARGEST_PDU_BYTES = 1 << 17  # also for a peer that takes any length, which it says with a 0
PDV_HEAD_BYTES = 6  # length, context id, message control header: PS3.8 9.3.5.1
POLL_SECONDS = 0.2  # how soon `abandon` is heard
NO_TIMEOUT_SECONDS = 3600.0  # where none was set: every wait has an end
COMMAND, LAST = 1, 2  # bits of the message control header: PS3.8 E.2


class Sender(DIMSEServiceProvider):
    """The library's DIMSE provider, with C-STORE requests written past its queues."""

    def __init__(self, assoc: "Association", abandon: Callable[[], bool]) -> None:
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
        most = max(1, largest - PDV_HEAD_BYTES)
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
