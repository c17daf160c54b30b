"""Fills a database as a department does in three months: every table, every state, until now."""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from storage.database import Database, name_key
from storage.schema import (
    arrival,
    arrival_association,
    arrival_instance,
    association,
    attempt,
    delivery,
    delivery_instance,
    derived,
    derived_instance,
    instance,
    job,
    job_instance,
    series,
    want,
)
from tests.benchmarks import filler_site
from tests.benchmarks.filler_site import DAY, DAYS, DESTINATIONS, write

CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
SENDERS = ("CT1", "CT2", "CT3", "ROUTER", "WORKSTATION", "CT_OLD")
FAMILIES = ("Meyer", "Müller", "García", "Ångström", "O'Neill", "Yamada", "Ng", "Diop")
DESCRIPTIONS = ("Thorax 5.0 B31f", "Abdomen 5.0 Br40", "Schädel 4.0", "Chest w/o 3.0", "HWS 2.0")
# Out of a thousand jobs; the rest succeeded.
STATES = {"refused": 120, "failed": 10, "held": 15, "cancelled": 15}
REASONS = {"refused": "TOO_FEW_SLICES", "failed": "ValueError", "held": "MISSING_SLICES"}
PER_SERIES = 3  # instances; a real series has a hundred times as many, in rows that no page counts


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


def fill(database: Database, jobs: int, now: float, seed: int = 1) -> None:
    """Write `jobs` jobs, one a series, and everything that belongs to them."""
    chance = random.Random(seed)
    every = [_one(number, jobs, now, chance) for number in range(1, jobs + 1)]
    made = [one for one in every if one.is_derived]
    write(database, association, _associations(every, chance))
    write(database, series, (_series(one, chance) for one in every))
    write(database, instance, (row for one in every for row in _instances(one)))
    write(database, arrival, (_arrival(one) for one in every))
    write(database, arrival_instance, (row for one in every for row in _brought(one)))
    write(
        database,
        arrival_association,
        ({"arrival_id": one.id, "association_id": one.id} for one in every),
    )
    write(database, derived, (_derived(one, now) for one in made))
    write(database, derived_instance, (row for one in made for row in _slices(one)))
    write(database, job, (_job(one) for one in every))
    write(database, want, (_want(one) for one in every))
    write(database, job_instance, (row for one in every for row in _used(one)))
    write(database, attempt, (_attempt(one) for one in every if one.state != "queued"))
    write(database, delivery, (_delivery(one) for one in made))
    write(database, delivery_instance, (row for one in made for row in _ledger(one)))
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


def _series(one: One, chance: random.Random) -> dict[str, object]:
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
        "purged_at": one.at + 8 * DAY if one.is_derived else None,
    }


def _instances(one: One) -> Iterator[dict[str, object]]:
    for number in range(PER_SERIES):
        yield {
            "id": one.id * PER_SERIES + number,
            "series_id": one.id,
            "instance_uid": f"1.2.826.3.{one.id}.{number}",
            "sop_class_uid": CT,
            "transfer_syntax": EXPLICIT,
            "digest": f"{one.id * PER_SERIES + number:064x}",
            "size": 526_000,
            "path": None,
            "received_at": one.at,
        }


def _arrival(one: One) -> dict[str, object]:
    return {
        "id": one.id,
        "series_id": one.id,
        "calling_ae": one.sender,
        "called_ae": "MIDSLICE",
        "state": "complete",
        "first_at": one.at,
        "last_at": one.at + 40,
        "completed_at": one.at + 70,
        "evidence": '{"rule": "quiet"}',
    }


def _brought(one: One) -> Iterator[dict[str, object]]:
    for number in range(PER_SERIES):
        key = {"arrival_id": one.id, "instance_id": one.id * PER_SERIES + number}
        yield {**key, "brought_at": one.at + 40}


def _want(one: One) -> dict[str, object]:
    goes_to = {
        "destination": one.destination,
        "rank": 0,
        "withdrawn": int(one.state == "cancelled"),
    }
    return {"job_id": one.id, "arrival_id": one.id, **goes_to}


def _used(one: One) -> Iterator[dict[str, object]]:
    for number in range(PER_SERIES):
        key = {"job_id": one.id, "instance_id": one.id * PER_SERIES + number}
        yield {**key, "rank": number}


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
        "purged_at": one.at + 8 * DAY if one.at + 8 * DAY < now else None,
    }


def _slices(one: One) -> Iterator[dict[str, object]]:
    for number in range(2 * PER_SERIES):
        yield {
            "id": one.id * 2 * PER_SERIES + number,
            "derived_id": one.id,
            "instance_uid": f"2.25.{one.id}.{number}",
            "sop_class_uid": CT,
            "path": f"{number:05d}.dcm",
            "digest": "d" * 64,
            "generated": number % 2,
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


def _ledger(one: One) -> Iterator[dict[str, object]]:
    if one.delivered != "sent":
        return
    for number in range(2 * PER_SERIES):
        yield {
            "delivery_id": one.id,
            "derived_instance_id": one.id * 2 * PER_SERIES + number,
            "status": 0,
            "stored": 1,
            "offers": 1,
            "answered_at": one.at + 160,
        }
