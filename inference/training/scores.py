"""Figures of a model that scores slices and patients, with intervals over patients.

Accuracy is no figure here: where nine slices of ten are normal, a model that finds nothing has 0.9.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import default_rng
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

DRAWS = 1000
INTERVAL = (2.5, 97.5)
SPECIFICITIES = (0.9, 0.8)
BINS = 10
STRONGEST = 3  # slices whose mean score is the patient's

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Scored:
    """Probabilities and truth of the slices of several patients."""

    patient: NDArray[np.int64]  # (slices,) number of the patient, 0 and up
    truth: Flags  # (slices,)
    probability: Floats  # (slices,) 0 to 1

    def of(self, chosen: Flags) -> "Scored":
        return Scored(self.patient[chosen], self.truth[chosen], self.probability[chosen])

    def patients(self) -> "Scored":
        """One row a patient: the mean of the highest scores, and whether any slice is positive."""
        numbers = np.unique(self.patient)
        rows = [self.patient == number for number in numbers]
        return Scored(
            numbers,
            np.array([self.truth[row].any() for row in rows]),
            np.array([series_score(self.probability[row]) for row in rows]),
        )


def series_score(probability: Floats) -> float:
    """The score of a series: the mean of its highest slice scores."""
    return float(np.sort(probability)[-STRONGEST:].mean())


def sensitivity_at(scored: Scored, specificity: float) -> float:
    """Share of the positives above what this share of the negatives stays below."""
    threshold = np.quantile(scored.probability[~scored.truth], specificity)
    return float((scored.probability[scored.truth] > threshold).mean())


def calibration_error(scored: Scored) -> float:
    """ECE: mean of |share of positives - mean probability| over ten bins, by their size."""
    bins = np.minimum((scored.probability * BINS).astype(int), BINS - 1)
    total = 0.0
    for number in np.unique(bins):
        row = bins == number
        total += row.sum() * abs(scored.truth[row].mean() - scored.probability[row].mean())
    return float(total / len(bins))


FIGURES: Mapping[str, Callable[[Scored], float]] = {
    "slice AUC": lambda s: float(roc_auc_score(s.truth, s.probability)),
    "average precision": lambda s: float(average_precision_score(s.truth, s.probability)),
    "sensitivity at 90 % specificity": lambda s: sensitivity_at(s, 0.9),
    "patient AUC": lambda s: float(roc_auc_score(s.patients().truth, s.patients().probability)),
    "patient sensitivity at 80 %": lambda s: sensitivity_at(s.patients(), 0.8),
    "patient sensitivity at 90 %": lambda s: sensitivity_at(s.patients(), 0.9),
    "calibration error": calibration_error,
}


@dataclass(frozen=True)
class Figure:
    """A figure and its 95 % interval over draws of patients."""

    value: float
    low: float
    high: float


def figures(scored: Scored, seed: int = 1) -> Mapping[str, Figure]:
    """Every figure with its interval."""
    draws = [_values(draw) for draw in drawn(scored, seed)]
    return {
        name: Figure(value, *np.percentile([draw[name] for draw in draws], INTERVAL).tolist())
        for name, value in _values(scored).items()
    }


def gain(ours: Scored, baseline: Scored, name: str, seed: int = 1) -> Figure:
    """How far a figure lies over the baseline's, both judged on the same draws of patients."""
    measure = FIGURES[name]
    pairs = zip(drawn(ours, seed), drawn(baseline, seed), strict=True)
    differences = [measure(mine) - measure(theirs) for mine, theirs in pairs]
    low, high = np.percentile(differences, INTERVAL)
    return Figure(measure(ours) - measure(baseline), float(low), float(high))


def drawn(scored: Scored, seed: int) -> Sequence[Scored]:
    """Patients drawn with repetition, each draw with both kinds of them."""
    random = default_rng(seed)
    numbers = np.unique(scored.patient)
    rows = {number: np.flatnonzero(scored.patient == number) for number in numbers}
    draws: list[Scored] = []
    while len(draws) < DRAWS:
        names = random.choice(numbers, len(numbers))
        chosen = np.concatenate([rows[name] for name in names])
        again = np.repeat(np.arange(len(names)), [len(rows[name]) for name in names])
        draw = Scored(again, scored.truth[chosen], scored.probability[chosen])
        if 0 < draw.patients().truth.sum() < len(names):
            draws.append(draw)
    return draws


def _values(scored: Scored) -> dict[str, float]:
    return {name: measure(scored) for name, measure in FIGURES.items()}
