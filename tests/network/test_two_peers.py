"""One series that several peers send in parts: joined, a revision of what was made, or held."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom import Dataset

from node.second_opinion import check
from tests import node_rows, phantoms
from tests.node_process import NodeProcess, destination, route, running
from tests.peers import Storescp
from tests.phantoms import Patient, Series
from tests.traffic import made_of, send, send_and_wait, uid_of

VOLUME = Series(slices=9, spacing_mm=4.0)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, archive: Storescp) -> Iterator[NodeProcess]:
    process = NodeProcess(
        tmp_path_factory.mktemp("node"),
        destination("archive", "STORESCP", archive.port),
        route(destinations=["archive"]),
        quiet_seconds=0.7,
    )
    with running(process):
        yield process


def volume(folder: Path, name: str, **changed: object) -> list[Path]:
    return phantoms.write(folder, replace(VOLUME, seed=name, **changed))  # type: ignore[arg-type]


SPLITS = {
    "interleaved": [(0, 2, 4, 6, 8), (1, 3, 5, 7)],
    "overlapping halves": [(0, 1, 2, 3, 4, 5), (4, 5, 6, 7, 8)],
    "three peers": [(0, 1, 2), (3, 4, 5), (6, 7, 8)],
}


@pytest.mark.parametrize("name", SPLITS)
def test_parts_that_peers_send_one_after_the_other_become_a_revision_of_the_whole(
    node: NodeProcess, archive: Storescp, tmp_path: Path, name: str
) -> None:
    files = volume(tmp_path, name)
    for number, slices in enumerate(SPLITS[name], start=1):
        part = [files[index] for index in slices]
        jobs = send_and_wait(node, part, arrivals=number, calling=f"CT{number}")
    assert [job.state for job in jobs] == ["succeeded"] * len(SPLITS[name])
    assert [job.revision for job in jobs] == [*range(1, len(SPLITS[name]) + 1)]
    assert check(files, made_of(archive, jobs[-1].derived_uid), factor=2) == []
    senders = [f"CT{number}" for number in range(1, len(SPLITS[name]) + 1)]
    node.event("parts joined", series_uid=uid_of(files), senders=senders, instances=9)


def test_slices_that_a_held_job_misses_come_from_a_workstation_and_resolve_it(
    node: NodeProcess, archive: Storescp, tmp_path: Path
) -> None:
    files = volume(tmp_path, "a hole")
    (held,) = send_and_wait(node, [*files[:3], *files[5:]], calling="CT1")
    assert (held.state, held.reason) == ("held", "MISSING_SLICES")
    first, second = send_and_wait(node, files[3:5], arrivals=2, calling="WORKSTATION")
    assert (first.state, first.reason) == ("cancelled", "SUPERSEDED")
    assert second.state == "succeeded"
    assert check(files, made_of(archive, second.derived_uid), factor=2) == []


def test_two_peers_that_send_at_the_same_time_make_one_result(
    node: NodeProcess, archive: Storescp, tmp_path: Path
) -> None:
    files = volume(tmp_path, "at once")
    send(node, files[::2], calling="CT1")
    send(node, files[1::2], calling="CT2")
    node_rows.wait_until_settled(node, [uid_of(files)], arrivals=2)
    *superseded, last = node_rows.jobs(node, uid_of(files))
    assert [job.reason for job in superseded] in ([], ["SUPERSEDED"])  # a slow machine: two
    assert check(files, made_of(archive, last.derived_uid), factor=2) == []


def wider(made: Dataset, _index: int) -> None:
    made.PixelSpacing = ["0.9", "0.9"]


DISAGREEING = {
    "patient": ({"patient": Patient("Another^One", "PH-0002")}, "PATIENT_MISMATCH"),
    "geometry": ({"edit": wider}, "PEERS_DISAGREE"),
}


@pytest.mark.parametrize("what", DISAGREEING)
def test_parts_that_do_not_belong_together_are_held_and_the_sentence_names_the_other_peer(
    node: NodeProcess, archive: Storescp, tmp_path: Path, what: str
) -> None:
    changed, reason = DISAGREEING[what]
    ours = volume(tmp_path / "ours", what)
    theirs: Sequence[Path] = volume(tmp_path / "theirs", what, **changed)
    (made,) = send_and_wait(node, ours[::2], calling="CT1")
    before = len(archive.files())
    *_, held = send_and_wait(node, theirs[1::2], arrivals=2, calling="CT2")
    assert (held.state, held.reason) == ("held", reason)
    assert "CT1" in held.sentence
    assert node_rows.jobs(node, uid_of(ours))[0].state == made.state == "succeeded"
    assert len(archive.files()) == before
    node.event("job held", job=held.id, reason=reason)
