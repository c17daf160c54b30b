"""The processes of the demo: mini-PACS, scanner simulator and node, each ended by its id."""

import contextlib
import fcntl
import hashlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any, Protocol

from pydicom import dcmread
from pydicom.dataset import FileMetaDataset
from pynetdicom import AE, StoragePresentationContexts, _config, evt
from pynetdicom._globals import ALL_TRANSFER_SYNTAXES
from pynetdicom.association import Association
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from pynetdicom.transport import ThreadedAssociationServer

SCANNER_AE_TITLE = "CT_SCANNER"
STORED = 0x0000
NETWORK_SECONDS = 60.0
# From a path, the bytes of the data set go out as they are, never decoded or encoded again.
_config.STORE_SEND_CHUNKED_DATASET = True


class ScannerError(Exception):
    """The series could not be sent; the text says what the peer answered."""


@dataclass(frozen=True)
class Peer:
    """Where the scanner sends to."""

    ae_title: str
    port: int
    host: str = "127.0.0.1"


@dataclass(frozen=True)
class Sent:
    """What was sent."""

    instances: int
    bytes: int
    seconds: float


def send(paths: Sequence[Path], peer: Peer, sent: Callable[[int], None]) -> Sent:
    """Send every file over one association; `sent` hears how many are stored so far."""
    began = time.monotonic()
    association = _associate(paths, peer)
    try:
        for number, path in enumerate(paths, start=1):
            status = association.send_c_store(path, msg_id=number)
            answer = status.get("Status")
            if answer is None:
                raise ScannerError(f"{peer.ae_title} gave no answer to slice {number}")
            if answer != STORED:
                association.release()
                raise ScannerError(f"{peer.ae_title} did not store slice {number}: {answer:04X}")
            sent(number)
        association.release()
    finally:
        if association.is_established:
            association.abort()
    size = sum(path.stat().st_size for path in paths)
    return Sent(len(paths), size, time.monotonic() - began)


def _associate(paths: Sequence[Path], peer: Peer) -> Association:
    entity = AE(SCANNER_AE_TITLE)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = NETWORK_SECONDS
    for path in paths:
        header = dcmread(path, specific_tags=["SOPClassUID"], stop_before_pixels=True)
        entity.add_requested_context(header.SOPClassUID, header.file_meta.TransferSyntaxUID)
    association = entity.associate(peer.host, peer.port, ae_title=peer.ae_title)
    if association.rejected_contexts:
        association.abort()
        raise ScannerError(f"{peer.ae_title} takes no images as the scanner encodes them")
    if not association.is_established:
        raise ScannerError(f"{peer.ae_title} on port {peer.port} took no association")
    return association


STOP_SECONDS = 45.0
POLL_SECONDS = 0.05
TAIL_LINES = 25
STOPPING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
MADE = ("node", "pacs", "derived", "config.toml", "node.log", "report.html", "before-after.png")
BAD_ENDS = ("job refused", "job held", "job failed", "job cancelled", "delivery held")


class DemoError(Exception):
    """The demo cannot go on; the text says why, `log` where more is written."""

    def __init__(self, problem: str, child: "Child | None" = None) -> None:
        super().__init__(problem)
        self.log = child.log if child is not None else None


class Child:
    """A program that writes its output to a file of its own; `heard` gets each line."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        heard: Callable[[str], None] | None = None,
        *,
        patience_seconds: float = STOP_SECONDS,
    ) -> None:
        self.name = name
        self._patience = patience_seconds
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        # A session of its own: Ctrl-C reaches the demo alone, which ends its children in order.
        self._process = subprocess.Popen(  # noqa: S603 - our own programs with our own arguments
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
            start_new_session=True,
            text=True,
            errors="replace",
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        assert self._process.stdout is not None
        self._reader = threading.Thread(
            target=self._read, args=(self._process.stdout, heard), name=f"{name} log", daemon=True
        )
        self._reader.start()

    @property
    def is_alive(self) -> bool:
        """False once it has ended."""
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def stop(self) -> int:
        """Ask it to end, make it end where it does not; returns its exit status."""
        if self.is_alive:
            self._process.terminate()
            try:
                self._process.wait(self._patience)
            except subprocess.TimeoutExpired:
                self._process.kill()
        status = self._process.wait()
        self._reader.join(self._patience)
        return status

    def _read(self, lines: IO[str], heard: Callable[[str], None] | None) -> None:
        with self.log.open("w") as file, lines:
            for line in lines:
                file.write(line)
                file.flush()
                if heard is not None:
                    heard(line)


class NodeChild:
    """`midslice serve`, as a user would start it."""

    def __init__(self, config: Path, log: Path, program: Path | None = None) -> None:
        self._events: list[tuple[float, dict[str, Any]]] = []  # (when it was read, event)
        command = [str(program or _midslice()), "serve", "--config", str(config)]
        self.child = Child("node", command, log, self._heard)

    def wait(self, event: str, seconds: float, look: Callable[[], None] | None = None) -> Any:
        """The first log event of that name; raises where the node says that it went wrong."""
        deadline = time.monotonic() + seconds
        while True:
            found = self.find(event)
            if found is not None:
                return found[1]
            self._complain(event)
            if time.monotonic() > deadline:
                raise DemoError(f"not within {seconds:g} s: {event}", self.child)
            if look is not None:
                look()
            time.sleep(POLL_SECONDS)

    def find(self, event: str) -> tuple[float, Mapping[str, Any]] | None:
        """When the first log event of that name was read, and what it says."""
        return next((entry for entry in list(self._events) if entry[1].get("event") == event), None)

    def is_ready(self, web_port: int) -> bool:
        """What a load balancer would ask: GET /readyz."""
        connection = http.client.HTTPConnection("127.0.0.1", web_port, timeout=5)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def wait_until_ready(self, web_port: int, seconds: float) -> None:
        """Wait for /readyz."""
        deadline = time.monotonic() + seconds
        while not self.is_ready(web_port):
            self._complain("ready")
            if time.monotonic() > deadline:
                raise DemoError(f"the node is not ready after {seconds:g} s", self.child)
            time.sleep(POLL_SECONDS)

    def _complain(self, awaited: str) -> None:
        for name in BAD_ENDS:
            if (found := self.find(name)) is not None:
                reason = found[1].get("reason", "")
                raise DemoError(f"the node says: {name} {reason}".rstrip(), self.child)
        if not self.child.is_alive:
            raise DemoError(f"the node ended by itself before: {awaited}", self.child)

    def _heard(self, line: str) -> None:
        with contextlib.suppress(json.JSONDecodeError):
            event = json.loads(line)
            if isinstance(event, dict):
                self._events.append((time.monotonic(), event))


def tail(log: Path) -> str:
    """The end of a log file."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-TAIL_LINES:])


def _midslice() -> Path:
    beside = Path(sys.executable).with_name("midslice")
    if beside.exists():
        return beside
    found = shutil.which("midslice")
    if found is None:
        raise DemoError(f"no command midslice beside {sys.executable}: run make setup")
    return Path(found)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep the folder for this run, without what an earlier one left there."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoError(f"another demo runs in {folder}") from None
        for name in MADE:
            path = folder / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        yield


@contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM and a closed terminal end the demo as Ctrl-C does: in order."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {n: signal.signal(n, stop) for n in STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Nothing interrupts what is within; a signal that came meanwhile is raised at the end.

    Around the start of a child, so that none runs that nobody knows; and around the end of all.
    """
    came: list[int] = []
    before = {n: signal.signal(n, lambda number, _: came.append(number)) for n in STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])


PACS_AE_TITLE = "PACS"
HOST = "127.0.0.1"
START_SECONDS = 20.0
ANSWER_SECONDS = 30.0
TRIES = 3  # a port that was free a moment ago may be taken: try others
SUCCESS, OUT_OF_RESOURCES = 0x0000, 0xA700


class MiniPacs(Protocol):
    """What the demo asks of a PACS."""

    name: str
    peer: Peer

    def start(self, admitted: tuple[str, ...]) -> None:
        """Listen; only these calling AE titles may store."""
        ...

    def series(self) -> Mapping[str, int]:
        """Every series that is stored, with the number of its instances."""
        ...

    def retrieve(self, series_uid: str, folder: Path) -> list[Path]:
        """Write the instances of a series, as they are stored, to a new folder."""
        ...

    def stop(self) -> None:
        """End it, whatever state it is in."""
        ...


def installed() -> Path | None:
    """Orthanc's program; Debian keeps it where only an administrator's PATH looks."""
    found = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin")
    return Path(found) if found else None


def choose(folder: Path, kind: str, program: Path | None) -> MiniPacs:
    """Orthanc where there is a program ("auto"), or the one that is asked for."""
    if kind == "orthanc" and program is None:
        raise DemoError("Orthanc is not installed")
    if program is not None and kind != "built-in":
        return Orthanc(folder, program)
    return BuiltIn(folder)


class Orthanc:
    """Orthanc on ports of its own, with a fresh database in the folder of the demo."""

    def __init__(self, folder: Path, program: Path) -> None:
        self.name = "Orthanc"
        self.peer = Peer(PACS_AE_TITLE, 0, HOST)
        self._folder = folder
        self._program = program
        self._http_port = 0
        self._child: Child | None = None

    def start(self, admitted: tuple[str, ...]) -> None:
        """Start the process and wait until its REST interface answers."""
        for _ in range(TRIES):
            port, self._http_port = _free_ports()
            self.peer = Peer(PACS_AE_TITLE, port, HOST)
            command = [str(self._program), str(self._configure(admitted))]
            with undisturbed():
                self._child = Child("Orthanc", command, self._folder / "orthanc.log")
            if self._answers(self._child):
                self.name = f"Orthanc {self._get('/system')['Version']}"
                return
            self._child.stop()
        raise DemoError("Orthanc did not start", self._child)

    def series(self) -> Mapping[str, int]:
        """Asked of its REST interface."""
        return {
            entry["MainDicomTags"]["SeriesInstanceUID"]: len(entry["Instances"])
            for entry in self._get("/series?expand")
        }

    def retrieve(self, series_uid: str, folder: Path) -> list[Path]:
        """Each instance as the file that Orthanc keeps."""
        folder.mkdir(parents=True)
        paths = []
        for entry in self._get("/series?expand"):
            if entry["MainDicomTags"]["SeriesInstanceUID"] != series_uid:
                continue
            for number, instance in enumerate(entry["Instances"], start=1):
                paths.append(folder / f"{number:04}.dcm")
                paths[-1].write_bytes(self._ask(f"/instances/{instance}/file"))
        return paths

    def stop(self) -> None:
        """End the process by its id."""
        if self._child is not None:
            self._child.stop()

    def _configure(self, admitted: tuple[str, ...]) -> Path:
        storage = self._folder / "storage"
        storage.mkdir(parents=True, exist_ok=True)
        settings = {
            "Name": "Midslice demo",
            "StorageDirectory": str(storage),
            "IndexDirectory": str(storage),
            "Plugins": [],
            "DicomAet": PACS_AE_TITLE,
            "DicomPort": self.peer.port,
            "DicomCheckCalledAet": True,
            "DicomAlwaysAllowStore": False,
            "DicomModalities": {title: [title, HOST, 104] for title in admitted},
            "DicomCheckModalityHost": True,
            "HttpPort": self._http_port,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
        }
        path = self._folder / "orthanc.json"
        path.write_text(json.dumps(settings, indent=2))
        return path

    def _answers(self, child: Child) -> bool:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and child.is_alive:
            try:
                self._get("/system")
                return True
            except DemoError:  # not yet
                time.sleep(0.1)
        return False

    def _get(self, path: str) -> Any:
        return json.loads(self._ask(path))

    def _ask(self, path: str) -> bytes:
        connection = http.client.HTTPConnection(HOST, self._http_port, timeout=ANSWER_SECONDS)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise DemoError(f"Orthanc does not answer: {error}", self._child) from error
        finally:
            connection.close()
        if response.status != http.HTTPStatus.OK:
            raise DemoError(f"Orthanc answered {response.status} to {path}", self._child)
        return body


class BuiltIn:
    """A Storage SCP on pynetdicom; each instance becomes a Part 10 file as it was sent."""

    def __init__(self, folder: Path) -> None:
        self.name = "a built-in Storage SCP"
        self.peer = Peer(PACS_AE_TITLE, 0, HOST)
        self._folder = folder
        self._stored: dict[str, dict[str, Path]] = defaultdict(dict)  # series -> instance -> file
        self._lock = threading.Lock()
        self._server: ThreadedAssociationServer | None = None

    def start(self, admitted: tuple[str, ...]) -> None:
        """Listen on a free port."""
        self._folder.mkdir(parents=True, exist_ok=True)
        entity = AE(PACS_AE_TITLE)
        entity.require_calling_aet = list(admitted)
        entity.require_called_aet = True
        entity.maximum_pdu_size = 128 * 1024
        syntaxes = [str(syntax) for syntax in ALL_TRANSFER_SYNTAXES]
        entity.supported_contexts = [
            build_context(context.abstract_syntax or "", syntaxes)
            for context in StoragePresentationContexts
        ]
        entity.add_supported_context(Verification)
        self._server = entity.start_server(
            (HOST, 0), block=False, evt_handlers=[(evt.EVT_C_STORE, self._store)]
        )
        assert self._server is not None
        self.peer = Peer(PACS_AE_TITLE, int(self._server.server_address[1]), HOST)

    def series(self) -> Mapping[str, int]:
        """What was stored so far."""
        with self._lock:
            return {series: len(instances) for series, instances in self._stored.items()}

    def retrieve(self, series_uid: str, folder: Path) -> list[Path]:
        """Copies of the kept files."""
        folder.mkdir(parents=True)
        with self._lock:
            kept = list(self._stored[series_uid].values())
        copies = [folder / f"{number:04}.dcm" for number in range(1, len(kept) + 1)]
        for path, copy in zip(kept, copies, strict=True):
            shutil.copy(path, copy)
        return copies

    def stop(self) -> None:
        """Close the port and end its associations."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            for association in self._server.ae.active_associations:
                association.abort()
            self._server = None

    def _store(self, event: evt.Event) -> int:
        meta: FileMetaDataset = event.file_meta
        uid = str(meta.MediaStorageSOPInstanceUID)
        # A hash: a peer's text never becomes a path.
        path = self._folder / f"{hashlib.sha256(uid.encode()).hexdigest()[:32]}.dcm"
        try:
            path.write_bytes(event.encoded_dataset())
        except OSError:
            return OUT_OF_RESOURCES
        with self._lock:
            self._stored[str(event.dataset.SeriesInstanceUID)][uid] = path
        return SUCCESS


def _free_ports() -> tuple[int, int]:
    with socket.create_server((HOST, 0)) as first, socket.create_server((HOST, 0)) as second:
        return int(first.getsockname()[1]), int(second.getsockname()[1])
