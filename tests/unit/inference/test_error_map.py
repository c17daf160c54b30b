"""The map of the expected error: its values, its places, and what other people's tools read."""

from dataclasses import replace
from pathlib import Path

import highdicom
import numpy as np
import pytest
from pydicom import dcmread

from inference.previews import MOST_ERROR_HU, reduced
from inference.request import Derived, File, ModelSpec, Output
from tests import phantoms, validators
from tests.phantoms import Series
from tests.unit.inference.made import images, request, unchecked

PARAMETRIC_MAP = "1.2.840.10008.5.1.4.1.1.30"
SERIES = Series(slices=6, rows=66, columns=64, pixel_mm=(0.8, 0.9))
OUTPUT = Output(error_map=True, presentation_state=False)


def job(folder: Path, model: str = "midslice", **output: object) -> tuple[Derived, Path]:
    files = phantoms.write(folder / "received", SERIES)
    asked = request(files, folder / "derived", output=replace(OUTPUT, **output))  # type: ignore[arg-type]
    outcome = unchecked(replace(asked, model=ModelSpec(model)))
    assert isinstance(outcome, Derived), outcome
    return outcome, folder / "derived"


def map_of(outcome: Derived) -> File:
    (file,) = (file for file in outcome.files if file.kind == "parametric map")
    return file


def test_squares_of_pixels_are_averaged_and_what_is_far_off_is_far_off() -> None:
    plane = np.zeros((6, 9), np.float32)
    plane[:4, :4], plane[4:, 8:] = 12.34, 1e6
    assert reduced(plane).tolist() == [[123, 0, 0], [0, 0, round(MOST_ERROR_HU * 10)]]


def test_highdicom_reads_hounsfield_units_at_the_places_of_the_generated_slices(
    tmp_path: Path,
) -> None:
    outcome, folder = job(tmp_path)
    file = map_of(outcome)
    assert (file.sop_class_uid, file.is_supplement) == (PARAMETRIC_MAP, True)
    image = highdicom.imread(folder / file.name)
    slices = [dcmread(path) for path in images(outcome, folder)]
    generated = [made for made in slices if made.SyntheticData == "YES"]
    frames = image.get_frames(apply_real_world_transform=True)
    assert frames.shape == (len(generated), 17, 16)
    expected = {entry["number"]: entry["error_hu"] for entry in _entries(outcome)}
    heights = {float(made.ImagePositionPatient[2]): made for made in generated}
    for groups, frame in zip(image.PerFrameFunctionalGroupsSequence, frames, strict=True):
        place = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        made = heights.pop(place[2])
        first = np.array(made.ImagePositionPatient, float)
        assert place - first == pytest.approx([1.5 * 0.9, 1.5 * 0.8, 0.0], abs=1e-6)
        body = made.pixel_array[2:64:4, 2::4] * made.RescaleSlope + made.RescaleIntercept > -500
        wanted = expected[int(made.InstanceNumber)]
        assert frame[:16][body[:16]].mean() == pytest.approx(wanted, rel=0.35)
    measures = image.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert [float(x) for x in measures.PixelSpacing] == pytest.approx([3.2, 3.6])
    assert image.FrameOfReferenceUID == slices[0].FrameOfReferenceUID


def _entries(outcome: Derived) -> list[dict[str, float]]:
    entries = outcome.record["confidence"]
    assert isinstance(entries, list)
    return entries


def test_no_validator_says_anything_against_the_map(tmp_path: Path) -> None:
    outcome, folder = job(tmp_path)
    path = folder / map_of(outcome).name
    assert validators.dciodvfy(path) == []
    sources = sorted((tmp_path / "received").iterdir())
    assert validators.dcentvfy([*sources, *images(outcome, folder), path]) == []


def test_made_again_the_map_has_the_same_bytes(tmp_path: Path) -> None:
    first, folder = job(tmp_path / "a")
    again, other = job(tmp_path / "b")
    assert map_of(first) == map_of(again)
    name = map_of(first).name
    assert (folder / name).read_bytes() == (other / name).read_bytes()


def test_a_route_that_asks_for_none_and_a_model_that_knows_none_have_no_map(tmp_path: Path) -> None:
    without, _ = job(tmp_path / "a", error_map=False)
    assert {file.kind for file in without.files} == {"image"}
    linear, _ = job(tmp_path / "b", model="linear")
    assert {file.kind for file in linear.files} == {"image"}
    notes = linear.record["notes"]
    assert isinstance(notes, list)
    assert "no error map: the model says nothing of its error" in notes
