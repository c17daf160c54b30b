"""No statement of a claim, a sweep, a start, a page or the receive path reads a whole table."""

import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import event
from sqlalchemy.pool import Pool

from node.rules.reasons import FUTILE
from storage import recovery, retention, scrub
from storage.database import Database
from storage.files import Files
from storage.queries import figures, overview
from storage.records import JobState
from storage.site import notices, peers
from tests.benchmarks import filler, pages
from tests.conftest import Clock
from tests.unit.storage.stored import INFER, Stored, read_header

JOBS = 500
HALF = JOBS // 2
# A row, or several, for each series, instance, association or event that ever was.
BIG = (
    *("series", "instance", "arrival", "arrival_instance", "arrival_association", "association"),
    *("job", "job_instance", "want", "attempt", "derived", "derived_instance"),
    *("delivery", "delivery_instance", "audit", "echo"),
)
SCAN = re.compile(rf"SCAN (?:{'|'.join(BIG)})\b")

# Statements that do read one, each with the reason. A part of the statement, and the step.
ALLOWED = (
    # Indexes of part of a table, which hold what is open, kept, held or new; nothing else is read.
    ("", r"USING (COVERING )?INDEX ix_(job_(due|needs|requeued)|delivery_open|arrival_open)"),
    ("", r"USING (COVERING )?INDEX ix_(series|derived)_(kept|purging)"),
    # Associations are kept for a month.
    ("association.how = 'rejected'", r"INDEX ix_association_calling_ae_opened_at"),
    # What is counted by its state is in an index of that alone: milliseconds for 100,000.
    ("GROUP BY job.state", r"COVERING INDEX ix_job_ended"),
    ("GROUP BY delivery.state", r"COVERING INDEX ix_delivery_ended"),
    # The different descriptions, with their numbers: an index of nothing but these.
    ("GROUP BY series.description", r"COVERING INDEX ix_series_description"),
    # The newest first, or a count that stops at a thousand: of what many have, back in time.
    ("LIMIT", r"INDEX ix_(job_queued_at|job_finished_at|series_last_at|audit_at|echo_at)"),
    ("LIMIT", r"COVERING INDEX ix_series_series_uid"),
    ("ORDER BY audit.id DESC", r"SCAN audit$"),
)


@pytest.fixture(scope="module")
def filled(migrated_sqlite: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stored]:
    """A department's database, but of days instead of years: plans do not know how many rows."""
    folder = tmp_path_factory.mktemp("filled")
    file = folder / "midslice.db"
    file.write_bytes(migrated_sqlite.read_bytes())
    database = Database(f"sqlite:///{file}")
    filler.fill(database, JOBS, pages.NOW)
    yield Stored(database, Files(folder, 0), Clock(pages.NOW))
    database.close()


def receive(stored: Stored) -> None:
    """Two instances of one series, and one of them again."""
    for uid in ("9.1", "9.2", "9.1"):
        stored.receive(uid, series_uid="9", study_uid="9")


def close(stored: Stored) -> None:
    """All that closes an arrival asks for, and the job that comes of it."""
    receive(stored)
    archive, arrival = stored.archive, stored.arrival(series_uid="9")
    looks = (archive.brought_by_each, archive.other_studies, archive.senders_of_other_studies)
    for look in (*looks, archive.brought_by_others, archive.beside):
        look(arrival)
    archive.instances(arrival.id)
    archive.newest_of_peers(arrival.series_uid)
    archive.series_by_uid(arrival.series_uid)
    stored.queue.waiting_beside(arrival.study_uid, arrival.series_id)
    new = stored.new_job(arrival, "new", priority=1)
    stored.queue.complete(arrival.id, {}, [new], stacks=["axial 512x512"])


def work(stored: Stored) -> None:
    """A job from its claim to the last answer of a destination."""
    if not any(job.key == "new" for job in stored.jobs(JobState.QUEUED)):
        close(stored)
    job = stored.claim()
    stored.queue.renew(job, 0.5, "predicting", 1, 2)
    stored.queue.instances(job.id), stored.queue.beside(job)
    stored.queue.kept_series(job.series_id), stored.queue.marks(job.series_id)
    stored.queue.succeed(job, stored.derive(job, "2.25.99"))
    stored.deliver()


def associate(stored: Stored) -> None:
    association = stored.archive.associated("CT1", "MIDSLICE", "10.0.0.1")
    stored.archive.dissociated(association, "released")


def retain(stored: Stored) -> None:
    """A sweep of retention, which finds what to remove."""
    gone = retention.expired(stored.database, pages.NOW, 7, 1)
    retention.purge(stored.database, stored.files, gone[:2], pages.NOW)
    retention.report_held_work(stored.database, pages.NOW, 7)
    retention.forget_associations(stored.database, pages.NOW)


def scrape(stored: Stored) -> None:
    since = figures.begin(stored.database, pages.NOW - 60)
    figures.counter_delta(stored.database, since, pages.NOW)
    figures.gauges(stored.database)
    overview.counts(stored.database), overview.not_closed(stored.database)
    notices.count(stored.database)


def start(stored: Stored) -> None:
    stored.archive.lose_associations()
    stored.queue.recover(), stored.ledger.recover()
    recovery.recover(stored.archive, read_header, since=pages.NOW)


PATHS: dict[str, Callable[[Stored], object]] = {
    "claim of a job": lambda stored: stored.queue.claim("w", INFER),
    "claim of an urgent job": lambda stored: stored.queue.claim("w", INFER, before=3),
    "claim of a delivery": lambda stored: stored.ledger.release(stored.start_delivery()),
    "a more urgent delivery": lambda stored: [
        stored.ledger.is_overtaken(delivery) for delivery in stored.ledger.of_job(HALF)
    ],
    "backlog": lambda stored: stored.ledger.backlog(),
    "completion sweep": lambda stored: stored.archive.arriving(),
    "requeued": lambda stored: stored.queue.requeued(),
    "receive": receive,
    "close": close,
    "work": work,
    "association": associate,
    "retention": retain,
    "scrub": lambda stored: scrub.step(stored.database, stored.files, pages.NOW, 0.001),
    "notices": lambda stored: notices.tell_new(stored.database, pages.NOW, FUTILE),
    "metrics": scrape,
    "start": start,
    "not closed": lambda stored: overview.not_closed(stored.database),
    "finished": lambda stored: overview.finished(stored.database),
    "trial of a route": lambda stored: figures.evaluation(stored.database, "ct-slices", 0.0),
    "echoes": lambda stored: peers.last_echoes(stored.database, list(filler.DESTINATIONS)),
    **{
        f"page: {name}": lambda stored, ask=ask: ask(stored.database, pages.NOW, JOBS)
        for name, ask in pages.QUERIES.items()
    },
}


def asked(stored: Stored, path: Callable[[Stored], object]) -> list[str]:
    """The statements that SQLite is given meanwhile, with their values."""
    sent: list[str] = []

    def trace(connection: object, *_: object) -> None:
        connection.set_trace_callback(sent.append)  # type: ignore[attr-defined]

    event.listen(Pool, "checkout", trace)
    try:
        path(stored)
    finally:
        event.remove(Pool, "checkout", trace)
    words = ("SELECT", "UPDATE", "DELETE", "INSERT", "WITH")
    return [statement for statement in dict.fromkeys(sent) if statement.startswith(words)]


def scans(stored: Stored, statement: str) -> list[str]:
    """The steps in which SQLite reads all rows of a big table, without a reason to."""
    with stored.database.reading() as db:
        cursor = db.connection.cursor()
        steps = [str(row[3]) for row in cursor.execute(f"EXPLAIN QUERY PLAN {statement}")]
    allowed = [step for words, step in ALLOWED if words in statement]
    whole = (step for step in steps if SCAN.search(step))
    return [step for step in whole if not any(re.search(it, step) for it in allowed)]


@pytest.mark.parametrize("path", PATHS)
def test_nothing_reads_a_whole_table(filled: Stored, path: str) -> None:
    statements = asked(filled, PATHS[path])
    assert statements or path == "page: unconfirmed, nobody proves"
    faults = {statement: scans(filled, statement) for statement in statements}
    assert not {statement: steps for statement, steps in faults.items() if steps}


def test_a_whole_table_is_noticed(filled: Stored) -> None:
    by_column = "SELECT id FROM job WHERE model = 'midslice'"
    sorted_whole = "SELECT id FROM job WHERE model = 'midslice' ORDER BY id LIMIT 1"
    assert list(itertools.chain(*(scans(filled, it) for it in (by_column, sorted_whole)))) == [
        "SCAN job",
        "SCAN job",
    ]
