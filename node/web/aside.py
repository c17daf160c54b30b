"""Asks a process of its own, for what the web process must not load or must not be hurt by."""

import logging
import multiprocessing
import resource
import threading
from collections.abc import Callable
from http import HTTPStatus
from multiprocessing.connection import Connection
from typing import TypeVar

from node import log
from node.web.problems import Problem

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
