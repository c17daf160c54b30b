"""Destinations are paused and asked, strangers are seen and let in."""

from playwright.sync_api import expect

from storage.records import SwitchName
from storage.site import control
from tests import phantoms
from tests.browser.conftest import Open
from tests.browser.site import Site
from tests.node_process import wait_for
from tests.peers import echoscu

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
    expect(page.locator("#alert-count")).to_contain_text("to look at", timeout=SOON)
    now = open_page("/", "otto")
    needs = now.get_by_role("region", name="Needs a person")
    expect(needs).to_contain_text("clinic has not answered for", timeout=SOON)
    needs.get_by_role("link", name="clinic").click()
    expect(now.get_by_role("heading", level=1)).to_have_text("Peers")


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
    control.turn(site.database, now, "ada", SwitchName.ALLOWED_AE, "CT & CO", on=True)
    page = open_page("/peers")
    rejected = page.get_by_role("region", name="Rejected associations")
    expect(rejected).to_contain_text("CT & CO by ada")
    page.get_by_role("button", name="Undo").click()
    expect(rejected).not_to_contain_text("CT & CO", timeout=SOON)
    assert control.all_on(site.database, SwitchName.ALLOWED_AE) == ()


def test_a_stranger_is_let_in_with_one_click(site: Site, open_page: Open) -> None:
    def comes_in() -> bool:
        return echoscu(site.node.port, calling="NEW_CT").code == 0

    file = site.node.folder / "config.toml"
    before = file.read_text()
    only = 'ae_title = "MIDSLICE"\nallowed_ae_titles = ["CT_ROOM_2"]'
    file.write_text(before.replace('ae_title = "MIDSLICE"', only, 1))
    try:
        site.node.hang_up()
        wait_for("a stranger is turned away", lambda: not comes_in())
        page = open_page("/peers")
        rejected = page.get_by_role("region", name="Rejected associations")
        row = rejected.locator("tr", has_text="NEW_CT")
        expect(row).to_contain_text("calling AE title not recognised")
        row.get_by_role("button", name="Allow this AE title").click()
        expect(page.locator("#message")).to_contain_text("NEW_CT may open associations now.")
        expect(row).to_contain_text("allowed now", timeout=SOON)
        expect(rejected).to_contain_text("NEW_CT by ada")
        wait_for("NEW_CT is let in", comes_in)
        page.get_by_role("button", name="Undo").click()
        wait_for("NEW_CT is turned away again", lambda: not comes_in())
    finally:
        file.write_text(before)
        site.node.hang_up()
        wait_for("anybody is let in again", comes_in)


def test_senders_are_listed_with_what_they_brought_today(open_page: Open) -> None:
    page = open_page("/peers")
    row = page.get_by_role("region", name="Senders").locator("tr", has_text="CT_ER")
    expect(row).to_contain_text("1 series")
    expect(row).to_contain_text("8 instances")
