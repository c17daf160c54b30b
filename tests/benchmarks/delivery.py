"""How fast instances are sent: the node's sender beside DCMTK's storescu, to the same receivers.

Some rows are the sender alone, others a whole delivery: its row is claimed, the digest of each file
is compared, every answer is written into the ledger, and the delivery is sent.
"""

import contextlib
import itertools
import shutil
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from node.config import Destination, load
from node.dicom import scu
from node.dicom.status import SUCCESS, Outcome
from node.work.deliver import Deliverers, Reachability
from storage.database import Database
from storage.files import Files, digest
from storage.leases import Holder
from storage.ledger import Ledger
from storage.records import Delivery, DerivedInstance, NewDerived
from tests.benchmarks import rig
from tests.benchmarks.rig import Receiver, Setting
from tests.benchmarks.table import RatioBound, Row, Subject
from tests.unit.storage.stored import Stored

NAME = "delivery"
WARM_UP = 10
FEW = 20  # into a peer that waits 40 ms for each of them
PARALLEL = 4
SECONDS = 120.0
CONFIG = Path(__file__).parents[2] / "config.toml"

STORESCU, STORESCU_ORTHANC = "storescu to storescp", "storescu to Orthanc"
STORESCU_NAGLE = "storescu to Orthanc with Nagle"
ONE, TWO = "a delivery to storescp", "a delivery to two of them"
SENDER, SENDER_ORTHANC = "Midslice to storescp", "Midslice to Orthanc"
SENDER_NAGLE = "Midslice to Orthanc with Nagle"
REFERENCES = {
    STORESCU: STORESCU,
    SENDER: STORESCU,
    "Midslice to storescp with Nagle": STORESCU,
    ONE: STORESCU,
    TWO: ONE,
    STORESCU_ORTHANC: STORESCU_ORTHANC,
    SENDER_ORTHANC: STORESCU_ORTHANC,
    f"Midslice to Orthanc, {PARALLEL} associations": STORESCU_ORTHANC,
    STORESCU_NAGLE: STORESCU_NAGLE,
    SENDER_NAGLE: STORESCU_NAGLE,
}
BOUNDS = (
    RatioBound(NAME, SENDER, at_least=1.2),
    RatioBound(NAME, SENDER_ORTHANC, at_least=1.0),
    RatioBound(NAME, SENDER_NAGLE, at_least=15.0),
    RatioBound(NAME, TWO, at_least=1 / 1.3),  # series a second: the time is at most 1.3 times one's
)


def measure(setting: Setting) -> Subject:
    """Instances a second out of each sender."""
    count = 60 if setting.is_quick else 150
    ours = partial(_sent, setting)
    with contextlib.ExitStack() as stack:
        storescp = stack.enter_context(rig.storescp(setting.folder / "storescp"))
        second = stack.enter_context(rig.storescp(setting.folder / "second"))
        default = stack.enter_context(rig.storescp(setting.folder / "default", nodelay=False))
        orthanc = stack.enter_context(rig.orthanc(setting.folder / "orthanc"))
        nagle = stack.enter_context(rig.orthanc(setting.folder / "nagle", nodelay=False))
        node = stack.enter_context(contextlib.closing(Node(setting)))
        passes: tuple[tuple[Receiver, rig.Send, int], ...] = (
            (storescp, rig.storescu, count),
            (storescp, ours, count),
            (default, ours, count),
            (storescp, partial(node.deliver, [storescp]), count),
            (storescp, partial(node.deliver, [storescp, second]), count),
            (orthanc, rig.storescu, count),
            (orthanc, ours, count),
            (orthanc, partial(ours, associations=PARALLEL), count),
            (nagle, partial(rig.storescu, nodelay=False), FEW),
            (nagle, ours, FEW),
        )
        for receiver in (storescp, second, default, orthanc, nagle):
            rig.received(receiver, setting, WARM_UP, ours)
        rows = [partial(rig.received, to, setting, size, sent) for to, sent, size in passes]
        values = setting.measure(dict(zip(REFERENCES, rows, strict=True)))
    caption = (
        f"{count} native CT instances of 512 x 512, {FEW} into Orthanc with Nagle's algorithm, "
        "over one association unless said"
    )
    return Subject(
        NAME,
        caption,
        tuple(
            Row(name, "inst/s", tuple(values[name]), reference)
            for name, reference in REFERENCES.items()
        ),
    )


def _sent(
    setting: Setting, receiver: Receiver, files: Sequence[Path], *, associations: int = 1
) -> float:
    """The seconds that the node's sender takes, with its association."""
    peer = scu.PeerAddress(receiver.ae_title, "127.0.0.1", receiver.port, "MIDSLICE")
    outgoing = [
        scu.Outgoing(
            id=number,
            instance_uid=setting.stock.instance_uid(number),
            sop_class_uid=CTImageStorage,
            transfer_syntax=ExplicitVRLittleEndian,
            path=path,
        )
        for number, path in enumerate(files)
    ]
    statuses: list[int | None] = []
    began = time.perf_counter()
    sent = scu.send(
        peer,
        outgoing,
        answered=lambda _, status, _comment: statuses.append(status),
        stop=lambda: False,
        associations=associations,
    )
    seconds = time.perf_counter() - began
    assert sent.outcome is Outcome.STORED, sent.sentence
    assert statuses == [SUCCESS] * len(files), f"answers of {receiver.ae_title}: {set(statuses)}"
    return seconds


class _Telling(Ledger):
    """The ledger, which says when a delivery is sent."""

    def __init__(self, database: Database, holder: Holder) -> None:
        super().__init__(database, holder)
        self.count = threading.Semaphore(0)

    def sent(self, leased: Delivery, *rest: object, **named: object) -> None:
        super().sent(leased, *rest, **named)  # type: ignore[arg-type]
        self.count.release()


class Node:
    """The part of a node that delivers, on a storage of its own."""

    def __init__(self, setting: Setting) -> None:
        folder = setting.folder / "site"
        self._setting = setting
        self._database = Database.for_folder(folder)
        self._database.migrate()
        files = Files(folder, 0)
        self._stored = Stored(self._database, files, time.time)  # type: ignore[arg-type]
        self._ledger = _Telling(self._database, Holder("one", time.time, 60.0))
        self._numbers = itertools.count(1)

    def close(self) -> None:
        """Leave the database."""
        self._database.close()

    def deliver(self, to: Sequence[Receiver], _first: Receiver, files: Sequence[Path]) -> float:
        """The seconds from the moment in which the deliveries are due until all are sent."""
        names = [f"pacs-{number}" for number in range(len(to))]
        self._made(files, names)
        destinations = tuple(
            Destination(name=name, ae_title=one.ae_title, host="127.0.0.1", port=one.port)
            for name, one in zip(names, to, strict=True)
        )
        settings = load(CONFIG).model_copy(update={"destinations": destinations})
        reach = Reachability(self._database, time.time, "MIDSLICE", settings.delivery)
        deliverers = Deliverers(self._ledger, self._stored.files, reach, time.time)
        began = time.perf_counter()
        deliverers.follow(settings)
        for _ in to:
            assert self._ledger.count.acquire(timeout=SECONDS), self._ledger.backlog()
        seconds = time.perf_counter() - began
        deliverers.abandon()
        assert deliverers.wait(20.0)
        for receiver in to[1:]:
            assert receiver.held() == len(files)
            receiver.clear()
        return seconds

    def _made(self, files: Sequence[Path], destinations: Sequence[str]) -> None:
        """A derived series of copies of these files, whose deliveries wait."""
        stored, series_uid = self._stored, f"2.25.{next(self._numbers)}"
        stored.receive("1.1", series_uid=series_uid)
        arrival = stored.arrival(series_uid=series_uid)
        new = stored.new_job(arrival, series_uid, destinations=tuple(destinations))
        stored.queue.complete(arrival.id, {}, [new])
        job = stored.claim()
        folder = stored.files.derived_folder(job.id, job.attempt)
        path = stored.files.make(folder)
        instances = []
        for number, file in enumerate(files):
            shutil.copyfile(file, path / file.name)
            uid, of = self._setting.stock.instance_uid(number), digest(file)
            instances.append(
                DerivedInstance(uid, CTImageStorage, file.name, of, True, f"{series_uid}.9")
            )
        result = NewDerived(f"{series_uid}.9", folder, job.edition, "1.0", tuple(instances), {})
        stored.queue.succeed(job, result)
