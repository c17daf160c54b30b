"""Stacks: from the files of a series to the slices that form one volume (derived-objects 2)."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations, pairwise

import numpy as np
from pydicom.datadict import dictionary_description

from inference.dataset import Header, Stack, newest, numbers_of, quoted, read_header, read_headers
from inference.errors import Reason
from inference.geometry import LINE_TOLERANCE_MM, arrange, second_of_day
from inference.kinds import (
    REPEATED_MM,
    Kind,
    Places,
    distances_mm,
    is_parallel,
    is_same_grid,
    kinds_of,
    mr_kind_of,
    mr_kinds_of,
    parts_of_mr,
    words_of_mr,
)
from inference.pixels import PixelReader
from inference.scope import instance_fault, is_derived_by_node, patient_mismatch
from inference.volume import Volume

# A phase, a time or an acquisition that differs from slice to slice parts nothing by itself:
# shots, beats and table feeds have numbers and times of their own too.

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
            return [inner for part in parts for inner in passes(part)]
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


# Beside a stack of this many slices, smaller groups are odd slices that are left out.
FEWEST_BESIDE_OTHERS = 3
# So many slices, each in a frame of reference of its own, on one line: a de-identified series.
FEWEST_WITH_OWN_FRAMES = 5
FEWEST_IF_EVEN = 3  # or so many whose gaps are equal
# Attributes that part slices wherever what they show differs; pixel formats are none of them.
SEPARATING = (
    "SOPClassUID",
    "Rows",
    "Columns",
    "ConvolutionKernel",
    "KVP",
    "ImageType",
    "ImageOrientationPatient",
    "PixelSpacing",
    "FrameOfReferenceUID",
)
# Attributes that part them only where the same places come again.
OF_A_PASS = tuple(keyword for keyword in (*PHASES, *ORDERS) if keyword not in SEPARATING)
MOST_LABELS = 2
UPRIGHT_COSINE = 0.87  # of a plane within 30 degrees of one that has a name
SHOWN_TWICE = "Another acquisition of the series shows the same place at the border of the two."

__all__ = [
    "Header",
    "SetAside",
    "Stack",
    "facts_of",
    "is_derived_by_node",
    "newest",
    "open_volume",
    "patient_mismatch",
    "read_header",
    "read_headers",
    "set_aside",
    "stacks_of",
]


def groups(headers: Sequence[Header]) -> tuple[list[Group], Group]:
    """(the slices that form a volume together, slices that another acquisition shows already)."""
    alike: list[tuple[Kind, Group]] = []
    for header, kind in zip(headers, kinds_of(headers), strict=True):
        homes = (group for known, group in alike if known == kind and _fits(group, header))
        home = next(homes, None)
        if home is None:
            alike.append((kind, [header]))
        else:
            home.append(header)
    parted: list[Group] = []
    left_out: Group = []
    for whole in (part for _, group in alike for part in _split_by_frame(group)):
        parts, doubled = without_second_border(passes(whole))
        parted += parts
        left_out += doubled
    return parted, left_out


def _fits(group: Group, header: Header) -> bool:
    same_class = group[0].text("SOPClassUID") == header.text("SOPClassUID")
    return same_class and is_same_grid(group[0], header)


def without_odd(groups: list[Group]) -> tuple[list[Group], list[Group]]:
    """(groups, odd slices beside them that are left out)."""
    if max(len(group) for group in groups) < FEWEST_BESIDE_OTHERS:
        return groups, []
    kept = [group for group in groups if len(group) >= FEWEST_BESIDE_OTHERS]
    return kept, [group for group in groups if len(group) < FEWEST_BESIDE_OTHERS]


def between(group: Group, odd: Sequence[Group]) -> Group:
    """The odd slices that lie where the group would have slices generated: in its planes, among
    its places, at none of them."""
    others = [header for other in odd for header in other if is_parallel(group[0], header)]
    places = distances_mm([*group, *others])
    own, theirs = places[: len(group)], places[len(group) :]
    return [
        header
        for header, place in zip(others, theirs, strict=True)
        if own.min() < place < own.max() and np.abs(own - place).min() > REPEATED_MM
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
        f"{_differing([group[0] for group in groups])}); at least 2 that match are needed."
    )


def _differing(
    headers: Sequence[Header], keywords: Sequence[str] = (*SEPARATING, *OF_A_PASS)
) -> str:
    """The names of the attributes of the grouping key in which headers differ."""
    return ", ".join(
        dictionary_description(keyword)
        for keyword in keywords
        if len({header.values(keyword) for header in headers}) > 1
    )


def keys(groups: Sequence[Group]) -> list[str]:
    """A readable name for each group, no two alike; the same whatever the order of arrival."""
    names = [_kind_of(group) for group in groups]
    for more in (_mr_of, _phase_of, _acquisition_of, _time_of, _plane_of, _frame_of):
        words = [more(group) for group in groups]
        several = Counter(name for name, _ in set(zip(names, words, strict=True)))
        names = [
            _joined(name, word) if several[name] > 1 else name
            for name, word in zip(names, words, strict=True)
        ]
    return _numbered(names, [min(header.uid for header in group) for group in groups])


def labels_of(groups: Sequence[Group]) -> list[str]:
    """The words that tell each stack of a series from the others, in plain ASCII.

    Empty for a single stack, a number where nothing else tells them apart.
    """
    labels = [""] * len(groups)
    used = [0] * len(groups)
    telling: list[Callable[[Group], str]] = [_kernel_of, _kilovolts_of, *MR_PARTS, _cut_of]
    telling += [_phase_of, _acquisition_of, _time_of, _size_of]
    for word_of in telling:
        words = [_plain(word_of(group)) for group in groups]
        alike = Counter(labels)
        is_telling = len(set(words)) > 1
        for place, word in enumerate(words):
            if is_telling and word and used[place] < MOST_LABELS and alike[labels[place]] > 1:
                labels[place] = f"{labels[place]} {word}".strip()
                used[place] += 1
    if len(groups) == 1 or len(set(labels)) == len(groups):
        return labels
    order = [min(header.uid for header in group) for group in groups]
    return _numbered(labels, order, "part {}")


def _plain(word: str) -> str:
    return word.replace("\\", " ") if word.isascii() and word.isprintable() else ""


def _split_by_frame(group: Group) -> list[Group]:
    """By frame of reference; unless each slice of a straight row names its own, or some do not.

    Some de-identification gives every slice another UID, or takes it from some; two or three slices
    that differ may as well be of two examinations.
    """
    parts: dict[str, Group] = {}
    for header in group:
        parts.setdefault(header.text("FrameOfReferenceUID"), []).append(header)
    each_its_own = len(parts) == len(group) >= FEWEST_IF_EVEN
    some_unnamed = len(parts) == 2 and "" in parts and len(group) >= FEWEST_IF_EVEN
    is_one = (each_its_own or some_unnamed) and _in_a_row(group)
    return [group] if is_one else list(parts.values())


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


def _kind_of(group: Group) -> str:
    header = group[0]
    cosines = " ".join(
        f"{number + 0.0:.2f}" for number in header.numbers("ImageOrientationPatient")
    )
    image = _shown("/".join(_commonest(group, "ImageType")[:3]))
    size = _size_of(group)
    return _joined(
        image,
        _kernel_of(group),
        _kilovolts_of(group),
        size,
        f"along {cosines}" if cosines else "",
    )


def _commonest(group: Group, keyword: str) -> tuple[str, ...]:
    """The values that most slices have, whatever the order of arrival."""
    counts = Counter(header.values(keyword) for header in group)
    return min(counts, key=lambda values: (not values, -counts[values], values))


def _size_of(group: Group) -> str:
    header = group[0]
    size = "x".join(_shown(header.value(side)) for side in ("Rows", "Columns"))
    spacing = " ".join(f"{number:g}" for number in header.numbers("PixelSpacing"))
    return f"{size} at {spacing} mm" if spacing else size


def _kernel_of(group: Group) -> str:
    return _shown("\\".join(_commonest(group, "ConvolutionKernel")))


def _kilovolts_of(group: Group) -> str:
    known = {kilovolts for header in group if (kilovolts := header.number("KVP"))}
    return f"{known.pop():g} kV" if len(known) == 1 else ""


def _mr_of(group: Group) -> str:
    """Echo, inversion, b-value, part of the complex image, time; nothing for another modality."""
    kind = mr_kinds_of(group)[0]
    return words_of_mr(kind) if kind is not None else ""


def _mr_part(number: int, group: Group) -> str:
    kind = mr_kinds_of(group)[0]
    return parts_of_mr(kind)[number] if kind is not None else ""


MR_PARTS = tuple(partial(_mr_part, number) for number in range(6))


def _cut_of(group: Group) -> str:
    """The plane of the slices, as a person names it; nothing where they have none."""
    cosines = group[0].numbers("ImageOrientationPatient")
    if len(cosines) != 6:
        return ""
    along = np.abs(np.cross(cosines[:3], cosines[3:]))
    names = ("sagittal", "coronal", "axial")
    return names[int(along.argmax())] if along.max() > UPRIGHT_COSINE else "oblique"


def _phase_of(group: Group) -> str:
    """The phase of the heart, of a contrast agent or of a sequence, as a person would write it."""
    percents = {header.number("NominalPercentageOfCardiacPhase") for header in group}
    percent = percents.pop() if len(percents) == 1 else None
    position = _only(group, "TemporalPositionIdentifier")
    return _joined(
        f"{percent:g} %" if percent is not None else "",
        f"phase {position}" if position else "",
        _agent_of(group),
    )


def _agent_of(group: Group) -> str:
    """The contrast agent in its own character set; nothing where there are several or none."""
    names = {header.decoded("ContrastBolusAgent") or "" for header in group}
    name = names.pop() if len(names) == 1 else ""
    return quoted(name) if name else ""


def _acquisition_of(group: Group) -> str:
    """The number of an acquisition, or of the first of several that form the stack."""
    numbers = [n for header in group if (n := header.integer("AcquisitionNumber")) is not None]
    return f"acquisition {min(numbers)}" if numbers else ""


def _time_of(group: Group) -> str:
    triggers = [time for header in group if (time := header.number("TriggerTime")) is not None]
    times = [text for header in group if (text := _shown(header.text("AcquisitionTime")[:6]))]
    begun = min(times, default="")
    return _joined(
        f"{min(triggers):g} ms" if triggers else "",
        f"from {':'.join(begun[at : at + 2] for at in range(0, len(begun), 2))}" if begun else "",
    )


def _plane_of(group: Group) -> str:
    cosines = " ".join(f"{c + 0.0:.4f}" for c in group[0].numbers("ImageOrientationPatient"))
    return _joined(cosines, _shown("/".join(group[0].values("ImageType")[3:])))


def _frame_of(group: Group) -> str:
    frame = _only(group, "FrameOfReferenceUID")
    return f"frame of reference {frame}" if frame else ""


def _only(group: Group, keyword: str) -> str:
    """The value that all slices have; nothing where they have several."""
    values = {"\\".join(header.values(keyword)) for header in group}
    return _shown(values.pop()) if len(values) == 1 else ""


def _shown(text: str) -> str:
    return quoted(text) if text else ""


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _numbered(names: Sequence[str], firsts: Sequence[str], form: str = "{}") -> list[str]:
    """Names that are still the same are told apart by number, in the order of the UIDs."""
    numbered = list(names)
    order = sorted(range(len(names)), key=lambda index: (names[index], firsts[index]))
    number = 1
    for before, index in pairwise(order):
        number = number + 1 if names[before] == names[index] else 1
        if number > 1:
            numbered[index] = _joined(names[index], form.format(number))
    return numbered


@dataclass(frozen=True, eq=False)
class SetAside:
    """An instance that belongs to no stack, and why."""

    header: Header
    reason: Reason
    sentence: str


def stacks_of(headers: Iterable[Header]) -> list[Stack]:
    """The stacks of one or several series, largest first; each becomes a job of its own.

    A series that holds no slice is one stack too, so that somebody is told why it has no result;
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
    separated, doubled = groups(usable)
    fault = why_apart(separated)
    if fault:
        return [Stack("no two images alike", tuple(series), fault=fault)], aside
    kept, odd = without_odd(separated)
    aside += [_without_match(header, kept, group) for group in odd for header in group]
    aside += [SetAside(header, Reason.DUPLICATE_POSITIONS, SHOWN_TWICE) for header in doubled]
    # Where a damaged slice belongs is unknown: no stack of its series may be filled without it.
    stacks = _named(kept, odd, series, damaged)
    return [replace(stack, beside=_beside(stack, series)) for stack in stacks], aside


def _without_match(header: Header, stacks: Sequence[Group], group: Group) -> SetAside:
    """An odd slice, with what tells it from the stack that it is most like."""
    differences = [_differing([stack[0], group[0]], SEPARATING) for stack in stacks]
    names = min(differences, key=lambda words: words.count(","))
    why = f" (other {names})" if names else ""
    sentence = f"The image matches no other of its series{why}."
    is_mr = mr_kind_of(header) is not None
    return SetAside(header, Reason.NOT_AN_MR_SLICE if is_mr else Reason.NOT_A_CT_SLICE, sentence)


def facts_of(aside: Iterable[SetAside]) -> list[dict[str, object]]:
    """The instances set aside, for a job's record: how many, which Instance Numbers, and why."""
    by_sentence: dict[tuple[str, str], list[Header]] = {}
    for item in aside:
        by_sentence.setdefault((item.reason, item.sentence), []).append(item.header)
    return [
        {
            "instances": len(headers),
            "numbers": numbers_of(headers),
            "reason": str(reason),
            "why": sentence,
        }
        for (reason, sentence), headers in sorted(by_sentence.items())
    ]


def _beside(stack: Stack, series: Sequence[Header]) -> tuple[Header, ...]:
    own = {header.identity for header in stack.headers}
    return tuple(header for header in newest(series) if header.identity not in own)


def _by_fault(series: Sequence[Header]) -> tuple[list[Header], list[Header], list[SetAside]]:
    """(slices, slices that are damaged, what is no slice or cannot be read)."""
    usable, damaged, aside = [], [], []
    for header in newest(header for header in series if not header.fault):
        fault = instance_fault(header)
        if fault is None:
            usable.append(header)
        elif fault.reason in (Reason.PIXEL_DATA_ERROR, Reason.PATIENT_MISMATCH):
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
    for key, label, group in zip(keys(groups), labels_of(groups), groups, strict=True):
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
