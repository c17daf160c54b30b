"""What needs a person on the pages: each row with its sentence, and a button that can help."""

import re

import pytest

from storage.records import Role
from storage.retention import purge_one
from storage.site import peers
from tests.unit.web.site import Client, Site


def test_a_held_job_is_shown_with_its_sentence_and_a_button(served: Site, person: Client) -> None:
    served.rows.ask("k")
    job = served.rows.claim()
    served.rows.queue.hold(job, "MISSING_SLICES", "Two <slices> are missing.", {})
    for path in ("/", "/needs", "/needs?state=held", f"/jobs/{job.id}"):
        text = person.get(path).text
        assert "Two &lt;slices&gt; are missing." in text, path
        assert "Requeue" in text, path
    assert "Nothing needs a person" not in person.get("/").text


def test_a_failed_job_whose_files_were_removed_can_be_cancelled_and_nothing_else(
    served: Site, person: Client
) -> None:
    served.rows.ask("k")
    job = served.rows.claim()
    served.rows.queue.fail(job, "ValueError", "The model raised ValueError.")
    assert f'id="requeue-{job.id}"' in person.get("/needs").text
    series_id = served.rows.queue.get(job.id).series_id
    assert purge_one(served.database, served.rows.files, series_id, served.clock())
    for path in ("/", "/needs", f"/jobs/{job.id}"):
        text = person.get(path).text
        assert "Have the sender send the series again" in text, path
        assert f"/api/v1/jobs/{job.id}/cancel" in text, path
        assert f"/api/v1/jobs/{job.id}/requeue" not in text, path
    script = served.program(Role.OPERATOR)
    assert script.post(f"/api/v1/jobs/{job.id}/cancel").json()["state"] == "cancelled"
    assert "Nothing needs a person" in person.get("/needs").text


@pytest.mark.parametrize("reason", ["MISSING_SLICES", "LOW_CONFIDENCE"])
def test_what_only_the_route_ends_is_put_back_once_the_route_has_changed(
    served: Site, person: Client, reason: str
) -> None:
    route = served.settings.routes[0]
    kept = {"label": "", **route.options}
    for number, parameters in enumerate((kept, {**kept, "hold_below": 0.9}), start=1):
        told = {"stack": f"{number}", "parameters": parameters, "model": route.model}
        served.rows.ask(f"{number}", (f"1.{number}",), **told)
        served.rows.queue.hold(served.rows.claim(), reason, "As its route says.")
    for path in ("/", "/needs"):
        text = person.get(path).text
        assert "/api/v1/jobs/1/requeue" not in text, path  # it would find the same again
        assert "/api/v1/jobs/1/cancel" in text, path
        assert "/api/v1/jobs/2/requeue" in text, path
        assert "Its route has changed since" in text, path
    same, changed = person.get("/jobs/1").text, person.get("/jobs/2").text
    assert re.search(r'id="cancel" class="primary"', same)
    assert re.search(r'id="requeue" class="primary"', changed)
    assert "Otherwise cancel it." in same
    answer = served.program(Role.OPERATOR).post("/api/v1/jobs/2/requeue").json()
    assert (answer["id"], answer["state"]) == (2, "queued")
    (requeued,) = served.rows.queue.requeued()  # the node takes it up
    arrival = served.rows.archive.arrival(requeued.job.arrival_id)
    new = served.rows.new_job(arrival, "3", stack="2", parameters=kept, model=route.model)
    assert served.rows.queue.follow_route(requeued, [new]) == 3
    assert "job 3, with the route as it is now, replaces it" in person.get("/jobs/2").text
    assert "/api/v1/jobs/2/requeue" not in person.get("/jobs/2").text


def test_all_that_is_held_for_a_destination_has_one_button(served: Site, person: Client) -> None:
    for number, key in enumerate(("k", "l"), start=1):
        served.rows.ask(key, (f"1.{number}",), stack=key, destinations=("pacs",))
        served.rows.succeed(f"2.25.{number}")
        leased = served.rows.start_delivery("pacs")
        served.rows.ledger.hold(leased, "GAVE_UP", "Not delivered in 24 hours.")
        text = person.get("/needs").text
        assert ("Send 2 again" in text) == (number == 2)
    assert "2 deliveries held for" in text
    assert "Send 2 again" in person.get("/peers").text
    job = person.get("/jobs/1").text
    assert "not delivered to pacs" in job
    assert "Make the destination answer, then send again." in job


def test_what_waits_for_a_destination_says_when_it_is_tried_and_is_tried_now(
    served: Site, person: Client
) -> None:
    served.rows.ask("k", destinations=("pacs",))
    served.rows.succeed()
    button = 'hx-post="/api/v1/deliveries/1/requeue"'
    assert button not in person.get("/jobs/1").text  # it is due
    now = served.clock.now
    peers.unreachable(served.database, now, "pacs", "No association.", open_until=now + 600)
    for path in ("/", "/jobs/1"):
        text = person.get(path).text
        assert "tries again" in text, path
        assert f'data-until="{now + 600:.1f}"' in text, path
    assert "pacs does not answer." in person.get("/").text
    assert button in person.get("/jobs/1").text
    assert served.program(Role.OPERATOR).post("/api/v1/deliveries/1/requeue").status_code == 200
    assert button not in person.get("/jobs/1").text
    assert "pacs does not answer" not in person.get("/").text
    leased = served.rows.start_delivery()
    served.rows.ledger.retry(leased, now + 90, "RETRY", "One is not stored.")
    assert button in person.get("/jobs/1").text
    assert f'data-until="{now + 90:.1f}"' in person.get("/jobs/1").text


def test_a_filter_finds_what_is_held_on_its_way(served: Site, person: Client) -> None:
    served.rows.ask("k", destinations=("pacs",))
    served.rows.succeed()
    served.rows.ledger.hold(served.rows.start_delivery(), "REFUSED_BY_PEER", "It says no.")
    for query in ("state=held", "reason=REFUSED_BY_PEER", "route=ct-slices", "destination=pacs"):
        for path in ("/needs", "/needs/list"):
            text = person.get(f"{path}?{query}").text
            assert "It says no." in text, query
            assert 'hx-post="/api/v1/batch/deliveries/requeue"' in text, query
        assert "SCANNER" in person.get(f"/find?{query}").text, query
    for query in ("state=failed", "reason=GAVE_UP", "route=mr-shadow", "sender=CT9"):
        assert "It says no." not in person.get(f"/needs?{query}").text, query
