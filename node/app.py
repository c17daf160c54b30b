"""The node as a whole: builds its parts from the configuration, starts, reloads, stops them."""

import ctypes
import fcntl
import gc
import hashlib
import logging
import math
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pydicom.config

from inference import registry
from inference.release import RELEASE
from inference.request import Resources
from node import config, health
from node.children import worker_memory_bytes
from node.config import Config, Tls
from node.config.reading import to_values
from node.config.sections import Inference
from node.dicom import scp
from node.dicom.handlers import identify_file
from node.dicom.tls import ServerTls, TlsFailed, TlsFiles
from node.errors import ConfigError
from node.store import Store, opened
from node.web.server import WebProcess
from node.web.setup import SetUpKey
from node.web.state import WebSettings
from node.work.ahead import SHARE_OF_MEMORY, AheadPlanner, AheadRules
from node.work.arrivals import Arrivals, Rules
from node.work.audit_trail import AuditTrail
from node.work.cluster import Cluster, check_release
from node.work.commitment import CommitmentWork
from node.work.deliver import Deliverers, Reachability
from node.work.executor import Bounds, Executor, ProcessExecutor, share_arenas
from node.work.jobs import LONG_SLICES, SPARE, InferenceJobs, Site, Supervisor, specs
from node.work.notify import Notifier
from node.work.query_retrieve import Fetcher, PeerQuestions
from node.work.ray_executor import RaySettings, ray_executor
from node.work.selftest import SelfTests
from node.work.sweeps import (
    RETENTION_SECONDS,
    Background,
    RequestHandlers,
    Retention,
    Schedule,
)
from storage import recovery
from storage.database import is_sqlite
from storage.errors import WrongState
from storage.files import fingerprint
from storage.records import SelfTestState, SwitchName
from storage.site import control, people, selftests
from storage.site.audit import NODE
from storage.site.nodes import SECRET, STOPPED, STOPPING

logger = logging.getLogger(__name__)

SWEEP_SECONDS = 1.0
ARRIVALS_SECONDS = 0.2  # a series whose quiet period is over does not wait for long
TICK_SECONDS = 0.2
DESCRIPTORS, DESCRIPTORS_OF_ASSOCIATION = 824, 4  # of connections that wait, and all else
M_MMAP_THRESHOLD = -3  # of mallopt (malloc.h)
LARGEST_IN_HEAP = 1 << 18  # less than the block of an association, more than a PDU
LAST_SECONDS = 3.0  # for threads to see that they were abandoned


NO_RAY = (
    'inference.executor = "ray" needs Ray on this machine: pip install "midslice[cluster]"; or set '
    'executor = "process", which runs inference here'
)


def serve(path: Path) -> int:
    """Run the node until SIGTERM; the exit status is 0 where all was finished or given back."""
    settings = config.load(path)
    _allow_descriptors(settings.node.max_associations)
    share_arenas()  # every association has threads of its own, and would leave gaps in another one
    _give_blocks_back()
    # Only warnings, which the log leaves out, and a third of the time that an association takes.
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    with (
        _alone(settings),
        opened(settings, settings.node_id) as store,
        store.now.kept(),
    ):
        check_release(store)
        return _run(RunningNode(path, settings, store))


def _run(node: "RunningNode") -> int:
    stop = threading.Event()

    def on_stop(_signal: int, _frame: object) -> None:
        if stop.is_set():
            node.hurry.set()
        stop.set()

    signal.signal(signal.SIGTERM, on_stop)
    signal.signal(signal.SIGINT, on_stop)
    signal.signal(signal.SIGHUP, lambda *_: node.reload_requested.set())
    try:
        node.start()
        # What is there by now stays: nobody who receives waits until all of it was looked through.
        gc.freeze()
        while not stop.wait(TICK_SECONDS):
            if node.has_lost_its_database:
                logger.critical("database replaced")
                node.hurry.set()
                return 1
            node.tick()
    finally:
        node.stop()
    return 0


def _allow_descriptors(associations: int) -> None:
    """Raise the limit of open files where it is too low for so many associations."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS + DESCRIPTORS_OF_ASSOCIATION * associations
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))


def _give_blocks_back() -> None:
    """Have the block of an association leave the process with it, and no gap in a heap.

    By default the C library takes what is as large as the largest that was freed from a heap.
    Without glibc nothing is changed.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGEST_IN_HEAP)


@contextmanager
def _alone(settings: Config) -> Iterator[None]:
    """Refuse a second process of this name: each would take the other's jobs for a dead one's.

    On SQLite refuse any second node.
    """
    node_id = settings.node_id
    name, what = hashlib.sha256(node_id.encode()).hexdigest()[:12], f"a node named {node_id}"
    remedy = "stop it first"
    if is_sqlite(settings.storage.database):
        name, what = "sqlite", "a node"
        remedy = "stop it first; several nodes on one storage need PostgreSQL (storage.database)"
    settings.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (settings.folder / f"node-{name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            problem = f"{what} is running on {settings.folder}; {remedy}"
            raise ConfigError(f"{settings.path.name}: {problem}") from None
        yield


class RunningNode:
    """The parts of one node, from its start to its stop."""

    def __init__(self, path: Path, settings: Config, store: Store) -> None:
        self._path = path
        self._settings = settings
        self.hurry = threading.Event()  # a second SIGTERM: stop at once
        self.reload_requested = threading.Event()
        self._store = store
        self._database_file = store.database.file
        # Raises SecretMismatch: with another secret every derived series would get other UIDs.
        secret = store.files.secret(settings.storage.secret_file)
        store.nodes.fact(SECRET, fingerprint(secret))
        self._reach = Reachability(
            store.database, store.now, settings.node.ae_title, settings.delivery
        )
        self._deliverers = Deliverers(store.ledger, store.files, self._reach, store.now)
        self._tests = SelfTests(store, settings, store.now, self._admit)
        self._questions = PeerQuestions(
            store.archive, store.queue, settings.node.ae_title, store.now
        )
        self._arrivals = Arrivals(
            store.archive,
            store.queue,
            store.files,
            rules(settings),
            store.now,
            never=partial(never, store, self._tests.routes),
            self_tests=self._tests.routes,
            queued=lambda: self._supervisor.wake(),
            questions=self._questions,
        )
        self._fetcher = Fetcher(store.archive, store.files, settings, store.now)
        self._retention = Retention(store.database, store.files, settings.storage, store.now)
        self._supervisor = self._make_supervisor()
        self._admitted = store.admission(settings)
        self._commitment = CommitmentWork(
            store.commitments, store.owed_reports, self._reach, store.now
        )
        self._scp = scp.Scp(
            scp_settings(settings, store), self._admitted, store.archive, self._commitment
        )
        self._handlers = RequestHandlers(
            store.database,
            store.node_id,
            store.now,
            reach=self._reach,
            tests=self._tests,
            notifier=Notifier(
                store.database, store.node_id, settings.node.ae_title, settings.notify, time.time
            ),
            process_now=self._arrivals.process_now,
            process_by_route=self._arrivals.process_by_route,
            fetcher=self._fetcher,
            ask_reload=self.reload_requested.set,
        )
        self._audit = AuditTrail(store.database, settings.audit, settings.node.ae_title, store.now)
        recover, lacking = self._commitment.recover, self._supervisor.lacking
        self._cluster = Cluster(store, settings, self._handlers, recover, lacking)
        self._background = Background(
            store.database, settings, self._handlers, self._audit, store.now, self._cluster.leading
        )
        self._schedule = Schedule()
        is_set_up = people.exist(store.database) or not settings.web.takes_passwords
        self._set_up = None if is_set_up else SetUpKey.new()
        web = WebSettings(
            settings,
            store.node_id,
            log_as_json=not sys.stdout.isatty(),
            setup_digest=self._set_up.digest if self._set_up is not None else "",
        )
        with _naming(settings, "web"):
            self._web = WebProcess(settings.web.host, settings.web.port, web)

    def start(self) -> None:
        """Recover what a dead node left, start the children, then listen."""
        self._recover()
        web_port = self._web.start()
        self._supervisor.start()
        self._deliverers.follow(self._settings)
        self._commitment.follow(self._settings)
        self._questions.loop.start()
        self._schedule.every(ARRIVALS_SECONDS, "arrivals", self._arrivals.sweep)
        self._schedule.every(SWEEP_SECONDS, "requeued", self._arrivals.follow_routes)
        cluster, leading = self._cluster, self._cluster.leading
        # A destination that one node knows and another one does not is told by one of them.
        sweep_unknown = leading(self._deliverers.sweep_unknown)
        self._schedule.every(SWEEP_SECONDS, "destinations", sweep_unknown)
        self._schedule.every(cluster.beat_seconds, "heartbeat", cluster.beat)
        self._schedule.every(cluster.beat_seconds, "lost nodes", cluster.take_over)
        self._schedule.every(RETENTION_SECONDS, "commitment", leading(self._commitment.sweep))
        self._retention.begin(self._schedule, leading)
        self._schedule.every(SWEEP_SECONDS, "admission", self._admit)
        self._background.begin(self._schedule)
        with _naming(self._settings, "node"):
            port = self._tests.port = self._scp.start()
        self._schedule.start()
        self._record_configuration()
        cluster.beat()
        self._announce(port, web_port)

    def _recover(self) -> None:
        """Finish, before anything is received, what a dead process of this node left."""
        store = self._store
        pages = pages_address(self._settings, self._web.port)
        since = store.nodes.start(store.node_id, RELEASE, pages)
        store.archive.lose_associations()
        store.queue.recover()
        store.ledger.recover()
        self._commitment.recover()
        others = store.nodes.others(store.node_id, self._settings.node.lost_seconds)
        recovery.recover(
            store.archive,
            identify_file,
            called_ae=self._settings.node.ae_title,
            since=since,
            are_others_at_work=bool(others),
        )
        store.nodes.recovered(store.node_id)

    def _announce(self, port: int, web_port: int) -> None:
        """Say where the node listens, and how the first user is made where there is none."""
        extra = {"ae_title": self._settings.node.ae_title, "port": port, "web_port": web_port}
        extra |= {"tls_port": self._scp.tls_port, "pid": os.getpid()}
        logger.info("node listening", extra=extra)
        if self._settings.node.lets_anybody_in:
            logger.warning("any peer may send", extra={"host": self._settings.node.host})
        if self._set_up is not None:
            link = self._set_up.link(pages_address(self._settings, web_port))
            logger.warning("no user yet", extra={"set_up_link": link})
        if sys.stdout.isatty():
            sys.stdout.write(f"\n{welcome(self._settings, port, web_port, self._set_up)}\n\n")

    @property
    def has_lost_its_database(self) -> bool:
        """True where the file that it writes to no longer lies at its place.

        Every row would go with it when the node stops; the files stay, and a start indexes them.
        """
        return self._store.database.file != self._database_file

    def tick(self) -> None:
        """Look after what is due between signals; none of it may end the node."""
        try:
            if self.reload_requested.is_set():
                self.reload_requested.clear()
                self.reload()
            self._web.watch()
            self._schedule.mind_the_clock()
        except Exception:  # whatever it was, the node goes on and the next tick tries again
            logger.exception("sweep failed", extra={"sweep": "main"})

    def reload(self) -> None:
        """Read the configuration again: all of what may change at run time, or nothing."""
        try:
            new = config.load(self._path)
        except ConfigError as error:
            logger.error("configuration refused", extra={"error": str(error)})  # noqa: TRY400
            store = self._store
            control.refused(store.database, store.now(), store.node_id, error.problems)
            self._handlers.reloaded(ok=False, sentence=f"Nothing was changed. {error}")
            return
        restart = tuple(self._settings.needs_restart(new))
        for key in restart:
            logger.warning("needs a restart", extra={"key": key})
        self._settings = self._settings.reloaded(new)
        self._arrivals.rules = rules(self._settings)
        self._background.follow(self._settings)
        self._admit()
        self._deliverers.follow(self._settings)
        self._commitment.follow(self._settings)
        logger.info("configuration applied")
        self._record_configuration(restart)
        later = f" These need a restart: {', '.join(restart)}." if restart else ""
        self._handlers.reloaded(ok=True, sentence=f"The configuration is applied.{later}")

    def stop(self) -> None:
        """Stop in the order of the design: nothing new, then what runs, then the rest by force."""
        seconds = self._settings.node.shutdown_seconds
        logger.info("node stopping", extra={"seconds": seconds})
        self._cluster.state = STOPPING
        deadline = time.monotonic() + seconds
        steps = (
            self._supervisor.drain,
            self._cluster.beat,
            self._scp.stop_listening,
            self._deliverers.drain,
            self._commitment.drain,
            self._questions.stop,
            self._fetcher.stopping.set,
            lambda: self._wait_for_work(deadline),
            self._scp.abort,
            self._tests.stopping.set,
            self._schedule.stop,
            self._deliverers.abandon,
            self._supervisor.stop,
            lambda: self._wait_for_work(time.monotonic() + LAST_SECONDS),
            lambda: self._commitment.wait(LAST_SECONDS),
            self._release,
            self._web.stop,
            self._audit.stop,
        )
        for step in steps:
            try:
                step()
            except Exception:  # the others are to be stopped all the same
                logger.exception("not stopped in order")
        logger.info("node stopped")

    def _release(self) -> None:
        """Give up the leases of what had to be left: another start takes it up at once."""
        self._store.ledger.recover()
        self._commitment.recover()
        self._cluster.state = STOPPED
        self._cluster.beat()

    def _record_configuration(self, restart: Sequence[str] = ()) -> None:
        """Write the configuration in force into the database, where the web process reads it."""
        store = self._store
        values = to_values(self._settings)
        control.applied(store.database, store.now(), store.node_id, values, restart)

    def _admit(self) -> None:
        """Admit peers by the configuration and by what was allowed since."""
        admitted = self._store.admission(self._settings, self._tests.guests)
        if admitted != self._admitted:
            self._admitted = admitted
            self._scp.admit(admitted)

    def _wait_for_work(self, deadline: float) -> None:
        while time.monotonic() < deadline and not self.hurry.is_set():
            done = self._scp.open_associations() == 0 and self._supervisor.wait(0.1)
            if done and self._deliverers.wait(0.1):
                return
            self.hurry.wait(0.1)

    def _make_supervisor(self) -> Supervisor:
        settings, store = self._settings, self._store
        limits = settings.inference
        memory = worker_memory_bytes(limits.memory_gb, limits.workers)
        # The first worker alone: with two, neither would have the drafts of the other.
        drafts = int(min(limits.ahead_gb * 1e9, SHARE_OF_MEMORY * memory))
        executor = _executors(limits, memory)
        is_shared_cluster = limits.executor == "ray" and limits.shared_folder
        executors = [
            executor(f"worker-{number}", 0 if number > 1 else drafts)
            for number in range(1, limits.workers + 1)
        ]
        site = Site(
            secret=store.files.secret(settings.storage.secret_file),
            station_name=settings.node.ae_title,
            timezone=settings.node.zone,
            models=specs(settings),
            resources=_resources(limits),
        )
        bounds = Bounds(limits.job_minutes * 60, memory)
        inference = InferenceJobs(store.queue, store.files, site, store.now)
        drained = partial(control.is_on, store.database, SwitchName.DRAINING)
        spare = executor(SPARE, 0) if limits.overtaking else None
        return Supervisor(
            executors,
            store.queue,
            inference,
            bounds,
            drained=lambda: drained() is not None,
            spare=spare,
            ended=self._deliverers.wake,
            ahead=self._ahead(site) if drafts and limits.shared_folder else None,
            least_slices=LONG_SLICES if is_shared_cluster else 0,
        )

    def _ahead(self, site: Site) -> AheadPlanner:
        store = self._store

        def rules() -> AheadRules:
            now = self._arrivals.rules
            return AheadRules(now.ae_title, now.routes, site.models, site.resources)

        return AheadPlanner(store.archive, store.files, rules, store.now)


def _executors(limits: Inference, memory_bytes: int) -> Callable[[str, int], Executor]:
    """The making of an executor, here or on a Ray cluster, by its name and memory for drafts."""
    if limits.executor == "process":
        return lambda name, drafts: ProcessExecutor(name, time.monotonic, drafts)
    if find_spec("ray") is None:  # it is not imported in this process
        raise ConfigError(NO_RAY)
    cluster = RaySettings(
        limits.address,
        limits.worker_cpus,
        limits.worker_gpus,
        memory_bytes,
        carries_files=not limits.shared_folder,
    )
    return lambda name, drafts: ray_executor(name, time.monotonic, cluster, drafts)


def _resources(limits: Inference) -> Resources:
    """The device and the threads of a worker; in a cluster no more than it was given."""
    threads = 0 if limits.executor == "process" else math.ceil(limits.worker_cpus)
    return Resources(device=limits.device, threads=threads)


@contextmanager
def _naming(settings: Config, section: str) -> Iterator[None]:
    """Name the key of a port that cannot be had: a mistake of the configuration."""
    port = getattr(settings, section).port
    try:
        yield
    except TlsFailed as error:
        table = "web" if section == "web" else "tls"
        raise ConfigError(f"{settings.path.name}: {table}: {error}") from error
    except OSError as error:
        problem = f"{section}.port = {port}: {error.strerror or error}"
        raise ConfigError(f"{settings.path.name}: {problem}") from error


def welcome(settings: Config, port: int, web_port: int, set_up: SetUpKey | None = None) -> str:
    """Tell the person who has started the node where its pages are, and what peers enter."""
    peers = health.addresses(settings.node.host)[0]
    pages = pages_address(settings, web_port)
    first = f"First:  {set_up.link(pages)}\n" if set_up is not None else ""
    return (
        f"Pages:  {pages}\n{first}"
        f"DICOM:  AE title {settings.node.ae_title}, host {peers}, port {port}\n"
        "Ctrl-C stops the node."
    )


def pages_address(settings: Config, web_port: int) -> str:
    """The address of the pages, as a browser on another machine would ask for it."""
    web = health.addresses(settings.web.host)[0]
    shown = f"[{web}]" if ":" in web else web
    scheme = "http" if settings.web.certificate is None else "https"
    return f"{scheme}://{shown}:{web_port}/"


def scp_settings(settings: Config, store: Store) -> scp.ScpSettings:
    return scp.ScpSettings(
        ae_title=settings.node.ae_title,
        host=settings.node.host,
        port=settings.node.port,
        max_associations=settings.node.max_associations,
        max_associations_per_peer=settings.node.max_associations_per_peer,
        idle_seconds=settings.node.idle_seconds,
        message_seconds=settings.node.message_seconds,
        tls=server_tls(settings.tls),
        incoming=store.files.incoming,
        min_free_bytes=settings.storage.min_free_bytes,
        is_direct=settings.node.direct_receive,
    )


def server_tls(settings: Tls) -> ServerTls | None:
    if settings.certificate is None:
        return None
    return ServerTls(settings.port, TlsFiles.of(settings), settings.verify_clients)


def never(store: Store, made: Container[str], series_uid: str) -> str:
    """The person who has said that a series is never processed; empty where nobody has.

    A made series takes the route of its self-test or none: by those of the configuration it would
    come to a PACS as a patient. While the test runs, it is for the node that has the route.
    """
    switch = control.is_on(store.database, SwitchName.NEVER, series_uid)
    if switch is not None:
        return switch.who
    test = None if series_uid in made else selftests.of_series(store.database, series_uid)
    if test is not None and test.state is SelfTestState.RUNNING:
        raise WrongState(f"series {series_uid} belongs to the running self-test {test.id}")
    return NODE if test is not None else ""


def rules(settings: Config) -> Rules:
    return Rules(
        ae_title=settings.node.ae_title,
        completion=settings.completion,
        routes=settings.routes,
        destinations=settings.destinations,
        models={name: registry.fingerprint(spec) for name, spec in specs(settings).items()},
    )
