"""Two real nodes on one PostgreSQL and one storage folder: one archive, one queue, no loss."""

import threading
from collections import Counter
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import httpx
import pytest
from pydicom import dcmread
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
