"""A storage folder with everything on it, and short ways to say what happens to a series."""

import itertools
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alembic.script import ScriptDirectory
from blake3 import blake3
from sqlalchemy import select, update

from storage import migrations
from storage.archive import Archive
from storage.commitment_scp import OwedReports
from storage.commitment_scu import Commitments
from storage.database import Database
from storage.files import Files, digest
from storage.jobs import Queue
from storage.leases import Holder
from storage.ledger import Ledger
from storage.queries import find
from storage.queries.find import Wanted
from storage.records import (
    Arrival,
    Delivery,
    DeliveryState,
    DerivedInstance,
    Ended,
    Enqueued,
    Job,
    JobState,
    KeptInstance,
    NewDerived,
    NewJob,
    Peer,
    Received,
    Series,
)
from storage.retention import expired, purge
from storage.schema import instance, series
from storage.site import notices
from tests.conftest import Clock

LEASE_SECONDS = 60.0
CT = "1.2.840.10008.5.1.4.1.1.2"
PRESENTATION_STATE = "1.2.840.10008.5.1.4.1.1.11.1"
EXPLICIT = "1.2.840.10008.1.2.1"
STUDY = "1.2.3"
SERIES = "1.2.3.4"
SCANNER = Peer("SCANNER", "MIDSLICE")
OTHER_AE = Peer("SCANNER", "MIDSLICE_X2")
FIRST, SECOND = Peer("WS1", "MIDSLICE"), Peer("WS2", "MIDSLICE")
INFER = ("infer",)


def part10(content: bytes, meta: bytes = b"meta of the peer") -> bytes:
    """A file as PS3.10 frames it, with any bytes for the data set."""
    length = len(meta).to_bytes(4, "little")
    return bytes(128) + b"DICM\x02\x00\x00\x00UL\x04\x00" + length + meta + content


def received(instance_uid: str, series_uid: str = SERIES, study_uid: str = STUDY) -> Received:
    return Received(study_uid, series_uid, instance_uid, CT, EXPLICIT, "CT", "P1", "A1")


def read_header(path: Path) -> Received | None:
    """Reads what `content_of` wrote; None where it is cut short."""
    fields = path.read_bytes()[160:].split(b"|")
    if len(fields) != 5 or fields[-1] != b"end":
        return None
    study, series, instance = (field.decode() for field in fields[:3])
    return received(instance, series, study)


def content_of(what: Received, version: bytes = b"") -> bytes:
    """A data set that says what it is; another version has other bytes."""
    uids = [what.study_uid, what.series_uid, what.instance_uid]
    return b"|".join([*(uid.encode() for uid in uids), version, b"end"])


NEXT_RELEASE = """
import sqlalchemy as sa
from alembic import op

revision = "9998"
down_revision = "{head}"


def upgrade() -> None:
    with op.batch_alter_table("series") as table:
        table.add_column(sa.Column("body_part", sa.String(16), nullable=False, server_default="-"))
        table.alter_column("modality", type_=sa.String(32))
"""


def later_release(folder: Path) -> Path:
    """The migrations of a release to come, which makes a table anew that others point to."""
    scripts = folder / "scripts"
    shutil.copytree(migrations.FOLDER, scripts)
    head = ScriptDirectory(str(scripts)).get_current_head()
    (scripts / "versions" / "9998_body_part.py").write_text(NEXT_RELEASE.format(head=head))
    return scripts


def post(database: Database, now: float, event: str, key: str, facts: dict[str, object]) -> bool:
    """Write a notice of its own."""
    with database.writing() as db:
        return notices.post(database, db, now, event, key, facts)


@dataclass
class Stored:
    """The whole of storage, with a clock in the test's hand."""

    database: Database
    files: Files
    clock: Clock
    node: str = "one"
    numbers: Callable[[], int] = field(default_factory=lambda: itertools.count(1).__next__)

    def __post_init__(self) -> None:
        self.archive = Archive(self.database, self.files, self.clock, node=self.node)
        holder = Holder(self.node, self.clock, LEASE_SECONDS, self.clock)
        self.queue = Queue(self.database, holder)
        self.ledger = Ledger(self.database, holder)
        self.commitments = Commitments(self.database, holder)
        self.owed = OwedReports(self.database, self.files, holder)

    def jobs(self, *states: JobState) -> tuple[Job, ...]:
        """All jobs, or those in these states, the newest first."""
        page = find.jobs(self.database, Wanted(states=states), limit=1000)
        return tuple(self.queue.get(line.id) for line in page.lines)

    def series(self) -> tuple[Series, ...]:
        """All received series, the newest first."""
        newest = select(series.c.id).order_by(series.c.last_at.desc(), series.c.id.desc())
        return self.archive.series_of(self.database.values(newest))

    def incoming(self, content: bytes) -> Path:
        file = self.files.incoming / f"{self.numbers()}.dcm"
        file.write_bytes(part10(content))
        return file

    def sealed(self, content: bytes) -> Path:
        """A file that was sealed when the node died."""
        return Path(self.files.seal(self.incoming(content), blake3(content).hexdigest()))

    def receive(
        self,
        instance_uid: str,
        *,
        series_uid: str = SERIES,
        study_uid: str = STUDY,
        version: bytes = b"",
        peer: Peer = SCANNER,
    ) -> KeptInstance:
        what = received(instance_uid, series_uid, study_uid)
        return self.archive.keep(what, peer, self.incoming(content_of(what, version)))

    def arrival(self, peer: Peer = SCANNER, series_uid: str = SERIES) -> Arrival:
        """The one that is arriving from this peer."""
        (found,) = (
            one
            for one in self.archive.arriving()
            if (one.calling_ae, one.called_ae, one.series_uid)
            == (peer.calling_ae, peer.called_ae, series_uid)
        )
        return found

    def new_job(self, arrival: Arrival, key: str, **changed: object) -> NewJob:
        instances = tuple(one.id for one in self.archive.instances(arrival.id))
        values: dict[str, object] = {
            "kind": "infer",
            "key": key,
            "series_id": arrival.series_id,
            "arrival_id": arrival.id,
            "stack": "axial 512x512",
            "route": "ct-slices",
            "model": "linear",
            "parameters": {"factor": 4},
            "destinations": ("pacs",),
            "priority": 5,
            "instances": instances,
        }
        return NewJob(**(values | changed))  # type: ignore[arg-type]

    def complete(self, key: str, *, peer: Peer = SCANNER, **changed: object) -> Enqueued:
        """Close what is arriving from this peer, with one job."""
        arrival = self.arrival(peer)
        new = self.new_job(arrival, key, **changed)
        (enqueued,) = self.queue.complete(arrival.id, {"quiet_seconds": 30}, [new])
        return enqueued

    def ask(self, key: str, uids: Sequence[str] = ("1.1", "1.2"), **changed: Any) -> Enqueued:
        """Receive a series and close it, with one job."""
        for uid in uids:
            self.receive(uid)
        return self.complete(key, **changed)

    def ask_as(self, peer: Peer, key: str, *destinations: str, uid: str = "1.1") -> Enqueued:
        """A peer brings an instance, and its route asks for a job."""
        self.receive(uid, peer=peer)
        return self.complete(key, peer=peer, destinations=destinations)

    def requeue(self, job_id: int, who: str = "") -> None:
        """A person requeues a job whose route has not changed, and the node has seen that."""
        self.queue.requeue(job_id, who=who)
        (requeued,) = self.queue.requeued()
        assert self.queue.follow_route(requeued, ()) == job_id

    def claim(self, worker: str = "w") -> Job:
        job = self.queue.claim(worker, INFER)
        assert job is not None
        return job

    def derive(
        self, job: Job, series_uid: str = "2.25.1", count: int = 2, *, supplements: int = 0
    ) -> NewDerived:
        """What a worker leaves: files on disk, and what they are; the last are supplements."""
        folder = self.files.derived_folder(job.id, job.attempt)
        path = self.files.make(folder)
        for number in range(count):
            (path / f"{number}.dcm").write_bytes(b"derived")
        instances = tuple(
            DerivedInstance(
                instance_uid=f"{series_uid}.{n}",
                sop_class_uid=CT if n < count - supplements else PRESENTATION_STATE,
                path=f"{n}.dcm",
                digest=digest(path / f"{n}.dcm"),
                generated=n % 2 == 1,
                series_uid=series_uid if n < count - supplements else f"{series_uid}.9{n}",
                kind="image" if n < count - supplements else "presentation state",
                is_supplement=n >= count - supplements,
            )
            for n in range(count)
        )
        return NewDerived(series_uid, folder, job.edition, "1.0", instances, {"seconds": 1.5})

    def succeed(self, series_uid: str = "2.25.1") -> Job:
        """Claim the next job and finish it."""
        job = self.claim()
        ended = self.queue.succeed(job, self.derive(job, series_uid))
        assert ended == Ended(self.queue.get(job.id).state, folder_kept=True)
        return self.queue.get(job.id)

    def hold(self, reason: str = "MISSING_SLICES") -> Job:
        """Claim the next job and hold it."""
        job = self.claim()
        self.queue.hold(job, reason, "Two are missing.")
        return job

    def purge_all(self) -> None:
        """Let so much time pass that everything that may go is gone."""
        self.clock.now += 100 * 86_400
        gone = expired(self.database, self.clock.now, keep_days=7, keep_unrouted_days=1)
        assert purge(self.database, self.files, gone, self.clock.now).series

    def lose(self, series_id: int) -> None:
        """The received files of a series are gone, and recovery has noticed."""
        with self.database.writing() as db:
            db.execute(update(instance).where(instance.c.series_id == series_id).values(path=None))

    def start_delivery(self, destination: str = "pacs") -> Delivery:
        delivery = self.ledger.claim(destination, "sender")
        assert delivery is not None
        return delivery

    def deliver(self, destination: str = "pacs", *, proof: bool = False) -> Delivery:
        """Send all of the next delivery to a destination, which is perhaps asked for proof."""
        delivery = self.start_delivery(destination)
        for one in self.ledger.unsent(delivery):
            self.ledger.answered(delivery, one.id, 0x0000, stored=True)
        self.ledger.sent(delivery, is_asked_for_proof=proof)
        return self.ledger.get(delivery.id)

    def states(self, job_id: int) -> list[tuple[str, DeliveryState]]:
        """Each destination of a job, and how far its delivery is."""
        return [(one.destination, one.state) for one in self.ledger.of_job(job_id)]
