"""The first page: it follows what happens without being loaded again."""

import time
from dataclasses import replace
from functools import partial

from playwright.sync_api import expect
from sqlalchemy import update

from storage import schema as rows
from storage.jobs import Queue
from storage.leases import Holder
from storage.ledger import Ledger
from storage.queries import find
from storage.queries.find import Wanted
from storage.records import SwitchName
from storage.site import control
from tests import phantoms
from tests.browser import site as sites
from tests.browser.conftest import Open
from tests.browser.site import PHANTOM, Site

SOON = 20_000.0


def test_a_series_from_dcmtk_is_followed_from_its_arrival_to_its_end(
    site: Site, open_page: Open
) -> None:
    page = open_page("/")
    page.evaluate("window.same = true")
    uid = site.send(replace(PHANTOM, seed="live", description="Live from DCMTK"), calling="CT_LIVE")
    row = page.locator("#arrivals-part tr", has_text="Live from DCMTK")
    expect(row).to_contain_text("CT_LIVE", timeout=SOON)
    expect(row).to_contain_text("8")
    expect(row).to_contain_text("1 association released")
    finished = page.locator("#finished-part tr", has_text="Live from DCMTK")
    expect(finished).to_contain_text("succeeded", timeout=SOON)
    expect(finished).to_contain_text("sent to archive", timeout=SOON)
    expect(row).to_have_count(0)
    assert page.evaluate("window.same") is True  # the page was never loaded again
    finished.get_by_role("link").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text(f"Job {site.job_of(uid)}")


def test_a_held_job_is_at_the_top_and_is_requeued_with_one_button(
    site: Site, open_page: Open
) -> None:
    uid = site.send(sites.with_holes("again"))
    job = site.job_of(uid, state="held")
    page = open_page("/", "otto")
    need = page.locator(f"#need-job-{job}")
    expect(need).to_contain_text("About 2 slices are missing", timeout=SOON)
    expect(need.get_by_role("button")).to_have_text("Cancel")  # the route would hold it again
    with site.database.writing() as db:  # as if the route had said this when it came
        db.execute(update(rows.job).where(rows.job.c.id == job).values(parameters='{"factor": 2}'))
    page.reload()
    expect(need).to_contain_text("Its route has changed since")
    need.get_by_role("button", name="Requeue").click()
    expect(page.locator("#message")).to_contain_text(f"A new job replaces job {job}.")
    expect(need).to_have_count(0, timeout=SOON)
    again = site.job_of(uid, state="held")
    assert again > job
    page.goto(f"{site.url}/jobs/{again}")
    expect(page.get_by_role("region", name="What people did")).to_contain_text("otto")
    expect(page.get_by_role("region", name="What was done")).to_contain_text("Factor4")


def test_a_series_is_processed_now_or_never_as_a_person_says(site: Site, open_page: Open) -> None:
    page = open_page("/", "otto")
    site.send(replace(PHANTOM, seed="never", description="Never this one"))
    row = page.locator("#arrivals-part tr", has_text="Never this one")
    never = row.get_by_role("button", name="Never process")
    page.once("dialog", lambda question: question.dismiss())
    never.click(timeout=SOON)
    expect(row).not_to_contain_text("never processed")
    page.once("dialog", lambda question: question.accept())
    never.click()
    expect(row).to_contain_text("never processed", timeout=SOON)
    expect(row).to_have_count(0, timeout=SOON)
    uid = phantoms.uid("never", "series", 3)
    assert find.jobs(site.database, Wanted(uid=uid)).lines == ()
    page.goto(f"{site.url}/series/{uid}")
    table = page.get_by_role("region", name="Series")
    expect(table).to_contain_text("never processed, by otto")
    page.get_by_role("button", name="Undo").click()
    expect(table).to_contain_text("but that was undone: send it again")
    page.get_by_role("link", name="What would the routes do with it?").click()
    expect(page.get_by_label("Or a received series")).to_have_value(uid)


def test_a_drained_node_receives_and_starts_no_job_until_it_is_told_to(
    site: Site, open_page: Open
) -> None:
    page = open_page("/", "otto")
    page.get_by_role("button", name="Drain").click()
    expect(page.locator("#drain-part")).to_contain_text("by otto", timeout=SOON)
    try:
        uid = site.send(replace(PHANTOM, seed="drained", description="While drained"))
        waiting = page.locator("#queue-part tr", has_text="While drained")
        expect(waiting).to_contain_text("when jobs are started again", timeout=SOON)
        job = site.job_of(uid, state="queued")
        waiting.get_by_label(f"Priority of job {job}").select_option("2")
        expect(page.locator("#message")).to_contain_text(f"The priority of job {job} was changed.")
        page.goto(f"{site.url}/jobs/{job}")
        chosen = page.get_by_label(f"Priority of job {job}")
        expect(chosen).to_have_value("2")
        chosen.select_option("8")
        expect(page.get_by_role("region", name="What people did")).to_contain_text("prioritise")
        page.goto(site.url)
        expect(waiting.get_by_label(f"Priority of job {job}")).to_have_value("8")
    finally:
        page.get_by_role("button", name="Start jobs again").click()
    assert site.job_of(uid, state="succeeded")
    expect(waiting).to_have_count(0, timeout=SOON)


def test_the_focus_stays_where_it_was_while_rows_come_and_go(site: Site, open_page: Open) -> None:
    job = site.job_of(phantoms.uid("held", "series", 3))
    page = open_page("/", "otto")
    page.locator(f"#cancel-{job}").focus()
    site.send(replace(PHANTOM, seed="focus", description="Another one comes"))
    finished = page.locator("#finished-part tr", has_text="Another one comes")
    expect(finished).to_contain_text("succeeded", timeout=SOON)
    assert page.evaluate("document.activeElement.id") == f"cancel-{job}"


def test_an_empty_list_says_so(open_page: Open) -> None:
    page = open_page("/needs?reason=NO_SUCH_REASON")
    expect(page.locator("main")).to_contain_text(
        "Nothing that matches this filter waits for a person."
    )


def test_jobs_of_one_reason_are_ticked_at_once_and_changed_together(
    site: Site, open_page: Open
) -> None:
    jobs = [
        site.job_of(site.send(sites.with_holes(seed), calling="BATCH"), state="held")
        for seed in ("batch-1", "batch-2")
    ]
    page = open_page("/needs?sender=BATCH", "otto")
    group = page.get_by_role("region", name="2 series miss slices")
    expect(group.locator("tbody tr")).to_have_count(2)
    requeue = group.get_by_role("button", name="Requeue selected")
    cancel = group.get_by_role("button", name="Cancel selected")
    for button in requeue, cancel:  # nothing is ticked: nobody is asked to confirm that
        button.click()
        expect(page.locator("#message")).to_have_text(
            "Nothing was changed. Tick at least one row first."
        )
    group.get_by_label("Select all in this list").check()
    with page.expect_response("**/needs/list**"):  # rows that come meanwhile untick nothing
        page.evaluate("htmx.trigger(document.body, 'live-needs')")
    expect(page.get_by_role("checkbox", checked=True)).to_have_count(3)
    requeue.click()
    expect(page.locator("#message")).to_contain_text("2 of 2 done.")
    for job in jobs:
        page.goto(f"{site.url}/jobs/{job}")
        expect(page.get_by_role("region", name="What people did")).to_contain_text("requeue")


def test_a_batch_that_changed_nothing_says_so_and_why(site: Site, open_page: Open) -> None:
    job = site.job_of(site.send(sites.with_holes("batch-3"), calling="BATCH3"), state="held")
    page = open_page("/needs?sender=BATCH3", "otto")
    page.get_by_label(f"Job {job}", exact=True).check()
    queue = Queue(site.database, Holder("x", time.time, 60.0))
    queue.cancel(job, who="anna")  # somebody is quicker
    page.once("dialog", lambda question: question.accept())
    page.get_by_role("button", name="Cancel selected").click()
    message = page.locator("#message p.bad")
    expect(message).to_contain_text(f"Nothing was changed. Job {job} ")
    expect(message).to_contain_text("cancelled")


def test_deliveries_under_a_filter_are_sent_again_together(site: Site, open_page: Open) -> None:
    ledger = Ledger(site.database, Holder("x", time.time, 60.0))
    uid = site.send(replace(PHANTOM, seed="clinic", description="For the clinic"))
    job = site.job_of(uid, state="succeeded")
    clinic = partial(control.turn, site.database, time.time(), "test", SwitchName.PAUSED, "clinic")
    clinic(on=True)
    try:
        ledger.redeliver(job, "clinic")
        leased = ledger.claim("clinic", "test")
        assert leased is not None
        ledger.hold(leased, "REFUSED_BY_PEER", "The clinic takes no derived series.")
        page = open_page("/needs?state=held&destination=clinic", "otto")
        deliveries = page.get_by_role("region", name="1 delivery was refused by the destination")
        expect(deliveries).to_contain_text("The clinic takes no derived series.")
        page.get_by_label("Select all in this list").check()
        page.get_by_role("button", name="Send selected again").click()
        expect(page.locator("#message")).to_contain_text("1 of 1 done.")
        expect(page.locator("main")).to_contain_text("Nothing that matches this filter waits")
        assert ledger.get(leased.id).state == "queued"
    finally:
        ledger.cancel(leased.id)
        clinic(on=False)
