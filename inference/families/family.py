"""The protocol of a family of models, and the values that every job hands to it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from inference.dataset import Stack
from inference.geometry import Layout
from inference.model import Model, Step
from inference.request import File
from inference.runner import Run
from inference.uids import UidMaker


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

    def examined(self, job: Run, stack: Stack) -> Layout:
        """The layout of a stack in scope; raises Unprocessable for any other."""
        ...

    def planned(self, job: Run, model: Model, layout: Layout) -> Sequence[Step]:
        """The steps of the model, checked; raises Unprocessable where nothing can be done."""
        ...

    def made(self, job: Run, task: Task) -> Result:
        """Run the model and write its results; raises Unprocessable where they are doubtful."""
        ...
