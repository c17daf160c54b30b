"""What a worker is told of series that arrive, so that it can generate slices ahead."""

import pytest

from inference.request import Resources
from node.work.ahead import SETTLED_SECONDS, AheadPlanner, AheadRules, Arriving
from tests.unit.storage.stored import SERIES, Stored

RULES = AheadRules("MIDSLICE", (), {}, Resources())


@pytest.fixture
def planner(stored: Stored) -> AheadPlanner:
    return AheadPlanner(stored.archive, stored.files, lambda: RULES, stored.clock)


def told(planner: AheadPlanner) -> Arriving | None:
    return planner.news(planner.arriving())


def uids(news: Arriving | None) -> list[str]:
    assert news is not None
    return [source.instance_uid for series in news.changed for source in series.sources]


def test_a_worker_is_told_of_each_file_once(stored: Stored, planner: AheadPlanner) -> None:
    stored.receive("1.1")
    stored.receive("1.2")
    assert uids(told(planner)) == ["1.1", "1.2"]
    assert told(planner) is None
    stored.receive("1.3")
    assert uids(told(planner)) == ["1.3"]


def test_files_are_named_by_where_they_lie(stored: Stored, planner: AheadPlanner) -> None:
    stored.receive("1.1")
    news = told(planner)
    assert news is not None
    (source,) = news.changed[0].sources
    assert source.path.is_file()


def test_an_arrival_is_settled_once_it_is_silent_for_longer_than_it_ever_was(
    stored: Stored, planner: AheadPlanner
) -> None:
    for number in range(5):
        stored.receive(f"1.{number}")
        stored.clock.now += 2.0
    news = told(planner)
    assert news is not None
    assert not news.changed[0].is_settled  # 2 s are its usual interval
    stored.clock.now += 4.0
    news = told(planner)
    assert news is not None
    assert news.changed[0].is_settled
    assert uids(news) == []
    stored.receive("1.9")
    news = told(planner)
    assert news is not None
    assert not news.changed[0].is_settled


def test_even_a_quick_arrival_has_to_be_silent_for_a_moment(
    stored: Stored, planner: AheadPlanner
) -> None:
    stored.receive("1.1")
    stored.receive("1.2")
    told(planner)
    stored.clock.now += SETTLED_SECONDS / 2
    assert told(planner) is None
    stored.clock.now += SETTLED_SECONDS / 2
    news = told(planner)
    assert news is not None
    assert news.changed[0].is_settled


def test_a_series_that_is_complete_keeps_its_drafts_until_the_worker_has_looked_for_its_job(
    stored: Stored, planner: AheadPlanner
) -> None:
    stored.receive("1.1")
    told(planner)
    before = planner.arriving()
    stored.complete("key")
    assert planner.news(before) is None  # it was arriving when the worker looked for a job
    (series_id,) = planner.series_ids
    assert stored.claim().series_id == series_id
    news = told(planner)
    assert news == Arriving((), frozenset(), RULES)
    assert not planner.series_ids


def test_the_series_that_arrive_are_named_with_each_change(
    stored: Stored, planner: AheadPlanner
) -> None:
    stored.receive("1.1")
    told(planner)
    stored.receive("2.1", series_uid="2.9")
    news = told(planner)
    assert news is not None
    assert news.series_uids == {SERIES, "2.9"}
    assert [series.series_uid for series in news.changed] == ["2.9"]


def test_after_the_death_of_a_worker_nothing_is_told_of_what_was_arriving(
    stored: Stored, planner: AheadPlanner
) -> None:
    stored.receive("1.1")
    told(planner)
    planner.worker_died()
    stored.receive("1.2")
    assert told(planner) is None
    stored.receive("2.1", series_uid="2.9")
    assert uids(told(planner)) == ["2.1"]
