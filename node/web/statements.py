"""The conformance statement for the pages: written in a process of its own, once a configuration.

It is made from the tables of the DICOM code, which the web process does not load.
"""

import threading
from dataclasses import dataclass

from node.config import Config
from node.web import aside


@dataclass(frozen=True)
class Written:
    """The statement as Markdown, and as the body of a page with all text escaped."""

    config: Config
    markdown: str
    html: str


class Statements:
    """Keeps the statement of the configuration that was asked for last."""

    def __init__(self, *, log_as_json: bool) -> None:
        self._log_as_json = log_as_json
        self._turn = threading.Lock()
        self._last: Written | None = None

    def of(self, config: Config) -> Written:
        """The statement of this configuration."""
        with self._turn:
            if self._last is None or self._last.config != config:
                self._last = aside.ask(written, config, log_as_json=self._log_as_json)
            return self._last


def written(config: Config) -> Written:
    """For the other process."""
    from node import conformance

    return Written(config, conformance.statement(config), conformance.html(config))
