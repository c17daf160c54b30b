"""Who wants which result, and what nobody can get: two peers, unknown senders, circles, twins."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread

from node.second_opinion import check
from tests import node_rows, phantoms
from tests.node_process import NodeProcess, destination, route, running, wait_for
from tests.peers import Storescp
from tests.phantoms import Series
from tests.traffic import (
    made_of,
    named,
    send,
    send_and_wait,
    send_as_it_lies,
    uid_of,
)

ROOT = Path(__file__).parents[2]
SLOW = '\n[[model]]\nname = "slow"\nclass = "tests.faulty_models:Slow"\n'
MOST_RESULTS, MOST_RERUNS = 4, 3
# What the node's own series are known by: a circle begins where a peer removes all of it.
ENDLESS_SEQUENCE = (
    b"\x20\x00\x37\x00SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff" * 3
)
MARKS = ("SyntheticData", "ContributingEquipmentSequence", "SourceImageSequence")


def parts(archive: Storescp, second: Storescp, more: str = "") -> list[str]:
    return [
        SLOW,
        destination("archive", "STORESCP", archive.port, f'sends_as = ["WS1"{more}]\n'),
        destination("second", "SECOND", second.port, 'sends_as = ["WS2"]\n'),
        route(destinations=["archive"]),
        named("thicker", destinations=["archive"]) + 'slice_thickness = "spacing"\n',
        named("back", destinations=["sender"]),
        named("slow", model="slow", destinations=[]),
    ]


@pytest.fixture(scope="module")
def node(
    tmp_path_factory: pytest.TempPathFactory, archive: Storescp, second: Storescp
) -> Iterator[NodeProcess]:
    process = NodeProcess(
        tmp_path_factory.mktemp("node"),
        *parts(archive, second),
        quiet_seconds=0.7,
        results_per_study=MOST_RESULTS,
        reruns=MOST_RERUNS,
    )
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", str(ROOT))  # for the slow model
        with running(process):
            yield process


def test_two_routes_on_one_series_make_series_that_are_told_apart(
    node: NodeProcess, archive: Storescp, tmp_path: Path
) -> None:
    files = phantoms.write(tmp_path, Series(seed="two routes", slices=3))
    send_and_wait(node, files)
    send_and_wait(node, files, arrivals=2, called="THICKER")
    headers = [
        dcmread(made_of(archive, job.derived_uid)[0], stop_before_pixels=True)
        for job in node_rows.jobs(node, uid_of(files))
    ]
    assert [(h.SeriesDescription, h.SeriesNumber) for h in headers] == [
        ("AI-INTERP x2 2 of 5 NOT ACQUIRED | Thorax 5.0 B30f", 9003),
        ("AI-INTERP x2 2 of 5 NOT ACQUIRED thicker | Thorax 5.0 B30f", 10003),
    ]
    assert node.found("notice", kind="revision") == []
    # Sent again each is itself again.
    send_and_wait(node, files, arrivals=3, called="THICKER", calling="PACS")
    assert len({job.derived_uid for job in node_rows.jobs(node, uid_of(files))}) == 2


def test_each_of_two_peers_gets_the_one_result_and_each_its_own_afterwards(
    node: NodeProcess, archive: Storescp, second: Storescp, tmp_path: Path
) -> None:
    files = phantoms.write(tmp_path, Series(seed="two peers", slices=4))
    send(node, files[:3], called="BACK", calling="WS1")
    send(node, files[:3], called="BACK", calling="WS2")
    node_rows.wait_until_settled(node, [uid_of(files)], arrivals=2)
    (job,) = node_rows.jobs(node, uid_of(files))
    for server in (archive, second):
        assert check(files[:3], made_of(server, job.derived_uid), factor=2) == []
    send_and_wait(node, files[3:], arrivals=3, called="BACK", calling="WS1")
    new = node_rows.jobs(node, uid_of(files))[-1]
    assert new.id != job.id
    assert check(files, made_of(archive, new.derived_uid), factor=2) == []
    assert made_of(second, new.derived_uid) == []  # it has sent three slices


def test_what_an_unknown_sender_is_owed_goes_to_it_once_it_is_configured(
    node: NodeProcess, archive: Storescp, second: Storescp, tmp_path: Path
) -> None:
    files = phantoms.write(tmp_path, Series(seed="stranger", slices=3))
    send(node, files, called="BACK", calling="STRANGER")
    node.event("delivery held", reason="NO_DESTINATION", destination="sender STRANGER")
    (delivery,) = node_rows.deliveries(node, uid_of(files))
    assert "'STRANGER' belongs to no destination" in delivery.sentence
    assert "sends_as" in delivery.sentence
    assert "continues by itself" in delivery.sentence
    settings = {"results_per_study": MOST_RESULTS, "reruns": MOST_RERUNS, "quiet_seconds": 0.7}
    node.configure(*parts(archive, second, ', "STRANGER"'), **settings)
    node.hang_up()
    node.event("configuration applied")
    node.event("deliveries released", destination="archive", before="sender STRANGER")
    node_rows.wait_until_settled(node, [uid_of(files)])
    (delivery,) = node_rows.deliveries(node, uid_of(files))
    assert (delivery.state, delivery.destination) == ("sent", "archive")
    assert check(files, made_of(archive, delivery.derived_uid), factor=2) == []


def test_thin_slices_that_come_while_a_thick_job_waits_refuse_it(
    node: NodeProcess, tmp_path: Path
) -> None:
    thick = Series(seed="thin comes later", slices=6, spacing_mm=5.0)
    thin = replace(thick, slices=26, spacing_mm=1.0, number=4, thickness_mm=1.0)
    busy = phantoms.write(tmp_path / "busy", Series(seed="busy", slices=40))
    thick_files = phantoms.write(tmp_path / "thick", thick)
    thin_files = phantoms.write(tmp_path / "thin", thin)
    node.slow_down()
    send(node, busy, called="SLOW")
    node.event("series complete", series_uid=uid_of(busy))
    node.event("job running", job=node_rows.jobs(node, uid_of(busy))[0].id)
    send(node, thick_files)
    node.event("series complete", series_uid=uid_of(thick_files))
    (waits,) = node_rows.jobs(node, uid_of(thick_files))
    assert waits.state == "queued"  # the one worker is busy
    send(node, thin_files)
    node.event("job refused", job=waits.id, reason="ACQUIRED_THIN_SERIES_EXISTS")
    (refused,) = node_rows.jobs(node, uid_of(thick_files))
    assert (refused.state, refused.reason) == ("refused", "ACQUIRED_THIN_SERIES_EXISTS")
    assert "1.00 mm apart" in refused.sentence
    node.hurry()
    # A person wants it all the same, and no rule says no to a person.
    node.cli("requeue", str(refused.id))
    send(node, thin_files)
    node_rows.wait_until_settled(node, [uid_of(thick_files), uid_of(thin_files), uid_of(busy)])
    assert node_rows.jobs(node, uid_of(thick_files))[0].state == "succeeded"


def test_a_series_of_which_no_file_can_be_read_is_held_and_shown_until_it_is_sent_again(
    node: NodeProcess, tmp_path: Path
) -> None:
    files = phantoms.write(tmp_path / "whole", Series(seed="unreadable", slices=3))
    broken = phantoms.write(tmp_path / "broken", Series(seed="unreadable", slices=3))
    for path in broken:
        content = path.read_bytes()
        path.write_bytes(content[: content.index(b"\x20\x00\x37\x00DS")] + ENDLESS_SEQUENCE)
    assert send_as_it_lies(node, broken) == [0, 0, 0]
    node_rows.wait_until_settled(node, [uid_of(files)])
    (held,) = node_rows.jobs(node, uid_of(files))
    assert (held.state, held.reason) == ("held", "PIXEL_DATA_ERROR")
    assert "None of the 3 received files of this series can be read" in held.sentence
    (shown,) = (s for s in node.cli("series") if s["series_uid"] == uid_of(files))
    assert "held" in str(shown)
    node.event("job held", job=held.id, reason="PIXEL_DATA_ERROR")
    send_and_wait(node, files, arrivals=2)
    first, second = node_rows.jobs(node, uid_of(files))
    assert (first.state, first.reason) == ("cancelled", "SUPERSEDED")
    assert second.state == "succeeded"


def height(path: Path) -> float:
    return float(dcmread(path, stop_before_pixels=True).ImagePositionPatient[2])


def stripped(folder: Path, made: list[Path], round_: int) -> list[Path]:
    """The series as a peer sends it back that changes UIDs and removes what marks it."""
    folder.mkdir(parents=True)
    for path in made:
        dataset: Dataset = dcmread(path)
        dataset.SOPInstanceUID = phantoms.uid(dataset.SOPInstanceUID, "again")
        dataset.SeriesInstanceUID = phantoms.uid("circle back", round_)
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        dataset.Manufacturer, dataset.ManufacturerModelName = "Maker", "Scanner"
        dataset.SeriesNumber, dataset.SeriesDescription = 3, "Thorax"
        for keyword in MARKS:
            if keyword in dataset:
                del dataset[keyword]
        phantoms.save(folder / path.name, dataset)
    return sorted(folder.iterdir())


def test_a_circle_through_a_peer_that_removes_every_mark_is_stopped(
    node: NodeProcess, archive: Storescp, tmp_path: Path
) -> None:
    files = phantoms.write(tmp_path / "0", Series(seed="circle", slices=2, rows=8, columns=8))
    for round_ in range(1, MOST_RESULTS + 1):
        job = send_and_wait(node, files)[-1]
        assert job.state == "succeeded", job
        made = sorted(made_of(archive, job.derived_uid), key=height)[::2]  # as far apart as before
        files = stripped(tmp_path / str(round_), made, round_)
    held = send_and_wait(node, files)[-1]
    assert (held.state, held.reason) == ("held", "TOO_MANY_RESULTS")
    assert "results_per_study" in held.sentence
    node.event("job held", job=held.id, reason="TOO_MANY_RESULTS")
    node.cli("requeue", str(held.id))
    node_rows.wait_until_settled(node, [uid_of(files)])
    assert node_rows.jobs(node, uid_of(files))[-1].state == "succeeded"


def test_slices_that_trickle_in_are_processed_so_often_and_then_wait_for_a_person(
    node: NodeProcess, tmp_path: Path
) -> None:
    files = phantoms.write(tmp_path, Series(seed="trickle", slices=6, rows=8, columns=8))
    send_and_wait(node, files[:2])
    for number, file in enumerate(files[2:], start=2):
        send_and_wait(node, [file], arrivals=number)
    jobs = node_rows.jobs(node, uid_of(files))
    assert [job.state for job in jobs] == ["succeeded"] * MOST_RERUNS + ["cancelled", "held"]
    assert jobs[-1].reason == "TOO_MANY_RERUNS"
    assert "quiet_seconds" in jobs[-1].sentence
    node.cli("requeue", str(jobs[-1].id))
    wait_for("the last is made", lambda: node.found("job succeeded", job=jobs[-1].id))
    assert node_rows.jobs(node, uid_of(files))[-1].revision == MOST_RERUNS + 1
