"""Calls of the REST API by a program on this machine."""

from typing import Any

from tests.unit.web.site import Site

API = "/api/v1"


def get(served: Site, path: str, **query: Any) -> Any:
    answer = served.administrator().get(API + path, params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def post(served: Site, path: str, status: int = 200, **given: Any) -> Any:
    answer = served.administrator().post(API + path, **given)
    assert answer.status_code == status, answer.text
    return answer.json()
