"""The outbox of notices: one row a recipient, told once, with the proof that it was reached."""

import contextlib
import json
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    delete,
    func,
    or_,
    select,
    update,
)

from storage.database import Database, to_record, to_records
from storage.errors import LeaseLost
from storage.leases import Holder, LeasedRow, Leases
from storage.records import DAY, DeliveryState, JobState, Message, MessageState, Notice
from storage.schema import (
    ENDED_DELIVERY,
    ENDED_JOB,
    NEW_NOTICE,
    OPEN_MESSAGE,
    delivery,
    job,
    message,
    notice,
)
from storage.site.nodes import fact_or_set

AT_ONCE = 100
CLAIM_SECONDS = 600.0  # longer than a channel takes, each of whose steps has an end
_MESSAGES = select(
    message, *(notice.c[name].label(f"notice_{name}") for name in ("event", "key", "at", "facts"))
).join(notice, notice.c.id == message.c.notice_id)


def post(
    database: Database,
    db: Connection,
    now: float,
    event: str,
    key: str,
    facts: Mapping[str, object],
) -> bool:
    """Write a notice in the transaction of what it tells of, once; False where it was there.

    `facts` hold no patient attribute: a mail and a webhook leave the house.
    """
    values = {"event": event, "key": key[:160], "at": now, "facts": json.dumps(facts)}
    row = database.insert(notice).values(**values).on_conflict_do_nothing()
    return db.execute(row.returning(notice.c.id)).scalar_one_or_none() is not None


def address(
    database: Database, now: float, channels: Sequence[str], events: Collection[str]
) -> tuple[Notice, ...]:
    """Queue what is new for these channels, where it is one of these events."""
    new = select(notice).where(NEW_NOTICE).order_by(notice.c.id).limit(AT_ONCE)
    with database.reading() as db:
        if db.execute(new).first() is None:
            return ()
    with database.writing() as db:
        rows = db.execute(new.with_for_update(skip_locked=True)).all()
        db.execute(update(notice).where(notice.c.id.in_([r.id for r in rows])).values(addressed=1))
        queued = [
            {"notice_id": row.id, "state": MessageState.QUEUED, "due_at": now, "channel": name}
            for row in rows
            for name in (channels if row.event in events else ())
        ]
        if queued:
            db.execute(message.insert(), queued)
    return to_records(Notice, rows)


class Outbox:
    """The messages as one process of a node leases, sends and gives them up."""

    def __init__(
        self,
        database: Database,
        now: Callable[[], float],
        *,
        node: str,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._now = now
        self._leases = Leases(database, message, Holder(node, now, CLAIM_SECONDS, steady))

    def due(self, limit: int = 20, *, longest: float = DAY) -> tuple[Message, ...]:
        """Messages to be sent now, the longest due first; `claim` one before it is sent.

        `longest` is how long a message waits for its next try at most, in seconds.
        """
        with self._database.reading() as db:
            rows = db.execute(
                _MESSAGES.where(self._is_due(db, longest))
                .order_by(message.c.due_at, message.c.id)
                .limit(limit)
            )
            return to_records(Message, rows)

    def claim(self, ids: Collection[int], *, longest: float = DAY) -> tuple[Message, ...]:
        """Lease those of these messages that are due, so that no other node sends them.

        The caller says within CLAIM_SECONDS what came of it; else it is due again: its node has
        died, and nobody knows whether it was sent.
        """

        def due(db: Connection) -> Select[*tuple[Any, ...]]:
            # In one order, so that two nodes do not wait for each other.
            mine = and_(message.c.id.in_(ids), self._is_due(db, longest))
            return select(message).where(mine).order_by(message.c.id)

        return self._leases.claim(due, self._take)

    def sent(self, leased: Message) -> None:
        """Note that a message has reached its channel."""
        self._end(leased, MessageState.SENT, "")

    def retry(self, leased: Message, due_at: float, sentence: str) -> None:
        """Put off a message that did not get there this time."""
        self._give_up(leased, due_at=due_at, sentence=sentence)

    def failed(self, leased: Message, sentence: str) -> None:
        """Give a message up: whoever looks at the page sees it."""
        self._end(leased, MessageState.FAILED, sentence)

    def _is_due(self, db: Connection, longest: float) -> ColumnElement[bool]:
        now = self._now()
        free = or_(message.c.lease_until.is_(None), self._leases.left_behind(db, OPEN_MESSAGE))
        # What waits for longer than anything may: the clock was set back.
        waited = or_(message.c.due_at <= now, message.c.due_at > now + longest)
        return and_(OPEN_MESSAGE, waited, free)

    def _take(self, db: Connection, row: LeasedRow) -> Message:
        self._leases.take(db, row, "notices")
        return to_record(Message, db.execute(_MESSAGES.where(message.c.id == row.id)).one())

    def _end(self, leased: Message, state: MessageState, sentence: str) -> None:
        self._give_up(leased, state=state, done_at=self._now(), sentence=sentence)

    def _give_up(self, leased: Message, **values: object) -> None:
        # Where another node has taken it over meanwhile, what that one says of it counts.
        with contextlib.suppress(LeaseLost):
            self._leases.give_up(leased, tries=leased.tries + 1, **values)


def newest(database: Database, limit: int = 50, offset: int = 0) -> tuple[Message, ...]:
    """The last messages, each with its channel and what came of it."""
    query = _MESSAGES.order_by(message.c.id.desc())
    return database.records(Message, query.limit(limit).offset(offset))


def stuck(database: Database, since: float) -> tuple[Message, ...]:
    """The last message that was tried of each channel, where that did not get there.

    Only of what happened after `since`; a channel that has taken something later is well again.
    """
    tried = _MESSAGES.where(notice.c.at >= since, message.c.tries > 0)
    last: dict[str, Message] = {}
    with database.reading() as db:
        for row in db.execute(tried.order_by(message.c.id.desc()).limit(AT_ONCE)):
            last.setdefault(row.channel, to_record(Message, row))
    return tuple(message for message in last.values() if message.state is not MessageState.SENT)


def of_key(database: Database, key: str) -> tuple[Message, ...]:
    """One notice through each channel."""
    query = _MESSAGES.where(notice.c.key == key).order_by(message.c.id)
    return database.records(Message, query)


def count(database: Database) -> dict[MessageState, int]:
    """Count the messages in each state."""
    query = select(message.c.state, func.count()).group_by(message.c.state)
    with database.reading() as db:
        counts = {str(row[0]): int(row[1]) for row in db.execute(query)}
    return {state: counts.get(state, 0) for state in MessageState}


def forget(database: Database, before: float) -> None:
    """Remove the notices of long ago; what still waits stays."""
    waits = select(message.c.notice_id).where(OPEN_MESSAGE)
    old = select(notice.c.id).where(notice.c.at < before, notice.c.id.not_in(waits))
    with database.writing() as db:
        ids = db.execute(old).scalars().all()
        db.execute(delete(message).where(message.c.notice_id.in_(ids)))
        db.execute(delete(notice).where(notice.c.id.in_(ids)))


DAYS = 7.0
MOST = 1000  # at once; the next sweep goes on
SINCE = "notices since"  # the fact that says since when anybody is told anything
STATES = {JobState.HELD: "job_held", JobState.FAILED: "job_failed"}


@dataclass(frozen=True)
class _New:
    """A notice that was perhaps not written yet."""

    event: str
    key: str
    facts: dict[str, object]


def tell_new(database: Database, now: float, futile: Collection[str] = ()) -> int:
    """Post notices of jobs and deliveries held or failed since the last look; how many.

    A job that is requeued and held again for a `futile` reason is no news.
    """
    since = max(float(fact_or_set(database, SINCE, repr(now))), now - DAYS * DAY)
    with database.reading() as db:
        held = [*_jobs(db, since, futile), *_deliveries(db, since)]
        known = _known(db, (new.key for new in held))
    untold = [new for new in held if new.key not in known]
    if not untold:
        return 0
    with database.writing() as db:
        return sum(post(database, db, now, new.event, new.key, new.facts) for new in untold)


def _jobs(db: Connection, since: float, futile: Collection[str]) -> Iterator[_New]:
    columns = (job.c.id, job.c.state, job.c.reason, job.c.sentence, job.c.route, job.c.finished_at)
    which = and_(ENDED_JOB, job.c.state.in_(STATES), job.c.finished_at >= since)
    query = select(*columns).where(which, job.c.kind != "selftest")
    for row in db.execute(query.order_by(job.c.finished_at.desc()).limit(MOST)):
        facts = {"job": row.id, "reason": row.reason, "sentence": row.sentence, "route": row.route}
        event = STATES[JobState(row.state)]
        when = row.reason if row.reason in futile else f"{row.finished_at:.3f}"
        yield _New(event, f"job {row.id} {row.state} {when}", facts)


def _deliveries(db: Connection, since: float) -> Iterator[_New]:
    made_by = select(func.max(job.c.id)).where(job.c.derived_id == delivery.c.derived_id)
    of_patients = select(job.c.id).where(
        job.c.derived_id == delivery.c.derived_id, job.c.kind != "selftest"
    )
    held = and_(ENDED_DELIVERY, delivery.c.state == DeliveryState.HELD)
    query = select(delivery, made_by.scalar_subquery().label("job_id"))
    query = query.where(held, delivery.c.finished_at >= since, of_patients.exists())
    for row in db.execute(query.order_by(delivery.c.finished_at.desc()).limit(MOST)):
        facts = {
            "job": row.job_id,
            "delivery": row.id,
            "destination": row.destination,
            "reason": row.reason,
            "sentence": row.sentence,
        }
        yield _New("delivery_held", f"delivery {row.id} {row.finished_at:.3f}", facts)


def _known(db: Connection, keys: Iterable[str]) -> frozenset[Any]:
    query = select(notice.c.key).where(notice.c.key.in_(list(keys)))
    return frozenset(db.execute(query).scalars())
