"""A web application on a real socket: rows in, requests as browsers and programs send them."""

import contextlib
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from node import config, store
from node.config import Config
from node.store import Store
from node.web import access
from node.web.server import build, uvicorn_settings
from node.web.state import WebSettings
from storage.database import FILE_NAME
from storage.records import Role
from storage.site import people
from tests.conftest import Clock
from tests.node_process import wait_for
from tests.unit.storage.stored import Stored

NODE = "one"
PASSWORD = "correct horse"
# Of the password above, once: each hash takes 64 MiB and a tenth of a second.
HASH = access.hash_password(PASSWORD)
FROM = "x-test-from"  # the address that a request seems to come from

CONFIG = """
[node]
port = 0
timezone = "Europe/Berlin"
[storage]
folder = "var"
min_free_gb = 0.0
[web]
port = 0
{web}
[[destination]]
name = "pacs"
ae_title = "PACS"
host = "127.0.0.1"
port = 4242
[[route]]
name = "ct-slices"
match = {{ Modality = "CT", gap_mm = {{ min = 2.0 }} }}
model = "midslice"
target_spacing_mm = 1.25
destinations = ["pacs"]
[[route]]
name = "mr-shadow"
match = {{ Modality = "MR" }}
model = "linear"
factor = 2
destinations = []
"""


class Client(httpx.Client):
    """A program, or with `as_browser` the forms of a page of ours."""

    csrf = ""

    def act(self, method: str, path: str, **given: Any) -> httpx.Response:
        """A change with the CSRF token that the page would send."""
        headers = {"X-CSRF-Token": self.csrf, "Sec-Fetch-Site": "same-origin"}
        return self.request(method, path, headers=headers | given.pop("headers", {}), **given)


class _Distant:
    """Lets a test say where a request comes from: every socket here is a loopback one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            given = dict(scope["headers"]).get(FROM.encode())
            if given is not None:
                scope = {**scope, "client": (given.decode(), 50_000)}
        await self._app(scope, receive, send)


class Site:
    """One application with its rows; the clock decides when sessions end."""

    def __init__(self, settings: Config, kept: Store, clock: Clock) -> None:
        self.settings = settings
        self.store = kept
        self.clock = clock
        self.app: FastAPI = build(WebSettings(settings, NODE, True), kept, now=clock)
        self.rows = Stored(kept.database, kept.files, clock, NODE)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        self.server = uvicorn.Server(uvicorn_settings(_Distant(self.app)))
        self._thread = threading.Thread(
            target=self.server.run, kwargs={"sockets": [self._listening]}
        )
        self._clients: list[Client] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def database(self) -> Any:
        return self.store.database

    def start(self) -> "Site":
        self._thread.start()
        wait_for("the web server listens", lambda: self.server.started, 20.0)
        return self

    def stop(self) -> None:
        for client in self._clients:
            client.close()
        self.app.state.live.close()
        self.server.should_exit = True
        self._thread.join(20.0)
        assert not self._thread.is_alive()
        self._listening.close()

    def client(self, **headers: str) -> Client:
        """Somebody without a proof of who they are."""
        client = Client(base_url=self.url, headers=headers, timeout=30.0)
        self._clients.append(client)
        return client

    def browser(self) -> Client:
        """A browser on one of our pages."""
        return self.client(**{"Sec-Fetch-Site": "same-origin", "Origin": self.url})

    def user(self, name: str, role: Role = Role.ADMINISTRATOR) -> str:
        """Add a user, with the one password of all tests."""
        people.add_user(self.database, self.clock(), "test", name, role, HASH)
        return name

    def logged_in(self, name: str) -> Client:
        """A browser in which somebody has logged in."""
        client = self.browser()
        answer = client.post("/login", data={"name": name, "password": PASSWORD})
        assert answer.status_code == 303, answer.text
        client.csrf = self.csrf_of(client)
        return client

    def csrf_of(self, client: Client) -> str:
        """The token that a page of this session holds."""
        cookie = client.cookies.get("midslice") or ""
        found = people.logged_in(
            self.database, self.clock(), access.digest(cookie), idle_seconds=1e9
        )
        assert found is not None
        return found.csrf

    def program(self, role: Role, name: str = "script") -> Client:
        """A program with an API token."""
        text = access.new_token(access.API_PREFIX)
        digest = access.digest(text)
        people.add_token(self.database, self.clock(), "test", name, role, digest)
        return self.client(Authorization=f"Bearer {text}")

    def audited(self) -> list[tuple[str, str, str]]:
        """Who did what to which, the oldest first."""
        return [(e.who, e.what, e.which) for e in reversed(self.store.audit.list(1000))]


@contextlib.contextmanager
def site(folder: Path, migrated: Path, web: str = "") -> Iterator[Site]:
    """A site in a folder of its own, on a copy of `migrated`; `web` are further lines of [web]."""
    (folder / "var").mkdir(parents=True, exist_ok=True)
    shutil.copy(migrated, folder / "var" / FILE_NAME)
    path = folder / "config.toml"
    path.write_text(CONFIG.format(web=web))
    settings = config.load(path)
    with store.opened(settings, NODE) as kept:
        served = Site(settings, kept, Clock())
        try:
            yield served.start()
        finally:
            served.stop()
