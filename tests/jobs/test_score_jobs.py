"""Jobs of models that make scores: scope, doubts, and the results of one pipeline."""

import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import highdicom
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.sr.coding import Code

from inference.dataset import read_headers
from inference.errors import Reason
from inference.model import (
    Limits,
    Parameters,
    Prediction,
    Produces,
    Scored,
    Scores,
    Step,
    Window,
)
from inference.registry import spec_of
from inference.request import (
    Derived,
    Failed,
    Kept,
    Mark,
    ModelSpec,
    Outcome,
    Output,
    Request,
    Source,
    Stopped,
    Verdict,
)
from inference.scope import is_derived_by_node
from inference.volume import Geometry
from node.score_opinion import check
from tests import ct_head, mr_series, phantoms
from tests.mr_series import setting
from tests.phantoms import Edit, Series
from tests.unit.inference.made import Watch, unchecked
from tests.unit.inference.made import request as slices_request
from tests.validators import new_complaints

MODULE = "tests.jobs.test_score_jobs"
SERIES = Series(slices=30, spacing_mm=2.0)
REPORT, SELECTION, CAPTURE = "report.dcm", "key-objects.dcm", "capture.dcm"
THING = Scored(
    "Spot",
    ("1386000", "SCT", "Intracranial hemorrhage"),
    ("12738006", "SCT", "Brain"),
    is_slice_calibrated=True,
)


class Rising:
    """A site's own model: the score rises from slice to slice, and with it that of the series."""

    name = "rising"
    version = "0.1"
    weights_sha256 = ""
    produces: Produces = "scores"
    scored = THING
    operating_point = "slice threshold 0.5, series threshold 0.4"
    trained_on = "nothing"
    series = 0.7

    def plan(self, geometry: Geometry, parameters: Parameters) -> Sequence[Step]:
        return [Step(tuple(range(len(geometry))))]

    def run(self, step: Step, slices: Window, limits: Limits) -> Prediction:
        geometry = slices.geometry
        count, shape = len(geometry), (geometry.rows, geometry.columns)
        heat = {count - 1: np.linspace(0, 1, shape[0] * shape[1], dtype=np.float32).reshape(shape)}
        return Prediction(scores=Scores(self.scores(count), self.series, 0.5, 0.4, heat))

    def scores(self, count: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return np.arange(1, count + 1) / count


class Low(Rising):
    """Nothing is at or above its threshold."""

    series = 0.1

    def scores(self, count: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return super().scores(count) * 0.3


class Steep(Rising):
    """Most slices are above the threshold of slices, the series is below its own."""

    series = 0.39

    def scores(self, count: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return 1.0 - super().scores(count) * 0.1


class Pairs(Rising):
    """Thin slices are seen in pairs."""

    def scores(self, count: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return super().scores(count // 2).repeat(2)


class Doubting(Rising):
    def run(self, step: Step, slices: Window, limits: Limits) -> Prediction:
        return replace(super().run(step, slices, limits), record={"doubts": ["metal everywhere"]})


class TooHigh(Rising):
    series = 1.5


class Short(Rising):
    def scores(self, count: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return super().scores(count - 1)


class Silent(Rising):
    def run(self, step: Step, slices: Window, limits: Limits) -> Prediction:
        return Prediction()


class Nameless(Rising):
    scored = None  # type: ignore[assignment]


def request(files: Sequence[Path], folder: Path, model: str = "Rising") -> Request:
    made = slices_request(files, folder)
    spec = ModelSpec(model.lower(), f"{MODULE}:{model}", produces="scores")
    return replace(made, model=spec, parameters=Parameters(), output=Output())


def outcome_of(
    folder: Path, edit: Edit | None = None, model: str = "Rising", series: Series = SERIES
) -> Outcome:
    files = phantoms.write(folder / "received", replace(series, edit=edit))
    return unchecked(request(files, folder / "results", model))


@pytest.fixture
def made(tmp_path: Path) -> Request:
    return request(phantoms.write(tmp_path / "received", SERIES), tmp_path / "results")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Request:
    """A job whose results are written, for tests that change a copy of them."""
    folder = tmp_path_factory.mktemp("finished")
    made = request(phantoms.write(folder / "received", SERIES), folder / "results")
    assert isinstance(unchecked(made), Derived)
    return made


def opinion(made: Request) -> list[str]:
    paths = [source.path for source in made.sources]
    return check(paths, sorted(made.folder.glob("*.dcm")))


def done(made: Request, model: str) -> Derived:
    outcome = unchecked(replace(made, model=request([], made.folder, model).model))
    assert isinstance(outcome, Derived), outcome
    assert not opinion(made)
    return outcome


def groups_of(made: Request) -> list[tuple[str, str, str]]:
    """(image, value, present or absent) of each group of the report."""
    read = highdicom.sr.srread(made.folder / REPORT)
    rows = []
    for group in read.content.get_image_measurement_groups():
        (measured,) = group.get_measurements()
        (said,) = group.get_qualitative_evaluations(Code(*THING.finding))
        (image,) = group.source_images
        uid = image.referenced_sop_instance_uid
        rows.append((uid, f"{measured.value:g}", said.value.meaning))
    return rows


def test_scores_give_a_report_key_images_and_a_page(made: Request) -> None:
    watch = Watch()
    outcome = unchecked(replace(made, previews=True), watch)
    assert isinstance(outcome, Derived)
    assert [(file.kind, file.is_supplement) for file in outcome.files] == [
        ("report", False),
        ("key objects", True),
        ("capture", True),
    ]
    assert outcome.files[0].series_uid == outcome.series_uid
    assert len({file.series_uid for file in outcome.files}) == 3
    assert not opinion(made)
    record = json.loads(json.dumps(outcome.record))
    assert len(record["scores"]["slices"]) == len(record["received_slices"]) == 30
    assert (record["scores"]["series"], record["scores"]["is_present"]) == (0.7, True)
    assert record["scores"]["high_slices"] == list(range(29, 13, -1))
    kinds = [named["kind"] for named in record["objects"]]
    assert kinds == ["report", "key objects", "capture"]
    steps = list(dict.fromkeys(progress.step for progress in watch.seen))
    assert steps == ["reading", "predicting", "writing", "checking"]


def test_the_report_has_a_group_of_the_series_and_one_of_each_high_slice(made: Request) -> None:
    done(made, "Rising")
    uids = [header.uid for header in read_headers([source.path for source in made.sources])]
    series, *slices = groups_of(made)
    assert series == (uids[29], "70", "Present")
    assert [uid for uid, _, _ in slices] == uids[:13:-1]
    assert slices[0][1:] == ("1", "Present")
    selection = dcmread(made.folder / SELECTION)
    named = [
        item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        for item in selection.ContentSequence
        if item.ValueType == "IMAGE"
    ]
    assert named == uids[:13:-1]


def test_below_its_threshold_a_finding_is_absent_and_nothing_is_selected(made: Request) -> None:
    outcome = done(made, "Low")
    assert [file.kind for file in outcome.files] == ["report", "capture"]
    ((_, value, word),) = groups_of(made)
    assert (value, word) == ("10", "Absent")
    text = dcmread(made.folder / REPORT).ContentSequence[-2].TextValue
    assert text.startswith("Research only, not for diagnosis. ")
    assert "one below its threshold denies nothing" in text
    assert not any(word in text.lower() for word in ("normal", "negative", "no spot"))


def test_at_most_twenty_slices_are_listed_and_all_are_selected(made: Request) -> None:
    done(made, "Steep")
    series, *slices = groups_of(made)
    assert series[1:] == ("39", "Absent")
    assert len(slices) == 20
    report, selection = (dcmread(made.folder / name) for name in (REPORT, SELECTION))
    assert "30 of 30 slices" in report.ContentSequence[-2].TextValue
    assert "the highest 20 of them are listed" in report.ContentSequence[-2].TextValue
    assert sum(item.ValueType == "IMAGE" for item in selection.ContentSequence) == 30


def test_slices_that_were_seen_together_are_named_once(made: Request) -> None:
    done(made, "Pairs")
    uids = [header.uid for header in read_headers([source.path for source in made.sources])]
    assert [uid for uid, _, _ in groups_of(made)[1:]] == uids[28:13:-2]


def test_others_read_all_of_them(made: Request, tmp_path: Path) -> None:
    done(made, "Rising")
    shown = subprocess.run(
        ["dsrdump", "+Pl", made.folder / REPORT], capture_output=True, check=True, text=True
    ).stdout
    assert '"Certainty of Finding")="70.0" (%' in shown
    assert '"Probability")="0.9667" (1' in shown
    page = made.folder / CAPTURE
    subprocess.run(["dcmj2pnm", "+on", page, tmp_path / "page.png"], check=True)
    pixels = sitk.GetArrayFromImage(sitk.ReadImage(str(page)))
    np.testing.assert_array_equal(pixels[0], dcmread(page).pixel_array)
    paths = sorted(made.folder.glob("*.dcm"))
    assert not new_complaints([source.path for source in made.sources], paths)


def test_the_previews_have_the_map_of_what_was_used(made: Request) -> None:
    unchecked(replace(made, previews=True))
    folder = made.folder / "previews"
    index = json.loads((folder / "index.json").read_text())
    assert (index["heat"], len(index["slices"])) == ([29], 30)
    assert not index["hatched"] and not index["left"] and not index["mask"]
    heat = np.asarray(Image.open(folder / "00029-heat.png"))
    assert heat[0, 0] == 0
    assert heat[-1, -1] > 8
    assert not (folder / "00000-heat.png").exists()


def test_doing_a_job_twice_gives_the_same_instances_and_bytes(
    made: Request, tmp_path: Path
) -> None:
    again = replace(made, folder=tmp_path / "again", sources=made.sources[::-1])
    again.folder.mkdir()
    one, two = unchecked(made), unchecked(again)
    assert isinstance(one, Derived)
    assert isinstance(two, Derived)
    assert (one.series_uid, one.files) == (two.series_uid, two.files)
    kept = replace(again, kept=frozenset({one.series_uid}))
    assert unchecked(kept) == Kept(one.series_uid)


def test_a_further_result_says_its_revision_and_has_numbers_of_its_own(
    made: Request, tmp_path: Path
) -> None:
    later = replace(made, folder=tmp_path / "later", mark=Mark(2, 1, "ct"), edition=2)
    later.folder.mkdir()
    unchecked(made)
    unchecked(later)
    assert not opinion(later)
    for name in (REPORT, SELECTION, CAPTURE):
        first, second = (dcmread(of.folder / name) for of in (made, later))
        assert second.SeriesNumber == first.SeriesNumber + 1000
        assert "rev 2" in second.SeriesDescription
        assert second.SOPInstanceUID != first.SOPInstanceUID


@pytest.mark.parametrize("step", ["reading", "predicting", "writing", "checking"])
def test_a_cancelled_job_stops_and_leaves_nothing(made: Request, step: str) -> None:
    assert unchecked(made, Watch(cancel_at=step)) == Stopped()
    assert list(made.folder.iterdir()) == []


def test_a_doubtful_job_is_held_without_a_score(tmp_path: Path) -> None:
    outcome = outcome_of(tmp_path, model="Doubting")
    assert isinstance(outcome, Verdict)
    assert (outcome.reason, outcome.held) == (Reason.LOW_CONFIDENCE, True)
    assert "metal everywhere" in outcome.sentence
    assert "says nothing about the patient" in outcome.sentence
    assert "scores" not in outcome.record  # nobody shall take them for a result
    assert list((tmp_path / "results").iterdir()) == []


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("TooHigh", "not between 0 and 1"),
        ("Short", "scores of 29 slices for 30"),
        ("Silent", "gave no scores"),
        ("Nameless", "does not say what its scores are of"),
    ],
)
def test_a_model_that_makes_no_scores_of_the_stack_has_failed(
    tmp_path: Path, model: str, said: str
) -> None:
    outcome = outcome_of(tmp_path, model=model)
    assert isinstance(outcome, Failed)
    assert said in outcome.sentence
    assert list((tmp_path / "results").iterdir()) == []


def test_a_stack_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    def large(dataset: Dataset, index: int) -> None:
        dataset.Rows = dataset.Columns = 8000

    outcome = outcome_of(tmp_path, large, series=Series(slices=6))
    assert isinstance(outcome, Verdict)
    assert (outcome.reason, outcome.held) == (Reason.TOO_LARGE, False)


def test_all_results_are_known_as_our_own_when_they_come_back(made: Request) -> None:
    unchecked(made)
    headers = read_headers(sorted(made.folder.glob("*.dcm")))
    assert len(headers) == 3
    assert all(map(is_derived_by_node, headers))


def damaged(path: Path, edit: Callable[[Dataset], None]) -> None:
    read = dcmread(path)
    edit(read)
    read.save_as(path)


def _groups(read: Dataset) -> Sequence[Dataset]:
    groups: Sequence[Dataset] = read.ContentSequence[-1].ContentSequence
    return groups


def _said_absent(read: Dataset) -> None:
    (said,) = (
        item
        for item in _groups(read)[0].ContentSequence
        if item.ValueType == "CODE" and item.ConceptCodeSequence[0].CodeValue == "52101004"
    )
    said.ConceptCodeSequence[0].CodeValue = "272519000"


def _other_score(read: Dataset) -> None:
    for item in _groups(read)[3].ContentSequence:
        if item.ValueType == "NUM":
            item.MeasuredValueSequence[0].NumericValue = "0.2"


def _other_slice(read: Dataset) -> None:
    for item in _groups(read)[3].ContentSequence:
        if item.ValueType == "IMAGE":
            item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID = "1.2.3"


def _one_image_less(read: Dataset) -> None:
    del read.ContentSequence[-1]


def _without_words(read: Dataset) -> None:
    read.ContentSequence[-2].TextValue = "Normal."


@pytest.mark.parametrize(
    ("name", "edit", "said"),
    [
        (REPORT, _said_absent, "against its threshold"),
        (REPORT, _other_score, "below its threshold"),
        (REPORT, _other_slice, "was not received"),
        (REPORT, _without_words, "does not say first that it is for research"),
        (REPORT, lambda read: setattr(read, "VerificationFlag", "VERIFIED"), "is VERIFIED"),
        (REPORT, lambda read: setattr(read, "PatientID", "X"), "PatientID is not"),
        (SELECTION, _one_image_less, "not the slices of the report"),
        (SELECTION, lambda read: setattr(read, "SeriesDescription", "Keys"), "Description"),
        (CAPTURE, lambda read: setattr(read, "BurnedInAnnotation", "NO"), "words burned in"),
    ],
)
def test_the_second_opinion_sees_what_was_changed(
    finished: Request, tmp_path: Path, name: str, edit: Callable[[Dataset], None], said: str
) -> None:
    copied = replace(finished, folder=tmp_path / "results")
    shutil.copytree(finished.folder, copied.folder)
    damaged(copied.folder / name, edit)
    assert any(said in fault for fault in opinion(copied))


def real(files: Sequence[Path], folder: Path, **output: object) -> Request:
    sources = tuple(Source(h.path, h.uid, h.order) for h in read_headers(files))
    made = request(files, folder)
    return replace(
        made, model=spec_of("haemorrhage"), sources=sources, output=replace(Output(), **output)
    )


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"BodyPartExamined": "CHEST"}, "BodyPartExamined is 'CHEST'"),
        ({"ContrastBolusAgent": "Ultravist 370"}, "ContrastBolusAgent is 'Ultravist 370'"),
        ({"SeriesDescription": "CTA head 0.6"}, "SeriesDescription is 'CTA head 0.6'"),
        ({"ConvolutionKernel": "H70h"}, "ConvolutionKernel is 'H70h'"),
        ({"PatientAge": "007Y"}, "PatientAge is 7 years"),
    ],
)
def test_a_real_head_out_of_scope_is_refused_by_its_attribute(
    tmp_path: Path, values: dict[str, object], said: str
) -> None:
    files = ct_head.write(tmp_path / "received", setting(**values))
    outcome = unchecked(real(files, tmp_path / "results"))
    assert isinstance(outcome, Verdict)
    assert (outcome.reason, outcome.held) == (Reason.OUT_OF_SCOPE, False)
    assert said in outcome.sentence
    assert "scores" not in outcome.record


def test_a_head_after_an_operation_is_held_without_a_score(tmp_path: Path) -> None:
    files = ct_head.write(tmp_path / "received", setting(StudyDescription="Head post op"))
    outcome = unchecked(real(files, tmp_path / "results"))
    assert isinstance(outcome, Verdict)
    assert (outcome.reason, outcome.held) == (Reason.LOW_CONFIDENCE, True)
    assert "StudyDescription is 'Head post op'" in outcome.sentence
    assert "scores" not in outcome.record


def with_vessels(dataset: Dataset, index: int) -> None:
    """Bright thin lines deep in the head, as in an angiography without a word about it."""
    dataset.decompress(generate_instance_uid=False)
    pixels = dataset.pixel_array.copy()
    pixels[80:145:9, 80:145:9] = 1024 + 900
    dataset.PixelData = pixels.tobytes()


def test_contrast_that_only_the_pixels_show_is_refused(tmp_path: Path) -> None:
    files = ct_head.write(tmp_path / "received", with_vessels)
    outcome = unchecked(real(files, tmp_path / "results"))
    assert isinstance(outcome, Verdict)
    assert (outcome.reason, outcome.held) == (Reason.OUT_OF_SCOPE, False)
    assert "contrast in vessels" in outcome.sentence


def test_a_chest_that_calls_itself_a_head_is_refused_by_its_pixels(tmp_path: Path) -> None:
    series = Series(slices=20, rows=64, columns=64, edit=setting(BodyPartExamined="HEAD"))
    outcome = unchecked(real(phantoms.write(tmp_path / "received", series), tmp_path / "results"))
    assert isinstance(outcome, Verdict)
    assert (outcome.reason, outcome.held) == (Reason.OUT_OF_SCOPE, False)
    assert "A head is seen in 0 slices" in outcome.sentence


def test_an_mr_head_is_no_ct(tmp_path: Path) -> None:
    outcome = unchecked(real(mr_series.write(tmp_path / "mr"), tmp_path / "results"))
    assert isinstance(outcome, Verdict)
    assert (outcome.reason, outcome.held) == (Reason.OUT_OF_SCOPE, False)
