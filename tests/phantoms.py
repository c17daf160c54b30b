"""Made CT series: conformant by default, and wrong in exactly the way that a test asks for."""

import hashlib
import itertools
import math
import pickle
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_data_element, write_file_meta_info
from pydicom.sequence import Sequence as Items
from pydicom.tag import Tag
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from tests import privacy

COMPRESSED = (JPEGLSLossless, JPEG2000Lossless, RLELossless, JPEGLosslessSV1, HTJ2KLossless)
NATIVE = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian)
SYNTAXES = (*NATIVE, DeflatedExplicitVRLittleEndian, *COMPRESSED)
# Text and numbers, which are short.
SHORT = {"AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "SH", "SL", "SS", "TM", "UI", "UL", "US"}

# pydicom checks each value that is set, and each that is written. Thousands of slices differ in
# five attributes from the one before: the others are kept, of a series and of a file.
_alike: dict[str, bytes] = {}
_elements: dict[tuple[object, ...], bytes] = {}

Edit = Callable[[Dataset, int], None]


@dataclass(frozen=True)
class Patient:
    """Who the made images are of; bytes go into the file as they are."""

    name: str | bytes = "Phantom^One"
    id: str = "PH-0001"
    birth_date: str = "19600102"
    sex: str = "O"


@dataclass(frozen=True)
class Pixels:
    """How Hounsfield units are stored."""

    bits: int = 16
    is_signed: bool = True
    slope: float = 1.0
    intercept: float = -1024.0
    padding: int | None = None  # stored value outside the field of view
    photometric: str = "MONOCHROME2"

    @property
    def least(self) -> int:
        return -(1 << (self.bits - 1)) if self.is_signed else 0

    @property
    def most(self) -> int:
        return self.least + (1 << self.bits) - 1


@dataclass(frozen=True)
class Series:
    """Everything that can be asked of a made series; `Series()` is conformant."""

    slices: int = 6
    spacing_mm: float = 5.0
    gaps_mm: Sequence[float] | None = None  # instead of slices and spacing
    missing: Sequence[int] = ()  # indices that are left out; numbers of the others stay
    tilt_degrees: float = 0.0
    thickness_mm: float | None = 5.0
    rows: int = 32
    columns: int = 40
    pixel_mm: tuple[float, float] = (0.8, 0.8)
    kernel: str = "B30f"
    description: str | bytes = "Thorax 5.0 B30f"
    number: int = 3
    patient: Patient = Patient()
    character_set: str | Sequence[str] | None = "ISO_IR 100"
    transfer_syntax: str = ExplicitVRLittleEndian
    pixels: Pixels = Pixels()
    localizer: bool = False  # one more instance: a scout of the same series
    descending: bool = False  # Instance Numbers run against the positions
    seed: str = "phantom"  # UIDs are made of it
    study: str = "study"
    edit: Edit | None = None  # the last word on each data set, before it is written

    @property
    def places_mm(self) -> list[float]:
        """Distance of each slice from the first, along the normal."""
        gaps = [self.spacing_mm] * (self.slices - 1) if self.gaps_mm is None else self.gaps_mm
        return [float(place) for place in itertools.accumulate(gaps, initial=0.0)]


def uid(*words: object) -> str:
    """The same UID for the same words."""
    text = "/".join(str(word) for word in words)
    return f"2.25.{int.from_bytes(hashlib.sha256(text.encode()).digest()[:15], 'big')}"


def write(folder: Path, series: Series | None = None) -> list[Path]:
    """Write a made series, one file a slice, in the order of positions."""
    series = series or Series()
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index in range(len(series.places_mm)):
        if index in series.missing:
            continue
        path = folder / f"{index:04d}.dcm"
        save(path, dataset(series, index), series.transfer_syntax)
        paths.append(path)
    if series.localizer:
        path = folder / "scout.dcm"
        save(path, _localizer(series), series.transfer_syntax)
        paths.append(path)
    return paths


def hounsfield(series: Series, index: int) -> NDArray[np.float64]:
    """A body with a spine and two lungs, that changes smoothly from slice to slice."""
    z = series.places_mm[index] / 40.0
    y, x = np.mgrid[: series.rows, : series.columns]
    u = (x - series.columns / 2 + 0.5) / series.columns * 2
    v = (y - series.rows / 2 + 0.5) / series.rows * 2
    plane = np.full((series.rows, series.columns), -1000.0)
    body = (u / 0.85) ** 2 + (v / 0.7) ** 2
    plane[body < 1] = 40.0 + 20.0 * np.sin(6 * (u + z))[body < 1]
    for side in (-0.4, 0.4):
        lung = ((u - side) / (0.22 + 0.05 * math.sin(z))) ** 2 + ((v + 0.1) / 0.35) ** 2
        plane[lung < 1] = -850.0
    spine = ((u - 0.05 * math.sin(2 * z)) / 0.12) ** 2 + ((v - 0.45) / 0.12) ** 2
    plane[spine < 1] = 700.0
    return np.asarray(plane + 6.0 * np.sin(17 * u + 23 * v + 9 * z))


def stored(series: Series, index: int) -> NDArray[np.int64]:
    """The stored values of a slice; padding in the corners where it is asked for."""
    pixels = series.pixels
    values = np.rint((hounsfield(series, index) - pixels.intercept) / pixels.slope)
    values = np.clip(values, pixels.least, pixels.most).astype(np.int64)
    if pixels.padding is not None:
        y, x = np.mgrid[: series.rows, : series.columns]
        radius = np.hypot(x - series.columns / 2 + 0.5, y - series.rows / 2 + 0.5)
        values[values == pixels.padding] += 1
        values[radius > max(series.rows, series.columns) / 2] = pixels.padding
    if pixels.photometric == "MONOCHROME1":
        values = pixels.least + pixels.most - values
    return values


def dataset(series: Series, index: int) -> Dataset:
    """One slice as a data set."""
    made = _any_slice(series)
    made.SOPInstanceUID = uid(series.seed, series.number, "instance", index)
    count = len(series.places_mm)
    made.InstanceNumber = count - index if series.descending else index + 1
    _, position = place(series, index)
    made.ImagePositionPatient = [f"{value:.9g}" for value in position]
    made.SliceLocation = f"{position[2]:.6g}"
    made.PixelData = raw_pixels(stored(series, index), made.BitsAllocated)
    made["PixelData"].VR = "OB" if made.BitsAllocated == 8 else "OW"
    if series.edit is not None:
        series.edit(made, index)
    return made


def _any_slice(series: Series) -> Dataset:
    """What all slices of a series have."""
    key = repr(replace(series, slices=1, gaps_mm=None, missing=(), edit=None))
    if key not in _alike:
        made = Dataset()
        _patient_and_study(made, series)
        _series(made, series)
        _image(made, series)
        _pixels(made, series)
        _alike[key] = pickle.dumps(made)
    copied: Dataset = pickle.loads(_alike[key])
    return copied


def _patient_and_study(made: Dataset, series: Series) -> None:
    if series.character_set is not None:
        made.SpecificCharacterSet = series.character_set
    privacy.note(series.patient.name)
    _text(made, "PatientName", series.patient.name)
    made.PatientID = series.patient.id
    made.PatientBirthDate = series.patient.birth_date
    made.PatientSex = series.patient.sex
    made.PatientAge = "064Y"
    made.StudyInstanceUID = uid(series.seed, series.study)
    made.StudyDate, made.StudyTime = "20240305", "101112.5"
    made.StudyID, made.StudyDescription = "S1", "CT Thorax"
    made.AccessionNumber = "A12345"
    made.ReferringPhysicianName = "Doctor^Referring"


def _series(made: Dataset, series: Series) -> None:
    made.Modality = "CT"
    made.SeriesInstanceUID = uid(series.seed, "series", series.number)
    made.SeriesNumber = series.number
    made.SeriesDate, made.SeriesTime = "20240305", "101500"
    _text(made, "SeriesDescription", series.description)
    made.BodyPartExamined = "CHEST"
    made.PatientPosition = "HFS"
    made.ProtocolName = "Thorax"
    made.Manufacturer = "Maker of Phantoms"
    made.ManufacturerModelName = "Scanner 1"
    made.DeviceSerialNumber = "4711"
    made.SoftwareVersions = "V1.2"
    made.StationName = "CT1"
    made.InstitutionName = "Hospital"
    made.FrameOfReferenceUID = uid(series.seed, "frame")
    made.PositionReferenceIndicator = ""


def _image(made: Dataset, series: Series) -> None:
    made.SOPClassUID = CTImageStorage
    made.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    made.AcquisitionNumber = 1
    made.AcquisitionDate = made.ContentDate = "20240305"
    made.AcquisitionTime = made.ContentTime = "101300"
    made.KVP = "120"
    made.ConvolutionKernel = series.kernel
    made.XRayTubeCurrent = 200
    made.ExposureTime = 500
    made.Exposure = 100
    made.SliceThickness = None if series.thickness_mm is None else f"{series.thickness_mm:g}"
    made.PixelSpacing = [f"{mm:g}" for mm in series.pixel_mm]
    orientation, _ = place(series, 0)
    made.ImageOrientationPatient = [f"{value:.8g}" for value in orientation]
    made.WindowCenter, made.WindowWidth = "40", "400"


def place(series: Series, index: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(orientation, position): tilt turns the slices, the table still moves along z."""
    angle = math.radians(series.tilt_degrees)
    column = np.array([0.0, math.cos(angle), math.sin(angle)])
    orientation = np.concatenate([[1.0, 0.0, 0.0], column])
    along = series.places_mm[index] / math.cos(angle)
    return orientation, np.array([-150.0, -120.0, -300.0 + along])


def _pixels(made: Dataset, series: Series) -> None:
    pixels = series.pixels
    made.SamplesPerPixel = 1
    made.PhotometricInterpretation = pixels.photometric
    made.Rows, made.Columns = series.rows, series.columns
    made.BitsAllocated = 8 if pixels.bits <= 8 else 16
    made.BitsStored = pixels.bits
    made.HighBit = pixels.bits - 1
    made.PixelRepresentation = int(pixels.is_signed)
    made.RescaleIntercept, made.RescaleSlope = f"{pixels.intercept:g}", f"{pixels.slope:g}"
    made.RescaleType = "HU"
    if pixels.padding is not None:
        vr = "SS" if pixels.is_signed else "US"
        made.add_new(0x00280120, vr, pixels.padding)


def raw_pixels(values: NDArray[np.int64], allocated: int) -> bytes:
    """Values as native little endian pixel data."""
    data = (values & ((1 << allocated) - 1)).astype(f"<u{allocated // 8}").tobytes()
    return data + b"\0" * (len(data) % 2)


def put(made: Dataset, keyword: str, value: bytes) -> None:
    """Set an attribute to bytes that may be invalid; they are written as they are."""
    tag = Tag(keyword)
    value += b" " * (len(value) % 2)
    made[tag] = RawDataElement(tag, dictionary_VR(tag), len(value), value, 0, False, True)


def _text(made: Dataset, keyword: str, value: str | bytes) -> None:
    if isinstance(value, bytes):
        put(made, keyword, value)
    else:
        setattr(made, keyword, value)


def _localizer(series: Series) -> Dataset:
    made = dataset(series, 0)
    made.SOPInstanceUID = uid(series.seed, series.number, "scout")
    made.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    made.ImageOrientationPatient = ["1", "0", "0", "0", "0", "-1"]
    made.InstanceNumber = 99
    return made


def code_item(value: str, scheme: str, meaning: str) -> Dataset:
    """An item of a code sequence."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def sequence(*items: Dataset) -> Items:
    return Items(items)


def save(path: Path, made: Dataset, transfer_syntax: str = ExplicitVRLittleEndian) -> None:
    """Write a data set as a Part 10 file, its pixels encoded as the transfer syntax says."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(made.get("SOPClassUID", "") or CTImageStorage)
    meta.MediaStorageSOPInstanceUID = UID(made.get("SOPInstanceUID", "") or "2.25.1")
    meta.TransferSyntaxUID = UID(transfer_syntax)
    meta.ImplementationClassUID = UID("2.25.1")
    made.file_meta = meta
    if transfer_syntax in COMPRESSED:
        compress(made, transfer_syntax)
    elif transfer_syntax == ExplicitVRBigEndian and made.BitsAllocated == 16:
        made.PixelData = np.frombuffer(made.PixelData, "<u2").astype(">u2").tobytes()
    declared = made.get("SpecificCharacterSet") or "ISO_IR 6"
    encodings = declared if isinstance(declared, str) else tuple(declared)
    items = (made.get_item(tag) for tag in sorted(made.keys()))
    data = b"".join(_element(item, transfer_syntax, encodings) for item in items)
    if transfer_syntax == DeflatedExplicitVRLittleEndian:
        deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        data = deflate.compress(data) + deflate.flush()
        data += b"\0" * (len(data) % 2)
    head = _buffer(ExplicitVRLittleEndian)
    write_file_meta_info(head, meta, enforce_standard=True)
    path.write_bytes(b"\0" * 128 + b"DICM" + head.getvalue() + data)


def _element(
    element: DataElement | RawDataElement, transfer_syntax: str, encodings: str | tuple[str, ...]
) -> bytes:
    """One element alone: bytes that fit no character set stay as they are."""
    if isinstance(element, RawDataElement) or element.VR not in SHORT:
        return _written(element, transfer_syntax, encodings)
    value = type(element.value), repr(element.value)  # of a number string: its text
    key = (element.tag, element.VR, *value, transfer_syntax, encodings)
    if key not in _elements:
        _elements[key] = _written(element, transfer_syntax, encodings)
    return _elements[key]


def _written(
    element: DataElement | RawDataElement, transfer_syntax: str, encodings: str | tuple[str, ...]
) -> bytes:
    buffer = _buffer(transfer_syntax)
    listed = encodings if isinstance(encodings, str) else list(encodings)
    write_data_element(buffer, element, listed)
    return buffer.getvalue()


def _buffer(transfer_syntax: str) -> DicomBytesIO:
    buffer = DicomBytesIO()
    buffer.is_implicit_VR = transfer_syntax == ImplicitVRLittleEndian
    buffer.is_little_endian = transfer_syntax != ExplicitVRBigEndian
    return buffer


def compress(made: Dataset, transfer_syntax: str) -> None:
    """Encode the pixels of an uncompressed data set without loss."""
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.set_original_encoding(False, True)
    if transfer_syntax in (JPEGLosslessSV1, HTJ2KLossless):  # which the library has no encoder of
        values = np.frombuffer(made.PixelData, f"<u{made.BitsAllocated // 8}")
        values = values.reshape(made.Rows, made.Columns)
        made.PixelData = encapsulate([_stream(values, made, transfer_syntax)])
        made["PixelData"].VR = "OB"
        made.file_meta.TransferSyntaxUID = UID(transfer_syntax)
        return
    made.compress(transfer_syntax, generate_instance_uid=False)


def _stream(values: NDArray[np.unsignedinteger], made: Dataset, transfer_syntax: str) -> bytes:
    if transfer_syntax == HTJ2KLossless:
        signed = values.view(f"i{values.itemsize}") if made.PixelRepresentation else values
        return bytes(imagecodecs.htj2k_encode(signed, reversible=True))
    bits = made.BitsAllocated
    return bytes(imagecodecs.jpeg8_encode(values, lossless=True, predictor=1, bitspersample=bits))


def break_pixels(path: Path) -> None:
    """Cut the file in the middle of its pixels."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - 200])


def truncated_stream(made: Dataset, keep: int) -> None:
    """Keep only the first bytes of an encapsulated frame; the file itself stays whole."""
    frame = get_frame(made.PixelData, 0, number_of_frames=1)
    made.PixelData = encapsulate([frame[:keep]])


def pydicom_read(path: Path) -> Dataset:
    """A made file again, to be changed and saved."""
    return dcmread(path)
