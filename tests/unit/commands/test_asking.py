"""What a person sets or asks for at the command line, with and without a node that listens."""

import threading
import time
from pathlib import Path

import pytest

from node.commands import node
from storage.database import Database
from storage.records import SwitchName
from storage.site import control
from storage.site.audit import Audit
from tests.unit.commands.said import Midslice


@pytest.fixture
def database(midslice: Midslice, tmp_path: Path) -> Database:
    """The rows of the node whose folder the commands run in."""
    made = Database.for_folder(tmp_path / "var")
    made.migrate()
    return made


@pytest.mark.parametrize(
    ("words", "name", "subject"),
    [
        (["drain"], SwitchName.DRAINING, ""),
        (["pause", "pacs"], SwitchName.PAUSED, "pacs"),
        (["never", "1.2.3"], SwitchName.NEVER, "1.2.3"),
        (["allow", "CT9"], SwitchName.ALLOWED_AE, "CT9"),
    ],
)
def test_a_switch_is_set_and_taken_back_by_name(
    database: Database, midslice: Midslice, words: list[str], name: SwitchName, subject: str
) -> None:
    assert midslice(*words).status == 0
    assert control.is_on(database, name, subject) is not None
    assert midslice(*words, "--off").status == 0
    assert control.is_on(database, name, subject) is None
    events = Audit(database, time.time).list()
    assert len(events) == 2
    assert all(event.who and event.which == subject for event in events)


def test_a_destination_that_does_not_exist_cannot_be_paused(
    database: Database, midslice: Midslice
) -> None:
    said = midslice("pause", "pasc")
    assert said.status == 2
    assert "unknown destination 'pasc'; there are: pacs, other" in said.err
    assert control.all_on(database) == ()


def test_a_priority_lies_between_one_and_nine(
    midslice: Midslice,
) -> None:
    assert midslice("prioritise", 1, 10).status == 2
    said = midslice("prioritise", 1, 2)
    assert said.status == 1
    assert "no job 1" in said.err


def answer(database: Database, *, ok: bool) -> threading.Thread:
    """A node that takes up the next request."""
    node = control.RequestQueue(database, time.time, node="one", lease_seconds=60.0)

    def work() -> None:
        give_up = time.monotonic() + 20
        while time.monotonic() < give_up:
            for request in node.claim():
                sentence = f"{request.kind} of {request.subject or 'all'}"
                node.answer(request, ok=ok, sentence=sentence)
                return
            threading.Event().wait(0.02)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["reload"], "reload of all"),
        (["process-now", "1.2.3"], "process_now of 1.2.3"),
        (["selftest"], "selftest of all"),
        (["notify"], "notify of all"),
    ],
)
@pytest.mark.parametrize("ok", [True, False])
def test_a_request_waits_for_its_answer_and_says_it(
    database: Database, midslice: Midslice, words: list[str], sentence: str, ok: bool
) -> None:
    node = answer(database, ok=ok)
    said = midslice(*words, "--json")
    node.join()
    assert said.status == (0 if ok else 1)
    told = said.json
    assert (told["state"], told["sentence"]) == ("done" if ok else "failed", sentence)


def test_where_no_node_runs_nobody_waits_for_ever(
    midslice: Midslice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node, "QUICK_SECONDS", 0.3)
    said = midslice("reload")
    assert said.status == 1
    assert "is it running?" in said.out
