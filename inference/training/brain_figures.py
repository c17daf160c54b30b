"""Brain extraction judged on heads with a reference mask, the baseline without learning above it.

Everything is measured on the grid of the source. Intervals are drawn over heads.
"""

import json
import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from inference.models.brain.brain import Brain
from inference.models.brain.canonical import steps_mm
from inference.models.brain.extraction import BrainExtraction, extract
from inference.models.brain.mask import Mask, doubts
from inference.models.brain.unet import BrainUNet
from inference.training.beside import EvaluationOrder, Report, Table
from inference.training.charts import Points, write_lines
from inference.training.heads import Head, load_heads
from inference.training.masks import (
    MaskFigures,
    compared,
    inside,
    interval,
    outside_head_cm3,
    precision_and_recall,
    thresholded,
)

BASELINE, PRETRAINED = "threshold and erosion", "brain"
CORTEX, NEAR_MM = "cortex.npz", 1.0
COLUMNS = (
    *("method", "head", "n", "Dice", "95 %", "IoU", "surface 95 % mm", "volume"),
    *("outside the head cm3", "cortex inside (1 mm)", "seconds", "doubts"),
)


@dataclass(frozen=True)
class HeadFigures:
    """One method on one head."""

    method: str
    head: str
    figures: MaskFigures
    outside_cm3: float  # of the mask, in the air around the head
    seconds: float
    cortex: float | None  # share of the points of the cortex inside the mask
    cortex_near: float | None
    doubts: tuple[str, ...]
    seen: bool = False  # the weights were trained on this head

    def row(self) -> tuple[str, ...]:
        own = self.figures
        return (
            self.method + (" (trained on it)" if self.seen else ""),
            self.head,
            "1",
            f"{own.dice:.3f}",
            "",
            f"{own.iou:.3f}",
            f"{own.surface_95_mm:.1f}",
            f"{own.volume_off:+.1%}",
            f"{self.outside_cm3:.1f}",
            "" if self.cortex is None else f"{self.cortex:.3f} ({self.cortex_near:.3f})",
            f"{self.seconds:.1f}",
            "; ".join(self.doubts),
        )


def judge(order: EvaluationOrder, report: Report) -> Table:
    """Every method on every head, then their means; curves and figures go to `out`."""
    heads = load_heads(order.data)
    judged: list[HeadFigures] = []
    curves: dict[str, Points] = {}
    for number, head in enumerate(heads):
        report(number / len(heads), head.name)
        for figures, points in _on_head(order, head):
            judged.append(figures)
            if points:
                curves[f"{figures.method}, {head.name}"] = points
    table = _table(order, judged)
    order.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(table.record, indent=1)
    (order.out / "evaluation.json").write_text(text, encoding="utf-8")
    write_lines(
        order.out / "pr.png",
        curves,
        title=f"{order.model}: voxels of brain",
        across="recall",
        up="precision",
    )
    report(1.0, "")
    return table


def _on_head(order: EvaluationOrder, head: Head) -> Iterator[tuple[HeadFigures, Points]]:
    volume, reference, geometry = head.volume(), head.mask(), head.geometry
    spacing = tuple(float(step) for step in np.linalg.norm(steps_mm(geometry), axis=1))

    def figures(
        method: str, mask: Mask, seconds: float, held: tuple[str, ...] = (), *, seen: bool = False
    ) -> HeadFigures:
        own = compared(mask, reference, spacing)
        outside_cm3 = outside_head_cm3(mask, volume, spacing)
        cortex = _cortex(head, mask)
        return HeadFigures(method, head.name, own, outside_cm3, seconds, *cortex, held, seen)

    started = time.perf_counter()
    mask = thresholded(volume, spacing)
    yield figures(BASELINE, mask, time.perf_counter() - started), ()
    for model, seen in _models(order, head):
        started = time.perf_counter()
        result = extract(volume, geometry, model.probability, order.device)
        seconds = time.perf_counter() - started
        held = doubts(result.measures)
        points = precision_and_recall(result.probability, reference)
        yield figures(model.name, result.mask, seconds, held, seen=seen), points


def _models(order: EvaluationOrder, head: Head) -> Iterator[tuple[BrainExtraction, bool]]:
    """(model, whether its weights have seen the head); the pretrained one stands for comparison."""
    yield Brain(order.weights if order.model == PRETRAINED else None, order.device), False
    if order.model != PRETRAINED:
        without = order.folds / f"{head.name}.safetensors" if order.folds else None
        is_left_out = without is not None and without.is_file()
        yield BrainUNet(without if is_left_out else order.weights, order.device), not is_left_out


def _cortex(head: Head, mask: Mask) -> tuple[float | None, float | None]:
    path = head.folder / CORTEX
    if not path.is_file():
        return None, None
    with np.load(path) as file:
        points = np.asarray(file["points_lps_mm"], float)
    return inside(points, mask, head.geometry), inside(points, mask, head.geometry, NEAR_MM)


def _table(order: EvaluationOrder, judged: Sequence[HeadFigures]) -> Table:
    methods = list(dict.fromkeys(figures.method for figures in judged))
    rows, means = [], {}
    for method in methods:
        own = [figures for figures in judged if figures.method == method]
        dice = [figures.figures.dice for figures in own]
        low, high = interval(dice)
        means[method] = {"heads": len(own), "dice": float(np.mean(dice)), "interval": [low, high]}
        rows.append(_mean_row(method, own, (low, high)))
    rows += [figures.row() for figures in judged]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    record = {
        "model": order.model,
        "heads": [asdict(figures) for figures in judged],
        "means": means,
        "peak_memory_mb": round(peak),
    }
    notes = (
        "The reference masks are a silver standard, and the pretrained network took part in it.",
        f"Peak memory {peak:.0f} MB.",
    )
    return Table(COLUMNS, tuple(rows), notes, record)


def _mean_row(
    method: str, own: Sequence[HeadFigures], bounds: tuple[float, float]
) -> tuple[str, ...]:
    def mean(name: str) -> float:
        return float(np.mean([getattr(figures.figures, name) for figures in own]))

    return (
        method,
        "mean",
        str(len(own)),
        f"{mean('dice'):.3f}",
        f"{bounds[0]:.3f} to {bounds[1]:.3f}",
        f"{mean('iou'):.3f}",
        f"{mean('surface_95_mm'):.1f}",
        f"{mean('volume_off'):+.1%}",
        f"{np.mean([figures.outside_cm3 for figures in own]):.1f}",
        "",
        f"{np.mean([figures.seconds for figures in own]):.1f}",
        "",
    )
