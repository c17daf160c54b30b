"""Passes: where a series shows the same places several times, each time is a stack of its own.

A phase, a time or an acquisition that differs from slice to slice parts nothing by itself: shots,
beats and table feeds have numbers and times of their own too.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations

import numpy as np

from inference.dataset import Header
from inference.geometry import second_of_day
from inference.kinds import REPEATED_MM, Places, distances_mm

# Acquisitions whose ranges share less than this adjoin.
OVERLAP_TOLERANCE_MM = 0.01
# Attributes that name a phase: each value is one.
PHASES = (
    "NominalPercentageOfCardiacPhase",
    "TemporalPositionIdentifier",
    "ContrastBolusAgent",
    "ImageType",
)
# Attributes that rise within a pass, too: a new one begins when a place comes again.
ORDERS = ("TriggerTime", "AcquisitionNumber", "AcquisitionDateTime", "AcquisitionTime")
# Two acquisitions that share less than this part of the places of the shorter one adjoin.
ADJOINING = 0.5

Group = list[Header]


def passes(group: Group) -> list[Group]:
    """The passes over the places of a group; one where no place comes twice, or nothing tells."""
    if not _repeated(group):
        return [group]
    for keyword in PHASES:
        parts = _by_value(group, keyword)
        if _tells_apart(parts, group):
            return [one for part in parts for one in passes(part)]
    in_turn = [_in_turn(group, keyword) for keyword in ORDERS]
    telling = [parts for parts in in_turn if _tells_apart(parts, group)]
    return min(telling, key=len) if telling else [group]


def without_second_border(parts: list[Group]) -> tuple[list[Group], Group]:
    """(parts, slices left out): of two acquisitions that adjoin, only the first has what both show.

    The last of the common places stays in both: what lies between is filled once.
    """
    parts = sorted(parts, key=lambda part: (_places(part)[0], _places(part)[-1]))
    left_out: Group = []
    for first, second in combinations(range(len(parts)), 2):
        before, after = _places(parts[first]), _places(parts[second])
        common = _common(after, before)
        staggered = before[0] < after[0] - REPEATED_MM and before[-1] < after[-1] - REPEATED_MM
        few = len(common) < ADJOINING * min(len(before), len(after))
        if staggered and len(common) > 1 and few and not _are_phases(parts[first], parts[second]):
            inner = distances_mm(parts[second]) < common[-1] - REPEATED_MM
            left_out += [h for h, is_inner in zip(parts[second], inner, strict=True) if is_inner]
            parts[second] = [h for h in parts[second] if h not in left_out]
    return parts, left_out


def _are_phases(first: Group, second: Group) -> bool:
    return any(
        {header.values(keyword) for header in first}.isdisjoint(
            header.values(keyword) for header in second
        )
        for keyword in PHASES
    )


def _repeated(group: Group) -> int:
    """The number of slices at a place that the group has already."""
    return len(group) - len(set(_numbered_places(group)))


def _numbered_places(group: Sequence[Header]) -> list[int]:
    """For each slice the number of its place; slices that nearly touch share one."""
    places = distances_mm(group)
    order = np.argsort(places, kind="stable")
    number, start = 0, places[order[0]] if len(group) else 0.0
    numbers = [0] * len(group)
    for index in order.tolist():
        if places[index] - start > REPEATED_MM:
            number, start = number + 1, places[index]
        numbers[index] = number
    return numbers


def _tells_apart(parts: list[Group], group: Group) -> bool:
    """True where parts have fewer places twice, and where they overlap show the same places."""
    if len(parts) < 2 or min(len(part) for part in parts) < 2:
        return False
    if sum(map(_repeated, parts)) >= _repeated(group):
        return False
    return all(_repeat(*pair) for pair in _overlapping([_places(part) for part in parts]))


def _by_value(group: Group, keyword: str) -> list[Group]:
    parts: dict[tuple[str, ...], Group] = {}
    for header in group:
        parts.setdefault(header.values(keyword), []).append(header)
    return list(parts.values())


def _in_turn(group: Group, keyword: str) -> list[Group]:
    """The passes in the order of a time or number: cut at its widest step before a repetition."""
    value_of = _value_of(keyword)
    values = [value_of(header) for header in group]
    if any(value is None for value in values):
        return [group]
    order = sorted(range(len(group)), key=lambda i: (values[i], group[i].uid))
    at = _numbered_places(group)
    steps = [0.0, *np.diff([float(values[i] or 0.0) for i in order])]
    parts, start, last = [], 0, dict[int, int]()
    for position, index in enumerate(order):
        before = last.get(at[index], -1)
        if before >= start:
            cut = max(range(before + 1, position + 1), key=lambda i: (steps[i], i))
            if steps[cut] <= 0.0:
                return [group]
            parts.append([group[i] for i in order[start:cut]])
            start = cut
        last[at[index]] = position
    parts.append([group[i] for i in order[start:]])
    return parts


def _value_of(keyword: str) -> Callable[[Header], float | None]:
    if keyword == "AcquisitionTime":
        return lambda header: second_of_day(header.text(keyword))
    return lambda header: header.number(keyword)


def _places(group: Group) -> Places:
    return np.sort(distances_mm(group))


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
    return bool(len(few)) and len(_common(few, many)) == len(few)


def _common(places: Places, others: Places) -> Places:
    """The places that are among the others too."""
    near = np.abs(places[:, None] - others[None, :]).min(axis=1) <= REPEATED_MM
    return np.asarray(places[near])
