"""How good the generator is on thin series whose slices are left out and predicted again.

A series is thinned by a factor (`sub-sampled`), or first averaged to slices as thick as their gap
(`slab`), and a seeded list of left-out slices is predicted by every method. All gains are over
shift-corrected linear interpolation of the same targets; whole slices, window -1024 to 2048 HU.
"""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from inference.model import Limits, Model, Step, Window
from inference.models import classical
from inference.models.classical import Neighbourhood
from inference.models.gaps import LEAST_FACTOR, MOST_FACTOR
from inference.models.midslice import Midslice
from inference.training.data import Patient, load_patients
from inference.training.metrics import SliceFigures, figures_of
from inference.volume import Geometry, Plane

Mode = Literal["sub-sampled", "slab"]
Method = Callable[[Step, Window], Sequence[Plane]]

SEED = 2026
TARGETS = 20  # slices a cell
LINEAR, DIS = "linear", "dis"


@dataclass(frozen=True)
class Figures:
    """One method on one cell; means over the cell's slices."""

    psnr_db: float
    ssim: float
    body_mae_hu: float
    body_bias_hu: float
    over_linear_db: float
    worst_over_linear_db: float
    over_dis_db: float
    worst_over_dis_db: float
    below_linear: float  # share of slices
    below_dis: float
    ms_per_slice: float


@dataclass(frozen=True)
class Cell:
    """One patient at one factor."""

    patient: str
    mode: Mode
    factor: int
    gap_mm: float
    targets: tuple[int, ...]  # indices of the predicted slices in the thin series
    methods: Mapping[str, Figures]


@dataclass(frozen=True)
class Result:
    """What `evaluate` found, and with which model."""

    model: str
    version: str
    weights_sha256: str
    cells: tuple[Cell, ...]

    def as_json(self) -> dict[str, object]:
        """Plain values alone, for json.dumps."""
        return asdict(self)


@dataclass(frozen=True)
class Progress:
    """Slices predicted so far, of all."""

    done: int
    total: int
    patient: str
    factor: int


@dataclass(frozen=True)
class Gate:
    """A figure that the model must reach in every cell whose gap lies in the range."""

    least_gap_mm: float
    most_gap_mm: float
    least_over_linear_db: float


# At narrower gaps noise, which no interpolation can know, is most of what is left to gain.
GATES = (
    Gate(0.0, 3.5, 0.6),
    Gate(3.5, 12.0, 1.2),
)


def evaluate(
    data: Path,
    factors: Sequence[int] = (2, 4),
    *,
    model: Model | None = None,
    mode: Mode = "sub-sampled",
    targets: int = TARGETS,
    limits: Limits | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Result:
    """Evaluate on every thin series of a folder (of its `ct-validate`, where it has one)."""
    wrong = [factor for factor in factors if not LEAST_FACTOR <= factor <= MOST_FACTOR]
    if wrong or not factors:
        raise ValueError(f"factors {wrong}: allowed are {LEAST_FACTOR} to {MOST_FACTOR}")
    model = model or Midslice()
    methods = methods_of(model, limits or Limits())
    patients = load_patients(data, "ct-validate")
    cells = [
        (
            patient,
            factor,
            drawn_targets(patient.name, len(_view(patient, factor, mode)), factor, targets),
        )
        for patient in patients
        for factor in factors
    ]
    total, done, found = sum(len(drawn) for _, _, drawn in cells), 0, []
    for patient, factor, drawn in cells:
        if drawn:
            found.append(_cell(patient, mode, factor, drawn, methods))
        done += len(drawn)
        progress(Progress(done, total, patient.name, factor))
    return Result(model.name, model.version, model.weights_sha256, tuple(found))


def methods_of(model: Model, limits: Limits) -> dict[str, Method]:
    """Nearest, linear, cubic and DIS beside the model, under its name."""
    return {
        "nearest": _classical(classical.nearest),
        LINEAR: _classical(classical.linear),
        "cubic": _classical(classical.cubic),
        DIS: _classical(classical.dis),
        model.name: lambda step, window: model.run(step, window, limits).planes,
    }


def _classical(interpolate: Callable[[Neighbourhood, float], Plane]) -> Method:
    def method(step: Step, window: Window) -> Sequence[Plane]:
        near = Neighbourhood.of(step, window)  # anew: no method profits from another's flow
        return [interpolate(near, t) for t in step.fractions]

    return method


def drawn_targets(patient: str, slices: int, factor: int, count: int) -> tuple[int, ...]:
    """Which left-out slices are predicted: the same ones on every machine."""
    last = (slices - 1) // factor * factor
    left_out = [index for index in range(last) if index % factor]
    digest = hashlib.sha256(f"{SEED}/{patient}/{slices}/{factor}".encode()).digest()
    random = np.random.default_rng(int.from_bytes(digest[:8], "big"))
    drawn = random.permutation(left_out)[:count]
    return tuple(sorted(int(index) for index in drawn))


def _view(patient: Patient, factor: int, mode: Mode) -> range:
    """The slices of the thin series, or of what is left of it after averaging."""
    return range(len(patient) - (factor - 1 if mode == "slab" else 0))


def _plane(patient: Patient, index: int, factor: int, mode: Mode) -> Plane:
    if mode == "sub-sampled":
        return patient.plane(index)
    return np.asarray(patient.hu[index : index + factor].mean(axis=0, dtype=np.float32))


def _cell(
    patient: Patient,
    mode: Mode,
    factor: int,
    targets: tuple[int, ...],
    methods: Mapping[str, Method],
) -> Cell:
    received = range(0, len(_view(patient, factor, mode)), factor)
    geometry = _thinned(patient, factor, received, mode)
    found: dict[str, list[SliceFigures]] = {name: [] for name in methods}
    seconds = dict.fromkeys(methods, 0.0)
    for gap in sorted({target // factor for target in targets}):
        here = [target for target in targets if target // factor == gap]
        needs = tuple(i for i in range(gap - 1, gap + 3) if 0 <= i < len(received))
        step = Step(needs, gap, tuple(target % factor / factor for target in here))
        slices = {i: _plane(patient, received[i], factor, mode) for i in needs}
        truths = [_plane(patient, target, factor, mode) for target in here]
        for name, method in methods.items():
            started = time.perf_counter()
            planes = method(step, Window(geometry, slices))
            seconds[name] += time.perf_counter() - started
            found[name] += [figures_of(p, true) for p, true in zip(planes, truths, strict=True)]
    figures = {
        name: _figures(slices_, found[LINEAR], found[DIS], 1000.0 * seconds[name] / len(targets))
        for name, slices_ in found.items()
    }
    gap_mm = round(patient.spacing_mm * factor, 3)
    return Cell(patient.name, mode, factor, gap_mm, targets, figures)


def _thinned(patient: Patient, factor: int, received: range, mode: Mode) -> Geometry:
    own = patient.geometry
    thickness = own.thickness_mm or patient.spacing_mm
    return Geometry(
        # All slabs are moved by the same half thickness, which no method can see.
        positions=own.positions[list(received)],
        orientation=own.orientation,
        pixel_spacing=own.pixel_spacing,
        rows=own.rows,
        columns=own.columns,
        thickness_mm=thickness + (factor - 1) * patient.spacing_mm * (mode == "slab"),
    )


def _figures(
    slices: Sequence[SliceFigures],
    linear: Sequence[SliceFigures],
    dis: Sequence[SliceFigures],
    ms_per_slice: float,
) -> Figures:
    psnr = np.array([s.psnr_db for s in slices])
    over_linear = psnr - [s.psnr_db for s in linear]
    over_dis = psnr - [s.psnr_db for s in dis]
    return Figures(
        psnr_db=float(psnr.mean()),
        ssim=float(np.mean([s.ssim for s in slices])),
        body_mae_hu=float(np.mean([s.body_mae_hu for s in slices])),
        body_bias_hu=float(np.mean([s.body_bias_hu for s in slices])),
        over_linear_db=float(over_linear.mean()),
        worst_over_linear_db=float(over_linear.min()),
        over_dis_db=float(over_dis.mean()),
        worst_over_dis_db=float(over_dis.min()),
        below_linear=float((over_linear < 0.0).mean()),
        below_dis=float((over_dis < 0.0).mean()),
        ms_per_slice=ms_per_slice,
    )


def gates(result: Result) -> list[str]:
    """What the model missed, one sentence each; empty where every figure is reached."""
    judged = [
        (cell, gate)
        for cell in result.cells
        for gate in GATES
        if gate.least_gap_mm <= cell.gap_mm < gate.most_gap_mm
    ]
    if not judged:
        return ["no cell has a gap for which a figure is set: nothing was judged"]
    return [
        f"{cell.patient} {cell.factor}x ({cell.mode}, gap {cell.gap_mm:g} mm): "
        f"{cell.methods[result.model].over_linear_db:+.2f} dB over linear, "
        f"at least {gate.least_over_linear_db:+.2f} dB is due"
        for cell, gate in judged
        if cell.methods[result.model].over_linear_db < gate.least_over_linear_db
    ]
