"""What the benchmarks measure with: instances to send, receivers at their best, DCMTK's sender."""

import contextlib
import os
import random
import shutil
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests import peers, phantoms
from tests.benchmarks.filler import Filled
from tests.benchmarks.table import T, Told, interleaved
from tests.node_process import NodeProcess
from tests.node_process import running as running_node
from tests.ports import free_port

PDU = "131072"  # the most that DCMTK knows, for every peer
SIDE = 512
SECONDS = 300.0

# Kinds of made UIDs. All have the same length, so that they can be replaced within a file.
STUDY, SERIES, INSTANCE = 7, 8, 9


class Stock:
    """CT instances of 512 x 512 x 16 bit, written once; between two passes only their UIDs change.

    A receiver must never see an instance twice: it would do less, or something else.
    """

    def __init__(self, folder: Path, count: int, series: int) -> None:
        folder.mkdir(parents=True)
        self._series = self._usual_series = series
        self._stamp = 0
        content = _template(folder)
        self._places = [
            (kind, place) for kind in (STUDY, SERIES, INSTANCE) for place in _all(content, kind)
        ]
        self.files = [folder / f"{number:04d}.dcm" for number in range(count)]
        for file in self.files:
            file.write_bytes(content)
        self.stamp()

    def stamp(self, series: int = 0) -> None:
        """Give every instance, series and study a UID that was never used; so many series, or 0."""
        self._stamp += 1
        self._series = series or self._usual_series
        for number, file in enumerate(self.files):
            descriptor = os.open(file, os.O_WRONLY)
            for kind, place in self._places:
                os.pwrite(descriptor, self._uid(kind, number).encode(), place)
            os.close(descriptor)

    def instance_uid(self, number: int) -> str:
        """The SOP Instance UID that a file has now."""
        return self._uid(INSTANCE, number)

    def _uid(self, kind: int, number: int) -> str:
        of = {STUDY: 0, SERIES: number * self._series // len(self.files), INSTANCE: number}[kind]
        return _made_uid(kind, self._stamp, of)


def _made_uid(kind: int, stamp: int, number: int) -> str:
    return f"2.25.{kind}{stamp:06d}{number:06d}"


def _template(folder: Path) -> bytes:
    made = phantoms.dataset(phantoms.Series(rows=SIDE, columns=SIDE), 0)
    made.StudyInstanceUID = _made_uid(STUDY, 0, 0)
    made.SeriesInstanceUID = _made_uid(SERIES, 0, 0)
    made.SOPInstanceUID = _made_uid(INSTANCE, 0, 0)
    path = folder / "template.dcm"
    phantoms.save(path, made)
    content = path.read_bytes()
    path.unlink()
    return content


def _all(content: bytes, kind: int) -> list[int]:
    """Where the template has its UID of this kind: in the data set, and in the file meta too."""
    wanted, places = _made_uid(kind, 0, 0).encode(), []
    place = content.find(wanted)
    while place >= 0:
        places.append(place)
        place = content.find(wanted, place + 1)
    return places


def memory() -> Path:
    """The file system in memory, else the folder for temporary files."""
    folder = Path("/dev/shm")
    return folder if folder.is_dir() else Path(tempfile.gettempdir())


@dataclass(frozen=True)
class Setting:
    """What every subject is handed."""

    folder: Path  # its own, empty
    make_stock: Callable[[], Stock]  # the same one each time; not every subject needs it
    make_filled: Callable[[], Filled]  # as well
    is_quick: bool
    repetitions: int
    order: random.Random
    told: Told

    @property
    def stock(self) -> Stock:
        return self.make_stock()

    def measure(self, rows: Mapping[str, Callable[[], T]]) -> dict[str, list[T]]:
        """All rows, interleaved."""
        return interleaved(rows, self.repetitions, self.order, self.told)


@dataclass(frozen=True)
class Receiver:
    """A Storage SCP that is measured."""

    ae_title: str
    port: int
    pid: int
    held: Callable[[], int]  # instances it has taken so far
    clear: Callable[[], None]  # frees their room, outside the measured time


Send = Callable[[Receiver, Sequence[Path]], float]  # the seconds it takes


@contextlib.contextmanager
def storescp(folder: Path, *options: str, nodelay: bool = True) -> Iterator[Receiver]:
    """DCMTK's: writes files, and neither syncs nor indexes them."""
    folder.mkdir(parents=True)
    port = free_port()
    command = ["storescp", "+B", "-pdu", PDU, "-od", str(folder), *options, str(port)]
    with peers.running(command, TCP_NODELAY=_environment(nodelay=nodelay)) as process:
        process.wait_for_port(port)

        def clear() -> None:
            for path in folder.iterdir():
                path.unlink()

        def held() -> int:
            return sum(1 for _ in folder.iterdir())

        yield Receiver("STORESCP", port, process.pid, held, clear)


@contextlib.contextmanager
def orthanc(folder: Path, *, nodelay: bool = True) -> Iterator[Receiver]:
    """Orthanc as it is configured by default, but for the PDU and Nagle's algorithm."""
    settings = {"MaximumPduLength": int(PDU)}
    with peers.orthanc(folder, configuration=settings, nodelay=nodelay) as pacs:

        def clear() -> None:
            for study in pacs.get("/studies"):
                pacs.ask(f"/studies/{study}", "DELETE")

        assert pacs.child is not None
        yield Receiver(
            pacs.address.ae_title,
            pacs.address.port,
            pacs.child.pid,
            lambda: len(pacs.get("/instances")),
            clear,
        )


@contextlib.contextmanager
def midslice(folder: Path) -> Iterator[Receiver]:
    """`midslice serve` with no route: it receives, and does nothing else."""
    node = NodeProcess(folder, quiet_seconds=3600.0)
    database, received = folder / "var" / "midslice.db", folder / "var" / "received"

    def clear() -> None:
        # Nobody will ask for these files: there is no route, and no arrival gets quiet in time.
        for path in received.iterdir():
            shutil.rmtree(path)
        node.events.clear()
        node.lines.clear()

    def held() -> int:
        with contextlib.closing(sqlite3.connect(database)) as db:
            (count,) = db.execute("SELECT COUNT(*) FROM instance").fetchone()
        return int(count)

    with running_node(node):
        yield Receiver("MIDSLICE", node.port, node.pid, held, clear)


def received(
    receiver: Receiver, setting: Setting, count: int, sent: Send, series: int = 0
) -> float:
    """Instances a second of one pass with fresh UIDs; fails unless each of them has come."""
    setting.stock.stamp(series)
    before = receiver.held()
    seconds = sent(receiver, setting.stock.files[:count])
    came = receiver.held() - before
    assert came == count, f"{receiver.ae_title} has taken {came} of {count} instances"
    receiver.clear()
    return count / seconds


def storescu(
    receiver: Receiver, files: Sequence[Path], *, associations: int = 1, nodelay: bool = True
) -> float:
    """The seconds that DCMTK's sender takes, from its start to its end."""
    command = ["storescu", "-pdu", PDU, "-aec", receiver.ae_title, "127.0.0.1", str(receiver.port)]
    environment = os.environ | {"TCP_NODELAY": _environment(nodelay=nodelay)}
    began = time.perf_counter()
    senders = [
        subprocess.Popen(
            [*command, *files[first::associations]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        for first in range(associations)
    ]
    outputs = [sender.communicate(timeout=SECONDS)[0] for sender in senders]
    seconds = time.perf_counter() - began
    assert not any(sender.returncode for sender in senders), f"storescu failed:\n{outputs}"
    return seconds


def _environment(*, nodelay: bool) -> str:
    # DCMTK, and Orthanc with it, leaves Nagle's algorithm on unless this variable says 1.
    return "1" if nodelay else "0"
