"""DICOM over TLS with DCMTK and Orthanc, both ways, and with peers that get it wrong."""

import json
import logging
import os
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import pytest

from node.dicom.admission import Admission
from node.dicom.scu import PeerAddress, echo, send
from node.dicom.status import Outcome
from node.dicom.tls import ServerTls, TlsFiles, mark, sentence_of, server_context
from tests import series
from tests.certificates import Authority, Pair
from tests.node_process import NodeProcess, destination, route
from tests.node_process import running as running_node
from tests.node_scp import Node, node_scp
from tests.peers import Finished, Storescp, _run, orthanc, storescp, storescu, wait_until
from tests.ports import HOST
from tests.raw_peer import ASSOCIATE_AC, RawPeer, associate_request, data_set, store_command
from tests.sending import Answers, native

SILENT_SECONDS = 3.0  # that a peer may take for the handshake


@dataclass(frozen=True)
class Tls:
    """TLS towards a destination, as a configuration says it."""

    authorities: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    server_name: str = ""
    fingerprint: str = ""
    crl: Path | None = None
    key_password: str = ""


@dataclass(frozen=True)
class Site:
    """An authority and what it has signed, and another authority that nobody trusts."""

    authority: Authority
    stranger: Authority
    node: Pair
    peer: Pair
    expired: Pair
    foreign: Pair

    def server(self, *, verifies: bool = True, crl: Path | None = None) -> ServerTls:
        files = TlsFiles(self.node.certificate, self.node.key, self.authority.certificate, crl)
        return ServerTls(0, files, verifies)

    def client(self, pair: Pair | None = None) -> Tls:
        pair = pair or self.node
        return Tls(self.authority.certificate, pair.certificate, pair.key)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("certificates")
    authority = Authority(folder / "ca")
    stranger = Authority(folder / "stranger", "Other CA")
    return Site(
        authority,
        stranger,
        node=authority.sign("node"),
        peer=authority.sign("ct1.example"),
        expired=authority.sign("expired", days=-1),
        foreign=stranger.sign("foreign"),
    )


@pytest.fixture
def node(site: Site, tmp_path: Path) -> Iterator[Node]:
    with node_scp(tmp_path / "node", tls=site.server(), request_seconds=SILENT_SECONDS) as running:
        yield running


def tls_port(node: Node) -> int:
    assert node.scp.tls_port is not None
    return node.scp.tls_port


def dcmtk(program: str, port: int, pair: Pair, authority: Path, *arguments: str | Path) -> Finished:
    """One of DCMTK's programs over TLS."""
    tls = ["+tls", pair.key, pair.certificate, "+cf", authority]
    return _run([program, "-v", "-aec", "MIDSLICE", *tls, HOST, str(port), *arguments])


def echo_is_answered(site: Site, node: Node) -> bool:
    """True where a C-ECHO over TLS, beside whatever else is connected, is answered at once."""
    address = PeerAddress("MIDSLICE", HOST, tls_port(node), "OTHER", site.client(site.peer))
    answer = echo(address)
    assert answer.ok, answer.sentence
    return answer.seconds < SILENT_SECONDS  # one that is in the way is there as long


def why(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The reasons for which associations were rejected."""
    lines = [line for line in caplog.records if line.message == "association rejected"]
    return [line.__dict__["reason"] for line in lines]


# Peers that get it right.


def test_dcmtk_verifies_and_stores_over_tls(site: Site, node: Node, tmp_path: Path) -> None:
    files = [outgoing.path for outgoing in native(tmp_path / "files")]
    ca = site.authority.certificate
    assert dcmtk("echoscu", tls_port(node), site.peer, ca).code == 0
    done = dcmtk("storescu", tls_port(node), site.peer, ca, *files)
    assert done.code == 0, done.output
    assert len(node.archive.kept) == len(files)
    assert node.archive.litter() == []


@pytest.mark.parametrize("is_direct", [True, False], ids=["direct", "library"])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_both_versions_of_tls_go_both_ways_through_the_receiver(
    site: Site,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    is_direct: bool,
    version: ssl.TLSVersion,
) -> None:
    caplog.set_level(logging.INFO)
    context = ssl.create_default_context(cafile=site.authority.certificate)
    context.load_cert_chain(site.peer.certificate, site.peer.key)
    context.minimum_version = context.maximum_version = version
    with ExitStack() as stack:
        node = stack.enter_context(
            node_scp(tmp_path / "node", tls=site.server(), is_direct=is_direct)
        )
        peer = stack.enter_context(RawPeer(tls_port(node)))
        peer.socket = context.wrap_socket(peer.socket, server_hostname="localhost")
        assert peer.associate()[0] == ASSOCIATE_AC
        for number in range(10):
            uid = f"1.2.3.{number}"
            command = store_command(uid.encode() + b"\0" * (len(uid) % 2), message_id=number + 1)
            assert peer.status(command, data_set(uid, pixels=60_000)) == 0
        peer.release()
    assert len(node.archive.kept) == 10
    accepted = [line for line in caplog.records if line.message == "association accepted"]
    assert accepted[0].__dict__["tls"] == version.name.replace("_", ".").replace("TLSv1.", "TLSv1.")
    assert accepted[0].__dict__["certificate"] == "ct1.example"


def test_the_node_sends_over_tls_and_its_own_receiver_keeps_it(
    site: Site, node: Node, tmp_path: Path
) -> None:
    answers = Answers()
    peer = PeerAddress("MIDSLICE", HOST, tls_port(node), "SENDER", site.client())
    files = native(tmp_path / "files")
    sent = send(peer, files, answered=answers.answered, stop=answers.stop)
    assert sent.outcome is Outcome.STORED, sent.sentence
    assert [status for _, status in answers.statuses] == [0] * len(files)
    assert len(node.archive.kept) == len(files)


@contextmanager
def secure_storescp(site: Site, folder: Path, pair: Pair) -> Iterator[Storescp]:
    """DCMTK's Storage SCP over TLS; it wants a certificate of the authority."""
    options = ["+tls", str(pair.key), str(pair.certificate), "+cf", site.authority.certificate]
    with storescp(folder, options=[str(option) for option in options]) as running:
        yield running


def test_dcmtk_takes_what_the_node_sends_over_tls(site: Site, tmp_path: Path) -> None:
    files = native(tmp_path / "files")
    answers = Answers()
    with secure_storescp(site, tmp_path / "stored", site.peer) as running:
        peer = PeerAddress("STORESCP", HOST, running.port, "MIDSLICE", site.client())
        assert echo(peer).ok
        sent = send(peer, files, answered=answers.answered, stop=answers.stop)
        assert sent.outcome is Outcome.STORED, sent.sentence
        assert len(running.files()) == len(files)
        # By its very certificate, whatever name stands in it and whoever has signed it.
        pinned = Tls(None, site.node.certificate, site.node.key, "", site.peer.fingerprint)
        assert echo(PeerAddress("STORESCP", HOST, running.port, "MIDSLICE", pinned)).ok
        # One look for its port; each association was ended as TLS has it.
        assert running.process.output().count("unexpected eof") == 1


def test_orthanc_sends_and_takes_over_tls(site: Site, node: Node, tmp_path: Path) -> None:
    files = native(tmp_path / "files")
    answers = Answers()
    modality = {"AET": "MIDSLICE", "Host": HOST, "Port": tls_port(node), "UseDicomTls": True}
    settings = {
        "DicomTlsEnabled": True,
        "DicomTlsCertificate": str(site.peer.certificate),
        "DicomTlsPrivateKey": str(site.peer.key),
        "DicomTlsTrustedCertificates": str(site.authority.certificate),
        "DicomModalities": {"midslice": modality},
    }
    with orthanc(tmp_path / "orthanc", configuration=settings) as pacs:
        peer = PeerAddress(pacs.ae_title, HOST, pacs.address.port, "MIDSLICE", site.client())
        sent = send(peer, files, answered=answers.answered, stop=answers.stop)
        assert sent.outcome is Outcome.STORED, sent.sentence
        assert [status for _, status in answers.statuses] == [0] * len(files)
        series = json.dumps([entry["ID"] for entry in pacs.get("/series?expand")])
        pacs.post("/modalities/midslice/store", series.encode())
    assert len(node.archive.kept) == len(files)


# Peers that get it wrong: each is told apart in the log, and nobody else waits.


def _plain(_: Site, port: int) -> None:
    with RawPeer(port) as plain:
        plain.send(associate_request())
        assert plain.receive() == (0, b"")


def _old_cipher(_: Site, port: int) -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.set_ciphers("AES256-SHA256")
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket.create_connection((HOST, port)) as connection, pytest.raises(OSError):
        old.wrap_socket(connection)


def _silent(_: Site, port: int) -> None:
    with socket.create_connection((HOST, port)) as silent:
        silent.settimeout(10.0)
        assert silent.recv(1) == b""


def _with(pair: str, authority: str = "authority") -> Callable[[Site, int], None]:
    def echoscu(site: Site, port: int) -> None:
        ca = getattr(site, authority).certificate
        assert dcmtk("echoscu", port, getattr(site, pair), ca).code != 0

    return echoscu


def _anonymous(_: Site, port: int) -> None:
    assert _run(["echoscu", "+tla", "-ic", HOST, str(port)]).code != 0


NOT_ACCEPTED = "its certificate is not accepted"
UNKNOWN_TO_PEER = "it does not know the authority of the node's certificate"


@pytest.mark.parametrize(
    ("visit", "reason"),
    [
        (_with("foreign"), f"{NOT_ACCEPTED}: unable to get local issuer certificate"),
        (_with("expired"), f"{NOT_ACCEPTED}: certificate has expired"),
        (_with("peer", "stranger"), UNKNOWN_TO_PEER),
        (_anonymous, "it shows no certificate"),
        (_plain, "the request came without TLS to the port for TLS"),
        (_old_cipher, "it has no cipher suite of BCP 195"),
        (_silent, "silent for 3 s"),
    ],
    ids=["foreign", "expired", "does not trust", "anonymous", "plain", "old cipher", "silent"],
)
def test_what_is_wrong_with_a_peer_stands_in_the_log(
    site: Site,
    node: Node,
    caplog: pytest.LogCaptureFixture,
    visit: Callable[[Site, int], None],
    reason: str,
) -> None:
    visitor = threading.Thread(target=visit, args=(site, tls_port(node)))
    visitor.start()
    assert echo_is_answered(site, node)
    visitor.join()
    wait_until(lambda: why(caplog), what=reason)
    assert why(caplog) == [f"no TLS connection: {reason}"]
    assert len(node.archive.rejections()) == 1


def test_a_health_check_of_the_port_for_tls_is_no_rejection(
    site: Site, node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    socket.create_connection((HOST, tls_port(node))).close()
    assert echo_is_answered(site, node)
    assert why(caplog) == []


def test_tls_at_the_port_without_it_is_named(
    site: Site, node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    done = dcmtk("echoscu", node.port, site.peer, site.authority.certificate)
    assert done.code != 0
    wait_until(lambda: len(why(caplog)) == 1, what="the rejection is noted")
    assert why(caplog) == ["TLS at the port without it"]


def test_30_silent_tls_clients_delay_nobody(site: Site, node: Node) -> None:
    hello = bytes.fromhex("16030100c8010000c40303")  # and no more of it
    with ExitStack() as stack:
        for number in range(30):
            silent = stack.enter_context(socket.create_connection((HOST, tls_port(node))))
            if number % 2:
                silent.sendall(hello)
        assert echo_is_answered(site, node)
        with RawPeer(node.port) as plain:
            assert plain.associate()[0] == ASSOCIATE_AC
        descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - only the number counts
        # Each has ended by itself, and gives back what it held.
        wait_until(
            lambda: len(os.listdir("/proc/self/fd")) <= descriptors - 30 * 3,  # noqa: PTH208
            what="the silent ones are gone",
        )


def test_a_peer_without_a_certificate_is_let_in_where_none_is_asked_for(
    site: Site, tmp_path: Path
) -> None:
    with node_scp(tmp_path / "node", tls=site.server(verifies=False)) as node:
        only_server = Tls(site.authority.certificate)
        assert echo(PeerAddress("MIDSLICE", HOST, tls_port(node), "OTHER", only_server)).ok


# Which certificate may call as which AE title.


@pytest.mark.parametrize("named_by", ["name", "fingerprint"])
def test_a_certificate_calls_as_the_ae_titles_that_it_is_entered_for(
    site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture, named_by: str
) -> None:
    name = "CT1.example" if named_by == "name" else site.peer.fingerprint.upper()
    admission = Admission(certificates={"CT1": frozenset({mark(name)})})
    other = site.authority.sign("mr1.example")

    def is_let_in(pair: Pair, calling: str) -> bool:
        port = tls_port(node)
        return echo(PeerAddress("MIDSLICE", HOST, port, calling, site.client(pair))).ok

    with node_scp(tmp_path / "node", admission, tls=site.server()) as node:
        assert is_let_in(site.peer, "CT1")
        assert not is_let_in(other, "CT1")
        assert not is_let_in(site.peer, "CT2")
        assert is_let_in(other, "MR1")
        assert not echo(PeerAddress("MIDSLICE", HOST, node.port, "CT1")).ok
        assert echo(PeerAddress("MIDSLICE", HOST, node.port, "CT3")).ok
        node.scp.admit(Admission(needs_tls=True))
        assert not echo(PeerAddress("MIDSLICE", HOST, node.port, "CT3")).ok
    assert why(caplog) == [
        "certificate of another AE title: mr1.example",
        "certificate of another AE title: ct1.example",
        "not over TLS",
        "not over TLS",
    ]


# What the node says of a destination that gets it wrong.


def test_what_is_wrong_with_a_destination_is_one_sentence(site: Site, tmp_path: Path) -> None:
    def sentence(port: int, tls: Tls | None) -> str:
        answer = echo(PeerAddress("PACS", HOST, port, "MIDSLICE", tls))
        assert not answer.ok
        return answer.sentence.replace(str(port), "PORT")

    begin = f"PACS at {HOST}:PORT, no TLS connection:"
    with secure_storescp(site, tmp_path / "stored", site.peer) as running:
        port = running.port
        stranger = Tls(site.stranger.certificate, site.node.certificate, site.node.key)
        text = "its certificate is not accepted: self-signed certificate in certificate chain"
        assert sentence(port, stranger) == f"{begin} {text}."
        named = Tls(site.authority.certificate, server_name="pacs.example")
        assert sentence(port, named).startswith(
            f"{begin} its certificate is not accepted: Hostname mismatch"
        )
        pinned = Tls(fingerprint=site.node.fingerprint)
        expected = "its certificate is not the expected one (fingerprint)"
        assert sentence(port, pinned) == f"{begin} {expected}."
        assert "certificate" in sentence(port, Tls(site.authority.certificate))
        foreign = Tls(site.authority.certificate, site.foreign.certificate, site.foreign.key)
        assert "certificate" in sentence(port, foreign)
        missing = Tls(tmp_path / "none.pem")
        assert sentence(port, missing) == (
            f"No TLS connection to PACS: {tmp_path / 'none.pem'}: No such file or directory."
        )
    with secure_storescp(site, tmp_path / "expired", site.expired) as running:
        text = "its certificate is not accepted: certificate has expired"
        assert sentence(running.port, site.client()) == f"{begin} {text}."
    with storescp(tmp_path / "plain") as running:
        assert sentence(running.port, site.client()).startswith(f"{begin} it")


# Certificates that are revoked.


@pytest.fixture
def revoking(tmp_path: Path) -> Site:
    """An authority of this test's own, and two peers of it."""
    authority = Authority(tmp_path / "ca", "Revoking CA")
    node, peer, other = (authority.sign(name) for name in ("node", "ct1.example", "mr1.example"))
    return Site(authority, authority, node, peer, other, other)


def is_let_in(site: Site, node: Node, pair: Pair) -> bool:
    """True where DCMTK's `echoscu` with this certificate is answered."""
    return dcmtk("echoscu", tls_port(node), pair, site.authority.certificate).code == 0


def test_a_revoked_peer_is_refused_by_name_and_a_new_list_counts_at_once(
    revoking: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    crl = revoking.authority.revoke()
    with node_scp(tmp_path / "node", tls=revoking.server(crl=crl)) as node:
        assert is_let_in(revoking, node, revoking.peer)
        revoking.authority.revoke(revoking.peer)
        assert not is_let_in(revoking, node, revoking.peer)
        assert is_let_in(revoking, node, revoking.foreign)
        crl.write_text("no list")  # the last good one holds
        assert not is_let_in(revoking, node, revoking.peer)
        assert is_let_in(revoking, node, revoking.foreign)
        revoking.authority.revoke(days=-1)
        assert not is_let_in(revoking, node, revoking.foreign)
        Authority(crl.parent / "other", "Other CA").revoke().replace(crl)
        assert not is_let_in(revoking, node, revoking.foreign)
    today, before = f"{date.today()}", f"{date.today() - timedelta(days=1)}"  # noqa: DTZ011
    begin = "no TLS connection: its certificate {} is not accepted: "
    assert why(caplog) == [
        *[begin.format("ct1.example") + f"it was revoked on {today}"] * 2,
        begin.format("mr1.example") + f"the revocation list of Revoking CA expired on {before}",
        begin.format("mr1.example") + "there is no revocation list of Revoking CA",
    ]


def test_a_revoked_destination_is_sent_nothing(revoking: Site, tmp_path: Path) -> None:
    files, answers = native(tmp_path / "files"), Answers()

    def sentence(port: int, crl: Path | None) -> str:
        own = revoking.node
        tls = Tls(revoking.authority.certificate, own.certificate, own.key, crl=crl)
        peer = PeerAddress("STORESCP", HOST, port, "MIDSLICE", tls)
        return send(peer, files, answered=answers.answered, stop=answers.stop).sentence

    begin = f"STORESCP at {HOST}:PORT, no TLS connection: its certificate is not accepted: "
    with secure_storescp(revoking, tmp_path / "stored", revoking.peer) as running:
        port = running.port
        crl = revoking.authority.revoke()
        assert sentence(port, crl) == ""
        kept = len(running.files())
        revoking.authority.revoke(revoking.peer)
        assert sentence(port, crl).replace(str(port), "PORT") == f"{begin}it was revoked."
        revoking.authority.revoke(days=-1)
        expired = "the revocation list of its authority has expired."
        assert sentence(port, crl).replace(str(port), "PORT") == begin + expired
        strange = Authority(tmp_path / "other", "Other CA").revoke()
        missing = "there is no revocation list of its authority."
        assert sentence(port, strange).replace(str(port), "PORT") == begin + missing
        nothing = sentence(port, revoking.node.certificate)
        assert nothing.endswith(f"{revoking.node.certificate}: it holds no revocation list in PEM.")
        assert len(running.files()) == kept > 0


def test_a_destination_that_finds_the_node_revoked_says_so(revoking: Site, tmp_path: Path) -> None:
    crl = revoking.authority.revoke(revoking.node)
    own = ["+tls", revoking.peer.key, revoking.peer.certificate, "+crl", crl]
    options = [str(it) for it in (*own, "+cf", revoking.authority.certificate)]
    with storescp(tmp_path / "stored", options=options) as running:
        answer = echo(PeerAddress("STORESCP", HOST, running.port, "MIDSLICE", revoking.client()))
        assert "it says that the node's certificate is revoked" in answer.sentence


# Keys with a password.


@pytest.mark.parametrize("kind", ["file", "env"])
def test_a_key_with_a_password_serves_the_port_and_calls_a_destination(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    locked = site.authority.sign(f"locked-{kind}", password="geheim mit Ä")
    (tmp_path / "password").write_text("geheim mit Ä\n")
    monkeypatch.setenv("NODE_KEY", "geheim mit Ä")
    place = f"file:{tmp_path / 'password'}" if kind == "file" else "env:NODE_KEY"
    ca = site.authority.certificate
    files = TlsFiles(locked.certificate, locked.key, ca, key_password=place)
    with node_scp(tmp_path / "node", tls=ServerTls(0, files)) as node:
        tls = Tls(ca, locked.certificate, locked.key, key_password=place)
        assert echo(PeerAddress("MIDSLICE", HOST, tls_port(node), "OTHER", tls)).ok
    with secure_storescp(site, tmp_path / "stored", site.peer) as running:
        assert echo(PeerAddress("STORESCP", HOST, running.port, "MIDSLICE", tls)).ok


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        ("", "the key has a password; say in key_password where it stands"),
        ("env:OTHER", "the key does not open with the password of key_password (env:OTHER)"),
        ("env:LONG", "the key does not open with the password of key_password (env:LONG)"),
        ("env:NONE", "the variable NONE of key_password is not set in the environment"),
        ("file:/none/x", "/none/x: No such file or directory"),
    ],
)
def test_a_wrong_or_missing_password_is_named_and_never_shown(
    site: Site, monkeypatch: pytest.MonkeyPatch, place: str, sentence: str
) -> None:
    locked = site.authority.sign("locked", password="geheim")
    monkeypatch.setenv("OTHER", "another")
    monkeypatch.setenv("LONG", "x" * 5000)
    files = TlsFiles(locked.certificate, locked.key, None, key_password=place)
    with pytest.raises(OSError, match=".") as caught:
        server_context(files, verifies=False)
    assert sentence_of(caught.value) == sentence


# Certificates that are replaced.


def test_new_files_serve_new_connections_and_broken_ones_change_nothing(
    site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    shown = [Path(shutil.copy(path, tmp_path)) for path in (site.node.certificate, site.node.key)]
    files = TlsFiles(shown[0], shown[1], site.authority.certificate)

    def serial(port: int) -> str:
        context = ssl.create_default_context(cafile=site.authority.certificate)
        context.load_cert_chain(site.peer.certificate, site.peer.key)
        connection = socket.create_connection((HOST, port))
        with context.wrap_socket(connection, server_hostname="localhost") as peer:
            return str((peer.getpeercert() or {})["serialNumber"])

    with node_scp(tmp_path / "scp", tls=ServerTls(0, files)) as node:
        first = serial(tls_port(node))
        newer = site.authority.sign("newer")
        shutil.copy(newer.certificate, shown[0])
        shutil.copy(newer.key, shown[1])
        second = serial(tls_port(node))
        assert second != first
        shown[0].write_text("no certificate")
        assert serial(tls_port(node)) == second
    messages = [line.message for line in caplog.records if line.message.startswith("certificate")]
    assert messages == ["certificate replaced", "certificate not replaced"]


def test_an_association_over_tls_costs_no_thread_of_the_others_when_it_stalls(
    site: Site, tmp_path: Path
) -> None:
    with node_scp(tmp_path / "node", tls=site.server(), message_seconds=0.5) as node:
        context = ssl.create_default_context(cafile=site.authority.certificate)
        context.load_cert_chain(site.peer.certificate, site.peer.key)
        with RawPeer(tls_port(node)) as peer:
            peer.socket = context.wrap_socket(peer.socket, server_hostname="localhost")
            assert peer.associate()[0] == ASSOCIATE_AC
            began = time.monotonic()
            peer.send(store_command()[:20])
            assert peer.receive()[0] in (0, 7)
            assert time.monotonic() - began < 3.0
        assert node.archive.litter() == []


def test_a_series_comes_and_its_result_goes_over_tls_alone(site: Site, tmp_path: Path) -> None:
    ca = site.authority.certificate
    tls = (
        f'[tls]\nport = 0\ncertificate = "{site.node.certificate}"\nkey = "{site.node.key}"\n'
        f'authorities = "{ca}"\nrequired = true\nae_titles = {{ STORESCU = ["ct1.example"] }}\n'
    )
    sent = series.thick()
    with secure_storescp(site, tmp_path / "archive", site.peer) as archive:
        node = NodeProcess(
            tmp_path / "node",
            tls,
            destination("archive", "STORESCP", archive.port, "tls = true\n"),
            route(destinations=["archive"]),
        )
        with running_node(node):
            port = node.event("node listening")["tls_port"]
            assert node.cli("echo", "archive")
            assert storescu(node.port, *sent, options=("-xt",)).code != 0
            assert node.event("association rejected")["reason"] == "not over TLS"
            wrong = dcmtk("storescu", port, site.node, ca, "-xt", *sent)
            assert wrong.code != 0
            assert node.event("association rejected", count=2)["reason"] == (
                "certificate of another AE title: node"
            )
            done = dcmtk("storescu", port, site.peer, ca, "-xt", *sent)
            assert done.code == 0, done.output
            accepted = node.event("association accepted")
            assert (accepted["certificate"], accepted["tls"][:4]) == ("ct1.example", "TLSv")
            node.event("delivery sent")
            assert len(archive.files()) == 2 * len(sent) - 1
            findings = node.cli("check")["findings"]
            shown = {finding["what"] for finding in findings}
            assert {"TLS port", "certificate"} <= shown
