"""Drawings as SVG, made here so that a page needs no script for them; all colours are classes."""

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

from markupsafe import Markup

WIDTH = 960  # of the geometry, in its own units
TOP, HEIGHT = 26, 64  # where its lines begin, and how long they are
EDGE = 22
STRIP = 1000  # width of the strip of slices, and of the time line
BAR = 22  # height of the time line
MOST_LEAN = 30.0  # degrees: what is steeper is drawn so
SCORES_HEIGHT, SCORES_LEFT, SCORES_TOP, SCORES_BOTTOM = 180, 34, 10, 24
PLOT_WIDTH, PLOT_HEIGHT = 300, 120
PLOT_LEFT, PLOT_BOTTOM, PLOT_TOP = 40, 20, 8
LEAST_SHARE = 0.006  # of the time line: what was short stays visible


@dataclass(frozen=True)
class SlicePlace:
    """One slice: its position as a PACS shows it, and what made it."""

    at_mm: float  # of Image Position (Patient), on the axis that the normal lies nearest to
    is_generated: bool
    number: int | None = None  # Instance Number in the derived series, where it is in there
    received_number: int | None = None  # the Instance Number that it came with
    expected_error_hu: float | None = None
    confidence: float | None = None  # 0 to 1
    word: str = ""  # of its confidence: sure, fair, unsure, large_anatomy_only
    how: str = ""  # what made it, where the record says so: the network, or an interpolation


@dataclass(frozen=True)
class JobPhase:
    """A piece of a job's time line; what went on side by side has a lane each."""

    name: str  # also its class
    begins: float  # seconds from the begin of the line
    seconds: float
    lane: int = 0
    lanes: int = 1


@dataclass(frozen=True)
class Point:
    """The values of a plot at one time."""

    at: float
    label: str
    values: tuple[float | None, ...]


def _element(name: str, text: str = "", **attributes: object) -> str:
    given = "".join(
        f" {key.rstrip('_').replace('_', '-')}={quoteattr(_text(value))}"
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{given}>{text}</{name}>" if text else f"<{name}{given}/>"


def _text(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def _svg(width: float, height: float, label: str, *parts: str, **more: object) -> Markup:
    box = f"0 0 {_text(width)} {_text(height)}"
    inside = _element("title", escape(label)) + "".join(parts)
    # Every text in it went through `escape`, every attribute through `quoteattr`.
    return Markup(_element("svg", inside, viewBox=box, role="img", **more))  # noqa: S704


def along(places: Sequence[SlicePlace]) -> list[float]:
    """Give the place of each slice in the drawing of the geometry."""
    first, last = places[0].at_mm, places[-1].at_mm
    scale = (WIDTH - 2 * EDGE) / ((last - first) or 1.0)
    return [round(EDGE + (place.at_mm - first) * scale, 2) for place in places]


def lean(tilt_degrees: float) -> float:
    """Measure how far the foot of a line lies beside its head: slices lean as the gantry did."""
    return HEIGHT * math.tan(math.radians(max(-MOST_LEAN, min(MOST_LEAN, tilt_degrees))))


def _hatch(name: str) -> str:
    """Define the drawing of what was not acquired; names are unique on a page."""
    line = _element("path", d="M-1 1L1 -1M0 8L8 0M7 9L9 7", class_="hatching", stroke_width=1.5)
    size = {"width": 8, "height": 8, "patternUnits": "userSpaceOnUse"}
    return _element("defs", _element("pattern", line, id=f"hatch-{name}", **size))


def geometry(
    places: Sequence[SlicePlace], missing: Mapping[int, int], tilt_degrees: float, axis: str = "z"
) -> Markup:
    """Draw received and generated slices where they lie, and where slices are missing.

    `missing` names gaps, counted from 0, with the number of their missing slices; 0 = unknown.
    """
    spots, off = along(places), lean(tilt_degrees)
    received = [spot for spot, place in zip(spots, places, strict=True) if not place.is_generated]
    generated = [spot for spot, place in zip(spots, places, strict=True) if place.is_generated]
    holes = [
        part
        for gap, count in missing.items()
        for part in _hole(received[gap], received[gap + 1], count, off)
    ]
    lines = (
        _element("path", d=_lines(received, 0, HEIGHT, off), class_="received", stroke_width=2),
        _element(
            "path", d=_lines(generated, 10, HEIGHT - 10, off), class_="made", stroke_width=1.5
        ),
    )
    mark = _element(
        "line",
        x1=spots[0] - off / 2,
        x2=spots[0] + off / 2,
        y1=TOP - 7,
        y2=TOP + HEIGHT + 7,
        class_="now",
        stroke_width=2,
        data_mark="places",
        data_places=json.dumps([round(spot - off / 2, 2) for spot in spots]),
        data_lean=off,
    )
    label = f"{len(received)} received and {len(generated)} generated slices along {axis}"
    if missing:
        label += f"; in {len(missing)} of the gaps slices are missing"
    height = TOP + HEIGHT + 34
    ruler = _ruler(places[0].at_mm, places[-1].at_mm, axis)
    return _svg(WIDTH, height, label, _hatch("geometry"), *holes, *lines, mark, *ruler)


def _lines(spots: Iterable[float], first: float, last: float, off: float) -> str:
    """Draw upright or leaning lines as one path: a long stack has a thousand."""
    head, foot = (off * (y / HEIGHT - 0.5) for y in (first, last))
    return "".join(
        f"M{_text(round(x + head, 2))} {_text(TOP + first)}"
        f"L{_text(round(x + foot, 2))} {_text(TOP + last)}"
        for x in spots
    )


def _hole(first: float, second: float, count: int, off: float) -> Iterator[str]:
    """Draw a gap as an area, its missing slices as broken lines, and their number."""
    half = off / 2
    corners = (
        (first - half, TOP),
        (second - half, TOP),
        (second + half, TOP + HEIGHT),
        (first + half, TOP + HEIGHT),
    )
    points = " ".join(f"{_text(round(x, 2))},{_text(float(y))}" for x, y in corners)
    yield _element("polygon", points=points, class_="hole")
    yield _element("polygon", points=points, fill="url(#hatch-geometry)")
    if not count:
        return
    step = (second - first) / (count + 1)
    absent = [first + step * (number + 1) for number in range(count)]
    yield _element("path", d=_lines(absent, 4, HEIGHT - 4, off), class_="absent", stroke_width=1.5)
    middle = (first + second) / 2 - half
    yield _element("text", str(count), x=middle, y=TOP - 8, class_="lost", text_anchor="middle")


def _ruler(first: float, last: float, axis: str) -> list[str]:
    """Draw the scale below: positions of the patient in mm, as a PACS shows them."""
    if first == last:
        return []
    base = TOP + HEIGHT + 14
    parts = [_element("line", x1=EDGE, x2=WIDTH - EDGE, y1=base, y2=base, class_="axis")]
    step = ticks(abs(last - first), 8)[1]
    low, high = sorted((first, last))
    for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1):
        mm = round(number * step, 10)
        x = EDGE + (mm - first) / (last - first) * (WIDTH - 2 * EDGE)
        parts.append(_element("line", x1=x, x2=x, y1=base, y2=base + 4, class_="axis"))
        parts.append(_element("text", f"{mm:g}", x=x, y=base + 17, text_anchor="middle"))
    name = f"{axis}, mm"
    return [*parts, _element("text", name, x=WIDTH - EDGE, y=base - 4, text_anchor="end")]


def ticks(length: float, most: int) -> list[float]:
    """Choose round numbers from 0 up to a length."""
    if length <= 0:
        return [0.0]
    rough = length / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return [round(step * number, 10) for number in range(int(length / step + 1e-9) + 1)]


def trust(place: SlicePlace) -> str:
    """Choose the class of a slice: received, or how sure the model was, where anything says so."""
    return (place.word or "made") if place.is_generated else "received"


def strip(places: Sequence[SlicePlace], left: Collection[int] = ()) -> Markup:
    """Draw one cell a slice, to click on; the current one is framed.

    `left` are gaps between received slices, counted from 0, that were not filled: a hatched cell.
    """
    cells = list(_cells(places, left))
    width = STRIP / len(cells)
    drawn = [
        _element(
            "rect",
            x=index * width,
            y=3,
            width=max(0.5, width - 1),
            height=20,
            class_=trust(place) if place is not None else "left",
            fill=None if place is not None else "url(#hatch-strip)",
        )
        for index, place in enumerate(cells)
    ]
    at = [round(index * width, 2) for index, place in enumerate(cells) if place is not None]
    mark = _element(
        "rect",
        x=0,
        y=1.5,
        width=width,
        height=23,
        class_="now",
        rx=2,
        data_mark="cells",
        data_cells=json.dumps(at),
    )
    label = "One cell a slice, coloured by what it is and how sure the model was"
    if left:
        label += "; hatched: a gap that was neither acquired nor filled"
    more = {"preserveAspectRatio": "none", "data_strip": "slice"}
    return _svg(STRIP, 26, label, _hatch("strip"), *drawn, mark, **more)


def _cells(places: Sequence[SlicePlace], left: Collection[int]) -> Iterator[SlicePlace | None]:
    """Give the slices in their order, and None for each gap that was left."""
    gap = -1
    for place in places:
        if not place.is_generated:
            if gap in left:
                yield None
            gap += 1
        yield place


def scores(values: Sequence[float], threshold: float, names: Sequence[str]) -> Markup:
    """Draw a bar for the score of each slice, 0 to 1, to click on, and their threshold.

    Slices go from left to right as they lie in the stack; the current one is framed.
    """
    width, tall = (WIDTH - SCORES_LEFT) / len(values), SCORES_HEIGHT - SCORES_TOP - SCORES_BOTTOM
    base = SCORES_TOP + tall
    parts = []
    for index, (value, name) in enumerate(zip(values, names, strict=True)):
        high = max(1.0, value * tall)
        bar = _element(
            "rect",
            _element("title", escape(f"{name}: {value:.2f}")),
            x=SCORES_LEFT + index * width + width * 0.1,
            y=base - high,
            width=width * 0.8,
            height=high,
            class_="high" if value >= threshold else "low",
        )
        parts.append(bar)
    for share in (0.0, 0.5, 1.0):
        y = base - share * tall
        parts.append(_element("line", x1=SCORES_LEFT, x2=WIDTH, y1=y, y2=y, class_="gridline"))
        label = _element("text", f"{share:g}", x=SCORES_LEFT - 6, y=y + 4, text_anchor="end")
        parts.append(label)
    line = base - threshold * tall
    parts.append(_element("line", x1=SCORES_LEFT, x2=WIDTH, y1=line, y2=line, class_="threshold"))
    for index in range(0, len(names), max(1, math.ceil(len(names) / 8))):
        x, y, name = SCORES_LEFT + (index + 0.5) * width, SCORES_HEIGHT - 5.0, escape(names[index])
        if x < WIDTH - SCORES_LEFT:  # else its name would be cut
            parts.append(_element("text", name, x=x, y=y, text_anchor="middle"))
    cells = [round(SCORES_LEFT + index * width, 2) for index in range(len(values))]
    frame = _element(
        "rect",
        x=SCORES_LEFT,
        y=SCORES_TOP - 2,
        width=width,
        height=tall + 4,
        rx=2,
        class_="now",
        data_mark="cells",
        data_cells=json.dumps(cells),
    )
    above = sum(value >= threshold for value in values)
    label = f"Score of each of {len(values)} slices; {above} above the threshold {threshold:.2f}"
    return _svg(WIDTH, SCORES_HEIGHT, label, *parts, frame, data_strip="slice")


def edge(places: Sequence[SlicePlace], left: Collection[int], *, first_is_up: bool) -> Markup:
    """Draw beside a reformat which of its lines were received and which generated."""
    top, bottom = (places[0], places[-1]) if first_is_up else (places[-1], places[0])
    height = (bottom.at_mm - top.at_mm) or 1.0
    lines, gap = [], -1
    for index, place in enumerate(places):
        gap += not place.is_generated
        before, after = places[max(index - 1, 0)], places[min(index + 1, len(places) - 1)]
        # Beside a gap that was left a slice reaches less far: what is hatched has no colour.
        is_cut = not place.is_generated and gap - 1 in left, gap in left
        shares = [0.25 if cut else 0.5 for cut in is_cut]
        ends = [
            place.at_mm + (other.at_mm - place.at_mm) * share
            for other, share in zip((before, after), shares, strict=True)
        ]
        y = sorted((at_mm - top.at_mm) / height * STRIP for at_mm in ends)
        lines.append(
            _element("rect", x=0, y=y[0], width=8, height=y[1] - y[0], class_=trust(place))
        )
    label = "Which lines were received, and which generated"
    return _svg(8, STRIP, label, *lines, preserveAspectRatio="none", class_="edge")


def timeline(phases: Sequence[JobPhase]) -> Markup:
    """Draw the phases of a job to scale; what was short keeps a sliver, drawn last."""
    total = max((phase.begins + phase.seconds for phase in phases), default=0.0) or 1.0
    parts = []
    for phase in sorted(phases, key=lambda phase: -phase.seconds):
        share = max(LEAST_SHARE, phase.seconds / total)
        x = min(phase.begins / total, 1.0 - share) * STRIP
        tall = BAR / phase.lanes
        parts.append(
            _element(
                "rect",
                x=x,
                y=tall * phase.lane,
                width=max(1.0, share * STRIP - 1.5),
                height=tall - (1.5 if phase.lane + 1 < phase.lanes else 0.0),
                class_=f"phase-{phase.name}",
            )
        )
    return _svg(STRIP, BAR, "Time line of the job", *parts, preserveAspectRatio="none")


def plot(points: Sequence[Point], names: Sequence[str], unit: str) -> Markup:
    """Draw lines over time, one for each name; a time without a value leaves a hole."""
    values = [value for point in points for value in point.values if value is not None]
    top = _ceiling(max(values, default=1.0))
    parts = _grid(top, unit) + _dates(points)
    for line, name in enumerate(names):
        runs = _runs(points, line, top)
        parts += [
            _element("polyline", points=" ".join(run), class_=name) for run in runs if run[1:]
        ]
        parts += [
            _element("circle", cx=x, cy=y, r=2, class_=f"dot{name[1:]}")
            for run in runs
            for x, y in [run[0].split(",")]
            if not run[1:]
        ]
    label = f"{' and '.join(names)} over time, up to {top:g} {unit}"
    return _svg(PLOT_WIDTH, PLOT_HEIGHT, label, *parts)


def bars(points: Sequence[Point], classes: Sequence[str], unit: str) -> Markup:
    """Draw bars over time; several values of one time stand on each other."""
    top = _ceiling(max((sum(v or 0.0 for v in p.values) for p in points), default=1.0))
    parts = _grid(top, unit) + _dates(points)
    room = (PLOT_WIDTH - PLOT_LEFT) / max(1, len(points))
    tall = PLOT_HEIGHT - PLOT_BOTTOM - PLOT_TOP
    for index, point in enumerate(points):
        y = float(PLOT_HEIGHT - PLOT_BOTTOM)
        for value, name in zip(point.values, classes, strict=True):
            height = tall * (value or 0.0) / top
            y -= height
            if height:
                x = PLOT_LEFT + room * index + room * 0.12
                wide = room * 0.76
                parts.append(_element("rect", class_=name, x=x, y=y, width=wide, height=height))
    return _svg(PLOT_WIDTH, PLOT_HEIGHT, f"Bars over time, up to {top:g} {unit}", *parts)


def _x(points: Sequence[Point], index: int) -> float:
    return PLOT_LEFT + (PLOT_WIDTH - PLOT_LEFT - 6) * (index + 0.5) / len(points)


def _runs(points: Sequence[Point], line: int, top: float) -> list[list[str]]:
    """Give the coordinates of one line, in pieces where values are absent."""
    tall = PLOT_HEIGHT - PLOT_BOTTOM - PLOT_TOP
    runs: list[list[str]] = [[]]
    for index, point in enumerate(points):
        value = point.values[line]
        if value is None:
            runs.append([])
            continue
        y = PLOT_TOP + tall * (1 - value / top)
        runs[-1].append(f"{_text(_x(points, index))},{_text(y)}")
    return [run for run in runs if run]


def _ceiling(value: float) -> float:
    """Find the next round number."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= value)


def _grid(top: float, unit: str) -> list[str]:
    parts = []
    tall = PLOT_HEIGHT - PLOT_BOTTOM - PLOT_TOP
    for share in (0.0, 0.5, 1.0):
        y = PLOT_TOP + tall * (1 - share)
        parts.append(_element("line", x1=PLOT_LEFT, x2=PLOT_WIDTH, y1=y, y2=y, class_="gridline"))
        label = f"{top * share:g}{f' {unit}' if share == 1.0 else ''}"
        parts.append(_element("text", escape(label), x=PLOT_LEFT - 5, y=y + 4, text_anchor="end"))
    return parts


def _dates(points: Sequence[Point]) -> list[str]:
    """Write the first, the middle and the last label: more do not fit on a phone."""
    if not points:
        return []
    chosen: Mapping[int, str] = {0: "start", len(points) // 2: "middle", len(points) - 1: "end"}
    return [
        _element(
            "text",
            escape(points[index].label),
            x=PLOT_WIDTH
            if anchor == "end"
            else _x(points, index) - (8 if anchor == "start" else 0),
            y=PLOT_HEIGHT - 5,
            text_anchor=anchor,
        )
        for index, anchor in chosen.items()
    ]
