"""Workers on a Ray cluster beside workers that are children, and two of them on one long series.

Each worker has one thread: two of them on two cores stand for two machines with one.
"""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from inference import registry
from inference.model import Parameters
from inference.request import Derived, Output, Progress, Request, Resources, Source
from node.work.executor import Bounds, Order, ProcessExecutor
from node.work.jobs import Parts
from node.work.ray_executor import RaySettings, ray_executor
from tests import phantoms
from tests.benchmarks.rig import Setting
from tests.benchmarks.table import RatioBound, Row, Subject
from tests.ray_cluster import ray_cluster

NAME = "cluster"
MODEL, FACTOR, THREADS = "midslice", 2, 1
SLICES, LONG, QUICK_LONG = 100, 1000, 200
SIDE = 256
PROCESS, RAY = "a series of 100 slices, process", "a series of 100 slices, ray"
ONE, TWO = "one long series, 1 worker", "one long series, 2 workers"
SERIES_OF_ONE, SERIES_OF_TWO = "series of 100 slices, 1 worker", "series of 100 slices, 2 workers"
BOUNDS = (
    RatioBound(NAME, RAY, at_most=1.05),
    RatioBound(NAME, TWO, at_least=1.0),
    RatioBound(NAME, SERIES_OF_TWO, at_least=1.0),
)
REPETITIONS, QUICK_REPETITIONS = 5, 3
LIMITS = Bounds(seconds=1800.0)
GO_ON = Order()


def measure(setting: Setting) -> Subject:
    """Seconds of a series, slices a second of a long one, series a minute."""
    long = QUICK_LONG if setting.is_quick else LONG
    short_files, long_files = _series(setting.folder, SLICES), _series(setting.folder, long)
    with _workers() as (process, first, second):
        request = partial(_request, setting.folder, short_files)
        for executor in (process, first, second):
            _seconds(executor, request("warm"))
        passes: dict[str, Callable[[], float]] = {
            PROCESS: lambda: _seconds(process, request("process")),
            RAY: lambda: _seconds(first, request("ray")),
        }
        repetitions = QUICK_REPETITIONS if setting.is_quick else REPETITIONS
        values = replace(setting, repetitions=repetitions).measure(passes)
        both = _both(first, second, request)
        whole = partial(_request, setting.folder, long_files)
        alone = _seconds(first, whole("alone"))
        shared = _shared(first, second, replace(whole("shared"), in_parts=True))
    derived = FACTOR * (long - 1) + 1
    median = sorted(values[RAY])[repetitions // 2]
    rows = (
        Row(PROCESS, "s", tuple(values[PROCESS])),
        Row(RAY, "s", tuple(values[RAY]), PROCESS),
        Row(SERIES_OF_ONE, "a minute", (60.0 / median,)),
        Row(SERIES_OF_TWO, "a minute", (120.0 / both,), SERIES_OF_ONE),
        Row(ONE, "slices/s", (derived / alone,)),
        Row(TWO, "slices/s", (derived / shared,), ONE),
    )
    caption = (
        f"{MODEL} at {FACTOR}x, {SIDE} x {SIDE}, workers of one thread; the long series has {long} "
        "received slices, its result is the same to the bit"
    )
    return Subject(NAME, caption, rows)


@contextmanager
def _workers() -> Iterator[tuple[ProcessExecutor, ProcessExecutor, ProcessExecutor]]:
    """A child and two workers of a cluster, which have loaded their models."""
    with ExitStack() as stack:
        cluster = stack.enter_context(ray_cluster(nodes=2))
        place = RaySettings(cluster.address, 1.0, 0.0, 1 << 30)
        executors = (
            ProcessExecutor("child", time.monotonic),
            ray_executor("first", time.monotonic, place),
            ray_executor("second", time.monotonic, place),
        )
        for executor in executors:
            stack.callback(executor.close)
            executor.start()
        yield executors


def _series(folder: Path, slices: int) -> list[Path]:
    asked = phantoms.Series(
        slices=slices, rows=SIDE, columns=SIDE, spacing_mm=5.0, thickness_mm=5, seed="cluster"
    )
    return phantoms.write(folder / f"received-{slices}", asked)


def _request(folder: Path, files: list[Path], name: str) -> Request:
    derived = folder / name
    shutil.rmtree(derived, ignore_errors=True)
    derived.mkdir()
    return Request(
        sources=tuple(Source(path, "", order) for order, path in enumerate(files)),
        model=registry.spec_of(MODEL),
        parameters=Parameters(factor=FACTOR),
        output=Output(),
        folder=derived,
        secret=b"0" * 32,
        started_at=datetime(2026, 1, 2, tzinfo=UTC),
        resources=Resources(device="cpu", threads=THREADS),
    )


def _seconds(executor: ProcessExecutor, request: Request) -> float:
    began = time.perf_counter()
    outcome = executor.run(request, LIMITS, lambda _: GO_ON)
    assert isinstance(outcome, Derived), outcome
    return time.perf_counter() - began


def _both(
    first: ProcessExecutor, second: ProcessExecutor, request: Callable[[str], Request]
) -> float:
    """Seconds of two series at once."""
    asked = request("a"), request("b")
    began = time.perf_counter()
    other = threading.Thread(target=_seconds, args=(second, asked[1]))
    other.start()
    _seconds(first, asked[0])
    other.join()
    return time.perf_counter() - began


def _shared(first: ProcessExecutor, second: ProcessExecutor, request: Request) -> float:
    """Seconds of one series of which the second worker makes parts, as the supervisor does."""
    parts, ended = Parts(1), threading.Event()

    def report(progress: Progress | None) -> Order:
        if progress is not None:
            parts.reached(1, progress)
        return GO_ON

    def make_parts() -> None:
        while not ended.wait(0.05):
            while (taken := parts.take()) is not None:
                part = taken[1]
                second.run(part, LIMITS, lambda _, p=part: Order(cancel=not parts.is_open(1, p)))  # type: ignore[misc]

    helper = threading.Thread(target=make_parts)
    began = time.perf_counter()
    with parts.of(1, request):
        helper.start()
        outcome = first.run(request, LIMITS, report)
    seconds = time.perf_counter() - began
    ended.set()
    helper.join()
    assert isinstance(outcome, Derived), outcome
    assert outcome.record["made_ahead"]
    return seconds
