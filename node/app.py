"""Builds every part of the node from the configuration; starts and stops them in order."""

import dataclasses
import hashlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from datetime import datetime, tzinfo
from pathlib import Path

from inference.request import Resources
from node import config
from node.config import Config
from node.dicom import scp
from node.dicom.handlers import Identity, PeerNames
from node.dicom.part10 import identify_file
from node.errors import ConfigError
from node.rules.reload import needs_restart, reloaded
from node.store import Store, opened
from node.web.child import WebProcess
from node.web.server import WebSettings
from node.work import deliver
from node.work.arrivals import Arrivals, Rules
from node.work.deliver import Deliverer
from node.work.executor import Bounds, ProcessExecutor
from node.work.infer import Inference, Site
from node.work.models import fingerprint, specs
from node.work.retention import Retention
from node.work.schedule import Schedule
from node.work.supervisor import Supervisor
from storage.archive import Archive
from storage.records import DeliveryState, Peer, Received

logger = logging.getLogger(__name__)

BEAT_SECONDS = 5.0
SWEEP_SECONDS = 1.0
RETENTION_SECONDS = 600.0


def serve(path: Path) -> int:
    """Run the node until SIGTERM; the exit status is 0 where all was finished or given back."""
    settings = config.load(path)
    node_id = f"{socket.gethostname()}/{settings.node.ae_title}"
    with opened(settings, node_id) as store:
        return _run(Node(path, settings, store))


def _run(node: "Node") -> int:
    stop = threading.Event()
    asked = 0

    def on_stop(_signal: int, _frame: object) -> None:
        nonlocal asked
        asked += 1
        stop.set()
        if asked > 1:
            node.hurry.set()

    signal.signal(signal.SIGTERM, on_stop)
    signal.signal(signal.SIGINT, on_stop)
    signal.signal(signal.SIGHUP, lambda *_: node.reload_requested.set())
    node.start()
    try:
        while not stop.wait(0.2):
            if node.reload_requested.is_set():
                node.reload_requested.clear()
                node.reload()
            node.watch_web()
    finally:
        node.stop()
    return 0


class Node:
    """One running node."""

    def __init__(self, path: Path, settings: Config, kept: Store) -> None:
        self._path = path
        self._settings = settings
        self.hurry = threading.Event()  # a second SIGTERM: stop at once
        self.reload_requested = threading.Event()
        self._kept = kept
        _check_secret(kept, settings)
        self._deliverers: dict[str, Deliverer] = {}
        self._arrivals = Arrivals(kept.archive, kept.queue, kept.files, _rules(settings), time.time)
        self._retention = Retention(kept.database, kept.files, settings.storage, time.time)
        self._supervisor = self._make_supervisor()
        self._scp = scp.Scp(
            _scp_settings(settings, kept),
            _admission(settings),
            self._keep,
            Associations(kept.archive),
        )
        self._schedule = Schedule()
        self._web = WebProcess(settings.web.host, settings.web.port, _web_settings(settings, kept))

    def start(self) -> None:
        """Recover what a dead node left, start the children, then listen."""
        kept = self._kept
        since = kept.nodes.start(kept.node_id)
        kept.archive.lose_associations()
        kept.queue.recover()
        kept.ledger.recover()
        kept.archive.recover(received_of, since=since)
        kept.nodes.recovered(kept.node_id)
        web_port = self._web.start()
        self._supervisor.start()
        self._start_deliverers()
        self._schedule.every(SWEEP_SECONDS, "arrivals", self._arrivals.sweep)
        self._schedule.every(SWEEP_SECONDS, "destinations", self._hold_unknown)
        self._schedule.every(BEAT_SECONDS, "heartbeat", self._beat)
        self._schedule.every(RETENTION_SECONDS, "retention", self._retention.sweep)
        self._schedule.start()
        port = self._scp.start()
        self._beat()
        extra = {"ae_title": self._settings.node.ae_title, "port": port, "web_port": web_port}
        logger.info("node listening", extra=extra | {"pid": os.getpid()})

    def stop(self) -> None:
        """Stop in the order of the design: nothing new, then what runs, then the rest by force."""
        kept = self._kept
        deadline = time.monotonic() + self._settings.node.shutdown_seconds
        logger.info("node stopping", extra={"seconds": self._settings.node.shutdown_seconds})
        kept.nodes.beat(kept.node_id, "stopping")
        self._scp.stop_listening()
        self._supervisor.drain()
        for deliverer in self._deliverers.values():
            deliverer.drain()
        self._wait_for_work(deadline)
        self._scp.abort()
        self._schedule.stop()
        for deliverer in self._deliverers.values():
            deliverer.stop()
        self._supervisor.stop()
        kept.nodes.beat(kept.node_id, "stopped")
        self._web.stop()
        logger.info("node stopped")

    def reload(self) -> None:
        """Read the configuration again: all of what may change at run time, or nothing."""
        try:
            new = config.load(self._path)
        except ConfigError as error:
            logger.error("configuration refused", extra={"error": str(error)})  # noqa: TRY400
            return
        for key in needs_restart(self._settings, new):
            logger.warning("needs a restart", extra={"key": key})
        self._settings = reloaded(self._settings, new)
        self._arrivals.rules = _rules(self._settings)
        self._scp.admit(_admission(self._settings))
        self._start_deliverers()
        logger.info("configuration applied")

    def watch_web(self) -> None:
        """Start the web process again where it died."""
        self._web.watch()

    def _wait_for_work(self, deadline: float) -> None:
        while time.monotonic() < deadline and not self.hurry.is_set():
            done = self._scp.open_associations() == 0 and self._supervisor.wait(0.1)
            if done and all(d.wait(0.1) for d in self._deliverers.values()):
                return
            self.hurry.wait(0.1)

    def _keep(self, identity: Identity, peer: PeerNames, path: Path) -> None:
        received = Received(**dataclasses.asdict(identity))
        who = Peer(peer.calling_ae, peer.called_ae, peer.association)
        self._kept.archive.keep(received, who, path)

    def _make_supervisor(self) -> Supervisor:
        settings, kept = self._settings, self._kept
        executors = [
            ProcessExecutor(f"worker-{number}", time.monotonic)
            for number in range(1, settings.inference.workers + 1)
        ]
        bounds = Bounds(
            settings.inference.job_minutes * 60, int(settings.inference.memory_gb * 1e9)
        )
        inference = Inference(kept.queue, kept.files, _site(settings, kept), time.time)
        return Supervisor(executors, kept.queue, inference, bounds)

    def _start_deliverers(self) -> None:
        """One for each destination of the configuration; those that are gone or changed end."""
        wanted = {d.name: d for d in self._settings.destinations}
        for name, deliverer in list(self._deliverers.items()):
            if wanted.get(name) != deliverer.destination:
                deliverer.stop()
                del self._deliverers[name]
        for name, destination in wanted.items():
            if name in self._deliverers:
                self._deliverers[name].settings = self._settings.delivery
                continue
            self._deliverers[name] = Deliverer(
                destination,
                self._settings.node.ae_title,
                self._kept.ledger,
                self._kept.files,
                self._settings.delivery,
                time.time,
            )
            self._deliverers[name].start()

    def _hold_unknown(self) -> None:
        known = {d.name for d in self._settings.destinations}
        for entry in self._kept.ledger.backlog():
            if entry.destination not in known and entry.state == DeliveryState.QUEUED:
                deliver.hold_unknown(self._kept.ledger, entry.destination)

    def _beat(self) -> None:
        self._kept.nodes.beat(self._kept.node_id, "serving")


def received_of(path: Path) -> Received | None:
    """What the index says of a Part 10 file; None where it cannot be read."""
    identity = identify_file(path)
    return Received(**dataclasses.asdict(identity)) if identity is not None else None


class Associations:
    """The log of associations, as DICOM networking wants it, in the database."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive

    def opened(self, calling_ae: str, called_ae: str, address: str) -> int:
        """An association was accepted; returns its row."""
        return self._archive.associated(calling_ae, called_ae, address)

    def ended(self, association: int, how: str) -> None:
        """It was released, aborted or dropped."""
        self._archive.dissociated(association, how)

    def rejected(self, calling_ae: str, called_ae: str, address: str, reason: str) -> None:
        """A peer was turned away; the administrator can see why."""
        self._archive.rejected(calling_ae, called_ae, address, reason)


def _scp_settings(settings: Config, kept: Store) -> scp.ScpSettings:
    return scp.ScpSettings(
        ae_title=settings.node.ae_title,
        host=settings.node.host,
        port=settings.node.port,
        max_associations=settings.node.max_associations,
        idle_seconds=settings.node.idle_seconds,
        incoming=kept.files.incoming,
        min_free_bytes=settings.storage.min_free_bytes,
    )


def _admission(settings: Config) -> scp.Admission:
    return scp.Admission(
        called_ae_titles=frozenset(settings.called_ae_titles),
        calling_ae_titles=frozenset(settings.node.allowed_ae_titles),
        networks=tuple(str(network) for network in settings.node.allowed_networks),
    )


def _rules(settings: Config) -> Rules:
    return Rules(
        ae_title=settings.node.ae_title,
        completion=settings.completion,
        routes=settings.routes,
        destinations=settings.destinations,
        models={name: fingerprint(spec) for name, spec in specs(settings).items()},
    )


def _site(settings: Config, kept: Store) -> Site:
    return Site(
        secret=kept.files.secret(settings.storage.secret_file),
        station_name=settings.node.ae_title,
        timezone=settings.node.zone or _local_zone(),
        models=specs(settings),
        resources=Resources(device=settings.inference.device),
    )


def _local_zone() -> tzinfo:
    zone = datetime.now().astimezone().tzinfo
    assert zone is not None
    return zone


def _check_secret(kept: Store, settings: Config) -> None:
    # Another secret would give every derived series other UIDs: the PACS would hold both.
    secret = kept.files.secret(settings.storage.secret_file)
    kept.nodes.fact("secret", hashlib.sha256(b"midslice secret" + secret).hexdigest())


def _web_settings(settings: Config, kept: Store) -> WebSettings:
    return WebSettings(
        folder=settings.folder,
        database=settings.storage.database,
        node_id=kept.node_id,
        min_free_bytes=settings.storage.min_free_bytes,
        log_as_json=not sys.stdout.isatty(),
    )
