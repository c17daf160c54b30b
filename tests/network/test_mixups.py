"""What a study holds besides: two patients under one UID, thin slices, eight scanners at once."""

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread

from node.second_opinion import check
from tests import node_rows, phantoms
from tests.node_process import NodeProcess, destination, route, running
from tests.peers import Script, Storescp
from tests.phantoms import Patient, Pixels, Series
from tests.postgres import PostgresServer
from tests.traffic import made_of, send, uid_of

THIN = 'called_ae_title = "DESPITE"\ndespite_thin = true\n'
HELD_BACK = 'called_ae_title = "HELD_BACK"\n'
SENDERS = 8
PATIENTS = 24


@pytest.fixture(scope="module")
def node(
    tmp_path_factory: pytest.TempPathFactory, archive: Storescp, stalling: tuple[Script, int]
) -> Iterator[NodeProcess]:
    to_archive = route(destinations=["archive"])
    despite = route(destinations=[], more=THIN).replace("ct-slices", "despite")
    stalls = route(destinations=["stalls"], more=HELD_BACK).replace("ct-slices", "stalls")
    process = NodeProcess(
        tmp_path_factory.mktemp("node"),
        destination("archive", "STORESCP", archive.port),
        destination("stalls", "SCRIPTED", stalling[1]),
        to_archive,
        despite,
        stalls,
        quiet_seconds=0.7,
    )
    with running(process):
        yield process


def patients(number: int) -> Series:
    """One series of many: each of its own patient, pixels and shape of header."""
    return Series(
        slices=3 + number % 4,
        spacing_mm=3.0 + number % 3,
        rows=64,
        columns=64,
        seed=f"patient {number}",
        study=f"study {number}",
        patient=Patient(
            f"Family{number}^Given", f"ID-{number:03d}", f"19{10 + number}0101", "MFO"[number % 3]
        ),
        pixels=Pixels(intercept=-1024.0 - number),
        description=f"Thorax {number}",
        edit=_brighter(number),
    )


def _brighter(number: int) -> phantoms.Edit:
    def edit(dataset: Dataset, index: int) -> None:
        values = np.frombuffer(dataset.PixelData, "<i2").reshape(64, 64).copy()
        values[number : number + 8, 8 * index : 8 * index + 8] += 10 * number + index
        dataset.PixelData = values.tobytes()
        dataset.AccessionNumber = f"A-{number}"

    return edit


@pytest.fixture(params=["sqlite", "postgresql"])
def crowded(
    request: pytest.FixtureRequest, archive: Storescp, tmp_path: Path
) -> Iterator[NodeProcess]:
    """A node for many peers at once, on each database; two workers."""
    database = ""
    if request.param == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres_server")
        server.drop("crowded")
        database = server.create("crowded")
    process = NodeProcess(
        tmp_path / "node",
        destination("archive", "STORESCP", archive.port),
        route(destinations=["archive"]),
        quiet_seconds=10.0,
        database=database,
        workers=2,
    )
    with running(process):
        yield process


def test_eight_associations_with_shuffled_series_of_many_patients_mix_nothing_up(
    crowded: NodeProcess, empty_archive: Storescp, tmp_path: Path
) -> None:
    node, archive = crowded, empty_archive
    source = {
        number: phantoms.write(tmp_path / str(number), patients(number))
        for number in range(PATIENTS)
    }
    everything = [path for files in source.values() for path in files]
    random.Random(8).shuffle(everything)
    hands = [everything[start::SENDERS] for start in range(SENDERS)]
    with ThreadPoolExecutor(SENDERS) as scanners:
        list(scanners.map(lambda files: send(node, files), hands))
    uids = {number: uid_of(files) for number, files in source.items()}
    node_rows.wait_until_settled(node, uids.values(), seconds=90)
    held: dict[str, list[Path]] = {}
    for path in archive.files():
        held.setdefault(str(dcmread(path).SeriesInstanceUID), []).append(path)
    for number, files in source.items():
        (job,) = node_rows.jobs(node, uids[number])
        assert job.state == "succeeded", (number, job)
        made = held[str(job.derived_uid)]
        assert check(files, made, factor=2) == []
        assert {str(dcmread(path).PatientName) for path in made} == {f"Family{number}^Given"}


def test_one_series_uid_in_two_studies_holds_both_and_says_why(
    node: NodeProcess, archive: Storescp, tmp_path: Path
) -> None:
    first = phantoms.write(tmp_path / "first", Series(seed="two studies"))
    other = Series(seed="two studies", study="another", patient=Patient("Other^One", "OTHER"))
    second = phantoms.write(tmp_path / "second", other)
    before = len(archive.files())
    send(node, [*first, *second])
    node_rows.wait_until_settled(node, [uid_of(first)], arrivals=2)
    jobs = node_rows.jobs(node, uid_of(first))
    assert len(jobs) == 2
    for job in jobs:
        assert (job.state, job.reason) == ("held", "PATIENT_MISMATCH")
        assert "another study" in job.sentence
    assert len(archive.files()) == before
    node.event("job held", job=jobs[0].id, reason="PATIENT_MISMATCH")
    # A person has found out which one is right.
    node.cli("requeue", str(jobs[0].id))
    node.cli("cancel", str(jobs[1].id))
    node_rows.wait_until_settled(node, [uid_of(first)], arrivals=2)
    right, wrong = node_rows.jobs(node, uid_of(first))
    assert (right.state, wrong.state) == ("succeeded", "cancelled")


def test_a_series_that_turns_out_to_be_mixed_up_is_not_sent_any_further(
    node: NodeProcess, stalling: tuple[Script, int], tmp_path: Path
) -> None:
    script, _ = stalling
    first = phantoms.write(tmp_path / "first", Series(seed="too late"))
    second = phantoms.write(tmp_path / "second", Series(seed="too late", study="another"))
    send(node, first, called="HELD_BACK")
    node.event("job succeeded", job=_job_when_made(node, uid_of(first)))
    send(node, second, called="HELD_BACK")
    node.event("delivery held", reason="PATIENT_MISMATCH")
    script.stop.set()
    node_rows.wait_until_settled(node, [uid_of(first)], arrivals=2)
    (delivery,) = node_rows.deliveries(node, uid_of(first))
    assert (delivery.state, delivery.reason) == ("held", "PATIENT_MISMATCH")
    assert "another study" in delivery.sentence
    made, new = node_rows.jobs(node, uid_of(first))
    assert (made.state, new.state) == ("succeeded", "held")
    assert len(script.received) < 11


def _job_when_made(node: NodeProcess, series_uid: str) -> int:
    node.event("series complete", series_uid=series_uid)
    return node_rows.jobs(node, series_uid)[0].id


@pytest.mark.parametrize("how", ["together", "one after the other", "from two peers"])
def test_two_patients_under_one_series_and_study_uid_are_held(
    node: NodeProcess, tmp_path: Path, how: str
) -> None:
    def of_the_other(dataset: Dataset, index: int) -> None:
        dataset.SOPInstanceUID = phantoms.uid(how, "other", index)
        z = float(dataset.ImagePositionPatient[2]) + 100.0
        dataset.ImagePositionPatient = [*dataset.ImagePositionPatient[:2], f"{z:g}"]

    mine = Series(seed=how)
    theirs = replace(mine, patient=Patient("Other^One", "OTHER"), edit=of_the_other)
    first = phantoms.write(tmp_path / "first", mine)
    second = phantoms.write(tmp_path / "second", theirs)
    series_uid = uid_of(first)
    if how == "together":
        send(node, [*first, *second])
        node_rows.wait_until_settled(node, [series_uid])
    else:
        send(node, first)
        node_rows.wait_until_settled(node, [series_uid])
        send(node, second, calling="CT2" if how == "from two peers" else "STORESCU")
        node_rows.wait_until_settled(node, [series_uid], arrivals=2)
    last = node_rows.jobs(node, series_uid)[-1]
    assert (last.state, last.reason) == ("held", "PATIENT_MISMATCH")
    assert "Patient ID" in last.sentence
    assert "OTHER" not in last.sentence
    assert ("from STORESCU and CT2" in last.sentence) == (how == "from two peers")


def test_a_thin_series_of_the_same_range_refuses_the_thick_one_unless_the_route_says_otherwise(
    node: NodeProcess, tmp_path: Path
) -> None:
    thick = Series(seed="thin and thick", slices=6, spacing_mm=5.0)
    thin = replace(thick, slices=26, spacing_mm=1.0, number=4, thickness_mm=1.0)
    thin_files = phantoms.write(tmp_path / "thin", thin)
    thick_files = phantoms.write(tmp_path / "thick", thick)
    send(node, thin_files)
    node_rows.wait_until_settled(node, [uid_of(thin_files)])
    send(node, thick_files)
    send(node, thick_files, called="DESPITE")
    node_rows.wait_until_settled(node, [uid_of(thick_files)], arrivals=2)
    by_route = {job.route: job for job in node_rows.jobs(node, uid_of(thick_files))}
    refused = by_route["ct-slices"]
    assert (refused.state, refused.reason) == ("refused", "ACQUIRED_THIN_SERIES_EXISTS")
    assert "1.00 mm apart" in refused.sentence
    assert by_route["despite"].state == "succeeded"
    (thin_job,) = node_rows.jobs(node, uid_of(thin_files))
    assert thin_job.state == "succeeded"
    # A person wants it all the same.
    node.cli("requeue", str(refused.id))
    node_rows.wait_until_settled(node, [uid_of(thick_files)], arrivals=2)
    by_route = {job.route: job for job in node_rows.jobs(node, uid_of(thick_files))}
    assert by_route["ct-slices"].state == "succeeded"


def test_neither_another_kernel_nor_a_result_that_came_back_makes_a_series_pointless(
    node: NodeProcess, archive: Storescp, tmp_path: Path
) -> None:
    thick = Series(seed="no twin")
    sharp = replace(thick, slices=26, spacing_mm=1.0, number=4, kernel="B70f")
    sharp_files = phantoms.write(tmp_path / "sharp", sharp)
    thick_files = phantoms.write(tmp_path / "thick", thick)
    send(node, sharp_files)
    send(node, thick_files)
    node_rows.wait_until_settled(node, [uid_of(sharp_files), uid_of(thick_files)])
    (job,) = node_rows.jobs(node, uid_of(thick_files))
    assert job.state == "succeeded"
    send(node, made_of(archive, job.derived_uid), calling="PACS")  # with half the gap
    send(node, thick_files, calling="WORKSTATION")
    node_rows.wait_until_settled(node, [uid_of(thick_files)], arrivals=2)
    assert {job.state for job in node_rows.jobs(node, uid_of(thick_files))} == {"succeeded"}
