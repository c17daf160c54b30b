"""A site for each test, asked in process; passwords cost little."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fastapi import FastAPI

from node.web import access
from node.web.setup import SetUpKey
from tests.unit.web.site import QUICK_HASHER, Client, Site, listening_site, site


@pytest.fixture(scope="session", autouse=True)
def quick_passwords() -> Iterator[None]:
    """Log-ins by the dozen; `test_login` has the real parameters."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(access, "HASHER", QUICK_HASHER)
        patch.setattr(access, "NOBODY", QUICK_HASHER.hash("of nobody"))
        yield


@pytest.fixture(scope="session")
def app(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path) -> FastAPI:
    """The application of all tests, each of which gives it a state of its own."""
    with site(tmp_path_factory.mktemp("app"), migrated_sqlite) as made:
        made.client().get("/healthz")
        return made.app


@pytest.fixture
def served(tmp_path: Path, migrated_sqlite: Path, app: FastAPI) -> Iterator[Site]:
    with site(tmp_path / "site", migrated_sqlite, app=app) as made:
        yield made


@pytest.fixture
def set_up(tmp_path: Path, migrated_sqlite: Path, app: FastAPI) -> Iterator[Site]:
    """A node that has no user yet, and has printed its set-up link."""
    with site(tmp_path / "site", migrated_sqlite, app=app) as made:
        key = SetUpKey.new()
        parts = made.app.state.parts
        made.key, settings = key.text, replace(parts.settings, setup_digest=key.digest)
        made.app.state.parts = replace(parts, settings=settings)
        yield made


@pytest.fixture
def listening(tmp_path: Path, migrated_sqlite: Path) -> Iterator[Site]:
    """The same on a loopback socket, for what is about connections and streams."""
    with listening_site(tmp_path / "site", migrated_sqlite) as made:
        yield made


@pytest.fixture
def open_site(tmp_path: Path, migrated_sqlite: Path, app: FastAPI) -> Iterator[Site]:
    """Behind a proxy of its own subnet that says who somebody is."""
    web = 'trusted_proxies = ["10.1.0.0/16"]\nuser_header = "Remote-User"\n'
    web += 'role_header = "Remote-Role"\n'
    with site(tmp_path / "site", migrated_sqlite, web, app) as made:
        yield made


@pytest.fixture
def local_proxy(tmp_path: Path, migrated_sqlite: Path, app: FastAPI) -> Iterator[Site]:
    """Behind a proxy on this machine, which adds no header but the user's."""
    web = 'trusted_proxies = ["127.0.0.1/32"]\nuser_header = "Remote-User"\n'
    with site(tmp_path / "site", migrated_sqlite, web, app) as made:
        yield made


@pytest.fixture
def person(served: Site) -> Client:
    """An administrator who has logged in and wants pages."""
    client = served.person()
    client.headers["Accept"] = "text/html"
    return client
