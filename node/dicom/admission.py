"""Admission: the rules by which a sender is let in, whether it comes by DIMSE or by DICOMweb."""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from node.dicom.status import REJECT_CALLED, REJECT_CALLING, REJECT_NO_REASON, Rejection
from node.dicom.tls import Identity

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class AssociationRequest:
    """The names and the address in a request for an association."""

    calling_ae: str
    called_ae: str
    address: str
    port: int = 0
    is_echo: bool = False  # for Verification and nothing else
    is_tls: bool = False
    identity: Identity | None = None  # of the certificate that it has shown
    is_report: bool = False  # for Storage Commitment, perhaps with Verification


@dataclass(frozen=True)
class Refused:
    """The rejection of an association: the answer to the peer and the reason in the log."""

    answer: Rejection
    reason: str


@dataclass(frozen=True)
class Admission:
    """The rules by which associations are accepted; an empty one lets all in."""

    called_ae_titles: frozenset[str] = frozenset()
    calling_ae_titles: frozenset[str] = frozenset()
    networks: tuple[str, ...] = ()
    guests: frozenset[str] = frozenset()  # calling AE titles that are let in whatever else holds
    needs_tls: bool = False
    # Calling AE title -> `Identity.marks` of certificates that may use it, over TLS alone. Such a
    # certificate may use no other title.
    certificates: Mapping[str, frozenset[str]] = field(default_factory=dict)
    # Calling and called AE title of who may report on storage commitment, and do nothing else.
    reporters: frozenset[tuple[str, str]] = frozenset()

    def __post_init__(self) -> None:
        self.parsed_networks()  # a wrong one is found where it is given, not at the first peer

    def parsed_networks(self) -> tuple[Network, ...]:
        """The networks; ValueError names one that is none."""
        return tuple(ipaddress.ip_network(network, strict=False) for network in self.networks)

    def refused(self, request: AssociationRequest) -> Refused | None:
        """The reason not to let this request in; None where nothing speaks against it."""
        if not self._is_within(request.address):
            return Refused(REJECT_NO_REASON, "network not allowed")
        pair = (request.calling_ae, request.called_ae)
        is_reporter = request.is_report and pair in self.reporters
        unknown = None if is_reporter else self._unknown(request)
        return unknown or self._wrong_certificate(request)

    def _unknown(self, request: AssociationRequest) -> Refused | None:
        if self.called_ae_titles and request.called_ae not in self.called_ae_titles:
            return Refused(REJECT_CALLED, "called AE title not recognised")
        if self.calling_ae_titles and request.calling_ae not in self.calling_ae_titles:
            return Refused(REJECT_CALLING, "calling AE title not recognised")
        return None

    def _wrong_certificate(self, request: AssociationRequest) -> Refused | None:
        bound, title = self.certificates, request.calling_ae
        if not request.is_tls and (self.needs_tls or title in bound):
            return Refused(REJECT_CALLING, "not over TLS")
        marks = request.identity.marks if request.identity is not None else frozenset()
        titles = {title for title, certificates in bound.items() if certificates & marks}
        if title in titles or not (titles or title in bound):
            return None
        shown = request.identity or "none was shown"
        return Refused(REJECT_CALLING, f"certificate of another AE title: {shown}")

    def _is_within(self, address: str) -> bool:
        if not self.networks:
            return True
        peer = ipaddress.ip_address(address)
        mapped = peer.ipv4_mapped if isinstance(peer, ipaddress.IPv6Address) else None
        return any((mapped or peer) in network for network in self.parsed_networks())
