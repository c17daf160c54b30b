"""Log-in at a real OpenID Connect provider, in a browser: roles, refusals, log-out, new keys."""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from node.config.sections import OIDC_CALLBACK
from node.web.access import hash_password
from storage.database import Database
from storage.records import Role
from storage.site import people
from tests.browser.site import PASSWORD
from tests.node_process import NodeProcess, running
from tests.oidc_provider import CLIENT_SECRET, OidcProvider, oidc_provider
from tests.oidc_provider import PASSWORD as PROVIDERS_PASSWORD
from tests.ports import free_port

BUTTON = "Log in with the hospital's account"


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OidcProvider]:
    pages = f"http://127.0.0.1:{free_port()}"
    folder = tmp_path_factory.mktemp("provider")
    with oidc_provider(folder, pages + OIDC_CALLBACK) as found:
        yield found


@pytest.fixture(scope="module")
def node(provider: OidcProvider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    made = NodeProcess(tmp_path_factory.mktemp("node"))
    path = made.folder / "config.toml"
    port = urlsplit(provider.redirect_uri).port
    head, _, rest = path.read_text().rpartition("port = 0")
    path.write_text(f"{head}port = {port}{rest}{provider.configuration()}")
    provider.stop()  # nothing at the start needs it
    with running(made):
        provider.start()
        database = Database.for_folder(made.folder / "var")
        stored = hash_password(PASSWORD)
        people.add_user(database, 1.0, "test", "ada", Role.ADMINISTRATOR, stored)
        database.close()
        yield made
    assert not any(CLIENT_SECRET in line or "code=" in line for line in made.lines)


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    made = browser.new_context()
    yield made
    made.close()


@pytest.fixture
def page(context: BrowserContext) -> Page:
    return context.new_page()


def sign_in(page: Page, node: NodeProcess, name: str, path: str = "/") -> None:
    """Through the button of the log-in page and the form of the provider."""
    page.goto(f"http://127.0.0.1:{node.web_port}{path}")
    page.get_by_role("link", name=BUTTON).click()
    expect(page.get_by_role("heading", level=1)).to_have_text("The hospital")
    page.get_by_label("Username").fill(name)
    page.get_by_label("Password").fill(PROVIDERS_PASSWORD)
    page.get_by_role("button", name="Sign in").click()


def is_in_as(page: Page, name: str, role: Role) -> None:
    who = page.locator(".who")
    expect(who).to_contain_text(f"{name} (127.0.0.1)")
    expect(who).to_contain_text(f"{role} on MIDSLICE")


def test_a_person_comes_in_with_the_role_of_the_provider_and_returns_to_the_page(
    page: Page, node: NodeProcess
) -> None:
    sign_in(page, node, "otto", "/needs?state=held")
    is_in_as(page, "otto", Role.OPERATOR)
    assert urlsplit(page.url).path == "/needs"
    expect(page.get_by_role("link", name="Users")).to_have_count(0)
    expect(page.get_by_role("link", name="Change password")).to_have_count(0)
    page.goto(f"http://127.0.0.1:{node.web_port}/")
    page.get_by_role("button", name="Drain").click()
    expect(page.get_by_role("button", name="Start jobs again")).to_be_visible()
    page.get_by_role("button", name="Start jobs again").click()
    expect(page.get_by_role("button", name="Drain")).to_be_visible()
    answer = page.goto(f"http://127.0.0.1:{node.web_port}/users")
    assert answer is not None and answer.status == 403
    expect(page.locator("main")).to_contain_text("needs the role administrator")


def test_a_viewer_sees_and_cannot_act(page: Page, node: NodeProcess) -> None:
    sign_in(page, node, "vera")
    is_in_as(page, "vera", Role.VIEWER)
    expect(page.get_by_role("button", name="Drain")).to_have_count(0)


def test_somebody_without_a_role_stays_outside(page: Page, node: NodeProcess) -> None:
    sign_in(page, node, "nora")
    expect(page.get_by_role("alert")).to_contain_text("no role on this node")
    page.goto(f"http://127.0.0.1:{node.web_port}/")
    expect(page.get_by_role("link", name=BUTTON)).to_be_visible()


def test_an_answer_that_is_loaded_again_is_worth_nothing(
    page: Page, node: NodeProcess, browser: Browser
) -> None:
    answers: list[str] = []
    page.on("request", lambda asked: answers.append(asked.url))
    sign_in(page, node, "otto")
    is_in_as(page, "otto", Role.OPERATOR)
    (answer,) = [url for url in answers if OIDC_CALLBACK in url]
    page.goto(answer)
    expect(page.get_by_role("alert")).to_contain_text("This log-in is over")
    other = browser.new_context()
    stolen = other.new_page()
    stolen.goto(answer)
    expect(stolen.get_by_role("alert")).to_contain_text("This log-in is over")
    other.close()


def test_a_log_out_offers_to_log_out_of_the_provider_too(page: Page, node: NodeProcess) -> None:
    sign_in(page, node, "otto")
    is_in_as(page, "otto", Role.OPERATOR)
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("status")).to_contain_text("You are logged out here.")
    page.get_by_role("link", name=BUTTON).click()
    is_in_as(page, "otto", Role.OPERATOR)  # the provider still knows the browser
    page.get_by_role("button", name="Log out").click()
    page.get_by_role("link", name="Log out of 127.0.0.1 too").click()
    page.get_by_role("button", name="Yes, log out").click()
    expect(page.get_by_label("Name", exact=True)).to_be_visible()
    assert urlsplit(page.url).path == "/login"
    page.get_by_role("link", name=BUTTON).click()
    expect(page.get_by_role("heading", level=1)).to_have_text("The hospital")


def test_people_of_the_provider_come_in_after_it_has_a_new_key(
    page: Page, node: NodeProcess, provider: OidcProvider
) -> None:
    provider.stop()
    page.goto(f"http://127.0.0.1:{node.web_port}/login")
    page.get_by_label("Name", exact=True).fill("ada")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in", exact=True).click()
    expect(page.locator(".who")).to_contain_text("administrator on MIDSLICE")
    page.get_by_role("button", name="Log out").click()
    provider.replace_key()
    provider.start()
    sign_in(page, node, "otto")
    is_in_as(page, "otto", Role.OPERATOR)


def test_the_audit_names_the_person_and_the_provider(
    page: Page, node: NodeProcess, provider: OidcProvider
) -> None:
    page.goto(f"http://127.0.0.1:{node.web_port}/login?next=/audit?what=log%20in")
    page.get_by_label("Name", exact=True).fill("ada")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in", exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Audit")
    rows = page.locator("tr", has_text="otto (127.0.0.1)")
    expect(rows.first).to_contain_text(re.compile(re.escape(provider.issuer)))


def test_the_pages_on_a_screen_and_a_phone(
    page: Page, node: NodeProcess, axe: str, tmp_path: Path
) -> None:
    for width in (1400, 390):
        page.set_viewport_size({"width": width, "height": 800})
        page.goto(f"http://127.0.0.1:{node.web_port}/login")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.evaluate(axe)
        faults = page.evaluate("axe.run(document).then(result => result.violations)")
        assert [fault["id"] for fault in faults if fault["impact"] in ("serious", "critical")] == []
