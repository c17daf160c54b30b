"""A model of findings in a whole node: DCMTK sends a chest, Orthanc gets six objects as one."""

from pathlib import Path

import pytest
from pydicom import dcmread

from inference.dataset import read_headers
from node.finding_opinion import check
from tests import chest_findings as chest
from tests.node_process import NodeProcess, destination, running
from tests.peers import dcmsend, orthanc
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
SECONDS = 60.0
MODEL = '\n[[model]]\nname = "balls"\nclass = "tests.chest_findings:Balls"\nproduces = "findings"\n'
ROUTE = (
    '\n[[route]]\nname = "chest"\nmodel = "balls"\nmatch = { Modality = "CT" }\n'
    'max_findings = 1\ndestinations = ["pacs"]\n'
)
KINDS = ["report", "segmentation", "segmentation", "presentation state", "key objects", "capture"]
MODALITIES = {"SR", "SEG", "PR", "KO", "OT"}


@pytest.mark.timeout(300)
def test_a_chest_comes_to_the_pacs_as_a_report_with_all_that_belongs_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # a site's model is any importable class
    sent, port = chest.write(tmp_path / "sent"), free_port()
    with orthanc(
        tmp_path / "pacs",
        ae_title="PACS",
        modalities={"midslice": ("MIDSLICE", port)},
        routes_to="midslice",
    ) as pacs:
        node = NodeProcess(
            tmp_path / "node",
            destination("pacs", "PACS", pacs.address.port),
            ROUTE,
            MODEL,
            port=port,
        )
        with running(node):
            assert dcmsend(node.port, *sent).code == 0
            node.event("delivery sent", seconds=SECONDS, instances=6)
            (job,) = node.jobs()
            shown = node.cli("job", str(job["id"]))
            assert (job["state"], job["model"], job["route"]) == ("succeeded", "balls", "chest")
            record = shown["record"]
            assert [named["kind"] for named in record["objects"]] == KINDS
            assert (len(record["findings"]), record["findings_cut"]) == (1, 1)
            assert record["objects"][0]["series_uid"] == shown["derived_series_uid"]
            uids = [named["series_uid"] for named in record["objects"]]
            assert [pacs.series()[uid] for uid in uids] == [1] * 6
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
            node.event("delivery sent", count=2, seconds=SECONDS, instances=6)
            assert len(node.jobs()) == 1
    assert {header.text("Modality") for header in read_headers(files)} == MODALITIES
    assert {dcmread(file).StudyInstanceUID for file in [*sent, *files]} == {
        dcmread(sent[0]).StudyInstanceUID
    }
