"""Small real peers on real sockets: DCMTK, Orthanc, a scripted Storage SCP."""

import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.sop_class import CTImageStorage, Verification

from tests.ports import HOST, free_port

SECONDS = 20.0


def wait_until(
    is_true: Callable[[], object], *, what: str, seconds: float = SECONDS, log: object = ""
) -> None:
    """Wait for a condition; past the deadline fail with what it was, and what a process said."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not is_true():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}\n{log}"
        pause.wait(0.02)


class Process:
    """A program that runs beside the test; stopped by its id, its output kept for failures."""

    def __init__(self, command: Sequence[str | Path], **environment: str) -> None:
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop
        self.text = ""
        self.process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
        )

    def __str__(self) -> str:
        if self._output.closed:
            return self.text
        self._output.seek(0)
        return self._output.read().decode("utf-8", "replace")

    def wait_for_port(self, port: int) -> None:
        """Until it accepts connections."""
        wait_until(lambda: self._answers(port), what=f"listens on {port}", log=self)

    def stop(self) -> None:
        """End it: asked first, killed where it does not listen."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(SECONDS)
        self.text = str(self)
        self._output.close()

    def _answers(self, port: int) -> bool:
        assert self.process.poll() is None, f"ended with {self.process.returncode}\n{self}"
        try:
            socket.create_connection((HOST, port), 1.0).close()
        except OSError:
            return False
        return True


@contextmanager
def running(command: Sequence[str | Path], **environment: str) -> Iterator[Process]:
    """A process for as long as the block lasts."""
    process = Process(command, **environment)
    try:
        yield process
    finally:
        process.stop()


@dataclass(frozen=True)
class Finished:
    """What a program that ran to its end left."""

    code: int
    output: str


def _run(command: Sequence[str | Path], **environment: str) -> Finished:
    done = subprocess.run(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=120,
        env={**os.environ, **environment},
    )
    return Finished(done.returncode, done.stdout.decode("utf-8", "replace"))


def echoscu(port: int, *, called: str = "MIDSLICE", calling: str = "ECHOSCU") -> Finished:
    """DCMTK's C-ECHO."""
    return _run(["echoscu", "-v", "-aec", called, "-aet", calling, HOST, str(port)])


def storescu(
    port: int,
    *files: Path,
    called: str = "MIDSLICE",
    calling: str = "STORESCU",
    options: Sequence[str] = (),
) -> Finished:
    """DCMTK's C-STORE, each file as it is encoded; Nagle's algorithm on, as Debian ships it."""
    names = ["-aec", called, "-aet", calling, *options]
    return _run(["storescu", "-v", *names, HOST, str(port), *files], TCP_NODELAY="0")


def dcmsend(
    port: int,
    *files: Path,
    called: str = "MIDSLICE",
    calling: str = "DCMSEND",
    options: Sequence[str] = (),
) -> Finished:
    """DCMTK's other C-STORE, which decompresses what the peer does not take."""
    names = ["-aec", called, "-aet", calling, *options]
    return _run(["dcmsend", "-v", *names, HOST, str(port), *files], TCP_NODELAY="0")


@dataclass(frozen=True)
class Storescp:
    """DCMTK's Storage SCP and the folder it writes to."""

    port: int
    folder: Path
    process: Process
    ae_title: str = "STORESCP"

    def files(self) -> list[Path]:
        """What it has stored."""
        return sorted(self.folder.iterdir())


@contextmanager
def storescp(folder: Path, *, options: Sequence[str] = (), port: int = 0) -> Iterator[Storescp]:
    """Run DCMTK's Storage SCP; the data sets are written as they come."""
    folder.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    command = ["storescp", "-v", "+B", "-od", folder, *options, str(port)]
    with running(command, TCP_NODELAY="0") as process:
        process.wait_for_port(port)
        yield Storescp(port, folder, process)


@dataclass(frozen=True)
class Orthanc:
    """A running Orthanc: its DICOM port, and its REST interface."""

    port: int
    http_port: int
    process: Process
    ae_title: str

    def get(self, path: str) -> object:
        """The answer to a GET, as JSON."""
        with urllib.request.urlopen(self._url(path), timeout=SECONDS) as answer:
            return json.load(answer)

    def raw(self, path: str) -> bytes:
        """The answer to a GET, as bytes."""
        with urllib.request.urlopen(self._url(path), timeout=SECONDS) as answer:
            return bytes(answer.read())

    def post(self, path: str, body: object) -> object:
        """The answer to a POST; bytes go as they are, anything else as JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self._url(path), data=data, method="POST")
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)

    def ids(self, level: str) -> list[str]:
        """Orthanc's ids of all patients, studies, series or instances."""
        found = self.get(f"/{level}")
        assert isinstance(found, list)
        return [str(one) for one in found]

    def instances(self, series_uid: str) -> list[bytes]:
        """The Part 10 files of a series."""
        query = {"Level": "Instance", "Query": {"SeriesInstanceUID": series_uid}}
        found = self.post("/tools/find", query)
        assert isinstance(found, list)
        return [self.raw(f"/instances/{one}/file") for one in found]

    def _url(self, path: str) -> str:
        return f"http://{HOST}:{self.http_port}{path}"


@contextmanager
def orthanc(
    folder: Path,
    *,
    ae_title: str = "ORTHANC",
    modalities: Mapping[str, tuple[str, int]] | None = None,
    routes_to: str = "",
    port: int = 0,
    configuration: Mapping[str, object] | None = None,
) -> Iterator[Orthanc]:
    """Run an Orthanc on free ports.

    `modalities` are the peers that it knows: name -> (AE title, port). `routes_to` names the one
    that each instance is sent on to, as a PACS rule would.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port, http_port = port or free_port(), free_port()
    settings: dict[str, object] = {
        "Name": ae_title,
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "Plugins": [],
        "DicomAet": ae_title,
        "DicomPort": port,
        "DicomCheckCalledAet": True,
        "DicomAlwaysAllowStore": True,
        "HttpPort": http_port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "StableAge": 1,
        "DicomModalities": {
            name: [title, HOST, peer_port]
            for name, (title, peer_port) in (modalities or {}).items()
        },
    }
    if routes_to:
        script = folder / "route.lua"
        script.write_text(
            "function OnStoredInstance(id, tags, metadata, origin)\n"
            f"  RestApiPost('/modalities/{routes_to}/store', id)\n"
            "end\n"
        )
        settings["LuaScripts"] = [str(script)]
    path = folder / "orthanc.json"
    path.write_text(json.dumps(settings | dict(configuration or {})))
    program = shutil.which("Orthanc", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    assert program, "Orthanc is not installed: apt-get install orthanc"
    with running([program, path], TCP_NODELAY="0") as process:
        process.wait_for_port(http_port)
        process.wait_for_port(port)
        yield Orthanc(port, http_port, process, ae_title)


@dataclass
class Script:
    """What a scripted Storage SCP does; the statuses are answered in turn, then Success."""

    statuses: list[int] = field(default_factory=list)
    abort_at: int = 0  # aborts instead of the answer to this instance, counted from 1
    stall_at: int = 0  # never answers this instance
    transfer_syntaxes: tuple[str, ...] = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2")
    sop_classes: tuple[str, ...] = (CTImageStorage,)
    calling_ae_titles: tuple[str, ...] = ()
    received: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def answer(self, event: evt.Event) -> int | Dataset:
        """Answer a C-STORE request as the script says."""
        self.received.append(str(event.request.AffectedSOPInstanceUID))
        count = len(self.received)
        if count == self.abort_at:
            event.assoc.abort()
            return 0x0110
        if count == self.stall_at:
            self.stop.wait(SECONDS)
        return self.statuses.pop(0) if self.statuses else 0x0000


@contextmanager
def scripted_scp(script: Script) -> Iterator[int]:
    """Run a Storage SCP that does what the script says; its port."""
    entity = AE("SCRIPTED")
    entity.require_calling_aet = list(script.calling_ae_titles)
    entity.add_supported_context(Verification)
    for sop_class in script.sop_classes:
        entity.add_supported_context(sop_class, list(script.transfer_syntaxes))
    handlers = [(evt.EVT_C_STORE, script.answer)]
    server = entity.start_server((HOST, 0), block=False, evt_handlers=handlers)
    assert server is not None
    try:
        yield int(server.server_address[1])
    finally:
        script.stop.set()
        entity.shutdown()
