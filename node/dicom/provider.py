"""Wakes the two threads of an association when there is work, not a thousand times a second.

Both of the library's loops take a nap of a millisecond and look again: 40 idle associations then
take a whole core. Here the nap of the upper layer's thread ends with what it waits for, and the
association's thread waits on its queue of messages.
"""

import contextlib
import queue
import select
import socket
import threading
from typing import TYPE_CHECKING, Any

from pynetdicom.dul import DULServiceProvider

if TYPE_CHECKING:
    from pynetdicom.association import Association
    from pynetdicom.pdu_primitives import _PDUPrimitiveType

# Timers are looked at this often; everything else wakes by itself.
NAP_SECONDS = 0.05
WAKE = (None, None)  # in the queue of DIMSE messages: there is none, but look around


class _Bell(queue.Queue[Any]):
    """The queue to the association's thread, which also rings where that thread waits."""

    def __init__(self, assoc: "Association") -> None:
        super().__init__()
        self._assoc = assoc

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        super().put(item, block, timeout)
        self._assoc.dimse.msg_queue.put(WAKE)


class Provider(DULServiceProvider):
    """The library's upper layer service provider, asleep until it has something to do."""

    def __init__(self, assoc: "Association") -> None:
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
