"""Bad input to the models themselves, whole series: what only their networks and pixels decide.

The other cells, and what is refused by headers, are in `tests/jobs/test_bad_input.py`.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset, dcmread

from inference.errors import Reason
from inference.registry import spec_of
from inference.request import Derived, ModelSpec, Outcome, Verdict
from tests import ct_head, mr_series, phantoms, series
from tests.jobs.test_bad_input import HERE, OF_MODEL, outcome_of, own_slopes
from tests.mr_series import HEAD
from tests.phantoms import Edit, Series

MR = Series(slices=90, spacing_mm=2.0, thickness_mm=2.0, rows=8, columns=8)
Volume = NDArray[np.float64]


def ended(files: list[Path], folder: Path, model: str) -> Outcome:
    return outcome_of(files, folder, spec_of(model))


def of_volume(volume: Volume, pixel_mm: float) -> Edit:
    """Each slice with its plane of a volume."""

    def edit(made: Dataset, index: int) -> None:
        plane = volume[index]
        made.Rows, made.Columns = plane.shape
        made.PixelSpacing = [f"{pixel_mm:g}"] * 2
        made.PixelData = plane.clip(0, 4000).astype("<i2").tobytes()

    return edit


def axes(shape: tuple[int, ...], *mm: float) -> list[Volume]:
    """Distances from the middle along slices, rows and columns."""
    sides = [
        (np.arange(side) - (side - 1) / 2.0) * step for side, step in zip(shape, mm, strict=True)
    ]
    return list(np.meshgrid(*sides, indexing="ij"))


def phantom(kind: str) -> Volume:
    """(slices, rows, columns): liquid in a vessel of the size of a head, with noise."""
    shape = (90, 128, 128)
    z, y, x = axes(shape, 2.0, 1.5, 1.5)
    inside = {
        "ball": np.sqrt(x**2 + y**2 + z**2) < 78.0,
        "cylinder": (np.hypot(x, y) < 75.0) & (abs(z) < 60.0),
        "bottles": (np.hypot(abs(x) - 40.0, y) < 35.0) & (abs(z) < 70.0),
    }[kind]
    noise = np.random.default_rng(1).normal(0.0, 20.0, shape)
    return np.where(inside, 800.0, 5.0) + noise


@pytest.mark.parametrize("kind", ["ball", "cylinder", "bottles"])
def test_a_phantom_never_gets_a_brain_mask_that_is_sent(tmp_path: Path, kind: str) -> None:
    files = mr_series.write(tmp_path / "received", of_volume(phantom(kind), 1.5), MR)
    outcome = ended(files, tmp_path / "results", "brain")
    assert isinstance(outcome, Verdict), outcome
    assert outcome.reason in (Reason.LOW_CONFIDENCE, Reason.OUT_OF_SCOPE)
    assert not list((tmp_path / "results").glob("*.dcm"))


def chest() -> Volume:
    """A real chest, interpolated to gaps of 2.5 mm, as a T1-weighted scanner might show it."""
    files = sorted(series.RECEIVED.glob("*.dcm"), key=_height)
    planes = [dcmread(path).pixel_array[::4, ::4].astype(float) for path in files]
    values = (np.stack(planes) - np.median(planes)).clip(-900.0, 400.0) + 900.0
    between = (values[:-1] + values[1:]) / 2.0
    return np.concatenate(
        [np.stack([values[:-1], between], 1).reshape(-1, *between.shape[1:]), values[-1:]]
    )


def _height(path: Path) -> float:
    return float(dcmread(path, stop_before_pixels=True).ImagePositionPatient[2])


def test_a_chest_that_says_it_is_a_head_never_gets_a_brain_mask(tmp_path: Path) -> None:
    volume = chest()
    shape = replace(MR, slices=len(volume), spacing_mm=2.5, thickness_mm=2.5)
    files = mr_series.write(tmp_path / "received", of_volume(volume, 1.5), shape)
    outcome = ended(files, tmp_path / "results", "brain")
    assert isinstance(outcome, Verdict), outcome
    assert outcome.reason in (Reason.LOW_CONFIDENCE, Reason.OUT_OF_SCOPE)


def head(edit: Edit | None = None) -> Callable[[Path], list[Path]]:
    """The real MR head, decoded to 16 bits, each slice edited."""

    def written(folder: Path) -> list[Path]:
        files = sorted(HEAD.glob("*.dcm"))
        indices = {path.name: index for index, path in enumerate(files)}

        def change(made: Dataset) -> None:
            made.decompress(generate_instance_uid=False)
            if edit is not None:
                edit(made, indices[Path(made.filename).name])

        return series.changed(files, folder, change)

    return written


def test_the_brain_of_a_real_head_is_the_same_with_slopes_of_their_own(tmp_path: Path) -> None:
    masks = []
    for form in (None, own_slopes):
        folder = tmp_path / str(form)
        outcome = ended(head(form)(folder / "received"), folder / "results", "brain")
        assert isinstance(outcome, Derived), outcome
        masks.append(dcmread(folder / "results" / "segmentation.dcm").PixelData)
    assert masks[0] == masks[1]


def many(model: str, folder: Path, slices: int = 2000) -> list[Path]:
    """So many files at once: one slice of 512 x 512, with places and UIDs of its own in its bytes.

    Its pixels have not come: nobody may ask for them.
    """
    number, at, uid = b"@@@@", b"1000.0", b"2.25.600000"

    def edit(made: Dataset, index: int) -> None:
        made.Rows = made.Columns = 512
        made.ImagePositionPatient = ["-150.0", "-120.0", at.decode()]
        made.SOPInstanceUID = uid.decode()
        phantoms.put(made, "InstanceNumber", number)

    (path,) = OF_MODEL[model](edit, replace(MR, slices=1, rows=1, columns=2))(folder)
    template, files = path.read_bytes(), []
    path.unlink()
    assert (template.count(number), template.count(at), template.count(uid)) == (1, 1, 2)
    for index in range(slices):
        content = template.replace(at, f"{1000 + index / 10:.1f}".encode())
        content = content.replace(uid, f"2.25.{600000 + index}".encode())
        files.append(folder / f"{index}.dcm")
        files[-1].write_bytes(content.replace(number, f"{index + 1:04d}".encode()))
    return files


@pytest.mark.parametrize("model", HERE)
def test_2000_large_slices_are_refused_before_one_is_decoded(tmp_path: Path, model: str) -> None:
    files = many(model, tmp_path / "received")
    outcome = ended(files, tmp_path / "results", model)
    assert isinstance(outcome, Verdict), outcome
    assert outcome.reason is Reason.TOO_LARGE
    assert "524 million" in outcome.sentence


def test_a_head_in_a_tilted_gantry_is_scored_as_it_was_taken(tmp_path: Path) -> None:
    """The network was trained on tilted heads: its slices are neither turned nor moved."""

    def tilt(made: Dataset, index: int) -> None:
        angle = np.radians(15.0)
        made.ImageOrientationPatient = [1, 0, 0, 0, f"{np.cos(angle):.9f}", f"{np.sin(angle):.9f}"]

    plain, tilted = (
        ended(ct_head.write(tmp_path / name, edit), tmp_path / f"{name}-results", "haemorrhage")
        for name, edit in (("plain", lambda made, index: None), ("tilted", tilt))
    )
    assert isinstance(plain, Derived), plain
    assert isinstance(tilted, Derived), tilted
    assert "sheared by 15.0 degrees" in tilted.record["notes"]
    assert tilted.record["scores"] == plain.record["scores"]


NODULE = ModelSpec("nodules", "inference.models.nodule.nodule:Nodule", produces="findings")
CHEST = Series(slices=110, spacing_mm=2.5, thickness_mm=2.5, rows=2, columns=2)


def chest_phantom() -> Volume:
    """Two lungs of foam in a body, 2.3 L each, with balls that look like nodules."""
    shape, pixel_mm = (110, 160, 160), 2.1
    z, y, x = axes(shape, 2.5, pixel_mm, pixel_mm)
    hu = np.where((x / 155.0) ** 2 + (y / 110.0) ** 2 < 1.0, 40.0, -1000.0)
    lung = ((abs(x) - 70.0) / 55.0) ** 2 + (y / 80.0) ** 2 + (z / 125.0) ** 2 < 1.0
    hu[lung] = -850.0
    for side, height, radius in ((-60.0, 0.0, 10.0), (70.0, 40.0, 8.0), (80.0, -50.0, 6.0)):
        hu[(x - side) ** 2 + y**2 + (z - height) ** 2 < radius**2] = 30.0
    return hu + np.random.default_rng(1).normal(0.0, 15.0, shape)


def test_a_phantom_never_gets_a_list_of_nodules_that_is_sent(tmp_path: Path) -> None:
    edit = of_volume(chest_phantom() + 1024.0, 2.1)
    files = phantoms.write(tmp_path / "received", replace(CHEST, edit=edit))
    outcome = outcome_of(files, tmp_path / "results", NODULE)
    assert isinstance(outcome, Verdict), outcome
    assert outcome.reason is Reason.LOW_CONFIDENCE
    assert "it may be a phantom" in outcome.sentence
    assert len(outcome.record["findings"]) > 0  # type: ignore[arg-type]  # they were not sent
    assert not list((tmp_path / "results").glob("*.dcm"))
