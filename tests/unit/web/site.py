"""A web application with its rows, asked in process or on a socket."""

import contextlib
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from anyio.from_thread import BlockingPortal, start_blocking_portal
from argon2 import PasswordHasher
from fastapi import FastAPI

from node import config, store
from node.config import Config
from node.store import Store
from node.web import access
from node.web.server import Server, build
from node.web.state import WebSettings
from storage.database import FILE_NAME
from storage.records import Role
from storage.schema import account, login, token
from storage.site import people
from tests.conftest import Clock
from tests.node_process import wait_for
from tests.unit.storage.stored import Stored

NODE = "one"
PASSWORD = "correct horse"
# Takes neither 64 MiB nor a tenth of a second, as the real one does.
QUICK_HASHER = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
HASH = QUICK_HASHER.hash(PASSWORD)
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


class InProcess(httpx.BaseTransport):
    """Hands a request to the application without a socket; answers come whole, no stream does."""

    def __init__(self, app: FastAPI, portal: BlockingPortal) -> None:
        self._app = app
        self._portal = portal  # to the thread with the event loop

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.read()  # a body that is generated comes as one
        return self._portal.call(self._asked, request)

    async def _asked(self, request: httpx.Request) -> httpx.Response:
        peer = request.headers.pop(FROM, "127.0.0.1"), 50_000
        transport = httpx.ASGITransport(self._app, raise_app_exceptions=False, client=peer)
        answer = await transport.handle_async_request(request)
        body = b"".join([part async for part in answer.aiter_raw()])
        return httpx.Response(answer.status_code, headers=answer.headers, content=body)


class Site:
    """One application with its rows; the clock decides when sessions end."""

    key: str  # of the set-up link, where there is one
    server: Server  # where it listens on a socket
    port: int

    def __init__(
        self,
        settings: Config,
        kept: Store,
        clock: Clock,
        portal: BlockingPortal,
        app: FastAPI | None,
    ) -> None:
        self.settings = settings
        self.store = kept
        self.clock = clock
        fresh = build(WebSettings(settings, NODE, True), kept, now=clock)
        self.app = app or fresh
        self.app.state = fresh.state
        self.rows = Stored(kept.database, kept.files, clock, NODE)
        self.url = "http://127.0.0.1"
        self._transport: httpx.BaseTransport | None = InProcess(self.app, portal)
        self._clients: list[Client] = []

    @property
    def database(self) -> Any:
        return self.store.database

    def close(self) -> None:
        for client in self._clients:
            client.close()
        self.app.state.live.close()

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """On a socket from now on, for what is about connections or streams."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = int(listener.getsockname()[1])
            self.server = Server(self.app)
            thread = threading.Thread(target=self.server.listen, args=(listener,))
            thread.start()
            wait_for("the web server listens", lambda: self.server.started, 20.0)
            self.url = f"http://127.0.0.1:{self.port}"
            self._transport = None
            try:
                yield
            finally:
                self.close()
                self.server.should_exit = True
                thread.join(20.0)
                assert not thread.is_alive()

    def client(self, **headers: str) -> Client:
        """Somebody without a proof of who they are."""
        client = Client(base_url=self.url, headers=headers, timeout=30.0, transport=self._transport)
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
        """The token that a page of a logged-in user holds."""
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

    def administrator(self) -> Client:
        """A program that may do everything, and was added before the audit events began."""
        text = access.new_token()
        values = {"digest": access.digest(text), "name": "script", "role": Role.ADMINISTRATOR}
        with self.database.writing() as db:
            db.execute(token.insert().values(**values, created_by="test", created_at=self.clock()))
        return self.client(Authorization=f"Bearer {text}")

    def person(self, name: str = "ada") -> Client:
        """An administrator's browser, logged in before the audit events began."""
        client, cookie, now = self.browser(), access.new_token(), self.clock()
        client.csrf = access.new_token()
        who = {"name": name, "role": Role.ADMINISTRATOR, "password": HASH, "disabled": 0}
        session = {"id": access.digest(cookie), "account_name": name, "csrf": client.csrf}
        ever = now + 1e9  # whatever the clock does
        times = {"created_at": now, "seen_at": ever, "expires_at": ever}
        row = self.database.insert(account).values(**who, created_at=now, changed_at=now)
        with self.database.writing() as db:
            db.execute(row.on_conflict_do_nothing())
            db.execute(login.insert().values(**session, address="127.0.0.1", **times))
        client.cookies.set(access.COOKIE, cookie)
        return client

    def audited(self) -> list[tuple[str, str, str]]:
        """Who did what to which, the oldest first."""
        return [(e.who, e.what, e.which) for e in reversed(self.store.audit.list(1000))]


@contextlib.contextmanager
def site(folder: Path, migrated: Path, web: str = "", app: FastAPI | None = None) -> Iterator[Site]:
    """A site in a folder of its own, on a copy of `migrated`; `web` are further lines of [web].

    Its application is `app` with what this site keeps: the first request of a new one takes long.
    """
    (folder / "var").mkdir(parents=True, exist_ok=True)
    shutil.copy(migrated, folder / "var" / FILE_NAME)
    path = folder / "config.toml"
    path.write_text(CONFIG.format(web=web))
    settings = config.load(path)
    with store.opened(settings, NODE) as kept, start_blocking_portal() as portal:
        served = Site(settings, kept, Clock(), portal, app)
        try:
            yield served
        finally:
            served.close()


@contextlib.contextmanager
def listening_site(folder: Path, migrated: Path, web: str = "") -> Iterator[Site]:
    """The same on a real socket, with an application of its own."""
    with site(folder, migrated, web) as served, served.listening():
        yield served
