"""One peer that takes what it can get, and the others, who notice nothing of it."""

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.node_scp import Node, node_scp
from tests.peers import wait_until
from tests.raw_peer import (
    ABORT,
    ASSOCIATE_AC,
    CT,
    EXPLICIT,
    VERIFICATION,
    RawPeer,
    associate_request,
    data_set,
    echo_command,
    fragment,
    status_of,
    store_command,
)

OTHER_ADDRESS = "127.0.0.2"
DESCRIPTORS_OF_WAITING = 3  # the connection, and two by which its thread is woken
ECHO = associate_request(calling="OTHER", contexts=((VERIFICATION, (EXPLICIT,)),))
BOTH = associate_request(contexts=((CT, (EXPLICIT,)), (VERIFICATION, (EXPLICIT,))))


@pytest.fixture(params=[True, False], ids=["direct", "library"])
def node(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Node]:
    with node_scp(tmp_path, is_direct=request.param, request_seconds=20.0) as running:
        yield running


def descriptors() -> int:
    """The number of open descriptors of this process, in which node and peers run."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - only the number counts


def seconds_of_echo(node: Node) -> float:
    """The time in which a C-ECHO from another address is answered.

    The quickest of three: a full machine delays one of them, a peer that is in the way all.
    """
    return min(_one_echo(node) for _ in range(3))


def _one_echo(node: Node) -> float:
    before = node.scp.open_associations()
    began = time.monotonic()
    with RawPeer(node.port, source=OTHER_ADDRESS) as peer:
        assert peer.associate(ECHO)[0] == ASSOCIATE_AC
        peer.send(fragment(echo_command(), command=True))
        assert status_of(peer.answer()) == 0
    seconds = time.monotonic() - began
    wait_until(lambda: node.scp.open_associations() <= before, what="the echo has ended")
    return seconds


def test_250_silent_connections_of_one_address_delay_nobody(node: Node) -> None:
    before = descriptors()
    with ExitStack() as stack:
        silent = [stack.enter_context(RawPeer(node.port)) for _ in range(250)]
        assert seconds_of_echo(node) < 1.0
        bound = before + len(silent) + (50 + 2) * DESCRIPTORS_OF_WAITING
        wait_until(lambda: descriptors() <= bound, what="only a share of them may wait")
        assert silent[-1].receive() == (0, b"")


def test_60_associations_that_one_peer_leaves_open_take_a_share_of_the_places(node: Node) -> None:
    with ExitStack() as stack:
        peers = [stack.enter_context(RawPeer(node.port)) for _ in range(60)]
        # Each with a title of its own: the address is the same.
        answers = [
            peer.associate(associate_request(calling=f"CT{number}"))[0]
            for number, peer in enumerate(peers)
        ]
        assert answers.count(ASSOCIATE_AC) == 25
        assert seconds_of_echo(node) < 1.0
        with RawPeer(node.port, source=OTHER_ADDRESS) as other:
            assert other.associate()[0] == ASSOCIATE_AC
            assert other.status(store_command(), data_set()) == 0


def test_a_verification_is_let_in_where_every_place_is_taken(tmp_path: Path) -> None:
    with node_scp(tmp_path, max_associations=4) as node, ExitStack() as stack:
        for source in ("127.0.0.3", "127.0.0.4"):
            for title in (f"A{source[-1]}", f"B{source[-1]}"):
                peer = stack.enter_context(RawPeer(node.port, source=source))
                assert peer.associate(associate_request(calling=title))[0] == ASSOCIATE_AC
        assert seconds_of_echo(node) < 1.0


@pytest.mark.parametrize("what", ["echo", "store"])
def test_of_2000_requests_that_do_not_wait_one_is_in_hand(node: Node, what: str) -> None:
    before, stop = descriptors(), threading.Event()
    most = [0, 0]  # descriptors, files that arrive

    def watch() -> None:
        while not stop.wait(0.005):
            most[0] = max(most[0], descriptors())
            most[1] = max(most[1], len(node.archive.litter()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    with RawPeer(node.port) as peer:
        assert peer.associate(BOTH)[0] == ASSOCIATE_AC
        writer = threading.Thread(target=_write, args=(peer, what))
        writer.start()
        answers = [status_of(peer.answer()) for _ in range(100)]
        assert answers == [0] * 100
        assert seconds_of_echo(node) < 1.0
        peer.socket.close()  # with 1,900 of them unanswered
        writer.join()
    wait_until(lambda: node.scp.open_associations() == 0, what="the association ended")
    stop.set()
    watcher.join()
    # The two connections at both ends, what wakes their threads, and a file or two on its way.
    assert most[0] - before <= 12
    assert most[1] <= 2
    assert node.archive.litter() == []


def _write(peer: RawPeer, what: str) -> None:
    with contextlib.suppress(OSError):
        for number in range(2000):
            if what == "echo":
                peer.send(fragment(echo_command(), context_id=3, command=True))
                continue
            uid = f"1.2.3.{number}"
            padded = uid.encode() + b"\0" * (len(uid) % 2)
            command = store_command(padded, message_id=number + 1)
            peer.send(fragment(command, command=True) + fragment(data_set(uid)))


@pytest.mark.parametrize(
    ("begun", "how"),
    [
        (fragment(store_command(), command=True), "aborted"),
        (fragment(store_command(), command=True, last=False), "aborted"),
        (fragment(store_command(), command=True) + fragment(data_set(), last=False), "aborted"),
        (fragment(store_command(), command=True) + fragment(data_set())[:-9], "dropped"),
    ],
    ids=["after the command", "in the command", "in the data set", "in a PDU"],
)
@pytest.mark.parametrize("is_direct", [True, False], ids=["direct", "library"])
def test_a_peer_that_is_silent_in_the_middle_of_a_message_makes_room(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    begun: bytes,
    how: str,
    is_direct: bool,
) -> None:
    with ExitStack() as stack:
        node = stack.enter_context(node_scp(tmp_path, is_direct=is_direct, message_seconds=0.5))
        with RawPeer(node.port) as idle, RawPeer(node.port) as peer:
            assert {idle.associate()[0], peer.associate()[0]} == {ASSOCIATE_AC}
            began = time.monotonic()
            peer.send(begun)
            assert peer.receive()[0] in (ABORT, 0)
            assert 0.4 < time.monotonic() - began < 3.0
            wait_until(lambda: node.archive.ends() == [how], what="it ended")
            assert node.archive.litter() == []
            # One between two messages is let be.
            assert idle.status(store_command(), data_set()) == 0
    ended = [line.__dict__ for line in caplog.records if line.message == "association ended"]
    assert ended[0]["by"] == "node"
    assert ended[0]["reason"] == "nothing came for 0.5 s in the middle of a message"
