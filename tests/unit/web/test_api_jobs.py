"""REST: jobs, deliveries and series with their filters, and what an operator does with them."""

import csv
import io
import re
from typing import Any

import pytest

from storage.commitment_scu import NextStep
from storage.queries import overview
from storage.records import CommitmentReport, JobState, Peer, Reference, Role
from storage.site import control
from tests.unit.storage.stored import CT, SERIES
from tests.unit.web.calls import API, get, post
from tests.unit.web.site import Site

# As `interfaces.md` fixes it: other programs read these.
JOB = {
    "id",
    "kind",
    "state",
    "reason",
    "sentence",
    "series_uid",
    "stack",
    "route",
    "derived_series_uid",
    "model",
    "version",
    "attempt",
    "queued_at",
    "started_at",
    "finished_at",
    "progress",
    "deliveries",
    "confidence_counts",
}
DELIVERY = {"destination", "state", "sent", "confirmed", "total"}
ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d")


def hold(served: Site, key: str = "k", reason: str = "MISSING_SLICES") -> int:
    """A job that waits for a person; its number."""
    asked = served.rows.ask(key, stack=key)
    served.rows.queue.hold(served.rows.claim(), reason, "Somebody must look.")
    return asked.job_id


def test_a_job_has_the_fields_that_other_programs_read(served: Site) -> None:
    served.rows.ask("k", destinations=("pacs",))
    served.rows.succeed()
    served.rows.deliver()
    (job,) = get(served, "/jobs")
    assert set(job) == JOB
    assert (job["state"], job["series_uid"]) == ("succeeded", SERIES)
    assert all(ISO.fullmatch(job[name]) for name in ("queued_at", "started_at", "finished_at"))
    (delivery,) = job["deliveries"]
    assert set(delivery) == DELIVERY
    assert (delivery["state"], delivery["sent"], delivery["total"]) == ("sent", 2, 2)
    full = get(served, f"/jobs/{job['id']}")
    assert set(full) > JOB
    assert {"attempts", "instances", "parameters", "priority"} <= set(full)


def test_jobs_are_listed_a_page_at_a_time_the_newest_first(served: Site) -> None:
    for number in range(5):
        served.clock.now += 1
        served.rows.ask(f"k{number}", stack=f"s{number}")
    client = served.administrator()
    first = client.get(f"{API}/jobs", params={"limit": 2, "state": ["queued", "held"]})
    assert [job["id"] for job in first.json()] == [5, 4]
    assert first.headers["x-total-count"] == "5"
    second = client.get(first.links["next"]["url"])
    assert [job["id"] for job in second.json()] == [3, 2]
    last = client.get(second.links["next"]["url"])
    assert [job["id"] for job in last.json()] == [1]
    assert "next" not in last.links


FOUND: tuple[tuple[dict[str, str], list[int]], ...] = (
    ({}, [2, 1]),
    ({"state": "held"}, [1]),
    ({"reason": "MISSING_SLICES"}, [1]),
    ({"route": "second"}, [2]),
    ({"route": "other"}, []),
    ({"sender": "SCANNER"}, [2, 1]),
    ({"uid": SERIES}, [2, 1]),
    ({"accession": "a1"}, [2, 1]),
    ({"patient_id": "P2"}, []),
    ({"until": "2001-01-01T00:00:00+01:00"}, []),
    ({"since": "2001-01-01T00:00:00+01:00"}, [2, 1]),
)


def test_a_filter_leaves_what_holds(served: Site) -> None:
    hold(served, "a")
    served.clock.now += 1
    served.rows.ask("b", stack="b", route="second")
    for query, ids in FOUND:
        assert [job["id"] for job in get(served, "/jobs", **query)] == ids, query


@pytest.mark.parametrize(
    "query",
    ["state=lost", "limit=0", "limit=1001", "offset=-1", "uid=../x", "since=soon", "route=%00"],
)
def test_a_filter_that_there_is_not_is_refused(served: Site, query: str) -> None:
    answer = served.administrator().get(f"{API}/jobs?{query}")
    assert answer.status_code == 422
    assert answer.json()["errors"]


def test_a_held_job_is_queued_again_in_the_name_of_who_asked(served: Site) -> None:
    number = hold(served)
    served.user("anna")
    client = served.program(Role.OPERATOR, "night shift")
    answer = client.post(f"{API}/jobs/{number}/requeue")
    assert answer.json()["state"] == "queued"
    assert ("token night shift", "requeue", f"job {number}") in served.audited()
    assert client.post(f"{API}/jobs/{number}/requeue").status_code == 409


def test_a_job_is_cancelled_prioritised_and_delivered_again(served: Site) -> None:
    served.rows.ask("k", destinations=("pacs",))
    assert get(served, "/jobs/1")["priority"] == 5
    post(served, "/jobs/1/priority", json={"priority": 1})
    assert get(served, "/jobs/1")["priority"] == 1
    served.rows.succeed()
    served.rows.deliver()
    again = post(served, "/jobs/1/redeliver", data={"destination": "pacs"})
    assert [each["state"] for each in again["deliveries"]] == ["queued"]
    unknown = post(served, "/jobs/1/redeliver", 422, json={"destination": "moon"})
    assert "pacs" in unknown["detail"]
    served.rows.ask("k2", uids=("3.1", "3.2"))
    assert post(served, "/jobs/2/cancel")["state"] == "cancelled"
    whats = [what for _, what, _ in served.audited()]
    assert whats == ["prioritise", "redeliver", "cancel"]


def test_a_delivery_is_held_back_and_tried_again(served: Site) -> None:
    served.rows.ask("k", destinations=("pacs",))
    served.rows.succeed()
    leased = served.rows.start_delivery()
    served.rows.ledger.hold(leased, "REFUSED", "The destination refuses it.")
    assert post(served, f"/deliveries/{leased.id}/requeue")["state"] == "queued"
    assert post(served, f"/deliveries/{leased.id}/cancel")["state"] == "cancelled"


def test_all_that_is_held_for_a_destination_is_tried_again_together(served: Site) -> None:
    for number, key in enumerate(("k", "l"), start=1):
        served.rows.ask(key, (f"1.{number}",), stack=key, destinations=("pacs", "clinic"))
        served.rows.succeed(f"2.25.{number}")
    for destination in ("pacs", "pacs", "clinic"):
        leased = served.rows.start_delivery(destination)
        served.rows.ledger.hold(leased, "REFUSED", "The destination refuses it.")
    assert post(served, "/destinations/pacs/requeue") == {"name": "pacs", "requeued": 2, "held": 0}
    assert overview.held(served.database) == {"clinic": 1}
    assert [what for _, what, _ in served.audited()].count("requeue") == 2


def test_held_deliveries_under_a_filter_are_sent_again_or_given_up(served: Site) -> None:
    for number, reason in enumerate(("REFUSED_BY_PEER", "GAVE_UP"), start=1):
        served.rows.ask(f"{number}", (f"1.{number}",), stack=f"{number}", destinations=("pacs",))
        served.rows.succeed(f"2.25.{number}")
        served.rows.ledger.hold(served.rows.start_delivery(), reason, "No.")
    again = post(served, "/batch/deliveries/requeue?state=held&reason=GAVE_UP")
    assert again == [{"id": 2, "done": True, "sentence": ""}]
    given_up = post(served, "/batch/deliveries/cancel", json={"ids": [1, 99]})
    assert [each["done"] for each in given_up] == [True, False]
    assert [served.rows.ledger.get(number).state for number in (1, 2)] == ["cancelled", "queued"]
    assert post(served, "/batch/deliveries/requeue?destination=pacs") == []
    post(served, "/batch/deliveries/requeue", status=422)


def test_what_is_held_for_nobody_is_nothing_and_a_name_that_is_none_is_refused(
    served: Site,
) -> None:
    assert post(served, "/destinations/pacs/requeue")["requeued"] == 0
    answer = served.program(Role.OPERATOR).post(f"{API}/destinations/nobody/requeue")
    assert answer.status_code == 422
    assert "there are: pacs" in answer.json()["detail"]


def test_many_jobs_at_once_each_says_what_became_of_it(served: Site) -> None:
    held = [hold(served, "a"), hold(served, "b")]
    answer = post(served, "/batch/requeue", json={"ids": [*held, 99]})
    assert [each["done"] for each in answer] == [True, True, False]
    assert answer[2]["sentence"] == "no job 99"


def test_a_mix_up_of_patients_is_requeued_by_itself_only(served: Site) -> None:
    mixed = hold(served, "a", "PATIENT_MISMATCH")
    (answer,) = post(served, "/batch/requeue", json={"ids": [mixed]})
    assert not answer["done"]
    assert "PATIENT_MISMATCH" in answer["sentence"]
    assert post(served, f"/jobs/{mixed}/requeue")["state"] == "queued"


def test_what_a_filter_finds_is_acted_on_together(served: Site) -> None:
    held = [hold(served, "a"), hold(served, "b")]
    served.rows.ask("c", stack="c")
    answer = post(served, "/batch/cancel?state=held")
    assert [each["id"] for each in answer] == held
    states = [job["state"] for job in get(served, "/jobs")]
    assert sorted(states) == ["cancelled", "cancelled", "queued"]


def test_a_batch_without_ids_or_filter_touches_nothing(served: Site) -> None:
    hold(served)
    answer = post(served, "/batch/cancel", 422)
    assert "filter" in answer["detail"]
    assert served.rows.queue.get(1).state is JobState.HELD


def test_a_series_says_where_it_stands_and_names_no_patient(served: Site) -> None:
    served.rows.ask("k")
    one = get(served, f"/series/{SERIES}")
    assert one["jobs"] == [1]
    assert one["instances"] == 2
    (listed,) = get(served, "/series")
    assert listed["senders"] == ["SCANNER"]
    assert not {"patient_id", "patient_name", "accession"} & (set(one) | set(listed))
    assert served.administrator().get(f"{API}/series/1.9").status_code == 404


def test_a_look_at_patients_is_an_audit_event_without_their_names(served: Site) -> None:
    served.rows.ask("k")
    (found,) = get(served, "/find", accession="A1")
    assert (found["accession"], found["patient_id"]) == ("A1", "P1")
    get(served, "/jobs", patient_id="P1")
    get(served, "/jobs", state="queued")  # of no patient
    events = served.store.audit.list()
    assert [(each.who, each.what) for each in events] == [("token script", "find")] * 2
    assert events[1].detail == {"by": ["accession"], "found": 1}
    assert "P1" not in str(events)


@pytest.mark.parametrize("path", ["/jobs", "/series"])
def test_who_lists_by_study_date_looks_for_a_patient(served: Site, path: str) -> None:
    served.rows.ask("k")
    get(served, path, study_date="20240305")
    (event,) = served.store.audit.list()
    assert event.detail == {"by": ["study_date"], "found": 0}


def test_what_a_batch_finds_by_a_patient_is_a_look_too(served: Site) -> None:
    hold(served)
    assert post(served, "/batch/cancel?patient_id=P2") == []
    (event,) = served.store.audit.list()
    assert (event.what, event.detail) == ("find", {"by": ["patient_id"], "found": 0})


def test_words_for_a_search_may_come_in_the_body(served: Site) -> None:
    hold(served)
    (found,) = post(served, "/find", json={"accession": "A1", "state": ["held"]})
    assert found["patient_id"] == "P1"
    assert post(served, "/find", data={"accession": "A1", "state": "queued"}) == []
    assert post(served, "/find?limit=1", json={"uid": SERIES}) == [found]
    assert post(served, "/find", 422, json={"acession": "A1"})["errors"]
    by = [event.detail["by"] for event in reversed(served.store.audit.list())]
    assert by == [["accession"], ["accession"], []]


def test_an_arriving_series_is_processed_now_or_never(served: Site) -> None:
    served.rows.receive("1.1")
    asked = post(served, f"/series/{SERIES}/process-now", 202)
    assert get(served, f"/wishes/{asked['wish']}")["kind"] == "process_now"
    assert post(served, f"/series/{SERIES}/never")["never_process"] is True
    assert get(served, f"/series/{SERIES}")["never_process"] is True
    gone = served.administrator().delete(f"{API}/series/{SERIES}/never")
    assert gone.json()["never_process"] is False
    assert post(served, "/series/1.9/process-now", 404)["status"] == 404


def test_a_complete_series_cannot_be_hurried(served: Site) -> None:
    served.rows.ask("k")
    answer = post(served, f"/series/{SERIES}/process-now", 409)
    assert "requeue" in answer["detail"]


def process(served: Site, status: int, route: str, uid: str = SERIES) -> dict[str, Any]:
    return post(served, f"/series/{uid}/process-now", status, json={"route": route})


def test_a_person_has_a_route_process_a_series_that_is_complete(served: Site) -> None:
    served.rows.receive("1.1")
    served.rows.queue.complete(served.rows.arrival().id, {}, [])
    asked = process(served, 202, "mr-shadow")
    assert (asked["route"], asked["state"]) == ("mr-shadow", "asked")
    wish = get(served, f"/wishes/{asked['wish']}")
    assert (wish["kind"], wish["subject"], wish["route"]) == ("process_now", SERIES, "mr-shadow")
    assert process(served, 202, "mr-shadow")["wish"] == asked["wish"]  # asked for already
    assert process(served, 202, "ct-slices")["wish"] != asked["wish"]
    event = served.store.audit.list()[-1]
    assert (event.what, event.which, event.detail) == (
        "ask: process now",
        SERIES,
        {"route": "mr-shadow"},
    )


def test_an_unknown_route_or_series_and_removed_files_are_said_at_once(served: Site) -> None:
    served.rows.receive("1.1")
    served.rows.queue.complete(served.rows.arrival().id, {}, [])
    assert "there are: ct-slices, mr-shadow" in process(served, 422, "nowhere")["detail"]
    assert process(served, 404, "ct-slices", "1.9")["status"] == 404
    served.rows.purge_all()
    assert "no longer kept" in process(served, 409, "ct-slices")["detail"]
    assert control.newest(served.database) == ()


def test_a_viewer_may_not_have_a_series_processed(served: Site) -> None:
    served.rows.receive("1.1")
    path, wanted = f"{API}/series/{SERIES}/process-now", {"route": "ct-slices"}
    for name, role, status in (("vera", Role.VIEWER, 403), ("olga", Role.OPERATOR, 202)):
        served.user(name, role)
        assert served.logged_in(name).act("POST", path, json=wanted).status_code == status


def test_a_series_of_two_peers_names_both(served: Site) -> None:
    served.rows.receive("1.1")
    served.rows.receive("1.1", peer=Peer("PACS", "MIDSLICE"))
    (listed,) = get(served, "/series")
    assert sorted(listed["senders"]) == ["PACS", "SCANNER"]


def test_the_ledger_says_of_each_instance_what_was_answered_and_proved(served: Site) -> None:
    rows = served.rows
    rows.ask("k", destinations=("pacs",))
    rows.succeed()
    leased = rows.start_delivery()
    first, second = rows.ledger.unsent(leased)
    rows.ledger.answered(leased, first.id, 0xB007, stored=True, comment="=cmd|'/c calc'!A1")
    rows.ledger.answered(leased, second.id, 0x0000, stored=True)
    rows.ledger.sent(leased, is_asked_for_proof=True)
    asked = rows.commitments.claim("pacs", "asker")
    assert asked is not None
    rows.commitments.begin(asked, "2.25.7")
    report = CommitmentReport("2.25.7", (Reference(CT, second.instance_uid),), {})
    rows.commitments.reported(report, lambda _: NextStep("ask again", "One lacks.", 2e9))
    one, two = get(served, "/jobs/1/ledger")
    assert (one["status"], one["stored"], one["confirmed"]) == ("B007", True, False)
    assert (two["status"], two["confirmed"], two["evidence"]) == ("0000", True, "commitment")
    assert ISO.fullmatch(two["confirmed_at"])
    (delivery,) = get(served, "/jobs/1")["deliveries"]
    assert (delivery["sent"], delivery["confirmed"]) == (2, 1)
    assert delivery["commitment"]["sentence"] == "One lacks."
    answer = served.administrator().get(f"{API}/jobs/1/ledger.csv")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    table = list(csv.DictReader(io.StringIO(answer.text)))
    assert [row["confirmed"] for row in table] == ["0", "1"]
    assert table[0]["comment"].startswith("'=")  # no formula
    assert table[0].keys() == one.keys()


def test_a_job_without_deliveries_has_an_empty_ledger_and_none_is_no_job(served: Site) -> None:
    served.rows.ask("k")
    assert get(served, "/jobs/1/ledger") == []
    assert served.administrator().get(f"{API}/jobs/2/ledger").status_code == 404
    assert served.administrator().get(f"{API}/jobs/2/ledger.csv").status_code == 404
