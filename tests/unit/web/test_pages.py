"""The pages as HTML: each is there, for whom it is meant, and text in it stays text."""

import re
from dataclasses import replace

from node.config.reading import to_values
from storage.records import Job, NewDerived, Peer, Role
from storage.site import control
from storage.site.nodes import Nodes
from tests.unit.web.site import NODE, Client, Site

PAGES = (
    "/",
    "/needs",
    "/needs?reason=MISSING_SLICES",
    "/needs?destination=pacs&offset=50&sent_offset=50",
    "/find",
    "/find?state=held",
    "/find?search=gone",
    "/peers",
    "/capacity",
    "/capacity?span=week",
    "/selftest",
    "/rules",
    "/configuration",
    "/users",
    "/audit",
)
PARTS = (
    "/now/drain",
    "/now/needs",
    "/now/arrivals",
    "/now/running",
    "/now/queue",
    "/now/sending",
    "/now/finished",
    "/needs/list",
    "/needs/count",
    "/peers/part",
    "/peers/count",
    "/capacity/part",
    "/selftest/part",
    "/configuration/part",
    "/users/part",
)
HTML = {"Accept": "text/html"}


def test_every_page_of_an_empty_node_says_something(person: Client) -> None:
    for path in PAGES:
        answer = person.get(path)
        assert answer.status_code == 200, path
        assert re.search(r"<h1>.+</h1>", answer.text), path


def test_every_part_that_is_fetched_again_is_no_whole_page(person: Client) -> None:
    for path in PARTS:
        answer = person.get(path)
        assert answer.status_code == 200, path
        assert "<html" not in answer.text, path


def test_no_page_has_a_script_or_a_style_of_its_own(person: Client) -> None:
    for path in PAGES:
        text = person.get(path).text
        assert re.findall(r"<script(?![^>]* src=\"/static/)", text) == [], path
        assert re.findall(r"<style|\sstyle=|\son[a-z]+=", text) == [], path
        assert re.findall(r"(?:src|href)=\"(?!/)[^\"#]", text) == [], path


def test_a_page_has_the_parts_that_it_fetches(person: Client) -> None:
    for path in PAGES:
        for part in re.findall(r'hx-get="([^"]+)"', person.get(path).text):
            assert person.get(part.replace("&amp;", "&")).status_code == 200, part


def test_a_part_that_does_not_exist_is_not_found_and_its_name_is_text(person: Client) -> None:
    answer = person.get("/now/<b>")
    assert answer.status_code == 404
    assert "<b>" not in answer.text


def test_each_kind_of_row_is_on_the_first_page(served: Site, person: Client) -> None:
    served.rows.ask("first")
    served.rows.claim()
    served.rows.ask("second", ("1.3",))
    served.rows.receive("1.9", peer=Peer("CT_7", "MIDSLICE"))
    text = person.get("/").text
    assert "CT_7" in text
    assert "Process now" in text
    assert "runs for" in text
    assert 'id="queued-2"' in text


def test_hiding_patients_leads_back_to_the_same_page_and_to_no_other_site(
    served: Site, person: Client
) -> None:
    csrf = re.search(r'name="csrf" value="([^"]+)"', person.get("/").text)
    assert csrf is not None
    for before, after in (
        (f"{served.url}/find?text=x", "/find?text=x"),
        ("https://example.org/find", "/"),
        (f"{served.url}//example.org/", "/"),
        ("", "/"),
    ):
        answer = person.post("/mask", data={"csrf": csrf[1]}, headers={"Referer": before})
        assert (answer.status_code, answer.headers["location"]) == (303, after)


def test_an_error_is_a_page_for_a_person(person: Client) -> None:
    answer = person.get("/jobs/12345")
    assert answer.status_code == 404
    assert "<h1>Not Found</h1>" in answer.text
    assert "No job 12345" in answer.text


def test_what_is_an_administrators_is_neither_listed_nor_served(served: Site) -> None:
    served.user("ada")
    served.user("vera", Role.VIEWER)
    vera = served.logged_in("vera")
    text = vera.get("/", headers=HTML).text
    for path in ("/configuration", "/users", "/audit"):
        assert f'href="{path}"' not in text
        assert vera.get(path, headers=HTML).status_code == 403
    assert "hx-post" not in text.partition("<main")[2]


def test_the_configuration_says_by_what_a_destination_is_known_over_tls(served: Site) -> None:
    values = to_values(served.settings)
    (first, *_) = values["destinations"]  # type: ignore[misc]
    by_authority = {"authorities": "/etc/ca.pem", "server_name": "pacs.example"}
    pinned = {"fingerprint": ":".join(["ab"] * 32)}
    values["destinations"] = [
        {**first, "name": name, "ae_title": name.upper(), "tls": tls}
        for name, tls in (("named", by_authority), ("pinned", pinned))
    ]
    values["tls"] |= {  # type: ignore[operator]
        "certificate": "/etc/node.pem",
        "authorities": "/etc/ca.pem",
        "ae_titles": {"CT1": ["ct1.example", "ct1b.example"], "MR1": ["mr1.example"]},
    }
    control.applied(served.database, served.clock(), NODE, values, [])
    text = served.person().get("/configuration", headers=HTML).text
    assert "TLS, as pacs.example, by an authority of /etc/ca.pem" in text
    assert "TLS, by the certificate with SHA-256 ab:ab:ab:ab:ab:ab:ab:ab..." in text
    assert "CT1: ct1.example, ct1b.example; MR1: mr1.example" in text


def test_the_log_in_keeps_where_to_go_as_text(served: Site) -> None:
    served.user("ada")
    stranger = served.browser()
    text = stranger.get('/login?next=/find"><b>', headers=HTML).text
    assert "<b>" not in text
    answer = stranger.post("/login", data={"name": "ada", "password": "wrong"}, headers=HTML)
    assert answer.status_code == 401
    assert "The name or the password is wrong." in answer.text


def test_capacity_says_which_device_the_newest_jobs_ran_on(served: Site) -> None:
    person = served.person()
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


def test_every_node_of_the_storage_is_shown_with_release_work_and_sign_of_life(
    served: Site, person: Client
) -> None:
    nodes = Nodes(served.rows.database, served.clock)
    nodes.start("gone/MIDSLICE", "0.1", "http://gone/")
    (gone,) = nodes.get()
    assert nodes.lose(gone)
    nodes.start("silent/MIDSLICE", "0.2")
    served.clock.now += 60
    nodes.start(NODE, "0.2", "http://here/")
    nodes.beat(NODE, load=0.25)
    served.rows.archive.associated("CT1", "MIDSLICE", "10.0.0.1")
    table = person.get("/capacity").text.partition('id="nodes-title"')[2]
    cells = re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)[1:]
    lines = [" ".join(re.sub(r"<[^>]*>", " ", line).split()) for line in cells]
    assert [line.split()[:3] for line in lines] == [
        ["gone/MIDSLICE", "lost", "0.1"],
        [NODE, "serving", "0.2"],
        ["silent/MIDSLICE", "silent", "0.2"],
    ]
    assert "25 % 1 association, 0 jobs, 0 deliveries" in lines[1].replace("\xa0", " ")
    answer = person.get("/api/v1/nodes", headers={"Accept": "application/json"}).json()
    assert [(it["id"], it["alive"], it["associations"]) for it in answer] == [
        ("gone/MIDSLICE", False, 0),
        (NODE, True, 1),
        ("silent/MIDSLICE", False, 0),
    ]
