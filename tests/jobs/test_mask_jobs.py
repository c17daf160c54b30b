"""Jobs of models that make a mask: scope, doubts, and the two results of one pipeline."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, dcmread

from inference.dataset import read_headers
from inference.errors import Reason
from inference.model import Limits, Parameters, Prediction, Produces, Step, Window
from inference.models.brain.extraction import BRAIN
from inference.registry import spec_of
from inference.request import (
    Derived,
    Failed,
    Kept,
    Mark,
    ModelSpec,
    Outcome,
    Request,
    Stopped,
    Verdict,
)
from inference.scope import is_derived_by_node
from inference.stacks import stacks_of
from inference.volume import Geometry
from node.mask_opinion import check
from tests import mr_series, phantoms
from tests.mr_series import ball, setting
from tests.phantoms import Edit, Series
from tests.unit.inference.made import Watch, unchecked
from tests.unit.inference.made import request as slices_request

MODULE = "tests.jobs.test_mask_jobs"
SERIES = Series(slices=12, spacing_mm=2.0, thickness_mm=2.0, rows=30, columns=40)


class Ball:
    """A site's own model: a ball in the middle of whatever it is given."""

    name = "ball"
    version = "0.1"
    weights_sha256 = ""
    produces: Produces = "mask"
    segment = BRAIN

    def plan(self, geometry: Geometry, parameters: Parameters) -> Sequence[Step]:
        return [Step(tuple(range(len(geometry))))]

    def run(self, step: Step, slices: Window, limits: Limits) -> Prediction:
        shape = slices.geometry.rows, slices.geometry.columns
        return Prediction(planes=tuple(ball((len(step.needs), *shape)).astype(np.float32)))


class Doubting(Ball):
    def run(self, step: Step, slices: Window, limits: Limits) -> Prediction:
        record = {"doubts": ["the mask has 3 cm3"]}
        return replace(super().run(step, slices, limits), record=record)


class Halves(Ball):
    def run(self, step: Step, slices: Window, limits: Limits) -> Prediction:
        planes = super().run(step, slices, limits).planes
        return Prediction(planes=tuple(plane * np.float32(0.5) for plane in planes))


class Short(Ball):
    def run(self, step: Step, slices: Window, limits: Limits) -> Prediction:
        return Prediction(planes=super().run(step, slices, limits).planes[1:])


class Part(Ball):
    def plan(self, geometry: Geometry, parameters: Parameters) -> Sequence[Step]:
        return [Step(tuple(range(1, len(geometry))))]


class Nameless(Ball):
    segment = None  # type: ignore[assignment]


def request(files: Sequence[Path], folder: Path, model: str = "Ball") -> Request:
    made = slices_request(files, folder)
    spec = ModelSpec(model.lower(), f"{MODULE}:{model}", produces="mask")
    return replace(made, model=spec, parameters=Parameters())


def outcome_of(
    folder: Path, edit: Edit | None = None, model: str = "Ball", series: Series = SERIES
) -> Outcome:
    files = mr_series.write(folder / "received", edit, series)
    return unchecked(request(files, folder / "results", model))


@pytest.fixture
def made(tmp_path: Path) -> Request:
    files = mr_series.write(tmp_path / "received", series=SERIES)
    return request(files, tmp_path / "results")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Request:
    """A job whose results are written, for tests that change a copy of them."""
    folder = tmp_path_factory.mktemp("finished")
    made = request(mr_series.write(folder / "received", series=SERIES), folder / "results")
    assert isinstance(unchecked(made), Derived)
    return made


def opinion(made: Request) -> list[str]:
    paths = [source.path for source in made.sources]
    return check(paths, sorted(made.folder.glob("*.dcm")))


def test_a_mask_gives_a_segmentation_and_the_images_without_what_lies_outside(
    made: Request,
) -> None:
    watch = Watch()
    outcome = unchecked(replace(made, previews=True), watch)
    assert isinstance(outcome, Derived)
    kinds = [file.kind for file in outcome.files]
    assert kinds == ["image"] * 12 + ["segmentation"]
    assert {file.series_uid for file in outcome.files[:-1]} == {outcome.series_uid}
    assert outcome.files[-1].series_uid != outcome.series_uid
    assert not any(file.generated or file.is_supplement for file in outcome.files)
    assert not opinion(made)
    record = json.loads(json.dumps(outcome.record))
    assert (record["received"], record["model"]) == (12, "ball")
    assert record["mask"]["label"] == "Brain"
    assert [named["kind"] for named in record["objects"]] == ["segmentation"]
    steps = list(dict.fromkeys(progress.step for progress in watch.seen))
    assert steps == ["reading", "predicting", "writing", "checking"]


def test_the_previews_have_the_outline_of_the_mask(made: Request) -> None:
    unchecked(replace(made, previews=True))
    folder = made.folder / "previews"
    index = json.loads((folder / "index.json").read_text())
    assert (index["mask"], len(index["slices"])) == ("Brain", 12)
    assert not index["hatched"] and not index["left"]
    middle = np.asarray(Image.open(folder / "00006-mask.png"))
    mask = ball((12, 30, 40))[6]
    assert not middle[~mask].any()
    assert 0 < middle.sum() < mask.sum() / 2  # a line, no area
    assert not np.asarray(Image.open(folder / "00000-mask.png")).any()


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
    later = replace(made, folder=tmp_path / "later", mark=Mark(2, 1, "mr"), edition=2)
    later.folder.mkdir()
    unchecked(made)
    unchecked(later)
    assert not opinion(later)
    for name in ("00001.dcm", "segmentation.dcm"):
        first, second = (dcmread(of.folder / name) for of in (made, later))
        assert second.SeriesNumber == first.SeriesNumber + 1000
        assert "rev 2" in second.SeriesDescription
        assert "rev" not in first.SeriesDescription


@pytest.mark.parametrize("step", ["reading", "predicting", "writing", "checking"])
def test_a_cancelled_job_stops_and_leaves_nothing(made: Request, step: str) -> None:
    assert unchecked(made, Watch(cancel_at=step)) == Stopped()
    assert list(made.folder.iterdir()) == []


@pytest.mark.parametrize(
    ("model", "edit", "said"),
    [
        ("Doubting", None, "the mask has 3 cm3"),
        ("Ball", setting(SeriesDescription="t2_space_sag"), "says T2"),
    ],
)
def test_a_doubtful_mask_is_held_and_nothing_is_left_to_send(
    tmp_path: Path, model: str, edit: Edit | None, said: str
) -> None:
    outcome = outcome_of(tmp_path, edit, model)
    assert isinstance(outcome, Verdict)
    assert (outcome.reason, outcome.held) == (Reason.LOW_CONFIDENCE, True)
    assert said in outcome.sentence
    assert outcome.record["mask"]
    assert list((tmp_path / "results").iterdir()) == []


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("Halves", "other values than 0 and 1"),
        ("Short", "a mask of 11 slices for 12"),
        ("Part", "other slices than the 12"),
        ("Nameless", "does not say what its mask shows"),
    ],
)
def test_a_model_that_makes_no_mask_of_the_stack_has_failed(
    tmp_path: Path, model: str, said: str
) -> None:
    outcome = outcome_of(tmp_path, model=model)
    assert isinstance(outcome, Failed)
    assert said in outcome.sentence


@pytest.mark.parametrize(
    ("edit", "reason", "said"),
    [
        (setting(DiffusionBValue=1000.0), Reason.OUT_OF_SCOPE, "b-value is 1000"),
        (setting(BodyPartExamined="KNEE"), Reason.OUT_OF_SCOPE, "KNEE"),
        (setting(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), Reason.NOT_AN_MR_SLICE, ""),
        (setting(NumberOfFrames=30), Reason.ENHANCED_NOT_SUPPORTED, ""),
    ],
)
def test_what_is_out_of_scope_is_refused_by_its_attribute(
    tmp_path: Path, edit: Edit, reason: Reason, said: str
) -> None:
    outcome = outcome_of(tmp_path, edit)
    assert isinstance(outcome, Verdict)
    assert (outcome.reason, outcome.held) == (reason, False)
    assert said in outcome.sentence


def test_brain_refuses_a_ct_and_a_generator_refuses_an_mr(tmp_path: Path) -> None:
    ct = request(phantoms.write(tmp_path / "ct"), tmp_path / "one")
    refused = unchecked(replace(ct, model=spec_of("brain")))
    assert isinstance(refused, Verdict)
    assert (refused.reason, refused.held) == (Reason.NOT_AN_MR_SLICE, False)
    assert "Modality CT" in refused.sentence
    files = mr_series.write(tmp_path / "mr", series=SERIES)
    refused = unchecked(slices_request(files, tmp_path / "two"))
    assert isinstance(refused, Verdict)
    sentence = "The images are of modality MR, not CT."
    assert (refused.reason, refused.sentence) == (Reason.OUT_OF_SCOPE, sentence)


def test_brain_says_which_measure_of_a_stack_is_out_of_scope(tmp_path: Path) -> None:
    few = mr_series.write(tmp_path / "few", series=SERIES)
    refused = unchecked(replace(request(few, tmp_path / "results"), model=spec_of("brain")))
    assert isinstance(refused, Verdict)
    assert refused.reason is Reason.TOO_FEW_SLICES
    assert "at least 40" in refused.sentence


def test_a_hole_is_held_without_the_advice_to_leave_it(tmp_path: Path) -> None:
    files = mr_series.write(tmp_path / "received", series=SERIES)
    held = unchecked(request([*files[:5], *files[6:]], tmp_path / "results"))
    assert isinstance(held, Verdict)
    assert (held.reason, held.held) == (Reason.MISSING_SLICES, True)
    assert "across_missing" not in held.sentence


def test_two_echoes_of_a_series_are_two_stacks(tmp_path: Path) -> None:
    first = mr_series.write(tmp_path / "1", setting(EchoTime="2", EchoNumbers=1), SERIES)

    def second(made: Dataset, index: int) -> None:
        made.EchoTime, made.EchoNumbers = "4", 2
        made.SOPInstanceUID = f"{made.SOPInstanceUID}.2"

    files = [*first, *mr_series.write(tmp_path / "2", second, SERIES)]
    stacks = stacks_of(read_headers(files))
    assert [len(stack) for stack in stacks] == [12, 12]
    assert {stack.label for stack in stacks} == {"echo 1", "echo 2"}
    outcome = unchecked(request(first, tmp_path / "results"))
    assert isinstance(outcome, Derived)


def test_both_results_are_known_as_our_own_when_they_come_back(made: Request) -> None:
    unchecked(made)
    headers = read_headers(sorted(made.folder.glob("*.dcm")))
    assert len(headers) == 13
    assert all(map(is_derived_by_node, headers))


def damaged(path: Path, edit: Callable[[Dataset], None]) -> None:
    read = dcmread(path)
    edit(read)
    read.save_as(path)


def _brighter(read: Dataset) -> None:
    read.PixelData = bytes(byte ^ 1 for byte in read.PixelData)


def _turned(read: Dataset) -> None:
    read.PixelData = read.PixelData[::-1]


def _moved(read: Dataset) -> None:
    read.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0].ImagePositionPatient[2] += 1


@pytest.mark.parametrize(
    ("name", "edit", "said"),
    [
        ("00007.dcm", _brighter, "inside the mask differ"),
        ("segmentation.dcm", _turned, "inside the mask differ"),
        ("segmentation.dcm", _moved, "a frame lies at"),
        ("00007.dcm", lambda read: setattr(read, "PatientID", "X"), "PatientID is not"),
        ("00007.dcm", lambda read: setattr(read, "SeriesDescription", "T1"), "Description"),
    ],
)
def test_the_second_opinion_sees_what_was_changed(
    finished: Request, tmp_path: Path, name: str, edit: Callable[[Dataset], None], said: str
) -> None:
    copied = replace(finished, folder=tmp_path / "results")
    shutil.copytree(finished.folder, copied.folder)
    damaged(copied.folder / name, edit)
    assert any(said in fault for fault in opinion(copied))
