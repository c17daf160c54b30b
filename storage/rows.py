"""From rows to records, and from a peer's text to what a column takes."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy import Row

from storage.records import (
    Arrival,
    ArrivalState,
    Attempt,
    AuditEvent,
    Delivery,
    DeliveryState,
    Instance,
    Job,
    JobState,
    Received,
)

SHORT = 16  # the columns of modality and study date


def to_arrival(row: Row[*tuple[Any, ...]]) -> Arrival:
    values = dict(row._mapping)
    values["state"] = ArrivalState(values["state"])
    values["own"] = bool(values["own"])
    values["evidence"] = json.loads(values["evidence"])
    return Arrival(**values)


def to_instance(row: Row[*tuple[Any, ...]]) -> Instance:
    return Instance(
        id=row.id,
        instance_uid=row.instance_uid,
        sop_class_uid=row.sop_class_uid,
        transfer_syntax=row.transfer_syntax,
        digest=row.digest,
        size=row.size,
        path=row.path,
        received_at=row.received_at,
    )


def to_job(row: Row[*tuple[Any, ...]]) -> Job:
    values = dict(row._mapping)
    values["state"] = JobState(values["state"])
    values["parameters"] = json.loads(values["parameters"])
    values["destinations"] = to_names(values["destinations"])
    values["record"] = json.loads(values["record"])
    values["cancel_requested"] = bool(values["cancel_requested"])
    return Job(**values)


def to_attempt(row: Row[*tuple[Any, ...]]) -> Attempt:
    return Attempt(**row._mapping)


def to_delivery(row: Row[*tuple[Any, ...]]) -> Delivery:
    values = dict(row._mapping)
    values["state"] = DeliveryState(values["state"])
    # Without storage commitment nothing is proved instance by instance: all of it, or nothing.
    values["confirmed"] = values["total"] if values["state"] is DeliveryState.CONFIRMED else 0
    return Delivery(**values)


def to_audit_event(row: Row[*tuple[Any, ...]]) -> AuditEvent:
    values = dict(row._mapping)
    values["detail"] = json.loads(values["detail"])
    return AuditEvent(**values)


def to_json(value: Mapping[str, object] | tuple[str, ...]) -> str:
    return json.dumps(value, sort_keys=True)


def to_names(text: str) -> tuple[str, ...]:
    return tuple(json.loads(text))


def fits(received: Received) -> Received:
    """The same in text that both databases take; the file keeps what the peer has sent."""
    return replace(
        received,
        modality=_text(received.modality)[:SHORT],
        patient_id=_text(received.patient_id),
        accession=_text(received.accession),
        study_date=_text(received.study_date)[:SHORT],
        description=_text(received.description),
    )


def _text(value: str) -> str:
    """Without NUL, which PostgreSQL refuses, and lone surrogates, which no database takes."""
    return value.replace("\0", "").encode("utf-8", "replace").decode("utf-8")
