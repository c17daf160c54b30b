"""The pictures beside a derived series: what they show, and how little room they take."""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset

from inference import ct
from inference.dataset import read_headers
from inference.previews import INDEX, LEVELS, SHARE, Previews, encoded, hatched
from inference.request import PREVIEWS, Derived, Output, Request, Source
from inference.results.derived import Planned
from inference.stacks import stacks_of
from tests import phantoms, series
from tests.phantoms import Series
from tests.unit.inference.made import Halfway, request, run

MODULE = "tests.unit.inference.test_previews"
LARGE = Series(slices=5, rows=160, columns=128)


def with_previews(asked: Request) -> Request:
    return replace(asked, previews=True)


def derived(
    tmp_path: Path,
    made: Series = LARGE,
    *,
    factor: int = 2,
    output: Output | None = None,
    edit: Callable[[Request], Request] = with_previews,
    closed_gaps: Sequence[int] = (),
) -> tuple[Path, Derived]:
    files = phantoms.write(tmp_path / "received", made)
    asked = request(files, tmp_path / "derived", factor=factor, output=output, edit=edit)
    outcome = run(asked, closed_gaps=closed_gaps)
    assert isinstance(outcome, Derived), outcome
    return asked.folder / PREVIEWS, outcome


def index(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / INDEX).read_text()))


def picture(folder: Path, name: str) -> NDArray[np.uint8]:
    return np.asarray(Image.open(folder / name))


def hounsfield(folder: Path, name: str) -> NDArray[np.float64]:
    return np.array(index(folder)["levels_hu"])[picture(folder, name)]


def test_there_is_one_picture_a_slice_received_or_generated_in_the_order_of_positions(
    tmp_path: Path,
) -> None:
    folder, _ = derived(tmp_path, factor=3)
    told = index(folder)["slices"]
    assert [each["generated"] for each in told] == [False, True, True] * 4 + [False]
    at_mm = -300.0 + np.arange(13) * 5 / 3  # as in Image Position (Patient)
    assert [each["at_mm"] for each in told] == pytest.approx(at_mm, abs=1e-3)
    assert [each["number"] for each in told] == list(range(1, 14))
    numbers = [1, None, None, 2, None, None, 3, None, None, 4, None, None, 5]
    assert [each["received_number"] for each in told] == numbers
    assert sorted(path.name for path in folder.glob("0*.png")) == [
        f"{n:05d}.png" for n in range(13)
    ]


def test_a_picture_shows_its_slice_to_within_one_level(tmp_path: Path) -> None:
    folder, _ = derived(tmp_path)
    for place, number in ((0, 0), (4, 2), (8, 4)):
        true = np.rint(phantoms.hounsfield(LARGE, number))
        shown = hounsfield(folder, f"{place:05d}.png")
        step = np.diff(LEVELS, append=LEVELS[-1] + 140)[picture(folder, f"{place:05d}.png")]
        assert shown.shape == true.shape
        inside = (true >= LEVELS[0]) & (true <= 3071)
        assert (true - shown)[inside].min() >= -0.01
        assert ((true - shown) <= step)[inside].all()


def test_a_generated_slice_is_shown_as_it_was_written(tmp_path: Path) -> None:
    folder, _ = derived(tmp_path)
    middle = (phantoms.hounsfield(LARGE, 1) + phantoms.hounsfield(LARGE, 2)) / 2
    shown = hounsfield(folder, "00003.png")
    soft = np.abs(middle) < 100
    assert np.abs(shown - middle)[soft].max() < 4.0  # a level of 2.5 HU, and rounding


def test_soft_tissue_has_the_finest_levels_and_every_level_rises() -> None:
    steps = np.diff(LEVELS)
    assert len(LEVELS) == 256
    assert (steps > 0).all()
    soft = steps[(LEVELS[:-1] >= -160) & (LEVELS[:-1] < 240)]
    assert soft == pytest.approx(2.5)


def test_values_beyond_the_levels_become_the_first_and_the_last(tmp_path: Path) -> None:
    raw = tmp_path / "x.png"
    raw.write_bytes(encoded(np.array([[-30000.0, -1024.0], [3072.0, 30000.0]])))
    assert np.asarray(Image.open(raw)).tolist() == [[0, 0], [255, 255]]


def test_the_pictures_of_a_real_series_take_a_small_part_of_its_pixels(tmp_path: Path) -> None:
    asked = request(series.thick(5), tmp_path / "derived", edit=with_previews)
    outcome = run(asked)
    assert isinstance(outcome, Derived)
    pictures = sum(path.stat().st_size for path in (asked.folder / PREVIEWS).iterdir())
    files = sum(path.stat().st_size for path in asked.folder.glob("*.dcm"))
    assert 0.02 * files < pictures < SHARE * files
    assert max(picture(asked.folder / PREVIEWS, "00001.png").shape) >= 256


PLACES = ("column", "row")
UNEVEN = replace(LARGE, gaps_mm=(5.0, 5.0, 10.0, 5.0), pixel_mm=(0.5, 0.5))
LEAVE = Output(across_missing="leave")


def is_hatched(shown: NDArray[np.uint8]) -> list[bool]:
    """For each line of a picture, from the top, whether it is hatched from side to side."""
    drawn = np.asarray(Image.open(io.BytesIO(encoded(hatched(shown.shape)))))
    return [bool(same) for same in (shown == drawn).all(axis=1)]


@pytest.mark.parametrize("plane", PLACES)
def test_the_reformats_are_of_one_place_and_the_derived_one_is_finer(
    tmp_path: Path, plane: str
) -> None:
    folder, _ = derived(tmp_path, UNEVEN, output=LEAVE, closed_gaps=(2,))
    received = picture(folder, f"{plane}-received.png")
    shown = picture(folder, f"{plane}-derived.png")
    assert received.shape == shown.shape == (50, 160 if plane == "column" else 128)
    unlike = [
        len(np.unique(each[~np.array(is_hatched(each))], axis=0)) for each in (received, shown)
    ]
    assert (unlike[0], unlike[1] > 5) == (5, True)
    # The head is up: the first row is the last slice.
    last = picture(folder, f"{len(index(folder)['slices']) - 1:05d}.png")
    assert (shown[0] == (last[:, 64] if plane == "column" else last[80])).all()


@pytest.mark.parametrize("plane", PLACES)
def test_a_gap_that_was_left_is_hatched_and_never_looks_like_anatomy(
    tmp_path: Path, plane: str
) -> None:
    """Gaps of 5, 5, 10 (left) and 5 mm between slices 5 mm thick: 5 mm are drawn by no slice."""
    folder, _ = derived(tmp_path, UNEVEN, output=LEAVE, closed_gaps=(2,))
    assert index(folder)["left"] == [2]
    for name in ("received", "derived"):
        lines = is_hatched(picture(folder, f"{plane}-{name}.png"))
        (first, last) = (lines.index(True), len(lines) - lines[::-1].index(True))
        assert (last - first, sum(lines)) == (10, 10)  # of 0.5 mm
        assert (first, last) == (15, 25)  # from the top: 5 mm of slices, and half of the fourth


@pytest.mark.parametrize(
    ("thickness", "share"), [(5.0, 0.0), (2.5, 0.5), (1.0, 0.8), (None, 0.0), (8.0, 0.0)]
)
def test_what_no_received_slice_shows_is_hatched_and_what_was_generated_is_not(
    tmp_path: Path, thickness: float | None, share: float
) -> None:
    folder, _ = derived(tmp_path, replace(LARGE, pixel_mm=(0.25, 0.25), thickness_mm=thickness))
    received = is_hatched(picture(folder, "column-received.png"))
    assert sum(received) / len(received) == pytest.approx(share, abs=0.05)
    assert not any(is_hatched(picture(folder, "column-derived.png")))
    assert index(folder)["left"] == []


def test_without_a_thickness_a_hole_is_as_wide_as_what_is_missing(tmp_path: Path) -> None:
    holed = replace(LARGE, slices=8, missing=(4,), thickness_mm=None, pixel_mm=(0.5, 0.5))
    folder, _ = derived(tmp_path, holed, output=LEAVE, closed_gaps=(3,))
    lines = is_hatched(picture(folder, "column-derived.png"))
    assert sum(lines) == pytest.approx(10, abs=1)  # of 0.5 mm: one slice


def test_planes_and_axis_have_their_names(tmp_path: Path) -> None:
    folder, _ = derived(tmp_path)
    told = index(folder)
    assert told["planes"] == {"column": "sagittal", "row": "coronal"}
    assert (told["axis"], told["first_is_up"]) == ("z", False)


def test_a_stack_whose_first_slice_is_the_topmost_is_shown_head_up(tmp_path: Path) -> None:
    """Rows run to the right of the patient: the normal points to the feet."""

    def turn(made: Dataset, index: int) -> None:
        made.ImageOrientationPatient = [-1, 0, 0, 0, 1, 0]
        made.ImagePositionPatient = [160.0, -160.0, -300.0 - 5.0 * index]

    folder, _ = derived(tmp_path, replace(LARGE, edit=turn, pixel_mm=(0.5, 0.5)))
    told = index(folder)
    assert told["first_is_up"] is True
    assert [each["at_mm"] for each in told["slices"]][::2] == [-300.0 - 5.0 * n for n in range(5)]
    top = picture(folder, "column-derived.png")[0]
    assert (top == picture(folder, "00000.png")[:, 64]).all()


def test_slices_that_are_not_in_the_derived_series_are_shown_all_the_same(tmp_path: Path) -> None:
    output = Output(include_received=False, presentation_state=False)
    folder, outcome = derived(tmp_path, output=output)
    told = index(folder)["slices"]
    assert [file.kind for file in outcome.files].count("image") == 4
    assert len(told) == 9
    assert [each["number"] for each in told if not each["generated"]] == [None] * 5


def test_tilt_and_gaps_with_missing_slices_are_told(tmp_path: Path) -> None:
    holed = replace(LARGE, slices=8, missing=(4,), tilt_degrees=12.0)
    output = Output(across_missing="leave")
    folder, _ = derived(tmp_path, holed, output=output, closed_gaps=(3,))
    assert index(folder)["tilt_degrees"] == pytest.approx(12.0, abs=0.1)
    assert index(folder)["missing"] == [3]


def test_nothing_is_drawn_for_who_did_not_ask(tmp_path: Path) -> None:
    folder, outcome = derived(tmp_path, edit=lambda asked: asked)
    assert not folder.exists()
    assert "previews" not in json.dumps(dict(outcome.record))


class InTheWay(Halfway):
    """Where the pictures are to go there is a file, as a full disk would be."""

    def run(self, step: Any, slices: Any, limits: Any) -> Any:
        (FOLDERS[0] / PREVIEWS).touch()
        return super().run(step, slices, limits)


FOLDERS: list[Path] = []


def test_pictures_that_cannot_be_written_cost_nobody_a_result(tmp_path: Path) -> None:
    FOLDERS[:] = [tmp_path / "derived"]

    def edit(asked: Request) -> Request:
        model = replace(asked.model, factory=f"{MODULE}:InTheWay")
        return replace(asked, previews=True, model=model)

    _, outcome = derived(tmp_path, edit=edit)
    assert "no previews: they could not be written" in outcome.record["notes"]  # type: ignore[operator]


@pytest.fixture
def received_only(tmp_path: Path) -> tuple[Path, Previews]:
    return pictures_of(tmp_path, LARGE)


def pictures_of(tmp_path: Path, series: Series) -> tuple[Path, Previews]:
    """The pictures of a stack of which no slice is generated."""
    files = phantoms.write(tmp_path / "received", series)
    sources = [Source(path, str(number), number) for number, path in enumerate(files)]
    (stack,) = stacks_of(read_headers(sources))
    layout = ct.examine(stack, Output())
    places = [
        Planned(header.uid, 1 + index, position, index, (index,))
        for index, (header, position) in enumerate(
            zip(layout.headers, layout.geometry.positions, strict=True)
        )
    ]
    plane = np.full((LARGE.rows, LARGE.columns), 40.0, np.float32)
    return tmp_path / PREVIEWS, Previews(tmp_path, layout, places, lambda _: plane)


def test_a_map_of_what_counted_lies_over_the_slices_that_have_one(
    received_only: tuple[Path, Previews],
) -> None:
    folder, pictures = received_only
    heat = np.zeros((LARGE.rows, LARGE.columns), np.float32)
    heat[:80], heat[80:120] = 1.0, 0.5
    pictures.heat({3: heat})
    assert pictures.finish() == []
    assert index(folder)["heat"] == [3]
    assert index(folder)["is_hu"] is True
    assert [path.name for path in folder.glob("*-heat.png")] == ["00003-heat.png"]
    alpha = np.asarray(Image.open(folder / "00003-heat.png").convert("RGBA"))[..., 3]
    assert alpha.shape == picture(folder, "00003.png").shape
    high, half, none = (int(alpha[round(len(alpha) * share), 5]) for share in (0.2, 0.6, 0.9))
    assert high > half > none == 0


def test_pictures_have_the_shape_of_the_slice_where_pixels_are_no_squares(tmp_path: Path) -> None:
    folder, pictures = pictures_of(tmp_path, replace(LARGE, pixel_mm=(0.6, 1.2)))
    marked = np.zeros((LARGE.slices, LARGE.rows, LARGE.columns), bool)
    marked[2, 40:80, 30:50] = True  # 24 mm x 24 mm
    pictures.outline(marked, "Nodule", is_hu=True)
    pictures.heat({2: marked[2].astype(np.float32)})
    assert pictures.finish() == []
    for name in ("00002", "00002-mask", "00002-heat"):
        shown = np.asarray(Image.open(folder / f"{name}.png"))
        assert shown.shape == (LARGE.rows, 2 * LARGE.columns)
    for name in ("00002-mask", "00002-heat"):
        alpha = np.asarray(Image.open(folder / f"{name}.png").convert("RGBA"))[..., 3]
        rows, columns = np.nonzero(alpha)
        assert (rows.min(), columns.min()) == (40, 60)
        assert (rows.max(), columns.max()) == (79, 99)


def test_a_result_without_generated_slices_has_no_gap_that_was_left(
    received_only: tuple[Path, Previews],
) -> None:
    folder, pictures = received_only
    pictures.heat({})
    pictures.finish()
    assert (index(folder)["left"], index(folder)["hatched"]) == ([], False)


def test_findings_are_outlined_in_another_colour_than_the_organ_around_them(
    received_only: tuple[Path, Previews],
) -> None:
    folder, pictures = received_only
    organs = np.zeros((LARGE.slices, LARGE.rows, LARGE.columns), bool)
    organs[:, 40:120, 30:100] = True
    found = np.zeros_like(organs)
    found[2, 60:80, 50:70] = True
    pictures.outline(found, "Nodule", organs=organs, is_hu=True)
    pictures.finish()
    assert (index(folder)["mask"], index(folder)["is_hu"]) == ("Nodule", True)
    colours = [
        {tuple(rgba) for rgba in drawn.reshape(-1, 4) if rgba[3]}
        for drawn in (
            np.asarray(Image.open(folder / f"0000{number}-mask.png").convert("RGBA"))
            for number in (1, 2)
        )
    ]
    assert len(colours[0]) == 1
    assert len(colours[1]) == 2
    assert colours[0] < colours[1]
