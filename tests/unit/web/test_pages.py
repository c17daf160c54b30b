"""The pages as HTML: each is there, for whom it is meant, and text in it stays text."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from inference.previews import FOLDER, INDEX
from node.web import state
from node.web.state import PictureViews, Searches
from storage.records import Peer, Role
from tests.unit.web.site import Client, Site

PAGES = (
    "/",
    "/needs",
    "/needs?reason=MISSING_SLICES",
    "/needs?destination=pacs&offset=50&sent_offset=50",
    "/find",
    "/find?state=held",
    "/find?search=gone",
    "/peers",
    "/capacity",
    "/capacity?span=week",
    "/selftest",
    "/rules",
    "/configuration",
    "/users",
    "/audit",
)
PARTS = (
    "/now/drain",
    "/now/needs",
    "/now/arrivals",
    "/now/running",
    "/now/queue",
    "/now/sending",
    "/now/finished",
    "/needs/list",
    "/needs/count",
    "/peers/part",
    "/peers/count",
    "/capacity/part",
    "/selftest/part",
    "/configuration/part",
    "/users/part",
)
HTML = {"Accept": "text/html"}


def with_result(served: Site) -> int:
    """A job with a derived series and one picture; its id."""
    served.rows.ask("k")
    return finished(served)


def finished(served: Site) -> int:
    """The next job is done, with one picture; its id."""
    job = served.rows.succeed()
    folder = served.rows.files.path(served.rows.files.derived_folder(job.id, job.attempt)) / FOLDER
    folder.mkdir()
    slices = [
        {"at_mm": 2.5 * at, "generated": at == 1, "number": at + 1, "expected_error_hu": None}
        for at in range(3)
    ]
    told = {"slices": slices, "levels_hu": [0.0] * 256, "tilt_degrees": 0.0, "missing": []}
    (folder / INDEX).write_text(json.dumps(told | {"rows": 8, "columns": 8}))
    (folder / "00000.png").write_bytes(b"\x89PNG one")
    return job.id


def test_every_page_of_an_empty_node_says_something(person: Client) -> None:
    for path in PAGES:
        answer = person.get(path)
        assert answer.status_code == 200, path
        assert re.search(r"<h1>.+</h1>", answer.text), path


def test_every_part_that_is_fetched_again_is_no_whole_page(person: Client) -> None:
    for path in PARTS:
        answer = person.get(path)
        assert answer.status_code == 200, path
        assert "<html" not in answer.text, path


def test_no_page_has_a_script_or_a_style_of_its_own(person: Client) -> None:
    for path in PAGES:
        text = person.get(path).text
        assert re.findall(r"<script(?![^>]* src=\"/static/)", text) == [], path
        assert re.findall(r"<style|\sstyle=|\son[a-z]+=", text) == [], path
        assert re.findall(r"(?:src|href)=\"(?!/)[^\"#]", text) == [], path


def test_a_page_has_the_parts_that_it_fetches(person: Client) -> None:
    for path in PAGES:
        for part in re.findall(r'hx-get="([^"]+)"', person.get(path).text):
            assert person.get(part.replace("&amp;", "&")).status_code == 200, part


def test_a_part_that_does_not_exist_is_not_found_and_its_name_is_text(person: Client) -> None:
    answer = person.get("/now/<b>")
    assert answer.status_code == 404
    assert "<b>" not in answer.text


def test_each_kind_of_row_is_on_the_first_page(served: Site, person: Client) -> None:
    served.rows.ask("first")
    served.rows.claim()
    served.rows.ask("second", ("1.3",))
    served.rows.receive("1.9", peer=Peer("CT_7", "MIDSLICE"))
    text = person.get("/").text
    assert "CT_7" in text
    assert "Process now" in text
    assert "runs for" in text
    assert 'id="queued-2"' in text


def test_a_result_that_nobody_proves_is_said_to_be_sent_and_no_more(
    served: Site, person: Client
) -> None:
    served.rows.ask("k", destinations=("pacs",))
    served.rows.succeed()
    assert "never confirmed" not in person.get("/jobs/1").text
    served.rows.deliver("pacs")
    text = person.get("/jobs/1").text
    assert "not asked for storage commitment, so it is never confirmed" in text
    assert "sent to pacs" in person.get("/").text
    assert "Waiting for confirmation" not in person.get("/").text


def test_a_job_page_shows_its_pictures_only_where_they_are(served: Site, person: Client) -> None:
    job = with_result(served)
    text = person.get(f"/jobs/{job}").text
    assert 'id="viewer"' in text
    assert "2 received" in text
    picture = person.get(f"/jobs/{job}/pictures/00000.png")
    assert (picture.headers["content-type"], picture.content) == ("image/png", b"\x89PNG one")
    assert picture.headers["cache-control"] == "no-store"
    assert person.get(f"/jobs/{job}/pictures/00001.png").status_code == 404


def test_a_page_opened_before_a_job_ended_gets_its_slices_once(
    served: Site, person: Client
) -> None:
    served.rows.ask("k")

    def fetched(page: str) -> httpx.Response:
        (path,) = re.findall(r'id="slices" hx-get="([^"]+)"', page)
        return person.get(path)

    opened = person.get("/jobs/1").text
    assert 'id="viewer"' not in opened
    assert fetched(opened).status_code == 204
    finished(served)
    shown = fetched(opened)
    assert 'id="viewer"' in shown.text
    assert "<html" not in shown.text
    assert fetched(shown.text).status_code == 204  # whoever moves the slider keeps it
    assert "2.25.1" not in opened
    assert "2.25.1" in person.get("/jobs/1/done").text


@pytest.mark.parametrize(
    "name",
    ["index.json", "0.dcm", "..%2f0.dcm", "%2e%2e/0.dcm", "00000.png%00", "0000.png", "x.png"],
)
def test_no_other_file_is_served(served: Site, person: Client, name: str) -> None:
    job = with_result(served)
    assert person.get(f"/jobs/{job}/pictures/{name}").status_code in (404, 422)


def test_a_page_of_a_result_whose_files_are_gone_says_so(served: Site, person: Client) -> None:
    job = with_result(served)
    folder = Path(served.rows.files.path(served.rows.files.derived_folder(job, 1)))
    for file in (folder / FOLDER).iterdir():
        file.unlink()
    assert "There are no previews of this series." in person.get(f"/jobs/{job}").text
    assert person.get(f"/jobs/{job}/pictures/00000.png").status_code == 404


def test_times_and_gaps_of_a_job_without_pictures_are_drawn_from_its_record(
    served: Site, person: Client
) -> None:
    served.rows.ask("k")
    job = served.rows.claim()
    gaps = [{"gap_mm": 5.0, "factor": 2}, {"gap_mm": 5.0, "factor": 2}]
    trust = [
        {"at_mm": 2.5, "error_hu": 9.0, "confidence": 0.9, "how": "network"},
        {"at_mm": 7.5, "error_hu": 90.0, "confidence": 0.05, "how": "network"},
    ]
    record = {"gaps": gaps, "confidence": trust}
    served.rows.queue.hold(job, "LOW_CONFIDENCE", "The model is not sure.", record)
    text = person.get(f"/jobs/{job.id}").text
    assert "3 received" in text
    assert 'class="unsure"' in text
    assert 'class="sure"' in text


def seek(person: Client, **words: str) -> httpx.Response:
    """Send the form of Find as a browser does, and go where it leads."""
    csrf = re.search(r'name="csrf" value="([^"]+)"', person.get("/find").text)
    assert csrf is not None
    answer = person.post("/find", data={"csrf": csrf[1], **words})
    assert answer.status_code == 303
    return person.get(answer.headers["location"])


def test_a_search_is_written_down_without_its_words(served: Site, person: Client) -> None:
    seek(person, accession="A4711", name="Meyer")
    (event,) = served.store.audit.list(10)
    assert (event.who, event.what) == ("local", "find")
    assert event.detail["by"] == ["accession", "name"]
    assert "4711" not in json.dumps(dict(event.detail))


def test_no_address_of_a_search_has_a_patient_in_it(served: Site, person: Client) -> None:
    for number in range(30):
        served.rows.receive(f"1.{number}", series_uid=f"1.2.3.{number}")
    words = {"accession": "A1", "patient_id": "P1"}
    first = seek(person, **words)
    assert first.text.count("<tr>") == 1 + 25
    assert 'value="A1"' in first.text  # the form is filled in, to go on from
    older = re.search(r'<a href="([^"]+)">Older</a>', first.text)
    assert older is not None
    second = person.get(older[1].replace("&amp;", "&"))
    assert second.text.count("<tr>") == 1 + 5
    assert person.get(first.url).text == first.text  # loaded again, or gone back to
    for address in (str(first.url), *re.findall(r'(?:href|action)="([^"]*)"', first.text)):
        assert "A1" not in address and "P1" not in address, address


def test_words_of_a_link_from_elsewhere_do_not_stay_in_the_address(
    served: Site, person: Client
) -> None:
    served.rows.receive("1.1")
    answer = person.get("/find?accession=A1&state=")
    assert answer.status_code == 303
    assert re.fullmatch(r"/find\?search=[\w-]{22}", answer.headers["location"])
    assert "1 instance" in person.get(answer.headers["location"]).text


def test_what_names_no_patient_stays_an_address_that_others_can_open(person: Client) -> None:
    found = seek(person, state="held", route="ct slices")
    assert str(found.url).endswith("/find?state=held&route=ct+slices")


def test_nobody_sees_the_words_of_somebody_elses_search(served: Site) -> None:
    served.user("ada")
    served.user("vera", Role.VIEWER)
    ada, vera = served.logged_in("ada"), served.logged_in("vera")
    address = ada.act("POST", "/find", data={"name": "Meyer"}).headers["location"]
    assert "Meyer" in ada.get(address).text
    theirs = vera.get(address).text
    assert "Meyer" not in theirs
    assert "no longer stored" in theirs


def test_only_so_many_searches_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "MOST_SEARCHES", 2)
    kept = Searches()
    first, second = (kept.keep("anna", {"name": name}) for name in ("a", "b"))
    assert kept.get("anna", first) == {"name": "a"}
    kept.keep("anna", {"name": "c"})
    assert kept.get("anna", second) is None  # not looked at for the longest
    assert kept.get("anna", first) == {"name": "a"}


def test_pictures_are_one_view_of_a_person_and_a_job(served: Site) -> None:
    served.user("ada")
    served.user("vera", Role.VIEWER)
    job = with_result(served)
    path = f"/jobs/{job}/pictures/00000.png"
    ada, vera = served.logged_in("ada"), served.logged_in("vera")
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ada.get, path) for _ in range(16)]
    assert {each.result().status_code for each in asked} == {200}
    vera.cookies.set("midslice-mask", "1")  # the name is hidden; the pictures are the patient's
    assert vera.get(path).status_code == 200
    assert vera.get(f"/jobs/{job}/pictures/00001.png").status_code == 404  # nothing was seen
    served.clock.now += state.SAME_VIEW_SECONDS + 1
    assert ada.get(path).status_code == 200
    seen = [event for event in served.audited() if event[1] == "view pictures"]
    which = f"job {job}"
    assert [(who, whose) for who, _, whose in seen] == [
        ("ada", which),
        ("vera", which),
        ("ada", which),
    ]


def test_a_request_that_overtakes_another_is_no_second_view(served: Site) -> None:
    views = PictureViews(served.store.audit)
    for now in (100.002, 100.001, 100.003):
        views.record("ada", 1, now)
    assert [which for _, _, which in served.audited()] == ["job 1"]


def test_views_are_not_remembered_without_end(
    served: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "MOST_VIEWS", 2)
    kept = PictureViews(served.store.audit)
    for job_id in (1, 2, 3, 3, 1):
        kept.record("ada", job_id, 0.0)
    which = [which for _, _, which in served.audited()]
    assert which == ["job 1", "job 2", "job 3", "job 1"]


def test_a_job_page_is_written_down_unless_its_patient_was_hidden(
    served: Site, person: Client
) -> None:
    job = with_result(served)
    person.get(f"/jobs/{job}")
    assert [event.what for event in served.store.audit.list(10)] == ["view"]
    person.cookies.set("midslice-mask", "1")
    text = person.get(f"/jobs/{job}").text
    assert "P1" not in re.findall(r"<dd>(.*?)</dd>", text)
    assert len(served.store.audit.list(10)) == 1


def test_hiding_patients_leads_back_to_the_same_page_and_to_no_other_site(
    served: Site, person: Client
) -> None:
    csrf = re.search(r'name="csrf" value="([^"]+)"', person.get("/").text)
    assert csrf is not None
    for before, after in (
        (f"{served.url}/find?text=x", "/find?text=x"),
        ("https://example.org/find", "/"),
        (f"{served.url}//example.org/", "/"),
        ("", "/"),
    ):
        answer = person.post("/mask", data={"csrf": csrf[1]}, headers={"Referer": before})
        assert (answer.status_code, answer.headers["location"]) == (303, after)


def test_an_error_is_a_page_for_a_person(person: Client) -> None:
    answer = person.get("/jobs/12345")
    assert answer.status_code == 404
    assert "<h1>Not Found</h1>" in answer.text
    assert "No job 12345" in answer.text


def test_what_is_an_administrators_is_neither_listed_nor_served(served: Site) -> None:
    served.user("ada")
    served.user("vera", Role.VIEWER)
    vera = served.logged_in("vera")
    text = vera.get("/", headers=HTML).text
    for path in ("/configuration", "/users", "/audit"):
        assert f'href="{path}"' not in text
        assert vera.get(path, headers=HTML).status_code == 403
    assert "hx-post" not in text.partition("<main")[2]


def test_the_log_in_keeps_where_to_go_as_text(served: Site) -> None:
    served.user("ada")
    stranger = served.browser()
    text = stranger.get('/login?next=/find"><b>', headers=HTML).text
    assert "<b>" not in text
    answer = stranger.post("/login", data={"name": "ada", "password": "wrong"}, headers=HTML)
    assert answer.status_code == 401
    assert "The name or the password is wrong." in answer.text
