"""Search for jobs, series and deliveries: filters are indexes, never scans of patients."""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Select,
    and_,
    exists,
    false,
    func,
    or_,
    select,
    true,
    union,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.visitors import InternalTraversal

from storage.database import Database, sought_keys, to_delivery, to_job, to_record
from storage.ledger import delivery_rows
from storage.queries.overview import (
    JOB_SUMMARIES,
    SUBJECT,
    counted,
    delivery_summaries,
    to_delivery_summary,
    to_job_summary,
)
from storage.records import (
    MOST_COUNTED,
    ArrivalState,
    Delivery,
    DeliveryState,
    DeliverySummary,
    Job,
    JobState,
    JobSummary,
    Need,
    NeedGroup,
    Page,
    SeriesSummary,
    Subject,
)
from storage.schema import (
    ENDED_DELIVERY,
    ENDED_JOB,
    ENDED_OF_ROUTE,
    FINISHED_DELIVERY,
    HAS_REASON,
    NEEDS_JOB,
    OPEN_DELIVERY,
    OPEN_JOB,
    arrival,
    delivery,
    derived,
    derived_instance,
    instance,
    job,
    selftest,
    series,
    want,
)
from storage.transitions import JOBS, without_files

# What somebody searched for is an audit event, which the caller writes: it knows who looked.

Text = ColumnElement[str]
# A condition on a column that is asked by its index, or not.
Part = Callable[[Callable[[Text], Text]], ColumnElement[bool]]

UNFINISHED = (JobState.QUEUED, JobState.RUNNING)
HELD_DELIVERY = and_(ENDED_DELIVERY, delivery.c.state == DeliveryState.HELD)
LAST = "\U0010ffff"  # sorts behind every text that begins alike
# What so many have is common: the newest of it are found by going back in time. What fewer have
# is found by its own index, and so is what is counted, in any order. Neither way is quick for both.
COMMON = 2000
STUDY_DATES = ("study_date", "study_from", "study_to")
OF_A_PATIENT = ("text", "accession", "patient_id", "name", *STUDY_DATES)
MOST_DESCRIPTIONS = 5000
PEOPLE = (JobState.HELD, JobState.FAILED)
SELFTEST = "selftest"  # has a page of its own: a failed one is told there


@dataclass(frozen=True)
class Choices:
    """The values that a filter may choose from, of rows; the configuration may name more."""

    reasons: tuple[str, ...]
    routes: tuple[str, ...]
    destinations: tuple[str, ...]


@dataclass(frozen=True)
class Wanted:
    """The filter of a search; everything that is given must hold. Empty = any.

    `patient_id`, `accession` and `name` are found by how they begin, `name` in any case and by
    family name first; `description` and `sentence` by what they contain; `uid` is any of study,
    series, instance, or a derived one; `text` is any of accession, patient ID and name. A series
    is held too where its result is held on its way, and found by the reason for that.
    """

    states: tuple[JobState, ...] = ()
    kind: str = ""
    reason: str = ""
    route: str = ""
    destination: str = ""
    sender: str = ""
    text: str = ""
    accession: str = ""
    patient_id: str = ""
    name: str = ""
    study_date: str = ""  # YYYYMMDD
    study_from: str = ""  # the first day that counts, and the last
    study_to: str = ""
    description: str = ""
    uid: str = ""
    since: float | None = None  # of jobs: queued; of series: the last instance
    until: float | None = None

    @classmethod
    def typed(
        cls,
        words: Mapping[str, str],
        states: Iterable[str] = (),
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> "Wanted":
        """Make a filter of words as somebody types or sends them, each by the name of its field.

        A time without an offset is the system's own. Raises ValueError for an unknown state.
        """
        given: dict[str, Any] = {name: word.strip() for name, word in words.items()}
        for name in given.keys() & set(STUDY_DATES):
            given[name] = given[name].replace("-", "")
        return cls(
            states=tuple(JobState(state) for state in states),
            since=since.timestamp() if since is not None else None,
            until=until.timestamp() if until is not None else None,
            **given,
        )

    @property
    def of_a_patient(self) -> tuple[str, ...]:
        """The fields that look for a person: an audit event names them, and no log their words."""
        return tuple(name for name in OF_A_PATIENT if getattr(self, name))

    @property
    def of_series(self) -> bool:
        """True where anything is asked of the series of a job."""
        return bool(self.of_a_patient or self.description or self.uid)


def choices(database: Database) -> Choices:
    """The reasons, routes and destinations of all jobs and deliveries, in alphabetical order."""
    with database.reading() as db:
        reasons = {*_different(db, job.c.reason, HAS_REASON)}
        held = select(delivery.c.reason).where(HELD_DELIVERY).distinct()
        reasons |= set(db.execute(held).scalars())
        routes = {*_different(db, job.c.route, ENDED_OF_ROUTE)}
        routes |= set(db.execute(select(job.c.route).where(OPEN_JOB).distinct()).scalars())
        destinations = {*_different(db, delivery.c.destination, OPEN_DELIVERY)}
        destinations |= {*_different(db, delivery.c.destination, FINISHED_DELIVERY)}
    return Choices(*(tuple(sorted(names)) for names in (reasons, routes, destinations)))


def _different(db: Connection, column: Text, *which: Any) -> Iterator[str]:
    """The different values of a column that an index begins with: one look for each, no scan."""
    value: str | None = ""
    while value is not None:
        query = select(func.min(column)).where(column > value, *which)
        value = db.execute(query).scalar_one()
        if value is not None:
            yield value


def jobs(database: Database, wanted: Wanted, limit: int = 100, offset: int = 0) -> Page[JobSummary]:
    """Jobs, the newest first."""
    order = job.c.queued_at.desc(), job.c.id.desc()
    with database.reading() as db:
        which = Search(database, db, _without_index).jobs(wanted)
        query = JOB_SUMMARIES.where(which).order_by(*order).limit(limit).offset(offset)
        lines = tuple(to_job_summary(row) for row in db.execute(query))
        if _says_total(lines, limit, offset):
            return Page(lines, offset + len(lines), limit, offset)
        ids = with_series(wanted, select(job.c.id))
        ids = ids.where(Search(database, db, with_index).jobs(wanted))
        return Page(lines, counted(db, ids), limit, offset)


def job_ids(database: Database, wanted: Wanted, most: int = 1000) -> tuple[int, ...]:
    """The jobs that an action on the whole filter is about, the oldest first."""
    query = with_series(wanted, select(job.c.id))
    with database.reading() as db:
        which = Search(database, db, with_index).jobs(wanted)
        return tuple(db.execute(query.where(which).order_by(job.c.id).limit(most)).scalars())


def find_series(
    database: Database, wanted: Wanted, limit: int = 50, offset: int = 0
) -> Page[SeriesSummary]:
    """Received series with what became of them, the newest first; none of a self-test."""
    order = series.c.last_at.desc(), series.c.id.desc()
    with database.reading() as db:
        search = Search(database, db, _without_index)
        newest = select(series.c.id).where(search.series(wanted))
        query = newest.order_by(*order).limit(limit).offset(offset)
        lines = series_summaries(db, db.execute(query).scalars().all())
        if _says_total(lines, limit, offset):
            return Page(lines, offset + len(lines), limit, offset)
        ids = select(series.c.id).where(replace(search, common=with_index).series(wanted))
        return Page(lines, counted(db, ids), limit, offset)


def series_summaries(db: Connection, ids: Sequence[int]) -> tuple[SeriesSummary, ...]:
    """These series, in this order."""
    times = (series.c.first_at, series.c.last_at, series.c.purged_at)
    rows = {
        row.subject_series_id: row
        for row in db.execute(select(*SUBJECT, *times).where(series.c.id.in_(ids)))
    }
    of_instances = select(instance.c.series_id, func.count(instance.c.instance_uid.distinct()))
    of_instances = of_instances.where(instance.c.series_id.in_(ids)).group_by(instance.c.series_id)
    counts = {row[0]: int(row[1]) for row in db.execute(of_instances)}
    brought = select(arrival.c.series_id, arrival.c.calling_ae, arrival.c.state)
    brought = brought.where(arrival.c.series_id.in_(ids)).order_by(arrival.c.id)
    peers: dict[int, list[Any]] = {series_id: [] for series_id in ids}
    for peer in db.execute(brought):
        peers[peer.series_id].append(peer)
    summaries: dict[int, list[JobSummary]] = {series_id: [] for series_id in ids}
    for row in db.execute(JOB_SUMMARIES.where(job.c.series_id.in_(ids)).order_by(job.c.id.desc())):
        summaries[row.subject_series_id].append(to_job_summary(row))
    return tuple(
        SeriesSummary(
            subject=to_record(Subject, rows[series_id], "subject_"),
            first_at=rows[series_id].first_at,
            last_at=rows[series_id].last_at,
            purged_at=rows[series_id].purged_at,
            instances=counts.get(series_id, 0),
            senders=tuple(dict.fromkeys(peer.calling_ae for peer in peers[series_id])),
            arriving=any(peer.state == ArrivalState.ARRIVING for peer in peers[series_id]),
            jobs=tuple(summaries[series_id]),
        )
        for series_id in ids
    )


def with_series(wanted: Wanted, of_jobs: Select[Any]) -> Select[Any]:
    """A query of jobs, with their series where the filter asks for something of these."""
    if not wanted.of_series:
        return of_jobs
    return of_jobs.join(series, series.c.id == job.c.series_id)


def begins(database: Database, column: ColumnElement[str], text: str) -> ColumnElement[bool]:
    """That a text begins so, in the words in which each database uses its index."""
    if database.is_sqlite:
        return and_(column >= text, column < text + LAST)
    return column.startswith(text, autoescape=True)


@dataclass(frozen=True)
class Search:
    """Puts together what a search asks for, looking how common it is.

    `common` is how a column is asked for what many have: by its index, or not.
    """

    database: Database
    db: Connection
    common: Callable[[Text], Text]
    described: dict[str, Mapping[str, int]] = field(default_factory=dict)  # looked up already

    def jobs(self, wanted: Wanted) -> ColumnElement[bool]:
        conditions = [
            *self._of_series(wanted),
            *_of_jobs(wanted),
            *_within(job.c.queued_at, wanted),
        ]
        if wanted.sender:
            conditions.append(self._brought_by(wanted.sender, arrival.c.id, job.c.arrival_id))
        return and_(true(), *conditions)

    def series(self, wanted: Wanted) -> ColumnElement[bool]:
        # As a list, which is made once; an EXISTS would go through the self-tests for each series.
        tests = select(selftest.c.series_uid).where(selftest.c.series_uid.is_not(None))
        conditions = [*self._of_series(wanted), series.c.series_uid.not_in(tests)]
        about_jobs = _of_jobs(wanted)
        if about_jobs:
            conditions.append(self._with_job(wanted, and_(*about_jobs)))
        if wanted.sender:
            conditions.append(self._brought_by(wanted.sender, arrival.c.series_id, series.c.id))
        return and_(true(), *conditions, *_within(series.c.last_at, wanted))

    def deliveries(self, wanted: Wanted) -> ColumnElement[bool]:
        """Held deliveries: their own reason and destination, and the jobs that made them."""
        conditions = [HELD_DELIVERY, *_within(delivery.c.queued_at, wanted)]
        if wanted.states and JobState.HELD not in wanted.states:
            conditions.append(false())
        equal = {delivery.c.reason: wanted.reason, delivery.c.destination: wanted.destination}
        conditions += [column == value for column, value in equal.items() if value]
        about = replace(wanted, states=(), reason="", destination="", since=None, until=None)
        if about != Wanted():
            made_by = with_series(about, select(job.c.id))
            made_by = made_by.where(job.c.derived_id == delivery.c.derived_id, self.jobs(about))
            conditions.append(made_by.exists())
        return and_(*conditions)

    def _with_job(self, wanted: Wanted, which: ColumnElement[bool]) -> ColumnElement[bool]:
        """Series with such a job, or whose result is held on its way."""
        theirs = select(job.c.series_id).where(which)
        held = self._with_held(wanted)
        if self._is_common(select(job.c.id).where(which)):
            having = exists().where(job.c.series_id == series.c.id, which)
            return having if held is None else or_(having, series.c.id.in_(held))
        return series.c.id.in_(theirs if held is None else union(theirs, held))

    def _with_held(self, wanted: Wanted) -> Select[Any] | None:
        """Series of held deliveries, where it is asked for what may be one of theirs."""
        if not (wanted.reason or JobState.HELD in wanted.states):
            return None
        names = ("states", "kind", "reason", "route", "destination")
        about = Wanted(**{name: getattr(wanted, name) for name in names})
        results = select(derived.c.series_id).join(delivery, delivery.c.derived_id == derived.c.id)
        return results.where(self.deliveries(about))

    def _brought_by(
        self, sender: str, of_arrival: ColumnElement[int], here: Column[int]
    ) -> ColumnElement[bool]:
        """That a sender has brought it: this column of an arrival is that one of the row."""
        mine = arrival.c.calling_ae == sender
        if self._is_common(select(arrival.c.id).where(mine)):
            theirs = _without_index(arrival.c.calling_ae) == sender
            brought = select(arrival.c.id).where(of_arrival == here, theirs)
            return brought.correlate(here.table).exists()
        return here.in_(select(of_arrival).where(mine))

    def _of_series(self, wanted: Wanted) -> list[ColumnElement[bool]]:
        conditions: list[ColumnElement[bool]] = []
        if wanted.text:
            conditions.append(self._any_of(wanted.text))
        if wanted.accession:
            conditions.append(self._one_of(self._begins(series.c.accession, wanted.accession)))
        if wanted.patient_id:
            conditions.append(self._one_of(self._begins(series.c.patient_id, wanted.patient_id)))
        if wanted.name:
            conditions.append(self._one_of(self._named(wanted.name)))
        conditions += _studied(wanted)
        if wanted.description:
            conditions.append(self._described(wanted.description))
        if wanted.uid:
            conditions.append(series.c.id.in_(_with_uid(wanted.uid)))
        return conditions

    def _any_of(self, text: str) -> ColumnElement[bool]:
        """Each by its own index where that is quick: one list of ids, put together from three."""
        parts = (
            self._begins(series.c.accession, text),
            self._begins(series.c.patient_id, text),
            self._named(text),
        )
        if any(self._is_common(self._ids(part)) for part in parts):
            return or_(*(part(self.common) for part in parts))
        return series.c.id.in_(union(*(self._ids(part) for part in parts)))

    def _one_of(self, part: Part) -> ColumnElement[bool]:
        return part(self.common if self._is_common(self._ids(part)) else with_index)

    def _ids(self, part: Part) -> Select[Any]:
        return select(series.c.id).where(part(with_index))

    def _named(self, text: str) -> Part:
        return self._begins_with_one(series.c.name_key, sought_keys(text))

    def _begins(self, column: Text, text: str) -> Part:
        """Numbers of patients and requests may begin with letters, typed as people like."""
        typed = tuple(dict.fromkeys((text, text.upper(), text.lower())))
        return self._begins_with_one(column, typed)

    def _begins_with_one(self, column: Text, texts: Sequence[str]) -> Part:
        return lambda how: or_(
            false(), *(begins(self.database, how(column), text) for text in texts)
        )

    def _described(self, text: str) -> ColumnElement[bool]:
        """Descriptions repeat: whoever contains the text is found among the different ones."""
        sought = text.casefold()
        if sought not in self.described:
            query = select(series.c.description, func.count()).group_by(series.c.description)
            rows = self.db.execute(query)
            self.described[sought] = {d: int(n) for d, n in rows if sought in d.casefold()}
        counts = self.described[sought]
        how = self.common if sum(counts.values()) > COMMON else with_index
        return how(series.c.description).in_(tuple(counts)[:MOST_DESCRIPTIONS])

    def _is_common(self, which: Select[Any]) -> bool:
        return self.db.execute(which.limit(1).offset(COMMON)).first() is not None


def _studied(wanted: Wanted) -> list[ColumnElement[bool]]:
    """Studies of a day, or of a range of days: one without a date is of none."""
    date, first, last = series.c.study_date, wanted.study_from, wanted.study_to
    on = [date == wanted.study_date] if wanted.study_date else []
    return on + ([date.between(first or "0", last or LAST)] if first or last else [])


def _within(at: ColumnElement[float], wanted: Wanted) -> list[ColumnElement[bool]]:
    since = [at >= wanted.since] if wanted.since is not None else []
    return since + ([at < wanted.until] if wanted.until is not None else [])


def _of_jobs(wanted: Wanted) -> list[ColumnElement[bool]]:
    equal = {job.c.kind: wanted.kind, job.c.reason: wanted.reason}
    conditions = [column == value for column, value in equal.items() if value]
    if wanted.route:  # its index lists routes; few have so few jobs that it would find them
        conditions.append(_without_index(job.c.route) == wanted.route)
    if wanted.reason:
        conditions.append(and_(HAS_REASON))  # the words of its index
    if wanted.states:
        conditions.append(_states(wanted.states))
    if wanted.destination:
        goes_there = and_(want.c.job_id == job.c.id, want.c.destination == wanted.destination)
        conditions.append(exists().where(goes_there))
    return conditions


def _states(states: tuple[JobState, ...]) -> ColumnElement[bool]:
    """The states, with the words of the index that knows them."""
    which = job.c.state.in_(states)
    if all(state in UNFINISHED for state in states):
        return and_(OPEN_JOB, which)
    if all(state in PEOPLE for state in states):
        return and_(ENDED_JOB, NEEDS_JOB, which)
    if not any(state in UNFINISHED for state in states):
        return and_(ENDED_JOB, which)
    return which


class _Plain(ColumnElement[str]):
    """A column whose index SQLite is not to take; PostgreSQL knows how common a value is."""

    inherit_cache = True
    _traverse_internals = [("column", InternalTraversal.dp_clauseelement)]

    def __init__(self, column: Text) -> None:
        self.column = column
        self.type = column.type


@compiles(_Plain)
def _as_it_is(element: _Plain, compiler: SQLCompiler, **options: Any) -> str:
    return compiler.process(element.column, **options)


@compiles(_Plain, "sqlite")
def _hidden(element: _Plain, compiler: SQLCompiler, **options: Any) -> str:
    return f"+{compiler.process(element.column, **options)}"


def _without_index(column: Text) -> Text:
    return _Plain(column)


def with_index(column: Text) -> Text:
    """As it is: the database may use the index of a column."""
    return column


def _with_uid(uid: str) -> Any:
    """The received series that a UID belongs to: its own, its study's, or of what was made."""
    own = select(series.c.id).where(or_(series.c.series_uid == uid, series.c.study_uid == uid))
    brought = select(instance.c.series_id).where(instance.c.instance_uid == uid)
    results = select(derived.c.series_id).where(derived.c.series_uid == uid)
    slices = select(derived.c.series_id).join(derived_instance)
    return own.union(brought, results, slices.where(derived_instance.c.instance_uid == uid))


def _says_total(lines: tuple[object, ...], limit: int, offset: int) -> bool:
    """True where a page is the last one, so that nothing has to be counted."""
    return len(lines) < limit and bool(lines or offset == 0)


def jobs_with_deliveries(
    database: Database, ids: Sequence[int]
) -> tuple[tuple[Job, tuple[Delivery, ...]], ...]:
    """These jobs, in this order; one that is gone is left out."""
    derived = select(job.c.derived_id).where(job.c.id.in_(ids), job.c.derived_id.is_not(None))
    of_these = delivery_rows().where(delivery.c.derived_id.in_(derived)).order_by(delivery.c.id)
    with database.reading() as db:
        jobs = {row.id: to_job(row) for row in db.execute(JOBS.where(job.c.id.in_(ids)))}
        deliveries: dict[int, list[Delivery]] = {}
        for row in db.execute(of_these):
            deliveries.setdefault(row.derived_id, []).append(to_delivery(row))
    in_order = (jobs[job_id] for job_id in ids if job_id in jobs)
    return tuple((job, tuple(deliveries.get(job.derived_id or 0, ()))) for job in in_order)


def needing(database: Database, limit: int = 50, offset: int = 0) -> Page[Need]:
    """The jobs and deliveries that wait for a person, the newest first."""
    jobs = and_(NEEDS_JOB, job.c.state.in_(PEOPLE), job.c.kind != SELFTEST)
    held = HELD_DELIVERY
    most = limit + offset
    with database.reading() as db:
        total = counted(db, select(job.c.id).where(jobs))
        total += counted(db, select(delivery.c.id).where(held))
        # The ids first: only what is shown is worth a look at its series.
        newest = select(job.c.id).where(jobs).order_by(job.c.finished_at.desc(), job.c.id.desc())
        ids = db.execute(newest.limit(most)).scalars().all()
        rows = db.execute(JOB_SUMMARIES.where(job.c.id.in_(ids)))
        needs = [_need_of_job(to_job_summary(row)) for row in rows]
        needs += _held_deliveries(db, held, most)
        needs.sort(key=lambda need: (need.since, need.id), reverse=True)
        shown = tuple(needs[offset:most])
        gone = without_files(db, [need.id for need in shown if need.what == "job"])
    shown = tuple(replace(need, is_gone=need.what == "job" and need.id in gone) for need in shown)
    return Page(shown, min(total, MOST_COUNTED), limit, offset)


def need_groups(
    database: Database, wanted: Wanted, limit: int = 50, offset: int = 0
) -> tuple[NeedGroup, ...]:
    """Needs of a person under a filter, by their reason; the group with the newest first.

    `limit` and `offset` are of each group.
    """
    states = tuple(state for state in wanted.states if state in PEOPLE) or PEOPLE
    with database.reading() as db:
        search = Search(database, db, with_index)
        jobs = and_(search.jobs(replace(wanted, states=states)), job.c.kind != SELFTEST)
        deliveries = search.deliveries(wanted)
        groups = _groups_of_jobs(db, partial(with_series, wanted), jobs, limit, offset)
        groups += _groups_of_deliveries(db, deliveries, limit, offset)
    newest_first = sorted(groups, key=lambda group: group[0], reverse=True)
    return tuple(group for _, group in newest_first)


def _groups_of_jobs(
    db: Connection,
    with_series: Callable[[Select[Any]], Select[Any]],
    which: ColumnElement[bool],
    limit: int,
    offset: int,
) -> list[tuple[float, NeedGroup]]:
    """Each group with the time of its newest job."""
    newest, in_all = func.max(job.c.finished_at), func.count()
    columns = job.c.state, job.c.reason, in_all, func.count(job.c.series_id.distinct()), newest
    query = with_series(select(*columns)).where(which)
    groups = []
    for state, reason, total, of_series, at in db.execute(query.group_by(*columns[:2])).all():
        mine = and_(which, job.c.state == state, job.c.reason == reason)
        ids = with_series(select(job.c.id)).where(mine)
        ids = ids.order_by(job.c.finished_at.desc(), job.c.id.desc()).limit(limit).offset(offset)
        needs = Page(_needs_of_jobs(db, db.execute(ids).scalars().all()), total, limit, offset)
        groups.append((at, NeedGroup("job", JobState(state), reason, of_series, needs)))
    return groups


def _needs_of_jobs(db: Connection, ids: Sequence[int]) -> tuple[Need, ...]:
    """These jobs, in this order."""
    rows = {row.id: row for row in db.execute(JOB_SUMMARIES.where(job.c.id.in_(ids)))}
    gone = without_files(db, ids)
    needs = (_need_of_job(to_job_summary(rows[job_id])) for job_id in ids)
    return tuple(replace(need, is_gone=need.id in gone) for need in needs)


def _groups_of_deliveries(
    db: Connection, which: ColumnElement[bool], limit: int, offset: int
) -> list[tuple[float, NeedGroup]]:
    columns = delivery.c.id, delivery.c.reason, derived.c.series_id, delivery.c.finished_at
    query = select(*columns).join(derived, derived.c.id == delivery.c.derived_id).where(which)
    newest = query.order_by(delivery.c.finished_at.desc(), delivery.c.id.desc())
    by_reason: dict[str, list[Any]] = {}
    for row in db.execute(newest):  # whose job made each is a long way: it is gone once
        by_reason.setdefault(row.reason, []).append(row)
    groups = []
    for reason, rows in by_reason.items():
        needs = _needs_of_deliveries(db, [row.id for row in rows[offset : offset + limit]])
        page = Page(tuple(needs), len(rows), limit, offset)
        of_series = len({row.series_id for row in rows})
        group = NeedGroup("delivery", DeliveryState.HELD, reason, of_series, page)
        groups.append((rows[0].finished_at, group))
    return groups


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


def _need(what: str, row: JobSummary | Delivery, **more: Any) -> Need:
    return Need(
        what=what,
        id=row.id,
        state=row.state,
        reason=row.reason,
        sentence=row.sentence,
        since=row.finished_at or row.queued_at,
        **more,
    )


def _need_of_job(line: JobSummary) -> Need:
    of_job = {"sender": line.sender, "route": line.route, "subject": line.subject}
    return _need("job", line, job_id=line.id, destination="", **of_job)


def _held_deliveries(
    db: Connection, held: ColumnElement[bool], limit: int, offset: int = 0
) -> list[Need]:
    newest = delivery.c.finished_at.desc(), delivery.c.id.desc()
    query = select(delivery.c.id).where(held).order_by(*newest).limit(limit).offset(offset)
    return _needs_of_deliveries(db, db.execute(query).scalars().all())


def _needs_of_deliveries(db: Connection, ids: Sequence[int]) -> list[Need]:
    """These held deliveries, in this order."""
    rows = {row.id: row for row in db.execute(delivery_summaries().where(delivery.c.id.in_(ids)))}
    lines = [to_delivery_summary(rows[delivery_id]) for delivery_id in ids]
    makers = _makers(db, [line.job_id for line in lines if line.job_id is not None])
    return [_need_of_delivery(line, *makers.get(line.job_id or 0, ("", ""))) for line in lines]


def _makers(db: Connection, ids: Collection[int]) -> dict[int, tuple[str, str]]:
    """Sender and route of these jobs."""
    query = select(job.c.id, arrival.c.calling_ae, job.c.route).where(job.c.id.in_(ids))
    rows = db.execute(query.join(arrival, arrival.c.id == job.c.arrival_id))
    return {row.id: (row.calling_ae, row.route) for row in rows}


def _need_of_delivery(line: DeliverySummary, sender: str, route: str) -> Need:
    of_job = {"sender": sender, "route": route, "subject": line.subject}
    destination = line.delivery.destination
    return _need("delivery", line.delivery, job_id=line.job_id, destination=destination, **of_job)
