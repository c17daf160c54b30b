"""Capacity: it follows what the node does without being loaded again."""

from dataclasses import replace

from playwright.sync_api import expect

from tests.browser.conftest import Open
from tests.browser.site import PHANTOM, Site

SOON = 20_000.0


def test_a_job_that_ends_is_counted_and_says_its_device(site: Site, open_page: Open) -> None:
    page = open_page("/capacity")
    figure = page.locator(".figure", has_text="Jobs, 24 hours").locator("b")
    before = int(figure.inner_text())
    page.evaluate("window.same = true")
    uid = site.send(replace(PHANTOM, seed="capacity", description="For the figures"))
    site.job_of(uid, state="succeeded")
    expect(figure).to_have_text(str(before + 1), timeout=SOON)
    expect(page.locator(".figure", has_text="Workers")).to_contain_text("most recently cpu")
    assert page.evaluate("window.same") is True  # the page was never loaded again
