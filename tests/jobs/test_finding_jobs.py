"""Jobs of models of findings: scope, doubts, and the report with all that lies beside it."""

import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import highdicom
import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset, dcmread

from inference.dataset import read_headers
from inference.errors import Reason
from inference.pipeline import process
from inference.request import (
    Derived,
    Failed,
    Kept,
    Mark,
    ModelSpec,
    Outcome,
    Output,
    Parameters,
    Progress,
    Request,
    Stopped,
    Verdict,
)
from inference.scope import is_derived_by_node
from node.finding_opinion import check
from tests import chest_findings as chest
from tests.chest_findings import BALLS, CHEST, Ball
from tests.phantoms import Patient, Pixels
from tests.unit.inference.made import Watch, unchecked
from tests.unit.inference.made import request as slices_request
from tests.validators import dciodvfy, new_complaints

SEGMENTATION, REPORT_3D = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.88.34"
ALL = ["report", "segmentation", "segmentation", "presentation state", "key objects", "capture"]
NAMES = ["report", "organs", "findings", "marks", "key-objects", "capture"]


def request(
    files: Sequence[Path], folder: Path, model: str = "Balls", output: Output | None = None
) -> Request:
    spec = ModelSpec(model.lower(), f"tests.chest_findings:{model}", produces="findings")
    made = slices_request(files, folder)
    return replace(made, model=spec, parameters=Parameters(), output=output or Output())


@dataclass(frozen=True, eq=False)
class Done:
    """A job that succeeded, its sources and its files."""

    request: Request
    outcome: Derived
    sources: list[Path]

    def read(self, name: str) -> Dataset:
        return dcmread(self.path(name))

    def path(self, name: str) -> Path:
        return self.request.folder / f"{name}.dcm"

    @property
    def paths(self) -> list[Path]:
        return sorted(self.request.folder.glob("*.dcm"))

    @property
    def findings(self) -> list[dict[str, object]]:
        return json.loads(json.dumps(self.outcome.record))["findings"]


def done(
    folder: Path,
    balls: Sequence[Ball] = BALLS,
    *,
    model: str = "Balls",
    output: Output | None = None,
    previews: bool = False,
    **series: object,
) -> Done:
    sources = chest.write(folder / "received", balls, replace(CHEST, **series))
    asked = replace(request(sources, folder / "results", model, output), previews=previews)
    outcome = unchecked(asked)
    assert isinstance(outcome, Derived), outcome
    assert not check(sources, sorted(asked.folder.glob("*.dcm")))
    return Done(asked, outcome, sources)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Done:
    return done(tmp_path_factory.mktemp("job"), previews=True)


def content(report: Dataset) -> highdicom.sr.MeasurementReport:
    """The report as highdicom reads it."""
    return highdicom.sr.Comprehensive3DSR.from_dataset(report).content


def groups(
    report: Dataset,
) -> list[highdicom.sr.VolumetricROIMeasurementsAndQualitativeEvaluations]:
    return content(report).get_volumetric_roi_measurement_groups()


def complaints(job: Done) -> list[str]:
    """What dciodvfy says against a result and not against the first slice of its source."""
    known = set(dciodvfy(job.sources[0]))
    return [line for path in job.paths for line in dciodvfy(path) if line not in known]


def masks(job: Done, name: str = "findings") -> NDArray[np.bool_]:
    """(slices, rows, columns, segments), as another reader sees them."""
    uids = [header.uid for header in read_headers(job.sources)]
    read = highdicom.seg.segread(job.path(name))
    return np.asarray(
        read.get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True), bool
    )


def test_findings_give_a_report_and_five_objects_beside_it(job: Done) -> None:
    files = job.outcome.files
    assert [file.kind for file in files] == ALL
    assert [file.name for file in files] == [f"{name}.dcm" for name in NAMES]
    assert (files[0].series_uid, files[0].sop_class_uid) == (job.outcome.series_uid, REPORT_3D)
    assert len({file.series_uid for file in files}) == 6
    assert [file.is_supplement for file in files] == [False] * 3 + [True] * 3
    assert [named["kind"] for named in job.outcome.record["objects"]] == ALL


def test_no_validator_objects_to_any_of_them(job: Done) -> None:
    assert not new_complaints(job.sources, job.paths)
    for name in ("report", "key-objects"):
        shown = subprocess.run(["dsrdump", job.path(name)], capture_output=True, check=True)
        assert b"Research only, not for diag" in shown.stdout
    state = subprocess.run(["dcmpschk", job.path("marks")], capture_output=True, check=True)
    assert b"Test passed" in state.stderr


def test_another_program_draws_the_page(job: Done, tmp_path: Path) -> None:
    drawn = tmp_path / "page.ppm"
    subprocess.run(["dcmj2pnm", "+op", job.path("capture"), drawn], check=True)
    np.testing.assert_array_equal(np.asarray(Image.open(drawn)), job.read("capture").pixel_array)


def test_the_record_says_where_each_finding_lies_and_how_large_it_is(job: Done) -> None:
    first, second = job.findings
    assert (first["number"], first["score"], first["site"]) == (1, 0.9, "right")
    assert (first["slice"], first["instance_number"], first["at_mm"]) == (5, 6, -290.0)
    assert (first["slices"], first["box"]) == ([3, 7], [20, 28, 25, 33])
    assert first["centre_mm"] == [-150 + 22 * 0.8, -120 + 30 * 0.8, -290.0]
    assert (second["number"], second["site"], second["diameter_mm"]) == (2, "left", 5.6)
    assert (job.outcome.record["threshold"], job.outcome.record["findings_cut"]) == (0.5, 0)


def test_each_group_of_the_report_is_on_the_segment_of_its_finding(job: Done) -> None:
    report = job.read("report")
    assert (report.VerificationFlag, report.PreliminaryFlag) == ("UNVERIFIED", "PRELIMINARY")
    assert len(groups(report)) == 2
    for group, finding in zip(groups(report), job.findings, strict=True):
        segment = group.referenced_segment
        assert segment.referenced_sop_instance_uid == job.outcome.files[2].instance_uid
        assert list(segment.referenced_segment_numbers) == [finding["number"]]
        assert group.finding_type.value == "27925004"
        values = {of.name.value: (of.value, of.unit.value) for of in group.get_measurements()}
        assert values == {
            "81827009": (finding["diameter_mm"], "mm"),
            "103339001": (finding["long_axis_mm"], "mm"),
            "103340004": (finding["short_axis_mm"], "mm"),
            "118565006": (finding["volume_mm3"], "mm3"),
            "111012": (100 * finding["score"], "%"),
        }
        (site,) = group.finding_sites
        side = {"right": "24028007", "left": "7771000"}[finding["site"]]
        assert (site.value.value, site.laterality.value) == ("39607008", side)


def test_report_segments_and_marks_share_the_tracking_of_each_finding(job: Done) -> None:
    segments = [str(of.TrackingUID) for of in job.read("findings").SegmentSequence]
    assert len(set(segments)) == 2
    assert [str(group.tracking_uid) for group in groups(job.read("report"))] == segments
    for annotation in job.read("marks").GraphicAnnotationSequence:
        objects = zip(annotation.GraphicObjectSequence, annotation.TextObjectSequence, strict=True)
        for box, text in objects:
            assert box.TrackingUID == text.TrackingUID
            assert box.TrackingUID == segments[int(text.UnformattedTextValue) - 1]


def test_the_segments_are_the_findings_and_say_what_and_where_they_are(job: Done) -> None:
    wanted = np.stack([ball_of(ball) for ball in BALLS], axis=-1)
    np.testing.assert_array_equal(masks(job), wanted)
    for number, segment in enumerate(job.read("findings").SegmentSequence, start=1):
        assert (segment.SegmentNumber, segment.SegmentLabel) == (number, f"Nodule {number}")
        assert segment.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "49755003"
        assert segment.SegmentedPropertyTypeCodeSequence[0].CodeValue == "27925004"
        (region,) = segment.AnatomicRegionSequence
        assert region.CodeValue == "39607008"
        assert region.AnatomicRegionModifierSequence[0].CodeMeaning == ("Right", "Left")[number - 1]


def ball_of(ball: Ball) -> NDArray[np.bool_]:
    shape = CHEST.slices, CHEST.rows, CHEST.columns
    z, y, x = np.ogrid[tuple(map(slice, shape))]
    squares = (z - ball.slice) ** 2 + (y - ball.row) ** 2 + (x - ball.column) ** 2
    return np.broadcast_to(squares < ball.radius**2, shape)


def test_the_organs_are_two_segments_with_their_sides(job: Done) -> None:
    both = masks(job, "organs")
    assert both.shape[-1] == 2
    assert not both.all(axis=-1).any()
    assert both[:, :, :40, 0].sum() == both[..., 0].sum() > 0
    for segment, side in zip(job.read("organs").SegmentSequence, ("Right", "Left"), strict=True):
        (kind,) = segment.SegmentedPropertyTypeCodeSequence
        assert (kind.CodeValue, segment.SegmentLabel) == ("39607008", f"{side} lung")
        assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == side


@pytest.mark.parametrize("tilt", [0.0, 15.0])
def test_another_reader_finds_a_segment_at_its_place_in_the_patient(
    tmp_path: Path, tilt: float
) -> None:
    one = done(tmp_path, [BALLS[0]], tilt_degrees=tilt)
    image = sitk.ReadImage(str(one.path("findings")))
    first, last = (read_headers(one.sources)[place] for place in (3, 7))
    ends = [image.TransformIndexToPhysicalPoint((0, 0, k)) for k in (0, image.GetDepth() - 1)]
    wanted = [of.numbers("ImagePositionPatient") for of in (first, last)]
    assert any(np.allclose(ends, pair, atol=1e-4) for pair in (wanted, wanted[::-1])) or (
        tilt and any(np.allclose(ends[0], place, atol=1e-4) for place in wanted)
    )
    assert int(sitk.GetArrayFromImage(image).astype(bool).sum()) == ball_of(BALLS[0]).sum()


def test_each_box_lies_around_its_finding_on_every_slice_of_it(job: Done) -> None:
    state, headers = job.read("marks"), read_headers(job.sources)
    assert len(state.ReferencedSeriesSequence[0].ReferencedImageSequence) == CHEST.slices
    boxes = {}
    for annotation in state.GraphicAnnotationSequence:
        (image,) = annotation.ReferencedImageSequence
        for box in annotation.GraphicObjectSequence:
            corners = np.reshape(box.GraphicData, (-1, 2))
            assert box.GraphicAnnotationUnits == "PIXEL"
            boxes[image.ReferencedSOPInstanceUID, box.TrackingID] = [*corners[0], *corners[2]]
    for number, ball in enumerate(BALLS, start=1):
        for place, plane in enumerate(ball_of(ball)):
            rows, columns = np.nonzero(plane)
            wanted = (
                [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                if rows.size
                else None
            )
            assert boxes.get((headers[place].uid, f"Nodule {number}")) == wanted


def test_the_key_images_are_the_middles_and_the_page_says_that_it_is_research(job: Done) -> None:
    headers = read_headers(job.sources)
    chosen = [
        item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        for item in job.read("key-objects").ContentSequence
        if item.ValueType == "IMAGE"
    ]
    assert chosen == [headers[5].uid, headers[9].uid]
    page = job.read("capture")
    assert (page.BurnedInAnnotation, page.SamplesPerPixel) == ("YES", 3)
    assert len(np.unique(page.pixel_array)) > 20


def test_every_object_is_marked_as_research(job: Done) -> None:
    for path in job.paths:
        made = dcmread(path)
        assert made.SeriesDescription.endswith("(AI, research)")
        assert made.ContentQualification == "RESEARCH"
        assert made.Manufacturer == "Midslice"
    words = next(
        item.TextValue
        for item in job.read("report").ContentSequence
        if item.ValueType == "TEXT" and item.ConceptNameCodeSequence[0].CodeMeaning == "Comment"
    )
    assert words.startswith("Research only, not for diagnosis.")
    assert "trained on: nothing, it is a rule" in words


def test_all_of_them_are_known_as_our_own_when_they_come_back(job: Done) -> None:
    headers = read_headers(job.paths)
    assert len(headers) == 6
    assert all(map(is_derived_by_node, headers))


def test_the_previews_have_the_outlines_of_the_findings(job: Done) -> None:
    folder = job.request.folder / "previews"
    index = json.loads((folder / "index.json").read_text())
    assert (index["mask"], index["is_hu"], len(index["slices"])) == ("Nodule", True, 16)
    middle = np.asarray(Image.open(folder / "00005-mask.png"))  # 1: a finding, 2: the organs
    ball = ball_of(BALLS[0])[5]
    assert 0 < (middle == 1).sum() < ball.sum()
    assert not (middle == 1)[~ball].any()
    assert (middle == 2).any()
    assert not (np.asarray(Image.open(folder / "00000-mask.png")) == 1).any()


def test_doing_a_job_twice_gives_the_same_bytes(job: Done, tmp_path: Path) -> None:
    again = replace(job.request, folder=tmp_path / "again", sources=job.request.sources[::-1])
    again.folder.mkdir()
    outcome = unchecked(again)
    assert isinstance(outcome, Derived)
    assert outcome.files == job.outcome.files  # with their digests
    kept = replace(again, kept=frozenset({outcome.series_uid}))
    assert unchecked(kept) == Kept(outcome.series_uid)


def test_a_further_result_says_its_revision_and_has_numbers_of_its_own(
    job: Done, tmp_path: Path
) -> None:
    later = replace(job.request, folder=tmp_path / "later", mark=Mark(2, 1, "ct"), edition=2)
    later.folder.mkdir()
    unchecked(later)
    for name in NAMES:
        first, second = job.read(name), dcmread(later.folder / f"{name}.dcm")
        assert second.SeriesNumber == first.SeriesNumber + 1000
        assert "rev 2" in second.SeriesDescription
        assert second.SOPInstanceUID != first.SOPInstanceUID


@pytest.mark.parametrize("step", ["reading", "predicting", "writing", "checking"])
def test_a_cancelled_job_stops_and_leaves_nothing(tmp_path: Path, step: str) -> None:
    asked = request(chest.write(tmp_path / "received"), tmp_path / "results")
    assert unchecked(asked, Watch(cancel_at=step)) == Stopped()
    assert list(asked.folder.iterdir()) == []


def test_findings_may_overlap(tmp_path: Path) -> None:
    twice = done(tmp_path, [BALLS[1]], model="Overlapping")
    assert twice.read("findings").SegmentsOverlap == "YES"
    both = masks(twice)
    np.testing.assert_array_equal(both[..., 0], ball_of(BALLS[1]))
    np.testing.assert_array_equal(both[..., 1], np.roll(ball_of(BALLS[1]), 1, axis=2))
    assert [of["site"] for of in twice.findings] == ["left", ""]
    last = groups(twice.read("report"))[1].finding_sites[0]
    assert last.laterality is None
    assert not complaints(twice)


def test_without_findings_the_report_says_so_at_the_threshold_and_denies_nothing(
    tmp_path: Path,
) -> None:
    none = done(tmp_path, [Ball(5, 30, 22, score=0.4)])
    assert [file.kind for file in none.outcome.files] == ["report", "segmentation"]
    assert none.findings == []
    report = none.read("report")
    (group,) = content(report).get_image_measurement_groups()
    evaluation = group.get_qualitative_evaluations()[-1]
    assert (evaluation.name.value, evaluation.value.value) == ("27925004", "272519000")
    shown = subprocess.run(["dsrdump", "+Ps", none.path("report")], capture_output=True, check=True)
    words = subprocess.run(["dsrdump", "+Pl", none.path("report")], capture_output=True, check=True)
    assert b'"threshold=0.50"' in shown.stdout
    assert b"Nothing in this series reached that score" in words.stdout
    assert b"normal" not in words.stdout.lower()
    assert b"no nodule" not in words.stdout.lower()
    assert not complaints(none)


def test_a_negative_report_beside_findings_is_seen(job: Done, tmp_path: Path) -> None:
    none = done(tmp_path, [Ball(5, 30, 22, score=0.4)])
    for name in ("findings", "marks", "key-objects", "capture"):
        faults = check(none.sources, [*none.paths, job.path(name)])
        assert any("says that nothing was found" in fault for fault in faults)


def test_every_class_of_objects_stands_in_the_conformance_statement(job: Done) -> None:
    statement = (Path(__file__).parents[2] / "CONFORMANCE.md").read_text(encoding="utf-8")
    section = statement[statement.index("### 5.6") :]
    for file in job.outcome.files:
        assert f"`{file.sop_class_uid}`" in section


def many(count: int) -> list[Ball]:
    """Balls apart from each other, in both lungs, each less bright than the one before."""
    places = [
        (slice_, row, column)
        for slice_ in (2, 8, 13)
        for row in (22, 30, 38)
        for column in (18, 26, 56)
    ]
    return [
        Ball(*place, radius=2.0, score=0.95 - 0.01 * number)
        for number, place in enumerate(places[:count])
    ]


@pytest.mark.parametrize(("most", "shown"), [(10, 10), (3, 3)])
def test_at_most_so_many_findings_as_the_route_asks_for_are_reported(
    tmp_path: Path, most: int, shown: int
) -> None:
    cut = done(tmp_path, many(14), output=Output(max_findings=most))
    assert len(cut.findings) == len(groups(cut.read("report"))) == masks(cut).shape[-1] == shown
    assert cut.outcome.record["findings_cut"] == 14 - shown
    scores = [of["score"] for of in cut.findings]
    assert scores == sorted(scores, reverse=True)
    words = subprocess.run(["dsrdump", "+Pl", cut.path("report")], capture_output=True, check=True)
    said = f"lower scores that were left out: {14 - shown}".encode()
    assert (said in words.stdout) is (shown < 14)
    assert not complaints(cut)


@pytest.mark.parametrize(
    "ball",
    [Ball(0, 30, 22), Ball(15, 30, 22), Ball(5, 30, 22, 1.0), Ball(15, 34, 58, 1.0)],
    ids=["first slice", "last slice", "one pixel", "one pixel of the last slice"],
)
def test_a_finding_at_an_end_of_the_stack_or_of_one_pixel_is_as_any_other(
    tmp_path: Path, ball: Ball
) -> None:
    one = done(tmp_path, [ball], previews=True)
    np.testing.assert_array_equal(masks(one)[..., 0], ball_of(ball))
    assert one.findings[0]["slice"] == ball.slice
    assert not complaints(one)


def turned(made: Dataset, index: int) -> None:
    """A sagittal stack: its slices run from left to right."""
    made.ImageOrientationPatient = ["0", "1", "0", "0", "0", "-1"]
    made.ImagePositionPatient = [f"{-20 + 2.0 * index:g}", "-30", "25"]


def poor(made: Dataset, index: int) -> None:
    """Without all that other programs leave out."""
    for keyword in (
        *("BodyPartExamined", "ProtocolName", "StudyID", "AccessionNumber", "InstanceNumber"),
        *("ReferringPhysicianName", "PatientBirthDate", "SeriesDescription", "SeriesNumber"),
        *("FrameOfReferenceUID", "PositionReferenceIndicator", "WindowCenter", "WindowWidth"),
        *("Manufacturer", "RescaleType", "SpecificCharacterSet", "InstitutionName"),
    ):
        delattr(made, keyword)


def spelt_otherwise(made: Dataset, index: int) -> None:
    """All slices but the first spell the patient's name in another way, and know the weight."""
    if index:
        made.PatientName, made.PatientWeight = "DOE^JANE^^DR", "70"


def sloping(made: Dataset, index: int) -> None:
    """Each slice turns stored values into HU in its own way."""
    if index % 2:
        values = np.frombuffer(made.PixelData, "<i2").astype(np.int32) * 2 + 1024
        made.PixelData = (values - 1024).astype("<i2").tobytes()
        made.RescaleSlope = "0.5"


@pytest.mark.parametrize(
    "series",
    [
        {"tilt_degrees": 20.0},
        {"gaps_mm": [2.0] * 8 + [2.5] * 7},
        {"descending": True},
        {"pixels": Pixels(photometric="MONOCHROME1")},
        {"pixels": Pixels(bits=12, is_signed=False)},
        {"pixels": Pixels(slope=0.5)},
        {"pixel_mm": (0.9, 0.6)},
        {"thickness_mm": None},
        {"patient": Patient(name="Müller^Jürgen".encode("latin-1"))},
        {"edit": turned},
        {"edit": sloping},
        {"edit": poor},
        {"edit": spelt_otherwise},
    ],
    ids=lambda series: " ".join(
        f"{key} {getattr(value, '__name__', value)}"[:40] for key, value in series.items()
    ),
)
def test_odd_geometry_and_pixels_put_findings_on_the_same_pixels(
    tmp_path: Path, series: dict[str, object]
) -> None:
    model = "Sideless" if series.get("edit") is turned else "Balls"
    odd = done(tmp_path, previews=True, model=model, **series)
    np.testing.assert_array_equal(masks(odd), np.stack([ball_of(of) for of in BALLS], axis=-1))
    assert [of["box"] for of in odd.findings] == [[20, 28, 25, 33], [55, 31, 62, 38]]
    headers = read_headers(odd.sources)
    for frame in odd.read("findings").PerFrameFunctionalGroupsSequence:
        (source,) = frame.DerivationImageSequence[0].SourceImageSequence
        header = next(of for of in headers if of.uid == source.ReferencedSOPInstanceUID)
        place = frame.PlanePositionSequence[0].ImagePositionPatient
        np.testing.assert_allclose(place, header.numbers("ImagePositionPatient"), atol=1e-4)
    assert not complaints(odd)
    (area,) = odd.read("marks").DisplayedAreaSelectionSequence
    assert area.get("PresentationPixelSpacing") == ([0.9, 0.6] if "pixel_mm" in series else None)
    notes = " ".join(odd.outcome.record["notes"])
    assert ("slices of findings have no marks" in notes) is (series.get("edit") is sloping)


def test_a_destination_without_3d_reports_gets_outlines_on_slices(tmp_path: Path) -> None:
    plain = done(tmp_path, output=Output(report="2d"))
    report = plain.read("report")
    assert report.SOPClassUID == "1.2.840.10008.5.1.4.1.1.88.33"
    read = highdicom.sr.ComprehensiveSR.from_dataset(report).content
    headers, planar = read_headers(plain.sources), read.get_planar_roi_measurement_groups()
    for group, ball in zip(planar, BALLS, strict=True):
        region = group.roi
        points = np.asarray(region.value)
        np.testing.assert_array_equal(points[0], points[-1])
        rows, columns = np.nonzero(ball_of(ball)[ball.slice])
        assert points.min(axis=0).tolist() == [columns.min(), rows.min()]
        assert points.max(axis=0).tolist() == [columns.max() + 1, rows.max() + 1]
        source = region.ContentSequence[0].ReferencedSOPSequence[0]
        assert source.ReferencedSOPInstanceUID == headers[ball.slice].uid
    assert not complaints(plain)
    assert done(tmp_path / "other").outcome.series_uid != plain.outcome.series_uid


def outcome_of(folder: Path, model: str = "Balls", **series: object) -> Outcome:
    files = chest.write(folder / "received", BALLS, replace(CHEST, **series))
    return unchecked(request(files, folder / "results", model))


@pytest.mark.parametrize(
    ("model", "said"),
    [("Doubting", "one lung has 0.4 L"), ("Blind", "nothing of right lung and left lung was seen")],
)
def test_doubtful_findings_are_held_and_nothing_is_left_to_send(
    tmp_path: Path, model: str, said: str
) -> None:
    outcome = outcome_of(tmp_path, model)
    assert isinstance(outcome, Verdict)
    assert (outcome.reason, outcome.held) == (Reason.LOW_CONFIDENCE, True)
    assert said in outcome.sentence
    assert len(outcome.record["findings"]) == (2 if model == "Doubting" else 0)
    assert list((tmp_path / "results").iterdir()) == []


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("Unsorted", "not in the order of their scores"),
        ("Outside", "outside the stack"),
        ("Certain", "a score of 1.5"),
        ("Endless", "which cannot be"),
        ("Empty", "without a mask"),
        ("Elsewhere", "the site 'liver'"),
        ("Third", "an organ 3 of 2"),
        ("Halves", "no whole numbers"),
        ("Kindless", "of which kind its findings are"),
        ("Open", "a threshold of 2.0"),
        ("Stepwise", "planned 2 steps"),
        ("Unstorable", "the model's record is no JSON"),
        ("Mirrored", "a right organ that lies left of the left one"),
        ("Opposite", "finding 1 a side that it is not on"),
    ],
)
def test_a_model_that_finds_what_cannot_be_has_failed(
    tmp_path: Path, model: str, said: str
) -> None:
    outcome = outcome_of(tmp_path, model)
    assert isinstance(outcome, Failed)
    assert said in outcome.sentence


@pytest.mark.parametrize(
    ("series", "reason", "is_held"),
    [
        ({"missing": [7]}, Reason.MISSING_SLICES, True),
        (
            {"edit": lambda made, _: setattr(made, "SyntheticData", "YES")},
            Reason.DERIVED_INPUT,
            False,
        ),
        ({"edit": lambda made, _: setattr(made, "RescaleType", "US")}, Reason.NOT_HU, False),
        ({"edit": lambda made, _: setattr(made, "Modality", "PT")}, Reason.OUT_OF_SCOPE, False),
    ],
    ids=["missing", "synthetic", "no HU", "PET"],
)
def test_what_is_out_of_scope_is_refused_or_held_and_never_negative(
    tmp_path: Path, series: dict[str, object], reason: Reason, is_held: bool
) -> None:
    outcome = outcome_of(tmp_path, **series)
    assert isinstance(outcome, Verdict)
    assert (outcome.reason, outcome.held) == (reason, is_held)
    assert "findings" not in outcome.record
    assert list((tmp_path / "results").iterdir()) == []


def damaged(
    asked: Request, damage: Callable[[Path], None], folder: Path
) -> tuple[Outcome, list[str]]:
    """A job whose files are damaged before they are checked, and the opinion on such files."""
    done_already: list[bool] = []
    opinion: list[str] = []

    def progress(now: Progress) -> None:
        if now.step == "checking" and not done_already:
            done_already.append(True)
            damage(folder)
            sources = [source.path for source in asked.sources]
            opinion.extend(check(sources, sorted(folder.glob("*.dcm"))))

    asked = replace(asked, folder=folder)
    return process(asked, progress=progress, cancelled=lambda: False), opinion


def changing(name: str, edit: Callable[[Dataset], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        read = dcmread(folder / f"{name}.dcm")
        edit(read)
        read.save_as(folder / f"{name}.dcm")

    return damage


def setting(**values: object) -> Callable[[Dataset], None]:
    def edit(read: Dataset) -> None:
        for keyword, value in values.items():
            setattr(read, keyword, value)

    return edit


def group(read: Dataset, number: int = 0) -> Dataset:
    (measurements,) = (
        of for of in read.ContentSequence if of.ConceptNameCodeSequence[0].CodeValue == "126010"
    )
    return measurements.ContentSequence[number]


def item(read: Dataset, code: str, number: int = 0) -> Dataset:
    """A content item of a group of a report."""
    return next(
        of
        for of in group(read, number).ContentSequence
        if of.ConceptNameCodeSequence[0].CodeValue == code
    )


def _longer(read: Dataset) -> None:
    item(read, "103339001").MeasuredValueSequence[0].NumericValue = "40.0"


def _other_segment(read: Dataset) -> None:
    item(read, "121191").ReferencedSOPSequence[0].ReferencedSegmentNumber = 2


def _other_side(read: Dataset) -> None:
    site = item(read, "363698007")
    site.ContentSequence[0].ConceptCodeSequence[0].CodeValue = "7771000"


def _without_group(read: Dataset) -> None:
    (measurements,) = (
        of for of in read.ContentSequence if of.ConceptNameCodeSequence[0].CodeValue == "126010"
    )
    del measurements.ContentSequence[1]


def _less(read: Dataset) -> None:
    data = bytearray(read.PixelData)
    data[next(at for at, byte in enumerate(data) if byte)] = 0
    read.PixelData = bytes(data)


def _moved_frame(read: Dataset) -> None:
    read.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0].ImagePositionPatient[2] += 1


def _exchanged(read: Dataset) -> None:
    first, second = read.SegmentSequence
    first.TrackingUID, second.TrackingUID = second.TrackingUID, first.TrackingUID


def _moved_box(read: Dataset) -> None:
    box = read.GraphicAnnotationSequence[0].GraphicObjectSequence[0]
    box.GraphicData = [value + 3.0 for value in box.GraphicData]


def _other_number(read: Dataset) -> None:
    read.GraphicAnnotationSequence[0].TextObjectSequence[0].UnformattedTextValue = "2"


def _other_key_image(read: Dataset) -> None:
    (first, *_) = (of for of in read.ContentSequence if "ReferencedSOPSequence" in of)
    references = read.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    second = references.ReferencedSOPSequence[1].ReferencedSOPInstanceUID
    first.ReferencedSOPSequence[0].ReferencedSOPInstanceUID = second


DAMAGE = [
    ("report", _longer, "value of 103339001", "is 5.3 mm long"),
    ("report", _other_segment, "does not refer to its segment", "is on another segment"),
    ("report", _other_side, "another side", "on the other side"),
    ("report", _without_group, "it has 1 groups for 2", "not about the same findings"),
    ("report", setting(VerificationFlag="VERIFIED"), "nobody has verified", "nobody has verified"),
    ("findings", _less, "its frames are not the mask", "a box does not lie"),
    ("findings", _moved_frame, "are not the slices", "a frame lies at"),
    ("findings", _exchanged, "its segments are not", "in the same order"),
    ("organs", _moved_frame, "are not the slices", "a frame lies at"),
    ("marks", _moved_box, "a box does not lie", "a box does not lie"),
    ("marks", _other_number, "another number", "tracking UID of another"),
    ("key-objects", _other_key_image, "its key images are not", "has no key image"),
    ("capture", setting(BurnedInAnnotation="NO"), "words in its pixels", "words in its pixels"),
    *(
        (name, setting(PatientID="Other"), "a patient or study attribute", "PatientID is not")
        for name in NAMES
    ),
    ("marks", setting(SeriesDescription="CT"), "no mark of research", "Series Description is"),
    ("organs", setting(FrameOfReferenceUID="2.25.1"), "the frame of", "a Frame of Reference"),
]


@pytest.mark.parametrize(("name", "edit", "ours", "theirs"), DAMAGE)
def test_what_is_not_as_planned_never_leaves_and_the_second_opinion_sees_it_too(
    job: Done,
    tmp_path: Path,
    name: str,
    edit: Callable[[Dataset], None],
    ours: str,
    theirs: str,
) -> None:
    outcome, opinion = damaged(job.request, changing(name, edit), tmp_path)
    assert isinstance(outcome, Verdict)
    assert (outcome.reason, outcome.held) == (Reason.OUTPUT_CHECK_FAILED, True)
    faults = outcome.record["faults"]
    assert any(fault.startswith(f"{name}.dcm: ") and ours in fault for fault in faults), faults
    assert any(theirs in fault for fault in opinion), opinion
    assert not list(tmp_path.glob("*.dcm"))


def test_a_file_too_many_and_one_that_is_missing_are_faults(job: Done, tmp_path: Path) -> None:
    def damage(folder: Path) -> None:
        (folder / "capture.dcm").rename(folder / "other.dcm")

    outcome, _ = damaged(job.request, damage, tmp_path)
    assert isinstance(outcome, Verdict)
    assert any(fault.startswith("capture.dcm: ") for fault in outcome.record["faults"])
    assert "the folder holds other files than planned" in outcome.record["faults"]


def test_the_second_opinion_misses_what_a_destination_must_not_do_without(job: Done) -> None:
    for name in ("report", "findings", "marks"):
        others = [path for path in job.paths if path.stem != name]
        assert bool(check(job.sources, others)) is (name != "marks")
