"""Request and outcome of a job: picklable values that load neither numpy, torch nor pydicom."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal

from inference.errors import Reason

SliceThickness = Literal["source", "spacing"]  # of generated slices, and of copies beside them
ObjectKind = Literal[
    "image",
    "presentation state",
    "parametric map",
    "segmentation",
    "report",
    "key objects",
    "capture",
]
# Of a report of findings: on their segments, or for those who take no 3D one on outlines in slices.
ReportForm = Literal["3d", "2d"]
# The family of a model: what it makes of a stack.
Produces = Literal["slices", "mask", "scores", "findings"]
PRODUCTS: Mapping[Produces, str] = {  # in a sentence
    "slices": "slices",
    "mask": "a mask",
    "scores": "scores",
    "findings": "findings",
}
AcrossMissing = Literal["hold", "leave"]  # a series with missing slices: held, or its other gaps
Undersampled = Literal["process", "hold"]  # a series whose slices have seen under half of a gap


@dataclass(frozen=True)
class Parameters:
    """The slices that a route or a caller asks of a model that makes slices: one of the two.

    Another model is asked for neither.
    """

    factor: int | None = None  # slices out per slice in, 2 to 10
    target_spacing_mm: float | None = None


@dataclass(frozen=True)
class ModelSpec:
    """The model to load: a registered name, or a site's own class with its weights."""

    name: str
    factory: str | None = None  # "package.module:Class"; None = registered under `name`
    weights: Path | None = None
    weights_sha256: str = ""  # checked against the file where it is given
    produces: Produces = "slices"


@dataclass(frozen=True)
class Source:
    """A Part 10 file of a stack. Several with one instance UID are versions; the newest is used."""

    path: Path
    instance_uid: str
    order: int  # rises with the time of receipt; the newest version has the highest
    digest: str = ""  # BLAKE3 of the data set as it was received; "" = nobody knows


@dataclass(frozen=True)
class Output:
    """The form of the derived series, part of its UIDs, and which objects lie beside it."""

    include_received: bool = True
    slice_thickness: SliceThickness = "source"
    accept_derived: bool = True
    across_missing: AcrossMissing = "hold"
    most_gap_mm: float = 12.0  # a series with a wider one to fill is held
    undersampled: Undersampled = "process"
    classical_below: float = 0.1  # confidence below which a slice does without the network
    hold_below: float = 0.05  # confidence below which the series is held
    overlay: bool = True  # generated slices are marked in an overlay plane
    presentation_state: bool = True  # beside the series: marks them for any viewer
    error_map: bool = False  # beside the series: the expected error of each place
    accept_children: bool = False  # by a model whose scope is adults
    max_findings: int = 10  # of those with the highest scores, in a report of findings
    report: ReportForm = "3d"  # of findings
    content_qualification: Literal["RESEARCH", "PRODUCT", "SERVICE"] = "RESEARCH"
    label: str = ""  # ASCII, part of the description: which stack of several


@dataclass(frozen=True)
class Mark:
    """The mark that tells a derived series from others made of the same stack before.

    A first one has none: its UIDs are those of its content alone.
    """

    revision: int = 1
    place: int = 0  # among them; raises the Series Number
    route: str = ""  # said where several routes have made one


@dataclass(frozen=True)
class Resources:
    """The device, memory and threads that a model may use."""

    device: str = "auto"  # auto, cpu, cuda, cuda:1
    batch: int = 4
    threads: int = 0  # 0 = as many as the machine has cores


PREVIEWS = "previews"  # the folder of small pictures, beside the files


@dataclass(frozen=True)
class Request:
    """One stack, one model, one folder for the result: all that a worker is told."""

    sources: tuple[Source, ...]
    model: ModelSpec
    parameters: Parameters
    output: Output
    folder: Path  # made by the caller, empty; the derived files go here
    secret: bytes  # of the site; keys the derived UIDs
    started_at: datetime  # with a time zone; the result's dates
    beside: tuple[Source, ...] = ()  # what else was received of the series, whoever brought it
    edition: int = 1
    kept: frozenset[str] = frozenset()  # derived Series UIDs that exist and must not be made again
    mark: Mark = Mark()  # of a new derived series
    marks: Mapping[str, Mark] = field(default_factory=dict)  # those given before, by content UID
    station_name: str = "MIDSLICE"  # the node's AE title
    resources: Resources = Resources()
    reserve_bytes: int | None = None  # that the result must leave free; None = it is not checked
    previews: bool = False  # small pictures for the page of the job, in a folder beside the files
    in_parts: bool = False  # other workers draft gaps of it meanwhile


@dataclass(frozen=True)
class Part:
    """The gaps of a request whose slices lie between two of their numbers, for another worker."""

    request: Request
    first: int  # generated slices before the part
    last: int


@dataclass(frozen=True)
class PartMade:
    """The end of a part: its drafts lie beside the result of the request."""

    gaps: int


@dataclass(frozen=True)
class Progress:
    """The progress of a job: `done` of `total` slices in `step`."""

    step: str  # reading, predicting, writing, checking
    done: int
    total: int


@dataclass(frozen=True)
class File:
    """One result file of a job; `name` lies in the folder of the request.

    All files of a job are delivered, kept, shown and removed together.
    """

    name: str
    instance_uid: str
    sop_class_uid: str
    digest: str  # BLAKE3 of the file
    generated: bool
    series_uid: str  # a kind that is no image has a series of its own
    kind: ObjectKind = "image"
    is_supplement: bool = False  # a destination may do without it


@dataclass(frozen=True)
class Derived:
    """A derived series with its further objects, verified, written and fsynced."""

    series_uid: str
    version: str  # of the model
    files: tuple[File, ...]
    record: Mapping[str, object] = field(default_factory=dict)  # JSON: counts, seconds, device
    content_uid: str = ""  # the Series UID that it would have without a mark
    mark: Mark = Mark()


@dataclass(frozen=True)
class Kept:
    """The derived series that exists already for this request; nothing was predicted."""

    series_uid: str


@dataclass(frozen=True)
class Verdict:
    """A refusal or a hold of the series, with a reason code and a sentence."""

    reason: Reason
    sentence: str
    held: bool
    record: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Failed:
    """An error of the model or of our code. `frames` may stand in a log, `sentence` on a page."""

    reason: str  # the exception's class
    sentence: str
    frames: str


@dataclass(frozen=True)
class Stopped:
    """The end of a job that was cancelled between two steps."""


LACKING = "The machine lacks room for this job ({lacked}); it is tried again by itself."


@dataclass(frozen=True)
class OutOfResources:
    """The end of a job for which the machine lacked room; later the same job may be done."""

    sentence: str


@dataclass(frozen=True)
class OutOfMemory:
    """The end of a job for which memory did not suffice, however little was tried at once.

    Whether it does later, or never, cannot be told from one try.
    """

    frames: str  # where memory lacked


Outcome = Derived | Kept | Verdict | Failed | Stopped | OutOfResources | OutOfMemory
