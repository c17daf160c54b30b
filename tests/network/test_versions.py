"""Versions and corrections: sent again otherwise encoded, corrected, stripped, or late."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread

from node.second_opinion import check
from tests import node_rows, phantoms
from tests.node_process import NodeProcess, destination, route, running, wait_for
from tests.peers import Script, Storescp
from tests.phantoms import Edit, Patient, Series
from tests.raw_peer import RawPeer, associate_request, store_command
from tests.traffic import (
    PROPOSAL,
    data_set_of,
    made_of,
    named,
    padded,
    send,
    send_and_wait,
    uid_of,
)

ROOT = Path(__file__).parents[2]
SLOW = '\n[[model]]\nname = "slow"\nclass = "tests.faulty_models:Slow"\n'


@pytest.fixture(scope="module")
def node(
    tmp_path_factory: pytest.TempPathFactory, archive: Storescp, stalling: tuple[Script, int]
) -> Iterator[NodeProcess]:
    process = NodeProcess(
        tmp_path_factory.mktemp("node"),
        SLOW,
        destination("archive", "STORESCP", archive.port),
        destination("stalls", "SCRIPTED", stalling[1]),
        route(destinations=["archive"]),
        named("slow", model="slow", destinations=["archive"]),
        named("stalls", destinations=["stalls"]),
        quiet_seconds=0.7,
    )
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", str(ROOT))  # for the slow model
        with running(process):
            yield process


def derived_uids(node: NodeProcess, files: list[Path]) -> set[str | None]:
    return {job.derived_uid for job in node_rows.jobs(node, uid_of(files))}


def headings(archive: Storescp, derived_uid: str | None) -> tuple[str, int]:
    """What a derived series is called, and its number: the same in each of its instances."""
    made = [dcmread(path, stop_before_pixels=True) for path in made_of(archive, derived_uid)]
    (one,) = {(str(header.SeriesDescription), int(header.SeriesNumber)) for header in made}
    return one


def told(node: NodeProcess, job: node_rows.JobRow) -> int:
    """Which revision the administrator was told of, in the log and in the audit, for this job."""
    event = node.event("notice", job=job.id, kind="revision")
    (detail,) = (detail for which, detail in node_rows.notices(node) if which == f"job {job.id}")
    assert f'"revision": {event["which"]}' in detail
    assert str(job.derived_uid) in detail
    return int(event["which"])


def test_what_a_pacs_sends_again_otherwise_encoded_is_the_same_derived_series_once_more(
    node: NodeProcess, archive: Storescp, tmp_path: Path
) -> None:
    from_scanner, from_pacs, first = {}, {}, {}
    for syntax in PROPOSAL:
        series = Series(seed=f"encoded as {syntax}", slices=4)
        pacs = replace(series, transfer_syntax=syntax)
        from_scanner[syntax] = phantoms.write(tmp_path / "scanner" / syntax, series)
        from_pacs[syntax] = phantoms.write(tmp_path / "pacs" / syntax, pacs)
        send(node, from_scanner[syntax], calling="SCANNER")
    uids = {syntax: uid_of(files) for syntax, files in from_scanner.items()}
    node_rows.wait_until_settled(node, uids.values())
    for syntax, files in from_scanner.items():
        (job,) = node_rows.jobs(node, uids[syntax])
        made = made_of(archive, job.derived_uid)
        assert check(files, made, factor=2) == []
        first[syntax] = {path.name: path.read_bytes() for path in made}
        for path in made:
            path.unlink()
    for files in from_pacs.values():
        send(node, files, calling="PACS")
    node_rows.wait_until_settled(node, uids.values(), arrivals=2)
    for syntax, files in from_scanner.items():
        (derived_uid,) = derived_uids(node, files)
        again = {path.name: path.read_bytes() for path in made_of(archive, derived_uid)}
        assert again == first[syntax]
        (delivery,) = node_rows.deliveries(node, uids[syntax])
        assert (delivery.state, delivery.offers) == ("sent", 2)


def test_what_a_pacs_has_stripped_of_private_tags_is_a_revision_of_the_header(
    node: NodeProcess, tmp_path: Path
) -> None:
    def with_private_tags(dataset: Dataset, index: int) -> None:
        dataset.private_block(0x0009, "MAKER", create=True).add_new(1, "LO", f"private {index}")
        dataset.private_block(0x0043, "MAKER", create=True).add_new(9, "DS", "1.5")

    series = Series(seed="stripped", slices=4)
    full = phantoms.write(tmp_path / "full", replace(series, edit=with_private_tags))
    stripped = phantoms.write(tmp_path / "stripped", series)
    send_and_wait(node, full)
    send_and_wait(node, stripped, arrivals=2)
    first, second = node_rows.jobs(node, uid_of(full))
    assert (first.state, second.state) == ("succeeded", "succeeded")
    assert first.derived_uid == second.derived_uid
    assert len(node_rows.kept(node).keys() & digests_of(node, full)) == 8  # both are kept
    (delivery,) = node_rows.deliveries(node, uid_of(full))
    assert (delivery.state, delivery.offers) == ("sent", 2)


def digests_of(node: NodeProcess, files: list[Path]) -> set[tuple[str, str]]:
    """All kept versions of these instances."""
    uids = {str(dcmread(file, stop_before_pixels=True).SOPInstanceUID) for file in files}
    return {version for version in node_rows.kept(node) if version[0] in uids}


def test_a_merged_patient_gives_a_new_derived_series_and_the_old_one_never_changes_its_name(
    node: NodeProcess, archive: Storescp, tmp_path: Path
) -> None:
    series = Series(seed="merged", slices=4, patient=Patient("Emergency^Unknown", "TEMP-1"))
    merged = replace(series, patient=Patient("Right^Name", "REAL-1", "19501112", "F"))
    before = phantoms.write(tmp_path / "before", series)
    after = phantoms.write(tmp_path / "after", merged)
    send_and_wait(node, before, calling="SCANNER")
    (old,) = node_rows.jobs(node, uid_of(before))
    bytes_before = {path: path.read_bytes() for path in made_of(archive, old.derived_uid)}
    send_and_wait(node, after, arrivals=2, calling="PACS")
    _, new = node_rows.jobs(node, uid_of(before))
    assert new.state == "succeeded"
    assert new.derived_uid != old.derived_uid
    assert "rev 2" in headings(archive, new.derived_uid)[0]
    assert told(node, new) == 2
    assert check(after, made_of(archive, new.derived_uid), factor=2) == []
    assert {path: path.read_bytes() for path in made_of(archive, old.derived_uid)} == bytes_before
    uids = [
        {str(dcmread(path).SOPInstanceUID) for path in made_of(archive, job.derived_uid)}
        for job in (old, new)
    ]
    assert uids[0].isdisjoint(uids[1])


def test_a_correction_that_is_taken_back_brings_the_first_derived_series_back(
    node: NodeProcess, archive: Storescp, tmp_path: Path
) -> None:
    series = Series(seed="taken back", slices=3)
    wrong = replace(series, patient=Patient("Wrong^Merge", "WRONG"))
    right_files = phantoms.write(tmp_path / "right", series)
    wrong_files = phantoms.write(tmp_path / "wrong", wrong)
    for number, files in enumerate((right_files, wrong_files), start=1):
        send_and_wait(node, files, arrivals=number)
    first, _ = node_rows.jobs(node, uid_of(right_files))
    for path in archive.files():
        path.unlink()
    notices = node_rows.notices(node)
    send_and_wait(node, right_files, arrivals=3)
    assert len(node_rows.jobs(node, uid_of(right_files))) == 2
    assert check(right_files, archive.files(), factor=2) == []
    assert len(made_of(archive, first.derived_uid)) == 5
    assert headings(archive, first.derived_uid)[1] == 9003
    assert node_rows.notices(node) == notices  # nothing new was made


def test_half_of_a_correction_is_held_until_the_other_half_has_come(
    node: NodeProcess, archive: Storescp, tmp_path: Path
) -> None:
    series = Series(seed="half corrected", slices=4)
    corrected = replace(series, patient=Patient("Corrected^One", "PH-0002"))
    before = phantoms.write(tmp_path / "before", series)
    after = phantoms.write(tmp_path / "after", corrected)
    send_and_wait(node, before)
    send_and_wait(node, after[:2], arrivals=2)
    last = node_rows.jobs(node, uid_of(before))[-1]
    assert (last.state, last.reason) == ("held", "PATIENT_MISMATCH")
    send_and_wait(node, after[2:], arrivals=3)
    last = node_rows.jobs(node, uid_of(before))[-1]
    assert last.state == "succeeded"
    assert check(after, made_of(archive, last.derived_uid), factor=2) == []


@pytest.mark.parametrize("what", ["pixels", "position"])
def test_one_uid_with_two_contents_holds_the_job_and_keeps_both(
    node: NodeProcess, tmp_path: Path, what: str
) -> None:
    def other(dataset: Dataset, index: int) -> None:
        if what == "pixels":
            dataset.PixelData = bytes(len(dataset.PixelData) // 2) + dataset.PixelData[::2]
        else:
            dataset.ImagePositionPatient = [*dataset.ImagePositionPatient[:2], "-299.2"]

    series = Series(seed=f"conflicting {what}", slices=4)
    first = phantoms.write(tmp_path / "first", series)
    second = phantoms.write(tmp_path / "second", replace(series, edit=other))
    send_and_wait(node, first)
    send_and_wait(node, second[:1], arrivals=2)
    done, held = node_rows.jobs(node, uid_of(first))
    assert done.state == "succeeded"
    assert (held.state, held.reason) == ("held", "CONFLICTING_INSTANCES")
    assert "series again" in held.sentence
    assert len(digests_of(node, first)) == 5


def test_a_slice_that_is_late_while_the_series_is_arriving_is_part_of_it(
    node: NodeProcess, archive: Storescp, tmp_path: Path
) -> None:
    files = phantoms.write(tmp_path, Series(seed="late 0", slices=4))
    with RawPeer(node.port) as scanner:  # while it stays open, the series is not complete
        scanner.associate(associate_request(calling="STORESCU"))
        for file in files[:3]:
            uid = str(dcmread(file, stop_before_pixels=True).SOPInstanceUID)
            assert scanner.status(store_command(padded(uid)), data_set_of(file)) == 0
        send(node, files[3:])
        assert node.found("series complete", series_uid=uid_of(files)) == []
        scanner.release()
    node_rows.wait_until_settled(node, [uid_of(files)])
    node.event("series complete", series_uid=uid_of(files))
    (job,) = node_rows.jobs(node, uid_of(files))
    assert job.revision == 1
    assert check(files, made_of(archive, job.derived_uid), factor=2) == []


def test_a_slice_that_is_late_cancels_the_job_that_waits_and_the_one_that_runs(
    node: NodeProcess, archive: Storescp, tmp_path: Path
) -> None:
    running_one = phantoms.write(tmp_path / "running", Series(seed="late 1", slices=30))
    waiting_one = phantoms.write(tmp_path / "waiting", Series(seed="late 2", slices=4))
    node.slow_down()
    send(node, running_one[:-1], called="SLOW")
    node.event("series complete", series_uid=uid_of(running_one))
    (runs,) = node_rows.jobs(node, uid_of(running_one))
    node.event("job running", job=runs.id)
    send(node, waiting_one[:-1])
    node.event("series complete", series_uid=uid_of(waiting_one))
    send(node, [waiting_one[-1]])
    node.event("series complete", series_uid=uid_of(waiting_one), count=2)
    send(node, [running_one[-1]], called="SLOW")
    node.event("job cancelled", job=runs.id)
    node.hurry()
    node_rows.wait_until_settled(node, [uid_of(running_one), uid_of(waiting_one)], arrivals=2)
    for files in (running_one, waiting_one):
        older, newer = node_rows.jobs(node, uid_of(files))
        assert (older.state, older.reason) == ("cancelled", "SUPERSEDED")
        assert f"job {newer.id}" in older.sentence
        assert older.derived_uid is None
        assert check(files, made_of(archive, newer.derived_uid), factor=2) == []


def test_halves_of_two_phases_that_looked_like_one_stack_give_way_to_the_whole_phases(
    node: NodeProcess, archive: Storescp, tmp_path: Path
) -> None:
    def phase(number: int) -> Edit:
        def edit(dataset: Dataset, index: int) -> None:
            dataset.AcquisitionNumber = number
            dataset.SOPInstanceUID = phantoms.uid("phase", number, index)

        return edit

    series = Series(seed="two halves", slices=24)
    one, two = (
        phantoms.write(tmp_path / str(number), replace(series, edit=phase(number)))
        for number in (1, 2)
    )
    node.slow_down()
    send(node, [*one[:12], *two[12:]], called="SLOW")
    node.event("series complete", series_uid=uid_of(one))
    (mixed,) = node_rows.jobs(node, uid_of(one))
    node.event("job running", job=mixed.id)
    send(node, [*one[12:], *two[:12]], called="SLOW")
    node.event("job cancelled", job=mixed.id)
    node.hurry()
    node_rows.wait_until_settled(node, [uid_of(one)], arrivals=2)
    old, *whole = node_rows.jobs(node, uid_of(one))
    assert (old.state, old.reason, old.derived_uid) == ("cancelled", "SUPERSEDED", None)
    made = [made_of(archive, job.derived_uid) for job in whole]
    assert len(made) == 2
    for files in (one, two):
        assert [check(files, result, factor=2) for result in made].count([]) == 1


def test_a_slice_that_is_late_while_the_result_is_sent_ends_that_and_sends_the_whole(
    node: NodeProcess, stalling: tuple[Script, int], tmp_path: Path
) -> None:
    script, _ = stalling
    files = phantoms.write(tmp_path, Series(seed="late 3", slices=4))
    send(node, files[:3], called="STALLS")
    wait_for("the peer stalls", lambda: len(script.received) >= 2)
    send(node, files[3:], called="STALLS")
    node.event("series complete", series_uid=uid_of(files), count=2)
    script.stop.set()
    node_rows.wait_until_settled(node, [uid_of(files)], arrivals=2)
    old, new = node_rows.deliveries(node, uid_of(files))
    assert (old.state, old.reason, new.state) == ("cancelled", "SUPERSEDED", "sent")
    assert "of 5 instances are at the destination" in old.sentence


def test_a_slice_that_is_late_after_all_was_sent_makes_a_new_derived_series(
    node: NodeProcess, archive: Storescp, tmp_path: Path
) -> None:
    files = phantoms.write(tmp_path, Series(seed="late 4", slices=4))
    send_and_wait(node, files[:3])
    send_and_wait(node, files[3:], arrivals=2)
    older, newer = node_rows.jobs(node, uid_of(files))
    assert (older.state, newer.state) == ("succeeded", "succeeded")
    assert older.derived_uid != newer.derived_uid
    assert [headings(archive, job.derived_uid) for job in (older, newer)] == [
        ("AI-INTERP x2 2 of 5 NOT ACQUIRED | Thorax 5.0 B30f", 9003),
        ("AI-INTERP x2 3 of 7 NOT ACQUIRED rev 2 | Thorax 5.0 B30f", 10003),
    ]
    assert told(node, newer) == 2
    assert check(files[:3], made_of(archive, older.derived_uid), factor=2) == []
    assert check(files, made_of(archive, newer.derived_uid), factor=2) == []


def test_the_same_study_after_its_files_were_purged_is_made_again_under_new_uids(
    tmp_path: Path, archive: Storescp
) -> None:
    files = phantoms.write(tmp_path / "files", Series(seed="two days later", slices=4))
    node = NodeProcess(
        tmp_path / "node",
        destination("archive", "STORESCP", archive.port),
        route(destinations=["archive"]),
        quiet_seconds=0.7,
    )
    with running(node):
        send_and_wait(node, files)
        (before,) = node_rows.jobs(node, uid_of(files))
        node.terminate()
        assert node.wait() == 0
        text = (node.folder / "config.toml").read_text()
        forgetful = text.replace("keep_days = 7.0", "keep_days = 0.0")
        (node.folder / "config.toml").write_text(forgetful)
        node.start()
        node.event("series purged")
        assert node_rows.kept(node) == {}
        assert list((node.folder / "var" / "derived").iterdir()) == []
        send_and_wait(node, files, arrivals=2)
        (after,) = node_rows.jobs(node, uid_of(files))
        assert (after.state, before.edition, after.edition) == ("succeeded", 1, 2)
        assert after.derived_uid != before.derived_uid
        uids = [
            {str(dcmread(path).SOPInstanceUID) for path in made_of(archive, job.derived_uid)}
            for job in (before, after)
        ]
        assert [len(one) for one in uids] == [7, 7]
        assert uids[0].isdisjoint(uids[1])
        assert check(files, made_of(archive, after.derived_uid), factor=2) == []
        assert (before.revision, after.revision) == (1, 2)
        assert "rev 2" in headings(archive, after.derived_uid)[0]
        assert told(node, after) == 2
