"""The configuration as read, the rule tester, and a new config.toml by a button."""

import time
from dataclasses import replace
from pathlib import Path

from playwright.sync_api import Browser, expect

from node.web.access import hash_password
from storage.records import Role
from storage.site import people
from tests import phantoms
from tests.browser.conftest import Open, log_in
from tests.browser.site import PASSWORD, PHANTOM, Site

SOON = 30_000.0


def test_a_dropped_file_is_told_which_routes_take_it_and_why_others_do_not(
    open_page: Open, tmp_path: Path
) -> None:
    made = replace(PHANTOM, seed="dropped", slices=3)
    page = open_page("/configuration")
    page.locator("#file").set_input_files(phantoms.write(tmp_path, made))
    page.get_by_role("button", name="Try").click()
    tried = page.locator("#rules-result")
    expect(tried).to_contain_text("3 instances", timeout=SOON)
    expect(tried.locator("tr", has_text="thick-ct")).to_contain_text("yes")
    shadow = tried.locator("tr", has_text="shadow")
    expect(shadow).to_contain_text("no")
    expect(shadow).to_contain_text("StudyDescription is CT Thorax")
    expect(tried).to_contain_text("would be processed")


def test_a_received_series_is_tried_without_being_processed_again(
    site: Site, open_page: Open
) -> None:
    uid = phantoms.uid("held", "series", 3)
    page = open_page(f"/configuration?series_uid={uid}")
    page.get_by_role("button", name="Try").click()
    tried = page.locator("#rules-result")
    expect(tried).to_contain_text("MISSING_SLICES", timeout=SOON)
    expect(tried).to_contain_text("8 instances")


def test_an_operator_tries_a_series_and_a_try_that_fails_leaves_no_verdict(
    open_page: Open,
) -> None:
    page = open_page(f"/rules?series_uid={phantoms.uid('held', 'series', 3)}", "otto")
    page.get_by_role("button", name="Try").click()
    tried = page.locator("#rules-result")
    expect(tried).to_contain_text("MISSING_SLICES", timeout=SOON)
    page.get_by_label("Or a received series").fill("1.2.3")
    page.get_by_role("button", name="Try").click()
    expect(page.locator("#message")).to_contain_text("No series 1.2.3 was received")
    expect(tried).to_be_empty()


def test_nothing_to_try_is_said(open_page: Open) -> None:
    page = open_page("/configuration")
    page.get_by_role("button", name="Try").click()
    expect(page.locator("#message")).to_contain_text("Choose a Part 10 file")


def test_a_file_that_is_no_image_is_said_to_be_none(open_page: Open, tmp_path: Path) -> None:
    (tmp_path / "none.dcm").write_bytes(b"no image at all" * 40)
    page = open_page("/configuration")
    page.locator("#file").set_input_files(tmp_path / "none.dcm")
    page.get_by_role("button", name="Try").click()
    expect(page.locator("#rules-result")).to_contain_text("form no stack", timeout=SOON)


def test_routes_and_destinations_are_shown_as_read(open_page: Open) -> None:
    page = open_page("/configuration")
    routes = page.locator("section[aria-labelledby=routes-title]")
    expect(routes.locator("tr", has_text="thick-ct")).to_contain_text("gap_mm at least 2")
    expect(routes.locator("tr", has_text="route[1]")).to_contain_text("shadow mode")
    places = page.locator("section[aria-labelledby=places-title]")
    expect(places.locator("tr", has_text="archive")).to_contain_text("STORESCP")


def test_a_mistake_is_shown_with_its_key_and_the_node_goes_on(site: Site, open_page: Open) -> None:
    file = site.node.folder / "config.toml"
    good = file.read_text()
    page = open_page("/configuration")
    try:
        file.write_text(good.replace("factor = 4", "factor = 40"))
        page.get_by_role("button", name="Apply config.toml").click()
        alert = page.get_by_role("alert")
        expect(alert).to_contain_text("route[0].factor", timeout=SOON)
        expect(page.locator("section[aria-labelledby=routes-title]")).to_contain_text("factor 4")
        file.write_text(good.replace("factor = 4", "factor = 3"))
        page.get_by_role("button", name="Apply config.toml").click()
        expect(page.locator("section[aria-labelledby=routes-title]")).to_contain_text(
            "factor 3", timeout=SOON
        )
        expect(alert).to_have_count(0)
    finally:
        file.write_text(good)
        page.get_by_role("button", name="Apply config.toml").click()
    expect(page.locator("section[aria-labelledby=routes-title]")).to_contain_text(
        "factor 4", timeout=SOON
    )


def test_users_are_added_changed_and_removed(open_page: Open) -> None:
    page = open_page("/users")
    form = page.locator("#new-user")
    form.get_by_label("Name").fill("nina")
    form.get_by_label("Password").fill("a long enough one")
    form.get_by_role("button", name="Add").click()
    row = page.locator("#users-part tr", has_text="nina")
    expect(row).to_be_visible()
    row.get_by_role("button", name="Disable").click()
    expect(row).to_contain_text("cannot log in")
    page.once("dialog", lambda question: question.accept())
    row.get_by_role("button", name="Remove").click()
    expect(row).to_have_count(0)


def test_a_forgotten_password_is_set_by_an_administrator(
    site: Site, open_page: Open, browser: Browser
) -> None:
    people.add_user(site.database, time.time(), "test", "pia", Role.VIEWER, hash_password(PASSWORD))
    theirs = browser.new_context().new_page()
    log_in(theirs, site, "pia")
    expect(theirs.get_by_role("heading", level=1)).to_have_text("Now")
    page = open_page("/users")
    row = page.locator("#users-part tr", has_text="pia")
    field = row.get_by_label("New password of pia")
    field.fill("another long one")
    with page.expect_response("**/users/part"):  # rows that come meanwhile take no letter away
        page.evaluate("htmx.trigger(document.body, 'live-configuration')")
    expect(field).to_have_value("another long one")
    row.get_by_role("button", name="Set").click()
    expect(page.locator("#message")).to_contain_text(
        "pia has a new password, and must log in again."
    )
    expect(field).to_have_value("")
    expect(row).to_contain_text("not now")
    theirs.reload()
    expect(theirs.get_by_role("button", name="Log in")).to_be_visible()
    log_in(theirs, site, "pia", "another long one")
    expect(theirs.get_by_role("heading", level=1)).to_have_text("Now")
    theirs.context.close()
    mine = page.locator("#users-part tr", has_text="you")
    expect(mine.get_by_role("link", name="Change your own")).to_be_visible()


def test_a_token_is_shown_once(open_page: Open) -> None:
    page = open_page("/users")
    form = page.locator("#new-token")
    form.get_by_label("What for").fill("monitoring")
    form.get_by_role("button", name="Add").click()
    token = page.locator("[data-shows] code")
    expect(token).to_contain_text("midslice_")
    text = token.inner_text()
    page.reload()
    expect(page.locator("#users-part tr", has_text="monitoring")).to_be_visible()
    assert text not in page.content()
