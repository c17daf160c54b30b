"""Objects beside a derived series on the wire: stored by peers, refused by others, sent back."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from tests import series
from tests.node_process import NodeProcess, destination, route, running, wait_for
from tests.peers import Script, Storescp, orthanc, scripted_scp, storescp, storescu
from tests.ports import free_port

PRESENTATION_STATE = "1.2.840.10008.5.1.4.1.1.11.1"
SLICES = 3  # that are sent; 5 come of them, and a presentation state


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Storescp]:
    with storescp(tmp_path / "archive") as server:
        yield server


def delivery(node: NodeProcess, name: str) -> Any:
    (job,) = node.jobs()
    shown = node.cli("job", str(job["id"]))
    (found,) = [each for each in shown["deliveries"] if each["destination"] == name]
    return found


def state_series(node: NodeProcess) -> str:
    """The series of the presentation state, as `midslice job` names it."""
    (job,) = node.jobs()
    (named,) = node.cli("job", str(job["id"]))["record"]["objects"]
    assert named["kind"] == "presentation state"
    return str(named["series_uid"])


def test_orthanc_stores_the_state_and_what_it_routes_back_is_never_processed(
    tmp_path: Path,
) -> None:
    port = free_port()
    peers = {"midslice": ("MIDSLICE", port)}
    with orthanc(
        tmp_path / "pacs", ae_title="PACS", modalities=peers, routes_to="midslice"
    ) as pacs:
        node = NodeProcess(
            tmp_path / "node",
            destination("pacs", "PACS", pacs.address.port),
            route(presentation_state=True),
            port=port,
        )
        with running(node):
            storescu(node.port, *series.thick(SLICES), options=("-xt",))
            node.event("delivery sent", instances=2 * SLICES)
            uid = state_series(node)
            assert pacs.series()[uid] == 1
            (content,) = pacs.instances(uid)
            (tmp_path / "state.dcm").write_bytes(content)
            state = dcmread(tmp_path / "state.dcm")
            assert (state.SOPClassUID, state.Modality) == (PRESENTATION_STATE, "PR")
            (shown,) = state.ReferencedSeriesSequence
            assert pacs.series()[shown.SeriesInstanceUID] == 2 * SLICES - 1
            node.event("series complete", series_uid=uid)  # it came back
            assert node.found("series complete", series_uid=uid)[0]["jobs"] == 0
            assert [job["series_uid"] for job in node.jobs()] == [series.SERIES_UID]


def test_a_destination_that_takes_no_such_class_gets_the_series_and_is_named(
    tmp_path: Path, archive: Storescp
) -> None:
    strict, aborts = Script(), Script(sop_classes=(series_class(), PRESENTATION_STATE))
    aborts.abort_at = 2 * SLICES  # the state comes last
    with scripted_scp(strict) as strict_port, scripted_scp(aborts) as aborts_port:
        names = ["strict", "aborts", "archive"]
        node = NodeProcess(
            tmp_path / "node",
            destination("strict", "SCRIPTED", strict_port),
            destination("aborts", "SCRIPTED", aborts_port),
            destination("archive", "STORESCP", archive.port),
            route(destinations=names, presentation_state=True),
        )
        with running(node):
            storescu(node.port, *series.thick(SLICES), options=("-xt",))
            for name in names:
                node.event("delivery sent", destination=name)
            strict_one, aborts_one, archive_one = (delivery(node, name) for name in names)
            (job,) = node.jobs()
            node.cli("redeliver", str(job["id"]), "--to", "archive")
            node.event("delivery sent", destination="archive", count=2)
    assert (strict_one["state"], strict_one["reason"]) == ("sent", "OBJECT_NOT_TAKEN")
    assert (strict_one["sent"], strict_one["total"]) == (2 * SLICES - 1, 2 * SLICES)
    assert "not taken: its presentation state" in strict_one["sentence"]
    assert len(strict.received) == 2 * SLICES - 1
    assert node.event("object not taken", destination="strict")["which"] == ["presentation state"]
    assert (aborts_one["state"], aborts_one["sent"]) == ("sent", 2 * SLICES)  # at the second try
    assert (archive_one["sent"], archive_one["total"]) == (2 * SLICES, 2 * SLICES)
    wait_for("all files", lambda: len(archive.files()) == 2 * SLICES)


def series_class() -> str:
    return str(dcmread(series.thick(1)[0], stop_before_pixels=True).SOPClassUID)
