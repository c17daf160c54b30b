"""What a job says of its slices' confidence: in each instance, in its record, in a verdict."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from pydicom import dcmread

from inference.errors import Reason
from inference.model import Limits, Parameters, Prediction, Step, Trust, Window
from inference.request import Derived, ModelSpec, Outcome, Output, Verdict
from inference.volume import Geometry
from tests import phantoms
from tests.phantoms import Pixels, Series
from tests.unit.inference.made import SLICES_ALONE, Halfway, plan_every_gap, request, run

MODULE = "tests.unit.inference.test_confidence_in_jobs"


class Telling(Halfway):
    """Sure of the first gaps, less and less so of the later ones."""

    runtime = "by hand"
    concurrent = True
    confidences = (0.95, 0.8, 0.08, 0.08, 0.08)

    def run(self, step: Step, slices: Window, limits: Limits) -> Prediction:
        assert step.gap is not None
        made = super().run(step, slices, limits)
        confidence = self.confidences[step.gap]
        first = slices.slices[step.gap]
        return Prediction(
            planes=made.planes,
            trust=tuple(Trust(100.0 - 90.0 * confidence, confidence, 2.3) for _ in made.planes),
            classical=tuple(first.copy() for _ in made.planes),
            classical_name="linear",
            record={"network_weight": 0.75, "classical": "linear", "surveyed": 3},
        )


class Lost(Telling):
    confidences = (0.95, 0.8, 0.04, 0.2, 0.01)


class OtherRuntime(Telling):
    runtime = "by another hand"


class Across(Halfway):
    """Surveys every inner slice; none may look across missing ones."""

    def plan(self, geometry: Geometry, parameters: Parameters) -> list[Step]:
        inner = range(1, len(geometry) - 1)
        surveys = [Step((index - 1, index, index + 1), survey=index) for index in inner]
        return [*surveys, *plan_every_gap(geometry, parameters)]

    def run(self, step: Step, slices: Window, limits: Limits) -> Prediction:
        if step.survey is not None:
            return Prediction(measured={"at": float(step.survey)})
        made = super().run(step, slices, limits)
        at = [measured["at"] for measured in slices.surveyed]
        return Prediction(planes=made.planes, record={"at": at})


def outcome_of(
    tmp_path: Path,
    model: str,
    *,
    series: Series | None = None,
    output: Output | None = None,
    factory: str | None = None,
    closed_gaps: tuple[int, ...] = (),
) -> Outcome:
    files = phantoms.write(tmp_path / "received", series or Series())
    made = request(files, tmp_path / "derived", output=output)
    spec = ModelSpec(model.lower(), factory or f"{MODULE}:{model}")
    return run(replace(made, model=spec), closed_gaps=closed_gaps)


def generated(tmp_path: Path, outcome: Outcome) -> list[object]:
    assert isinstance(outcome, Derived), outcome
    files = [file for file in outcome.files if file.generated]
    return [dcmread(tmp_path / "derived" / file.name) for file in files]


def test_each_generated_slice_says_how_sure_its_model_is(tmp_path: Path) -> None:
    outcome = outcome_of(tmp_path, "Telling", output=replace(SLICES_ALONE, classical_below=0.0))
    said = [str(made.DerivationDescription) for made in generated(tmp_path, outcome)]  # type: ignore[attr-defined]
    assert [text.rpartition("; ")[2] for text in said] == [
        "expected error 14 HU, confidence 0.95",
        "expected error 28 HU, confidence 0.80",
        *["expected error 93 HU, confidence 0.08"] * 3,
    ]
    assert all("not acquired" in text and text.isascii() and len(text) <= 1024 for text in said)


def test_a_slice_of_little_confidence_is_classical_in_its_pixels_and_its_words(
    tmp_path: Path,
) -> None:
    outcome = outcome_of(tmp_path, "Telling")
    made = generated(tmp_path, outcome)
    assert isinstance(outcome, Derived)
    copies = [
        dcmread(tmp_path / "derived" / file.name) for file in outcome.files if not file.generated
    ]
    same = [
        bool(np.array_equal(one.pixel_array, other.pixel_array))  # type: ignore[attr-defined]
        for one, other in zip(made, copies, strict=False)
    ]
    assert same == [False, False, True, True, True]  # this model's classical slice is A itself
    words = [str(each.DerivationDescription) for each in made]  # type: ignore[attr-defined]
    assert ["linear interpolation instead of the network" in text for text in words] == same
    assert "3 slices were interpolated without the network" in list(outcome.record["notes"])  # type: ignore[call-overload]


def test_the_record_lists_place_error_and_confidence_of_every_generated_slice(
    tmp_path: Path,
) -> None:
    outcome = outcome_of(tmp_path, "Telling")
    assert isinstance(outcome, Derived)
    record = outcome.record
    assert record["gate"] == {"network_weight": 0.75, "classical": "linear", "surveyed": 3}
    entries = record["confidence"]
    assert isinstance(entries, list)
    assert [entry["at_mm"] for entry in entries] == [-297.5, -292.5, -287.5, -282.5, -277.5]
    assert [entry["number"] for entry in entries] == [2, 4, 6, 8, 10]
    assert [entry["confidence"] for entry in entries] == [0.95, 0.8, 0.08, 0.08, 0.08]
    assert [entry["how"] for entry in entries] == ["network"] * 2 + ["linear"] * 3
    assert record["runtime"] == "by hand"


def test_a_series_below_the_second_threshold_is_held_and_keeps_its_list(tmp_path: Path) -> None:
    outcome = outcome_of(tmp_path, "Lost")
    assert isinstance(outcome, Verdict)
    assert (outcome.reason, outcome.held) == (Reason.LOW_CONFIDENCE, True)
    assert outcome.sentence.startswith("The model is not sure enough of 2 of 5 slices")
    entries = outcome.record["confidence"]
    assert isinstance(entries, list)
    assert len(entries) == 5
    assert not list((tmp_path / "derived").glob("*.dcm"))


def test_a_route_that_accepts_it_gets_the_series(tmp_path: Path) -> None:
    outcome = outcome_of(tmp_path, "Lost", output=replace(SLICES_ALONE, hold_below=0.0))
    assert isinstance(outcome, Derived)


@pytest.mark.parametrize("model", ["linear", "midslice"])
def test_a_gap_over_twelve_mm_is_held_before_anything_is_predicted(
    tmp_path: Path, model: str
) -> None:
    series = Series(gaps_mm=[5.0, 5.0, 13.0], thickness_mm=13.0)
    factory = {"linear": "classical:Linear", "midslice": "midslice:Midslice"}[model]
    outcome = outcome_of(tmp_path, model, series=series, factory=f"inference.models.{factory}")
    assert isinstance(outcome, Verdict)
    assert (outcome.reason, outcome.held) == (Reason.LOW_CONFIDENCE, True)
    assert "1 gap is wider than 12 mm (up to 13.0 mm)" in outcome.sentence
    assert "most_gap_mm" in outcome.sentence
    assert "predicting" not in outcome.record["seconds"]  # type: ignore[operator]


def test_what_else_changes_a_result_changes_its_uids(tmp_path: Path) -> None:
    uids = set()
    for number, model in enumerate(("Telling", "OtherRuntime", "Telling")):
        files = phantoms.write(tmp_path / "received")
        made = request(
            files, tmp_path / str(number), output=replace(SLICES_ALONE, classical_below=0.0)
        )
        outcome = run(replace(made, model=ModelSpec("same", f"{MODULE}:{model}")))
        assert isinstance(outcome, Derived)
        uids.add(outcome.series_uid)
    assert len(uids) == 2


def test_no_survey_looks_across_missing_slices(tmp_path: Path) -> None:
    series = Series(slices=9, spacing_mm=2.0, thickness_mm=2, missing=[4])
    outcome = outcome_of(
        tmp_path,
        "Across",
        series=series,
        output=replace(SLICES_ALONE, across_missing="leave"),
        closed_gaps=(3,),
    )
    assert isinstance(outcome, Derived)
    assert outcome.record["gate"] == {"at": [1.0, 2.0, 5.0, 6.0]}


def test_the_shipped_model_tells_its_confidence_in_a_real_job(tmp_path: Path) -> None:
    outcome = outcome_of(
        tmp_path,
        "midslice",
        series=Series(rows=64, columns=64),
        factory="inference.models.midslice:Midslice",
    )
    assert isinstance(outcome, Derived)
    entries = outcome.record["confidence"]
    assert isinstance(entries, list)
    assert len(entries) == 5
    assert all(0.0 < entry["confidence"] <= 1.0 and entry["error_hu"] > 0.0 for entry in entries)
    gate = outcome.record["gate"]
    assert isinstance(gate, dict)
    assert gate["surveyed"] == 3


def test_a_job_of_four_slices_rests_on_training_alone_and_says_so(tmp_path: Path) -> None:
    outcome = outcome_of(
        tmp_path,
        "midslice",
        series=Series(slices=4, rows=64, columns=64),
        factory="inference.models.midslice:Midslice",
    )
    assert isinstance(outcome, Derived)
    gate = outcome.record["gate"]
    assert isinstance(gate, dict)
    assert gate["surveyed"] == 0
    assert "only its calibration from training was used" in str(outcome.record["notes"])


@pytest.mark.parametrize("slope", [1.0, 0.37, 2.5])
def test_stored_values_stay_inside_what_both_neighbours_store_nearby(
    tmp_path: Path, slope: float
) -> None:
    series = Series(rows=64, columns=64, pixels=Pixels(slope=slope, intercept=-1024.0))
    factory = "inference.models.midslice:Midslice"
    outcome = outcome_of(tmp_path, "midslice", series=series, factory=factory)
    assert isinstance(outcome, Derived)
    stack = [dcmread(tmp_path / "derived" / file.name) for file in outcome.files]
    stack.sort(key=lambda made: float(made.ImagePositionPatient[2]))
    values = [made.pixel_array.astype(np.float32) for made in stack]
    window = np.ones((9, 9), np.uint8)  # 4 pixels around, for a gap below 6 mm
    for before, made, after in zip(values[:-2:2], values[1:-1:2], values[2::2], strict=True):
        low = np.minimum(cv2.erode(before, window), cv2.erode(after, window))
        high = np.maximum(cv2.dilate(before, window), cv2.dilate(after, window))
        assert ((low <= made) & (made <= high)).all()
