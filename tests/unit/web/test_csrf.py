"""A browser does what any page tells it: a change needs the proof that the page is ours."""

from typing import Any

import pytest

from storage.records import Role
from tests.unit.web.site import FROM, Site

DRAIN = "/api/v1/drain"


def test_a_change_without_the_token_of_the_session_is_refused(served: Site) -> None:
    served.user("anna")
    client = served.logged_in("anna")
    for headers in ({}, {"X-CSRF-Token": ""}, {"X-CSRF-Token": "guess"}, {"X-CSRF-Token": "ä"}):
        raw = {name: value.encode() for name, value in headers.items()}
        answer = client.post(DRAIN, headers=raw)
        assert answer.status_code == 403
        assert "CSRF" in answer.json()["detail"]
    assert served.client().get("/healthz").status_code == 200
    assert "drain" not in [what for _, what, _ in served.audited()]


def test_the_token_comes_by_header_or_in_the_form(served: Site) -> None:
    served.user("anna")
    client = served.logged_in("anna")
    assert client.post(DRAIN, headers={"X-CSRF-Token": client.csrf}).status_code == 200
    assert client.post(DRAIN, data={"csrf": client.csrf}).status_code == 200
    form = {"csrf": client.csrf, "name": "lab", "role": "viewer"}
    assert client.post("/api/v1/tokens", data=form).status_code == 201


def test_the_token_of_another_session_is_none(served: Site) -> None:
    served.user("anna")
    served.user("otto")
    anna, otto = served.logged_in("anna"), served.logged_in("otto")
    assert anna.post(DRAIN, headers={"X-CSRF-Token": otto.csrf}).status_code == 403


def test_even_a_log_out_needs_it(served: Site) -> None:
    served.user("anna")
    client = served.logged_in("anna")
    assert client.post("/logout").status_code == 403
    assert client.get("/api/v1/me").status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://["},
    ],
)
def test_a_page_of_another_site_changes_nothing_even_with_the_token(
    served: Site, headers: dict[str, str]
) -> None:
    served.user("anna")
    client = served.logged_in("anna")
    answer = client.post(DRAIN, headers={"X-CSRF-Token": client.csrf} | headers)
    assert answer.status_code == 403
    assert "another site" in answer.json()["detail"]


def test_a_program_on_this_machine_needs_none_where_nobody_logs_in(served: Site) -> None:
    assert served.client().post(DRAIN).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://127.0.0.1:8080"},
        {"Sec-Fetch-Site": "none"},
        {"Referer": "http://127.0.0.1:8080/"},
        {"Cookie": "a=b"},
    ],
)
def test_a_browser_on_this_machine_does(served: Site, headers: dict[str, str]) -> None:
    assert served.client(**headers).post(DRAIN).status_code == 403


def test_a_program_with_a_token_needs_none(served: Site) -> None:
    served.user("anna")
    assert served.program(Role.OPERATOR).post(DRAIN).status_code == 200


def test_behind_a_proxy_a_change_needs_it_too(open_site: Site) -> None:
    who: dict[str, Any] = {FROM: "10.1.2.3", "Remote-User": "otto", "Remote-Role": "operator"}
    assert open_site.client(**who).post(DRAIN).status_code == 403
