"""What a page shows of a job, a series or a delivery on one line: read, never written back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from storage.records import Arrival, Delivery, DeliveryState, JobState
from storage.site import Echo, Reach, Switch

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
        """Whether `total` is exact."""
        return self.total < MOST_COUNTED

    @property
    def has_more(self) -> bool:
        return self.offset + len(self.lines) < self.total


@dataclass(frozen=True)
class Subject:
    """What a series is called: patient attributes, for eyes that may see them only."""

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
class JobLine:
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
    subject: Subject


@dataclass(frozen=True)
class Waiting:
    """A job in the queue: its place, and when it will start if all goes on as it did of late."""

    place: int
    expected_at: float | None  # None: unknown, or the node drains
    job: JobLine


@dataclass(frozen=True)
class Running:
    """A job that a worker has, and how long it will still take by what it did so far."""

    seconds: float
    seconds_left: float | None
    job: JobLine


@dataclass(frozen=True)
class ArrivalLine:
    """A series that is arriving; `never` and `asked` are what a person wants of it."""

    arrival: Arrival
    subject: Subject
    never: bool
    asked: bool  # somebody asked for it to be processed now


@dataclass(frozen=True)
class DeliveryLine:
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
class SeriesLine:
    """A received series with what became of it."""

    subject: Subject
    first_at: float
    last_at: float
    purged_at: float | None
    instances: int
    senders: tuple[str, ...]
    arriving: bool
    jobs: tuple[JobLine, ...]  # the newest first


@dataclass(frozen=True)
class Sender:
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
class DestinationLine:
    """What is known of a destination; `up` None: nobody has asked it yet."""

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
