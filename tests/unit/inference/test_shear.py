"""Gantry tilt on real slices: a sheared stack gains as much as the same stack unsheared."""

import copy
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset, dcmread

from inference.model import Parameters
from inference.request import ModelSpec
from inference.training.metrics import HIGH_HU, LOW_HU, TruthSlice
from tests.unit.inference.made import derive, request

DEMO = Path("node/demo/data")
# Another thin series to measure on: a folder of one series whose every other slice is left out.
SERIES = os.environ.get("SHEAR_SERIES", "")
DEGREES = (10.0, 18.5, -18.5)
NEAR_DB = 0.3
PADDING_HU = -1500.0

Plane = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Slice:
    """A real slice as it is read, with its values in HU and where they are padding."""

    dataset: Dataset
    hounsfield: Plane
    padding: NDArray[np.bool_]


def read(path: Path, side: int | None) -> Slice:
    """A slice, or the middle square of it."""
    dataset = dcmread(path)
    dataset.decompress(generate_instance_uid=False)
    values = dataset.pixel_array.astype(np.float32)
    if side is not None:
        top, left = ((length - side) // 2 for length in values.shape)
        values = values[top : top + side, left : left + side]
    hounsfield = values * np.float32(dataset.RescaleSlope) + np.float32(dataset.RescaleIntercept)
    del dataset.PixelData
    return Slice(dataset, hounsfield, hounsfield < PADDING_HU)


def thin_stack(paths: Sequence[Path], side: int | None = None) -> list[Slice]:
    """Real slices, as far apart as they were acquired, in the order of their positions."""
    found = [read(path, side) for path in paths]
    return sorted(found, key=lambda slice_: float(slice_.dataset.ImagePositionPatient[2]))


def demo_paths(slices: int | None = None) -> list[Path]:
    """The first slices of the demonstration's chest, 2.5 mm apart."""
    paths = [*(DEMO / "received").glob("*.dcm"), *(DEMO / "acquired").glob("*.dcm")]
    return sorted(paths, key=lambda path: path.name)[:slices]


def sheared(stack: Sequence[Slice], degrees: float) -> list[Slice]:
    """The stack as a tilted gantry would have it: each slice moved along its columns."""
    middle = float(stack[len(stack) // 2].dataset.ImagePositionPatient[2])
    return [_moved(slice_, middle, math.tan(math.radians(degrees))) for slice_ in stack]


def with_margin(stack: Sequence[Slice], degrees: float) -> list[Slice]:
    """Room above and below, so that shearing moves nothing out of the pictures."""
    places = [float(slice_.dataset.ImagePositionPatient[2]) for slice_ in stack]
    mm = math.tan(math.radians(abs(degrees))) * float(np.ptp(places))
    rows = ((math.ceil(mm / float(stack[0].dataset.PixelSpacing[0]) / 2) + 2,) * 2, (0, 0))
    return [
        replace(
            slice_,
            hounsfield=np.pad(slice_.hounsfield, rows, constant_values=LOW_HU),
            padding=np.pad(slice_.padding, rows, constant_values=True),
        )
        for slice_ in stack
    ]


def _moved(slice_: Slice, middle: float, slope: float) -> Slice:
    position = [float(value) for value in slice_.dataset.ImagePositionPatient]
    mm = slope * (position[2] - middle)
    pixels = mm / float(slice_.dataset.PixelSpacing[0])
    hounsfield = np.where(slice_.padding, np.float32(LOW_HU), slice_.hounsfield)
    padding = _sampled(slice_.padding.astype(np.float32), pixels, cv2.INTER_NEAREST) > 0.5
    dataset = copy.deepcopy(slice_.dataset)
    dataset.ImagePositionPatient = [
        f"{v:.10g}" for v in (position[0], position[1] + mm, position[2])
    ]
    return Slice(dataset, _sampled(hounsfield, pixels, cv2.INTER_LANCZOS4), padding)


def _sampled(plane: Plane, pixels: float, how: int) -> Plane:
    """The plane at every pixel plus so many rows; unchanged where that is none."""
    if pixels == 0.0:
        return plane
    rows, columns = plane.shape
    x = np.tile(np.arange(columns, dtype=np.float32), (rows, 1))
    y = np.tile(np.arange(rows, dtype=np.float32)[:, None] + np.float32(pixels), (1, columns))
    found = cv2.remap(plane, x, y, how, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(found, np.float32)


def write(stack: Sequence[Slice], folder: Path, *, declared: str = "") -> list[Path]:
    """The slices as files; `declared` is what their headers say about the tilt."""
    folder.mkdir(parents=True)
    paths = []
    for place, slice_ in enumerate(stack):
        made = copy.deepcopy(slice_.dataset)
        slope, intercept = float(made.RescaleSlope), float(made.RescaleIntercept)
        values = np.rint((slice_.hounsfield - intercept) / slope)
        padding = made.get("PixelPaddingValue", -2000)
        values[slice_.padding] = padding
        made.add_new("PixelData", "OW", values.astype("<i2").tobytes())
        made.Rows, made.Columns = values.shape
        # As scanners write it; de-identification gave each slice another one.
        made.FrameOfReferenceUID = stack[0].dataset.FrameOfReferenceUID
        if declared:
            made.GantryDetectorTilt = declared
        paths.append(folder / f"{place:04}.dcm")
        made.save_as(paths[-1], enforce_file_format=True)
    return paths


def gains_db(stack: Sequence[Slice], folder: Path, *, declared: str = "") -> list[float]:
    """What `midslice` gains over `linear` on each left-out slice: every other one.

    Both derived series go through the second checker: count, copies, the full 3-D line.
    """
    received = write(stack[::2], folder / "received", declared=declared)
    found = {}
    for name in ("midslice", "linear"):
        made = replace(
            request(received, folder / name), model=ModelSpec(name), parameters=Parameters(factor=2)
        )
        slices = [dcmread(path) for path in derive(made)]
        slices.sort(key=lambda slice_: float(slice_.ImagePositionPatient[2]))
        truths = stack[1 : len(slices) : 2]
        found[name] = [_psnr_db(*pair) for pair in zip(slices[1::2], truths, strict=True)]
    return [ours - linear for ours, linear in zip(found["midslice"], found["linear"], strict=True)]


def _psnr_db(made: Dataset, truth: Slice) -> float:
    assert made.SyntheticData == "YES"
    plane = made.pixel_array * float(made.RescaleSlope) + float(made.RescaleIntercept)
    shown, true = (
        np.clip(p, LOW_HU, HIGH_HU).astype(np.float32) for p in (plane, truth.hounsfield)
    )
    return TruthSlice(true).figures_of(shown).psnr_db


@pytest.fixture(scope="module")
def straight_db(tmp_path_factory: pytest.TempPathFactory) -> float:
    """What the straight stack gains."""
    folder = tmp_path_factory.mktemp("straight")
    return float(np.mean(gains_db(thin_stack(demo_paths(5), side=192), folder)))


@pytest.mark.parametrize("degrees", DEGREES)
def test_a_tilted_stack_gains_what_the_straight_one_gains(
    tmp_path: Path, straight_db: float, degrees: float
) -> None:
    stack = thin_stack(demo_paths(5), side=192)
    tilted = gains_db(sheared(stack, degrees), tmp_path)
    assert straight_db > 0.5
    assert np.mean(tilted) == pytest.approx(straight_db, abs=NEAR_DB)


def test_a_tilt_that_the_header_only_claims_changes_no_pixel(tmp_path: Path) -> None:
    stack = thin_stack(demo_paths(3), side=64)
    honest = gains_db(stack, tmp_path / "honest")
    for lie in ("20", "-20"):
        assert gains_db(stack, tmp_path / lie, declared=lie) == honest
    tilted = sheared(stack, 18.5)
    assert gains_db(tilted, tmp_path / "zero", declared="0") == gains_db(tilted, tmp_path / "none")


@pytest.mark.long
@pytest.mark.parametrize("degrees", DEGREES)
def test_every_tilt_gains_as_much_on_whole_slices(tmp_path: Path, degrees: float) -> None:
    paths = sorted(Path(SERIES).rglob("*.dcm")) if SERIES else demo_paths()
    stack = with_margin(thin_stack(paths), degrees)
    straight = gains_db(stack, tmp_path / "straight")
    tilted = gains_db(sheared(stack, degrees), tmp_path / "tilted")
    assert np.mean(tilted) == pytest.approx(np.mean(straight), abs=NEAR_DB)
