"""Who may associate, and who is associated: the door of the Storage SCP and its visitors' book."""

import ipaddress
import logging
import threading
import time
from dataclasses import dataclass
from typing import Protocol

from node.dicom.status import (
    REJECT_CALLED,
    REJECT_CALLING,
    REJECT_LIMIT,
    REJECT_NO_REASON,
    Rejection,
)

logger = logging.getLogger(__name__)


class AssociationLog(Protocol):
    """Where associations are written down."""

    def opened(self, calling_ae: str, called_ae: str, address: str) -> int:
        """An association was accepted; returns the number that `ended` is told."""

    def ended(self, association: int, how: str) -> None:
        """It ended: released, aborted or dropped."""

    def rejected(self, calling_ae: str, called_ae: str, address: str, reason: str) -> None:
        """An association was rejected."""


@dataclass(frozen=True)
class Admission:
    """Which associations are accepted; what is empty lets all in."""

    called_ae_titles: frozenset[str] = frozenset()
    calling_ae_titles: frozenset[str] = frozenset()
    networks: tuple[str, ...] = ()
    guests: frozenset[str] = frozenset()  # calling AE titles that are let in whatever else holds

    def __post_init__(self) -> None:
        self.parsed_networks()  # a wrong one is found where it is given, not at the first peer

    def parsed_networks(self) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
        """The networks; ValueError names one that is none."""
        return tuple(ipaddress.ip_network(network, strict=False) for network in self.networks)


@dataclass(frozen=True)
class Visitor:
    """Who asks for an association."""

    calling_ae: str
    called_ae: str
    address: str


@dataclass(frozen=True)
class Refused:
    """Why an association is not accepted: what the peer is told and what the log says."""

    answer: Rejection
    reason: str


class Gate:
    """Decides on associations and counts them; called from the thread of each.

    A connection counts only once it has asked for an association: health checks and port scans
    take no places. How many may wait to ask has a limit of its own.
    """

    def __init__(self, admission: Admission, log: AssociationLog, *, most: int, waiting: int):
        self.admission = admission
        self._log = log
        self._most = most
        self._most_waiting = waiting
        self._waiting: set[int] = set()
        self._open: dict[int, int | None] = {}
        self._changed = threading.Condition()

    @property
    def open(self) -> int:
        """How many associations are open."""
        with self._changed:
            return len(self._open)

    def wait_until_empty(self, seconds: float) -> bool:
        """True as soon as no association is open, False after so many seconds."""
        deadline = time.monotonic() + seconds
        with self._changed:
            return self._changed.wait_for(lambda: not self._open, deadline - time.monotonic())

    def has_room_to_wait(self) -> bool:
        """Whether one more connection may wait to ask."""
        with self._changed:
            return len(self._waiting) < self._most_waiting

    def connected(self, key: int) -> None:
        """A connection was accepted; it has not asked for anything yet."""
        with self._changed:
            self._waiting.add(key)

    def disconnected(self, key: int) -> None:
        """It is closed; whether it had asked for anything is another matter."""
        with self._changed:
            self._waiting.discard(key)

    def enter(self, key: int, visitor: Visitor) -> Refused | int:
        """It asks for an association: its number, or why not."""
        with self._changed:
            self._waiting.discard(key)
            refused = self._refused(visitor)
            if refused is None:
                self._open[key] = None
        if refused is not None:
            self._rejected(visitor, refused)
            return refused
        number = self._log.opened(visitor.calling_ae, visitor.called_ae, visitor.address)
        with self._changed:
            self._open[key] = number
        return number

    def leave(self, key: int, how: str) -> None:
        """Its connection is closed, however far it came."""
        with self._changed:
            self._waiting.discard(key)
            number = self._open.get(key)
        try:
            if number is not None:
                self._log.ended(number, how)
        finally:
            with self._changed:
                self._open.pop(key, None)
                self._changed.notify_all()

    def _refused(self, visitor: Visitor) -> Refused | None:
        admission = self.admission
        if visitor.calling_ae in admission.guests:
            return None
        if not _is_within(visitor.address, admission):
            return Refused(REJECT_NO_REASON, "network not allowed")
        if admission.called_ae_titles and visitor.called_ae not in admission.called_ae_titles:
            return Refused(REJECT_CALLED, "called AE title not recognised")
        if admission.calling_ae_titles and visitor.calling_ae not in admission.calling_ae_titles:
            return Refused(REJECT_CALLING, "calling AE title not recognised")
        if len(self._open) >= self._most:
            return Refused(REJECT_LIMIT, "too many associations")
        return None

    def _rejected(self, visitor: Visitor, refused: Refused) -> None:
        extra = {"calling_ae": visitor.calling_ae, "called_ae": visitor.called_ae}
        logger.warning(
            "association rejected",
            extra=extra | {"address": visitor.address, "reason": refused.reason},
        )
        self._log.rejected(visitor.calling_ae, visitor.called_ae, visitor.address, refused.reason)


def _is_within(address: str, admission: Admission) -> bool:
    if not admission.networks:
        return True
    peer = ipaddress.ip_address(address)
    mapped = peer.ipv4_mapped if isinstance(peer, ipaddress.IPv6Address) else None
    return any((mapped or peer) in network for network in admission.parsed_networks())
