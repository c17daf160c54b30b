"""The state of the web process: its settings, the current configuration, and what it remembers."""

import secrets
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import tzinfo
from typing import Annotated

from fastapi import Depends
from starlette.requests import Request

from node.config import Config
from node.config.reading import from_values
from node.store import Store
from node.web.access import Gate
from storage.database import Database
from storage.site import control
from storage.site.audit import Audit

# Within it, further pictures or instances are the same view of the same person.
SAME_VIEW_SECONDS = 600.0
MOST_VIEWS = 10_000  # views that are remembered; of a forgotten one there is a further event
MOST_SEARCHES = 5000  # searches; the one that was not looked at for the longest goes first
NAME_BYTES = 16


@dataclass(frozen=True)
class WebSettings:
    """The configuration as it was at the start; what may be reloaded lies in the database."""

    config: Config
    node_id: str
    log_as_json: bool
    setup_digest: str = ""  # of the key in the set-up link; empty where there was a user


class Current:
    """The configuration in force; asked of the database, and read only where it has changed."""

    def __init__(self, settings: WebSettings, database: Database) -> None:
        self._settings = settings
        self._database = database
        self._turn = threading.Lock()
        self._applied_at: float | None = None
        self._config = settings.config

    def config(self) -> Config:
        """Give it without passwords; until the node has written it down, as it was at the start."""
        applied = control.applied_configuration(self._database, self._settings.node_id)
        with self._turn:
            if applied is not None and applied.applied_at != self._applied_at:
                self._config = from_values(applied.values)
                self._applied_at = applied.applied_at
            return self._config


@dataclass(frozen=True)
class Parts:
    """Made once a process."""

    settings: WebSettings
    store: Store
    gate: Gate
    current: Current

    @property
    def database(self) -> Database:
        """The rows."""
        return self.store.database

    def config(self) -> Config:
        """The configuration that the node works with now."""
        return self.current.config()

    @property
    def zone(self) -> tzinfo | None:
        """The zone of the times that are shown; None is the system's own."""
        return self.store.zone


def parts_of(request: Request) -> Parts:
    """The parts of the application that this request came to."""
    parts: Parts = request.app.state.parts
    return parts


PartsOf = Annotated[Parts, Depends(parts_of)]


class RecentViews:
    """Remembers which views were recorded lately: a viewer asks for each slice by itself."""

    def __init__(self, audit: Audit) -> None:
        self._audit = audit
        self._since: dict[tuple[str, str, str], float] = {}  # the oldest first
        self._turn = threading.Lock()

    def record(self, who: str, what: str, target: str, now: float) -> None:
        """Record that `who` views pictures of a job, or a series, unless that was just recorded.

        It is recorded before anything is shown: where it cannot be, nothing is.
        """
        view = who, what, target
        with self._turn:  # a page asks for many at once
            since = self._since.get(view)
            if since is not None and abs(now - since) < SAME_VIEW_SECONDS:  # requests overtake
                return
            self._audit.record(who, what, target)
            self._since.pop(view, None)
            self._since[view] = now
            while len(self._since) > MOST_VIEWS:
                self._since.pop(next(iter(self._since)))


class Searches:
    """Searches by a random name; in memory only, as patients' words are kept nowhere else either.

    Addresses end in the logs of proxies and in the history of browsers. The words of a search come
    in the body of a request; the page that shows what was found has an address with that name, with
    which it can be loaded again, paged through and gone back to.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[str, Mapping[str, str]]] = OrderedDict()
        self._turn = threading.Lock()

    def keep(self, who: str, given: Mapping[str, str]) -> str:
        """Keep a search of somebody; returns its name."""
        name = secrets.token_urlsafe(NAME_BYTES)
        with self._turn:
            self._kept[name] = (who, dict(given))
            while len(self._kept) > MOST_SEARCHES:
                self._kept.popitem(last=False)
        return name

    def get(self, who: str, name: str) -> Mapping[str, str] | None:
        """Find the words of a search; None for somebody else's, or one that is gone."""
        with self._turn:
            owner, given = self._kept.get(name, ("", {}))
            if not given or owner != who:
                return None
            self._kept.move_to_end(name)
            return given
