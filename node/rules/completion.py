"""Completion: decides when an arrival is complete, and keeps the evidence.

Nothing in DICOM says that a series has ended: the end of an association has no meaning for it
(PS3.4 B), and equal counts prove nothing. So a quiet period decides, and the rest is evidence.
"""

from collections.abc import Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True)
class PeerCount:
    """The instances that a peer has of a series; a sentence where it did not say."""

    peer: str  # the name of a destination
    instances: int = 0
    missing: int = 0  # of these, the ones that the node has not
    sentence: str = ""


def after_asking(
    arrival: Arrival, count: PeerCount, *, now: float, completion: Completion
) -> Evidence | None:
    """Give the evidence that a peer's answer adds; None = wait for what the peer has more.

    Nothing is proved by a peer that has no more: it may be the one that waits for the rest.
    """
    asked: dict[str, object] = {"asked": count.peer}
    if count.sentence:
        return asked | {"silent": count.sentence}
    if count.missing and now < waits_until(arrival, completion):
        return None
    return asked | {"there": count.instances, "missing": count.missing}


def waits_until(arrival: Arrival, completion: Completion) -> float:
    """Give the moment until which an arrival waits for what a peer has more of the series."""
    return complete_at(arrival, completion) + completion.ask_seconds


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
    return f"{closed}; {_associations(evidence)}.{_of_peer(evidence)}"


def _of_peer(evidence: Evidence) -> str:
    """Write what the peer has answered that was asked for the series."""
    peer = evidence.get("asked")
    if not peer:
        return ""
    if silent := evidence.get("silent"):
        return f" {peer} was asked whether it has more, in vain: {silent}"
    there, missing = evidence.get("there", 0), evidence.get("missing", 0)
    if missing:
        return f" {peer} has {missing} more, which have not come; it has {there} of the series."
    return f" {peer} has {there} of the series, none that is missing here."


def _patience(arrival: Arrival, completion: Completion) -> float:
    # The longest of the two, so that a long quiet period is not cut short by an open association.
    if arrival.open_associations:
        return max(completion.quiet_seconds, completion.open_association_seconds)
    return completion.quiet_seconds


def _associations(evidence: Evidence) -> str:
    counts = [(how, evidence.get(how, 0)) for how in ("open", "released", "aborted")]
    named = [f"{count} {how}" for how, count in counts if count]
    return f"associations: {', '.join(named)}" if named else "no association is known"
