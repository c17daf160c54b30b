"""What holds for every answer: headers, bounds, problem documents, and errors that say nothing."""

import http.client
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from node.web.middleware import CONTENT_SECURITY_POLICY, HEADERS
from storage.errors import Busy, NoRoom, StorageError
from storage.records import Role
from tests.unit.web.site import Client, Site, site

MIB = 2**20


def ask(method: str, path: str, **given: object) -> Callable[[Client], httpx.Response]:
    return lambda client: client.request(method, path, **given)  # type: ignore[arg-type]


ANSWERS = {
    "an answer": (200, ask("GET", "/healthz")),
    "the metrics": (200, ask("GET", "/metrics")),
    "the description of the API": (200, ask("GET", "/api/openapi.json")),
    "a page": (200, ask("GET", "/login", headers={"Accept": "text/html"})),
    "no path": (404, ask("GET", "/nothing")),
    "no path, for a person": (404, ask("GET", "/nothing", headers={"Accept": "text/html"})),
    "no row": (404, ask("GET", "/api/v1/jobs/1")),
    "no method": (405, ask("PUT", "/api/v1/jobs/1")),
    "no value": (422, ask("GET", "/api/v1/jobs?limit=x")),
    "no proof": (401, ask("DELETE", "/api/v1/users/nobody", headers={"Authorization": "a=b"})),
    "no document": (422, ask("POST", "/api/v1/jobs/1/priority", content=b"{")),
    "too much": (413, ask("POST", "/api/v1/jobs/1/priority", content=b"x" * (MIB + 1))),
    "an error": (500, ask("GET", "/broken")),
}


BUSY = {
    "busy": (Busy("database: locked"), 503, "5"),
    "no-room": (NoRoom("disk"), 503, "5"),
    "storage": (StorageError("x"), 500, None),
}


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path) -> Iterator[Site]:
    """On a socket, with paths whose handlers fail, one of them in a way that nobody expects."""

    def failing(error: Exception) -> Callable[[], None]:
        def fail() -> None:
            raise error

        return fail

    with site(tmp_path_factory.mktemp("shield"), migrated_sqlite) as made:
        made.app.add_api_route("/broken", failing(RuntimeError("PATIENT^NAME")))
        for name, (error, _, _) in BUSY.items():
            made.app.add_api_route(f"/api/v1/{name}", failing(error))
        ours = len(BUSY) + 1
        routes = made.app.router.routes
        routes[:] = routes[-ours:] + routes[:-ours]
        with made.listening():
            yield made


@pytest.mark.parametrize("name", ANSWERS)
def test_every_answer_has_every_header(broken: Site, name: str) -> None:
    status, given = ANSWERS[name]
    answer = given(broken.administrator())
    assert answer.status_code == status
    assert {key: answer.headers.get(key) for key in HEADERS} == HEADERS
    assert answer.headers["cache-control"] == "no-store"
    assert "server" not in answer.headers


def test_the_policy_lets_no_script_and_no_style_stand_in_a_page() -> None:
    policy = dict(part.split(" ", 1) for part in CONTENT_SECURITY_POLICY.split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == "'self'"
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    assert "http" not in CONTENT_SECURITY_POLICY


def test_what_ships_with_the_product_may_be_kept_and_has_the_headers_too(broken: Site) -> None:
    answer = broken.administrator().get("/static/site.css")
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "max-age=3600"
    assert answer.headers["content-security-policy"] == CONTENT_SECURITY_POLICY


@pytest.mark.parametrize("name", [name for name, (status, _) in ANSWERS.items() if status >= 400])
def test_every_error_is_a_problem_document(broken: Site, name: str) -> None:
    answer = ANSWERS[name][1](broken.administrator())
    if "person" in name:
        assert answer.headers["content-type"].startswith("text/html")
        return
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert {"type", "title", "status", "detail"} <= set(document)
    assert document["status"] == answer.status_code
    assert document["detail"].endswith((".", "integer, unable to parse string as an integer"))


def test_an_error_tells_its_caller_nothing_and_the_log_where_it_was(
    broken: Site, caplog: pytest.LogCaptureFixture
) -> None:
    answer = broken.administrator().get("/broken")
    assert answer.status_code == 500
    assert "PATIENT" not in answer.text
    assert "Traceback" not in answer.text
    (record,) = [each for each in caplog.records if each.message == "request failed"]
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None


@pytest.mark.parametrize("name", BUSY)
def test_a_busy_database_asks_for_patience(broken: Site, name: str) -> None:
    _, status, again = BUSY[name]
    answer = broken.administrator().get(f"/api/v1/{name}")
    assert answer.status_code == status
    assert answer.headers.get("retry-after") == again


def test_a_value_that_is_wrong_is_named_and_not_repeated(served: Site) -> None:
    answer = served.administrator().get(
        "/api/v1/find", params={"study_date": "PATIENT", "limit": "many"}
    )
    document = answer.json()
    assert {each["where"] for each in document["errors"]} == {"query.study_date", "query.limit"}
    assert "PATIENT" not in answer.text


def test_a_body_without_an_announced_length_is_bounded_too(broken: Site) -> None:
    def endless() -> object:
        for _ in range(40):
            yield b"x" * (MIB // 8)

    answer = broken.administrator().post("/api/v1/jobs/1/priority", content=endless())
    assert answer.status_code == 413


def test_a_file_to_try_may_be_larger_than_a_form(broken: Site) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", broken.port, timeout=20)
    proof = {"Authorization": broken.administrator().headers["Authorization"]}
    connection.request("POST", "/api/v1/rules/explain", body=b"x" * (2 * MIB), headers=proof)
    assert connection.getresponse().status == 422  # it is no form; but it was read
    connection.close()


def test_a_person_who_is_not_logged_in_is_led_to_the_log_in_and_back(served: Site) -> None:
    served.user("anna")
    client = served.client(Accept="text/html")
    answer = client.get("/needs?state=held")
    assert answer.status_code == 303
    assert answer.headers["location"] == "/login?next=/needs%3Fstate%3Dheld"
    part = client.get("/needs", headers={"HX-Request": "true"})
    assert part.status_code == 401
    assert "hx-redirect" not in part.headers  # the page stays where it is, and says so


@pytest.mark.parametrize(
    "path", ["/find/", "/static", "/api/v1/jobs/", "//other.example/", "/login"]
)
def test_no_redirect_repeats_the_host_that_was_asked_for(served: Site, path: str) -> None:
    client = served.administrator()
    for known in (client, served.client(Accept="text/html")):
        answer = known.get(path, headers={"Host": "evil.example"})
        assert "evil.example" not in answer.headers.get("location", "")
        assert "evil.example" not in answer.text


def test_the_description_of_the_api_names_the_problem_document(served: Site) -> None:
    document = json.loads(served.administrator().get("/api/openapi.json").text)
    answers = document["paths"]["/api/v1/jobs/{job_id}/requeue"]["post"]["responses"]
    assert set(answers) >= {"200", "401", "403", "404", "409", "422", "503"}


def test_a_viewer_is_told_on_a_page_why_not(served: Site) -> None:
    served.user("anna")
    served.user("otto", Role.VIEWER)
    client = served.logged_in("otto")
    answer = client.get("/users", headers={"Accept": "text/html"})
    assert answer.status_code == 403
    assert "administrator" in answer.text
