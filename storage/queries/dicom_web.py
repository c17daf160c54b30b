"""Received and derived series as DICOMweb searches and retrieves them."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, Select, Subquery, and_, func, literal, select, union_all

from storage.database import Database
from storage.schema import derived, derived_instance, instance, series

Level = Literal["study", "series", "instance"]

# Attributes that rows hold: the level that each belongs to, and its column.
COLUMNS: Mapping[str, tuple[Level, str]] = {
    "StudyInstanceUID": ("study", "study_uid"),
    "StudyDate": ("study", "study_date"),
    "AccessionNumber": ("study", "accession"),
    "PatientID": ("study", "patient_id"),
    "PatientName": ("study", "patient_name"),
    "SeriesInstanceUID": ("series", "series_uid"),
    "Modality": ("series", "modality"),
    "SeriesDescription": ("series", "description"),
    "SOPInstanceUID": ("instance", "instance_uid"),
    "SOPClassUID": ("instance", "sop_class_uid"),
}
LEVELS: tuple[Level, ...] = ("study", "series", "instance")
OF_INSTANCE = ("id", "instance_uid", "sop_class_uid", "transfer_syntax", "path")
EXPLICIT_LE = "1.2.840.10008.1.2.1"  # of every result
# The modality of results that are no images of the source's.
MODALITIES = {
    "1.2.840.10008.5.1.4.1.1.66.4": "SEG",
    "1.2.840.10008.5.1.4.1.1.88.33": "SR",
    "1.2.840.10008.5.1.4.1.1.88.34": "SR",
    "1.2.840.10008.5.1.4.1.1.88.22": "SR",
    "1.2.840.10008.5.1.4.1.1.88.59": "KO",
    "1.2.840.10008.5.1.4.1.1.11.1": "PR",
    "1.2.840.10008.5.1.4.1.1.7": "OT",
    "1.2.840.10008.5.1.4.1.1.30": "OT",
}


@dataclass(frozen=True)
class Match:
    """A condition on a column; the text may have the wildcards * and ?, of dates a range."""

    column: str
    values: tuple[str, ...] = ()  # any of
    pattern: str = ""
    least: str = ""
    most: str = ""


@dataclass(frozen=True)
class HeldInstance:
    """An instance whose file is kept; of several versions the newest."""

    study_uid: str
    series_uid: str
    instance_uid: str
    sop_class_uid: str
    transfer_syntax: str
    path: str  # relative to the storage folder


def search(
    database: Database, level: Level, matches: Sequence[Match], limit: int, offset: int
) -> list[dict[str, Any]]:
    """The studies, series or instances that match, each with what rows hold of it."""
    held = _held(matches)
    own = [column for of, column in COLUMNS.values() if LEVELS.index(of) <= LEVELS.index(level)]
    key = held.c[{"study": "study_uid", "series": "series_uid", "instance": "instance_uid"}[level]]
    query: Select[Any] = (
        select(
            *(func.min(held.c[column]).label(column) for column in own),
            func.min(held.c.sop_class_uid).label("a_sop_class_uid"),
            func.count(held.c.series_uid.distinct()).label("series_count"),
            func.count(held.c.instance_uid.distinct()).label("instance_count"),
        )
        .group_by(held.c.study_uid, key)
        .order_by(held.c.study_uid, key)
        .limit(limit)
        .offset(offset)
    )
    with database.reading() as db:
        return [dict(row) for row in db.execute(query).mappings()]


def modalities(database: Database, study_uids: Sequence[str]) -> Mapping[str, frozenset[str]]:
    """The modalities of the series of these studies, received and derived."""
    held = _held([Match("study_uid", values=tuple(study_uids))])
    query = select(held.c.study_uid, held.c.modality, held.c.sop_class_uid).distinct()
    kinds: defaultdict[str, set[str]] = defaultdict(set)
    with database.reading() as db:
        for study_uid, modality, sop_class_uid in db.execute(query):
            kinds[study_uid].add(MODALITIES.get(sop_class_uid, modality))
    return {study_uid: frozenset(of_study) for study_uid, of_study in kinds.items()}


def held_instances(
    database: Database, study_uid: str, series_uid: str = "", instance_uid: str = ""
) -> tuple[HeldInstance, ...]:
    """The instances of a study, of one series of it, or one; the newest version of each."""
    wanted = {"study_uid": study_uid, "series_uid": series_uid, "instance_uid": instance_uid}
    held = _held([Match(name, values=(uid,)) for name, uid in wanted.items() if uid])
    query = select(*(held.c[name] for name in HeldInstance.__dataclass_fields__))
    newest: dict[str, HeldInstance] = {}
    with database.reading() as db:
        for row in db.execute(query.order_by(held.c.received_at.desc(), held.c.id.desc())):
            newest.setdefault(row.instance_uid, HeldInstance(**row._mapping))
    return tuple(sorted(newest.values(), key=lambda it: (it.series_uid, it.instance_uid)))


def _held(matches: Sequence[Match]) -> Subquery:
    """The instances that match and whose file is kept, received or derived.

    Each half has the conditions for itself, so that the indexes of its tables answer them.
    """
    made, of_study = derived_instance, ("study_uid", "study_date", "accession")
    shared = (*of_study, "patient_id", "patient_name", "description", "modality")
    columns: dict[str, ColumnElement[Any]] = {name: series.c[name] for name in shared}
    received = columns | {"series_uid": series.c.series_uid, "received_at": instance.c.received_at}
    received |= {name: instance.c[name] for name in OF_INSTANCE}
    results = columns | {"series_uid": made.c.series_uid, "received_at": derived.c.made_at}
    results |= {name: made.c[name] for name in OF_INSTANCE if name != "transfer_syntax"}
    results["transfer_syntax"] = literal(EXPLICIT_LE)
    results["path"] = derived.c.folder + "/" + made.c.path
    here = [instance.c.series_id == series.c.id, instance.c.path.is_not(None)]
    kept = [made.c.derived_id == derived.c.id, derived.c.series_id == series.c.id]
    return union_all(
        _half(received, [*here, *_conditions(received, matches)]),
        _half(results, [*kept, derived.c.purged_at.is_(None), *_conditions(results, matches)]),
    ).subquery("held")


def _half(
    columns: Mapping[str, ColumnElement[Any]], conditions: Sequence[ColumnElement[bool]]
) -> Select[Any]:
    return select(*(columns[name].label(name) for name in sorted(columns))).where(*conditions)


def _conditions(
    columns: Mapping[str, ColumnElement[Any]], matches: Sequence[Match]
) -> list[ColumnElement[bool]]:
    return [_condition(columns[match.column], match) for match in matches]


def _condition(column: ColumnElement[Any], match: Match) -> ColumnElement[bool]:
    if match.values:
        return column.in_(match.values)
    if match.pattern:
        escaped = match.pattern.replace("\\", r"\\").replace("%", r"\%").replace("_", r"\_")
        if not {"*", "?"} & set(match.pattern):
            return column == match.pattern
        return column.ilike(escaped.replace("*", "%").replace("?", "_"), escape="\\")
    bounds = [column >= match.least] if match.least else []
    return and_(*bounds, *([column <= match.most] if match.most else []), column != "")
