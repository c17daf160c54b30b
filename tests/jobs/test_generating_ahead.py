"""Slices that are generated while their series arrives: the same files to the byte, sooner."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread

from inference import registry
from inference.ahead import is_sure
from inference.dataset import read_headers
from inference.drafts import Drafts
from inference.geometry import Layout, measure
from inference.model import Parameters, Step
from inference.pipeline import process
from inference.request import Derived, ModelSpec, Request, Resources, Source
from inference.stacks import stacks_of
from node.config import Route
from node.work.ahead import AheadRules, AheadWorker, Arriving, ArrivingSeries
from tests import phantoms
from tests.phantoms import Series
from tests.series import changed
from tests.unit.inference.made import request

SLICES, FACTOR = 9, 3
ROOM = 100_000_000
SPEC = ModelSpec("midslice")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A series, in the order of its Instance Numbers."""
    return phantoms.write(
        tmp_path_factory.mktemp("series"), Series(slices=SLICES, rows=64, columns=64)
    )


def job(files: Sequence[Path], folder: Path, factor: int = FACTOR) -> Request:
    made = request(files, folder, factor=factor)
    return replace(made, model=SPEC, resources=Resources(device="cpu", threads=1))


def derived(made: Request, drafts: Drafts | None = None) -> Derived:
    outcome = process(made, progress=lambda _: None, cancelled=lambda: False, drafts=drafts)
    assert isinstance(outcome, Derived), outcome
    return outcome


def digests(outcome: Derived) -> dict[str, str]:
    """The digest of each file, by the UID that its place and its sources give it."""
    return {file.instance_uid: file.digest for file in outcome.files}


def steps_of(files: Sequence[Path]) -> int:
    layout = layout_of(files)
    return len(registry.load_once(SPEC).plan(layout.geometry, Parameters(factor=FACTOR)))


def layout_of(files: Sequence[Path]) -> Layout:
    (stack,) = stacks_of(read_headers(files))
    layout = measure(stack)
    assert layout is not None
    return layout


class Scanner:
    """Tells a worker of slices as they come, as the parent does."""

    def __init__(self, factor: int = FACTOR, most_bytes: int = ROOM) -> None:
        self.worker = AheadWorker(most_bytes)
        route = Route(
            name="ct", match={"Modality": "CT"}, model="midslice", factor=factor, destinations=()
        )
        resources = Resources(device="cpu", threads=1)
        self._rules = AheadRules("MIDSLICE", (route,), {}, resources)
        self._sent = 0

    def send(
        self,
        files: Sequence[Path],
        *,
        is_settled: bool = False,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        headers = read_headers(files)
        sources = tuple(
            Source(header.path, header.uid, self._sent + number)
            for number, header in enumerate(headers)
        )
        self._sent += len(sources)
        uid = headers[0].text("SeriesInstanceUID") if headers else self._uid
        self._uid = uid
        series = ArrivingSeries(uid, "MIDSLICE", "SCANNER", sources, is_settled)
        self.worker.take(Arriving((series,), frozenset({uid}), self._rules))
        self.worker.work(stopped)

    def settle(self) -> None:
        """Nothing has come for a while."""
        self.send((), is_settled=True)


def in_order(files: Sequence[Path]) -> list[Path]:
    return list(files)


def last_first(files: Sequence[Path]) -> list[Path]:
    return list(reversed(files))


def every_other_first(files: Sequence[Path]) -> list[Path]:
    return [*files[::2], *files[1::2]]


@pytest.mark.parametrize("order", [in_order, last_first, every_other_first])
def test_a_series_that_was_generated_ahead_gives_the_same_files_to_the_byte(
    tmp_path: Path, files: list[Path], order: Callable[[Sequence[Path]], list[Path]]
) -> None:
    scanner = Scanner()
    for file in order(files):
        scanner.send([file])
    scanner.settle()
    ahead = derived(job(files, tmp_path / "ahead"), scanner.worker.drafts)
    alone = derived(job(files, tmp_path / "alone"))
    assert digests(ahead) == digests(alone)
    assert ahead.record["confidence"] == alone.record["confidence"]
    assert ahead.record["made_ahead"] == steps_of(files)
    assert "made_ahead" not in alone.record


def test_gaps_amid_even_slices_are_generated_before_the_series_falls_silent(
    tmp_path: Path, files: list[Path]
) -> None:
    scanner = Scanner()
    for file in files:
        scanner.send([file])
    outcome = derived(job(files, tmp_path / "derived"), scanner.worker.drafts)
    assert outcome.record["made_ahead"] == SLICES - 1 - 2  # all gaps but the two at the ends


def test_a_slice_that_comes_late_between_two_others_is_no_gap_any_more(
    tmp_path: Path, files: list[Path]
) -> None:
    scanner = Scanner()
    scanner.send([*files[:4], *files[5:]])
    scanner.settle()
    before = scanner.worker.drafts.nbytes
    assert before
    scanner.send([files[4]], is_settled=True)
    ahead = derived(job(files, tmp_path / "ahead"), scanner.worker.drafts)
    assert digests(ahead) == digests(derived(job(files, tmp_path / "alone")))


def other_pixels(made: Dataset) -> None:
    pixels = np.frombuffer(made.PixelData, np.int16).copy()
    pixels[len(pixels) // 2] += 50
    made.PixelData = pixels.tobytes()


def other_place(made: Dataset) -> None:
    x, y, z = made.ImagePositionPatient
    made.ImagePositionPatient = [x, y, round(float(z) + 0.004, 4)]


def other_instance(made: Dataset) -> None:
    made.SOPInstanceUID = f"{made.SOPInstanceUID}.1"


def other_rescale(made: Dataset) -> None:
    made.RescaleIntercept = made.RescaleIntercept + 1


@pytest.mark.parametrize("change", [other_pixels, other_place, other_instance, other_rescale])
def test_a_slice_that_is_another_one_than_was_there_before_makes_its_drafts_worthless(
    tmp_path: Path, files: list[Path], change: Callable[[Any], None]
) -> None:
    scanner = Scanner()
    scanner.send(files)
    scanner.settle()
    middle = SLICES // 2
    (other,) = changed([files[middle]], tmp_path / "changed", change)
    now = [*files[:middle], other, *files[middle + 1 :]]
    ahead = derived(job(now, tmp_path / "ahead"), scanner.worker.drafts)
    assert digests(ahead) == digests(derived(job(now, tmp_path / "alone")))
    # Four gaps see a slice, and each survey that is near it.
    assert ahead.record["made_ahead"] <= steps_of(files) - 4


def test_drafts_by_another_route_or_of_another_series_are_not_used(
    tmp_path: Path, files: list[Path]
) -> None:
    def of_another_series(made: Dataset) -> None:
        made.SeriesInstanceUID = "2.25.99"

    scanner = Scanner(factor=2)
    scanner.send(files)
    outcome = derived(job(files, tmp_path / "thirds", factor=3), scanner.worker.drafts)
    assert outcome.record["made_ahead"] == 0
    others = changed(files, tmp_path / "others", of_another_series)
    outcome = derived(job(others, tmp_path / "halves", factor=2), scanner.worker.drafts)
    assert "made_ahead" not in outcome.record


def test_drafts_take_no_more_memory_than_they_are_given(files: list[Path]) -> None:
    whole = Scanner()
    whole.send(files, is_settled=True)
    room = whole.worker.drafts.nbytes // 3
    scanner = Scanner(most_bytes=room)
    scanner.send(files, is_settled=True)
    gap = 3 * (FACTOR - 1) * 64 * 64 * 4
    assert room <= scanner.worker.drafts.nbytes <= room + gap
    nothing = Scanner(most_bytes=0)
    nothing.send(files, is_settled=True)
    assert nothing.worker.drafts.nbytes == 0


def test_drafts_of_a_series_that_arrives_no_more_and_has_no_job_are_forgotten(
    files: list[Path],
) -> None:
    scanner = Scanner()
    scanner.send(files)
    assert scanner.worker.drafts.nbytes
    scanner.worker.take(Arriving((), frozenset(), scanner._rules))
    assert scanner.worker.drafts.nbytes == 0


def test_the_work_stops_between_two_steps_and_goes_on_where_it_was(files: list[Path]) -> None:
    scanner, asked = Scanner(), iter([False, False, True])
    scanner.send(files, is_settled=True, stopped=lambda: next(asked, True))
    some = scanner.worker.drafts.nbytes
    scanner.worker.work(lambda: False)
    whole = scanner.worker.drafts.nbytes
    assert 0 < some < whole / 2
    fresh = Scanner()
    fresh.send(files, is_settled=True)
    assert whole == fresh.worker.drafts.nbytes


def test_what_cannot_be_decoded_or_placed_stops_nothing_but_its_own_drafts(
    tmp_path: Path, files: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    (broken,) = changed([files[3]], tmp_path, lambda made: None)
    phantoms.break_pixels(broken)
    scanner = Scanner()
    scanner.send([*files[:3], broken, *files[4:]], is_settled=True)
    other = phantoms.write(tmp_path / "other", Series(slices=6, rows=64, columns=64, seed="other"))
    scanner.send(other, is_settled=True)
    outcome = derived(job(other, tmp_path / "derived"), scanner.worker.drafts)
    assert outcome.record["made_ahead"]


@pytest.mark.parametrize(
    ("series", "gap", "sure"),
    [
        (Series(slices=7), 2, True),
        (Series(slices=7, descending=True), 2, True),
        (Series(slices=7), 0, False),  # an end
        (Series(slices=7), 5, False),
        (Series(slices=4), 1, False),  # nothing beyond what it needs
        (Series(slices=8, missing=(3,)), 2, False),  # a number is missing
        (Series(gaps_mm=(5.0, 5.0, 10.0, 5.0, 5.0, 5.0)), 2, False),  # wide: more may come
        (Series(gaps_mm=(5.0, 5.0, 10.0, 5.0, 5.0, 5.0)), 1, False),  # beside it
        (Series(gaps_mm=(5.0, 5.0, 10.0, 5.0, 5.0, 5.0, 5.0)), 5, True),
    ],
)
def test_a_gap_is_sure_amid_numbered_slices_as_near_as_any(
    tmp_path: Path, series: Series, gap: int, *, sure: bool
) -> None:
    layout = layout_of(phantoms.write(tmp_path, series))
    count = len(layout.headers)
    needs = tuple(range(max(0, gap - 1), min(count, gap + 3)))
    assert is_sure(Step(needs, gap, (0.5,)), layout) is sure


def test_without_instance_numbers_nothing_is_sure(tmp_path: Path) -> None:
    def unnumbered(made: Dataset, _index: int) -> None:
        made.InstanceNumber = None

    layout = layout_of(phantoms.write(tmp_path, Series(slices=7, edit=unnumbered)))
    assert not is_sure(Step((1, 2, 3, 4), 2, (0.5,)), layout)


def test_a_survey_is_never_sure_before_all_has_come(files: list[Path]) -> None:
    assert not is_sure(Step((1, 2, 3, 4, 5), survey=3), layout_of(files))


def test_the_series_of_a_derived_file_is_left_alone(tmp_path: Path, files: list[Path]) -> None:
    made = job(files, tmp_path / "derived")
    result = derived(made)
    images = [made.folder / file.name for file in result.files if file.kind == "image"]
    assert len({dcmread(path).SeriesInstanceUID for path in images}) == 1
    scanner = Scanner()
    scanner.send(images, is_settled=True)
    assert scanner.worker.drafts.nbytes == 0
