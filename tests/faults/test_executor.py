"""The process that inference runs in, with real requests and a real child."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

from inference.model import Parameters
from inference.request import (
    Derived,
    ModelSpec,
    OutOfMemory,
    Output,
    Progress,
    Request,
    Source,
    Stopped,
)
from node.work.executor import Bounds, End, NoAnswer, Order, ProcessExecutor, how_it_ended
from node.work.ray_executor import RaySettings, ray_executor
from tests import series
from tests.ray_cluster import RayCluster, ray_cluster

BOUNDS = Bounds(seconds=120)
GO_ON = Order()
PAUSE_SECONDS = 6.0
DEATH_SECONDS = 3.0  # until an actor has said that its worker has died
LEFT_BYTES = 40_000_000  # enough for slices, and less than the model takes at once


CARRIED = "ray, whose machines do not have the folder"
KINDS = ["process", "ray", pytest.param(CARRIED, marks=pytest.mark.long)]
Make = Callable[[str, Callable[[], float]], ProcessExecutor]


@pytest.fixture(
    scope="module", params=["process", "ray", pytest.param(CARRIED, marks=pytest.mark.long)]
)
def make(request: pytest.FixtureRequest) -> Make:
    """Makes executors of either kind, all with the same behaviour."""
    if request.param == "process":
        return ProcessExecutor
    cluster = request.getfixturevalue("cluster")
    carries = request.param == CARRIED

    def on_ray(name: str, now: Callable[[], float]) -> ProcessExecutor:
        return ray_executor(name, now, RaySettings(cluster.address, 0.5, 0.0, 1 << 30, carries))

    return on_ray


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with ray_cluster(nodes=2) as made:
        yield made


@pytest.fixture(scope="module")
def executor(make: Make) -> Iterator[ProcessExecutor]:
    made = make("worker-test", time.monotonic)
    made.start()
    yield made
    made.close()


def request(folder: Path, slices: int) -> Request:
    """A request for the first slices of the real series, with an output folder of its own."""
    folder.mkdir()
    files = sorted(series.thick(slices))
    return Request(
        sources=tuple(Source(path, "", order) for order, path in enumerate(files)),
        model=ModelSpec("linear"),
        parameters=Parameters(factor=2),
        output=Output(presentation_state=False),
        folder=folder,
        secret=b"0" * 32,
        started_at=datetime.now(UTC),
    )


def test_an_error_of_the_watcher_never_lets_the_next_job_have_this_ones_answer(
    executor: ProcessExecutor, tmp_path: Path
) -> None:
    def broken(_: Progress | None) -> Order:
        raise RuntimeError("the watcher is broken")

    with pytest.raises(RuntimeError):
        executor.run(request(tmp_path / "a", 8), BOUNDS, broken)
    assert executor.pid is None  # it would have gone on with the first request
    second = executor.run(request(tmp_path / "b", 3), BOUNDS, lambda _: GO_ON)
    assert isinstance(second, Derived)
    assert len(second.files) == 5
    assert {file.name for file in second.files} == {p.name for p in (tmp_path / "b").iterdir()}


def test_a_worker_that_loads_its_models_first_takes_no_time_of_the_job(
    make: Make, tmp_path: Path
) -> None:
    # By this clock nothing takes time but the loading of the models: longer than the job may.
    clock = [0.0]

    def report(_: Progress | None) -> Order:
        clock[0] = 100.0
        return GO_ON

    cold = make("worker-cold", lambda: clock[0])
    try:
        outcome = cold.run(request(tmp_path / "a", 3), Bounds(seconds=60), report)
    finally:
        cold.close()
    assert isinstance(outcome, Derived)


def test_a_worker_loads_a_model_once_for_all_its_jobs(
    executor: ProcessExecutor, tmp_path: Path
) -> None:
    """The second job of a model whose class cannot be made twice in one process."""
    own = ModelSpec("once", "tests.faulty_models:MadeOnce")
    for name in ("a", "b"):
        asked = replace(request(tmp_path / name, 3), model=own)
        assert isinstance(executor.run(asked, BOUNDS, lambda _: GO_ON), Derived)


def test_a_signal_to_the_whole_group_does_not_end_a_worker(
    executor: ProcessExecutor, tmp_path: Path
) -> None:
    executor.start()
    pid = executor.pid
    assert pid is not None
    first = executor.run(request(tmp_path / "a", 3), BOUNDS, lambda _: GO_ON)  # it has started
    assert isinstance(first, Derived)
    os.kill(pid, signal.SIGTERM)
    os.kill(pid, signal.SIGINT)
    after = executor.run(request(tmp_path / "b", 3), BOUNDS, lambda _: GO_ON)
    assert isinstance(after, Derived)
    assert executor.pid == pid


def test_a_node_that_stops_ends_the_worker_and_counts_nothing(
    executor: ProcessExecutor, tmp_path: Path
) -> None:
    end = executor.run(request(tmp_path / "a", 8), BOUNDS, lambda _: Order(stop=True))
    assert end == NoAnswer(End.STOPPED, "the node stops")
    assert executor.pid is None


def test_a_job_pauses_between_two_slices_and_then_goes_on_to_the_same_result(
    executor: ProcessExecutor, tmp_path: Path
) -> None:
    """It pauses for longer than the whole job may take: that time does not count."""
    own = ModelSpec("leisurely", "tests.faulty_models:Leisurely")
    first = replace(request(tmp_path / "a", 8), model=own)
    second = replace(request(tmp_path / "b", 8), model=own, started_at=first.started_at)
    plain = executor.run(first, BOUNDS, lambda _: GO_ON)
    reports: list[tuple[float, Progress | None]] = []
    paused_at = [0.0]

    def report(progress: Progress | None) -> Order:
        reports.append((time.monotonic(), progress))
        if progress is not None and progress.step == "predicting" and not paused_at[0]:
            paused_at[0] = time.monotonic()
        return Order(pause=0.0 < time.monotonic() - paused_at[0] < PAUSE_SECONDS)

    bounds = Bounds(seconds=PAUSE_SECONDS - 1.0)
    executor.start()
    began = time.monotonic()
    again = executor.run(second, bounds, report)
    assert time.monotonic() - began > PAUSE_SECONDS
    assert isinstance(plain, Derived)
    assert isinstance(again, Derived)
    assert [file.digest for file in again.files] == [file.digest for file in plain.files]
    quiet = [at - paused_at[0] for at, progress in reports if progress is not None]
    assert not [at for at in quiet if 1.5 < at < PAUSE_SECONDS - 0.1]


@pytest.mark.parametrize("order", [Order(pause=True, cancel=True), Order(pause=True, stop=True)])
def test_a_job_that_pauses_can_be_cancelled_and_given_back(
    executor: ProcessExecutor, tmp_path: Path, order: Order
) -> None:
    paused_at = [0.0]

    def report(progress: Progress | None) -> Order:
        if not paused_at[0]:
            paused_at[0] = time.monotonic()
        return order if time.monotonic() - paused_at[0] > 1.0 else Order(pause=True)

    end = executor.run(request(tmp_path / "a", 40), BOUNDS, report)
    assert time.monotonic() - paused_at[0] < 10.0
    assert isinstance(end, NoAnswer if order.stop else Stopped)
    assert not list((tmp_path / "a").glob("*.dcm")) or order.stop


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (3, "exit code 3"),
        (None, "exit code None"),
        (-11, "crashed (SIGSEGV), most often in compiled code of a library"),
        (-15, "ended by a person, or because the machine stopped (SIGTERM)"),
        (-10, "ended by the signal SIGUSR1"),
        (-40, "ended by signal 40"),
    ],
)
def test_an_exit_code_is_said_in_words(code: int | None, said: str) -> None:
    assert how_it_ended(code).startswith(said)


def test_a_worker_that_is_killed_says_how_it_ended_and_is_replaced(
    executor: ProcessExecutor, tmp_path: Path
) -> None:
    def kill(_: Progress | None) -> Order:
        if executor.pid is not None:  # a machine of the cluster has it by now
            psutil.Process(executor.pid).kill()
        return GO_ON

    end = executor.run(request(tmp_path / "a", 8), BOUNDS, kill)
    assert isinstance(end, NoAnswer)
    assert end.how is End.WORKER_DIED
    assert end.detail == "killed by the system (SIGKILL), most often because memory ran out"
    again = executor.run(request(tmp_path / "b", 3), BOUNDS, lambda _: GO_ON)
    assert isinstance(again, Derived)


def test_a_worker_that_has_died_before_a_request_is_replaced_for_it(
    executor: ProcessExecutor, tmp_path: Path
) -> None:
    first = executor.run(request(tmp_path / "a", 3), BOUNDS, lambda _: GO_ON)
    assert isinstance(first, Derived)
    assert executor.pid is not None
    process = psutil.Process(executor.pid)
    process.kill()
    process.wait(10.0)
    time.sleep(DEATH_SECONDS)  # the node has not looked yet, and the news has come
    again = executor.run(request(tmp_path / "b", 3), BOUNDS, lambda _: GO_ON)
    assert isinstance(again, Derived)


def test_a_worker_whose_memory_is_limited_says_so_and_the_next_job_has_a_new_one(
    tmp_path: Path,
) -> None:
    own = ProcessExecutor("worker-limited", time.monotonic)
    try:
        first = own.run(request(tmp_path / "a", 3), BOUNDS, lambda _: GO_ON)  # all is loaded
        assert isinstance(first, Derived)
        pid = own.pid
        assert pid is not None
        process = psutil.Process(pid)
        most = process.memory_info().data + LEFT_BYTES
        process.rlimit(psutil.RLIMIT_DATA, (most, most))
        hungry = ModelSpec("hungry", "tests.faulty_models:Hungry")
        asked = replace(request(tmp_path / "b", 3), model=hungry)
        outcome = own.run(asked, BOUNDS, lambda _: GO_ON)
        assert isinstance(outcome, OutOfMemory), outcome
        assert "misbehave" in outcome.frames
        assert not psutil.pid_exists(pid)
        again = own.run(request(tmp_path / "c", 3), BOUNDS, lambda _: GO_ON)
        assert isinstance(again, Derived)
    finally:
        own.close()
