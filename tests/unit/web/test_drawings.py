"""Drawings say what they are drawn from, and a text in them stays a text."""

import json
import xml.etree.ElementTree as ET  # our own output, made in this process

import pytest

from node.web.pages import drawings
from node.web.pages.drawings import JobPhase, Point, SlicePlace

SLICES = tuple(SlicePlace(at * 2.5, at % 2 == 1) for at in range(5))


def parsed(drawing: str) -> ET.Element:
    return ET.fromstring(drawing)


def of_class(drawing: ET.Element, name: str) -> list[ET.Element]:
    return [each for each in drawing.iter() if each.get("class") == name]


def heads(path: str) -> list[float]:
    """Where each line of a path begins, from left to right."""
    return [float(part.split(" ")[0]) for part in path.split("M")[1:]]


def test_every_slice_lies_where_it_lies_in_the_patient() -> None:
    uneven = (
        SlicePlace(0.0, False),
        SlicePlace(2.0, True),
        SlicePlace(4.0, False),
        SlicePlace(12.0, False),
    )
    drawing = parsed(drawings.geometry(uneven, {}, 0.0))
    (received,) = of_class(drawing, "received")
    (made,) = of_class(drawing, "made")
    first, second, last = heads(received.get("d", ""))
    (between,) = heads(made.get("d", ""))
    assert (between - first) / (last - first) == pytest.approx(2 / 12, abs=0.002)
    assert (second - first) / (last - first) == pytest.approx(4 / 12, abs=0.002)
    assert drawing.find("title").text == "3 received and 1 generated slices along z"  # type: ignore[union-attr]


def test_a_gap_with_missing_slices_is_marked() -> None:
    assert of_class(parsed(drawings.geometry(SLICES, {}, 0.0)), "hole") == []
    drawing = parsed(drawings.geometry(SLICES, {1: 3}, 0.0))
    (hole,) = of_class(drawing, "hole")
    (absent,) = of_class(drawing, "absent")
    (lost,) = of_class(drawing, "lost")
    assert (lost.text, len(heads(absent.get("d", "")))) == ("3", 3)
    assert of_class(parsed(drawings.geometry(SLICES, {1: 0}, 0.0)), "absent") == []
    corners = [float(pair.split(",")[0]) for pair in hole.get("points", "").split()]
    spots = drawings.along(SLICES)
    assert (min(corners), max(corners)) == (spots[2], spots[4])


@pytest.mark.parametrize(("tilt", "sign"), [(15.0, 1), (-15.0, -1), (0.0, 0)])
def test_slices_lean_as_the_gantry_did(tilt: float, sign: int) -> None:
    line = of_class(parsed(drawings.geometry(SLICES, {}, tilt)), "now")[0]
    off = float(line.get("x2", "")) - float(line.get("x1", ""))
    assert (off > 0) - (off < 0) == sign


def test_a_tilt_that_no_gantry_has_does_not_lay_the_drawing_flat() -> None:
    assert abs(drawings.lean(89.0)) < drawings.HEIGHT


def test_a_long_stack_is_as_large_a_page_as_a_short_one() -> None:
    many = tuple(SlicePlace(float(at), at % 4 > 0) for at in range(2000))
    drawing = drawings.geometry(many, {}, 0.0)
    assert len(parsed(drawing).findall(".//*")) < 45


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (SlicePlace(0.0, False), "received"),
        (SlicePlace(0.0, True), "made"),
        (SlicePlace(0.0, True, word="sure"), "sure"),
        (SlicePlace(0.0, True, word="fair"), "fair"),
        (SlicePlace(0.0, True, word="unsure"), "unsure"),
        (SlicePlace(0.0, True, word="large_anatomy_only"), "large_anatomy_only"),
    ],
)
def test_a_cell_of_the_strip_says_what_its_slice_is_and_how_sure_the_model_was(
    place: SlicePlace, name: str
) -> None:
    drawing = parsed(drawings.strip((place, place)))
    assert len(of_class(drawing, name)) == 2


HOLED = (
    SlicePlace(-10.0, False),
    SlicePlace(-7.5, True),
    SlicePlace(-5.0, False),
    SlicePlace(5.0, False),  # behind a gap that was left
    SlicePlace(7.5, True),
    SlicePlace(10.0, False),
)


def test_a_gap_that_was_left_is_a_hatched_cell_that_no_click_chooses() -> None:
    drawing = parsed(drawings.strip(HOLED, {1}))
    (left,) = of_class(drawing, "left")
    assert left.get("fill") == "url(#hatch-strip)"
    assert drawing.find(".//pattern").get("id") == "hatch-strip"  # type: ignore[union-attr]
    (mark,) = of_class(drawing, "now")
    cells = json.loads(mark.get("data-cells", ""))
    assert len(cells) == len(HOLED)
    assert float(left.get("x", "")) not in cells
    assert cells[2] < float(left.get("x", "")) < cells[3]
    assert of_class(parsed(drawings.strip(HOLED)), "left") == []


@pytest.mark.parametrize("first_is_up", [True, False])
def test_the_edge_of_a_reformat_says_which_lines_were_generated(first_is_up: bool) -> None:
    drawing = parsed(drawings.edge(HOLED, {1}, first_is_up=first_is_up))
    spans = [
        (float(line.get("y", "")), float(line.get("y", "")) + float(line.get("height", "")))
        for line in drawing.findall(".//rect")
    ]
    if not first_is_up:
        spans = [(1000.0 - last, 1000.0 - first) for first, last in spans]
    # 20 mm in 1000 units; a quarter of the gap that was left belongs to each of its two slices.
    assert spans == [
        (0.0, 62.5),
        (62.5, 187.5),
        (187.5, 375.0),
        (625.0, 812.5),
        (812.5, 937.5),
        (937.5, 1000.0),
    ]
    kinds = [line.get("class") for line in drawing.findall(".//rect")]
    assert kinds == ["received", "made", "received", "received", "made", "received"]


def test_the_ruler_has_positions_of_the_patient_whichever_way_they_run() -> None:
    for places in (HOLED, HOLED[::-1]):
        drawing = parsed(drawings.geometry(places, {}, 0.0))
        labels = {
            each.text: float(each.get("x", ""))
            for each in drawing.findall(".//text")
            if each.get("text-anchor") == "middle"
        }
        assert {"-10", "-5", "0", "5", "10"} <= labels.keys()
        spots = drawings.along(places)
        assert labels["-5"] == pytest.approx(spots[places.index(HOLED[2])])
    assert "z, mm" in [each.text for each in drawing.findall(".//text")]


def test_the_time_line_is_to_scale_and_what_was_short_stays_visible() -> None:
    phases = [
        JobPhase("queued", 0.0, 100.0),
        JobPhase("running", 100.0, 300.0),
        JobPhase("sending", 400.0, 0.0, 0, 2),
        JobPhase("to-send", 400.0, 100.0, 1, 2),
    ]
    drawing = parsed(drawings.timeline(phases))
    drawn = {str(each.get("class")): each for each in drawing.findall(".//rect")}
    running, queued = drawn["phase-running"], drawn["phase-queued"]
    assert float(running.get("width", "")) / float(queued.get("width", "")) == pytest.approx(
        3.0, rel=0.05
    )
    assert float(running.get("x", "")) == 200.0
    sliver, lane = drawn["phase-sending"], drawn["phase-to-send"]
    assert float(sliver.get("width", "")) >= 1.0
    assert float(lane.get("x", "")) == float(sliver.get("x", "")) == 800.0
    assert float(lane.get("y", "")) == drawings.BAR / 2


def test_a_sliver_at_the_end_of_the_time_line_is_not_cut_off() -> None:
    drawing = parsed(drawings.timeline([JobPhase("a", 0.0, 1000.0), JobPhase("b", 1000.0, 0.0)]))
    for each in drawing.findall(".//rect"):
        assert float(each.get("x", "")) + float(each.get("width", "")) <= drawings.STRIP


def test_a_plot_leaves_a_hole_where_nothing_is_known() -> None:
    points = [
        Point(0.0, "00:00", (1.0, 2.0)),
        Point(1.0, "01:00", (2.0, 4.0)),
        Point(2.0, "02:00", (None, None)),
        Point(3.0, "03:00", (1.0, 9.0)),
    ]
    drawing = parsed(drawings.plot(points, ("p50", "p95"), "s"))
    assert len(of_class(drawing, "p50")) == 1
    assert len(of_class(drawing, "dot50")) == 1
    texts = [each.text for each in drawing.iter("text")]
    assert {"0", "5", "10 s", "00:00", "02:00", "03:00"} <= set(texts)


def test_a_plot_of_nothing_is_an_empty_frame() -> None:
    drawing = parsed(drawings.plot([Point(0.0, "x", (None, None))], ("p50", "p95"), "s"))
    assert drawing.findall(".//polyline") == []
    assert parsed(drawings.bars([], ("bar",), "")) is not None


def test_bars_stand_on_each_other() -> None:
    points = [Point(0.0, "a", (3.0, 1.0)), Point(1.0, "b", (0.0, 0.0))]
    drawing = parsed(drawings.bars(points, ("bar", "bar bad"), ""))
    (well,), (badly,) = of_class(drawing, "bar"), of_class(drawing, "bar bad")
    foot = float(badly.get("y", "")) + float(badly.get("height", ""))
    assert foot == pytest.approx(float(well.get("y", "")), abs=0.02)


def test_text_in_a_drawing_stays_text() -> None:
    drawing = drawings.plot([Point(0.0, "<script>", (1.0,))], ("p50",), '"><b>')
    assert "<script>" not in drawing
    assert "<b>" not in drawing
    assert "<script>" in [each.text for each in parsed(drawing).iter("text")]


@pytest.mark.parametrize(
    ("length", "last"), [(115.0, 100.0), (35.0, 35.0), (0.7, 0.7), (1.0, 1.0), (0.0, 0.0)]
)
def test_the_scale_has_few_round_numbers(length: float, last: float) -> None:
    found = drawings.ticks(length, 8)
    assert found[-1] == pytest.approx(last)
    assert len(found) <= 9


def test_scores_are_bars_as_high_as_they_are_and_the_threshold_is_a_line() -> None:
    drawing = parsed(drawings.scores((0.1, 0.9, 0.45), 0.4, ("image 3", "image 2", "image 1")))
    (low,), high = of_class(drawing, "low"), of_class(drawing, "high")
    (line,), lines = of_class(drawing, "threshold"), of_class(drawing, "gridline")
    zero, half, one = (float(of.get("y1", "")) for of in lines)
    assert half == pytest.approx((zero + one) / 2)
    assert zero - float(line.get("y1", "")) == pytest.approx(0.4 * (zero - one), abs=0.1)
    heights = [float(bar.get("height", "")) for bar in (low, *high)]
    shares = [height / (zero - one) for height in heights]
    assert shares == pytest.approx([0.1, 0.9, 0.45], abs=0.01)
    assert [of.text for bar in high for of in bar] == ["image 2: 0.90", "image 1: 0.45"]
    assert drawing.find("title").text == "Score of each of 3 slices; 2 above the threshold 0.40"  # type: ignore[union-attr]


def test_a_click_on_a_bar_of_the_scores_finds_its_slice() -> None:
    drawing = parsed(drawings.scores((0.2, 0.3), 0.5, ("image 1", "image 2")))
    (mark,) = of_class(drawing, "now")
    cells = json.loads(mark.get("data-cells", ""))
    bars = [float(bar.get("x", "")) for bar in of_class(drawing, "low")]
    width = float(mark.get("width", ""))
    assert all(cell <= x < cell + width for cell, x in zip(cells, bars, strict=True))
    assert drawing.get("data-strip") == "slice"
