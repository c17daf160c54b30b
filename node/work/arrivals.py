"""Arrivals: those that are complete are closed, and their routes ask for jobs."""

import contextlib
import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from inference import geometry, thin_series
from inference.errors import Reason, Unprocessable
from inference.request import Output, Parameters
from inference.stacks import (
    Header,
    Stack,
    facts_of,
    is_derived_by_node,
    newest,
    patient_mismatch,
    read_headers,
    set_aside,
    stacks_of,
)
from node import wording
from node.config import Completion, Destination, Route
from node.errors import UsageError
from node.rules import completion, routing
from node.rules.reasons import why_not_closed
from node.rules.routing import Candidate, Explanation, Objection
from node.work.jobs import canonical, snapshot, sources
from node.work.joining import (
    ANY_SLICES,
    AskedStack,
    has_any,
    instances_of,
    listed,
    names_of,
    stacks_asked_by,
)
from node.work.query_retrieve import PeerQuestions
from storage.archive import Archive
from storage.enqueue import UNREADABLE, DailyLimits
from storage.errors import NotFound, StorageError, WrongState
from storage.files import Files
from storage.jobs import Queue
from storage.records import (
    Arrival,
    Brought,
    ClosingFault,
    Enqueued,
    Instance,
    Job,
    JobState,
    JobVerdict,
    NewJob,
    Requeued,
    What,
)

logger = logging.getLogger(__name__)

OTHER_STUDY = (
    "The same Series Instance UID was received in another study too{by} so the images may belong "
    "to two patients. Find out which study is right, then requeue or cancel."
)
UNREADABLE_SENTENCE = (
    "None of the {count} received files of this series can be read. Let the sender send it again; "
    "then this job is cancelled by itself. Or cancel it."
)
NEVER_PROCESSED = "the series was excluded from processing by {who}; undo that first"
# What to do where a job has its end already: asking for it once more changes nothing.
INSTEAD = {
    JobState.SUCCEEDED: "has succeeded already; redeliver it to have its result sent again.",
    JobState.REFUSED: "was refused already; requeue it to have it tried again.",
    JobState.HELD: "is held already; look at it, then requeue or cancel it.",
}
MOST_OBJECTIONS = 30  # that an arrival keeps
MOST_TRIES = 5  # to close an arrival that another instance joins at the same moment
RETRY_SECONDS = 30.0  # an arrival that could not be closed is tried again after this
FAILURES_TOLD = 3  # one after the other, of one arrival: a person is told


@dataclass(frozen=True)
class Failures:
    """The failures to close an arrival, one after the other."""

    count: int = 0
    first_at: float = 0.0
    not_before: float = 0.0  # of the next try

    def and_now(self, now: float) -> "Failures":
        """These and one more."""
        return Failures(self.count + 1, self.first_at or now, now + RETRY_SECONDS)


NO_FAILURE = Failures()


@dataclass(frozen=True)
class Rules:
    """The configuration of arrivals; replaced as a whole when the file is read again."""

    ae_title: str
    completion: Completion
    routes: tuple[Route, ...]
    destinations: tuple[Destination, ...]
    models: Mapping[str, str]  # model name -> version and weights: a new model makes a new series
    insisted: bool = False  # a person wants these routes, whatever they ask of a series


@dataclass(frozen=True)
class Decision:
    """All that a complete arrival asks for; `hold` where its Series UID is not of one patient."""

    jobs: tuple[NewJob, ...] = ()
    hold: JobVerdict | None = None
    refuse: Mapping[int, JobVerdict] = field(default_factory=dict)  # queued jobs of other series
    stacks: frozenset[str] = frozenset()  # all that the series has, where it is no mix-up
    aside: Mapping[str, int] = field(default_factory=dict)  # instances in no stack, by reason
    against: tuple[tuple[str, Objection], ...] = ()  # routes, each with what speaks against it
    is_result: bool = False  # by its headers it was made by a node


@dataclass(frozen=True)
class UsableInstances:
    """The instances that jobs work on. A file that cannot be read belongs to every stack: nobody
    knows which slice it is, and a job without it would pass over a missing slice in silence.
    """

    instances: tuple[Instance, ...]
    damaged: frozenset[str]  # SOP Instance UIDs whose newest version cannot be read

    @classmethod
    def of(
        cls, instances: Sequence[Instance], headers: Sequence[Header], files: Files
    ) -> "UsableInstances":
        """Leave out the damaged version of what was sent again, whole."""
        unreadable = {header.path for header in headers if header.fault}
        faulty = {i.id for i in instances if i.path and files.path(i.path) in unreadable}
        last = {i.id for i in newest_instances(instances)}
        kept = tuple(i for i in instances if i.id not in faulty or i.id in last)
        return cls(kept, frozenset(i.instance_uid for i in kept if i.id in faulty))

    def of_stack(self, stack: Stack) -> list[Instance]:
        """All versions of its instances, with what cannot be read."""
        uids = {header.uid for header in stack.headers} | self.damaged
        return [i for i in self.instances if i.instance_uid in uids and i.path is not None]


class StudyContext:
    """The rest of an arrival's study, read where a route asks: most have nothing to read."""

    def __init__(self, archive: Archive, files: Files, arrival: Arrival) -> None:
        self._archive = archive
        self._files = files
        self._arrival = arrival
        self.each = archive.brought_by_each(arrival)  # whoever brought the series; the first first
        own = [part for part in self.each if part.arrival.id == arrival.id]
        if not own:  # its peer has opened another one this moment
            raise WrongState("more of the series is arriving")
        (self.own,) = own
        self.headers: list[Header] = read_headers(sources(self.own.instances, files))
        self._stacks = stacks_of(self.headers)

    def asked(self) -> list[AskedStack]:
        """The stacks that are asked for, now that what this peer brought is complete."""
        if self.mixed_up:  # nothing is joined with what may be another patient's
            return [AskedStack(stack, (self.own,)) for stack in self._stacks]
        return stacks_asked_by(self.own, self.each, self._stacks, self.headers, self._only_others)

    @cached_property
    def record(self) -> Mapping[str, object]:
        """The record that a job begins with: the instances of its series that are in no stack."""
        aside = facts_of(set_aside(self.all_headers))
        return {"set_aside": aside} if aside else {}

    @cached_property
    def mixed_up(self) -> JobVerdict | None:
        """Held where the Series UID stands for two studies or two patients."""
        sentence = self._of_two_studies() or self._of_two_patients()
        return JobVerdict(JobState.HELD, Reason.PATIENT_MISMATCH, sentence) if sentence else None

    def _of_two_studies(self) -> str:
        if not self._archive.other_studies(self._arrival):
            return ""
        senders = self._archive.senders_of_other_studies(self._arrival)
        return OTHER_STUDY.format(by=f", from {listed(senders)}," if senders else ",")

    def _of_two_patients(self) -> str:
        mine = [header for stack in self._stacks for header in newest(stack.headers)]
        if sentence := patient_mismatch(mine):
            return sentence
        theirs = [h for stack in stacks_of(self._only_others) for h in newest(stack.headers)]
        sentence = patient_mismatch([*mine, *theirs])
        senders = [part for part in self.each if part is self.own or has_any(part, theirs)]
        return sentence and f"{sentence} They came from {names_of(senders)}."

    @cached_property
    def all_headers(self) -> list[Header]:
        """The slices of the series, whoever brought them."""
        return [*self.headers, *self._only_others]

    @cached_property
    def _only_others(self) -> list[Header]:
        """The slices of the series that only other peers have brought."""
        others = self._archive.brought_by_others(self._arrival)
        return list(read_headers(sources(others, self._files)))

    def thinner(self, stack: Stack) -> JobVerdict | None:
        """Refused where the study holds a received stack that makes generated slices pointless."""
        return _refused(thin_series.acquired_thin(stack, self._beside))

    def outdone(
        self, instances: Sequence[Instance], key: str, thin: Sequence[Stack]
    ) -> JobVerdict | None:
        """Refused where these stacks, received just now, make a stack of another job pointless."""
        usable = [stack for stack in thin if geometry.verdict(stack, ANY_SLICES) is None]
        thick = [stack for stack in self._read(instances) if stack.key == key]
        for stack in thick if usable else ():
            if verdict := _refused(thin_series.acquired_thin(stack, usable)):
                return verdict
        return None

    @cached_property
    def _beside(self) -> list[Stack]:
        """The stacks of slices in the other series of the study; no result of any node."""
        return [
            stack
            for instances in self._archive.beside(self._arrival)
            for stack in self._read(instances)
            if geometry.verdict(stack, ANY_SLICES) is None
        ]

    def _read(self, instances: Sequence[Instance]) -> list[Stack]:
        headers: list[Header] = read_headers(sources(instances, self._files))
        return stacks_of(headers)


@dataclass(frozen=True)
class StackRequest:
    """An arrival that wants a result of a stack; a route makes a job of it."""

    kind: str
    series_id: int
    study_uid: str
    arrival_id: int
    calling_ae: str
    stack: str
    kept: Mapping[str, object]  # the snapshot so far: what belongs to the stack in it stays
    instances: Sequence[Instance]  # all versions, the newest first

    def by(self, route: Route, rules: Rules, verdict: JobVerdict | None = None) -> NewJob:
        """The job that a route asks for; its key names all that its result depends on."""
        parameters = {**self.kept, **route.options}
        model = [route.model, rules.models.get(route.model, "")]
        used = sorted((i.instance_uid, i.digest) for i in newest_instances(self.instances))
        identity = [route.name, model, parameters, self.study_uid, self.stack, used]
        if verdict is not None:  # what was processed before, or is later, is another job
            identity.append(verdict.reason)
        return NewJob(
            kind=self.kind,
            key=hashlib.sha256(canonical(identity).encode()).hexdigest(),
            series_id=self.series_id,
            arrival_id=self.arrival_id,
            stack=self.stack,
            route=route.name,
            model=route.model,
            parameters=parameters,
            destinations=tuple(
                routing.destination_of(name, self.calling_ae, rules.destinations)
                for name in route.destinations
            ),
            priority=route.priority,
            instances=tuple(i.id for i in self.instances),
            verdict=verdict,
        )


class Arrivals:
    """The sweep over open arrivals, and over the jobs that people have requeued."""

    def __init__(
        self,
        archive: Archive,
        queue: Queue,
        files: Files,
        rules: Rules,
        now: Callable[[], float],
        *,
        never: Callable[[str], str],
        self_tests: Mapping[str, Route],
        queued: Callable[[], None] = lambda: None,
        questions: PeerQuestions | None = None,
    ) -> None:
        self._questions = questions  # to the peer of completion.ask
        self._queued = queued  # called when an arrival was closed that asked for jobs
        self._never = never  # Series UID -> who has said that it is never processed, or nothing
        self._self_tests = self_tests  # Series UID -> the one route that it takes
        self._archive = archive
        self._queue = queue
        self._files = files
        self._now = now
        self._since = now()
        self._failures: dict[int, Failures] = {}  # arrivals that failed to close; a hint, no state
        self.rules = rules

    def sweep(self) -> None:
        """Close what is complete. One arrival that cannot be closed does not stop the others."""
        now = self._now()
        arriving = self._archive.arriving()
        complete = {arrival.id: self._evidence(arrival, now) for arrival in arriving}
        if self._questions is not None:
            self._questions.forget({arrival.id for arrival in arriving})
        unfinished = {arrival.series_id for arrival in arriving if complete[arrival.id] is None}
        for arrival in arriving:
            evidence = complete[arrival.id]
            # While another peer sends the series too, what it brings may belong to the same stack.
            waits = arrival.series_id in unfinished and self._may_wait(arrival, now)
            failures = self._failures.get(arrival.id, NO_FAILURE)
            if evidence is None or waits or failures.not_before > now:
                continue
            try:
                self.complete(arrival, evidence)
                self._failures.pop(arrival.id, None)
            except WrongState:
                # Another instance came this moment: the quiet period begins anew. Or it is the
                # series of a self-test that another node runs.
                continue
            except Exception as error:
                logger.exception("arrival not closed", extra={"arrival": arrival.id})
                self._failures[arrival.id] = failures.and_now(now)
                if failures.count + 1 >= FAILURES_TOLD:
                    self._tell(arrival, error, failures.first_at or now)

    def _tell(self, arrival: Arrival, error: Exception, since: float) -> None:
        """Let people know of an arrival that fails again and again."""
        kept = ClosingFault.of(arrival)  # also from before the node was started again
        fault = ClosingFault(type(error).__name__, kept.since if kept is not None else since)
        if fault == kept:
            return
        instances = wording.count(arrival.instances, "instance")
        series = f"A series of {instances} from {arrival.calling_ae} (arrival {arrival.id})"
        sentence = f"{series} is complete, but not processed. {why_not_closed(fault)}"
        try:
            self._queue.cannot_complete(arrival.id, fault, sentence)
        except StorageError:  # the database may be what fails; the next try tells
            logger.exception("arrival not closed", extra={"arrival": arrival.id})

    def _evidence(self, arrival: Arrival, now: float) -> completion.Evidence | None:
        """The evidence that an arrival is complete; None where more may come."""
        # While the node was down nobody could send: the quiet period begins at its start.
        heard = replace(arrival, last_at=max(arrival.last_at, self._since))
        evidence = completion.decide(heard, now=now, completion=self.rules.completion)
        if evidence is None or evidence["rule"] == completion.Rule.CLOCK:
            return evidence
        of_peer = self._evidence_of_peer(heard)
        return {**evidence, **of_peer} if of_peer is not None else None

    def _evidence_of_peer(self, arrival: Arrival) -> completion.Evidence | None:
        """What the peer of completion.ask says; nothing where none is asked, None for waiting."""
        rules = self.rules
        peer = next((it for it in rules.destinations if it.name == rules.completion.ask), None)
        if self._questions is None or peer is None or arrival.own:
            return {}
        if arrival.series_uid in self._self_tests:
            return {}
        return self._questions.evidence(arrival, rules.completion, peer)

    def _may_wait(self, arrival: Arrival, now: float) -> bool:
        most = self.rules.completion.quiet_seconds + self.rules.completion.open_association_seconds
        return 0.0 <= now - max(arrival.last_at, self._since) < most

    def process_now(self, series_uid: str, who: str) -> str:
        """Close what is arriving of a series, without waiting; what was done, as a sentence."""
        for _ in range(MOST_TRIES):
            arriving = [a for a in self._archive.arriving() if a.series_uid == series_uid]
            if not arriving:
                raise NotFound(
                    f"nothing of the series {series_uid} is arriving; name a route to process it by"
                )
            for arrival in arriving:
                asked = completion.evidence(arrival, rule=completion.Rule.ASKED, now=self._now())
                with contextlib.suppress(WrongState):  # another instance came this moment
                    jobs = self.complete(arrival, {**asked, "who": who})
                    instances = wording.count(arrival.instances, "instance")
                    return f"The series is complete with {instances}: {wording.count(jobs, 'job')}."
        raise WrongState("instances of this series keep coming; try again")

    def process_by_route(self, series_uid: str, name: str, who: str) -> str:
        """Have a route process a series that it would not take; what was done, as a sentence.

        What is arriving of it is closed first, as without a route. Whatever else would hold or
        refuse a job, the patient and the checks of the worker, decides as ever.
        """
        route = next((route for route in self.rules.routes if route.name == name), None)
        if route is None:
            known = ", ".join(route.name for route in self.rules.routes) or "none"
            raise UsageError(f"no route {name!r} is configured; configured: {known}")
        if never := self._never(series_uid):
            raise WrongState(NEVER_PROCESSED.format(who=never))
        rules = replace(self.rules, routes=(route,), insisted=True)
        refused = WrongState(series_uid)
        for _ in range(MOST_TRIES):
            with contextlib.suppress(NotFound):  # nothing of it is arriving
                self.process_now(series_uid, who)
            try:
                return self._insist(series_uid, rules, who)
            except WrongState as error:  # an instance came this moment, or its files have gone
                refused = error
        raise refused

    def _insist(self, series_uid: str, rules: Rules, who: str) -> str:
        arrivals = self._archive.newest_of_peers(series_uid)
        decisions = [self._decide(arrival, rules) for arrival in arrivals if not arrival.own]
        jobs = [new for decision in decisions for new in decision.jobs]
        if not jobs:
            raise UsageError(self._nothing_to_process(series_uid, arrivals))
        entries = self._queue.insist(jobs, who=who)
        for entry in entries:
            _log(entry)
        against = [it.key for decision in decisions for _, it in decision.against]
        job_ids = dict.fromkeys(entry.job_id for entry in entries)
        outcomes = {entry.job_id: entry.what for entry in reversed(entries)}
        asked = (_asked(self._queue.get(job_id), outcomes[job_id]) for job_id in job_ids)
        return " ".join((*asked, *_despite(against)))

    def _nothing_to_process(self, series_uid: str, arrivals: Sequence[Arrival]) -> str:
        """Say why a series has nothing that a route could process."""
        if not arrivals:
            return f"no series {series_uid} was received"
        if not any(self._archive.instances(arrival.id) for arrival in arrivals):
            return f"the files of series {series_uid} are no longer kept; have it sent again"
        return "the series is a result of a node; those are never processed"

    def follow_routes(self) -> None:
        """Let workers take what people have requeued, by its route as it is now."""
        for requeued in self._queue.requeued():
            try:
                job_id = self._queue.follow_route(requeued, self._by_route(requeued))
            except Exception:  # it waits, and does not stop the others
                logger.exception("requeued job not compared", extra={"job": requeued.job.id})
                continue
            if job_id is not None:
                logger.info("job queued", extra={"job": job_id, "how": "requeued"})

    def _by_route(self, requeued: Requeued) -> list[NewJob]:
        """The job that its route asks for, for each requester; of a self-test nothing is asked."""
        job = requeued.job
        route = next((route for route in self.rules.routes if route.name == job.route), None)
        if route is None or job.kind != "infer":
            return []
        instances = self._queue.instances(job.id)
        return [
            StackRequest(
                kind=job.kind,
                series_id=job.series_id,
                study_uid=job.study_uid,
                arrival_id=arrival_id,
                calling_ae=calling_ae,
                stack=job.stack,
                kept=job.parameters,
                instances=instances,
            ).by(route, self.rules)
            for arrival_id, calling_ae in requeued.requesters.items()
        ]

    def complete(self, arrival: Arrival, evidence: Mapping[str, object]) -> int:
        """Close one arrival: its jobs, so many, are written in the same transaction."""
        rules = self._rules_of(arrival)  # before `never`: a self-test may be given up meanwhile
        never = self._never(arrival.series_uid)
        if never:
            evidence = {**evidence, "never": never}
        decision = Decision() if arrival.own or never else self._decide(arrival, rules)
        if decision.is_result:
            evidence = {**evidence, "result": True}
        if decision.aside:
            evidence = {**evidence, "set_aside": decision.aside}
        if decision.against and not decision.jobs:
            evidence = {**evidence, "objections": _written(decision.against)}
        queued = self._queue.complete(
            arrival.id,
            evidence,
            decision.jobs,
            instances=arrival.instances,
            hold=decision.hold,
            refuse=decision.refuse,
            stacks=decision.stacks,
            limits=DailyLimits(
                self.rules.completion.results_per_study, self.rules.completion.reruns
            ),
        )
        jobs = len({entry.job_id for entry in queued})  # several peers may ask for one
        extra = {"series_uid": arrival.series_uid, "instances": arrival.instances}
        logger.info("series complete", extra=extra | {"arrival": arrival.id, "jobs": jobs})
        for entry in queued:
            _log(entry)
        if queued:
            self._queued()
        return jobs

    def _rules_of(self, arrival: Arrival) -> Rules:
        route = self._self_tests.get(arrival.series_uid)
        return self.rules if route is None else replace(self.rules, routes=(route,))

    def _decide(self, arrival: Arrival, rules: Rules) -> Decision:
        study = StudyContext(self._archive, self._files, arrival)
        if any(is_derived_by_node(header) for header in study.headers):
            logger.info("own result came back", extra={"series_uid": arrival.series_uid})
            return Decision(is_result=True)
        aside = _count_set_aside(arrival, study.headers)
        asked = study.asked()
        _log_joined(arrival, asked)
        jobs = [job for of in asked for job in self._jobs(study, of, rules)]
        if not asked:
            usable = UsableInstances.of(study.own.instances, study.headers, self._files)
            jobs += self._unreadable(arrival, usable.instances, rules)
        is_explained = rules.insisted or not jobs
        against = _against(arrival, (of.stack for of in asked), rules) if is_explained else ()
        if study.mixed_up is not None:
            return Decision(tuple(jobs), study.mixed_up, aside=aside, against=against)
        refuse = self._outdone(arrival, study, [of.stack for of in asked])
        known = frozenset(of.stack.key for of in asked)
        return Decision(tuple(jobs), None, refuse, known, aside, against)

    def _jobs(self, study: "StudyContext", asked: AskedStack, rules: Rules) -> Iterator[NewJob]:
        """The jobs of a stack: for each peer whose slices it is made of, those of its routes."""
        usable = UsableInstances.of(instances_of(asked.parts), study.all_headers, self._files)
        instances = usable.of_stack(asked.stack)
        held = study.mixed_up or _disagreement(asked)
        for part, route in _asking(asked, rules):
            verdict = held
            is_filled = route.makes_slices and not route.despite_thin
            if verdict is None and is_filled and not rules.insisted:
                verdict = study.thinner(asked.stack)
            new = self._request(part.arrival, asked.stack, instances).by(route, rules, verdict)
            yield replace(new, on_behalf=part is not study.own, record=study.record)

    def _unreadable(
        self, arrival: Arrival, instances: Sequence[Instance], rules: Rules
    ) -> list[NewJob]:
        """Held jobs where no file can be read: nobody knows what it is, but somebody sent it."""
        here = [i for i in instances if i.path is not None]
        of_uid = self._archive.series_by_uid(arrival.series_uid)
        modality = next((s.modality for s in of_uid if s.id == arrival.series_id), "")
        sentence = UNREADABLE_SENTENCE.format(count=len({i.instance_uid for i in here}))
        verdict = JobVerdict(JobState.HELD, Reason.PIXEL_DATA_ERROR, sentence)
        request = self._request(arrival, Stack(UNREADABLE, ()), here)
        routes = _perhaps_matching(arrival, modality, rules) if here else ()
        return [request.by(route, rules, verdict) for route in routes]

    def _request(
        self, arrival: Arrival, stack: Stack, instances: Sequence[Instance]
    ) -> StackRequest:
        return StackRequest(
            kind="selftest" if arrival.series_uid in self._self_tests else "infer",
            series_id=arrival.series_id,
            study_uid=arrival.study_uid,
            arrival_id=arrival.id,
            calling_ae=arrival.calling_ae,
            stack=stack.key,
            kept=snapshot(Parameters(), Output(label=stack.label)),
            instances=instances,
        )

    def _outdone(
        self, arrival: Arrival, others: StudyContext, stacks: Sequence[Stack]
    ) -> dict[int, JobVerdict]:
        """Jobs that wait and that thinner slices, received just now, have made pointless."""
        routes = self.rules.routes
        despite = {route.name for route in routes if route.despite_thin or not route.makes_slices}
        waiting = self._queue.waiting_beside(arrival.study_uid, arrival.series_id)
        stack_of = {job.id: job.stack for job in waiting if job.route not in despite}
        return {
            job_id: verdict
            for job_id, stack in stack_of.items()
            if (verdict := others.outdone(self._queue.instances(job_id), stack, stacks))
        }


def _asking(asked: AskedStack, rules: Rules) -> Iterator[tuple[Brought, Route]]:
    """The peers that ask for a stack, each with its routes; who came first is first.

    The routes of the first one count for all whose slices are joined with its own; but for what the
    same sender has sent to another AE title of the node, where it wants something else.
    """
    taking = [_taking(_explained(part.arrival, asked.stack, rules), rules) for part in asked.parts]
    of_first = next((routes for routes in taking if routes), ())
    sender = asked.parts[0].arrival.calling_ae
    for part, routes in zip(asked.parts, taking, strict=True):
        for route in routes if part.arrival.calling_ae == sender else of_first:
            yield part, route


def _disagreement(asked: AskedStack) -> JobVerdict | None:
    if not asked.disagreement:
        return None
    return JobVerdict(JobState.HELD, Reason.PEERS_DISAGREE, asked.disagreement)


def _log_joined(arrival: Arrival, stacks: Sequence[AskedStack]) -> None:
    for asked in stacks:
        if len(asked.parts) > 1:
            senders = [part.arrival.calling_ae for part in asked.parts]
            extra = {"series_uid": arrival.series_uid, "senders": senders}
            logger.info("parts joined", extra=extra | {"instances": len(asked.stack)})


def _asked(job: Job, outcome: What) -> str:
    """Say what became of a job that a person asked for, without a word about the patient."""
    if outcome == "known" and job.state in INSTEAD:
        return f"Job {job.id} by this route {INSTEAD[job.state]}"
    return f"Job {job.id} is {job.state}{f', {job.reason}' if job.reason else ''}."


def _despite(keys: Iterable[str]) -> list[str]:
    """Say which conditions of the route the series does not meet."""
    names = ", ".join(dict.fromkeys(key or "AE titles" for key in keys))
    return [f"The series does not meet what the route asks for: {names}."] if names else []


def _against(
    arrival: Arrival, stacks: Iterable[Stack], rules: Rules
) -> tuple[tuple[str, Objection], ...]:
    """The objections to each route that does not take these stacks."""
    explained = (answer for stack in stacks for answer in _explained(arrival, stack, rules))
    return tuple((answer.route, it) for answer in explained for it in answer.objections)


def _written(against: Iterable[tuple[str, Objection]]) -> list[list[str]]:
    """Write objections as the evidence of an arrival keeps them: each once, and not without end."""
    rows = dict.fromkeys((route, it.key, it.sentence) for route, it in against)
    return [list(row) for row in rows][:MOST_OBJECTIONS]


def _refused(thin: Unprocessable | None) -> JobVerdict | None:
    return JobVerdict(JobState.REFUSED, thin.reason, thin.sentence) if thin is not None else None


def _count_set_aside(arrival: Arrival, headers: Sequence[Header]) -> Mapping[str, int]:
    """Localizers, dose pages and the like are in no stack; they are kept all the same."""
    counts = Counter(str(item.reason) for item in set_aside(headers))
    reasons = dict(sorted(counts.items()))
    if reasons:
        extra = {"series_uid": arrival.series_uid, "reasons": reasons}
        logger.info("instances set aside", extra=extra)
    return reasons


def _log(entry: Enqueued) -> None:
    if entry.what == "held":
        logger.warning("job held", extra={"job": entry.job_id, "reason": entry.reason})
    elif entry.what == "refused":
        logger.info("job refused", extra={"job": entry.job_id, "reason": entry.reason})
    else:
        logger.info("job queued", extra={"job": entry.job_id, "how": entry.what})


def newest_instances(instances: Sequence[Instance]) -> list[Instance]:
    """Of each instance the version that was received last, which comes first."""
    latest: dict[str, Instance] = {}
    for instance in instances:
        if instance.path is not None:
            latest.setdefault(instance.instance_uid, instance)
    return list(latest.values())


def _explained(arrival: Arrival, stack: Stack, rules: Rules) -> tuple[Explanation, ...]:
    return routing.explain_stack(
        rules.routes,
        stack,
        geometry.measure(stack),
        called_ae=arrival.called_ae,
        calling_ae=arrival.calling_ae,
        node_ae=rules.ae_title,
    )


def _taking(explained: Iterable[Explanation], rules: Rules) -> tuple[Route, ...]:
    if rules.insisted:
        return rules.routes
    names = {explanation.route for explanation in explained if explanation.matches}
    return tuple(route for route in rules.routes if route.name in names)


def _perhaps_matching(arrival: Arrival, modality: str, rules: Rules) -> tuple[Route, ...]:
    """The routes that may be meant, by what is known of a series that cannot be read."""
    known = {"Modality"} if modality else set()
    candidate = Candidate(
        called_ae=arrival.called_ae,
        calling_ae=arrival.calling_ae,
        node_ae=rules.ae_title,
        attributes=lambda _: (modality,),
        instances=arrival.instances,
        gap_mm=None,
        tilt_degrees=None,
    )
    asking = (routing.asking_for(route, known) for route in rules.routes)
    return _taking(routing.explain(asking, candidate), rules)
