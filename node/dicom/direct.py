"""C-STORE requests of an association from their PDUs to the answers, past the library.

The thread that reads the connection takes the fragments, has them written and answers. A request
that is not a usual one goes back to the library, which mends and answers it.
"""

import logging
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pydicom.dataset import Dataset

from node.dicom.incoming import HIDDEN_ELEMENTS, Incoming, part10_head
from node.dicom.messages import (
    COMMAND,
    LAST,
    LONGEST_COMMAND_BYTES,
    PDU_HEAD_BYTES,
    PDV_HEAD_BYTES,
    StoreRequest,
    store_request,
)
from node.dicom.status import UNEXPECTED_ERROR

logger = logging.getLogger(__name__)

PDV_HEAD = struct.Struct(">IBB")
FIRST_VALUE = PDU_HEAD_BYTES + PDV_HEAD_BYTES

# Answers a request whose data set has come; with the answer, what is to be done after it was sent.
AnswerStore = Callable[[StoreRequest, Incoming], tuple[int | Dataset, Callable[[], None]]]
# Sends the response, in that presentation context.
Respond = Callable[[StoreRequest, int, int | Dataset], None]
# Abstract and transfer syntax of an accepted presentation context for instances.
SyntaxesOf = Callable[[int], tuple[str, str] | None]


class IncomingFiles:
    """The files of one association's requests."""

    def __init__(self, folder: Path, min_free_bytes: int) -> None:
        self._folder = folder
        self._min_free_bytes = min_free_bytes
        self._begun: list[Incoming] = []  # not all of them get as far as a handler

    def begin(self, request: StoreRequest, titles: tuple[str, str]) -> Incoming:
        """A file for the data set of a request; `titles` are the calling and the called one."""
        calling_ae, called_ae = titles
        head = part10_head(
            calling_ae=calling_ae,
            called_ae=called_ae,
            sop_class_uid=request.sop_class_uid,
            instance_uid=request.instance_uid,
            transfer_syntax=request.transfer_syntax,
        )
        incoming = Incoming(
            self._folder,
            head,
            min_free_bytes=self._min_free_bytes,
            has_elements=request.transfer_syntax not in HIDDEN_ELEMENTS,
        )
        self._begun = [*(before for before in self._begun if not before.is_over), incoming]
        return incoming

    def close(self) -> None:
        """Leave no file behind, also of requests that the library drops without asking anybody."""
        for incoming in self._begun:
            incoming.discard()


class Storing(NamedTuple):
    """A request whose data set is coming."""

    request: StoreRequest
    context_id: int
    incoming: Incoming


class DirectRequests:
    """The usual C-STORE requests of an association; ValueError where a message is malformed."""

    def __init__(
        self,
        begin: Callable[[StoreRequest], Incoming],
        syntaxes_of: SyntaxesOf,
        answer: AnswerStore,
        respond: Respond,
    ) -> None:
        self._begin = begin
        self._syntaxes_of = syntaxes_of
        self._answer = answer
        self._respond = respond
        self._command = bytearray()  # of a request that may turn out to be a usual one
        self._storing: Storing | None = None

    @property
    def has_begun(self) -> bool:
        """True in the middle of a request."""
        return self._storing is not None or bool(self._command)

    def takes(self, pdu: memoryview) -> bool:
        """Take a PDU that is one fragment of the data set that is coming; False of any other."""
        if self._storing is None or len(pdu) <= FIRST_VALUE:
            return False
        length, context_id, control = PDV_HEAD.unpack_from(pdu, PDU_HEAD_BYTES)
        is_whole = PDU_HEAD_BYTES + 4 + length == len(pdu)
        if not is_whole or context_id != self._storing.context_id or control & COMMAND:
            return False
        self._storing.incoming.write(pdu[FIRST_VALUE:])
        if control & LAST:
            self._finish(self._storing)
        return True

    def take(self, context_id: int, control: int, value: memoryview) -> bytes | None:
        """Take a fragment; the whole command set where the library has to see to its message."""
        if self._storing is None:
            return self._take_command(context_id, control, value)
        if control & COMMAND or context_id != self._storing.context_id:
            raise ValueError("another message in the middle of a data set")
        self._storing.incoming.write(value)
        if control & LAST:
            self._finish(self._storing)
        return None

    def discard(self) -> None:
        """Leave no file of a request that will not be answered any more."""
        storing, self._storing = self._storing, None
        self._command = bytearray()
        if storing is not None:
            storing.incoming.discard()

    def _take_command(self, context_id: int, control: int, value: memoryview) -> bytes | None:
        if not control & COMMAND:
            raise ValueError("a data set before its command")
        self._command += value
        if len(self._command) > LONGEST_COMMAND_BYTES:
            raise ValueError("a command without an end")
        if not control & LAST:
            return None
        command, self._command = bytes(self._command), bytearray()
        syntaxes = self._syntaxes_of(context_id)
        request = store_request(command, *syntaxes) if syntaxes is not None else None
        if request is None:
            return command
        self._storing = Storing(request, context_id, self._begin(request))
        return None

    def _finish(self, storing: Storing) -> None:
        self._storing = None
        request = storing.request
        try:
            status, then = self._answer(request, storing.incoming)
        except Exception as error:  # as the library does it: a failure, and the next one is taken
            extra = {"sop_instance_uid": request.instance_uid, "reason": type(error).__name__}
            logger.exception("instance not kept", extra=extra)
            status, then = UNEXPECTED_ERROR, _nothing
        self._respond(request, storing.context_id, status)
        then()


def _nothing() -> None:
    pass
