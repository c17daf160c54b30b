"""The web application of one node: every path, behind one shield and one gate."""

import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

from fastapi import FastAPI
from starlette.staticfiles import StaticFiles

from node.store import Store
from node.web import health, live, login, metrics, problems, views
from node.web.current import Current
from node.web.gate import Access, Gate
from node.web.live import Live
from node.web.looks import Looks
from node.web.metrics import Metrics
from node.web.parts import Parts
from node.web.rest import audit, backlog, finding, jobs, operating, people, rules, series
from node.web.rest.inputs import PROBLEMS
from node.web.searches import Searches
from node.web.settings import WebSettings
from node.web.shield import Shield
from node.web.statements import Statements
from storage.queries.figures import change_tokens

API = "/api/v1"
STATIC = Path(__file__).parent / "static"


def build(settings: WebSettings, store: Store, *, now: Callable[[], float] = time.time) -> FastAPI:
    """The application; it reads and writes rows, reads files, and does nothing else."""
    app = FastAPI(
        title="Midslice",
        version=version("midslice"),
        openapi_url="/api/openapi.json",
        docs_url=None,
        redoc_url=None,
    )
    gate = Gate(store.database, access(settings), now)
    _hold(app, Parts(settings, store, gate, Current(settings, store.database)), now)
    for router in (health.router, metrics.router, login.router, live.router):
        app.include_router(router)
    for subject in (finding, jobs, series, operating, backlog, people, rules, audit):
        app.include_router(subject.router, prefix=API, responses=PROBLEMS)
    if STATIC.is_dir():
        app.mount("/static", StaticFiles(directory=STATIC), name="static")
    app.include_router(views.router)
    problems.install(app, views.error_page)
    app.add_middleware(Shield, page=views.error_page, answered=app.state.metrics.requests.answered)
    return app


def access(settings: WebSettings) -> Access:
    """What the configuration says about visitors."""
    web = settings.config.web
    return Access(
        session_seconds=web.session_hours * 3600.0,
        idle_seconds=web.idle_minutes * 60.0,
        proxies=web.trusted_proxies,
        user_header=web.user_header,
        role_header=web.role_header,
    )


def _hold(app: FastAPI, parts: Parts, now: Callable[[], float]) -> None:
    """What lives as long as the process: handlers find it at the application."""
    app.state.parts = parts
    app.state.gate = parts.gate
    app.state.live = Live(partial(change_tokens, parts.database))
    app.state.metrics = Metrics(now)
    app.state.metrics.begin(parts)
    app.state.looks = Looks(parts.store.audit)
    app.state.searches = Searches()
    app.state.statements = Statements(log_as_json=parts.settings.log_as_json)
