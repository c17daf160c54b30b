"""At the terminal: users and tokens, the filters of lists, completion, and watching a node."""

import contextlib
import fcntl
import io
import json
import os
import pty
import select
import subprocess
import sys
import termios
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from node import cli
from node.commands import users as commands
from node.commands.store import opened
from node.web import credentials
from storage import switches, tokens, users
from storage.site import Role, SwitchName
from tests.conftest import Clock
from tests.node_process import MIDSLICE, wait_for
from tests.unit.storage.stored import Stored

CONFIG = """
[node]
port = 0
timezone = "Europe/Berlin"
[storage]
min_free_gb = 0.0
[web]
port = 0
[[destination]]
name = "pacs"
ae_title = "PACS"
host = "127.0.0.1"
port = 4242
[[route]]
name = "ct-slices"
model = "linear"
factor = 2
destinations = ["pacs"]
"""
PASSWORD = "correct horse"


@dataclass(frozen=True)
class Said:
    """What a command left."""

    status: int
    out: str
    err: str


@pytest.fixture
def midslice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Said]:
    """Run a command in a folder with a configuration; `typed` is its standard input."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.toml").write_text(CONFIG)

    def run(*arguments: object, typed: str = "") -> Said:
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        capsys.readouterr()
        status = cli.run([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return Said(status, said.out, said.err)

    return run


def rows(folder: Path) -> contextlib.AbstractContextManager[Stored]:
    @contextlib.contextmanager
    def within() -> Any:
        with opened(folder / "config.toml") as store:
            yield Stored(store.database, store.files, Clock(), "one")

    return within()


def add(midslice: Callable[..., Said], name: str, role: str) -> Said:
    return midslice("user", "add", name, "--role", role, typed=f"{PASSWORD}\n")


def test_a_user_is_added_listed_changed_and_removed(
    midslice: Callable[..., Said], tmp_path: Path
) -> None:
    assert "this machine only" in midslice("user", "list").out
    assert add(midslice, "anna", "administrator").out == "anna may log in as administrator.\n"
    assert add(midslice, "otto", "viewer").status == 0
    assert midslice("user", "role", "otto", "operator").status == 0
    listed = json.loads(midslice("user", "list", "--json").out)
    assert [(u["name"], u["role"]) for u in listed] == [
        ("anna", "administrator"),
        ("otto", "operator"),
    ]
    assert midslice("user", "remove", "otto").status == 0
    assert "otto" not in midslice("user", "list").out
    with rows(tmp_path) as kept:
        found = users.find(kept.database, "anna")
        assert found is not None
        assert credentials.is_password(PASSWORD, found.password)


def test_a_new_password_is_the_one_that_counts(
    midslice: Callable[..., Said], tmp_path: Path
) -> None:
    add(midslice, "anna", "administrator")
    assert midslice("user", "password", "anna", typed="another long one\n").status == 0
    with rows(tmp_path) as kept:
        found = users.find(kept.database, "anna")
        assert found is not None
        assert not credentials.is_password(PASSWORD, found.password)
        assert credentials.is_password("another long one", found.password)


@pytest.mark.parametrize(
    ("arguments", "typed", "status", "says"),
    [
        (("user", "add", "anna", "--role", "root"), PASSWORD, 2, "viewer, operator, administrator"),
        (("user", "add", "anna", "--role", "viewer"), PASSWORD, 1, "first user"),
        (("user", "add", "anna", "--role", "administrator"), "short", 2, "10 to 256"),
        (("user", "add", "../x", "--role", "administrator"), PASSWORD, 2, "letters"),
        (("user", "add", "midslice", "--role", "administrator"), PASSWORD, 2, "reserved"),
        (("user", "remove", "nobody"), "", 1, "nobody"),
        (("token", "revoke", "7"), "", 1, "7"),
        (("token", "add", "x\ty"), "", 2, "printable"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    midslice: Callable[..., Said], arguments: tuple[str, ...], typed: str, status: int, says: str
) -> None:
    said = midslice(*arguments, typed=f"{typed}\n")
    assert said.status == status
    assert says in said.err
    assert said.err.count("\n") == 1


def test_a_password_is_typed_twice_at_a_terminal(
    midslice: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    typed = iter([PASSWORD, "something else"])
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(commands.getpass, "getpass", lambda _: next(typed))
    with pytest.raises(Exception, match="differ"):
        commands._password()


def test_a_token_is_shown_once_and_revoked(midslice: Callable[..., Said], tmp_path: Path) -> None:
    made = json.loads(midslice("token", "add", "lab", "--role", "operator", "--json").out)
    assert made["token"] not in midslice("token", "list").out
    with rows(tmp_path) as kept:
        digest = credentials.digest(made["token"])
        found = tokens.find(kept.database, 0.0, digest)
        assert found is not None
        assert found.role is Role.OPERATOR
        assert midslice("token", "revoke", made["id"]).status == 0
        assert tokens.find(kept.database, 0.0, digest) is None


def test_what_is_done_here_is_an_audit_event_too(
    midslice: Callable[..., Said], tmp_path: Path
) -> None:
    add(midslice, "anna", "administrator")
    midslice("token", "add", "lab")
    midslice("jobs", "--accession", "A1")
    with opened(tmp_path / "config.toml") as store:
        events = store.audit.list()
    assert [event.what for event in events] == ["find", "token add", "user add"]
    assert events[0].detail == {"by": ["accession"], "found": 0}


def numbers(said: Said) -> list[int]:
    return [job["id"] for job in json.loads(said.out)]


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
    midslice: Callable[..., Said], tmp_path: Path, options: tuple[str, ...], found: list[int]
) -> None:
    with rows(tmp_path) as kept:
        kept.ask("a", stack="a")
        kept.queue.hold(kept.claim(), "MISSING_SLICES", "Slices are missing.")
        kept.clock.now += 1
        kept.ask("b", stack="b", route="second")
    assert numbers(midslice("jobs", "--json", *options)) == found


def test_series_are_filtered(midslice: Callable[..., Said], tmp_path: Path) -> None:
    with rows(tmp_path) as kept:
        kept.ask("a")
        kept.receive("9.1", series_uid="1.2.3.9")
    listed = json.loads(midslice("series", "--json", "--state", "queued").out)
    assert [each["series_uid"] for each in listed] == ["1.2.3.4"]
    assert json.loads(midslice("series", "--json", "--sender", "OTHER").out) == []


@pytest.mark.parametrize("options", [("--state", "lost"), ("--since", "yesterday")])
def test_a_filter_that_there_is_not_is_wrong_use(
    midslice: Callable[..., Said], options: tuple[str, ...]
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
    (tmp_path / "config.toml").write_text(CONFIG)
    assert set(completed(tmp_path, "jo")) == {"job", "jobs"}
    assert completed(tmp_path, "jobs", "--state", "he") == ["held"]
    assert completed(tmp_path, "jobs", "--route", "c") == ["ct-slices"]
    assert completed(tmp_path, "jobs", "--destination", "p") == ["pacs"]
    assert completed(tmp_path, "user", "add", "anna", "--role", "o") == ["operator"]


def test_completion_without_a_configuration_offers_nothing_and_says_nothing(tmp_path: Path) -> None:
    assert completed(tmp_path, "jobs", "--route", "c") == []


def test_top_prints_once_where_nobody_can_press_a_key(
    midslice: Callable[..., Said], tmp_path: Path
) -> None:
    with rows(tmp_path) as kept:
        kept.ask("a", stack="a")
        kept.queue.hold(kept.claim(), "MISSING_SLICES", "Slices are missing.")
        kept.ask("b", stack="b")
        kept.claim()
        kept.ask("c", stack="c")
        kept.receive("9.1", series_uid="1.2.3.9")
        switches.turn(kept.database, 0.0, "anna", SwitchName.DRAINING, on=True)
    said = midslice("top")
    assert said.status == 0
    for text in (
        "no node is running",
        "drained by anna",
        "Slices are missing.",
        "Running  1",
        "Queue  1",
        "Arriving  1",
        "1.2.3.9",
        "Sending  none",
    ):
        assert text in said.out
    assert "P1" not in said.out  # the patient


def _own_terminal() -> None:
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.mark.parametrize("key", [b"q", b"\x03"])
def test_top_watches_until_a_key_that_quits_is_pressed(tmp_path: Path, key: bytes) -> None:
    (tmp_path / "config.toml").write_text(CONFIG)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [MIDSLICE, "top", "--seconds", "0.2"],
        cwd=tmp_path,
        stdin=theirs,
        stdout=theirs,
        preexec_fn=_own_terminal,
    )
    os.close(theirs)
    seen = bytearray()

    def shows(text: bytes) -> bool:
        if select.select([ours], [], [], 0.1)[0]:
            seen.extend(os.read(ours, 65_536))
        return text in seen

    try:
        wait_for("the first look", lambda: shows(b"no node is running"), 60.0)
        seen.clear()
        wait_for("another look", lambda: shows(b"Arriving"), 60.0)
        os.write(ours, key)
        wait_for("the end", lambda: shows(b"\x1b[?1049l"), 60.0)  # the screen as it was before
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_the_conformance_statement_is_a_page_whose_text_is_text(
    midslice: Callable[..., Said], tmp_path: Path
) -> None:
    match = "match = { StudyDescription = { regex = '<script>alert(1)</script>' } }"
    with (tmp_path / "config.toml").open("a") as file:
        file.write(f"{match}\n")
    said = midslice("conformance", "--html")
    assert said.status == 0
    assert said.out.startswith("<!doctype html>")
    assert "<table>" in said.out
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in said.out
    assert "<script" not in said.out
    assert "src=" not in said.out
