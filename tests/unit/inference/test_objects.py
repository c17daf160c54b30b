"""Further result objects of a job: beside the derived series, of the same patient, repeatable."""

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread

from inference.request import Derived, File, ModelSpec, Output
from inference.scope import is_derived_by_node
from inference.stacks import read_headers, set_aside, stacks_of
from tests import phantoms, validators
from tests.phantoms import Pixels, Series
from tests.unit.inference.case import own_rescale
from tests.unit.inference.made import images, request, run

PRESENTATION_STATE = "1.2.840.10008.5.1.4.1.1.11.1"
ODD_SERIES = {
    "plain": Series(slices=4, rows=64, columns=64),
    "monochrome1": Series(slices=3, pixels=Pixels(photometric="MONOCHROME1")),
    "unsigned": Series(slices=3, pixels=Pixels(bits=12, is_signed=False)),
    "no squares": Series(slices=3, pixel_mm=(0.9, 0.6)),
    "rescaled each": Series(slices=3, edit=own_rescale),
    "japanese": Series(
        slices=3,
        character_set=["", "ISO 2022 IR 87"],
        patient=phantoms.Patient(b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B"),
    ),
}


@pytest.fixture
def made(tmp_path: Path) -> tuple[Derived, Path]:
    return job(tmp_path, ODD_SERIES["plain"])


def job(folder: Path, series: Series, output: Output | None = None) -> tuple[Derived, Path]:
    files = phantoms.write(folder / "received", series)
    outcome = run(request(files, folder / "derived", output=output or Output()))
    assert isinstance(outcome, Derived), outcome
    return outcome, folder / "derived"


def state_of(outcome: Derived) -> File:
    (file,) = (file for file in outcome.files if file.kind == "presentation state")
    return file


def texts(state: Dataset) -> dict[str, str]:
    """The words of each image that a state annotates."""
    return {
        annotation.ReferencedImageSequence[0].ReferencedSOPInstanceUID: (
            annotation.TextObjectSequence[0].UnformattedTextValue
        )
        for annotation in state.GraphicAnnotationSequence
    }


def test_every_file_of_a_job_says_what_it_is(made: tuple[Derived, Path]) -> None:
    outcome, folder = made
    state = state_of(outcome)
    assert outcome.files[-1] is state
    assert (state.sop_class_uid, state.is_supplement) == (PRESENTATION_STATE, True)
    assert {file.series_uid for file in outcome.files} == {outcome.series_uid, state.series_uid}
    assert outcome.record["objects"] == [
        {
            "kind": "presentation state",
            "sop_class_uid": PRESENTATION_STATE,
            "series_uid": state.series_uid,
        }
    ]
    for file in outcome.files:
        read = dcmread(folder / file.name)
        assert (read.SeriesInstanceUID, read.SOPInstanceUID) == (file.series_uid, file.instance_uid)
        assert read.SOPClassUID == file.sop_class_uid


def test_the_state_marks_exactly_the_generated_slices(made: tuple[Derived, Path]) -> None:
    outcome, folder = made
    state = dcmread(folder / state_of(outcome).name)
    generated = {file.instance_uid for file in outcome.files if file.generated}
    assert texts(state) == dict.fromkeys(generated, "AI, not acquired")
    (series,) = state.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == outcome.series_uid
    shown = {item.ReferencedSOPInstanceUID for item in series.ReferencedImageSequence}
    assert shown == {file.instance_uid for file in outcome.files if file.kind == "image"}
    assert state.SeriesDescription.startswith("AI MARKS 3 of 7 NOT ACQUIRED")
    assert state.SeriesNumber == 9303


def test_the_state_says_the_expected_error_of_each_slice_as_its_overlay_does(
    tmp_path: Path,
) -> None:
    files = phantoms.write(tmp_path / "received", Series(slices=6, rows=64, columns=64))
    asked = request(files, tmp_path / "derived", output=Output())
    asked = replace(asked, model=ModelSpec("midslice"))
    outcome = run(asked)
    assert isinstance(outcome, Derived), outcome
    state = dcmread(asked.folder / state_of(outcome).name)
    overlays = {
        made.SOPInstanceUID: made[0x6000, 0x0022].value
        for made in map(dcmread, images(outcome, asked.folder))
        if (0x6000, 0x0022) in made
    }
    assert texts(state) == overlays
    assert all(words.endswith(" HU") for words in overlays.values())


@pytest.mark.parametrize("name", ODD_SERIES)
def test_no_validator_says_anything_against_the_state(name: str, tmp_path: Path) -> None:
    outcome, folder = job(tmp_path, ODD_SERIES[name])
    path = folder / state_of(outcome).name
    assert validators.dciodvfy(path) == []
    sources = sorted((tmp_path / "received").iterdir())
    assert validators.dcentvfy([*sources, *images(outcome, folder), path]) == []


def test_the_state_lets_viewers_keep_the_shape_of_pixels(tmp_path: Path) -> None:
    outcome, folder = job(tmp_path, ODD_SERIES["no squares"])
    (area,) = dcmread(folder / state_of(outcome).name).DisplayedAreaSelectionSequence
    assert area.PresentationPixelSpacing == [0.9, 0.6]
    assert "PresentationPixelAspectRatio" not in area


@pytest.mark.parametrize("name", ["plain", "monochrome1", "no squares", "unsigned"])
def test_dcmtk_passes_the_state_and_shows_its_words(name: str, tmp_path: Path) -> None:
    outcome, folder = job(tmp_path, ODD_SERIES[name])
    path = folder / state_of(outcome).name
    checked = subprocess.run(["dcmpschk", path], capture_output=True, text=True, check=False)
    assert "Test passed" in checked.stdout + checked.stderr
    generated = next(file for file in outcome.files if file.generated)
    command = ["dcmp2pgm", "-v", "-p", path, folder / generated.name, tmp_path / "shown.pgm"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "AI, not acquired" in shown.stdout + shown.stderr
    assert "Number of text objects: 1" in shown.stdout + shown.stderr


def test_made_again_an_object_has_the_same_uids_and_bytes(tmp_path: Path) -> None:
    first, folder = job(tmp_path / "a", ODD_SERIES["plain"])
    again, other = job(tmp_path / "b", ODD_SERIES["plain"])
    assert state_of(first) == state_of(again)
    name = state_of(first).name
    assert (folder / name).read_bytes() == (other / name).read_bytes()


def test_a_route_can_do_without_the_state_and_its_series_stays_the_same(tmp_path: Path) -> None:
    first, _ = job(tmp_path / "a", ODD_SERIES["plain"])
    without, _ = job(tmp_path / "b", ODD_SERIES["plain"], Output(presentation_state=False))
    assert without.files == first.files[:-1]
    assert without.record["objects"] == []


def test_an_object_that_comes_back_has_no_slices_and_is_known_as_our_own(
    made: tuple[Derived, Path],
) -> None:
    outcome, folder = made
    path = folder / state_of(outcome).name
    headers = read_headers([path])
    assert [stack.key for stack in stacks_of(headers)] == ["no CT slices"]
    assert [item.reason for item in set_aside(headers)] == ["NOT_A_CT_SLICE"]
    assert is_derived_by_node(headers[0])
