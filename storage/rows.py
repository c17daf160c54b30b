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
    Delivery,
    DeliveryState,
    Instance,
    Job,
    JobState,
    Mark,
    Received,
)
from storage.site import AuditEvent

MARK = ("revision", "place", "named")
SHORT = 16  # the columns of modality and study date


def to_arrival(row: Row[*tuple[Any, ...]]) -> Arrival:
    values = {name: row._mapping[name] for name in Arrival.__dataclass_fields__}
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
    values["mark"] = to_mark(row)
    values = {name: value for name, value in values.items() if name not in MARK}
    return Job(**values)


def to_mark(row: Row[*tuple[Any, ...]]) -> Mark:
    return Mark(row.revision, row.place, row.route if row.named else "")


def mark_columns(mark: Mark) -> dict[str, object]:
    return {"revision": mark.revision, "place": mark.place, "named": int(mark.route != "")}


def to_attempt(row: Row[*tuple[Any, ...]]) -> Attempt:
    return Attempt(**row._mapping)


def to_delivery(row: Row[*tuple[Any, ...]]) -> Delivery:
    fields = (name for name in Delivery.__dataclass_fields__ if name != "confirmed")
    values = {name: row._mapping[name] for name in fields}
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
        patient_name=_text(received.patient_name),
    )


def name_key(patient_name: str) -> str:
    """A name as it is searched by: case-folded, one space between its parts (PS3.5 6.2.1)."""
    parts = patient_name.replace("^", " ").replace("=", " ").split()
    return " ".join(parts).casefold()


def sought_keys(text: str) -> tuple[str, ...]:
    """What a name may begin with for whoever looks for `text`.

    The pages write "Family, Given"; a peer may also have sent a comma within a part of the name.
    """
    keys = (name_key(text), name_key(text.replace(",", " ")))
    return tuple(key for key in dict.fromkeys(keys) if key)


def _text(value: str) -> str:
    """Without NUL, which PostgreSQL refuses, and lone surrogates, which no database takes."""
    return value.replace("\0", "").encode("utf-8", "replace").decode("utf-8")
