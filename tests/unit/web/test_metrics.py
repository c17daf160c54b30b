"""What Prometheus gets, and that dashboard and alert rules ask for nothing else."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

import node.web
from storage.records import Role, SwitchName
from storage.site import control, peers
from storage.site.nodes import STOPPED, Nodes
from tests.unit.web.site import Site

MONITORING = Path(node.web.__file__).parent / "monitoring"
LATER = 60.0  # what has ended counts some seconds later


def samples(served: Site) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = served.administrator().get("/metrics").text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(served: Site, name: str, **labels: str) -> float | None:
    return samples(served).get((f"midslice_{name}", tuple(sorted(labels.items()))))


def test_jobs_are_counted_by_state_and_the_oldest_waits(served: Site) -> None:
    served.rows.ask("k")
    served.clock.now += 30
    assert value(served, "jobs", state="queued") == 1
    assert value(served, "jobs", state="held") == 0
    assert value(served, "job_oldest_seconds") == 30
    served.rows.claim()
    assert value(served, "jobs", state="running") == 1
    assert value(served, "job_oldest_seconds") == 0


def test_a_job_that_ends_counts_once_with_its_reason_and_its_times(served: Site) -> None:
    assert value(served, "jobs_ended_total", state="held", reason="MISSING_SLICES") is None
    served.rows.ask("k")
    served.clock.now += 20
    job = served.rows.claim()
    served.clock.now += 7
    served.rows.queue.hold(job, "MISSING_SLICES", "Slices are missing.")
    served.clock.now += LATER
    for _ in range(2):  # asking again counts nothing again
        held = value(served, "jobs_ended_total", state="held", reason="MISSING_SLICES")
        assert held == 1
        served.clock.now += LATER
    assert value(served, "job_wait_seconds_sum") == 20
    assert value(served, "job_run_seconds_sum") == 7
    assert value(served, "job_run_seconds_count") == 1


def test_what_is_received_counts_in_instances_and_bytes(served: Site) -> None:
    samples(served)
    served.rows.receive("1.1")
    served.rows.receive("1.2")
    served.clock.now += LATER
    assert value(served, "received_instances_total") == 2
    first = value(served, "received_bytes_total")
    assert first is not None
    assert first > 100
    served.rows.receive("1.3")
    served.clock.now += LATER
    assert value(served, "received_instances_total") == 3
    assert value(served, "arrivals_open") == 1


def test_what_was_there_before_the_process_is_not_counted_as_new(served: Site) -> None:
    assert value(served, "received_instances_total") == 0
    assert value(served, "job_run_seconds_count") == 0


def test_a_clock_that_is_set_back_counts_nothing_twice_and_goes_on(served: Site) -> None:
    served.rows.receive("1.1")
    served.clock.now += LATER
    assert value(served, "received_instances_total") == 1
    served.clock.now -= 3600
    assert value(served, "received_instances_total") == 1
    served.clock.now += LATER
    served.rows.receive("1.2")
    served.clock.now += LATER
    assert value(served, "received_instances_total") == 2


def test_a_delivery_counts_where_it_went_and_how_much(served: Site) -> None:
    rows = served.rows
    rows.ask("k", destinations=("pacs",))
    rows.succeed()
    (delivery,) = rows.ledger.of_job(1)
    folder = served.settings.folder / delivery.folder
    size = sum(file.stat().st_size for file in folder.iterdir())
    assert size > 0
    assert value(served, "deliveries_open", destination="pacs", state="queued") == 1
    served.clock.now += 40
    assert value(served, "delivery_oldest_seconds", destination="pacs") == 40
    rows.deliver()
    served.clock.now += LATER
    assert value(served, "sent_instances_total", destination="pacs") == delivery.total
    assert value(served, "sent_bytes_total", destination="pacs") == size
    assert value(served, "delivery_seconds_sum", destination="pacs") == 40
    ended = value(served, "deliveries_ended_total", destination="pacs", state="sent", reason="")
    assert ended == 1
    assert value(served, "deliveries_open", destination="pacs", state="queued") is None


def test_a_destination_is_up_down_or_paused(served: Site) -> None:
    assert value(served, "destination_up", destination="pacs") is None  # nobody has asked yet
    assert value(served, "destination_paused", destination="pacs") == 0
    now = served.clock()
    peers.record(served.database, now, "pacs", ok=False, seconds=1.0, sentence="No answer.")
    peers.record(served.database, now, "gone", ok=False, seconds=1.0, sentence="No answer.")
    control.turn(served.database, now, "anna", SwitchName.PAUSED, "pacs", on=True)
    control.turn(served.database, now, "anna", SwitchName.DRAINING, on=True)
    assert value(served, "destination_up", destination="pacs") == 0
    assert value(served, "destination_up", destination="gone") is None
    assert value(served, "destination_paused", destination="pacs") == 1
    assert value(served, "draining") == 1


def test_nodes_whose_jobs_wait_for_a_worker_are_named(served: Site) -> None:
    nodes = Nodes(served.database, served.clock)
    for name, lacks in (("one", "1 of 2: no Ray cluster answers"), ("two", "")):
        nodes.start(name)
        nodes.beat(name, lacks=lacks)
    assert value(served, "node_lacks_workers", node="one") == 1
    assert value(served, "node_lacks_workers", node="two") == 0
    nodes.beat("one", STOPPED)
    assert value(served, "node_lacks_workers", node="one") is None


def test_associations_count_by_how_they_ended(served: Site) -> None:
    archive = served.rows.archive
    open_one = archive.associated("CT1", "MIDSLICE", "10.0.0.1")
    archive.rejected("CT2", "MIDSLICE", "10.0.0.2", "calling AE title not recognised")
    assert value(served, "associations_open") == 1
    archive.dissociated(open_one, "released")
    served.clock.now += LATER
    assert value(served, "associations_ended_total", how="released") == 1
    assert value(served, "associations_ended_total", how="rejected") == 1
    assert value(served, "associations_open") == 0


def test_the_disk_and_what_the_pages_answer_are_there(listening: Site) -> None:
    listening.administrator().get("/api/v1/jobs/77")
    found = samples(listening)
    free = found[("midslice_disk_free_bytes", ())]
    assert 0 < free < found[("midslice_disk_total_bytes", ())]
    assert found[("midslice_web_requests_total", (("method", "GET"), ("status", "404")))] == 1
    assert found[("midslice_ready", ())] == 0  # no node runs here


def test_with_users_a_monitor_needs_a_token(served: Site) -> None:
    served.user("anna")
    assert served.client().get("/metrics").status_code == 401
    answer = served.program(Role.VIEWER, "prometheus").get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")


def expressions() -> Iterator[str]:
    """Every expression of the dashboard and of the alert rules."""
    dashboard = json.loads((MONITORING / "grafana.json").read_text())
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    for variable in dashboard["templating"]["list"]:
        yield variable["query"]
    for group in yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]:
        yield from (rule["expr"] for rule in group["rules"])


@pytest.fixture
def published(served: Site) -> dict[str, set[str]]:
    """Each metric that there is, with its labels."""
    registry = served.app.state.metrics.registry
    found: dict[str, set[str]] = {}
    for collector, names in registry._collector_to_names.items():
        for name in names:
            found[name] = set(collector._labelnames)
    return found


def test_dashboard_and_alerts_ask_for_metrics_and_labels_that_there_are(
    published: dict[str, set[str]],
) -> None:
    asked = list(expressions())
    assert len(asked) > 40
    for expression in asked:
        for name, labels in re.findall(r"(midslice_[a-z_]+)(?:\{([^}]*)\})?", expression):
            assert name in published, expression
            given = set(re.findall(r"(\w+)=", labels)) - {"instance"}
            assert given <= published[name], expression


def test_every_metric_is_drawn_or_watched(published: dict[str, set[str]]) -> None:
    asked = " ".join(expressions())
    names = {re.sub(r"_(bucket|count|sum|created|total)$", "", name) for name in published}
    unused = {
        "midslice_selftest_finished_seconds",  # for whoever wants to see its age
        "midslice_commitments_open",  # those too old are notices
        "midslice_commitment_reports_open",
    }
    assert {name for name in names if name not in asked} == unused


def test_every_alert_says_what_happened_and_what_to_do() -> None:
    for group in yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            assert rule["labels"]["severity"] in ("page", "ticket")
            assert rule["annotations"]["summary"].endswith((".", ")"))
            assert rule["annotations"]["action"].endswith(".")
