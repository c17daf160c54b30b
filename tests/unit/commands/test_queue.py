"""Jobs and series: what each command says of the queue, and what an operator does to it."""

import time
from collections.abc import Callable
from pathlib import Path

from node.commands.terminal import opened
from storage.archive import Archive
from storage.files import Files
from storage.jobs import Queue
from storage.records import DerivedInstance, Job, NewDerived, NewJob, Peer, Received
from tests.unit.commands.said import Midslice

SERIES_UID = "1.2.840.99.3"
DERIVED_UID = "2.25.4711"


def queued(folder: Path) -> int:
    """One received instance, its complete arrival, and a job for it."""
    with opened(folder / "config.toml") as store:
        return _queue_one(store.archive, store.queue, store.files)


def _queue_one(archive: Archive, queue: Queue, files: Files) -> int:
    incoming = files.incoming / "one"
    incoming.write_bytes(b"\0" * 128 + b"DICM" + b"data set")
    received = Received("1.2.840.99.2", SERIES_UID, "1.2.3", "1.2.4", "1.2.5", modality="CT")
    kept = archive.keep(received, Peer("CT1", "MIDSLICE"), incoming)
    (arrival,) = archive.arriving()
    new = NewJob(
        kind="infer",
        key="k",
        series_id=arrival.series_id,
        arrival_id=arrival.id,
        stack="[axial]",
        route="ct-slices",
        model="linear",
        parameters={"factor": 2},
        destinations=("pacs",),
        priority=5,
        instances=(kept.instance_id,),
    )
    (job,) = queue.complete(arrival.id, {"rule": "quiet"}, [new])
    return job.job_id


def claimed(folder: Path, finish: Callable[[Queue, Job], object]) -> int:
    """A job that a worker took, and what it did with it."""
    job_id = queued(folder)
    with opened(folder / "config.toml") as store:
        queue = Queue(store.database, time.time, node="n", lease_seconds=60.0)
        job = queue.claim("worker-1", ["infer"])
        assert job is not None
        finish(queue, job)
    return job_id


def succeed(queue: Queue, job: Job) -> None:
    made = DerivedInstance("2.25.1", "1.2.4", "00001.dcm", "d" * 64, generated=True)
    queue.succeed(job, NewDerived(DERIVED_UID, "derived/1-1", 1, "1.0.0", (made,)))


def test_a_new_node_has_no_jobs_and_no_series(midslice: Midslice) -> None:
    assert midslice("jobs").out == "There are no jobs.\n"
    assert midslice("jobs", "--state", "held").out == "No job is held.\n"
    assert midslice("jobs", "--json").json == []
    assert midslice("series").out == "Nothing was received yet.\n"
    assert midslice("series", "--json").json == []


def test_a_job_in_json_is_as_it_is_fixed(midslice: Midslice, tmp_path: Path) -> None:
    job_id = claimed(tmp_path, succeed)
    (job,) = midslice("jobs", "--json").json
    assert list(job) == [
        *("id", "kind", "state", "reason", "sentence", "series_uid", "stack", "route"),
        *("derived_series_uid", "model", "version", "attempt", "queued_at", "started_at"),
        *("finished_at", "progress", "deliveries"),
    ]
    assert (job["id"], job["kind"], job["state"]) == (job_id, "infer", "succeeded")
    assert (job["series_uid"], job["derived_series_uid"]) == (SERIES_UID, DERIVED_UID)
    assert job["finished_at"][-6:] in {"+01:00", "+02:00"}
    assert job["deliveries"] == [
        {"destination": "pacs", "state": "queued", "sent": 0, "confirmed": 0, "total": 1}
    ]


def test_jobs_are_a_table_for_a_person(midslice: Midslice, tmp_path: Path) -> None:
    claimed(
        tmp_path, lambda queue, job: queue.hold(job, "MISSING_SLICES", "[2] slices are missing.")
    )
    said = midslice("jobs")
    assert said.status == 0
    header, row = said.out.splitlines()
    assert header.split() == [
        *("id", "state", "series", "route", "model", "queued", "took", "deliveries", "why")
    ]
    assert "held" in row
    assert " ago, " in row
    assert "[2] slices are missing." in row  # brackets of a sentence are no markup
    assert midslice("jobs", "--state", "queued").out == "No job is queued.\n"
    assert len(midslice("jobs", "--state", "held", "--json").json) == 1


def test_one_job_shows_attempts_instances_and_deliveries(
    midslice: Midslice, tmp_path: Path
) -> None:
    job_id = claimed(tmp_path, succeed)
    shown = midslice("job", job_id, "--json").json
    assert [a["worker"] for a in shown["attempts"]] == ["worker-1"]
    assert [i["instance_uid"] for i in shown["instances"]] == ["1.2.3"]
    assert [d["destination"] for d in shown["deliveries"]] == ["pacs"]
    assert shown["parameters"] == {"factor": 2}
    text = midslice("job", job_id).out
    for word in (SERIES_UID, DERIVED_UID, "[axial]", "worker-1", "pacs", "0/1", "factor = 2"):
        assert word in text


def test_an_unknown_job_or_series_is_status_1_with_one_line(midslice: Midslice) -> None:
    for command in (("job", 99), ("requeue", 99), ("cancel", 99), ("redeliver", 99)):
        said = midslice(*command)
        assert (said.status, said.out) == (1, "")
        assert len(said.err.splitlines()) == 1
        assert "99" in said.err
    assert midslice("series", "1.2.3.4").err == "no series 1.2.3.4 was received\n"


def test_series_shows_what_was_received_and_what_became_of_it(
    midslice: Midslice, tmp_path: Path
) -> None:
    job_id = queued(tmp_path)
    (shown,) = midslice("series", "--json").json
    assert (shown["series_uid"], shown["modality"], shown["instances"]) == (SERIES_UID, "CT", 1)
    assert "complete" in shown["states"]
    assert SERIES_UID in midslice("series").out
    (one,) = midslice("series", SERIES_UID, "--json").json
    assert one["jobs"] == [job_id]
    assert f"job {job_id}" in midslice("series", SERIES_UID).out


def test_a_series_that_is_arriving_says_when_it_will_be_complete(
    midslice: Midslice, tmp_path: Path
) -> None:
    with opened(tmp_path / "config.toml") as store:
        incoming = store.files.incoming / "one"
        incoming.write_bytes(b"x")
        received = Received("1.2", SERIES_UID, "1.2.3", "1.2.4", "1.2.5")
        store.archive.keep(received, Peer("CT1", "MIDSLICE"), incoming)
    assert "s if nothing more comes" in midslice("series").out


def test_a_person_cancels_and_requeues_a_job_and_both_are_recorded(
    midslice: Midslice, tmp_path: Path
) -> None:
    job_id = queued(tmp_path)
    assert midslice("cancel", job_id).out == f"Job {job_id} is cancelled.\n"
    assert midslice("requeue", job_id).out == f"Job {job_id} is queued again.\n"
    again = midslice("requeue", job_id)
    assert again.status == 1
    assert "is queued and cannot be requeued" in again.err
    assert midslice("cancel", job_id).status == 0
    assert midslice("requeue", job_id, "--json").json["state"] == "queued"
    with opened(tmp_path / "config.toml") as store:
        events = [(event.what, event.which) for event in store.audit.list()]
    for what in ("requeue", "cancel"):
        assert events.count((what, f"job {job_id}")) == 2


def test_a_running_job_is_asked_to_stop(midslice: Midslice, tmp_path: Path) -> None:
    job_id = claimed(tmp_path, lambda queue, job: queue.renew(job, 0.5))
    assert midslice("cancel", job_id).out == f"Job {job_id} stops at its next step.\n"
    assert "running 50%, to be cancelled" in midslice("jobs").out


def test_a_result_is_delivered_again_to_all_or_to_one(midslice: Midslice, tmp_path: Path) -> None:
    job_id = claimed(tmp_path, succeed)
    assert midslice("redeliver", job_id).status == 0
    said = midslice("redeliver", job_id, "--to", "other", "--json")
    assert {d["destination"] for d in said.json["deliveries"]} == {"pacs", "other"}
    assert midslice("redeliver", job_id, "--to", "nobody").status == 2


def test_what_an_archive_without_rows_holds_is_indexed_again(
    midslice: Midslice, tmp_path: Path
) -> None:
    queued(tmp_path)
    said = midslice("reindex", "--json")
    assert said.status == 0
    assert said.json["missing"] == []
    assert "were not in the index" in midslice("reindex").out
