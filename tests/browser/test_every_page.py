"""What holds for every page: hostile text stays text, keyboard, phone, contrast, names for all."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from node import wording
from node.web.pages import render
from tests import phantoms
from tests.browser.conftest import Open
from tests.browser.site import NAME, SCRIPT, Site

PICTURE = '"><img src=x onerror=alert(3)>'
HOSTILE = phantoms.uid("hostile", "series", 3)
PAGES = (
    "/",
    "/needs",
    "/needs?state=held",
    "/find",
    "/find?text=A1",
    "/sending",
    "/jobs/{real}",
    "/jobs/{held}",
    "/jobs/{brain}",
    "/jobs/{haemorrhage}",
    "/jobs/{balls}",
    "/series/{uid}",
    "/peers",
    "/capacity",
    "/capacity?span=week",
    "/rules",
    "/configuration",
    "/users",
    "/selftest",
    "/audit",
    "/conformance",
    "/password",
    "/login",
    "/nowhere",
)
PHONE = {"width": 390, "height": 844}
# Buttons that are cut off, outside of what may be scrolled by itself.
BEYOND = """width => [...document.querySelectorAll("main button, main input, main select")]
  .filter(one => { const box = one.getBoundingClientRect();
    return box.width > 0 && (box.left < 0 || box.right > width) && !one.closest(".scroll") })
  .map(one => one.outerHTML.slice(0, 120))"""


@pytest.fixture
def path_of(site: Site) -> Any:
    real = site.job_of(phantoms.uid("tilted", "series", 3))
    held = site.job_of(phantoms.uid("held", "series", 3))
    models = {model: site.job_by(model) for model in ("brain", "haemorrhage", "balls")}
    return lambda path: path.format(real=real, held=held, uid=HOSTILE, **models)


def test_a_script_in_every_text_of_a_peer_is_text_on_every_page(
    site: Site, open_page: Open
) -> None:
    job = site.job_of(HOSTILE)
    page = open_page(f"/jobs/{job}")
    expect(page.get_by_role("heading", level=1)).to_contain_text(SCRIPT)
    facts = page.get_by_role("region", name="Received series")
    expect(facts).to_contain_text(NAME)
    for path in ("/", "/find?patient_id=%22%3E", f"/series/{HOSTILE}", "/peers", "/audit"):
        page.goto(site.url + path)
        assert page.locator("main script, main img, main b[onclick]").count() == 0
    for field in ("text", "accession", "name", "sender", "description", "reason", "uid", "state"):
        page.goto(f"{site.url}/find?{field}={SCRIPT}")
        assert page.locator("main script, main img").count() == 0
    page.goto(f"{site.url}/configuration?series_uid={SCRIPT}")
    page.goto(f"{site.url}/login?next={SCRIPT}")
    page.goto(f"{site.url}/series/{quote(PICTURE)}")
    expect(page.locator("main")).to_contain_text('No series "><img')


def test_a_script_written_by_the_rule_tester_is_text(site: Site, open_page: Open) -> None:
    page = open_page(f"/configuration?series_uid={HOSTILE}")
    page.get_by_role("button", name="Try").click()
    expect(page.locator("#rules-result")).to_contain_text("<b onclick", timeout=30_000)
    assert page.locator("#rules-result b").count() == 0


@pytest.mark.parametrize("path", PAGES)
def test_nobody_is_left_out(open_page: Open, path_of: Any, axe: str, path: str) -> None:
    """No serious or critical fault by axe-core in the dark and in the light; all on a phone."""
    page = open_page(path_of(path))
    page.evaluate(axe)
    found = []
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        found += faults(page)
    assert found == []
    page.set_viewport_size(PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    beyond = page.evaluate(BEYOND, PHONE["width"])
    assert beyond == []


def faults(page: Page) -> list[str]:
    wanted = {"resultTypes": ["violations"], "preload": False}
    result = page.evaluate("wanted => axe.run(document, wanted)", wanted)
    return [
        f"{each['id']}: {json.dumps([node['html'][:160] for node in each['nodes'][:3]])}"
        for each in result["violations"]
        if each["impact"] in ("serious", "critical")
    ]


def test_the_keyboard_alone_finds_a_job_and_requeues_it(site: Site, open_page: Open) -> None:
    job = site.job_of(phantoms.uid("held", "series", 3))
    page = open_page("/", "otto")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    reach(page, f"need-link-job-{job}")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_contain_text(f"Job {job}")
    reach(page, "requeue")
    page.keyboard.press("Enter")
    expect(page.locator("#message")).to_contain_text("is in the queue again")
    assert site.job_of(phantoms.uid("held", "series", 3), state="held") == job


def reach(page: Page, name: str) -> None:
    """Tab until an element has the focus, which a person must be able to see."""
    for _ in range(80):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == name:
            style = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert style != "none"
            return
    raise AssertionError(f"the keyboard does not come to {name}")


def test_the_menu_of_a_phone_opens_and_closes(open_page: Open) -> None:
    page = open_page("/", viewport=PHONE)
    link = page.get_by_role("link", name="Capacity")
    expect(link).not_to_be_visible()
    page.get_by_role("button", name="Menu").click()
    expect(link).to_be_visible()
    link.click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Capacity")


def test_a_node_that_went_away_is_said_to_be_away(open_page: Open) -> None:
    page = open_page("/")
    lost = page.locator("#lost")
    expect(lost).to_be_hidden()
    page.route("**/live?*", lambda route: route.abort())
    page.reload()
    expect(lost).to_be_visible()


def test_the_page_counts_on_in_the_words_of_the_node(browser: Browser) -> None:
    script = (Path(render.__file__).parent.parent / "static" / "page.js").read_text()
    function = script[script.index("const duration = ") : script.index("const skew = ")]
    seconds = [-1, 0, 59.4, 119, 119.6, 120, 3600, 7199, 7200, 90000, 172799, 172800, 1e6]
    page = browser.new_page()
    try:
        written = page.evaluate(f"all => {{ {function} return all.map(duration) }}", seconds)
    finally:
        page.close()
    assert written == [wording.whole_duration(each) for each in seconds]


def hold_scripts(page: Page) -> list[Route]:
    """Let a page appear before its scripts, as on a slow machine; returns what to let go on."""
    waiting: list[Route] = []
    page.route("**/static/htmx.min.js", lambda route: waiting.append(route))
    return waiting


def test_a_click_before_the_scripts_have_come_is_done_once_they_have(
    site: Site, open_page: Open
) -> None:
    job = site.job_of(phantoms.uid("held", "series", 3))
    page = open_page("/", "otto")
    waiting = hold_scripts(page)
    page.goto(f"{site.url}/jobs/{job}", wait_until="commit")
    page.get_by_role("button", name="Requeue").press("Enter")
    for route in waiting:
        route.continue_()
    expect(page.locator("#message")).to_contain_text("is in the queue again")
    assert site.job_of(phantoms.uid("held", "series", 3), state="held") == job


def test_a_form_sent_before_the_scripts_have_come_puts_no_password_in_an_address(
    site: Site, open_page: Open
) -> None:
    page = open_page("/")
    waiting = hold_scripts(page)
    page.goto(f"{site.url}/password", wait_until="commit")
    page.get_by_label("Old password").fill("not the old one")
    page.get_by_label("New password").fill("a new password")
    page.get_by_role("button", name="Change", exact=True).click()
    for route in waiting:
        route.continue_()
    expect(page.locator("#message")).to_contain_text("old password is wrong")
    assert page.url == f"{site.url}/password"
