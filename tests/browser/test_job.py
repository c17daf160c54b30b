"""The page of a job: time line, pictures, geometry, deliveries."""

import re
import time
from dataclasses import replace
from functools import partial

from playwright.sync_api import Page, Route, expect

from node.web.live import POLL_SECONDS
from storage.leases import Holder
from storage.ledger import Ledger
from storage.records import SwitchName
from storage.site import control
from tests import phantoms, series
from tests.browser.conftest import Open
from tests.browser.site import PHANTOM, Site, with_holes
from tests.node_process import wait_for

SOON = 20_000.0
TILTED = phantoms.uid("tilted", "series", 3)


def loaded(page: Page, name: str) -> None:
    """A picture is there and has pixels."""
    shown = "name => document.querySelector(`[data-picture=${name}] img`).naturalWidth > 0"
    # The page's policy forbids what `wait_for_function` evaluates each time that it looks.
    wait_for(f"picture {name} is loaded", lambda: page.evaluate(shown, name))


def greys(page: Page) -> str:
    return str(page.locator("#window feFuncR").get_attribute("tableValues"))


def test_slices_are_shown_beside_those_they_lie_between(site: Site, open_page: Open) -> None:
    job = site.job_of(series.SERIES_UID, state="succeeded")
    page = open_page(f"/jobs/{job}")
    for name in ("before", "now", "after"):
        loaded(page, name)
    tags = page.locator(".three .tag").all_inner_texts()
    assert tags == ["received", "generated, not acquired", "received"]
    says = page.locator("#slice-text").inner_text()
    of_pacs = r"Image \d+ of 29 in the derived series, z -[\d.]+ mm, generated, not acquired"
    assert re.fullmatch(of_pacs, says)
    page.get_by_role("slider", name="Slice").press("Home")
    first = "Image 29 of 29 in the derived series, z -240.00 mm, received as image 93"
    expect(page.locator("#slice-text")).to_have_text(first)
    page.get_by_role("slider", name="Slice").press("ArrowRight")
    expect(page.locator("#slice-text")).to_contain_text("Image 28 of 29")
    expect(page.locator("#slice-text")).to_contain_text("generated, not acquired")
    page.locator("[data-strip]").click(position={"x": 2, "y": 10})
    expect(page.locator("#slice-text")).to_have_text(first)


def test_a_page_that_is_open_while_the_job_ends_shows_all_of_it(
    site: Site, open_page: Open
) -> None:
    site.wait_for_models()
    drained = partial(control.turn, site.database, time.time(), "test", SwitchName.DRAINING)
    drained(on=True)
    try:
        uid = site.send(replace(PHANTOM, seed="opened", description="Opened while queued"))
        page = open_page(f"/jobs/{site.job_of(uid, state='queued')}", "otto")
        page.evaluate("window.same = true")
        expect(page.locator("#viewer")).to_have_count(0)
    finally:
        drained(on=False)
    expect(page.locator("#viewer")).to_be_visible(timeout=SOON)
    loaded(page, "now")
    expect(page.get_by_alt_text("Sagittal reformat of the derived")).to_be_visible()
    result = page.get_by_role("region", name="What was done")
    expect(result).to_contain_text("8 received, 21 generated")
    expect(page.get_by_role("region", name="Geometry", exact=True)).to_contain_text("8 received")
    page.get_by_role("slider", name="Slice").press("Home")
    with page.expect_response("**/seen?**"):
        page.evaluate("htmx.trigger(document.body, 'changed')")
    expect(page.locator("#slice-text")).to_contain_text("Image 1 of 29")  # it stays where it was
    page.get_by_role("button", name="Lung").click()
    expect(page.get_by_role("button", name="Lung")).to_have_attribute("aria-pressed", "true")
    assert page.evaluate("window.same") is True  # the page was never loaded again


def test_a_change_between_a_page_and_its_stream_is_shown(site: Site, open_page: Open) -> None:
    open_page("/")  # it listens: what changes is known before the other page's stream begins
    page = open_page("/", "otto")
    streams: list[Route] = []
    page.route("**/live?*", lambda stream: streams.append(stream))
    site.wait_for_models()
    drained = partial(control.turn, site.database, time.time(), "test", SwitchName.DRAINING)
    drained(on=True)
    try:
        uid = site.send(replace(PHANTOM, seed="late", description="Its stream comes late"))
        page.goto(f"{site.url}/jobs/{site.job_of(uid, state='queued')}")
    finally:
        drained(on=False)
    site.job_of(uid, state="succeeded")
    page.wait_for_timeout(2 * POLL_SECONDS * 1000)
    for stream in streams:
        stream.continue_()
    expect(page.locator("#viewer")).to_be_visible(timeout=SOON)


def test_a_window_changes_the_greys_of_every_picture(site: Site, open_page: Open) -> None:
    page = open_page(f"/jobs/{site.job_of(series.SERIES_UID)}")
    loaded(page, "now")
    soft = greys(page)
    assert len(soft.split()) == 256
    page.get_by_role("button", name="Lung").click()
    lung = greys(page)
    assert lung != soft
    # At -600 HU, the centre of the lung window, half grey; in soft tissue black.
    assert 0.4 < max(float(v) for v in lung.split()[:31]) < 0.6
    assert {float(v) for v in soft.split()[:31]} == {0.0}
    expect(page.get_by_role("button", name="Lung")).to_have_attribute("aria-pressed", "true")


def test_the_reformats_before_and_after_show_the_same_place(site: Site, open_page: Open) -> None:
    page = open_page(f"/jobs/{site.job_of(series.SERIES_UID)}")
    sizes = [
        page.get_by_alt_text(name).evaluate("one => [one.naturalWidth, one.naturalHeight]")
        for name in ("Sagittal reformat of the received", "Sagittal reformat of the derived")
    ]
    assert sizes[0] == sizes[1]
    assert min(sizes[0]) > 0


def test_geometry_time_line_and_deliveries_tell_the_whole_way(site: Site, open_page: Open) -> None:
    page = open_page(f"/jobs/{site.job_of(series.SERIES_UID)}")
    geometry = page.get_by_role("region", name="Geometry", exact=True)
    expect(geometry).to_contain_text("8 received")
    expect(geometry).to_contain_text("21 generated")
    expect(geometry).to_contain_text("Gaps between received slices: 5 mm. No gantry tilt.")
    steps = page.locator(".steps li")
    expect(steps.first).to_contain_text("8 instances from STORESCU")
    expect(steps.nth(1)).to_contain_text("No further instance came for")
    expect(steps.last).to_contain_text("Sent to archive 30 of 30 stored there.")
    deliveries = page.get_by_role("region", name="Deliveries")
    expect(deliveries).to_contain_text("sent")
    expect(deliveries).to_contain_text("30 × 0000 stored")


def test_a_gap_that_was_left_is_hatched_in_every_view(site: Site, open_page: Open) -> None:
    """Two slices are missing and the route fills the other gaps."""
    uid = site.send(
        replace(with_holes("left"), description="Thorax with a gap that is left"), calling="LEAVES"
    )
    page = open_page(f"/jobs/{site.job_of(uid, state='succeeded')}")
    expect(page.get_by_role("region", name="Slices")).to_contain_text("neither acquired nor")
    strip = page.locator(".strip svg")
    expect(strip.locator(".left")).to_have_count(1)
    strip.locator(".left").click()
    expect(page.locator("#slice-text")).to_contain_text("received as image 4")  # before the gap
    page.get_by_role("slider", name="Slice").press("ArrowRight")
    expect(page.locator("#slice-text")).to_contain_text("received as image 7")  # behind it
    for plane in ("Sagittal", "Coronal"):
        figure = page.locator(
            "figure", has=page.get_by_alt_text(f"{plane} reformat of the derived")
        )
        expect(figure).to_contain_text("slices generated, not acquired")
        expect(figure.locator(".edge")).to_be_visible()
    expect(page.get_by_role("region", name="What was done")).to_contain_text(
        "Not filled, because slices are missing there: between images 4 and 7."
    )


def test_a_tilt_is_drawn_and_said(site: Site, open_page: Open) -> None:
    page = open_page(f"/jobs/{site.job_of(TILTED)}")
    geometry = page.get_by_role("region", name="Geometry", exact=True)
    expect(geometry).to_contain_text("The gantry was tilted by 15.0°.")
    line = page.locator(".geometry .now")
    assert line.get_attribute("x1") != line.get_attribute("x2")


def test_what_was_sent_is_sent_again(site: Site, open_page: Open) -> None:
    job = site.job_of(TILTED, state="succeeded")
    for file in site.archive.files():
        file.unlink()
    page = open_page(f"/jobs/{job}", "otto")
    page.get_by_role("button", name="Send again").click()
    expect(page.locator("#message")).to_contain_text("The result is sent once more.")
    expect(page.get_by_role("region", name="Deliveries")).to_contain_text("30 of 30", timeout=SOON)
    expect(page.locator("#progress")).to_contain_text("30 × 0000", timeout=SOON)


def test_what_waits_for_an_hour_is_tried_now(site: Site, open_page: Open) -> None:
    uid = site.send(replace(PHANTOM, seed="hour", description="Waits for an hour"))
    job = site.job_of(uid, state="succeeded")
    database, ledger = site.database, Ledger(site.database, Holder("x", time.time, 60.0))
    control.turn(database, time.time(), "test", SwitchName.PAUSED, "clinic", on=True)
    ledger.redeliver(job, "clinic")
    leased = ledger.claim("clinic", "test")
    assert leased is not None
    ledger.retry(leased, time.time() + 3600, "RETRY", "The clinic did not answer.")
    control.turn(database, time.time(), "test", SwitchName.PAUSED, "clinic", on=False)
    page = open_page(f"/jobs/{job}", "otto")
    row = page.locator(f"#delivery-{leased.id}")
    expect(row).to_contain_text("tries again in 59 min")
    row.get_by_role("button", name="Try now").click()
    expect(page.locator("#message")).to_contain_text("It is sent to clinic now.")
    expect(row.locator("[data-label=Attempts]")).not_to_have_text("1", timeout=SOON)
    row.get_by_role("button", name="Give up").wait_for(timeout=SOON)
    ledger.cancel(leased.id)


def test_a_held_job_says_why_and_what_to_do(site: Site, open_page: Open) -> None:
    page = open_page(f"/jobs/{site.job_of(phantoms.uid('held', 'series', 3))}")
    banner = page.locator(".banner")
    expect(banner).to_contain_text("About 2 slices are missing")
    expect(banner).to_contain_text("MISSING_SLICES")


def test_where_slices_are_missing_is_drawn_for_a_held_job(site: Site, open_page: Open) -> None:
    page = open_page(f"/jobs/{site.job_of(phantoms.uid('held', 'series', 3))}")
    geometry = page.get_by_role("region", name="Geometry", exact=True)
    expect(geometry).to_contain_text("8 received")
    expect(geometry).to_contain_text("about 2 slices missing in 1 gap")
    expect(geometry).to_contain_text("Gaps between received slices: 5 to 15 mm.")
    expect(geometry.locator("svg .hole")).to_have_count(1)
    drawn = str(geometry.locator(".absent").get_attribute("d"))
    assert drawn.count("M") == 2
    expect(geometry.locator(".now")).to_be_hidden()


def test_only_pictures_of_the_job_are_served(site: Site, open_page: Open) -> None:
    job = site.job_of(series.SERIES_UID)
    page = open_page("/")
    for name in ("index.json", "..%2F00001.dcm", "%2e%2e%2f00001.dcm", "00001.dcm", "99999.png"):
        answer = page.request.get(f"{site.url}/jobs/{job}/pictures/{name}")
        assert answer.status in (404, 422), name
    assert page.request.get(f"{site.url}/jobs/{job}/pictures/00000.png").ok


def test_the_received_instances_are_listed_when_they_are_asked_for(
    site: Site, open_page: Open
) -> None:
    page = open_page(f"/jobs/{site.job_of(TILTED)}")
    page.get_by_role("button", name="Show the received instances").click()
    expect(page.locator("#instances tbody tr")).to_have_count(8)


def test_a_job_that_is_not_there_is_said_to_be_missing(site: Site, open_page: Open) -> None:
    page = open_page("/jobs/999999")
    expect(page.locator("main")).to_contain_text("No job 999999.")
