"""Processes that are killed at the worst moment: parts of storage, and the node as a whole.

`python -m tests.faults.doomed` runs a part. `program` writes a program that starts the node as
`midslice` does, with a way in at each of `STEPS`: the file that `DEATH` names says at which one
all of its processes are killed at once. The product knows nothing of it.
"""

import functools
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Engine, event

from storage.archive import Archive
from storage.database import Database
from storage.files import Files, StrPath
from storage.jobs import Queue
from storage.leases import Holder
from storage.migrations import FOLDER
from tests.unit.storage.stored import INFER, SCANNER, content_of, part10, received

DEATH = "MIDSLICE_TEST_DEATH"  # names the file that says at which step, and the how many-th time
SCRIPTS = "MIDSLICE_TEST_SCRIPTS"  # names the folder of the migrations of a later release
UPGRADE = "storage.migrations:upgrade"

SCRIPT = """#!/bin/sh
exec {python} -c 'from tests.faults import doomed; doomed.main()' "$@"
"""


@dataclass(frozen=True)
class Step:
    """A moment of the node: before or after a call of a function, from the `count`-th on."""

    function: str  # where its caller finds it
    when: Literal["before", "after"] = "after"
    count: int = 1
    in_start: bool = False  # it comes once, before the node takes images


STEPS: Mapping[str, Step] = {
    "in the middle of a C-STORE": Step("node.dicom.incoming:Incoming.write", count=5),
    "after write": Step("node.dicom.incoming:Incoming.finish", count=3),
    "after fsync": Step("storage.files:Files.seal", count=2),
    "after rename": Step("storage.files:Files.move", count=4),
    "before commit": Step("storage.archive:Index.add", count=2),
    "after commit, before the answer": Step("storage.archive:Archive.keep", count=3),
    "after claim": Step("storage.jobs:Queue.claim"),
    "in inference": Step("inference.models.classical:Linear.run", "before", count=2),
    "between derived files": Step("inference.header:write_parts", count=2),
    "before the rename of the output": Step("inference.pipeline:bring_to_disk", "before"),
    "before the end of a job": Step("storage.jobs:Queue.succeed", "before"),
    "after the end of a job": Step("storage.jobs:Queue.succeed"),
    "answered by the destination, not noted": Step("storage.ledger:Ledger.record", "before"),
    "in the middle of a delivery": Step("storage.ledger:Ledger.record"),
    "before a delivery is sent": Step("storage.ledger:Ledger.sent", "before"),
    "between sent and confirmed": Step("storage.ledger:Ledger.sent"),
    "in recovery": Step("storage.recovery:_look_at_incoming", in_start=True),
    "in a migration": Step(UPGRADE, count=3, in_start=True),
    "in retention, marked": Step("storage.retention:_mark", in_start=True),
    "in retention, results gone": Step("storage.retention:_remove_some", "before", in_start=True),
}


class Death:
    """What the file says by now; the process group dies at that step."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._counted: dict[str, int] = {}

    def reached(self, step: str) -> None:
        """Die here where it is time to."""
        try:
            wanted = self._file.read_text()
        except FileNotFoundError:
            return
        name, _, count = wanted.rpartition(" ")
        if name != step:
            return
        self._counted[wanted] = self._counted.get(wanted, 0) + 1
        if self._counted[wanted] >= int(count):
            self._file.unlink()  # the next process lives
            os.killpg(os.getpgrp(), signal.SIGKILL)
            time.sleep(60.0)  # for the signal: nothing goes on meanwhile

    def intrude(self) -> None:
        """Be there at the steps of the modules that are loaded; others are none of this process."""
        for name, step in STEPS.items():
            module, _, path = step.function.partition(":")
            if module in sys.modules and step.function != UPGRADE:
                owner: Any = sys.modules[module]
                *outer, last = path.split(".")
                for part in outer:
                    owner = getattr(owner, part)
                setattr(owner, last, self._watched(name, step, getattr(owner, last)))

    def _watched(self, name: str, step: Step, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def watched(*arguments: Any, **named: Any) -> Any:
            if step.when == "before":
                self.reached(name)
            result = function(*arguments, **named)
            if step.when == "after" and (result is not None or name != "after claim"):
                self.reached(name)
            return result

        return watched


def program(folder: Path) -> Path:
    """Write the program that starts a doomed node."""
    script = folder / "midslice-doomed"
    script.write_text(SCRIPT.format(python=shlex.quote(sys.executable)))
    script.chmod(0o755)
    return script


def main() -> None:
    """Start the node as `midslice` does, and die where the file says so."""
    death = Death(Path(os.environ[DEATH]))
    import_module("node.app")
    _watch_migrations(death)
    death.intrude()
    children = import_module("node.children")
    children._live = _child
    import_module("node.cli").main()


def _child(*arguments: Any) -> None:
    """What a child of a doomed node runs instead of `_live`: its modules are loaded by now."""
    if "node.work.executor" in sys.modules:
        import_module("inference.models.classical")  # which the worker loads at once
    Death(Path(os.environ[DEATH])).intrude()
    import_module("node.children")._live(*arguments)


def _watch_migrations(death: Death) -> None:
    """Die after so many statements; the scripts may be those of a later release."""
    if scripts := os.environ.get(SCRIPTS):
        migrations = import_module("storage.migrations")
        migrations.FOLDER = Path(scripts)
        Database.migrate.__defaults__ = (Path(scripts),)
        migrations.upgrade = _counted(death, migrations.upgrade)


def _counted(death: Death, upgrade: Callable[..., None]) -> Callable[..., None]:
    def watched(*arguments: Any) -> None:
        def count(*_: object) -> None:
            death.reached("in a migration")

        event.listen(Engine, "after_cursor_execute", count)
        try:
            upgrade(*arguments)
        finally:
            event.remove(Engine, "after_cursor_execute", count)

    return watched


def die() -> None:
    """As a power cut does it: no handler, no `finally`, no flush."""
    os.kill(os.getpid(), signal.SIGKILL)


class KilledAfterRename(Files):
    """The node dies when the file has its name and the database does not know it yet."""

    def move(self, temporary: StrPath, relative: str) -> Path:
        super().move(temporary, relative)
        die()
        raise AssertionError("a killed process goes on")


def keep_one(folder: Path) -> None:
    """Dies between write and commit."""
    database = Database.for_folder(folder)
    files = KilledAfterRename(folder, 0)
    what = received("1.1")
    file = files.incoming / "1.dcm"
    file.write_bytes(part10(content_of(what)))
    Archive(database, files, time.time).keep(what, SCANNER, file)


def keep_many(folder: Path) -> None:
    """Says each instance that is kept; somebody else kills it at any moment."""
    database = Database.for_folder(folder)
    files = Files(folder, 0)
    archive = Archive(database, files, time.time)
    begin = len(list((folder / "received").rglob("*.dcm")))
    for number in range(begin, begin + 10_000):
        what = received(f"1.{number}")
        file = files.incoming / f"{number}.dcm"
        file.write_bytes(part10(content_of(what, b"x" * 50_000)))
        archive.keep(what, SCANNER, file)
        sys.stdout.write(f"1.{number}\n")
        sys.stdout.flush()


def claim_one(folder: Path) -> None:
    """Dies between claim and finish."""
    queue = Queue(Database.for_folder(folder), Holder("one", time.time, 60.0))
    job = queue.claim("w", INFER)
    assert job is not None
    queue.renew(job, 0.5)
    die()


def migrate(folder: Path, after: str, scripts: str = str(FOLDER)) -> None:
    """Dies in a migration to the newest of these scripts, after so many statements."""
    left = int(after)

    def count(*_: object) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            die()

    event.listen(Engine, "after_cursor_execute", count)
    Database.for_folder(folder).migrate(Path(scripts))


if __name__ == "__main__":
    _, what_dies, where, *arguments = sys.argv
    DEATHS: dict[str, Callable[..., None]] = {
        "keep_one": keep_one,
        "keep_many": keep_many,
        "claim_one": claim_one,
        "migrate": migrate,
    }
    DEATHS[what_dies](Path(where), *arguments)
