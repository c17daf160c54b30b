"""What a handler works with: the rows, the files, and who decides who asks."""

from dataclasses import dataclass
from datetime import tzinfo
from typing import Annotated

from fastapi import Depends
from starlette.requests import Request

from node.config import Config
from node.store import Store
from node.web.current import Current
from node.web.gate import Gate
from node.web.settings import WebSettings
from storage.database import Database


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
