"""The first phone call: where is accession 12345? And who looked."""

from playwright.sync_api import expect

from tests import phantoms
from tests.browser.conftest import Open
from tests.browser.site import Site

TILTED = phantoms.uid("tilted", "series", 3)


def test_a_series_is_found_by_its_accession_number(site: Site, open_page: Open) -> None:
    page = open_page("/find", "vera")
    page.get_by_label("Accession number", exact=True).fill("A12345")
    page.keyboard.press("Enter")
    row = page.get_by_role("region", name="Series").locator("tr", has_text="CT_ER")
    expect(row).to_contain_text("Phantom, One")
    expect(row).to_contain_text("PH-0001")
    expect(row).to_contain_text("2024-03-05")
    expect(row).to_contain_text("succeeded")
    row.get_by_role("link", name="Job").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("Job")


def test_every_field_narrows_the_search(site: Site, open_page: Open) -> None:
    page = open_page("/find", "vera")
    for query, count in (
        ("text=phantom&sender=CT_ER", 1),
        ("name=phan&sender=CT_ER", 1),
        ("patient_id=PH-00&sender=CT_ER&study_date=2024-03-05", 1),
        ("description=hole&sender=CT_ROOM_2&state=held", 1),
        ("sender=CT_ER&state=held", 0),
        (f"uid={TILTED}", 1),
    ):
        page.goto(f"{site.url}/find?{query}")
        assert page.locator("table.rows tbody tr").count() >= count, query
        assert (page.locator("table.rows tbody tr").count() == 0) == (count == 0), query


def test_a_search_without_a_result_says_so(open_page: Open) -> None:
    page = open_page("/find?accession=NONE-SUCH", "vera")
    expect(page.locator("main")).to_contain_text("No such series was received")


def test_hidden_patients_are_not_in_the_page_at_all(open_page: Open) -> None:
    page = open_page("/find?accession=A12345", "vera")
    assert "Phantom" in page.content()
    page.get_by_role("button", name="Hide patients").click()
    expect(page.get_by_role("button", name="Show patients")).to_be_visible()
    assert "/find?search=" in page.url  # the same page again, which names no patient
    assert "Phantom" not in page.content()
    assert "PH-0001" not in page.content()


def test_each_look_is_an_audit_event_without_the_patient(site: Site, open_page: Open) -> None:
    open_page("/find?accession=A12345", "otto")
    open_page(f"/jobs/{site.job_of(TILTED)}", "otto")
    page = open_page("/audit?who=otto")
    events = page.get_by_role("region", name="Events")
    expect(events.locator("tr", has_text="find").first).to_contain_text("by: accession")
    expect(events.locator("tr", has_text=TILTED).first).to_contain_text("view")
    expect(events.locator("tr", has_text="view pictures").first).to_contain_text("job")
    assert "A12345" not in events.inner_text()
    assert "Phantom" not in events.inner_text()


def test_a_person_asks_a_route_for_a_series_and_reads_the_answer_there(
    site: Site, open_page: Open
) -> None:
    held = phantoms.uid("held", "series", 3)
    job_id = site.job_of(held, state="held")
    page = open_page(f"/series/{held}", "otto")
    page.get_by_role("button", name="Process with").first.click()
    asked = page.locator("#asked")
    expect(asked).to_contain_text(f"Job {job_id} by this route is held already")
    expect(asked).to_contain_text("otto asked for route")
