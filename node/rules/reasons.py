"""Reason codes: the state that each leads to, its meaning, and what a person can do about it."""

from collections.abc import Mapping
from dataclasses import dataclass

from node.rules.routing import kept_objections
from storage.records import Arrival, ClosingFault, DeliveryState, JobState


@dataclass(frozen=True)
class ReasonEntry:
    """One code; the type of `state` says whether it is a job's or a delivery's."""

    code: str
    state: JobState | DeliveryState
    meaning: str
    advice: str  # what to do; empty where nobody has to do anything
    futile: bool  # a requeue finds the same again, unless the route or the files change
    batch: bool  # may be requeued with many others; else a person looks at it by itself


def _table(states: type[JobState] | type[DeliveryState], text: str) -> tuple[ReasonEntry, ...]:
    """Read lines of code, state, meaning, and perhaps advice and a word: `futile` or `alone`."""
    entries = []
    for line in text.splitlines():
        if line and not line.startswith("#"):
            cells = [" ".join(cell.split()) for cell in line.split("|")] + ["", ""]
            code, state, meaning, advice, word = cells[:5]
            state_, is_batch = states(state), word != "alone"
            entries.append(ReasonEntry(code, state_, meaning, advice, word == "futile", is_batch))
    return tuple(entries)


TABLE = _table(
    JobState,
    """
# A verdict on the series: final where it is refused; a person decides where it is held
NOTHING_TO_DO | refused | The slices are already as close as requested.
TOO_FEW_SLICES | refused | The stack has fewer slices than the model needs.
NOT_A_CT_SLICE | refused | No instance is a CT slice: localizers, dose pages, screen captures.
NOT_AN_MR_SLICE | refused | No instance is an MR slice: localizers, spectra, screen captures.
DERIVED_INPUT | refused | The source is itself a projection, a synthetic or an oblique image.
MIXED_ACQUISITIONS | refused | Two acquisitions or phases interleave in one stack.
ENHANCED_NOT_SUPPORTED | refused | Enhanced multi-frame objects are kept, not processed.
NO_GEOMETRY | refused | Position, orientation, spacing or frame of reference is absent.
BAD_ORIENTATION | refused | The direction cosines are not unit vectors at a right angle.
OUT_OF_SCOPE | refused | The model is not made for this kind of image.
NOT_HU | refused | The values are not Hounsfield units (multi-energy, iodine maps).
NO_DECODER | refused | No decoder for the transfer syntax is installed; the package is named.
TOO_LARGE | refused | The result would be larger than the node allows.
ACQUIRED_THIN_SERIES_EXISTS | refused | The same acquisition was received in thinner slices.
DUPLICATE_POSITIONS | refused | Different instances lie at one position.
MISSING_UIDS | refused | A Study, Series, SOP Class or SOP Instance UID is empty.
CONFLICTING_INSTANCES | held | One SOP Instance UID came with different pixels or geometry. | \
    Send the right version again, then requeue the job. | alone
PATIENT_MISMATCH | held | The instances disagree about the patient or the study. | \
    Compare the series with the PACS; correct it there and send it again. | alone
PEERS_DISAGREE | held | Two peers sent images of the series that do not fit together. | \
    Find out which are right and let one peer send the whole series; then cancel the job. | alone
MISSING_SLICES | held | Slices are missing; nothing is made across such a gap. | \
    When the missing slices arrive, a new job replaces this one. To process the series without \
    them, set across_missing = "leave" in its route, then requeue the job. Otherwise cancel it. \
    | futile
PIXEL_DATA_ERROR | held | Pixel data is damaged or cut short. | \
    Send the series again: an intact slice replaces its damaged version. If the job is still held \
    then, requeue it.
DAMAGED_FILES | held | Received files are missing or have changed on the disk. | \
    Check the disk. Let the sender send the series again: this mends the files and puts the job \
    back.
OUTPUT_CHECK_FAILED | held | The result did not pass its check; it was not sent. | \
    Keep the series and report the error; requeue the job to try once more.
LOW_CONFIDENCE | held | The model is not sure enough of its result. | \
    Send thinner slices, or change the limit in its route that the sentence names (hold_below or \
    most_gap_mm) and requeue the job. Otherwise cancel it. | futile
UNDERSAMPLED | held | The gaps are over twice as wide as the slices are thick. | \
    Send slices that lie closer, or set undersampled = "process" in its route and requeue the \
    job: its result is for large anatomy only. Otherwise cancel it. | futile
# What happened to a job while it was processed
WORKER_DIED | held | The worker process ended several times without an answer. | \
    Read the log of its attempts; requeue the job when the machine is well.
TIME_LIMIT | held | The job took longer than inference.job_minutes allows, several times. | \
    Raise inference.job_minutes, then requeue the job.
OUT_OF_MEMORY | held | There was too little memory for the job, several times. | \
    Give the machine or the container more memory, or lower inference.workers; then requeue the job.
MEMORY_LIMIT | held | The job used more memory than inference.memory_gb allows, several times. | \
    Raise inference.memory_gb, then requeue the job.
ABANDONED | held | The node itself stopped many times while it worked on the job. | \
    Find out why the node stops (power, memory, its log), then requeue the job.
# More jobs in a day than one study or series may bring about
TOO_MANY_RESULTS | held | Its study has more results in a day than \
    completion.results_per_study allows. | \
    Check that no rule of the PACS sends results back; then requeue the job, or cancel it.
TOO_MANY_RERUNS | held | The series was requested more often in a day than \
    completion.reruns allows. | \
    Wait until the sender has sent the whole series, then requeue the job.
# Replaced by another job
SUPERSEDED | cancelled | More or other slices of the series arrived; a new job replaces this one.
ROUTE_CHANGED | cancelled | The route has changed; a new job follows the route as it is.
""",
) + _table(
    DeliveryState,
    """
UNREACHABLE | queued | The destination could not be reached.
RETRY | queued | The destination did not store every instance.
OBJECT_NOT_TAKEN | sent | The destination has the derived series, without an object beside it.
LEFT_OUT | sent | The destination has what its configuration lets it have of the result.
DAMAGED_FILES | held | Files of the derived series are missing or have changed. | \
    Check the disk, restore the files from a backup, then send again.
REFUSED_BY_PEER | held | The destination refused instances for good. | \
    Find out why together with the administrator of the destination, then send again.
NOT_UNDERSTOOD | held | The destination answered repeatedly that it cannot understand them. | \
    Ask the administrator of the destination why, then send again.
GAVE_UP | held | The destination did not store everything within delivery.give_up_hours. | \
    Make the destination answer, then send again.
NOT_CONFIRMED | held | The destination stored everything, but commits itself to a part alone. | \
    Ask the administrator of the destination what became of the instances, then send again.
NO_DESTINATION | held | The configuration no longer names the destination. | \
    Add the destination to the configuration and reload it; the delivery then continues by itself.
""",
)
# Advice for models that make no slices, where that of the table names options of those that do.
WITHOUT_SLICES: Mapping[str, str] = {
    "MISSING_SLICES": "When the missing slices arrive, a new job replaces this one. Otherwise "
    "cancel it: such a model is given whole series only.",
    "LOW_CONFIDENCE": "Look at the images for what the sentence names. Send a series without it, "
    "which makes a new job; otherwise cancel this one.",
}
# What a list of those that wait says of one series or delivery, and of several.
HEADINGS: Mapping[str, tuple[str, str]] = {
    "CONFLICTING_INSTANCES": ("has two versions of an image", "have two versions of an image"),
    "PATIENT_MISMATCH": ("mixes patients or studies", "mix patients or studies"),
    "PEERS_DISAGREE": ("was brought by peers that disagree", "were brought by peers that disagree"),
    "MISSING_SLICES": ("misses slices", "miss slices"),
    "PIXEL_DATA_ERROR": ("has damaged pixel data", "have damaged pixel data"),
    "OUTPUT_CHECK_FAILED": (
        "has a result that failed its check",
        "have results that failed their check",
    ),
    "LOW_CONFIDENCE": ("leaves the model too unsure", "leave the model too unsure"),
    "UNDERSAMPLED": ("is undersampled", "are undersampled"),
    "WORKER_DIED": ("ended its worker process", "ended their worker process"),
    "TIME_LIMIT": ("took too long", "took too long"),
    "OUT_OF_MEMORY": ("found too little memory", "found too little memory"),
    "MEMORY_LIMIT": ("needed too much memory", "needed too much memory"),
    "ABANDONED": (
        "was interrupted when the node stopped",
        "were interrupted when the node stopped",
    ),
    "TOO_MANY_RESULTS": (
        "belongs to a study with too many results",
        "belong to studies with too many results",
    ),
    "TOO_MANY_RERUNS": ("was requested too often", "were requested too often"),
    "DAMAGED_FILES": ("has damaged files", "have damaged files"),
    "REFUSED_BY_PEER": ("was refused by the destination", "were refused by the destination"),
    "NOT_UNDERSTOOD": (
        "was not understood by the destination",
        "were not understood by the destination",
    ),
    "NOT_CONFIRMED": (
        "is stored, but was not confirmed by the destination",
        "are stored, but were not confirmed by the destination",
    ),
    "GAVE_UP": ("was not stored in time", "were not stored in time"),
    "NO_DESTINATION": ("has no destination", "have no destination"),
}
# A code that a job and a delivery may have stands here as that of a job.
REASONS: Mapping[str, ReasonEntry] = {entry.code: entry for entry in reversed(TABLE)}
OF_DELIVERIES: Mapping[str, ReasonEntry] = {
    entry.code: entry for entry in TABLE if isinstance(entry.state, DeliveryState)
}
FUTILE = frozenset(entry.code for entry in TABLE if entry.futile)
ONE_BY_ONE = frozenset(entry.code for entry in TABLE if not entry.batch)

# Advice for what has no code of its own, as the exception that a job failed with.
FAILED_ADVICE = "The log of its attempt says where it failed; requeue the job to try once more."
HELD_ADVICE = "Correct what the sentence names, then requeue the job."
DELIVERY_ADVICE = "Check the destination; send again when it can store the series."
# Advice that comes before that of the code.
GONE_ADVICE = (
    "Its received files were deleted. Have the sender send the series again, which makes a new "
    "job; or cancel this job."
)
CHANGED_ADVICE = "Its route has changed since: requeue it, and a new job replaces this one."


def heading(state: str, code: str, count: int, *, is_delivery: bool = False) -> str:
    """Say in a heading what many wait for: "12 series miss slices"."""
    other = f"failed with {code}" if state == "failed" else f"wait for a person: {code}"
    singular, plural = HEADINGS.get(code, (other.replace("wait ", "waits "), other))
    noun = ("delivery", "deliveries")[count != 1] if is_delivery else "series"
    return f"{count} {noun} {singular if count == 1 else plural}"


# Why no job was made of a series.
NO_ROUTE = "kept; no route asked for a job"
OWN = "kept; a result of this node that comes back is never processed"
OF_A_NODE = "kept; the result of a node like this one is never processed"
TAKEN_BACK = "kept; {who} had excluded it from processing, but that was undone: send it again"
NO_SLICE = "kept; none of its instances is a slice ({reasons})"
MOST_OBJECTIONS = 3  # routes whose objection stands in one line; a page of its own has all


def why_no_job(arrival: Arrival | None, *, masked: bool) -> str:
    """Say why this arrival, the last one of its series, asked for no job."""
    if arrival is None:
        return NO_ROUTE
    if arrival.own:
        return OWN
    if is_result(arrival):
        return OF_A_NODE
    if who := arrival.evidence.get("never"):
        return TAKEN_BACK.format(who=who)
    aside = set_aside(arrival)
    if aside and sum(aside.values()) >= arrival.instances:
        return NO_SLICE.format(reasons=", ".join(aside))
    objections = kept_objections(arrival.evidence, masked=masked)
    against = [f"{name}: {sentences[0]}" for name, sentences in objections.items()]
    return f"{NO_ROUTE}. {' '.join(against[:MOST_OBJECTIONS])}" if against else NO_ROUTE


def why_not_closed(fault: ClosingFault) -> str:
    """Say why a series that is complete has no jobs yet, and what a person can do about it."""
    return (
        f"An error of the node ({fault.error}) keeps its jobs from being made; it is tried again "
        'every 30 s. The log says where it fails ("arrival not closed"): report it. Where nothing '
        'has to come of the series, "never process" ends it.'
    )


def why_open(arrival: Arrival) -> str:
    """The same of an arrival; nothing where no error keeps it open."""
    fault = ClosingFault.of(arrival)
    if fault is not None:
        return why_not_closed(fault)
    waiting = arrival.evidence.get("waiting")
    if not isinstance(waiting, Mapping):
        return ""
    return f"{waiting['peer']} has {waiting['missing']} more of the series: it is waited for them."


def is_result(arrival: Arrival) -> bool:
    """Tell whether an arrival is a result, by its UID of this node or by its headers of any."""
    return arrival.own or bool(arrival.evidence.get("result"))


def set_aside(arrival: Arrival) -> Mapping[str, int]:
    """Count the instances of an arrival that are in no stack, by reason."""
    counts = arrival.evidence.get("set_aside")
    return counts if isinstance(counts, dict) else {}


def asks_for_slices(parameters: Mapping[str, object]) -> bool:
    """Tell by what a job keeps of its route whether its model makes slices."""
    return bool(parameters.get("factor") or parameters.get("target_spacing_mm"))


def is_futile(code: str, *, is_changed: bool) -> bool:
    """Tell whether a job that is requeued finds the same again."""
    return code in FUTILE and not is_changed


def advice(
    state: str,
    code: str,
    *,
    is_delivery: bool = False,
    is_gone: bool = False,
    is_changed: bool = False,
    makes_slices: bool = True,
) -> str:
    """Say what a person can do about a job or a delivery that waits for one."""
    if is_gone:
        return GONE_ADVICE
    if is_changed and code in FUTILE:
        return CHANGED_ADVICE
    if not makes_slices and code in WITHOUT_SLICES:
        return WITHOUT_SLICES[code]
    entry = (OF_DELIVERIES if is_delivery else REASONS).get(code)
    if entry is not None and entry.advice:
        return entry.advice
    if is_delivery:
        return DELIVERY_ADVICE
    return FAILED_ADVICE if state == "failed" else HELD_ADVICE
