"""Whom somebody should look at: silent senders, destinations, notices; on Now and on every page."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.records import ClosingFault, Peer, SwitchName
from storage.site import control, notices, peers
from storage.site.nodes import Nodes, fact_or_set
from tests.certificates import Authority
from tests.unit.storage.stored import post
from tests.unit.web.site import Client, Site, site

CALM = "Nothing needs a person."
HOUR = 3600.0
SENDERS = """
[[sender]]
ae_title = "CT1"
silent_hours = 2.0
[[sender]]
ae_title = "CT2"
silent_hours = 2.0
"""


@pytest.fixture
def watched(tmp_path: Path, migrated_sqlite: Path) -> Iterator[Site]:
    """A node that expects two scanners, all day."""
    with site(tmp_path / "site", migrated_sqlite, SENDERS) as made:
        yield made


def marks(person: Client) -> tuple[str, str]:
    """What the part of Now and the mark at "Peers" say."""
    return person.get("/now/needs").text, person.get("/peers/count").text


def turned_away(served: Site, name: str) -> None:
    served.rows.archive.rejected(name, "MIDSLICE", "10.0.0.3", "calling AE title not recognised")


def test_a_node_with_nothing_wrong_around_it_is_calm(watched: Site) -> None:
    watched.rows.receive("1.1", peer=Peer("CT1", "MIDSLICE"))
    part, mark = marks(watched.person())
    assert CALM in part
    assert mark.strip() == ""


def test_a_scanner_that_is_only_turned_away_stays_silent(watched: Site) -> None:
    person = watched.person()
    watched.rows.receive("1.1", peer=Peer("CT1", "MIDSLICE"))
    watched.clock.now += 3 * HOUR
    turned_away(watched, "CT1")
    page = person.get("/peers").text
    assert "silent for longer than 2 h" in page
    assert ">3 h</time> ago" in page  # the last image
    assert ">0 s</time> ago" in page  # last seen
    part, mark = marks(person)
    assert "has sent no image for" in part
    assert CALM not in part
    assert ">1<" in mark
    watched.rows.receive("1.2", peer=Peer("CT1", "MIDSLICE"))
    assert "silent for longer" not in person.get("/peers").text
    assert CALM in person.get("/now/needs").text


def test_a_scanner_that_never_brought_anything_is_silent_since_it_was_expected(
    watched: Site,
) -> None:
    person = watched.person()
    turned_away(watched, "CT2")
    fact_or_set(watched.database, peers.EXPECTED.format("CT2"), repr(watched.clock.now))
    assert "CT2 is expected to send, but has never sent an image." in person.get("/peers").text
    assert CALM in person.get("/now/needs").text
    watched.clock.now += 3 * HOUR
    assert ">CT2</a>" in person.get("/now/needs").text
    assert "silent for longer than 2 h" in person.get("/peers").text


def test_a_series_that_an_error_keeps_open_is_an_alert_of_its_page(served: Site) -> None:
    person, rows = served.person(), served.rows
    rows.receive("1.1")
    arrival = rows.arrival()
    rows.queue.cannot_complete(arrival.id, ClosingFault("KeyError", served.clock() - 90), "Look.")
    part, mark = marks(person)
    assert f'href="/series/{arrival.series_uid}"' in part
    assert ">A series from SCANNER</a>" in part
    assert "has not been processed because of an error of the node (KeyError) for" in part
    assert mark.strip() == ""  # it is nothing of the page Peers
    page = person.get(f"/series/{arrival.series_uid}").text
    assert "An error of the node (KeyError) keeps its jobs from being made" in page
    rows.queue.complete(arrival.id, {"rule": "quiet"}, ())
    assert CALM in person.get("/now/needs").text


def test_a_destination_that_is_down_or_paused_is_an_alert(served: Site) -> None:
    person, now = served.person(), served.clock()
    for name in ("pacs", "gone"):  # nobody sends to the second one any more
        peers.record(served.database, now, name, ok=False, seconds=0.1, sentence="It is off.")
    part, mark = marks(person)
    assert "has not answered for" in part
    assert ">1<" in mark
    assert "gone" not in part
    control.turn(served.database, now, "anna", SwitchName.PAUSED, "pacs", on=True)
    part, mark = marks(person)
    assert "has been paused by anna for" in part
    assert ">1<" in mark  # the same destination
    peers.record(served.database, now, "pacs", ok=True, seconds=0.1, sentence="")
    control.turn(served.database, now, "anna", SwitchName.PAUSED, "pacs", on=False)
    assert CALM in person.get("/now/needs").text


def test_a_node_whose_jobs_wait_for_a_worker_for_longer_than_it_starts_is_an_alert(
    served: Site,
) -> None:
    person, nodes = served.person(), Nodes(served.database, served.clock)
    nodes.start("one/MIDSLICE")
    nodes.beat("one/MIDSLICE", lacks="1 of 2: no Ray cluster answers")
    assert CALM in person.get("/now/needs").text
    served.clock.now += 61
    nodes.beat("one/MIDSLICE", lacks="1 of 2: no Ray cluster answers")
    part, mark = marks(person)
    assert 'href="/capacity"' in part
    assert "has lacked workers (1 of 2: no Ray cluster answers) for" in part
    assert mark.strip() == ""  # it is nothing of the page Peers
    assert "jobs wait for a worker: 1 of 2: no Ray cluster" in person.get("/capacity").text
    nodes.beat("one/MIDSLICE")
    assert CALM in person.get("/now/needs").text


def test_a_notice_that_does_not_get_there_is_an_alert_of_the_self_test_page(served: Site) -> None:
    person, now = served.person(), served.clock()
    post(served.database, now, "job_held", "k", {"job": 1})
    notices.address(served.database, now, ("mail",), ("job_held",))
    outbox = notices.Outbox(served.database, served.clock, node="one")
    (message,) = outbox.claim([message.id for message in outbox.due()])
    outbox.retry(message, now + 30, "mail.example.org did not take it.")
    part, mark = marks(person)
    assert 'href="/selftest"' in part
    assert "has not accepted a notification for" in part
    assert mark.strip() == ""  # it is nothing of the page Peers


def test_every_page_says_how_many_peers_need_a_look(served: Site) -> None:
    control.turn(served.database, served.clock(), "anna", SwitchName.PAUSED, "pacs", on=True)
    for path in ("/", "/find", "/capacity"):
        assert '1<span class="for-readers"> to look at</span>' in served.person().get(path).text


@pytest.mark.parametrize(
    ("days", "says"),
    [(100, ""), (12, "has been due for renewal"), (-3, "has been invalid for")],
)
def test_a_certificate_that_expires_needs_a_person(
    tmp_path: Path, migrated_sqlite: Path, days: float, says: str
) -> None:
    authority = Authority(tmp_path / "ca")
    pair = authority.sign("node.example", days=days)
    tls = f'[tls]\nport = 0\ncertificate = "{pair.certificate}"\nkey = "{pair.key}"\n'
    tls += f'authorities = "{authority.certificate}"\n'
    with site(tmp_path / "site", migrated_sqlite, tls) as served:
        served.clock.now = time.time()
        now, _ = marks(served.person())
    assert ("The certificate node.example" in now) == bool(says)
    assert says in now
