"""Storage commitment with scripted peers: when reports come, what they say, and what follows."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from sqlalchemy import select

from node.config import DeliverySettings, load
from node.dicom.admission import Admission
from node.dicom.commitment import QUIET_SECONDS
from node.dicom.scp import Scp, ScpSettings
from node.work.commitment import CommitmentWork
from node.work.deliver import Reachability
from storage.database import Database
from storage.files import Files
from storage.records import Delivery, DeliveryState, Evidence
from storage.schema import (
    commitment,
    delivery_instance,
    derived_instance,
    notice,
    owed_report,
)
from tests import phantoms
from tests.commitment_peers import (
    NO_SUCH_INSTANCE,
    Archive,
    Sender,
    archive,
    information,
    reference,
    sender_listening,
)
from tests.conftest import Clock
from tests.peers import wait_until
from tests.ports import HOST, free_port
from tests.unit.storage.stored import CT, Stored

HOUR = 3600.0
CONFIG = """
[[destination]]
name = "pacs"
ae_title = "PACS"
host = "127.0.0.1"
port = {port}
commitment = {{ ae_title = "PACS_CMT", {more} }}

[[sender]]
ae_title = "CT1"
silent_hours = 0
commitment = {{ host = "127.0.0.1", port = {sender_port} }}

[delivery]
retry_seconds = [30.0, 60.0]
"""


@dataclass
class Node:
    """The parts of a node that have to do with storage commitment, on a clock of their own."""

    folder: Path
    archive_port: int = 1
    sender_port: int = 1
    more: str = "host = '127.0.0.1', wait_seconds = 2.0"
    admission: Admission = field(default_factory=Admission)
    clock: Clock = field(default_factory=Clock)
    port: int = 0

    def start(self) -> None:
        """Start it on its folder, or start it again."""
        path = self.folder / "config.toml"
        ports = {"port": self.archive_port, "sender_port": self.sender_port}
        path.write_text(CONFIG.format(**ports, more=self.more))
        config = load(path)
        self.database = Database.for_folder(self.folder)
        self.database.migrate()
        self.stored = Stored(self.database, Files(self.folder, 0), self.clock)
        reach = Reachability(self.database, self.clock, "MIDSLICE", DeliverySettings())
        work = CommitmentWork(self.stored.commitments, self.stored.owed, reach, self.clock)
        settings = ScpSettings(
            "MIDSLICE", HOST, self.port, incoming=self.stored.files.incoming, is_direct=True
        )
        self.work = work
        self.scp = Scp(settings, self.admission, self.stored.archive, work)
        work.recover()
        work.follow(config)
        self.port = self.scp.start()

    def stop(self) -> None:
        self.scp.abort()
        self.work.drain()
        assert self.work.wait(20.0)
        self.database.close()

    def send(self) -> None:
        """Have a derived series of two instances stored at the archive."""
        self.stored.ask("k")
        self.stored.succeed()
        self.stored.deliver(proof=True)

    @property
    def delivery(self) -> Delivery:
        (delivery,) = self.stored.ledger.of_job(1)
        return delivery

    def wait_for(self, state: DeliveryState) -> Delivery:
        wait_until(
            lambda: self.delivery.state is state, what=f"delivery {state}", log=self.delivery
        )
        return self.delivery


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@contextmanager
def running(node: Node) -> Iterator[Node]:
    node.start()
    try:
        yield node
    finally:
        node.stop()


@pytest.fixture
def started(tmp_path: Path, stack: ExitStack) -> Callable[..., tuple[Node, Archive]]:
    """Start a node whose destination does what the script says, and have it stored there."""

    def start(script: Archive, *, commits: bool = True, finds: bool = True, **of_node: object):  # type: ignore[no-untyped-def]
        port = stack.enter_context(archive(script, commits=commits, finds=finds))
        node = Node(tmp_path, archive_port=port, **of_node)  # type: ignore[arg-type]
        stack.enter_context(running(node))
        script.node_port = node.port
        node.send()
        return node, script

    return start


Started = Callable[..., tuple[Node, Archive]]


def asked(script: Archive, times: int) -> None:
    wait_until(lambda: len(script.requests) >= times, what=f"{times} requests")


def failing(node: Node, number: int, reason: int = NO_SUCH_INSTANCE) -> dict[str, int]:
    """One instance of the derived series that the archive will not have."""
    uids = node.database.values(select(derived_instance.c.instance_uid))
    return {sorted(uids)[number]: reason}


def image() -> Dataset:
    """An instance as a scanner sends it, the same each time."""
    made = phantoms.dataset(phantoms.Series(), 0)
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return made


@pytest.mark.parametrize(
    "manner", ["same association", "before the answer", "elsewhere before the answer"]
)
def test_a_report_counts_wherever_and_however_early_it_comes(started: Started, manner: str) -> None:
    node, script = started(Archive(manner))
    delivery = node.wait_for(DeliveryState.CONFIRMED)
    assert (delivery.sent, delivery.confirmed, delivery.total) == (2, 2, 2)
    wait_until(lambda: script.answers, what="an answer to the report")
    assert script.answers == [0x0000]
    assert len(script.requests) == 1


@pytest.mark.parametrize("with_roles", [True, False])
def test_a_report_comes_hours_later_from_another_ae_title_and_twice(
    started: Started, with_roles: bool
) -> None:
    node, script = started(Archive(with_roles=with_roles), more="wait_seconds = 0")
    asked(script, 1)
    assert node.wait_for(DeliveryState.SENT).confirmed == 0
    node.clock.now += 20 * HOUR
    assert script.report() == 0x0000
    assert node.delivery.state is DeliveryState.CONFIRMED
    assert script.report() == 0x0000
    assert node.delivery.confirmed == 2
    assert len(script.requests) == 1


def test_a_report_is_understood_after_a_restart_of_the_node(started: Started) -> None:
    node, script = started(Archive(), more="wait_seconds = 0")
    asked(script, 1)
    node.stop()
    node.start()
    assert script.report() == 0x0000
    assert node.delivery.state is DeliveryState.CONFIRMED


def test_what_failed_is_asked_again_after_1_10_and_60_minutes_then_sent_again_then_held(
    started: Started,
) -> None:
    node, script = started(Archive("same association"))
    node.wait_for(DeliveryState.CONFIRMED)
    node.stored.ledger.redeliver(1)
    script.failures = failing(node, 1)
    (missing,) = script.failures
    script.requests.clear()
    node.stored.deliver(proof=True)
    for minutes in (1, 10, 60):
        asked(script, {1: 1, 10: 2, 60: 3}[minutes])
        wait_until(lambda: tries(node) == len(script.requests), what="the report")
        node.clock.now += minutes * 60
    delivery = node.wait_for(DeliveryState.QUEUED)
    assert (delivery.sent, delivery.confirmed) == (1, 1)
    named = [[str(it.ReferencedSOPInstanceUID) for it in items] for _, items in script.requests]
    assert [len(uids) for uids in named] == [2, 1, 1, 1]
    assert {uids[-1] for uids in named} == {missing}
    assert len({uid for uid, _ in script.requests}) == 4
    script.requests.clear()
    node.stored.deliver(proof=True)
    for minutes in (1, 10, 60):
        asked(script, {1: 1, 10: 2, 60: 3}[minutes])
        wait_until(lambda: tries(node) == len(script.requests), what="the report")
        node.clock.now += minutes * 60
    held = node.wait_for(DeliveryState.HELD)
    assert held.reason == "NOT_CONFIRMED"
    assert "1 instance is stored, but not committed: 0x0112" in held.sentence


def tries(node: Node) -> int:
    (count,) = node.database.values(select(commitment.c.tries))
    return int(count)


def test_a_failure_that_will_not_pass_is_held_at_once(started: Started) -> None:
    node, script = started(Archive(), more="wait_seconds = 0")
    asked(script, 1)
    script.failures = failing(node, 0, 0x0119)
    assert script.report() == 0x0000
    assert node.delivery.state is DeliveryState.HELD
    assert "0x0119 (class-instance conflict)" in node.delivery.sentence


def test_a_report_that_makes_no_sense_is_answered_with_the_status_that_says_so(
    started: Started,
) -> None:
    node, script = started(Archive(), more="wait_seconds = 0")
    asked(script, 1)
    _, items = script.requests[0]
    assert script.report(content=information("2.25.99", items)) == 0x0115
    assert script.report(content=information("", items)) == 0x0115
    assert script.report(instance="1.2.840.10008.1.20.1.2") == 0x0112
    assert node.delivery.confirmed == 0
    assert script.report() == 0x0000
    assert node.delivery.confirmed == 2


def test_a_request_that_is_not_taken_on_is_made_again_later(started: Started) -> None:
    node, script = started(Archive("same association", status=0x0213, failures={}))
    script.manner = "never"
    asked(script, 1)
    wait_until(lambda: failures(node) == 1, what="a retry")
    script.status, script.manner = 0x0000, "same association"
    node.clock.now += 60
    node.wait_for(DeliveryState.CONFIRMED)
    assert len(script.requests) == 2


def failures(node: Node) -> int:
    (count,) = node.database.values(select(commitment.c.failures))
    return int(count)


@pytest.mark.parametrize("why", ["no context", "no such action", "no report in time"])
def test_where_no_report_is_to_be_had_c_find_at_image_level_counts(
    started: Started, why: str
) -> None:
    status = 0x0123 if why == "no such action" else 0x0000
    script = Archive(status=status, found=["2.25.1.0", "2.25.1.1", "2.25.1.7"])
    node, script = started(script, commits=why != "no context", more="wait_seconds = 0")
    if why == "no report in time":
        asked(script, 1)
        wait_until(lambda: state(node) == "waiting", what="a report to wait for")
        node.clock.now += 24 * HOUR
    delivery = node.wait_for(DeliveryState.CONFIRMED)
    assert delivery.confirmed == 2
    (query,) = script.queries
    assert (query.QueryRetrieveLevel, query.StudyInstanceUID) == ("IMAGE", "1.2.3")
    assert query.SeriesInstanceUID == "2.25.1"
    evidence = node.database.values(select(delivery_instance.c.evidence))
    assert set(evidence) == {Evidence.QUERY}


def state(node: Node) -> str:
    (state,) = node.database.values(select(commitment.c.state))
    return str(state)


def test_a_search_that_misses_an_instance_confirms_the_others_alone(started: Started) -> None:
    node, script = started(Archive(found=["2.25.1.0"]), commits=False)
    wait_until(lambda: node.delivery.confirmed == 1, what="one instance to be confirmed")
    assert node.delivery.state is DeliveryState.SENT
    script.found.append("2.25.1.1")
    node.clock.now += 60
    node.wait_for(DeliveryState.CONFIRMED)


def test_where_nothing_proves_it_a_person_is_told_and_it_stays_sent(started: Started) -> None:
    node, _ = started(Archive(), commits=False, finds=False)
    wait_until(lambda: state(node) == "unproved", what="the end of the tries")
    assert node.delivery.state is DeliveryState.SENT
    (facts,) = node.database.values(select(notice.c.facts))
    assert "C-FIND proves nothing either" in facts
    assert "accepts none of the SOP Classes" in facts


def test_who_reports_is_let_in_for_that_and_for_nothing_else(started: Started) -> None:
    admission = Admission(
        frozenset({"MIDSLICE"}),
        frozenset({"CT1"}),
        reporters=frozenset({("PACS_CMT", "MIDSLICE")}),
    )
    node, script = started(Archive(), more="wait_seconds = 0", admission=admission)
    asked(script, 1)
    stranger = Sender("PACS_CMT")
    with pytest.raises(AssertionError):
        stranger.associate(node.port)  # for storage as well
    assert script.report() == 0x0000
    assert node.delivery.state is DeliveryState.CONFIRMED


# As SCP: a sender asks.


@pytest.fixture
def scanner(tmp_path: Path, stack: ExitStack) -> tuple[Node, Sender]:
    """A node, and a sender that may ask it and takes reports."""
    sender = Sender()
    port = stack.enter_context(sender_listening(sender))
    node = Node(tmp_path, sender_port=port)
    stack.enter_context(running(node))
    return node, sender


def test_a_sender_that_waits_is_answered_on_its_own_association(
    scanner: tuple[Node, Sender],
) -> None:
    node, sender = scanner
    association = sender.associate(node.port)
    assert association.send_c_store(image()).Status == 0x0000
    uid = str(image().SOPInstanceUID)
    assert sender.ask(association, "2.25.7", reference(CT, uid), reference(CT, "1.9")) == 0x0000
    assert sender.came.wait(10)
    (report,) = sender.reports
    assert (report.TransactionUID, sender.event_types) == ("2.25.7", [2])
    assert [it.ReferencedSOPInstanceUID for it in report.ReferencedSOPSequence] == [uid]
    (failed,) = report.FailedSOPSequence
    assert (failed.ReferencedSOPInstanceUID, failed.FailureReason) == ("1.9", 0x0112)
    assert sender.calling == ["CT1"]  # the association is the sender's own
    wait_until(lambda: owed(node) == ["sent"], what="the row of the report")
    assert association.send_c_store(image()).Status == 0x0000
    association.release()


def test_a_sender_that_has_gone_is_called(scanner: tuple[Node, Sender]) -> None:
    node, sender = scanner
    association = sender.associate(node.port)
    assert association.send_c_store(image()).Status == 0x0000
    item = reference(CT, str(image().SOPInstanceUID))
    assert sender.ask(association, "2.25.7", item) == 0x0000
    association.release()
    wait_until(lambda: owed(node) == ["queued"], what="the report to be owed")
    node.clock.now += 5
    assert sender.came.wait(10)
    assert (sender.event_types, sender.calling) == ([1], ["MIDSLICE"])
    assert "FailedSOPSequence" not in sender.reports[0]


def owed(node: Node) -> list[str]:
    return list(node.database.values(select(owed_report.c.state)))


def test_a_sender_that_is_down_gets_its_report_after_a_restart_of_the_node(
    tmp_path: Path,
) -> None:
    sender, port = Sender(), free_port()
    node = Node(tmp_path, sender_port=port)
    with running(node):
        association = sender.associate(node.port)
        assert sender.ask(association, "2.25.7", reference(CT, "1.9")) == 0x0000
        association.release()
        node.clock.now += 5
        wait_until(lambda: owed_tries(node) == 1, what="a try")
        node.stop()
        with sender_listening(sender) as node.sender_port:
            node.start()
            node.clock.now += 60
            assert sender.came.wait(10)
        assert sender.event_types == [2]


def owed_tries(node: Node) -> int:
    (tries,) = node.database.values(select(owed_report.c.tries))
    return int(tries)


def test_what_a_sender_stores_after_it_has_asked_does_not_cross_the_report(
    scanner: tuple[Node, Sender],
) -> None:
    node, sender = scanner
    association = sender.associate(node.port)
    item = reference(CT, str(image().SOPInstanceUID))
    assert sender.ask(association, "2.25.7", item) == 0x0000
    until = time.monotonic() + 1.5 * QUIET_SECONDS
    while time.monotonic() < until:
        assert association.send_c_store(image()).Status == 0x0000
    assert not sender.reports
    assert sender.came.wait(10)
    assert sender.event_types == [1]  # what is true when it is reported
    association.release()


def test_a_request_that_makes_no_sense_is_refused(scanner: tuple[Node, Sender]) -> None:
    node, sender = scanner
    association = sender.associate(node.port)
    assert sender.ask(association, "2.25.7", reference(CT, "1.9"), action=2) == 0x0123
    assert sender.ask(association, "", reference(CT, "1.9")) == 0x0115
    assert sender.ask(association, "2.25.7") == 0x0115
    assert owed(node) == []
    association.release()


def test_a_sender_without_leave_to_ask_is_offered_no_commitment(tmp_path: Path) -> None:
    with running(Node(tmp_path)) as node:
        association = Sender("CT2").associate(node.port)
        accepted = {str(it.abstract_syntax) for it in association.accepted_contexts}
        assert accepted == {CT}
        association.release()


def test_a_destination_may_report_but_not_ask(tmp_path: Path) -> None:
    with running(Node(tmp_path)) as node:
        pacs = Sender("PACS")
        association = pacs.associate(node.port)
        assert pacs.ask(association, "2.25.7", reference(CT, "1.9")) == 0x0124
        association.release()
