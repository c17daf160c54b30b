"""What people have searched for, under names that say nothing: an address has no patient in it.

Addresses end in the logs of proxies and in the history of browsers. The words of a search come in
the body of a request; the page that shows what was found has an address with a random name, with
which it can be loaded again, paged through and gone back to.
"""

import secrets
import threading
from collections import OrderedDict
from collections.abc import Mapping

MOST_KEPT = 5000  # searches; the one that was not looked at for the longest goes first
NAME_BYTES = 16


class Searches:
    """In memory only, until the process ends: patients' words are kept nowhere else either."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[str, Mapping[str, str]]] = OrderedDict()
        self._turn = threading.Lock()

    def keep(self, who: str, given: Mapping[str, str]) -> str:
        """The name of a search of somebody."""
        name = secrets.token_urlsafe(NAME_BYTES)
        with self._turn:
            self._kept[name] = (who, dict(given))
            while len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
        return name

    def get(self, who: str, name: str) -> Mapping[str, str] | None:
        """What was searched for under this name; None for somebody else's, or one that is gone."""
        with self._turn:
            owner, given = self._kept.get(name, ("", {}))
            if not given or owner != who:
                return None
            self._kept.move_to_end(name)
            return given
