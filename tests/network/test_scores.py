"""A model of scores in a whole node: DCMTK sends a head, Orthanc gets all its results."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread

from inference.dataset import read_headers
from node.demo.peers import Orthanc
from node.score_opinion import check
from tests import ct_head, series
from tests.node_process import NodeProcess, destination, running
from tests.peers import dcmsend, orthanc
from tests.ports import free_port

SECONDS = 180.0  # for the worker to load its models and for the network on a busy machine
ROUTE = (
    '\n[[route]]\nname = "heads"\nmodel = "haemorrhage"\nmatch = { Modality = "CT" }\n'
    'destinations = ["pacs"]\n'
)


@pytest.mark.timeout(400)
def test_the_scores_of_a_head_come_to_the_pacs_as_a_report_with_key_images_and_a_page(
    tmp_path: Path,
) -> None:
    sent, port = ct_head.head_files(), free_port()
    with orthanc(
        tmp_path / "pacs",
        ae_title="PACS",
        modalities={"midslice": ("MIDSLICE", port)},
        routes_to="midslice",
    ) as pacs:
        there = destination("pacs", "PACS", pacs.address.port)
        node = NodeProcess(tmp_path / "node", there, ROUTE, port=port)
        with running(node):
            assert dcmsend(node.port, *sent).code == 0
            node.event("delivery sent", seconds=SECONDS, instances=3)
            uids = [named["series_uid"] for named in record_of_the_only_job(node)["objects"]]
            files = fetched(pacs, uids, tmp_path)
            assert not check(sent, files)
            assert [header.text("Modality") for header in read_headers(files)] == ["SR", "KO", "OT"]
            page = dcmread(files[-1])
            rendered = pacs.rendered(page.SOPInstanceUID)
            assert rendered is not None
            shown = np.asarray(Image.open(BytesIO(rendered)).convert("RGB"))
            np.testing.assert_array_equal(shown, page.pixel_array)
            # What the PACS routes back is kept, and no job comes of it.
            for uid in uids:
                node.event("series complete", series_uid=uid, seconds=SECONDS)
                assert node.found("series complete", series_uid=uid)[0]["jobs"] == 0
            # Sent again, it is delivered again, without a second run.
            assert dcmsend(node.port, *sent).code == 0
            node.event("delivery sent", count=2, seconds=SECONDS, instances=3)
            assert len(node.jobs()) == 1
            # A chest by the same route has no score.
            assert dcmsend(node.port, *series.thick()).code == 0
            node.event("job refused", reason="OUT_OF_SCOPE", seconds=SECONDS)
            refused = next(job for job in node.jobs() if job["series_uid"] == series.SERIES_UID)
            assert refused["state"] == "refused"
            assert "scores" not in node.cli("job", str(refused["id"]))["record"]


def record_of_the_only_job(node: NodeProcess) -> dict[str, Any]:
    (job,) = node.jobs()
    assert (job["state"], job["model"], job["route"]) == ("succeeded", "haemorrhage", "heads")
    record: dict[str, Any] = node.cli("job", str(job["id"]))["record"]
    assert record["scores"]["is_present"]
    assert [named["kind"] for named in record["objects"]] == ["report", "key objects", "capture"]
    return record


def fetched(pacs: Orthanc, uids: Sequence[str], folder: Path) -> list[Path]:
    """The only instance of each series, as the PACS gives it back."""
    files = []
    for number, uid in enumerate(uids):
        (content,) = pacs.instances(uid)
        files.append(folder / f"{number:03d}.dcm")
        files[-1].write_bytes(content)
    return files
