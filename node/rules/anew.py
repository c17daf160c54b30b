"""What the route of a job asks for by now: for who puts a job back after the route has changed."""

from collections.abc import Mapping

from node.config import Config, Route
from node.rules import routing
from storage.enqueue import Anew
from storage.records import Job

# What a job keeps of its route; all else that it keeps belongs to its stack.
OF_ROUTE = (
    "factor",
    "target_spacing_mm",
    "include_received",
    "slice_thickness",
    "accept_derived",
    "across_missing",
    "most_gap_mm",
    "classical_below",
    "hold_below",
)


def of_job(config: Config, job: Job) -> Anew | None:
    """For a job; a self-test's route is none of the configuration."""
    return of_route(config, job.route, job.parameters) if job.kind == "infer" else None


def of_route(config: Config, name: str, kept: Mapping[str, object]) -> Anew | None:
    """For a job that keeps these parameters; None where no route is called so any more."""
    route = next((route for route in config.routes if route.name == name), None)
    if route is None:
        return None

    def destinations(calling_ae: str) -> tuple[str, ...]:
        known = config.destinations
        return tuple(routing.destination_of(one, calling_ae, known) for one in route.destinations)

    return Anew(route.model, parameters(route, kept), destinations)


def parameters(route: Route, kept: Mapping[str, object]) -> dict[str, object]:
    """The snapshot of a route, beside what a job keeps of its stack."""
    return {**kept, **{name: getattr(route, name) for name in OF_ROUTE}}
