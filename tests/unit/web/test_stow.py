"""DICOMweb: what is refused before any of a body is read, and viewers of other origins."""

from pathlib import Path

from storage.records import Role
from tests.unit.web.site import Site, site

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


VIEWER = "https://ohif.example.org"


def test_a_viewer_of_an_origin_that_is_named_may_read_and_no_other_one(
    tmp_path: Path, migrated_sqlite: Path
) -> None:
    web = f'dicomweb_origins = ["{VIEWER}"]\n'
    with site(tmp_path / "site", migrated_sqlite, web) as made:
        client = made.program(Role.VIEWER)
        asked = {"Access-Control-Request-Method": "GET"}
        for path, origin, allowed in (
            ("/dicom-web/studies", VIEWER, True),
            ("/dicom-web/studies", "https://ohif.example.org.evil.example", False),
            ("/api/v1/jobs", VIEWER, False),
        ):
            before = made.client().options(path, headers={"Origin": origin, **asked})
            assert (before.status_code == 204) == allowed
            answer = client.get(path, headers={"Origin": origin})
            assert answer.status_code in (200, 204)
            named = [it.headers.get("Access-Control-Allow-Origin") for it in (before, answer)]
            assert named == [origin if allowed else None] * 2
        nobody = made.client().get("/dicom-web/studies", headers={"Origin": VIEWER})
        assert (nobody.status_code, nobody.headers["Vary"]) == (401, "Origin")
