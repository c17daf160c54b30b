"""The rule tester and the conformance statement: asked of short-lived processes."""

import logging
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from http import HTTPStatus
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar, cast

from fastapi import UploadFile

from inference.descriptions import READINGS
from inference.request import ModelSpec, Request, Resources
from node import log
from node.children import AnswerFormat, Child, ResourceLimits
from node.config import Config, Route
from node.rules import routing
from node.rules.routing import Explanation, HeaderView, Objection
from node.web.middleware import FILE_BOUNDS, MOST_FILES
from node.web.problems import Problem
from node.web.state import Parts
from storage.archive import newest_arrival
from storage.errors import NotFound, WrongState
from storage.files import UPLOADS, scratch_folder

if TYPE_CHECKING:
    from inference.stacks import Stack


logger = logging.getLogger(__name__)

TRY = "try rules"  # an audit event
# A short-lived process. Reading a data set loads every pixel decoder, and a file that somebody
# drops may be made to hurt: neither is for the process that serves the pages.
AT_ONCE = 2
DEADLINE_SECONDS = 90.0
LIMITS = ResourceLimits(memory_bytes=4 << 30, cpu_seconds=60)

State = Literal["would be processed", "refused", "held", "no route"]
Question = TypeVar("Question")
Answer = TypeVar("Answer")

_turns = threading.BoundedSemaphore(AT_ONCE)


@dataclass(frozen=True)
class Trial:
    """A question: these files, brought by this peer, under these routes."""

    paths: tuple[Path, ...]  # of one instance the newest version only
    called_ae: str
    calling_ae: str
    node_ae: str
    routes: tuple[Route, ...]
    models: tuple[ModelSpec, ...] = ()  # those of the site


@dataclass(frozen=True)
class RouteVerdict:
    """The end of a stack by a route that takes it, as far as headers and its model's plan tell."""

    route: str  # empty: no route takes it
    state: State
    reason: str
    sentence: str


NO_ROUTE = RouteVerdict(
    "", "no route", "", "No route takes it: it would be kept, but not processed."
)


@dataclass(frozen=True)
class TriedStack:
    """The answer of each route to a stack, and those of the check of its geometry."""

    stack: str
    instances: int
    gap_mm: float | None  # None: the instances form no stack with positions, as a single file
    tilt_degrees: float | None
    missing: int  # slices
    notes: tuple[str, ...]
    attributes: tuple[tuple[str, str], ...]  # those that routes are written with most
    routes: tuple[Explanation, ...]
    verdicts: tuple[RouteVerdict, ...]  # of each route that takes it

    @property
    def verdict(self) -> RouteVerdict:
        """That of the first route that takes it."""
        return self.verdicts[0] if self.verdicts else NO_ROUTE


@dataclass(frozen=True)
class Tried:
    """The stacks that the files form, and how many belong to none, by reason."""

    stacks: tuple[TriedStack, ...]
    set_aside: tuple[tuple[int, str], ...]


def masked(result: Tried) -> Tried:
    """Hide patients: no sentence of the result repeats what may be theirs."""
    return replace(result, stacks=tuple(map(_masked, result.stacks)))


def _masked(stack: TriedStack) -> TriedStack:
    return replace(stack, routes=tuple(map(_masked_route, stack.routes)))


def _masked_route(route: Explanation) -> Explanation:
    return replace(route, objections=tuple(map(_masked_objection, route.objections)))


def _masked_objection(objection: Objection) -> Objection:
    sentence = routing.without_value(objection.key, objection.sentence)
    return replace(objection, sentence=sentence)


def tried(question: Trial) -> Tried:
    """Group, measure and match the files, from their headers alone."""
    from inference import stacks

    headers = stacks.read_headers(question.paths)
    aside = Counter(f"{item.reason}: {item.sentence}" for item in stacks.set_aside(headers))
    return Tried(
        stacks=tuple(_stack(stack, question) for stack in stacks.stacks_of(headers)),
        set_aside=tuple((count, reason) for reason, count in aside.most_common()),
    )


def _stack(stack: "Stack", question: Trial) -> TriedStack:
    from inference import geometry

    layout = geometry.measure(stack)
    explained = routing.explain_stack(
        question.routes,
        stack,
        layout,
        called_ae=question.called_ae,
        calling_ae=question.calling_ae,
        node_ae=question.node_ae,
    )
    names = {route.route for route in explained if route.matches}
    header = stack.headers[0]
    return TriedStack(
        stack=stack.key,
        instances=len(stack),
        gap_mm=layout.gap_mm if layout else None,
        tilt_degrees=layout.shear_degrees if layout else None,
        missing=sum(layout.missing.values()) if layout else 0,
        notes=layout.notes if layout else (),
        attributes=(*_usual(header), *_read(header)),
        routes=explained,
        verdicts=tuple(
            _verdict(stack, route, _model_of(route, question))
            for route in question.routes
            if route.name in names
        ),
    )


def _usual(header: HeaderView) -> Iterator[tuple[str, str]]:
    for name in routing.USUAL:
        yield name, "\\".join(map(str, header.values(name)))


def _read(header: HeaderView) -> Iterator[tuple[str, str]]:
    """What routes may ask for that several attributes say."""
    for name, (read, _) in READINGS.items():
        yield name, "\\".join(read(header.values).values)


def _model_of(route: Route, question: Trial) -> ModelSpec:
    """The model that is asked for its plan: of those that make slices, one that plans alike.

    A density means the same gaps for all of them, and this one is loaded at once.
    """
    from inference import registry

    own = {spec.name: spec for spec in question.models}
    spec = own.get(route.model) or registry.spec_of(route.model)
    return registry.spec_of("linear") if spec.produces == "slices" else spec


def _verdict(stack: "Stack", route: Route, model: ModelSpec) -> RouteVerdict:
    from inference import pipeline
    from inference.errors import ModelLoadError

    request = Request(
        sources=(),
        model=model,
        parameters=route.parameters,
        output=route.output,
        folder=Path(),
        secret=b"",
        started_at=datetime.now(UTC),
        resources=Resources(device="cpu"),
    )
    try:
        verdict = pipeline.foreseen(request, stack)
    except (ModelLoadError, MemoryError) as error:  # this process has less memory than a worker
        why = str(error) or "not enough memory here"
        sentence = f"Nothing in its headers prevents it, but its model cannot be loaded: {why}"
        return RouteVerdict(route.name, "would be processed", "", sentence)
    if verdict is None:
        return RouteVerdict(
            route.name, "would be processed", "", "Nothing in its headers prevents it."
        )
    state: State = "held" if verdict.is_held else "refused"
    return RouteVerdict(route.name, state, str(verdict.reason), verdict.sentence)


def ask(
    find: Callable[[Question], Answer],
    question: Question,
    kind: type[Answer],
    *,
    log_as_json: bool,
    wait_seconds: float = 0.0,
) -> Answer:
    """Call `find`, a function of a module, in a new process, which is ended where it takes long.

    `kind` is the type of its answer, a dataclass. Where too many are running it waits for a turn.
    """
    if not _turns.acquire(timeout=wait_seconds):
        detail = "The node is busy with other tests; try again in a few seconds."
        raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, detail, headers={"Retry-After": "5"})
    try:
        answer = _call(find, question, kind, log_as_json)
    finally:
        _turns.release()
    if answer is None:
        detail = "This could not be examined; the log of the node says why."
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, detail)
    return answer


def _call(
    find: Callable[[Question], Answer], question: Question, kind: type[Answer], log_as_json: bool
) -> Answer | None:
    child = Child("question", _answer, find, question, kind, log_as_json, limits=LIMITS)
    answer = None
    try:
        if child.pipe.poll(DEADLINE_SECONDS):
            answer = cast(Answer, AnswerFormat(kind).receive(child.pipe)[0])
    except (EOFError, OSError):  # it died: out of memory or of time, or by a fault in a library
        pass
    finally:
        child.end()
    if answer is None:
        logger.warning("question not answered", extra={"exit_code": child.exit_code()})
    return answer


def _answer(
    parent: Connection,
    find: Callable[[Question], Answer],
    question: Question,
    kind: type[Answer],
    log_as_json: bool,
) -> None:
    """Answer one question: the whole life of the process."""
    log.configure(json=log_as_json)  # a library's warning may repeat a patient's name
    try:
        AnswerFormat(kind).send(parent, find(question))
    except Exception:
        logger.exception("question failed")


def try_series(
    parts: Parts, who: str, series_uid: str, called_ae: str = "", calling_ae: str = ""
) -> Tried:
    """Try the routes on a received series, brought as it was or by another peer.

    It is an audit event: where a route asks for a patient's attribute, the answer repeats it.
    """
    arrival = newest_arrival(parts.database, series_uid)
    if arrival is None:
        raise NotFound(f"no series {series_uid} was received")
    latest: dict[str, Path] = {}
    for instance in parts.store.archive.instances(arrival.id):  # the newest version first
        if instance.path is not None:
            latest.setdefault(instance.instance_uid, parts.store.files.path(instance.path))
    if not latest:
        raise WrongState(f"the files of series {series_uid} are no longer kept")
    parts.store.audit.record(who, TRY, f"series {series_uid}")
    return _tried(
        parts,
        tuple(latest.values()),
        called_ae or arrival.called_ae,
        calling_ae or arrival.calling_ae,
    )


def try_files(
    parts: Parts,
    who: str,
    files: Sequence[UploadFile],
    called_ae: str = "",
    calling_ae: str = "",
) -> Tried:
    """Try the routes on files that somebody has dropped; they are not kept."""
    if not 1 <= len(files) <= MOST_FILES:
        detail = f"These are {len(files)} files: {FILE_BOUNDS}."
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, detail)
    node_ae = parts.config().node.ae_title
    parts.store.audit.record(who, TRY, "files", {"files": len(files)})
    with _written(parts, files) as paths:
        return _tried(parts, paths, called_ae or node_ae, calling_ae)


@contextmanager
def _written(parts: Parts, files: Sequence[UploadFile]) -> Iterator[tuple[Path, ...]]:
    """Keep the files on disk for this block only, under names of ours."""
    with scratch_folder(parts.store.files, UPLOADS, parts.settings.node_id) as folder:
        paths = []
        for number, file in enumerate(files):
            path = folder / f"{number}.dcm"
            with path.open("wb") as copy:
                shutil.copyfileobj(file.file, copy)
            paths.append(path)
        yield tuple(paths)


def _tried(parts: Parts, paths: tuple[Path, ...], called_ae: str, calling_ae: str) -> Tried:
    settings = parts.config()
    question = Trial(
        paths=paths,
        called_ae=called_ae,
        calling_ae=calling_ae,
        node_ae=settings.node.ae_title,
        routes=settings.routes,
        models=tuple(entry.spec for entry in settings.models),
    )
    return ask(tried, question, Tried, log_as_json=parts.settings.log_as_json)


# The conformance statement is made from the tables of the DICOM code, which the web process does
# not load.


@dataclass(frozen=True)
class Written:
    """The statement as Markdown, and as the body of a page with all text escaped."""

    markdown: str
    html: str


class Statements:
    """Keeps the statement of the configuration that was asked for last."""

    def __init__(self, *, log_as_json: bool) -> None:
        self._log_as_json = log_as_json
        self._turn = threading.Lock()
        self._last: tuple[Config, Written] | None = None

    def of(self, config: Config) -> Written:
        """Get the statement of this configuration, made anew only where it has changed."""
        with self._turn:
            if self._last is None or self._last[0] != config:
                answer = ask(written, config, Written, log_as_json=self._log_as_json)
                self._last = config, answer
            return self._last[1]


def written(config: Config) -> Written:
    """Write the statement, in the other process."""
    from node import conformance

    return Written(conformance.statement(config), conformance.html(config))
