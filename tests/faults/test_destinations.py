"""Seven destinations of one node, six of them bad at once, and a clock that is set meanwhile."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests import series
from tests.faults.table import Fault
from tests.node_process import NodeProcess, destination, route, running, wait_for
from tests.peers import Script, scripted_scp, storescp, storescu
from tests.ports import free_port

ROUNDS = int(os.environ.get("FAULT_ROUNDS", "2"))
RECEIVED = 11
SLICES = 2 * RECEIVED - 1
REFUSED = 3
HOURS = 5 * 3600
# Read by each process of the node at its start: its wall clock is off by the age of a file.
CLOCK = """import os, time
_time = time.time
time.time = lambda: _time() + os.stat({file!r}).st_mtime - 1e9
"""


@pytest.mark.long
@pytest.mark.parametrize("number", range(max(1, ROUNDS // 2)))
def test_bad_destinations_hold_up_no_other_and_lose_nothing(  # noqa: PLR0915 - one story
    tmp_path: Path, fault: Callable[[str], Fault], number: int
) -> None:
    row = fault("six bad destinations at once, clock set by hours")
    clock = tmp_path / "clock"
    clock.touch()
    os.utime(clock, (1e9, 1e9))
    (tmp_path / "sitecustomize.py").write_text(CLOCK.format(file=str(clock)))
    scripts = {
        "good": Script(),
        "strict": Script(calling_ae_titles=("SOMEBODY",)),
        "stalls": Script(stall_at=4 + number),
        "aborts": Script(abort_at=6 + number),
        "full": Script(statuses=[0x0000, *[0xA700] * 4]),
        "refuses": Script(statuses=[0x0122] * REFUSED),
    }
    down = free_port()
    with ExitStack() as peers:
        ports = {name: peers.enter_context(scripted_scp(one)) for name, one in scripts.items()}
        more = {"stalls": "answer_seconds = 8.0\n"}
        node = NodeProcess(
            tmp_path / "node",
            *(
                destination(name, "SCRIPTED", port, more.get(name, ""))
                for name, port in ports.items()
            ),
            destination("down", "STORESCP", down),
            route(destinations=[*scripts, "down"]),
        )
        node.environment["PYTHONPATH"] = str(tmp_path)
        with running(node):
            assert storescu(node.port, *series.thick(RECEIVED), options=("-xt",)).code == 0
            node.event("job succeeded")
            node.event("delivery sent", destination="good", seconds=10.0)
            assert not node.found("delivery sent", destination="stalls")  # it hangs by now
            node.event("destination down", destination="down")
            for offset in (HOURS, -HOURS, 0):  # forward, back, right again
                os.utime(clock, (1e9 + offset, 1e9 + offset))
                wait_for("some tries", lambda: len(node.found("delivery delayed")) > 0)
            for name in ("full", "aborts", "stalls"):
                node.event("delivery sent", destination=name, seconds=60.0)
            node.event("delivery held", destination="strict")
            node.event("delivery held", destination="refuses")
            with storescp(tmp_path / "late", port=down) as late:
                node.event("delivery sent", destination="down", seconds=60.0)
                stored = len(late.files())
            (job,) = node.jobs()
            shown = node.cli("job", str(job["id"]))
            rows = {one["destination"]: one for one in shown["deliveries"]}
    row.times = 1
    count(row, scripts, rows, stored)
    assert not any(held["reason"] == "GAVE_UP" for held in node.found("delivery held"))


def count(row: Fault, scripts: dict[str, Script], rows: dict[str, Any], stored: int) -> None:
    """Count what was lost, doubled or left hanging, and see that what is held says why."""
    complete = {"good": 0, "stalls": 1, "aborts": 1}  # offered once more: no answer had come
    for name, again in complete.items():
        uids = scripts[name].received
        row.lost += SLICES - len(set(uids))
        row.duplicated += max(0, len(uids) - SLICES - again)
    row.lost += (SLICES - stored) + (SLICES - len(set(scripts["full"].received)))
    row.hung += any(one["state"] in ("queued", "running") for one in rows.values())
    assert (row.lost, row.duplicated, row.hung) == (0, 0, 0)
    assert {name for name, one in rows.items() if one["state"] == "held"} == {"strict", "refuses"}
    assert all(rows[name]["sentence"] for name in ("strict", "refuses"))
    assert rows["refuses"]["sent"] == SLICES - REFUSED
