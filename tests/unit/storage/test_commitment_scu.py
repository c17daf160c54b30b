"""Storage commitment asked of destinations: what counts as proof, and what follows without it."""

import pytest
from sqlalchemy import select

from storage.commitment_scu import NOT_CONFIRMED, NextStep, Settled, Shortfall
from storage.errors import LeaseLost
from storage.records import (
    Commitment,
    CommitmentReport,
    CommitmentState,
    DeliveryState,
    Evidence,
    Reference,
)
from storage.retention import expired
from storage.schema import commitment_request, notice
from tests.unit.storage.stored import CT, Stored

FIRST, SECOND = Reference(CT, "2.25.1.0"), Reference(CT, "2.25.1.1")
NO_SUCH_INSTANCE = 0x0112
DAY = 86_400


class Decisions:
    """Decides in turn what it is told, and keeps what it was asked about."""

    def __init__(self, *kinds: str, due_at: float = 0.0) -> None:
        self.kinds = list(kinds)
        self.due_at = due_at
        self.shortfalls: list[Shortfall] = []

    def __call__(self, shortfall: Shortfall) -> NextStep:
        self.shortfalls.append(shortfall)
        kind = self.kinds.pop(0)
        return NextStep(kind, f"They {kind}.", self.due_at)  # type: ignore[arg-type]


NONE = Decisions()  # fails where anything has to be decided


@pytest.fixture
def sent(stored: Stored) -> Stored:
    """A derived series of two instances that `pacs` has stored, and is asked to prove."""
    stored.ask("k")
    stored.succeed()
    stored.deliver(proof=True)
    return stored


def claim(stored: Stored) -> Commitment:
    leased = stored.commitments.claim("pacs", "asker")
    assert leased is not None
    return leased


def asked(stored: Stored, uid: str = "2.25.7", due_in: float = DAY) -> Commitment:
    """Ask for what is due, and have the request accepted."""
    leased = claim(stored)
    stored.commitments.begin(leased, uid)
    stored.commitments.accepted(leased, uid, stored.clock.now + due_in)
    return leased


def report(*committed: Reference, uid: str = "2.25.7", **failed: int) -> CommitmentReport:
    names = {"first": FIRST, "second": SECOND}
    return CommitmentReport(
        uid, committed, {names[name]: why for name, why in failed.items()}, "PACS"
    )


def reported(stored: Stored, it: CommitmentReport, decide: Decisions = NONE) -> Settled:
    settled = stored.commitments.reported(it, decide)
    assert settled is not None
    return settled


def delivery(stored: Stored) -> tuple[DeliveryState, int, int]:
    (it,) = stored.ledger.of_job(1)
    return it.state, it.sent, it.confirmed


def test_a_delivery_is_confirmed_by_a_report_on_all_of_its_instances(sent: Stored) -> None:
    asked(sent)
    assert delivery(sent) == (DeliveryState.SENT, 2, 0)
    settled = reported(sent, report(FIRST, SECOND))
    assert (settled.state, settled.is_news) == (CommitmentState.CONFIRMED, True)
    assert delivery(sent) == (DeliveryState.CONFIRMED, 2, 2)
    assert sent.commitments.claim("pacs", "asker") is None


def test_nothing_is_due_at_another_destination_or_before_it_was_sent(stored: Stored) -> None:
    stored.ask("k")
    stored.succeed()
    assert stored.commitments.claim("pacs", "asker") is None
    stored.deliver(proof=True)
    assert stored.commitments.claim("viewer", "asker") is None
    assert claim(stored).delivery_id == 1


def test_what_is_asked_for_is_what_the_destination_has_stored(sent: Stored) -> None:
    named = sent.commitments.unconfirmed(claim(sent))
    assert [it.reference for it in named] == [FIRST, SECOND]
    assert {(it.study_uid, it.series_uid) for it in named} == {("1.2.3", "2.25.1")}


def test_a_report_may_come_before_the_request_was_accepted(sent: Stored) -> None:
    leased = claim(sent)
    sent.commitments.begin(leased, "2.25.7")
    reported(sent, report(FIRST, SECOND))
    with pytest.raises(LeaseLost):
        sent.commitments.accepted(leased, "2.25.7", sent.clock.now + DAY)
    assert delivery(sent) == (DeliveryState.CONFIRMED, 2, 2)


def test_a_report_that_comes_twice_changes_nothing_the_second_time(sent: Stored) -> None:
    asked(sent)
    first = reported(sent, report(FIRST, second=NO_SUCH_INSTANCE), Decisions("ask again"))
    again = reported(sent, report(FIRST, second=NO_SUCH_INSTANCE))
    assert (first.is_news, again.is_news) == (True, False)
    assert claim(sent).tries == 1


def test_a_report_for_a_transaction_that_nobody_began_is_unknown(sent: Stored) -> None:
    asked(sent)
    assert sent.commitments.reported(report(FIRST, SECOND, uid="2.25.8"), NONE) is None
    assert delivery(sent) == (DeliveryState.SENT, 2, 0)


def test_only_what_the_report_names_by_class_and_instance_is_confirmed(sent: Stored) -> None:
    asked(sent)
    other_class = Reference("1.2.840.10008.5.1.4.1.1.4", SECOND.instance_uid)
    decide = Decisions("ask again")
    reported(sent, report(FIRST, other_class, Reference(CT, "2.25.99")), decide)
    assert delivery(sent) == (DeliveryState.SENT, 2, 1)
    assert decide.shortfalls[0].failures == {None}


def test_what_failed_is_asked_for_again_when_it_is_due_and_nothing_else(sent: Stored) -> None:
    asked(sent)
    decide = Decisions("ask again", due_at=sent.clock.now + 60)
    reported(sent, report(FIRST, second=NO_SUCH_INSTANCE), decide)
    assert decide.shortfalls == [
        Shortfall(1, frozenset({NO_SUCH_INSTANCE}), False, Evidence.COMMITMENT, 0, 0)
    ]
    assert sent.commitments.claim("pacs", "asker") is None
    sent.clock.now += 60
    leased = claim(sent)
    assert [it.reference for it in sent.commitments.unconfirmed(leased)] == [SECOND]
    sent.commitments.begin(leased, "2.25.8")
    reported(sent, report(SECOND, uid="2.25.8"))
    assert delivery(sent) == (DeliveryState.CONFIRMED, 2, 2)


def test_an_old_report_does_not_decide_while_a_later_request_is_open(sent: Stored) -> None:
    asked(sent, due_in=1)
    sent.clock.now -= 10  # set back: the request is made once more
    asked(sent, "2.25.8")
    reported(sent, report(FIRST, second=NO_SUCH_INSTANCE))
    assert delivery(sent) == (DeliveryState.SENT, 2, 1)
    reported(sent, report(SECOND, uid="2.25.8"))
    assert delivery(sent) == (DeliveryState.CONFIRMED, 2, 2)


def test_what_is_sent_again_is_what_was_not_committed(sent: Stored) -> None:
    asked(sent)
    reported(sent, report(FIRST, second=NO_SUCH_INSTANCE), Decisions("send again"))
    assert delivery(sent) == (DeliveryState.QUEUED, 1, 1)
    leased = sent.start_delivery()
    assert [it.instance_uid for it in sent.ledger.unsent(leased)] == [SECOND.instance_uid]
    assert sent.commitments.claim("pacs", "asker") is None
    for it in sent.ledger.unsent(leased):
        sent.ledger.answered(leased, it.id, 0x0000, stored=True)
    sent.ledger.sent(leased, is_asked_for_proof=True)
    decide = Decisions("hold")
    asked(sent, "2.25.8")
    reported(sent, report(uid="2.25.8", second=NO_SUCH_INSTANCE), decide)
    assert decide.shortfalls[0].resent == 1
    assert delivery(sent) == (DeliveryState.HELD, 2, 1)


def test_a_held_delivery_is_confirmed_by_a_report_that_comes_after_all(sent: Stored) -> None:
    asked(sent)
    reported(sent, report(first=NO_SUCH_INSTANCE, second=NO_SUCH_INSTANCE), Decisions("hold"))
    (held,) = sent.ledger.of_job(1)
    assert (held.state, held.reason) == (DeliveryState.HELD, NOT_CONFIRMED)
    reported(sent, report(FIRST, SECOND))
    (it,) = sent.ledger.of_job(1)
    assert (it.state, it.reason, it.sentence) == (DeliveryState.CONFIRMED, "", "")


def test_a_supplement_that_is_not_committed_does_not_keep_the_series(stored: Stored) -> None:
    stored.ask("k")
    job = stored.claim()
    stored.queue.succeed(job, stored.derive(job, supplements=1))
    stored.deliver(proof=True)
    asked(stored)
    decide = Decisions("do without")
    reported(stored, report(FIRST), decide)
    assert decide.shortfalls[0].is_supplement
    assert delivery(stored) == (DeliveryState.CONFIRMED, 2, 1)


def test_without_a_report_in_time_the_destination_is_searched(sent: Stored) -> None:
    asked(sent)
    sent.clock.now += DAY - 1
    assert sent.commitments.claim("pacs", "asker") is None
    sent.clock.now += 1
    leased = claim(sent)
    assert leased.evidence is Evidence.QUERY
    settled = sent.commitments.found(leased, [FIRST, SECOND], NONE)
    assert settled.state is CommitmentState.CONFIRMED
    assert delivery(sent) == (DeliveryState.CONFIRMED, 2, 2)


def test_a_search_that_does_not_find_all_is_no_proof_of_all(sent: Stored) -> None:
    asked(sent, due_in=0)
    decide = Decisions("ask again", due_at=sent.clock.now + 60)
    settled = sent.commitments.found(claim(sent), [FIRST], decide)
    assert (settled.state, settled.instances) == (CommitmentState.QUEUED, 1)
    assert decide.shortfalls[0].evidence is Evidence.QUERY
    assert delivery(sent) == (DeliveryState.SENT, 2, 1)


def test_without_any_proof_a_person_is_told_and_a_late_report_still_counts(sent: Stored) -> None:
    asked(sent, due_in=0)
    sent.commitments.unproved(claim(sent), "No report came.")
    assert delivery(sent) == (DeliveryState.SENT, 2, 0)
    (told,) = sent.database.values(select(notice.c.event))
    assert told == "delivery_unconfirmed"
    assert sent.commitments.claim("pacs", "asker") is None
    reported(sent, report(FIRST, SECOND))
    assert delivery(sent) == (DeliveryState.CONFIRMED, 2, 2)


def test_a_delivery_that_a_person_sends_again_has_to_be_proved_again(sent: Stored) -> None:
    asked(sent)
    sent.ledger.redeliver(1)
    assert delivery(sent) == (DeliveryState.QUEUED, 0, 0)
    sent.deliver(proof=True)
    assert not reported(sent, report(FIRST, SECOND)).is_news  # of what was sent before
    assert delivery(sent) == (DeliveryState.SENT, 2, 0)
    asked(sent, "2.25.8")
    reported(sent, report(FIRST, SECOND, uid="2.25.8"))
    assert delivery(sent) == (DeliveryState.CONFIRMED, 2, 2)


def test_what_a_dead_process_was_asking_is_asked_again(sent: Stored) -> None:
    leased = claim(sent)
    sent.commitments.begin(leased, "2.25.7")
    assert sent.commitments.recover() == 1
    again = claim(sent)
    assert again.attempt == leased.attempt + 1
    with pytest.raises(LeaseLost):
        sent.commitments.renew(leased)
    reported(sent, report(FIRST, SECOND))  # of the request before the crash
    assert delivery(sent) == (DeliveryState.CONFIRMED, 2, 2)


def test_a_peer_that_cannot_be_reached_is_asked_later(sent: Stored) -> None:
    leased = claim(sent)
    later = sent.clock.now + 30
    sent.commitments.retry(leased, later, "It is down.", evidence=Evidence.COMMITMENT)
    assert sent.commitments.claim("pacs", "asker") is None
    sent.clock.now = later
    assert claim(sent).failures == 1


def test_what_was_sent_before_is_asked_for_once_the_destination_is(stored: Stored) -> None:
    stored.ask("k", destinations=("pacs", "viewer"))
    stored.succeed()
    stored.deliver("pacs")
    stored.deliver("viewer")
    assert stored.commitments.adopt({"pacs"}) == 1
    assert stored.commitments.adopt({"pacs"}) == 0
    assert claim(stored).delivery_id == 1
    assert stored.commitments.claim("viewer", "asker") is None


def test_a_destination_that_is_not_asked_any_more_keeps_nothing_waiting(sent: Stored) -> None:
    leased = claim(sent)
    sent.commitments.adopt(())
    with pytest.raises(LeaseLost):
        sent.commitments.renew(leased)
    assert delivery(sent) == (DeliveryState.SENT, 2, 0)
    assert sent.commitments.adopt({"pacs"}) == 1  # and again it is


def test_a_series_stays_until_its_proof_has_come_and_for_good_reason_no_longer(
    sent: Stored,
) -> None:
    asked(sent, due_in=100 * DAY)
    sent.clock.now += 50 * DAY
    assert expired(sent.database, sent.clock.now, 7, 1) == ()
    reported(sent, report(FIRST, SECOND))
    assert len(expired(sent.database, sent.clock.now, 7, 1)) == 1


def test_a_series_without_proof_goes_once_a_person_was_told(sent: Stored) -> None:
    asked(sent, due_in=0)
    sent.commitments.unproved(claim(sent), "No report came.")
    sent.clock.now += 8 * DAY
    assert len(expired(sent.database, sent.clock.now, 7, 1)) == 1


def test_a_request_keeps_its_answer_and_who_reported(sent: Stored) -> None:
    leased = claim(sent)
    sent.commitments.begin(leased, "2.25.7")
    sent.commitments.refused(leased, "2.25.7", 0x0124)
    assert sent.commitments.is_open("2.25.7")
    reported(sent, report(FIRST, SECOND))
    assert not sent.commitments.is_open("2.25.7")
    with sent.database.reading() as db:
        row = db.execute(select(commitment_request)).one()
    assert (row.status, row.reported_by, row.committed, row.failed) == (0x0124, "PACS", 2, 0)
