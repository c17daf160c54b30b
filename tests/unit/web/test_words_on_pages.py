"""Pages that say in words what a row holds as a number, and that set a forgotten password."""

from dataclasses import replace

from storage.records import Job, NewDerived, Role
from tests.unit.web.site import Site


def test_what_a_destination_answered_is_said_in_words(served: Site) -> None:
    person = served.browser()
    served.rows.ask("k")
    served.rows.succeed()
    leased = served.rows.start_delivery("pacs")
    said = {
        0x0000: "<code>0000</code> stored<",
        0x0122: "<code>0122</code> SOP Class not supported<",
        0xA701: "<code>A701</code> out of resources<",
        0xB000: "<code>B000</code> data elements coerced, stored<",
    }
    (one, _) = served.rows.ledger.unsent(leased)
    for status, words in said.items():
        is_stored = status in (0x0000, 0xB000)
        served.rows.ledger.answered(leased, one.id, status, stored=is_stored)
        assert words in person.get("/jobs/1").text


def test_capacity_says_which_device_the_newest_jobs_ran_on(served: Site) -> None:
    person = served.browser()
    part = "/capacity/part?span=week"
    assert part in person.get("/capacity?span=week").text
    assert "device auto, not known until a job has run" in person.get(part).text
    served.rows.ask("k")
    served.rows.queue.succeed(*ended_on(served, "cuda:0"))
    assert "device auto, most recently cuda:0<" in person.get(part).text


def ended_on(served: Site, device: str) -> tuple[Job, NewDerived]:
    """A job that runs, and what it has made on this device."""
    job = served.rows.claim()
    return job, replace(served.rows.derive(job, "2.25.1"), record={"device": device})


def test_an_administrator_sets_a_password_on_the_page_of_users(served: Site) -> None:
    served.user("ada")
    served.user("vera", Role.VIEWER)
    ada, vera = served.logged_in("ada"), served.logged_in("vera")
    text = ada.get("/users").text
    assert 'aria-label="New password of vera"' in text
    assert 'aria-label="New password of ada"' not in text  # one's own needs the old one
    answer = ada.act("PATCH", "/api/v1/users/vera", data={"password": "another long one"})
    assert answer.status_code == 200
    assert vera.get("/api/v1/me").status_code == 401
    again = served.browser().post("/login", data={"name": "vera", "password": "another long one"})
    assert again.status_code == 303
