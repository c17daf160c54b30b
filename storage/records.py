"""The values that go in and out of the database: frozen, complete, free of SQL."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Generic, Literal, TypeAlias, TypeVar

DAY = 86_400.0  # in seconds, as all times and durations are

# Characters of a UID that is kept, 1 to 64 of them. Wider than PS3.5 9.1, which old scanners and
# gateways break: what other programs store identifies as well. None of them parts a path.
UID_CHARACTERS = "0-9A-Za-z._-"

# The reason of a job that gave way to a newer one of the same peer.
SUPERSEDED = "SUPERSEDED"


class ArrivalState(StrEnum):
    """An arrival is open until its completion rule has closed it."""

    ARRIVING = "arriving"
    COMPLETE = "complete"


class JobState(StrEnum):
    """The states of a job; the transitions are drawn beside the table."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    REFUSED = "refused"
    FAILED = "failed"
    HELD = "held"
    CANCELLED = "cancelled"


class DeliveryState(StrEnum):
    """The states of a delivery: `sent` is C-STORE Success for all, `confirmed` is proof."""

    QUEUED = "queued"
    RUNNING = "running"
    SENT = "sent"
    CONFIRMED = "confirmed"
    HELD = "held"
    CANCELLED = "cancelled"


class CommitmentState(StrEnum):
    """The states of the storage commitment that a destination is asked for."""

    QUEUED = "queued"  # it is asked, or asked again, when it is due
    RUNNING = "running"
    WAITING = "waiting"  # for the report of the destination
    SENDING = "sending"  # what was not committed is sent again
    CONFIRMED = "confirmed"
    FAILED = "failed"  # a person was told: the delivery is held
    UNPROVED = "unproved"  # neither a report nor C-FIND: a person was told
    CANCELLED = "cancelled"  # the delivery began anew


class ReportState(StrEnum):
    """The states of a report of storage commitment that the node owes a sender."""

    QUEUED = "queued"
    RUNNING = "running"
    SENT = "sent"
    FAILED = "failed"


@dataclass(frozen=True)
class Received:
    """One instance as a peer sent it: identifiers already validated, bytes in `incoming`."""

    study_uid: str
    series_uid: str
    instance_uid: str
    sop_class_uid: str
    transfer_syntax: str
    modality: str = ""
    patient_id: str = ""
    accession: str = ""
    study_date: str = ""
    description: str = ""
    patient_name: str = ""
    # Of a file that comes into the index by itself: the AE titles in its meta information.
    calling_ae: str = ""
    called_ae: str = ""


@dataclass(frozen=True)
class Peer:
    """The bringer of an instance: the two AE titles and the association's row."""

    calling_ae: str
    called_ae: str
    association: int | None = None
    is_restored: bool = False  # nobody brings it now: its file was there and had no row


@dataclass(frozen=True)
class Instance:
    """A received instance, one version of it; `path` is relative to the storage folder."""

    id: int
    instance_uid: str
    sop_class_uid: str
    transfer_syntax: str
    digest: str
    size: int
    path: str | None
    received_at: float  # the first time; of an arrival's instances, the last from its peer


@dataclass(frozen=True)
class Arrival:
    """One peer bringing one series, with the evidence that its completion is decided on."""

    id: int
    series_id: int
    study_uid: str
    series_uid: str
    calling_ae: str
    called_ae: str
    state: ArrivalState
    first_at: float
    last_at: float
    completed_at: float | None
    instances: int
    open_associations: int
    released: int  # of its ended associations, how many were released cleanly
    aborted: int
    own: bool
    evidence: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class ClosingFault:
    """Why an arrival that is complete cannot be closed: an error of the node, again and again."""

    error: str  # the class of the exception
    since: float

    @classmethod
    def of(cls, arrival: Arrival) -> "ClosingFault | None":
        """The one that is kept of an arrival; None where there is none."""
        fault = arrival.evidence.get("fault")
        return cls(**fault) if isinstance(fault, Mapping) else None

    def as_evidence(self) -> Mapping[str, object]:
        """What an arrival keeps while it is open; the evidence that closes it takes its place."""
        return {"fault": {"error": self.error, "since": self.since}}


@dataclass(frozen=True)
class Brought:
    """A peer's part of a series: its newest arrival, and all versions of its that count."""

    arrival: Arrival
    instances: tuple[Instance, ...]  # the newest version first

    @cached_property
    def uids(self) -> frozenset[str]:
        return frozenset(instance.instance_uid for instance in self.instances)


@dataclass(frozen=True)
class JobVerdict:
    """The reason why a job ends as it begins: what was received says it all."""

    state: Literal[JobState.REFUSED, JobState.HELD]
    reason: str
    sentence: str

    @property
    def what(self) -> Literal["refused", "held"]:
        return "held" if self.state is JobState.HELD else "refused"


@dataclass(frozen=True)
class DerivedMark:
    """The difference of a derived series from others of its source; a first one has none."""

    revision: int = 1  # of its stack and route
    place: int = 0  # among all of its stack
    route: str = ""  # which made it; said where another route has made one of this stack


@dataclass(frozen=True)
class NewJob:
    """A job that a route asks for one stack; the key makes asking twice the same as asking once."""

    kind: str
    key: str
    series_id: int
    arrival_id: int
    stack: str
    route: str
    model: str
    parameters: Mapping[str, object]
    destinations: tuple[str, ...]
    priority: int
    instances: tuple[int, ...]  # ids of the instance versions, the newest first
    verdict: JobVerdict | None = None  # refused or held from the start
    record: Mapping[str, object] = field(default_factory=dict)  # what is known before it runs
    on_behalf: bool = False  # asked for a peer whose slices are part of it, not by that peer


@dataclass(frozen=True)
class Job:
    """A durable unit of work as it stands."""

    id: int
    kind: str
    key: str
    state: JobState
    reason: str
    sentence: str
    series_id: int
    series_uid: str
    study_uid: str
    arrival_id: int
    stack: str
    route: str
    model: str
    version: str
    parameters: Mapping[str, object]
    destinations: tuple[str, ...]
    edition: int
    priority: int
    queued_at: float
    due_at: float
    started_at: float | None
    finished_at: float | None
    worker: str | None
    attempt: int
    worker_deaths: int
    abandoned: int
    progress: float
    cancel_requested: bool
    derived_id: int | None
    derived_series_uid: str | None
    record: Mapping[str, object] = field(default_factory=dict)
    confidence_counts: Mapping[str, int] = field(default_factory=dict)  # generated slices by word
    mark: DerivedMark = DerivedMark()  # of what it makes, once it was claimed


@dataclass(frozen=True)
class Requeued:
    """A job that a person has queued again, to be compared with its route."""

    job: Job
    requesters: Mapping[int, str]  # the arrivals that want it, each with its calling AE title


@dataclass(frozen=True)
class Attempt:
    """One run of a job and how it ended."""

    number: int
    worker: str
    started_at: float
    ended_at: float | None
    outcome: str | None
    detail: str


@dataclass(frozen=True)
class DerivedInstance:
    """One result file of a job; `path` is relative to the folder of the derived series."""

    instance_uid: str
    sop_class_uid: str
    path: str
    digest: str  # BLAKE3 of the file
    generated: bool
    series_uid: str  # of the derived series, or of a further object
    kind: str = "image"
    is_supplement: bool = False  # a destination may do without it


@dataclass(frozen=True)
class NewDerived:
    """A verified derived series as a worker left it; `folder` is relative to the storage folder."""

    series_uid: str
    folder: str
    edition: int
    version: str
    instances: tuple[DerivedInstance, ...]
    record: Mapping[str, object] = field(default_factory=dict)
    content_uid: str = ""  # what its UID would be without a mark; "" = the same
    mark: DerivedMark = DerivedMark()


@dataclass(frozen=True)
class Delivery:
    """A derived series on its way to one destination, with counts from the ledger."""

    id: int
    derived_id: int
    derived_series_uid: str
    folder: str
    destination: str
    state: DeliveryState
    reason: str
    sentence: str
    priority: int
    queued_at: float
    due_at: float
    started_at: float | None
    finished_at: float | None
    attempt: int
    failures: int
    comment: str  # of the destination: its last Error Comment, of what is not stored first
    sent: int
    confirmed: int
    total: int


class Evidence(StrEnum):
    """What proves that a destination keeps an instance."""

    COMMITMENT = "commitment"
    QUERY = "query"  # C-FIND at IMAGE level names its UID


@dataclass(frozen=True)
class Commitment:
    """The storage commitment asked of a destination for what it has stored of one delivery."""

    id: int
    delivery_id: int
    destination: str
    state: CommitmentState
    reason: str
    sentence: str
    queued_at: float  # since the delivery was sent
    due_at: float
    finished_at: float | None
    attempt: int
    evidence: Evidence  # what is tried next
    tries: int  # reports since the delivery was sent that named failures
    failures: int  # to reach the peer, in a row
    resent: int


@dataclass(frozen=True)
class Reference:
    """A SOP Class and a SOP Instance, as storage commitment names them."""

    sop_class_uid: str
    instance_uid: str


@dataclass(frozen=True)
class Unconfirmed:
    """An instance that a destination has stored, and has not proved yet to keep."""

    id: int  # of the derived instance
    sop_class_uid: str
    instance_uid: str
    series_uid: str
    study_uid: str
    is_supplement: bool
    failure: int | None  # the Failure Reason of the last report

    @property
    def reference(self) -> Reference:
        return Reference(self.sop_class_uid, self.instance_uid)


@dataclass(frozen=True)
class CommitmentReport:
    """The content of an N-EVENT-REPORT of storage commitment, of either direction."""

    transaction_uid: str
    committed: tuple[Reference, ...]
    failed: Mapping[Reference, int]  # with the Failure Reason
    calling_ae: str = ""


@dataclass(frozen=True)
class OwedReport:
    """A report that the node owes a sender which has asked for storage commitment."""

    id: int
    calling_ae: str
    called_ae: str
    transaction_uid: str
    references: tuple[Reference, ...]
    asked_at: float
    attempt: int
    tries: int


@dataclass(frozen=True)
class Unsent:
    """An instance that a destination has not stored yet."""

    id: int  # of the derived instance
    instance_uid: str
    sop_class_uid: str
    path: str  # relative to the storage folder
    digest: str
    offers: int  # how often it was offered to this destination before
    not_understood: int  # how often it answered A9xx or Cxxx, since it was last offered anew
    status: int | None
    kind: str = "image"
    is_supplement: bool = False


@dataclass(frozen=True)
class Series:
    """A received series as an operator sees it."""

    id: int
    series_uid: str
    study_uid: str
    modality: str
    patient_id: str
    patient_name: str
    accession: str
    study_date: str
    description: str
    first_at: float
    last_at: float
    purged_at: float | None
    instances: int
    bytes: int
    states: tuple[str, ...]  # of its arrivals, then of its jobs


@dataclass(frozen=True)
class KeptInstance:
    """An instance is on disk and in the database: the peer may be told Success."""

    instance_id: int
    arrival_id: int
    is_new: bool  # False: these bytes were kept before


@dataclass(frozen=True)
class Recovered:
    """The findings of a look at the files: paths relative to the storage folder."""

    indexed: tuple[str, ...] = ()  # had no row and have one now
    removed: tuple[str, ...] = ()  # broken and never acknowledged, or purged before
    unreadable: tuple[str, ...] = ()  # left where they are: a person decides
    missing: tuple[str, ...] = ()  # had a row that said so, and are gone


What: TypeAlias = Literal["queued", "requeued", "redelivered", "known", "refused", "held"]


@dataclass(frozen=True)
class Enqueued:
    """The outcome of asking for a job; `known` goes on, to more destinations perhaps."""

    job_id: int
    what: What
    cancelled: tuple[int, ...] = ()  # older unfinished jobs that this one replaces
    reason: str = ""  # of what is refused or held


@dataclass(frozen=True)
class Ended:
    """The state of a job after its worker's result; True where the result's folder is in use."""

    state: JobState
    folder_kept: bool
    revision: int = 1  # above 1: other results of the same stack and route were made before


@dataclass(frozen=True)
class Backlog:
    """The deliveries of a destination in one state: how many, and since when the oldest waits."""

    destination: str
    state: DeliveryState
    count: int
    oldest_at: float


@dataclass(frozen=True)
class Expired:
    """A series whose files may go, and why."""

    series_id: int
    series_uid: str
    rule: Literal["keep_days", "keep_unrouted_days"]
    since: float  # the last thing that happened to it


@dataclass(frozen=True)
class Purged:
    """The result of a purge; `skipped` were in use again, `failed` stay for the next sweep."""

    series: tuple[int, ...] = ()
    skipped: tuple[int, ...] = ()
    failed: tuple[int, ...] = ()
    bytes: int = 0


class Role(StrEnum):
    """The rights of a person: look; act on jobs, series and deliveries; change the installation."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMINISTRATOR = "administrator"


class RequestState(StrEnum):
    """A request is asked by a person, then done by the node, or not, with a sentence."""

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
    """The switches that a person may set while the node runs; the subject is in brackets."""

    DRAINING = "draining"  # []: keep receiving, start no jobs
    PAUSED = "paused"  # [destination]: nothing is sent there
    NEVER = "never"  # [Series UID]: no jobs are made of it
    ALLOWED_AE = "allowed_ae"  # [calling AE title]: accepted besides node.allowed_ae_titles


class RequestKind(StrEnum):
    """The things that a person asks a node to do once; the subject is in brackets."""

    RELOAD = "reload"  # [node]: read config.toml again; empty: any node
    ECHO = "echo"  # [destination]
    SELFTEST = "selftest"  # []
    NOTIFY = "notify"  # []: a test notice through every channel
    PROCESS_NOW = (
        "process_now"  # [Series UID]: close its arrivals; with a route, process it by that
    )
    FETCH = "fetch"  # [Study UID]: have a destination send it, or one series of it


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
    is_external: bool  # known by a log-in provider, no person of the node's own
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
class NodeRequest:
    """Something that a node is asked to do once, and its answer."""

    id: int
    kind: RequestKind
    subject: str
    route: str
    destination: str
    series_uid: str
    who: str
    asked_at: float
    state: RequestState
    attempt: int
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
    """The reachability of a destination, since when, and until when its breaker is open."""

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
    attempt: int
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
    state: str  # serving, stopping, stopped; lost: it gave no sign of life, others have its work
    clean_at: float | None
    version: str = ""
    address: str = ""  # of its pages
    load: float = 0.0  # processes that want a core, for each core
    lacks: str = ""  # why jobs wait for a worker of it; empty where none does
    lacking_since: float | None = None


@dataclass(frozen=True)
class NodeWork:
    """The work of one node at this moment."""

    associations: int = 0
    jobs: int = 0
    deliveries: int = 0


@dataclass(frozen=True)
class AuditEvent:
    """An act: who did what, when; never a patient attribute."""

    id: int
    at: float
    who: str
    what: str
    which: str
    detail: Mapping[str, object]


Line = TypeVar("Line")

MOST_COUNTED = 1000  # a longer list says "1000 and more": nobody counts further


@dataclass(frozen=True)
class Page(Generic[Line]):
    """Some lines of a list; `total` is exact below MOST_COUNTED."""

    lines: tuple[Line, ...]
    total: int
    limit: int
    offset: int

    @property
    def is_whole(self) -> bool:
        """True where `total` is exact."""
        return self.total < MOST_COUNTED

    @property
    def has_more(self) -> bool:
        return self.offset + len(self.lines) < self.total


@dataclass(frozen=True)
class Subject:
    """The names of a series: patient attributes, for eyes that may see them only."""

    series_id: int
    series_uid: str
    study_uid: str
    modality: str
    description: str
    patient_id: str = field(repr=False)
    patient_name: str = field(repr=False)
    accession: str = field(repr=False)
    study_date: str = field(repr=False)


@dataclass(frozen=True)
class JobSummary:
    """A job with whose it is and who sent it."""

    id: int
    kind: str
    state: JobState
    reason: str
    sentence: str
    route: str
    model: str
    priority: int
    queued_at: float
    started_at: float | None
    finished_at: float | None
    attempt: int
    progress: float
    step: str
    step_done: int
    step_total: int
    worker: str | None
    destinations: tuple[str, ...]
    sender: str
    derived_series_uid: str | None
    confidence_counts: Mapping[str, int]  # generated slices by the word of their confidence
    subject: Subject


@dataclass(frozen=True)
class QueuedJob:
    """A job in the queue: its place, and when it will start if all goes on as it did of late."""

    place: int
    expected_at: float | None  # None: unknown, or the node drains
    job: JobSummary


@dataclass(frozen=True)
class RunningJob:
    """A job that a worker has, and how long it will still take by what it did so far."""

    seconds: float
    seconds_left: float | None
    job: JobSummary


@dataclass(frozen=True)
class ArrivalSummary:
    """A series that is arriving; `never` and `asked` are what a person wants of it."""

    arrival: Arrival
    subject: Subject
    never: bool
    asked: bool  # somebody asked for it to be processed now


@dataclass(frozen=True)
class DeliverySummary:
    """A delivery with the job that made its series, and whose it is."""

    delivery: Delivery
    job_id: int | None
    generated: int  # of its instances, how many a model made
    subject: Subject


@dataclass(frozen=True)
class Need:
    """Something that waits for a person: a held or failed job, or a held delivery."""

    what: str  # job, delivery
    id: int
    job_id: int | None
    state: JobState | DeliveryState
    reason: str
    sentence: str
    since: float
    destination: str  # of a delivery
    sender: str
    route: str
    subject: Subject
    is_gone: bool = False  # the received files of a job were removed: it cannot be done again


@dataclass(frozen=True)
class NeedGroup:
    """Needs of a person for one and the same reason, the newest first."""

    what: str  # job, delivery
    state: JobState | DeliveryState
    reason: str
    series: int  # received series that it is about
    needs: Page[Need]


@dataclass(frozen=True)
class SeriesSummary:
    """A received series with what became of it."""

    subject: Subject
    first_at: float
    last_at: float
    purged_at: float | None
    instances: int
    senders: tuple[str, ...]
    arriving: bool
    jobs: tuple[JobSummary, ...]  # the newest first


@dataclass(frozen=True)
class SenderSummary:
    """A peer that associates, by its calling AE title."""

    ae_title: str
    addresses: tuple[str, ...]  # the newest first
    last_at: float  # of its last association, whatever the answer was, or of its last instance
    last_image_at: float | None  # of its last instance
    open: int
    series_today: int
    instances_today: int
    rejected_today: int


@dataclass(frozen=True)
class Rejected:
    """Associations that were refused alike: who, under which name, and why."""

    calling_ae: str
    called_ae: str
    address: str
    reason: str
    count: int
    first_at: float
    last_at: float


@dataclass(frozen=True)
class DestinationSummary:
    """A destination as it is known; `up` None: nobody has asked it yet."""

    name: str
    reach: Reach | None
    last_echo: Echo | None
    paused: Switch | None
    queued: int
    running: int
    held: int
    oldest_at: float | None  # of what waits
    delivered: int  # in the days asked for
    failed: int
    success: float | None  # the share of what ended there well; None: nothing ended

    @property
    def up(self) -> bool | None:
        return self.reach.up if self.reach is not None else None

    @property
    def waiting(self) -> Mapping[str, int]:
        """The number of its open deliveries by state, without states that none is in."""
        counts = {"held": self.held, "queued": self.queued, "running": self.running}
        return {state: count for state, count in counts.items() if count}


@dataclass(frozen=True)
class Moment:
    """A point on the time line of a job."""

    at: float
    what: str  # first, last, complete, queued, started, ended, sent, confirmed, ... or an audit's
    sentence: str
    who: str = ""


@dataclass(frozen=True)
class Percentiles:
    """The middle of a step's durations, and what one in twenty exceeds, in seconds."""

    count: int
    p50: float | None
    p95: float | None


@dataclass(frozen=True)
class Bucket:
    """An hour or a day: how long each step took, and how much was done."""

    start: float
    end: float
    steps: Mapping[str, Percentiles]
    jobs: int
    instances: int  # received
    failed: int  # jobs that failed or were held
