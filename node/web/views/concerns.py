"""What is wrong with those around the node, one line each: a part of Now, a mark on every page."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from node.rules.backoff import is_silent
from node.web.parts import Parts
from node.web.views import wording
from storage.records import SwitchName
from storage.site import control, notices, peers

NOTICE_DAYS = 7  # a channel that failed before that, and had nothing to tell since, is forgotten


@dataclass(frozen=True)
class Concern:
    """Somebody should look: at whom, why, since when, and which page says more."""

    who: str
    said: str  # of whom, before "for 3 h"
    since: float
    page: str = "/peers"


def concerns(parts: Parts, now: float) -> tuple[Concern, ...]:
    """Senders that are silent, destinations that are down or paused, notices that do not arrive."""
    return (*_senders(parts, now), *_destinations(parts), *_notices(parts, now))


def silent(parts: Parts, now: float) -> Mapping[str, float]:
    """Who is expected to send now, and has brought no image for too long; since when."""
    senders = parts.config().senders
    since = peers.quiet_since(parts.database, [each.ae_title for each in senders])
    return {
        each.ae_title: since[each.ae_title]
        for each in senders
        if each.ae_title in since and is_silent(each, since[each.ae_title], now, parts.zone)
    }


def _senders(parts: Parts, now: float) -> Iterator[Concern]:
    for name, since in silent(parts, now).items():
        yield Concern(name, "has brought no image", since)


def _destinations(parts: Parts) -> Iterator[Concern]:
    paused = {each.subject: each for each in control.all_on(parts.database, SwitchName.PAUSED)}
    reaches = {each.destination: each for each in peers.reachability(parts.database)}
    for name in (each.name for each in parts.config().destinations):
        by_hand, reach = paused.get(name), reaches.get(name)
        if by_hand is not None:
            yield Concern(name, f"has been paused by {by_hand.who}", by_hand.at)
        elif reach is not None and not reach.up:
            yield Concern(name, "has not answered", reach.since)


def _notices(parts: Parts, now: float) -> Iterator[Concern]:
    for each in notices.stuck(parts.database, now - NOTICE_DAYS * wording.DAY):
        yield Concern(each.channel, "has not taken a notice", each.notice.at, "/selftest")
