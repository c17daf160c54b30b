"""The outbox of notices: one row a recipient, told once, with the proof that it was reached."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    and_,
    delete,
    func,
    or_,
    select,
    update,
)

from storage.database import Database, to_audit_event
from storage.errors import NotFound
from storage.records import DeliveryState, JobState, Message, MessageState, Notice
from storage.schema import (
    ENDED_DELIVERY,
    ENDED_JOB,
    NEW_NOTICE,
    OPEN_MESSAGE,
    audit,
    delivery,
    job,
    message,
    notice,
)
from storage.site.audit import NODE
from storage.site.nodes import fact_or_set

AT_ONCE = 100
CLAIM_SECONDS = 600.0  # longer than a channel takes, each of whose steps has an end
DAY = 86_400.0


def note(
    database: Database,
    db: Connection,
    now: float,
    event: str,
    key: str,
    facts: Mapping[str, object],
) -> bool:
    """In the transaction that it happens in: somebody is to be told, once; False = was noted.

    `facts` hold no patient attribute: a mail and a webhook leave the house.
    """
    values = {"event": event, "key": key[:160], "at": now, "facts": json.dumps(facts)}
    row = database.insert(notice).values(**values).on_conflict_do_nothing()
    return db.execute(row.returning(notice.c.id)).scalar_one_or_none() is not None


def tell(database: Database, now: float, event: str, key: str, facts: Mapping[str, object]) -> bool:
    """As `note`, in a transaction of its own."""
    with database.writing() as db:
        return note(database, db, now, event, key, facts)


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
    return tuple(Notice(r.id, r.event, r.key, r.at, json.loads(r.facts)) for r in rows)


def due(
    database: Database, now: float, limit: int = 20, *, longest: float = DAY
) -> tuple[Message, ...]:
    """What is to be sent now, the longest due first; `claim` it before it is sent.

    `longest` is how long a message waits for its next try at most, in seconds.
    """
    query = _messages().where(OPEN_MESSAGE, _is_due(now, longest))
    with database.reading() as db:
        rows = db.execute(query.order_by(message.c.due_at, message.c.id).limit(limit))
        return tuple(_message(row) for row in rows)


def claim(
    database: Database, now: float, ids: Collection[int], *, longest: float = DAY
) -> frozenset[int]:
    """Take messages that are due, so that no other node sends them: those that were free.

    Whoever takes one says within CLAIM_SECONDS what came of it; else it is due again: its node
    has died, and nobody knows whether it was sent.
    """
    free = and_(OPEN_MESSAGE, message.c.id.in_(ids), _is_due(now, longest))
    # In one order, so that two nodes do not wait for each other; what one has locked it gets.
    mine = select(message.c.id).where(free).order_by(message.c.id)
    mine = mine.with_for_update(skip_locked=True)
    one = update(message).where(message.c.id.in_(mine.scalar_subquery()), free)
    taken = one.values(due_at=now + CLAIM_SECONDS).returning(message.c.id)
    with database.writing() as db:
        return frozenset(db.execute(taken).scalars())


def _is_due(now: float, longest: float) -> ColumnElement[bool]:
    # What waits for longer than anything may: the clock was set back.
    return or_(message.c.due_at <= now, message.c.due_at > now + max(longest, CLAIM_SECONDS))


def sent(database: Database, now: float, message_id: int) -> None:
    """It has reached the channel."""
    _end(database, message_id, MessageState.SENT, now, "")


def retry(database: Database, message_id: int, due_at: float, sentence: str) -> None:
    """It did not work this time."""
    told = {"due_at": due_at, "sentence": sentence, "tries": message.c.tries + 1}
    with database.writing() as db:
        db.execute(update(message).where(message.c.id == message_id).values(**told))


def failed(database: Database, now: float, message_id: int, sentence: str) -> None:
    """It is given up: whoever looks at the page sees it."""
    _end(database, message_id, MessageState.FAILED, now, sentence)


def again(database: Database, now: float, message_id: int) -> None:
    """A person wants it sent once more."""
    values = {"state": MessageState.QUEUED, "due_at": now, "done_at": None, "tries": 0}
    with database.writing() as db:
        one = update(message).where(message.c.id == message_id)
        if not db.execute(one.values(**values)).rowcount:
            raise NotFound(f"no message {message_id}")


def newest(database: Database, limit: int = 50, offset: int = 0) -> tuple[Message, ...]:
    """What was told last, through which channel, and what came of it."""
    query = _messages().order_by(message.c.id.desc()).limit(limit).offset(offset)
    with database.reading() as db:
        return tuple(_message(row) for row in db.execute(query))


def stuck(database: Database, since: float) -> tuple[Message, ...]:
    """Of each channel the last message that was tried, where that did not get there.

    Only of what happened after `since`; a channel that has taken something later is well again.
    """
    tried = _messages().where(notice.c.at >= since, message.c.tries > 0)
    last: dict[str, Message] = {}
    with database.reading() as db:
        for row in db.execute(tried.order_by(message.c.id.desc()).limit(AT_ONCE)):
            last.setdefault(row.channel, _message(row))
    return tuple(one for one in last.values() if one.state is not MessageState.SENT)


def of_key(database: Database, key: str) -> tuple[Message, ...]:
    """One notice through each channel."""
    query = _messages().where(notice.c.key == key).order_by(message.c.id)
    with database.reading() as db:
        return tuple(_message(row) for row in db.execute(query))


def count(database: Database) -> dict[MessageState, int]:
    """How many messages are in each state."""
    query = select(message.c.state, func.count()).group_by(message.c.state)
    with database.reading() as db:
        found = {str(row[0]): int(row[1]) for row in db.execute(query)}
    return {state: found.get(state, 0) for state in MessageState}


def forget(database: Database, before: float) -> None:
    """Remove what was told long ago; what still waits stays."""
    waits = select(message.c.notice_id).where(OPEN_MESSAGE)
    old = select(notice.c.id).where(notice.c.at < before, notice.c.id.not_in(waits))
    with database.writing() as db:
        ids = db.execute(old).scalars().all()
        db.execute(delete(message).where(message.c.notice_id.in_(ids)))
        db.execute(delete(notice).where(notice.c.id.in_(ids)))


def _end(
    database: Database, message_id: int, state: MessageState, now: float, sentence: str
) -> None:
    told = {"state": state, "done_at": now, "sentence": sentence, "tries": message.c.tries + 1}
    with database.writing() as db:
        db.execute(update(message).where(message.c.id == message_id).values(**told))


def _messages() -> Select[*tuple[Any, ...]]:
    return select(message, notice.c.event, notice.c.key, notice.c.at, notice.c.facts).join(
        notice, notice.c.id == message.c.notice_id
    )


def _message(row: Row[*tuple[Any, ...]]) -> Message:
    told = Notice(row.notice_id, row.event, row.key, row.at, json.loads(row.facts))
    return Message(
        id=row.id,
        notice=told,
        channel=row.channel,
        state=MessageState(row.state),
        tries=row.tries,
        due_at=row.due_at,
        done_at=row.done_at,
        sentence=row.sentence,
    )


DAYS = 7.0
MOST = 1000  # at once; the next sweep goes on
SINCE = "notices since"  # the fact that says since when anybody is told anything
STATES = {JobState.HELD: "job_held", JobState.FAILED: "job_failed"}


@dataclass(frozen=True)
class _New:
    """Something that nobody was told yet, perhaps."""

    event: str
    key: str
    facts: dict[str, object]


def tell_new(database: Database, now: float, futile: Collection[str] = ()) -> int:
    """Note what has begun to need somebody since the last look; how many.

    A job that is requeued and held again for a `futile` reason is no news.
    """
    since = max(float(fact_or_set(database, SINCE, repr(now))), now - DAYS * DAY)
    with database.reading() as db:
        found = [*_jobs(db, since, futile), *_deliveries(db, since), *_own_notices(db, since)]
        known = _known(db, (one.key for one in found))
    new = [one for one in found if one.key not in known]
    if not new:
        return 0
    with database.writing() as db:
        return sum(note(database, db, now, one.event, one.key, one.facts) for one in new)


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


def _own_notices(db: Connection, since: float) -> Iterator[_New]:
    """What other transactions of the node have written down for the administrator."""
    wanted = and_(audit.c.at >= since, audit.c.who == NODE, audit.c.what == "notice")
    for row in db.execute(select(audit).where(wanted).order_by(audit.c.at.desc()).limit(MOST)):
        event = to_audit_event(row)
        kind = "result_superseded" if event.detail.get("kind") == "revision" else "attention"
        facts: dict[str, object] = {"sentence": event.detail.get("sentence", "")}
        if event.which.startswith("job "):
            facts["job"] = event.which.removeprefix("job ")
        yield _New(kind, f"audit {event.id}", facts)


def _known(db: Connection, keys: Iterable[str]) -> frozenset[Any]:
    query = select(notice.c.key).where(notice.c.key.in_(list(keys)))
    return frozenset(db.execute(query).scalars())
