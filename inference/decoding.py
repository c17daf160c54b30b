"""Pixels out of a file: which decoder, and whether the file holds all of them (PS3.5 8, A.4)."""

import logging

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.filereader import read_dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from inference.dataset import DAMAGED, MOST_INFLATED, Header, inflated
from inference.errors import Reason, Unprocessable

logger = logging.getLogger(__name__)

Raw = NDArray[np.generic]  # (rows, columns), as the decoder gives it

PACKAGES = {
    "1.2.840.10008.1.2.4.5": "pylibjpeg-libjpeg",  # JPEG baseline, extended, lossless
    "1.2.840.10008.1.2.4.7": "pylibjpeg-libjpeg",
    "1.2.840.10008.1.2.4.8": "pyjpegls",  # JPEG-LS
    "1.2.840.10008.1.2.4.9": "pylibjpeg-openjpeg",  # JPEG 2000
    "1.2.840.10008.1.2.4.20": "pylibjpeg-openjpeg",  # HTJ2K
}
JPEG_FAMILY = "1.2.840.10008.1.2.4."
# The other decoder of JPEG-LS makes a picture of a damaged code stream without a word.
PREFERRED = {"1.2.840.10008.1.2.4.80": "pyjpegls", "1.2.840.10008.1.2.4.81": "pyjpegls"}
# Baseline, extended and lossless JPEG: their decoder makes up what a cut code stream lacks.
HUFFMAN_CODED = frozenset(f"{JPEG_FAMILY}{number}" for number in (50, 51, 57, 70))
END_OF_IMAGE = b"\xff\xd9"
# More entropy-coded data than any row needs: a decoder that had all it wanted does not read it.
SURPLUS = b"\x55" * 256


def decoded(header: Header) -> Raw:
    """The pixels of a slice as its decoder gives them; raises Unprocessable without them."""
    check_decoder(header)
    try:
        dataset = _whole_data_set(header)
        if header.transfer_syntax.startswith(JPEG_FAMILY) and not _has_end(dataset):
            raise broken(header, "they end too early")
        plane = _pixels(dataset, header)
        if header.transfer_syntax in HUFFMAN_CODED and not _read_to_the_end(dataset, header, plane):
            raise broken(header, "they end too early")
    except (*DAMAGED, RuntimeError, OSError) as error:
        logger.warning("pixels not decoded", extra={"error": type(error).__name__})
        raise broken(header, "they cannot be decoded") from error
    rows, columns = header.integer("Rows"), header.integer("Columns")
    if plane.shape != (rows, columns):
        found = " x ".join(map(str, plane.shape))
        raise broken(header, f"{found} pixels instead of {rows} x {columns}")
    return plane


def check_decoder(header: Header) -> None:
    """Raise Unprocessable where no installed decoder takes the transfer syntax."""
    syntax = header.transfer_syntax
    try:
        decoder = get_decoder(UID(syntax))
    except (NotImplementedError, ValueError):
        raise _without_decoder(syntax, "no package decodes it") from None
    if not decoder.is_available:
        known = (name for prefix, name in PACKAGES.items() if syntax.startswith(prefix))
        package = next(known, "; ".join(decoder.missing_dependencies))
        raise _without_decoder(syntax, f"the package {package} is not installed")


def _without_decoder(syntax: str, why: str) -> Unprocessable:
    name = UID(syntax).name if syntax else "(not given)"
    sentence = f"The pixels are encoded as {name} [{syntax}]: {why}. Send the series uncompressed."
    return Unprocessable(Reason.NO_DECODER, sentence)


def broken(header: Header, why: str) -> Unprocessable:
    """The verdict on a slice whose pixels cannot be had, with the number that scanners show."""
    number = header.text("InstanceNumber") or "?"
    sentence = f"The pixels of image {number} are damaged or incomplete ({why}); send it again."
    return Unprocessable(Reason.PIXEL_DATA_ERROR, sentence)


def _whole_data_set(header: Header) -> Dataset:
    """The data set with its pixels; of a deflated one no more than these pixels can take."""
    if header.transfer_syntax != DeflatedExplicitVRLittleEndian:
        return dcmread(header.path)
    sides = (header.integer("Rows") or 0) * (header.integer("Columns") or 0)
    most = MOST_INFLATED + sides * (header.integer("BitsAllocated") or 0) // 8
    dataset = Dataset(read_dataset(inflated(header.path, most), False, True))
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(header.transfer_syntax)
    return dataset


def _has_end(dataset: Dataset) -> bool:
    """True where the code stream has its end marker: decoders make something of a cut one."""
    return _stream(dataset).endswith(END_OF_IMAGE)


def _stream(dataset: Dataset) -> bytes:
    return get_frame(dataset.PixelData, 0, number_of_frames=1).rstrip(b"\0")


def _pixels(dataset: Dataset, header: Header) -> Raw:
    return pixel_array(dataset, raw=True, decoding_plugin=PREFERRED.get(header.transfer_syntax, ""))


def _read_to_the_end(dataset: Dataset, header: Header, plane: Raw) -> bool:
    """False where the decoder wants more than the code stream holds, though its end is marked.

    It is given more than there is: what changes pixels, or is no valid code, was missing before.
    """
    longer = _stream(dataset).removesuffix(END_OF_IMAGE) + SURPLUS + END_OF_IMAGE
    dataset.PixelData = encapsulate([longer])
    try:
        return np.array_equal(_pixels(dataset, header), plane)
    except RuntimeError:
        return False
