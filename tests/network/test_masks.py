"""A model of masks in a whole node: DCMTK sends a head, Orthanc gets both results as one."""

from pathlib import Path

import pytest

from inference.dataset import read_headers
from node.mask_opinion import check
from tests import series
from tests.mr_series import HEAD
from tests.node_process import NodeProcess, destination, running
from tests.peers import dcmsend, orthanc
from tests.ports import free_port

SECONDS = 180.0  # for the worker to load its models and for the networks on a busy machine


def route(modality: str) -> str:
    return (
        f'\n[[route]]\nname = "brain-{modality.lower()}"\nmodel = "brain"\n'
        f'match = {{ Modality = "{modality}" }}\ndestinations = ["pacs"]\n'
    )


@pytest.mark.timeout(400)
def test_a_head_comes_to_the_pacs_as_a_segmentation_and_an_extracted_series(
    tmp_path: Path,
) -> None:
    sent = sorted(HEAD.glob("*.dcm"))
    port = free_port()
    with orthanc(
        tmp_path / "pacs",
        ae_title="PACS",
        modalities={"midslice": ("MIDSLICE", port)},
        routes_to="midslice",
    ) as pacs:
        node = NodeProcess(
            tmp_path / "node",
            destination("pacs", "PACS", pacs.address.port),
            route("MR"),
            route("CT"),
            port=port,
        )
        with running(node):
            assert dcmsend(node.port, *sent).code == 0
            node.event("delivery sent", seconds=SECONDS, instances=len(sent) + 1)
            (job,) = node.jobs()
            shown = node.cli("job", str(job["id"]))
            assert (job["state"], job["model"], job["route"]) == ("succeeded", "brain", "brain-mr")
            (segmentation,) = shown["record"]["objects"]
            uids = [shown["derived_series_uid"], segmentation["series_uid"]]
            assert [pacs.series()[uid] for uid in uids] == [len(sent), 1]
            files = []
            for number, content in enumerate(c for uid in uids for c in pacs.instances(uid)):
                files.append(tmp_path / f"{number:03d}.dcm")
                files[-1].write_bytes(content)
            assert not check(sent, files)
            # What the PACS routes back is kept, and no job comes of it.
            for uid in uids:
                node.event("series complete", series_uid=uid, seconds=SECONDS)
                assert node.found("series complete", series_uid=uid)[0]["jobs"] == 0
            # Sent again, it is delivered again, without a second run.
            assert dcmsend(node.port, *sent).code == 0
            node.event("delivery sent", count=2, seconds=SECONDS, instances=len(sent) + 1)
            assert len(node.jobs()) == 1
            # A chest by a route that asks for a brain.
            assert dcmsend(node.port, *series.thick()).code == 0
            node.event("job refused", reason="NOT_AN_MR_SLICE", seconds=SECONDS)
            refused = next(job for job in node.jobs() if job["series_uid"] == series.SERIES_UID)
            assert (refused["state"], refused["reason"]) == ("refused", "NOT_AN_MR_SLICE")
    assert {header.text("Modality") for header in read_headers(files)} == {"MR", "SEG"}
