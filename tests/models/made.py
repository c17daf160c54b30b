"""Made stacks, thin series and patients: a bony ring around soft tissue that drifts along z."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from inference.model import Step, Window
from inference.models.network import Network
from inference.training.checkpoint import Tensors
from inference.training.data import Patient, ThinSeries
from inference.training.samples import Pool
from inference.training.train import Plan
from inference.volume import Geometry, Plane
from tests import phantoms

QUICK = Plan(steps=6, batch=2, side=32, pool=8, first=4, refresh=2, seed=5)
AXIAL = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


def made_geometry(
    slices: int,
    rows: int = 64,
    columns: int = 64,
    *,
    gaps_mm: Sequence[float] | float = 5.0,
    shear_mm: float = 0.0,
    pixel_mm: float = 0.7,
) -> Geometry:
    """An axial stack; with `shear_mm` each slice lies that much further along the column."""
    gaps = [gaps_mm] * (slices - 1) if isinstance(gaps_mm, float) else list(gaps_mm)
    positions = np.zeros((slices, 3))
    positions[1:, 2] = np.cumsum(gaps)
    positions[:, 1] = np.arange(slices) * shear_mm
    return Geometry(positions, AXIAL, (pixel_mm, pixel_mm), rows, columns, thickness_mm=2.5)


def made_plane(geometry: Geometry, z_mm: float, *, noise_hu: float = 0.0, seed: int = 0) -> Plane:
    """The body at height z: everything moves 0.1 pixel per mm and grows with z."""
    rows, columns = geometry.rows, geometry.columns
    y, x = np.mgrid[:rows, :columns].astype(np.float32)
    drift = np.float32(0.1 * z_mm)
    away = np.hypot(y - rows / 2 - drift, x - columns / 2 - drift)
    radius = np.float32(min(rows, columns) * 0.33 + 0.05 * z_mm)
    plane = np.full((rows, columns), -1000.0, np.float32)
    plane += 1040.0 * np.clip(radius + 2.0 - away, 0.0, 1.0)
    plane += 700.0 * np.clip(1.5 - np.abs(away - radius), 0.0, 1.0)
    random = np.random.default_rng(seed)
    plane += np.float32(noise_hu) * random.standard_normal(plane.shape, dtype=np.float32)
    return plane


def made_planes(geometry: Geometry, *, noise_hu: float = 10.0) -> list[Plane]:
    """Every slice of a stack; read-only, as a model gets them."""
    planes = []
    for index, z in enumerate(geometry.distances_mm):
        plane = made_plane(geometry, float(z), noise_hu=noise_hu, seed=index)
        plane.flags.writeable = False
        planes.append(plane)
    return planes


def window_of(geometry: Geometry, planes: Sequence[Plane], step: Step) -> Window:
    """What the runner hands a model for a step: the slices it needs and no others."""
    return Window(geometry, {index: planes[index] for index in step.needs})


def thin_series(
    planes: Sequence[Plane], geometry: Geometry, *, name: str = "made", trained_on: bool = False
) -> ThinSeries:
    """Planes as a series; they are stored as they are."""

    def read(index: int) -> Plane:
        return np.array(planes[index], np.float32)

    return ThinSeries(name, trained_on, geometry, read, lambda plane, *_: plane)


def ramp(slices: int = 13, gap_mm: float = 1.0) -> ThinSeries:
    """Every pixel changes evenly along z, each at its own pace: linear interpolation is exact."""
    geometry = made_geometry(slices, 48, 48, gaps_mm=gap_mm)
    pace = np.linspace(-8.0, 8.0, 48 * 48, dtype=np.float32).reshape(48, 48)
    planes = [np.float32(40.0) + pace * np.float32(z) for z in geometry.distances_mm]
    return thin_series(planes, geometry)


def sheared(slices: int = 13) -> ThinSeries:
    """A column that stands straight in the patient while the stack leans by a pixel a slice."""
    geometry = made_geometry(slices, 64, 64, gaps_mm=1.0, shear_mm=0.7, pixel_mm=0.7)
    y, x = np.mgrid[:64, :64].astype(np.float32)
    planes = []
    for index in range(slices):
        away = np.hypot(y - 38.0 + index, x - 32.0)
        planes.append(np.asarray(-1000.0 + 1040.0 * np.exp(-((away / 9.0) ** 2)), np.float32))
    return thin_series(planes, geometry, name="sheared")


def drifting(slices: int = 25, *, name: str = "drifting") -> ThinSeries:
    """A bony ring around soft tissue that drifts and grows along z, with noise."""
    geometry = made_geometry(slices, 80, 80, gaps_mm=1.0)
    planes = [made_plane(geometry, 3.0 * z, noise_hu=8.0, seed=z) for z in range(slices)]
    return thin_series([np.rint(plane) for plane in planes], geometry, name=name)


def made_hu(slices: int = 24, side: int = 64, noise_hu: float = 10.0) -> NDArray[np.int16]:
    geometry = made_geometry(slices, side, side, gaps_mm=1.0)
    planes = [made_plane(geometry, 3.0 * z, noise_hu=noise_hu, seed=z) for z in range(slices)]
    return np.rint(planes).astype(np.int16)


def made_patient(slices: int = 30, side: int = 64) -> Patient:
    """Somebody of whom every slice is held in memory."""
    geometry = made_geometry(slices, side, side, gaps_mm=1.0)
    hu = np.stack(made_planes(geometry)).astype(np.int16)
    return Patient("made", hu, geometry)


def write_npz(folder: Path, hu: NDArray[np.int16], spacing: tuple[float, float, float]) -> Path:
    folder.mkdir(parents=True)
    np.savez(folder / "volume.npz", hu=hu, spacing_mm=np.array(spacing))
    return folder


def write_series(folder: Path, series: ThinSeries, spacing_mm: float = 1.0) -> Path:
    """The series as a volume.npz of a folder with its name."""
    hu = np.stack([series.read(index) for index in range(len(series))]).astype(np.int16)
    return write_npz(folder / series.name, hu, (spacing_mm, 0.7, 0.7))


def write_dicom(
    folder: Path, hu: NDArray[np.int16], heights_mm: list[float], person: str = "made"
) -> None:
    """A series whose files are named against the order of their positions."""
    planes, heights = hu[::-1], heights_mm[::-1]

    def edit(made: Dataset, index: int) -> None:
        made.ImagePositionPatient = [0.0, 0.0, heights[index]]
        made.Rows, made.Columns = hu.shape[1:]
        values = np.clip(planes[index].astype(np.int64) + 1024, 0, 4095)
        made.PixelData = phantoms.raw_pixels(values, 16)

    series = phantoms.Series(
        slices=len(hu),
        thickness_mm=1.0,
        pixel_mm=(0.7, 0.7),
        patient=phantoms.Patient(id=person),
        pixels=phantoms.Pixels(is_signed=False),
        seed=str(folder),
        edit=edit,
    )
    phantoms.write(folder, series)


def error_of(weights: Tensors, patients: tuple[Patient, ...]) -> float:
    """The mean absolute error on samples that training did not draw."""
    pool = Pool(patients, 30, np.random.default_rng(77))
    for _ in range(15):
        pool.refresh()
    planes, truth, conditions, cubic = pool.batch(30, 64)
    network = Network()
    network.load_state_dict(dict(weights))
    with torch.inference_mode():
        made, _ = network(*map(torch.from_numpy, (planes, conditions, cubic)))
    return float(np.abs(made.numpy() - truth).mean())
