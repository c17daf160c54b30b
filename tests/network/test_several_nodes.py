"""Two real nodes on one PostgreSQL and one storage folder: one archive, one queue, no loss."""

import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import httpx
import pytest
from pydicom import Dataset, dcmread
from pynetdicom import evt
from sqlalchemy import NullPool, create_engine, text

from tests import node_rows, phantoms
from tests.node_cluster import LOST_SECONDS, cluster, cluster_node
from tests.node_process import NodeProcess, destination, route, running, wait_for
from tests.peers import Script, Storescp, scripted_scp
from tests.phantoms import Series
from tests.postgres import PostgresServer
from tests.raw_peer import RawPeer, associate_request, status_of, store_command
from tests.traffic import data_set_of, made_of, padded, send, uid_of

SLOW = '\n[[model]]\nname = "slow"\nclass = "tests.faulty_models:Slow"\n'
_numbers = count(1)


@pytest.fixture
def database(postgres_server: PostgresServer) -> Iterator[str]:
    name = f"several_{next(_numbers)}"
    yield postgres_server.create(name)
    postgres_server.drop(name)


def rows(node: NodeProcess, query: str) -> list[tuple[object, ...]]:
    engine = create_engine(node.database_url, poolclass=NullPool)
    with engine.begin() as db:
        result = db.execute(text(query))
        return [tuple(row) for row in result] if result.returns_rows else []


def test_what_comes_by_two_receivers_is_one_series_and_every_node_shows_all(
    tmp_path: Path, database: str, empty_archive: Storescp
) -> None:
    parts = (
        destination("pacs", "STORESCP", empty_archive.port),
        route(destinations=["pacs"]),
    )
    files = phantoms.write(tmp_path / "ct", Series(slices=12))
    with cluster(tmp_path, database, *parts) as (one, two):
        halves = ((one, files[::2]), (two, files[1::2]))
        senders = [threading.Thread(target=send, args=half) for half in halves]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join(30)
        node_rows.wait_until_settled(one, [uid_of(files)])
        (job,) = node_rows.jobs(two, uid_of(files))
        assert job.state == "succeeded"
        assert len(made_of(empty_archive, job.derived_uid)) == 23
        (delivery,) = node_rows.deliveries(one, uid_of(files))
        assert (delivery.state, delivery.offers) == ("sent", 1)
        assert rows(one, "SELECT count(*), count(DISTINCT node) FROM association") == [(2, 2)]
        for node in (one, two):
            answer = httpx.get(f"http://127.0.0.1:{node.web_port}/api/v1/nodes", headers=one.proof)
            assert [(it["id"], it["alive"]) for it in answer.json()] == [
                ("one/MIDSLICE", True),
                ("two/MIDSLICE", True),
            ]
            page = httpx.get(f"http://127.0.0.1:{node.web_port}/capacity", headers=one.proof)
            assert page.text.count("/MIDSLICE</a>") == 2


def test_a_node_that_dies_while_it_receives_and_predicts_leaves_its_work_to_the_other(
    tmp_path: Path, database: str, empty_archive: Storescp
) -> None:
    parts = (
        SLOW,
        destination("pacs", "STORESCP", empty_archive.port),
        route(model="slow", destinations=["pacs"]),
    )
    predicted = phantoms.write(tmp_path / "a", Series(seed="a", slices=40))
    received = phantoms.write(tmp_path / "b", Series(seed="b", slices=6))
    with cluster(tmp_path, database, *parts) as (one, two):
        send(one, predicted)
        dies = holder_of(one, two, "SELECT node FROM job WHERE state = 'running'")
        lives = two if dies is one else one
        with RawPeer(dies.port) as scanner:
            scanner.associate(associate_request(calling="CT2"))
            for file in received[:3]:
                assert stored(scanner, file) == 0
            dies.kill_all()
        lost = lives.event("node lost", seconds=LOST_SECONDS + 15.0)
        assert (lost["node"], lost["jobs"]) == (name_of(dies), 1)
        lives.hurry()
        send(lives, received, calling="CT2")  # no Success came for all of it: once more
        node_rows.wait_until_settled(lives, [uid_of(predicted), uid_of(received)])
        for files, slices in ((predicted, 79), (received, 11)):
            *_, job = node_rows.jobs(lives, uid_of(files))  # half of a series may have been one
            assert job.state == "succeeded"
            assert len(made_of(empty_archive, job.derived_uid)) == slices
        dies.start()  # its machine is back
        assert rows(one, "SELECT count(*) FROM node WHERE state = 'serving'") == [(2,)]
        assert {uid for uid, _ in node_rows.kept(one)} == uids((*predicted, *received))


def test_a_node_that_dies_while_it_sends_leaves_the_rest_to_the_other(
    tmp_path: Path, database: str
) -> None:
    script = Script(stall_at=4)
    files = phantoms.write(tmp_path / "ct", Series(slices=5))
    with scripted_scp(script) as port:
        parts = (destination("pacs", "SCRIPTED", port), route(destinations=["pacs"]))
        with cluster(tmp_path, database, *parts) as (one, two):
            send(one, files)
            wait_for("the peer stalls", lambda: len(script.received) >= 4)
            dies = holder_of(one, two, "SELECT node FROM delivery")
            dies.kill_all()
            lives = two if dies is one else one
            lives.event("node lost", deliveries=1, seconds=LOST_SECONDS + 15.0)
            lives.event("delivery sent")
            (delivery,) = node_rows.deliveries(lives, uid_of(files))
            assert delivery.state == "sent"
            counts = Counter(script.received)
            assert len(counts) == 9
            assert counts.total() - len(counts) <= 4  # what had no answer in the ledger yet


def test_a_node_that_stood_still_for_long_writes_over_nothing_and_works_on(
    tmp_path: Path, database: str, empty_archive: Storescp
) -> None:
    parts = (
        SLOW,
        destination("pacs", "STORESCP", empty_archive.port),
        route(model="slow", destinations=["pacs"]),
    )
    predicted = phantoms.write(tmp_path / "a", Series(seed="a", slices=40))
    received = phantoms.write(tmp_path / "b", Series(seed="b", slices=6))
    with cluster(tmp_path, database, *parts) as (one, two):
        send(one, predicted)
        stands = holder_of(one, two, "SELECT node FROM job WHERE state = 'running'")
        works = two if stands is one else one
        with RawPeer(stands.port) as scanner:
            scanner.associate(associate_request(calling="CT2"))
            for file in received[:3]:
                assert stored(scanner, file) == 0
            stand_still(stands)
            works.event("node lost", seconds=LOST_SECONDS + 15.0, node=name_of(stands), jobs=1)
            works.hurry()
            works.event("delivery sent")
            made = {path: path.read_bytes() for path in empty_archive.files()}
            go_on(stands)
            stands.event("lease lost")
            for file in received[3:]:
                assert stored(scanner, file) == 0
            scanner.release()
        stands.hurry()
        node_rows.wait_until_settled(works, [uid_of(predicted), uid_of(received)])
        (job,) = node_rows.jobs(stands, uid_of(predicted))
        assert len(made_of(empty_archive, job.derived_uid)) == 79
        assert [it.offers for it in node_rows.deliveries(works, uid_of(predicted))] == [1]
        assert {path: path.read_bytes() for path in made} == made
        *_, late = node_rows.jobs(works, uid_of(received))  # what came before it stood was one too
        assert len(made_of(empty_archive, late.derived_uid)) == 11
        assert {uid for uid, _ in node_rows.kept(one)} == uids((*predicted, *received))
        assert rows(one, "SELECT count(*) FROM node WHERE state = 'serving'") == [(2,)]
        assert unused_results(one) == set()


def test_a_node_that_stood_still_while_it_sent_offers_nothing_that_another_one_has_sent(
    tmp_path: Path, database: str
) -> None:
    script = Script()
    answer = script.answer
    holder: list[NodeProcess] = []
    nodes: list[NodeProcess] = []

    def stands_still(event: evt.Event) -> int | Dataset:
        if len(script.received) == 3 and not holder:
            holder.append(holder_of(*nodes, "SELECT node FROM delivery"))
            stand_still(holder[0])
        return answer(event)

    script.answer = stands_still  # type: ignore[method-assign]
    files = phantoms.write(tmp_path / "ct", Series(slices=5))
    with scripted_scp(script) as port:
        parts = (destination("pacs", "SCRIPTED", port), route(destinations=["pacs"]))
        with cluster(tmp_path, database, *parts) as (one, two):
            nodes += [one, two]
            send(one, files)
            wait_for("a node stands still", lambda: holder)
            works = two if holder[0] is one else one
            works.event("node lost", deliveries=1, seconds=LOST_SECONDS + 15.0)
            works.event("delivery sent")
            before = Counter(script.received)
            go_on(holder[0])
            holder[0].event("lease lost")
            assert Counter(script.received) == before
            assert len(before) == 9
            assert before.total() - len(before) <= 4  # what had no answer in the ledger yet
            (delivery,) = node_rows.deliveries(one, uid_of(files))
            assert delivery.state == "sent"


def test_a_job_is_watched_and_cancelled_at_another_node_than_that_which_runs_it(
    tmp_path: Path, database: str
) -> None:
    files = phantoms.write(tmp_path / "ct", Series(slices=60))
    with cluster(tmp_path, database, SLOW, route(model="slow", destinations=[])) as (one, two):
        send(one, files)
        runs = holder_of(one, two, "SELECT node FROM job WHERE state = 'running'")
        other = two if runs is one else one
        at = f"http://127.0.0.1:{other.web_port}"
        with httpx.stream("GET", f"{at}/live", headers=other.proof, timeout=30.0) as stream:
            events = (line for line in stream.iter_lines() if line.startswith("event: queue"))
            shown = []
            for _ in range(3):  # each is a change that the page asks for
                next(events)
                (job,) = httpx.get(f"{at}/api/v1/jobs", headers=other.proof).json()
                shown.append(job["progress"])
            assert shown[0] < shown[-1]
            cancelled = httpx.post(f"{at}/api/v1/jobs/{job['id']}/cancel", headers=other.proof)
            assert cancelled.status_code == 200
            runs.event("job cancelled", seconds=15.0)
            next(events)
        assert [it.state for it in node_rows.jobs(one, uid_of(files))] == ["cancelled"]


def test_a_destination_has_one_association_of_all_nodes_and_the_order_of_the_queue(
    tmp_path: Path, database: str
) -> None:
    script = Script()
    open_now: list[int] = []
    order: list[str] = []
    lock = threading.Lock()
    answer = script.answer

    def watched(event: object) -> object:
        with lock:
            open_now.append(len(event.assoc.ae.active_associations))  # type: ignore[attr-defined]
        return answer(event)  # type: ignore[arg-type]

    script.answer = watched  # type: ignore[method-assign, assignment]
    sets = [phantoms.write(tmp_path / str(n), Series(seed=str(n), slices=3)) for n in range(4)]
    with scripted_scp(script) as port:
        parts = (destination("pacs", "SCRIPTED", port), route(destinations=["pacs"]))
        with cluster(tmp_path, database, *parts) as (one, two):
            at = f"http://127.0.0.1:{one.web_port}/api/v1/destinations/pacs/"
            assert httpx.post(at + "pause", headers=one.proof).status_code == 200
            for number, files in enumerate(sets):
                send((one, two)[number % 2], files)
            made = "SELECT count(*) FROM delivery WHERE state = 'queued'"
            wait_for("all are made", lambda: rows(one, made) == [(4,)])
            assert httpx.post(at + "resume", headers=one.proof).status_code == 200
            node_rows.wait_until_settled(one, [uid_of(files) for files in sets])
            order = [str(uid) for (uid,) in rows(one, IN_ORDER)]
    assert max(open_now) == 1
    of_series = [order.index(uid) // 5 for uid in script.received]
    assert sorted(set(script.received)) == sorted(order)
    assert of_series == sorted(of_series)


IN_ORDER = """
SELECT derived_instance.instance_uid FROM derived_instance
JOIN delivery ON delivery.derived_id = derived_instance.derived_id
ORDER BY delivery.priority, delivery.queued_at, delivery.id, derived_instance.id
"""


def test_a_node_that_does_not_fit_the_others_is_refused_in_words(
    tmp_path: Path, database: str
) -> None:
    one = cluster_node(tmp_path, "one", database, route(destinations=[]))
    with running(one):
        secret = tmp_path / "other-secret"
        secret.write_text("0" * 64)
        two = cluster_node(tmp_path, "two", database, route(destinations=[]))
        two.environment |= {"MIDSLICE_STORAGE__SECRET_FILE": str(secret)}
        refused(two, "the secret is not the one that this database was made with")
        two.environment.pop("MIDSLICE_STORAGE__SECRET_FILE")
        rows(one, "UPDATE node SET version = '0.0'")
        refused(two, "the node one/MIDSLICE on this storage runs release 0.0, this is")
        rows(one, "UPDATE alembic_version SET version_num = '0000'")
        two.environment["MIDSLICE_NODE__NAME"] = "one"
        refused(two, "a node named one/MIDSLICE is running on")
        rows(one, "UPDATE alembic_version SET version_num = '0001'")


def stand_still(node: NodeProcess) -> None:
    """Stop all of its processes, as a machine does that is frozen."""
    os.killpg(node.pid, signal.SIGSTOP)


def go_on(node: NodeProcess) -> None:
    os.killpg(node.pid, signal.SIGCONT)


def unused_results(node: NodeProcess) -> set[str]:
    """The folders of results that no row names."""
    there = {f"derived/{path.name}" for path in (node.folder / "var/derived").iterdir()}
    return there - {str(folder) for (folder,) in rows(node, "SELECT folder FROM derived")}


def name_of(node: NodeProcess) -> str:
    return f"{node.folder.name}/MIDSLICE"


def holder_of(one: NodeProcess, two: NodeProcess, query: str) -> NodeProcess:
    """The node that holds a row, once one does."""
    wait_for("a node has it", lambda: rows(one, query))
    return one if rows(one, query) == [(name_of(one),)] else two


def refused(node: NodeProcess, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        node.start()
    assert node.wait() != 0
    node.close()


def stored(peer: RawPeer, file: Path) -> int:
    uid = padded(str(dcmread(file, stop_before_pixels=True).SOPInstanceUID))
    return status_of(peer.store(store_command(uid), data_set_of(file)))


def uids(files: tuple[Path, ...]) -> set[str]:
    return {str(dcmread(file, stop_before_pixels=True).SOPInstanceUID) for file in files}
