"""The peers of the demo: a scanner, a PACS, and the node as a child process."""

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
from contextlib import closing, contextmanager
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Any, TypeAlias, TypeVar

from pydicom import dcmread
from pydicom.dataset import FileMetaDataset
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, StoragePresentationContexts, _config, evt
from pynetdicom.association import Association
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from pynetdicom.transport import ThreadedAssociationServer

HOST = "127.0.0.1"
SCANNER_AE_TITLE, PACS_AE_TITLE = "CT_SCANNER", "PACS"
SUCCESS, OUT_OF_RESOURCES = 0x0000, 0xA700
NETWORK_SECONDS = 60.0
START_SECONDS = 20.0
STOP_SECONDS = 45.0
ANSWER_SECONDS = 120.0
POLL_SECONDS = 0.05
TRIES = 3  # a port that was free a moment ago may be taken: try others
TAIL_LINES = 25
STOPPING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
MADE = (
    "node",
    "pacs",
    "derived",
    "results",
    "config.toml",
    "node.log",
    "report.html",
    "before-after.png",
)
BAD_ENDS = ("job refused", "job held", "job failed", "job cancelled", "delivery held")
# From a path, the bytes of the data set go out as they are, never decoded or encoded again.
_config.STORE_SEND_CHUNKED_DATASET = True

T = TypeVar("T")


class DemoError(Exception):
    """The demo cannot go on; the text says why, `log` where more is written."""

    def __init__(self, problem: str, child: "Program | None" = None) -> None:
        super().__init__(problem)
        self.log = child.log if child is not None else None
        if child is not None:
            self.add_note(child.output())


@dataclass(frozen=True)
class DicomAddress:
    """The AE title and the port that a peer listens on."""

    ae_title: str
    port: int
    host: str = HOST


@dataclass(frozen=True)
class SentSeries:
    """Size and duration of what was sent."""

    instances: int
    bytes: int
    seconds: float


def send(paths: Sequence[Path], peer: DicomAddress, sent: Callable[[int], None]) -> SentSeries:
    """Send every file over one association; `sent` is called with how many are stored so far."""
    began = time.monotonic()
    with signals_deferred():  # a thread of a half-open association would never end
        association = _associate(paths, peer)
    try:
        for number, path in enumerate(paths, start=1):
            status = association.send_c_store(path, msg_id=number).get("Status")
            if status is None:
                raise DemoError(f"{peer.ae_title} gave no answer to slice {number}")
            if status != SUCCESS:
                association.release()
                raise DemoError(f"{peer.ae_title} did not store slice {number}: {status:04X}")
            sent(number)
        association.release()
    finally:
        if association.is_established:
            association.abort()
    size = sum(path.stat().st_size for path in paths)
    return SentSeries(len(paths), size, time.monotonic() - began)


def _associate(paths: Sequence[Path], peer: DicomAddress) -> Association:
    entity = AE(SCANNER_AE_TITLE)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = NETWORK_SECONDS
    for path in paths:
        header = dcmread(path, specific_tags=["SOPClassUID"], stop_before_pixels=True)
        entity.add_requested_context(header.SOPClassUID, header.file_meta.TransferSyntaxUID)
    association = entity.associate(peer.host, peer.port, ae_title=peer.ae_title)
    if association.rejected_contexts:
        association.abort()
        raise DemoError(f"{peer.ae_title} takes no images as the scanner encodes them")
    if not association.is_established:
        raise DemoError(f"{peer.ae_title} on port {peer.port} accepted no association")
    return association


class Program:
    """A program that runs beside this one; its output is kept, in `log` too where it is named."""

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        log: Path | None = None,
        on_line: Callable[[str], None] | None = None,
        stop_seconds: float = STOP_SECONDS,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.log = log
        self.lines: list[str] = []
        self._on_line = on_line
        self._stop_seconds = stop_seconds
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
        # A session of its own: Ctrl-C reaches the parent alone, which ends its children in order.
        self._process = subprocess.Popen(  # noqa: S603 - our own programs with our own arguments
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=log and log.parent,
            start_new_session=True,
            text=True,
            errors="replace",
            env=os.environ | {"PYTHONUNBUFFERED": "1"} | dict(environment or {}),
        )
        assert self._process.stdout is not None
        self._reader = threading.Thread(
            target=self._read, args=(self._process.stdout,), name="child output", daemon=True
        )
        self._reader.start()

    def __str__(self) -> str:
        return "".join(self.lines)

    def output(self) -> str:
        """The end of what it has printed."""
        return "".join(self.lines[-4 * TAIL_LINES :])

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    @property
    def is_over(self) -> bool:
        """True once it has ended and its whole output is kept."""
        return not self.is_alive and not self._reader.is_alive()

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, seconds: float) -> int:
        """Wait for its end; returns the exit status, or raises subprocess.TimeoutExpired."""
        status = self._process.wait(seconds)
        self._reader.join(self._stop_seconds)  # until the last process that holds the pipe ends
        return status

    def wait_for_port(self, port: int, seconds: float = START_SECONDS) -> None:
        """Wait until it accepts connections."""
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection((HOST, port), 1.0).close()
                return
            if self.is_over or time.monotonic() > deadline:
                raise DemoError(f"nobody listens on port {port}", self)
            time.sleep(POLL_SECONDS)

    def stop(self) -> int:
        """Ask it to end, make it end where it does not; returns its exit status."""
        if self.is_alive:
            self._process.terminate()
            try:
                self._process.wait(self._stop_seconds)
            except subprocess.TimeoutExpired:
                self._process.kill()
        return self.wait(self._stop_seconds)

    def _read(self, lines: IO[str]) -> None:
        with contextlib.ExitStack() as files:
            files.enter_context(lines)
            file = files.enter_context(self.log.open("w")) if self.log is not None else None
            for line in lines:
                self.lines.append(line)
                if file is not None:
                    file.write(line)
                    file.flush()
                if self._on_line is not None:
                    self._on_line(line)


class NodeChild:
    """`midslice serve`, as a user would start it, and the events of its log."""

    def __init__(
        self,
        config: Path,
        *,
        log: Path | None = None,
        program: Path | None = None,
        bad_ends: Sequence[str] = BAD_ENDS,
        stop_seconds: float = STOP_SECONDS,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.events: list[dict[str, Any]] = []
        self.first_read: dict[str, float] = {}  # by the name of an event
        self._bad_ends = bad_ends
        command = [str(program or midslice_program()), "serve", "--config", str(config)]
        self.child = Program(
            command,
            log=log,
            on_line=self._keep,
            stop_seconds=stop_seconds,
            environment=environment,
        )

    def find(self, name: str, /, **values: object) -> list[dict[str, Any]]:
        """The log events so far of that name with those values."""
        return [
            event
            for event in list(self.events)
            if event.get("event") == name
            and all(event.get(key) == value for key, value in values.items())
        ]

    def wait(
        self,
        name: str,
        seconds: float,
        /,
        *,
        count: int = 1,
        poll: Callable[[], None] | None = None,
        **values: object,
    ) -> dict[str, Any]:
        """Wait for the `count`-th log event of that name with those values."""

        def event() -> dict[str, Any] | None:
            if poll is not None:
                poll()
            return next(iter(self.find(name, **values)[count - 1 :]), None)

        return self._wait(name, seconds, event)

    def wait_until_ready(self, web_port: int, seconds: float) -> None:
        """Wait until the node answers GET /readyz as a load balancer expects."""
        self._wait("ready", seconds, lambda: _is_ready(web_port) or None)

    def _wait(self, awaited: str, seconds: float, ask: Callable[[], T | None]) -> T:
        deadline = time.monotonic() + seconds
        while (answer := ask()) is None:
            for end in self._bad_ends:
                for event in self.find(end):
                    reason = event.get("reason", "")
                    raise DemoError(f"the node says: {end} {reason}".rstrip(), self.child)
            if self.child.is_over and (answer := ask()) is None:
                raise DemoError(f"the node ended by itself before: {awaited}", self.child)
            if time.monotonic() > deadline:
                raise DemoError(f"not within {seconds:g} s: {awaited}", self.child)
            time.sleep(POLL_SECONDS)
        return answer

    def _keep(self, line: str) -> None:
        with contextlib.suppress(json.JSONDecodeError):
            event = json.loads(line)
            if isinstance(event, dict):
                self.events.append(event)
                self.first_read.setdefault(str(event.get("event")), time.monotonic())


def _is_ready(web_port: int) -> bool:
    try:
        with closing(http.client.HTTPConnection(HOST, web_port, timeout=5)) as connection:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False


def midslice_program() -> Path:
    """The command beside this interpreter, or else in PATH."""
    beside = Path(sys.executable).with_name("midslice")
    if beside.exists():
        return beside
    program = shutil.which("midslice")
    if program is None:
        raise DemoError(f"no command midslice beside {sys.executable}: run make setup")
    return Path(program)


def tail(log: Path) -> str:
    """The end of a log file."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-TAIL_LINES:])


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
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
def stopped_by_signals() -> Iterator[None]:
    """SIGTERM and a closed terminal end the demo as Ctrl-C does: in order."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _handling(stop):
        yield


@contextmanager
def signals_deferred() -> Iterator[None]:
    """Nothing interrupts what is within; a signal that came meanwhile is raised at the end.

    Around the start of a child, so that none runs that nobody knows; and around the end of all.
    """
    came: list[int] = []
    with _handling(lambda number, _: came.append(number)):
        yield
    if came:
        signal.raise_signal(came[0])


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in STOPPING}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@dataclass
class Orthanc:
    """Orthanc on ports of its own, with a fresh database in a folder."""

    folder: Path
    program: Path
    _: KW_ONLY
    ae_title: str = PACS_AE_TITLE
    port: int = 0  # any free one
    settings: Mapping[str, object] = field(default_factory=dict)
    environment: Mapping[str, str] | None = None
    name: str = "Orthanc"
    child: Program | None = None

    def __post_init__(self) -> None:
        self.address = DicomAddress(self.ae_title, self.port)
        self._http_port = 0

    def start(self, admitted: Sequence[str] = ()) -> None:
        """Start the process and wait until both of its ports answer."""
        for _ in range(TRIES):
            port, self._http_port = _free_ports()
            self.address = DicomAddress(self.ae_title, self.port or port)
            command = [self.program, self._configure(admitted)]
            log = self.folder / "orthanc.log"
            with signals_deferred():
                self.child = Program(command, log=log, environment=self.environment)
            with contextlib.suppress(DemoError):
                self.child.wait_for_port(self._http_port)
                self.child.wait_for_port(self.address.port)
                self.name = f"Orthanc {self.get('/system')['Version']}"
                return
            self.child.stop()
        raise DemoError("Orthanc did not start", self.child)

    @property
    def url(self) -> str:
        """The address of its REST interface."""
        return f"http://127.0.0.1:{self._http_port}"

    def series(self) -> Mapping[str, int]:
        """The series in its REST interface."""
        return {
            entry["MainDicomTags"]["SeriesInstanceUID"]: len(entry["Instances"])
            for entry in self.get("/series?expand")
        }

    def instances(self, series_uid: str) -> list[bytes]:
        """Each instance as the file that Orthanc keeps."""
        query = {"Level": "Instance", "Query": {"SeriesInstanceUID": series_uid}}
        return [self.ask(f"/instances/{name}/file") for name in self.post("/tools/find", query)]

    def rendered(self, instance_uid: str) -> bytes | None:
        """A picture of an instance, or of its middle frame, as Orthanc shows it: PNG.

        It shows no frames of one bit whose columns are no multiple of eight.
        """
        query = {"Level": "Instance", "Query": {"SOPInstanceUID": instance_uid}}
        (name,) = self.post("/tools/find", query)
        frames = self.get(f"/instances/{name}/frames")
        try:
            return self.ask(f"/instances/{name}/frames/{len(frames) // 2}/rendered")
        except DemoError:
            return None

    def stop(self) -> None:
        if self.child is not None:
            self.child.stop()

    def get(self, path: str) -> Any:
        """The JSON document that it answers to a GET."""
        return json.loads(self.ask(path))

    def post(self, path: str, body: object) -> Any:
        """The JSON document that it answers to a POST; bytes go as they are, else as JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return json.loads(self.ask(path, "POST", data))

    def ask(self, path: str, method: str = "GET", body: bytes | None = None) -> bytes:
        """The answer to any request of its REST interface."""
        opened = http.client.HTTPConnection(HOST, self._http_port, timeout=ANSWER_SECONDS)
        try:
            with closing(opened) as connection:
                connection.request(method, path, body)
                response = connection.getresponse()
                answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise DemoError(f"Orthanc does not answer: {error}", self.child) from error
        if response.status != http.HTTPStatus.OK:
            raise DemoError(f"Orthanc answered {response.status} to {path}", self.child)
        return answer

    def _configure(self, admitted: Sequence[str]) -> Path:
        storage = self.folder / "storage"
        storage.mkdir(parents=True, exist_ok=True)
        settings = {
            "Name": self.address.ae_title,
            "StorageDirectory": str(storage),
            "IndexDirectory": str(storage),
            "Plugins": [],
            "DicomAet": self.address.ae_title,
            "DicomPort": self.address.port,
            "DicomCheckCalledAet": True,
            "DicomAlwaysAllowStore": not admitted,
            "DicomModalities": {title: [title, HOST, 104] for title in admitted},
            "DicomCheckModalityHost": bool(admitted),
            "HttpPort": self._http_port,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
        }
        path = self.folder / "orthanc.json"
        path.write_text(json.dumps({**settings, **self.settings}, indent=2))
        return path


class BuiltInPacs:
    """A Storage SCP on pynetdicom; each instance becomes a Part 10 file as it was sent."""

    def __init__(self, folder: Path) -> None:
        self.name = "a built-in Storage SCP"
        self.address = DicomAddress(PACS_AE_TITLE, 0)
        self._folder = folder
        self._stored: dict[str, dict[str, Path]] = defaultdict(dict)  # series -> instance -> file
        self._lock = threading.Lock()
        self._server: ThreadedAssociationServer | None = None

    def start(self, admitted: Sequence[str]) -> None:
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
        self.address = DicomAddress(PACS_AE_TITLE, int(self._server.server_address[1]))

    def series(self) -> Mapping[str, int]:
        with self._lock:
            return {series: len(instances) for series, instances in self._stored.items()}

    def instances(self, series_uid: str) -> list[bytes]:
        with self._lock:
            paths = list(self._stored[series_uid].values())
        return [path.read_bytes() for path in paths]

    def rendered(self, instance_uid: str) -> bytes | None:
        """None: it keeps files and shows none."""
        return None

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


Pacs: TypeAlias = Orthanc | BuiltInPacs


def choose_pacs(folder: Path, kind: str, program: Path | None) -> Pacs:
    """Orthanc where there is a program ("auto"), or the one that is asked for."""
    if kind == "orthanc" and program is None:
        raise DemoError("Orthanc is not installed")
    if program is not None and kind != "built-in":
        return Orthanc(folder, program)
    return BuiltInPacs(folder)


def orthanc_program() -> Path | None:
    """Orthanc where it is installed; Debian keeps it where only an administrator's PATH looks."""
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin")
    return Path(program) if program else None


def retrieve(pacs: Pacs, series_uid: str, folder: Path) -> list[Path]:
    """Write the instances of a series to a new folder."""
    folder.mkdir(parents=True)
    paths = []
    for number, instance in enumerate(pacs.instances(series_uid), start=1):
        paths.append(folder / f"{number:04}.dcm")
        paths[-1].write_bytes(instance)
    return paths


def _free_ports() -> tuple[int, int]:
    with socket.create_server((HOST, 0)) as first, socket.create_server((HOST, 0)) as second:
        return int(first.getsockname()[1]), int(second.getsockname()[1])
