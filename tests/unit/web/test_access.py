"""Access to the web port: the first user, roles, tokens, a proxy, and the CSRF token."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import APIRouter
from fastapi.routing import APIRoute

from node.web import live, login, pages, setup
from storage.records import Role
from tests.unit.web.site import FROM, PASSWORD, Site

ME = "/api/v1/me"
DRAIN = "/api/v1/drain"
USERS = "/api/v1/users"
PROXY = "10.1.2.3"
OPEN = {"/healthz", "/readyz", "/login", "/setup", "/api/openapi.json"}
# They change nothing but what is one's own; a search has patients' words, which no address has.
OF_EVERYBODY = {"/logout", "/mask", "/find", "/api/v1/find", "/api/v1/me/password"}
VALUES = {"{name}": "pacs", "{series_uid}": "1.2", "{action}": "requeue"}


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "::ffff:127.0.0.1", "192.0.2.9"])
def test_without_a_user_nobody_gets_an_answer_but_monitors(served: Site, address: str) -> None:
    client = served.client(**{FROM: address})
    answer = client.get(ME)
    assert answer.status_code == 401
    assert "set-up link" in answer.json()["detail"]
    assert "midslice user add" in answer.json()["detail"]
    assert client.post(DRAIN).status_code == 401
    assert client.get("/metrics").status_code == 401
    assert client.get("/healthz").status_code == 200
    assert client.get("/readyz").status_code == 503  # no node runs here


def test_without_a_user_a_proxy_says_who_somebody_is_all_the_same(local_proxy: Site) -> None:
    assert local_proxy.client().get(ME).status_code == 401
    named = local_proxy.client(**{"Remote-User": "otto"}).get(ME).json()
    assert (named["name"], named["role"]) == ("otto", "viewer")


def test_without_a_user_the_log_in_says_how_the_first_one_is_made(served: Site) -> None:
    assert "midslice user add" in served.browser().get("/login").text
    served.user("anna")
    assert "midslice user add" not in served.browser().get("/login").text


def test_with_the_first_user_everybody_logs_in_and_may_come_from_anywhere(served: Site) -> None:
    served.user("anna")
    assert served.client().get(ME).status_code == 401
    client = served.client(**{FROM: "192.0.2.9"})
    assert client.get(ME).status_code == 401
    assert client.get(ME).headers["www-authenticate"].startswith("Bearer")


def test_the_set_up_link_makes_the_first_administrator_once(set_up: Site) -> None:
    browser = set_up.browser()
    page = browser.get("/setup", params={"key": set_up.key})
    assert 'name="again"' in page.text and set_up.key in page.text
    made = browser.post("/setup", data=first_user(set_up.key))
    assert (made.status_code, made.headers["location"]) == (303, "/")
    assert browser.get(ME).json() == {"name": "anna", "role": "administrator", "how": "session"}
    assert ("set-up link", "user add", "anna") in set_up.audited()
    for answer in (
        set_up.browser().get("/setup", params={"key": set_up.key}),
        set_up.browser().post("/setup", data=first_user(set_up.key, name="otto")),
    ):
        assert answer.status_code == 410
    assert [user["name"] for user in browser.get(USERS).json()] == ["anna"]


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"key": "guess"}, 403),
        ({"key": ""}, 403),
        ({"again": "another horse"}, 400),
        ({"password": "short", "again": "short"}, 400),
        ({"name": "no name"}, 400),
        ({"name": "local"}, 400),
    ],
)
def test_a_wrong_set_up_adds_nobody_and_may_be_tried_again(
    set_up: Site, change: dict[str, str], status: int
) -> None:
    browser = set_up.browser()
    assert browser.post("/setup", data=first_user(set_up.key) | change).status_code == status
    assert browser.get(ME).status_code == 401
    assert browser.post("/setup", data=first_user(set_up.key)).status_code == 303


def test_a_page_of_another_site_sets_nothing_up(set_up: Site) -> None:
    foreign = set_up.client(**{"Sec-Fetch-Site": "cross-site"})
    assert foreign.post("/setup", data=first_user(set_up.key)).status_code == 403


def test_a_node_that_began_with_a_user_has_no_set_up_link(served: Site) -> None:
    for key in ("", "guess"):
        assert served.browser().get("/setup", params={"key": key}).status_code == 403


def first_user(key: str, name: str = "anna") -> dict[str, str]:
    return {"key": key, "name": name, "password": PASSWORD, "again": PASSWORD}


MAY = {
    Role.VIEWER: [200, 403, 403],
    Role.OPERATOR: [200, 200, 403],
    Role.ADMINISTRATOR: [200, 200, 200],
}


@pytest.mark.parametrize("role", Role)
def test_a_viewer_looks_an_operator_acts_an_administrator_decides(served: Site, role: Role) -> None:
    served.user("anna")
    served.user("otto", role)
    client = served.logged_in("otto")
    answers = [client.get(ME), client.act("POST", DRAIN), client.get(USERS)]
    assert [answer.status_code for answer in answers] == MAY[role]


@pytest.mark.parametrize("role", Role)
def test_a_token_may_what_its_role_may(served: Site, role: Role) -> None:
    served.user("anna")
    client = served.program(role)
    answers = [client.get(ME), client.post(DRAIN), client.get(USERS)]
    assert [answer.status_code for answer in answers] == MAY[role]
    assert ("token script", "drain", "") in served.audited() or role is Role.VIEWER


def test_a_refusal_says_which_role_it_takes(served: Site) -> None:
    served.user("anna")
    answer = served.program(Role.VIEWER).post(DRAIN)
    assert answer.json()["detail"] == (
        "This needs the role operator; token script has the role viewer."
    )


def test_a_revoked_token_opens_nothing_not_even_here(served: Site) -> None:
    client = served.program(Role.ADMINISTRATOR)
    assert client.delete("/api/v1/tokens/1").status_code == 204
    assert client.get(ME).status_code == 401
    assert served.client(Authorization="Bearer nonsense").get(ME).status_code == 401


def test_no_token_is_shown_twice(served: Site) -> None:
    client = served.administrator()
    made = client.post("/api/v1/tokens", json={"name": "lab", "role": "viewer"}).json()
    listed = client.get("/api/v1/tokens")
    assert made["token"].startswith("midslice_")
    assert made["token"] not in listed.text
    assert listed.json()[0]["name"] == "lab"


def test_a_trusted_proxy_says_who_somebody_is(open_site: Site) -> None:
    client = open_site.client(**{FROM: PROXY, "Remote-User": "otto", "Remote-Role": "operator"})
    assert client.get(ME).json() == {"name": "otto", "role": "operator", "how": "proxy"}


def test_the_role_behind_a_proxy_is_the_users_where_it_says_none(open_site: Site) -> None:
    open_site.user("anna", Role.ADMINISTRATOR)
    for name, role in (("anna", "administrator"), ("somebody", "viewer")):
        client = open_site.client(**{FROM: PROXY, "Remote-User": name})
        assert client.get(ME).json()["role"] == role


def test_a_role_that_does_not_exist_is_refused(open_site: Site) -> None:
    client = open_site.client(**{FROM: PROXY, "Remote-User": "otto", "Remote-Role": "root"})
    assert client.get(ME).status_code == 403


def test_a_disabled_user_stays_out_behind_a_proxy_too(open_site: Site) -> None:
    open_site.user("anna")
    open_site.user("otto")
    open_site.logged_in("anna").act("PATCH", f"{USERS}/otto", json={"disabled": True})
    client = open_site.client(**{FROM: PROXY, "Remote-User": "otto"})
    assert client.get(ME).status_code == 403


@pytest.mark.parametrize("address", ["10.2.0.1", "127.0.0.1", "192.0.2.9"])
def test_anybody_elses_header_is_only_text(open_site: Site, address: str) -> None:
    open_site.user("anna")
    client = open_site.client(**{FROM: address, "Remote-User": "anna", "Remote-Role": "operator"})
    assert client.get(ME).status_code == 401


def test_without_the_proxy_mode_no_header_says_who_somebody_is(served: Site) -> None:
    served.user("anna")
    client = served.client(**{"Remote-User": "anna", "X-Forwarded-User": "anna"})
    assert client.get(ME).status_code == 401


def test_the_last_administrator_stays(served: Site) -> None:
    served.user("anna")
    served.user("otto", Role.VIEWER)
    client = served.logged_in("anna")
    assert client.act("DELETE", f"{USERS}/anna").status_code == 409
    assert client.act("PATCH", f"{USERS}/anna", json={"role": "viewer"}).status_code == 409


def test_somebody_changes_the_own_password_with_the_old_one_only(served: Site) -> None:
    served.user("anna")
    served.user("otto", Role.VIEWER)
    client = served.logged_in("otto")
    wrong = {"old": "not this one", "new": "another long one"}
    assert client.act("POST", "/api/v1/me/password", json=wrong).status_code == 409
    right = wrong | {"old": "correct horse"}
    assert client.act("POST", "/api/v1/me/password", json=right).status_code == 204
    assert client.get(ME).status_code == 401  # every session of the old password has ended
    form = {"name": "otto", "password": "another long one"}
    assert served.browser().post("/login", data=form).status_code == 303


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


def test_a_program_with_a_token_needs_none(served: Site) -> None:
    served.user("anna")
    assert served.program(Role.OPERATOR).post(DRAIN).status_code == 200


def test_behind_a_proxy_a_change_needs_it_too(open_site: Site) -> None:
    who: dict[str, Any] = {FROM: "10.1.2.3", "Remote-User": "otto", "Remote-Role": "operator"}
    assert open_site.client(**who).post(DRAIN).status_code == 403


def routes(router: APIRouter) -> Iterator[APIRoute]:
    for route in router.routes:
        if isinstance(route, APIRoute):
            yield route
        else:  # a router within a router
            yield from routes(route.original_router)  # type: ignore[attr-defined]


def paths(served: Site) -> list[tuple[str, str]]:
    """Each method and path, as somebody would ask for it."""
    document = served.client().get("/api/openapi.json").json()
    known = {
        (method.upper(), path) for path, methods in document["paths"].items() for method in methods
    }
    for router in (pages.router, login.router, setup.router, live.router):
        known |= {(method, route.path) for route in routes(router) for method in route.methods}
    return sorted((method, _filled(path)) for method, path in known if path not in OPEN)


def _filled(path: str) -> str:
    for name, value in VALUES.items():
        path = path.replace(name, value)
    return re.sub(r"\{[^}]*\}", "1", path)


def test_nobody_gets_anything_without_being_known(served: Site) -> None:
    served.user("anna")
    asked = paths(served)
    assert len(asked) > 50
    client = served.client()
    open_ones = [
        (method, path, status)
        for method, path in asked
        if (status := client.request(method, path).status_code) != 401
    ]
    assert open_ones == []


@pytest.mark.parametrize("role", [Role.VIEWER, Role.OPERATOR])
def test_nobody_changes_anything_that_takes_a_higher_role(served: Site, role: Role) -> None:
    served.user("anna")
    client = served.program(role)
    before = len(served.audited())
    administrators = ("users", "tokens", "reload", "notifications", "senders/allow")
    for method, path in paths(served):
        if method in ("GET", "HEAD") or path in OF_EVERYBODY:
            continue
        if role is Role.VIEWER or any(word in path for word in administrators):
            answer = client.request(method, path)
            assert answer.status_code == 403, (method, path, answer.status_code)
    assert len(served.audited()) == before
