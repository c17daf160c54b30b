"""Judgement of slices by their model's own trust: kept, replaced, or the series held.

A model that says nothing of its slices is taken at its word; nothing is judged then.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from inference.errors import Reason, Unprocessable
from inference.model import Prediction, Step, Trust
from inference.request import Output
from inference.volume import Geometry, Plane, Vector

# Positions are decimal strings: a gap of 12.0 mm may read 12.004.
GAP_TOLERANCE_MM = 0.01
CLASSICAL_WORDS = {
    "linear": "linear interpolation",
    "cubic": "cubic interpolation",
    "dis": "optical flow",
}


@dataclass(frozen=True, eq=False)
class Chosen:
    """The slice that is written, and what its derivation says of it; "" = nothing."""

    plane: Plane
    note: str


@dataclass
class SliceJudge:
    """Judges every generated slice of one job, in the order in which they are made."""

    output: Output
    geometry: Geometry
    entries: list[dict[str, object]] = field(default_factory=list)
    gate: Mapping[str, object] = field(default_factory=dict)
    doubtful: list[Trust] = field(default_factory=list)

    def chosen(self, position: Vector, number: int, prediction: Prediction) -> Chosen:
        """The prediction's slice of that number, which lies there, or the classical one."""
        self.gate = prediction.record
        if not prediction.trust:
            return Chosen(prediction.planes[number], "")
        trust = prediction.trust[number]
        is_replaced = bool(prediction.classical) and trust.confidence < self.output.classical_below
        how = prediction.classical_name if is_replaced else "network"
        at_mm = float((position - self.geometry.positions[0]) @ self.geometry.normal)
        if trust.confidence < self.output.hold_below:
            self.doubtful.append(trust)
        expected = f"expected error {trust.error_hu:.0f} HU, confidence {trust.confidence:.2f}"
        if not is_replaced:
            entry = _entry(at_mm, trust, how)
            if prediction.weights:
                entry["network_weight"] = round(prediction.weights[number], 3)
            self.entries.append(entry)
            return Chosen(prediction.planes[number], expected)
        words = CLASSICAL_WORDS.get(how, how)
        note = f"{expected}, below {self.output.classical_below:g}: {words} instead of the network"
        if prediction.classical_trust:
            trust = prediction.classical_trust[number]
            note += f", expected error {trust.error_hu:.0f} HU"
        self.entries.append(_entry(at_mm, trust, how))
        return Chosen(prediction.classical[number], note)

    @property
    def facts(self) -> Mapping[str, object]:
        """For the record: how the slices were made, and slice by slice how sure the model is."""
        facts: dict[str, object] = {}
        if self.gate:
            facts["gate"] = dict(self.gate)
        if self.entries:
            facts["confidence"] = list(self.entries)
        return facts

    @property
    def notes(self) -> Sequence[str]:
        """For people: what is unusual."""
        replaced = sum(entry["how"] != "network" for entry in self.entries)
        notes = []
        if self.gate.get("surveyed") == 0:
            notes.append("too few slices to try the network on: what training found serves alone")
        if replaced:
            words = _counted(replaced, "slice was", "slices were")
            notes.append(f"{words} interpolated without the network")
        return notes

    def check(self) -> None:
        """Raise Unprocessable, held, where a slice is below what the route accepts."""
        if not self.doubtful:
            return
        worst = min(self.doubtful, key=lambda trust: trust.confidence)
        raise Unprocessable(
            Reason.LOW_CONFIDENCE,
            f"The model is not sure enough of {len(self.doubtful)} of {len(self.entries)} slices "
            f"(confidence down to {worst.confidence:.2f}, an error of {worst.error_hu:.0f} HU; "
            f"the route asks for {self.output.hold_below:g}). Send thinner slices; or lower "
            "hold_below of the route and send the series again.",
        )


def check_gaps(steps: Sequence[Step], geometry: Geometry, output: Output) -> None:
    """Raise Unprocessable, held, where a gap is wider than the route lets be filled."""
    wide = [
        float(geometry.gaps_mm[step.gap])
        for step in steps
        if step.gap is not None
        and geometry.gaps_mm[step.gap] > output.most_gap_mm + GAP_TOLERANCE_MM
    ]
    if wide:
        raise Unprocessable(
            Reason.LOW_CONFIDENCE,
            f"{_counted(len(wide), 'gap is', 'gaps are')} wider than {output.most_gap_mm:g} mm "
            f"(up to {max(wide):.1f} mm): what lies between cannot be known. Send thinner slices; "
            "or raise most_gap_mm of the route and send the series again.",
        )


def _counted(count: int, one: str, several: str) -> str:
    return f"{count} {one if count == 1 else several}"


def _entry(at_mm: float, trust: Trust, how: str) -> dict[str, object]:
    return {
        "at_mm": round(at_mm, 3),  # from the first received slice, along the normal
        "error_hu": round(trust.error_hu, 1),
        "confidence": round(trust.confidence, 3),
        "how": how,
    }
