"""The self-test: a made series on the whole way, through receiver, route, model and destination."""

import logging
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

from node.config import Config, Route
from node.dicom import scu
from node.dicom.status import SUCCESS, Outcome
from node.store import LEASE_SECONDS, Store
from node.work import phantom, verifying
from node.work.verifying import Wrong
from storage import files
from storage.errors import StorageError, WrongState
from storage.records import (
    DeliveryState,
    Job,
    JobState,
    SelfTest,
    SelfTestState,
    SelfTestStep,
    Series,
    SwitchName,
)
from storage.site import control, selftests
from storage.site.nodes import Heartbeats
from storage.site.peers import GUEST

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2
ROUTE, FACTOR = "self-test", 2
PASSED = "A made series came through in {seconds:.0f} s: {last}"
ENDED = (JobState.SUCCEEDED, JobState.REFUSED, JobState.FAILED, JobState.HELD, JobState.CANCELLED)
THERE = (DeliveryState.SENT, DeliveryState.CONFIRMED)

T = TypeVar("T")


@dataclass
class SelfTests:
    """Runs one at a time; what is made for it is removed at the end, whatever the end is."""

    store: Store
    settings: Config
    now: Callable[[], float]
    admit: Callable[[], None]  # who may associate has changed: `guests`
    port: int = 0
    guests: set[str] = field(default_factory=set)
    routes: dict[str, Route] = field(
        default_factory=dict
    )  # Series UID -> what its arrival asks for
    steady: Callable[[], float] = time.monotonic
    _one: threading.Lock = field(default_factory=threading.Lock)
    _stopping: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._others = Heartbeats(self.steady, LEASE_SECONDS)

    def sweep(self) -> None:
        """Run it where its time has come; end and remove what an earlier one had to leave."""
        self._end_of_dead_nodes()
        self.tidy()
        every = self.settings.selftest.every_hours * 3600
        if not every or self._one.locked():
            return
        last = selftests.history(self.store.database, 1)
        if not last or not 0 <= self.now() - last[0].started_at < every:
            self.run("schedule")

    def run(self, who: str) -> SelfTest:
        """One self-test, to its end; WrongState where one is under way."""
        if not self._one.acquire(blocking=False):
            raise WrongState("a self-test is under way already")
        try:
            return _Run(self, who).to_its_end()
        finally:
            self._one.release()

    def stop(self) -> None:
        """One that is under way has failed."""
        self._stopping.set()

    def is_stopping(self) -> bool:
        return self._stopping.is_set()

    def tidy(self) -> None:
        """Remove the files of self-tests that are over: at the start, those of a dead process."""
        if self._one.acquire(blocking=False):  # none begins meanwhile: it would be taken for dead
            try:
                self._interrupted(self.store.node_id)
                files.sweep_scratch(self.store.files, files.MADE, self.store.node_id)
            finally:
                self._one.release()
        self.clear()

    def _end_of_dead_nodes(self) -> None:
        """A node that does not come back reports nothing: what it was testing has failed."""
        beats = selftests.running_on(self.store.database)
        beats.pop(self.store.node_id, None)
        for name in self._others.dead(beats):
            self._interrupted(name)

    def _interrupted(self, node: str) -> None:
        for ended in selftests.interrupted(self.store.database, self.now(), node):
            _log(ended)

    def clear(self) -> None:
        """Remove what self-tests have left that are over: the files, and what still waits."""
        store = self.store
        for series_id in selftests.leftovers(store.database):
            selftests.clear(store.database, store.files, series_id, self.now())

    def wait(self, what: str, deadline: float, ask: Callable[[], T | None]) -> T:
        """The first answer; Wrong where it takes too long, or the node stops."""
        while True:
            answer = ask()
            if answer is not None:
                return answer
            if time.monotonic() > deadline:
                minutes = self.settings.selftest.minutes
                raise Wrong(f"{what} took longer than selftest.minutes = {minutes:g} allows.")
            if self._stopping.wait(POLL_SECONDS):
                raise Wrong("The node stopped.")


class _Run:
    """One self-test: each step is written down with its time and what it found."""

    def __init__(self, tests: SelfTests, who: str) -> None:
        self._tests = tests
        self._store = tests.store
        self._wanted = tests.settings.selftest
        self._steps: list[SelfTestStep] = []
        self._deadline = time.monotonic() + self._wanted.minutes * 60
        self._guest = f"{GUEST}{secrets.token_hex(3).upper()}"
        self._made = ExitStack()
        self._test = selftests.begin(
            self._store.database,
            tests.now(),
            node=self._store.node_id,
            who=who,
            series_uid=phantom.series_uid(),
            destination=self._wanted.destination,
        )

    def to_its_end(self) -> SelfTest:
        began = time.monotonic()
        try:
            self._all()
            seconds = time.monotonic() - began
            sentence = PASSED.format(seconds=seconds, last=self._steps[-1].sentence)
        except Wrong as wrong:
            sentence = str(wrong)
        finally:
            self._leave()
        ended = selftests.end(
            self._store.database, self._tests.now(), self._test.id, self._steps, sentence
        )
        self._tests.clear()
        _log(ended)
        return ended

    def _all(self) -> None:
        self._step("ready", self._ready)
        made = self._step("made", self._make)
        self._step("received", lambda: self._send(made))
        job = self._step("complete", self._job)
        self._step("processed", lambda: self._processed(job.id))
        self._step("verified", lambda: self._verified(job.id))
        if self._wanted.destination:
            self._step("delivered", lambda: self._delivered(job.id))

    def _step(self, name: str, do: Callable[[], tuple[T, str]]) -> T:
        began = time.monotonic()
        try:
            result, sentence = do()
        except (Wrong, StorageError) as wrong:
            seconds = time.monotonic() - began
            self._steps.append(SelfTestStep(name, False, round(seconds, 2), str(wrong)))
            raise Wrong(str(wrong)) from wrong
        self._steps.append(SelfTestStep(name, True, round(time.monotonic() - began, 2), sentence))
        return result

    def _ready(self) -> tuple[None, str]:
        database, to = self._store.database, self._wanted.destination
        if control.draining(database):
            raise Wrong("The node drains: no job is started. Stop draining, then try again.")
        if to and control.is_on(database, SwitchName.PAUSED, to):
            raise Wrong(f"{to} is paused: nothing is sent there. Resume it, then try again.")
        return None, f"Model {self._wanted.model}, destination {to or 'none'}."

    def _make(self) -> tuple[phantom.Phantom, str]:
        now = datetime.fromtimestamp(self._tests.now(), self._store.zone)
        scratched = files.scratch_folder(self._store.files, files.MADE, self._store.node_id)
        folder = self._made.enter_context(scratched)
        made = phantom.make(folder, self._test.series_uid, now)
        return made, f"{len(made.files)} slices, {phantom.SPACING_MM:g} mm apart."

    def _send(self, made: phantom.Phantom) -> tuple[None, str]:
        """Through the node's own port, as any peer."""
        node = self._tests.settings.node
        self._tests.routes[made.series_uid] = self._route()
        self._tests.guests.add(self._guest)
        self._tests.admit()
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(node.host, node.host)  # noqa: S104
        peer = scu.PeerAddress(node.ae_title, host, self._tests.port, self._guest)
        statuses: list[int | None] = []
        sent = scu.send(
            peer,
            made.files,
            answered=lambda _, status: statuses.append(status),
            stop=self._tests.is_stopping,
        )
        if sent.outcome is not Outcome.STORED:
            raise Wrong(sent.sentence)
        if statuses != [SUCCESS] * len(made.files):
            named = ", ".join(sorted({f"0x{status or 0:04X}" for status in statuses}))
            raise Wrong(f"The node answered {named} to its own slices.")
        return None, f"{len(statuses)} slices, each answered with Success."

    def _route(self) -> Route:
        to = [self._wanted.destination] if self._wanted.destination else []
        asked = {"name": ROUTE, "model": self._wanted.model, "factor": FACTOR, "destinations": to}
        return Route.model_validate({**asked, "despite_thin": True, "priority": 1})

    def _job(self) -> tuple[Job, str]:
        """The arrival is complete, and has asked for its job."""

        def ask() -> Job | None:
            jobs = [job for one in self._series() for job in self._store.queue.of_series(one.id)]
            return jobs[0] if jobs else None

        return self._tests.wait("Completion", self._deadline, ask), "The arrival is complete."

    def _processed(self, job_id: int) -> tuple[None, str]:
        def ask() -> Job | None:
            job = self._store.queue.get(job_id)
            return job if job.state in ENDED else None

        job = self._tests.wait("The job", self._deadline, ask)
        if job.state is not JobState.SUCCEEDED:
            raise Wrong(f"Job {job_id} is {job.state} ({job.reason}). {job.sentence}")
        return None, f"Job {job_id} succeeded, attempt {job.attempt}."

    def _verified(self, job_id: int) -> tuple[None, str]:
        kept = selftests.result(self._store.database, job_id)
        paths = [self._store.files.path(one) for one in kept]
        return None, verifying.check(paths, FACTOR)

    def _delivered(self, job_id: int) -> tuple[None, str]:
        def ask() -> str | None:
            for one in self._store.ledger.of_job(job_id):
                if one.state in THERE:
                    return f"{one.destination} has stored {one.sent} of {one.total} slices."
                if one.state in (DeliveryState.HELD, DeliveryState.CANCELLED):
                    raise Wrong(f"{one.destination}: {one.state}. {one.sentence}")
            return None

        return None, self._tests.wait("Delivery", self._deadline, ask)

    def _series(self) -> tuple[Series, ...]:
        return self._store.archive.series_by_uid(self._test.series_uid)

    def _leave(self) -> None:
        """Nobody else may come in under that name."""
        self._tests.routes.pop(self._test.series_uid, None)
        self._tests.guests.discard(self._guest)
        self._tests.admit()
        self._made.close()


def _log(ended: SelfTest) -> None:
    extra = {"selftest": ended.id, "state": str(ended.state)}
    if ended.state is SelfTestState.PASSED:
        logger.info("self-test passed", extra=extra)
        return
    logger.error("self-test failed", extra=extra | {"sentence": ended.sentence})
