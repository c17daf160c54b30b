"""Destinations are paused and asked, strangers are seen and let in."""

from playwright.sync_api import expect

from storage import switches
from storage.site import SwitchName
from tests import phantoms
from tests.browser.conftest import Open
from tests.browser.site import Site

SOON = 20_000.0


def test_a_destination_is_paused_and_resumed(site: Site, open_page: Open) -> None:
    page = open_page("/peers", "otto")
    row = page.locator("tr", has_text="STORESCP at 127.0.0.1")
    row.get_by_role("button", name="Pause").click()
    expect(row).to_contain_text("paused")
    expect(row).to_contain_text("by otto")
    try:
        job = site.job_of(phantoms.uid("tilted", "series", 3), state="succeeded")
        other = open_page(f"/jobs/{job}", "otto")
        other.get_by_role("button", name="Send again").click()
        expect(other.get_by_role("region", name="Deliveries")).to_contain_text("queued")
        other.goto(site.url)
        sending = other.locator("#sending-part tr", has_text="archive")
        expect(sending).to_contain_text("paused", timeout=SOON)
    finally:
        row.get_by_role("button", name="Resume").click()
    expect(row).not_to_contain_text("paused", timeout=SOON)
    expect(sending).to_have_count(0, timeout=SOON)


def test_a_destination_is_asked_and_its_answer_shown(open_page: Open) -> None:
    page = open_page("/peers", "otto")
    row = page.locator("tr", has_text="STORESCP at 127.0.0.1")
    row.get_by_role("button", name="Echo").click()
    expect(row).to_contain_text("answered", timeout=SOON)


def test_who_does_not_answer_is_shown_as_down(open_page: Open) -> None:
    page = open_page("/peers", "otto")
    row = page.locator("tr", has_text="CLINIC at 127.0.0.1")
    row.get_by_role("button", name="Echo").click()
    expect(row).to_contain_text("does not answer", timeout=SOON)


def test_who_was_turned_away_is_listed_with_the_reason(open_page: Open) -> None:
    page = open_page("/peers")
    rejected = page.get_by_role("region", name="Rejected associations")
    row = rejected.locator("tr", has_text="STRANGER")
    expect(row).to_contain_text("NOBODY")
    expect(row).to_contain_text("called AE title not recognised")
    # It may call itself as it likes: no list of calling AE titles is the reason.
    expect(row.get_by_role("button")).to_have_count(0)


def test_a_calling_ae_title_that_was_let_in_is_taken_back(site: Site, open_page: Open) -> None:
    now = 1.7e9
    switches.turn(site.database, now, "ada", SwitchName.ALLOWED_AE, "CT & CO", on=True)
    page = open_page("/peers")
    rejected = page.get_by_role("region", name="Rejected associations")
    expect(rejected).to_contain_text("CT & CO by ada")
    page.get_by_role("button", name="Take back").click()
    expect(rejected).not_to_contain_text("CT & CO", timeout=SOON)
    assert switches.all_on(site.database, SwitchName.ALLOWED_AE) == ()


def test_senders_are_listed_with_what_they_brought_today(open_page: Open) -> None:
    page = open_page("/peers")
    row = page.get_by_role("region", name="Senders").locator("tr", has_text="CT_ER")
    expect(row).to_contain_text("1 series")
    expect(row).to_contain_text("8 instances")
