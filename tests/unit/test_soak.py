"""The soak's audit sees every loss, and nothing where nothing was lost."""

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path

import pytest
from pydicom import dcmread
from rich.console import Console

from storage.database import Database
from storage.schema import arrival, derived, instance, job, series
from tests import phantoms
from tests.benchmarks import audit
from tests.benchmarks.audit import Found, Route, Sending
from tests.benchmarks.soak import Sample, misses
from tests.unit.inference.made import derive_series

ROUTE = Route("double", "MIDSLICE", 2)


def test_only_files_that_were_answered_with_success_count_as_acknowledged() -> None:
    output = """
I: Requesting Association
I: Association Accepted (Max Send PDV: 131060)
I: Sending file: /tmp/a b/0001.dcm
I: Converting transfer syntax: Little Endian Explicit -> Little Endian Explicit
I: Sending Store Request (MsgID 1, CT)
I: Received Store Response (Success)
I: Sending file: /tmp/a b/0000.dcm
I: Received Store Response (Refused: OutOfResources)
I: Sending file: /tmp/a b/0002.dcm
E: Store Failed, file: /tmp/a b/0002.dcm:
E: 0006:020e DUL Peer closed connection
"""
    assert list(audit.answered(output)) == [Path("/tmp/a b/0001.dcm")]
    sending = Sending("1.2", "CT1", ROUTE, (Path("/tmp/a b/0000.dcm"), Path("/tmp/a b/0001.dcm")))
    assert sending.acknowledge(output) == 1
    assert not sending.is_whole
    # The rest over another association does not make it whole: a scanner sends all of it again.
    again = output.replace("0001.dcm", "0000.dcm")
    assert sending.acknowledge(again) == 1
    assert not sending.is_whole
    assert sending.acknowledged == set(sending.files)


@dataclass
class Site:
    """What a node and two destinations have at the end of a soak with one series."""

    storage: Path
    destinations: list[Path]
    sending: Sending

    def audit(self) -> Found:
        url = f"sqlite:///{self.storage / 'midslice.db'}"
        return audit.audit([self.sending], self.storage, self.destinations, url)

    def execute(self, statement: str) -> None:
        with closing(sqlite3.connect(self.storage / "midslice.db")) as db, db:
            assert db.execute(statement).rowcount == 1

    @property
    def kept(self) -> list[Path]:
        return sorted((self.storage / "received").iterdir())


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = phantoms.Series(slices=3)
    results = derive_series(tmp_path, made)
    files = tuple(sorted((tmp_path / "received").iterdir()))
    storage = tmp_path / "var"
    (storage / "incoming").mkdir(parents=True)
    (storage / "derived" / "1-1").mkdir(parents=True)
    shutil.copytree(tmp_path / "received", storage / "received")
    destinations = [tmp_path / "steady", tmp_path / "fickle"]
    for folder in destinations:
        folder.mkdir()
        for file in results:
            shutil.copy(file, folder)
    uid = phantoms.uid(made.seed, "series", made.number)
    _write_rows(storage, uid, files, str(dcmread(results[0]).SeriesInstanceUID))
    sending = Sending(uid, "CT1", ROUTE, files)
    said = "".join(f"I: Sending file: {file}\nI: {audit.SUCCESS}\n" for file in files)
    assert sending.acknowledge(said) == 3
    yield Site(storage, destinations, sending)


def _write_rows(storage: Path, uid: str, files: tuple[Path, ...], derived_uid: str) -> None:
    database = Database.for_folder(storage)
    database.migrate()
    times = {"first_at": 1.0, "last_at": 1.0}
    with database.writing() as db:
        db.execute(series.insert().values(series_uid=uid, study_uid="1.2", **times))
        for file in files:
            row = {"sop_class_uid": "1.2", "transfer_syntax": "1.2", "size": 1, "received_at": 1.0}
            name = str(dcmread(file).SOPInstanceUID)
            path = f"received/{file.name}"
            row |= {"series_id": 1, "instance_uid": name, "digest": name, "path": path}
            db.execute(instance.insert().values(**row))
        peer = {"calling_ae": "CT1", "called_ae": "MIDSLICE", "completed_at": 1.0}
        db.execute(arrival.insert().values(series_id=1, state="complete", **peer, **times))
        made = {"series_id": 1, "folder": "derived/1-1", "edition": 1, "made_at": 1.0}
        db.execute(derived.insert().values(series_uid=derived_uid, **made))
        row = {"kind": "infer", "key": "k", "state": "succeeded", "series_id": 1, "arrival_id": 1}
        row |= {"stack": "s", "route": "double", "model": "linear", "parameters": "{}"}
        row |= {"priority": 5, "queued_at": 1.0, "due_at": 1.0}
        db.execute(job.insert().values(**row, derived_id=1))
    database.close()


def test_the_audit_finds_no_loss_where_there_is_none(site: Site) -> None:
    found = site.audit()
    assert found.losses == []
    assert found.counts["double"] == {
        "series": 1,
        "sent": 3,
        "acknowledged": 3,
        "kept": 3,
        "jobs": 1,
        "derived": 1,
        "delivered": 1,
        "lost": 0,
    }


def test_an_acknowledged_instance_without_file_or_row_or_with_other_pixels_is_a_loss(
    site: Site,
) -> None:
    first, second, third = site.kept
    first.unlink()
    site.execute("UPDATE instance SET path = NULL WHERE path LIKE '%0001.dcm'")
    changed = dcmread(third)
    changed.PixelData = bytes(len(changed.PixelData))
    changed.save_as(third)
    found = site.audit()
    row, *losses = sorted(found.losses)
    assert row == "rows without their files: received/0000.dcm"
    assert len(losses) == found.counts["double"]["lost"] == 3
    for file, loss in zip((first, second, third), losses, strict=True):
        assert f"{file.name} was acknowledged and is not kept" in loss


def test_what_was_not_acknowledged_is_no_loss(site: Site) -> None:
    site.kept[0].unlink()
    site.execute("DELETE FROM instance WHERE path LIKE '%0000.dcm'")
    site.sending.acknowledged.remove(site.sending.files[0])
    site.sending.is_whole = False
    assert site.audit().losses == []


def test_a_derived_slice_that_one_destination_lacks_is_a_loss(site: Site) -> None:
    next(site.destinations[1].iterdir()).unlink()
    (loss,) = site.audit().losses
    assert "a destination does not have its 5 derived instances" in loss


def test_a_derived_slice_with_other_pixels_is_a_loss(site: Site) -> None:
    file = min(site.destinations[0].iterdir())
    made = dcmread(file)
    made.PixelData = bytes(len(made.PixelData))
    made.save_as(file)
    assert any(file.name in loss for loss in site.audit().losses)


def test_a_whole_series_without_a_job_that_succeeded_is_a_loss(site: Site) -> None:
    site.execute("UPDATE job SET state = 'held', reason = 'LOW_CONFIDENCE'")
    (loss,) = site.audit().losses
    assert "no job has succeeded; jobs: held LOW_CONFIDENCE" in loss


def test_what_did_not_come_to_an_end_and_what_lies_in_incoming_is_a_loss(site: Site) -> None:
    site.execute("UPDATE arrival SET state = 'arriving', completed_at = NULL")
    (site.storage / "incoming" / "half").touch()
    assert site.audit().losses == [
        "1 arrivals, jobs or deliveries did not come to an end",
        "left in incoming: half",
    ]


def test_a_second_whole_derived_series_and_one_that_no_row_knows_are_doubled(site: Site) -> None:
    (site.storage / "derived" / "7-1").mkdir()
    for number, file in enumerate(sorted(site.destinations[0].iterdir())):
        again = dcmread(file)
        again.SeriesInstanceUID = "1.2.99"
        again.save_as(site.destinations[0] / f"again-{number}")
    assert site.audit().doubles == ["a destination has a series that no row knows: 1.2.99"]
    with closing(sqlite3.connect(site.storage / "midslice.db")) as db, db:
        db.execute(
            "INSERT INTO derived (series_uid, series_id, folder, edition, made_at) "
            "SELECT '1.2.99', series_id, 'derived/7-1', 2, made_at FROM derived"
        )
        names = [row[1] for row in db.execute("PRAGMA table_info(job)") if row[1] != "id"]
        chosen = ", ".join({"key": "'k2'", "derived_id": "2"}.get(name, name) for name in names)
        db.execute(f"INSERT INTO job ({', '.join(names)}) SELECT {chosen} FROM job")
    found = site.audit()
    assert [double.partition(": ")[2] for double in found.doubles] == ["2 whole derived series"]
    assert found.of_series[site.sending.series_uid]["doubled"] == 1


def test_the_audits_table_has_a_row_for_each_called_ae_title_and_their_sum(site: Site) -> None:
    out = StringIO()
    routes = (ROUTE, Route("triple", "MIDSLICE_X3", 3))
    Console(file=out, width=140).print(audit.rendered(site.audit(), routes))
    lines = [line.strip("│").split("│") for line in out.getvalue().splitlines() if "│ " in line]
    rows = {line[0].strip(): [cell.strip() for cell in line[1:]] for line in lines}
    assert rows["MIDSLICE"] == ["1", "3", "3", "3", "1", "1", "1", "0"]
    assert rows["MIDSLICE_X3"] == ["0"] * 8
    assert rows["all"] == rows["MIDSLICE"]


def test_growth_of_memory_and_of_descriptors_is_a_miss() -> None:
    steady = [Sample(60.0 * minute, 150.0 + minute % 3, 40 + minute % 2) for minute in range(40)]
    assert misses(steady) == []
    leaking = [replace(it, mb=it.mb + it.at / 3600 * 5) for it in steady]
    (miss,) = misses(leaking)
    assert miss.startswith("resident memory grows by 5.")
    assert misses(leaking[:10]) == []  # too short to say anything
    held = [replace(it, descriptors=it.descriptors + round(it.at / 60)) for it in steady]
    assert misses(held) == ["30 descriptors more than after the warm-up"]
