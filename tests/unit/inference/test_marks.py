"""Several derived series of one stack: each is known by its description and its number."""

from dataclasses import replace
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread

from inference.request import Derived, Kept, Mark
from tests import phantoms
from tests.phantoms import Series
from tests.unit.inference.made import request, run

SECOND = Mark(revision=2, place=1)


def made(folder: Path, series: Series, mark: Mark, **changes: object) -> tuple[Derived, Dataset]:
    """What is made of a series with this mark, and one of its headers."""
    wanted = request(phantoms.write(folder / "source", series), folder / "made")
    outcome = run(replace(wanted, mark=mark, **changes))  # type: ignore[arg-type]
    assert isinstance(outcome, Derived)
    headers = [dcmread(file, stop_before_pixels=True) for file in (folder / "made").glob("*.dcm")]
    assert len({(h.SeriesDescription, h.SeriesNumber) for h in headers}) == 1
    return outcome, headers[0]


def test_a_first_result_says_nothing_of_it_and_a_second_one_its_revision(tmp_path: Path) -> None:
    series = Series(description="Thorax 5.0", number=4)
    _, first = made(tmp_path / "1", series, Mark())
    _, second = made(tmp_path / "2", series, SECOND)
    _, other = made(tmp_path / "3", series, Mark(place=2, route="lung-thin"))
    assert first.SeriesDescription == "AI-INTERP x2 5 of 11 NOT ACQUIRED | Thorax 5.0"
    assert second.SeriesDescription == "AI-INTERP x2 5 of 11 NOT ACQUIRED rev 2 | Thorax 5.0"
    assert other.SeriesDescription == "AI-INTERP x2 5 of 11 NOT ACQUIRED lung-thin | Thorax 5.0"
    assert [h.SeriesNumber for h in (first, second, other)] == [9004, 10004, 11004]
    assert len({h.SeriesInstanceUID for h in (first, second, other)}) == 3


@pytest.mark.parametrize("description", ["D" * 64, ""])
@pytest.mark.parametrize("route", ["r" * 64, ""])
def test_the_marker_and_the_revision_come_first_and_are_never_cut(
    tmp_path: Path, description: str, route: str
) -> None:
    series = Series(description=description)
    _, header = made(tmp_path, series, Mark(revision=12, place=11, route=route))
    assert header.SeriesDescription.startswith("AI-INTERP x2 5 of 11 NOT ACQUIRED rev 12")
    assert len(header.SeriesDescription) <= 64


def test_a_content_that_was_made_before_keeps_its_mark_and_its_uids(tmp_path: Path) -> None:
    series = Series()
    first, _ = made(tmp_path / "1", series, Mark())
    assert first.content_uid == first.series_uid
    second, _ = made(tmp_path / "2", series, SECOND)
    assert second.content_uid == first.series_uid
    assert second.series_uid != first.series_uid
    again, _ = made(
        tmp_path / "3", series, Mark(revision=7, place=6), marks={first.series_uid: SECOND}
    )
    assert (again.series_uid, again.mark) == (second.series_uid, SECOND)
    assert [file.digest for file in again.files] == [file.digest for file in second.files]


def test_a_kept_result_with_a_mark_is_not_made_again(tmp_path: Path) -> None:
    series = Series()
    second, _ = made(tmp_path / "1", series, SECOND)
    wanted = request(phantoms.write(tmp_path / "2" / "source", series), tmp_path / "2" / "made")
    known = replace(wanted, marks={second.content_uid: SECOND}, kept=frozenset({second.series_uid}))
    assert run(known) == Kept(second.series_uid)
