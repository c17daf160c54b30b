"""The places of the slices of a stack, and checks that the gaps between them may be filled.

Everything here is decided from headers: no pixels, and positions alone say what the order is.
"""

import math
import re
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from pydicom.datadict import dictionary_description

from inference.dataset import Header, Stack, newest, numbers_of
from inference.errors import Reason, Unprocessable, duplicates
from inference.kinds import GRID, REPEATED_MM, is_same_grid, kinds_of, shows_same_place
from inference.model import Step
from inference.request import Output
from inference.scope import check_instances, check_patient, check_scope, instance_fault
from inference.volume import Geometry

# Direction cosines further from unit length, or from a right angle, are no orientation.
COSINE_TOLERANCE = 1e-3
# Slices nearer than this are at one position.
SAME_POSITION_MM = 0.01
# A gap this much wider than the usual one may be a hole,
WIDE_RATIO = 1.8
# unless the slices are so thick that they touch.
TOUCHING_RATIO = 1.1
# Gaps that differ by less than this part are equal.
EQUAL_GAPS = 0.1
# Without Instance Numbers only this many equal wide gaps are a change of spacing.
RUN_WITHOUT_NUMBERS = 3
# Two lattices of slices: every other gap is shorter than this part of the next.
INTERLEAVED_RATIO = 0.5
# A stack is sheared (gantry tilt) above this angle; its positions lie on a line within this.
SHEAR_DEGREES, LINE_TOLERANCE_MM = 0.5, 0.1
# Beyond this the slices lie beside each other rather than behind each other.
MAX_SHEAR_DEGREES, LEAST_SIDE_STEP_MM = 60.0, 2.0
# Acquisition times of so many neighbours that go to and fro belong to two acquisitions.
FEWEST_FOR_ZIGZAG = 6
OFF_LINE = "positions do not lie on one line"
MAX_SIDE_PIXELS = 8192
# Attributes of an acquisition or a phase: slices in which they take turns are no volume.
ACQUISITION = (
    "AcquisitionNumber",
    "ContrastBolusAgent",
    "AcquisitionTime",
    "TemporalPositionIdentifier",
    "NominalPercentageOfCardiacPhase",
)
# Trigger Times of one phase, which differ from beat to beat, lie within this.
ONE_PHASE_MS = 50.0
# HHMMSS.FFFFFF, its later parts optional (PS3.5 6.2, TM).
TIME = re.compile(r"(\d\d)(?:(\d\d)(?:(\d\d(?:\.\d{1,6})?))?)?")


@dataclass(frozen=True, eq=False)
class Layout:
    """The slices of a stack in order, and what is known about the gaps between them."""

    headers: tuple[Header, ...]  # by position along the normal, ascending
    geometry: Geometry
    missing: dict[int, int]  # gap -> slices that are missing in it; such a gap is never filled
    shear_degrees: float
    notes: tuple[str, ...]
    # (slice that is used, another instance of the same place and kind): one image, if pixels agree
    copies: tuple[tuple[Header, Header], ...] = ()

    @property
    def gap_mm(self) -> float:
        """The usual gap."""
        return float(np.median(self.geometry.gaps_mm))


def measure(stack: Stack) -> Layout | None:
    """The layout of a stack, as routes match it by gap and tilt; None where it has none."""
    if stack.fault:
        return None
    try:
        return arrange([h for h in newest(stack.headers) if instance_fault(h) is None])
    except Unprocessable:
        return None


def verdict(stack: Stack, output: Output) -> Unprocessable | None:
    """The reason not to process a stack, from its headers alone; None where there is none.

    What needs pixels (versions of an instance, decoders) is found later, by the worker.
    """
    try:
        examine(stack, output)
    except Unprocessable as reason:
        return reason
    return None


def examine(stack: Stack, output: Output) -> Layout:
    """The layout of a stack that may be processed; raises Unprocessable for any other."""
    layout = arrange(in_scope(stack, output))
    check_beside(layout, stack.beside)
    if layout.missing and output.across_missing == "hold":
        raise Unprocessable(Reason.MISSING_SLICES, missing_sentence(layout))
    return layout


def in_scope(stack: Stack, output: Output) -> list[Header]:
    """The CT slices of a stack, one version each; raises Unprocessable where one is none."""
    headers = newest(stack.headers)
    check_instances(headers, instance_fault)
    check_patient(headers)
    for header in headers:
        check_scope(header, output)
    if stack.fault:
        raise Unprocessable(stack.fault_reason, stack.fault)
    return headers


def check_beside(layout: Layout, beside: Sequence[Header]) -> None:
    """Raise Unprocessable where a received slice of the series lies in a gap of its stack.

    Whoever brought it and however the series was split: it is the real slice of that place.
    """
    between = in_gaps(layout, beside)
    if between:
        count = "1 other image" if len(between) == 1 else f"{len(between)} other images"
        sentence = (
            f"Between the slices of this stack lie {count} of the same series (image "
            f"{numbers_of(between)}). Nothing is generated in the place of a real slice: send "
            "what belongs together in one piece, or each acquisition as a series of its own."
        )
        raise Unprocessable(Reason.MIXED_ACQUISITIONS, sentence)


def in_gaps(layout: Layout, beside: Sequence[Header]) -> list[Header]:
    """The slices of the same kind and frame of reference that lie between those of a stack."""
    geometry, first = layout.geometry, layout.headers[0]
    slices = [h for h in beside if instance_fault(h) is None and _is_in_frame(h, layout.headers)]
    kinds = kinds_of([*layout.headers, *slices])
    own = set(kinds[: len(layout.headers)])
    between = []
    for header, kind in zip(slices, kinds[len(layout.headers) :], strict=True):
        position = header.numbers("ImagePositionPatient")
        if kind in own and len(position) == 3 and shows_same_place(first, header):
            place = float(geometry.normal @ position)
            steps = geometry.distances_mm - place
            if steps[0] < 0.0 < steps[-1] and np.abs(steps).min() > REPEATED_MM:
                between.append(header)
    return between


def unfit(stack: Stack, others: Sequence[Header]) -> tuple[list[Header], list[str]]:
    """(slices of the same kind that do not fit a stack, the attributes in which they differ).

    They lie in another grid or frame of reference, or in a gap of the stack.
    """
    slices = [header for header in newest(stack.headers) if instance_fault(header) is None]
    candidates = [header for header in others if instance_fault(header) is None]
    if not slices or not candidates:
        return [], []
    kinds = kinds_of([*slices, *candidates])
    own = set(kinds[: len(slices)])
    alike = [h for h, kind in zip(candidates, kinds[len(slices) :], strict=True) if kind in own]
    differing = {header: _differing_places(slices, header) for header in alike}
    layout = measure(stack)
    among = set(in_gaps(layout, alike)) if layout is not None else set()
    strange = [header for header in alike if differing[header] or header in among]
    keywords = [keyword for header in strange for keyword in differing[header]]
    return strange, list(dict.fromkeys(keywords))


def _differing_places(slices: Sequence[Header], header: Header) -> list[str]:
    """The attributes in which the grid or the frame of reference of a slice is another one."""
    first = slices[0]
    is_on_grid = is_same_grid(first, header)
    differing = [k for k in GRID if not is_on_grid and first.values(k) != header.values(k)]
    return differing if _is_in_frame(header, slices) else [*differing, "FrameOfReferenceUID"]


def _is_in_frame(header: Header, slices: Sequence[Header]) -> bool:
    """True for a slice in the frame of reference of others; one that is not named may be any."""
    frames = {slice_.text("FrameOfReferenceUID") for slice_ in slices}
    frame = header.text("FrameOfReferenceUID")
    return not frame or "" in frames or len(frames) > 1 or frame in frames


def frame_of_reference(headers: Sequence[Header]) -> str:
    """The UID that the first slice names which names one; empty where none does."""
    return next(filter(None, (header.text("FrameOfReferenceUID") for header in headers)), "")


def second_of_day(time: str) -> float | None:
    """None for what is no time."""
    parts = TIME.fullmatch(time)
    if parts is None:
        return None
    hours, minutes, seconds = (float(part or 0) for part in parts.groups())
    return hours * 3600 + minutes * 60 + seconds


def crosses(step: Step, missing: Container[int]) -> bool:
    """True where a step fills, or a survey looks across, a gap with missing slices."""
    if step.survey is not None:
        return step.survey - 1 in missing or step.survey in missing
    return step.gap in missing


OR_LEAVE = ', or set across_missing = "leave" in the route and process the series again.'


def missing_sentence(layout: Layout, otherwise: str = OR_LEAVE) -> str:
    """The number of missing slices, their places, and the advice to a person."""
    places = ", ".join(
        f"{layout.geometry.gaps_mm[gap]:.1f} mm {place_of_gap(layout, gap)}"
        for gap in layout.missing
    )
    count = sum(layout.missing.values())
    return (
        f"About {count} {'slice is' if count == 1 else 'slices are'} missing (gaps: {places}; "
        f"usual: {layout.gap_mm:.1f} mm). Send the missing slices{otherwise}"
    )


def place_of_gap(layout: Layout, gap: int) -> str:
    """The slices beside a gap as a PACS names them: by Instance Number, else by position."""
    geometry, pair = layout.geometry, layout.headers[gap : gap + 2]
    numbers = [header.integer("InstanceNumber") for header in pair]
    if None not in numbers:
        return f"between images {numbers[0]} and {numbers[1]}"
    at = [geometry.place_mm(position) for position in geometry.positions[gap : gap + 2]]
    return f"between {'xyz'[geometry.axis]} = {at[0]:g} and {at[1]:g} mm"


def arrange(headers: Sequence[Header]) -> Layout:
    """The slices sorted by position; raises Unprocessable where they form no stack."""
    if len(headers) < 2:
        raise Unprocessable(
            Reason.TOO_FEW_SLICES,
            f"The stack has {len(headers)} slice; at least 2 are needed.",
        )
    for header in headers:
        _check_plane(header)
    first = min(headers, key=lambda header: header.uid)
    cosines = np.array(first.numbers("ImageOrientationPatient"), float).reshape(2, 3)
    positions = np.array([header.numbers("ImagePositionPatient") for header in headers], float)
    order = np.argsort(positions @ np.cross(cosines[0], cosines[1]), kind="stable")
    ordered, copies = _without_copies([headers[index] for index in order], positions[order])
    if len(ordered) < 2:
        raise Unprocessable(
            Reason.TOO_FEW_SLICES, "All images lie at one place; at least 2 places are needed."
        )
    spacing = first.numbers("PixelSpacing")
    geometry = Geometry(
        positions=np.array([header.numbers("ImagePositionPatient") for header in ordered]),
        orientation=cosines,
        pixel_spacing=(spacing[0], spacing[1]),
        rows=first.integer("Rows") or 0,
        columns=first.integer("Columns") or 0,
        thickness_mm=_thickness(ordered),
    )
    _check_acquisitions(ordered)
    _check_positions(geometry)
    shear, notes = _shear(geometry)
    if OFF_LINE in notes and not frame_of_reference(ordered):
        sentence = (
            "The images have no usable Frame of Reference UID and do not lie on one line, "
            "so their place is unknown."
        )
        raise Unprocessable(Reason.NO_GEOMETRY, sentence)
    notes += _frame_note(ordered)
    notes += _tilt_note(ordered, shear)
    return Layout(ordered, geometry, find_missing(ordered, geometry), shear, notes, copies)


def _without_copies(
    ordered: Sequence[Header], positions: NDArray[np.float64]
) -> tuple[tuple[Header, ...], tuple[tuple[Header, Header], ...]]:
    """(one slice of each place, its copies): the same place may have come under two UIDs."""
    places: list[list[Header]] = []
    for index, header in enumerate(ordered):
        step = positions[index] - positions[index - 1]
        if index and float(np.linalg.norm(step)) < SAME_POSITION_MM:
            places[-1].append(header)
        else:
            places.append([header])
    at_each = [sorted(headers, key=lambda header: header.uid) for headers in places]
    copies = [(first, other) for first, *others in at_each for other in others]
    return tuple(first for first, *_ in at_each), tuple(copies)


def _frame_note(headers: Sequence[Header]) -> tuple[str, ...]:
    frames = {header.text("FrameOfReferenceUID") for header in headers}
    if frames == {""}:
        return ("no slice names a frame of reference; the results of the series share a new one",)
    if len(frames) == 2 and "" in frames:
        return ("some slices name no frame of reference; that of the others was used",)
    if len(frames) > 1:
        return ("each slice names its own frame of reference; the first slice's was used",)
    return ()


def _check_plane(header: Header) -> None:
    lengths = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}
    absent = [name for name, length in lengths.items() if len(header.numbers(name)) != length]
    if not absent and min(header.numbers("PixelSpacing")) <= 0.0:
        absent.append("PixelSpacing")
    if absent:
        names = ", ".join(map(dictionary_description, absent))
        sentence = f"The images have no usable {names}, so their place is unknown."
        raise Unprocessable(Reason.NO_GEOMETRY, sentence)
    row, column = np.array(header.numbers("ImageOrientationPatient"), float).reshape(2, 3)
    lengths_off = max(abs(np.linalg.norm(row) - 1.0), abs(np.linalg.norm(column) - 1.0))
    if lengths_off > COSINE_TOLERANCE or abs(row @ column) > COSINE_TOLERANCE:
        sentence = (
            "Image Orientation (Patient) is impossible: the directions of rows and columns must be "
            "unit vectors at a right angle."
        )
        raise Unprocessable(Reason.BAD_ORIENTATION, sentence)
    sides = (header.integer("Rows") or 0, header.integer("Columns") or 0)
    if min(sides) < 1:
        sentence = "The images do not say how many rows and columns they have."
        raise Unprocessable(Reason.PIXEL_DATA_ERROR, sentence)
    if max(sides) > MAX_SIDE_PIXELS:
        sentence = f"The images have {sides[0]} x {sides[1]} pixels; {MAX_SIDE_PIXELS} is the most."
        raise Unprocessable(Reason.TOO_LARGE, sentence)


def _thickness(headers: Sequence[Header]) -> float | None:
    known = [
        thickness for header in headers if (thickness := header.number("SliceThickness") or 0.0) > 0
    ]
    return float(np.median(known)) if known else None


def _check_positions(geometry: Geometry) -> None:
    gaps = geometry.gaps_mm
    if (gaps < SAME_POSITION_MM).any():  # beside each other in one plane
        raise duplicates(int((gaps < SAME_POSITION_MM).sum()), len(geometry))
    if _is_interleaved(gaps):
        sentence = (
            "Two acquisitions are interleaved: narrow and wide gaps alternate. "
            "Send each acquisition as a series of its own."
        )
        raise Unprocessable(Reason.MIXED_ACQUISITIONS, sentence)
    sides = _side_steps_mm(geometry)
    steep = sides > np.maximum(LEAST_SIDE_STEP_MM, gaps * math.tan(math.radians(MAX_SHEAR_DEGREES)))
    if steep.any():
        sentence = "The positions run along the slices instead of across them."
        raise Unprocessable(Reason.BAD_ORIENTATION, sentence)


def _is_interleaved(gaps: NDArray[np.float64]) -> bool:
    for a, b, c, d in zip(gaps, gaps[1:], gaps[2:], gaps[3:], strict=False):
        narrow, wide = min(a, b), max(a, b)
        equal = abs(a - c) <= EQUAL_GAPS * wide and abs(b - d) <= EQUAL_GAPS * wide
        if equal and narrow < INTERLEAVED_RATIO * wide:
            return True
    return False


def _check_acquisitions(headers: Sequence[Header]) -> None:
    alternating = any(
        _returns(["\\".join(header.values(keyword)) for header in headers])
        for keyword in ACQUISITION
    ) or _returns(_beats([header.number("TriggerTime") for header in headers]))
    if alternating or _zigzags([header.number("AcquisitionTime") for header in headers]):
        sentence = (
            "Slices of several acquisitions alternate; they cannot be one volume. "
            "Send each acquisition as a series of its own."
        )
        raise Unprocessable(Reason.MIXED_ACQUISITIONS, sentence)


def _beats(times: Sequence[float | None]) -> list[str]:
    """For each Trigger Time the phase that it belongs to: those that follow closely are of one."""
    known = sorted({time for time in times if time is not None})
    phase_of: dict[float | None, str] = {None: ""}
    for number, time in enumerate(known):
        is_new = not number or time - known[number - 1] > ONE_PHASE_MS
        phase_of[time] = str(time) if is_new else phase_of[known[number - 1]]
    return [phase_of[time] for time in times]


def _returns(values: Sequence[str]) -> bool:
    """True where a value is seen again after another one came between.

    A single slice without a value says nothing; several without one are an acquisition like any:
    the slices before the contrast agent do not name it.
    """
    known = values if values.count("") > 1 else [value for value in values if value]
    runs = [*known[:1], *(second for first, second in pairwise(known) if first != second)]
    return len(runs) > len(set(runs))


def _zigzags(times: Sequence[float | None]) -> bool:
    """True where every other one of some neighbours was taken earlier than all between them."""
    for start in range(len(times) - FEWEST_FOR_ZIGZAG + 1):
        window = [time for time in times[start : start + FEWEST_FOR_ZIGZAG] if time is not None]
        even, odd = window[::2], window[1::2]
        if len(window) < FEWEST_FOR_ZIGZAG:
            continue
        if max(even) < min(odd) or max(odd) < min(even):
            return True
    return False


def _side_steps_mm(geometry: Geometry) -> NDArray[np.float64]:
    steps = np.diff(geometry.positions, axis=0)
    return np.asarray(np.linalg.norm(steps @ geometry.orientation.T, axis=1))


def _shear(geometry: Geometry) -> tuple[float, tuple[str, ...]]:
    """The angle between the line of positions and the normal, and what is odd about it."""
    whole = geometry.positions[-1] - geometry.positions[0]
    side = float(np.linalg.norm(geometry.orientation @ whole))
    shear = math.degrees(math.atan2(side, float(whole @ geometry.normal)))
    places = (geometry.distances_mm - geometry.distances_mm[0]) / np.ptp(geometry.distances_mm)
    off = geometry.positions - geometry.positions[0] - places[:, None] * whole
    notes = []
    if shear > SHEAR_DEGREES:
        notes.append(f"sheared by {shear:.1f} degrees")
    if float(np.linalg.norm(off, axis=1).max()) > LINE_TOLERANCE_MM:
        notes.append(OFF_LINE)
    if float(np.ptp(geometry.gaps_mm)) > SAME_POSITION_MM:
        notes.append(f"gaps of {geometry.gaps_mm.min():.2f} to {geometry.gaps_mm.max():.2f} mm")
    if geometry.thickness_mm and geometry.thickness_mm > geometry.gaps_mm.max() * TOUCHING_RATIO:
        notes.append("slices overlap")
    return shear, tuple(notes)


def _tilt_note(headers: Sequence[Header], shear: float) -> tuple[str, ...]:
    """The declared tilt may have any sign, and may survive its correction: it is only noted."""
    declared = abs(headers[0].number("GantryDetectorTilt") or 0.0)
    if abs(declared - shear) <= SHEAR_DEGREES:
        return ()
    return (f"the header declares a tilt of {declared:.1f} degrees, positions say {shear:.1f}",)


def find_missing(headers: Sequence[Header], geometry: Geometry) -> dict[int, int]:
    """The gaps in which slices are missing, and how many: holes, not changes of spacing."""
    gaps = geometry.gaps_mm
    base = float(np.percentile(gaps, 25, method="lower"))
    jumps = _jumps(headers, gaps, base)
    missing = {}
    for gap in np.flatnonzero(gaps >= WIDE_RATIO * base - 1e-9).tolist():
        touches = gaps[gap] <= TOUCHING_RATIO * max(
            header.number("SliceThickness") or 0.0 for header in headers[gap : gap + 2]
        )
        run = _equal_run(gaps, gap)
        is_change = run >= (RUN_WITHOUT_NUMBERS if jumps is None else 2)
        has_jump = jumps is not None and jumps[gap]
        if not touches and (has_jump or not is_change):
            missing[gap] = max(1, round(float(gaps[gap]) / base) - 1)
    return missing


def _jumps(
    headers: Sequence[Header], gaps: NDArray[np.float64], base: float
) -> NDArray[np.bool_] | None:
    """The gaps where Instance Number leaps more than it usually does; None without the numbers.

    Numbers that do not follow the places, in whatever way, are like none: they tell no hole.
    """
    numbers = [header.integer("InstanceNumber") for header in headers]
    if any(number is None for number in numbers) or len(set(numbers)) < len(numbers):
        return None
    steps = np.abs(np.diff(np.array(numbers, float)))
    usual = steps[gaps <= base * (1.0 + EQUAL_GAPS)]
    step, often = Counter(usual.tolist()).most_common(1)[0]
    return np.asarray(steps > step) if 2 * often > len(usual) else None


def _equal_run(gaps: NDArray[np.float64], gap: int) -> int:
    """The number of neighbouring gaps as wide as this one, itself included."""
    equal = np.abs(gaps - gaps[gap]) <= EQUAL_GAPS * gaps[gap]
    first = last = gap
    while first > 0 and equal[first - 1]:
        first -= 1
    while last + 1 < len(gaps) and equal[last + 1]:
        last += 1
    return last - first + 1


# A slice shows what lies within its thickness. Where a gap is over twice as wide, more than half of
# it was never seen: vessels and nodules vanish between the slices, however smooth the result looks.
UNDERSAMPLED_RATIO = 2.0  # gap over slice thickness
# Positions are decimal strings: a gap of 12.0 mm may read 12.004.
GAP_TOLERANCE_MM = 0.01
UNKNOWN_THICKNESS = (
    "the slices do not say their thickness: how much between them was never seen is unknown"
)


def thickness_mm(layout: Layout, gap: int) -> float | None:
    """The mean thickness of the two slices beside a gap; of the series where they say none."""
    pair = layout.headers[gap : gap + 2]
    known = [mm for header in pair if (mm := header.number("SliceThickness") or 0.0) > 0.0]
    return sum(known) / len(known) if known else layout.geometry.thickness_mm


def is_undersampled(layout: Layout, gap: int) -> bool:
    """True where the gap, measured across the slices, is over twice as wide as they are thick."""
    thickness = thickness_mm(layout, gap)
    if thickness is None:
        return False
    return bool(layout.geometry.gaps_mm[gap] > UNDERSAMPLED_RATIO * thickness + GAP_TOLERANCE_MM)


@dataclass(frozen=True)
class UndersampledGap:
    """A gap of which more than half was never seen."""

    gap_mm: float
    thickness_mm: float

    @property
    def unseen(self) -> float:
        """The share of the gap that no slice shows."""
        return 1.0 - self.thickness_mm / self.gap_mm

    def __str__(self) -> str:
        return f"gaps of {self.gap_mm:.4g} mm between slices {self.thickness_mm:.4g} mm thick"


@dataclass(frozen=True)
class Sampling:
    """The gaps that a job fills, and those of them that are undersampled."""

    filled: int
    undersampled: tuple[UndersampledGap, ...]
    is_known: bool  # False: of some gap no slice says its thickness

    @classmethod
    def of(cls, steps: Sequence[Step], layout: Layout) -> "Sampling":
        gaps = [step.gap for step in steps if step.gap is not None]
        thickness = {gap: thickness_mm(layout, gap) for gap in gaps}
        undersampled = [
            UndersampledGap(float(layout.geometry.gaps_mm[gap]), thickness[gap] or 0.0)
            for gap in gaps
            if is_undersampled(layout, gap)
        ]
        return cls(len(gaps), tuple(undersampled), None not in thickness.values())

    @property
    def facts(self) -> Mapping[str, object]:
        """For the record: how many gaps, and the worst of them; nothing where all is well."""
        if not self.undersampled:
            return {}
        worst = self._worst
        return {
            "undersampled": {
                "gaps": len(self.undersampled),
                "filled": self.filled,
                "gap_mm": round(worst.gap_mm, 4),
                "thickness_mm": round(worst.thickness_mm, 4),
                "unseen": round(worst.unseen, 3),
            }
        }

    @property
    def notes(self) -> Sequence[str]:
        """For people: what was never seen, and what the result may be used for."""
        unknown = () if self.is_known else (UNKNOWN_THICKNESS,)
        if not self.undersampled:
            return unknown
        worst = self._worst
        counted = f"{len(self.undersampled)} of {self.filled} filled gaps"
        return (
            f"undersampled: in {counted} over half of the body was never seen (up to "
            f"{worst.unseen:.0%}: {worst}); vessels and nodules may be missing there, so the "
            "result is for large anatomy only",
            *unknown,
        )

    def check(self, output: Output) -> None:
        """Raise Unprocessable, held, where the route wants no undersampled series."""
        if not self.undersampled or output.undersampled == "process":
            return
        worst = self._worst
        count = len(self.undersampled)
        raise Unprocessable(
            Reason.UNDERSAMPLED,
            f"{count} of the {self.filled} gaps to fill {'is' if count == 1 else 'are'} over twice "
            f"as wide as the slices are thick ({worst}): up to {worst.unseen:.0%} of the body "
            "between was never seen, and vessels and nodules may lie there. Send thicker or closer "
            'slices, or set undersampled = "process" in the route and process the series again: '
            "the result is for large anatomy only.",
        )

    @property
    def _worst(self) -> UndersampledGap:
        return max(self.undersampled, key=lambda gap: gap.unseen)
