"""What a destination answers, and what the node does about it: one node, one peer an answer."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests import phantoms, series
from tests.node_process import NodeProcess, destination, route, running, wait_for
from tests.peers import Script, scripted_scp, storescu

SCRIPTS = {
    "busy": Script(statuses=[0x0000, 0xA700]),
    "coerces": Script(statuses=[0xB000, 0xB007]),
    "aborts": Script(abort_at=3),
    "unclear": Script(statuses=[0xC000]),
    "refuses": Script(statuses=[0x0000, 0x0122]),
    "knows": Script(statuses=[0x0111]),
    "strict": Script(calling_ae_titles=("SOMEBODY",)),
}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    """A node that has one derived series of 5 instances to bring to each of these peers."""
    with ExitStack() as peers:
        ports = {name: peers.enter_context(scripted_scp(each)) for name, each in SCRIPTS.items()}
        made = NodeProcess(
            tmp_path_factory.mktemp("delivery") / "node",
            *(destination(name, "SCRIPTED", port) for name, port in ports.items()),
            route(destinations=list(SCRIPTS)),
        )
        with running(made):
            assert storescu(made.port, *series.thick(3), options=("-xt",)).code == 0
            yield made


def delivery(node: NodeProcess, name: str) -> Any:
    """The delivery to that destination, as `midslice job` shows it."""
    (job,) = node.jobs()
    shown = node.cli("job", str(job["id"]))
    (found,) = [each for each in shown["deliveries"] if each["destination"] == name]
    return found


@pytest.mark.parametrize("name", ["busy", "coerces", "aborts"])
def test_what_passes_is_tried_again_and_only_what_is_missing_is_sent(
    node: NodeProcess, name: str
) -> None:
    node.event("delivery sent", destination=name)
    received = SCRIPTS[name].received
    assert len(set(received)) == 5
    assert len(received) == {"busy": 6, "coerces": 5, "aborts": 6}[name]


def test_what_is_not_understood_is_tried_again_after_a_minute_with_the_status(
    node: NodeProcess,
) -> None:
    delayed = node.event("delivery delayed", destination="unclear")
    assert delayed["seconds"] >= 60.0
    found = delivery(node, "unclear")
    assert (found["state"], found["sent"]) == ("queued", 4)
    assert "answered 0xC000 (cannot understand)." in found["sentence"]


@pytest.mark.parametrize(
    ("name", "said"),
    [("refuses", "0x0122 (SOP Class not supported)"), ("knows", "0x0111 (duplicate SOP Instance)")],
)
def test_a_permanent_failure_is_held_at_once_and_its_job_stays_succeeded(
    node: NodeProcess, name: str, said: str
) -> None:
    node.event("delivery held", destination=name, reason="REFUSED_BY_PEER")
    found = delivery(node, name)
    assert (found["state"], found["sent"]) == ("held", 4)
    assert said in found["sentence"]
    assert node.jobs()[0]["state"] == "succeeded"


def test_an_association_that_is_rejected_for_good_is_held_with_advice(node: NodeProcess) -> None:
    node.event("delivery held", destination="strict", reason="REFUSED_BY_PEER")
    found = delivery(node, "strict")
    assert found["sent"] == 0
    assert "MIDSLICE" in found["sentence"]


def test_redelivery_sends_all_again_to_one_destination_alone(node: NodeProcess) -> None:
    node.event("delivery sent", destination="coerces")
    before = {name: len(script.received) for name, script in SCRIPTS.items()}
    (job,) = node.jobs()
    node.cli("redeliver", str(job["id"]), "--to", "coerces")
    node.event("delivery sent", destination="coerces", count=2)
    assert len(SCRIPTS["coerces"].received) == before["coerces"] + 5
    assert len(SCRIPTS["refuses"].received) == before["refuses"]


def test_a_series_is_made_while_the_delivery_of_the_one_before_it_takes_its_time(
    tmp_path: Path, stalling: tuple[Script, int]
) -> None:
    script, port = stalling
    node = NodeProcess(
        tmp_path / "node",
        destination("slow", "SCRIPTED", port),
        route(destinations=["slow"]),
        shutdown_seconds=1.0,
    )
    with running(node):
        assert storescu(node.port, *series.thick(3), options=("-xt",)).code == 0
        wait_for("the delivery is under way", lambda: script.received)
        assert storescu(node.port, *phantoms.write(tmp_path / "second")).code == 0
        node.event("job succeeded", count=2)
        assert not node.found("delivery sent")
        states = [job["deliveries"][0]["state"] for job in node.jobs()]
        assert sorted(states) == ["queued", "running"]
