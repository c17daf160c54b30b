"""Logging in: sessions that are new, that end, and that nobody guesses."""

import logging
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from node.web import access, login
from node.web.access import COOKIE
from storage.records import Role
from storage.site import people
from tests.unit.web.site import FROM, PASSWORD, Site

ME = "/api/v1/me"
REAL_HASHER = access.HASHER  # as it is before the tests take a quick one


def flags(cookie: str) -> set[str]:
    return {part.strip().lower() for part in cookie.split(";")[1:]}


def test_a_user_who_logs_in_is_known_until_logging_out(served: Site) -> None:
    served.user("anna", Role.OPERATOR)
    client = served.logged_in("anna")
    assert client.get(ME).json() == {"name": "anna", "role": "operator", "how": "session"}
    cookie = client.cookies[COOKIE]
    assert client.act("POST", "/logout").headers["location"] == "/login"
    client.cookies.set(COOKIE, cookie)
    assert client.get(ME).status_code == 401
    assert [what for _, what, _ in served.audited()] == ["user add", "log in", "log out"]


def test_the_cookie_is_kept_from_scripts_and_other_sites(served: Site) -> None:
    served.user("anna")
    answer = served.browser().post("/login", data={"name": "anna", "password": PASSWORD})
    session, device = answer.headers.get_list("set-cookie")
    assert flags(session) == {"httponly", "samesite=lax", "path=/", "max-age=43200"}
    assert flags(device) == {"httponly", "samesite=lax", "path=/", "max-age=31536000"}


def test_the_cookie_travels_by_tls_only_where_the_proxy_in_front_speaks_it(
    open_site: Site,
) -> None:
    open_site.user("anna")
    for address, is_secure in (("10.1.2.3", True), ("192.0.2.9", False)):
        client = open_site.client(**{FROM: address, "X-Forwarded-Proto": "https"})
        answer = client.post("/login", data={"name": "anna", "password": PASSWORD})
        cookies = map(flags, answer.headers.get_list("set-cookie"))
        assert ["secure" in cookie for cookie in cookies] == [is_secure] * 2


def test_a_session_ends_hours_after_the_log_in(served: Site) -> None:
    served.user("anna")
    client = served.logged_in("anna")
    for _ in range(23):  # never idle for long
        served.clock.now += 1800
        assert client.get(ME).status_code == 200
    served.clock.now += 1801
    assert client.get(ME).status_code == 401


def test_a_session_that_nobody_uses_ends(served: Site) -> None:
    served.user("anna")
    client = served.logged_in("anna")
    served.clock.now += 3599
    assert client.get(ME).status_code == 200
    served.clock.now += 3601
    assert client.get(ME).status_code == 401


def test_a_cookie_that_somebody_planted_is_not_taken_over_by_a_log_in(served: Site) -> None:
    served.user("anna")
    client = served.browser()
    client.cookies.set(COOKIE, "planted", domain="127.0.0.1")
    client.post("/login", data={"name": "anna", "password": PASSWORD})
    assert client.cookies[COOKIE] != "planted"
    thief = served.client()
    thief.cookies.set(COOKIE, "planted")
    assert thief.get(ME).status_code == 401


def test_logging_in_again_ends_the_session_before(served: Site) -> None:
    served.user("anna")
    client = served.logged_in("anna")
    before = client.cookies[COOKIE]
    client.post("/login", data={"name": "anna", "password": PASSWORD})
    other = served.client()
    other.cookies.set(COOKIE, before)
    assert other.get(ME).status_code == 401


def test_a_hash_takes_what_the_standard_recommends() -> None:
    assert re.match(r"\$argon2id\$v=19\$m=65536,t=3,p=4\$", REAL_HASHER.hash(PASSWORD))


@pytest.mark.parametrize(
    ("name", "password"), [("anna", "wrong password"), ("nobody", PASSWORD), ("an\0na", PASSWORD)]
)
def test_a_wrong_name_and_a_wrong_password_are_answered_alike(
    served: Site, name: str, password: str
) -> None:
    served.user("anna")
    answer = served.browser().post("/login", data={"name": name, "password": password})
    assert answer.status_code == 401
    assert answer.json()["detail"] == "The name or the password is wrong."
    assert "set-cookie" not in answer.headers


def test_the_page_for_the_own_password_is_for_those_who_have_one(served: Site) -> None:
    assert served.administrator().get("/password").status_code == 404  # a program has none
    served.user("anna")
    client = served.logged_in("anna")
    assert 'hx-post="/api/v1/me/password"' in client.get("/password").text
    assert 'href="/password"' in client.get("/").text
    body = {"old": PASSWORD, "new": "another horse"}
    assert client.act("POST", "/api/v1/me/password", data=body).status_code == 204
    assert client.get(ME).status_code == 401  # own sessions end
    again = served.browser().post("/login", data={"name": "anna", "password": "another horse"})
    assert again.status_code == 303


def test_a_disabled_user_does_not_get_in_and_is_out_at_once(served: Site) -> None:
    served.user("anna")
    served.user("otto", Role.VIEWER)
    client = served.logged_in("otto")
    changed = served.logged_in("anna").act("PATCH", "/api/v1/users/otto", json={"disabled": True})
    assert changed.status_code == 200
    assert client.get(ME).status_code == 401
    again = served.browser().post("/login", data={"name": "otto", "password": PASSWORD})
    assert again.status_code == 401


def test_who_guesses_waits_a_minute_for_each_further_guess(
    served: Site, caplog: pytest.LogCaptureFixture
) -> None:
    served.user("anna")
    client = served.browser()
    for _ in range(login.MOST_OF_BOTH):
        wrong = client.post("/login", data={"name": "anna", "password": "wrong password"})
        assert wrong.status_code == 401
    with caplog.at_level(logging.WARNING):
        answer = client.post("/login", data={"name": "anna", "password": PASSWORD})
    assert answer.status_code == 429
    assert 0 < int(answer.headers["retry-after"]) <= login.SLOW_SECONDS
    assert "log-in throttled" in caplog.messages
    served.clock.now += login.SLOW_SECONDS + 1
    assert client.post("/login", data={"name": "anna", "password": PASSWORD}).status_code == 303


def test_guesses_that_come_at_once_are_no_more_than_those_one_by_one(served: Site) -> None:
    served.user("anna")
    form = {"name": "anna", "password": "wrong password"}
    clients = [served.browser() for _ in range(4 * login.MOST_OF_BOTH)]
    with ThreadPoolExecutor(len(clients)) as guessers:
        answers = [guessers.submit(one.post, "/login", data=form) for one in clients]
        statuses = Counter(answer.result().status_code for answer in answers)
    assert statuses == {401: login.MOST_OF_BOTH, 429: 3 * login.MOST_OF_BOTH}


def test_guessing_from_one_place_locks_nobody_out_elsewhere(served: Site) -> None:
    served.user("anna")
    guesser = served.client(**{FROM: "192.0.2.66"})
    for _ in range(login.MOST_OF_BOTH + 1):
        last = guesser.post("/login", data={"name": "anna", "password": "wrong password"})
    assert last.status_code == 429
    assert served.logged_in("anna").get(ME).status_code == 200


def test_an_address_that_tries_many_names_is_slowed_down_and_locked_out_of_none(
    served: Site,
) -> None:
    served.user("anna")
    guesser = served.client(**{FROM: "192.0.2.66"})
    form = {"name": "anna", "password": PASSWORD}
    for number in range(login.MOST_OF_ADDRESS):
        people.refuse_login(served.database, served.clock(), f"name{number}", "192.0.2.66")
    assert guesser.post("/login", data=form).status_code == 429
    served.clock.now += login.PACE_SECONDS + 1
    assert guesser.post("/login", data=form).status_code == 303


def test_guesses_under_a_name_from_everywhere_keep_out_no_browser_that_is_known(
    served: Site,
) -> None:
    served.user("anna")
    form = {"name": "anna", "password": PASSWORD}
    office = served.client(**{FROM: "192.0.2.66"})
    assert office.post("/login", data=form).status_code == 303
    beside = served.client(**{FROM: "192.0.2.66"})  # behind the same address
    for number in range(login.MOST_OF_NAME):
        address = "192.0.2.66" if number % 2 else f"198.51.100.{number}"
        people.refuse_login(served.database, served.clock(), "anna", address)
    assert beside.post("/login", data=form).status_code == 429
    assert office.post("/login", data=form).status_code == 303


def test_a_browser_that_is_known_to_one_user_is_not_to_another(served: Site) -> None:
    served.user("anna")
    served.user("otto")
    otto = served.logged_in("otto")
    wrong = {"name": "anna", "password": "wrong password"}
    for _ in range(login.MOST_OF_BOTH):
        assert otto.post("/login", data=wrong).status_code == 401
    assert otto.post("/login", data=wrong).status_code == 429
    beside = served.browser()
    assert beside.post("/login", data=wrong).status_code == 429  # both are counted by address


def test_who_guesses_in_a_known_browser_is_slowed_down_there(served: Site) -> None:
    served.user("anna")
    known = served.logged_in("anna")
    wrong = {"name": "anna", "password": "wrong password"}
    for _ in range(login.MOST_OF_BOTH):
        assert known.post("/login", data=wrong).status_code == 401
    assert known.post("/login", data=wrong).status_code == 429
    assert served.logged_in("anna").get(ME).status_code == 200


@pytest.mark.parametrize(
    ("asked", "goes_to"),
    [
        ("/jobs?state=held", "/jobs?state=held"),
        ("//evil.example", "/"),
        ("/\\evil.example", "/"),
        ("https://evil.example", "/"),
        ("/\r\nSet-Cookie: a=b", "/"),
    ],
)
def test_a_log_in_leads_to_a_page_of_ours_only(served: Site, asked: str, goes_to: str) -> None:
    served.user("anna")
    form = {"name": "anna", "password": PASSWORD, "next": asked}
    answer = served.browser().post("/login", data=form)
    assert answer.status_code == 303
    assert answer.headers["location"] == goes_to


def test_a_form_of_another_site_logs_nobody_in(served: Site) -> None:
    served.user("anna")
    client = served.client(Origin="https://evil.example")
    answer = client.post("/login", data={"name": "anna", "password": PASSWORD})
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers


def test_no_password_and_no_token_is_kept_or_logged(
    served: Site, caplog: pytest.LogCaptureFixture
) -> None:
    served.user("anna")
    with caplog.at_level(logging.DEBUG):
        client = served.logged_in("anna")
        served.browser().post("/login", data={"name": PASSWORD, "password": "in the wrong field"})
        made = client.act("POST", "/api/v1/tokens", json={"name": "lab", "role": "viewer"})
    secret = (PASSWORD, "in the wrong field", client.cookies[COOKIE], made.json()["token"])
    with served.database.reading() as db:
        tables = ("account", "login", "token", "audit", "request", "switch")
        kept = "".join(
            str(row) for name in tables for row in db.exec_driver_sql(f"SELECT * FROM {name}")
        )
    ours = [record for record in caplog.records if not record.name.startswith("http")]  # a client
    logged = "".join(f"{record.getMessage()} {vars(record)}" for record in ours)
    assert [text for text in secret if text in kept] == []
    assert [text for text in secret if text in logged] == []


def test_addresses_of_one_ipv6_network_guess_together(served: Site) -> None:
    served.user("anna")
    form = {"name": "anna", "password": "wrong password"}
    guessers = [served.client(**{FROM: f"2001:db8:1:2::{n:x}"}) for n in range(1, 8)]
    statuses = [guesser.post("/login", data=form).status_code for guesser in guessers]
    assert statuses == [401] * login.MOST_OF_BOTH + [429] * 2
    neighbour = served.client(**{FROM: "2001:db8:1:3::1"})
    assert neighbour.post("/login", data=form).status_code == 401
    event = served.store.audit.list(1)[0]
    assert event.detail == {"address": "2001:db8:1:3::1"}  # whole: who it was can be found


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("192.0.2.9", "192.0.2.9"),
        ("::ffff:192.0.2.9", "192.0.2.9"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unknown", "unknown"),
        ("", ""),
    ],
)
def test_what_an_address_is_counted_as(address: str, counted: str) -> None:
    assert access.counted(address) == counted


def test_who_guesses_the_password_of_an_open_session_waits(served: Site) -> None:
    served.user("anna")
    client = served.logged_in("anna")
    guess = {"old": "wrong password", "new": "another horse"}
    for _ in range(login.MOST_OF_BOTH):
        assert client.act("POST", "/api/v1/me/password", json=guess).status_code == 409
    right = {"old": PASSWORD, "new": "another horse"}
    answer = client.act("POST", "/api/v1/me/password", json=right)
    assert answer.status_code == 429
    assert 0 < int(answer.headers["retry-after"]) <= login.SLOW_SECONDS
    # They are counted as log-ins are: neither way in is left open by the other.
    form = {"name": "anna", "password": PASSWORD}
    assert client.post("/login", data=form).status_code == 429
    assert served.audited().count(("anna", "password refused", "")) == login.MOST_OF_BOTH
    served.clock.now += login.SLOW_SECONDS + 1
    assert client.act("POST", "/api/v1/me/password", json=right).status_code == 204


def test_what_an_open_page_asks_by_itself_keeps_no_session_alive(listening: Site) -> None:
    listening.user("anna")
    client = listening.logged_in("anna")
    for _ in range(6):
        listening.clock.now += 590
        assert client.get("/now/queue", headers={"HX-Request": "true"}).status_code == 200
        with client.stream("GET", "/live") as stream:
            assert stream.status_code == 200
    listening.clock.now += 120
    assert client.get("/now/queue", headers={"HX-Request": "true"}).status_code == 401
    assert client.get("/live").status_code == 401


@pytest.mark.parametrize(("method", "path"), [("GET", "/peers"), ("POST", "/api/v1/drain")])
def test_what_a_person_does_keeps_a_session_alive(served: Site, method: str, path: str) -> None:
    served.user("anna")
    client = served.logged_in("anna")
    for _ in range(3):
        served.clock.now += 3000
        headers = {"HX-Request": "true"} if method == "POST" else {}
        assert client.act(method, path, headers=headers).status_code == 200
