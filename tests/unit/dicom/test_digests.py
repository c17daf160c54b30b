"""Digests beside the receiving thread: the same as in it, whoever ends a data set and when."""

import hashlib
import random
import threading
from pathlib import Path

import pytest

from node.dicom.digests import SMALL_BYTES, DigestThreads
from node.dicom.incoming import Incoming

HEAD = b"head"


def pieces(seed: int) -> list[bytes]:
    drawn = random.Random(seed)
    return [drawn.randbytes(drawn.choice([1, 2000, SMALL_BYTES, 131_060])) for _ in range(12)]


@pytest.mark.parametrize("threads", [0, 1])
@pytest.mark.parametrize("seed", range(5))
def test_a_digest_is_that_of_its_pieces_in_their_order(threads: int, seed: int) -> None:
    digests = DigestThreads(threads)
    for _ in range(3):
        digest = digests.digest()
        for piece in pieces(seed):
            digest.update(piece)
        assert digest.hexdigest() == hashlib.sha256(b"".join(pieces(seed))).hexdigest()


def test_two_at_once_do_not_share_a_thread() -> None:
    digests = DigestThreads(1)
    first, second = digests.digest(), digests.digest()
    for one, other in zip(pieces(1), pieces(2), strict=True):
        first.update(one)
        second.update(other)
    assert second.hexdigest() == hashlib.sha256(b"".join(pieces(2))).hexdigest()
    assert first.hexdigest() == hashlib.sha256(b"".join(pieces(1))).hexdigest()


def test_memory_is_used_again_only_when_its_pieces_are_digested() -> None:
    digest, blocks, content = (
        DigestThreads(1).digest(),
        [bytearray(1 << 18), bytearray(1 << 18)],
        b"",
    )
    for number in range(40):
        digest.before_reuse()
        block = blocks[number % 2]
        block[:] = random.Random(number).randbytes(len(block))
        content += block
        digest.update(memoryview(block))
    assert digest.hexdigest() == hashlib.sha256(content).hexdigest()


def test_a_thread_is_free_again_after_a_data_set_that_was_given_up() -> None:
    digests = DigestThreads(1)
    digest = digests.digest()
    digest.update(pieces(1)[0] + bytes(SMALL_BYTES))
    digest.close()
    digest.close()
    assert len(digests._free) == 1


@pytest.mark.parametrize("at", range(0, 12, 3))
def test_a_data_set_that_another_thread_discards_ends_in_an_error_and_leaves_nothing(
    tmp_path: Path, at: int
) -> None:
    digests = DigestThreads(1)
    for _ in range(20):
        incoming = Incoming(tmp_path, HEAD, digest=digests.digest())
        other = threading.Thread(target=incoming.discard)
        for number, piece in enumerate(pieces(at)):
            if number == at:
                other.start()
            incoming.write(piece)
        other.join()
        with pytest.raises(OSError, match="the association is over"):
            incoming.finish()
        assert list(tmp_path.iterdir()) == []
    again = Incoming(tmp_path, HEAD, digest=digests.digest())
    again.write(pieces(7)[0] + bytes(SMALL_BYTES))
    assert again.finish().path.read_bytes() == HEAD + pieces(7)[0] + bytes(SMALL_BYTES)
    assert len(digests._free) == 1
