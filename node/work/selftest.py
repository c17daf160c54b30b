"""The self-test: a made series on the whole way, through receiver, route, model and destination."""

import logging
import secrets
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

from node import second_opinion
from node.config import Config, Route
from node.dicom import scu
from node.dicom.scu import Outgoing
from node.dicom.status import SUCCESS, Outcome
from node.second_opinion import Slice
from node.store import LEASE_SECONDS, Store
from storage import files
from storage.errors import StorageError, WrongState
from storage.leases import Liveness
from storage.records import (
    DeliveryState,
    Job,
    JobState,
    SelfTest,
    SelfTestState,
    SelfTestStep,
    SwitchName,
)
from storage.site import control, selftests
from storage.site.peers import GUEST

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2
ROUTE, FACTOR = "self-test", 2
PASSED = "A synthetic series came through in {seconds:.0f} s: {last}"
ENDED = (JobState.SUCCEEDED, JobState.REFUSED, JobState.FAILED, JobState.HELD, JobState.CANCELLED)
STORED = (DeliveryState.SENT, DeliveryState.CONFIRMED)

# The made series: every text that a person sees says what it is. Its density rises evenly from
# slice to slice, so that what lies between two of them is known.
PATIENT_ID = "MIDSLICE-SELFTEST"
PATIENT_NAME = "SELFTEST^MIDSLICE"
DESCRIPTION = "MIDSLICE SELF-TEST, NOT A PATIENT"
MANUFACTURER = "Midslice self-test"
SLICES, SPACING_MM = 6, 5.0
ROWS = COLUMNS = 96
BODY_HU, AIR_HU = 20.0, -1000.0
HU_PER_MM = 2.0
INTERCEPT = -1024
# How far off a slice may be on average over the body, in HU: two neighbours are 10 apart.
MOST_HU = 15.0

T = TypeVar("T")


class StepFailed(Exception):
    """A step of the self-test did not find what it must; the text says what."""


def series_uid() -> str:
    """A UID that no other series has: PS3.5 B.2."""
    return f"2.25.{uuid.uuid4().int}"


def make(folder: Path, uid: str, now: datetime) -> tuple[Outgoing, ...]:
    """Write the series, one file a slice."""
    study, frame = series_uid(), series_uid()
    folder.mkdir(parents=True, exist_ok=True)
    outgoing = []
    for index in range(SLICES):
        instance = series_uid()
        path = folder / f"{index:02d}.dcm"
        data_set = _slice(index, study, uid, frame, instance, now)
        data_set.save_as(path, enforce_file_format=True)
        syntax = str(ExplicitVRLittleEndian)
        outgoing.append(Outgoing(index, instance, str(CTImageStorage), syntax, path))
    return tuple(outgoing)


def hounsfield(z_mm: float) -> NDArray[np.float64]:
    """(ROWS, COLUMNS): a round body in air whose density rises along z."""
    y, x = np.mgrid[:ROWS, :COLUMNS]
    radius = np.hypot(x - (COLUMNS - 1) / 2, y - (ROWS - 1) / 2) / (ROWS / 2)
    return np.where(radius < 0.7, BODY_HU + HU_PER_MM * z_mm, AIR_HU)


def _slice(
    index: int, study: str, series: str, frame: str, instance: str, now: datetime
) -> Dataset:
    z_mm = index * SPACING_MM
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID = CTImageStorage
    header.file_meta.MediaStorageSOPInstanceUID = UID(instance)
    header.SpecificCharacterSet = "ISO_IR 100"
    header.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    header.SOPClassUID = CTImageStorage
    header.SOPInstanceUID = instance
    header.StudyInstanceUID, header.SeriesInstanceUID = study, series
    header.FrameOfReferenceUID = frame
    _name(header, now)
    header.SeriesNumber, header.InstanceNumber, header.AcquisitionNumber = 1, index + 1, 1
    header.ImagePositionPatient = [-(COLUMNS - 1) / 2, -(ROWS - 1) / 2, z_mm]
    header.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    header.PixelSpacing, header.SliceThickness = [1, 1], SPACING_MM
    header.PositionReferenceIndicator = ""
    header.KVP = 120
    stored = np.rint(hounsfield(z_mm) - INTERCEPT).astype("<u2")
    header.set_pixel_data(stored, "MONOCHROME2", 12, generate_instance_uid=False)
    header.RescaleIntercept, header.RescaleSlope, header.RescaleType = INTERCEPT, 1, "HU"
    return header


def _name(header: Dataset, now: datetime) -> None:
    """Set the texts that a person sees: nobody must take it for a patient."""
    header.PatientName, header.PatientID = PATIENT_NAME, PATIENT_ID
    header.PatientBirthDate, header.PatientSex = "", "O"
    header.StudyDescription = header.SeriesDescription = DESCRIPTION
    header.StudyID, header.AccessionNumber, header.ReferringPhysicianName = "SELFTEST", "", ""
    header.StudyDate = header.SeriesDate = header.ContentDate = now.strftime("%Y%m%d")
    header.StudyTime = header.SeriesTime = header.ContentTime = now.strftime("%H%M%S")
    header.Modality, header.Manufacturer = "CT", MANUFACTURER
    header.PatientPosition = "HFS"


def verify(received: Sequence[Path], derived: Sequence[Path]) -> str:
    """A sentence about the derived series; StepFailed where it is not right."""
    try:
        faults = second_opinion.check(received, derived, factor=FACTOR)
        slices = [Slice.read(path) for path in derived]
    except (OSError, InvalidDicomError, AttributeError) as error:
        raise StepFailed(f"A file of the derived series cannot be read: {error}") from error
    if faults:
        raise StepFailed(f"The derived series has {len(faults)} faults. The first: {faults[0]}.")
    worst = max(map(_difference_hu, slices))
    if not worst <= MOST_HU:
        raise StepFailed(f"A slice is {worst:.0f} HU off on average; {MOST_HU:g} HU are allowed.")
    step_mm = SPACING_MM / FACTOR
    return f"{len(slices)} slices, {step_mm:g} mm apart, at most {worst:.1f} HU off."


def _difference_hu(slice_: Slice) -> float:
    """The difference of a body from the one that was made for this place, on average, in HU."""
    true = hounsfield(float(slice_.position[2]))
    body = true > AIR_HU / 2
    return float(np.abs(slice_.hounsfield() - true)[body].mean())


@dataclass
class SelfTests:
    """The self-tests, one at a time; what is made for one is removed at its end in any case."""

    store: Store
    settings: Config
    now: Callable[[], float]
    admit: Callable[[], None]  # who may associate has changed: `guests`
    port: int = 0
    guests: set[str] = field(default_factory=set)
    routes: dict[str, Route] = field(default_factory=dict)  # by Series UID
    _under_way: threading.Lock = field(default_factory=threading.Lock)
    stopping: threading.Event = field(default_factory=threading.Event)  # what is under way fails

    def __post_init__(self) -> None:
        self._nodes = Liveness[str](time.monotonic, LEASE_SECONDS)

    def sweep(self) -> None:
        """Run it where its time has come; end and remove what an earlier one had to leave."""
        self._end_those_of_dead_nodes()
        self.tidy()
        every = self.settings.selftest.every_hours * 3600
        if not every or self._under_way.locked():
            return
        with self.store.database.alone("self-test") as is_ours:  # of several nodes one is tested
            last = selftests.newest(self.store.database, 1)
            if is_ours and (not last or not 0 <= self.now() - last[0].started_at < every):
                self.run("schedule")

    def run(self, who: str) -> SelfTest:
        """One self-test, to its end; WrongState where one is under way."""
        if not self._under_way.acquire(blocking=False):
            raise WrongState("a self-test is already running")
        try:
            return _Run(self, who).to_its_end()
        finally:
            self._under_way.release()

    def tidy(self) -> None:
        """Remove the files of self-tests that are over: at the start, those of a dead process."""
        # None begins meanwhile: it would be taken for dead.
        if self._under_way.acquire(blocking=False):
            try:
                self._interrupted(self.store.node_id)
                files.sweep_scratch(self.store.files, files.MADE, self.store.node_id)
            finally:
                self._under_way.release()
        self.clear()

    def _end_those_of_dead_nodes(self) -> None:
        """A node that does not come back reports nothing: what it was testing has failed."""
        beats = selftests.running_on(self.store.database)
        beats.pop(self.store.node_id, None)
        for name in self._nodes.dead(beats):
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
        """The first answer; StepFailed where it takes too long, or the node stops."""
        while True:
            answer = ask()
            if answer is not None:
                return answer
            if time.monotonic() > deadline:
                minutes = self.settings.selftest.minutes
                raise StepFailed(f"{what} took longer than selftest.minutes = {minutes:g} allows.")
            if self.stopping.wait(POLL_SECONDS):
                raise StepFailed("The node stopped.")


class _Run:
    """One self-test: each step is written down with its time and what it found."""

    def __init__(self, tests: SelfTests, who: str) -> None:
        self._tests = tests
        self._store = tests.store
        self._settings = tests.settings.selftest
        self._steps: list[SelfTestStep] = []
        self._deadline = time.monotonic() + self._settings.minutes * 60
        self._guest = f"{GUEST}{secrets.token_hex(3).upper()}"
        self._files = ExitStack()
        self._test = selftests.begin(
            self._store.database,
            tests.now(),
            node=self._store.node_id,
            who=who,
            series_uid=series_uid(),
            destination=self._settings.destination,
        )

    def to_its_end(self) -> SelfTest:
        began = time.monotonic()
        try:
            self._all()
            seconds = time.monotonic() - began
            sentence = PASSED.format(seconds=seconds, last=self._steps[-1].sentence)
        except StepFailed as failure:
            sentence = str(failure)
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
        sources = self._step("made", self._make)
        self._step("received", lambda: self._send(sources))
        job = self._step("complete", self._job)
        self._step("processed", lambda: self._processed(job.id))
        self._step("verified", lambda: self._verified(sources, job.id))
        if self._settings.destination:
            self._step("delivered", lambda: self._delivered(job.id))

    def _step(self, name: str, do: Callable[[], tuple[T, str]]) -> T:
        began = time.monotonic()
        try:
            result, sentence = do()
        except (StepFailed, StorageError) as failure:
            seconds = time.monotonic() - began
            self._steps.append(SelfTestStep(name, False, round(seconds, 2), str(failure)))
            raise StepFailed(str(failure)) from failure
        self._steps.append(SelfTestStep(name, True, round(time.monotonic() - began, 2), sentence))
        return result

    def _ready(self) -> tuple[None, str]:
        database, to = self._store.database, self._settings.destination
        if control.draining(database):
            raise StepFailed("The node drains: no job is started. Stop draining, then try again.")
        if to and control.is_on(database, SwitchName.PAUSED, to):
            raise StepFailed(f"{to} is paused: nothing is sent there. Resume it, then try again.")
        return None, f"Model {self._settings.model}, destination {to or 'none'}."

    def _make(self) -> tuple[tuple[Outgoing, ...], str]:
        now = datetime.fromtimestamp(self._tests.now(), self._store.zone)
        scratched = files.scratch_folder(self._store.files, files.MADE, self._store.node_id)
        folder = self._files.enter_context(scratched)
        sources = make(folder, self._test.series_uid, now)
        return sources, f"{len(sources)} slices, {SPACING_MM:g} mm apart."

    def _send(self, sources: Sequence[Outgoing]) -> tuple[None, str]:
        """Send the series through the node's own port, as any peer."""
        node = self._tests.settings.node
        self._tests.routes[self._test.series_uid] = self._route()
        self._tests.guests.add(self._guest)
        self._tests.admit()
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(node.host, node.host)  # noqa: S104
        peer = scu.PeerAddress(node.ae_title, host, self._tests.port, self._guest)
        statuses: list[int | None] = []
        sent = scu.send(
            peer,
            sources,
            answered=lambda _, status, _comment: statuses.append(status),
            stop=self._tests.stopping.is_set,
        )
        if sent.outcome is not Outcome.STORED:
            raise StepFailed(sent.sentence)
        if statuses != [SUCCESS] * len(sources):
            named = ", ".join(sorted({f"0x{status or 0:04X}" for status in statuses}))
            raise StepFailed(f"The node answered {named} to its own slices.")
        return None, f"{len(statuses)} slices, each answered with Success."

    def _route(self) -> Route:
        to = [self._settings.destination] if self._settings.destination else []
        keys = {"name": ROUTE, "model": self._settings.model, "factor": FACTOR, "destinations": to}
        return Route.model_validate({**keys, "despite_thin": True, "priority": 1})

    def _job(self) -> tuple[Job, str]:
        """Wait for the job that the complete arrival has asked for."""
        store, uid = self._store, self._test.series_uid

        def ask() -> Job | None:
            rows = store.archive.series_by_uid(uid)
            return next((job for row in rows for job in store.queue.of_series(row.id)), None)

        return self._tests.wait("Completion", self._deadline, ask), "The arrival is complete."

    def _processed(self, job_id: int) -> tuple[None, str]:
        def ask() -> Job | None:
            job = self._store.queue.get(job_id)
            return job if job.state in ENDED else None

        job = self._tests.wait("The job", self._deadline, ask)
        if job.state is not JobState.SUCCEEDED:
            raise StepFailed(f"Job {job_id} is {job.state} ({job.reason}). {job.sentence}")
        return None, f"Job {job_id} succeeded, attempt {job.attempt}."

    def _verified(self, sources: Sequence[Outgoing], job_id: int) -> tuple[None, str]:
        names = selftests.result(self._store.database, job_id)
        received = [Path(outgoing.path) for outgoing in sources]
        return None, verify(received, [self._store.files.path(name) for name in names])

    def _delivered(self, job_id: int) -> tuple[None, str]:
        def ask() -> str | None:
            for delivery in self._store.ledger.of_job(job_id):
                name = delivery.destination
                if delivery.state in STORED:
                    return f"{name} has stored {delivery.sent} of {delivery.total} instances."
                if delivery.state in (DeliveryState.HELD, DeliveryState.CANCELLED):
                    raise StepFailed(f"{name}: {delivery.state}. {delivery.sentence}")
            return None

        return None, self._tests.wait("Delivery", self._deadline, ask)

    def _leave(self) -> None:
        """Let nobody else in under that name."""
        self._tests.routes.pop(self._test.series_uid, None)
        self._tests.guests.discard(self._guest)
        self._tests.admit()
        self._files.close()


def _log(ended: SelfTest) -> None:
    extra = {"selftest": ended.id, "state": str(ended.state)}
    if ended.state is SelfTestState.PASSED:
        logger.info("self-test passed", extra=extra)
        return
    logger.error("self-test failed", extra=extra | {"sentence": ended.sentence})
