"""No path is forgotten: each asks who is there, and whether they may."""

import re
from collections.abc import Iterator

import pytest
from fastapi import APIRouter
from fastapi.routing import APIRoute

from node.web import live, login, pages
from storage.records import Role
from tests.unit.web.site import Site

OPEN = {"/healthz", "/readyz", "/login", "/api/openapi.json"}
# They change nothing but what is one's own; a search has patients' words, which no address has.
OF_EVERYBODY = {"/logout", "/mask", "/find", "/api/v1/find", "/api/v1/me/password"}
VALUES = {"{name}": "pacs", "{series_uid}": "1.2", "{action}": "requeue"}


def routes(router: APIRouter) -> Iterator[APIRoute]:
    for route in router.routes:
        if isinstance(route, APIRoute):
            yield route
        else:  # a router within a router
            yield from routes(route.original_router)  # type: ignore[attr-defined]


def paths(served: Site) -> list[tuple[str, str]]:
    """Each method and path, as somebody would ask for it."""
    document = served.client().get("/api/openapi.json").json()
    known = {
        (method.upper(), path) for path, methods in document["paths"].items() for method in methods
    }
    for router in (pages.router, login.router, live.router):
        known |= {(method, route.path) for route in routes(router) for method in route.methods}
    return sorted((method, _filled(path)) for method, path in known if path not in OPEN)


def _filled(path: str) -> str:
    for name, value in VALUES.items():
        path = path.replace(name, value)
    return re.sub(r"\{[^}]*\}", "1", path)


def test_nobody_gets_anything_without_being_known(served: Site) -> None:
    served.user("anna")
    asked = paths(served)
    assert len(asked) > 50
    client = served.client()
    open_ones = [
        (method, path, status)
        for method, path in asked
        if (status := client.request(method, path).status_code) != 401
    ]
    assert open_ones == []


@pytest.mark.parametrize("role", [Role.VIEWER, Role.OPERATOR])
def test_nobody_changes_anything_that_takes_a_higher_role(served: Site, role: Role) -> None:
    served.user("anna")
    client = served.program(role)
    before = len(served.audited())
    administrators = ("users", "tokens", "reload", "notifications", "senders/allow")
    for method, path in paths(served):
        if method in ("GET", "HEAD") or path in OF_EVERYBODY:
            continue
        if role is Role.VIEWER or any(word in path for word in administrators):
            answer = client.request(method, path)
            assert answer.status_code == 403, (method, path, answer.status_code)
    assert len(served.audited()) == before
