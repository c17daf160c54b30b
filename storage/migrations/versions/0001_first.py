"""The first schema: all tables of `storage.schema`, which says what each is for.

A migration is never edited once released: a change is a new file.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make every table; constraints and indexes are named by the convention of the metadata."""
    _node()
    _received()
    _derived()
    _jobs()
    _deliveries()
    _people()
    _control()
    _peers()
    _notices()


def _id() -> sa.Column[int]:
    return sa.Column("id", sa.Integer(), primary_key=True, autoincrement=True)


def _refers(column: str, *, nullable: bool = False, **options: Any) -> sa.Column[int]:
    name, key = column.replace(".", "_"), sa.ForeignKey(column)
    return sa.Column(name, sa.Integer(), key, nullable=nullable, **options)


def _string(name: str, length: int, **options: Any) -> sa.Column[Any]:
    return _column(name, sa.String(length), **options)


def _text(name: str, **options: Any) -> sa.Column[Any]:
    return _column(name, sa.Text(), **options)


def _whole(name: str, **options: Any) -> sa.Column[Any]:
    return _column(name, sa.Integer(), **options)


def _big(name: str) -> sa.Column[Any]:
    return _column(name, sa.BigInteger())


def _real(name: str, **options: Any) -> sa.Column[Any]:
    return _column(name, sa.Float(), **options)


def _column(
    name: str, kind: Any, *, default: str | None = None, nullable: bool = False, **options: Any
) -> sa.Column[Any]:
    return sa.Column(name, kind, server_default=default, nullable=nullable, **options)


def _index(table: str, *columns: str) -> None:
    op.create_index(op.f(f"ix_{table}_{'_'.join(columns)}"), table, columns)


def _prefix(table: str, column: str) -> None:
    ops = {column: "text_pattern_ops"}
    op.create_index(op.f(f"ix_{table}_{column}"), table, [column], postgresql_ops=ops)


def _part(table: str, name: str, condition: str, *columns: str, unique: bool = False) -> None:
    where: Any = {f"{dialect}_where": sa.text(condition) for dialect in ("sqlite", "postgresql")}
    op.create_index(op.f(f"ix_{table}_{name}"), table, columns, unique=unique, **where)


def _node() -> None:
    op.create_table(
        "node",
        _string("id", 64, primary_key=True),
        _real("started_at"),
        _real("heartbeat"),
        _string("state", 16),
        _real("clean_at", nullable=True),
    )
    op.create_table(
        "fact",
        _string("name", 64, primary_key=True),
        _text("value"),
    )
    op.create_table(
        "association",
        _id(),
        _string("node", 64),
        _string("calling_ae", 16),
        _string("called_ae", 16),
        _string("address", 64),
        _real("opened_at"),
        _real("ended_at", nullable=True, index=True),
        _string("how", 32, nullable=True),
        _text("reason", default=""),
    )
    _index("association", "calling_ae", "opened_at")
    _part("association", "rejected", "how = 'rejected'", "opened_at")
    op.create_table(
        "disk",
        _id(),
        _string("node", 64),
        _real("at", index=True),
        _big("free"),
        _big("total"),
    )
    op.create_table(
        "audit",
        _id(),
        _real("at", index=True),
        _string("who", 64),
        _string("what", 64),
        _text("which", default="", index=True),
        _text("detail", default="{}"),
    )


def _received() -> None:
    op.create_table(
        "series",
        _id(),
        _string("series_uid", 64, index=True),
        _string("study_uid", 64, index=True),
        _string("modality", 16, default=""),
        _text("patient_id", default=""),
        _text("patient_name", default=""),
        _text("name_key", default=""),
        _text("accession", default=""),
        _string("study_date", 16, default="", index=True),
        _text("description", default="", index=True),
        _real("first_at"),
        _real("last_at", index=True),
        _real("purged_at", nullable=True),
        sa.UniqueConstraint("study_uid", "series_uid"),
    )
    _prefix("series", "accession")
    _prefix("series", "name_key")
    _prefix("series", "patient_id")
    op.create_table(
        "instance",
        _id(),
        _refers("series.id", index=True),
        _string("instance_uid", 64, index=True),
        _string("sop_class_uid", 64),
        _string("transfer_syntax", 64),
        _string("digest", 64),
        _big("size"),
        _string("path", 255, nullable=True, index=True),
        _real("received_at"),
        sa.CheckConstraint("size >= 0", name="size"),
        sa.UniqueConstraint("series_id", "instance_uid", "digest"),
    )
    op.create_table(
        "arrival",
        _id(),
        _refers("series.id", index=True),
        _string("calling_ae", 16),
        _string("called_ae", 16),
        _string("state", 16),
        _real("first_at"),
        _real("last_at"),
        _real("completed_at", nullable=True, index=True),
        _text("evidence", default="{}"),
        _whole("brought", default="0"),
        _whole("own", default="0"),
        sa.CheckConstraint("(state = 'complete') = (completed_at IS NOT NULL)", name="completed"),
        sa.CheckConstraint("state IN ('arriving', 'complete')", name="state"),
    )
    _index("arrival", "calling_ae", "last_at")
    _part(
        "arrival", "open", "state = 'arriving'", "series_id", "calling_ae", "called_ae", unique=True
    )
    op.create_table(
        "arrival_instance",
        _refers("arrival.id", primary_key=True),
        _refers("instance.id", primary_key=True, index=True),
        _real("brought_at"),
    )
    op.create_table(
        "arrival_association",
        _refers("arrival.id", primary_key=True),
        _refers("association.id", primary_key=True, index=True),
    )


def _derived() -> None:
    op.create_table(
        "derived",
        _id(),
        _refers("series.id", index=True),
        _string("series_uid", 64, unique=True),
        _string("folder", 255),
        _whole("edition"),
        _real("made_at"),
        _real("offered_at", nullable=True),
        _real("superseded_at", nullable=True, index=True),
        _real("purged_at", nullable=True),
        _text("stack", default=""),
        _string("route", 64, default=""),
        _string("content_uid", 64, default=""),
        _whole("revision", default="1"),
        _whole("place", default="0"),
        _whole("named", default="0"),
    )
    op.create_table(
        "derived_instance",
        _id(),
        _refers("derived.id", index=True),
        _string("instance_uid", 64, unique=True),
        _string("sop_class_uid", 64),
        _string("path", 255),
        _string("digest", 64),
        _whole("generated"),
    )


def _jobs() -> None:
    op.create_table(
        "job",
        _id(),
        _string("kind", 16),
        _string("key", 64, unique=True),
        _string("state", 16),
        _string("reason", 64, default=""),
        _text("sentence", default=""),
        _whole("priority"),
        _real("queued_at", index=True),
        _real("due_at"),
        _real("started_at", nullable=True),
        _real("finished_at", nullable=True, index=True),
        _string("worker", 64, nullable=True),
        _string("node", 64, nullable=True),
        _real("lease_until", nullable=True),
        _whole("attempt", default="0"),
        _refers("series.id", index=True),
        _refers("arrival.id", index=True),
        _text("stack"),
        _string("route", 64),
        _string("model", 128),
        _string("version", 32, default=""),
        _text("parameters"),
        _whole("edition", default="1"),
        _whole("worker_deaths", default="0"),
        _whole("abandoned", default="0"),
        _real("progress", default="0"),
        _string("step", 16, default=""),
        _whole("step_done", default="0"),
        _whole("step_total", default="0"),
        _whole("cancel_requested", default="0"),
        _refers("derived.id", nullable=True, index=True),
        _text("record", default="{}"),
        _string("requeued_by", 64, nullable=True),
        _whole("requeue_requested", default="0"),
        _whole("revision", default="1"),
        _whole("place", default="0"),
        _whole("named", default="0"),
        sa.CheckConstraint("state <> 'succeeded' OR derived_id IS NOT NULL", name="derived"),
        sa.CheckConstraint("(state = 'running') = (lease_until IS NOT NULL)", name="lease"),
        sa.CheckConstraint("priority BETWEEN 1 AND 9", name="priority"),
        sa.CheckConstraint("progress BETWEEN 0 AND 1", name="progress"),
        sa.CheckConstraint(
            "(state IN ('refused', 'held', 'failed')) <= (reason <> '')", name="reason"
        ),
        sa.CheckConstraint("requeue_requested = 0 OR state = 'queued'", name="requeue"),
        sa.CheckConstraint(
            "state IN ('queued', 'running', 'succeeded', 'refused', 'failed', 'held', 'cancelled')",
            name="state",
        ),
    )
    _part("job", "due", "state IN ('queued', 'running')", "priority", "due_at")
    _part("job", "ended", "state NOT IN ('queued', 'running')", "state", "queued_at")
    _part("job", "reason", "reason <> ''", "reason", "queued_at")
    op.create_table(
        "want",
        _refers("job.id", primary_key=True),
        _refers("arrival.id", primary_key=True, index=True),
        _string("destination", 64, primary_key=True),
        _whole("rank"),
        _whole("withdrawn", default="0"),
        sa.CheckConstraint("destination <> '' OR rank = 0", name="shadow"),
    )
    op.create_table(
        "job_instance",
        _refers("job.id", primary_key=True),
        _refers("instance.id", primary_key=True, index=True),
        _whole("rank"),
    )
    op.create_table(
        "attempt",
        _refers("job.id", primary_key=True),
        _whole("number", primary_key=True),
        _string("worker", 64),
        _real("started_at"),
        _real("ended_at", nullable=True),
        _string("outcome", 32, nullable=True),
        _text("detail", default=""),
    )


def _deliveries() -> None:
    op.create_table(
        "delivery",
        _id(),
        _refers("derived.id", index=True),
        _string("destination", 64),
        _string("state", 16),
        _string("reason", 64, default=""),
        _text("sentence", default=""),
        _whole("priority"),
        _real("queued_at"),
        _real("due_at"),
        _real("started_at", nullable=True),
        _real("finished_at", nullable=True),
        _string("worker", 64, nullable=True),
        _string("node", 64, nullable=True),
        _real("lease_until", nullable=True),
        _whole("attempt", default="0"),
        _whole("failures", default="0"),
        sa.CheckConstraint("(state = 'running') = (lease_until IS NOT NULL)", name="lease"),
        sa.CheckConstraint("state <> 'held' OR reason <> ''", name="reason"),
        sa.CheckConstraint(
            "state IN ('queued', 'running', 'sent', 'confirmed', 'held', 'cancelled')", name="state"
        ),
        sa.UniqueConstraint("derived_id", "destination"),
    )
    _part("delivery", "ended", "state NOT IN ('queued', 'running')", "state", "finished_at")
    _part("delivery", "finished", "finished_at IS NOT NULL", "destination", "finished_at")
    _part("delivery", "open", "state IN ('queued', 'running', 'held')", "destination", "due_at")
    op.create_table(
        "delivery_instance",
        _refers("delivery.id", primary_key=True),
        _refers("derived_instance.id", primary_key=True),
        _whole("status", nullable=True),
        _whole("stored", default="0"),
        _whole("offers", default="0"),
        _whole("not_understood", default="0"),
        _real("answered_at", nullable=True),
    )


def _people() -> None:
    op.create_table(
        "account",
        _string("name", 64, primary_key=True),
        _string("role", 16),
        _text("password", default=""),
        _whole("disabled", default="0"),
        _real("created_at"),
        _real("changed_at"),
        sa.CheckConstraint("role IN ('viewer', 'operator', 'administrator')", name="role"),
    )
    op.create_table(
        "login",
        _string("id", 64, primary_key=True),
        sa.Column(
            "account_name", sa.String(64), sa.ForeignKey("account.name"), nullable=False, index=True
        ),
        _string("csrf", 64),
        _string("address", 64),
        _real("created_at"),
        _real("seen_at"),
        _real("expires_at", index=True),
    )
    op.create_table(
        "token",
        _id(),
        _string("digest", 64, unique=True),
        _string("name", 64),
        _string("role", 16),
        _string("created_by", 64),
        _real("created_at"),
        _real("used_at", nullable=True),
        _real("revoked_at", nullable=True),
        sa.CheckConstraint("role IN ('viewer', 'operator', 'administrator')", name="role"),
    )
    op.create_table(
        "login_failure",
        _id(),
        _string("account_name", 64, index=True),
        _string("address", 64, index=True),
        _real("at", index=True),
    )


def _control() -> None:
    op.create_table(
        "switch",
        _string("name", 32, primary_key=True),
        _string("subject", 64, primary_key=True),
        _string("who", 64),
        _real("at"),
    )
    op.create_table(
        "request",
        _id(),
        _string("kind", 32),
        _string("subject", 64, default=""),
        _string("who", 64),
        _real("asked_at", index=True),
        _string("state", 16),
        _string("worker", 64, nullable=True),
        _string("node", 64, nullable=True),
        _real("lease_until", nullable=True),
        _whole("attempt", default="0"),
        _real("done_at", nullable=True),
        _text("sentence", default=""),
        sa.CheckConstraint("(state = 'asked') = (done_at IS NULL)", name="done"),
        sa.CheckConstraint("state = 'asked' OR lease_until IS NULL", name="lease"),
        sa.CheckConstraint("state IN ('asked', 'done', 'failed')", name="state"),
    )
    _part("request", "open", "state = 'asked'", "id")
    op.create_table(
        "configuration",
        _string("node", 64, primary_key=True),
        _real("applied_at"),
        _text("text"),
        _text("restart", default="[]"),
        _real("refused_at", nullable=True),
        _text("problems", default="[]"),
    )
    op.create_table(
        "selftest",
        _id(),
        _string("node", 64),
        _string("who", 64),
        _real("started_at", index=True),
        _real("finished_at", nullable=True),
        _string("state", 16),
        _string("series_uid", 64, default=""),
        _string("destination", 64, default=""),
        _text("steps", default="[]"),
        _text("sentence", default=""),
        sa.CheckConstraint("(state = 'running') = (finished_at IS NULL)", name="finished"),
        sa.CheckConstraint("state IN ('running', 'passed', 'failed')", name="state"),
    )


def _peers() -> None:
    op.create_table(
        "echo",
        _id(),
        _string("destination", 64),
        _real("at", index=True),
        _whole("ok"),
        _real("seconds"),
        _text("sentence", default=""),
    )
    _index("echo", "destination", "at")
    op.create_table(
        "reach",
        _string("destination", 64, primary_key=True),
        _whole("up"),
        _real("since"),
        _real("checked_at"),
        _whole("failures", default="0"),
        _real("open_until", default="0"),
        _text("sentence", default=""),
    )


def _notices() -> None:
    op.create_table(
        "notice",
        _id(),
        _string("event", 32),
        _string("key", 160, unique=True),
        _real("at", index=True),
        _text("facts"),
        _whole("addressed", default="0"),
    )
    _part("notice", "new", "addressed = 0", "id")
    op.create_table(
        "message",
        _id(),
        _refers("notice.id", index=True),
        _string("channel", 64),
        _string("state", 16),
        _whole("tries", default="0"),
        _real("due_at"),
        _string("worker", 64, nullable=True),
        _string("node", 64, nullable=True),
        _real("lease_until", nullable=True),
        _whole("attempt", default="0"),
        _real("done_at", nullable=True),
        _text("sentence", default=""),
        sa.CheckConstraint("state = 'queued' OR lease_until IS NULL", name="lease"),
        sa.CheckConstraint("state IN ('queued', 'sent', 'failed')", name="state"),
    )
    _part("message", "open", "state = 'queued'", "due_at")
