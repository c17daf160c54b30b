"""Fits what the gate and the confidence of the generator know beforehand, on patients held out.

Each patient is predicted with the weights that were trained without it: its left-out slices at the
gap itself, and received slices at twice the gap as the surveys of a job do. From the pairs comes
how a network's scale becomes an error, how surveys speak for the gap, and how far the network is
to be trusted before any survey. Where a fold is missing, the shipped weights stand in and the
provenance says so.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from inference.model import Limits, Measured, Model
from inference.models import gate
from inference.models.confidence import USUAL_NOISE_HU, Expectation, PlaceInGap, law_hu
from inference.models.gate import CLASSICAL, Calibration, calibration_path, save_calibration
from inference.models.midslice import SHIPPED_WEIGHTS, Midslice
from inference.training.data import Patient, load_patients
from inference.training.gates import FOLDS, fold_of
from inference.training.leave_out import LeaveOutStack, Mode, TargetList, leave_out
from inference.training.metrics import spearman

FACTORS = (2, 4, 8)
SLAB_FACTORS = (2, 4)  # also averaged to slices as thick as their gap
MOST_GAP_MM = 12.0  # nothing wider is trained on
STRENGTHS = (1.0, 2.0, 4.0, 8.0, 16.0)  # tried for the gate's prior
RIDGE = 1e-2  # keeps a figure that the data do not tell near nothing
PASSES = 4  # of least squares; after each, cells count by how well they obeyed
LEAST_SCATTER = 0.002  # of log error; no cell counts for more than one that obeys to some 4 percent


@dataclass(frozen=True, eq=False)
class CalibrationCell:
    """One patient at one factor: measurements at the gap, and of surveys at twice it."""

    patient: str
    factor: int
    is_slab: bool  # averaged to slices as thick as their gap
    gap_mm: float
    is_held_out: bool  # from the weights that predicted it
    targets: tuple[Measured, ...]
    surveys: tuple[Measured, ...]


@dataclass(frozen=True)
class FittedCell:
    """A cell's figures, with constants that were fitted on the other patients."""

    patient: str
    factor: int
    slab: bool
    gap_mm: float
    held_out: bool
    mean_error_hu: float
    expected_over_true: float
    rank_correlation: float  # Spearman, of expected and true error of the slices
    interval_over_true: float  # width of the 90 % interval; 1 covers 90 %
    network_weight: float


Report = Callable[[int, int, str], None]  # cells measured so far, of all, and the cell


def calibrate(
    data: Path,
    *,
    weights: Path | None = None,
    folds: Path | None = None,
    progress: Report = lambda *_: None,
) -> tuple[Calibration, tuple[FittedCell, ...]]:
    """Fit on the `ct-train` of a folder and write the figures beside the weights and each fold.

    Without weights those of the product, without folds the folder that training writes them to.
    """
    weights, folds = weights or SHIPPED_WEIGHTS, folds or FOLDS
    cells = measured_cells(data, weights, folds, progress)
    whole = fit(cells)
    fitted_cells = tuple(fitted(cell, fit(_without(cells, cell.patient))) for cell in cells)
    for patient in dict.fromkeys(cell.patient for cell in cells):
        path, rest = fold_of(folds, patient), _without(cells, patient)
        if path.is_file():
            _save(fit(rest), path, {"patients": _names(rest)})
    rows = [vars(cell) for cell in fitted_cells]
    _save(whole, weights, {"patients": _names(cells), "cells": rows})
    return whole, fitted_cells


def measured_cells(
    data: Path, weights: Path, folds: Path, progress: Report
) -> tuple[CalibrationCell, ...]:
    """Every patient at every factor that leaves gaps of at most 12 mm and slices to survey."""
    wanted = [
        (patient, factor, is_slab)
        for patient in load_patients(data, "ct-train")
        for is_slab, factors in ((False, FACTORS), (True, SLAB_FACTORS))
        for factor in factors
        if patient.spacing_mm * factor <= MOST_GAP_MM
        and (len(patient) - factor * is_slab) // factor >= gate.LEAST_SLICES
    ]
    cells = []
    for done, (patient, factor, is_slab) in enumerate(wanted):
        progress(done, len(wanted), f"{patient.name} {factor}x")
        fold = fold_of(folds, patient.name)
        held_out = fold.is_file()
        model = Midslice(fold if held_out else weights)
        cells.append(measured_cell(patient, factor, model, is_slab=is_slab, is_held_out=held_out))
    return tuple(cells)


def measured_cell(
    patient: Patient, factor: int, model: Model, *, is_slab: bool, is_held_out: bool
) -> CalibrationCell:
    """Leave slices out as the evaluation does, and received ones as the surveys of a job do."""
    mode: Mode = "slab" if is_slab else "sub-sampled"
    (stack,) = leave_out(patient.thin(), factor, mode, TargetList())
    inner = stack.received[1:-1]
    count = min(gate.MOST_SURVEYS, len(inner))
    chosen = [inner[i] for i in np.linspace(0, len(inner) - 1, count).round().astype(int)]
    return CalibrationCell(
        patient=patient.name,
        factor=factor,
        is_slab=is_slab,
        gap_mm=round(patient.spacing_mm * factor, 3),
        is_held_out=is_held_out,
        targets=tuple(_measured(stack, model, target.index) for target in stack.targets),
        surveys=tuple(_measured(stack, model, index) for index in chosen),
    )


def _measured(stack: LeaveOutStack, model: Model, index: int) -> Measured:
    measured = model.run(*stack.survey(index), Limits()).measured
    return {**measured, "at_mm": float(stack.thin.geometry.distances_mm[index])}


def fit(cells: Sequence[CalibrationCell]) -> Calibration:
    """The figures that serve these cells best; each cell counts the same."""
    own = _error_law(cells)
    at_gap = [_mean_log(cell.targets, own) for cell in cells]
    at_double = [_mean_log(cell.surveys, own) for cell in cells]
    figures = replace(
        own,
        doubled=float(np.exp(np.mean(np.subtract(at_gap, at_double)))),
        interval=float(np.exp(_mean_of(cells, lambda m: float(np.log(m["width"]))))),
        weight=float(np.clip(np.mean([_best_weight(cell.targets) for cell in cells]), 0.0, 1.0)),
        apart=_mean_of(cells, lambda m: m["apart"] / max(m["square_dis"], gate.LEAST_SQUARE)),
        classical=min(
            CLASSICAL,
            key=lambda name: _mean_of(
                cells, lambda m: float(np.log(max(m[f"square_{name}"], gate.LEAST_SQUARE)))
            ),
        ),
        is_fitted=True,
    )
    return replace(
        figures, strength=min(STRENGTHS, key=lambda s: _loss(cells, replace(figures, strength=s)))
    )


def _error_law(cells: Sequence[CalibrationCell]) -> Calibration:
    """Least squares of log error over what is known of a slice (see `Calibration`).

    A cell counts by how well it obeys the law: among a head's slices errors differ tenfold for
    reasons of their own, which would drown what the slices of a chest say.
    """
    matrices = [np.array([_terms(m) for m in (*c.targets, *c.surveys)]) for c in cells]
    logs = [np.log([m["true_hu"] for m in (*c.targets, *c.surveys)]) for c in cells]
    ridge = np.sqrt(RIDGE) * np.diag([0.0, *[1.0] * (matrices[0].shape[1] - 1)])
    counts = np.ones(len(cells))
    law = np.zeros(len(ridge))
    for _ in range(PASSES):
        roots = [np.sqrt(count / len(log)) for count, log in zip(counts, logs, strict=True)]
        left = [root * matrix for root, matrix in zip(roots, matrices, strict=True)]
        right = [root * log for root, log in zip(roots, logs, strict=True)]
        # The ridge draws the power of the scale to 1, all others to 0.
        system = np.concatenate([*left, ridge]), np.concatenate([*right, ridge[1]])
        law = np.linalg.lstsq(*system, rcond=None)[0]
        scatter = [
            np.mean(np.square(log - matrix @ law))
            for log, matrix in zip(logs, matrices, strict=True)
        ]
        counts = 1.0 / (np.array(scatter) + LEAST_SCATTER)
        counts /= counts.mean()
    constant, power, place, overlap, shared, noise = map(float, law)
    return Calibration(
        factor=float(np.exp(constant)),
        power=power,
        place=place,
        overlap=overlap,
        shared=shared,
        noise=noise,
    )


def _terms(measured: Measured) -> list[float]:
    """The terms of `Calibration`'s law, whose sum is the logarithm of a slice's error."""
    place = float(np.log(4.0 * measured["t"] * (1.0 - measured["t"])))
    noise = float(np.log(measured["noise_hu"] / USUAL_NOISE_HU))
    overlap = measured["overlap"]
    return [1.0, float(np.log(measured["scale_hu"])), place, overlap, overlap * place, noise]


def _own(measured: Measured, calibration: Calibration) -> float:
    place = PlaceInGap(measured["t"], measured["overlap"], measured["noise_hu"])
    return law_hu(measured["scale_hu"], place, calibration)


def _mean_log(measures: Iterable[Measured], calibration: Calibration) -> float:
    return float(np.mean([np.log(m["true_hu"] / _own(m, calibration)) for m in measures]))


def _mean_of(cells: Sequence[CalibrationCell], value: Callable[[Measured], float]) -> float:
    return float(np.mean([np.mean([value(m) for m in cell.targets]) for cell in cells]))


def _best_weight(measures: Sequence[Measured]) -> float:
    squares = [max(m["square_dis"], gate.LEAST_SQUARE) for m in measures]
    along = sum(m["along"] / s for m, s in zip(measures, squares, strict=True))
    apart = sum(m["apart"] / s for m, s in zip(measures, squares, strict=True))
    return along / apart if apart > 0.0 else 1.0


def _loss(cells: Sequence[CalibrationCell], calibration: Calibration) -> float:
    """Mean log squared error of the mixtures that surveys choose for slices nobody knows."""
    losses = []
    for cell in cells:
        series = gate.decided(cell.surveys, calibration)
        weights = [gate.at_height(cell.surveys, series, m["at_mm"]).weight for m in cell.targets]
        squares = [
            m["square_dis"] - 2 * weight * m["along"] + weight**2 * m["apart"]
            for m, weight in zip(cell.targets, weights, strict=True)
        ]
        losses.append(np.mean(np.log(np.maximum(squares, gate.LEAST_SQUARE))))
    return float(np.mean(losses))


def fitted(cell: CalibrationCell, calibration: Calibration) -> FittedCell:
    """Compare what a calibration and the cell's own surveys foretell with the cell's targets."""
    weight = gate.decided(cell.surveys, calibration).weight
    surveys = [{**m, "expected_hu": _own(m, calibration)} for m in cell.surveys]
    expectation = Expectation.of(surveys, calibration)
    expected = np.array(
        [expectation.error_hu(_own(m, calibration), m["at_mm"]) for m in cell.targets]
    )
    true = np.array([m["true_hu"] for m in cell.targets])
    widths = np.array([m["width"] for m in cell.targets])
    return FittedCell(
        patient=cell.patient,
        factor=cell.factor,
        slab=cell.is_slab,
        gap_mm=cell.gap_mm,
        held_out=cell.is_held_out,
        mean_error_hu=round(float(true.mean()), 2),
        expected_over_true=round(float(expected.mean() / true.mean()), 3),
        rank_correlation=round(spearman(expected, true) or 0.0, 3),
        interval_over_true=round(
            float(np.mean(expectation.interval * expected) / np.mean(widths * true)), 3
        ),
        network_weight=round(weight, 3),
    )


def _without(cells: Sequence[CalibrationCell], patient: str) -> tuple[CalibrationCell, ...]:
    """The cells of the others; of all where there is one patient alone."""
    return tuple(cell for cell in cells if cell.patient != patient) or tuple(cells)


def _names(cells: Sequence[CalibrationCell]) -> list[str]:
    return list(dict.fromkeys(cell.patient for cell in cells))


def _save(calibration: Calibration, weights: Path, provenance: Mapping[str, object]) -> None:
    whole = {"command": "midslice calibrate", "version": Midslice.version, **provenance}
    sha256 = Midslice(weights).weights_sha256
    save_calibration(calibration, calibration_path(weights), sha256, whole)
