"""Small real peers on real sockets: DCMTK, Orthanc, a scripted Storage SCP."""

import os
import re
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from socketserver import BaseServer
from typing import Any

from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.sop_class import CTImageStorage, Verification
from pynetdicom.transport import ThreadedAssociationServer

from node.demo.peers import Orthanc, Program, orthanc_program
from tests.ports import HOST, free_port

SECONDS = 20.0
NOT_ALL_STORED = 1  # the code of a program that ended well but was refused an instance


def wait_until(
    is_true: Callable[[], object], *, what: str, seconds: float = SECONDS, log: object = ""
) -> None:
    """Wait for a condition; past the deadline fail with what it was, and what a process said."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not is_true():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}\n{log}"
        pause.wait(0.02)


@contextmanager
def running(command: Sequence[str | Path], **environment: str) -> Iterator[Program]:
    """A process for as long as the block lasts."""
    child = Program(command, stop_seconds=SECONDS, environment=environment)
    try:
        yield child
    finally:
        child.stop()


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
    """DCMTK's other C-STORE, which decompresses what the peer does not take.

    It exits with 0 however many instances are refused; its report says what became of each.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.txt"
        names = ["-aec", called, "-aet", calling, "+crf", report, *options]
        done = _run(["dcmsend", "-v", *names, HOST, str(port), *files], TCP_NODELAY="0")
        text = report.read_text(encoding="utf-8") if report.exists() else ""
    stored = len(re.findall(r"^DIMSE Status +: 0x0000 ", text, re.MULTILINE))
    if done.code == 0 and stored < len(files):
        return Finished(NOT_ALL_STORED, done.output + text)
    return done


@dataclass(frozen=True)
class Storescp:
    """DCMTK's Storage SCP and the folder it writes to."""

    port: int
    folder: Path
    process: Program
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


@contextmanager
def orthanc(
    folder: Path,
    *,
    ae_title: str = "ORTHANC",
    modalities: Mapping[str, tuple[str, int]] | None = None,
    routes_to: str = "",
    port: int = 0,
    configuration: Mapping[str, object] | None = None,
    nodelay: bool = False,
) -> Iterator[Orthanc]:
    """Run an Orthanc on free ports.

    `modalities` are the peers that it knows: name -> (AE title, port). `routes_to` names the one
    that each instance is sent on to, as a PACS rule would.
    """
    known = {name: [title, HOST, to] for name, (title, to) in (modalities or {}).items()}
    settings: dict[str, object] = {"StableAge": 1, "DicomModalities": known}
    if routes_to:
        folder.mkdir(parents=True, exist_ok=True)
        script = folder / "route.lua"
        script.write_text(
            "function OnStoredInstance(id, tags, metadata, origin)\n"
            f"  RestApiPost('/modalities/{routes_to}/store', id)\n"
            "end\n"
        )
        settings["LuaScripts"] = [str(script)]
    program = orthanc_program()
    assert program, "Orthanc is not installed: apt-get install orthanc"
    pacs = Orthanc(
        folder,
        program,
        ae_title=ae_title,
        port=port,
        settings=settings | dict(configuration or {}),
        environment={"TCP_NODELAY": str(int(nodelay))},
    )
    try:
        pacs.start()
        yield pacs
    finally:
        pacs.stop()


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
    with listening(entity, handlers) as port:
        try:
            yield port
        finally:
            script.stop.set()


class _Server(ThreadedAssociationServer):
    """Closes each connection, which the library forgets where the other side was faster."""

    def get_request(self) -> Any:
        connection, address = super().get_request()
        self._connections = [*getattr(self, "_connections", []), connection]
        return connection, address

    def server_close(self) -> None:
        super().server_close()
        for connection in getattr(self, "_connections", []):
            connection.close()


@contextmanager
def listening(
    entity: AE, handlers: Sequence[Any], tls: ssl.SSLContext | None = None
) -> Iterator[int]:
    """Run the SCP of an application entity, with a context over TLS; its port."""
    server = entity.make_server(
        (HOST, 0), evt_handlers=list(handlers), ssl_context=tls, server_class=_Server
    )
    # The library looks for its end twice a second, which many tests would wait for.
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        for association in entity.active_associations:
            association.abort()
        BaseServer.shutdown(server)
        server.server_close()
        thread.join()


@contextmanager
def dcmqrscp(
    folder: Path,
    *,
    ae_title: str = "PACS",
    known: Mapping[str, int] | None = None,
    options: Sequence[str] = ("+xt",),
) -> Iterator[int]:
    """Run DCMTK's image archive; its port. `known` are its move destinations: AE title -> port."""
    port = free_port()
    kept = folder / ae_title
    kept.mkdir(parents=True)
    hosts = [f"{title} = ({title}, {HOST}, {to})" for title, to in (known or {}).items()]
    lines = [
        *(f"NetworkTCPPort = {port}", "MaxPDUSize = 131072", "MaxAssociations = 16"),
        *("HostTable BEGIN", *hosts, "HostTable END", "VendorTable BEGIN", "VendorTable END"),
        *("AETable BEGIN", f"{ae_title} {kept} RW (200, 1024mb) ANY", "AETable END", ""),
    ]
    configuration = folder / "dcmqrscp.cfg"
    configuration.write_text("\n".join(lines))
    with running(["dcmqrscp", "-c", configuration, *options]) as process:
        what = "dcmqrscp to answer"
        wait_until(lambda: echoscu(port, called=ae_title).code == 0, what=what, log=process)
        yield port
