"""DICOMweb of a whole node: to Orthanc with its plugin, and asked by dicomweb-client."""

import base64
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
import requests
from dicomweb_client.api import DICOMwebClient
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.encaps import generate_frames

from storage.records import Role
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


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    """A node with three received slices of JPEG-LS, their result of five, and another study."""
    folder = tmp_path_factory.mktemp("served")
    other = series.changed(series.thick(1), folder / "other", of_another_study)
    with running(NodeProcess(folder / "node", route(destinations=()))) as node:
        assert storescu(node.port, *series.thick(3), options=("-xt",)).code == 0
        assert storescu(node.port, *other, options=("-xt",)).code == 0
        node.event("job succeeded", seconds=BUSY_SECONDS)
        yield node


LUT = bytes(range(256)) * 8


def of_another_study(dataset: Dataset) -> None:
    """An object that no route takes, with a long and a short binary value in a sequence."""
    dataset.StudyInstanceUID = dataset.SeriesInstanceUID = dataset.SOPInstanceUID = "2.25.18"
    dataset.Modality, dataset.PatientID = "OT", "OTHER"
    item = Dataset()
    item.add_new(0x00281201, "OW", LUT)
    item.add_new(0x00281202, "OW", b"short value!")
    dataset.add_new(0x00289520, "SQ", [item])


def session_of(node: NodeProcess) -> requests.Session:
    """A program that may look."""
    session = requests.Session()
    session.headers.update(node.program_of("viewer", Role.VIEWER))
    return session


def address(node: NodeProcess) -> str:
    return f"http://127.0.0.1:{node.web_port}/dicom-web"


def test_a_client_finds_and_retrieves_what_the_node_has(served: NodeProcess) -> None:
    session = session_of(served)
    client = DICOMwebClient(address(served), session=session)
    (study,) = client.search_for_studies(search_filters={"PatientID": "LIDC*"})
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


def test_studies_are_found_by_their_modalities(served: NodeProcess) -> None:
    client = DICOMwebClient(address(served), session=session_of(served))
    of_study = {it["0020000D"]["Value"][0]: it["00080061"] for it in client.search_for_studies()}
    assert len(of_study) == 2
    assert of_study["2.25.18"] == {"vr": "CS", "Value": ["OT"]}
    (other,) = client.search_for_studies(search_filters={"ModalitiesInStudy": "OT"})
    assert other["0020000D"]["Value"] == ["2.25.18"]


def test_a_viewer_gets_frames_as_they_are_kept_or_decoded(served: NodeProcess) -> None:
    session = session_of(served)
    client = DICOMwebClient(address(served), session=session)
    first = dcmread(series.thick(3)[0])
    of = (str(first.StudyInstanceUID), series.SERIES_UID, str(first.SOPInstanceUID))
    (encoded,) = generate_frames(first.PixelData, number_of_frames=1)
    for media_types in ((("application/octet-stream", "*"),), ("image/jls",)):
        assert client.retrieve_instance_frames(*of, [1], media_types=media_types) == [encoded]
    (decoded,) = client.retrieve_instance_frames(*of, [1])
    assert decoded == first.pixel_array.tobytes()
    url = f"{instance_url(served, first)}/frames/1"
    octets = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'
    part = session.get(url, headers={"Accept": octets})
    kind = b"Content-Type: application/octet-stream; transfer-syntax=1.2.840.10008.1.2.4.80"
    assert kind in part.content

    made = dcmread(_files(served, "derived")[0])
    whole = session.get(
        f"{instance_url(served, made)}/frames/1",
        headers={"Accept": "application/octet-stream; transfer-syntax=*"},
    )
    assert whole.content == made.PixelData
    assert whole.headers["Content-Type"].endswith("transfer-syntax=1.2.840.10008.1.2.1")
    rows = served.rows("select who, which from audit where what = 'view'")
    assert 2 <= len(rows) == len(set(rows))  # of each person and series one, however many slices


@pytest.mark.parametrize(
    ("frames", "accept", "status", "words"),
    [
        ("2", "*/*; transfer-syntax=*", 404, "no frame 2"),
        ("2", "*/*", 404, "all of the frames 2"),
        ("0", "image/jls", 404, "no frame 0"),
        ("1,x", "*/*", 400, "1,2,3"),
        (",".join("1" * 1001), "*/*", 413, "at most 1000"),
        (",".join("1" * 33), "*/*", 413, "at most 32"),
        ("1", "image/jp2", 406, "image/jls"),
        ("1", "*/*; transfer-syntax=1.2.840.10008.1.2.4.90", 406, "offered"),
    ],
)
def test_frames_that_cannot_be_had_get_a_sentence(
    served: NodeProcess, frames: str, accept: str, status: int, words: str
) -> None:
    url = f"{instance_url(served, dcmread(series.thick(3)[0]))}/frames/{frames}"
    answer = session_of(served).get(url, headers={"Accept": accept}, timeout=60)
    assert (answer.status_code, words in answer.json()["detail"]) == (status, True), answer.text


def test_pictures_have_the_size_and_the_format_that_is_asked_for(served: NodeProcess) -> None:
    session = session_of(served)
    url = instance_url(served, dcmread(series.thick(3)[0]))
    for path in (f"{url}/thumbnail", f"{url}/frames/1/thumbnail", f"{url}/../../thumbnail"):
        small = session.get(path, headers={"Accept": "image/jpeg"})
        assert small.headers["Content-Type"] == "image/jpeg"
        assert max(Image.open(BytesIO(small.content)).size) == 128
    sized = session.get(f"{url}/rendered?viewport=64,64", headers={"Accept": "image/png"})
    assert max(Image.open(BytesIO(sized.content)).size) == 64
    assert session.get(f"{url}/rendered?viewport=0,x").status_code == 400


def test_long_binary_values_have_an_address_of_their_own(served: NodeProcess) -> None:
    session = session_of(served)
    client = DICOMwebClient(address(served), session=session)
    document = client.retrieve_instance_metadata("2.25.18", "2.25.18", "2.25.18")
    (item,) = document["00289520"]["Value"]
    assert base64.b64decode(item["00281202"]["InlineBinary"]) == b"short value!"
    host = address(served).removesuffix("/dicom-web")
    url = f"{host}{item['00281201']['BulkDataURI']}"
    assert client.retrieve_bulkdata(url) == [LUT]
    for wrong in ("00100010", "00289520/5/00281201"):
        answer = session.get(f"{url.partition('/bulkdata/')[0]}/bulkdata/{wrong}")
        assert (answer.status_code, answer.json()["status"]) == (404, 404)


def instance_url(node: NodeProcess, of: Dataset) -> str:
    """The address of an instance."""
    uids = of.StudyInstanceUID, of.SeriesInstanceUID, of.SOPInstanceUID
    return "{}/studies/{}/series/{}/instances/{}".format(address(node), *uids)


def test_what_is_asked_wrongly_or_by_nobody_gets_a_sentence(served: NodeProcess) -> None:
    url = address(served)
    assert requests.get(f"{url}/studies").status_code == 401
    headers = served.program_of("viewer", Role.VIEWER)

    def said(path: str, **more: str) -> tuple[int, str]:
        answer = requests.get(f"{url}{path}", headers={**headers, **more})
        return answer.status_code, answer.text

    status, text = said("/studies?Moon=full")
    assert (status, "Moon is no filter here; allowed: StudyInstanceUID" in text) == (400, True)
    for wrong in ("StudyDate=yesterday", "limit=-1", "offset=x"):
        assert said(f"/studies?{wrong}")[0] == 400
    assert said("/studies", Accept="text/html")[0] == 406
    assert said("/studies/1.2.3")[0] == 404
    foreign = {"Origin": "https://ohif.example.org"}
    preflight = requests.options(f"{url}/studies", headers=foreign)
    assert preflight.status_code == 405
    assert "Access-Control-Allow-Origin" not in preflight.headers
    assert said("/studies/1.2.3/metadata")[0] == 404
    assert said("/studies/..%2F..%2Fsecret")[0] in (404, 422)
    assert said("/studies/1.2.3/series/a%20b")[0] == 400
    assert requests.delete(f"{url}/studies", headers=headers).status_code == 405


def _files(node: NodeProcess, folder: str) -> list[Path]:
    return list((node.folder / "var" / folder).rglob("*.dcm"))
