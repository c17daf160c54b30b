"""The report of a demo: generated slices beside the true ones, as one page with its pictures."""

import re
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pydicom import Dataset

from inference.previews import DIFFERENCE_HU, DisplayWindow, difference, page, uri
from node.second_opinion import Check, Hounsfield, ImageSeries

LEAST_HU, MOST_HU = -1024.0, 2048.0  # the window of the figures
TOLERANCE_DB = 0.02  # rounding to stored values costs a linear slice no more than this


@dataclass(frozen=True)
class ComparedSlice:
    """One acquired slice that the node never saw, and what was made in its place."""

    height_mm: float
    generated_db: float
    linear_db: float
    true: Hounsfield = field(repr=False, compare=False)

    @property
    def gain_db(self) -> float:
        """Gain over linear interpolation."""
        return self.generated_db - self.linear_db


@dataclass(frozen=True)
class Comparison:
    """Every acquired slice against the generated one at its place."""

    slices: tuple[ComparedSlice, ...]
    acquired: int

    @property
    def generated_db(self) -> float:
        """Mean PSNR of the generated slices."""
        return statistics.fmean(slice_.generated_db for slice_ in self.slices)

    @property
    def linear_db(self) -> float:
        """Mean PSNR of linear interpolation at the same places."""
        return statistics.fmean(slice_.linear_db for slice_ in self.slices)

    @property
    def gain_db(self) -> float:
        return self.generated_db - self.linear_db

    @property
    def closer(self) -> int:
        """Number of places where the generated slice is closer to the truth."""
        return sum(slice_.gain_db > 0.0 for slice_ in self.slices)

    @property
    def typical(self) -> ComparedSlice:
        """The place whose gain is the median: neither the best nor the worst to show."""
        return sorted(self.slices, key=lambda slice_: slice_.gain_db)[len(self.slices) // 2]

    def check(self, *, must_gain: bool) -> Check:
        """The row of the table: all compared, and better than linear, or as good where it is."""
        least = 0.0 if must_gain else -TOLERANCE_DB
        ok = bool(self.slices) and len(self.slices) == self.acquired and self.gain_db > least
        figures = f"{len(self.slices)} of {self.acquired} acquired slices could be compared"
        if self.slices:
            figures = (
                f"{self.generated_db:.2f} dB against {self.linear_db:.2f} dB, closer at "
                f"{self.closer} of {self.acquired} places"
            )
        relation = "Closer to the truth" if must_gain else "No worse"
        return Check(f"{relation} than linear interpolation", ok, figures)


def compare(received: ImageSeries, derived: ImageSeries, acquired: ImageSeries) -> Comparison:
    """The figures for each acquired slice between two received ones."""
    compared = []
    for slice_, height in zip(acquired.slices, map(float, acquired.heights_mm), strict=True):
        generated, true = derived.at(height), slice_.hounsfield()
        if generated is not None and received.at(height) is None:
            generated_db = psnr(derived.slices[generated].hounsfield(), true)
            linear_db = psnr(linear(received, height), true)
            compared.append(ComparedSlice(height, generated_db, linear_db, true))
    return Comparison(tuple(compared), len(acquired))


def linear(received: ImageSeries, height_mm: float) -> Hounsfield:
    """A blend of the two received neighbours of that height, as a viewer shows it."""
    below, above = neighbours(received, height_mm)
    start, end = received.heights_mm[below], received.heights_mm[above]
    share = (height_mm - start) / (end - start)
    lower, upper = (received.slices[index].hounsfield() for index in (below, above))
    blend: Hounsfield = (1.0 - share) * lower + share * upper
    return blend


def neighbours(received: ImageSeries, height_mm: float) -> tuple[int, int]:
    """The indices of the received slices below and above a height between them."""
    above = int(np.searchsorted(received.heights_mm, height_mm))
    return above - 1, above


def psnr(plane: Hounsfield, true: Hounsfield) -> float:
    """Peak signal-to-noise ratio in dB over the window; infinite for equal slices."""
    error = np.clip(plane, LEAST_HU, MOST_HU) - np.clip(true, LEAST_HU, MOST_HU)
    squared = float(np.mean(error**2))
    return float(10.0 * np.log10((MOST_HU - LEAST_HU) ** 2 / squared)) if squared else float("inf")


Volume = NDArray[np.int16]  # (slices, rows, columns) HU

TEMPLATE = Path(__file__).with_name("report.html")
PAPER, INK, QUIET = (13, 17, 23), (236, 239, 244), (148, 160, 178)
REFORMAT_PIXELS = 900
VIEWER_PIXELS = 448
CHART = (920, 230)  # width and height in its own units
STRIP_HEIGHT = 90  # of the strip of confidence
MARGIN = (44, 16, 14, 30)  # left, top, right, bottom
# In the Derivation Description of a generated slice.
STATED_CONFIDENCE = re.compile(r"expected error (\d+) HU, confidence ([01]\.\d+)")


@dataclass(frozen=True)
class Reformat:
    """A plane across the slices: where it lies, and which part of it is shown (pixels)."""

    name: str
    along: Literal["rows", "columns"]  # what runs from left to right
    at: int
    first: int
    last: int
    window: DisplayWindow


LUNG = DisplayWindow(-500.0, 1500.0)
MEDIASTINUM = DisplayWindow(60.0, 700.0)
# Chosen for the demonstration series: through aorta and spine, and through the lung vessels.
SAGITTAL = Reformat("Sagittal", "rows", 256, 88, 446, MEDIASTINUM)
CORONAL = Reformat("Coronal", "columns", 294, 12, 500, LUNG)
AXIAL_BOX = (0, 82, 512, 462)  # left, top, right, bottom: the patient, without the table below


def reformat(series: ImageSeries, volume: Volume, cut: Reformat, width: int) -> Image.Image:
    """A cut, `width` pixels wide; each slice is as thick as its gap, nothing is smoothed between.

    The patient's head is up. It reaches from the middle of the first slice to that of the last, so
    that cuts of the received and of the derived series show exactly the same place.
    """
    between_rows, between_columns = series.pixel_spacing_mm
    if cut.along == "rows":
        plane, spacing = volume[::-1, cut.first : cut.last, cut.at], between_rows
    else:
        plane, spacing = volume[::-1, cut.at, cut.first : cut.last], between_columns
    per_mm = width / ((cut.last - cut.first) * spacing)
    height = round(float(np.ptp(series.heights_mm)) * per_mm)
    wide = Image.fromarray(cut.window.grey(plane)).resize(
        (width, len(series)), Image.Resampling.BICUBIC
    )
    inner = (0, 0.5, width, len(series) - 0.5)
    return wide.resize((width, height), Image.Resampling.NEAREST, box=inner)


def axial(plane: NDArray[np.generic], window: DisplayWindow) -> Image.Image:
    """One slice, cropped to the patient."""
    return Image.fromarray(window.grey(plane)).crop(AXIAL_BOX)


def before_after(received: ImageSeries, derived: ImageSeries, width: int = 1200) -> Image.Image:
    """Received and derived side by side, in two cuts: one picture that needs no words."""
    gutter, bar, foot = 14, 50, 34
    column_width = (width - 3 * gutter) // 2
    columns = (("Received", received, gutter), ("Derived", derived, 2 * gutter + column_width))
    cuts = {}
    for _, series, left in columns:
        volume = series.volume()
        cuts[left] = [reformat(series, volume, cut, column_width) for cut in (SAGITTAL, CORONAL)]
    heights = [picture.height for picture in cuts[gutter]]
    sheet = Image.new("RGB", (width, bar + sum(heights) + gutter + foot), PAPER)
    draw = ImageDraw.Draw(sheet)
    for name, series, left in columns:
        top = bar
        for picture in cuts[left]:
            sheet.paste(picture, (left, top))
            top += picture.height + gutter
        title = f"{name}: {len(series)} slices, {series.gap_mm:g} mm apart"
        draw.text((left, bar / 2), title, INK, ImageFont.load_default(22), anchor="lm")
    credit = "LIDC-IDRI-0001, The Cancer Imaging Archive, CC BY 3.0. Not for diagnosis."
    place = (gutter, sheet.height - foot / 2)
    draw.text(place, credit, QUIET, ImageFont.load_default(15), anchor="lm")
    return sheet


def save_small(picture: Image.Image, path: Path) -> None:
    """As a PNG of 128 colours: grey needs no more, and a page loads at once."""
    few = picture.convert("P", palette=Image.Palette.ADAPTIVE, colors=128)
    few.save(path, "PNG", optimize=True)


@dataclass(frozen=True)
class TimelinePhase:
    """One bar of the timeline; seconds since the first slice was stored."""

    name: str
    words: str
    start: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass(frozen=True, eq=False)
class DemoResult:
    """Everything that the report shows."""

    at: datetime
    received: ImageSeries
    derived: ImageSeries
    acquired: ImageSeries  # held back from the node
    comparison: Comparison
    checks: tuple[Check, ...]
    phases: tuple[TimelinePhase, ...]
    model: str
    pacs: str
    machine: str
    folder: Path  # where the derived series lies as the PACS returned it
    licence: str

    @property
    def faults(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if not check.ok)

    def summary(self) -> str:
        """A sentence for the terminal: how many slices, and how near to the truth."""
        compared, text = self.comparison, f"{len(self.received)} slices became {len(self.derived)}."
        if compared.slices:
            text += (
                f" Against the {compared.acquired} slices that were held back: "
                f"{compared.generated_db:.2f} dB, linear interpolation "
                f"{compared.linear_db:.2f} dB."
            )
        return text

    def facts(self) -> dict[str, object]:
        """Facts for programs."""
        compared, decibels = self.comparison, {}
        if compared.slices:
            figures = {"generated": compared.generated_db, "linear": compared.linear_db}
            decibels = {name: round(figure, 3) for name, figure in figures.items()}
        return {
            "derived": str(self.folder),
            "derived_series_uid": self.derived.series_uid,
            "received": len(self.received),
            "slices": len(self.derived),
            "model": self.model,
            "pacs": self.pacs,
            "psnr_db": decibels,
        }

    def write(self, folder: Path) -> Path:
        """Write the page, and the picture of the README."""
        page = folder / "report.html"
        write(self, page)
        save_small(before_after(self.received, self.derived), folder / "before-after.png")
        return page


def write(result: DemoResult, path: Path) -> None:
    """Render the page to `path`."""
    everything = ImageSeries.of([*result.received.slices, *result.acquired.slices])
    shown = {"received": result.received, "derived": result.derived, "acquired": everything}
    volumes = {name: series.volume() for name, series in shown.items()}
    context = {
        "result": result,
        "after_last": result.phases[-1].end - result.phases[0].end,
        "whole": result.phases[-1].end,
        "cuts": [_cut(shown, volumes, cut) for cut in (SAGITTAL, CORONAL)],
        "acquired_gap_mm": everything.gap_mm,
        "gap": _gap(result) if result.comparison.slices else None,
        "stack": _stack(result, volumes["derived"]),
        "confidence": _confidence_strip(result.derived),
        "chart": _chart(result.comparison) if result.comparison.slices else None,
        "full_hu": DIFFERENCE_HU,
    }
    path.write_text(page(TEMPLATE, context), encoding="utf-8")


def _cut(
    shown: Mapping[str, ImageSeries], volumes: Mapping[str, Volume], cut: Reformat
) -> dict[str, object]:
    drawn = {
        name: uri(reformat(series, volumes[name], cut, REFORMAT_PIXELS))
        for name, series in shown.items()
    }
    return {"name": cut.name, "window": str(cut.window), **drawn}


def _gap(result: DemoResult) -> dict[str, object]:
    """The slice whose gain is the median, with its neighbours, its truth and both errors."""
    compared = result.comparison.typical
    below, above = neighbours(result.received, compared.height_mm)
    index = result.derived.at(compared.height_mm)
    assert index is not None
    generated = result.derived.slices[index].hounsfield()
    blend = linear(result.received, compared.height_mm)
    return {
        "slice": compared,
        "below_mm": float(result.received.heights_mm[below]),
        "above_mm": float(result.received.heights_mm[above]),
        "below": _axial(result.received.slices[below].hounsfield()),
        "above": _axial(result.received.slices[above].hounsfield()),
        "generated": _axial(generated),
        "true": _axial(compared.true),
        "error": _error(generated, compared.true),
        "linear_error": _error(blend, compared.true),
        "window": str(LUNG),
    }


def _axial(plane: Hounsfield) -> str:
    return uri(axial(plane, LUNG))


def _error(plane: Hounsfield, true: Hounsfield) -> str:
    return uri(difference(plane, true).crop(AXIAL_BOX))


def _stack(result: DemoResult, volume: Volume) -> list[dict[str, object]]:
    """Every slice of the derived series, feet to head, small enough to be scrolled."""
    return [
        {
            "picture": uri(_small(axial(plane, MEDIASTINUM)), quality=76),
            "place": f"{height:.2f} mm",
            "generated": result.received.at(float(height)) is None,
            "stated": _confidence(header),
        }
        for plane, height, header in zip(
            volume, result.derived.heights_mm, result.derived.headers, strict=True
        )
    ]


def _confidence(header: Dataset) -> dict[str, float] | None:
    """The confidence that the model states for a slice, as the PACS returned it."""
    stated = STATED_CONFIDENCE.search(str(header.get("DerivationDescription", "")))
    return stated and {"error_hu": float(stated[1]), "confidence": float(stated[2])}


def _confidence_strip(derived: ImageSeries) -> dict[str, object] | None:
    """A bar for each generated slice whose confidence is stated, feet to head."""
    stated = [
        (height, confidence)
        for height, header in zip(derived.heights_mm, derived.headers, strict=True)
        if (confidence := _confidence(header)) is not None
    ]
    if not stated:
        return None
    step = CHART[0] / len(stated)
    bars = [
        {
            "x": number * step,
            "height": STRIP_HEIGHT * slice_["confidence"],
            "words": f"{height:.2f} mm: confidence {slice_['confidence']:.2f}, "
            f"expected error {slice_['error_hu']:g} HU",
        }
        for number, (height, slice_) in enumerate(stated)
    ]
    values = [slice_["confidence"] for _, slice_ in stated]
    return {
        "width": CHART[0],
        "height": STRIP_HEIGHT,
        "step": step,
        "bars": bars,
        "least": min(values),
        "most": max(values),
        "error_hu": float(np.mean([slice_["error_hu"] for _, slice_ in stated])),
    }


def _small(picture: Image.Image) -> Image.Image:
    height = round(picture.height * VIEWER_PIXELS / picture.width)
    return picture.resize((VIEWER_PIXELS, height), Image.Resampling.LANCZOS)


def _chart(comparison: Comparison) -> dict[str, object]:
    """A dumbbell for each compared slice: linear interpolation and the generated slice, in dB."""
    width, height = CHART
    left, top, right, bottom = MARGIN
    values = [
        v for compared in comparison.slices for v in (compared.generated_db, compared.linear_db)
    ]
    low, high = int(min(values)), int(max(values)) + 1
    step = (width - left - right) / len(comparison.slices)

    def y(decibel: float) -> float:
        return top + (high - decibel) / (high - low) * (height - top - bottom)

    every = max(1, round((high - low) / 5))
    labelled = max(1, len(comparison.slices) // 6)
    return {
        "width": width,
        "height": height,
        "left": left,
        "right": width - right,
        "bottom": height - bottom,
        "lines": [{"y": y(db), "label": str(db)} for db in range(low, high + 1, every)],
        "dots": [
            {
                "x": left + (number + 0.5) * step,
                "generated": y(compared.generated_db),
                "linear": y(compared.linear_db),
                "slice": compared,
                "label": f"{compared.height_mm:g}" if number % labelled == 0 else "",
            }
            for number, compared in enumerate(comparison.slices)
        ],
        "mean": {"generated": y(comparison.generated_db), "linear": y(comparison.linear_db)},
    }
