"""When an arrival is complete: a quiet period decides, and what else is known is evidence."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.config import Completion
from node.rules.completion import (
    PeerCount,
    Rule,
    after_asking,
    because,
    complete_at,
    decide,
    evidence,
)
from storage.records import Arrival, ArrivalState

RULE = Completion(quiet_seconds=30.0, open_association_seconds=120.0)
ARRIVAL = Arrival(
    id=1,
    series_id=1,
    study_uid="1.2",
    series_uid="1.2.3",
    calling_ae="CT1",
    called_ae="MIDSLICE",
    state=ArrivalState.ARRIVING,
    first_at=1_000.0,
    last_at=2_000.0,
    completed_at=None,
    instances=24,
    open_associations=0,
    released=1,
    aborted=0,
    own=False,
)
OPEN = replace(ARRIVAL, open_associations=1, released=0)


def test_an_arrival_is_complete_when_nothing_came_for_the_quiet_period() -> None:
    assert decide(ARRIVAL, now=2_029.9, completion=RULE) is None
    found = decide(ARRIVAL, now=2_030.0, completion=RULE)
    assert found == {
        "rule": "quiet",
        "quiet_seconds": 30.0,
        "instances": 24,
        "open": 0,
        "released": 1,
        "aborted": 0,
    }


def test_every_instance_restarts_the_quiet_period() -> None:
    again = replace(ARRIVAL, last_at=2_029.0, instances=25)
    assert decide(again, now=2_030.0, completion=RULE) is None
    assert decide(again, now=2_059.0, completion=RULE) is not None


def test_an_open_association_extends_the_quiet_period_up_to_its_limit() -> None:
    assert decide(OPEN, now=2_119.9, completion=RULE) is None
    found = decide(OPEN, now=2_120.0, completion=RULE)
    assert found is not None
    assert (found["rule"], found["open"]) == (Rule.OPEN_LIMIT, 1)


def test_the_end_of_the_association_brings_the_quiet_period_back() -> None:
    assert decide(OPEN, now=2_060.0, completion=RULE) is None
    assert decide(replace(OPEN, open_associations=0), now=2_060.0, completion=RULE) is not None


def test_an_abort_closes_nothing_but_is_evidence() -> None:
    aborted = replace(ARRIVAL, released=0, aborted=1)
    assert decide(aborted, now=2_001.0, completion=RULE) is None
    found = decide(aborted, now=2_031.0, completion=RULE)
    assert found is not None
    assert (found["released"], found["aborted"]) == (0, 1)


def test_a_quiet_period_longer_than_the_limit_is_not_cut_short_by_an_open_association() -> None:
    patient = Completion(quiet_seconds=300.0, open_association_seconds=120.0)
    assert decide(OPEN, now=2_299.0, completion=patient) is None
    assert decide(OPEN, now=2_300.0, completion=patient) is not None


def test_a_clock_that_was_set_back_does_not_keep_an_arrival_open_for_ever() -> None:
    assert decide(ARRIVAL, now=1_990.0, completion=RULE) is None
    found = decide(ARRIVAL, now=2_000.0 - 3_600.0, completion=RULE)
    assert found is not None
    assert (found["rule"], found["quiet_seconds"]) == (Rule.CLOCK, 0.0)


@given(st.floats(-1e4, 1e4), st.booleans())
def test_it_is_complete_exactly_from_the_announced_moment_on(after: float, is_open: bool) -> None:
    arrival = OPEN if is_open else ARRIVAL
    moment = complete_at(arrival, RULE)
    assert decide(arrival, now=moment + abs(after), completion=RULE) is not None
    before = moment - 1e-3 - min(abs(after), 60.0)
    assert decide(arrival, now=before, completion=RULE) is None


@pytest.mark.parametrize(
    ("rule", "arrival", "sentence"),
    [
        (
            Rule.QUIET,
            ARRIVAL,
            "No further instance came for 31.5 s; associations: 1 released.",
        ),
        (
            Rule.OPEN_LIMIT,
            replace(OPEN, aborted=2),
            "No further instance came for 31.5 s, but an association is open; "
            "associations: 1 open, 2 aborted.",
        ),
        (
            Rule.ASKED,
            replace(ARRIVAL, released=0),
            "A person asked for it; no association is known.",
        ),
        (
            Rule.CLOCK,
            ARRIVAL,
            "The clock was set back, so that the quiet period could not be measured; "
            "associations: 1 released.",
        ),
    ],
)
def test_the_evidence_reads_as_a_sentence(rule: Rule, arrival: Arrival, sentence: str) -> None:
    assert because(evidence(arrival, rule=rule, now=2_031.5)) == sentence


def test_an_arrival_without_evidence_says_so() -> None:
    assert because({}) == "It is not known why this arrival is complete."


ASKING = Completion(quiet_seconds=30.0, ask="pacs", ask_seconds=100.0)


@pytest.mark.parametrize(
    ("count", "now", "added"),
    [
        (PeerCount("pacs", 24, 0), 2_030.0, {"asked": "pacs", "there": 24, "missing": 0}),
        (PeerCount("pacs", 0, 0), 2_030.0, {"asked": "pacs", "there": 0, "missing": 0}),
        (PeerCount("pacs", 26, 2), 2_030.0, None),
        (PeerCount("pacs", 26, 2), 2_129.9, None),
        (PeerCount("pacs", 26, 2), 2_130.0, {"asked": "pacs", "there": 26, "missing": 2}),
        (PeerCount("pacs", sentence="No."), 2_030.0, {"asked": "pacs", "silent": "No."}),
    ],
)
def test_an_arrival_waits_for_what_a_peer_has_more_and_no_longer_than_it_may(
    count: PeerCount, now: float, added: object
) -> None:
    assert after_asking(ARRIVAL, count, now=now, completion=ASKING) == added


@pytest.mark.parametrize(
    ("added", "sentence"),
    [
        ({"there": 24, "missing": 0}, "pacs has 24 of the series, none that is missing here."),
        ({"there": 26, "missing": 2}, "pacs has 2 more, which have not come; it has 26 of the"),
        ({"silent": "PACS is away."}, "pacs was asked whether it has more, in vain: PACS is away."),
    ],
)
def test_the_answer_of_the_peer_reads_as_a_sentence(
    added: dict[str, object], sentence: str
) -> None:
    known = evidence(ARRIVAL, rule=Rule.QUIET, now=2_030.0)
    assert sentence in because({**known, "asked": "pacs", **added})
