"""What Now and Needs a person show: first steps, and rows with a sentence and a button."""

import re

import pytest

from node import health
from node.web.pages import now
from storage.records import Received, Role
from storage.site import peers
from tests.unit.storage.stored import CT, EXPLICIT, SCANNER, content_of
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
    assert f'id="requeue-{job.id}"' in person.get("/").text
    served.rows.lose(served.rows.queue.get(job.id).series_id)
    for path in ("/", "/needs", f"/jobs/{job.id}"):
        text = person.get(path).text
        assert "Have the sender send the series again" in text, path
        cancel = "batch/cancel" if path == "/needs" else f"jobs/{job.id}/cancel"
        assert f"/api/v1/{cancel}" in text, path
        assert f"/api/v1/jobs/{job.id}/requeue" not in text, path
    script = served.program(Role.OPERATOR)
    assert script.post(f"/api/v1/jobs/{job.id}/cancel").json()["state"] == "cancelled"
    assert "Nothing needs a person" in person.get("/needs").text


def test_advice_names_options_of_slices_only_where_slices_were_asked_for(
    served: Site, person: Client
) -> None:
    for number, factor in enumerate((4, None), start=1):
        asked = {"stack": f"{number}", "route": "gone", "parameters": {"factor": factor}}
        served.rows.ask(f"{number}", (f"1.{number}",), **asked)
        served.rows.queue.hold(served.rows.claim(), "LOW_CONFIDENCE", "Not sure.")
    slices, mask = (person.get(f"/jobs/{number}").text for number in (1, 2))
    assert "hold_below" in slices
    assert "hold_below" not in mask
    assert "Look at the images for what the sentence names." in mask
    for path in ("/", "/needs"):  # in the list one advice is for both jobs
        assert person.get(path).text.count("hold_below") == 1, path
    served.program(Role.OPERATOR).post("/api/v1/jobs/1/cancel")
    for path in ("/", "/needs"):
        assert "hold_below" not in person.get(path).text, path


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
    now = person.get("/").text
    assert "/api/v1/jobs/1/requeue" not in now  # it would find the same again
    assert "/api/v1/jobs/1/cancel" in now
    assert "/api/v1/jobs/2/requeue" in now
    first, second = re.findall(r'<tr id="need-job-.*?</tr>', person.get("/needs").text, re.DOTALL)
    assert 'id="need-job-2"' in first and "Its route has changed since" in first
    assert 'id="need-job-1"' in second and "Its route has changed since" not in second
    assert "Its route has changed since" in now
    same, changed = person.get("/jobs/1").text, person.get("/jobs/2").text
    assert 'class="primary"' not in same  # to requeue it is of no use, to cancel it destroys
    assert re.search(r'id="cancel" class="danger"', same)
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


def ask_for(served: Site, number: int) -> None:
    """Anna Meyer's series of this number has one job, which a worker gets next."""
    rows, uid = served.rows, f"1.2.3.{number}"
    names = ("P1", "A1", "20260102", "Thorax", "Meyer^Anna")
    what = Received("1.9", uid, f"{uid}.1", CT, EXPLICIT, "CT", *names)
    rows.archive.keep(what, SCANNER, rows.incoming(content_of(what)))
    arrival = rows.arrival(series_uid=uid)
    route = served.settings.routes[0]
    asked = {"model": route.model, "parameters": {"label": "", **route.options}}
    rows.queue.complete(arrival.id, {}, [rows.new_job(arrival, uid, **asked)])


def groups(text: str) -> dict[str, str]:
    """The lists of the page by their headings, each with its HTML."""
    sections = re.findall(r'<section class="panel needs".*?</section>', text, re.DOTALL)
    headings = (re.search(r"<h2[^>]*>(.*?)</h2>", section) for section in sections)
    titles = [re.sub("<.*?>", "", heading[1]).strip() for heading in headings if heading]
    return dict(zip(titles, sections, strict=True))


def test_what_waits_is_grouped_by_its_reason_with_tick_boxes_in_each_row(
    served: Site, person: Client
) -> None:
    for number in range(1, 4):
        ask_for(served, number)
        served.rows.queue.hold(served.rows.claim(), "MISSING_SLICES", f"Sentence {number}.")
        served.clock.now += 60
    ask_for(served, 7)
    served.rows.queue.fail(served.rows.claim(), "ValueError", "The model raised ValueError.")
    lists = groups(person.get("/needs").text)
    assert list(lists) == ["1 series failed with ValueError", "3 series miss slices"]
    missing, failed = lists["3 series miss slices"], lists["1 series failed with ValueError"]
    assert re.findall(r'name="ids" value="(\d+)"', missing) == ["3", "2", "1"]
    assert missing.count("Meyer, Anna") == missing.count("2026-01-02") == missing.count(">A1<") == 3
    assert "for <time" in missing and "ago" not in missing  # held: as long as it lasts
    assert " ago</td>" in failed
    for page in missing, failed:
        primary = re.search(r'id="(\w+)-job-[^"]*" class="primary"', page)
        assert (primary and primary[1]) == (None if page == missing else "requeue")
        assert re.search(r'id="cancel-job-[^"]*" class="danger"', page)


def test_a_group_shows_its_newest_rows_and_a_link_to_all_of_them(
    served: Site, person: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(now, "OF_GROUP", 2)
    monkeypatch.setattr(now, "AT_ONCE", 2)
    for number in range(1, 4):
        served.rows.ask(f"k{number}", (f"1.{number}",), stack=f"{number}")
        served.rows.queue.hold(served.rows.claim(), "TIME_LIMIT", "It took too long.")
        served.clock.now += 60
    text = person.get("/needs?route=ct-slices").text
    (title,) = groups(text)
    assert title == "1 series took too long 3 jobs"
    assert text.count('name="ids"') == 2
    link = re.search(r'href="([^"]*)">Show all 3<', text)
    assert link is not None
    text = person.get(link[1].replace("&amp;", "&")).text
    older = re.search(r'href="([^"]*)">Next<', text)
    assert older is not None
    assert re.findall(r'name="ids" value="(\d+)"', text) == ["3", "2"]
    text = person.get(older[1].replace("&amp;", "&")).text
    assert re.findall(r'name="ids" value="(\d+)"', text) == ["1"]


def test_who_hides_patients_sees_none_and_who_sees_them_is_recorded(
    served: Site, person: Client
) -> None:
    person.get("/needs")
    assert served.store.audit.list() == ()  # nobody was to be seen
    ask_for(served, 1)
    served.rows.queue.hold(served.rows.claim(), "MISSING_SLICES", "A slice is missing.")
    assert "Meyer" in person.get("/needs?reason=MISSING_SLICES").text
    (event,) = served.store.audit.list()
    assert (event.what, event.which) == ("find", "needs a person")
    assert event.detail == {"by": ["reason"], "found": 1}
    person.cookies.set("midslice-mask", "1")
    assert "Meyer" not in person.get("/needs").text
    assert len(served.store.audit.list()) == 1


def test_a_viewer_has_no_boxes_to_tick_and_what_is_requeued_alone_no_batch(served: Site) -> None:
    served.rows.ask("k")
    served.rows.queue.hold(served.rows.claim(), "PATIENT_MISMATCH", "Two patients.")
    served.user("ada")
    served.user("vera", Role.VIEWER)
    ada, vera = served.logged_in("ada").get("/needs").text, served.logged_in("vera").get("/needs")
    assert "checkbox" not in vera.text and "batch" not in vera.text
    assert "/api/v1/batch/cancel" in ada
    assert "/api/v1/batch/requeue" not in ada
    assert "one at a time, each on its own page" in ada


def to_send(served: Site, count: int, destination: str = "pacs") -> None:
    for number in range(count):
        uid = f"1.{destination}.{number}"
        served.rows.ask(uid, (uid,), stack=uid, destinations=(destination,))
        served.rows.succeed(f"2.25.{len(destination)}{number}")


def test_sending_lists_what_waits_and_links_the_rest(
    served: Site, person: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FIRST_QUEUED", "AT_ONCE"):
        monkeypatch.setattr(now, name, 2)
    to_send(served, 3)
    to_send(served, 1, "research")
    text = person.get("/").text
    assert text.count('<tr id="delivery-') == 2
    assert "The first 2 of 4." in text and 'href="/sending" id="all-sending"' in text
    listed = set()
    for address in ("/sending", "/sending?destination=&sent_offset=0&offset=2"):
        text = person.get(address).text
        listed |= set(re.findall(r'<tr id="delivery-(\d+)"', text))
    assert f'href="{address.replace("&", "&amp;")}">Next<' in person.get("/sending").text
    assert listed == {"1", "2", "3", "4"}
    only = person.get("/sending?destination=research").text
    assert re.findall(r'<tr id="delivery-(\d+)"', only) == ["4"]
    assert "<option selected>research</option>" in only
    peers_page = person.get("/peers").text
    assert '<a href="/sending?destination=pacs">3 deliveries</a>' in peers_page
    assert '<a href="/sending?destination=research">1 delivery</a>' in peers_page


def test_what_is_held_is_linked_where_it_would_be_looked_for(served: Site, person: Client) -> None:
    to_send(served, 1)
    served.rows.ledger.hold(served.rows.start_delivery("pacs"), "GAVE_UP", "Not delivered.")
    link = 'href="/needs?state=held&amp;destination=pacs"'
    assert link in person.get("/peers").text
    assert link in person.get("/sending?destination=pacs").text
    assert "1 delivery is held for pacs" in person.get("/sending?destination=pacs").text
    assert 'href="/needs?state=held"' in person.get("/sending").text
    assert "Not delivered." in person.get("/needs?state=held&destination=pacs").text


def test_rejected_associations_come_page_by_page(served: Site, person: Client) -> None:
    for number in range(25):
        name = f"CT{number}"
        served.rows.archive.rejected(name, "MIDSLICE", "10.0.0.1", "network not allowed")
    first = person.get("/peers").text
    assert "1–20 of 25" in first
    assert person.get("/peers?offset=20").text.count("network not allowed") == 5


def test_a_newcomer_reads_what_to_enter_at_the_scanner_until_something_arrived(
    served: Site, person: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "addresses", lambda host: ("10.1.2.3", "192.168.0.7"))
    text = person.get("/").text
    for part in ("First steps", "MIDSLICE", "10.1.2.3", "192.168.0.7", "dcmsend -aec MIDSLICE"):
        assert part in text
    assert "0.0.0.0" not in text
    served.rows.receive("1.1")
    assert "First steps" not in person.get("/").text
    assert person.get("/now/first_steps").text.strip() == ""
