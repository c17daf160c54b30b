"""What waits for a person: held and failed jobs, held deliveries, and what can still be done."""

import json
from collections.abc import Collection, Mapping
from dataclasses import replace

from sqlalchemy import ColumnElement, Connection, and_, select

from storage.database import Database
from storage.find import HELD_DELIVERY, Search, Wanted, with_index
from storage.kept import without_files
from storage.lines import MOST_COUNTED, DeliveryLine, JobLine, Need, Page
from storage.overview import (
    JOB_LINES,
    counted,
    delivery_lines,
    to_delivery_line,
    to_job_line,
)
from storage.records import JobState
from storage.schema import ENDED_JOB, arrival, delivery, job

PEOPLE = (JobState.HELD, JobState.FAILED)
SELFTEST = "selftest"  # has a page of its own: a failed one is told there


def needing(database: Database, limit: int = 50, offset: int = 0) -> Page[Need]:
    """What waits for a person, the newest first."""
    jobs = and_(ENDED_JOB, job.c.state.in_(PEOPLE), job.c.kind != SELFTEST)
    held = HELD_DELIVERY
    most = limit + offset
    with database.reading() as db:
        total = counted(db, select(job.c.id).where(jobs))
        total += counted(db, select(delivery.c.id).where(held))
        # The ids first: only what is shown is worth a look at its series.
        newest = select(job.c.id).where(jobs).order_by(job.c.finished_at.desc(), job.c.id.desc())
        ids = db.execute(newest.limit(most)).scalars().all()
        lines = db.execute(JOB_LINES.where(job.c.id.in_(ids)))
        found = [_need_of_job(to_job_line(row)) for row in lines]
        found += _held_deliveries(db, held, most)
        found.sort(key=lambda need: (need.since, need.id), reverse=True)
        shown = tuple(found[offset:most])
        gone = without_files(db, [need.id for need in shown if need.what == "job"])
    shown = tuple(replace(need, is_gone=need.what == "job" and need.id in gone) for need in shown)
    return Page(shown, min(total, MOST_COUNTED), limit, offset)


def held_deliveries(
    database: Database, wanted: Wanted, limit: int = 50, offset: int = 0
) -> Page[Need]:
    """What is held on its way, under a filter, the newest first."""
    with database.reading() as db:
        which = Search(database, db, with_index).deliveries(wanted)
        total = counted(db, select(delivery.c.id).where(which))
        found = _held_deliveries(db, which, limit + offset)
    found.sort(key=lambda need: (need.since, need.id), reverse=True)
    return Page(tuple(found[offset:]), total, limit, offset)


def delivery_ids(database: Database, wanted: Wanted, most: int) -> tuple[int, ...]:
    """The held deliveries that an action on the whole filter is about, the oldest first."""
    with database.reading() as db:
        which = Search(database, db, with_index).deliveries(wanted)
        query = select(delivery.c.id).where(which).order_by(delivery.c.id).limit(most)
        return tuple(db.execute(query).scalars())


def kept_of_routes(
    database: Database, jobs: Collection[int]
) -> Mapping[int, tuple[str, Mapping[str, object]]]:
    """The model and the parameters that each of these jobs keeps of its route."""
    query = select(job.c.id, job.c.model, job.c.parameters).where(job.c.id.in_(jobs))
    with database.reading() as db:
        return {row.id: (row.model, json.loads(row.parameters)) for row in db.execute(query)}


def _need_of_job(line: JobLine) -> Need:
    return Need(
        what="job",
        id=line.id,
        job_id=line.id,
        state=line.state,
        reason=line.reason,
        sentence=line.sentence,
        since=line.finished_at or line.queued_at,
        destination="",
        sender=line.sender,
        route=line.route,
        subject=line.subject,
    )


def _held_deliveries(db: Connection, held: ColumnElement[bool], most: int) -> list[Need]:
    newest = delivery.c.finished_at.desc(), delivery.c.id.desc()
    ids = db.execute(select(delivery.c.id).where(held).order_by(*newest).limit(most)).scalars()
    rows = db.execute(delivery_lines().where(delivery.c.id.in_(ids.all())))
    lines = [to_delivery_line(row) for row in rows]
    makers = _makers(db, [line.job_id for line in lines if line.job_id is not None])
    return [_need_of_delivery(line, *makers.get(line.job_id or 0, ("", ""))) for line in lines]


def _makers(db: Connection, ids: Collection[int]) -> dict[int, tuple[str, str]]:
    """Sender and route of these jobs."""
    query = select(job.c.id, arrival.c.calling_ae, job.c.route).where(job.c.id.in_(ids))
    rows = db.execute(query.join(arrival, arrival.c.id == job.c.arrival_id))
    return {row.id: (row.calling_ae, row.route) for row in rows}


def _need_of_delivery(line: DeliveryLine, sender: str, route: str) -> Need:
    one = line.delivery
    return Need(
        what="delivery",
        id=one.id,
        job_id=line.job_id,
        state=one.state,
        reason=one.reason,
        sentence=one.sentence,
        since=one.finished_at or one.queued_at,
        destination=one.destination,
        sender=sender,
        route=route,
        subject=line.subject,
    )
