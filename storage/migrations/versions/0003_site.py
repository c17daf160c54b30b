"""People, switches, wishes, notices and looks at peers; what the pages search and count by.

A migration is never edited once released: a change is a new file.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

ENDS = ("released", "aborted", "dropped", "lost")
BROUGHT = (
    "UPDATE arrival SET brought = (SELECT count(*) FROM arrival_instance "
    "WHERE arrival_instance.arrival_id = arrival.id) WHERE state = 'complete'"
)


def upgrade() -> None:
    """Make the tables of `storage.schema`, and the columns and indexes that pages need."""
    _people()
    _asked()
    _looks()
    _told()
    _received()
    _jobs()


def _people() -> None:
    op.create_table(
        "account",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("password", sa.Text(), server_default="", nullable=False),
        sa.Column("disabled", sa.Integer(), server_default="0", nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("changed_at", sa.Float(), nullable=False),
        sa.CheckConstraint(
            "role IN ('viewer', 'operator', 'administrator')", name=op.f("ck_account_role")
        ),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_account")),
    )
    op.create_table(
        "login",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("account_name", sa.String(length=64), nullable=False),
        sa.Column("csrf", sa.String(length=64), nullable=False),
        sa.Column("address", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("seen_at", sa.Float(), nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["account_name"], ["account.name"], name=op.f("fk_login_account_name")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_login")),
    )
    _index("login", "account_name")
    _index("login", "expires_at")
    op.create_table(
        "token",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("created_by", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("used_at", sa.Float(), nullable=True),
        sa.Column("revoked_at", sa.Float(), nullable=True),
        sa.CheckConstraint(
            "role IN ('viewer', 'operator', 'administrator')", name=op.f("ck_token_role")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_token")),
        sa.UniqueConstraint("digest", name=op.f("uq_token_digest")),
    )
    op.create_table(
        "login_failure",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("account_name", sa.String(length=64), nullable=False),
        sa.Column("address", sa.String(length=64), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_login_failure")),
    )
    _index("login_failure", "account_name")
    _index("login_failure", "address")
    _index("login_failure", "at")


def _asked() -> None:
    op.create_table(
        "switch",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("subject", sa.String(length=64), nullable=False),
        sa.Column("who", sa.String(length=64), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("name", "subject", name=op.f("pk_switch")),
    )
    op.create_table(
        "wish",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("subject", sa.String(length=64), server_default="", nullable=False),
        sa.Column("who", sa.String(length=64), nullable=False),
        sa.Column("asked_at", sa.Float(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("node", sa.String(length=64), nullable=True),
        sa.Column("done_at", sa.Float(), nullable=True),
        sa.Column("sentence", sa.Text(), server_default="", nullable=False),
        sa.CheckConstraint("(state = 'asked') = (done_at IS NULL)", name=op.f("ck_wish_done")),
        sa.CheckConstraint("state IN ('asked', 'done', 'failed')", name=op.f("ck_wish_state")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_wish")),
    )
    _index("wish", "asked_at")
    _index_where("state = 'asked'", "ix_wish_open", "wish", ["id"])
    op.create_table(
        "configuration",
        sa.Column("node", sa.String(length=64), nullable=False),
        sa.Column("applied_at", sa.Float(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("restart", sa.Text(), server_default="[]", nullable=False),
        sa.Column("refused_at", sa.Float(), nullable=True),
        sa.Column("problems", sa.Text(), server_default="[]", nullable=False),
        sa.PrimaryKeyConstraint("node", name=op.f("pk_configuration")),
    )


def _looks() -> None:
    op.create_table(
        "echo",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("destination", sa.String(length=64), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("ok", sa.Integer(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.Column("sentence", sa.Text(), server_default="", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_echo")),
    )
    _index("echo", "at")
    op.create_index("ix_echo_destination_at", "echo", ["destination", "at"])
    op.create_table(
        "reach",
        sa.Column("destination", sa.String(length=64), nullable=False),
        sa.Column("up", sa.Integer(), nullable=False),
        sa.Column("since", sa.Float(), nullable=False),
        sa.Column("checked_at", sa.Float(), nullable=False),
        sa.Column("failures", sa.Integer(), server_default="0", nullable=False),
        sa.Column("open_until", sa.Float(), server_default="0", nullable=False),
        sa.Column("sentence", sa.Text(), server_default="", nullable=False),
        sa.PrimaryKeyConstraint("destination", name=op.f("pk_reach")),
    )
    op.create_table(
        "selftest",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("node", sa.String(length=64), nullable=False),
        sa.Column("who", sa.String(length=64), nullable=False),
        sa.Column("started_at", sa.Float(), nullable=False),
        sa.Column("finished_at", sa.Float(), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("series_uid", sa.String(length=64), server_default="", nullable=False),
        sa.Column("destination", sa.String(length=64), server_default="", nullable=False),
        sa.Column("steps", sa.Text(), server_default="[]", nullable=False),
        sa.Column("sentence", sa.Text(), server_default="", nullable=False),
        sa.CheckConstraint(
            "(state = 'running') = (finished_at IS NULL)", name=op.f("ck_selftest_finished")
        ),
        sa.CheckConstraint(
            "state IN ('running', 'passed', 'failed')", name=op.f("ck_selftest_state")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_selftest")),
    )
    _index("selftest", "started_at")
    op.create_table(
        "disk",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("node", sa.String(length=64), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("free", sa.BigInteger(), nullable=False),
        sa.Column("total", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_disk")),
    )
    _index("disk", "at")


def _told() -> None:
    op.create_table(
        "notice",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("event", sa.String(length=32), nullable=False),
        sa.Column("key", sa.String(length=160), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("facts", sa.Text(), nullable=False),
        sa.Column("addressed", sa.Integer(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_notice")),
        sa.UniqueConstraint("key", name=op.f("uq_notice_key")),
    )
    _index("notice", "at")
    op.create_index(
        "ix_notice_new",
        "notice",
        ["id"],
        unique=False,
        sqlite_where=sa.text("addressed = 0"),
        postgresql_where=sa.text("addressed = 0"),
    )
    op.create_table(
        "message",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("notice_id", sa.Integer(), nullable=False),
        sa.Column("channel", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("tries", sa.Integer(), server_default="0", nullable=False),
        sa.Column("due_at", sa.Float(), nullable=False),
        sa.Column("done_at", sa.Float(), nullable=True),
        sa.Column("sentence", sa.Text(), server_default="", nullable=False),
        sa.CheckConstraint("state IN ('queued', 'sent', 'failed')", name=op.f("ck_message_state")),
        sa.ForeignKeyConstraint(["notice_id"], ["notice.id"], name=op.f("fk_message_notice_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_message")),
    )
    _index("message", "notice_id")
    _index_where("state = 'queued'", "ix_message_open", "message", ["due_at"])


def _received() -> None:
    op.add_column("series", sa.Column("patient_name", sa.Text(), server_default="", nullable=False))
    op.add_column("series", sa.Column("name_key", sa.Text(), server_default="", nullable=False))
    _prefix_index("series", ["accession"])
    _index("series", "description")
    _index("series", "last_at")
    _prefix_index("series", ["name_key"])
    _prefix_index("series", ["patient_id"])
    _index("series", "study_date")
    op.add_column("association", sa.Column("reason", sa.Text(), server_default="", nullable=False))
    op.create_index(
        "ix_association_calling_ae_opened_at", "association", ["calling_ae", "opened_at"]
    )
    _index_where("how = 'rejected'", "ix_association_rejected", "association", ["opened_at"])
    op.add_column("arrival", sa.Column("brought", sa.Integer(), server_default="0", nullable=False))
    op.create_index("ix_arrival_calling_ae_last_at", "arrival", ["calling_ae", "last_at"])
    op.create_index("ix_arrival_completed_at", "arrival", ["completed_at"])
    _index("audit", "which")
    association = sa.table("association", sa.column("how"), sa.column("reason"))
    # A rejected association had its reason where the others have their end.
    rejected = association.c.how.not_in(ENDS)
    op.execute(
        sa.update(association).where(rejected).values(reason=association.c.how, how="rejected")
    )
    op.execute(BROUGHT)


def _jobs() -> None:
    op.add_column("job", sa.Column("step", sa.String(length=16), server_default="", nullable=False))
    op.add_column("job", sa.Column("step_done", sa.Integer(), server_default="0", nullable=False))
    op.add_column("job", sa.Column("step_total", sa.Integer(), server_default="0", nullable=False))
    _index_where(
        "state NOT IN ('queued', 'running')", "ix_job_ended", "job", ["state", "queued_at"]
    )
    op.create_index("ix_job_finished_at", "job", ["finished_at"])
    op.create_index("ix_job_queued_at", "job", ["queued_at"])
    _index_where("reason <> ''", "ix_job_reason", "job", ["reason", "queued_at"])
    _index("derived", "superseded_at")
    _index_where(
        "state NOT IN ('queued', 'running')",
        "ix_delivery_ended",
        "delivery",
        ["state", "finished_at"],
    )
    op.create_index(
        "ix_delivery_finished",
        "delivery",
        ["destination", "finished_at"],
        unique=False,
        sqlite_where=sa.text("finished_at IS NOT NULL"),
        postgresql_where=sa.text("finished_at IS NOT NULL"),
    )


def _index(table: str, column: str) -> None:
    op.create_index(op.f(f"ix_{table}_{column}"), table, [column])


def _index_where(condition: str, name: str, table: str, columns: list[str]) -> None:
    where = sa.text(condition)
    op.create_index(name, table, columns, sqlite_where=where, postgresql_where=where)


def _prefix_index(table: str, columns: list[str]) -> None:
    (column,) = columns
    # How a text begins, whatever the collation of the PostgreSQL database is.
    ops = {column: "text_pattern_ops"}
    op.create_index(f"ix_{table}_{column}", table, columns, postgresql_ops=ops)
