"""The first schema: all tables of `storage.schema`, which says what each is for.

A migration is never edited once released: a change is a new file. What is written here is frozen:
nothing of it comes from the product's other modules.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

TYPES: dict[str, Any] = {
    "string": sa.String,
    "text": sa.Text,
    "integer": sa.Integer,
    "bigint": sa.BigInteger,
    "float": sa.Float,
}

# The columns of each table, which come after what they refer to. A column is its name and its type;
# then ->table.column, to which it refers; key, where it is of the primary key; null, where it may
# be; unique; index; =default. `id` alone is a number that the database counts up.
TABLES = {
    "node": """
        id string(64) key, started_at float, heartbeat float, state string(16),
        clean_at float null, version string(32) ='', address text ='', load float =0,
        lacks text ='', lacking_since float null
    """,
    "fact": "name string(64) key, value text",
    "scrub": "kind string(16) key, last_id integer",
    "trail": "kind string(16) key, at float, last_id integer",
    "association": """
        id, node string(64), calling_ae string(16), called_ae string(16), address string(64),
        opened_at float, ended_at float null index, how string(32) null, reason text =''
    """,
    "disk": "id, node string(64), at float index, free bigint, total bigint",
    "audit": """
        id, at float index, who string(64), what string(64), which text index ='', detail text ={}
    """,
    "series": """
        id, series_uid string(64) index, study_uid string(64) index, modality string(16) ='',
        patient_id text ='', patient_name text ='', name_key text ='', accession text ='',
        study_date string(16) index ='', description text index ='', first_at float,
        last_at float index, purged_at float null, purging integer =0, committed_at float null
    """,
    "instance": """
        id, series_id integer ->series.id, instance_uid string(64) index,
        sop_class_uid string(64), transfer_syntax string(64), digest string(64), size bigint,
        path string(255) null index, received_at float
    """,
    "arrival": """
        id, series_id integer ->series.id index, calling_ae string(16), called_ae string(16),
        state string(16), first_at float, last_at float, completed_at float null,
        evidence text ={}, brought integer =0, own integer =0,
        restored integer =0
    """,
    "arrival_instance": """
        arrival_id integer ->arrival.id key, instance_id integer ->instance.id key index,
        brought_at float
    """,
    "arrival_association": """
        arrival_id integer ->arrival.id key, association_id integer ->association.id key index
    """,
    "derived": """
        id, series_id integer ->series.id index, series_uid string(64) unique, folder string(255),
        edition integer, made_at float, offered_at float null, superseded_at float null index,
        purged_at float null, stack text ='', route string(64) ='', content_uid string(64) ='',
        revision integer =1, place integer =0, named integer =0
    """,
    "derived_instance": """
        id, derived_id integer ->derived.id index, instance_uid string(64) unique,
        sop_class_uid string(64), path string(255), digest string(64), generated integer,
        series_uid string(64), kind string(32), is_supplement integer =0
    """,
    "job": """
        id, kind string(16), key string(64) unique, state string(16), reason string(64) ='',
        sentence text ='', priority integer, queued_at float index, due_at float,
        started_at float null, finished_at float null, worker string(64) null,
        node string(64) null, lease_until float null, attempt integer =0,
        series_id integer ->series.id index, arrival_id integer ->arrival.id index, stack text,
        route string(64), model string(128), version string(32) ='', parameters text,
        edition integer =1, worker_deaths integer =0, abandoned integer =0, progress float =0,
        step string(16) ='', step_done integer =0, step_total integer =0,
        cancel_requested integer =0, derived_id integer ->derived.id null index, record text ={},
        confidence_counts text ={},
        requeued_by string(64) null, requeue_requested integer =0, revision integer =1,
        place integer =0, named integer =0
    """,
    "want": """
        job_id integer ->job.id key, arrival_id integer ->arrival.id key index,
        destination string(64) key, rank integer, withdrawn integer =0
    """,
    "job_instance": """
        job_id integer ->job.id key, instance_id integer ->instance.id key index, rank integer
    """,
    "attempt": """
        job_id integer ->job.id key, number integer key, worker string(64), started_at float,
        ended_at float null, outcome string(32) null, detail text =''
    """,
    "delivery": """
        id, derived_id integer ->derived.id index, destination string(64), state string(16),
        reason string(64) ='', sentence text ='', priority integer, queued_at float, due_at float,
        started_at float null, finished_at float null, worker string(64) null,
        node string(64) null, lease_until float null, attempt integer =0, failures integer =0
    """,
    "delivery_instance": """
        delivery_id integer ->delivery.id key,
        derived_instance_id integer ->derived_instance.id key, status integer null,
        comment text ='', stored integer =0, offers integer =0, not_understood integer =0,
        answered_at float null, confirmed_at float null, evidence string(16) null,
        commitment_failure integer null
    """,
    "commitment": """
        id, delivery_id integer ->delivery.id unique, destination string(64), state string(16),
        reason string(64) ='', sentence text ='', priority integer, queued_at float, due_at float,
        started_at float null, finished_at float null, worker string(64) null,
        node string(64) null, lease_until float null, attempt integer =0, evidence string(16),
        tries integer =0, failures integer =0, resent integer =0
    """,
    "commitment_request": """
        id, commitment_id integer ->commitment.id index, transaction_uid string(64) unique,
        asked_at float, status integer null, reported_at float null, reported_by text ='',
        committed integer =0, failed integer =0, void integer =0
    """,
    "owed_report": """
        id, calling_ae string(16), called_ae string(16), transaction_uid string(64),
        instances text =[], state string(16), asked_at float index, due_at float,
        worker string(64) null, node string(64) null, lease_until float null, attempt integer =0,
        tries integer =0, done_at float null, committed integer =0, failed integer =0,
        sentence text =''
    """,
    "account": """
        name string(64) key, role string(16), password text ='', disabled integer =0,
        created_at float, changed_at float
    """,
    "login": """
        id string(64) key, account_name string(64) null ->account.name index,
        person string(64) null index, role string(16) null, csrf string(64), address string(64),
        created_at float, seen_at float, expires_at float index
    """,
    "token": """
        id, digest string(64) unique, name string(64), role string(16), created_by string(64),
        created_at float, used_at float null, revoked_at float null
    """,
    "login_failure": "id, account_name string(64) index, address string(64) index, at float index",
    "switch": "name string(32) key, subject string(64) key, who string(64), at float",
    "request": """
        id, kind string(32), subject string(64) ='', route string(64) ='',
        destination string(64) ='', series_uid string(64) ='', who string(64),
        asked_at float index, state string(16), worker string(64) null, node string(64) null,
        lease_until float null, attempt integer =0, done_at float null, sentence text =''
    """,
    "configuration": """
        node string(64) key, applied_at float, text text, restart text =[], refused_at float null,
        problems text =[]
    """,
    "selftest": """
        id, node string(64), who string(64), started_at float index, finished_at float null,
        state string(16), series_uid string(64) ='', destination string(64) ='', steps text =[],
        sentence text =''
    """,
    "echo": """
        id, destination string(64), at float index, ok integer, seconds float, sentence text =''
    """,
    "reach": """
        destination string(64) key, up integer, since float, checked_at float,
        failures integer =0, open_until float =0, sentence text =''
    """,
    "notice": """
        id, event string(32), key string(160) unique, at float index, facts text,
        addressed integer =0
    """,
    "message": """
        id, notice_id integer ->notice.id index, channel string(64), state string(16),
        tries integer =0, due_at float, worker string(64) null, node string(64) null,
        lease_until float null, attempt integer =0, done_at float null, sentence text =''
    """,
}
# Table, name, condition.
CHECKS = (
    ("instance", "size", "size >= 0"),
    ("arrival", "completed", "(state = 'complete') = (completed_at IS NOT NULL)"),
    ("arrival", "state", "state IN ('arriving', 'complete')"),
    ("job", "derived", "state <> 'succeeded' OR derived_id IS NOT NULL"),
    ("job", "lease", "(state = 'running') = (lease_until IS NOT NULL)"),
    ("job", "priority", "priority BETWEEN 1 AND 9"),
    ("job", "progress", "progress BETWEEN 0 AND 1"),
    ("job", "reason", "(state IN ('refused', 'held', 'failed')) <= (reason <> '')"),
    ("job", "requeue", "requeue_requested = 0 OR state = 'queued'"),
    (
        "job",
        "state",
        "state IN ('queued', 'running', 'succeeded', 'refused', 'failed', 'held', 'cancelled')",
    ),
    ("want", "shadow", "destination <> '' OR rank = 0"),
    ("delivery", "lease", "(state = 'running') = (lease_until IS NOT NULL)"),
    ("delivery", "reason", "state <> 'held' OR reason <> ''"),
    (
        "delivery",
        "state",
        "state IN ('queued', 'running', 'sent', 'confirmed', 'held', 'cancelled')",
    ),
    ("delivery_instance", "proof", "confirmed_at IS NULL OR (stored = 1 AND evidence IS NOT NULL)"),
    ("commitment", "evidence", "evidence IN ('commitment', 'query')"),
    ("commitment", "lease", "(state = 'running') = (lease_until IS NOT NULL)"),
    ("commitment", "reason", "state NOT IN ('failed', 'unproved') OR reason <> ''"),
    (
        "commitment",
        "state",
        "state IN ('queued', 'running', 'waiting', 'sending', 'confirmed', 'failed', 'unproved', "
        "'cancelled')",
    ),
    ("owed_report", "lease", "(state = 'running') = (lease_until IS NOT NULL)"),
    ("owed_report", "state", "state IN ('queued', 'running', 'sent', 'failed')"),
    ("account", "role", "role IN ('viewer', 'operator', 'administrator')"),
    ("login", "person", "(account_name IS NULL) = (person IS NOT NULL)"),
    ("login", "role", "(person IS NULL) = (role IS NULL)"),
    ("token", "role", "role IN ('viewer', 'operator', 'administrator')"),
    ("request", "done", "(state = 'asked') = (done_at IS NULL)"),
    ("request", "lease", "state = 'asked' OR lease_until IS NULL"),
    ("request", "state", "state IN ('asked', 'done', 'failed')"),
    ("selftest", "finished", "(state = 'running') = (finished_at IS NULL)"),
    ("selftest", "state", "state IN ('running', 'passed', 'failed')"),
    ("message", "lease", "state = 'queued' OR lease_until IS NULL"),
    ("message", "state", "state IN ('queued', 'sent', 'failed')"),
)

UNIQUE = {
    "series": "study_uid series_uid",
    "instance": "series_id instance_uid digest",
    "delivery": "derived_id destination",
    "owed_report": "calling_ae transaction_uid",
}

WITHOUT_ROWID = ("arrival_instance", "arrival_association")

# Indexes of several columns, and of columns that are searched by how they begin.
INDEXES = (
    ("association", "calling_ae opened_at"),
    ("arrival", "calling_ae last_at"),
    ("arrival", "completed_at brought"),
    ("job", "finished_at"),
    ("echo", "destination at"),
)
PREFIXES = (("series", "accession"), ("series", "name_key"), ("series", "patient_id"))

# Indexes of the rows for which a condition holds: table, name, condition, columns.
PARTS = (
    ("association", "rejected", "how = 'rejected'", "opened_at"),
    ("job", "due", "state IN ('queued', 'running')", "priority due_at"),
    ("job", "ended", "state NOT IN ('queued', 'running')", "state queued_at"),
    ("job", "reason", "reason <> ''", "reason queued_at"),
    ("job", "needs", "state IN ('held', 'failed')", "state reason finished_at series_id kind"),
    ("job", "route", "state NOT IN ('queued', 'running')", "route finished_at state"),
    ("job", "requeued", "requeue_requested = 1", "id"),
    ("derived", "kept", "purged_at IS NULL", "folder"),
    ("series", "kept", "purged_at IS NULL", "last_at"),
    ("series", "purging", "purging = 1", "id"),
    ("delivery", "ended", "state NOT IN ('queued', 'running')", "state finished_at"),
    ("delivery", "finished", "finished_at IS NOT NULL", "destination finished_at state"),
    ("delivery", "open", "state IN ('queued', 'running', 'held')", "destination due_at"),
    ("commitment", "open", "state IN ('queued', 'running', 'waiting')", "destination due_at"),
    ("owed_report", "open", "state IN ('queued', 'running')", "calling_ae due_at"),
    ("request", "open", "state = 'asked'", "id"),
    ("notice", "new", "addressed = 0", "id"),
    ("message", "open", "state = 'queued'", "due_at"),
)
UNIQUE_PARTS = (("arrival", "open", "state = 'arriving'", "series_id calling_ae called_ae"),)


def upgrade() -> None:
    """Make every table; constraints and indexes are named by the convention of the metadata."""
    for table, columns in TABLES.items():
        checks = [sa.CheckConstraint(text, name=name) for of, name, text in CHECKS if of == table]
        unique = [sa.UniqueConstraint(*UNIQUE[table].split())] if table in UNIQUE else []
        parts = (*map(_column, columns.split(",")), *checks, *unique)
        op.create_table(table, *parts, sqlite_with_rowid=table not in WITHOUT_ROWID)
    for table, columns in INDEXES:
        names = columns.split()
        op.create_index(op.f(f"ix_{table}_{'_'.join(names)}"), table, names)
    for table, column in PREFIXES:
        ops = {column: "text_pattern_ops"}
        op.create_index(op.f(f"ix_{table}_{column}"), table, [column], postgresql_ops=ops)
    for partial_indexes, is_unique in ((PARTS, False), (UNIQUE_PARTS, True)):
        for table, name, condition, columns in partial_indexes:
            where: Any = {f"{kind}_where": sa.text(condition) for kind in ("sqlite", "postgresql")}
            name = op.f(f"ix_{table}_{name}")
            op.create_index(name, table, columns.split(), unique=is_unique, **where)


def _column(text: str) -> sa.Column[Any]:
    name, *words = text.split()
    if not words:
        return sa.Column(name, sa.Integer(), primary_key=True, autoincrement=True)
    kind, _, length = words[0].rstrip(")").partition("(")
    type_ = TYPES[kind](int(length)) if length else TYPES[kind]()
    references = [sa.ForeignKey(word[2:]) for word in words if word.startswith("->")]
    defaults = [word[1:].strip("'") for word in words if word.startswith("=")]
    return sa.Column(
        name,
        type_,
        *references,
        primary_key="key" in words,
        nullable="null" in words,
        unique="unique" in words or None,
        index="index" in words or None,
        server_default=defaults[0] if defaults else None,
    )
