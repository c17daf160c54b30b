"""What families of models differ in, and what the frame of every job hands to them."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from inference.dataset import Stack
from inference.errors import Cancelled
from inference.geometry import Layout
from inference.model import Model, Step
from inference.pixels import PixelReader
from inference.request import File, Progress, Request
from inference.uids import UidMaker

Report = Callable[[Progress], None]


@dataclass
class JobRecord:
    """The record that a job leaves with its derived series: facts, notes, seconds."""

    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    facts: dict[str, object] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - started
            self.seconds[name] = round(self.seconds.get(name, 0.0) + spent, 3)

    def as_json(self) -> Mapping[str, object]:
        return {**self.facts, "seconds": dict(self.seconds), "notes": list(self.notes)}


@dataclass(frozen=True, eq=False)
class Job:
    """One run of the pipeline: the request, and what its phases share."""

    request: Request
    record: JobRecord
    report: Report
    cancelled: Callable[[], bool]
    pixels: PixelReader = field(default_factory=PixelReader)

    def reporting(self, step: str, total: int) -> Callable[[int], None]:
        """Takes the count of what is done; raises Cancelled where the job is to stop."""

        def report(done: int) -> None:
            if self.cancelled():
                raise Cancelled
            self.report(Progress(step, done, total))

        return report


@dataclass(frozen=True, eq=False)
class Task:
    """All that is decided before a model runs."""

    stack: Stack
    layout: Layout
    model: Model
    device: str
    steps: Sequence[Step]
    maker: UidMaker  # of the UIDs of all results
    series_uid: str  # of the derived series


class Result(Protocol):
    """The files of one job, written."""

    @property
    def files(self) -> Sequence[File]:
        """All of them, those of the derived series first."""
        ...

    def faults(self) -> tuple[str, ...]:
        """Everything in which the files on disk are not what was planned."""
        ...

    def preview(self) -> Sequence[str]:
        """Write the pictures for the page of the job; notes for its record."""
        ...


class Family(Protocol):
    """The models that make results of one kind: what they take, how they run, what is written."""

    def examined(self, job: Job, stack: Stack) -> Layout:
        """The layout of a stack in scope; raises Unprocessable for any other."""
        ...

    def planned(self, job: Job, model: Model, layout: Layout) -> Sequence[Step]:
        """The steps of the model, checked; raises Unprocessable where nothing can be done."""
        ...

    def made(self, job: Job, task: Task) -> Result:
        """Run the model and write its results; raises Unprocessable where they are doubtful."""
        ...
