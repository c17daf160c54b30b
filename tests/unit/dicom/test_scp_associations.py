"""What is negotiated with peers that say raw bytes, and how each association ends."""

import socket
import struct
import threading
import time
from pathlib import Path

import pytest

from node.dicom.admission import Admission
from node.dicom.association_log import AssociationWriter
from tests.node_scp import Node, node_scp
from tests.peers import wait_until
from tests.raw_peer import (
    ABORT,
    ASSOCIATE_AC,
    CT,
    EXPLICIT,
    IMPLICIT,
    P_DATA,
    RELEASE_RP,
    VERIFICATION,
    RawPeer,
    associate_request,
    data_set,
    fragment,
    pdu,
    rejection,
    store_command,
)

JPEG_LS = "1.2.840.10008.1.2.4.80"

JPEG_BASELINE = "1.2.840.10008.1.2.4.50"

BIG_ENDIAN = "1.2.840.10008.1.2.2"

JPIP = "1.2.840.10008.1.2.4.94"

PRIVATE = "1.2.3.4.5.6"

REJECTED_PERMANENT, REJECTED_TRANSIENT = 1, 2


def negotiated(answer: tuple[int, bytes]) -> dict[int, tuple[int, str]]:
    """The contexts of an A-ASSOCIATE-AC: id -> (result, transfer syntax)."""
    kind, value = answer
    assert kind == ASSOCIATE_AC
    contexts, at = {}, 68
    while at < len(value):
        item, _, length = struct.unpack_from(">BBH", value, at)
        inner = value[at + 4 : at + 4 + length]
        if item == 0x21:
            contexts[inner[0]] = (inner[2], inner[8:].rstrip(b"\0").decode())
        at += 4 + length
    return contexts


def test_the_node_chooses_the_transfer_syntax_that_is_easiest_to_read(node: Node) -> None:
    offered = (
        (CT, (IMPLICIT, EXPLICIT)),
        (CT, (JPEG_BASELINE, JPEG_LS)),
        (CT, (JPEG_LS, IMPLICIT)),
        (CT, (BIG_ENDIAN, JPEG_BASELINE)),
        (CT, (BIG_ENDIAN,)),
        (CT, (JPIP,)),
        (PRIVATE, (EXPLICIT,)),
        (VERIFICATION, (IMPLICIT,)),
    )
    with RawPeer(node.port) as peer:
        contexts = negotiated(peer.associate(associate_request(contexts=offered)))
    assert [contexts[index][0] for index in range(1, 16, 2)] == [0, 0, 0, 0, 0, 4, 3, 0]
    chosen = [contexts[index][1] for index in range(1, 10, 2)]
    assert chosen == [EXPLICIT, JPEG_LS, IMPLICIT, JPEG_BASELINE, BIG_ENDIAN]


def test_admission_changes_while_associations_are_open(node: Node) -> None:
    with RawPeer(node.port) as before, RawPeer(node.port) as after:
        before.associate()
        node.scp.admit(Admission(calling_ae_titles=frozenset({"CT1"})))
        assert rejection(after.associate())[2] == 3
        assert before.status(store_command(), data_set()) == 0x0000


def test_too_many_associations_are_rejected_for_now(tmp_path: Path) -> None:
    with (
        node_scp(tmp_path, max_associations=2, max_associations_per_peer=2) as node,
        RawPeer(node.port) as first,
        RawPeer(node.port) as second,
        RawPeer(node.port) as third,
    ):
        assert first.associate()[0] == second.associate()[0] == ASSOCIATE_AC
        assert rejection(third.associate()) == (REJECTED_TRANSIENT, 3, 2)
        assert node.scp.open_associations() == 2
        assert first.release() == RELEASE_RP
        wait_until(lambda: node.scp.open_associations() == 1, what="the first one has ended")
        with RawPeer(node.port) as fourth:
            assert fourth.associate()[0] == ASSOCIATE_AC


def test_a_request_that_trickles_in_does_not_hold_its_connection(tmp_path: Path) -> None:
    with node_scp(tmp_path, request_seconds=0.5) as node, RawPeer(node.port) as peer:
        peer.send(associate_request()[:40])
        began = time.monotonic()
        assert peer.receive() == (0, b"")
        assert time.monotonic() - began < 5.0


def test_an_idle_association_is_aborted(tmp_path: Path) -> None:
    with node_scp(tmp_path, idle_seconds=0.3) as node, RawPeer(node.port) as peer:
        peer.associate()
        assert peer.receive()[0] == ABORT
        wait_until(lambda: node.archive.ends() == ["aborted"], what="the association ended")


def test_a_pdu_that_stops_in_the_middle_ends_its_association(tmp_path: Path) -> None:
    with node_scp(tmp_path, pdu_seconds=0.4) as node, RawPeer(node.port) as peer:
        peer.associate()
        peer.send(fragment(store_command(), command=True))
        peer.send(fragment(data_set())[:500])
        assert peer.receive()[0] in (0, ABORT)
        wait_until(lambda: node.archive.ends(), what="the association ended")
        assert node.archive.litter() == []


def test_released_aborted_and_dropped_are_told_apart(node: Node) -> None:
    with RawPeer(node.port) as peer:
        peer.associate()
        assert peer.release() == RELEASE_RP
    wait_until(lambda: len(node.archive.ends()) == 1, what="the first association ended")
    with RawPeer(node.port) as peer:
        peer.associate()
        peer.send(pdu(ABORT, bytes(4)))
        wait_until(lambda: len(node.archive.ends()) == 2, what="the second association ended")
    with RawPeer(node.port) as peer:
        peer.associate()
    wait_until(lambda: len(node.archive.ends()) == 3, what="the third association ended")
    assert node.archive.ends() == ["released", "aborted", "dropped"]
    assert node.scp.wait(1.0)


def test_the_next_association_works_after_an_abort_in_mid_instance(node: Node) -> None:
    with RawPeer(node.port) as peer:
        peer.associate()
        peer.send(fragment(store_command(), command=True))
        peer.send(fragment(data_set()[:1000], last=False) + pdu(ABORT, bytes(4)))
        wait_until(lambda: node.archive.ends() == ["aborted"], what="the association ended")
    assert node.archive.litter() == []
    with RawPeer(node.port) as peer:
        peer.associate()
        assert peer.status(store_command(), data_set()) == 0x0000


@pytest.mark.filterwarnings("ignore:End of file reached")
@pytest.mark.parametrize(
    "said",
    [
        fragment(store_command(), context_id=9, command=True),  # never negotiated
        fragment(b"\xff" * 40, command=True),
        fragment(b"", command=True),
        fragment(b"\0" * 100_000, command=True, last=False),
        pdu(P_DATA, b"\0\0\0\x63\x01\x03abc"),  # the fragment says that it is longer
        pdu(0x55, b"what is this"),
    ],
)
def test_what_is_no_dicom_message_ends_its_association_and_no_other(
    node: Node, said: bytes
) -> None:
    with RawPeer(node.port) as good, RawPeer(node.port) as bad:
        good.associate()
        bad.associate()
        bad.send(said)
        assert bad.receive()[0] == ABORT
        wait_until(lambda: len(node.archive.ends()) == 1, what="the bad association ended")
        assert good.status(store_command(), data_set()) == 0x0000


def test_a_pdu_that_announces_gigabytes_is_not_waited_for(node: Node) -> None:
    with RawPeer(node.port) as peer:
        peer.associate()
        peer.send(struct.pack(">BBI", P_DATA, 0, 0xFFFFFFF0))
        assert peer.receive()[0] in (0, ABORT)
    wait_until(lambda: node.scp.open_associations() == 0, what="the association ended")


def test_accepted_sockets_wait_for_no_acknowledgement(node: Node) -> None:
    with RawPeer(node.port) as peer:
        peer.associate()
        name = f"association-{peer.socket.getsockname()[1]}"
        accepted = next(one for one in threading.enumerate() if one.name == name)
        sock = accepted.dul.socket.socket  # type: ignore[attr-defined]
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        peer.status(store_command(), data_set())
        armed = (socket.IPPROTO_TCP, socket.TCP_QUICKACK)
        wait_until(lambda: sock.getsockopt(*armed), what="armed again after the exchange")


def test_stopping_lets_open_associations_finish(node: Node) -> None:
    with RawPeer(node.port) as peer:
        peer.associate()
        node.scp.stop_listening()
        with pytest.raises(ConnectionRefusedError):
            RawPeer(node.port)
        assert not node.scp.wait(0.1)
        assert peer.status(store_command(), data_set()) == 0x0000
        assert peer.release() == RELEASE_RP
        assert node.scp.wait(5.0)


def test_aborting_ends_every_association_and_every_thread(node: Node) -> None:
    peers = [RawPeer(node.port) for _ in range(3)]
    for peer in peers[:2]:
        peer.associate()
    node.scp.abort()
    assert [peer.receive()[0] for peer in peers] == [ABORT, ABORT, 0]
    assert sorted(node.archive.ends()) == ["aborted", "aborted"]
    assert node.scp.open_associations() == 0
    running = {one.name for one in threading.enumerate()}
    assert running.isdisjoint(f"association-{peer.socket.getsockname()[1]}" for peer in peers[:2])
    for peer in peers:
        peer.socket.close()


def test_a_gate_that_fails_lets_nobody_in(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(AssociationWriter, "opened", fail)
    with RawPeer(node.port) as peer:
        assert rejection(peer.associate()) == (REJECTED_TRANSIENT, 3, 1)
    wait_until(lambda: node.scp.open_associations() == 0, what="its place is free")


def test_a_taken_port_is_an_error_at_the_start(node: Node, tmp_path: Path) -> None:
    with pytest.raises(OSError), node_scp(tmp_path / "second", port=node.port):
        pass
