"""The haemorrhage model judged: tables, curves and a card, with the baselines in the rows above.

A patient is scored by the network that was trained without the patient's fold, and by the scale and
thresholds of the other folds, fitted on scores of networks that had not seen those folds either.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inference.models.haemorrhage.haemorrhage import (
    SHIPPED_WEIGHTS,
    Haemorrhage,
    Scale,
    smoothed,
)
from inference.training.beside import EvaluationOrder, Report, Table, TrainingOrder
from inference.training.charts import write_lines
from inference.training.data import NoSeries
from inference.training.head_ct import TYPES, HeadPatient, blood_share, load_heads
from inference.training.scores import (
    OPERATING,
    RANKING,
    SLICE_AUC,
    Figure,
    Flags,
    Floats,
    Scored,
    figures,
    fitted_scales,
    gains,
    reliability,
    series_logits,
    steps,
)

BLOOD, FROZEN, OWN = "blood by threshold", "frozen ImageNet features", "haemorrhage"
ADULT_YEARS = 18.0
OF_SLICES = (SLICE_AUC, "average precision", "sensitivity at 90 % specificity")
SHORT = ("slice AUC", "AP", "sens. at 90 % spec.", "patient AUC", "at 80 %", "at 90 %", "ECE")
COLUMNS = ("model", "on", "patients", "slices", *SHORT)
CUT = Scale(1.0, 0.0, 0.5)  # of a baseline that nothing is fitted for


@dataclass(frozen=True, eq=False)
class Cohort:
    """The patients that are judged, and their slices one after the other."""

    heads: Sequence[HeadPatient]
    patient: NDArray[np.int64]  # (slices,) place in `heads`
    truth: Flags
    folds: NDArray[np.int64]

    @classmethod
    def of(cls, heads: Sequence[HeadPatient]) -> "Cohort":
        """Raises NoSeries where one of the two kinds of patients is missing."""
        if len({bool(head.bleeds.any()) for head in heads}) < 2:
            raise NoSeries("figures need patients with haemorrhage and patients without")
        patient = np.repeat(np.arange(len(heads)), [len(head.bleeds) for head in heads])
        truth = np.concatenate([head.bleeds for head in heads])
        return cls(heads, patient, truth, np.array([head.fold for head in heads])[patient])

    def has_type(self, name: str) -> Flags:
        return np.concatenate([head.types[name] for head in self.heads])

    def is_child(self) -> Flags:
        young = np.array([head.age_years < ADULT_YEARS for head in self.heads])
        return np.asarray(young[self.patient])


def smoothed_each(patient: NDArray[np.int64], logits: Floats) -> Floats:
    """Logits smoothed along each patient; a patient's slices follow each other in order."""
    result = np.empty_like(logits)
    for number in np.unique(patient):
        result[patient == number] = smoothed(logits[patient == number])
    return result


def calibrated(cohort: Cohort, logits: Floats) -> Scored:
    """Scores whose scale and thresholds come, for each fold, from the other folds."""
    series = series_logits(cohort.patient, logits)
    columns: list[Floats] = [np.zeros(len(logits)) for _ in range(4)]
    for fold in np.unique(cohort.folds):
        test = cohort.folds == fold
        scales = fitted_scales(cohort.patient[~test], cohort.truth[~test], logits[~test])
        _fill(columns, test, scales, logits, series)
    return _scored(cohort, logits, columns)


def _fill(
    columns: list[Floats], rows: Flags, scales: tuple[Scale, Scale], logits: Floats, series: Floats
) -> None:
    """Probability of slice and series, then whether each is at its threshold or above."""
    for number, (scale, values) in enumerate(zip(scales, (logits, series), strict=True)):
        probability = scale.probability(values[rows])
        columns[number][rows] = probability
        columns[number + 2][rows] = probability >= scale.threshold


def _scored(cohort: Cohort, logits: Floats, columns: Sequence[Floats]) -> Scored:
    probability, series, high, present = columns
    by_series = series_logits(cohort.patient, logits)
    return Scored(
        cohort.patient,
        cohort.truth,
        logits,
        by_series,
        probability,
        series,
        high > 0,
        present > 0,
    )


def blood_logits(heads: Sequence[HeadPatient]) -> Floats:
    """Of the detector without learning."""
    share = np.concatenate([blood_share(head.pictures) for head in heads])
    patient = np.repeat(np.arange(len(heads)), [len(head.bleeds) for head in heads])
    return smoothed_each(patient, np.log(share / (1.0 - share)))


def judge(order: EvaluationOrder, report: Report) -> Table:
    """Figures of the shipped weights or of others, or of the folds of a training."""
    heads = load_heads(order.data)
    if order.folds is not None:
        heads = tuple(h for h in heads if (order.folds / f"fold{h.fold}.safetensors").is_file())
    cohort = Cohort.of(heads)
    models: dict[Path, Haemorrhage] = {}
    logits = np.zeros(len(cohort.truth))
    for number, head in enumerate(heads):
        report(number / len(heads), head.name)
        path = _weights(order, head)
        if path not in models:
            models[path] = Haemorrhage(path, order.device)
        logits[cohort.patient == number] = models[path].seen(head.pictures)[0]
    series = series_logits(cohort.patient, logits)
    columns: list[Floats] = [np.zeros(len(logits)) for _ in range(4)]
    seen = 0
    for number, head in enumerate(heads):
        own = models[_weights(order, head)].calibration
        _fill(columns, cohort.patient == number, (own.slices, own.series), logits, series)
        seen += head.name in own.patients
    blood = blood_logits(heads)
    methods = {
        BLOOD: calibrated(cohort, blood) if order.folds is not None else _cut(cohort, blood),
        OWN + (f" (trained on {seen} of them)" if seen else ""): _scored(cohort, logits, columns),
    }
    table = judged(cohort, methods, order.out)
    report(1.0, "")
    return table


def _weights(order: EvaluationOrder, head: HeadPatient) -> Path:
    if order.folds is not None:
        return order.folds / f"fold{head.fold}.safetensors"
    return order.weights or SHIPPED_WEIGHTS


def _cut(cohort: Cohort, logits: Floats) -> Scored:
    columns: list[Floats] = [np.zeros(len(logits)) for _ in range(4)]
    rows = np.ones(len(logits), bool)
    _fill(columns, rows, (CUT, CUT), logits, series_logits(cohort.patient, logits))
    return _scored(cohort, logits, columns)


def judged(cohort: Cohort, methods: Mapping[str, Scored], out: Path) -> Table:
    """The table of several methods, the last one ours; curves and figures go to `out`."""
    *_, (baseline, below), (name, ours) = methods.items()
    every = {method: figures(scored) for method, scored in methods.items()}
    difference = gains(ours, below, RANKING)
    parts = {on: figures(scored, names) for on, scored, names in _parts(cohort, ours)}
    rows = [_row(method, "all", methods[method], own) for method, own in every.items()]
    rows.append((f"{name} over {baseline}", "all", "", "", *map(str, difference.values())))
    scored_parts = {on: scored for on, scored, _ in _parts(cohort, ours)}
    rows += [_row(name, on, scored_parts[on], own) for on, own in parts.items()]
    record = {
        "model": OWN,
        "patients": len(cohort.heads),
        "methods": {method: _as_record(own) for method, own in every.items()},
        "gain": {"over": baseline, **_as_record(difference)},
        "parts": {on: _as_record(own) for on, own in parts.items()},
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "evaluation.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    _draw(methods, ours, out)
    return Table(COLUMNS, tuple(rows), _notes(every[name]), record)


def _parts(cohort: Cohort, ours: Scored) -> Iterator[tuple[str, Scored, Sequence[str]]]:
    """Slices of one type beside those without any; ages; folds. Left out: what has one kind."""
    for name in TYPES:
        chosen = cohort.has_type(name) | ~cohort.truth
        yield from _both_kinds(name, ours.of(chosen), OF_SLICES)
    child = cohort.is_child()
    yield from _both_kinds(f"under {ADULT_YEARS:.0f} years", ours.of(child), RANKING)
    yield from _both_kinds(f"{ADULT_YEARS:.0f} years and over", ours.of(~child), RANKING)
    for fold in np.unique(cohort.folds):
        yield from _both_kinds(f"fold {fold}", ours.of(cohort.folds == fold), RANKING)


def _both_kinds(
    on: str, scored: Scored, names: Sequence[str]
) -> Iterator[tuple[str, Scored, Sequence[str]]]:
    if len(scored.truth) and len(np.unique(scored.patients.truth)) == 2:
        yield on, scored, names


def _row(name: str, on: str, scored: Scored, own: Mapping[str, Figure]) -> tuple[str, ...]:
    patients = scored.patients.truth
    return (
        name,
        on,
        f"{len(patients)} ({patients.sum()} bleed)",
        f"{len(scored.truth)} ({scored.truth.sum()})",
        *(str(own[column]) if column in own else "" for column in RANKING),
    )


def _as_record(own: Mapping[str, Figure]) -> dict[str, object]:
    return {name: asdict(figure) for name, figure in own.items()}


def _notes(own: Mapping[str, Figure]) -> tuple[str, ...]:
    operating = "; ".join(f"{name} {own[name]}" for name in OPERATING)
    return (
        f"At the thresholds: {operating}.",
        "AP: average precision. At 80 % and 90 %: sensitivity of the series score at that "
        "specificity. ECE: expected calibration error of the slices.",
        "In brackets: 95 % intervals over 1,000 draws of patients. Where folds are left out, scale "
        "and thresholds of a fold come from the scores of the other folds' patients alone; order "
        "(AUC, precision, sensitivity at a specificity) is judged by logits without any scale.",
    )


def _draw(methods: Mapping[str, Scored], ours: Scored, out: Path) -> None:
    write_lines(
        out / "pr.png",
        {name: steps(scored) for name, scored in methods.items()},
        title="haemorrhage: slices",
        across="recall",
        up="precision",
    )
    lines = {
        "perfect": [(0.0, 0.0), (1.0, 1.0)],
        "slices": reliability(ours),
        "series": reliability(ours.patients),
    }
    title = "haemorrhage: reliability"
    write_lines(out / "reliability.png", lines, title=title, across="score", up="bleed")


def write_card(order: TrainingOrder, weights: Path, cohort: Cohort, table: Table) -> None:
    """The card of what was trained, with the table, as Markdown."""
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    lines = [table.columns, tuple("---" for _ in table.columns), *table.rows]
    text = [
        f"# Model card: {Haemorrhage.name} {Haemorrhage.version}",
        f"Weights `{weights.name}`, SHA-256 `{digest}`; seed {order.seed}, {order.device}; "
        f"figures of {len(cohort.heads)} patients, each left out of the training that scored it.",
        "\n".join(f"| {' | '.join(line)} |" for line in lines),
        *table.notes,
    ]
    (order.out / "card.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
