"""The results of scores as they are written, and the check that reads them from disk again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread

from inference import ct
from inference.checks.score_checks import ExpectedScores, verify
from inference.dataset import Stack, read_headers
from inference.geometry import Layout
from inference.model import Scored, Scores
from inference.pixels import PixelReader
from inference.request import Output
from inference.results.captures import MARK, capture
from inference.results.making import Algorithm, Making
from inference.results.score_page import HEIGHT, WIDTH, score_page, shown_slices
from inference.results.score_reports import ScoredStack, score_report, score_selection
from inference.results.writing import written
from inference.uids import as_uid
from tests import phantoms
from tests.phantoms import Series

REPORT, SELECTION, CAPTURE = "report.dcm", "selection.dcm", "capture.dcm"
SPOT = Scored(
    "Spot", ("1386000", "SCT", "Intracranial hemorrhage"), ("12738006", "SCT", "Brain"), "A map."
)


def uid_of(place: str) -> str:
    return as_uid(f"{place:>16}".encode()[-16:])


MAKING = Making(
    algorithm=Algorithm("spot", "1.0.0", "a" * 64, "slice threshold 0.5, series threshold 0.4"),
    uid_of=uid_of,
    at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    station_name="MIDSLICE",
    creator_uid=uid_of("node"),
    frame_uid=uid_of("frame"),
)


@dataclass(frozen=True)
class Written:
    """The results of six slices, of which two are above the threshold."""

    expected: ExpectedScores
    layout: Layout

    @property
    def folder(self) -> Path:
        return self.expected.folder


@pytest.fixture
def results(tmp_path: Path) -> Written:
    headers = tuple(read_headers(phantoms.write(tmp_path / "source", Series())))
    layout = ct.examine(Stack("ct", headers), Output())
    shape = layout.geometry.rows, layout.geometry.columns
    heat = {3: np.full(shape, 0.5, np.float32), 4: np.ones(shape, np.float32)}
    scores = Scores(np.array([0.1, 0.2, 0.3, 0.6, 0.9, 0.4]), 0.3, 0.5, 0.4, heat)
    stack = ScoredStack(layout.headers, scores, SPOT, "three patients")
    folder = tmp_path / "out"
    folder.mkdir()
    written(folder, REPORT, score_report(stack, MAKING), "report")
    selection = score_selection(stack, MAKING)
    assert selection is not None
    written(folder, SELECTION, selection, "key objects")
    page = score_page(stack, layout.geometry, ct.open_volume(layout, PixelReader()).read, MAKING)
    shown = [stack.headers[index] for index in shown_slices(stack)]
    written(folder, CAPTURE, capture(shown, page, MAKING, what="Page", number=2), "capture")
    expected = ExpectedScores(folder, stack, MAKING, REPORT, page.pixels, CAPTURE, shown, SELECTION)
    return Written(expected, layout)


def test_what_was_planned_has_no_fault(results: Written) -> None:
    assert verify(results.expected) == ()


def groups_of(report: Dataset) -> Sequence[Dataset]:
    groups: Sequence[Dataset] = report.ContentSequence[-1].ContentSequence
    return groups


def one_group_less(report: Dataset) -> None:
    del report.ContentSequence[-1].ContentSequence[-1]


def other_number(report: Dataset) -> None:
    (measured,) = (i for i in groups_of(report)[0].ContentSequence if i.ValueType == "NUM")
    measured.MeasuredValueSequence[0].NumericValue = "31"


def called_present(report: Dataset) -> None:
    for item in groups_of(report)[0].ContentSequence:
        if item.ValueType == "CODE" and item.ConceptCodeSequence[0].CodeValue == "272519000":
            item.ConceptCodeSequence[0].CodeValue = "52101004"


def other_image(report: Dataset) -> None:
    for item in groups_of(report)[1].ContentSequence:
        if item.ValueType == "IMAGE":
            item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID = "1.2.3"


def without_model(report: Dataset) -> None:
    for item in groups_of(report)[1].ContentSequence:
        if item.ValueType == "TEXT" and item.TextValue == "spot":
            item.TextValue = "-"


def more_evidence(report: Dataset) -> None:
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    further = Dataset()
    further.ReferencedSOPClassUID, further.ReferencedSOPInstanceUID = "1.2", "1.2.3"
    study.ReferencedSeriesSequence[0].ReferencedSOPSequence.append(further)


def other_words(report: Dataset) -> None:
    report.ContentSequence[-2].TextValue = "All is well."


def darker(page: Dataset) -> None:
    page.PixelData = bytes(page.PixelData)[::-1]


def setting(**values: object) -> Callable[[Dataset], None]:
    def edit(dataset: Dataset) -> None:
        for keyword, value in values.items():
            setattr(dataset, keyword, value)

    return edit


@pytest.mark.parametrize(
    ("name", "edit", "said"),
    [
        (REPORT, one_group_less, "2 groups for 3 scores"),
        (REPORT, other_number, "group 0: its score is not the one of the model"),
        (REPORT, called_present, "group 0: it does not say whether the finding is present"),
        (REPORT, other_image, "group 1: its image is another one"),
        (REPORT, without_model, "group 1: it does not name the model"),
        (REPORT, more_evidence, "its evidence is not"),
        (REPORT, other_words, "does not say that it is for research"),
        (REPORT, setting(CompletionFlag="PARTIAL"), "its flags are"),
        (REPORT, setting(PatientID="X"), "a patient or study attribute"),
        (REPORT, setting(FrameOfReferenceUID="1.2.3"), "frame of reference"),
        (SELECTION, lambda read: read.ContentSequence.pop(), "does not select exactly"),
        (SELECTION, setting(SeriesDescription="Keys"), "no mark of research"),
        (CAPTURE, darker, "its pixels are not the page"),
        (CAPTURE, setting(BurnedInAnnotation="NO"), "words are burned in"),
        (CAPTURE, lambda read: read.SourceImageSequence.pop(), "its sources are not"),
    ],
)
def test_what_is_wrong_on_disk_is_seen(
    results: Written, name: str, edit: Callable[[Dataset], object], said: str
) -> None:
    path = results.folder / name
    read = dcmread(path)
    edit(read)
    read.save_as(path)
    (fault,) = verify(results.expected)
    assert fault.startswith(f"{name}: ")
    assert said in fault


def test_a_file_that_is_missing_or_one_too_many_is_seen(results: Written) -> None:
    (results.folder / "more.dcm").write_bytes(b"")
    assert verify(results.expected) == ("the folder holds other files than planned",)
    (results.folder / "more.dcm").unlink()
    (results.folder / CAPTURE).write_bytes(b"broken")
    (fault,) = verify(results.expected)
    assert fault.startswith(f"{CAPTURE}: is not a DICOM Part 10 file")
    assert "other files" in " ".join(verify(replace(results.expected, selection="")))


def test_the_page_shows_the_slices_with_a_map_and_the_bars_of_all(results: Written) -> None:
    stack, page = results.expected.stack, results.expected.page
    assert shown_slices(stack) == (4, 3)  # those with a map, the highest first
    assert page.shape == (HEIGHT, WIDTH, 3)
    without = replace(stack, scores=replace(stack.scores, heat={}))
    assert shown_slices(without) == (4, 3, 5)
    volume = ct.open_volume(results.layout, PixelReader())
    plain = score_page(without, results.layout.geometry, volume.read, MAKING).pixels
    is_orange = (page == np.array(MARK)).all(axis=2)
    columns = np.flatnonzero(is_orange[-300:].sum(axis=0) > 40)  # bars above the threshold
    assert WIDTH * 3 / 6 - 8 < columns.min() < columns.max() < WIDTH * 5 / 6 + 8
    assert (page != plain).any()
