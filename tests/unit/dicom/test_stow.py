"""STOW-RS as client: each instance as it is, its answer as a status, and what a bad peer does."""

import base64
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydicom import dcmread

from node.config import Destination
from node.dicom import stow
from node.dicom.scu import Outgoing, PeerAddress, SendResult, Timeouts
from node.dicom.status import Outcome
from tests import phantoms
from tests.certificates import Authority
from tests.phantoms import Series
from tests.ports import HOST, free_port
from tests.stow_peer import StowScript, stow_service

NOBODY = PeerAddress("WEB", HOST, 1, "MIDSLICE")
REFERENCED = {"00081199": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": ["1.2"]}}]}}
UID = {"00081155": {"vr": "UI", "Value": ["1.2"]}}


def destination(url: str, folder: Path, **keys: object) -> Destination:
    given = {"name": "web", "kind": "dicomweb", "url": url, **keys}
    return Destination.model_validate(given, context={"folder": folder})


@pytest.fixture
def files(tmp_path: Path) -> list[Outgoing]:
    paths = phantoms.write(tmp_path / "files", Series(slices=4, spacing_mm=5.0))
    uids = [str(dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in paths]
    return [
        Outgoing(number, uid, "1.2", "1.2.840.10008.1.2.1", path)
        for number, (uid, path) in enumerate(zip(uids, paths, strict=True))
    ]


Answers = list[tuple[int, int | None, str]]


def send(to: Destination, files: list[Outgoing], **options: object) -> tuple[SendResult, Answers]:
    answers: Answers = []
    result = stow.StowSender(to)(
        NOBODY,
        files,
        **{  # type: ignore[arg-type]
            "answered": lambda file, status, comment: answers.append((file.id, status, comment)),
            "stop": lambda: False,
            "abandon": lambda: False,
            "timeouts": Timeouts(connect=2.0, answer=5.0),
            **options,
        },
    )
    return result, answers


def test_instances_arrive_as_the_files_that_they_are(tmp_path: Path, files: list[Outgoing]) -> None:
    with stow_service(StowScript()) as service:
        result, answers = send(destination(service.url, tmp_path), files)
    assert result.outcome is Outcome.STORED
    assert answers == [(file.id, 0, "") for file in files]
    assert service.stored == {file.instance_uid: file.path.read_bytes() for file in files}


@pytest.mark.parametrize(
    ("http_status", "reason", "status"),
    [(202, 0xA700, 0xA700), (409, 0x0122, 0x0122), (409, 0xC000, 0xC000), (200, 0xA900, 0xA900)],
)
def test_an_instance_that_is_refused_has_its_reason_and_the_others_are_stored(
    tmp_path: Path, files: list[Outgoing], http_status: int, reason: int, status: int
) -> None:
    with stow_service(StowScript([(200, 0), (http_status, reason)])) as service:
        result, answers = send(destination(service.url, tmp_path), files)
    assert result.outcome is Outcome.STORED
    assert [answer[1] for answer in answers] == [0, status, 0, 0]
    assert answers[1][2] == f"HTTP {http_status}"


@pytest.mark.parametrize(
    ("http_status", "document", "status"),
    [
        (200, REFERENCED, 0),
        (200, [REFERENCED], 0),
        (200, None, 0),  # PS3.18 10.5.3.1: all was stored
        (202, None, 0x0110),
        (409, None, 0x0110),
        (400, None, 0xC000),
        (415, None, 0x0122),
        (200, {"00081199": {"vr": "SQ", "Value": [{"00081155": {"Value": ["9"]}}]}}, 0x0110),
        (200, {"00081198": {"vr": "SQ", "Value": [UID]}}, 0x0110),
        (202, {"00081199": {"Value": [{**UID, "00081196": {"Value": [0xB000]}}]}}, 0xB000),
        (409, {"00081198": {"Value": [{**UID, "00081197": {"Value": [-1]}}]}}, 0x0110),
        (200, {"00081198": {"Value": "x"}, "00081199": 7}, 0x0110),
        (200, "nonsense", 0),
    ],
)
def test_an_answer_becomes_the_status_that_c_store_would_have(
    http_status: int, document: object, status: int
) -> None:
    body = b"" if document is None else json.dumps(document).encode()
    assert stow.answer_of(http_status, body, "1.2")[0] == status


def test_a_server_that_fails_is_tried_again_and_says_why(
    tmp_path: Path, files: list[Outgoing]
) -> None:
    with stow_service(StowScript([(200, 0), (503, 0)])) as service:
        result, answers = send(destination(service.url, tmp_path), files)
    assert result.outcome is Outcome.RETRY
    assert result.sentence.endswith("answers HTTP 503 (Service Unavailable).")
    assert [answer[1] for answer in answers] == [0, None]


def test_a_peer_that_is_away_or_silent_is_tried_again(
    tmp_path: Path, files: list[Outgoing]
) -> None:
    to = destination(f"http://{HOST}:{free_port()}/dicom-web", tmp_path)
    result, answers = send(to, files)
    assert (result.outcome, answers) == (Outcome.RETRY, [(0, None, "")])
    assert "it refuses the connection" in result.sentence
    assert not stow.echo(to, "MIDSLICE").ok
    with silent_peer() as port:
        to = destination(f"http://{HOST}:{port}", tmp_path)
        result, _ = send(to, files, timeouts=Timeouts(connect=2.0, answer=0.5))
        assert (result.outcome, "does not answer in time" in result.sentence) == (
            Outcome.RETRY,
            True,
        )
        given_up = threading.Timer(0.3, lambda: None)
        given_up.start()
        result, answers = send(to, files, abandon=lambda: not given_up.is_alive())
        assert (result.sentence, answers) == ("The sending was stopped.", [])


@contextmanager
def silent_peer() -> Iterator[int]:
    """It takes connections and never says a word."""
    with socket.create_server((HOST, 0)) as listening:
        yield listening.getsockname()[1]


@pytest.mark.parametrize("how", ["token", "password"])
def test_the_log_in_is_read_from_its_file_and_a_wrong_one_needs_a_person(
    tmp_path: Path, files: list[Outgoing], how: str
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("right\n")
    keys = (
        {"token_file": "secret"} if how == "token" else {"user": "ann", "password_file": "secret"}
    )
    pair = base64.b64encode(b"ann:right").decode()
    wanted = "Bearer right" if how == "token" else f"Basic {pair}"
    with stow_service(StowScript(authorization=wanted)) as service:
        to = destination(service.url, tmp_path, **keys)
        assert send(to, files)[0].outcome is Outcome.STORED
        assert stow.echo(to, "MIDSLICE").ok
        secret.write_text("wrong\n")
        result, _ = send(to, files)
        assert result.outcome is Outcome.REFUSED
        assert "correct its token, or user and password" in result.sentence
        assert not stow.echo(to, "MIDSLICE").ok
        secret.unlink()
        assert str(secret) in send(to, files)[0].sentence


def test_over_tls_both_sides_show_their_certificates(tmp_path: Path, files: list[Outgoing]) -> None:
    authority = Authority(tmp_path / "ca")
    server, client = authority.sign("pacs", hosts=(HOST,)), authority.sign("midslice")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server.certificate, server.key)
    context.load_verify_locations(authority.certificate)
    context.verify_mode = ssl.CERT_REQUIRED
    of_client = {"certificate": str(client.certificate), "key": str(client.key)}
    with stow_service(StowScript(), context) as service:
        url = service.url.replace("http:", "https:")
        known = {"authorities": str(authority.certificate)}
        result, _ = send(destination(url, tmp_path, tls={**of_client, **known}), files)
        assert result.outcome is Outcome.STORED
        pinned = {**of_client, "fingerprint": server.fingerprint}
        assert send(destination(url, tmp_path, tls=pinned), files)[0].outcome is Outcome.STORED
        other = {**of_client, "fingerprint": client.fingerprint}
        result, _ = send(destination(url, tmp_path, tls=other), files)
        assert "not the one that is expected" in result.sentence
        assert send(destination(url, tmp_path, tls=known), files)[0].outcome is Outcome.RETRY
        result, _ = send(destination(url, tmp_path), files)  # by the authorities of the system
        assert "its certificate is not accepted" in result.sentence


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"url": ""}, 'kind "dicomweb" needs a url'),
        ({"url": "https://ann:word@pacs/dicom-web"}, "without user and password"),
        ({"user": "ann"}, "user and password_file belong together"),
        ({"token_file": "t", "user": "a", "password_file": "p"}, "token_file or user"),
        ({"commitment": {}}, "commitment is for DIMSE"),
        ({"tls": True}, "tls needs a url that begins with https"),
        ({"kind": "dimse"}, "ae_title"),
    ],
)
def test_a_mistake_of_the_configuration_is_a_sentence(
    tmp_path: Path, keys: dict[str, object], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        destination(**{"url": "http://pacs/dicom-web", "folder": tmp_path, **keys})  # type: ignore[arg-type]


def test_host_and_port_are_those_of_the_url(tmp_path: Path) -> None:
    to = destination("https://pacs.example.org/dicom-web", tmp_path)
    assert (to.host, to.port, to.ae_title) == ("pacs.example.org", 443, "WEB")
    assert destination("http://pacs:8042", tmp_path).port == 8042
