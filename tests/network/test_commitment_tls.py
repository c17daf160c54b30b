"""Storage commitment over DICOM TLS with mutual certificates, the node in both roles."""

import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom.sop_class import CTImageStorage

from tests import phantoms, series
from tests.certificates import Authority, Pair
from tests.commitment_peers import Sender, reference, sender_listening
from tests.node_process import NodeProcess, destination, route, running, wait_for
from tests.peers import Orthanc, orthanc, storescu
from tests.ports import HOST, free_port

BUSY_SECONDS = 180.0  # a job, on a machine whose cores others want too

TLS = """
[tls]
port = {port}
certificate = "{pair.certificate}"
key = "{pair.key}"
authorities = "{authority}"
required = true
ae_titles = {{ PACS = ["pacs.example"], CT1 = ["ct1.example"] }}
"""
SENDER = """
[[sender]]
ae_title = "{ae_title}"
silent_hours = 0
commitment = {{ host = "127.0.0.1", port = {port}, tls = true }}
"""


@dataclass(frozen=True)
class Site:
    """The node's port for TLS, and the certificates of all."""

    port: int
    authority: Path
    node: Pair
    pacs: Pair
    scanner: Pair

    def options(self, pair: Pair) -> tuple[str, ...]:
        """Those of DCMTK's programs."""
        return ("-xt", "+tls", str(pair.key), str(pair.certificate), "+cf", str(self.authority))

    def tls(self) -> str:
        """The section of the node's configuration."""
        return TLS.format(port=self.port, pair=self.node, authority=self.authority)

    def context(self, pair: Pair, purpose: ssl.Purpose) -> ssl.SSLContext:
        """A context of the library's peers, which wants a certificate of the authority too."""
        context = ssl.create_default_context(purpose, cafile=str(self.authority))
        context.load_cert_chain(pair.certificate, pair.key)
        context.verify_mode = ssl.CERT_REQUIRED
        return context


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    authority = Authority(tmp_path_factory.mktemp("certificates"))
    names = ("node", "pacs.example", "ct1.example")
    return Site(free_port(), authority.certificate, *map(authority.sign, names))


@pytest.fixture
def pacs(tmp_path: Path, site: Site) -> Iterator[Orthanc]:
    """An Orthanc that speaks TLS alone, and may be asked by the node for storage commitment."""
    node = {"AET": "MIDSLICE", "Host": HOST, "Port": site.port, "UseDicomTls": True}
    settings = {
        "DicomTlsEnabled": True,
        "DicomTlsCertificate": str(site.pacs.certificate),
        "DicomTlsPrivateKey": str(site.pacs.key),
        "DicomTlsTrustedCertificates": str(site.authority),
        "DicomModalities": {"midslice": node | {"AllowStorageCommitment": True}},
    }
    with orthanc(tmp_path / "pacs", ae_title="PACS", configuration=settings) as server:
        yield server


def test_orthanc_confirms_a_delivery_over_tls(tmp_path: Path, site: Site, pacs: Orthanc) -> None:
    to_pacs = destination("pacs", "PACS", pacs.address.port, "tls = true\ncommitment = { }\n")
    with running(NodeProcess(tmp_path / "node", site.tls(), to_pacs, route())) as node:
        sent = storescu(
            site.port, *series.thick(3), calling="CT1", options=site.options(site.scanner)
        )
        assert sent.code == 0, sent.output
        confirmed = node.event("delivery confirmed", seconds=BUSY_SECONDS)
        assert (confirmed["destination"], confirmed["instances"]) == ("pacs", 5)
        reporter = node.event("association accepted", calling_ae="PACS")
        assert (reporter["certificate"], reporter["tls"][:4]) == ("pacs.example", "TLSv")
        assert not node.found("association rejected")


def test_orthanc_is_told_over_tls_what_the_node_keeps(
    tmp_path: Path, site: Site, pacs: Orthanc
) -> None:
    may_ask = SENDER.format(ae_title="PACS", port=pacs.address.port)
    with running(NodeProcess(tmp_path / "node", site.tls(), may_ask)) as node:
        options = site.options(site.scanner)
        to_pacs = storescu(pacs.address.port, *series.thick(3), called="PACS", options=options)
        assert to_pacs.code == 0, to_pacs.output
        resources = pacs.get("/instances")
        pacs.post("/modalities/midslice/store", resources[:2])
        asked = {"DicomInstances": [], "Resources": resources}
        answer = pacs.post("/modalities/midslice/storage-commitment", asked)

        def reported() -> dict[str, Any] | None:
            state: dict[str, Any] = pacs.get(answer["Path"])
            return state if state["Status"] != "Pending" else None

        report = wait_for("a report", reported)
        assert (len(report["Success"]), len(report["Failures"])) == (2, 1)
        node.event("commitment answered", committed=2, failed=1)


def image_of_scanner() -> Dataset:
    """An instance as a scanner has it in memory, without compression."""
    image = phantoms.dataset(phantoms.Series(), 0)
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return image


@pytest.mark.parametrize("waits", [True, False], ids=["waits", "has gone"])
def test_a_scanner_is_told_over_tls_on_its_association_or_on_one_of_the_node(
    tmp_path: Path, site: Site, waits: bool
) -> None:
    scanner = Sender()
    listens = site.context(site.scanner, ssl.Purpose.CLIENT_AUTH)
    with sender_listening(scanner, listens) as port:
        may_ask = SENDER.format(ae_title="CT1", port=port)
        with running(NodeProcess(tmp_path / "node", site.tls(), may_ask)) as node:
            calls = site.context(site.scanner, ssl.Purpose.SERVER_AUTH)
            association = scanner.associate(site.port, calls)
            image = image_of_scanner()
            assert association.send_c_store(image).Status == 0x0000
            items = (reference(CTImageStorage, uid) for uid in (image.SOPInstanceUID, "1.9"))
            assert scanner.ask(association, "2.25.7", *items) == 0x0000
            if not waits:
                association.release()
            assert scanner.came.wait(30.0), node.output()
            (report,) = scanner.reports
            assert (report.TransactionUID, scanner.event_types) == ("2.25.7", [2])
            (kept,), (failed,) = report.ReferencedSOPSequence, report.FailedSOPSequence
            assert kept.ReferencedSOPInstanceUID == image.SOPInstanceUID
            assert failed.ReferencedSOPInstanceUID == "1.9"
            assert scanner.calling == ["CT1" if waits else "MIDSLICE"]
            if waits:
                association.release()
            node.event("commitment answered", committed=1, failed=1)
