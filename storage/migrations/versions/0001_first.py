"""The first schema: received series, arrivals, jobs, derived series, deliveries.

A migration is never edited once released: a change is a new file.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make every table; `storage.schema` says what each is for."""
    _node()
    _received()
    _derived()
    _jobs()
    _deliveries()


def _index(table: str, column: str) -> None:
    op.create_index(op.f(f"ix_{table}_{column}"), table, [column], unique=False)


def _refers(table: str, other: str) -> sa.ForeignKeyConstraint:
    name = op.f(f"fk_{table}_{other}_id")
    return sa.ForeignKeyConstraint([f"{other}_id"], [f"{other}.id"], name=name)


def _index_where(
    condition: str, name: str, table: str, columns: list[str], *, unique: bool = False
) -> None:
    where = sa.text(condition)
    op.create_index(name, table, columns, unique=unique, sqlite_where=where, postgresql_where=where)


def _node() -> None:
    op.create_table(
        "node",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("started_at", sa.Float(), nullable=False),
        sa.Column("heartbeat", sa.Float(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("clean_at", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_node")),
    )
    op.create_table(
        "fact",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_fact")),
    )
    op.create_table(
        "association",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("node", sa.String(length=64), nullable=False),
        sa.Column("calling_ae", sa.String(length=16), nullable=False),
        sa.Column("called_ae", sa.String(length=16), nullable=False),
        sa.Column("address", sa.String(length=64), nullable=False),
        sa.Column("opened_at", sa.Float(), nullable=False),
        sa.Column("ended_at", sa.Float(), nullable=True),
        sa.Column("how", sa.String(length=32), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_association")),
    )
    _index("association", "ended_at")
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("who", sa.String(length=64), nullable=False),
        sa.Column("what", sa.String(length=64), nullable=False),
        sa.Column("which", sa.Text(), server_default="", nullable=False),
        sa.Column("detail", sa.Text(), server_default="{}", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
    )
    _index("audit", "at")


def _received() -> None:
    op.create_table(
        "series",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("series_uid", sa.String(length=64), nullable=False),
        sa.Column("study_uid", sa.String(length=64), nullable=False),
        sa.Column("modality", sa.String(length=16), server_default="", nullable=False),
        sa.Column("patient_id", sa.Text(), server_default="", nullable=False),
        sa.Column("accession", sa.Text(), server_default="", nullable=False),
        sa.Column("study_date", sa.String(length=16), server_default="", nullable=False),
        sa.Column("description", sa.Text(), server_default="", nullable=False),
        sa.Column("first_at", sa.Float(), nullable=False),
        sa.Column("last_at", sa.Float(), nullable=False),
        sa.Column("purged_at", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_series")),
        sa.UniqueConstraint("study_uid", "series_uid", name=op.f("uq_series_study_uid_series_uid")),
    )
    _index("series", "series_uid")
    _index("series", "study_uid")
    op.create_table(
        "instance",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("series_id", sa.Integer(), nullable=False),
        sa.Column("instance_uid", sa.String(length=64), nullable=False),
        sa.Column("sop_class_uid", sa.String(length=64), nullable=False),
        sa.Column("transfer_syntax", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("path", sa.String(length=255), nullable=True),
        sa.Column("received_at", sa.Float(), nullable=False),
        sa.CheckConstraint("size >= 0", name=op.f("ck_instance_size")),
        _refers("instance", "series"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_instance")),
        sa.UniqueConstraint(
            "series_id",
            "instance_uid",
            "digest",
            name=op.f("uq_instance_series_id_instance_uid_digest"),
        ),
    )
    _index("instance", "instance_uid")
    _index("instance", "path")
    _index("instance", "series_id")
    op.create_table(
        "arrival",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("series_id", sa.Integer(), nullable=False),
        sa.Column("calling_ae", sa.String(length=16), nullable=False),
        sa.Column("called_ae", sa.String(length=16), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("first_at", sa.Float(), nullable=False),
        sa.Column("last_at", sa.Float(), nullable=False),
        sa.Column("completed_at", sa.Float(), nullable=True),
        sa.Column("evidence", sa.Text(), server_default="{}", nullable=False),
        sa.Column("own", sa.Integer(), server_default="0", nullable=False),
        sa.CheckConstraint(
            "(state = 'complete') = (completed_at IS NOT NULL)", name=op.f("ck_arrival_completed")
        ),
        sa.CheckConstraint("state IN ('arriving', 'complete')", name=op.f("ck_arrival_state")),
        _refers("arrival", "series"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_arrival")),
    )
    _index_where(
        "state = 'arriving'",
        "ix_arrival_open",
        "arrival",
        ["series_id", "calling_ae", "called_ae"],
        unique=True,
    )
    _index("arrival", "series_id")
    op.create_table(
        "arrival_instance",
        sa.Column("arrival_id", sa.Integer(), nullable=False),
        sa.Column("instance_id", sa.Integer(), nullable=False),
        sa.Column("brought_at", sa.Float(), nullable=False),
        _refers("arrival_instance", "arrival"),
        _refers("arrival_instance", "instance"),
        sa.PrimaryKeyConstraint("arrival_id", "instance_id", name=op.f("pk_arrival_instance")),
    )
    _index("arrival_instance", "instance_id")
    op.create_table(
        "arrival_association",
        sa.Column("arrival_id", sa.Integer(), nullable=False),
        sa.Column("association_id", sa.Integer(), nullable=False),
        _refers("arrival_association", "arrival"),
        _refers("arrival_association", "association"),
        sa.PrimaryKeyConstraint(
            "arrival_id", "association_id", name=op.f("pk_arrival_association")
        ),
    )
    _index("arrival_association", "association_id")


def _derived() -> None:
    op.create_table(
        "derived",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("series_id", sa.Integer(), nullable=False),
        sa.Column("series_uid", sa.String(length=64), nullable=False),
        sa.Column("folder", sa.String(length=255), nullable=False),
        sa.Column("edition", sa.Integer(), nullable=False),
        sa.Column("made_at", sa.Float(), nullable=False),
        sa.Column("offered_at", sa.Float(), nullable=True),
        sa.Column("superseded_at", sa.Float(), nullable=True),
        sa.Column("purged_at", sa.Float(), nullable=True),
        _refers("derived", "series"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_derived")),
        sa.UniqueConstraint("series_uid", name=op.f("uq_derived_series_uid")),
    )
    _index("derived", "series_id")
    op.create_table(
        "derived_instance",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("derived_id", sa.Integer(), nullable=False),
        sa.Column("instance_uid", sa.String(length=64), nullable=False),
        sa.Column("sop_class_uid", sa.String(length=64), nullable=False),
        sa.Column("path", sa.String(length=255), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("generated", sa.Integer(), nullable=False),
        _refers("derived_instance", "derived"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_derived_instance")),
        sa.UniqueConstraint("instance_uid", name=op.f("uq_derived_instance_instance_uid")),
    )
    _index("derived_instance", "derived_id")


def _jobs() -> None:
    op.create_table(
        "job",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.String(length=64), server_default="", nullable=False),
        sa.Column("sentence", sa.Text(), server_default="", nullable=False),
        sa.Column("series_id", sa.Integer(), nullable=False),
        sa.Column("arrival_id", sa.Integer(), nullable=False),
        sa.Column("stack", sa.Text(), nullable=False),
        sa.Column("route", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=128), nullable=False),
        sa.Column("version", sa.String(length=32), server_default="", nullable=False),
        sa.Column("parameters", sa.Text(), nullable=False),
        sa.Column("destinations", sa.Text(), nullable=False),
        sa.Column("edition", sa.Integer(), server_default="1", nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("queued_at", sa.Float(), nullable=False),
        sa.Column("due_at", sa.Float(), nullable=False),
        sa.Column("started_at", sa.Float(), nullable=True),
        sa.Column("finished_at", sa.Float(), nullable=True),
        sa.Column("worker", sa.String(length=64), nullable=True),
        sa.Column("node", sa.String(length=64), nullable=True),
        sa.Column("lease_until", sa.Float(), nullable=True),
        sa.Column("attempt", sa.Integer(), server_default="0", nullable=False),
        sa.Column("worker_deaths", sa.Integer(), server_default="0", nullable=False),
        sa.Column("abandoned", sa.Integer(), server_default="0", nullable=False),
        sa.Column("progress", sa.Float(), server_default="0", nullable=False),
        sa.Column("cancel_requested", sa.Integer(), server_default="0", nullable=False),
        sa.Column("derived_id", sa.Integer(), nullable=True),
        sa.Column("record", sa.Text(), server_default="{}", nullable=False),
        sa.CheckConstraint(
            "(state = 'running') = (lease_until IS NOT NULL)", name=op.f("ck_job_lease")
        ),
        sa.CheckConstraint(
            "(state IN ('refused', 'held', 'failed')) <= (reason <> '')", name=op.f("ck_job_reason")
        ),
        sa.CheckConstraint(
            "state <> 'succeeded' OR derived_id IS NOT NULL", name=op.f("ck_job_derived")
        ),
        sa.CheckConstraint(
            "state IN ('queued', 'running', 'succeeded', 'refused', 'failed', 'held', 'cancelled')",
            name=op.f("ck_job_state"),
        ),
        sa.CheckConstraint("priority BETWEEN 1 AND 9", name=op.f("ck_job_priority")),
        sa.CheckConstraint("progress BETWEEN 0 AND 1", name=op.f("ck_job_progress")),
        _refers("job", "arrival"),
        _refers("job", "derived"),
        _refers("job", "series"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job")),
        sa.UniqueConstraint("key", name=op.f("uq_job_key")),
    )
    _index("job", "arrival_id")
    _index("job", "derived_id")
    _index_where(
        "state IN ('queued', 'running')",
        "ix_job_due",
        "job",
        ["priority", "due_at"],
    )
    _index("job", "series_id")
    op.create_table(
        "job_instance",
        sa.Column("job_id", sa.Integer(), nullable=False),
        sa.Column("instance_id", sa.Integer(), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        _refers("job_instance", "instance"),
        _refers("job_instance", "job"),
        sa.PrimaryKeyConstraint("job_id", "instance_id", name=op.f("pk_job_instance")),
    )
    _index("job_instance", "instance_id")
    op.create_table(
        "attempt",
        sa.Column("job_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("worker", sa.String(length=64), nullable=False),
        sa.Column("started_at", sa.Float(), nullable=False),
        sa.Column("ended_at", sa.Float(), nullable=True),
        sa.Column("outcome", sa.String(length=32), nullable=True),
        sa.Column("detail", sa.Text(), server_default="", nullable=False),
        _refers("attempt", "job"),
        sa.PrimaryKeyConstraint("job_id", "number", name=op.f("pk_attempt")),
    )


def _deliveries() -> None:
    op.create_table(
        "delivery",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("derived_id", sa.Integer(), nullable=False),
        sa.Column("destination", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.String(length=64), server_default="", nullable=False),
        sa.Column("sentence", sa.Text(), server_default="", nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("queued_at", sa.Float(), nullable=False),
        sa.Column("due_at", sa.Float(), nullable=False),
        sa.Column("started_at", sa.Float(), nullable=True),
        sa.Column("finished_at", sa.Float(), nullable=True),
        sa.Column("worker", sa.String(length=64), nullable=True),
        sa.Column("node", sa.String(length=64), nullable=True),
        sa.Column("lease_until", sa.Float(), nullable=True),
        sa.Column("attempt", sa.Integer(), server_default="0", nullable=False),
        sa.Column("failures", sa.Integer(), server_default="0", nullable=False),
        sa.CheckConstraint(
            "(state = 'running') = (lease_until IS NOT NULL)", name=op.f("ck_delivery_lease")
        ),
        sa.CheckConstraint("state <> 'held' OR reason <> ''", name=op.f("ck_delivery_reason")),
        sa.CheckConstraint(
            "state IN ('queued', 'running', 'sent', 'confirmed', 'held', 'cancelled')",
            name=op.f("ck_delivery_state"),
        ),
        _refers("delivery", "derived"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_delivery")),
        sa.UniqueConstraint(
            "derived_id", "destination", name=op.f("uq_delivery_derived_id_destination")
        ),
    )
    _index("delivery", "derived_id")
    _index_where(
        "state IN ('queued', 'running', 'held')",
        "ix_delivery_open",
        "delivery",
        ["destination", "due_at"],
    )
    op.create_table(
        "delivery_instance",
        sa.Column("delivery_id", sa.Integer(), nullable=False),
        sa.Column("derived_instance_id", sa.Integer(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("stored", sa.Integer(), server_default="0", nullable=False),
        sa.Column("offers", sa.Integer(), server_default="0", nullable=False),
        sa.Column("not_understood", sa.Integer(), server_default="0", nullable=False),
        sa.Column("answered_at", sa.Float(), nullable=True),
        _refers("delivery_instance", "delivery"),
        _refers("delivery_instance", "derived_instance"),
        sa.PrimaryKeyConstraint(
            "delivery_id", "derived_instance_id", name=op.f("pk_delivery_instance")
        ),
    )
