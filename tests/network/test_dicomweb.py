"""DICOMweb between a whole node and Orthanc with its DICOMweb plugin."""

from io import BytesIO
from pathlib import Path

from pydicom import dcmread

from tests import series
from tests.node_process import NodeProcess, route, running, wait_for
from tests.peers import orthanc, storescu

BUSY_SECONDS = 180.0  # a job, on a machine whose cores others want too
PLUGIN = {"Plugins": ["/usr/share/orthanc/plugins/libOrthancDicomWeb.so"]}
DESTINATION = '\n[[destination]]\nname = "pacs"\nkind = "dicomweb"\nurl = "{url}/dicom-web"\n'


def test_results_are_stored_in_orthanc_by_stow_rs_also_when_it_was_away(tmp_path: Path) -> None:
    with orthanc(tmp_path / "pacs", configuration=PLUGIN) as pacs:
        parts = DESTINATION.format(url=pacs.url), route()
        with running(NodeProcess(tmp_path / "node", *parts)) as node:
            assert node.cli("echo")[0]["ok"]
            assert storescu(node.port, *series.thick(3), options=("-xt",)).code == 0
            node.event("delivery sent", seconds=BUSY_SECONDS)
            (job,) = node.jobs()
            (delivery,) = job["deliveries"]
            assert (delivery["state"], delivery["sent"], delivery["total"]) == ("sent", 5, 5)
            assert set(pacs.series()) == {job["derived_series_uid"]}
            files = (node.folder / "var" / "derived").rglob("*.dcm")
            made = {str(it.SOPInstanceUID): it.PixelData for it in map(dcmread, files)}
            kept = [dcmread(BytesIO(it)) for it in pacs.instances(job["derived_series_uid"])]
            assert {str(it.SOPInstanceUID): it.PixelData for it in kept} == made
            pacs.stop()
            node.cli("redeliver", str(job["id"]))
            wait_for("the retry", lambda: node.found("delivery delayed") or None)
            assert node.event("destination down")["destination"] == "pacs"
