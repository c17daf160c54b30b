"""Every kind of series in the table of cases, sent to a node: its verdict is the table's."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info

from inference.errors import HELD
from tests import node_rows
from tests.node_process import NodeProcess, route, running
from tests.phantoms import Series
from tests.traffic import renamed, send_as_it_lies
from tests.unit.inference.case import Case
from tests.unit.inference.cases import CASES

# What a case says of the request is a matter of routes; one route takes all that are sent here.
SENT = [case for case in CASES if case.ask is None]
# Synthetic images are results of a node, of this one or another: kept, and never a job.
WITHOUT_A_JOB = {"synthetic images"}
EVERYTHING = route(destinations=[]).replace('match = { Modality = "CT" }\n', "")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    process = NodeProcess(tmp_path_factory.mktemp("node"), EVERYTHING, quiet_seconds=2.0)
    with running(process):
        yield process


def written(case: Case, number: int, folder: Path) -> list[Path]:
    """The files of a case with UIDs of their own: all cases are made of the same words."""
    given = case.given
    if isinstance(given, Series):
        files = replace(case, given=replace(given, seed=f"case {number}")).write(folder)
    else:
        files = case.write(folder)
        for path in files:
            renamed(path, number)
    return [path for path in files if is_part10(path)]


def is_part10(path: Path) -> bool:
    """What has no meta information cannot be said on a DICOM network."""
    try:
        meta = read_file_meta_info(path)
    except (InvalidDicomError, EOFError):
        return False
    return "MediaStorageSOPInstanceUID" in meta and "TransferSyntaxUID" in meta


@pytest.mark.filterwarnings("ignore:.*[Ii]nvalid value for VR UI")  # some UIDs break PS3.5 9.1
def test_the_verdict_on_each_kind_of_series_is_the_one_of_the_table(
    node: NodeProcess, tmp_path: Path
) -> None:
    expected: dict[int, Case] = {}
    for number, case in enumerate(SENT, start=1):
        files = written(case, number, tmp_path / "files")
        statuses = send_as_it_lies(node, files, calling=f"CASE_{number}")
        if files and set(statuses) == {0}:
            expected[number] = case
        shutil.rmtree(tmp_path / "files")
    node_rows.wait_until_idle(node, 180.0)
    jobs = node_rows.jobs_by_sender(node)
    wrong = {}
    for number, case in expected.items():
        found = {(job.state, job.reason) for job in jobs.get(f"CASE_{number}", [])}
        is_told = found == set() if case.title in WITHOUT_A_JOB else verdict(case) in found
        if not is_told:
            wrong[case.title] = (verdict(case), found)
    assert wrong == {}
    assert len(expected) > 0.9 * len(SENT)
    for job in node_rows.all_jobs(node):
        assert job.state == "succeeded" or (job.reason and job.sentence.endswith(".")), job
    assert node.found("arrival not closed") == []


def verdict(case: Case) -> tuple[str, str]:
    """State and reason of the job of a case."""
    if case.reason is None:
        return "succeeded", ""
    return ("held" if case.reason in HELD else "refused"), str(case.reason)
