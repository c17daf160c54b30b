"""People who log in and programs that call: who may, until when, and what is written of it."""

from collections.abc import Callable
from contextlib import closing

import pytest
from sqlalchemy import update

from storage.database import Database
from storage.errors import NotFound, WrongState
from storage.records import Login, Role
from storage.schema import login, token
from storage.site import people
from storage.site.audit import Audit
from tests.conftest import Clock

HOUR = 3600.0


def add(database: Database, now: float, name: str, role: Role = Role.OPERATOR) -> None:
    people.add_user(database, now, "root", name, role, f"hash of {name}")


def log_in(database: Database, now: float, name: str, token: str = "t") -> Login:
    return people.log_in(
        database, now, name, id=token, csrf="c", address="10.0.0.9", until=now + 12 * HOUR
    )


def logged_in(database: Database, now: float, token: str = "t") -> Login | None:
    return people.logged_in(database, now, token, idle_seconds=HOUR)


def told(database: Database) -> list[tuple[str, str, str]]:
    return [(e.who, e.what, e.which) for e in Audit(database, lambda: 0.0).list()]


def test_nobody_may_log_in_until_somebody_is_added(database: Database, clock: Clock) -> None:
    assert not people.exist(database)
    assert people.find_user(database, "anna") is None
    add(database, clock(), "anna", Role.ADMINISTRATOR)
    assert people.exist(database)
    anna = people.find_user(database, "anna")
    assert anna is not None
    assert (anna.role, anna.disabled) == (Role.ADMINISTRATOR, False)
    assert "hash of" not in repr(anna)
    assert told(database) == [("root", "user add", "anna")]


def test_a_name_is_given_once(database: Database, clock: Clock) -> None:
    add(database, clock(), "anna")
    with pytest.raises(WrongState, match="already a user 'anna'"):
        add(database, clock(), "anna", Role.VIEWER)
    assert [one.role for one in people.people(database)] == [Role.OPERATOR]
    assert len(told(database)) == 1  # what did not happen is no audit event


def test_a_login_lasts_until_it_expires_or_is_idle(database: Database, clock: Clock) -> None:
    add(database, clock(), "anna")
    log_in(database, clock(), "anna")
    clock.now += 0.9 * HOUR
    found = logged_in(database, clock())
    assert found is not None
    assert (found.name, found.role, found.csrf) == ("anna", Role.OPERATOR, "c")
    clock.now += 0.9 * HOUR  # it was used meanwhile: the idle time begins anew
    assert logged_in(database, clock()) is not None
    clock.now += 1.1 * HOUR
    assert logged_in(database, clock()) is None


def test_who_is_known_may_look_where_nothing_can_be_written(
    database_url: str, clock: Clock
) -> None:
    with closing(Database(database_url, busy_seconds=0.1)) as database:
        add(database, clock(), "anna")
        log_in(database, clock(), "anna")
        people.add_token(database, clock(), "anna", "lab", Role.VIEWER, "digest")
        with closing(Database(database_url)) as other, other.writing() as db:
            db.execute(update(login).values(address="elsewhere"))
            db.execute(update(token).values(name="other"))
            clock.now += 600
            assert logged_in(database, clock()) is not None
            assert people.find_token(database, clock(), "digest") is not None


def test_a_login_ends_at_its_end_however_busy_it_is(database: Database, clock: Clock) -> None:
    add(database, clock(), "anna")
    log_in(database, clock(), "anna")
    for _ in range(24):
        clock.now += 0.49 * HOUR
        assert logged_in(database, clock()) is not None
    clock.now += 0.49 * HOUR
    assert logged_in(database, clock()) is None
    people.forget_logins(database, clock())
    assert people.logins(database, 0.0) == ()


def test_logging_out_ends_one_login(database: Database, clock: Clock) -> None:
    add(database, clock(), "anna")
    log_in(database, clock(), "anna", "here")
    log_in(database, clock(), "anna", "there")
    people.log_out(database, clock(), "anna", "here")
    assert logged_in(database, clock(), "here") is None
    assert logged_in(database, clock(), "there") is not None


CHANGES: dict[str, Callable[[Database, float], object]] = {
    "role": lambda d, now: people.change(d, now, "root", "ben", role=Role.VIEWER),
    "password": lambda d, now: people.change(d, now, "root", "ben", password="other"),
    "disabled": lambda d, now: people.change(d, now, "root", "ben", disabled=True),
    "removed": lambda d, now: people.remove(d, now, "root", "ben"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_a_person_ends_the_logins_from_before(
    database: Database, clock: Clock, change: str
) -> None:
    add(database, clock(), "root", Role.ADMINISTRATOR)
    add(database, clock(), "ben")
    log_in(database, clock(), "ben")
    CHANGES[change](database, clock())
    assert logged_in(database, clock()) is None
    assert "other" not in str(Audit(database, clock).list())


def test_a_disabled_person_cannot_log_in(database: Database, clock: Clock) -> None:
    add(database, clock(), "ben")
    people.change(database, clock(), "root", "ben", disabled=True)
    with pytest.raises(WrongState, match="disabled"):
        log_in(database, clock(), "ben")
    people.change(database, clock(), "root", "ben", disabled=False)
    assert log_in(database, clock(), "ben").name == "ben"


LAST: dict[str, Callable[[Database, float], object]] = {
    "role": lambda d, now: people.change(d, now, "root", "root", role=Role.OPERATOR),
    "disabled": lambda d, now: people.change(d, now, "root", "root", disabled=True),
    "removed": lambda d, now: people.remove(d, now, "root", "root"),
}


@pytest.mark.parametrize("change", LAST)
def test_the_last_administrator_stays(database: Database, clock: Clock, change: str) -> None:
    add(database, clock(), "root", Role.ADMINISTRATOR)
    add(database, clock(), "ben")
    with pytest.raises(WrongState, match="last administrator"):
        LAST[change](database, clock())
    add(database, clock(), "anna", Role.ADMINISTRATOR)
    LAST[change](database, clock())


def test_the_only_person_may_be_removed(database: Database, clock: Clock) -> None:
    add(database, clock(), "root", Role.ADMINISTRATOR)
    people.remove(database, clock(), "command line", "root")
    assert not people.exist(database)
    with pytest.raises(NotFound, match="no user 'root'"):
        people.remove(database, clock(), "command line", "root")


def test_refused_logins_are_counted_by_name_and_by_address(
    database: Database, clock: Clock
) -> None:
    add(database, clock(), "anna")
    for name, address in (("anna", "10.0.0.1"), ("anna", "10.0.0.2"), ("root", "10.0.0.1")):
        clock.now += 1
        people.refuse_login(database, clock(), name, address)
    found = people.failures(database, clock.now - 60, "anna", "10.0.0.1")
    assert (found.of_name, found.of_address, found.of_both) == (2, 2, 1)
    times = (found.name_at, found.address_at, found.both_at)
    assert times == (clock.now - 1, clock.now, clock.now - 2)
    assert people.failures(database, clock.now + 1, "anna", "10.0.0.1").address_at == 0.0


def test_a_right_password_forgets_the_wrong_ones_of_the_name(
    database: Database, clock: Clock
) -> None:
    add(database, clock(), "anna")
    people.refuse_login(database, clock(), "anna", "10.0.0.1")
    log_in(database, clock(), "anna")
    assert people.failures(database, 0.0, "anna", "10.0.0.1").of_name == 0


def test_refused_logins_of_yesterday_are_forgotten(database: Database, clock: Clock) -> None:
    people.refuse_login(database, clock(), "anna", "10.0.0.1")
    clock.now += 25 * HOUR
    people.forget_logins(database, clock())
    assert people.failures(database, 0.0, "anna", "10.0.0.1").of_address == 0


def test_a_program_calls_with_its_token_until_it_is_revoked(
    database: Database, clock: Clock
) -> None:
    made = people.add_token(database, clock(), "root", "dashboard", Role.VIEWER, "digest")
    assert made.used_at is None
    clock.now += 10
    found = people.find_token(database, clock(), "digest")
    assert found is not None
    assert (found.id, found.name, found.role) == (made.id, "dashboard", Role.VIEWER)
    assert people.tokens(database)[0].used_at == clock.now
    people.revoke_token(database, clock(), "root", made.id)
    assert people.find_token(database, clock(), "digest") is None
    assert people.tokens(database)[0].revoked_at == clock.now
    with pytest.raises(NotFound):
        people.revoke_token(database, clock(), "root", made.id)
    whats = [what for _, what, _ in told(database)]
    assert whats == ["token revoke", "token add"]
    assert "digest" not in str(Audit(database, clock).list())
