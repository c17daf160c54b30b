"""C-STORE requests of one association, written and answered in the thread that sends.

The library negotiates the association, and it releases or aborts it. In between its threads rest,
so that nothing stands between two instances but the peer. What the peer sends that is no answer is
left unread for the library, which then sees to the association's end.
"""

import itertools
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO, NamedTuple

from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pynetdicom.association import Association
from pynetdicom.dsutils import decode

from node.dicom.connection import LARGEST_PDU_BYTES
from node.dicom.messages import (
    COMMAND,
    LAST,
    LONGEST_COMMAND_BYTES,
    PDU_HEAD_BYTES,
    PDV_HEAD_BYTES,
    STORE_RESPONSE,
    StoreRequest,
    command_pdus,
    fragments,
    pdu_head,
    store_command,
    store_status,
)
from node.dicom.negotiation import DATA
from node.dicom.status import LONGEST_COMMENT
from node.dicom.transport import POLL_SECONDS
from node.dicom.upper_layer import (
    MALFORMED,
    LendingProvider,
)

BLOCK_BYTES = 1 << 20  # written at once: most slices whole
HEAD_BYTES = PDU_HEAD_BYTES + PDV_HEAD_BYTES
MOST_ELEMENTS = 4  # that are named of those that offend
OTHER = "sent something that is not a DICOM message, so the node aborted the association"
UNASKED = "answered what it was not asked, so the node aborted the association"


class Answer(NamedTuple):
    """The status of an instance, None where the peer gave none, and its comment."""

    status: int | None
    comment: str = ""


@dataclass(frozen=True)
class Message:
    """A C-STORE request whose first PDUs are ready to be written."""

    id: int
    block: memoryview
    further: Iterator[memoryview]


class Requests:
    """The connection of an association, for its requests alone until `close`."""

    def __init__(
        self, association: Association, seconds: float, is_given_up: Callable[[], bool]
    ) -> None:
        provider = association.dul
        assert isinstance(provider, LendingProvider)
        self.problem = ""  # of an answer that is none
        self._association = association
        self._provider = provider
        self._seconds = seconds
        self._is_given_up = is_given_up
        # In turn: one message is made ready while the one before it is on its way.
        self._blocks = itertools.cycle([memoryview(bytearray(BLOCK_BYTES)) for _ in range(2)])
        largest = min(association.dimse.maximum_pdu_size or LARGEST_PDU_BYTES, LARGEST_PDU_BYTES)
        self._most = largest - PDV_HEAD_BYTES  # even, and at least 2: the answer was read so
        self._transport = provider.lend()

    def message(self, request: StoreRequest, context_id: int, data: BinaryIO) -> Message:
        """Make a request ready, whose data set begins where `data` stands; it closes `data`."""
        pdus = command_pdus(store_command(request), context_id=context_id, most=self._most)
        further = self._pdus(b"".join(pdus), context_id, data)
        return Message(request.message_id, next(further), further)

    def store(self, message: Message, meanwhile: Callable[[], object] = lambda: None) -> Answer:
        """Send an instance and wait for its answer; `meanwhile` is called once it is written."""
        deadline = time.monotonic() + self._seconds
        try:
            answer = self._exchange(message, meanwhile, deadline)
        except MALFORMED:
            self.problem = self.problem or OTHER
            answer = None
        except BaseException:  # of the file, or of the caller: the peer waits for the rest
            self._transport.break_off()
            raise
        if answer is None:
            self._end(deadline)
        return answer or Answer(None)

    def close(self) -> None:
        """Give the connection back to the library, which can then release the association."""
        self._provider.take_back()

    def _exchange(
        self, message: Message, meanwhile: Callable[[], object], deadline: float
    ) -> Answer | None:
        if self._transport.ready:  # before it was asked
            if self._next_pdu(deadline) is not None:
                self.problem = UNASKED
            return None
        for block in itertools.chain([message.block], message.further):
            if not self._transport.offer(block, self._is_given_up):
                return None
        meanwhile()
        return self._answer(message.id, deadline)

    def _pdus(self, command: bytes, context_id: int, data: BinaryIO) -> Iterator[memoryview]:
        """The PDUs of a message, as many at a time as there is room for."""
        block, at = next(self._blocks), len(command)
        block[:at] = command
        with data:
            begin = data.tell()
            left = data.seek(0, os.SEEK_END) - begin
            data.seek(begin)
            is_last = False
            while not is_last:
                size = min(self._most, left)
                left -= size
                is_last = not left
                if at + HEAD_BYTES + size > len(block):
                    yield block[:at]
                    at = 0
                block[at : at + HEAD_BYTES] = pdu_head(size, context_id, LAST if is_last else 0)
                at += HEAD_BYTES
                if data.readinto(block[at : at + size]) != size:  # type: ignore[attr-defined]
                    raise OSError("the file became shorter while it was sent")
                at += size
        yield block[:at]

    def _answer(self, message_id: int, deadline: float) -> Answer | None:
        """The answer to that request; None where something else has come, or nothing."""
        command = bytearray()
        while (pdu := self._next_pdu(deadline)) is not None:
            parts = list(fragments(pdu))
            for place, (_, control, value) in enumerate(parts, 1):
                is_last = bool(control & LAST)
                if not control & COMMAND or (is_last and place < len(parts)):
                    raise ValueError("a data set, or a second message")
                command += value
            self._transport.blocks.skip(len(pdu))
            if len(command) > LONGEST_COMMAND_BYTES:
                raise ValueError("a command without an end")
            if parts and is_last:
                return self._read(bytes(command), message_id)
        return None

    def _next_pdu(self, deadline: float) -> memoryview | None:
        """The next P-DATA-TF PDU; None where none comes, or another one that is left unread."""
        while not self._transport.has_data(POLL_SECONDS):
            if self._is_given_up() or time.monotonic() >= deadline:
                return None
        try:
            pdu = self._transport.whole_pdu()
        except OSError:
            return None
        return pdu if pdu is not None and pdu[0] == DATA else None

    def _read(self, command: bytes, message_id: int) -> Answer:
        status = store_status(command, message_id)
        if status is not None:
            return Answer(status)
        answer = decode(BytesIO(command), True, True)  # Implicit VR: PS3.7 6.3.1
        if answer.CommandField != STORE_RESPONSE:
            raise ValueError("another message than a response")
        if answer.MessageIDBeingRespondedTo != message_id:
            self.problem = UNASKED
            raise ValueError("the response to another request")
        return Answer(int(answer.Status), comment_of(answer))

    def _end(self, deadline: float) -> None:
        """Let the library see how the association ends; abort it where the peer lets it stand."""
        self._provider.take_back()
        self._provider.go_on()
        while not self.problem and self._association.is_established:
            if self._is_given_up() or time.monotonic() >= deadline:
                break
            self._association.join(POLL_SECONDS)
        if self._association.is_established:
            self._association.abort()


def comment_of(answer: Dataset) -> str:
    """The Error Comment and the offending elements of an answer, printable and of bounded length.

    It may name a patient: it is for pages and for REST, never for the log.
    """
    comment = str(answer.get("ErrorComment", "") or "")
    text = "".join(letter if letter.isprintable() else " " for letter in comment).strip()
    elements = answer.get("OffendingElement", None)
    tags = list(elements) if isinstance(elements, MultiValue) else [elements]
    names = [_element_name(tag) for tag in tags if tag is not None]
    offending = f"offending elements {', '.join(names[:MOST_ELEMENTS])}" if names else ""
    return "; ".join(part for part in (text[:LONGEST_COMMENT], offending) if part)


def _element_name(tag: int) -> str:
    keyword = keyword_for_tag(tag)
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X}) {keyword}".strip()
