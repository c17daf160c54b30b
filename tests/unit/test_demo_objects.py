"""The report of a model of objects: drawn from the files, whatever the PACS has returned."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from node.config.reading import load
from node.demo import objects
from node.demo.exhibits import EXHIBITS, Exhibit
from node.demo.objects import Drawing, ObjectsResult, StoredSeries
from node.demo.peers import BuiltInPacs, DicomAddress
from node.demo.report import TimelinePhase
from node.demo.run import DemoSettings
from node.second_opinion import Check, ImageSeries, Slice
from tests import mr_series
from tests.phantoms import Series

SLICES = 6


@pytest.fixture(scope="module")
def received(tmp_path_factory: pytest.TempPathFactory) -> ImageSeries:
    series = Series(slices=SLICES, rows=20, columns=24, spacing_mm=2.0, thickness_mm=2.0)
    return ImageSeries.read(mr_series.write(tmp_path_factory.mktemp("sent"), series=series))


def code(meaning: str, value: str = "1") -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "99TEST", meaning
    return item


def segmentation(received: ImageSeries, category: str = "123037004") -> Dataset:
    """Two segments of two frames each, the first one in slices 1 and 2, the other in 3 and 4."""
    made = Dataset()
    made.Modality, made.SOPInstanceUID, made.NumberOfFrames = "SEG", "2.25.77", 4
    made.Rows, made.Columns = 20, 24
    planes = np.zeros((4, 20, 24), np.uint8)
    planes[:, 5:15, 6:18] = 1
    made.PixelData = np.packbits(planes.ravel(), bitorder="little").tobytes()
    made.SegmentSequence = []
    for number, label in enumerate(("Left lung", "Right lung"), start=1):
        segment = Dataset()
        segment.SegmentNumber, segment.SegmentLabel = number, label
        segment.SegmentedPropertyCategoryCodeSequence = [code("category", category)]
        made.SegmentSequence.append(segment)
    made.SharedFunctionalGroupsSequence = [Dataset()]
    made.PerFrameFunctionalGroupsSequence = []
    for index, number in ((1, 1), (2, 1), (3, 2), (4, 2)):
        source, derivation, segment, frame = Dataset(), Dataset(), Dataset(), Dataset()
        source.ReferencedSOPInstanceUID = received.slices[index].uid
        derivation.SourceImageSequence = [source]
        segment.ReferencedSegmentNumber = number
        frame.DerivationImageSequence = [derivation]
        frame.SegmentIdentificationSequence = [segment]
        made.PerFrameFunctionalGroupsSequence.append(frame)
    return made


def result(received: ImageSeries, stored: Sequence[StoredSeries], *checks: Check) -> ObjectsResult:
    return ObjectsResult(
        at=datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
        exhibit=EXHIBITS["brain"],
        model="<script>alert(1)</script>",
        received=received,
        stored=stored,
        record={},
        checks=checks,
        phases=(TimelinePhase("Receive", "words", 0.0, 1.5),),
        pacs="Orthanc",
        machine="2 cores",
        folder=Path("results"),
    )


def test_outlines_are_those_of_each_segment_in_the_slices_that_its_frames_name(
    received: ImageSeries,
) -> None:
    stored = StoredSeries([Slice(segmentation(received), {})], [], None)
    left, right = objects.outlines_of(result(received, [stored]))
    assert (left.label, right.label) == ("Left lung", "Right lung")
    assert left.mask.any(axis=(1, 2)).tolist() == [False, True, True, False, False, False]
    assert right.mask.any(axis=(1, 2)).tolist() == [False, False, False, True, True, False]
    assert left.mask.sum() == 2 * 10 * 12
    assert left.colour != right.colour


def test_what_is_abnormal_has_the_colour_of_a_finding(received: ImageSeries) -> None:
    stored = StoredSeries([Slice(segmentation(received, objects.ABNORMAL), {})], [], None)
    outlines = objects.outlines_of(result(received, [stored]))
    assert {outline.colour for outline in outlines} == {objects.FINDING}


def test_the_number_of_a_lone_segment_lies_in_the_shared_group(received: ImageSeries) -> None:
    made = segmentation(received)
    del made.SegmentSequence[1]
    for frame in made.PerFrameFunctionalGroupsSequence:
        del frame.SegmentIdentificationSequence
    segment = Dataset()
    segment.ReferencedSegmentNumber = 1
    made.SharedFunctionalGroupsSequence[0].SegmentIdentificationSequence = [segment]
    stored = StoredSeries([Slice(made, {})], [], None)
    (outline,) = objects.outlines_of(result(received, [stored]))
    assert outline.slices == 4


def test_a_picture_has_the_outline_and_is_grey_elsewhere(received: ImageSeries) -> None:
    mask = np.zeros((20, 24), bool)
    mask[5:15, 6:18] = True
    edge = objects.edge_of(mask, (240, 200))
    assert edge.shape == (200, 240)
    rows, columns = np.nonzero(edge)
    assert (rows.min(), rows.max()) == pytest.approx((50, 149), abs=1)
    assert (columns.min(), columns.max()) == pytest.approx((60, 179), abs=1)
    assert not edge[100, 100]
    whole = Drawing(received, [], None)
    assert len(whole.stack()) == SLICES
    assert whole.greys.dtype == np.uint8


def test_the_page_needs_nothing_but_itself_and_runs_nobodys_script(
    received: ImageSeries, tmp_path: Path
) -> None:
    stored = StoredSeries([Slice(segmentation(received), {})], [], None)
    stored.header.SOPClassUID = "1.2.840.10008.5.1.4.1.1.66.4"
    stored.header.SeriesNumber, stored.header.SeriesInstanceUID = 9001, "2.25.78"
    stored.header.SeriesDescription = "<b>bold</b>"
    bad = Check("Same patient", ok=False, detail="PatientID is <b>another</b>")
    page = result(received, [stored], bad).write(tmp_path).read_text()
    assert "default-src 'none'" in page
    assert "<script>alert" not in page
    assert "<b>bold</b>" not in page
    assert "1 of 1 checks failed" in page
    assert "Left lung" in page
    assert "PDDL 1.0" in page


def test_a_report_is_shown_as_its_content_tree(received: ImageSeries) -> None:
    def item(kind: str, name: str, **values: object) -> Dataset:
        made = Dataset()
        made.ValueType, made.ConceptNameCodeSequence = kind, [code(name)]
        for keyword, value in values.items():
            setattr(made, keyword, value)
        return made

    unit, measured, image = Dataset(), Dataset(), Dataset()
    unit.CodeValue = "mm"
    measured.NumericValue, measured.MeasurementUnitsCodeSequence = "7.5", [unit]
    image.ReferencedSOPInstanceUID = received.slices[2].uid
    group = item("CONTAINER", "Measurement Group")
    group.ContentSequence = [
        item("CODE", "Finding", ConceptCodeSequence=[code("Nodule")]),
        item("NUM", "Diameter", MeasuredValueSequence=[measured]),
        item("IMAGE", "Source", ReferencedSOPSequence=[image]),
        item("TEXT", "Comment", TextValue="research"),
    ]
    report = Dataset()
    report.ContentSequence = [group]
    lines = [(line.depth, line.name, line.value) for line in objects.content_of(report, received)]
    number = received.slices[2].header.InstanceNumber
    assert lines == [
        (0, "Measurement Group", ""),
        (1, "Finding", "Nodule"),
        (1, "Diameter", "7.5 mm"),
        (1, "Source", f"image {number} of the received series"),
        (1, "Comment", "research"),
    ]


def test_what_the_pacs_does_not_hold_or_what_lacks_its_marks_is_a_fault(
    received: ImageSeries, tmp_path: Path
) -> None:
    """The received series comes back as if it were the result: nothing of it is right."""
    pacs = BuiltInPacs(tmp_path / "pacs")
    paths = [Path(str(header.filename)) for header in received.headers]
    again = dcmread(paths[0])
    again.SeriesInstanceUID, again.PatientID = "2.25.5", "SOMEBODY-ELSE"
    again.save_as(tmp_path / "again.dcm")
    pacs._stored["2.25.5"][received.slices[0].uid] = tmp_path / "again.dcm"
    exhibit = EXHIBITS["brain"]
    back = objects.read_back(exhibit, paths, pacs, tmp_path / "results", {}, ())
    assert [check.ok for check in back.checks] == [False] * 5
    details = " ".join(check.detail for check in back.checks)
    assert "PatientID is b'SOMEBODY-ELSE'" in details
    assert "Series Description" in details
    assert "is one of the received series" in details


@pytest.mark.parametrize(("name", "exhibit"), EXHIBITS.items())
def test_each_exhibit_has_its_data_its_licence_its_card_and_a_route_that_the_node_accepts(
    name: str, exhibit: Exhibit, tmp_path: Path
) -> None:
    assert len(exhibit.paths) >= 20
    assert "Licence: " in exhibit.licence
    assert (Path(objects.__file__).parents[2] / exhibit.card).is_file()
    settings = DemoSettings(model=name)
    (route,) = load(settings.configure(tmp_path / "config.toml", DicomAddress("PACS", 4711))).routes
    assert (route.model, route.destinations) == (name, ("pacs",))


def with_record(received: ImageSeries, record: dict[str, object]) -> ObjectsResult:
    slices = [
        {"at_mm": float(height), "number": int(item.header.InstanceNumber)}
        for item, height in zip(received.slices, received.heights_mm, strict=True)
    ]
    gaps = [{"factor": 1, "gap_mm": 2.0}] * (SLICES - 1)
    made = {"received_slices": slices, "gaps": gaps, **record}
    return replace(result(received, []), record=made)


def test_scores_are_shown_beside_what_radiologists_saw(
    received: ImageSeries, tmp_path: Path
) -> None:
    numbers = [int(item.header.InstanceNumber) for item in received.slices]
    (tmp_path / "LICENSE.md").write_text("# Title\n\nLicence: none.")
    rows = "".join(f"{number},{int(number == numbers[3])}\n" for number in numbers)
    (tmp_path / "labels.csv").write_text("instance_number,haemorrhage\n" + rows)
    scores = {"slices": [0.1, 0.2, 0.3, 0.9, 0.2, 0.1], "slice_threshold": 0.5}
    facts = {"scores": {**scores, "series": 0.7, "series_threshold": 0.6}}
    shown = with_record(received, facts)
    shown = replace(shown, exhibit=replace(shown.exhibit, folder=tmp_path))
    drawing = Drawing(received, [], None)
    assert objects.first_of(shown, drawing) == 3
    assert objects.labelled_of(shown) == [False, False, False, True, False, False]
    page = shown.write(tmp_path).read_text()
    assert "Series 0.70, above the threshold of 0.60." in page
    assert "trained on: how well it fits here is no evidence" in " ".join(page.split())


def test_findings_are_shown_with_a_picture_and_what_radiologists_outlined(
    received: ImageSeries, tmp_path: Path
) -> None:
    (tmp_path / "LICENSE.md").write_text("# Title\n\nLicence: none.")
    readings = "nodule,readers,x_mm,y_mm,z_mm,equivalent_sphere_mm\n1,4,1.0,2.0,3.0,8.0\n"
    finding = {
        "number": 1,
        "slice": 2,
        "score": 0.91,
        "box": [6, 5, 10, 9],
        "site": "left",
        "diameter_mm": 7.4,
        "long_axis_mm": 8.1,
        "short_axis_mm": 6.7,
        "volume_mm3": 212.3,
        "instance_number": int(received.slices[2].header.InstanceNumber),
    }
    for centre_mm, words in (
        ([1.0, 2.0, 6.9], "finding 1 lies there"),
        ([1.0, 2.0, 7.1], "no finding lies there"),
    ):
        (tmp_path / "readings.csv").write_text(readings)
        facts = {"finding": "Nodule", "findings": [{**finding, "centre_mm": centre_mm}]}
        shown = with_record(received, facts)
        shown = replace(shown, exhibit=replace(shown.exhibit, folder=tmp_path))
        page = " ".join(shown.write(tmp_path).read_text().split())
        assert f"Outlined by 4 radiologists, 8.0 mm at (1.0, 2.0, 3.0) mm: {words}" in page
        assert "8.1 × 6.7 mm" in page
        # Each slice, the first one twice; two reformats, and the finding.
        assert page.count("data:image/jpeg") == SLICES + 1 + 2 + 1


def test_marks_of_a_presentation_state_are_named_with_their_image(received: ImageSeries) -> None:
    of, graphic, text, layer, made = Dataset(), Dataset(), Dataset(), Dataset(), Dataset()
    of.ReferencedSOPInstanceUID = received.slices[1].uid
    graphic.GraphicType, graphic.NumberOfGraphicPoints = "POLYLINE", 5
    text.UnformattedTextValue = "1"
    layer.ReferencedImageSequence = [of]
    layer.GraphicObjectSequence, layer.TextObjectSequence = [graphic], [text]
    made.GraphicAnnotationSequence = [layer]
    series = StoredSeries([Slice(made, {})], [], None)
    lines = [(of.name, of.value) for of in objects.marks_of(result(received, []), series)]
    name = f"image {received.slices[1].header.InstanceNumber}"
    assert lines == [(name, "polyline, 5 points"), (name, "1")]
