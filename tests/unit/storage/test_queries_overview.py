"""What a page says is going on is what the rows say: arriving, waiting, running, sending."""

from dataclasses import replace

import pytest

from storage.errors import NotFound
from storage.queries import overview
from storage.queries.figures import evaluation
from storage.queries.find import needing
from storage.records import DeliveryState, JobState, Peer, RequestKind, SwitchName
from storage.site import control
from tests.unit.storage.stored import SERIES, Stored

OTHER = "1.2.3.5"


def more(stored: Stored, count: int, state: str = "") -> list[int]:
    """So many jobs, one a series."""
    made = []
    for number in range(count):
        uid = f"1.2.9.{stored.numbers()}"
        stored.receive("1.1", series_uid=uid)
        arrival = stored.arrival(series_uid=uid)
        (job,) = stored.queue.complete(arrival.id, {}, [stored.new_job(arrival, f"{state}{uid}")])
        made.append(job.job_id)
        stored.clock.now += 1 + number
    return made


def test_what_arrives_is_shown_with_its_sender_and_what_people_want_of_it(stored: Stored) -> None:
    number = stored.archive.associated("SCANNER", "MIDSLICE", "10.0.0.7")
    stored.receive("1.1", peer=Peer("SCANNER", "MIDSLICE", number))
    stored.receive("1.2", peer=Peer("SCANNER", "MIDSLICE", number))
    stored.clock.now += 5
    stored.receive("2.1", series_uid=OTHER, peer=Peer("ROUTER", "MIDSLICE"))
    database, now = stored.database, stored.clock()
    control.turn(database, now, "anna", SwitchName.NEVER, OTHER, on=True)
    control.ask(database, now, "anna", RequestKind.PROCESS_NOW, SERIES)
    first, second = overview.arriving(database)
    assert (first.arrival.calling_ae, first.arrival.instances) == ("SCANNER", 2)
    assert first.arrival.open_associations == 1
    assert (first.asked, first.never) == (True, False)
    assert (second.asked, second.never) == (False, True)
    assert second.subject.patient_id == "P1"
    assert "P1" not in repr(second.subject)


def test_the_queue_is_in_the_order_in_which_workers_take_it(stored: Stored) -> None:
    ids = more(stored, 3)
    stored.queue.prioritise(ids[2], 1)
    page = overview.queue(stored.database, stored.clock(), workers=1)
    assert [one.job.id for one in page.lines] == [ids[2], ids[0], ids[1]]
    assert [one.place for one in page.lines] == [1, 2, 3]
    assert [one.expected_at for one in page.lines] == [None] * 3  # nothing ever ran
    assert stored.claim().id == ids[2]


def test_a_start_is_expected_by_what_jobs_took_of_late(stored: Stored) -> None:
    more(stored, 1)
    running = stored.claim()
    stored.clock.now += 60
    stored.queue.succeed(running, stored.derive(running))
    more(stored, 4)
    stored.claim()
    now = stored.clock()
    page = overview.queue(stored.database, now, workers=2)
    # One worker is free at once, the other in a minute; then each takes a minute for the next.
    assert [round((one.expected_at or 0) - now) for one in page.lines] == [0, 60, 60]
    control.turn(stored.database, now, "anna", SwitchName.DRAINING, on=True)
    page = overview.queue(stored.database, now, workers=2)
    assert [one.expected_at for one in page.lines] == [None] * 3


def test_a_running_job_says_how_far_it_is_and_how_long_it_takes_still(stored: Stored) -> None:
    more(stored, 1)
    job = stored.claim()
    stored.clock.now += 30
    stored.queue.renew(job, 0.25, "predicting", 5, 20)
    (found,) = overview.running(stored.database, stored.clock())
    assert (found.seconds, found.seconds_left) == (30, 90)
    assert (found.job.step, found.job.step_done, found.job.step_total) == ("predicting", 5, 20)
    stored.queue.renew(job, 0.3)  # a renewal without a step keeps the last one
    (found,) = overview.running(stored.database, stored.clock())
    assert found.job.step == "predicting"


def test_what_is_sent_says_how_much_of_it_is_there(stored: Stored) -> None:
    stored.ask("k")
    job = stored.succeed()
    delivery = stored.start_delivery()
    first = stored.ledger.unsent(delivery)[0]
    stored.ledger.answered(delivery, first.id, 0, stored=True)
    (line,) = overview.sending(stored.database).lines
    assert (line.delivery.state, line.job_id) == (DeliveryState.RUNNING, job.id)
    assert (line.delivery.sent, line.delivery.total, line.generated) == (1, 2, 1)
    assert (line.subject.series_uid, line.delivery.derived_series_uid) == (SERIES, "2.25.1")


def test_what_was_sent_waits_for_proof_where_a_destination_gives_any(stored: Stored) -> None:
    stored.ask("k")
    stored.succeed()
    stored.deliver()
    assert overview.sending(stored.database).total == 0
    assert overview.unconfirmed(stored.database, ["pacs"]).total == 1
    assert overview.unconfirmed(stored.database, ["research"]).total == 0


def test_what_needs_a_person_is_listed_newest_first_and_counted(stored: Stored) -> None:
    more(stored, 3)
    held, failed, fine = stored.claim(), stored.claim(), stored.claim()
    stored.queue.hold(held, "MISSING_SLICES", "A slice is missing.")
    stored.clock.now += 1
    stored.queue.fail(failed, "ValueError", "It raised.", "frames")
    stored.clock.now += 1
    stored.queue.succeed(fine, stored.derive(fine))
    delivery = stored.start_delivery()
    stored.clock.now += 1
    stored.ledger.hold(delivery, "REFUSED_BY_PEER", "No.")
    page = needing(stored.database)
    assert [(one.what, one.reason) for one in page.lines] == [
        ("delivery", "REFUSED_BY_PEER"),
        ("job", "ValueError"),
        ("job", "MISSING_SLICES"),
    ]
    assert page.total == 3
    assert (page.lines[0].destination, page.lines[0].job_id) == ("pacs", fine.id)
    assert page.lines[0].sender == page.lines[1].sender == "SCANNER"
    second = needing(stored.database, limit=1, offset=1)
    assert [one.id for one in second.lines] == [failed.id]
    assert second.has_more
    counts = overview.counts(stored.database)
    assert (counts["job held"], counts["job failed"], counts["delivery held"]) == (1, 1, 1)
    assert (counts["job succeeded"], counts["job queued"]) == (1, 0)


def test_a_self_test_that_failed_is_no_patient_that_waits(stored: Stored) -> None:
    stored.receive("1.1")
    arrival = stored.arrival()
    stored.queue.complete(arrival.id, {}, [stored.new_job(arrival, "k", kind="selftest")])
    job = stored.queue.claim("w", ("selftest",))
    assert job is not None
    stored.queue.fail(job, "ValueError", "It raised.")
    assert needing(stored.database).total == 0


def test_a_job_whose_files_were_removed_is_said_to_be_past_mending(stored: Stored) -> None:
    kept, gone = more(stored, 2)
    for _ in (kept, gone):
        stored.queue.fail(stored.claim(), "ValueError", "It raised.")
    stored.lose(stored.queue.get(gone).series_id)
    assert {one.id: one.is_gone for one in needing(stored.database).lines} == {
        kept: False,
        gone: True,
    }
    assert overview.job_detail(stored.database, gone).is_gone
    assert not overview.job_detail(stored.database, kept).is_gone


def test_nothing_needs_a_person_where_nothing_does(stored: Stored) -> None:
    page = needing(stored.database)
    assert (page.lines, page.total, page.has_more, page.is_whole) == ((), 0, False, True)


def test_the_detail_of_a_job_goes_from_the_first_instance_to_the_last_delivery(
    stored: Stored,
) -> None:
    stored.receive("1.1")
    stored.clock.now += 10
    stored.receive("1.2")
    stored.clock.now += 30
    job_id = stored.complete("k").job_id
    stored.clock.now += 5
    job = stored.claim()
    stored.queue.release(job)
    stored.clock.now += 5
    stored.queue.prioritise(job_id, 1, who="anna")
    stored.succeed()
    stored.clock.now += 5
    stored.deliver()
    found = overview.job_detail(stored.database, job_id)
    assert [(moment.what, moment.at) for moment in found.moments] == sorted(
        ((moment.what, moment.at) for moment in found.moments), key=lambda pair: pair[1]
    )
    whats = [moment.what for moment in found.moments]
    assert whats[:4] == ["first instance", "last instance", "complete", "queued"]
    assert whats[4:6] == ["started", "released"]
    assert whats[-2:] == ["sending", "sent"] or set(whats[-2:]) == {"sending", "sent"}
    assert [moment.who for moment in found.moments if moment.what == "prioritise"] == ["anna"]
    assert [one.number for one in found.attempts] == [1, 2]
    assert found.folder == f"derived/{job_id}-2"
    assert (found.arrival.instances, found.line.sender) == (2, "SCANNER")
    assert [one.state for one in found.deliveries] == [DeliveryState.SENT]
    assert found.job.state is JobState.SUCCEEDED


def test_there_is_no_detail_of_what_never_was(stored: Stored) -> None:
    with pytest.raises(NotFound, match="no job 7"):
        overview.job_detail(stored.database, 7)


def test_where_the_results_of_jobs_go_is_told_by_destination(stored: Stored) -> None:
    stored.ask("k", destinations=("pacs", "clinic"))
    done = stored.succeed()
    stored.deliver("pacs")
    leased = stored.start_delivery("clinic")
    stored.ledger.hold(leased, "REFUSED", "The destination refuses it.")
    (waiting,) = more(stored, 1)
    went = overview.delivery_states(stored.database, [done.id, waiting])
    assert went == {done.id: (("pacs", DeliveryState.SENT), ("clinic", DeliveryState.HELD))}
    assert overview.held(stored.database) == {"clinic": 1}
    assert overview.held_for(stored.database, "clinic", 5) == (leased.id,)
    assert overview.held_for(stored.database, "pacs", 5) == ()


def test_a_route_is_judged_by_its_jobs_and_by_what_its_model_said_of_its_slices(
    stored: Stored,
) -> None:
    words = (20, 0.9, "sure"), (40, 0.4, "unsure"), (30, 0.7, "large_anatomy_only")
    told = [{"error_hu": hu, "confidence": sure, "word": word} for hu, sure, word in words]
    told.append({"word": "large_anatomy_only"})  # of a model that says nothing itself
    stored.ask("k", route="shadow", destinations=())
    job = stored.claim()
    made = replace(stored.derive(job), record={"confidence": told})
    stored.queue.succeed(job, made)
    stored.ask("l", ("1.4",), stack="b", route="shadow", destinations=())
    stored.queue.hold(stored.claim(), "LOW_CONFIDENCE", "It is not sure enough.", {})
    found = evaluation(stored.database, "shadow", stored.clock() - 60)
    assert found.jobs == {JobState.SUCCEEDED: 1, JobState.HELD: 1}
    assert (found.slices, found.expected_error_hu, found.unsure) == (3, 30.0, 1)
    later = evaluation(stored.database, "shadow", stored.clock() + 60)
    assert (later.jobs, later.slices, later.expected_error_hu) == ({}, 0, None)
    assert evaluation(stored.database, "other", 0.0).jobs == {}


def test_lists_say_how_many_slices_are_sure_without_their_records(stored: Stored) -> None:
    counts = {"sure": 12, "fair": 3, "unsure": 1, "large_anatomy_only": 0}
    stored.ask("k")
    job = stored.claim()
    made = replace(stored.derive(job), record={"confidence_counts": counts, "notes": []})
    stored.queue.succeed(job, made)
    stored.ask("l", ("1.4",), stack="b")
    stored.queue.hold(stored.claim(), "LOW_CONFIDENCE", "Not sure.", {"confidence_counts": counts})
    stored.ask("m", ("1.5",), stack="c")
    stored.queue.hold(stored.claim(), "MISSING_SLICES", "One is missing.", {})
    lines = overview.finished(stored.database)
    assert {line.reason: line.confidence_counts for line in lines} == {
        "": counts,
        "LOW_CONFIDENCE": counts,
        "MISSING_SLICES": {},
    }
    assert stored.queue.get(job.id).confidence_counts == counts
