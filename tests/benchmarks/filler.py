"""Fills a database as a department does in three months: every table, every state, until now."""

import random
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from storage.database import FILE_NAME, Database, name_key
from storage.retention import ASSOCIATION_DAYS
from storage.schema import (
    arrival,
    arrival_association,
    association,
    attempt,
    delivery,
    derived,
    job,
    series,
    want,
)
from tests.benchmarks import filler_site
from tests.benchmarks.filler_site import DAY, DAYS, DESTINATIONS, write, write_many

CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
SENDERS = ("CT1", "CT2", "CT3", "ROUTER", "WORKSTATION", "CT_OLD")
FAMILIES = ("Meyer", "Müller", "García", "Ångström", "O'Neill", "Yamada", "Ng", "Diop")
DESCRIPTIONS = ("Thorax 5.0 B31f", "Abdomen 5.0 Br40", "Schädel 4.0", "Chest w/o 3.0", "HWS 2.0")
DIGEST = "substr('" + "0" * 64 + "', 1, 64 - length('' || (s.id * 10 + n))) || (s.id * 10 + n)"
PLACE = f"'received/' || (s.id % 256) || '/' || s.id || '/' || {DIGEST} || '.dcm'"
# Out of a thousand jobs; the rest succeeded.
STATES = {"refused": 120, "failed": 10, "held": 15, "cancelled": 15}
REASONS = {"refused": "TOO_FEW_SLICES", "failed": "ValueError", "held": "MISSING_SLICES"}
OPEN = 8  # arrivals
LAST = 600.0  # seconds from the first instance of a series to its last delivery
PER_SERIES = 10  # instances, and twice as many in its result

# What there are millions of is made by the database itself, in seconds.
NUMBERS = "WITH RECURSIVE numbers(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n < {})"
OF_SERIES = NUMBERS.format(PER_SERIES - 1)
OF_RESULT = NUMBERS.format(2 * PER_SERIES - 1)
INSTANCES = f"""
    INSERT INTO instance (id, series_id, instance_uid, sop_class_uid, transfer_syntax, digest, size,
                          path, received_at)
    {OF_SERIES}
    SELECT s.id * {PER_SERIES} + n, s.id, '1.2.826.0.1.3680043.10.3.' || s.id || '.' || n, '{CT}',
           '{EXPLICIT}', {DIGEST}, 526000,
           CASE WHEN s.purged_at IS NULL THEN {PLACE} END, s.first_at + 4 * n
    FROM series s CROSS JOIN numbers ORDER BY s.id, n
"""
BROUGHT = """
    INSERT INTO arrival_instance (arrival_id, instance_id, brought_at)
    SELECT a.id, i.id, a.last_at FROM arrival a JOIN instance i ON i.series_id = a.series_id
"""
USED = f"""
    INSERT INTO job_instance (job_id, instance_id, rank)
    SELECT j.id, i.id, i.id - {PER_SERIES} * j.id FROM job j
    JOIN instance i ON i.series_id = j.series_id
"""
SLICES = f"""
    INSERT INTO derived_instance (id, derived_id, instance_uid, sop_class_uid, path, digest,
                                  generated, series_uid, kind)
    {OF_RESULT}
    SELECT d.id * {2 * PER_SERIES} + n, d.id, d.series_uid || '.' || n, '{CT}',
           n || '.dcm', 'd' || d.id || '.' || n, n % 2, d.series_uid, 'image'
    FROM derived d CROSS JOIN numbers ORDER BY d.id, n
"""
LEDGER = """
    INSERT INTO delivery_instance (delivery_id, derived_instance_id, status, stored, offers,
                                   answered_at)
    SELECT d.id, i.id, 0, 1, 1, d.finished_at FROM delivery d
    JOIN derived_instance i ON i.derived_id = d.derived_id WHERE d.state = 'sent'
"""


@dataclass(frozen=True)
class One:
    """One job with its series, at its time."""

    id: int
    at: float
    state: str
    sender: str
    destination: str
    delivered: str

    @property
    def is_derived(self) -> bool:
        return self.state == "succeeded"


@dataclass(frozen=True)
class Filled:
    """A filled database, to be copied."""

    file: Path
    jobs: int
    now: float


def filled(folder: Path, jobs: int) -> Filled:
    """Make one, as of this moment."""
    now = time.time()
    with closing(Database.for_folder(folder)) as database:
        database.migrate()
        fill(database, jobs, now)
    return Filled(folder / FILE_NAME, jobs, now)


def fill(database: Database, jobs: int, now: float, seed: int = 1) -> None:
    """Write `jobs` jobs, one a series, and everything that belongs to them."""
    chance = random.Random(seed)
    every = [_one(number, jobs, now, chance) for number in range(1, jobs + 1)]
    made = [one for one in every if one.is_derived]
    recent = [one for one in every if one.at > now - ASSOCIATION_DAYS * DAY]  # others are forgotten
    write(database, association, _associations(recent, chance))
    write(database, series, (_series(one, now, chance) for one in every))
    write_many(database, INSTANCES)
    write(database, arrival, (_arrival(one, is_open=one.id > jobs - OPEN) for one in every))
    write_many(database, BROUGHT)
    write(
        database,
        arrival_association,
        ({"arrival_id": one.id, "association_id": one.id} for one in recent),
    )
    write(database, derived, (_derived(one, now) for one in made))
    write_many(database, SLICES)
    write(database, job, (_job(one) for one in every))
    write(database, want, (_want(one) for one in every))
    write_many(database, USED)
    write(database, attempt, (_attempt(one) for one in every if one.state != "queued"))
    write(database, delivery, (_delivery(one) for one in made))
    write_many(database, LEDGER)
    filler_site.fill(database, jobs, now, chance)


def _one(number: int, jobs: int, now: float, chance: random.Random) -> One:
    at = now - DAYS * DAY * (1.0 - number / jobs) - 400.0
    state = "succeeded"
    left = chance.randrange(1000)
    for name, share in STATES.items():
        if left < share:
            state = name
            break
        left -= share
    if number > jobs - 40:
        state = "queued" if number > jobs - 38 else "running"
    is_open = number > jobs - 400 and number % 4 == 0
    delivered = "queued" if is_open else "held" if number % 211 == 0 else "sent"
    return One(
        number, at, state, chance.choice(SENDERS[:4]), chance.choice(DESTINATIONS), delivered
    )


def _series(one: One, now: float, chance: random.Random) -> dict[str, object]:
    patient = one.id // 3
    name = f"{chance.choice(FAMILIES)}{patient % 997}^Test^{patient}"
    return {
        "id": one.id,
        "series_uid": f"1.2.826.1.{one.id}",
        "study_uid": f"1.2.826.2.{one.id // 2}",
        "modality": "CT",
        "patient_id": f"P{patient:07d}",
        "patient_name": name,
        "name_key": name_key(name),
        "accession": f"A{one.id // 2:08d}",
        "study_date": f"2026{1 + one.id % 12:02d}{1 + one.id % 28:02d}",
        "description": chance.choice(DESCRIPTIONS),
        "first_at": one.at,
        "last_at": one.at + 40,
        "purged_at": _purged_at(one, now),
    }


def _purged_at(one: One, now: float) -> float | None:
    """What waits for a person stays; results go after a week, what has none after a day."""
    if one.state in ("held", "failed", "queued", "running") or one.delivered == "held":
        return None
    at = one.at + (7 if one.is_derived else 1) * DAY + LAST
    return at if at < now else None


def _arrival(one: One, is_open: bool) -> dict[str, object]:
    return {
        "id": one.id,
        "series_id": one.id,
        "calling_ae": one.sender,
        "called_ae": "MIDSLICE",
        "state": "arriving" if is_open else "complete",
        "first_at": one.at,
        "last_at": one.at + 40,
        "completed_at": None if is_open else one.at + 70,
        "evidence": "{}" if is_open else '{"rule": "quiet"}',
        "brought": 0 if is_open else PER_SERIES,
    }


def _want(one: One) -> dict[str, object]:
    goes_to = {
        "destination": one.destination,
        "rank": 0,
        "withdrawn": int(one.state == "cancelled"),
    }
    return {"job_id": one.id, "arrival_id": one.id, **goes_to}


def _associations(every: Iterable[One], chance: random.Random) -> Iterator[dict[str, object]]:
    for one in every:
        is_rejected = one.id % 40 == 0
        yield {
            "id": one.id,
            "node": "bench",
            "calling_ae": f"NEW{chance.randrange(5)}" if is_rejected else one.sender,
            "called_ae": "MIDSLICE",
            "address": f"10.0.0.{SENDERS.index(one.sender)}",
            "opened_at": one.at,
            "ended_at": one.at + 41,
            "how": "rejected" if is_rejected else "released",
            "reason": "calling AE title not recognised" if is_rejected else "",
        }


def _job(one: One) -> dict[str, object]:
    started = None if one.state == "queued" else one.at + 90
    ended = None if one.state in ("queued", "running") else one.at + 150 + one.id % 60
    return {
        "id": one.id,
        "kind": "infer",
        "key": f"{one.id:064x}",
        "state": one.state,
        "reason": REASONS.get(one.state, ""),
        "sentence": "A sentence as long as they are, which says what is wrong and what to do.",
        "series_id": one.id,
        "arrival_id": one.id,
        "stack": "axial 512x512",
        "route": "ct-slices",
        "model": "midslice",
        "version": "1.0",
        "parameters": '{"factor": 4}',
        "priority": 5,
        "queued_at": one.at + 70,
        "due_at": one.at + 70,
        "started_at": started,
        "finished_at": ended,
        "worker": "worker-1" if one.state == "running" else None,
        "lease_until": one.at + 1e9 if one.state == "running" else None,
        "attempt": 0 if one.state == "queued" else 1,
        "progress": 1.0 if one.is_derived else 0.0,
        "derived_id": one.id if one.is_derived else None,
        "record": "{}",
    }


def _attempt(one: One) -> dict[str, object]:
    return {
        "job_id": one.id,
        "number": 1,
        "worker": "worker-1",
        "started_at": one.at + 90,
        "ended_at": None if one.state == "running" else one.at + 150,
        "outcome": one.state,
    }


def _derived(one: One, now: float) -> dict[str, object]:
    return {
        "id": one.id,
        "series_id": one.id,
        "series_uid": f"2.25.{one.id}",
        "folder": f"derived/{one.id}-1",
        "edition": 1,
        "made_at": one.at + 150,
        "offered_at": one.at + 151,
        "superseded_at": one.at + 500 if one.id % 50 == 0 else None,
        "purged_at": _purged_at(one, now),
    }


def _delivery(one: One) -> dict[str, object]:
    is_open = one.delivered == "queued"
    return {
        "id": one.id,
        "derived_id": one.id,
        "destination": one.destination,
        "state": one.delivered,
        "reason": "REFUSED_BY_PEER" if one.delivered == "held" else "",
        "sentence": "",
        "priority": 5,
        "queued_at": one.at + 150,
        "due_at": one.at + 150,
        "started_at": None if is_open else one.at + 151,
        "finished_at": None if is_open else one.at + 170,
        "attempt": 0 if is_open else 1,
        "failures": 0,
    }
