"""A scanner that sends while it reconstructs: the worker generates meanwhile, and tells nobody."""

import hashlib
import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from inference.pipeline import process
from inference.request import Derived, ModelSpec, Resources
from tests import phantoms
from tests.node_process import NodeProcess, destination, route, running
from tests.peers import Storescp, storescu
from tests.phantoms import Series
from tests.scanner import scan
from tests.unit.inference.made import request

MADE = Series(slices=10, rows=64, columns=64)


def record_of_last_job(node: NodeProcess) -> dict[str, Any]:
    with closing(sqlite3.connect(node.folder / "var" / "midslice.db")) as db:
        (record,) = db.execute("SELECT record FROM job ORDER BY id DESC LIMIT 1").fetchone()
    loaded: dict[str, Any] = json.loads(record)
    return loaded


def pixels_of(paths: list[Path]) -> dict[str, str]:
    datasets = map(phantoms.pydicom_read, paths)
    return {str(it.SOPInstanceUID): hashlib.sha256(it.PixelData).hexdigest() for it in datasets}


def alone(files: list[Path], node: NodeProcess, folder: Path) -> dict[str, str]:
    """The digests of the pixels that the same job has without drafts."""
    made = replace(
        request(files, folder, factor=3),
        model=ModelSpec("midslice"),
        secret=(node.folder / "var" / "secret").read_bytes(),
        resources=Resources(device="cpu", threads=1),
    )
    outcome = process(made, progress=lambda _: None, cancelled=lambda: False)
    assert isinstance(outcome, Derived)
    return pixels_of([folder / file.name for file in outcome.files])


def test_slices_are_generated_while_a_series_arrives_and_are_those_of_a_job_without(
    tmp_path: Path, empty_archive: Storescp
) -> None:
    files = phantoms.write(tmp_path / "sent", MADE)
    node = NodeProcess(
        tmp_path / "node",
        destination("archive", "STORESCP", empty_archive.port),
        route(model="midslice", factor=3, destinations=["archive"]),
        quiet_seconds=3.0,
    )
    with running(node):
        first = phantoms.write(tmp_path / "first", replace(MADE, seed="first"))
        assert storescu(node.port, *first).code == 0
        node.event("delivery sent")  # the worker has loaded its models: it listens at once now
        for path in empty_archive.files():
            path.unlink()

        scan(node.port, files, seconds=0.2)
        node.event("delivery sent", count=2)
        assert record_of_last_job(node)["made_ahead"]
        delivered = pixels_of(empty_archive.files())
        assert len(delivered) == 3 * (MADE.slices - 1) + 1
        made = alone(files, node, tmp_path / "alone")
        assert sorted(delivered.values()) == sorted(made.values())
        assert not node.found("not generated ahead")
