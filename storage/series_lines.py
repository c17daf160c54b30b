"""Received series as a page lists them: who brought them, and what became of them."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, func, select

from storage.lines import JobLine, SeriesLine
from storage.overview import JOB_LINES, SUBJECT, to_job_line, to_subject
from storage.records import ArrivalState
from storage.schema import arrival, instance, job, series


def series_lines(db: Connection, ids: Sequence[int]) -> tuple[SeriesLine, ...]:
    """These series, in this order."""
    times = (series.c.first_at, series.c.last_at, series.c.purged_at)
    rows = {
        r.series_id: r for r in db.execute(select(*SUBJECT, *times).where(series.c.id.in_(ids)))
    }
    of_instances = select(instance.c.series_id, func.count(instance.c.instance_uid.distinct()))
    of_instances = of_instances.where(instance.c.series_id.in_(ids)).group_by(instance.c.series_id)
    counts = {row[0]: int(row[1]) for row in db.execute(of_instances)}
    brought = select(arrival.c.series_id, arrival.c.calling_ae, arrival.c.state)
    brought = brought.where(arrival.c.series_id.in_(ids)).order_by(arrival.c.id)
    peers: dict[int, list[Any]] = {one: [] for one in ids}
    for peer in db.execute(brought):
        peers[peer.series_id].append(peer)
    lines: dict[int, list[JobLine]] = {one: [] for one in ids}
    for row in db.execute(JOB_LINES.where(job.c.series_id.in_(ids)).order_by(job.c.id.desc())):
        lines[row.series_id].append(to_job_line(row))
    return tuple(
        SeriesLine(
            subject=to_subject(rows[one]),
            first_at=rows[one].first_at,
            last_at=rows[one].last_at,
            purged_at=rows[one].purged_at,
            instances=counts.get(one, 0),
            senders=tuple(dict.fromkeys(peer.calling_ae for peer in peers[one])),
            arriving=any(peer.state == ArrivalState.ARRIVING for peer in peers[one]),
            jobs=tuple(lines[one]),
        )
        for one in ids
    )
