"""What the Storage SCU sends and how it understands the answers of real and scripted peers."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmread
from pynetdicom.sop_class import MRImageStorage

from node.dicom import scu
from node.dicom.contexts import proposed_contexts
from node.dicom.outgoing import Sender, pdus
from node.dicom.scu import Outgoing, PeerAddress, Sent, Timeouts, echo, send
from node.dicom.status import Outcome
from tests.peers import HOST, Script, free_port, orthanc, scripted_scp, storescp
from tests.raw_peer import CT, EXPLICIT, IMPLICIT, MR

DEMO = Path(__file__).parents[2] / "node/demo/data"
JPEG_LS_FILES = sorted((DEMO / "received").glob("*.dcm"))
JPEG_LS = "1.2.840.10008.1.2.4.80"
QUICK = Timeouts(connect=1.0, associate=0.5, answer=0.5)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Outgoing]:
    """Six real CT slices, native."""
    folder = tmp_path_factory.mktemp("native")
    made = []
    for index, source in enumerate(JPEG_LS_FILES[:6]):
        ds = dcmread(source)
        ds.decompress()
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"1.2.826.0.1.7.{index}"
        path = folder / f"{index}.dcm"
        ds.save_as(path)
        made.append(Outgoing(index, str(ds.SOPInstanceUID), CT, EXPLICIT, path))
    return made


@dataclass
class Answers:
    """What was answered for each instance, in the order of the answers."""

    statuses: list[tuple[int, int | None]] = field(default_factory=list)
    stop_after: int = 1000

    def answered(self, outgoing: Outgoing, status: int | None) -> None:
        self.statuses.append((outgoing.id, status))

    def stop(self) -> bool:
        return len(self.statuses) >= self.stop_after

    def send(
        self, port: int, files: list[Outgoing], *, ae: str = "SCRIPTED", calling: str = "MIDSLICE"
    ) -> Sent:
        address = peer(port, ae=ae, calling=calling)
        return send(address, files, answered=self.answered, stop=self.stop, timeouts=QUICK)


def peer(port: int, *, ae: str = "SCRIPTED", calling: str = "MIDSLICE") -> PeerAddress:
    return PeerAddress(ae_title=ae, host=HOST, port=port, calling_ae_title=calling)


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
            connection.recv(65536)

    with socket.socket() as listener:
        listener.bind((HOST, 0))
        listener.listen()
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        yield int(listener.getsockname()[1])
        thread.join(10)


def test_storescp_gets_every_instance_with_its_pixels(
    files: list[Outgoing], tmp_path: Path
) -> None:
    answers = Answers()
    with storescp(tmp_path / "stored") as scp:
        sent = answers.send(scp.port, files)
        assert sent == Sent(Outcome.STORED), scp.process
        stored = {dcmread(path).SOPInstanceUID: dcmread(path) for path in scp.files()}
    assert answers.statuses == [(index, 0x0000) for index in range(6)]
    for one in files:
        assert stored[one.instance_uid] == dcmread(one.path)
        assert stored[one.instance_uid].file_meta.TransferSyntaxUID == EXPLICIT


def test_a_peer_of_implicit_vr_gets_the_same_data_set_re_encoded(
    files: list[Outgoing], tmp_path: Path
) -> None:
    answers = Answers()
    with storescp(tmp_path / "stored", options=["+xi"]) as scp:
        assert answers.send(scp.port, files[:2]).outcome is Outcome.STORED, scp.process
        stored = sorted((dcmread(path) for path in scp.files()), key=lambda ds: ds.SOPInstanceUID)
    for one, after in zip(files[:2], stored, strict=True):
        before = dcmread(one.path)
        assert after.file_meta.TransferSyntaxUID == IMPLICIT
        assert after.PixelData == before.PixelData
        assert [element.tag for element in after] == [element.tag for element in before]


def test_compressed_instances_go_as_they_are(tmp_path: Path) -> None:
    source = JPEG_LS_FILES[0]
    one = Outgoing(1, str(dcmread(source).SOPInstanceUID), CT, JPEG_LS, source)
    answers = Answers()
    with storescp(tmp_path / "stored", options=["+xt"]) as scp:
        assert answers.send(scp.port, [one]).outcome is Outcome.STORED, scp.process
        stored = dcmread(scp.files()[0])
    assert stored.file_meta.TransferSyntaxUID == JPEG_LS
    assert stored.PixelData == dcmread(source).PixelData


def test_orthanc_stores_what_is_sent(files: list[Outgoing], tmp_path: Path) -> None:
    answers = Answers()
    with orthanc(tmp_path / "orthanc") as pacs:
        address = peer(pacs.port, ae="ORTHANC")
        sent = send(address, files, answered=answers.answered, stop=lambda: False)
        assert sent.outcome is Outcome.STORED, pacs.process
        assert len(pacs.ids("instances")) == len(files)
        assert echo(address).ok
        wrong = send(peer(pacs.port, ae="WRONG"), files, answered=answers.answered, stop=bool)
    assert wrong.outcome is Outcome.REFUSED
    assert {status for _, status in answers.statuses} == {0x0000}


def test_each_instance_has_its_own_status(files: list[Outgoing]) -> None:
    script = Script(statuses=[0x0000, 0xA700, 0xB000, 0xC123, 0x0111])
    answers = Answers()
    with scripted_scp(script) as port:
        assert answers.send(port, files).outcome is Outcome.STORED
    statuses = [0x0000, 0xA700, 0xB000, 0xC123, 0x0111, 0x0000]
    assert answers.statuses == list(enumerate(statuses))


def test_a_class_that_the_peer_does_not_take_is_refused_and_the_rest_sent(
    files: list[Outgoing],
) -> None:
    other = Outgoing(99, "1.2.3", MR, EXPLICIT, files[0].path)
    answers = Answers()
    with scripted_scp(Script()) as port:
        assert answers.send(port, [files[0], other, files[1]]).outcome is Outcome.STORED
    assert answers.statuses == [(0, 0x0000), (99, 0x0122), (1, 0x0000)]


def test_a_compressed_instance_that_the_peer_does_not_take_is_refused() -> None:
    one = Outgoing(1, "1.2.3", CT, JPEG_LS, JPEG_LS_FILES[0])
    answers = Answers()
    with scripted_scp(Script()) as port:
        assert answers.send(port, [one]).outcome is Outcome.STORED
    assert answers.statuses == [(1, 0x0122)]


def test_a_peer_that_takes_nothing_at_all_refuses(files: list[Outgoing]) -> None:
    answers = Answers()
    with scripted_scp(Script(sop_classes=(MRImageStorage,))) as port:
        sent = answers.send(port, files)
    assert sent.outcome is Outcome.REFUSED
    assert "accepts none of the SOP Classes" in sent.sentence
    assert answers.statuses == []


def test_an_abort_in_the_middle_is_tried_again_and_says_how_far_it_came(
    files: list[Outgoing],
) -> None:
    answers = Answers()
    with scripted_scp(Script(abort_at=3)) as port:
        sent = answers.send(port, files)
    assert answers.statuses == [(0, 0x0000), (1, 0x0000), (2, None)]
    assert sent == Sent(Outcome.RETRY, "SCRIPTED ended the association after 2 of 6 instances.")


def test_a_peer_that_stalls_is_left_within_the_timeout(files: list[Outgoing]) -> None:
    answers = Answers()
    began = time.monotonic()
    script = Script(stall_at=2)
    with scripted_scp(script) as port:
        sent = send(
            peer(port),
            files[:3],
            answered=answers.answered,
            stop=lambda: False,
            timeouts=Timeouts(answer=0.1),
        )
        seconds = time.monotonic() - began
        script.stop.set()
    assert answers.statuses == [(0, 0x0000), (1, None)]
    assert sent.outcome is Outcome.RETRY
    assert "does not answer any more after 1 of 3 instances" in sent.sentence
    assert seconds < 5.0


def test_stopping_ends_after_the_instance_on_the_wire(files: list[Outgoing]) -> None:
    answers = Answers(stop_after=2)
    script = Script()
    with scripted_scp(script) as port:
        assert answers.send(port, files).outcome is Outcome.RETRY
    assert answers.statuses == [(0, 0x0000), (1, 0x0000)]
    assert len(script.received) == 2


def test_an_error_of_the_caller_ends_the_association(files: list[Outgoing]) -> None:
    class LeaseLost(Exception):
        pass

    def lost(outgoing: Outgoing, status: int | None) -> None:
        raise LeaseLost

    script = Script()
    with scripted_scp(script) as port:
        with pytest.raises(LeaseLost):
            send(peer(port), files, answered=lost, stop=lambda: False)
        assert Answers().send(port, files[:1]).outcome is Outcome.STORED
    assert len(script.received) == 2


def test_an_unknown_calling_ae_title_is_refused_with_advice(files: list[Outgoing]) -> None:
    with scripted_scp(Script(calling_ae_titles=("OTHER",))) as port:
        sent = Answers().send(port, files)
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
    files: list[Outgoing], answer: tuple[int, int, int], outcome: Outcome, word: str
) -> None:
    with rejecting(*answer) as port:
        sent = Answers().send(port, files)
    assert sent.outcome is outcome
    assert word in sent.sentence


def test_a_peer_that_is_away_is_tried_again(files: list[Outgoing]) -> None:
    sent = Answers().send(free_port(), files)
    assert sent.outcome is Outcome.RETRY
    assert "refuses the connection" in sent.sentence
    unknown = PeerAddress("PACS", "pacs.invalid", 104, "MIDSLICE")
    assert "unknown" in echo(unknown).sentence


def test_a_peer_that_never_answers_the_request_is_left(files: list[Outgoing]) -> None:
    began = time.monotonic()
    with silent_listener() as port:
        sent = Answers().send(port, files)
        asked = echo(peer(port), timeouts=QUICK)
    assert sent.outcome is Outcome.RETRY
    assert "does not answer the request" in sent.sentence
    assert not asked.ok
    assert time.monotonic() - began < 10.0


def test_more_kinds_than_one_association_holds_are_sent_over_several(
    files: list[Outgoing], tmp_path: Path
) -> None:
    kinds = [f"1.2.3.{index}" for index in range(70)]
    many = [
        Outgoing(index, "1.2", kind, EXPLICIT, files[0].path) for index, kind in enumerate(kinds)
    ]
    assert len(proposed_contexts((one.sop_class_uid, EXPLICIT) for one in many)) > 128
    answers = Answers()
    with scripted_scp(Script()) as port:
        batch = [files[0], *many[:63], files[1], *many[63:], files[2]]
        sent = answers.send(port, batch)
    assert sent.outcome is Outcome.STORED
    assert [id for id, status in answers.statuses if status == 0] == [0, 1, 2]
    assert len(answers.statuses) == len(batch)


def test_only_what_is_sent_is_proposed() -> None:
    contexts = proposed_contexts([(CT, EXPLICIT), (CT, EXPLICIT), (MR, JPEG_LS)])
    proposed = [(str(one.abstract_syntax), str(one.transfer_syntax[0])) for one in contexts]
    assert proposed == [
        (CT, EXPLICIT),
        (CT, IMPLICIT),
        (MR, EXPLICIT),
        (MR, IMPLICIT),
        (MR, JPEG_LS),
    ]
    assert all(len(one.transfer_syntax) == 1 for one in contexts)


@pytest.mark.parametrize("most", [1, 7, 1000, 16378])
def test_a_message_is_cut_into_fragments_that_fit(most: int) -> None:
    data = BytesIO(bytes(range(256)) * 8)
    command = b"command!" * 20
    read, kinds = {0: b"", 1: b""}, []
    for one in pdus(command, data, context_id=5, most=most):
        assert one[0] == 4
        assert len(one) - 12 <= most
        assert int.from_bytes(one[2:6], "big") == len(one) - 6
        assert int.from_bytes(one[6:10], "big") == len(one) - 10
        assert one[10] == 5
        read[one[11] & 1] += one[12:]
        kinds.append(one[11])
    assert read == {1: command, 0: bytes(range(256)) * 8}
    assert [kind for kind in kinds if kind & 2] == [3, 2]
    assert kinds[-1] == 2


def test_requested_sockets_wait_for_no_acknowledgement(files: list[Outgoing]) -> None:
    seen = []

    def look() -> bool:
        for thread in threading.enumerate():
            if thread.name.startswith("RequestorThread"):
                sock = thread.dul.socket.socket  # type: ignore[attr-defined]
                seen.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
                seen.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK))
        return False

    with scripted_scp(Script()) as port:
        send(peer(port), files[:2], answered=lambda *_: None, stop=look)
    assert len(seen) >= 2
    assert all(seen)


def test_the_associations_own_thread_never_takes_the_senders_answer() -> None:
    with scripted_scp(Script()) as port:
        peer = PeerAddress("SCRIPTED", HOST, port, "MIDSLICE")
        contexts = proposed_contexts([(CT, EXPLICIT)])
        association = scu._associate(peer, contexts, Timeouts())
        assert not isinstance(association, Sent)
        association.dimse = Sender(association, lambda: False)
        try:
            association.dimse.msg_queue.put((1, "the answer"))  # type: ignore[arg-type]
            assert association.dimse.get_msg(block=False) == (None, None)
            assert association.dimse.get_msg(block=True) == (1, "the answer")
        finally:
            association.release()


def test_abandoned_a_peer_that_stalls_is_left_at_once(files: list[Outgoing]) -> None:
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
            files,
            answered=lambda _, status: answers.append(status),
            stop=lambda: False,
            abandon=abandoned.is_set,
        )
        timer.join()
        assert sent.outcome is Outcome.RETRY
        assert answers == [0, None]
        assert time.monotonic() - began < 10.0
