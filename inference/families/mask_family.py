"""Models that make a mask: MR stacks, one mask for all slices, and the two results made of it.

The segmentation holds the mask itself, the extracted series the source without what lies outside.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from inference import mr
from inference.checks.mask_checks import ExpectedMask, verify
from inference.dataset import Stack
from inference.errors import ModelLoadError, Reason, Unprocessable
from inference.families.family import Task
from inference.geometry import Layout, measure
from inference.header import text_of
from inference.model import Limits, Model, Segment, Step
from inference.previews import Previews
from inference.request import File, Progress
from inference.results.derived import Planned, record_of
from inference.results.segmentation import region_of, segmentation
from inference.results.stripped import EXTRACTED_SERIES, stripped_slices
from inference.results.writing import facts_of, making_of, written
from inference.runner import Run, Runner, check_mask, check_whole
from inference.volume import Volume

MOST_VOXELS = 1 << 27  # 512 slices of 512 x 512: all are in memory at once
SEGMENTATION = "segmentation.dcm"
GREYS_PERCENT = 0.5, 99.5  # of the values of a volume: what a preview shows as black and white

Mask = NDArray[np.bool_]


class MaskFamily:
    """Extracts what a mask shows from MR stacks; keeps nothing between two jobs."""

    def examined(self, job: Run, stack: Stack) -> Layout:
        """The layout; where its slices lie stays in the record, whatever becomes of the job."""
        measured = measure(stack)
        if measured is not None:
            job.record.facts |= record_of((), measured)
        return mr.examine(stack)

    def planned(self, job: Run, model: Model, layout: Layout) -> Sequence[Step]:
        """The steps of the model, which need every slice once."""
        if not isinstance(getattr(model, "segment", None), Segment):
            raise ModelLoadError(f"model {model.name} does not say what its mask shows")
        geometry = layout.geometry
        voxels = len(geometry) * geometry.rows * geometry.columns
        if voxels > MOST_VOXELS:
            sentence = (
                f"The stack has {voxels / 1e6:.0f} million pixels; a mask is made of at most "
                f"{MOST_VOXELS / 1e6:.0f} million."
            )
            raise Unprocessable(Reason.TOO_LARGE, sentence)
        steps = tuple(model.plan(geometry, job.request.parameters))
        check_whole(steps, len(geometry))
        return steps

    def made(self, job: Run, task: Task) -> "MaskResult":
        """Run the model, and write its mask unless a person should look first."""
        mask, doubts = _predicted(job, task)
        doubts = [*_weighting_doubts(task.layout), *doubts]
        if doubts:
            sentence = (
                f"A person should look at this series: {'; '.join(doubts)}. Nothing was sent. "
                "Send a series that is in the scope of the model, or cancel the job."
            )
            raise Unprocessable(Reason.LOW_CONFIDENCE, sentence)
        with job.record.phase("writing"):
            return _written(job, task, mask)


@dataclass(frozen=True, eq=False)
class MaskResult:
    """A segmentation and an extracted series, on disk."""

    files: Sequence[File]
    expected: ExpectedMask
    job: Run
    task: Task

    def faults(self) -> tuple[str, ...]:
        """Everything that is wrong with the files."""
        report = self.job.reporting("checking", len(self.files))
        report(0)
        faults = verify(self.expected, self.job.pixels)
        report(len(self.files))
        return faults

    def preview(self) -> Sequence[str]:
        """Write the received slices, each with the outline of its mask."""
        layout, segment = self.task.layout, segment_of(self.task.model)
        volume = mr.open_volume(layout, self.job.pixels)
        greys = _greys(volume)
        images = [file for file in self.files if file.kind == "image"]
        slices = [
            Planned(file.instance_uid, number, layout.geometry.positions[base], base, (base,))
            for base, (file, number) in enumerate(zip(images, self.expected.numbers, strict=True))
        ]
        pictures = Previews(
            self.job.request.folder, layout, slices, lambda index: greys.shown(volume.read(index))
        )
        pictures.outline(self.expected.mask, segment.label)
        return pictures.finish()


def segment_of(model: Model) -> Segment:
    """The thing that the mask of a model shows."""
    segment = getattr(model, "segment", None)
    assert isinstance(segment, Segment)  # the plan of the job has looked
    return segment


def _weighting_doubts(layout: Layout) -> list[str]:
    return [*dict.fromkeys(filter(None, map(mr.weighting_doubt, layout.headers)))]


def _predicted(job: Run, task: Task) -> tuple[Mask, list[str]]:
    """(slices, rows, columns), and what the model itself doubts."""
    geometry, resources = task.layout.geometry, job.request.resources
    volume = mr.open_volume(task.layout, job.pixels)
    limits = Limits(task.device, resources.batch)
    runner = Runner(task.model, volume, limits, check=check_mask)
    mask = np.zeros((len(geometry), geometry.rows, geometry.columns), bool)
    doubts: list[str] = []
    job.report(Progress("predicting", 0, len(geometry)))
    with job.record.phase("predicting"):
        for step, prediction in runner.predictions(task.steps, cancelled=job.cancelled):
            for index, plane in zip(step.needs, prediction.planes, strict=True):
                mask[index] = plane > 0
            job.record.facts |= {k: v for k, v in prediction.record.items() if k != "doubts"}
            doubts += _texts(prediction.record.get("doubts"))
            job.report(Progress("predicting", int(max(step.needs)) + 1, len(geometry)))
    job.record.facts |= {
        "device": runner.limits.device,
        "limits": asdict(runner.limits),
        "mask": _facts(mask, task),
    }
    job.record.notes += [f"out of memory: continued with {rung}" for rung in runner.lowered]
    return mask, doubts


def _texts(value: object) -> list[str]:
    return [str(text) for text in value] if isinstance(value, list | tuple) else []


def _facts(mask: Mask, task: Task) -> Mapping[str, object]:
    """For the page: what the mask shows, in how many slices, and its volume."""
    geometry = task.layout.geometry
    area_mm2 = geometry.pixel_spacing[0] * geometry.pixel_spacing[1]
    volume = float(mask.sum()) * area_mm2 * task.layout.gap_mm
    return {
        "label": segment_of(task.model).label,
        "slices": int(mask.any(axis=(1, 2)).sum()),
        "volume_cm3": round(volume / 1000.0, 1),
    }


def _written(job: Run, task: Task, mask: Mask) -> MaskResult:
    """Both results in the folder of the request."""
    folder, headers = job.request.folder, task.layout.headers
    making, segment = making_of(job, task, EXTRACTED_SERIES), segment_of(task.model)
    stored = [job.pixels.stored(header) for header in headers]
    report = job.reporting("writing", len(headers) + 1)
    files, numbers = [], []
    slices = stripped_slices(headers, stored, mask, making, segment.label)
    for place, elements in enumerate(slices, start=1):
        name = f"{place:05d}.dcm"
        files.append(written(folder, name, elements))
        numbers.append(int(text_of(elements, "InstanceNumber")))
        report(place)
    elements = segmentation(headers, [region_of(segment, mask)], making, segment.label)
    files.append(written(folder, SEGMENTATION, elements, "segmentation"))
    job.record.facts["objects"] = facts_of(files[-1:])
    report(len(files))
    names = [file.name for file in files[:-1]]
    expected = ExpectedMask(folder, SEGMENTATION, names, headers, segment, mask, making, numbers)
    return MaskResult(files, expected, job, task)


@dataclass(frozen=True)
class _Greys:
    """The values of a volume that a preview shows, as if they were soft tissue in HU."""

    black: float
    white: float

    def shown(self, plane: NDArray[np.float32]) -> NDArray[np.float32]:
        share = (plane - self.black) / max(self.white - self.black, 1e-6)
        return np.asarray(-160.0 + 400.0 * share.clip(0.0, 1.0), np.float32)


def _greys(volume: Volume) -> _Greys:
    some: Iterable[int] = range(0, len(volume), max(1, len(volume) // 16))
    values = np.concatenate([volume.read(index)[::4, ::4].ravel() for index in some])
    black, white = np.percentile(values, GREYS_PERCENT)
    return _Greys(float(black), float(white))
