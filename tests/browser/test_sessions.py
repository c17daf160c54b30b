"""What an open page does when its session ends, and what its addresses give away."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from node.web import live
from storage.records import Role
from tests.unit.web.site import PASSWORD, Site, listening_site


@pytest.fixture
def served(
    tmp_path: Path, migrated_sqlite: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Site]:
    monkeypatch.setattr(live, "CHECK_SECONDS", 0.2)
    with listening_site(tmp_path / "site", migrated_sqlite) as made:
        made.user("otto", Role.OPERATOR)
        yield made


@pytest.fixture
def page(browser: Browser, served: Site) -> Iterator[Page]:
    context = browser.new_context()
    found = context.new_page()
    yield found
    context.close()


def log_in(page: Page) -> None:
    page.get_by_label("Name").fill("otto")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()


def open_needs(page: Page, served: Site) -> str:
    """Log in and open a page; its address."""
    address = f"{served.url}/needs?state=held"
    page.goto(address)
    log_in(page)
    expect(page.get_by_role("heading", level=1)).to_have_text("Needs a person")
    assert page.url == address
    return address


def expect_the_way_back(page: Page, address: str) -> None:
    """The page shows nothing more, says so, and leads back to where one was."""
    again = page.get_by_role("link", name="Log in again")
    expect(again).to_be_focused(timeout=30_000)
    expect(page.get_by_role("alert")).to_contain_text("You are logged out.")
    expect(page.locator("main")).to_be_hidden()
    again.click()
    log_in(page)
    expect(page.get_by_role("heading", level=1)).to_have_text("Needs a person")
    assert page.url == address


def test_a_page_that_nobody_uses_says_log_in_again_and_leads_back(page: Page, served: Site) -> None:
    address = open_needs(page, served)
    served.clock.now += 1800
    served.rows.ask("k")  # it fetches by itself what has changed
    served.rows.queue.hold(served.rows.claim(), "MISSING_SLICES", "A slice is missing.")
    expect(page.locator("#need-count")).to_contain_text("1", timeout=30_000)
    served.clock.now += 1801
    expect_the_way_back(page, address)


def test_a_page_whose_stream_is_refused_says_log_in_again(page: Page, served: Site) -> None:
    address = open_needs(page, served)
    served.app.state.live.close()  # the node starts again; meanwhile the session has ended
    served.clock.now += 3601
    served.app.state.live._closed = False
    expect_the_way_back(page, address)


def test_a_button_that_is_pressed_too_late_says_log_in_again(page: Page, served: Site) -> None:
    for path in ("live?*", "api/v1/me"):  # nothing else has told the page before
        page.route(f"**/{path}", lambda route: route.abort())
    page.goto(f"{served.url}/")
    log_in(page)
    drain = page.get_by_role("button", name="Drain")
    expect(drain).to_be_visible()
    served.clock.now += 3601
    drain.click()
    expect(page.get_by_role("link", name="Log in again")).to_be_focused()


def test_a_search_loaded_again_or_gone_back_to_names_no_patient(page: Page, served: Site) -> None:
    served.rows.receive("1.1")
    asked: list[str] = []
    page.on("request", lambda one: asked.append(one.url))
    page.goto(f"{served.url}/find")
    log_in(page)
    accession = page.get_by_label("Accession number", exact=True)
    accession.fill("A1")
    page.keyboard.press("Enter")
    found = page.get_by_role("region", name="Series").get_by_role("link", name="CT")
    expect(found).to_be_visible()
    found.click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Series")
    page.go_back()
    expect(found).to_be_visible()
    expect(accession).to_have_value("A1")
    page.reload()
    expect(found).to_be_visible()
    assert "/find?search=" in page.url
    assert [url for url in asked if "A1" in url.partition("search=")[0]] == []
