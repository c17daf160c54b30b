"""Writes the report of a demo run: one page that needs nothing but itself."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import jinja2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset

from node.demo import pictures
from node.demo.pictures import CORONAL, LUNG, MEDIASTINUM, SAGITTAL, Cut, Window
from node.demo.series import Hounsfield, Series
from node.demo.truth import Comparison, Place, linear, neighbours
from node.demo.verify import Check

Stored = NDArray[np.int16]  # (slices, rows, columns) HU

FOLDER = Path(__file__).parent
REFORMAT_PIXELS = 900
VIEWER_PIXELS = 448
CHART = (920, 230)  # width and height in its own units
STRIP_HEIGHT = 90  # of the strip of confidence
MARGIN = (44, 16, 14, 30)  # left, top, right, bottom
# What a generated slice's Derivation Description says of it.
SAID = re.compile(r"expected error (\d+) HU, confidence ([01]\.\d+)")


@dataclass(frozen=True)
class Phase:
    """One bar of the timeline; seconds since the first slice was stored."""

    name: str
    words: str
    start: float
    end: float

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.start


@dataclass(frozen=True, eq=False)
class Story:
    """Everything that the report tells."""

    at: datetime
    received: Series
    derived: Series
    acquired: Series  # what was held back
    comparison: Comparison
    checks: tuple[Check, ...]
    phases: tuple[Phase, ...]
    model: str
    pacs: str
    machine: str
    folder: Path  # where the derived series lies as the PACS returned it
    licence: str

    @property
    def faults(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if not check.ok)


def write(story: Story, path: Path) -> None:
    """Render the page to `path`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    everything = Series.of([*story.received.instances, *story.acquired.instances])
    shown = {"received": story.received, "derived": story.derived, "acquired": everything}
    volumes = {name: series.volume() for name, series in shown.items()}
    page = environment.get_template("report.html").render(
        story=story,
        after_last=story.phases[-1].end - story.phases[0].end,
        whole=story.phases[-1].end,
        cuts=[_cut(shown, volumes, cut) for cut in (SAGITTAL, CORONAL)],
        acquired_gap_mm=everything.gap_mm,
        gap=_gap(story) if story.comparison.places else None,
        stack=_stack(story, volumes["derived"]),
        sure=_sure(story.derived),
        chart=_chart(story.comparison) if story.comparison.places else None,
        full_hu=pictures.DIFFERENCE_HU,
    )
    path.write_text(page, encoding="utf-8")


def _cut(shown: Mapping[str, Series], volumes: Mapping[str, Stored], cut: Cut) -> dict[str, object]:
    drawn = {
        name: pictures.uri(pictures.reformat(series, volumes[name], cut, REFORMAT_PIXELS))
        for name, series in shown.items()
    }
    return {"name": cut.name, "window": _words(cut.window), **drawn}


def _gap(story: Story) -> dict[str, object]:
    """The place whose gain is the median, with its neighbours, its truth and both errors."""
    place = story.comparison.typical
    below, above = neighbours(story.received, place.height_mm)
    made = story.derived.at(place.height_mm)
    assert made is not None
    generated = story.derived.hounsfield(made)
    blend = linear(story.received, place.height_mm)
    return {
        "place": place,
        "below_mm": float(story.received.heights_mm[below]),
        "above_mm": float(story.received.heights_mm[above]),
        "below": _axial(story.received.hounsfield(below)),
        "above": _axial(story.received.hounsfield(above)),
        "generated": _axial(generated),
        "true": _axial(place.true),
        "error": pictures.uri(pictures.difference(generated, place.true)),
        "linear_error": pictures.uri(pictures.difference(blend, place.true)),
        "window": _words(LUNG),
    }


def _axial(plane: Hounsfield) -> str:
    return pictures.uri(pictures.axial(plane, LUNG))


def _stack(story: Story, volume: Stored) -> list[dict[str, object]]:
    """Every slice of the derived series, feet to head, small enough to be scrolled."""
    return [
        {
            "picture": pictures.uri(_small(pictures.axial(plane, MEDIASTINUM)), quality=76),
            "place": f"{height:.2f} mm",
            "generated": story.received.at(float(height)) is None,
            "said": _said(instance),
        }
        for plane, height, instance in zip(
            volume, story.derived.heights_mm, story.derived.instances, strict=True
        )
    ]


def _said(instance: Dataset) -> dict[str, float] | None:
    """How sure the model says that it is of a slice, as the PACS returned it."""
    found = SAID.search(str(instance.get("DerivationDescription", "")))
    return found and {"error_hu": float(found[1]), "confidence": float(found[2])}


def _sure(derived: Series) -> dict[str, object] | None:
    """A bar for each generated slice that says how sure its model is, feet to head."""
    said = [
        (height, told)
        for height, instance in zip(derived.heights_mm, derived.instances, strict=True)
        if (told := _said(instance)) is not None
    ]
    if not said:
        return None
    step = CHART[0] / len(said)
    bars = [
        {
            "x": number * step,
            "height": STRIP_HEIGHT * told["confidence"],
            "words": f"{height:.2f} mm: confidence {told['confidence']:.2f}, "
            f"expected error {told['error_hu']:g} HU",
        }
        for number, (height, told) in enumerate(said)
    ]
    values = [told["confidence"] for _, told in said]
    errors = [told["error_hu"] for _, told in said]
    return {
        "width": CHART[0],
        "height": STRIP_HEIGHT,
        "step": step,
        "bars": bars,
        "least": min(values),
        "most": max(values),
        "error_hu": float(np.mean(errors)),
    }


def _small(picture: Image.Image) -> Image.Image:
    height = round(picture.height * VIEWER_PIXELS / picture.width)
    return picture.resize((VIEWER_PIXELS, height), Image.Resampling.LANCZOS)


def _words(window: Window) -> str:
    return f"window {window.centre:g} / {window.width:g} HU"


def _chart(comparison: Comparison) -> dict[str, object]:
    """A dumbbell for each place: linear interpolation and the generated slice, in dB."""
    width, height = CHART
    left, top, right, bottom = MARGIN
    values = [v for place in comparison.places for v in (place.generated_db, place.linear_db)]
    low, high = int(min(values)), int(max(values)) + 1
    step = (width - left - right) / len(comparison.places)

    def y(decibel: float) -> float:
        return top + (high - decibel) / (high - low) * (height - top - bottom)

    every = max(1, round((high - low) / 5))
    return {
        "width": width,
        "height": height,
        "left": left,
        "right": width - right,
        "bottom": height - bottom,
        "lines": [{"y": y(db), "label": str(db)} for db in range(low, high + 1, every)],
        "dots": list(_dots(comparison.places, left + step / 2, step, y)),
        "mean": {"generated": y(comparison.generated_db), "linear": y(comparison.linear_db)},
    }


def _dots(
    places: Sequence[Place], first: float, step: float, y: Callable[[float], float]
) -> Iterator[dict[str, object]]:
    labelled = max(1, len(places) // 6)
    for number, place in enumerate(places):
        yield {
            "x": first + number * step,
            "generated": y(place.generated_db),
            "linear": y(place.linear_db),
            "place": place,
            "label": f"{place.height_mm:g}" if number % labelled == 0 else "",
        }
