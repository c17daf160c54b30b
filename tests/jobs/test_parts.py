"""A long series that two workers make: to the bit the one that a single worker makes."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from inference import parts, pipeline
from inference.model import Parameters
from inference.request import Derived, ModelSpec, Output, Part, Request, Source
from tests import series

SLICES, FACTOR = 12, 3
GENERATED = (SLICES - 1) * (FACTOR - 1)


def request(folder: Path) -> Request:
    folder.mkdir(parents=True)
    files = sorted(series.thick(SLICES))
    return Request(
        sources=tuple(Source(path, "", order) for order, path in enumerate(files)),
        model=ModelSpec("midslice"),
        parameters=Parameters(factor=FACTOR),
        output=Output(presentation_state=False),
        folder=folder,
        secret=b"0" * 32,
        started_at=datetime(2026, 1, 2, tzinfo=UTC),
    )


def made(asked: Request) -> Derived:
    outcome = pipeline.process(asked, progress=lambda _: None, cancelled=lambda: False)
    assert isinstance(outcome, Derived), outcome
    return outcome


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Derived:
    return made(request(tmp_path_factory.mktemp("alone") / "result"))


def test_a_series_with_drafts_of_another_worker_is_the_same_to_the_bit(
    alone: Derived, tmp_path: Path
) -> None:
    asked = replace(request(tmp_path / "result"), in_parts=True)
    (asked.folder / parts.FOLDER).mkdir()
    maker = parts.PartMaker()
    half = 10
    assert maker.make(Part(asked, half, GENERATED), lambda: False) == (GENERATED - half) // 2
    derived = made(asked)
    assert derived.record["made_ahead"] == (GENERATED - half) // 2
    assert [file.digest for file in derived.files] == [file.digest for file in alone.files]
    assert {path.name for path in asked.folder.iterdir()} == {file.name for file in derived.files}
    assert list(tmp_path.iterdir()) == [asked.folder]


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY"])
def test_a_draft_that_is_no_array_counts_for_nothing(
    alone: Derived, tmp_path: Path, damage: bytes
) -> None:
    asked = replace(request(tmp_path / "result"), in_parts=True)
    folder = asked.folder / parts.FOLDER
    folder.mkdir()
    parts.PartMaker().make(Part(asked, 0, GENERATED), lambda: False)
    for path in folder.iterdir():
        path.write_bytes(damage)
    derived = made(asked)
    assert derived.record["made_ahead"] == 0
    assert [file.digest for file in derived.files] == [file.digest for file in alone.files]


def test_a_worker_that_drafts_when_the_series_is_made_already_stops(tmp_path: Path) -> None:
    asked = replace(request(tmp_path / "result"), in_parts=True)
    with pytest.raises(FileNotFoundError):
        parts.PartMaker().make(Part(asked, 0, GENERATED), lambda: False)
