"""Bad input: the end of each kind of it by each model of a whole stack, a cell a kind and model.

What is refused or held is sent to the models themselves; no network runs for it. What is processed
is sent to small models of the same families, which give back what they are shown; the models
themselves get it in `tests/training/test_bad_input.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from pydicom import Dataset, dcmread

from inference.errors import Reason
from inference.model import (
    Finding,
    Limits,
    Parameters,
    Prediction,
    Produces,
    Scored,
    Scores,
    Step,
    Window,
)
from inference.models.brain.extraction import BRAIN
from inference.registry import REGISTERED, spec_of
from inference.request import Derived, ModelSpec, Outcome, Output, Verdict
from inference.volume import Geometry
from tests import ct_head, mr_series, phantoms, series
from tests.mr_series import setting
from tests.phantoms import Edit, Series
from tests.unit.inference.made import request, unchecked

MODULE = "tests.jobs.test_bad_input"
MODELS = ("brain", "haemorrhage", "nodules")
HERE = tuple(name for name in MODELS if name in {entry.name for entry in REGISTERED})
ROWS = (
    "another modality",
    "right modality, other body",
    "contrast",
    "one slice, localizer, dose page",
    "a gap in the stack",
    "tilt",
    "enhanced multi-frame",
    "the node's own result",
    "truncated pixels",
    "other forms of values",
    "2,000 slices",
    "two patients under one series UID",
)
FORMS_OF_VALUES = ROWS[9]
Write = Callable[[Path], list[Path]]
End = Literal["refused", "held", "processed"]

# A thin stack, of either modality, large enough for every model's geometry.
THIN = Series(slices=64, spacing_mm=2.5, thickness_mm=2.5, rows=16, columns=20, kernel="B30f")
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
ENHANCED = {"MR": "1.2.840.10008.5.1.4.1.1.4.1", "CT": "1.2.840.10008.5.1.4.1.1.2.1"}
HEAD_CT = {
    "BodyPartExamined": "HEAD",
    "StudyDescription": "CT head",
    "ProtocolName": "Head",
    "SeriesDescription": "Head 2.5 B30f",
}


def mr(edit: Edit | None = None, made_as: Series = THIN) -> Write:
    return lambda folder: mr_series.write(folder, edit, made_as)


def chest_ct(edit: Edit | None = None, made_as: Series = THIN) -> Write:
    return lambda folder: phantoms.write(folder, replace(made_as, edit=edit))


def head_ct(edit: Edit | None = None, made_as: Series = THIN) -> Write:
    def edited(made: Dataset, index: int) -> None:
        setting(**HEAD_CT)(made, index)
        if edit is not None:
            edit(made, index)

    return chest_ct(edited, made_as)


OF_MODEL = {"brain": mr, "haemorrhage": head_ct, "nodules": chest_ct}
MODALITY = {"brain": "MR", "haemorrhage": "CT", "nodules": "CT"}
NO_SLICE = {
    "brain": Reason.NOT_AN_MR_SLICE,
    "haemorrhage": Reason.NOT_A_CT_SLICE,
    "nodules": Reason.NOT_A_CT_SLICE,
}


@dataclass(frozen=True)
class Cell:
    """One kind of input, a model, and how it ends; `said` is in its sentence or its notes."""

    row: str
    model: str
    given: Write
    end: End
    reason: Reason | None = None
    said: str = ""

    def __str__(self) -> str:
        return f"{self.model}: {self.row}, {self.said or self.reason or self.end}"


def every(
    row: str, edit: Edit, end: End, reason: Reason | None, said: str, made_as: Series = THIN
) -> list[Cell]:
    """The same cell of every model, each with a series of its modality."""
    return [Cell(row, name, OF_MODEL[name](edit, made_as), end, reason, said) for name in MODELS]


def first_only(write: Write) -> Write:
    return lambda folder: write(folder)[:1]


def without_one(write: Write) -> Write:
    def written(folder: Path) -> list[Path]:
        files = write(folder)
        return [*files[:20], *files[21:]]

    return written


def cut_short(write: Write) -> Write:
    """The last quarter of one file did not come."""

    def written(folder: Path) -> list[Path]:
        files = write(folder)
        made = dcmread(files[9])
        made.PixelData = made.PixelData[: len(made.PixelData) * 3 // 4]
        made.save_as(files[9])
        return files

    return written


def multi_frame(modality: str) -> Edit:
    return setting(SOPClassUID=ENHANCED[modality], NumberOfFrames=30)


def dose_page(made: Dataset, index: int) -> None:
    made.SOPClassUID, made.ImageType = SECONDARY_CAPTURE, ["DERIVED", "SECONDARY"]
    del made.ImagePositionPatient


def own_result(made: Dataset, index: int) -> None:
    """As a PACS sends it back: whatever it has done to UIDs, the marks of the node are there."""
    made.Manufacturer, made.ManufacturerModelName = "Midslice", "Midslice node"


def large(made: Dataset, index: int) -> None:
    """Slices of 1024 x 1024 whose pixels have not come: nobody may ask for them.

    As many pixels as 2,000 slices of 290 x 290; `tests/training` sends 2,000 slices.
    """
    made.Rows = made.Columns = 1024


def chest_as_head(folder: Path) -> list[Path]:
    """A real chest whose header says in all places that it is a head without contrast."""

    def change(made: Dataset) -> None:
        made.decompress(generate_instance_uid=False)
        setting(**HEAD_CT)(made, 0)
        for keyword in ("ContrastBolusAgent", "ContrastBolusRoute", "ContrastBolusAgentSequence"):
            made.pop(keyword, None)

    return series.changed(series.thick(24), folder, change)


def angiography(folder: Path) -> list[Path]:
    """A real head without contrast whose header says so, with bright vessels in its brain."""

    def edit(made: Dataset, index: int) -> None:
        hu = made.pixel_array.astype(np.int64) - 1024
        brain = (hu > 0) & (hu < 80)
        vessels = np.zeros(hu.shape, bool)
        for row, column in np.ndindex(2, 2):  # they run along the patient, 2 mm wide
            vessels[row::16, column::16] = True
        hu[vessels & brain] = 250
        made.decompress(generate_instance_uid=False)
        made.PixelData = (hu + 1024).astype("<u2").tobytes()

    return ct_head.write(folder, edit)


def parted_patients(made: Dataset, index: int) -> None:
    made.PatientID = f"PH-{index % 2}"


R = Reason
CELLS = [
    Cell(ROWS[0], "brain", chest_ct(), "refused", R.NOT_AN_MR_SLICE, "Modality CT"),
    Cell(ROWS[0], "haemorrhage", mr(), "refused", R.OUT_OF_SCOPE, "modality MR, not CT"),
    Cell(ROWS[0], "nodules", mr(), "refused", R.OUT_OF_SCOPE, "modality MR, not CT"),
    Cell(
        ROWS[1],
        "brain",
        mr(setting(BodyPartExamined="KNEE")),
        "refused",
        R.OUT_OF_SCOPE,
        "Body Part Examined is KNEE",
    ),
    Cell(
        ROWS[1],
        "haemorrhage",
        chest_ct(),
        "refused",
        R.OUT_OF_SCOPE,
        "BodyPartExamined is 'CHEST'",
    ),
    Cell(ROWS[1], "haemorrhage", chest_as_head, "refused", R.OUT_OF_SCOPE, "seen in 0 slices"),
    Cell(ROWS[1], "nodules", head_ct(), "refused", R.OUT_OF_SCOPE, "lung"),
    Cell(ROWS[2], "nodules", chest_ct(setting(ContrastBolusAgent="X")), "processed", None, "Bolus"),
    Cell(ROWS[2], "haemorrhage", angiography, "refused", R.OUT_OF_SCOPE, "contrast in vessels"),
    Cell(ROWS[2], "brain", mr(setting(ContrastBolusAgent="Gadovist")), "processed", None, "Bolus"),
    *(
        Cell(ROWS[2], "haemorrhage", head_ct(setting(**{keyword: value})), "refused", *said)
        for keyword, value, *said in (
            ("ContrastBolusAgent", "Iomeron", R.OUT_OF_SCOPE, "ContrastBolusAgent is 'Iomeron'"),
            ("ContrastBolusRoute", "IV", R.OUT_OF_SCOPE, "ContrastBolusRoute is 'IV'"),
            ("SeriesDescription", "CTA", R.OUT_OF_SCOPE, "SeriesDescription is 'CTA'"),
        )
    ),
    *(
        Cell(ROWS[3], name, first_only(OF_MODEL[name]()), "refused", R.TOO_FEW_SLICES, "1 slice;")
        for name in MODELS
    ),
    *(
        Cell(ROWS[3], name, OF_MODEL[name](edit), "refused", NO_SLICE[name], said[name])
        for name in MODELS
        for edit, said in (
            (
                setting(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]),
                dict.fromkeys(MODELS, "localizer"),
            ),
            (
                dose_page,
                dict.fromkeys(MODELS, "screenshot") | {"brain": "no MR slice (Modality MR)"},
            ),
        )
    ),
    *(
        Cell(
            ROWS[4],
            name,
            without_one(OF_MODEL[name]()),
            "held",
            R.MISSING_SLICES,
            "1 slice is missing",
        )
        for name in MODELS
    ),
    *every(
        ROWS[5], setting(), "processed", None, "sheared by 12.0", replace(THIN, tilt_degrees=12)
    ),
    *(
        Cell(
            ROWS[6],
            name,
            OF_MODEL[name](multi_frame(MODALITY[name])),
            "refused",
            R.ENHANCED_NOT_SUPPORTED,
            "Multi-frame (enhanced)",
        )
        for name in MODELS
    ),
    *every(ROWS[7], own_result, "refused", R.DERIVED_INPUT, ""),
    *(
        Cell(
            ROWS[8],
            name,
            cut_short(OF_MODEL[name]()),
            "held",
            R.PIXEL_DATA_ERROR,
            "",
        )
        for name in MODELS
    ),
    *every(
        ROWS[10],
        large,
        "refused",
        R.TOO_LARGE,
        "168 million",
        replace(THIN, slices=160, spacing_mm=1.0, thickness_mm=1.0, rows=1, columns=2),
    ),
    *every(ROWS[11], parted_patients, "held", R.PATIENT_MISMATCH, "Patient ID"),
]
CHECKED = [cell for cell in CELLS if cell.model in HERE]
STOPPED = [cell for cell in CHECKED if cell.end != "processed"]
PROCESSED = [cell for cell in CHECKED if cell.end == "processed"]


def outcome_of(
    files: Sequence[Path], folder: Path, model: ModelSpec, edit: Output | None = None
) -> Outcome:
    made = request(files, folder)
    return unchecked(replace(made, model=model, parameters=Parameters(), output=edit or Output()))


@pytest.mark.parametrize("cell", STOPPED, ids=str)
def test_what_no_model_may_judge_ends_with_a_reason_and_the_word_that_says_so(
    tmp_path: Path, cell: Cell
) -> None:
    files = cell.given(tmp_path / "received")
    outcome = outcome_of(files, tmp_path / "results", spec_of(cell.model))
    assert isinstance(outcome, Verdict), outcome
    assert (outcome.reason, "held" if outcome.held else "refused") == (cell.reason, cell.end)
    assert cell.said in outcome.sentence
    assert list((tmp_path / "results").glob("*")) == []


# The small models: each gives back what it is shown, in the form of its family.


class ShownMask:
    """A mask of all that is brighter than the middle of the values."""

    name, version, weights_sha256 = "shown-mask", "0.1", ""
    produces: Produces = "mask"
    segment = BRAIN

    def plan(self, geometry: Geometry, parameters: Parameters) -> Sequence[Step]:
        return [Step(tuple(range(len(geometry))))]

    def run(self, step: Step, slices: Window, limits: Limits) -> Prediction:
        volume = np.stack([slices.slices[index] for index in step.needs])
        mask = (volume > np.median(volume)).astype(np.float32)
        record = {"shown": [round(float(plane.mean()), 3) for plane in volume]}
        return Prediction(planes=tuple(mask), record=record)


class ShownScores(ShownMask):
    """A score that rises with the mean of each slice."""

    name, produces = "shown-scores", "scores"
    scored = Scored("Spot", ("1386000", "SCT", "Intracranial hemorrhage"), BRAIN.kind)
    operating_point = "threshold 0.5"

    def run(self, step: Step, slices: Window, limits: Limits) -> Prediction:
        shown = super().run(step, slices, limits)
        means = np.array([float(slices.slices[index].mean()) for index in step.needs])
        scores = (means / 4096.0 + 0.5).clip(0.0, 1.0)
        return Prediction(scores=Scores(scores, float(scores.max()), 0.5, 0.5), record=shown.record)


class ShownFindings(ShownMask):
    """One finding, of what is brighter than the middle in the middle slices."""

    name, produces = "shown-findings", "findings"
    finding, segments, threshold = BRAIN, (BRAIN,), 0.5

    def run(self, step: Step, slices: Window, limits: Limits) -> Prediction:
        shown = super().run(step, slices, limits)
        mask = np.stack(shown.planes[8:11]) > 0
        return Prediction(
            planes=tuple(np.ones_like(plane) for plane in shown.planes),
            findings=(Finding(0.9, (8, 0, 0), mask, 8.0, 6.0, 200.0),),
            record=shown.record,
        )


SMALL = {
    "brain": ModelSpec("shown-mask", f"{MODULE}:ShownMask", produces="mask"),
    "haemorrhage": ModelSpec("shown-scores", f"{MODULE}:ShownScores", produces="scores"),
    "nodules": ModelSpec("shown-findings", f"{MODULE}:ShownFindings", produces="findings"),
}


@pytest.mark.parametrize("cell", PROCESSED, ids=str)
def test_what_may_be_judged_is_processed_and_named(tmp_path: Path, cell: Cell) -> None:
    files = cell.given(tmp_path / "received")
    outcome = outcome_of(files, tmp_path / "results", SMALL[cell.model])
    assert isinstance(outcome, Derived), outcome
    assert cell.said in " ".join(outcome.record["notes"])  # type: ignore[arg-type]


# Other forms of the same values: (stored, slope, intercept, sign) of what is stored as 16 bits.


def inverted(made: Dataset, index: int) -> None:
    stored = np.frombuffer(made.PixelData, "<i2")
    made.PhotometricInterpretation = "MONOCHROME1"
    made.PixelData = (-1 - stored.astype(np.int64)).astype("<i2").tobytes()


def unsigned(made: Dataset, index: int) -> None:
    """From 0 on, in 15 of the 16 bits."""
    stored = np.frombuffer(made.PixelData, "<i2").astype(np.int64)
    slope, intercept = rescale_of(made)
    made.PixelRepresentation = 0
    made.RescaleSlope, made.RescaleIntercept = f"{slope:g}", f"{intercept - 4000 * slope:g}"
    made.PixelData = (stored + 4000).astype("<u2").tobytes()


def own_slopes(made: Dataset, index: int) -> None:
    """A slope and an intercept of its own in every slice."""
    stored = np.frombuffer(made.PixelData, "<i2").astype(np.int64)
    slope, intercept = rescale_of(made)
    made.RescaleSlope = f"{slope / 2 ** (index % 3):g}"
    made.RescaleIntercept = f"{intercept - slope * (index % 7):g}"
    made.PixelData = ((stored + index % 7) * 2 ** (index % 3)).astype("<i2").tobytes()


def rescale_of(made: Dataset) -> tuple[float, float]:
    return float(made.get("RescaleSlope", 1.0)), float(made.get("RescaleIntercept", 0.0))


FORMS = (inverted, unsigned, own_slopes)


@pytest.mark.parametrize("model", MODELS)
def test_a_model_is_shown_the_same_values_in_whatever_form_they_are_stored(
    tmp_path: Path, model: str
) -> None:
    small = replace(THIN, slices=20)
    shown: list[object] = []
    for number, form in enumerate((None, *FORMS)):
        files = OF_MODEL[model](form, small)(tmp_path / f"{number}")
        outcome = outcome_of(files, tmp_path / f"{number}-results", SMALL[model])
        assert isinstance(outcome, Derived), outcome
        shown.append([outcome.record.get(key) for key in ("shown", "mask", "scores", "findings")])
    assert shown[1:] == shown[:1] * len(FORMS)


def ends_of(row: str, model: str) -> str:
    """The ends of a cell, as CASES.md writes them."""
    if row == FORMS_OF_VALUES:
        return "processed"
    ends = {
        f"{cell.end} `{cell.reason}`" if cell.reason else cell.end
        for cell in CELLS
        if (cell.row, cell.model) == (row, model)
    }
    return ", ".join(sorted(ends))


def test_every_cell_has_a_series_and_cases_md_says_how_it_ends() -> None:
    text = (Path(__file__).parents[2] / "CASES.md").read_text(encoding="utf-8")
    section = text.partition("## Bad input to models of a whole stack")[2].partition("\n## ")[0]
    table = [line.strip("| ").split(" | ") for line in section.splitlines() if line[:1] == "|"]
    assert table[0] == ["what is sent", *MODELS]
    written = {
        (row, model): end
        for row, *ends in table[2:]
        for model, end in zip(MODELS, ends, strict=True)
    }
    assert written == {(row, model): ends_of(row, model) for row in ROWS for model in MODELS}
    assert all(written.values())
