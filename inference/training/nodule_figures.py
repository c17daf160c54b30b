"""The nodule model judged: tables, curves and a card, stage 1 without learning in the rows above.

A patient is scored by the network that was trained without that patient. Thresholds of a rate of
false positives come from the scans as received; simulated nodules stand in rows of their own.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.random import default_rng
from numpy.typing import NDArray

from inference.models.nodule.candidates import MOST
from inference.models.nodule.measuring import measured
from inference.models.nodule.network import NoduleNetwork
from inference.models.nodule.nodule import (
    SHIPPED_WEIGHTS,
    Nodule,
    OperatingPoint,
    ScoredPlace,
    load_network,
    scored_places,
)
from inference.training.beside import EvaluationOrder, Report, Table, TrainingOrder
from inference.training.charts import write_lines
from inference.training.chest_ct import ChestPatient, load_chests
from inference.training.data import NoSeries
from inference.training.froc import (
    RATES,
    Detections,
    among_first,
    competition,
    found,
    froc,
    interval,
    precision_recall,
    threshold_at,
)
from inference.training.nodule_cases import ChestCase, Truth, made_ready

STAGE_1, OWN = "bright spheres (stage 1)", "nodules"
REAL, SIMULATED = "real, two readers or more", "simulated"
POINT_RATE = 1.0  # false positives a scan at the operating point
DRAWS = 1000
FIRST = (4, 10, 50, 100, 300)  # candidates of stage 1
NEAR_MM, NEAR_SHARE = 2.0, 0.15  # of a diameter
READY, SCORED = 0.6, 0.9  # of the time of an evaluation

COLUMNS = ("model", "on", "patients", *(f"at {rate:g}" for rate in RATES), "CPM", "at threshold")

Floats = NDArray[np.float64]
Choice = Callable[[Truth], bool]

# Parts of the simulated nodules, in rows of their own.
PARTS: Mapping[str, Choice] = {
    "solid, 6 mm or more": lambda t: t.is_solid and t.diameter_mm >= 6.0,
    "solid, under 6 mm": lambda t: t.is_solid and t.diameter_mm < 6.0,
    "part-solid, 6 mm or more": lambda t: t.kind == "part-solid" and t.diameter_mm >= 6.0,
    "ground glass, 6 mm or more": lambda t: t.kind == "ground glass" and t.diameter_mm >= 6.0,
    "not solid, under 6 mm": lambda t: not t.is_solid and t.diameter_mm < 6.0,
    "at pleura or vessel, 6 mm or more": lambda t: bool(t.attached) and t.diameter_mm >= 6.0,
    "at the pleura": lambda t: t.attached == "pleura",
    "at a vessel": lambda t: t.attached == "vessel",
    "free": lambda t: not t.attached,
    "6 to 10 mm": lambda t: 6.0 <= t.diameter_mm < 10.0,
    "10 to 20 mm": lambda t: 10.0 <= t.diameter_mm < 20.0,
    "over 20 mm": lambda t: t.diameter_mm >= 20.0,
}


@dataclass(frozen=True, eq=False)
class ScoredCase:
    """A scan with the places that the network gives, and with those of stage 1."""

    case: ChestCase
    places: Sequence[ScoredPlace]

    @cached_property
    def detections(self) -> Detections:
        voxels = np.array([place.voxel for place in self.places], float).reshape(-1, 3)
        return Detections.of(self.case, voxels, np.array([own.score for own in self.places]))

    @cached_property
    def baseline(self) -> Detections:
        return Detections.of(self.case, self.case.places[:MOST], self.case.responses[:MOST])


@dataclass(frozen=True, eq=False)
class Cohort:
    """Scans as received, which set the thresholds, and the scans in which nodules are counted."""

    received: Sequence[Detections]
    counted: Sequence[Detections]

    def recall(self, rate: float) -> float:
        hits, nodules = self.found(rate)
        return hits / nodules if nodules else 0.0

    def found(self, rate: float) -> tuple[int, int]:
        return found(self.counted, threshold_at(self.received, rate))

    @property
    def competition(self) -> float:
        """CPM: the mean recall at the seven rates."""
        return competition(self.recall)

    def of(self, patients: Sequence[str]) -> "Cohort":
        """Patients drawn with repetition."""
        return Cohort(*(_drawn(scans, patients) for scans in (self.received, self.counted)))


def _drawn(scans: Sequence[Detections], patients: Sequence[str]) -> list[Detections]:
    return [own for patient in patients for own in scans if own.patient == patient]


def scored_cases(
    cases: Sequence[ChestCase], networks: Mapping[str, NoduleNetwork], device: str
) -> list[ScoredCase]:
    """Each scan scored by the network of its patient."""
    return [
        ScoredCase(
            case,
            scored_places(networks[case.patient], case.hu, case.labels, case.places[:MOST], device),
        )
        for case in cases
    ]


def judge(order: EvaluationOrder, report: Report) -> Table:
    """Figures of the shipped weights or of others, or of the folds of a training."""
    patients = load_chests(order.data)
    if order.folds is not None:
        patients = tuple(own for own in patients if _left_out(order.folds, own).is_file())
    if not patients:
        raise NoSeries(f"{order.folds}: no weights of a fold of these patients")
    cases = made_ready(patients, lambda share, what: report(READY * share, what))
    networks: dict[str, NoduleNetwork] = {}
    thresholds, seen = {}, 0
    for patient in patients:
        path = order.weights or SHIPPED_WEIGHTS
        if order.folds is not None:
            path = _left_out(order.folds, patient)
        networks[patient.name] = load_network(path)[0].placed(order.device)
        point = OperatingPoint.read(path.with_suffix(".json"))
        thresholds[patient.name] = point.threshold
        seen += patient.name in point.patients
    report(READY, "scores")
    scored = scored_cases(cases, networks, order.device)
    report(SCORED, "sizes")
    name = OWN + (f" (trained on {seen} of them)" if seen else "")
    table = judged(scored, thresholds, patients, order.out, name)
    report(1.0, "")
    return table


def _left_out(folder: Path, patient: ChestPatient) -> Path:
    return folder / f"without-{patient.name}.safetensors"


def judged(
    scored: Sequence[ScoredCase],
    thresholds: Mapping[str, float],
    patients: Sequence[ChestPatient],
    out: Path,
    name: str = OWN,
) -> Table:
    """The table, with curves and figures in `out`; simulated nodules in rows of their own."""
    methods = {
        STAGE_1: ([own.baseline for own in scored], None),
        name: ([own.detections for own in scored], thresholds),
    }
    rows: list[tuple[str, ...]] = []
    record: dict[str, object] = {"model": OWN, "patients": len(thresholds), "rows": {}}
    cells: dict[str, object] = {}
    is_real = [own.case.is_real for own in scored]
    for kind, wanted in ((REAL, True), (SIMULATED, False)):
        cohorts = {}
        for method, (detections, own) in methods.items():
            received = [d for d, real in zip(detections, is_real, strict=True) if real]
            counted = [d for d, real in zip(detections, is_real, strict=True) if real is wanted]
            if not any(len(d.best) for d in counted):
                continue
            cohorts[method] = Cohort(received, counted)
            rows.append(_row(method, kind, cohorts[method], own))
            cells[f"{method}, {kind}"] = _as_record(cohorts[method], own)
        if len(cohorts) == len(methods):
            rows.append(_gain_row(kind, name, *cohorts.values()))
    for part, choice in PARTS.items():
        cohort = _part(scored, choice)
        if any(len(own.best) for own in cohort.counted):
            rows.append(_row(name, f"{SIMULATED}, {part}", cohort, thresholds))
            cells[part] = _as_record(cohort, thresholds)
    sizes = _sizes(scored, thresholds, patients)
    record |= {
        "rows": cells,
        "first_candidates": {
            kind: {
                str(count): among_first(
                    [s.baseline for s in scored if s.case.is_real is real], count
                )
                for count in FIRST
            }
            for kind, real in ((REAL, True), (SIMULATED, False))
        },
        "diameters": sizes,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "evaluation.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    _draw(methods, is_real, out)
    return Table(COLUMNS, tuple(rows), _notes(record), record)


def _part(scored: Sequence[ScoredCase], choice: Choice) -> Cohort:
    counted = [
        own.detections.of_truths([choice(truth) for truth in own.case.truths])
        for own in scored
        if not own.case.is_real
    ]
    return Cohort([own.detections for own in scored if own.case.is_real], counted)


def _row(
    method: str, on: str, cohort: Cohort, thresholds: Mapping[str, float] | None
) -> tuple[str, ...]:
    low, high = interval(_draws(cohort, lambda own: own.competition))
    at_threshold = ""
    if thresholds is not None:
        hits, nodules, false = _at_thresholds(cohort, thresholds)
        at_threshold = f"{hits} of {nodules}, {false:.2g} wrong a scan"
    return (
        method,
        on,
        str(len({own.patient for own in cohort.counted if len(own.best)})),
        *(f"{hits} of {nodules}" for hits, nodules in map(cohort.found, RATES)),
        f"{cohort.competition:.2f} ({low:.2f} to {high:.2f})",
        at_threshold,
    )


def _gain_row(kind: str, name: str, baseline: Cohort, ours: Cohort) -> tuple[str, ...]:
    patients = sorted({own.patient for own in ours.received})
    random = default_rng(1)
    gains = []
    for _ in range(DRAWS):
        draw = random.choice(patients, len(patients)).tolist()
        gains.append(ours.of(draw).competition - baseline.of(draw).competition)
    low, high = interval(gains)
    gain = ours.competition - baseline.competition
    empty = ("",) * (1 + len(RATES))
    return (f"{name} over {STAGE_1}", kind, *empty, f"{gain:+.2f} ({low:+.2f} to {high:+.2f})", "")


def _draws(cohort: Cohort, figure: Callable[[Cohort], float]) -> list[float]:
    """A figure over draws of patients with repetition."""
    patients = sorted({own.patient for own in cohort.received})
    random = default_rng(1)
    return [
        figure(cohort.of(random.choice(patients, len(patients)).tolist())) for _ in range(DRAWS)
    ]


def _at_thresholds(cohort: Cohort, thresholds: Mapping[str, float]) -> tuple[int, int, float]:
    """(found, nodules, false positives a scan), each patient at the threshold of its fold."""
    hits = sum(int((own.best >= thresholds[own.patient]).sum()) for own in cohort.counted)
    false = sum(int((own.false >= thresholds[own.patient]).sum()) for own in cohort.received)
    nodules = sum(len(own.best) for own in cohort.counted)
    return hits, nodules, false / len(cohort.received)


def _as_record(cohort: Cohort, thresholds: Mapping[str, float] | None) -> dict[str, object]:
    low, high = interval(_draws(cohort, lambda own: own.competition))
    facts: dict[str, object] = {
        "found": {f"{rate:g}": list(cohort.found(rate)) for rate in RATES},
        "cpm": round(cohort.competition, 4),
        "cpm_interval": [round(low, 4), round(high, 4)],
    }
    if thresholds is not None:
        facts["at_threshold"] = list(_at_thresholds(cohort, thresholds))
    return facts


def _sizes(
    scored: Sequence[ScoredCase],
    thresholds: Mapping[str, float],
    patients: Sequence[ChestPatient],
) -> dict[str, dict[str, object]]:
    """By kind of nodule: diameters of those that were found, measured on the slices received."""
    pairs: dict[str, list[tuple[float, float]]] = {}
    scans = {patient.name: patient.scan for patient in patients}
    for own in scored:
        case = own.case
        planes = case.planes(scans[case.patient])
        labels = np.zeros(case.grid.shape, np.uint8)
        cut = tuple(slice(c, c + n) for c, n in zip(case.corner, case.hu.shape, strict=True))
        labels[cut] = case.labels
        organs = list(case.grid.on_source(labels))
        seen: set[int] = set()
        for place in own.places:
            number = int(case.hit(np.array([place.voxel]))[0])
            if number < 0 or number in seen or place.score < thresholds[case.patient]:
                continue
            seen.add(number)
            centre = case.grid.patient(np.array([place.voxel]) + case.corner)[0]
            size = measured(centre, place.diameter_mm, case.grid.geometry, list(planes), organs)
            truth = case.truths[number]
            diameter = (size.long_axis_mm + size.short_axis_mm) / 2.0
            pairs.setdefault(truth.kind, []).append((diameter, truth.diameter_mm))
    return {kind: _errors(np.array(own)) for kind, own in sorted(pairs.items())}


def _errors(pairs: Floats) -> dict[str, object]:
    off = pairs[:, 0] - pairs[:, 1]
    near = np.abs(off) <= np.maximum(NEAR_MM, NEAR_SHARE * pairs[:, 1])
    return {
        "nodules": len(pairs),
        "near": int(near.sum()),
        "median_off_mm": round(float(np.median(off)), 2),
        "median_error_mm": round(float(np.median(np.abs(off))), 2),
    }


def _notes(record: Mapping[str, object]) -> tuple[str, ...]:
    sizes = record["diameters"]
    assert isinstance(sizes, dict)
    words = "; ".join(
        f"{kind} {own['near']} of {own['nodules']} (median {own['median_off_mm']:+.1f} mm)"
        for kind, own in sizes.items()
    )
    first = record["first_candidates"]
    assert isinstance(first, dict)
    counts = "; ".join(
        f"{kind} " + ", ".join(f"{hits} of {n} by {count}" for count, (hits, n) in own.items())
        for kind, own in first.items()
    )
    return (
        "Columns: nodules found at so many false positives a scan; CPM is the mean recall of the "
        "seven. In brackets: 95 % intervals over 1,000 draws of patients.",
        f"Candidates of stage 1: {counts}.",
        f"Diameter within {NEAR_MM:g} mm or {NEAR_SHARE:.0%} of the sphere's, of those found at "
        f"the threshold: {words or 'none'}.",
        "Where patients are left out, the threshold of each comes from the scans of the others, "
        f"at {POINT_RATE:g} wrong a scan. Simulated nodules say nothing of real ones.",
    )


def _draw(
    methods: Mapping[str, tuple[Sequence[Detections], object]],
    is_real: Sequence[bool],
    out: Path,
) -> None:
    curves = {
        name: [own for own, real in zip(detections, is_real, strict=True) if real and len(own.best)]
        for name, (detections, _) in methods.items()
    }
    curves = {name: own for name, own in curves.items() if own}
    write_lines(
        out / "froc.png",
        {name: froc(own) for name, own in curves.items()},
        title="nodules: real ones",
        across="false positives a scan",
        up="found",
    )
    write_lines(
        out / "pr.png",
        {name: precision_recall(own) for name, own in curves.items()},
        title="nodules: real ones",
        across="recall",
        up="precision",
    )


def write_card(order: TrainingOrder, weights: Path, table: Table) -> None:
    """The card of what was trained, with the table, as Markdown."""
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    lines = [table.columns, tuple("---" for _ in table.columns), *table.rows]
    text = [
        f"# Model card: {Nodule.name} {Nodule.version}",
        f"Weights `{weights.name}`, SHA-256 `{digest}`; seed {order.seed}, {order.device}; "
        f"figures of {table.record['patients']} patients, each left out of the training that "
        "scored it.",
        "\n".join(f"| {' | '.join(line)} |" for line in lines),
        *table.notes,
    ]
    (order.out / "card.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
