"""The head of a Part 10 file (PS3.10 7.1), for `storage.files` and for DICOM networking alike."""

from typing import BinaryIO

# 128 bytes, "DICM", then (0002,0000) UL: the bytes of the rest of the file meta information.
PREAMBLE_BYTES = 128
BEFORE_LENGTH = b"DICM\x02\x00\x00\x00UL\x04\x00"
HEAD_BYTES = PREAMBLE_BYTES + len(BEFORE_LENGTH) + 4


def data_set_offset(file: BinaryIO) -> int | None:
    """The place of the data set in a file that is read from its begin; None without such a head.

    File meta information before it differs by peer and release; the data set is as it was sent.
    """
    head = file.read(HEAD_BYTES)
    if len(head) < HEAD_BYTES or head[PREAMBLE_BYTES:-4] != BEFORE_LENGTH:
        return None
    return HEAD_BYTES + int.from_bytes(head[-4:], "little")
