"""What the route of a job asks for by now, by the configuration that is in force."""

from dataclasses import replace

from inference.request import Output, Parameters
from node.config import Config, Route
from node.rules import routing
from node.work.jobs import snapshot
from storage.records import Job
from tests.unit.storage.stored import Stored
from tests.unit.web.site import Site

OF_NODE = {"label", "content_qualification"}  # what a job keeps that is not its route's


def kept_by(route: Route, label: str) -> dict[str, object]:
    """As an arrival writes it into a job."""
    return snapshot(route.parameters, replace(route.output, label=label))


def job_of(stored: Stored, config: Config, **changed: object) -> Job:
    route = config.routes[0]
    kept = kept_by(route, "Arterial")
    values = {"route": route.name, "model": route.model, "parameters": kept, **changed}
    return stored.queue.get(stored.ask("k", **values).job_id)


def test_a_route_has_a_key_for_all_that_a_job_keeps_of_it(served: Site) -> None:
    assert {*served.settings.routes[0].options, *OF_NODE} == snapshot(Parameters(), Output()).keys()


def test_a_route_that_has_not_changed_asks_for_what_the_job_keeps(served: Site) -> None:
    job = job_of(served.rows, served.settings)
    by_now = routing.of_job(served.settings, job)
    assert by_now is not None
    assert by_now.is_as(job.model, job.parameters)
    assert by_now.parameters["label"] == "Arterial"
    assert by_now.destinations("CT1") == ("pacs",)


def test_a_route_that_was_changed_asks_for_something_else(served: Site) -> None:
    job = job_of(served.rows, served.settings)
    first, *others = served.settings.routes
    for change in ({"across_missing": "leave"}, {"hold_below": 0.0}, {"model": "linear"}):
        routes = (first.model_copy(update=change), *others)
        by_now = routing.of_job(served.settings.model_copy(update={"routes": routes}), job)
        assert by_now is not None
        assert not by_now.is_as(job.model, job.parameters)


def test_the_sender_is_the_destination_that_sends_as_it(served: Site) -> None:
    job = job_of(served.rows, served.settings)
    back = served.settings.routes[0].model_copy(update={"destinations": ("sender",)})
    by_now = routing.of_job(served.settings.model_copy(update={"routes": (back,)}), job)
    assert by_now is not None
    assert by_now.destinations("PACS") == ("pacs",)
    assert by_now.destinations("CT9") == ("sender CT9",)


def test_a_route_that_is_gone_and_the_route_of_a_self_test_ask_for_nothing(served: Site) -> None:
    job = job_of(served.rows, served.settings, kind="selftest")
    assert routing.of_job(served.settings, job) is None
    assert routing.of_route(served.settings, "gone", job.parameters) is None
