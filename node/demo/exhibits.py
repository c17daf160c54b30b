"""The models of objects that the demo shows, each on a series that comes with the product."""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inference.previews import DisplayWindow
from node import finding_opinion, mask_opinion, score_opinion

DATA = Path(__file__).with_name("data")


@dataclass(frozen=True)
class Reading:
    """A nodule that radiologists outlined: its middle in the patient (LPS), and its size."""

    readers: int
    centre_mm: tuple[float, float, float]
    sphere_mm: float  # diameter of the sphere of the same volume

    def holds(self, centre_mm: Sequence[float]) -> bool:
        """True where a place is nearer to its middle than half of its size."""
        away_mm = np.linalg.norm(np.subtract(self.centre_mm, centre_mm))
        return bool(away_mm <= self.sphere_mm / 2.0)


@dataclass(frozen=True)
class Exhibit:
    """A model, its series, and the words of its report."""

    folder: Path  # with the licence of the series
    match: str  # the conditions of the route
    title: str
    lead: str
    caution: str
    card: str  # the model card, from the top of the project
    judge: Callable[[Sequence[Path], Sequence[Path]], list[str]]  # the second checker
    parts: tuple[str, ...] = (".",)  # where in the folder the slices lie
    window: DisplayWindow | None = None  # None: a scanner's own units

    @property
    def paths(self) -> list[Path]:
        """The files of the series."""
        return sorted(path for part in self.parts for path in (self.folder / part).glob("*.dcm"))

    @property
    def licence(self) -> str:
        return (self.folder / "LICENSE.md").read_text(encoding="utf-8")

    @property
    def labelled(self) -> frozenset[int]:
        """Instance Numbers of the slices in which radiologists saw what the model looks for."""
        rows = _rows(self.folder / "labels.csv")
        return frozenset(int(row["instance_number"]) for row in rows if row["haemorrhage"] == "1")

    @property
    def readings(self) -> tuple[Reading, ...]:
        """What radiologists outlined."""
        return tuple(
            Reading(
                int(row["readers"]),
                (float(row["x_mm"]), float(row["y_mm"]), float(row["z_mm"])),
                float(row["equivalent_sphere_mm"]),
            )
            for row in _rows(self.folder / "readings.csv")
        )


def _rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table beside the series, where there is one."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


EXHIBITS: Mapping[str, Exhibit] = {
    "brain": Exhibit(
        folder=DATA / "mr-head",
        match='{ Modality = "MR", MRAcquisitionType = "3D", instances = { min = 40 } }',
        title="An MR head in, the brain out",
        lead="A scanner sent a real MR head to the node; the node sent a segmentation of the "
        "brain, and the images without what lies outside of it, to the PACS.",
        caution="The mask holds the brain with its fluid spaces: its volume is not that of brain "
        "tissue. It may cut cortex, or keep a piece of a vessel or of the meninges. Look at the "
        "outline before you use it.",
        card="inference/models/brain/brain.md",
        judge=mask_opinion.check,
    ),
    "haemorrhage": Exhibit(
        folder=DATA / "head-ct",
        match='{ Modality = "CT", body_part = "head", contrast = ["no", "unknown"], '
        'kernel = ["soft", "unknown"] }',
        title="A head CT in, scores out",
        lead="A scanner sent a real head CT to the node; the node sent a report with scores, a "
        "selection of key images and a page of pictures to the PACS.",
        caution="A score says how much a slice resembles those that were labelled in 66 patients "
        "of one hospital. A score above the threshold is no finding, and one below it denies none.",
        card="inference/models/haemorrhage/haemorrhage.md",
        judge=score_opinion.check,
        window=DisplayWindow(40.0, 80.0),
    ),
    "nodules": Exhibit(
        folder=DATA,
        parts=("received", "acquired", "further"),
        match='{ Modality = "CT", body_part = ["chest", "unknown"], instances = { min = 60 } }',
        title="A chest CT in, findings out",
        lead="A scanner sent 150 mm of a real chest CT to the node; the node sent a report on its "
        "findings with their outlines, marks, key images and a map to the PACS.",
        caution="A finding is what the model scores at its threshold or above: some are vessels, "
        "scars or lymph nodes, and it overlooks nodules that are there. Sizes are those of its own "
        "outline.",
        card="inference/models/nodule/nodule.md",
        judge=finding_opinion.check,
        window=DisplayWindow(-600.0, 1500.0),
    ),
}
