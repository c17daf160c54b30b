"""Records as JSON: what programs read from REST and from the command line."""

from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from datetime import datetime, tzinfo
from typing import TypeAlias

from storage.records import Attempt, Delivery, Instance, Job

Json: TypeAlias = dict[str, object]

# Attributes of each record, in the order of the answer; those of a job are fixed. A series has none
# of its patient, a user no hash of the password, a token not its text.
JOB = (
    "id kind state reason sentence series_uid stack route derived_series_uid model version attempt "
    "queued_at started_at finished_at progress"
)
JOB_FURTHER = (
    "study_uid parameters destinations edition priority worker_deaths abandoned cancel_requested "
    "record"
)
DELIVERY = "destination state sent confirmed total"
DELIVERY_FURTHER = "id reason sentence comment failures due_at finished_at"
ATTEMPT = "number worker started_at ended_at outcome detail"
INSTANCE = "instance_uid sop_class_uid transfer_syntax size received_at"
SERIES = (
    "series_uid study_uid modality description first_at last_at purged_at instances bytes states"
)
USER = "name role disabled created_at changed_at"
TOKEN = "id name role created_by created_at used_at revoked_at"  # noqa: S105 - names, no secret
TIMES = ("at", "since", "heartbeat")  # besides all that ends in _at


def plain(record: object | None, names: str, zone: tzinfo | None = None) -> Json:
    """Give these attributes of a record, times in `zone`; where there is no record, nulls."""
    return {name: _value(name, getattr(record, name, None), zone) for name in names.split()}


def iso(at: float | None, zone: tzinfo | None) -> str | None:
    """Give a time as ISO 8601 with an offset; `zone` None is the system's own."""
    if at is None:
        return None
    return datetime.fromtimestamp(at, zone).astimezone(zone).isoformat(timespec="milliseconds")


def job(job: Job, deliveries: Sequence[Delivery], zone: tzinfo | None) -> Json:
    """Give a job with its deliveries."""
    return plain(job, JOB, zone) | {
        "deliveries": [plain(delivery, DELIVERY) for delivery in deliveries],
        "confidence_counts": dict(job.confidence_counts),
    }


def job_in_full(
    job: Job,
    deliveries: Sequence[Delivery],
    attempts: Sequence[Attempt],
    instances: Sequence[Instance],
    senders: Sequence[str],
    zone: tzinfo | None,
) -> Json:
    """Give a job with everything that is known about it."""
    of_delivery = f"{DELIVERY} {DELIVERY_FURTHER}"
    return (
        plain(job, JOB, zone)
        | {"deliveries": [plain(delivery, of_delivery, zone) for delivery in deliveries]}
        | plain(job, JOB_FURTHER, zone)
        | {
            "senders": list(senders),
            "confidence_counts": dict(job.confidence_counts),
            "undersampled": job.record.get("undersampled"),
            "set_aside": job.record.get("set_aside", []),
            "attempts": [plain(attempt, ATTEMPT, zone) for attempt in attempts],
            "instances": [
                plain(instance, INSTANCE, zone) | {"kept": instance.path is not None}
                for instance in instances
            ],
        }
    )


def _value(name: str, value: object, zone: tzinfo | None) -> object:
    if isinstance(value, int | float) and (name.endswith("_at") or name in TIMES):
        return iso(value, zone)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple):
        return [vars(item) if is_dataclass(item) else item for item in value]
    return str(value) if isinstance(value, str) else value
