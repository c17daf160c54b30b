"""What a command left, and the folder that it ran in: its configuration and its rows."""

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from node.commands.terminal import opened
from tests.conftest import Clock
from tests.ports import HOST
from tests.unit.storage.stored import Stored


@dataclass(frozen=True)
class Result:
    """What a command left: status, standard output, standard error."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Midslice = Callable[..., Result]


def configure(folder: Path, *, port: int = 1) -> Path:
    """Write config.toml with two destinations, the first at `port`, and a route to that one."""
    path = folder / "config.toml"
    path.write_text(
        '[node]\nport = 0\ntimezone = "Europe/Berlin"\n[web]\nport = 0\n'
        "[storage]\nmin_free_gb = 0.0\n"
        f'[[destination]]\nname = "pacs"\nae_title = "STORESCP"\nhost = "{HOST}"\nport = {port}\n'
        f'[[destination]]\nname = "other"\nae_title = "OTHER"\nhost = "{HOST}"\nport = 1\n'
        '[[route]]\nname = "ct-slices"\nmodel = "linear"\nfactor = 2\ndestinations = ["pacs"]\n'
    )
    return path


@contextlib.contextmanager
def rows(folder: Path) -> Iterator[Stored]:
    """What the node of this folder has stored, to write and to read."""
    with opened(folder / "config.toml") as store:
        yield Stored(store.database, store.files, Clock(), "one")
