"""The tables: each state and what leads to it; the database refuses what cannot happen."""

from enum import StrEnum
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from storage.records import (
    ArrivalState,
    DeliveryState,
    JobState,
    MessageState,
    RequestState,
    Role,
    SelfTestState,
)

# Times are seconds since the epoch, UTC. File columns are relative to `storage.folder`.

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def key_column() -> Column[int]:
    return Column("id", Integer, primary_key=True, autoincrement=True)


def _reference(column: str, *, index: bool = True) -> Column[int]:
    return Column(
        column.split(".")[0] + "_id", Integer, ForeignKey(column), nullable=False, index=index
    )


def _mark() -> tuple[Column[int], ...]:
    """What tells a derived series from the others of its received series; a first one has none."""
    return (
        Column("revision", Integer, nullable=False, server_default="1"),  # of its stack and route
        Column("place", Integer, nullable=False, server_default="0"),  # among all of its series
        Column("named", Integer, nullable=False, server_default="0"),  # 1: it names its route
    )


def _lease() -> tuple[Column[Any], ...]:
    """Who holds a row until when, and how often somebody has (`storage/leases.py`)."""
    return (
        Column("worker", String(64)),
        Column("node", String(64)),
        Column("lease_until", Float),
        Column("attempt", Integer, nullable=False, server_default="0"),
    )


def _one_of(states: type[ArrivalState] | type[JobState] | type[DeliveryState]) -> CheckConstraint:
    allowed = ", ".join(f"'{state}'" for state in states)
    return CheckConstraint(f"state IN ({allowed})", name="state")


series = Table(
    "series",
    metadata,
    key_column(),
    Column("series_uid", String(64), nullable=False, index=True),
    Column("study_uid", String(64), nullable=False, index=True),
    Column("modality", String(16), nullable=False, server_default=""),
    Column("patient_id", Text, nullable=False, server_default=""),
    Column("patient_name", Text, nullable=False, server_default=""),
    Column("name_key", Text, nullable=False, server_default=""),  # case-folded, to search by
    Column("accession", Text, nullable=False, server_default=""),
    Column("study_date", String(16), nullable=False, server_default="", index=True),
    Column("description", Text, nullable=False, server_default="", index=True),
    Column("first_at", Float, nullable=False),
    Column("last_at", Float, nullable=False, index=True),
    Column("purged_at", Float),
    UniqueConstraint("study_uid", "series_uid"),
)
# What a phone call names: found by how it begins, in PostgreSQL in any collation.
for _searched in (series.c.patient_id, series.c.name_key, series.c.accession):
    Index(
        f"ix_series_{_searched.name}",
        _searched,
        postgresql_ops={_searched.name: "text_pattern_ops"},
    )

# One row a version of an instance: the same UID with other bytes is kept beside the first.
instance = Table(
    "instance",
    metadata,
    key_column(),
    _reference("series.id"),
    Column("instance_uid", String(64), nullable=False, index=True),
    Column("sop_class_uid", String(64), nullable=False),
    Column("transfer_syntax", String(64), nullable=False),
    Column("digest", String(64), nullable=False),  # SHA-256 of the data set as it was sent
    Column("size", BigInteger, nullable=False),
    Column("path", String(255), index=True),  # NULL once purged; the row stays
    Column("received_at", Float, nullable=False),
    UniqueConstraint("series_id", "instance_uid", "digest"),
    CheckConstraint("size >= 0", name="size"),
)

# arriving -> complete. One peer bringing one series; at most one is open for each.
arrival = Table(
    "arrival",
    metadata,
    key_column(),
    _reference("series.id"),
    Column("calling_ae", String(16), nullable=False),
    Column("called_ae", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("first_at", Float, nullable=False),
    Column("last_at", Float, nullable=False),
    Column("completed_at", Float),
    Column("evidence", Text, nullable=False, server_default="{}"),  # JSON: why it is complete
    Column("brought", Integer, nullable=False, server_default="0"),  # instances, once complete
    Column("own", Integer, nullable=False, server_default="0"),  # 1: a result of a node came back
    _one_of(ArrivalState),
    CheckConstraint("(state = 'complete') = (completed_at IS NOT NULL)", name="completed"),
)
OPEN_ARRIVAL = text("arrival.state = 'arriving'")
Index(
    "ix_arrival_open",
    arrival.c.series_id,
    arrival.c.calling_ae,
    arrival.c.called_ae,
    unique=True,
    sqlite_where=text("state = 'arriving'"),
    postgresql_where=text("state = 'arriving'"),
)

Index("ix_arrival_calling_ae_last_at", arrival.c.calling_ae, arrival.c.last_at)
Index("ix_arrival_completed_at", arrival.c.completed_at)

arrival_instance = Table(
    "arrival_instance",
    metadata,
    Column("arrival_id", Integer, ForeignKey("arrival.id"), primary_key=True),
    Column("instance_id", Integer, ForeignKey("instance.id"), primary_key=True, index=True),
    Column("brought_at", Float, nullable=False),  # the last time: what comes last counts
)

arrival_association = Table(
    "arrival_association",
    metadata,
    Column("arrival_id", Integer, ForeignKey("arrival.id"), primary_key=True),
    Column("association_id", Integer, ForeignKey("association.id"), primary_key=True, index=True),
)

# queued -> running -> succeeded | refused | failed | held | cancelled; running -> queued when its
# worker died or the node stopped; a person: failed, held, cancelled, refused -> queued (requeue).
job = Table(
    "job",
    metadata,
    key_column(),
    Column("kind", String(16), nullable=False),  # infer, selftest
    Column("key", String(64), nullable=False, unique=True),
    Column("state", String(16), nullable=False),
    Column("reason", String(64), nullable=False, server_default=""),
    Column("sentence", Text, nullable=False, server_default=""),
    _reference("series.id"),
    Column("arrival_id", Integer, ForeignKey("arrival.id"), nullable=False, index=True),
    Column("stack", Text, nullable=False),  # the grouping key of the stack, readable
    Column("route", String(64), nullable=False),
    Column("model", String(128), nullable=False),
    Column("version", String(32), nullable=False, server_default=""),
    Column("parameters", Text, nullable=False),  # JSON: the snapshot of the route
    Column("edition", Integer, nullable=False, server_default="1"),
    Column("priority", Integer, nullable=False),
    Column("queued_at", Float, nullable=False),
    Column("due_at", Float, nullable=False),
    Column("started_at", Float),
    Column("finished_at", Float),
    *_lease(),
    Column("worker_deaths", Integer, nullable=False, server_default="0"),
    Column("abandoned", Integer, nullable=False, server_default="0"),
    Column("progress", Float, nullable=False, server_default="0"),
    Column("step", String(16), nullable=False, server_default=""),  # reading, predicting, writing
    Column("step_done", Integer, nullable=False, server_default="0"),  # slices of this step
    Column("step_total", Integer, nullable=False, server_default="0"),
    Column("cancel_requested", Integer, nullable=False, server_default="0"),
    Column("derived_id", Integer, ForeignKey("derived.id"), index=True),
    Column("record", Text, nullable=False, server_default="{}"),  # JSON: what the model reports
    Column("requeued_by", String(64)),  # a person: it is not refused before its turn has come
    # 1: no worker takes it before the node has compared it with its route.
    Column("requeue_requested", Integer, nullable=False, server_default="0"),
    *_mark(),  # of what it makes; decided when it is claimed
    _one_of(JobState),
    CheckConstraint("(state = 'running') = (lease_until IS NOT NULL)", name="lease"),
    CheckConstraint("priority BETWEEN 1 AND 9", name="priority"),
    CheckConstraint("progress BETWEEN 0 AND 1", name="progress"),
    CheckConstraint("state <> 'succeeded' OR derived_id IS NOT NULL", name="derived"),
    CheckConstraint("(state IN ('refused', 'held', 'failed')) <= (reason <> '')", name="reason"),
    CheckConstraint("requeue_requested = 0 OR state = 'queued'", name="requeue"),
)
# An index of part of a table is used where the query repeats the condition word for word; with
# bound parameters SQLite reads every job that ever ended.
OPEN_JOB = text("job.state IN ('queued', 'running')")
Index(
    "ix_job_due",
    job.c.priority,
    job.c.due_at,
    sqlite_where=text("state IN ('queued', 'running')"),
    postgresql_where=text("state IN ('queued', 'running')"),
)

# What a page lists or counts. Of a part of the table, else a claim would take them for its own.
ENDED_JOB = text("job.state NOT IN ('queued', 'running')")
Index(
    "ix_job_ended",
    job.c.state,
    job.c.queued_at,
    sqlite_where=text("state NOT IN ('queued', 'running')"),
    postgresql_where=text("state NOT IN ('queued', 'running')"),
)
Index("ix_job_queued_at", job.c.queued_at)
HAS_REASON = text("job.reason <> ''")
Index(
    "ix_job_reason",
    job.c.reason,
    job.c.queued_at,
    sqlite_where=text("reason <> ''"),
    postgresql_where=text("reason <> ''"),
)
Index("ix_job_finished_at", job.c.finished_at)

# Where an arrival wants what a job makes: a row for each destination of its route, or in shadow
# mode one without a name. Found by the job, and by the arrivals of a peer that wants another one.
want = Table(
    "want",
    metadata,
    Column("job_id", Integer, ForeignKey("job.id"), primary_key=True),
    Column("arrival_id", Integer, ForeignKey("arrival.id"), primary_key=True, index=True),
    Column("destination", String(64), primary_key=True),
    Column("rank", Integer, nullable=False),  # in the order of the route
    # 1: its peer wants another job by now. Only of a job that nobody wants any more such rows
    # stay, and say where its result has gone, or goes where a person wants it all the same.
    Column("withdrawn", Integer, nullable=False, server_default="0"),
    CheckConstraint("destination <> '' OR rank = 0", name="shadow"),
)

job_instance = Table(
    "job_instance",
    metadata,
    Column("job_id", Integer, ForeignKey("job.id"), primary_key=True),
    Column("instance_id", Integer, ForeignKey("instance.id"), primary_key=True, index=True),
    Column("rank", Integer, nullable=False),  # 0 = the newest version when the job was asked for
)

# What happened to each attempt; the frames of an exception are here, not in the job.
attempt = Table(
    "attempt",
    metadata,
    Column("job_id", Integer, ForeignKey("job.id"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("worker", String(64), nullable=False),
    Column("started_at", Float, nullable=False),
    Column("ended_at", Float),
    Column("outcome", String(32)),
    Column("detail", Text, nullable=False, server_default=""),
)

# Written once, kept, and sent from there; purged_at says that its files are gone.
derived = Table(
    "derived",
    metadata,
    key_column(),
    _reference("series.id"),
    Column("series_uid", String(64), nullable=False, unique=True),
    Column("folder", String(255), nullable=False),
    Column("edition", Integer, nullable=False),
    Column("made_at", Float, nullable=False),
    Column("offered_at", Float),  # the first time that a peer was sent one of its instances
    Column("superseded_at", Float, index=True),
    Column("purged_at", Float),
    Column("stack", Text, nullable=False, server_default=""),  # of the job that made it
    Column("route", String(64), nullable=False, server_default=""),
    # The UID that it would have without a mark: equal contents are one derived series.
    Column("content_uid", String(64), nullable=False, server_default=""),
    *_mark(),
)

derived_instance = Table(
    "derived_instance",
    metadata,
    key_column(),
    _reference("derived.id"),
    Column("instance_uid", String(64), nullable=False, unique=True),
    Column("sop_class_uid", String(64), nullable=False),
    Column("path", String(255), nullable=False),
    Column("digest", String(64), nullable=False),  # SHA-256 of the file
    Column("generated", Integer, nullable=False),
)

# queued -> running -> sent -> confirmed; running -> queued to try again; -> held for a permanent
# failure or after give_up_hours; -> cancelled by a person or when superseded.
delivery = Table(
    "delivery",
    metadata,
    key_column(),
    _reference("derived.id"),
    Column("destination", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", String(64), nullable=False, server_default=""),
    Column("sentence", Text, nullable=False, server_default=""),
    Column("priority", Integer, nullable=False),
    Column("queued_at", Float, nullable=False),
    Column("due_at", Float, nullable=False),
    Column("started_at", Float),
    Column("finished_at", Float),
    *_lease(),
    Column("failures", Integer, nullable=False, server_default="0"),  # in a row; back-off
    _one_of(DeliveryState),
    UniqueConstraint("derived_id", "destination"),
    CheckConstraint("(state = 'running') = (lease_until IS NOT NULL)", name="lease"),
    CheckConstraint("state <> 'held' OR reason <> ''", name="reason"),
)
OPEN_DELIVERY = text("delivery.state IN ('queued', 'running', 'held')")
Index(
    "ix_delivery_open",
    delivery.c.destination,
    delivery.c.due_at,
    sqlite_where=text("state IN ('queued', 'running', 'held')"),
    postgresql_where=text("state IN ('queued', 'running', 'held')"),
)

ENDED_DELIVERY = text("delivery.state NOT IN ('queued', 'running')")
Index(
    "ix_delivery_ended",
    delivery.c.state,
    delivery.c.finished_at,
    sqlite_where=text("state NOT IN ('queued', 'running')"),
    postgresql_where=text("state NOT IN ('queued', 'running')"),
)
Index(
    "ix_delivery_finished",
    delivery.c.destination,
    delivery.c.finished_at,
    sqlite_where=text("finished_at IS NOT NULL"),
    postgresql_where=text("finished_at IS NOT NULL"),
)

# The ledger: the last status that the destination gave for each instance, how often it was
# offered at all, and how often it was not understood since it was last offered anew.
delivery_instance = Table(
    "delivery_instance",
    metadata,
    Column("delivery_id", Integer, ForeignKey("delivery.id"), primary_key=True),
    Column("derived_instance_id", Integer, ForeignKey("derived_instance.id"), primary_key=True),
    Column("status", Integer),  # the DIMSE status; NULL = no answer yet
    Column("stored", Integer, nullable=False, server_default="0"),
    Column("offers", Integer, nullable=False, server_default="0"),
    Column("not_understood", Integer, nullable=False, server_default="0"),  # A9xx, Cxxx
    Column("answered_at", Float),
)


# They share the metadata of `storage/schema.py`. Times are seconds since the epoch, UTC.

__all__ = [
    "NEW_NOTICE",
    "OPEN_MESSAGE",
    "OPEN_REQUEST",
    "REJECTED_ASSOCIATION",
    "account",
    "association",
    "audit",
    "configuration",
    "disk",
    "echo",
    "fact",
    "login",
    "login_failure",
    "message",
    "metadata",
    "node",
    "notice",
    "reach",
    "request",
    "selftest",
    "switch",
    "token",
]


def one_of(states: type[StrEnum], column: str = "state") -> CheckConstraint:
    allowed = ", ".join(f"'{state}'" for state in states)
    return CheckConstraint(f"{column} IN ({allowed})", name=column)


# One row a running or past process of the node on this storage.
node = Table(
    "node",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("started_at", Float, nullable=False),
    Column("heartbeat", Float, nullable=False),
    Column("state", String(16), nullable=False),  # serving, stopping, stopped
    Column("clean_at", Float),  # up to here every file is known to have its row
)

# What must never change for this database, such as the fingerprint of the secret.
fact = Table(
    "fact",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)

association = Table(
    "association",
    metadata,
    key_column(),
    Column("node", String(64), nullable=False),
    Column("calling_ae", String(16), nullable=False),
    Column("called_ae", String(16), nullable=False),
    Column("address", String(64), nullable=False),
    Column("opened_at", Float, nullable=False),
    Column("ended_at", Float, index=True),
    Column("how", String(32)),  # released, aborted, dropped, lost, rejected
    Column("reason", Text, nullable=False, server_default=""),  # of a rejected one
)
Index("ix_association_calling_ae_opened_at", association.c.calling_ae, association.c.opened_at)
REJECTED_ASSOCIATION = text("association.how = 'rejected'")
Index(
    "ix_association_rejected",
    association.c.opened_at,
    sqlite_where=text("how = 'rejected'"),
    postgresql_where=text("how = 'rejected'"),
)

# A person who may log in. The password is a hash that the caller made; empty = cannot log in.
account = Table(
    "account",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("role", String(16), nullable=False),
    Column("password", Text, nullable=False, server_default=""),
    Column("disabled", Integer, nullable=False, server_default="0"),
    Column("created_at", Float, nullable=False),
    Column("changed_at", Float, nullable=False),  # of the password or the role: older logins end
    one_of(Role, "role"),
)

# Somebody is logged in. The token itself is with the browser; here is its SHA-256.
login = Table(
    "login",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("account_name", String(64), ForeignKey("account.name"), nullable=False, index=True),
    Column("csrf", String(64), nullable=False),
    Column("address", String(64), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("seen_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False, index=True),
)

# A program that calls the API. The token itself is with the program; here is its SHA-256.
token = Table(
    "token",
    metadata,
    key_column(),
    Column("digest", String(64), nullable=False, unique=True),
    Column("name", String(64), nullable=False),
    Column("role", String(16), nullable=False),
    Column("created_by", String(64), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("used_at", Float),
    Column("revoked_at", Float),
    one_of(Role, "role"),
)

# A login that was refused; so many within minutes, and the next one waits.
login_failure = Table(
    "login_failure",
    metadata,
    key_column(),
    Column("account_name", String(64), nullable=False, index=True),  # as typed: may not exist
    Column("address", String(64), nullable=False, index=True),
    Column("at", Float, nullable=False, index=True),
)

# What a person has set for the running node, and what outlives it. One row a name and subject.
switch = Table(
    "switch",
    metadata,
    Column("name", String(32), primary_key=True),  # draining, paused, never, allowed_ae
    Column("subject", String(64), primary_key=True),  # "", a destination, a Series UID, an AE title
    Column("who", String(64), nullable=False),
    Column("at", Float, nullable=False),
)

# asked -> done | failed. A person asks, a node takes it up, does it and writes what came of it.
request = Table(
    "request",
    metadata,
    key_column(),
    Column("kind", String(32), nullable=False),  # reload, echo, selftest, notify, process_now
    Column("subject", String(64), nullable=False, server_default=""),
    Column("who", String(64), nullable=False),
    Column("asked_at", Float, nullable=False, index=True),
    Column("state", String(16), nullable=False),
    *_lease(),
    Column("done_at", Float),
    Column("sentence", Text, nullable=False, server_default=""),
    one_of(RequestState),
    CheckConstraint("(state = 'asked') = (done_at IS NULL)", name="done"),
    CheckConstraint("state = 'asked' OR lease_until IS NULL", name="lease"),
)
OPEN_REQUEST = text("request.state = 'asked'")
Index(
    "ix_request_open",
    request.c.id,
    sqlite_where=text("state = 'asked'"),
    postgresql_where=text("state = 'asked'"),
)

# The configuration as the running node has read it, and the last one that it refused.
configuration = Table(
    "configuration",
    metadata,
    Column("node", String(64), primary_key=True),
    Column("applied_at", Float, nullable=False),
    Column("text", Text, nullable=False),  # JSON, without passwords
    Column("restart", Text, nullable=False, server_default="[]"),  # JSON: keys that need a restart
    Column("refused_at", Float),
    Column("problems", Text, nullable=False, server_default="[]"),  # JSON: one line a mistake
)

# A C-ECHO of a destination, on schedule or because somebody asked.
echo = Table(
    "echo",
    metadata,
    key_column(),
    Column("destination", String(64), nullable=False),
    Column("at", Float, nullable=False, index=True),
    Column("ok", Integer, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("sentence", Text, nullable=False, server_default=""),
)
Index("ix_echo_destination_at", echo.c.destination, echo.c.at)

# Whether a destination answers, as echoes and deliveries have found it; `since` is the last change.
reach = Table(
    "reach",
    metadata,
    Column("destination", String(64), primary_key=True),
    Column("up", Integer, nullable=False),
    Column("since", Float, nullable=False),
    Column("checked_at", Float, nullable=False),
    Column("failures", Integer, nullable=False, server_default="0"),  # in a row
    Column(
        "open_until", Float, nullable=False, server_default="0"
    ),  # the breaker: not tried before
    Column("sentence", Text, nullable=False, server_default=""),
)

# Something that somebody is to be told, once: the key says what is the same.
notice = Table(
    "notice",
    metadata,
    key_column(),
    Column("event", String(32), nullable=False),
    Column("key", String(160), nullable=False, unique=True),
    Column("at", Float, nullable=False, index=True),
    Column("facts", Text, nullable=False),  # JSON, without a patient attribute
    Column("addressed", Integer, nullable=False, server_default="0"),  # 1: its messages are queued
)
NEW_NOTICE = text("notice.addressed = 0")
Index(
    "ix_notice_new",
    notice.c.id,
    sqlite_where=text("addressed = 0"),
    postgresql_where=text("addressed = 0"),
)

# queued -> sent | failed. A notice through one channel: a webhook's or mail's name.
message = Table(
    "message",
    metadata,
    key_column(),
    Column("notice_id", Integer, ForeignKey("notice.id"), nullable=False, index=True),
    Column("channel", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("tries", Integer, nullable=False, server_default="0"),
    Column("due_at", Float, nullable=False),
    *_lease(),
    Column("done_at", Float),
    Column("sentence", Text, nullable=False, server_default=""),
    one_of(MessageState),
    CheckConstraint("state = 'queued' OR lease_until IS NULL", name="lease"),
)
OPEN_MESSAGE = text("message.state = 'queued'")
Index(
    "ix_message_open",
    message.c.due_at,
    sqlite_where=text("state = 'queued'"),
    postgresql_where=text("state = 'queued'"),
)

# running -> passed | failed. A made series on the whole way, and what was found at each step.
selftest = Table(
    "selftest",
    metadata,
    key_column(),
    Column("node", String(64), nullable=False),
    Column("who", String(64), nullable=False),
    Column("started_at", Float, nullable=False, index=True),
    Column("finished_at", Float),
    Column("state", String(16), nullable=False),
    Column("series_uid", String(64), nullable=False, server_default=""),
    Column("destination", String(64), nullable=False, server_default=""),
    Column("steps", Text, nullable=False, server_default="[]"),  # JSON: name, ok, seconds, sentence
    Column("sentence", Text, nullable=False, server_default=""),
    one_of(SelfTestState),
    CheckConstraint("(state = 'running') = (finished_at IS NULL)", name="finished"),
)

# How full the disk was, every so often: what a forecast is drawn from.
disk = Table(
    "disk",
    metadata,
    key_column(),
    Column("node", String(64), nullable=False),
    Column("at", Float, nullable=False, index=True),
    Column("free", BigInteger, nullable=False),
    Column("total", BigInteger, nullable=False),
)

# Append-only: who did what, when. No patient attribute.
audit = Table(
    "audit",
    metadata,
    key_column(),
    Column("at", Float, nullable=False, index=True),
    Column("who", String(64), nullable=False),
    Column("what", String(64), nullable=False),
    Column("which", Text, nullable=False, server_default="", index=True),
    Column("detail", Text, nullable=False, server_default="{}"),
)
