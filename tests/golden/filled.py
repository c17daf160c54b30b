"""A small site with a row of each kind: what the golden answers are asked of."""

import json
import shutil
import sqlite3
from pathlib import Path

from tests.unit.storage.stored import Stored
from tests.unit.web.site import NODE, Site, site

DATABASE = Path("var") / "midslice.db"
NOW = 1_700_000_000.0  # the clock of the tests
WITHOUT_DELIVERY = "2.25.3"
UNKNOWN_ROUTE = "retired"


def fill(folder: Path, migrated: Path) -> None:
    """Write a configuration and the rows of a site into a new folder."""
    with site(folder, migrated) as served:
        _jobs(served)
        _deliveries(served.rows)
        _unfinished(served)
        configuration = served.store.config.model_dump(
            mode="json", by_alias=True, exclude_none=True
        )
    with sqlite3.connect(folder / DATABASE) as database:
        _around(database, configuration)
    database.close()


def copied(filled: Path, folder: Path) -> Path:
    """Another folder with the same rows and files."""
    shutil.copytree(filled, folder)
    return folder


def _ask(rows: Stored, key: str, **changed: object) -> int:
    """A job for a series of two instances, named after its key."""
    uid = f"1.2.3.{sum(key.encode())}"
    for number in (1, 2):
        rows.receive(f"{uid}.{number}", series_uid=uid, study_uid="1.2.3")
    arrival = rows.arrival(series_uid=uid)
    new = rows.new_job(arrival, key, **changed)
    (enqueued,) = rows.queue.complete(arrival.id, {"rule": "quiet", "quiet_seconds": 30}, [new])
    return enqueued.job_id


def _jobs(served: Site) -> None:
    """One that ended in each way."""
    rows, clock = served.rows, served.clock
    _ask(rows, "held")
    clock.now += 10
    rows.queue.hold(rows.claim(), "MISSING_SLICES", "[2] slices are missing.", {"notes": ["n"]})
    _ask(rows, "refused", route=UNKNOWN_ROUTE, destinations=())
    clock.now += 10
    rows.queue.refuse(rows.claim(), "TOO_FEW_SLICES", "It has 2 slices; 3 are needed.")
    _ask(rows, "broken", model="ours", parameters={"target_spacing_mm": 1.25})
    clock.now += 10
    rows.queue.fail(rows.claim(), "ValueError", "The model raised ValueError.", "model.py:3 run")
    number = _ask(rows, "cancelled")
    rows.queue.cancel(number, who="anna")
    clock.now += 10


def _deliveries(rows: Stored) -> None:
    """Results that are sent, held and waiting."""
    _ask(rows, "sent")
    rows.succeed("2.25.1")
    rows.deliver()
    rows.clock.now += 10
    _ask(rows, "unsent", priority=2)
    rows.succeed("2.25.2")
    delivery = rows.start_delivery()
    (first, _) = rows.ledger.unsent(delivery)
    rows.ledger.answered(delivery, first.id, 0x0122, stored=False)
    rows.ledger.hold(delivery, "REFUSED_BY_PEER", "PACS refuses: SOP Class not supported.")
    rows.clock.now += 10
    _ask(rows, "waiting")
    rows.succeed(WITHOUT_DELIVERY)
    rows.clock.now += 10


def _unfinished(served: Site) -> None:
    """What runs, waits and arrives."""
    rows = served.rows
    _ask(rows, "running")
    rows.queue.renew(rows.claim("worker-1"), 0.5, "predicting", 3, 6)
    served.clock.now += 10
    _ask(rows, "queued")
    rows.receive("1.2.3.9.1", series_uid="1.2.3.9", study_uid="1.2.4")


def _around(database: sqlite3.Connection, configuration: dict[str, object]) -> None:
    """The rows that a running node writes by itself."""
    steps = [{"name": "stored", "ok": True, "seconds": 1.5, "sentence": "6 instances."}]
    rows: dict[str, list[dict[str, object]]] = {
        "node": [{"id": NODE, "started_at": NOW, "heartbeat": NOW + 9, "state": "serving"}],
        "association": [
            {
                "node": NODE,
                "calling_ae": "SCANNER",
                "called_ae": "MIDSLICE",
                "address": "10.0.0.7",
                "opened_at": NOW - 5,
                "ended_at": NOW + (0 if reason else 5),
                "how": "rejected" if reason else "released",
                "reason": reason,
            }
            for reason in ("", "calling AE title not recognised")
        ],
        "echo": [{"destination": "pacs", "at": NOW, "ok": 1, "seconds": 0.02}],
        "reach": [{"destination": "pacs", "up": 1, "since": NOW - 60, "checked_at": NOW}],
        "configuration": [
            {
                "node": NODE,
                "applied_at": NOW,
                "text": json.dumps(configuration),
                "restart": json.dumps(["node.port"]),
                "refused_at": NOW + 60,
                "problems": json.dumps(["config.toml: node.port = 0: integer 1-65535"]),
            }
        ],
        "selftest": [
            {
                "node": NODE,
                "who": "schedule",
                "started_at": NOW,
                "finished_at": NOW + 40,
                "state": "passed",
                "series_uid": "1.2.826.9.1",
                "destination": "pacs",
                "steps": json.dumps(steps),
                "sentence": "It is stored.",
            }
        ],
        "disk": [{"node": NODE, "at": NOW, "free": 10**12, "total": 2 * 10**12}],
    }
    for table, values in rows.items():
        for value in values:
            names, marks = ", ".join(value), ", ".join("?" * len(value))
            statement = f"INSERT INTO {table} ({names}) VALUES ({marks})"
            database.execute(statement, tuple(value.values()))
