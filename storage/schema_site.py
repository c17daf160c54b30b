"""The tables of the site around the queue: people, switches, wishes, notices, looks at peers.

They share the metadata of `storage/schema.py`. Times are seconds since the epoch, UTC.
"""

from enum import StrEnum

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    String,
    Table,
    Text,
    text,
)

from storage.schema import key_column, metadata
from storage.site import MessageState, Role, SelfTestState, WishState

__all__ = [
    "NEW_NOTICE",
    "OPEN_MESSAGE",
    "OPEN_WISH",
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
    "selftest",
    "switch",
    "token",
    "wish",
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
wish = Table(
    "wish",
    metadata,
    key_column(),
    Column("kind", String(32), nullable=False),  # reload, echo, selftest, notify, process_now
    Column("subject", String(64), nullable=False, server_default=""),
    Column("who", String(64), nullable=False),
    Column("asked_at", Float, nullable=False, index=True),
    Column("state", String(16), nullable=False),
    Column("node", String(64)),  # who has taken it up
    Column("done_at", Float),
    Column("sentence", Text, nullable=False, server_default=""),
    one_of(WishState),
    CheckConstraint("(state = 'asked') = (done_at IS NULL)", name="done"),
)
OPEN_WISH = text("wish.state = 'asked'")
Index(
    "ix_wish_open",
    wish.c.id,
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
    Column("done_at", Float),
    Column("sentence", Text, nullable=False, server_default=""),
    one_of(MessageState),
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
