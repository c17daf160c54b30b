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
    op.create_index(op.f("ix_association_ended_at"), "association", ["ended_at"], unique=False)
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
    op.create_index(op.f("ix_audit_at"), "audit", ["at"], unique=False)


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
    op.create_index(op.f("ix_series_series_uid"), "series", ["series_uid"], unique=False)
    op.create_index(op.f("ix_series_study_uid"), "series", ["study_uid"], unique=False)
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
        sa.ForeignKeyConstraint(["series_id"], ["series.id"], name=op.f("fk_instance_series_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_instance")),
        sa.UniqueConstraint(
            "series_id",
            "instance_uid",
            "digest",
            name=op.f("uq_instance_series_id_instance_uid_digest"),
        ),
    )
    op.create_index(op.f("ix_instance_instance_uid"), "instance", ["instance_uid"], unique=False)
    op.create_index(op.f("ix_instance_path"), "instance", ["path"], unique=False)
    op.create_index(op.f("ix_instance_series_id"), "instance", ["series_id"], unique=False)
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
        sa.ForeignKeyConstraint(["series_id"], ["series.id"], name=op.f("fk_arrival_series_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_arrival")),
    )
    op.create_index(
        "ix_arrival_open",
        "arrival",
        ["series_id", "calling_ae", "called_ae"],
        unique=True,
        sqlite_where=sa.text("state = 'arriving'"),
        postgresql_where=sa.text("state = 'arriving'"),
    )
    op.create_index(op.f("ix_arrival_series_id"), "arrival", ["series_id"], unique=False)
    op.create_table(
        "arrival_instance",
        sa.Column("arrival_id", sa.Integer(), nullable=False),
        sa.Column("instance_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["arrival_id"], ["arrival.id"], name=op.f("fk_arrival_instance_arrival_id")
        ),
        sa.ForeignKeyConstraint(
            ["instance_id"], ["instance.id"], name=op.f("fk_arrival_instance_instance_id")
        ),
        sa.PrimaryKeyConstraint("arrival_id", "instance_id", name=op.f("pk_arrival_instance")),
    )
    op.create_index(
        op.f("ix_arrival_instance_instance_id"), "arrival_instance", ["instance_id"], unique=False
    )
    op.create_table(
        "arrival_association",
        sa.Column("arrival_id", sa.Integer(), nullable=False),
        sa.Column("association_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["arrival_id"], ["arrival.id"], name=op.f("fk_arrival_association_arrival_id")
        ),
        sa.ForeignKeyConstraint(
            ["association_id"],
            ["association.id"],
            name=op.f("fk_arrival_association_association_id"),
        ),
        sa.PrimaryKeyConstraint(
            "arrival_id", "association_id", name=op.f("pk_arrival_association")
        ),
    )
    op.create_index(
        op.f("ix_arrival_association_association_id"),
        "arrival_association",
        ["association_id"],
        unique=False,
    )


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
        sa.ForeignKeyConstraint(["series_id"], ["series.id"], name=op.f("fk_derived_series_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_derived")),
        sa.UniqueConstraint("series_uid", name=op.f("uq_derived_series_uid")),
    )
    op.create_index(op.f("ix_derived_series_id"), "derived", ["series_id"], unique=False)
    op.create_table(
        "derived_instance",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("derived_id", sa.Integer(), nullable=False),
        sa.Column("instance_uid", sa.String(length=64), nullable=False),
        sa.Column("sop_class_uid", sa.String(length=64), nullable=False),
        sa.Column("path", sa.String(length=255), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("generated", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["derived_id"], ["derived.id"], name=op.f("fk_derived_instance_derived_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_derived_instance")),
        sa.UniqueConstraint("instance_uid", name=op.f("uq_derived_instance_instance_uid")),
    )
    op.create_index(
        op.f("ix_derived_instance_derived_id"), "derived_instance", ["derived_id"], unique=False
    )


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
        sa.ForeignKeyConstraint(["arrival_id"], ["arrival.id"], name=op.f("fk_job_arrival_id")),
        sa.ForeignKeyConstraint(["derived_id"], ["derived.id"], name=op.f("fk_job_derived_id")),
        sa.ForeignKeyConstraint(["series_id"], ["series.id"], name=op.f("fk_job_series_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job")),
        sa.UniqueConstraint("key", name=op.f("uq_job_key")),
    )
    op.create_index(op.f("ix_job_arrival_id"), "job", ["arrival_id"], unique=False)
    op.create_index(op.f("ix_job_derived_id"), "job", ["derived_id"], unique=False)
    op.create_index(
        "ix_job_due",
        "job",
        ["priority", "due_at"],
        unique=False,
        sqlite_where=sa.text("state IN ('queued', 'running')"),
        postgresql_where=sa.text("state IN ('queued', 'running')"),
    )
    op.create_index(op.f("ix_job_series_id"), "job", ["series_id"], unique=False)
    op.create_table(
        "job_instance",
        sa.Column("job_id", sa.Integer(), nullable=False),
        sa.Column("instance_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["instance_id"], ["instance.id"], name=op.f("fk_job_instance_instance_id")
        ),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_job_instance_job_id")),
        sa.PrimaryKeyConstraint("job_id", "instance_id", name=op.f("pk_job_instance")),
    )
    op.create_index(
        op.f("ix_job_instance_instance_id"), "job_instance", ["instance_id"], unique=False
    )
    op.create_table(
        "attempt",
        sa.Column("job_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("worker", sa.String(length=64), nullable=False),
        sa.Column("started_at", sa.Float(), nullable=False),
        sa.Column("ended_at", sa.Float(), nullable=True),
        sa.Column("outcome", sa.String(length=32), nullable=True),
        sa.Column("detail", sa.Text(), server_default="", nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_attempt_job_id")),
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
        sa.ForeignKeyConstraint(
            ["derived_id"], ["derived.id"], name=op.f("fk_delivery_derived_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_delivery")),
        sa.UniqueConstraint(
            "derived_id", "destination", name=op.f("uq_delivery_derived_id_destination")
        ),
    )
    op.create_index(op.f("ix_delivery_derived_id"), "delivery", ["derived_id"], unique=False)
    op.create_index(
        "ix_delivery_due",
        "delivery",
        ["destination", "due_at"],
        unique=False,
        sqlite_where=sa.text("state IN ('queued', 'running')"),
        postgresql_where=sa.text("state IN ('queued', 'running')"),
    )
    op.create_table(
        "delivery_instance",
        sa.Column("delivery_id", sa.Integer(), nullable=False),
        sa.Column("derived_instance_id", sa.Integer(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("stored", sa.Integer(), server_default="0", nullable=False),
        sa.Column("offers", sa.Integer(), server_default="0", nullable=False),
        sa.Column("answered_at", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(
            ["delivery_id"], ["delivery.id"], name=op.f("fk_delivery_instance_delivery_id")
        ),
        sa.ForeignKeyConstraint(
            ["derived_instance_id"],
            ["derived_instance.id"],
            name=op.f("fk_delivery_instance_derived_instance_id"),
        ),
        sa.PrimaryKeyConstraint(
            "delivery_id", "derived_instance_id", name=op.f("pk_delivery_instance")
        ),
    )
