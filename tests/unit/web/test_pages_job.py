"""The page of a job: its slices and pictures, what it says, and the events of who views it."""

import html
import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from inference.previews import INDEX
from inference.request import PREVIEWS
from node.config import Commitment
from node.config.reading import to_values
from node.web import state
from node.web.pages import time_line
from node.web.state import RecentViews
from storage import records
from storage.commitment_scu import NextStep
from storage.queries import overview
from storage.records import CommitmentReport, Reference, Role
from storage.site import control
from tests.unit.storage.stored import CT, FIRST, SECOND
from tests.unit.web.site import NODE, Client, Site


def with_result(served: Site) -> int:
    """A job with a derived series and one picture; its id."""
    served.rows.ask("k")
    return finished(served)


def finished(
    served: Site,
    record: Mapping[str, object] | None = None,
    left: Sequence[int] = (),
    series_uid: str = "2.25.1",
) -> int:
    """The next job is done, with one picture; its id."""
    job = served.rows.claim()
    derived = replace(served.rows.derive(job, series_uid), record=record or {})
    served.rows.queue.succeed(job, derived)
    left = list(left)
    folder = (
        served.rows.files.path(served.rows.files.derived_folder(job.id, job.attempt)) / PREVIEWS
    )
    folder.mkdir()
    slices = [
        {
            "at_mm": 2.5 * at - 100.0,
            "generated": at == 1,
            "number": 3 - at,
            "received_number": None if at == 1 else 12 - at,
            "expected_error_hu": None,
        }
        for at in range(3)
    ]
    told = {"slices": slices, "levels_hu": [0.0] * 256, "tilt_degrees": 0.0, "missing": []}
    told |= {"left": left, "axis": "z", "planes": {"column": "sagittal", "row": "coronal"}}
    told |= {"first_is_up": False, "hatched": bool(left), "rows": 8, "columns": 8}
    (folder / INDEX).write_text(json.dumps(told))
    (folder / "00000.png").write_bytes(b"\x89PNG one")
    return job.id


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


def asked_for_proof(served: Site) -> records.Commitment:
    """A result of two instances is stored at a destination that is asked to prove it."""
    (pacs,) = served.settings.destinations
    asked = Commitment.model_validate({}, context={"folder": Path()})
    asking = pacs.model_copy(update={"commitment": asked})
    settings = served.settings.model_copy(update={"destinations": (asking,)})
    control.applied(served.database, served.clock(), NODE, to_values(settings))
    rows = served.rows
    rows.ask("k", destinations=("pacs",))
    rows.succeed()
    rows.deliver("pacs", proof=True)
    leased = rows.commitments.claim("pacs", "asker")
    assert leased is not None
    rows.commitments.begin(leased, "2.25.7")
    return leased


def test_what_waits_for_proof_says_how_long_and_what_is_proved(
    served: Site, person: Client
) -> None:
    leased = asked_for_proof(served)
    rows = served.rows
    rows.commitments.accepted(leased, "2.25.7", served.clock.now + 86_400)
    for path in ("/jobs/1", "/sending"):
        text = text_of(person.get(path).text)
        assert "0 of 2 A report on storage commitment is awaited until " in text
    assert "never confirmed" not in person.get("/jobs/1").text
    assert "Waiting for confirmation" in person.get("/").text
    references = tuple(Reference(CT, f"2.25.1.{number}") for number in range(2))
    rows.commitments.reported(CommitmentReport("2.25.7", references, {}), never_asked)
    assert "confirmed 2 of 2" in text_of(person.get("/jobs/1").text)
    assert "confirmed by pacs" in text_of(person.get("/").text)
    assert "Waiting for confirmation" not in person.get("/").text


def never_asked(_: object) -> NextStep:
    raise AssertionError("everything is proved")


def test_what_nothing_proves_is_said_to_be_so(served: Site, person: Client) -> None:
    leased = asked_for_proof(served)
    served.rows.commitments.unproved(leased, "No report came within 24 hours.")
    text = text_of(person.get("/jobs/1").text)
    assert "0 of 2 Not confirmed. No report came within 24 hours." in text
    assert "Waiting for confirmation" not in person.get("/").text


ASIDE = {
    "instances": 2,
    "numbers": "41, 42",
    "reason": "NOT_A_CT_SLICE",
    "why": "The image matches no other of its series (other Pixel Spacing).",
}


def test_a_job_page_names_what_was_set_aside_and_all_who_sent_the_series(
    served: Site, person: Client
) -> None:
    rows = served.rows
    rows.receive("1.1", peer=FIRST)
    rows.complete("k", peer=FIRST, record={"set_aside": [ASIDE]})
    rows.ask_as(SECOND, "k", "pacs")
    text = person.get("/jobs/1").text
    assert "2 instances (image 41, 42): The image matches no other of its series" in text
    assert "<dt>Senders</dt><dd>WS1, WS2</dd>" in text
    job = person.get("/api/v1/jobs/1").json()
    assert (job["senders"], job["set_aside"]) == (["WS1", "WS2"], [ASIDE])


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
    for file in (folder / PREVIEWS).iterdir():
        file.unlink()
    assert "There are no previews of this series." in person.get(f"/jobs/{job}").text
    assert person.get(f"/jobs/{job}/pictures/00000.png").status_code == 404


def test_times_and_gaps_of_a_job_without_pictures_are_drawn_from_its_record(
    served: Site, person: Client
) -> None:
    served.rows.ask("k")
    job = served.rows.claim()
    gaps = [{"gap_mm": 5.0, "factor": 2}, {"gap_mm": 5.0, "factor": 2}]
    received = [{"number": 9 - at, "at_mm": -100.0 - 5.0 * at} for at in range(3)]
    trust = [
        {"at_mm": -102.5, "error_hu": 9.0, "confidence": 0.9, "word": "sure"},
        {"at_mm": -107.5, "error_hu": 90.0, "confidence": 0.05, "word": "unsure"},
    ]
    counts = {"sure": 1, "fair": 0, "unsure": 1, "large_anatomy_only": 0}
    record = {"axis": "z", "gaps": gaps, "received_slices": received, "confidence": trust}
    record["confidence_counts"] = counts
    served.rows.queue.hold(job, "LOW_CONFIDENCE", "The model is not sure.", record)
    text = person.get(f"/jobs/{job.id}").text
    assert "3 received" in text
    assert 'class="unsure"' in text
    assert 'class="sure"' in text
    assert "<dt>Confidence</dt><dd>1 sure, 1 unsure</dd>" in text
    assert ">-110</text>" in text  # the ruler has positions of the patient
    assert "generated: 1 sure, 1 unsure" in person.get("/").text
    assert "generated: 1 sure, 1 unsure" in person.get(f"/series/{job.series_uid}").text


def test_slices_have_the_numbers_and_positions_of_the_pacs(served: Site, person: Client) -> None:
    entry = {"number": 2, "at_mm": -97.501, "error_hu": 40.0, "confidence": 0.7, "how": "dis"}
    served.rows.ask("k")
    job = finished(served, {"confidence": [{**entry, "word": "large_anatomy_only"}]})
    text = person.get(f"/jobs/{job}").text
    (told,) = re.findall(r'data-slices="([^"]+)"', text)
    slices = json.loads(html.unescape(told))
    assert [each["title"] for each in slices] == [
        "Image 3 (received 12)",
        "Image 2",
        "Image 1 (received 10)",
    ]
    assert [each["at"] for each in slices] == ["z -100.00 mm", "z -97.50 mm", "z -95.00 mm"]
    assert [each["text"] for each in slices] == [
        "Image 3 of 3 in the derived series, z -100.00 mm, received as image 12",
        "Image 2 of 3 in the derived series, z -97.50 mm, generated by optical flow, not acquired, "
        "expected error 40 HU, confidence 0.70, large anatomy only",
        "Image 1 of 3 in the derived series, z -95.00 mm, received as image 10",
    ]
    assert "1 large anatomy only" in text


def test_every_picture_with_generated_slices_says_so(served: Site, person: Client) -> None:
    text = person.get(f"/jobs/{with_result(served)}").text
    assert text.count("1 of 3 slices generated, not acquired") == 2  # sagittal and coronal
    assert text.count('class="edge"') == 2
    assert "neither acquired nor generated" not in text


def test_a_gap_that_was_left_is_hatched_in_the_strip(served: Site, person: Client) -> None:
    served.rows.ask("k")
    text = person.get(f"/jobs/{finished(served, left=[0])}").text
    assert "neither acquired nor generated" in text
    assert 'class="left"' in text


def test_an_undersampled_result_is_called_so(served: Site, person: Client) -> None:
    served.rows.ask("k")
    coarse = {"gaps": 3, "filled": 4, "gap_mm": 10.0, "thickness_mm": 2.5, "unseen": 0.75}
    counts = {"sure": 4, "fair": 0, "unsure": 0, "large_anatomy_only": 12}
    job = finished(served, {"undersampled": coarse, "confidence_counts": counts})
    text = person.get(f"/jobs/{job}").text
    assert '<span class="state state-undersampled">undersampled</span>' in text
    assert "3 of 4 filled gaps are over twice as wide as the slices are thick" in text
    assert "up to 10 mm between slices 2.5 mm thick" in text
    assert "Up to 75 % of the body between them was never seen" in text.replace("\u202f", " ")
    assert "generated: 4 sure, 12 large anatomy only" in person.get("/").text


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
    views = RecentViews(served.store.audit)
    for now in (100.002, 100.001, 100.003):
        views.record("ada", "view pictures", "job 1", now)
    assert [which for _, _, which in served.audited()] == ["job 1"]


def test_views_are_not_remembered_without_end(
    served: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "MOST_VIEWS", 2)
    kept = RecentViews(served.store.audit)
    for job_id in (1, 2, 3, 3, 1):
        kept.record("ada", "view pictures", f"job {job_id}", 0.0)
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


def test_what_a_destination_answered_is_said_in_words(served: Site) -> None:
    person = served.person()
    served.rows.ask("k")
    served.rows.succeed()
    leased = served.rows.start_delivery("pacs")
    said = {
        0x0000: "<code>0000</code> stored<",
        0x0122: "<code>0122</code> SOP Class not supported<",
        0xA701: "<code>A701</code> out of resources<",
        0xB000: "<code>B000</code> data elements coerced, stored<",
    }
    (one, _) = served.rows.ledger.unsent(leased)
    for status, words in said.items():
        is_stored = status in (0x0000, 0xB000)
        served.rows.ledger.answered(leased, one.id, status, stored=is_stored)
        assert words in person.get("/jobs/1").text


def told(served: Site, job: int) -> list[tuple[str, float]]:
    """The pieces of the time line, with their seconds."""
    detail = overview.job_detail(served.database, job)
    steps = time_line.steps_of(detail, served.clock())
    ends = [step.at + step.seconds for step in steps if step.delivery is None]
    begins = [step.at for step in steps if step.delivery is None]
    assert begins[1:] == pytest.approx(ends[:-1])  # nothing is left out, nothing told twice
    return [(step.name, round(step.seconds)) for step in steps]


def test_the_time_line_says_what_was_waited_for_what_worked_and_what_was_held(
    served: Site, person: Client
) -> None:
    rows, clock = served.rows, served.clock
    rows.receive("1.1")
    clock.now += 30
    job = rows.complete("k").job_id
    clock.now += 5
    first = rows.claim()
    clock.now += 12
    rows.queue.hold(first, "LOW_CONFIDENCE", "Not sure.")
    clock.now += 7200
    so_far = [("Received", 0), ("Waited for more", 30), ("In the queue", 5), ("Processed", 12)]
    assert told(served, job) == [*so_far, ("Held, waits for a person", 7200)]
    assert "7200" not in person.get(f"/jobs/{job}").text
    rows.requeue(job, who="anna")
    clock.now += 40
    held = [*so_far, ("Waited for a person", 7200)]
    assert told(served, job) == [*held, ("In the queue", 40)]
    again = rows.claim()
    clock.now += 9
    rows.queue.succeed(again, rows.derive(again))
    clock.now += 1000
    done = [*held, ("In the queue", 40), ("Processed", 9)]
    assert told(served, job) == [*done, ("Waits for pacs", 1000)]


def test_a_delivery_waits_is_sent_and_is_held_each_for_as_long_as_it_was(served: Site) -> None:
    rows, clock = served.rows, served.clock
    rows.ask("k", destinations=("pacs",))
    job = rows.succeed().id
    clock.now += 600
    leased = rows.start_delivery("pacs")
    clock.now += 20
    rows.ledger.hold(leased, "REFUSED_BY_PEER", "No.")
    clock.now += 3600
    assert told(served, job)[-3:] == [
        ("Waited for pacs", 600),
        ("Tried to send to pacs", 20),
        ("Held, not delivered to pacs", 3600),
    ]


def test_a_job_that_was_cancelled_in_the_queue_or_when_held_says_which(served: Site) -> None:
    rows, clock = served.rows, served.clock
    queued, held = rows.ask("k").job_id, rows.ask("l", ("1.7",), stack="l").job_id
    rows.queue.hold(rows.claim(), "LOW_CONFIDENCE", "Not sure.")
    clock.now += 100
    for job in queued, held:
        rows.queue.cancel(job, who="anna")
    states = {told(served, job)[-1] for job in (queued, held)}
    assert states == {("In the queue", 100), ("Waited for a person", 100)}


SCORES = {
    "series": 0.83,
    "series_threshold": 0.52,
    "slices": [0.1, 0.91, 0.3],
    "slice_threshold": 0.3,
}
FINDING = {
    "number": 1,
    "label": "Nodule 1",
    "score": 0.874,
    "slice": 2,
    "instance_number": 10,
    "at_mm": -95.0,
    "slices": [1, 2],
    "box": [10, 20, 31, 41],
    "centre_mm": [1.0, 2.0, -95.0],
    "diameter_mm": 7.4,
    "long_axis_mm": 8.1,
    "short_axis_mm": 6.7,
    "volume_mm3": 212.3,
    "site": "left",
}
FINDINGS = {"finding": "Nodule", "findings": [FINDING], "findings_cut": 2, "threshold": 0.5}
# What a page of scores and findings never says.
DIAGNOSES = ("haemorrhage found", "bleeding", "no haemorrhage", "no nodule", "normal", "negative")


def text_of(page: str) -> str:
    """What a person reads, on one line."""
    return " ".join(re.sub(r"<[^>]+>", " ", html.unescape(page)).split())


def test_scores_are_drawn_and_named_with_their_thresholds(served: Site, person: Client) -> None:
    served.rows.ask("k")
    page = person.get(f"/jobs/{finished(served, {'scores': SCORES})}").text
    text = text_of(page)
    assert "0.83 Score of the series, above the threshold of 0.52" in text
    assert "2 of 3 slices above the threshold of slices: slice 2 0.91 image 10 0.30" in text
    assert "a score below it rules nothing out" in text
    assert "series 0.83, above the threshold of 0.52; 2 of 3 slices above theirs" in text
    assert [word for word in DIAGNOSES if word in text.lower()] == []
    assert re.findall(r'data-slice="(\d)"', page) == ["1", "2"]
    assert 'data-window="40 80" aria-pressed="false"' in page.split("Soft tissue")[0]  # Brain first


def test_the_slice_that_is_shown_first_is_the_strongest(served: Site, person: Client) -> None:
    served.rows.ask("k")
    page = person.get(f"/jobs/{finished(served, FINDINGS)}").text
    assert 'id="slice" min="0" max="2" value="2"' in page
    served.rows.ask("l")
    page = person.get(f"/jobs/{finished(served, {'scores': SCORES}, series_uid='2.25.2')}").text
    assert 'id="slice" min="0" max="2" value="1"' in page


def test_a_series_below_its_threshold_is_not_said_to_be_free_of_anything(
    served: Site, person: Client
) -> None:
    served.rows.ask("k")
    low = {**SCORES, "series": 0.2, "slices": [0.1, 0.2, 0.1]}
    text = text_of(person.get(f"/jobs/{finished(served, {'scores': low})}").text)
    assert "0.20 Score of the series, below the threshold of 0.52" in text
    assert "No slice scores above the threshold of slices." in text
    assert "rules nothing out" in text
    assert [word for word in DIAGNOSES if word in text.lower()] == []


def test_findings_are_a_list_with_slice_box_sizes_side_and_score(
    served: Site, person: Client
) -> None:
    served.rows.ask("k")
    page = person.get(f"/jobs/{finished(served, FINDINGS)}").text
    text = text_of(page)
    row = "1 image 10 0.87 7.4 mm 8.1 × 6.7 mm 212 mm³ left columns 11 to 31, rows 21 to 41"
    assert row in text
    assert "Nodule: findings 1 from a score of 0.50 on" in text
    assert "2 further findings of lower scores were left out." in text
    assert "1 finding at the threshold of 0.50" in text
    assert 'data-slice="2"' in page
    assert [word for word in DIAGNOSES if word in text.lower()] == []


def test_nothing_found_is_never_said_to_be_nothing_there(served: Site, person: Client) -> None:
    served.rows.ask("k")
    none = {**FINDINGS, "findings": [], "findings_cut": 0}
    text = text_of(person.get(f"/jobs/{finished(served, none)}").text)
    assert "Nothing reached the threshold. That rules nothing out" in text
    assert "no finding at the threshold of 0.50" in text
    assert [word for word in DIAGNOSES if word in text.lower()] == []


def test_findings_of_a_held_job_are_shown_too(served: Site, person: Client) -> None:
    served.rows.ask("k")
    job = served.rows.claim()
    served.rows.queue.hold(job, "LOW_CONFIDENCE", "One lung is small.", FINDINGS)
    text = text_of(person.get(f"/jobs/{job.id}").text)
    assert "1 slice 3 0.87 7.4 mm" in text


def test_each_series_of_a_result_is_listed_with_its_delivery(served: Site, person: Client) -> None:
    rows = served.rows
    rows.ask("k", destinations=("pacs",))
    job = rows.claim()
    rows.queue.succeed(job, rows.derive(job, count=3, supplements=1))
    leased = rows.start_delivery("pacs")
    first, second, beside = rows.ledger.unsent(leased)
    for instance in (first, second):
        rows.ledger.answered(leased, instance.id, 0x0000, stored=True)
    assert "Presentation state (GSPS) 1 pacs: not yet stored" in text_of(
        person.get(f"/jobs/{job.id}").text
    )
    rows.ledger.answered(leased, beside.id, 0x0122, stored=False)
    text = text_of(person.get(f"/jobs/{job.id}").text)
    assert "Images 2 pacs: stored 2.25.1 " in text
    assert "Presentation state (GSPS) 1 pacs: not taken, 0122" in text


def test_lists_say_which_model_made_what(served: Site, person: Client) -> None:
    served.rows.ask("k")
    job = finished(served)
    model = person.get(f"/api/v1/jobs/{job}").json()["model"]
    for path in ("/", "/find"):
        assert f", by {model}" in text_of(person.get(path).text)


def test_a_kind_that_a_destination_is_not_to_have_is_said_to_be_left_out(
    served: Site, person: Client
) -> None:
    (pacs,) = served.settings.destinations
    without = pacs.model_copy(update={"leave_out": ("presentation state",)})
    settings = served.settings.model_copy(update={"destinations": (without,)})
    control.applied(served.database, served.clock(), NODE, to_values(settings))
    rows = served.rows
    rows.ask("k", destinations=("pacs",))
    job = rows.claim()
    rows.queue.succeed(job, rows.derive(job, count=3, supplements=1))
    text = text_of(person.get(f"/jobs/{job.id}").text)
    assert "Images 2 pacs: not yet stored" in text
    assert "Presentation state (GSPS) 1 pacs: left out" in text


def test_a_job_and_its_series_lead_to_the_viewer_that_is_configured_and_to_none_else(
    served: Site, person: Client
) -> None:
    with_result(served)
    assert "open-in-viewer" not in person.get("/jobs/1").text
    address = "https://viewer.example.org/viewer?StudyInstanceUIDs={study_uid}&s={series_uid}"
    web = served.settings.web.model_copy(update={"viewer_url": address})
    settings = served.settings.model_copy(update={"web": web})
    control.applied(served.database, served.clock(), NODE, to_values(settings))
    job = served.rows.queue.get(1)
    wanted = f"viewer?StudyInstanceUIDs={job.study_uid}&amp;s={{}}"
    assert wanted.format(job.derived_series_uid) in person.get("/jobs/1").text
    assert wanted.format(job.series_uid) in person.get(f"/series/{job.series_uid}").text
