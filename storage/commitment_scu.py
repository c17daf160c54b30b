"""Storage commitment as SCU: what each destination was asked to prove, and what it has proved.

PS3.4 Annex J. The Transaction UID of a request is a row before the N-ACTION is sent. A report may
therefore come at any time, on any association, twice, or to another process of the node: it ends
whatever is under way, and who was at work finds its lease lost.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from sqlalchemy import ColumnElement, Connection, Row, Select, and_, func, or_, select, update

from storage.database import Database, to_record, to_records
from storage.errors import LeaseLost
from storage.leases import IDLE, Holder, Leases
from storage.records import (
    Commitment,
    CommitmentReport,
    CommitmentState,
    DeliveryState,
    Evidence,
    Reference,
    Unconfirmed,
)
from storage.schema import (
    OPEN_COMMITMENT,
    commitment,
    commitment_request,
    delivery,
    delivery_instance,
    derived,
    derived_instance,
    job,
    series,
)
from storage.site import notices
from storage.transitions import hold_delivery, queued_again, set_delivery

CommitmentRow: TypeAlias = Row[*tuple[Any, ...]]

NOT_CONFIRMED = "NOT_CONFIRMED"  # of a delivery that is held
NO_PROOF, NOT_ASKED = "no proof", "not asked"  # of a commitment; its delivery stays `sent`
ROWS_AT_ONCE = 500

# The states in which a report that names failures decides on what is done next.
UNDECIDED = (
    CommitmentState.QUEUED,
    CommitmentState.RUNNING,
    CommitmentState.WAITING,
    CommitmentState.UNPROVED,
)


@dataclass(frozen=True)
class Shortfall:
    """What a destination has not proved to keep, though it was asked."""

    instances: int
    failures: frozenset[int | None]  # Failure Reasons; None: it named none
    is_supplement: bool  # nothing but supplements
    evidence: Evidence
    tries: int  # reports before this one that named failures
    resent: int


@dataclass(frozen=True)
class NextStep:
    """The consequence of a shortfall."""

    kind: Literal["ask again", "send again", "hold", "do without"]
    sentence: str
    due_at: float = 0.0


Decide = Callable[[Shortfall], NextStep]


@dataclass(frozen=True)
class Settled:
    """What came of a report or a query: the delivery that it is about, and its commitment now."""

    delivery_id: int
    destination: str
    state: CommitmentState
    is_news: bool  # False: the report had come before, or does not count any more
    instances: int  # confirmed so far
    sentence: str = ""


class Commitments:
    """Every method is one transition in one transaction. Rows are locked delivery first."""

    def __init__(self, database: Database, holder: Holder) -> None:
        self._database = database
        self._now = holder.now
        self._leases = Leases(database, commitment, holder)

    def adopt(self, destinations: Collection[str]) -> int:
        """Ask these destinations for what they were sent before they were asked; how many.

        What others were asked for ends: they are not asked any more.
        """
        kept = and_(derived.c.id == delivery.c.derived_id, derived.c.purged_at.is_(None))
        asked = select(commitment.c.id).where(
            commitment.c.delivery_id == delivery.c.id, commitment.c.reason != NOT_ASKED
        )
        unasked = (
            select(delivery.c.id, delivery.c.destination, delivery.c.priority)
            .where(
                delivery.c.state == DeliveryState.SENT, select(derived.c.id).where(kept).exists()
            )
            .where(delivery.c.destination.in_(destinations), ~asked.exists())
        )
        others = and_(OPEN_COMMITMENT, commitment.c.destination.not_in(destinations))
        ended = {"state": CommitmentState.UNPROVED, "reason": NOT_ASKED, **IDLE}
        with self._database.writing() as db:
            db.execute(update(commitment).where(others).values(finished_at=self._now(), **ended))
            rows = db.execute(unasked).all() if destinations else []
            for row in rows:
                ask_for_proof(self._database, db, row, self._now())
        return len(rows)

    def recover(self, node: str = "") -> int:
        """Queue again what a dead node was asking; at start and at the end, this one."""
        left = update(commitment).where(self._leases.left_by(node))
        with self._database.writing() as db:
            return db.execute(left.values(state=CommitmentState.QUEUED, **IDLE)).rowcount

    def claim(self, destination: str, worker: str) -> Commitment | None:
        """Lease what is due at a destination: to be asked, or without a report for too long."""
        leased = self._leases.claim(
            lambda db: self._due(db, destination),
            lambda db, row: self._take(db, row, worker),
        )
        return leased[0] if leased else None

    def renew(self, leased: Commitment) -> None:
        """Keep the lease; LeaseLost where a report has come."""
        self._leases.renew(leased)

    def unconfirmed(self, leased: Commitment) -> tuple[Unconfirmed, ...]:
        """The instances that are stored and not proved, in the order of the series."""
        return self._database.records(Unconfirmed, _unconfirmed(leased.delivery_id))

    def begin(self, leased: Commitment, transaction_uid: str) -> None:
        """Write down a request that is about to be sent."""
        with self._holding(leased) as db:
            values = {"commitment_id": leased.id, "transaction_uid": transaction_uid}
            db.execute(commitment_request.insert().values(**values, asked_at=self._now()))

    def accepted(self, leased: Commitment, transaction_uid: str, due_at: float) -> None:
        """The destination has taken the request on, and is to report until `due_at`."""
        with self._holding(leased) as db:
            self._note_status(db, transaction_uid, 0)
            waits = {"state": CommitmentState.WAITING, "due_at": due_at, "sentence": ""}
            self._set(db, leased.id, **waits, failures=0)

    def refused(self, leased: Commitment, transaction_uid: str, status: int) -> None:
        """The destination has answered a request with this status, which is a failure."""
        with self._holding(leased) as db:
            self._note_status(db, transaction_uid, status)

    def retry(
        self, leased: Commitment, due_at: float, sentence: str, *, evidence: Evidence
    ) -> None:
        """Put off what did not work this time, or try the other evidence."""
        with self._holding(leased) as db:
            is_same = evidence is leased.evidence
            failures = {"failures": leased.failures + 1 if is_same else 0, "evidence": evidence}
            again = {"state": CommitmentState.QUEUED, "due_at": due_at, "sentence": sentence}
            self._set(db, leased.id, **failures, **again)

    def release(self, leased: Commitment) -> None:
        """Give it back on a clean stop; it counts nothing."""
        self._leases.give_up(leased, state=CommitmentState.QUEUED)

    def unproved(self, leased: Commitment, sentence: str) -> None:
        """End without proof; a person is told. A report that comes after all still counts."""
        with self._holding(leased) as db:
            why = {"reason": NO_PROOF, "sentence": sentence, "finished_at": self._now()}
            self._set(db, leased.id, state=CommitmentState.UNPROVED, **why)
            facts = {
                "job": db.execute(_job_of(leased.delivery_id)).scalar_one(),
                "destination": leased.destination,
                "delivery": leased.delivery_id,
                "sentence": sentence,
            }
            key = f"unconfirmed {leased.delivery_id} {leased.queued_at:.3f}"
            notices.post(self._database, db, self._now(), "delivery_unconfirmed", key, facts)

    def found(self, leased: Commitment, instances: Iterable[Reference], decide: Decide) -> Settled:
        """Write down which instances a C-FIND has named."""
        with self._holding(leased) as db:
            row = _read(db, commitment.c.id == leased.id)
            self._confirm(db, row.delivery_id, instances, Evidence.QUERY)
            return self._settle(db, row, decide)

    def reported(self, report: CommitmentReport, decide: Decide) -> Settled | None:
        """Take a report in; None where no request has this Transaction UID."""
        request = commitment_request.c.transaction_uid == report.transaction_uid
        of_request = select(commitment_request.c.commitment_id).where(request)
        with self._database.reading() as db:  # an unknown one takes no lock
            before = _read(db, commitment.c.id == of_request.scalar_subquery())
        if before is None:
            return None
        with self._database.writing() as db:
            _lock_delivery(db, before.delivery_id)
            row = _read(db, commitment.c.id == before.id)
            asked = db.execute(select(commitment_request).where(request)).one()
            if asked.void:
                return self._settled(db, row, is_news=False)
            self._confirm(db, row.delivery_id, report.committed, Evidence.COMMITMENT)
            is_news = asked.reported_at is None
            if is_news:
                self._note_report(db, row, asked.id, report)
            newest = select(func.max(commitment_request.c.id))
            newest = newest.where(commitment_request.c.commitment_id == row.id)
            is_newest = db.execute(newest).scalar_one() == asked.id
            return self._settle(db, row, decide if is_news and is_newest else None)

    def is_open(self, transaction_uid: str) -> bool:
        """True where the report of this request has not come yet."""
        request = commitment_request.c.transaction_uid == transaction_uid
        query = select(commitment_request.c.id)
        query = query.where(request, commitment_request.c.reported_at.is_(None))
        return bool(self._database.values(query))

    def _due(self, db: Connection, destination: str) -> Select[*tuple[Any, ...]]:
        now, to_it = self._now(), commitment.c.destination == destination
        abandoned = self._leases.left_behind(db, OPEN_COMMITMENT, to_it, of=destination)
        # As with deliveries: a clock that was set back must not stop what is to be done.
        clock_set_back = func.coalesce(commitment.c.started_at, commitment.c.queued_at) > now
        waited = or_(commitment.c.due_at <= now, clock_set_back)
        due = and_(commitment.c.state != CommitmentState.RUNNING, waited)
        query = select(commitment).where(OPEN_COMMITMENT, to_it, or_(due, abandoned))
        return query.order_by(commitment.c.priority, commitment.c.due_at).limit(1)

    def _take(self, db: Connection, row: CommitmentRow, worker: str) -> Commitment:
        running: dict[str, object] = {"state": CommitmentState.RUNNING, "started_at": self._now()}
        if row.state == CommitmentState.WAITING and row.due_at <= self._now():
            running["evidence"] = Evidence.QUERY  # no report came in time
        self._leases.take(db, row, worker, running, of=row.destination)
        return to_record(Commitment, _read(db, commitment.c.id == row.id))

    @contextmanager
    def _holding(self, leased: Commitment) -> Iterator[Connection]:
        """The transaction of a holder; LeaseLost where a report or another process was quicker."""
        columns = commitment.c
        mine = and_(columns.id == leased.id, columns.attempt == leased.attempt)
        held = select(columns.id).where(mine, columns.state == CommitmentState.RUNNING)
        with self._database.writing() as db:
            _lock_delivery(db, leased.delivery_id)
            if db.execute(held.with_for_update()).first() is None:
                raise LeaseLost(f"commitment {leased.id}, attempt {leased.attempt}")
            yield db

    def _set(self, db: Connection, commitment_id: int, **values: object) -> None:
        row = commitment.c.id == commitment_id
        db.execute(update(commitment).where(row).values(**{**IDLE, **values}))

    def _note_status(self, db: Connection, transaction_uid: str, status: int) -> None:
        request = commitment_request.c.transaction_uid == transaction_uid
        db.execute(update(commitment_request).where(request).values(status=status))

    def _note_report(
        self, db: Connection, row: CommitmentRow, request_id: int, report: CommitmentReport
    ) -> None:
        """Write down when and by whom a request was reported, and each Failure Reason."""
        counts = {"committed": len(report.committed), "failed": len(report.failed)}
        came = {"reported_at": self._now(), "reported_by": report.calling_ae, **counts}
        mine = commitment_request.c.id == request_id
        db.execute(update(commitment_request).where(mine).values(**came))
        ids = _ids(db, row.delivery_id)
        for failure in set(report.failed.values()):
            failed = [ids[it] for it, why in report.failed.items() if why == failure and it in ids]
            self._update(db, row.delivery_id, failed, commitment_failure=failure)

    def _confirm(
        self,
        db: Connection,
        delivery_id: int,
        instances: Iterable[Reference],
        evidence: Evidence,
    ) -> None:
        """Mark what is proved, the first time; what does not count as stored is not marked."""
        ids = _ids(db, delivery_id)
        proved = [ids[reference] for reference in dict.fromkeys(instances) if reference in ids]
        values = {"confirmed_at": self._now(), "evidence": evidence, "commitment_failure": None}
        self._update(db, delivery_id, proved, **values)

    def _update(
        self, db: Connection, delivery_id: int, ids: Sequence[int], **values: object
    ) -> None:
        columns = delivery_instance.c
        for start in range(0, len(ids), ROWS_AT_ONCE):
            some = columns.derived_instance_id.in_(ids[start : start + ROWS_AT_ONCE])
            unproved = and_(columns.stored == 1, columns.confirmed_at.is_(None))
            of_delivery = and_(columns.delivery_id == delivery_id, some, unproved)
            db.execute(update(delivery_instance).where(of_delivery).values(**values))

    def _settle(self, db: Connection, row: CommitmentRow, decide: Decide | None) -> Settled:
        """End the commitment where everything is proved, or take the next step.

        Without `decide` what is not proved changes nothing: the report is an old one.
        """
        missing = to_records(Unconfirmed, db.execute(_unconfirmed(row.delivery_id)))
        confirmed = _confirmed(db, row.delivery_id)
        if not missing and confirmed and _may_be_confirmed(db, row.delivery_id):
            self._end_confirmed(db, row)
        elif missing and decide is not None and row.state in UNDECIDED:
            self._take_step(db, row, missing, decide)
        return self._settled(db, row, is_news=decide is not None)

    def _settled(self, db: Connection, before: CommitmentRow, *, is_news: bool) -> Settled:
        row = _read(db, commitment.c.id == before.id)
        return Settled(
            delivery_id=row.delivery_id,
            destination=row.destination,
            state=CommitmentState(row.state),
            is_news=is_news or row.state != before.state,
            instances=_confirmed(db, row.delivery_id),
            sentence=row.sentence,
        )

    def _end_confirmed(self, db: Connection, row: CommitmentRow, sentence: str = "") -> None:
        end = {"state": CommitmentState.CONFIRMED, "reason": "", "finished_at": self._now()}
        self._set(db, row.id, **end, sentence=sentence)
        state = select(delivery.c.state).where(delivery.c.id == row.delivery_id)
        was_held = db.execute(state).scalar_one() == DeliveryState.HELD
        why = {"reason": "", "sentence": ""} if was_held else {}
        set_delivery(db, row.delivery_id, state=DeliveryState.CONFIRMED, **why)

    def _take_step(
        self,
        db: Connection,
        row: CommitmentRow,
        missing: Sequence[Unconfirmed],
        decide: Decide,
    ) -> None:
        step = decide(
            Shortfall(
                instances=len(missing),
                failures=frozenset(instance.failure for instance in missing),
                is_supplement=all(instance.is_supplement for instance in missing),
                evidence=Evidence(row.evidence),
                tries=row.tries,
                resent=row.resent,
            )
        )
        now, ended = self._now(), {"sentence": step.sentence, "finished_at": self._now()}
        match step.kind:
            case "ask again":
                again = {"due_at": step.due_at, "sentence": step.sentence, "tries": row.tries + 1}
                self._set(db, row.id, state=CommitmentState.QUEUED, **again)
            case "send again":
                sending = {"resent": row.resent + 1, "sentence": step.sentence}
                self._set(db, row.id, state=CommitmentState.SENDING, **sending)
                ids = [instance.id for instance in missing]
                self._update(db, row.delivery_id, ids, stored=0, status=None, not_understood=0)
                set_delivery(db, row.delivery_id, **queued_again(now))
            case "hold":
                self._set(db, row.id, state=CommitmentState.FAILED, reason=NOT_CONFIRMED, **ended)
                hold_delivery(db, row.delivery_id, now, NOT_CONFIRMED, step.sentence)
            case "do without":
                self._end_confirmed(db, row, step.sentence)


def of_deliveries(database: Database, deliveries: Collection[int]) -> Mapping[int, Commitment]:
    """The storage commitment asked for of each of these deliveries, where it is."""
    query = select(commitment).where(commitment.c.delivery_id.in_(deliveries))
    asked = database.records(Commitment, query)
    return {it.delivery_id: it for it in asked if it.state is not CommitmentState.CANCELLED}


def open_counts(database: Database) -> Mapping[tuple[str, str], int]:
    """Count what is not proved yet, by destination and state."""
    columns = (commitment.c.destination, commitment.c.state)
    query = select(*columns, func.count()).where(OPEN_COMMITMENT).group_by(*columns)
    with database.reading() as db:
        return {(row[0], row[1]): int(row[2]) for row in db.execute(query)}


def ask_for_proof(
    database: Database, db: Connection, of_delivery: CommitmentRow, now: float
) -> None:
    """Queue the commitment of a delivery that was sent, in the transaction that says so."""
    fresh = {
        "destination": of_delivery.destination,
        "priority": of_delivery.priority,
        "state": CommitmentState.QUEUED,
        "evidence": Evidence.COMMITMENT,
        "reason": "",
        "sentence": "",
        "queued_at": now,
        "due_at": now,
        "started_at": None,
        "finished_at": None,
        "tries": 0,
        "failures": 0,
        **IDLE,
    }
    row = database.insert(commitment).values(delivery_id=of_delivery.id, **fresh)
    db.execute(row.on_conflict_do_update(index_elements=["delivery_id"], set_=fresh))


def _read(db: Connection, which: ColumnElement[bool]) -> Any:
    return db.execute(select(commitment).where(which)).one_or_none()


def _lock_delivery(db: Connection, delivery_id: int) -> None:
    db.execute(select(delivery.c.id).where(delivery.c.id == delivery_id).with_for_update())


def _may_be_confirmed(db: Connection, delivery_id: int) -> bool:
    """True where all of it was sent, or it is held for want of the very proof that has come."""
    held = and_(delivery.c.state == DeliveryState.HELD, delivery.c.reason == NOT_CONFIRMED)
    sent = or_(delivery.c.state == DeliveryState.SENT, held)
    query = select(delivery.c.id).where(delivery.c.id == delivery_id, sent)
    return db.execute(query).first() is not None


def _confirmed(db: Connection, delivery_id: int) -> int:
    columns = delivery_instance.c
    mine = and_(columns.delivery_id == delivery_id, columns.confirmed_at.is_not(None))
    return int(db.execute(select(func.count()).where(mine)).scalar_one())


def _ids(db: Connection, delivery_id: int) -> dict[Reference, int]:
    """The derived instances of a delivery by what storage commitment calls them."""
    columns = (derived_instance.c.id, derived_instance.c.sop_class_uid)
    query = (
        select(*columns, derived_instance.c.instance_uid)
        .join(delivery, delivery.c.derived_id == derived_instance.c.derived_id)
        .where(delivery.c.id == delivery_id)
    )
    return {Reference(row.sop_class_uid, row.instance_uid): row.id for row in db.execute(query)}


def _job_of(delivery_id: int) -> Select[*tuple[Any, ...]]:
    of_delivery = select(delivery.c.derived_id).where(delivery.c.id == delivery_id)
    made = job.c.derived_id == of_delivery.scalar_subquery()
    return select(func.max(job.c.id)).where(made)


def _unconfirmed(delivery_id: int) -> Select[*tuple[Any, ...]]:
    stored = and_(
        delivery_instance.c.delivery_id == delivery_id,
        delivery_instance.c.stored == 1,
        delivery_instance.c.confirmed_at.is_(None),
    )
    return (
        select(
            derived_instance.c.id,
            derived_instance.c.sop_class_uid,
            derived_instance.c.instance_uid,
            derived_instance.c.series_uid,
            series.c.study_uid,
            derived_instance.c.is_supplement,
            delivery_instance.c.commitment_failure.label("failure"),
        )
        .join(derived_instance, derived_instance.c.id == delivery_instance.c.derived_instance_id)
        .join(derived, derived.c.id == derived_instance.c.derived_id)
        .join(series, series.c.id == derived.c.series_id)
        .where(stored)
        .order_by(derived_instance.c.id)
    )
