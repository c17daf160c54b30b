"""When a sender's silence means something: counted in the hours in which it is expected to send."""

from datetime import datetime, timedelta, tzinfo

from node.config import Sender

STEP_SECONDS = 300.0
MOST_DAYS = 14.0  # so far back is looked; whoever is silent for longer is silent in any case


def silent_seconds(sender: Sender, last_at: float, now: float, zone: tzinfo | None) -> float:
    """How long the sender has been silent of the time in which it was expected, in seconds.

    Counted until it has been long enough: the answer is never much above `silent_hours`.
    """
    enough = sender.silent_hours * 3600
    silent, moment = 0.0, now
    first = max(last_at, now - MOST_DAYS * 86_400)
    while moment > first and silent < enough:
        step = min(STEP_SECONDS, moment - first)
        if sender.is_open(datetime.fromtimestamp(moment, zone)):
            silent += step
        moment -= step
    return silent


def is_silent(sender: Sender, last_at: float, now: float, zone: tzinfo | None) -> bool:
    """Whether somebody should look at the sender: now, as it is expected to send."""
    if now - last_at < sender.silent_hours * 3600:  # not even by the clock on the wall
        return False
    if not sender.is_open(datetime.fromtimestamp(now, zone)):
        return False
    return silent_seconds(sender, last_at, now, zone) >= sender.silent_hours * 3600


def heard(last_at: float, zone: tzinfo | None) -> str:
    """When it was heard last, as people say it."""
    moment = datetime.fromtimestamp(last_at, zone) + timedelta(seconds=0.5)
    return moment.strftime("%Y-%m-%d %H:%M")
