"""What may be deleted goes, what may not stays, and what was there remains known."""

from pathlib import Path

import pytest
from sqlalchemy import select, update

from storage import retention
from storage.database import Database
from storage.enqueue import UNREADABLE
from storage.errors import WrongState
from storage.files import Files
from storage.records import DAY, DeliveryState, Expired, JobState, Peer, Purged, Recovered
from storage.recovery import recover
from storage.retention import (
    ASSOCIATION_DAYS,
    ROWS_AT_ONCE,
    HeldWork,
    expired,
    forget_associations,
    purge,
    report_held_work,
    sent,
)
from storage.schema import (
    arrival,
    association,
    delivery_instance,
    derived_instance,
    instance,
    series,
)
from storage.site import notices
from storage.site.audit import Audit
from tests.conftest import Clock
from tests.unit.storage.stored import Stored, read_header

KEEP_DAYS = 7.0
KEEP_UNROUTED_DAYS = 1.0


def old(stored: Stored) -> tuple[Expired, ...]:
    return expired(stored.database, stored.clock.now, KEEP_DAYS, KEEP_UNROUTED_DAYS)


def sweep(stored: Stored) -> Purged:
    return purge(stored.database, stored.files, old(stored), stored.clock.now)


def files_of(stored: Stored) -> list[Path]:
    return [
        path
        for name in ("received", "derived")
        for path in (stored.files.folder / name).rglob("*")
        if path.is_file()
    ]


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
    size = stored.series()[0].bytes
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
    (series,) = stored.series()
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


@pytest.mark.parametrize("end", ["refused", "cancelled"])
def test_a_series_without_a_result_goes_after_the_days_of_the_unrouted(
    stored: Stored, end: str
) -> None:
    job_id = stored.ask("k").job_id
    stored.clock.now += DAY
    if end == "refused":
        stored.queue.refuse(stored.claim(), "NOT_HU", "No.")
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


@pytest.mark.parametrize("state", ["arriving", "queued", "running", "held", "failed"])
def test_a_series_that_is_under_way_stays_for_ever(stored: Stored, state: str) -> None:
    if state == "arriving":
        stored.receive("1.1")
    else:
        stored.ask("k")
    if state in {"running", "held", "failed"}:
        job = stored.claim()
        if state == "held":
            stored.queue.hold(job, "MISSING_SLICES", "One.")
        elif state == "failed":
            stored.queue.fail(job, "ValueError", "No.")
    stored.clock.now += 1000 * DAY
    assert old(stored) == ()


def test_a_failed_job_that_another_one_has_replaced_keeps_nothing(stored: Stored) -> None:
    stored.ask("k")
    stored.queue.fail(stored.claim(), "ValueError", "No.")
    stored.ask("k2", uids=("1.3",))
    stored.succeed()
    stored.deliver()
    stored.clock.now += KEEP_DAYS * DAY
    assert len(old(stored)) == 1


def test_a_failed_job_keeps_its_files_until_a_person_cancels_it(stored: Stored) -> None:
    job_id = stored.ask("k").job_id
    stored.queue.fail(stored.claim(), "ValueError", "No.")
    stored.clock.now += 100 * DAY
    assert old(stored) == ()
    stored.queue.cancel(job_id, who="anna")
    stored.clock.now += KEEP_UNROUTED_DAYS * DAY
    assert len(old(stored)) == 1


def test_a_failed_self_test_keeps_nothing(stored: Stored) -> None:
    stored.ask("k", kind="selftest")
    job = stored.queue.claim("w", ("selftest",))
    assert job is not None
    stored.queue.fail(job, "ValueError", "No.")
    stored.clock.now += KEEP_UNROUTED_DAYS * DAY
    assert len(old(stored)) == 1


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
    for open_arrival in stored.archive.arriving():
        stored.queue.complete(open_arrival.id, {}, [])
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
    assert stored.series()[0].purged_at is None
    (back,) = stored.archive.instances(kept.arrival_id)
    assert (back.id, back.received_at) == (kept.instance_id, stored.clock.now)
    assert stored.files.path(str(back.path)).is_file()


def test_a_job_whose_instances_were_purged_is_not_requeued(stored: Stored) -> None:
    stored.ask("k")
    stored.queue.refuse(stored.claim(), "NOT_HU", "No.")
    stored.clock.now += 8 * DAY
    sweep(stored)
    with pytest.raises(WrongState, match="received files were removed on .* send the series again"):
        stored.queue.requeue(1)
    assert stored.queue.get(1).state is JobState.REFUSED


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


# A purge that was interrupted is finished by the next sweep, and takes nothing that came again.


class Killed(BaseException):
    """Nobody catches it: the process ends here."""


class DiesRemoving(Files):
    """The node dies when it has removed so many files."""

    left = 1_000_000

    def remove(self, relative: str) -> None:
        if self.left == 0:
            raise Killed
        self.left -= 1
        super().remove(relative)


@pytest.fixture
def doomed(
    database: Database, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> Stored:
    """A series of 13 instances without a route, old enough to go; 10 files go at once."""
    monkeypatch.setattr(retention, "FILES_AT_ONCE", 10)
    stored = Stored(database, DiesRemoving(tmp_path / "var", 0), clock)
    for number in range(13):
        stored.receive(f"1.{number}")
    stored.queue.complete(stored.arrival().id, {}, [])
    clock.now += 2 * DAY
    return stored


def dies(stored: Stored, after: int) -> None:
    """Begin to purge, and die; then the node starts again, long after the last clean stop."""
    assert isinstance(stored.files, DiesRemoving)
    stored.files.left = after
    with pytest.raises(Killed):
        sweep(stored)
    stored.files.left = 1_000_000
    assert recover(stored.archive, read_header, since=4e9) == Recovered()


def dangling(stored: Stored) -> list[str]:
    """Rows that name a file which is not there."""
    with stored.database.reading() as db:
        paths = db.execute(select(instance.c.path).where(instance.c.path.is_not(None))).scalars()
        return [path for path in paths if not stored.files.path(path).exists()]


@pytest.mark.parametrize("after", [0, 1, 9, 10, 12])
def test_a_purge_that_a_crash_interrupted_goes_on_with_the_next_sweep(
    doomed: Stored, after: int
) -> None:
    dies(doomed, after)
    assert len(files_of(doomed)) == 13 - after
    assert dangling(doomed) == []
    (marked,) = expired(doomed.database, doomed.clock.now, 1000, 1000)  # no days save it now
    assert purge(doomed.database, doomed.files, [marked], doomed.clock.now).series == (1,)
    assert files_of(doomed) == []
    assert doomed.series()[0].bytes == 0
    assert old(doomed) == ()


def test_what_is_sent_again_after_an_interrupted_purge_stays(doomed: Stored) -> None:
    dies(doomed, 11)
    assert doomed.receive("1.0").is_new
    assert not doomed.receive("1.12").is_new
    doomed.queue.complete(doomed.arrival().id, {}, [])
    assert old(doomed) == ()
    assert len(files_of(doomed)) == 3
    assert dangling(doomed) == []


def test_the_received_and_the_derived_series_go_together_after_a_crash(
    database: Database, tmp_path: Path, clock: Clock
) -> None:
    stored = Stored(database, DiesRemoving(tmp_path / "var", 0), clock)
    stored.ask("k", destinations=())
    stored.succeed()
    stored.clock.now += 8 * DAY
    stored.files.left = 0  # type: ignore[attr-defined]  # of DiesRemoving
    with pytest.raises(Killed):
        sweep(stored)
    stored.files.left = 10  # type: ignore[attr-defined]
    assert len(files_of(stored)) == 4
    assert sweep(stored).series == (1,)
    assert files_of(stored) == []


class SendsAgain(Files):
    """A peer sends an instance again when the purge has begun and no received file is gone yet."""

    stored: Stored | None = None

    def remove(self, relative: str) -> None:
        if self.stored is not None and relative.startswith("derived/"):
            self.stored.receive("1.1")
        super().remove(relative)


def test_what_is_sent_again_within_a_purge_stays(
    database: Database, tmp_path: Path, clock: Clock
) -> None:
    files = SendsAgain(tmp_path / "var", 0)
    stored = Stored(database, files, clock)
    stored.ask("k", destinations=())
    stored.succeed()
    clock.now += 8 * DAY
    files.stored = stored
    sweep(stored)
    assert len(stored.archive.instances(stored.arrival().id)) == 2
    assert len(files_of(stored)) == 2
    assert dangling(stored) == []
    assert stored.complete("k").what == "requeued"  # what was made of it is gone


def test_a_job_is_not_requeued_on_files_that_are_about_to_go(doomed: Stored) -> None:
    doomed.receive("1.0")
    job_id = doomed.complete("k").job_id
    doomed.queue.refuse(doomed.claim(), "NOT_HU", "No.")
    doomed.clock.now += 2 * DAY
    dies(doomed, 0)
    with pytest.raises(WrongState, match="received files were removed on .* send the series again"):
        doomed.queue.requeue(job_id)


def test_a_file_that_cannot_be_removed_is_tried_again_and_stops_no_other(doomed: Stored) -> None:
    with doomed.database.writing() as db:
        one = instance.c.instance_uid == "1.7"
        (good,) = db.execute(select(instance.c.path).where(one)).scalars()
        db.execute(instance.update().where(one).values(path="../outside.dcm"))
    assert sweep(doomed) == Purged(failed=(1,))
    assert files_of(doomed) == [doomed.files.path(str(good))]
    with doomed.database.writing() as db:
        db.execute(instance.update().where(one).values(path=good))
    assert sweep(doomed).series == (1,)
    assert files_of(doomed) == []


# What waits for a person keeps retention away, and somebody is told.


def told(stored: Stored) -> HeldWork | None:
    return report_held_work(stored.database, stored.clock.now, KEEP_DAYS)


def test_a_dead_delivery_is_told_once_a_day_until_somebody_decides(stored: Stored) -> None:
    stored.ask("k")
    stored.succeed()
    stored.ledger.hold(stored.start_delivery(), "NO_DESTINATION", "Nobody knows it.")
    assert told(stored) is None  # it is young
    stored.clock.now += (KEEP_DAYS + 1) * DAY
    assert old(stored) == ()
    assert told(stored) == HeldWork(series=1, jobs=0, deliveries=1)
    assert told(stored) is None
    stored.clock.now += DAY + 1
    assert told(stored) == HeldWork(series=1, jobs=0, deliveries=1)
    events = Audit(stored.database, stored.clock).list(what="notice")
    assert [event.which for event in events] == ["retention waits"] * 2
    assert "1 held deliveries wait for a person" in str(events[0].detail["sentence"])
    posted = notices.address(stored.database, stored.clock(), (), ())
    facts = {"sentence": events[0].detail["sentence"]}
    assert [(notice.event, notice.facts) for notice in posted] == [("attention", facts)] * 2
    stored.ledger.cancel(1)
    stored.clock.now += 2 * DAY
    assert told(stored) is None


@pytest.mark.parametrize("state", ["held", "failed"])
def test_a_job_that_waits_for_a_person_is_told_too(stored: Stored, state: str) -> None:
    stored.ask("k")
    if state == "held":
        stored.queue.hold(stored.claim(), "MISSING_SLICES", "One is missing.")
    else:
        stored.queue.fail(stored.claim(), "ValueError", "No.")
    stored.clock.now += (KEEP_DAYS + 1) * DAY
    assert told(stored) == HeldWork(series=1, jobs=1, deliveries=0)


def test_a_series_that_nobody_can_read_waits_until_it_was_sent_again(stored: Stored) -> None:
    asked = stored.ask("k", stack=UNREADABLE)
    stored.queue.hold(stored.claim(), "PIXEL_DATA_ERROR", "None can be read.")
    stored.clock.now += 100 * DAY
    assert old(stored) == ()  # no retention without a word
    stored.receive("1.1", peer=Peer("ANOTHER", "MIDSLICE"))
    stored.complete("other", peer=Peer("ANOTHER", "MIDSLICE"))
    assert stored.queue.get(asked.job_id).reason == "PIXEL_DATA_ERROR"
    stored.receive("1.1", version=b"whole")
    stored.queue.complete(stored.arrival().id, {}, [])  # it is of no route, but can be read
    done = stored.queue.get(asked.job_id)
    assert (done.state, done.reason) == ("cancelled", "SUPERSEDED")
    assert "can now be read" in done.sentence


def processed(stored: Stored, series_uid: str) -> None:
    """A series of its own with a result that nobody has been sent yet."""
    stored.receive(f"{series_uid}.1", series_uid=series_uid)
    open_arrival = stored.arrival(series_uid=series_uid)
    new = stored.new_job(open_arrival, series_uid)
    stored.queue.complete(open_arrival.id, {"quiet_seconds": 30}, [new])
    stored.succeed(f"2.25.{series_uid}")
    stored.clock.now += 10


def test_what_was_sent_can_go_early_the_oldest_first_and_nothing_else(stored: Stored) -> None:
    for series_uid in ("1.2.1", "1.2.2", "1.2.3", "1.2.4"):
        processed(stored, series_uid)
        stored.deliver()
    promised = update(series).where(series.c.series_uid == "1.2.3").values(committed_at=1.0)
    lost = select(series.c.id).where(series.c.series_uid == "1.2.4").scalar_subquery()
    with stored.database.writing() as db:
        db.execute(promised)
        db.execute(update(arrival).where(arrival.c.series_id == lost).values(restored=1))
    processed(stored, "1.2.5")
    stored.receive("1.2.6.1", series_uid="1.2.6")
    assert [it.series_uid for it in sent(stored.database)] == ["1.2.1", "1.2.2"]
    oldest, _ = sent(stored.database)
    assert purge(stored.database, stored.files, (oldest,), stored.clock.now).series
    assert [it.series_uid for it in sent(stored.database)] == ["1.2.2"]
