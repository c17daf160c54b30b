"""What the tests of this folder share: requests for made series, and small models."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmread

from inference.dataset import Header, read_headers
from inference.model import Limits, Parameters, Prediction, Produces, Step, Window
from inference.pipeline import process
from inference.request import (
    Derived,
    ModelSpec,
    Outcome,
    Output,
    Progress,
    Request,
    Resources,
    Source,
    Verdict,
)
from inference.stacks import stacks_of
from inference.volume import Geometry, Plane, Volume
from node.second_opinion import check
from tests import phantoms

HERE = "tests.unit.inference.made"
# Most tests are about slices; those of objects beside them ask for what a route asks for.
SLICES_ALONE = Output(presentation_state=False)
STARTED = datetime(2025, 3, 4, 5, 6, 7, 890000, tzinfo=UTC)


def plan_every_gap(geometry: Geometry, parameters: Parameters) -> list[Step]:
    """The same factor in every gap."""
    factor = parameters.factor or 2
    fractions = tuple(step / factor for step in range(1, factor))
    return [Step((gap, gap + 1), gap, fractions) for gap in range(len(geometry) - 1)]


class Halfway:
    """A site's own model: the plain mean of the two neighbours, weighted by distance."""

    name = "halfway"
    version = "0.1"
    weights_sha256 = ""
    produces: Produces = "slices"

    def plan(self, geometry: Geometry, parameters: Parameters) -> Sequence[Step]:
        return plan_every_gap(geometry, parameters)

    def run(self, step: Step, slices: Window, limits: Limits) -> Prediction:
        assert step.gap is not None
        first, second = slices.slices[step.gap], slices.slices[step.gap + 1]
        planes = [first * np.float32(1 - t) + second * np.float32(t) for t in step.fractions]
        return Prediction(planes=tuple(planes))


class OutOfMemoryError(RuntimeError):
    """What torch raises is recognised by this name."""


class Reader:
    """A volume that remembers which slices were asked for."""

    def __init__(self, slices: int) -> None:
        positions = np.array([[0.0, 0.0, 5.0 * index] for index in range(slices)])
        geometry = Geometry(positions, np.eye(3)[:2], (1.0, 1.0), 4, 4)
        self.read: list[int] = []
        self.volume = Volume(geometry, self._read)

    def _read(self, index: int) -> Plane:
        self.read.append(index)
        return np.full((4, 4), float(index), np.float32)


@dataclass
class Watch:
    """Records progress, and cancels when the step that it waits for is reached."""

    cancel_at: str = ""

    def __post_init__(self) -> None:
        self.seen: list[Progress] = []

    def progress(self, progress: Progress) -> None:
        self.seen.append(progress)

    def cancelled(self) -> bool:
        return any(progress.step == self.cancel_at for progress in self.seen)


def request(
    files: Sequence[Path],
    folder: Path,
    *,
    factor: int = 2,
    model: str = "Halfway",
    output: Output | None = None,
    edit: Callable[[Request], Request] | None = None,
) -> Request:
    """A request for these files; the later ones are the newer ones."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Request(
        sources=tuple(
            Source(header.path, header.uid, header.order) for header in read_headers(files)
        ),
        model=ModelSpec(model.lower(), factory=f"{HERE}:{model}"),
        parameters=Parameters(factor=factor),
        output=output or SLICES_ALONE,
        folder=folder,
        secret=b"a secret of the site",
        started_at=STARTED,
        resources=Resources(device="cpu"),
    )
    return edit(made) if edit else made


def unchecked(made: Request, watch: Watch | None = None) -> Outcome:
    """`process` alone: for tests that say themselves what the right result is."""
    watch = watch or Watch()
    return process(made, progress=watch.progress, cancelled=watch.cancelled)


def run(made: Request, watch: Watch | None = None, *, closed_gaps: Sequence[int] = ()) -> Outcome:
    """`process`, and the second opinion on every derived series that comes of it.

    `closed_gaps` are those that the test expects to be left as they are.
    """
    outcome = unchecked(made, watch)
    if isinstance(outcome, Derived):
        faults = check(
            _sources(made),
            images(outcome, made.folder),
            factor=made.parameters.factor,
            target_spacing_mm=made.parameters.target_spacing_mm,
            include_received=made.output.include_received,
            closed_gaps=closed_gaps,
        )
        assert not faults, faults[:5]
    return outcome


def _sources(made: Request) -> list[Path]:
    """The newest file of each instance that is a slice."""
    newest = {
        source.instance_uid: source.path
        for source in sorted(made.sources, key=lambda source: source.order)
    }
    wanted = ["ImageType", "ImagePositionPatient"]
    headers = {path: dcmread(path, specific_tags=wanted) for path in newest.values()}
    # An image that came under two UIDs lies at one place; the first UID stands for it.
    by_place = {
        str(headers[path].get("ImagePositionPatient")): path
        for _, path in sorted(newest.items(), reverse=True)
        if "LOCALIZER" not in (headers[path].get("ImageType") or ())
    }
    return list(by_place.values())


def derive(made: Request) -> list[Path]:
    """The files of the derived series, which must come about and be right."""
    outcome = run(made)
    assert isinstance(outcome, Derived), outcome
    return images(outcome, made.folder)


def images(outcome: Derived, folder: Path) -> list[Path]:
    """The slices among the files of a job, without its further objects."""
    return [folder / file.name for file in outcome.files if file.kind == "image"]


def read(files: Sequence[Path]) -> list[Dataset]:
    """A derived series, in the order of positions."""
    return sorted(
        (dcmread(path) for path in files),
        key=lambda made: float(made.ImagePositionPatient[2]),
    )


def derive_series(tmp_path: Path, series: phantoms.Series, factor: int = 2) -> list[Path]:
    """A made series and its derived series, checked independently."""
    files = phantoms.write(tmp_path / "received", series)
    return derive(request(files, tmp_path / "derived", factor=factor))


def refused(tmp_path: Path, series: phantoms.Series, output: Output | None = None) -> Verdict:
    """The verdict on a made series."""
    files = phantoms.write(tmp_path / "received", series)
    outcome = run(request(files, tmp_path / "derived", output=output))
    assert isinstance(outcome, Verdict), outcome
    return outcome


def only_stack(files: Sequence[Path]) -> list[Header]:
    """The headers of the only stack of a made series."""
    (stack,) = stacks_of(read_headers(files))
    return list(stack.headers)


def other(series: phantoms.Series, **changes: object) -> phantoms.Series:
    return replace(series, **changes)  # type: ignore[arg-type]
