"""Models that make slices: their stacks, their gaps, and the derived CT series with its objects."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from inference import parts
from inference.checks.slice_checks import Expected, SeriesCheck
from inference.dataset import Header, Stack, read_whole
from inference.drafts import StackDrafts
from inference.errors import Reason, Unprocessable
from inference.families.family import Task
from inference.geometry import Layout, Sampling, crosses, examine, measure, place_of_gap
from inference.header import file_digest
from inference.model import Limits, Model, Prediction, Step
from inference.pixels import PixelFormat, common_format, generated_values, native_values
from inference.previews import Previews
from inference.request import File, Output, Progress
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
    Chosen,
    Run,
    Runner,
    SliceJudge,
    check_gaps,
    check_steps,
    share_cores,
)
from inference.scratch import ScratchFile
from inference.volume import Plane, StoredMap, Volume, reduced
from inference.writers import THREADS, Writers

Predictions = Iterator[tuple[Step, Prediction]]
Work = deque[Callable[[], None]]
PREVIEW_SIDE = 256  # of what the page is told of a slice, a mean over the body


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
        steps = tuple(step for step in steps if not crosses(step, layout.missing))
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
        expected = Expected(
            folder=request.folder,
            series_uid=task.series_uid,
            layout=layout,
            slices=slices,
            received=frozenset({header.uid for header in task.stack.headers} | _parents(layout)),
            frame_uid=frame_uid(layout, request.secret),
            beside=task.stack.beside,
            overlay=request.output.overlay,
        )
        check = SeriesCheck(expected, job.pixels)
        generation = _generation(job, layout, slices, series, check)
        objects_of = ResultObjects(series, slices, task.maker)
        files = generation.run(
            task.model,
            task.steps,
            task.device,
            judge=SliceJudge(request.output, layout),
            beside=(objects_of.prepare,) if _has_objects(request.output) else (),
        )
        if request.in_parts:
            parts.closed(request)
        with job.record.phase("writing"):
            objects = _objects(job, series, objects_of, generation)
        ordered = (*sorted(files.values(), key=lambda file: file.name), *objects)
        return SliceResult(ordered, objects, check, job, generation)


@dataclass(frozen=True, eq=False)
class SliceResult:
    """A derived series with its objects, on disk."""

    files: Sequence[File]
    objects: Sequence[File]
    check: SeriesCheck
    job: Run
    generation: "Generation"

    def faults(self) -> tuple[str, ...]:
        """Everything that is wrong with the files.

        Each slice was compared with its sources as soon as it was written; what was done to it
        since then shows in its digest.
        """
        faults = self.check.faults(self.objects)
        report, folder = self.job.reporting("checking", len(self.files)), self.job.request.folder
        changed = []
        with ThreadPoolExecutor(THREADS) as pool:
            digests = pool.map(_digest, (folder / file.name for file in self.files))
            for done, (file, digest) in enumerate(zip(self.files, digests, strict=True), start=1):
                is_known = any(fault.startswith(file.name) for fault in faults)
                if not is_known and digest != file.digest:
                    changed.append(f"{file.name}: it was changed after it was written")
                report(done)
        return (*faults, *changed)

    def preview(self) -> Sequence[str]:
        """Draw the pictures for the page of the job."""
        return self.generation.preview()


def _digest(path: Path) -> str:
    """The digest of a file; empty where it is gone, which is known by then."""
    try:
        return file_digest(path)
    except FileNotFoundError:
        return ""


@dataclass(frozen=True, eq=False)
class Generation:
    """Turns predictions into the files of a derived series."""

    job: Run
    layout: Layout
    slices: Sequence[Planned]
    series: DerivedSeries
    check: SeriesCheck
    volume: Volume
    previews: Previews | None
    maps: MutableMapping[int, StoredMap]  # of the expected error, by the place of a slice
    files: dict[str, File] = field(default_factory=dict)
    words: dict[int, str] = field(default_factory=dict)  # of the marks, likewise

    def run(
        self,
        model: Model,
        steps: Sequence[Step],
        device: str,
        *,
        judge: SliceJudge,
        beside: Sequence[Callable[[], None]] = (),
    ) -> Mapping[str, File]:
        """Every slice, written and read again; raises Unprocessable where the judge holds them.

        Copies are written, and what is to be done `beside` is, between the generated slices.
        """
        resources, record = self.job.request.resources, self.job.record
        at_once = share_cores(model, resources.threads)
        drafts = self._drafts(model)
        run = drafts.run if drafts is not None else None
        runner = Runner(model, self.volume, Limits(device, resources.batch), at_once, run=run)
        predictions = runner.predictions(steps, cancelled=self.job.cancelled)
        with record.phase("writing"), Writers() as writers:
            copies = [place for place, slice_ in enumerate(self.slices) if not slice_.is_generated]
            between: Work = deque(beside)
            between.extend(partial(self._copy, place, writers) for place in copies)
            with record.phase("predicting"):
                self._generate(predictions, judge, writers, between)
            report = self.job.reporting("writing", len(between))
            for done, work in enumerate(between, start=1):
                writers.hand_over(work)
                report(done)
        record.seconds["writing"] = round(
            record.seconds["writing"] - record.seconds["predicting"], 3
        )
        limits = runner.limits
        record.facts |= {"device": limits.device, "limits": asdict(limits), **judge.facts}
        record.notes += [f"out of memory: continued with {rung}" for rung in runner.lowered]
        record.notes += judge.notes
        if drafts is not None:
            record.facts["made_ahead"] = drafts.used
        judge.check()
        return self.files

    def _drafts(self, model: Model) -> StackDrafts | None:
        """What was made of this series while it arrived."""
        drafts = self.job.drafts
        series_uid = self.layout.headers[0].text("SeriesInstanceUID")
        if drafts is None or not drafts.holds(series_uid):
            return None
        return StackDrafts(drafts, model, self.layout)

    def _generate(
        self,
        predictions: Predictions,
        judge: SliceJudge,
        writers: Writers,
        between: Work,
    ) -> None:
        places = {
            (slice_.gap, slice_.fraction): place
            for place, slice_ in enumerate(self.slices)
            if slice_.is_generated
        }
        done = 0
        self.job.report(Progress("predicting", done, len(places)))
        for step, prediction in predictions:
            for number, fraction in enumerate(step.fractions):
                place = places[step.gap, fraction]
                chosen = judge.chosen(self.slices[place], number, prediction)
                scale = prediction.scale_hu[number] if prediction.scale_hu else None
                writers.hand_over(partial(self._write, place, chosen, scale, writers))
            if between:
                writers.hand_over(between.popleft())
            done += len(step.fractions)
            self.job.report(Progress("predicting", done, len(places)))

    def _write(self, place: int, chosen: Chosen, scale_hu: Plane | None, writers: Writers) -> None:
        slice_ = self.slices[place]
        pair = self.layout.headers[slice_.base], self.layout.headers[slice_.base + 1]
        form = slice_.format_of(self.layout)
        offsets = self.layout.geometry.offsets(slice_.base, slice_.base + 1, slice_.fraction)
        stored = generated_values(chosen.plane, *pair, self.job.pixels, form, offsets)
        if chosen.expected_hu is not None:
            self.maps[place] = reduced(chosen.expected_hu)
        if self.previews is not None and scale_hu is not None:
            step = max(1, min(stored.shape) // PREVIEW_SIDE)
            coarse = PixelFormat.of(form).hounsfield(stored[::step, ::step])
            self.previews.judged(place, coarse, scale_hu[::step, ::step])
        self.words[place] = words_of(chosen.error_hu)
        words = chosen.note, chosen.error_hu
        sync = writers.bring_to_disk
        self._keep(place, self.series.write(place, stored, *words, bring_to_disk=sync))

    def _copy(self, place: int, writers: Writers) -> None:
        base = self.layout.headers[self.slices[place].base]
        stored, sync = self.job.pixels.stored(base), writers.bring_to_disk
        self._keep(place, self.series.write(place, stored, bring_to_disk=sync))

    def _keep(self, place: int, file: File) -> None:
        self.check.look_at(place)
        self.files[file.name] = file

    def preview(self) -> Sequence[str]:
        """Draw each generated slice as its file has it, then the received ones."""
        if self.previews is None:
            return ()
        for place, slice_ in enumerate(self.slices):
            if slice_.is_generated:
                header = read_whole(self.job.request.folder / slice_.name)
                if header.fault:  # the series is gone meanwhile
                    return ("no previews: the files are gone",)
                stored = native_values(header, header.raw("PixelData"))
                plane = PixelFormat.of(slice_.format_of(self.layout)).hounsfield(stored)
                self.previews.generated(place, plane)
                if place in self.maps:
                    self.previews.expected(place, self.maps[place])
        return self.previews.finish()


def _generation(
    job: Run,
    layout: Layout,
    slices: Sequence[Planned],
    series: DerivedSeries,
    check: SeriesCheck,
) -> Generation:
    read, request = job.pixels.hounsfield, job.request
    volume = Volume(layout.geometry, lambda index: read(layout.headers[index]))
    previews = Previews(request.folder, layout, slices, volume.read) if request.previews else None
    maps: ScratchFile[int, np.uint16] = ScratchFile(request.folder)
    return Generation(job, layout, slices, series, check, volume, previews, maps)


def _has_objects(output: Output) -> bool:
    return output.presentation_state or output.error_map


def _objects(
    job: Run, series: DerivedSeries, objects: ResultObjects, generation: Generation
) -> tuple[File, ...]:
    """The further result objects that the route asks for."""
    output = job.request.output
    images = objects.images if _has_objects(output) else []
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


def _parents(layout: Layout) -> set[str]:
    first: Header = layout.headers[0]
    keywords = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
    return {first.text(keyword) for keyword in keywords}
