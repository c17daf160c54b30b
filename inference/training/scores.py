"""Figures of a model that scores slices and patients, with intervals over patients.

Accuracy is no figure here: where nine slices of ten are normal, a model that finds nothing has 0.9.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
from numpy.random import default_rng
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.stats import rankdata

from inference.models.haemorrhage.haemorrhage import Scale, series_logit
from inference.training.charts import Points
from inference.training.data import NoSeries

DRAWS = 1000
INTERVAL = (2.5, 97.5)
BINS = 10
SLICE_SPECIFICITY, SERIES_SPECIFICITY = 0.9, 0.8  # of the thresholds

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Numbers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Scored:
    """Scores and truth of the slices of several patients.

    Order is judged by logits, for which nothing is fitted; probabilities are judged as such.
    """

    patient: Numbers  # (slices,) number of the patient
    truth: Flags  # (slices,)
    logit: Floats  # (slices,)
    series_logit: Floats  # (slices,) the same for all slices of a patient
    probability: Floats  # (slices,) 0 to 1
    series: Floats  # (slices,) 0 to 1, the same for all slices of a patient
    high: Flags  # (slices,) at or above the threshold of slices
    present: Flags  # (slices,) the series is at or above its own, the same for all of a patient

    def of(self, chosen: Flags | NDArray[np.int64]) -> "Scored":
        return Scored(*(getattr(self, column.name)[chosen] for column in fields(self)))

    @cached_property
    def patients(self) -> "Scored":
        """One row a patient: its series score, and whether any slice is positive."""
        numbers, first, place = np.unique(self.patient, return_index=True, return_inverse=True)
        truth = np.bincount(place, weights=self.truth) > 0
        logit, score = self.series_logit[first], self.series[first]
        present = self.present[first]
        return Scored(numbers, truth, logit, logit, score, score, present, present)


def auc(scored: Scored) -> float:
    """Area under the ROC curve: the share of pairs in the right order; ties count half."""
    ranks = rankdata(scored.logit)
    positives = int(scored.truth.sum())
    ordered_pairs = ranks[scored.truth].sum() - positives * (positives + 1) / 2.0
    return float(ordered_pairs / (positives * (len(ranks) - positives)))


def average_precision(scored: Scored) -> float:
    """Area under the steps of precision over recall; equal scores are one step."""
    recall, precision = (np.array(axis) for axis in zip(*steps(scored), strict=True))
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def steps(scored: Scored) -> Points:
    """(recall, precision) at each distinct score, from the highest down."""
    order = np.argsort(-scored.logit, kind="stable")
    score, truth = scored.logit[order], scored.truth[order]
    last = np.append(score[1:] != score[:-1], True)
    hits = np.cumsum(truth)[last]
    chosen = np.flatnonzero(last) + 1
    return [(float(hit / truth.sum()), float(hit / n)) for hit, n in zip(hits, chosen, strict=True)]


def sensitivity_at(scored: Scored, specificity: float) -> float:
    """Share of the positives above what this share of the negatives stays below."""
    threshold = np.quantile(scored.logit[~scored.truth], specificity)
    return float((scored.logit[scored.truth] > threshold).mean())


def calibration_error(scored: Scored) -> float:
    """ECE: mean of |share of positives - mean probability| over ten bins, by their size."""
    bins = _bins(scored)
    counts = np.bincount(bins, minlength=BINS)
    off = np.bincount(bins, scored.truth - scored.probability, BINS)
    return float(np.abs(off).sum() / counts.sum())


def reliability(scored: Scored) -> Points:
    """(mean probability, share of positives) of each bin that holds a score."""
    bins = _bins(scored)
    counts = np.bincount(bins, minlength=BINS)
    probabilities, shares = (
        np.bincount(bins, values, BINS)[counts > 0] / counts[counts > 0]
        for values in (scored.probability, scored.truth)
    )
    return list(zip(probabilities.tolist(), shares.tolist(), strict=True))


def _bins(scored: Scored) -> NDArray[np.intp]:
    return np.minimum((scored.probability * BINS).astype(np.intp), BINS - 1)


Measure = Callable[[Scored], float]
SLICE_AUC = "slice AUC"
RANKING_MEASURES: Mapping[str, Measure] = {
    SLICE_AUC: auc,
    "average precision": average_precision,
    "sensitivity at 90 % specificity": lambda s: sensitivity_at(s, 0.9),
    "patient AUC": lambda s: auc(s.patients),
    "patient sensitivity at 80 %": lambda s: sensitivity_at(s.patients, 0.8),
    "patient sensitivity at 90 %": lambda s: sensitivity_at(s.patients, 0.9),
    "calibration error": calibration_error,
}
OPERATING_MEASURES: Mapping[str, Measure] = {
    "sensitivity of slices": lambda s: float(s.high[s.truth].mean()),
    "specificity of slices": lambda s: float((~s.high[~s.truth]).mean()),
    "sensitivity of series": lambda s: float(s.patients.high[s.patients.truth].mean()),
    "specificity of series": lambda s: float((~s.patients.high[~s.patients.truth]).mean()),
    "calibration error of series": lambda s: calibration_error(s.patients),
}
FIGURES = {**RANKING_MEASURES, **OPERATING_MEASURES}
RANKING, OPERATING = tuple(RANKING_MEASURES), tuple(OPERATING_MEASURES)


@dataclass(frozen=True)
class Figure:
    """A figure and its 95 % interval over draws of patients."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.2f} to {self.high:.2f})"


def figures(
    scored: Scored, names: Sequence[str] = tuple(FIGURES), seed: int = 1
) -> Mapping[str, Figure]:
    """Figures by name, each with its interval."""
    draws = drawn(scored, seed)
    return {name: _figure(FIGURES[name](scored), map(FIGURES[name], draws)) for name in names}


def gains(
    ours: Scored, baseline: Scored, names: Sequence[str] = tuple(FIGURES), seed: int = 1
) -> Mapping[str, Figure]:
    """The distance of figures over the baseline's, both judged on the same draws of patients."""
    pairs = list(zip(drawn(ours, seed), drawn(baseline, seed), strict=True))
    return {
        name: _figure(
            FIGURES[name](ours) - FIGURES[name](baseline),
            (FIGURES[name](mine) - FIGURES[name](theirs) for mine, theirs in pairs),
        )
        for name in names
    }


def _figure(value: float, draws: Iterable[float]) -> Figure:
    low, high = np.percentile(list(draws), INTERVAL)
    return Figure(value, float(low), float(high))


def drawn(scored: Scored, seed: int) -> Sequence[Scored]:
    """Patients drawn with repetition, each draw with both kinds of them."""
    random = default_rng(seed)
    numbers = np.unique(scored.patient)
    rows = [np.flatnonzero(scored.patient == number) for number in numbers]
    truth = scored.patients.truth
    draws: list[Scored] = []
    while len(draws) < DRAWS:
        names = random.integers(len(numbers), size=len(numbers))
        if not 0 < truth[names].sum() < len(names):
            continue
        draw = scored.of(np.concatenate([rows[name] for name in names]))
        again = np.repeat(np.arange(len(names)), [len(rows[name]) for name in names])
        draws.append(replace(draw, patient=again))
    return draws


def series_logits(patient: Numbers, logits: Floats) -> Floats:
    """(slices,): the logit of the series of each slice's patient."""
    by_patient = {n: series_logit(logits[patient == n]) for n in np.unique(patient).tolist()}
    return np.array([by_patient[number] for number in patient.tolist()])


def fitted_scale(logits: Floats, truth: Flags, specificity: float) -> Scale:
    """Slope and shift of the greatest likelihood (Platt), and the threshold of a specificity.

    The labels are drawn in a little as Platt does, so that few patients give no certainty.
    """
    positives, negatives = int(truth.sum()), int((~truth).sum())
    wanted = np.where(truth, (positives + 1.0) / (positives + 2.0), 1.0 / (negatives + 2.0))

    def loss(line: Floats) -> float:
        z = line[0] * logits + line[1]
        return float((np.logaddexp(0.0, z) - wanted * z).mean())

    slope, shift = minimize(loss, np.array([1.0, 0.0]), method="BFGS").x.tolist()
    scale = Scale(slope, shift, 0.0)
    negative = scale.probability(logits[~truth])
    return Scale(slope, shift, float(np.quantile(negative, specificity)))


def fitted_scales(patient: Numbers, truth: Flags, logits: Floats) -> tuple[Scale, Scale]:
    """The scales of slices and of series, fitted on these slices."""
    numbers = np.unique(patient).tolist()
    bleeds = np.array([truth[patient == number].any() for number in numbers], bool)
    if len(np.unique(bleeds)) < 2:
        raise NoSeries("the other folds need patients with haemorrhage and patients without")
    series = np.array([series_logit(logits[patient == number]) for number in numbers])
    return (
        fitted_scale(logits, truth, SLICE_SPECIFICITY),
        fitted_scale(series, bleeds, SERIES_SPECIFICITY),
    )
