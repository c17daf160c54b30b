"""Models that make scores: CT stacks, a score for each slice and one for the series.

The report holds the series and the highest slices; beside it lie a selection of the slices at or
above their threshold and a page of pictures, which a destination may do without.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from inference import ct
from inference.checks.score_checks import ExpectedScores, verify
from inference.dataset import Stack
from inference.errors import ModelLoadError, Reason, Unprocessable
from inference.families.family import Task
from inference.geometry import Layout, measure
from inference.model import Limits, Model, Scored, Scores, Step
from inference.previews import Previews
from inference.request import File, Progress
from inference.results.captures import capture
from inference.results.derived import record_of
from inference.results.score_page import score_page, shown_slices
from inference.results.score_reports import (
    CAPTURE_NUMBER,
    DIGITS,
    SERIES_OF_REPORT,
    ScoredStack,
    score_report,
    score_selection,
)
from inference.results.writing import facts_of, making_of, written
from inference.runner import Run, Runner, check_scores, check_whole, share_cores

MOST_VOXELS = 1 << 27  # 512 slices of 512 x 512: all are in memory at once
REPORT, SELECTION, CAPTURE = "report.dcm", "key-objects.dcm", "capture.dcm"


class ScoreFamily:
    """Scores CT stacks; keeps nothing between two jobs."""

    def examined(self, job: Run, stack: Stack) -> Layout:
        """The layout; where its slices lie stays in the record, whatever becomes of the job."""
        measured = measure(stack)
        if measured is not None:
            job.record.facts |= record_of((), measured)
        return ct.examine(stack, job.request.output)

    def planned(self, job: Run, model: Model, layout: Layout) -> Sequence[Step]:
        """The steps of the model, which need every slice once."""
        if not isinstance(getattr(model, "scored", None), Scored):
            raise ModelLoadError(f"model {model.name} does not say what its scores are of")
        ct.check_stated(model, layout, job.request.output)
        geometry = layout.geometry
        voxels = len(geometry) * geometry.rows * geometry.columns
        if voxels > MOST_VOXELS:
            sentence = (
                f"The stack has {voxels / 1e6:.0f} million pixels; at most "
                f"{MOST_VOXELS / 1e6:.0f} million are scored."
            )
            raise Unprocessable(Reason.TOO_LARGE, sentence)
        steps = tuple(model.plan(geometry, job.request.parameters))
        check_whole(steps, len(geometry))
        if len(steps) != 1:
            raise ModelLoadError(f"model {model.name} scores a stack in {len(steps)} steps, not 1")
        return steps

    def made(self, job: Run, task: Task) -> "ScoreResult":
        """Run the model, and write its scores unless a person should look first."""
        scores, doubts = _predicted(job, task)
        doubts += ct.stated_doubts(task.model, task.layout, job.request.output)
        if doubts:
            sentence = (
                f"A person should look at this series: {'; '.join(doubts)}. No score was sent, "
                "which says nothing about the patient. Send a series that is in the scope of the "
                "model, or cancel the job."
            )
            raise Unprocessable(Reason.LOW_CONFIDENCE, sentence)
        model = task.model
        stack = ScoredStack(
            task.layout.headers, scores, scored_by(model), str(getattr(model, "trained_on", ""))
        )
        job.record.facts["scores"] = _facts(stack)
        with job.record.phase("writing"):
            return _written(job, task, stack)


@dataclass(frozen=True, eq=False)
class ScoreResult:
    """A report, a selection where there is one to make, and a page, on disk."""

    files: Sequence[File]
    expected: ExpectedScores
    job: Run
    task: Task

    def faults(self) -> tuple[str, ...]:
        """Everything that is wrong with the files."""
        report = self.job.reporting("checking", len(self.files))
        report(0)
        faults = verify(self.expected)
        report(len(self.files))
        return faults

    def preview(self) -> Sequence[str]:
        """Write the received slices, those that have one with the map of what was used."""
        volume = ct.open_volume(self.task.layout, self.job.pixels)
        pictures = Previews(self.job.request.folder, self.task.layout, (), volume.read)
        pictures.heat(self.expected.stack.scores.heat)
        return pictures.finish()


def scored_by(model: Model) -> Scored:
    """The thing that the scores of a model are of."""
    scored = getattr(model, "scored", None)
    assert isinstance(scored, Scored)  # the plan of the job has looked
    return scored


def _predicted(job: Run, task: Task) -> tuple[Scores, list[str]]:
    """The scores, and what the model itself doubts."""
    resources = job.request.resources
    volume = ct.open_volume(task.layout, job.pixels)
    # A stack takes a second or two: threads that wait for one another on a busy machine cost more.
    share_cores(task.model, 1)
    runner = Runner(task.model, volume, Limits(task.device, resources.batch), check=check_scores)
    job.report(Progress("predicting", 0, len(volume)))
    with job.record.phase("predicting"):
        ((_, prediction),) = runner.predictions(task.steps, cancelled=job.cancelled)
    job.report(Progress("predicting", len(volume), len(volume)))
    job.record.facts |= {k: v for k, v in prediction.record.items() if k != "doubts"}
    job.record.facts |= {"device": runner.limits.device, "limits": asdict(runner.limits)}
    job.record.notes += [f"out of memory: continued with {rung}" for rung in runner.lowered]
    assert prediction.scores is not None  # it was checked
    doubts = prediction.record.get("doubts")
    texts = [str(text) for text in doubts] if isinstance(doubts, list | tuple) else []
    return prediction.scores, texts


def _facts(stack: ScoredStack) -> Mapping[str, object]:
    """For the page, and for whoever reads the record: every score, in the order of the slices."""
    scores, scored = stack.scores, stack.scored
    return {
        "label": scored.label,
        "series": round(scores.series, DIGITS),
        "series_threshold": round(scores.series_threshold, DIGITS),
        "is_present": scores.is_present,
        "slices": [round(float(score), DIGITS) for score in scores.slices],
        "slice_threshold": round(scores.slice_threshold, DIGITS),
        "high_slices": list(scores.high_slices),
        "map_slices": sorted(scores.heat),
        "map_words": scored.map_words,
        "is_series_calibrated": scored.is_series_calibrated,
        "is_slice_calibrated": scored.is_slice_calibrated,
    }


def _written(job: Run, task: Task, stack: ScoredStack) -> ScoreResult:
    """All results in the folder of the request."""
    folder, making = job.request.folder, making_of(job, task, SERIES_OF_REPORT)
    report = job.reporting("writing", 3)
    files = [written(folder, REPORT, score_report(stack, making), "report")]
    report(1)
    selection = score_selection(stack, making)
    if selection is not None:
        files.append(written(folder, SELECTION, selection, "key objects", is_supplement=True))
    report(2)
    volume = ct.open_volume(task.layout, job.pixels)
    page = score_page(stack, task.layout.geometry, volume.read, making)
    shown = [stack.headers[index] for index in shown_slices(stack)]
    elements = capture(
        shown,
        page,
        making,
        what=f"{stack.scored.label} score page",
        number=CAPTURE_NUMBER,
        first=stack.headers[0],
    )
    files.append(written(folder, CAPTURE, elements, "capture", is_supplement=True))
    report(3)
    job.record.facts["objects"] = facts_of(files)
    expected = ExpectedScores(
        folder,
        stack,
        making,
        REPORT,
        page.pixels,
        CAPTURE,
        shown,
        SELECTION if selection is not None else "",
    )
    return ScoreResult(files, expected, job, task)
