"""Log-in at a provider that may lie: each wrong answer is refused, and leaves no session."""

import json
import threading
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey, RSAKey

from node import config, oidc
from node.config.reading import from_values, to_values
from node.errors import ConfigError
from storage.records import Role
from tests.conftest import Clock
from tests.unit.web.site import PASSWORD, Client, Site, site

CLIENT = "midslice"
SECRET = "only the provider knows it"
RSA, OTHER_RSA, EC = (
    RSAKey.generate_key(2048, {"kid": "one"}),
    RSAKey.generate_key(2048, {"kid": "two"}),
    ECKey.generate_key("P-256", {"kid": "three"}),
)
Change = Callable[["Liar"], None]


class Liar:
    """A provider that does as a test says; everything that it does not say is right."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.key: Any = RSA
        self.shown = [RSA.as_dict(private=False)]
        self.algorithm = "RS256"
        self.claims: dict[str, Any] = {}
        self.metadata: dict[str, Any] = {}
        self.user_info: dict[str, Any] = {"sub": "s-1"}
        self.status = 200
        self.asked: list[tuple[str, dict[str, str], dict[str, list[str]]]] = []
        self.nonce = ""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.issuer = f"http://127.0.0.1:{self._server.server_address[1]}/realm"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def id_token(self) -> str:
        now = int(self.clock())
        claims = {
            "iss": self.issuer,
            "aud": CLIENT,
            "sub": "s-1",
            "iat": now,
            "exp": now + 300,
            "nonce": self.nonce,
            "preferred_username": "vera",
            "realm_access": {"roles": ["reader", "another"]},
        } | self.claims
        kept = {name: value for name, value in claims.items() if value is not None}
        header = {"alg": self.algorithm, "kid": self.key.kid}
        if self.algorithm == "none":
            texts = (json.dumps(part).encode() for part in (header, kept))
            parts = [urlsafe_b64encode(text).rstrip(b"=").decode() for text in texts]
            return ".".join([*parts, ""])
        return jwt.encode(header, kept, self.key, algorithms=[self.algorithm])

    def answer(self, path: str) -> object:
        if path.endswith("/openid-configuration"):
            here = {
                name: f"{self.issuer}/{name}"
                for name in ("authorization_endpoint", "token_endpoint", "jwks_uri")
            }
            return {"issuer": self.issuer, **here, **self.metadata}
        if path.endswith("/jwks_uri"):
            return {"keys": self.shown}
        if path.endswith("/userinfo"):
            return self.user_info
        return {"access_token": "a", "token_type": "Bearer", "id_token": self.id_token()}

    def asked_for(self, end: str) -> int:
        return sum(path.endswith(end) for path, _, _ in self.asked)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        liar = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._reply({})

            def do_POST(self) -> None:
                text = self.rfile.read(int(self.headers["Content-Length"])).decode()
                self._reply(parse_qs(text))

            def _reply(self, fields: dict[str, list[str]]) -> None:
                liar.asked.append((self.path, dict(self.headers), fields))
                body = json.dumps(liar.answer(self.path)).encode()
                self.send_response(liar.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        return Handler


@pytest.fixture
def liar(clock: Clock) -> Iterator[Liar]:
    made = Liar(clock)
    yield made
    made.close()


def table(liar: Liar, folder: Path, more: str = "") -> str:
    (folder / "secret").write_text(SECRET)
    return f"""
[web.oidc]
issuer = "{liar.issuer}"
client_id = "{CLIENT}"
client_secret_file = "{folder / "secret"}"
public_url = "http://pages.example.org/"
roles = {{ reader = "viewer", chief = "administrator", worker = "operator" }}
{more}
"""


@pytest.fixture
def served(tmp_path: Path, migrated_sqlite: Path, liar: Liar) -> Iterator[Site]:
    with site(tmp_path / "site", migrated_sqlite, table(liar, tmp_path)) as made:
        liar.clock = made.clock
        yield made


def begin(browser: Client, liar: Liar, next: str = "/") -> dict[str, str]:
    """Go to the provider; what it was asked."""
    answer = browser.get("/login/oidc", params={"next": next})
    assert answer.status_code == 303, answer.text
    asked = parse_qs(urlsplit(answer.headers["location"]).query)
    liar.nonce = asked["nonce"][0]
    return {name: values[0] for name, values in asked.items()}


def come_back(browser: Client, **answer: str) -> Any:
    return browser.get(
        "/login/oidc/callback",
        params=answer,
        headers={"Accept": "text/html", "Sec-Fetch-Site": "cross-site"},
    )


def log_in(browser: Client, liar: Liar, next: str = "/") -> Any:
    state = begin(browser, liar, next)["state"]
    return come_back(browser, state=state, code="c")


def refused(served: Site, browser: Client, answer: Any, words: str, status: int = 403) -> None:
    """It is a page that says why, and nobody is logged in."""
    assert answer.status_code == status, answer.text
    assert words in answer.text
    assert SECRET not in answer.text
    assert browser.get("/api/v1/me").status_code == 401
    assert not any(what == "log in" for _, what, _ in served.audited())


def test_a_person_has_the_role_of_the_claim_and_a_session(served: Site, liar: Liar) -> None:
    browser = served.browser()
    asked = begin(browser, liar, "/needs?state=held")
    assert asked["redirect_uri"] == "http://pages.example.org/login/oidc/callback"
    assert (asked["code_challenge_method"], asked["response_type"]) == ("S256", "code")
    answer = come_back(browser, state=asked["state"], code="c")
    assert (answer.status_code, answer.headers["location"]) == (303, "/needs?state=held")
    me = browser.get("/api/v1/me").json()
    assert me == {"name": "vera (127.0.0.1)", "role": "viewer", "how": "oidc"}
    ((_, headers, fields),) = [one for one in liar.asked if one[0].endswith("/token_endpoint")]
    assert headers["Authorization"].startswith("Basic ")
    assert fields["code"] == ["c"] and len(fields["code_verifier"][0]) >= 43
    (event,) = served.store.audit.list(10, what="log in")
    assert (event.who, event.detail["subject"]) == ("vera (127.0.0.1)", "s-1")
    assert event.detail["issuer"] == liar.issuer


def test_the_highest_of_several_roles_counts(served: Site, liar: Liar) -> None:
    liar.claims = {"realm_access": {"roles": ["reader", "worker"]}}
    browser = served.browser()
    log_in(browser, liar)
    assert browser.get("/api/v1/me").json()["role"] == Role.OPERATOR


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "issuer": ({"iss": "https://evil.example.org"}, "iss"),
    "audience": ({"aud": "another client"}, "aud"),
    "two audiences, no party": ({"aud": [CLIENT, "another"]}, "azp"),
    "party": ({"aud": [CLIENT, "another"], "azp": "another"}, "azp"),
    "nonce": ({"nonce": "of another log-in"}, "nonce"),
    "no nonce": ({"nonce": None}, "nonce"),
    "no subject": ({"sub": None}, "sub"),
    "no end": ({"exp": None}, "exp"),
    "end that is none": ({"exp": "never"}, "exp"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_claim_is_refused(served: Site, liar: Liar, case: str) -> None:
    liar.claims, claim = WRONG[case]
    browser = served.browser()
    answer = log_in(browser, liar)
    refused(served, browser, answer, f"The claim {claim} of the ID token is wrong")


@pytest.mark.parametrize(("past", "is_in"), [(59, True), (61, False)])
def test_the_clocks_may_differ_by_a_minute(
    served: Site, liar: Liar, *, past: int, is_in: bool
) -> None:
    now = int(liar.clock())
    for claims in ({"iat": now - 900, "exp": now - past}, {"iat": now + past, "exp": now + 900}):
        liar.claims, browser = claims, served.browser()
        answer = log_in(browser, liar)
        assert answer.status_code == (303 if is_in else 403), answer.text


def unsigned(liar: Liar) -> None:
    liar.algorithm = "none"


def signed_with_the_secret(liar: Liar) -> None:
    liar.algorithm, liar.key = "HS256", OctKey.import_key(SECRET, {"kid": "one"})


def signed_with_the_public_key(liar: Liar) -> None:
    liar.algorithm = "HS256"
    liar.key = OctKey.import_key(RSA.as_pem(private=False).hex(), {"kid": "one"})
    liar.shown.append({"kty": "oct", "k": "AAAA", "kid": "one"})


def signed_by_another(liar: Liar) -> None:
    liar.key = RSAKey.import_key(OTHER_RSA.as_dict(private=True) | {"kid": "one"})


def signed_with_a_key_for_encryption(liar: Liar) -> None:
    liar.shown = [RSA.as_dict(private=False) | {"use": "enc"}]


FORGED: tuple[Change, ...] = (
    unsigned,
    signed_with_the_secret,
    signed_with_the_public_key,
    signed_by_another,
    signed_with_a_key_for_encryption,
)


@pytest.mark.parametrize("forge", FORGED)
def test_a_token_that_the_provider_has_not_signed_is_refused(
    served: Site, liar: Liar, forge: Change
) -> None:
    forge(liar)
    browser = served.browser()
    refused(served, browser, log_in(browser, liar), "No key of the provider has signed")


def test_a_new_key_is_looked_up_and_an_old_one_is_given_up(served: Site, liar: Liar) -> None:
    assert log_in(served.browser(), liar).status_code == 303
    assert log_in(served.browser(), liar).status_code == 303
    assert liar.asked_for("/jwks_uri") == 1
    liar.key, liar.shown = EC, [EC.as_dict(private=False), {"kty": "unknown"}, "nonsense"]
    liar.algorithm = "ES256"
    assert log_in(served.browser(), liar).status_code == 303
    assert liar.asked_for("/jwks_uri") == 2
    liar.key, liar.algorithm = RSA, "RS256"  # whoever stole it has no use of it
    browser = served.browser()
    assert log_in(browser, liar).status_code == 403
    liar.shown = [RSA.as_dict(private=False)]
    liar.clock.now += oidc.KEPT_SECONDS
    assert log_in(served.browser(), liar).status_code == 303


def test_an_answer_to_another_log_in_or_a_second_time_is_refused(served: Site, liar: Liar) -> None:
    browser, over = served.browser(), "This log-in is over"
    first = begin(browser, liar)
    kept = browser.cookies.get("midslice-oidc")
    refused(served, browser, come_back(served.browser(), state=first["state"], code="c"), over)
    wrong = come_back(browser, state="guessed", code="c")
    refused(served, browser, wrong, "The answer is of another log-in")
    refused(served, browser, come_back(browser, state=first["state"], code="c"), over)
    second = begin(browser, liar)
    kept = browser.cookies.get("midslice-oidc")
    assert kept is not None
    assert come_back(browser, state=second["state"], code="c").status_code == 303
    thief = served.browser()
    thief.cookies.set("midslice-oidc", kept)
    answer = come_back(thief, state=second["state"], code="c")
    assert (answer.status_code, thief.get("/api/v1/me").status_code) == (403, 401)


def test_a_cookie_that_is_changed_or_old_is_refused(served: Site, liar: Liar) -> None:
    browser = served.browser()
    state = begin(browser, liar)["state"]
    kept = browser.cookies.get("midslice-oidc") or ""
    for changed in ("", "x.y", kept[:-1] + ("0" if kept[-1] != "0" else "1"), f"A{kept}"):
        other = served.browser()
        other.cookies.set("midslice-oidc", changed)
        refused(served, other, come_back(other, state=state, code="c"), "This log-in is over")
    liar.clock.now += 901
    refused(served, browser, come_back(browser, state=state, code="c"), "This log-in is over")


def test_an_answer_of_another_provider_is_refused(served: Site, liar: Liar) -> None:
    liar.metadata = {"authorization_response_iss_parameter_supported": True}
    for named in ({"iss": "https://evil.example.org"}, {}):
        browser = served.browser()
        state = begin(browser, liar)["state"]
        answer = come_back(browser, state=state, code="c", **named)
        refused(served, browser, answer, "The answer is of another provider")
    browser = served.browser()
    state = begin(browser, liar)["state"]
    answer = come_back(browser, state=state, code="c", iss=liar.issuer)
    assert answer.status_code == 303


def test_what_the_provider_says_is_not_repeated(served: Site, liar: Liar) -> None:
    browser = served.browser()
    state = begin(browser, liar)["state"]
    answer = come_back(browser, state=state, error="access_denied")
    refused(served, browser, answer, "did not log you in (access_denied)")
    state = begin(browser, liar)["state"]
    answer = come_back(browser, state=state, error="<b>x", error_description="<script>")
    refused(served, browser, answer, "did not log you in (without a reason)")
    assert "script>" not in answer.text


def test_somebody_without_a_role_gets_a_page_that_says_so(served: Site, liar: Liar) -> None:
    liar.claims = {"realm_access": {"roles": ["another"]}}
    browser = served.browser()
    answer = log_in(browser, liar)
    words = "You are known as vera (127.0.0.1), but with no role on this node."
    refused(served, browser, answer, words)
    assert "chief, reader, worker" in answer.text
    assert served.audited()[-1] == ("vera (127.0.0.1)", "log in refused", "")


def test_claims_that_the_token_lacks_are_asked_for(served: Site, liar: Liar) -> None:
    liar.claims = {"realm_access": None, "preferred_username": None}
    liar.metadata = {"userinfo_endpoint": f"{liar.issuer}/userinfo"}
    liar.user_info = {"sub": "another", "realm_access": {"roles": ["chief"]}}
    browser = served.browser()
    refused(served, browser, log_in(browser, liar), "The user info is of another person")
    liar.user_info["sub"] = "s-1"
    assert log_in(browser, liar).status_code == 303
    assert browser.get("/api/v1/me").json()["name"] == "s-1 (127.0.0.1)"
    assert browser.get("/api/v1/me").json()["role"] == Role.ADMINISTRATOR


def test_a_provider_that_is_away_or_another_stops_nobody_else(served: Site, liar: Liar) -> None:
    served.user("otto", Role.OPERATOR)
    liar.status = 503
    browser = served.browser()
    answer = browser.get("/login/oidc", headers={"Accept": "text/html"})
    refused(served, browser, answer, "answers 503. Try again in a moment, or log in with", 503)
    asked = len(liar.asked)
    assert browser.get("/login/oidc").status_code == 503
    assert len(liar.asked) == asked  # not asked again at once
    assert served.logged_in("otto").get("/").status_code == 200


@pytest.mark.parametrize(
    "metadata",
    [
        {"issuer": "https://evil.example.org"},
        {"token_endpoint": "http://evil.example.org/token"},
        {"token_endpoint": "file:///etc/passwd"},
        {"jwks_uri": None},
        {"end_session_endpoint": "javascript:alert(1)"},
    ],
)
def test_metadata_that_lead_elsewhere_are_refused(
    served: Site, liar: Liar, metadata: dict[str, Any]
) -> None:
    liar.metadata = metadata
    assert served.browser().get("/login/oidc").status_code == 503


def test_a_page_of_another_site_is_not_where_a_log_in_ends(served: Site, liar: Liar) -> None:
    for next in ("https://evil.example.org/", "//evil.example.org", "/\\evil.example.org"):
        assert log_in(served.browser(), liar, next).headers["location"] == "/"


def test_a_host_header_changes_nothing(served: Site, liar: Liar) -> None:
    answer = served.browser().get("/login/oidc", headers={"Host": "evil.example.org"})
    assert "evil" not in answer.headers["location"]


def test_a_session_of_the_provider_is_ended_by_log_out_by_an_administrator_and_by_time(
    served: Site, liar: Liar
) -> None:
    liar.metadata = {"end_session_endpoint": f"{liar.issuer}/out"}
    browser = served.browser()
    log_in(browser, liar)
    browser.csrf = served.csrf_of(browser)
    answer = browser.act("POST", "/logout")
    assert answer.headers["location"] == "/login/oidc/ended"
    page = browser.get("/login/oidc/ended").text
    assert f'href="{liar.issuer}/out?client_id=midslice&amp;post_logout_redirect_uri=' in page
    assert browser.get("/api/v1/me").status_code == 401

    log_in(browser, liar)
    boss = served.person()
    assert "vera (127.0.0.1)" in boss.get("/users").text
    gone = boss.act("DELETE", "/api/v1/sessions", params={"name": "vera (127.0.0.1)"})
    assert gone.status_code == 204
    assert browser.get("/api/v1/me").status_code == 401
    gone = boss.act("DELETE", "/api/v1/sessions", params={"name": "ada"})
    assert (gone.status_code, boss.get("/api/v1/me").status_code) == (404, 200)

    log_in(browser, liar)
    liar.clock.now += 3601
    assert browser.get("/api/v1/me").status_code == 401


def test_a_change_needs_the_token_of_the_page(served: Site, liar: Liar) -> None:
    liar.claims = {"realm_access": {"roles": ["chief"]}}
    browser = served.browser()
    log_in(browser, liar)
    assert browser.post("/api/v1/drain").status_code == 403
    browser.csrf = served.csrf_of(browser)
    assert browser.act("POST", "/api/v1/drain").status_code == 200
    assert served.audited()[-1][0] == "vera (127.0.0.1)"


def test_a_node_may_take_no_passwords(tmp_path: Path, migrated_sqlite: Path, liar: Liar) -> None:
    more = table(liar, tmp_path, "local_login = false")
    with site(tmp_path / "site", migrated_sqlite, more) as made:
        made.user("otto")
        earlier = made.person()  # of a time when it took them
        assert earlier.get("/api/v1/me").status_code == 401
        page = made.browser().get("/login").text
        assert 'type="password"' not in page and "Log in with single sign-on" in page
        answer = made.browser().post("/login", data={"name": "otto", "password": PASSWORD})
        assert (answer.status_code, "takes no passwords" in answer.text) == (403, True)
        assert made.program(Role.VIEWER).get("/api/v1/me").status_code == 200


def test_the_secret_stands_in_no_configuration(served: Site, tmp_path: Path) -> None:
    values = json.dumps(to_values(served.settings), default=str)
    assert SECRET not in values
    assert from_values(json.loads(values)).web.oidc == served.settings.web.oidc
    (tmp_path / "secret").unlink()
    assert served.browser().get("/login").status_code == 200  # it is read at each log-in


MISTAKES = {
    'issuer = "http://sso.example.org"': "web.oidc.issuer",
    'issuer = "https://sso.example.org/?x=1"': "web.oidc.issuer",
    'roles = { reader = "boss" }': "web.oidc.roles",
    "roles = {}": "web.oidc.roles",
    'scopes = ["profile"]': '"openid" is missing',
    "secret = 1": "unknown key 'secret'",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_in_the_table_is_named(tmp_path: Path, line: str) -> None:
    right = {
        "issuer": '"https://sso.example.org/realms/x"',
        "client_id": '"midslice"',
        "public_url": '"https://pages.example.org"',
        "roles": '{ reader = "viewer" }',
    }
    key, _, value = line.partition(" = ")
    lines = [f"{name} = {text}" for name, text in (right | {key: value}).items()]
    path = tmp_path / "config.toml"
    path.write_text("[web.oidc]\n" + "\n".join(lines))
    with pytest.raises(ConfigError, match=r"web\.oidc") as caught:
        config.load(path)
    assert MISTAKES[line] in str(caught.value)
