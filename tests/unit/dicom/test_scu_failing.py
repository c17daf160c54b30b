"""Peers that reject, abort, stall or are away: what the Storage SCU makes of it."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from pynetdicom.sop_class import MRImageStorage

from node.dicom.scu import Outgoing, PeerAddress, SendResult, Timeouts, echo, send
from node.dicom.status import Outcome
from tests.peers import Script, scripted_scp
from tests.ports import HOST, free_port
from tests.sending import QUICK, Answers, peer


@contextmanager
def silent_listener() -> Iterator[int]:
    """Takes connections and says nothing on them."""
    with socket.socket() as sock:
        sock.bind((HOST, 0))
        sock.listen()
        yield int(sock.getsockname()[1])


@contextmanager
def rejecting(result: int, source: int, reason: int) -> Iterator[int]:
    """Rejects one association with just this answer."""

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(bytes([3, 0, 0, 0, 0, 4, 0, result, source, reason]))
            while connection.recv(65536):  # a request may come in two pieces; its end closes
                pass

    with socket.socket() as listener:
        listener.bind((HOST, 0))
        listener.listen()
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        yield int(listener.getsockname()[1])
        thread.join(10)


def test_a_peer_that_takes_nothing_at_all_refuses(six_slices: list[Outgoing]) -> None:
    answers = Answers()
    with scripted_scp(Script(sop_classes=(MRImageStorage,))) as port:
        sent = answers.send(port, six_slices)
    assert sent.outcome is Outcome.REFUSED
    assert "accepts none of the SOP Classes" in sent.sentence
    assert answers.statuses == []


def test_an_abort_in_the_middle_is_tried_again_and_says_how_far_it_came(
    six_slices: list[Outgoing],
) -> None:
    answers = Answers()
    with scripted_scp(Script(abort_at=3)) as port:
        sent = answers.send(port, six_slices)
    assert answers.statuses == [(0, 0x0000), (1, 0x0000), (2, None)]
    assert sent == SendResult(
        Outcome.RETRY,
        "SCRIPTED aborted the association (by its application, which gives no reason) after 2 of 6 "
        "instances.",
    )


def test_a_peer_that_stalls_is_left_within_the_timeout(six_slices: list[Outgoing]) -> None:
    answers = Answers()
    began = time.monotonic()
    script = Script(stall_at=2)
    with scripted_scp(script) as port:
        sent = send(
            peer(port),
            six_slices[:3],
            answered=answers.answered,
            stop=lambda: False,
            timeouts=Timeouts(answer=0.1),
        )
        seconds = time.monotonic() - began
        script.stop.set()
    assert answers.statuses == [(0, 0x0000), (1, None)]
    assert sent.outcome is Outcome.RETRY
    assert "no longer answers after 1 of 3 instances" in sent.sentence
    assert seconds < 5.0


def test_stopping_ends_after_the_instance_on_the_wire(six_slices: list[Outgoing]) -> None:
    answers = Answers(stop_after=2)
    script = Script()
    with scripted_scp(script) as port:
        assert answers.send(port, six_slices).outcome is Outcome.RETRY
    assert answers.statuses == [(0, 0x0000), (1, 0x0000)]
    assert len(script.received) == 2


def test_an_error_of_the_caller_ends_the_association(six_slices: list[Outgoing]) -> None:
    class LeaseLost(Exception):
        pass

    def lost(outgoing: Outgoing, status: int | None, comment: str) -> None:
        raise LeaseLost

    script = Script()
    with scripted_scp(script) as port:
        with pytest.raises(LeaseLost):
            send(peer(port), six_slices, answered=lost, stop=lambda: False)
        assert Answers().send(port, six_slices[:1]).outcome is Outcome.STORED
    assert len(script.received) == 2


def test_an_unknown_calling_ae_title_is_refused_with_advice(six_slices: list[Outgoing]) -> None:
    with scripted_scp(Script(calling_ae_titles=("OTHER",))) as port:
        sent = Answers().send(port, six_slices)
        assert not echo(peer(port)).ok
        assert echo(peer(port, calling="OTHER")).ok
    assert sent.outcome is Outcome.REFUSED
    assert "does not know the calling AE title MIDSLICE" in sent.sentence


@pytest.mark.parametrize(
    ("answer", "outcome", "word"),
    [
        ((1, 1, 1), Outcome.REFUSED, "no reason"),
        ((1, 1, 7), Outcome.REFUSED, "called AE title SCRIPTED"),
        ((1, 2, 2), Outcome.REFUSED, "version"),
        ((2, 3, 1), Outcome.RETRY, "congested"),
        ((2, 3, 2), Outcome.RETRY, "as many associations"),
        ((2, 1, 1), Outcome.RETRY, "no reason"),
    ],
)
def test_a_rejection_says_whether_it_is_worth_trying_again(
    six_slices: list[Outgoing], answer: tuple[int, int, int], outcome: Outcome, word: str
) -> None:
    with rejecting(*answer) as port:
        sent = Answers().send(port, six_slices)
    assert sent.outcome is outcome
    assert word in sent.sentence


def test_a_peer_that_is_away_is_tried_again(six_slices: list[Outgoing]) -> None:
    sent = Answers().send(free_port(), six_slices)
    assert sent.outcome is Outcome.RETRY
    assert "refuses the connection" in sent.sentence
    unknown = PeerAddress("PACS", "pacs.invalid", 104, "MIDSLICE")
    assert "unknown" in echo(unknown).sentence


def test_a_peer_that_never_answers_the_request_is_left(six_slices: list[Outgoing]) -> None:
    began = time.monotonic()
    with silent_listener() as port:
        sent = Answers().send(port, six_slices)
        asked = echo(peer(port), timeouts=QUICK)
    assert sent.outcome is Outcome.RETRY
    assert "does not answer the request" in sent.sentence
    assert not asked.ok
    assert time.monotonic() - began < 10.0


def test_abandoned_a_peer_that_stalls_is_left_at_once(six_slices: list[Outgoing]) -> None:
    script = Script(stall_at=2)
    abandoned = threading.Event()
    with scripted_scp(script) as port:
        peer = PeerAddress("SCRIPTED", HOST, port, "MIDSLICE")
        answers: list[int | None] = []
        timer = threading.Timer(0.5, abandoned.set)
        timer.start()
        began = time.monotonic()
        sent = send(
            peer,
            six_slices,
            answered=lambda _, status, _comment: answers.append(status),
            stop=lambda: False,
            abandon=abandoned.is_set,
        )
        timer.join()
        assert sent.outcome is Outcome.RETRY
        assert answers == [0, None]
        assert time.monotonic() - began < 10.0
