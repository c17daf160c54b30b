"""Receiving by both ways, in the thread that reads and through the library: nobody can tell."""

import gc
import resource
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pynetdicom import AE
from pynetdicom.acse import ACSE

from node.dicom.incoming import Incoming
from tests.node_scp import HOST, Node, node_scp
from tests.peers import Finished, dcmsend, echoscu, storescu, wait_until
from tests.raw_peer import (
    ABORT,
    CT,
    EXPLICIT,
    IMPLICIT,
    MR,
    P_DATA,
    RELEASE_RP,
    RELEASE_RQ,
    VERIFICATION,
    RawPeer,
    associate_request,
    data_set,
    data_set_bytes,
    echo_command,
    fragment,
    pdu,
    status_of,
    store_command,
)
from tests.sending import native

WAYS = {"direct": True, "library": False}
CONTEXTS = ((CT, (EXPLICIT,)), (MR, (EXPLICIT,)), (CT, (IMPLICIT,)), (VERIFICATION, (IMPLICIT,)))
CT_EXPLICIT, MR_EXPLICIT, CT_IMPLICIT, ECHO = 1, 3, 5, 7
COMMAND, LAST = 1, 2


@pytest.fixture(scope="module", params=WAYS.values(), ids=WAYS)
def node(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Node]:
    """One node a way; a test looks at what it has brought itself."""
    folder = tmp_path_factory.mktemp("node")
    with node_scp(folder, is_direct=request.param, pdu_seconds=5.0) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_left(node: Node) -> Iterator[None]:
    """After each test nothing lies about, nobody is associated, and the next peer is served."""
    wait_until(lambda: node.scp.open_associations() == 0, what="every association is over")
    wait_until(node.archive.is_log_written, what="the log of associations is written")
    node.archive.kept.clear()
    yield
    wait_until(lambda: node.scp.open_associations() == 0, what="every association is over")
    assert node.archive.litter() == []
    kept = len(node.archive.kept)
    with RawPeer(node.port) as peer:
        peer.associate()
        assert peer.status(store_command(b"9.9\0"), data_set("9.9")) == 0x0000
    assert len(node.archive.kept) == kept + 1


def pdv(value: bytes, control: int, context_id: int = CT_EXPLICIT) -> bytes:
    return struct.pack(">IBB", len(value) + 2, context_id, control) + value


def cut(
    value: bytes, places: Sequence[int], kind: int, context_id: int = CT_EXPLICIT
) -> list[bytes]:
    """A command or a data set as fragments that end at these places."""
    ends = [*sorted({place for place in places if 0 < place < len(value)}), len(value)]
    begins = [0, *ends[:-1]]
    last = [LAST if end == len(value) else 0 for end in ends]
    pieces = zip(begins, ends, last, strict=True)
    return [pdv(value[begin:end], kind | is_last) for begin, end, is_last in pieces]


def in_implicit_vr(data: bytes) -> bytes:
    """The same data set in Implicit VR Little Endian."""
    plain, at = b"", 0
    while at < len(data):
        tag, is_long = data[at : at + 4], data[at + 4 : at + 6] == b"OW"
        form, begin = ("<I", at + 12) if is_long else ("<H", at + 8)
        (length,) = struct.unpack_from(form, data, begin - struct.calcsize(form))
        plain += tag + struct.pack("<I", length) + data[begin : begin + length]
        at = begin + length
    return plain


def uids(node: Node) -> list[str]:
    return [kept.received.instance_uid for kept in node.archive.kept]


# --- requestors


def by_storescu(node: Node, files: Sequence[Path]) -> Finished:
    return storescu(node.port, *files)


def by_dcmsend(node: Node, files: Sequence[Path]) -> Finished:
    return dcmsend(node.port, *files)


@pytest.mark.parametrize("send", [by_storescu, by_dcmsend])
def test_what_dcmtk_sends_is_kept(
    node: Node, tmp_path: Path, send: Callable[[Node, Sequence[Path]], Finished]
) -> None:
    sent = native(tmp_path)
    done = send(node, [outgoing.path for outgoing in sent])
    assert done.code == 0, done.output
    assert uids(node) == [outgoing.instance_uid for outgoing in sent]
    for outgoing, kept in zip(sent, node.archive.kept, strict=True):
        assert (dcmread(kept.path).pixel_array == dcmread(outgoing.path).pixel_array).all()
    assert echoscu(node.port).code == 0


@pytest.mark.parametrize("length", [0, 4096, 16382, 131072, 1 << 20])
def test_what_pynetdicom_sends_is_kept_whatever_its_own_longest_pdu(
    node: Node, tmp_path: Path, length: int
) -> None:
    sent = native(tmp_path, 3)
    entity = AE("PYNETDICOM")
    entity.add_requested_context(CT, EXPLICIT)
    entity.add_requested_context(VERIFICATION)
    association = entity.associate(HOST, node.port, max_pdu=length)
    assert association.is_established
    for outgoing in sent:
        assert association.send_c_store(outgoing.path).Status == 0x0000
        assert association.send_c_echo().Status == 0x0000
    association.release()
    assert uids(node) == [outgoing.instance_uid for outgoing in sent]
    for outgoing, kept in zip(sent, node.archive.kept, strict=True):
        assert (dcmread(kept.path).pixel_array == dcmread(outgoing.path).pixel_array).all()


def test_a_peer_that_sends_at_once_is_answered(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    accept = ACSE.send_accept

    def slowly(acse: ACSE) -> None:
        accept(acse)
        time.sleep(0.3)  # the peer knows it, the association's own thread has not noted it yet

    monkeypatch.setattr(ACSE, "send_accept", slowly)
    with RawPeer(node.port) as peer:
        peer.associate()
        for number in range(3):
            uid = f"7.{number}".encode()
            assert peer.status(store_command(uid + b"\0"), data_set(uid.decode())) == 0x0000
    assert uids(node) == ["7.0", "7.1", "7.2"]


# --- fragments


def test_fragments_may_end_at_every_boundary(node: Node) -> None:
    data, command = data_set(pixels=20), store_command()
    with RawPeer(node.port) as peer:
        peer.associate()
        for place in range(1, len(command)):
            whole = b"".join(cut(command, [place], COMMAND) + cut(data, [], 0))
            peer.send(pdu(P_DATA, whole))
            assert status_of(peer.answer()) == 0x0000
        for place in range(1, len(data)):
            pieces = cut(command, [], COMMAND) + cut(data, [place], 0)
            peer.send(b"".join(pdu(P_DATA, piece) for piece in pieces))
            assert status_of(peer.answer()) == 0x0000
        assert peer.release() == RELEASE_RP
    assert len(node.archive.kept) == len(command) + len(data) - 2
    assert {data_set_bytes(kept.path) for kept in node.archive.kept} == {data}


@settings(deadline=None)
@given(
    in_command=st.lists(st.integers(1, 120), max_size=4),
    in_data=st.lists(st.integers(1, 3000), max_size=8),
    in_pdus=st.lists(st.booleans(), min_size=20, max_size=20),
    in_writes=st.lists(st.integers(1, 3500), max_size=8),
)
def test_fragments_pdus_and_writes_may_be_cut_anywhere(
    node: Node,
    in_command: list[int],
    in_data: list[int],
    in_pdus: list[bool],
    in_writes: list[int],
) -> None:
    data = data_set(pixels=2500)
    pieces = cut(store_command(), in_command, COMMAND) + cut(data, in_data, 0)
    groups: list[list[bytes]] = [[]]
    for piece, ends_pdu in zip(pieces, in_pdus, strict=False):
        groups[-1].append(piece)
        if ends_pdu:
            groups.append([])
    said = b"".join(pdu(P_DATA, b"".join(group)) for group in groups)
    kept = len(node.archive.kept)
    with RawPeer(node.port) as peer:
        peer.associate()
        ends = [*sorted({end for end in in_writes if end < len(said)}), len(said)]
        for begin, end in zip([0, *ends], ends, strict=False):
            peer.send(said[begin:end])
        assert status_of(peer.answer()) == 0x0000
        assert peer.release() == RELEASE_RP
    assert len(node.archive.kept) == kept + 1
    assert data_set_bytes(node.archive.kept[-1].path) == data


def test_empty_fragments_and_empty_pdus_change_nothing(node: Node) -> None:
    with RawPeer(node.port) as peer:
        peer.associate()
        peer.send(pdu(P_DATA, b""))
        peer.send(pdu(P_DATA, pdv(b"", COMMAND) + pdv(store_command(), COMMAND | LAST)))
        peer.send(pdu(P_DATA, pdv(data_set(), 0)) + pdu(P_DATA, pdv(b"", LAST)))
        assert status_of(peer.answer()) == 0x0000
    assert data_set_bytes(node.archive.kept[0].path) == data_set()


@pytest.mark.parametrize("pixels", [130_000, 200_000, 300_000, 900_000])
def test_a_pdu_that_is_longer_than_was_announced_is_read(node: Node, pixels: int) -> None:
    data = data_set(pixels=pixels)
    with RawPeer(node.port) as peer:
        peer.associate()
        assert peer.status(store_command(), data) == 0x0000
        together = pdv(store_command(b"1.2.3.5\0"), COMMAND | LAST)
        peer.send(pdu(P_DATA, together + pdv(data_set("1.2.3.5", pixels=pixels), LAST)))
        assert status_of(peer.answer()) == 0x0000
    assert data_set_bytes(node.archive.kept[0].path) == data
    assert uids(node) == ["1.2.3.4", "1.2.3.5"]


# --- contexts and messages


def test_each_instance_is_kept_under_its_presentation_context(node: Node) -> None:
    mr, plain = data_set("1.2.3.5", sop_class=MR), in_implicit_vr(data_set())
    with RawPeer(node.port) as peer:
        peer.associate(associate_request(contexts=CONTEXTS))
        for _ in range(3):
            assert peer.status(store_command(), data_set()) == 0x0000
            command = store_command(b"1.2.3.5\0", sop_class=MR.encode())
            assert status_of(peer.store(command, mr, context_id=MR_EXPLICIT)) == 0x0000
            answer = peer.store(store_command(), plain, context_id=CT_IMPLICIT)
            assert status_of(answer) == 0x0000
    expected = [(CT, EXPLICIT), (MR, EXPLICIT), (CT, IMPLICIT)] * 3
    got = [kept.received for kept in node.archive.kept]
    assert [(one.sop_class_uid, one.transfer_syntax) for one in got] == expected
    sent = [data_set(), mr, plain] * 3
    assert [data_set_bytes(kept.path) for kept in node.archive.kept] == sent


def test_echoes_and_instances_are_answered_in_their_order(node: Node) -> None:
    with RawPeer(node.port) as peer:
        peer.associate(associate_request(contexts=CONTEXTS))
        for _ in range(5):
            peer.send(fragment(echo_command(), context_id=ECHO, command=True))
            assert status_of(peer.answer()) == 0x0000
            assert peer.status(store_command(), data_set()) == 0x0000
        store = fragment(store_command(), command=True) + fragment(data_set())
        echo = fragment(echo_command(), context_id=ECHO, command=True)
        peer.send((echo + store) * 10 + store)  # without a wait for an answer
        fields = [struct.unpack("<H", peer.answer()[0x0100])[0] for _ in range(21)]
        assert fields == [0x8030, 0x8001] * 10 + [0x8001]
        assert peer.release() == RELEASE_RP
    assert len(node.archive.kept) == 16


def test_both_ways_say_the_same_bytes(tmp_path: Path) -> None:
    requests = [
        (store_command(), data_set()),
        (store_command(message_id=65535), data_set()),
        (store_command(b"1.2.3.45"), data_set("1.2.3.45")),
        (store_command(), data_set("1.2.3.5")),
        (store_command(), data_set(study_uid="")),
        (store_command(), data_set()[:40]),
        (store_command(), b""),
        (store_command(b""), data_set()),
        (store_command(sop_class=MR.encode()), data_set()),
        (store_command().replace(struct.pack("<HHIH", 0, 0x0700, 2, 0), b""), data_set()),
    ]
    said: dict[str, list[tuple[int, bytes]]] = {}
    for name, is_direct in WAYS.items():
        answers = said.setdefault(name, [])
        with node_scp(tmp_path / name, is_direct=is_direct) as node, RawPeer(node.port) as peer:
            peer.associate()
            for command, data in requests:
                peer.send(fragment(command, command=True) + fragment(data))
                answers.append(peer.receive())
    assert said["direct"] == said["library"]


# --- what is no message


COMMAND_PDU = fragment(store_command(), command=True)
WRONG = {
    "a PDV of length 0": pdu(P_DATA, struct.pack(">IBB", 0, 1, 3)),
    "a PDV of length 1": pdu(P_DATA, struct.pack(">IBB", 1, 1, 3)),
    "a PDV longer than its PDU": pdu(P_DATA, struct.pack(">IBB", 99, 1, 3) + b"abc"),
    "a PDV whose head is cut": pdu(P_DATA, b"\0\0\0\x05\x01"),
    "a good PDV and a wrong one": pdu(P_DATA, pdv(store_command(), 3) + b"\0\0"),
    "a context that was not proposed": fragment(store_command(), context_id=99, command=True),
    "a data set without a command": fragment(data_set()),
    "an unknown command": fragment(
        store_command().replace(
            struct.pack("<HHIH", 0, 0x0100, 2, 1), struct.pack("<HHIH", 0, 0x0100, 2, 0x7777)
        ),
        command=True,
    ),
    "a command that is no command": fragment(b"\xff" * 40, command=True),
    "a command without an end": b"".join(
        fragment(bytes(1 << 14), command=True, last=False) for _ in range(5)
    ),
    "another command in the data set": COMMAND_PDU + COMMAND_PDU,
    "another context in the data set": COMMAND_PDU + fragment(data_set(), context_id=3),
    "a wrong PDV in the data set": COMMAND_PDU + pdu(P_DATA, struct.pack(">IBB", 9, 1, 0)),
    "an unknown PDU in the data set": COMMAND_PDU + pdu(0x44, b"abcd"),
    "another request to associate": COMMAND_PDU + associate_request(),
}


@pytest.mark.filterwarnings("ignore:End of file reached before delimiter")
@pytest.mark.parametrize("said", WRONG.values(), ids=WRONG)
def test_what_is_no_dicom_message_aborts_its_association(node: Node, said: bytes) -> None:
    with RawPeer(node.port) as peer:
        peer.associate(associate_request(contexts=CONTEXTS))
        peer.send(said)
        assert peer.receive()[0] == ABORT
    assert node.archive.kept == []


# --- ends


REQUEST = COMMAND_PDU + fragment(data_set(), last=False) + fragment(b"", last=True)
POINTS = {
    "before anything": 0,
    "in the head of a PDU": 3,
    "in the head of a PDV": 9,
    "in the command": 60,
    "after the command": len(COMMAND_PDU),
    "in a fragment of the data set": len(COMMAND_PDU) + 500,
    "before the last fragment": len(REQUEST) - 12,
}


@pytest.mark.parametrize("point", POINTS.values(), ids=POINTS)
def test_a_connection_that_ends_leaves_nothing_at_any_point(node: Node, point: int) -> None:
    before = len(node.archive.ends())
    with RawPeer(node.port) as peer:
        peer.associate()
        peer.send(REQUEST[:point])
    wait_until(lambda: len(node.archive.ends()) > before, what="the association ended")
    assert node.archive.ends()[-1] == "dropped"
    assert node.archive.kept == []


BETWEEN_PDUS = {name: POINTS[name] for name in ("before anything", "after the command")} | {
    "before the last fragment": len(REQUEST) - 12,
    "after the request": len(REQUEST),
}


@pytest.mark.parametrize("point", BETWEEN_PDUS.values(), ids=BETWEEN_PDUS)
@pytest.mark.parametrize("how", ["released", "aborted"])
def test_release_and_abort_end_it_at_any_point(node: Node, point: int, how: str) -> None:
    before, is_whole = len(node.archive.ends()), point == len(REQUEST)
    with RawPeer(node.port) as peer:
        peer.associate()
        peer.send(REQUEST[:point])
        if is_whole:
            assert status_of(peer.answer()) == 0x0000
        if how == "released":
            assert peer.release() == RELEASE_RP
        else:
            peer.send(pdu(ABORT, bytes(4)))
            assert peer.receive()[0] == 0
    wait_until(lambda: len(node.archive.ends()) > before, what="the association ended")
    assert node.archive.ends()[-1] == how
    assert len(node.archive.kept) == is_whole


def test_an_association_does_not_remember_what_it_has_brought(node: Node) -> None:
    before = {id(it) for it in gc.get_objects() if isinstance(it, Incoming)}
    with RawPeer(node.port) as peer:
        peer.associate()
        for _ in range(20):
            assert peer.status(store_command(), data_set()) == 0x0000
        gc.collect()
        left = [it for it in gc.get_objects() if isinstance(it, Incoming) and id(it) not in before]
        assert len(left) <= 2


def test_an_instance_is_answered_before_the_release_that_came_with_it(tmp_path: Path) -> None:
    """No peer may do it; through the library either may come first."""
    with node_scp(tmp_path) as node, RawPeer(node.port) as peer:
        peer.associate()
        peer.send(REQUEST + pdu(RELEASE_RQ, bytes(4)))
        assert status_of(peer.answer()) == 0x0000
        assert peer.receive()[0] == RELEASE_RP
        assert len(node.archive.kept) == 1


def test_a_node_that_stops_aborts_in_the_middle_of_a_data_set(tmp_path: Path) -> None:
    for name, is_direct in WAYS.items():
        with node_scp(tmp_path / name, is_direct=is_direct) as node, RawPeer(node.port) as peer:
            peer.associate()
            peer.send(COMMAND_PDU + fragment(data_set(), last=False))
            wait_until(node.archive.litter, what="the data set began to arrive")
            node.scp.abort()
            assert peer.receive()[0] == ABORT
            assert node.archive.litter() == []
            assert node.archive.ends() == ["aborted"]


# --- the disk


@contextmanager
def files_no_longer_than(size: int) -> Iterator[None]:
    """Writing past this size fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("piece", [5_000, 16_000, 131_060])
def test_a_disk_that_fills_up_in_the_middle_refuses_one_instance(node: Node, piece: int) -> None:
    whole = data_set(pixels=400_000)
    pieces = cut(whole, range(piece, len(whole), piece), 0)
    with RawPeer(node.port) as peer:
        peer.associate()
        with files_no_longer_than(150_000):
            assert peer.status(store_command(), data_set(pixels=40_000)) == 0x0000
            peer.send(COMMAND_PDU + b"".join(pdu(P_DATA, piece) for piece in pieces))
            assert status_of(peer.answer()) == 0xA700
            assert node.archive.litter() == []
        assert peer.status(store_command(), whole) == 0x0000
    assert [data_set_bytes(kept.path) for kept in node.archive.kept] == [
        data_set(pixels=40_000),
        whole,
    ]


def test_an_error_of_the_archive_is_a_failure_and_the_association_goes_on(node: Node) -> None:
    node.archive.failures = [OSError(28, "No space left"), RuntimeError("a mistake of ours")]
    with RawPeer(node.port) as peer:
        peer.associate()
        statuses = [peer.status(store_command(), data_set()) for _ in range(3)]
    assert statuses == [0xA700, 0xC211, 0x0000]
    assert len(node.archive.kept) == 1


def test_a_command_whose_numbers_have_odd_lengths_ends_its_association_alone(node: Node) -> None:
    command = store_command()
    at = command.index(struct.pack("<HHI", 0, 0x0800, 2))
    longer = command[:at] + struct.pack("<HHI", 0, 0x0800, 3) + bytes(3) + command[at + 10 :]
    with RawPeer(node.port) as peer:
        peer.associate()
        peer.send(fragment(longer, command=True))
        assert peer.receive()[0] == ABORT
    with RawPeer(node.port) as peer:
        peer.associate()
        assert peer.status(store_command(), data_set()) == 0x0000


def test_a_release_whose_answer_meets_an_abort_raises_nothing(node: Node) -> None:
    # Which of the two comes first differs from time to time; an exception in a thread fails a test.
    for _ in range(4):
        with RawPeer(node.port) as peer:
            peer.associate()
            peer.send(pdu(RELEASE_RQ, bytes(4)) + b"\x09" + bytes(40))
            while peer.receive()[0]:
                pass
    wait_until(lambda: node.scp.open_associations() == 0, what="every association is over")


@pytest.mark.parametrize("values", [b"\3\0", b"\1\2", b"\2\3", b"\xff\xff"])
def test_an_abort_of_a_source_or_reason_that_is_none_ends_its_association(
    node: Node, values: bytes
) -> None:
    before = len(node.archive.ends())
    with RawPeer(node.port) as peer:
        peer.associate()
        peer.send(pdu(ABORT, bytes(2) + values))
        assert peer.receive()[0] == 0
    wait_until(lambda: len(node.archive.ends()) > before, what="the association ended")
    assert node.archive.ends()[-1] == "aborted"
