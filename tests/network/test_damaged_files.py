"""A disk that flips a bit or loses a file: the job waits for the series, and a re-send mends it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import node_rows, phantoms
from tests.node_process import NodeProcess, destination, route, running
from tests.peers import Storescp
from tests.phantoms import Series
from tests.traffic import send, uid_of


@pytest.fixture
def node(tmp_path: Path, archive: Storescp) -> Iterator[NodeProcess]:
    pacs = destination("pacs", "STORESCP", archive.port)
    parts = [pacs, route(destinations=["pacs"])]
    with running(NodeProcess(tmp_path / "node", *parts, quiet_seconds=3.0)) as process:
        yield process


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [flip, Path.unlink], ids=["flipped", "lost"])
def test_a_damaged_slice_is_never_processed_and_is_mended_by_a_re_send(
    node: NodeProcess, empty_archive: Storescp, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    files = phantoms.write(tmp_path / "sent", Series(seed="bits", slices=6))
    send(node, files)
    kept = sorted((tmp_path / "node").rglob("received/*/*/*.dcm"))
    assert len(kept) == 6
    damage(kept[2])
    held = node.event("job held", reason="DAMAGED_FILES")
    (job,) = node_rows.jobs(node, uid_of(files))
    assert (job.id, job.state, job.reason) == (held["job"], "held", "DAMAGED_FILES")
    assert "1 received file is missing or changed" in job.sentence
    assert empty_archive.files() == []
    send(node, files, calling="PACS")  # whoever sends it: the bytes are the same
    node.event("job succeeded", job=job.id)
    (job,) = node_rows.jobs(node, uid_of(files))
    assert job.state == "succeeded"
