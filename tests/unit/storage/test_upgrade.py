"""A database of release 0.1 is brought to this one: nothing is lost or renamed."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import inspect, text

from storage import migrations
from storage.database import Database
from storage.files import Files
from storage.records import DeliveryState, JobState, Mark
from tests.conftest import Clock
from tests.postgres import PostgresServer
from tests.unit.storage.stored import SERIES, Stored

# Two jobs of one series, as the first release has written them: one is done, one waits.
ROWS = (
    "INSERT INTO series (id, series_uid, study_uid, modality, first_at, last_at) "
    "VALUES (1, '1.2.3.4', '1.2.3', 'CT', 1.0, 2.0)",
    "INSERT INTO instance (id, series_id, instance_uid, sop_class_uid, transfer_syntax, digest, "
    "size, path, received_at) VALUES (1, 1, '1.1', '1.2', '1.2.1', 'd', 5, 'received/x', 1.0)",
    "INSERT INTO arrival (id, series_id, calling_ae, called_ae, state, first_at, last_at, "
    "completed_at) VALUES (1, 1, 'SCANNER', 'MIDSLICE', 'complete', 1.0, 2.0, 3.0)",
    "INSERT INTO arrival_instance (arrival_id, instance_id, brought_at) VALUES (1, 1, 1.0)",
    "INSERT INTO derived (id, series_id, series_uid, folder, edition, made_at, offered_at) "
    "VALUES (1, 1, '2.25.1', 'derived/1-1', 1, 4.0, 5.0)",
    "INSERT INTO derived_instance (id, derived_id, instance_uid, sop_class_uid, path, digest, "
    "generated) VALUES (1, 1, '2.25.1.0', '1.2', '0.dcm', 'd', 1)",
    "INSERT INTO job (id, kind, key, state, series_id, arrival_id, stack, route, model, "
    "parameters, destinations, priority, queued_at, due_at, derived_id) VALUES (1, 'infer', 'done',"
    " 'succeeded', 1, 1, 'axial 512x512', 'ct-slices', 'linear', '{}', '[\"pacs\"]', 5, 1, 1, 1)",
    "INSERT INTO job (id, kind, key, state, series_id, arrival_id, stack, route, model, "
    "parameters, destinations, priority, queued_at, due_at) VALUES (2, 'infer', 'waits', 'queued',"
    " 1, 1, 'axial 512x512', 'ct-slices', 'linear', '{}', '[\"pacs\", \"viewer\"]', 5, 1.0, 1.0)",
    "INSERT INTO job_instance (job_id, instance_id, rank) VALUES (2, 1, 0)",
    "INSERT INTO delivery (id, derived_id, destination, state, priority, queued_at, due_at) "
    "VALUES (1, 1, 'pacs', 'sent', 5, 4.0, 4.0)",
)


@pytest.fixture(params=["sqlite", "postgresql"])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A database that release 0.1 has made and worked with."""
    scripts = tmp_path / "scripts"
    shutil.copytree(migrations.FOLDER, scripts)
    for later in (scripts / "versions").glob("*.py"):
        if not later.name.startswith("0001"):
            later.unlink()
    url = f"sqlite:///{tmp_path}/old.db"
    if request.param == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres_server")
        server.drop("old")
        url = server.create("old")
    database = Database(url)
    database.migrate(scripts)
    with database.reading() as db:
        assert "job_asker" not in inspect(db).get_table_names()
    with database.writing() as db:
        for row in ROWS:
            db.execute(text(row.replace(":", r"\:")))
        if request.param == "postgresql":  # the rows were given their numbers
            for table in ("series", "instance", "arrival", "derived", "job", "delivery"):
                db.execute(text(f"SELECT setval('{table}_id_seq', 10)"))
    yield database
    database.close()


def test_what_was_made_is_a_first_revision_and_keeps_its_uid(old: Database, tmp_path: Path) -> None:
    assert not old.is_current()
    old.migrate()
    assert old.is_current()
    stored = Stored(old, Files(tmp_path / "var", 0), Clock())
    assert stored.queue.marks(1) == {"2.25.1": Mark()}
    done, waits = stored.queue.of_series(1)
    assert (done.state, done.derived_series_uid) == (JobState.SUCCEEDED, "2.25.1")
    assert waits.mark == Mark()
    assert old.integrity() == ()
    # What is made of the same stack from now on says that it is another one.
    assert stored.claim().mark == Mark(revision=2, place=1)


def test_who_asked_before_still_asks(old: Database, tmp_path: Path) -> None:
    old.migrate()
    stored = Stored(old, Files(tmp_path / "var", 0), Clock())
    stored.receive("1.2")
    late = stored.complete("late", destinations=("pacs",))
    assert late.cancelled == (2,)  # the same peer wants another set now
    assert stored.queue.get(2).state is JobState.CANCELLED
    stored.receive("1.1", version=b"again")
    again = stored.complete("done", destinations=("pacs",))
    assert (again.what, again.job_id) == ("redelivered", 1)
    (delivery,) = stored.ledger.of_job(1)
    assert (delivery.state, delivery.derived_series_uid) == (DeliveryState.QUEUED, "2.25.1")
    assert stored.archive.series_by_uid(SERIES)[0].instances == 2
