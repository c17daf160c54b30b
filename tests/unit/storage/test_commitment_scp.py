"""Storage commitment as SCP: what may be promised, and until when it is owed."""

import pytest
from sqlalchemy import select

from storage.commitment_scp import CLASS_CONFLICT, NO_SUCH_INSTANCE, forget, open_counts
from storage.errors import LeaseLost
from storage.records import CommitmentReport, OwedReport, Reference
from storage.retention import expired
from storage.schema import instance, owed_report
from tests.unit.storage.stored import CT, Stored

MR = "1.2.840.10008.5.1.4.1.1.4"
KEPT, LATER, MISSING = Reference(CT, "1.1"), Reference(CT, "1.2"), Reference(CT, "1.9")
DAY = 86_400


def owe(stored: Stored, *references: Reference, due_in: float = 0.0) -> int:
    due_at = stored.clock.now + due_in
    return stored.owed.owe("SCANNER", "MIDSLICE", "2.25.7", references, due_at)


def states(stored: Stored) -> list[str]:
    return list(stored.database.values(select(owed_report.c.state)))


def claim(stored: Stored, calling_ae: str = "SCANNER") -> OwedReport:
    leased = stored.owed.claim(calling_ae, "reporter")
    assert leased is not None
    return leased


def judged(stored: Stored, *references: Reference) -> CommitmentReport:
    owe(stored, *references)
    return stored.owed.judge(claim(stored))


def test_what_is_on_disk_and_in_the_index_is_promised(stored: Stored) -> None:
    stored.receive("1.1")
    report = judged(stored, KEPT, MISSING)
    assert (report.transaction_uid, report.committed) == ("2.25.7", (KEPT,))
    assert report.failed == {MISSING: NO_SUCH_INSTANCE}


def test_an_instance_of_another_class_is_a_conflict(stored: Stored) -> None:
    stored.receive("1.1")
    wrong = Reference(MR, "1.1")
    assert judged(stored, wrong).failed == {wrong: CLASS_CONFLICT}


@pytest.mark.parametrize("damage", ["removed", "cut short"])
def test_what_is_not_whole_on_disk_is_not_promised(stored: Stored, damage: str) -> None:
    stored.receive("1.1")
    (path,) = stored.database.values(instance.select().with_only_columns(instance.c.path))
    file = stored.files.path(path)
    content = file.read_bytes()
    file.chmod(0o600)
    file.unlink()
    if damage == "cut short":
        file.write_bytes(content[:-1])
    assert judged(stored, KEPT).failed == {KEPT: NO_SUCH_INSTANCE}


def test_what_retention_has_removed_is_not_promised(stored: Stored) -> None:
    stored.ask("k", uids=["1.1"])
    stored.succeed()
    stored.deliver()
    stored.purge_all()
    assert judged(stored, KEPT).failed == {KEPT: NO_SUCH_INSTANCE}


def test_what_was_promised_stays_for_keep_days_and_not_for_the_days_without_a_route(
    stored: Stored,
) -> None:
    stored.receive("1.1")
    stored.queue.complete(stored.arrival().id, {}, [])
    stored.clock.now += 2 * DAY - 1  # longer than what has no route
    assert judged(stored, KEPT).committed == (KEPT,)
    stored.clock.now += 7 * DAY - 1
    assert expired(stored.database, stored.clock.now, 7, 1) == ()
    stored.clock.now += 1
    assert len(expired(stored.database, stored.clock.now, 7, 1)) == 1


def test_a_report_is_due_at_its_time_to_its_sender_and_once(stored: Stored) -> None:
    owe(stored, KEPT, due_in=5)
    assert stored.owed.claim("SCANNER", "reporter") is None
    stored.clock.now += 5
    assert stored.owed.claim("OTHER", "reporter") is None
    leased = claim(stored)
    assert (leased.called_ae, leased.references) == ("MIDSLICE", (KEPT,))
    stored.owed.sent(leased, stored.owed.judge(leased))
    assert stored.owed.claim("SCANNER", "reporter") is None
    assert states(stored) == ["sent"]


def test_its_own_association_may_report_before_it_is_due_but_not_as_well(stored: Stored) -> None:
    report_id = owe(stored, KEPT, due_in=5)
    leased = stored.owed.claim_one(report_id, "association")
    assert leased is not None
    stored.clock.now += 5
    assert stored.owed.claim("SCANNER", "reporter") is None
    stored.owed.sent(leased, stored.owed.judge(leased))
    assert stored.owed.claim_one(report_id, "association") is None


def test_a_report_that_did_not_arrive_is_tried_again_and_given_up(stored: Stored) -> None:
    owe(stored, KEPT)
    assert open_counts(stored.database) == {"SCANNER": 1}
    stored.owed.retry(claim(stored), stored.clock.now + 30, "It is down.")
    assert stored.owed.claim("SCANNER", "reporter") is None
    stored.clock.now += 30
    leased = claim(stored)
    assert leased.tries == 1
    stored.owed.failed(leased, "It is down.")
    assert states(stored) == ["failed"]
    assert open_counts(stored.database) == {}


def test_what_a_dead_process_was_reporting_is_reported_again(stored: Stored) -> None:
    owe(stored, KEPT)
    leased = claim(stored)
    assert stored.owed.recover() == 1
    again = claim(stored)
    with pytest.raises(LeaseLost):
        stored.owed.sent(leased, stored.owed.judge(leased))
    stored.owed.sent(again, stored.owed.judge(again))


def test_a_request_that_comes_again_is_reported_again(stored: Stored) -> None:
    first = owe(stored, KEPT)
    leased = claim(stored)
    stored.owed.sent(leased, stored.owed.judge(leased))
    assert owe(stored, KEPT, LATER) == first
    assert claim(stored).references == (KEPT, LATER)


def test_a_sender_that_may_not_ask_any_more_is_owed_nothing(stored: Stored) -> None:
    owe(stored, KEPT)
    assert stored.owed.leave({"SCANNER"}, "") == 0
    assert stored.owed.leave((), "It is not configured any more.") == 1
    assert stored.owed.claim("SCANNER", "reporter") is None


def test_reports_of_long_ago_are_forgotten(stored: Stored) -> None:
    owe(stored, KEPT)
    leased = claim(stored)
    stored.owed.sent(leased, stored.owed.judge(leased))
    forget(stored.database, stored.clock.now)
    assert states(stored) == ["sent"]
    forget(stored.database, stored.clock.now + 1)
    assert states(stored) == []
