"""The ledger: derived series on their way to destinations, instance by instance."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from sqlalchemy import (
    Connection,
    Row,
    ScalarSelect,
    Select,
    and_,
    case,
    delete,
    false,
    func,
    or_,
    select,
    update,
)

from storage.archive import lock_series
from storage.commitment_scu import ask_for_proof
from storage.database import Database, to_delivery, to_records
from storage.errors import NotFound, WrongState
from storage.leases import IDLE, Holder, Leases
from storage.records import Backlog, Delivery, DeliveryState, Unsent
from storage.schema import (
    OPEN_DELIVERY,
    delivery,
    delivery_instance,
    derived,
    derived_instance,
    job,
    want,
)
from storage.site.audit import acting
from storage.site.peers import try_now
from storage.transitions import (
    check_delivery,
    check_derived,
    destinations_of,
    end_leases,
    locked,
    offer_again,
    queue_deliveries,
    queued_again,
    set_delivery,
)

NO_DESTINATION = "NO_DESTINATION"
CANCELLED_SENTENCE = "Cancelled by a person."
GOES_TO = "It goes to {destination!r}, which already has a delivery of this derived series."

DeliveryRow: TypeAlias = Row[*tuple[Any, ...]]


@dataclass(frozen=True)
class InstanceAnswer:
    """A destination's answer to one instance; a status of None: it gave none."""

    derived_instance_id: int
    status: int | None
    is_stored: bool
    comment: str = ""
    is_not_understood: bool = False

    def columns(self, delivery_id: int, now: float) -> dict[str, object]:
        return {
            "delivery_id": delivery_id,
            "derived_instance_id": self.derived_instance_id,
            "status": self.status,
            "stored": int(self.is_stored),
            "answered_at": now,
            "comment": self.comment,
            "offers": 1,
            "not_understood": int(self.is_not_understood),
        }


class Ledger:
    """Every method is one transition in one transaction."""

    def __init__(self, database: Database, holder: Holder) -> None:
        self._database = database
        self._now = holder.now
        self._leases = Leases(database, delivery, holder)

    def claim(self, destination: str, worker: str) -> Delivery | None:
        """Lease the most urgent, then longest due delivery to a destination."""
        leased = self._leases.claim(
            lambda db: self._due(db, destination),
            lambda db, row: self._take(db, row, destination, worker),
            # One is sent there at a time, whichever node sends it: in the order of the queue, and
            # with no more associations than the destination allows.
            in_turn=f"delivery {destination}",
        )
        return leased[0] if leased else None

    def renew(self, leased: Delivery) -> None:
        """Keep the lease; LeaseLost where the delivery was cancelled or taken over."""
        self._leases.renew(leased)

    def is_overtaken(self, leased: Delivery) -> bool:
        """True where a more urgent delivery to the same destination is due."""
        own = select(delivery.c.priority).where(delivery.c.id == leased.id).scalar_subquery()
        to_it = delivery.c.destination == leased.destination
        due = and_(delivery.c.state == DeliveryState.QUEUED, delivery.c.due_at <= self._now())
        query = select(delivery.c.id).where(OPEN_DELIVERY, to_it, due, delivery.c.priority < own)
        return bool(self._database.values(query.limit(1)))

    def unsent(self, leased: Delivery) -> tuple[Unsent, ...]:
        """The instances that the destination has not stored, in the order of the series.

        The caller is about to send these: from here on the series counts as offered to a peer,
        even where the node dies before it hears an answer.
        """
        with self._leases.holding(leased) as (db, _):
            rows = db.execute(_unsent(leased.id, leased.derived_id)).all()
            if rows:
                _offered(db, leased.derived_id, self._now())
        return to_records(Unsent, rows)

    def answered(
        self,
        leased: Delivery,
        derived_instance_id: int,
        status: int | None,
        stored: bool,
        *,
        comment: str = "",
        not_understood: bool = False,
    ) -> None:
        """Write down a destination's answer to one instance, or that it gave none."""
        one = InstanceAnswer(derived_instance_id, status, stored, comment, not_understood)
        self.record(leased, [one])

    def record(self, leased: Delivery, answers: Sequence[InstanceAnswer]) -> None:
        """Write down a destination's answers to several instances, in one transaction."""
        now = self._now()
        counts = ("offers", "not_understood")
        key = ("delivery_id", "derived_instance_id")
        row = self._database.insert(delivery_instance)
        written = {
            name: delivery_instance.c[name] + row.excluded[name]
            if name in counts
            else row.excluded[name]
            for name in ("status", "stored", "answered_at", "comment", *counts)
        }
        statement = row.on_conflict_do_update(index_elements=list(key), set_=written)
        with self._leases.holding(leased) as (db, _):
            db.execute(statement, [answer.columns(leased.id, now) for answer in answers])
            _offered(db, leased.derived_id, now)

    def sent(
        self,
        leased: Delivery,
        reason: str = "",
        sentence: str = "",
        left_out: Collection[str] = (),
        *,
        is_asked_for_proof: bool = False,
    ) -> None:
        """End a delivery: everything is stored, but for what the sentence names.

        That is supplements, and objects of the kinds that the destination is not to have.
        """
        with self._leases.holding(leased) as (db, row):
            unsent = db.execute(_unsent(leased.id, leased.derived_id)).all()
            left = sum(not row.is_supplement and row.kind not in left_out for row in unsent)
            if left or (unsent and not sentence):
                raise WrongState(
                    f"delivery {leased.id} has {len(unsent)} instances that are not stored"
                )
            done = {"state": DeliveryState.SENT, "finished_at": self._now(), "failures": 0}
            set_delivery(db, leased.id, reason=reason, sentence=sentence, **done, **IDLE)
            if is_asked_for_proof:
                ask_for_proof(self._database, db, row, self._now())

    def retry(
        self, leased: Delivery, due_at: float, reason: str, sentence: str, *, is_first: bool = False
    ) -> None:
        """Put off a delivery that did not work this time until `due_at`.

        `is_first`: the destination has stored something, so this failure is the first in a row.
        """
        with self._leases.holding(leased) as (db, row):
            failures = 1 if is_first else row.failures + 1
            why = {"reason": reason, "sentence": sentence, "failures": failures}
            # The try has ended by this clock: set back later, it shows that `due_at` is off too.
            again = {"state": DeliveryState.QUEUED, "due_at": due_at, "started_at": self._now()}
            set_delivery(db, leased.id, **again, **why, **IDLE)

    def hold(self, leased: Delivery, reason: str, sentence: str) -> None:
        """Hold a delivery that will not work without a person."""
        with self._leases.holding(leased) as (db, row):
            why = {"reason": reason, "sentence": sentence, "failures": row.failures + 1}
            end = {"state": DeliveryState.HELD, "finished_at": self._now(), **IDLE}
            set_delivery(db, leased.id, **why, **end)

    def release(self, leased: Delivery) -> None:
        """Give the delivery back on a clean stop; it counts nothing."""
        self._leases.give_up(leased, state=DeliveryState.QUEUED)

    def recover(self, node: str = "") -> int:
        """Queue again what a dead node was sending; at start, a dead process of this one."""
        left = update(delivery).where(OPEN_DELIVERY, self._leases.left_by(node))
        with self._database.writing() as db:
            return db.execute(left.values(state=DeliveryState.QUEUED, **IDLE)).rowcount

    def redeliver(
        self, job_id: int, destination: str | None = None, *, who: str = ""
    ) -> tuple[Delivery, ...]:
        """Send a kept derived series again, for a person: to one destination, or the job's."""
        detail = {"destination": destination} if destination else {}
        with acting(self._database, self._now(), who, "redeliver", f"job {job_id}", detail) as db:
            row = db.execute(select(job).where(job.c.id == job_id)).one_or_none()
            if row is None:
                raise NotFound(f"no job {job_id}")
            lock_series(db, row.series_id)
            check_derived(db, row)
            to = destinations_of(db, job_id) if destination is None else (destination,)
            if not to:
                raise WrongState(f"job {job_id} has no destinations: name one")
            end_leases(db, row.derived_id, to)
            queue_deliveries(self._database, db, row.derived_id, to, row.priority, self._now())
            return deliveries_of(db, row.derived_id)

    def requeue(self, delivery_id: int, *, who: str = "") -> None:
        """Try a delivery now, for a person: one that was held or cancelled, or that waits."""
        allowed = (DeliveryState.HELD, DeliveryState.CANCELLED, DeliveryState.QUEUED)
        with acting(self._database, self._now(), who, "requeue", f"delivery {delivery_id}") as db:
            try_now(db, _read(db, delivery_id).destination)  # first: an echo locks in this order
            row = locked(db, delivery, delivery_id, allowed, "requeued")
            check_delivery(db, row.id, row.derived_id)
            if row.state == DeliveryState.QUEUED:  # what is stored there stays so
                set_delivery(db, row.id, due_at=min(row.due_at, self._now()))
            else:
                offer_again(db, row.id, row.priority, self._now())

    def cancel(self, delivery_id: int, *, who: str = "") -> None:
        """Cancel a delivery for a person; a sender at work loses its lease."""
        allowed = (DeliveryState.QUEUED, DeliveryState.RUNNING, DeliveryState.HELD)
        with acting(self._database, self._now(), who, "cancel", f"delivery {delivery_id}") as db:
            row = locked(db, delivery, delivery_id, allowed, "cancelled")
            end = {"state": DeliveryState.CANCELLED, "finished_at": self._now(), **IDLE}
            set_delivery(db, row.id, reason="", sentence=CANCELLED_SENTENCE, **end)

    def redirect(self, before: str, now_to: str) -> int:
        """Send what waits for one destination to another, or to the same, now known; how many."""
        with self._database.reading() as db:
            if before == now_to and not waiting_for(db, before):
                return 0
        with self._database.writing() as db:
            return redirect(db, before, now_to, self._now())

    def get(self, delivery_id: int) -> Delivery:
        with self._database.reading() as db:
            return _read(db, delivery_id)

    def of_job(self, job_id: int) -> tuple[Delivery, ...]:
        """The deliveries of what a job made, or delivered again."""
        result = select(job.c.derived_id).where(job.c.id == job_id).scalar_subquery()
        with self._database.reading() as db:
            return deliveries_of(db, result)

    def backlog(self) -> tuple[Backlog, ...]:
        """Count the unfinished deliveries of each destination: queued, running, held."""
        columns = (delivery.c.destination, delivery.c.state)
        counts = (func.count().label("count"), func.min(delivery.c.queued_at).label("oldest_at"))
        query = select(*columns, *counts).where(OPEN_DELIVERY).group_by(*columns)
        return self._database.records(Backlog, query.order_by(*columns))

    def _due(self, db: Connection, destination: str) -> Select[*tuple[Any, ...]]:
        now, to_it = self._now(), delivery.c.destination == destination
        abandoned = self._leases.left_behind(db, OPEN_DELIVERY, to_it, of=destination)
        # A clock that was set back must not stop the retries until it is that late again: what was
        # tried last, or queued, at a time that is still to come is due.
        clock_set_back = func.coalesce(delivery.c.started_at, delivery.c.queued_at) > now
        waited = or_(delivery.c.due_at <= now, clock_set_back)
        due = and_(delivery.c.state == DeliveryState.QUEUED, waited)
        query = select(delivery).where(OPEN_DELIVERY, to_it, or_(due, abandoned))
        running = and_(delivery.c.state == DeliveryState.RUNNING, ~abandoned)
        under_way = select(delivery.c.id).where(OPEN_DELIVERY, to_it, running).limit(1)
        if db.execute(under_way).first() is not None:
            query = query.where(false())
        return query.order_by(delivery.c.priority, delivery.c.due_at, delivery.c.id).limit(1)

    def _take(self, db: Connection, row: DeliveryRow, destination: str, worker: str) -> Delivery:
        running = {"state": DeliveryState.RUNNING, "started_at": self._now()}
        self._leases.take(db, row, worker, running, of=destination)
        return _read(db, row.id)


def waiting_for(db: Connection, destination: str) -> list[DeliveryRow]:
    """Deliveries that were held because nobody knew this destination."""
    query = select(delivery).where(
        OPEN_DELIVERY,
        delivery.c.destination == destination,
        delivery.c.state == DeliveryState.HELD,
        delivery.c.reason == NO_DESTINATION,
    )
    return list(db.execute(query.order_by(delivery.c.id)))


def redirect(db: Connection, before: str, now_to: str, now: float) -> int:
    """Send what waits for one destination to another, or to the same that is known again.

    The jobs that named it name the other one too: a delivery that is asked for again follows.
    Returns how many deliveries.
    """
    rename(db, before, now_to)
    waits = or_(
        delivery.c.state == DeliveryState.QUEUED,
        and_(delivery.c.state == DeliveryState.HELD, delivery.c.reason == NO_DESTINATION),
    )
    mine = and_(OPEN_DELIVERY, delivery.c.destination == before, waits)
    query = select(delivery).where(mine).order_by(delivery.c.id)
    rows = db.execute(query.with_for_update(of=delivery)).all()
    for row in rows:
        if before != now_to and _has_one(db, row.derived_id, now_to):
            sentence = GOES_TO.format(destination=now_to)
            end = {"state": DeliveryState.CANCELLED, "finished_at": now, **IDLE}
            set_delivery(db, row.id, reason="", sentence=sentence, **end)
        else:
            set_delivery(db, row.id, destination=now_to, **queued_again(now))
    return len(rows)


def rename(db: Connection, before: str, now_to: str) -> None:
    """Let those who wanted results at one destination want them at another one, once."""
    if before == now_to:
        return
    other = want.alias()
    same = and_(other.c.job_id == want.c.job_id, other.c.arrival_id == want.c.arrival_id)
    there = select(other.c.rank).where(same, other.c.destination == now_to).exists()
    db.execute(delete(want).where(want.c.destination == before, there))
    db.execute(update(want).where(want.c.destination == before).values(destination=now_to))


def _has_one(db: Connection, derived_id: int, destination: str) -> bool:
    same = and_(delivery.c.derived_id == derived_id, delivery.c.destination == destination)
    return db.execute(select(delivery.c.id).where(same)).first() is not None


def _offered(db: Connection, derived_id: int, now: float) -> None:
    first = and_(derived.c.id == derived_id, derived.c.offered_at.is_(None))
    db.execute(update(derived).where(first).values(offered_at=now))


def _unsent(delivery_id: int, derived_id: int) -> Select[*tuple[Any, ...]]:
    answered = and_(
        delivery_instance.c.derived_instance_id == derived_instance.c.id,
        delivery_instance.c.delivery_id == delivery_id,
    )
    return (
        select(
            derived_instance.c.id,
            derived_instance.c.instance_uid,
            derived_instance.c.sop_class_uid,
            (derived.c.folder + "/" + derived_instance.c.path).label("path"),
            derived_instance.c.digest,
            func.coalesce(delivery_instance.c.offers, 0).label("offers"),
            func.coalesce(delivery_instance.c.not_understood, 0).label("not_understood"),
            delivery_instance.c.status,
            derived_instance.c.kind,
            derived_instance.c.is_supplement,
        )
        .join(derived, derived.c.id == derived_instance.c.derived_id)
        .outerjoin(delivery_instance, answered)
        .where(
            derived_instance.c.derived_id == derived_id,
            func.coalesce(delivery_instance.c.stored, 0) == 0,
        )
        .order_by(derived_instance.c.id)
    )


def delivery_rows() -> Select[*tuple[Any, ...]]:
    stored = select(func.count()).where(
        delivery_instance.c.delivery_id == delivery.c.id, delivery_instance.c.stored == 1
    )
    confirmed = select(func.count()).where(
        delivery_instance.c.delivery_id == delivery.c.id,
        delivery_instance.c.confirmed_at.is_not(None),
    )
    total = select(func.count()).where(derived_instance.c.derived_id == delivery.c.derived_id)
    commented = and_(
        delivery_instance.c.delivery_id == delivery.c.id, delivery_instance.c.comment != ""
    )
    last = (delivery_instance.c.stored, delivery_instance.c.answered_at.desc())
    comment = select(delivery_instance.c.comment).where(commented).order_by(*last).limit(1)
    own = {"derived_series_uid", "folder", "comment", "sent", "confirmed", "total"}
    return select(
        *(delivery.c[name] for name in Delivery.__dataclass_fields__ if name not in own),
        derived.c.series_uid.label("derived_series_uid"),
        derived.c.folder,
        func.coalesce(comment.scalar_subquery(), "").label("comment"),
        stored.scalar_subquery().label("sent"),
        confirmed.scalar_subquery().label("confirmed"),
        total.scalar_subquery().label("total"),
    ).join(derived, derived.c.id == delivery.c.derived_id)


def _read(db: Connection, delivery_id: int) -> Delivery:
    row = db.execute(delivery_rows().where(delivery.c.id == delivery_id)).one_or_none()
    if row is None:
        raise NotFound(f"no delivery {delivery_id}")
    return to_delivery(row)


def deliveries_of(db: Connection, derived_id: int | ScalarSelect[int]) -> tuple[Delivery, ...]:
    of_result = delivery.c.derived_id == derived_id
    rows = db.execute(delivery_rows().where(of_result).order_by(delivery.c.id))
    return tuple(to_delivery(row) for row in rows)


@dataclass(frozen=True)
class AnswerCount:
    """A number of instances with the same last status; None: none was given, or not asked for."""

    status: int | None
    stored: bool
    instances: int
    offers: int  # how often the one that was offered most was offered


@dataclass(frozen=True)
class ObjectState:
    """A series of a job's result, and what one destination has of it."""

    series_uid: str
    kind: str
    name: str  # of its first file
    instances: int
    destination: str | None  # None: the result has no delivery
    stored: int
    status: int | None  # the highest DIMSE status of what is not stored; None = no answer yet


def object_states(database: Database, job_id: int) -> tuple[ObjectState, ...]:
    """Count what each destination has of each series of a job's result, in the order of making."""
    of_delivery = and_(
        delivery_instance.c.delivery_id == delivery.c.id,
        delivery_instance.c.derived_instance_id == derived_instance.c.id,
    )
    is_stored = func.coalesce(delivery_instance.c.stored, 0)
    of_series = (derived_instance.c.series_uid, derived_instance.c.kind)
    query = (
        select(
            *of_series,
            func.min(derived_instance.c.path).label("name"),
            func.count().label("instances"),
            delivery.c.destination,
            func.sum(is_stored).label("stored"),
            func.max(case((is_stored == 0, delivery_instance.c.status))).label("status"),
        )
        .select_from(derived_instance)
        .join(job, job.c.derived_id == derived_instance.c.derived_id)
        .outerjoin(delivery, delivery.c.derived_id == derived_instance.c.derived_id)
        .outerjoin(delivery_instance, of_delivery)
        .where(job.c.id == job_id)
        .group_by(*of_series, delivery.c.destination)
        .order_by(func.min(derived_instance.c.id), delivery.c.destination)
    )
    return database.records(ObjectState, query)


@dataclass(frozen=True)
class InstanceState:
    """An instance of a job's result, and what one destination has answered and proved of it."""

    destination: str
    instance_uid: str
    sop_class_uid: str
    series_uid: str
    kind: str
    generated: bool
    offers: int
    status: int | None  # the DIMSE status; None: no answer yet
    comment: str  # may name a patient
    stored: bool
    answered_at: float | None
    confirmed: bool
    confirmed_at: float | None
    evidence: str | None  # commitment, query
    commitment_failure: int | None  # the Failure Reason of the last report


def instance_states(database: Database, job_id: int) -> tuple[InstanceState, ...]:
    """The ledger of a job: each instance of its result at each destination."""
    columns = delivery_instance.c
    of_delivery = and_(
        columns.delivery_id == delivery.c.id, columns.derived_instance_id == derived_instance.c.id
    )
    of_result = ("instance_uid", "sop_class_uid", "series_uid", "kind", "generated")
    answers = ("status", "answered_at", "confirmed_at", "evidence", "commitment_failure")
    query = (
        select(
            delivery.c.destination,
            *(derived_instance.c[name] for name in of_result),
            *(columns[name] for name in answers),
            func.coalesce(columns.offers, 0).label("offers"),
            func.coalesce(columns.comment, "").label("comment"),
            func.coalesce(columns.stored, 0).label("stored"),
            columns.confirmed_at.is_not(None).label("confirmed"),
        )
        .select_from(delivery)
        .join(derived_instance, derived_instance.c.derived_id == delivery.c.derived_id)
        .join(job, job.c.derived_id == delivery.c.derived_id)
        .outerjoin(delivery_instance, of_delivery)
        .where(job.c.id == job_id)
        .order_by(delivery.c.id, derived_instance.c.id)
    )
    return database.records(InstanceState, query)


def answer_counts(database: Database, delivery_id: int) -> tuple[AnswerCount, ...]:
    """Count the last answers to a delivery's instances; what is not stored first."""
    mine = and_(
        delivery_instance.c.delivery_id == delivery_id,
        delivery_instance.c.derived_instance_id == derived_instance.c.id,
    )
    stored = func.coalesce(delivery_instance.c.stored, 0)
    query = (
        select(
            delivery_instance.c.status,
            stored.label("stored"),
            func.count().label("instances"),
            func.coalesce(func.max(delivery_instance.c.offers), 0).label("offers"),
        )
        .select_from(derived_instance)
        .join(delivery, delivery.c.derived_id == derived_instance.c.derived_id)
        .outerjoin(delivery_instance, mine)
        .where(delivery.c.id == delivery_id)
        .group_by(delivery_instance.c.status, stored)
        .order_by(stored, delivery_instance.c.status)
    )
    return database.records(AnswerCount, query)
