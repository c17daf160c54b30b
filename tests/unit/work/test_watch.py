"""What a node sees when it looks around: peers that answer or do not, silence, a filling disk."""

import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from node.config import Config, DeliverySettings, Destination, ExpectedSender, Tls, defaults
from node.work.deliver import Reachability
from node.work.notify import Watches
from storage.archive import Archive
from storage.database import Database
from storage.files import Files
from storage.records import Peer, Received
from storage.site import nodes, notices, peers
from tests.certificates import Authority
from tests.conftest import Clock
from tests.ports import free_port
from tests.unit.storage.stored import CT, EXPLICIT, part10

DAY = 86_400.0


def destination(port: int, name: str = "pacs") -> Destination:
    return Destination(name=name, ae_title="SCRIPTED", host="127.0.0.1", port=port)


def told(database: Database, now: float) -> list[tuple[str, dict[str, object]]]:
    return [(one.event, dict(one.facts)) for one in notices.address(database, now, (), ())]


@dataclass
class Reached:
    """A node's look at its destinations, with a clock in the test's hand."""

    database: Database
    clock: Clock

    def look(self, *destinations: Destination, **settings: object) -> Reachability:
        given = DeliverySettings.model_validate({"retry_seconds": (30.0, 600.0), **settings})
        return Reachability(
            self.database,
            self.clock,
            "MIDSLICE",
            given,
            destinations,
            _jitter=random.Random(1),
        )


@pytest.fixture
def reached(database: Database, clock: Clock) -> Reached:
    return Reached(database, clock)


def test_nobody_is_asked_where_the_schedule_is_off(reached: Reached) -> None:
    look = reached.look(destination(free_port()), echo_minutes=0.0)
    look.sweep()
    assert peers.newest(reached.database, "pacs") == ()


def test_what_waits_does_not_find_out_one_by_one_that_a_peer_is_off(reached: Reached) -> None:
    look = reached.look()
    assert look.may_send("pacs")
    waits = []
    for _ in range(8):
        look.unreachable("pacs", "PACS refuses the connection.")
        assert not look.may_send("pacs")
        (known,) = peers.reachability(reached.database)
        waits.append(known.open_until - reached.clock.now)
        reached.clock.now = known.open_until + 1
        assert look.may_send("pacs")
    assert waits == sorted(waits) or waits[-1] >= 480
    assert 30 <= waits[0] < 40
    assert max(waits) <= 600
    look.answered("pacs")
    (known,) = peers.reachability(reached.database)
    assert (known.up, known.failures, known.open_until) == (True, 0, 0)
    events = [event for event, _ in told(reached.database, reached.clock())]
    assert events == ["destination_down", "destination_up"]


def test_a_peer_that_is_well_costs_no_write_a_delivery(reached: Reached) -> None:
    look = reached.look()
    look.answered("pacs")
    (first,) = peers.reachability(reached.database)
    reached.clock.now += 10
    look.answered("pacs")
    assert peers.reachability(reached.database) == (first,)


Background = Callable[..., Watches]


@pytest.fixture
def around(database: Database, clock: Clock, tmp_path: Path) -> Background:
    def make(**changes: object) -> Watches:
        settings: Config = defaults(tmp_path)
        node = settings.node.model_copy(update={"timezone": "Europe/Berlin"})
        changed = settings.model_copy(update={"node": node, **changes})
        return Watches(database, changed, "one", clock)

    (tmp_path / "var").mkdir()
    return make


def bring(database: Database, clock: Clock, folder: Path, calling: str) -> None:
    files = Files(folder / "kept", 0)
    archive = Archive(database, files, clock)
    file = files.incoming / "1.dcm"
    file.write_bytes(part10(b"content"))
    archive.keep(Received("1", "1.1", "1.1.1", CT, EXPLICIT), Peer(calling, "MIDSLICE"), file)


def test_a_silent_sender_is_told_once_a_silence(
    database: Database, clock: Clock, tmp_path: Path, around: Background
) -> None:
    watch = around(senders=(ExpectedSender(ae_title="CT2", silent_hours=2.0),))
    bring(database, clock, tmp_path, "CT2")
    events = []
    for _ in range(4):
        clock.now += 3600
        watch.senders()
        events.append([facts["sender"] for _, facts in told(database, clock())])
    assert events == [[], ["CT2"], [], []]
    bring(database, clock, tmp_path, "CT2")
    clock.now += 2 * 3600 + 1
    watch.senders()
    assert [event for event, _ in told(database, clock())] == ["sender_silent"]


def test_a_sender_that_never_sent_is_silent_from_the_first_look(
    database: Database, clock: Clock, around: Background
) -> None:
    watch = around(senders=(ExpectedSender(ae_title="CT9", silent_hours=2.0),))
    watch.senders()
    assert told(database, clock()) == []
    clock.now += 2 * 3600 + 1
    watch.senders()
    ((event, facts),) = told(database, clock())
    assert (event, facts["sender"]) == ("sender_silent", "CT9")


def test_nobody_is_told_of_a_sender_that_nobody_expects(
    database: Database, clock: Clock, around: Background
) -> None:
    clock.now += 10 * DAY
    around().senders()
    assert told(database, clock()) == []


def test_a_disk_that_fills_up_is_told_once_a_day_with_what_to_do(
    database: Database, clock: Clock, around: Background
) -> None:
    watch = around()
    free = shutil.disk_usage(watch.settings.folder).free
    for days in range(3, 0, -1):  # half of what is free now goes each day
        nodes.record(database, clock.now - days * DAY, "one", int(free * (1 + days / 2)), 10**13)
    watch.disk()
    ((event, facts),) = told(database, clock())
    assert event == "disk_low"
    assert "lower storage.keep_days" in str(facts["sentence"])
    clock.now += 600
    watch.disk()
    assert told(database, clock()) == []
    clock.now += DAY
    watch.disk()
    assert len(told(database, clock())) <= 1


def test_a_disk_below_its_reserve_is_told_at_once(
    database: Database, clock: Clock, around: Background
) -> None:
    watch = around()
    storage = watch.settings.storage.model_copy(update={"min_free_gb": 1e9})
    watch.settings = watch.settings.model_copy(update={"storage": storage})
    watch.disk()
    ((_, facts),) = told(database, clock())
    assert "nothing is accepted" in str(facts["sentence"])


def test_a_disk_that_does_not_fill_is_no_news(
    database: Database, clock: Clock, around: Background
) -> None:
    around().disk()
    assert told(database, clock()) == []
    assert len(nodes.samples(database, "one", 0.0)) == 1


def test_a_certificate_is_told_of_at_each_stage_once(
    tmp_path: Path, database: Database, clock: Clock
) -> None:
    authority = Authority(tmp_path / "ca")
    pair = authority.sign("node", days=40)
    tls = Tls.model_construct(
        certificate=pair.certificate, key=pair.key, authorities=authority.certificate, crl=None
    )
    settings = defaults(tmp_path).model_copy(update={"tls": tls})
    watches = Watches(database, settings, "n1", clock)
    said = []
    clock.now = time.time()
    for days in (0, 20, 5, 10, 10, 1):
        clock.now += days * DAY
        watches.certificates()
        said.append([facts["sentence"] for event, facts in told(database, clock())])
    counts = [len(sentences) for sentences in said]
    assert counts == [0, 1, 0, 1, 1, 0]
    assert said[1][0].startswith(f"The certificate node of this node ({pair.certificate}) expires")
    assert "expired on" in said[4][0]
