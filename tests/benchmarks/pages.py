"""How long each query of a page takes with 100,000 jobs in the database: a bound for each."""

import time
from collections.abc import Callable
from functools import partial

from storage import durations, find, marks, notices, overview, peers, selftests, story
from storage.audit import Audit
from storage.database import Database
from storage.find import Wanted
from storage.records import JobState
from tests.benchmarks import filler
from tests.benchmarks.rig import Setting
from tests.benchmarks.table import Bound, Row, Subject

NAME = "pages"
JOBS, QUICK_JOBS = 100_000, 10_000
MOST_MILLISECONDS = 50.0
DAY = 86_400.0
NOW = 1_790_000_000.0

Ask = Callable[[], object]


def queries(database: Database, now: float, jobs: int) -> dict[str, Ask]:
    """What the pages ask, by what a person would call it."""
    named = {"database": database}
    search = partial(find.jobs, **named)
    look = partial(find.found_series, **named)
    return {
        "arriving": partial(overview.arriving, database),
        "queue": partial(overview.queue, database, now, workers=2),
        "running": partial(overview.running, database, now),
        "sending": partial(overview.sending, database),
        "unconfirmed": partial(overview.unconfirmed, database, ("pacs",)),
        "needs a person": partial(overview.needs, database),
        "counts of states": partial(overview.counts, database),
        "jobs, newest": partial(search, wanted=Wanted()),
        "jobs, held": partial(search, wanted=Wanted(states=(JobState.HELD,))),
        "jobs by reason": partial(search, wanted=Wanted(reason="MISSING_SLICES")),
        "jobs of a sender": partial(search, wanted=Wanted(sender="CT2")),
        "jobs of nobody": partial(search, wanted=Wanted(sender="NOBODY")),
        "jobs to a destination": partial(search, wanted=Wanted(destination="research")),
        "jobs of a day": partial(search, wanted=Wanted(since=now - 30 * DAY, until=now - 29 * DAY)),
        "jobs, page 50": partial(search, wanted=Wanted(), offset=5000),
        "accession": partial(look, wanted=Wanted(accession=f"A{jobs // 4:08d}")),
        "patient ID": partial(look, wanted=Wanted(patient_id=f"P{jobs // 6:07d}")),
        "name": partial(look, wanted=Wanted(name="müller99")),
        "any of these": partial(look, wanted=Wanted(text="a0000123")),
        "study date": partial(look, wanted=Wanted(study_date="20260704")),
        "description": partial(look, wanted=Wanted(description="abdomen")),
        "description, no match": partial(look, wanted=Wanted(description="knee")),
        "sender": partial(look, wanted=Wanted(sender="CT3")),
        "series held": partial(look, wanted=Wanted(states=(JobState.HELD,))),
        "UID": partial(look, wanted=Wanted(uid=f"2.25.{jobs // 2}")),
        "job page": partial(story.story, database, jobs // 2 - jobs // 2 % 211),
        "senders": partial(peers.senders, database, now - DAY / 2),
        "rejections": partial(peers.rejections, database, now - 30 * DAY),
        "destinations": partial(peers.destinations, database, now, filler.DESTINATIONS),
        "durations of a day": partial(durations.durations, database, now - DAY, now),
        "durations of a week": partial(durations.durations, database, now - 7 * DAY, now),
        "a day by hours": partial(durations.buckets, database, now - DAY, now, 3600.0),
        "a week by days": partial(durations.buckets, database, now - 7 * DAY, now, DAY),
        "audit": partial(Audit(database, lambda: now).list),
        "notices": partial(notices.newest, database),
        "self-tests": partial(selftests.history, database),
        "marks": partial(marks.marks, database),
    }


BOUNDS = tuple(
    Bound(NAME, name, MOST_MILLISECONDS) for name in queries(Database("sqlite:////x"), 0.0, 1)
)


def measure(setting: Setting) -> Subject:
    """Milliseconds of each query, on SQLite."""
    jobs = QUICK_JOBS if setting.is_quick else JOBS
    database = Database.for_folder(setting.folder)
    database.migrate()
    filler.fill(database, jobs, NOW)
    asked = {
        name: partial(_milliseconds, ask) for name, ask in queries(database, NOW, jobs).items()
    }
    for ask in asked.values():
        ask()  # the first one reads the file, and builds the statement
    values = setting.measure(asked)
    database.close()
    rows = tuple(Row(name, "ms", tuple(values[name])) for name in asked)
    return Subject(NAME, f"{jobs} jobs on SQLite", rows)


def _milliseconds(ask: Ask) -> float:
    began = time.perf_counter()
    ask()
    return (time.perf_counter() - began) * 1000.0
