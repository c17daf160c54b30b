"""Delivery on a real database, to destinations in memory that answer as a test says."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from sqlalchemy import text

from node.config import Config, Destination
from node.dicom.scu import Answered, EchoResult, Outgoing, PeerAddress, SendResult, Timeouts
from node.dicom.status import Outcome
from node.dicom.transport import POLL_SECONDS
from node.work import deliver
from node.work.deliver import EXPLICIT_LE, NOT_CONFIGURED, Deliverers, Reachability
from storage.files import digest as files_digest
from storage.records import Delivery, DeliveryState, SwitchName
from storage.site import control, peers
from tests.conftest import Clock
from tests.peers import wait_until
from tests.unit.storage.stored import Stored

pytestmark = pytest.mark.usefixtures("prompt_threads")

SENT = SendResult(Outcome.STORED)
LOST = SendResult(Outcome.RETRY, "PACS ended the association.")
PACS = Destination(name="pacs", ae_title="PACS", host="192.0.2.1", port=104)
ARCHIVE = Destination(name="archive", ae_title="ARCHIVE", host="192.0.2.2", port=104)


@dataclass
class Pacs:
    """A destination in memory: answers with these statuses in turn, then with Success."""

    clock: Clock
    statuses: list[int | None] = field(default_factory=list)  # None: it ends the association
    comment: str = ""  # with each status but Success
    waits: list[Timeouts] = field(default_factory=list)
    sent: SendResult = SENT  # how an association ends that was not lost
    gives_no_association: bool = False
    fails: Exception | None = None
    before_offer: Callable[[], object] = lambda: None  # after the answer before it was noted
    before_answer: Callable[[], object] = lambda: None
    seconds: float = 2.0  # that an answer takes
    offered: list[str] = field(default_factory=list)  # SOP Instance UIDs
    peers: list[PeerAddress] = field(default_factory=list)

    def send(
        self,
        peer: PeerAddress,
        files: Iterable[Outgoing],
        *,
        answered: Answered,
        stop: Callable[[], bool],
        abandon: Callable[[], bool],
        timeouts: Timeouts,
        associations: int,
    ) -> SendResult:
        self.peers.append(peer)
        self.waits.append(timeouts)
        if self.fails is not None:
            raise self.fails
        if self.gives_no_association:
            return self.sent
        for outgoing in files:
            assert Path(outgoing.path).is_file()
            assert outgoing.transfer_syntax == EXPLICIT_LE
            self.before_offer()
            if stop():
                return SendResult(Outcome.RETRY, "The sending was stopped.")
            self.offered.append(outgoing.instance_uid)
            self.before_answer()
            self.clock.now += self.seconds  # long enough for the lease to be renewed
            status = self.statuses.pop(0) if self.statuses else 0x0000
            if self.seconds >= POLL_SECONDS and abandon():  # asked while it is silent
                status = None
            answered(outgoing, status, self.comment if status else "")
            if status is None:
                return LOST
        return self.sent

    def echo(self, _destination: Destination, _ae_title: str) -> EchoResult:
        return EchoResult(not self.gives_no_association, 0.01, self.sent.sentence)


@dataclass
class Site:
    """A node's delivery threads, its storage, and the one PACS that stands for every peer."""

    stored: Stored
    settings: Config
    pacs: Pacs

    def __post_init__(self) -> None:
        stored, clock = self.stored, self.stored.clock
        self.steady = Clock()
        self.reach = Reachability(
            stored.database,
            clock,
            "MIDSLICE",
            self.settings.delivery,
            _echo=self.pacs.echo,
            _steady=self.steady,
        )
        self.deliverers = Deliverers(stored.ledger, stored.files, self.reach, clock, self.pacs.send)

    def wait(self, seconds: float) -> None:
        """Time passes, on both clocks."""
        self.stored.clock.now += seconds
        self.steady.now += seconds

    def configure(self, *destinations: Destination, **delivery: object) -> None:
        """Read the configuration: the threads of these destinations begin."""
        changed = self.settings.delivery.model_copy(update=delivery)
        names = {"destinations": destinations, "delivery": changed}
        self.settings = self.settings.model_copy(update=names)
        self.reach.destinations = destinations
        self.deliverers.follow(self.settings)

    def derived(self, destination: str = "pacs", *, instances: int = 2) -> Delivery:
        """A derived series that waits for its delivery."""
        self.stored.ask("key", destinations=(destination,))
        job = self.stored.claim()
        self.stored.queue.succeed(job, self.stored.derive(job, count=instances))
        (delivery,) = self.stored.ledger.of_job(job.id)
        return delivery

    def tried(self, delivery: Delivery, attempt: int = 1) -> Delivery:
        """The delivery once it was tried so often and nothing of it runs."""
        wait_until(lambda: self._is_over(delivery.id, attempt), what=f"attempt {attempt} is over")
        return self.stored.ledger.get(delivery.id)

    def try_again(self, delivery: Delivery) -> Delivery:
        """Turn the clock to where the next try is allowed, and wait until it is over."""
        before = self.stored.ledger.get(delivery.id)
        closed = [reach.open_until for reach in peers.reachability(self.stored.database)]
        self.stored.clock.now = max(before.due_at, *closed, 0.0) + 1.0
        return self.tried(delivery, before.attempt + 1)

    def end(self) -> None:
        self.deliverers.abandon()
        assert self.deliverers.wait(20.0)

    def _is_over(self, delivery_id: int, attempt: int) -> bool:
        now = self.stored.ledger.get(delivery_id)
        return now.attempt >= attempt and now.state is not DeliveryState.RUNNING


@pytest.fixture
def site(stored: Stored, settings: Config, clock: Clock) -> Iterator[Site]:
    site = Site(stored, settings, Pacs(clock))
    yield site
    site.end()


def test_every_instance_is_offered_once_and_the_delivery_is_sent(site: Site) -> None:
    delivery = site.derived(instances=3)
    site.configure(PACS)
    done = site.tried(delivery)
    assert (done.state, done.sent, done.total) == (DeliveryState.SENT, 3, 3)
    assert site.pacs.offered == ["2.25.1.0", "2.25.1.1", "2.25.1.2"]
    assert site.pacs.peers == [PeerAddress("PACS", "192.0.2.1", 104, "MIDSLICE")]
    (reach,) = peers.reachability(site.stored.database)
    assert reach.up


def test_the_node_calls_itself_as_the_destination_wants(site: Site) -> None:
    delivery = site.derived()
    site.configure(PACS.model_copy(update={"calling_ae_title": "OTHER"}))
    site.tried(delivery)
    assert site.pacs.peers[0].calling_ae_title == "OTHER"


@pytest.mark.parametrize(
    ("statuses", "state", "reason", "sentence"),
    [
        ([0xB000, 0xB007], "sent", "", ""),
        ([0x0122], "held", "REFUSED_BY_PEER", "0x0122 (SOP Class not supported)"),
        ([0x0111], "held", "REFUSED_BY_PEER", "0x0111 (duplicate SOP Instance)"),
        ([0xA700], "queued", "RETRY", "1 instance is not stored."),
        ([0xC123], "queued", "RETRY", "0xC123 (cannot understand)"),
        ([None], "queued", "UNREACHABLE", "2 instances are not stored. PACS ended"),
        ([0x0000, None], "queued", "RETRY", "1 instance is not stored. PACS ended"),
    ],
)
def test_the_worst_answer_decides_what_becomes_of_a_delivery(
    site: Site, statuses: list[int | None], state: str, reason: str, sentence: str
) -> None:
    delivery = site.derived()
    site.pacs.statuses = statuses
    site.configure(PACS)
    done = site.tried(delivery)
    assert (done.state, done.reason) == (state, reason)
    assert sentence in done.sentence


def test_a_retry_offers_only_what_is_not_stored_there(site: Site) -> None:
    delivery = site.derived(instances=3)
    site.pacs.statuses = [0x0000, 0xA700, 0x0000]
    site.configure(PACS)
    delayed = site.tried(delivery)
    assert (delayed.state, delayed.sent, delayed.failures) == (DeliveryState.QUEUED, 2, 1)
    assert 30.0 <= delayed.due_at - site.stored.clock.now <= 40.0
    assert site.try_again(delivery).state is DeliveryState.SENT
    assert site.pacs.offered[3:] == ["2.25.1.1"]


def test_a_destination_that_ends_each_association_after_an_instance_is_asked_again_at_once(
    site: Site,
) -> None:
    delivery = site.derived(instances=4)
    site.pacs.statuses = [0x0000, None, 0x0000, None, 0x0000, None]
    site.configure(PACS)
    delayed = site.tried(delivery)
    for stored in (1, 2, 3):
        assert (delayed.state, delayed.sent) == (DeliveryState.QUEUED, stored)
        assert 0 < delayed.due_at - site.stored.clock.now <= 1.0
        delayed = site.try_again(delivery)
    assert delayed.state is DeliveryState.SENT


def test_what_a_destination_says_of_its_answer_is_kept_and_told_but_never_logged(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    delivery = site.derived()
    site.pacs.statuses, site.pacs.comment = [0x0122, 0x0000], "No order of DOE^JANE"
    site.configure(PACS)
    held = site.tried(delivery)
    assert held.comment == "No order of DOE^JANE"
    assert held.sentence.endswith('The destination says: "No order of DOE^JANE"')
    assert "DOE" not in caplog.text + "".join(str(line.__dict__) for line in caplog.records)
    with site.stored.database.reading() as db:  # notices quote the row's own sentence
        (row,) = db.execute(text("SELECT sentence FROM delivery")).all()
    assert "DOE" not in row.sentence


def test_a_destination_has_the_time_for_an_answer_that_is_configured(site: Site) -> None:
    delivery = site.derived()
    site.configure(PACS.model_copy(update={"answer_seconds": 7.0}))
    site.tried(delivery)
    assert [timeouts.answer for timeouts in site.pacs.waits] == [7.0]


def test_a_duplicate_is_ours_where_an_earlier_answer_was_lost(site: Site) -> None:
    delivery = site.derived()
    site.pacs.statuses = [None]
    site.configure(PACS)
    site.tried(delivery)
    site.pacs.statuses = [0x0111]
    assert site.try_again(delivery).state is DeliveryState.SENT


def test_what_a_peer_does_not_understand_is_tried_three_times_more_ever_later(site: Site) -> None:
    delivery = site.derived(instances=1)
    site.pacs.statuses = [0xA900, 0xC000, 0xA900, 0xC000]
    site.configure(PACS)
    waits = []
    delayed = site.tried(delivery)
    while delayed.state is DeliveryState.QUEUED:
        waits.append(delayed.due_at - site.stored.clock.now)
        delayed = site.try_again(delivery)
    assert (delayed.state, delayed.reason) == (DeliveryState.HELD, "NOT_UNDERSTOOD")
    assert [wait >= least for wait, least in zip(waits, (60, 300, 1800), strict=True)] == [True] * 3


def test_an_association_that_is_refused_for_good_holds_the_delivery(site: Site) -> None:
    delivery = site.derived()
    site.pacs.gives_no_association = True
    site.pacs.sent = SendResult(Outcome.REFUSED, "PACS rejects the association permanently.")
    site.configure(PACS)
    held = site.tried(delivery)
    assert (held.state, held.reason) == (DeliveryState.HELD, "REFUSED_BY_PEER")
    assert "rejects the association permanently" in held.sentence


def test_a_destination_that_is_off_is_left_alone_until_its_time_and_then_gets_all(
    site: Site,
) -> None:
    delivery = site.derived()
    site.pacs.gives_no_association = True
    site.pacs.sent = SendResult(Outcome.RETRY, "PACS cannot be reached.")
    site.configure(PACS)
    delayed = site.tried(delivery)
    assert (delayed.state, delayed.reason) == (DeliveryState.QUEUED, "UNREACHABLE")
    assert not site.reach.may_send("pacs")
    site.pacs.gives_no_association, site.pacs.sent = False, SENT
    assert site.try_again(delivery).state is DeliveryState.SENT
    assert site.reach.may_send("pacs")


def test_a_destination_that_takes_nothing_for_too_long_is_given_up(site: Site) -> None:
    delivery = site.derived()
    site.pacs.statuses = [0xA700] * 4
    site.configure(PACS, give_up_hours=1.0)
    site.tried(delivery)
    site.wait(3601.0)
    held = site.tried(delivery, attempt=2)
    assert (held.state, held.reason) == (DeliveryState.HELD, "GAVE_UP")
    assert held.sentence.startswith("Not delivered in 1 hour.")


def test_a_clock_that_somebody_sets_forward_makes_no_delivery_give_up(site: Site) -> None:
    delivery = site.derived()
    site.pacs.statuses = [0xA700] * 8
    site.configure(PACS, give_up_hours=1.0)
    site.tried(delivery)
    site.stored.clock.now += 100 * 3600.0
    assert site.tried(delivery, attempt=2).state is DeliveryState.QUEUED
    site.wait(3601.0)
    assert site.tried(delivery, attempt=3).reason == "GAVE_UP"


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_derived_series_whose_files_changed_never_leaves(site: Site, damage: str) -> None:
    delivery = site.derived()
    file = site.stored.files.path(f"{delivery.folder}/1.dcm")
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(b"another patient")
    site.configure(PACS)
    held = site.tried(delivery)
    assert (held.state, held.reason) == (DeliveryState.HELD, "DAMAGED_FILES")
    assert held.sentence.startswith("1 file is missing or changed")
    assert site.pacs.peers == []


def pause(site: Site, *, on: bool) -> None:
    stored = site.stored
    control.turn(stored.database, stored.clock(), "anna", SwitchName.PAUSED, "pacs", on=on)


def test_a_paused_destination_gets_nothing_until_somebody_lets_it_go_on(site: Site) -> None:
    waiting = site.derived()
    pause(site, on=True)
    site.configure(PACS, ARCHIVE)
    site.stored.ledger.redeliver(1, "archive")
    others = site.stored.ledger.of_job(1)
    (archived,) = (site.tried(other) for other in others if other.destination == "archive")
    assert archived.state is DeliveryState.SENT
    assert site.stored.ledger.get(waiting.id).attempt == 0
    pause(site, on=False)
    assert site.tried(waiting).state is DeliveryState.SENT


def test_a_pause_ends_a_delivery_after_the_instance_on_the_wire_and_counts_nothing(
    site: Site,
) -> None:
    delivery = site.derived(instances=3)
    site.pacs.before_answer = lambda: pause(site, on=True)
    site.configure(PACS)
    released = site.tried(delivery)
    assert (released.state, released.sent, released.failures) == (DeliveryState.QUEUED, 1, 0)
    site.pacs.before_answer = lambda: None
    pause(site, on=False)
    assert site.tried(delivery, attempt=2).state is DeliveryState.SENT
    assert site.pacs.offered == ["2.25.1.0", "2.25.1.1", "2.25.1.2"]


def test_a_more_urgent_delivery_is_sent_before_the_rest_of_one_that_is_under_way(
    site: Site,
) -> None:
    long = site.derived(instances=3)
    site.pacs.before_answer = lambda: ask_urgently(site)
    site.configure(PACS)
    done = site.tried(long, attempt=2)  # the first may be over before anybody has looked
    assert (done.state, done.attempt, done.failures) == (DeliveryState.SENT, 2, 0)
    offered = ["2.25.1.0", "2.25.2.0", "2.25.2.1", "2.25.1.1", "2.25.1.2"]
    assert site.pacs.offered == offered


def ask_urgently(site: Site) -> None:
    """A series whose job has priority 1 is derived; once."""
    site.pacs.before_answer = lambda: None
    stored = site.stored
    stored.ask("urgent", ("2.1",), priority=1, stack="sagittal 512x512", destinations=("pacs",))
    stored.succeed("2.25.2")


def test_a_node_that_stops_gives_back_what_it_was_sending(site: Site) -> None:
    delivery = site.derived(instances=3)
    site.pacs.before_answer = site.deliverers.abandon
    site.configure(PACS)
    released = site.tried(delivery)
    assert (released.state, released.sent, released.failures) == (DeliveryState.QUEUED, 0, 0)
    assert site.pacs.offered == ["2.25.1.0"]
    assert site.deliverers.wait(20.0)


def test_a_node_that_drains_sends_what_it_has_begun_and_nothing_else(site: Site) -> None:
    delivery = site.derived()
    site.pacs.before_answer = site.deliverers.drain
    site.configure(PACS)
    assert site.tried(delivery).state is DeliveryState.SENT
    assert site.deliverers.wait(20.0)
    site.stored.ledger.redeliver(1, "pacs")
    assert site.stored.ledger.claim("pacs", "another") is not None  # nobody has taken it


def test_a_delivery_that_is_cancelled_while_it_is_sent_stays_cancelled(site: Site) -> None:
    delivery = site.derived()
    site.pacs.before_answer = lambda: site.stored.ledger.cancel(delivery.id)
    site.configure(PACS)
    assert site.tried(delivery).state is DeliveryState.CANCELLED
    site.pacs.before_answer = lambda: None
    site.stored.ledger.requeue(delivery.id)
    assert site.tried(delivery, attempt=2).state is DeliveryState.SENT  # its thread lives


def test_an_error_of_the_nodes_own_code_is_a_delay_and_the_thread_goes_on(site: Site) -> None:
    delivery = site.derived()
    site.pacs.fails = ZeroDivisionError("DOE^JANE")
    site.configure(PACS)
    delayed = site.tried(delivery)
    assert (delayed.state, delayed.reason) == (DeliveryState.QUEUED, "RETRY")
    assert site.reach.may_send("pacs")  # nothing is known of the destination
    assert delayed.sentence.endswith("The node failed to send it: ZeroDivisionError.")
    site.pacs.fails = None
    assert site.try_again(delivery).state is DeliveryState.SENT


def test_a_destination_that_moved_is_served_at_its_new_address(site: Site) -> None:
    site.configure(PACS)
    site.configure(PACS.model_copy(update={"host": "192.0.2.9"}))
    delivery = site.derived()
    site.tried(delivery)
    assert [peer.host for peer in site.pacs.peers] == ["192.0.2.9"]


def test_a_destination_that_stays_follows_the_new_retry_rules_without_a_new_thread(
    site: Site,
) -> None:
    site.configure(PACS)
    site.configure(PACS, retry_seconds=(900.0, 900.0))
    site.pacs.statuses = [0xA700]
    delayed = site.tried(site.derived())
    assert delayed.due_at - site.stored.clock.now == pytest.approx(900.0)


def test_what_waits_for_an_unknown_destination_is_held_and_goes_once_it_is_known(
    site: Site,
) -> None:
    site.deliverers.sweep_unknown()  # before the configuration is read: nothing is decided
    delivery = site.derived("pacs")
    site.configure(ARCHIVE)
    site.deliverers.sweep_unknown()
    held = site.stored.ledger.get(delivery.id)
    assert (held.state, held.reason) == (DeliveryState.HELD, "NO_DESTINATION")
    assert held.sentence == NOT_CONFIGURED.format(destination="pacs")
    site.configure(ARCHIVE, PACS)
    site.deliverers.sweep_unknown()
    assert site.tried(delivery, attempt=2).state is DeliveryState.SENT


def test_what_waits_for_a_sender_goes_to_the_destination_that_turns_out_to_be_it(
    site: Site,
) -> None:
    delivery = site.derived("sender CT1")
    site.configure(PACS)
    site.deliverers.sweep_unknown()
    held = site.stored.ledger.get(delivery.id)
    assert "'CT1' belongs to no destination" in held.sentence
    site.configure(PACS.model_copy(update={"sends_as": ("CT1",)}))
    site.deliverers.sweep_unknown()
    done = site.tried(delivery, attempt=2)
    assert (done.state, done.destination) == (DeliveryState.SENT, "pacs")


def test_an_echo_says_that_a_destination_is_up_or_down(site: Site) -> None:
    site.configure(PACS)
    site.pacs.gives_no_association = True
    site.pacs.sent = SendResult(Outcome.RETRY, "PACS cannot be reached.")
    assert not site.reach.echo(PACS).ok
    (reach,) = peers.reachability(site.stored.database)
    assert (reach.up, reach.sentence) == (False, "PACS cannot be reached.")
    site.pacs.gives_no_association = False
    assert site.reach.echo(PACS).ok
    (reach,) = peers.reachability(site.stored.database)
    assert (reach.up, reach.sentence) == (True, "")


def test_destinations_are_asked_again_only_when_their_time_has_come(site: Site) -> None:
    def echoes() -> int:
        return len(peers.newest(site.stored.database, "pacs"))

    site.configure(PACS)
    site.reach.sweep()
    wait_until(lambda: echoes() == 1, what="the first echo")
    site.reach.sweep()
    site.stored.clock.now += 301.0
    site.reach.sweep()
    wait_until(lambda: echoes() == 2, what="the second echo")


def with_supplement(site: Site, instances: int = 3) -> Delivery:
    """A derived series whose last instance is a presentation state beside it."""
    site.stored.ask("key", destinations=("pacs",))
    job = site.stored.claim()
    site.stored.queue.succeed(job, site.stored.derive(job, count=instances, supplements=1))
    (delivery,) = site.stored.ledger.of_job(job.id)
    return delivery


def test_a_supplement_goes_to_the_destination_after_the_series(site: Site) -> None:
    delivery = with_supplement(site)
    site.configure(PACS)
    done = site.tried(delivery)
    assert (done.state, done.sent, done.total, done.sentence) == ("sent", 3, 3, "")
    assert site.pacs.offered == ["2.25.1.0", "2.25.1.1", "2.25.1.2"]
    assert len(site.pacs.peers) == 2  # associations: a class that it does not know is not proposed


WITHOUT_MASKS = PACS.model_copy(update={"leave_out": ("segmentation",)})


def with_segmentation(site: Site) -> Delivery:
    """Two images and a segmentation that is no supplement."""
    site.stored.ask("key", destinations=("pacs",))
    job = site.stored.claim()
    derived = site.stored.derive(job, count=3)
    mask = replace(derived.instances[-1], kind="segmentation")
    site.stored.queue.succeed(job, replace(derived, instances=(*derived.instances[:-1], mask)))
    (delivery,) = site.stored.ledger.of_job(job.id)
    return delivery


def test_an_object_of_a_kind_that_is_left_out_is_not_offered_and_holds_nothing(site: Site) -> None:
    delivery = with_segmentation(site)
    site.configure(WITHOUT_MASKS)
    done = site.tried(delivery)
    assert (done.state, done.reason, done.sent, done.total) == ("sent", "LEFT_OUT", 2, 3)
    assert done.sentence == "Left out for this destination: segmentation."
    assert site.pacs.offered == ["2.25.1.0", "2.25.1.1"]


def test_an_object_that_a_destination_refuses_is_held_until_it_is_left_out(site: Site) -> None:
    delivery = with_segmentation(site)
    site.pacs.statuses = [0x0000, 0x0000, 0x0122]
    site.configure(PACS)
    held = site.tried(delivery)
    assert (held.state, held.reason) == ("held", "REFUSED_BY_PEER")
    site.configure(WITHOUT_MASKS)
    site.stored.ledger.requeue(delivery.id)
    done = site.tried(delivery, held.attempt + 1)
    assert (done.state, done.reason, done.sent) == ("sent", "LEFT_OUT", 2)


def test_what_is_left_out_hides_nothing_else_that_is_missing(site: Site) -> None:
    delivery = with_segmentation(site)
    site.pacs.statuses = [0x0000, 0x0122]
    site.configure(WITHOUT_MASKS)
    assert (site.tried(delivery).state, site.pacs.offered[-1]) == ("held", "2.25.1.1")


@pytest.mark.parametrize(("status", "words"), [(0x0122, "SOP Class not supported"), (0x0124, "")])
def test_a_refused_supplement_is_named_and_the_series_is_sent(
    site: Site, status: int, words: str
) -> None:
    delivery = with_supplement(site)
    site.pacs.statuses = [0x0000, 0x0000, status]
    site.configure(PACS)
    done = site.tried(delivery)
    assert (done.state, done.reason) == ("sent", "OBJECT_NOT_TAKEN")
    assert (done.sent, done.total) == (2, 3)
    assert f"not taken: its presentation state (0x{status:04X}" in done.sentence
    assert words in done.sentence


@pytest.mark.parametrize(("status", "state"), [(0x0122, "held"), (0xA700, "queued")])
def test_no_supplement_is_offered_beside_slices_that_are_not_stored(
    site: Site, status: int, state: str
) -> None:
    delivery = with_supplement(site)
    site.pacs.statuses = [0x0000, status]
    site.configure(PACS)
    done = site.tried(delivery)
    assert done.state == state
    assert f"0x{status:04X}" in done.sentence
    assert site.pacs.offered == ["2.25.1.0", "2.25.1.1"]


@pytest.mark.parametrize("status", [None, 0xC000, 0xA700])
def test_a_destination_that_chokes_on_a_supplement_has_the_series_and_stays_up(
    site: Site, status: int | None
) -> None:
    delivery = with_supplement(site)
    site.pacs.statuses = [0x0000, 0x0000, *[status] * 20]
    site.configure(PACS)
    done = site.tried(delivery)
    assert (done.state, done.sent) == ("queued", 2)
    for _ in range(7):
        if done.state == "sent":
            break
        done = site.try_again(delivery)
    assert (done.state, done.reason, done.sent) == ("sent", "OBJECT_NOT_TAKEN", 2)
    (reach,) = peers.reachability(site.stored.database)
    assert reach.up


def test_a_supplement_whose_file_changed_keeps_no_series_back(site: Site) -> None:
    delivery = with_supplement(site)
    site.stored.files.path(f"{delivery.folder}/2.dcm").write_bytes(b"something else")
    site.configure(PACS)
    done = site.tried(delivery)
    assert (done.state, done.reason, done.sent) == ("sent", "OBJECT_NOT_TAKEN", 2)
    assert "1 file is missing or changed here" in done.sentence
    assert site.pacs.offered == ["2.25.1.0", "2.25.1.1"]


def test_after_a_long_outage_a_supplement_is_offered_before_it_is_given_up(site: Site) -> None:
    delivery = with_supplement(site)
    site.pacs.statuses = [0x0000, 0x0000, 0xA700]
    site.wait(48 * 3600.0)
    site.configure(PACS)
    done = site.tried(delivery)
    assert (done.state, done.sent, done.reason) == ("sent", 2, "OBJECT_NOT_TAKEN")
    assert site.pacs.offered == ["2.25.1.0", "2.25.1.1", "2.25.1.2"]


def test_a_supplement_that_was_refused_is_offered_again_with_a_redelivery(site: Site) -> None:
    delivery = with_supplement(site)
    site.pacs.statuses = [0x0000, 0x0000, 0x0122]
    site.configure(PACS)
    site.tried(delivery)
    job = site.stored.queue.get(1)
    site.stored.ledger.redeliver(job.id)
    done = site.tried(delivery, 2)
    assert (done.state, done.sent, done.total, done.reason) == ("sent", 3, 3, "")


def test_answers_of_a_quick_destination_share_transactions_and_none_is_missing(site: Site) -> None:
    delivery = site.derived(instances=30)
    site.pacs.statuses = [0x0000] * 29 + [0xA700]
    commits = []
    record = site.stored.ledger.record
    site.stored.ledger.record = (  # type: ignore[method-assign]
        lambda leased, answers: (commits.append(len(answers)), record(leased, answers))[1]
    )
    site.pacs.seconds = 0.01
    site.configure(PACS)
    done = site.tried(delivery)
    assert (done.sent, done.total, done.reason) == (29, 30, "RETRY")
    assert sum(commits) == 30
    assert commits[0] == 1  # a slow destination's are seen at once
    assert len(commits) <= 5


def test_what_a_crash_takes_with_it_is_offered_again_and_a_duplicate_is_stored(site: Site) -> None:
    """The process ends before the answers that wait for their transaction are written."""
    delivery = site.derived(instances=3)
    written = site.stored.ledger.record
    site.stored.ledger.record = lambda *_: None  # type: ignore[method-assign]
    site.pacs.fails = None
    site.pacs.statuses = [0x0000, 0x0000, None]
    site.configure(PACS)
    assert site.tried(delivery).sent == 0  # stored there, but no row says so
    site.stored.ledger.record = written  # type: ignore[method-assign]
    site.pacs.statuses = [0x0111, 0x0111, 0x0000]
    done = site.try_again(delivery)
    assert (done.state, done.sent) == (DeliveryState.SENT, 3)


def test_a_cancelled_delivery_ends_while_its_destination_is_silent(site: Site) -> None:
    delivery = site.derived(instances=2)

    def cancel() -> None:
        site.stored.ledger.cancel(delivery.id, who="somebody")

    site.pacs.before_answer = cancel
    site.configure(PACS)
    wait_until(lambda: site.pacs.offered, what="the first instance is offered")
    done = site.tried(delivery)
    assert (done.state, done.sent) == (DeliveryState.CANCELLED, 0)
    assert site.pacs.offered == ["2.25.1.0"]


def test_a_node_that_stood_still_between_two_instances_offers_none_of_what_is_another_ones(
    site: Site,
) -> None:
    delivery = site.derived(instances=3)

    def stand_still() -> None:
        if len(site.pacs.offered) == 1:
            site.stored.clock.now += 300.0
            site.stored.ledger.cancel(delivery.id)  # the attempt is over, as after a take-over

    site.pacs.seconds = 0.0
    site.pacs.before_offer = stand_still
    site.configure(PACS)
    assert site.tried(delivery).state is DeliveryState.CANCELLED
    site.end()
    assert site.pacs.offered == ["2.25.1.0"]


def test_a_file_is_read_once_for_two_destinations_and_again_once_it_was_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, reads, now = tmp_path / "one.dcm", [], [0.0]
    path.write_bytes(b"pixels")
    expected = deliver.digest(path)
    monkeypatch.setattr(deliver, "MARK_SECONDS", -1.0)
    monkeypatch.setattr(deliver, "digest", lambda path: (reads.append(path), files_digest(path))[1])
    intact = deliver.Intact(lambda: now[0])
    assert intact.holds(str(path), expected) and intact.holds(str(path), expected)
    assert len(reads) == 1
    assert not intact.holds(str(path), "another")
    assert intact.holds(str(path), expected)
    now[0] += deliver.INTACT_SECONDS
    assert intact.holds(str(path), expected)
    assert len(reads) == 4
    times = path.stat()
    path.write_bytes(b"pixelz")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a tool that hides its change
    assert not intact.holds(str(path), expected)
    path.unlink()
    assert not intact.holds(str(path), expected)


def test_of_all_files_ever_sent_none_is_remembered_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliver, "MARK_SECONDS", -1.0)
    now = [0.0]
    intact = deliver.Intact(lambda: now[0])
    for number in range(1000):
        path = tmp_path / f"{number}.dcm"
        path.write_bytes(b"%d" % number)
        assert intact.holds(str(path), files_digest(path))
        now[0] += deliver.INTACT_SECONDS / 50
        assert intact.count <= 51
    assert intact.count > 40
