"""The worker process: takes requests from a pipe, runs the pipeline, answers; knows no database."""

import importlib
import os
import threading
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection

from inference import pipeline, registry
from inference.request import Failed, Outcome, Progress, Request


@dataclass(frozen=True)
class Cancel:
    """The parent asks the worker to stop between two steps."""


def main(requests: Connection, lifeline: Connection) -> None:
    """Serve requests until the parent goes away, whatever the worker is doing then."""
    threading.Thread(target=_die_with_parent, args=(lifeline,), daemon=True).start()
    _load_models()
    while True:
        try:
            number, request = requests.recv()
        except EOFError:
            return
        if isinstance(request, Request):  # a Cancel that came after the job had ended is nothing
            requests.send((number, _run(number, request, requests)))


def _load_models() -> None:
    # torch is loaded here, before the first job waits for it, and in no other process of the node.
    for entry in registry.registered():
        importlib.import_module(entry.factory.partition(":")[0])


def _die_with_parent(lifeline: Connection) -> None:
    # Nothing is ever sent on this pipe: it ends when the parent does, even by SIGKILL.
    try:
        lifeline.recv()
    except (EOFError, OSError):
        os._exit(0)


def _run(number: int, request: Request, requests: Connection) -> Outcome:
    def report(progress: Progress) -> None:
        requests.send((number, progress))

    def cancelled() -> bool:
        return requests.poll() and isinstance(requests.recv()[1], Cancel)

    try:
        return pipeline.process(request, progress=report, cancelled=cancelled)
    except Exception as error:  # noqa: BLE001 - the worker loop: a bad job never ends the worker
        frames = "".join(traceback.format_tb(error.__traceback__))
        return Failed(type(error).__name__, "The node's own code raised an exception.", frames)
