"""Who may associate, and how associations are counted."""

import pytest

from node.dicom.admission import Admission, AssociationRequest, Refused
from node.dicom.association_log import AssociationWriter, Entry
from node.dicom.scp import AssociationGate

MAPPED = AssociationRequest("A", "B", "::ffff:192.0.2.7")  # IPv4 on an IPv6 socket
CT1 = AssociationRequest("CT1", "MIDSLICE", "192.0.2.7")


class Book(AssociationWriter):
    """A log that writes nothing: it remembers what it is told."""

    def __init__(self) -> None:
        self.entries: list[tuple[object, ...]] = []

    def opened(self, calling_ae: str, called_ae: str, address: str) -> Entry:
        self.entries.append(("opened", calling_ae, called_ae, address))
        return Entry(calling_ae, called_ae, address, 0.0)

    def ended(self, entry: Entry, how: str) -> None:
        self.entries.append(("ended", entry.calling_ae, how))

    def rejected(self, calling_ae: str, called_ae: str, address: str, reason: str) -> None:
        self.entries.append(("rejected", calling_ae, called_ae, address, reason))


def gate(
    book: Book, admission: Admission | None = None, *, most: int = 2, most_per_peer: int = 0
) -> AssociationGate:
    return AssociationGate(
        admission or Admission(), book, most=most, waiting=2, most_per_peer=most_per_peer or most
    )


def reason(entered: Refused | Entry) -> str:
    return entered.reason if isinstance(entered, Refused) else ""


@pytest.mark.parametrize(
    ("admission", "asking", "why"),
    [
        (Admission(), CT1, ""),
        (Admission(networks=("192.0.2.0/24",)), CT1, ""),
        (Admission(networks=("192.0.2.7",)), CT1, ""),
        (
            Admission(networks=("192.0.2.0/24",)),
            AssociationRequest("A", "B", "::ffff:192.0.2.7"),
            "",
        ),
        (Admission(networks=("fd00::/8",)), AssociationRequest("A", "B", "fd00::1"), ""),
        (Admission(networks=("fd00::/8",)), CT1, "network not allowed"),
        (Admission(called_ae_titles=frozenset({"X"})), CT1, "called AE title not recognised"),
        (Admission(calling_ae_titles=frozenset({"X"})), CT1, "calling AE title not recognised"),
        (Admission(calling_ae_titles=frozenset({"ct1"})), CT1, "calling AE title not recognised"),
    ],
)
def test_who_may_enter(admission: Admission, asking: AssociationRequest, why: str) -> None:
    book = Book()
    entered = gate(book, admission).enter(1, asking)
    assert reason(entered) == why
    assert book.entries[0][0] == ("rejected" if why else "opened")


def test_a_reason_that_lasts_is_told_before_one_that_passes() -> None:
    full = gate(Book(), Admission(called_ae_titles=frozenset({"MIDSLICE"})), most=1)
    full.enter(1, CT1)
    assert reason(full.enter(2, CT1)) == "too many associations"
    wrong = AssociationRequest("CT1", "WRONG", "192.0.2.7")
    assert reason(full.enter(3, wrong)) == "called AE title not recognised"


def test_connections_that_wait_have_a_limit_of_their_own() -> None:
    door = gate(Book())
    one, two, three = CT1.address, "192.0.2.8", "192.0.2.9"
    door.connected(1, one)
    assert not door.has_room_to_wait(one)  # a quarter of the places, at least one
    door.connected(2, two)
    assert door.has_room_to_wait(three)  # whoever holds the others
    door.connected(3, three)
    door.connected(4, "192.0.2.10")
    assert not door.has_room_to_wait("192.0.2.11")  # twice as many at most
    assert door.open == 0
    door.enter(1, CT1)
    assert door.has_room_to_wait(one)
    door.connected(5, one)
    assert not door.has_room_to_wait(one)
    door.disconnected(5)
    assert door.has_room_to_wait(one)


def test_waiting_for_the_last_one_ends_when_it_leaves() -> None:
    door = gate(Book())
    assert door.wait_until_empty(0.0)
    door.enter(1, CT1)
    assert not door.wait_until_empty(0.01)
    door.leave(1, "released")
    assert door.wait_until_empty(0.0)


def test_a_network_that_is_none_is_found_where_it_is_given() -> None:
    with pytest.raises(ValueError, match="10.0.0.0/99"):
        Admission(networks=("10.0.0.0/99",))


def test_one_peer_gets_its_share_of_the_places_and_the_others_get_theirs() -> None:
    shared = AssociationGate(Admission(), Book(), most=4, waiting=2)
    for key in range(2):
        assert reason(shared.enter(key, CT1)) == ""
    elsewhere = AssociationRequest("CT1", "MIDSLICE", "192.0.2.8")
    assert reason(shared.enter(2, elsewhere)) == "too many associations of this AE title"
    renamed = AssociationRequest("CT2", "MIDSLICE", "192.0.2.7")
    assert reason(shared.enter(3, renamed)) == "too many associations of this address"
    other = AssociationRequest("CT2", "MIDSLICE", "192.0.2.8")
    assert reason(shared.enter(4, other)) == ""
    shared.leave(0, "released")
    assert reason(shared.enter(5, elsewhere)) == ""


@pytest.mark.parametrize(("most_per_peer", "lets_in"), [(0, 3), (1, 1), (5, 5), (7, 7), (99, 7)])
def test_the_share_is_half_of_the_places_or_as_configured(most_per_peer: int, lets_in: int) -> None:
    shared = AssociationGate(Admission(), Book(), most=7, waiting=2, most_per_peer=most_per_peer)
    reasons = [reason(shared.enter(key, CT1)) for key in range(9)]
    assert reasons.count("") == lets_in


def test_an_echo_is_answered_beyond_the_limits_one_at_a_time_of_a_title_and_an_address() -> None:
    full = gate(Book(), most=1)
    full.enter(0, CT1)
    echo = AssociationRequest("CT1", "MIDSLICE", "192.0.2.7", is_echo=True)
    assert reason(full.enter(1, echo)) == ""
    assert full.is_for_echo(1)
    assert not full.is_for_echo(0)
    assert reason(full.enter(2, echo)) == "too many associations"
    same = AssociationRequest("CT2", "MIDSLICE", "192.0.2.7", is_echo=True)
    assert reason(full.enter(3, same)) == "too many associations"
    other = AssociationRequest("CT2", "MIDSLICE", "192.0.2.8", is_echo=True)
    assert reason(full.enter(3, other)) == ""
    full.leave(1, "released")
    assert reason(full.enter(4, echo)) == ""
    full.leave(0, "released")  # what is there for an echo takes no place of others
    assert reason(full.enter(5, CT1)) == ""
