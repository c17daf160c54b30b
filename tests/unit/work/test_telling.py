"""What a notice says, and when silence means something."""

from datetime import UTC, datetime, tzinfo
from string import Formatter
from zoneinfo import ZoneInfo

import pytest

from node.config import ExpectedSender
from node.config.sections import EVENTS
from node.rules import backoff
from node.work import notify

BERLIN = ZoneInfo("Europe/Berlin")
WORKDAYS = ("mon", "tue", "wed", "thu", "fri")


@pytest.mark.parametrize("event", [*EVENTS, "attention", "test"])
def test_every_event_has_words_that_name_no_patient(event: str) -> None:
    subject, text = notify.TEMPLATES[event]
    fields = {name for _, name, _, _ in Formatter().parse(text) if name}
    assert subject
    assert fields <= {
        "job", "reason", "sentence", "destination", "sender", "since", "selftest", "who",
    }  # fmt: skip


def test_a_fact_that_is_missing_leaves_no_hole() -> None:
    said = notify.text_of("job_held", {"job": 12, "sentence": "A slice is missing."})
    assert said == "Job 12 is held. A slice is missing."
    assert notify.text_of("destination_up", {"destination": "pacs"}) == "pacs answers again."


def test_a_brace_in_a_fact_is_text() -> None:
    assert "{job}" in notify.text_of("attention", {"sentence": "{job} {0} {x.__class__}", "job": 1})


def at(text: str, zone: tzinfo = BERLIN) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=zone).timestamp()


def day_shift(**more: object) -> ExpectedSender:
    given = {"ae_title": "CT2", "hours": "07:00-18:00", "days": list(WORKDAYS), "silent_hours": 2.0}
    return ExpectedSender.model_validate(given | more)


# A Thursday and the days after it.
@pytest.mark.parametrize(
    ("last", "now", "due"),
    [
        ("2026-11-19 09:00", "2026-11-19 10:59", False),
        ("2026-11-19 09:00", "2026-11-19 11:01", True),
        ("2026-11-18 17:30", "2026-11-19 08:29", False),  # half an hour and an hour and a half
        ("2026-11-18 17:30", "2026-11-19 08:31", True),
        ("2026-11-19 09:00", "2026-11-19 18:01", False),  # nobody expects it any more today
        ("2026-11-20 17:59", "2026-11-23 08:00", False),  # a weekend is no silence
        ("2026-11-20 17:59", "2026-11-23 09:01", True),
        ("2026-11-19 09:00", "2026-11-21 12:00", False),  # Saturday
        ("2026-11-19 09:00", "2026-11-18 09:00", False),  # the clock was set back
        ("2020-01-01 00:00", "2026-11-19 08:00", True),
    ],
)
def test_silence_is_counted_in_the_hours_in_which_somebody_sends(
    last: str, now: str, due: bool
) -> None:
    assert backoff.is_silent(day_shift(), at(last), at(now), BERLIN) is due


def test_a_night_shift_belongs_to_the_day_on_which_it_begins() -> None:
    night = day_shift(hours="22:00-06:00", days=["fri"])
    open_at = {
        "2026-11-20 21:59": False,
        "2026-11-20 22:00": True,
        "2026-11-21 05:59": True,
        "2026-11-21 06:00": False,
        "2026-11-21 23:00": False,
    }
    assert {t: night.is_open(datetime.fromisoformat(t)) for t in open_at} == open_at


def test_who_sends_day_and_night_is_always_expected() -> None:
    always = ExpectedSender(ae_title="CT1")
    assert backoff.is_silent(always, at("2026-11-21 02:00"), at("2026-11-21 04:00"), BERLIN)


def test_the_hours_are_those_of_the_node_and_not_of_the_machine() -> None:
    last, now = at("2026-11-19 06:00", UTC), at("2026-11-19 08:30", UTC)
    assert backoff.is_silent(day_shift(), last, now, BERLIN)  # 07:00 to 09:30
    assert not backoff.is_silent(day_shift(), last, now, UTC)
