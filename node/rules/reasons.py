"""Reason codes: the state that each leads to, its meaning, and what a person can do about it."""

from collections.abc import Mapping
from dataclasses import dataclass

from storage.records import DeliveryState, JobState


@dataclass(frozen=True)
class ReasonEntry:
    """One code; the type of `state` says whether it is a job's or a delivery's."""

    code: str
    state: JobState | DeliveryState
    meaning: str
    advice: str = ""  # what to do; empty where nobody has to do anything
    futile: bool = False  # a requeue finds the same again, unless the route or the files change
    batch: bool = True  # may be requeued with many others; else a person looks at it by itself


REFUSED, HELD, CANCELLED = JobState.REFUSED, JobState.HELD, JobState.CANCELLED

TABLE = (
    # Verdicts on a series: final, except where a person must decide.
    ReasonEntry("NOTHING_TO_DO", REFUSED, "The slices lie as close as asked for."),
    ReasonEntry("TOO_FEW_SLICES", REFUSED, "The stack has fewer slices than the model needs."),
    ReasonEntry(
        "NOT_A_CT_SLICE",
        REFUSED,
        "No instance is a CT slice: localizers, dose pages, screen captures.",
    ),
    ReasonEntry(
        "DERIVED_INPUT",
        REFUSED,
        "The source is itself a projection, a synthetic or an oblique image.",
    ),
    ReasonEntry(
        "MIXED_ACQUISITIONS", REFUSED, "Two acquisitions or phases interleave in one stack."
    ),
    ReasonEntry(
        "ENHANCED_NOT_SUPPORTED", REFUSED, "Enhanced multi-frame objects are kept, not processed."
    ),
    ReasonEntry(
        "NO_GEOMETRY", REFUSED, "Position, orientation, spacing or frame of reference is absent."
    ),
    ReasonEntry(
        "BAD_ORIENTATION", REFUSED, "The direction cosines are not unit vectors at a right angle."
    ),
    ReasonEntry("OUT_OF_SCOPE", REFUSED, "The image is outside of what the model is made for."),
    ReasonEntry(
        "NOT_HU", REFUSED, "The values are no Hounsfield units (multi-energy, iodine maps)."
    ),
    ReasonEntry(
        "NO_DECODER",
        REFUSED,
        "No decoder for the transfer syntax is installed; the package is named.",
    ),
    ReasonEntry("TOO_LARGE", REFUSED, "The result would be larger than the node makes."),
    ReasonEntry(
        "ACQUIRED_THIN_SERIES_EXISTS",
        REFUSED,
        "The same acquisition was received in thinner slices.",
    ),
    ReasonEntry("DUPLICATE_POSITIONS", REFUSED, "Different instances lie at one position."),
    ReasonEntry(
        "MISSING_UIDS", REFUSED, "A Study, Series, SOP Class or SOP Instance UID is empty."
    ),
    ReasonEntry(
        "CONFLICTING_INSTANCES",
        HELD,
        "One SOP Instance UID came with different pixels or geometry.",
        "Send the right version again, then requeue the job.",
        batch=False,
    ),
    ReasonEntry(
        "PATIENT_MISMATCH",
        HELD,
        "The instances disagree about the patient or the study.",
        "Compare the series with the PACS; correct it there and send it again.",
        batch=False,
    ),
    ReasonEntry(
        "MISSING_SLICES",
        HELD,
        "Slices are missing; nothing is generated across a hole.",
        "When the missing slices arrive, a new job replaces this one. To process the series "
        'without them, set across_missing = "leave" in its route, then requeue the job. '
        "Otherwise cancel it.",
        futile=True,
    ),
    ReasonEntry(
        "PIXEL_DATA_ERROR",
        HELD,
        "Pixel data is damaged or cut short.",
        "Send the series again; an intact slice replaces its damaged version.",
    ),
    ReasonEntry(
        "OUTPUT_CHECK_FAILED",
        HELD,
        "The derived series did not pass its check; it was not sent.",
        "Keep the series and report the error; requeue the job to try once more.",
    ),
    ReasonEntry(
        "LOW_CONFIDENCE",
        HELD,
        "The model is not sure enough of its result.",
        "Send thinner slices, or lower hold_below in its route and requeue the job. "
        "Otherwise cancel it.",
        futile=True,
    ),
    # What happened to a job while it was worked on.
    ReasonEntry(
        "WORKER_DIED",
        HELD,
        "The worker process ended several times without an answer.",
        "Read the log of its attempts; requeue the job when the machine is well.",
    ),
    ReasonEntry(
        "TIME_LIMIT",
        HELD,
        "The job took longer than inference.job_minutes allows, several times.",
        "Raise inference.job_minutes, then requeue the job.",
    ),
    ReasonEntry(
        "MEMORY_LIMIT",
        HELD,
        "The job used more memory than inference.memory_gb allows, several times.",
        "Raise inference.memory_gb, then requeue the job.",
    ),
    ReasonEntry(
        "ABANDONED",
        HELD,
        "The node itself stopped many times while it worked on the job.",
        "Find out why the node stops (power, memory, its log), then requeue the job.",
    ),
    # Limits on how many jobs one study or series may bring about in a day.
    ReasonEntry(
        "TOO_MANY_RESULTS",
        HELD,
        "The study has more derived series of one day than completion.results_per_study.",
        "Check that no rule of the PACS sends results back; then requeue the job, or cancel it.",
    ),
    ReasonEntry(
        "TOO_MANY_RERUNS",
        HELD,
        "The series was asked for more often in a day than completion.reruns.",
        "Wait until the sender has sent the whole series, then requeue the job.",
    ),
    # Jobs and deliveries that others have replaced.
    ReasonEntry(
        "SUPERSEDED", CANCELLED, "More or other slices of the series arrived; a new job has them."
    ),
    ReasonEntry(
        "ROUTE_CHANGED", CANCELLED, "The route has changed; a new job follows the route as it is."
    ),
    # Deliveries.
    ReasonEntry("UNREACHABLE", DeliveryState.QUEUED, "The destination could not be reached."),
    ReasonEntry("RETRY", DeliveryState.QUEUED, "The destination did not store every instance."),
    ReasonEntry(
        "DAMAGED_FILES",
        DeliveryState.HELD,
        "Files of the derived series are missing or have changed.",
        "Check the disk, then requeue the job: it makes its derived series again.",
    ),
    ReasonEntry(
        "REFUSED_BY_PEER",
        DeliveryState.HELD,
        "The destination refused instances for good.",
        "Find out why together with the administrator of the destination, then send again.",
    ),
    ReasonEntry(
        "NOT_UNDERSTOOD",
        DeliveryState.HELD,
        "The destination answered several times that it cannot understand instances.",
        "Ask the administrator of the destination why, then send again.",
    ),
    ReasonEntry(
        "GAVE_UP",
        DeliveryState.HELD,
        "The destination did not store everything within delivery.give_up_hours.",
        "Make the destination answer, then send again.",
    ),
    ReasonEntry(
        "NO_DESTINATION",
        DeliveryState.HELD,
        "The configuration does not name the destination any more.",
        "Name the destination in the configuration again, then send again.",
    ),
)
REASONS: Mapping[str, ReasonEntry] = {entry.code: entry for entry in TABLE}
FUTILE = frozenset(entry.code for entry in TABLE if entry.futile)
ONE_BY_ONE = frozenset(entry.code for entry in TABLE if not entry.batch)

# Advice for what has no code of its own, as the exception that a job failed with.
FAILED_ADVICE = "The log of its attempt says where it failed; requeue the job to try once more."
HELD_ADVICE = "Settle what the sentence says, then requeue the job."
DELIVERY_ADVICE = "Check the destination; send again when it can store the series."
# Advice that comes before that of the code.
GONE_ADVICE = (
    "Its received files were deleted. Have the sender send the series again, which makes a new "
    "job; or cancel this job."
)
CHANGED_ADVICE = "Its route has changed since: requeue it, and a new job replaces this one."


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
) -> str:
    """Say what a person can do about a job or a delivery that waits for one."""
    if is_gone:
        return GONE_ADVICE
    if is_changed and code in FUTILE:
        return CHANGED_ADVICE
    if code in REASONS and REASONS[code].advice:
        return REASONS[code].advice
    if is_delivery:
        return DELIVERY_ADVICE
    return FAILED_ADVICE if state == "failed" else HELD_ADVICE
