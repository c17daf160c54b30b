"""The pages of jobs that made no slices: an outline, scores with their map, and what was sent."""

import re

from playwright.sync_api import Page, expect

from tests.browser.conftest import Open
from tests.browser.site import Site
from tests.browser.test_job import loaded
from tests.node_process import wait_for

# What a page of scores never says.
DIAGNOSES = re.compile(
    "bleed|haemorrhage (found|present|seen)|no haemorrhage|normal|negative", re.I
)


def laid_over(page: Page) -> bool:
    """True where something that has pixels lies over the current slice."""
    return bool(
        page.evaluate(
            """() => { const one = document.querySelector(".picture.now img.tint");
              return !one.hidden && one.naturalWidth > 0 }"""
        )
    )


def test_an_outline_lies_over_every_slice_until_it_is_turned_off(
    site: Site, open_page: Open
) -> None:
    page = open_page(f"/jobs/{site.job_by('brain')}")
    loaded(page, "now")
    button = page.get_by_role("button", name="Brain outline")
    expect(button).to_have_attribute("aria-pressed", "true")
    wait_for("it lies over the slice", lambda: laid_over(page))
    assert laid_over(page)
    button.click()
    assert not laid_over(page)
    results = page.get_by_role("region", name="Results")
    expect(results.get_by_role("row")).to_have_count(3)
    expect(results).to_contain_text("Segmentation (SEG)")
    expect(results).to_contain_text("archive: stored")


def test_scores_lead_to_their_slices_and_to_the_map_over_them(site: Site, open_page: Open) -> None:
    page = open_page(f"/jobs/{site.job_by('haemorrhage')}")
    loaded(page, "now")
    wait_for("it lies over the slice", lambda: laid_over(page))
    scores = page.get_by_role("region", name="Haemorrhage: scores")
    expect(scores).to_contain_text("Score of the series, above the threshold of")
    expect(scores).to_contain_text("a score below it rules nothing out")
    expect(scores).to_contain_text("what the network used, not where blood is.")
    highest = scores.locator("[data-slice]").first
    name = highest.inner_text().split()[1]
    page.get_by_role("slider", name="Slice").press("Home")
    assert not laid_over(page)  # the first slice has no map
    highest.click()
    expect(page.locator("#slice-text")).to_contain_text(f"Image {name} of the received series")
    wait_for("it lies over the slice", lambda: laid_over(page))
    page.get_by_role("slider", name="Slice").press("Home")
    scores.locator("svg rect.high").last.click()
    expect(page.locator("#slice-text")).not_to_contain_text("Image 1 of")
    assert DIAGNOSES.findall(page.locator("main").inner_text()) == []


def test_reports_key_images_and_page_are_listed_with_their_delivery(
    site: Site, open_page: Open
) -> None:
    page = open_page(f"/jobs/{site.job_by('haemorrhage')}")
    results = page.get_by_role("region", name="Results")
    for name in ("Structured report (SR)", "Key object selection (KOS)", "Secondary capture (SC)"):
        row = results.get_by_role("row").filter(has_text=name)
        expect(row).to_contain_text("archive: stored", timeout=20_000)


def test_lists_name_the_model(site: Site, open_page: Open) -> None:
    site.job_by("haemorrhage")
    expect(open_page("/find").locator("main")).to_contain_text("head-scores, by haemorrhage")
    # The front page shows the last jobs alone; those of other tests may have come after it.
    expect(open_page("/").locator("main")).to_contain_text(re.compile(r"from \w+, [\w-]+, by \w+"))


def test_findings_lead_to_their_slice_with_their_outline(site: Site, open_page: Open) -> None:
    page = open_page(f"/jobs/{site.job_by('balls')}")
    loaded(page, "now")
    findings = page.get_by_role("region", name="Nodule: findings")
    rows = findings.get_by_role("row")
    expect(rows).to_have_count(3)
    expect(findings).to_contain_text("from a score of 0.50 on")
    expect(rows.nth(1)).to_contain_text("right")
    expect(rows.nth(2)).to_contain_text("left")
    for row in (rows.nth(2), rows.nth(1)):
        link = row.locator("[data-slice]")
        link.click()
        name = link.inner_text().split()[1]
        expect(page.locator("#slice-text")).to_contain_text(f"Image {name} of the received series")
        wait_for("it lies over the slice", lambda: laid_over(page))
        assert laid_over(page)
    expect(page.get_by_role("button", name="Lung", exact=True)).to_have_attribute(
        "aria-pressed", "true"
    )
    results = page.get_by_role("region", name="Results")
    expect(results.get_by_role("row")).to_have_count(7)
    for name in ("Segmentation (SEG), organs", "Segmentation (SEG), findings"):
        expect(results).to_contain_text(name)
    assert DIAGNOSES.findall(page.locator("main").inner_text()) == []
