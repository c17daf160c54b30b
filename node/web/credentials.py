"""Passwords and tokens: made, hashed, compared; none of them is ever stored or logged itself."""

import hashlib
import secrets
import threading

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from node.errors import UsageError
from storage.errors import WrongState

SHORTEST, LONGEST = 10, 256  # characters of a password; longer ones only cost time
TOKEN_BYTES = 32
API_PREFIX = "midslice_"  # so that a token that got lost in a file can be searched for

# RFC 9106 4, second recommended option: 64 MiB, 3 passes, 4 lanes.
_hasher = PasswordHasher(time_cost=3, memory_cost=2**16, parallelism=4)
# Each takes 64 MiB: many log-ins at once must not take the memory of the workers.
_at_once = threading.BoundedSemaphore(2)
# Of a password that nobody has: an unknown name must take as long as a known one.
_NOBODY = _hasher.hash(secrets.token_hex(TOKEN_BYTES))


class WrongPassword(WrongState):
    """It is not the password of whom it was given for; who guesses waits (`pace.py`)."""


def hash_password(password: str) -> str:
    """What is stored of a password; raises UsageError for one that is too short or too long."""
    if not SHORTEST <= len(password) <= LONGEST:
        raise UsageError(f"a password has {SHORTEST} to {LONGEST} characters")
    with _at_once:
        return _hasher.hash(password)


def is_password(password: str, stored: str) -> bool:
    """True where `stored` is of this password; always takes its time."""
    with _at_once:
        try:
            return _hasher.verify(stored or _NOBODY, password[: LONGEST + 1])
        except (VerificationError, InvalidHashError):
            return False


def new_token(prefix: str = "") -> str:
    """256 random bits, as text that a cookie and a header take."""
    return prefix + secrets.token_urlsafe(TOKEN_BYTES)


def digest(token: str) -> str:
    """What is stored of a token: of 256 random bits a plain hash is enough."""
    return hashlib.sha256(token.encode()).hexdigest()
