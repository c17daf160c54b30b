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
    TextClause,
    UniqueConstraint,
    text,
)
from sqlalchemy.schema import SchemaItem

from storage.migrations import NAMES
from storage.records import (
    ArrivalState,
    CommitmentState,
    DeliveryState,
    Evidence,
    JobState,
    MessageState,
    ReportState,
    RequestState,
    Role,
    SelfTestState,
)

# Times are seconds since the epoch, UTC. File columns are relative to `storage.folder`.

metadata = MetaData(naming_convention=NAMES)


def _table(name: str, *parts: SchemaItem) -> Table:
    return Table(name, metadata, *parts)


def _links(name: str, *parts: SchemaItem) -> Table:
    """A table that is its own index: a row of it is written once, and not twice."""
    return Table(name, metadata, *parts, sqlite_with_rowid=False)


def _id() -> Column[int]:
    return Column("id", Integer, primary_key=True, autoincrement=True)


def _reference(column: str, *, index: bool = True, key: bool = False) -> Column[int]:
    """Refer to a row of another table; with `key` this is, or is a part of, the primary key."""
    name = column.replace(".", "_")
    return Column(name, Integer, ForeignKey(column), nullable=False, index=index, primary_key=key)


def _mark() -> tuple[Column[int], ...]:
    """The mark that tells a derived series from others of its series; a first one has none."""
    return (
        Column("revision", Integer, nullable=False, server_default="1"),  # of its stack and route
        Column("place", Integer, nullable=False, server_default="0"),  # among all of its series
        Column("named", Integer, nullable=False, server_default="0"),  # 1: it names its route
    )


def _text(name: str, default: str = "", *, index: bool = False) -> Column[str]:
    return Column(name, Text, nullable=False, server_default=default, index=index)


def _count(name: str, default: int = 0) -> Column[int]:
    return Column(name, Integer, nullable=False, server_default=str(default))


def _time(name: str, *, nullable: bool = False, index: bool = False) -> Column[float]:
    return Column(name, Float, nullable=nullable, index=index)


def _states(states: type[StrEnum]) -> tuple[Column[str], CheckConstraint]:
    return Column("state", String(16), nullable=False), _one_of(states, "state")


def _one_of(values: type[StrEnum], column: str) -> CheckConstraint:
    allowed = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({allowed})", name=column)


def _lease() -> tuple[Column[Any], ...]:
    """The process that holds a row until when, and how often one has (`storage/leases.py`)."""
    holder = (Column(name, String(64)) for name in ("worker", "node"))
    return (*holder, _time("lease_until", nullable=True), _count("attempt"))


def _work(states: type[StrEnum]) -> tuple[Column[Any] | CheckConstraint, ...]:
    """The columns of what is queued, leased and ends with a reason."""
    return (
        *_states(states),
        Column("reason", String(64), nullable=False, server_default=""),
        _text("sentence"),
        Column("priority", Integer, nullable=False),
        *(_time(name) for name in ("queued_at", "due_at")),
        *(_time(name, nullable=True) for name in ("started_at", "finished_at")),
        *_lease(),
        CheckConstraint("(state = 'running') = (lease_until IS NOT NULL)", name="lease"),
    )


def _index_part(
    table: Table, name: str, condition: str, columns: str, *, unique: bool = False
) -> TextClause:
    """Index the rows for which a condition holds, which begins with a column; the same for a query.

    An index of part of a table is used where the query repeats the condition word for word; with
    bound parameters SQLite reads every job that ever ended.
    """
    where = text(condition)
    indexed = (table.c[column] for column in columns.split())
    name = f"ix_{table.name}_{name}"
    Index(name, *indexed, unique=unique, sqlite_where=where, postgresql_where=where)
    return text(f"{table.name}.{condition}")


series = _table(
    "series",
    _id(),
    Column("series_uid", String(64), nullable=False, index=True),
    Column("study_uid", String(64), nullable=False, index=True),
    Column("modality", String(16), nullable=False, server_default=""),
    _text("patient_id"),
    _text("patient_name"),
    _text("name_key"),  # case-folded, to search by
    _text("accession"),
    Column("study_date", String(16), nullable=False, server_default="", index=True),
    _text("description", index=True),
    _time("first_at"),
    _time("last_at", index=True),
    _time("purged_at", nullable=True),
    _count("purging"),  # 1 from then on until its files are gone
    _time("committed_at", nullable=True),  # the last time that a sender was promised to keep it
    UniqueConstraint("study_uid", "series_uid"),
)
KEPT_SERIES = _index_part(series, "kept", "purged_at IS NULL", "last_at")
PURGING_SERIES = _index_part(series, "purging", "purging = 1", "id")
# What a phone call names: found by how it begins, in PostgreSQL in any collation.
for _searched in (series.c.patient_id, series.c.name_key, series.c.accession):
    Index(
        f"ix_series_{_searched.name}",
        _searched,
        postgresql_ops={_searched.name: "text_pattern_ops"},
    )

# One row a version of an instance: the same UID with other bytes is kept beside the first.
instance = _table(
    "instance",
    _id(),
    _reference("series.id", index=False),  # the unique constraint begins with it
    Column("instance_uid", String(64), nullable=False, index=True),
    Column("sop_class_uid", String(64), nullable=False),
    Column("transfer_syntax", String(64), nullable=False),
    Column("digest", String(64), nullable=False),  # BLAKE3 of the data set as it was sent
    Column("size", BigInteger, nullable=False),
    Column("path", String(255), index=True),  # NULL once purged; the row stays
    _time("received_at"),
    UniqueConstraint("series_id", "instance_uid", "digest"),
    CheckConstraint("size >= 0", name="size"),
)

# arriving -> complete. One peer bringing one series; at most one is open for each.
arrival = _table(
    "arrival",
    _id(),
    _reference("series.id"),
    Column("calling_ae", String(16), nullable=False),
    Column("called_ae", String(16), nullable=False),
    *_states(ArrivalState),
    _time("first_at"),
    _time("last_at"),
    _time("completed_at", nullable=True),
    _text("evidence", "{}"),  # JSON: why it is complete; before that, why it cannot be closed
    _count("brought"),  # instances, once complete
    _count("own"),  # 1: a result of a node came back
    _count("restored"),  # 1: nobody brought it just then; files without a row came into the index
    CheckConstraint("(state = 'complete') = (completed_at IS NOT NULL)", name="completed"),
)
OPEN_ARRIVAL = _index_part(
    arrival, "open", "state = 'arriving'", "series_id calling_ae called_ae", unique=True
)

Index("ix_arrival_calling_ae_last_at", arrival.c.calling_ae, arrival.c.last_at)
Index("ix_arrival_completed_at_brought", arrival.c.completed_at, arrival.c.brought)

arrival_instance = _links(
    "arrival_instance",
    _reference("arrival.id", key=True, index=False),
    _reference("instance.id", key=True),
    _time("brought_at"),  # the last time: what comes last counts
)

arrival_association = _links(
    "arrival_association",
    _reference("arrival.id", key=True, index=False),
    _reference("association.id", key=True),
)

# queued -> running -> succeeded | refused | failed | held | cancelled; running -> queued when its
# worker died or the node stopped; a person: failed, held, cancelled, refused -> queued (requeue).
job = _table(
    "job",
    _id(),
    Column("kind", String(16), nullable=False),  # infer, selftest
    Column("key", String(64), nullable=False, unique=True),
    *_work(JobState),
    _reference("series.id"),
    _reference("arrival.id"),
    Column("stack", Text, nullable=False),  # the grouping key of the stack, readable
    Column("route", String(64), nullable=False),
    Column("model", String(128), nullable=False),
    Column("version", String(32), nullable=False, server_default=""),
    Column("parameters", Text, nullable=False),  # JSON: the snapshot of the route
    _count("edition", 1),
    _count("worker_deaths"),
    _count("abandoned"),
    Column("progress", Float, nullable=False, server_default="0"),
    Column("step", String(16), nullable=False, server_default=""),  # reading, predicting, writing
    _count("step_done"),  # slices of this step
    _count("step_total"),
    _count("cancel_requested"),
    Column("derived_id", Integer, ForeignKey("derived.id"), index=True),
    _text("record", "{}"),  # JSON: what the model reports
    _text("confidence_counts", "{}"),  # JSON, of the record: how many slices are sure, fair, ...
    Column("requeued_by", String(64)),  # a person: it is not refused before its turn has come
    # 1: no worker takes it before the node has compared it with its route.
    _count("requeue_requested"),
    *_mark(),  # of what it makes; decided when it is claimed
    CheckConstraint("priority BETWEEN 1 AND 9", name="priority"),
    CheckConstraint("progress BETWEEN 0 AND 1", name="progress"),
    CheckConstraint("state <> 'succeeded' OR derived_id IS NOT NULL", name="derived"),
    CheckConstraint("(state IN ('refused', 'held', 'failed')) <= (reason <> '')", name="reason"),
    CheckConstraint("requeue_requested = 0 OR state = 'queued'", name="requeue"),
)
OPEN_JOB = _index_part(job, "due", "state IN ('queued', 'running')", "priority due_at")

# What a page lists or counts. Of a part of the table, else a claim would take them for its own.
ENDED_JOB = _index_part(job, "ended", "state NOT IN ('queued', 'running')", "state queued_at")
Index("ix_job_queued_at", job.c.queued_at)
HAS_REASON = _index_part(job, "reason", "reason <> ''", "reason queued_at")
NEEDS_JOB = _index_part(
    job, "needs", "state IN ('held', 'failed')", "state reason finished_at series_id kind"
)
REQUEUED_JOB = _index_part(job, "requeued", "requeue_requested = 1", "id")
ENDED_OF_ROUTE = _index_part(
    job, "route", "state NOT IN ('queued', 'running')", "route finished_at state"
)
Index("ix_job_finished_at", job.c.finished_at)

# Where an arrival wants what a job makes: a row for each destination of its route, or in shadow
# mode one without a name. Found by the job, and by the arrivals of a peer that wants another one.
want = _table(
    "want",
    _reference("job.id", key=True, index=False),
    _reference("arrival.id", key=True),
    Column("destination", String(64), primary_key=True),
    Column("rank", Integer, nullable=False),  # in the order of the route
    # 1: its peer wants another job by now. Only of a job that nobody wants any more such rows
    # stay, and say where its result has gone, or goes where a person wants it all the same.
    _count("withdrawn"),
    CheckConstraint("destination <> '' OR rank = 0", name="shadow"),
)

job_instance = _table(
    "job_instance",
    _reference("job.id", key=True, index=False),
    _reference("instance.id", key=True),
    Column("rank", Integer, nullable=False),  # 0 = the newest version when the job was asked for
)

# What happened to each attempt; the frames of an exception are here, not in the job.
attempt = _table(
    "attempt",
    _reference("job.id", key=True, index=False),
    Column("number", Integer, primary_key=True),
    Column("worker", String(64), nullable=False),
    _time("started_at"),
    _time("ended_at", nullable=True),
    Column("outcome", String(32)),
    _text("detail"),
)

# Written once, kept, and sent from there; purged_at says that its files are gone.
derived = _table(
    "derived",
    _id(),
    _reference("series.id"),
    Column("series_uid", String(64), nullable=False, unique=True),
    Column("folder", String(255), nullable=False),
    Column("edition", Integer, nullable=False),
    _time("made_at"),
    _time("offered_at", nullable=True),  # the first time that a peer was sent one of its instances
    _time("superseded_at", nullable=True, index=True),
    _time("purged_at", nullable=True),
    _text("stack"),  # of the job that made it
    Column("route", String(64), nullable=False, server_default=""),
    # The UID that it would have without a mark: equal contents are one derived series.
    Column("content_uid", String(64), nullable=False, server_default=""),
    *_mark(),
)
KEPT_DERIVED = _index_part(derived, "kept", "purged_at IS NULL", "folder")

# A result file of a job; all of them are delivered, kept, shown and removed as one.
derived_instance = _table(
    "derived_instance",
    _id(),
    _reference("derived.id"),
    Column("instance_uid", String(64), nullable=False, unique=True),
    Column("sop_class_uid", String(64), nullable=False),
    Column("path", String(255), nullable=False),
    Column("digest", String(64), nullable=False),  # BLAKE3 of the file
    Column("generated", Integer, nullable=False),
    Column("series_uid", String(64), nullable=False),  # a kind that is no image has its own
    Column("kind", String(32), nullable=False),  # image, presentation state, parametric map
    _count("is_supplement"),  # 1: a destination may do without it
)

# queued -> running -> sent -> confirmed; running -> queued to try again; -> held for a permanent
# failure or after give_up_hours; -> cancelled by a person or when superseded.
delivery = _table(
    "delivery",
    _id(),
    _reference("derived.id"),
    Column("destination", String(64), nullable=False),
    *_work(DeliveryState),
    _count("failures"),  # in a row; back-off
    UniqueConstraint("derived_id", "destination"),
    CheckConstraint("state <> 'held' OR reason <> ''", name="reason"),
)
OPEN_DELIVERY = _index_part(
    delivery, "open", "state IN ('queued', 'running', 'held')", "destination due_at"
)

ENDED_DELIVERY = _index_part(
    delivery, "ended", "state NOT IN ('queued', 'running')", "state finished_at"
)
FINISHED_DELIVERY = _index_part(
    delivery, "finished", "finished_at IS NOT NULL", "destination finished_at state"
)

# The ledger: the last status that the destination gave for each instance, how often it was
# offered at all, and how often it was not understood since it was last offered anew.
delivery_instance = _table(
    "delivery_instance",
    _reference("delivery.id", key=True, index=False),
    _reference("derived_instance.id", key=True, index=False),
    Column("status", Integer),  # the DIMSE status; NULL = no answer yet
    _text("comment"),  # Error Comment and offending elements that came with it; may name a patient
    _count("stored"),
    _count("offers"),
    _count("not_understood"),  # A9xx, Cxxx
    _time("answered_at", nullable=True),
    _time("confirmed_at", nullable=True),  # since it counts as stored: the first proof
    Column("evidence", String(16)),
    Column("commitment_failure", Integer),  # the Failure Reason (0008,1197) of the last report
    CheckConstraint("confirmed_at IS NULL OR (stored = 1 AND evidence IS NOT NULL)", name="proof"),
)

# Storage commitment as SCU, a row for each delivery to a destination that is asked for it.
# queued -> running -> waiting -> confirmed; waiting, running -> queued to ask again, or by C-FIND;
# -> sending, until the delivery is sent again: queued; -> failed, unproved: a person is told;
# -> cancelled: the delivery began anew. A report of a request that counts ends any of them.
commitment = _table(
    "commitment",
    _id(),
    Column("delivery_id", Integer, ForeignKey("delivery.id"), nullable=False, unique=True),
    Column("destination", String(64), nullable=False),
    *_work(CommitmentState),
    Column("evidence", String(16), nullable=False),  # what is tried next
    _count("tries"),
    _count("failures"),
    _count("resent"),
    _one_of(Evidence, "evidence"),
    CheckConstraint("state NOT IN ('failed', 'unproved') OR reason <> ''", name="reason"),
)
OPEN_COMMITMENT = _index_part(
    commitment, "open", "state IN ('queued', 'running', 'waiting')", "destination due_at"
)

# An N-ACTION: its row is written before it is sent, so that no report can come too early.
commitment_request = _table(
    "commitment_request",
    _id(),
    _reference("commitment.id"),
    Column("transaction_uid", String(64), nullable=False, unique=True),
    _time("asked_at"),
    Column("status", Integer),  # of the N-ACTION response; NULL = none came yet
    _time("reported_at", nullable=True),
    _text("reported_by"),  # the calling AE title
    _count("committed"),  # instances
    _count("failed"),
    _count("void"),  # 1: the delivery began anew since; what is reported does not count
)

# Storage commitment as SCP. queued -> running -> sent | failed; running -> queued to try again.
owed_report = _table(
    "owed_report",
    _id(),
    Column("calling_ae", String(16), nullable=False),
    Column("called_ae", String(16), nullable=False),
    Column("transaction_uid", String(64), nullable=False),
    _text("instances", "[]"),  # JSON: SOP Class and SOP Instance UIDs
    *_states(ReportState),
    _time("asked_at", index=True),
    _time("due_at"),
    *_lease(),
    _count("tries"),
    _time("done_at", nullable=True),
    _count("committed"),
    _count("failed"),
    _text("sentence"),
    UniqueConstraint("calling_ae", "transaction_uid"),
    CheckConstraint("(state = 'running') = (lease_until IS NOT NULL)", name="lease"),
)
OPEN_REPORT = _index_part(
    owed_report, "open", "state IN ('queued', 'running')", "calling_ae due_at"
)

# One row a running or past process of the node on this storage.
node = _table(
    "node",
    Column("id", String(64), primary_key=True),
    _time("started_at"),
    _time("heartbeat"),
    Column("state", String(16), nullable=False),  # serving, stopping, stopped, lost
    _time("clean_at", nullable=True),  # up to here every file is known to have its row
    Column("version", String(32), nullable=False, server_default=""),
    _text("address"),  # of its pages; each node has its own
    Column("load", Float, nullable=False, server_default="0"),  # processes that want a core, a core
    _text("lacks"),  # why jobs wait for a worker of it; empty where none does
    _time("lacking_since", nullable=True),
)

# What must never change for this database, such as the fingerprint of the secret.
fact = _table(
    "fact",
    Column("name", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)

# Up to where kept files were read again: received ones, and those of results.
scrub = _table(
    "scrub",
    Column("kind", String(16), primary_key=True),
    Column("last_id", Integer, nullable=False),
)

# Up to where the audit record repository was told of what.
trail = _table(
    "trail",
    Column("kind", String(16), primary_key=True),
    _time("at"),
    Column("last_id", Integer, nullable=False),
)

association = _table(
    "association",
    _id(),
    Column("node", String(64), nullable=False),
    Column("calling_ae", String(16), nullable=False),
    Column("called_ae", String(16), nullable=False),
    Column("address", String(64), nullable=False),
    _time("opened_at"),
    _time("ended_at", nullable=True, index=True),
    Column("how", String(32)),  # released, aborted, dropped, lost, rejected
    _text("reason"),  # of a rejected one
)
Index("ix_association_calling_ae_opened_at", association.c.calling_ae, association.c.opened_at)
REJECTED_ASSOCIATION = _index_part(association, "rejected", "how = 'rejected'", "opened_at")

# A person who may log in. The password is a hash that the caller made; empty = cannot log in.
account = _table(
    "account",
    Column("name", String(64), primary_key=True),
    Column("role", String(16), nullable=False),
    _text("password"),
    _count("disabled"),
    _time("created_at"),
    _time("changed_at"),  # of the password or the role: older logins end
    _one_of(Role, "role"),
)

# Somebody is logged in: a person of the node's own, or one of a log-in provider, whose role it told
# then. The token itself is with the browser; here is its SHA-256.
login = _table(
    "login",
    Column("id", String(64), primary_key=True),
    Column("account_name", String(64), ForeignKey("account.name"), nullable=True, index=True),
    Column("person", String(64), nullable=True, index=True),
    Column("role", String(16), nullable=True),
    Column("csrf", String(64), nullable=False),
    Column("address", String(64), nullable=False),
    _time("created_at"),
    _time("seen_at"),
    _time("expires_at", index=True),
    CheckConstraint("(account_name IS NULL) = (person IS NOT NULL)", name="person"),
    CheckConstraint("(person IS NULL) = (role IS NULL)", name="role"),
)

# A program that calls the API. The token itself is with the program; here is its SHA-256.
token = _table(
    "token",
    _id(),
    Column("digest", String(64), nullable=False, unique=True),
    Column("name", String(64), nullable=False),
    Column("role", String(16), nullable=False),
    Column("created_by", String(64), nullable=False),
    _time("created_at"),
    _time("used_at", nullable=True),
    _time("revoked_at", nullable=True),
    _one_of(Role, "role"),
)

# A login that was refused; so many within minutes, and the next one waits.
login_failure = _table(
    "login_failure",
    _id(),
    Column("account_name", String(64), nullable=False, index=True),  # as typed: may not exist
    Column("address", String(64), nullable=False, index=True),
    _time("at", index=True),
)

# What a person has set for the running node, and what outlives it. One row a name and subject.
switch = _table(
    "switch",
    Column("name", String(32), primary_key=True),  # draining, paused, never, allowed_ae
    Column("subject", String(64), primary_key=True),  # "", a destination, a Series UID, an AE title
    Column("who", String(64), nullable=False),
    _time("at"),
)

# asked -> done | failed. A person asks, a node takes it up, does it and writes what came of it.
request = _table(
    "request",
    _id(),
    Column("kind", String(32), nullable=False),  # RequestKind
    Column("subject", String(64), nullable=False, server_default=""),
    # Of process_now: the route that the person insists on; empty: those that match.
    Column("route", String(64), nullable=False, server_default=""),
    # Of fetch: where from, and the one series of the study that is wanted; empty: all.
    Column("destination", String(64), nullable=False, server_default=""),
    Column("series_uid", String(64), nullable=False, server_default=""),
    Column("who", String(64), nullable=False),
    _time("asked_at", index=True),
    *_states(RequestState),
    *_lease(),
    _time("done_at", nullable=True),
    _text("sentence"),
    CheckConstraint("(state = 'asked') = (done_at IS NULL)", name="done"),
    CheckConstraint("state = 'asked' OR lease_until IS NULL", name="lease"),
)
OPEN_REQUEST = _index_part(request, "open", "state = 'asked'", "id")

# The configuration as the running node has read it, and the last one that it refused.
configuration = _table(
    "configuration",
    Column("node", String(64), primary_key=True),
    _time("applied_at"),
    Column("text", Text, nullable=False),  # JSON, without passwords
    _text("restart", "[]"),  # JSON: keys that need a restart
    _time("refused_at", nullable=True),
    _text("problems", "[]"),  # JSON: one line a mistake
)

# A C-ECHO of a destination, on schedule or because somebody asked.
echo = _table(
    "echo",
    _id(),
    Column("destination", String(64), nullable=False),
    _time("at", index=True),
    Column("ok", Integer, nullable=False),
    _time("seconds"),
    _text("sentence"),
)
Index("ix_echo_destination_at", echo.c.destination, echo.c.at)

# Whether a destination answers, as echoes and deliveries have found it; `since` is the last change.
reach = _table(
    "reach",
    Column("destination", String(64), primary_key=True),
    Column("up", Integer, nullable=False),
    _time("since"),
    _time("checked_at"),
    _count("failures"),  # in a row
    Column("open_until", Float, nullable=False, server_default="0"),  # the breaker
    _text("sentence"),
)

# Something that somebody is to be told, once: the key says what is the same.
notice = _table(
    "notice",
    _id(),
    Column("event", String(32), nullable=False),
    Column("key", String(160), nullable=False, unique=True),
    _time("at", index=True),
    Column("facts", Text, nullable=False),  # JSON, without a patient attribute
    _count("addressed"),  # 1: its messages are queued
)
NEW_NOTICE = _index_part(notice, "new", "addressed = 0", "id")

# queued -> sent | failed. A notice through one channel: a webhook's or mail's name.
message = _table(
    "message",
    _id(),
    _reference("notice.id"),
    Column("channel", String(64), nullable=False),
    *_states(MessageState),
    _count("tries"),
    _time("due_at"),
    *_lease(),
    _time("done_at", nullable=True),
    _text("sentence"),
    CheckConstraint("state = 'queued' OR lease_until IS NULL", name="lease"),
)
OPEN_MESSAGE = _index_part(message, "open", "state = 'queued'", "due_at")

# running -> passed | failed. A made series on the whole way, and what was found at each step.
selftest = _table(
    "selftest",
    _id(),
    Column("node", String(64), nullable=False),
    Column("who", String(64), nullable=False),
    _time("started_at", index=True),
    _time("finished_at", nullable=True),
    *_states(SelfTestState),
    Column("series_uid", String(64), nullable=False, server_default=""),
    Column("destination", String(64), nullable=False, server_default=""),
    _text("steps", "[]"),  # JSON: name, ok, seconds, sentence
    _text("sentence"),
    CheckConstraint("(state = 'running') = (finished_at IS NULL)", name="finished"),
)

# How full the disk was, every so often: what a forecast is drawn from.
disk = _table(
    "disk",
    _id(),
    Column("node", String(64), nullable=False),
    _time("at", index=True),
    Column("free", BigInteger, nullable=False),
    Column("total", BigInteger, nullable=False),
)

# Append-only: who did what, when. No patient attribute.
audit = _table(
    "audit",
    _id(),
    _time("at", index=True),
    Column("who", String(64), nullable=False),
    Column("what", String(64), nullable=False),
    _text("which", index=True),
    _text("detail", "{}"),
)
