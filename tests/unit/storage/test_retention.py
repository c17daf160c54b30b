"""What may be deleted goes, what may not stays, and what was there remains known."""

import pytest
from sqlalchemy import select

from storage.errors import WrongState
from storage.records import DeliveryState, JobState, Peer, Purged
from storage.retention import (
    ASSOCIATION_DAYS,
    DAY,
    ROWS_AT_ONCE,
    forget_associations,
    purge,
)
from storage.schema import association, delivery_instance, derived_instance, instance
from tests.unit.storage.purging import KEEP_DAYS, KEEP_UNROUTED_DAYS, files_of, old, sweep
from tests.unit.storage.stored import Stored


def test_a_delivered_series_goes_after_its_days_with_what_was_made_of_it(stored: Stored) -> None:
    stored.ask("k")
    stored.succeed()
    stored.clock.now += 3 * DAY
    stored.deliver()
    stored.clock.now += KEEP_DAYS * DAY - 1
    assert old(stored) == ()
    stored.clock.now += 1
    (one,) = old(stored)
    assert (one.rule, one.since) == ("keep_days", stored.clock.now - KEEP_DAYS * DAY)
    size = stored.archive.series()[0].bytes
    assert sweep(stored) == Purged(series=(one.series_id,), bytes=size)
    assert files_of(stored) == []
    assert list((stored.files.folder / "derived").iterdir()) == []
    assert old(stored) == ()


def test_uids_digests_and_the_ledger_stay(stored: Stored) -> None:
    stored.ask("k")
    stored.succeed()
    stored.deliver()
    stored.clock.now += 8 * DAY
    sweep(stored)
    (series,) = stored.archive.series()
    assert (series.purged_at, series.bytes, series.instances) == (stored.clock.now, 0, 2)
    with stored.database.reading() as db:
        rows = db.execute(select(instance.c.instance_uid, instance.c.digest, instance.c.path))
        assert {(row[0], len(row[1]), row[2]) for row in rows} == {
            ("1.1", 64, None),
            ("1.2", 64, None),
        }
        assert len(db.execute(select(derived_instance.c.instance_uid)).all()) == 2
        assert len(db.execute(select(delivery_instance.c.status)).all()) == 2
    assert stored.queue.get(1).state is JobState.SUCCEEDED
    assert stored.ledger.of_job(1)[0].state is DeliveryState.SENT


def test_a_series_without_a_route_goes_after_its_own_days(stored: Stored) -> None:
    stored.receive("1.1")
    stored.queue.complete(stored.arrival().id, {}, [])
    stored.clock.now += KEEP_UNROUTED_DAYS * DAY - 1
    assert old(stored) == ()
    stored.clock.now += 1
    assert [one.rule for one in old(stored)] == ["keep_unrouted_days"]
    assert sweep(stored).series == (1,)
    assert files_of(stored) == []


@pytest.mark.parametrize("end", ["refused", "failed", "cancelled"])
def test_a_series_without_a_result_goes_after_the_days_of_the_unrouted(
    stored: Stored, end: str
) -> None:
    job_id = stored.ask("k").job_id
    stored.clock.now += DAY
    if end == "refused":
        stored.queue.refuse(stored.claim(), "NOT_HU", "No.")
    elif end == "failed":
        stored.queue.fail(stored.claim(), "ValueError", "No.")
    else:
        stored.queue.cancel(job_id)
    stored.clock.now += KEEP_UNROUTED_DAYS * DAY - 1
    assert old(stored) == ()
    stored.clock.now += 1
    assert len(old(stored)) == 1


def test_a_series_in_shadow_mode_goes_after_its_days(stored: Stored) -> None:
    stored.ask("k", destinations=())
    stored.succeed()
    stored.clock.now += KEEP_DAYS * DAY
    assert sweep(stored).series == (1,)


@pytest.mark.parametrize("state", ["arriving", "queued", "running", "held"])
def test_a_series_that_is_under_way_stays_for_ever(stored: Stored, state: str) -> None:
    if state == "arriving":
        stored.receive("1.1")
    else:
        stored.ask("k")
    if state in {"running", "held"}:
        job = stored.claim()
        if state == "held":
            stored.queue.hold(job, "MISSING_SLICES", "One.")
    stored.clock.now += 1000 * DAY
    assert old(stored) == ()


@pytest.mark.parametrize("state", ["queued", "running", "held"])
def test_a_series_that_is_not_sent_stays_for_ever(stored: Stored, state: str) -> None:
    stored.ask("k", destinations=("viewer", "pacs"))
    stored.succeed()
    stored.deliver("viewer")
    if state != "queued":
        delivery = stored.start_delivery("pacs")
        if state == "held":
            stored.ledger.hold(delivery, "REFUSED_BY_PEER", "No.")
    stored.clock.now += 1000 * DAY
    assert old(stored) == ()


def test_one_unfinished_job_keeps_the_whole_series(stored: Stored) -> None:
    stored.ask("k1")
    stored.succeed()
    stored.deliver()
    stored.ask("k2", route="another")
    stored.clock.now += 1000 * DAY
    assert old(stored) == ()


def test_what_came_into_use_since_it_was_found_is_skipped(stored: Stored) -> None:
    stored.ask("k")
    stored.succeed()
    stored.deliver()
    stored.clock.now += 8 * DAY
    found = old(stored)
    stored.receive("1.1")  # the peer sends it again just now
    result = purge(stored.database, stored.files, found, stored.clock.now)
    assert result == Purged(skipped=(1,))
    stored.complete("k")
    assert stored.start_delivery().total == 2
    assert len(files_of(stored)) == 4


def test_what_was_touched_since_it_was_found_begins_its_days_anew(stored: Stored) -> None:
    stored.receive("1.1")
    stored.queue.complete(stored.arrival().id, {}, [])
    stored.clock.now += 2 * DAY
    found = old(stored)
    stored.receive("1.1")
    stored.queue.complete(stored.arrival().id, {}, [])  # nothing is under way any more
    assert purge(stored.database, stored.files, found, stored.clock.now) == Purged(skipped=(1,))
    assert len(files_of(stored)) == 1


def test_one_that_cannot_be_removed_does_not_stop_the_rest(stored: Stored) -> None:
    for number in range(3):
        stored.receive("1.1", series_uid=f"1.2.{number}")
    for arrival in stored.archive.arriving():
        stored.queue.complete(arrival.id, {}, [])
    stored.clock.now += 2 * DAY
    broken = stored.archive.series_by_uid("1.2.1")[0].id
    with stored.database.writing() as db:
        db.execute(
            instance.update().where(instance.c.series_id == broken).values(path="../outside.dcm")
        )
    result = sweep(stored)
    assert result.failed == (broken,)
    assert sorted(result.series) == sorted({1, 2, 3} - {broken})
    assert len(files_of(stored)) == 1


def test_a_purged_series_can_be_received_and_processed_again(stored: Stored) -> None:
    stored.ask("k", destinations=())
    stored.succeed()
    stored.clock.now += 8 * DAY
    sweep(stored)
    kept = stored.receive("1.1")
    assert kept.is_new
    assert stored.archive.series()[0].purged_at is None
    (back,) = stored.archive.instances(kept.arrival_id)
    assert (back.id, back.received_at) == (kept.instance_id, stored.clock.now)
    assert stored.files.path(str(back.path)).is_file()


def test_a_job_whose_instances_were_purged_is_not_requeued(stored: Stored) -> None:
    stored.ask("k")
    stored.queue.fail(stored.claim(), "ValueError", "No.")
    stored.clock.now += 8 * DAY
    sweep(stored)
    with pytest.raises(WrongState, match="received files were removed on .* send the series again"):
        stored.queue.requeue(1)
    assert stored.queue.get(1).state is JobState.FAILED


def test_a_purged_result_is_not_delivered_again(stored: Stored) -> None:
    stored.ask("k")
    stored.succeed()
    stored.deliver()
    stored.clock.now += 8 * DAY
    sweep(stored)
    with pytest.raises(WrongState, match="derived series was removed on .* send the series again"):
        stored.ledger.redeliver(1)
    assert stored.ledger.claim("pacs", "s") is None


def test_a_series_larger_than_one_bite_goes_as_a_whole(stored: Stored) -> None:
    for number in range(130):
        stored.receive(f"1.{number}")
    stored.queue.complete(stored.arrival().id, {}, [])
    stored.clock.now += 2 * DAY
    assert sweep(stored).series == (1,)
    assert files_of(stored) == []
    assert list((stored.files.folder / "received").rglob("*.dcm")) == []


def ended_at(stored: Stored, days: float, count: int = 1) -> None:
    """Associations that ended so many days ago."""
    at = stored.clock.now - days * DAY
    one = {"node": "one", "calling_ae": "SCANNER", "called_ae": "MIDSLICE", "address": "10.0.0.7"}
    with stored.database.writing() as db:
        db.execute(
            association.insert(),
            [{**one, "opened_at": at, "ended_at": at, "how": "released"}] * count,
        )


def associations(stored: Stored) -> int:
    with stored.database.reading() as db:
        return len(db.execute(select(association.c.id)).all())


def test_associations_that_ended_long_ago_are_forgotten(stored: Stored) -> None:
    ended_at(stored, ASSOCIATION_DAYS + 0.1, ROWS_AT_ONCE + 3)
    ended_at(stored, ASSOCIATION_DAYS - 0.1, 2)
    stored.archive.associated("SCANNER", "MIDSLICE", "10.0.0.7")  # it is open
    assert forget_associations(stored.database, stored.clock.now) == ROWS_AT_ONCE + 3
    assert associations(stored) == 3
    assert forget_associations(stored.database, stored.clock.now) == 0


def test_associations_of_an_open_arrival_stay_and_of_a_complete_one_its_evidence_does(
    stored: Stored,
) -> None:
    for series_uid in ("1.2.1", "1.2.2"):
        brought_by = stored.archive.associated("SCANNER", "MIDSLICE", "10.0.0.7")
        peer = Peer("SCANNER", "MIDSLICE", brought_by)
        stored.receive("1.1", series_uid=series_uid, peer=peer)
        stored.archive.dissociated(brought_by, "released")
    complete = stored.arrival(series_uid="1.2.1")
    stored.queue.complete(complete.id, {"released": 1}, [])
    stored.clock.now += (ASSOCIATION_DAYS + 1) * DAY
    assert forget_associations(stored.database, stored.clock.now) == 1
    assert stored.arrival(series_uid="1.2.2").released == 1
    assert stored.archive.arrival(complete.id).evidence == {"released": 1}
