"""Commands about who may use the pages and the API: people with passwords, programs with tokens."""

import getpass
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from node.commands import terminal
from node.commands.terminal import DEFAULT_CONFIG, AsJson, ConfigFile, opened
from node.commands.terminal import user as who_asks
from node.errors import UsageError

if TYPE_CHECKING:
    from node.store import Store
    from node.web.login import People
    from storage.records import Role

ROLES = ("viewer", "operator", "administrator")

UserName = Annotated[str, typer.Argument(metavar="NAME", help="What the person types to log in.")]
RoleName = Annotated[
    str,
    typer.Option(
        "--role",
        metavar="ROLE",
        help="viewer looks, operator acts, administrator configures.",
        autocompletion=lambda: list(ROLES),
    ),
]

user_commands = typer.Typer(help="People who may log in to the pages.", no_args_is_help=True)
token_commands = typer.Typer(help="Tokens of programs that call the API.", no_args_is_help=True)


@user_commands.command("add")
def add_user(
    name: UserName, role: RoleName = "viewer", config: ConfigFile = DEFAULT_CONFIG
) -> None:
    """Add a user; the password is asked for, or read from standard input."""
    chosen = _role(role)
    with opened(config) as store:
        from node.web.login import check_name

        check_name(name)
        _people(store).add(name, chosen, _password())
    terminal.say(f"{name} may log in as {chosen}.")


@user_commands.command("list")
def list_users(config: ConfigFile = DEFAULT_CONFIG, as_json: AsJson = False) -> None:
    """Everybody who may log in."""
    from node.web.api.inputs import iso
    from storage.site.people import people

    with opened(config) as store:
        found, zone = people(store.database), store.zone
    if as_json:
        terminal.print_json(
            [
                {
                    "name": each.name,
                    "role": str(each.role),
                    "disabled": each.disabled,
                    "created_at": iso(each.created_at, zone),
                    "changed_at": iso(each.changed_at, zone),
                }
                for each in found
            ]
        )
        return
    rows = [
        (u.name, u.role, terminal.when(u.created_at, zone), "disabled" if u.disabled else "")
        for u in found
    ]
    empty = "There is no user: the pages answer this machine only."
    terminal.print_table(("name", "role", "added", ""), rows, empty=empty)


@user_commands.command("remove")
def remove_user(name: UserName, config: ConfigFile = DEFAULT_CONFIG) -> None:
    """Remove a user; what the user did stays in the audit events."""
    with opened(config) as store:
        _people(store).remove(name)
    terminal.say(f"{name} may not log in any more.")


@user_commands.command("password")
def set_password(name: UserName, config: ConfigFile = DEFAULT_CONFIG) -> None:
    """Give a user a new password; the user's sessions end."""
    with opened(config) as store:
        _people(store).change(name, password=_password())
    terminal.say(f"{name} has a new password.")


@user_commands.command("role")
def set_role(
    name: UserName,
    role: Annotated[str, typer.Argument(metavar="ROLE", help=", ".join(ROLES))],
    config: ConfigFile = DEFAULT_CONFIG,
) -> None:
    """Give a user another role; the user's sessions end."""
    chosen = _role(role)
    with opened(config) as store:
        _people(store).change(name, role=chosen)
    terminal.say(f"{name} is {chosen} now.")


@token_commands.command("add")
def add_token(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the program is called.")],
    role: RoleName = "viewer",
    config: ConfigFile = DEFAULT_CONFIG,
    as_json: AsJson = False,
) -> None:
    """Make a token; it is printed once, and can be read nowhere again."""
    chosen = _role(role)
    with opened(config) as store:
        token, text = _people(store).add_token(name, chosen)
    if as_json:
        terminal.print_json({"id": token.id, "name": token.name, "role": role, "token": text})
        return
    terminal.say(f"Token {token.id}, for {token.name} as {chosen}. It is shown this once:")
    sys.stdout.write(f"{text}\n")


@token_commands.command("list")
def list_tokens(config: ConfigFile = DEFAULT_CONFIG, as_json: AsJson = False) -> None:
    """Every token, revoked ones too."""
    from node.web.api.inputs import iso
    from storage.site.people import tokens

    with opened(config) as store:
        found, zone = tokens(store.database), store.zone
    if as_json:
        times = ("created_at", "used_at", "revoked_at")
        terminal.print_json(
            [
                {"id": t.id, "name": t.name, "role": str(t.role), "created_by": t.created_by}
                | {name: iso(getattr(t, name), zone) for name in times}
                for t in found
            ]
        )
        return
    rows = [
        (
            each.id,
            each.name,
            each.role,
            each.created_by,
            terminal.when(each.created_at, zone),
            terminal.when(each.used_at, zone) or "never",
            terminal.when(each.revoked_at, zone),
        )
        for each in found
    ]
    columns = ("id", "name", "role", "by", "added", "used", "revoked")
    terminal.print_table(columns, rows, empty="There are no tokens.")


@token_commands.command("revoke")
def revoke_token(
    token_id: Annotated[int, typer.Argument(metavar="ID", help="As `token list` shows it.")],
    config: ConfigFile = DEFAULT_CONFIG,
) -> None:
    """Revoke a token: the program may not call any more."""
    with opened(config) as store:
        _people(store).revoke_token(token_id)
    terminal.say(f"Token {token_id} is revoked.")


def _people(store: "Store") -> "People":
    from node.web.login import People

    return People(store.database, time.time, who_asks())


def _role(name: str) -> "Role":
    from storage.records import Role

    if name not in ROLES:
        raise UsageError(f"--role {name}: one of {', '.join(ROLES)}")
    return Role(name)


def _password() -> str:
    """Typed twice, unseen; from a script the first line of standard input."""
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    first = getpass.getpass("Password: ")
    if getpass.getpass("Once more: ") != first:
        raise UsageError("the two passwords differ")
    return first
