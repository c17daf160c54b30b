"""Commands about who may use the pages and the API: people with passwords, programs with tokens."""

import getpass
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from node.commands import terminal
from node.commands.terminal import DEFAULT_CONFIG, AsJson, ConfigFile, opened
from node.commands.terminal import user as who_asks
from node.errors import UsageError
from storage.records import Role

if TYPE_CHECKING:
    from node.store import Store
    from node.web.login import People

UserName = Annotated[str, typer.Argument(metavar="NAME", help="What the person types to log in.")]
RoleName = Annotated[
    str,
    typer.Option(
        "--role",
        metavar="ROLE",
        help="viewer looks, operator acts, administrator configures.",
        autocompletion=lambda: list(Role),
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
    from node.web.api import answers
    from storage.site.people import people

    with opened(config) as store:
        users, zone = people(store.database), store.zone

    terminal.show(
        users,
        ("name", "role", ("added", "created_at"), ("", lambda u: "disabled" if u.disabled else "")),
        zone,
        as_json=as_json,
        document=lambda user, zone: answers.plain(user, answers.USER, zone),
        empty="There is no user: the pages answer only to this machine.",
    )


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
    role: Annotated[str, typer.Argument(metavar="ROLE", help=", ".join(Role))],
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
    from node.web.api import answers
    from storage.site.people import tokens

    with opened(config) as store:
        rows, zone = tokens(store.database), store.zone

    terminal.show(
        rows,
        (
            "id",
            "name",
            "role",
            ("by", "created_by"),
            ("added", "created_at"),
            ("used", lambda token: terminal.when(token.used_at, zone) or "never"),
            "revoked_at",
        ),
        zone,
        as_json=as_json,
        document=lambda token, zone: answers.plain(token, answers.TOKEN, zone),
        empty="There are no tokens.",
    )


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

    return People(store.database, store.now, who_asks())


def _role(name: str) -> Role:
    try:
        return Role(name)
    except ValueError:
        raise UsageError(f"--role {name}: one of {', '.join(Role)}") from None


def _password() -> str:
    """A password typed twice, unseen; from a script the first line of standard input."""
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    first = getpass.getpass("Password: ")
    if getpass.getpass("Once more: ") != first:
        raise UsageError("the two passwords differ")
    return first
