"""Which jobs and series a list shows, and what a shell offers while the words are typed."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.node_process import MIDSLICE
from tests.unit.commands.said import Midslice, Said, configure, rows


def numbers(said: Said) -> list[int]:
    return [job["id"] for job in said.json]


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ((), [2, 1]),
        (("--state", "held"), [1]),
        (("--reason", "MISSING_SLICES"), [1]),
        (("--route", "second"), [2]),
        (("--sender", "SCANNER"), [2, 1]),
        (("--sender", "OTHER"), []),
        (("--uid", "1.2.3.4"), [2, 1]),
        (("--accession", "A1"), [2, 1]),
        (("--patient-id", "P2"), []),
        (("--until", "2001-01-01"), []),
        (("--limit", "1", "--offset", "1"), [1]),
    ],
)
def test_jobs_are_filtered(
    midslice: Midslice, tmp_path: Path, options: tuple[str, ...], found: list[int]
) -> None:
    with rows(tmp_path) as kept:
        kept.ask("a", stack="a")
        kept.queue.hold(kept.claim(), "MISSING_SLICES", "Slices are missing.")
        kept.clock.now += 1
        kept.ask("b", stack="b", route="second")
    assert numbers(midslice("jobs", "--json", *options)) == found


def test_series_are_filtered(midslice: Midslice, tmp_path: Path) -> None:
    with rows(tmp_path) as kept:
        kept.ask("a")
        kept.receive("9.1", series_uid="1.2.3.9")
    listed = midslice("series", "--json", "--state", "queued").json
    assert [each["series_uid"] for each in listed] == ["1.2.3.4"]
    assert midslice("series", "--json", "--sender", "OTHER").json == []


@pytest.mark.parametrize("options", [("--state", "lost"), ("--since", "yesterday")])
def test_a_filter_that_there_is_not_is_wrong_use(
    midslice: Midslice, options: tuple[str, ...]
) -> None:
    said = midslice("jobs", *options)
    assert said.status == 2
    assert said.err.startswith(" ".join(options))


def completed(folder: Path, *words: str) -> list[str]:
    """What a shell offers for the last word."""
    environment = os.environ | {
        "_MIDSLICE_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(("midslice", *words)),
        "COMP_CWORD": str(len(words)),
    }
    done = subprocess.run(
        [MIDSLICE], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    return done.stdout.split()


def test_a_shell_completes_commands_options_and_values(tmp_path: Path) -> None:
    configure(tmp_path)
    assert set(completed(tmp_path, "jo")) == {"job", "jobs"}
    assert completed(tmp_path, "jobs", "--state", "he") == ["held"]
    assert completed(tmp_path, "jobs", "--route", "c") == ["ct-slices"]
    assert completed(tmp_path, "jobs", "--destination", "p") == ["pacs"]
    for words in (("pause",), ("echo",), ("send", "ct", "--to"), ("redeliver", "1", "--to")):
        assert completed(tmp_path, *words, "p") == ["pacs"]
    assert completed(tmp_path, "user", "add", "anna", "--role", "o") == ["operator"]


def test_completion_without_a_configuration_offers_nothing_and_says_nothing(tmp_path: Path) -> None:
    assert completed(tmp_path, "jobs", "--route", "c") == []
