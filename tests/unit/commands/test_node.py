"""Commands for the running node and its destinations, with and without a node that listens."""

import re
import threading
import time
from pathlib import Path

import pytest

from node.commands import node
from node.config import load
from storage.database import Database
from storage.leases import Holder
from storage.records import SwitchName
from storage.site import control
from storage.site.audit import Audit
from tests import peers, phantoms
from tests.unit.commands.console import Midslice, configure

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def prompt_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that sees its answer soon."""
    monkeypatch.setattr(node, "POLL_SECONDS", 0.02)


@pytest.fixture
def database(midslice: Midslice, tmp_path: Path) -> Database:
    """The rows of the node whose folder the commands run in."""
    return Database.for_folder(tmp_path / "var")


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
    result = midslice("pause", "pasc")
    assert result.status == 2
    assert "unknown destination 'pasc'; there are: pacs, other" in result.err
    assert control.all_on(database) == ()


def test_a_priority_lies_between_one_and_nine(
    midslice: Midslice,
) -> None:
    assert midslice("prioritise", 1, 10).status == 2
    result = midslice("prioritise", 1, 2)
    assert result.status == 1
    assert "no job 1" in result.err


def answer(database: Database, *, ok: bool) -> threading.Thread:
    """A node that takes up the next request."""
    node = control.RequestQueue(database, Holder("one", time.time, 60.0))

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
    result = midslice(*words, "--json")
    node.join()
    assert result.status == (0 if ok else 1)
    assert (result.json["state"], result.json["sentence"]) == ("done" if ok else "failed", sentence)


def test_a_route_that_a_person_insists_on_is_asked_for(
    database: Database, midslice: Midslice
) -> None:
    node = answer(database, ok=True)
    assert midslice("process-now", "1.2.3", "--route", "ct-slices").status == 0
    node.join()
    (request,) = control.newest(database)
    assert (request.subject, request.route) == ("1.2.3", "ct-slices")


def test_an_unknown_route_is_wrong_use_and_the_routes_are_named(
    database: Database, midslice: Midslice
) -> None:
    result = midslice("process-now", "1.2.3", "--route", "nowhere")
    assert (result.status, result.err) == (2, "unknown route 'nowhere'; there are: ct-slices\n")
    assert control.newest(database) == ()


def test_where_no_node_runs_nobody_waits_for_ever(
    midslice: Midslice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node, "QUICK_SECONDS", 0.3)
    result = midslice("reload")
    assert result.status == 1
    assert "is it running?" in result.out


def test_echo_says_of_each_destination_whether_it_answers(
    midslice: Midslice, tmp_path: Path
) -> None:
    with peers.storescp(tmp_path / "pacs") as pacs:
        configure(tmp_path, port=pacs.port)
        assert midslice("echo", "pacs").status == 0
        result = midslice("echo", "--json")
    assert result.status == 1
    assert [(answer["destination"], answer["ok"]) for answer in result.json] == [
        ("pacs", True),
        ("other", False),
    ]


def test_send_stores_a_folder_and_skips_what_is_no_dicom(
    midslice: Midslice, tmp_path: Path
) -> None:
    phantoms.write(tmp_path / "ct", phantoms.Series(slices=3))
    (tmp_path / "ct" / "notes.txt").write_text("no DICOM")
    with peers.storescp(tmp_path / "pacs") as pacs:
        configure(tmp_path, port=pacs.port)
        result = midslice("send", tmp_path / "ct", "--to", "pacs")
        assert result.status == 0
        assert "3 of 3 instances are stored at pacs." in result.out
        assert "skipped: 1 file: no Part 10" in result.out
        assert len(pacs.files()) == 3
        document = midslice("send", tmp_path / "ct" / "0000.dcm", "--to", "pacs", "--json").json
    assert (document["stored"], document["total"]) == (1, 1)
    assert document["instances"][0]["status"] == "0x0000"


def test_send_says_what_a_peer_answered_in_words(midslice: Midslice, tmp_path: Path) -> None:
    phantoms.write(tmp_path / "ct", phantoms.Series(slices=3))
    with peers.scripted_scp(peers.Script(statuses=[0x0000, 0x0124])) as port:
        configure(tmp_path, port=port)
        result = midslice("send", tmp_path / "ct", "--to", "pacs")
    assert result.status == 1
    assert "1 of them: 0x0124 (not authorised)." in result.out


def test_send_to_a_peer_that_is_not_there_is_status_1(midslice: Midslice, tmp_path: Path) -> None:
    phantoms.write(tmp_path / "ct", phantoms.Series(slices=2))
    result = midslice("send", tmp_path / "ct", "--to", "other", "--json")
    assert result.status == 1
    assert (result.json["stored"], result.json["total"]) == (0, 2)
    assert result.json["instances"][0]["status"] == "no answer"
    assert result.json["sentence"]


def test_a_first_configuration_is_written_and_is_right(midslice: Midslice, tmp_path: Path) -> None:
    (tmp_path / "config.toml").unlink()
    result = midslice("init")
    assert result.status == 0
    assert "AE title MIDSLICE, port 11112" in result.out
    config = load(tmp_path / "config.toml")
    assert config.destinations == ()
    assert [(route.name, route.destinations) for route in config.routes] == [("ct-slices", ())]
    shipped = load(ROOT / "config.toml")
    assert (config.node, config.storage.keep_days) == (shipped.node, shipped.storage.keep_days)
    checked = midslice("check", "--json").json
    faults = [it["what"] for it in checked["findings"] if it["level"] == "fault"]
    assert all("port" in what for what in faults)  # another node may run on this machine


def test_the_destination_of_a_first_configuration_is_there_to_fill_in(
    midslice: Midslice, tmp_path: Path
) -> None:
    assert midslice("init", "--config", "other.toml").status == 0
    text = (tmp_path / "other.toml").read_text()
    sections = r"\[\[destination|\[web\.oidc\]"
    filled = re.sub(rf"^# (({sections}|[a-z_]+ = ).*)$", r"\1", text, flags=re.MULTILINE)
    filled = filled.split("# The brain of MR heads")[0]
    of_others = ["commitment", "tls", "factor", "accept_children", "max_findings", "report"]
    of_others += ["kind", "url", "token_file", "user", "password_file"]
    filled = re.sub(rf"^({'|'.join(of_others)}) = ", r"# \1 = ", filled, flags=re.MULTILINE)
    (tmp_path / "filled.toml").write_text(filled)
    assert [it.name for it in load(tmp_path / "filled.toml").destinations] == ["pacs"]


def test_a_configuration_that_is_there_is_overwritten_only_by_force(
    midslice: Midslice, tmp_path: Path
) -> None:
    before = (tmp_path / "config.toml").read_text()
    result = midslice("init")
    assert (result.status, result.err) == (
        1,
        "config.toml exists already; --force overwrites it\n",
    )
    assert (tmp_path / "config.toml").read_text() == before
    assert midslice("init", "--force").status == 0
    assert (tmp_path / "config.toml").read_text() != before
    assert midslice("init", "--config", "nowhere/config.toml").status == 2
