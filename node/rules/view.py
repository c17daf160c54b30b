"""Jobs, deliveries and series as scripts get them: the same JSON from the command line and REST."""

from collections.abc import Mapping, Sequence
from datetime import datetime, tzinfo
from typing import TypeAlias

from storage.records import Attempt, Delivery, Instance, Job, Series

Json: TypeAlias = dict[str, object]


def iso(at: float | None, zone: tzinfo | None) -> str | None:
    """A time as ISO 8601 with an offset; `zone` None is the system's own."""
    if at is None:
        return None
    return datetime.fromtimestamp(at, zone).astimezone(zone).isoformat(timespec="milliseconds")


def job(job: Job, deliveries: Sequence[Delivery], zone: tzinfo | None) -> Json:
    """A job, as `interfaces.md` fixes it."""
    return {
        "id": job.id,
        "kind": job.kind,
        "state": str(job.state),
        "reason": job.reason,
        "sentence": job.sentence,
        "series_uid": job.series_uid,
        "stack": job.stack,
        "route": job.route,
        "derived_series_uid": job.derived_series_uid,
        "model": job.model,
        "version": job.version,
        "attempt": job.attempt,
        "queued_at": iso(job.queued_at, zone),
        "started_at": iso(job.started_at, zone),
        "finished_at": iso(job.finished_at, zone),
        "progress": job.progress,
        "deliveries": [delivery(each) for each in deliveries],
    }


def job_in_full(
    one: Job,
    deliveries: Sequence[Delivery],
    attempts: Sequence[Attempt],
    instances: Sequence[Instance],
    zone: tzinfo | None,
) -> Json:
    """A job with everything that is known about it: the page and `midslice job ID`."""
    shown = job(one, deliveries, zone)
    shown["deliveries"] = [
        delivery(each)
        | {
            "id": each.id,
            "reason": each.reason,
            "sentence": each.sentence,
            "failures": each.failures,
            "due_at": iso(each.due_at, zone),
            "finished_at": iso(each.finished_at, zone),
        }
        for each in deliveries
    ]
    return shown | {
        "study_uid": one.study_uid,
        "parameters": _plain(one.parameters),
        "destinations": list(one.destinations),
        "edition": one.edition,
        "priority": one.priority,
        "worker_deaths": one.worker_deaths,
        "abandoned": one.abandoned,
        "cancel_requested": one.cancel_requested,
        "record": _plain(one.record),
        "attempts": [_attempt(each, zone) for each in attempts],
        "instances": [_instance(each, zone) for each in instances],
    }


def delivery(each: Delivery) -> Json:
    """A delivery of a job."""
    return {
        "destination": each.destination,
        "state": str(each.state),
        "sent": each.sent,
        "confirmed": each.confirmed,
        "total": each.total,
    }


def series(each: Series, zone: tzinfo | None) -> Json:
    """A received series. No patient attribute: who may see those decides elsewhere."""
    return {
        "series_uid": each.series_uid,
        "study_uid": each.study_uid,
        "modality": each.modality,
        "description": each.description,
        "first_at": iso(each.first_at, zone),
        "last_at": iso(each.last_at, zone),
        "purged_at": iso(each.purged_at, zone),
        "instances": each.instances,
        "bytes": each.bytes,
        "states": list(each.states),
    }


def _attempt(each: Attempt, zone: tzinfo | None) -> Json:
    return {
        "number": each.number,
        "worker": each.worker,
        "started_at": iso(each.started_at, zone),
        "ended_at": iso(each.ended_at, zone),
        "outcome": each.outcome,
        "detail": each.detail,
    }


def _instance(each: Instance, zone: tzinfo | None) -> Json:
    return {
        "instance_uid": each.instance_uid,
        "sop_class_uid": each.sop_class_uid,
        "transfer_syntax": each.transfer_syntax,
        "size": each.size,
        "received_at": iso(each.received_at, zone),
        "kept": each.path is not None,
    }


def _plain(values: Mapping[str, object]) -> Json:
    return dict(values)
