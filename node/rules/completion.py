"""Completion: decides when an arrival is complete, and keeps the evidence.

Nothing in DICOM says that a series has ended: the end of an association has no meaning for it
(PS3.4 B), and equal counts prove nothing. So a quiet period decides, and the rest is evidence.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeAlias

from node.config import Completion
from storage.records import Arrival

Evidence: TypeAlias = Mapping[str, object]


class Rule(StrEnum):
    """The rule that closed an arrival."""

    QUIET = "quiet"
    OPEN_LIMIT = "open_limit"  # quiet for long, while an association that carried it stays open
    CLOCK = "clock"  # the clock was set back: the quiet period cannot be measured any more
    ASKED = "asked"  # a person asked for it


def complete_at(arrival: Arrival, completion: Completion) -> float:
    """Give the moment at which the arrival is complete if no further instance comes."""
    return arrival.last_at + _patience(arrival, completion)


def decide(arrival: Arrival, *, now: float, completion: Completion) -> Evidence | None:
    """Give the evidence that the arrival is complete; None = keep waiting."""
    quiet = now - arrival.last_at
    patience = _patience(arrival, completion)
    if quiet >= patience:
        rule = Rule.OPEN_LIMIT if arrival.open_associations else Rule.QUIET
        return evidence(arrival, rule=rule, now=now)
    if quiet < -max(patience, completion.open_association_seconds):
        return evidence(arrival, rule=Rule.CLOCK, now=now)
    return None


def evidence(arrival: Arrival, *, rule: Rule, now: float) -> Evidence:
    """Collect what is known about the arrival at the moment `rule` closes it."""
    return {
        "rule": str(rule),
        "quiet_seconds": round(max(0.0, now - arrival.last_at), 3),
        "instances": arrival.instances,
        "open": arrival.open_associations,
        "released": arrival.released,
        "aborted": arrival.aborted,
    }


def because(evidence: Evidence) -> str:
    """Write the evidence as one sentence for a person."""
    seconds = evidence.get("quiet_seconds", 0.0)
    match evidence.get("rule"):
        case Rule.QUIET:
            closed = f"No further instance came for {seconds:.1f} s"
        case Rule.OPEN_LIMIT:
            closed = f"No further instance came for {seconds:.1f} s, but an association is open"
        case Rule.CLOCK:
            closed = "The clock was set back, so that the quiet period could not be measured"
        case Rule.ASKED:
            closed = "A person asked for it"
        case _:
            return "It is not known why this arrival is complete."
    return f"{closed}; {_associations(evidence)}."


def _patience(arrival: Arrival, completion: Completion) -> float:
    # The longest of the two, so that a long quiet period is not cut short by an open association.
    if arrival.open_associations:
        return max(completion.quiet_seconds, completion.open_association_seconds)
    return completion.quiet_seconds


def _associations(evidence: Evidence) -> str:
    counts = [(how, evidence.get(how, 0)) for how in ("open", "released", "aborted")]
    named = [f"{count} {how}" for how, count in counts if count]
    return f"associations: {', '.join(named)}" if named else "no association is known"
