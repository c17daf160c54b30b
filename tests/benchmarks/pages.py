"""How long each query of a page takes with 100,000 series and 1,000,000 instances in the database:
a bound for each."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from storage.database import Database
from storage.queries import figures, find, overview
from storage.queries.find import Wanted, need_groups, needing
from storage.records import JobState
from storage.site import notices, peers, selftests
from storage.site.audit import Audit
from tests.benchmarks import filler
from tests.benchmarks.rig import Setting
from tests.benchmarks.table import Bound, Row, Subject

NAME = "pages"
MOST_MILLISECONDS = 20.0
DAY = 86_400.0
NOW = 1_790_000_000.0

Ask = Callable[[Database, float, int], object]


def _jobs(**wanted: Any) -> Ask:
    return lambda db, now, jobs: find.jobs(db, Wanted(**wanted))


def _series(**wanted: Any) -> Ask:
    return lambda db, now, jobs: find.find_series(db, Wanted(**wanted))


def _needs(**wanted: Any) -> Ask:
    return lambda db, now, jobs: need_groups(db, Wanted(**wanted))


# What the pages ask of the database, of the time, and of how many jobs it has.
QUERIES: dict[str, Ask] = {
    "arriving": lambda db, now, jobs: overview.arriving(db),
    "queue": lambda db, now, jobs: overview.queue(db, now, workers=2),
    "running": lambda db, now, jobs: overview.running(db, now),
    "sending": lambda db, now, jobs: overview.sending(db),
    "unconfirmed, nobody proves": lambda db, now, jobs: overview.unconfirmed(db, ()),
    "unconfirmed": lambda db, now, jobs: overview.unconfirmed(db, ("pacs",)),
    "needs a person": lambda db, now, jobs: needing(db),
    "what waits, by reason": _needs(),
    "what waits for a reason": _needs(reason="REFUSED_BY_PEER", destination="research"),
    "what waits of a sender": _needs(sender="CT2", route="ct-slices"),
    "choices of a filter": lambda db, now, jobs: find.choices(db),
    "counts of states": lambda db, now, jobs: overview.counts(db),
    "jobs, newest": _jobs(),
    "jobs, held": _jobs(states=(JobState.HELD,)),
    "jobs by reason": _jobs(reason="MISSING_SLICES"),
    "jobs of a sender": _jobs(sender="CT2"),
    "jobs of nobody": _jobs(sender="NOBODY"),
    "jobs to a destination": _jobs(destination="research"),
    "jobs of a day": lambda db, now, jobs: find.jobs(
        db, Wanted(since=now - 30 * DAY, until=now - 29 * DAY)
    ),
    "jobs, page 50": lambda db, now, jobs: find.jobs(db, Wanted(), offset=5000),
    "accession": lambda db, now, jobs: find.find_series(db, Wanted(accession=f"A{jobs // 4:08d}")),
    "patient ID": lambda db, now, jobs: find.find_series(
        db, Wanted(patient_id=f"P{jobs // 6:07d}")
    ),
    "name": _series(name="müller99"),
    "name, common": _series(name="meyer"),
    "any of these": _series(text="a0000123"),
    "any of these, common": _series(text="p"),
    "study date": _series(study_date="20260704"),
    "description": _series(description="abdomen"),
    "description, no match": _series(description="knee"),
    "sender": _series(sender="CT3"),
    "series held": _series(states=(JobState.HELD,)),
    "series by a delivery's reason": _series(reason="REFUSED_BY_PEER"),
    "UID": lambda db, now, jobs: find.find_series(db, Wanted(uid=f"2.25.{jobs // 2}")),
    "job page": lambda db, now, jobs: overview.job_detail(db, jobs // 2),
    "senders": lambda db, now, jobs: peers.senders(db, now - DAY / 2),
    "rejections": lambda db, now, jobs: peers.rejections(db, now - 30 * DAY),
    "destinations": lambda db, now, jobs: peers.destinations(db, now, filler.DESTINATIONS),
    "durations of a day": lambda db, now, jobs: figures.durations(db, now - DAY, now),
    "durations of a week": lambda db, now, jobs: figures.durations(db, now - 7 * DAY, now),
    "a day by hours": lambda db, now, jobs: figures.buckets(db, now - DAY, now, 3600.0),
    "a week by days": lambda db, now, jobs: figures.buckets(db, now - 7 * DAY, now, DAY),
    "audit": lambda db, now, jobs: Audit(db, lambda: now).list(),
    "notices": lambda db, now, jobs: notices.newest(db),
    "self-tests": lambda db, now, jobs: selftests.newest(db),
    "marks": lambda db, now, jobs: figures.change_tokens(db),
}
BOUNDS = tuple(Bound(NAME, name, MOST_MILLISECONDS) for name in QUERIES)


def measure(setting: Setting) -> Subject:
    """Milliseconds of each query, on SQLite."""
    filled = setting.make_filled()
    database = Database(f"sqlite:///{filled.file}")
    asked = {
        name: partial(_milliseconds, partial(ask, database, filled.now, filled.jobs))
        for name, ask in QUERIES.items()
    }
    for look in asked.values():
        look()  # the first one reads the file, and builds the statement
    values = setting.measure(asked)
    database.close()
    rows = tuple(Row(name, "ms", tuple(values[name])) for name in asked)
    return Subject(NAME, f"{filled.jobs} jobs on SQLite", rows)


def _milliseconds(ask: Callable[[], object]) -> float:
    began = time.perf_counter()
    ask()
    return (time.perf_counter() - began) * 1000.0
