"""The mini-PACS of the demo: Orthanc as a real process, else a Storage SCP that keeps files."""

import hashlib
import http.client
import json
import shutil
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from pydicom.dataset import FileMetaDataset
from pynetdicom import AE, StoragePresentationContexts, evt
from pynetdicom._globals import ALL_TRANSFER_SYNTAXES
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from pynetdicom.transport import ThreadedAssociationServer

from node.demo.processes import Child, DemoError, undisturbed
from node.demo.scanner import Peer

AE_TITLE = "PACS"
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
        self.peer = Peer(AE_TITLE, 0, HOST)
        self._folder = folder
        self._program = program
        self._http_port = 0
        self._child: Child | None = None

    def start(self, admitted: tuple[str, ...]) -> None:
        """Start the process and wait until its REST interface answers."""
        for _ in range(TRIES):
            port, self._http_port = _free_ports()
            self.peer = Peer(AE_TITLE, port, HOST)
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
            "DicomAet": AE_TITLE,
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
        self.peer = Peer(AE_TITLE, 0, HOST)
        self._folder = folder
        self._stored: dict[str, dict[str, Path]] = defaultdict(dict)  # series -> instance -> file
        self._lock = threading.Lock()
        self._server: ThreadedAssociationServer | None = None

    def start(self, admitted: tuple[str, ...]) -> None:
        """Listen on a free port."""
        self._folder.mkdir(parents=True, exist_ok=True)
        entity = AE(AE_TITLE)
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
        self.peer = Peer(AE_TITLE, int(self._server.server_address[1]), HOST)

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
