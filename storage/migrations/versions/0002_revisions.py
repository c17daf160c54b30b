"""Who asked for a job, and what tells the derived series of one received series apart.

A migration is never edited once released: a change is a new file.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add what `storage.schema` says of marks and askers; what exists is a first revision."""
    _askers()
    _marks("job")
    op.add_column("job", _count("insisted"))
    _marks("derived")
    op.add_column("derived", sa.Column("stack", sa.Text(), server_default="", nullable=False))
    op.add_column("derived", _text("route"))
    op.add_column("derived", _text("content_uid"))
    op.execute("UPDATE derived SET content_uid = series_uid")
    for column in ("stack", "route"):
        op.execute(
            f"UPDATE derived SET {column} = coalesce((SELECT job.{column} FROM job "  # noqa: S608
            "WHERE job.derived_id = derived.id ORDER BY job.id LIMIT 1), '')"
        )


def _askers() -> None:
    op.create_table(
        "job_asker",
        sa.Column("job_id", sa.Integer(), nullable=False),
        sa.Column("arrival_id", sa.Integer(), nullable=False),
        sa.Column("destinations", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_job_asker_job_id")),
        sa.ForeignKeyConstraint(
            ["arrival_id"], ["arrival.id"], name=op.f("fk_job_asker_arrival_id")
        ),
        sa.PrimaryKeyConstraint("job_id", "arrival_id", name=op.f("pk_job_asker")),
    )
    op.create_index(op.f("ix_job_asker_arrival_id"), "job_asker", ["arrival_id"], unique=False)
    op.execute(
        "INSERT INTO job_asker (job_id, arrival_id, destinations) "
        "SELECT id, arrival_id, destinations FROM job"
    )


def _marks(table: str) -> None:
    op.add_column(table, sa.Column("revision", sa.Integer(), server_default="1", nullable=False))
    op.add_column(table, _count("place"))
    op.add_column(table, _count("named"))


def _count(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.Integer(), server_default="0", nullable=False)


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.String(length=64), server_default="", nullable=False)
