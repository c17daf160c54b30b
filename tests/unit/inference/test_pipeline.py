"""`process`: from a request to an outcome; whatever happens, it never raises."""

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3
from pydicom.dataset import Dataset

from inference.dataset import read_headers
from inference.errors import Reason, Unprocessable
from inference.model import Limits, Parameters, Prediction, Step, Window
from inference.request import (
    Derived,
    Failed,
    Kept,
    ModelSpec,
    Outcome,
    Output,
    Request,
    Source,
    Stopped,
    Verdict,
)
from inference.volume import Geometry
from node.second_opinion import check
from tests import phantoms
from tests.phantoms import Series
from tests.unit.inference.case import each
from tests.unit.inference.made import Halfway, Watch, derive, request, run

MODULE = "tests.unit.inference.test_pipeline"


class Raising(Halfway):
    def run(self, step: Step, slices: Window, limits: Limits) -> Prediction:
        raise ZeroDivisionError("Phantom^One has 3 slices")


class NotFinite(Halfway):
    def run(self, step: Step, slices: Window, limits: Limits) -> Prediction:
        made = super().run(step, slices, limits)
        return Prediction(planes=tuple(plane * np.float32("nan") for plane in made.planes))


class Unsure(Halfway):
    def run(self, step: Step, slices: Window, limits: Limits) -> Prediction:
        raise Unprocessable(Reason.LOW_CONFIDENCE, "The model is not sure of 3 of 5 slices.")


class Idle(Halfway):
    def plan(self, geometry: Geometry, parameters: Parameters) -> Sequence[Step]:
        raise Unprocessable(Reason.NOTHING_TO_DO, "The slices are thin already.")


class OnlyHole(Halfway):
    """Fills the third gap alone."""

    def plan(self, geometry: Geometry, parameters: Parameters) -> Sequence[Step]:
        return [step for step in super().plan(geometry, parameters) if step.gap == 2]


class Masks(Halfway):
    produces = "mask"


class Huge(Halfway):
    def plan(self, geometry: Geometry, parameters: Parameters) -> Sequence[Step]:
        fractions = tuple(step / 30_001 for step in range(1, 30_001))
        return [Step((0, 1), 0, fractions)]


class Meddling(Halfway):
    """Spoils a file that is written already, as a failing disk would."""

    folder: Path

    def run(self, step: Step, slices: Window, limits: Limits) -> Prediction:
        assert step.gap is not None
        deadline = time.monotonic() + 30.0
        # Of each gap before this one, its slice and the copy of the slice before it.
        while len(whole := list(filter(is_whole, self.folder.glob("*.dcm")))) < 2 * step.gap:
            assert time.monotonic() < deadline, f"{whole} were written"
        for path in whole if step.gap == 2 else ():
            path.write_bytes(path.read_bytes()[:-1000])
        return super().run(step, slices, limits)


def is_whole(path: Path) -> bool:
    """True when all pixels of a slice are in its file."""
    before, tag, value = path.read_bytes().rpartition(b"\xe0\x7f\x10\x00OW\0\0")
    return bool(tag) and len(value) == 4 + int.from_bytes(value[:4], "little")


def outcome_of(tmp_path: Path, model: str, series: Series | None = None) -> Outcome:
    files = phantoms.write(tmp_path / "received", series or Series(slices=4))
    made = request(files, tmp_path / "derived")
    spec = ModelSpec(model.lower(), f"{MODULE}:{model}")
    return run(replace(made, model=spec))


@pytest.fixture
def made(tmp_path: Path) -> Request:
    return request(phantoms.write(tmp_path / "received", Series(slices=4)), tmp_path / "derived")


def test_the_outcome_names_every_file_with_its_digest_and_a_record(made: Request) -> None:
    outcome = run(made)
    assert isinstance(outcome, Derived)
    names = [file.name for file in outcome.files]
    assert names == sorted(path.name for path in made.folder.iterdir())
    for file in outcome.files:
        data = (made.folder / file.name).read_bytes()
        assert file.digest == blake3(data).hexdigest()
        assert file.instance_uid.encode() in data
    assert [file.generated for file in outcome.files] == [False, True] * 3 + [False]
    record = json.loads(json.dumps(outcome.record))
    assert (record["received"], record["generated"], record["copied"]) == (4, 3, 4)
    assert record["gaps"] == [{"gap_mm": 5.0, "factor": 2}] * 3
    assert set(record["seconds"]) == {"reading", "predicting", "writing", "checking"}
    assert (record["device"], record["model"], outcome.version) == ("cpu", "halfway", "0.1")


def test_progress_is_told_for_every_step(made: Request) -> None:
    watch = Watch()
    run(made, watch)
    steps = list(dict.fromkeys(progress.step for progress in watch.seen))
    assert steps == ["reading", "predicting", "writing", "checking"]
    for step in steps:
        *_, last = [progress for progress in watch.seen if progress.step == step]
        assert last.done == last.total
    assert [p.done for p in watch.seen if p.step == "predicting"] == [0, 1, 2, 3]


@pytest.mark.parametrize("step", ["reading", "predicting", "writing", "checking"])
def test_a_cancelled_job_stops_and_leaves_nothing(made: Request, step: str) -> None:
    assert run(made, Watch(cancel_at=step)) == Stopped()
    assert list(made.folder.iterdir()) == []


def test_doing_a_job_twice_gives_the_same_instances_and_bytes(
    made: Request, tmp_path: Path
) -> None:
    again = replace(made, folder=tmp_path / "again", sources=made.sources[::-1])
    again.folder.mkdir()
    one, two = run(made), run(again)
    assert isinstance(one, Derived)
    assert isinstance(two, Derived)
    assert (one.series_uid, one.files) == (two.series_uid, two.files)


def test_a_derived_series_that_is_kept_is_not_made_again(made: Request, tmp_path: Path) -> None:
    first = run(made)
    assert isinstance(first, Derived)
    folder = tmp_path / "again"
    folder.mkdir()
    watch = Watch()
    again = replace(made, folder=folder, kept=frozenset({first.series_uid}))
    assert run(again, watch) == Kept(first.series_uid)
    assert {progress.step for progress in watch.seen} == {"reading"}
    later = run(replace(again, edition=2))
    assert isinstance(later, Derived)
    assert later.series_uid != first.series_uid


def test_a_model_that_raises_is_a_failure_without_its_message(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outcome = outcome_of(tmp_path, "Raising")
    assert isinstance(outcome, Failed)
    assert outcome.reason == "ZeroDivisionError"
    assert outcome.frames.startswith("test_pipeline.py:")
    told = f"{outcome} {[vars(record) for record in caplog.records]}"
    assert "Phantom" not in told
    assert list((tmp_path / "derived").iterdir()) == []


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("NotFinite", "finite"),
        ("Masks", "produces mask"),
        ("Missing", "Missing"),
    ],
)
def test_our_own_errors_say_what_is_wrong(tmp_path: Path, model: str, words: str) -> None:
    outcome = outcome_of(tmp_path, model)
    assert isinstance(outcome, Failed)
    assert words in outcome.sentence


@pytest.mark.parametrize(
    ("model", "reason", "held"),
    [
        ("Unsure", Reason.LOW_CONFIDENCE, True),
        ("Idle", Reason.NOTHING_TO_DO, False),
        ("Huge", Reason.TOO_LARGE, False),
    ],
)
def test_a_model_may_refuse_or_hold_a_series(
    tmp_path: Path, model: str, reason: Reason, held: bool
) -> None:
    outcome = outcome_of(tmp_path, model)
    assert isinstance(outcome, Verdict)
    assert (outcome.reason, outcome.held) == (reason, held)


def test_a_job_with_nothing_but_holes_to_fill_has_nothing_to_do(tmp_path: Path) -> None:
    series = Series(slices=8, spacing_mm=2.0, thickness_mm=2, missing=[3])
    files = phantoms.write(tmp_path / "received", series)
    made = request(files, tmp_path / "derived", output=Output(across_missing="leave"))
    outcome = run(replace(made, model=ModelSpec("x", f"{MODULE}:OnlyHole")))
    assert isinstance(outcome, Verdict)
    assert outcome.reason == Reason.NOTHING_TO_DO


def test_a_file_that_changes_before_the_check_holds_the_job_with_the_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Meddling, "folder", tmp_path / "derived", raising=False)
    outcome = outcome_of(tmp_path, "Meddling")
    assert isinstance(outcome, Verdict)
    assert (outcome.reason, outcome.held) == (Reason.OUTPUT_CHECK_FAILED, True)
    faults = outcome.record["faults"]
    assert isinstance(faults, list)
    spoilt = {f"{number:05d}.dcm" for number in (1, 2, 3, 4)}
    assert {fault[:9] for fault in faults if fault[5:9] == ".dcm"} == spoilt
    assert list((tmp_path / "derived").iterdir()) == []


def test_a_source_that_is_gone_or_no_image_is_held(made: Request) -> None:
    made.sources[1].path.write_bytes(b"nothing")
    outcome = run(made)
    assert isinstance(outcome, Verdict)
    assert (outcome.reason, outcome.held) == (Reason.PIXEL_DATA_ERROR, True)
    made.sources[1].path.unlink()
    again = run(made)
    assert isinstance(again, Verdict)
    assert "cannot be opened" in again.sentence


def test_broken_pixels_hold_the_job(made: Request) -> None:
    phantoms.break_pixels(made.sources[2].path)
    outcome = run(made)
    assert isinstance(outcome, Verdict)
    assert outcome.reason == Reason.PIXEL_DATA_ERROR
    assert "image 3" in outcome.sentence


def test_a_folder_that_cannot_be_written_is_a_failure(made: Request, tmp_path: Path) -> None:
    missing = replace(made, folder=tmp_path / "nowhere")
    outcome = run(missing)
    assert isinstance(outcome, Failed)
    assert outcome.reason == "FileNotFoundError"
    assert "No such file or directory" in outcome.sentence


def test_instances_of_two_stacks_are_not_mixed(tmp_path: Path) -> None:
    def edit(made: Dataset, index: int) -> None:
        made.KVP = "80" if index < 4 else "120"

    files = phantoms.write(tmp_path / "received", Series(slices=8, edit=edit))
    outcome = run(request(files, tmp_path / "derived"))
    assert isinstance(outcome, Verdict)
    assert outcome.reason == Reason.MIXED_ACQUISITIONS


def test_a_localizer_among_the_sources_is_left_out_and_noted(tmp_path: Path) -> None:
    files = phantoms.write(tmp_path / "received", Series(slices=4, localizer=True))
    made = request(files, tmp_path / "derived")
    outcome = run(made)
    assert isinstance(outcome, Derived)
    assert check(files[:-1], [made.folder / file.name for file in outcome.files], factor=2) == []
    assert outcome.record["set_aside"] == [
        {
            "instances": 1,
            "numbers": "99",
            "reason": "NOT_A_CT_SLICE",
            "why": "The image is a localizer.",
        }
    ]


def test_spellings_that_differ_are_noted(tmp_path: Path) -> None:
    def edit(made: Dataset, index: int) -> None:
        made.PatientName = "One^Phantom" if index else "ONE^PHANTOM"

    outcome = run(request(phantoms.write(tmp_path, Series(edit=edit)), tmp_path / "derived"))
    assert isinstance(outcome, Derived)
    assert "the images differ in PatientName" in str(outcome.record["notes"])


def test_the_label_and_the_content_qualification_are_written(tmp_path: Path) -> None:
    files = phantoms.write(tmp_path / "received", Series(slices=2))
    output = Output(label="rev 2", content_qualification="SERVICE")
    made = phantoms.pydicom_read(derive(request(files, tmp_path / "derived", output=output))[0])
    assert made.SeriesDescription == "AI-INTERP x2 1 of 3 NOT ACQUIRED rev 2 | Thorax 5.0 B30f"
    assert made.ContentQualification == "SERVICE"


def test_linear_needs_no_torch_and_fills_the_gaps(made: Request) -> None:
    linear = replace(made, model=ModelSpec("linear"), parameters=Parameters(factor=4))
    derive(linear)


def test_what_another_peer_brought_of_the_series_is_no_gap(tmp_path: Path) -> None:
    """The odd slices are a stack of their own; the even ones came from somebody else."""
    files = phantoms.write(tmp_path / "received", Series(slices=9))
    made = request(files[::2], tmp_path / "derived")
    beside = tuple(
        Source(header.path, header.uid, header.order) for header in read_headers(files[1::2])
    )
    outcome = run(replace(made, beside=beside))
    assert isinstance(outcome, Verdict)
    assert outcome.reason == Reason.MIXED_ACQUISITIONS
    assert "4 other images of the same series (image 2, 4, 6, 8)" in outcome.sentence


def test_other_images_of_the_series_stand_in_no_way(tmp_path: Path) -> None:
    """A localizer, another kernel, another frame of reference and the same places once more."""
    files = phantoms.write(tmp_path / "received", Series(slices=4))
    again = each("SOPInstanceUID", "1.3.{}".format)
    others = [
        *phantoms.write(tmp_path / "kernel", _between(kernel="B70f")),
        *phantoms.write(tmp_path / "frame", _between(FrameOfReferenceUID="1.2.3")),
        *phantoms.write(tmp_path / "scout", _between(ImageType=["ORIGINAL", "X", "LOCALIZER"])),
        *phantoms.write(tmp_path / "again", Series(slices=4, edit=again)),
    ]
    beside = tuple(Source(h.path, h.uid, h.order) for h in read_headers(others))
    outcome = run(replace(request(files, tmp_path / "derived"), beside=beside))
    assert isinstance(outcome, Derived), outcome
    localizers = {"instances": 3, "numbers": "1 to 3", "reason": Reason.NOT_A_CT_SLICE}
    assert outcome.record["set_aside"] == [{**localizers, "why": "The image is a localizer."}]


def _between(kernel: str = "B30f", **values: object) -> Series:
    def edit(made: Dataset, index: int) -> None:
        made.SOPInstanceUID = f"1.2.{kernel[1:3]}.{len(values)}.{len(str(values))}.{index}"
        made.ImagePositionPatient = [0, 0, 5 * index + 2.5]
        for keyword, value in values.items():
            setattr(made, keyword, value)

    return Series(slices=3, kernel=kernel, edit=edit)
