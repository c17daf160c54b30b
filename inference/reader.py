"""From the files of a series to its stacks, and from a stack to a volume (derived-objects 2)."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from inference.dataset import Header, Stack, newest, read_header, read_headers
from inference.errors import Reason
from inference.geometry import arrange
from inference.intensity import PixelReader
from inference.scope import instance_fault, is_derived_by_node, patient_mismatch
from inference.volume import Volume

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
    "stacks",
]

# Direction cosines that differ by less describe the same orientation.
ORIENTATION_TOLERANCE = 1e-4
SPACING_TOLERANCE_MM = 1e-4
# Acquisitions whose ranges share less than this adjoin: one stack.
OVERLAP_TOLERANCE_MM = 0.01
# Beside a stack of this many slices, smaller groups are odd slices that are left out.
FEWEST_BESIDE_OTHERS = 3
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
# Attributes that separate stacks only where their groups cover the same range.
SEPARATING_IN_PLACE = ("AcquisitionNumber", "ContrastBolusAgent", "AcquisitionTime")


@dataclass(frozen=True, eq=False)
class SetAside:
    """An instance that belongs to no stack, and why."""

    header: Header
    reason: Reason
    sentence: str


def stacks(headers: Iterable[Header]) -> list[Stack]:
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
    if not usable:
        readable = tuple(header for header in series if not header.fault)
        return ([Stack("no CT slices", readable)] if readable else []), aside
    if patient_mismatch(usable):
        return [Stack("several patients", tuple(series))], aside
    groups = _groups(usable)
    kept, odd = _without_odd(groups)
    aside += [
        SetAside(header, Reason.NOT_A_CT_SLICE, "The image matches no other of its series.")
        for group in odd
        for header in group
    ]
    # Where a damaged slice belongs is unknown: no stack of its series may be filled without it.
    return _named(kept, series, damaged), aside


def _without_odd(groups: list[list[Header]]) -> tuple[list[list[Header]], list[list[Header]]]:
    if max(len(group) for group in groups) < FEWEST_BESIDE_OTHERS:
        return groups, []
    kept = [group for group in groups if len(group) >= FEWEST_BESIDE_OTHERS]
    return kept, [group for group in groups if len(group) < FEWEST_BESIDE_OTHERS]


def _named(
    groups: list[list[Header]], series: Sequence[Header], damaged: Sequence[Header]
) -> list[Stack]:
    """Stacks with their keys; versions of an instance follow its newest one."""
    versions: dict[str, list[Header]] = {}
    for header in series:
        versions.setdefault(header.uid, []).append(header)
    keys = [_key(group[0]) for group in groups]
    twice = Counter(keys)
    found = []
    for key, group in zip(keys, groups, strict=True):
        full = key if twice[key] == 1 else f"{key}, {_phase(group[0])}"
        label = _label(group[0], groups) if len(groups) > 1 else ""
        members = tuple(
            version for header in (*group, *damaged) for version in versions[header.uid]
        )
        found.append(Stack(full, members, label))
    return sorted(found, key=lambda stack: (-len(stack), stack.key))


def _key(header: Header) -> str:
    size = f"{header.value('Rows')}x{header.value('Columns')}"
    spacing = " ".join(f"{number:g}" for number in header.numbers("PixelSpacing"))
    cosines = " ".join(
        f"{number + 0.0:.2f}" for number in header.numbers("ImageOrientationPatient")
    )
    kilovolts = header.number("KVP")
    kind = "/".join(header.values("ImageType")[:3])
    parts = (
        kind,
        header.text("ConvolutionKernel"),
        f"{kilovolts:g} kV" if kilovolts else "",
        f"{size} at {spacing} mm" if spacing else size,
        f"along {cosines}" if cosines else "",
        header.text("TemporalPositionIdentifier"),
        header.text("NominalPercentageOfCardiacPhase"),
        header.text("TriggerTime"),
    )
    return ", ".join(part for part in parts if part)


def _phase(header: Header) -> str:
    parts = [f"{keyword} {header.text(keyword)}" for keyword in SEPARATING_IN_PLACE]
    return ", ".join(parts)


def _label(header: Header, groups: list[list[Header]]) -> str:
    """The values, plain ASCII, of what differs between the stacks of a series."""
    words = []
    for keyword in ("ConvolutionKernel", "KVP", *SEPARATING_IN_PLACE, "TriggerTime"):
        values = {group[0].text(keyword) for group in groups}
        word = header.text(keyword)
        if len(values) > 1 and word and word.isascii() and word.isprintable():
            words.append(word.replace("\\", " "))
    return " ".join(words[:2])


def _groups(headers: Sequence[Header]) -> list[list[Header]]:
    found: list[list[Header]] = []
    for header in headers:
        home = next((group for group in found if _alike(group[0], header)), None)
        if home is None:
            found.append([header])
        else:
            home.append(header)
    found = [part for group in found for part in _split_by_frame(group)]
    for keyword in SEPARATING_IN_PLACE:
        found = [part for group in found for part in _split_in_place(group, keyword)]
    return found


def _split_by_frame(group: list[Header]) -> list[list[Header]]:
    """By frame of reference; unless each slice has its own, as after some de-identification."""
    parts: dict[str, list[Header]] = {}
    for header in group:
        parts.setdefault(header.text("FrameOfReferenceUID"), []).append(header)
    return [group] if len(parts) == len(group) else list(parts.values())


def _alike(one: Header, other: Header) -> bool:
    return (
        all(_value(one, keyword) == _value(other, keyword) for keyword in SEPARATING)
        and _kind(one) == _kind(other)
        and _close(one, other, "ImageOrientationPatient", ORIENTATION_TOLERANCE)
        and _close(one, other, "PixelSpacing", SPACING_TOLERANCE_MM)
    )


def _kind(header: Header) -> tuple[str, ...]:
    is_multi_energy = header.text("MultienergyCTAcquisition").upper() == "YES"
    return header.values("ImageType")[: 4 if is_multi_energy else 3]


def _value(header: Header, keyword: str) -> object:
    return header.number(keyword) if keyword == "KVP" else header.values(keyword)


def _close(one: Header, other: Header, keyword: str, tolerance: float) -> bool:
    first, second = one.numbers(keyword), other.numbers(keyword)
    if len(first) != len(second):
        return False
    return all(abs(a - b) <= tolerance for a, b in zip(first, second, strict=True))


def _split_in_place(group: list[Header], keyword: str) -> list[list[Header]]:
    """Acquisitions that cover the same range are stacks of their own; adjoining ones are not."""
    parts: dict[str, list[Header]] = {}
    for header in group:
        parts.setdefault(header.text(keyword), []).append(header)
    if len(parts) < 2 or min(len(part) for part in parts.values()) < 2:
        return [group]
    ranges = sorted(_range(part) for part in parts.values())
    shared = any(
        second[0] < first[1] - OVERLAP_TOLERANCE_MM
        for first, second in zip(ranges, ranges[1:], strict=False)
    )
    return list(parts.values()) if shared else [group]


def _range(headers: Sequence[Header]) -> tuple[float, float]:
    places = [distance_mm(header) for header in headers]
    return min(places), max(places)


def distance_mm(header: Header) -> float:
    """Place of a slice along its own normal; 0 where the header has no geometry."""
    cosines = header.numbers("ImageOrientationPatient")
    position = header.numbers("ImagePositionPatient")
    if len(cosines) != 6 or len(position) != 3:
        return 0.0
    return float(np.dot(np.cross(cosines[:3], cosines[3:]), position))


def open_volume(stack: Stack) -> Volume:
    """A stack as a volume whose slices are decoded when they are asked for."""
    layout = arrange(newest(stack.headers))
    pixels = PixelReader()
    return Volume(layout.geometry, lambda index: pixels.hounsfield(layout.headers[index]))
