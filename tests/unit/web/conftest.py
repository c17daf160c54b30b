"""A site for each test; its sockets are on loopback and its ports free ones."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.web.site import Client, Site, site


@pytest.fixture
def served(tmp_path: Path, migrated_sqlite: Path) -> Iterator[Site]:
    with site(tmp_path / "site", migrated_sqlite) as made:
        yield made


@pytest.fixture
def open_site(tmp_path: Path, migrated_sqlite: Path) -> Iterator[Site]:
    """Behind a proxy of its own subnet that says who somebody is."""
    web = 'trusted_proxies = ["10.1.0.0/16"]\nuser_header = "Remote-User"\n'
    with site(tmp_path / "site", migrated_sqlite, web + 'role_header = "Remote-Role"\n') as made:
        yield made


@pytest.fixture
def local_proxy(tmp_path: Path, migrated_sqlite: Path) -> Iterator[Site]:
    """Behind a proxy on this machine, which adds no header but the user's."""
    web = 'trusted_proxies = ["127.0.0.1/32"]\nuser_header = "Remote-User"\n'
    with site(tmp_path / "site", migrated_sqlite, web) as made:
        yield made


@pytest.fixture
def person(served: Site) -> Client:
    """Somebody at the machine itself, where no user exists."""
    client = served.browser()
    client.headers["Accept"] = "text/html"
    return client
