"""The data set of a request to store on its way to disk, and the reasons to refuse it."""

import contextlib
import errno
import os
import re
import struct
import threading
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import NamedTuple, cast

from blake3 import blake3
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian
from pynetdicom.sop_class import CTImageStorage  # type: ignore[attr-defined]

from inference.release import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from node.dicom.status import SOP_CLASS_NOT_SUPPORTED, UID_INVALID
from storage.records import UID_CHARACTERS

ROOM_EVERY_BYTES = 32 << 20
BEGIN_BYTES = 1 << 14  # of a data set: most name patient and series before
KEPT_UID = re.compile(f"[{UID_CHARACTERS}]{{1,64}}".encode())


class Refusal(Exception):
    """A request to store is answered with a failure; the comment names no patient."""

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
BEFORE_META = b"\0" * 128 + b"DICM"


def _length_of_element(data: bytearray) -> int:
    """The length of the little endian element that begins here, its head included."""
    vr = bytes(data[4:6])
    if vr in (b"OB", b"OW", b"UN", b"UT"):  # of those that group 0002 may hold: PS3.5 7.1.2
        return 12 + int.from_bytes(data[8:12], "little")
    if vr.isalpha() and vr.isupper():
        return 8 + int.from_bytes(data[6:8], "little")
    return 8 + int.from_bytes(data[4:8], "little")


class Arrived(NamedTuple):
    """A whole Part 10 file: where its data set begins, how that begins, and its digest."""

    path: Path
    data_at: int
    begin: bytes
    digest: str


class Incoming(BytesIO):
    """The data set of one request to store on its way to disk, in the library's place for it.

    Its name ends in `.part`: the archive seals what is whole. A full disk ends the writing, not
    the association: the rest is read and dropped, and the request is answered with a failure.
    Elements of group 0002 at its start are left out: they belong to files, not to data sets (PS3.5
    7.1), and in the file a reader would believe them instead of the presentation context.
    """

    def __init__(
        self,
        folder: Path,
        head: bytes,
        *,
        min_free_bytes: int = 0,
        has_elements: bool = True,
        prefix: str = "",
    ) -> None:
        super().__init__()
        self.size = 0
        self.is_over = False  # it was answered, or never will be
        # What has come, until the first element that is kept; a deflated data set shows none.
        self._start: bytearray | None = bytearray() if has_elements else None
        self._min_free_bytes = min_free_bytes
        self._folder = folder
        self._path = folder / f"{prefix}{os.urandom(16).hex()}.part"
        self._problem: Refusal | OSError | None = None
        # The association's own thread discards it in the end, perhaps while another one writes: a
        # descriptor that is closed in between may be somebody else's file by then.
        self._guard = threading.RLock()
        self._file = -1
        self._data_at = len(head)
        self._digest = blake3()
        self._begin = b""
        try:
            self._check_room()
            self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            self._write(head)
        except OSError as error:
            self.spoil(error)

    def write(self, data: bytes | memoryview, /) -> int:  # type: ignore[override]
        """Take the next fragment."""
        size = self.size + len(data)
        with self._guard:
            if self._file >= 0:
                try:
                    if self.size // ROOM_EVERY_BYTES != size // ROOM_EVERY_BYTES:
                        self._check_room()
                    self._put(data if self._start is None else self._kept_start(data))
                except OSError as error:
                    self.spoil(error)
        self.size = size
        return len(data)

    def _put(self, data: bytes | memoryview) -> None:
        self._digest.update(data)
        if len(self._begin) < BEGIN_BYTES:
            self._begin += data[: BEGIN_BYTES - len(self._begin)]
        self._write(data)

    def _write(self, data: bytes | memoryview) -> None:
        written = os.write(self._file, data)
        while written < len(data):  # a signal, or a disk that has just become full
            written += os.write(self._file, data[written:])

    def _kept_start(self, data: bytes | memoryview) -> bytes | memoryview:
        """The part of the start of the data set that can be written by now."""
        assert self._start is not None
        if not self._start and len(data) >= len(META_GROUP) and data[:2] != META_GROUP:
            self._start = None
            return data
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

    def finish(self) -> Arrived:
        """The whole Part 10 file; raises what went wrong before."""
        with self._guard:
            if self._problem is not None:
                raise self._problem
            if self._file < 0:
                raise OSError(errno.ECANCELED, "the association is over")
            if self._start:
                self._put(bytes(self._start))
            file, self._file = self._file, -1
            os.close(file)
            return Arrived(self._path, self._data_at, self._begin, self._digest.hexdigest())

    def hand_over(self) -> None:
        """Note that somebody else has the file now."""
        self.is_over = True

    def discard(self) -> None:
        """Leave nothing behind; nothing happens where the file was moved away."""
        self.is_over = True
        with self._guard:
            if self._file >= 0:
                file, self._file = self._file, -1
                with contextlib.suppress(
                    OSError
                ):  # a full disk once more; the file goes all the same
                    os.close(file)
            self._path.unlink(missing_ok=True)

    def _check_room(self) -> None:
        disk = os.statvfs(self._folder)
        if disk.f_bavail * disk.f_frsize < self._min_free_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def part10_head(
    *,
    sop_class_uid: str,
    instance_uid: str,
    transfer_syntax: str,
    calling_ae: str = "",
    called_ae: str = "",
) -> bytes:
    """The bytes before the data set in a Part 10 file: PS3.10 7.1.

    With the AE titles a file whose row is lost still says for whom it is.
    """
    before, after = _around_uid(sop_class_uid, transfer_syntax, calling_ae, called_ae)
    group = before + _element(0x0003, b"UI", instance_uid.encode("ascii")) + after
    length = _element(0x0000, b"UL", struct.pack("<I", len(group)))
    return BEFORE_META + length + group


@lru_cache(maxsize=256)
def _around_uid(
    sop_class_uid: str, transfer_syntax: str, calling_ae: str, called_ae: str
) -> tuple[bytes, bytes]:
    """The elements before and after the one that differs between two instances of a series."""
    before = [
        _element(0x0001, b"OB", b"\0\1"),
        _element(0x0002, b"UI", sop_class_uid.encode("ascii")),
    ]
    after = [
        _element(0x0010, b"UI", transfer_syntax.encode("ascii")),
        _element(0x0012, b"UI", IMPLEMENTATION_CLASS_UID.encode("ascii")),
        _element(0x0013, b"SH", IMPLEMENTATION_VERSION_NAME.encode("ascii")),
    ]
    for number, ae_title in ((0x0017, calling_ae), (0x0018, called_ae)):
        if ae_title and ae_title.isascii():
            after.append(_element(number, b"AE", ae_title.encode("ascii")))
    return b"".join(before), b"".join(after)


def _element(number: int, vr: bytes, value: bytes) -> bytes:
    if len(value) % 2:
        value += b"\0" if vr == b"UI" else b" "
    head = struct.pack("<HH", 0x0002, number) + vr
    if vr == b"OB":
        return head + struct.pack("<HI", 0, len(value)) + value
    return head + struct.pack("<H", len(value)) + value


AFFECTED_SOP_CLASS, AFFECTED_SOP_INSTANCE, PRIORITY = 0x00000002, 0x00001000, 0x00000700
MEDIUM = 0
NO_UID = "0.0"  # stands in for a UID that the library could not carry; never kept or answered


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
    if not affected_instance(command):
        comment = "Affected SOP Instance UID: 1-64 letters, digits and . - _"
        problem = Refusal(UID_INVALID, comment, AFFECTED_SOP_INSTANCE)
        command.add_new(AFFECTED_SOP_INSTANCE, "UI", NO_UID)
    return problem


def affected_instance(command: Dataset) -> str:
    """The UID of the instance that a command names, empty where it is none that is stored."""
    return uid_of(_raw(command, AFFECTED_SOP_INSTANCE))


def _raw(command: Dataset, tag: int) -> bytes:
    """A value of the command set as it was sent: decoding would already judge it."""
    if tag not in command:
        return b""
    element = cast(RawDataElement | DataElement, command.get_item(tag))
    return (element.value or b"") if isinstance(element, RawDataElement) else b""
