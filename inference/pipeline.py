"""The one function from the paths of a stack to the verified files of a derived series."""

import logging
import os
import time
import traceback
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

from inference import header as h
from inference.checks import Expected, verify
from inference.dataset import Header, Stack, newest, read_headers
from inference.derived import (
    MOST_BYTES,
    MOST_SLICES,
    DerivedSeries,
    Planned,
    frame_uid,
    plan_slices,
    record_of,
    words_of,
)
from inference.errors import Cancelled, InferenceError, ModelLoadError, Reason, Unprocessable
from inference.geometry import Layout, Sampling, examine, measure, place_of_gap
from inference.model import Limits, Model, Prediction, Step, check_steps
from inference.objects import ResultObjects, error_map, presentation_state
from inference.pixels import (
    PixelFormat,
    PixelReader,
    check_copies,
    common_format,
    digests,
    generated_values,
    padding_notes,
)
from inference.previews import Previews, StoredMap, reduced
from inference.registry import choose_device, load
from inference.request import (
    Derived,
    Failed,
    File,
    Kept,
    Outcome,
    Progress,
    Request,
    Resources,
    Stopped,
    Verdict,
)
from inference.runner import Runner, SliceJudge, check_gaps, share_cores
from inference.scope import differences, oddities
from inference.stacks import facts_of, set_aside, stacks_of
from inference.uids import Identity, UidMaker, marked
from inference.volume import Volume

Report = Callable[[Progress], None]
Predictions = Iterator[tuple[Step, Prediction]]
logger = logging.getLogger(__name__)


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
class Generation:
    """Turns predictions into the files of a derived series."""

    layout: Layout
    slices: Sequence[Planned]
    series: DerivedSeries
    pixels: PixelReader
    volume: Volume
    previews: Previews | None
    record: JobRecord
    words: dict[int, str] = field(default_factory=dict)  # of the marks, by the place of a slice
    maps: dict[int, StoredMap] = field(default_factory=dict)  # of the expected error, likewise

    def run(
        self,
        model: Model,
        steps: Sequence[Step],
        device: str,
        resources: Resources,
        *,
        judge: SliceJudge,
        report: Report,
        cancelled: Callable[[], bool],
    ) -> dict[str, File]:
        """Every generated slice, written; raises Unprocessable where the judge holds them."""
        at_once = share_cores(model, resources.threads)
        runner = Runner(model, self.volume, Limits(device, resources.batch), at_once)
        files = self._written(runner.predictions(steps, cancelled=cancelled), judge, report)
        limits = runner.limits
        self.record.facts |= {"device": limits.device, "limits": asdict(limits), **judge.facts}
        self.record.notes += [f"out of memory: continued with {rung}" for rung in runner.lowered]
        self.record.notes += judge.notes
        judge.check()
        return files

    def _written(
        self, predictions: Predictions, judge: SliceJudge, report: Report
    ) -> dict[str, File]:
        places = {
            (slice_.gap, slice_.fraction): place
            for place, slice_ in enumerate(self.slices)
            if slice_.is_generated
        }
        files: dict[str, File] = {}
        report(Progress("predicting", 0, len(places)))
        while True:
            with self.record.phase("predicting"):
                predicted = next(predictions, None)
            if predicted is None:
                return files
            step, prediction = predicted
            with self.record.phase("writing"):
                for number, fraction in enumerate(step.fractions):
                    place = places[step.gap, fraction]
                    file = self._write(place, number, prediction, judge)
                    files[file.name] = file
            report(Progress("predicting", len(files), len(places)))

    def _write(self, place: int, number: int, prediction: Prediction, judge: SliceJudge) -> File:
        slice_ = self.slices[place]
        pair = self.layout.headers[slice_.base], self.layout.headers[slice_.base + 1]
        form = slice_.format_of(self.layout)
        chosen = judge.chosen(slice_, number, prediction)
        offsets = self.layout.geometry.offsets(slice_.base, slice_.base + 1, slice_.fraction)
        stored = generated_values(chosen.plane, *pair, self.pixels, form, offsets)
        if self.previews is not None:
            written = PixelFormat.of(form).hounsfield(stored)
            self.previews.generated(place, written, prediction, number)
        if chosen.expected_hu is not None:
            self.maps[place] = reduced(chosen.expected_hu)
            if self.previews is not None:
                self.previews.expected(place, self.maps[place])
        self.words[place] = words_of(chosen.error_hu)
        return self.series.write(place, stored, chosen.note, chosen.error_hu)


def process(
    request: Request, *, progress: Callable[[Progress], None], cancelled: Callable[[], bool]
) -> Outcome:
    """Make one derived series. A fault of the series, the model or our code is an outcome too."""
    record = JobRecord()
    outcome: Outcome
    try:
        outcome = _Job(request, record, progress, cancelled).run()
    except Unprocessable as verdict:
        facts = dict(record.as_json())
        if isinstance(verdict, OutputCheckFailed):
            facts["faults"] = list(verdict.faults)
        outcome = Verdict(verdict.reason, verdict.sentence, verdict.is_held, facts)
    except Cancelled:
        outcome = Stopped()
    except Exception as error:  # noqa: BLE001  (a model is foreign code and may raise anything)
        outcome = failure(error)
    if not isinstance(outcome, Derived):
        _clear(request.folder)
    return outcome


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
    detail = f": {error}" if isinstance(error, InferenceError) else ""
    if isinstance(error, OSError) and error.strerror:
        detail = f": {error.strerror}"
    return Failed(name, f"The model or the node failed ({name}{detail}).", frames)


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
        self, request: Request, record: JobRecord, report: Report, cancelled: Callable[[], bool]
    ) -> None:
        self._request = request
        self._record = record
        self._report = report
        self._cancelled = cancelled
        self._pixels = PixelReader()

    def run(self) -> Derived | Kept:
        record, request = self._record, self._request
        with record.phase("reading"):
            stack, layout = self._read()
            model, device = self._load()
            steps = self._plan(model, layout)
            digest_of, notes = digests(
                stack.headers, self._pixels, progress=self._reporting("reading", len(stack))
            )
        record.notes += [*_notes_on(layout), *notes]
        record.notes += check_copies(layout.copies, len(stack), self._pixels)
        identity = _identity(request, model, layout, digest_of)
        maker, content_uid, mark = marked(request.secret, identity, request.marks, request.mark)
        series_uid = maker.series()
        if series_uid in request.kept:
            return Kept(series_uid)
        like = common_format(layout.headers, self._pixels)
        slices = plan_slices(layout, steps, request.output, maker.instance, like)
        record.facts |= {**record_of(slices, layout), **_facts(model, stack, layout)}
        series = DerivedSeries(replace(request, mark=mark), layout, model, slices, series_uid)
        generation = self._generation(layout, slices, series)
        files = generation.run(
            model,
            steps,
            device,
            request.resources,
            judge=SliceJudge(request.output, layout),
            report=self._report,
            cancelled=self._cancelled,
        )
        with record.phase("writing"):
            files |= self._copy(layout, slices, series)
            objects = self._objects(series, slices, maker, generation)
        with record.phase("checking"):
            self._check(self._expected(stack, layout, slices, series_uid, objects))
        if generation.previews is not None:
            with record.phase("previews"):
                record.notes += generation.previews.finish()
        ordered = (*sorted(files.values(), key=lambda file: file.name), *objects)
        return Derived(series_uid, model.version, ordered, record.as_json(), content_uid, mark)

    def _generation(
        self, layout: Layout, slices: Sequence[Planned], series: DerivedSeries
    ) -> Generation:
        read, folder = self._pixels.hounsfield, self._request.folder
        volume = Volume(layout.geometry, lambda index: read(layout.headers[index]))
        wanted = self._request.previews
        previews = Previews(folder, layout, slices, volume.read) if wanted else None
        return Generation(layout, slices, series, self._pixels, volume, previews, self._record)

    def _expected(
        self,
        stack: Stack,
        layout: Layout,
        slices: Sequence[Planned],
        series_uid: str,
        objects: Sequence[File],
    ) -> Expected:
        request = self._request
        return Expected(
            folder=request.folder,
            series_uid=series_uid,
            layout=layout,
            slices=slices,
            received=frozenset({header.uid for header in stack.headers} | _parents(layout)),
            frame_uid=frame_uid(layout, request.secret),
            beside=stack.beside,
            overlay=request.output.overlay,
            objects=objects,
        )

    def _read(self) -> tuple[Stack, Layout]:
        headers = read_headers(self._request.sources)
        for header in headers:
            if header.fault:
                sentence = f"A received file {header.fault}; send the series again."
                raise Unprocessable(Reason.PIXEL_DATA_ERROR, sentence)
        stacks = stacks_of(headers)
        if len(stacks) != 1:
            sentence = f"The instances form {len(stacks)} stacks; each is processed by itself."
            raise Unprocessable(Reason.MIXED_ACQUISITIONS, sentence)
        own = {header.uid for header in headers}
        beside = [h for h in read_headers(self._request.beside) if h.uid not in own]
        if aside := facts_of(set_aside([*headers, *beside])):
            self._record.facts["set_aside"] = aside
        stack = replace(stacks[0], beside=tuple(newest(beside)))
        layout = self._examined(stack)
        if layout.missing:
            places = ", ".join(place_of_gap(layout, gap) for gap in layout.missing)
            self._record.notes.append(f"not filled, because slices are missing there: {places}")
        return stack, layout

    def _examined(self, stack: Stack) -> Layout:
        """The layout; where its slices lie stays in the record, whatever becomes of the job."""
        try:
            layout = examine(stack, self._request.output)
        except Unprocessable:
            if (measured := measure(stack)) is not None:
                self._record.facts |= record_of((), measured)
            raise
        self._record.facts |= record_of((), layout)
        return layout

    def _load(self) -> tuple[Model, str]:
        """The model and the device that it runs on."""
        request = self._request
        device = choose_device(request.resources.device, request.model)
        model = load(request.model, device)
        if model.produces != "slices":
            raise ModelLoadError(f"model {model.name} produces {model.produces}, not slices")
        return model, device

    def _plan(self, model: Model, layout: Layout) -> tuple[Step, ...]:
        """The model's steps without those across missing slices."""
        steps = tuple(model.plan(layout.geometry, self._request.parameters))
        check_steps(steps, len(layout.headers))
        steps = tuple(step for step in steps if not _crosses(step, layout.missing))
        check_gaps(steps, layout.geometry, self._request.output)
        sampling = Sampling.of(steps, layout)
        self._record.facts |= sampling.facts
        self._record.notes += sampling.notes
        sampling.check(self._request.output)
        if all(step.gap is None for step in steps):
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

    def _copy(
        self, layout: Layout, slices: tuple[Planned, ...], series: DerivedSeries
    ) -> dict[str, File]:
        copies = [place for place, slice_ in enumerate(slices) if not slice_.is_generated]
        report = self._reporting("writing", len(copies))
        files = {}
        for done, place in enumerate(copies, start=1):
            file = series.write(place, self._pixels.stored(layout.headers[slices[place].base]))
            files[file.name] = file
            report(done)
        return files

    def _objects(
        self,
        series: DerivedSeries,
        slices: Sequence[Planned],
        maker: UidMaker,
        generation: Generation,
    ) -> tuple[File, ...]:
        """The further result objects that the route asks for."""
        output, objects = self._request.output, ResultObjects(series, slices, maker)
        is_any = output.presentation_state or output.error_map
        images = list(objects.images()) if is_any else []
        generated, total = series.counts
        counted = f"{generated} of {total} NOT ACQUIRED"
        if output.presentation_state:
            build = partial(presentation_state, images, generation.words)
            objects.write("presentation state", f"AI MARKS {counted}", build)
        if output.error_map and generation.maps:
            build = partial(error_map, images, generation.maps)
            objects.write("parametric map", f"AI EXPECTED ERROR HU {counted}", build)
        elif output.error_map:
            objects.notes.append("no error map: the model says nothing of its error")
        self._record.notes += objects.notes
        self._record.facts["objects"] = [
            {"kind": file.kind, "sop_class_uid": file.sop_class_uid, "series_uid": file.series_uid}
            for file in objects.files
        ]
        return tuple(objects.files)

    def _check(self, expected: Expected) -> None:
        report = self._reporting("checking", len(expected.slices))
        faults = verify(expected, self._pixels, progress=report)
        if faults:
            raise OutputCheckFailed(faults)
        bring_to_disk(expected.folder)

    def _reporting(self, step: str, total: int) -> Callable[[int], None]:
        """Takes the count of what is done; raises Cancelled where the job is to stop."""

        def report(done: int) -> None:
            if self._cancelled():
                raise Cancelled
            self._report(Progress(step, done, total))

        return report


def _identity(
    request: Request, model: Model, layout: Layout, digest_of: Mapping[str, str]
) -> Identity:
    copied = h.carried(layout.headers[0], (*h.CHARACTER_SET, *h.PATIENT_AND_STUDY))
    return Identity(
        sources=[(header.uid, digest_of[header.uid]) for header in layout.headers],
        patient_and_study=h.encoded(copied),
        model=model.name,
        version=model.version,
        weights_sha256=model.weights_sha256,
        parameters=request.parameters,
        output=request.output,
        edition=request.edition,
        runtime=getattr(model, "runtime", ""),
    )


def _facts(model: Model, stack: Stack, layout: Layout) -> Mapping[str, object]:
    return {
        "stack": stack.key,
        "model": model.name,
        "version": model.version,
        "weights_sha256": model.weights_sha256,
        "runtime": getattr(model, "runtime", ""),
        "gap_mm": round(layout.gap_mm, 4),
    }


def _crosses(step: Step, missing: Container[int]) -> bool:
    """True where a step fills, or a survey looks across, a gap with missing slices."""
    if step.survey is not None:
        return step.survey - 1 in missing or step.survey in missing
    return step.gap in missing


def _parents(layout: Layout) -> set[str]:
    first: Header = layout.headers[0]
    keywords = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
    return {first.text(keyword) for keyword in keywords}


def _notes_on(layout: Layout) -> list[str]:
    """Notes from the headers of a stack alone."""
    headers = layout.headers
    return [*layout.notes, *differences(headers), *oddities(headers), *padding_notes(headers)]
