"""The main job with real peers: DCMTK sends, the node derives, Orthanc and storescp receive."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from node.second_opinion import check
from tests import series
from tests.node_process import NodeProcess, destination, route, running, wait_for
from tests.peers import Orthanc, Storescp, dcmsend, orthanc, storescp, storescu
from tests.ports import free_port
from tests.postgres import PostgresServer
from tests.validators import new_complaints


@pytest.fixture
def pacs(tmp_path: Path) -> Iterator[Orthanc]:
    with orthanc(tmp_path / "pacs", ae_title="PACS") as server:
        yield server


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Storescp]:
    with storescp(tmp_path / "archive") as server:
        yield server


def held_by(pacs: Orthanc, series_uid: str, folder: Path) -> list[Path]:
    """What the PACS holds of a series, as files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number, content in enumerate(pacs.instances(series_uid)):
        files.append(folder / f"{number:03d}.dcm")
        files[-1].write_bytes(content)
    return files


def only_job(node: NodeProcess) -> dict[str, Any]:
    (job,) = node.jobs()
    return job


def test_a_series_that_a_scanner_sends_comes_to_the_pacs_as_a_correct_derived_series(
    tmp_path: Path, pacs: Orthanc
) -> None:
    sent = series.thick()
    node = NodeProcess(
        tmp_path / "node",
        destination("pacs", "PACS", pacs.address.port),
        route(model="midslice", factor=4),
    )
    with running(node):
        assert storescu(node.port, *sent, options=("-xt",)).code == 0  # JPEG-LS, as it is
        node.event("delivery sent")
        job = only_job(node)
        assert job["state"] == "succeeded"
        assert job["model"] == "midslice"
        assert job["series_uid"] == series.SERIES_UID
        total = len(sent) + 3 * (len(sent) - 1)
        assert job["deliveries"] == [
            {"destination": "pacs", "state": "sent", "sent": total, "confirmed": 0, "total": total}
        ]
        made = held_by(pacs, job["derived_series_uid"], tmp_path / "made")
        assert check(sent, made, factor=4) == []
        # Beside what the scanner sent to the same PACS, which re-encodes empty names on its way.
        assert storescu(pacs.address.port, *sent, called="PACS", options=("-xt",)).code == 0
        received = held_by(pacs, series.SERIES_UID, tmp_path / "received")
        assert new_complaints(received, made) == []


def test_native_and_jpeg_ls_series_give_bit_identical_derived_series(
    tmp_path: Path, archive: Storescp
) -> None:
    compressed = series.thick()
    node = NodeProcess(
        tmp_path / "node",
        destination("archive", "STORESCP", archive.port),
        route(destinations=["archive"]),
    )
    with running(node):
        assert dcmsend(node.port, *series.native(compressed, tmp_path / "native")).code == 0
        node.event("delivery sent")
        first = {path.name: path.read_bytes() for path in archive.files()}
        assert len(first) == 2 * len(compressed) - 1
        for path in archive.files():
            path.unlink()
        # The workstation sends the same images again, compressed: equal pixels, equal headers.
        assert storescu(node.port, *compressed, calling="WORKSTATION", options=("-xt",)).code == 0
        node.event("delivery sent", count=2)
        assert {path.name: path.read_bytes() for path in archive.files()} == first
        assert {job["derived_series_uid"] for job in node.jobs()} != {None}
        assert len({job["derived_series_uid"] for job in node.jobs()}) == 1


def test_a_series_sent_again_is_delivered_again_without_inference(
    tmp_path: Path, archive: Storescp
) -> None:
    node = NodeProcess(
        tmp_path / "node",
        destination("archive", "STORESCP", archive.port),
        route(destinations=["archive"]),
    )
    with running(node):
        files = series.thick()
        storescu(node.port, *files, options=("-xt",))
        node.event("delivery sent")
        for path in archive.files():
            path.unlink()
        storescu(node.port, *files, options=("-xt",))
        node.event("delivery sent", count=2)
        assert len(archive.files()) == 2 * len(files) - 1
        assert len(node.found("job running")) == 1
        assert only_job(node)["attempt"] == 1


def test_another_called_ae_title_on_the_same_port_makes_another_derived_series(
    tmp_path: Path, archive: Storescp
) -> None:
    more = 'called_ae_title = "MIDSLICE_X5"\n'
    node = NodeProcess(
        tmp_path / "node",
        destination("archive", "STORESCP", archive.port),
        route(destinations=["archive"]),
        route(factor=5, destinations=["archive"], more=more).replace("ct-slices", "five"),
    )
    with running(node):
        files = series.thick(4)
        storescu(node.port, *files, options=("-xt",))
        node.event("delivery sent")
        storescu(node.port, *files, called="MIDSLICE_X5", options=("-xt",))
        node.event("delivery sent", count=2)
        jobs = node.jobs()
        assert {job["route"] for job in jobs} == {"ct-slices", "five"}
        assert {job["deliveries"][0]["total"] for job in jobs} == {4 + 3, 4 + 3 * 4}
        assert storescu(node.port, *files, called="NOBODY", options=("-xt",)).code != 0
        assert "called AE title" in node.event("association rejected", called_ae="NOBODY")["reason"]


def test_results_that_a_pacs_routes_back_are_kept_and_never_processed(tmp_path: Path) -> None:
    port = free_port()
    peers = {"midslice": ("MIDSLICE", port)}
    with orthanc(
        tmp_path / "pacs", ae_title="PACS", modalities=peers, routes_to="midslice"
    ) as pacs:
        node = NodeProcess(
            tmp_path / "node", destination("pacs", "PACS", pacs.address.port), route(), port=port
        )
        with running(node):
            files = series.thick(4)
            storescu(node.port, *files, options=("-xt",))
            node.event("delivery sent")
            derived_uid = only_job(node)["derived_series_uid"]
            node.event("series complete", series_uid=derived_uid)  # it came back
            assert [job["series_uid"] for job in node.jobs()] == [series.SERIES_UID]
            assert node.found("series complete", series_uid=derived_uid)[0]["jobs"] == 0


def test_a_route_to_the_sender_and_one_to_a_second_destination_both_get_the_result(
    tmp_path: Path, archive: Storescp, pacs: Orthanc
) -> None:
    node = NodeProcess(
        tmp_path / "node",
        destination("archive", "STORESCP", archive.port),
        destination("pacs", "PACS", pacs.address.port, 'sends_as = ["PACS_ROUTER"]\n'),
        route(destinations=["sender", "archive"]),
    )
    with running(node):
        storescu(node.port, *series.thick(4), calling="PACS_ROUTER", options=("-xt",))
        node.event("delivery sent", count=2)
        assert len(archive.files()) == 7
        assert len(pacs.get("/instances")) == 7


def test_a_result_for_a_sender_that_nobody_knows_is_held_and_says_so(tmp_path: Path) -> None:
    node = NodeProcess(tmp_path / "node", route(destinations=["sender"]))
    with running(node):
        storescu(node.port, *series.thick(3), calling="STRANGER", options=("-xt",))
        node.event("delivery held", reason="NO_DESTINATION")
        (delivery,) = only_job(node)["deliveries"]
        assert delivery["destination"] == "sender STRANGER"
        assert delivery["state"] == "held"


def test_a_destination_that_is_down_gets_everything_once_it_is_back(tmp_path: Path) -> None:
    port = free_port()
    node = NodeProcess(
        tmp_path / "node",
        destination("archive", "STORESCP", port),
        route(destinations=["archive"]),
    )
    with running(node):
        storescu(node.port, *series.thick(4), options=("-xt",))
        node.event("delivery delayed", count=2)
        with storescp(tmp_path / "archive", port=port) as archive:
            node.event("delivery sent")
            assert len(archive.files()) == 7


def test_shadow_mode_derives_and_sends_nothing(tmp_path: Path) -> None:
    node = NodeProcess(tmp_path / "node", route(destinations=[]))
    with running(node):
        storescu(node.port, *series.thick(3), options=("-xt",))
        node.event("job succeeded")
        assert only_job(node)["deliveries"] == []


def test_what_is_no_models_input_is_kept_and_has_no_job(tmp_path: Path) -> None:
    def to_mr(dataset: Any) -> None:
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = (
            "1.2.840.10008.5.1.4.1.1.4"
        )
        dataset.Modality = "MR"

    node = NodeProcess(tmp_path / "node", route(destinations=[]))
    with running(node):
        files = series.changed(series.thick(3), tmp_path / "mr", to_mr)
        assert storescu(node.port, *files, options=("-xt",)).code == 0
        assert node.event("series complete")["jobs"] == 0
        (kept,) = node.cli("series")
        assert kept["instances"] == 3


def test_sighup_applies_routes_and_says_what_needs_a_restart(
    tmp_path: Path, archive: Storescp
) -> None:
    node = NodeProcess(tmp_path / "node", route(destinations=[]))
    with running(node):
        node.configure(
            destination("archive", "STORESCP", archive.port),
            route(destinations=["archive"]),
            port=free_port(),
        )
        node.hang_up()
        node.event("configuration applied")
        assert node.event("needs a restart")["key"] == "node.port"
        storescu(node.port, *series.thick(3), options=("-xt",))
        node.event("delivery sent")
        node.configure("[[route]]\nname = 3\n")
        node.hang_up()
        assert "route" in node.event("configuration refused")["error"]
        wait_for("still alive", lambda: storescu(node.port, *series.thick(3)).code is not None)


def test_a_node_on_postgresql_does_the_same_and_continues_after_a_kill(
    tmp_path: Path, archive: Storescp, postgres_server: PostgresServer
) -> None:
    node = NodeProcess(
        tmp_path / "node",
        destination("archive", "STORESCP", archive.port),
        route(destinations=["archive"]),
        database=postgres_server.create(f"node_{tmp_path.name}"),
    )
    with running(node):
        files = series.thick(4)
        storescu(node.port, *files, options=("-xt",))
        node.event("series complete")
        node.kill()
        node.start()
        wait_for("all delivered", lambda: len(archive.files()) == 7)
        assert check(files, archive.files(), factor=2) == []
        assert not list((tmp_path / "node" / "var").glob("*.db"))
