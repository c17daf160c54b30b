"""Back-off: how long a destination is left alone, and when a sender counts as silent."""

from datetime import datetime, timedelta, tzinfo
from random import Random

from node.config import ExpectedSender
from storage.records import DAY

SPREAD = 0.25  # of a delay; peers that failed together do not all come back together
STEP_SECONDS = 300.0  # the grain in which silence is measured
MOST_DAYS = 14.0  # silence is measured so far back; who is silent for longer is silent in any case


def delay(failures: int, first: float, longest: float, jitter: Random) -> float:
    """Give the seconds to wait after `failures` failures before the last one, within the bounds.

    The delay doubles with each failure in a row. Where it reaches `longest`, the spread lies
    below it.
    """
    doublings = min(max(failures, 0), 64)  # beyond that the power says nothing but "long"
    high = min(longest, first * 2.0**doublings * (1.0 + SPREAD))
    low = max(first, high / (1.0 + SPREAD))
    return jitter.uniform(min(low, high), high)


def silent_seconds(
    sender: ExpectedSender, last_at: float, now: float, zone: tzinfo | None
) -> float:
    """Measure the seconds of silence in the time in which the sender was expected.

    Counted until it has been long enough: the answer is never much above `silent_hours`.
    """
    enough = sender.silent_hours * 3600
    silent, moment = 0.0, now
    first = max(last_at, now - MOST_DAYS * DAY)
    while moment > first and silent < enough:
        step = min(STEP_SECONDS, moment - first)
        if sender.is_open(datetime.fromtimestamp(moment, zone)):
            silent += step
        moment -= step
    return silent


def is_silent(sender: ExpectedSender, last_at: float, now: float, zone: tzinfo | None) -> bool:
    """Tell whether somebody should look at the sender now, while it is expected to send."""
    if not sender.silent_hours:
        return False
    if now - last_at < sender.silent_hours * 3600:  # not even by the clock on the wall
        return False
    if not sender.is_open(datetime.fromtimestamp(now, zone)):
        return False
    return silent_seconds(sender, last_at, now, zone) >= sender.silent_hours * 3600


def heard(last_at: float, zone: tzinfo | None) -> str:
    """Write when it was heard last."""
    moment = datetime.fromtimestamp(last_at, zone) + timedelta(seconds=0.5)
    return moment.strftime("%Y-%m-%d %H:%M")
