"""Metrics for Prometheus, and the health checks for every monitor."""

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from starlette.requests import Request

from inference.release import RELEASE
from node import certificates, health
from node.web.access import AsViewer
from node.web.state import Parts, PartsOf
from storage import commitment_scp, commitment_scu
from storage.database import Database
from storage.queries import figures, overview
from storage.queries.figures import EndedDelivery, EndedJob, Since, gauges
from storage.records import DeliveryState, SelfTestState
from storage.site import control, notices, peers, selftests
from storage.site.nodes import SERVING

# The counters begin at zero with the process, as Prometheus expects, and are fed from the rows:
# the processes that do the work need not know that anybody counts.

STORED = (DeliveryState.SENT, DeliveryState.CONFIRMED)
SECONDS = (0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 14400)
WEB_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)

router = APIRouter(tags=["monitoring"])


@router.get("/healthz", summary="The web process is alive")
def alive() -> dict[str, str]:
    return {"status": "alive"}


@router.get(
    "/readyz",
    summary="The node takes and processes series; else 503 with the reasons",
    responses={503: {"description": "It does not; the body says why."}},
)
def ready(parts: PartsOf) -> JSONResponse:
    reasons = unready(parts)
    return JSONResponse({"ready": not reasons, "reasons": reasons}, 503 if reasons else 200)


def unready(parts: Parts) -> list[str]:
    """List the reasons why the node cannot take and process series."""
    settings = parts.settings.config
    return health.unready(
        parts.database,
        parts.settings.node_id,
        folder=settings.folder,
        min_free_bytes=settings.storage.min_free_bytes,
        now=parts.store.now(),
    )


@router.get("/metrics", summary="Prometheus", response_class=Response)
def metrics(request: Request, _: AsViewer, parts: PartsOf) -> Response:
    all_metrics: Metrics = request.app.state.metrics
    return Response(all_metrics.scrape(parts), media_type=CONTENT_TYPE_LATEST)


class Requests:
    """Metrics of the requests that the web process has answered."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._count = Counter(
            "midslice_web_requests", "Requests answered.", ["method", "status"], registry=registry
        )
        self._seconds = Histogram(
            "midslice_web_request_seconds",
            "How long an answer took.",
            buckets=WEB_SECONDS,
            registry=registry,
        )

    def answered(self, method: str, path: str, status: int, seconds: float) -> None:
        """Count an answer; a live stream is open for minutes and says nothing of speed."""
        known = method if method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE") else "other"
        self._count.labels(known, str(status)).inc()
        if path != "/live":
            self._seconds.observe(seconds)


class Metrics:
    """All metrics of a node; one scrape at a time."""

    def __init__(self, now: Callable[[], float]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # one more series for each counter, of no use here
        self.registry = CollectorRegistry()
        self.requests = Requests(self.registry)
        self._now = now
        self._turn = threading.Lock()
        self._since: Since | None = None
        self._make_counters()
        self._make_gauges()

    def scrape(self, parts: Parts) -> bytes:
        """The text of all metrics."""
        with self._turn:
            self._count(parts)
            self._set_gauges(parts)
            self._set_destinations(parts)
            return generate_latest(self.registry)

    def begin(self, parts: Parts) -> None:
        """Count what ends from now on."""
        self._since = figures.begin(parts.database, self._now())

    def _make_counters(self) -> None:
        self._jobs_ended = self._counter("jobs_ended", "Jobs that ended.", "state", "reason")
        self._deliveries_ended = self._counter(
            "deliveries_ended", "Deliveries that ended.", "destination", "state", "reason"
        )
        self._received = self._counter("received_instances", "Instances received.")
        self._received_bytes = self._counter("received_bytes", "Bytes of instances received.")
        self._sent = self._counter("sent_instances", "Instances stored there.", "destination")
        self._sent_bytes = self._counter("sent_bytes", "Bytes of those.", "destination")
        self._associations_ended = self._counter(
            "associations_ended", "Associations that ended, or were rejected.", "how"
        )
        self._arrival_seconds = self._histogram("arrival_seconds", "First instance to completion.")
        self._wait_seconds = self._histogram("job_wait_seconds", "Queued to a worker.")
        self._run_seconds = self._histogram("job_run_seconds", "A worker's time for a job.")
        self._delivery_seconds = self._histogram(
            "delivery_seconds", "Queued to stored at the destination.", "destination"
        )

    def _make_gauges(self) -> None:
        build = self._gauge("build_info", "Always 1.", "version")
        build.labels(RELEASE).set(1)
        self._ready = self._gauge("ready", "1 where the node takes and processes series.")
        self._draining = self._gauge("draining", "1 where no jobs are started.")
        self._jobs = self._gauge("jobs", "Jobs in a state.", "state")
        self._deliveries = self._gauge("deliveries", "Deliveries in a state.", "state")
        self._waiting = self._gauge(
            "deliveries_open", "Deliveries that wait or are held.", "destination", "state"
        )
        self._unproved = self._gauge(
            "commitments_open", "Deliveries whose proof is still to come.", "destination", "state"
        )
        self._owed = self._gauge(
            "commitment_reports_open", "Reports that are owed a sender which asked.", "sender"
        )
        self._oldest_delivery = self._gauge(
            "delivery_oldest_seconds", "How long the oldest one waits.", "destination"
        )
        self._oldest_job = self._gauge("job_oldest_seconds", "How long the oldest job waits.")
        self._arrivals = self._gauge("arrivals_open", "Series that are arriving.")
        self._not_closed = self._gauge(
            "arrivals_not_closed", "Series that an error of the node keeps from being processed."
        )
        self._lacking = self._gauge(
            "node_lacks_workers", "1 where jobs of a node wait for a worker.", "node"
        )
        self._associations = self._gauge("associations_open", "Associations that are open.")
        self._free = self._gauge("disk_free_bytes", "Free on the disk of the storage folder.")
        self._total = self._gauge("disk_total_bytes", "The size of that disk.")
        self._reserve = self._gauge("disk_reserve_bytes", "Below it C-STORE is answered A700.")
        self._certificates = self._gauge(
            "certificate_expires_seconds",
            "When a certificate expires, since the epoch.",
            "certificate",
            "file",
        )
        self._lists = self._gauge(
            "crl_expires_seconds",
            "When a certificate revocation list expires, since the epoch.",
            "authority",
            "file",
        )
        self._up = self._gauge("destination_up", "1 where it answered last.", "destination")
        self._paused = self._gauge(
            "destination_paused", "1 where a person paused it.", "destination"
        )
        self._notices = self._gauge("notices", "Notices in a state.", "state")
        self._selftest = self._gauge(
            "selftest_ok", "1 where the last self-test passed.", "destination"
        )
        self._selftest_at = self._gauge(
            "selftest_finished_seconds", "When it ended, since the epoch.", "destination"
        )

    def _count(self, parts: Parts) -> None:
        since = self._since or figures.begin(parts.database, self._now())
        ended, self._since = figures.counter_delta(parts.database, since, self._now())
        for job in ended.jobs:
            self._count_job(job)
        for delivery in ended.deliveries:
            self._count_delivery(delivery, parts.settings.config.folder)
        for seconds in ended.arrivals:
            self._arrival_seconds.observe(seconds)
        for how, count in ended.associations.items():
            self._associations_ended.labels(how).inc(count)
        self._received.inc(ended.instances)
        self._received_bytes.inc(ended.bytes)

    def _count_job(self, job: EndedJob) -> None:
        self._jobs_ended.labels(job.state, job.reason).inc()
        if job.waited is not None:
            self._wait_seconds.observe(job.waited)
        if job.took is not None:
            self._run_seconds.observe(job.took)

    def _count_delivery(self, delivery: EndedDelivery, folder: Path) -> None:
        self._deliveries_ended.labels(delivery.destination, delivery.state, delivery.reason).inc()
        if delivery.state in STORED:
            self._sent.labels(delivery.destination).inc(delivery.instances)
            self._sent_bytes.labels(delivery.destination).inc(_size(folder / delivery.folder))
            self._delivery_seconds.labels(delivery.destination).observe(delivery.took)

    def _set_gauges(self, parts: Parts) -> None:
        now, database = self._now(), parts.database
        for name, count in overview.counts(database).items():
            what, state = name.split(" ")
            (self._jobs if what == "job" else self._deliveries).labels(state).set(count)
        open_now = gauges(database)
        self._arrivals.set(open_now.arrivals)
        self._not_closed.set(len(overview.not_closed(database)))
        self._associations.set(open_now.associations)
        self._oldest_job.set(_age(now, open_now.oldest_queued_at))
        self._draining.set(control.draining(database) is not None)
        self._ready.set(not unready(parts))
        disk = health.disk(parts.settings.config.folder)
        self._free.set(disk.free_bytes)
        self._total.set(disk.total_bytes)
        self._reserve.set(parts.settings.config.storage.min_free_bytes)
        for state, count in notices.count(database).items():
            self._notices.labels(str(state)).set(count)
        self._certificates.clear()
        self._lists.clear()
        for certificate in certificates.all_of(parts.config()):
            gauge = self._lists if certificate.is_list else self._certificates
            labels = certificate.name, str(certificate.path)
            gauge.labels(*labels).set(certificate.expires_at)
        self._lacking.clear()
        for node in parts.store.nodes.get():
            if node.state == SERVING:
                self._lacking.labels(node.id).set(bool(node.lacks))
        self._set_commitment(database)
        self._set_selftest(parts)

    def _set_commitment(self, database: Database) -> None:
        """Set the gauges of storage commitment, of both roles."""
        self._unproved.clear()
        for (destination, state), count in commitment_scu.open_counts(database).items():
            self._unproved.labels(destination, state).set(count)
        self._owed.clear()
        for sender, count in commitment_scp.open_counts(database).items():
            self._owed.labels(sender).set(count)

    def _set_selftest(self, parts: Parts) -> None:
        """Set the gauges of the last self-test that ended; without one there are none."""
        self._selftest.clear()
        self._selftest_at.clear()
        for test in selftests.newest(parts.database, 5):
            if test.finished_at is not None:
                self._selftest.labels(test.destination).set(test.state is SelfTestState.PASSED)
                self._selftest_at.labels(test.destination).set(test.finished_at)
                return

    def _set_destinations(self, parts: Parts) -> None:
        """Set the gauges of destinations; those of one that left the configuration go."""
        for gauge in (self._waiting, self._oldest_delivery, self._up, self._paused):
            gauge.clear()
        now = self._now()
        names = [destination.name for destination in parts.config().destinations]
        for line in peers.destinations(parts.database, now, names, days=0.0):
            for state, count in line.waiting.items():
                self._waiting.labels(line.name, state).set(count)
            if line.oldest_at is not None:
                self._oldest_delivery.labels(line.name).set(_age(now, line.oldest_at))
            if line.name in names:
                self._paused.labels(line.name).set(line.paused is not None)
                if line.reach is not None:
                    self._up.labels(line.name).set(line.reach.up)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"midslice_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"midslice_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, *labels: str) -> Histogram:
        return Histogram(f"midslice_{name}", text, labels, buckets=SECONDS, registry=self.registry)


def _age(now: float, at: float | None) -> float:
    return max(0.0, now - at) if at is not None else 0.0


def _size(folder: Path) -> int:
    """Add up the bytes of a derived series; its files may be gone, or go at this moment."""
    total = 0
    for file in folder.glob("*.dcm"):
        with contextlib.suppress(OSError):
            total += file.stat().st_size
    return total
