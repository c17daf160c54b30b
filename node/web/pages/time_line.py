"""The time line of a job: how long it was received, waited, worked, was held, and was sent."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from node.rules.completion import because
from node.web.pages.drawings import JobPhase
from node.web.pages.render import STEPS
from node.wording import count
from storage.queries.overview import JobDetail
from storage.records import Attempt, Delivery, DeliveryState, JobState

SHORT_SECONDS = 1.0  # a shorter wait is no piece of its own
# What a delivery does since it was last tried: its name, and the class of its piece.
DELIVERIES: Mapping[DeliveryState, tuple[str, str]] = {
    DeliveryState.RUNNING: ("Being sent to", "sending"),
    DeliveryState.SENT: ("Sent to", "sending"),
    DeliveryState.CONFIRMED: ("Sent to and confirmed by", "sending"),
    DeliveryState.HELD: ("Tried to send to", "sending"),
    DeliveryState.CANCELLED: ("Given up for", "undelivered"),
}
OPEN = (DeliveryState.QUEUED, DeliveryState.RUNNING, DeliveryState.HELD)
WAITING = (JobState.HELD, JobState.FAILED)  # for a person


@dataclass(frozen=True)
class JobStep:
    """A piece of the time line: when it began, how long it took, and what is known of it."""

    phase: str  # a class of the drawing
    name: str
    at: float
    seconds: float
    detail: str = ""
    delivery: int | None = None  # whose piece it is


def steps_of(detail: JobDetail, now: float) -> list[JobStep]:
    """The pieces of a job's time line, those of the job first, then those of each delivery."""
    arrival = detail.arrival
    instances = count(arrival.instances, "instance")
    came = f"{instances} from {arrival.calling_ae} for {arrival.called_ae}."
    steps = [_step("arriving", "Received", arrival.first_at, arrival.last_at, came)]
    if arrival.completed_at is not None:
        evidence = because(arrival.evidence)
        waited = "Waited for more", arrival.last_at, arrival.completed_at, evidence
        steps.append(_step("waiting", *waited))
    steps += _of_job(detail, now)
    for delivery in detail.deliveries:
        steps += _of_delivery(delivery, now)
    return steps


def is_going_on(detail: JobDetail) -> bool:
    """Tell whether the time line still grows."""
    is_open = detail.job.finished_at is None or detail.job.state in WAITING
    return is_open or any(delivery.state in OPEN for delivery in detail.deliveries)


def phases_of(steps: Sequence[JobStep]) -> list[JobPhase]:
    """Lay the steps out to be drawn: one after the other, the deliveries side by side."""
    first = min(step.at for step in steps)
    lanes = list(dict.fromkeys(step.delivery for step in steps if step.delivery is not None))
    phases = []
    for step in steps:
        begins = max(0.0, step.at - first)
        if step.delivery is None:
            phases.append(JobPhase(step.phase, begins, step.seconds))
        else:
            lane = lanes.index(step.delivery)
            phases.append(JobPhase(step.phase, begins, step.seconds, lane, len(lanes)))
    return phases


def _step(phase: str, name: str, first: float, last: float, detail: str = "") -> JobStep:
    return JobStep(phase, name, first, max(0.0, last - first), detail)


def _of_job(detail: JobDetail, now: float) -> Iterator[JobStep]:
    """From the complete arrival on: what waited in the queue, what worked, and what was held."""
    job, arrival = detail.job, detail.arrival
    queued = _queue_times(detail)
    at = arrival.completed_at if arrival.completed_at is not None else job.queued_at
    attempts = [attempt for attempt in detail.attempts if attempt.started_at >= at]
    for attempt in attempts:
        yield from _waited(at, attempt.started_at, queued)
        at = attempt.ended_at if attempt.ended_at is not None else job.finished_at or now
        account = _account(detail, attempt, is_last=attempt is attempts[-1])
        yield _step("running", "Processed", attempt.started_at, at, account)
    if job.state in WAITING:
        ended = job.finished_at or now
        if ended - at > SHORT_SECONDS:
            yield from _waited(at, ended, queued)
        yield _step("held", f"{job.state.capitalize()}, waits for a person", ended, now)
    elif job.state == JobState.QUEUED or (job.state == JobState.RUNNING and not attempts):
        yield from _waited(at, now, queued)
    elif job.finished_at is not None and job.finished_at - at > SHORT_SECONDS:
        name = "Waited for a person" if attempts else "In the queue"
        yield _step("held" if attempts else "queued", name, at, job.finished_at)


def _queue_times(detail: JobDetail) -> list[float]:
    """The times at which the job was queued: the last one, and each requeue by a person."""
    mine = f"job {detail.job.id}"
    events = (event.at for event in detail.audit if (event.what, event.which) == ("requeue", mine))
    return sorted({detail.job.queued_at, *events})


def _waited(first: float, last: float, queued: Iterable[float]) -> Iterator[JobStep]:
    """The waits before an attempt: perhaps for a person, then in the queue."""
    for at in queued:
        if first + SHORT_SECONDS < at <= last:
            yield _step("held", "Waited for a person", first, at)
            first = at
    if last - first > 0.0:
        yield _step("queued", "In the queue", first, last)


def _account(detail: JobDetail, attempt: Attempt, *, is_last: bool) -> str:
    """Give the seconds of each phase as the worker counted them, or its name, or how it ended."""
    seconds = detail.job.record.get("seconds")
    text = attempt.worker
    if not is_last:
        text = attempt.outcome or text
    elif isinstance(seconds, Mapping):
        known = [name for name in STEPS if name in seconds]
        text = ", ".join(f"{name} {float(seconds[name]):.1f} s" for name in known)
    number = f"Attempt {attempt.number}. " if attempt.number > 1 or not is_last else ""
    return f"{number}{text[:1].upper()}{text[1:]}." if text else number


def _of_delivery(delivery: Delivery, now: float) -> Iterator[JobStep]:
    """From the moment when it was due: what waited, and what has been sent since."""
    to, started = delivery.destination, delivery.started_at
    stored = f"{delivery.sent} of {delivery.total} stored there."
    if delivery.attempt > 1:
        stored += f" {count(delivery.attempt, 'attempt')}."
    if delivery.state == DeliveryState.QUEUED or started is None:
        ended = delivery.finished_at or now
        name = "Waits for" if delivery.finished_at is None else "Waited for"
        yield _delivery_step(delivery, "to-send", f"{name} {to}", delivery.queued_at, ended, stored)
    else:
        if started - delivery.queued_at > SHORT_SECONDS:
            waited = f"Waited for {to}", delivery.queued_at, started
            yield _delivery_step(delivery, "to-send", *waited)
        name, phase = DELIVERIES[delivery.state]
        ended = delivery.finished_at or now
        yield _delivery_step(delivery, phase, f"{name} {to}", started, ended, stored)
    if delivery.state == DeliveryState.HELD and delivery.finished_at is not None:
        held = f"Held, not delivered to {to}", delivery.finished_at, now
        yield _delivery_step(delivery, "undelivered", *held)


def _delivery_step(
    delivery: Delivery, phase: str, name: str, first: float, last: float, detail: str = ""
) -> JobStep:
    return JobStep(phase, name, first, max(0.0, last - first), detail, delivery.id)
