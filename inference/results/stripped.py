"""A stack without what lies outside a mask: same slices, same places, same values inside."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from inference import header as h
from inference.dataset import Header
from inference.header import Elements
from inference.pixels import PixelFormat, Stored, encoded, is_lossy
from inference.results.making import RESEARCH_WORDS, Making, shared

# PS3.3 C.7.6.2 and C.8.3.1: of each slice as it is; an attribute that is absent stays so.
PLANE = h.keywords_of(
    """
    ImagePositionPatient ImageOrientationPatient PixelSpacing SliceThickness SpacingBetweenSlices
    SliceLocation
    """
)
MR_IMAGE = h.keywords_of(
    """
    ScanningSequence SequenceVariant ScanOptions MRAcquisitionType SequenceName AngioFlag
    RepetitionTime EchoTime InversionTime NumberOfAverages ImagingFrequency ImagedNucleus
    EchoNumbers MagneticFieldStrength NumberOfPhaseEncodingSteps EchoTrainLength PercentSampling
    PercentPhaseFieldOfView PixelBandwidth TriggerTime NominalInterval ReceiveCoilName
    TransmitCoilName AcquisitionMatrix InPlanePhaseEncodingDirection FlipAngle SAR
    VariableFlipAngleFlag TemporalPositionIdentifier NumberOfTemporalPositions TemporalResolution
    AcquisitionNumber
    """
)
TYPE_2 = ("ScanOptions", "MRAcquisitionType", "EchoTime", "EchoTrainLength", "AcquisitionNumber")
EXTRACTED_SERIES = "series of the extracted brain"  # its place among the UIDs of a job
MASKED = h.items_of(
    h.elements_of(
        CodeValue="113047", CodingSchemeDesignator="DCM", CodeMeaning="Pixel by pixel mask"
    )
)


def background_of(stored: Iterable[Stored], form: PixelFormat) -> int:
    """The stored value for what is outside: the lowest of the source if that is below 0, else 0."""
    turned = form.least + form.most  # of a value where black is the highest (MONOCHROME1)
    if form.is_inverted:
        return turned - min(0, *(turned - int(plane.max()) for plane in stored))
    return min(0, *(int(plane.min()) for plane in stored))


def stripped_slices(
    headers: Sequence[Header],
    stored: Sequence[Stored],
    mask: NDArray[np.bool_],
    making: Making,
    label: str = "Brain",
    number: int = 1,
) -> Iterator[Elements]:
    """The data set of each slice, in the order given; `label` says what the mask shows."""
    background = background_of(stored, PixelFormat.of(headers[0]))
    series = shared(headers[0], making, f"{label} extracted", number) | h.elements_of(
        Modality="MR", SeriesInstanceUID=making.uid_of(EXTRACTED_SERIES)
    )
    numbers = _numbers(headers)
    for place, header in enumerate(headers):
        values = np.where(mask[place], stored[place], background).astype(np.int32)
        yield series | _of_slice(header, making, numbers[place]) | _pixels(header, values)


def _numbers(headers: Sequence[Header]) -> list[int]:
    """Instance Numbers of the source where each has its own, so that slices keep their names."""
    own = [header.integer("InstanceNumber") for header in headers]
    known = [value for value in own if value is not None]
    is_usable = len(set(known)) == len(headers)
    return known if is_usable else list(range(1, len(headers) + 1))


def _of_slice(header: Header, making: Making, number: int) -> Elements:
    reference = h.elements_of(
        ReferencedSOPClassUID=header.text("SOPClassUID"), ReferencedSOPInstanceUID=header.uid
    )
    source = reference | h.elements_of(
        SpatialLocationsPreserved="YES", PurposeOfReferenceCodeSequence=h.code("121322")
    )
    return (
        h.elements_of(**dict.fromkeys(TYPE_2))
        | h.carried(header, (*MR_IMAGE, *h.ACQUISITION, *h.WINDOW, *PLANE), repaired=True)
        | h.elements_of(
            SOPClassUID=header.text("SOPClassUID"),
            SOPInstanceUID=making.uid_of(f"extracted brain of {header.uid}"),
            InstanceNumber=str(number),
            ImageType=["DERIVED", "SECONDARY", header.value("ImageType", 2) or "OTHER"],
            SyntheticData="NO",
            DerivationDescription=f"Outside of the brain mask set to background: {RESEARCH_WORDS}",
            DerivationCodeSequence=MASKED,
            SourceImageSequence=h.items_of(source),
            ReferencedSeriesSequence=h.items_of(
                h.elements_of(
                    SeriesInstanceUID=header.text("SeriesInstanceUID"),
                    ReferencedInstanceSequence=h.items_of(reference),
                )
            ),
        )
    )


def _pixels(header: Header, values: Stored) -> Elements:
    data = encoded(values, header)
    is_word = (header.integer("BitsAllocated") or 16) > 8
    return (
        h.carried(header, h.PIXELS, repaired=True)
        | h.elements_of(SamplesPerPixel=1, HighBit=(header.integer("BitsStored") or 16) - 1)
        | (h.elements_of(LossyImageCompression="01") if is_lossy(header) else {})
        | {0x7FE00010: h.raw(0x7FE00010, "OW" if is_word else "OB", data)}
    )
