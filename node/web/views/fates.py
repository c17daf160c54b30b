"""Why no job was made of a series: what is known, in words, for Find and for its page."""

from collections.abc import Iterable, Mapping

from node.web.parts import Parts
from storage.archive import newest_arrival
from storage.records import Arrival, SeriesLine

NO_ROUTE = "kept; no route asked for a job"
OWN = "kept; a result of this node that came back is never processed"
TAKEN_BACK = "kept; {who} had said never to process it, and that is taken back: send it again"
NO_SLICE = "kept; none of its instances is a slice ({reasons})"


def fates(parts: Parts, lines: Iterable[SeriesLine]) -> Mapping[str, str]:
    """Of each series that no job was made of, why not."""
    jobless = {line.subject.series_uid for line in lines if not line.jobs and not line.arriving}
    return {uid: _why(newest_arrival(parts.database, uid)) for uid in jobless}


def set_aside(parts: Parts, series_uid: str) -> Mapping[str, int]:
    """How many instances of a series, as it came last, are in no stack, by reason."""
    arrival = newest_arrival(parts.database, series_uid)
    return _aside(arrival) if arrival is not None else {}


def _why(arrival: Arrival | None) -> str:
    if arrival is None:
        return NO_ROUTE
    if arrival.own:
        return OWN
    if who := arrival.evidence.get("never"):
        return TAKEN_BACK.format(who=who)
    aside = _aside(arrival)
    if aside and sum(aside.values()) >= arrival.instances:
        return NO_SLICE.format(reasons=", ".join(aside))
    return NO_ROUTE


def _aside(arrival: Arrival) -> Mapping[str, int]:
    found = arrival.evidence.get("set_aside")
    return found if isinstance(found, dict) else {}
