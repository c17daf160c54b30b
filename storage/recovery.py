"""After a crash, and after a lost database: files without a row get one, broken ones go.

An instance is kept in this order: its file is sealed, which brings it to disk (`storage/files.py`);
it gets its row and its name in the archive; its peer hears Success. A power cut may take back the
row, the name or both, since neither is synced by itself, but never the sealed file. So there may be
a file without a row, here or there, and a row whose file still lies in `incoming`.
"""

import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from sqlalchemy import ColumnElement, Connection, and_, select, true, update

from storage.archive import UNKNOWN_AE, Archive, lock_series
from storage.database import Database
from storage.files import DERIVED, RECEIVED, Files, is_sealed, received_digest
from storage.records import DAY, JobState, Received, Recovered
from storage.schema import KEPT_DERIVED, PURGING_SERIES, derived, instance, job, series
from storage.site import notices

logger = logging.getLogger(__name__)

# What a Part 10 file holds, or None where it is broken: cut short, or no DICOM at all.
ReadHeader = Callable[[Path], Received | None]

INDEXED = (
    "{files} received files of {series} series were on disk but not in the database: the power "
    "failed or the node was killed while it received them, or its database was lost or is older "
    "than they are. "
    "They are processed as if they had just been received; what no route takes is kept for "
    "storage.keep_days."
)
UNREADABLE = (
    "{files} files of the archive cannot be read and stay where they are, the first is {first}: "
    "restore them from a backup, or move them away."
)

# Folders that changed shortly before the last clean stop are looked at too: clocks differ.
SLACK_SECONDS = 120.0


# What other nodes that live have moved into the archive so lately may get its row this moment.
COMMIT_SECONDS = 60.0


def recover(
    archive: Archive,
    read_header: ReadHeader,
    *,
    called_ae: str = UNKNOWN_AE,
    since: float = 0.0,
    are_others_at_work: bool = False,
) -> Recovered:
    """Finish, at start, what a dead process left half done: before anything is received.

    It looks at `incoming`, and at folders that changed since the last clean stop. `called_ae` is
    the AE title of the node.
    """
    database, files = archive.database, archive.files
    # Died within a purge.
    _forget_missing(database, files, and_(PURGING_SERIES, series.c.purged_at.is_not(None)))
    until = files.recently(COMMIT_SECONDS) if are_others_at_work else math.inf
    findings = _Findings(until=until)
    # Names in the archive are given in the order of arrival: what still lies in incoming is newer,
    # and of two versions of an instance the one that came last counts.
    since -= SLACK_SECONDS
    _look_at_archive(archive, read_header, called_ae, findings, since=since)
    for incoming in dict.fromkeys((files.incoming, files.incoming_of(""))):
        _look_at_incoming(archive, incoming, read_header, called_ae, findings)
    findings.removed += _unused_results(database, files)
    _tell(database, findings)
    return findings.recovered()


def take_over(
    archive: Archive, read_header: ReadHeader, node: str, *, called_ae: str = UNKNOWN_AE
) -> Recovered:
    """Keep what a node has sealed that gives no sign of life; what it acknowledged has its row.

    Where it lives all the same, it finds the files in their place, or fails to keep what was cut
    off: then its peer hears no Success.
    """
    findings = _Findings()
    incoming = archive.files.incoming_of(node)
    if incoming.is_dir():
        _look_at_incoming(archive, incoming, read_header, called_ae, findings)
    _tell(archive.database, findings)
    return findings.recovered()


def reindex(archive: Archive, read_header: ReadHeader, *, called_ae: str = UNKNOWN_AE) -> Recovered:
    """Rebuild the index from the files; rows whose file is gone say so then."""
    missing = _forget_missing(archive.database, archive.files, true())
    findings = _Findings()
    _look_at_archive(archive, read_header, called_ae, findings, since=0)
    _tell(archive.database, findings)
    return replace(findings.recovered(), missing=missing)


@dataclass
class _Findings:
    """What has been found so far: paths relative to the storage folder."""

    indexed: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    series_uids: set[str] = field(default_factory=set)  # of what was indexed
    until: float = math.inf  # what was moved into the archive later is another node's

    def recovered(self) -> Recovered:
        """The same as a record."""
        return Recovered(tuple(self.indexed), tuple(self.removed), tuple(self.unreadable))


def _look_at_incoming(
    archive: Archive,
    incoming: Path,
    read_header: ReadHeader,
    called_ae: str,
    findings: _Findings,
) -> None:
    """Put what is sealed into the archive; anything else was cut short and never acknowledged."""
    files = archive.files
    for file in _files_in(incoming):
        relative = str(file.relative_to(files.folder))
        if not is_sealed(file):
            file.unlink(missing_ok=True)
            findings.removed.append(relative)  # its peer never heard Success and sends it again
            continue
        received = _read(read_header, file)
        if received is None:
            findings.unreadable.append(relative)
            continue
        place = files.received_path(received.study_uid, received.series_uid, received_digest(file))
        if _known(archive.database, (place,)):
            files.move(file, place)  # its row says where it belongs, and by whom it came
            continue
        archive.restore(received, file, called_ae)
        findings.indexed.append(relative)
        findings.series_uids.add(received.series_uid)


def _look_at_archive(
    archive: Archive,
    read_header: ReadHeader,
    called_ae: str,
    findings: _Findings,
    *,
    since: float,
) -> None:
    """Index what has no row in folders that changed since then."""
    files = archive.files
    for folder in _folders_changed(files.folder / RECEIVED, since):
        by_path = {str(file.relative_to(files.folder)): file for file in _files_in(folder)}
        known = _known(archive.database, tuple(by_path))
        for relative, file in by_path.items():
            if relative in known or file.stat().st_ctime > findings.until:
                continue
            received = _read(read_header, file)
            if received is None:
                findings.unreadable.append(relative)  # may have been acknowledged: a person decides
            elif _was_purged(archive.database, received, file):
                file.unlink(missing_ok=True)
                findings.removed.append(relative)
            else:
                archive.restore(received, file, called_ae)
                findings.indexed.append(relative)
                findings.series_uids.add(received.series_uid)


def _read(read_header: ReadHeader, file: Path) -> Received | None:
    """What the file holds, or None where it cannot be read.

    What a peer has sent can make a reader raise anything, and one such file must never keep the
    node from starting: the loop over files goes on.
    """
    try:
        return read_header(file)
    except Exception:
        logger.exception("file not read", extra={"file": file.name})
        return None


def _folders_changed(archive: Path, since: float) -> Iterator[Path]:
    for group in sorted(archive.iterdir()):
        for folder in sorted(group.iterdir()) if group.is_dir() else ():
            if folder.is_dir() and folder.stat().st_mtime >= since:
                yield folder


def _files_in(folder: Path) -> list[Path]:
    """The files of a folder in the order in which they were written."""
    files = (file for file in folder.iterdir() if file.is_file())
    return sorted(files, key=lambda file: (file.stat().st_mtime_ns, file.name))


def _known(database: Database, relative: Sequence[str]) -> frozenset[str]:
    with database.reading() as db:
        rows = db.execute(select(instance.c.path).where(instance.c.path.in_(relative)))
        return frozenset(rows.scalars())


def _was_purged(database: Database, received: Received, file: Path) -> bool:
    """True for what a purge has not reached; what was received after it was acknowledged."""
    same = and_(
        instance.c.instance_uid == received.instance_uid,
        instance.c.digest == file.stem,
        instance.c.path.is_(None),
        series.c.purged_at > file.stat().st_mtime,
    )
    purged = select(instance.c.id).join(series, series.c.id == instance.c.series_id)
    with database.reading() as db:
        return db.execute(purged.where(same).limit(1)).first() is not None


def _tell(database: Database, findings: _Findings) -> None:
    """Let people know of files without a row: the database was lost, or the node was killed."""
    sentences = []
    files, of_series = len(findings.indexed), len(findings.series_uids)
    unreadable = findings.unreadable
    if files:
        sentences.append(INDEXED.format(files=files, series=of_series))
    if unreadable:
        sentences.append(UNREADABLE.format(files=len(unreadable), first=unreadable[0]))
    if not sentences:
        return
    key = hashlib.sha256(f"{files} {of_series} {unreadable}".encode()).hexdigest()[:16]
    now = time.time()
    with database.writing() as db:
        facts = {"sentence": " ".join(sentences)}
        day = int(now // DAY)  # the same again at each start of a day is one notice
        notices.post(database, db, now, "attention", f"recovered {day} {key}", facts)


def _unused_results(database: Database, files: Files) -> tuple[str, ...]:
    """Remove what attempts left that have no result; a folder of an unknown job stays."""
    removed = []
    for folder in sorted((files.folder / DERIVED).iterdir()):
        relative = str(folder.relative_to(files.folder))
        with database.reading() as db:
            unused = _is_unused(db, relative)
        if unused:
            files.remove(relative)
            removed.append(relative)
    return tuple(removed)


def _is_unused(db: Connection, relative: str) -> bool:
    job_id, _, attempt = relative.removeprefix(f"{DERIVED}/").partition("-")
    if not (job_id.isdecimal() and attempt.isdecimal()):
        return False
    used = and_(KEPT_DERIVED, derived.c.folder == relative)
    if db.execute(select(derived.c.id).where(used)).first() is not None:
        return False
    row = db.execute(select(job.c.state, job.c.attempt).where(job.c.id == int(job_id))).first()
    if row is None or int(attempt) > row.attempt:
        return False  # of another database: not ours to judge
    return not (row.state == JobState.RUNNING and row.attempt == int(attempt))


def _forget_missing(
    database: Database, files: Files, which: ColumnElement[bool]
) -> tuple[str, ...]:
    """Clear the path of rows whose file is gone; they keep UID and digest."""
    query = (
        select(instance.c.series_id, instance.c.path)
        .join(series, series.c.id == instance.c.series_id)
        .where(instance.c.path.is_not(None), which)
    )
    with database.reading() as db:
        rows = [row for row in db.execute(query) if not files.path(row.path).exists()]
    return tuple(row.path for row in rows if _forget(database, files, row.series_id, row.path))


def _forget(database: Database, files: Files, series_id: int, path: str) -> bool:
    # Its peer may have sent it again just now: while the series is locked, nobody puts a file back.
    with database.writing() as db:
        lock_series(db, series_id)
        if files.path(path).exists():
            return False
        db.execute(update(instance).where(instance.c.path == path).values(path=None))
        return True
