"""Logging in and out, and what each role may do."""

import pytest
from playwright.sync_api import expect

from tests import phantoms
from tests.browser.conftest import Open, log_in
from tests.browser.site import Site

HELD = phantoms.uid("held", "series", 3)


def test_a_stranger_sees_the_log_in_and_comes_back_to_the_page_that_was_asked_for(
    site: Site, open_page: Open
) -> None:
    page = open_page("/capacity", name="")
    assert page.url.startswith(f"{site.url}/login?next=")
    page.get_by_label("Name").fill("vera")
    page.get_by_label("Password").fill("correct horse battery")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Capacity")


def test_a_wrong_password_is_said_and_nothing_is_shown(site: Site, open_page: Open) -> None:
    page = open_page("/login", name="")
    log_in(page, site, "ada", "not the password")
    expect(page.get_by_role("alert")).to_contain_text("The name or the password is wrong.")
    page.goto(site.url)
    assert "/login" in page.url


def test_who_has_logged_out_is_a_stranger_again(site: Site, open_page: Open) -> None:
    page = open_page("/login", name="")
    log_in(page, site, "vera")
    page.get_by_role("button", name="Log out").click()
    page.wait_for_url("**/login")
    page.goto(f"{site.url}/peers")
    assert "/login" in page.url


def test_somebody_changes_the_own_password_and_logs_in_with_the_new_one(
    site: Site, open_page: Open
) -> None:
    page = open_page("/", "lena")
    page.get_by_role("link", name="Change password").click()
    page.get_by_label("Old password").fill("not the password")
    page.get_by_label("New password").fill("correct horse stable")
    page.get_by_role("button", name="Change").click()
    expect(page.get_by_role("status")).to_contain_text("The old password is wrong")
    page.get_by_label("Old password").fill("correct horse battery")
    page.get_by_role("button", name="Change").click()
    page.wait_for_url("**/login")
    log_in(page, site, "lena", "correct horse stable")
    expect(page.get_by_role("heading", level=1)).to_have_text("Now")


def test_a_link_to_the_log_in_does_not_lead_to_another_site(site: Site, open_page: Open) -> None:
    page = open_page("/login?next=//example.org/", name="")
    page.get_by_label("Name").fill("vera")
    page.get_by_label("Password").fill("correct horse battery")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Now")
    assert page.url == f"{site.url}/"


@pytest.mark.parametrize("path", ["/", "/needs", "/peers", "/selftest"])
def test_a_viewer_sees_no_button_that_acts(open_page: Open, path: str) -> None:
    page = open_page(path, "vera")
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    assert page.locator("main [hx-post], main [hx-delete], main [hx-patch]").count() == 0


def test_a_viewer_who_acts_all_the_same_is_refused(site: Site, open_page: Open) -> None:
    job = site.job_of(HELD, state="held")
    page = open_page(f"/jobs/{job}", "vera")
    csrf = page.evaluate("JSON.parse(document.body.getAttribute('hx-headers'))['X-CSRF-Token']")
    answer = page.request.post(
        f"{site.url}/api/v1/jobs/{job}/requeue", headers={"X-CSRF-Token": csrf}
    )
    assert answer.status == 403
    assert "needs the role operator" in answer.json()["detail"]
    assert site.job_of(HELD) == job


@pytest.mark.parametrize("path", ["/users", "/configuration", "/audit"])
def test_an_operator_does_not_see_what_is_an_administrators(
    site: Site, open_page: Open, path: str
) -> None:
    page = open_page("/", "otto")
    assert page.locator(f'nav a[href="{path}"]').count() == 0
    answer = page.goto(site.url + path)
    assert answer is not None and answer.status == 403
    expect(page.locator("main")).to_contain_text("needs the role administrator")


def test_a_request_without_the_token_of_the_page_changes_nothing(
    site: Site, open_page: Open
) -> None:
    page = open_page("/", "ada")
    answer = page.request.post(f"{site.url}/api/v1/drain")
    assert answer.status == 403
    page.reload()
    expect(page.get_by_role("button", name="Drain")).to_be_visible()
