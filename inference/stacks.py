"""Stacks: from the files of a series to the slices that form one volume (derived-objects 2)."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from pydicom.datadict import dictionary_description

from inference.dataset import Header, Stack, newest, read_header, read_headers
from inference.errors import Reason
from inference.geometry import ACQUISITION, LINE_TOLERANCE_MM, arrange
from inference.pixels import PixelReader
from inference.scope import instance_fault, is_derived_by_node, patient_mismatch
from inference.volume import Volume

# Direction cosines that differ by less describe the same orientation.
ORIENTATION_TOLERANCE = 1e-4
SPACING_TOLERANCE_MM = 1e-4
# Acquisitions whose ranges share less than this adjoin: one stack.
OVERLAP_TOLERANCE_MM = 0.01
# Slices of two acquisitions nearer than this are at one place: the place was acquired twice.
REPEATED_MM = 0.1
# Beside a stack of this many slices, smaller groups are odd slices that are left out.
FEWEST_BESIDE_OTHERS = 3
# So many slices, each in a frame of reference of its own, on one line: a de-identified series.
FEWEST_WITH_OWN_FRAMES = 5
FEWEST_IF_EVEN = 3  # or so many whose gaps are equal
# Attributes that separate stacks wherever they differ.
SEPARATING = (
    "SOPClassUID",
    "Rows",
    "Columns",
    "ConvolutionKernel",
    "KVP",
    "TriggerTime",
    "NominalPercentageOfCardiacPhase",
    "TemporalPositionIdentifier",
    "PhotometricInterpretation",
    "PixelRepresentation",
    "BitsStored",
)
# What else must be alike, within a tolerance or in part.
ALSO_ALIKE = ("ImageType", "ImageOrientationPatient", "PixelSpacing", "FrameOfReferenceUID")

Group = list[Header]
Places = NDArray[np.float64]  # (slices,), mm along the normal, ascending

__all__ = [
    "Header",
    "SetAside",
    "Stack",
    "is_derived_by_node",
    "newest",
    "open_volume",
    "patient_mismatch",
    "read_header",
    "read_headers",
    "set_aside",
    "stacks_of",
]


def groups(headers: Sequence[Header]) -> list[Group]:
    """The slices that form a volume together, as the grouping key says."""
    alike: list[Group] = []
    for header in headers:
        home = next((group for group in alike if _alike(group[0], header)), None)
        if home is None:
            alike.append([header])
        else:
            home.append(header)
    alike = [part for group in alike for part in _split_by_frame(group)]
    for keyword in ACQUISITION:
        alike = [part for group in alike for part in _split_in_place(group, keyword)]
    return alike


def without_odd(groups: list[Group]) -> tuple[list[Group], list[Group]]:
    """(groups, odd slices beside them that are left out)."""
    if max(len(group) for group in groups) < FEWEST_BESIDE_OTHERS:
        return groups, []
    kept = [group for group in groups if len(group) >= FEWEST_BESIDE_OTHERS]
    return kept, [group for group in groups if len(group) < FEWEST_BESIDE_OTHERS]


def between(group: Group, odd: Sequence[Group]) -> Group:
    """The odd slices that lie where the group would have slices generated: in its planes, among
    its places, at none of them."""
    places = _places(group)
    return [
        header
        for header in (header for other in odd for header in other)
        if _close(group[0], header, "ImageOrientationPatient", ORIENTATION_TOLERANCE)
        and places[0] < distance_mm(header) < places[-1]
        and np.abs(places - distance_mm(header)).min() > REPEATED_MM
    ]


def why_odd(group: Group, among: Group) -> str:
    """One sentence where real slices of another kind lie among those of a group."""
    if not among:
        return ""
    names = _differing([group[0], *among])
    images = "1 image" if len(among) == 1 else f"{len(among)} images"
    return (
        f"Between the slices there is another kind of image ({images}; other {names}). Nothing is "
        "generated in the place of a real slice: send each kind of image as a series of its own."
    )


def why_apart(groups: Sequence[Group]) -> str:
    """One sentence where every image is a group of its own; nothing where two belong together."""
    if len(groups) < 2 or max(len(group) for group in groups) > 1:
        return ""
    return (
        f"None of the {len(groups)} images matches another one (they differ in "
        f"{_differing([group[0] for group in groups])}); at least 2 that match are needed to fill "
        "a gap."
    )


def _differing(headers: Sequence[Header]) -> str:
    """The names of the attributes of the grouping key in which headers differ."""
    return ", ".join(
        dictionary_description(keyword)
        for keyword in (*SEPARATING, *ALSO_ALIKE, *ACQUISITION)
        if len({header.values(keyword) for header in headers}) > 1
    )


def keys(groups: Sequence[Group]) -> list[str]:
    """A readable name for each group, no two alike; the same whatever the order of arrival."""
    names = [_kind_of(group[0]) for group in groups]
    for more in (_acquisition_of, _format_of, _frame_of):
        words = [more(group) for group in groups]
        several = Counter(name for name, _ in set(zip(names, words, strict=True)))
        names = [
            _joined(name, word) if several[name] > 1 else name
            for name, word in zip(names, words, strict=True)
        ]
    return _numbered(names, [min(header.uid for header in group) for group in groups])


def label_of(header: Header, groups: Sequence[Group]) -> str:
    """The values, plain ASCII, of what differs between the stacks of a series."""
    words = []
    for keyword in ("ConvolutionKernel", "KVP", *ACQUISITION, "TriggerTime"):
        values = {group[0].text(keyword) for group in groups}
        word = header.text(keyword)
        if len(values) > 1 and word and word.isascii() and word.isprintable():
            words.append(word.replace("\\", " "))
    return " ".join(words[:2])


def _alike(first: Header, second: Header) -> bool:
    return (
        all(_value(first, keyword) == _value(second, keyword) for keyword in SEPARATING)
        and _image_type(first) == _image_type(second)
        and _close(first, second, "ImageOrientationPatient", ORIENTATION_TOLERANCE)
        and _close(first, second, "PixelSpacing", SPACING_TOLERANCE_MM)
    )


def _image_type(header: Header) -> tuple[str, ...]:
    is_multi_energy = header.text("MultienergyCTAcquisition").upper() == "YES"
    return header.values("ImageType")[: 4 if is_multi_energy else 3]


def _value(header: Header, keyword: str) -> object:
    return header.number(keyword) if keyword == "KVP" else header.values(keyword)


def _close(header: Header, other: Header, keyword: str, tolerance: float) -> bool:
    first, second = header.numbers(keyword), other.numbers(keyword)
    if len(first) != len(second):
        return False
    return all(abs(a - b) <= tolerance for a, b in zip(first, second, strict=True))


def _parts(group: Group, keyword: str) -> list[Group]:
    parts: dict[str, Group] = {}
    for header in group:
        parts.setdefault(header.text(keyword), []).append(header)
    return list(parts.values())


def _split_by_frame(group: Group) -> list[Group]:
    """By frame of reference; unless each slice of a straight row names its own.

    Some de-identification gives every slice another UID; two or three slices that differ may as
    well be of two examinations.
    """
    parts = _parts(group, "FrameOfReferenceUID")
    each_its_own = len(parts) == len(group) >= FEWEST_IF_EVEN
    return [group] if each_its_own and _in_a_row(group) else parts


def _in_a_row(group: Group) -> bool:
    """True where all positions lie on one straight line, a few of them evenly."""
    numbers = [header.numbers("ImagePositionPatient") for header in group]
    if any(len(position) != 3 for position in numbers):
        return False
    positions = np.array(numbers) - np.mean(numbers, axis=0)
    direction = np.linalg.svd(positions, full_matrices=False)[2][0]
    along = np.sort(positions @ direction)
    off = np.linalg.norm(positions - np.outer(positions @ direction, direction), axis=1)
    if len(group) < FEWEST_WITH_OWN_FRAMES:
        off = np.maximum(off, np.abs(along - np.linspace(along[0], along[-1], len(along))))
    return float(off.max()) <= LINE_TOLERANCE_MM


def _split_in_place(group: Group, keyword: str) -> list[Group]:
    """Acquisitions of the same places are stacks of their own; adjoining ones are one stack.

    Acquisitions that take turns stay together here, and are refused when the slices are in order:
    each by itself would have slices generated where the other one has real ones.
    """
    parts = _parts(group, keyword)
    if len(parts) < 2 or min(len(part) for part in parts) < 2:
        return [group]
    overlapping = list(_overlapping([_places(part) for part in parts]))
    if overlapping and all(_repeat(first, second) for first, second in overlapping):
        return parts
    return [group]


def _places(group: Group) -> Places:
    return np.sort([distance_mm(header) for header in group])


def _overlapping(parts: list[Places]) -> Iterator[tuple[Places, Places]]:
    """Every two whose ranges share more than their ends."""
    parts.sort(key=lambda places: (places[0], places[-1]))
    for index, places in enumerate(parts):
        for other in parts[index + 1 :]:
            if other[0] >= places[-1] - OVERLAP_TOLERANCE_MM:
                break
            yield places, other


def _repeat(first: Places, second: Places) -> bool:
    """True where, in the range that both cover, one has a slice wherever the other has one."""
    start, end = max(first[0], second[0]), min(first[-1], second[-1])
    shared = [
        places[(places >= start - REPEATED_MM) & (places <= end + REPEATED_MM)]
        for places in (first, second)
    ]
    few, many = sorted(shared, key=len)
    if not len(few):
        return False
    return bool(np.abs(few[:, None] - many[None, :]).min(axis=1).max() <= REPEATED_MM)


def distance_mm(header: Header) -> float:
    """Place of a slice along its own normal; 0 where the header has no geometry."""
    cosines = header.numbers("ImageOrientationPatient")
    position = header.numbers("ImagePositionPatient")
    if len(cosines) != 6 or len(position) != 3:
        return 0.0
    return float(np.dot(np.cross(cosines[:3], cosines[3:]), position))


def _kind_of(header: Header) -> str:
    size = f"{header.value('Rows')}x{header.value('Columns')}"
    spacing = " ".join(f"{number:g}" for number in header.numbers("PixelSpacing"))
    cosines = " ".join(
        f"{number + 0.0:.2f}" for number in header.numbers("ImageOrientationPatient")
    )
    kilovolts = header.number("KVP")
    return _joined(
        "/".join(header.values("ImageType")[:3]),
        header.text("ConvolutionKernel"),
        f"{kilovolts:g} kV" if kilovolts else "",
        f"{size} at {spacing} mm" if spacing else size,
        f"along {cosines}" if cosines else "",
        header.text("TemporalPositionIdentifier"),
        header.text("NominalPercentageOfCardiacPhase"),
        header.text("TriggerTime"),
    )


def _acquisition_of(group: Group) -> str:
    return _joined(*(f"{word} {_only(group, word)}" for word in ACQUISITION if _only(group, word)))


def _format_of(group: Group) -> str:
    header = group[0]
    words = ("BitsStored", "PixelRepresentation", "PhotometricInterpretation")
    cosines = " ".join(f"{c + 0.0:.4f}" for c in header.numbers("ImageOrientationPatient"))
    fourth = header.value("ImageType", 3)
    return _joined(*(f"{word} {header.value(word)}" for word in words), cosines, fourth)


def _frame_of(group: Group) -> str:
    frame = _only(group, "FrameOfReferenceUID")
    return f"frame of reference {frame}" if frame else ""


def _only(group: Group, keyword: str) -> str:
    """The value that all slices have; nothing where they have several."""
    values = {header.text(keyword) for header in group}
    return values.pop() if len(values) == 1 else ""


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _numbered(names: Sequence[str], firsts: Sequence[str]) -> list[str]:
    """Names that are still the same are told apart by number, in the order of the UIDs."""
    numbered = list(names)
    order = sorted(range(len(names)), key=lambda index: (names[index], firsts[index]))
    number = 1
    for before, index in pairwise(order):
        number = number + 1 if names[before] == names[index] else 1
        if number > 1:
            numbered[index] = f"{names[index]}, {number}"
    return numbered


@dataclass(frozen=True, eq=False)
class SetAside:
    """An instance that belongs to no stack, and why."""

    header: Header
    reason: Reason
    sentence: str


def stacks_of(headers: Iterable[Header]) -> list[Stack]:
    """The stacks of one or several series, largest first; each becomes a job of its own.

    A series that holds no CT slice is one stack too, so that somebody is told why it has no result;
    and so is a series whose instances disagree about the patient.
    """
    return [stack for group in _by_series(headers) for stack in _sorted_out(group)[0]]


def set_aside(headers: Iterable[Header]) -> list[SetAside]:
    """The instances that are in no stack: localizers, dose pages, odd slices, broken files."""
    return [item for group in _by_series(headers) for item in _sorted_out(group)[1]]


def _by_series(headers: Iterable[Header]) -> list[list[Header]]:
    series: dict[str, list[Header]] = {}
    for header in headers:
        series.setdefault(header.text("SeriesInstanceUID"), []).append(header)
    return [series[uid] for uid in sorted(series)]


def _sorted_out(series: Sequence[Header]) -> tuple[list[Stack], list[SetAside]]:
    usable, damaged, aside = _by_fault(series)
    if not usable:
        readable = tuple(header for header in series if not header.fault)
        return ([Stack("no CT slices", readable)] if readable else []), aside
    if patient_mismatch(usable):
        return [Stack("several patients", tuple(series))], aside
    separated = groups(usable)
    fault = why_apart(separated)
    if fault:
        return [Stack("no two images alike", tuple(series), fault=fault)], aside
    kept, odd = without_odd(separated)
    aside += [
        SetAside(header, Reason.NOT_A_CT_SLICE, "The image matches no other of its series.")
        for group in odd
        for header in group
    ]
    # Where a damaged slice belongs is unknown: no stack of its series may be filled without it.
    return _named(kept, odd, series, damaged), aside


def _by_fault(series: Sequence[Header]) -> tuple[list[Header], list[Header], list[SetAside]]:
    """(slices, slices that are damaged, what is no slice or cannot be read)."""
    usable, damaged, aside = [], [], []
    for header in newest(header for header in series if not header.fault):
        fault = instance_fault(header)
        if fault is None:
            usable.append(header)
        elif fault.reason == Reason.PIXEL_DATA_ERROR:
            damaged.append(header)
        else:
            aside.append(SetAside(header, fault.reason, fault.sentence))
    for header in series:
        fault = instance_fault(header) if header.fault else None
        if fault is not None:
            aside.append(SetAside(header, fault.reason, fault.sentence))
    return usable, damaged, aside


def _named(
    groups: list[list[Header]],
    odd: list[list[Header]],
    series: Sequence[Header],
    damaged: Sequence[Header],
) -> list[Stack]:
    """Stacks with their keys; versions of an instance follow its newest one.

    Odd slices among those of a stack are members of it, and say why nothing is generated there.
    """
    versions: dict[str, list[Header]] = {}
    for header in series:
        versions.setdefault(header.uid, []).append(header)
    stacks = []
    for key, group in zip(keys(groups), groups, strict=True):
        label = label_of(group[0], groups) if len(groups) > 1 else ""
        among = between(group, odd)
        members = tuple(
            version for header in (*group, *among, *damaged) for version in versions[header.uid]
        )
        fault = why_odd(group, among)
        stacks.append(Stack(key, members, label, fault, Reason.MIXED_ACQUISITIONS))
    return sorted(stacks, key=lambda stack: (-len(stack), stack.key))


def open_volume(stack: Stack) -> Volume:
    """A stack as a volume whose slices are decoded when they are asked for."""
    layout = arrange(newest(stack.headers))
    pixels = PixelReader()
    return Volume(layout.geometry, lambda index: pixels.hounsfield(layout.headers[index]))
