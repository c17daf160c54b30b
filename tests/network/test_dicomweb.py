"""DICOMweb of a whole node: to Orthanc with its plugin, and asked by dicomweb-client."""

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
import requests
from dicomweb_client.api import DICOMwebClient
from PIL import Image
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


@pytest.fixture
def served(tmp_path: Path) -> Iterator[NodeProcess]:
    """A node that has three received slices of JPEG-LS and their result of five."""
    with running(NodeProcess(tmp_path / "node", route(destinations=()))) as node:
        assert storescu(node.port, *series.thick(3), options=("-xt",)).code == 0
        node.event("job succeeded", seconds=BUSY_SECONDS)
        yield node


def token(node: NodeProcess, role: str) -> str:
    return str(node.cli("token", "add", role, "--role", role)["token"])


def address(node: NodeProcess) -> str:
    return f"http://127.0.0.1:{node.web_port}/dicom-web"


def test_a_client_finds_and_retrieves_what_the_node_has(served: NodeProcess) -> None:
    session = requests.Session()
    session.headers["Authorization"] = f"Bearer {token(served, 'viewer')}"
    client = DICOMwebClient(address(served), session=session)
    (study,) = client.search_for_studies()
    study_uid = study["0020000D"]["Value"][0]
    assert (study["00201206"]["Value"], study["00201208"]["Value"]) == ([2], [8])
    derived_uid = served.jobs()[0]["derived_series_uid"]
    found = client.search_for_series(study_uid)
    counts = {it["0020000E"]["Value"][0]: it["00201209"]["Value"][0] for it in found}
    assert counts == {series.SERIES_UID: 3, derived_uid: 5}
    assert len(client.search_for_instances(study_uid, derived_uid, limit=2)) == 2
    patient_id = study["00100020"]["Value"][0]
    for filters in ({"PatientID": patient_id}, {"00100020": f"{patient_id[:-1]}*"}):
        assert len(client.search_for_studies(search_filters=filters)) == 1
    assert client.search_for_studies(search_filters={"PatientID": "nobody"}) == []

    kept = {str(it.SOPInstanceUID): it for it in map(dcmread, _files(served, "derived"))}
    retrieved = client.retrieve_series(study_uid, derived_uid)
    assert {str(it.SOPInstanceUID): it.PixelData for it in retrieved} == {
        uid: it.PixelData for uid, it in kept.items()
    }
    sent = {str(it.SOPInstanceUID): it for it in map(dcmread, series.thick(3))}
    uid, first = next(iter(sent.items()))
    got = client.retrieve_instance(
        study_uid, series.SERIES_UID, uid, media_types=(("application/dicom", "*"),)
    )
    assert got.PixelData == first.PixelData  # JPEG-LS, as it was sent

    metadata = client.retrieve_series_metadata(study_uid, derived_uid)
    assert {it["00080018"]["Value"][0] for it in metadata} == set(kept)
    assert {it["00281053"]["Value"][0] for it in metadata} == {1.0}  # Rescale Slope
    assert not any("7FE00010" in it for it in metadata)
    picture = session.get(
        f"{address(served)}/studies/{study_uid}/series/{series.SERIES_UID}/instances/{uid}/rendered"
    )
    assert picture.headers["Content-Type"] == "image/png"
    image = Image.open(BytesIO(picture.content))
    assert image.size == (first.Columns, first.Rows)
    assert len(image.getcolors(1 << 16) or ()) > 50


def test_what_is_asked_wrongly_or_by_nobody_gets_a_sentence(served: NodeProcess) -> None:
    url = address(served)
    assert requests.get(f"{url}/studies").status_code == 401
    headers = {"Authorization": f"Bearer {token(served, 'viewer')}"}

    def said(path: str, **more: str) -> tuple[int, str]:
        answer = requests.get(f"{url}{path}", headers={**headers, **more})
        return answer.status_code, answer.text

    status, text = said("/studies?Moon=full")
    assert (status, "Moon is no filter here; allowed: StudyInstanceUID" in text) == (400, True)
    for wrong in ("StudyDate=yesterday", "limit=-1", "offset=x"):
        assert said(f"/studies?{wrong}")[0] == 400
    assert said("/studies", Accept="text/html")[0] == 406
    assert said("/studies/1.2.3")[0] == 404
    assert said("/studies/1.2.3/metadata")[0] == 404
    assert said("/studies/..%2F..%2Fsecret")[0] in (404, 422)
    assert said("/studies/1.2.3/series/a%20b")[0] == 400
    assert requests.delete(f"{url}/studies", headers=headers).status_code == 405


def _files(node: NodeProcess, folder: str) -> list[Path]:
    return list((node.folder / "var" / folder).rglob("*.dcm"))
