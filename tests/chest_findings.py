"""A model of findings for tests, and the chests that it looks in: bright balls in two lungs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from inference.model import Finding, Limits, Parameters, Prediction, Produces, Segment, Step, Window
from inference.volume import Geometry
from tests.phantoms import Series, dataset, raw_pixels, save

STRUCTURE = ("123037004", "SCT", "Anatomical Structure")
LUNG = ("39607008", "SCT", "Lung")
RIGHT, LEFT = ("24028007", "SCT", "Right"), ("7771000", "SCT", "Left")
LUNGS = (
    Segment("Right lung", STRUCTURE, LUNG, RIGHT),
    Segment("Left lung", STRUCTURE, LUNG, LEFT),
)
NODULE = Segment(
    "Nodule",
    ("49755003", "SCT", "Morphologically Abnormal Structure"),
    ("27925004", "SCT", "Nodule"),
    region=LUNG,
)
LUNG_HU, BALL_HU, BODY_HU = -850.0, 100.0, 40.0
Volume = NDArray[np.float64]  # (slices, rows, columns) HU


@dataclass(frozen=True)
class Ball:
    """A bright ball in a chest, by pixels; its brightness is its score."""

    slice: int
    row: int
    column: int
    radius: float = 3.0
    score: float = 0.9


CHEST = Series(slices=16, spacing_mm=2.0, thickness_mm=2.0, rows=60, columns=80)
BALLS = (Ball(5, 30, 22), Ball(9, 34, 58, 4.0, 0.7))


def hounsfield(series: Series, balls: Sequence[Ball]) -> Volume:
    """Two lungs in a body, with balls in them: each is as bright as its score says."""
    shape = len(series.places_mm), series.rows, series.columns
    z, y, x = np.ogrid[tuple(map(slice, shape))]
    u, v = (x + 0.5) / shape[2] * 2 - 1, (y + 0.5) / shape[1] * 2 - 1
    volume = np.full(shape, -1000.0)
    volume[np.broadcast_to(u**2 / 0.95**2 + v**2 / 0.9**2 < 1, shape)] = BODY_HU
    for side in (-0.45, 0.45):
        lung = (u - side) ** 2 / 0.38**2 + v**2 / 0.7**2 < 1
        volume[np.broadcast_to(lung, shape)] = LUNG_HU
    for ball in balls:
        squares = (z - ball.slice) ** 2 + (y - ball.row) ** 2 + (x - ball.column) ** 2
        volume[np.broadcast_to(squares < ball.radius**2, shape)] = BALL_HU * ball.score
    return volume


def write(
    folder: Path,
    balls: Sequence[Ball] = BALLS,
    series: Series = CHEST,
) -> list[Path]:
    """A chest, one file a slice, in the order of positions; the series' edit has the last word."""
    folder.mkdir(parents=True, exist_ok=True)
    volume, pixels, paths = hounsfield(series, balls), series.pixels, []
    for index, plane in enumerate(volume):
        if index in series.missing:
            continue
        made = dataset(replace(series, edit=None), index)
        values = np.rint((plane - pixels.intercept) / pixels.slope)
        if pixels.photometric == "MONOCHROME1":
            values = pixels.least + pixels.most - values
        made.PixelData = raw_pixels(values.astype(np.int64), made.BitsAllocated)
        if series.edit is not None:
            series.edit(made, index)
        paths.append(folder / f"{index:04d}.dcm")
        save(paths[-1], made, series.transfer_syntax)
    return paths


class Balls:
    """A site's own model: what is bright and lies inside a lung of one brightness."""

    name = "balls"
    version = "0.1"
    weights_sha256 = ""
    produces: Produces = "findings"
    finding = NODULE
    segments: tuple[Segment, ...] = LUNGS
    threshold = 0.5
    operating_point = "threshold=0.50"
    trained_on = "nothing, it is a rule"

    def plan(self, geometry: Geometry, parameters: Parameters) -> Sequence[Step]:
        return [Step(tuple(range(len(geometry))))]

    def run(self, step: Step, slices: Window, limits: Limits) -> Prediction:
        volume = np.stack([slices.slices[index] for index in step.needs])
        middle = volume.shape[2] // 2
        lungs = (volume > -900) & (volume < -700)
        lungs = np.stack(
            [ndimage.binary_closing(np.pad(p, 9), iterations=8)[9:-9, 9:-9] for p in lungs]
        )
        organs = lungs * np.where(np.arange(volume.shape[2]) < middle, 1, 2)
        return Prediction(
            planes=tuple(organs.astype(np.float32)),
            findings=tuple(self.findings(volume, organs, slices.geometry)),
        )

    def findings(
        self, volume: Volume, organs: NDArray[np.int64], geometry: Geometry
    ) -> list[Finding]:
        labels, _ = ndimage.label((volume > 0) & (organs > 0))
        found = []
        for number, block in enumerate(ndimage.find_objects(labels), start=1):
            mask = labels[block] == number
            score = float(volume[block][mask].mean()) / BALL_HU
            if score >= self.threshold:
                first = tuple(int(side.start) for side in block)
                side = int(np.median(organs[block][mask]))
                found.append(
                    _measured(mask, first, min(score, 1.0), ("right", "left")[side - 1], geometry)
                )
        return sorted(found, key=lambda finding: -finding.score)


def _measured(
    mask: NDArray[np.bool_], first: tuple[int, ...], score: float, site: str, geometry: Geometry
) -> Finding:
    slices, rows, columns = mask.shape
    sides = sorted((rows * geometry.pixel_spacing[0], columns * geometry.pixel_spacing[1]))
    area = geometry.pixel_spacing[0] * geometry.pixel_spacing[1]
    volume = float(mask.sum()) * area * float(np.median(geometry.gaps_mm))
    return Finding(score, (first[0], first[1], first[2]), mask, sides[1], sides[0], volume, site)


class Overlapping(Balls):
    """Finds each ball twice, the second time one column further."""

    def run(self, step: Step, slices: Window, limits: Limits) -> Prediction:
        made = super().run(step, slices, limits)
        doubled = []
        for finding in made.findings:
            slice_, row, column = finding.first
            doubled += [finding, replace(finding, first=(slice_, row, column + 1), site="")]
        return replace(made, findings=tuple(doubled))


class Sideless(Balls):
    """Looks in both lungs as one, and tells no sides."""

    segments = (Segment("Lungs", STRUCTURE, LUNG),)

    def run(self, step: Step, slices: Window, limits: Limits) -> Prediction:
        made = super().run(step, slices, limits)
        return Prediction(
            planes=tuple((plane > 0).astype(np.float32) for plane in made.planes),
            findings=tuple(replace(finding, site="") for finding in made.findings),
        )


class Mirrored(Balls):
    """Takes the left for the right."""

    segments = LUNGS[::-1]


class Opposite(Balls):
    """Says of one finding that it is on the other side."""

    def run(self, step: Step, slices: Window, limits: Limits) -> Prediction:
        made = super().run(step, slices, limits)
        first, *others = made.findings
        return replace(made, findings=(replace(first, site="left"), *others))


class Doubting(Balls):
    """Is not sure of anything."""

    def run(self, step: Step, slices: Window, limits: Limits) -> Prediction:
        record = {"doubts": ["one lung has 0.4 L, under a quarter of the other"]}
        return replace(super().run(step, slices, limits), record=record)


class _Odd(Balls):
    """Finds the balls, and then says something of the best one that cannot be."""

    def run(self, step: Step, slices: Window, limits: Limits) -> Prediction:
        made = super().run(step, slices, limits)
        first, *others = made.findings
        return replace(made, findings=(self.odd(first), *others))

    def odd(self, finding: Finding) -> Finding:
        raise NotImplementedError


class Outside(_Odd):
    def odd(self, finding: Finding) -> Finding:
        return replace(finding, first=(CHEST.slices - 1, 0, 0))


class Certain(_Odd):
    def odd(self, finding: Finding) -> Finding:
        return replace(finding, score=1.5)


class Endless(_Odd):
    def odd(self, finding: Finding) -> Finding:
        return replace(finding, long_axis_mm=float("nan"))


class Empty(_Odd):
    def odd(self, finding: Finding) -> Finding:
        return replace(finding, mask=finding.mask & False)


class Elsewhere(_Odd):
    def odd(self, finding: Finding) -> Finding:
        return replace(finding, site="liver")


class Unsorted(Balls):
    def run(self, step: Step, slices: Window, limits: Limits) -> Prediction:
        made = super().run(step, slices, limits)
        return replace(made, findings=made.findings[::-1])


class Third(Balls):
    """Has an organ too many."""

    def run(self, step: Step, slices: Window, limits: Limits) -> Prediction:
        made = super().run(step, slices, limits)
        return replace(made, planes=tuple(plane + (plane == 2) for plane in made.planes))


class Halves(Balls):
    def run(self, step: Step, slices: Window, limits: Limits) -> Prediction:
        made = super().run(step, slices, limits)
        return replace(made, planes=tuple(plane / np.float32(2) for plane in made.planes))


class Blind(Balls):
    """Sees no lung, so that it finds nothing."""

    def run(self, step: Step, slices: Window, limits: Limits) -> Prediction:
        made = super().run(step, slices, limits)
        return Prediction(planes=tuple(np.zeros_like(plane) for plane in made.planes))


class Unstorable(_Odd):
    """Puts what no page can hold into the record of a finding."""

    def odd(self, finding: Finding) -> Finding:
        return replace(finding, record={"density": np.float32(30.0)})


class Kindless(Balls):
    finding = None  # type: ignore[assignment]


class Open(Balls):
    threshold = 2.0


class Stepwise(Balls):
    def plan(self, geometry: Geometry, parameters: Parameters) -> Sequence[Step]:
        middle = len(geometry) // 2
        return [Step(tuple(range(middle))), Step(tuple(range(middle, len(geometry))))]
