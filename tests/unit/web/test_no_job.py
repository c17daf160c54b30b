"""Why was my series not processed? Find and the page of a series say what is known of it."""

from collections.abc import Mapping

import pytest

from storage.records import Role, SwitchName
from storage.site import control
from tests.unit.storage.stored import SERIES
from tests.unit.web.site import Site

PAGE = f"/series/{SERIES}"
TESTER = f'href="/rules?series_uid={SERIES}"'
ANY_ROUTE = "no route asked for a job"


def close(served: Site, evidence: Mapping[str, object], *uids: str) -> None:
    """A series that came, and of which no job was made."""
    for uid in uids or ("1.1",):
        served.rows.receive(uid)
    served.rows.queue.complete(served.rows.arrival().id, evidence, [])


def never(served: Site, *, on: bool = True) -> None:
    now = served.clock()
    control.turn(served.database, now, "anna", SwitchName.NEVER, SERIES, on=on)


def test_a_series_without_a_job_leads_to_the_rule_tester(served: Site) -> None:
    close(served, {})
    for path in (PAGE, "/find?sender=SCANNER"):
        assert ANY_ROUTE in served.browser().get(path).text
    assert TESTER in served.browser().get(PAGE).text


def test_a_series_that_was_processed_whole_does_not(served: Site) -> None:
    served.rows.ask("k")
    text = served.browser().get(PAGE).text
    assert TESTER not in text
    assert ANY_ROUTE not in text


def test_what_is_in_no_stack_is_said_with_its_reason_beside_the_jobs(served: Site) -> None:
    served.rows.receive("1.1")
    arrival = served.rows.arrival()
    new = served.rows.new_job(arrival, "k")
    served.rows.queue.complete(arrival.id, {"set_aside": {"NOT_A_CT_SLICE": 2}}, [new])
    text = served.browser().get(PAGE).text
    assert "2 instances in no stack: NOT_A_CT_SLICE." in text
    assert TESTER in text


@pytest.mark.parametrize(
    ("evidence", "said"),
    [
        ({"set_aside": {"NOT_A_CT_SLICE": 1}}, "none of its instances is a slice (NOT_A_CT_SLICE)"),
        ({"never": "anna"}, "anna had excluded it from processing, but that was undone"),
    ],
)
def test_the_reason_is_said_where_it_is_known(
    served: Site, evidence: Mapping[str, object], said: str
) -> None:
    close(served, evidence)
    for path in (PAGE, "/find?sender=SCANNER"):
        text = served.browser().get(path).text
        assert said in text
        assert ANY_ROUTE not in text


def test_who_said_never_is_named_and_an_operator_takes_it_back(served: Site) -> None:
    close(served, {"never": "anna"})
    never(served)
    served.user("ada")
    served.user("vera", Role.VIEWER)
    ada, vera = served.logged_in("ada"), served.logged_in("vera")
    for person in (ada, vera):
        for path in (PAGE, "/find?sender=SCANNER"):
            text = person.get(path).text
            assert "never processed</span>, by anna" in text
            assert ANY_ROUTE not in text
            assert "undone" not in text
    assert ">Undo<" not in vera.get(PAGE).text
    assert f'hx-delete="/api/v1/series/{SERIES}/never"' in ada.get(PAGE).text
    assert ada.act("DELETE", f"/api/v1/series/{SERIES}/never").status_code == 200
    text = ada.get(PAGE).text
    assert "never processed</span>" not in text
    assert "anna had excluded it from processing, but that was undone: send it again" in text


def test_never_is_asked_before_it_is_done(served: Site) -> None:
    served.rows.receive("1.1")
    text = served.browser().get("/now/arrivals").text
    assert 'hx-confirm="Never process this series?' in text


def test_a_result_that_came_back_is_said_to_be_one(served: Site) -> None:
    served.rows.ask("k")
    served.rows.succeed("2.25.7")
    served.rows.receive("9.1", series_uid="2.25.7")
    served.rows.queue.complete(served.rows.arrival(series_uid="2.25.7").id, {}, [])
    text = served.browser().get("/find?sender=SCANNER").text
    assert "a result of this node that comes back is never processed" in text
