"""The derived series: its slices, where they lie, one header a slice, and the mark in the image."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pydicom.charset import convert_encodings, encode_string
from pydicom.dataelem import DataElement
from pydicom.tag import Tag

from inference import header as h
from inference import release
from inference.dataset import Header
from inference.geometry import Layout, frame_of_reference, is_undersampled
from inference.header import Elements, Part, raw
from inference.kinds import image_type_of_result
from inference.model import Model, Parameters, Step
from inference.pixels import Stored, encoded, is_lossy, is_padding_unbelievable
from inference.request import File, Output, Request
from inference.uids import frame_of_series, node_uid
from inference.volume import Vector

# What a derived series may be at most; a job beyond it would fill disk and time of everybody.
MOST_SLICES = 20_000
MOST_BYTES = 32 << 30
# Output slices whose distances differ by less have one spacing.
UNIFORM_SPACING_MM = 0.01
# Slice Location follows the position within this, or is taken from the position itself.
LOCATION_TOLERANCE = 0.01

# Of the first slice, for all: what differs by noise would part the series in a viewer.
GRID = ("ImageOrientationPatient", "PixelSpacing")
FIRST_SERIES_NUMBER, SERIES_NUMBER_STEP, MOST_SERIES_NUMBER = 9000, 1000, 2**31 - 1
MOST_DESCRIPTION = 64
UNDERSAMPLED = "UNDERSAMPLED"  # in the description where a filled gap is
GENERATED_COMMENT = "AI-generated slice, not acquired; not for primary diagnosis"
COPIED_COMMENT = (
    "Received slice, unchanged, in an AI-interpolated series; not for primary diagnosis"
)
PIXEL_DATA, REFERENCED_INSTANCES = 0x7FE00010, h.tag_of("ReferencedInstanceSequence")
MOST_PARTS = 64  # of headers that are kept for the slices to come
EARLIER = ("ContributionDateTime", "ContributionDescription", "PurposeOfReferenceCodeSequence")


@dataclass(frozen=True, eq=False)
class Planned:
    """One slice of the derived series before it has pixels."""

    uid: str
    number: int  # Instance Number
    position: Vector
    base: int  # the received slice that it copies, or whose pixel format it takes
    sources: tuple[int, ...]  # the received slices that it refers to
    gap: int | None = None  # None = a copy
    like: Header | None = None  # in whose pixel format it is written, if not that of `base`
    fraction: float = 0.0

    @property
    def is_generated(self) -> bool:
        return self.gap is not None

    def format_of(self, layout: Layout) -> Header:
        """The slice that says how the values are stored and what they mean."""
        return layout.headers[self.base] if self.like is None else self.like

    @property
    def name(self) -> str:
        return f"{self.number:05d}.dcm"


def plan_slices(
    layout: Layout,
    steps: Sequence[Step],
    output: Output,
    uid_of: Callable[[str], str],
    like: Header | None = None,
) -> tuple[Planned, ...]:
    """Every slice of the derived series, in the order of positions; its place makes its UID."""
    positions = layout.geometry.positions
    placed: list[tuple[float, Planned]] = []
    if output.include_received:
        for index, source in enumerate(layout.headers):
            uid = uid_of(f"copy of {source.uid}")
            placed.append((index, Planned(uid, 0, positions[index], index, (index,))))
    for step in steps:
        if step.gap is None:  # a survey
            continue
        first, second = positions[step.gap], positions[step.gap + 1]
        for fraction in step.fractions:
            place = f"after {layout.headers[step.gap].uid} by {fraction!r}"
            position = first + fraction * (second - first)
            slice_ = Planned(
                uid_of(place), 0, position, step.gap, step.needs, step.gap, like, fraction
            )
            placed.append((step.gap + fraction, slice_))
    placed.sort(key=lambda pair: pair[0])
    return _numbered([slice_ for _, slice_ in placed], layout)


def _numbered(slices: Sequence[Planned], layout: Layout) -> tuple[Planned, ...]:
    """Instance Numbers 1 to N in the scanner's stacking direction: many viewers sort by it."""
    numbers = [header.integer("InstanceNumber") for header in layout.headers]
    known = [number for number in numbers if number is not None]
    descends = len(known) > 1 and known[-1] < known[0]
    count = len(slices)
    return tuple(
        replace(slice_, number=count - place if descends else place + 1)
        for place, slice_ in enumerate(slices)
    )


def uniform_spacing(distances: NDArray[np.float64]) -> float | None:
    """The one distance between neighbours, or None where there are several."""
    if len(distances) < 2:
        return None
    gaps = np.diff(distances)
    mean = float(np.ptp(distances) / (len(distances) - 1))
    return mean if float(np.abs(gaps - mean).max()) <= UNIFORM_SPACING_MM else None


def location_law(layout: Layout) -> tuple[float, float] | None:
    """(slope, offset) of Slice Location over the distance along the normal; None = omit it."""
    values = [header.number("SliceLocation") for header in layout.headers]
    if any(value is None for value in values):
        return None
    distances = layout.geometry.distances_mm
    known = np.array(values, float)
    slope, offset = np.polyfit(distances, known, 1)
    off = float(np.abs(slope * distances + offset - known).max())
    return (float(slope), float(offset)) if off <= LOCATION_TOLERANCE else (1.0, 0.0)


def record_of(slices: Sequence[Planned], layout: Layout) -> Mapping[str, object]:
    """Facts of the gaps for a page: their width, what was generated and what is missing.

    Slices are named as a PACS names them: by Instance Number and position.
    """
    geometry = layout.geometry
    counts = Counter(slice_.gap for slice_ in slices)
    return {
        "received": len(layout.headers),
        "generated": len(slices) - counts[None],
        "copied": counts[None],
        "axis": "xyz"[geometry.axis],
        "received_slices": [
            {"number": header.integer("InstanceNumber"), "at_mm": geometry.place_mm(position)}
            for header, position in zip(layout.headers, geometry.positions, strict=True)
        ],
        "gaps": [
            {"gap_mm": round(float(gap_mm), 4), "factor": counts[gap] + 1}
            for gap, gap_mm in enumerate(geometry.gaps_mm)
        ],
        "missing": [{"gap": gap, "slices": layout.missing[gap]} for gap in sorted(layout.missing)],
        "shear_degrees": round(layout.shear_degrees, 2),
    }


class DerivedSeries:
    """Writes the instances of one derived series; what they share is made once."""

    def __init__(
        self,
        request: Request,
        layout: Layout,
        model: Model,
        slices: Sequence[Planned],
        series_uid: str,
    ) -> None:
        self._request = request
        self._layout = layout
        self._model = model
        self._slices = slices
        first = layout.headers[0]
        self._series_uid = series_uid
        self._at = local_time(request.started_at, first)
        self._distances = np.array([s.position @ layout.geometry.normal for s in slices])
        self._spacing = uniform_spacing(self._distances)
        self._location = location_law(layout)
        self._lossy = any(is_lossy(header) for header in layout.headers)
        self.shared = self._shared_elements(first, series_uid)
        self._shared = Part(self.shared)
        self._grid = Part(self._grid_elements(first))
        # Neighbouring slices share these parts.
        self._format = lru_cache(MOST_PARTS)(self._format_of)
        self._acquisition = lru_cache(MOST_PARTS)(self._acquisition_of)
        self._origin = lru_cache(MOST_PARTS)(self._origin_of)
        self._source_item = lru_cache(MOST_PARTS)(_source_item)

    @property
    def folder(self) -> Path:
        """The folder in which its files lie."""
        return self._request.folder

    @property
    def counts(self) -> tuple[int, int]:
        """The number of generated slices, and of all."""
        return sum(slice_.is_generated for slice_ in self._slices), len(self._slices)

    def description(self, marker: str) -> Elements:
        """The description of a series that belongs to this one."""
        first = self._layout.headers[0]
        return {0x0008103E: h.raw(0x0008103E, "LO", series_description(first, marker))}

    def processor(self) -> Elements:
        """The model as the equipment that has made something of received slices."""
        return self._model_item("Judged the generated slices", "109102")

    def write(
        self,
        place: int,
        stored: Stored,
        note: str = "",
        error_hu: float | None = None,
        *,
        bring_to_disk: Callable[[int], None] | None = None,
    ) -> File:
        """Write the slice at a place of the series with its stored values.

        The note, in ASCII, says of a generated slice how sure its model is; `error_hu` is what is
        expected of it.
        """
        slice_ = self._slices[place]
        form = slice_.format_of(self._layout)
        vr = "OW" if (form.integer("BitsAllocated") or 16) > 8 else "OB"
        parts = [*self._parts(place, note)]
        if slice_.is_generated and self._request.output.overlay:
            parts.append(overlay(words_of(error_hu), *stored.shape))
        parts.append(Part({PIXEL_DATA: h.raw(PIXEL_DATA, vr, encoded(stored, form))}))
        return File(
            name=slice_.name,
            instance_uid=slice_.uid,
            sop_class_uid=self._layout.headers[slice_.base].text("SOPClassUID"),
            digest=h.write_parts(self._request.folder / slice_.name, parts, bring_to_disk),
            generated=slice_.is_generated,
            series_uid=self._series_uid,
        )

    def elements(self, place: int) -> Elements:
        """The header of the slice at a place, without what its model says of it."""
        merged: Elements = {}
        for part in self._parts(place):
            merged |= part.elements
        return merged

    def _parts(self, place: int, note: str = "") -> Iterator[Part]:
        """The whole header of the slice at a place; a later part counts before an earlier one."""
        slice_ = self._slices[place]
        base = self._layout.headers[slice_.base]
        form = slice_.format_of(self._layout)
        yield self._shared
        yield self._format(form)
        yield self._acquisition(self._layout.headers[slice_.base + (slice_.fraction > 0.5)])
        yield self._grid
        yield Part(self._plane(place, base))
        yield self._origin(slice_.sources, slice_.base, slice_.is_generated)
        yield Part(
            self._derivation(slice_, note)
            | h.elements_of(SOPInstanceUID=slice_.uid, InstanceNumber=str(slice_.number))
        )

    def _format_of(self, form: Header) -> Part:
        """How the values are stored and what they mean."""
        bits = form.integer("BitsStored") or 16
        return Part(
            h.carried(form, _believed(form, h.PIXELS), repaired=True)
            | h.elements_of(HighBit=bits - 1, SamplesPerPixel=1)
            | (h.elements_of(LossyImageCompression="01") if self._lossy else {})
        )

    def _acquisition_of(self, nearest: Header) -> Part:
        return Part(self._in_its_character_set(nearest, h.ACQUISITION))

    def _shared_elements(self, first: Header, series_uid: str) -> Elements:
        request, at = self._request, self._at
        return (
            h.carried(first, (*h.CHARACTER_SET, *h.PATIENT_AND_STUDY))
            | h.elements_of(PositionReferenceIndicator="", KVP=None, AcquisitionNumber=None)
            | _laterality(first)
            | h.carried(first, h.SERIES, repaired=True)
            | h.elements_of(FrameOfReferenceUID=frame_uid(self._layout, request.secret))
            | h.carried(first, [k for k in h.UNIFORM if self._is_uniform(k)], repaired=True)
            | _window(first)
            | h.times(
                ("SeriesDate", "SeriesTime", "ContentDate", "ContentTime")
                + ("InstanceCreationDate", "InstanceCreationTime"),
                at,
            )
            | h.elements_of(
                SOPClassUID=first.text("SOPClassUID"),
                SeriesInstanceUID=series_uid,
                SeriesNumber=str(_series_number(first, request.mark.place)),
                InstanceCreatorUID=node_uid(request.secret, request.station_name),
                ImageType=list(image_type_of_result(self._layout.headers)),
                ContentQualification=request.output.content_qualification,
                Manufacturer=release.MANUFACTURER,
                ManufacturerModelName=release.MODEL_NAME,
                SoftwareVersions=[release.RELEASE, release.build()],
                StationName=request.station_name,
                RescaleType="HU",
                RelatedSeriesSequence=h.items_of(
                    h.elements_of(
                        StudyInstanceUID=first.text("StudyInstanceUID"),
                        SeriesInstanceUID=first.text("SeriesInstanceUID"),
                        PurposeOfReferenceCodeSequence=h.code("121323"),
                    )
                ),
            )
            | self.description(self._title())
        )

    def _in_its_character_set(self, source: Header, keywords: Sequence[str]) -> Elements:
        """Attributes of a slice, without text that the character set of the series cannot mean."""
        elements = h.carried(source, keywords, repaired=True)
        first = self._layout.headers[0]
        if source.values("SpecificCharacterSet") == first.values("SpecificCharacterSet"):
            return elements
        return {
            tag: element
            for tag, element in elements.items()
            if isinstance(element.value, bytes) and element.value.isascii()
        }

    def _is_uniform(self, keyword: str) -> bool:
        return len({header.values(keyword) for header in self._layout.headers}) == 1

    def _title(self) -> str:
        per_gap = Counter(slice_.gap for slice_ in self._slices if slice_.gap is not None)
        mark = self._request.mark
        coarse = UNDERSAMPLED if any(is_undersampled(self._layout, gap) for gap in per_gap) else ""
        revision = f"rev {mark.revision}" if mark.revision > 1 else ""
        label = " ".join(filter(None, (coarse, revision, self._request.output.label, mark.route)))
        counts = self.counts
        return title(self._request.parameters, set(per_gap.values()), counts, label)

    def _grid_elements(self, first: Header) -> Elements:
        elements = h.carried(first, GRID, repaired=True) | h.elements_of(SliceThickness=None)
        if self._spacing is not None:
            elements |= h.elements_of(SpacingBetweenSlices=h.ds(self._spacing))
        return elements

    def _plane(self, place: int, base: Header) -> Elements:
        slice_, output = self._slices[place], self._request.output
        thickness = h.carried(base, ("SliceThickness",), repaired=True)
        if output.slice_thickness == "spacing":
            thickness = h.elements_of(SliceThickness=h.ds(self._nearest_mm(place)))
        position = h.elements_of(ImagePositionPatient=[h.ds(x) for x in slice_.position])
        location: Elements = {}
        value = 0.0
        if self._location is not None:
            slope, offset = self._location
            value = slope * float(self._distances[place]) + offset
            location = h.elements_of(SliceLocation=h.ds(round(value, 6)))
        if not slice_.is_generated:
            position |= h.carried(base, ("ImagePositionPatient",), repaired=True)
            own = base.number("SliceLocation")
            if location and own is not None and abs(own - value) <= LOCATION_TOLERANCE:
                location |= h.carried(base, ("SliceLocation",), repaired=True)
        return thickness | position | location

    def _nearest_mm(self, place: int) -> float:
        """The distance of a slice from the nearer of its neighbours."""
        beside = self._distances[max(0, place - 1) : place + 2]
        others = np.delete(beside, min(place, 1))
        return float(np.abs(others - self._distances[place]).min())

    def _origin_of(self, sources: Sequence[int], base: int, is_generated: bool) -> Part:
        """The received slices that a slice was made from, and all equipment that had a part."""
        headers = [self._layout.headers[index] for index in sources]
        series = h.elements_of(SeriesInstanceUID=headers[0].text("SeriesInstanceUID")) | {
            REFERENCED_INSTANCES: h.sequence(
                "ReferencedInstanceSequence", (h.encoded(_reference(header)) for header in headers)
            )
        }
        equipment = self._equipment(self._layout.headers[base], is_generated)
        sequences = (
            h.sequence(
                "SourceImageSequence",
                (self._source_item(header, is_generated) for header in headers),
            ),
            h.sequence("ReferencedSeriesSequence", [h.encoded(series)]),
            h.sequence("ContributingEquipmentSequence", map(h.encoded, equipment)),
        )
        synthetic = h.elements_of(SyntheticData="YES" if is_generated else "NO")
        return Part({int(element.tag): element for element in sequences} | synthetic)

    def _derivation(self, slice_: Planned, note: str) -> Elements:
        if not slice_.is_generated:
            return h.elements_of(
                DerivationDescription="Pixel data copied unchanged from source slice",
                ImageComments=COPIED_COMMENT,
            )
        text = (
            f"AI-synthesised slice at {slice_.fraction:.4g} of the gap between 2 source slices "
            f"(model {self._model_text()}); not acquired"
        ) + (f"; {note}" if note else "")
        return h.elements_of(
            DerivationDescription=text,
            DerivationCodeSequence=h.code("113085"),
            ImageComments=GENERATED_COMMENT,
        )

    def _model_text(self) -> str:
        model, weights = self._model, self._model.weights_sha256
        return f"{model.name} {model.version}" + (f" sha256 {weights[:16]}" if weights else "")

    def _equipment(self, base: Header, is_generated: bool) -> list[Elements]:
        """The scanner, what the source names already, and the model (C.12.1.1.5)."""
        scanner = h.elements_of(Manufacturer="Unknown") | {
            tag: element
            for tag, element in self._in_its_character_set(base, h.SCANNER).items()
            if element.value not in (None, b"")
        }
        scanner |= h.elements_of(PurposeOfReferenceCodeSequence=h.code("109101"))
        earlier = [
            h.carried(item, (*h.SCANNER, *EARLIER), repaired=True)
            for item in base.items("ContributingEquipmentSequence")
            if item.raw("Manufacturer").strip() and item.items("PurposeOfReferenceCodeSequence")
        ]
        if is_generated:
            return [scanner, *earlier, self._model_item("Generated this slice", "109100")]
        return [scanner, *earlier, self._model_item("Copied this slice unchanged", "109102")]

    def _model_item(self, did: str, purpose: str) -> Elements:
        versions = [self._model.version]
        if self._model.weights_sha256:
            versions.append(f"sha256 {self._model.weights_sha256[:32]}")
        return h.elements_of(
            Manufacturer=release.MANUFACTURER,
            ManufacturerModelName=self._model.name[:64],
            SoftwareVersions=versions,
            ContributionDateTime=self._at.strftime("%Y%m%d%H%M%S.%f%z"),
            ContributionDescription=did,
            PurposeOfReferenceCodeSequence=h.code(purpose),
        )


def frame_uid(layout: Layout, secret: bytes) -> str:
    """The frame of reference of the sources; where they name none, one for all of their series."""
    first = layout.headers[0]
    named = frame_of_reference(layout.headers)
    return named or frame_of_series(
        secret, first.text("StudyInstanceUID"), first.text("SeriesInstanceUID")
    )


def title(
    parameters: Parameters, generated_per_gap: set[int], counts: tuple[int, int], label: str
) -> str:
    """The marker before the scanner's description; first, because viewers cut columns.

    It says how many slices were not acquired, and of how many.
    """
    if parameters.factor is not None:
        how = f"x{parameters.factor}"
    elif len(generated_per_gap) == 1:
        how = f"x{next(iter(generated_per_gap)) + 1}"
    else:
        how = f"to {parameters.target_spacing_mm:g} mm"
    marker = f"AI-INTERP {how} {counts[0]} of {counts[1]} NOT ACQUIRED"
    return marker + (f" {label}" if label else "")


def series_description(source: Header, marker: str) -> bytes:
    """The marker and what fits of the source's description, in the source's character set."""
    marker = marker[:MOST_DESCRIPTION]
    text = source.decoded("SeriesDescription")
    room = MOST_DESCRIPTION - len(marker) - len(" | ")
    raw = source.raw("SeriesDescription").rstrip(b" \0")
    whole = marker.encode("ascii")
    is_plain = text is not None and "\\" not in text and text.isprintable()
    if text and is_plain and room > 0:
        if len(text) <= room:
            whole += b" | " + raw
        elif raw.isascii() and b"\x1b" not in raw:
            whole += b" | " + raw[:room].rstrip()
        else:
            cut = _cut(source, text, room)
            # The space that makes the length even is a character too.
            whole += cut if len(whole + cut) % 2 == 0 else _cut(source, text, room - 1)
    return whole if len(whole) % 2 == 0 else whole + b" "


def _cut(source: Header, text: str, room: int) -> bytes:
    """The first characters, encoded as the source does; nothing where that cannot be done."""
    try:
        codecs = convert_encodings(list(source.values("SpecificCharacterSet")))
        return b" | " + encode_string(text[:room].rstrip(), codecs)
    except (UnicodeError, LookupError, ValueError):
        return b""


def local_time(at: datetime, source: Header) -> datetime:
    """The time in the zone that the source's header declares for all its times."""
    offset = source.text("TimezoneOffsetFromUTC")
    try:
        minutes = int(offset[1:3]) * 60 + int(offset[3:5])
        sign = {"+": 1, "-": -1}[offset[:1]]
        return at.astimezone(timezone(sign * timedelta(minutes=minutes)))
    except (ValueError, KeyError):
        return at


def _series_number(source: Header, place: int) -> int:
    """After the numbers of the scanner, and another one for each that is made of a stack."""
    number = FIRST_SERIES_NUMBER + max(0, source.integer("SeriesNumber") or 0)
    return min(number + place * SERIES_NUMBER_STEP, MOST_SERIES_NUMBER)


def _laterality(first: Header) -> Elements:
    """An empty Laterality where nothing says whether the body part is a paired one (type 2C)."""
    is_said = first.text("BodyPartExamined") or first.items("AnatomicRegionSequence")
    return {} if is_said else h.elements_of(Laterality="")


def _believed(header: Header, keywords: Sequence[str]) -> Sequence[str]:
    """Without a padding value that is not believed: a viewer would make holes in the body of it."""
    if not is_padding_unbelievable(header):
        return keywords
    return [keyword for keyword in keywords if not keyword.startswith("PixelPadding")]


def _window(first: Header) -> Elements:
    """The first slice's window for all, unless it is none (PS3.3 C.11.2.1.2)."""
    centers, widths = first.numbers("WindowCenter"), first.numbers("WindowWidth")
    if not centers or len(centers) != len(widths) or min(widths) < 1:
        return {}
    elements = h.carried(first, h.WINDOW, repaired=True)
    explanations = first.values("WindowCenterWidthExplanation")
    if len(explanations) != len(centers):
        elements.pop(0x00281055, None)
    return elements


def _source_item(source: Header, is_generated: bool) -> bytes:
    return h.encoded(
        _reference(source)
        | h.elements_of(
            SpatialLocationsPreserved="NO" if is_generated else "YES",
            PurposeOfReferenceCodeSequence=h.code("121322"),
        )
    )


def _reference(source: Header) -> Elements:
    return h.elements_of(
        ReferencedSOPClassUID=source.text("SOPClassUID"),
        ReferencedSOPInstanceUID=source.uid,
    )


# The mark of a generated slice that travels in the image: words in an overlay plane, in a corner.
# An overlay (PS3.3 C.9.2) lies beside the pixels: viewers draw it over them, and no value changes.

OVERLAY_GROUP, LAST_OVERLAY_GROUP = 0x6000, 0x60FF
OVERLAY_DESCRIPTION = OVERLAY_GROUP << 16 | 0x0022
NOT_ACQUIRED = "AI, not acquired"
SHORTEST = "AI"  # where a slice has no room for more
# Pillow's own bitmap font has 11 rows a line: as many twice over on a slice of 512 x 512 pixels.
PIXELS_A_SCALE = 256
# The mark stays in its corner, if that leaves room for its longest word.
CORNER = 0.45

Bits = NDArray[np.bool_]


def words_of(error_hu: float | None) -> str:
    """The words of the mark, with the expected error of the slice where it is known."""
    return NOT_ACQUIRED + ("" if error_hu is None else f", +/- {error_hu:.0f} HU")


@lru_cache(MOST_PARTS)
def overlay(words: str, rows: int, columns: int) -> Part:
    """The overlay plane of a slice of that size; nothing where not even the shortest word fits."""
    plane = drawn(words, rows, columns)
    if plane is None:
        return Part({})
    packed = np.packbits(plane, bitorder="little").tobytes()
    data = packed + b"\0" * (len(packed) % 2)
    # The dictionary has these keywords for no group in particular.
    values: Sequence[tuple[int, str, object]] = (
        (0x0010, "US", rows),
        (0x0011, "US", columns),
        (0x0022, "LO", words),
        (0x0040, "CS", "G"),
        (0x0050, "SS", [1, 1]),
        (0x0100, "US", 1),
        (0x0102, "US", 0),
        (0x1500, "LO", NOT_ACQUIRED),
    )
    tags = {element: OVERLAY_GROUP << 16 | element for element, _, _ in values}
    elements: Elements = {
        tags[element]: DataElement(Tag(tags[element]), vr, value) for element, vr, value in values
    }
    data_tag = OVERLAY_GROUP << 16 | 0x3000
    return Part(elements | {data_tag: raw(data_tag, "OW", data)})


def overlays_of(whole: Header) -> Elements:
    """The elements of all overlay planes of a file that was read whole."""
    return {
        tag: element
        for tag, element in whole.elements.items()
        if OVERLAY_GROUP <= tag >> 16 <= LAST_OVERLAY_GROUP
    }


def description_in(overlays: Elements) -> str:
    """The words that an overlay has by its own account; those of any where there is none."""
    element = overlays.get(OVERLAY_DESCRIPTION)
    value = NOT_ACQUIRED.encode() if element is None else element.value
    return value.decode("latin-1").strip() if isinstance(value, bytes) else ""


def drawn(words: str, rows: int, columns: int) -> Bits | None:
    """The words in the upper left corner of a plane; None where there is no room for any."""
    scale = max(1, round(min(rows, columns) / PIXELS_A_SCALE))
    for text, share in ((words, CORNER), (words, 1.0), (SHORTEST, 1.0)):
        letters = _letters(_wrapped(text, int(columns * share) // scale))
        high, wide = (scale * side for side in letters.shape)
        if high <= rows and wide <= columns * share:
            plane = np.zeros((rows, columns), bool)
            plane[:high, :wide] = letters.repeat(scale, axis=0).repeat(scale, axis=1)
            return plane
    return None


def _wrapped(text: str, width: int) -> str:
    """The text in lines of at most so many pixels, or of one word where it is longer."""
    font = ImageFont.load_default_imagefont()
    lines = [""]
    # "+/-", the number and its unit are one word.
    for word in text.replace("+/- ", "+/-\xa0").replace(" HU", "\xa0HU").split(" "):
        longer = f"{lines[-1]} {word}".strip(" ")
        if lines[-1] and font.getbbox(longer)[2] > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines).replace("\xa0", " ")


def _letters(text: str) -> Bits:
    """The text as pixels, a bitmap of its size."""
    font = ImageFont.load_default_imagefont()
    size = ImageDraw.Draw(Image.new("1", (1, 1))).multiline_textbbox((0, 0), text, font, spacing=0)
    picture = Image.new("1", (int(size[2]), int(size[3])))
    ImageDraw.Draw(picture).multiline_text((0, 0), text, 1, font, spacing=0)
    return np.asarray(picture, bool)
