"""The values that go in and out of the database: frozen, complete, free of SQL."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, TypeAlias


class ArrivalState(StrEnum):
    """An arrival is open until its completion rule has closed it."""

    ARRIVING = "arriving"
    COMPLETE = "complete"


class JobState(StrEnum):
    """Where a job stands; the transitions are drawn beside the table."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    REFUSED = "refused"
    FAILED = "failed"
    HELD = "held"
    CANCELLED = "cancelled"


class DeliveryState(StrEnum):
    """Where a delivery stands: `sent` is C-STORE Success for all, `confirmed` is proof."""

    QUEUED = "queued"
    RUNNING = "running"
    SENT = "sent"
    CONFIRMED = "confirmed"
    HELD = "held"
    CANCELLED = "cancelled"


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


@dataclass(frozen=True)
class Peer:
    """Who brings an instance: the two AE titles and the association's row."""

    calling_ae: str
    called_ae: str
    association: int | None = None


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
class Verdict:
    """Why a job ends as it begins: what was received says it all, and no worker has to look."""

    state: Literal[JobState.REFUSED, JobState.HELD]
    reason: str
    sentence: str

    @property
    def what(self) -> Literal["refused", "held"]:
        return "held" if self.state is JobState.HELD else "refused"


@dataclass(frozen=True)
class Mark:
    """What tells a derived series from the others of its received series; a first one has none."""

    revision: int = 1  # of its stack and route
    place: int = 0  # among all of its stack
    route: str = ""  # which made it; said where another route has made one of this stack


@dataclass(frozen=True)
class NewJob:
    """What a route asks for one stack; the key makes asking twice the same as asking once."""

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
    verdict: Verdict | None = None  # refused or held from the start


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
    mark: Mark = Mark()  # of what it makes, once it was claimed


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
    """One file of a derived series; `path` is relative to the folder of the series."""

    instance_uid: str
    sop_class_uid: str
    path: str
    digest: str  # SHA-256 of the file
    generated: bool


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
    mark: Mark = Mark()


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
    sent: int
    confirmed: int
    total: int


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
class Kept:
    """An instance is on disk and in the database: the peer may be told Success."""

    instance_id: int
    arrival_id: int
    is_new: bool  # False: these bytes were kept before


@dataclass(frozen=True)
class Recovered:
    """What a look at the files found: paths relative to the storage folder."""

    indexed: tuple[str, ...] = ()  # had no row and have one now
    removed: tuple[str, ...] = ()  # broken and never acknowledged, or purged before
    unreadable: tuple[str, ...] = ()  # left where they are: a person decides
    missing: tuple[str, ...] = ()  # had a row that said so, and are gone


What: TypeAlias = Literal["queued", "requeued", "redelivered", "known", "refused", "held"]


@dataclass(frozen=True)
class Enqueued:
    """What became of a job that was asked for; `known` goes on, to more destinations perhaps."""

    job_id: int
    what: What
    cancelled: tuple[int, ...] = ()  # older unfinished jobs that this one replaces
    reason: str = ""  # of what is refused or held


@dataclass(frozen=True)
class Ended:
    """Where a job stands after its worker's result, and whether the result's folder is in use."""

    state: JobState
    folder_kept: bool
    revision: int = 1  # above 1: other results of the same stack and route were made before


@dataclass(frozen=True)
class Backlog:
    """How many deliveries of a destination are in a state, and since when the oldest waits."""

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
    """What a purge has removed; `skipped` were in use again, `failed` stay for the next sweep."""

    series: tuple[int, ...] = ()
    skipped: tuple[int, ...] = ()
    failed: tuple[int, ...] = ()
    bytes: int = 0
