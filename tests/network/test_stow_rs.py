"""STOW-RS as a way into a whole node: what it keeps, what it refuses, and what an upload leaves."""

import contextlib
import http.client
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from dicomweb_client.api import DICOMwebClient
from pydicom import Dataset, dcmread

from node.dicom.scu import Outgoing
from node.dicom.status import Outcome
from storage.records import Role
from tests import series
from tests.node_process import NodeProcess, route, running, wait_for
from tests.peers import orthanc, storescu
from tests.sending import Answers

BUSY_SECONDS = 180.0  # a job, on a machine whose cores others want too
PLUGIN = "/usr/share/orthanc/plugins/libOrthancDicomWeb.so"
BOUNDARY = "8f2a"
MULTIPART = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'
REFERENCED, FAILED, OTHER = "00081199", "00081198", "0008119A"
JPEG_LS = "1.2.840.10008.1.2.4.80"
REASON, INSTANCE = "00081197", "00081155"


@dataclass
class Way:
    """The way in of one node, for one token."""

    node: NodeProcess
    headers: dict[str, str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.node.web_port}/dicom-web"

    def post(self, body: Any, path: str = "/studies", **headers: str) -> requests.Response:
        """POST a body as it is."""
        names = {"Content-Type": MULTIPART, **self.headers}
        names |= {name.replace("_", "-"): value for name, value in headers.items()}
        return requests.post(f"{self.url}{path}", data=body, headers=names, timeout=60)

    def store(self, *files: bytes | Path, path: str = "/studies") -> requests.Response:
        """POST files."""
        return self.post(multipart(*files), path)

    def incoming(self) -> list[str]:
        """The files that are being received."""
        return [path.name for path in (self.node.folder / "var" / "incoming").iterdir()]


def multipart(*files: bytes | Path, boundary: str = BOUNDARY) -> bytes:
    """A body of these files."""
    contents = [it if isinstance(it, bytes) else it.read_bytes() for it in files]
    head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    return b"".join(head + it + b"\r\n" for it in contents) + f"--{boundary}--\r\n".encode()


def items(answer: requests.Response, sequence: str) -> list[dict[str, Any]]:
    """The items of a sequence of an answer."""
    return list(answer.json().get(sequence, {}).get("Value", []))


def reasons(answer: requests.Response, sequence: str = FAILED) -> list[int]:
    """The Failure Reasons of an answer."""
    return [item[REASON]["Value"][0] for item in items(answer, sequence)]


def uids(answer: requests.Response, sequence: str = REFERENCED) -> set[str]:
    """The SOP Instance UIDs of an answer."""
    return {item[INSTANCE]["Value"][0] for item in items(answer, sequence)}


@pytest.fixture(scope="module")
def way(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Way]:
    """A node without a route that names who may send, and a token with such a name."""
    node = NodeProcess(tmp_path_factory.mktemp("stow") / "node")
    settings = node.folder / "config.toml"
    named = '[node]\nallowed_ae_titles = ["MODALITY"]\n'
    settings.write_text(settings.read_text().replace("[node]\n", named))
    with running(node):
        yield Way(node, node.program_of("MODALITY", Role.OPERATOR))


def test_orthanc_sends_a_series_and_gets_its_result_by_dicomweb_alone(tmp_path: Path) -> None:
    with running(NodeProcess(tmp_path / "node", route(destinations=()))) as node:
        server = {
            "Url": f"http://127.0.0.1:{node.web_port}/dicom-web/",
            "HttpHeaders": node.program_of("ORTHANC", Role.OPERATOR),
        }
        plugins = {"Plugins": [PLUGIN], "DicomWeb": {"Servers": {"node": server}}}
        with orthanc(tmp_path / "pacs", configuration=plugins) as pacs:
            files = series.thick(3)
            pacs_port = pacs.address.port
            assert storescu(pacs_port, *files, called="ORTHANC", options=("-xt",)).code == 0
            (resource,) = pacs.get("/series")
            sending = {"Resources": [resource], "Synchronous": True}
            sent = pacs.post("/dicom-web/servers/node/stow", sending)
            assert sent["InstancesCount"] == "3", sent
            node.event("job succeeded", seconds=BUSY_SECONDS)
            (job,) = node.jobs()
            study = str(dcmread(files[0]).StudyInstanceUID)
            wanted = {"Study": study, "Series": job["derived_series_uid"]}
            asked = {"Resources": [wanted], "Synchronous": True}
            pacs.post("/dicom-web/servers/node/retrieve", asked)
            assert pacs.series() == {series.SERIES_UID: 3, job["derived_series_uid"]: 5}
        (sender,) = {it["calling_ae"] for it in node.found("instance stored")}
        assert sender == "ORTHANC"
        (ended,) = node.found("request to store ended")
        assert (ended["how"], ended["instances"], ended["refused"]) == ("released", 3, 0)


def test_a_client_stores_and_gets_the_same_bytes_back(way: Way) -> None:
    session = requests.Session()
    session.headers.update(way.headers)
    client = DICOMwebClient(way.url, session=session)
    sent = [dcmread(path) for path in series.thick(4)]
    answer = client.store_instances(sent)
    assert {str(it.ReferencedSOPInstanceUID) for it in answer.ReferencedSOPSequence} == {
        str(it.SOPInstanceUID) for it in sent
    }
    study = str(sent[0].StudyInstanceUID)
    assert str(answer.RetrieveURL) == f"/dicom-web/studies/{study}"
    kept = client.retrieve_series(
        study, series.SERIES_UID, media_types=(("application/dicom", "*"),)
    )
    assert {str(it.SOPInstanceUID): it.PixelData for it in kept} == {
        str(it.SOPInstanceUID): it.PixelData for it in sent
    }
    (row,) = way.node.rows("select calling_ae, called_ae, address, how from association")
    assert row == ("MODALITY", "MIDSLICE", "127.0.0.1", "released")


def test_what_came_by_one_way_and_comes_by_the_other_is_kept_once(way: Way, tmp_path: Path) -> None:
    files = renamed(tmp_path, 3)
    uid = str(dcmread(files[0]).SeriesInstanceUID)
    assert by_dimse(way.node, files[:2]) is Outcome.STORED
    for _ in range(2):
        assert way.store(*files).status_code == 200
    of_series = f"from series join {{}} t on t.series_id = series.id where series_uid = '{uid}'"
    (count,) = way.node.rows(f"select count(*) {of_series.format('instance')}")[0]
    assert count == 3
    arrivals = way.node.rows(f"select calling_ae, called_ae {of_series.format('arrival')}")
    assert set(arrivals) == {("MODALITY", "MIDSLICE")}


def test_another_image_with_the_same_uid_is_a_version_of_its_own(way: Way, tmp_path: Path) -> None:
    files = renamed(tmp_path, 1)
    other = series.changed(files, tmp_path / "other", darken)
    assert way.store(*files).status_code == way.store(*other).status_code == 200
    uid = str(dcmread(files[0]).SOPInstanceUID)
    (count,) = way.node.rows(f"select count(*) from instance where instance_uid = '{uid}'")[0]
    assert count == 2


def test_each_part_has_its_own_answer(way: Way, tmp_path: Path) -> None:
    (good, mixed, unknown, strange) = renamed(tmp_path, 4)
    wrong = mixed.read_bytes().replace(uid_bytes(mixed), b"2.25.1" + b"\0" * 58, 1)
    private = dcmread(unknown)
    private.SOPClassUID = private.file_meta.MediaStorageSOPClassUID = "1.2.3.4"
    private.save_as(unknown)
    content = strange.read_bytes()
    jpip = content.replace(b"1.2.840.10008.1.2.4.80\0"[:22], b"1.2.840.10008.1.2.4.94", 1)
    answer = way.store(good, wrong, unknown, jpip, b"no DICOM", content[:100], content[:160])
    assert answer.status_code == 202, answer.text
    assert uids(answer) == {str(dcmread(good).SOPInstanceUID)}
    assert reasons(answer) == [0xA900, 0x0122, 0xC122]
    assert set(reasons(answer, OTHER)) == {0xC000}
    assert len(items(answer, OTHER)) == 3
    assert answer.headers["Warning"].startswith("299 midslice")
    assert way.incoming() == []
    (stored,) = items(answer, REFERENCED)
    place = stored["00081190"]["Value"][0]
    assert requests.get(way.url.removesuffix("/dicom-web") + place, headers=way.headers).ok
    assert way.store(wrong).status_code == 409


def test_an_instance_of_another_study_than_the_address_names_is_refused(
    way: Way, tmp_path: Path
) -> None:
    (file,) = renamed(tmp_path, 1)
    study = str(dcmread(file).StudyInstanceUID)
    refused = way.store(file, path="/studies/1.2.3")
    assert (refused.status_code, reasons(refused)) == (409, [0xA900])
    assert way.store(file, path=f"/studies/{study}").status_code == 200


@pytest.mark.parametrize(
    ("headers", "body", "status", "words"),
    [
        ({"Content-Type": "application/dicom"}, b"x", 415, "multipart/related"),
        ({"Content-Type": ""}, b"x", 415, "Content-Type is missing"),
        (
            {"Content-Type": 'multipart/related; type="application/dicom+json"; boundary=a'},
            b"x",
            415,
            "no metadata in JSON or XML",
        ),
        ({"Content-Encoding": "gzip"}, b"x", 415, "not compressed"),
        ({"Content-Type": "multipart/related"}, b"x", 400, "names no boundary"),
        ({"Content-Type": f"multipart/related; boundary={'b' * 300}"}, b"x", 400, "no boundary"),
        ({}, b"", 400, "ends without the boundary"),
        ({}, b"no multipart at all", 400, "no multipart message"),
        ({}, multipart(b"x", boundary="another"), 400, "no multipart message"),
        ({}, multipart(b"x")[:-6], 400, "ends without the boundary"),
        ({}, f"--{BOUNDARY}--\r\n".encode(), 400, ""),
        ({}, f"--{BOUNDARY}\r\n{'A' * 100_000}: b\r\n\r\n".encode(), 400, "no multipart message"),
        ({"Accept": "application/dicom+xml"}, multipart(b"x"), 406, "application/dicom+json"),
    ],
)
def test_a_body_that_is_none_gets_a_sentence(
    way: Way, headers: dict[str, str], body: bytes, status: int, words: str
) -> None:
    names = {"Content-Type": MULTIPART, **way.headers, **headers}
    answer = requests.post(f"{way.url}/studies", data=body, headers=names, timeout=20)
    assert (answer.status_code, words in answer.json()["detail"]) == (status, True), answer.text
    assert way.incoming() == []


@pytest.mark.parametrize("path", ["/studies/..%2F..%2Fsecret", "/studies/1.2.3%00", "/studies/a b"])
def test_a_path_that_names_no_uid_is_none(way: Way, path: str) -> None:
    for answer in (
        way.post(multipart(b"x"), path),
        requests.get(f"{way.url}{path}", headers=way.headers, timeout=20),
    ):
        assert answer.status_code in (400, 404)
        assert answer.json()["detail"]


def test_uids_that_are_paths_stay_uids(way: Way, tmp_path: Path) -> None:
    (file,) = renamed(tmp_path, 1)
    for uid in ("../../../../etc/cron.d/x", "/etc/x", "..", "1.2\n3"):
        dataset = dcmread(file)
        content = file.read_bytes().replace(
            str(dataset.SeriesInstanceUID).encode(),
            uid.ljust(len(str(dataset.SeriesInstanceUID)), "\0").encode(),
        )
        answer = way.store(content)
        if uid == "..":  # its characters are those of a UID; a folder is named by a digest
            assert answer.status_code == 200
            continue
        assert (answer.status_code, reasons(answer)) == (409, [0xC010])
    var = way.node.folder / "var"
    assert {path.suffix for path in (var / "received").rglob("*") if path.is_file()} == {".dcm"}


def test_who_may_store(way: Way) -> None:
    body = multipart(b"x")
    anybody = requests.post(f"{way.url}/studies", data=body, headers={"Content-Type": MULTIPART})
    assert (anybody.status_code, "WWW-Authenticate" in anybody.headers) == (401, True)
    wrong = Way(way.node, {"Authorization": "Bearer midslice_nobody"}).store(b"x")
    assert (wrong.status_code, "unknown or revoked" in wrong.text) == (401, True)
    viewer = Way(way.node, way.node.program_of("VIEWER", Role.VIEWER)).store(b"x")
    assert (viewer.status_code, "needs the role operator" in viewer.text) == (403, True)
    long = Way(way.node, way.node.program_of("a name longer than AE titles", Role.OPERATOR)).store(
        b"x"
    )
    assert (long.status_code, "AE title" in long.text) == (403, True)


def test_the_rules_for_senders_hold_for_those_by_http(way: Way, tmp_path: Path) -> None:
    refused = Way(way.node, way.node.program_of("CT2", Role.OPERATOR)).store(*renamed(tmp_path, 1))
    assert (refused.status_code, "not recognised" in refused.text) == (403, True)
    way.node.event("association rejected", calling_ae="CT2")
    wait_for("the row", lambda: way.node.rows("select 1 from association where how = 'rejected'"))


def test_an_upload_that_breaks_off_leaves_nothing_behind(way: Way, tmp_path: Path) -> None:
    first, second = renamed(tmp_path, 2)
    body = multipart(first, second)
    cut = body[: len(body) - second.stat().st_size // 2]
    ended = len(way.node.found("request to store ended", how="dropped"))
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", way.node.web_port)) as upload:
        upload.putrequest("POST", "/dicom-web/studies")
        names = {"Content-Type": MULTIPART, "Content-Length": str(len(body)), **way.headers}
        for name, value in names.items():
            upload.putheader(name, value)
        upload.endheaders()
        upload.send(cut)
        wait_for("the second file", lambda: any(it.endswith(".part") for it in way.incoming()))
    way.node.event("request to store ended", how="dropped", count=ended + 1)
    assert way.incoming() == []
    rows = way.node.rows("select instance_uid from instance")
    assert (str(dcmread(first).SOPInstanceUID),) in rows  # it was whole
    assert (str(dcmread(second).SOPInstanceUID),) not in rows
    assert way.node.rows("select 1 from association where ended_at is null") == []


def test_a_web_process_that_dies_while_it_receives_leaves_nothing_behind(
    way: Way, tmp_path: Path
) -> None:
    (file,) = renamed(tmp_path, 1)
    body = multipart(file)
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", way.node.web_port)) as upload:
        upload.putrequest("POST", "/dicom-web/studies")
        names = {"Content-Type": MULTIPART, "Content-Length": str(len(body)), **way.headers}
        for name, value in names.items():
            upload.putheader(name, value)
        upload.endheaders()
        upload.send(body[:-100])
        wait_for("the file", way.incoming)
        kill_web(way.node)
    wait_for("the web process", lambda: answers(way))
    assert way.incoming() == []
    assert way.node.rows("select 1 from association where ended_at is null") == []
    assert way.store(file).status_code == 200


def test_many_send_the_same_series_at_once_by_both_ways(way: Way, tmp_path: Path) -> None:
    files = renamed(tmp_path, 5)
    outcomes: list[object] = []
    ways = [lambda: outcomes.append(way.store(*files).status_code)] * 4
    ways += [lambda: outcomes.append(by_dimse(way.node, files))] * 2
    threads = [threading.Thread(target=it) for it in ways]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(outcomes) == {200: 4, Outcome.STORED: 2}
    uid = str(dcmread(files[0]).SeriesInstanceUID)
    of = f"from series join instance on series_id = series.id where series_uid = '{uid}'"
    assert way.node.rows(f"select count(*), count(distinct path) {of}") == [(5, 5)]
    assert way.incoming() == []


def test_a_huge_part_costs_no_memory(way: Way, tmp_path: Path) -> None:
    (file,) = renamed(tmp_path, 1)
    before = web_memory(way.node)
    head = f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    content = file.read_bytes()

    def body() -> Iterator[bytes]:
        yield head
        yield content
        for _ in range(300):
            yield b"\r\n-" + bytes((1 << 20) - 3)  # nearly a boundary, again and again
        yield f"\r\n--{BOUNDARY}--\r\n".encode()

    answer = way.post(body())
    assert answer.status_code == 200, answer.text
    assert web_memory(way.node) - before < 100 << 20


def by_dimse(node: NodeProcess, files: list[Path]) -> Outcome:
    """Send the same bytes by C-STORE."""
    outgoing = [
        Outgoing(number, str(it.SOPInstanceUID), str(it.SOPClassUID), JPEG_LS, path)
        for number, path in enumerate(files)
        for it in (dcmread(path, stop_before_pixels=True),)
    ]
    answers = Answers()
    result = answers.send(node.port, outgoing, ae="MIDSLICE", calling="MODALITY")
    assert {status for _, status in answers.statuses} == {0}
    return result.outcome


def darken(dataset: Dataset) -> None:
    dataset.decompress(generate_instance_uid=False)
    dataset.PixelData = bytes(len(dataset.PixelData))


def renamed(folder: Path, slices: int) -> list[Path]:
    """Slices of a series of their own, so that tests on one node do not meet."""
    suffix = f".{abs(hash(folder)) % 10**9}"

    def rename(dataset: Dataset) -> None:
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
            dataset[keyword].value = str(dataset[keyword].value)[: 64 - len(suffix)] + suffix

    return series.changed(series.thick(slices), folder / "renamed", rename)


def uid_bytes(file: Path) -> bytes:
    return str(dcmread(file).SOPInstanceUID).encode().ljust(64, b"\0")


def web_process(node: NodeProcess) -> psutil.Process:
    return next(
        child
        for child in psutil.Process(node.pid).children(recursive=True)
        if any(it.laddr.port == node.web_port for it in child.net_connections() if it.laddr)
    )


def web_memory(node: NodeProcess) -> int:
    return int(web_process(node).memory_info().rss)


def kill_web(node: NodeProcess) -> None:
    web_process(node).kill()


def answers(way: Way) -> bool:
    try:
        return requests.get(f"{way.url}/studies", headers=way.headers, timeout=5).ok
    except requests.RequestException:
        return False
