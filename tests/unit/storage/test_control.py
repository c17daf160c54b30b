"""What people set and ask for: switches that stay, requests that are done once, their trace."""

import pytest

from storage.database import Database
from storage.errors import NotFound, WrongState
from storage.leases import Holder
from storage.records import JobState, RequestKind, RequestState, SwitchName
from storage.site import control
from storage.site.audit import Audit
from tests.conftest import Clock
from tests.unit.storage.stored import LEASE_SECONDS, Stored


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


def requests_of(database: Database, clock: Clock, node: str) -> control.RequestQueue:
    return control.RequestQueue(database, Holder(node, clock, LEASE_SECONDS, clock))


def test_a_request_is_taken_up_by_one_node_and_answered_once(
    database: Database, clock: Clock
) -> None:
    one, two = requests_of(database, clock, "one"), requests_of(database, clock, "two")
    request = control.ask(database, clock(), "anna", RequestKind.ECHO, "pacs")
    assert control.open_requests(database, RequestKind.ECHO) == (request,)
    (leased,) = one.claim()
    assert (leased.id, leased.attempt, leased.state) == (request.id, 1, RequestState.ASKED)
    assert two.claim() == ()
    assert one.held(RequestKind.ECHO) == (leased,)
    one.answer(leased, ok=True, sentence="PACS answers.")
    one.answer(leased, ok=False, sentence="too late")
    done = control.get_request(database, request.id)
    assert (done.state, done.sentence) == (RequestState.DONE, "PACS answers.")
    assert control.open_requests(database, RequestKind.ECHO) == one.held(RequestKind.ECHO) == ()


def test_asking_twice_is_asking_once(database: Database, clock: Clock) -> None:
    node = requests_of(database, clock, "one")
    first = control.ask(database, clock(), "anna", RequestKind.ECHO, "pacs")
    again = control.ask(database, clock(), "ben", RequestKind.ECHO, "pacs")
    other = control.ask(database, clock(), "ben", RequestKind.ECHO, "research")
    assert again.id == first.id != other.id
    assert [e.what for e in Audit(database, clock).list()] == ["ask: echo"] * 3
    for leased in node.claim():
        node.answer(leased, ok=True, sentence="")
    assert control.ask(database, clock(), "anna", RequestKind.ECHO, "pacs").id != first.id


def test_what_a_dead_process_of_a_node_had_taken_up_has_failed_at_its_start(
    database: Database, clock: Clock
) -> None:
    mine = control.ask(database, clock(), "anna", RequestKind.SELFTEST)
    requests_of(database, clock, "one").claim()
    theirs = control.ask(database, clock(), "anna", RequestKind.ECHO, "pacs")
    requests_of(database, clock, "two").claim()
    assert requests_of(database, clock, "one").recover() == 1
    assert control.get_request(database, mine.id).state is RequestState.FAILED
    assert control.get_request(database, theirs.id).state is RequestState.ASKED


def test_what_a_node_that_does_not_come_back_had_taken_up_has_failed(
    database: Database, clock: Clock
) -> None:
    dead, other = requests_of(database, clock, "one"), requests_of(database, clock, "two")
    request = control.ask(database, clock(), "anna", RequestKind.SELFTEST)
    (leased,) = dead.claim()
    assert other.claim() == ()  # sees the lease for the first time
    clock.now += LEASE_SECONDS + 1
    assert other.claim() == ()
    failed = control.get_request(database, request.id)
    assert failed.state is RequestState.FAILED
    assert "stopped" in failed.sentence
    dead.answer(leased, ok=True, sentence="It was alive after all.")
    assert control.get_request(database, request.id) == failed


def test_a_request_that_takes_its_time_is_kept_by_its_node(
    database: Database, clock: Clock
) -> None:
    busy, other = requests_of(database, clock, "one"), requests_of(database, clock, "two")
    control.ask(database, clock(), "anna", RequestKind.SELFTEST)
    (leased,) = busy.claim()
    for _ in range(5):
        assert other.claim() == ()
        clock.now += LEASE_SECONDS / 2
        busy.renew()
    busy.answer(leased, ok=True, sentence="Passed.")
    assert control.get_request(database, leased.id).state is RequestState.DONE


def test_old_requests_are_forgotten_but_not_those_that_wait(
    database: Database, clock: Clock
) -> None:
    node = requests_of(database, clock, "one")
    done = control.ask(database, clock(), "anna", RequestKind.RELOAD)
    for leased in node.claim():
        node.answer(leased, ok=True, sentence="")
    waits = control.ask(database, clock(), "anna", RequestKind.SELFTEST)
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
    (job,) = stored.jobs(JobState.SUCCEEDED)
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


def test_a_node_reads_the_configuration_again_that_is_its_own(
    database: Database, clock: Clock
) -> None:
    one, two = requests_of(database, clock, "one"), requests_of(database, clock, "two")
    control.ask(database, clock(), "anna", RequestKind.RELOAD, "two")
    assert one.claim() == ()
    (taken,) = two.claim()
    assert taken.subject == "two"
    assert two.recover() == 1  # it died; the answer says that it stopped
    control.ask(database, clock(), "anna", RequestKind.RELOAD)  # of whichever
    assert len(one.claim()) == 1
