"""REST: the node, destinations, senders, the configuration and the audit."""

import pytest

from node.config.reading import to_values
from storage.records import Role
from storage.site import control, peers
from tests.unit.web.calls import API, get, post
from tests.unit.web.site import NODE, Site


def test_the_node_is_drained_and_works_again(served: Site) -> None:
    assert get(served, "/node")["draining"] is False
    drained = post(served, "/drain")
    assert (drained["draining"], drained["drained_by"]) == (True, "token script")
    assert served.administrator().delete(f"{API}/drain").json()["draining"] is False


def test_a_destination_is_paused_resumed_and_echoed(served: Site) -> None:
    now = served.clock()
    peers.record(served.database, now, "pacs", ok=True, seconds=0.1, sentence="It answered.")
    (one,) = get(served, "/destinations")
    assert (one["name"], one["up"], one["paused"]) == ("pacs", True, False)
    post(served, "/destinations/pacs/pause")
    assert get(served, "/destinations")[0]["paused"] is True
    post(served, "/destinations/pacs/resume")
    assert get(served, "/destinations")[0]["paused"] is False
    echo = post(served, "/destinations/pacs/echo", 202)
    assert (echo["kind"], echo["subject"], echo["state"]) == ("echo", "pacs", "asked")
    assert post(served, "/destinations/moon/pause", 422)["detail"].count("pacs") == 1


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/configuration/reload", "reload"),
        ("/selftests", "selftest"),
        ("/notifications/test", "notify"),
    ],
)
def test_the_node_is_asked_and_answers_through_the_wish(served: Site, path: str, kind: str) -> None:
    wish = post(served, path, 202)
    assert wish["kind"] == kind
    assert get(served, f"/wishes/{wish['id']}")["state"] == "asked"
    assert ("token script", f"ask: {kind}", "") in served.audited()


def test_a_study_is_fetched_by_operators_from_a_peer_that_there_is(served: Site) -> None:
    asked = {"from": "pacs", "study_uid": "1.2.3"}
    wish = post(served, "/fetch", 202, json=asked)
    assert (wish["kind"], wish["subject"], wish["state"]) == ("fetch", "1.2.3", "asked")
    assert post(served, "/fetch", 202, json=asked)["id"] == wish["id"]
    series = post(served, "/fetch", 202, json={**asked, "series_uid": "1.2.3.4"})
    request = control.get_request(served.database, series["id"])
    assert (request.destination, request.series_uid) == ("pacs", "1.2.3.4")
    event = served.store.audit.list(1)[0]
    assert (event.what, event.which) == ("ask: fetch", "1.2.3")
    assert event.detail == {"destination": "pacs", "series_uid": "1.2.3.4"}
    for wrong in ({"from": "moon"}, {"study_uid": "1/2"}, {"series_uid": "../x"}, {"to": "x"}):
        assert post(served, "/fetch", 422, json=asked | wrong)["status"] == 422
    assert served.program(Role.VIEWER, "reader").post(f"{API}/fetch", json=asked).status_code == 403


def test_an_ae_title_is_let_in_and_shut_out_again(served: Site) -> None:
    post(served, "/senders/allow", data={"ae_title": " CT3 "})
    assert get(served, "/senders/allow")["added"] == [{"ae_title": "CT3", "who": "token script"}]
    client = served.administrator()
    assert client.delete(f"{API}/senders/allow", params={"ae_title": "CT3"}).status_code == 200
    assert client.delete(f"{API}/senders/allow", params={"ae_title": "CT3"}).status_code == 404
    assert post(served, "/senders/allow", 422, json={"ae_title": "  "})["status"] == 422
    assert post(served, "/senders/allow", 422, json={"ae_title": "A\\B"})["status"] == 422


def test_the_configuration_is_the_one_that_the_node_works_with_now(served: Site) -> None:
    assert served.administrator().get(f"{API}/configuration").status_code == 404
    values = to_values(served.settings)
    values["destinations"][0]["name"] = "archive"  # type: ignore[index]
    control.applied(served.database, served.clock(), NODE, values, ["node.port"])
    control.refused(served.database, served.clock(), NODE, ["config.toml: broken"])
    found = get(served, "/configuration")
    assert found["needs_restart"] == ["node.port"]
    assert found["problems"] == ["config.toml: broken"]
    assert [each["name"] for each in get(served, "/destinations")] == ["archive"]


def test_the_audit_is_read_a_page_at_a_time_and_by_person(served: Site) -> None:
    for _ in range(3):
        post(served, "/drain")
    client = served.administrator()
    first = client.get(f"{API}/audit", params={"who": "token script", "limit": 2})
    assert [each["what"] for each in first.json()] == ["drain", "drain"]
    assert first.headers["x-total-count"] == "3"
    assert len(client.get(first.links["next"]["url"]).json()) == 1
    assert get(served, "/audit", who="anna") == []


def test_the_audit_finds_what_earlier_releases_called_otherwise(served: Site) -> None:
    for what in ("search", "find", "look", "view", "drain"):
        served.store.audit.record("anna", what)
    for words in (["find", "search"], ["view", "look"]):
        for word in words:
            events = get(served, "/audit", what=word)
            assert {event["what"] for event in events} == set(words)
