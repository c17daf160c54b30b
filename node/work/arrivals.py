"""Closes arrivals that are complete and asks for the jobs that their routes name."""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from inference import geometry, reader
from inference.model import Parameters
from inference.reader import Stack
from inference.request import Output
from node.config import SENDER, Completion, Destination, Route
from node.rules import completion, routing
from node.work.infer import canonical, snapshot, sources
from storage.archive import Archive
from storage.errors import WrongState
from storage.files import Files
from storage.jobs import Queue
from storage.records import Arrival, Instance, NewJob

logger = logging.getLogger(__name__)

RETRY_SECONDS = 30.0  # an arrival that could not be closed is tried again after this


@dataclass(frozen=True)
class Rules:
    """What decides about arrivals; replaced as a whole when the configuration is read again."""

    ae_title: str
    completion: Completion
    routes: tuple[Route, ...]
    destinations: tuple[Destination, ...]
    models: Mapping[str, str]  # model name -> version and weights: a new model makes a new series


class Arrivals:
    """The sweep over open arrivals."""

    def __init__(
        self, archive: Archive, queue: Queue, files: Files, rules: Rules, now: Callable[[], float]
    ) -> None:
        self._archive = archive
        self._queue = queue
        self._files = files
        self._now = now
        self._not_before: dict[int, float] = {}  # arrivals that failed to close; a hint, no state
        self.rules = rules

    def sweep(self) -> None:
        """Close what is complete. One arrival that cannot be closed does not stop the others."""
        now = self._now()
        for arrival in self._archive.arriving():
            evidence = completion.decide(arrival, now=now, completion=self.rules.completion)
            if evidence is None or self._not_before.get(arrival.id, 0.0) > now:
                continue
            try:
                self.complete(arrival, evidence)
                self._not_before.pop(arrival.id, None)
            except WrongState:
                continue  # another instance came this moment: the quiet period begins anew
            except Exception:
                self._not_before[arrival.id] = now + RETRY_SECONDS
                logger.exception("arrival not closed", extra={"arrival": arrival.id})

    def complete(self, arrival: Arrival, evidence: Mapping[str, object]) -> None:
        """Close one arrival: its jobs are written in the same transaction."""
        instances = self._archive.instances(arrival.id)
        jobs = [] if arrival.own else self._jobs(arrival, instances)
        queued = self._queue.complete(arrival.id, evidence, jobs, instances=arrival.instances)
        extra = {"series_uid": arrival.series_uid, "instances": arrival.instances}
        logger.info("series complete", extra=extra | {"arrival": arrival.id, "jobs": len(queued)})
        for entry in queued:
            logger.info("job queued", extra={"job": entry.job_id, "how": entry.what})

    def _jobs(self, arrival: Arrival, instances: Sequence[Instance]) -> list[NewJob]:
        rules = self.rules
        headers = reader.read_headers(sources(instances, self._files))
        if any(reader.is_derived_by_node(header) for header in headers):
            logger.info("own result came back", extra={"series_uid": arrival.series_uid})
            return []
        return [
            self._job(arrival, instances, stack, route, rules)
            for stack in reader.stacks(headers)
            for route in _matching(arrival, stack, rules)
        ]

    def _job(
        self,
        arrival: Arrival,
        instances: Sequence[Instance],
        stack: Stack,
        route: Route,
        rules: Rules,
    ) -> NewJob:
        uids = {header.uid for header in stack.headers}
        mine = [i for i in instances if i.instance_uid in uids and i.path is not None]
        parameters = snapshot(
            Parameters(route.factor, route.target_spacing_mm),
            Output(
                include_received=route.include_received,
                slice_thickness=route.slice_thickness,
                accept_derived=route.accept_derived,
                across_missing=route.across_missing,
                label=stack.label,
            ),
        )
        model = [route.model, rules.models.get(route.model, "")]
        used = sorted((i.instance_uid, i.digest) for i in newest(mine))
        identity = [route.name, model, parameters, arrival.study_uid, stack.key, used]
        return NewJob(
            kind="infer",
            key=hashlib.sha256(canonical(identity).encode()).hexdigest(),
            series_id=arrival.series_id,
            arrival_id=arrival.id,
            stack=stack.key,
            route=route.name,
            model=route.model,
            parameters=parameters,
            destinations=tuple(
                destination_of(name, arrival.calling_ae, rules.destinations)
                for name in route.destinations
            ),
            priority=route.priority,
            instances=tuple(i.id for i in mine),
        )


def newest(instances: Sequence[Instance]) -> list[Instance]:
    """Of each instance the version that was received last."""
    latest: dict[str, Instance] = {}
    for instance in sorted(instances, key=lambda i: (i.received_at, i.id)):
        if instance.path is not None:
            latest[instance.instance_uid] = instance
    return list(latest.values())


def destination_of(name: str, calling_ae: str, destinations: Sequence[Destination]) -> str:
    """The destination that `name` means; "sender" is the one that the calling AE belongs to.

    An unknown sender keeps a name of its own: its delivery is held, and nothing is lost silently.
    """
    if name != SENDER:
        return name
    known = routing.sender_of(destinations, calling_ae)
    return known.name if known is not None else f"{SENDER} {calling_ae}"


def _matching(arrival: Arrival, stack: Stack, rules: Rules) -> tuple[Route, ...]:
    layout = geometry.measure(stack)  # None where the slices form no stack: a job says why
    return routing.matching(
        rules.routes,
        called_ae=arrival.called_ae,
        calling_ae=arrival.calling_ae,
        node_ae=rules.ae_title,
        attributes=stack.headers[0].values,
        instances=len(stack),
        gap_mm=layout.gap_mm if layout else None,
        tilt_degrees=layout.shear_degrees if layout else None,
    )
