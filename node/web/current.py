"""The configuration that the node works with now: it may have read its file again since."""

import threading

from node.config import Config
from node.config.kept import from_values
from node.web.settings import WebSettings
from storage.database import Database
from storage.site import control


class Current:
    """Asks the database each time, and builds the values only where they are others."""

    def __init__(self, settings: WebSettings, database: Database) -> None:
        self._settings = settings
        self._database = database
        self._turn = threading.Lock()
        self._applied_at: float | None = None
        self._config = settings.config

    def config(self) -> Config:
        """Without passwords; until the node has written it down, as it was at the start."""
        found = control.applied_configuration(self._database, self._settings.node_id)
        with self._turn:
            if found is not None and found.applied_at != self._applied_at:
                self._config = from_values(found.values)
                self._applied_at = found.applied_at
            return self._config
