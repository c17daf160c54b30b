"""The values of the site around the queue: who may do what, what was asked, who is told."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Role(StrEnum):
    """What a person may do: look; act on jobs, series and deliveries; change the installation."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMINISTRATOR = "administrator"


class WishState(StrEnum):
    """A wish is asked by a person, then done by the node, or not, with a sentence."""

    ASKED = "asked"
    DONE = "done"
    FAILED = "failed"


class MessageState(StrEnum):
    """A notice on its way through one channel; failed once its tries are used up."""

    QUEUED = "queued"
    SENT = "sent"
    FAILED = "failed"


class SelfTestState(StrEnum):
    """A self-test runs until its series came back verified, or something in between did not."""

    RUNNING = "running"
    PASSED = "passed"
    FAILED = "failed"


class SwitchName(StrEnum):
    """What a person may set while the node runs; the subject is in brackets."""

    DRAINING = "draining"  # []: keep receiving, start no jobs
    PAUSED = "paused"  # [destination]: nothing is sent there
    NEVER = "never"  # [Series UID]: no jobs are made of it
    ALLOWED_AE = "allowed_ae"  # [calling AE title]: accepted besides node.allowed_ae_titles


class WishKind(StrEnum):
    """What a person asks a node to do once; the subject is in brackets."""

    RELOAD = "reload"  # []: read config.toml again
    ECHO = "echo"  # [destination]
    SELFTEST = "selftest"  # []
    NOTIFY = "notify"  # []: a test notice through every channel
    PROCESS_NOW = "process_now"  # [Series UID]: close its arrivals without waiting


@dataclass(frozen=True)
class User:
    """A person who may log in; `password` is a hash, empty where no login is possible."""

    name: str
    role: Role
    password: str = field(repr=False)
    disabled: bool
    created_at: float
    changed_at: float


@dataclass(frozen=True)
class Login:
    """Somebody who is logged in; `id` is the SHA-256 of the browser's token."""

    id: str = field(repr=False)
    name: str
    role: Role
    csrf: str = field(repr=False)
    address: str
    created_at: float
    seen_at: float
    expires_at: float


@dataclass(frozen=True)
class ApiToken:
    """A program that may call the API."""

    id: int
    name: str
    role: Role
    created_by: str
    created_at: float
    used_at: float | None
    revoked_at: float | None


@dataclass(frozen=True)
class Switch:
    """Something that is set, by whom and since when."""

    name: SwitchName
    subject: str
    who: str
    at: float


@dataclass(frozen=True)
class Wish:
    """Something that a node was asked for, and what came of it."""

    id: int
    kind: WishKind
    subject: str
    who: str
    asked_at: float
    state: WishState
    node: str | None  # who has taken it up
    done_at: float | None
    sentence: str


@dataclass(frozen=True)
class Configured:
    """The configuration as a node has read it; `problems` are of the last one it refused."""

    node: str
    applied_at: float
    values: Mapping[str, object]
    restart: tuple[str, ...]
    refused_at: float | None
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Echo:
    """One C-ECHO and what came of it."""

    id: int
    destination: str
    at: float
    ok: bool
    seconds: float
    sentence: str


@dataclass(frozen=True)
class Reach:
    """Whether a destination answers, since when, and until when its breaker is open."""

    destination: str
    up: bool
    since: float
    checked_at: float
    failures: int
    open_until: float
    sentence: str


@dataclass(frozen=True)
class Notice:
    """Something that somebody is told once."""

    id: int
    event: str
    key: str
    at: float
    facts: Mapping[str, object]


@dataclass(frozen=True)
class Message:
    """A notice on its way through one channel."""

    id: int
    notice: Notice
    channel: str
    state: MessageState
    tries: int
    due_at: float
    done_at: float | None
    sentence: str


@dataclass(frozen=True)
class SelfTestStep:
    """One step of the way of a made series."""

    name: str
    ok: bool
    seconds: float
    sentence: str


@dataclass(frozen=True)
class SelfTest:
    """A made series on the whole way."""

    id: int
    node: str
    who: str
    started_at: float
    finished_at: float | None
    state: SelfTestState
    series_uid: str
    destination: str
    steps: tuple[SelfTestStep, ...]
    sentence: str


@dataclass(frozen=True)
class NodeState:
    """A running or past process of a node on this storage."""

    id: str
    started_at: float
    heartbeat: float
    state: str  # serving, stopping, stopped
    clean_at: float | None


@dataclass(frozen=True)
class AuditEvent:
    """Who did what, when; never a patient attribute."""

    id: int
    at: float
    who: str
    what: str
    which: str
    detail: Mapping[str, object]
