"""DIMSE messages as bytes: P-DATA-TF PDUs, C-STORE requests that need no mending, responses."""

import struct
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from pydicom.dataset import Dataset

from node.dicom.incoming import uid_of

COMMAND, LAST = 1, 2  # bits of the message control header: PS3.8 E.2
PDU_HEAD_BYTES = 6
LONGEST_COMMAND_BYTES = 1 << 16
PDV_HEAD_BYTES = 6  # length, context id, message control header: PS3.8 9.3.5.1

# Elements of group 0000: PS3.7 E.1. Those of a C-STORE request are 9.3.1.1.
SOP_CLASS, FIELD, MESSAGE_ID, ANSWERED_ID = 0x0002, 0x0100, 0x0110, 0x0120
PRIORITY, DATA_SET_TYPE, STATUS = 0x0700, 0x0800, 0x0900
OFFENDING, COMMENT, INSTANCE = 0x0901, 0x0902, 0x1000
USUAL = frozenset(
    {0x0000, SOP_CLASS, FIELD, MESSAGE_ID, PRIORITY, DATA_SET_TYPE, INSTANCE, 0x1030, 0x1031}
)
USUAL_IN_RESPONSE = frozenset(
    {0x0000, SOP_CLASS, FIELD, ANSWERED_ID, DATA_SET_TYPE, STATUS, INSTANCE}
)
STORE_REQUEST, STORE_RESPONSE = 0x0001, 0x8001
DATA_SET, NO_DATA_SET = 0x0001, 0x0101
LOWEST_PRIORITY = 2  # PS3.7 9.3.1.1: 0 medium, 1 high, 2 low


class Fragment(NamedTuple):
    """A fragment of a command set or of a data set."""

    context_id: int
    control: int
    value: memoryview


class StoreRequest(NamedTuple):
    """A C-STORE request, and the transfer syntax of its data set."""

    message_id: int
    sop_class_uid: str
    instance_uid: str
    transfer_syntax: str


def fragments(pdu: memoryview) -> Iterator[Fragment]:
    """The fragments of a P-DATA-TF PDU; ValueError before the first where it is malformed."""
    at, places = PDU_HEAD_BYTES, []
    while at < len(pdu):
        if at + PDV_HEAD_BYTES > len(pdu):
            raise ValueError("a PDU ends in the middle of a PDV's head")
        length, context_id, control = struct.unpack_from(">IBB", pdu, at)
        begin, at = at + PDV_HEAD_BYTES, at + 4 + length
        if length < 2 or at > len(pdu):
            raise ValueError("the length of a PDV is wrong")
        places.append((context_id, control, begin, at))
    return (Fragment(to, control, pdu[begin:end]) for to, control, begin, end in places)


def store_request(
    command: bytes, abstract_syntax: str, transfer_syntax: str
) -> StoreRequest | None:
    """The C-STORE request in a command set; None where it is anything but a usual one."""
    values = _elements(command)
    if values is None or not values.keys() <= USUAL:
        return None
    numbers = [_number(values, tag) for tag in (FIELD, DATA_SET_TYPE, PRIORITY, MESSAGE_ID)]
    sop_class_uid, instance_uid = (uid_of(values.get(tag, b"")) for tag in (SOP_CLASS, INSTANCE))
    field, data_set_type, priority, message_id = numbers
    is_usual = (
        field == STORE_REQUEST
        and data_set_type not in (NO_DATA_SET, -1)
        and 0 <= priority <= LOWEST_PRIORITY
        and message_id >= 0
        and sop_class_uid == abstract_syntax
        and instance_uid
    )
    if not is_usual:
        return None
    return StoreRequest(message_id, sop_class_uid, instance_uid, transfer_syntax)


def store_command(request: StoreRequest) -> bytes:
    """The command set of a C-STORE request."""
    return _command_set(
        _element(SOP_CLASS, _padded(request.sop_class_uid.encode("ascii"))),
        _element(FIELD, struct.pack("<H", STORE_REQUEST)),
        _element(MESSAGE_ID, struct.pack("<H", request.message_id)),
        _element(PRIORITY, struct.pack("<H", LOWEST_PRIORITY)),
        _element(DATA_SET_TYPE, struct.pack("<H", DATA_SET)),
        _element(INSTANCE, _padded(request.instance_uid.encode("ascii"))),
    )


def store_status(command: bytes, message_id: int) -> int | None:
    """The status in the response to that request; None where it is anything but a usual one."""
    values = _elements(command)
    if values is None or not values.keys() <= USUAL_IN_RESPONSE:
        return None
    is_mine = _number(values, ANSWERED_ID) == message_id
    if _number(values, FIELD) != STORE_RESPONSE or not is_mine or STATUS not in values:
        return None
    status = _number(values, STATUS)
    return status if status >= 0 else None


def store_response(request: StoreRequest, answer: int | Dataset) -> bytes:
    """The command set of the response; a failure says what is wrong with which elements."""
    status = answer if isinstance(answer, int) else int(answer.Status)
    return _command_set(
        _element(SOP_CLASS, _padded(request.sop_class_uid.encode("ascii"))),
        _element(FIELD, struct.pack("<H", STORE_RESPONSE)),
        _element(ANSWERED_ID, struct.pack("<H", request.message_id)),
        _element(DATA_SET_TYPE, struct.pack("<H", NO_DATA_SET)),
        _element(STATUS, struct.pack("<H", status)),
        *([] if isinstance(answer, int) else _reasons(answer)),
        _element(INSTANCE, _padded(request.instance_uid.encode("ascii"))),
    )


def _command_set(*elements: bytes) -> bytes:
    group = b"".join(elements)
    return _element(0x0000, struct.pack("<I", len(group))) + group


def _reasons(failure: Dataset) -> Iterator[bytes]:
    """Offending Element and Error Comment: PS3.7 C.4.2."""
    if "OffendingElement" in failure:
        offending = failure.OffendingElement
        tags = [offending] if isinstance(offending, int) else offending
        value = b"".join(struct.pack("<HH", tag >> 16, tag & 0xFFFF) for tag in tags)
        yield _element(OFFENDING, value)
    if "ErrorComment" in failure:
        yield _element(COMMENT, _padded(failure.ErrorComment.encode("ascii"), b" "))


def command_pdus(command: bytes, *, context_id: int, most: int) -> Iterator[bytes]:
    """A command set as P-DATA-TF PDUs."""
    for start in range(0, len(command), most):
        fragment = command[start : start + most]
        yield _pdu(fragment, context_id, COMMAND, is_last=start + most >= len(command))


def _pdu(fragment: bytes, context_id: int, kind: int, *, is_last: bool) -> bytes:
    return pdu_head(len(fragment), context_id, kind | (LAST if is_last else 0)) + fragment


def pdu_head(length: int, context_id: int, control: int) -> bytes:
    """What stands before the only fragment of a P-DATA-TF PDU, of that length."""
    length += PDV_HEAD_BYTES
    return struct.pack(">BBIIBB", 0x04, 0, length, length - 4, context_id, control)


def _elements(command: bytes) -> dict[int, bytes] | None:
    """The elements of a command set, Implicit VR Little Endian; None where one is odd."""
    values: dict[int, bytes] = {}
    at, before = 0, -1
    while at + 8 <= len(command):
        group, number, length = struct.unpack_from("<HHI", command, at)
        at += 8 + length
        if group or number <= before:
            return None
        values[number], before = command[at - length : at], number
    return values if at == len(command) else None


def _number(values: Mapping[int, bytes], tag: int) -> int:
    """An unsigned number of 16 bits; -1 where there is none."""
    value = values.get(tag, b"")
    return int.from_bytes(value, "little") if len(value) == 2 else -1


def _padded(value: bytes, padding: bytes = b"\0") -> bytes:
    return value + padding * (len(value) % 2)


def _element(number: int, value: bytes) -> bytes:
    return struct.pack("<HHI", 0, number, len(value)) + value
