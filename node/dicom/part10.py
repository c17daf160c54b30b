"""What a Part 10 file on disk is: for the index, when it is made from files and not from a peer."""

import struct
from io import BytesIO
from pathlib import Path

from pydicom import dcmread

from node.dicom.handlers import Identity, identify
from node.dicom.incoming import MALFORMED, Refusal

# PS3.10 7.1: preamble, "DICM", and the element that says how many bytes of file meta follow.
BEFORE_META = b"DICM\x02\x00\x00\x00UL\x04\x00"
PREAMBLE_BYTES = 128
MAX_META_BYTES = 1 << 20  # private information may be in it; a length that lies asks for more


def identify_file(path: Path) -> Identity | None:
    """The identity of a whole file; None where it is broken, or does not say what it is."""
    try:
        with path.open("rb") as file:
            head = file.read(PREAMBLE_BYTES + len(BEFORE_META) + 4)
            meta = file.read(_meta_bytes(head))
        # Nothing of the data set is parsed here: no sequence that a peer nests gets that far.
        found = dcmread(BytesIO(head + meta)).file_meta
        return identify(path, len(head) + len(meta), str(found.TransferSyntaxUID))
    except (*MALFORMED, OSError, Refusal):
        return None


def _meta_bytes(head: bytes) -> int:
    if head[PREAMBLE_BYTES:-4] != BEFORE_META:
        raise ValueError("no file meta information with its length")
    (length,) = struct.unpack("<I", head[-4:])
    if length > MAX_META_BYTES:
        raise ValueError(f"{length} bytes of file meta information")
    return int(length)
