"""Models of findings: CT stacks, what a model found in them, and the results that say where.

The report is the main result; segmentations of organs and findings, marks for viewers, key images
and a page with pictures lie beside it, each in a series of its own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from inference import ct
from inference.checks.finding_checks import ExpectedFindings, Role, verify
from inference.dataset import Stack
from inference.errors import ModelLoadError, PredictionError, Reason, Unprocessable
from inference.families.family import Task
from inference.geometry import Layout, measure
from inference.header import Elements
from inference.model import Limits, Model, Prediction, Segment, Step
from inference.previews import Previews
from inference.request import File, ObjectKind, Progress
from inference.results import anatomy_map
from inference.results.captures import Page, capture
from inference.results.derived import record_of
from inference.results.finding_marks import finding_state, places_shown
from inference.results.finding_report import (
    REPORT,
    report_of_absence,
    report_on_outlines,
    report_on_segments,
)
from inference.results.findings import SIDES, NumberedFinding, check_sides, numbered
from inference.results.key_objects import key_objects
from inference.results.making import Making, Reference
from inference.results.segmentation import Region, region_of, segmentation
from inference.results.writing import facts_of, making_of, written
from inference.runner import Run, Runner, check_findings, check_whole

MOST_VOXELS = 1 << 27  # 512 slices of 512 x 512: all are in memory at once
MAIN_SERIES = f"series of the {REPORT}"  # its place among the UIDs of a job
# What a destination may do without.
SUPPLEMENTS: frozenset[Role] = frozenset({"marks", "key objects", "capture"})
Labels = NDArray[np.uint8]  # (slices, rows, columns): 0, or n for the n-th organ


class FindingFamily:
    """Looks for findings in CT stacks; keeps nothing between two jobs."""

    def examined(self, job: Run, stack: Stack) -> Layout:
        """The layout; where its slices lie stays in the record, whatever becomes of the job."""
        measured = measure(stack)
        if measured is not None:
            job.record.facts |= record_of((), measured)
        return ct.examine(stack, job.request.output)

    def planned(self, job: Run, model: Model, layout: Layout) -> Sequence[Step]:
        """The one step of the model, which needs every slice."""
        _check_model(model)
        geometry = layout.geometry
        voxels = len(geometry) * geometry.rows * geometry.columns
        if voxels > MOST_VOXELS:
            sentence = (
                f"The stack has {voxels / 1e6:.0f} million pixels; findings are looked for in at "
                f"most {MOST_VOXELS / 1e6:.0f} million."
            )
            raise Unprocessable(Reason.TOO_LARGE, sentence)
        ct.check_stated(model, layout, job.request.output)
        steps = tuple(model.plan(geometry, job.request.parameters))
        check_whole(steps, len(geometry))
        if len(steps) != 1:
            raise PredictionError(f"the model planned {len(steps)} steps for one list of findings")
        return steps

    def made(self, job: Run, task: Task) -> "FindingResult":
        """Run the model and write what it found, unless a person should look first."""
        seen = _predicted(job, task)
        if seen.doubts:
            sentence = (
                f"A person should look at this series: {'; '.join(seen.doubts)}. What was found "
                "stands on the page of the job and was not sent. Send a series that is in the "
                "scope of the model, or cancel the job."
            )
            raise Unprocessable(Reason.LOW_CONFIDENCE, sentence)
        with job.record.phase("writing"):
            return _Writer(job, task, seen, _making(job, task)).written()


@dataclass(frozen=True, eq=False)
class Seen:
    """What the model saw in the stack: its findings, as many as the route asks for, and organs."""

    findings: Sequence[NumberedFinding]
    cut: int  # findings beyond those
    organs: Labels | None
    doubts: Sequence[str]


@dataclass(frozen=True, eq=False)
class FindingResult:
    """The report and what lies beside it, on disk."""

    files: Sequence[File]
    expected: ExpectedFindings
    job: Run
    task: Task
    seen: Seen

    def faults(self) -> tuple[str, ...]:
        """Everything that is wrong with the files."""
        report = self.job.reporting("checking", len(self.files))
        report(0)
        faults = verify(self.expected)
        report(len(self.files))
        return faults

    def preview(self) -> Sequence[str]:
        """Write the received slices, each with the outlines of the findings in it."""
        layout = self.task.layout
        volume = ct.open_volume(layout, self.job.pixels)
        pictures = Previews(self.job.request.folder, layout, (), volume.read)
        shape = len(volume), layout.geometry.rows, layout.geometry.columns
        mask = np.zeros(shape, np.uint8)
        for of in self.seen.findings:
            of.region.draw(mask, range(len(volume)), 1)
        organs, label = self.seen.organs, finding_of(self.task.model).label
        looked_in = None if organs is None else organs > 0
        pictures.outline(mask > 0, label, organs=looked_in, is_hu=True)
        return pictures.finish()


def finding_of(model: Model) -> Segment:
    """What the findings of a model are."""
    kind = getattr(model, "finding", None)
    assert isinstance(kind, Segment)  # the plan of the job has looked
    return kind


def organs_of(model: Model) -> Sequence[Segment]:
    """The organs that a model looks in."""
    return tuple(getattr(model, "segments", ()))


def threshold_of(model: Model) -> float:
    """The score from which on a model calls something a finding."""
    return float(getattr(model, "threshold", 0.0))


def _making(job: Run, task: Task) -> Making:
    """All results state the threshold, even where their model has no words for it."""
    making = making_of(job, task, MAIN_SERIES)
    words = making.algorithm.parameters or f"threshold={threshold_of(task.model):.2f}"
    return replace(making, algorithm=replace(making.algorithm, parameters=words))


def _check_model(model: Model) -> None:
    threshold = getattr(model, "threshold", None)
    if not isinstance(getattr(model, "finding", None), Segment):
        raise ModelLoadError(f"model {model.name} does not say of which kind its findings are")
    if not isinstance(threshold, float) or not 0.0 <= threshold <= 1.0:
        raise ModelLoadError(f"model {model.name} has a threshold of {threshold}, not 0.0 to 1.0")
    if not all(isinstance(segment, Segment) for segment in organs_of(model)):
        raise ModelLoadError(f"model {model.name} does not say which organs it looks in")


def _predicted(job: Run, task: Task) -> Seen:
    geometry, output = task.layout.geometry, job.request.output
    volume = ct.open_volume(task.layout, job.pixels)
    limits = Limits(task.device, job.request.resources.batch)
    runner = Runner(task.model, volume, limits, check=check_findings)
    job.report(Progress("predicting", 0, len(geometry)))
    with job.record.phase("predicting"):
        ((step, prediction),) = runner.predictions(task.steps, cancelled=job.cancelled)
    job.report(Progress("predicting", len(geometry), len(geometry)))
    organs, kind = _organs(task.model, step, prediction), finding_of(task.model)
    every = numbered(prediction.findings, kind)
    check_sides(every, _sides(task.model, organs), geometry)
    kept = every[: output.max_findings]
    cut = len(prediction.findings) - len(kept)
    doubts = list(_doubts(task.model, prediction, organs))
    job.record.facts |= {k: v for k, v in prediction.record.items() if k != "doubts"}
    job.record.facts |= {
        "device": runner.limits.device,
        "limits": asdict(runner.limits),
        "finding": kind.label,
        "findings": [of.record(task.layout) for of in kept],
        "findings_cut": cut,
        "threshold": threshold_of(task.model),
    }
    job.record.notes += [f"out of memory: continued with {rung}" for rung in runner.lowered]
    if cut:
        job.record.notes.append(f"findings of lower scores that were left out: {cut}")
    return Seen(kept, cut, organs, doubts)


def _organs(model: Model, step: Step, prediction: Prediction) -> Labels | None:
    if not prediction.planes:
        return None
    organs: Labels = np.zeros((len(step.needs), *prediction.planes[0].shape), np.uint8)
    for index, plane in zip(step.needs, prediction.planes, strict=True):
        organs[index] = plane
    most = int(organs.max(initial=0))
    if most > len(organs_of(model)):
        raise PredictionError(f"the model gave an organ {most} of {len(organs_of(model))}")
    return organs


def _regions(model: Model, organs: Labels | None) -> list[Region]:
    """The organs that lie somewhere in the stack."""
    if organs is None:
        return []
    masks = [organs == number for number, _ in enumerate(organs_of(model), start=1)]
    pairs = zip(organs_of(model), masks, strict=True)
    return [region_of(segment, mask) for segment, mask in pairs if mask.any()]


def _sides(model: Model, organs: Labels | None) -> dict[str, Region]:
    """The organs of a pair, by side."""
    regions = {of.segment.modifier: of for of in _regions(model, organs)}
    return {side: regions[code] for side, code in SIDES.items() if code in regions}


def _doubts(model: Model, prediction: Prediction, organs: Labels | None) -> Iterator[str]:
    doubts = prediction.record.get("doubts")
    if isinstance(doubts, list | tuple):
        yield from map(str, doubts)
    if organs_of(model) and (organs is None or not organs.any()):
        names = " and ".join(segment.label.lower() for segment in organs_of(model))
        yield f"nothing of {names} was seen, so that nothing could be found there"


@dataclass(frozen=True, eq=False)
class _Writer:
    """Writes the results of one job in the order in which they refer to one another."""

    job: Run
    task: Task
    seen: Seen
    making: Making

    def written(self) -> FindingResult:
        """All files, the report first."""
        findings, headers, making = self.seen.findings, self.task.layout.headers, self.making
        organs = _regions(self.task.model, self.seen.organs)
        regions = [of.region for of in findings]
        title, report = finding_of(self.task.model).label, self.job.reporting("writing", 6)
        report(0)
        files: dict[Role, File] = {}
        if organs:
            files["organs"] = self._segmentation("organs", organs, organs[0].segment.kind[2], 1)
            report(1)
        if findings:
            files["findings"] = self._segmentation("findings", regions, title, 2)
            report(2)
        report_elements = self._report(files.get("findings"))
        files["report"] = self._file("report", report_elements, "report")
        report(3)
        page = None
        if findings:
            marks = finding_state(headers, findings, making, 3)
            files["marks"] = self._file("marks", marks, "presentation state")
            self._note_unmarked()
            files["key objects"] = self._file("key objects", self._key_objects(), "key objects")
            report(4)
            page = self._page()
            picture = capture(headers, page, making, what=f"{title} map", number=5)
            files["capture"] = self._file("capture", picture, "capture")
        ordered = [files["report"], *(of for role, of in files.items() if role != "report")]
        self.job.record.facts["objects"] = facts_of(ordered)
        report(6)
        expected = ExpectedFindings(
            folder=self.job.request.folder,
            files=files,
            headers=headers,
            making=making,
            kind=finding_of(self.task.model),
            findings=findings,
            organs=organs,
            page=None if page is None else page.pixels,
            is_3d=self.is_3d,
        )
        return FindingResult(ordered, expected, self.job, self.task, self.seen)

    @property
    def is_3d(self) -> bool:
        return self.job.request.output.report == "3d"

    def _file(self, role: Role, elements: Elements, kind: ObjectKind) -> File:
        folder, name = self.job.request.folder, f"{role.replace(' ', '-')}.dcm"
        return written(folder, name, elements, kind, is_supplement=role in SUPPLEMENTS)

    def _segmentation(self, role: Role, regions: Sequence[Region], title: str, number: int) -> File:
        headers = self.task.layout.headers
        elements = segmentation(headers, regions, self.making, title, number)
        return self._file(role, elements, "segmentation")

    def _report(self, segmented: File | None) -> Elements:
        findings, headers = self.seen.findings, self.task.layout.headers
        if segmented is None:
            kind = finding_of(self.task.model)
            return report_of_absence(kind, headers, self._text(), self.making, is_3d=self.is_3d)
        if not self.is_3d:
            return report_on_outlines(findings, headers, self._text(), self.making)
        reference = Reference(segmented.sop_class_uid, segmented.instance_uid, segmented.series_uid)
        return report_on_segments(findings, reference, headers, self._text(), self.making)

    def _text(self) -> str:
        """The words of the report about the model, its threshold, and what was left out."""
        model, count, cut = self.task.model, len(self.seen.findings), self.seen.cut
        trained = str(getattr(model, "trained_on", "")) or "its model card says on what"
        sentences = [
            f"Model {model.name} {model.version}, trained on: {trained}.",
            f"A finding is what the model scores {threshold_of(model):.2f} or more; the score "
            "(Certainty of Finding) is an output of the model, no probability of a disease.",
        ]
        if count:
            sentences.append(f"Findings in this report: {count}.")
        else:
            sentences.append(
                "Nothing in this series reached that score. The model may overlook what is there."
            )
        if cut:
            sentences.append(f"Further findings with lower scores that were left out: {cut}.")
        return " ".join(sentences)

    def _note_unmarked(self) -> None:
        """Note the slices that the presentation state cannot hold, and so has no box on."""
        shown = set(places_shown(self.task.layout.headers, self.seen.findings))
        unmarked = {place for of in self.seen.findings for place in of.slices} - shown
        if unmarked:
            self.job.record.notes.append(
                f"{len(unmarked)} slices of findings have no marks: their stored values become HU "
                "in another way than those of the first finding"
            )

    def _key_objects(self) -> Elements:
        middles = dict.fromkeys(of.middle for of in self.seen.findings)
        label = finding_of(self.task.model).label
        return key_objects(
            [self.task.layout.headers[place] for place in middles],
            f"The slice in which each finding is largest, the highest score first ({label}).",
            self.making,
            what=f"{label} key images",
            number=4,
            first=self.task.layout.headers[0],
        )

    def _page(self) -> Page:
        layout, model = self.task.layout, self.task.model
        overview, organs = anatomy_map.Overview(self.seen.findings), self.seen.organs
        volume = ct.open_volume(layout, self.job.pixels)
        for place in range(len(volume)):
            overview.add(volume.read(place), None if organs is None else organs[place] > 0)
        counted = f"{len(self.seen.findings)} of a score of {threshold_of(model):.2f} or more"
        line = f"Model {model.name} {self.making.algorithm.full_version}; {counted}"
        if self.seen.cut:
            line += f"; {self.seen.cut} more of lower scores are not shown"
        return anatomy_map.page(overview, layout, f"{finding_of(model).label} map", line)
