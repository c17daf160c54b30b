"""STOW-RS: what is refused before any of a body is read."""

from storage.records import Role
from tests.unit.web.site import Site

HEADERS = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=a'}
BODY = b"--a\r\n\r\nx\r\n--a--\r\n"


def test_a_disk_below_its_reserve_takes_nothing_and_says_when_to_come_again(served: Site) -> None:
    client = served.program(Role.OPERATOR)
    served.store.files.min_free_bytes = 1 << 60
    answer = client.post("/dicom-web/studies", content=BODY, headers=HEADERS)
    assert (answer.status_code, "reserve" in answer.json()["detail"]) == (503, True)
    assert int(answer.headers["Retry-After"]) > 0
    assert list(served.store.files.incoming.iterdir()) == []


def test_requests_beyond_the_limit_come_again(served: Site) -> None:
    client = served.program(Role.OPERATOR)
    served.app.state.reception._count = 8
    answer = client.post("/dicom-web/studies", content=BODY, headers=HEADERS)
    assert (answer.status_code, "try again" in answer.json()["detail"]) == (503, True)
    served.app.state.reception._count = 7
    assert client.post("/dicom-web/studies", content=BODY, headers=HEADERS).status_code == 409


def test_a_form_of_a_browser_stores_nothing(served: Site) -> None:
    answer = served.person().post("/dicom-web/studies", content=BODY, headers=HEADERS)
    assert (answer.status_code, "CSRF" in answer.json()["detail"]) == (403, True)
