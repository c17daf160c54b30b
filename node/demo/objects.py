"""The demo of a model that makes objects: the series it is shown on, what came back, its report.

All pictures are drawn from what the PACS returned, by code that shares nothing with the node.
"""

import base64
import os
import platform
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset

from inference.previews import DisplayWindow, page, uri
from node import mask_opinion
from node.demo import peers
from node.demo.exhibits import Exhibit
from node.demo.report import VIEWER_PIXELS, TimelinePhase
from node.second_opinion import PATIENT_AND_STUDY, Check, ImageSeries, Slice
from node.web.pages import model_results
from node.web.pages.job import places_of
from node.web.pages.model_results import ScoresView

TEMPLATE = Path(__file__).with_name("objects.html")
RESEARCH_END = "(AI, research)"
GREYS_PERCENT = 0.5, 99.5  # of an MR scanner's values, from black to white
ABNORMAL = "49755003"  # SCT, Morphologically Abnormal Structure: drawn in a colour of its own
FINDING, ANATOMY = (251, 146, 60), ((56, 189, 248), (167, 139, 250))
MOST_FAULTS = 3
EDGE = 2  # pixels of an outline
CROP_LEAST, CROP_PIXELS = 60, 200  # sides of the picture of a finding: in the slice, on the page

Grey = NDArray[np.uint8]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class StoredSeries:
    """A series that the node made, as the PACS returned it."""

    items: Sequence[Slice]
    paths: Sequence[Path]
    picture: bytes | None  # PNG: as the PACS itself shows it

    @property
    def header(self) -> Dataset:
        """Of its first instance."""
        return self.items[0].header

    @property
    def kind(self) -> str:
        """The name of the SOP class, as a reader knows it."""
        return str(self.header.SOPClassUID.name).removesuffix(" Storage")

    @property
    def shown(self) -> str | None:
        """The picture as an address."""
        if self.picture is None:
            return None
        return "data:image/png;base64," + base64.b64encode(self.picture).decode()


@dataclass(frozen=True, eq=False)
class Outline:
    """A segment of a segmentation, on the grid of the received series."""

    label: str
    colour: tuple[int, int, int]
    mask: Mask  # (slices, rows, columns), in the order of the received series

    @property
    def css(self) -> str:
        return "rgb({}, {}, {})".format(*self.colour)

    @property
    def slices(self) -> int:
        return int(self.mask.any(axis=(1, 2)).sum())


@dataclass(frozen=True)
class ContentItem:
    """A line of a structured report."""

    depth: int
    name: str
    value: str


@dataclass(frozen=True, eq=False)
class ObjectsResult:
    """Everything that the report shows."""

    at: datetime
    exhibit: Exhibit
    model: str
    received: ImageSeries
    stored: Sequence[StoredSeries]
    record: Mapping[str, Any]
    checks: Sequence[Check]
    phases: Sequence[TimelinePhase]
    pacs: str
    machine: str
    folder: Path

    @property
    def faults(self) -> Sequence[Check]:
        return [check for check in self.checks if not check.ok]

    @property
    def licence(self) -> str:
        return self.exhibit.licence

    def summary(self) -> str:
        """A sentence for the terminal: what came back."""
        counts: Counter[str] = Counter()
        for series in self.stored:
            counts[series.kind] += len(series.items)
        kinds = ", ".join(f"{count} x {kind}" for kind, count in counts.items())
        return f"{len(self.received)} slices became {kinds}."

    def facts(self) -> dict[str, object]:
        """Facts for programs."""
        return {
            "results": str(self.folder),
            "received": len(self.received),
            "model": self.model,
            "pacs": self.pacs,
            "objects": [
                {"kind": series.kind, "series_uid": str(series.header.SeriesInstanceUID)}
                for series in self.stored
            ],
        }

    def write(self, folder: Path) -> Path:
        """Write the page."""
        path = folder / "report.html"
        drawing = Drawing(self.received, outlines_of(self), self.exhibit.window)
        context = {
            "result": self,
            "after_last": self.phases[-1].end - self.phases[0].end,
            "whole": self.phases[-1].end,
            "figures": list(figures_of(self, drawing)),
            "outlines": drawing.outlines,
            "stack": drawing.stack(),
            "first": first_of(self, drawing),
            "scores": scores_of(self),
            "labelled": labelled_of(self),
            "findings": model_results.findings_of(self.record, places_of(self.record)),
            "crops": crops_of(self, drawing),
            "readings": list(readings_of(self)),
            "planes": drawing.planes(),
            "reports": [
                {"kind": series.kind, "lines": lines}
                for series in self.stored
                if (lines := [*content_of(series.header, self.received), *marks_of(self, series)])
            ],
        }
        path.write_text(page(TEMPLATE, context), encoding="utf-8")
        return path


def read_back(
    exhibit: Exhibit,
    paths: Sequence[Path],
    pacs: peers.Pacs,
    folder: Path,
    record: Mapping[str, Any],
    phases: Sequence[TimelinePhase],
) -> ObjectsResult:
    """Fetch every series that the PACS holds besides the received one, and judge them."""
    received, counts = ImageSeries.read(paths), dict(pacs.series())
    stored: list[StoredSeries] = []
    for uid in counts:
        if uid != received.series_uid:
            files = peers.retrieve(pacs, uid, folder / f"{len(stored) + 1:02}")
            items = [Slice.read(path) for path in files]
            fullest = max(items, key=_content)
            picture = pacs.rendered(fullest.uid) if _content(fullest) else None
            stored.append(StoredSeries(items, files, picture))
    stored.sort(key=lambda series: int(series.header.SeriesNumber))
    return ObjectsResult(
        at=datetime.now().astimezone(),
        exhibit=exhibit,
        model=f"{record.get('model', '')} {record.get('version', '')}".strip(),
        received=received,
        stored=stored,
        record=record,
        checks=(
            _in_the_pacs(received, counts, stored, record),
            _judged(exhibit, paths, stored),
            *(_check(received, stored, name, judge) for name, judge in CHECKS.items()),
        ),
        phases=phases,
        pacs=pacs.name,
        machine=f"{os.cpu_count()} cores, {platform.machine()}",
        folder=folder,
    )


def _content(item: Slice) -> int:
    """How much of its pixels is not zero; 0 where it has none."""
    return int(np.count_nonzero(np.frombuffer(item.header.get("PixelData", b""), np.uint8)))


def _in_the_pacs(
    received: ImageSeries,
    counts: Mapping[str, int],
    stored: Sequence[StoredSeries],
    record: Mapping[str, Any],
) -> Check:
    """The received series, and the objects that the job names."""
    named = {str(entry["series_uid"]) for entry in record.get("objects", ())}
    uids = {str(series.header.SeriesInstanceUID) for series in stored}
    is_whole = counts.get(received.series_uid) == len(received)
    ok = is_whole and bool(stored) and named <= uids
    detail = f"{len(received)} slices received, {len(stored)} series made"
    return Check("The PACS holds the received series and every object of the job", ok, detail)


def _judged(exhibit: Exhibit, paths: Sequence[Path], stored: Sequence[StoredSeries]) -> Check:
    """The verdict of the second checker."""
    files = [path for series in stored for path in series.paths]
    faults = exhibit.judge(paths, files)
    detail = "; ".join(faults[:MOST_FAULTS]) or f"no fault in {len(files)} files"
    return Check("The second checker agrees with all that was made", not faults, detail)


Faults = Iterator[str]


def _identity(received: ImageSeries, item: Slice) -> Faults:
    """Patient and study are byte for byte those of the received series."""
    source = received.slices[0]
    for keyword in PATIENT_AND_STUDY:
        if item.encoded.get(keyword) not in {of.encoded.get(keyword) for of in received.slices}:
            yield f"{keyword} is {item.encoded.get(keyword)!r}, not {source.encoded.get(keyword)!r}"


def _research(_received: ImageSeries, item: Slice) -> Faults:
    """Each instance says that it is for research, in the way of its kind."""
    header = item.header
    if not str(header.get("SeriesDescription", "")).endswith(RESEARCH_END):
        yield f"Series Description {header.get('SeriesDescription', '')!r}"
    expected = {
        "SEG": ("ContentLabel", "RESEARCH"),
        "SR": ("VerificationFlag", "UNVERIFIED"),
        "OT": ("BurnedInAnnotation", "YES"),
    }
    keyword, value = expected.get(str(header.Modality), ("Modality", header.Modality))
    if header.get(keyword) != value:
        yield f"{header.Modality}: {keyword} is {header.get(keyword)!r}"


def _is_new(received: ImageSeries, item: Slice) -> Faults:
    """UIDs are new ones."""
    used = {received.series_uid} | {slice_.uid for slice_ in received.slices}
    for uid in (item.uid, str(item.header.SeriesInstanceUID)):
        if uid in used:
            yield f"the UID {uid} is one of the received series"


CHECKS: Mapping[str, Callable[[ImageSeries, Slice], Faults]] = {
    "Every instance names the patient and the study as received": _identity,
    "Every instance says that it is for research": _research,
    "Every instance has UIDs of its own": _is_new,
}


def _check(
    received: ImageSeries,
    stored: Sequence[StoredSeries],
    name: str,
    judge: Callable[[ImageSeries, Slice], Faults],
) -> Check:
    items = [item for series in stored for item in series.items]
    faults = [f"{item.name}: {fault}" for item in items for fault in judge(received, item)]
    return Check(name, not faults, "; ".join(faults[:MOST_FAULTS]) or f"{len(items)} instances")


def outlines_of(result: ObjectsResult) -> list[Outline]:
    """The segments of every segmentation, unpacked anew."""
    places = {slice_.uid: index for index, slice_ in enumerate(result.received.slices)}
    outlines: list[Outline] = []
    for series in result.stored:
        for item in series.items:
            if item.header.Modality == "SEG":
                outlines += _segments(item.header, places, len(outlines))
    return outlines


def _segments(header: Dataset, places: Mapping[str, int], before: int) -> Iterator[Outline]:
    count, size = int(header.NumberOfFrames), int(header.Rows) * int(header.Columns)
    bits = np.unpackbits(np.frombuffer(header.PixelData, np.uint8), bitorder="little")
    planes = bits[: count * size].reshape(count, header.Rows, header.Columns).astype(bool)
    frames = list(zip(header.PerFrameFunctionalGroupsSequence, planes, strict=True))
    for index, segment in enumerate(header.SegmentSequence):
        mask = np.zeros((len(places), header.Rows, header.Columns), bool)
        for frame, plane in frames:
            if _segment_of(frame, header) == segment.SegmentNumber:
                mask[places[mask_opinion.source_of_frame(frame)]] |= plane
        category = segment.SegmentedPropertyCategoryCodeSequence[0].CodeValue
        anatomy = ANATOMY[(before + index) % len(ANATOMY)]
        colour = FINDING if category == ABNORMAL else anatomy
        yield Outline(str(segment.SegmentLabel), colour, mask)


def _segment_of(frame: Dataset, header: Dataset) -> int:
    """The number of its segment; where there is one alone, all frames share it."""
    shared = header.SharedFunctionalGroupsSequence[0]
    holder = frame if "SegmentIdentificationSequence" in frame else shared
    return int(holder.SegmentIdentificationSequence[0].ReferencedSegmentNumber)


@dataclass(frozen=True, eq=False)
class Drawing:
    """The received slices in grey, with the outlines of all segments."""

    received: ImageSeries
    outlines: Sequence[Outline]
    window: DisplayWindow | None

    @cached_property
    def greys(self) -> Grey:
        """(slices, rows, columns), feet to head."""
        stored = np.stack([slice_.pixels for slice_ in self.received.slices]).astype(np.float32)
        if self.window is None:
            black, white = np.percentile(stored, GREYS_PERCENT)
            window = DisplayWindow((black + white) / 2, max(white - black, 1.0))
            return window.grey(stored)
        return self.window.grey(np.stack([item.hounsfield() for item in self.received.slices]))

    @property
    def inside(self) -> Mask:
        """All segments in one."""
        inside = np.zeros(self.greys.shape, bool)
        for outline in self.outlines:
            inside |= outline.mask
        return inside

    def stack(self) -> list[dict[str, object]]:
        """Every slice, small enough to be scrolled."""
        rows_mm, columns_mm = self.received.pixel_spacing_mm
        height = VIEWER_PIXELS * self.greys.shape[1] * rows_mm
        size = VIEWER_PIXELS, round(height / (self.greys.shape[2] * columns_mm))
        return [
            {
                "picture": uri(self._drawn(grey, [o.mask[index] for o in self.outlines], size), 76),
                "place": f"{self.received.heights_mm[index]:.2f} mm",
                "words": [o.label for o in self.outlines if o.mask[index].any()],
            }
            for index, grey in enumerate(self.greys)
        ]

    def planes(self) -> list[dict[str, str]]:
        """Sagittal and coronal, through the middle of all outlines; the head is up."""
        inside = np.nonzero(self.inside if self.outlines else np.ones(self.greys.shape, bool))
        middle = [int(np.median(at)) for at in inside]
        depth = float(np.ptp(self.received.heights_mm)) + self.received.gap_mm
        rows_mm, columns_mm = self.received.pixel_spacing_mm
        pictures = []
        for name, axis, spacing in (("Sagittal", 2, rows_mm), ("Coronal", 1, columns_mm)):
            grey = np.moveaxis(self.greys, axis, 0)[middle[axis]][::-1]
            masks = [np.moveaxis(o.mask, axis, 0)[middle[axis]][::-1] for o in self.outlines]
            height = round(VIEWER_PIXELS * depth / (grey.shape[1] * spacing))
            drawn = self._drawn(grey, masks, (VIEWER_PIXELS, height))
            pictures.append({"name": name, "picture": uri(drawn)})
        return pictures

    def crop(self, index: int, box: Sequence[int]) -> str:
        """The surroundings of a box (left, top, right, bottom) of a slice, with all outlines."""
        left, top, right, bottom = box
        rows, columns = self.greys.shape[1:]
        side = min(2 * max(right - left, bottom - top, CROP_LEAST // 2), rows, columns)
        first = [
            min(max((low + high - side) // 2, 0), length - side)
            for low, high, length in ((top, bottom, rows), (left, right, columns))
        ]
        part = tuple(slice(at, at + side) for at in first)
        masks = [outline.mask[index][part] for outline in self.outlines]
        return uri(self._drawn(self.greys[index][part], masks, (CROP_PIXELS, CROP_PIXELS)))

    def _drawn(self, grey: Grey, masks: Sequence[Mask], size: tuple[int, int]) -> Image.Image:
        plain = Image.fromarray(grey).resize(size, Image.Resampling.BICUBIC)
        canvas = np.array(plain.convert("RGB"))
        for outline, mask in zip(self.outlines, masks, strict=True):
            if mask.any():
                canvas[edge_of(mask, size)] = outline.colour
        return Image.fromarray(canvas)


def scores_of(result: ObjectsResult) -> ScoresView | None:
    """The scores that the job has left for its page, as its page shows them."""
    return model_results.scores_of(result.record, places_of(result.record))


def first_of(result: ObjectsResult, drawing: "Drawing") -> int:
    """The slice to show first: the strongest one, or that with most of the segments."""
    strongest = model_results.strongest(result.record)
    if strongest is None:
        return int(drawing.inside.sum(axis=(1, 2)).argmax())
    number = places_of(result.record)[strongest].received_number
    numbers = [int(item.header.InstanceNumber) for item in drawing.received.slices]
    return numbers.index(number) if number in numbers else 0


def labelled_of(result: ObjectsResult) -> list[bool]:
    """Of each slice, in the order of the scores: radiologists saw there what is looked for."""
    labelled = result.exhibit.labelled
    return [place.received_number in labelled for place in places_of(result.record)]


def crops_of(result: ObjectsResult, drawing: "Drawing") -> list[str]:
    """A picture of each finding, in the slice where it is largest."""
    numbers = {int(item.header.InstanceNumber): i for i, item in enumerate(drawing.received.slices)}
    return [
        drawing.crop(numbers[int(entry["instance_number"])], entry["box"])
        for entry in result.record.get("findings", ())
    ]


def readings_of(result: ObjectsResult) -> Iterator[str]:
    """What radiologists outlined, and which finding lies there: in words."""
    for reading in result.exhibit.readings:
        numbers = [
            int(entry["number"])
            for entry in result.record.get("findings", ())
            if reading.holds(entry["centre_mm"])
        ]
        place = ", ".join(f"{mm:.1f}" for mm in reading.centre_mm)
        hit = f"finding {numbers[0]} lies there" if numbers else "no finding lies there"
        yield f"{reading.readers} radiologists, {reading.sphere_mm} mm at ({place}) mm: {hit}"


def figures_of(result: ObjectsResult, drawing: Drawing) -> Iterator[tuple[str, str]]:
    """Figures for the head of the page, by their names."""
    if (scores := scores_of(result)) is not None:
        yield (
            f"score of the series, threshold {scores.series_threshold:.2f}",
            f"{scores.series:.2f}",
        )
    if "findings" in result.record:
        yield "findings at the threshold", str(len(result.record["findings"]))
    elif len(drawing.outlines) == 1:
        rows_mm, columns_mm = drawing.received.pixel_spacing_mm
        (outline,) = drawing.outlines
        volume_mm3 = float(outline.mask.sum()) * rows_mm * columns_mm * drawing.received.gap_mm
        yield f"volume of the {outline.label.lower()} mask", f"{volume_mm3 / 1000:.0f} cm³"


def edge_of(mask: Mask, size: tuple[int, int]) -> Mask:
    """The edge of a mask, drawn to another size."""
    large = Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)
    inside: Mask = np.pad(np.asarray(large, np.uint8) >= 128, EDGE)
    whole, to = inside[EDGE:-EDGE, EDGE:-EDGE], 2 * EDGE
    inner = inside[:-to, EDGE:-EDGE] & inside[to:, EDGE:-EDGE]
    inner &= inside[EDGE:-EDGE, :-to] & inside[EDGE:-EDGE, to:]
    edge: Mask = whole & ~inner
    return edge


def content_of(header: Dataset, received: ImageSeries, depth: int = 0) -> Iterator[ContentItem]:
    """The content tree of a structured report, a line an item."""
    numbers = {item.uid: str(item.header.InstanceNumber) for item in received.slices}
    for item in header.get("ContentSequence", ()):
        names = item.get("ConceptNameCodeSequence")
        name = str(names[0].CodeMeaning) if names else str(item.get("ValueType", "")).capitalize()
        yield ContentItem(depth, name, _value_of(item, numbers))
        yield from content_of(item, received, depth + 1)


def marks_of(result: ObjectsResult, series: StoredSeries) -> Iterator[ContentItem]:
    """What a presentation state draws, a line for each mark."""
    numbers = {item.uid: str(item.header.InstanceNumber) for item in result.received.slices}
    for layer in series.header.get("GraphicAnnotationSequence", ()):
        uids = [str(of.ReferencedSOPInstanceUID) for of in layer.get("ReferencedImageSequence", ())]
        where = ", ".join(numbers.get(uid, uid) for uid in uids) or "all images"
        for graphic in layer.get("GraphicObjectSequence", ()):
            what = f"{graphic.GraphicType}, {graphic.NumberOfGraphicPoints} points"
            yield ContentItem(0, f"image {where}", what.lower())
        for text in layer.get("TextObjectSequence", ()):
            yield ContentItem(0, f"image {where}", str(text.UnformattedTextValue))


def _value_of(item: Dataset, numbers: Mapping[str, str]) -> str:
    """The value of a content item, in words."""
    match item.get("ValueType"):
        case "CODE":
            return str(item.ConceptCodeSequence[0].CodeMeaning)
        case "NUM":
            (measured,) = item.MeasuredValueSequence
            unit = str(measured.MeasurementUnitsCodeSequence[0].CodeValue)
            return f"{measured.NumericValue:g} {unit if unit != '1' else ''}".rstrip()
        case "IMAGE" | "COMPOSITE":
            uid = str(item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
            return f"image {numbers[uid]} of the received series" if uid in numbers else uid
        case "SCOORD" | "SCOORD3D":
            return str(item.GraphicType).lower()
    for keyword in ("TextValue", "UID", "PersonName", "DateTime", "Date", "Time"):
        if keyword in item:
            return str(item[keyword].value)
    return ""
