"""A department around a node whose power is cut again and again: scanners, the node, a PACS.

The scanners are DCMTK's storescu and pynetdicom; each sends a series until all of it was answered
with Success over one association. Every cut kills all processes of the node at once, at a named
step of `doomed.STEPS` or at a random moment. What was lost or doubled is counted at the end, for
each kind of cut, by the audit that the soak uses too.
"""

import contextlib
import gc
import itertools
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pydicom import dcmread
from pynetdicom import AE
from pynetdicom.sop_class import CTImageStorage

from storage import migrations
from tests import peers, phantoms
from tests.benchmarks.audit import Found, Route, Sending, audit, unfinished
from tests.faults import doomed
from tests.faults.doomed import STEPS
from tests.faults.table import Fault
from tests.node_process import NodeProcess, destination, route, wait_for
from tests.ports import HOST, free_port
from tests.raw_peer import (
    VERIFICATION,
    RawPeer,
    associate_request,
    echo_command,
    fragment,
    status_of,
)

ROOT = Path(__file__).parents[2]
ROUTE = Route("ct-slices", "MIDSLICE", 2)
RANDOM = "at a random moment"
KINDS = (RANDOM, *STEPS)
SIDE, SLICES = 256, 4  # an instance is several fragments
QUIET_SECONDS = 1.5
REACHED_SECONDS = 240.0  # until the node comes to the step: a worker loads its models before
DRAIN_SECONDS = 180.0
RETRY_SECONDS = 0.2  # until a scanner tries again
RANDOM_SECONDS = (0.0, 6.0)  # from the begin of the sending
AT_ONCE_DAYS = 1e-7  # storage.keep_days where retention is to remove what was sent
LATER = """
import sqlalchemy as sa
from alembic import op

revision = "t{number}"
down_revision = "{before}"


def upgrade() -> None:
    with op.batch_alter_table("series") as table:
        table.add_column(sa.Column("later_{number}", sa.String(16), server_default="-"))
        table.alter_column("modality", type_=sa.String(32 + {number}))
"""


@dataclass
class Department:
    """One node with its database, its scanners and its PACS, from cut to cut."""

    folder: Path
    pacs: peers.Storescp
    seed: int
    database: str = ""
    fault: Callable[[str], Fault] = Fault  # begins a row of the table
    faults: dict[str, Fault] = field(default_factory=dict)
    sendings: dict[str, list[Sending]] = field(default_factory=dict)  # by the kind of their cut

    def __post_init__(self) -> None:
        self._drawn = random.Random(self.seed)
        self._numbers = itertools.count(1)
        self._revisions: list[str] = []
        self._death = self.folder / "death"
        self._over = threading.Event()
        self._threads = ThreadPoolExecutor()
        self._senders: list[Future[None]] = []
        self.node = NodeProcess(self.folder / "node", port=free_port())
        self.node.program = doomed.program(self.folder)
        self.node.environment = {
            "PYTHONPATH": str(ROOT),
            doomed.DEATH: str(self._death),
            doomed.SCRIPTS: str(self._scripts()),
        }
        self._configure(is_direct=True)

    def begin(self) -> None:
        """Start the node for the first time."""
        self.node.start()

    def end(self) -> Found:
        """Let everything come to its end; what is lost, and what is there twice."""
        for sender in self._senders:
            sender.result(DRAIN_SECONDS)
        deadline, quiet = time.monotonic() + DRAIN_SECONDS, 0
        while time.monotonic() < deadline and quiet < 3:
            time.sleep(0.3)
            quiet = 0 if unfinished(self.node.database_url) else quiet + 1
        self._over.set()
        found = audit(
            [sending for of_kind in self.sendings.values() for sending in of_kind],
            self.node.folder / "var",
            [self.pacs.folder],
            self.node.database_url,
        )
        for kind, of_kind in self.sendings.items():
            counts = sum((found.of_series[it.series_uid] for it in of_kind), Counter[str]())
            self.faults[kind].lost += counts["lost"]
            self.faults[kind].duplicated += counts["doubled"]
        return found

    def close(self) -> None:
        """End every process and thread of it."""
        self._over.set()
        self.node.close()
        self._threads.shutdown()
        gc.collect()  # sockets that pynetdicom has left open: see the mark of the tests

    def cut(self, kind: str, *, is_direct: bool) -> None:
        """Cut the power once, and start the node again; the work goes on meanwhile."""
        fault = self._fault(kind)
        fault.times += 1
        try:
            if kind != RANDOM and STEPS[kind].in_start:
                self._cut_in_start(kind)
            else:
                self._cut(kind)
        except AssertionError:
            fault.hung += 1
            raise
        self._configure(is_direct=is_direct)
        began = time.monotonic()
        self.node.start()
        self._echo()
        fault.seconds = max(fault.seconds, time.monotonic() - began)

    def _fault(self, kind: str) -> Fault:
        if kind not in self.faults:
            self.faults[kind] = self.fault(f"all processes killed {kind}")
        return self.faults[kind]

    def _cut(self, kind: str) -> None:
        """While a scanner sends, or after it: where the node comes to the step."""
        if kind == RANDOM:
            self._send(kind)
            time.sleep(self._drawn.uniform(*RANDOM_SECONDS))
            self.node.kill_all()
            return
        self._death.write_text(f"{kind} {STEPS[kind].count}")
        self._send(kind)
        self._wait_for_death(kind)

    def _cut_in_start(self, kind: str) -> None:
        """A node that was cut while it received is cut once more while it starts."""
        if "retention" in kind:
            self._expire(kind)
        else:
            self._send(kind)
            time.sleep(self._drawn.uniform(0.1, 1.0))
        self.node.kill_all()
        if "migration" in kind:
            self._release()
        self._death.write_text(f"{kind} {STEPS[kind].count}")
        self.node.launch()
        self._wait_for_death(kind)

    def _expire(self, kind: str) -> None:
        """Have a series whose results were sent, and a site that keeps nothing any longer."""
        self._send(kind)
        self._senders[-1].result(DRAIN_SECONDS)
        wait_for(
            "everything is sent",
            lambda: not unfinished(self.node.database_url),
            DRAIN_SECONDS,
        )
        for sending in itertools.chain(*self.sendings.values()):
            sending.is_purged = True
        self._configure(is_direct=True, keep_days=AT_ONCE_DAYS)

    def _wait_for_death(self, kind: str) -> None:
        child = self.node.node.child
        try:
            wait_for(f"the node dies {kind}", lambda: child.is_over, REACHED_SECONDS)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{child.output()}") from None
        code = child.wait(1.0)
        assert code == -signal.SIGKILL and not self._death.exists(), (kind, child.output())

    def _send(self, kind: str) -> None:
        """Have the next scanner send a new series, however often it takes."""
        number = next(self._numbers)
        made = phantoms.Series(slices=SLICES, rows=SIDE, columns=SIDE, seed=f"{self.seed}/{number}")
        files = phantoms.write(self.folder / "scanners" / str(number), made)
        uid = phantoms.uid(made.seed, "series", made.number)
        scanner = f"CT{number % 2 + 1}"
        sending = Sending(uid, scanner, ROUTE, tuple(files))
        self.sendings.setdefault(kind, []).append(sending)
        once = self._with_dcmtk if number % 2 else self._with_pynetdicom
        self._senders.append(self._threads.submit(self._send_whole, sending, once))

    def _send_whole(self, sending: Sending, once: Callable[[Sending], None]) -> None:
        while not sending.is_whole and not self._over.wait(RETRY_SECONDS):
            once(sending)

    def _with_dcmtk(self, sending: Sending) -> None:
        sent = peers.storescu(
            self.node.port, *sending.files, called=ROUTE.called, calling=sending.scanner
        )
        sending.acknowledge(sent.output)

    def _with_pynetdicom(self, sending: Sending) -> None:
        entity = AE(sending.scanner)
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 20.0
        entity.add_requested_context(CTImageStorage)
        association = entity.associate(HOST, self.node.port, ae_title=ROUTE.called)
        transport = association.dul.socket
        connection = transport.socket if transport is not None else None
        answered: list[Path] = []
        with contextlib.suppress(RuntimeError):  # there is no association any more
            answered.extend(
                file
                for file in sending.files
                if association.send_c_store(dcmread(file)).get("Status") == 0x0000
            )
        if association.is_established:
            association.release()
        if connection is not None:
            connection.close()  # the library leaves it open where the node was killed
        sending.acknowledge_files(answered)

    def _echo(self) -> None:
        """The node serves again: it answers a C-ECHO."""
        request = associate_request(contexts=((VERIFICATION, ("1.2.840.10008.1.2",)),))
        with RawPeer(self.node.port) as peer:
            peer.associate(request)
            peer.send(fragment(echo_command(), command=True))
            assert status_of(peer.answer()) == 0x0000
            peer.release()

    def _configure(self, *, is_direct: bool, keep_days: float = 7.0) -> None:
        self.node.configure(
            destination("pacs", self.pacs.ae_title, self.pacs.port),
            route(destinations=["pacs"]),
            database=self.database,
            direct_receive=is_direct,
            keep_days=keep_days,
            quiet_seconds=QUIET_SECONDS,
        )

    def _scripts(self) -> Path:
        """The migrations of this release, to which later ones are added."""
        scripts = self.folder / "scripts" / "versions"
        scripts.mkdir(parents=True)
        for script in (migrations.FOLDER / "versions").glob("*.py"):
            (scripts / script.name).write_text(script.read_text())
            self._revisions.append(script.name[:4])
        self._revisions.sort()
        return scripts.parent

    def _release(self) -> None:
        """The next start is that of a later release, with another column."""
        number = len(self._revisions)
        text = LATER.format(number=number, before=self._revisions[-1])
        self._revisions.append(f"t{number}")
        (Path(self.node.environment[doomed.SCRIPTS]) / "versions" / f"t{number}.py").write_text(
            text
        )


@contextmanager
def department(
    folder: Path, *, seed: int, database: str = "", fault: Callable[[str], Fault] = Fault
) -> Iterator[Department]:
    """Run one for as long as the block lasts."""
    with peers.storescp(folder / "pacs") as pacs:
        made = Department(folder, pacs, seed, database, fault)
        try:
            made.begin()
            yield made
        finally:
            made.close()
