"""What a Part 10 file on disk is: for the index, when it is made from files and not from a peer."""

from pathlib import Path

from pydicom import dcmread
from pydicom.errors import InvalidDicomError

from node.dicom.handlers import Identity, identify
from node.dicom.incoming import Refusal


def identify_file(path: Path) -> Identity | None:
    """The identity of a whole file; None where it is broken, or does not say what it is."""
    try:
        with path.open("rb") as file:
            meta = dcmread(file, specific_tags=[], stop_before_pixels=True).file_meta
            length = int(meta.FileMetaInformationGroupLength)
        # PS3.10 7.1: preamble, "DICM", the group length element, and as many bytes as it says.
        return identify(path, 128 + 4 + 12 + length, str(meta.TransferSyntaxUID))
    except (InvalidDicomError, AttributeError, EOFError, ValueError, OSError, Refusal):
        return None
