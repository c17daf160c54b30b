"""The rule tester: what the routes say to files and series, found without touching a pixel here."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom import Dataset

from inference.request import ModelSpec
from node.config import Condition, Route
from node.web import middleware, rule_tester
from node.web.rule_tester import Trial, tried
from storage.records import Role
from tests import mr_series, phantoms, series
from tests.phantoms import Series
from tests.unit.web.site import Client, Site

EXPLAIN = "/api/v1/rules/explain"
DRY_RUN = "/api/v1/rules/dry-run"


def upload(*paths: Path) -> list[tuple[str, tuple[str, bytes]]]:
    return [("file", (path.name, path.read_bytes())) for path in paths]


def ask(served: Site, *paths: Path, routes: tuple[str, ...] = (), **given: str) -> Trial:
    wanted = [r for r in served.settings.routes if not routes or r.name in routes]
    names = {"called_ae": "MIDSLICE", "calling_ae": "CT1", "node_ae": "MIDSLICE"} | given
    return Trial(paths=paths, routes=tuple(wanted), **names)


def test_files_are_told_which_routes_take_them_and_why_others_do_not(served: Site) -> None:
    answer = served.administrator().post(EXPLAIN, files=upload(*series.thick(4)))
    assert answer.status_code == 200, answer.text
    (stack,) = answer.json()["stacks"]
    assert stack["instances"] == 4
    assert stack["gap_mm"] == pytest.approx(5.0)
    assert stack["state"] == "would be processed"
    said = {route["route"]: (route["matches"], route["sentence"]) for route in stack["routes"]}
    assert said["ct-slices"][0] is True
    assert said["mr-shadow"] == (False, "Modality is CT, but must be MR.")
    (event,) = served.store.audit.list()
    assert (event.what, event.which, event.detail) == ("try rules", "files", {"files": 4})
    assert list(served.store.files.path("uploads").iterdir()) == []


@pytest.mark.parametrize(
    ("role", "status"), [(None, 413), (Role.VIEWER, 413), (Role.OPERATOR, 422)]
)
def test_large_files_are_read_from_those_only_who_may_send_them(
    served: Site, role: Role | None, status: int
) -> None:
    served.user("anna")
    client = served.client() if role is None else served.program(role)
    large = [("file", ("large.dcm", bytes(middleware.MOST_BYTES + 1)))]
    many = [*large, *[("file", (f"{n}.dcm", b"x")) for n in range(middleware.MOST_FILES)]]
    assert client.post(EXPLAIN, files=many).status_code == status
    assert client.post(EXPLAIN, files=upload(*series.thick(1))).status_code in (200, 401, 403)


def test_a_whole_chest_is_taken_and_who_sends_more_is_told_both_bounds(
    served: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def files(count: int, size: int = 9) -> list[tuple[str, tuple[str, bytes]]]:
        return [("file", (f"{number}.dcm", bytes(size))) for number in range(count)]

    chest = served.administrator().post(EXPLAIN, files=files(120))
    assert chest.json()["set_aside"][0]["instances"] == 120
    answer = served.administrator().post(EXPLAIN, files=files(501))
    assert answer.status_code == 422
    assert answer.json()["detail"] == "These are 501 files: at most 500 files, 64 MiB together."
    monkeypatch.setattr(middleware, "MOST_FILE_BYTES", 2 * middleware.MOST_BYTES)
    answer = served.administrator().post(EXPLAIN, files=files(5, middleware.MOST_BYTES))
    assert answer.status_code == 413
    assert answer.json()["detail"] == (
        "These files are too large: at most 500 files, 64 MiB together."
    )


def test_an_operator_has_a_page_for_it_that_shows_no_configuration(served: Site) -> None:
    served.user("ada")
    for role, status in ((Role.OPERATOR, 200), (Role.VIEWER, 403)):
        served.user(role, role)
        person = served.logged_in(role)
        person.headers["Accept"] = "text/html"
        answer = person.get("/rules?series_uid=1.2.3")
        assert answer.status_code == status
        assert ('href="/rules"' in person.get("/").text) == (status == 200)
        assert person.act("POST", "/rules/try").status_code == (422 if status == 200 else 403)
        assert person.get("/configuration").status_code == 403
        if status == 200:
            assert 'value="1.2.3"' in answer.text
            assert "4242" not in answer.text  # the port of a destination


def test_a_single_file_is_asked_for_all_but_its_gap(served: Site) -> None:
    (stack,) = tried(ask(served, *series.thick(1))).stacks
    assert stack.gap_mm is None
    assert stack.routes[0].matches
    assert stack.routes[0].sentence.endswith("so gap_mm cannot be checked.")
    assert (stack.verdict.state, stack.verdict.reason) == ("refused", "TOO_FEW_SLICES")


def test_a_hole_in_the_series_is_found_from_headers_alone(served: Site) -> None:
    paths = sorted(series.thick(8))
    (stack,) = tried(ask(served, *paths[:3], *paths[4:])).stacks
    assert (stack.verdict.state, stack.verdict.reason, stack.missing) == (
        "held",
        "MISSING_SLICES",
        1,
    )


def test_who_brings_it_and_where_to_counts(served: Site) -> None:
    (stack,) = tried(ask(served, *series.thick(4), called_ae="OTHER")).stacks
    assert stack.verdict.state == "no route"
    assert (
        stack.routes[0].sentence
        == "It was sent to OTHER; the route takes only what is sent to MIDSLICE."
    )


def test_who_hides_patients_is_not_told_what_the_attributes_of_one_are(served: Site) -> None:
    match = {"PatientID": Condition.model_validate("NOBODY")}
    (route,) = (r for r in served.settings.routes if r.name == "ct-slices")
    about = replace(
        ask(served, *series.thick(4)), routes=(route.model_copy(update={"match": match}),)
    )
    found = tried(about)
    (shown,), (hidden,) = found.stacks[0].routes, rule_tester.masked(found).stacks[0].routes
    assert shown.sentence.startswith("PatientID is ")
    assert (
        hidden.sentence
        == "Its condition on PatientID does not hold; the value in the series is hidden."
    )
    other = tried(ask(served, *series.thick(4), routes=("mr-shadow",)))
    assert rule_tester.masked(other) == other  # a modality is nobody's secret


def test_what_is_no_dicom_is_set_aside_with_its_reason(served: Site, tmp_path: Path) -> None:
    junk = tmp_path / "letter.txt"
    junk.write_bytes(b"Dear colleague")
    found = tried(ask(served, junk, *series.thick(4)))
    assert len(found.stacks) == 1
    ((count, why),) = found.set_aside
    assert count == 1
    assert "not a DICOM Part 10 file" in why


def test_a_received_series_is_tried_as_it_came(served: Site) -> None:
    rows = served.rows
    for number, path in enumerate(series.thick(4)):
        rows.receive(f"1.{number}")
        kept = rows.archive.instances(rows.arrival().id)[0]
        assert kept.path is not None
        rows.files.path(kept.path).write_bytes(path.read_bytes())
    answer = served.administrator().post(DRY_RUN, json={"series_uid": "1.2.3.4"})
    assert answer.status_code == 200, answer.text
    (stack,) = answer.json()["stacks"]
    assert (stack["instances"], stack["state"]) == (4, "would be processed")
    assert ("token script", "try rules", "series 1.2.3.4") in served.audited()


def test_an_unknown_series_cannot_be_tried(served: Site) -> None:
    answer = served.administrator().post(DRY_RUN, data={"series_uid": "1.9"})
    assert answer.status_code == 404


def test_a_viewer_tries_nothing(served: Site) -> None:
    served.user("anna")
    answer = served.program(Role.VIEWER).post(EXPLAIN, files=upload(*series.thick(1)))
    assert answer.status_code == 403


def test_the_page_gives_every_objection_of_every_route_also_without_a_sender(
    served: Site, person: Client
) -> None:
    csrf = re.search(r'"X-CSRF-Token": "([^"]+)"', person.get("/rules").text)
    assert csrf is not None
    data = {"csrf": csrf[1], "called_ae": "OTHER", "calling_ae": ""}
    answer = person.post("/rules/try", data=data, files=upload(*series.thick(4)))
    assert answer.status_code == 200, answer.text
    said = re.findall(r"<div>([^<]*)</div>", answer.text)
    elsewhere = "It was sent to OTHER; the route takes only what is sent to MIDSLICE."
    assert said == [elsewhere, elsewhere, "Modality is CT, but must be MR."]
    assert "No route takes it: it would be kept, but not processed." in answer.text


def test_each_route_that_takes_a_stack_has_a_verdict_of_its_own(served: Site) -> None:
    (route, _) = served.settings.routes
    leaving = route.model_copy(update={"name": "leaving", "across_missing": "leave"})
    paths = sorted(series.thick(8))
    question = replace(ask(served, *paths[:3], *paths[4:]), routes=(route, leaving))
    (stack,) = tried(question).stacks
    verdicts = [(verdict.route, verdict.state, verdict.reason) for verdict in stack.verdicts]
    assert verdicts == [
        ("ct-slices", "held", "MISSING_SLICES"),
        ("leaving", "would be processed", ""),
    ]
    assert stack.verdict == stack.verdicts[0]


def test_a_route_that_holds_undersampled_series_says_so_before(served: Site) -> None:
    (route, _) = served.settings.routes
    holding = route.model_copy(update={"name": "holding", "undersampled": "hold"})
    question = replace(ask(served, *series.thick(6)), routes=(route, holding))
    thin = replace(question, paths=tuple(_thinner(question.paths, served.settings.folder)))
    states = [
        [(v.state, v.reason) for v in tried(it).stacks[0].verdicts] for it in (question, thin)
    ]
    processed = ("would be processed", "")
    assert states == [[processed, processed], [processed, ("held", "UNDERSAMPLED")]]


def _thinner(paths: Sequence[Path], folder: Path) -> list[Path]:
    def change(made: Dataset) -> None:
        made.SliceThickness = "1.25"

    return series.changed(list(paths), folder / "thinner", change)


def test_slices_that_lie_close_enough_have_nothing_to_do(served: Site) -> None:
    (route, _) = served.settings.routes
    wide = route.model_copy(update={"target_spacing_mm": 5.0})
    question = replace(ask(served, *series.thick(6)), routes=(wide,))
    assert tried(question).stacks[0].verdict.reason == "NOTHING_TO_DO"


@pytest.mark.parametrize(
    ("slices", "modality", "reason"),
    [(12, "MR", "TOO_FEW_SLICES"), (60, "MR", ""), (60, "CT", "NOT_AN_MR_SLICE")],
)
def test_a_route_to_a_model_of_masks_is_tried_by_the_rules_of_masks(
    served: Site, tmp_path: Path, slices: int, modality: str, reason: str
) -> None:
    thin = Series(slices=slices, spacing_mm=2.0, thickness_mm=2.0, rows=8, columns=8)
    write = mr_series.write if modality == "MR" else phantoms.write
    brain = Route(name="brain", model="brain", factor=None, destinations=())
    question = replace(ask(served, *write(tmp_path, series=thin)), routes=(brain,))
    assert tried(question).stacks[0].verdict.reason == reason


def test_what_a_model_of_scores_says_of_headers_is_told_before_a_job_is_made(
    served: Site, tmp_path: Path
) -> None:
    thin = Series(slices=40, spacing_mm=2.5, thickness_mm=2.5, rows=8, columns=8)
    scores = Route(name="scores", model="haemorrhage", factor=None, destinations=())
    question = replace(ask(served, *phantoms.write(tmp_path, thin)), routes=(scores,))
    verdict = tried(question).stacks[0].verdict
    assert (verdict.state, verdict.reason) == ("refused", "OUT_OF_SCOPE")
    assert verdict.sentence == "BodyPartExamined is 'CHEST': only heads are scored."


def test_a_model_that_cannot_be_loaded_is_told_with_the_verdict(
    served: Site, tmp_path: Path
) -> None:
    spec = ModelSpec("ours", "nowhere.net:Net", produces="mask")
    ours = Route(name="ours", model="ours", factor=None, destinations=())
    question = replace(ask(served, *mr_series.write(tmp_path)), routes=(ours,), models=(spec,))
    verdict = tried(question).stacks[0].verdict
    assert verdict.state == "would be processed"
    assert verdict.sentence.endswith("cannot be loaded: nowhere.net:Net: No module named 'nowhere'")


def test_a_stack_is_shown_with_what_its_words_say(served: Site) -> None:
    answer = served.administrator().post(EXPLAIN, files=upload(*series.thick(4)))
    (stack,) = answer.json()["stacks"]
    read = {key: stack["attributes"][key] for key in ("contrast", "kernel", "body_part")}
    assert read == {"contrast": "yes", "kernel": "soft", "body_part": "chest"}
