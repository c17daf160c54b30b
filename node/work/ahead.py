"""Generating ahead: the parent tells a worker of what arrives, and an idle worker makes drafts.

What is made so is a guess (`inference/ahead.py`) that the job of the series may use; nothing else
depends on it. A worker stops between two steps as soon as it is told anything else.
"""

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from inference import geometry, registry
from inference.ahead import AheadOfSeries
from inference.dataset import Header, Stack, read_headers
from inference.drafts import Drafts
from inference.errors import Cancelled, Unprocessable
from inference.request import ModelSpec, Resources, Source
from inference.stacks import is_derived_by_node, stacks_of
from node.config import Route
from node.rules import routing
from storage.files import Files
from storage.records import Arrival, Instance

logger = logging.getLogger(__name__)

LEAST_NICE = 19  # of the threads that generate ahead: beside a job they get an eighth of a core
# An arrival that has been silent for so long, and for so many of its usual intervals, may be whole.
SETTLED_SECONDS, SETTLED_INTERVALS = 0.5, 3.0
SHARE_OF_MEMORY = 0.25  # of that of a worker, at most, for drafts


@dataclass(frozen=True)
class ArrivingSeries:
    """A series that arrives, with the files that came since the worker was last told of it."""

    series_uid: str
    called_ae: str
    calling_ae: str
    sources: tuple[Source, ...]
    is_settled: bool  # nothing seems to come any more


@dataclass(frozen=True)
class AheadRules:
    """The configuration of what is generated ahead."""

    node_ae: str
    routes: tuple[Route, ...]
    models: Mapping[str, ModelSpec]
    resources: Resources


@dataclass(frozen=True)
class Arriving:
    """The parent tells a worker what has changed; drafts of series that it does not name go."""

    changed: tuple[ArrivingSeries, ...]
    series_uids: frozenset[str]
    rules: AheadRules


class ArrivalRows(Protocol):
    """The rows of what arrives."""

    def arriving(self) -> tuple[Arrival, ...]: ...

    def instances_after(self, arrival_id: int, instance_id: int, /) -> tuple[Instance, ...]: ...


@dataclass
class _Told:
    """The state of an arrival as the worker knows it."""

    series_id: int
    instances: int = 0
    last_id: int = 0  # of its instances
    is_settled: bool = False


class AheadPlanner:
    """Decides in the parent what the worker that generates ahead is told.

    It keeps no state but what was told: a worker that ends takes all drafts with it.
    """

    def __init__(
        self,
        rows: ArrivalRows,
        files: Files,
        rules: Callable[[], AheadRules],
        now: Callable[[], float],
    ) -> None:
        self._rows = rows
        self._files = files
        self._rules = rules
        self._now = now
        self._told: dict[int, _Told] = {}  # by arrival
        self._barred: set[int] = set()  # arrivals during which the worker died

    @property
    def series_ids(self) -> frozenset[int]:
        """The series of which the worker may have drafts."""
        return frozenset(told.series_id for told in self._told.values())

    def arriving(self) -> tuple[Arrival, ...]:
        """The arrivals that are worth it; to be asked for before the worker looks for a job.

        So a series that is complete by then has its job in the queue, and keeps its drafts.
        """
        return tuple(a for a in self._rows.arriving() if not a.own and a.id not in self._barred)

    def news(self, arriving: Sequence[Arrival]) -> Arriving | None:
        """All that the worker does not know yet; None where that is nothing."""
        changed = tuple(it for it in map(self._change, arriving) if it is not None)
        gone = self._told.keys() - {arrival.id for arrival in arriving}
        for arrival_id in gone:
            del self._told[arrival_id]
        if not changed and not gone:
            return None
        uids = frozenset(arrival.series_uid for arrival in arriving)
        return Arriving(changed, uids, self._rules())

    def worker_died(self) -> None:
        """Tell no worker of these arrivals again: one of them may have been the cause."""
        self._barred |= self._told.keys()
        self._told.clear()

    def _change(self, arrival: Arrival) -> ArrivingSeries | None:
        told = self._told.setdefault(arrival.id, _Told(arrival.series_id))
        is_settled = self._is_settled(arrival)
        if (told.instances, told.is_settled) == (arrival.instances, is_settled):
            return None
        fresh = self._rows.instances_after(arrival.id, told.last_id)
        told.instances, told.is_settled = arrival.instances, is_settled
        told.last_id = max((instance.id for instance in fresh), default=told.last_id)
        sources = tuple(
            Source(self._files.path(it.path), it.instance_uid, it.id) for it in fresh if it.path
        )
        return ArrivingSeries(
            arrival.series_uid, arrival.called_ae, arrival.calling_ae, sources, is_settled
        )

    def _is_settled(self, arrival: Arrival) -> bool:
        interval = (arrival.last_at - arrival.first_at) / max(1, arrival.instances - 1)
        silent = self._now() - arrival.last_at
        return silent >= max(SETTLED_SECONDS, SETTLED_INTERVALS * interval)


@dataclass
class _Series:
    """A series as the worker knows it."""

    known: ArrivingSeries
    ahead: AheadOfSeries
    headers: list[Header] = field(default_factory=list)
    unread: list[Source] = field(default_factory=list)
    is_due: bool = True  # something has changed since it was worked on

    def take(self, changed: ArrivingSeries) -> None:
        """Take up what came."""
        self.known, self.is_due = replace(changed, sources=()), True
        self.unread += changed.sources

    def stacks(self) -> list[Stack]:
        """The stacks of what has come so far; none of a result that comes back."""
        self.headers += [header for header in read_headers(self.unread) if not header.fault]
        self.unread.clear()
        if any(map(is_derived_by_node, self.headers)):
            return []
        return stacks_of(self.headers)


class AheadWorker:
    """Makes drafts in a worker process while it has no job."""

    def __init__(self, most_bytes: int) -> None:
        self.drafts = Drafts(most_bytes)
        self._series: dict[str, _Series] = {}
        self._rules: AheadRules | None = None

    def take(self, told: Arriving) -> None:
        """Take up what the parent tells."""
        self._rules = told.rules
        self.drafts.keep_only(told.series_uids)
        kept = {uid: it for uid, it in self._series.items() if uid in told.series_uids}
        for changed in told.changed:
            series = kept.setdefault(
                changed.series_uid, _Series(changed, AheadOfSeries(self.drafts))
            )
            series.take(changed)
        self._series = kept

    def work(self, stopped: Callable[[], bool]) -> None:
        """Make drafts until there is nothing to do, or it is stopped."""
        if any(series.is_due for series in self._series.values()):
            # Of its own: what makes a thread less urgent cannot be taken back.
            thread = threading.Thread(target=self._work, args=(stopped,), name="ahead")
            thread.start()
            thread.join()

    def _work(self, stopped: Callable[[], bool]) -> None:
        with contextlib.suppress(OSError):  # a container may forbid it
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LEAST_NICE)
        for series in sorted(self._series.values(), key=lambda it: not it.known.is_settled):
            if not series.is_due or not self.drafts.has_room:
                continue
            try:
                self._make(series, stopped)
            except Cancelled:
                if stopped():
                    return
            except Unprocessable:
                pass  # it may be another thing when the rest has come
            except Exception as error:  # noqa: BLE001 - nobody waits for it; the job will tell
                extra = {"series_uid": series.known.series_uid, "error": type(error).__name__}
                logger.warning("not generated ahead", extra=extra)
            series.is_due = False

    def _make(self, series: _Series, stopped: Callable[[], bool]) -> None:
        assert self._rules is not None
        for stack in series.stacks():
            layout = geometry.measure(stack)
            if layout is None:
                continue
            for route in _taking(self._rules, series.known, stack, layout):
                series.ahead.make(
                    layout,
                    self._rules.models.get(route.model) or registry.spec_of(route.model),
                    route.parameters,
                    self._rules.resources,
                    is_settled=series.known.is_settled,
                    stopped=stopped,
                )


def _taking(
    rules: AheadRules, series: ArrivingSeries, stack: Stack, layout: geometry.Layout
) -> Iterable[Route]:
    """The routes that would have slices made of a stack, were it whole."""
    explained = routing.explain_stack(
        rules.routes,
        stack,
        layout,
        called_ae=series.called_ae,
        calling_ae=series.calling_ae,
        node_ae=rules.node_ae,
    )
    names = {explanation.route for explanation in explained if explanation.matches}
    return [route for route in rules.routes if route.name in names and route.makes_slices]
