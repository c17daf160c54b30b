"""A nodule on the slices of the source: its pixels, both axes, its volume, and where it lies.

Its border is where the density is half way between nodule and parenchyma. What is thinner than
the body of the nodule, as vessels are, is cut off by an opening.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from inference.models.nodule.lungs import LEFT, RIGHT, Labels, Lungs
from inference.volume import Geometry, Plane

SITES = {RIGHT: "right", LEFT: "left", 0: ""}
MARGIN_MM = 12.0  # around a nodule, to see the parenchyma
CORE = 0.3  # of the diameter: where its density is measured
AROUND = 0.45  # of the diameter: belongs to the nodule even outside the closed lung
MOST, MORE_MM = 0.55, 1.0  # of the diameter, and a little: from the centre to the farthest pixel
PARENCHYMA_HU, NO_NODULE_HU = -850.0, -500.0  # where there is none to see; above it is none
SMOOTHING_MM = 0.6
OPENING, OPENING_MM = 0.3, (0.8, 3.0)  # of the diameter; limits of its radius
SAME_LENGTH_MM = 1e-6
JUXTAPLEURAL_MM = 5.0
THIRDS = ("lower", "middle", "upper")

Mask = NDArray[np.bool_]
Vector = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Measured:
    """The pixels of a nodule in a block of the source, and its sizes."""

    first: tuple[int, int, int]
    mask: Mask
    long_axis_mm: float
    short_axis_mm: float
    volume_mm3: float


@dataclass(frozen=True, eq=False)
class Block:
    """The pixels of the source around a place."""

    first: tuple[int, int, int]  # slice, row, column
    hu: NDArray[np.float32]
    lung: Mask
    offsets: NDArray[np.float64]  # (slices, rows, columns, 3) mm from the place
    spacing: tuple[float, float, float]

    @classmethod
    def around(
        cls,
        place: Vector,
        reach_mm: float,
        geometry: Geometry,
        planes: Sequence[Plane | NDArray[np.int16]],
        lungs: Sequence[NDArray[np.uint8]],
    ) -> "Block":
        """Cut to the stack; at least one slice, row and column."""
        slices = _near(geometry.distances_mm - place @ geometry.normal, reach_mm)
        middle = geometry.positions[slices[len(slices) // 2]]
        along_row, along_column = geometry.orientation
        row_mm, column_mm = geometry.pixel_spacing
        rows = _near(np.arange(geometry.rows) * row_mm - (place - middle) @ along_column, reach_mm)
        columns = _near(
            np.arange(geometry.columns) * column_mm - (place - middle) @ along_row, reach_mm
        )
        cut = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        places = (
            geometry.positions[slices][:, None, None]
            + (rows * row_mm)[None, :, None, None] * along_column
            + (columns * column_mm)[None, None, :, None] * along_row
        )
        gap = float(np.median(geometry.gaps_mm))
        return cls(
            (int(slices[0]), int(rows[0]), int(columns[0])),
            np.stack([planes[index][cut] for index in slices.tolist()]).astype(np.float32),
            np.stack([lungs[index][cut] > 0 for index in slices.tolist()]),
            places - place,
            (gap, row_mm, column_mm),
        )


def _near(distances: NDArray[np.float64], reach: float) -> NDArray[np.intp]:
    near = np.flatnonzero(np.abs(distances) <= reach)
    return near if near.size else np.array([np.argmin(np.abs(distances))])


def measured(
    place: Vector,
    diameter_mm: float,
    geometry: Geometry,
    planes: Sequence[Plane | NDArray[np.int16]],
    lungs: Sequence[NDArray[np.uint8]],
) -> Measured:
    """The nodule of about this diameter at a place in the patient."""
    block = Block.around(place, diameter_mm * MOST + MORE_MM + MARGIN_MM, geometry, planes, lungs)
    mask = _segmented(block, diameter_mm)
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    long_axis, short_axis = axes_of(mask, block.spacing[1:])
    first = tuple(start + own.start for start, own in zip(block.first, box, strict=True))
    volume = float(mask.sum()) * float(np.prod(block.spacing))
    return Measured((first[0], first[1], first[2]), mask[box], long_axis, short_axis, volume)


def _segmented(block: Block, diameter: float) -> Mask:
    """The pixels of the nodule; a ball of the expected size where no border is seen."""
    far = np.linalg.norm(block.offsets, axis=-1)
    sigma = [SMOOTHING_MM / step for step in block.spacing]
    smooth = ndimage.gaussian_filter(block.hu, (min(sigma[0], 0.5), *sigma[1:]))
    core = far <= max(CORE * diameter, far.min() + 0.01)
    parenchyma = smooth[block.lung & (smooth < NO_NODULE_HU) & (far > diameter / 2.0)]
    ground = float(np.median(parenchyma)) if parenchyma.size else PARENCHYMA_HU
    half = (float(np.median(smooth[core])) + ground) / 2.0
    allowed = (block.lung | (far <= AROUND * diameter)) & (far <= MOST * diameter + MORE_MM)
    dense = allowed & (smooth > half)
    mask = _opened(dense, far, diameter, block.spacing)
    return mask if mask.any() else far <= max(diameter / 2.0, far.min() + 0.01)


def _opened(
    dense: Mask, far: NDArray[np.float64], diameter: float, spacing: tuple[float, ...]
) -> Mask:
    """The part near the centre without what is thin beside it."""
    radius = float(np.clip(OPENING * diameter, *OPENING_MM))
    depth = ndimage.distance_transform_edt(np.pad(dense, 1), sampling=spacing)
    depth = depth[1:-1, 1:-1, 1:-1]
    body = _nearest_part(depth > radius, far, diameter)
    if not body.any():
        return _nearest_part(dense, far, diameter)
    reach = ndimage.distance_transform_edt(~body, sampling=spacing)
    return np.asarray(dense & (reach <= radius + min(spacing[1:]) / 2.0))


def _nearest_part(mask: Mask, far: NDArray[np.float64], diameter: float) -> Mask:
    """The component with the most pixels within half the radius; of none, the nearest one."""
    labels, count = ndimage.label(mask)
    if count == 0:
        return mask
    inner = np.bincount(labels[far <= max(diameter / 4.0, far.min() + 0.01)], minlength=count + 1)
    inner[0] = 0
    if inner.any():
        return np.asarray(labels == int(np.argmax(inner)))
    nearest = int(np.argmin(np.where(mask, far, np.inf)))
    return np.asarray((labels == labels.flat[nearest]) & (far.flat[nearest] <= diameter / 2.0))


def axes_of(mask: Mask, pixel_mm: tuple[float, ...]) -> tuple[float, float]:
    """(long, short) axis in mm in the slice where the mask is largest; of several, the longest."""
    areas = mask.sum(axis=(1, 2))
    return max(_axes_in(plane, pixel_mm) for plane in mask[areas == areas.max()])


def _axes_in(plane: Mask, pixel_mm: tuple[float, ...]) -> tuple[float, float]:
    points = np.argwhere(plane)[:, ::-1].astype(np.int32)
    hull = cv2.convexHull(points)[:, 0] * np.array(pixel_mm[::-1])
    between = hull[:, None] - hull[None]
    lengths = np.linalg.norm(between, axis=-1)
    longest = float(lengths.max())
    pixel = float(np.sqrt(np.prod(pixel_mm)))  # an axis reaches to the outer edges of its pixels
    if longest == 0.0:
        return pixel, pixel
    # Of several longest axes the one that is widest across: which comes first, flips decide.
    directions = between[lengths >= longest - SAME_LENGTH_MM] / longest
    across = hull @ np.stack([-directions[:, 1], directions[:, 0]])
    return longest + pixel, min(float(np.ptp(across, axis=0).max()), longest) + pixel


@dataclass(frozen=True)
class Anatomy:
    """Where in the lungs a nodule lies."""

    side: str  # right, left, or "" outside both
    third: str  # upper, middle or lower, by height in its lung; "" where the scan cuts that
    pleura_mm: float  # from its surface to the border of the lung
    carina_mm: float | None

    @property
    def is_juxtapleural(self) -> bool:
        return bool(self.pleura_mm < JUXTAPLEURAL_MM)

    @property
    def words(self) -> str:
        third = f"{self.third} third" if self.third else ""
        pleura = (
            "at the pleura" if self.is_juxtapleural else f"{self.pleura_mm:.0f} mm from the pleura"
        )
        carina = "" if self.carina_mm is None else f"{self.carina_mm:.0f} mm from the carina"
        return ", ".join(filter(None, (third, pleura, carina)))

    def as_record(self) -> dict[str, object]:
        """JSON; `where` is for people."""
        return {
            "where": self.words,
            "third": self.third,
            "pleura_mm": round(self.pleura_mm, 1),
            "juxtapleural": self.is_juxtapleural,
            "carina_mm": None if self.carina_mm is None else round(self.carina_mm),
        }


def anatomy_of(voxel: Vector, diameter_mm: float, lungs: Lungs) -> Anatomy:
    """The place of a nodule; `voxel` is its centre on the working grid."""
    reach = round(diameter_mm / 2.0 + JUXTAPLEURAL_MM + MARGIN_MM)
    block = tuple(
        slice(max(0, round(float(at)) - reach), max(1, round(float(at)) + reach + 1))
        for at in voxel
    )
    labels = lungs.labels[block]
    centre = tuple(
        int(np.clip(round(float(at)) - own.start, 0, size - 1))
        for at, own, size in zip(voxel, block, labels.shape, strict=True)
    )
    side = _side(labels, centre)
    depth = float(ndimage.distance_transform_edt(labels == side)[centre]) if side else 0.0
    carina = None
    if lungs.carina is not None:
        carina = float(np.linalg.norm(np.array(lungs.carina) - voxel))
    third = _third(float(voxel[0]), lungs.labels, side)
    return Anatomy(SITES[side], third, max(0.0, depth - diameter_mm / 2.0), carina)


def _side(labels: Labels, centre: tuple[int, ...]) -> int:
    """The lung that it lies in; outside both, the nearest one in the block."""
    if labels[centre] or not labels.any():
        return int(labels[centre])
    nearest = ndimage.distance_transform_edt(
        labels == 0, return_distances=False, return_indices=True
    )
    return int(labels[tuple(axis[centre] for axis in nearest)])


def _third(z: float, labels: Labels, side: int) -> str:
    """Of a lung that the scan has whole; nothing is said of the height in one that it cuts."""
    planes = np.flatnonzero((labels == side).any(axis=(1, 2))) if side else np.zeros(0)
    if not planes.size or planes[0] == 0 or planes[-1] == len(labels) - 1:
        return ""
    share = (z - planes[0]) / max(1.0, float(np.ptp(planes)))
    return THIRDS[int(np.clip(share * len(THIRDS), 0, len(THIRDS) - 1))]
