"""Training samples: gaps cut out of thin stacks, whole slices first, so that flow is the real one.

A sample is drawn as a scanner could have made it: another gap, thickness, view, field of view,
reconstruction kernel, noise or motion. Crops of it go into a pool that is refreshed all the time;
batches of small patches are cut from the pool.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from inference.models.classical import Neighbourhood
from inference.models.gate import LEAST_HU, MOST_HU
from inference.models.midslice import IN_Z, TOLD_IN_Z, inputs_of
from inference.training.data import Patient

Planes = NDArray[np.float32]
# Planes (B, 6, side, side), truth (B, 1, side, side), conditions (B, 6) and cubic (B, 4).
Batch = tuple[Planes, Planes, Planes, Planes]

HEAD_EXTENT_MM = 280.0  # a field of view below it is taken for a head
HEAD_SHARE = 0.28
MOST_GAP_MM = 12.0
CROP = 224  # side of what the pool keeps of a slice, in pixels
CROPS = 3  # of one gap: a whole slice costs more to prepare than to cut
BODY_HU = -400.0
LEAST_RESLICED = 80  # slices a stack needs so that its sagittal and coronal planes are pictures


@dataclass(frozen=True, eq=False)
class GapSample:
    """A crop around one gap: what the network is given, and the truth at t."""

    planes: NDArray[np.int16]  # (7, side, side): P, A, C, N, both warps, truth
    conditions: NDArray[np.float32]  # (6,)
    cubic: NDArray[np.float32]  # (4,)


@dataclass(frozen=True, eq=False)
class Gap:
    """Five whole slices: P, A, C, N and the truth, with their places in units of the gap."""

    planes: Planes  # (5, rows, columns)
    places: tuple[float, float, float, float, float]
    has: tuple[bool, bool]
    gap_mm: float
    pixel_mm: float
    thickness_mm: float


def draw(patients: Sequence[Patient], random: Generator) -> list[GapSample]:
    """Some crops of one gap, drawn and altered at random."""
    patient = _drawn_patient(patients, random)
    is_resliced = len(patient) >= LEAST_RESLICED and random.random() < 0.2
    gap = (_resliced_gap if is_resliced else _axial_gap)(patient, random)
    gap = _zoomed(gap, _drawn_zoom(patient, random))
    planes = gap.planes
    if random.random() < 0.35:
        planes = moved_linearly(planes, gap.places, random)
    if random.random() < 0.12:
        planes = other_materials(planes, random)
    if random.random() < 0.3:
        planes = _kernel(planes, random)
    if random.random() < 0.2:
        planes = _noisy(planes, random)
    np.clip(planes, LEAST_HU, MOST_HU, out=planes)
    return _crops(planes, gap, random)


def unaltered(patient: Patient, random: Generator) -> list[GapSample]:
    """Some crops of one gap as it was received: to measure with, not to learn from."""
    gap = _axial_gap(patient, random)
    return _crops(np.clip(gap.planes, LEAST_HU, MOST_HU), gap, random)


def _drawn_patient(patients: Sequence[Patient], random: Generator) -> Patient:
    heads = [patient for patient in patients if patient.extent_mm < HEAD_EXTENT_MM]
    bodies = [patient for patient in patients if patient.extent_mm >= HEAD_EXTENT_MM]
    if not bodies or (heads and random.random() < HEAD_SHARE):
        return heads[random.integers(len(heads))]
    return bodies[random.integers(len(bodies))]


def _axial_gap(patient: Patient, random: Generator) -> Gap:
    """Received slices left out or, in a third, first averaged to thicker ones."""
    spacing = patient.spacing_mm
    steps = drawn_steps(spacing, len(patient), random)
    width = int(random.integers(2, 6)) if random.random() < 0.35 else 1
    width = min(width, max(1, steps), len(patient) - steps)
    indices, at, has = _drawn_places(steps, len(patient) - width + 1, random)
    planes = np.stack([patient.hu[i : i + width].mean(axis=0, dtype=np.float32) for i in indices])
    own = patient.geometry.thickness_mm or spacing
    return Gap(
        planes,
        at,
        has,
        steps * spacing,
        patient.geometry.pixel_mm,
        max(own, own + (width - 1) * spacing),
    )


def _resliced_gap(patient: Patient, random: Generator) -> Gap:
    """Sagittal or coronal planes as slices: fine truth across many gaps, other shapes."""
    along = int(random.integers(1, 3))  # 1: coronal, 2: sagittal
    spacing, count = patient.geometry.pixel_mm, patient.hu.shape[along]
    width = int(random.integers(2, 4))
    steps = drawn_steps(spacing, count // 2, random)
    # The outer quarters of the field of view are mostly air.
    indices, at, has = _drawn_places(steps, count // 2 - width, random)
    height = round(len(patient) * patient.spacing_mm / patient.geometry.pixel_mm)
    planes = []
    for index in indices:
        first = count // 4 + index
        cut = np.take(patient.hu, range(first, first + width), axis=along)
        plane = cut.mean(axis=along, dtype=np.float32)
        planes.append(cv2.resize(plane, (plane.shape[1], height), interpolation=cv2.INTER_CUBIC))
    return Gap(
        np.stack(planes), at, has, steps * spacing, patient.geometry.pixel_mm, width * spacing
    )


def drawn_steps(spacing_mm: float, slices: int, random: Generator) -> int:
    """Thin slices that a gap spans: in a quarter the fewest, else of any gap up to 12 mm."""
    if random.random() < 0.25:
        return 2
    most = max(2, min(int(MOST_GAP_MM / spacing_mm), slices // 2))
    return int(np.clip(round(random.uniform(1.6, MOST_GAP_MM) / spacing_mm), 2, most))


def _drawn_places(
    steps: int, slices: int, random: Generator
) -> tuple[list[int], tuple[float, float, float, float, float], tuple[bool, bool]]:
    """Indices of P, A, C, N and truth, their places in gaps from A, and whether P and N exist."""
    a = int(random.integers(0, max(1, slices - steps)))
    c = min(a + steps, slices - 1)
    before = _drawn_neighbour(steps, random)
    after = _drawn_neighbour(steps, random)
    has = (
        a - before >= 0 and random.random() > 0.06,
        c + after < slices and random.random() > 0.06,
    )
    p, n = (a - before if has[0] else a), (c + after if has[1] else c)
    middle = (c - a) // 2 if random.random() < 0.4 else int(random.integers(1, max(2, c - a)))
    indices = [p, a, c, n, a + middle]
    at = [(index - a) / (c - a) for index in indices]
    return indices, (at[0], at[1], at[2], at[3], at[4]), has


def _drawn_neighbour(steps: int, random: Generator) -> int:
    """Neighbouring gaps are mostly as wide as this one; some series are not even."""
    return steps if random.random() < 0.88 else int(random.integers(1, 2 * steps + 1))


def _drawn_zoom(patient: Patient, random: Generator) -> tuple[float, float]:
    """Down the rows and along the columns: other fields of view, bodies of another build."""
    if patient.extent_mm < HEAD_EXTENT_MM:
        zoom = float(random.uniform(1.5, 2.0)) if random.random() < 0.75 else 1.0
    else:
        zoom = float(random.uniform(0.7, 1.3)) if random.random() < 0.2 else 1.0
    if random.random() >= 0.15:
        return zoom, zoom
    stretch = float(random.uniform(0.88, 1.14))
    return zoom * stretch, zoom / stretch


def _zoomed(gap: Gap, zoom: tuple[float, float]) -> Gap:
    if zoom == (1.0, 1.0):
        return gap
    down, along = zoom
    planes = np.stack(
        [cv2.resize(p, None, fx=along, fy=down, interpolation=cv2.INTER_CUBIC) for p in gap.planes]
    )
    return replace(gap, planes=planes, pixel_mm=gap.pixel_mm / float(np.sqrt(down * along)))


def moved_linearly(
    planes: Planes, places: tuple[float, ...], random: Generator, most_pixels: float = 7.0
) -> Planes:
    """The slices as if everything drifted along z: shift, scale, shear and a little bending.

    Half of the time the truth stays where it is; else it is resampled as its neighbours are, so
    that the network does not learn to sharpen.
    """
    rows, columns = planes.shape[1:]
    still = places[4] if random.random() < 0.5 else float(random.uniform(-0.5, 1.5))
    y, x = np.mgrid[:rows, :columns].astype(np.float32)
    high, wide = y - rows / 2, x - columns / 2
    shift = np.clip(random.normal(0.0, 3.0, 2), -most_pixels, most_pixels)
    linear = random.uniform(-0.05, 0.05, (2, 2)) * [[1.0, 0.6], [0.6, 1.0]]
    bend = random.normal(0.0, 1.0, (6, 6, 2)).astype(np.float32)
    bent = cv2.resize(bend, (columns, rows), interpolation=cv2.INTER_CUBIC)
    dy = (shift[0] + linear[0, 0] * high + linear[0, 1] * wide).astype(np.float32) + bent[..., 0]
    dx = (shift[1] + linear[1, 0] * high + linear[1, 1] * wide).astype(np.float32) + bent[..., 1]
    moved = planes.copy()
    for index, far in enumerate(np.float32(place - still) for place in places):
        if far != 0.0:
            at = x + far * dx, y + far * dy
            edge = cv2.BORDER_REPLICATE
            moved[index] = cv2.remap(planes[index], *at, cv2.INTER_CUBIC, borderMode=edge)
    return moved


def other_materials(planes: Planes, random: Generator) -> Planes:
    """The slices as if tissues had other densities, in the same order: contrast, age, disease."""
    known = np.array([LEAST_HU, -850.0, -400.0, -110.0, 40.0, 300.0, 1200.0, MOST_HU])
    steps = np.diff(known) * np.exp(random.uniform(-0.7, 0.7, len(known) - 1))
    steps *= (MOST_HU - LEAST_HU) / steps.sum()
    others = np.concatenate([[LEAST_HU], LEAST_HU + np.cumsum(steps)])
    return np.asarray(np.interp(planes, known, others), np.float32)


def _kernel(planes: Planes, random: Generator) -> Planes:
    """Another reconstruction kernel: all slices smoother, sharper, or as noisy as for bone.

    In a sharp kernel (noise of 125 HU was seen, six times that of a smooth one) noise hides what
    moves: flow follows the noise there, and linear is the better.
    """
    sharp = float(np.exp(random.uniform(np.log(0.7), np.log(10.0))))
    amount = random.uniform(-0.7, 0.7) if random.random() < 0.4 else sharp
    sigma = random.uniform(0.6, 1.5)
    return np.stack(
        [p + np.float32(amount) * (p - cv2.GaussianBlur(p, (0, 0), sigma)) for p in planes]
    )


def _noisy(planes: Planes, random: Generator) -> Planes:
    """Noise on the received slices alone, white or correlated within the slice."""
    noisy = planes.copy()
    deviation = 60.0 * random.random() ** 2
    for index in range(4):
        noise = random.standard_normal(planes.shape[1:], dtype=np.float32)
        if random.random() < 0.5:
            smooth = cv2.GaussianBlur(noise, (0, 0), 1.0) * np.float32(3.5)
            noise = np.asarray(smooth, np.float32)
        noisy[index] += np.float32(deviation) * noise
    return noisy


def _crops(planes: Planes, gap: Gap, random: Generator) -> list[GapSample]:
    t = gap.places[4]
    places = {index - 1: gap.places[index] * gap.gap_mm for index in range(4)}
    present = [0, 1] + [-1] * gap.has[0] + [2] * gap.has[1]
    near = Neighbourhood(
        planes={place: planes[place + 1] for place in present},
        distances_mm={place: places[place] for place in present},
        shifts=dict.fromkeys(present, (0.0, 0.0)),
        pixel_mm=gap.pixel_mm,
        thickness_mm=gap.thickness_mm,
    )
    inputs = inputs_of(near, t)
    bottom, right = (max(0, CROP - side) for side in planes.shape[1:])
    whole = np.concatenate([inputs.planes, planes[4:]])
    padded = np.pad(whole, ((0, 0), (0, bottom), (0, right)), mode="edge")
    stored = np.rint(padded).astype(np.int16)
    body = np.argwhere(stored[6, ::8, ::8] > BODY_HU) * 8
    rows, columns = stored.shape[1:]
    samples = []
    for _ in range(CROPS):
        centre = body[random.integers(len(body))] if len(body) else np.array([0, 0])
        top = int(np.clip(centre[0] - CROP // 2 + random.integers(-40, 41), 0, rows - CROP))
        left = int(np.clip(centre[1] - CROP // 2 + random.integers(-40, 41), 0, columns - CROP))
        cut = stored[:, top : top + CROP, left : left + CROP].copy()
        samples.append(GapSample(cut, inputs.conditions, inputs.cubic))
    return samples


class Pool:
    """Samples in memory: it grows to its size, then each new sample replaces an old one."""

    def __init__(self, patients: Sequence[Patient], size: int, random: Generator) -> None:
        self._patients, self._size, self._random = patients, size, random
        self._samples: list[GapSample] = []

    def __len__(self) -> int:
        return len(self._samples)

    def refresh(self) -> None:
        for sample in draw(self._patients, self._random):
            if len(self._samples) < self._size:
                self._samples.append(sample)
            else:
                self._samples[self._random.integers(self._size)] = sample

    def batch(self, count: int, side: int) -> Batch:
        """Patches of random samples, flipped, transposed, reversed in z, offset by up to 20 HU."""
        drawn = [
            patch(self._samples[self._random.integers(len(self))], side, self._random)
            for _ in range(count)
        ]
        planes = np.stack([sample.planes for sample in drawn]).astype(np.float32)
        planes += self._random.uniform(-20.0, 20.0, (count, 1, 1, 1)).astype(np.float32)
        conditions = np.stack([sample.conditions for sample in drawn])
        return planes[:, :6], planes[:, 6:], conditions, np.stack([s.cubic for s in drawn])


def patch(sample: GapSample, side: int, random: Generator) -> GapSample:
    """A random patch of a sample, in one of its eight symmetries; half-way also reversed in z."""
    top, left = random.integers(0, CROP - side + 1, 2)
    planes = sample.planes[:, top : top + side, left : left + side]
    conditions, cubic = sample.conditions, sample.cubic
    if conditions[0] == 0.5 and random.random() < 0.5:
        planes, conditions, cubic = planes[[*IN_Z, 6]], conditions[[*TOLD_IN_Z]], cubic[::-1]
    planes = planes[:, :: random.choice((-1, 1)), :: random.choice((-1, 1))]
    if random.random() < 0.5:
        planes = planes.swapaxes(1, 2)
    return GapSample(planes, conditions, cubic)
