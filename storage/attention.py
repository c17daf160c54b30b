"""What has begun to need a person, told once each: held and failed jobs, held deliveries."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, func, select

from storage.anew import BY_ROUTE
from storage.audit import NODE
from storage.database import Database
from storage.nodes import fact_or_set
from storage.notices import note
from storage.records import DeliveryState, JobState
from storage.rows import to_audit_event
from storage.schema import ENDED_DELIVERY, ENDED_JOB, delivery, job
from storage.schema_site import audit, notice

DAYS = 7.0
DAY = 86_400.0
MOST = 1000  # at once; the next sweep goes on
SINCE = "notices since"  # the fact that says since when anybody is told anything
STATES = {JobState.HELD: "job_held", JobState.FAILED: "job_failed"}


@dataclass(frozen=True)
class _New:
    """Something that nobody was told yet, perhaps."""

    event: str
    key: str
    facts: dict[str, object]


def tell_new(database: Database, now: float) -> int:
    """Note what has begun to need somebody since the last look; how many."""
    since = max(float(fact_or_set(database, SINCE, repr(now))), now - DAYS * DAY)
    with database.reading() as db:
        found = [*_jobs(db, since), *_deliveries(db, since), *_own_notices(db, since)]
        known = _known(db, (one.key for one in found))
    new = [one for one in found if one.key not in known]
    if not new:
        return 0
    with database.writing() as db:
        return sum(note(database, db, now, one.event, one.key, one.facts) for one in new)


def _jobs(db: Connection, since: float) -> Iterator[_New]:
    columns = (job.c.id, job.c.state, job.c.reason, job.c.sentence, job.c.route, job.c.finished_at)
    which = and_(ENDED_JOB, job.c.state.in_(STATES), job.c.finished_at >= since)
    query = select(*columns).where(which, job.c.kind != "selftest")
    for row in db.execute(query.order_by(job.c.finished_at.desc()).limit(MOST)):
        facts = {"job": row.id, "reason": row.reason, "sentence": row.sentence, "route": row.route}
        event = STATES[JobState(row.state)]
        # What a job finds again whenever it is put back is no news.
        when = row.reason if row.reason in BY_ROUTE else f"{row.finished_at:.3f}"
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
