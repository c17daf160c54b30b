"""The database is lost, or an older copy put back: nothing acknowledged is forgotten or purged."""

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from pydicom import Dataset
from pynetdicom import evt
from sqlalchemy import text

from storage.database import FILE_NAME, Database
from tests import node_rows, phantoms
from tests.node_process import NodeProcess, destination, route, running
from tests.peers import Script, Storescp, scripted_scp
from tests.phantoms import Series
from tests.postgres import postgres
from tests.traffic import send, send_and_wait, uid_of


@pytest.fixture
def node(tmp_path: Path, archive: Storescp) -> Iterator[NodeProcess]:
    parts = [
        destination("pacs", "STORESCP", archive.port),
        route(destinations=["pacs"], more='calling_ae_title = "CT1"\n'),
    ]
    with running(NodeProcess(tmp_path / "node", *parts, quiet_seconds=0.7)) as process:
        yield process


def storage_of(node: NodeProcess) -> Path:
    return Path(node.database_url.removeprefix("sqlite:///")).parent


def forget(folder: Path) -> None:
    for path in folder.glob(f"{FILE_NAME}*"):
        path.unlink()


def test_what_was_received_is_processed_by_the_route_of_its_sender_after_the_loss(
    node: NodeProcess, archive: Storescp, tmp_path: Path
) -> None:
    routed = phantoms.write(tmp_path / "a", Series(seed="a", slices=4))
    other = phantoms.write(tmp_path / "b", Series(seed="b", slices=4))
    (job,) = send_and_wait(node, routed, calling="CT1")
    send_and_wait(node, other, calling="CT2")
    assert job.state == "succeeded"
    node.terminate()
    node.wait()
    forget(storage_of(node))
    node.events.clear()
    node.start()
    node_rows.wait_until_settled(node, [uid_of(routed), uid_of(other)])
    (again,) = node_rows.jobs(node, uid_of(routed))
    assert (again.state, again.derived_uid) == ("succeeded", job.derived_uid)  # the same UIDs
    assert node_rows.jobs(node, uid_of(other)) == []
    database = Database(node.database_url)
    with database.reading() as db:
        senders = db.execute(text("SELECT calling_ae, restored FROM arrival ORDER BY calling_ae"))
        assert [tuple(row) for row in senders] == [("CT1", 1), ("CT2", 1)]
        notices = db.execute(text("SELECT facts FROM notice WHERE event = 'attention'")).scalars()
        assert any("8 received files of 2 series" in facts for facts in notices)
    database.close()


def test_a_node_whose_database_is_replaced_while_it_runs_ends_and_forgets_nothing(
    node: NodeProcess, tmp_path: Path
) -> None:
    """It would answer Success on, and write into a file that nobody finds again."""
    before = phantoms.write(tmp_path / "a", Series(seed="a", slices=4))
    after = phantoms.write(tmp_path / "b", Series(seed="b", slices=4))
    send_and_wait(node, before, calling="CT1")
    own = storage_of(node) / FILE_NAME
    copy = tmp_path / "older.db"
    with closing(sqlite3.connect(own)) as opened, closing(sqlite3.connect(copy)) as older:
        opened.backup(older)
    send_and_wait(node, after, calling="CT1")
    forget(storage_of(node))
    copy.replace(own)
    node.event("database replaced")
    assert node.wait() == 1
    node.events.clear()
    node.start()
    node_rows.wait_until_settled(node, [uid_of(before), uid_of(after)])
    for paths in (before, after):
        assert [job.state for job in node_rows.jobs(node, uid_of(paths))] == ["succeeded"]


def test_a_series_goes_on_as_soon_as_the_database_is_back_that_was_away_meanwhile(
    tmp_path: Path,
) -> None:
    """The lease of the delivery, of two minutes, keeps nothing from its destination."""
    script = Script()
    answer = script.answer
    with postgres() as server:

        def without_database(event: evt.Event) -> int | Dataset:
            if len(script.received) == 2:
                server.kill_all()
            return answer(event)

        script.answer = without_database  # type: ignore[method-assign]
        files = phantoms.write(tmp_path / "a", Series(seed="a", slices=4))
        with scripted_scp(script) as port:
            parts = (destination("pacs", "SCRIPTED", port), route(destinations=["pacs"]))
            node = NodeProcess(tmp_path / "node", *parts, database=server.create("midslice"))
            with running(node):
                send(node, files)
                node.event("delivery given back")
                server.start()
                node.event("delivery sent", seconds=30.0)
    assert len(set(script.received)) == 7


def test_what_came_after_a_backup_arrives_once_more_when_it_is_restored(
    node: NodeProcess, tmp_path: Path
) -> None:
    before = phantoms.write(tmp_path / "a", Series(seed="a", slices=4))
    after = phantoms.write(tmp_path / "b", Series(seed="b", slices=4))
    send_and_wait(node, before, calling="CT1")
    backup = tmp_path / "backup.zip"
    assert node.cli("backup", str(backup))["rows"] > 4  # while the node runs
    send(node, after, calling="CT1")
    node.kill()
    shutil.rmtree(storage_of(node) / "derived")
    assert node.cli("restore", str(backup))["indexed"] == 4
    node.events.clear()
    node.start()
    node_rows.wait_until_settled(node, [uid_of(before), uid_of(after)])
    assert [job.state for job in node_rows.jobs(node, uid_of(after))] == ["succeeded"]
