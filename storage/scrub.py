"""The scrub: kept files are read again, slowly, so that damage is known before it matters.

Where it is in each table is kept, so that a node that is often started again comes round too.
"""

import errno
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, Select, func, select

from storage.database import Database
from storage.files import Files, digest, received_digest
from storage.records import DAY
from storage.schema import (
    KEPT_DERIVED,
    KEPT_SERIES,
    derived,
    derived_instance,
    instance,
    scrub,
    series,
)
from storage.site import notices

logger = logging.getLogger(__name__)

NOT_OF_THE_FILE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
RECEIVED, DERIVED = "received", "derived"
SENTENCES = {
    RECEIVED: "{count} received files are missing or changed on the disk, the first in series "
    "{series_uid}: check the disk, and let the sender send the series again, which mends them.",
    DERIVED: "{count} files of results are missing or changed on the disk, the first in derived "
    "series {series_uid}: check the disk, and restore the files before they are sent again.",
}


@dataclass(frozen=True)
class Damage:
    """The damaged files that one step of the scrub came upon."""

    kind: str
    ids: tuple[int, ...]
    series_uid: str  # of the first


def step(database: Database, files: Files, now: float, share: float) -> tuple[Damage, ...]:
    """Check this share of all kept files, from where the last step ended; tell of damaged ones."""
    found = (_step(database, files, kind, share) for kind in (RECEIVED, DERIVED))
    damaged = tuple(damage for damage in found if damage is not None)
    for damage in damaged:
        _tell(database, damage, now)
    return damaged


def share_of(seconds: float, scrub_days: float) -> float:
    """The share of all files to check in so many seconds, to come round in so many days."""
    return min(1.0, seconds / (scrub_days * DAY))


def _step(database: Database, files: Files, kind: str, share: float) -> Damage | None:
    with database.reading() as db:
        rows = _next(db, kind, share)
    damaged = [row for row in rows if not _is_intact(files, kind, row)]
    # One that is gone since it was looked up, by retention, is none.
    with database.reading() as db:
        kept = _kept(kind)
        still = [row for row in damaged if db.execute(kept.where(_id(kind) == row.id)).first()]
    _remember(database, kind, rows[-1].id if rows else 0)
    if not still:
        return None
    return Damage(kind, tuple(row.id for row in still), still[0].series_uid)


def _next(db: Connection, kind: str, share: float) -> Sequence[Row[*tuple[Any, ...]]]:
    """The next files, of the lowest numbers again after the highest."""
    kept = _kept(kind)
    count = float(db.execute(_count(kind)).scalar_one() or 0)
    last = db.execute(select(scrub.c.last_id).where(scrub.c.kind == kind)).scalar() or 0
    following = kept.where(_id(kind) > last).order_by(_id(kind)).limit(math.ceil(count * share))
    return db.execute(following).all()


def _kept(kind: str) -> Select[*tuple[Any, ...]]:
    if kind == RECEIVED:
        columns = (instance.c.id, instance.c.path, instance.c.digest, series.c.series_uid)
        of_series = select(*columns).join(series, series.c.id == instance.c.series_id)
        return of_series.where(instance.c.path.is_not(None), series.c.purged_at.is_(None))
    path = (derived.c.folder + "/" + derived_instance.c.path).label("path")
    of_result = select(
        derived_instance.c.id, path, derived_instance.c.digest, derived.c.series_uid
    ).join(derived, derived.c.id == derived_instance.c.derived_id)
    return of_result.where(derived.c.purged_at.is_(None))


def _count(kind: str) -> Select[*tuple[Any, ...]]:
    """The number of files, by way of what is kept: few of all that ever came."""
    if kind == RECEIVED:
        of_series = select(func.count()).where(instance.c.series_id == series.c.id)
        return select(func.sum(of_series.scalar_subquery())).select_from(series).where(KEPT_SERIES)
    of_result = select(func.count()).where(derived_instance.c.derived_id == derived.c.id)
    return select(func.sum(of_result.scalar_subquery())).select_from(derived).where(KEPT_DERIVED)


def _id(kind: str) -> Any:
    return instance.c.id if kind == RECEIVED else derived_instance.c.id


def _is_intact(files: Files, kind: str, row: Row[*tuple[Any, ...]]) -> bool:
    try:
        path = files.path(row.path)
        return bool((received_digest if kind == RECEIVED else digest)(path) == row.digest)
    except OSError as error:
        if error.errno in NOT_OF_THE_FILE:
            raise  # the next step begins here again
        return False


def _remember(database: Database, kind: str, last_id: int) -> None:
    insert = database.insert(scrub).values(kind=kind, last_id=last_id)
    insert = insert.on_conflict_do_update(index_elements=["kind"], set_={"last_id": last_id})
    with database.writing() as db:
        db.execute(insert)


def _tell(database: Database, damage: Damage, now: float) -> None:
    extra = {"kind": damage.kind, "count": len(damage.ids), "series_uid": damage.series_uid}
    logger.warning("scrub found damage", extra=extra)
    count, series_uid = len(damage.ids), damage.series_uid
    sentence = SENTENCES[damage.kind].format(count=count, series_uid=series_uid)
    key = f"scrub {damage.kind} {damage.ids[0]} {count}"  # what is still so is told once
    with database.writing() as db:
        notices.post(database, db, now, "attention", key, {"sentence": sentence})
