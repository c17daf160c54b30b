"""What a node takes with 100,000 series and 1,000,000 instances in its database: the queries of
claims and sweeps, a start, and the first Success of an association."""

import os
import shutil
import sqlite3
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from node.rules.reasons import FUTILE
from storage.archive import Archive
from storage.database import FILE_NAME, Database
from storage.files import Files
from storage.jobs import Queue
from storage.leases import Holder
from storage.ledger import Ledger
from storage.queries import figures, overview
from storage.records import JobState, SwitchName
from storage.retention import expired, held_work
from storage.site import control, notices
from tests import raw_peer
from tests.benchmarks.filler import PER_SERIES, Filled
from tests.benchmarks.rig import SIDE, Setting
from tests.benchmarks.table import Bound, Row, Subject
from tests.node_process import NodeProcess
from tests.node_process import running as running_node

NAME = "scale"
MOST_MILLISECONDS = 20.0
SWEEP_MILLISECONDS = 100.0  # of what is asked every ten minutes, beside everything else
MOST_START_SECONDS = 5.0
MOST_SUCCESS_MILLISECONDS = 10.0
ON_DISK = 1000  # series whose files are there
FRAGMENT = 100_000  # bytes of a data set in one PDU
ASSOCIATIONS = 20  # of one repetition: their median
KINDS = ("infer", "selftest")
START, WHOLE = "start", "start, every file looked at"
SUCCESS = "first Success"
OFTEN = (
    *("claim of a job", "claim of an urgent job", "claim of a delivery", "completion sweep"),
    *("what was requeued", "notices of what is held", "metrics"),
)
SELDOM = ("retention", "what is held too long")
BOUNDS = (
    *(Bound(NAME, name, MOST_MILLISECONDS) for name in OFTEN),
    *(Bound(NAME, name, SWEEP_MILLISECONDS) for name in SELDOM),
    *(Bound(NAME, name, MOST_START_SECONDS) for name in (START, WHOLE)),
    Bound(NAME, SUCCESS, MOST_SUCCESS_MILLISECONDS),
)


def measure(setting: Setting) -> Subject:
    """Milliseconds of each query and of a Success, seconds of a start."""
    filled = setting.make_filled()
    node = NodeProcess(setting.folder, quiet_seconds=3600.0)
    with database_of(filled, setting.folder / "var") as database:
        control.turn(database, filled.now, "bench", SwitchName.DRAINING, on=True)
        asked = _queries(database, Files(setting.folder / "var", 0), filled.now)
        rows = {name: partial(_milliseconds, ask) for name, ask in asked.items()}
        for ask in rows.values():
            ask()  # the first one reads the file, and builds the statement
        values = setting.measure(rows)
    _lay_out(setting.folder / "var")
    starts = {START: partial(_started, node), WHOLE: partial(_started, node, is_whole=True)}
    values |= setting.measure(starts)
    with running_node(node):
        _first_success(node)
        values |= setting.measure({SUCCESS: partial(_first_success, node)})
    units = dict.fromkeys((START, WHOLE), "s")
    found = tuple(Row(name, units.get(name, "ms"), tuple(it)) for name, it in values.items())
    return Subject(NAME, f"{filled.jobs} series, {filled.jobs * PER_SERIES} instances", found)


@contextmanager
def database_of(filled: Filled, folder: Path) -> Iterator[Database]:
    """A copy of the filled database."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(filled.file, folder / FILE_NAME)
    database = Database.for_folder(folder)
    try:
        yield database
    finally:
        database.close()


def _queries(database: Database, files: Files, now: float) -> dict[str, Callable[[], object]]:
    holder = Holder("bench", lambda: now, 60.0)
    queue, ledger = Queue(database, holder), Ledger(database, holder)
    archive = Archive(database, files, lambda: now)
    often = (
        lambda: _claimed(queue),
        lambda: queue.claim("w", KINDS, before=5),
        lambda: ledger.release(ledger.claim("pacs", "w")),  # type: ignore[arg-type]
        archive.arriving,
        queue.requeued,
        lambda: notices.tell_new(database, now, FUTILE),
        lambda: _scraped(database, now),
    )
    seldom = (lambda: expired(database, now, 7.0, 1.0), lambda: _held(database, now))
    return dict(zip((*OFTEN, *SELDOM), (*often, *seldom), strict=True))


def _claimed(queue: Queue) -> None:
    job = queue.claim("w", KINDS)
    assert job is not None
    assert queue.release(job) is JobState.QUEUED


def _scraped(database: Database, now: float) -> None:
    since = figures.begin(database, now - 60.0)
    figures.counter_delta(database, since, now)
    figures.gauges(database)
    overview.not_closed(database)
    notices.count(database)


def _held(database: Database, now: float) -> None:
    with database.reading() as db:
        held_work(db, now - 7 * 86_400.0)


def _milliseconds(ask: Callable[[], object]) -> float:
    began = time.perf_counter()
    ask()
    return (time.perf_counter() - began) * 1000.0


def _lay_out(folder: Path) -> None:
    """Files for the newest series: what they hold does not matter to a start."""
    of_series = "SELECT id FROM series WHERE purged_at IS NULL ORDER BY id DESC LIMIT ?"
    query = f"SELECT path FROM instance WHERE series_id IN ({of_series})"
    with closing(sqlite3.connect(folder / FILE_NAME)) as db:
        paths = [folder / path for (path,) in db.execute(query, (ON_DISK,))]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(132))


def _started(node: NodeProcess, *, is_whole: bool = False) -> float:
    """The seconds until it listens; with `is_whole` nobody knows of a clean stop before."""
    if is_whole:
        with closing(sqlite3.connect(node.folder / "var" / FILE_NAME)) as db, db:
            db.execute("DELETE FROM node")
    began = time.perf_counter()
    with running_node(node):
        return time.perf_counter() - began


def _first_success(node: NodeProcess) -> float:
    """The milliseconds from the connection to the first Success, of an ordinary CT slice."""
    took = []
    for number in range(ASSOCIATIONS):
        uid = f"2.25.{os.getpid()}{time.monotonic_ns()}{number}"
        data = raw_peer.data_set(uid, series_uid=uid[:-1], pixels=2 * SIDE * SIDE)
        command = raw_peer.store_command(uid.encode() + b"\0" * (len(uid) % 2))
        began = time.perf_counter()
        with raw_peer.RawPeer(node.port) as peer:
            peer.associate()
            peer.send(raw_peer.fragment(command, command=True))
            for part in range(0, len(data), FRAGMENT):
                some, is_last = data[part : part + FRAGMENT], part + FRAGMENT >= len(data)
                peer.send(raw_peer.fragment(some, last=is_last))
            assert raw_peer.status_of(peer.answer()) == 0
            took.append((time.perf_counter() - began) * 1000.0)
            peer.release()
    return statistics.median(took)
