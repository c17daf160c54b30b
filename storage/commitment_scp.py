"""Storage commitment as SCP: what senders have asked for, and the reports that are owed to them.

PS3.4 Annex J. What is promised is looked up when it is reported, not when it is asked for: an
instance counts where its file is there whole. From then on its series stays for `keep_days`.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, Select, and_, delete, func, or_, select, update

from storage.database import Database
from storage.errors import StorageError
from storage.files import Files
from storage.leases import IDLE, Holder, Leases
from storage.records import CommitmentReport, OwedReport, Reference, ReportState
from storage.schema import OPEN_REPORT, instance, owed_report, series

NO_SUCH_INSTANCE = 0x0112  # PS3.3 C.14.1.1
CLASS_CONFLICT = 0x0119
UIDS_AT_ONCE = 500


class OwedReports:
    """Every method is one transition in one transaction."""

    def __init__(self, database: Database, files: Files, holder: Holder) -> None:
        self._database = database
        self._files = files
        self._now = holder.now
        self._leases = Leases(database, owed_report, holder)

    def owe(
        self,
        calling_ae: str,
        called_ae: str,
        transaction_uid: str,
        references: Sequence[Reference],
        due_at: float,
    ) -> int:
        """Write down a request before it is answered; one that comes again is reported again."""
        key = {"calling_ae": calling_ae, "transaction_uid": transaction_uid}
        pairs = [[reference.sop_class_uid, reference.instance_uid] for reference in references]
        values = {
            "called_ae": called_ae,
            "instances": json.dumps(pairs),
            "state": ReportState.QUEUED,
            "asked_at": self._now(),
            "due_at": due_at,
            "tries": 0,
            "done_at": None,
            "sentence": "",
            **IDLE,
        }
        row = self._database.insert(owed_report).values(**key, **values)
        asked = row.on_conflict_do_update(index_elements=list(key), set_=values)
        with self._database.writing() as db:
            return int(db.execute(asked.returning(owed_report.c.id)).scalar_one())

    def recover(self, node: str = "") -> int:
        """Queue again what a dead node was reporting; at start and at the end, this one."""
        left = update(owed_report).where(self._leases.left_by(node))
        with self._database.writing() as db:
            return db.execute(left.values(state=ReportState.QUEUED, **IDLE)).rowcount

    def claim(self, calling_ae: str, worker: str) -> OwedReport | None:
        """Lease the report to a sender that is due for the longest time."""
        return self._claim(lambda db: self._due(db, calling_ae), worker)

    def claim_one(self, report_id: int, worker: str) -> OwedReport | None:
        """Lease this report, due or not."""
        which = and_(owed_report.c.id == report_id, owed_report.c.state == ReportState.QUEUED)
        return self._claim(lambda _: select(owed_report).where(which), worker)

    def leave(self, senders: Collection[str], sentence: str) -> int:
        """Give up what is owed to all but these; how many."""
        others = and_(OPEN_REPORT, owed_report.c.calling_ae.not_in(senders))
        ended = {"state": ReportState.FAILED, "done_at": self._now(), "sentence": sentence, **IDLE}
        with self._database.writing() as db:
            return db.execute(update(owed_report).where(others).values(**ended)).rowcount

    def judge(self, leased: OwedReport) -> CommitmentReport:
        """What can be promised now; the series of what is promised are kept from here on."""
        committed, failed = [], {}
        with self._database.writing() as db:
            known = self._known(db, leased.references)
            for reference in leased.references:
                failure = self._failure(reference, known.get(reference.instance_uid, []))
                if failure:
                    failed[reference] = failure
                else:
                    committed.append(reference)
            promised = {reference.instance_uid for reference in committed}
            kept = {row.series_id for uid in promised for row in known[uid]}
            for series_id in sorted(kept):
                of_series = series.c.id == series_id
                db.execute(update(series).where(of_series).values(committed_at=self._now()))
        return CommitmentReport(leased.transaction_uid, tuple(committed), failed)

    def sent(self, leased: OwedReport, report: CommitmentReport) -> None:
        """The sender has the report."""
        counts = {"committed": len(report.committed), "failed": len(report.failed)}
        done = {"state": ReportState.SENT, "done_at": self._now(), "sentence": ""}
        self._leases.give_up(leased, **done, **counts)

    def retry(self, leased: OwedReport, due_at: float, sentence: str) -> None:
        """Put off a report that did not get there this time."""
        again = {"state": ReportState.QUEUED, "due_at": due_at, "tries": leased.tries + 1}
        self._leases.give_up(leased, **again, sentence=sentence)

    def failed(self, leased: OwedReport, sentence: str) -> None:
        """Give a report up: the sender never hears, and keeps its images."""
        done = {"state": ReportState.FAILED, "done_at": self._now(), "sentence": sentence}
        self._leases.give_up(leased, **done)

    def _claim(
        self, due: Callable[[Connection], Select[*tuple[Any, ...]]], worker: str
    ) -> OwedReport | None:
        leased = self._leases.claim(due, lambda db, row: self._take(db, row, worker))
        return leased[0] if leased else None

    def _due(self, db: Connection, calling_ae: str) -> Select[*tuple[Any, ...]]:
        now, columns = self._now(), owed_report.c
        to_it = columns.calling_ae == calling_ae
        abandoned = self._leases.left_behind(db, OPEN_REPORT, to_it, of=calling_ae)
        waited = or_(columns.due_at <= now, columns.asked_at > now)  # or the clock was set back
        due = and_(columns.state == ReportState.QUEUED, waited)
        query = select(owed_report).where(OPEN_REPORT, to_it, or_(due, abandoned))
        return query.order_by(columns.due_at, columns.id).limit(1)

    def _take(self, db: Connection, row: Row[*tuple[Any, ...]], worker: str) -> OwedReport:
        running = {"state": ReportState.RUNNING}
        self._leases.take(db, row, worker, running, of=row.calling_ae)
        return OwedReport(
            id=row.id,
            calling_ae=row.calling_ae,
            called_ae=row.called_ae,
            transaction_uid=row.transaction_uid,
            references=tuple(Reference(*pair) for pair in json.loads(row.instances)),
            asked_at=row.asked_at,
            attempt=row.attempt + 1,
            tries=row.tries,
        )

    def _known(
        self, db: Connection, references: Sequence[Reference]
    ) -> Mapping[str, list[Row[*tuple[Any, ...]]]]:
        """The kept versions of these instances, by UID; what retention has marked is not kept."""
        columns = (instance.c.series_id, instance.c.instance_uid, instance.c.sop_class_uid)
        query = select(*columns, instance.c.path, instance.c.size)
        query = query.join(series, series.c.id == instance.c.series_id)
        kept = and_(instance.c.path.is_not(None), series.c.purged_at.is_(None))
        known: dict[str, list[Row[*tuple[Any, ...]]]] = {}
        uids = [reference.instance_uid for reference in references]
        for start in range(0, len(uids), UIDS_AT_ONCE):
            some = instance.c.instance_uid.in_(uids[start : start + UIDS_AT_ONCE])
            for row in db.execute(query.where(kept, some)):
                known.setdefault(row.instance_uid, []).append(row)
        return known

    def _failure(self, reference: Reference, rows: Sequence[Row[*tuple[Any, ...]]]) -> int:
        """The Failure Reason of an instance; 0 where it is promised."""
        whole = [row for row in rows if self._is_whole(row)]
        if not whole:
            return NO_SUCH_INSTANCE
        is_of_class = any(row.sop_class_uid == reference.sop_class_uid for row in whole)
        return 0 if is_of_class else CLASS_CONFLICT

    def _is_whole(self, row: Row[*tuple[Any, ...]]) -> bool:
        try:
            return self._files.path(row.path).stat().st_size == int(row.size)
        except (OSError, StorageError):
            return False


def open_counts(database: Database) -> Mapping[str, int]:
    """Count the reports that are still owed, by sender."""
    by_sender = select(owed_report.c.calling_ae, func.count()).where(OPEN_REPORT)
    with database.reading() as db:
        rows = db.execute(by_sender.group_by(owed_report.c.calling_ae))
        return {str(row[0]): int(row[1]) for row in rows}


def forget(database: Database, before: float) -> None:
    """Remove what was reported long ago."""
    with database.writing() as db:
        db.execute(delete(owed_report).where(owed_report.c.done_at < before))
