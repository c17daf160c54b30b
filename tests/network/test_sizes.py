"""Series of odd sizes through a whole node: very many slices, one pixel, sixteen million."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread

from node.second_opinion import check
from tests import node_rows, phantoms
from tests.node_process import NodeProcess, destination, route, running
from tests.peers import Storescp
from tests.phantoms import Series
from tests.traffic import made_of, send, send_and_wait, uid_of

MANY, LARGE = 2000, 4096


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, archive: Storescp) -> Iterator[NodeProcess]:
    process = NodeProcess(
        tmp_path_factory.mktemp("node"),
        destination("archive", "STORESCP", archive.port),
        route(destinations=["archive"]),
        quiet_seconds=1.5,
    )
    with running(process):
        yield process


@pytest.mark.parametrize(("rows", "columns", "slices"), [(1, 1, 4), (1, 7, 3)])
def test_images_of_a_line_or_a_point_are_processed(
    node: NodeProcess, archive: Storescp, tmp_path: Path, rows: int, columns: int, slices: int
) -> None:
    series = Series(seed=f"{rows} x {columns}", rows=rows, columns=columns, slices=slices)
    files = phantoms.write(tmp_path, series)
    (job,) = send_and_wait(node, files)
    assert job.state == "succeeded", job
    assert check(files, made_of(archive, job.derived_uid), factor=2) == []


def test_images_of_sixteen_million_pixels_are_processed(
    node: NodeProcess, empty_archive: Storescp, tmp_path: Path
) -> None:
    def plain(dataset: Dataset, index: int) -> None:
        dataset.Rows = dataset.Columns = LARGE
        dataset.PixelData = bytes([index, 4]) * (LARGE * LARGE)

    files = phantoms.write(tmp_path, Series(seed="large", rows=1, columns=1, slices=2, edit=plain))
    (job,) = send_and_wait(node, files)
    assert job.state == "succeeded", job
    made = sorted((dcmread(path) for path in empty_archive.files()), key=height)
    assert [header.PixelData[:2] for header in made] == [b"\0\4", b"\0\4", b"\1\4"]
    assert {len(header.PixelData) for header in made} == {2 * LARGE * LARGE}


def height(made: Dataset) -> float:
    return float(made.ImagePositionPatient[2])


@pytest.mark.long
def test_a_series_of_two_thousand_slices_comes_through_whole(
    node: NodeProcess, empty_archive: Storescp, tmp_path: Path
) -> None:
    series = Series(seed="many", rows=8, columns=8, slices=MANY, spacing_mm=0.5)
    files = phantoms.write(tmp_path, series)
    send(node, files)
    node_rows.wait_until_settled(node, [uid_of(files)], seconds=240)
    (job,) = node_rows.jobs(node, uid_of(files))
    assert job.state == "succeeded", job
    (delivery,) = node_rows.deliveries(node, uid_of(files))
    assert (delivery.state, delivery.offers) == ("sent", 1)
    made = [dcmread(path, stop_before_pixels=True) for path in empty_archive.files()]
    assert len(made) == 2 * MANY - 1
    assert len({header.SOPInstanceUID for header in made}) == len(made)
    places = sorted(float(header.ImagePositionPatient[2]) for header in made)
    gaps = {round(after - before, 6) for before, after in zip(places, places[1:], strict=False)}
    assert gaps == {0.25}
