"""The rule tester and the conformance statement: asked of short-lived processes of their own."""

import logging
import multiprocessing
import resource
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http import HTTPStatus
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from fastapi import UploadFile

from node import log
from node.config import Config, Route
from node.rules import routing
from node.rules.routing import Explanation
from node.web.problems import Problem
from node.web.shield import FILE_BOUNDS, MOST_FILES
from node.web.state import Parts
from storage.archive import newest_arrival
from storage.errors import NotFound, WrongState
from storage.files import UPLOADS, scratch_folder

if TYPE_CHECKING:
    from inference.stacks import Stack


# Reading a data set loads every pixel decoder, and a file that somebody drops may be made to hurt:
# neither is for the process that serves the pages.

SHOWN = ("Modality", "ImageType", "BodyPartExamined", "SliceThickness", "ConvolutionKernel")
# What a route may ask for that says nothing of a patient.
OPEN = frozenset((*SHOWN, *routing.GEOMETRIC, "instances", "Manufacturer", "StationName", ""))

State = Literal["would be processed", "refused", "held", "no route"]


@dataclass(frozen=True)
class Trial:
    """Which files, brought by whom, under which routes."""

    paths: tuple[Path, ...]  # of one instance the newest version only
    called_ae: str
    calling_ae: str
    node_ae: str
    routes: tuple[Route, ...]


@dataclass(frozen=True)
class TriedStack:
    """What each route says to a stack, and what the check of its geometry says."""

    stack: str
    instances: int
    gap_mm: float | None  # None: the instances form no stack with positions, as a single file
    tilt_degrees: float | None
    missing: int  # slices
    notes: tuple[str, ...]
    attributes: tuple[tuple[str, str], ...]  # those that routes are written with most
    routes: tuple[Explanation, ...]
    state: State  # by the first route that matches
    reason: str
    sentence: str


@dataclass(frozen=True)
class Tried:
    """The stacks that the files form, and how many belong to none, by reason."""

    stacks: tuple[TriedStack, ...]
    set_aside: tuple[tuple[int, str], ...]


def masked(found: Tried) -> Tried:
    """The same for somebody who wants patients hidden: no sentence repeats what may be theirs."""
    return replace(found, stacks=tuple(map(_masked, found.stacks)))


def _masked(stack: TriedStack) -> TriedStack:
    said = "does not hold; what the series has is hidden."
    routes = (
        each if each.key in OPEN else replace(each, sentence=f"What it asks of {each.key} {said}")
        for each in stack.routes
    )
    return replace(stack, routes=tuple(routes))


def tried(question: Trial) -> Tried:
    """Group, measure and match the files, from their headers alone."""
    from inference import stacks

    headers = stacks.read_headers(question.paths)
    aside = Counter(f"{each.reason}: {each.sentence}" for each in stacks.set_aside(headers))
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
    names = [each.route for each in explained if each.matches]
    state, reason, sentence = _verdict(stack, names, question.routes)
    header = stack.headers[0]
    return TriedStack(
        stack=stack.key,
        instances=len(stack),
        gap_mm=layout.gap_mm if layout else None,
        tilt_degrees=layout.shear_degrees if layout else None,
        missing=sum(layout.missing.values()) if layout else 0,
        notes=layout.notes if layout else (),
        attributes=tuple((name, "\\".join(header.values(name))) for name in SHOWN),
        routes=explained,
        state=state,
        reason=reason,
        sentence=sentence,
    )


def _verdict(
    stack: "Stack", matching: Sequence[str], routes: Sequence[Route]
) -> tuple[State, str, str]:
    from inference import geometry
    from inference.request import Output

    route = next((each for each in routes if each.name in matching), None)
    if route is None:
        return "no route", "", "No route takes it: it would be kept, and nothing made of it."
    wanted = Output(
        accept_derived=route.accept_derived,
        across_missing=route.across_missing,
    )
    found = geometry.verdict(stack, wanted)
    if found is None:
        return "would be processed", "", "Nothing in its headers speaks against it."
    return ("held" if found.is_held else "refused"), str(found.reason), found.sentence


logger = logging.getLogger(__name__)

AT_ONCE = 2
DEADLINE_SECONDS = 90.0
MOST_MEMORY = 4 << 30  # bytes of address space
MOST_CPU_SECONDS = 60

_turns = threading.BoundedSemaphore(AT_ONCE)

Question = TypeVar("Question")
Answer = TypeVar("Answer")


def ask(find: Callable[[Question], Answer], question: Question, *, log_as_json: bool) -> Answer:
    """What `find`, a function of a module, answers in a new process; ended where it takes long."""
    if not _turns.acquire(blocking=False):
        said = "Others ask for as much at this moment; try again in some seconds."
        raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, said, headers={"Retry-After": "5"})
    try:
        found = _asked(find, question, log_as_json)
    finally:
        _turns.release()
    if found is None:
        said = "It could not be looked at; the log of the node says why."
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, said)
    return found


def _asked(
    find: Callable[[Question], Answer], question: Question, log_as_json: bool
) -> Answer | None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    arguments = (find, question, log_as_json, theirs)
    process = context.Process(target=_main, args=arguments, daemon=True)
    process.start()
    theirs.close()
    try:
        found: Answer | None = ours.recv() if ours.poll(DEADLINE_SECONDS) else None
    except EOFError:  # it died: out of memory or of time, or by a fault in a library
        found = None
    finally:
        process.kill()
        process.join()
        ours.close()
    if found is None:
        logger.warning("question not answered", extra={"exit_code": process.exitcode})
    return found


def _main(
    find: Callable[[Question], Answer], question: Question, log_as_json: bool, to: Connection
) -> None:
    """The whole life of the process."""
    log.configure(json=log_as_json)  # a library's warning may repeat a patient's name
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (MOST_CPU_SECONDS, MOST_CPU_SECONDS + 5))
    try:
        to.send(find(question))
    except Exception:
        logger.exception("question failed")


TRY = "try rules"  # an audit event


def try_series(
    parts: Parts, who: str, series_uid: str, called_ae: str = "", calling_ae: str = ""
) -> Tried:
    """What the routes say to a received series, brought as it was or by somebody else.

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
    """What the routes say to files that somebody has dropped; they are not kept."""
    if not 1 <= len(files) <= MOST_FILES:
        said = f"These are {len(files)} files: {FILE_BOUNDS}."
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, said)
    node_ae = parts.config().node.ae_title
    parts.store.audit.record(who, TRY, "files", {"files": len(files)})
    with _written(parts, files) as paths:
        return _tried(parts, paths, called_ae or node_ae, calling_ae)


@contextmanager
def _written(parts: Parts, files: Sequence[UploadFile]) -> Iterator[tuple[Path, ...]]:
    """The files on disk, for this block only, under names of ours."""
    with scratch_folder(parts.store.files, UPLOADS, parts.settings.node_id) as folder:
        paths = []
        for number, file in enumerate(files):
            path = folder / f"{number}.dcm"
            with path.open("wb") as kept:
                shutil.copyfileobj(file.file, kept)
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
    )
    return ask(tried, question, log_as_json=parts.settings.log_as_json)


# It is made from the tables of the DICOM code, which the web process does not load.


@dataclass(frozen=True)
class Written:
    """The statement as Markdown, and as the body of a page with all text escaped."""

    config: Config
    markdown: str
    html: str


class Statements:
    """Keeps the statement of the configuration that was asked for last."""

    def __init__(self, *, log_as_json: bool) -> None:
        self._log_as_json = log_as_json
        self._turn = threading.Lock()
        self._last: Written | None = None

    def of(self, config: Config) -> Written:
        """The statement of this configuration."""
        with self._turn:
            if self._last is None or self._last.config != config:
                self._last = ask(written, config, log_as_json=self._log_as_json)
            return self._last


def written(config: Config) -> Written:
    """For the other process."""
    from node import conformance

    return Written(config, conformance.statement(config), conformance.html(config))
