"""The series of a self-test takes the route of its test or none: no PACS gets it as a patient's."""

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
from pydicom import dcmread

from node import config, store
from node.app import never, rules
from node.config import Route
from node.store import Store
from node.work import selftest
from node.work.arrivals import Arrivals
from storage.database import FILE_NAME
from storage.records import ArrivalState, Job, Peer, Received, SelfTest, SwitchName
from storage.site import control, selftests
from tests.conftest import Clock

NODE = "one"
CONFIG = """
[node]
port = 0
[storage]
folder = "var"
min_free_gb = 0.0
[web]
port = 0
[[destination]]
name = "pacs"
ae_title = "PACS"
host = "127.0.0.1"
port = 4242
[[route]]
name = "every-ct"
match = { Modality = "CT" }
model = "linear"
factor = 2
destinations = ["pacs"]
"""
OWN = Route.model_validate({"name": "own", "model": "linear", "factor": 2, "destinations": []})


class Node:
    """What closes the arrivals of one node; `made` are the routes of the tests that it runs."""

    def __init__(self, kept: Store, settings: config.Config, clock: Clock, folder: Path) -> None:
        self.kept, self.clock, self.folder = kept, clock, folder
        self.made: dict[str, Route] = {}
        self.arrivals = Arrivals(
            kept.archive,
            kept.queue,
            kept.files,
            rules(settings),
            clock,
            never=partial(never, kept, self.made),
            self_tests=self.made,
        )

    def receive(self, uid: str) -> None:
        """A made series, as the receiver keeps it."""
        made = selftest.make(self.folder / uid, uid, datetime(2026, 1, 1, tzinfo=UTC))
        for number, one in enumerate(made):
            came = self.kept.files.incoming / f"{number}.dcm"
            shutil.copy(one.path, came)
            study_uid = str(dcmread(one.path, stop_before_pixels=True).StudyInstanceUID)
            what = Received(
                study_uid, uid, one.instance_uid, one.sop_class_uid, one.transfer_syntax, "CT"
            )
            self.kept.archive.keep(what, Peer("GUEST", "MIDSLICE"), came)

    def begin(self, uid: str) -> SelfTest:
        return selftests.begin(
            self.kept.database, self.clock(), node=NODE, who="anna", series_uid=uid, destination=""
        )

    def close(self) -> None:
        """Long after the last instance."""
        self.clock.now += 3600
        self.arrivals.sweep()

    def jobs(self, uid: str) -> list[Job]:
        found = self.kept.archive.series_by_uid(uid)
        return [job for one in found for job in self.kept.queue.of_series(one.id)]

    def is_arriving(self, uid: str) -> bool:
        return any(
            one.series_uid == uid and one.state is ArrivalState.ARRIVING
            for one in self.kept.archive.arriving()
        )


@pytest.fixture
def node(tmp_path: Path, migrated_sqlite: Path, clock: Clock) -> Iterator[Node]:
    (tmp_path / "var").mkdir()
    shutil.copy(migrated_sqlite, tmp_path / "var" / FILE_NAME)
    path = tmp_path / "config.toml"
    path.write_text(CONFIG)
    settings = config.load(path)
    with store.opened(settings, NODE) as kept:
        yield Node(kept, settings, clock, tmp_path / "made")


def test_while_it_runs_it_takes_its_own_route_only(node: Node) -> None:
    uid = selftest.series_uid()
    node.begin(uid)
    node.made[uid] = OWN
    node.receive(uid)
    node.close()
    (job,) = node.jobs(uid)
    assert (job.route, job.kind, job.destinations) == ("own", "selftest", ())


def test_a_node_without_its_route_leaves_it_to_the_one_that_runs_the_test(node: Node) -> None:
    uid = selftest.series_uid()
    node.begin(uid)
    node.receive(uid)
    node.close()
    assert node.is_arriving(uid)
    assert node.jobs(uid) == []


def test_what_comes_of_it_when_the_test_is_over_is_kept_and_never_processed(node: Node) -> None:
    uid = selftest.series_uid()
    test = node.begin(uid)
    node.receive(uid)
    selftests.end(node.kept.database, node.clock(), test.id, [], "It took too long.")
    node.close()
    assert not node.is_arriving(uid)
    assert node.jobs(uid) == []


def test_a_person_may_still_say_never_and_others_are_processed_as_ever(node: Node) -> None:
    mine, other = selftest.series_uid(), selftest.series_uid()
    node.begin(mine)
    node.made[mine] = OWN
    control.turn(node.kept.database, node.clock(), "anna", SwitchName.NEVER, mine, on=True)
    node.receive(mine)
    node.receive(other)
    node.close()
    assert node.jobs(mine) == []
    (job,) = node.jobs(other)
    assert (job.route, job.destinations) == ("every-ct", ("pacs",))
