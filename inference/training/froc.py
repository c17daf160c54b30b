"""Figures of a model that finds things in scans: free-response ROC, precision and recall.

A place is a hit where it lies within the radius of a nodule (the rule of LUNA16); several hits of
one nodule count once. What readers leave open is neither found nor wrong. Intervals are drawn over
patients.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from inference.training.charts import Points
from inference.training.nodule_cases import ChestCase

RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # false positives a scan
INTERVAL = (2.5, 97.5)

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Detections:
    """The places in one scan, judged: best score of each nodule, and those of false positives."""

    patient: str
    best: Floats  # (nodules,), -inf where none of the places hits it
    false: Floats  # (false positives,), descending
    order: NDArray[np.int64]  # (nodules,) how many places come before the first hit; -1: no hit

    @classmethod
    def of(cls, case: ChestCase, voxels: Floats, scores: Floats) -> "Detections":
        order = np.argsort(-scores, kind="stable")
        hits, ignored = case.hit(voxels)[order], case.is_ignored(voxels)[order]
        best = np.full(len(case.truths), -np.inf)
        first = np.full(len(case.truths), -1)
        for place, (number, score) in enumerate(zip(hits, scores[order], strict=True)):
            if number >= 0 and first[number] < 0:
                best[number], first[number] = score, place
        return cls(case.patient, best, scores[order][(hits < 0) & ~ignored], first)

    def of_truths(self, chosen: Sequence[bool]) -> "Detections":
        """The same with some of the nodules alone."""
        mask = np.array(chosen, bool)
        return replace(self, best=self.best[mask], order=self.order[mask])


def threshold_at(scans: Sequence[Detections], rate: float) -> float:
    """What a score must exceed for at most this many false positives a scan."""
    false = np.sort(np.concatenate([own.false for own in scans]))[::-1]
    allowed = int(rate * len(scans) + 1e-9)
    return float(false[allowed]) if allowed < len(false) else -np.inf


def found(scans: Sequence[Detections], threshold: float) -> tuple[int, int]:
    """(nodules found, nodules) with scores above a threshold."""
    best = np.concatenate([own.best for own in scans])
    return int((best > threshold).sum()), len(best)


def competition(recall: Callable[[float], float]) -> float:
    """CPM: the mean recall at the seven rates."""
    return float(np.mean([recall(rate) for rate in RATES]))


def interval(values: Sequence[float]) -> tuple[float, float]:
    low, high = np.percentile(values, INTERVAL)
    return float(low), float(high)


def froc(scans: Sequence[Detections], most: float = RATES[-1]) -> Points:
    """(false positives a scan, recall), from the highest score down."""
    thresholds = np.unique(np.concatenate([own.false for own in scans]))[::-1]
    nodules = sum(len(own.best) for own in scans)
    points: list[tuple[float, float]] = []
    for number, threshold in enumerate(thresholds):
        points.append((number / len(scans), found(scans, float(threshold))[0] / nodules))
        if number > most * len(scans):
            break
    return points


def precision_recall(scans: Sequence[Detections]) -> Points:
    """(recall, precision) at the score of each nodule that was hit."""
    best = np.concatenate([own.best for own in scans])
    false = np.concatenate([own.false for own in scans])
    points = []
    for score in sorted(best[np.isfinite(best)].tolist(), reverse=True):
        hits = int((best >= score).sum())
        points.append((hits / len(best), hits / (hits + int((false >= score).sum()))))
    return points


def among_first(scans: Sequence[Detections], count: int) -> tuple[int, int]:
    """(nodules hit by the first places of their scan, nodules)."""
    order = np.concatenate([own.order for own in scans])
    return int(((order >= 0) & (order < count)).sum()), len(order)
