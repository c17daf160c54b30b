"""All processes of the node die at once, at each step of a series: nothing is lost or doubled.

FAULT_ROUNDS says how many times, on both databases together; the seed is that of every run, so
that the same moments come again. The receive path alternates from start to start.
"""

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.power_cuts import KINDS, department
from tests.faults.table import Fault
from tests.postgres import postgres

# pynetdicom leaves its socket open where the node is away or dies.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

ROUNDS = int(os.environ.get("FAULT_ROUNDS", "15"))
SEED = int(os.environ.get("FAULT_SEED", "16"))
# A short run has eight kinds on one database and the next seven on the other.
ON_SQLITE, ON_POSTGRESQL = (ROUNDS + 1) // 2, ROUNDS // 2


def kinds(rounds: int, begin: int) -> Iterator[str]:
    """The kinds of cuts in their order, again and again."""
    return itertools.islice(itertools.cycle(KINDS), begin, begin + rounds)


def cut_again_and_again(
    folder: Path, fault: Callable[[str], Fault], chosen: Iterator[str], database: str = ""
) -> None:
    with department(folder, seed=SEED, database=database, fault=fault) as site:
        for number, kind in enumerate(chosen, 1):
            site.cut(kind, is_direct=number % 2 == 0)
        found = site.end()
        assert (found.losses, found.doubles) == ([], []), site.node.output()


@pytest.mark.timeout(60 + 60 * ON_SQLITE)
def test_nothing_is_lost_or_doubled_wherever_all_processes_are_killed(
    tmp_path: Path, fault: Callable[[str], Fault]
) -> None:
    cut_again_and_again(tmp_path, fault, kinds(ON_SQLITE, 0))


@pytest.mark.timeout(60 + 60 * ON_SQLITE)
def test_nothing_is_lost_or_doubled_on_postgresql(
    tmp_path: Path, fault: Callable[[str], Fault]
) -> None:
    with postgres() as server:
        database = server.create("node")
        cut_again_and_again(tmp_path, fault, kinds(ON_POSTGRESQL, ON_SQLITE), database)
