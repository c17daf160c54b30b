"""How fast somebody may guess: a name or an address with many wrong passwords waits."""

import logging
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

from node.web import origin
from node.web.credentials import WrongPassword
from node.web.gate import Gate
from node.web.problems import Problem
from storage.site import people

logger = logging.getLogger(__name__)

WINDOW_SECONDS = 900.0  # wrong passwords count for so long
MOST_OF_BOTH = 5  # within it, under one name from one address
MOST_OF_ADDRESS = 20  # under any name: a reading room may share an address
MOST_OF_NAME = 100  # from anywhere: fewer, and anybody could lock anybody out

_one_by_one = threading.Lock()


@contextmanager
def guess(gate: Gate, name: str, address: str, what: str) -> Iterator[None]:
    """Look at a password within this block; WrongPassword counts it, as an audit event `what`.

    Raises a Problem before the password is looked at where there were too many: who guesses
    learns nothing, not even slowly. Addresses of IPv6 are counted by their /64.
    """
    place = origin.counted(address)
    _check(gate, name, place)
    with _one_by_one:  # guesses that come at once are each counted before the next is looked at
        _check(gate, name, place)
        try:
            yield
        except WrongPassword:
            people.refuse_login(gate.database, gate.now(), name, address, counted=place, what=what)
            raise


def _check(gate: Gate, name: str, place: str) -> None:
    now = gate.now()
    late = people.failures(gate.database, now - WINDOW_SECONDS, name, place)
    few = late.of_both < MOST_OF_BOTH and late.of_address < MOST_OF_ADDRESS
    if few and late.of_name < MOST_OF_NAME:
        return
    wait = max(1.0, (late.last_at or now) + WINDOW_SECONDS - now)
    logger.warning("log-in throttled", extra={"address": place, "seconds": round(wait)})
    raise Problem(
        HTTPStatus.TOO_MANY_REQUESTS,
        f"Too many wrong passwords; try again in {math.ceil(wait / 60)} min.",
        headers={"Retry-After": str(math.ceil(wait))},
    )
