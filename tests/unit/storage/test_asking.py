"""What people set and ask for: switches that stay, wishes that are done once, and their trace."""

import pytest

from storage.database import Database
from storage.errors import NotFound, WrongState
from storage.records import JobState, SwitchName, WishKind, WishState
from storage.site import control
from storage.site.audit import Audit
from tests.conftest import Clock
from tests.unit.storage.stored import Stored


def test_a_switch_stays_until_it_is_taken_back(database: Database, clock: Clock) -> None:
    assert control.draining(database) is None
    assert control.turn(database, clock(), "anna", SwitchName.DRAINING, on=True)
    found = control.draining(database)
    assert found is not None
    assert (found.who, found.at) == ("anna", clock.now)
    assert not control.turn(database, clock(), "ben", SwitchName.DRAINING, on=True)
    assert control.draining(database) == found  # the first one set it
    assert control.turn(database, clock(), "ben", SwitchName.DRAINING, on=False)
    assert control.draining(database) is None
    assert not control.turn(database, clock(), "ben", SwitchName.DRAINING, on=False)


def test_destinations_are_paused_one_by_one(database: Database, clock: Clock) -> None:
    control.turn(database, clock(), "anna", SwitchName.PAUSED, "pacs", on=True)
    control.turn(database, clock(), "anna", SwitchName.ALLOWED_AE, "CT9", on=True)
    assert control.is_on(database, SwitchName.PAUSED, "pacs") is not None
    assert control.is_on(database, SwitchName.PAUSED, "research") is None
    assert [one.subject for one in control.all_on(database)] == ["CT9", "pacs"]
    assert [one.subject for one in control.all_on(database, SwitchName.PAUSED)] == ["pacs"]


@pytest.mark.parametrize(
    ("name", "subject"),
    [
        (SwitchName.DRAINING, "pacs"),
        (SwitchName.PAUSED, ""),
        (SwitchName.NEVER, "1" * 65),
    ],
)
def test_a_switch_has_a_subject_that_fits(
    database: Database, clock: Clock, name: SwitchName, subject: str
) -> None:
    with pytest.raises(WrongState, match=str(name)):
        control.turn(database, clock(), "anna", name, subject, on=True)
    assert Audit(database, clock).list() == ()


def test_what_is_set_and_taken_back_is_written_down(database: Database, clock: Clock) -> None:
    control.turn(database, clock(), "anna", SwitchName.PAUSED, "pacs", on=True)
    control.turn(database, clock(), "ben", SwitchName.PAUSED, "pacs", on=False)
    told = [(e.who, e.what, e.which) for e in Audit(database, clock).list()]
    assert told == [("ben", "resume destination", "pacs"), ("anna", "pause destination", "pacs")]


def test_a_wish_is_taken_up_by_one_node_and_answered_once(database: Database, clock: Clock) -> None:
    asked = control.ask(database, clock(), "anna", WishKind.ECHO, "pacs")
    assert control.asked(database) == (asked,)
    assert control.take(database, asked.id, "one")
    assert not control.take(database, asked.id, "two")
    assert control.get_request(database, asked.id).state is WishState.ASKED
    control.close(database, clock(), asked.id, ok=True, sentence="PACS answers.")
    control.close(database, clock(), asked.id, ok=False, sentence="too late")
    done = control.get_request(database, asked.id)
    assert (done.state, done.sentence, done.node) == (WishState.DONE, "PACS answers.", "one")
    assert control.asked(database) == ()


def test_asking_twice_is_asking_once(database: Database, clock: Clock) -> None:
    first = control.ask(database, clock(), "anna", WishKind.ECHO, "pacs")
    again = control.ask(database, clock(), "ben", WishKind.ECHO, "pacs")
    other = control.ask(database, clock(), "ben", WishKind.ECHO, "research")
    assert again.id == first.id != other.id
    assert [e.what for e in Audit(database, clock).list()] == ["ask: echo"] * 3
    control.close(database, clock(), first.id, ok=True, sentence="")
    assert control.ask(database, clock(), "anna", WishKind.ECHO, "pacs").id != first.id


def test_a_wish_that_no_node_takes_up_fails_in_the_end(database: Database, clock: Clock) -> None:
    free = control.ask(database, clock(), "anna", WishKind.RELOAD)
    taken = control.ask(database, clock(), "anna", WishKind.SELFTEST)
    control.take(database, taken.id, "one")
    clock.now += control.GIVE_UP_SECONDS - 1
    assert control.give_up(database, clock()) == 0
    clock.now += 2
    assert control.give_up(database, clock()) == 1
    assert "is the node running" in control.get_request(database, free.id).sentence
    assert control.get_request(database, taken.id).state is WishState.ASKED  # it may take its time


def test_what_a_dead_node_had_taken_up_has_failed(database: Database, clock: Clock) -> None:
    mine = control.ask(database, clock(), "anna", WishKind.SELFTEST)
    theirs = control.ask(database, clock(), "anna", WishKind.ECHO, "pacs")
    control.take(database, mine.id, "one")
    control.take(database, theirs.id, "two")
    assert control.interrupted(database, clock(), "one") == 1
    assert control.get_request(database, mine.id).state is WishState.FAILED
    assert control.get_request(database, theirs.id).state is WishState.ASKED


def test_old_wishes_are_forgotten_but_not_those_that_wait(database: Database, clock: Clock) -> None:
    done = control.ask(database, clock(), "anna", WishKind.RELOAD)
    control.close(database, clock(), done.id, ok=True, sentence="")
    waits = control.ask(database, clock(), "anna", WishKind.SELFTEST)
    control.forget(database, clock.now + 1)
    assert control.newest(database) == (waits,)
    with pytest.raises(NotFound):
        control.get_request(database, done.id)


def test_a_refused_configuration_leaves_what_the_node_works_with(
    database: Database, clock: Clock
) -> None:
    assert control.applied_configuration(database, "one") is None
    control.applied(database, clock(), "one", {"node": {"port": 1}}, ["node.port"])
    clock.now += 5
    control.refused(database, clock(), "one", ["config.toml: node.port = 0.5: integer"])
    found = control.applied_configuration(database, "one")
    assert found is not None
    assert (found.values, found.restart) == ({"node": {"port": 1}}, ("node.port",))
    assert (found.refused_at, len(found.problems)) == (clock.now, 1)
    control.applied(database, clock(), "one", {"node": {"port": 2}})
    found = control.applied_configuration(database, "one")
    assert found is not None
    assert (found.problems, found.refused_at, found.restart) == ((), None, ())


def test_an_action_of_a_person_and_its_audit_event_are_one(stored: Stored) -> None:
    audit = Audit(stored.database, stored.clock)
    job_id = stored.ask("k").job_id
    stored.queue.prioritise(job_id, 1, who="anna")
    assert stored.queue.get(job_id).priority == 1
    stored.queue.cancel(job_id, who="anna")
    with pytest.raises(WrongState):
        stored.queue.cancel(job_id, who="ben")
    stored.queue.requeue(job_id, who="anna")
    told = [(e.who, e.what, e.which) for e in audit.list()]
    which = f"job {job_id}"
    assert told == [("anna", what, which) for what in ("requeue", "cancel", "prioritise")]


def test_a_delivery_is_held_requeued_and_cancelled_by_name(stored: Stored) -> None:
    stored.ask("k")
    stored.succeed()
    delivery = stored.start_delivery()
    stored.ledger.hold(delivery, "REFUSED_BY_PEER", "No.")
    stored.ledger.requeue(delivery.id, who="anna")
    stored.ledger.cancel(delivery.id, who="ben")
    (job,) = stored.queue.list(JobState.SUCCEEDED)
    stored.ledger.redeliver(job.id, "pacs", who="anna")
    told = [(e.who, e.what) for e in Audit(stored.database, stored.clock).list()]
    assert told == [("anna", "redeliver"), ("ben", "cancel"), ("anna", "requeue")]


def test_only_a_queued_job_has_a_place_to_change(stored: Stored) -> None:
    stored.ask("k")
    job = stored.claim()
    with pytest.raises(WrongState, match="cannot be prioritised"):
        stored.queue.prioritise(job.id, 1, who="anna")


def test_audit_events_are_found_by_who_and_what(stored: Stored) -> None:
    audit = Audit(stored.database, stored.clock)
    for who, what in (("anna", "find"), ("ben", "find"), ("anna", "cancel")):
        audit.record(who, what)
    assert [e.what for e in audit.list(who="anna")] == ["cancel", "find"]
    assert [e.who for e in audit.list(what="find")] == ["ben", "anna"]
    assert audit.count(who="anna", what="find") == 1
    assert audit.count() == 3
