"""Scans made ready for the nodule model: working grid, lungs, candidates, and what is true.

Of each scan there are copies with simulated nodules beside the real one. A copy goes through the
same steps as a received scan: its lungs and candidates are those of the copy.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import default_rng
from numpy.typing import NDArray
from scipy import ndimage

from inference.models.nodule.candidates import find_candidates
from inference.models.nodule.grid import Grid, Hu, Mask
from inference.models.nodule.lungs import Labels, find_lungs
from inference.training.chest_ct import ChestPatient
from inference.training.data import Patient
from inference.training.simulated import Lung, simulate

SEED = 1  # of what is drawn
COPIES, BODIES = 3, 60  # of each scan; bodies for which a place is looked for in each
MOST_CANDIDATES = 400  # to learn from; what counts are the first 300
AROUND_MM = 40  # of the lungs: what crops may need

REAL = "real"  # the kind of what readers outlined

Floats = NDArray[np.float64]
Report = Callable[[float, str], None]


@dataclass(frozen=True)
class Truth:
    """A nodule that is to be found."""

    voxel: tuple[float, float, float]
    diameter_mm: float  # of a sphere of the same volume
    kind: str  # real, or the kind of a simulated one
    attached: str = ""

    @property
    def is_solid(self) -> bool:
        return self.kind in ("solid", "spiculated")


@dataclass(frozen=True, eq=False)
class ChestCase:
    """One scan, or a copy with simulated nodules, on the working grid; cut to the lungs."""

    patient: str
    is_real: bool
    grid: Grid
    corner: tuple[int, int, int]  # of the cut, on the working grid
    hu: Hu
    labels: Labels
    truths: tuple[Truth, ...]  # voxels of the cut
    ignored: Floats  # (n, 4): voxel of the cut, and radius
    places: Floats  # (n, 3) candidates, voxels of the cut, the strongest first
    responses: Floats
    changed: tuple[NDArray[np.int64], NDArray[np.int16]] | None = None  # of the scan: flat places

    def planes(self, scan: Patient) -> NDArray[np.int16]:
        """The slices of the source, with what was drawn into this copy."""
        if self.changed is None:
            return scan.hu
        planes = scan.hu.copy()
        planes.flat[self.changed[0]] = self.changed[1]
        return planes

    @property
    def lung(self) -> Mask:
        return self.labels > 0

    def hit(self, voxels: Floats) -> NDArray[np.int64]:
        """(n,): the truth within whose radius each place lies, or -1; the nearest of several."""
        result = np.full(len(voxels), -1)
        nearest = np.full(len(voxels), np.inf)
        for number, truth in enumerate(self.truths):
            distance = np.linalg.norm(voxels - np.array(truth.voxel), axis=1)
            is_hit = (distance <= truth.diameter_mm / 2.0) & (distance < nearest)
            result[is_hit], nearest[is_hit] = number, distance[is_hit]
        return result

    def is_ignored(self, voxels: Floats) -> NDArray[np.bool_]:
        """(n,): whether each place lies where nothing is counted."""
        distances = np.linalg.norm(voxels[:, None] - self.ignored[None, :, :3], axis=2)
        return np.asarray((distances <= self.ignored[:, 3]).any(axis=1))


def made_ready(patients: Sequence[ChestPatient], report: Report) -> list[ChestCase]:
    """The real scan of each patient, then its copies: always the same ones."""
    cases = []
    for number, patient in enumerate(patients):
        for case in range(COPIES + 1):
            done = (number + case / (COPIES + 1)) / len(patients)
            report(done, f"{patient.name}, {f'copy {case}' if case else 'as received'}")
            if case == 0:
                real = _real(patient)
                cases.append(real)
                lung = _lung(patient, real)
                continue
            random = default_rng((SEED, case, zlib.crc32(patient.name.encode())))
            cases.append(_copied(patient, real, lung, random))
    return cases


def _real(patient: ChestPatient) -> ChestCase:
    grid = Grid.of(patient.scan.geometry)
    case = _case(patient.name, grid, grid.resampled(patient.scan.plane))
    truths = [
        Truth(_voxel(case, nodule.centre), nodule.sphere_mm, REAL) for nodule in patient.counted
    ]
    ignored = patient.ignored.copy()
    ignored[:, :3] = grid.voxels(ignored[:, :3]) - case.corner
    return replace(case, truths=tuple(truths), ignored=ignored)


def _case(name: str, grid: Grid, hu: Hu) -> ChestCase:
    """Lungs and candidates of a scan, cut to what is needed."""
    labels = find_lungs(hu).labels
    box = ndimage.find_objects((labels > 0).astype(np.uint8))[0]
    cut = tuple(
        slice(max(0, own.start - AROUND_MM), min(size, own.stop + AROUND_MM))
        for own, size in zip(box, hu.shape, strict=True)
    )
    hu, labels = hu[cut].copy(), labels[cut].copy()
    candidates = find_candidates(hu, labels, MOST_CANDIDATES)
    return ChestCase(
        patient=name,
        is_real=True,
        grid=grid,
        corner=(cut[0].start, cut[1].start, cut[2].start),
        hu=hu,
        labels=labels,
        truths=(),
        ignored=np.zeros((0, 4)),
        places=np.array([own.voxel for own in candidates], float).reshape(-1, 3),
        responses=np.array([own.response for own in candidates]),
    )


def _voxel(case: ChestCase, place: tuple[float, float, float]) -> tuple[float, float, float]:
    z, y, x = (case.grid.voxels(np.array([place]))[0] - case.corner).tolist()
    return z, y, x


def _lung(patient: ChestPatient, real: ChestCase) -> Lung:
    """Where bodies may be drawn: away from everything that readers marked."""
    marked = np.array(
        [
            *((*_voxel(real, own.centre), own.sphere_mm / 2.0) for own in patient.nodules),
            *((*_voxel(real, point), 2.0) for point in patient.points),
        ],
        float,
    ).reshape(-1, 4)
    return Lung.of(real.grid, np.array(real.corner), real.hu, real.labels, marked)


def _copied(
    patient: ChestPatient,
    real: ChestCase,
    lung: Lung,
    random: np.random.Generator,
) -> ChestCase:
    scan = patient.scan
    planes, drawn = simulate(scan.hu, scan.geometry, lung, BODIES, random)
    case = _case(patient.name, real.grid, real.grid.resampled(lambda index: planes[index]))
    shift = np.subtract(real.corner, case.corner)
    ignored = real.ignored.copy()
    ignored[:, :3] += shift
    truths = [
        Truth(_voxel(case, own.centre), own.diameter_mm, own.kind, own.attached) for own in drawn
    ]
    # The real nodules are there too, but count once, in the scan as received.
    rows = [(*np.add(own.voxel, shift), own.diameter_mm / 2.0) for own in real.truths]
    ignored = np.vstack([ignored, np.array(rows, float).reshape(-1, 4)])
    places = np.flatnonzero(planes != scan.hu)
    return replace(
        case,
        is_real=False,
        truths=tuple(truths),
        ignored=ignored,
        changed=(places, planes.flat[places]),
    )
