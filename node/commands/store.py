"""The node's rows and files as a command sees them; the running node is told through them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from node.store import Store

NOBODY = "command line"  # a command claims nothing: no lease is ever taken in this name


@contextmanager
def opened(path: Path) -> Iterator["Store"]:
    """Storage of the configuration in `path`."""
    from node import store
    from node.config import load

    with store.opened(load(path), NOBODY) as kept:
        yield kept
