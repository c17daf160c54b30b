"""From the files of a series to its stacks, and from a stack to a volume (derived-objects 2)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from inference import grouping
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
    usable, damaged, aside = _by_fault(series)
    if not usable:
        readable = tuple(header for header in series if not header.fault)
        return ([Stack("no CT slices", readable)] if readable else []), aside
    if patient_mismatch(usable):
        return [Stack("several patients", tuple(series))], aside
    found = grouping.groups(usable)
    fault = grouping.why_apart(found)
    if fault:
        return [Stack("no two images alike", tuple(series), fault=fault)], aside
    kept, odd = grouping.without_odd(found)
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
    found = []
    for key, group in zip(grouping.keys(groups), groups, strict=True):
        label = grouping.label(group[0], groups) if len(groups) > 1 else ""
        among = grouping.between(group, odd)
        members = tuple(
            version for header in (*group, *among, *damaged) for version in versions[header.uid]
        )
        fault = grouping.why_odd(group, among)
        found.append(Stack(key, members, label, fault, Reason.MIXED_ACQUISITIONS))
    return sorted(found, key=lambda stack: (-len(stack), stack.key))


def open_volume(stack: Stack) -> Volume:
    """A stack as a volume whose slices are decoded when they are asked for."""
    layout = arrange(newest(stack.headers))
    pixels = PixelReader()
    return Volume(layout.geometry, lambda index: pixels.hounsfield(layout.headers[index]))
