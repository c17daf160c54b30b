"""Users and tokens at the command line, and what is written down of what is done there."""

import io
import sys
from pathlib import Path

import pytest

from node.commands import users as commands
from node.commands.terminal import opened
from node.web import access
from storage.records import Role
from storage.site import people
from tests.unit.commands.console import Midslice, Result, rows

PASSWORD = "correct horse"


def add(midslice: Midslice, name: str, role: str) -> Result:
    return midslice("user", "add", name, "--role", role, typed=f"{PASSWORD}\n")


def test_a_user_is_added_listed_changed_and_removed(midslice: Midslice, tmp_path: Path) -> None:
    assert "only to this machine" in midslice("user", "list").out
    assert add(midslice, "anna", "administrator").out == "anna may log in as administrator.\n"
    assert add(midslice, "otto", "viewer").status == 0
    assert midslice("user", "role", "otto", "operator").status == 0
    listed = midslice("user", "list", "--json").json
    assert [(u["name"], u["role"]) for u in listed] == [
        ("anna", "administrator"),
        ("otto", "operator"),
    ]
    assert midslice("user", "remove", "otto").status == 0
    assert "otto" not in midslice("user", "list").out
    with rows(tmp_path) as kept:
        user = people.find_user(kept.database, "anna")
        assert user is not None
        assert access.is_password(PASSWORD, user.password)


def test_a_new_password_is_the_one_that_counts(midslice: Midslice, tmp_path: Path) -> None:
    add(midslice, "anna", "administrator")
    assert midslice("user", "password", "anna", typed="another long one\n").status == 0
    with rows(tmp_path) as kept:
        user = people.find_user(kept.database, "anna")
        assert user is not None
        assert not access.is_password(PASSWORD, user.password)
        assert access.is_password("another long one", user.password)


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
    midslice: Midslice, arguments: tuple[str, ...], typed: str, status: int, says: str
) -> None:
    result = midslice(*arguments, typed=f"{typed}\n")
    assert result.status == status
    assert says in result.err
    assert result.err.count("\n") == 1


def test_a_password_is_typed_twice_at_a_terminal(
    midslice: Midslice, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    typed = iter([PASSWORD, "something else"])
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(commands.getpass, "getpass", lambda _: next(typed))
    with pytest.raises(Exception, match="differ"):
        commands._password()


def test_a_token_is_shown_once_and_revoked(midslice: Midslice, tmp_path: Path) -> None:
    added = midslice("token", "add", "lab", "--role", "operator", "--json").json
    assert added["token"] not in midslice("token", "list").out
    with rows(tmp_path) as kept:
        digest = access.digest(added["token"])
        token = people.find_token(kept.database, 0.0, digest)
        assert token is not None
        assert token.role is Role.OPERATOR
        assert midslice("token", "revoke", added["id"]).status == 0
        assert people.find_token(kept.database, 0.0, digest) is None


def test_what_is_done_here_is_an_audit_event_too(midslice: Midslice, tmp_path: Path) -> None:
    add(midslice, "anna", "administrator")
    midslice("token", "add", "lab")
    midslice("jobs", "--accession", "A1")
    with opened(tmp_path / "config.toml") as store:
        events = store.audit.list()
    assert [event.what for event in events] == ["find", "token add", "user add"]
    assert events[0].detail == {"by": ["accession"], "found": 0}
