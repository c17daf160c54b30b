"""The first phone call is "where is accession 12345?": what is found, and what is not."""

import itertools
from typing import Any

import pytest

from storage.database import Database
from storage.files import Files
from storage.queries import find, overview
from storage.queries.find import Wanted, delivery_ids, need_groups
from storage.records import JobState, Peer, Received
from storage.site import selftests
from tests.conftest import Clock
from tests.unit.storage.stored import CT, EXPLICIT, Stored, content_of

PEOPLE = {
    "1.1.1": ("P100", "Müller^Änne", "A-12345", "20260701", "Thorax 5.0 B31f", "CT1"),
    "1.1.2": ("P1001", "Müllerson^Bo", "a-12346", "20260701", "ABDOMEN 3.0", "CT1"),
    "1.1.3": ("X_5%", "O'Neill^Ann^Marie", "77", "20260702", "Schädel 4.0", "CT2"),
    "1.1.4": ("p200", "Yamada^Tarou=山田^太郎", "78", "20260702", "100% thorax", "CT2"),
}


@pytest.fixture
def filled(database: Database, files: Files, clock: Clock) -> Stored:
    """Four series of four patients, each with one queued job."""
    stored = Stored(database, files, clock)
    for uid, (patient, name, accession, date, text, sender) in PEOPLE.items():
        what = Received(
            f"9.{uid}", uid, f"{uid}.1", CT, EXPLICIT, "CT", patient, accession, date, text, name
        )
        peer = Peer(sender, "MIDSLICE")
        stored.archive.keep(what, peer, stored.incoming(content_of(what)))
        stored.clock.now += 10
        arrival = stored.arrival(peer, uid)
        route = "heads" if uid == "1.1.3" else "ct-slices"
        new = stored.new_job(arrival, uid, route=route, destinations=("pacs", f"to-{sender}"))
        stored.queue.complete(arrival.id, {}, [new])
    return stored


def found(stored: Stored, **wanted: object) -> list[str]:
    """The Series UIDs of both ways to search agree."""
    asked = Wanted(**wanted)  # type: ignore[arg-type]
    of_series = [one.subject.series_uid for one in find.find_series(stored.database, asked).lines]
    of_jobs = [one.subject.series_uid for one in find.jobs(stored.database, asked).lines]
    assert of_series == of_jobs
    ids = find.job_ids(stored.database, asked)
    assert len(ids) == len(of_jobs)
    return of_series


# What is asked for, and the series that it finds, the newest first.
ASKED: tuple[tuple[dict[str, Any], list[str]], ...] = (
    ({"accession": "A-12345"}, ["1.1.1"]),
    ({"accession": "a-1234"}, ["1.1.2", "1.1.1"]),
    ({"accession": "12345"}, []),
    ({"patient_id": "P100"}, ["1.1.2", "1.1.1"]),
    ({"patient_id": "P2"}, ["1.1.4"]),
    ({"study_from": "20260702"}, ["1.1.4", "1.1.3"]),
    ({"study_to": "20260701"}, ["1.1.2", "1.1.1"]),
    ({"study_from": "20260701", "study_to": "20260702", "sender": "CT2"}, ["1.1.4", "1.1.3"]),
    ({"study_from": "20260703"}, []),
    ({"patient_id": "X_5%"}, ["1.1.3"]),
    ({"patient_id": "X%"}, []),
    ({"patient_id": "%"}, []),
    ({"name": "müller"}, ["1.1.2", "1.1.1"]),
    ({"name": "MÜLLER ÄNNE"}, ["1.1.1"]),
    ({"name": "Müller^Än"}, ["1.1.1"]),
    ({"name": "Müller, Änne"}, ["1.1.1"]),
    ({"name": "müller,"}, ["1.1.2", "1.1.1"]),
    ({"text": "Yamada, Tarou"}, ["1.1.4"]),
    ({"name": ","}, []),
    ({"name": "o'neill"}, ["1.1.3"]),
    ({"name": "' OR 1=1 --"}, []),
    ({"text": "77"}, ["1.1.3"]),
    ({"text": "yamada"}, ["1.1.4"]),
    ({"text": "P"}, ["1.1.4", "1.1.2", "1.1.1"]),
    ({"study_date": "20260702"}, ["1.1.4", "1.1.3"]),
    ({"description": "thorax"}, ["1.1.4", "1.1.1"]),
    ({"description": "SCHÄDEL"}, ["1.1.3"]),
    ({"description": "100%"}, ["1.1.4"]),
    ({"description": "0% t"}, ["1.1.4"]),
    ({"sender": "CT2"}, ["1.1.4", "1.1.3"]),
    ({"sender": "CT"}, []),
    ({"route": "heads"}, ["1.1.3"]),
    ({"destination": "to-CT1"}, ["1.1.2", "1.1.1"]),
    ({"destination": "pac"}, []),
    ({"uid": "1.1.2"}, ["1.1.2"]),
    ({"uid": "9.1.1.2"}, ["1.1.2"]),
    ({"uid": "1.1.2.1"}, ["1.1.2"]),
    ({"uid": "1.1"}, []),
    ({"states": (JobState.QUEUED,)}, ["1.1.4", "1.1.3", "1.1.2", "1.1.1"]),
    ({"states": (JobState.HELD, JobState.QUEUED), "sender": "CT1"}, ["1.1.2", "1.1.1"]),
    ({"states": (JobState.HELD,)}, []),
    ({}, ["1.1.4", "1.1.3", "1.1.2", "1.1.1"]),
    ({"accession": "A-12345", "sender": "CT2"}, []),
)


def test_everything_that_is_asked_for_must_hold(filled: Stored) -> None:
    for wanted, uids in ASKED:
        assert found(filled, **wanted) == uids, wanted


def test_what_is_common_is_found_as_what_is_rare(
    filled: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(find, "COMMON", 0)
    assert found(filled, sender="CT2") == ["1.1.4", "1.1.3"]
    assert found(filled, description="thorax") == ["1.1.4", "1.1.1"]
    assert found(filled, states=(JobState.QUEUED,), sender="CT1") == ["1.1.2", "1.1.1"]
    assert found(filled, name="müller") == ["1.1.2", "1.1.1"]
    assert found(filled, patient_id="p100") == ["1.1.2", "1.1.1"]
    assert found(filled, accession="a-1234", sender="CT1") == ["1.1.2", "1.1.1"]
    assert found(filled, text="P") == ["1.1.4", "1.1.2", "1.1.1"]
    for wanted in (Wanted(name="müller"), Wanted(text="P", sender="CT1")):
        whole = find.find_series(filled.database, wanted)
        first = find.find_series(filled.database, wanted, limit=1)
        assert (first.total, len(first.lines), len(whole.lines)) == (2, 1, 2)


def test_a_reason_is_found_with_its_jobs_only(filled: Stored) -> None:
    job = filled.claim()
    filled.queue.refuse(job, "TOO_FEW_SLICES", "One slice is no volume.")
    assert found(filled, reason="TOO_FEW_SLICES") == [job.series_uid]
    assert found(filled, states=(JobState.REFUSED,)) == [job.series_uid]


def hold_delivery(stored: Stored, reason: str = "REFUSED_BY_PEER") -> int:
    """The next job is done, and its result is held on its way to the PACS; the job's number."""
    job = stored.succeed("2.25.7")
    stored.ledger.hold(stored.start_delivery("pacs"), reason, "It was refused.")
    return job.id


# What is asked for, and whether it finds a delivery that is held for the first series.
ASKED_OF_HELD: tuple[tuple[dict[str, Any], bool], ...] = (
    ({}, True),
    ({"states": (JobState.HELD,)}, True),
    ({"states": (JobState.HELD, JobState.FAILED)}, True),
    ({"states": (JobState.FAILED,)}, False),
    ({"reason": "REFUSED_BY_PEER"}, True),
    ({"reason": "GAVE_UP"}, False),
    ({"destination": "pacs"}, True),
    ({"destination": "to-CT1"}, False),
    ({"route": "ct-slices"}, True),
    ({"route": "heads"}, False),
    ({"sender": "CT1"}, True),
    ({"sender": "CT2"}, False),
    ({"accession": "A-123"}, True),
    ({"accession": "77"}, False),
    ({"since": 1_700_000_000.0 + 3600}, False),
    ({"until": 1_700_000_000.0}, False),
    ({"states": (JobState.HELD,), "sender": "CT1", "reason": "REFUSED_BY_PEER"}, True),
)


def test_held_deliveries_are_found_by_what_is_known_of_them(filled: Stored) -> None:
    job_id = hold_delivery(filled)
    for given, is_found in ASKED_OF_HELD:
        wanted = Wanted(**given)
        needs = [n for group in need_groups(filled.database, wanted) for n in group.needs.lines]
        lines = [(need.job_id, need.destination) for need in needs]
        assert lines == [(job_id, "pacs")] * is_found, given
        assert delivery_ids(filled.database, wanted, 10) == tuple(need.id for need in needs)


@pytest.mark.parametrize("common", [find.COMMON, 0])
def test_a_series_whose_result_is_held_on_its_way_is_held(
    filled: Stored, monkeypatch: pytest.MonkeyPatch, common: int
) -> None:
    monkeypatch.setattr(find, "COMMON", common)
    made = filled.queue.get(hold_delivery(filled)).series_uid
    held = filled.claim()
    filled.queue.hold(held, "MISSING_SLICES", "One.")
    for wanted, uids in (
        (Wanted(states=(JobState.HELD,)), {made, held.series_uid}),
        (Wanted(states=(JobState.FAILED,)), set()),
        (Wanted(reason="REFUSED_BY_PEER"), {made}),
        (Wanted(states=(JobState.SUCCEEDED,), reason="REFUSED_BY_PEER"), set()),
        (Wanted(states=(JobState.HELD,), destination="to-CT1"), {held.series_uid}),
        (Wanted(states=(JobState.HELD,), route="heads"), set()),
        (Wanted(states=(JobState.HELD,), accession="A-12345"), {made}),
    ):
        page = find.find_series(filled.database, wanted)
        assert {line.subject.series_uid for line in page.lines} == uids, wanted


def test_held_deliveries_come_page_by_page(filled: Stored) -> None:
    for number in range(3):
        filled.succeed(f"2.25.{number}")
        filled.ledger.hold(filled.start_delivery("pacs"), "GAVE_UP", "Not delivered.")
        filled.clock.now += 1
    pages = [need_groups(filled.database, Wanted(), 2, offset)[0].needs for offset in (0, 2)]
    assert [[one.job_id for one in page.lines] for page in pages] == [[3, 2], [1]]
    assert [(page.total, page.has_more) for page in pages] == [(3, True), (3, False)]


def test_what_waits_is_grouped_by_its_reason_the_newest_group_first(filled: Stored) -> None:
    """Three series wait for one reason each, or for two; nothing of another state counts."""
    hold_delivery(filled)
    filled.clock.now += 1
    filled.queue.hold(filled.claim(), "MISSING_SLICES", "A slice is missing.")
    filled.clock.now += 1
    filled.queue.fail(filled.claim(), "ValueError", "It raised.")
    filled.clock.now += 1
    filled.queue.hold(filled.claim(), "MISSING_SLICES", "Two slices are missing.")
    groups = need_groups(filled.database, Wanted())
    assert [
        (group.what, group.state, group.reason, group.series, group.needs.total) for group in groups
    ] == [
        ("job", "held", "MISSING_SLICES", 2, 2),
        ("job", "failed", "ValueError", 1, 1),
        ("delivery", "held", "REFUSED_BY_PEER", 1, 1),
    ]
    assert [need.sentence for need in groups[0].needs.lines] == [
        "Two slices are missing.",
        "A slice is missing.",
    ]
    for wanted, reasons in (
        (Wanted(states=(JobState.FAILED,)), ["ValueError"]),
        (Wanted(reason="MISSING_SLICES"), ["MISSING_SLICES"]),
        (Wanted(sender="CT2"), ["MISSING_SLICES", "ValueError"]),
        (Wanted(route="nowhere"), []),
    ):
        groups = need_groups(filled.database, wanted)
        assert [group.reason for group in groups] == reasons, wanted


def test_a_failed_self_test_is_in_no_group(stored: Stored) -> None:
    stored.receive("1.1")
    arrival = stored.arrival()
    stored.queue.complete(arrival.id, {}, [stored.new_job(arrival, "k", kind="selftest")])
    job = stored.queue.claim("w", ("selftest",))
    assert job is not None
    stored.queue.fail(job, "ValueError", "It raised.")
    assert need_groups(stored.database, Wanted()) == ()


def test_filters_choose_from_the_reasons_routes_and_destinations_that_exist(
    filled: Stored,
) -> None:
    assert find.choices(filled.database) == find.Choices((), ("ct-slices", "heads"), ())
    hold_delivery(filled, "GAVE_UP")
    filled.queue.hold(filled.claim(), "MISSING_SLICES", "A slice is missing.")
    filled.queue.refuse(filled.claim(), "TOO_FEW_SLICES", "One.")
    assert find.choices(filled.database) == find.Choices(
        ("GAVE_UP", "MISSING_SLICES", "TOO_FEW_SLICES"),
        ("ct-slices", "heads"),
        ("pacs", "to-CT1"),
    )


def test_what_was_made_is_found_by_its_own_uids(filled: Stored) -> None:
    job = filled.succeed("2.25.7")
    assert found(filled, uid="2.25.7") == [job.series_uid]
    assert found(filled, uid="2.25.7.1") == [job.series_uid]


def test_a_span_of_time_is_cut_out(filled: Stored) -> None:
    last = filled.clock.now
    wanted = Wanted(since=last - 25, until=last - 5)
    assert [one.sender for one in find.jobs(filled.database, wanted).lines] == ["CT2", "CT1"]
    assert find.find_series(filled.database, Wanted(since=last + 1)).lines == ()


def test_pages_follow_each_other_without_a_gap(filled: Stored) -> None:
    pages = [find.jobs(filled.database, Wanted(), 2, offset) for offset in (0, 2, 4)]
    assert [page.total for page in pages] == [4, 4, 4]
    assert [page.has_more for page in pages] == [True, False, False]
    ids = [line.id for line in itertools.chain(*(page.lines for page in pages))]
    assert ids == sorted(ids, reverse=True)
    assert len(set(ids)) == 4


def test_a_comma_that_a_peer_sent_within_a_name_is_found_as_it_is_typed(stored: Stored) -> None:
    what = Received("9.1", "1.1", "1.1.1", CT, EXPLICIT, "CT", patient_name="Doe, Jane")
    stored.archive.keep(what, Peer("CT1", "MIDSLICE"), stored.incoming(content_of(what)))
    (line,) = find.find_series(stored.database, Wanted(name="Doe, J")).lines
    assert line.subject.patient_name == "Doe, Jane"


def test_a_series_without_a_job_is_found_with_what_is_known_of_it(stored: Stored) -> None:
    stored.receive("1.1")
    stored.receive("1.2", version=b"corrected")
    stored.receive("1.2")
    (line,) = find.find_series(stored.database, Wanted(accession="A1")).lines
    assert (line.instances, line.jobs, line.arriving) == (2, (), True)
    assert line.senders == ("SCANNER",)
    assert find.jobs(stored.database, Wanted(accession="A1")).lines == ()


def test_the_series_of_a_self_test_is_no_patients(stored: Stored) -> None:
    stored.ask("k")
    (line,) = find.find_series(stored.database, Wanted()).lines
    selftests.begin(
        stored.database,
        stored.clock(),
        node="one",
        who="anna",
        series_uid=line.subject.series_uid,
        destination="",
    )
    assert find.find_series(stored.database, Wanted()).lines == ()


def test_a_job_is_one_line_with_whose_it_is(filled: Stored) -> None:
    (first, *_) = find.job_ids(filled.database, Wanted())
    line = overview.job_detail(filled.database, first).line
    assert (line.subject.patient_name, line.sender) == ("Müller^Änne", "CT1")
    assert line.destinations == ("pacs", "to-CT1")


def test_a_search_knows_whether_it_names_a_patient() -> None:
    assert Wanted(text="x", sender="CT1").of_a_patient == ("text",)
    assert Wanted(accession="x").of_a_patient == ("accession",)
    assert Wanted(study_date="20240305").of_a_patient == ("study_date",)
    assert Wanted(sender="CT1", reason="MISSING_SLICES").of_a_patient == ()
