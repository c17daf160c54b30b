"""Candidates: bright spheres in the lungs, by the eigenvalues of the Hessian at several scales.

No learning (Li et al., Med Phys 2003, the dot filter): |l3|^2 / |l1| where all three are negative,
times the square of the scale.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from inference.models.nodule.grid import Hu, Mask

SIGMAS_MM = (1.5, 2.1, 3.0, 4.2, 6.0, 8.0)
COARSE_FROM_MM, COARSE = 3.0, 2  # from this scale on every second voxel serves
APART_MM = 6.0
MOST = 300
PER_SCALE = 3000  # the strongest places of a scale that compete
HU_RANGE = -1000.0, -200.0  # brighter is not more of a nodule: ground glass counts as well
MARGIN_MM = 24  # of the box of a lung: three times the largest scale

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Candidate:
    """A place that may be a nodule."""

    voxel: tuple[float, float, float]  # z, y, x of the working grid
    response: float
    sigma_mm: float  # of the scale at which it answers most


def find_candidates(hu: Hu, lungs: NDArray[np.uint8], most: int = MOST) -> list[Candidate]:
    """The strongest candidates in the lungs, at least 6 mm apart, the strongest first."""
    peaks: list[tuple[float, float, tuple[float, ...]]] = []
    for side in np.unique(lungs[lungs > 0]).tolist():
        own = lungs == side
        box = _box(own)
        corner = np.array([part.start for part in box])
        for sigma, response, place in _peaks(_clipped(hu[box]), own[box]):
            peaks.append((response, sigma, tuple((place + corner).tolist())))
    peaks.sort(reverse=True)
    return _apart(peaks, most)


def _box(own: Mask) -> tuple[slice, ...]:
    parts = []
    for axis in range(3):
        planes = np.flatnonzero(own.any(axis=tuple(other for other in range(3) if other != axis)))
        first, last = planes[0] - MARGIN_MM, planes[-1] + 1 + MARGIN_MM
        parts.append(slice(max(0, int(first)), int(last)))
    return tuple(parts)


def _clipped(hu: Hu) -> Floats:
    return np.clip(hu, *HU_RANGE).astype(np.float32)


def _peaks(values: Floats, lung: Mask) -> Iterator[tuple[float, float, NDArray[np.float64]]]:
    """(sigma, response, voxel) of the local maxima at each scale."""
    coarse = ndimage.uniform_filter(values, COARSE)[::COARSE, ::COARSE, ::COARSE]
    for sigma in SIGMAS_MM:
        step = COARSE if sigma >= COARSE_FROM_MM else 1
        own = lung[::step, ::step, ::step]
        response = sphere_response(coarse if step > 1 else values, sigma / step, own)
        is_peak = (response > 0) & (ndimage.maximum_filter(response, 3) == response)
        places = np.argwhere(is_peak)
        strengths = response[is_peak]
        for index in np.argsort(-strengths, kind="stable")[:PER_SCALE].tolist():
            # The mean of two voxels lies half a voxel before the second of them.
            place = places[index] * float(step) - (0.5 if step > 1 else 0.0)
            yield sigma, float(strengths[index]), place


def sphere_response(values: Floats, sigma: float, inside: Mask) -> Floats:
    """The answer to bright spheres of one scale, 0 where there is none or outside."""
    smooth = ndimage.gaussian_filter(values, sigma)
    zz, yy, xx, zy, zx, yx = _second_derivatives(smooth)
    minor = zz * yy - zy * zy
    determinant = zz * (yy * xx - yx * yx) - zy * (zy * xx - yx * zx) + zx * (zy * yx - yy * zx)
    # Negative definite: all three eigenvalues are below 0.
    places = np.nonzero((zz < 0) & (minor > 0) & (determinant < 0) & inside)
    matrices = np.stack([part[places] for part in (zz, yy, xx, zy, zx, yx)], axis=1)
    smallest, largest = _extreme_eigenvalues(matrices.astype(np.float64))
    response = np.zeros(values.shape, np.float32)
    response[places] = largest**2 / np.abs(smallest) * sigma**2
    return response


def _second_derivatives(smooth: Floats) -> tuple[Floats, ...]:
    """zz, yy, xx, zy, zx, yx by differences; the border repeats."""
    padded = np.pad(smooth, 1, mode="edge")

    def at(z: int, y: int, x: int) -> Floats:
        deep, high, wide = smooth.shape
        return padded[1 + z : 1 + z + deep, 1 + y : 1 + y + high, 1 + x : 1 + x + wide]

    twice = 2.0 * smooth
    return (
        at(1, 0, 0) + at(-1, 0, 0) - twice,
        at(0, 1, 0) + at(0, -1, 0) - twice,
        at(0, 0, 1) + at(0, 0, -1) - twice,
        (at(1, 1, 0) + at(-1, -1, 0) - at(1, -1, 0) - at(-1, 1, 0)) / 4.0,
        (at(1, 0, 1) + at(-1, 0, -1) - at(1, 0, -1) - at(-1, 0, 1)) / 4.0,
        (at(0, 1, 1) + at(0, -1, -1) - at(0, 1, -1) - at(0, -1, 1)) / 4.0,
    )


def _extreme_eigenvalues(
    m: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(smallest, largest) eigenvalue of symmetric 3 x 3 matrices, in closed form."""
    zz, yy, xx, zy, zx, yx = m.T
    mean = (zz + yy + xx) / 3.0
    off = zy**2 + zx**2 + yx**2
    p = np.sqrt(((zz - mean) ** 2 + (yy - mean) ** 2 + (xx - mean) ** 2 + 2.0 * off) / 6.0)
    p = np.maximum(p, 1e-12)
    a, b, c = (zz - mean) / p, (yy - mean) / p, (xx - mean) / p
    d, e, f = zy / p, zx / p, yx / p
    half = (a * (b * c - f * f) - d * (d * c - f * e) + e * (d * f - b * e)) / 2.0
    angle = np.arccos(np.clip(half, -1.0, 1.0)) / 3.0
    largest = mean + 2.0 * p * np.cos(angle)
    smallest = mean + 2.0 * p * np.cos(angle + 2.0 * np.pi / 3.0)
    return smallest, np.minimum(largest, 0.0)


def _apart(peaks: list[tuple[float, float, tuple[float, ...]]], most: int) -> list[Candidate]:
    """The strongest of what lies near each other."""
    kept: list[Candidate] = []
    places = np.zeros((0, 3))
    for response, sigma, place in peaks:
        if len(places) and (((places - place) ** 2).sum(axis=1) < APART_MM**2).any():
            continue
        z, y, x = place
        kept.append(Candidate((z, y, x), response, sigma))
        places = np.vstack([places, place])
        if len(kept) == most:
            break
    return kept
