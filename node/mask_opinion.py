"""A second opinion on the results of a mask: their files beside those they were made from.

Like `node/second_opinion.py` it knows nothing of the product: it unpacks the frames itself.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from node.second_opinion import (
    EXPLICIT_LITTLE_ENDIAN,
    PATIENT_AND_STUDY,
    PIXEL_FORMAT,
    POSITION_MM,
    QUALIFICATIONS,
    UUID_UID,
    Slice,
)

MR_IMAGE, SEGMENTATION = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.66.4"
PIXEL_MASK = "113047"  # PS3.16 CID 7203: pixel by pixel mask
RESEARCH_END = "(AI, research)"
Faults = Iterator[str]


def check(received: Sequence[Path], results: Sequence[Path]) -> list[str]:
    """Everything that is wrong with the result files of a mask; nothing where they are right.

    `received` are the files of the stack that it was made of; `results` one segmentation and the
    images without what lies outside.
    """
    read = [Slice.read(path) for path in results]
    masks = [item for item in read if item.header.SOPClassUID == SEGMENTATION]
    images = [item for item in read if item.header.SOPClassUID == MR_IMAGE]
    if len(masks) != 1 or len(masks) + len(images) != len(read):
        return [f"{len(masks)} segmentations and {len(images)} MR images in {len(read)} files"]
    sources = {item.uid: item for item in map(Slice.read, received)}
    evidence = MaskEvidence(sources, masks[0], images)
    faults: list[str] = []
    judges = (_images, _frames, _values, _segment, _words, _identity, _uids)
    for judge in judges:
        try:
            faults += judge(evidence)
        except (AttributeError, KeyError, IndexError, ValueError) as absent:
            faults.append(f"absent: {absent}")
    return faults


@dataclass(frozen=True, eq=False)
class MaskEvidence:
    """The received slices by UID, the segmentation and the images of the extracted series."""

    received: Mapping[str, Slice]
    segmentation: Slice
    images: Sequence[Slice]

    @property
    def all(self) -> Iterator[Slice]:
        yield self.segmentation
        yield from self.images

    @cached_property
    def frames(self) -> Mapping[str, NDArray[np.bool_]]:
        """The mask of each received slice that has a frame, by the UID that the frame names."""
        header = self.segmentation.header
        count, size = int(header.NumberOfFrames), int(header.Rows) * int(header.Columns)
        bits = np.unpackbits(np.frombuffer(header.PixelData, np.uint8), bitorder="little")
        planes = bits[: count * size].reshape(count, header.Rows, header.Columns).astype(bool)
        named = map(source_of_frame, header.PerFrameFunctionalGroupsSequence)
        return dict(zip(named, planes, strict=True))

    def mask_of(self, uid: str) -> NDArray[np.bool_]:
        """The mask of a received slice; nothing where it has no frame."""
        shape = self.received[uid].header.Rows, self.received[uid].header.Columns
        return self.frames.get(uid, np.zeros(shape, bool))


def source_of_frame(frame: Dataset) -> str:
    """The UID of the image that a frame was made of."""
    (derivation,) = frame.DerivationImageSequence
    (source,) = derivation.SourceImageSequence
    return str(source.ReferencedSOPInstanceUID)


def source_of_image(image: Slice) -> str:
    """The UID of the image that an extracted slice was made of."""
    (source,) = image.header.SourceImageSequence
    return str(source.ReferencedSOPInstanceUID)


def _images(evidence: MaskEvidence) -> Faults:
    """Each received slice has one image, at its place and in its format."""
    if sorted(map(source_of_image, evidence.images)) != sorted(evidence.received):
        yield "the extracted images are not one for each received slice"
        return
    for image in evidence.images:
        source = evidence.received[source_of_image(image)]
        if np.abs(image.position - source.position).max() > POSITION_MM:
            yield f"{image.name}: lies at {image.position}, not at {source.position}"
        for keyword in ("ImageOrientationPatient", "PixelSpacing", *PIXEL_FORMAT):
            if image.header[keyword].value != source.header[keyword].value:
                yield f"{image.name}: {keyword} differs"
        if image.is_lossy() != source.is_lossy():
            yield f"{image.name}: the mark of lossy compression differs"


def _frames(evidence: MaskEvidence) -> Faults:
    """Each frame of the segmentation lies where the received slice lies that it names."""
    header = evidence.segmentation.header
    frames = header.PerFrameFunctionalGroupsSequence
    if (
        len(evidence.frames) != len(frames)
        or not evidence.frames.keys() <= evidence.received.keys()
    ):
        yield "the frames do not name received slices, each another one"
        return
    for frame in frames:
        source = evidence.received[source_of_frame(frame)]
        position = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
        if np.abs(position - source.position).max() > POSITION_MM:
            yield f"a frame lies at {position}, not at {source.position}"
        if (header.Rows, header.Columns) != (source.header.Rows, source.header.Columns):
            yield "the frames are of another size than the received slices"
    if not all(plane.any() for plane in evidence.frames.values()):
        yield "a frame is empty"
    if header.SegmentationType != "BINARY" or len(header.SegmentSequence) != 1:
        yield "not one binary segment"


def _values(evidence: MaskEvidence) -> Faults:
    """Values inside the mask are those that were received; outside there is one for all."""
    outside: set[int] = set()
    for image in evidence.images:
        uid = source_of_image(image)
        mask, pixels = evidence.mask_of(uid), image.pixels
        if not np.array_equal(pixels[mask], evidence.received[uid].pixels[mask]):
            yield f"{image.name}: values inside the mask differ from the received ones"
        outside |= set(np.unique(pixels[~mask]).tolist())
    if len(outside) > 1:
        yield f"{len(outside)} values outside the mask"


def _segment(evidence: MaskEvidence) -> Faults:
    """The segmentation says that it is for research, and which model made it."""
    header = evidence.segmentation.header
    if (header.Modality, header.ContentLabel) != ("SEG", "RESEARCH"):
        yield "Modality or Content Label of the segmentation"
    (segment,) = header.SegmentSequence
    (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
    if segment.SegmentAlgorithmType != "AUTOMATIC" or not algorithm.AlgorithmVersion:
        yield "the segment does not name the model that made it"


def _words(evidence: MaskEvidence) -> Faults:
    """All of them say that they are for research, what they are and what made them."""
    for item in evidence.all:
        if not item.header.SeriesDescription.endswith(RESEARCH_END):
            yield f"{item.name}: Series Description is {item.header.SeriesDescription!r}"
        if item.header.ContentQualification not in QUALIFICATIONS:
            yield f"{item.name}: Content Qualification"
        if item.header.Manufacturer != "Midslice":
            yield f"{item.name}: the node is not named as the equipment"
    for image in evidence.images:
        kind = list(image.header.ImageType)[:2], image.header.SyntheticData, image.header.Modality
        code = image.header.DerivationCodeSequence[0].CodeValue
        if (*kind, code) != (["DERIVED", "SECONDARY"], "NO", "MR", PIXEL_MASK):
            yield f"{image.name}: does not say that it is a masked MR image"


def _identity(evidence: MaskEvidence) -> Faults:
    """Same patient, study and frame of reference."""
    sources = evidence.received.values()
    frames = {source.header.get("FrameOfReferenceUID") for source in sources} - {None}
    for item in evidence.all:
        for keyword in PATIENT_AND_STUDY:
            if item.encoded.get(keyword) not in {of.encoded.get(keyword) for of in sources}:
                yield f"{item.name}: {keyword} is not that of the received series"
        if frames and item.header.FrameOfReferenceUID not in frames:
            yield f"{item.name}: a Frame of Reference UID that the scanner did not send"
        if item.header.file_meta.TransferSyntaxUID != EXPLICIT_LITTLE_ENDIAN:
            yield f"{item.name}: not Explicit VR Little Endian"


def _uids(evidence: MaskEvidence) -> Faults:
    """UIDs are new, and each result is a series of its own."""
    sources = evidence.received.values()
    used = {str(source.header.SeriesInstanceUID) for source in sources} | evidence.received.keys()
    for item in evidence.all:
        for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
            uid = str(item.header[keyword].value)
            if uid in used or not UUID_UID.fullmatch(uid):
                yield f"{item.name}: {keyword} {uid} is no new one"
    series = {str(image.header.SeriesInstanceUID) for image in evidence.images}
    if len(series) != 1 or str(evidence.segmentation.header.SeriesInstanceUID) in series:
        yield "the images are not one series, or the segmentation is in it"
    if len({item.uid for item in evidence.all}) != len(evidence.images) + 1:
        yield "two instances have the same SOP Instance UID"
