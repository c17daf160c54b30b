"""Models that make slices: their stacks, their gaps, and the derived CT series with its objects."""

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial

from inference.checks.slice_checks import Expected, verify
from inference.dataset import Header, Stack
from inference.errors import Reason, Unprocessable
from inference.families.family import Task
from inference.geometry import Layout, Sampling, examine, measure, place_of_gap
from inference.model import Limits, Model, Prediction, Step
from inference.pixels import PixelFormat, PixelReader, common_format, generated_values
from inference.previews import Previews
from inference.request import File, Progress, Resources
from inference.results.derived import (
    MOST_BYTES,
    MOST_SLICES,
    DerivedSeries,
    Planned,
    frame_uid,
    plan_slices,
    record_of,
    words_of,
)
from inference.results.objects import ResultObjects, error_map, presentation_state
from inference.runner import (
    JobRecord,
    Report,
    Run,
    Runner,
    SliceJudge,
    check_gaps,
    check_steps,
    share_cores,
)
from inference.uids import UidMaker
from inference.volume import StoredMap, Volume, reduced

Predictions = Iterator[tuple[Step, Prediction]]


class SliceFamily:
    """Fills the gaps of CT stacks; keeps nothing between two jobs."""

    def examined(self, job: Run, stack: Stack) -> Layout:
        """The layout; where its slices lie stays in the record, whatever becomes of the job."""
        try:
            layout = examine(stack, job.request.output)
        except Unprocessable:
            if (measured := measure(stack)) is not None:
                job.record.facts |= record_of((), measured)
            raise
        job.record.facts |= record_of((), layout)
        if layout.missing:
            places = ", ".join(place_of_gap(layout, gap) for gap in layout.missing)
            job.record.notes.append(f"not filled, because slices are missing there: {places}")
        return layout

    def planned(self, job: Run, model: Model, layout: Layout) -> Sequence[Step]:
        """The model's steps without those across missing slices."""
        output = job.request.output
        steps = tuple(model.plan(layout.geometry, job.request.parameters))
        check_steps(steps, len(layout.headers))
        steps = tuple(step for step in steps if not _crosses(step, layout.missing))
        check_gaps(steps, layout.geometry, output)
        sampling = Sampling.of(steps, layout)
        job.record.facts |= sampling.facts
        job.record.notes += sampling.notes
        sampling.check(output)
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

    def made(self, job: Run, task: Task) -> "SliceResult":
        """Run the model over the gaps and write the series with its objects."""
        request, layout = job.request, task.layout
        like = common_format(layout.headers, job.pixels)
        slices = plan_slices(layout, task.steps, request.output, task.maker.instance, like)
        job.record.facts |= record_of(slices, layout)
        series = DerivedSeries(request, layout, task.model, slices, task.series_uid)
        generation = _generation(job, layout, slices, series)
        files = generation.run(
            task.model,
            task.steps,
            task.device,
            request.resources,
            judge=SliceJudge(request.output, layout),
            report=job.report,
            cancelled=job.cancelled,
        )
        with job.record.phase("writing"):
            files |= _copies(job, layout, slices, series)
            objects = _objects(job, series, slices, task.maker, generation)
        ordered = (*sorted(files.values(), key=lambda file: file.name), *objects)
        expected = Expected(
            folder=request.folder,
            series_uid=task.series_uid,
            layout=layout,
            slices=slices,
            received=frozenset({header.uid for header in task.stack.headers} | _parents(layout)),
            frame_uid=frame_uid(layout, request.secret),
            beside=task.stack.beside,
            overlay=request.output.overlay,
            objects=objects,
        )
        return SliceResult(ordered, expected, job, generation.previews)


@dataclass(frozen=True, eq=False)
class SliceResult:
    """A derived series with its objects, on disk."""

    files: Sequence[File]
    expected: Expected
    job: Run
    previews: Previews | None

    def faults(self) -> tuple[str, ...]:
        """Everything that is wrong with the files."""
        report = self.job.reporting("checking", len(self.expected.slices))
        return verify(self.expected, self.job.pixels, progress=report)

    def preview(self) -> Sequence[str]:
        """Finish the pictures that the run has begun."""
        return self.previews.finish() if self.previews is not None else ()


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


def _generation(
    job: Run, layout: Layout, slices: Sequence[Planned], series: DerivedSeries
) -> Generation:
    read, request = job.pixels.hounsfield, job.request
    volume = Volume(layout.geometry, lambda index: read(layout.headers[index]))
    previews = Previews(request.folder, layout, slices, volume.read) if request.previews else None
    return Generation(layout, slices, series, job.pixels, volume, previews, job.record)


def _copies(
    job: Run, layout: Layout, slices: tuple[Planned, ...], series: DerivedSeries
) -> dict[str, File]:
    copies = [place for place, slice_ in enumerate(slices) if not slice_.is_generated]
    report = job.reporting("writing", len(copies))
    files = {}
    for done, place in enumerate(copies, start=1):
        file = series.write(place, job.pixels.stored(layout.headers[slices[place].base]))
        files[file.name] = file
        report(done)
    return files


def _objects(
    job: Run,
    series: DerivedSeries,
    slices: Sequence[Planned],
    maker: UidMaker,
    generation: Generation,
) -> tuple[File, ...]:
    """The further result objects that the route asks for."""
    output, objects = job.request.output, ResultObjects(series, slices, maker)
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
    job.record.notes += objects.notes
    job.record.facts["objects"] = [
        {"kind": file.kind, "sop_class_uid": file.sop_class_uid, "series_uid": file.series_uid}
        for file in objects.files
    ]
    return tuple(objects.files)


def _crosses(step: Step, missing: Container[int]) -> bool:
    """True where a step fills, or a survey looks across, a gap with missing slices."""
    if step.survey is not None:
        return step.survey - 1 in missing or step.survey in missing
    return step.gap in missing


def _parents(layout: Layout) -> set[str]:
    first: Header = layout.headers[0]
    keywords = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
    return {first.text(keyword) for keyword in keywords}
