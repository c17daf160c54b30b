"""The one function from the paths of a stack to the verified files of a derived series."""

import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from inference import header as h
from inference import whitelist as w
from inference.checks import Expected, verify
from inference.dataset import Header, Stack, read_headers
from inference.derived import Series
from inference.errors import (
    Cancelled,
    InferenceError,
    ModelLoadError,
    Reason,
    Unprocessable,
)
from inference.geometry import Layout, examine
from inference.intensity import PixelReader, generated_values
from inference.model import Limits, Model, Step
from inference.placement import Planned, plan_slices, record_of
from inference.reader import set_aside, stacks
from inference.registry import choose_device, load
from inference.request import (
    Derived,
    Failed,
    File,
    Kept,
    Outcome,
    Progress,
    Request,
    Stopped,
    Verdict,
)
from inference.runner import Runner, check_steps
from inference.scope import differences, oddities
from inference.uids import Identity, UidMaker
from inference.versions import digests
from inference.volume import Volume

logger = logging.getLogger(__name__)

# What a derived series may be at most; a job beyond it would fill disk and time of everybody.
MOST_SLICES = 20_000
MOST_BYTES = 32 << 30

Report = Callable[[Progress], None]


@dataclass
class Account:
    """What a job leaves in the record of its derived series: counts, notes, seconds."""

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

    def record(self) -> Mapping[str, object]:
        return {**self.facts, "seconds": dict(self.seconds), "notes": list(self.notes)}


def process(
    request: Request, *, progress: Callable[[Progress], None], cancelled: Callable[[], bool]
) -> Outcome:
    """Make one derived series. A fault of the series, the model or our code is an outcome too."""
    account = Account()
    outcome: Outcome
    try:
        outcome = _Job(request, account, progress, cancelled).run()
    except Unprocessable as verdict:
        record = {**account.record(), **verdict_record(verdict)}
        outcome = Verdict(verdict.reason, verdict.sentence, verdict.is_held, record)
    except Cancelled:
        outcome = Stopped()
    except Exception as error:  # noqa: BLE001  (a model is foreign code and may raise anything)
        outcome = failure(error)
    if not isinstance(outcome, Derived):
        _clear(request.folder)
    return outcome


def verdict_record(verdict: Unprocessable) -> Mapping[str, object]:
    """What a verdict adds to the record: the list of faults of a failed output check."""
    return {"faults": list(verdict.faults)} if isinstance(verdict, OutputCheckFailed) else {}


class OutputCheckFailed(Unprocessable):
    """The files on disk are not the derived series that was planned."""

    def __init__(self, faults: tuple[str, ...]) -> None:
        sentence = (
            f"The result did not pass its own check ({len(faults)} faults; "
            f"the first: {faults[0]}); nothing was sent."
        )
        super().__init__(Reason.OUTPUT_CHECK_FAILED, sentence)
        self.faults = faults


def failure(error: Exception) -> Failed:
    """An exception as type and frames; its message only where the class is ours."""
    name = type(error).__name__
    frames = " < ".join(
        f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"
        for frame in reversed(traceback.extract_tb(error.__traceback__))
    )
    logger.error("processing failed", extra={"error": name, "frames": frames})
    said = f": {error}" if isinstance(error, InferenceError) else ""
    if isinstance(error, OSError) and error.strerror:
        said = f": {error.strerror}"
    return Failed(name, f"The model or the node failed ({name}{said}).", frames)


def bring_to_disk(folder: Path) -> None:
    """Make the names of the written files durable, as each file is already."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _clear(folder: Path) -> None:
    """Remove what an unfinished job has written; the folder itself is the caller's."""
    for path in folder.glob("*.dcm"):
        path.unlink(missing_ok=True)


class _Job:
    """One run of `process`: what its phases hand to each other."""

    def __init__(
        self, request: Request, account: Account, report: Report, cancelled: Callable[[], bool]
    ) -> None:
        self._request = request
        self._account = account
        self._report = report
        self._cancelled = cancelled
        self._pixels = PixelReader()

    def run(self) -> Derived | Kept:
        account, request = self._account, self._request
        with account.phase("reading"):
            stack, layout = self._read()
            model, device = self._load()
            steps = self._plan(model, layout)
            found, notes = digests(stack.headers, self._pixels, progress=self._reading(len(stack)))
        said = [*differences(layout.headers), *oddities(layout.headers)]
        account.notes += [*layout.notes, *said, *notes]
        maker = UidMaker(request.secret, _identity(request, model, layout, found))
        series_uid = maker.series()
        if series_uid in request.kept:
            return Kept(series_uid)
        slices = plan_slices(layout, steps, request.output, maker.instance)
        account.facts |= {**record_of(slices, layout), **_facts(model, stack, layout)}
        series = Series(request, layout, model, slices, series_uid)
        files = self._predict(model, layout, steps, slices, series, device)
        with account.phase("writing"):
            files |= self._copy(layout, slices, series)
        received = frozenset({header.uid for header in stack.headers} | _parents(layout))
        expected = Expected(request.folder, series_uid, layout, slices, received)
        with account.phase("checking"):
            self._check(expected)
            bring_to_disk(request.folder)
        ordered = sorted(files.values(), key=lambda file: file.name)
        return Derived(series_uid, model.version, tuple(ordered), account.record())

    def _read(self) -> tuple[Stack, Layout]:
        headers = read_headers(self._request.sources)
        for header in headers:
            if header.fault:
                sentence = f"A received file {header.fault}; send the series again."
                raise Unprocessable(Reason.PIXEL_DATA_ERROR, sentence)
        found = stacks(headers)
        if len(found) != 1:
            sentence = f"The instances form {len(found)} stacks; each is processed by itself."
            raise Unprocessable(Reason.MIXED_ACQUISITIONS, sentence)
        layout = examine(found[0], self._request.output)
        ignored = len(set_aside(headers))
        if ignored:
            self._account.notes.append(f"{ignored} instances of other kinds were left out")
        if layout.missing:
            self._account.notes.append(f"{len(layout.missing)} gaps with missing slices were left")
        return found[0], layout

    def _load(self) -> tuple[Model, str]:
        """The model and the device that it runs on."""
        request = self._request
        device = choose_device(request.resources.device, request.model)
        model = load(request.model, device)
        if model.produces != "slices":
            raise ModelLoadError(f"model {model.name} produces {model.produces}, not slices")
        torch = sys.modules.get("torch")  # only where the model has imported it
        if request.resources.threads and torch is not None:
            torch.set_num_threads(request.resources.threads)
        return model, device

    def _plan(self, model: Model, layout: Layout) -> tuple[Step, ...]:
        """The model's steps without those across missing slices."""
        steps = tuple(model.plan(layout.geometry, self._request.parameters))
        check_steps(steps, len(layout.headers))
        steps = tuple(step for step in steps if step.gap not in layout.missing)
        if not steps:
            sentence = "Every gap that could be filled misses slices, so there is nothing to do."
            raise Unprocessable(Reason.NOTHING_TO_DO, sentence)
        count = len(layout.headers) + sum(len(step.fractions) for step in steps)
        size = count * layout.geometry.rows * layout.geometry.columns * 2
        if count > MOST_SLICES or size > MOST_BYTES:
            sentence = (
                f"The result would have {count} slices ({size / 2**30:.1f} GiB); "
                f"the most is {MOST_SLICES} slices and {MOST_BYTES >> 30} GiB."
            )
            raise Unprocessable(Reason.TOO_LARGE, sentence)
        return steps

    def _predict(
        self,
        model: Model,
        layout: Layout,
        steps: tuple[Step, ...],
        slices: tuple[Planned, ...],
        series: Series,
        device: str,
    ) -> dict[str, File]:
        """Predict and write the generated slices, gap by gap: they are never all in memory."""
        places = {
            (slice_.gap, slice_.fraction): place
            for place, slice_ in enumerate(slices)
            if slice_.is_generated
        }
        volume = Volume(layout.geometry, lambda i: self._pixels.hounsfield(layout.headers[i]))
        runner = Runner(model, volume, Limits(device, self._request.resources.batch))
        files: dict[str, File] = {}
        self._report(Progress("predicting", 0, len(places)))
        predictions = runner.predictions(steps, cancelled=self._cancelled)
        while True:
            with self._account.phase("predicting"):
                found = next(predictions, None)
            if found is None:
                break
            step, prediction = found
            assert step.gap is not None
            with self._account.phase("writing"):
                pair = layout.headers[step.gap], layout.headers[step.gap + 1]
                for fraction, plane in zip(step.fractions, prediction.planes, strict=True):
                    stored = generated_values(plane, *pair, self._pixels)
                    file = series.write(places[step.gap, fraction], stored)
                    files[file.name] = file
            self._report(Progress("predicting", len(files), len(places)))
        self._account.facts |= {"device": runner.limits.device, "limits": asdict(runner.limits)}
        self._account.notes += [f"out of memory: went on with {rung}" for rung in runner.lowered]
        return files

    def _copy(self, layout: Layout, slices: tuple[Planned, ...], series: Series) -> dict[str, File]:
        copies = [place for place, slice_ in enumerate(slices) if not slice_.is_generated]
        files = {}
        for done, place in enumerate(copies, start=1):
            self._stop_if_cancelled()
            file = series.write(place, self._pixels.stored(layout.headers[slices[place].base]))
            files[file.name] = file
            self._report(Progress("writing", done, len(copies)))
        return files

    def _check(self, expected: Expected) -> None:
        def report(done: int) -> None:
            self._stop_if_cancelled()
            self._report(Progress("checking", done, len(expected.slices)))

        faults = verify(expected, self._pixels, progress=report)
        if faults:
            raise OutputCheckFailed(faults)

    def _reading(self, total: int) -> Callable[[int], None]:
        def report(done: int) -> None:
            self._stop_if_cancelled()
            self._report(Progress("reading", done, total))

        return report

    def _stop_if_cancelled(self) -> None:
        if self._cancelled():
            raise Cancelled


def _identity(request: Request, model: Model, layout: Layout, found: Mapping[str, str]) -> Identity:
    copied = h.carried(layout.headers[0], (*w.CHARACTER_SET, *w.PATIENT_AND_STUDY))
    return Identity(
        sources=[(header.uid, found[header.uid]) for header in layout.headers],
        patient_and_study=h.encoded(copied),
        model=model.name,
        version=model.version,
        weights_sha256=model.weights_sha256,
        parameters=request.parameters,
        output=request.output,
        edition=request.edition,
    )


def _facts(model: Model, stack: Stack, layout: Layout) -> Mapping[str, object]:
    return {
        "stack": stack.key,
        "model": model.name,
        "version": model.version,
        "weights_sha256": model.weights_sha256,
        "gap_mm": round(layout.gap_mm, 4),
        "shear_degrees": round(layout.shear_degrees, 2),
    }


def _parents(layout: Layout) -> set[str]:
    first: Header = layout.headers[0]
    keywords = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
    return {first.text(keyword) for keyword in keywords}
