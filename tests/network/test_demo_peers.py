"""The pacs-PACS and the scanner of the demo, on real sockets."""

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom.filereader import read_file_meta_info
from pynetdicom import AE, evt

from node.demo import peers
from node.demo.peers import DemoError, DicomAddress, tail
from node.demo.run import DATA
from node.second_opinion import ImageSeries

FILES = sorted((DATA / "received").glob("*.dcm"))[:3]
CT_IMAGE_STORAGE, JPEG_LS = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.4.80"


def ignore(_: int) -> None:
    """A scanner that tells nobody how far it is."""


def encoded(path: Path) -> bytes:
    """The data set of a Part 10 file, without its meta information."""
    meta = read_file_meta_info(path)
    return path.read_bytes()[144 + meta.FileMetaInformationGroupLength :]


@pytest.fixture(params=["built-in", "orthanc"])
def pacs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[peers.Pacs]:
    chosen = peers.choose_pacs(tmp_path / "pacs", request.param, peers.orthanc_program())
    try:
        chosen.start((peers.SCANNER_AE_TITLE,))
        yield chosen
    finally:
        chosen.stop()


def test_what_the_scanner_sends_the_pacs_gives_back(pacs: peers.Pacs, tmp_path: Path) -> None:
    heard: list[int] = []
    sent = peers.send(FILES, pacs.address, heard.append)
    series_uid = ImageSeries.read(FILES).series_uid
    assert heard == [1, 2, 3]
    assert sent.instances == 3
    assert sent.bytes == sum(path.stat().st_size for path in FILES)
    assert dict(pacs.series()) == {series_uid: 3}
    back = peers.retrieve(pacs, series_uid, tmp_path / "back")
    returned, originals = ImageSeries.read(back), ImageSeries.read(FILES)
    assert list(returned.headers) == list(originals.headers)
    if isinstance(pacs, peers.BuiltInPacs):  # Orthanc drops the padding of an empty name
        assert sorted(map(encoded, back)) == sorted(map(encoded, FILES))


def test_a_pacs_holds_an_instance_once_however_often_it_is_sent(pacs: peers.Pacs) -> None:
    for _ in range(2):
        peers.send(FILES[:1], pacs.address, ignore)
    assert list(pacs.series().values()) == [1]


def storescu(calling_ae: str, peer: DicomAddress) -> int:
    """The exit status of DCMTK's storescu, which sends one instance as it is."""
    titles = ["--aetitle", calling_ae, "--call", peer.ae_title]
    command = ["storescu", "--propose-jls-lossless", *titles, peer.host, str(peer.port), FILES[0]]
    return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode


def test_only_admitted_callers_may_store(pacs: peers.Pacs) -> None:
    assert storescu("STRANGER", pacs.address) != 0
    assert dict(pacs.series()) == {}
    assert storescu(peers.SCANNER_AE_TITLE, pacs.address) == 0
    assert list(pacs.series().values()) == [1]


def test_a_pacs_that_was_stopped_listens_no_more(pacs: peers.Pacs) -> None:
    pacs.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((pacs.address.host, pacs.address.port), timeout=5)


@pytest.mark.parametrize(("syntax", "said"), [(JPEG_LS, "A700"), ("1.2.840.10008.1.2", "encodes")])
def test_the_scanner_says_what_its_peer_answered(syntax: str, said: str) -> None:
    full = AE("FULL")
    full.add_supported_context(CT_IMAGE_STORAGE, syntax)
    handlers = [(evt.EVT_C_STORE, lambda _: 0xA700)]
    server = full.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    assert server is not None
    try:
        with pytest.raises(DemoError, match=said):
            peers.send(FILES, DicomAddress("FULL", server.server_address[1]), ignore)
    finally:
        server.shutdown()
        server.server_close()


def test_without_orthanc_the_built_in_scp_is_chosen_unless_orthanc_is_asked_for(
    tmp_path: Path,
) -> None:
    assert isinstance(peers.choose_pacs(tmp_path, "auto", None), peers.BuiltInPacs)
    assert isinstance(peers.choose_pacs(tmp_path, "auto", peers.orthanc_program()), peers.Orthanc)
    with pytest.raises(DemoError, match="Orthanc is not installed"):
        peers.choose_pacs(tmp_path, "orthanc", None)


def test_an_orthanc_that_ends_at_once_is_an_error_with_its_log(tmp_path: Path) -> None:
    broken = tmp_path / "Orthanc"
    broken.write_text("#!/bin/sh\necho no such database\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(DemoError, match="did not start") as caught:
        peers.Orthanc(tmp_path / "pacs", broken).start(())
    assert caught.value.log is not None
    assert "no such database" in tail(caught.value.log)
