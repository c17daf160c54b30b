"""A model that misbehaves harms its own job, and nothing else."""

from pathlib import Path

import pytest

from tests import series
from tests.node_process import NodeProcess, route, running, wait_for
from tests.peers import storescu

ROOT = Path(__file__).parents[2]
MODEL = '\n[[model]]\nname = "faulty"\nclass = "tests.faulty_models:{name}"\n'


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # a site's model is any importable class
    monkeypatch.setenv("MIDSLICE_TEST_MARK", str(tmp_path / "mark"))


def node_with(tmp_path: Path, name: str, **settings: float) -> NodeProcess:
    """A node whose CT route uses one of the faulty models, and a second route with a good one."""
    good = route(destinations=[]).replace("ct-slices", "good") + "priority = 9\n"
    return NodeProcess(
        tmp_path / "node",
        MODEL.format(name=name),
        route(model="faulty", destinations=[]),
        good,
        **settings,
    )


def states(node: NodeProcess) -> dict[str, str]:
    return {job["route"]: job["state"] for job in node.jobs()}


def send(node: NodeProcess, slices: int = 3) -> None:
    assert storescu(node.port, *series.thick(slices), options=("-xt",)).code == 0


@pytest.mark.parametrize("name", ["Raises", "Missing", "NotFinite"])
def test_a_model_that_fails_fails_its_job_with_frames_and_without_its_values(
    tmp_path: Path, name: str
) -> None:
    node = node_with(tmp_path, name)
    with running(node):
        send(node)
        node.event("job succeeded")  # the other route's job was not harmed
        assert states(node)["ct-slices"] in {"failed", "held"}
        (bad,) = [job for job in node.jobs() if job["route"] == "ct-slices"]
        assert bad["sentence"]
        shown = str(node.cli("job", str(bad["id"]))) + "".join(node.lines)
        assert "DOE^JANE" not in shown
        assert list((tmp_path / "node" / "var" / "derived").iterdir()) != []
        assert node.cli("job", str(bad["id"]))["attempts"][0]["outcome"]


def test_a_worker_that_dies_three_times_holds_its_job_and_nobody_elses(tmp_path: Path) -> None:
    node = node_with(tmp_path, "Dies")
    with running(node):
        send(node)
        node.event("job succeeded")
        assert states(node)["ct-slices"] == "held"
        (bad,) = [job for job in node.jobs() if job["route"] == "ct-slices"]
        assert bad["reason"] == "WORKER_DIED"
        assert bad["attempt"] == 3
        assert len(node.found("worker died")) == 3


def test_a_worker_that_dies_once_is_replaced_and_its_job_succeeds(tmp_path: Path) -> None:
    node = node_with(tmp_path, "DiesOnce")
    with running(node):
        send(node)
        node.event("job succeeded", count=2)
        assert states(node) == {"ct-slices": "succeeded", "good": "succeeded"}


def test_a_model_that_never_returns_is_stopped_at_the_time_limit(tmp_path: Path) -> None:
    node = node_with(tmp_path, "Never", job_minutes=0.05)
    with running(node):
        send(node)
        node.event("job succeeded", seconds=90)
        (bad,) = [job for job in node.jobs() if job["route"] == "ct-slices"]
        assert (bad["state"], bad["reason"]) == ("held", "TIME_LIMIT")


def test_a_model_that_takes_too_much_memory_is_stopped_at_the_memory_limit(tmp_path: Path) -> None:
    node = node_with(tmp_path, "Hungry", memory_gb=1.5)
    with running(node):
        send(node)
        node.event("job succeeded", seconds=120)
        (bad,) = [job for job in node.jobs() if job["route"] == "ct-slices"]
        assert (bad["state"], bad["reason"]) == ("held", "MEMORY_LIMIT")


def test_a_model_that_finds_no_memory_gives_its_job_back_and_harms_no_other(tmp_path: Path) -> None:
    """It is tried again after a minute."""
    node = node_with(tmp_path, "FindsNone", workers=2)
    with running(node):
        send(node)
        node.event("job succeeded")
        node.event("job given back")
        (bad,) = [job for job in node.jobs() if job["route"] == "ct-slices"]
        assert bad["state"] == "queued"
        assert bad["sentence"].startswith("Memory did not suffice for this job")
        assert "tried again; this happened 1 of at most 3 times" in bad["sentence"]
        (attempt,) = node.cli("job", str(bad["id"]))["attempts"]
        assert (attempt["outcome"], "misbehave" in attempt["detail"]) == ("OUT_OF_MEMORY", True)


def test_a_job_that_is_cancelled_stops_even_where_its_model_does_not_listen(tmp_path: Path) -> None:
    node = node_with(tmp_path, "Never")
    with running(node):
        send(node)
        job_id = node.event("job running")["job"]
        node.cli("cancel", str(job_id))
        node.event("job cancelled", job=job_id, seconds=60)
        node.event("job succeeded")
        assert states(node) == {"ct-slices": "cancelled", "good": "succeeded"}


def test_a_failed_job_that_is_requeued_runs_again(tmp_path: Path) -> None:
    node = node_with(tmp_path, "Raises")
    with running(node):
        send(node)
        failed = node.event("job failed")["job"]
        node.cli("requeue", str(failed))
        node.event("job failed", count=2, job=failed)
        attempts = node.cli("job", str(failed))["attempts"]
        assert [attempt["number"] for attempt in attempts] == [1, 2]


def test_a_running_job_shows_its_progress(tmp_path: Path) -> None:
    node = node_with(tmp_path, "Slow")
    with running(node):
        send(node, slices=12)
        job_id = node.event("job running")["job"]
        seen = wait_for(
            "progress between start and end",
            lambda: [p for p in [node.cli("job", str(job_id))["progress"]] if 0.1 < p < 0.9],
        )
        assert seen
