"""How long until a page shows something, in Chromium, with 100,000 jobs in the database."""

from functools import partial

from playwright.sync_api import Page, sync_playwright

from storage.database import Database
from storage.queries import overview
from tests.benchmarks import filler
from tests.benchmarks.rig import Setting
from tests.benchmarks.table import Bound, Row, Subject
from tests.conftest import Clock
from tests.unit.web.site import listening_site

NAME = "first paint"
JOBS, QUICK_JOBS = 100_000, 10_000
MOST_MILLISECONDS = 200.0
CHROMIUM = "/usr/bin/chromium"
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")
PAINTED = """() => new Promise(tell => new PerformanceObserver(list => {
  for (const each of list.getEntries())
    if (each.name === "first-contentful-paint") tell(each.startTime);
}).observe({ type: "paint", buffered: true }))"""

PAGES = {
    "now": "/",
    "needs": "/needs",
    "needs, filtered": "/needs?state=held",
    "find": "/find",
    "find, accession": "/find?accession=A00000123",
    "find, name": "/find?name=meyer",
    "job": "/jobs/1234",
    "series": "/series/{series_uid}",
    "peers": "/peers",
    "capacity, day": "/capacity",
    "capacity, week": "/capacity?span=week",
    "self-test": "/selftest",
    "rule tester": "/rules",
    "configuration": "/configuration",
    "users": "/users",
    "audit": "/audit",
    "conformance": "/conformance",
}
BOUNDS = tuple(Bound(NAME, name, MOST_MILLISECONDS) for name in PAGES)


def measure(setting: Setting) -> Subject:
    """Milliseconds from the click to the first contentful paint."""
    jobs = QUICK_JOBS if setting.is_quick else JOBS
    (setting.folder / "filled").mkdir(parents=True)
    database = Database.for_folder(setting.folder / "filled")
    database.migrate()
    filler.fill(database, jobs, Clock().now)
    series_uid = overview.job_detail(database, 1234).line.subject.series_uid
    database.close()
    (filled,) = (setting.folder / "filled").glob("*.db")
    with listening_site(setting.folder / "site", filled) as served, sync_playwright() as player:
        browser = player.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        asked = {
            name: partial(_painted, page, served.url + path.format(series_uid=series_uid))
            for name, path in PAGES.items()
        }
        for ask in asked.values():
            ask()  # the first one reads the files, and compiles the template
        values = setting.measure(asked)
        browser.close()
    rows = tuple(Row(name, "ms", tuple(values[name])) for name in asked)
    return Subject(NAME, f"{jobs} jobs on SQLite, headless Chromium", rows)


def _painted(page: Page, url: str) -> float:
    answer = page.goto(url)
    assert answer is not None, url
    assert answer.ok, (url, answer.status)
    return float(page.evaluate(PAINTED))
