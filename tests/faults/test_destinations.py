"""Seven destinations of one node, six of them bad at once, and a clock that is set meanwhile."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests import phantoms
from tests.faults.table import Fault
from tests.node_process import NodeProcess, destination, route, running, wait_for
from tests.peers import Script, scripted_scp, storescp, storescu
from tests.phantoms import Series
from tests.ports import free_port

ROUNDS = int(os.environ.get("FAULT_ROUNDS", "2"))
SERIES = Series(slices=51, rows=16, columns=16)
SLICES = 2 * SERIES.slices - 1
REFUSED = 3  # of them, for ever
HOURS = 5 * 3600
ANSWER_SECONDS = 4.0  # that the node waits for one that stalls
# Read by each process of the node at its start: its wall clock is off by the age of a file.
CLOCK = """import os, time
_time = time.time
time.time = lambda: _time() + os.stat({file!r}).st_mtime - 1e9
"""


@dataclass
class Clock:
    """The wall clock of a node, which a test sets."""

    folder: Path

    def __post_init__(self) -> None:
        self._file = self.folder / "clock"
        self._file.touch()
        self.set(0)
        (self.folder / "sitecustomize.py").write_text(CLOCK.format(file=str(self._file)))

    def set(self, offset: float) -> None:
        """Have it differ from the true time by so many seconds."""
        os.utime(self._file, (1e9 + offset, 1e9 + offset))


@dataclass
class Destinations:
    """The peers behind the destinations, but for the one that is down."""

    number: int
    down: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        self.scripts = {
            "good": Script(),
            "strict": Script(calling_ae_titles=("SOMEBODY",)),
            "stalls": Script(stall_at=4 + self.number),
            "aborts": Script(abort_at=6 + self.number),
            "full": Script(statuses=[0x0000, *[0xA700] * 4]),
            "refuses": Script(statuses=[0x0122] * REFUSED),
        }

    @contextmanager
    def running(self) -> Iterator[list[str]]:
        """Run them; the tables of the configuration that name them."""
        with ExitStack() as peers:
            ports = {
                name: peers.enter_context(scripted_scp(script))
                for name, script in self.scripts.items()
            }
            more = {"stalls": f"answer_seconds = {ANSWER_SECONDS}\n"}
            yield [
                *(
                    destination(name, "SCRIPTED", port, more.get(name, ""))
                    for name, port in ports.items()
                ),
                destination("down", "STORESCP", self.down),
                route(destinations=[*self.scripts, "down"]),
            ]


@pytest.mark.parametrize("number", range(max(1, ROUNDS // 2)))
def test_bad_destinations_hold_up_no_other_and_lose_nothing(
    tmp_path: Path, fault: Callable[[str], Fault], number: int
) -> None:
    row = fault("six bad destinations at once, clock set by hours")
    row.times = 1
    clock, peers = Clock(tmp_path), Destinations(number)
    files = phantoms.write(tmp_path / "series", SERIES)
    with peers.running() as tables:
        node = NodeProcess(tmp_path / "node", *tables)
        node.environment["PYTHONPATH"] = str(tmp_path)
        with running(node):
            assert storescu(node.port, *files).code == 0
            the_good_one_has_it_first(node)
            for offset in (HOURS, -HOURS, 0):  # forward, back, right again
                clock.set(offset)
                tries = len(node.found("delivery delayed"))
                wait_for("a try", partial(delayed_more_than, node, tries))
            stored = recovered(node, tmp_path / "late", peers.down)
            shown = node.cli("job", str(node.event("job succeeded")["job"]))
            rows = {delivery["destination"]: delivery for delivery in shown["deliveries"]}
    count(row, peers.scripts, rows, stored)
    assert not any(held["reason"] == "GAVE_UP" for held in node.found("delivery held"))


def delayed_more_than(node: NodeProcess, tries: int) -> bool:
    """True where deliveries were delayed more often than that."""
    return len(node.found("delivery delayed")) > tries


def the_good_one_has_it_first(node: NodeProcess) -> None:
    """The good destination is served while another one stalls."""
    node.event("job succeeded")
    node.event("delivery sent", destination="good", seconds=10.0)
    assert not node.found("delivery delayed", destination="stalls")  # it hangs by now
    assert not node.found("delivery sent", destination="stalls")
    node.event("destination down", destination="down")


def recovered(node: NodeProcess, folder: Path, port: int) -> int:
    """Wait until each has what it takes; the files that came to the one that was down."""
    for name in ("full", "aborts", "stalls"):
        node.event("delivery sent", destination=name, seconds=60.0)
    for name in ("strict", "refuses"):
        node.event("delivery held", destination=name)
    with storescp(folder, port=port) as late:
        node.event("delivery sent", destination="down", seconds=60.0)
        return len(late.files())


def count(row: Fault, scripts: dict[str, Script], rows: dict[str, Any], stored: int) -> None:
    """Count what was lost, doubled or left hanging, and see that what is held says why."""
    complete = {"good": 0, "stalls": 1, "aborts": 1}  # offered once more: no answer had come
    for name, again in complete.items():
        uids = scripts[name].received
        row.lost += SLICES - len(set(uids))
        row.duplicated += max(0, len(uids) - SLICES - again)
    row.lost += (SLICES - stored) + (SLICES - len(set(scripts["full"].received)))
    row.hung += any(delivery["state"] in ("queued", "running") for delivery in rows.values())
    assert (row.lost, row.duplicated, row.hung) == (0, 0, 0)
    held = {name for name, delivery in rows.items() if delivery["state"] == "held"}
    assert held == {"strict", "refuses"}
    assert all(rows[name]["sentence"] for name in held)
    assert rows["refuses"]["sent"] == SLICES - REFUSED
