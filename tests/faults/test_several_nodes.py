"""Two nodes on one PostgreSQL, four senders, and kills of nodes and of the database in between."""

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from pydicom import dcmread

from tests import node_rows, phantoms
from tests.faults.table import Fault
from tests.node_cluster import LOST_SECONDS, cluster
from tests.node_process import NodeProcess, destination, route
from tests.peers import storescp, storescu
from tests.phantoms import Series
from tests.postgres import PostgresServer, postgres
from tests.traffic import uid_of

SERIES = min(200, 6 * int(os.environ.get("FAULT_ROUNDS", "1")))
SENDERS = 4
SLICES = 5
SERIES_BETWEEN_FAULTS = 6
AGAIN_SECONDS = 1.0
TRIES = 200


def test_nodes_and_their_database_die_and_no_series_is_lost_or_doubled(
    tmp_path: Path, fault: Callable[[str], Fault]
) -> None:
    row = fault("a node of two, or PostgreSQL, dies while series come and go")
    all_sets = [
        phantoms.write(tmp_path / f"ct-{number}", Series(seed=str(number), slices=SLICES))
        for number in range(SERIES)
    ]
    with postgres() as server, storescp(tmp_path / "archive") as archive:
        parts = (destination("pacs", "STORESCP", archive.port), route(destinations=["pacs"]))
        with cluster(tmp_path, server.create("several"), *parts) as nodes:
            senders = _begin_to_send(nodes, all_sets)
            _break_things(nodes, server, senders, row)
            for sender in senders:
                sender.join()
            node_rows.wait_until_settled(
                nodes[0], map(uid_of, all_sets), seconds=60.0 + 5.0 * SERIES
            )
            for files in all_sets:
                (job,) = node_rows.jobs(nodes[0], uid_of(files))
                (delivery,) = node_rows.deliveries(nodes[0], uid_of(files))
                row.lost += (job.state, delivery.state) != ("succeeded", "sent")
            acknowledged = {uid for uid, _ in node_rows.kept(nodes[0])}
        made = Counter(
            str(dcmread(path, stop_before_pixels=True).SeriesInstanceUID)
            for path in archive.files()
        )
    sent = {str(dcmread(path).SOPInstanceUID) for files in all_sets for path in files}
    row.lost += len(sent - acknowledged) + sum(count < 2 * SLICES - 1 for count in made.values())
    row.duplicated += len(made) - SERIES
    assert (row.lost, row.duplicated, row.hung) == (0, 0, 0)


def _begin_to_send(
    nodes: Sequence[NodeProcess], all_sets: Sequence[Sequence[Path]]
) -> list[threading.Thread]:
    """Four senders, each of which sends its series again until every instance had Success."""

    def send_all(first: int) -> None:
        for number in range(first, len(all_sets), SENDERS):
            for tried in range(TRIES):
                port = nodes[(number + tried) % len(nodes)].port
                calling = f"CT{first}"
                if storescu(port, *all_sets[number], calling=calling).code == 0:
                    break
                time.sleep(AGAIN_SECONDS)  # as a scanner pauses

    senders = [threading.Thread(target=send_all, args=(first,)) for first in range(SENDERS)]
    for sender in senders:
        sender.start()
    return senders


def _break_things(
    nodes: Sequence[NodeProcess],
    server: PostgresServer,
    senders: Sequence[threading.Thread],
    row: Fault,
) -> None:
    """Kill in turn a node, which stays away until it is lost, and the database."""
    chance = random.Random(18)
    faults = max(2, SERIES // SERIES_BETWEEN_FAULTS)
    for number in range(faults):
        time.sleep(chance.uniform(0.5, 2.0))  # nothing to wait for: any moment will do
        row.times += 1
        began = time.monotonic()
        if number % 2:
            server.kill()
            server.start()
        else:
            victim, other = chance.sample(list(nodes), 2)
            lost = len(other.found("node lost"))
            victim.kill_all()
            other.event("node lost", count=lost + 1, seconds=LOST_SECONDS + 30.0)
            victim.start()
        row.seconds = max(row.seconds, time.monotonic() - began)
