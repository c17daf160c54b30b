"""DICOM audit messages, as rsyslog takes them from a running node."""

import contextlib
import xml.etree.ElementTree as xml
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from pydicom import dcmread

from tests import peers, series
from tests.certificates import Authority
from tests.node_process import NodeProcess, destination, route, running, wait_for
from tests.peers import echoscu, storescp, storescu
from tests.ports import free_port

FIELDS = "%syslogfacility-text%|%syslogseverity-text%|%app-name%|%msgid%|%msg%\\n"
RULES = """
module(load="imudp")
module(load="imtcp" StreamDriver.Name="gtls" StreamDriver.Mode="1"
  StreamDriver.AuthMode="x509/certvalid")
global(workDirectory="{folder}" maxMessageSize="64k"
  DefaultNetstreamDriverCAFile="{authority}"
  DefaultNetstreamDriverCertFile="{certificate}" DefaultNetstreamDriverKeyFile="{key}")
template(name="fields" type="string" string="{fields}")
ruleset(name="all") {{ action(type="omfile" file="{told}" template="fields") }}
input(type="imudp" address="127.0.0.1" port="{udp}" ruleset="all")
input(type="imtcp" address="127.0.0.1" port="{tls}" ruleset="all")
"""
EVENT, TYPE = "EventIdentification/EventID", "EventIdentification/EventTypeCode"


@dataclass(frozen=True)
class Repository:
    """An rsyslog that keeps what it is told."""

    told: Path
    udp: int
    tls: int

    def messages(self) -> list[tuple[list[str], xml.Element]]:
        """What was told so far: the syslog fields, and the message."""
        lines = self.told.read_text("utf-8-sig").splitlines() if self.told.exists() else []
        split = [line.split("|", 4) for line in lines]
        return [(fields[:4], xml.fromstring(fields[4].strip("\ufeff "))) for fields in split]

    def find(self, event: str, type: str = "") -> list[xml.Element]:
        """The messages of an event, and of a type of it."""
        return [
            message
            for _, message in self.messages()
            if _code(message, EVENT) == event and (not type or _code(message, TYPE) == type)
        ]


def _code(message: xml.Element, path: str) -> str:
    element = message.find(path)
    return element.get("csd-code", "") if element is not None else ""


@contextlib.contextmanager
def repository(folder: Path, authority: Authority, *, tls: int = 0) -> Iterator[Repository]:
    folder.mkdir(exist_ok=True)
    made = Repository(folder / "told", free_port(), tls or free_port())
    pair = authority.sign("repository")
    rules = folder / "rsyslog.conf"
    files = {"authority": authority.certificate, "certificate": pair.certificate, "key": pair.key}
    ports = {"udp": made.udp, "tls": made.tls}
    rules.write_text(RULES.format(folder=folder, fields=FIELDS, told=made.told, **files, **ports))
    with peers.running(["rsyslogd", "-n", "-f", rules, "-i", folder / "pid"]) as process:
        process.wait_for_port(made.tls)
        yield made


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "certificates")


def audit(syslog: str, authority: Authority) -> str:
    pair, password = authority.sign("node", password="geheim"), authority.folder / "password"
    password.write_text("geheim\n")
    return (
        f'\n[audit]\nsyslog = "{syslog}"\nauthorities = "{authority.certificate}"\n'
        f'crl = "{authority.revoke()}"\ncertificate = "{pair.certificate}"\n'
        f'key = "{pair.key}"\nkey_password = "file:{password}"\n'
    )


@pytest.mark.parametrize("protocol", ["udp", "tls"])
def test_a_repository_is_told_who_did_what(
    tmp_path: Path, authority: Authority, protocol: str
) -> None:
    with repository(tmp_path / "rsyslog", authority) as told, storescp(tmp_path / "pacs") as pacs:
        address = f"{protocol}://127.0.0.1:{told.tls if protocol == 'tls' else told.udp}"
        node = NodeProcess(
            tmp_path / "node",
            route(model="linear", factor=2, destinations=["pacs"]),
            destination("pacs", "STORESCP", pacs.port),
            audit(address, authority),
        )
        with running(node):
            assert storescu(node.port, *series.thick(3), options=("-xt",)).code == 0
            assert echoscu(node.port, called="NOBODY", calling="STRANGER").code != 0
            base = f"http://127.0.0.1:{node.web_port}"
            wait_for("pages", lambda: _answers(base))
            httpx.get(f"{base}/api/v1/find?name=Meyer", headers=node.proof)
            httpx.post(f"{base}/login", data={"name": "root", "password": "wrong password"})
            node.event("delivery sent")
            wait_for("all is told", lambda: len(told.find("110104")) == 2, 60.0)
            assert len(told.find("110100", "110120")) == 1  # it has started
            (refused,) = told.find("110114", "110122")
            outcome = refused.find("EventIdentification")
            assert outcome is not None and outcome.get("EventOutcomeIndicator") == "4"
            (rejected,) = told.find("110113", "110126")
            assert next(rejected.iter("ActiveParticipant")).get("UserID") == "STRANGER"
            assert len(told.find("110112")) == 1
            received, sent = told.find("110104")
            studies = [
                part.get("ParticipantObjectID")
                for part in (*received, *sent)
                if part.get("ParticipantObjectTypeCode") == "2"
            ]
            first = dcmread(series.thick(3)[0], stop_before_pixels=True)
            assert studies == [first.StudyInstanceUID] * 2
            counts = [part.get("NumberOfInstances") for part in sent.iter("SOPClass")]
            assert counts == ["5"]
        assert len(told.find("110100", "110121")) == 1  # and has stopped
        fields = {tuple(fields) for fields, _ in told.messages()}
        assert fields == {("authpriv", "notice", "midslice", "DICOM+RFC3881")}
        assert "Meyer" not in told.told.read_text()


def test_what_a_repository_did_not_take_it_is_told_later_once(
    tmp_path: Path, authority: Authority
) -> None:
    port = free_port()
    parts = route(destinations=[]), audit(f"tls://127.0.0.1:{port}", authority)
    with running(NodeProcess(tmp_path / "node", *parts)) as node:
        node.event("audit repository not reached")
        assert echoscu(node.port, called="NOBODY", calling="STRANGER").code != 0
        with repository(tmp_path / "rsyslog", authority, tls=port) as told:
            wait_for("it is told", lambda: told.find("110113", "110126"), 60.0)
            assert len(told.find("110100", "110120")) == 1
    assert len(told.find("110113", "110126")) == 1


def test_a_repository_that_is_not_who_it_says_is_told_nothing(
    tmp_path: Path, authority: Authority
) -> None:
    with repository(tmp_path / "rsyslog", Authority(tmp_path / "others", "Other CA")) as told:
        parts = route(destinations=[]), audit(f"tls://127.0.0.1:{told.tls}", authority)
        with running(NodeProcess(tmp_path / "node", *parts)) as node:
            event = node.event("audit repository not reached")
            assert event["reason"] == "SSLCertVerificationError"
        assert told.messages() == []


def _answers(base: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{base}/healthz", timeout=10.0).status_code == 200
    return False
