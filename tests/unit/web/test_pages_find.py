"""The pages Find and Series: searches, and the reason why a series has no job."""

import json
import re
from collections.abc import Mapping
from datetime import datetime
from zoneinfo import ZoneInfo

import httpx
import pytest
from sqlalchemy import update

from node.web import state
from node.web.pages.render import MASK
from node.web.state import Searches
from storage.leases import Holder
from storage.records import Peer, Received, RequestKind, Role, SwitchName
from storage.schema import arrival
from storage.site import control
from tests.unit.storage.stored import CT, EXPLICIT, SCANNER, SERIES, content_of
from tests.unit.web.site import Client, Site

PAGE = f"/series/{SERIES}"
TESTER = f'href="/rules?series_uid={SERIES}"'
ANY_ROUTE = "no route asked for a job"


def seek(person: Client, **words: str) -> httpx.Response:
    """Send the form of Find as a browser does, and go where it leads."""
    csrf = re.search(r'name="csrf" value="([^"]+)"', person.get("/find").text)
    assert csrf is not None
    answer = person.post("/find", data={"csrf": csrf[1], **words})
    assert answer.status_code == 303
    return person.get(answer.headers["location"])


def test_a_search_is_written_down_without_its_words(served: Site, person: Client) -> None:
    seek(person, accession="A4711", name="Meyer")
    (event,) = served.store.audit.list(10)  # nothing was there to be seen before it
    assert (event.who, event.what) == ("ada", "find")
    assert event.detail["by"] == ["accession", "name"]
    assert "4711" not in json.dumps(dict(event.detail))


def test_no_address_of_a_search_has_a_patient_in_it(served: Site, person: Client) -> None:
    for number in range(30):
        served.rows.receive(f"1.{number}", series_uid=f"1.2.3.{number}")
    words = {"accession": "A1", "patient_id": "P1"}
    first = seek(person, **words)
    assert first.text.count("<tr>") == 1 + 25
    assert 'value="A1"' in first.text  # the form is filled in, to go on from
    older = re.search(r'<a href="([^"]+)">Next</a>', first.text)
    assert older is not None
    second = person.get(older[1].replace("&amp;", "&"))
    assert second.text.count("<tr>") == 1 + 5
    assert person.get(first.url).text == first.text  # loaded again, or gone back to
    for address in (str(first.url), *re.findall(r'(?:href|action)="([^"]*)"', first.text)):
        named = re.sub(r"search=[\w-]{22}", "", address)  # chance may write anything into a token
        assert "A1" not in named and "P1" not in named, address


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


def close(served: Site, evidence: Mapping[str, object], *uids: str) -> None:
    """A series that came, and of which no job was made."""
    for uid in uids or ("1.1",):
        served.rows.receive(uid)
    served.rows.queue.complete(served.rows.arrival().id, evidence, [])


def never(served: Site, *, on: bool = True) -> None:
    now = served.clock()
    control.turn(served.database, now, "anna", SwitchName.NEVER, SERIES, on=on)


def test_a_series_without_a_job_leads_to_the_rule_tester(served: Site) -> None:
    close(served, {})
    for path in (PAGE, "/find?sender=SCANNER"):
        assert ANY_ROUTE in served.person().get(path).text
    assert TESTER in served.person().get(PAGE).text


AGAINST = {
    "objections": [
        ["ct-slices", "gap_mm", "gap_mm is 1, not at least 2."],
        ["mr-shadow", "PatientName", "PatientName is Meyer, not Mueller."],
    ]
}


@pytest.mark.parametrize("path", [PAGE, "/find?sender=SCANNER"])
def test_what_speaks_against_each_route_stands_beside_a_series_without_a_job(
    served: Site, person: Client, path: str
) -> None:
    close(served, AGAINST)
    text = person.get(path).text
    assert "gap_mm is 1, not at least 2." in text
    assert "PatientName is Meyer" in text
    person.cookies.set(MASK, "1")
    hidden = person.get(path).text
    assert "gap_mm is 1, not at least 2." in hidden
    assert "Meyer" not in hidden
    assert "Its condition on PatientName does not hold" in hidden


@pytest.mark.parametrize("path", [PAGE, "/find?sender=SCANNER"])
def test_a_series_without_a_job_may_be_processed_with_each_route_by_an_operator(
    served: Site, path: str
) -> None:
    close(served, {})
    served.user("olga", Role.OPERATOR)
    served.user("vera", Role.VIEWER)
    operator, viewer = (served.logged_in(name).get(path).text for name in ("olga", "vera"))
    for name in ("ct-slices", "mr-shadow"):
        assert name in operator
    assert f"/series/{SERIES}/process-now" in operator
    assert "process-now" not in viewer


@pytest.mark.parametrize("path", [PAGE, "/find?sender=SCANNER"])
@pytest.mark.parametrize("why", ["purged", "own", "excluded"])
def test_what_cannot_be_processed_has_no_such_button(served: Site, path: str, why: str) -> None:
    close(served, {})
    match why:
        case "purged":
            served.rows.purge_all()
        case "own":
            with served.database.writing() as db:
                db.execute(update(arrival).values(own=1))
        case _:
            never(served)
    assert "process-now" not in served.person().get(path).text


def test_the_answer_of_the_node_stands_on_the_page_of_the_series(served: Site) -> None:
    close(served, {})
    now, kind = served.clock(), RequestKind.PROCESS_NOW
    control.ask(served.database, now, "anna", kind, SERIES, route="mr-shadow")
    part = f"{PAGE}/part"
    assert "the node has not answered yet" in served.person().get(part).text
    node = control.RequestQueue(served.database, Holder("one", served.clock, 60.0))
    (request,) = node.claim()
    node.answer(request, ok=True, sentence="Job 7 is queued.")
    text = served.person().get(part).text
    assert "Job 7 is queued." in text
    assert "anna asked for route" in text


def test_the_page_of_a_series_lists_who_brought_it(served: Site) -> None:
    close(served, {"rule": "quiet", "quiet_seconds": 30.0, "released": 1})
    served.rows.receive("1.1", peer=Peer("WS7", "MIDSLICE"))
    text = served.person().get(PAGE).text
    assert "No further instance came for 30.0 s; associations: 1 released." in text
    assert "WS7" in text


def test_a_series_that_was_processed_whole_does_not(served: Site) -> None:
    served.rows.ask("k")
    text = served.person().get(PAGE).text
    assert TESTER not in text
    assert ANY_ROUTE not in text


def test_what_is_in_no_stack_is_said_with_its_reason_beside_the_jobs(served: Site) -> None:
    served.rows.receive("1.1")
    arrival = served.rows.arrival()
    new = served.rows.new_job(arrival, "k")
    served.rows.queue.complete(arrival.id, {"set_aside": {"NOT_A_CT_SLICE": 2}}, [new])
    text = served.person().get(PAGE).text
    assert "2 instances in no stack: NOT_A_CT_SLICE." in text
    assert TESTER in text


@pytest.mark.parametrize(
    ("evidence", "said"),
    [
        ({"set_aside": {"NOT_A_CT_SLICE": 1}}, "none of its instances is a slice (NOT_A_CT_SLICE)"),
        ({"never": "anna"}, "anna had excluded it from processing, but that was undone"),
    ],
)
def test_the_reason_is_said_where_it_is_known(
    served: Site, evidence: Mapping[str, object], said: str
) -> None:
    close(served, evidence)
    for path in (PAGE, "/find?sender=SCANNER"):
        text = served.person().get(path).text
        assert said in text
        assert ANY_ROUTE not in text


def test_who_said_never_is_named_and_an_operator_takes_it_back(served: Site) -> None:
    close(served, {"never": "anna"})
    never(served)
    served.user("ada")
    served.user("vera", Role.VIEWER)
    ada, vera = served.logged_in("ada"), served.logged_in("vera")
    for person in (ada, vera):
        for path in (PAGE, "/find?sender=SCANNER"):
            text = person.get(path).text
            assert "never processed</span>, by anna" in text
            assert ANY_ROUTE not in text
            assert "undone" not in text
    assert ">Undo<" not in vera.get(PAGE).text
    assert f'hx-delete="/api/v1/series/{SERIES}/never"' in ada.get(PAGE).text
    assert ada.act("DELETE", f"/api/v1/series/{SERIES}/never").status_code == 200
    text = ada.get(PAGE).text
    assert "never processed</span>" not in text
    assert "anna had excluded it from processing, but that was undone: send it again" in text


def test_never_is_asked_before_it_is_done(served: Site) -> None:
    served.rows.receive("1.1")
    text = served.person().get("/now/arrivals").text
    assert 'hx-confirm="Never process this series?' in text


def test_a_result_that_came_back_is_said_to_be_one(served: Site) -> None:
    served.rows.ask("k")
    served.rows.succeed("2.25.7")
    served.rows.receive("9.1", series_uid="2.25.7")
    served.rows.queue.complete(served.rows.arrival(series_uid="2.25.7").id, {}, [])
    text = served.person().get("/find?sender=SCANNER").text
    assert "a result of this node that comes back is never processed" in text


def test_find_opens_with_the_newest_series_and_records_who_saw_them(
    served: Site, person: Client
) -> None:
    for number in (1, 2):
        served.rows.receive(f"1.{number}", series_uid=f"1.2.3.{number}")
        served.clock.now += 60
    text = person.get("/find").text
    assert "Newest series" in text
    assert re.findall(r'href="/series/([\d.]+)"', text) == ["1.2.3.2", "1.2.3.1"]
    (event,) = served.store.audit.list()
    assert (event.what, event.detail) == ("find", {"by": [], "found": 2, "masked": False})
    person.cookies.set("midslice-mask", "1")
    assert "1.2.3.2" in person.get("/find").text
    assert len(served.store.audit.list()) == 1  # nobody was shown


def test_reason_route_and_destination_are_chosen_from_what_exists(
    served: Site, person: Client
) -> None:
    served.rows.ask("k", route="retired", destinations=("old-pacs",))
    served.rows.succeed("2.25.7")
    served.rows.ask("l", ("1.7",), stack="l")
    served.rows.queue.refuse(served.rows.claim(), "TOO_FEW_SLICES", "One.")
    options = choices(person.get("/find?route=gone").text)
    assert options["reason"] == ["any", "TOO_FEW_SLICES"]
    assert options["route"] == ["any", "ct-slices", "gone", "mr-shadow", "retired"]
    assert options["destination"] == ["any", "old-pacs", "pacs"]
    assert "old-pacs" in person.get("/find?destination=old-pacs").text


def choices(text: str) -> dict[str, list[str]]:
    """What each choice of the form offers."""
    fields = re.findall(r'<select name="(\w+)">(.*?)</select>', text, re.DOTALL)
    return {name: re.findall(r"<option[^>]*>([^<]*)</option>", field) for name, field in fields}


def test_dates_are_ranges_with_both_days_in_the_zone_of_the_pages(
    served: Site, person: Client
) -> None:
    served.clock.now = datetime(2026, 3, 5, 23, 30, tzinfo=ZoneInfo("Europe/Berlin")).timestamp()
    for number, day in enumerate(("20260301", "20260304", ""), start=1):
        what = Received("1.9", f"1.2.3.{number}", f"1.{number}", CT, EXPLICIT, study_date=day)
        served.rows.archive.keep(what, SCANNER, served.rows.incoming(content_of(what)))
        served.clock.now += 3600
    for words, numbers in (
        ({"study_from": "2026-03-01"}, "21"),
        ({"study_from": "2026-03-02", "study_to": "2026-03-04"}, "2"),
        ({"study_to": "2026-03-01"}, "1"),
        ({"received_to": "2026-03-05"}, "1"),
        ({"received_from": "2026-03-06"}, "32"),
        ({"received_from": "2026-03-05", "received_to": "2026-03-06"}, "321"),
    ):
        text = seek(person, **words).text
        assert "".join(re.findall(r'href="/series/1.2.3.(\d)"', text)) == numbers, words
        for name, day in words.items():
            assert f'name="{name}" type="date" value="{day}"' in text
    assert person.get("/find?received_from=yesterday").status_code == 422
    link = person.get("/find?received_from=2026-03-06")
    assert link.status_code == 200  # no day of a study: it names nobody
