"""What comes with a series and is no slice of it: kept, left out of every stack, and told."""

from pathlib import Path

from storage.archive import newest_arrival
from storage.database import Database
from tests import node_rows, phantoms
from tests.node_process import NodeProcess, route, running
from tests.peers import storescu
from tests.phantoms import Series
from tests.unit.inference.case import SECONDARY_CAPTURE, only


def test_a_localizer_and_a_dose_page_are_left_out_and_the_log_says_how_many(
    tmp_path: Path,
) -> None:
    dose_page = only(lambda index: index == 6, SOPClassUID=SECONDARY_CAPTURE)
    files = phantoms.write(tmp_path / "ct", Series(slices=7, localizer=True, edit=dose_page))
    node = NodeProcess(tmp_path / "node", route(destinations=[]), quiet_seconds=0.5)
    with running(node):
        assert storescu(node.port, *files).code == 0
        told = node.event("instances set aside")
        node_rows.wait_until_idle(node, 60.0)
        (job,) = node_rows.all_jobs(node)
        database = Database.for_folder(node.folder / "var")
        arrival = newest_arrival(database, told["series_uid"])
        database.close()
    assert told["reasons"] == {"NOT_A_CT_SLICE": 2}
    assert job.state == "succeeded"
    assert arrival is not None
    assert arrival.evidence["set_aside"] == {"NOT_A_CT_SLICE": 2}
