"""One inference job: from its row to a request, and from a worker's answer back to rows."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from pathlib import Path

import storage.records
from inference.model import Parameters
from inference.request import (
    Derived,
    Failed,
    Kept,
    Mark,
    ModelSpec,
    Outcome,
    Output,
    Request,
    Resources,
    Source,
    Stopped,
    Verdict,
)
from node.work.executor import End, Ended
from storage.files import Files
from storage.jobs import Queue
from storage.records import DerivedInstance, Instance, Job, JobState, NewDerived
from storage.records import Ended as JobEnd

logger = logging.getLogger(__name__)

SENTENCES = {
    End.WORKER_DIED: "The worker process died while it ran this job.",
    End.TIME_LIMIT: "The job took longer than inference.job_minutes allows.",
    End.MEMORY_LIMIT: "The job used more memory than inference.memory_gb allows.",
}


@dataclass(frozen=True)
class Site:
    """What is the same for every job of this node."""

    secret: bytes
    station_name: str
    timezone: tzinfo | None  # None = the system's own, which knows summer time
    models: Mapping[str, ModelSpec]
    resources: Resources


class Inference:
    """Translates between the queue and the workers."""

    def __init__(self, queue: Queue, files: Files, site: Site, now: Callable[[], float]) -> None:
        self._queue = queue
        self._files = files
        self._site = site
        self._now = now

    def request(self, job: Job) -> Request:
        """Everything that a worker must know about `job`, and an empty folder for its result."""
        folder = self._files.derived_folder(job.id, job.attempt)
        self._files.make(folder)
        parameters, output = from_snapshot(job.parameters)
        return Request(
            sources=sources(self._queue.instances(job.id), self._files),
            model=self._site.models.get(job.model, ModelSpec(job.model)),
            parameters=parameters,
            output=output,
            folder=self._files.path(folder),
            secret=self._site.secret,
            started_at=datetime.fromtimestamp(self._now(), UTC).astimezone(self._site.timezone),
            edition=job.edition,
            kept=self._queue.kept_series(job.series_id),
            mark=_mark(job.mark),
            marks={uid: _mark(one) for uid, one in self._queue.marks(job.series_id).items()},
            station_name=self._site.station_name,
            resources=self._site.resources,
            previews=True,
        )

    def finished(self, job: Job, outcome: Outcome) -> None:
        """Write down what a worker answered."""
        match outcome:
            case Derived():
                self._succeed(job, outcome)
            case Kept(series_uid):
                self._ended(job, self._queue.same(job, series_uid), series_uid)
            case Verdict(reason, sentence, held, record):
                extra = {"job": job.id, "reason": reason}
                if held:
                    self._queue.hold(job, reason, sentence, record)
                    logger.warning("job held", extra=extra)
                else:
                    self._queue.refuse(job, reason, sentence, record)
                    logger.info("job refused", extra=extra)
                self.drop_output(job)
            case Failed(reason, sentence, frames):
                self._queue.fail(job, reason, sentence, frames)
                logger.error("job failed", extra={"job": job.id, "reason": reason})
                self.drop_output(job)
            case Stopped():
                self._queue.cancelled(job)
                logger.info("job cancelled", extra={"job": job.id})
                self.drop_output(job)

    def ended(self, job: Job, end: Ended) -> None:
        """Write down that a worker gave no answer."""
        match end.how:
            case End.STOPPED:
                self._queue.release(job)
                logger.info("job released", extra={"job": job.id})
            case End.CANCELLED:
                self._queue.cancelled(job)
                logger.info("job cancelled", extra={"job": job.id})
            case how:
                state = self._queue.died(job, how, end.detail, how, SENTENCES[how])
                logger.warning(
                    "worker lost", extra={"job": job.id, "reason": how, "state": str(state)}
                )
        self.drop_output(job)

    def _succeed(self, job: Job, derived: Derived) -> None:
        instances = tuple(
            DerivedInstance(f.instance_uid, f.sop_class_uid, f.name, f.digest, f.generated)
            for f in derived.files
        )
        folder = self._files.derived_folder(job.id, job.attempt)
        made = NewDerived(
            derived.series_uid,
            folder,
            job.edition,
            derived.version,
            instances,
            derived.record,
            derived.content_uid,
            storage.records.Mark(**vars(derived.mark)),
        )
        end = self._queue.succeed(job, made)
        self._ended(job, end, derived.series_uid, instances=len(instances))

    def _ended(self, job: Job, end: JobEnd, series_uid: str, **counts: int) -> None:
        """The queue had the last word: the job may be replaced, or its series exist already."""
        if not end.folder_kept:
            self.drop_output(job)
        extra: dict[str, object] = {"job": job.id, "derived_series_uid": series_uid, **counts}
        if end.state == JobState.SUCCEEDED:
            logger.info("job succeeded", extra=extra | {"is_new": end.folder_kept})
            if end.revision > 1:
                logger.warning("notice", extra=extra | {"kind": "revision", "which": end.revision})
        elif end.state == JobState.CANCELLED:
            logger.info("job cancelled", extra=extra)
        elif end.state == JobState.HELD:  # a mix-up was found while it ran
            logger.warning("job held", extra=extra)
        else:
            logger.info("job queued", extra=extra | {"how": "its series was purged meanwhile"})

    def drop_output(self, job: Job) -> None:
        """Remove what an attempt wrote that nobody will send."""
        self._files.remove(self._files.derived_folder(job.id, job.attempt))


def _mark(kept: storage.records.Mark) -> Mark:
    return Mark(**vars(kept))


def sources(instances: Sequence[Instance], files: Files) -> tuple[Source, ...]:
    """Where the files of `instances` are, which come with the newest version first."""
    return tuple(
        Source(files.path(instance.path), instance.instance_uid, len(instances) - place)
        for place, instance in enumerate(instances)
        if instance.path is not None
    )


def snapshot(parameters: Parameters, output: Output) -> dict[str, object]:
    """What a job keeps of its route, as JSON."""
    kept = {"factor": parameters.factor, "target_spacing_mm": parameters.target_spacing_mm}
    return kept | dict(vars(output))


def from_snapshot(kept: Mapping[str, object]) -> tuple[Parameters, Output]:
    """The inverse of `snapshot`."""
    names = ("factor", "target_spacing_mm")
    parameters = Parameters(**{name: kept.get(name) for name in names})  # type: ignore[arg-type]
    others = {name: value for name, value in kept.items() if name not in names}
    return parameters, Output(**others)  # type: ignore[arg-type]


def canonical(value: object) -> str:
    """JSON that is the same for equal values: keys sorted, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=_as_text)


def _as_text(value: object) -> str:
    if isinstance(value, Path):
        return value.as_posix()
    raise TypeError(f"{type(value).__name__} has no canonical form")
