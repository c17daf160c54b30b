"""People and programs that may come in: added, changed and removed, from a page or a terminal."""

from collections.abc import Callable
from dataclasses import dataclass

from node.errors import UsageError
from node.web import credentials
from node.web.credentials import WrongPassword
from storage.database import Database
from storage.errors import WrongState
from storage.records import ApiToken, Role, User
from storage.site import people

RESERVED = ("local", "midslice", "node", "unknown")  # stand in audit events for others
NAME = "1-64 of letters, digits and . _ @ -, the first a letter or a digit"


@dataclass(frozen=True)
class People:
    """What an administrator does, in the name of `who`."""

    database: Database
    now: Callable[[], float]
    who: str

    def add(self, name: str, role: Role, password: str) -> User:
        """A new user; the first one must be able to add others."""
        check_name(name)
        if role is not Role.ADMINISTRATOR and not people.exist(self.database):
            raise WrongState(f"the first user must be an administrator, not {role}")
        stored = credentials.hash_password(password)
        return people.add_user(self.database, self.now(), self.who, name, role, stored)

    def change(
        self,
        name: str,
        *,
        role: Role | None = None,
        password: str | None = None,
        disabled: bool | None = None,
    ) -> User:
        """Another role or password, or no way in; the user's sessions end."""
        stored = credentials.hash_password(password) if password is not None else None
        return people.change(
            self.database,
            self.now(),
            self.who,
            name,
            role=role,
            password=stored,
            disabled=disabled,
        )

    def change_own(self, old: str, new: str) -> User:
        """Somebody's own password; whoever found the browser open does not know the old one."""
        user = people.find_user(self.database, self.who)
        if user is None or not credentials.is_password(old, user.password):
            raise WrongPassword("the old password is wrong")
        return self.change(self.who, password=new)

    def remove(self, name: str) -> None:
        """The user is gone, and so are the sessions."""
        people.remove(self.database, self.now(), self.who, name)

    def add_token(self, name: str, role: Role) -> tuple[ApiToken, str]:
        """A token for a program, and its text, which nobody can see again."""
        if not name or not name.isprintable():
            raise UsageError("the name of a token is 1-64 printable characters")
        text = credentials.new_token(credentials.API_PREFIX)
        digest = credentials.digest(text)
        return people.add_token(self.database, self.now(), self.who, name, role, digest), text

    def revoke_token(self, token_id: int) -> None:
        """The program may not call any more."""
        people.revoke_token(self.database, self.now(), self.who, token_id)


def check_name(name: str) -> None:
    """Raise UsageError for a name that cannot be a user's."""
    allowed = name[:1].isalnum() and all(c.isalnum() or c in "._@-" for c in name)
    if not (allowed and name.isascii() and len(name) <= 64):
        raise UsageError(f"'{name}' cannot be a user's name; allowed: {NAME}")
    if name.lower() in RESERVED:
        raise UsageError(f"'{name}' is reserved; these names are: {', '.join(RESERVED)}")
