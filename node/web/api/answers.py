"""Records as JSON: what programs read from REST and from the command line."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from datetime import datetime, tzinfo
from typing import TypeAlias

from storage.ledger import InstanceState
from storage.records import Attempt, Commitment, Delivery, Instance, Job

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
COMMITMENT = "state evidence tries resent due_at finished_at reason sentence"
LEDGER = (
    "destination instance_uid sop_class_uid series_uid kind generated offers status comment stored "
    "answered_at confirmed confirmed_at evidence commitment_failure"
)
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
    commitments: Mapping[int, Commitment],
    zone: tzinfo | None,
) -> Json:
    """Give a job with everything that is known about it."""
    of_delivery = f"{DELIVERY} {DELIVERY_FURTHER}"
    proofs = {key: plain(it, COMMITMENT, zone) for key, it in commitments.items()}
    return (
        plain(job, JOB, zone)
        | {
            "deliveries": [
                plain(it, of_delivery, zone) | {"commitment": proofs.get(it.id)}
                for it in deliveries
            ]
        }
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


def ledger(instances: Sequence[InstanceState], zone: tzinfo | None) -> list[Json]:
    """Give each instance of a result at each destination, statuses as the standard writes them."""
    rows = [plain(instance, LEDGER, zone) for instance in instances]
    for row in rows:
        for key in ("status", "commitment_failure"):
            row[key] = None if row[key] is None else f"{row[key]:04X}"
    return rows


def ledger_csv(instances: Sequence[InstanceState], zone: tzinfo | None) -> str:
    """Give the same as a table with a row an instance; a comment is the destination's own text."""
    text = io.StringIO()
    writer = csv.DictWriter(text, LEDGER.split())
    writer.writeheader()
    for row in ledger(instances, zone):
        writer.writerow({key: _cell(value) for key, value in row.items()})
    return text.getvalue()


def _cell(value: object) -> object:
    """A value that no spreadsheet takes for a formula: a peer chooses what its comment says."""
    if isinstance(value, bool):
        return int(value)
    is_formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if is_formula else value


def _value(name: str, value: object, zone: tzinfo | None) -> object:
    if isinstance(value, int | float) and (name.endswith("_at") or name in TIMES):
        return iso(value, zone)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple):
        return [vars(item) if is_dataclass(item) else item for item in value]
    return str(value) if isinstance(value, str) else value
