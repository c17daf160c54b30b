"""What people ask of a running node happens without a restart, and it is written who asked."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from storage.database import Database
from storage.jobs import Queue
from storage.leases import Holder
from storage.queries import find, overview
from storage.queries.find import Wanted
from storage.records import (
    DeliveryState,
    Job,
    JobState,
    NodeRequest,
    RequestKind,
    RequestState,
    SelfTestState,
    SwitchName,
)
from storage.site import control, peers, selftests
from storage.site.audit import Audit
from tests import phantoms
from tests.node_process import NodeProcess, destination, route, running, wait_for
from tests.outside import Hook, hook
from tests.peers import Storescp, storescp, storescu
from tests.ports import free_port

AROUND = """
[notify]
webhooks = ["{url}"]

[selftest]
model = "linear"
destination = "pacs"
minutes = 2.0
"""


@dataclass
class Site:
    """A node with one destination, a webhook, and its database as the web process sees it."""

    node: NodeProcess
    database: Database
    pacs: Storescp
    hook: Hook
    folder: Path

    def ask(self, kind: RequestKind, subject: str = "") -> NodeRequest:
        """Ask, and wait for the answer."""
        asked = control.ask(self.database, time.time(), "anna", kind, subject)

        def answered() -> NodeRequest | None:
            now = control.get_request(self.database, asked.id)
            return now if now.state is not RequestState.ASKED else None

        return wait_for(f"an answer to {kind}", answered, 150.0)

    def turn(self, name: SwitchName, subject: str = "", *, on: bool) -> None:
        control.turn(self.database, time.time(), "anna", name, subject, on=on)

    def send(self, name: str, calling: str = "STORESCU") -> str:
        """Send a made series of three slices; its UID."""
        made = phantoms.Series(seed=name, study=name, slices=3)
        files = phantoms.write(self.folder / name, made)
        assert storescu(self.node.port, *files, calling=calling).code == 0
        return str(phantoms.dataset(made, 0).SeriesInstanceUID)

    def job(self, series_uid: str, state: JobState) -> Job:
        """The job of a series, once it is in this state."""
        queue = Queue(self.database, Holder("test", time.time, 1.0))
        wanted = Wanted(states=(state,), uid=series_uid)
        line = wait_for(
            f"job {state}", lambda: next(iter(find.jobs(self.database, wanted).lines), None), 90.0
        )
        return queue.get(line.id)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("asking")
    with hook() as web, storescp(folder / "pacs") as pacs:
        node = NodeProcess(
            folder / "node",
            route(destinations=("pacs",)),
            destination("pacs", "STORESCP", pacs.port),
            AROUND.format(url=web.url),
        )
        with running(node):
            database = Database.for_folder(folder / "node" / "var")
            yield Site(node, database, pacs, web, folder)
            database.close()


def test_a_drained_node_takes_series_and_starts_no_job(site: Site) -> None:
    site.turn(SwitchName.DRAINING, on=True)
    uid = site.send("drained")
    job = site.job(uid, JobState.QUEUED)
    page = overview.queue(site.database, time.time(), workers=1)
    assert [one.job.id for one in page.lines] == [job.id]
    assert site.ask(RequestKind.SELFTEST).sentence.startswith("The node drains")
    assert site.job(uid, JobState.QUEUED).attempt == 0
    site.turn(SwitchName.DRAINING, on=False)
    site.job(uid, JobState.SUCCEEDED)


def test_nothing_is_sent_to_a_paused_destination_until_it_goes_on(site: Site) -> None:
    wait_for("nothing is sent", lambda: overview.sending(site.database).total == 0)
    site.turn(SwitchName.PAUSED, "pacs", on=True)
    try:
        before = len(site.pacs.files())
        uid = site.send("paused")
        job = site.job(uid, JobState.SUCCEEDED)
        (line,) = overview.sending(site.database).lines
        assert (line.job_id, line.delivery.state) == (job.id, DeliveryState.QUEUED)
        (shown,) = peers.destinations(site.database, time.time(), ["pacs"])
        assert shown.paused is not None
        assert len(site.pacs.files()) == before
    finally:
        site.turn(SwitchName.PAUSED, "pacs", on=False)
    wait_for("the delivery", lambda: len(site.pacs.files()) == before + 5)


def test_a_series_that_is_never_to_be_processed_is_kept_without_a_job(site: Site) -> None:
    made = phantoms.Series(seed="never", study="never", slices=3)
    uid = str(phantoms.dataset(made, 0).SeriesInstanceUID)
    site.turn(SwitchName.NEVER, uid, on=True)
    assert site.send("never") == uid
    told = site.node.event("series complete", series_uid=uid)
    assert told["jobs"] == 0
    site.turn(SwitchName.NEVER, uid, on=False)
    site.send("never")
    site.job(uid, JobState.SUCCEEDED)


def test_a_series_is_processed_now_where_somebody_cannot_wait(site: Site) -> None:
    parts = (route(destinations=("pacs",)), destination("pacs", "STORESCP", site.pacs.port))
    around = AROUND.format(url=site.hook.url)
    site.node.configure(*parts, around, quiet_seconds=300.0)
    try:
        assert site.ask(RequestKind.RELOAD).sentence.startswith("The configuration is applied.")
        uid = site.send("now")
        done = site.ask(RequestKind.PROCESS_NOW, uid)
        assert (done.state, done.sentence) == (
            RequestState.DONE,
            "The series is complete with 3 instances: 1 job.",
        )
        site.job(uid, JobState.SUCCEEDED)
        again = site.ask(RequestKind.PROCESS_NOW, uid)
        assert again.state is RequestState.FAILED
        assert "nothing of the series" in again.sentence
    finally:
        site.node.configure(*parts, around)
        site.ask(RequestKind.RELOAD)


def test_a_configuration_with_a_mistake_changes_nothing_and_says_where_it_is(site: Site) -> None:
    file = site.node.folder / "config.toml"
    good = file.read_text()
    found = control.applied_configuration(site.database, _node_id(site))
    assert found is not None
    assert found.values["destinations"][0]["name"] == "pacs"  # type: ignore[index]
    try:
        file.write_text(good.replace('model = "linear"', 'model = "liner"'))
        refused = site.ask(RequestKind.RELOAD)
        assert refused.state is RequestState.FAILED
        assert "did you mean linear?" in refused.sentence
        shown = control.applied_configuration(site.database, _node_id(site))
        assert shown is not None
        assert (shown.values, shown.applied_at) == (found.values, found.applied_at)
        assert any("did you mean linear?" in problem for problem in shown.problems)
    finally:
        file.write_text(good)
    assert site.ask(RequestKind.RELOAD).state is RequestState.DONE
    shown = control.applied_configuration(site.database, _node_id(site))
    assert shown is not None
    assert shown.problems == ()


def test_an_echo_is_done_at_once_and_says_what_the_peer_said(site: Site) -> None:
    done = site.ask(RequestKind.ECHO, "pacs")
    assert done.state is RequestState.DONE
    assert done.sentence.startswith("STORESCP answers.")
    last = peers.last_echoes(site.database, ["pacs"])["pacs"]
    assert (last.ok, last.sentence) == (True, "")
    (reach,) = peers.reachability(site.database)
    assert reach.up
    assert (
        site.ask(RequestKind.ECHO, "research").sentence == "no destination 'research' is configured"
    )


def test_a_made_series_goes_all_the_way_and_leaves_nothing_behind(site: Site) -> None:
    wait_for("nothing is sent", lambda: overview.sending(site.database).total == 0)
    before = len(site.pacs.files())
    done = site.ask(RequestKind.SELFTEST)
    assert done.state is RequestState.DONE, done.sentence
    (found,) = selftests.newest(site.database, 1)
    assert [step.name for step in found.steps] == [
        "ready",
        "made",
        "received",
        "complete",
        "processed",
        "verified",
        "delivered",
    ]
    assert (found.state, found.who) == (SelfTestState.PASSED, "anna")
    assert len(site.pacs.files()) == before + 12  # a presentation state beside them
    assert selftests.leftovers(site.database) == ()
    assert not (site.node.folder / "var" / "selftest").exists() or not list(
        (site.node.folder / "var" / "selftest").iterdir()
    )
    assert all(not one.ae_title.startswith("~") for one in peers.senders(site.database, 0.0))


def test_a_self_test_that_fails_says_where_and_tells_somebody(site: Site) -> None:
    site.turn(SwitchName.PAUSED, "pacs", on=True)
    try:
        failed = site.ask(RequestKind.SELFTEST)
    finally:
        site.turn(SwitchName.PAUSED, "pacs", on=False)
    assert failed.state is RequestState.FAILED
    assert failed.sentence.startswith("pacs is paused")
    wait_for("a notice", lambda: [p for p in site.hook.posted if "pacs is paused" in p["text"]])


def test_a_test_notice_reaches_the_webhook(site: Site) -> None:
    done = site.ask(RequestKind.NOTIFY)
    assert (done.state, done.sentence) == (RequestState.DONE, "Sent through webhook 1, 127.0.0.1.")
    assert [p["event"] for p in site.hook.posted].count("test") == 1


def test_somebody_is_told_of_a_held_job_without_a_word_about_the_patient(site: Site) -> None:
    made = phantoms.Series(seed="gap", study="gap", slices=8, missing=(3,))
    files = phantoms.write(site.folder / "gap", made)
    assert storescu(site.node.port, *files).code == 0
    uid = str(phantoms.dataset(made, 0).SeriesInstanceUID)
    job = site.job(uid, JobState.HELD)
    (told,) = wait_for(
        "a notice", lambda: [p for p in site.hook.posted if p["event"] == "job_held"]
    )
    assert told["facts"][0]["job"] == job.id
    for secret in ("Phantom", "PH-0001", uid):
        assert secret not in str(told)


def test_who_asked_for_what_is_written_down(site: Site) -> None:
    events = Audit(site.database, time.time).list(1000, who="anna")
    assert {"drain", "pause destination", "never process", "ask: selftest"} <= {
        event.what for event in events
    }


def test_an_ae_title_is_let_in_without_a_restart_and_stays_so(tmp_path: Path) -> None:
    node = NodeProcess(tmp_path / "node", route(destinations=()), port=free_port())
    file = node.folder / "config.toml"
    file.write_text(file.read_text().replace("[node]", '[node]\nallowed_ae_titles = ["CT1"]'))
    database = Database.for_folder(node.folder / "var")
    site = Site(node, database, None, None, tmp_path)  # type: ignore[arg-type]
    files = phantoms.write(tmp_path / "made", phantoms.Series(slices=2))
    with running(node):
        assert storescu(node.port, *files, calling="CT2").code != 0
        (line,) = wait_for("it is noted", lambda: peers.rejections(database, 0.0).lines)
        assert (line.calling_ae, line.reason) == ("CT2", "calling AE title not recognised")
        site.turn(SwitchName.ALLOWED_AE, "CT2", on=True)
        wait_for("CT2 is let in", lambda: storescu(node.port, *files, calling="CT2").code == 0)
        assert storescu(node.port, *files, calling="CT3").code != 0
        node.terminate()
        assert node.wait() == 0
    with running(node):
        assert storescu(node.port, *files, calling="CT2").code == 0
        site.turn(SwitchName.ALLOWED_AE, "CT2", on=False)
        wait_for("CT2 is shut out", lambda: storescu(node.port, *files, calling="CT2").code != 0)
    database.close()


def test_a_destination_that_is_off_is_asked_again_and_an_echo_opens_the_way(
    tmp_path: Path,
) -> None:
    port = free_port()
    node = NodeProcess(
        tmp_path / "node",
        route(destinations=("pacs",)),
        destination("pacs", "STORESCP", port),
    )
    file = node.folder / "config.toml"
    file.write_text(file.read_text().replace("[0.5, 2.0]", "[600.0, 1200.0]\necho_minutes = 0.0"))
    database = Database.for_folder(node.folder / "var")
    with running(node), storescp(tmp_path / "unused") as unused:
        site = Site(node, database, unused, Hook(), tmp_path)
        uids = [site.send(name) for name in ("first", "second")]
        for uid in uids:
            site.job(uid, JobState.SUCCEEDED)
        node.event("destination down", destination="pacs")
        (shown,) = peers.destinations(database, time.time(), ["pacs"])
        assert (shown.up, shown.queued, shown.running) == (False, 2, 0)
        assert shown.reach is not None
        assert shown.reach.open_until > time.time() + 300
        node.event("delivery delayed")
        assert len(node.found("delivery delayed")) == 1  # the other did not have to find it out
        assert "refuses the connection" in site.ask(RequestKind.ECHO, "pacs").sentence
        with storescp(tmp_path / "pacs", port=port) as pacs:
            assert site.ask(RequestKind.ECHO, "pacs").state is RequestState.DONE
            node.event("destination up", destination="pacs")
            wait_for("both, though ten minutes are not over", lambda: len(pacs.files()) == 10)
    database.close()


def _node_id(site: Site) -> str:
    with site.database.reading() as db:
        return str(db.exec_driver_sql("SELECT id FROM node").scalar_one())
