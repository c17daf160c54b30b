"""The gate: the trust that a series puts in the network, its calibration, and the guards."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from inference.errors import ModelLoadError
from inference.model import Measured, Step
from inference.models.classical import Neighbourhood, envelope
from inference.volume import Geometry, Plane

# In this order: the network's low frequencies stay near those of the best classical candidate;
# the gate; what clipping hid of metal comes back; no value outside what A and C hold nearby.
# Padding and stored values follow where the slice is written. Nothing is ever added at random.

# What the network sees. Metal above it is added again by linear interpolation of the excess.
LEAST_HU, MOST_HU = -1024.0, 3071.0
# The low frequencies are the mean over some 20 pixels around; the network is drawn to the
# candidate's by this much at most, for on heads the network's own are often the better.
SMOOTH_PIXELS = 20.0
SMOOTH_REDUCTION = 4  # they are found on a picture this much smaller
MOST_CORRECTION_HU = 2.0

LINEAR, CUBIC, DIS = "linear", "cubic", "dis"
CLASSICAL = (LINEAR, CUBIC, DIS)

# What files of earlier versions lack, and that it did nothing then.
LATER = {"noise": 0.0, "shared": 0.0}
DIGITS = 6  # a figure has no more that mean anything, and files stay comparable
MOST_SURVEYS, LEAST_SURVEYS = 16, 3
# Below it too few slices have two neighbours: prior knowledge alone serves.
LEAST_SLICES = 5
# Each survey costs as much as a generated slice: at most one for so many of them.
SLICES_A_SURVEY = 4
# Errors are compared after this much; the rest is noise in air, or metal.
LOW_HU, HIGH_HU = -1024.0, 2048.0
LEAST_SQUARE = 1.0  # HU squared; two equal slices would be infinitely good
# How many surveys at a distance of nothing it takes to outweigh the series as a whole.
LOCAL_STRENGTH = 0.5
LEAST_REACH_MM = 5.0


@dataclass(frozen=True)
class SeriesGate:
    """The trust of a series in the network, and its best classical candidate."""

    weight: float  # 0: the flow blend, 1: the network
    classical: str
    surveyed: int  # received slices that were left out and predicted; 0 = prior knowledge alone


def candidate(
    name: str, planes: NDArray[np.float32], cubic: NDArray[np.float32], t: float
) -> Plane:
    """A classical candidate at `t` from P, A, C, N and both warps, (6, rows, columns)."""
    if name == CUBIC:
        curved: Plane = cubic[0] * planes[0]
        for place in (1, 2, 3):
            curved += cubic[place] * planes[place]
        return curved
    first = {LINEAR: 1, DIS: 4}[name]
    blend = cv2.addWeighted(planes[first], 1.0 - t, planes[first + 1], t, 0.0)
    return np.asarray(blend, np.float32)


def with_low_frequencies_of(candidate: Plane, plane: Plane) -> Plane:
    """The plane, moved by at most 2 HU so that its smooth part nears that of the candidate."""
    return plane - np.clip(_smooth(plane - candidate), -MOST_CORRECTION_HU, MOST_CORRECTION_HU)


def _smooth(plane: Plane) -> Plane:
    rows, columns = plane.shape
    small = (max(1, columns // SMOOTH_REDUCTION), max(1, rows // SMOOTH_REDUCTION))
    reduced = cv2.resize(plane, small, interpolation=cv2.INTER_AREA)
    blurred = cv2.GaussianBlur(
        reduced, (0, 0), SMOOTH_PIXELS / SMOOTH_REDUCTION, borderType=cv2.BORDER_REPLICATE
    )
    whole = cv2.resize(blurred, (columns, rows), interpolation=cv2.INTER_LINEAR)
    return np.asarray(whole, np.float32)


def gated(flow_blend: Plane, plane: Plane, weight: float) -> Plane:
    """The share of the network that the series has earned, the rest from the flow blend."""
    return plane if weight == 1.0 else flow_blend + np.float32(weight) * (plane - flow_blend)


def bounded(near: Neighbourhood, t: float, plane: Plane) -> Plane:
    """The plane with what clipping hid of metal, kept inside what A and C hold nearby."""
    for place, share in ((0, 1.0 - t), (1, t)):
        received = near.planes[place][near.extent]
        if received.max() > MOST_HU or received.min() < LEAST_HU:
            plane = plane + np.float32(share) * _excess(near.aligned(place, t))
    return np.clip(plane, *envelope(near, t))


def _excess(plane: Plane) -> Plane:
    return plane - np.clip(plane, LEAST_HU, MOST_HU)


# The figures lie beside the weights as JSON, made by `midslice calibrate` and never by hand; they
# name the weights that they belong to, and count for no others.


@dataclass(frozen=True)
class Calibration:
    """The prior of the gate, and how a network's scale becomes an expected error.

    The expected error of a slice in HU is `factor` x scale^`power` x (4 t (1 - t))^p x
    (noise / 20 HU)^`noise` x e^(`overlap` x thickness / gap), times what the surveys of its series
    say. The scale is the network's own, mean over the body, the noise that of A and C; p is `place`
    + `shared` x thickness / gap, for a thick slice near A has most of its noise from A.
    """

    weight: float = 1.0  # the best mixture of network and flow blend, 0 to 1
    apart: float = 0.1  # how far those two lie apart, as a share of the flow blend's error
    strength: float = 4.0  # how many surveys this prior knowledge counts for
    classical: str = DIS  # the best classical candidate
    factor: float = 1.0
    power: float = 1.0
    place: float = 0.0
    overlap: float = 0.0
    shared: float = 0.0
    noise: float = 0.0
    doubled: float = 1.0  # expected / true error at a gap over the same at twice that gap
    interval: float = 2.3  # times the expected error of a pixel: 90 % of the errors are below
    is_fitted: bool = False

    @property
    def digest(self) -> str:
        """Changes with every figure: calibration changes results as weights do."""
        values = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(values.encode("ascii")).hexdigest()[:8]


def calibration_path(weights: Path) -> Path:
    """The file beside the weights that holds their calibration."""
    return weights.with_suffix(".json")


def load_calibration(path: Path, weights_sha256: str) -> Calibration:
    """The calibration of these weights; where there is none, one that promises nothing.

    A file that is no calibration raises ModelLoadError; one of other weights is passed over.
    """
    if not path.exists():
        return Calibration()
    try:
        stored = json.loads(path.read_text(encoding="ascii"))
        if stored["weights_sha256"] != weights_sha256:
            return Calibration()
        return _from_json({**LATER, **stored["figures"]})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelLoadError(f"{path}: not a calibration: {error}") from error


def _from_json(figures: Mapping[str, object]) -> Calibration:
    wanted = {field.name for field in fields(Calibration)} - {"is_fitted"}
    if set(figures) != wanted:
        raise ValueError(f"figures are {sorted(figures)}, not {sorted(wanted)}")
    if figures["classical"] not in CLASSICAL:
        raise ValueError(f"classical = {figures['classical']!r}: allowed is one of {CLASSICAL}")
    numbers = {name: float(str(value)) for name, value in figures.items() if name != "classical"}
    return Calibration(classical=str(figures["classical"]), is_fitted=True, **numbers)


def save_calibration(
    calibration: Calibration, path: Path, weights_sha256: str, provenance: Mapping[str, object]
) -> None:
    """Write the figures with where they come from; the same input gives the same bytes."""
    figures = asdict(calibration)
    del figures["is_fitted"]
    rounded = {
        name: round(value, DIGITS) if isinstance(value, float) else value
        for name, value in figures.items()
    }
    whole = {"weights_sha256": weights_sha256, "figures": rounded, "provenance": provenance}
    path.write_text(json.dumps(whole, indent=1) + "\n", encoding="ascii")


# A sample of the received slices is predicted from their neighbours, across twice the gap, and
# compared with what was received. The weight that would have been best for them, drawn towards
# what training found on patients it had not seen, decides how the network and the flow blend are
# mixed; along z the surveys near a slice say how far that holds there: what a network fails on
# (the top of a head, for one that has seen chests alone) is a part of a series, seldom all of it.


def plan_surveys(geometry: Geometry, gaps: Sequence[Step]) -> tuple[Step, ...]:
    """Survey steps spread evenly over the part of the stack that is filled."""
    if len(geometry) < LEAST_SLICES:
        return ()
    near = {index for step in gaps for index in step.needs}
    inner = [index for index in range(1, len(geometry) - 1) if index in near]
    generated = sum(len(step.fractions) for step in gaps)
    count = min(MOST_SURVEYS, max(LEAST_SURVEYS, generated // SLICES_A_SURVEY), len(inner))
    if count < LEAST_SURVEYS:
        return ()
    places = np.linspace(0, len(inner) - 1, count).round().astype(int)
    return tuple(
        Step(tuple(range(max(0, index - 2), min(len(geometry), index + 3))), survey=index)
        for index in (inner[place] for place in places)
    )


def errors_of(truth: Plane, net: Plane, classical: dict[str, Plane]) -> dict[str, float]:
    """Mean squared errors, and what decides the best mixture of the network and the flow blend.

    The squared error of DIS + g (net - DIS) is `square_dis` - 2 g `along` + g^2 `apart`.
    """
    true = np.clip(truth, LOW_HU, HIGH_HU)
    shown = {name: np.clip(plane, LOW_HU, HIGH_HU) for name, plane in classical.items()}
    errors = {f"square_{name}": _mean_square(plane - true) for name, plane in shown.items()}
    step = np.clip(net, LOW_HU, HIGH_HU) - shown[DIS]
    return errors | {
        "square_net": _mean_square(step + shown[DIS] - true),
        "along": float(np.mean(step * (true - shown[DIS]), dtype=np.float64)),
        "apart": _mean_square(step),
    }


def _mean_square(plane: Plane) -> float:
    return float(np.mean(np.square(plane), dtype=np.float64))


def decided(surveyed: Sequence[Measured], prior: Calibration) -> SeriesGate:
    """The gate of a series; each survey counts by its share of the flow blend's error."""
    if not surveyed:
        return SeriesGate(prior.weight, prior.classical, 0)
    squares = [max(measured["square_dis"], LEAST_SQUARE) for measured in surveyed]
    along = sum(m["along"] / square for m, square in zip(surveyed, squares, strict=True))
    apart = sum(m["apart"] / square for m, square in zip(surveyed, squares, strict=True))
    strength = prior.strength * prior.apart
    total = apart + strength
    weight = (along + strength * prior.weight) / total if total > 0.0 else prior.weight
    return SeriesGate(
        weight=float(np.clip(weight, 0.0, 1.0)),
        classical=min(CLASSICAL, key=lambda name: _typical(surveyed, f"square_{name}")),
        surveyed=len(surveyed),
    )


def at_height(surveyed: Sequence[Measured], series: SeriesGate, at_mm: float) -> SeriesGate:
    """The gate at one height: the series' weight, as far as the surveys near it agree."""
    if not surveyed:
        return series
    squares = np.array([max(m["square_dis"], LEAST_SQUARE) for m in surveyed])
    along = np.array([m["along"] for m in surveyed]) / squares
    apart = np.array([m["apart"] for m in surveyed]) / squares
    near = nearness([m["at_mm"] for m in surveyed], at_mm)
    held = LOCAL_STRENGTH * float(apart.mean())
    total = float(near @ apart) + held
    if total == 0.0:
        return series
    weight = (float(near @ along) + held * series.weight) / total
    # Rounded: with z reversed the sums come in another order, and the slice shall be the same.
    return replace(series, weight=round(float(np.clip(weight, 0.0, 1.0)), 6))


def nearness(heights_mm: Sequence[float], at_mm: float) -> NDArray[np.float64]:
    """The weight of each survey at a height: 1 at its own, falling over the way to the next."""
    heights = np.array(heights_mm)
    reach = max(LEAST_REACH_MM, float(np.ptp(heights)) / max(1, len(heights) - 1))
    return np.asarray(np.exp(-0.5 * np.square((heights - at_mm) / reach)))


def mixed_error(surveyed: Sequence[Measured], weight: float, at_mm: float) -> float:
    """The error of the mixture over that of the network alone, in the surveys near a height."""
    squares = [
        m["square_dis"] - 2.0 * weight * m["along"] + weight**2 * m["apart"] for m in surveyed
    ]
    return _ratio(surveyed, squares, at_mm)


def classical_error(surveyed: Sequence[Measured], classical: str, at_mm: float) -> float:
    """The error of a classical candidate over that of the network, in the surveys near a height."""
    return _ratio(surveyed, [m[f"square_{classical}"] for m in surveyed], at_mm)


def _ratio(surveyed: Sequence[Measured], squares: Sequence[float], at_mm: float) -> float:
    """A typical error over the network's; the nearer surveys count most, all of them somewhat."""
    if not surveyed:
        return 1.0
    least = LEAST_SQUARE
    logs = np.array(
        [
            np.log(max(square, least)) - np.log(max(m["square_net"], least))
            for square, m in zip(squares, surveyed, strict=True)
        ]
    )
    near = nearness([m["at_mm"] for m in surveyed], at_mm)
    mean = (near @ logs + LOCAL_STRENGTH * logs.mean()) / (near.sum() + LOCAL_STRENGTH)
    return float(np.exp(0.5 * mean))


def _typical(surveyed: Sequence[Measured], key: str) -> float:
    """The geometric mean: it is decibels that are compared."""
    return float(np.mean([np.log(max(measured[key], LEAST_SQUARE)) for measured in surveyed]))
